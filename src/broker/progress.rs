//! How far groups have consumed, and setting it: 208, 317, 303, 308, 222, 314; what waits for its time: 61; and a look into
//! a queue: 321.
//!
//! A reset (222) commits the new offsets on the queues' owners and tells the connected members (220) to start there. Until
//! a member does, what the group commits in these queues does not count, and a member that does not listen hears of the
//! new offset with its next pull: both ways of `useServerSideResetOffset` together, so that it works with every client.
//!
//! Source: `AdminBrokerProcessor`, `Broker2Client.resetOffset`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ahash::{AHashMap, AHashSet};
use futures_lite::future::yield_now;

use crate::base::civil::time_text;
use crate::base::limits::PULL_BYTES_MAX;
use crate::base::names;
use crate::broker::dispatch::{Answer, Broker, Outcome};
use crate::broker::error::BrokerError;
use crate::broker::topics;
use crate::shard::ShardHandle;
use crate::shard::message::{
    Boundary, CommittedOffset, GroupCommand, MessageFilter, Pull, QueueBounds, QueueKey,
    ShardReply, ShardRequest,
};
use crate::shard::meta::{Member, Topic};
use crate::wire::properties::tags_code_of;
use crate::wire::record::{RecordView, records};
use crate::wire::remoting::body::{
    ConsumeQueueData, ConsumeStats, ConsumeStatsList, MessageQueue, MessageQueueForC,
    OffsetWrapper, QueryConsumeQueueResponseBody, QueryConsumeTimeSpanBody,
    QueryCorrectionOffsetBody, QueueTimeSpan, ResetOffsetBody, ResetOffsetBodyForC, TimerMetrics,
};
use crate::wire::remoting::code::request;
use crate::wire::remoting::command::{Command, Encoding, Outgoing};
use crate::wire::remoting::json;

/// Most entries of a queue that one request shows.
const SHOWN_MAX: i32 = 1_024;
/// Offsets that are copied with one wait for the disk.
const COMMITS_AT_ONCE: usize = 1_024;
/// Ordinal of `LanguageCode.CPP`: its body of a reset is a list.
const LANGUAGE_CPP: u8 = 1;

/// Messages that a group has not consumed yet, over all queues.
fn total_diff(stats: &ConsumeStats) -> i64 {
    stats
        .offset_table
        .values()
        .map(|offset| offset.broker_offset - offset.consumer_offset)
        .sum()
}

/// Messages that POP consumers were given and have not acknowledged, over all queues.
fn total_in_flight(stats: &ConsumeStats) -> i64 {
    stats
        .offset_table
        .values()
        .map(|offset| offset.pull_offset - offset.consumer_offset)
        .sum()
}

/// Where a reset puts a queue that was asked for by its own offset.
fn checked_reset(bounds: QueueBounds, offset: i64) -> Result<i64, BrokerError> {
    if (bounds.min_offset..=bounds.max_offset + 1).contains(&offset) {
        return Ok(offset);
    }
    Err(BrokerError::System(format!(
        "the offset {offset} is not in the queue, which has {} to {}",
        bounds.min_offset, bounds.max_offset
    )))
}

impl Broker {
    /// 208.
    pub(super) async fn consume_stats(self, command: Command) -> Outcome {
        let group = command.required_text("consumerGroup")?.into_owned();
        let offsets = self.offsets(Some(&group), None).await?;
        let by_queue = by_queue(&offsets);
        let mut topics: BTreeSet<String> = BTreeSet::new();
        if let Some(topic) = command.text("topic").filter(|t| !t.trim().is_empty()) {
            topics.insert(topic.into_owned());
        } else if let Some(list) = command.text("topicList").filter(|t| !t.trim().is_empty()) {
            topics.extend(list.split(',').map(|topic| topic.trim().to_owned()));
        } else {
            topics = self.topic_names(&offsets);
        }
        let mut all = ConsumeStats {
            consume_tps: 0.0,
            offset_table: BTreeMap::new(),
        };
        for topic in topics {
            let stats = self.stats_of_topic(&topic, &by_queue).await?;
            all.offset_table.extend(stats);
            yield_now().await;
        }
        Answer::json(&all)
    }

