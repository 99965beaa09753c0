//! What becomes of a send, and what its messages have to be: the pure part of `send.rs`.
//!
//! [`plan`] checks in RocketMQ's order, from the header and the published metadata.
//! Source: `AbstractSendMessageProcessor.msgCheck`, `SendMessageProcessor`, `TopicConfigManager.createTopicInSendMessage`.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::base::limits::PROPERTIES_BYTES_MAX;
use crate::base::names;
use crate::broker::error::BrokerError;
use crate::broker::options::BrokerOptions;
use crate::broker::sent_properties::Sent;
use crate::broker::topics::{self, PERM_INHERIT, PERM_READ, PERM_WRITE};
use crate::broker::transaction::TransactionRules;
use crate::shard::message::NewMessage;
use crate::shard::meta::{Meta, Topic};
use crate::store::keys::entry::MessageKeys;
use crate::store::types::KeyPlaces;
use crate::wire::batch;
use crate::wire::properties::{self, name};
use crate::wire::record::{SYS_FLAG_TRANSACTION, SYS_FLAG_TRANSACTION_COMMIT};
use crate::wire::remoting::body::TopicConfig;
use crate::wire::remoting::code::request;
use crate::wire::remoting::command::Command;

/// From this version on a client's own limit of retries counts (`MQVersion.V3_4_9`).
const VERSION_OWN_RETRY_LIMIT: i32 = 121;
/// Topic system flag of topics made by a client with a unit (`TopicSysFlag.FLAG_UNIT`).
const TOPIC_FLAG_UNIT: i32 = 1;

/// Header of a send, under either set of names.
#[derive(Debug)]
pub(super) struct SendHeader<'a> {
    pub topic: Cow<'a, str>,
    pub default_topic: Cow<'a, str>,
    pub default_topic_queues: i32,
    pub queue_id: i32,
    pub sys_flag: i32,
    pub born_timestamp: i64,
    pub flag: i32,
    pub properties: Cow<'a, [u8]>,
    pub reconsume_times: i32,
    pub unit_mode: bool,
    pub max_reconsume_times: Option<i32>,
    pub batch: bool,
}

/// Field names: those of code 10, or the letters of 310 and 320.
struct Names {
    topic: &'static str,
    default_topic: &'static str,
    default_topic_queues: &'static str,
    queue_id: &'static str,
    sys_flag: &'static str,
    born_timestamp: &'static str,
    flag: &'static str,
    properties: &'static str,
    reconsume_times: &'static str,
    unit_mode: &'static str,
    max_reconsume_times: &'static str,
    batch: &'static str,
}

const LONG: Names = Names {
    topic: "topic",
    default_topic: "defaultTopic",
    default_topic_queues: "defaultTopicQueueNums",
    queue_id: "queueId",
    sys_flag: "sysFlag",
    born_timestamp: "bornTimestamp",
    flag: "flag",
    properties: "properties",
    reconsume_times: "reconsumeTimes",
    unit_mode: "unitMode",
    max_reconsume_times: "maxReconsumeTimes",
    batch: "batch",
};

const SHORT: Names = Names {
    topic: "b",
    default_topic: "c",
    default_topic_queues: "d",
    queue_id: "e",
    sys_flag: "f",
    born_timestamp: "g",
    flag: "h",
    properties: "i",
    reconsume_times: "j",
    unit_mode: "k",
    max_reconsume_times: "l",
    batch: "m",
};

impl<'a> SendHeader<'a> {
    pub fn read(command: &'a Command, now_ms: u64) -> Result<Self, BrokerError> {
        match command.code {
            request::SEND_MESSAGE | request::SEND_REPLY_MESSAGE => {
                Self::read_as(command, &LONG, now_ms)
            }
            _ => Self::read_as(command, &SHORT, now_ms),
        }
    }

