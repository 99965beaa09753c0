//! A master and a slave as two machines with a network between them: the real shards, logs and slave streams.
//!
//! Producers send to whoever is the master; a ledger outside keeps what was acknowledged with enough copies. Links are cut and
//! slow, disks fail or are slow, machines die at any await, alone or together, and now and then the slave is made the master by hand and the old
//! one comes back as its slave. Checked: what was acknowledged is on the slave's own disk at every crash of either side; a
//! slave's log is the front of its master's, byte for byte; after every trouble both find together again.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ringmq::ha::master::StreamTimes;
use ringmq::ha::replica_window::ReplicaRules;
use ringmq::ha::slave::{SlaveOptions, follow, follow_retention};
use ringmq::io::env::Env;
use ringmq::io::sim::{Crash, Faults, Latency, SimEnv, SimNetwork, SimOptions, SimWorld};
use ringmq::shard::message::{Copies, MessageFilter, Pull, ShardReply, ShardRequest};
use ringmq::shard::replication::MasterRules;
use ringmq::shard::{Role, Shard, ShardHandle};
use ringmq::store::manifest::Manifest;
use ringmq::wire::record::RecordView;

use crate::brokers::{
    LOGS, QUEUES, RETENTION_PERIOD, SECRET, SEGMENT_BYTES, Stored, TOPIC, accept, compare_log,
    finish_trims, flip_bit, is_removed, log_directories, make_topic, manifest_like, message,
    old_part, plant, retain, shape_of, shard_options, until_whole, was_removed,
};
use crate::ledger::{breach, caught};
use crate::store::Bell;
use crate::sut::PlantedBug;
use crate::workload::within;

const PRODUCERS: u64 = 4;
/// Both sides have found each other again by then, in virtual time.
const TOGETHER_WITHIN: Duration = Duration::from_secs(120);
const TIMES: StreamTimes = StreamTimes {
    heartbeat: Duration::from_millis(20),
    silence: Duration::from_millis(300),
};

/// A message that was acknowledged with enough copies.
#[derive(Clone)]
struct Promise {
    stored: Stored,
    body: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub acknowledged: u64,
    pub alone: u64,
    pub late: u64,
    pub crashes: u64,
    pub promotions: u64,
    pub refused_joins: u64,
    pub checked: u64,
    /// Slaves that began from a seed.
    pub seeded: u64,
    /// Bits that flipped in the old part of a log, and bytes that were fetched from the other copy for it.
    pub rotted: u64,
    pub repaired_bytes: u64,
}

impl Counts {
    pub fn add(&mut self, other: &Self) {
        self.acknowledged += other.acknowledged;
        self.alone += other.alone;
        self.late += other.late;
        self.crashes += other.crashes;
        self.promotions += other.promotions;
        self.refused_joins += other.refused_joins;
        self.checked += other.checked;
        self.seeded += other.seeded;
        self.rotted += other.rotted;
        self.repaired_bytes += other.repaired_bytes;
    }
}

/// How a slave came to its master.
enum Joined {
    InSync,
    Refused(String),
    Reopens,
}

struct Pair {
    world: SimWorld,
    network: SimNetwork,
    random: RefCell<fastrand::Rng>,
    running: RefCell<[Option<Rc<Shard<SimEnv>>>; 2]>,
    directories: RefCell<[u32; 2]>,
    ever_started: Cell<[bool; 2]>,
    master: Cell<usize>,
    sync_flush: bool,
    segment_bytes: u64,
    /// The slave's logs have to be opened again.
    reopens: Rc<Cell<bool>>,
    /// A machine whose disk takes no more writes: it has to be started again.
    broken: Cell<Option<usize>>,
    promises: Rc<RefCell<Vec<Promise>>>,
    /// Whom producers send to, and the number of that life.
    target: Rc<RefCell<Option<ShardHandle>>>,
    counts: Rc<RefCell<Counts>>,
}

fn address(node: usize) -> String {
    format!("node-{node}")
}

fn master_role() -> Role {
    Role::Master(MasterRules {
        replicas: ReplicaRules {
            waits: true,
            in_sync_replicas: 2,
            min_in_sync_replicas: 1,
            all_ack: false,
            gap_bytes_max: 4 << 20,
            stuck_ms_max: 2_000,
        },
        slave_timeout_ms: 500,
        control: None,
    })
}

