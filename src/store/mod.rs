//! The log of one shard, and the tables that are folds over it.
//!
//! Everything durable is a record in a log; a table is rebuilt by applying the records in order, and a snapshot bounds
//! how many. The store does not know that other cores, replicas or clients exist. Called by `shard` only.

pub mod batch;
pub mod commit_log;
pub mod compare;
pub mod control;
pub mod delayed;
pub mod group_commit;
pub mod half;
pub mod index_files;
pub mod keys;
pub mod log_reader;
pub mod manifest;
pub mod read_gate;
pub mod recovery;
pub mod retention;
pub mod scrub;
pub mod seed;
pub mod segment;
pub mod snapshot;
pub mod tables;
#[cfg(test)]
pub mod testing;
pub mod tool;
pub mod types;

pub use commit_log::{CommitLog, LogListener, LogOptions};