    /// 317: every group that has offsets.
    pub(super) async fn all_consume_stats(self, _command: Command) -> Outcome {
        let mut by_group: BTreeMap<Arc<str>, Vec<CommittedOffset>> = BTreeMap::new();
        for offset in self.offsets(None, None).await? {
            by_group
                .entry(offset.group.clone())
                .or_default()
                .push(offset);
        }
        let mut list = ConsumeStatsList {
            broker_addr: self.options.store_host.to_string(),
            consume_stats_list: Vec::new(),
            total_diff: 0,
            total_inflight_diff: 0,
        };
        for (group, offsets) in by_group {
            let mut of_group = Vec::new();
            let by_queue = by_queue(&offsets);
            for topic in self.topic_names(&offsets) {
                let stats = ConsumeStats {
                    consume_tps: 0.0,
                    offset_table: self.stats_of_topic(&topic, &by_queue).await?,
                };
                list.total_diff += total_diff(&stats);
                list.total_inflight_diff += total_in_flight(&stats);
                of_group.push(stats);
                yield_now().await;
            }
            list.consume_stats_list
                .push(BTreeMap::from([(group.to_string(), of_group)]));
        }
        Answer::json(&list)
    }

    /// Names of the topics that have some of these offsets.
    fn topic_names(&self, offsets: &[CommittedOffset]) -> BTreeSet<String> {
        let meta = self.shard.meta();
        let ids: AHashSet<u32> = offsets.iter().map(|o| o.queue.topic_id).collect();
        ids.iter()
            .filter_map(|id| meta.topics_by_id.get(id))
            .map(|topic| topic.name.to_string())
            .collect()
    }

    async fn stats_of_topic(
        &self,
        name: &str,
        offsets: &AHashMap<QueueKey, &CommittedOffset>,
    ) -> Result<BTreeMap<MessageQueue, OffsetWrapper>, BrokerError> {
        let mut table = BTreeMap::new();
        let Some(topic) = self.known_topic(name) else {
            return Ok(table);
        };
        let queues = topic.config.read_queue_nums;
        let bounds = self.bounds_of(&topic, queues).await?;
        for (queue_id, bounds) in (0..queues).zip(bounds) {
            let key = ShardHandle::key(&topic, queue_id);
            let committed = offsets.get(&key);
            let consumer_offset = committed.map_or(0, |offset| offset.offset);
            let last_timestamp = if consumer_offset > bounds.min_offset {
                self.store_time(&topic, queue_id, consumer_offset - 1).await
            } else {
                0
            };
            let wrapper = OffsetWrapper {
                broker_offset: bounds.max_offset,
                consumer_offset,
                last_timestamp,
                pull_offset: committed.map_or(0, |offset| offset.taken),
            };
            table.insert(self.message_queue(&topic.name, queue_id), wrapper);
        }
        Ok(table)
    }

    /// Store time of the message at an offset, 0 if it cannot be told.
    async fn store_time(&self, topic: &Topic, queue_id: u32, offset: i64) -> i64 {
        let Some((core, queue)) = self.owner(topic, queue_id.into()) else {
            return 0;
        };
        let pull = Pull {
            queue,
            offset,
            messages_max: 1,
            bytes_max: 1,
            filter: MessageFilter::All,
            suspend_ms: 0,
            commit: None,
        };
        match self.ask(core, ShardRequest::Pull(Box::new(pull))).await {
            Ok(ShardReply::Pulled(pulled)) if pulled.message_count > 0 => {
                let record = pulled.records.into_bytes();
                RecordView::parse(&record).map_or(0, |record| record.store_timestamp())
            }
            _ => 0,
        }
    }

