//! The broker of one core: request code to handler in one match, error to response code in another.
//!
//! Handlers of hot requests (send, pull) take the [`Responder`] and answer from the shard's callback. All others return an
//! [`Outcome`], at once or as a task. A oneway request is handled like any other; its [`Responder`] stays silent.

use std::cell::RefCell;
use std::future::Future;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;

use ahash::AHashMap;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::base::id::ConnectionId;
use crate::base::notify::Notify;
use crate::broker::clients::ClientTable;
use crate::broker::error::BrokerError;
use crate::broker::filters::Filters;
use crate::broker::ids::UniqueKeys;
use crate::broker::native::Native;
use crate::broker::options::BrokerOptions;
use crate::broker::routes::RouteSource;
use crate::broker::sent_properties::BrokerProperties;
use crate::broker::statistics::Statistics;
use crate::broker::to_master::MasterLink;
use crate::broker::topics;
use crate::broker::underway::Underway;
use crate::io::body::Body;
use crate::server::Handler;
use crate::server::connection::{Connection, NativeResponder, Responder};
use crate::shard::ShardHandle;
use crate::shard::message::{LocalReply, QueueBounds, QueueKey, Refusal, ShardReply, ShardRequest};
use crate::shard::meta::{MetaCommand, Topic};
use crate::wire::native;
use crate::wire::native::frame::Frame;
use crate::wire::remoting::body::SubscriptionGroupConfig;
use crate::wire::remoting::code::{request, request_name, response};
use crate::wire::remoting::command::{Command, Outgoing};
use crate::wire::remoting::json;

/// Header and body of an answer.
pub(super) struct Answer {
    pub head: Outgoing,
    pub body: Body,
}

/// Rings when the last one is gone.
struct RingOnDrop(Rc<Notify>);

impl Drop for RingOnDrop {
    fn drop(&mut self) {
        self.0.notify();
    }
}

/// What a handler comes to.
pub(super) type Outcome = Result<Answer, BrokerError>;

impl From<Outgoing> for Answer {
    fn from(head: Outgoing) -> Self {
        Self {
            head,
            body: Body::Empty,
        }
    }
}

impl Answer {
    /// Code 0 and nothing else.
    pub fn done() -> Outcome {
        Ok(Outgoing::success().into())
    }

    /// Code 0 with one header field.
    pub fn number(name: &'static str, value: i64) -> Outcome {
        Ok(Outgoing::success().field(name, value).into())
    }

    /// Code 0 with a JSON body in RocketMQ's dialect.
    pub fn json(body: &impl Serialize) -> Outcome {
        Self::json_with(Outgoing::success(), body)
    }

    /// A JSON body behind this header.
    pub fn json_with(head: Outgoing, body: &impl Serialize) -> Outcome {
        Ok(Self {
            head,
            body: Body::Bytes(json::to_vec(body).into()),
        })
    }
}

/// By queue: groups whose offset was set while they consumed, and of which this core has seen no pull since.
pub(super) type Resets = AHashMap<QueueKey, Vec<Arc<str>>>;

/// The broker as one core runs it. Cheap to clone, which each send does: all clones are the same broker.
#[derive(Clone)]
pub struct Broker(Rc<Parts>);

