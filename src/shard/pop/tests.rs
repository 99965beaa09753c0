//! POP consumers in the simulated world: whatever is popped, acknowledged, put off or forgotten, and whenever the power
//! goes, nothing is lost, what was acknowledged stays away, and what is hidden stays hidden for its time.
#![allow(clippy::unwrap_used)] // A test that meets an error it did not plan for is to fail.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::message::*;
use crate::io::body::Body;
use crate::io::env::Env;
use crate::io::sim::{Crash, SimEnv, SimOptions, SimWorld};
use crate::shard::message::{MessageFilter, NewMessage, QueueKey, ShardReply, ShardRequest};
use crate::shard::meta::Topic;
use crate::shard::testing::{self, Store};
use crate::shard::{Shard, ShardHandle};
use crate::store::log_reader::CHUNK_BYTES;
use crate::wire::record::RecordView;

/// Segments roll and snapshots are made all the time.
const SEGMENT_BYTES: u64 = CHUNK_BYTES;
const QUEUES: u32 = 2;
const GROUPS: [&str; 2] = ["G", "H"];

async fn start(env: &SimEnv, logs: u8) -> Rc<Shard<SimEnv>> {
    let store = Store {
        logs,
        segment_bytes: SEGMENT_BYTES,
        key_tail_entries: 0,
        snapshot_bytes: SEGMENT_BYTES / 2,
    };
    testing::start(env, store).await
}

async fn topic(core: &ShardHandle) -> Arc<Topic> {
    testing::topic(core, QUEUES).await
}

fn message(topic: &Topic, queue_id: u32, body_bytes: usize) -> NewMessage {
    NewMessage {
        reconsume_times: 0,
        ..testing::message(topic, queue_id, vec![7; body_bytes])
    }
}

async fn send(core: &ShardHandle, topic: &Topic, queue_id: u32, body_bytes: usize) -> Option<i64> {
    let messages = Box::new([message(topic, queue_id, body_bytes)]);
    match core.ask(0, ShardRequest::Append(messages)).await {
        ShardReply::Appended(appended) => Some(appended.queue_offset),
        ShardReply::Refused(_) => None,
        other => panic!("{other:?}"),
    }
}

async fn ask(core: &ShardHandle, request: PopRequest) -> ShardReply<Body> {
    core.ask(0, ShardRequest::Pop(Box::new(request))).await
}

fn take_of(group: &str, topic: &Topic, queues: &[u32], max: u32, pop_ms: u64) -> PopTake {
    PopTake {
        group: group.into(),
        queues: queues
            .iter()
            .map(|&queue_id| PopSource {
                queue: ShardHandle::key(topic, queue_id),
                part: PopPart::All,
                from_end: false,
            })
            .collect(),
        messages_max: max,
        bytes_max: 256 << 10,
        pop_ms,
        invisible_ms: 1_000,
        filter: MessageFilter::All,
        order: None,
        retries_max: i32::MAX,
        peek: false,
    }
}

/// Queue, offset and number of tries of what a take gave; the records have to agree with the list.
fn given(taken: Taken<Body>) -> Vec<(QueueKey, i64, i32)> {
    let listed = taken.queues.iter().flat_map(|queue| {
        let offsets = queue.messages.iter();
        offsets.map(|(offset, before)| (queue.queue, *offset, *before as i32))
    });
    let listed: Vec<_> = listed.collect();
    let records = taken.records.into_bytes();
    let records: Vec<RecordView<'_>> = crate::wire::record::records(&records)
        .map(|record| record.unwrap())
        .collect();
    assert_eq!(records.len(), listed.len());
    for (record, (queue, offset, times)) in records.iter().zip(&listed) {
        record.check_body().unwrap();
        assert_eq!(record.queue_id() as u32, queue.queue_id);
        assert_eq!(record.queue_offset(), *offset);
        assert_eq!(record.reconsume_times(), *times);
    }
    listed
}

