//! Half messages whose transaction is open, by origin, and when their producers are asked next.
//!
//! The fold: a half record opens a transaction or moves its half to another place, a `HalvesChecked` record counts a check,
//! a `HalvesEnded` record ends it, a dropped topic takes its halves along. Beside the fold the table knows which ends are
//! appended and not durable yet, so that a transaction ends once, and how the last [`ENDED_MAX`] ended, so that whoever
//! repeats itself gets the same answer; that is forgotten with the process. An open half costs about 100 bytes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::store::snapshot::{Reader, Short, Writer};

/// Ended transactions that are remembered.
const ENDED_MAX: usize = 4096;

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The message is in its queue, or waits for its time.
    Committed,
    RolledBack,
    /// Nobody told how it ended: `transactionCheckMax` checks, or its record cannot be read.
    GivenUp,
}

impl Outcome {
    /// As it stands in the log.
    pub fn code(self) -> u8 {
        match self {
            Self::Committed => 1,
            Self::RolledBack => 2,
            Self::GivenUp => 3,
        }
    }

    /// The outcome of a code; one that this version does not know ends a transaction all the same.
    pub fn of_code(code: u8) -> Self {
        match code {
            1 => Self::Committed,
            2 => Self::RolledBack,
            _ => Self::GivenUp,
        }
    }
}

/// What is known of an open half without reading its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Half {
    /// Position of the half record.
    pub position: u64,
    /// Bytes of the half record.
    pub bytes: u32,
    pub topic_id: u32,
    /// Milliseconds since 1970.
    pub check_at_ms: u64,
    pub checks: u32,
}

/// Where a transaction stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HalfState {
    Open(Half),
    /// Its end is appended, at that position, and not durable yet.
    Ending(Outcome, u64),
    Ended(Outcome),
    /// Never heard of, or ended long ago.
    Unknown,
}

/// See the module's page.
#[derive(Default)]
pub struct Halves {
    open: BTreeMap<u64, Half>,
    /// (time of the next check, origin) of each open half.
    checks: BTreeSet<(u64, u64)>,
    /// Outcome and position of an end that is not durable yet.
    ending: BTreeMap<u64, (Outcome, u64)>,
    ended: VecDeque<(u64, Outcome)>,
    /// Origins of halves whose records could not be read.
    unreadable: BTreeSet<u64>,
}

impl Halves {
    /// A half record has become durable: a new one, or one in another place.
    pub fn put(&mut self, origin: u64, half: Half) {
        if let Some(old) = self.open.insert(origin, half) {
            self.checks.remove(&(old.check_at_ms, origin));
        }
        self.checks.insert((half.check_at_ms, origin));
    }

    /// Its producer was asked; the next time is `check_at_ms`.
    pub fn checked(&mut self, origin: u64, check_at_ms: u64) {
        if let Some(half) = self.open.get_mut(&origin) {
            self.checks.remove(&(half.check_at_ms, origin));
            half.check_at_ms = check_at_ms;
            half.checks = half.checks.saturating_add(1);
            self.checks.insert((check_at_ms, origin));
        }
    }

    /// Its transaction has ended.
    pub fn end(&mut self, origin: u64, outcome: Outcome) {
        self.ending.remove(&origin);
        if !self.forget(origin) {
            return;
        }
        if self.ended.len() == ENDED_MAX {
            self.ended.pop_front();
        }
        self.ended.push_back((origin, outcome));
    }

    fn forget(&mut self, origin: u64) -> bool {
        self.unreadable.remove(&origin);
        match self.open.remove(&origin) {
            Some(half) => self.checks.remove(&(half.check_at_ms, origin)),
            None => false,
        }
    }

    /// The incarnation is gone.
    pub fn drop_topic(&mut self, topic_id: u32) {
        let of_topic = |(_, half): &(&u64, &Half)| half.topic_id == topic_id;
        let gone: Vec<u64> = self.open.iter().filter(of_topic).map(|(o, _)| *o).collect();
        for origin in gone {
            self.ending.remove(&origin);
            self.forget(origin);
        }
    }