impl Deref for Broker {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// What a [`Broker`] is made of.
pub struct Parts {
    pub(super) shard: ShardHandle,
    pub(super) options: BrokerOptions,
    pub(super) broker_properties: BrokerProperties,
    /// Compiled subscriptions.
    pub(super) filters: Filters,
    pub(super) statistics: RefCell<Statistics>,
    pub(super) unique_keys: RefCell<UniqueKeys>,
    /// Routes of topics that other brokers have too.
    pub(super) routes: RefCell<Option<Rc<dyn RouteSource>>>,
    /// Where a slave passes sends on.
    pub(super) master_link: RefCell<Option<Rc<dyn MasterLink>>>,
    /// Groups whose home is this core.
    pub(super) clients: RefCell<ClientTable>,
    pub(super) resets: RefCell<Resets>,
    /// Sends of this core's connections without an answer.
    pub(super) underway: Rc<Underway>,
    /// Connections of this core that speak the native protocol.
    pub(super) native: Native,
    /// Connections of this core that ever sent a heartbeat: they are pushed to.
    pub(super) connections: RefCell<AHashMap<ConnectionId, Rc<Connection>>>,
}

impl Broker {
    /// Makes the broker of a core and lets it serve its groups. Before this core accepts connections.
    pub fn start(shard: ShardHandle, options: BrokerOptions) -> Self {
        let distinction = (shard.random_u64() as u32) << 8 | (shard.index() as u32 & 0xFF);
        let keys = UniqueKeys::new(options.store_host.ip(), std::process::id(), distinction);
        let native = Native::new(shard.monotonic_ms());
        let properties = BrokerProperties::new(&options.cluster, &options.region, options.trace_on);
        let broker = Self(Rc::new(Parts {
            shard,
            options,
            broker_properties: properties,
            filters: Filters::default(),
            statistics: RefCell::default(),
            unique_keys: RefCell::new(keys),
            routes: RefCell::default(),
            master_link: RefCell::default(),
            clients: RefCell::default(),
            resets: RefCell::default(),
            underway: Rc::default(),
            native,
            connections: RefCell::default(),
        }));
        broker.serve_groups();
        broker.serve_calls();
        broker.serve_checks();
        broker
    }

    /// Sets where this core asks for routes; without it the broker knows of itself only.
    pub fn set_routes(&self, source: Rc<dyn RouteSource>) {
        *self.routes.borrow_mut() = Some(source);
    }

    /// Makes the topics that a broker has from its start. Once, on one core, when the shards run.
    pub async fn create_boot_topics(&self) -> Result<(), BrokerError> {
        for config in topics::boot_topics(&self.options) {
            self.change(MetaCommand::CreateTopicIfAbsent(config))
                .await?;
        }
        Ok(())
    }

    pub(super) fn next_unique_key(&self, now_ms: u64) -> String {
        self.unique_keys.borrow_mut().next(now_ms)
    }

    /// A topic as this core knows it.
    pub(super) fn known_topic(&self, name: &str) -> Option<Arc<Topic>> {
        self.shard.meta().topics.get(name).cloned()
    }

    /// The same, or the error that says that it does not exist.
    pub(super) fn topic(&self, name: &str) -> Result<Arc<Topic>, BrokerError> {
        self.known_topic(name).ok_or_else(|| BrokerError::NoTopic {
            topic: name.to_owned(),
        })
    }

    /// A consumer group's configuration as this core knows it.
    pub(super) fn known_group(&self, group: &str) -> Option<Arc<SubscriptionGroupConfig>> {
        self.shard.meta().groups.get(group).cloned()
    }

    /// Asks a core; a refusal is an error.
    pub(super) async fn ask(
        &self,
        core: usize,
        request: ShardRequest,
    ) -> Result<LocalReply, BrokerError> {
        match self.shard.ask(core, request).await {
            ShardReply::Refused(refusal) => Err(refusal.into()),
            reply => Ok(reply),
        }
    }

    /// Asks several things at the same time; the answers come in the order of the questions.
    pub(super) async fn ask_all(
        &self,
        requests: Vec<(usize, ShardRequest)>,
    ) -> Vec<Result<LocalReply, BrokerError>> {
        let answers: Rc<RefCell<Vec<Option<LocalReply>>>> = Rc::default();
        answers.borrow_mut().resize_with(requests.len(), || None);
        let all_there = Rc::new(Notify::default());
        // Rings when the last answer came, or never will: a core that is gone drops its callback.
        let bell = Rc::new(RingOnDrop(all_there.clone()));
        for (index, (core, request)) in requests.into_iter().enumerate() {
            let (answers, bell) = (answers.clone(), bell.clone());
            self.shard.call(core, request, move |reply| {
                answers.borrow_mut()[index] = Some(reply);
                drop(bell);
            });
        }
        drop(bell);
        all_there.notified().await;
        answers
            .take()
            .into_iter()
            .map(|answer| match answer {
                Some(ShardReply::Refused(refusal)) => Err(refusal.into()),
                Some(reply) => Ok(reply),
                None => Err(Refusal::Stopping.into()),
            })
            .collect()
    }

