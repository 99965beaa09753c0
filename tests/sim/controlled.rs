//! Two or three brokers under controllers: the real shards, logs, slave streams, agents and elections.
//!
//! Each broker is a machine with two processes of the simulated world: the agent, which lives as long as the machine runs, and
//! the cores, which end with each role, as in `app/controlled.rs`. Controllers are machines too (`controllers.rs`). Producers
//! send to whoever takes it; a ledger outside keeps what was acknowledged, by whom and when, and what consumers were shown.
//! Links are cut in one direction or both and are slow, machines stand still, die at any await and come back, disks fail,
//! clocks run at different speeds and jump, the controllers' leader changes, and an operator moves the master.
//!
//! Checked: a master that begins has everything that was acknowledged before its epoch; an epoch has one master; nobody
//! acknowledges in an older epoch than somebody else has; elections take members of the in-sync set (`controllers.rs`);
//! what was shown stays; a log never comes back longer than it was; after every trouble the group finds together again.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_lite::future::or;
use ringmq::base::doubt::Doubt;
use ringmq::base::offset::{LogId, PhysicalOffset};
use ringmq::ha::agent::{
    Agent, AgentOptions, CHANGE_TIMEOUT, Heard, Identity, Looked, Opening, PAUSE, SetKeeper, Step,
    Wanted,
};
use ringmq::ha::control::Control;
use ringmq::ha::master::StreamTimes;
use ringmq::ha::replica_window::ReplicaRules;
use ringmq::ha::slave::{SlaveOptions, ask_shape, follow, follow_retention};
use ringmq::io::env::Env;
use ringmq::io::sim::{
    Control as World, Crash, Faults, Latency, SimEnv, SimNetwork, SimOptions, SimWorld,
};
use ringmq::shard::message::{
    Copies, MessageFilter, NewMessage, Pull, QueueKey, ShardReply, ShardRequest,
};
use ringmq::shard::replication::MasterRules;
use ringmq::shard::{Role, Shard, ShardHandle};
use ringmq::store::commit_log::repair;
use ringmq::store::manifest::{Manifest, log_directory};
use ringmq::wire::record::RecordView;
use ringmq::wire::remoting::code::{request, response};
use ringmq::wire::remoting::command::Outgoing;

use crate::brokers::{
    LOGS, QUEUES, RETENTION_PERIOD, SECRET, SEGMENT_BYTES, Stored, TOPIC, accept, compare_log,
    finish_trims, flip_bit, is_removed, log_directories, make_topic, manifest_like, message,
    old_part, plant, retain, shape_of, shard_options, start_on_disk, until_whole,
};
use crate::controllers::{self, GROUP, Line, Parliament, local_ns};
use crate::ledger::{breach, caught};
use crate::store::Bell;
use crate::sut::PlantedBug;
use crate::workload::within;

const PRODUCERS: u64 = 3;
const DIRECTORY: &str = "/data/store";
/// All have found each other again by then, in virtual time.
const TOGETHER_WITHIN: Duration = Duration::from_secs(60);
/// How long a node that could not start waits for its next try, as in `app/controlled.rs`.
const RETRY: Duration = Duration::from_millis(500);

/// What a message is known by: its queue and its place there.
type Place = (u32, i64);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub acknowledged: u64,
    pub late: u64,
    pub shown: u64,
    pub crashes: u64,
    pub elections: u64,
    pub lives: u64,
    pub checked: u64,
    pub unknown: u64,
    /// Logs that began from a seed.
    pub seeded: u64,
    /// Logs in which bits were flipped, and openings that found something.
    pub rotted: u64,
    pub doubted: u64,
    /// Bits that flipped in the old part of a log, and bytes that were fetched for them.
    pub rotted_old: u64,
    pub repaired_bytes: u64,
    /// How often all controllers forgot everything.
    pub forgotten: u64,
}

impl Counts {
    pub fn add(&mut self, other: &Self) {
        self.acknowledged += other.acknowledged;
        self.late += other.late;
        self.shown += other.shown;
        self.crashes += other.crashes;
        self.elections += other.elections;
        self.lives += other.lives;
        self.checked += other.checked;
        self.unknown += other.unknown;
        self.seeded += other.seeded;
        self.rotted += other.rotted;
        self.doubted += other.doubted;
        self.rotted_old += other.rotted_old;
        self.repaired_bytes += other.repaired_bytes;
        self.forgotten += other.forgotten;
    }
}

/// An acknowledged message.
#[derive(Clone, Copy)]
struct Promise {
    epoch: u32,
    digest: u64,
    /// Where its record lies.
    stored_at: PhysicalOffset,
}

/// A message that somebody has shown, first by whom: its broker, the epoch of a master or 0, and when.
#[derive(Clone, Copy)]
struct Shown {
    digest: u64,
    by: (usize, u32, u64),
}

#[derive(Clone)]
struct Running {
    shard: Rc<Shard<SimEnv>>,
    /// 0 of a slave.
    epoch: u32,
}

/// A broker's machine: what is on its disk, and handles of what runs.
#[derive(Default)]
struct Broker {
    /// Who it is, and what it has applied for: two small files in production.
    identity: RefCell<(Option<Identity>, Option<Identity>)>,
    is_up: Cell<bool>,
    /// Its cores, from when they are open.
    opened: RefCell<Option<Rc<Shard<SimEnv>>>>,
    running: RefCell<Option<Running>>,
    line: RefCell<Option<Rc<Line>>>,
    /// Where each log ended in memory when its last process ended.
    ends: RefCell<BTreeMap<LogId, u64>>,
    /// The process has ended by itself.
    has_exited: Cell<bool>,
    /// Bits of its logs were flipped, and not everything was fetched again yet. It is not started before.
    rotted_until_ns: Cell<Option<u64>>,
    is_flipped: Cell<bool>,
    /// The same in the old part of a log, where it keeps nobody from anything.
    is_rotten: Cell<bool>,
    was_rotten: Cell<bool>,
    flipped: RefCell<Option<(PathBuf, u64, u8)>>,
    rate: Cell<u64>,
}

/// Everything outside of the machines.
struct Group {
    world: World,
    network: SimNetwork,
    parliament: Rc<Parliament>,
    brokers: Vec<Broker>,
    controllers_up: RefCell<Vec<bool>>,
    controller_rates: Vec<u64>,
    ever_started: RefCell<Vec<bool>>,
    random: RefCell<fastrand::Rng>,
    sync_flush: bool,
    segment_bytes: u64,
    timeout_ms: u64,
    min_in_sync: u32,
    times: StreamTimes,
    promises: RefCell<BTreeMap<Place, Promise>>,
    shown: RefCell<BTreeMap<Place, Shown>>,
    masters: RefCell<BTreeMap<u32, usize>>,
    newest_epoch: Cell<u32>,
    /// Who may be elected by an operator after the controllers have forgotten everything, and from when on.
    remembered: RefCell<Option<(Vec<u64>, u64)>>,
    is_loaded: Cell<bool>,
    counts: RefCell<Counts>,
}

fn digest(bytes: &[u8]) -> u64 {
    (bytes.len() as u64) << 32 | u64::from(crc32c::crc32c(bytes))
}