    /// 321: entries of a queue, shown from the records that they point to.
    pub(super) async fn consume_queue(self, command: Command) -> Outcome {
        let topic = self.topic(&command.required_text("topic")?)?;
        let queue_id = command.required_i32("queueId")?;
        let first = command.required_int("index")?;
        let count = command.required_i32("count")?.clamp(1, SHOWN_MAX);
        let (core, queue) = self
            .owner(&topic, queue_id.into())
            .ok_or_else(|| topics::no_queue(&topic.name, queue_id.max(0) as u32))?;
        let bounds = match self.ask(core, ShardRequest::Bounds(queue)).await? {
            ShardReply::Bounds(bounds) => bounds,
            other => return Err(BrokerError::unexpected(&other)),
        };
        let mut shown = QueryConsumeQueueResponseBody {
            min_queue_index: bounds.min_offset,
            max_queue_index: bounds.max_offset,
            ..QueryConsumeQueueResponseBody::default()
        };
        if let Some(group) = command.text("consumerGroup").filter(|g| !g.is_empty()) {
            let meta = self.shard.meta();
            shown.subscription_data = meta
                .consumers
                .get(group.as_ref())
                .and_then(|online| online.subscriptions.get(&*topic.name))
                .cloned();
        }
        let filter = shown
            .subscription_data
            .as_ref()
            .and_then(|data| self.filters.of_subscription(data).ok())
            .unwrap_or(MessageFilter::All);
        let mut at = first.max(bounds.min_offset);
        while shown.queue_data.len() < count as usize && at < bounds.max_offset {
            let pull = Pull {
                queue,
                offset: at,
                messages_max: count as u32 - shown.queue_data.len() as u32,
                bytes_max: PULL_BYTES_MAX as u32,
                filter: MessageFilter::All,
                suspend_ms: 0,
                commit: None,
            };
            let pulled = match self.ask(core, ShardRequest::Pull(Box::new(pull))).await? {
                ShardReply::Pulled(pulled) if pulled.message_count > 0 => pulled,
                // Retention took what was there a moment ago.
                ShardReply::Pulled(_) => break,
                other => return Err(BrokerError::unexpected(&other)),
            };
            at = pulled.next_offset;
            for record in records(&pulled.records.into_bytes()) {
                let record = record
                    .map_err(|error| BrokerError::System(format!("the stored message: {error}")))?;
                let tags_code = tags_code_of(record.properties());
                shown.queue_data.push(ConsumeQueueData {
                    eval: filter.matches_entry(tags_code)
                        && filter.matches_properties(record.properties()),
                    physic_offset: record.physical_offset(),
                    physic_size: record.total_bytes() as i32,
                    tags_code,
                    ..ConsumeQueueData::default()
                });
            }
        }
        Answer::json(&shown)
    }

    /// 61: delayed messages that wait, by topic.
    pub(super) async fn timer_metrics(self) -> Outcome {
        let mut metrics = TimerMetrics::default();
        for core in 0..self.shard.count() {
            let figures = match self.ask(core, ShardRequest::Figures).await? {
                ShardReply::Figures(figures) => figures,
                other => return Err(BrokerError::unexpected(&other)),
            };
            let meta = self.shard.meta();
            for (topic_id, count) in figures.logs.iter().flat_map(|log| &log.timing) {
                let Some(topic) = meta.topics_by_id.get(topic_id) else {
                    continue;
                };
                let metric = metrics.timing_count.entry(topic.name.to_string());
                let metric = metric.or_default();
                metric.count += count;
                metric.time_stamp = self.shard.now_ms() as i64;
            }
        }
        Answer::json(&metrics)
    }

    /// 303: the times between which a group's messages lie, queue by queue.
    pub(super) async fn consume_time_span(self, command: Command) -> Outcome {
        let topic = self.topic(&command.required_text("topic")?)?;
        let group = command.required_text("group")?.into_owned();
        let offsets = self.offsets(Some(&group), Some(&topic)).await?;
        let queues = topic.config.read_queue_nums;
        let now_ms = self.shard.now_ms() as i64;
        let mut spans = Vec::with_capacity(queues as usize);
        for (queue_id, bounds) in (0..queues).zip(self.bounds_of(&topic, queues).await?) {
            let key = ShardHandle::key(&topic, queue_id);
            let committed = offsets.iter().find(|offset| offset.queue == key);
            let offset = committed.map_or(bounds.min_offset, |offset| offset.offset);
            let mut span = QueueTimeSpan {
                message_queue: self.message_queue(&topic.name, queue_id),
                min_time_stamp: -1,
                max_time_stamp: -1,
                consume_time_stamp: -1,
                ..QueueTimeSpan::default()
            };
            if bounds.max_offset > bounds.min_offset {
                span.min_time_stamp = self.store_time(&topic, queue_id, bounds.min_offset).await;
                span.max_time_stamp = bounds.last_store_timestamp;
                span.consume_time_stamp = if offset > bounds.min_offset {
                    self.store_time(&topic, queue_id, offset - 1).await
                } else {
                    span.min_time_stamp
                };
                if offset < bounds.max_offset {
                    // What retention has removed waits no longer.
                    let next = offset.max(bounds.min_offset);
                    let since = self.store_time(&topic, queue_id, next).await;
                    if since > 0 {
                        span.delay_time = now_ms.saturating_sub(since).max(0);
                    }
                }
            }
            let text = |ms: i64| Some(time_text(u64::try_from(ms).unwrap_or(0)));
            span.min_time_stamp_str = text(span.min_time_stamp);
            span.max_time_stamp_str = text(span.max_time_stamp);
            span.consume_time_stamp_str = text(span.consume_time_stamp);
            spans.push(span);
        }
        Answer::json(&QueryConsumeTimeSpanBody {
            consume_time_span_set: spans,
        })
    }

