//! Messages that retention removed before a consumer group had consumed them.
//!
//! Counted where they go, segment by segment, so that it does not matter whether anybody of the group is there to notice: a
//! member that comes back is only told another offset (OFFSET_ILLEGAL), and goes on behind the gap. What counts is what the group
//! has committed, for groups that pop what they have acknowledged; a client commits every few seconds, so a group that is about
//! to be overtaken may have seen a few of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_lite::future::yield_now;

use crate::io::env::Env;
use crate::store::commit_log::CommitLog;
use crate::store::types::QueueKey;

/// One queue of a group that is behind.
#[derive(Debug)]
struct Unread {
    group: Arc<str>,
    queue: QueueKey,
    /// Nothing of the queue from here on was given to the group.
    next: i64,
    /// Given to POP consumers and not acknowledged, in the order of the queue.
    in_flight: Vec<i64>,
}

impl Unread {
    /// How many of these are gone when the queue begins at `min`.
    fn gone(&self, min: i64) -> u64 {
        let in_flight = self.in_flight.partition_point(|&offset| offset < min);
        (min - self.next).max(0) as u64 + in_flight as u64
    }
}

/// The queues of which groups have not consumed everything.
#[derive(Debug)]
pub struct Unconsumed(Vec<Unread>);

/// Since the log was opened, by group and topic incarnation.
pub type Missed = BTreeMap<(Arc<str>, u32), u64>;

impl<E: Env> CommitLog<E> {
    /// What no group may lose without a word. To be asked before a segment goes. One group at a time: there may be many queues.
    pub async fn unconsumed(&self) -> Unconsumed {
        let groups: Vec<Arc<str>> = self.tables.borrow().offsets.groups().cloned().collect();
        let mut unread = Vec::new();
        for group in groups {
            self.unconsumed_of(&group, &mut unread);
            yield_now().await;
        }
        Unconsumed(unread)
    }

    fn unconsumed_of(&self, group: &Arc<str>, unread: &mut Vec<Unread>) {
        let tables = self.tables.borrow();
        for (queue, committed) in tables.offsets.of(group) {
            let bounds = tables.queues.bounds(queue);
            let popped = tables.pop.get(group, queue);
            let next = popped.map_or(committed, |popped| popped.next());
            let in_flight: Vec<i64> = popped
                .into_iter()
                .flat_map(|popped| popped.in_flight())
                .map(|(offset, _)| offset)
                .filter(|&offset| offset >= bounds.min_offset)
                .collect();
            if next < bounds.max_offset || !in_flight.is_empty() {
                unread.push(Unread {
                    group: group.clone(),
                    queue,
                    next: next.max(bounds.min_offset),
                    in_flight,
                });
            }
        }
    }

    /// Counts what has gone of it, and says so: one warning for each group and topic.
    pub fn count_missed(&self, unconsumed: Unconsumed) {
        let mut now = Missed::new();
        for unread in unconsumed.0 {
            let gone = unread.gone(self.bounds(unread.queue).min_offset);
            if gone > 0 {
                *now.entry((unread.group, unread.queue.topic_id))
                    .or_default() += gone;
            }
        }
        for ((group, topic_id), messages) in now {
            let topic = self.tables.borrow().open_topics.name(topic_id);
            tracing::warn!(
                log = self.options.log,
                %group,
                topic = topic.as_deref().unwrap_or("(deleted)"),
                messages,
                "retention removed messages that a group had not consumed: it goes on behind them"
            );
            let mut missed = self.missed.borrow_mut();
            *missed.entry((group, topic_id)).or_default() += messages;
        }
    }

    /// What was counted of the groups that there are.
    pub fn missed(&self) -> Vec<(Arc<str>, u32, u64)> {
        let tables = self.tables.borrow();
        let mut missed = self.missed.borrow_mut();
        missed.retain(|(group, topic_id), _| tables.offsets.knows(group, *topic_id));
        missed
            .iter()
            .map(|((group, topic_id), messages)| (group.clone(), *topic_id, *messages))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unread(next: i64, in_flight: &[i64]) -> Unread {
        Unread {
            group: Arc::from("G"),
            queue: QueueKey {
                topic_id: 1,
                queue_id: 0,
            },
            next,
            in_flight: in_flight.to_vec(),
        }
    }

    #[test]
    fn what_was_not_given_out_and_what_was_not_acknowledged_is_gone() {
        let plain = unread(10, &[]);
        assert_eq!(
            [9, 10, 11, 30].map(|min| plain.gone(min)),
            [0, 0, 1, 20],
            "from the committed offset to the new begin"
        );
        let popped = unread(10, &[3, 7]);
        assert_eq!([3, 4, 8, 12].map(|min| popped.gone(min)), [0, 1, 2, 4]);
    }
}
