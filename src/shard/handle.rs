//! What the broker holds of its core: lookups in the published metadata, and requests to whichever core owns the thing.

use std::cell::{Ref, RefCell};
use std::future::Future;
use std::hash::{Hash, Hasher};
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::base::id::ConnectionId;
use crate::base::offset::LogId;
use crate::shard::message::{
    ClientAnswer, ClientCall, GroupCommand, LocalReply, NewMessage, QueueKey, Refusal, ShardReply,
    ShardRequest, SlaveConnection,
};
use crate::shard::meta::{Meta, MetaChange, Topic};
use crate::shard::transactions::{CheckRules, HalfDue};

/// What is called with an answer. One small allocation a request, from the core's own heap.
pub type Done = Box<dyn FnOnce(LocalReply)>;
/// A task of a core.
pub type Task = Pin<Box<dyn Future<Output = ()>>>;
pub(super) type PushHandler = Rc<dyn Fn(Vec<ConnectionId>, Bytes)>;
pub(super) type GroupHandler = Rc<dyn Fn(GroupCommand) -> LocalReply>;
pub(super) type CallHandler = Rc<dyn Fn(ClientCall, Box<dyn FnOnce(ClientAnswer)>)>;

/// What the broker sets on its core.
#[derive(Default)]
pub(super) struct Handlers {
    pub push: RefCell<Option<PushHandler>>,
    pub group: RefCell<Option<GroupHandler>>,
    pub call: RefCell<Option<CallHandler>>,
    pub topics: RefCell<Option<TopicsHandler>>,
    pub check: RefCell<Option<(CheckRules, CheckHandler)>>,
    pub slave: RefCell<Option<SlaveHandler>>,
}

/// Goes on with a slave's connection.
pub(super) type SlaveHandler = Rc<dyn Fn(SlaveConnection)>;

/// Asks producers how these transactions ended; done when nothing more is to be kept in memory for that.
pub(super) type CheckHandler = Rc<dyn Fn(Vec<HalfDue>) -> Task>;

/// Core 0: topics were made, changed or deleted, durably and known to every core.
pub(super) type TopicsHandler = Rc<dyn Fn(&[std::sync::Arc<str>])>;

/// A core behind its environment, so that the broker need not be generic over it.
pub(super) trait CoreApi {
    fn index(&self) -> usize;
    fn count(&self) -> usize;
    fn append(&self, shard: usize, messages: SmallVec<[NewMessage; 1]>, done: Done);
    fn call(&self, shard: usize, request: ShardRequest, done: Done);
    fn spawn(&self, task: Task);
    fn now_ms(&self) -> u64;
    fn now_ns(&self) -> u64;
    fn may_acknowledge(&self) -> bool;
    fn sleep(&self, duration: Duration) -> Task;
    fn random_u64(&self) -> u64;
    fn handlers(&self) -> &Handlers;
}

/// Handle of one core. Cheap to clone.
#[derive(Clone)]
pub struct ShardHandle {
    pub(super) meta: Rc<RefCell<Meta>>,
    pub(super) core: Rc<dyn CoreApi>,
}

impl ShardHandle {
    /// This core's number, 0-based.
    pub fn index(&self) -> usize {
        self.core.index()
    }

    /// How many cores there are.
    pub fn count(&self) -> usize {
        self.core.count()
    }

