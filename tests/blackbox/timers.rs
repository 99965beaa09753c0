//! Delayed messages from outside: recalls by handle and by TIMER_DEL_UNIQKEY, punctuality under load, memory of what waits.
//!
//! Long forms: `RINGMQ_TIMERS_PER_SECOND=50000 RINGMQ_TIMERS_SECONDS=5` for how late messages are when many are due, and
//! `RINGMQ_TIMERS_LATE_MS_MAX=20` bounds the p99; `RINGMQ_TIMERS_PENDING=1000000` for what a waiting one costs; both with a release build (`RINGMQ_BIN`).

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::client::{Answer, Command, Connection, Message, now_ms, sent};
use crate::node::{Node, Setup, knob, store_dir};

const RECALL_MESSAGE: i32 = 370;
pub const TOPIC: &str = "timed";
/// Messages that one connection has in flight.
const WINDOW: usize = 256;

pub fn timed(number: u64, queue_id: i32, at_ms: i64) -> Message {
    Message::new(TOPIC, queue_id, format!("{number}"))
        .property("UNIQ_KEY", &format!("KEY{number}"))
        .property("TIMER_DELIVER_MS", &at_ms.to_string())
}

fn recall(connection: &mut Connection, handle: &str) -> Answer<Command> {
    let fields = [
        ("producerGroup", "P".to_string()),
        ("topic", TOPIC.to_string()),
        ("recallHandle", handle.to_string()),
    ];
    connection.ask(&Command::request(RECALL_MESSAGE, &fields, Vec::new()))
}

fn handle_of(connection: &mut Connection, message: &Message) -> String {
    let answer = connection.ask(&message.send_v2()).unwrap();
    assert_eq!(answer.code, 0, "{}", answer.remark);
    answer.fields.get("recallHandle").expect("a handle").clone()
}

/// Numbers of the messages that were delivered.
fn delivered(connection: &mut Connection, queues: i32) -> BTreeSet<u64> {
    let mut numbers = BTreeSet::new();
    for queue_id in 0..queues {
        for record in connection.read_queue(TOPIC, queue_id, 0).unwrap() {
            let number = String::from_utf8(record.body.clone()).unwrap();
            assert!(
                numbers.insert(number.parse().unwrap()),
                "{number} came twice"
            );
        }
    }
    numbers
}

#[test]
fn a_recalled_message_does_not_come_whichever_queue_it_is_in() {
    let directory = store_dir();
    let setup = Setup::new(directory.path(), 2).set("recallMessageEnable=true");
    let mut node = setup.start();
    let mut client = node.connect();
    client.create_topic(TOPIC, 4).unwrap();
    let at_ms = now_ms() + 4_000;
    let handles: Vec<String> = (0..12)
        .map(|number| handle_of(&mut client, &timed(number, number as i32 % 4, at_ms)))
        .collect();
    for number in [0, 1, 2, 3, 7] {
        let answer = recall(&mut client, &handles[number]).unwrap();
        assert_eq!(answer.code, 0, "{}", answer.remark);
        assert_eq!(answer.fields["msgId"], format!("KEY{number}"));
    }
    // A producer may say it by a message of its own; and twice does no harm.
    let own = Message::new(TOPIC, 0, "0")
        .property("TIMER_DEL_UNIQKEY", "KEY8")
        .property("TIMER_DELIVER_MS", &at_ms.to_string());
    assert_eq!(client.ask(&own.send_v2()).unwrap().code, 0);
    assert_eq!(recall(&mut client, &handles[7]).unwrap().code, 0);
    // What was recalled stays recalled.
    node.kill();
    let node = setup.start();
    let mut client = node.connect();
    std::thread::sleep(Duration::from_millis(
        (at_ms - now_ms()).max(0) as u64 + 1_500,
    ));
    let expected: BTreeSet<u64> = [4, 5, 6, 9, 10, 11].into();
    assert_eq!(delivered(&mut client, 4), expected);
}

