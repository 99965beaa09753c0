//! Bytes to values and back, without any input or output (sans-io): the remoting protocol, the native protocol and the
//! stored record.
//!
//! The native protocol and the record are in a crate of their own, `wire-native/`, since clients that speak it need
//! them without the broker.

pub mod batch;
pub mod ha;
pub mod message_id;
pub mod remoting;
pub mod sql;

pub use ringmq_wire_native::{self as native, properties, record};

const _: () = assert!(record::PROPERTIES_BYTES_MAX == crate::base::limits::PROPERTIES_BYTES_MAX);
