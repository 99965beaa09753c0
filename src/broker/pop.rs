//! POP_MESSAGE (200050), PEEK_MESSAGE (200052), NOTIFICATION (200054), POLLING_INFO (200055).
//!
//! The owners of the queues give out and remember ([`crate::shard::pop`]); here their shares become one answer, or the
//! request waits at all of them until one has something. Retry topics of POP groups are read if they exist; this broker
//! puts nothing there, since a hidden message comes again from its own queue.
//!
//! Source: `PopMessageProcessor`, `PeekMessageProcessor`, `NotificationProcessor`, `PollingInfoProcessor`.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use bytes::BytesMut;

use crate::base::limits::{POP_MESSAGES_MAX, PULL_BYTES_MAX};
use crate::base::names;
use crate::base::notify::Notify;
use crate::broker::dispatch::{Answer, Broker, Outcome};
use crate::broker::error::BrokerError;
use crate::broker::filters;
use crate::broker::groups::PRIORITY_FACTOR;
use crate::broker::receipt::{self, ORDER_REVIVE_QUEUE, Origin, PoppedQueue};
use crate::broker::statistics::Counted;
use crate::broker::topics::PERM_READ;
use crate::io::body::Body;
use crate::server::connection::Connection;
use crate::shard::ShardHandle;
use crate::shard::message::{LocalReply, MessageFilter, QueueKey, ShardReply, ShardRequest};
use crate::shard::meta::Topic;
use crate::shard::pop::message::{
    Dead, PopAck, PopOrder, PopPart, PopReply, PopRequest, PopSource, PopTake, PopWait,
};
use crate::wire::remoting::body::SubscriptionGroupConfig;
use crate::wire::remoting::code::response;
use crate::wire::remoting::command::{Command, Outgoing};

/// A request that is older than its own polling time by this is answered without looking.
const TOO_LATE_MS: i64 = 500;
/// `initMode` MAX: a group without an offset starts at the end.
const INIT_MAX: i32 = 1;

/// A queue that may be popped from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Source {
    core: usize,
    key: QueueKey,
    origin: Origin,
    queue_id: u32,
    from_end: bool,
    part: PopPart,
}

/// What a POP request asks for, checked.
struct Plan {
    topic: Arc<Topic>,
    group: Arc<str>,
    /// -1: all queues.
    queue_id: i32,
    config: Arc<SubscriptionGroupConfig>,
}

/// The messages of an answer as they come from core after core.
#[derive(Default)]
struct Popped {
    queues: Vec<PoppedQueue>,
    bodies: Vec<Body>,
    messages: u32,
    bytes: usize,
    rest: i64,
    more: bool,
}

impl Popped {
    /// Messages of a queue, which is in the answer once, whichever of its parts they are of.
    fn add(&mut self, source: &Source, messages: Vec<(i64, u32)>) {
        let is_same = |queue: &PoppedQueue| {
            (queue.origin, queue.queue_id) == (source.origin, source.queue_id)
        };
        match self.queues.iter_mut().find(|queue| is_same(queue)) {
            Some(queue) => queue.messages.extend(messages),
            None => self.queues.push(PoppedQueue {
                origin: source.origin,
                queue_id: source.queue_id,
                messages,
            }),
        }
    }

    /// One core's share is passed on as it is; several are copied together.
    fn body(mut self) -> Body {
        if self.bodies.len() <= 1 {
            return self.bodies.pop().unwrap_or_default();
        }
        let mut joined = BytesMut::with_capacity(self.bytes);
        for body in self.bodies {
            joined.extend_from_slice(&body.into_bytes());
        }
        Body::Bytes(joined.freeze())
    }
}

/// How a wait ended.
enum Woken {
    /// There may be something on this core.
    By(usize),
    TimeIsUp,
    Full,
}

/// The sources of a pop by priority. All of a topic's new messages go by priority, and so do all that are due again,
/// which come behind them or before. (RocketMQ has the latter in a retry topic, which it reads behind the topic or before.)
fn in_order_of_priority(sources: Vec<Source>, ascending: bool, again_first: bool) -> Vec<Source> {
    let (mut own, retry): (Vec<_>, Vec<_>) = sources
        .into_iter()
        .partition(|source| source.origin == Origin::Topic);
    own.sort_by_key(|source| source.queue_id);
    if ascending {
        own.reverse();
    }
    let of = |part: PopPart| own.iter().map(move |&source| Source { part, ..source });
    let (new, again) = (of(PopPart::New), of(PopPart::Again));
    match again_first {
        true => again.chain(retry.iter().copied()).chain(new).collect(),
        false => new.chain(again).chain(retry.iter().copied()).collect(),
    }
}

