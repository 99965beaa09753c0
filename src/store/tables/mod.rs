//! Tables: folds over one log. Each is changed by [`Tables::apply`] only, in the order of the log, with durable records.

pub mod consume_queue;
pub mod halves;
pub mod metadata;
pub mod offsets;
pub mod open_topics;
pub mod pop;
pub mod timers;

use std::sync::Arc;

use crate::store::control::Control;
use crate::store::snapshot::{Reader, Short, Writer};
use crate::store::types::{QueueEntry, QueueKey};
use consume_queue::ConsumeQueues;
use halves::{Half, Halves};
use metadata::Metadata;
use offsets::ConsumerOffsets;
use open_topics::OpenTopics;
use pop::PopQueues;
use timers::{Timer, TimerKey, Timers};

/// What one durable record does to the tables.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// A message: the next entry of its queue.
    Message {
        queue: QueueKey,
        queue_offset: i64,
        entry: QueueEntry,
        store_timestamp: i64,
    },
    /// A delayed message, in no queue yet.
    Delayed {
        key: TimerKey,
        timer: Timer,
    },
    /// A half message, in no queue yet, or its new place.
    Half {
        origin: u64,
        half: Half,
    },
    Control(Control),
}

/// All tables of one log.
#[derive(Default)]
pub struct Tables {
    pub queues: ConsumeQueues,
    pub offsets: ConsumerOffsets,
    pub open_topics: OpenTopics,
    pub metadata: Metadata,
    pub timers: Timers,
    pub halves: Halves,
    pub pop: PopQueues,
}

impl Tables {
    /// Applies one durable record. Returns the queue that has a new visible message.
    pub fn apply(&mut self, effect: Effect) -> Option<QueueKey> {
        match effect {
            Effect::Message {
                queue,
                queue_offset,
                entry,
                store_timestamp,
            } => {
                self.queues
                    .push(queue, queue_offset, entry, store_timestamp);
                Some(queue)
            }
            Effect::Delayed { key, timer } => {
                self.timers.set(key, timer);
                None
            }
            Effect::Half { origin, half } => {
                self.halves.put(origin, half);
                None
            }
            Effect::Control(control) => {
                match control {
                    Control::TopicOpened { topic_id, name } => {
                        self.open_topics.open(topic_id, name)
                    }
                    Control::TopicDropped { topic_id } => {
                        self.open_topics.drop_topic(topic_id);
                        self.queues.drop_topic(topic_id);
                        self.offsets.drop_topic(topic_id);
                        self.timers.drop_topic(topic_id);
                        self.halves.drop_topic(topic_id);
                        self.pop.drop_topic(topic_id);
                    }
                    Control::OffsetCommitted {
                        group,
                        queue,
                        offset,
                    } => {
                        self.pop.forget(&group, queue);
                        self.offsets.commit(group, queue, offset);
                    }
                    Control::OffsetsDropped { group } => {
                        self.pop.drop_group(&group);
                        self.offsets.drop_group(&group);
                    }
                    Control::Metadata { key, value } => self.metadata.put(key, value),
                    Control::TimersDone { timers } => {
                        for &key in timers.iter() {
                            self.timers.done(key);
                        }
                    }
                    Control::HalvesChecked { halves } => {
                        for &(origin, check_at_ms) in halves.iter() {
                            self.halves.checked(origin, check_at_ms);
                        }
                    }
                    Control::HalvesEnded { halves } => {
                        for &(origin, outcome) in halves.iter() {
                            self.halves.end(origin, outcome);
                        }
                    }
                    // The committed offset of a group that pops is its lowest unacknowledged one.
                    Control::Popped {
                        group,
                        queue,
                        next,
                        min,
                        messages,
                    } => {
                        let committed = self.pop.popped(&group, queue, next, min, &messages);
                        self.offsets.commit(group, queue, committed);
                    }
                    Control::PopAcked {
                        group,
                        queue,
                        offsets,
                    } => {
                        if let Some(committed) = self.pop.acked(&group, queue, &offsets) {
                            self.offsets.commit(group, queue, committed);
                        }
                    }
                    Control::PopChanged {
                        group,
                        queue,
                        offset,
                        state,
                    } => self.pop.changed(&group, queue, offset, state),
                }
                None
            }
        }
    }

    /// Topic incarnation that a message record of this log with this topic name belongs to.
    pub fn topic_id(&self, name: &str) -> Option<u32> {
        self.open_topics.id(name)
    }

    /// All tables as bytes; the order of the sections is the format.
    pub fn write(&self, out: &mut Writer) {
        self.open_topics.write(out);
        self.offsets.write(out);
        self.metadata.write(out);
        self.queues.write(out);
        self.timers.write(out);
        self.halves.write(out);
        self.pop.write(out);
    }

    /// Tables from what [`Tables::write`] wrote.
    pub fn read(input: &mut Reader<'_>) -> Result<Self, Short> {
        Ok(Self {
            open_topics: OpenTopics::read(input)?,
            offsets: ConsumerOffsets::read(input)?,
            metadata: Metadata::read(input)?,
            queues: ConsumeQueues::read(input)?,
            timers: Timers::read(input)?,
            halves: Halves::read(input)?,
            pop: PopQueues::read(input)?,
        })
    }
}

/// A group name or a key as the tables hold it.
pub type Name = Arc<str>;