async fn take(core: &ShardHandle, take: PopTake) -> Vec<(QueueKey, i64, i32)> {
    match ask(core, PopRequest::Take(take)).await {
        ShardReply::Pop(PopReply::Taken(taken)) => given(*taken),
        ShardReply::Refused(_) => Vec::new(),
        other => panic!("{other:?}"),
    }
}

async fn offsets(core: &ShardHandle, asked: PopTake) -> Vec<i64> {
    let given = take(core, asked).await;
    given.into_iter().map(|(_, offset, _)| offset).collect()
}

async fn ack(
    core: &ShardHandle,
    group: &str,
    queue: QueueKey,
    receipt: Receipt,
) -> ShardReply<Body> {
    let ack = PopAck {
        group: group.into(),
        queue,
        receipts: vec![receipt],
        order: false,
    };
    ask(core, PopRequest::Ack(ack)).await
}

async fn committed(core: &ShardHandle, group: &str, queue: QueueKey) -> Option<i64> {
    let group = group.into();
    match core
        .ask(0, ShardRequest::QueryOffset { group, queue })
        .await
    {
        ShardReply::Offset(offset) => offset,
        other => panic!("{other:?}"),
    }
}

/// One message as one group has met it.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    /// Receipt of the last delivery or change that was answered.
    pop_ms: Option<u64>,
    /// It is hidden until then, as an answer said that came at `promised_ms`.
    hidden_until_ms: u64,
    promised_ms: u64,
    /// Answers that brought it.
    deliveries: i32,
    /// An acknowledgement was sent.
    ack_sent: bool,
    /// When one was answered.
    acked_ms: Option<u64>,
}

type Message = (usize, u32, i64);

/// What producers and consumers know; it outlives every crash.
#[derive(Default)]
struct Model {
    /// Messages that were acknowledged to their producer, per queue.
    sent: RefCell<BTreeMap<u32, Vec<i64>>>,
    known: RefCell<BTreeMap<Message, Known>>,
    steps: Cell<u32>,
    crashes: Cell<i32>,
    given_again: Cell<u32>,
}

impl Model {
    async fn pop(
        &self,
        env: &SimEnv,
        core: &ShardHandle,
        topic: &Topic,
        group: usize,
        drain: bool,
    ) {
        let queues: &[u32] = match env.random_u64() % 3 {
            0 => &[0, 1],
            1 => &[1, 0],
            _ => &[(env.random_u64() % u64::from(QUEUES)) as u32][..],
        };
        let queues = if drain { &[0, 1] } else { queues };
        let began_ms = env.now_ms();
        let max = 1 + (env.random_u64() % 6) as u32;
        let mut asked = take_of(GROUPS[group], topic, queues, max, began_ms);
        asked.invisible_ms = 20 + env.random_u64() % 300;
        let hidden_until_ms = began_ms + asked.invisible_ms;
        let given = take(core, asked).await;
        let now_ms = env.now_ms();
        for (queue, offset, times) in given {
            let mut known = self.known.borrow_mut();
            let known = known.entry((group, queue.queue_id, offset)).or_default();
            let what = format!(
                "{} {queue:?} {offset} {known:?} at {began_ms}..{now_ms}",
                GROUPS[group]
            );
            assert!(
                known.acked_ms.is_none_or(|acked_ms| acked_ms >= began_ms),
                "it was acknowledged: {what}"
            );
            assert!(
                known.promised_ms >= began_ms || known.hidden_until_ms <= now_ms,
                "it is hidden: {what}"
            );
            assert!(
                (known.deliveries..=known.deliveries + self.crashes.get()).contains(&times),
                "{times} tries before: {what}"
            );
            self.given_again
                .set(self.given_again.get() + u32::from(times > 0));
            known.pop_ms = Some(began_ms);
            known.hidden_until_ms = hidden_until_ms;
            known.promised_ms = now_ms;
            known.deliveries = times + 1;
        }
    }

