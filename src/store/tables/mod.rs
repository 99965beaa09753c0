//! Tables: folds over one log. Each is changed by [`Tables::apply`] only, in the order of the log, with durable records.

pub mod consume_queue;
pub mod halves;
pub mod metadata;
pub mod offsets;
pub mod open_topics;
pub mod pop;
pub mod timers;

use std::sync::Arc;

use ahash::AHashMap;

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
    /// The same for messages one after the other, in one batch.
    Messages {
        queue: QueueKey,
        first_offset: i64,
        entries: Box<[QueueEntry]>,
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
    /// The log was begun from a seed and has not come to its end yet.
    pub seeding: Option<Seeding>,
}

/// A record's queue offset is not the next one of its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the message with offset {offset} of {queue:?} does not follow the one before it, which ends at {max}"
)]
pub struct Jump {
    pub queue: QueueKey,
    pub offset: i64,
    pub max: i64,
}

/// What a fold from a seed still has to do: see `store/seed.rs`.
#[derive(Debug)]
pub struct Seeding {
    /// The tables but for the queues are those of this position.
    pub until: u64,
    /// Where each queue ends there.
    pub ends: AHashMap<QueueKey, i64>,
}

impl Tables {
    /// Applies the durable record at `position` if it follows what is there. Returns the queue that has a new visible message.
    /// A log that says otherwise must not bring the process down.
    pub fn fold(&mut self, position: u64, effect: Effect) -> Result<Option<QueueKey>, Jump> {
        if let Some(seeding) = &self.seeding
            && position < seeding.until
        {
            return Ok(self.fold_seeded(effect));
        }
        if let Effect::Message {
            queue,
            queue_offset,
            ..
        } = &effect
        {
            let bounds = self.queues.bounds(*queue);
            let begins =
                bounds.max_offset == bounds.min_offset && *queue_offset > bounds.max_offset;
            if *queue_offset != bounds.max_offset && !begins {
                return Err(Jump {
                    queue: *queue,
                    offset: *queue_offset,
                    max: bounds.max_offset,
                });
            }
        }
        Ok(self.apply(effect))
    }

    /// Below the seed's end only the queues have something to learn. The names of the topics are those of its end, so a message
    /// of an older incarnation is either out of step, or it is forgotten when its topic is opened again.
    fn fold_seeded(&mut self, effect: Effect) -> Option<QueueKey> {
        match &effect {
            Effect::Message {
                queue,
                queue_offset,
                ..
            } => {
                let is_known = self
                    .seeding
                    .as_ref()
                    .is_some_and(|seeding| seeding.ends.contains_key(queue));
                let is_next = self.queues.bounds(*queue).max_offset == *queue_offset;
                (is_known && is_next).then(|| self.apply(effect)).flatten()
            }
            Effect::Control(Control::TopicOpened { topic_id, .. }) => {
                self.queues.begin_topic(*topic_id);
                None
            }
            // A fold goes record by record.
            Effect::Messages { .. }
            | Effect::Delayed { .. }
            | Effect::Half { .. }
            | Effect::Control(_) => None,
        }
    }

    /// All records before `position` are folded: the tables are whole if that is the end of the seed. Returns whether they have
    /// become so. The error says that the log is not the one that the seed is from.
    pub fn leave_seed(&mut self, position: u64) -> Result<bool, String> {
        let Some(seeding) = self.seeding.take_if(|seeding| position >= seeding.until) else {
            return Ok(false);
        };
        for (&queue, &end) in &seeding.ends {
            let bounds = self.queues.bounds(queue);
            if bounds.max_offset != end {
                return Err(format!(
                    "{queue:?} ends at {} at position {position}, and at {end} on the master that this copy was begun from: start \
                     this broker with an empty storePathRootDir",
                    bounds.max_offset
                ));
            }
        }
        Ok(true)
    }

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
                    .push(queue, queue_offset, &[entry], store_timestamp);
                Some(queue)
            }
            Effect::Messages {
                queue,
                first_offset,
                entries,
                store_timestamp,
            } => {
                self.queues
                    .push(queue, first_offset, &entries, store_timestamp);
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
                    Control::Filler { .. } => {}
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
        self.write_with(out, |queues, out| queues.write(out));
    }

    /// The same with queues that have nothing yet but begin where these do, of the topics that are open.
    pub(super) fn write_seed(&self, out: &mut Writer) {
        let is_open = |topic_id| self.open_topics.is_open(topic_id);
        self.write_with(out, |queues, out| queues.write_beginnings(out, is_open));
    }

    fn write_with(&self, out: &mut Writer, queues: impl Fn(&ConsumeQueues, &mut Writer)) {
        self.open_topics.write(out);
        self.offsets.write(out);
        self.metadata.write(out);
        queues(&self.queues, out);
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
            seeding: None,
        })
    }
}

/// A group name or a key as the tables hold it.
pub type Name = Arc<str>;
