//! Where what is durable here meets what slaves acknowledge: the gates and the shown ends of this core's logs.
//!
//! On a master, `ha` tells of each acknowledgement ([`Windows`]); the window of the log says how far it is confirmed and how
//! far it may be shown, and both follow at once. With ASYNC_MASTER nothing waits and the windows are for looking at. On a
//! slave nothing runs that writes: no timers, no checks of transactions, no commands of topics and groups. What log 0 says
//! of topics and groups is published to the cores as it comes. A consumer offset that is committed at a slave is kept in
//! memory until the master's log says something newer, as RocketMQ's slaves do.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;

use crate::base::notify::Notify;
use crate::base::offset::{LogId, Position};
use crate::base::planted::{PlantedBug, planted};
use crate::ha::control::{Control, Follower, LogReport};
use crate::ha::master::Windows;
use crate::ha::replica_window::{Member, ReplicaRules, ReplicaWindow};
use crate::ha::slave::SlaveProgress;
use crate::io::env::Env;
use crate::shard::core::{Role, Shard};
use crate::shard::message::{
    Copies, LocalReply, MasterStats, QueueKey, Refusal, ReplicaStats, ShardReply,
};
use crate::store::CommitLog;

/// How often slaves and overdue answers are looked at. Only with SYNC_MASTER.
const TICK: Duration = Duration::from_millis(100);
/// The same with a controller, whose word changes for whom is waited.
const TICK_ELECTED: Duration = Duration::from_millis(20);

/// What a master asks of its slaves.
#[derive(Clone, Debug)]
pub struct MasterRules {
    pub replicas: ReplicaRules,
    /// How long an answer waits for slaves when its bytes are durable here (`slaveTimeout`).
    pub slave_timeout_ms: u64,
    /// Whose word counts on who is in sync and how long this is the master; none with fixed roles.
    pub control: Option<Arc<Control>>,
}

impl MasterRules {
    /// Nothing waits for anybody.
    pub fn alone() -> Self {
        Self {
            replicas: ReplicaRules {
                waits: false,
                in_sync_replicas: 1,
                min_in_sync_replicas: 1,
                all_ack: false,
                gap_bytes_max: 256 << 20,
                stuck_ms_max: 15_000,
            },
            slave_timeout_ms: 3_000,
            control: None,
        }
    }
}

/// An offset that was committed at a slave, and what the log said then.
type SlaveOffset = (i64, Option<i64>);

/// See the module's page.
pub struct Replication {
    /// `None` on a slave.
    rules: Option<MasterRules>,
    windows: RefCell<BTreeMap<LogId, ReplicaWindow>>,
    /// The version of the controller's set that each window knows.
    versions: RefCell<BTreeMap<LogId, u64>>,
    /// Replicas in sync of logs that have too few of them.
    too_few: RefCell<BTreeMap<LogId, u32>>,
    next_connection: Cell<u64>,
    progress: BTreeMap<LogId, Rc<SlaveProgress>>,
    offsets: RefCell<AHashMap<(Arc<str>, QueueKey), SlaveOffset>>,
    /// Log 0 of a slave says something new about topics or groups.
    pub(super) meta_changed: Notify,
}

impl Replication {
    pub(super) fn new(role: &Role) -> Self {
        let rules = match role {
            Role::Master(rules) => Some(rules.clone()),
            Role::Slave => None,
        };
        Self {
            rules,
            windows: RefCell::default(),
            versions: RefCell::default(),
            too_few: RefCell::default(),
            next_connection: Cell::new(1),
            progress: BTreeMap::new(),
            offsets: RefCell::default(),
            meta_changed: Notify::default(),
        }
    }

    pub(super) fn add(&mut self, log: LogId, durable: Position) {
        match &self.rules {
            Some(rules) => {
                let window = ReplicaWindow::new(rules.replicas.clone(), durable.0);
                self.windows.borrow_mut().insert(log, window);
            }
            None => {
                self.progress.insert(log, Rc::default());
            }
        }
    }

    fn waits(&self) -> bool {
        self.rules
            .as_ref()
            .is_some_and(|rules| rules.replicas.waits)
    }

    fn control(&self) -> Option<&Arc<Control>> {
        self.rules.as_ref()?.control.as_ref()
    }
}

/// A reply that also says how many copies there are, if it tells of stored messages.
pub(super) fn with_copies(mut reply: LocalReply, copies: Copies) -> LocalReply {
    if let ShardReply::Appended(appended) = &mut reply {
        appended.copies = copies;
    }
    reply
}

impl<E: Env> Shard<E> {
    /// Whether this broker is a slave.
    pub fn is_slave(&self) -> bool {
        self.replication.rules.is_none()
    }

    /// How a slave's log is doing. `ha` fills it.
    pub fn slave_progress(&self, log: LogId) -> Option<Rc<SlaveProgress>> {
        self.replication.progress.get(&log).cloned()
    }

