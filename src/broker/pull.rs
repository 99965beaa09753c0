//! PULL_MESSAGE (11), LITE_PULL_MESSAGE (361).
//!
//! [`plan`] decides in RocketMQ's order of checks; the owner of the queue reads, filters and holds the pull; [`head`] turns
//! what it found into a response. The body is what the shard read: page slices, never copied here.
//!
//! Source: `PullMessageProcessor`, `DefaultPullMessageResultHandler`, `PullSysFlag`.

use std::borrow::Cow;
use std::sync::Arc;

use crate::base::limits::{PULL_BYTES_MAX, PULL_MESSAGES_MAX};
use crate::base::names;
use crate::broker::dispatch::Broker;
use crate::broker::error::BrokerError;
use crate::broker::filters::{self, Filters};
use crate::broker::options::BrokerOptions;
use crate::broker::statistics::Counted;
use crate::broker::topics::{self, PERM_READ};
use crate::io::body::Body;
use crate::server::connection::Responder;
use crate::shard::ShardHandle;
use crate::shard::message::{
    LocalReply, MessageFilter, Pull, PullStatus, Pulled, QueueKey, ShardReply, ShardRequest,
};
use crate::shard::meta::{Meta, Topic};
use crate::wire::remoting::body::SubscriptionGroupConfig;
use crate::wire::remoting::code::{request, response};
use crate::wire::remoting::command::{Command, Outgoing};

const FLAG_COMMIT_OFFSET: i32 = 1;
const FLAG_SUSPEND: i32 = 2;
const FLAG_SUBSCRIPTION: i32 = 4;
/// Smallest byte limit that a client's `maxMsgBytes` has.
const BYTES_MIN: i32 = 100;

#[derive(Debug)]
struct PullHeader<'a> {
    group: Cow<'a, str>,
    topic: Cow<'a, str>,
    queue_id: i32,
    offset: i64,
    messages_max: i32,
    bytes_max: Option<i32>,
    sys_flag: i32,
    commit_offset: i64,
    suspend_ms: i64,
    sub_version: i64,
    subscription: Option<Cow<'a, str>>,
    expression_type: Option<Cow<'a, str>>,
    lite: bool,
}

impl<'a> PullHeader<'a> {
    fn read(command: &'a Command) -> Result<Self, BrokerError> {
        Ok(Self {
            group: command.required_text("consumerGroup")?,
            topic: command.required_text("topic")?,
            queue_id: command.required_i32("queueId")?,
            offset: command.required_int("queueOffset")?,
            messages_max: command.required_i32("maxMsgNums")?,
            bytes_max: command.int32("maxMsgBytes")?,
            sys_flag: command.int32("sysFlag")?.unwrap_or(0),
            commit_offset: command.int("commitOffset")?.unwrap_or(0),
            suspend_ms: command.int("suspendTimeoutMillis")?.unwrap_or(0),
            sub_version: command.int("subVersion")?.unwrap_or(0),
            subscription: command.text("subscription"),
            expression_type: command.text("expressionType"),
            lite: command.code == request::LITE_PULL_MESSAGE,
        })
    }

    fn has(&self, flag: i32) -> bool {
        self.sys_flag & flag != 0
    }
}

/// A pull that may go to its queue.
#[derive(Debug)]
struct Plan {
    topic: Arc<Topic>,
    queue_id: u32,
    filter: MessageFilter,
    /// The group is not known yet and is made first.
    new_group: Option<String>,
    group: Option<Arc<SubscriptionGroupConfig>>,
    pull: Limits,
}

/// The numbers of a pull within their bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limits {
    messages_max: u32,
    bytes_max: u32,
    suspend_ms: u64,
}

fn limits(header: &PullHeader<'_>, options: &BrokerOptions) -> Limits {
    let suspend_ms = if !header.has(FLAG_SUSPEND) || header.suspend_ms <= 0 {
        0
    } else if options.long_polling {
        (header.suspend_ms as u64).min(options.suspend_ms_max)
    } else {
        options.short_polling_ms
    };
    Limits {
        messages_max: header.messages_max.clamp(1, PULL_MESSAGES_MAX as i32) as u32,
        bytes_max: header.bytes_max.map_or(PULL_BYTES_MAX as u32, |bytes| {
            bytes.clamp(BYTES_MIN, PULL_BYTES_MAX as i32) as u32
        }),
        suspend_ms,
    }
}

