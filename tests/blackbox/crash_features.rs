//! kill -9 at random moments while messages are delayed, transactions end, POP consumers acknowledge and messages are sent
//! back for a retry; and then the ledger: nothing that was acknowledged is lost, nothing comes early, what is done stays done.
//!
//! `RINGMQ_FEATURE_CRASH_CYCLES` (6) sets the number of kills, `RINGMQ_SEED` repeats a run's choices (not its timing).

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::client::{self, Answer, Command, Connection, Failure, Message, code, now_ms, sent};
use crate::node::{Node, Setup, knob, store_dir};
use crate::pop::{self, Popped};
use crate::record::Record;
use crate::timers;
use crate::transactions::{self, COMMIT, ROLL_BACK};

const TIMED: &str = timers::TOPIC;
const BOOKED: &str = "booked";
const FAILED: &str = "failed";
const RETRIED: &str = "%RETRY%G";
const POPPED: &str = pop::TOPIC;
const QUEUES: i32 = 4;
/// Kills that a store lives through.
const CYCLES_PER_STORE: u64 = 10;
const INVISIBLE_MS: u64 = 1_500;
/// For what is due to be delivered; a busy machine takes its time.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest delay of a timed message.
const DELAY_MS_MAX: i64 = 2_500;
/// Timed messages of one connection that wait for their answer.
const WINDOW: usize = 16;

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

fn next_id() -> u64 {
    NEXT_ID.fetch_add(1, Ordering::Relaxed)
}

fn any_queue(random: &mut fastrand::Rng) -> i32 {
    random.i32(0..QUEUES)
}

/// How a transaction stands, as its producer knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Nobody has ended it.
    Open,
    /// The broker said that it is done.
    Done(i32),
    /// Asked for, and no answer came.
    InDoubt(i32),
}

/// All promises of one store. Ids are unique over all parts.
#[derive(Default)]
struct Ledger {
    /// When each acknowledged delayed message is due.
    due: BTreeMap<u64, i64>,
    /// Those of which the answer did not come: they may be there, and then on time.
    due_in_doubt: BTreeMap<u64, i64>,
    /// Acknowledged halves.
    halves: BTreeMap<u64, (client::Sent, End)>,
    /// Acknowledged messages for POP consumers, and which of them are done.
    produced: BTreeSet<u64>,
    popped: BTreeSet<u64>,
    acked: BTreeSet<u64>,
    /// Messages whose return was acknowledged.
    sent_back: BTreeSet<u64>,
}

impl Ledger {
    fn add(&mut self, mut other: Self) {
        self.due.append(&mut other.due);
        self.due_in_doubt.append(&mut other.due_in_doubt);
        self.halves.append(&mut other.halves);
        self.produced.append(&mut other.produced);
        self.popped.append(&mut other.popped);
        self.acked.append(&mut other.acked);
        self.sent_back.append(&mut other.sent_back);
    }
}

fn id_of(record: &Record) -> u64 {
    let text = String::from_utf8(record.body.clone()).unwrap();
    text.parse().unwrap_or_else(|_| panic!("not ours: {text}"))
}

/// `None`: the connection broke. A refusal is a failure of the test: nothing here may be refused.
fn unless_broken<T>(answer: Answer<T>) -> Option<T> {
    match answer {
        Ok(value) => Some(value),
        Err(Failure::Io(_)) => None,
        Err(other) => panic!("{other:?}"),
    }
}

/// One kind of load: until its connection breaks, with a ledger of its own.
type Load = fn(&mut Connection, &mut fastrand::Rng, &Ledger, &mut Ledger) -> Option<()>;

