//! One core: its logs, the answers that wait for them, its parked pulls, and its ends of the mesh.
//!
//! Requests come from this core (a call) or from another one (through the mesh) and are served by the same code in
//! `pump.rs`; only the way back differs. Invariant: a request is answered exactly once, and one that is lost with its core
//! is answered [`Refusal::Stopping`] by dropping its callback's guard.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;
use slab::Slab;
use smallvec::SmallVec;

use crate::base::notify::Notify;
use crate::base::offset::{LogId, Position};
use crate::io::env::Env;
use crate::shard::ack_gate::{AckGate, Free};
use crate::shard::figures::TimerFigures;
use crate::shard::handle::{CoreApi, Done, Handlers, ShardHandle, Task};
use crate::shard::hold::Hold;
use crate::shard::locks::QueueLocks;
use crate::shard::message::{
    Copies, Delayed, HalfEnd, LocalReply, MeshMessage, NewHalf, NewMessage, NewRecords, Pull,
    QueueKey, Refusal, ShardReply, ShardRequest, ShardStats,
};
use crate::shard::meta::Meta;
use crate::shard::meta_writer::MetaWriter;
use crate::shard::pop::Pops;
use crate::shard::replication::{MasterRules, Replication, with_copies};
use crate::shard::resets::Resets;
use crate::shard::timers::Bell;
use crate::store::control::Control;
use crate::store::manifest::log_directory;
use crate::store::{CommitLog, LogListener, LogOptions};

/// The way to the other cores. Production: bounded channels of the runtime; simulation: queues of the world.
pub trait Mesh {
    /// Sends in order; gives the message back if too many wait for that core, or if it is gone.
    fn send(&self, to: usize, message: MeshMessage) -> Result<(), (MeshMessage, Refusal)>;
}

/// What a core is started with.
#[derive(Clone, Debug)]
pub struct ShardOptions {
    pub index: usize,
    pub count: usize,
    /// Number of logs of the store; this core runs those whose number modulo `count` is `index`.
    pub logs: LogId,
    /// Directory of the store.
    pub directory: PathBuf,
    /// Options of its logs; number and directory are filled in.
    pub log: LogOptions,
    pub role: Role,
}

/// What this broker is in its group.
#[derive(Clone, Debug)]
pub enum Role {
    Master(MasterRules),
    /// Its logs are copies: it serves reads, and nothing runs here that would write.
    Slave,
}

/// Where an answer goes.
pub(super) enum ReplyTo {
    Local(Done),
    Remote { shard: usize, ticket: u32 },
}

pub(super) struct Waiting {
    pub pull: Pull,
    /// What the consumer asked for; `pull.offset` moves on over entries that it does not want.
    pub asked_offset: i64,
    pub reply_to: ReplyTo,
}

/// What of one log waits for space, in the order of arrival.
pub(super) type Line = VecDeque<(InLine, ReplyTo)>;

#[derive(Clone)]
pub(super) enum InLine {
    Append(Appending),
    EndHalf {
        origin: u64,
        end: HalfEnd,
    },
    /// Somebody asks for an offset that may be in line before.
    QueryOffset {
        group: Arc<str>,
        queue: QueueKey,
    },
}

/// What is to be appended.
#[derive(Clone)]
pub(super) enum Appending {
    Now(Vec<NewMessage>),
    Records(NewRecords),
    Later(Delayed),
    Half(NewHalf),
    Control(Rc<[Control]>),
}

/// A consumer offset, and the position of the record that commits it.
type OffsetAt = (i64, Position);

