//! Transactions in the simulated world: a half is never visible, what was committed comes once, what was rolled back never,
//! none is forgotten, whatever happens between.
#![allow(clippy::unwrap_used)] // A test that meets an error it did not plan for is to fail.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::base::offset::{LogId, PhysicalOffset, Position};
use crate::io::env::Env;
use crate::io::sim::{Crash, SimEnv, SimOptions, SimWorld};
use crate::shard::message::{
    HalfEnd, MessageFilter, NewHalf, Outcome, Pull, ShardReply, ShardRequest,
};
use crate::shard::meta::{MetaCommand, Topic};
use crate::shard::testing::{self, Store, TOPIC, message};
use crate::shard::transactions::{CheckRules, HalfDue};
use crate::shard::{Shard, ShardHandle};
use crate::store::delayed::new_message;
use crate::store::log_reader::CHUNK_BYTES;
use crate::store::retention::{RetentionRules, clean};
use crate::wire::record::RecordView;

/// One chunk of the log reader: segments roll all the time.
const SEGMENT_BYTES: u64 = CHUNK_BYTES;
const QUEUES: u32 = 3;
const PERIOD_MS: u64 = 100;
/// The body of a plain message begins with this in place of a number.
const PLAIN: u64 = u64::MAX;

async fn start(env: &SimEnv, logs: u8) -> Rc<Shard<SimEnv>> {
    let store = Store {
        logs,
        segment_bytes: SEGMENT_BYTES,
        key_tail_entries: 0,
        snapshot_bytes: SEGMENT_BYTES,
    };
    testing::start(env, store).await
}

async fn topic(core: &ShardHandle) -> Arc<Topic> {
    testing::topic(core, QUEUES).await
}

/// A transaction as its producer knows it.
#[derive(Clone, Copy, Debug, Default)]
struct Transaction {
    queue_id: u32,
    acknowledged: bool,
    /// How its producer wants it to end, once it has decided: for good.
    decided: Option<Outcome>,
    /// The broker said that it ended.
    ended: bool,
    seen: u32,
    checks: u32,
}

/// What producers and consumers know; it outlives every crash.
#[derive(Default)]
struct Model {
    next_id: Cell<u64>,
    transactions: RefCell<BTreeMap<u64, Transaction>>,
    /// Consumer offsets: what is visible once stays.
    offsets: RefCell<BTreeMap<u32, i64>>,
    repeated: Cell<u32>,
    /// The broker of the last life.
    shard: RefCell<Option<Rc<Shard<SimEnv>>>>,
}

/// Asks for the end of a transaction, with the message as the log has it.
async fn end(
    core: &ShardHandle,
    log: LogId,
    origin: u64,
    outcome: Outcome,
) -> Option<Option<Outcome>> {
    let record = match core.ask(0, ShardRequest::ReadHalf { log, origin }).await {
        ShardReply::Record(record) => record,
        _ => return None,
    };
    let how = match (record, outcome) {
        (None, _) => HalfEnd::Ask,
        (Some(record), Outcome::Committed) => {
            let record = record.into_bytes();
            let view = RecordView::parse_checked(&record).unwrap();
            assert_eq!(view.queue_offset(), origin as i64);
            let id = core.meta().topics[TOPIC].id;
            HalfEnd::Commit(new_message(&view, id), None)
        }
        (Some(_), Outcome::RolledBack) => HalfEnd::RollBack,
        (Some(_), Outcome::GivenUp) => HalfEnd::GiveUp,
    };
    let end = Box::new(how);
    let request = ShardRequest::EndHalf { log, origin, end };
    match core.ask(0, request).await {
        ShardReply::HalfEnded(outcome) => Some(outcome),
        ShardReply::Refused(_) => None,
        other => panic!("{other:?}"),
    }
}

impl Model {
    fn with<T>(&self, id: u64, change: impl FnOnce(&mut Transaction) -> T) -> T {
        change(self.transactions.borrow_mut().entry(id).or_default())
    }

    /// How the producer of a transaction wants it to end: the first one to ask decides.
    fn decide(&self, env: &SimEnv, id: u64) -> Outcome {
        let random = env.random_u64();
        self.with(id, |transaction| {
            *transaction
                .decided
                .get_or_insert(if random.is_multiple_of(3) {
                    Outcome::RolledBack
                } else {
                    Outcome::Committed
                })
        })
    }