    /// A message that was delivered to the group, at random, with its last receipt.
    fn any_delivered(&self, env: &SimEnv, group: usize) -> Option<(Message, u64)> {
        let known = self.known.borrow();
        let delivered: Vec<_> = known
            .iter()
            .filter(|((of, ..), known)| *of == group && known.acked_ms.is_none())
            .filter_map(|(message, known)| Some((*message, known.pop_ms?)))
            .collect();
        let at = env.random_u64() as usize;
        delivered.get(at % delivered.len().max(1)).copied()
    }

    async fn acknowledge(&self, env: &SimEnv, core: &ShardHandle, topic: &Topic, group: usize) {
        let Some((message, pop_ms)) = self.any_delivered(env, group) else {
            return;
        };
        self.known.borrow_mut().get_mut(&message).unwrap().ack_sent = true;
        let (_, queue_id, offset) = message;
        let queue = ShardHandle::key(topic, queue_id);
        let reply = ack(core, GROUPS[group], queue, Receipt { offset, pop_ms }).await;
        match reply {
            ShardReply::Done => {
                let mut known = self.known.borrow_mut();
                known.get_mut(&message).unwrap().acked_ms = Some(env.now_ms());
            }
            ShardReply::Refused(_) => {}
            other => panic!("{other:?}"),
        }
    }

    async fn put_off(&self, env: &SimEnv, core: &ShardHandle, topic: &Topic, group: usize) {
        let Some((message, pop_ms)) = self.any_delivered(env, group) else {
            return;
        };
        let (_, queue_id, offset) = message;
        let invisible_ms = env.random_u64() % 200;
        {
            let mut known = self.known.borrow_mut();
            let known = known.get_mut(&message).unwrap();
            let earlier_ms = env.now_ms() + invisible_ms;
            known.hidden_until_ms = known.hidden_until_ms.min(earlier_ms);
        }
        let change = PopChange {
            group: GROUPS[group].into(),
            queue: ShardHandle::key(topic, queue_id),
            receipt: Receipt { offset, pop_ms },
            invisible_ms,
            order: false,
            suspend: false,
        };
        match ask(core, PopRequest::Change(change)).await {
            ShardReply::Pop(PopReply::Changed { pop_ms, visible_ms }) => {
                let mut known = self.known.borrow_mut();
                let known = known.get_mut(&message).unwrap();
                // Another one may have got it while the answer was on its way.
                if known.pop_ms.is_some_and(|last| last <= pop_ms) {
                    known.pop_ms = Some(pop_ms);
                    known.hidden_until_ms = known.hidden_until_ms.min(visible_ms);
                }
            }
            ShardReply::Pop(PopReply::Stale { .. }) | ShardReply::Refused(_) => {}
            other => panic!("{other:?}"),
        }
    }

    async fn step(&self, env: &SimEnv, core: &ShardHandle, topic: &Topic) {
        let group = (env.random_u64() % GROUPS.len() as u64) as usize;
        match env.random_u64() % 10 {
            0..=1 => {
                let queue_id = (env.random_u64() % u64::from(QUEUES)) as u32;
                let bytes = (env.random_u64() % 2_000) as usize;
                if let Some(offset) = send(core, topic, queue_id, bytes).await {
                    self.sent
                        .borrow_mut()
                        .entry(queue_id)
                        .or_default()
                        .push(offset);
                }
            }
            2..=4 => self.pop(env, core, topic, group, false).await,
            5..=7 => self.acknowledge(env, core, topic, group).await,
            8 => self.put_off(env, core, topic, group).await,
            _ => {
                env.sleep(Duration::from_millis(env.random_u64() % 120))
                    .await
            }
        }
        self.steps.set(self.steps.get() + 1);
    }

    /// The committed offset of each queue is at its lowest offset that nobody acknowledged.
    async fn check_progress(&self, core: &ShardHandle, topic: &Topic) {
        for (group, name) in GROUPS.iter().enumerate() {
            for queue_id in 0..QUEUES {
                let queue = ShardHandle::key(topic, queue_id);
                let Some(committed) = committed(core, name, queue).await else {
                    continue;
                };
                let known = self.known.borrow();
                let of_queue = known.range((group, queue_id, 0)..(group, queue_id + 1, 0));
                for ((_, _, offset), known) in of_queue {
                    assert!(
                        known.ack_sent || committed <= *offset,
                        "{name} {queue_id}: {committed} is committed, {offset} is not acknowledged"
                    );
                }
            }
        }
    }
}

