//! kill -9 at random moments under load, and then the ledger.
//!
//! `RINGMQ_CRASH_CYCLES` (50) sets the number of kills, `RINGMQ_SEED` repeats a run's choices (not its timing).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::client::{self, Connection, Pull, answer, commit_offset, sent};
use crate::ledger::{BODY_BYTES_MAX, Fate, Ledger, LedgerFile, Queue, body, message};
use crate::node::{Node, Setup, knob, store_dir};

const GROUP: &str = "crash-group";
const TOPICS: u32 = 3;
const QUEUES: i32 = 4;
const PRODUCERS: u64 = 3;
/// Requests of one producer that wait for an answer.
const WINDOW: usize = 24;
/// Stores that live this many kills are replaced, so that first starts are hit as well.
const CYCLES_PER_STORE: u64 = 17;
/// Bound of those stores that remove old messages.
const RETENTION_BYTES: u64 = 64 << 20;
/// A restart over so small a store has no reason to take longer, even on a busy machine.
const RESTART_MAX: Duration = Duration::from_secs(20);

fn queues() -> Vec<Queue> {
    (0..TOPICS)
        .flat_map(|topic| (0..QUEUES).map(move |queue| (format!("crash-{topic}"), queue)))
        .collect()
}

/// Ids are unique over all stores, producers and cycles.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// What one producer has to report when its connection broke.
#[derive(Default)]
struct Report {
    fates: Vec<(Queue, u64, Fate)>,
    /// Refusals by code and remark.
    refusals: HashMap<(i32, String), u64>,
}

struct InFlight {
    queue: Queue,
    ids: Vec<u64>,
    /// Acknowledged end of the queue when it was sent: its own offset has to be behind it.
    after: i64,
}

/// Highest acknowledged offset of each queue by this producer, to check order in real time.
type Ends = HashMap<Queue, i64>;

/// Sends until the connection breaks or `stop` is set. Every acknowledgement is on disk before it counts.
fn produce(node_broker: std::net::SocketAddr, seed: u64, file: &Path, stop: &AtomicBool) -> Report {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut report = Report::default();
    let mut ledger = LedgerFile::create(file);
    let queues = queues();
    let Ok(mut connection) = Connection::open(node_broker) else {
        return report;
    };
    let mut in_flight: HashMap<i32, InFlight> = HashMap::new();
    let mut ends = Ends::new();
    loop {
        while in_flight.len() < WINDOW && !stop.load(Ordering::Relaxed) {
            let queue = random.choice(&queues).unwrap().clone();
            let count = if random.u8(..) < 24 {
                random.u64(2..6)
            } else {
                1
            };
            let first = NEXT_ID.fetch_add(count, Ordering::Relaxed);
            let ids: Vec<u64> = (first..first + count).collect();
            let messages: Vec<_> = ids
                .iter()
                .map(|id| message(&queue, *id, BODY_BYTES_MAX))
                .collect();
            let command = match &messages[..] {
                [one] => one.send_v2(),
                many => client::send_batch(many),
            };
            let after = ends.get(&queue).copied().unwrap_or(-1);
            match connection.start(&command) {
                Ok(opaque) => {
                    in_flight.insert(opaque, InFlight { queue, ids, after });
                }
                Err(_) => {
                    // Part of the frame may have left; the answers before it may still be there.
                    for id in ids {
                        report.fates.push((queue.clone(), id, Fate::InDoubt));
                    }
                    stop.store(true, Ordering::Relaxed);
                }
            }
        }
        if in_flight.is_empty() {
            break;
        }
        let Ok(answer) = connection.next_answer() else {
            break;
        };
        let Some(request) = in_flight.remove(&answer.opaque) else {
            panic!("an answer to nothing: {answer:?}");
        };
        let mut lines = String::new();
        settle(request, answer, &mut ends, &mut report, &mut lines);
        ledger.write(&lines);
    }
    for request in in_flight.into_values() {
        for id in request.ids {
            report
                .fates
                .push((request.queue.clone(), id, Fate::InDoubt));
        }
    }
    report
}