    /// Sends a half and perhaps ends its transaction, perhaps several times, some at once.
    async fn produce(self: &Rc<Self>, env: &SimEnv, core: &ShardHandle, topic: &Topic) {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        let queue_id = (env.random_u64() % u64::from(QUEUES)) as u32;
        self.with(id, |transaction| transaction.queue_id = queue_id);
        let mut body = id.to_be_bytes().to_vec();
        body.resize(8 + (env.random_u64() % 3_000) as usize, id as u8);
        let half = NewHalf {
            message: message(topic, queue_id, body),
            check_after_ms: 20 + env.random_u64() % 300,
        };
        let reply = core.ask(0, ShardRequest::AppendHalf(Box::new(half))).await;
        let ShardReply::Appended(appended) = reply else {
            return;
        };
        self.with(id, |transaction| transaction.acknowledged = true);
        let (log, position) = appended.physical_offsets[0].split().unwrap();
        assert_eq!(appended.queue_offset, position.0 as i64);
        let ends = env.random_u64() % 4;
        for _ in 0..ends {
            let (env, core, model) = (env.clone(), core.clone(), self.clone());
            env.clone().spawn(async move {
                env.sleep(Duration::from_millis(env.random_u64() % 60))
                    .await;
                model.end(&env, &core, id, log, position.0).await;
            });
        }
    }

    async fn end(&self, env: &SimEnv, core: &ShardHandle, id: u64, log: LogId, origin: u64) {
        let wanted = self.decide(env, id);
        match end(core, log, origin, wanted).await {
            // The broker went down, or has no room now.
            None => {}
            Some(Some(outcome)) => {
                assert_eq!(outcome, wanted, "transaction {id}");
                if self.with(id, |known| std::mem::replace(&mut known.ended, true)) {
                    self.repeated.set(self.repeated.get() + 1);
                }
            }
            // Ended in an earlier life: nobody remembers how.
            Some(None) => self.with(id, |known| known.ended = true),
        }
    }

    /// What a producer says when it is asked.
    async fn check(&self, env: &SimEnv, core: &ShardHandle, due: HalfDue) {
        let record = RecordView::parse_checked(&due.record).unwrap();
        let id = u64::from_be_bytes(*record.body().first_chunk().unwrap());
        self.with(id, |transaction| transaction.checks += 1);
        // It does not know yet, or the answer is lost.
        if !env.random_u64().is_multiple_of(3) {
            self.end(env, core, id, due.log, due.origin).await;
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
                if id == PLAIN {
                    continue;
                }
                assert!(record.body()[8..].iter().all(|&byte| byte == id as u8));
                self.with(id, |transaction| {
                    transaction.seen += 1;
                    assert_eq!(transaction.decided, Some(Outcome::Committed), "{id}");
                    assert_eq!(transaction.queue_id, queue_id);
                });
            }
            let next = pulled.next_offset;
            self.offsets.borrow_mut().insert(queue_id, next);
        }
    }

    /// The promise, when all is over.
    fn check_all(&self, seed: u64) {
        for log in self.shard.borrow().iter().flat_map(|shard| shard.logs()) {
            let open = log.tables().borrow().halves.len();
            assert_eq!(open, 0, "seed {seed}: transactions are open for ever");
        }
        for (id, transaction) in &*self.transactions.borrow() {
            let Transaction { seen, decided, .. } = *transaction;
            assert!(seen <= 1, "seed {seed}: {id} {transaction:?} came twice");
            if transaction.acknowledged {
                assert!(
                    decided.is_some(),
                    "seed {seed}: {id} {transaction:?} was forgotten"
                );
                let wanted = u32::from(decided == Some(Outcome::Committed));
                assert_eq!(seen, wanted, "seed {seed}: {id} {transaction:?}");
            }
        }
    }
}

/// A life of the process: producers, consumers and retention until it is crashed or the world stops.
fn live(env: &SimEnv, logs: u8, model: &Rc<Model>, producing: &Rc<Cell<bool>>) {
    let (env, model, producing) = (env.clone(), model.clone(), producing.clone());
    env.clone().spawn(async move {
        let shard = start(&env, logs).await;
        *model.shard.borrow_mut() = Some(shard.clone());
        let core = shard.handle();
        let topic = topic(&core).await;
        let (env_, model_, core_) = (env.clone(), model.clone(), core.clone());
        let rules = CheckRules {
            period_ms: PERIOD_MS,
        };
        core.set_check_handler(rules, move |due| {
            let (env, model, core) = (env_.clone(), model_.clone(), core_.clone());
            Box::pin(async move {
                for half in due {
                    model.check(&env, &core, half).await;
                }
            })
        });
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
                        bytes_max: Some(2 * SEGMENT_BYTES),
                        ..RetentionRules::default()
                    };
                    let _ = clean(&log, rules).await;
                }
            });
        }
        while producing.get() {
            let mut body = PLAIN.to_be_bytes().to_vec();
            body.resize(2_000, 0xFF);
            let plain = message(&topic, (env.random_u64() % 3) as u32, body);
            core.append(0, smallvec::smallvec![plain], |_| {});
            let (env_, core, model, topic) =
                (env.clone(), core.clone(), model.clone(), topic.clone());
            env.spawn(async move { model.produce(&env_, &core, &topic).await });
            let pause = Duration::from_millis(env.random_u64() % 10);
            env.sleep(pause).await;
        }
    });
}

