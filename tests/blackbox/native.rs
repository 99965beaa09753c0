//! The native protocol beside remoting, over real sockets: what one writes the other reads, byte for byte; broken frames
//! hurt nobody else; an acknowledged record survives kill -9.
//!
//! The remoting side is this test's own client, which shares no code with the product; the native side is `ringmq-client`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use ringmq_client::{
    BatchOptions, Client, Error, Message, ProducerOptions, Queue, Received, StartAt,
};
use ringmq_wire_native::frame::next_frame;
use ringmq_wire_native::message::{Encoder, Envelope, Hello, Message as Body};

#[path = "../../client/examples/many_records.rs"]
mod many_records;
#[path = "../../client/examples/send_and_receive.rs"]
mod send_and_receive;

use crate::client::{self, Pull};
use crate::node::{Node, Setup, knob, signal, store_dir};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

async fn connect(address: SocketAddr) -> Client {
    Client::connect(address.to_string()).await.unwrap()
}

/// All messages of a queue by remoting, as raw records.
fn pull_all(node: &Node, topic: &str, queue_id: u32) -> Vec<Vec<u8>> {
    let mut connection = node.connect();
    let mut records: Vec<Vec<u8>> = Vec::new();
    loop {
        let pull = Pull::new(topic, queue_id as i32, records.len() as i64);
        let answer = connection.ask(&pull.command()).unwrap();
        if answer.code != client::answer::SUCCESS {
            return records;
        }
        let mut rest = &answer.body[..];
        while !rest.is_empty() {
            let bytes = u32::from_be_bytes(*rest.first_chunk().unwrap()) as usize;
            records.push(rest[..bytes].to_vec());
            rest = &rest[bytes..];
        }
    }
}

/// So many messages of a topic by the native protocol.
async fn read_all(client: &Client, topic: &str, count: usize) -> Vec<Received> {
    let mut consumer = client.consumer("native-readers");
    consumer
        .assign_topic(topic, StartAt::Earliest)
        .await
        .unwrap();
    let mut found = Vec::new();
    while found.len() < count {
        let next = tokio::time::timeout(Duration::from_secs(20), consumer.next()).await;
        found.push(next.expect("a message in time").unwrap());
    }
    found
}

/// On one shard, and on two with a port for each: there a client talks to the owners.
fn setups() -> Vec<(tempfile::TempDir, Setup)> {
    [1, 2]
        .into_iter()
        .map(|shards| {
            let store = store_dir();
            let setup = Setup::new(store.path(), shards);
            let port = setup.namesrv_port + 5;
            let setup = match shards {
                1 => setup,
                _ => setup.set(&format!("nativePort={port}")),
            };
            (store, setup)
        })
        .collect()
}

#[test]
fn native_records_are_pulled_by_remoting_byte_for_byte_and_the_other_way_round() {
    for (_store, setup) in setups() {
        let node = setup.start();
        let runtime = runtime();
        runtime.block_on(async {
            let client = connect(node.broker).await;
            client.create_topic("native", 4).await.unwrap();
            let producer = client.producer();
            let mut deliveries = Vec::new();
            for number in 0..500usize {
                let body = vec![number as u8; 1 + number * 37 % 5000];
                let message = Message::new("native", body)
                    .queue(number as u32 % 4)
                    .tag("red")
                    .keys(&format!("key-{number}"))
                    .property("number", &number.to_string());
                deliveries.push(producer.submit(message).await.unwrap());
            }
            let mut receipts = Vec::new();
            for delivery in deliveries {
                receipts.push(delivery.await.unwrap());
            }
            for (number, receipt) in receipts.iter().enumerate() {
                assert_eq!(receipt.queue_id, number as u32 % 4);
                assert_eq!(receipt.queue_offset, number as i64 / 4, "in order");
            }
            let mut native: BTreeMap<(u32, i64), Vec<u8>> = BTreeMap::new();
            for received in read_all(&client, "native", 500).await {
                let key = (received.queue_id(), received.queue_offset());
                let receipt = receipts
                    .iter()
                    .find(|receipt| (receipt.queue_id, receipt.queue_offset) == key)
                    .unwrap();
                assert_eq!(receipt.physical_offset, received.physical_offset());
                assert_eq!(receipt.store_timestamp_ms, received.store_timestamp_ms());
                assert_eq!(Some(&receipt.unique_id[..]), received.unique_id());
                native.insert(key, received.record().to_vec());
            }
            for queue_id in 0..4 {
                let pulled = pull_all(&node, "native", queue_id);
                let read: Vec<Vec<u8>> = native
                    .range((queue_id, 0)..(queue_id + 1, 0))
                    .map(|(_, record)| record.clone())
                    .collect();
                assert_eq!(pulled, read, "queue {queue_id}");
            }
            // A record that remoting wrote, with the key index and the query by key over a native one.
            let mut remoting = node.connect();
            remoting.create_topic("remoting", 1).unwrap();
            for number in 0..100 {
                let body = format!("body {number}").repeat(1 + number % 30);
                let message = client::Message::new("remoting", 0, body.as_bytes())
                    .property("TAGS", "blue")
                    .property("KEYS", "k");
                remoting.send(&message).unwrap();
            }
            let read: Vec<Vec<u8>> = read_all(&client, "remoting", 100)
                .await
                .iter()
                .map(|received| received.record().to_vec())
                .collect();
            assert_eq!(read, pull_all(&node, "remoting", 0));
        });
    }
}

