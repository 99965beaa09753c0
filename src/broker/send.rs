//! SEND_MESSAGE (10), SEND_MESSAGE_V2 (310), SEND_BATCH_MESSAGE (320).
//!
//! `send_plan.rs` decides; the rest is thin. The hot road is one call of [`ShardHandle::append`] whose callback answers: no
//! task, and no allocation but the properties string and the ids of the answer. What needs another core first (a topic
//! to create, a retry) becomes a task. A message for later and a half message go the same way as
//! another request. Source: `SendMessageProcessor`, `AbstractSendMessageProcessor`.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use smallvec::{SmallVec, smallvec};

use crate::base::names;
use crate::broker::delay::Due;
use crate::broker::dispatch::Broker;
use crate::broker::error::BrokerError;
use crate::broker::recall::RecallHandle;
use crate::broker::send_plan::{
    Plan, SendHeader, batch_of, begins_transaction, check_body, check_properties, is_dead, plan,
    queue_of_priority,
};
use crate::broker::sent_properties::{Dropped, Sent};
use crate::broker::statistics::Counted;
use crate::broker::topics::{self, PERM_READ, PERM_WRITE};
use crate::broker::transaction::SPARE_BYTES;
use crate::broker::underway::Ticket;
use crate::io::body::Body;
use crate::server::connection::Responder;
use crate::shard::ShardHandle;
use crate::shard::message::{
    Appended, Copies, Delayed, LocalReply, NewHalf, NewMessage, ShardReply, ShardRequest,
};
use crate::shard::meta::{MetaCommand, Topic};
use crate::wire::properties::{self, PropertiesBuilder, name};
use crate::wire::record::{
    SYS_FLAG_BORN_HOST_V6, SYS_FLAG_MULTI_TAGS, SYS_FLAG_STORE_HOST_V6, SYS_FLAG_TRANSACTION,
};
use crate::wire::remoting::body::TopicConfig;
use crate::wire::remoting::code::response;
use crate::wire::remoting::command::{Command, Outgoing};
use crate::wire::remoting::stored::Stored;

/// Room for the properties that a delayed message gets.
const DELAYED_BYTES: usize = 256;

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

/// A UNIQ_KEY, which has 32 digits if a client of RocketMQ made it: those are no allocation.
#[derive(Clone, Debug)]
struct UniqueKey(SmallVec<[u8; 32]>);

