//! Bytes to values and back, without any input or output (sans-io): the remoting protocol and the stored record.

pub mod batch;
pub mod ha;
pub mod message_id;
pub mod properties;
pub mod record;
pub mod remoting;
pub mod sql;