#[test]
fn filters_offsets_and_seeks_do_what_they_do_by_remoting() {
    for (_store, setup) in setups() {
        let node = setup.start();
        runtime().block_on(async {
            let client = connect(node.broker).await;
            client.create_topic("filtered", 2).await.unwrap();
            let producer = client.producer();
            for number in 0..200 {
                let color = if number % 4 == 0 { "red" } else { "green" };
                let message = Message::new("filtered", number.to_string())
                    .tag(color)
                    .property("n", &number.to_string())
                    .order_key("one");
                producer.send(message).await.unwrap();
            }
            let options = |tags: &str, sql: Option<&str>| ringmq_client::ConsumerOptions {
                tags: tags.to_owned(),
                sql: sql.map(str::to_owned),
                max_wait: Duration::from_secs(1),
                ..ringmq_client::ConsumerOptions::default()
            };
            let mut red = client.consumer_with("red-readers", options("red", None));
            red.assign_topic("filtered", StartAt::Earliest)
                .await
                .unwrap();
            for number in (0..200).step_by(4) {
                assert_eq!(red.next().await.unwrap().body(), number.to_string());
            }
            let mut sql = client.consumer_with(
                "sql-readers",
                options("*", Some("n > 150 AND TAGS = 'green'")),
            );
            sql.assign_topic("filtered", StartAt::Earliest)
                .await
                .unwrap();
            for number in (151..200).filter(|number| number % 4 != 0) {
                assert_eq!(sql.next().await.unwrap().body(), number.to_string());
            }
            let mut bad = client.consumer_with("bad", options("*", Some("n >")));
            bad.assign_topic("filtered", StartAt::Earliest)
                .await
                .unwrap();
            let error = bad.next().await.unwrap_err();
            assert!(matches!(error, Error::Queue { code: 23, .. }), "{error}");

            // What is committed natively is where remoting goes on, and a new consumer starts there.
            red.commit().await.unwrap();
            let queues = client.queues("filtered").await.unwrap();
            let known = client
                .offsets(Some("red-readers"), &queues, None)
                .await
                .unwrap();
            let (at, used) = known
                .iter()
                .enumerate()
                .find(|(_, queue)| queue.max_offset > 0)
                .unwrap();
            assert_eq!(used.committed, Some(197), "behind the last red one");
            assert_eq!((used.min_offset, used.max_offset), (0, 200));
            let mut remoting = node.connect();
            let asked = remoting.consumer_offset("red-readers", "filtered", at as i32);
            assert_eq!(asked.unwrap(), Some(197));
            let mut again = client.consumer_with("red-readers", options("*", None));
            again
                .assign_topic("filtered", StartAt::Committed)
                .await
                .unwrap();
            assert_eq!(again.next().await.unwrap().body(), "197");
            again.seek(&queues[at], 5);
            assert_eq!(again.next().await.unwrap().body(), "5");
            again.seek(&queues[at], 1_000_000);
            // Behind the end there is nothing: the queue goes on at its end.
            let producer = client.producer();
            tokio::time::sleep(Duration::from_millis(300)).await;
            let late = async { tokio::time::timeout(Duration::from_secs(10), again.next()).await };
            let send = async {
                tokio::time::sleep(Duration::from_millis(300)).await;
                producer
                    .send(Message::new("filtered", "late").order_key("one"))
                    .await
                    .unwrap();
            };
            let (late, ()) = tokio::join!(late, send);
            assert_eq!(late.unwrap().unwrap().body(), "late");
        });
    }
}

