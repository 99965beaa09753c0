//! `ringmq store check` and `ringmq store dump`: read a store that no broker has open.