fn ha_address(broker: usize) -> String {
    format!("broker-{broker}")
}

impl Group {
    fn core_node(&self, broker: usize) -> usize {
        2 * broker
    }

    fn agent_node(&self, broker: usize) -> usize {
        2 * broker + 1
    }

    fn controller_node(&self, controller: usize) -> usize {
        2 * self.brokers.len() + controller
    }

    /// A fresh process of a node that does not run.
    fn process(&self, node: usize) -> SimEnv {
        let was_there = std::mem::replace(&mut self.ever_started.borrow_mut()[node], true);
        match was_there {
            true => self.world.restart(node),
            false => self.world.core(node),
        }
    }

    fn rules(&self, control: &Arc<Control>) -> MasterRules {
        MasterRules {
            replicas: ReplicaRules {
                waits: true,
                in_sync_replicas: 2,
                min_in_sync_replicas: self.min_in_sync,
                all_ack: false,
                gap_bytes_max: 4 << 20,
                stuck_ms_max: 3 * self.timeout_ms,
            },
            slave_timeout_ms: 500,
            control: Some(control.clone()),
        }
    }

    fn start_controller(&self, controller: usize) {
        let env = self.process(self.controller_node(controller));
        let rate = self.controller_rates[controller];
        controllers::start(&env, &self.network, &self.parliament, controller, rate);
        self.controllers_up.borrow_mut()[controller] = true;
    }

    fn crash_controller(&self, controller: usize) {
        self.controllers_up.borrow_mut()[controller] = false;
        self.world
            .crash(self.controller_node(controller), Crash::Process);
    }

    /// Another controller leads, or the same one again.
    fn change_leader(&self) {
        let up: Vec<usize> = (0..self.controller_rates.len())
            .filter(|controller| self.controllers_up.borrow()[*controller])
            .collect();
        let random = self.world.random_u64();
        controllers::elect_leader(&self.world, &self.parliament, &up, random);
    }

    /// Starts a broker's machine.
    fn start(self: &Rc<Self>, at: usize) {
        let broker = &self.brokers[at];
        if broker.rotted_until_ns.get().is_some() && !broker.is_flipped.replace(true) {
            self.flip_bits(at);
        }
        broker.is_up.set(true);
        broker.has_exited.set(false);
        let env = self.process(self.agent_node(at));
        let (clock, rate) = (self.world.clock(), broker.rate.get());
        let control = Control::new(Box::new(move || {
            local_ns(clock.load(Ordering::Relaxed), rate)
        }));
        let heard = Heard::new(control, Box::new(|_| {}));
        let (group, own, ears) = (self.clone(), env.clone(), heard.clone());
        env.spawn(async move { group.run_agent(at, own, ears).await });
        let (group, own, ears) = (self.clone(), env.clone(), heard.clone());
        env.spawn(async move { group.keep_sets(at, own, ears).await });
        let group = self.clone();
        env.clone()
            .spawn(async move { group.live(at, env, heard).await });
    }

    /// The cores of a broker have ended, or are about to.
    fn note_ends(&self, at: usize) {
        let broker = &self.brokers[at];
        *broker.running.borrow_mut() = None;
        if let Some(shard) = broker.opened.borrow_mut().take() {
            for log in shard.logs() {
                let end = log.replica_end().position;
                broker.ends.borrow_mut().insert(log.id(), end);
            }
        }
    }

    fn crash(&self, at: usize, crash: Crash) {
        let broker = &self.brokers[at];
        self.note_ends(at);
        broker.is_up.set(false);
        *broker.line.borrow_mut() = None;
        self.counts.borrow_mut().crashes += 1;
        self.world.crash(self.agent_node(at), Crash::Process);
        self.world.crash(self.core_node(at), crash);
        self.world.with_disk(self.core_node(at), |disk| {
            disk.options.faults = Faults::default();
            disk.options.latency = Latency::default();
        });
    }

    fn any_crash(&self) -> Crash {
        match self.sync_flush && self.random.borrow_mut().bool() {
            true => Crash::Power,
            false => Crash::Process,
        }
    }

    // The agent's driver, as `app/controlled.rs` has it.

    async fn run_agent(self: Rc<Self>, at: usize, env: SimEnv, heard: Arc<Heard>) {
        let broker = &self.brokers[at];
        let control = heard.control().clone();
        let options = AgentOptions {
            cluster: "c".to_owned(),
            broker_name: GROUP.to_owned(),
            address: format!("clients-{at}"),
            ha_address: ha_address(at),
            timeout_ms: self.timeout_ms,
            heartbeat_ms: self.timeout_ms / 5,
            priority: 7,
            check_code: format!("{:016x}", env.random_u64()),
        };
        let mut agent = Agent::new(options, heard.clone());
        loop {
            let seen = control.bell().rings();
            let step = agent.next_step();
            // A file takes its time, and the machine may die in it.
            if !matches!(step, Step::Wait { .. } | Step::Ask(_)) {
                let pause_us = env.random_u64() % 2_000;
                env.sleep(Duration::from_micros(pause_us)).await;
            }
            let result = match step {
                Step::Over => return,
                Step::Wait { until_ns } => {
                    let left_ns = until_ns.saturating_sub(control.now_ns());
                    let left = Duration::from_nanos(left_ns);
                    within(&env, left, control.bell().rung(seen)).await;
                    continue;
                }
                Step::Load => {
                    let (own, wish) = broker.identity.borrow().clone();
                    agent.on_loaded(own, wish)
                }
                Step::SaveWish(wish) => {
                    broker.identity.borrow_mut().1 = Some(wish);
                    agent.on_saved()
                }
                Step::SaveOwn(own) => {
                    *broker.identity.borrow_mut() = (Some(own), None);
                    agent.on_saved()
                }
                Step::DropWish => {
                    broker.identity.borrow_mut().1 = None;
                    agent.on_saved()
                }
                Step::Look => match self.look(at).await {
                    Ok(looked) => agent.on_looked(looked),
                    Err(error) => agent.on_failed(error.to_string()),
                },
                Step::Ask(ask) => match self.leader(at, &env, &heard).await {
                    None => agent.on_failed("nobody leads"),
                    Some(line) => {
                        let request = agent.request(ask);
                        let body = agent.body(ask);
                        match line.call(&env, request, &body, agent.limit(ask)).await {
                            Some(answer) => agent.on_answer(&answer),
                            None => agent.on_failed("no answer"),
                        }
                    }
                },
            };
            if result.is_err_and(|trouble| !trouble.is_answer) {
                let line = broker.line.borrow_mut().take();
                if let Some(line) = line {
                    line.close();
                }
            }
        }
    }

    async fn look(&self, at: usize) -> std::io::Result<Looked> {
        let core = self.process(self.core_node(at));
        let looks = repair::look(&core, Path::new(DIRECTORY)).await;
        self.world.crash(self.core_node(at), Crash::Process);
        looks.map(|looks| Looked::of(&looks))
    }

