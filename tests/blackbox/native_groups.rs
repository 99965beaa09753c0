//! Consumer groups of the native protocol over real sockets: members come, go, die without a word, and the broker is killed,
//! while messages flow. A ledger of what each member says of its queues shows that none ever has two owners, and that
//! nothing moves that need not; what was acknowledged is consumed at least once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ringmq_client::{Client, ConsumerOptions, Message, Queue, Rebalance};
use ringmq_wire_native::code::{STALE_MEMBER, UNKNOWN_MEMBER};
use ringmq_wire_native::message::{
    GroupHeartbeat, GroupJoin, GroupLeave, Message as Body, OffsetCommit, QueueOffset, TopicQueues,
};
use tokio::runtime::Runtime;
use tokio::sync::Notify;

use crate::client::Command;
use crate::native::Raw;
use crate::node::{Node, Setup, store_dir};

#[path = "../../client/examples/group.rs"]
mod example;

/// For states that come in seconds on a quiet machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// Request code of the list of a group's members.
const GET_CONSUMER_CONNECTION_LIST: i32 = 203;
const TOPIC: &str = "shared";
const GROUP: &str = "sharers";

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

/// However long it takes the broker to come.
async fn connect(address: &str) -> Client {
    loop {
        match Client::connect(address).await {
            Ok(client) => return client,
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> Option<String>) {
    let begun = Instant::now();
    while let Some(state) = is_so() {
        assert!(begun.elapsed() < PATIENCE, "{what}: {state}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[derive(Clone, Debug)]
enum Entry {
    Got(usize, Queue),
    GaveUp(usize, Queue),
    /// Member and the queues that it had.
    Ended(usize),
}

/// What members said of their queues, in order, and what they took.
#[derive(Default)]
struct Ledger {
    entries: Vec<Entry>,
    owners: BTreeMap<Queue, usize>,
    /// Of a queue with two owners.
    faults: Vec<String>,
    consumed: BTreeSet<u64>,
}

impl Ledger {
    fn add(&mut self, entry: Entry) {
        match &entry {
            Entry::Got(member, queue) => {
                if let Some(other) = self.owners.insert(queue.clone(), *member) {
                    let fault = format!("{queue:?} of {other} went to {member}");
                    self.faults.push(fault);
                }
            }
            Entry::GaveUp(member, queue) => {
                if self.owners.get(queue) == Some(member) {
                    self.owners.remove(queue);
                } else {
                    self.faults.push(format!(
                        "{member} gives up {queue:?}, which it does not have"
                    ));
                }
            }
            Entry::Ended(member) => self.owners.retain(|_, owner| owner != member),
        }
        self.entries.push(entry);
    }

    fn of(&self, member: usize) -> BTreeSet<Queue> {
        let mine = self.owners.iter().filter(|(_, owner)| **owner == member);
        mine.map(|(queue, _)| queue.clone()).collect()
    }
}

type SharedLedger = Arc<Mutex<Ledger>>;

/// A member in a runtime of its own, so that it can die like a process does.
struct Running {
    number: usize,
    runtime: Runtime,
    stop: Arc<Notify>,
    task: tokio::task::JoinHandle<()>,
    ledger: SharedLedger,
}

impl Running {
    fn start(address: &str, number: usize, ledger: &SharedLedger) -> Self {
        let runtime = runtime();
        let stop = Arc::new(Notify::new());
        let (stopped, own, address) = (stop.clone(), ledger.clone(), address.to_owned());
        let task = runtime.spawn(async move {
            let client = connect(&address).await;
            let options = ConsumerOptions {
                max_wait: Duration::from_millis(500),
                auto_commit: Some(Duration::from_millis(200)),
                ..ConsumerOptions::default()
            };
            let mut consumer = client.consumer_with(GROUP, options);
            let listener = own.clone();
            consumer.on_rebalance(move |change| {
                let mut ledger = listener.lock().unwrap();
                match change {
                    Rebalance::Assigned(queues) => {
                        queues
                            .iter()
                            .for_each(|q| ledger.add(Entry::Got(number, q.clone())));
                    }
                    Rebalance::Revoked(queues) | Rebalance::Lost(queues) => {
                        queues
                            .iter()
                            .for_each(|q| ledger.add(Entry::GaveUp(number, q.clone())));
                    }
                }
            });
            consumer.subscribe(&[TOPIC]);
            loop {
                tokio::select! {
                    next = consumer.next() => match next {
                        Ok(message) => {
                            let body = String::from_utf8(message.body().to_vec()).unwrap();
                            own.lock().unwrap().consumed.insert(body.parse().unwrap());
                        }
                        // The broker is away.
                        Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                    },
                    () = stopped.notified() => break,
                }
            }
            own.lock().unwrap().add(Entry::Ended(number));
            let _ = consumer.close().await;
        });
        Self {
            number,
            runtime,
            stop,
            task,
            ledger: ledger.clone(),
        }
    }

    /// Commits, and says that it goes.
    fn leave(self) {
        self.stop.notify_one();
        self.runtime.block_on(self.task).unwrap();
    }

    /// Its sockets are closed and nothing is said.
    fn kill(self) {
        self.runtime.shutdown_timeout(PATIENCE);
        self.ledger.lock().unwrap().add(Entry::Ended(self.number));
    }
}

/// Numbered messages, one after the other, until it is stopped; those that were acknowledged.
struct Load {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<BTreeSet<u64>>,
}

impl Load {
    fn start(address: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, address) = (stop.clone(), address.to_owned());
        let thread = std::thread::spawn(move || {
            runtime().block_on(async {
                let client = connect(&address).await;
                let producer = client.producer();
                let mut acknowledged = BTreeSet::new();
                let mut number = 0;
                while !stopped.load(Ordering::Relaxed) {
                    let mut deliveries = Vec::new();
                    for _ in 0..20 {
                        number += 1;
                        let message = Message::new(TOPIC, number.to_string());
                        if let Ok(delivery) = producer.submit(message).await {
                            deliveries.push((number, delivery));
                        }
                    }
                    for (number, delivery) in deliveries {
                        if delivery.await.is_ok() {
                            acknowledged.insert(number);
                        }
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                acknowledged
            })
        });
        Self { stop, thread }
    }

    fn stop(self) -> BTreeSet<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn create_topic(node: &Node, queues: u32) {
    node.connect().create_topic(TOPIC, queues).unwrap();
}

/// Waits until each of these members has its even share.
fn wait_for_shares(ledger: &SharedLedger, members: &[usize], queues: usize) {
    wait_until("the queues are shared out", || {
        let ledger = ledger.lock().unwrap();
        let shares: Vec<usize> = members
            .iter()
            .map(|&member| ledger.of(member).len())
            .collect();
        let (floor, more) = (queues / members.len(), queues % members.len());
        let is_even = shares
            .iter()
            .all(|&share| share == floor || share == floor + usize::from(more > 0));
        let all = shares.iter().sum::<usize>() == queues && ledger.owners.len() == queues;
        (!is_even || !all).then(|| format!("{shares:?}, {:?}", ledger.owners))
    });
}

fn wait_for_consumed(ledger: &SharedLedger, acknowledged: &BTreeSet<u64>) {
    wait_until("everything is consumed", || {
        let ledger = ledger.lock().unwrap();
        let missing: Vec<_> = acknowledged.difference(&ledger.consumed).take(5).collect();
        (!missing.is_empty()).then(|| {
            format!(
                "{} of {} were consumed; {missing:?} and others are missing",
                ledger.consumed.len(),
                acknowledged.len()
            )
        })
    });
}

fn check(ledger: &SharedLedger) {
    let ledger = ledger.lock().unwrap();
    assert!(
        ledger.faults.is_empty(),
        "{:?}\n{:?}",
        ledger.faults,
        ledger.entries
    );
}

#[test]
fn members_come_go_and_die_under_load_and_no_queue_ever_has_two_owners() {
    let store = store_dir();
    let setup = Setup::new(store.path(), 2).set("nativeSessionTimeoutMillis=3000");
    let mut node = setup.start();
    create_topic(&node, 12);
    let address = node.broker.to_string();
    let ledger = SharedLedger::default();
    let load = Load::start(&address);
    let start = |number| Running::start(&address, number, &ledger);
    let (first, second, third) = (start(0), start(1), start(2));
    wait_for_shares(&ledger, &[0, 1, 2], 12);
    third.leave();
    wait_for_shares(&ledger, &[0, 1], 12);
    let fourth = start(3);
    wait_for_shares(&ledger, &[0, 1, 3], 12);
    second.kill();
    wait_for_shares(&ledger, &[0, 3], 12);
    check(&ledger);
    node.kill();
    let fifth = start(4);
    std::thread::sleep(Duration::from_millis(300));
    let mut node = setup.start();
    wait_for_shares(&ledger, &[0, 3, 4], 12);
    node.connect().create_topic(TOPIC, 15).unwrap();
    wait_for_shares(&ledger, &[0, 3, 4], 15);
    first.kill();
    wait_for_shares(&ledger, &[3, 4], 15);
    let acknowledged = load.stop();
    wait_for_consumed(&ledger, &acknowledged);
    fourth.leave();
    fifth.leave();
    check(&ledger);
    let entries = ledger.lock().unwrap().entries.len();
    say!(
        "{} messages, {entries} changes of owners",
        acknowledged.len()
    );
    assert!(node.is_alive());
}

/// The session is so long that nobody's ends on a slow machine: whatever moves here is moved by the broker's will.
#[test]
fn nothing_moves_that_need_not_by_a_join_a_leave_or_a_killed_broker() {
    let store = store_dir();
    let setup = Setup::new(store.path(), 2).set("nativeSessionTimeoutMillis=300000");
    let mut node = setup.start();
    create_topic(&node, 12);
    let address = node.broker.to_string();
    let ledger = SharedLedger::default();
    let start = |number| Running::start(&address, number, &ledger);
    let entries = || ledger.lock().unwrap().entries.len();
    let _first = start(0);
    wait_for_shares(&ledger, &[0], 12);
    let _second = start(1);
    wait_for_shares(&ledger, &[0, 1], 12);
    assert_eq!(
        entries(),
        12 + 6 + 6,
        "half of the queues went, and no other"
    );
    let third = start(2);
    wait_for_shares(&ledger, &[0, 1, 2], 12);
    assert_eq!(entries(), 24 + 4 + 4, "the newcomer's share, and no other");
    third.leave();
    wait_for_shares(&ledger, &[0, 1], 12);
    assert_eq!(entries(), 32 + 1 + 4, "what the leaver had, and no other");

    let load = Load::start(&address);
    let before = ledger.lock().unwrap().owners.clone();
    node.kill();
    let node = setup.start();
    // A newcomer waits: the broker cannot know yet who was there.
    let _fourth = start(3);
    wait_until("the members are back", || {
        let listed = members_listed(&node);
        (listed != 3).then(|| format!("{listed} members"))
    });
    let acknowledged = load.stop();
    wait_for_consumed(&ledger, &acknowledged);
    check(&ledger);
    assert_eq!(entries(), 37, "{:?}", ledger.lock().unwrap().entries);
    assert_eq!(ledger.lock().unwrap().owners, before);
}

/// Members of the group as GET_CONSUMER_CONNECTION_LIST has them.
fn members_listed(node: &Node) -> usize {
    let fields = [("consumerGroup", GROUP.to_owned())];
    let answer = node
        .connect()
        .ask(&Command::request(
            GET_CONSUMER_CONNECTION_LIST,
            &fields,
            Vec::new(),
        ))
        .unwrap();
    if answer.code != 0 {
        return 0;
    }
    let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    body["connectionSet"].as_array().unwrap().len()
}

fn join<'a>(member_id: &'a str, topics: &[&'a str]) -> Body<'a> {
    Body::GroupJoin(GroupJoin {
        group: GROUP,
        member_id,
        topics: topics.to_vec(),
        ..GroupJoin::default()
    })
}

/// The generation and queues of the next frame, or the code of the error that it is.
fn told(raw: &mut Raw) -> Result<(i64, Vec<u32>), i32> {
    let mut told = Err(0);
    raw.hear(|reply| {
        told = match reply {
            Body::Assignment(assignment) => {
                let queues = assignment
                    .queues
                    .iter()
                    .flat_map(|topic| topic.queue_ids.clone());
                Ok((assignment.generation, queues.collect()))
            }
            Body::Error { code, remark } => {
                assert!(!remark.is_empty());
                Err(code)
            }
            other => panic!("{other:?}"),
        }
    });
    told
}

fn committed(raw: &mut Raw, member_id: &str, generation: i64, offset: i64) -> i32 {
    raw.say(
        9,
        &Body::OffsetCommit(OffsetCommit {
            group: GROUP,
            queues: vec![QueueOffset {
                topic: TOPIC,
                queue_id: 0,
                offset,
            }],
            member_id,
            generation,
        }),
    );
    let mut code = -1;
    raw.hear(|reply| match reply {
        Body::OffsetCommitReply(results) => code = results[0].code,
        other => panic!("{other:?}"),
    });
    code
}

#[test]
fn a_stale_member_commits_nothing_and_strangers_are_told_so() {
    let store = store_dir();
    let setup = Setup::new(store.path(), 2).set("nativeSessionTimeoutMillis=300000");
    let node = setup.start();
    create_topic(&node, 1);
    let mut raw = Raw::hello(node.broker);
    raw.say(2, &join("a", &[TOPIC, "not-there-yet"]));
    let (generation, queues) = told(&mut raw).unwrap();
    assert_eq!(queues, [0]);
    assert_eq!(committed(&mut raw, "a", generation, 5), 0);
    assert_eq!(committed(&mut raw, "a", generation - 1, 6), STALE_MEMBER);
    assert_eq!(committed(&mut raw, "b", generation, 7), STALE_MEMBER);
    let beat = |member_id, generation, owned: &[u32]| {
        Body::GroupHeartbeat(GroupHeartbeat {
            group: GROUP,
            member_id,
            generation,
            owned: vec![TopicQueues {
                topic: TOPIC,
                queue_ids: owned.to_vec(),
            }],
        })
    };
    raw.say(3, &beat("b", generation, &[0]));
    assert_eq!(told(&mut raw), Err(UNKNOWN_MEMBER));
    // The other connection's member waits until the first one is gone; a connection's end alone ends no membership.
    let mut other = Raw::hello(node.broker);
    other.say(2, &join("b", &[TOPIC]));
    assert_eq!(told(&mut other).unwrap().1, [0; 0]);
    drop(raw);
    other.say(3, &beat("b", generation + 1, &[]));
    assert_eq!(told(&mut other).unwrap().1, [0; 0]);
    let mut raw = Raw::hello(node.broker);
    assert_eq!(committed(&mut raw, "a", generation, 8), 0);
    let leave = GroupLeave {
        group: GROUP,
        member_id: "a",
    };
    raw.say(4, &Body::GroupLeave(leave));
    assert!(told(&mut raw).is_ok());
    other.say(4, &beat("b", generation + 1, &[]));
    let (newer, queues) = told(&mut other).unwrap();
    assert_eq!(queues, [0]);
    assert!(newer > generation);
    assert_eq!(committed(&mut raw, "a", generation, 9), STALE_MEMBER);
    let mut remoting = node.connect();
    assert_eq!(remoting.consumer_offset(GROUP, TOPIC, 0).unwrap(), Some(8));
    assert_eq!(members_listed(&node), 1);
    // Bad joins say what is wrong.
    for topics in [&[][..], &["a topic with spaces"]] {
        other.say(5, &join("c", topics));
        assert!(told(&mut other).is_err());
    }
    other.say(6, &join(&"m".repeat(300), &[TOPIC]));
    assert_eq!(told(&mut other), Err(29));
}

#[test]
fn a_group_has_members_of_one_protocol_at_a_time() {
    let store = store_dir();
    let setup = Setup::new(store.path(), 2).set("nativeSessionTimeoutMillis=3000");
    let node = setup.start();
    create_topic(&node, 2);
    let mut remoting = node.connect();
    remoting.heartbeat("java", GROUP, TOPIC).unwrap();
    let mut raw = Raw::hello(node.broker);
    raw.say(2, &join("a", &[TOPIC]));
    assert_eq!(told(&mut raw), Err(16));
    remoting.unregister("java", GROUP).unwrap();
    // The group was there before its first native member, so for a session after the start nobody gets anything. On a slow
    // machine the member's session may end before the other heartbeat comes: then once more.
    wait_until(
        "the native member has the queues, and the other one is refused",
        || {
            raw.say(3, &join("a", &[TOPIC]));
            let queues = match told(&mut raw) {
                Ok((_, queues)) => queues,
                Err(code) => return Some(format!("code {code}")),
            };
            if queues != [0, 1] {
                return Some(format!("{queues:?}"));
            }
            match remoting.heartbeat("java", GROUP, TOPIC) {
                Err(refused) => {
                    assert_eq!(refused.code(), Some(16), "{refused:?}");
                    assert!(refused.remark().contains(GROUP), "{refused:?}");
                    None
                }
                Ok(_) => {
                    remoting.unregister("java", GROUP).unwrap();
                    Some("the heartbeat was taken".to_owned())
                }
            }
        },
    );
}

#[test]
fn what_a_member_took_is_committed_by_itself_or_by_hand() {
    let store = store_dir();
    let node = Setup::new(store.path(), 2).start();
    create_topic(&node, 1);
    runtime().block_on(async {
        let client = connect(&node.broker.to_string()).await;
        let producer = client.producer();
        for number in 0..100 {
            let message = Message::new(TOPIC, number.to_string());
            producer.send(message).await.unwrap();
        }
        let member = |auto_commit| {
            let options = ConsumerOptions {
                auto_commit,
                ..ConsumerOptions::default()
            };
            let mut consumer = client.consumer_with(GROUP, options);
            consumer.subscribe(&[TOPIC]);
            consumer
        };
        async fn next(consumer: &mut ringmq_client::Consumer) -> i64 {
            let next = tokio::time::timeout(PATIENCE, consumer.next());
            next.await.unwrap().unwrap().queue_offset()
        }
        let by_hand = None;
        let mut consumer = member(by_hand);
        for offset in 0..10 {
            assert_eq!(next(&mut consumer).await, offset);
        }
        consumer.close().await.unwrap();
        let mut consumer = member(by_hand);
        for offset in 0..10 {
            assert_eq!(next(&mut consumer).await, offset, "nothing was committed");
        }
        consumer.commit().await.unwrap();
        next(&mut consumer).await;
        consumer.close().await.unwrap();
        let mut consumer = member(Some(Duration::from_secs(3600)));
        for offset in 10..20 {
            assert_eq!(next(&mut consumer).await, offset, "ten were committed");
        }
        consumer.close().await.unwrap();
        let mut consumer = member(Some(Duration::from_millis(1)));
        for offset in 20..30 {
            assert_eq!(
                next(&mut consumer).await,
                offset,
                "a member that closes commits"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // A message is done when the next one is asked for.
        let committed = node.connect().consumer_offset(GROUP, TOPIC, 0).unwrap();
        assert!((21..30).contains(&committed.unwrap()), "{committed:?}");
    });
}

#[test]
fn the_example_of_a_group_runs() {
    let store = store_dir();
    let node = Setup::new(store.path(), 2).start();
    runtime().block_on(async {
        let address = node.broker.to_string();
        let run = tokio::time::timeout(PATIENCE, example::run(&address));
        run.await.unwrap().unwrap();
    });
}
