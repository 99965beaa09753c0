//! Life of the process: restarts, TERM, wrong usage, a store that is taken, and what it costs to be idle.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::client::{Message, Pull, answer, sent};
use crate::node::{Node, Setup, broker_command, is_optimised, listens, signal, store_dir};

const RSS_IDLE_MAX_BYTES: u64 = 50 << 20;

/// Everything that a restart has to keep, as a client sees it.
fn contents(node: &Node) -> BTreeMap<String, String> {
    let mut connection = node.connect();
    let mut all = BTreeMap::new();
    for topic in ["kept", "kept-too"] {
        for queue_id in 0..4 {
            let records = connection.read_queue(topic, queue_id, 0).unwrap();
            let bounds = (
                connection.min_offset(topic, queue_id).unwrap(),
                connection.max_offset(topic, queue_id).unwrap(),
            );
            let offset = connection.consumer_offset("kept-group", topic, queue_id);
            let consumer = offset.unwrap();
            all.insert(
                format!("{topic}/{queue_id}"),
                format!("{bounds:?} {consumer:?} {records:?}"),
            );
        }
    }
    let gone = connection.pull(&Pull::new("dropped", 0, 0)).unwrap_err();
    assert_eq!(gone.code(), Some(answer::TOPIC_NOT_EXIST), "{gone:?}");
    for topic in ["kept", "kept-too"] {
        let route = node.connect_namesrv().route(topic).unwrap();
        all.insert(format!("route of {topic}"), route["queueDatas"].to_string());
    }
    all
}

fn fill(node: &Node) {
    let mut connection = node.connect();
    connection.create_topic("kept", 4).unwrap();
    connection.create_topic("kept-too", 4).unwrap();
    connection.create_topic("dropped", 4).unwrap();
    connection.create_group("kept-group").unwrap();
    for number in 0..200 {
        for topic in ["kept", "kept-too", "dropped"] {
            let message = Message::new(topic, number % 4, format!("{topic} {number}"))
                .property("KEYS", &number.to_string());
            connection.send(&message).unwrap();
        }
        let committed = i64::from(number / 8);
        connection
            .commit_offset("kept-group", "kept", number % 4, committed)
            .unwrap();
    }
    connection.delete_topic("dropped").unwrap();
}

#[test]
fn a_restart_keeps_messages_offsets_topics_and_groups() {
    for shards in [1, 2, 4] {
        let store = store_dir();
        let setup = Setup::new(store.path(), shards);
        let mut node = setup.start();
        fill(&node);
        let before = contents(&node);
        assert!(before["kept/0"].contains("Some("), "{}", before["kept/0"]);
        assert!(node.terminate().success());
        let mut node = setup.start();
        assert_eq!(contents(&node), before, "{shards} shards, after TERM");
        node.kill();
        let node = setup.start();
        assert_eq!(contents(&node), before, "{shards} shards, after kill -9");
        // The group is still known: an unknown one is refused.
        let mut connection = node.connect();
        connection
            .commit_offset("kept-group", "kept-too", 0, 1)
            .unwrap();
        let next = connection.send(&Message::new("kept", 0, "next")).unwrap();
        assert_eq!(next.queue_offset, 50);
    }
}

#[test]
fn a_store_opens_on_another_number_of_shards() {
    let store = store_dir();
    let mut setup = Setup::new(store.path(), 2);
    let mut node = setup.start();
    fill(&node);
    let before = contents(&node);
    for shards in [1, 4, 2] {
        assert!(node.terminate().success());
        setup.shards = shards;
        node = setup.start();
        assert_eq!(contents(&node), before, "with {shards} shards");
    }
}

#[test]
fn term_answers_what_was_accepted_and_ends_with_success() {
    for shards in [1, 2] {
        let store = store_dir();
        let setup = Setup::new(store.path(), shards);
        let mut node = setup.start();
        node.connect().create_topic("drain", 4).unwrap();
        // A parked pull must not hold up the end.
        let mut parked = node.connect();
        let mut pull = Pull::new("drain", 3, 0);
        pull.suspend_ms = 30_000;
        parked.start(&pull.command()).unwrap();
        let broker = node.broker;
        let sender = std::thread::spawn(move || {
            let mut connection = crate::client::Connection::open(broker).unwrap();
            let mut acknowledged = Vec::new();
            let mut waiting = 0;
            for number in 0.. {
                let message = Message::new("drain", number % 3, format!("{number}"));
                if connection.start(&message.send_v2()).is_err() {
                    break;
                }
                waiting += 1;
                if waiting < 32 {
                    continue;
                }
                waiting -= 1;
                match connection.next_answer() {
                    Ok(answer) => acknowledged.extend(sent(answer).ok()),
                    Err(_) => break,
                }
            }
            acknowledged
        });
        std::thread::sleep(Duration::from_millis(300));
        let begun = Instant::now();
        let status = node.terminate();
        say!("TERM took {:?} with {shards} shards", begun.elapsed());
        assert_eq!(status.code(), Some(0), "{status}");
        assert!(begun.elapsed() < Duration::from_secs(10));
        assert!(!listens(node.broker) && !listens(node.namesrv));
        let acknowledged = sender.join().unwrap();
        assert!(acknowledged.len() > 10, "{} sends", acknowledged.len());
        let node = setup.start();
        let mut connection = node.connect();
        for queue_id in 0..3 {
            let stored = connection.read_queue("drain", queue_id, 0).unwrap().len();
            let promised = acknowledged
                .iter()
                .filter(|sent| sent.queue_id == queue_id)
                .count();
            assert!(stored >= promised, "{stored} stored, {promised} promised");
        }
    }
}