/// One core. Share it by `Rc`.
pub struct Shard<E: Env> {
    pub(super) env: E,
    pub(super) options: ShardOptions,
    pub(super) logs: BTreeMap<LogId, Rc<CommitLog<E>>>,
    pub(super) meta: Rc<RefCell<Meta>>,
    pub(super) gates: RefCell<AHashMap<LogId, AckGate<Gated>>>,
    pub(super) timers: BTreeMap<LogId, Rc<Bell>>,
    pub(super) halves: BTreeMap<LogId, Rc<Bell>>,
    /// What came before the disk gave its log the next space.
    pub(super) stalled: RefCell<AHashMap<LogId, Line>>,
    pub(super) hold: RefCell<Hold<Waiting>>,
    pub(super) hold_changed: Notify,
    pub(super) pops: Pops,
    pub(super) locks: RefCell<QueueLocks>,
    pub(super) resets: RefCell<Resets>,
    /// Offsets that pulls brought along and that are not in the log yet.
    pub(super) dirty_offsets: RefCell<AHashMap<(Arc<str>, QueueKey), i64>>,
    /// Offsets that are appended and perhaps not durable yet, with the position of their record: whoever commits one and
    /// asks for it on the same connection must see it.
    pub(super) committing: RefCell<AHashMap<(Arc<str>, QueueKey), OffsetAt>>,
    pub(super) offsets_timer: Cell<bool>,
    pub(super) stats: RefCell<ShardStats>,
    pub(super) timer_figures: RefCell<TimerFigures>,
    pub(super) handlers: Handlers,
    pub(super) meta_writer: MetaWriter,
    pub(super) replication: Replication,
    tickets: RefCell<Slab<Done>>,
    mesh: RefCell<Option<Rc<dyn Mesh>>>,
    pub(super) me: Weak<Shard<E>>,
    pub(super) stopping: Cell<bool>,
}

impl<E: Env> Shard<E> {
    /// Opens the logs of this core. Nothing runs before [`Shard::start`].
    pub async fn open(env: E, options: ShardOptions) -> io::Result<Rc<Self>> {
        let mut logs = BTreeMap::new();
        let mut gates = AHashMap::new();
        let mut timers = BTreeMap::new();
        let mut halves = BTreeMap::new();
        let mut replication = Replication::new(&options.role);
        for id in (0..options.logs).filter(|id| usize::from(*id) % options.count == options.index) {
            let mut log_options = options.log.clone();
            log_options.log = id;
            log_options.directory = log_directory(&options.directory, id);
            let log = CommitLog::open(env.clone(), log_options).await?;
            replication.add(id, log.durable_here());
            gates.insert(id, AckGate::new(log.durable()));
            timers.insert(id, Rc::default());
            halves.insert(id, Rc::default());
            logs.insert(id, log);
        }
        Ok(Rc::new_cyclic(|me| Self {
            env,
            options,
            logs,
            meta: Rc::default(),
            gates: RefCell::new(gates),
            timers,
            halves,
            stalled: RefCell::default(),
            hold: RefCell::default(),
            hold_changed: Notify::default(),
            pops: Pops::default(),
            locks: RefCell::default(),
            resets: RefCell::default(),
            dirty_offsets: RefCell::default(),
            committing: RefCell::default(),
            offsets_timer: Cell::new(false),
            stats: RefCell::default(),
            timer_figures: RefCell::default(),
            handlers: Handlers::default(),
            meta_writer: MetaWriter::default(),
            replication,
            tickets: RefCell::default(),
            mesh: RefCell::default(),
            me: me.clone(),
            stopping: Cell::new(false),
        }))
    }

    /// Lets this core answer others. All cores have to before one of them starts.
    pub fn join(&self, mesh: Rc<dyn Mesh>) {
        *self.mesh.borrow_mut() = Some(mesh);
    }