fn delay(
    connection: &mut Connection,
    random: &mut fastrand::Rng,
    _: &Ledger,
    ledger: &mut Ledger,
) -> Option<()> {
    let mut waiting: BTreeMap<i32, (u64, i64)> = BTreeMap::new();
    let mut run = || {
        loop {
            while waiting.len() < WINDOW {
                let (id, due_ms) = (next_id(), now_ms() + random.i64(5..DELAY_MS_MAX));
                let message = timers::timed(id, any_queue(random), due_ms);
                let opaque =
                    unless_broken(connection.start(&message.send_v2()).map_err(Into::into));
                let Some(opaque) = opaque else {
                    waiting.insert(-1, (id, due_ms));
                    return None::<()>;
                };
                waiting.insert(opaque, (id, due_ms));
            }
            let answer = unless_broken(connection.next_answer())?;
            let (id, due_ms) = waiting.remove(&answer.opaque).unwrap();
            sent(answer).unwrap();
            ledger.due.insert(id, due_ms);
        }
    };
    let end = run();
    ledger.due_in_doubt.extend(waiting.into_values());
    end
}

fn transact(
    connection: &mut Connection,
    random: &mut fastrand::Rng,
    _: &Ledger,
    ledger: &mut Ledger,
) -> Option<()> {
    loop {
        let id = next_id();
        let half = transactions::half(BOOKED, any_queue(random), &id.to_string());
        let sent = unless_broken(connection.send(&half))?;
        let mut set = |end| ledger.halves.insert(id, (sent.clone(), end));
        set(End::Open);
        let how = match random.u8(..) {
            0..120 => COMMIT,
            120..220 => ROLL_BACK,
            _ => continue,
        };
        set(End::InDoubt(how));
        unless_broken(connection.call(&transactions::end(&sent, how)))?;
        set(End::Done(how));
    }
}