/// A life of the process: clients that do this and that until it is crashed.
fn live(env: &SimEnv, logs: u8, model: &Rc<Model>, steps_max: u32) {
    let (env, model) = (env.clone(), model.clone());
    env.clone().spawn(async move {
        let shard = start(&env, logs).await;
        let core = shard.handle();
        let topic = topic(&core).await;
        for _ in 0..4 {
            let (env, core, model, topic) =
                (env.clone(), core.clone(), model.clone(), topic.clone());
            env.clone().spawn(async move {
                while model.steps.get() < steps_max {
                    model.step(&env, &core, &topic).await;
                    if env.random_u64().is_multiple_of(4) {
                        env.sleep(Duration::from_millis(env.random_u64() % 20))
                            .await;
                    }
                }
            });
        }
    });
}

/// The shard's own picture and the fold of its logs are the same when nothing is under way.
fn check_folds(shard: &Shard<SimEnv>) {
    for (group, queues) in &*shard.pops.live.borrow() {
        for (queue, live) in queues {
            let log = shard.log_of(*queue).unwrap();
            let tables = log.tables().borrow();
            let fold = tables.pop.get(group, *queue).cloned();
            match fold {
                Some(fold) => assert_eq!(fold, live.queue),
                None => assert!(live.queue.is_empty()),
            }
            if live.recorded {
                let committed = tables.offsets.get(group, *queue);
                assert_eq!(committed, Some(live.queue.committed()));
            }
        }
    }
}

/// A world whose disk takes its time, so that many crashes find something that is not durable yet.
fn slow_world(seed: u64) -> SimWorld {
    let mut options = SimOptions::default();
    options.disk.latency.flush_ns = 100_000..8_000_000;
    SimWorld::new(seed, options)
}

#[test]
fn random_consumers_and_crashes_lose_nothing_and_bring_nothing_back() {
    let steps_max: u32 = match std::env::var("RINGMQ_POP_STEPS") {
        Ok(steps) => steps.parse().unwrap(),
        Err(_) => 10_000,
    };
    const STEPS_PER_SEED: u32 = 400;
    let seeds = match std::env::var("RINGMQ_SEED") {
        Ok(seed) => {
            let seed = seed.parse().unwrap();
            seed..seed + 1
        }
        Err(_) => 0..u64::from(steps_max.div_ceil(STEPS_PER_SEED)),
    };
    let (mut given_again, mut delivered) = (0, 0);
    for seed in seeds {
        println!("seed {seed}");
        let world = slow_world(seed);
        let logs = 1 + (seed % 2) as u8;
        let model = Rc::new(Model::default());
        live(&world.env(), logs, &model, STEPS_PER_SEED);
        while model.steps.get() < STEPS_PER_SEED {
            world.run_for(Duration::from_millis(40 + world.random_u64() % 400));
            if model.steps.get() >= STEPS_PER_SEED {
                break;
            }
            let crash = if world.random_u64().is_multiple_of(2) {
                Crash::Process
            } else {
                Crash::Power
            };
            world.crash(0, crash);
            model.crashes.set(model.crashes.get() + 1);
            live(&world.restart(0), logs, &model, STEPS_PER_SEED);
        }
        world.run_for(Duration::from_millis(500));
        world.crash(0, Crash::Power);
        model.crashes.set(model.crashes.get() + 1);
        let env = world.restart(0);
        world.block_on(async {
            let shard = start(&env, logs).await;
            let core = shard.handle();
            let topic = topic(&core).await;
            model.check_progress(&core, &topic).await;
            // Everybody takes and acknowledges all there is.
            for _ in 0..60 {
                for group in 0..GROUPS.len() {
                    model.pop(&env, &core, &topic, group, true).await;
                    let left = model.known.borrow().len();
                    for _ in 0..left.min(40) {
                        model.acknowledge(&env, &core, &topic, group).await;
                    }
                }
                env.sleep(Duration::from_millis(25)).await;
                check_folds(&shard);
            }
            for (group, name) in GROUPS.iter().enumerate() {
                for queue_id in 0..QUEUES {
                    let queue = ShardHandle::key(&topic, queue_id);
                    let ShardReply::Bounds(bounds) = core.ask(0, ShardRequest::Bounds(queue)).await
                    else {
                        panic!("no bounds")
                    };
                    for offset in 0..bounds.max_offset {
                        let known = model
                            .known
                            .borrow()
                            .get(&(group, queue_id, offset))
                            .copied();
                        assert!(
                            known.is_some_and(|known| known.ack_sent),
                            "seed {seed}: {name} {queue_id} {offset} {known:?} is lost"
                        );
                    }
                    assert_eq!(
                        committed(&core, name, queue).await.unwrap_or(0),
                        bounds.max_offset,
                        "seed {seed}: {name} has no lag"
                    );
                }
            }
        });
        given_again += model.given_again.get();
        delivered += model.known.borrow().len();
        let sent = model.sent.borrow();
        assert!(sent.values().map(Vec::len).sum::<usize>() > 20);
    }
    println!("{delivered} messages, {given_again} given again");
    assert!(delivered > 0 && given_again > 0);
}

