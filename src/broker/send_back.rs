//! CONSUMER_SEND_MSG_BACK (36): a consumer could not process a message and wants it again, or never again.
//!
//! The message is read from the log, and a copy with one more try goes to the group's retry topic or, after the last
//! try, to its dead letter topic. The copy keeps body, keys, tags and born fields; who failed is the group, so the queue
//! does not matter and is chosen at random. A retry waits for its delay level, or as long as the group's own policy says.
//!
//! Source: `AbstractSendMessageProcessor.consumerSendMsgBack`.

use std::sync::Arc;

use bytes::Bytes;

use crate::base::offset::PhysicalOffset;
use crate::broker::delay::{DelayRules, policy_delay_ms};
use crate::broker::dispatch::{Answer, Broker, Outcome};
use crate::broker::error::BrokerError;
use crate::broker::send_plan::check_properties;
use crate::broker::statistics::Counted;
use crate::broker::topics::{self, PERM_WRITE};
use crate::io::body::Body;
use crate::shard::ShardHandle;
use crate::shard::message::{Delayed, NewMessage, QueueKey, ShardReply, ShardRequest};
use crate::shard::meta::Topic;
use crate::wire::message_id::MessageId;
use crate::wire::properties::{self, PropertiesBuilder, name};
use crate::wire::record::{RecordView, SYS_FLAG_BORN_HOST_V6, SYS_FLAG_STORE_HOST_V6};
use crate::wire::remoting::command::{Command, Outgoing};

/// From this version on a client's own limit of retries counts (`MQVersion.V3_4_9`).
const VERSION_OWN_RETRY_LIMIT: i32 = 121;
/// Room for the properties that a copy gets.
const ADDED_BYTES: usize = 256;

/// What becomes of a message that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Another try after a delay level.
    Retry {
        level: usize,
        delay_ms: u64,
    },
    /// Another try when the group's own policy says so.
    RetryByPolicy {
        delay_ms: u64,
    },
    Dead,
}

/// `policy_ms`: the delay that the group's policy gives, if it has one of its own.
fn fate(
    reconsume_times: i32,
    limit: i32,
    delay_level: i32,
    rules: &DelayRules,
    policy_ms: Option<u64>,
) -> Fate {
    if reconsume_times >= limit || delay_level < 0 {
        return Fate::Dead;
    }
    match policy_ms {
        Some(delay_ms) if delay_level == 0 => Fate::RetryByPolicy { delay_ms },
        _ => {
            let level = rules.retry_level(delay_level, reconsume_times);
            Fate::Retry {
                level,
                delay_ms: rules.level_ms(level),
            }
        }
    }
}

/// The properties of the copy for a queue: origin and topic of the first delivery stay as they are once set.
fn copied_properties(record: &RecordView<'_>, fate: Fate, topic: &str, queue_id: u32) -> Bytes {
    let mut copy = PropertiesBuilder::from_bytes(record.properties(), ADDED_BYTES);
    if copy.get(name::RETRY_TOPIC).is_none() {
        copy.append(name::RETRY_TOPIC, record.topic());
    }
    if copy.get(name::ORIGIN_MESSAGE_ID).is_none() {
        let id = MessageId {
            host: record.store_host(),
            offset: PhysicalOffset(record.physical_offset()),
        };
        copy.append(name::ORIGIN_MESSAGE_ID, &id.encode());
    }
    copy.set(name::WAIT, "false");
    match fate {
        Fate::Retry { level, .. } => copy.set(name::DELAY, &level.to_string()),
        Fate::RetryByPolicy { .. } => copy.remove(name::DELAY),
        Fate::Dead => copy.set(name::DELAY, "0"),
    };
    // A time that the producer chose has been; as in RocketMQ, a level takes its place.
    if fate != Fate::Dead {
        for time in [
            name::TIMER_DELAY_SEC,
            name::TIMER_DELAY_MS,
            name::TIMER_DELIVER_MS,
            name::TIMER_OUT_MS,
        ] {
            copy.remove(time);
        }
        copy.set(name::REAL_TOPIC, topic);
        copy.set(name::REAL_QUEUE_ID, &queue_id.to_string());
    }
    copy.finish()
}

/// A stored message once more, for a queue of another topic.
fn copy_of(
    record: &RecordView<'_>,
    queue: QueueKey,
    topic: &Topic,
    properties: Bytes,
    reconsume_times: i32,
) -> NewMessage {
    NewMessage {
        queue,
        topic: topic.name.clone(),
        // A copy of the body: the record may be a slice of a page that another core owns.
        body: Bytes::copy_from_slice(record.body()),
        properties,
        tags_code: properties::tags_code_of(record.properties()),
        flag: record.flag(),
        sys_flag: record.sys_flag() & !(SYS_FLAG_BORN_HOST_V6 | SYS_FLAG_STORE_HOST_V6),
        born_timestamp: record.born_timestamp(),
        born_host: record.born_host(),
        reconsume_times,
        prepared_transaction_offset: 0,
        key_places: None,
    }
}

