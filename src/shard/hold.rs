//! Parked pulls, on the core where the append will happen. Pure: time is passed in.

use std::collections::BTreeSet;

use ahash::AHashMap;

use crate::shard::message::QueueKey;

/// A pull that waits for a message.
#[derive(Debug)]
pub struct Parked<T> {
    pub queue: QueueKey,
    /// Monotonic milliseconds at which it is answered whatever there is.
    pub deadline_ms: u64,
    pub waiter: T,
}

/// All parked pulls of a core.
#[derive(Debug)]
pub struct Hold<T> {
    parked: AHashMap<u64, Parked<T>>,
    by_queue: AHashMap<QueueKey, Vec<u64>>,
    deadlines: BTreeSet<(u64, u64)>,
    next_id: u64,
}

impl<T> Default for Hold<T> {
    fn default() -> Self {
        Self {
            parked: AHashMap::new(),
            by_queue: AHashMap::new(),
            deadlines: BTreeSet::new(),
            next_id: 0,
        }
    }
}

impl<T> Hold<T> {
    /// Parks a pull.
    pub fn park(&mut self, parked: Parked<T>) {
        let id = self.next_id;
        self.next_id += 1;
        self.by_queue.entry(parked.queue).or_default().push(id);
        self.deadlines.insert((parked.deadline_ms, id));
        self.parked.insert(id, parked);
    }

    /// Takes all pulls of a queue, oldest first.
    pub fn take_queue(&mut self, queue: QueueKey) -> Vec<Parked<T>> {
        let ids = self.by_queue.remove(&queue).unwrap_or_default();
        ids.into_iter()
            .filter_map(|id| {
                let parked = self.parked.remove(&id)?;
                self.deadlines.remove(&(parked.deadline_ms, id));
                Some(parked)
            })
            .collect()
    }

    /// Whether anybody waits for this queue.
    pub fn has(&self, queue: QueueKey) -> bool {
        self.by_queue.contains_key(&queue)
    }

    /// Takes the pulls whose time is up.
    pub fn take_expired(&mut self, now_ms: u64) -> Vec<Parked<T>> {
        let mut expired = Vec::new();
        while let Some(&(deadline_ms, id)) = self.deadlines.first() {
            if deadline_ms > now_ms {
                break;
            }
            self.deadlines.pop_first();
            if let Some(parked) = self.parked.remove(&id) {
                if let Some(ids) = self.by_queue.get_mut(&parked.queue) {
                    ids.retain(|&other| other != id);
                    if ids.is_empty() {
                        self.by_queue.remove(&parked.queue);
                    }
                }
                expired.push(parked);
            }
        }
        expired
    }

    /// Takes all.
    pub fn take_all(&mut self) -> Vec<Parked<T>> {
        self.take_expired(u64::MAX)
    }

    /// When the next pull's time is up.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        self.deadlines.first().map(|&(deadline_ms, _)| deadline_ms)
    }

    /// How many pulls are parked.
    pub fn len(&self) -> usize {
        self.parked.len()
    }

    pub fn is_empty(&self) -> bool {
        self.parked.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(queue_id: u32) -> QueueKey {
        QueueKey {
            topic_id: 1,
            queue_id,
        }
    }

    #[test]
    fn a_pull_leaves_once_by_its_queue_or_by_its_deadline() {
        let mut hold = Hold::default();
        for (queue, deadline_ms, waiter) in [(1, 50, 'a'), (2, 40, 'b'), (1, 60, 'c')] {
            hold.park(Parked {
                queue: key(queue),
                deadline_ms,
                waiter,
            });
        }
        assert_eq!(hold.next_deadline_ms(), Some(40));
        let names = |parked: Vec<Parked<char>>| parked.iter().map(|p| p.waiter).collect::<String>();
        assert_eq!(names(hold.take_expired(45)), "b");
        assert!(!hold.has(key(2)));
        assert_eq!(names(hold.take_queue(key(1))), "ac");
        assert_eq!(names(hold.take_queue(key(1))), "");
        assert_eq!(hold.next_deadline_ms(), None);
        assert!(hold.is_empty());
    }
}