#[test]
fn a_recall_that_cannot_be_is_refused_with_rocketmqs_codes() {
    let directory = store_dir();
    let node = Setup::new(directory.path(), 1)
        .set("recallMessageEnable=true")
        .start();
    let mut client = node.connect();
    client.create_topic(TOPIC, 2).unwrap();
    let good = handle_of(&mut client, &timed(1, 0, now_ms() + 60_000));
    let mut code = |handle: &str| recall(&mut client, handle).unwrap().code;
    assert_eq!(code("no handle"), 604);
    assert_eq!(code(&good[..good.len() / 2]), 604);
    // "v1 other b 9999999999999 k"
    assert_eq!(code("djEgb3RoZXIgYiA5OTk5OTk5OTk5OTk5IGs="), 604);
    let fields = [
        ("topic", "nowhere".to_string()),
        ("recallHandle", good.clone()),
    ];
    let answer = client.ask(&Command::request(RECALL_MESSAGE, &fields, Vec::new()));
    assert_eq!(answer.unwrap().code, 17);
    let soon = handle_of(&mut client, &timed(2, 0, now_ms() + 50));
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(recall(&mut client, &soon).unwrap().code, 604, "too late");
    let past = Message::new(TOPIC, 0, "0")
        .property("TIMER_DEL_UNIQKEY", "KEY1")
        .property("TIMER_DELIVER_MS", "1000");
    assert_eq!(client.ask(&past.send_v2()).unwrap().code, 13);
    assert_eq!(recall(&mut client, &good).unwrap().code, 0);
}

#[test]
fn recalls_are_off_by_default_as_in_rocketmq() {
    let directory = store_dir();
    let node = Setup::new(directory.path(), 1).start();
    let mut client = node.connect();
    client.create_topic(TOPIC, 1).unwrap();
    let handle = handle_of(&mut client, &timed(1, 0, now_ms() + 60_000));
    let answer = recall(&mut client, &handle).unwrap();
    assert_eq!(answer.code, 16);
    assert!(answer.remark.contains("recallMessageEnable"));
}

/// Sends messages on one connection, many at a time.
fn send_all(node: &Node, messages: impl Iterator<Item = Message>) {
    let mut connection = node.connect();
    let mut waiting = 0;
    for message in messages {
        connection.start(&message.send_v2()).unwrap();
        waiting += 1;
        if waiting == WINDOW {
            for _ in 0..WINDOW / 2 {
                sent(connection.next_answer().unwrap()).unwrap();
            }
            waiting -= WINDOW / 2;
        }
    }
    for _ in 0..waiting {
        sent(connection.next_answer().unwrap()).unwrap();
    }
}

/// The least bound that a share of the values is not above, over all cores.
fn quantile(page: &str, name: &str, share: f64) -> Option<f64> {
    let mut buckets: Vec<(f64, f64)> = Vec::new();
    for line in page
        .lines()
        .filter(|line| line.starts_with(&format!("{name}_bucket")))
    {
        let bound = line.split("le=\"").nth(1)?.split('"').next()?;
        let bound = bound.parse().unwrap_or(f64::INFINITY);
        let count: f64 = line.rsplit(' ').next()?.parse().ok()?;
        match buckets.iter_mut().find(|(known, _)| *known == bound) {
            Some((_, sum)) => *sum += count,
            None => buckets.push((bound, count)),
        }
    }
    let (_, total) = *buckets.last()?;
    let found = buckets.iter().find(|(_, count)| *count >= share * total);
    found.map(|(bound, _)| *bound)
}

