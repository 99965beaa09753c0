//! The simulator backend of the seam: one thread, one seed, virtual time, and a disk that loses, tears and reorders
//! what was not flushed.
//!
//! [`SimWorld`] is the executor, the clock and the machines; [`SimEnv`] is what one core of a machine holds of it; [`Disk`]
//! is a machine's disk, with its faults. The same seed and the same code give the same trace, byte for byte: nothing
//! here reads real time, starts a thread or iterates in an order that depends on the process.
//! Only tests use it. [`SimNetwork`] has the connections between machines: delayed, cut, and ended by a crash.

mod disk;
mod env;
mod faults;
mod net;
mod world;

pub use disk::Disk;
pub use env::{SimEnv, SimFile};
pub use faults::{DiskOptions, Errno, Faults, Latency, OpKind};
pub use net::{SimNet, SimNetwork, SimStream};
pub use world::{Control, Crash, NodeId, SimOptions, SimWorld, Stalled};

#[cfg(test)]
mod tests;
