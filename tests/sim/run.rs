//! One seed, one run: a scenario is drawn, lived through and checked.
//!
//! A run is a few lives of one broker on one machine. A life is a start (which may itself be cut short by a crash), a
//! check of everything, clients with a fault or without, and an end: a clean stop, a kill, or a loss of power.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ringmq::io::sim::{Crash, DiskOptions, Errno, Latency, OpKind, SimOptions, SimWorld};

use crate::ledger::{Counts, Ledger, Rules, TAGS_CODES, breach, caught};
use crate::sut::{Broker, PlantedBug, Queue, Refused, Settings, SystemUnderTest};
use crate::workload::{Clients, Load, check_all, within};

/// Virtual time in which a broker has to start, whatever happened before.
const START_WITHIN: Duration = Duration::from_secs(60);
/// Virtual time in which service is back after a trouble is over.
const SERVICE_BACK_WITHIN: Duration = Duration::from_secs(30);

/// What a system needs to be tested with.
#[derive(Clone, Debug)]
pub struct Limits {
    pub logs_max: u8,
    pub shards_max: usize,
    /// Segment sizes to choose from, in bytes.
    pub segment_bytes: &'static [u64],
    pub huge_messages: bool,
    pub retention: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    None,
    /// One write, flush or other operation fails.
    OneFails(OpKind, u64),
    /// All writes fail from some time on.
    DeviceGone,
    /// The disk fills, and is emptied again.
    Full {
        spare_bytes: u64,
    },
    /// Operations of a million that take up to three seconds.
    Slow(u32),
    ClockJump(i64),
    /// Reads of a million that fail.
    ReadsFail(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Stop,
    Crash(Crash),
}

#[derive(Clone, Debug)]
struct Life {
    /// Steps after which the start is cut short.
    start_crash: Option<(u64, Crash)>,
    /// The n-th operation of the disk fails, be it of the start or later.
    fault_at: Option<(u64, Errno)>,
    steps: u64,
    trouble: Trouble,
    end: End,
}

/// Everything that a seed decides ahead.
#[derive(Clone, Debug)]
struct Scenario {
    settings: Settings,
    load: Load,
    lives: Vec<Life>,
    skew_max_ms: u64,
    /// Bytes that are spoiled before the last start.
    rot_bytes: u32,
}

fn draw_crash(random: &mut fastrand::Rng, sync_flush: bool) -> Crash {
    let power_percent = if sync_flush { 70 } else { 20 };
    if random.u32(..100) < power_percent {
        Crash::Power
    } else {
        Crash::Process
    }
}

impl Scenario {
    fn draw(seed: u64, limits: &Limits, planted: Option<PlantedBug>) -> Self {
        let random = &mut fastrand::Rng::with_seed(seed ^ 0x5eed);
        let sync_flush = random.u32(..3) > 0;
        let retention = (limits.retention && random.u32(..4) == 0)
            .then(|| Duration::from_millis(random.u64(200..3_000)));
        let settings = Settings {
            sync_flush,
            logs: random.u8(1..=limits.logs_max),
            shards: random.usize(1..=limits.shards_max),
            segment_bytes: limits.segment_bytes[random.usize(..limits.segment_bytes.len())],
            retention,
            planted,
        };
        let load = Load {
            producers: random.u32(1..6),
            consumers: random.u32(1..5),
            topic_names: random.u32(1..5),
            queues_max: random.u32(1..5),
            messages_per_send_max: random.u32(1..12),
            large_percent: [0, 5, 30][random.usize(..3)],
            huge_permille: if limits.huge_messages && random.bool() {
                4
            } else {
                0
            },
            pause_max: Duration::from_micros([50, 1_000, 20_000][random.usize(..3)]),
            topics_change: random.u32(..3) == 0,
            answer_within: Duration::from_secs(60),
        };
        let lives = (0..random.u32(2..6))
            .map(|_| Life {
                start_crash: (random.u32(..4) == 0)
                    .then(|| (random.u64(1..300), draw_crash(random, sync_flush))),
                fault_at: (random.u32(..6) == 0).then(|| {
                    let errno = if random.u32(..4) == 0 {
                        Errno::NoSpace
                    } else {
                        Errno::Io
                    };
                    let ops_max = 1 << random.u32(3..10);
                    (random.u64(..ops_max), errno)
                }),
                steps: 1 << random.u32(6..13),
                trouble: match random.u32(..13) {
                    0 => Trouble::OneFails(OpKind::Write, random.u64(..100)),
                    1 => Trouble::OneFails(
                        [
                            OpKind::Sync,
                            OpKind::SyncDir,
                            OpKind::Rename,
                            OpKind::Open,
                            OpKind::Allocate,
                        ][random.usize(..5)],
                        random.u64(..4),
                    ),
                    2 => Trouble::DeviceGone,
                    3 | 4 => Trouble::Full {
                        spare_bytes: random.u64(..2 * settings.segment_bytes),
                    },
                    5 | 6 => Trouble::Slow(random.u32(..30_000)),
                    7 if retention.is_none() => {
                        Trouble::ClockJump(random.i64(-86_400_000..86_400_000))
                    }
                    8 => Trouble::ReadsFail(random.u32(..200_000)),
                    _ => Trouble::None,
                },
                end: if random.u32(..6) == 0 {
                    End::Stop
                } else {
                    End::Crash(draw_crash(random, sync_flush))
                },
            })
            .collect();
        Self {
            settings,
            load,
            lives,
            skew_max_ms: if random.bool() { 0 } else { 3_600_000 },
            rot_bytes: if random.u32(..4) == 0 {
                random.u32(1..4)
            } else {
                0
            },
        }
    }
}

struct Run<'a, S: SystemUnderTest> {
    world: SimWorld,
    system: &'a S,
    scenario: Scenario,
    ledger: Rc<RefCell<Ledger>>,
    /// In ASYNC_FLUSH a flush failed: the device may lose what later flushes say is safe, and a log may find so.
    flush_failed: Cell<bool>,
}

