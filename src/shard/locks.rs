//! Queue locks of orderly consumers (`RebalanceLockManager`). Pure: time is passed in. They are in memory only: after a
//! restart the consumers lock again within 20 s.

use std::sync::Arc;

use ahash::AHashMap;

use crate::shard::message::QueueKey;

/// A lock that is not renewed for this long is free (`rocketmq.broker.rebalance.lockMaxLiveTime`).
const LOCK_LIVES_MS: u64 = 60_000;

#[derive(Debug)]
struct Lock {
    client_id: Arc<str>,
    renewed_ms: u64,
}

/// The locks of the queues of one core.
#[derive(Debug, Default)]
pub struct QueueLocks {
    groups: AHashMap<Arc<str>, AHashMap<QueueKey, Lock>>,
}

impl QueueLocks {
    /// Locks or renews; returns the queues that the client holds now.
    pub fn lock(
        &mut self,
        group: &Arc<str>,
        client_id: &Arc<str>,
        queues: &[QueueKey],
        now_ms: u64,
    ) -> Vec<QueueKey> {
        let locks = self.groups.entry(group.clone()).or_default();
        queues
            .iter()
            .copied()
            .filter(|&queue| {
                let held = locks.get(&queue).is_some_and(|lock| {
                    lock.client_id != *client_id && now_ms < lock.renewed_ms + LOCK_LIVES_MS
                });
                if !held {
                    locks.insert(
                        queue,
                        Lock {
                            client_id: client_id.clone(),
                            renewed_ms: now_ms,
                        },
                    );
                }
                !held
            })
            .collect()
    }

    /// Gives up what the client holds of these.
    pub fn unlock(&mut self, group: &str, client_id: &str, queues: &[QueueKey]) {
        if let Some(locks) = self.groups.get_mut(group) {
            for queue in queues {
                if locks
                    .get(queue)
                    .is_some_and(|lock| &*lock.client_id == client_id)
                {
                    locks.remove(queue);
                }
            }
            if locks.is_empty() {
                self.groups.remove(group);
            }
        }
    }

    /// Whether the group has a lock that has not expired.
    pub fn is_held(&self, group: &str, now_ms: u64) -> bool {
        self.groups.get(group).is_some_and(|locks| {
            locks
                .values()
                .any(|lock| now_ms < lock.renewed_ms + LOCK_LIVES_MS)
        })
    }

    /// Forgets a topic incarnation.
    pub fn drop_topic(&mut self, topic_id: u32) {
        for locks in self.groups.values_mut() {
            locks.retain(|queue, _| queue.topic_id != topic_id);
        }
        self.groups.retain(|_, locks| !locks.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_belongs_to_one_client_until_it_expires_or_is_given_up() {
        let queue = QueueKey {
            topic_id: 1,
            queue_id: 0,
        };
        let (group, a, b) = (Arc::from("g"), Arc::from("a"), Arc::from("b"));
        let mut locks = QueueLocks::default();
        assert_eq!(locks.lock(&group, &a, &[queue], 0), vec![queue]);
        assert_eq!(locks.lock(&group, &b, &[queue], 1), vec![]);
        assert_eq!(locks.lock(&group, &a, &[queue], 50_000), vec![queue]);
        assert_eq!(locks.lock(&group, &b, &[queue], 109_999), vec![]);
        assert!(locks.is_held("g", 109_999));
        assert_eq!(locks.lock(&group, &b, &[queue], 110_000), vec![queue]);
        locks.unlock("g", "a", &[queue]);
        assert_eq!(locks.lock(&group, &a, &[queue], 110_001), vec![]);
        locks.unlock("g", "b", &[queue]);
        assert_eq!(locks.lock(&group, &a, &[queue], 110_001), vec![queue]);
        let other = Arc::from("other");
        assert_eq!(locks.lock(&other, &b, &[queue], 110_001), vec![queue]);
    }
}
