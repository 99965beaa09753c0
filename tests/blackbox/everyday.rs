//! What clients do all day, for each number of shards. These tests also run against the original (`RINGMQ_AGAINST`).

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::client::{
    Command, Connection, Encoding, Failure, Message, Pull, answer, code, now_ms, pulled, sent,
};
use crate::node::{Node, Setup, store_dir};

/// Names that no earlier run against the same server used.
fn unique(prefix: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{prefix}-{}-{}-{number}", now_ms(), std::process::id())
}

fn with_shards(test: impl Fn(&Node)) {
    for shards in [1, 2, 4] {
        let store = store_dir();
        let mut node = Node::for_everyday(store.path(), shards);
        println!("with {shards} shards");
        test(&node);
        assert!(node.is_alive(), "the broker ended");
    }
}

fn bodies(connection: &mut Connection, topic: &str, queue_id: i32) -> Vec<String> {
    let records = connection.read_queue(topic, queue_id, 0).unwrap();
    for (offset, record) in records.iter().enumerate() {
        assert_eq!(record.queue_offset, offset as i64, "{topic}/{queue_id}");
        assert_eq!((record.topic.as_str(), record.queue_id), (topic, queue_id));
    }
    records
        .into_iter()
        .map(|record| String::from_utf8(record.body).unwrap())
        .collect()
}

#[test]
fn a_message_comes_back_as_it_was_sent() {
    with_shards(|node| {
        let topic = unique("whole");
        let mut connection = node.connect();
        connection.create_topic(&topic, 4).unwrap();
        for encoding in [Encoding::Json, Encoding::Binary] {
            connection.encoding = encoding;
            let mut message = Message::new(&topic, 2, "a body, ünïcode \u{1F680}")
                .property("TAGS", "red")
                .property("KEYS", "k1 k2")
                .property("UNIQ_KEY", "0A0000010000000000000000000000AA")
                .property("colour", "grün \"quoted\" \\ and \n a line");
            message.flag = 7;
            let before = now_ms();
            let sent = connection.send(&message).unwrap();
            assert_eq!(sent.queue_id, 2);
            assert_eq!(sent.msg_id.len(), 32, "{}", sent.msg_id);
            node.settle();
            let pulled = connection
                .pull(&Pull::new(&topic, 2, sent.queue_offset))
                .unwrap();
            let record = &pulled.records[0];
            assert_eq!(record.body, message.body);
            assert_eq!(record.topic, topic);
            assert_eq!((record.queue_id, record.flag), (2, 7));
            assert_eq!(record.queue_offset, sent.queue_offset);
            assert_eq!(record.reconsume_times, 0);
            for (name, value) in &message.properties {
                assert_eq!(record.properties.get(name), Some(value), "{name}");
            }
            let clock = before - 60_000..now_ms() + 60_000;
            assert!(clock.contains(&record.store_timestamp));
            assert!(clock.contains(&record.born_timestamp));
            assert!(record.born_host.ip().is_loopback());
            assert_eq!(record.store_host.port(), node.broker.port());
            let position = i64::from_str_radix(&sent.msg_id[16..], 16).unwrap();
            assert_eq!(record.physical_offset, position, "msgId holds the place");
        }
    });
}

#[test]
fn the_old_send_and_the_batch_are_stored_like_the_new_one() {
    with_shards(|node| {
        let topic = unique("forms");
        let mut connection = node.connect();
        connection.create_topic(&topic, 1).unwrap();
        let old = Message::new(&topic, 0, "old").property("p", "1");
        let answer = connection.ask(&old.send_v1()).unwrap();
        assert_eq!(sent(answer).unwrap().queue_offset, 0);
        let batch: Vec<Message> = (0..5)
            .map(|number| {
                Message::new(&topic, 0, format!("batch {number}"))
                    .property("n", &number.to_string())
            })
            .collect();
        let sent = connection.send_batch(&batch).unwrap();
        assert_eq!(sent.queue_offset, 1);
        assert_eq!(sent.msg_id.split(',').count(), 5);
        node.settle();
        let records = connection.read_queue(&topic, 0, 0).unwrap();
        assert_eq!(records.len(), 6);
        for (number, record) in records[1..].iter().enumerate() {
            assert_eq!(record.body, format!("batch {number}").into_bytes());
            assert_eq!(record.properties["n"], number.to_string());
            assert_eq!(record.queue_offset, 1 + number as i64);
        }
    });
}