impl<S: SystemUnderTest> Run<'_, S> {
    /// The crash, and what it means for the promise.
    fn crash(&self, crash: Crash) {
        self.world.crash(0, crash);
        let holds = self.scenario.settings.sync_flush || crash == Crash::Process;
        self.ledger.borrow_mut().on_crash(holds);
        self.world.restart(0);
    }

    /// Starts the broker; `None` if that was cut short on purpose.
    fn start(&self, life: &Life) -> Option<S::Broker> {
        let env = self.world.core(0);
        if let Some((nth, errno)) = life.fault_at {
            self.world.with_disk(0, |disk| {
                let at = disk.count() + nth;
                disk.options.faults.fail_nth.insert(at, errno);
            });
        }
        let started = Rc::new(RefCell::new(None));
        let (slot, start) = (
            started.clone(),
            self.system
                .start(env.clone(), self.scenario.settings.clone()),
        );
        ringmq::io::env::Env::spawn(&env, async move {
            *slot.borrow_mut() = Some(start.await);
        });
        let began_ns = self.world.now_ns();
        let steps_max = life.start_crash.map_or(u64::MAX, |(steps, _)| steps);
        let last_step = self.world.steps().saturating_add(steps_max);
        let late = || self.world.now_ns() - began_ns > START_WITHIN.as_nanos() as u64;
        let stalled = self
            .world
            .run_until(|| started.borrow().is_some() || self.world.steps() >= last_step || late());
        if let Err(stalled) = stalled {
            breach(format!("the broker does not start: {stalled}"));
        }
        let spoiled = self.ledger.borrow().spoiled;
        let may_fail = life.fault_at.is_some() || spoiled;
        let outcome = started.borrow_mut().take();
        match (outcome, life.start_crash) {
            (_, Some((_, crash))) if self.world.steps() >= last_step => {
                self.crash(crash);
                None
            }
            (Some(Ok(broker)), _) => Some(broker),
            (Some(Err(why)), _) if may_fail && !why.is_empty() => {
                self.crash(Crash::Process);
                None
            }
            (Some(Err(why)), _) => breach(format!("the broker refuses to start: {why}")),
            (None, _) => breach(format!("the broker does not start within {START_WITHIN:?}")),
        }
    }

    fn clients(&self, broker: S::Broker) -> Clients<S::Broker> {
        Clients {
            env: self.world.core(0),
            broker,
            ledger: self.ledger.clone(),
            load: Rc::new(self.scenario.load.clone()),
        }
    }

    fn live(&self, life: &Life) {
        let may_fail_flush = life.fault_at.is_some()
            || matches!(life.trouble, Trouble::OneFails(..) | Trouble::DeviceGone);
        if may_fail_flush && !self.scenario.settings.sync_flush {
            self.flush_failed.set(true);
        }
        let started = self.start(life);
        if let Some(broker) = started {
            self.serve(life, broker);
        }
        self.world.with_disk(0, |disk| {
            let options = &mut disk.options;
            options.faults = Default::default();
            options.latency = Latency::default();
        });
    }

    fn serve(&self, life: &Life, broker: S::Broker) {
        let clients = self.clients(broker);
        let world = &self.world;
        // After a failed flush the device may have lost what a later one said is there: refused, but never made up.
        self.ledger.borrow_mut().reads_may_fail = life.fault_at.is_some()
            || matches!(life.trouble, Trouble::ReadsFail(_))
            || self.flush_failed.get();
        world.block_on(check_all(&clients));
        world.block_on(self.make_topics(&clients));
        clients.start();
        world.block_on(world.after_steps(life.steps / 4));
        match life.trouble {
            Trouble::None => {}
            Trouble::OneFails(kind, nth) => world.with_disk(0, |disk| {
                let at = disk.count_of(kind) + nth;
                disk.options
                    .faults
                    .fail_nth_of
                    .insert((kind, at), Errno::Io);
            }),
            Trouble::DeviceGone => {
                world.with_disk(0, |disk| disk.options.faults.writes_always_fail = true);
            }
            Trouble::Full { spare_bytes } => world.with_disk(0, |disk| {
                let space = disk.space();
                disk.options.capacity_bytes =
                    space.total_bytes - space.available_bytes + spare_bytes;
            }),
            Trouble::Slow(per_million) => world.with_disk(0, |disk| {
                disk.options.latency.spikes_per_million = per_million;
            }),
            Trouble::ClockJump(by_ms) => world.jump_clock(0, by_ms),
            Trouble::ReadsFail(per_million) => world.with_disk(0, |disk| {
                disk.options.faults.read_eio_per_million = per_million;
            }),
        }
        world.block_on(world.after_steps(life.steps));
        world.with_disk(0, |disk| {
            disk.options.capacity_bytes = DiskOptions::default().capacity_bytes;
        });
        // A second fault would make it unclear which logs may have failed.
        if life.fault_at.is_none() {
            match life.trouble {
                Trouble::OneFails(..) => world.block_on(self.expect_service(&clients, 1)),
                Trouble::DeviceGone => {}
                _ => world.block_on(self.expect_service(&clients, 0)),
            }
        }
        match life.end {
            End::Stop => {
                let stop = within(&clients.env, START_WITHIN, clients.broker.stop());
                if world.block_on(stop).is_none() {
                    breach(format!("the broker does not stop within {START_WITHIN:?}"));
                }
                self.crash(Crash::Process);
            }
            End::Crash(crash) => self.crash(crash),
        }
    }

    /// Changes bytes of files on the disk.
    fn spoil(&self) {
        self.ledger.borrow_mut().spoiled = true;
        self.ledger.borrow_mut().reads_may_fail = true;
        for _ in 0..self.scenario.rot_bytes {
            let (which, place) = (self.world.random_u64(), self.world.random_u64());
            self.world.with_disk(0, |disk| {
                let files: Vec<_> = disk.files().into_iter().filter(|file| file.1 > 0).collect();
                if !files.is_empty() {
                    let (path, bytes) = &files[which as usize % files.len()];
                    disk.flip_bits(path, place % bytes, 1 << (place >> 61));
                }
            });
        }
    }

    /// Topics to begin with.
    async fn make_topics(&self, clients: &Clients<S::Broker>) {
        for at in 0..self.scenario.load.topic_names {
            let name = format!("t{at}");
            if !self.ledger.borrow().has_topic(&name) {
                let queues =
                    1 + (self.world.random_u64() % u64::from(self.scenario.load.queues_max)) as u32;
                clients.create_topic(&name, queues).await;
            }
        }
    }

    /// Every log takes sends within a time; `failed_max` of them may have failed for good.
    async fn expect_service(&self, clients: &Clients<S::Broker>, failed_max: usize) {
        let mut queue_of_log = BTreeMap::new();
        for topic in self.ledger.borrow().topics() {
            for queue_id in 0..topic.queues {
                let queue = Queue {
                    topic_id: topic.id,
                    queue_id,
                };
                queue_of_log.insert(clients.broker.log_of(queue), queue);
            }
        }
        let mut failed = Vec::new();
        for (log, queue) in queue_of_log {
            let probe = async {
                loop {
                    match clients.send(queue, vec![(100, TAGS_CODES.start)]).await {
                        Ok(()) => return None,
                        Err(Refused::Poisoned(why)) => return Some(why),
                        Err(_) => self.world.sleep(Duration::from_millis(100)).await,
                    }
                    // An administrator may have deleted the topic meanwhile.
                    if !self.ledger.borrow().is_live(queue) {
                        return None;
                    }
                }
            };
            match within(&clients.env, SERVICE_BACK_WITHIN, probe).await {
                Some(None) => {}
                Some(Some(why)) => failed.push((log, why)),
                None => breach(format!(
                    "log {log} should serve again, and does not within {SERVICE_BACK_WITHIN:?}"
                )),
            }
        }
        if failed.len() > failed_max && !self.flush_failed.get() {
            breach(format!(
                "these logs failed for good, and at most {failed_max} should: {failed:?}"
            ));
        }
    }

    fn go(&self) {
        for life in &self.scenario.lives {
            self.live(life);
        }
        let calm = Life {
            start_crash: None,
            fault_at: None,
            steps: 0,
            trouble: Trouble::None,
            end: End::Stop,
        };
        let Some(broker) = self.start(&calm) else {
            breach("an undisturbed start gave nothing".to_owned());
        };
        self.ledger.borrow_mut().reads_may_fail = self.flush_failed.get();
        let clients = self.clients(broker);
        self.world.block_on(async {
            check_all(&clients).await;
            self.make_topics(&clients).await;
            self.expect_service(&clients, 0).await;
        });
        if self.scenario.rot_bytes > 0 {
            self.crash(Crash::Process);
            self.spoil();
            // It may refuse to start, if it says why; if it starts, it may miss things, but not show wrong ones.
            if let Some(broker) = self.start(&calm) {
                self.world.block_on(check_all(&self.clients(broker)));
            }
        }
    }
}

