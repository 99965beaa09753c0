//! The production backend: one executor per thread on one io_uring, made for this broker.
//!
//! A turn of the loop runs what is ready, then makes **one** `io_uring_enter`: it submits what was asked for, waits if
//! nothing is ready, and takes all completions. Sockets are tried first and watched by one epoll set, which may wake the
//! executor unless a commit is on its way; another core is woken by one write to its eventfd, and only if it sleeps.

mod channel;
mod core;
mod env;
mod helper;
mod op;
mod pages;
mod sockets;
mod tcp;
#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;
mod timers;
mod uring;

pub use channel::{Receiver, Sender, TrySendError, channel};
pub use core::{Executor, Placement};
pub use env::{RingEnv, RingFile, disk_space};
pub use pages::Pages;
pub use tcp::{DetachedStream, Listener, RingNet, Stream, connect};