    /// 222.
    pub(super) async fn reset_offset(self, command: Command) -> Outcome {
        let topic = self.topic(&command.required_text("topic")?)?;
        let group: Arc<str> = Arc::from(command.required_text("group")?);
        if self.known_group(&group).is_none() {
            return Err(BrokerError::NoGroup {
                group: group.to_string(),
            });
        }
        let timestamp_ms = command.int("timestamp")?.unwrap_or(-1);
        let one_queue = command.int32("queueId")?.filter(|&id| id >= 0);
        let one_offset = command.int("offset")?.filter(|&offset| offset != -1);
        let queues = match one_queue {
            Some(id) => vec![id as u32],
            None => (0..topic.config.read_queue_nums).collect(),
        };
        let mut chosen: Vec<(u32, usize, QueueKey, i64)> = Vec::with_capacity(queues.len());
        for queue_id in queues {
            let (core, queue) = self
                .owner(&topic, queue_id.into())
                .ok_or_else(|| topics::no_queue(&topic.name, queue_id))?;
            let bounds = match self.ask(core, ShardRequest::Bounds(queue)).await? {
                ShardReply::Bounds(bounds) => bounds,
                other => return Err(BrokerError::unexpected(&other)),
            };
            let offset = match one_offset {
                Some(offset) if one_queue.is_some() => checked_reset(bounds, offset)?,
                _ if timestamp_ms < 0 => bounds.max_offset,
                _ => {
                    self.search(core, queue, timestamp_ms, Boundary::Lower)
                        .await?
                }
            };
            chosen.push((queue_id, core, queue, offset));
        }
        // All offsets are known before the first is changed.
        let pulls = self.group_pulls(&group);
        let queues: Vec<QueueKey> = chosen.iter().map(|(_, _, queue, _)| *queue).collect();
        let mut table = BTreeMap::new();
        for (queue_id, core, queue, offset) in chosen {
            match pulls {
                true => self.reset(core, group.clone(), queue, offset).await?,
                false => self.commit(core, group.clone(), queue, offset).await?,
            }
            table.insert(self.message_queue(&topic.name, queue_id), offset);
        }
        if pulls {
            self.announce_reset(&group, queues).await?;
        }
        self.push_reset(&group, &topic.name, timestamp_ms, &table);
        Answer::json(&ResetOffsetBody {
            offset_table: table,
        })
    }

    /// Whether a group is connected and pulls: only then do its members have places of their own to be moved from.
    fn group_pulls(&self, group: &Arc<str>) -> bool {
        let meta = self.shard.meta();
        let online = meta.consumers.get(group);
        online.is_some_and(|online| {
            !online.members.is_empty() && !online.is_native && online.consume_type != "CONSUME_POP"
        })
    }

    async fn reset(
        &self,
        core: usize,
        group: Arc<str>,
        queue: QueueKey,
        offset: i64,
    ) -> Result<(), BrokerError> {
        let request = ShardRequest::ResetOffset {
            group,
            queue,
            offset,
        };
        self.ask_done(core, request).await
    }

    /// Lets every core look out for the next pulls of these queues.
    async fn announce_reset(
        &self,
        group: &Arc<str>,
        queues: Vec<QueueKey>,
    ) -> Result<(), BrokerError> {
        for core in 0..self.shard.count() {
            let command = GroupCommand::OffsetsReset {
                group: group.clone(),
                queues: queues.clone(),
            };
            self.ask(core, ShardRequest::Group(Box::new(command)))
                .await?;
        }
        Ok(())
    }

