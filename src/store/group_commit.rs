//! Group commit as a pure state machine: what to write next, what is durable.
//!
//! One group of batches is in flight; meanwhile the next one grows. So there is no timer and no knob: an idle log commits
//! one message at once, a busy one commits thousands together. Invariant: durable <= in_flight <= appended.

use crate::base::offset::Position;

/// See the module's page.
#[derive(Debug)]
pub struct GroupCommit {
    durable: Position,
    in_flight: Option<Position>,
    appended: Position,
    failed: bool,
}

impl GroupCommit {
    /// A log whose bytes up to `end` are durable.
    pub fn new(end: Position) -> Self {
        Self {
            durable: end,
            in_flight: None,
            appended: end,
            failed: false,
        }
    }

    /// Everything before this is on the medium that the mode asks for.
    pub fn durable(&self) -> Position {
        self.durable
    }

    /// Everything before this has been appended.
    pub fn appended(&self) -> Position {
        self.appended
    }

    /// Bytes that are appended and not yet durable.
    pub fn pending_bytes(&self) -> u64 {
        self.appended.0 - self.durable.0
    }

    /// Whether a group may be written now.
    pub fn may_write(&self) -> bool {
        !self.failed && self.in_flight.is_none() && self.appended > self.durable
    }

    /// The log has grown to `end`.
    pub fn on_append(&mut self, end: Position) {
        assert!(end >= self.appended, "a log only grows");
        self.appended = end;
    }

    /// A group that ends at `end` is being written.
    pub fn on_write(&mut self, end: Position) {
        assert!(
            self.may_write() && end > self.durable && end <= self.appended,
            "one write at a time, of appended bytes"
        );
        self.in_flight = Some(end);
    }

    /// The group that ends at `end` is durable.
    pub fn on_durable(&mut self, end: Position) {
        assert_eq!(
            self.in_flight.take(),
            Some(end),
            "a completion for a write never issued"
        );
        self.durable = end;
    }

    /// The write or its flush failed: nothing is ever written or durable again.
    pub fn on_failure(&mut self) {
        self.failed = true;
    }

    /// Whether a write has failed.
    pub fn has_failed(&self) -> bool {
        self.failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_seeds_never_overlap_skip_or_forget() {
        for seed in 0..1000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut commit = GroupCommit::new(Position(0));
            let (mut appended, mut durable, mut flying) = (0u64, 0u64, None);
            for _ in 0..600 {
                match random.u8(..3) {
                    0 => {
                        appended += random.u64(1..5000);
                        commit.on_append(Position(appended));
                    }
                    1 if commit.may_write() => {
                        assert!(flying.is_none() && appended > durable);
                        let end = random.u64(durable + 1..=appended);
                        commit.on_write(Position(end));
                        flying = Some(end);
                    }
                    2 => {
                        if let Some(end) = flying.take() {
                            commit.on_durable(Position(end));
                            durable = end;
                        }
                    }
                    _ => assert!(flying.is_some() || appended == durable),
                }
                assert_eq!(commit.durable().0, durable);
                assert_eq!(commit.pending_bytes(), appended - durable);
            }
        }
    }

    #[test]
    fn after_a_failed_write_nothing_is_written_again() {
        let mut commit = GroupCommit::new(Position(0));
        commit.on_append(Position(10));
        commit.on_write(Position(10));
        commit.on_failure();
        commit.on_append(Position(20));
        assert!(!commit.may_write());
        assert_eq!(commit.durable(), Position(0));
    }
}
