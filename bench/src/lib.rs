//! ringmq-bench: a load harness for brokers that speak the Apache RocketMQ remoting protocol.
//!
//! It is a client and nothing else: it runs unchanged against Apache RocketMQ and RingMQ, and believes no answer that it
//! has not checked. From the bottom: `payload`, `frames` (bytes), `connection`, `control` (sockets), `schedule`,
//! `measure` (pure), `producer` (the load), `process` (/proc), `cli`.

pub mod cli;
pub mod connection;
pub mod control;
pub mod frames;
pub mod measure;
pub mod payload;
pub mod process;
pub mod producer;
pub mod schedule;
