//! A copy that was begun from a seed against its original: whatever the original does meanwhile, and whenever the copy crashes, both
//! say the same in the end.
#![allow(clippy::unwrap_used, clippy::panic)] // A test that meets an error it did not plan for is to fail.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::base::offset::Position;
use crate::io::env::Env;
use crate::io::sim::{Crash, SimEnv, SimOptions, SimWorld};
use crate::store::commit_log::replica::{Relation, ReplicaError};
use crate::store::control::Control;
use crate::store::retention::{RetentionRules, clean, follow};
use crate::store::tables::halves::Outcome;
use crate::store::tables::pop::InFlight;
use crate::store::testing::{self, Quiet, small_log};
use crate::store::types::{NewMessage, QueueKey, Refusal};
use crate::store::{CommitLog, LogOptions};

const SEGMENT_BYTES: u64 = 128 << 10;
const ORIGINAL: usize = 0;
const COPY: usize = 1;
const TOPICS: u64 = 3;
const GROUPS: u64 = 3;
const SEEDS: u64 = 300;
const QUEUE: QueueKey = QueueKey {
    topic_id: 1,
    queue_id: 0,
};

type Log = Rc<CommitLog<SimEnv>>;

fn small_options(replica: bool) -> LogOptions {
    LogOptions {
        replica,
        key_tail_entries: 16,
        snapshot_bytes: SEGMENT_BYTES / 2,
        ..small_log(&PathBuf::from("/data/log"), SEGMENT_BYTES)
    }
}

async fn try_open(env: &SimEnv, replica: bool) -> std::io::Result<Log> {
    let options = small_options(replica);
    env.create_dir(&options.directory).await.unwrap();
    env.sync_dir(&PathBuf::from("/")).await.unwrap();
    env.sync_dir(&PathBuf::from("/data")).await.unwrap();
    CommitLog::open(env.clone(), options).await
}

/// Sends to one queue until the log has so many bytes.
async fn grow(env: &SimEnv, log: &Log, end: u64, body_bytes: usize) {
    let message = testing::message(QUEUE, "T", vec![7; body_bytes]);
    while log.durable().0 < end {
        let _ = log.append(std::slice::from_ref(&message));
        env.sleep(Duration::from_millis(1)).await;
    }
}

async fn open(env: &SimEnv, replica: bool) -> Log {
    let log = try_open(env, replica).await.unwrap();
    assert_eq!(log.refusal(), None);
    log.start(Rc::new(Quiet));
    log
}

/// What clients of the original do, without the broker: any record that a log may have.
struct Life {
    env: SimEnv,
    log: Log,
    random: RefCell<fastrand::Rng>,
    /// Incarnation of each topic.
    incarnations: RefCell<[u32; TOPICS as usize]>,
    last_id: Cell<u32>,
    next_due_ms: Cell<u64>,
    body_bytes_max: u64,
}

impl Life {
    fn below(&self, limit: u64) -> u64 {
        self.random.borrow_mut().u64(..limit)
    }

    fn name(topic: u64) -> Arc<str> {
        format!("T{topic}").into()
    }

    fn group(&self) -> Arc<str> {
        format!("G{}", self.below(GROUPS)).into()
    }

    fn queue(&self, topic: u64) -> QueueKey {
        QueueKey {
            topic_id: self.incarnations.borrow()[topic as usize],
            queue_id: self.below(2) as u32,
        }
    }

    fn message(&self) -> NewMessage {
        let topic = self.below(TOPICS);
        let body = vec![topic as u8; self.below(self.body_bytes_max) as usize];
        let properties = format!("KEYS\x01k{}\x02", self.below(9));
        NewMessage {
            properties: properties.into(),
            ..testing::message(self.queue(topic), &Self::name(topic), body)
        }
    }

    async fn patiently<T>(&self, append: impl Fn() -> Result<T, Refusal>) -> T {
        loop {
            match append() {
                Ok(done) => return done,
                Err(Refusal::SpaceOnItsWay { .. } | Refusal::Busy { .. }) => {
                    self.env.sleep(Duration::from_millis(1)).await;
                }
                Err(refusal) => panic!("{refusal}"),
            }
        }
    }

    async fn control(&self, control: Control) -> Position {
        let controls = [control];
        self.patiently(|| self.log.append_control(&controls)).await
    }

