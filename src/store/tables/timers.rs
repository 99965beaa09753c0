//! Delayed messages that are not due yet, by the time at which they are.
//!
//! The fold: a delayed record sets a timer, a `TimersDone` record removes it, a dropped topic takes its timers along.
//! Beside the fold, timers can be taken by whoever moves them on (the shard's timers fire them, retention carries them
//! forward), so that nobody moves one twice; that is forgotten with the process. A pending timer costs 24 bytes, with
//! the map's own about 40.

use std::collections::BTreeMap;

use ahash::AHashMap;

use crate::store::snapshot::{Reader, Short, Writer};

/// A timer: when it is due and where its record lies. The order is the one in which timers fire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimerKey {
    /// Milliseconds since 1970.
    pub due_ms: u64,
    /// Position of the delayed record.
    pub position: u64,
}

/// What else is known of a timer without reading its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timer {
    /// Bytes of the delayed record.
    pub bytes: u32,
    pub topic_id: u32,
}

/// See the module's page.
#[derive(Default)]
pub struct Timers {
    pending: BTreeMap<TimerKey, Timer>,
    /// Being moved on.
    taken: BTreeMap<TimerKey, Timer>,
    /// Their records cannot be read: nobody tries again before the next start.
    unreadable: BTreeMap<TimerKey, Timer>,
    /// How many there are of each topic incarnation.
    counts: AHashMap<u32, u64>,
}

impl Timers {
    /// A delayed record has become durable.
    pub fn set(&mut self, key: TimerKey, timer: Timer) {
        if self.pending.insert(key, timer).is_none() {
            *self.counts.entry(timer.topic_id).or_default() += 1;
        }
    }