/// What a run came to.
pub struct Outcome {
    pub counts: Counts,
    pub trace_hash: u64,
}

/// Changes of what a seed decides.
#[derive(Clone, Debug, Default)]
pub struct Tweaks {
    pub planted: Option<PlantedBug>,
    /// Prints every event.
    pub trace: bool,
    /// The n-th operation of the first life fails.
    pub first_life_fault: Option<(u64, Errno)>,
    /// The second start is cut short after so many steps.
    pub second_start_crash: Option<(u64, Crash)>,
}

/// Runs one seed; an error tells how the promise was broken.
pub fn run_seed<S: SystemUnderTest>(
    system: &S,
    limits: &Limits,
    seed: u64,
    tweaks: &Tweaks,
) -> Result<Outcome, String> {
    let mut scenario = Scenario::draw(seed, limits, tweaks.planted);
    if let Some(fault) = tweaks.first_life_fault {
        scenario.lives[0].fault_at = Some(fault);
        scenario.lives[0].trouble = Trouble::None;
    }
    if let Some(crash) = tweaks.second_start_crash {
        scenario.lives[0].fault_at = None;
        scenario.lives[0].start_crash = None;
        scenario.lives[1].start_crash = Some(crash);
    }
    let trace = tweaks.trace;
    if trace {
        eprintln!("{scenario:#?}");
    }
    let slow = scenario
        .lives
        .iter()
        .any(|life| matches!(life.trouble, Trouble::Slow(_)));
    let rules = Rules {
        retention: scenario.settings.retention.is_some(),
        retention_min: scenario.settings.retention.unwrap_or_default(),
        wake_slack: Duration::from_millis(if slow { 60_000 } else { 200 }),
    };
    caught(|| {
        let world = SimWorld::new(
            seed,
            SimOptions {
                trace,
                wall_skew_max_ms: scenario.skew_max_ms,
                memory_is_slow: seed.is_multiple_of(3),
                ..SimOptions::default()
            },
        );
        let ledger = Rc::new(RefCell::new(Ledger::new((*world).clone(), rules)));
        let run = Run {
            world,
            system,
            scenario,
            ledger,
            flush_failed: Cell::new(false),
        };
        run.go();
        if trace {
            eprintln!("{}", run.ledger.borrow().summary());
        }
        let counts = run.ledger.borrow().counts;
        Outcome {
            counts,
            trace_hash: run.world.trace_hash(),
        }
    })
}