#[test]
fn many_messages_that_are_due_together_come_on_time_none_early_none_lost() {
    let per_second = knob("RINGMQ_TIMERS_PER_SECOND", 1_000);
    let seconds = knob("RINGMQ_TIMERS_SECONDS", 2);
    let directory = store_dir();
    let node = Setup::new(directory.path(), 2)
        .set("mappedFileSizeCommitLog=134217728")
        .start();
    node.connect().create_topic(TOPIC, 8).unwrap();
    let total = per_second * seconds;
    // All are stored before the first one is due.
    let lead_ms = 3_000 + total as i64 / 10;
    let first_ms = now_ms() + lead_ms;
    let due = |number: u64| first_ms + (number * 1_000 / per_second) as i64;
    std::thread::scope(|scope| {
        for part in 0..4 {
            let node = &node;
            scope.spawn(move || {
                let numbers = (0..total).filter(|number| number % 4 == part);
                send_all(node, numbers.map(|n| timed(n, (n % 8) as i32, due(n))));
            });
        }
    });
    let spare_ms = first_ms - now_ms();
    let mut client = node.connect();
    let patience = Instant::now() + Duration::from_secs(120) + Duration::from_secs(seconds);
    let come = |client: &mut Connection| -> i64 {
        (0..8)
            .map(|queue| client.max_offset(TOPIC, queue).unwrap())
            .sum()
    };
    while come(&mut client) < total as i64 && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(100));
    }
    // What comes twice comes now.
    std::thread::sleep(Duration::from_millis(500));
    let mut seen = BTreeSet::new();
    let mut late: Vec<i64> = Vec::new();
    for queue_id in 0..8 {
        for record in client.read_queue(TOPIC, queue_id, 0).unwrap() {
            let number: u64 = String::from_utf8(record.body.clone())
                .unwrap()
                .parse()
                .unwrap();
            assert!(seen.insert(number), "{number} came twice");
            late.push(record.store_timestamp - due(number));
        }
    }
    assert_eq!(seen.len() as u64, total, "lost");
    late.sort_unstable();
    let at = |share: f64| late[((late.len() - 1) as f64 * share) as usize];
    let page = crate::metrics::page(&node);
    let durable = quantile(&page, "ringmq_timer_late_seconds", 0.99);
    say!(
        "timers: {total} messages, {per_second} due per second: stored {} ms late at the median, {} ms at p99, {} ms at most; \
         durable within {durable:?} s at p99; {spare_ms} ms between the last send and the first due",
        at(0.5),
        at(0.99),
        late[late.len() - 1]
    );
    assert!(late[0] >= 0, "{} ms early", -late[0]);
    // How late depends on what else the machine does: only who asks for a bound gets one.
    let late_ms_max = knob("RINGMQ_TIMERS_LATE_MS_MAX", 0);
    assert!(
        late_ms_max == 0 || at(0.99) <= late_ms_max as i64,
        "{} ms late at p99",
        at(0.99)
    );
}

#[test]
fn a_waiting_message_costs_little_memory() {
    let pending = knob("RINGMQ_TIMERS_PENDING", 20_000);
    let directory = store_dir();
    let setup = Setup::new(directory.path(), 2)
        .memory(128 << 20)
        .set("mappedFileSizeCommitLog=134217728");
    let mut node = setup.start();
    node.connect().create_topic(TOPIC, 8).unwrap();
    // The caches fill up first, so that what is measured is the timers.
    let day_ms = 86_400_000;
    let from_ms = now_ms() + day_ms;
    let fill = |node: &Node, from: u64, to: u64| {
        std::thread::scope(|scope| {
            for part in 0..4 {
                scope.spawn(move || {
                    let numbers = (from..to).filter(|number| number % 4 == part);
                    let at = |n: u64| from_ms + (n * 7_919 % 86_400_000) as i64;
                    send_all(node, numbers.map(|n| timed(n, (n % 8) as i32, at(n))));
                });
            }
        });
    };
    fill(&node, 0, pending);
    let running = node.rss_bytes();
    let page = crate::metrics::page(&node);
    let waiting = page
        .lines()
        .find(|line| line.starts_with("rocketmq_timing_messages{"));
    assert!(
        waiting.unwrap().ends_with(&format!(" {pending}")),
        "{waiting:?}"
    );
    // After a start nothing but the tables is in memory.
    assert!(node.terminate().success());
    let node = setup.start();
    let restarted = node.rss_bytes();
    let page = crate::metrics::page(&node);
    let waiting = page
        .lines()
        .find(|line| line.starts_with("rocketmq_timing_messages{"));
    assert!(
        waiting.unwrap().ends_with(&format!(" {pending}")),
        "{waiting:?}"
    );
    say!(
        "timers: {pending} pending: {} MiB resident while they came in, {} MiB after a restart in {:?}",
        running >> 20,
        restarted >> 20,
        node.serving_after
    );
    if pending >= 1_000_000 {
        let per_timer = restarted.saturating_sub(32 << 20) / pending;
        assert!(per_timer <= 100, "{per_timer} bytes each");
    }
}
