//! POP consumers from outside: receipts as clients build them, redelivery, dead letters, and what `kill -9` leaves.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::{self, Command, Connection, Message, code, now_ms};
use crate::node::{Node, Setup, store_dir};
use crate::record::{self, Record};

const QUERY_ASSIGNMENT: i32 = 400;
const SET_MESSAGE_REQUEST_MODE: i32 = 401;
const POP_MESSAGE: i32 = 200_050;
pub const ACK_MESSAGE: i32 = 200_051;
const PEEK_MESSAGE: i32 = 200_052;
const CHANGE_MESSAGE_INVISIBLETIME: i32 = 200_053;
const NOTIFICATION: i32 = 200_054;
const POLLING_INFO: i32 = 200_055;
const BATCH_ACK_MESSAGE: i32 = 200_151;

const NO_MESSAGE: i32 = 208;
const POLLING_TIMEOUT: i32 = 210;

pub const GROUP: &str = "G";
pub const TOPIC: &str = "T";
pub const QUEUES: u32 = 4;

/// A popped message with what the Java client makes of the header (`MQClientAPIImpl.processPopResponse`).
#[derive(Clone, Debug)]
pub struct Popped {
    pub record: Record,
    pub receipt: String,
}

fn fields(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    let pairs = pairs.iter();
    pairs
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .collect()
}

fn request(code: i32, pairs: &[(&str, &str)]) -> Command {
    let owned = fields(pairs);
    let borrowed: Vec<(&str, String)> = owned
        .iter()
        .map(|(name, value)| (name.as_str(), value.clone()))
        .collect();
    Command::request(code, &borrowed, Vec::new())
}

pub fn pop_request(
    topic: &str,
    max: u32,
    invisible_ms: u64,
    poll_ms: u64,
    more: &[(&str, &str)],
) -> Command {
    let (max, invisible) = (max.to_string(), invisible_ms.to_string());
    let (poll, born) = (poll_ms.to_string(), now_ms().to_string());
    let mut pairs = vec![
        ("consumerGroup", GROUP),
        ("topic", topic),
        ("queueId", "-1"),
        ("maxMsgNums", &max),
        ("invisibleTime", &invisible),
        ("pollTime", &poll),
        ("bornTime", &born),
        ("initMode", "0"),
        ("expType", "TAG"),
        ("exp", "*"),
    ];
    pairs.retain(|(name, _)| more.iter().all(|(other, _)| other != name));
    pairs.extend_from_slice(more);
    request(POP_MESSAGE, &pairs)
}

/// The messages of an answer, with receipts built as the Java client does; its maps have one entry per queue.
pub fn popped(answer: &Command) -> Vec<Popped> {
    if answer.code == POLLING_TIMEOUT {
        return Vec::new();
    }
    assert_eq!(answer.code, 0, "{}", answer.remark);
    let parse = |name: &str| -> BTreeMap<(String, i32), String> {
        let text = &answer.fields[name];
        let entries: Vec<_> = text
            .split(';')
            .map(|entry| entry.split(' ').collect::<Vec<_>>())
            .collect();
        let count = entries.len();
        let map: BTreeMap<_, _> = entries
            .into_iter()
            .map(|entry| {
                assert_eq!(entry.len(), 3, "{text}");
                (
                    (entry[0].to_owned(), entry[1].parse().unwrap()),
                    entry[2].to_owned(),
                )
            })
            .collect();
        assert_eq!(map.len(), count, "a queue twice: {text}");
        map
    };
    let (starts, offsets) = (parse("startOffsetInfo"), parse("msgOffsetInfo"));
    let mut seen: BTreeMap<i32, usize> = BTreeMap::new();
    record::decode_all(&answer.body)
        .unwrap()
        .into_iter()
        .map(|record| {
            let key = ("0".to_owned(), record.queue_id);
            let at = seen.entry(record.queue_id).or_default();
            let offset = offsets[&key].split(',').nth(*at).unwrap();
            *at += 1;
            assert_eq!(offset, record.queue_offset.to_string());
            let field = |name: &str| &answer.fields[name];
            let receipt = format!(
                "{} {} {} {} 0 b {} {offset}",
                starts[&key],
                field("popTime"),
                field("invisibleTime"),
                field("reviveQid"),
                record.queue_id
            );
            Popped { record, receipt }
        })
        .collect()
}

fn pop(connection: &mut Connection, max: u32, invisible_ms: u64, poll_ms: u64) -> Vec<Popped> {
    let request = pop_request(TOPIC, max, invisible_ms, poll_ms, &[]);
    popped(&connection.ask(&request).unwrap())
}

