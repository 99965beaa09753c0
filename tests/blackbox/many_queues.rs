//! Very many queues on one broker: descriptors, files and memory do not follow their number.
//!
//! `RINGMQ_MANY_TOPICS` (500; the long form is 10,000) times ten queues times ten messages.

use std::time::Instant;

use crate::client::{Message, create_topic, send_batch, sent};
use crate::node::{Node, Setup, disk_usage, knob, store_dir};

const QUEUES: u32 = 10;
const MESSAGES: u32 = 10;
const FDS_MAX: usize = 2_000;
const WINDOW: usize = 256;

fn topic(number: u64) -> String {
    format!("many-{number:05}")
}

fn report(node: &Node, what: &str) {
    let (files, bytes) = disk_usage(&node.setup.store);
    say!(
        "many_queues, {what}: RSS {} MiB, {} fds, {files} files of {} MiB, serving after {:?}",
        node.rss_bytes() >> 20,
        node.fd_count(),
        bytes >> 20,
        node.serving_after
    );
}

#[test]
fn queues_cost_neither_descriptors_nor_files() {
    let topics = knob("RINGMQ_MANY_TOPICS", 500);
    let store = store_dir();
    let setup = Setup::new(store.path(), 2)
        .memory(512 << 20)
        .set("mappedFileSizeCommitLog=268435456");
    let mut node = setup.start();
    let mut connection = node.connect();
    let begun = Instant::now();
    let requests = (0..topics).map(|number| create_topic(&topic(number), QUEUES));
    pipeline(&mut connection, requests);
    say!("many_queues: {topics} topics made in {:?}", begun.elapsed());
    let begun = Instant::now();
    let requests = (0..topics).flat_map(|number| {
        (0..QUEUES).map(move |queue| {
            let messages: Vec<Message> = (0..MESSAGES)
                .map(|message| {
                    let body = format!("{number} {queue} {message}");
                    Message::new(&topic(number), queue as i32, body)
                })
                .collect();
            send_batch(&messages)
        })
    });
    pipeline(&mut connection, requests);
    say!(
        "many_queues: {} messages in {:?}",
        topics * 100,
        begun.elapsed()
    );
    report(&node, "filled");
    assert!(node.fd_count() < FDS_MAX, "{} descriptors", node.fd_count());
    assert!(node.terminate().success());
    let mut node = setup.start();
    report(&node, "after TERM");
    node.kill();
    let node = setup.start();
    report(&node, "after kill -9");
    assert!(node.fd_count() < FDS_MAX, "{} descriptors", node.fd_count());
    let (files, _) = disk_usage(&setup.store);
    assert!(files < FDS_MAX, "{files} files");
    let mut connection = node.connect();
    // Every queue is looked at where that takes no time, and a sample of them where there are very many.
    let step = (topics / 1_000).max(1) as usize;
    for number in (0..topics).step_by(step) {
        for queue in 0..QUEUES {
            let records = connection
                .read_queue(&topic(number), queue as i32, 0)
                .unwrap();
            assert_eq!(
                records.len(),
                MESSAGES as usize,
                "{} / {queue}",
                topic(number)
            );
            for (message, record) in records.iter().enumerate() {
                let body = format!("{number} {queue} {message}").into_bytes();
                assert_eq!(record.body, body);
            }
        }
    }
}

/// Many requests in flight; each has to succeed.
fn pipeline(
    connection: &mut crate::client::Connection,
    requests: impl Iterator<Item = crate::client::Command>,
) {
    let mut waiting = 0;
    let settle = |connection: &mut crate::client::Connection| {
        let answer = connection.next_answer().unwrap();
        if answer.fields.contains_key("queueOffset") {
            assert_eq!(sent(answer).unwrap().queue_offset, 0);
        } else {
            assert_eq!(answer.code, 0, "{answer:?}");
        }
    };
    for request in requests {
        connection.start(&request).unwrap();
        waiting += 1;
        if waiting >= WINDOW {
            settle(connection);
            waiting -= 1;
        }
    }
    for _ in 0..waiting {
        settle(connection);
    }
}
