//! What one core owns: its logs, its part of the queues, its timers; and all that cores say to each other.

pub mod ack_gate;
pub mod handle;
pub mod hold;
pub mod message;
pub mod meta;
pub mod pump;

pub use handle::ShardHandle;