    // Twice, each with its names known: a letter is then an index.
    #[inline(always)]
    fn read_as(command: &'a Command, names: &Names, now_ms: u64) -> Result<Self, BrokerError> {
        Ok(Self {
            topic: command.required_text(names.topic)?,
            default_topic: command.text(names.default_topic).unwrap_or_default(),
            default_topic_queues: command.int32(names.default_topic_queues)?.unwrap_or(4),
            queue_id: command.required_i32(names.queue_id)?,
            sys_flag: command.int32(names.sys_flag)?.unwrap_or(0),
            born_timestamp: command.int(names.born_timestamp)?.unwrap_or(now_ms as i64),
            flag: command.int32(names.flag)?.unwrap_or(0),
            properties: command.bytes(names.properties).unwrap_or_default(),
            reconsume_times: command.int32(names.reconsume_times)?.unwrap_or(0),
            unit_mode: command.flag(names.unit_mode),
            max_reconsume_times: command.int32(names.max_reconsume_times)?,
            batch: command.code == request::SEND_BATCH_MESSAGE || command.flag(names.batch),
        })
    }
}

/// What to do with a send.
#[derive(Debug, PartialEq)]
pub(super) enum Plan {
    /// Store it in this queue.
    Append { topic: Arc<Topic>, queue_id: u32 },
    /// The topic has to be made first, then it is planned again.
    Create(TopicConfig),
    /// It goes to the retry topic of a group, or to its dead letter topic.
    Retry { topic: Arc<Topic>, queue_id: u32 },
}

/// Decides on a send. `random` chooses a queue if the client did not.
pub(super) fn plan(
    header: &SendHeader<'_>,
    meta: &Meta,
    options: &BrokerOptions,
    random: u64,
) -> Result<Plan, BrokerError> {
    let name = header.topic.as_ref();
    let topic = meta.topics.get(name);
    if !options.writable() && topic.is_some_and(|topic| topic.config.order) {
        return Err(BrokerError::NoPermission(format!(
            "the broker {} takes no messages for ordered topics: its brokerPermission has no write bit",
            options.broker
        )));
    }
    // One that is known was checked when it was made.
    if topic.is_none() {
        names::check_topic(name)?;
    }
    if names::is_send_forbidden(name) {
        return Err(BrokerError::NoPermission(format!(
            "the topic '{name}' belongs to the broker; producers may not send to it"
        )));
    }
    let retry_group = names::group_of_retry_topic(name);
    if let Some(group) = retry_group
        && !meta.groups.contains_key(group)
    {
        return Err(BrokerError::NoGroup {
            group: group.into(),
        });
    }
    let Some(topic) = topic else {
        return Ok(Plan::Create(topic_to_create(header, meta, options)?));
    };
    let config = &topic.config;
    let queues = config.read_queue_nums.max(config.write_queue_nums);
    let queue_id = if header.queue_id < 0 {
        if config.write_queue_nums == 0 {
            return Err(BrokerError::InvalidParameter(format!(
                "the topic '{name}' has no queue to write to (writeQueueNums is 0)"
            )));
        }
        (random % u64::from(config.write_queue_nums)) as u32
    } else {
        header.queue_id as u32
    };
    if queue_id >= queues {
        return Err(BrokerError::InvalidParameter(format!(
            "the queue id {queue_id} is illegal: the topic '{name}' has {queues} queues"
        )));
    }
    if header.batch && (names::is_retry_topic(name) || names::is_dlq_topic(name)) {
        return Err(BrokerError::MessageIllegal(
            "a batch may not go to a retry or dead letter topic; send its messages one by one"
                .into(),
        ));
    }
    if retry_group.is_some() {
        return Ok(Plan::Retry {
            topic: topic.clone(),
            queue_id,
        });
    }
    Ok(Plan::Append {
        topic: topic.clone(),
        queue_id,
    })
}

/// `createTopicInSendMessage`: the configuration of a topic that a send creates, or why it may not.
fn topic_to_create(
    header: &SendHeader<'_>,
    meta: &Meta,
    options: &BrokerOptions,
) -> Result<TopicConfig, BrokerError> {
    let name = header.topic.as_ref();
    let unit = if header.unit_mode { TOPIC_FLAG_UNIT } else { 0 };
    if names::is_retry_topic(name) {
        return Ok(TopicConfig {
            topic_sys_flag: unit,
            ..topics::config(name, 1, PERM_READ | PERM_WRITE)
        });
    }
    let refused = || BrokerError::NoTopic { topic: name.into() };
    let model = meta
        .topics
        .get(header.default_topic.as_ref())
        .ok_or_else(refused)?;
    let by_send = header.default_topic != names::AUTO_CREATE_TOPIC || options.auto_create_topic;
    if model.config.perm & PERM_INHERIT == 0 || !by_send {
        return Err(refused());
    }
    let queues = header
        .default_topic_queues
        .clamp(0, model.config.write_queue_nums.min(i32::MAX as u32) as i32);
    Ok(TopicConfig {
        topic_filter_type: model.config.topic_filter_type.clone(),
        topic_sys_flag: unit,
        ..topics::config(name, queues as u32, model.config.perm & !PERM_INHERIT)
    })
}