    /// The connection to the leading controller.
    async fn leader(&self, at: usize, env: &SimEnv, heard: &Arc<Heard>) -> Option<Rc<Line>> {
        let broker = &self.brokers[at];
        let known = broker.line.borrow().clone();
        if let Some(line) = known.filter(|line| line.is_open()) {
            return Some(line);
        }
        let limit = Duration::from_millis(self.timeout_ms / 2);
        let count = self.controller_rates.len() as u64;
        let first = (env.random_u64() % count) as usize;
        let ears = || Some(heard.clone());
        let address = controllers::address(first);
        let line = Line::connect(env, &self.network, &address, limit, ears()).await?;
        let ask = Outgoing::request(request::CONTROLLER_GET_METADATA_INFO);
        let found = line.call(env, ask, &[], limit).await?;
        let line = match found.text("controllerLeaderAddress") {
            _ if found.flag("isLeader") => line,
            Some(address) if !address.is_empty() => {
                line.close();
                Line::connect(env, &self.network, &address, limit, ears()).await?
            }
            _ => {
                line.close();
                return None;
            }
        };
        *broker.line.borrow_mut() = Some(line.clone());
        Some(line)
    }

    async fn keep_sets(self: Rc<Self>, at: usize, env: SimEnv, heard: Arc<Heard>) {
        let control = heard.control();
        let mut keeper = SetKeeper::new(control.clone(), GROUP.to_owned());
        loop {
            let seen = control.bell().rings();
            let Some((alter, body, _)) = keeper.next_proposal() else {
                within(&env, Duration::from_secs(1), control.bell().rung(seen)).await;
                continue;
            };
            let known = self.brokers[at].line.borrow().clone();
            let Some(line) = known.filter(|line| line.is_open()) else {
                env.sleep(PAUSE).await;
                continue;
            };
            let answer = line.call(&env, alter, &body, CHANGE_TIMEOUT).await;
            if !answer.is_some_and(|answer| keeper.on_answer(&answer)) {
                env.sleep(PAUSE).await;
            }
        }
    }

    // The node in the role of the moment.

    async fn live(self: Rc<Self>, at: usize, env: SimEnv, heard: Arc<Heard>) {
        let control = heard.control().clone();
        loop {
            let opening = loop {
                let seen = control.bell().rings();
                if let Some(opening) = heard.opening() {
                    break opening;
                }
                control.bell().rung(seen).await;
            };
            let role = opening.role;
            control.restarts();
            let core = self.process(self.core_node(at));
            let result = self.one_life(at, &env, &core, &heard, opening).await;
            self.note_ends(at);
            self.world.crash(self.core_node(at), Crash::Process);
            match result {
                Ok(()) => {}
                Err(_) if heard.is_over(role) && !control.has_failed() => env.sleep(RETRY).await,
                Err(_) => {
                    self.brokers[at].has_exited.set(true);
                    return;
                }
            }
        }
    }

    async fn over(&self, heard: &Heard, role: Wanted) {
        let bell = heard.control().bell();
        loop {
            let seen = bell.rings();
            if heard.is_over(role) {
                return;
            }
            bell.rung(seen).await;
        }
    }

    /// From the opening of the logs to their end. The error is why the process would end.
    async fn one_life(
        self: &Rc<Self>,
        at: usize,
        env: &SimEnv,
        core: &SimEnv,
        heard: &Arc<Heard>,
        opening: Opening,
    ) -> Result<(), String> {
        let broker = &self.brokers[at];
        let control = heard.control();
        let Opening {
            role,
            master_epoch,
            in_sync,
            ..
        } = opening;
        let is_slave = role == Wanted::Slave;
        let manifest = self.manifest(core, heard, role).await?;
        control.begin_life(
            master_epoch,
            usize::from(manifest.logs),
            in_sync.0,
            in_sync.1,
        );
        let role_of_shard = match is_slave {
            true => Role::Slave,
            false => Role::Master(self.rules(control)),
        };
        let options = shard_options(
            PathBuf::from(DIRECTORY),
            &manifest,
            self.sync_flush,
            role_of_shard,
            Some(master_epoch),
        );
        let shard = Shard::open(core.clone(), options)
            .await
            .map_err(|error| error.to_string())?;
        for log in shard.logs() {
            self.counts.borrow_mut().doubted += u64::from(log.doubt() > Doubt::None);
            // An older snapshot may be the newest one that is left: what was old damage is in what a start reads then.
            if let Some(refusal) = log.refusal()
                && broker.rotted_until_ns.get().is_none()
                && !broker.is_rotten.get()
            {
                breach(format!(
                    "broker {at} starts with a damaged log {}: {refusal}",
                    log.id()
                ));
            }
            self.counts.borrow_mut().seeded += u64::from(log.is_seeding());
            let (end, before) = (
                log.durable_here().0,
                broker.ends.borrow().get(&log.id()).copied(),
            );
            // A log that begins where its master's begins is longer than the one that it was.
            let is_cut = before.is_some_and(|before| log.start_position().0 <= before);
            if is_cut && before.is_some_and(|before| end > before) {
                breach(format!(
                    "log {} of broker {at} comes back with {end} bytes, and had {before:?}: what was cut off is there again",
                    log.id()
                ));
            }
        }
        *broker.opened.borrow_mut() = Some(shard.clone());
        self.counts.borrow_mut().lives += 1;
        shard.start();
        if is_slave {
            self.follow_master(core, heard, &shard);
        } else {
            let (own, weak, times) = (core.clone(), Rc::downgrade(&shard), self.times);
            self.network.listen(core, &ha_address(at), move |stream| {
                if let Some(shard) = weak.upgrade() {
                    accept(&own, &shard, stream, times, true);
                }
            });
            core.spawn_background(finish_trims(core.clone(), Rc::downgrade(&shard)));
            let ready = async {
                shard.ready().await;
                true
            };
            let over = async {
                self.over(heard, role).await;
                false
            };
            // Who is the master has everything that was acknowledged before.
            if or(ready, over).await {
                let check = self.check_promises(at, core, &shard, master_epoch);
                or(check, self.over(heard, role)).await;
            }
        }
        *broker.running.borrow_mut() = Some(Running {
            shard: shard.clone(),
            epoch: master_epoch,
        });
        self.over(heard, role).await;
        *broker.running.borrow_mut() = None;
        shard.release_pulls();
        // What is under way is answered.
        let pause_us = env.random_u64() % 100_000;
        env.sleep(Duration::from_micros(pause_us)).await;
        shard.stop().await.map_err(|error| error.to_string())?;
        match control.has_failed() {
            true => Err("a log of this broker took no writes any more".to_owned()),
            false => Ok(()),
        }
    }

    async fn manifest(
        &self,
        core: &SimEnv,
        heard: &Heard,
        role: Wanted,
    ) -> Result<Manifest, String> {
        let directory = PathBuf::from(DIRECTORY);
        let text = |error: std::io::Error| error.to_string();
        if let Some(found) = Manifest::read(core, &directory).await.map_err(text)? {
            return Ok(found);
        }
        if role != Wanted::Slave {
            let made = Manifest::open_or_create(core, &directory, LOGS, self.segment_bytes).await;
            return made.map_err(text);
        }
        let net = self.network.of(core);
        while !heard.is_over(role) {
            let address = heard.word().master_address;
            if let Ok(shape) = ask_shape(core, &net, &address, SECRET).await {
                let manifest = manifest_like(shape.store_id, shape.segment_bytes);
                let made = Manifest::create(core, &directory, manifest).await;
                return made.map_err(text);
            }
            core.sleep(Duration::from_millis(100)).await;
        }
        Err("stopped before the master could be asked".to_owned())
    }