/// A shard with one topic and `count` messages in its first queue.
fn with_shard<T>(
    count: usize,
    test: impl AsyncFnOnce(SimEnv, Rc<Shard<SimEnv>>, ShardHandle, Arc<Topic>) -> T,
) -> T {
    let world = SimWorld::new(5, SimOptions::default());
    let env = world.env();
    world.block_on(async {
        let shard = start(&env, 1).await;
        let core = shard.handle();
        let topic = topic(&core).await;
        for _ in 0..count {
            send(&core, &topic, 0, 100).await.unwrap();
        }
        test(env.clone(), shard, core, topic).await
    })
}

#[test]
fn a_wait_ends_when_a_message_comes_and_when_a_hidden_one_is_seen_again() {
    with_shard(0, async |env, _shard, core, topic| {
        let queue = ShardHandle::key(&topic, 0);
        let wait = |id| {
            PopRequest::Wait(PopWait {
                id,
                group: "G".into(),
                queues: vec![queue],
                wait_ms: 5_000,
                order: false,
                queue_max: 2,
                total_max: 10,
            })
        };
        let ended: Rc<RefCell<Vec<(u64, bool, u64)>>> = Rc::default();
        let begin = |id: u64| {
            let (ended, env) = (ended.clone(), env.clone());
            core.call(0, ShardRequest::Pop(Box::new(wait(id))), move |reply| {
                let ShardReply::Pop(PopReply::Woken(found)) = reply else {
                    panic!("{reply:?}")
                };
                ended.borrow_mut().push((id, found, env.now_ms()));
            });
        };
        begin(1);
        begin(2);
        let full = ask(&core, wait(3)).await;
        assert!(matches!(full, ShardReply::Pop(PopReply::Full)), "{full:?}");
        assert!(ended.borrow().is_empty());
        send(&core, &topic, 0, 10).await.unwrap();
        env.sleep(Duration::from_millis(5)).await;
        assert_eq!(ended.borrow().len(), 1, "one message wakes one of them");
        let now_ms = env.now_ms();
        assert_eq!(
            offsets(&core, take_of("G", &topic, &[0], 8, now_ms)).await,
            [0]
        );
        assert_eq!(ended.borrow().len(), 1, "nothing is left to look at");
        env.sleep(Duration::from_millis(1_100)).await;
        let (id, found, at_ms) = ended.borrow()[1];
        assert_eq!((id, found), (2, true));
        assert!((now_ms + 1_000..=now_ms + 1_005).contains(&at_ms));
        let later_ms = env.now_ms();
        let again = take(&core, take_of("G", &topic, &[0], 8, later_ms)).await;
        assert_eq!(again, [(queue, 0, 1)]);
        assert!(matches!(
            ack(
                &core,
                "G",
                queue,
                Receipt {
                    offset: 0,
                    pop_ms: later_ms
                }
            )
            .await,
            ShardReply::Done
        ));
        begin(4);
        env.sleep(Duration::from_millis(4_900)).await;
        assert_eq!(ended.borrow().len(), 2);
        env.sleep(Duration::from_millis(200)).await;
        assert_eq!(ended.borrow().last().map(|ended| ended.1), Some(false));
    });
}