#[test]
fn a_second_term_or_an_interrupt_ends_it_too() {
    let store = store_dir();
    let setup = Setup::new(store.path(), 1);
    for signals in [&["INT"][..], &["TERM", "TERM"]] {
        let mut node = setup.start();
        for name in signals {
            signal(node.pid(), name);
        }
        let deadline = Instant::now() + Duration::from_secs(15);
        while node.try_status().is_none() {
            assert!(Instant::now() < deadline, "{signals:?} did not end it");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Exit code and output of a command line that is expected to end by itself.
fn outcome(mut command: Command) -> (Option<i32>, String) {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = child.wait_with_output().unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    (output.status.code(), text)
}

#[test]
fn wrong_usage_ends_with_2_and_wrong_configuration_with_78() {
    let mut usage = broker_command();
    usage.arg("standalone").arg("--no-such-flag");
    let (status, text) = outcome(usage);
    assert_eq!(status, Some(2), "{text}");
    let mut verb = broker_command();
    verb.arg("no-such-verb");
    let (status, text) = outcome(verb);
    assert_eq!(status, Some(2), "{text}");

    let store = store_dir();
    let unknown = Setup::new(store.path(), 1).set("flushDiskTyp=SYNC_FLUSH");
    let (status, text) = outcome(unknown.command());
    assert_eq!(status, Some(78), "{text}");
    assert!(
        text.contains("flushDiskType"),
        "names the nearest key: {text}"
    );
    assert!(!text.contains("panicked"), "{text}");
    let value = Setup::new(store.path(), 1).set("mappedFileSizeCommitLog=many");
    let (status, text) = outcome(value.command());
    assert_eq!(status, Some(78), "{text}");
    assert!(
        text.contains("mappedFileSizeCommitLog") && text.contains("many"),
        "{text}"
    );
}

#[test]
fn a_taken_port_and_a_taken_store_are_refused_with_the_reason() {
    let store = store_dir();
    let node = Setup::new(store.path(), 1).start();
    let same_store = Setup::new(store.path(), 1);
    let (status, text) = outcome(same_store.command());
    assert!(status.is_some_and(|code| code != 0), "{status:?} {text}");
    let path = store.path().display().to_string();
    assert!(text.contains(&path), "names the store: {text}");
    assert!(!text.contains("panicked"), "{text}");

    let other = store_dir();
    let mut same_port = Setup::new(other.path(), 1);
    same_port.broker_port = node.setup.broker_port;
    let (status, text) = outcome(same_port.command());
    assert!(status.is_some_and(|code| code != 0), "{status:?} {text}");
    assert!(text.contains(&node.setup.broker_port.to_string()), "{text}");
    assert!(!text.contains("panicked"), "{text}");

    // The first one did not notice.
    let mut connection = node.connect();
    connection.create_topic("unharmed", 1).unwrap();
    connection.send(&Message::new("unharmed", 0, "x")).unwrap();
}

#[test]
fn an_idle_broker_costs_little() {
    for shards in [1, 2, 4] {
        let store = store_dir();
        let node = Setup::new(store.path(), shards).start();
        let mut connection = node.connect();
        connection.create_topic("idle", 8).unwrap();
        connection.send(&Message::new("idle", 0, "x")).unwrap();
        std::thread::sleep(Duration::from_secs(2));
        let (begun, cpu) = (Instant::now(), node.cpu_time());
        std::thread::sleep(Duration::from_secs(5));
        let used = node.cpu_time() - cpu;
        let share = used.as_secs_f64() / begun.elapsed().as_secs_f64();
        say!(
            "{shards} shards, idle: RSS {:.1} MiB, CPU {:.2} %, {} fds, serving after {:?}",
            node.rss_bytes() as f64 / f64::from(1 << 20),
            share * 100.0,
            node.fd_count(),
            node.serving_after,
        );
        if is_optimised() {
            assert!(
                node.rss_bytes() <= RSS_IDLE_MAX_BYTES,
                "{}",
                node.rss_bytes()
            );
            assert!(share < 0.01, "{:.2} % CPU", share * 100.0);
        }
    }
}