fn not_found(code: i32, remark: &'static str) -> Answer {
    Outgoing::success()
        .with_code(code)
        .with_remark(remark)
        .into()
}

/// When a request was made, milliseconds since 1970. A client that does not say so, or says 0, made it now
/// (`PopMessageProcessor`, `NotificationProcessor`).
fn born_ms(command: &Command, now_ms: u64) -> Result<i64, BrokerError> {
    let born_ms = command.int("bornTime")?.filter(|&born_ms| born_ms != 0);
    Ok(born_ms.unwrap_or(now_ms as i64))
}

/// How long a request may still wait, in milliseconds, by the client's clock or by how long it wants to wait at all.
fn wait_ms(now_ms: u64, born_ms: i64, poll_ms: i64, max_ms: u64) -> u64 {
    let left = born_ms
        .saturating_add(poll_ms)
        .saturating_sub(now_ms as i64);
    (left.min(poll_ms).max(0) as u64).min(max_ms)
}

impl Broker {
    /// What POP, PEEK and NOTIFICATION have in common, in RocketMQ's order of checks.
    async fn plan_pop(&self, command: &Command) -> Result<Plan, BrokerError> {
        let group = command.required_text("consumerGroup")?.into_owned();
        let name = command.required_text("topic")?;
        let queue_id = command.required_i32("queueId")?;
        if !self.options.readable() {
            return Err(BrokerError::NoPermission(format!(
                "the broker {} gives no messages: its brokerPermission has no read bit",
                self.options.broker
            )));
        }
        let topic = self.topic(&name)?;
        if topic.config.perm & PERM_READ == 0 {
            return Err(BrokerError::NoPermission(format!(
                "the topic '{name}' may not be read: its permission is {}, the read bit is {PERM_READ}",
                topic.config.perm
            )));
        }
        let queues = topic.config.read_queue_nums;
        if i64::from(queue_id) >= i64::from(queues) || queue_id < -1 {
            return Err(BrokerError::InvalidParameter(format!(
                "the queue id {queue_id} is illegal: the topic '{name}' has {queues} queues to read; -1 means all"
            )));
        }
        if self.known_group(&group).is_none() {
            names::check_group(&group)?;
            if !self.options.auto_create_group && !names::is_system_group(&group) {
                return Err(BrokerError::NoGroup { group });
            }
            self.create_group(&group).await?;
        }
        let config = self
            .known_group(&group)
            .ok_or_else(|| BrokerError::NoGroup {
                group: group.clone(),
            })?;
        if !config.consume_enable {
            return Err(BrokerError::NoPermission(format!(
                "the group '{group}' may not consume (consumeEnable=false); change it with updateSubGroup"
            )));
        }
        Ok(Plan {
            topic,
            group: group.into(),
            queue_id,
            config,
        })
    }

    /// The queues of a request: the topic's from a random one on, then those of the group's retry topics.
    fn pop_sources(&self, plan: &Plan, order: bool, from_end: bool) -> Vec<Source> {
        let mut sources = Vec::new();
        let mut add = |topic: &Topic, queue_id: u32, origin: Origin| {
            if let Some(core) = self.shard.shard_of_queue(topic, queue_id) {
                sources.push(Source {
                    core,
                    key: ShardHandle::key(topic, queue_id),
                    origin,
                    queue_id,
                    from_end: from_end && origin == Origin::Topic,
                    part: PopPart::All,
                });
            }
        };
        match u32::try_from(plan.queue_id) {
            Ok(queue_id) => add(&plan.topic, queue_id, Origin::Topic),
            Err(_) => {
                let count = plan.topic.config.read_queue_nums;
                let first = (self.shard.random_u64() % u64::from(count.max(1))) as u32;
                for number in 0..count {
                    add(&plan.topic, (first + number) % count, Origin::Topic);
                }
            }
        }
        if order || names::is_retry_topic(&plan.topic.name) {
            return sources;
        }
        for origin in [Origin::RetryV1, Origin::RetryV2] {
            let name = origin.topic(&plan.group, &plan.topic.name);
            if let Some(retry) = self.known_topic(&name) {
                for queue_id in 0..retry.config.read_queue_nums {
                    add(&retry, queue_id, origin);
                }
            }
        }
        sources
    }