/// The queue of a message with a priority: that of its number, or the last one. `None`: it has no priority.
pub(super) fn queue_of_priority(sent: &Sent<'_>, write_queues: u32) -> Option<u32> {
    let last = write_queues.checked_sub(1)?;
    Some(sent.priority_of_queue()?.min(last))
}

/// Whether a message that comes back to its group goes to the dead letter topic.
pub(super) fn is_dead(
    reconsume_times: i32,
    version: i32,
    own_limit: Option<i32>,
    group_limit: i32,
) -> bool {
    let limit = match own_limit {
        Some(own) if version >= VERSION_OWN_RETRY_LIMIT => own,
        _ => group_limit,
    };
    reconsume_times > limit
}

/// Whether a send begins a transaction, or why it may not. A batch cannot: RocketMQ would show its messages at once.
/// A retry with a delay, from clients before 4.6.1, is none.
pub(super) fn begins_transaction(
    sent: &Sent<'_>,
    header: &SendHeader<'_>,
    rules: &TransactionRules,
) -> Result<bool, BrokerError> {
    let transaction = header.sys_flag & SYS_FLAG_TRANSACTION;
    let is_prepared = transaction != 0 && transaction != SYS_FLAG_TRANSACTION_COMMIT;
    if header.batch && (sent.half || is_prepared) {
        return Err(BrokerError::MessageIllegal(
            "a batch cannot be a half message; send its messages one by one".into(),
        ));
    }
    let has_level = sent.delay.level.is_some_and(|level| level != b"0");
    if !sent.half || (header.reconsume_times > 0 && has_level) {
        if is_prepared {
            return Err(BrokerError::MessageIllegal(format!(
                "the sysFlag {:#x} says that the message is of an open transaction, but it lacks the property TRAN_MSG=true: nobody would ever see it",
                header.sys_flag
            )));
        }
        return Ok(false);
    }
    if rules.reject {
        return Err(BrokerError::NoPermission(
            "this broker takes no transactional messages (rejectTransactionMessage is true)".into(),
        ));
    }
    if !properties::contains(&header.properties, name::PRODUCER_GROUP) {
        return Err(BrokerError::MessageIllegal(
            "a half message needs the property PGROUP: its producer group is asked how the transaction ended".into(),
        ));
    }
    Ok(true)
}

pub(super) fn check_body(
    body: &Bytes,
    limit_bytes: usize,
    is_batch: bool,
) -> Result<(), BrokerError> {
    let what = if is_batch { "batch" } else { "message body" };
    if body.is_empty() {
        return Err(BrokerError::MessageIllegal(format!("the {what} is empty")));
    }
    if body.len() > limit_bytes {
        return Err(BrokerError::MessageIllegal(format!(
            "the {what} has {} bytes, the limit is {limit_bytes} (maxMessageSize)",
            body.len()
        )));
    }
    Ok(())
}

pub(super) fn check_properties(bytes: usize) -> Result<(), BrokerError> {
    if bytes > PROPERTIES_BYTES_MAX {
        return Err(BrokerError::MessageIllegal(format!(
            "the message properties have {bytes} bytes with those of the broker, the limit is {PROPERTIES_BYTES_MAX}"
        )));
    }
    Ok(())
}