    async fn step(&self) {
        let group = self.group();
        let topic = self.below(TOPICS);
        let queue = self.queue(topic);
        let max = self.log.bounds(queue).max_offset;
        let is_open =
            self.log.tables().borrow().topic_id(&Self::name(topic)) == Some(queue.topic_id);
        match self.below(40) {
            // Long queues need topics that last.
            0 if self.body_bytes_max > 100 || self.below(40) == 0 => {
                let topic_id = queue.topic_id;
                self.last_id.set(self.last_id.get() + 1);
                self.incarnations.borrow_mut()[topic as usize] = self.last_id.get();
                self.control(Control::TopicDropped { topic_id }).await;
            }
            1..=4 if is_open => {
                let offset = self.below(max as u64 + 1) as i64;
                self.control(Control::OffsetCommitted {
                    group,
                    queue,
                    offset,
                })
                .await;
            }
            5 => {
                self.control(Control::OffsetsDropped { group }).await;
            }
            6 => {
                let value =
                    (self.below(3) > 0).then(|| Arc::from(&self.below(9).to_le_bytes()[..]));
                let key = format!("k{}", self.below(5)).into();
                self.control(Control::Metadata { key, value }).await;
            }
            7..=9 => {
                let message = self.message();
                let due_ms = self.next_due_ms.get() + 1 + self.below(1_000);
                self.next_due_ms.set(due_ms);
                self.patiently(|| self.log.append_delayed(&message, due_ms))
                    .await;
            }
            10..=11 => {
                let timer = {
                    let tables = self.log.tables().borrow();
                    tables.timers.all().next().map(|(key, _)| *key)
                };
                if let Some(key) = timer {
                    self.patiently(|| self.log.append_moved(&[], &[], &[key]))
                        .await;
                }
            }
            12..=13 => {
                let message = self.message();
                self.patiently(|| self.log.append_half(&message, 77)).await;
            }
            14 => {
                let half = self.log.tables().borrow().halves.all().next();
                if let Some((origin, _)) = half {
                    let halves = Arc::from([(origin, Outcome::RolledBack)]);
                    self.control(Control::HalvesEnded { halves }).await;
                }
            }
            15..=18 if is_open && max > 0 => {
                let state = InFlight {
                    pop_ms: self.below(99),
                    visible_ms: self.below(99),
                    deliveries: 1,
                };
                let offset = self.below(max as u64) as i64;
                let pop = match self.below(3) {
                    0 => Control::Popped {
                        group,
                        queue,
                        next: offset + 1,
                        min: self.log.bounds(queue).min_offset,
                        messages: Arc::from([(offset, state)]),
                    },
                    1 => Control::PopAcked {
                        group,
                        queue,
                        offsets: Arc::from([offset]),
                    },
                    _ => Control::PopChanged {
                        group,
                        queue,
                        offset,
                        state,
                    },
                };
                self.control(pop).await;
            }
            19 => {
                let rules = RetentionRules {
                    bytes_max: Some(SEGMENT_BYTES * self.below(3)),
                    ..RetentionRules::default()
                };
                clean(&self.log, rules).await.unwrap();
            }
            _ => {
                let message = self.message();
                let messages = vec![message; 1 + self.below(4) as usize];
                self.patiently(|| self.log.append(&messages)).await;
            }
        }
    }

    async fn settle(&self) {
        let end = self.log.replica_end().position;
        while self.log.durable().0 < end {
            self.env.sleep(Duration::from_millis(1)).await;
        }
    }
}

/// All that a log's tables say, and the index of its queues from `start` on.
async fn described(log: &Log, start: u64) -> BTreeSet<String> {
    let mut said = BTreeSet::new();
    let queues: Vec<QueueKey> = log.tables().borrow().queues.keys().collect();
    for queue in queues {
        let bounds = log.bounds(queue);
        said.insert(format!("{queue:?} ends at {}", bounds.max_offset));
        for offset in bounds.min_offset..bounds.max_offset {
            let entry = log.entry(queue, offset).await.unwrap().unwrap();
            if entry.position >= start {
                said.insert(format!("{queue:?} {offset} {entry:?}"));
            }
        }
    }
    let tables = log.tables().borrow();
    said.extend(tables.open_topics.all().map(|topic| format!("{topic:?}")));
    said.extend(tables.offsets.all().map(|offset| format!("{offset:?}")));
    said.extend(
        tables
            .metadata
            .with_prefix("")
            .map(|pair| format!("{pair:?}")),
    );
    said.extend(tables.timers.all().map(|timer| format!("{timer:?}")));
    said.extend(tables.halves.all().map(|half| format!("{half:?}")));
    said.extend(tables.pop.all().map(|queue| format!("{queue:?}")));
    said
}

