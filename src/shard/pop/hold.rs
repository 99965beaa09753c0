//! POP requests that wait for messages, on the core where these will appear. Pure: time is passed in.
//!
//! Who waits for several queues is woken once. A queue in which a hidden message will become visible has an alarm.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use ahash::AHashMap;

use crate::shard::message::QueueKey;

/// Somebody who waits.
#[derive(Debug)]
pub struct Waiter<T> {
    pub id: u64,
    pub group: Arc<str>,
    pub queues: Vec<QueueKey>,
    /// Monotonic milliseconds at which the wait ends.
    pub deadline_ms: u64,
    pub order: bool,
    pub reply_to: T,
}

/// Those of one group that wait for a queue, by id. Few groups do: a list of lines is searched as fast as a map.
type Line = (Arc<str>, VecDeque<u64>);

/// All that wait on a core.
#[derive(Debug)]
pub struct PopHold<T> {
    waiters: AHashMap<u64, Waiter<T>>,
    by_queue: AHashMap<QueueKey, Vec<Line>>,
    deadlines: BTreeSet<(u64, u64)>,
    alarms: BTreeSet<(u64, QueueKey, Arc<str>)>,
    alarm_of: AHashMap<(QueueKey, Arc<str>), u64>,
}

impl<T> Default for PopHold<T> {
    fn default() -> Self {
        Self {
            waiters: AHashMap::new(),
            by_queue: AHashMap::new(),
            deadlines: BTreeSet::new(),
            alarms: BTreeSet::new(),
            alarm_of: AHashMap::new(),
        }
    }
}

impl<T> PopHold<T> {
    pub fn park(&mut self, waiter: Waiter<T>) {
        for queue in &waiter.queues {
            let groups = self.by_queue.entry(*queue).or_default();
            match groups.iter_mut().find(|(name, _)| *name == waiter.group) {
                Some((_, ids)) => ids.push_back(waiter.id),
                None => groups.push((waiter.group.clone(), VecDeque::from([waiter.id]))),
            }
        }
        self.deadlines.insert((waiter.deadline_ms, waiter.id));
        self.waiters.insert(waiter.id, waiter);
    }

    /// Takes one that waits, from wherever it waits.
    pub fn take(&mut self, id: u64) -> Option<Waiter<T>> {
        let waiter = self.waiters.remove(&id)?;
        self.deadlines.remove(&(waiter.deadline_ms, id));
        for queue in &waiter.queues {
            if let Some(groups) = self.by_queue.get_mut(queue) {
                for (_, ids) in groups.iter_mut().filter(|(name, _)| *name == waiter.group) {
                    ids.retain(|&other| other != id);
                }
                groups.retain(|(_, ids)| !ids.is_empty());
                if groups.is_empty() {
                    self.by_queue.remove(queue);
                }
            }
            if self.count(&waiter.group, *queue) == 0 {
                self.clear_alarm(*queue, &waiter.group);
            }
        }
        Some(waiter)
    }

    /// The one that has waited for longest for a queue of a group.
    pub fn first(&self, group: &str, queue: QueueKey) -> Option<&Waiter<T>> {
        let (_, ids) = self
            .by_queue
            .get(&queue)?
            .iter()
            .find(|(name, _)| **name == *group)?;
        self.waiters.get(ids.front()?)
    }

    /// The groups that wait for a queue.
    pub fn groups(&self, queue: QueueKey) -> Vec<Arc<str>> {
        let groups = self.by_queue.get(&queue).map_or(&[][..], Vec::as_slice);
        groups.iter().map(|(name, _)| name.clone()).collect()
    }

    /// How many wait for a queue of a group.
    pub fn count(&self, group: &str, queue: QueueKey) -> usize {
        let groups = self.by_queue.get(&queue).map_or(&[][..], Vec::as_slice);
        let own = groups.iter().find(|(name, _)| **name == *group);
        own.map_or(0, |(_, ids)| ids.len())
    }

    pub fn len(&self) -> usize {
        self.waiters.len()
    }