    /// What this core knows of topics, groups and clients. Do not hold it over an await.
    pub fn meta(&self) -> Ref<'_, Meta> {
        self.meta.borrow()
    }

    /// The core that runs a log.
    pub fn shard_of_log(&self, log: LogId) -> usize {
        usize::from(log) % self.count()
    }

    /// The core that owns a queue of a topic, or `None` if the topic never had that queue.
    pub fn shard_of_queue(&self, topic: &Topic, queue_id: u32) -> Option<usize> {
        topic
            .logs
            .get(queue_id as usize)
            .map(|&log| self.shard_of_log(log))
    }

    /// The home core of a consumer or producer group. The same on every core of a process.
    pub fn shard_of_group(&self, group: &str) -> usize {
        // Fixed keys: every core has to come to the same number.
        let mut hasher = std::hash::DefaultHasher::new();
        group.hash(&mut hasher);
        (hasher.finish() % self.count() as u64) as usize
    }

    /// Stores messages of one queue and calls back when they are as safe as the broker is configured for.
    /// The hot road: on the owner's core no message is boxed, and the callback runs from the ack gate.
    pub fn append(
        &self,
        shard: usize,
        messages: SmallVec<[NewMessage; 1]>,
        done: impl FnOnce(LocalReply) + 'static,
    ) {
        self.core.append(shard, messages, Box::new(done));
    }

    /// Asks a core and calls back with the answer, perhaps before this returns.
    pub fn call(
        &self,
        shard: usize,
        request: ShardRequest,
        done: impl FnOnce(LocalReply) + 'static,
    ) {
        self.core.call(shard, request, Box::new(done));
    }

    /// Asks a core and waits for the answer.
    pub async fn ask(&self, shard: usize, request: ShardRequest) -> LocalReply {
        let answer = Rc::new(RefCell::new(None));
        let arrived = Rc::new(crate::base::notify::Notify::default());
        let (slot, bell) = (answer.clone(), arrived.clone());
        // The guard rings even if the answer never comes because the other core is gone.
        let guard = RingOnDrop(bell);
        self.call(shard, request, move |reply| {
            *slot.borrow_mut() = Some(reply);
            drop(guard);
        });
        arrived.notified().await;
        answer
            .take()
            .unwrap_or(ShardReply::Refused(Refusal::Stopping))
    }

    /// Sends a change to every core, this one included (applied here before this returns).
    pub fn publish(&self, change: MetaChange) {
        self.meta.borrow_mut().apply(change.clone());
        for shard in (0..self.count()).filter(|&shard| shard != self.index()) {
            self.call(shard, ShardRequest::Publish(change.clone()), |_| {});
        }
    }

    /// The same, and waits until every core knows.
    pub async fn publish_and_wait(&self, change: MetaChange) {
        self.meta.borrow_mut().apply(change.clone());
        let known = Rc::new(crate::base::notify::Notify::default());
        // Rings when the last core has answered, or is gone.
        let guard = Rc::new(RingOnDrop(known.clone()));
        for shard in (0..self.count()).filter(|&shard| shard != self.index()) {
            let guard = guard.clone();
            self.call(shard, ShardRequest::Publish(change.clone()), move |_| {
                drop(guard);
            });
        }
        drop(guard);
        known.notified().await;
    }

    /// Runs a task on this core.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.core.spawn(Box::pin(task));
    }

    /// Wall clock in milliseconds.
    pub fn now_ms(&self) -> u64 {
        self.core.now_ms()
    }

    /// Monotonic clock in milliseconds, since an arbitrary start.
    pub fn monotonic_ms(&self) -> u64 {
        self.core.now_ns() / 1_000_000
    }

    /// Whether this broker may speak for its group: under a controller only while it has a lease.
    pub fn may_acknowledge(&self) -> bool {
        self.core.may_acknowledge()
    }

    /// Completes after `duration`.
    pub fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static {
        self.core.sleep(duration)
    }

    /// A random number; in the simulator it comes from the seed.
    pub fn random_u64(&self) -> u64 {
        self.core.random_u64()
    }

    /// Sets what this core does with [`ShardRequest::PushFrame`]; once, before it serves.
    pub fn set_push_handler(&self, handler: impl Fn(Vec<ConnectionId>, Bytes) + 'static) {
        *self.core.handlers().push.borrow_mut() = Some(Rc::new(handler));
    }

    /// Sets what this core does with [`ShardRequest::Group`]; once, before it serves.
    pub fn set_group_handler(&self, handler: impl Fn(GroupCommand) -> LocalReply + 'static) {
        *self.core.handlers().group.borrow_mut() = Some(Rc::new(handler));
    }

    /// Sets what this core does with [`ShardRequest::Call`]; once, before it serves. The handler calls back once.
    pub fn set_call_handler(
        &self,
        handler: impl Fn(ClientCall, Box<dyn FnOnce(ClientAnswer)>) + 'static,
    ) {
        *self.core.handlers().call.borrow_mut() = Some(Rc::new(handler));
    }

    /// Sets how this core asks producers about open transactions of its logs, and when.
    pub fn set_check_handler(
        &self,
        rules: CheckRules,
        handler: impl Fn(Vec<HalfDue>) -> Task + 'static,
    ) {
        *self.core.handlers().check.borrow_mut() = Some((rules, Rc::new(handler)));
    }

    /// Sets what this core does with slaves that want to follow its logs; once, before it serves.
    pub fn set_slave_handler(&self, handler: impl Fn(SlaveConnection) + 'static) {
        *self.core.handlers().slave.borrow_mut() = Some(Rc::new(handler));
    }

    /// Core 0: what to do when topics were made, changed or deleted; every core knows of it by then.
    pub fn set_topics_handler(&self, handler: impl Fn(&[std::sync::Arc<str>]) + 'static) {
        *self.core.handlers().topics.borrow_mut() = Some(Rc::new(handler));
    }

    /// The key of a queue.
    pub fn key(topic: &Topic, queue_id: u32) -> QueueKey {
        QueueKey {
            topic_id: topic.id,
            queue_id,
        }
    }
}

struct RingOnDrop(Rc<crate::base::notify::Notify>);

impl Drop for RingOnDrop {
    fn drop(&mut self) {
        self.0.notify();
    }
}