fn world(seed: u64) -> SimWorld {
    SimWorld::new(seed, SimOptions::default())
}

#[test]
fn transactions_survive_power_cuts_each_ends_once_as_its_producer_said() {
    let (mut removed, mut seen, mut checks, mut repeated) = (0, 0, 0, 0);
    let seeds = match std::env::var("RINGMQ_SEED") {
        Ok(seed) => {
            let seed = seed.parse().unwrap();
            seed..seed + 1
        }
        Err(_) => {
            let count = std::env::var("RINGMQ_SIM_SEEDS").ok();
            0..count.and_then(|count| count.parse().ok()).unwrap_or(200)
        }
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
            world.run_for(Duration::from_millis(world.random_u64() % 500));
            live(&world.restart(0), logs, &model, &producing);
        }
        world.run_for(Duration::from_millis(300));
        producing.set(false);
        world.run_for(Duration::from_secs(5));
        model.check_all(seed);
        let first = world
            .with_disk(0, |disk| disk.files())
            .into_iter()
            .any(|(path, _)| path.ends_with("00000000000000000000.seg"));
        removed += u32::from(!first);
        repeated += model.repeated.get();
        for transaction in model.transactions.borrow().values() {
            seen += transaction.seen;
            checks += transaction.checks;
        }
    }
    println!(
        "{seen} committed, {checks} checks, {repeated} repeated ends, {removed} with retention"
    );
    assert!(seen > 10_000, "{seen} were committed");
    assert!(checks > 5_000, "{checks} checks");
    assert!(repeated > 5_000, "{repeated} ends were repeated");
    assert!(removed > 75, "retention worked in {removed} runs");
}

/// Sends one half; its log and origin.
async fn half(core: &ShardHandle, topic: &Topic, check_after_ms: u64) -> (LogId, u64) {
    let half = NewHalf {
        message: message(topic, 0, vec![7; 100]),
        check_after_ms,
    };
    let request = ShardRequest::AppendHalf(Box::new(half));
    match core.ask(0, request).await {
        ShardReply::Appended(appended) => {
            let (log, position) = appended.physical_offsets[0].split().unwrap();
            (log, position.0)
        }
        other => panic!("{other:?}"),
    }
}

async fn visible(core: &ShardHandle, topic: &Topic) -> i64 {
    let queue = ShardHandle::key(topic, 0);
    match core.ask(0, ShardRequest::Bounds(queue)).await {
        ShardReply::Bounds(bounds) => bounds.max_offset,
        other => panic!("{other:?}"),
    }
}

#[test]
fn whoever_comes_second_hears_how_it_ended_and_changes_nothing() {
    let world = world(1);
    let env = world.env();
    world.block_on(async {
        let shard = start(&env, 1).await;
        let core = shard.handle();
        let topic = topic(&core).await;
        let (log, origin) = half(&core, &topic, 60_000).await;
        assert_eq!(visible(&core, &topic).await, 0, "a half is invisible");
        let place = PhysicalOffset::new(log, Position(origin));
        let (log, position) = place.split().unwrap();
        let found = core.ask(0, ShardRequest::ReadRecord { log, position });
        assert!(matches!(found.await, ShardReply::Record(Some(_))));
        // Two at once: the second finds an end that is not durable yet.
        let both = futures_lite::future::zip(
            end(&core, log, origin, Outcome::Committed),
            end(&core, log, origin, Outcome::RolledBack),
        );
        let committed = Some(Some(Outcome::Committed));
        assert_eq!(both.await, (committed, committed));
        for outcome in [Outcome::Committed, Outcome::RolledBack] {
            assert_eq!(end(&core, log, origin, outcome).await, committed);
        }
        assert_eq!(visible(&core, &topic).await, 1);
        for other in [origin + 1, origin - 1, 0, u64::MAX >> 8] {
            let unknown = end(&core, log, other, Outcome::Committed).await;
            assert_eq!(unknown, Some(None));
        }
        let elsewhere = end(&core, 9, origin, Outcome::Committed).await;
        assert_eq!(elsewhere, Some(None));
    });
}