/// Pops until nothing comes for a moment.
fn pop_all(connection: &mut Connection, invisible_ms: u64) -> Vec<Popped> {
    let mut all = Vec::new();
    loop {
        let some = pop(connection, 32, invisible_ms, 300);
        if some.is_empty() {
            return all;
        }
        all.extend(some);
    }
}

pub fn with_receipt(code: i32, message: &Popped, more: &[(&str, &str)]) -> Command {
    let (queue, offset) = (
        message.record.queue_id.to_string(),
        message.record.queue_offset.to_string(),
    );
    let mut pairs = vec![
        ("consumerGroup", GROUP),
        ("topic", TOPIC),
        ("queueId", queue.as_str()),
        ("offset", &offset),
        ("extraInfo", &message.receipt),
    ];
    pairs.extend_from_slice(more);
    request(code, &pairs)
}

fn bodies<'a>(messages: impl IntoIterator<Item = &'a Popped>) -> BTreeSet<String> {
    let messages = messages.into_iter();
    messages
        .map(|message| String::from_utf8(message.record.body.clone()).unwrap())
        .collect()
}

fn numbered(range: std::ops::Range<usize>) -> BTreeSet<String> {
    range.map(|number| format!("m{number}")).collect()
}

fn send(connection: &mut Connection, range: std::ops::Range<usize>) {
    for number in range {
        let queue_id = (number % QUEUES as usize) as i32;
        let message = Message::new(TOPIC, queue_id, format!("m{number}"));
        connection.send(&message).unwrap();
    }
}

fn prepared(shards: u32, test: impl Fn(&Setup, Node)) {
    let store = store_dir();
    let setup = Setup::new(store.path(), shards);
    let node = setup.start();
    let mut connection = node.connect();
    connection.create_topic(TOPIC, QUEUES).unwrap();
    connection.create_group(GROUP).unwrap();
    println!("with {shards} shards");
    test(&setup, node);
}

#[test]
fn what_was_acknowledged_stays_away_and_what_is_hidden_stays_hidden_after_kill_9() {
    for shards in [1, 3] {
        prepared(shards, |setup, mut node| {
            let mut connection = node.connect();
            send(&mut connection, 0..40);
            let first = pop_all(&mut connection, 60_000);
            assert_eq!(bodies(&first), numbered(0..40));
            assert_eq!(first.len(), 40, "each once");
            let (acked, rest) = first.split_at(20);
            for message in acked {
                connection
                    .call(&with_receipt(ACK_MESSAGE, message, &[]))
                    .unwrap();
            }
            let (early, hidden) = rest.split_at(5);
            for message in early {
                let change = [("invisibleTime", "1500")];
                let changed = connection
                    .call(&with_receipt(
                        CHANGE_MESSAGE_INVISIBLETIME,
                        message,
                        &change,
                    ))
                    .unwrap();
                assert_eq!(changed.fields["invisibleTime"], "1500");
                assert!(changed.fields.contains_key("popTime"));
            }
            node.kill();
            let node = setup.start();
            let mut connection = node.connect();
            std::thread::sleep(Duration::from_millis(1_500));
            let again = pop_all(&mut connection, 60_000);
            assert_eq!(bodies(&again), bodies(early));
            assert!(
                again
                    .iter()
                    .all(|message| message.record.reconsume_times == 1)
            );
            // Receipts of the life before are good.
            for message in hidden.iter().chain(&again) {
                connection
                    .call(&with_receipt(ACK_MESSAGE, message, &[]))
                    .unwrap();
            }
            // A receipt of a delivery that is over is not, but acknowledged is acknowledged.
            let stale = with_receipt(
                CHANGE_MESSAGE_INVISIBLETIME,
                &early[0],
                &[("invisibleTime", "1")],
            );
            assert_eq!(connection.ask(&stale).unwrap().code, NO_MESSAGE);
            for queue_id in 0..QUEUES as i32 {
                let committed = connection
                    .consumer_offset(GROUP, TOPIC, queue_id)
                    .unwrap()
                    .unwrap();
                assert_eq!(committed, connection.max_offset(TOPIC, queue_id).unwrap());
            }
            assert_eq!(bodies(&pop_all(&mut connection, 1_000)), BTreeSet::new());
        });
    }
}

/// The topic is one of priorities from now on.
fn by_priority(connection: &mut Connection) {
    let mut change = client::create_topic(TOPIC, QUEUES);
    let attributes = "+message.type=PRIORITY".to_owned();
    change.fields.insert("attributes".into(), attributes);
    connection.call(&change).unwrap();
}