impl Pair {
    fn directory(&self, node: usize) -> PathBuf {
        PathBuf::from(format!("/data/store-{}", self.directories.borrow()[node]))
    }

    fn env(&self, node: usize) -> SimEnv {
        let mut ever = self.ever_started.get();
        if std::mem::replace(&mut ever[node], true) {
            return self.world.restart(node);
        }
        self.ever_started.set(ever);
        self.world.core(node)
    }

    fn running(&self, node: usize) -> Option<Rc<Shard<SimEnv>>> {
        self.running.borrow()[node].clone()
    }

    /// Starts a machine in its role.
    fn start(&self, node: usize) {
        let is_master = self.master.get() == node;
        let env = self.env(node);
        let directory = self.directory(node);
        // A slave's store is made like its master's, which it asks in production.
        let shape = self.running(1 - node).map(|other| {
            let options = other.logs().next().unwrap().options();
            (options.store_id, options.segment_bytes)
        });
        let (sync_flush, segment_bytes) = (self.sync_flush, self.segment_bytes);
        self.reopens.set(false);
        let opened = self.world.block_on(within(&env.clone(), TOGETHER_WITHIN, {
            let env = env.clone();
            async move {
                let found = Manifest::read(&env, &directory).await?;
                let manifest = match (found, shape) {
                    (Some(found), _) => found,
                    (None, Some((store_id, segment_bytes))) if !is_master => {
                        let manifest = manifest_like(store_id, segment_bytes);
                        Manifest::create(&env, &directory, manifest).await?
                    }
                    _ => Manifest::open_or_create(&env, &directory, LOGS, segment_bytes).await?,
                };
                let role = match is_master {
                    true => master_role(),
                    false => Role::Slave,
                };
                let options = shard_options(directory, &manifest, sync_flush, role, None);
                Shard::open(env, options).await
            }
        }));
        let shard = match opened {
            Some(Ok(shard)) => shard,
            Some(Err(error)) => breach(format!("machine {node} does not start: {error}")),
            None => breach(format!("machine {node} does not start in time")),
        };
        for log in shard.logs() {
            if let Some(refusal) = log.refusal() {
                breach(format!(
                    "machine {node} starts with a damaged log: {refusal}"
                ));
            }
        }
        shard.start();
        let shape = shape_of(&shard);
        if is_master {
            let (own, weak) = (env.clone(), Rc::downgrade(&shard));
            self.network.listen(&env, &address(node), move |stream| {
                if let Some(shard) = weak.upgrade() {
                    accept(&own, &shard, stream, TIMES, false);
                }
            });
            env.spawn_background(finish_trims(env.clone(), Rc::downgrade(&shard)));
        } else {
            let master = address(self.master.get());
            for log in shard.logs() {
                let (master, reopens) = (master.clone(), self.reopens.clone());
                let options = SlaveOptions {
                    broker_id: 1,
                    shape,
                    secret: Arc::from(SECRET),
                    times: TIMES,
                    master: Rc::new(move || Some(master.clone())),
                    control: None,
                    reopen: Rc::new(move || reopens.set(true)),
                };
                let progress = shard.slave_progress(log.id()).unwrap();
                let net = self.network.of(&env);
                let (own, followed) = (env.clone(), progress.clone());
                env.spawn_background(follow_retention(
                    own,
                    log.clone(),
                    followed,
                    RETENTION_PERIOD,
                ));
                env.spawn(follow(env.clone(), net, log.clone(), options, progress));
            }
        }
        let ready = within(&env, TOGETHER_WITHIN, shard.ready());
        if self.world.block_on(ready).is_none() {
            breach(format!("machine {node} is not ready in time"));
        }
        self.running.borrow_mut()[node] = Some(shard);
    }

    fn crash(&self, node: usize) {
        let crash = match self.sync_flush && self.random.borrow_mut().bool() {
            true => Crash::Power,
            false => Crash::Process,
        };
        self.counts.borrow_mut().crashes += 1;
        if self.master.get() == node {
            *self.target.borrow_mut() = None;
        }
        self.running.borrow_mut()[node] = None;
        self.world.crash(node, crash);
        self.world.with_disk(node, |disk| {
            disk.options.faults = Faults::default();
            disk.options.latency = Latency::default();
        });
        if self.broken.get() == Some(node) {
            self.broken.set(None);
        }
    }