#[test]
fn an_orderly_group_gets_nothing_new_before_it_is_done_and_its_order_again_after_the_time() {
    with_shard(6, async |env, _shard, core, topic| {
        let queue = ShardHandle::key(&topic, 0);
        let orderly = |attempt: &str, pop_ms| PopTake {
            order: Some(PopOrder {
                attempt: Some(attempt.into()),
            }),
            ..take_of("G", &topic, &[0], 3, pop_ms)
        };
        let acked = async |offset, pop_ms| {
            let ack = PopAck {
                group: "G".into(),
                queue,
                receipts: vec![Receipt { offset, pop_ms }],
                order: true,
            };
            ask(&core, PopRequest::Ack(ack)).await
        };
        let first_ms = env.now_ms();
        assert_eq!(offsets(&core, orderly("a", first_ms)).await, [0, 1, 2]);
        assert_eq!(offsets(&core, orderly("b", first_ms)).await, [0; 0]);
        assert_eq!(offsets(&core, orderly("a", first_ms)).await, [0, 1, 2]);
        assert!(matches!(acked(1, first_ms).await, ShardReply::Done));
        assert_eq!(committed(&core, "G", queue).await, Some(0));
        assert_eq!(offsets(&core, orderly("b", first_ms)).await, [0; 0]);
        env.sleep(Duration::from_millis(1_100)).await;
        let second_ms = env.now_ms();
        assert_eq!(offsets(&core, orderly("b", second_ms)).await, [0, 2, 3]);
        assert!(matches!(acked(0, first_ms).await, ShardReply::Done));
        assert_eq!(committed(&core, "G", queue).await, Some(0), "too late");
        for offset in [0, 2, 3] {
            assert!(matches!(acked(offset, second_ms).await, ShardReply::Done));
        }
        assert_eq!(committed(&core, "G", queue).await, Some(4));
        let strange = acked(5, second_ms).await;
        assert!(
            matches!(strange, ShardReply::Pop(PopReply::NotGiven { offset: 5 })),
            "{strange:?}"
        );
        assert_eq!(offsets(&core, orderly("c", env.now_ms())).await, [4, 5]);
    });
}

#[test]
fn an_attempt_that_asks_again_makes_no_further_try() {
    with_shard(1, async |env, _shard, core, topic| {
        let queue = ShardHandle::key(&topic, 0);
        let orderly = |attempt: &str| PopTake {
            order: Some(PopOrder {
                attempt: Some(attempt.into()),
            }),
            ..take_of("G", &topic, &[0], 3, env.now_ms())
        };
        for _ in 0..3 {
            assert_eq!(take(&core, orderly("a")).await, [(queue, 0, 0)]);
        }
        env.sleep(Duration::from_millis(1_100)).await;
        for _ in 0..3 {
            assert_eq!(take(&core, orderly("b")).await, [(queue, 0, 1)]);
        }
    });
}

