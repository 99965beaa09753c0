//! Transactions from outside: a half message is invisible, its end counts once, and `kill -9` neither loses nor ends one.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::client::{
    Command, Connection, Encoding, Message, Pull, Sent, answer, code, now_ms, pulled,
};
use crate::node::{Node, Setup, binary, store_dir};
use crate::record::Record;

const GROUP: &str = "blackbox-transactions";
pub const COMMIT: i32 = 8;
pub const ROLL_BACK: i32 = 12;
const HALF_FLAG: i32 = 4;
const COMMIT_FLAG: i32 = 8;
const GIVEN_UP_TOPIC: &str = "TRANS_CHECK_MAX_TIME_TOPIC";
const PATIENCE: Duration = Duration::from_secs(20);

pub fn half(topic: &str, queue_id: i32, body: &str) -> Message {
    let mut message = Message::new(topic, queue_id, body)
        .property("TRAN_MSG", "true")
        .property("PGROUP", GROUP)
        .property("UNIQ_KEY", &format!("KEY-{body}"))
        .property("TAGS", "t");
    message.sys_flag = HALF_FLAG;
    message
}

/// END_TRANSACTION for what a send was answered.
pub fn end(sent: &Sent, how: i32) -> Command {
    let place = i64::from_str_radix(&sent.msg_id[16..], 16).unwrap();
    end_at(place, sent.queue_offset, how, false)
}

fn end_at(place: i64, queue_offset: i64, how: i32, from_check: bool) -> Command {
    let fields = [
        ("producerGroup", GROUP.to_string()),
        ("tranStateTableOffset", queue_offset.to_string()),
        ("commitLogOffset", place.to_string()),
        ("commitOrRollback", how.to_string()),
        ("fromTransactionCheck", from_check.to_string()),
        ("msgId", "any".to_string()),
        ("transactionId", "any".to_string()),
    ];
    Command::request(code::END_TRANSACTION, &fields, Vec::new())
}

fn read_topic(connection: &mut Connection, topic: &str, queues: i32) -> Vec<Record> {
    let queues = 0..queues;
    queues
        .flat_map(|queue_id| connection.read_queue(topic, queue_id, 0).unwrap())
        .collect()
}

fn texts(records: &[Record]) -> Vec<String> {
    let text = |record: &Record| String::from_utf8(record.body.clone()).unwrap();
    let mut texts: Vec<String> = records.iter().map(text).collect();
    texts.sort();
    texts
}

/// Waits for a check (39); the connection is asked something else meanwhile, so that frames are read.
fn wait_for_check(connection: &mut Connection) -> Command {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let is_check = |pushed: &Command| pushed.code == code::CHECK_TRANSACTION_STATE;
        if let Some(at) = connection.pushed.iter().position(is_check) {
            return connection.pushed.remove(at);
        }
        assert!(Instant::now() < deadline, "nobody asks");
        std::thread::sleep(Duration::from_millis(10));
        connection.max_offset("TBW102", 0).unwrap();
    }
}

fn field(command: &Command, name: &str) -> i64 {
    command.fields[name].parse().unwrap()
}

fn start(store: &Path, shards: u32) -> Node {
    Setup::new(store, shards)
        .set("transactionTimeOut=300")
        .set("transactionCheckInterval=300")
        .set("transactionCheckMax=3")
        .start()
}