/// The messages of a batch: each with its own flag, body and properties, all else from the send.
pub(super) fn batch_of(common: &NewMessage) -> Result<SmallVec<[NewMessage; 1]>, BrokerError> {
    let items = batch::decode(&common.body)
        .map_err(|error| BrokerError::MessageIllegal(error.to_string()))?;
    let mut messages = SmallVec::with_capacity(items.len());
    for item in items {
        check_properties(item.properties.len())?;
        let (mut tags, mut keys) = (None, MessageKeys::default());
        for (name, value) in properties::iter(&item.properties) {
            match name {
                b"TAGS" => tags = std::str::from_utf8(value).ok(),
                b"KEYS" => keys.keys = value,
                b"UNIQ_KEY" => keys.unique = value,
                _ => {}
            }
        }
        // Field by field: a clone of what is common would count and drop a body and properties for each message.
        messages.push(NewMessage {
            queue: common.queue,
            topic: common.topic.clone(),
            tags_code: tags.map_or(0, properties::tags_code),
            flag: item.flag,
            sys_flag: common.sys_flag,
            born_timestamp: common.born_timestamp,
            born_host: common.born_host,
            reconsume_times: common.reconsume_times,
            prepared_transaction_offset: common.prepared_transaction_offset,
            key_places: Some(KeyPlaces::new(&item.properties, keys)),
            body: item.body,
            properties: item.properties,
        });
    }
    Ok(messages)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::shard::meta::MetaChange;
    use crate::wire::remoting::body::SubscriptionGroupConfig;

    fn options() -> BrokerOptions {
        BrokerOptions::new("C", "b", "127.0.0.1:10911".parse().unwrap())
    }

    fn put(meta: &mut Meta, config: TopicConfig) {
        let logs = vec![0; config.read_queue_nums.max(config.write_queue_nums) as usize];
        meta.apply(MetaChange::TopicPut(Arc::new(Topic {
            id: meta.topics.len() as u32,
            name: Arc::from(config.topic_name.as_str()),
            config,
            logs,
        })));
    }

    /// TBW102, a topic T with 2 queues to write and 4 to read, and the group G with its retry topic.
    fn meta() -> Meta {
        let mut meta = Meta::default();
        put(&mut meta, topics::config("TBW102", 8, 7));
        put(
            &mut meta,
            TopicConfig {
                read_queue_nums: 4,
                ..topics::config("T", 2, 6)
            },
        );
        put(&mut meta, topics::config("%RETRY%G", 1, 6));
        meta.apply(MetaChange::GroupPut(Arc::new(SubscriptionGroupConfig {
            group_name: "G".into(),
            ..SubscriptionGroupConfig::default()
        })));
        meta
    }

    fn header(topic: &str, queue_id: i32) -> SendHeader<'_> {
        SendHeader {
            topic: topic.into(),
            default_topic: "TBW102".into(),
            default_topic_queues: 4,
            queue_id,
            sys_flag: 0,
            born_timestamp: 0,
            flag: 0,
            properties: Cow::default(),
            reconsume_times: 0,
            unit_mode: false,
            max_reconsume_times: None,
            batch: false,
        }
    }

    fn planned(header: &SendHeader<'_>) -> Result<Plan, BrokerError> {
        plan(header, &meta(), &options(), 5)
    }

    #[test]
    fn a_send_goes_to_the_queue_that_was_asked_for() {
        let Ok(Plan::Append { topic, queue_id }) = planned(&header("T", 3)) else {
            panic!("queue 3 can be read, so it can be sent to");
        };
        assert_eq!((&*topic.name, queue_id), ("T", 3));
        assert!(matches!(
            planned(&header("T", 4)),
            Err(BrokerError::InvalidParameter(_))
        ));
    }

    #[test]
    fn the_priority_of_a_message_is_the_number_of_its_queue() {
        let queue = |properties: &[u8], queues| queue_of_priority(&Sent::read(properties), queues);
        assert_eq!(queue(b"_SYS_MSG_PRIORITY_\x013\x02", 8), Some(3));
        assert_eq!(queue(b"_SYS_MSG_PRIORITY_\x019\x02", 8), Some(7));
        assert_eq!(queue(b"_SYS_MSG_PRIORITY_\x010\x02", 0), None);
        for none in ["-1", "x", "", "99999999999"] {
            let properties = format!("_SYS_MSG_PRIORITY_\x01{none}\x02");
            assert_eq!(queue(properties.as_bytes(), 8), None, "{none}");
        }
        for other in [
            "TRAN_MSG\x01true",
            "DELAY\x011",
            "TIMER_DELAY_MS\x015",
            "__SHARDINGKEY\x01k",
        ] {
            let properties = format!("_SYS_MSG_PRIORITY_\x013\x02{other}\x02");
            assert_eq!(queue(properties.as_bytes(), 8), None, "{other}");
        }
    }

    #[test]
    fn without_a_queue_the_broker_chooses_one_to_write() {
        let Ok(Plan::Append { queue_id, .. }) = planned(&header("T", -1)) else {
            panic!("refused");
        };
        assert_eq!(queue_id, 5 % 2);
    }

    #[test]
    fn an_illegal_name_goes_before_a_forbidden_topic_and_that_before_a_missing_one() {
        assert!(matches!(
            planned(&header("a b", 0)),
            Err(BrokerError::Name(_))
        ));
        assert!(matches!(
            planned(&header("SCHEDULE_TOPIC_XXXX", 0)),
            Err(BrokerError::NoPermission(_))
        ));
        assert!(matches!(planned(&header("new", 0)), Ok(Plan::Create(_))));
    }

    #[test]
    fn a_new_topic_has_the_producers_queues_up_to_those_of_the_model() {
        let created = |wanted: i32| match planned(&SendHeader {
            default_topic_queues: wanted,
            ..header("new", 0)
        }) {
            Ok(Plan::Create(config)) => config,
            other => panic!("{other:?}"),
        };
        assert_eq!(created(3).write_queue_nums, 3);
        assert_eq!(created(3).read_queue_nums, 3);
        assert_eq!(created(99).write_queue_nums, 8);
        assert_eq!(created(-1).write_queue_nums, 0);
        assert_eq!(created(3).perm, 6, "without the inherit bit");
    }

    #[test]
    fn a_topic_is_not_created_without_an_inheritable_model_or_when_it_is_off() {
        let unknown_model = SendHeader {
            default_topic: "nowhere".into(),
            ..header("new", 0)
        };
        assert!(matches!(
            planned(&unknown_model),
            Err(BrokerError::NoTopic { .. })
        ));
        let not_inheritable = SendHeader {
            default_topic: "T".into(),
            ..header("new", 0)
        };
        assert!(matches!(
            planned(&not_inheritable),
            Err(BrokerError::NoTopic { .. })
        ));
        let off = BrokerOptions {
            auto_create_topic: false,
            ..options()
        };
        assert!(matches!(
            plan(&header("new", 0), &meta(), &off, 0),
            Err(BrokerError::NoTopic { .. })
        ));
    }

    #[test]
    fn a_retry_needs_its_group_and_its_topic_is_made_whatever_the_switches_say() {
        assert!(matches!(
            planned(&header("%RETRY%nobody", 0)),
            Err(BrokerError::NoGroup { .. })
        ));
        assert!(matches!(
            planned(&header("%RETRY%G", 0)),
            Ok(Plan::Retry { .. })
        ));
        let off = BrokerOptions {
            auto_create_topic: false,
            ..options()
        };
        let mut without_topic = meta();
        let topic = without_topic.topics["%RETRY%G"].clone();
        without_topic.apply(MetaChange::TopicDeleted(topic));
        assert!(matches!(
            plan(&header("%RETRY%G", 0), &without_topic, &off, 0),
            Ok(Plan::Create(config)) if config.write_queue_nums == 1
        ));
    }

    #[test]
    fn a_batch_may_not_be_a_retry() {
        let batch = SendHeader {
            batch: true,
            ..header("%RETRY%G", 0)
        };
        assert!(matches!(
            planned(&batch),
            Err(BrokerError::MessageIllegal(_))
        ));
    }

    #[test]
    fn ordered_topics_are_closed_when_the_broker_may_not_be_written() {
        let closed = BrokerOptions {
            permission: PERM_READ,
            ..options()
        };
        let mut meta = meta();
        put(
            &mut meta,
            TopicConfig {
                order: true,
                ..topics::config("O", 1, 6)
            },
        );
        assert!(matches!(
            plan(&header("O", 0), &meta, &closed, 0),
            Err(BrokerError::NoPermission(_))
        ));
        assert!(plan(&header("T", 0), &meta, &closed, 0).is_ok());
    }

    #[test]
    fn a_message_is_dead_after_its_last_retry_and_a_new_client_sets_the_limit() {
        assert!(!is_dead(16, 513, None, 16));
        assert!(is_dead(17, 513, None, 16));
        assert!(is_dead(3, 513, Some(2), 16));
        assert!(
            !is_dead(3, 120, Some(2), 16),
            "an old client's limit does not count"
        );
    }

    /// Whether a send with these properties begins a transaction; `None` if it is refused.
    fn begins(properties: &'static [u8], change: impl Fn(&mut SendHeader<'_>)) -> Option<bool> {
        let mut header = header("T", 0);
        header.properties = Cow::Borrowed(properties);
        change(&mut header);
        let sent = Sent::read(properties);
        begins_transaction(&sent, &header, &TransactionRules::rocketmq()).ok()
    }

    #[test]
    fn tran_msg_begins_a_transaction_whatever_the_flags_say() {
        const HALF: &[u8] = b"TRAN_MSG\x01true\x02PGROUP\x01g\x02";
        assert_eq!(begins(HALF, |_| ()), Some(true));
        assert_eq!(begins(HALF, |header| header.sys_flag = 4), Some(true));
        assert_eq!(begins(b"", |_| ()), Some(false));
        assert_eq!(begins(b"TRAN_MSG\x01false\x02", |_| ()), Some(false));
        assert_eq!(begins(b"", |header| header.sys_flag = 8), Some(false));
        let retry = |header: &mut SendHeader<'_>| header.reconsume_times = 1;
        assert_eq!(begins(HALF, retry), Some(true));
        assert_eq!(
            begins(b"TRAN_MSG\x01true\x02PGROUP\x01g\x02DELAY\x013\x02", retry),
            Some(false)
        );
    }

    #[test]
    fn a_half_that_nobody_could_end_is_refused() {
        const HALF: &[u8] = b"TRAN_MSG\x01true\x02PGROUP\x01g\x02";
        assert_eq!(begins(HALF, |header| header.batch = true), None);
        assert_eq!(begins(b"TRAN_MSG\x01true\x02", |_| ()), None, "no group");
        assert_eq!(begins(b"", |header| header.sys_flag = 0x4), None);
        assert_eq!(begins(b"", |header| header.sys_flag = 0xC), None);
        let sent = Sent::read(HALF);
        let rejecting = TransactionRules {
            reject: true,
            ..TransactionRules::rocketmq()
        };
        let mut header = header("T", 0);
        header.properties = Cow::Borrowed(HALF);
        let error = begins_transaction(&sent, &header, &rejecting).unwrap_err();
        assert!(matches!(error, BrokerError::NoPermission(_)), "{error}");
    }

    #[test]
    fn bodies_have_a_size_between_one_byte_and_the_limit() {
        let check = |bytes| check_body(&Bytes::from(vec![0; bytes]), 10, false);
        assert!(check(0).is_err());
        assert!(check(1).is_ok());
        assert!(check(10).is_ok());
        let error = check(11).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the message body has 11 bytes, the limit is 10 (maxMessageSize)"
        );
    }

    #[test]
    fn members_of_a_batch_have_their_own_body_properties_and_tags() {
        let items = [
            batch::BatchItem {
                flag: 7,
                body: Bytes::from_static(b"one"),
                properties: Bytes::from_static(b"TAGS\x01a\x02KEYS\x01k l\x02UNIQ_KEY\x01U"),
            },
            batch::BatchItem {
                flag: 0,
                body: Bytes::from_static(b"two"),
                properties: Bytes::from_static(b"k\x01v"),
            },
        ];
        let common = NewMessage {
            queue: crate::shard::message::QueueKey {
                topic_id: 0,
                queue_id: 0,
            },
            topic: Arc::from("T"),
            body: batch::encode(&items),
            properties: Bytes::new(),
            tags_code: 0,
            flag: 0,
            sys_flag: 0,
            born_timestamp: 5,
            born_host: "127.0.0.1:1".parse().unwrap(),
            reconsume_times: 0,
            prepared_transaction_offset: 0,
            key_places: None,
        };
        let members = batch_of(&common).unwrap();
        assert_eq!(members.len(), 2);
        assert_eq!((members[0].flag, members[0].tags_code), (7, 97));
        assert_eq!((members[1].flag, members[1].tags_code), (0, 0));
        assert_eq!(members[1].body, "two");
        assert_eq!(members[1].properties, "k\x01v");
        assert_eq!(members[1].born_timestamp, 5);
        let found_by = |keys, unique| MessageKeys { unique, keys };
        assert_eq!(members[0].keys(), found_by(b"k l", b"U"));
        assert_eq!(members[1].keys(), found_by(b"", b""));
    }
}