fn plan(
    header: &PullHeader<'_>,
    meta: &Meta,
    options: &BrokerOptions,
    filters: &Filters,
) -> Result<Plan, BrokerError> {
    let refused = |what: String| Err(BrokerError::NoPermission(what));
    let (group, name) = (header.group.as_ref(), header.topic.as_ref());
    if !options.readable() {
        return refused(format!(
            "the broker {} gives no messages: its brokerPermission has no read bit",
            options.broker
        ));
    }
    if header.lite && !options.lite_pull {
        return refused("lite pull is off on this broker (litePullMessageEnable=false)".into());
    }
    let config = group_config(group, meta, options)?;
    if config.is_some_and(|config| !config.consume_enable) {
        return refused(format!(
            "the group '{group}' may not consume (consumeEnable=false); change it with updateSubGroup"
        ));
    }
    let topic = meta.topics.get(name).ok_or_else(|| BrokerError::NoTopic {
        topic: name.to_owned(),
    })?;
    if topic.config.perm & PERM_READ == 0 {
        return refused(format!(
            "the topic '{name}' may not be read: its permission is {}, the read bit is {PERM_READ}",
            topic.config.perm
        ));
    }
    let queues = topic.config.read_queue_nums;
    let queue_id = u32::try_from(header.queue_id)
        .ok()
        .filter(|&id| id < queues)
        .ok_or_else(|| {
            BrokerError::InvalidParameter(format!(
                "the queue id {} is illegal: the topic '{name}' has {queues} queues to read",
                header.queue_id
            ))
        })?;
    let filter = if header.has(FLAG_SUBSCRIPTION) {
        let kind = header.expression_type.as_deref();
        filters::check_type(kind, options)?;
        filters.of(kind, header.subscription.as_deref())?
    } else {
        online_filter(header, meta, config.map(Arc::as_ref), options, filters)?
    };
    Ok(Plan {
        topic: topic.clone(),
        queue_id,
        filter,
        new_group: config.is_none().then(|| group.to_owned()),
        group: config.cloned(),
        pull: limits(header, options),
    })
}

/// The group's configuration; none if it may be made, an error if it may not.
fn group_config<'m>(
    group: &str,
    meta: &'m Meta,
    options: &BrokerOptions,
) -> Result<Option<&'m Arc<SubscriptionGroupConfig>>, BrokerError> {
    let config = meta.groups.get(group);
    if config.is_none() {
        names::check_group(group)?;
        if !options.auto_create_group && !names::is_system_group(group) {
            return Err(BrokerError::NoGroup {
                group: group.to_owned(),
            });
        }
    }
    Ok(config)
}

/// The filter of what the group's heartbeats said.
fn online_filter(
    header: &PullHeader<'_>,
    meta: &Meta,
    config: Option<&SubscriptionGroupConfig>,
    options: &BrokerOptions,
    filters: &Filters,
) -> Result<MessageFilter, BrokerError> {
    let (group, name) = (header.group.as_ref(), header.topic.as_ref());
    let missing = || BrokerError::NoSubscription {
        group: group.to_owned(),
        topic: name.to_owned(),
    };
    let online = meta.consumers.get(group).ok_or_else(missing)?;
    if online.message_model == "BROADCASTING"
        && config.is_some_and(|config| !config.consume_broadcast_enable)
    {
        return Err(BrokerError::NoPermission(format!(
            "the group '{group}' may not consume by broadcasting (consumeBroadcastEnable=false)"
        )));
    }
    let subscription = online.subscriptions.get(name).ok_or_else(missing)?;
    if subscription.sub_version < header.sub_version {
        return Err(BrokerError::SubscriptionNotLatest {
            group: group.to_owned(),
            topic: name.to_owned(),
            known: subscription.sub_version,
            asked: header.sub_version,
        });
    }
    filters::check_type(subscription.expression_type.as_deref(), options)?;
    filters
        .of_subscription(subscription)
        .map_err(|reason| BrokerError::NoFilter {
            group: group.to_owned(),
            topic: name.to_owned(),
            reason,
        })
}