    /// Starts the tasks of this core and its logs. Core 0 then publishes what log 0 knows; see [`Shard::ready`].
    pub fn start(self: &Rc<Self>) {
        for log in self.logs.values() {
            log.start(Rc::new(OwnListener(self.me.clone())));
        }
        if self.is_slave() {
            return self.start_slave();
        }
        self.start_replication();
        for (id, log) in &self.logs {
            let (shard, log, bell) = (self.clone(), log.clone(), self.timers[id].clone());
            self.env
                .spawn(async move { shard.fire_timers(log, bell).await });
            let (shard, log, bell) = (self.clone(), self.logs[id].clone(), self.halves[id].clone());
            self.env
                .spawn(async move { shard.check_halves(log, bell).await });
        }
        let shard = self.clone();
        self.env.spawn(async move { shard.expire_pulls().await });
        let shard = self.clone();
        self.env.spawn(async move { shard.expire_pops().await });
        if self.options.index == 0 {
            let shard = self.clone();
            self.env.spawn(async move { shard.write_meta().await });
        }
    }

    /// The broker's handle.
    pub fn handle(self: &Rc<Self>) -> ShardHandle {
        ShardHandle {
            meta: self.meta.clone(),
            core: self.clone(),
        }
    }

    /// The logs of this core.
    pub fn logs(&self) -> impl Iterator<Item = &Rc<CommitLog<E>>> {
        self.logs.values()
    }

    /// Completes when this core knows all topics and groups.
    pub async fn ready(&self) {
        while !self.meta.borrow().complete {
            self.env.sleep(Duration::from_millis(1)).await;
        }
    }

    /// A message from another core.
    pub fn on_mesh(&self, from: usize, message: MeshMessage) {
        match message {
            MeshMessage::Request { ticket, request } => self.serve(
                request,
                ReplyTo::Remote {
                    shard: from,
                    ticket,
                },
            ),
            MeshMessage::Reply { ticket, reply } => {
                let done = self.tickets.borrow_mut().try_remove(ticket as usize);
                match done {
                    Some(done) => done(reply.into_local()),
                    None => tracing::error!(from, ticket, "an answer without a question"),
                }
            }
        }
    }

    /// Answers a request.
    pub(super) fn reply(&self, to: ReplyTo, reply: LocalReply) {
        match to {
            ReplyTo::Local(done) => done(reply),
            ReplyTo::Remote { shard, ticket } => {
                let mesh = self.mesh.borrow().clone();
                let message = MeshMessage::Reply {
                    ticket,
                    reply: reply.into_mesh(),
                };
                if let Some(mesh) = mesh
                    && let Err((_, refusal)) = mesh.send(shard, message)
                {
                    tracing::debug!(shard, %refusal, "an answer was lost with its core");
                }
            }
        }
    }

    fn send(&self, shard: usize, request: ShardRequest, done: Done) {
        let Some(mesh) = self.mesh.borrow().clone() else {
            return done(ShardReply::Refused(Refusal::Stopping));
        };
        let ticket = self.tickets.borrow_mut().insert(done);
        let message = MeshMessage::Request {
            ticket: ticket as u32,
            request,
        };
        if let Err((_, refusal)) = mesh.send(shard, message) {
            let done = self.tickets.borrow_mut().try_remove(ticket);
            if let Some(done) = done {
                done(ShardReply::Refused(refusal));
            }
        }
    }

    /// Releases everybody who waits for messages, then stops the logs: all is durable, snapshots are made.
    pub async fn stop(self: &Rc<Self>) -> io::Result<()> {
        self.release_pulls();
        self.flush_offsets();
        for log in self.logs.values() {
            log.stop().await?;
        }
        Ok(())
    }

    /// Answers all parked pulls now, and parks no more.
    pub fn release_pulls(&self) {
        self.stopping.set(true);
        let parked = self.hold.borrow_mut().take_all();
        for parked in parked {
            self.answer_empty(parked.waiter);
        }
        self.hold_changed.notify();
        self.release_pops();
        self.ring_all_timers();
    }
}

impl<E: Env> Shard<E> {
    /// Lets the answers leave that wait for nothing any more. A master whose lease is over keeps them.
    pub(super) fn answer_what_is_free(&self, log: LogId) {
        while self.may_acknowledge() {
            // The borrow ends before the answer leaves: a callback may append again.
            let free = self
                .gates
                .borrow_mut()
                .get_mut(&log)
                .and_then(AckGate::next_free);
            let Some(Free {
                answer,
                is_confirmed,
            }) = free
            else {
                return;
            };
            let copies = if is_confirmed {
                Copies::Enough
            } else {
                Copies::NoSlave
            };
            self.reply(answer.reply_to, with_copies(answer.reply, copies));
        }
    }
}

