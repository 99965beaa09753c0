//! What one core owns: its logs, its part of the queues, its timers; and all that cores say to each other.

pub mod ack_gate;
pub mod core;
pub mod executor;
pub mod figures;
pub mod handle;
pub mod hold;
pub mod locks;
pub mod mesh;
pub mod message;
pub mod meta;
pub mod meta_writer;
pub mod pop;
pub mod pull;
pub mod pump;
mod query;
pub mod replication;
mod resets;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod timers;
pub mod transactions;

pub use self::core::{Mesh, Role, Shard, ShardOptions};
pub use handle::ShardHandle;