    pub(super) fn start_replication(self: &Rc<Self>) {
        if !self.replication.waits() {
            return;
        }
        let is_damaged =
            |log: &CommitLog<E>| matches!(log.refusal(), Some(Refusal::Poisoned { .. }));
        if self.logs.values().any(|log| is_damaged(log)) {
            self.note_failure(true);
        }
        let ids: Vec<LogId> = self.logs.keys().copied().collect();
        for id in &ids {
            self.settle(*id);
        }
        let tick = match self.replication.control() {
            Some(_) => TICK_ELECTED,
            None => TICK,
        };
        let shard = self.clone();
        self.env.spawn(async move {
            // With a controller what waits for nobody any more is answered while the core stops, too.
            while !shard.stopping.get() || shard.has_waiting_answers() {
                for id in &ids {
                    shard.tick_replicas(*id);
                }
                shard.env.sleep(tick).await;
            }
        });
    }

    /// Somebody else should be the master, if a controller decides that.
    pub(super) fn note_failure(&self, at_opening: bool) {
        if let Some(control) = self.replication.control() {
            control.note_failure(at_opening);
        }
    }

    pub(super) fn start_slave(self: &Rc<Self>) {
        let shard = self.clone();
        self.env.spawn(async move { shard.expire_pulls().await });
        let shard = self.clone();
        self.env.spawn(async move { shard.expire_pops().await });
        if self.options.index == 0 {
            let shard = self.clone();
            self.env.spawn(async move { shard.follow_meta().await });
        }
    }

    fn monotonic_ms(&self) -> u64 {
        self.env.now_ns() / 1_000_000
    }

    fn tick_replicas(&self, id: LogId) {
        let (Some(rules), Some(log)) = (&self.replication.rules, self.logs.get(&id)) else {
            return;
        };
        let now_ms = self.monotonic_ms();
        if let Some(window) = self.replication.windows.borrow_mut().get_mut(&id) {
            window.on_durable(log.durable_here().0);
            window.tick(now_ms);
        }
        self.settle(id);
        self.report_followers(id);
        self.answer_what_is_free(id);
        let is_deposed = rules
            .control
            .as_ref()
            .is_some_and(|control| control.master_epoch() == 0);
        // While too few are in sync, or for who is no master any more, there is nobody whom it would help to wait for.
        let limit_ms = match self.replication.too_few.borrow().get(&id) {
            Some(_) => 0,
            None if is_deposed => 0,
            None => rules.slave_timeout_ms,
        };
        let written = log.durable_here();
        if let Some(gate) = self.gates.borrow_mut().get_mut(&id) {
            gate.set_now_ms(now_ms);
        }
        loop {
            // The borrow ends before the answer leaves: a callback may append again.
            let overdue = self
                .gates
                .borrow_mut()
                .get_mut(&id)
                .and_then(|gate| gate.next_overdue(written, limit_ms));
            let Some(overdue) = overdue else { return };
            self.reply(overdue.reply_to, with_copies(overdue.reply, Copies::Late));
        }
    }

    fn has_waiting_answers(&self) -> bool {
        self.replication.control().is_some()
            && self.gates.borrow().values().any(|gate| gate.waiting() > 0)
    }

    /// Whether answers may leave: with a controller only while this broker has a lease.
    pub(super) fn may_acknowledge(&self) -> bool {
        self.replication
            .control()
            .is_none_or(|control| control.may_acknowledge())
    }

    /// Takes over for whom the controller's set wants this log to wait.
    fn follow_set(&self, id: LogId, durable: u64) {
        let Some(control) = self.replication.control() else {
            return;
        };
        let mut versions = self.replication.versions.borrow_mut();
        if versions.get(&id) == Some(&control.version()) {
            return;
        }
        let waits = control.waits();
        versions.insert(id, waits.version);
        if let Some(window) = self.replication.windows.borrow_mut().get_mut(&id) {
            window.require(waits.ids, waits.in_sync, durable);
        }
    }

    /// Tells which slaves have what of this log.
    fn report_followers(&self, id: LogId) {
        let (Some(control), Some(log)) = (self.replication.control(), self.logs.get(&id)) else {
            return;
        };
        control.note_log(id, log.epoch(), log.durable_here().0);
        let windows = self.replication.windows.borrow();
        let Some(window) = windows.get(&id) else {
            return;
        };
        let follower = |(&broker_id, member): (&u64, &Member)| {
            let follower = Follower {
                is_in_sync: member.is_in_sync,
                has_all: window.has_all(broker_id),
            };
            (broker_id, follower)
        };
        let report = LogReport {
            version: self
                .replication
                .versions
                .borrow()
                .get(&id)
                .copied()
                .unwrap_or(0),
            followers: window.members().iter().map(follower).collect(),
        };
        control.report(id, report);
    }

