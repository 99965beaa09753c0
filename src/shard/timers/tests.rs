//! Delayed messages in the simulated world: what was acknowledged comes once, never early, whatever happens between.
#![allow(clippy::unwrap_used)] // A test that meets an error it did not plan for is to fail.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::io::env::Env;
use crate::io::sim::{Crash, SimEnv, SimOptions, SimWorld};
use crate::shard::message::{Delayed, MessageFilter, Pull, QueueKey, ShardReply, ShardRequest};
use crate::shard::meta::{MetaCommand, Topic};
use crate::shard::testing::{self, Store, TOPIC, message};
use crate::shard::{Shard, ShardHandle};
use crate::store::log_reader::CHUNK_BYTES;
use crate::store::retention::{RetentionRules, clean};
use crate::wire::record::RecordView;

/// One chunk of the log reader: segments roll all the time.
const SEGMENT_BYTES: u64 = CHUNK_BYTES;
const QUEUES: u32 = 3;

async fn start(env: &SimEnv, logs: u8) -> Rc<Shard<SimEnv>> {
    let store = Store {
        logs,
        segment_bytes: SEGMENT_BYTES,
        key_tail_entries: 64,
        snapshot_bytes: SEGMENT_BYTES,
    };
    testing::start(env, store).await
}

async fn topic(core: &ShardHandle) -> Arc<Topic> {
    testing::topic(core, QUEUES).await
}

/// A delayed message as the model knows it.
#[derive(Clone, Copy, Debug)]
struct Sent {
    due_ms: u64,
    queue_id: u32,
    acknowledged: bool,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    queue_id: u32,
    queue_offset: i64,
    stored_ms: u64,
}

/// What producers sent and consumers saw; it outlives every crash.
#[derive(Default)]
struct Model {
    next_id: Cell<u64>,
    sent: RefCell<BTreeMap<u64, Sent>>,
    seen: RefCell<BTreeMap<u64, Vec<Seen>>>,
    /// Consumer offsets: what is visible once stays.
    offsets: RefCell<BTreeMap<u32, i64>>,
}

impl Model {
    fn open_until_ms(&self) -> u64 {
        let sent = self.sent.borrow();
        sent.values().map(|sent| sent.due_ms).max().unwrap_or(0)
    }

    /// Sends one delayed message whose body is its number and some more.
    async fn send(&self, env: &SimEnv, core: &ShardHandle, topic: &Topic, delay_ms_max: u64) {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        let queue_id = (env.random_u64() % u64::from(QUEUES)) as u32;
        let due_ms = env.now_ms() + env.random_u64() % delay_ms_max;
        let mut body = id.to_be_bytes().to_vec();
        body.resize(8 + (env.random_u64() % 3_000) as usize, id as u8);
        self.sent.borrow_mut().insert(
            id,
            Sent {
                due_ms,
                queue_id,
                acknowledged: false,
            },
        );
        let delayed = Delayed {
            message: message(topic, queue_id, body),
            due_ms,
        };
        let request = ShardRequest::AppendDelayed(Box::new(delayed));
        if let ShardReply::Appended(appended) = core.ask(0, request).await {
            assert_eq!(appended.physical_offsets.len(), 1);
            self.sent.borrow_mut().get_mut(&id).unwrap().acknowledged = true;
        }
    }

    /// Reads all that is new in a queue.
    async fn consume(&self, core: &ShardHandle, topic: &Topic, queue_id: u32) {
        loop {
            let offset = self.offsets.borrow().get(&queue_id).copied().unwrap_or(0);
            let pull = Pull {
                queue: ShardHandle::key(topic, queue_id),
                offset,
                messages_max: 32,
                bytes_max: 256 << 10,
                filter: MessageFilter::All,
                suspend_ms: 0,
                commit: None,
            };
            let reply = core.ask(0, ShardRequest::Pull(Box::new(pull))).await;
            let ShardReply::Pulled(pulled) = reply else {
                panic!("{reply:?}")
            };
            assert!(pulled.min_offset <= offset, "retention outran the consumer");
            if pulled.message_count == 0 {
                return;
            }
            let records = pulled.records.into_bytes();
            for record in crate::wire::record::records(&records) {
                let record: RecordView<'_> = record.unwrap();
                record.check_body().unwrap();
                let id = u64::from_be_bytes(*record.body().first_chunk().unwrap());
                if id == u64::MAX {
                    continue; // A plain message.
                }
                assert!(record.body()[8..].iter().all(|&byte| byte == id as u8));
                assert_eq!((record.flag(), record.reconsume_times()), (3, 1));
                self.seen.borrow_mut().entry(id).or_default().push(Seen {
                    queue_id,
                    queue_offset: record.queue_offset(),
                    stored_ms: record.store_timestamp() as u64,
                });
            }
            self.offsets
                .borrow_mut()
                .insert(queue_id, pulled.next_offset);
        }
    }

