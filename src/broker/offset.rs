//! Offsets of queues and of consumer groups: 14, 15, 29, 30, 31, 32, 43.
//!
//! The owner of the queue answers all of them. Source: `ConsumerManageProcessor`, `AdminBrokerProcessor`.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::broker::dispatch::{Answer, Broker, Outcome};
use crate::broker::error::BrokerError;
use crate::shard::message::{
    Boundary, CommittedOffset, QueueBounds, QueueKey, ShardReply, ShardRequest,
};
use crate::wire::remoting::body::ConsumerOffsetSerializeWrapper;
use crate::wire::remoting::command::Command;

/// Where a group starts in a queue in which it committed nothing: at 0 as long as the queue still has its first message,
/// whatever the client prefers; else the client decides (an error to it).
fn start_of_new_group(bounds: QueueBounds, zero_allowed: bool) -> Option<i64> {
    (zero_allowed && bounds.min_offset <= 0 && bounds.max_offset > 0).then_some(0)
}

impl Broker {
    /// Core and key of the queue that a request names, if it is there.
    fn queue_of(&self, command: &Command) -> Result<Option<(usize, QueueKey)>, BrokerError> {
        let name = command.required_text("topic")?;
        let queue_id = command.required_i32("queueId")?;
        Ok(self
            .known_topic(&name)
            .and_then(|topic| self.owner(&topic, queue_id.into())))
    }

    /// Bounds of the queue that a request names; an unknown one is empty.
    async fn bounds(&self, command: &Command) -> Result<QueueBounds, BrokerError> {
        let Some((core, queue)) = self.queue_of(command)? else {
            return Ok(QueueBounds::default());
        };
        match self.ask(core, ShardRequest::Bounds(queue)).await? {
            ShardReply::Bounds(bounds) => Ok(bounds),
            other => Err(BrokerError::unexpected(&other)),
        }
    }

    pub(super) async fn max_offset(self, command: Command) -> Outcome {
        Answer::number("offset", self.bounds(&command).await?.max_offset)
    }

    pub(super) async fn min_offset(self, command: Command) -> Outcome {
        Answer::number("offset", self.bounds(&command).await?.min_offset)
    }

    pub(super) async fn query_offset(self, command: Command) -> Outcome {
        let group: Arc<str> = Arc::from(command.required_text("consumerGroup")?);
        let zero_allowed = command.flag_or("setZeroIfNotFound", true);
        let not_found = || {
            BrokerError::NotFound(
                "the group has committed no offset for this queue; it starts where the consumer wants".into(),
            )
        };
        let Some((core, queue)) = self.queue_of(&command)? else {
            return Err(not_found());
        };
        match self
            .ask(core, ShardRequest::QueryOffset { group, queue })
            .await?
        {
            ShardReply::Offset(Some(offset)) => return Answer::number("offset", offset),
            ShardReply::Offset(None) => {}
            other => return Err(BrokerError::unexpected(&other)),
        }
        match self.ask(core, ShardRequest::Bounds(queue)).await? {
            ShardReply::Bounds(bounds) => {
                let start = start_of_new_group(bounds, zero_allowed).ok_or_else(not_found)?;
                Answer::number("offset", start)
            }
            other => Err(BrokerError::unexpected(&other)),
        }
    }

    pub(super) async fn update_offset(self, command: Command) -> Outcome {
        let group: Arc<str> = Arc::from(command.required_text("consumerGroup")?);
        if self.known_group(&group).is_none() {
            return Err(BrokerError::NoGroup {
                group: group.to_string(),
            });
        }
        let topic = self.topic(&command.required_text("topic")?)?;
        let needed = |name: &str| {
            BrokerError::InvalidParameter(format!(
                "the header lacks '{name}', topic is {}",
                topic.name
            ))
        };
        let queue_id = command.int32("queueId")?.ok_or_else(|| needed("queueId"))?;
        let offset = command
            .int("commitOffset")?
            .ok_or_else(|| needed("commitOffset"))?;
        if offset < 0 {
            return Err(BrokerError::InvalidParameter(format!(
                "commitOffset is {offset}; an offset is not negative"
            )));
        }
        let (core, queue) = self.owner(&topic, queue_id.into()).ok_or_else(|| {
            BrokerError::InvalidParameter(format!(
                "the topic '{}' has no queue {queue_id}",
                topic.name
            ))
        })?;
        self.commit(core, group, queue, offset).await?;
        Answer::done()
    }