    /// Brings gate and shown end of a log to what its window says.
    fn settle(&self, id: LogId) {
        let Some(log) = self.logs.get(&id) else {
            return;
        };
        self.follow_set(id, log.durable_here().0);
        let verdict = match self.replication.windows.borrow_mut().get_mut(&id) {
            Some(window) => window.verdict(),
            None => return,
        };
        if !self.replication.waits() {
            return;
        }
        {
            let mut too_few = self.replication.too_few.borrow_mut();
            if verdict.is_enough {
                too_few.remove(&id);
            } else {
                too_few.insert(id, verdict.in_sync);
            }
        }
        if planted(PlantedBug::AckBeforeReplica) {
            return;
        }
        if let Some(gate) = self.gates.borrow_mut().get_mut(&id) {
            gate.on_replicated(Position(verdict.confirmed));
        }
        log.set_release_limit(verdict.limit);
    }

    /// Refuses new messages while fewer replicas are in sync than `minInSyncReplicas`.
    pub(super) fn check_replicas(&self, id: LogId) -> Result<(), Refusal> {
        let Some(rules) = &self.replication.rules else {
            return Err(Refusal::Replica);
        };
        if !rules.replicas.waits {
            return Ok(());
        }
        if !self.may_acknowledge() {
            return Err(Refusal::NoLease);
        }
        match self.replication.too_few.borrow().get(&id) {
            Some(&in_sync) => Err(Refusal::TooFewReplicas {
                in_sync,
                needed: rules.replicas.min_in_sync_replicas,
            }),
            None => Ok(()),
        }
    }

    /// The slaves that follow a log.
    pub(super) fn replica_stats(&self, id: LogId) -> Vec<ReplicaStats> {
        let windows = self.replication.windows.borrow();
        let members = windows.get(&id).into_iter().flat_map(|w| w.members());
        members
            .map(|(&broker_id, member)| ReplicaStats {
                broker_id,
                address: member.address.clone(),
                acked: Position(member.acked),
                is_in_sync: member.is_in_sync,
            })
            .collect()
    }

    /// What a slave's log knows of its master.
    pub(super) fn master_stats(&self, id: LogId) -> Option<MasterStats> {
        let progress = self.replication.progress.get(&id)?;
        Some(MasterStats {
            is_connected: progress.is_connected.get(),
            end: Position(progress.master_end.get()),
        })
    }

    /// Keeps an offset that was committed at a slave.
    pub(super) fn keep_slave_offset(&self, group: Arc<str>, queue: QueueKey, offset: i64) {
        let known = self.durable_offset(&group, queue);
        let mut offsets = self.replication.offsets.borrow_mut();
        offsets.insert((group, queue), (offset, known));
    }

    /// An offset that was committed here, unless the master's log says something newer by now.
    pub(super) fn slave_offset(&self, group: &Arc<str>, queue: QueueKey) -> Option<i64> {
        if !self.is_slave() {
            return None;
        }
        let key = (group.clone(), queue);
        let (offset, known) = self.replication.offsets.borrow().get(&key).copied()?;
        if known == self.durable_offset(group, queue) {
            return Some(offset);
        }
        self.replication.offsets.borrow_mut().remove(&key);
        None
    }

    /// A log of a slave has grown: log 0 may say something new about topics and groups.
    pub(super) fn note_slave_growth(&self, id: LogId) {
        if id == 0
            && self.is_slave()
            && let Some(log) = self.logs.get(&0)
            && log.tables().borrow().metadata.has_changed()
        {
            self.replication.meta_changed.notify();
        }
    }
}

impl<E: Env> Windows for Shard<E> {
    fn joined(&self, log: LogId, broker_id: u64, address: &str, position: u64) -> u64 {
        let connection = self.replication.next_connection.get();
        self.replication.next_connection.set(connection + 1);
        let now_ms = self.monotonic_ms();
        if let Some(window) = self.replication.windows.borrow_mut().get_mut(&log) {
            if let Some(other) = window.members().get(&broker_id) {
                tracing::warn!(log, slave = broker_id, before = %other.address, now = %address, "a slave's newer connection takes the place of the older one; if these are two machines, they need two brokerIds");
            }
            window.join(broker_id, connection, address.to_owned(), position, now_ms);
        }
        self.settle(log);
        connection
    }

    fn acked(&self, log: LogId, connection: u64, durable: u64) -> bool {
        let now_ms = self.monotonic_ms();
        let Some(own) = self.logs.get(&log) else {
            return false;
        };
        let is_known = match self.replication.windows.borrow_mut().get_mut(&log) {
            Some(window) => {
                window.on_durable(own.durable_here().0);
                window.on_ack(connection, durable, now_ms)
            }
            None => false,
        };
        if is_known {
            self.settle(log);
        }
        is_known
    }

    fn group_epoch(&self) -> u32 {
        let control = self.replication.control();
        control.map_or(0, |control| control.master_epoch())
    }

    fn left(&self, log: LogId, connection: u64) {
        if let Some(window) = self.replication.windows.borrow_mut().get_mut(&log) {
            window.leave(connection);
        }
        self.settle(log);
    }
}