    fn set_cut(&self, is_cut: bool) {
        self.network.set_cut(0, 1, is_cut);
        self.network.set_cut(1, 0, is_cut);
    }

    /// Both run and the slave is in sync in every log; why not, if the master refuses it for good.
    fn together(&self) -> Result<(), String> {
        loop {
            match self.joined() {
                Joined::InSync => return Ok(()),
                Joined::Refused(why) => return Err(why),
                Joined::Reopens => self.reopen_slave(),
            }
        }
    }

    /// The slave begins anew with the seed that it was given.
    fn reopen_slave(&self) {
        let slave = 1 - self.master.get();
        if self.random.borrow_mut().bool()
            && let Some(shard) = self.running(slave)
        {
            let env = self.world.core(slave);
            let stopped = within(&env, TOGETHER_WITHIN, shard.stop());
            if !matches!(self.world.block_on(stopped), Some(Ok(()))) {
                breach("a slave does not stop".to_owned());
            }
        }
        self.counts.borrow_mut().seeded += 1;
        self.crash(slave);
        self.start(slave);
    }

    fn joined(&self) -> Joined {
        let master = self.running(self.master.get()).unwrap();
        let slave = self.running(1 - self.master.get()).unwrap();
        let world = &self.world;
        let joined = async {
            loop {
                let reply = master.handle().ask(0, ShardRequest::Stats).await;
                let ShardReply::Stats(stats) = reply else {
                    breach("no figures".to_owned());
                };
                let in_sync = stats
                    .logs
                    .iter()
                    .all(|log| log.replicas.iter().any(|r| r.is_in_sync));
                if self.reopens.get() {
                    return Joined::Reopens;
                }
                if in_sync {
                    return Joined::InSync;
                }
                let refusal = slave.logs().find_map(|log| {
                    let progress = slave.slave_progress(log.id()).unwrap();
                    let error = progress.last_error();
                    error.contains("empty storePathRootDir").then_some(error)
                });
                if let Some(error) = refusal {
                    return Joined::Refused(error);
                }
                world.sleep(Duration::from_millis(20)).await;
            }
        };
        let env = self.world.core(self.master.get());
        match world.block_on(within(&env, TOGETHER_WITHIN, joined)) {
            Some(joined) => joined,
            None => {
                let errors: Vec<String> = slave
                    .logs()
                    .map(|log| slave.slave_progress(log.id()).unwrap().last_error())
                    .collect();
                breach(format!(
                    "the slave is not in sync within {TOGETHER_WITHIN:?}: {errors:?}"
                ))
            }
        }
    }

    /// Everything that was acknowledged is on this machine.
    fn check_promises(&self, node: usize, when: &str) {
        let shard = self.running(node).unwrap();
        let promises = self.promises.borrow().clone();
        let env = self.world.core(node);
        self.counts.borrow_mut().checked += promises.len() as u64;
        self.world.block_on(async {
            for promise in promises {
                if was_removed(&shard, &promise.stored) {
                    continue;
                }
                let pull = Pull {
                    queue: promise.stored.queue,
                    offset: promise.stored.offset,
                    messages_max: 1,
                    bytes_max: 1,
                    filter: MessageFilter::All,
                    suspend_ms: 0,
                    commit: None,
                };
                let ask = async {
                    loop {
                        let request = ShardRequest::Pull(Box::new(pull.clone()));
                        match shard.handle().ask(0, request).await {
                            ShardReply::Pulled(pulled) if pulled.message_count > 0 => {
                                return pulled.records.into_bytes();
                            }
                            // What log 0 says of a topic is known to the cores a little later.
                            _ => env.sleep(Duration::from_millis(1)).await,
                        }
                    }
                };
                let found = within(&env, Duration::from_secs(5), ask).await;
                let body = found.and_then(|bytes| {
                    let record = RecordView::parse_checked(&bytes).ok()?;
                    (record.queue_offset() == promise.stored.offset).then(|| record.body().to_vec())
                });
                if body.as_deref() != Some(&promise.body[..])
                    && !is_removed(&env, &shard, &promise.stored).await
                {
                    breach(format!(
                        "{when}: machine {node} does not have what was acknowledged at {:?} offset {}",
                        promise.stored.queue, promise.stored.offset
                    ));
                }
            }
        });
    }