    pub fn state(&self, origin: u64) -> HalfState {
        if let Some(&(outcome, position)) = self.ending.get(&origin) {
            return HalfState::Ending(outcome, position);
        }
        if let Some(&half) = self.open.get(&origin) {
            return HalfState::Open(half);
        }
        let mut ended = self.ended.iter().rev();
        match ended.find(|(ended, _)| *ended == origin) {
            Some(&(_, outcome)) => HalfState::Ended(outcome),
            None => HalfState::Unknown,
        }
    }

    /// An open half whose end is not under way.
    pub fn get(&self, origin: u64) -> Option<Half> {
        match self.state(origin) {
            HalfState::Open(half) => Some(half),
            _ => None,
        }
    }

    /// The end of an open transaction was appended at `position`.
    pub fn set_ending(&mut self, origin: u64, outcome: Outcome, position: u64) {
        self.ending.insert(origin, (outcome, position));
    }

    /// When the next producer is to be asked.
    pub fn first_check_ms(&self) -> Option<u64> {
        self.checks.first().map(|&(at, _)| at)
    }

    /// Halves whose producers are to be asked now, the earliest first: at most `count_max`, and `bytes_max` bytes of
    /// records but for the first.
    pub fn due(&self, now_ms: u64, count_max: usize, bytes_max: u64) -> Vec<(u64, Half)> {
        let mut due = Vec::new();
        let mut bytes = 0;
        for &(at, origin) in self.checks.iter().take(count_max) {
            let Some(&half) = self.open.get(&origin) else {
                continue;
            };
            bytes += u64::from(half.bytes);
            if at > now_ms || (bytes > bytes_max && !due.is_empty()) {
                break;
            }
            due.push((origin, half));
        }
        due
    }

    /// Open halves whose records lie before `position`, in the order of the log.
    pub fn below(&self, position: u64) -> Vec<(u64, Half)> {
        let mut below: Vec<(u64, Half)> = self
            .open
            .iter()
            .filter(|(_, half)| half.position < position)
            .map(|(&origin, &half)| (origin, half))
            .collect();
        below.sort_unstable_by_key(|(_, half)| half.position);
        below
    }

    /// Whether any half's record lies before `position`, one whose end is under way too.
    pub fn has_below(&self, position: u64) -> bool {
        self.open.values().any(|half| half.position < position)
    }

    /// A record could not be read. True if it was so before.
    pub fn set_unreadable(&mut self, origin: u64) -> bool {
        !self.unreadable.insert(origin)
    }

    /// All open halves, the oldest first.
    pub fn all(&self) -> impl Iterator<Item = (u64, Half)> {
        self.open.iter().map(|(&origin, &half)| (origin, half))
    }