impl UniqueKey {
    /// Bytes that are no UTF-8 become U+FFFD, as in Java.
    fn of(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => text.into(),
            Err(_) => String::from_utf8_lossy(bytes).as_ref().into(),
        }
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl From<&str> for UniqueKey {
    fn from(text: &str) -> Self {
        Self(SmallVec::from_slice(text.as_bytes()))
    }
}

/// What the answer to a send needs besides where it was stored.
struct SendAnswer {
    responder: Responder,
    queue_id: u32,
    unique_key: Option<UniqueKey>,
    rare: Option<Box<RareAnswer>>,
    /// Topic of the statistics: a half message counts for the topic of the halves, as in RocketMQ.
    counted_topic: Arc<str>,
    message_type: &'static str,
    body_bytes: u64,
    _underway: Ticket,
}

/// What the answers to few sends need.
#[derive(Default)]
struct RareAnswer {
    recall_handle: Option<String>,
    /// A dead letter: its first topic, and the group that gave it up.
    dead_of: Option<(Arc<str>, Arc<str>)>,
}

/// The messages of a send as they are to be stored.
struct Prepared {
    messages: SmallVec<[NewMessage; 1]>,
    /// For the answer.
    unique_key: Option<UniqueKey>,
    /// Not now. Never of a batch.
    due: Option<Due>,
    /// A half message, whose producer is asked after so many milliseconds. Never of a batch, nor with `due`.
    check_after_ms: Option<u64>,
    /// `message_type` of the metrics.
    message_type: &'static str,
    /// It is no message but takes one back that is due when this says. Never of a batch.
    is_recall: bool,
}

impl Prepared {
    /// The request that stores it.
    fn into_request(self) -> ShardRequest {
        let mut messages = self.messages.into_vec();
        match (self.check_after_ms, self.due) {
            (Some(check_after_ms), _) if messages.len() == 1 => {
                ShardRequest::AppendHalf(Box::new(NewHalf {
                    message: messages.remove(0),
                    check_after_ms,
                }))
            }
            (None, Some(due)) if messages.len() == 1 => {
                ShardRequest::AppendDelayed(Box::new(Delayed {
                    message: messages.remove(0),
                    due_ms: due.at_ms,
                }))
            }
            _ => ShardRequest::Append(messages.into_boxed_slice()),
        }
    }
}

/// The code of an answer that tells where something was stored.
pub(super) fn stored_code(copies: Copies) -> i32 {
    match copies {
        Copies::Enough => response::SUCCESS,
        Copies::NoSlave => response::SLAVE_NOT_AVAILABLE,
        Copies::Late => response::FLUSH_SLAVE_TIMEOUT,
    }
}

impl Broker {
    /// Entrance of all sends.
    pub(super) fn send(&self, command: Command, responder: Responder) {
        if self.options.is_slave() {
            return self.pass_on(command, responder);
        }
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
        mut target: Target,
        responder: Responder,
    ) {
        let peer = responder.connection.peer();
        match self.messages(header, body, now_ms, &mut target, peer) {
            Ok(mut prepared) => {
                let Some(shard) = self.shard.shard_of_queue(&target.topic, target.queue_id) else {
                    let error = topics::no_queue(&target.topic.name, target.queue_id);
                    return self.refuse_send(error, responder);
                };
                let mut answer = SendAnswer {
                    responder,
                    queue_id: target.queue_id,
                    unique_key: prepared.unique_key.take(),
                    rare: None,
                    counted_topic: match prepared.check_after_ms {
                        Some(_) => Arc::from(names::TRANS_HALF_TOPIC),
                        None => target.topic.name.clone(),
                    },
                    message_type: prepared.message_type,
                    body_bytes: body.len() as u64,
                    _underway: self.underway.begin(body.len()),
                };
                if target.dead {
                    let group = names::group_of_dlq_topic(&target.topic.name);
                    let topic = properties::get(&header.properties, name::RETRY_TOPIC);
                    let topic = topic.unwrap_or(&target.topic.name);
                    let dead_of = (Arc::from(topic), Arc::from(group.unwrap_or_default()));
                    answer.rare.get_or_insert_default().dead_of = Some(dead_of);
                }
                let broker = self.clone();
                if prepared.due.is_none() && prepared.check_after_ms.is_none() {
                    return self.shard.append(shard, prepared.messages, move |reply| {
                        broker.answer_send(answer, reply)
                    });
                }
                if let Some(due) = prepared.due
                    && due.is_timer
                    && !names::is_retry_topic(&target.topic.name)
                {
                    let key = answer.unique_key.as_ref().map(UniqueKey::as_str);
                    let handle = RecallHandle {
                        topic: target.topic.name.to_string(),
                        broker: self.options.broker.to_string(),
                        at_ms: due.at_ms,
                        unique_key: key.unwrap_or_default().to_owned(),
                    };
                    answer.rare.get_or_insert_default().recall_handle = Some(handle.encode());
                }
                if let (true, Some(due)) = (prepared.is_recall, prepared.due) {
                    let mut messages = prepared.messages.into_vec();
                    let Some(recall) = messages.pop() else { return };
                    self.shard.spawn(async move {
                        match broker.store_recall(&target.topic, recall, due.at_ms).await {
                            Ok(stored) => broker.answer_send(answer, ShardReply::Appended(stored)),
                            Err(error) => broker.refuse_send(error, answer.responder),
                        }
                    });
                    return;
                }
                self.shard
                    .call(shard, prepared.into_request(), move |reply| {
                        broker.answer_send(answer, reply)
                    });
            }
            Err(error) => self.refuse_send(error, responder),
        }
    }