/// The same by the native protocol.
async fn produce_native(
    broker: std::net::SocketAddr,
    seed: u64,
    file: &Path,
    stop: &AtomicBool,
) -> Report {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut report = Report::default();
    let mut ledger = LedgerFile::create(file);
    let queues = queues();
    let Ok(client) = ringmq_client::Client::connect(broker.to_string()).await else {
        return report;
    };
    // What is sent again may be stored twice, and the ledger counts.
    let options = ringmq_client::ProducerOptions {
        retries: 0,
        ..ringmq_client::ProducerOptions::default()
    };
    let producer = client.producer_with(options);
    let mut waiting = VecDeque::new();
    let (mut ends, mut is_broken) = (Ends::new(), false);
    loop {
        while waiting.len() < WINDOW && !is_broken && !stop.load(Ordering::Relaxed) {
            let queue = random.choice(&queues).unwrap().clone();
            let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
            let message = ringmq_client::Message::new(&*queue.0, body(id, BODY_BYTES_MAX))
                .queue(queue.1 as u32)
                .unique_id(format!("{id:032X}"))
                .keys(&format!("key{id}"));
            let after = ends.get(&queue).copied().unwrap_or(-1);
            match producer.submit(message).await {
                Ok(delivery) => waiting.push_back((queue, id, after, delivery)),
                Err(_) => {
                    report.fates.push((queue, id, Fate::InDoubt));
                    is_broken = true;
                }
            }
        }
        let Some((queue, id, after, delivery)) = waiting.pop_front() else {
            return report;
        };
        let fate = match delivery.await {
            Ok(receipt) => {
                let offset = receipt.queue_offset;
                assert_eq!(receipt.queue_id, queue.1 as u32);
                assert!(
                    offset > after,
                    "{queue:?}: offset {offset} for a native record sent after {after} was acknowledged"
                );
                ledger.write(&format!("{} {} {offset} {id:x}\n", queue.0, queue.1));
                let end = ends.entry(queue.clone()).or_insert(-1);
                *end = (*end).max(offset);
                Fate::Acknowledged { offset }
            }
            Err(ringmq_client::Error::Refused { code, remark }) => {
                *report.refusals.entry((code, remark)).or_default() += 1;
                Fate::Refused
            }
            Err(_) => {
                is_broken = true;
                Fate::InDoubt
            }
        };
        report.fates.push((queue, id, fate));
    }
}

/// Enters an answer into the report and the lines of the ledger's file.
fn settle(
    request: InFlight,
    answer: client::Command,
    ends: &mut Ends,
    report: &mut Report,
    lines: &mut String,
) {
    let queue = request.queue;
    match sent(answer) {
        Ok(sent) => {
            assert_eq!(sent.queue_id, queue.1);
            assert!(
                sent.queue_offset > request.after,
                "{queue:?}: offset {} for a message sent after {} was acknowledged",
                sent.queue_offset,
                request.after
            );
            for (number, id) in request.ids.iter().enumerate() {
                let offset = sent.queue_offset + number as i64;
                let _ = writeln!(lines, "{} {} {offset} {id:x}", queue.0, queue.1);
                let fate = Fate::Acknowledged { offset };
                report.fates.push((queue.clone(), *id, fate));
                let end = ends.entry(queue.clone()).or_insert(-1);
                *end = (*end).max(offset);
            }
        }
        Err(client::Failure::Refused { code, remark }) => {
            for id in request.ids {
                report.fates.push((queue.clone(), id, Fate::Refused));
            }
            *report.refusals.entry((code, remark)).or_default() += 1;
        }
        Err(other) => panic!("{other:?}"),
    }
}

