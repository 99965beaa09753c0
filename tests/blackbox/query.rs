//! Messages by key, through `kill -9`, damaged and missing index files, and restarts.
//!
//! `RINGMQ_KEYED_MESSAGES` (150,000) sets how many there are; with 10,000,000 and a release build the times that are
//! printed are the product's figures; `RINGMQ_KEYED_MS_MAX` bounds the p99. `RINGMQ_SEED` repeats a run's choices.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::client::{Answer, Connection, Message, answer, code};
use crate::node::{Node, Setup, knob, store_dir};
use crate::record::{Record, decode_all};

const TOPIC: &str = "keyed";
const QUEUES: u64 = 4;
/// Messages of one batch, all of which have one key in common.
const BATCH: u64 = 100;
const WINDOW: usize = 64;
const SAMPLES: u64 = 300;

fn query(connection: &mut Connection, key: &str, kind: &str, max: u32) -> Answer<Vec<Record>> {
    let fields = [
        ("topic", TOPIC.to_string()),
        ("key", key.to_string()),
        ("maxNum", max.to_string()),
        ("beginTimestamp", "0".to_string()),
        ("endTimestamp", i64::MAX.to_string()),
        ("indexType", kind.to_string()),
    ];
    let request = crate::client::Command::request(code::QUERY_MESSAGE, &fields, Vec::new());
    let answer = loop {
        match connection.call(&request) {
            // A large index takes its time.
            Err(failure) if failure.remark().contains("being made again") => {
                std::thread::sleep(Duration::from_millis(100));
            }
            answer => break answer?,
        }
    };
    let newest = &answer.fields["indexLastUpdateTimestamp"];
    assert!(newest.parse::<i64>().unwrap() > 0, "{answer:?}");
    assert!(answer.fields.contains_key("indexLastUpdatePhyoffset"));
    Ok(decode_all(&answer.body).unwrap())
}

fn message(number: u64) -> Message {
    let (batch, queue) = (number / BATCH, number / BATCH % QUEUES);
    Message::new(TOPIC, queue as i32, format!("body {number}"))
        .property("KEYS", &format!("key{number} batch{batch}"))
        .property("UNIQ_KEY", &format!("{number:032X}"))
}

fn fill(connection: &mut Connection, messages: u64) {
    let mut waiting = 0;
    let settle = |connection: &mut Connection| {
        let answer = connection.next_answer().unwrap();
        assert_eq!(answer.code, answer::SUCCESS, "{answer:?}");
    };
    for batch in 0..messages / BATCH {
        let batch: Vec<Message> = (batch * BATCH..(batch + 1) * BATCH).map(message).collect();
        let request = crate::client::send_batch(&batch);
        connection.start(&request).unwrap();
        waiting += 1;
        if waiting >= WINDOW {
            settle(connection);
            waiting -= 1;
        }
    }
    (0..waiting).for_each(|_| settle(connection));
}

/// A cheap generator with a seed.
fn next(state: &mut u64) -> u64 {
    *state = state
        .wrapping_mul(0x5851_F42D_4C95_7F2D)
        .wrapping_add(0x1405_7B7E_F767_814F);
    *state >> 33
}

