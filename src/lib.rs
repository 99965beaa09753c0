//! RingMQ: a message broker and name server that speaks the Apache RocketMQ protocol.
//!
//! Layers, each of which may name only those below it (`tests/layering.rs` checks it):
//! `bin` > `app` > `broker`, `namesrv`, `admin` > `server`, `client`, `shard` > `ha` > `store` > `io`, `wire` > `base`.
//! ARCHITECTURE.md has the map, the life of a message and the invariants.

pub mod admin;
pub mod app;
pub mod base;
pub mod broker;
pub mod client;
pub mod controller;
pub mod ha;
pub mod io;
pub mod namesrv;
pub mod server;
pub mod shard;
pub mod store;
pub mod wire;