/// Reads on from where it was and commits what it has read, until the connection breaks.
fn consume(
    broker: std::net::SocketAddr,
    ledger: &Mutex<Ledger>,
    positions: &Mutex<HashMap<Queue, i64>>,
    stop: &AtomicBool,
) {
    let Ok(mut connection) = Connection::open(broker) else {
        return;
    };
    while !stop.load(Ordering::Relaxed) {
        for queue in queues() {
            let from = positions.lock().unwrap().get(&queue).copied().unwrap_or(0);
            let mut pull = Pull::new(&queue.0, queue.1, from);
            pull.group = GROUP.into();
            let Ok(pulled) = connection.pull(&pull) else {
                return;
            };
            if pulled.code == answer::PULL_OFFSET_MOVED && pulled.next_offset > from {
                // Retention was faster than this consumer.
                positions.lock().unwrap().insert(queue, pulled.next_offset);
                continue;
            }
            if pulled.code != answer::SUCCESS {
                continue;
            }
            {
                let mut ledger = ledger.lock().unwrap();
                for record in &pulled.records {
                    ledger.saw(&queue, record.queue_offset, record);
                }
            }
            positions
                .lock()
                .unwrap()
                .insert(queue.clone(), pulled.next_offset);
            let commit = commit_offset(GROUP, &queue.0, queue.1, pulled.next_offset);
            let committed = connection.call(&commit);
            let mut ledger = ledger.lock().unwrap();
            ledger.commit(&queue, pulled.next_offset, committed.is_ok());
            match committed {
                Ok(_) => {}
                Err(client::Failure::Io(_)) => return,
                Err(other) => panic!("{other:?}"),
            }
        }
    }
}

/// What is known of a topic that a client made, and perhaps deleted again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TopicFate {
    /// The answer to its last change did not come.
    InDoubt,
    /// It is there; with a message in it, if that was acknowledged.
    Made {
        with_message: bool,
    },
    Deleted,
}

/// Makes topics, sends one message to each and deletes every second one, until the connection breaks.
fn administer(
    broker: std::net::SocketAddr,
    topics: &Mutex<BTreeMap<String, TopicFate>>,
    stop: &AtomicBool,
) {
    let Ok(mut connection) = Connection::open(broker) else {
        return;
    };
    while !stop.load(Ordering::Relaxed) {
        let number = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let topic = format!("made-{number}");
        let set = |fate| topics.lock().unwrap().insert(topic.clone(), fate);
        set(TopicFate::InDoubt);
        let Ok(()) = connection.create_topic(&topic, 2) else {
            return;
        };
        set(TopicFate::Made {
            with_message: false,
        });
        let message = client::Message::new(&topic, 1, topic.as_bytes());
        let Ok(sent) = connection.send(&message) else {
            return;
        };
        assert_eq!(sent.queue_offset, 0, "{topic} is new");
        set(TopicFate::Made { with_message: true });
        if number.is_multiple_of(2) {
            set(TopicFate::InDoubt);
            let Ok(()) = connection.delete_topic(&topic) else {
                return;
            };
            set(TopicFate::Deleted);
        }
        std::thread::sleep(Duration::from_millis(15));
    }
}

/// Each topic is as its last acknowledged change left it.
fn check_topics(node: &Node, topics: &BTreeMap<String, TopicFate>) {
    let mut connection = node.connect();
    for (topic, fate) in topics {
        let pulled = connection.pull(&Pull::new(topic, 1, 0));
        let code = match &pulled {
            Ok(pulled) => pulled.code,
            Err(failure) => failure.code().unwrap_or_else(|| panic!("{failure:?}")),
        };
        match fate {
            TopicFate::InDoubt => {}
            TopicFate::Deleted => {
                assert_eq!(code, answer::TOPIC_NOT_EXIST, "{topic} was deleted");
            }
            TopicFate::Made { with_message } => {
                assert_ne!(code, answer::TOPIC_NOT_EXIST, "{topic} is lost");
                if *with_message {
                    let records = pulled.unwrap().records;
                    assert_eq!(records.len(), 1, "{topic} has lost its message");
                    assert_eq!(records[0].body, topic.as_bytes());
                }
            }
        }
    }
}