/// Lets the copy follow for `steps`: a seed, or batches. Returns whether it has to be opened again.
async fn follow_for(original: &Log, copy: &Log, env: &SimEnv, mut steps: u64) -> bool {
    while steps > 0 {
        steps -= 1;
        let end = copy.replica_end();
        match original.relation_of(end).await.unwrap() {
            Relation::TooOld { .. } => {
                if let Ok(seed) = original.make_seed().await {
                    copy.note_seed(&seed).await.unwrap();
                    return true;
                }
            }
            Relation::Prefix if end.position < original.durable_here().0 => {
                let batches = original.batches_from(end.position, 1).await.unwrap();
                let bytes: Vec<u8> = batches
                    .slices
                    .iter()
                    .flat_map(|s| s.iter())
                    .copied()
                    .collect();
                match copy.append_replicated(&bytes) {
                    Ok(taken) => assert_eq!(taken, bytes.len()),
                    Err(ReplicaError::NoSpace) => copy.space_beyond(copy.allocated_end()).await,
                    Err(error) => panic!("{error}"),
                }
            }
            Relation::Prefix => env.sleep(Duration::from_millis(1)).await,
            other => panic!("{other:?}"),
        }
    }
    false
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    seeded: u64,
    crashed_on_the_way: u64,
    refused_as_its_own: u64,
}

fn one(seed: u64, counts: &mut Counts) {
    let options = SimOptions {
        nodes: 2,
        ..SimOptions::default()
    };
    let world = SimWorld::new(seed, options);
    let env = world.core(ORIGINAL);
    let log = world.block_on(open(&env, false));
    // Small bodies: the queues have blocks in the index files.
    let (body_bytes_max, steps) = match seed % 4 {
        0 => (40, 2_500),
        _ => (6_000, 300),
    };
    let life = Life {
        env,
        log,
        random: RefCell::new(fastrand::Rng::with_seed(seed)),
        incarnations: RefCell::new([1, 2, 3]),
        last_id: Cell::new(3),
        next_due_ms: Cell::new(1 << 40),
        body_bytes_max,
    };
    world.block_on(async {
        for _ in 0..life.below(steps) {
            life.step().await;
        }
        life.settle().await;
    });
    let mut env = world.core(COPY);
    let mut copy = world.block_on(open(&env, true));
    let mut lives = 1 + life.below(12);
    let mut was_seeded = false;
    loop {
        let reopens = world.block_on(async {
            let steps = match lives {
                0 => 50_000,
                _ => life.below(60),
            };
            let reopens = follow_for(&life.log, &copy, &env, steps.min(3_000)).await;
            if lives > 0 {
                for _ in 0..life.below(40) {
                    life.step().await;
                }
                life.settle().await;
            }
            reopens
        });
        counts.seeded += u64::from(reopens);
        was_seeded |= reopens;
        if copy.is_seeding() {
            assert!(!copy.is_settled(), "an unfinished copy is not shown");
        }
        if lives == 0 && !reopens && copy.durable() == life.log.durable() {
            break;
        }
        // Now and then it stops as it should, else it dies.
        if reopens || life.below(3) == 0 {
            counts.crashed_on_the_way += u64::from(copy.is_seeding());
            if life.below(3) == 0 {
                world.block_on(copy.stop()).unwrap();
                drop(copy);
                world.crash(COPY, Crash::Process);
            } else {
                drop(copy);
                world.crash(COPY, Crash::Power);
            }
            env = world.restart(COPY);
            let is_unfinished = world.block_on(async {
                let copy = open(&env, true).await;
                copy.is_seeding()
            });
            if is_unfinished && life.below(2) == 0 {
                world.crash(COPY, Crash::Process);
                env = world.restart(COPY);
                match world.block_on(try_open(&env, false)) {
                    Ok(_) => panic!("an unfinished copy is opened as a master's log"),
                    Err(error) => assert!(error.to_string().contains("unfinished"), "{error}"),
                }
                counts.refused_as_its_own += 1;
            }
            world.crash(COPY, Crash::Process);
            env = world.restart(COPY);
            copy = world.block_on(open(&env, true));
        }
        lives = lives.saturating_sub(1);
    }
    assert!(!copy.is_seeding() && copy.is_settled());
    let start = life.log.start_position().0.max(copy.start_position().0);
    world.block_on(async {
        let (here, there) = (
            described(&life.log, start).await,
            described(&copy, start).await,
        );
        let lacks: Vec<_> = here.difference(&there).collect();
        let invents: Vec<_> = there.difference(&here).collect();
        assert!(
            lacks.is_empty() && invents.is_empty(),
            "seed {seed}: lacks {lacks:#?}, invents {invents:#?}"
        );
        if was_seeded {
            follow(&copy, life.log.start_position().0).await.unwrap();
        }
    });
    // What it has folded so far is what it folds when it is opened as a master's.
    world.block_on(copy.stop()).unwrap();
    drop(copy);
    world.crash(COPY, Crash::Process);
    let env = world.restart(COPY);
    world.block_on(async {
        let copy = open(&env, false).await;
        let start = start.max(copy.start_position().0);
        let (here, there) = (
            described(&life.log, start).await,
            described(&copy, start).await,
        );
        assert_eq!(here, there, "seed {seed}, opened again as a master");
    });
    // And the original, whose retention went on while it was written to.
    let start = life.log.start_position().0;
    let before = world.block_on(described(&life.log, start));
    drop(life);
    world.crash(ORIGINAL, Crash::Power);
    let env = world.restart(ORIGINAL);
    world.block_on(async {
        let original = open(&env, false).await;
        let after = described(&original, start).await;
        assert_eq!(before, after, "seed {seed}, the original opened again");
    });
}