    /// Changes topics or groups durably; done when every core knows it.
    pub(super) async fn change(&self, command: MetaCommand) -> Result<(), BrokerError> {
        self.ask_done(0, ShardRequest::Meta(Box::new(command)))
            .await
    }

    /// Asks a core for something that is answered when it is done.
    pub(super) async fn ask_done(
        &self,
        core: usize,
        request: ShardRequest,
    ) -> Result<(), BrokerError> {
        match self.ask(core, request).await? {
            ShardReply::Done => Ok(()),
            other => Err(BrokerError::unexpected(&other)),
        }
    }

    /// Core and key of a queue, if the topic has it.
    pub(super) fn owner(&self, topic: &Topic, queue_id: i64) -> Option<(usize, QueueKey)> {
        let queue_id = u32::try_from(queue_id).ok()?;
        let core = self.shard.shard_of_queue(topic, queue_id)?;
        Some((core, ShardHandle::key(topic, queue_id)))
    }

    /// Bounds of the queues `0..count` of a topic.
    pub(super) async fn bounds_of(
        &self,
        topic: &Topic,
        count: u32,
    ) -> Result<Vec<QueueBounds>, BrokerError> {
        let mut by_core: Vec<Vec<u32>> = vec![Vec::new(); self.shard.count()];
        for queue_id in 0..count {
            if let Some(core) = self.shard.shard_of_queue(topic, queue_id) {
                by_core[core].push(queue_id);
            }
        }
        let mut bounds = vec![QueueBounds::default(); count as usize];
        for (core, queues) in by_core.into_iter().enumerate() {
            if queues.is_empty() {
                continue;
            }
            let keys = queues.iter().map(|&q| ShardHandle::key(topic, q)).collect();
            match self.ask(core, ShardRequest::BoundsOf(keys)).await? {
                ShardReply::BoundsOf(answer) if answer.len() == queues.len() => {
                    for (queue, found) in queues.into_iter().zip(answer) {
                        bounds[queue as usize] = found;
                    }
                }
                other => return Err(BrokerError::unexpected(&other)),
            }
        }
        Ok(bounds)
    }

    /// The JSON body of a request.
    pub(super) fn body<T: DeserializeOwned>(&self, command: &Command) -> Result<T, BrokerError> {
        json::from_slice(&command.body).map_err(|error| BrokerError::Body {
            code: command.code,
            name: request_name(command.code).unwrap_or("unknown"),
            reason: error.to_string(),
        })
    }

    /// Answers a request with what its handler came to.
    pub(super) fn finish(&self, responder: Responder, outcome: Outcome) {
        match outcome {
            Ok(answer) => responder.send(answer.head, answer.body),
            Err(error) => responder.send(self.refusal(&error), Body::Empty),
        }
    }

    /// The header of an error answer.
    pub(super) fn refusal(&self, error: &BrokerError) -> Outgoing {
        self.statistics.borrow_mut().refused(error.reason());
        Outgoing::error(code_of(error), error.to_string())
    }

    fn later(&self, responder: Responder, task: impl Future<Output = Outcome> + 'static) {
        let broker = self.clone();
        self.shard
            .spawn(async move { broker.finish(responder, task.await) });
    }
}

impl Handler for Broker {
    fn has_room(&self) -> bool {
        self.underway.has_room()
    }