    /// How many transactions are open.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    pub(super) fn write(&self, out: &mut Writer) {
        out.u64(self.open.len() as u64);
        for (&origin, half) in &self.open {
            out.u64(origin);
            out.u64(half.position);
            out.u32(half.bytes);
            out.u32(half.topic_id);
            out.u64(half.check_at_ms);
            out.u32(half.checks);
        }
    }

    pub(super) fn read(input: &mut Reader<'_>) -> Result<Self, Short> {
        let mut table = Self::default();
        for _ in 0..input.u64()? {
            let origin = input.u64()?;
            let half = Half {
                position: input.u64()?,
                bytes: input.u32()?,
                topic_id: input.u32()?,
                check_at_ms: input.u64()?,
                checks: input.u32()?,
            };
            table.put(origin, half);
        }
        Ok(table)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn half(position: u64, check_at_ms: u64) -> Half {
        Half {
            position,
            bytes: 100,
            topic_id: 1,
            check_at_ms,
            checks: 0,
        }
    }

    fn origins(found: Vec<(u64, Half)>) -> Vec<u64> {
        found.into_iter().map(|(origin, _)| origin).collect()
    }

    fn snapshot(table: &Halves) -> Halves {
        let mut out = Writer::default();
        table.write(&mut out);
        Halves::read(&mut Reader::new(&out.finish())).unwrap()
    }

    #[test]
    fn producers_are_asked_in_the_order_of_time_and_never_early() {
        let mut table = Halves::default();
        for (origin, at) in [(1, 30), (2, 10), (3, 20)] {
            table.put(origin, half(origin, at));
        }
        assert_eq!(table.first_check_ms(), Some(10));
        assert_eq!(origins(table.due(9, 9, 999)), [0; 0]);
        assert_eq!(origins(table.due(20, 9, 999)), [2, 3]);
        assert_eq!(origins(table.due(99, 9, 250)), [2, 3]);
        assert_eq!(origins(table.due(99, 1, 999)), [2]);
        assert_eq!(origins(table.due(99, 9, 1)), [2], "one, whatever its size");
        table.checked(2, 50);
        assert_eq!(origins(table.due(99, 9, 999)), [3, 1, 2]);
        assert_eq!(table.get(2).unwrap().checks, 1);
    }

    #[test]
    fn a_transaction_that_ends_is_known_to_end_and_then_to_have_ended() {
        let mut table = Halves::default();
        table.put(7, half(7, 10));
        assert_eq!(table.state(7), HalfState::Open(half(7, 10)));
        table.set_ending(7, Outcome::Committed, 9);
        assert_eq!(table.state(7), HalfState::Ending(Outcome::Committed, 9));
        assert_eq!((table.get(7), table.len()), (None, 1));
        table.end(7, Outcome::Committed);
        assert_eq!(table.state(7), HalfState::Ended(Outcome::Committed));
        assert_eq!((table.len(), table.first_check_ms()), (0, None));
        table.end(8, Outcome::RolledBack);
        assert_eq!(table.state(8), HalfState::Unknown);
    }

    #[test]
    fn a_carried_half_keeps_its_origin_and_leaves_its_old_place() {
        let mut table = Halves::default();
        table.put(5, half(1, 10));
        table.put(60, half(50, 10));
        assert_eq!(origins(table.below(50)), [5]);
        table.put(5, half(100, 10));
        assert!(!table.has_below(50));
        assert_eq!((table.len(), table.due(10, 9, 999).len()), (2, 2));
        table.set_ending(60, Outcome::RolledBack, 9);
        assert!(table.has_below(51), "its end is not durable yet");
    }

    #[test]
    fn how_the_last_ones_ended_is_remembered_and_no_more() {
        let mut table = Halves::default();
        for origin in 0..=ENDED_MAX as u64 {
            table.put(origin, half(origin, 1));
            table.end(origin, Outcome::RolledBack);
        }
        assert_eq!(table.state(0), HalfState::Unknown);
        assert_eq!(table.state(1), HalfState::Ended(Outcome::RolledBack));
        assert_eq!(table.ended.len(), ENDED_MAX);
    }

    #[test]
    fn a_dropped_topic_takes_its_halves_along() {
        let mut table = Halves::default();
        table.put(1, half(1, 5));
        let other = Half {
            topic_id: 2,
            ..half(2, 6)
        };
        table.put(2, other);
        table.set_ending(1, Outcome::Committed, 9);
        table.drop_topic(1);
        assert_eq!(table.state(1), HalfState::Unknown);
        assert_eq!(table.due(9, 9, 999), [(2, other)]);
        assert_eq!(table.checks.len(), 1);
    }

    proptest! {
        #[test]
        fn a_snapshot_comes_back(halves in proptest::collection::btree_map(any::<u64>(), (any::<u64>(), any::<u32>(), any::<u32>(), any::<u64>(), any::<u32>()), 0..50)) {
            let mut table = Halves::default();
            for (&origin, &(position, bytes, topic_id, check_at_ms, checks)) in &halves {
                table.put(origin, Half { position, bytes, topic_id, check_at_ms, checks });
            }
            if let Some((&first, _)) = halves.first_key_value() {
                table.set_ending(first, Outcome::Committed, 9);
            }
            let back = snapshot(&table);
            prop_assert_eq!(&back.open, &table.open);
            prop_assert_eq!(&back.checks, &table.checks);
            prop_assert!(back.ending.is_empty(), "an end that is not durable is none");
        }
    }
}