    /// The messages of a send as they are to be stored.
    fn messages(
        &self,
        header: &SendHeader<'_>,
        body: &Bytes,
        now_ms: u64,
        target: &mut Target,
        born_host: SocketAddr,
    ) -> Result<Prepared, BrokerError> {
        check_body(body, self.options.message_bytes_max, header.batch)?;
        let sent = Sent::read(&header.properties);
        if !header.batch && !target.dead {
            let write_queues = target.topic.config.write_queue_nums;
            target.queue_id = queue_of_priority(&sent, write_queues).unwrap_or(target.queue_id);
        }
        let config = &target.topic.config;
        let compacted = config.attributes.get("cleanup.policy").map(String::as_str);
        if compacted == Some("COMPACTION") && sent.keys.is_none() && !header.batch {
            return Err(BrokerError::MessageIllegal(format!(
                "the topic '{}' is compacted by key, so its messages need the property KEYS",
                target.topic.name
            )));
        }
        let is_half = !names::is_retry_topic(&target.topic.name)
            && !target.dead
            && begins_transaction(&sent, header, &self.options.transactions)?;
        // Nobody waits for a dead letter.
        let due = match target.dead {
            true => None,
            false => self.options.delay.due(&sent.delay, now_ms)?,
        };
        let is_recall = sent.is_recall && !header.batch && !is_half && !target.dead;
        if is_recall && !due.is_some_and(|due| due.is_timer) {
            return Err(BrokerError::MessageIllegal(
                "a message with TIMER_DEL_UNIQKEY takes back one that is due at a time to come, which has to be its own time too (TIMER_DELIVER_MS)".into(),
            ));
        }
        if due.is_some() && header.batch {
            return Err(BrokerError::MessageIllegal(
                "a batch cannot be delayed; send its messages one by one".into(),
            ));
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
            key_places: None,
        };
        if header.batch {
            let unique_key = sent.unique_key.map(UniqueKey::of);
            return Ok(Prepared {
                messages: batch_of(&message)?,
                unique_key,
                due: None,
                check_after_ms: None,
                message_type: sent.message_type(),
                is_recall: false,
            });
        }
        let (unique_key, added) = match sent.unique_key {
            Some(key) => (UniqueKey::of(key), false),
            None => (self.next_unique_key(now_ms).as_str().into(), true),
        };
        let (properties, key_places) = self.broker_properties.complete(
            &header.properties,
            &sent,
            added.then_some(unique_key.as_str()),
            match due {
                _ if target.dead => Dropped::Level,
                Some(due) if !due.is_timer => Dropped::Times,
                _ => Dropped::Nothing,
            },
        );
        let (topic, queue_id) = (&target.topic.name, target.queue_id);
        if is_half {
            let properties = half_properties(&properties, topic, queue_id, unique_key.as_str());
            check_properties(properties.len() + SPARE_BYTES)?;
            return Ok(Prepared {
                messages: smallvec![NewMessage {
                    properties,
                    sys_flag: message.sys_flag & !SYS_FLAG_TRANSACTION,
                    ..message
                }],
                unique_key: Some(unique_key),
                // Its delay begins with the commit; what is illegal is refused now.
                due: None,
                message_type: sent.message_type(),
                is_recall: false,
                check_after_ms: Some(self.options.transactions.immunity_ms(&header.properties)),
            });
        }
        let (properties, key_places) = match due {
            Some(due) => {
                let properties = delayed_properties(&properties, topic, queue_id, due, now_ms);
                (properties, None)
            }
            None => (properties, key_places),
        };
        check_properties(properties.len())?;
        let message = NewMessage {
            properties,
            key_places,
            ..message
        };
        Ok(Prepared {
            messages: smallvec![message],
            unique_key: Some(unique_key),
            due,
            check_after_ms: None,
            message_type: sent.message_type(),
            is_recall,
        })
    }