    fn follow_master(
        self: &Rc<Self>,
        core: &SimEnv,
        heard: &Arc<Heard>,
        shard: &Rc<Shard<SimEnv>>,
    ) {
        let control = heard.control();
        let (own, logs, noted) = (core.clone(), shard.clone(), control.clone());
        core.spawn(async move {
            loop {
                for log in logs.logs() {
                    noted.note_log(log.id(), log.epoch(), log.durable_here().0);
                }
                own.sleep(Duration::from_millis(50)).await;
            }
        });
        for log in shard.logs() {
            let (ears, asked) = (heard.clone(), control.clone());
            let options = SlaveOptions {
                broker_id: control.id(),
                shape: shape_of(shard),
                secret: Arc::from(SECRET),
                times: self.times,
                master: Rc::new(move || {
                    let word = ears.word();
                    (!word.master_address.is_empty()).then_some(word.master_address)
                }),
                control: Some(control.clone()),
                reopen: Rc::new(move || asked.ask_for_restart()),
            };
            let progress = shard.slave_progress(log.id()).unwrap();
            let net = self.network.of(core);
            let (own, followed) = (core.clone(), progress.clone());
            core.spawn_background(follow_retention(
                own,
                log.clone(),
                followed,
                RETENTION_PERIOD,
            ));
            core.spawn(follow(core.clone(), net, log.clone(), options, progress));
        }
    }

    // The ledger.

    /// Reads a queue from `offset` on: places and digests of what there is, up to `limit` messages.
    async fn read(
        &self,
        env: &SimEnv,
        handle: &ShardHandle,
        queue: QueueKey,
        offset: i64,
        limit: u32,
    ) -> Option<Vec<(i64, u64)>> {
        let pull = Pull {
            queue,
            offset,
            messages_max: limit,
            bytes_max: 1 << 20,
            filter: MessageFilter::All,
            suspend_ms: 0,
            commit: None,
        };
        let ask = handle.ask(0, ShardRequest::Pull(Box::new(pull)));
        let reply = within(env, Duration::from_secs(5), ask).await?;
        let ShardReply::Pulled(pulled) = reply else {
            return None;
        };
        let records = pulled.records.into_bytes();
        let mut rest = &records[..];
        let mut found = Vec::new();
        while let Some(size) = rest.first_chunk::<4>() {
            let size = u32::from_be_bytes(*size) as usize;
            let record = RecordView::parse_checked(&rest[..size])
                .unwrap_or_else(|error| breach(format!("what was read is no record: {error}")));
            found.push((record.queue_offset(), digest(record.body())));
            rest = &rest[size..];
        }
        Some(found)
    }

    /// Whether another machine has this part of a log. A slave that its master has lost may have what that master's retention has
    /// removed; when it is elected, and damaged there, nobody can help it.
    fn is_elsewhere(&self, at: usize, log: LogId, position: u64) -> bool {
        let directory = log_directory(Path::new(DIRECTORY), log);
        let start = |other| start_on_disk(&self.world, self.core_node(other), &directory);
        (0..self.brokers.len())
            .any(|other| other != at && start(other).is_some_and(|start| start <= position))
    }

    /// Everything that was acknowledged before this epoch is here.
    async fn check_promises(&self, at: usize, env: &SimEnv, shard: &Rc<Shard<SimEnv>>, epoch: u32) {
        let due: Vec<(Place, u64, PhysicalOffset)> = self
            .promises
            .borrow()
            .iter()
            .filter(|(_, promise)| promise.epoch < epoch)
            .map(|(place, promise)| (*place, promise.digest, promise.stored_at))
            .collect();
        if due.is_empty() {
            return;
        }
        let handle = shard.handle();
        let Some(topic) = handle.meta().topics.get(TOPIC).cloned() else {
            breach(format!(
                "broker {at}, master of epoch {epoch}, does not know the topic"
            ));
        };
        let (mut here, mut lost) = (BTreeMap::new(), BTreeSet::new());
        for queue in 0..QUEUES {
            let key = ShardHandle::key(&topic, queue);
            let bounds = shard.logs().map(|log| log.bounds(key));
            let mut next = bounds.map(|bounds| bounds.min_offset).max().unwrap_or(0);
            loop {
                let Some(found) = self.read(env, &handle, key, next, 64).await else {
                    // The disk does not let itself be read at the moment, or it is to be repaired.
                    env.sleep(Duration::from_millis(10)).await;
                    if self.brokers[at].was_rotten.get() {
                        for log in shard.logs() {
                            let found = log.entry(key, next).await.ok().flatten();
                            let is_lost = |position| !self.is_elsewhere(at, log.id(), position);
                            if found.is_some_and(|entry| is_lost(entry.position)) {
                                lost.insert((queue, next));
                                next += 1;
                                break;
                            }
                        }
                    }
                    continue;
                };
                let Some((last, _)) = found.last() else { break };
                next = last + 1;
                here.extend(
                    found
                        .into_iter()
                        .map(|(offset, digest)| ((queue, offset), digest)),
                );
            }
        }
        self.counts.borrow_mut().checked += due.len() as u64;
        for (place, digest, stored_at) in due {
            let stored = Stored {
                queue: ShardHandle::key(&topic, place.0),
                offset: place.1,
                at: stored_at,
            };
            if here.get(&place) != Some(&digest)
                && !lost.contains(&place)
                && !is_removed(env, shard, &stored).await
            {
                let what = match here.contains_key(&place) {
                    true => "has another message",
                    false => "has nothing",
                };
                breach(format!(
                    "broker {at}, master of epoch {epoch}, {what} where one of epoch {} was acknowledged: queue {} offset {}",
                    self.promises.borrow()[&place].epoch,
                    place.0,
                    place.1
                ));
            }
        }
    }

    fn on_acknowledged(&self, at: usize, place: Place, promise: Promise) {
        let epoch = promise.epoch;
        let master = *self.masters.borrow_mut().entry(epoch).or_insert(at);
        if master != at {
            breach(format!(
                "broker {at} and broker {master} acknowledge in epoch {epoch}"
            ));
        }
        if epoch < self.newest_epoch.get() {
            breach(format!(
                "broker {at} acknowledges in epoch {epoch}, and somebody has in epoch {}",
                self.newest_epoch.get()
            ));
        }
        self.newest_epoch.set(epoch);
        self.counts.borrow_mut().acknowledged += 1;
        if self.promises.borrow_mut().insert(place, promise).is_some() {
            breach(format!("two messages were acknowledged at {place:?}"));
        }
    }

    fn message(&self, producer: u64, number: u64, topic: Arc<str>, queue: QueueKey) -> NewMessage {
        let mut body = format!("{producer} {number} ").into_bytes();
        let most = match self.world.random_u64() % 32 {
            0 => 60_000,
            _ => 1_000,
        };
        let bytes = (self.world.random_u64() % most) as usize;
        body.resize(body.len() + bytes, number as u8);
        message(body, topic, queue)
    }

