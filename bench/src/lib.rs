//! ringmq-bench: a load harness for brokers that speak the Apache RocketMQ remoting protocol.
//!
//! It is a client and nothing else: it runs unchanged against Apache RocketMQ and RingMQ, and believes no answer that it
//! has not checked. From the bottom: `payload`, `frames`, `native`, `answer` (bytes); `schedule`, `measure`, `ledger`, `search` (pure);
//! `connection`, `reactor`, `control`, `overload` (sockets); `producer`, `consumer` (one thread each); `plan`, `workload` (what to do),
//! `run`, `agents`, `peer`, `floor` (doing it); `machine`, `process` (where); `result`, `report`, `table` (what came out); `progress`, `cli`.

pub mod agents;
pub mod answer;
pub mod cli;
pub mod clock;
pub mod connection;
pub mod consumer;
pub mod control;
pub mod floor;
pub mod frames;
pub mod ledger;
pub mod machine;
pub mod measure;
pub mod native;
pub mod overload;
pub mod payload;
pub mod peer;
pub mod plan;
pub mod process;
pub mod producer;
pub mod progress;
pub mod queues;
pub mod reactor;
pub mod report;
pub mod result;
pub mod run;
pub mod schedule;
pub mod search;
pub mod table;
pub mod workload;
