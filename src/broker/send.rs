//! SEND_MESSAGE (10), SEND_MESSAGE_V2 (310), SEND_BATCH_MESSAGE (320).
//!
//! [`plan`] decides, in RocketMQ's order of checks, from the header and the published metadata; the rest is thin. The hot
//! road is one call of [`ShardHandle::append`] whose callback answers: no task, and no allocation but the properties
//! string and the ids of the answer. What needs another core first (a topic to create, a retry) becomes a task.
//!
//! Source: `SendMessageProcessor`, `AbstractSendMessageProcessor.msgCheck`, `TopicConfigManager.createTopicInSendMessage`.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use smallvec::{SmallVec, smallvec};

use crate::base::limits::PROPERTIES_BYTES_MAX;
use crate::base::names;
use crate::base::offset::PhysicalOffset;
use crate::broker::delay::Delay;
use crate::broker::dispatch::Broker;
use crate::broker::error::BrokerError;
use crate::broker::options::BrokerOptions;
use crate::broker::sent_properties::Sent;
use crate::broker::topics::{self, PERM_INHERIT, PERM_READ, PERM_WRITE};
use crate::io::body::Body;
use crate::server::connection::Responder;
use crate::shard::ShardHandle;
use crate::shard::message::{Appended, LocalReply, NewMessage, ShardReply, ShardRequest};
use crate::shard::meta::{Meta, MetaCommand, Topic};
use crate::wire::message_id::MessageId;
use crate::wire::record::{
    SYS_FLAG_BORN_HOST_V6, SYS_FLAG_MULTI_TAGS, SYS_FLAG_STORE_HOST_V6, SYS_FLAG_TRANSACTION,
    SYS_FLAG_TRANSACTION_COMMIT,
};
use crate::wire::remoting::body::TopicConfig;
use crate::wire::remoting::code::request;
use crate::wire::remoting::command::{Command, Outgoing};
use crate::wire::{batch, properties};

/// From this version on a client's own limit of retries counts (`MQVersion.V3_4_9`).
const VERSION_OWN_RETRY_LIMIT: i32 = 121;
/// Topic system flag of topics made by a client with a unit (`TopicSysFlag.FLAG_UNIT`).
const TOPIC_FLAG_UNIT: i32 = 1;

/// Header of a send, under either set of names.
#[derive(Debug)]
struct SendHeader<'a> {
    topic: Cow<'a, str>,
    default_topic: Cow<'a, str>,
    default_topic_queues: i32,
    queue_id: i32,
    sys_flag: i32,
    born_timestamp: i64,
    flag: i32,
    properties: Bytes,
    reconsume_times: i32,
    unit_mode: bool,
    max_reconsume_times: Option<i32>,
    batch: bool,
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
    fn read(command: &'a Command, now_ms: u64) -> Result<Self, BrokerError> {
        let long = matches!(
            command.code,
            request::SEND_MESSAGE | request::SEND_REPLY_MESSAGE
        );
        let names = if long { &LONG } else { &SHORT };
        Ok(Self {
            topic: command.required_text(names.topic)?,
            default_topic: command.text(names.default_topic).unwrap_or_default(),
            default_topic_queues: command.int32(names.default_topic_queues)?.unwrap_or(4),
            queue_id: command.required_i32(names.queue_id)?,
            sys_flag: command.int32(names.sys_flag)?.unwrap_or(0),
            born_timestamp: command.int(names.born_timestamp)?.unwrap_or(now_ms as i64),
            flag: command.int32(names.flag)?.unwrap_or(0),
            properties: command.shared(names.properties).unwrap_or_default(),
            reconsume_times: command.int32(names.reconsume_times)?.unwrap_or(0),
            unit_mode: command.flag(names.unit_mode),
            max_reconsume_times: command.int32(names.max_reconsume_times)?,
            batch: command.code == request::SEND_BATCH_MESSAGE || command.flag(names.batch),
        })
    }
}