    fn random_broker(&self) -> usize {
        (self.world.random_u64() % self.brokers.len() as u64) as usize
    }

    /// A client that sends to whoever takes it.
    async fn produce(self: Rc<Self>, producer: u64) {
        let mut number = 0;
        loop {
            let pause_us = self.world.random_u64() % 15_000;
            self.world.sleep(Duration::from_micros(pause_us)).await;
            let at = self.random_broker();
            let running = self.brokers[at].running.borrow().clone();
            let Some(Running { shard, epoch }) = running.filter(|running| running.epoch > 0) else {
                continue;
            };
            if !self.is_loaded.get() || self.world.is_paused(self.core_node(at)) {
                continue;
            }
            let handle = shard.handle();
            let Some(topic) = handle.meta().topics.get(TOPIC).cloned() else {
                continue;
            };
            number += 1;
            let queue_id = (self.world.random_u64() % u64::from(QUEUES)) as u32;
            let queue = ShardHandle::key(&topic, queue_id);
            let message = self.message(producer, number, topic.name.clone(), queue);
            let digest = digest(&message.body);
            let bell = Rc::new(Bell::default());
            let is_answered = Rc::new(Cell::new(false));
            let (group, ring, answered) = (self.clone(), bell.clone(), is_answered.clone());
            handle.append(0, [message].into_iter().collect(), move |reply| {
                // At the moment in which the answer leaves.
                if let ShardReply::Appended(appended) = &reply {
                    match appended.copies {
                        Copies::Enough => {
                            let place = (queue_id, appended.queue_offset);
                            let stored_at = appended.physical_offsets[0];
                            group.on_acknowledged(
                                at,
                                place,
                                Promise {
                                    epoch,
                                    digest,
                                    stored_at,
                                },
                            );
                        }
                        Copies::NoSlave | Copies::Late => group.counts.borrow_mut().late += 1,
                    }
                }
                answered.set(true);
                ring.ring();
            });
            drop((handle, shard));
            // Whoever's master has died waits no longer than a client would.
            let answer = bell.until(|| is_answered.get().then_some(()));
            or(answer, self.world.sleep(Duration::from_millis(300))).await;
        }
    }

    /// A client that reads anywhere from whoever shows something.
    async fn consume(self: Rc<Self>) {
        loop {
            let pause_us = self.world.random_u64() % 40_000;
            self.world.sleep(Duration::from_micros(pause_us)).await;
            let at = self.random_broker();
            let running = self.brokers[at].running.borrow().clone();
            let Some(Running { shard, epoch }) = running else {
                continue;
            };
            if self.world.is_paused(self.core_node(at)) {
                continue;
            }
            let handle = shard.handle();
            let Some(topic) = handle.meta().topics.get(TOPIC).cloned() else {
                continue;
            };
            let queue_id = (self.world.random_u64() % u64::from(QUEUES)) as u32;
            let key = ShardHandle::key(&topic, queue_id);
            let end = self
                .shown
                .borrow()
                .range((queue_id, 0)..=(queue_id, i64::MAX))
                .next_back()
                .map_or(0, |((_, offset), _)| offset + 1);
            let back = (self.world.random_u64() % 40) as i64;
            let from = (end - back).max(0);
            let core = match self.brokers[at].is_up.get() {
                true => self.world.core(self.agent_node(at)),
                false => continue,
            };
            let found = self.read(&core, &handle, key, from, 32);
            let limit = self.world.sleep(Duration::from_millis(300));
            let found = or(found, async {
                limit.await;
                None
            });
            for (offset, digest) in found.await.unwrap_or_default() {
                let place = (queue_id, offset);
                let now_ms = self.world.now_ns() / 1_000_000;
                let first = Shown {
                    digest,
                    by: (at, epoch, now_ms),
                };
                let before = *self.shown.borrow_mut().entry(place).or_insert(first);
                let promised = self.promises.borrow().get(&place).copied();
                self.counts.borrow_mut().shown += 1;
                if before.digest != digest || promised.is_some_and(|p| p.digest != digest) {
                    breach(format!(
                        "broker {at} (epoch {epoch}, {now_ms} ms) shows another message at queue {queue_id} offset {offset} than broker {} \
                         did (epoch {}, {} ms), or than was acknowledged there (epoch {:?})",
                        before.by.0,
                        before.by.1,
                        before.by.2,
                        promised.map(|p| p.epoch),
                    ));
                }
            }
        }
    }

    // The course of a run.

    /// Cuts the way between two machines, or mends it.
    fn set_cut(&self, from: &[usize], to: &[usize], is_cut: bool) {
        for from in from {
            for to in to {
                self.network.set_cut(*from, *to, is_cut);
            }
        }
    }

    fn machine(&self, number: usize) -> Vec<usize> {
        match number.checked_sub(self.brokers.len()) {
            None => vec![self.core_node(number), self.agent_node(number)],
            Some(controller) => vec![self.controller_node(controller)],
        }
    }

    fn machines(&self) -> usize {
        self.brokers.len() + self.controller_rates.len()
    }

    fn heal_network(&self) {
        for one in 0..self.machines() {
            for other in 0..self.machines() {
                self.set_cut(&self.machine(one), &self.machine(other), false);
            }
        }
        self.network.set_delay_us_max(200);
    }

    fn range(&self, range: std::ops::Range<u64>) -> u64 {
        self.random.borrow_mut().u64(range)
    }

    fn choose(&self, below: usize) -> usize {
        self.random.borrow_mut().usize(..below)
    }

    /// Something goes wrong, for a time or until it is put right.
    fn trouble(self: &Rc<Self>) {
        let at = self.choose(self.brokers.len());
        let (one, other) = (self.choose(self.machines()), self.choose(self.machines()));
        let core = self.core_node(at);
        match self.choose(28) {
            0 | 1 => self.set_cut(&self.machine(one), &self.machine(other), true),
            2 | 3 => {
                self.set_cut(&self.machine(one), &self.machine(other), true);
                self.set_cut(&self.machine(other), &self.machine(one), true);
            }
            4 | 5 => {
                for other in 0..self.machines() {
                    self.set_cut(&self.machine(at), &self.machine(other), true);
                    self.set_cut(&self.machine(other), &self.machine(at), true);
                }
                self.set_cut(&self.machine(at), &self.machine(at), false);
            }
            // From the controllers only.
            6 => {
                for controller in self.brokers.len()..self.machines() {
                    self.set_cut(&self.machine(at), &self.machine(controller), true);
                    self.set_cut(&self.machine(controller), &self.machine(at), true);
                }
            }
            7 => {
                let delay_us = self.range(1_000..100_000);
                self.network.set_delay_us_max(delay_us);
            }
            8 | 9 => {
                let pause = Duration::from_millis(self.range(50..3 * self.timeout_ms));
                self.world.pause(core, pause);
                self.world.pause(self.agent_node(at), pause);
            }
            10..=12 => {
                if self.brokers[at].is_up.get() {
                    self.crash(at, self.any_crash());
                }
            }
            13 => self.change_leader(),
            14 => {
                let controller = self.choose(self.controller_rates.len());
                if self.controllers_up.borrow()[controller] {
                    self.crash_controller(controller);
                    if self.parliament.leader() == Some(controller) {
                        self.parliament.lead(None, self.world.random_u64());
                    }
                }
            }
            15 => self.world.with_disk(core, |disk| {
                disk.options.faults.read_eio_per_million = 50_000;
            }),
            16 => self.world.with_disk(core, |disk| {
                disk.options.latency.spikes_per_million = 20_000;
            }),
            17 if self.sync_flush => {
                self.world.with_disk(core, |disk| {
                    disk.options.faults.writes_always_fail = true;
                });
            }
            22 | 23 => self.rot(at),
            24 => self.forget(),
            26 | 27 if std::env::var_os("RINGMQ_NO_OLD_ROT").is_some() => {}
            26 | 27 => self.rot_old_part(at),
            18 => {
                let by_ms = self.range(0..20_000) as i64 - 10_000;
                self.world.jump_clock(core, by_ms);
            }
            19..=21 => {
                if let Some((at, master)) = self.master() {
                    let bytes_max = self.segment_bytes;
                    let retained = async move { retain(&master.shard, bytes_max).await };
                    self.world.core(self.core_node(at)).spawn(retained);
                }
            }
            _ if self.remembered.borrow().is_some() => {}
            _ => self.move_master(at),
        }
    }