fn number_from_env(key: &str) -> Option<u64> {
    let text = std::env::var(key).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{key}={text} is not a number")),
    )
}

/// Runs many seeds on all cores and gives the sum of what they did. The least seed that breaks the promise ends the
/// test. `RINGMQ_SEED=n` runs that one with a trace.
pub fn run_seeds<S: SystemUnderTest + Sync>(
    system: &S,
    limits: &Limits,
    seeds: Range<u64>,
) -> Counts {
    if let Some(seed) = number_from_env("RINGMQ_SEED") {
        match run_seed(
            system,
            limits,
            seed,
            &Tweaks {
                trace: true,
                ..Tweaks::default()
            },
        ) {
            Ok(outcome) => return outcome.counts,
            Err(why) => panic!("RINGMQ_SEED={seed} breaks the promise: {why}"),
        }
    }
    let runs: Vec<_> = seeds
        .clone()
        .map(|seed| (seed, Tweaks::default()))
        .collect();
    let counts = run_all(system, limits, &runs);
    let mib = resident_mib();
    eprintln!("seeds {seeds:?}: {counts:?}, {mib} MiB resident at the end");
    counts
}

/// Memory that this process has at the moment. It grows with the seeds if a dead broker is kept by a cycle of its own.
pub fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    kib.unwrap().parse::<u64>().unwrap() >> 10
}