    /// Whether this pop takes the messages of a higher priority first. Of 100 pops of a group these are `priority.factor`,
    /// so that with less than 100 what is of low priority comes on, too.
    fn pops_by_priority(&self, plan: &Plan, order: bool) -> bool {
        let kind = plan.topic.config.attributes.get("message.type");
        if order || kind.is_none_or(|kind| kind != "PRIORITY") {
            return false;
        }
        let factor = plan.config.attributes.get(PRIORITY_FACTOR);
        let factor = factor.and_then(|factor| factor.parse().ok()).unwrap_or(100);
        self.shard.random_u64() % 100 < factor
    }

    /// Takes from one core after the other until the request has enough. `first`: the core to begin with, unless the
    /// order of the sources counts.
    async fn take(
        &self,
        sources: &[Source],
        first: Option<usize>,
        ask: &PopTake,
        by_priority: bool,
    ) -> Result<Popped, BrokerError> {
        let mut by_core: Vec<(usize, Vec<&Source>)> = Vec::new();
        for source in sources {
            let mut known = by_core.iter_mut();
            let known = match by_priority {
                true => known.next_back().filter(|(core, _)| *core == source.core),
                false => known.find(|(core, _)| *core == source.core),
            };
            match known {
                Some((_, queues)) => queues.push(source),
                None => by_core.push((source.core, vec![source])),
            }
        }
        if !by_priority {
            by_core.sort_by_key(|(core, _)| Some(*core) != first);
        }
        let mut popped = Popped::default();
        for (core, queues) in by_core {
            if popped.messages >= ask.messages_max || popped.bytes >= ask.bytes_max as usize {
                break;
            }
            let take = PopTake {
                queues: queues
                    .iter()
                    .map(|source| PopSource {
                        queue: source.key,
                        part: source.part,
                        from_end: source.from_end,
                    })
                    .collect(),
                messages_max: ask.messages_max - popped.messages,
                bytes_max: ask.bytes_max - popped.bytes as u32,
                ..ask.clone()
            };
            let request = ShardRequest::Pop(Box::new(PopRequest::Take(take)));
            let taken = match self.ask(core, request).await {
                Ok(ShardReply::Pop(PopReply::Taken(taken))) => *taken,
                Ok(other) => return Err(BrokerError::unexpected(&other)),
                // What the others gave is hidden by now: better to deliver it.
                Err(_) if popped.messages > 0 => break,
                Err(error) => return Err(error),
            };
            popped.rest += taken.rest;
            popped.more |= taken.more;
            if !taken.dead.is_empty() {
                let (broker, group) = (self.clone(), ask.group.clone());
                self.shard.spawn(async move {
                    for dead in taken.dead {
                        broker.bury_popped(core, &group, dead).await;
                    }
                });
            }
            for queue in taken.queues {
                let Some(source) = queues.iter().find(|source| source.key == queue.queue) else {
                    continue;
                };
                popped.messages += queue.messages.len() as u32;
                popped.add(source, queue.messages);
            }
            popped.bytes += taken.records.len();
            if !taken.records.is_empty() {
                popped.bodies.push(taken.records);
            }
        }
        Ok(popped)
    }

    /// Puts a message that failed too often into the group's dead letter topic, then acknowledges it.
    async fn bury_popped(&self, core: usize, group: &Arc<str>, dead: Dead<Body>) {
        let receipt = dead.receipt;
        let buried = self.bury(group, &dead.record.into_bytes()).await;
        let done = match buried {
            Ok(()) => {
                let ack = PopAck {
                    group: group.clone(),
                    queue: dead.queue,
                    receipts: vec![receipt],
                    order: false,
                };
                let request = ShardRequest::Pop(Box::new(PopRequest::Ack(ack)));
                self.ask(core, request).await.map(|_| ())
            }
            Err(error) => Err(error),
        };
        if let Err(error) = done {
            tracing::warn!(%group, queue = ?dead.queue, offset = receipt.offset, %error, "a message that failed too often cannot be put aside; it is tried again");
        }
    }