impl Broker {
    pub(super) async fn send_back(self, command: Command) -> Outcome {
        let group = command.required_text("group")?.into_owned();
        let config = self
            .known_group(&group)
            .ok_or_else(|| BrokerError::NoGroup {
                group: group.clone(),
            })?;
        if !self.options.writable() {
            return Err(BrokerError::NoPermission(format!(
                "the broker {} takes no messages: its brokerPermission has no write bit",
                self.options.broker
            )));
        }
        if config.retry_queue_nums <= 0 {
            return Answer::done();
        }
        let limit = match command.int32("maxReconsumeTimes")? {
            Some(own) if command.version >= VERSION_OWN_RETRY_LIMIT && own >= 0 => own,
            _ => config.retry_max_times,
        };
        let delay_level = command.int32("delayLevel")?.unwrap_or(0);
        let retry = self.retry_topic(&group, config.retry_queue_nums).await?;
        if retry.config.perm & PERM_WRITE == 0 {
            return Err(BrokerError::NoPermission(format!(
                "the topic '{}' may not be written: its permission is {}",
                retry.name, retry.config.perm
            )));
        }
        let record = self.stored_record(command.required_int("offset")?).await?;
        let record = RecordView::parse(&record)
            .map_err(|error| BrokerError::System(format!("the stored message: {error}")))?;
        let times = record.reconsume_times();
        let policy_ms = policy_delay_ms(&config, times);
        let fate = fate(times, limit, delay_level, &self.options.delay, policy_ms);
        let topic = match fate {
            Fate::Retry { .. } | Fate::RetryByPolicy { .. } => retry,
            Fate::Dead => self.dead_letter_topic(&group).await?,
        };
        let queues = topic.config.write_queue_nums.max(1);
        let queue_id = (self.shard.random_u64() % u64::from(queues)) as u32;
        let core = self
            .shard
            .shard_of_queue(&topic, queue_id)
            .ok_or_else(|| topics::no_queue(&topic.name, queue_id))?;
        let properties = copied_properties(&record, fate, &topic.name, queue_id);
        check_properties(properties.len())?;
        let times = times.saturating_add(1);
        let copy = copy_of(
            &record,
            ShardHandle::key(&topic, queue_id),
            &topic,
            properties,
            times,
        );
        let request = match fate {
            Fate::Dead => ShardRequest::Append(Box::new([copy])),
            Fate::Retry { delay_ms, .. } | Fate::RetryByPolicy { delay_ms } => {
                ShardRequest::AppendDelayed(Box::new(Delayed {
                    message: copy,
                    due_ms: self.shard.now_ms() + delay_ms,
                }))
            }
        };
        match self.ask(core, request).await? {
            ShardReply::Appended(_) => {
                let kind = match fate {
                    Fate::Dead => Counted::Dead,
                    _ => Counted::SentBack,
                };
                self.count_again(kind, &record, &group);
                Answer::done()
            }
            other => Err(BrokerError::unexpected(&other)),
        }
    }

    /// Counts a message that its group did not consume, for its first topic.
    fn count_again(&self, kind: Counted, record: &RecordView<'_>, group: &str) {
        let first = properties::get(record.properties(), name::RETRY_TOPIC);
        let topic: Arc<str> = Arc::from(first.unwrap_or(record.topic()));
        let sum = (1, record.body().len() as u64);
        self.count(kind, &topic, group, self.shard.now_ms(), sum);
    }

    /// Puts a message that a POP consumer failed to process too often into the group's dead letter topic.
    pub(super) async fn bury(&self, group: &str, record: &[u8]) -> Result<(), BrokerError> {
        let record = RecordView::parse(record)
            .map_err(|error| BrokerError::System(format!("the stored message: {error}")))?;
        let topic = self.dead_letter_topic(group).await?;
        let core = self
            .shard
            .shard_of_queue(&topic, 0)
            .ok_or_else(|| topics::no_queue(&topic.name, 0))?;
        let properties = copied_properties(&record, Fate::Dead, &topic.name, 0);
        check_properties(properties.len())?;
        let times = record.reconsume_times();
        let copy = copy_of(
            &record,
            ShardHandle::key(&topic, 0),
            &topic,
            properties,
            times,
        );
        match self
            .ask(core, ShardRequest::Append(Box::new([copy])))
            .await?
        {
            ShardReply::Appended(_) => {
                self.count_again(Counted::Dead, &record, group);
                Ok(())
            }
            other => Err(BrokerError::unexpected(&other)),
        }
    }