/// A pull that comes with its own subscription and limits, whatever the protocol.
pub(super) struct DirectPull<'a> {
    pub group: &'a str,
    pub topic: &'a str,
    pub queue_id: u32,
    pub offset: i64,
    pub messages_max: u32,
    pub bytes_max: u32,
    /// How long the owner parks it, in milliseconds.
    pub suspend_ms: u64,
    /// None: by tags.
    pub filter_kind: Option<&'a str>,
    pub filter: &'a str,
}

/// Code, remark and next offset of what the shard found for a pull at `offset`.
pub(super) fn status(
    status: PullStatus,
    offset: i64,
    next_offset: i64,
    min_offset: i64,
    max_offset: i64,
) -> (i32, &'static str, i64) {
    match status {
        PullStatus::Found => (response::SUCCESS, "FOUND", next_offset),
        PullStatus::NoMatchedMessage => (
            response::PULL_RETRY_IMMEDIATELY,
            "NO_MATCHED_MESSAGE",
            next_offset,
        ),
        PullStatus::NoMessageInQueue if offset == max_offset => {
            (response::PULL_NOT_FOUND, "NO_MESSAGE_IN_QUEUE", max_offset)
        }
        PullStatus::NoMessageInQueue => (
            response::PULL_OFFSET_MOVED,
            "NO_MESSAGE_IN_QUEUE",
            max_offset,
        ),
        PullStatus::OffsetOverflowOne => (response::PULL_NOT_FOUND, "OFFSET_OVERFLOW_ONE", offset),
        PullStatus::OffsetOverflowBadly => (
            response::PULL_OFFSET_MOVED,
            "OFFSET_OVERFLOW_BADLY",
            max_offset,
        ),
        PullStatus::OffsetTooSmall => (response::PULL_OFFSET_MOVED, "OFFSET_TOO_SMALL", min_offset),
    }
}

/// The response of a pull. Clients need all four numbers with every one of the four codes.
fn head<B>(
    pulled: &Pulled<B>,
    offset: i64,
    group_flag: i32,
    topic_flag: i32,
    suggested: i64,
) -> Outgoing {
    let (code, remark, next_offset) = status(
        pulled.status,
        offset,
        pulled.next_offset,
        pulled.min_offset,
        pulled.max_offset,
    );
    Outgoing::success()
        .with_code(code)
        .with_remark(remark)
        .field("suggestWhichBrokerId", suggested)
        .field("nextBeginOffset", next_offset)
        .field("minOffset", pulled.min_offset)
        .field("maxOffset", pulled.max_offset)
        .field("groupSysFlag", group_flag)
        .field("topicSysFlag", topic_flag)
}

/// The broker that the next pull of this queue should go to: a group's `whichBrokerWhenConsumeSlowly` while it is far behind,
/// if slaves may be read (`slaveReadEnable`), else the master. A slave keeps those that are.
fn suggested(
    options: &BrokerOptions,
    group: Option<&SubscriptionGroupConfig>,
    is_far_behind: bool,
) -> i64 {
    if options.is_slave() {
        return if is_far_behind { options.broker_id } else { 0 };
    }
    match group {
        Some(group) if options.slave_read && is_far_behind => {
            group.which_broker_when_consume_slowly
        }
        _ => 0,
    }
}

/// What the answer to a pull needs besides what was found.
struct PullAnswer {
    responder: Responder,
    offset: i64,
    topic: Arc<Topic>,
    group: Option<Arc<SubscriptionGroupConfig>>,
}

impl Broker {
    /// Entrance of all pulls.
    pub(super) fn pull(&self, command: Command, responder: Responder) {
        match self.plan_pull(&command) {
            Ok((
                Plan {
                    new_group: Some(group),
                    ..
                },
                _,
            )) => {
                let broker = self.clone();
                self.shard.spawn(async move {
                    match broker.create_group(&group).await {
                        Ok(()) => broker.pull_of_new_group(&command, responder),
                        Err(error) => broker.finish(responder, Err(error)),
                    }
                });
            }
            Ok((plan, pull)) => self.start_pull(plan, pull, responder),
            Err(error) => self.finish(responder, Err(error)),
        }
    }