    pub fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }

    /// Takes those whose time is up.
    pub fn take_expired(&mut self, now_ms: u64) -> Vec<Waiter<T>> {
        let mut expired = Vec::new();
        while let Some(&(deadline_ms, id)) = self.deadlines.first()
            && deadline_ms <= now_ms
        {
            match self.take(id) {
                Some(waiter) => expired.push(waiter),
                None => {
                    self.deadlines.pop_first();
                }
            }
        }
        expired
    }

    /// Something becomes visible in a queue at a time, milliseconds since 1970. Takes the place of the queue's alarm.
    pub fn set_alarm(&mut self, queue: QueueKey, group: &Arc<str>, at_ms: u64) {
        self.clear_alarm(queue, group);
        self.alarms.insert((at_ms, queue, group.clone()));
        self.alarm_of.insert((queue, group.clone()), at_ms);
    }

    fn clear_alarm(&mut self, queue: QueueKey, group: &Arc<str>) {
        if let Some(at_ms) = self.alarm_of.remove(&(queue, group.clone())) {
            self.alarms.remove(&(at_ms, queue, group.clone()));
        }
    }

    /// Takes the alarms that are due.
    pub fn take_alarms(&mut self, now_ms: u64) -> Vec<(QueueKey, Arc<str>)> {
        let mut due = Vec::new();
        while let Some((at_ms, ..)) = self.alarms.first()
            && *at_ms <= now_ms
            && let Some((_, queue, group)) = self.alarms.pop_first()
        {
            self.alarm_of.remove(&(queue, group.clone()));
            due.push((queue, group));
        }
        due
    }

    pub fn next_deadline_ms(&self) -> Option<u64> {
        self.deadlines.first().map(|&(deadline_ms, _)| deadline_ms)
    }

    pub fn next_alarm_ms(&self) -> Option<u64> {
        self.alarms.first().map(|&(at_ms, ..)| at_ms)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn key(queue_id: u32) -> QueueKey {
        QueueKey {
            topic_id: 1,
            queue_id,
        }
    }

    fn waiter(id: u64, group: &str, queues: &[u32], deadline_ms: u64) -> Waiter<()> {
        Waiter {
            id,
            group: group.into(),
            queues: queues.iter().map(|&queue| key(queue)).collect(),
            deadline_ms,
            order: false,
            reply_to: (),
        }
    }

    #[test]
    fn who_waits_for_several_queues_leaves_all_of_them_at_once() {
        let mut hold = PopHold::default();
        hold.park(waiter(1, "G", &[0, 1], 50));
        hold.park(waiter(2, "G", &[1], 40));
        hold.park(waiter(3, "H", &[1], 60));
        assert_eq!(hold.groups(key(1)), ["G".into(), "H".into()]);
        assert_eq!(hold.first("G", key(1)).unwrap().id, 1);
        assert_eq!(hold.take(1).unwrap().id, 1);
        assert!(hold.take(1).is_none());
        assert_eq!(hold.count("G", key(0)), 0);
        assert_eq!(hold.first("G", key(1)).unwrap().id, 2);
        assert_eq!(hold.next_deadline_ms(), Some(40));
        let ids: Vec<u64> = hold.take_expired(60).iter().map(|w| w.id).collect();
        assert_eq!(ids, [2, 3]);
        assert!(hold.is_empty());
        assert!(hold.by_queue.is_empty() && hold.next_deadline_ms().is_none());
    }

    #[test]
    fn an_alarm_rings_once_and_goes_with_the_last_who_waits() {
        let mut hold = PopHold::default();
        hold.park(waiter(1, "G", &[0, 1], 50));
        let group = Arc::from("G");
        hold.set_alarm(key(0), &group, 9);
        hold.set_alarm(key(0), &group, 7);
        hold.set_alarm(key(1), &group, 8);
        assert_eq!(hold.next_alarm_ms(), Some(7));
        assert_eq!(hold.take_alarms(7), [(key(0), group.clone())]);
        assert_eq!(hold.take_alarms(7), []);
        hold.take(1);
        assert_eq!(hold.next_alarm_ms(), None);
        assert!(hold.alarm_of.is_empty());
    }
}