#[test]
fn a_copy_that_was_begun_from_a_seed_says_what_its_original_says() {
    let mut counts = Counts::default();
    let first = std::env::var("RINGMQ_SEED").ok();
    let first: u64 = first.map_or(0, |seed| seed.parse().unwrap());
    for seed in first..first + SEEDS {
        one(seed, &mut counts);
    }
    println!("{counts:?}");
    assert!(counts.seeded > SEEDS / 2 && counts.crashed_on_the_way > SEEDS / 8);
    assert!(counts.refused_as_its_own > 3);
}

/// A log whose first segments retention has removed.
async fn shortened(env: &SimEnv) -> Log {
    let log = open(env, false).await;
    grow(env, &log, 5 * SEGMENT_BYTES, 5_000).await;
    let rules = RetentionRules {
        bytes_max: Some(2 * SEGMENT_BYTES),
        ..RetentionRules::default()
    };
    clean(&log, rules).await.unwrap();
    log
}

/// That log, cut at `position`, and opened again as a replica.
fn cut_at(position: impl Fn(&Log) -> u64) -> (u64, u64) {
    let world = SimWorld::new(7, SimOptions::default());
    let env = world.core(ORIGINAL);
    world.block_on(async {
        let log = shortened(&env).await;
        log.save_snapshot().await.unwrap();
        assert!(log.start_position().0 > 0);
        log.ask_for_cut(9, position(&log)).await.unwrap();
        log.stop().await.unwrap();
    });
    world.crash(ORIGINAL, Crash::Process);
    let env = world.restart(ORIGINAL);
    world.block_on(async {
        let log = open(&env, true).await;
        assert_eq!(log.tables().borrow().open_topics.all().count(), 0);
        (log.start_position().0, log.replica_end().position)
    })
}

#[test]
fn a_cut_that_leaves_nothing_to_build_upon_empties_the_log() {
    let before_its_beginning = cut_at(|log| log.start_position().0 - 64);
    assert_eq!(before_its_beginning, (0, 0));
    // The only snapshot is of later, and what came before it is gone.
    let before_its_snapshot = cut_at(|log| log.start_position().0);
    assert_eq!(before_its_snapshot, (0, 0));
}

