//! Consumer offsets of the queues of one log.

use std::sync::Arc;

use ahash::AHashMap;

use crate::store::snapshot::{Reader, Short, Writer};
use crate::store::types::QueueKey;

/// Group -> queue -> committed offset.
#[derive(Default)]
pub struct ConsumerOffsets {
    groups: AHashMap<Arc<str>, AHashMap<QueueKey, i64>>,
}

impl ConsumerOffsets {
    /// Sets an offset, backwards too: an operator may reset it.
    pub fn commit(&mut self, group: Arc<str>, queue: QueueKey, offset: i64) {
        self.groups.entry(group).or_default().insert(queue, offset);
    }

    /// The committed offset, if there is one.
    pub fn get(&self, group: &str, queue: QueueKey) -> Option<i64> {
        self.groups.get(group)?.get(&queue).copied()
    }

    /// Whether a group has committed an offset of a topic incarnation.
    pub fn knows(&self, group: &str, topic_id: u32) -> bool {
        let queues = self.groups.get(group).map(|queues| queues.keys());
        queues.is_some_and(|mut queues| queues.any(|queue| queue.topic_id == topic_id))
    }

    /// Forgets a group.
    pub fn drop_group(&mut self, group: &str) {
        self.groups.remove(group);
    }

    /// Forgets the queues of a topic incarnation.
    pub fn drop_topic(&mut self, topic_id: u32) {
        for queues in self.groups.values_mut() {
            queues.retain(|queue, _| queue.topic_id != topic_id);
        }
        self.groups.retain(|_, queues| !queues.is_empty());
    }

    /// All offsets, in no order.
    pub fn all(&self) -> impl Iterator<Item = (&Arc<str>, QueueKey, i64)> {
        self.groups.iter().flat_map(|(group, queues)| {
            queues
                .iter()
                .map(move |(&queue, &offset)| (group, queue, offset))
        })
    }

    /// The groups that have committed an offset, in no order.
    pub fn groups(&self) -> impl Iterator<Item = &Arc<str>> {
        self.groups.keys()
    }

    /// The offsets of a group, in no order.
    pub fn of(&self, group: &str) -> impl Iterator<Item = (QueueKey, i64)> {
        let queues = self.groups.get(group).into_iter().flatten();
        queues.map(|(&queue, &offset)| (queue, offset))
    }

    pub(super) fn write(&self, out: &mut Writer) {
        out.u32(self.groups.len() as u32);
        for (group, queues) in &self.groups {
            out.text(group);
            out.u32(queues.len() as u32);
            for (queue, offset) in queues {
                out.u32(queue.topic_id);
                out.u32(queue.queue_id);
                out.u64(*offset as u64);
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
                table.commit(group.clone(), queue, input.u64()? as i64);
            }
        }
        Ok(table)
    }
}