    /// After its group was made, which must be known now.
    fn pull_of_new_group(&self, command: &Command, responder: Responder) {
        match self.plan_pull(command) {
            Ok((plan, pull)) => self.start_pull(plan, pull, responder),
            Err(error) => self.finish(responder, Err(error)),
        }
    }

    fn plan_pull(&self, command: &Command) -> Result<(Plan, Pull), BrokerError> {
        let header = PullHeader::read(command)?;
        let plan = plan(&header, &self.shard.meta(), &self.options, &self.filters)?;
        let commit = (header.has(FLAG_COMMIT_OFFSET) && header.commit_offset >= 0)
            .then(|| (Arc::from(header.group.as_ref()), header.commit_offset));
        let pull = Pull {
            queue: ShardHandle::key(&plan.topic, plan.queue_id),
            offset: header.offset,
            messages_max: plan.pull.messages_max,
            bytes_max: plan.pull.bytes_max,
            filter: plan.filter.clone(),
            suspend_ms: plan.pull.suspend_ms,
            commit,
        };
        Ok((plan, pull))
    }

    /// Judges a pull as one of remoting, and makes the request for the queue's owner. The group has to exist.
    pub(super) fn plan_direct_pull(
        &self,
        direct: &DirectPull<'_>,
    ) -> Result<(Arc<Topic>, Pull), BrokerError> {
        let header = PullHeader {
            group: direct.group.into(),
            topic: direct.topic.into(),
            queue_id: i32::try_from(direct.queue_id).unwrap_or(i32::MAX),
            offset: direct.offset,
            messages_max: direct.messages_max as i32,
            bytes_max: Some(i32::try_from(direct.bytes_max).unwrap_or(i32::MAX)),
            sys_flag: FLAG_SUBSCRIPTION,
            commit_offset: 0,
            suspend_ms: 0,
            sub_version: 0,
            subscription: Some(direct.filter.into()),
            expression_type: direct.filter_kind.map(Cow::Borrowed),
            lite: false,
        };
        let plan = plan(&header, &self.shard.meta(), &self.options, &self.filters)?;
        if let Some(group) = plan.new_group {
            return Err(BrokerError::NoGroup { group });
        }
        let pull = Pull {
            queue: ShardHandle::key(&plan.topic, plan.queue_id),
            offset: direct.offset,
            messages_max: plan.pull.messages_max,
            bytes_max: plan.pull.bytes_max,
            filter: plan.filter,
            suspend_ms: direct.suspend_ms,
            commit: None,
        };
        Ok((plan.topic, pull))
    }

    fn start_pull(&self, plan: Plan, pull: Pull, responder: Responder) {
        if let Some(group) = self.take_reset(pull.queue, plan.group.as_deref()) {
            let broker = self.clone();
            self.shard
                .spawn(async move { broker.pull_after_reset(group, plan, pull, responder).await });
            return;
        }
        self.pull_of_owner(plan, pull, responder);
    }

    /// The group, if its offset of the queue was set since this core saw a pull of it.
    fn take_reset(
        &self,
        queue: QueueKey,
        group: Option<&SubscriptionGroupConfig>,
    ) -> Option<Arc<str>> {
        let mut resets = self.resets.borrow_mut();
        if resets.is_empty() {
            return None;
        }
        let groups = resets.get_mut(&queue)?;
        let at = groups
            .iter()
            .position(|name| group.is_some_and(|group| **name == *group.group_name))?;
        let group = groups.swap_remove(at);
        if groups.is_empty() {
            resets.remove(&queue);
        }
        Some(group)
    }