    fn answer_send(&self, answer: SendAnswer, reply: LocalReply) {
        let appended = match reply {
            ShardReply::Appended(appended) => appended,
            ShardReply::Refused(refusal) => {
                return self.refuse_send(refusal.into(), answer.responder);
            }
            other => return self.refuse_send(BrokerError::unexpected(&other), answer.responder),
        };
        let count = appended.physical_offsets.len() as u64;
        self.count(
            Counted::In,
            &answer.counted_topic,
            answer.message_type,
            appended.store_timestamp as u64,
            (count, answer.body_bytes),
        );
        let rare = answer.rare.as_deref();
        if let Some((topic, group)) = rare.and_then(|rare| rare.dead_of.as_ref()) {
            let now_ms = appended.store_timestamp as u64;
            let sum = (count, answer.body_bytes);
            self.count(Counted::Dead, topic, group, now_ms, sum);
        }
        answer.responder.send_stored(&self.stored(
            answer.queue_id,
            answer.unique_key.as_ref().map(UniqueKey::as_str),
            rare.and_then(|rare| rare.recall_handle.as_deref()),
            &appended,
        ));
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
        let mut target = Target::new(topic, queue_id);
        let prepared = self.messages(&header, &command.body, now_ms, &mut target, born_host)?;
        let (topic, queue_id) = (&target.topic, target.queue_id);
        let core = self
            .shard
            .shard_of_queue(topic, queue_id)
            .ok_or_else(|| topics::no_queue(&topic.name, queue_id))?;
        let unique_key = prepared.unique_key.clone();
        match self.ask(core, prepared.into_request()).await? {
            ShardReply::Appended(appended) => Ok(self
                .stored(
                    queue_id,
                    unique_key.as_ref().map(UniqueKey::as_str),
                    None,
                    &appended,
                )
                .compose()),
            other => Err(BrokerError::unexpected(&other)),
        }
    }

    /// Where something was stored, for the answer.
    fn stored<'a>(
        &'a self,
        queue_id: u32,
        unique_key: Option<&'a str>,
        recall_handle: Option<&'a str>,
        appended: &'a Appended,
    ) -> Stored<'a> {
        Stored {
            // The message is stored with each of these codes; clients tell their users by the status of the result.
            code: stored_code(appended.copies),
            host: self.options.store_host,
            physical_offsets: &appended.physical_offsets,
            queue_id,
            queue_offset: appended.queue_offset,
            transaction_id: unique_key,
            recall_handle,
            region: &self.options.region,
            trace_on: self.options.trace_on,
        }
    }

    /// Answers of the send processor carry the region and the trace switch, errors too.
    pub(super) fn with_region(&self, head: Outgoing) -> Outgoing {
        head.field("MSG_REGION", self.options.region.clone())
            .field("TRACE_ON", self.options.trace_on)
    }

    pub(super) fn refuse_send(&self, error: BrokerError, responder: Responder) {
        let head = self.with_region(self.refusal(&error));
        responder.send(head, Body::Empty);
    }
}

/// The properties of a delayed message: also where it goes, as RocketMQ's delivered messages have it, and its times.
pub(super) fn delayed_properties(
    properties: &[u8],
    topic: &str,
    queue_id: u32,
    due: Due,
    now_ms: u64,
) -> Bytes {
    let mut delayed = PropertiesBuilder::from_bytes(properties, DELAYED_BYTES);
    if due.is_timer {
        delayed.set(name::TIMER_OUT_MS, &due.at_ms.to_string());
        delayed.set(name::TIMER_ENQUEUE_MS, &now_ms.to_string());
    }
    delayed.set(name::REAL_TOPIC, topic);
    delayed.set(name::REAL_QUEUE_ID, &queue_id.to_string());
    delayed.finish()
}

/// The properties of a half message: also where it goes, and its transaction. Source: `parseHalfMessageInner`.
fn half_properties(properties: &[u8], topic: &str, queue_id: u32, unique_key: &str) -> Bytes {
    let mut half = PropertiesBuilder::from_bytes(properties, DELAYED_BYTES);
    half.set(name::TRANSACTION_ID, unique_key);
    half.set(name::REAL_TOPIC, topic);
    half.set(name::REAL_QUEUE_ID, &queue_id.to_string());
    half.finish()
}