    /// Waits until one of the cores has something to look at.
    async fn wait_for_pop(
        &self,
        sources: &[Source],
        group: &Arc<str>,
        order: bool,
        wait_ms: u64,
    ) -> Result<Woken, BrokerError> {
        /// What the cores have said so far.
        #[derive(Default)]
        struct Waiting {
            bell: Notify,
            first: RefCell<Option<Result<Woken, BrokerError>>>,
            left: Cell<usize>,
        }
        let mut by_core: BTreeMap<usize, Vec<QueueKey>> = BTreeMap::new();
        for source in sources {
            by_core.entry(source.core).or_default().push(source.key);
        }
        let id = self.shard.random_u64();
        let waiting = Rc::new(Waiting::default());
        waiting.left.set(by_core.len());
        for (&core, queues) in &by_core {
            let wait = PopWait {
                id,
                group: group.clone(),
                queues: queues.clone(),
                wait_ms,
                order,
                queue_max: self.options.pop_polling_per_queue_max,
                total_max: self.options.pop_polling_max,
            };
            let waiting = waiting.clone();
            let heard = move |reply: LocalReply| {
                let left = waiting.left.get() - 1;
                waiting.left.set(left);
                let said = match reply {
                    ShardReply::Pop(PopReply::Woken(true)) => Ok(Woken::By(core)),
                    ShardReply::Pop(PopReply::Full) => Ok(Woken::Full),
                    // The last one to say so ends the wait.
                    ShardReply::Pop(PopReply::Woken(false)) if left > 0 => return,
                    ShardReply::Pop(PopReply::Woken(false)) => Ok(Woken::TimeIsUp),
                    ShardReply::Refused(refusal) => Err(refusal.into()),
                    other => Err(BrokerError::unexpected(&other)),
                };
                waiting.first.borrow_mut().get_or_insert(said);
                waiting.bell.notify();
            };
            let request = ShardRequest::Pop(Box::new(PopRequest::Wait(wait)));
            self.shard.call(core, request, heard);
        }
        waiting.bell.notified().await;
        let woken = waiting.first.borrow_mut().take();
        let by = match woken {
            Some(Ok(Woken::By(core))) => Some(core),
            _ => None,
        };
        if !matches!(woken, Some(Ok(Woken::TimeIsUp))) {
            // The others need not wake this one any more; if they have already, somebody else may be waiting there.
            for (core, queues) in by_core {
                if Some(core) != by {
                    self.unwait(core, id, group, queues);
                }
            }
        }
        woken.unwrap_or(Ok(Woken::TimeIsUp))
    }

    fn unwait(&self, core: usize, id: u64, group: &Arc<str>, queues: Vec<QueueKey>) {
        let unwait = PopRequest::Unwait {
            id,
            group: group.clone(),
            queues,
        };
        self.shard
            .call(core, ShardRequest::Pop(Box::new(unwait)), |_| {});
    }

    fn pop_filter(&self, command: &Command) -> Result<MessageFilter, BrokerError> {
        let kind = command.text("expType");
        filters::check_type(kind.as_deref(), &self.options)?;
        Ok(self
            .filters
            .of(kind.as_deref(), command.text("exp").as_deref())?)
    }