    /// 33: one stored message by its physical offset.
    pub(super) async fn view_message(self, command: Command) -> Outcome {
        let record = self.stored_record(command.required_int("offset")?).await?;
        Ok(Answer {
            head: Outgoing::success(),
            body: Body::Bytes(record),
        })
    }

    /// The record at a physical offset, in one piece.
    pub(super) async fn stored_record(&self, offset: i64) -> Result<Bytes, BrokerError> {
        let not_found =
            || BrokerError::System(format!("can not find message by the offset, {offset}"));
        let (log, position) = PhysicalOffset(offset).split().ok_or_else(not_found)?;
        let core = self.shard.shard_of_log(log);
        match self
            .ask(core, ShardRequest::ReadRecord { log, position })
            .await?
        {
            ShardReply::Record(Some(record)) => Ok(record.into_bytes()),
            ShardReply::Record(None) => Err(not_found()),
            other => Err(BrokerError::unexpected(&other)),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::wire::record::RecordFields;

    #[test]
    fn a_message_dies_at_its_limit_or_when_the_consumer_gives_it_up() {
        let rules = DelayRules::rocketmq();
        let fate = |times, limit, level| fate(times, limit, level, &rules, None);
        let retry = |level, delay_ms| Fate::Retry { level, delay_ms };
        assert_eq!(fate(0, 16, 0), retry(3, 10_000));
        assert_eq!(fate(15, 16, 0), retry(18, 7_200_000));
        assert_eq!(fate(16, 16, 0), Fate::Dead);
        assert_eq!(fate(0, 16, -1), Fate::Dead);
        assert_eq!(fate(1, 2, 1), retry(1, 1_000));
        assert_eq!(fate(2, 2, 1), Fate::Dead);
    }

    #[test]
    fn a_groups_policy_counts_where_the_consumer_leaves_it_to_the_broker() {
        let rules = DelayRules::rocketmq();
        let by_policy = Fate::RetryByPolicy { delay_ms: 77 };
        assert_eq!(fate(0, 16, 0, &rules, Some(77)), by_policy);
        assert!(matches!(
            fate(0, 16, 2, &rules, Some(77)),
            Fate::Retry { level: 2, .. }
        ));
        assert_eq!(fate(16, 16, 0, &rules, Some(77)), Fate::Dead);
    }

    fn record(properties: &[u8]) -> Vec<u8> {
        let host = "127.0.0.1:10911".parse().unwrap();
        let fields = RecordFields {
            topic: "T",
            body: b"",
            properties,
            queue_id: 0,
            flag: 0,
            queue_offset: 0,
            physical_offset: 7,
            sys_flag: 0,
            born_timestamp: 0,
            born_host: host,
            store_timestamp: 0,
            store_host: host,
            reconsume_times: 0,
            prepared_transaction_offset: 0,
        };
        let mut out = vec![0; fields.encoded_len()];
        fields.encode_into(&mut out);
        out
    }

    #[test]
    fn the_first_copy_remembers_where_it_came_from() {
        let stored = record(b"TAGS\x01a\x02");
        let view = RecordView::parse(&stored).unwrap();
        let copy = copied_properties(
            &view,
            Fate::Retry {
                level: 3,
                delay_ms: 10_000,
            },
            "%RETRY%G",
            2,
        );
        assert_eq!(properties::get(&copy, "RETRY_TOPIC"), Some("T"));
        assert_eq!(
            properties::get(&copy, "ORIGIN_MESSAGE_ID"),
            Some("7F00000100002A9F0000000000000007")
        );
        assert_eq!(properties::get(&copy, "DELAY"), Some("3"));
        assert_eq!(properties::get(&copy, "WAIT"), Some("false"));
        assert_eq!(properties::get(&copy, "TAGS"), Some("a"));
        assert_eq!(properties::get(&copy, "REAL_TOPIC"), Some("%RETRY%G"));
        assert_eq!(properties::get(&copy, "REAL_QID"), Some("2"));
    }

    #[test]
    fn a_later_copy_keeps_the_first_origin() {
        let stored = record(b"RETRY_TOPIC\x01first\x02ORIGIN_MESSAGE_ID\x01ID\x02DELAY\x013\x02");
        let view = RecordView::parse(&stored).unwrap();
        let copy = copied_properties(&view, Fate::Dead, "%DLQ%G", 0);
        assert_eq!(properties::get(&copy, "RETRY_TOPIC"), Some("first"));
        assert_eq!(properties::get(&copy, "ORIGIN_MESSAGE_ID"), Some("ID"));
        assert_eq!(properties::get(&copy, "DELAY"), Some("0"));
    }
}