    fn is_one_rotten(&self) -> bool {
        let is_rotten =
            |broker: &Broker| broker.rotted_until_ns.get().is_some() || broker.is_rotten.get();
        self.brokers.iter().any(is_rotten)
    }

    /// Bits flip under a broker that may be running, where no start looks: of one copy at a time, and never of the only one.
    fn rot_old_part(&self, at: usize) {
        let broker = &self.brokers[at];
        let has_others = self.parliament.group().is_some_and(|group| {
            let own = broker.identity.borrow().0.as_ref().map(|own| own.broker_id);
            group.in_sync.iter().any(|id| Some(*id) != own)
        });
        if self.is_one_rotten() || !has_others || !self.parliament.is_quiet() {
            return;
        }
        let node = self.core_node(at);
        for (_, directory) in log_directories(Path::new(DIRECTORY)) {
            let old = old_part(&self.world, node, &directory);
            if old.is_empty() {
                continue;
            }
            let mut position = self.range(old.clone());
            for _ in 0..self.range(0..4) {
                let bytes = self.segment_bytes;
                let flipped = flip_bit(&self.world, node, &directory, bytes, position);
                if flipped.is_some() {
                    broker.is_rotten.set(true);
                    broker.was_rotten.set(true);
                    self.counts.borrow_mut().rotted_old += 1;
                }
                position = (position + self.range(1..20_000)).min(old.end - 1);
            }
        }
    }

    /// A machine dies, and bits of one of its logs flip while it is down: of one copy at a time.
    fn rot(self: &Rc<Self>, at: usize) {
        let is_one_rotten = self.is_one_rotten();
        if is_one_rotten || self.remembered.borrow().is_some() {
            return;
        }
        let broker = &self.brokers[at];
        if broker.is_up.get() {
            self.crash(at, self.any_crash());
        }
        // A machine is not back before its heartbeats are missed.
        let until_ns = self.world.now_ns() + 2_000_000 * self.timeout_ms;
        broker.rotted_until_ns.set(Some(until_ns));
        broker.is_flipped.set(false);
    }

    /// What is left of that when the machine is started: never of the only copy that counts.
    fn flip_bits(&self, at: usize) {
        let broker = &self.brokers[at];
        let has_others = self.parliament.group().is_some_and(|group| {
            let own = broker.identity.borrow().0.as_ref().map(|own| own.broker_id);
            group.in_sync.iter().any(|id| Some(*id) != own)
        });
        let log = self.choose(usize::from(LOGS)) as LogId;
        let end = broker.ends.borrow().get(&log).copied().unwrap_or(0);
        let directory = log_directory(Path::new(DIRECTORY), log);
        let files = self
            .world
            .with_disk(self.core_node(at), |disk| disk.files());
        let of_log = files
            .iter()
            .filter(|(path, _)| path.parent() == Some(&*directory));
        let start = of_log
            .filter_map(|(path, _)| {
                let name = path.file_name()?.to_str()?;
                name.strip_prefix("snapshot-")?.parse::<u64>().ok()
            })
            .max()
            .unwrap_or(0);
        if !has_others || !self.parliament.is_quiet() || start >= end {
            return broker.rotted_until_ns.set(None);
        }
        let position = self.range(start..end);
        let segment = position / self.segment_bytes * self.segment_bytes;
        let path = directory.join(format!("{segment:020}.seg"));
        let mask = 1 << self.choose(8);
        let is_flipped = self.world.with_disk(self.core_node(at), |disk| {
            disk.flip_bits(&path, position - segment, mask)
        });
        if is_flipped {
            self.world.note("bits are flipped", position);
            self.counts.borrow_mut().rotted += 1;
            *broker.flipped.borrow_mut() = Some((path, position - segment, mask));
        }
    }

    /// The controllers may agree later on what a master had asked for before it died: to go on alone. If that one is damaged, its
    /// disk is restored: nobody else could be elected.
    fn restore_only_copy(self: &Rc<Self>) {
        let Some(group) = self.parliament.group() else {
            return;
        };
        for (at, broker) in self.brokers.iter().enumerate() {
            let own = broker.identity.borrow().0.as_ref().map(|own| own.broker_id);
            let is_alone = own.is_some_and(|own| group.in_sync == [own].into());
            let has_failed = broker.opened.borrow().as_ref().is_some_and(|shard| {
                let mut logs = shard.logs();
                // Not a write that failed.
                logs.any(|log| {
                    let refusal = log.refusal().map(|refusal| refusal.to_string());
                    log.damage().is_none() && refusal.is_some_and(|why| why.contains("is damaged"))
                })
            });
            if !is_alone || !has_failed {
                continue;
            }
            let flipped = broker.flipped.borrow_mut().take();
            let Some((path, position, mask)) = flipped else {
                continue;
            };
            self.crash(at, Crash::Process);
            self.world.with_disk(self.core_node(at), |disk| {
                disk.flip_bits(&path, position, mask)
            });
            // What lies behind is there again.
            broker.ends.borrow_mut().clear();
            self.start(at);
        }
    }

    /// Whether a broker's machine may be started now.
    fn may_start(&self, at: usize) -> bool {
        let until_ns = self.brokers[at].rotted_until_ns.get();
        until_ns.is_none_or(|until_ns| self.world.now_ns() >= until_ns)
    }

    /// The disks of all controllers are lost. Whoever was in sync is what an operator may elect when every lease is over.
    fn forget(self: &Rc<Self>) {
        let Some(group) = self.parliament.group() else {
            return;
        };
        let is_one_rotten = self.is_one_rotten();
        if group.in_sync.is_empty() || is_one_rotten || self.remembered.borrow().is_some() {
            return;
        }
        self.counts.borrow_mut().forgotten += 1;
        self.world.note("the controllers forget everything", 0);
        for controller in 0..self.controller_rates.len() {
            if self.controllers_up.borrow()[controller] {
                self.crash_controller(controller);
            }
        }
        self.parliament.lead(None, 0);
        self.parliament.forget();
        let until_ns = self.world.now_ns() + 3_000_000 * self.timeout_ms;
        let in_sync = group.in_sync.iter().copied().collect();
        *self.remembered.borrow_mut() = Some((in_sync, until_ns));
    }