struct Campaign {
    topics: Arc<Mutex<BTreeMap<String, TopicFate>>>,
    random: fastrand::Rng,
    ledger: Arc<Mutex<Ledger>>,
    positions: Arc<Mutex<HashMap<Queue, i64>>>,
    restarts: Vec<Duration>,
    refusals: HashMap<(i32, String), u64>,
}

impl Campaign {
    /// Topics and groups, once in the life of a store: from then on they have to be there.
    fn prepare(&self, node: &Node) {
        let mut connection = node.connect();
        for topic in 0..TOPICS {
            connection
                .create_topic(&format!("crash-{topic}"), QUEUES as u32)
                .unwrap();
        }
        connection.create_group(GROUP).unwrap();
    }

    /// Load until the kill. Returns after all threads have seen the end.
    fn load_and_kill(&mut self, node: &mut Node, files: &Path) {
        let stop = Arc::new(AtomicBool::new(false));
        let mut producers = Vec::new();
        for number in 0..PRODUCERS {
            let (broker, stop) = (node.broker, stop.clone());
            let (seed, file) = (self.random.u64(..), files.join(format!("acks-{number}")));
            producers.push(std::thread::spawn(move || {
                produce(broker, seed, &file, &stop)
            }));
        }
        {
            let (broker, stop) = (node.broker, stop.clone());
            let (seed, file) = (self.random.u64(..), files.join("acks-native"));
            producers.push(std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(produce_native(broker, seed, &file, &stop))
            }));
        }
        let consumer = {
            let (broker, stop) = (node.broker, stop.clone());
            let (ledger, positions) = (self.ledger.clone(), self.positions.clone());
            std::thread::spawn(move || consume(broker, &ledger, &positions, &stop))
        };
        let administrator = {
            let (broker, stop, topics) = (node.broker, stop.clone(), self.topics.clone());
            std::thread::spawn(move || administer(broker, &topics, &stop))
        };
        std::thread::sleep(Duration::from_micros(self.random.u64(0..900_000)));
        assert!(
            node.is_alive(),
            "the broker ended by itself\n{}",
            node.output()
        );
        node.kill();
        stop.store(true, Ordering::Relaxed);
        consumer.join().unwrap();
        administrator.join().unwrap();
        let mut ledger = self.ledger.lock().unwrap();
        for producer in producers {
            let report = producer.join().unwrap();
            for (queue, id, fate) in report.fates {
                ledger.sent(&queue, id, fate);
            }
            for (refusal, count) in report.refusals {
                *self.refusals.entry(refusal).or_default() += count;
            }
        }
    }

    /// Retention keeps the store near its bound and removes no more than that asks for.
    fn check_retention(&self) {
        let ledger = self.ledger.lock().unwrap();
        if ledger.retention {
            say!(
                "retention kept {} KiB of bodies, the bound is {} KiB",
                ledger.counts.bytes_kept >> 10,
                RETENTION_BYTES >> 10
            );
        }
    }

    fn check(&mut self, node: &Node, whole: bool) {
        let mut connection = node.connect();
        let mut ledger = self.ledger.lock().unwrap();
        for queue in queues() {
            ledger.check(&mut connection, &queue, whole);
            ledger.check_commit(&mut connection, GROUP, &queue);
        }
        // With retention the one message of such a topic may go, and only whole stores are compared.
        if whole && !ledger.retention {
            check_topics(node, &self.topics.lock().unwrap());
        }
    }
}