#[test]
fn a_log_of_which_it_is_not_known_how_much_counts_keeps_the_snapshot_that_it_may_be_cut_to() {
    for replica in [true, false] {
        let world = SimWorld::new(7, SimOptions::default());
        let env = world.core(ORIGINAL);
        let confirmed = world.block_on(async {
            let log = shortened(&env).await;
            log.save_snapshot().await.unwrap();
            let confirmed = log.durable().0;
            grow(&env, &log, confirmed + 30_000, 5_000).await;
            confirmed
        });
        world.crash(ORIGINAL, Crash::Process);
        let elected = |options| LogOptions {
            elected: Some(2),
            ..options
        };
        let env = world.restart(ORIGINAL);
        world.block_on(async {
            let options = elected(small_options(replica));
            let log = CommitLog::open(env.clone(), options).await.unwrap();
            log.start(Rc::new(Quiet));
            assert!(log.replica_end().position > confirmed);
            assert!(log.save_snapshot().await.is_err());
            log.ask_for_cut(9, confirmed).await.unwrap();
            log.stop().await.unwrap();
        });
        world.crash(ORIGINAL, Crash::Process);
        let env = world.restart(ORIGINAL);
        world.block_on(async {
            let log = CommitLog::open(env.clone(), elected(small_options(true)))
                .await
                .unwrap();
            log.start(Rc::new(Quiet));
            assert_eq!(log.replica_end().position, confirmed);
            assert_eq!(log.tables().borrow().open_topics.all().count(), 1);
            // It is confirmed now.
            log.set_release_limit(confirmed);
            log.save_snapshot().await.unwrap();
        });
    }
}

#[test]
fn a_trim_that_could_not_read_an_index_block_is_ended_by_the_next_pass() {
    let world = SimWorld::new(7, SimOptions::default());
    let env = world.core(ORIGINAL);
    let set_eio = |rate| {
        world.with_disk(ORIGINAL, |disk| {
            disk.options.faults.read_eio_per_million = rate;
        });
    };
    world.block_on(async {
        let log = open(&env, false).await;
        grow(&env, &log, 4 * SEGMENT_BYTES, 300).await;
        log.make_seed().await.unwrap();
        set_eio(1_000_000);
        let rules = RetentionRules {
            bytes_max: Some(3 * SEGMENT_BYTES),
            ..RetentionRules::default()
        };
        clean(&log, rules).await.unwrap_err();
        set_eio(0);
        let refused = log.make_seed().await.err().unwrap();
        assert_eq!(refused.kind(), std::io::ErrorKind::WouldBlock);
        // Of a pass that removes nothing, too.
        clean(&log, RetentionRules::default()).await.unwrap();
        log.make_seed().await.unwrap();
        let min = log.bounds(QUEUE).min_offset;
        let first = log.entry(QUEUE, min).await.unwrap().unwrap();
        let before = log.entry(QUEUE, min - 1).await.unwrap();
        assert!(first.position >= SEGMENT_BYTES && before.is_none());
    });
}

#[test]
fn a_seed_that_is_noted_while_a_snapshot_is_saved_stays_a_seed() {
    for seed in 0..40 {
        let options = SimOptions {
            nodes: 2,
            ..SimOptions::default()
        };
        let world = SimWorld::new(seed, options);
        let env = world.core(ORIGINAL);
        let (original, noted) = world.block_on(async {
            let log = shortened(&env).await;
            let noted = log.make_seed().await.unwrap();
            (log, noted)
        });
        let env = world.core(COPY);
        world.block_on(async {
            let log = open(&env, true).await;
            let is_saved = Rc::new(Cell::new(false));
            let (own, saver, done) = (env.clone(), log.clone(), is_saved.clone());
            env.spawn(async move {
                own.sleep(Duration::from_micros(own.random_u64() % 1_000))
                    .await;
                saver.save_snapshot().await.unwrap();
                done.set(true);
            });
            env.sleep(Duration::from_micros(env.random_u64() % 1_000))
                .await;
            log.note_seed(&noted).await.unwrap();
            while !is_saved.get() {
                env.sleep(Duration::from_millis(1)).await;
            }
        });
        world.crash(COPY, Crash::Process);
        let env = world.restart(COPY);
        world.block_on(async {
            let log = open(&env, true).await;
            let begins = (log.is_seeding(), log.replica_end().position);
            assert_eq!(begins, (true, noted.mark.position), "seed {seed}");
        });
        drop(original);
    }
}