/// Looks some messages up in each way; the slowest hundredth of the times comes back.
fn check(what: &str, connection: &mut Connection, messages: u64, random: &mut u64) -> Duration {
    let mut times = Vec::new();
    for _ in 0..SAMPLES {
        let number = next(random) % messages;
        let body = format!("body {number}").into_bytes();
        for (key, kind) in [
            (format!("key{number}"), "K"),
            (format!("{number:032X}"), "U"),
        ] {
            let begun = Instant::now();
            let found = query(connection, &key, kind, 32);
            times.push(begun.elapsed());
            let found = found.unwrap_or_else(|failure| panic!("{what}: {key}: {failure:?}"));
            assert_eq!(found.len(), 1, "{what}: {key}");
            assert_eq!(found[0].body, body, "{what}");
        }
    }
    // All of one batch, the newest of which come first.
    let batch = next(random) % (messages / BATCH);
    let found = query(connection, &format!("batch{batch}"), "K", 10).unwrap();
    let newest: Vec<Vec<u8>> = (0..10)
        .map(|back| format!("body {}", (batch + 1) * BATCH - 1 - back).into_bytes())
        .collect();
    let bodies: Vec<Vec<u8>> = found.into_iter().map(|record| record.body).collect();
    assert_eq!(bodies, newest, "{what}");
    for key in [
        format!("key{messages}"),
        "key".into(),
        format!("{:032X}", 0),
    ] {
        let nobody = query(connection, &key, "K", 32);
        assert_eq!(
            nobody.unwrap_err().code(),
            Some(answer::QUERY_NOT_FOUND),
            "{what}: {key}"
        );
    }
    times.sort();
    let p99 = times[times.len() * 99 / 100];
    say!(
        "query: {messages} messages, {what}: median {:?}, p99 {p99:?}",
        times[times.len() / 2]
    );
    p99
}

fn key_files(store: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for log in std::fs::read_dir(store).unwrap() {
        let Ok(keys) = std::fs::read_dir(log.unwrap().path().join("keys")) else {
            continue;
        };
        files.extend(keys.map(|file| file.unwrap().path()));
    }
    files.sort();
    files
}

fn warned(node: &Node) -> bool {
    node.output().contains("made again from the log")
}

#[test]
fn every_message_is_found_by_its_keys_whatever_happens_to_the_process_and_the_index() {
    let messages = knob("RINGMQ_KEYED_MESSAGES", 150_000) / BATCH * BATCH;
    let mut random = knob("RINGMQ_SEED", 7);
    let store = store_dir();
    let setup = Setup::new(store.path(), 2).set("mappedFileSizeCommitLog=268435456");
    let mut node = setup.start();
    let mut connection = node.connect();
    connection.create_topic(TOPIC, QUEUES as u32).unwrap();
    let begun = Instant::now();
    fill(&mut connection, messages);
    say!("query: {messages} messages sent in {:?}", begun.elapsed());
    check("just sent", &mut connection, messages, &mut random);
    let p99 = check("warm", &mut connection, messages, &mut random);
    // How long it takes depends on what else the machine does: only who asks for a bound gets one.
    let ms_max = knob("RINGMQ_KEYED_MS_MAX", 0);
    assert!(
        ms_max == 0 || p99 < Duration::from_millis(ms_max),
        "{p99:?}"
    );
    node.kill();

    let mut node = setup.start();
    let mut connection = node.connect();
    check("after kill -9", &mut connection, messages, &mut random);
    assert!(!warned(&node), "{}", node.output());
    assert!(node.terminate().success());

    // The first file is gone, the header of another is damaged, a block of the third.
    let files = key_files(store.path());
    assert!(files.len() >= 3, "{files:?}");
    std::fs::remove_file(&files[0]).unwrap();
    for (file, at) in [(&files[1], 30), (&files[2], 4096 + 100)] {
        let mut bytes = std::fs::read(file).unwrap();
        bytes[at] ^= 0x20;
        std::fs::write(file, bytes).unwrap();
    }
    let mut node = setup.start();
    let mut connection = node.connect();
    check("after damage", &mut connection, messages, &mut random);
    assert!(node.terminate().success());

    for file in key_files(store.path()) {
        std::fs::remove_file(file).unwrap();
    }
    let mut node = setup.start();
    let mut connection = node.connect();
    check("without any file", &mut connection, messages, &mut random);
    assert!(node.terminate().success());
    let mut node = setup.start();
    let mut connection = node.connect();
    check(
        "after all is well again",
        &mut connection,
        messages,
        &mut random,
    );
    assert!(!warned(&node), "{}", node.output());
    assert!(node.terminate().success());
}