    fn handle(&self, command: Command, responder: Responder) {
        let this = || self.clone();
        match command.code {
            request::SEND_MESSAGE | request::SEND_MESSAGE_V2 | request::SEND_BATCH_MESSAGE => {
                self.send(command, responder);
            }
            request::PULL_MESSAGE | request::LITE_PULL_MESSAGE => self.pull(command, responder),
            request::CONSUMER_SEND_MSG_BACK => {
                self.later(responder, this().send_back(command));
            }

            request::END_TRANSACTION => self.later(responder, this().end_transaction(command)),
            request::RECALL_MESSAGE => {
                let born_host = responder.connection.peer();
                self.later(responder, this().recall(command, born_host));
            }
            request::RESUME_CHECK_HALF_MESSAGE => {
                self.later(responder, this().resume_check(command));
            }
            request::RINGMQ_TRANSACTIONS => self.later(responder, this().transactions(command)),
            request::POP_MESSAGE => {
                let connection = responder.connection.clone();
                self.later(responder, this().pop(command, connection));
            }
            request::ACK_MESSAGE => self.later(responder, this().ack(command)),
            request::BATCH_ACK_MESSAGE => self.later(responder, this().batch_ack(command)),
            request::CHANGE_MESSAGE_INVISIBLETIME => {
                self.later(responder, this().change_invisible_time(command));
            }
            request::PEEK_MESSAGE => self.later(responder, this().peek(command)),
            request::NOTIFICATION => self.later(responder, this().pop_notification(command)),
            request::POLLING_INFO => self.later(responder, this().polling_info(command)),
            request::QUERY_ASSIGNMENT => {
                self.later(responder, this().query_assignment(command));
            }
            request::SET_MESSAGE_REQUEST_MODE => {
                self.later(responder, this().set_request_mode(command));
            }
            request::GET_ALL_MESSAGE_REQUEST_MODE => {
                self.finish(responder, self.all_request_modes());
            }

            request::SEND_REPLY_MESSAGE | request::SEND_REPLY_MESSAGE_V2 => {
                let born_host = responder.connection.peer();
                self.later(responder, this().reply(command, born_host));
            }

            request::QUERY_CONSUMER_OFFSET => {
                self.later(responder, this().query_offset(command));
            }
            request::UPDATE_CONSUMER_OFFSET => {
                self.later(responder, this().update_offset(command));
            }
            request::GET_MAX_OFFSET => self.later(responder, this().max_offset(command)),
            request::GET_MIN_OFFSET => self.later(responder, this().min_offset(command)),
            request::SEARCH_OFFSET_BY_TIMESTAMP => {
                self.later(responder, this().search_offset(command));
            }
            request::GET_EARLIEST_MSG_STORETIME => {
                self.later(responder, this().earliest_time(command));
            }
            request::GET_ALL_CONSUMER_OFFSET => {
                self.later(responder, this().all_offsets());
            }
            request::QUERY_MESSAGE => self.later(responder, this().query_message(command)),
            request::VIEW_MESSAGE_BY_ID => self.later(responder, this().view_message(command)),

            request::HEART_BEAT => self.heartbeat(command, responder),
            request::UNREGISTER_CLIENT => {
                let task = this().unregister(command, responder.connection.id());
                self.later(responder, task);
            }
            request::GET_CONSUMER_LIST_BY_GROUP => {
                self.finish(responder, self.consumer_list(&command));
            }
            request::CHECK_CLIENT_CONFIG => {
                self.finish(responder, self.check_client(&command));
            }
            request::LOCK_BATCH_MQ => self.later(responder, this().lock_queues(command)),
            request::UNLOCK_BATCH_MQ => self.later(responder, this().unlock_queues(command)),

            request::UPDATE_AND_CREATE_TOPIC => self.later(responder, this().put_topic(command)),
            request::UPDATE_AND_CREATE_TOPIC_LIST => {
                self.later(responder, this().put_topics(command));
            }
            request::DELETE_TOPIC_IN_BROKER => {
                self.later(responder, this().delete_topic(command));
            }
            request::GET_ALL_TOPIC_CONFIG => self.finish(responder, self.all_topics(&command)),
            request::GET_TOPIC_CONFIG => self.finish(responder, self.one_topic(&command)),
            request::GET_TOPIC_STATS_INFO => {
                self.later(responder, this().topic_stats(command));
            }
            request::GET_SYSTEM_TOPIC_LIST_FROM_BROKER => {
                self.finish(responder, self.system_topics());
            }
            request::QUERY_TOPIC_CONSUME_BY_WHO => {
                self.later(responder, this().groups_of_topic(command));
            }
            request::QUERY_TOPICS_BY_CONSUMER => {
                self.later(responder, this().topics_of_group(command));
            }

            request::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP => {
                self.later(responder, this().put_group(command));
            }
            request::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST => {
                self.later(responder, this().put_groups(command));
            }
            request::DELETE_SUBSCRIPTIONGROUP => {
                self.later(responder, this().delete_group(command));
            }
            request::GET_ALL_SUBSCRIPTIONGROUP_CONFIG => {
                self.finish(responder, self.all_groups(&command));
            }
            request::GET_SUBSCRIPTIONGROUP_CONFIG => {
                self.finish(responder, self.one_group(&command));
            }
            request::GET_CONSUMER_CONNECTION_LIST => {
                self.finish(responder, self.consumer_connections(&command));
            }
            request::GET_PRODUCER_CONNECTION_LIST => {
                self.finish(responder, self.producer_connections(&command));
            }
            request::GET_ALL_PRODUCER_INFO => self.finish(responder, self.all_producers()),
            request::GET_TIMER_METRICS => self.later(responder, this().timer_metrics()),
            request::GET_CONSUME_STATS => self.later(responder, this().consume_stats(command)),
            request::GET_BROKER_CONSUME_STATS => {
                self.later(responder, this().all_consume_stats(command));
            }
            request::INVOKE_BROKER_TO_RESET_OFFSET => {
                self.later(responder, this().reset_offset(command));
            }
            request::QUERY_CONSUME_QUEUE => {
                self.later(responder, this().consume_queue(command));
            }
            request::QUERY_CONSUME_TIME_SPAN => {
                self.later(responder, this().consume_time_span(command));
            }
            request::QUERY_CORRECTION_OFFSET => {
                self.later(responder, this().correction_offsets(command));
            }
            request::CLONE_GROUP_OFFSET => self.later(responder, this().clone_offsets(command)),
            request::QUERY_SUBSCRIPTION_BY_CONSUMER => {
                self.finish(responder, self.subscription_of(&command));
            }

            request::GET_CONSUMER_RUNNING_INFO => {
                self.later(responder, this().running_info(command));
            }
            request::CONSUME_MESSAGE_DIRECTLY => {
                self.later(responder, this().consume_directly(command));
            }
            request::INVOKE_BROKER_TO_GET_CONSUMER_STATUS => {
                self.later(responder, this().consumer_status(command));
            }

            request::GET_BROKER_RUNTIME_INFO => self.later(responder, this().runtime_info()),
            request::GET_BROKER_CONFIG => self.finish(responder, self.config_text()),
            request::UPDATE_BROKER_CONFIG => {
                self.later(responder, this().update_config(command));
            }
            request::VIEW_BROKER_STATS_DATA => {
                self.later(responder, this().view_statistics(command));
            }
            request::GET_BROKER_HA_STATUS => self.later(responder, this().ha_status()),
            // What these clean is cleaned in the background all the time.
            request::CLEAN_EXPIRED_CONSUMEQUEUE
            | request::CLEAN_UNUSED_TOPIC
            | request::DELETE_EXPIRED_COMMITLOG
            | request::TRIGGER_DELETE_FILES => self.finish(responder, Answer::done()),

            code => self.finish(responder, Err(BrokerError::NotSupported { code })),
        }
    }