fn send_with_priority(connection: &mut Connection, priority: u32, body: &str) -> i32 {
    let message = Message::new(TOPIC, 1, body);
    let message = message.property("_SYS_MSG_PRIORITY_", &priority.to_string());
    connection.send(&message).unwrap().queue_id
}

fn in_order(messages: &[Popped]) -> Vec<String> {
    let body = |message: &Popped| String::from_utf8(message.record.body.clone()).unwrap();
    messages.iter().map(body).collect()
}

#[test]
fn the_highest_priority_goes_first_wherever_its_queue_lives_and_what_failed_comes_last() {
    for (shards, ascending) in [(1, true), (3, true), (3, false)] {
        let store = store_dir();
        let setup = Setup::new(store.path(), shards);
        let setup = setup.set(&format!("priorityOrderAsc={ascending}"));
        let node = setup.start();
        let mut connection = node.connect();
        connection.create_topic(TOPIC, QUEUES).unwrap();
        connection.create_group(GROUP).unwrap();
        by_priority(&mut connection);
        for priority in [2, 0, 3, 1, 9] {
            let queue_id = send_with_priority(&mut connection, priority, &format!("p{priority}"));
            assert_eq!(queue_id, priority.min(QUEUES - 1) as i32);
        }
        let mut expected = ["p3", "p9", "p2", "p1", "p0"];
        if !ascending {
            expected = ["p0", "p1", "p2", "p3", "p9"];
        }
        let first = pop(&mut connection, 1, 300, 2_000);
        assert_eq!(in_order(&first), expected[..1]);
        let ack = with_receipt(ACK_MESSAGE, &first[0], &[]);
        connection.call(&ack).unwrap();
        let failing = pop(&mut connection, 2, 300, 2_000);
        assert_eq!(in_order(&failing), expected[1..3]);
        std::thread::sleep(Duration::from_millis(400));
        let all = pop(&mut connection, 32, 60_000, 2_000);
        let again: Vec<&str> = [&expected[3..], &expected[1..3]].concat();
        assert_eq!(in_order(&all), again, "{shards} shards, {ascending}");
        for message in &all {
            let ack = with_receipt(ACK_MESSAGE, message, &[]);
            connection.call(&ack).unwrap();
        }
        assert!(pop(&mut connection, 32, 300, 600).is_empty());
    }
}

#[test]
fn what_is_due_again_goes_first_and_a_group_may_do_without_priorities_if_that_is_configured() {
    let store = store_dir();
    let setup = Setup::new(store.path(), 2).set("popFromRetryProbabilityForPriority=100");
    let node = setup.start();
    let mut connection = node.connect();
    connection.create_topic(TOPIC, QUEUES).unwrap();
    connection.create_group(GROUP).unwrap();
    by_priority(&mut connection);
    for priority in [0, 3] {
        send_with_priority(&mut connection, priority, &format!("p{priority}"));
    }
    assert_eq!(in_order(&pop(&mut connection, 2, 100, 2_000)), ["p3", "p0"]);
    std::thread::sleep(Duration::from_millis(200));
    send_with_priority(&mut connection, 3, "new");
    let got = pop(&mut connection, 32, 60_000, 2_000);
    assert_eq!(in_order(&got), ["p3", "p0", "new"]);

    let factor = |change: &str, factor: &str| {
        let group = json!({"groupName": GROUP, "attributes": {change: factor}});
        let body = group.to_string().into_bytes();
        Command::request(code::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, &[], body)
    };
    let refused = connection.ask(&factor("+priority.factor", "101")).unwrap();
    assert!(
        refused.remark.contains("from 0 to 100"),
        "{}",
        refused.remark
    );
    connection.call(&factor("+priority.factor", "0")).unwrap();
    for number in 0..60 {
        send_with_priority(&mut connection, number % QUEUES, "even");
    }
    let queues = (0..60).map(|_| pop(&mut connection, 1, 60_000, 2_000)[0].record.queue_id);
    let queues: Vec<i32> = queues.collect();
    let highest_first = queues.is_sorted_by(|one, next| one >= next);
    assert!(!highest_first, "from a random queue on: {queues:?}");
}