    /// After that: an operator elects one that was in sync.
    fn remember(self: &Rc<Self>) {
        let remembered = self.remembered.borrow().clone();
        let Some((in_sync, from_ns)) = remembered else {
            return;
        };
        match self.parliament.group() {
            Some(group) if group.master.is_some() => *self.remembered.borrow_mut() = None,
            Some(group) if group.needs_operator && self.world.now_ns() >= from_ns => {
                let found = (0..self.brokers.len()).find(|at| {
                    let identity = self.brokers[*at].identity.borrow().0.clone();
                    identity.is_some_and(|own| in_sync.contains(&own.broker_id))
                        && self.brokers[*at].is_up.get()
                });
                if let Some(at) = found {
                    self.move_master(at);
                    // The next try waits for the answer.
                    let again_ns = self.world.now_ns() + 1_000_000_000;
                    *self.remembered.borrow_mut() = Some((in_sync, again_ns));
                }
            }
            _ => {}
        }
    }

    /// `ringmq cluster elect`.
    fn move_master(self: &Rc<Self>, to: usize) {
        let id = self.brokers[to].identity.borrow().0.clone();
        let (Some(id), Some(leader)) = (id, self.parliament.leader()) else {
            return;
        };
        if !self.controllers_up.borrow()[leader] {
            return;
        }
        let env = self.world.core(self.controller_node(leader));
        let group = self.clone();
        self.world.spawn(async move {
            let limit = Duration::from_secs(8);
            let address = controllers::address(leader);
            let line = Line::connect(&env, &group.network, &address, limit, None).await;
            let elect = Outgoing::request(request::CONTROLLER_ELECT_MASTER)
                .field("brokerName", GROUP.to_owned())
                .field("brokerId", id.broker_id as i64)
                .field("designateElect", true);
            if let Some(line) = line {
                let answer = line.call(&env, elect, &[], limit).await;
                if answer.is_some_and(|answer| answer.code == response::SUCCESS) {
                    group.world.note("an operator moves the master", to as u64);
                }
                line.close();
            }
        });
    }

    /// Some of what went wrong is put right.
    fn mend(self: &Rc<Self>, all: bool) {
        if all || self.choose(3) == 0 {
            self.heal_network();
        }
        for controller in 0..self.controller_rates.len() {
            if !self.controllers_up.borrow()[controller] && (all || self.choose(2) == 0) {
                self.start_controller(controller);
            }
        }
        if self.parliament.leader().is_none() && (all || self.choose(2) == 0) {
            self.change_leader();
        }
        for at in 0..self.brokers.len() {
            let broker = &self.brokers[at];
            if broker.is_up.get() && broker.has_exited.get() && (all || self.choose(2) == 0) {
                self.crash(at, Crash::Process);
            }
            if !broker.is_up.get() && self.may_start(at) && (all || self.choose(2) == 0) {
                self.start(at);
            }
            if all || self.choose(2) == 0 {
                let core = self.core_node(at);
                self.world.with_disk(core, |disk| {
                    disk.options.faults = Faults::default();
                    disk.options.latency = Latency::default();
                });
            }
        }
    }

    /// Whether a broker has a log that failed and that nobody but a person puts right: a slave's, or that of a master whose
    /// place nobody can take. Any other master has to give up by itself.
    fn needs_operator(&self, at: usize) -> bool {
        let broker = &self.brokers[at];
        let has_failed = broker.opened.borrow().as_ref().is_some_and(|shard| {
            let failed = |log: &Rc<ringmq::store::CommitLog<SimEnv>>| {
                log.refusal().is_some() && log.damage().is_none()
            };
            shard.logs().any(failed)
        });
        let own = broker.identity.borrow().0.as_ref().map(|own| own.broker_id);
        // By one that surely has everything: another one may wait for this master.
        let has_whole = |id: &u64| {
            let of_id = |broker: &&Broker| {
                let own = broker.identity.borrow();
                own.0.as_ref().is_some_and(|own| own.broker_id == *id)
            };
            let other = self.brokers.iter().find(of_id);
            let opened = other.and_then(|other| other.opened.borrow().clone());
            opened.is_none_or(|shard| shard.logs().all(|log| log.doubt() == Doubt::None))
        };
        let can_be_replaced = self.parliament.group().is_some_and(|group| {
            let mut others = group.in_sync.iter().filter(|id| Some(**id) != own);
            group.master == own && others.any(has_whole)
        });
        has_failed && !can_be_replaced
    }

    /// The master of the group as the controllers know it, if it runs.
    fn master(&self) -> Option<(usize, Running)> {
        let group = self.parliament.group()?;
        self.brokers.iter().enumerate().find_map(|(at, broker)| {
            let running = broker.running.borrow().clone()?;
            let own = broker.identity.borrow().0.as_ref()?.broker_id;
            let is_master = group.master == Some(own) && running.epoch == group.epoch;
            is_master.then_some((at, running))
        })
    }

