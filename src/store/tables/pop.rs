//! What POP consumers were given and have not acknowledged: per group and queue, the messages in flight.
//!
//! Below a queue's `next` everything is acknowledged but what is in flight. A queue of which nothing is in flight is not
//! here: its `next` is the group's committed offset. [`PopQueue`] is the fold of one group and queue; the shard keeps a
//! second one of each, which is ahead by the records that are not durable yet. A message in flight costs 28 bytes, with
//! the map's own about 40, and their number per queue is bounded ([`crate::base::limits::POP_IN_FLIGHT_MAX`]).

use std::collections::BTreeMap;
use std::sync::Arc;

use ahash::AHashMap;

use crate::store::snapshot::{Reader, Short, Writer};
use crate::store::types::QueueKey;

/// A message that was given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InFlight {
    /// When it was given out, milliseconds since 1970: part of its receipt.
    pub pop_ms: u64,
    /// From when on it may be given out again, milliseconds since 1970.
    pub visible_ms: u64,
    /// How often it was given out.
    pub deliveries: u32,
}

/// One queue of one group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PopQueue {
    next: i64,
    in_flight: BTreeMap<i64, InFlight>,
}

impl PopQueue {
    /// A queue of which everything before `next` is acknowledged.
    pub fn new(next: i64) -> Self {
        Self {
            next,
            in_flight: BTreeMap::new(),
        }
    }

    /// The first offset that the group has not looked at.
    pub fn next(&self) -> i64 {
        self.next
    }

    /// The lowest offset that is not acknowledged.
    pub fn committed(&self) -> i64 {
        self.in_flight.keys().next().copied().unwrap_or(self.next)
    }

    /// The messages in flight, in the order of the queue.
    pub fn in_flight(&self) -> impl Iterator<Item = (i64, InFlight)> {
        self.in_flight
            .iter()
            .map(|(offset, state)| (*offset, *state))
    }

    /// One message, if it is in flight.
    pub fn get(&self, offset: i64) -> Option<InFlight> {
        self.in_flight.get(&offset).copied()
    }

    /// How many messages are in flight.
    pub fn len(&self) -> usize {
        self.in_flight.len()
    }

    pub fn is_empty(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// When the first message in flight may be given out again.
    pub fn first_visible_ms(&self) -> Option<u64> {
        self.in_flight.values().map(|state| state.visible_ms).min()
    }

    /// `Popped`.
    pub fn popped(&mut self, next: i64, min: i64, messages: &[(i64, InFlight)]) {
        self.next = next;
        if self.committed() < min {
            self.in_flight = self.in_flight.split_off(&min);
        }
        self.in_flight.extend(messages.iter().copied());
    }

    /// `PopAcked`.
    pub fn acked(&mut self, offsets: &[i64]) {
        for offset in offsets {
            self.in_flight.remove(offset);
        }
    }

    /// `PopChanged`.
    pub fn changed(&mut self, offset: i64, state: InFlight) {
        if let Some(known) = self.in_flight.get_mut(&offset) {
            *known = state;
        }
    }
}

/// See the module's page.
#[derive(Default)]
pub struct PopQueues {
    groups: AHashMap<Arc<str>, AHashMap<QueueKey, PopQueue>>,
}

impl PopQueues {
    /// A queue of which something is in flight.
    pub fn get(&self, group: &str, queue: QueueKey) -> Option<&PopQueue> {
        self.groups.get(group)?.get(&queue)
    }

    /// Whether anything of a group is in flight.
    pub fn knows(&self, group: &str) -> bool {
        self.groups.contains_key(group)
    }

    /// All queues of which something is in flight, in no order.
    pub fn all(&self) -> impl Iterator<Item = (&Arc<str>, QueueKey, &PopQueue)> {
        self.groups.iter().flat_map(|(group, queues)| {
            queues
                .iter()
                .map(move |(&queue, popped)| (group, queue, popped))
        })
    }

    /// Messages were given out; the lowest offset that is not acknowledged.
    pub(super) fn popped(
        &mut self,
        group: &Arc<str>,
        queue: QueueKey,
        next: i64,
        min: i64,
        messages: &[(i64, InFlight)],
    ) -> i64 {
        let known = self
            .groups
            .entry(group.clone())
            .or_default()
            .entry(queue)
            .or_default();
        known.popped(next, min, messages);
        let committed = known.committed();
        self.settle(group, queue);
        committed
    }

    /// Messages are done with; the lowest offset that is not acknowledged, if anything was in flight.
    pub(super) fn acked(&mut self, group: &str, queue: QueueKey, offsets: &[i64]) -> Option<i64> {
        let known = self.groups.get_mut(group)?.get_mut(&queue)?;
        known.acked(offsets);
        let committed = known.committed();
        self.settle(group, queue);
        Some(committed)
    }

    pub(super) fn changed(&mut self, group: &str, queue: QueueKey, offset: i64, state: InFlight) {
        if let Some(known) = self.groups.get_mut(group).and_then(|q| q.get_mut(&queue)) {
            known.changed(offset, state);
        }
    }

    /// Somebody set the group's offset: what was in flight does not count any more.
    pub(super) fn forget(&mut self, group: &str, queue: QueueKey) {
        if let Some(queues) = self.groups.get_mut(group) {
            queues.remove(&queue);
            if queues.is_empty() {
                self.groups.remove(group);
            }
        }
    }

    /// Forgets a queue of which nothing is in flight.
    fn settle(&mut self, group: &str, queue: QueueKey) {
        if self.get(group, queue).is_some_and(PopQueue::is_empty) {
            self.forget(group, queue);
        }
    }