    /// The slave's logs are the front of the master's.
    fn compare_logs(&self) {
        let master = self.running(self.master.get()).unwrap();
        let slave = self.running(1 - self.master.get()).unwrap();
        let compare = async {
            for (here, there) in master.logs().zip(slave.logs()) {
                compare_log(here, there, "the slave").await;
            }
        };
        self.world.block_on(compare);
    }

    fn make_topic(&self) {
        let master = self.running(self.master.get()).unwrap();
        let slave = self.running(1 - self.master.get()).unwrap();
        self.world.block_on(async {
            if let Err(why) = make_topic(&master.handle()).await {
                breach(why);
            }
            while !slave.handle().meta().topics.contains_key(TOPIC) {
                self.world.sleep(Duration::from_millis(1)).await;
            }
        });
    }

    /// Clients that live as long as the world and send to whoever is the master.
    fn start_producers(&self) {
        for producer in 0..PRODUCERS {
            let control = (*self.world).clone();
            let (target, promises) = (self.target.clone(), self.promises.clone());
            let counts = self.counts.clone();
            let mut number = 0u64;
            self.world.spawn(async move {
                loop {
                    let pause_us = control.random_u64() % 3_000;
                    control.sleep(Duration::from_micros(pause_us)).await;
                    let handle = target.borrow().clone();
                    let Some(handle) = handle else { continue };
                    let Some(topic) = handle.meta().topics.get(TOPIC).cloned() else {
                        continue;
                    };
                    number += 1;
                    let queue =
                        ShardHandle::key(&topic, (control.random_u64() % u64::from(QUEUES)) as u32);
                    let mut body = format!("{producer} {number} ").into_bytes();
                    let most = if control.random_u64().is_multiple_of(16) {
                        60_000
                    } else {
                        1_500
                    };
                    body.resize(
                        body.len() + (control.random_u64() % most) as usize,
                        number as u8,
                    );
                    let message = message(body.clone(), topic.name.clone(), queue);
                    let answer = Rc::new(RefCell::new(None));
                    let bell = Rc::new(Bell::default());
                    let (slot, ring) = (answer.clone(), bell.clone());
                    handle.append(0, [message].into_iter().collect(), move |reply| {
                        *slot.borrow_mut() = Some(reply);
                        ring.ring();
                    });
                    drop(handle);
                    // Whoever's master has died waits no longer than a client would.
                    let waited = futures_lite::future::or(
                        async { Some(bell.until(|| answer.borrow_mut().take()).await) },
                        async {
                            control.sleep(Duration::from_secs(2)).await;
                            None
                        },
                    );
                    if let Some(ShardReply::Appended(appended)) = waited.await {
                        let mut counts = counts.borrow_mut();
                        match appended.copies {
                            Copies::Enough => {
                                counts.acknowledged += 1;
                                let stored = Stored {
                                    queue,
                                    offset: appended.queue_offset,
                                    at: appended.physical_offsets[0],
                                };
                                promises.borrow_mut().push(Promise { stored, body });
                            }
                            Copies::NoSlave => counts.alone += 1,
                            Copies::Late => counts.late += 1,
                        }
                    }
                }
            });
        }
    }

    /// Producers send for a while, with cuts and delays.
    fn load(&self) {
        let troubles = self.random.borrow_mut().u32(0..4);
        for _ in 0..troubles {
            let (kind, node, pause_us, steps) = {
                let mut random = self.random.borrow_mut();
                let (kind, node) = (random.u8(..11), random.usize(..2));
                (kind, node, random.u64(..40_000), random.u64(100..4_000))
            };
            self.world.block_on(self.world.after_steps(steps));
            match kind {
                0 => self.set_cut(true),
                1 => self.network.set_cut(0, 1, true),
                2 => self.network.set_cut(1, 0, true),
                3 => self.network.set_delay_us_max(20_000),
                4 => self.world.with_disk(node, |disk| {
                    disk.options.faults.read_eio_per_million = 50_000;
                }),
                5 => self.world.with_disk(node, |disk| {
                    disk.options.latency.spikes_per_million = 20_000;
                }),
                9 | 10 => {
                    let master = self.running(self.master.get()).unwrap();
                    let limit = Duration::from_secs(5);
                    let env = self.world.core(self.master.get());
                    let retained = retain(&master, self.segment_bytes);
                    self.world.block_on(within(&env, limit, retained));
                }
                // With ASYNC_FLUSH a failed flush may take what was acknowledged before.
                6 if self.sync_flush && self.broken.get().is_none() => {
                    self.broken.set(Some(node));
                    self.world.with_disk(node, |disk| {
                        disk.options.faults.writes_always_fail = true;
                    });
                }
                _ => self.network.set_delay_us_max(200),
            }
            self.world.run_for(Duration::from_micros(pause_us));
            // Some troubles last until the crash.
            if self.random.borrow_mut().bool() {
                self.set_cut(false);
            }
        }
        let steps = self.random.borrow_mut().u64(10..6_000);
        self.world.block_on(self.world.after_steps(steps));
        for node in 0..2 {
            self.world.with_disk(node, |disk| {
                disk.options.faults.read_eio_per_million = 0;
                disk.options.latency = Latency::default();
            });
        }
    }