    /// The first pull after the group's offset was set: the member goes on there, if it is not there already.
    async fn pull_after_reset(
        &self,
        group: Arc<str>,
        plan: Plan,
        pull: Pull,
        responder: Responder,
    ) {
        let reset = match self.shard.shard_of_queue(&plan.topic, plan.queue_id) {
            Some(core) => {
                let request = ShardRequest::TakeReset {
                    group,
                    queue: pull.queue,
                    asked: pull.offset,
                };
                match self.ask(core, request).await {
                    Ok(ShardReply::Offset(Some(offset))) => self
                        .ask(core, ShardRequest::Bounds(pull.queue))
                        .await
                        .map(|bounds| Some((offset, bounds))),
                    Ok(_) => Ok(None),
                    Err(error) => Err(error),
                }
            }
            None => Ok(None),
        };
        match reset {
            Ok(Some((offset, ShardReply::Bounds(bounds)))) => {
                let head = Outgoing::success()
                    .with_code(response::PULL_OFFSET_MOVED)
                    .with_remark("OFFSET_RESET")
                    .field("suggestWhichBrokerId", 0i64)
                    .field("nextBeginOffset", offset)
                    .field("minOffset", bounds.min_offset)
                    .field("maxOffset", bounds.max_offset);
                responder.send(head, Body::Empty);
            }
            Ok(Some((_, other))) => self.finish(responder, Err(BrokerError::unexpected(&other))),
            Ok(None) => self.pull_of_owner(plan, pull, responder),
            Err(error) => self.finish(responder, Err(error)),
        }
    }

    fn pull_of_owner(&self, plan: Plan, pull: Pull, responder: Responder) {
        let Some(core) = self.shard.shard_of_queue(&plan.topic, plan.queue_id) else {
            let error = topics::no_queue(&plan.topic.name, plan.queue_id);
            return self.finish(responder, Err(error));
        };
        let answer = PullAnswer {
            responder,
            offset: pull.offset,
            topic: plan.topic,
            group: plan.group,
        };
        let broker = self.clone();
        self.shard
            .call(core, ShardRequest::Pull(Box::new(pull)), move |reply| {
                broker.answer_pull(answer, reply);
            });
    }

