//! Broken frames on both ports while a good client works on: nobody else notices, and memory comes back.
//!
//! `RINGMQ_MALFORMED_FRAMES` (20,000) sets how many, `RINGMQ_SEED` repeats a run.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::{Command, Connection, Encoding, Message, Pull, code, send_batch};
use crate::node::{Node, Setup, is_optimised, knob, store_dir};

const ATTACKERS: u64 = 4;
/// A connection whose sending side we have closed has to be closed by the server within this time.
const CLOSE_MAX: Duration = Duration::from_secs(20);

/// Requests as real clients send them, before they are broken. None of them would make a topic or delete one.
fn real_requests() -> Vec<Command> {
    let topic = "attacked";
    let message = Message::new(topic, 0, "body of a message that will be broken")
        .property("TAGS", "red")
        .property("KEYS", "k1 k2");
    let subscription = json!({"topic": topic, "subString": "*", "expressionType": "TAG", "tagsSet": [], "codeSet": [],
        "subVersion": 1, "classFilterMode": false});
    let heartbeat = json!({
        "clientID": "attacker", "producerDataSet": [{"groupName": "p"}], "heartbeatFingerprint": 0, "withoutSub": false,
        "consumerDataSet": [{"groupName": "blackbox-consumer", "consumeType": "CONSUME_PASSIVELY",
            "messageModel": "CLUSTERING", "consumeFromWhere": "CONSUME_FROM_FIRST_OFFSET",
            "subscriptionDataSet": [subscription], "unitMode": false}],
    });
    let locks = json!({"clientId": "attacker", "consumerGroup": "blackbox-consumer", "onlyThisBroker": false,
        "mqSet": [{"topic": topic, "brokerName": "b", "queueId": 0}]});
    let text = |value: &str| value.to_string();
    let queue = [("topic", text(topic)), ("queueId", text("0"))];
    let offset = [
        ("topic", text(topic)),
        ("queueId", text("0")),
        ("consumerGroup", text("blackbox-consumer")),
        ("commitOffset", text("1")),
        ("timestamp", text("1700000000000")),
        ("boundaryType", text("LOWER")),
    ];
    let topic_only = [("topic", text(topic))];
    let body = |value: &serde_json::Value| value.to_string().into_bytes();
    let batch = [message.clone(), message.clone(), message.clone()];
    vec![
        message.send_v2(),
        message.send_v1(),
        message.send_v2().oneway(),
        send_batch(&batch),
        Pull::new(topic, 0, 0).command(),
        Command::request(code::GET_ROUTEINFO_BY_TOPIC, &topic_only, Vec::new()),
        Command::request(code::GET_MAX_OFFSET, &queue, Vec::new()),
        Command::request(code::GET_MIN_OFFSET, &queue, Vec::new()),
        Command::request(code::SEARCH_OFFSET_BY_TIMESTAMP, &offset, Vec::new()),
        Command::request(code::QUERY_CONSUMER_OFFSET, &offset, Vec::new()),
        Command::request(code::UPDATE_CONSUMER_OFFSET, &offset, Vec::new()),
        Command::request(code::HEART_BEAT, &[], body(&heartbeat)),
        Command::request(code::LOCK_BATCH_MQ, &[], body(&locks)),
        Command::request(code::UNLOCK_BATCH_MQ, &[], body(&locks)),
        Command::request(code::GET_CONSUMER_LIST_BY_GROUP, &offset, Vec::new()),
    ]
}

/// One broken frame.
fn broken(random: &mut fastrand::Rng, requests: &[Command]) -> Vec<u8> {
    let mut command = random.choice(requests).unwrap().clone();
    command.encoding = *random.choice(&[Encoding::Json, Encoding::Binary]).unwrap();
    command.opaque = random.i32(..);
    match random.u8(..10) {
        0 => break_field(random, &mut command),
        1 => break_body(random, &mut command),
        2 => return garbage(random),
        3 => return broken_json(random),
        _ => {}
    }
    let mut frame = command.encode();
    match random.u8(..8) {
        0 | 1 => flip_bits(random, &mut frame),
        2 => frame.truncate(random.usize(..frame.len())),
        3 => {
            let lies = [0, 1, 3, 4, 0x00FF_FFFF, 0x0100_0000, 0x7FFF_FFFF, u32::MAX];
            let lie = match random.bool() {
                true => *random.choice(&lies).unwrap(),
                false => random.u32(..),
            };
            frame[..4].copy_from_slice(&lie.to_be_bytes());
        }
        4 => {
            let lie = random.u32(..) >> random.u32(..32);
            frame[4..8].copy_from_slice(&lie.to_be_bytes());
        }
        5 => {
            let (at, from) = (random.usize(..frame.len()), random.usize(..frame.len()));
            let other = random.choice(requests).unwrap().encode();
            frame.truncate(at);
            frame.extend_from_slice(&other[from.min(other.len() - 1)..]);
        }
        6 => {
            let at = random.usize(..frame.len());
            let more: Vec<u8> = (0..random.usize(..40)).map(|_| random.u8(..)).collect();
            frame.splice(at..at, more);
        }
        // The frame stays whole: what is in it is wrong.
        _ => {
            if random.bool() {
                break_field(random, &mut command);
                frame = command.encode();
            } else {
                flip_bits(random, &mut frame[8..]);
            }
        }
    }
    frame
}