    /// Its message is in its queue, or it moved to another place, or it was cancelled.
    pub fn done(&mut self, key: TimerKey) {
        let mut removed = None;
        for map in self.maps() {
            removed = map.remove(&key).or(removed);
        }
        if let Some(timer) = removed
            && let Some(count) = self.counts.get_mut(&timer.topic_id)
        {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&timer.topic_id);
            }
        }
    }

    /// The incarnation is gone.
    pub fn drop_topic(&mut self, topic_id: u32) {
        for map in self.maps() {
            map.retain(|_, timer| timer.topic_id != topic_id);
        }
        self.counts.remove(&topic_id);
    }

    fn maps(&mut self) -> [&mut BTreeMap<TimerKey, Timer>; 3] {
        [&mut self.pending, &mut self.taken, &mut self.unreadable]
    }

    /// When the next timer is due that nobody has taken.
    pub fn first_due_ms(&self) -> Option<u64> {
        self.pending.keys().next().map(|key| key.due_ms)
    }

    /// Takes timers that are due, the earliest first, whose records have `bytes_max` together; the first one whatever
    /// its size.
    pub fn take_due(&mut self, now_ms: u64, bytes_max: u64) -> Vec<(TimerKey, Timer)> {
        let mut due = Vec::new();
        let mut bytes = 0;
        while let Some(first) = self.pending.first_entry() {
            let (key, timer) = (*first.key(), *first.get());
            bytes += u64::from(timer.bytes);
            if key.due_ms > now_ms || (bytes > bytes_max && !due.is_empty()) {
                break;
            }
            first.remove();
            self.taken.insert(key, timer);
            due.push((key, timer));
        }
        due
    }

    /// Takes the timers of a topic that are due at exactly this time. `None` if somebody has taken one of them, besides
    /// those in `own`.
    pub fn take_at(
        &mut self,
        due_ms: u64,
        topic_id: u32,
        own: &[(TimerKey, Timer)],
    ) -> Option<Vec<(TimerKey, Timer)>> {
        let slot = TimerKey {
            due_ms,
            position: 0,
        }..=TimerKey {
            due_ms,
            position: u64::MAX,
        };
        let is_foreign = |(key, timer): (&TimerKey, &Timer)| {
            timer.topic_id == topic_id && own.iter().all(|(known, _)| known != key)
        };
        if self.taken.range(slot.clone()).any(is_foreign) {
            return None;
        }
        let found: Vec<(TimerKey, Timer)> = self
            .pending
            .range(slot)
            .filter(|(_, timer)| timer.topic_id == topic_id)
            .map(|(key, timer)| (*key, *timer))
            .collect();
        for (key, timer) in &found {
            self.pending.remove(key);
            self.taken.insert(*key, *timer);
        }
        Some(found)
    }

    /// Takes all timers whose records lie before `position`, in the order of the log.
    pub fn take_below(&mut self, position: u64) -> Vec<(TimerKey, Timer)> {
        let mut below: Vec<(TimerKey, Timer)> = self
            .pending
            .iter()
            .filter(|(key, _)| key.position < position)
            .map(|(key, timer)| (*key, *timer))
            .collect();
        below.sort_unstable_by_key(|(key, _)| key.position);
        for (key, timer) in &below {
            self.pending.remove(key);
            self.taken.insert(*key, *timer);
        }
        below
    }

    /// Who took these did not move them on.
    pub fn give_back(&mut self, keys: impl IntoIterator<Item = TimerKey>) {
        for key in keys {
            if let Some(timer) = self.taken.remove(&key) {
                self.pending.insert(key, timer);
            }
        }
    }

    /// The record of a taken timer cannot be read.
    pub fn set_unreadable(&mut self, key: TimerKey) {
        if let Some(timer) = self.taken.remove(&key) {
            self.unreadable.insert(key, timer);
        }
    }

    /// Unreadable timers whose records lie before `position`.
    pub fn unreadable_below(&self, position: u64) -> Vec<TimerKey> {
        let keys = self.unreadable.keys();
        keys.filter(|key| key.position < position)
            .copied()
            .collect()
    }

    /// Whether any timer's record lies before `position`.
    pub fn has_below(&self, position: u64) -> bool {
        self.all().any(|(key, _)| key.position < position)
    }

    /// How many timers each topic incarnation has, taken ones too.
    pub fn counts(&self) -> impl Iterator<Item = (u32, u64)> {
        self.counts
            .iter()
            .map(|(&topic_id, &count)| (topic_id, count))
    }

    /// How many timers there are, taken ones too.
    pub fn len(&self) -> usize {
        self.pending.len() + self.taken.len() + self.unreadable.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All timers, taken ones too.
    pub fn all(&self) -> impl Iterator<Item = (&TimerKey, &Timer)> {
        let all = self.pending.iter().chain(&self.taken);
        all.chain(&self.unreadable)
    }

    pub(super) fn write(&self, out: &mut Writer) {
        out.u64(self.len() as u64);
        for (key, timer) in self.all() {
            out.u64(key.due_ms);
            out.u64(key.position);
            out.u32(timer.bytes);
            out.u32(timer.topic_id);
        }
    }

    pub(super) fn read(input: &mut Reader<'_>) -> Result<Self, Short> {
        let mut table = Self::default();
        for _ in 0..input.u64()? {
            let key = TimerKey {
                due_ms: input.u64()?,
                position: input.u64()?,
            };
            let timer = Timer {
                bytes: input.u32()?,
                topic_id: input.u32()?,
            };
            table.set(key, timer);
        }
        Ok(table)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(due_ms: u64, position: u64) -> TimerKey {
        TimerKey { due_ms, position }
    }

    fn timer(bytes: u32) -> Timer {
        Timer { bytes, topic_id: 1 }
    }

    fn snapshot(table: &Timers) -> Timers {
        let mut out = Writer::default();
        table.write(&mut out);
        Timers::read(&mut Reader::new(&out.finish())).unwrap()
    }

    #[test]
    fn timers_are_taken_in_the_order_of_time_then_of_the_log_and_never_early() {
        let mut table = Timers::default();
        for at in [key(30, 1), key(10, 7), key(10, 3), key(20, 5)] {
            table.set(at, timer(100));
        }
        assert_eq!(table.first_due_ms(), Some(10));
        let keys = |taken: Vec<(TimerKey, Timer)>| -> Vec<TimerKey> {
            taken.into_iter().map(|(key, _)| key).collect()
        };
        assert_eq!(keys(table.take_due(9, 1_000)), []);
        assert_eq!(keys(table.take_due(20, 200)), [key(10, 3), key(10, 7)]);
        assert_eq!(keys(table.take_due(29, 1)), [key(20, 5)]);
        assert_eq!(keys(table.take_due(29, 1_000)), []);
        assert_eq!(table.len(), 4, "taken is not done");
    }

    #[test]
    fn what_is_taken_by_one_is_not_taken_by_another_until_it_is_given_back() {
        let mut table = Timers::default();
        table.set(key(10, 1), timer(1));
        table.set(key(10, 50), timer(1));
        assert_eq!(table.take_below(50).len(), 1);
        assert_eq!(table.take_due(99, 99).len(), 1);
        assert!(table.has_below(50), "it is only taken");
        table.give_back([key(10, 1)]);
        assert_eq!(table.take_due(99, 99), [(key(10, 1), timer(1))]);
        table.done(key(10, 1));
        table.give_back([key(10, 1)]);
        assert!(!table.has_below(50) && table.len() == 1);
    }

    #[test]
    fn a_snapshot_has_taken_and_unreadable_timers_too_as_pending_ones() {
        let mut table = Timers::default();
        for position in [1, 2, 3] {
            table.set(key(position, position), timer(5));
        }
        table.take_due(2, 99);
        table.set_unreadable(key(1, 1));
        assert_eq!(table.unreadable_below(9), [key(1, 1)]);
        assert_eq!(snapshot(&table).take_due(9, 99).len(), 3);
    }

    #[test]
    fn the_timers_of_one_time_and_topic_are_taken_together_or_not_at_all() {
        let mut table = Timers::default();
        for position in [1, 2, 3] {
            table.set(key(10, position), timer(5));
        }
        let other = Timer {
            bytes: 5,
            topic_id: 2,
        };
        table.set(key(10, 4), other);
        table.set(key(11, 5), timer(5));
        let own = table.take_due(10, 5);
        assert_eq!(own, [(key(10, 1), timer(5))]);
        assert_eq!(table.take_at(10, 1, &[]), None, "another has one");
        let found = table.take_at(10, 1, &own).unwrap();
        assert_eq!(found, [(key(10, 2), timer(5)), (key(10, 3), timer(5))]);
        assert_eq!(table.take_at(10, 1, &own), None);
        assert_eq!(table.take_at(10, 2, &[]).unwrap(), [(key(10, 4), other)]);
    }

    #[test]
    fn each_topic_knows_how_many_timers_it_has() {
        let mut table = Timers::default();
        table.set(key(1, 1), timer(5));
        table.set(key(2, 2), timer(5));
        table.set(key(2, 2), timer(5));
        let own = table.take_due(1, 99);
        assert_eq!(
            table.counts().collect::<Vec<_>>(),
            [(1, 2)],
            "taken ones too"
        );
        table.done(own[0].0);
        table.done(own[0].0);
        assert_eq!(snapshot(&table).counts().collect::<Vec<_>>(), [(1, 1)]);
        table.drop_topic(1);
        table.done(key(2, 2));
        assert_eq!(table.counts().count(), 0);
    }

    #[test]
    fn a_dropped_topic_takes_its_timers_along() {
        let mut table = Timers::default();
        table.set(key(1, 1), timer(5));
        table.set(key(2, 2), timer(5));
        let other = Timer {
            bytes: 5,
            topic_id: 2,
        };
        table.set(key(3, 3), other);
        table.take_due(1, 99);
        table.drop_topic(1);
        table.give_back([key(1, 1)]);
        assert_eq!(table.take_due(9, 99), [(key(3, 3), other)]);
    }

    proptest! {
        #[test]
        fn a_snapshot_comes_back(timers in proptest::collection::btree_map((any::<u64>(), any::<u64>()), (any::<u32>(), any::<u32>()), 0..50)) {
            let mut table = Timers::default();
            for (&(due_ms, position), &(bytes, topic_id)) in &timers {
                table.set(key(due_ms, position), Timer { bytes, topic_id });
            }
            let back = snapshot(&table);
            prop_assert!(back.all().eq(table.all()));
        }
    }
}