    fn answer_pull(&self, answer: PullAnswer, reply: LocalReply) {
        match reply {
            ShardReply::Pulled(pulled) => {
                // `groupSysFlag` and `topicSysFlag`.
                let group_flag = answer
                    .group
                    .as_ref()
                    .map_or(0, |group| group.group_sys_flag);
                let topic_flag = answer.topic.config.topic_sys_flag;
                let group = answer.group.as_deref();
                let suggested = suggested(&self.options, group, pulled.is_far_behind);
                let head = head(&pulled, answer.offset, group_flag, topic_flag, suggested);
                if let Some(group) = answer.group.filter(|_| pulled.message_count > 0) {
                    let sum = (u64::from(pulled.message_count), pulled.records.len() as u64);
                    let now_ms = self.shard.now_ms();
                    let (topic, group) = (&answer.topic.name, &group.group_name);
                    self.count(Counted::Out, topic, group, now_ms, sum);
                }
                let body = if head.code == response::SUCCESS {
                    pulled.records
                } else {
                    Body::Empty
                };
                answer.responder.send(head, body);
            }
            ShardReply::Refused(refusal) => self.finish(answer.responder, Err(refusal.into())),
            other => self.finish(answer.responder, Err(BrokerError::unexpected(&other))),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ahash::AHashMap;

    use super::*;
    use crate::broker::subscription::subscription;
    use crate::shard::meta::{Member, MetaChange, OnlineGroup};
    use crate::wire::remoting::body::TopicConfig;

    #[test]
    fn a_consumer_that_is_far_behind_is_sent_to_a_slave_only_if_that_is_allowed() {
        let mut options = options();
        let group = group("G");
        assert_eq!(suggested(&options, Some(&group), true), 0);
        options.slave_read = true;
        assert_eq!(suggested(&options, Some(&group), true), 1);
        assert_eq!(suggested(&options, Some(&group), false), 0);
        options.broker_id = 2;
        assert_eq!(
            suggested(&options, Some(&group), true),
            2,
            "a slave keeps it"
        );
        assert_eq!(suggested(&options, Some(&group), false), 0);
    }

    fn options() -> BrokerOptions {
        BrokerOptions::new("C", "b", "127.0.0.1:10911".parse().unwrap())
    }

    fn put(meta: &mut Meta, name: &str, perm: i32) {
        let config = TopicConfig {
            read_queue_nums: 4,
            ..topics::config(name, 2, perm)
        };
        meta.apply(MetaChange::TopicPut(Arc::new(Topic {
            id: meta.topics.len() as u32,
            name: Arc::from(name),
            config,
            logs: vec![0; 4],
        })));
    }

    fn group(name: &str) -> SubscriptionGroupConfig {
        SubscriptionGroupConfig {
            group_name: name.into(),
            ..SubscriptionGroupConfig::default()
        }
    }

    /// Topics T and CLOSED (not to be read); group G, online with the subscription `a` of T, version 5.
    fn meta() -> Meta {
        let mut meta = Meta::default();
        put(&mut meta, "T", 6);
        put(&mut meta, "CLOSED", 2);
        meta.apply(MetaChange::GroupPut(Arc::new(group("G"))));
        meta.apply(MetaChange::ConsumersOnline(Arc::new(online("CLUSTERING"))));
        meta
    }

    fn online(message_model: &str) -> OnlineGroup {
        let member = Member {
            connection: crate::base::id::ConnectionId { core: 0, serial: 1 },
            client: crate::shard::message::ClientInfo {
                client_id: Arc::from("c"),
                address: "127.0.0.1:1".parse().unwrap(),
                language: 0,
                version: 513,
            },
            last_heartbeat_ms: 0,
        };
        OnlineGroup {
            name: Arc::from("G"),
            members: vec![member],
            subscriptions: AHashMap::from_iter([(
                "T".to_owned(),
                subscription("T", "a", 5).unwrap(),
            )]),
            message_model: message_model.into(),
            ..OnlineGroup::default()
        }
    }

    fn header<'a>(group: &'a str, topic: &'a str) -> PullHeader<'a> {
        PullHeader {
            group: group.into(),
            topic: topic.into(),
            queue_id: 0,
            offset: 0,
            messages_max: 32,
            bytes_max: None,
            sys_flag: FLAG_SUBSCRIPTION,
            commit_offset: 0,
            suspend_ms: 0,
            sub_version: 0,
            subscription: Some("*".into()),
            expression_type: Some("TAG".into()),
            lite: false,
        }
    }

    /// The response code of a pull that is refused.
    fn refused(header: &PullHeader<'_>, meta: &Meta, options: &BrokerOptions) -> BrokerError {
        plan(header, meta, options, &Filters::default()).unwrap_err()
    }

    #[test]
    fn the_checks_come_in_rocketmqs_order() {
        let meta = meta();
        let unreadable = BrokerOptions {
            permission: 2,
            ..options()
        };
        let everything_wrong = PullHeader {
            queue_id: 99,
            subscription: Some("||".into()),
            ..header("bad group", "nowhere")
        };
        let error = refused(&everything_wrong, &meta, &unreadable);
        assert!(matches!(error, BrokerError::NoPermission(_)), "{error}");
        let strict = BrokerOptions {
            auto_create_group: false,
            ..options()
        };
        let unknown_group = PullHeader {
            group: "nobody".into(),
            ..everything_wrong
        };
        let error = refused(&unknown_group, &meta, &strict);
        assert!(matches!(error, BrokerError::NoGroup { .. }), "{error}");
        let unknown_topic = PullHeader {
            group: "G".into(),
            ..unknown_group
        };
        let error = refused(&unknown_topic, &meta, &strict);
        assert!(matches!(error, BrokerError::NoTopic { .. }), "{error}");
        let closed_topic = PullHeader {
            topic: "CLOSED".into(),
            ..unknown_topic
        };
        let error = refused(&closed_topic, &meta, &strict);
        assert!(matches!(error, BrokerError::NoPermission(_)), "{error}");
        let bad_queue = PullHeader {
            topic: "T".into(),
            ..closed_topic
        };
        let error = refused(&bad_queue, &meta, &strict);
        assert!(matches!(error, BrokerError::InvalidParameter(_)), "{error}");
        let bad_expression = PullHeader {
            queue_id: 3,
            ..bad_queue
        };
        let error = refused(&bad_expression, &meta, &strict);
        assert!(matches!(error, BrokerError::Expression(_)), "{error}");
    }

    #[test]
    fn a_group_that_may_not_consume_is_refused_before_its_topic_is_looked_at() {
        let mut meta = meta();
        let mut config = group("G");
        config.consume_enable = false;
        meta.apply(MetaChange::GroupPut(Arc::new(config)));
        let error = refused(&header("G", "nowhere"), &meta, &options());
        assert!(matches!(error, BrokerError::NoPermission(_)), "{error}");
    }

    #[test]
    fn an_unknown_group_is_made_if_it_may_be() {
        let plan = plan(
            &header("new", "T"),
            &meta(),
            &options(),
            &Filters::default(),
        )
        .unwrap();
        assert_eq!(plan.new_group.as_deref(), Some("new"));
    }

    #[test]
    fn without_the_subscription_bit_the_heartbeats_subscription_counts() {
        let online = PullHeader {
            sys_flag: 0,
            subscription: Some("b".into()),
            sub_version: 5,
            ..header("G", "T")
        };
        let plan = plan(&online, &meta(), &options(), &Filters::default()).unwrap();
        assert!(plan.filter.matches_entry(97) && !plan.filter.matches_entry(98));
        let newer = PullHeader {
            sub_version: 6,
            ..online
        };
        let error = refused(&newer, &meta(), &options());
        assert!(matches!(
            error,
            BrokerError::SubscriptionNotLatest {
                known: 5,
                asked: 6,
                ..
            }
        ));
    }

    #[test]
    fn a_group_that_is_not_online_or_does_not_subscribe_gets_no_subscription() {
        let mut meta = meta();
        put(&mut meta, "U", 6);
        meta.apply(MetaChange::GroupPut(Arc::new(group("OFFLINE"))));
        for (group, topic) in [("OFFLINE", "T"), ("G", "U")] {
            let header = PullHeader {
                sys_flag: 0,
                ..header(group, topic)
            };
            let error = refused(&header, &meta, &options());
            assert!(
                matches!(error, BrokerError::NoSubscription { .. }),
                "{error}"
            );
        }
    }

    #[test]
    fn a_broadcasting_group_needs_its_permission() {
        let mut meta = meta();
        let mut config = group("G");
        config.consume_broadcast_enable = false;
        meta.apply(MetaChange::GroupPut(Arc::new(config)));
        let header = PullHeader {
            sys_flag: 0,
            ..header("G", "T")
        };
        assert!(plan(&header, &meta, &options(), &Filters::default()).is_ok());
        meta.apply(MetaChange::ConsumersOnline(Arc::new(online(
            "BROADCASTING",
        ))));
        let error = refused(&header, &meta, &options());
        assert!(matches!(error, BrokerError::NoPermission(_)), "{error}");
    }

    /// A pull that brings a SQL92 expression along.
    fn sql<'a>(expression: &'a str) -> PullHeader<'a> {
        PullHeader {
            expression_type: Some("SQL92".into()),
            subscription: Some(expression.into()),
            ..header("G", "T")
        }
    }