    fn heal(&self) {
        self.set_cut(false);
        self.network.set_delay_us_max(200);
    }

    /// The slave alone, off the network, as its disk has it.
    fn check_slave_alone(&self, when: &str) {
        let slave = 1 - self.master.get();
        self.set_cut(true);
        self.start(slave);
        self.check_promises(slave, when);
        self.heal();
    }

    /// Bits of one copy flip while its machine is down, in the part that no start reads. Whatever dies then, as long as both come
    /// together again everything is whole again.
    fn rot(&self) {
        let node = self.random.borrow_mut().usize(..2);
        self.crash(node);
        self.heal();
        let other = self.running(1 - node).unwrap();
        for (id, directory) in log_directories(&self.directory(node)) {
            // What only one of them has cannot be had again.
            let copy = other.logs().find(|log| log.id() == id).unwrap();
            let old = old_part(&self.world, node, &directory);
            let old = old.start.max(copy.start_position().0)..old.end.min(copy.durable_here().0);
            let flips = self.random.borrow_mut().u8(..4);
            for _ in 0..flips {
                if old.is_empty() {
                    break;
                }
                let mut position = self.random.borrow_mut().u64(old.clone());
                let burst = self.random.borrow_mut().u64(1..6);
                for _ in 0..burst {
                    let flipped =
                        flip_bit(&self.world, node, &directory, self.segment_bytes, position);
                    self.counts.borrow_mut().rotted += u64::from(flipped.is_some());
                    position = (position + 700).min(old.end - 1);
                }
            }
        }
        self.start(node);
        *self.target.borrow_mut() = self.running(self.master.get()).map(|shard| shard.handle());
        let steps = self.random.borrow_mut().u64(10..6_000);
        self.world.block_on(self.world.after_steps(steps));
        if self.random.borrow_mut().bool() {
            let dies = self.random.borrow_mut().usize(..2);
            self.crash(dies);
            self.start(dies);
        }
        *self.target.borrow_mut() = None;
        match self.together() {
            Ok(()) => {}
            Err(why) if why.contains("removed by retention") => self.wipe_slave(),
            Err(why) => breach(format!("a slave is refused after bits flipped: {why}")),
        }
        self.check_whole();
        self.compare_logs();
    }

    /// Nothing is damaged on either disk, in the end.
    fn check_whole(&self) {
        for node in 0..2 {
            let shard = self.running(node).unwrap();
            let whole = until_whole(&self.world, node, &shard, |_, _| true);
            if let Err(why) = self.world.block_on(whole) {
                breach(why);
            }
            let repaired = shard.logs().map(|log| log.scrub_figures().repaired_bytes);
            self.counts.borrow_mut().repaired_bytes += repaired.sum::<u64>();
        }
    }

    fn promote(&self) {
        let (old, new) = (self.master.get(), 1 - self.master.get());
        self.crash(old);
        self.crash(new);
        self.heal();
        self.master.set(new);
        self.counts.borrow_mut().promotions += 1;
        self.start(new);
        self.check_promises(new, "after the slave became the master");
        *self.target.borrow_mut() = self.running(new).map(|shard| shard.handle());
        let steps = self.random.borrow_mut().u64(10..3_000);
        self.world.block_on(self.world.after_steps(steps));
        self.start(old);
        if self.together().is_err() {
            self.wipe_slave();
        }
    }

