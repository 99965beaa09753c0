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
use crate::broker::options::BrokerOptions;
use crate::broker::subscription::{filter_of, is_tag_type, tag_filter};
use crate::broker::topics::{self, PERM_READ};
use crate::io::body::Body;
use crate::server::connection::Responder;
use crate::shard::ShardHandle;
use crate::shard::message::{
    LocalReply, Pull, PullStatus, Pulled, ShardReply, ShardRequest, TagFilter,
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
    filter: TagFilter,
    /// The group is not known yet and is made first.
    new_group: Option<String>,
    /// `groupSysFlag` of the answer.
    group_flag: i32,
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
        check_expression_type(header.expression_type.as_deref())?;
        tag_filter(header.subscription.as_deref())?
    } else {
        online_filter(header, meta, config.map(Arc::as_ref))?
    };
    Ok(Plan {
        topic: topic.clone(),
        queue_id,
        filter,
        new_group: config.is_none().then(|| group.to_owned()),
        group_flag: config.map_or(0, |config| config.group_sys_flag),
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

/// Only tags can be matched; RocketMQ's answer with `enablePropertyFilter=false`, its default.
fn check_expression_type(expression_type: Option<&str>) -> Result<(), BrokerError> {
    if is_tag_type(expression_type) {
        return Ok(());
    }
    Err(BrokerError::System(format!(
        "the broker does not support consumers that filter by {}; subscribe by tags",
        expression_type.unwrap_or_default()
    )))
}

/// The filter of what the group's heartbeats said.
fn online_filter(
    header: &PullHeader<'_>,
    meta: &Meta,
    config: Option<&SubscriptionGroupConfig>,
) -> Result<TagFilter, BrokerError> {
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
    check_expression_type(subscription.expression_type.as_deref())?;
    Ok(filter_of(subscription))
}

/// Code, remark and next offset of what the shard found for a pull at `offset`.
fn status(
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
fn head<B>(pulled: &Pulled<B>, offset: i64, group_flag: i32, topic_flag: i32) -> Outgoing {
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
        // The master itself: reading from slaves comes with replication.
        .field("suggestWhichBrokerId", 0i64)
        .field("nextBeginOffset", next_offset)
        .field("minOffset", pulled.min_offset)
        .field("maxOffset", pulled.max_offset)
        .field("groupSysFlag", group_flag)
        .field("topicSysFlag", topic_flag)
}

/// What the answer to a pull needs besides what was found.
struct PullAnswer {
    responder: Responder,
    offset: i64,
    group_flag: i32,
    topic_flag: i32,
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
        let plan = plan(&header, &self.shard.meta(), &self.options)?;
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

    fn start_pull(&self, plan: Plan, pull: Pull, responder: Responder) {
        let Some(core) = self.shard.shard_of_queue(&plan.topic, plan.queue_id) else {
            let error = topics::no_queue(&plan.topic.name, plan.queue_id);
            return self.finish(responder, Err(error));
        };
        let answer = PullAnswer {
            responder,
            offset: pull.offset,
            group_flag: plan.group_flag,
            topic_flag: plan.topic.config.topic_sys_flag,
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
                let head = head(&pulled, answer.offset, answer.group_flag, answer.topic_flag);
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
