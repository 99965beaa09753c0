//! The name server: which broker serves which topic.
//!
//! `route_table.rs` decides and is pure, `handlers.rs` gives requests their meaning, `kv.rs` keeps the key-value table and
//! its file, `options.rs` what may be changed over the wire, `bodies.rs` is the shape of answers, `notify.rs` tells brokers
//! of a new smallest id. One core owns all of it: nothing here is shared and nothing locks.

mod bodies;
pub mod handlers;
pub mod kv;
mod notify;
pub mod options;
pub mod route_table;