fn flip_bits(random: &mut fastrand::Rng, bytes: &mut [u8]) {
    for _ in 0..random.usize(1..=8) {
        let at = random.usize(..bytes.len());
        bytes[at] ^= 1 << random.u8(..8);
    }
}

fn break_field(random: &mut fastrand::Rng, command: &mut Command) {
    let names: Vec<String> = command.fields.keys().cloned().collect();
    let Some(name) = random.choice(&names) else {
        command.code = random.i32(..);
        return;
    };
    let long = "x".repeat(random.usize(..40_000));
    let values = [
        "-1",
        "",
        " ",
        "0",
        "2147483647",
        "2147483648",
        "-2147483649",
        "9223372036854775807",
        "9223372036854775808",
        "NaN",
        "1e9",
        "\u{0}",
        "../../etc/passwd",
        "true",
        "%RETRY%",
        "{}",
        &long,
    ];
    match random.u8(..4) {
        0 => drop(command.fields.remove(name)),
        1 => drop(command.fields.insert(long.clone(), "1".into())),
        _ => {
            let value = random.choice(&values).unwrap().to_string();
            command.fields.insert(name.clone(), value);
        }
    }
}

fn break_body(random: &mut fastrand::Rng, command: &mut Command) {
    match random.u8(..3) {
        0 => command.body.clear(),
        1 if !command.body.is_empty() => flip_bits(random, &mut command.body),
        _ => command.body = (0..random.usize(..2_000)).map(|_| random.u8(..)).collect(),
    }
}

fn garbage(random: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..random.usize(1..600)).map(|_| random.u8(..)).collect();
    if random.bool() {
        let length = bytes.len() as u32;
        bytes.splice(0..0, length.to_be_bytes());
    }
    bytes
}

/// A frame with a true length whose header is not what JSON or Java would say.
fn broken_json(random: &mut fastrand::Rng) -> Vec<u8> {
    let depth = random.usize(1..20_000);
    let header = match random.u8(..8) {
        0 => "[".repeat(depth),
        1 => "{\"a\":".repeat(depth),
        2 => format!("{{\"code\":{},\"opaque\":1}}", "9".repeat(depth)),
        3 => "{\"code\":310,\"extFields\":{\"a\":{\"b\":1}},\"opaque\":1,\"flag\":0}".into(),
        4 => "{\"code\":310,\"extFields\":null,\"opaque\":\"x\"}".into(),
        5 => format!("{{\"code\":11,\"code\":{},\"opaque\":1}}", random.i32(..)),
        6 => format!("{{\"code\":11,\"remark\":\"{}", "\\u00".repeat(depth)),
        _ => String::new(),
    };
    let mut frame = ((4 + header.len()) as u32).to_be_bytes().to_vec();
    frame.extend_from_slice(&(header.len() as u32).to_be_bytes());
    frame.extend_from_slice(header.as_bytes());
    frame
}

#[derive(Default)]
struct Tally {
    frames: AtomicU64,
    connections: AtomicU64,
    bytes_answered: AtomicU64,
    refused_connections: AtomicU64,
    not_closed: AtomicU64,
}

fn attack(target: SocketAddr, random: &mut fastrand::Rng, requests: &[Command], tally: &Tally) {
    let Ok(mut stream) = TcpStream::connect(target) else {
        tally.refused_connections.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(10));
        return;
    };
    tally.connections.fetch_add(1, Ordering::Relaxed);
    stream.set_read_timeout(Some(CLOSE_MAX)).unwrap();
    stream.set_write_timeout(Some(CLOSE_MAX)).unwrap();
    for _ in 0..random.usize(1..10) {
        let frame = broken(random, requests);
        tally.frames.fetch_add(1, Ordering::Relaxed);
        if stream.write_all(&frame).is_err() {
            break; // the server has closed already
        }
    }
    if random.u8(..) < 32 {
        return; // gone without a word
    }
    let _ = stream.shutdown(Shutdown::Write);
    let mut buffer = [0; 16 << 10];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(bytes) => {
                let bytes = bytes as u64;
                tally.bytes_answered.fetch_add(bytes, Ordering::Relaxed);
            }
            Err(error) => {
                let hangs = error.kind() == std::io::ErrorKind::WouldBlock;
                tally
                    .not_closed
                    .fetch_add(u64::from(hangs), Ordering::Relaxed);
                break;
            }
        }
    }
}

