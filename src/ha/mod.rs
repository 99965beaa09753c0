//! The slave stream: a master sends the batches of each log to its slaves, which store the same bytes and acknowledge.
//!
//! One connection per log, from the core of the slave that runs the log to the core of the master that does.
//! `replica_window.rs` (pure) says what the acknowledgements are worth, `master.rs` and `slave.rs` are the two ends of a
//! connection, `handshake.rs` is how they begin. Nothing here knows clients or requests; `shard` joins what is durable here
//! with what is replicated. `control.rs` is what a controller has said about roles, lease and in-sync set (pure), if there is one.
//! Absent: a way to bring a slave up from a snapshot.

pub mod agent;
pub mod control;
pub mod fetch;
pub mod handshake;
pub mod master;
pub mod replica_window;
pub mod slave;