    /// The promise, when all is over.
    fn check(&self, seed: u64) {
        let seen = self.seen.borrow();
        for (id, sent) in &*self.sent.borrow() {
            let seen = seen.get(id).map_or(&[][..], Vec::as_slice);
            assert!(
                !sent.acknowledged || !seen.is_empty(),
                "seed {seed}: {id} {sent:?} is lost"
            );
            assert!(
                seen.len() <= 1,
                "seed {seed}: {id} {sent:?} came as {seen:?}"
            );
            for seen in seen {
                assert!(
                    seen.stored_ms >= sent.due_ms && seen.queue_id == sent.queue_id,
                    "seed {seed}: {id} {sent:?} came as {seen:?}"
                );
            }
        }
    }
}

/// A life of the process: producers, consumers and retention until it is crashed or the world stops.
fn live(env: &SimEnv, logs: u8, model: &Rc<Model>, producing: &Rc<Cell<bool>>) {
    let (env, model, producing) = (env.clone(), model.clone(), producing.clone());
    env.clone().spawn(async move {
        let shard = start(&env, logs).await;
        let core = shard.handle();
        let topic = topic(&core).await;
        for queue_id in 0..QUEUES {
            let (env, core, model, topic) =
                (env.clone(), core.clone(), model.clone(), topic.clone());
            env.clone().spawn(async move {
                loop {
                    model.consume(&core, &topic, queue_id).await;
                    env.sleep(Duration::from_millis(7)).await;
                }
            });
        }
        for log in shard.logs() {
            let (env, log) = (env.clone(), log.clone());
            env.clone().spawn_background(async move {
                loop {
                    env.sleep(Duration::from_millis(50)).await;
                    let rules = RetentionRules {
                        older_than_ms: None,
                        bytes_max: Some(3 * SEGMENT_BYTES),
                        ..RetentionRules::default()
                    };
                    let _ = clean(&log, rules).await;
                }
            });
        }
        while producing.get() {
            let plain = message(&topic, (env.random_u64() % 3) as u32, vec![0xFF; 2_000]);
            core.append(0, smallvec::smallvec![plain], |_| {});
            let (env_, core, model, topic) =
                (env.clone(), core.clone(), model.clone(), topic.clone());
            env.spawn(async move { model.send(&env_, &core, &topic, 1_500).await });
            let pause = Duration::from_millis(env.random_u64() % 10);
            env.sleep(pause).await;
        }
    });
}

fn world(seed: u64) -> SimWorld {
    SimWorld::new(seed, SimOptions::default())
}

#[test]
fn delayed_messages_survive_power_cuts_none_is_lost_none_is_early_none_comes_twice() {
    let (mut removed, mut delivered, mut unknown) = (0, 0, 0);
    let seeds = match std::env::var("RINGMQ_SEED") {
        Ok(seed) => {
            let seed = seed.parse().unwrap();
            seed..seed + 1
        }
        Err(_) => 0..200,
    };
    for seed in seeds {
        let world = world(seed);
        let logs = 1 + (seed % 2) as u8;
        let model = Rc::new(Model::default());
        let producing = Rc::new(Cell::new(true));
        live(&world.env(), logs, &model, &producing);
        for _ in 0..3 {
            world.run_for(Duration::from_millis(200 + world.random_u64() % 600));
            let crash = if world.random_u64().is_multiple_of(3) {
                Crash::Process
            } else {
                Crash::Power
            };
            world.crash(0, crash);
            // Some timers become due while the machine is down.
            world.run_for(Duration::from_millis(world.random_u64() % 500));
            live(&world.restart(0), logs, &model, &producing);
        }
        world.run_for(Duration::from_millis(300));
        producing.set(false);
        let left = model.open_until_ms().saturating_sub(world.env().now_ms());
        world.run_for(Duration::from_millis(left + 1_000));
        model.check(seed);
        let first = world
            .with_disk(0, |disk| disk.files())
            .into_iter()
            .any(|(path, _)| path.ends_with("00000000000000000000.seg"));
        removed += u32::from(!first);
        delivered += model.seen.borrow().len();
        let sent = model.sent.borrow();
        unknown += sent.values().filter(|sent| !sent.acknowledged).count();
    }
    assert!(delivered > 20_000, "{delivered} were delivered");
    assert!(removed > 75, "retention worked in {removed} runs");
    assert!(unknown > 20, "{unknown} were under way in a crash");
}