impl<E: Env> CoreApi for Shard<E> {
    fn index(&self) -> usize {
        self.options.index
    }

    fn count(&self) -> usize {
        self.options.count
    }

    fn append(&self, shard: usize, messages: SmallVec<[NewMessage; 1]>, done: Done) {
        if shard == self.options.index {
            self.serve_append(&messages, ReplyTo::Local(done));
        } else {
            let messages = ShardRequest::Append(messages.into_vec().into_boxed_slice());
            self.send(shard, messages, done);
        }
    }

    fn call(&self, shard: usize, request: ShardRequest, done: Done) {
        if shard == self.options.index {
            self.serve(request, ReplyTo::Local(done));
        } else {
            self.send(shard, request, done);
        }
    }

    fn spawn(&self, task: Task) {
        self.env.spawn(task);
    }

    fn now_ms(&self) -> u64 {
        self.env.now_ms()
    }

    fn now_ns(&self) -> u64 {
        self.env.now_ns()
    }

    fn may_acknowledge(&self) -> bool {
        Self::may_acknowledge(self)
    }

    fn sleep(&self, duration: Duration) -> Task {
        Box::pin(self.env.sleep(duration))
    }

    fn random_u64(&self) -> u64 {
        self.env.random_u64()
    }

    fn handlers(&self) -> &Handlers {
        &self.handlers
    }
}

/// An answer that waits at the gate.
pub(super) struct Gated {
    pub reply_to: ReplyTo,
    pub reply: LocalReply,
    /// What is answered if the log fails before: nothing means that the request is refused.
    pub if_failed: Option<Box<LocalReply>>,
}

impl Gated {
    pub fn new(reply_to: ReplyTo, reply: LocalReply) -> Self {
        Self {
            reply_to,
            reply,
            if_failed: None,
        }
    }
}

/// What a log knows of its shard. The shard owns the log: an `Rc` back would keep both for ever.
struct OwnListener<E: Env>(Weak<Shard<E>>);

impl<E: Env> LogListener for OwnListener<E> {
    fn on_durable(&self, log: LogId, end: Position, touched: &[QueueKey]) {
        if let Some(shard) = self.0.upgrade() {
            shard.on_durable(log, end, touched);
        }
    }

    fn on_poisoned(&self, log: LogId, reason: &Arc<str>) {
        if let Some(shard) = self.0.upgrade() {
            shard.on_poisoned(log, reason);
        }
    }
}

impl<E: Env> Shard<E> {
    fn on_durable(&self, log: LogId, end: Position, touched: &[QueueKey]) {
        if let Some(gate) = self.gates.borrow_mut().get_mut(&log) {
            gate.on_durable(end);
        }
        self.answer_what_is_free(log);
        for &queue in touched {
            self.wake_pulls(queue);
            self.wake_pops(queue);
        }
        self.ring_timers(log, end);
        self.note_slave_growth(log);
    }

    fn on_poisoned(&self, log: LogId, reason: &Arc<str>) {
        self.note_failure(false);
        self.committing.borrow_mut().clear();
        let waiting = self
            .gates
            .borrow_mut()
            .get_mut(&log)
            .map(AckGate::take_all)
            .unwrap_or_default();
        for Gated {
            reply_to,
            if_failed,
            ..
        } in waiting
        {
            if let Some(reply) = if_failed {
                self.reply(reply_to, *reply);
                continue;
            }
            let refusal = Refusal::Poisoned {
                log,
                reason: reason.clone(),
            };
            self.reply(reply_to, ShardReply::Refused(refusal));
        }
        self.ring_all_timers();
    }
}