    fn speaks_native(&self) -> bool {
        true
    }

    fn handle_native(&self, frame: Frame, responder: NativeResponder) {
        self.native(frame, responder);
    }

    fn closed(&self, connection: &Rc<Connection>) {
        self.native_closed(connection.id());
        self.connection_closed(connection.id());
    }
}

/// The response code of an error: the only place that knows.
pub(super) fn code_of(error: &BrokerError) -> i32 {
    match error {
        BrokerError::Field(_) | BrokerError::Body { .. } | BrokerError::System(_) => {
            response::SYSTEM_ERROR
        }
        BrokerError::Name(_) | BrokerError::InvalidParameter(_) => response::INVALID_PARAMETER,
        BrokerError::Expression(_) => response::SUBSCRIPTION_PARSE_FAILED,
        BrokerError::NoTopic { .. } => response::TOPIC_NOT_EXIST,
        BrokerError::NoGroup { .. } => response::SUBSCRIPTION_GROUP_NOT_EXIST,
        BrokerError::NoSubscription { .. } => response::SUBSCRIPTION_NOT_EXIST,
        BrokerError::SubscriptionNotLatest { .. } => response::SUBSCRIPTION_NOT_LATEST,
        BrokerError::NoFilter { .. } => response::FILTER_DATA_NOT_EXIST,
        BrokerError::NoPermission(_)
        | BrokerError::OtherProtocol { .. }
        | BrokerError::SubscriptionDiffers => response::NO_PERMISSION,
        BrokerError::UnknownMember { .. } => native::code::UNKNOWN_MEMBER,
        BrokerError::StaleMember { .. } => native::code::STALE_MEMBER,
        BrokerError::MessageIllegal(_) => response::MESSAGE_ILLEGAL,
        BrokerError::Unavailable(_) => response::SERVICE_NOT_AVAILABLE,
        BrokerError::IllegalOperation(_) => response::ILLEGAL_OPERATION,
        BrokerError::NotFound(_) => response::QUERY_NOT_FOUND,
        BrokerError::NotOnline { .. } => response::CONSUMER_NOT_ONLINE,
        BrokerError::ClientTimeout(_) => response::CONSUME_MSG_TIMEOUT,
        BrokerError::NotSupported { .. } => response::REQUEST_CODE_NOT_SUPPORTED,
        BrokerError::Shard(refusal) => match refusal {
            Refusal::SpaceOnItsWay { .. }
            | Refusal::Busy { .. }
            | Refusal::TooManyTransactions { .. }
            | Refusal::MeshFull { .. } => response::SYSTEM_BUSY,
            // IN_SYNC_REPLICAS_NOT_ENOUGH has no code of its own.
            Refusal::TooFewReplicas { .. } => response::SYSTEM_ERROR,
            Refusal::NoLease
            | Refusal::Unsettled
            | Refusal::Replica
            | Refusal::DiskFull { .. }
            | Refusal::Poisoned { .. }
            | Refusal::Stopping => response::SERVICE_NOT_AVAILABLE,
            Refusal::TooLarge { .. } => response::MESSAGE_ILLEGAL,
            Refusal::NoQueue => response::TOPIC_NOT_EXIST,
            Refusal::Read { .. } => response::SYSTEM_ERROR,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overload_is_busy_and_a_full_disk_is_not_available() {
        let busy = Refusal::Busy {
            log: 0,
            pending_bytes: 2,
            limit_bytes: 1,
        };
        assert_eq!(code_of(&busy.into()), 2);
        let full = Refusal::DiskFull {
            reason: Arc::from("x"),
        };
        assert_eq!(code_of(&full.into()), 14);
        assert_eq!(code_of(&Refusal::NoQueue.into()), 17);
    }
}