#[test]
fn an_idle_broker_delivers_within_milliseconds() {
    let world = world(1);
    let env = world.env();
    let model = Rc::new(Model::default());
    world.block_on(async {
        let shard = start(&env, 1).await;
        let core = shard.handle();
        let topic = topic(&core).await;
        for _ in 0..100 {
            model.send(&env, &core, &topic, 5_000).await;
        }
        env.sleep(Duration::from_secs(6)).await;
        for queue_id in 0..QUEUES {
            model.consume(&core, &topic, queue_id).await;
        }
    });
    model.check(1);
    let sent = model.sent.borrow();
    let mut last = BTreeMap::new();
    for (id, seen) in &*model.seen.borrow() {
        let late_ms = seen[0].stored_ms - sent[id].due_ms;
        assert!(late_ms <= 5, "{id} came {late_ms} ms late");
        last.insert((seen[0].queue_id, seen[0].queue_offset), sent[id].due_ms);
    }
    let per_queue = |queue_id| -> Vec<u64> {
        let range = (queue_id, 0)..(queue_id + 1, 0);
        last.range(range).map(|(_, &due_ms)| due_ms).collect()
    };
    assert!((0..QUEUES).all(|queue_id| per_queue(queue_id).is_sorted()));
}

#[test]
fn an_earlier_timer_wakes_a_task_that_sleeps_for_a_later_one() {
    let world = world(2);
    let env = world.env();
    world.block_on(async {
        let shard = start(&env, 1).await;
        let core = shard.handle();
        let topic = topic(&core).await;
        for delay_ms in [900, 30] {
            let delayed = Delayed {
                message: message(&topic, 0, vec![1; 10]),
                due_ms: env.now_ms() + delay_ms,
            };
            core.ask(0, ShardRequest::AppendDelayed(Box::new(delayed)))
                .await;
        }
        let queue = ShardHandle::key(&topic, 0);
        let bounds = async || match core.ask(0, ShardRequest::Bounds(queue)).await {
            ShardReply::Bounds(bounds) => bounds.max_offset,
            other => panic!("{other:?}"),
        };
        assert_eq!(bounds().await, 0, "a delayed message is invisible");
        env.sleep(Duration::from_millis(50)).await;
        assert_eq!(bounds().await, 1);
        env.sleep(Duration::from_millis(900)).await;
        assert_eq!(bounds().await, 2);
    });
}

#[test]
fn the_answers_offset_finds_the_message_before_it_is_due() {
    let world = world(3);
    let env = world.env();
    world.block_on(async {
        let shard = start(&env, 1).await;
        let core = shard.handle();
        let topic = topic(&core).await;
        let delayed = Delayed {
            message: message(&topic, 2, vec![1; 10]),
            due_ms: env.now_ms() + 60_000,
        };
        let request = ShardRequest::AppendDelayed(Box::new(delayed));
        let ShardReply::Appended(appended) = core.ask(0, request).await else {
            panic!("it is refused")
        };
        let (log, position) = appended.physical_offsets[0].split().unwrap();
        let request = ShardRequest::ReadRecord { log, position };
        let ShardReply::Record(Some(record)) = core.ask(0, request).await else {
            panic!("it is not found")
        };
        let record = record.into_bytes();
        let view = RecordView::parse_checked(&record).unwrap();
        assert_eq!((view.topic(), view.queue_id()), (TOPIC, 2));
    });
}

#[test]
fn timers_of_a_deleted_topic_never_fire_not_even_in_its_next_incarnation() {
    let world = world(4);
    let env = world.env();
    world.block_on(async {
        let shard = start(&env, 1).await;
        let core = shard.handle();
        let old = topic(&core).await;
        let delayed = Delayed {
            message: message(&old, 0, vec![1; 10]),
            due_ms: env.now_ms() + 100,
        };
        core.ask(0, ShardRequest::AppendDelayed(Box::new(delayed)))
            .await;
        let command = MetaCommand::DeleteTopic(TOPIC.into());
        core.ask(0, ShardRequest::Meta(Box::new(command))).await;
        let new = topic(&core).await;
        assert_ne!(old.id, new.id);
        env.sleep(Duration::from_millis(300)).await;
        let keys: BTreeSet<QueueKey> =
            [ShardHandle::key(&old, 0), ShardHandle::key(&new, 0)].into();
        for key in keys {
            let ShardReply::Bounds(bounds) = core.ask(0, ShardRequest::Bounds(key)).await else {
                panic!("no bounds")
            };
            assert_eq!(bounds.max_offset, 0);
        }
        let log = shard.logs().next().unwrap();
        assert!(log.tables().borrow().timers.is_empty());
    });
}