    /// What the operator is told to do.
    fn wipe_slave(&self) {
        let slave = 1 - self.master.get();
        self.counts.borrow_mut().refused_joins += 1;
        self.crash(slave);
        self.directories.borrow_mut()[slave] += 1;
        self.start(slave);
        if let Err(why) = self.together() {
            breach(format!("a slave that was wiped is refused: {why}"));
        }
        self.caught_up();
    }

    /// The slave has all that its master has at this moment: one that was wiped is in sync a little before, and lacks what
    /// was acknowledged before the wipe until then.
    fn caught_up(&self) {
        let master = self.running(self.master.get()).unwrap();
        let slave = self.running(1 - self.master.get()).unwrap();
        let ends: Vec<_> = master.logs().map(|log| log.durable_here()).collect();
        let world = &self.world;
        let caught_up = async {
            let lacks = || {
                slave
                    .logs()
                    .zip(&ends)
                    .any(|(log, end)| log.durable_here() < *end)
            };
            while lacks() {
                world.sleep(Duration::from_millis(20)).await;
            }
        };
        let env = self.world.core(self.master.get());
        let caught_up = self
            .world
            .block_on(within(&env, TOGETHER_WITHIN, caught_up));
        if caught_up.is_none() {
            breach("a slave that was wiped does not catch up".to_owned());
        }
    }

    fn go(&self) {
        self.start(0);
        self.start(1);
        let _ = self.together();
        self.make_topic();
        self.start_producers();
        let lives = self.random.borrow_mut().u32(2..6);
        for _ in 0..lives {
            *self.target.borrow_mut() = self.running(self.master.get()).map(|shard| shard.handle());
            self.load();
            let (master, slave) = (self.master.get(), 1 - self.master.get());
            let end = match self.broken.get() {
                Some(broken) if broken == slave => 0,
                Some(_) => 1,
                None => self.random.borrow_mut().u8(..4),
            };
            match end {
                0 => {
                    self.crash(slave);
                    self.check_slave_alone("after a crash of the slave");
                }
                1 => {
                    self.crash(master);
                    self.check_promises(slave, "after a crash of the master");
                    self.heal();
                    self.start(master);
                }
                2 => {
                    self.crash(master);
                    self.crash(slave);
                    self.check_slave_alone("after a crash of both");
                    self.start(master);
                }
                _ => self.promote(),
            }
            match self.together() {
                Ok(()) => {}
                Err(why) if why.contains("removed by retention") => self.wipe_slave(),
                Err(why) => breach(format!(
                    "a slave that was never on its own is refused: {why}"
                )),
            }
            self.compare_logs();
            if self.random.borrow_mut().bool() {
                self.rot();
            }
        }
        *self.target.borrow_mut() = None;
        self.check_promises(0, "at the end");
        let steps = 2_000;
        self.world.block_on(self.world.after_steps(steps));
        let _ = self.together();
        self.compare_logs();
        self.check_whole();
    }
}

/// Runs one seed; an error tells how the promise was broken.
pub fn run_seed(seed: u64, planted: Option<PlantedBug>, trace: bool) -> Result<Counts, String> {
    let run = || {
        plant(planted);
        let options = SimOptions {
            nodes: 2,
            trace,
            steps_max: 50_000_000,
            memory_is_slow: seed.is_multiple_of(3),
            ..SimOptions::default()
        };
        let world = SimWorld::new(seed, options);
        let network = SimNetwork::new((*world).clone());
        let mut random = fastrand::Rng::with_seed(seed ^ 0x5eed);
        let sync_flush = random.u8(..4) > 0;
        let random_segment = random.usize(..SEGMENT_BYTES.len());
        let pair = Pair {
            world,
            network,
            random: RefCell::new(random),
            running: RefCell::default(),
            directories: RefCell::default(),
            ever_started: Cell::default(),
            master: Cell::new(0),
            sync_flush,
            segment_bytes: SEGMENT_BYTES[random_segment],
            reopens: Rc::default(),
            broken: Cell::default(),
            promises: Rc::default(),
            target: Rc::default(),
            counts: Rc::default(),
        };
        pair.go();
        *pair.target.borrow_mut() = None;
        *pair.running.borrow_mut() = [None, None];
        *pair.counts.borrow()
    };
    let result = caught(run);
    plant(None);
    result
}