    /// 200050.
    pub(super) async fn pop(self, command: Command, connection: Rc<Connection>) -> Outcome {
        let messages_max = command.required_i32("maxMsgNums")?;
        let invisible_ms = command.required_int("invisibleTime")?;
        let poll_ms = command.required_int("pollTime")?;
        let arrived_ms = self.shard.now_ms();
        let born_ms = born_ms(&command, arrived_ms)?;
        let init_mode = command.required_i32("initMode")?;
        let order = command.flag("order");
        let late_ms = (arrived_ms as i64)
            .saturating_sub(born_ms)
            .saturating_sub(poll_ms);
        if late_ms > TOO_LATE_MS {
            return Ok(Outgoing::error(
                response::POLLING_TIMEOUT,
                format!("the request came {late_ms} ms after the end of its own polling time; compare the clocks"),
            )
            .into());
        }
        if messages_max > POP_MESSAGES_MAX as i32 {
            return Err(BrokerError::InvalidParameter(format!(
                "maxMsgNums is {messages_max}, the limit is {POP_MESSAGES_MAX}"
            )));
        }
        let plan = self.plan_pop(&command).await?;
        let filter = self.pop_filter(&command)?;
        let mut sources = self.pop_sources(&plan, order, init_mode == INIT_MAX);
        let by_priority = self.pops_by_priority(&plan, order);
        if by_priority {
            let again_first =
                self.shard.random_u64() % 100 < u64::from(self.options.priority_retry_percent);
            sources = in_order_of_priority(sources, self.options.priority_order_asc, again_first);
        }
        let mut ask = PopTake {
            group: plan.group.clone(),
            queues: Vec::new(),
            messages_max: messages_max.max(1) as u32,
            bytes_max: PULL_BYTES_MAX as u32,
            pop_ms: 0,
            invisible_ms: invisible_ms.max(0) as u64,
            filter,
            order: order.then(|| PopOrder {
                attempt: command
                    .text("attemptId")
                    .filter(|attempt| !attempt.is_empty())
                    .map(Arc::from),
            }),
            retries_max: plan.config.retry_max_times,
            peek: false,
        };
        let mut woken_by = None;
        loop {
            ask.pop_ms = self.shard.now_ms();
            let popped = self.take(&sources, woken_by, &ask, by_priority).await?;
            if popped.messages > 0 {
                let sum = (u64::from(popped.messages), popped.bytes as u64);
                let topic = &plan.topic.name;
                self.count(Counted::Out, topic, &plan.group, ask.pop_ms, sum);
                return Ok(pop_answer(popped, ask.pop_ms, invisible_ms, order));
            }
            if popped.more {
                continue;
            }
            let wait_ms = wait_ms(
                self.shard.now_ms(),
                born_ms,
                poll_ms,
                self.options.suspend_ms_max,
            );
            let timeout = not_found(response::POLLING_TIMEOUT, "NO_MESSAGE_IN_QUEUE");
            if wait_ms == 0 {
                return Ok(timeout);
            }
            match self
                .wait_for_pop(&sources, &plan.group, order, wait_ms)
                .await?
            {
                Woken::By(core) if connection.is_open() => woken_by = Some(core),
                Woken::By(core) => {
                    // Nobody would hear the answer: the messages are for somebody else.
                    let own = sources.iter().filter(|source| source.core == core);
                    let queues = own.map(|source| source.key).collect();
                    self.unwait(core, 0, &plan.group, queues);
                    return Ok(timeout);
                }
                Woken::TimeIsUp => return Ok(timeout),
                Woken::Full => {
                    return Ok(not_found(
                        response::POLLING_FULL,
                        "too many requests wait for messages already (popPollingSize, maxPopPollingSize)",
                    ));
                }
            }
        }
    }

    /// 200052.
    pub(super) async fn peek(self, command: Command) -> Outcome {
        let messages_max = command.required_i32("maxMsgNums")?;
        if messages_max > POP_MESSAGES_MAX as i32 {
            return Err(BrokerError::InvalidParameter(format!(
                "maxMsgNums is {messages_max}, the limit is {POP_MESSAGES_MAX}"
            )));
        }
        let plan = self.plan_pop(&command).await?;
        let sources = self.pop_sources(&plan, false, false);
        let ask = PopTake {
            group: plan.group.clone(),
            queues: Vec::new(),
            messages_max: messages_max.max(1) as u32,
            bytes_max: PULL_BYTES_MAX as u32,
            pop_ms: self.shard.now_ms(),
            invisible_ms: 0,
            filter: MessageFilter::All,
            order: None,
            retries_max: i32::MAX,
            peek: true,
        };
        let popped = self.take(&sources, None, &ask, false).await?;
        if popped.messages == 0 {
            return Ok(not_found(response::PULL_NOT_FOUND, "NO_MESSAGE_IN_QUEUE"));
        }
        Ok(pop_answer(popped, ask.pop_ms, 0, false))
    }