    /// Tells the members of a group to start at these offsets (220).
    fn push_reset(
        &self,
        group: &Arc<str>,
        topic: &Arc<str>,
        timestamp_ms: i64,
        table: &BTreeMap<MessageQueue, i64>,
    ) {
        let online = self.shard.meta().consumers.get(group).cloned();
        let Some(online) = online else { return };
        let head = Outgoing::oneway(request::RESET_CONSUMER_CLIENT_OFFSET)
            .field("topic", topic.clone())
            .field("group", group.clone())
            .field("timestamp", timestamp_ms)
            .field("isForce", true);
        let (lists, maps): (Vec<_>, Vec<_>) = online
            .members
            .iter()
            .partition(|member| member.client.language == LANGUAGE_CPP);
        let body = json::to_vec(&ResetOffsetBody {
            offset_table: table.clone(),
        });
        let ids = |members: Vec<&Member>| -> Vec<_> {
            members.into_iter().map(|m| m.connection).collect()
        };
        self.push(&ids(maps), &head.frame(Encoding::Json, &body));
        if !lists.is_empty() {
            let queues = table.iter().map(|(queue, &offset)| MessageQueueForC {
                broker_name: queue.broker_name.clone(),
                offset,
                queue_id: queue.queue_id,
                topic: queue.topic.clone(),
            });
            let body = json::to_vec(&ResetOffsetBodyForC {
                offset_table: queues.collect(),
            });
            self.push(&ids(lists), &head.frame(Encoding::Json, &body));
        }
    }

    /// 308: of each queue, the least offset that any group has there, or the greatest number if the compared group is
    /// behind that. Groups between commas in `filterGroups` do not count; RocketMQ forgets their offsets, too.
    pub(super) async fn correction_offsets(self, command: Command) -> Outcome {
        let topic = self.topic(&command.required_text("topic")?)?;
        let compared = command.required_text("compareGroup")?.into_owned();
        let left_out = command
            .text("filterGroups")
            .unwrap_or_default()
            .into_owned();
        let left_out: BTreeSet<&str> = left_out.split(',').map(str::trim).collect();
        let offsets = self.offsets(None, Some(&topic)).await?;
        let queues = topic.config.read_queue_nums;
        let mut body = QueryCorrectionOffsetBody::default();
        for (queue_id, bounds) in (0..queues).zip(self.bounds_of(&topic, queues).await?) {
            let key = ShardHandle::key(&topic, queue_id);
            let of_queue = || offsets.iter().filter(|offset| offset.queue == key);
            let least = of_queue()
                .filter(|offset| !left_out.contains(&*offset.group))
                .map(|offset| offset.offset)
                .filter(|&offset| offset >= bounds.min_offset)
                .min();
            let Some(least) = least else { continue };
            let behind =
                of_queue().any(|offset| *offset.group == *compared && least > offset.offset);
            let correction = if behind { i64::MAX } else { least };
            body.correction_offsets.insert(queue_id as i32, correction);
        }
        Answer::json(&body)
    }

    /// 314.
    pub(super) async fn clone_offsets(self, command: Command) -> Outcome {
        let from = command.required_text("srcGroup")?.into_owned();
        let to: Arc<str> = Arc::from(command.required_text("destGroup")?);
        names::check_group(&to)?;
        let only = match command.text("topic").filter(|t| !t.trim().is_empty()) {
            // A topic that is not there has no offsets to copy.
            Some(name) => match self.known_topic(&name) {
                Some(topic) => Some(topic),
                None => return Answer::done(),
            },
            None => None,
        };
        let offsets = self.offsets(Some(&from), only.as_ref()).await?;
        for piece in offsets.chunks(COMMITS_AT_ONCE) {
            let mut commits = Vec::with_capacity(piece.len());
            for offset in piece {
                let meta = self.shard.meta();
                let topic = meta.topics_by_id.get(&offset.queue.topic_id);
                let owner = topic.and_then(|t| self.owner(t, offset.queue.queue_id.into()));
                commits.extend(owner.map(|(core, queue)| {
                    let request = ShardRequest::CommitOffset {
                        group: to.clone(),
                        queue,
                        offset: offset.offset,
                    };
                    (core, request)
                }));
            }
            for answer in self.ask_all(commits).await {
                answer?;
            }
        }
        Answer::done()
    }
}

/// The offsets of one group.
fn by_queue(offsets: &[CommittedOffset]) -> AHashMap<QueueKey, &CommittedOffset> {
    offsets
        .iter()
        .map(|offset| (offset.queue, offset))
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_to_an_offset_must_stay_in_the_queue() {
        let bounds = QueueBounds {
            min_offset: 3,
            max_offset: 9,
            last_store_timestamp: 0,
        };
        for good in [3, 9, 10] {
            assert_eq!(checked_reset(bounds, good).unwrap(), good);
        }
        for bad in [2, 11] {
            assert!(checked_reset(bounds, bad).is_err());
        }
    }
}