#[test]
fn a_recall_takes_back_the_message_that_it_names_and_no_other() {
    for (seed, same_time) in [(5, false), (6, true)] {
        let world = world(seed);
        let env = world.env();
        world.block_on(async {
            let shard = start(&env, 1).await;
            let core = shard.handle();
            let topic = topic(&core).await;
            let due_ms = env.now_ms() + 200;
            let send = async |properties: &'static str, due_ms| {
                let mut message = message(&topic, 0, properties.as_bytes().to_vec());
                message.properties = properties.as_bytes().into();
                let delayed = Delayed { message, due_ms };
                let request = ShardRequest::AppendDelayed(Box::new(delayed));
                assert!(matches!(
                    core.ask(0, request).await,
                    ShardReply::Appended(_)
                ));
            };
            send("UNIQ_KEY\x01one\x02", due_ms).await;
            send("UNIQ_KEY\x01two\x02", due_ms).await;
            // Another time is another message, whatever its key is.
            send("UNIQ_KEY\x01one\x02", due_ms + 50).await;
            if same_time {
                // Both are late, so they come in one batch.
                let log = shard.logs().next().unwrap();
                let taken = log
                    .tables()
                    .borrow_mut()
                    .timers
                    .take_due(u64::MAX, u64::MAX);
                send("TIMER_DEL_UNIQKEY\x01one\x02", due_ms - 1).await;
                env.sleep(Duration::from_millis(400)).await;
                let keys = taken.into_iter().map(|(key, _)| key);
                log.tables().borrow_mut().timers.give_back(keys);
            } else {
                send("TIMER_DEL_UNIQKEY\x01one\x02", due_ms - 1).await;
            }
            env.sleep(Duration::from_secs(3)).await;
            let pull = Pull {
                queue: ShardHandle::key(&topic, 0),
                offset: 0,
                messages_max: 32,
                bytes_max: 256 << 10,
                filter: MessageFilter::All,
                suspend_ms: 0,
                commit: None,
            };
            let reply = core.ask(0, ShardRequest::Pull(Box::new(pull))).await;
            let ShardReply::Pulled(pulled) = reply else {
                panic!("{reply:?}")
            };
            let records = pulled.records.into_bytes();
            let bodies: Vec<&[u8]> = crate::wire::record::records(&records)
                .map(|record| record.unwrap().body())
                .collect();
            let (one, two) = (&b"UNIQ_KEY\x01one\x02"[..], &b"UNIQ_KEY\x01two\x02"[..]);
            assert_eq!(bodies, [two, one], "seed {seed}");
            let log = shard.logs().next().unwrap();
            assert!(log.tables().borrow().timers.is_empty());
        });
    }
}

#[test]
fn a_recall_survives_a_crash_between_it_and_its_message() {
    for seed in 0..30 {
        let world = world(seed);
        let env = world.env();
        let due_ms = env.now_ms() + 300;
        world.block_on(async {
            let shard = start(&env, 1).await;
            let core = shard.handle();
            let topic = topic(&core).await;
            for number in 0..20 {
                for (property, at_ms) in [("UNIQ_KEY", due_ms), ("TIMER_DEL_UNIQKEY", due_ms - 1)] {
                    let mut message = message(&topic, number % 3, vec![1; 900]);
                    message.properties = format!("{property}\x01k{number}\x02").into_bytes().into();
                    let delayed = Delayed {
                        message,
                        due_ms: at_ms,
                    };
                    let request = ShardRequest::AppendDelayed(Box::new(delayed));
                    assert!(matches!(
                        core.ask(0, request).await,
                        ShardReply::Appended(_)
                    ));
                }
            }
        });
        let left = due_ms.saturating_sub(world.env().now_ms() + 2);
        world.run_for(Duration::from_millis(left + world.random_u64() % 6));
        world.crash(0, Crash::Power);
        let env = world.restart(0);
        world.block_on(async {
            let shard = start(&env, 1).await;
            let core = shard.handle();
            let topic = topic(&core).await;
            env.sleep(Duration::from_secs(3)).await;
            for queue_id in 0..QUEUES {
                let queue = ShardHandle::key(&topic, queue_id);
                let ShardReply::Bounds(bounds) = core.ask(0, ShardRequest::Bounds(queue)).await
                else {
                    panic!("no bounds")
                };
                assert_eq!(bounds.max_offset, 0, "seed {seed}: a recalled message came");
            }
            let log = shard.logs().next().unwrap();
            assert!(log.tables().borrow().timers.is_empty(), "seed {seed}");
        });
    }
}
