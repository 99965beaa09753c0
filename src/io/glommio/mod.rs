//! The production backend: glommio executors on io_uring.

mod env;
mod pages;

pub use env::{GlommioEnv, disk_space};
pub use pages::{DmaPages, ReadPages};