/// How many seeds to run: `RINGMQ_SIM_SEEDS=n` runs so many, `RINGMQ_SIM_FIRST=n` from there.
pub fn seeds_from_env(default: u64) -> Range<u64> {
    let first = number_from_env("RINGMQ_SIM_FIRST").unwrap_or(0);
    first..first + number_from_env("RINGMQ_SIM_SEEDS").unwrap_or(default)
}

/// Runs on all cores and gives the sum of what was done. The first failure by number ends the test, after all
/// others with `RINGMQ_SIM_KEEP_GOING=1`.
pub fn run_all<S: SystemUnderTest + Sync>(
    system: &S,
    limits: &Limits,
    runs: &[(u64, Tweaks)],
) -> Counts {
    let keep_going = number_from_env("RINGMQ_SIM_KEEP_GOING").is_some();
    let next = AtomicUsize::new(0);
    let results: Mutex<(Counts, Vec<(usize, String)>)> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some((seed, tweaks)) = runs.get(at) else {
                        return;
                    };
                    if !keep_going && !results.lock().unwrap().1.is_empty() {
                        return;
                    }
                    let outcome = run_seed(system, limits, *seed, tweaks);
                    let mut results = results.lock().unwrap();
                    match outcome {
                        Ok(outcome) => results.0.add(&outcome.counts),
                        Err(why) => {
                            if keep_going {
                                eprintln!("RINGMQ_SEED={seed} with {tweaks:?}: {why}");
                            }
                            results.1.push((at, why));
                        }
                    }
                }
            });
        }
    });
    let (counts, failures) = results.into_inner().unwrap();
    if let Some((at, why)) = failures.iter().min() {
        let (seed, tweaks) = &runs[*at];
        panic!("RINGMQ_SEED={seed} with {tweaks:?} breaks the promise: {why}");
    }
    counts
}

/// The first seed that finds a planted bug, and how.
pub fn find_bug<S: SystemUnderTest>(
    system: &S,
    limits: &Limits,
    planted: PlantedBug,
    seeds_max: u64,
) -> Option<(u64, String)> {
    (0..seeds_max).find_map(|seed| {
        let tweaks = Tweaks {
            planted: Some(planted),
            ..Tweaks::default()
        };
        run_seed(system, limits, seed, &tweaks)
            .err()
            .map(|why| (seed, why))
    })
}