#[test]
fn messages_that_fail_go_to_the_dead_letters_after_their_last_retry() {
    prepared(2, |_, node| {
        let mut connection = node.connect();
        let group = json!({"groupName": GROUP, "consumeEnable": true, "retryQueueNums": 1, "retryMaxTimes": 2});
        let group = Command::request(
            code::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP,
            &[],
            group.to_string().into_bytes(),
        );
        connection.call(&group).unwrap();
        send(&mut connection, 0..1);
        for tries in 0..=2 {
            let got = pop(&mut connection, 8, 200, 5_000);
            assert_eq!(bodies(&got), numbered(0..1));
            assert_eq!(got[0].record.reconsume_times, tries);
        }
        assert!(pop(&mut connection, 8, 200, 2_000).is_empty());
        let dead = connection.read_queue("%DLQ%G", 0, 0).unwrap();
        assert_eq!(dead.len(), 1);
        assert_eq!(
            (dead[0].body.as_slice(), dead[0].reconsume_times),
            (&b"m0"[..], 3)
        );
        let committed = connection.consumer_offset(GROUP, TOPIC, 0).unwrap();
        assert_eq!(committed, Some(1));
    });
}

#[test]
fn a_pop_that_waits_hears_of_a_message_on_any_core_and_others_do_not() {
    prepared(3, |_, node| {
        let mut sender = node.connect();
        for number in 0..8 {
            let mut waiting: Vec<Connection> = (0..3).map(|_| node.connect()).collect();
            let opaques: Vec<i32> = waiting
                .iter_mut()
                .map(|one| {
                    one.start(&pop_request(TOPIC, 8, 60_000, 1_500, &[]))
                        .unwrap()
                })
                .collect();
            std::thread::sleep(Duration::from_millis(150));
            let ask = request(
                POLLING_INFO,
                &[("consumerGroup", GROUP), ("topic", TOPIC), ("queueId", "1")],
            );
            let info = sender.call(&ask).unwrap();
            assert_eq!(info.fields["pollingNum"], "3");
            let begin = Instant::now();
            send(&mut sender, number..number + 1);
            let mut got = Vec::new();
            for (one, opaque) in waiting.iter_mut().zip(opaques) {
                got.extend(popped(&one.wait(opaque).unwrap()));
            }
            assert_eq!(bodies(&got), numbered(number..number + 1));
            assert_eq!(got.len(), 1);
            assert!(begin.elapsed() < Duration::from_secs(10));
            sender
                .call(&with_receipt(ACK_MESSAGE, &got[0], &[]))
                .unwrap();
        }
    });
}

#[test]
fn a_batch_is_acknowledged_a_look_changes_nothing_and_a_notification_tells() {
    prepared(2, |_, node| {
        let mut connection = node.connect();
        let look = |connection: &mut Connection, code: i32| {
            let born = now_ms().to_string();
            let ask = request(
                code,
                &[
                    ("consumerGroup", GROUP),
                    ("topic", TOPIC),
                    ("queueId", "-1"),
                    ("maxMsgNums", "32"),
                    ("pollTime", "100"),
                    ("bornTime", &born),
                ],
            );
            connection.ask(&ask).unwrap()
        };
        assert_eq!(look(&mut connection, PEEK_MESSAGE).code, 19);
        assert_eq!(
            look(&mut connection, NOTIFICATION).fields["hasMsg"],
            "false"
        );
        send(&mut connection, 0..12);
        assert_eq!(
            bodies(&popped(&look(&mut connection, PEEK_MESSAGE))),
            numbered(0..12)
        );
        let told = look(&mut connection, NOTIFICATION);
        assert_eq!(told.fields["hasMsg"], "true");
        assert_eq!(told.fields["pollingFull"], "false");
        let first = pop_all(&mut connection, 700);
        assert_eq!(bodies(&first), numbered(0..12));
        let pop_ms: i64 = first[0].receipt.split(' ').nth(1).unwrap().parse().unwrap();
        // Offsets 0 and 2 of queues 1 and 3: bits 0 and 2.
        let entry = |queue: i32| json!({"b": "BQ==", "c": GROUP, "it": 700, "pt": pop_ms, "q": queue, "r": "0", "rq": 0, "so": 0, "t": TOPIC});
        let body = json!({"acks": [entry(1), entry(3)], "brokerName": "b"}).to_string();
        let batch = Command::request(BATCH_ACK_MESSAGE, &[], body.into_bytes());
        connection.call(&batch).unwrap();
        std::thread::sleep(Duration::from_millis(750));
        let again = pop_all(&mut connection, 60_000);
        let acked: BTreeSet<String> = ["m1", "m9", "m3", "m11"].map(String::from).into();
        assert_eq!(bodies(&again), &numbered(0..12) - &acked);
    });
}