    /// Commits an offset of a group on the queue's core.
    pub(super) async fn commit(
        &self,
        core: usize,
        group: Arc<str>,
        queue: QueueKey,
        offset: i64,
    ) -> Result<(), BrokerError> {
        let request = ShardRequest::CommitOffset {
            group,
            queue,
            offset,
        };
        self.ask_done(core, request).await
    }

    pub(super) async fn search_offset(self, command: Command) -> Outcome {
        let timestamp_ms = command.required_int("timestamp")?;
        let upper = command
            .text("boundaryType")
            .is_some_and(|kind| kind.eq_ignore_ascii_case("UPPER"));
        let boundary = if upper {
            Boundary::Upper
        } else {
            Boundary::Lower
        };
        let Some((core, queue)) = self.queue_of(&command)? else {
            return Answer::number("offset", 0);
        };
        let offset = self.search(core, queue, timestamp_ms, boundary).await?;
        Answer::number("offset", offset)
    }

    pub(super) async fn search(
        &self,
        core: usize,
        queue: QueueKey,
        timestamp_ms: i64,
        boundary: Boundary,
    ) -> Result<i64, BrokerError> {
        let request = ShardRequest::SearchByTime {
            queue,
            timestamp_ms,
            boundary,
        };
        match self.ask(core, request).await? {
            ShardReply::Number(offset) => Ok(offset),
            other => Err(BrokerError::unexpected(&other)),
        }
    }

    pub(super) async fn earliest_time(self, command: Command) -> Outcome {
        let Some((core, queue)) = self.queue_of(&command)? else {
            return Answer::number("timestamp", -1);
        };
        match self.ask(core, ShardRequest::EarliestTime(queue)).await? {
            ShardReply::Number(timestamp) => Answer::number("timestamp", timestamp),
            other => Err(BrokerError::unexpected(&other)),
        }
    }

    pub(super) async fn all_offsets(self) -> Outcome {
        let offsets = self.offsets(None, None).await?;
        let meta = self.shard.meta();
        let mut table: BTreeMap<String, BTreeMap<i32, i64>> = BTreeMap::new();
        let same = |a: &CommittedOffset, b: &CommittedOffset| {
            a.queue.topic_id == b.queue.topic_id && a.group == b.group
        };
        for of_topic in offsets.chunk_by(same) {
            let Some(first) = of_topic.first() else {
                continue;
            };
            // The topic may have been deleted while the cores were asked.
            if let Some(topic) = meta.topics_by_id.get(&first.queue.topic_id) {
                let of_queues = of_topic.iter().map(|o| (o.queue.queue_id as i32, o.offset));
                table
                    .entry(format!("{}@{}", topic.name, first.group))
                    .or_default()
                    .extend(of_queues);
            }
        }
        Answer::json(&ConsumerOffsetSerializeWrapper {
            offset_table: table,
            ..ConsumerOffsetSerializeWrapper::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(min_offset: i64, max_offset: i64) -> QueueBounds {
        QueueBounds {
            min_offset,
            max_offset,
            last_store_timestamp: 0,
        }
    }

    #[test]
    fn a_young_queue_with_messages_starts_at_zero() {
        assert_eq!(start_of_new_group(bounds(0, 5), true), Some(0));
    }

    #[test]
    fn an_empty_or_trimmed_queue_or_a_strict_client_gets_no_start() {
        assert_eq!(start_of_new_group(bounds(0, 0), true), None);
        assert_eq!(start_of_new_group(bounds(3, 5), true), None);
        assert_eq!(start_of_new_group(bounds(0, 5), false), None);
    }
}
