//! One type per kind of number, so that a queue offset can never be taken for a position in a log.

use std::fmt;

/// Number of a log in a store, 0..=126: it has to fit above the position in a [`PhysicalOffset`].
pub type LogId = u8;

/// Number of bits of a physical offset that hold the position in its log.
const POSITION_BITS: u32 = 56;
/// Greatest log number: the sign bit of the physical offset stays clear.
pub const LOG_ID_MAX: LogId = 126;

/// Byte position in one log, from its first byte ever written (retention never renumbers).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub u64);

impl Position {
    /// The position `bytes` further on.
    pub fn advance(self, bytes: u64) -> Self {
        let end = self.0 + bytes;
        assert!(
            end < 1 << POSITION_BITS,
            "a position has {POSITION_BITS} bits"
        );
        Self(end)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Commit log offset as clients see it: `log << 56 | position`, a positive signed 64-bit number.
/// With one log it equals RocketMQ's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PhysicalOffset(pub i64);

impl PhysicalOffset {
    /// The physical offset of a position in a log.
    pub fn new(log: LogId, position: Position) -> Self {
        assert!(log <= LOG_ID_MAX && position.0 < 1 << POSITION_BITS);
        Self(((u64::from(log) << POSITION_BITS) | position.0) as i64)
    }

    /// The log and the position in it, or `None` for a negative number.
    pub fn split(self) -> Option<(LogId, Position)> {
        if self.0 < 0 {
            return None;
        }
        let bits = self.0 as u64;
        Some((
            (bits >> POSITION_BITS) as LogId,
            Position(bits & ((1 << POSITION_BITS) - 1)),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_physical_offset_splits_into_what_it_was_made_of() {
        for (log, position) in [
            (0, 0),
            (0, 12345),
            (7, (1 << 56) - 1),
            (LOG_ID_MAX, 1 << 40),
        ] {
            let offset = PhysicalOffset::new(log, Position(position));
            assert!(offset.0 >= 0);
            assert_eq!(offset.split(), Some((log, Position(position))));
        }
        assert_eq!(PhysicalOffset(-1).split(), None);
        assert_eq!(PhysicalOffset::new(0, Position(77)).0, 77);
    }
}
