//! What the broker holds of its core: lookups in the published metadata, and requests to whichever core owns the thing.

use std::cell::{Ref, RefCell};
use std::rc::Rc;
use std::time::Duration;

use crate::base::id::ConnectionId;
use crate::base::offset::LogId;
use crate::shard::message::{
    ClientAnswer, ClientCall, GroupCommand, LocalReply, NewMessage, QueueKey, ShardRequest,
};
use crate::shard::meta::{Meta, MetaChange, Topic};

/// Handle of one core. Cheap to clone.
#[derive(Clone)]
pub struct ShardHandle {
    pub(super) meta: Rc<RefCell<Meta>>,
}

impl ShardHandle {
    /// This core's number, 0-based.
    pub fn index(&self) -> usize {
        todo!()
    }

    /// How many cores there are.
    pub fn count(&self) -> usize {
        todo!()
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

    /// The home core of a consumer or producer group.
    pub fn shard_of_group(&self, group: &str) -> usize {
        let _ = group;
        todo!()
    }

    /// Stores messages of one queue and calls back when they are as safe as the broker is configured for.
    /// The hot road: on the owner's core nothing is boxed, and the callback runs from the ack gate.
    pub fn append(
        &self,
        shard: usize,
        messages: smallvec::SmallVec<[NewMessage; 1]>,
        done: impl FnOnce(LocalReply) + 'static,
    ) {
        let _ = (shard, messages, done);
        todo!()
    }

    /// Asks a core and calls back with the answer, perhaps before this returns.
    pub fn call(
        &self,
        shard: usize,
        request: ShardRequest,
        done: impl FnOnce(LocalReply) + 'static,
    ) {
        let _ = (shard, request, done);
        todo!()
    }

    /// Asks a core and waits for the answer.
    pub async fn ask(&self, shard: usize, request: ShardRequest) -> LocalReply {
        let _ = (shard, request);
        todo!()
    }

    /// Sends a change to every core, this one included (applied here before this returns).
    pub fn publish(&self, change: MetaChange) {
        let _ = change;
        todo!()
    }

    /// Runs a task on this core.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let _ = task;
        todo!()
    }

    /// Wall clock in milliseconds.
    pub fn now_ms(&self) -> u64 {
        todo!()
    }

    /// Completes after `duration`.
    pub fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static {
        let _ = duration;
        async { todo!() }
    }

    /// A random number; in the simulator it comes from the seed.
    pub fn random_u64(&self) -> u64 {
        todo!()
    }

    /// Sets what this core does with [`ShardRequest::PushFrame`]; once, before it serves.
    pub fn set_push_handler(&self, handler: impl Fn(Vec<ConnectionId>, bytes::Bytes) + 'static) {
        let _ = handler;
        todo!()
    }

    /// Sets what this core does with [`ShardRequest::Group`]; once, before it serves.
    pub fn set_group_handler(&self, handler: impl Fn(GroupCommand) -> LocalReply + 'static) {
        let _ = handler;
        todo!()
    }

    /// Sets what this core does with [`ShardRequest::Call`]; once, before it serves. The handler calls back once.
    pub fn set_call_handler(
        &self,
        handler: impl Fn(ClientCall, Box<dyn FnOnce(ClientAnswer)>) + 'static,
    ) {
        let _ = handler;
        todo!()
    }

    /// The key of a queue.
    pub fn key(topic: &Topic, queue_id: u32) -> QueueKey {
        QueueKey {
            topic_id: topic.id,
            queue_id,
        }
    }
}
