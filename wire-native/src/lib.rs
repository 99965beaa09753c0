//! RingMQ's native protocol, without any input or output: bytes to values and back.
//!
//! [`frame`] finds where a frame ends and the next begins, [`message`] is what a frame says ([`shape`] remembers what the
//! last ones looked like), [`record`] is the stored
//! message, which travels as it is in both directions, and [`properties`] is the text of properties in it. The broker
//! and its clients share this crate; it knows neither of them.
//!
//! Bytes from a peer never panic: lengths are checked before anything is reserved or cut, and every header is verified
//! before it is read. `generated.rs` is what `flatc` made of `schema.fbs` and the only place here with `unsafe` code.
#![deny(unsafe_code)]

pub mod frame;
#[allow(
    unsafe_code,
    unused_imports,
    dead_code,
    missing_docs,
    non_snake_case,
    clippy::all,
    clippy::pedantic,
    clippy::unwrap_used,
    clippy::host_endian_bytes,
    rustdoc::all
)] // Made by flatc, never edited.
#[rustfmt::skip]
pub mod generated;
mod layout;
pub mod message;
pub mod properties;
pub mod recent;
pub mod record;
pub mod shape;

/// The newest version of the protocol that this crate speaks.
pub const VERSION: u16 = 1;

/// Optional features, the bits of Hello and its answer. Both sides use those that both name.
pub mod feature {
    /// Consumer groups whose queues the broker shares out.
    pub const GROUPS: u64 = 1;
    /// All that this crate knows.
    pub const ALL: u64 = GROUPS;
}

/// Response codes that RocketMQ does not have.
pub mod code {
    /// The broker does not know the member: it joins again.
    pub const UNKNOWN_MEMBER: i32 = 31_002;
    /// The member does not own the queue that it commits, or did not in that generation: nothing was committed.
    pub const STALE_MEMBER: i32 = 31_003;
}