#[test]
fn an_end_waits_in_line_for_space_behind_what_came_before() {
    let world = world(2);
    let env = world.env();
    world.block_on(async {
        let shard = start(&env, 1).await;
        let core = shard.handle();
        let topic = topic(&core).await;
        let (log, origin) = half(&core, &topic, 60_000).await;
        let answers = Rc::new(RefCell::new(Vec::new()));
        let mut sent = 0;
        while shard.is_first_in_line(&shard.logs[&log]) {
            let messages = vec![message(&topic, 0, vec![7; 100_000])];
            let answers = answers.clone();
            core.call(0, ShardRequest::Append(messages.into()), move |reply| {
                assert!(matches!(reply, ShardReply::Appended(_)), "{reply:?}");
                answers.borrow_mut().push("sent");
            });
            sent += 1;
        }
        let told = answers.clone();
        let end = Box::new(HalfEnd::RollBack);
        let request = ShardRequest::EndHalf { log, origin, end };
        core.call(0, request, move |reply| {
            let ShardReply::HalfEnded(outcome) = reply else {
                panic!("{reply:?}")
            };
            assert_eq!(outcome, Some(Outcome::RolledBack));
            told.borrow_mut().push("ended");
        });
        while answers.borrow().len() <= sent {
            env.sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(answers.borrow()[sent], "ended");
    });
}

#[test]
fn producers_are_asked_in_time_and_not_before_they_could_come_back_after_a_start() {
    let world = world(2);
    let asked = Rc::new(RefCell::new(Vec::new()));
    let listen = |env: &SimEnv, core: &ShardHandle| {
        let (env, asked) = (env.clone(), asked.clone());
        let rules = CheckRules { period_ms: 1_000 };
        core.set_check_handler(rules, move |due| {
            for half in due {
                asked.borrow_mut().push((env.now_ms(), half.checks));
            }
            Box::pin(async {})
        });
    };
    let env = world.env();
    let sent_ms = world.block_on(async {
        let shard = start(&env, 1).await;
        let core = shard.handle();
        listen(&env, &core);
        let topic = topic(&core).await;
        env.sleep(Duration::from_secs(2)).await;
        let sent_ms = env.now_ms();
        half(&core, &topic, 300).await;
        env.sleep(Duration::from_millis(2_500)).await;
        sent_ms
    });
    let near = |at_ms: u64, wanted_ms: u64| (wanted_ms..wanted_ms + 20).contains(&at_ms);
    let first = asked.take();
    assert_eq!(first.len(), 3, "{first:?}");
    for (number, (at_ms, checks)) in first.into_iter().enumerate() {
        assert!(near(at_ms, sent_ms + 300 + 1_000 * number as u64));
        assert_eq!(checks, number as u32);
    }
    world.crash(0, Crash::Power);
    world.run_for(Duration::from_secs(60));
    let env = world.restart(0);
    world.block_on(async {
        let started_ms = env.now_ms();
        let shard = start(&env, 1).await;
        listen(&env, &shard.handle());
        env.sleep(Duration::from_millis(1_500)).await;
        let again = asked.take();
        assert_eq!(again.len(), 1, "{again:?}");
        let at_ms = again[0].0 - started_ms;
        assert!((1_000..1_200).contains(&at_ms), "{at_ms}");
        assert_eq!(again[0].1, 3, "checks are counted durably");
    });
}

#[test]
fn halves_of_a_deleted_topic_are_gone() {
    let world = world(3);
    let env = world.env();
    world.block_on(async {
        let shard = start(&env, 1).await;
        let core = shard.handle();
        let old = topic(&core).await;
        let (log, origin) = half(&core, &old, 60_000).await;
        let command = MetaCommand::DeleteTopic(TOPIC.into());
        core.ask(0, ShardRequest::Meta(Box::new(command))).await;
        let new = topic(&core).await;
        assert_ne!(old.id, new.id);
        let late = end(&core, log, origin, Outcome::Committed).await;
        assert_eq!(late, Some(None));
        assert_eq!(visible(&core, &new).await, 0);
        let log = shard.logs().next().unwrap();
        assert!(log.tables().borrow().halves.is_empty());
    });
}

#[test]
fn a_commit_for_later_waits_for_its_time() {
    let world = world(4);
    let env = world.env();
    world.block_on(async {
        let shard = start(&env, 1).await;
        let core = shard.handle();
        let topic = topic(&core).await;
        let (log, origin) = half(&core, &topic, 60_000).await;
        let message = message(&topic, 0, vec![7; 100]);
        let commit = HalfEnd::Commit(message, Some(env.now_ms() + 200));
        let end = Box::new(commit);
        let request = ShardRequest::EndHalf { log, origin, end };
        let reply = core.ask(0, request).await;
        let is_committed = matches!(reply, ShardReply::HalfEnded(Some(Outcome::Committed)));
        assert!(is_committed, "{reply:?}");
        assert_eq!(visible(&core, &topic).await, 0);
        env.sleep(Duration::from_millis(210)).await;
        assert_eq!(visible(&core, &topic).await, 1);
    });
}