#[test]
fn a_oneway_send_arrives_and_is_not_answered() {
    with_shards(|node| {
        let topic = unique("oneway");
        let mut connection = node.connect();
        connection.create_topic(&topic, 1).unwrap();
        for number in 0..10 {
            let message = Message::new(&topic, 0, format!("{number}"));
            connection.start(&message.send_v2().oneway()).unwrap();
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while connection.max_offset(&topic, 0).unwrap() < 10 {
            assert!(Instant::now() < deadline, "oneway sends did not arrive");
            std::thread::sleep(Duration::from_millis(10));
        }
        // An answer to a oneway request would have come before the answers above and been kept.
        assert_eq!(bodies(&mut connection, &topic, 0).len(), 10);
        connection
            .set_read_timeout(Duration::from_millis(200))
            .unwrap();
        assert!(matches!(connection.receive(), Err(Failure::Io(_))));
    });
}

#[test]
fn many_requests_in_flight_are_each_answered_once() {
    with_shards(|node| {
        let topic = unique("pipeline");
        let mut connection = node.connect();
        connection.create_topic(&topic, 4).unwrap();
        let mut waiting = BTreeMap::new();
        for number in 0..2_000 {
            let message = Message::new(&topic, number % 4, format!("{number}"));
            let opaque = connection.start(&message.send_v2()).unwrap();
            waiting.insert(opaque, number);
        }
        let mut offsets = HashSet::new();
        while !waiting.is_empty() {
            let answer = connection.next_answer().unwrap();
            let number = waiting
                .remove(&answer.opaque)
                .expect("an answer to something that waits");
            let sent = sent(answer).unwrap();
            assert_eq!(sent.queue_id, number % 4);
            assert!(
                offsets.insert((sent.queue_id, sent.queue_offset)),
                "two messages at one offset"
            );
        }
        node.settle();
        let mut all = HashSet::new();
        for queue_id in 0..4 {
            all.extend(bodies(&mut connection, &topic, queue_id));
        }
        assert_eq!(all.len(), 2_000);
    });
}

#[test]
fn a_parked_pull_does_not_hold_up_its_connection_and_wakes_on_arrival() {
    with_shards(|node| {
        let topic = unique("park");
        let mut connection = node.connect();
        connection.create_topic(&topic, 2).unwrap();
        connection.create_group("blackbox-consumer").unwrap();
        for round in 0..20 {
            let mut pull = Pull::new(&topic, 0, round);
            pull.suspend_ms = 15_000;
            let parked = connection.start(&pull.command()).unwrap();
            // The answer to a later request comes first.
            assert_eq!(connection.max_offset(&topic, 1).unwrap(), 0);
            let begun = Instant::now();
            let message = Message::new(&topic, 0, format!("{round}"));
            assert_eq!(connection.send(&message).unwrap().queue_offset, round);
            let pulled = pulled(connection.wait(parked).unwrap()).unwrap();
            assert_eq!(pulled.code, answer::SUCCESS);
            assert_eq!(pulled.records[0].body, message.body);
            assert_eq!(pulled.next_offset, round + 1);
            assert!(
                begun.elapsed() < Duration::from_secs(8),
                "{:?}",
                begun.elapsed()
            );
        }
    });
}

#[test]
fn a_pull_that_finds_nothing_waits_and_then_says_so() {
    with_shards(|node| {
        let topic = unique("patience");
        let mut connection = node.connect();
        connection.create_topic(&topic, 1).unwrap();
        connection.send(&Message::new(&topic, 0, "x")).unwrap();
        node.settle();
        let mut pull = Pull::new(&topic, 0, 1);
        let begun = Instant::now();
        let pulled = connection.pull(&pull).unwrap();
        assert_eq!(pulled.code, answer::PULL_NOT_FOUND);
        assert!(
            begun.elapsed() < Duration::from_secs(5),
            "it was not to wait"
        );
        pull.suspend_ms = 1_000;
        let begun = Instant::now();
        let pulled = connection.pull(&pull).unwrap();
        assert_eq!(pulled.code, answer::PULL_NOT_FOUND);
        assert_eq!((pulled.next_offset, pulled.max_offset), (1, 1));
        // The original looks at its parked pulls every five seconds.
        let waited = begun.elapsed();
        assert!(waited >= Duration::from_millis(900), "{waited:?}");
        assert!(waited < Duration::from_secs(9), "{waited:?}");
    });
}

#[test]
fn pulls_outside_the_queue_are_corrected() {
    with_shards(|node| {
        let topic = unique("bounds");
        let mut connection = node.connect();
        connection.create_topic(&topic, 2).unwrap();
        for number in 0..5 {
            let message = Message::new(&topic, 0, format!("{number}"));
            connection.send(&message).unwrap();
        }
        node.settle();
        let beyond = connection.pull(&Pull::new(&topic, 0, 99)).unwrap();
        assert_eq!(
            (beyond.code, beyond.next_offset),
            (answer::PULL_OFFSET_MOVED, 5)
        );
        let empty = connection.pull(&Pull::new(&topic, 1, 0)).unwrap();
        assert_eq!((empty.code, empty.next_offset), (answer::PULL_NOT_FOUND, 0));
        let illegal = connection.pull(&Pull::new(&topic, 2, 0)).unwrap_err();
        assert_eq!(
            illegal.code(),
            Some(answer::INVALID_PARAMETER),
            "{illegal:?}"
        );
        let unknown = connection
            .pull(&Pull::new(&unique("unknown"), 0, 0))
            .unwrap_err();
        assert_eq!(unknown.code(), Some(answer::TOPIC_NOT_EXIST), "{unknown:?}");
        let mut two = Pull::new(&topic, 0, 1);
        two.messages_max = 2;
        let two = connection.pull(&two).unwrap();
        assert_eq!(two.records.len(), 2);
        assert_eq!((two.next_offset, two.min_offset, two.max_offset), (3, 0, 5));
    });
}

#[test]
fn tags_select_messages() {
    with_shards(|node| {
        let topic = unique("tags");
        let mut connection = node.connect();
        connection.create_topic(&topic, 1).unwrap();
        for number in 0..30 {
            let message = Message::new(&topic, 0, format!("{number}"));
            let message = match number % 3 {
                0 => message,
                1 => message.property("TAGS", "red"),
                _ => message.property("TAGS", "blue"),
            };
            connection.send(&message).unwrap();
        }
        node.settle();
        for (tags, wanted) in [("red", 10), ("red || blue", 20), ("*", 30)] {
            let mut pull = Pull::new(&topic, 0, 0);
            pull.tags = tags.into();
            let pulled = connection.pull(&pull).unwrap();
            assert_eq!(pulled.records.len(), wanted, "{tags}");
        }
        let mut pull = Pull::new(&topic, 0, 0);
        pull.tags = "green".into();
        let pulled = connection.pull(&pull).unwrap();
        assert_eq!(pulled.code, answer::PULL_RETRY_IMMEDIATELY);
        assert_eq!(pulled.next_offset, 30);
    });
}

#[test]
fn queue_and_consumer_offsets_are_what_was_stored() {
    with_shards(|node| {
        let (topic, group) = (unique("offsets"), unique("group"));
        let mut connection = node.connect();
        connection.create_topic(&topic, 2).unwrap();
        connection.create_group(&group).unwrap();
        assert_eq!(connection.max_offset(&topic, 0).unwrap(), 0);
        let mut store_times = Vec::new();
        for number in 0..3 {
            let message = Message::new(&topic, 0, format!("{number}"));
            connection.send(&message).unwrap();
            std::thread::sleep(Duration::from_millis(20));
        }
        node.settle();
        for record in connection.read_queue(&topic, 0, 0).unwrap() {
            store_times.push(record.store_timestamp);
        }
        assert_eq!(connection.min_offset(&topic, 0).unwrap(), 0);
        assert_eq!(connection.max_offset(&topic, 0).unwrap(), 3);
        assert_eq!(
            connection.earliest_store_time(&topic, 0).unwrap(),
            store_times[0]
        );
        let mut search = |timestamp, boundary| {
            connection
                .search_offset(&topic, 0, timestamp, boundary)
                .unwrap()
        };
        assert_eq!(search(store_times[1], "LOWER"), 1);
        assert_eq!(search(store_times[1], "UPPER"), 1);
        assert_eq!(search(store_times[1] + 1, "LOWER"), 2);
        assert_eq!(search(store_times[1] - 1, "UPPER"), 0);
        assert_eq!(search(store_times[2] + 60_000, "LOWER"), 3);

        assert_eq!(connection.consumer_offset(&group, &topic, 0).unwrap(), None);
        connection.commit_offset(&group, &topic, 0, 2).unwrap();
        assert_eq!(
            connection.consumer_offset(&group, &topic, 0).unwrap(),
            Some(2)
        );
        assert_eq!(connection.consumer_offset(&group, &topic, 1).unwrap(), None);
        let mut pull = Pull::new(&topic, 0, 2);
        pull.group = group.clone();
        pull.commit = Some(3);
        connection.pull(&pull).unwrap();
        assert_eq!(
            connection.consumer_offset(&group, &topic, 0).unwrap(),
            Some(3)
        );
    });
}

#[test]
fn a_deleted_topic_comes_back_empty() {
    with_shards(|node| {
        let topic = unique("deleted");
        let mut connection = node.connect();
        connection.create_topic(&topic, 2).unwrap();
        for number in 0..10 {
            let message = Message::new(&topic, number % 2, format!("{number}"));
            connection.send(&message).unwrap();
        }
        node.settle();
        connection.delete_topic(&topic).unwrap();
        let gone = connection.pull(&Pull::new(&topic, 0, 0)).unwrap_err();
        assert_eq!(gone.code(), Some(answer::TOPIC_NOT_EXIST), "{gone:?}");
        connection.create_topic(&topic, 2).unwrap();
        assert_eq!(connection.max_offset(&topic, 0).unwrap(), 0);
        let again = Message::new(&topic, 0, "again");
        assert_eq!(connection.send(&again).unwrap().queue_offset, 0);
        node.settle();
        assert_eq!(bodies(&mut connection, &topic, 0), ["again"]);
    });
}

#[test]
fn the_first_send_makes_a_topic_and_its_route() {
    with_shards(|node| {
        let topic = unique("auto");
        let mut connection = node.connect();
        let mut namesrv = node.connect_namesrv();
        let unknown = namesrv.route(&topic).unwrap_err();
        assert_eq!(unknown.code(), Some(answer::TOPIC_NOT_EXIST), "{unknown:?}");
        connection.send(&Message::new(&topic, -1, "first")).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        let route = loop {
            match namesrv.route(&topic) {
                Ok(route) => break route,
                Err(failure) => assert!(Instant::now() < deadline, "{failure:?}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let address = route["brokerDatas"][0]["brokerAddrs"]["0"].as_str();
        assert_eq!(address, Some(node.broker.to_string().as_str()), "{route}");
        let queues = &route["queueDatas"][0];
        assert_eq!(queues["writeQueueNums"], 4, "{route}");
        assert_eq!(queues["perm"], 6, "{route}");
    });
}

#[test]
fn group_members_are_listed_and_told_of_each_other() {
    with_shards(|node| {
        let (topic, group) = (unique("members"), unique("group"));
        let (mut first, mut second) = (node.connect(), node.connect());
        first.create_topic(&topic, 2).unwrap();
        first.heartbeat("client-1", &group, &topic).unwrap();
        assert_eq!(first.consumers(&group).unwrap(), ["client-1"]);
        // The first one as well: without the notice Apache's pull consumer would wait for its next turn.
        wait_for_notice(&mut first, &group);
        first.pushed.clear();
        second.heartbeat("client-2", &group, &topic).unwrap();
        let mut members = first.consumers(&group).unwrap();
        members.sort();
        assert_eq!(members, ["client-1", "client-2"]);
        wait_for_notice(&mut first, &group);
        first.pushed.clear();
        second.unregister("client-2", &group).unwrap();
        wait_for_notice(&mut first, &group);
        assert_eq!(first.consumers(&group).unwrap(), ["client-1"]);
        // A connection that is cut leaves its groups too.
        second.heartbeat("client-2", &group, &topic).unwrap();
        wait_for_notice(&mut first, &group);
        first.pushed.clear();
        drop(second);
        wait_for_notice(&mut first, &group);
        assert_eq!(first.consumers(&group).unwrap(), ["client-1"]);
    });
}

/// NOTIFY_CONSUMER_IDS_CHANGED for a group; asks for something else meanwhile, so that frames are read.
fn wait_for_notice(connection: &mut Connection, group: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let is_notice = |command: &Command| {
        command.code == code::NOTIFY_CONSUMER_IDS_CHANGED
            && command.fields.get("consumerGroup").map(String::as_str) == Some(group)
    };
    while !connection.pushed.iter().any(is_notice) {
        assert!(
            Instant::now() < deadline,
            "no notice of a change in {group}"
        );
        std::thread::sleep(Duration::from_millis(10));
        connection.max_offset("TBW102", 0).unwrap();
    }
}

#[test]
fn a_queue_lock_belongs_to_one_client() {
    with_shards(|node| {
        let (topic, group) = (unique("locks"), unique("group"));
        let mut connection = node.connect();
        connection.create_topic(&topic, 4).unwrap();
        let route = node.connect_namesrv().route(&topic);
        let broker = match &route {
            Ok(route) => route["brokerDatas"][0]["brokerName"].as_str().unwrap(),
            Err(failure) => panic!("{failure:?}"),
        };
        let mut lock = |client: &str, queues: &[i32]| {
            connection
                .lock(client, &group, broker, &topic, queues)
                .unwrap()
        };
        assert_eq!(lock("c1", &[0, 1]), [0, 1]);
        assert_eq!(lock("c2", &[0, 1, 2, 3]), [2, 3]);
        assert_eq!(lock("c1", &[0, 1, 2]), [0, 1], "a renewal");
        connection
            .unlock("c1", &group, broker, &topic, &[0])
            .unwrap();
        let held = connection
            .lock("c2", &group, broker, &topic, &[0, 1])
            .unwrap();
        assert_eq!(held, [0]);
    });
}

#[test]
fn refused_requests_say_why_and_keep_the_connection() {
    with_shards(|node| {
        let topic = unique("refused");
        let mut connection = node.connect();
        connection.create_topic(&topic, 1).unwrap();
        let unknown = Command::request(31_999, &[], Vec::new());
        let refused = connection.ask(&unknown).unwrap();
        assert_eq!(refused.code, answer::REQUEST_CODE_NOT_SUPPORTED);
        assert!(refused.remark.contains("31999"), "{}", refused.remark);
        let no_queue = connection.send(&Message::new(&topic, 9, "x")).unwrap_err();
        assert_eq!(
            no_queue.code(),
            Some(answer::INVALID_PARAMETER),
            "{no_queue:?}"
        );
        let too_large = Message::new(&topic, 0, vec![b'x'; (4 << 20) + 1]);
        let too_large = connection.send(&too_large).unwrap_err();
        assert_eq!(
            too_large.code(),
            Some(answer::MESSAGE_ILLEGAL),
            "{too_large:?}"
        );
        assert!(!too_large.remark().is_empty());
        let largest = Message::new(&topic, 0, vec![b'x'; 4 << 20]);
        assert_eq!(connection.send(&largest).unwrap().queue_offset, 0);
        node.settle();
        let records = connection.read_queue(&topic, 0, 0).unwrap();
        assert_eq!(records[0].body.len(), 4 << 20);
    });
}

#[test]
fn a_consumer_far_behind_reads_what_is_no_longer_in_memory() {
    let store = store_dir();
    let node = Setup::new(store.path(), 2).memory(64 << 20).start();
    let mut connection = node.connect();
    connection.create_topic("backlog", 4).unwrap();
    // 128 MiB, twice the memory that it may use.
    let body = |number: usize| vec![(number % 251) as u8; 64 << 10];
    let mut waiting = 0;
    for number in 0..2_048 {
        let message = Message::new("backlog", (number % 4) as i32, body(number));
        connection.start(&message.send_v2()).unwrap();
        waiting += 1;
        if waiting == 16 {
            sent(connection.next_answer().unwrap()).unwrap();
            waiting -= 1;
        }
    }
    while waiting > 0 {
        sent(connection.next_answer().unwrap()).unwrap();
        waiting -= 1;
    }
    let mut counts = BTreeMap::new();
    for queue_id in 0..4 {
        let records = connection.read_queue("backlog", queue_id, 0).unwrap();
        for (offset, record) in records.iter().enumerate() {
            assert_eq!(record.queue_offset, offset as i64);
            assert!(record.body.iter().all(|byte| *byte == record.body[0]));
            assert_eq!(record.body.len(), 64 << 10);
            *counts.entry(record.body[0]).or_insert(0) += 1;
        }
    }
    let mut expected = BTreeMap::new();
    for number in 0..2_048_usize {
        *expected.entry((number % 251) as u8).or_insert(0) += 1;
    }
    assert_eq!(counts, expected);
    println!(
        "RSS after a backlog of 128 MiB: {} MiB",
        node.rss_bytes() >> 20
    );
}