    #[test]
    fn sql_is_compiled_or_refused_with_the_place_of_the_fault() {
        let plan = plan(&sql("a = 1"), &meta(), &options(), &Filters::default()).unwrap();
        assert!(plan.filter.matches_properties(b"a\x011\x02"));
        assert!(!plan.filter.matches_properties(b"a\x012\x02"));
        let error = refused(&sql("a = "), &meta(), &options());
        assert!(matches!(error, BrokerError::Expression(_)), "{error}");
        assert!(error.to_string().contains("column 5"), "{error}");
        let error = refused(&sql(""), &meta(), &options());
        assert!(matches!(error, BrokerError::Expression(_)), "{error}");
    }

    #[test]
    fn sql_is_refused_if_it_is_switched_off() {
        let off = BrokerOptions {
            property_filter: false,
            ..options()
        };
        let error = refused(&sql("a = 1"), &meta(), &off);
        assert!(matches!(error, BrokerError::System(_)), "{error}");
        assert!(
            error.to_string().contains("enablePropertyFilter"),
            "{error}"
        );
    }

    #[test]
    fn sql_of_a_heartbeat_filters_and_a_bad_one_means_no_filter_data() {
        let mut meta = meta();
        let mut subscribe = |expression: &str| {
            let mut online = online("CLUSTERING");
            let subscription = online.subscriptions.get_mut("T").unwrap();
            subscription.expression_type = Some("SQL92".into());
            subscription.sub_string = expression.into();
            subscription.code_set.clear();
            meta.apply(MetaChange::ConsumersOnline(Arc::new(online)));
            let header = PullHeader {
                sys_flag: 0,
                ..header("G", "T")
            };
            plan(&header, &meta, &options(), &Filters::default())
        };
        let filter = subscribe("a > 1").unwrap().filter;
        assert!(filter.matches_properties(b"a\x012\x02"));
        assert!(!filter.matches_properties(b"a\x011\x02"));
        let error = subscribe("a >").unwrap_err();
        assert!(matches!(error, BrokerError::NoFilter { .. }), "{error}");
    }