    /// 200054: whether there is something to pop, now or within the polling time.
    pub(super) async fn pop_notification(self, command: Command) -> Outcome {
        let poll_ms = command.required_int("pollTime")?;
        let now_ms = self.shard.now_ms();
        let born_ms = born_ms(&command, now_ms)?;
        let order = command.flag("order");
        let plan = self.plan_pop(&command).await?;
        let sources = self.pop_sources(&plan, order, false);
        let wait_ms = wait_ms(now_ms, born_ms, poll_ms, self.options.suspend_ms_max);
        let woken = self
            .wait_for_pop(&sources, &plan.group, order, wait_ms)
            .await?;
        if let Woken::By(core) = woken {
            // It takes nothing: who wants to take is woken too.
            let own = sources.iter().filter(|source| source.core == core);
            let queues = own.map(|source| source.key).collect();
            self.unwait(core, 0, &plan.group, queues);
        }
        Ok(Outgoing::success()
            .field("hasMsg", matches!(woken, Woken::By(_)).to_string())
            .field("pollingFull", matches!(woken, Woken::Full).to_string())
            .into())
    }

    /// 200055: how many requests wait for a queue, or for any queue, of a topic.
    pub(super) async fn polling_info(self, command: Command) -> Outcome {
        let plan = self.plan_pop(&command).await?;
        let mut most = 0;
        for source in self.pop_sources(&plan, true, false) {
            let request = PopRequest::Waiting {
                group: plan.group.clone(),
                queue: source.key,
            };
            let request = ShardRequest::Pop(Box::new(request));
            match self.ask(source.core, request).await? {
                ShardReply::Pop(PopReply::Waiting(count)) => most = most.max(count),
                other => return Err(BrokerError::unexpected(&other)),
            }
        }
        Answer::number("pollingNum", most as i64)
    }
}

fn pop_answer(popped: Popped, pop_ms: u64, invisible_ms: i64, order: bool) -> Answer {
    let (starts, offsets, counts) = receipt::offset_fields(&popped.queues);
    let revive_queue = if order { ORDER_REVIVE_QUEUE } else { 0 };
    let head = Outgoing::success()
        .with_remark("FOUND")
        .field("popTime", pop_ms as i64)
        .field("invisibleTime", invisible_ms)
        .field("reviveQid", revive_queue)
        .field("restNum", popped.rest)
        .field("startOffsetInfo", starts)
        .field("msgOffsetInfo", offsets)
        .field_if("orderCountInfo", order.then_some(counts));
    Answer {
        head,
        body: popped.body(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pop_by_priority_begins_with_the_highest_queue_and_what_is_due_again_is_before_or_behind_all()
     {
        let source = |origin, queue_id| Source {
            core: 0,
            key: QueueKey {
                topic_id: 0,
                queue_id,
            },
            origin,
            queue_id,
            from_end: false,
            part: PopPart::All,
        };
        let sources = || {
            let own = [1, 2, 0].map(|queue_id| source(Origin::Topic, queue_id));
            let mut sources = own.to_vec();
            sources.push(source(Origin::RetryV1, 0));
            sources
        };
        let order = |ascending, again_first| {
            let sources = in_order_of_priority(sources(), ascending, again_first);
            let names = sources
                .iter()
                .map(|source| match (source.origin, source.part) {
                    (Origin::Topic, PopPart::New) => format!("new {}", source.queue_id),
                    (Origin::Topic, PopPart::Again) => format!("again {}", source.queue_id),
                    _ => "retry".to_owned(),
                });
            names.collect::<Vec<_>>().join(", ")
        };
        let (new, again) = ("new 2, new 1, new 0", "again 2, again 1, again 0");
        assert_eq!(order(true, false), format!("{new}, {again}, retry"));
        assert_eq!(order(true, true), format!("{again}, retry, {new}"));
        assert!(order(false, false).starts_with("new 0, new 1, new 2, again 0"));
    }

    #[test]
    fn a_request_waits_until_the_client_gives_up_and_no_longer_than_it_wants_to() {
        assert_eq!(wait_ms(1_000, 1_000, 500, 9_000), 500);
        assert_eq!(wait_ms(1_200, 1_000, 500, 9_000), 300);
        assert_eq!(wait_ms(1_600, 1_000, 500, 9_000), 0);
        assert_eq!(
            wait_ms(1_000, 90_000, 500, 9_000),
            500,
            "its clock is ahead"
        );
        assert_eq!(wait_ms(1_000, 1_000, i64::MAX, 9_000), 9_000);
        assert_eq!(wait_ms(1_000, i64::MIN, i64::MIN, 9_000), 0);
    }
}
