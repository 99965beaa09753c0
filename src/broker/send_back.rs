//! CONSUMER_SEND_MSG_BACK (36): a consumer could not process a message and wants it again, or never again.
//!
//! The message is read from the log, and a copy with one more try goes to the group's retry topic or, after the last
//! try, to its dead letter topic. The copy keeps body, keys, tags and born fields; who failed is the group, so the queue
//! does not matter and is chosen at random. Until there is a delay engine (`delay.rs`) the copy is stored in the retry
//! topic at once, with the level that it will wait for.
//!
//! Source: `AbstractSendMessageProcessor.consumerSendMsgBack`.

use bytes::Bytes;

use crate::base::offset::PhysicalOffset;
use crate::broker::delay::retry_level;
use crate::broker::dispatch::{Answer, Broker, Outcome};
use crate::broker::error::BrokerError;
use crate::broker::topics::{self, PERM_WRITE};
use crate::io::body::Body;
use crate::shard::ShardHandle;
use crate::shard::message::{NewMessage, ShardReply, ShardRequest};
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
    /// Another try after this delay level.
    Retry {
        level: usize,
    },
    Dead,
}

fn fate(reconsume_times: i32, limit: i32, delay_level: i32) -> Fate {
    if reconsume_times >= limit || delay_level < 0 {
        Fate::Dead
    } else {
        Fate::Retry {
            level: retry_level(delay_level, reconsume_times),
        }
    }
}

/// The properties of the copy: origin and topic of the first delivery stay as they are once set.
fn copied_properties(record: &RecordView<'_>, fate: Fate) -> Bytes {
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
    let level = match fate {
        Fate::Retry { level } => level,
        Fate::Dead => 0,
    };
    copy.set(name::DELAY, &level.to_string());
    copy.finish()
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
        let fate = fate(record.reconsume_times(), limit, delay_level);
        let topic = match fate {
            Fate::Retry { .. } => retry,
            Fate::Dead => self.dead_letter_topic(&group).await?,
        };
        let queues = topic.config.write_queue_nums.max(1);
        let queue_id = (self.shard.random_u64() % u64::from(queues)) as u32;
        let core = self
            .shard
            .shard_of_queue(&topic, queue_id)
            .ok_or_else(|| topics::no_queue(&topic.name, queue_id))?;
        let copy = NewMessage {
            queue: ShardHandle::key(&topic, queue_id),
            topic: topic.name.clone(),
            // A copy of the body: the record may be a slice of a page that another core owns.
            body: Bytes::copy_from_slice(record.body()),
            properties: copied_properties(&record, fate),
            tags_code: properties::tags_code_of(record.properties()),
            flag: record.flag(),
            sys_flag: record.sys_flag() & !(SYS_FLAG_BORN_HOST_V6 | SYS_FLAG_STORE_HOST_V6),
            born_timestamp: record.born_timestamp(),
            born_host: record.born_host(),
            reconsume_times: record.reconsume_times().saturating_add(1),
            prepared_transaction_offset: 0,
        };
        let request = ShardRequest::Append(Box::new([copy]));
        match self.ask(core, request).await? {
            ShardReply::Appended(_) => Answer::done(),
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
        assert_eq!(fate(0, 16, 0), Fate::Retry { level: 3 });
        assert_eq!(fate(15, 16, 0), Fate::Retry { level: 18 });
        assert_eq!(fate(16, 16, 0), Fate::Dead);
        assert_eq!(fate(0, 16, -1), Fate::Dead);
        assert_eq!(fate(1, 2, 1), Fate::Retry { level: 1 });
        assert_eq!(fate(2, 2, 1), Fate::Dead);
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
        let copy = copied_properties(&view, Fate::Retry { level: 3 });
        assert_eq!(properties::get(&copy, "RETRY_TOPIC"), Some("T"));
        assert_eq!(
            properties::get(&copy, "ORIGIN_MESSAGE_ID"),
            Some("7F00000100002A9F0000000000000007")
        );
        assert_eq!(properties::get(&copy, "DELAY"), Some("3"));
        assert_eq!(properties::get(&copy, "WAIT"), Some("false"));
        assert_eq!(properties::get(&copy, "TAGS"), Some("a"));
    }

    #[test]
    fn a_later_copy_keeps_the_first_origin() {
        let stored = record(b"RETRY_TOPIC\x01first\x02ORIGIN_MESSAGE_ID\x01ID\x02DELAY\x013\x02");
        let view = RecordView::parse(&stored).unwrap();
        let copy = copied_properties(&view, Fate::Dead);
        assert_eq!(properties::get(&copy, "RETRY_TOPIC"), Some("first"));
        assert_eq!(properties::get(&copy, "ORIGIN_MESSAGE_ID"), Some("ID"));
        assert_eq!(properties::get(&copy, "DELAY"), Some("0"));
    }
}