#[test]
fn a_half_is_seen_when_it_is_committed_and_once() {
    for shards in [1, 4] {
        let store = store_dir();
        let node = Setup::new(store.path(), shards).start();
        let (mut producer, mut other) = (node.connect(), node.connect());
        producer.create_topic("halves", 4).unwrap();
        for (round, encoding) in [Encoding::Json, Encoding::Binary].into_iter().enumerate() {
            producer.encoding = encoding;
            other.encoding = encoding;
            let name = |number: i32| format!("{round}-{number}");
            let sent: Vec<Sent> = (0..8)
                .map(|number| {
                    let message = half("halves", number % 4, &name(number));
                    producer.send(&message).unwrap()
                })
                .collect();
            let seen = read_topic(&mut other, "halves", 4).len();
            assert_eq!(seen, 5 * round, "a half is visible");
            // Who waits for messages hears of the first committed one.
            let mut pull = Pull::new("halves", 1, 2 * round as i64);
            pull.suspend_ms = 15_000;
            let parked = other.start(&pull.command()).unwrap();
            producer.call(&end(&sent[1], COMMIT)).unwrap();
            let woken = pulled(other.wait(parked).unwrap()).unwrap();
            assert_eq!(texts(&woken.records), [name(1)]);
            // Over and over, by another client, with another end: nothing changes.
            for _ in 0..3 {
                other.call(&end(&sent[1], COMMIT)).unwrap();
            }
            let late = other.ask(&end(&sent[1], ROLL_BACK)).unwrap();
            assert_eq!(late.code, answer::SYSTEM_ERROR);
            assert!(late.remark.contains("committed"), "{}", late.remark);
            for sent in &sent[2..5] {
                other.start(&end(sent, COMMIT).oneway()).unwrap();
            }
            other.call(&end(&sent[5], COMMIT)).unwrap();
            producer.call(&end(&sent[6], ROLL_BACK)).unwrap();
            let late = producer.ask(&end(&sent[6], COMMIT)).unwrap();
            assert_eq!(late.code, answer::SYSTEM_ERROR, "{}", late.remark);
            // The producer does not know: the half stays open.
            producer.call(&end(&sent[7], 0)).unwrap();
            let mut expected: Vec<String> = (0..=round)
                .flat_map(|round| (1..6).map(move |number| format!("{round}-{number}")))
                .collect();
            expected.sort();
            let deadline = Instant::now() + PATIENCE;
            while texts(&read_topic(&mut other, "halves", 4)) != expected {
                assert!(Instant::now() < deadline, "the oneway ends are not there");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        let records = producer.read_queue("halves", 1, 0).unwrap();
        let record = &records[0];
        assert_eq!((record.queue_offset, record.queue_id), (0, 1));
        assert_eq!(record.sys_flag & 0xC, COMMIT_FLAG);
        let property = |name: &str| record.properties.get(name).map(String::as_str);
        assert_eq!(property("UNIQ_KEY"), Some("KEY-0-1"));
        assert_eq!(property("__transactionId__"), Some("KEY-0-1"));
        assert_eq!(property("PGROUP"), Some(GROUP));
        // As the original leaves them.
        assert_eq!(property("TRAN_MSG"), Some("true"));
        assert_eq!((property("REAL_TOPIC"), property("REAL_QID")), (None, None));
    }
}

#[test]
fn an_end_that_does_not_fit_its_half_is_refused() {
    let store = store_dir();
    let node = Setup::new(store.path(), 2).start();
    let mut producer = node.connect();
    producer.create_topic("wrong", 2).unwrap();
    let sent = producer.send(&half("wrong", 1, "x")).unwrap();
    let place = i64::from_str_radix(&sent.msg_id[16..], 16).unwrap();
    let mut other_group = end(&sent, COMMIT);
    other_group
        .fields
        .insert("producerGroup".into(), "other".into());
    let wrong = [
        (other_group, "producer group"),
        (
            end_at(place, sent.queue_offset + 1, COMMIT, false),
            "offset wrong",
        ),
        (
            end_at(place + 8, sent.queue_offset, COMMIT, false),
            "no transaction is open",
        ),
        (end_at(i64::MAX, 0, COMMIT, false), "no transaction is open"),
        (end_at(-1, 0, COMMIT, false), "no transaction is open"),
        (end(&sent, 5), "commitOrRollback"),
    ];
    for (command, remark) in wrong {
        let refused = producer.ask(&command).unwrap();
        assert_eq!(refused.code, answer::SYSTEM_ERROR);
        assert!(refused.remark.contains(remark), "{}", refused.remark);
    }
    let mut batch = half("wrong", 0, "batch");
    batch.properties.clear();
    let refused = producer.send_batch(&[batch]).unwrap_err();
    assert_eq!(refused.code(), Some(answer::MESSAGE_ILLEGAL), "{refused:?}");
    assert!(read_topic(&mut producer, "wrong", 2).is_empty());
    producer.call(&end(&sent, COMMIT)).unwrap();
    assert_eq!(texts(&read_topic(&mut producer, "wrong", 2)), ["x"]);
}

#[test]
fn a_delayed_half_waits_for_its_commit_and_then_for_its_time() {
    let store = store_dir();
    let node = Setup::new(store.path(), 2).start();
    let mut producer = node.connect();
    producer.create_topic("later", 1).unwrap();
    let message = half("later", 0, "x").property("DELAY", "1");
    let sent = producer.send(&message).unwrap();
    std::thread::sleep(Duration::from_millis(1_200));
    assert!(read_topic(&mut producer, "later", 1).is_empty());
    let before = now_ms();
    producer.call(&end(&sent, COMMIT)).unwrap();
    assert!(read_topic(&mut producer, "later", 1).is_empty());
    let deadline = Instant::now() + PATIENCE;
    let records = loop {
        let records = read_topic(&mut producer, "later", 1);
        if !records.is_empty() {
            break records;
        }
        assert!(Instant::now() < deadline, "it does not come");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(records[0].store_timestamp >= before + 1_000);
    assert_eq!(records[0].properties["DELAY"], "1");
}

#[test]
fn a_producer_of_the_group_is_asked_until_it_knows() {
    let store = store_dir();
    let node = start(store.path(), 2);
    let (mut first, mut second) = (node.connect(), node.connect());
    first.create_topic("asked", 4).unwrap();
    let sent = first.send(&half("asked", 3, "x")).unwrap();
    // Only another client of the group is there to be asked.
    second.producer_heartbeat("client-2", GROUP).unwrap();
    let check = wait_for_check(&mut second);
    assert_eq!(check.fields["transactionId"], "KEY-x");
    assert_eq!(check.fields["offsetMsgId"], sent.msg_id);
    assert_eq!(field(&check, "tranStateTableOffset"), sent.queue_offset);
    let record = &crate::record::decode_all(&check.body).unwrap()[0];
    assert_eq!((record.topic.as_str(), record.queue_id), ("asked", 3));
    assert_eq!(texts(std::slice::from_ref(record)), ["x"]);
    let checks: u32 = record.properties["TRANSACTION_CHECK_TIMES"]
        .parse()
        .unwrap();
    assert!(checks >= 1);
    let place = field(&check, "commitLogOffset");
    let answer = end_at(place, sent.queue_offset, COMMIT, true);
    second.start(&answer.oneway()).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while texts(&read_topic(&mut second, "asked", 4)) != ["x"] {
        assert!(Instant::now() < deadline, "the answer is not taken");
    }
    second.pushed.clear();
    std::thread::sleep(Duration::from_millis(1_000));
    second.max_offset("asked", 0).unwrap();
    assert!(
        second.pushed.is_empty(),
        "a transaction that has ended is asked about"
    );
}

#[test]
fn what_nobody_ends_is_given_up_and_kept() {
    let store = store_dir();
    let node = start(store.path(), 4);
    let mut producer = node.connect();
    producer.create_topic("orphans", 4).unwrap();
    let sent: Vec<Sent> = (0..4)
        .map(|number| {
            let message = half("orphans", number, &format!("{number}"));
            producer.send(&message).unwrap()
        })
        .collect();
    let deadline = Instant::now() + PATIENCE;
    let given_up = loop {
        let records = producer
            .read_queue(GIVEN_UP_TOPIC, 0, 0)
            .unwrap_or_default();
        if records.len() == 4 {
            break records;
        }
        assert!(Instant::now() < deadline, "{} were given up", records.len());
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(texts(&given_up), ["0", "1", "2", "3"]);
    for record in &given_up {
        assert_eq!(record.properties["REAL_TOPIC"], "orphans");
        assert_eq!(record.properties["TRANSACTION_CHECK_TIMES"], "3");
    }
    let late = producer.ask(&end(&sent[0], COMMIT)).unwrap();
    assert!(late.remark.contains("given up"), "{}", late.remark);
    assert!(read_topic(&mut producer, "orphans", 4).is_empty());

    // A tool has one of them checked again (323), and now somebody knows.
    let resume = |place: i64| {
        let id = format!("7F000001{:08X}{place:016X}", node.broker.port());
        Command::request(323, &[("msgId", id)], Vec::new())
    };
    let first = given_up.iter().find(|record| record.body == b"0").unwrap();
    producer.producer_heartbeat("client", GROUP).unwrap();
    producer.call(&resume(first.physical_offset)).unwrap();
    let check = wait_for_check(&mut producer);
    let record = &crate::record::decode_all(&check.body).unwrap()[0];
    assert_eq!(
        (record.topic.as_str(), &record.body[..]),
        ("orphans", &b"0"[..])
    );
    let place = field(&check, "commitLogOffset");
    let offset = field(&check, "tranStateTableOffset");
    producer.call(&end_at(place, offset, COMMIT, true)).unwrap();
    let committed = read_topic(&mut producer, "orphans", 4);
    assert_eq!(texts(&committed), ["0"]);
    assert!(!committed[0].properties.contains_key("REAL_TOPIC"));
    // Only what was given up can be.
    let other = producer.ask(&resume(committed[0].physical_offset)).unwrap();
    assert_eq!(other.code, answer::SYSTEM_ERROR);
    assert!(other.remark.contains(GIVEN_UP_TOPIC), "{}", other.remark);
}

#[test]
fn the_command_line_shows_what_is_open() {
    let store = store_dir();
    let node = Setup::new(store.path(), 4).start();
    let mut producer = node.connect();
    producer.create_topic("shown", 4).unwrap();
    let sent: Vec<Sent> = (0..6)
        .map(|number| {
            let message = half("shown", number % 4, &format!("{number}"));
            producer.send(&message).unwrap()
        })
        .collect();
    producer.call(&end(&sent[0], ROLL_BACK)).unwrap();
    let tx = |arguments: &[&str]| {
        let mut command = std::process::Command::new(binary());
        command.args(["tx", arguments[0], "-b", &node.broker.to_string()]);
        let output = command.args(&arguments[1..]).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (
            output.status.code(),
            text(output.stdout),
            text(output.stderr),
        )
    };
    let (code, listed, _) = tx(&["list", "--json"]);
    assert_eq!((code, listed.lines().count()), (Some(0), 5));
    for (number, sent) in sent.iter().enumerate().skip(1) {
        let line = listed.lines().find(|line| line.contains(&sent.msg_id));
        let shown: serde_json::Value = serde_json::from_str(line.unwrap()).unwrap();
        assert_eq!(shown["topic"], "shown");
        assert_eq!(shown["producerGroup"], GROUP);
        assert_eq!(shown["uniqueKey"], format!("KEY-{number}"));
        assert_eq!(shown["checks"], 0);
    }
    let (_, listed, _) = tx(&["list", "--limit", "2"]);
    assert!(listed.ends_with("5 open, 2 shown\n"), "{listed}");
    let (code, shown, _) = tx(&["show", &sent[3].msg_id]);
    assert_eq!(code, Some(0));
    assert!(shown.contains("property REAL_TOPIC shown\n"), "{shown}");
    let (code, _, why) = tx(&["show", &sent[0].msg_id]);
    assert_eq!(code, Some(1));
    assert!(why.contains("RolledBack"), "{why}");
}

#[test]
fn kill_9_neither_loses_nor_ends_an_open_transaction() {
    let store = store_dir();
    let mut setup = Setup::new(store.path(), 2).set("transactionCheckInterval=1000");
    let mut open: Vec<(String, Sent)> = Vec::new();
    let (mut committed, mut rolled_back) = (Vec::new(), 0);
    for life in 0..5 {
        let mut node = setup.start();
        let mut producer = node.connect();
        producer.create_topic("killed", 4).unwrap();
        // Half of what the life before left open ends now, in no order.
        let left = std::mem::take(&mut open);
        for (number, (name, sent)) in left.into_iter().enumerate() {
            match number % 4 {
                0 => {
                    producer.call(&end(&sent, COMMIT)).unwrap();
                    committed.push(name);
                }
                1 => {
                    producer.call(&end(&sent, ROLL_BACK)).unwrap();
                    rolled_back += 1;
                }
                _ => open.push((name, sent)),
            }
        }
        for number in 0..40 {
            let name = format!("{life}-{number}");
            let sent = producer.send(&half("killed", number % 4, &name)).unwrap();
            open.push((name, sent));
        }
        let mut seen = texts(&read_topic(&mut producer, "killed", 4));
        committed.sort();
        assert_eq!(seen, committed, "life {life}");
        // Ends under way when the process dies: each may have happened or not, none twice.
        let under_way = open.split_off(open.len() - 10);
        for (_, sent) in &under_way {
            producer.start(&end(sent, COMMIT).oneway()).unwrap();
        }
        node.kill();
        setup = node.setup.clone();
        drop(node);
        let node = setup.start();
        let mut producer = node.connect();
        for (name, sent) in under_way {
            // A second try: it is committed by now, whichever of the two did it.
            producer.ask(&end(&sent, COMMIT)).unwrap();
            committed.push(name);
        }
        seen = texts(&read_topic(&mut producer, "killed", 4));
        committed.sort();
        assert_eq!(seen, committed, "after the kill of life {life}");
    }
    assert!(rolled_back > 20);
    // The rest is asked about, by whoever is there.
    let node = setup.start();
    let mut producer = node.connect();
    producer.producer_heartbeat("client-1", GROUP).unwrap();
    for (name, _) in &open {
        committed.push(name.clone());
    }
    committed.sort();
    let deadline = Instant::now() + 3 * PATIENCE;
    while texts(&read_topic(&mut producer, "killed", 4)) != committed {
        assert!(Instant::now() < deadline, "some are not asked about");
        let check = wait_for_check(&mut producer);
        let place = field(&check, "commitLogOffset");
        let offset = field(&check, "tranStateTableOffset");
        // A half may be asked about again before its answer has come.
        let answer = producer.ask(&end_at(place, offset, COMMIT, true)).unwrap();
        assert_eq!(answer.code, answer::SUCCESS, "{}", answer.remark);
    }
}