    /// Everything is put right, and everybody comes together.
    async fn come_together(self: &Rc<Self>) {
        self.mend(true);
        let deadline_ns = self.world.now_ns() + TOGETHER_WITHIN.as_nanos() as u64;
        let mut from = self.counts.borrow().acknowledged;
        loop {
            let group = self.parliament.group();
            let all = group
                .as_ref()
                .is_some_and(|group| group.in_sync.len() == self.brokers.len());
            let run = self.brokers.iter().all(|b| b.running.borrow().is_some());
            // The master's disk may have failed in the last trouble without having been written to since.
            let serves = !self.is_loaded.get() || self.counts.borrow().acknowledged > from + 5;
            let whole = self.brokers.iter().all(|broker| {
                let opened = broker.opened.borrow();
                opened.as_ref().is_some_and(|shard| {
                    let mut logs = shard.logs();
                    logs.all(|log| log.doubt() == Doubt::None)
                })
            });
            if all && run && serves && whole && self.master().is_some() {
                // Until then another copy is not to rot.
                self.be_whole().await;
                for broker in &self.brokers {
                    broker.rotted_until_ns.set(None);
                    broker.is_rotten.set(false);
                    *broker.flipped.borrow_mut() = None;
                }
                return;
            }
            if !all || !run {
                from = self.counts.borrow().acknowledged;
            }
            self.remember();
            self.restore_only_copy();
            for at in 0..self.brokers.len() {
                if !self.brokers[at].is_up.get() && self.may_start(at) {
                    self.start(at);
                }
                if self.brokers[at].has_exited.get() || self.needs_operator(at) {
                    self.crash(at, Crash::Process);
                    self.start(at);
                }
            }
            if self.world.now_ns() > deadline_ns {
                let state: Vec<String> = self.brokers.iter().map(Broker::describe).collect();
                breach(format!(
                    "the group does not come together within {TOGETHER_WITHIN:?}: {group:?}, leader {:?}, {state:#?}",
                    self.parliament.leader()
                ));
            }
            self.world.sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until no log of a broker is damaged on its disk.
    async fn be_whole(&self) {
        for (at, broker) in self.brokers.iter().enumerate() {
            let running = broker.running.borrow().clone();
            let Some(running) = running else { continue };
            let node = self.core_node(at);
            let is_elsewhere = |log, position| self.is_elsewhere(at, log, position);
            if let Err(why) = until_whole(&self.world, node, &running.shard, is_elsewhere).await {
                breach(why);
            }
            let logs = running.shard.logs();
            let repaired = logs.map(|log| log.scrub_figures().repaired_bytes);
            self.counts.borrow_mut().repaired_bytes += repaired.sum::<u64>();
        }
    }

    /// Asks whoever is the master until one has done it: it may be replaced in between.
    async fn make_topic(&self) {
        let deadline_ns = self.world.now_ns() + TOGETHER_WITHIN.as_nanos() as u64;
        let mut said = "no topic: no master".to_owned();
        while self.world.now_ns() <= deadline_ns {
            if let Some((_, master)) = self.master() {
                match make_topic(&master.shard.handle()).await {
                    Ok(()) => return,
                    Err(why) => said = why,
                }
            }
            self.world.sleep(Duration::from_millis(20)).await;
        }
        breach(said);
    }

    /// The logs of slaves are the front of the master's.
    async fn compare_logs(&self) {
        let Some((_, master)) = self.master() else {
            return;
        };
        for (at, broker) in self.brokers.iter().enumerate() {
            let Some(slave) = broker.running.borrow().clone().filter(|r| r.epoch == 0) else {
                continue;
            };
            for (here, there) in master.shard.logs().zip(slave.shard.logs()) {
                compare_log(here, there, &format!("broker {at}")).await;
            }
        }
    }

    fn go(self: &Rc<Self>) {
        let world = self.world.clone();
        for controller in 0..self.controller_rates.len() {
            self.start_controller(controller);
        }
        self.change_leader();
        for at in 0..self.brokers.len() {
            self.start(at);
            world.run_for(Duration::from_millis(self.range(0..2 * self.timeout_ms)));
        }
        world.block_on(async {
            self.come_together().await;
            self.make_topic().await;
        });
        for producer in 0..PRODUCERS {
            let group = self.clone();
            world.spawn(async move { group.produce(producer).await });
        }
        let group = self.clone();
        world.spawn(async move { group.consume().await });
        self.is_loaded.set(true);
        let rounds = self.range(1..5);
        for _ in 0..rounds {
            for _ in 0..self.range(1..7) {
                if self.choose(2) == 0 {
                    let steps = self.range(10..3_000);
                    world.block_on(world.after_steps(steps));
                } else {
                    let ms = self.range(1..2 * self.timeout_ms);
                    world.run_for(Duration::from_millis(ms));
                }
                self.trouble();
                if self.choose(3) == 0 {
                    self.mend(false);
                }
            }
            let ms = self.range(0..4 * self.timeout_ms);
            world.run_for(Duration::from_millis(ms));
            world.block_on(self.come_together());
        }
        self.is_loaded.set(false);
        world.run_for(Duration::from_secs(2));
        world.block_on(async {
            self.come_together().await;
            self.compare_logs().await;
        });
        // All of them at once; whoever is elected has everything.
        for at in 0..self.brokers.len() {
            self.crash(at, self.any_crash());
        }
        let before = self.newest_epoch.get();
        world.block_on(async {
            self.come_together().await;
            let Some((_, master)) = self.master() else {
                breach("nobody is the master after all".to_owned());
            };
            assert!(master.epoch > before, "another life has another epoch");
            self.compare_logs().await;
        });
        self.counts.borrow_mut().elections = self.parliament.elections.get();
        self.counts.borrow_mut().unknown = self.parliament.unknown.get();
    }
}

impl Broker {
    fn describe(&self) -> String {
        let id = self.identity.borrow().0.as_ref().map(|own| own.broker_id);
        let logs: Vec<String> = match &*self.opened.borrow() {
            Some(shard) => shard
                .logs()
                .map(|log| {
                    let error = shard.slave_progress(log.id()).map(|p| p.last_error());
                    format!("{:?} {:?} {error:?}", log.replica_end(), log.refusal())
                })
                .collect(),
            None => Vec::new(),
        };
        format!(
            "id {id:?}, up {}, exited {}, epoch {:?}, logs {logs:?}",
            self.is_up.get(),
            self.has_exited.get(),
            self.running.borrow().as_ref().map(|running| running.epoch),
        )
    }
}

fn run(seed: u64, trace: bool) -> Counts {
    let mut random = fastrand::Rng::with_seed(seed ^ 0xc0_47_01);
    let brokers = random.usize(2..4);
    let controllers = if random.bool() { 1 } else { 3 };
    let nodes = 2 * brokers + controllers;
    let options = SimOptions {
        nodes,
        trace,
        steps_max: 100_000_000,
        memory_is_slow: seed.is_multiple_of(3),
        ..SimOptions::default()
    };
    let world = SimWorld::new(seed, options);
    let network = SimNetwork::new((*world).clone());
    // Leases are three quarters of the timeout: no clock may run a third faster than another.
    let rate = |random: &mut fastrand::Rng| random.u64(880..1_120);
    let silence_ms = if random.bool() { 400 } else { 3_000 };
    let group = Rc::new(Group {
        world: (*world).clone(),
        network,
        parliament: Parliament::new(controllers),
        brokers: (0..brokers).map(|_| Broker::default()).collect(),
        controllers_up: RefCell::new(vec![false; controllers]),
        controller_rates: (0..controllers).map(|_| rate(&mut random)).collect(),
        ever_started: RefCell::new(vec![false; nodes]),
        sync_flush: random.u8(..4) > 0,
        segment_bytes: SEGMENT_BYTES[random.usize(..SEGMENT_BYTES.len())],
        timeout_ms: if random.bool() { 300 } else { 1_000 },
        min_in_sync: random.u32(1..3),
        times: StreamTimes {
            heartbeat: Duration::from_millis(50),
            silence: Duration::from_millis(silence_ms),
        },
        random: RefCell::new(fastrand::Rng::with_seed(seed ^ 0x5eed)),
        promises: RefCell::default(),
        shown: RefCell::default(),
        masters: RefCell::default(),
        newest_epoch: Cell::new(0),
        remembered: RefCell::default(),
        is_loaded: Cell::new(false),
        counts: RefCell::default(),
    });
    for broker in &group.brokers {
        broker.rate.set(rate(&mut random));
    }
    // A run that ends early must not keep its machines either.
    struct Clear(Rc<Group>);
    impl Drop for Clear {
        fn drop(&mut self) {
            for broker in &self.0.brokers {
                *broker.running.borrow_mut() = None;
                *broker.opened.borrow_mut() = None;
                *broker.line.borrow_mut() = None;
            }
        }
    }
    let clear = Clear(group.clone());
    group.go();
    drop(clear);
    *group.counts.borrow()
}

/// Runs one seed; an error tells how the promise was broken.
pub fn run_seed(seed: u64, planted: Option<PlantedBug>, trace: bool) -> Result<Counts, String> {
    let result = caught(|| {
        plant(planted);
        run(seed, trace)
    });
    plant(None);
    result
}