    #[test]
    fn a_pull_waits_only_if_it_asks_to_and_within_the_limit() {
        let options = options();
        let wait = |flags, ms| {
            limits(
                &PullHeader {
                    sys_flag: flags,
                    suspend_ms: ms,
                    ..header("G", "T")
                },
                &options,
            )
            .suspend_ms
        };
        assert_eq!(wait(0, 15_000), 0);
        assert_eq!(wait(FLAG_SUSPEND, 15_000), 15_000);
        assert_eq!(wait(FLAG_SUSPEND, -5), 0);
        assert_eq!(wait(FLAG_SUSPEND, i64::MAX), options.suspend_ms_max);
    }

    #[test]
    fn message_and_byte_limits_are_clamped() {
        let limits_of = |messages_max, bytes_max| {
            let limits = limits(
                &PullHeader {
                    messages_max,
                    bytes_max,
                    ..header("G", "T")
                },
                &options(),
            );
            (limits.messages_max, limits.bytes_max)
        };
        assert_eq!(limits_of(0, None), (1, PULL_BYTES_MAX as u32));
        assert_eq!(
            limits_of(i32::MAX, Some(1)),
            (PULL_MESSAGES_MAX as u32, 100)
        );
        assert_eq!(limits_of(32, Some(i32::MAX)), (32, PULL_BYTES_MAX as u32));
    }

    #[test]
    fn every_status_has_rocketmqs_code_and_next_offset() {
        use PullStatus::*;
        let at = |s, offset| {
            let (code, _, next) = status(s, offset, 42, 3, 9);
            (code, next)
        };
        assert_eq!(at(Found, 5), (0, 42));
        assert_eq!(at(NoMatchedMessage, 5), (20, 42));
        assert_eq!(at(OffsetOverflowOne, 9), (19, 9));
        assert_eq!(at(OffsetOverflowBadly, 50), (21, 9));
        assert_eq!(at(OffsetTooSmall, 1), (21, 3));
        let empty = |offset| {
            let (code, _, next) = status(NoMessageInQueue, offset, 0, 0, 0);
            (code, next)
        };
        assert_eq!(empty(0), (19, 0));
        assert_eq!(empty(7), (21, 0));
    }

    #[test]
    fn the_response_has_what_the_java_client_dereferences() {
        let pulled = Pulled {
            status: PullStatus::OffsetOverflowOne,
            next_offset: 9,
            min_offset: 3,
            max_offset: 9,
            records: (),
            message_count: 0,
            is_far_behind: false,
        };
        let head = head(&pulled, 9, 0, 0, 0);
        assert_eq!(head.code, 19);
        assert_eq!(head.remark.as_deref(), Some("OFFSET_OVERFLOW_ONE"));
        for name in [
            "suggestWhichBrokerId",
            "nextBeginOffset",
            "minOffset",
            "maxOffset",
        ] {
            assert!(head.fields.iter().any(|(n, _)| n == name), "{name}");
        }
    }
}