#[test]
fn kill_at_any_moment_loses_nothing_that_was_acknowledged() {
    let cycles = knob("RINGMQ_CRASH_CYCLES", 50);
    let seed = knob("RINGMQ_SEED", u64::from(fastrand::u32(..)));
    say!("RINGMQ_SEED={seed}");
    let begun = Instant::now();
    let mut campaign = Campaign {
        topics: Arc::default(),
        random: fastrand::Rng::with_seed(seed),
        ledger: Arc::default(),
        positions: Arc::default(),
        restarts: Vec::new(),
        refusals: HashMap::new(),
    };
    let mut totals = Vec::new();
    let mut killed_at_start = 0;
    let mut cycle = 0;
    while cycle < cycles {
        let store = store_dir();
        let files = store_dir();
        campaign.ledger = Arc::default();
        campaign.positions = Arc::default();
        campaign.topics = Arc::default();
        let mut prepared = false;
        let shards = campaign.random.u32(1..3);
        let flush = ["SYNC_FLUSH", "ASYNC_FLUSH"][campaign.random.usize(..2)];
        let segment_mib = campaign.random.choice([1_u64, 2, 8]).unwrap();
        let mut setup = Setup::new(store.path(), shards)
            .memory(128 << 20)
            .set(&format!("flushDiskType={flush}"))
            .set(&format!("mappedFileSizeCommitLog={}", segment_mib << 20));
        if campaign.random.u8(..) < 96 {
            campaign.ledger.lock().unwrap().retention = true;
            setup = setup
                .set(&format!("storeBytesMax={RETENTION_BYTES}"))
                .set("cleanResourceInterval=100");
        }
        for age in 0..CYCLES_PER_STORE.min(cycles - cycle) {
            cycle += 1;
            // Some kills hit the start itself: the first one of a store, or a recovery.
            while campaign.random.u8(..) < 64 {
                let mut early = setup.spawn();
                std::thread::sleep(Duration::from_micros(campaign.random.u64(0..60_000)));
                assert!(early.is_alive(), "the start failed\n{}", early.output());
                early.kill();
                killed_at_start += 1;
            }
            let mut node = setup.start();
            campaign.restarts.push(node.serving_after);
            assert!(node.serving_after < RESTART_MAX, "{:?}", node.serving_after);
            if !prepared {
                campaign.prepare(&node);
                prepared = true;
            }
            campaign.check(&node, age % 8 == 7);
            campaign.load_and_kill(&mut node, files.path());
            if campaign.random.u8(..) < 32 {
                setup.shards = campaign.random.u32(1..4);
            }
        }
        let node = setup.start();
        campaign.ledger.lock().unwrap().counts.bytes_kept = 0;
        campaign.check(&node, true);
        campaign.check_retention();
        totals.push(campaign.ledger.lock().unwrap().counts);
        say!("{cycle} of {cycles} kills, {:?}", begun.elapsed());
    }
    let sum = |count: fn(&crate::ledger::Counts) -> u64| totals.iter().map(count).sum::<u64>();
    campaign.restarts.sort();
    let restarts = &campaign.restarts;
    say!(
        "{cycles} kills under load and {killed_at_start} during start, {} stores, {:.0} s, seed {seed}\n\
         {} messages acknowledged, {} in doubt ({} of them stored), {} refused, {} commits, {} records compared\n\
         restart to serving: median {:?}, longest {:?}",
        totals.len(),
        begun.elapsed().as_secs_f64(),
        sum(|counts| counts.acknowledged),
        sum(|counts| counts.in_doubt),
        sum(|counts| counts.in_doubt_stored),
        sum(|counts| counts.refused),
        sum(|counts| counts.commits),
        sum(|counts| counts.records_checked),
        restarts[restarts.len() / 2],
        restarts[restarts.len() - 1],
    );
    for ((code, remark), count) in &campaign.refusals {
        say!("refused {count} times with {code}: {remark}");
    }
    let acknowledged = sum(|counts| counts.acknowledged);
    assert!(
        acknowledged > cycles * 10,
        "hardly any load: {acknowledged}"
    );
}