#[test]
fn what_is_new_and_what_is_due_again_can_be_taken_apart() {
    with_shard(3, async |env, _shard, core, topic| {
        let queue = ShardHandle::key(&topic, 0);
        let of = |parts: &[PopPart], max, invisible_ms| {
            let source = |&part: &PopPart| PopSource {
                queue,
                part,
                from_end: false,
            };
            PopTake {
                queues: parts.iter().map(source).collect(),
                invisible_ms,
                ..take_of("G", &topic, &[], max, env.now_ms())
            }
        };
        let (new, again) = (PopPart::New, PopPart::Again);
        assert_eq!(offsets(&core, of(&[again], 8, 10)).await, [0; 0]);
        assert_eq!(offsets(&core, of(&[new], 1, 10)).await, [0]);
        env.sleep(Duration::from_millis(20)).await;
        assert_eq!(offsets(&core, of(&[new], 1, 10)).await, [1]);
        env.sleep(Duration::from_millis(20)).await;
        let both = take(&core, of(&[new, again], 8, 10)).await;
        assert_eq!(both, [(queue, 2, 0), (queue, 0, 1), (queue, 1, 1)]);
        env.sleep(Duration::from_millis(20)).await;
        send(&core, &topic, 0, 10).await.unwrap();
        assert_eq!(offsets(&core, of(&[again, new], 8, 10)).await, [0, 1, 2, 3]);
        env.sleep(Duration::from_millis(20)).await;
        send(&core, &topic, 0, 10).await.unwrap();
        // Hidden for no time at all: not twice in one answer.
        let asked = of(&[new, again], 8, 0);
        assert_eq!(offsets(&core, asked).await, [4, 0, 1, 2, 3]);
    });
}

#[test]
fn a_message_that_failed_too_often_is_handed_over_once_at_a_time() {
    with_shard(1, async |env, _shard, core, topic| {
        let queue = ShardHandle::key(&topic, 0);
        for tries in 0..=2 {
            let asked = PopTake {
                retries_max: 2,
                ..take_of("G", &topic, &[0], 3, env.now_ms())
            };
            assert_eq!(take(&core, asked).await, [(queue, 0, tries)]);
            env.sleep(Duration::from_millis(1_001)).await;
        }
        for _ in 0..2 {
            let asked = || PopTake {
                retries_max: 2,
                ..take_of("G", &topic, &[0], 3, env.now_ms())
            };
            let reply = ask(&core, PopRequest::Take(asked())).await;
            let ShardReply::Pop(PopReply::Taken(taken)) = reply else {
                panic!("{reply:?}")
            };
            assert!(taken.queues.is_empty() && taken.dead.len() == 1);
            let record = taken.dead[0].record.clone().into_bytes();
            assert_eq!(RecordView::parse(&record).unwrap().reconsume_times(), 3);
            let reply = ask(&core, PopRequest::Take(asked())).await;
            let ShardReply::Pop(PopReply::Taken(taken)) = reply else {
                panic!("{reply:?}")
            };
            assert!(taken.queues.is_empty() && taken.dead.is_empty());
            env.sleep(Duration::from_secs(31)).await;
        }
    });
}

#[test]
fn an_offset_that_somebody_sets_ends_what_is_in_flight_now_and_after_a_restart() {
    with_shard(5, async |env, shard, core, topic| {
        let queue = ShardHandle::key(&topic, 0);
        let pop_ms = env.now_ms();
        assert_eq!(
            offsets(&core, take_of("G", &topic, &[0], 3, pop_ms)).await,
            [0, 1, 2]
        );
        let group: Arc<str> = "G".into();
        let commit = ShardRequest::CommitOffset {
            group: group.clone(),
            queue,
            offset: 1,
        };
        assert!(matches!(core.ask(0, commit).await, ShardReply::Done));
        check_folds(&shard);
        assert_eq!(
            offsets(&core, take_of("G", &topic, &[0], 8, pop_ms)).await,
            [1, 2, 3, 4]
        );
        assert!(matches!(
            ack(&core, "G", queue, Receipt { offset: 1, pop_ms }).await,
            ShardReply::Done
        ));
        check_folds(&shard);
        assert_eq!(committed(&core, "G", queue).await, Some(2));
    });
}

#[test]
fn unwanted_messages_are_passed_over_and_count_as_done() {
    with_shard(3, async |env, shard, core, topic| {
        let queue = ShardHandle::key(&topic, 0);
        let asked = PopTake {
            filter: MessageFilter::Codes([98].into()),
            ..take_of("G", &topic, &[0], 3, env.now_ms())
        };
        assert_eq!(take(&core, asked).await, []);
        env.sleep(Duration::from_millis(5)).await;
        assert_eq!(committed(&core, "G", queue).await, Some(3));
        check_folds(&shard);
    });
}

