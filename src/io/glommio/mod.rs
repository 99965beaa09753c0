//! The production backend: glommio executors on io_uring.

mod env;
mod pages;
mod tcp;
#[cfg(test)]
pub mod testing;

pub use env::{GlommioEnv, disk_space};
pub use pages::{DmaPages, ReadPages};
pub use tcp::{Listener, Stream, connect};