#[test]
fn what_is_refused_says_why_and_the_connection_goes_on() {
    let store = store_dir();
    let node = Setup::new(store.path(), 2)
        .set("autoCreateTopicEnable=false")
        .start();
    runtime().block_on(async {
        let client = connect(node.broker).await;
        let producer = client.producer();
        let error = producer
            .send(Message::new("nowhere", "x"))
            .await
            .unwrap_err();
        assert!(
            matches!(&error, Error::Topic(error) if error.code == 17),
            "{error}"
        );
        node.connect().create_topic("here", 1).unwrap();
        for (message, word) in [
            (Message::new("here", "x").property("DELAY", "3"), "later"),
            (
                Message::new("here", "x").property("TRAN_MSG", "true"),
                "transaction",
            ),
            (Message::new("here", "x").property("POP_CK", "0"), "POP_CK"),
        ] {
            let error = producer.send(message).await.unwrap_err();
            assert!(
                matches!(&error, Error::Refused { code: 13, remark } if remark.contains(word)),
                "{error}"
            );
        }
        let error = producer
            .send(Message::new("here", "x").queue(7))
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Refused { code: 29, .. }), "{error}");
        producer.send(Message::new("here", "good")).await.unwrap();
        producer
            .send_oneway(Message::new("here", "silent"))
            .await
            .unwrap();
        let found = read_all(&client, "here", 2).await;
        assert_eq!(found[1].body(), "silent");
        client.ping().await.unwrap();
    });
}

#[test]
fn an_idle_fetch_names_no_queue_and_an_old_one_ends_when_the_next_one_comes() {
    let store = store_dir();
    let node = Setup::new(store.path(), 1).start();
    let mut socket = Raw::hello(node.broker);
    node.connect().create_topic("idle", 3).unwrap();
    let fetch = |add: &[u32], wait_ms| {
        Body::Fetch(ringmq_wire_native::message::Fetch {
            session: 9,
            group: "idlers",
            add: add
                .iter()
                .map(|&queue_id| ringmq_wire_native::message::FetchQueue {
                    handle: 100 + queue_id,
                    topic: "idle",
                    queue_id,
                    ..Default::default()
                })
                .collect(),
            remove: Vec::new(),
            min_bytes: 1,
            max_bytes: 1 << 20,
            max_wait_ms: wait_ms,
        })
    };
    socket.say(5, &fetch(&[0, 1, 2], 100));
    let (id, bytes) = socket.hear(|reply| match reply {
        Body::FetchReply(reply) => assert!(reply.queues.is_empty(), "{reply:?}"),
        other => panic!("{other:?}"),
    });
    assert_eq!(id, 5);
    assert!(bytes <= 80, "an empty answer has {bytes} bytes");
    socket.say(6, &fetch(&[], 60_000));
    std::thread::sleep(Duration::from_millis(100));
    socket.say(7, &fetch(&[], 60_000));
    assert_eq!(socket.hear(|_| {}).0, 6, "the next one ends it");
    node.connect()
        .send(&client::Message::new("idle", 1, "news"))
        .unwrap();
    let (id, _) = socket.hear(|reply| match reply {
        Body::FetchReply(reply) => {
            assert_eq!(reply.queues.len(), 1);
            assert_eq!((reply.queues[0].handle, reply.queues[0].records), (101, 1));
        }
        other => panic!("{other:?}"),
    });
    assert_eq!(id, 7);
}

