//! The process: flags and files to a [`Config`](crate::base::config::Config), checks, logs, signals, and the start of a node.
//!
//! This is the top layer; `src/bin/ringmq.rs` only calls [`run::main`]. Standard output carries what scripts and people
//! asked for (boot lines, listings), standard error the log and refusals. Exit codes: [`run::Exit`].

mod boot;
mod cli;
mod config_command;
mod controlled;
mod controller_command;
mod doctor;
mod log;
mod node;
mod replication;
mod run;
mod shutdown;
mod store_command;
mod supervisor;
mod try_command;
mod tx_command;

pub use node::{RunError, start_node};
pub use run::{Exit, main};
pub use shutdown::{Phase, Reached, Shutdown};