#[test]
fn a_look_changes_nothing() {
    with_shard(3, async |env, shard, core, topic| {
        let look = || PopTake {
            peek: true,
            ..take_of("G", &topic, &[0], 2, env.now_ms())
        };
        assert_eq!(offsets(&core, look()).await, [0, 1]);
        assert_eq!(offsets(&core, look()).await, [0, 1]);
        let queue = ShardHandle::key(&topic, 0);
        assert_eq!(committed(&core, "G", queue).await, None);
        check_folds(&shard);
        assert_eq!(
            offsets(&core, take_of("G", &topic, &[0], 2, env.now_ms())).await,
            [0, 1]
        );
        assert_eq!(offsets(&core, look()).await, [2]);
    });
}

#[test]
fn no_more_than_the_limit_are_in_flight() {
    use crate::base::limits::POP_IN_FLIGHT_MAX;
    with_shard(0, async |env, shard, core, topic| {
        let queue = ShardHandle::key(&topic, 0);
        for _ in 0..POP_IN_FLIGHT_MAX / 100 + 1 {
            let messages: Vec<_> = (0..100).map(|_| message(&topic, 0, 1)).collect();
            core.ask(0, ShardRequest::Append(messages.into())).await;
        }
        let pop_ms = env.now_ms();
        let mut count = 0;
        loop {
            let asked = PopTake {
                invisible_ms: 600_000,
                ..take_of("G", &topic, &[0], 32, pop_ms)
            };
            match take(&core, asked).await.len() {
                0 => break,
                more => count += more,
            }
        }
        assert_eq!(count, POP_IN_FLIGHT_MAX);
        assert!(!shard.is_pop_ready(&"G".into(), queue, false));
        ack(&core, "G", queue, Receipt { offset: 7, pop_ms }).await;
        assert!(shard.is_pop_ready(&"G".into(), queue, false));
        let last = POP_IN_FLIGHT_MAX as i64;
        assert_eq!(
            offsets(&core, take_of("G", &topic, &[0], 32, pop_ms)).await,
            [last]
        );
    });
}

#[test]
fn a_message_that_cannot_be_read_keeps_nothing_before_it_and_nothing_in_flight_from_a_group() {
    let world = SimWorld::new(3, SimOptions::default());
    let env = world.env();
    world.block_on(async {
        let core = start(&env, 1).await;
        let handle = core.handle();
        let topic = topic(&handle).await;
        for _ in 0..60 {
            send(&handle, &topic, 0, 2_000).await.unwrap();
        }
        let queue = ShardHandle::key(&topic, 0);
        let log = core.logs().next().unwrap().clone();
        let flip = async |offset: i64| {
            let entry = log.entry(queue, offset).await.unwrap().unwrap();
            assert!(entry.position < log.reader().tail_start());
            let start = entry.position / SEGMENT_BYTES * SEGMENT_BYTES;
            let path = log.options().directory.join(format!("{start:020}.seg"));
            let at = entry.position - start + 500;
            assert!(world.with_disk(0, |disk| disk.flip_bits(&path, at, 1)));
            log.reader().forget(0..u64::MAX, 0);
        };
        let pop = async |group: &str, max| {
            let now_ms = env.now_ms();
            offsets(&handle, take_of(group, &topic, &[0], max, now_ms)).await
        };
        flip(5).await;
        assert_eq!(pop("G", 16).await, [0, 1, 2, 3, 4]);
        assert_eq!(pop("G", 16).await, [0; 0]);
        flip(5).await;
        assert_eq!(pop("G", 3).await, [5, 6, 7]);
        // Not acknowledged: they come again, but for one of them for now.
        flip(2).await;
        env.sleep(Duration::from_millis(1_100)).await;
        assert_eq!(pop("G", 9).await, [0, 1, 3, 4, 5, 6, 7, 8, 9]);
        flip(2).await;
        assert_eq!(pop("G", 2).await, [2, 10]);
    });
}
