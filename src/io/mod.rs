//! The only layer that touches files, sockets, the clock and libc, and the only one with `unsafe`.
//! Everything above sees the world through [`env::Env`]; `ring/` is the production backend, `sim/` the simulator.

pub mod aligned_buf;
pub mod body;
pub mod env;
pub mod interrupts;
pub mod net;
pub mod nudge;
pub mod preflight;
pub mod process;
pub mod ring;
pub mod rlimit;
pub mod sim;
pub mod tcp;