    pub(super) fn drop_group(&mut self, group: &str) {
        self.groups.remove(group);
    }

    pub(super) fn drop_topic(&mut self, topic_id: u32) {
        for queues in self.groups.values_mut() {
            queues.retain(|queue, _| queue.topic_id != topic_id);
        }
        self.groups.retain(|_, queues| !queues.is_empty());
    }

    pub(super) fn write(&self, out: &mut Writer) {
        out.u32(self.groups.len() as u32);
        for (group, queues) in &self.groups {
            out.text(group);
            out.u32(queues.len() as u32);
            for (queue, popped) in queues {
                out.u32(queue.topic_id);
                out.u32(queue.queue_id);
                out.u64(popped.next as u64);
                out.u32(popped.len() as u32);
                for (offset, state) in popped.in_flight() {
                    out.u64(offset as u64);
                    out.u64(state.pop_ms);
                    out.u64(state.visible_ms);
                    out.u32(state.deliveries);
                }
            }
        }
    }

    pub(super) fn read(input: &mut Reader<'_>) -> Result<Self, Short> {
        let mut table = Self::default();
        for _ in 0..input.u32()? {
            let group = input.text()?;
            for _ in 0..input.u32()? {
                let queue = QueueKey {
                    topic_id: input.u32()?,
                    queue_id: input.u32()?,
                };
                let mut popped = PopQueue::new(input.u64()? as i64);
                for _ in 0..input.u32()? {
                    let offset = input.u64()? as i64;
                    let state = InFlight {
                        pop_ms: input.u64()?,
                        visible_ms: input.u64()?,
                        deliveries: input.u32()?,
                    };
                    popped.in_flight.insert(offset, state);
                }
                let queues = table.groups.entry(group.clone()).or_default();
                queues.insert(queue, popped);
            }
        }
        Ok(table)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::store::control::Control;
    use crate::store::tables::{Effect, Tables};

    const QUEUE: QueueKey = QueueKey {
        topic_id: 3,
        queue_id: 1,
    };

    fn state(visible_ms: u64) -> InFlight {
        InFlight {
            pop_ms: 5,
            visible_ms,
            deliveries: 1,
        }
    }

    fn popped(next: i64, min: i64, offsets: &[i64]) -> Effect {
        Effect::Control(Control::Popped {
            group: "G".into(),
            queue: QUEUE,
            next,
            min,
            messages: offsets.iter().map(|&at| (at, state(10))).collect(),
        })
    }

    fn acked(offsets: &[i64]) -> Effect {
        Effect::Control(Control::PopAcked {
            group: "G".into(),
            queue: QUEUE,
            offsets: offsets.into(),
        })
    }

    fn committed(tables: &Tables) -> Option<i64> {
        tables.offsets.get("G", QUEUE)
    }

    #[test]
    fn the_committed_offset_is_the_lowest_that_is_not_acknowledged() {
        let mut tables = Tables::default();
        tables.apply(popped(4, 0, &[0, 1, 3]));
        assert_eq!(committed(&tables), Some(0));
        tables.apply(acked(&[1]));
        assert_eq!(committed(&tables), Some(0));
        tables.apply(acked(&[0]));
        assert_eq!(committed(&tables), Some(3));
        tables.apply(acked(&[3]));
        assert_eq!(committed(&tables), Some(4));
        assert!(tables.pop.get("G", QUEUE).is_none(), "settled");
        tables.apply(acked(&[2]));
        assert_eq!(committed(&tables), Some(4));
    }

    #[test]
    fn an_offset_that_somebody_sets_ends_what_is_in_flight() {
        let mut tables = Tables::default();
        tables.apply(popped(4, 0, &[0, 1]));
        tables.apply(Effect::Control(Control::OffsetCommitted {
            group: "G".into(),
            queue: QUEUE,
            offset: 2,
        }));
        assert_eq!(committed(&tables), Some(2));
        assert!(tables.pop.get("G", QUEUE).is_none());
    }

    #[test]
    fn what_retention_took_is_not_in_flight() {
        let mut tables = Tables::default();
        tables.apply(popped(9, 0, &[0, 5, 8]));
        tables.apply(popped(12, 6, &[11]));
        let queue = tables.pop.get("G", QUEUE).unwrap();
        let offsets: Vec<i64> = queue.in_flight().map(|(offset, _)| offset).collect();
        assert_eq!((offsets, queue.next()), (vec![8, 11], 12));
    }

    #[test]
    fn a_snapshot_comes_back_and_dropped_groups_and_topics_do_not() {
        let mut tables = Tables::default();
        tables.apply(popped(9, 0, &[0, 5, 8]));
        tables.apply(Effect::Control(Control::PopChanged {
            group: "G".into(),
            queue: QUEUE,
            offset: 5,
            state: state(77),
        }));
        let mut out = Writer::default();
        tables.write(&mut out);
        let bytes = out.finish();
        let mut back = Tables::read(&mut Reader::new(&bytes)).unwrap();
        assert_eq!(back.pop.get("G", QUEUE), tables.pop.get("G", QUEUE));
        assert_eq!(back.pop.get("G", QUEUE).unwrap().get(5), Some(state(77)));
        back.apply(Effect::Control(Control::TopicDropped { topic_id: 3 }));
        assert_eq!(back.pop.all().count(), 0);
        tables.apply(Effect::Control(Control::OffsetsDropped {
            group: "G".into(),
        }));
        assert_eq!(tables.pop.all().count(), 0);
    }
}