#[test]
fn a_pop_without_a_time_of_its_own_was_made_when_it_comes() {
    prepared(1, |_, node| {
        let mut connection = node.connect();
        send(&mut connection, 0..1);
        let ask = pop_request(TOPIC, 8, 60_000, 0, &[("bornTime", "0")]);
        assert_eq!(popped(&connection.ask(&ask).unwrap()).len(), 1);
        let mut notify = request(
            NOTIFICATION,
            &[
                ("consumerGroup", GROUP),
                ("topic", TOPIC),
                ("queueId", "-1"),
                ("pollTime", "300"),
                ("bornTime", "0"),
            ],
        );
        let begin = Instant::now();
        let answer = connection.call(&notify).unwrap();
        assert_eq!(answer.fields["hasMsg"], "false");
        assert!(begin.elapsed() >= Duration::from_millis(300), "it waits");
        notify.fields.remove("bornTime");
        send(&mut connection, 1..2);
        let answer = connection.call(&notify).unwrap();
        assert_eq!(answer.fields["hasMsg"], "true");
    });
}

#[test]
fn a_bad_pop_gets_the_code_that_says_why() {
    prepared(1, |_, node| {
        let mut connection = node.connect();
        let mut code_of = |more: &[(&str, &str)], topic: &str| {
            let ask = pop_request(topic, 8, 1_000, 0, more);
            let answer = connection.ask(&ask).unwrap();
            (answer.code, answer.remark.is_empty())
        };
        assert_eq!(code_of(&[], TOPIC), (POLLING_TIMEOUT, false));
        assert_eq!(code_of(&[], "nowhere"), (17, false));
        assert_eq!(code_of(&[("queueId", "4")], TOPIC), (29, false));
        assert_eq!(code_of(&[("maxMsgNums", "33")], TOPIC), (29, false));
        assert_eq!(code_of(&[("exp", "||")], TOPIC), (23, false));
        assert_eq!(
            code_of(&[("bornTime", "1")], TOPIC),
            (POLLING_TIMEOUT, false)
        );
        send(&mut connection, 0..1);
        let mut message = pop(&mut connection, 1, 60_000, 1_000).remove(0);
        message.record.queue_offset = 99;
        assert_eq!(
            connection
                .ask(&with_receipt(ACK_MESSAGE, &message, &[]))
                .unwrap()
                .code,
            NO_MESSAGE
        );
        message.record.queue_id = 9;
        assert_eq!(
            connection
                .ask(&with_receipt(ACK_MESSAGE, &message, &[]))
                .unwrap()
                .code,
            13
        );
        message.receipt = "no receipt".into();
        assert_eq!(
            connection
                .ask(&with_receipt(ACK_MESSAGE, &message, &[]))
                .unwrap()
                .code,
            29
        );
    });
}

#[test]
fn queues_are_assigned_and_the_mode_of_a_group_survives_a_restart() {
    prepared(2, |setup, mut node| {
        let ask = |node: &Node| {
            let mut connection = node.connect();
            connection.heartbeat("c1", GROUP, TOPIC).unwrap();
            let body = json!({"clientId": "c1", "consumerGroup": GROUP, "messageModel": "CLUSTERING", "strategyName": "AVG", "topic": TOPIC});
            let ask = Command::request(QUERY_ASSIGNMENT, &[], body.to_string().into_bytes());
            let answer = connection.call(&ask).unwrap();
            let answer: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
            let assignments = answer["messageQueueAssignments"]
                .as_array()
                .unwrap()
                .clone();
            let mut queues: Vec<(i64, String)> = assignments
                .iter()
                .map(|one| {
                    let queue = one["messageQueue"]["queueId"].as_i64().unwrap();
                    (queue, one["mode"].as_str().unwrap().to_owned())
                })
                .collect();
            queues.sort();
            queues
        };
        let pull = |queue| (queue, "PULL".to_owned());
        assert_eq!(ask(&node), [pull(0), pull(1), pull(2), pull(3)]);
        let mode =
            json!({"consumerGroup": GROUP, "mode": "POP", "popShareQueueNum": 8, "topic": TOPIC});
        let set = Command::request(SET_MESSAGE_REQUEST_MODE, &[], mode.to_string().into_bytes());
        node.connect().call(&set).unwrap();
        assert_eq!(ask(&node), [(-1, "POP".to_owned())]);
        node.kill();
        let node = setup.start();
        assert_eq!(ask(&node), [(-1, "POP".to_owned())]);
    });
}
