//! Black-box tests: the real binary as a child process, real sockets, and a client of our own that shares no code with
//! the product. What a message queue promises is checked from outside, with `kill -9`, full disks and garbage included.
//!
//! Each campaign has a short form that runs by default and a long one behind an environment variable, named on top of
//! its file. `RINGMQ_BIN` selects the binary, `RINGMQ_TEST_DIR` the directory for stores.
#![allow(clippy::unwrap_used)] // a test may panic

/// Prints a line past the capture of the test harness: what a campaign tried has to be seen when it passes, too.
macro_rules! say {
    ($($part:tt)*) => {{
        use std::io::Write as _;
        let line = format!($($part)*);
        let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
    }};
}

#[path = "../ports/mod.rs"]
mod ports;

mod client;
mod node;
mod record;
mod store_files;

mod admin;
mod codec;
mod crash;
mod crash_features;
mod disk_full;
mod everyday;
mod failover;
mod ledger;
mod malformed;
mod many_queues;
mod metrics;
mod native;
mod native_glommio;
mod native_groups;
mod partitions;
mod pop;
mod process;
mod query;
mod replication;
mod request_reply;
mod timers;
mod transactions;