#[test]
fn the_examples_of_the_client_run() {
    for (_store, setup) in setups() {
        let node = setup.start();
        let address = node.broker.to_string();
        runtime().block_on(async {
            send_and_receive::run(&address).await.unwrap();
            many_records::run(&address).await.unwrap();
        });
    }
}

/// A native connection byte by byte.
pub struct Raw {
    socket: TcpStream,
    input: bytes::BytesMut,
}

impl Raw {
    fn open(broker: SocketAddr) -> Self {
        let socket = TcpStream::connect(broker).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        Self {
            socket,
            input: bytes::BytesMut::new(),
        }
    }

    pub fn hello(broker: SocketAddr) -> Self {
        let mut raw = Self::open(broker);
        raw.say(
            1,
            &Body::Hello(Hello {
                version: 1,
                ..Hello::default()
            }),
        );
        raw.hear(|reply| assert!(matches!(reply, Body::HelloReply(_)), "{reply:?}"));
        raw
    }

    pub fn say(&mut self, id: u64, message: &Body<'_>) {
        let frame = Encoder::new().encode(id, message, 0).to_vec();
        self.socket.write_all(&frame).unwrap();
    }

    /// The next frame: its id and length.
    pub fn hear(&mut self, look: impl FnOnce(Body<'_>)) -> (u64, usize) {
        loop {
            let before = self.input.len();
            if let Some(frame) = next_frame(&mut self.input).unwrap() {
                let envelope = Envelope::read(&frame.header).unwrap();
                let id = envelope.id;
                look(envelope.message);
                return (id, before - self.input.len());
            }
            let mut bytes = [0; 4096];
            let read = self.socket.read(&mut bytes).unwrap();
            assert!(read > 0, "the broker closed the connection");
            self.input.extend_from_slice(&bytes[..read]);
        }
    }
}

fn frame_of_older(name: &str) -> Vec<u8> {
    let path = format!(
        "{}/wire-native/tests/older/{name}.bin",
        env!("CARGO_MANIFEST_DIR")
    );
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A header that is like the one before it is not read in the same way, and is answered in the same way.
#[test]
fn a_produce_hears_each_time_that_the_slaves_are_missing() {
    let store = store_dir();
    let setup = Setup::new(store.path(), 1).set("brokerRole=SYNC_MASTER");
    let node = setup.start();
    node.connect().create_topic("older", 2).unwrap();
    let mut raw = Raw::open(node.broker);
    raw.socket.write_all(&frame_of_older("hello")).unwrap();
    raw.hear(|reply| assert!(matches!(reply, Body::HelloReply(_)), "{reply:?}"));
    let mut last = -1;
    for round in 0..3 {
        raw.socket.write_all(&frame_of_older("produce")).unwrap();
        raw.hear(|reply| match reply {
            Body::ProduceReply(results) => {
                let result = &results[0];
                assert_eq!(result.code, client::answer::SLAVE_NOT_AVAILABLE);
                assert!(result.remark.contains("too few slaves"), "{result:?}");
                // It is stored all the same: two records each time.
                assert_eq!(result.queue_offset, 2 * round);
                assert!(result.physical_offset > last, "{result:?}");
                last = result.physical_offset;
            }
            other => panic!("{other:?}"),
        });
    }
}

/// Frames of version 1 as the first release wrote them, kept as bytes: a newer broker has to understand them.
#[test]
fn the_stored_frames_of_an_older_client_are_still_understood() {
    let store = store_dir();
    let node = Setup::new(store.path(), 2).start();
    node.connect().create_topic("older", 2).unwrap();
    let mut raw = Raw::open(node.broker);
    let stored = frame_of_older;
    raw.socket.write_all(&stored("hello")).unwrap();
    raw.hear(|reply| match reply {
        Body::HelloReply(reply) => assert_eq!(reply.version, 1),
        other => panic!("{other:?}"),
    });
    raw.socket.write_all(&stored("metadata")).unwrap();
    raw.hear(|reply| match reply {
        Body::MetadataReply(reply) => assert_eq!(reply.topics[0].queues.len(), 2),
        other => panic!("{other:?}"),
    });
    // A body that was damaged on its way is not stored.
    let mut damaged = stored("produce");
    let body = b"first of an older client";
    let at = damaged.windows(body.len()).position(|part| part == body);
    damaged[at.unwrap()] ^= 1;
    raw.socket.write_all(&damaged).unwrap();
    raw.hear(|reply| match reply {
        Body::ProduceReply(results) => assert_eq!(results[0].code, 13, "{results:?}"),
        other => panic!("{other:?}"),
    });
    raw.socket.write_all(&stored("produce")).unwrap();
    raw.hear(|reply| match reply {
        Body::ProduceReply(results) => {
            assert_eq!(
                (results[0].code, results[0].queue_offset),
                (0, 0),
                "{results:?}"
            );
            assert!(results[0].store_timestamp_ms > 0, "{results:?}");
        }
        other => panic!("{other:?}"),
    });
    raw.socket.write_all(&stored("fetch")).unwrap();
    raw.hear(|reply| match reply {
        Body::FetchReply(reply) => assert_eq!(reply.queues[0].records, 2),
        other => panic!("{other:?}"),
    });
    raw.socket.write_all(&stored("unknown")).unwrap();
    raw.hear(|reply| match reply {
        Body::Error { code: 3, .. } => {}
        other => panic!("{other:?}"),
    });
}

/// And those of a client that knows nothing of groups: it commits as it ever did, also where a group has members.
#[test]
fn a_client_without_groups_commits_as_before() {
    let store = store_dir();
    let node = Setup::new(store.path(), 2).start();
    node.connect().create_topic("older", 2).unwrap();
    node.connect().create_group("older-readers").unwrap();
    let mut raw = Raw::open(node.broker);
    for name in ["hello", "commit"] {
        let path = format!(
            "{}/wire-native/tests/older_2/{name}.bin",
            env!("CARGO_MANIFEST_DIR")
        );
        raw.socket.write_all(&std::fs::read(path).unwrap()).unwrap();
        raw.hear(|reply| match reply {
            Body::HelloReply(reply) => assert_eq!((reply.version, reply.features), (1, 0)),
            Body::OffsetCommitReply(results) => assert_eq!(results[0].code, 0),
            other => panic!("{other:?}"),
        });
    }
    let committed = node.connect().consumer_offset("older-readers", "older", 1);
    assert_eq!(committed.unwrap(), Some(2));
}

/// One broken native frame.
fn broken(random: &mut fastrand::Rng, whole: &[Vec<u8>]) -> Vec<u8> {
    let mut frame = random.choice(whole).unwrap().clone();
    match random.u8(..7) {
        0 | 1 => {
            for _ in 0..random.usize(1..8) {
                let at = random.usize(..frame.len());
                frame[at] ^= 1 << random.u8(..8);
            }
        }
        2 => frame.truncate(random.usize(..frame.len())),
        3 => {
            let lie = random.u32(..) >> random.u32(..32);
            frame[4..8].copy_from_slice(&lie.to_le_bytes());
        }
        4 => {
            let lie = random.u32(..) >> random.u32(..32);
            frame[8..12].copy_from_slice(&lie.to_le_bytes());
        }
        5 => {
            // Within the header and the payload only: the frame stays whole.
            for _ in 0..random.usize(1..40) {
                let at = random.usize(16..frame.len());
                frame[at] = random.u8(..);
            }
        }
        _ => {
            let from = random.usize(..frame.len());
            let more = random.choice(whole).unwrap();
            frame.truncate(from);
            frame.extend_from_slice(more);
        }
    }
    frame
}

#[test]
fn broken_native_frames_hurt_no_other_connection() {
    let store = store_dir();
    let mut node = Setup::new(store.path(), 2).start();
    let seed = knob("RINGMQ_SEED", fastrand::u64(..));
    let frames = knob("RINGMQ_NATIVE_BROKEN_FRAMES", 4_000);
    say!("broken native frames: {frames}, RINGMQ_SEED={seed}");
    let runtime = runtime();
    runtime.block_on(async {
        let client = connect(node.broker).await;
        client.create_topic("attacked", 2).await.unwrap();
        // What a good client says, recorded on its way.
        let whole: Vec<Vec<u8>> = ["hello", "metadata", "produce", "fetch", "unknown"]
            .iter()
            .map(|name| {
                let path = format!(
                    "{}/wire-native/tests/older/{name}.bin",
                    env!("CARGO_MANIFEST_DIR")
                );
                std::fs::read(path).unwrap()
            })
            .collect();
        let broker = node.broker;
        let attack = tokio::task::spawn_blocking(move || {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut sent = 0;
            while sent < frames {
                let mut socket = TcpStream::connect(broker).unwrap();
                socket
                    .set_read_timeout(Some(Duration::from_millis(5)))
                    .unwrap();
                if random.u8(..8) > 0 {
                    let _ = socket.write_all(&whole[0]);
                }
                for _ in 0..random.usize(1..20) {
                    sent += 1;
                    if socket.write_all(&broken(&mut random, &whole)).is_err() {
                        break;
                    }
                }
                let mut sink = [0; 4096];
                let _ = socket.read(&mut sink);
            }
        });
        let producer = client.producer();
        let mut good = 0;
        while !attack.is_finished() || good < 100 {
            let body = format!("good {good}");
            producer
                .send(Message::new("good", body).order_key("one"))
                .await
                .unwrap();
            good += 1;
        }
        attack.await.unwrap();
        let found = read_all(&client, "good", good).await;
        for (number, received) in found.iter().enumerate() {
            assert_eq!(received.body(), format!("good {number}"));
        }
    });
    assert!(node.is_alive());
    assert!(!node.output().contains("panicked"), "{}", node.output());
}

#[test]
fn acknowledged_native_records_survive_kill_nine() {
    let rounds = knob("RINGMQ_NATIVE_KILLS", 4);
    let store = store_dir();
    let setup = Setup::new(store.path(), 2);
    let mut acknowledged: BTreeSet<String> = BTreeSet::new();
    let mut number = 0;
    for round in 0..rounds {
        let mut node = setup.start();
        let stored: Vec<String> = runtime().block_on(async {
            let client = connect(node.broker).await;
            client.create_topic("kept", 4).await.unwrap();
            let producer = client.producer_with(ProducerOptions {
                retries: 0,
                batch: BatchOptions {
                    batch_bytes: 16 << 10,
                    ..BatchOptions::default()
                },
                ..ProducerOptions::default()
            });
            let mut deliveries = Vec::new();
            // In the middle of the stream: what is answered before it is written has to be lost now and then.
            let pid = node.pid();
            let dies_after = Duration::from_millis(fastrand::u64(5..60));
            let killer = std::thread::spawn(move || {
                std::thread::sleep(dies_after);
                signal(pid, "KILL");
            });
            for _ in 0..40_000 {
                let body = format!("{number:08}{}", "x".repeat(number % 700));
                number += 1;
                let Ok(delivery) = producer.submit(Message::new("kept", body.clone())).await else {
                    break;
                };
                deliveries.push((body, delivery));
            }
            killer.join().unwrap();
            let mut stored = Vec::new();
            for (body, delivery) in deliveries {
                if let Ok(receipt) = delivery.await {
                    assert!(receipt.queue_offset >= 0);
                    stored.push(body);
                }
            }
            stored
        });
        node.kill();
        say!("kill {round}: {} were acknowledged", stored.len());
        acknowledged.extend(stored);
    }
    let node = setup.start();
    runtime().block_on(async {
        let client = connect(node.broker).await;
        let queues: Vec<Queue> = client.queues("kept").await.unwrap();
        let known = client.offsets(None, &queues, None).await.unwrap();
        let count: i64 = known.iter().map(|queue| queue.max_offset).sum();
        let found: BTreeSet<String> = read_all(&client, "kept", count as usize)
            .await
            .iter()
            .map(|received| String::from_utf8(received.body().to_vec()).unwrap())
            .collect();
        let lost: Vec<_> = acknowledged.difference(&found).take(5).collect();
        assert!(
            lost.is_empty(),
            "{} acknowledged, {} found, lost: {lost:?}",
            acknowledged.len(),
            found.len()
        );
    });
}