/// What to do with a send.
#[derive(Debug, PartialEq)]
enum Plan {
    /// Store it in this queue.
    Append { topic: Arc<Topic>, queue_id: u32 },
    /// The topic has to be made first, then it is planned again.
    Create(TopicConfig),
    /// It goes to the retry topic of a group, or to its dead letter topic.
    Retry { topic: Arc<Topic>, queue_id: u32 },
}

/// Where a message goes in the end.
struct Target {
    topic: Arc<Topic>,
    queue_id: u32,
    /// The dead letter topic: without delay.
    dead: bool,
}

impl Target {
    fn new(topic: Arc<Topic>, queue_id: u32) -> Self {
        Self {
            topic,
            queue_id,
            dead: false,
        }
    }
}

/// Decides on a send. `random` chooses a queue if the client did not.
fn plan(
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
    names::check_topic(name)?;
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

/// Whether a message that comes back to its group goes to the dead letter topic.
fn is_dead(reconsume_times: i32, version: i32, own_limit: Option<i32>, group_limit: i32) -> bool {
    let limit = match own_limit {
        Some(own) if version >= VERSION_OWN_RETRY_LIMIT => own,
        _ => group_limit,
    };
    reconsume_times > limit
}

/// What half and delayed messages are told until the broker can hold them.
fn refuse_what_cannot_wait(sent: &Sent<'_>, sys_flag: i32, now_ms: u64) -> Result<(), BrokerError> {
    let transaction = sys_flag & SYS_FLAG_TRANSACTION;
    if sent.half || (transaction != 0 && transaction != SYS_FLAG_TRANSACTION_COMMIT) {
        return Err(BrokerError::MessageIllegal(
            "this broker does not offer transactional messages yet; send it without a transaction"
                .into(),
        ));
    }
    match sent.delay.delay(now_ms) {
        Ok(None) => Ok(()),
        Ok(Some(Delay::Level(level))) => Err(BrokerError::MessageIllegal(format!(
            "this broker does not offer delayed messages yet; send it without the delay level {level} (property DELAY)"
        ))),
        Ok(Some(Delay::At(at_ms))) => Err(BrokerError::MessageIllegal(format!(
            "this broker does not offer delayed messages yet; send it without the timer ({} ms from now)",
            at_ms.saturating_sub(now_ms)
        ))),
        Err(error) => Err(BrokerError::MessageIllegal(error.to_string())),
    }
}

/// What the answer to a send needs besides where it was stored.
struct SendAnswer {
    responder: Responder,
    queue_id: u32,
    unique_key: Option<String>,
}

impl Broker {
    /// Entrance of all sends.
    pub(super) fn send(&self, command: Command, responder: Responder) {
        let now_ms = self.shard.now_ms();
        let header = match SendHeader::read(&command, now_ms) {
            Ok(header) => header,
            Err(error) => return self.refuse_send(error, responder),
        };
        match self.plan_send(&header) {
            Ok(Plan::Append { topic, queue_id }) => {
                let target = Target::new(topic, queue_id);
                self.append_send(&header, &command.body, now_ms, target, responder);
            }
            Ok(Plan::Create(config)) => {
                drop(header);
                let broker = self.clone();
                self.shard.spawn(async move {
                    match broker.create_topic(config).await {
                        Ok(()) => broker.send_slowly(command, responder).await,
                        Err(error) => broker.refuse_send(error, responder),
                    }
                });
            }
            Ok(Plan::Retry { .. }) => {
                drop(header);
                let broker = self.clone();
                self.shard
                    .spawn(async move { broker.send_slowly(command, responder).await });
            }
            Err(error) => self.refuse_send(error, responder),
        }
    }

    fn plan_send(&self, header: &SendHeader<'_>) -> Result<Plan, BrokerError> {
        let random = if header.queue_id < 0 {
            self.shard.random_u64()
        } else {
            0
        };
        plan(header, &self.shard.meta(), &self.options, random)
    }

    /// A send in a task: its topic has just been made, or it is a retry. It is planned again.
    async fn send_slowly(&self, command: Command, responder: Responder) {
        let now_ms = self.shard.now_ms();
        let header = match SendHeader::read(&command, now_ms) {
            Ok(header) => header,
            Err(error) => return self.refuse_send(error, responder),
        };
        let target = match self.plan_send(&header) {
            Ok(Plan::Append { topic, queue_id }) => Ok(Target::new(topic, queue_id)),
            Ok(Plan::Retry { topic, queue_id }) => {
                self.retry_target(&header, command.version, topic, queue_id)
                    .await
            }
            Ok(Plan::Create(config)) => Err(BrokerError::NoTopic {
                topic: config.topic_name,
            }),
            Err(error) => Err(error),
        };
        match target {
            Ok(target) => self.append_send(&header, &command.body, now_ms, target, responder),
            Err(error) => self.refuse_send(error, responder),
        }
    }

    /// A consumer sends a message to its group's retry topic itself: after too many retries, or from an ordered
    /// consumer (its group holds queue locks), it is dead. Source: `handleRetryAndDLQ`.
    async fn retry_target(
        &self,
        header: &SendHeader<'_>,
        version: i32,
        topic: Arc<Topic>,
        queue_id: u32,
    ) -> Result<Target, BrokerError> {
        let group: Arc<str> =
            Arc::from(names::group_of_retry_topic(&topic.name).unwrap_or(&topic.name));
        let group_limit = self
            .known_group(&group)
            .ok_or_else(|| BrokerError::NoGroup {
                group: group.to_string(),
            })?
            .retry_max_times;
        let dead = is_dead(
            header.reconsume_times,
            version,
            header.max_reconsume_times,
            group_limit,
        ) || self.holds_lock(&group).await?;
        if !dead {
            return Ok(Target::new(topic, queue_id));
        }
        let topic = self.dead_letter_topic(&group).await?;
        Ok(Target {
            topic,
            queue_id: 0,
            dead,
        })
    }

    async fn holds_lock(&self, group: &Arc<str>) -> Result<bool, BrokerError> {
        for core in 0..self.shard.count() {
            let request = ShardRequest::HoldsLock {
                group: group.clone(),
            };
            match self.shard.ask(core, request).await {
                ShardReply::Flag(true) => return Ok(true),
                ShardReply::Flag(false) => {}
                ShardReply::Refused(refusal) => return Err(refusal.into()),
                other => return Err(BrokerError::unexpected(&other)),
            }
        }
        Ok(false)
    }

    /// The dead letter topic of a group, made if it is not there.
    pub(super) async fn dead_letter_topic(&self, group: &str) -> Result<Arc<Topic>, BrokerError> {
        let config = topics::config(&names::dlq_topic(group), 1, PERM_READ | PERM_WRITE);
        self.topic_or_create(config).await
    }

    /// A topic by the name in `config`, made like that if it is not there.
    pub(super) async fn topic_or_create(
        &self,
        config: TopicConfig,
    ) -> Result<Arc<Topic>, BrokerError> {
        let name = config.topic_name.clone();
        if let Some(topic) = self.known_topic(&name) {
            return Ok(topic);
        }
        self.create_topic(config).await?;
        self.known_topic(&name)
            .ok_or(BrokerError::NoTopic { topic: name })
    }

    async fn create_topic(&self, config: TopicConfig) -> Result<(), BrokerError> {
        self.change(MetaCommand::CreateTopicIfAbsent(config)).await
    }

    fn append_send(
        &self,
        header: &SendHeader<'_>,
        body: &Bytes,
        now_ms: u64,
        target: Target,
        responder: Responder,
    ) {
        match self.messages(header, body, now_ms, &target, responder.connection.peer()) {
            Ok((messages, unique_key)) => {
                let Some(shard) = self.shard.shard_of_queue(&target.topic, target.queue_id) else {
                    let error = topics::no_queue(&target.topic.name, target.queue_id);
                    return self.refuse_send(error, responder);
                };
                let answer = SendAnswer {
                    responder,
                    queue_id: target.queue_id,
                    unique_key,
                };
                let broker = self.clone();
                self.shard.append(shard, messages, move |reply| {
                    broker.answer_send(answer, reply)
                });
            }
            Err(error) => self.refuse_send(error, responder),
        }
    }

    /// The messages of a send as they are to be stored, and the unique key for the answer.
    #[allow(clippy::type_complexity)] // A pair that is taken apart at once.
    fn messages(
        &self,
        header: &SendHeader<'_>,
        body: &Bytes,
        now_ms: u64,
        target: &Target,
        born_host: SocketAddr,
    ) -> Result<(SmallVec<[NewMessage; 1]>, Option<String>), BrokerError> {
        check_body(body, self.options.message_bytes_max, header.batch)?;
        let sent = Sent::read(&header.properties);
        let config = &target.topic.config;
        let compacted = config.attributes.get("cleanup.policy").map(String::as_str);
        if compacted == Some("COMPACTION") && !sent.has_keys && !header.batch {
            return Err(BrokerError::MessageIllegal(format!(
                "the topic '{}' is compacted by key, so its messages need the property KEYS",
                target.topic.name
            )));
        }
        // A retry keeps its delay property and is stored at once until there is a delay engine; see `delay.rs`.
        if !names::is_retry_topic(&target.topic.name) && !target.dead {
            refuse_what_cannot_wait(&sent, header.sys_flag, now_ms)?;
        }
        let multi_tags = config.topic_filter_type == "MULTI_TAG";
        let message = NewMessage {
            queue: ShardHandle::key(&target.topic, target.queue_id),
            topic: target.topic.name.clone(),
            body: body.clone(),
            properties: Bytes::new(),
            tags_code: sent.tags_code,
            flag: header.flag,
            sys_flag: header.sys_flag & !(SYS_FLAG_BORN_HOST_V6 | SYS_FLAG_STORE_HOST_V6)
                | if multi_tags { SYS_FLAG_MULTI_TAGS } else { 0 },
            born_timestamp: header.born_timestamp,
            born_host,
            reconsume_times: header.reconsume_times,
            prepared_transaction_offset: 0,
        };
        if header.batch {
            let unique_key = sent.unique_key.map(lossy);
            return Ok((batch_of(&message)?, unique_key));
        }
        let (unique_key, added) = match sent.unique_key {
            Some(key) => (lossy(key), false),
            None => (self.next_unique_key(now_ms), true),
        };
        let properties = self.broker_properties.complete(
            &header.properties,
            &sent,
            added.then_some(unique_key.as_str()),
            target.dead,
        );
        check_properties(properties.len())?;
        let message = NewMessage {
            properties,
            ..message
        };
        Ok((smallvec![message], Some(unique_key)))
    }

    fn answer_send(&self, answer: SendAnswer, reply: LocalReply) {
        let appended = match reply {
            ShardReply::Appended(appended) => appended,
            ShardReply::Refused(refusal) => {
                return self.refuse_send(refusal.into(), answer.responder);
            }
            other => return self.refuse_send(BrokerError::unexpected(&other), answer.responder),
        };
        let head = self.stored(answer.queue_id, answer.unique_key, &appended);
        answer.responder.send(head, Body::Empty);
    }

    /// Stores a reply like any message of its topic; the header of the answer.
    pub(super) async fn store_reply(
        &self,
        command: &Command,
        born_host: SocketAddr,
    ) -> Result<Outgoing, BrokerError> {
        let now_ms = self.shard.now_ms();
        let header = SendHeader::read(command, now_ms)?;
        let Plan::Append { topic, queue_id } = self.plan_send(&header)? else {
            return Err(BrokerError::System("its topic does not exist".into()));
        };
        let core = self
            .shard
            .shard_of_queue(&topic, queue_id)
            .ok_or_else(|| topics::no_queue(&topic.name, queue_id))?;
        let target = Target::new(topic, queue_id);
        let (messages, unique_key) =
            self.messages(&header, &command.body, now_ms, &target, born_host)?;
        let request = ShardRequest::Append(messages.into_vec().into_boxed_slice());
        match self.ask(core, request).await? {
            ShardReply::Appended(appended) => Ok(self.stored(queue_id, unique_key, &appended)),
            other => Err(BrokerError::unexpected(&other)),
        }
    }

    /// The header that tells where something was stored.
    fn stored(&self, queue_id: u32, unique_key: Option<String>, appended: &Appended) -> Outgoing {
        let ids = offset_ids(self.options.store_host, &appended.physical_offsets);
        let head = Outgoing::success()
            .field("msgId", ids)
            .field("queueId", queue_id)
            .field("queueOffset", appended.queue_offset)
            .field_if("transactionId", unique_key);
        self.with_region(head)
    }

    /// Answers of the send processor carry the region and the trace switch, errors too.
    pub(super) fn with_region(&self, head: Outgoing) -> Outgoing {
        head.field("MSG_REGION", self.options.region.clone())
            .field("TRACE_ON", self.options.trace_on)
    }

    fn refuse_send(&self, error: BrokerError, responder: Responder) {
        let head = self.with_region(self.refusal(&error));
        responder.send(head, Body::Empty);
    }
}

/// The offset ids of the messages of one send, joined by commas.
fn offset_ids(host: SocketAddr, offsets: &[PhysicalOffset]) -> String {
    let mut ids = String::with_capacity(33 * offsets.len());
    for &offset in offsets {
        if !ids.is_empty() {
            ids.push(',');
        }
        MessageId { host, offset }.encode_into(&mut ids);
    }
    ids
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn check_body(body: &Bytes, limit_bytes: usize, is_batch: bool) -> Result<(), BrokerError> {
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

fn check_properties(bytes: usize) -> Result<(), BrokerError> {
    if bytes > PROPERTIES_BYTES_MAX {
        return Err(BrokerError::MessageIllegal(format!(
            "the message properties have {bytes} bytes with those of the broker, the limit is {PROPERTIES_BYTES_MAX}"
        )));
    }
    Ok(())
}

/// The messages of a batch: each with its own flag, body and properties, all else from the send.
fn batch_of(common: &NewMessage) -> Result<SmallVec<[NewMessage; 1]>, BrokerError> {
    let items = batch::decode(common.body.clone())
        .map_err(|error| BrokerError::MessageIllegal(error.to_string()))?;
    let mut messages = SmallVec::with_capacity(items.len());
    for item in items {
        check_properties(item.properties.len())?;
        messages.push(NewMessage {
            tags_code: properties::tags_code_of(&item.properties),
            flag: item.flag,
            body: item.body,
            properties: item.properties,
            ..common.clone()
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
            properties: Bytes::new(),
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

    #[test]
    fn half_and_delayed_messages_are_refused_and_past_deliveries_are_not() {
        let refused = |properties: &[u8], sys_flag| {
            refuse_what_cannot_wait(&Sent::read(properties), sys_flag, 1_000).is_err()
        };
        assert!(refused(b"TRAN_MSG\x01true\x02", 0));
        assert!(refused(b"", 0x4));
        assert!(refused(b"", 0xC));
        assert!(!refused(b"", 0x8));
        assert!(refused(b"DELAY\x011\x02", 0));
        assert!(refused(b"TIMER_DELIVER_MS\x011001\x02", 0));
        assert!(!refused(b"TIMER_DELIVER_MS\x01999\x02", 0));
        assert!(refused(b"TIMER_DELAY_MS\x01x\x02", 0));
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
    fn ids_of_a_batch_are_joined_by_commas() {
        let host = "127.0.0.1:30911".parse().unwrap();
        assert_eq!(
            offset_ids(host, &[PhysicalOffset(0), PhysicalOffset(255)]),
            "7F000001000078BF0000000000000000,7F000001000078BF00000000000000FF"
        );
    }

    #[test]
    fn members_of_a_batch_have_their_own_body_properties_and_tags() {
        let items = [
            batch::BatchItem {
                flag: 7,
                body: Bytes::from_static(b"one"),
                properties: Bytes::from_static(b"TAGS\x01a\x02"),
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
        };
        let members = batch_of(&common).unwrap();
        assert_eq!(members.len(), 2);
        assert_eq!((members[0].flag, members[0].tags_code), (7, 97));
        assert_eq!((members[1].flag, members[1].tags_code), (0, 0));
        assert_eq!(members[1].body, "two");
        assert_eq!(members[1].properties, "k\x01v");
        assert_eq!(members[1].born_timestamp, 5);
    }
}