fn bombard(node: &Node, frames: u64, seed: u64) -> Arc<Tally> {
    let tally = Arc::new(Tally::default());
    let attackers: Vec<JoinHandle<()>> = (0..ATTACKERS)
        .map(|number| {
            let (tally, targets) = (tally.clone(), [node.broker, node.namesrv]);
            std::thread::spawn(move || {
                let mut random = fastrand::Rng::with_seed(seed + number);
                let requests = real_requests();
                while tally.frames.load(Ordering::Relaxed) < frames {
                    let target = targets[usize::from(random.u8(..) < 64)];
                    attack(target, &mut random, &requests, &tally);
                }
            })
        })
        .collect();
    for attacker in attackers {
        attacker.join().unwrap();
    }
    tally
}

/// Sends, reads back at once and compares, until it is told to stop. Returns how many, and the slowest round trip.
fn good_client(broker: SocketAddr, stop: Arc<AtomicBool>) -> (i64, Vec<Duration>) {
    let mut connection = Connection::open(broker).unwrap();
    let mut times = Vec::new();
    let mut offset = 0;
    while !stop.load(Ordering::Relaxed) {
        let message = Message::new("good", 0, format!("good {offset}"));
        let begun = Instant::now();
        let sent = connection.send(&message).unwrap();
        assert_eq!(sent.queue_offset, offset);
        let pulled = connection.pull(&Pull::new("good", 0, offset)).unwrap();
        times.push(begun.elapsed());
        assert_eq!(pulled.records.len(), 1);
        assert_eq!(pulled.records[0].body, message.body);
        offset += 1;
        std::thread::sleep(Duration::from_millis(1));
    }
    times.sort();
    (offset, times)
}

#[test]
fn broken_frames_harm_nobody_else() {
    let frames = knob("RINGMQ_MALFORMED_FRAMES", 20_000);
    let seed = knob("RINGMQ_SEED", u64::from(fastrand::u32(..)));
    let store = store_dir();
    let mut node = Setup::new(store.path(), 2)
        .memory(64 << 20)
        // Or each broken name would rightly become a topic and stay in memory.
        .set("autoCreateTopicEnable=false")
        .set("autoCreateSubscriptionGroup=false")
        .start();
    let mut connection = node.connect();
    connection.create_topic("good", 1).unwrap();
    connection.create_topic("attacked", 4).unwrap();
    connection.create_group("blackbox-consumer").unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let (broker, stopped) = (node.broker, stop.clone());
    let good = std::thread::spawn(move || good_client(broker, stopped));

    bombard(&node, frames / 4, seed ^ 1);
    std::thread::sleep(Duration::from_secs(1));
    let (rss_before, fds_before) = (node.rss_bytes(), node.fd_count());
    let begun = Instant::now();
    let tally = bombard(&node, frames, seed);
    let took = begun.elapsed();
    assert!(node.is_alive(), "the broker ended\n{}", node.output());

    let limit = rss_before + rss_before / 10;
    let deadline = Instant::now() + Duration::from_secs(20);
    while (node.rss_bytes() > limit || node.fd_count() > fds_before + 8)
        && Instant::now() < deadline
    {
        std::thread::sleep(Duration::from_millis(100));
    }
    stop.store(true, Ordering::Relaxed);
    let (count, times) = good.join().unwrap();
    let (rss, fds) = (node.rss_bytes(), node.fd_count());
    let count_of = |number: &AtomicU64| number.load(Ordering::Relaxed);
    say!(
        "malformed: {} frames on {} connections in {:.1} s, seed {seed}; {} bytes answered, {} connections refused, {} \
         not closed within {CLOSE_MAX:?}; RSS {} -> {} KiB, {fds_before} -> {fds} fds; good client: {count} sent and \
         read, p50 {:?}, p99 {:?}, max {:?}",
        count_of(&tally.frames),
        count_of(&tally.connections),
        took.as_secs_f64(),
        count_of(&tally.bytes_answered),
        count_of(&tally.refused_connections),
        count_of(&tally.not_closed),
        rss_before >> 10,
        rss >> 10,
        times[times.len() / 2],
        times[times.len() * 99 / 100],
        times[times.len() - 1],
    );
    assert_eq!(count_of(&tally.not_closed), 0, "connections hang");
    assert!(fds <= fds_before + 8, "{fds_before} -> {fds} descriptors");
    if is_optimised() {
        assert!(rss <= limit, "RSS {rss_before} -> {rss} bytes");
    }
    let records = connection.read_queue("good", 0, 0).unwrap();
    assert_eq!(records.len() as i64, count);
    for (number, record) in records.iter().enumerate() {
        assert_eq!(record.body, format!("good {number}").into_bytes());
    }
    assert!(!node.output().contains("panicked"), "{}", node.output());
    // What of the attack was stored is whole, and survives a restart.
    for queue_id in 0..4 {
        connection.read_queue("attacked", queue_id, 0).unwrap();
    }
    node.kill();
    let node = node.setup.start();
    let records = node.connect().read_queue("good", 0, 0).unwrap();
    assert_eq!(records.len() as i64, count);
}
