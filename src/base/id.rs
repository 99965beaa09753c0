//! Identities that more than one layer passes on.

/// Identity of a connection in this process: its core and a number that is never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId {
    pub core: u16,
    pub serial: u64,
}