fn produce(
    connection: &mut Connection,
    random: &mut fastrand::Rng,
    _: &Ledger,
    ledger: &mut Ledger,
) -> Option<()> {
    loop {
        let id = next_id();
        let message = Message::new(POPPED, any_queue(random), id.to_string());
        unless_broken(connection.send(&message))?;
        ledger.produced.insert(id);
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn consume(
    connection: &mut Connection,
    random: &mut fastrand::Rng,
    known: &Ledger,
    ledger: &mut Ledger,
) -> Option<()> {
    loop {
        for message in take(connection)? {
            let id = id_of(&message.record);
            let done = known.acked.contains(&id) || ledger.acked.contains(&id);
            assert!(!done, "message {id} came again after its acknowledgement");
            ledger.popped.insert(id);
            // Some are left to come again.
            if random.u8(..) < 200 {
                acknowledge(connection, &message)?;
                ledger.acked.insert(id);
            }
        }
    }
}

fn take(connection: &mut Connection) -> Option<Vec<Popped>> {
    let request = pop::pop_request(POPPED, 8, INVISIBLE_MS, 50, &[]);
    unless_broken(connection.ask(&request)).map(|answer| pop::popped(&answer))
}

fn acknowledge(connection: &mut Connection, message: &Popped) -> Option<()> {
    let ack = pop::with_receipt(pop::ACK_MESSAGE, message, &[]);
    unless_broken(connection.call(&ack)).map(drop)
}

/// Sends messages and gives each back as a consumer that failed.
fn fail(
    connection: &mut Connection,
    random: &mut fastrand::Rng,
    _: &Ledger,
    ledger: &mut Ledger,
) -> Option<()> {
    loop {
        let id = next_id();
        let message = Message::new(FAILED, any_queue(random), id.to_string());
        let sent = unless_broken(connection.send(&message))?;
        let place = i64::from_str_radix(&sent.msg_id[16..], 16).unwrap();
        let fields = [
            ("group", pop::GROUP.to_string()),
            ("offset", place.to_string()),
            // The first level: one second.
            ("delayLevel", "1".to_string()),
            ("originMsgId", sent.msg_id.clone()),
            ("originTopic", FAILED.to_string()),
            ("maxReconsumeTimes", "16".to_string()),
        ];
        let back = Command::request(code::CONSUMER_SEND_MSG_BACK, &fields, Vec::new());
        unless_broken(connection.call(&back))?;
        ledger.sent_back.insert(id);
    }
}

/// Load of all kinds until the kill.
fn load_and_kill(node: &mut Node, random: &mut fastrand::Rng, ledger: &mut Ledger) {
    let loads: [Load; 5] = [delay, transact, produce, consume, fail];
    let stop = AtomicBool::new(false);
    let (broker, known) = (node.broker, &*ledger);
    let parts = std::thread::scope(|scope| {
        let running: Vec<_> = loads
            .into_iter()
            .map(|load| {
                let (seed, stop) = (random.u64(..), &stop);
                scope.spawn(move || run(broker, load, seed, known, stop))
            })
            .collect();
        std::thread::sleep(Duration::from_micros(random.u64(50_000..1_200_000)));
        let alive = node.is_alive();
        stop.store(true, Ordering::Relaxed);
        node.kill();
        let parts: Vec<_> = running.into_iter().map(|part| part.join()).collect();
        assert!(alive, "the broker ended by itself\n{}", node.output());
        parts
    });
    for part in parts {
        ledger.add(part.unwrap());
    }
}

fn run(broker: SocketAddr, load: Load, seed: u64, known: &Ledger, stop: &AtomicBool) -> Ledger {
    let mut mine = Ledger::default();
    let mut random = fastrand::Rng::with_seed(seed);
    if let Ok(mut connection) = Connection::open(broker) {
        load(&mut connection, &mut random, known, &mut mine);
    }
    assert!(
        stop.load(Ordering::Relaxed),
        "a connection broke before the kill"
    );
    mine
}

/// Every record of a topic, by id; none twice.
fn read(connection: &mut Connection, topic: &str, queues: i32) -> BTreeMap<u64, Record> {
    let mut found = BTreeMap::new();
    for queue_id in 0..queues {
        for record in connection.read_queue(topic, queue_id, 0).unwrap() {
            let id = id_of(&record);
            let other = found.insert(id, record);
            assert!(other.is_none(), "{topic}: message {id} came twice");
        }
    }
    found
}

/// Fails with how many are lost, and the first of them.
fn none_lost<'a>(what: &str, ids: impl Iterator<Item = &'a u64>, is_there: impl Fn(&u64) -> bool) {
    let lost: Vec<&u64> = ids.filter(|id| !is_there(id)).collect();
    let first = &lost[..lost.len().min(5)];
    assert!(
        lost.is_empty(),
        "{what}: {} are lost, first {first:?}",
        lost.len()
    );
}

/// Waits until so many messages have come to a topic; the check that follows says what is missing.
fn wait_for(connection: &mut Connection, topic: &str, queues: i32, messages: usize) {
    let deadline = Instant::now() + PATIENCE;
    let come = |connection: &mut Connection| -> i64 {
        (0..queues)
            .map(|queue| connection.max_offset(topic, queue).unwrap())
            .sum()
    };
    while come(connection) < messages as i64 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn check_delays(connection: &mut Connection, ledger: &Ledger) {
    let found = read(connection, TIMED, QUEUES);
    for (id, record) in &found {
        let due = ledger.due.get(id).or_else(|| ledger.due_in_doubt.get(id));
        let due = due.unwrap_or_else(|| panic!("message {id} was never sent"));
        assert!(
            record.store_timestamp >= *due,
            "message {id} came {} ms early",
            due - record.store_timestamp
        );
    }
    none_lost("delayed messages", ledger.due.keys(), |id| {
        found.contains_key(id)
    });
}

fn check_transactions(connection: &mut Connection, ledger: &Ledger) {
    let before = read(connection, BOOKED, QUEUES);
    for (id, (sent, end)) in &ledger.halves {
        let seen = before.contains_key(id);
        match end {
            End::Done(COMMIT) => assert!(seen, "transaction {id} was committed and is lost"),
            End::Done(_) | End::Open => {
                assert!(!seen, "transaction {id} was not committed: {end:?}")
            }
            End::InDoubt(ROLL_BACK) => {
                assert!(!seen, "transaction {id} was not committed: {end:?}")
            }
            End::InDoubt(_) => {}
        }
        // An open one can be ended now; what has ended stays so, whatever is asked again.
        let how = match end {
            End::Done(how) | End::InDoubt(how) => *how,
            End::Open => COMMIT,
        };
        let answer = connection.ask(&transactions::end(sent, how)).unwrap();
        assert!(
            answer.code == 0 || *end != End::Open,
            "transaction {id} cannot be ended: {}",
            answer.remark
        );
    }
    let after = read(connection, BOOKED, QUEUES);
    for (id, (_, end)) in &ledger.halves {
        let wanted = matches!(end, End::Open | End::Done(COMMIT) | End::InDoubt(COMMIT));
        assert_eq!(after.contains_key(id), wanted, "transaction {id}: {end:?}");
    }
    let stray = after.keys().find(|id| !ledger.halves.contains_key(id));
    assert!(stray.is_none(), "nobody committed {stray:?}");
}

fn check_pops(connection: &mut Connection, ledger: &mut Ledger) {
    let mut quiet_since = Instant::now();
    // Whatever is hidden comes again meanwhile.
    while quiet_since.elapsed() < Duration::from_millis(INVISIBLE_MS + 1_000) {
        for message in take(connection).unwrap() {
            let id = id_of(&message.record);
            assert!(
                ledger.acked.insert(id),
                "message {id} came again after its acknowledgement"
            );
            ledger.popped.insert(id);
            acknowledge(connection, &message).unwrap();
            quiet_since = Instant::now();
        }
    }
    none_lost("messages for POP", ledger.produced.iter(), |id| {
        ledger.popped.contains(id)
    });
}

fn check_retries(connection: &mut Connection, ledger: &Ledger) {
    let found: BTreeSet<u64> = connection
        .read_queue(RETRIED, 0, 0)
        .unwrap()
        .iter()
        .map(id_of)
        .collect();
    none_lost("messages sent back", ledger.sent_back.iter(), |id| {
        found.contains(id)
    });
}

#[test]
fn kill_9_loses_no_delay_no_transaction_no_acknowledgement_and_no_retry() {
    let cycles = knob("RINGMQ_FEATURE_CRASH_CYCLES", 6);
    let seed = knob("RINGMQ_SEED", u64::from(fastrand::u32(..)));
    say!("RINGMQ_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut cycle = 0;
    let mut totals = [0; 4];
    while cycle < cycles {
        let store = store_dir();
        let mut setup = Setup::new(store.path(), random.u32(1..3))
            .memory(128 << 20)
            .set(["flushDiskType=SYNC_FLUSH", "flushDiskType=ASYNC_FLUSH"][random.usize(..2)])
            .set("mappedFileSizeCommitLog=2097152")
            // Nobody is asked how a transaction ended: only the ledger's own ends count.
            .set("transactionTimeOut=3600000");
        let mut ledger = Ledger::default();
        for age in 0..CYCLES_PER_STORE.min(cycles - cycle) {
            cycle += 1;
            let mut node = setup.start();
            if age == 0 {
                let mut connection = node.connect();
                for topic in [TIMED, BOOKED, FAILED, POPPED] {
                    connection.create_topic(topic, QUEUES as u32).unwrap();
                }
                connection.create_group(pop::GROUP).unwrap();
            }
            load_and_kill(&mut node, &mut random, &mut ledger);
            if random.u8(..) < 64 {
                setup.shards = random.u32(1..4);
            }
        }
        let node = setup.start();
        let mut connection = node.connect();
        check_pops(&mut connection, &mut ledger);
        wait_for(&mut connection, TIMED, QUEUES, ledger.due.len());
        wait_for(&mut connection, RETRIED, 1, ledger.sent_back.len());
        check_delays(&mut connection, &ledger);
        check_retries(&mut connection, &ledger);
        check_transactions(&mut connection, &ledger);
        let counts = [
            ledger.due.len(),
            ledger.halves.len(),
            ledger.acked.len(),
            ledger.sent_back.len(),
        ];
        totals = std::array::from_fn(|at| totals[at] + counts[at]);
        say!("{cycle} of {cycles} kills");
    }
    say!(
        "{cycles} kills, seed {seed}: {} delayed messages, {} transactions, {} POP acknowledgements, {} retries, none lost, none early",
        totals[0],
        totals[1],
        totals[2],
        totals[3]
    );
    let hardly = totals.iter().any(|total| *total < cycles as usize);
    assert!(!hardly, "hardly any load: {totals:?}");
}
