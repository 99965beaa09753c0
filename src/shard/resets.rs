//! Offsets that an operator set while the group consumed (`resetOffsetTable`, `useServerSideResetOffset`). Pure.
//!
//! Until a member pulls from the new offset, or was told of it, what the members commit is of the old place and does not
//! count. In memory only: the new offset itself is committed, so after a restart the members find it there.

use std::sync::Arc;

use ahash::AHashMap;

use crate::shard::message::QueueKey;

/// Resets of the queues of one core that no member has followed yet.
#[derive(Debug, Default)]
pub struct Resets {
    pending: AHashMap<(Arc<str>, QueueKey), i64>,
}

impl Resets {
    pub fn put(&mut self, group: Arc<str>, queue: QueueKey, offset: i64) {
        self.pending.insert((group, queue), offset);
    }

    /// Whether commits of the group in this queue do not count.
    pub fn is_pending(&self, group: &Arc<str>, queue: QueueKey) -> bool {
        !self.pending.is_empty() && self.pending.contains_key(&(group.clone(), queue))
    }

    /// A member pulls at `asked`: where it has to go instead, if it is not there already. After that it was told.
    pub fn take(&mut self, group: &Arc<str>, queue: QueueKey, asked: i64) -> Option<i64> {
        let offset = self.pending.remove(&(group.clone(), queue))?;
        (offset != asked).then_some(offset)
    }

    pub fn drop_topic(&mut self, topic_id: u32) {
        self.pending
            .retain(|(_, queue), _| queue.topic_id != topic_id);
    }

    pub fn drop_group(&mut self, group: &str) {
        self.pending.retain(|(name, _), _| **name != *group);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_told_once_and_commits_count_again_from_then_on() {
        let group: Arc<str> = Arc::from("g");
        let key = |queue_id| QueueKey {
            topic_id: 7,
            queue_id,
        };
        let mut resets = Resets::default();
        resets.put(group.clone(), key(0), 5);
        resets.put(group.clone(), key(1), 5);
        assert!(resets.is_pending(&group, key(0)));
        assert!(!resets.is_pending(&Arc::from("other"), key(0)));
        assert_eq!(resets.take(&group, key(0), 9), Some(5));
        assert!(!resets.is_pending(&group, key(0)));
        assert_eq!(resets.take(&group, key(0), 9), None);
        // Who is there already need not be told.
        assert_eq!(resets.take(&group, key(1), 5), None);
        assert!(!resets.is_pending(&group, key(1)));
    }

    #[test]
    fn what_is_deleted_has_no_resets() {
        let (one, other): (Arc<str>, Arc<str>) = (Arc::from("a"), Arc::from("b"));
        let key = |topic_id| QueueKey {
            topic_id,
            queue_id: 0,
        };
        let mut resets = Resets::default();
        for group in [&one, &other] {
            resets.put(group.clone(), key(1), 0);
            resets.put(group.clone(), key(2), 0);
        }
        resets.drop_topic(1);
        resets.drop_group("a");
        assert!(!resets.is_pending(&other, key(1)));
        assert!(!resets.is_pending(&one, key(2)));
        assert!(resets.is_pending(&other, key(2)));
    }
}
