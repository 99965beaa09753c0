//! A master and its slave as two processes on loopback: what was acknowledged is on the slave, whoever dies.
//!
//! `RINGMQ_REPLICA_MESSAGES` (3,000) is how many messages the campaign with kill -9 sends.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::client::{Command, Connection, Message, Pull, answer, code, sent};
use crate::ledger::{LedgerFile, message};
use crate::metrics::page;
use crate::node::{Node, Setup, knob, signal, store_dir};
use crate::store_files::{compare, flip_bit};

const TOPIC: &str = "replicated";
const QUEUES: i32 = 4;
const GROUP: &str = "blackbox-consumer";
/// A slave that is this late does not follow.
const CATCH_UP_MAX: Duration = Duration::from_secs(60);

fn master(store: &Path, role: &str) -> Setup {
    Setup::new(store, 1)
        .set("logs=2")
        .set("brokerName=pair")
        .set(&format!("brokerRole={role}"))
}

fn slave(master: &Setup, store: &Path, shards: u32) -> Setup {
    Setup::beside(master, store, shards)
        .set("brokerName=pair")
        .set("brokerRole=SLAVE")
        .set("brokerId=1")
}

fn prepare(node: &Node) {
    let mut connection = node.connect();
    connection.create_topic(TOPIC, QUEUES as u32).unwrap();
    connection.create_group(GROUP).unwrap();
}

fn ha_status(node: &Node) -> Value {
    let request = Command::request(code::GET_BROKER_HA_STATUS, &[], Vec::new());
    let answer = node.connect().call(&request).unwrap();
    serde_json::from_slice(&answer.body).unwrap()
}

/// Waits until something holds.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(
            begun.elapsed() < CATCH_UP_MAX,
            "{what}: not after {CATCH_UP_MAX:?}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn until_in_sync(master: &Node) {
    until("the slave is in sync", || {
        ha_status(master)["inSyncSlaveNums"] == 1
    });
}

/// The ends of all queues, or nothing while the topic is not known.
fn ends(node: &Node) -> Vec<Option<i64>> {
    // A new slave opens its logs again before it follows.
    let Ok(mut connection) = Connection::open(node.broker) else {
        return Vec::new();
    };
    let queues = 0..QUEUES;
    queues
        .map(|queue| connection.max_offset(TOPIC, queue).ok())
        .collect()
}

fn until_caught_up(master: &Node, slave: &Node) {
    let wanted = ends(master);
    assert!(!wanted.is_empty(), "the master answers");
    until("the slave has all queues", || ends(slave) == wanted);
}

/// Answers to raw pulls of all of a queue: the bytes that a client decodes.
fn raw(node: &Node, queue_id: i32) -> Vec<u8> {
    let mut connection = node.connect();
    let end = connection.max_offset(TOPIC, queue_id).unwrap();
    let (mut pull, mut bytes) = (Pull::new(TOPIC, queue_id, 0), Vec::new());
    while pull.offset < end {
        let found = connection.ask(&pull.command()).unwrap();
        assert_eq!(found.code, answer::SUCCESS, "{found:?}");
        pull.offset = found.fields["nextBeginOffset"].parse().unwrap();
        bytes.extend(found.body);
    }
    bytes
}

#[test]
fn a_slave_follows_and_gives_the_same_bytes() {
    let (one, other) = (store_dir(), store_dir());
    let first = master(one.path(), "ASYNC_MASTER");
    let master = first.start();
    prepare(&master);
    let mut connection = master.connect();
    for number in 0..300 {
        let body = vec![number as u8; 10 + 40 * number as usize];
        let message = Message::new(TOPIC, number % QUEUES, body).property("KEYS", "k");
        connection.send(&message).unwrap();
    }
    connection.commit_offset(GROUP, TOPIC, 1, 17).unwrap();
    // Another number of cores than the master.
    let slave = slave(&first, other.path(), 2).start();
    until_caught_up(&master, &slave);
    // What comes while it follows.
    for number in 0..100 {
        connection
            .send(&Message::new(
                TOPIC,
                number % QUEUES,
                format!("later {number}"),
            ))
            .unwrap();
    }
    connection.commit_offset(GROUP, TOPIC, 2, 5).unwrap();
    connection.create_topic("later", 2).unwrap();
    connection.send(&Message::new("later", 1, "x")).unwrap();
    until_caught_up(&master, &slave);
    for queue in 0..QUEUES {
        assert_eq!(raw(&slave, queue), raw(&master, queue), "queue {queue}");
    }
    let mut reader = slave.connect();
    until("offsets and a new topic follow", || {
        reader
            .consumer_offset(GROUP, TOPIC, 2)
            .is_ok_and(|found| found == Some(5))
            && reader.max_offset("later", 1).is_ok_and(|end| end == 1)
    });
    assert_eq!(reader.consumer_offset(GROUP, TOPIC, 1).unwrap(), Some(17));
    // It takes nothing of its own.
    let refused = reader.send(&Message::new(TOPIC, 0, "no")).unwrap_err();
    assert_eq!(refused.code(), Some(answer::SERVICE_NOT_AVAILABLE));
    assert!(refused.remark().contains("slave"), "{refused:?}");
    assert!(reader.create_topic("own", 1).is_err());
    // An offset that is committed here is kept here until the master says more.
    reader.commit_offset(GROUP, TOPIC, 1, 21).unwrap();
    assert_eq!(reader.consumer_offset(GROUP, TOPIC, 1).unwrap(), Some(21));
    connection.commit_offset(GROUP, TOPIC, 1, 19).unwrap();
    until("the master's newer offset counts", || {
        reader.consumer_offset(GROUP, TOPIC, 1).unwrap() == Some(19)
    });
    // Both sides tell how it stands, and clients find both.
    until_in_sync(&master);
    let status = ha_status(&master);
    assert_eq!(
        status["haConnectionInfo"].as_array().unwrap().len(),
        2,
        "{status}"
    );
    assert_eq!(ha_status(&slave)["master"], false);
    let route = master.connect_namesrv().route(TOPIC).unwrap();
    let addresses = &route["brokerDatas"][0]["brokerAddrs"];
    assert_eq!(addresses["1"], slave.broker.to_string(), "{route}");
}

/// Sends with a window until `stop` says so or the connection breaks; what is acknowledged, by queue and offset.
fn produce(
    node: SocketAddr,
    file: &Path,
    count: u64,
    mut at_half: impl FnMut(),
) -> BTreeMap<(i32, i64), u64> {
    let mut ledger = LedgerFile::create(file);
    let mut connection = Connection::open(node).unwrap();
    let mut acknowledged = BTreeMap::new();
    let mut waiting = BTreeMap::new();
    let (mut next, mut is_open) = (0, true);
    while is_open || !waiting.is_empty() {
        while is_open && next < count && waiting.len() < 32 {
            let queue = (TOPIC.to_owned(), (next % QUEUES as u64) as i32);
            let command = message(&queue, next, 20_000).send_v2();
            match connection.start(&command) {
                Ok(opaque) => {
                    waiting.insert(opaque, next);
                }
                Err(_) => is_open = false,
            }
            next += 1;
            if next == count / 2 {
                at_half();
            }
        }
        is_open &= next < count;
        let Ok(found) = connection.next_answer() else {
            break;
        };
        let id = waiting.remove(&found.opaque).unwrap();
        if let Ok(sent) = sent(found) {
            ledger.write(&format!("{} {} {id}\n", sent.queue_id, sent.queue_offset));
            acknowledged.insert((sent.queue_id, sent.queue_offset), id);
        }
    }
    acknowledged
}

fn check_all_there(slave: &Node, acknowledged: &BTreeMap<(i32, i64), u64>) {
    let mut reader = slave.connect();
    for queue in 0..QUEUES {
        let records = reader.read_queue(TOPIC, queue, 0).unwrap();
        for (number, record) in records.iter().enumerate() {
            assert_eq!(record.queue_offset, number as i64);
        }
        for ((_, offset), id) in acknowledged.range((queue, 0)..(queue + 1, 0)) {
            let wanted = message(&(TOPIC.to_owned(), queue), *id, 20_000);
            let found = records.get(*offset as usize);
            let found = found.unwrap_or_else(|| panic!("queue {queue} lost offset {offset}"));
            assert_eq!(found.body, wanted.body, "queue {queue} offset {offset}");
        }
    }
}

#[test]
fn after_kill_9_of_a_sync_master_its_slave_has_all_that_was_acknowledged_and_can_take_its_place() {
    let count = knob("RINGMQ_REPLICA_MESSAGES", 3_000);
    let (one, other, files) = (store_dir(), store_dir(), store_dir());
    let first = master(one.path(), "SYNC_MASTER");
    let mut master = first.start();
    prepare(&master);
    let second = slave(&first, other.path(), 1);
    let mut slave = second.start();
    until_in_sync(&master);
    let pid = master.pid();
    let file = files.path().join("acknowledged");
    let acknowledged = produce(master.broker, &file, count, || signal(pid, "KILL"));
    master.kill();
    assert!(
        acknowledged.len() as u64 > count / 4,
        "{}",
        acknowledged.len()
    );
    assert!(
        (acknowledged.len() as u64) < count,
        "it was killed too late"
    );
    say!(
        "kill -9 of a sync master: {} of {count} acknowledged",
        acknowledged.len()
    );
    check_all_there(&slave, &acknowledged);
    // By hand: the slave becomes the master.
    assert!(slave.terminate().success());
    let third = Setup {
        broker_only: false,
        ..second.clone()
    };
    let third = third.set("brokerRole=ASYNC_MASTER").set("brokerId=0");
    let promoted = third.start();
    check_all_there(&promoted, &acknowledged);
    let mut connection = promoted.connect();
    let end = connection.max_offset(TOPIC, 0).unwrap();
    let next = connection.send(&Message::new(TOPIC, 0, "goes on")).unwrap();
    assert_eq!(next.queue_offset, end);
}

#[test]
fn a_slave_that_was_killed_or_stopped_for_long_catches_up() {
    let (one, other, files) = (store_dir(), store_dir(), store_dir());
    let first = master(one.path(), "SYNC_MASTER");
    let master = first.start();
    prepare(&master);
    let second = slave(&first, other.path(), 1);
    let mut slave = second.start();
    until_in_sync(&master);
    let pid = slave.pid();
    let file = files.path().join("acknowledged");
    // While the slave is gone nothing is acknowledged as safe: code 11, stored all the same.
    let acknowledged = produce(master.broker, &file, 1_500, || signal(pid, "KILL"));
    slave.kill();
    assert!(acknowledged.len() < 1_500, "{}", acknowledged.len());
    let mut connection = master.connect();
    let alone = connection
        .send(&Message::new(TOPIC, 0, "alone"))
        .unwrap_err();
    assert_eq!(alone.code(), Some(answer::SLAVE_NOT_AVAILABLE), "{alone:?}");
    // Far behind: several segments of 16 MiB.
    for number in 0..60u32 {
        let body = vec![number as u8; 1 << 20];
        let stored = connection.send(&Message::new(TOPIC, number as i32 % QUEUES, body));
        assert_eq!(
            stored.unwrap_err().code(),
            Some(answer::SLAVE_NOT_AVAILABLE)
        );
    }
    let begun = Instant::now();
    let slave = second.start();
    until_caught_up(&master, &slave);
    say!(
        "60 MiB behind, caught up and serving after {:?}",
        begun.elapsed()
    );
    check_all_there(&slave, &acknowledged);
    for queue in 0..QUEUES {
        assert_eq!(raw(&slave, queue), raw(&master, queue), "queue {queue}");
    }
    until_in_sync(&master);
    connection
        .send(&Message::new(TOPIC, 0, "together"))
        .unwrap();
}

#[test]
fn a_slave_that_hangs_makes_a_send_late_and_the_least_number_makes_it_refused() {
    let (one, other) = (store_dir(), store_dir());
    let first = master(one.path(), "SYNC_MASTER")
        .set("slaveTimeout=500")
        .set("minInSyncReplicas=2")
        .set("haHousekeepingInterval=2000");
    let master = first.start();
    let mut connection = master.connect();
    connection.create_topic(TOPIC, QUEUES as u32).unwrap();
    let alone = connection.send(&Message::new(TOPIC, 0, "x")).unwrap_err();
    assert_eq!(alone.code(), Some(answer::SYSTEM_ERROR), "{alone:?}");
    assert!(alone.remark().contains("minInSyncReplicas"), "{alone:?}");
    let slave = slave(&first, other.path(), 1).start();
    until_in_sync(&master);
    connection.send(&Message::new(TOPIC, 0, "both")).unwrap();
    signal(slave.pid(), "STOP");
    let begun = Instant::now();
    let late = connection
        .send(&Message::new(TOPIC, 0, "late"))
        .unwrap_err();
    assert_eq!(late.code(), Some(answer::FLUSH_SLAVE_TIMEOUT), "{late:?}");
    assert!(begun.elapsed() >= Duration::from_millis(400));
    // Consumers do not see it before it is where it has to be.
    assert_eq!(connection.max_offset(TOPIC, 0).unwrap(), 1);
    signal(slave.pid(), "CONT");
    until("it is seen when the slave has it", || {
        connection.max_offset(TOPIC, 0).unwrap() == 2
    });
}

#[test]
fn a_wrong_secret_is_refused_and_strangers_are_dropped() {
    let (one, other, files) = (store_dir(), store_dir(), store_dir());
    let (right, wrong) = (files.path().join("right"), files.path().join("wrong"));
    fs::write(&right, "0123456789abcdef right\n").unwrap();
    fs::write(&wrong, "0123456789abcdef wrong\n").unwrap();
    let first =
        master(one.path(), "ASYNC_MASTER").set(&format!("haSecretFile={}", right.display()));
    let master = first.start();
    prepare(&master);
    master
        .connect()
        .send(&Message::new(TOPIC, 0, "secret"))
        .unwrap();
    let second = slave(&first, other.path(), 1).set(&format!("haSecretFile={}", wrong.display()));
    // Where the master is may also be fixed.
    let second = second.set(&format!(
        "haMasterAddress=127.0.0.1:{}",
        first.broker_port + 1
    ));
    // It has no store yet, so it waits for a master that believes it.
    let stranger = second.spawn();
    until("the refusal is told", || {
        stranger.output().contains("haSecretFile")
    });
    assert!(!other.path().join("ringmq.store").exists());
    drop(stranger);
    // Anything but our protocol ends at once, RocketMQ's own replica included.
    let port = first.broker_port + 1;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &0u64.to_be_bytes(),
        b"RMQH\x01\x06\0\0\xff\xff\xff\x7f",
    ] {
        let mut stream = TcpStream::connect(address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(3)))
            .unwrap();
        stream.write_all(garbage).unwrap();
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        assert!(answer.is_empty(), "{answer:?}");
        assert!(
            !matches!(&read, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock),
            "{read:?}"
        );
    }
    let second = second.set(&format!("haSecretFile={}", right.display()));
    let slave = second.start();
    until_caught_up(&master, &slave);
}

#[test]
fn a_log_that_went_its_own_way_is_refused_with_what_to_do() {
    let (one, other) = (store_dir(), store_dir());
    let first = master(one.path(), "ASYNC_MASTER");
    let mut old = first.start();
    prepare(&old);
    let second = slave(&first, other.path(), 1);
    let mut slave = second.start();
    let mut connection = old.connect();
    for queue in 0..QUEUES {
        connection
            .send(&Message::new(TOPIC, queue, "common"))
            .unwrap();
    }
    until_caught_up(&old, &slave);
    assert!(slave.terminate().success());
    // The slave misses these, and then becomes the master and stores others in their place.
    for queue in 0..QUEUES {
        connection
            .send(&Message::new(TOPIC, queue, "only the old one"))
            .unwrap();
    }
    old.kill();
    let promoted = Setup {
        broker_only: false,
        ..second.clone()
    };
    let promoted = promoted.set("brokerRole=ASYNC_MASTER").set("brokerId=0");
    let new = promoted.start();
    for queue in 0..QUEUES {
        let message = Message::new(TOPIC, queue, "only the new one, and longer than the other");
        new.connect().send(&message).unwrap();
    }
    let before = raw(&new, 0);
    let back = Setup {
        namesrv_port: promoted.namesrv_port,
        broker_only: true,
        ..first.clone()
    };
    let back = back.set("brokerRole=SLAVE").set("brokerId=1");
    let mut back = back.start();
    until("the refusal says what to do", || {
        back.output().contains("empty storePathRootDir")
    });
    assert_eq!(raw(&new, 0), before);
    assert!(back.terminate().success());
}

/// Keeps the last segments of 1 MiB only.
fn short_retention(setup: Setup) -> Setup {
    setup
        .set("mappedFileSizeCommitLog=1048576")
        .set("storeBytesMax=6291456")
        .set("cleanResourceInterval=100")
}

/// Sends until retention has removed the beginning of both logs, and what was new in between with it.
fn outlive_retention(connection: &mut Connection) {
    let before: Vec<i64> = (0..QUEUES)
        .map(|queue| connection.max_offset(TOPIC, queue).unwrap())
        .collect();
    for number in 0..400u32 {
        let body = vec![number as u8; 64 << 10];
        let message = Message::new(TOPIC, number as i32 % QUEUES, body);
        connection.send(&message).unwrap();
    }
    until("retention has removed the beginning", || {
        (0..QUEUES).all(|queue| {
            let first = connection.min_offset(TOPIC, queue).unwrap();
            first > before[queue as usize]
        })
    });
    let mut known = Vec::new();
    until("retention has come to rest", || {
        std::thread::sleep(Duration::from_millis(300));
        let now: Vec<i64> = (0..QUEUES)
            .map(|queue| connection.min_offset(TOPIC, queue).unwrap())
            .collect();
        std::mem::replace(&mut known, now.clone()) == now
    });
}

/// What a queue still has, from the first offset that this node has.
fn records_of(node: &Node, queue: i32) -> BTreeMap<i64, Vec<u8>> {
    let mut connection = node.connect();
    let first = connection.min_offset(TOPIC, queue).unwrap();
    let records = connection.read_queue(TOPIC, queue, first).unwrap();
    records
        .into_iter()
        .map(|record| (record.queue_offset, record.body))
        .collect()
}

#[test]
fn a_new_slave_of_an_old_master_begins_where_that_one_begins_and_can_take_its_place() {
    let (one, other) = (store_dir(), store_dir());
    let first = short_retention(master(one.path(), "ASYNC_MASTER"));
    let mut old = first.start();
    prepare(&old);
    let mut connection = old.connect();
    // What only the removed part of the log says.
    connection.create_topic("quiet", 2).unwrap();
    connection.send(&Message::new("quiet", 1, "gone")).unwrap();
    connection.commit_offset(GROUP, TOPIC, 1, 3).unwrap();
    let delayed = Message::new(TOPIC, 0, "much later").property("TIMER_DELAY_SEC", "3600");
    connection.send(&delayed).unwrap();
    outlive_retention(&mut connection);
    let second = slave(&first, other.path(), 1);
    let mut new = second.start();
    until_caught_up(&old, &new);
    connection
        .send(&Message::new(TOPIC, 2, "while it follows"))
        .unwrap();
    until_caught_up(&old, &new);
    let mut reader = new.connect();
    until("it shows what it has", || {
        reader
            .read_queue(TOPIC, 2, connection.min_offset(TOPIC, 2).unwrap())
            .is_ok()
    });
    for queue in 0..QUEUES {
        let (here, there) = (records_of(&old, queue), records_of(&new, queue));
        let from = *here
            .keys()
            .next()
            .unwrap()
            .max(there.keys().next().unwrap());
        let (mut here, mut there) = (here, there);
        assert_eq!(
            here.split_off(&from),
            there.split_off(&from),
            "queue {queue}"
        );
    }
    assert_eq!(reader.consumer_offset(GROUP, TOPIC, 1).unwrap(), Some(3));
    assert_eq!(reader.max_offset("quiet", 1).unwrap(), 1);
    // Killed, it goes on where it was.
    new.kill();
    connection
        .send(&Message::new(TOPIC, 3, "while it was gone"))
        .unwrap();
    let mut new = second.start();
    until_caught_up(&old, &new);
    assert_eq!(new.output().matches("begins anew").count(), 0);
    let wanted = ends(&old);
    old.kill();
    assert!(new.terminate().success());
    let promoted = Setup {
        broker_only: false,
        ..second.clone()
    };
    let promoted = promoted.set("brokerRole=ASYNC_MASTER").set("brokerId=0");
    let new = promoted.start();
    assert_eq!(ends(&new), wanted);
    let sent = new.connect().send(&Message::new(TOPIC, 3, "its own"));
    assert_eq!(Some(sent.unwrap().queue_offset), wanted[3]);
    let sent = new.connect().send(&Message::new("quiet", 1, "again"));
    assert_eq!(sent.unwrap().queue_offset, 1);
}

#[test]
fn a_slave_with_fixed_roles_that_was_away_for_longer_than_the_retention_is_refused_with_what_to_do()
{
    let (one, other, third) = (store_dir(), store_dir(), store_dir());
    let first = short_retention(master(one.path(), "ASYNC_MASTER"));
    let master = first.start();
    prepare(&master);
    let mut connection = master.connect();
    connection.send(&Message::new(TOPIC, 0, "common")).unwrap();
    let second = slave(&first, other.path(), 1);
    let mut away = second.start();
    until_caught_up(&master, &away);
    away.kill();
    outlive_retention(&mut connection);
    let mut away = second.start();
    until("the refusal says what to do", || {
        let said = away.output();
        said.contains("removed by retention") && said.contains("empty storePathRootDir")
    });
    assert!(away.terminate().success());
    let anew = Setup {
        store: third.path().to_path_buf(),
        ..second
    };
    let anew = anew.start();
    until_caught_up(&master, &anew);
}

#[test]
fn the_stores_of_a_pair_are_equal_and_one_flipped_byte_is_found_and_named() {
    let (one, other) = (store_dir(), store_dir());
    let first = master(one.path(), "SYNC_MASTER");
    let mut master = first.start();
    prepare(&master);
    let mut slave = slave(&first, other.path(), 1).start();
    until_in_sync(&master);
    let mut connection = master.connect();
    for number in 0..200 {
        let body = match number {
            100 => "a body that is spoilt later".to_owned(),
            number => format!("body {number}"),
        };
        let message = Message::new(TOPIC, number % QUEUES, body);
        connection.send(&message).unwrap();
    }
    until_caught_up(&master, &slave);
    drop(connection);
    assert!(master.terminate().success());
    assert!(slave.terminate().success());
    let (code, logs) = compare(one.path(), other.path());
    assert_eq!(code, Some(0), "{logs:#?}");
    assert_eq!(logs.len(), 2);
    for log in &logs {
        assert_eq!(log["result"], "equal", "{log}");
        assert!(log["segments"][0]["sha256"].is_string(), "{log}");
    }
    let (file, at) = flip_bit(other.path(), b"a body that is spoilt later", 3);
    let (code, logs) = compare(one.path(), other.path());
    assert_eq!(code, Some(1), "{logs:#?}");
    let damaged: Vec<&Value> = logs.iter().filter(|l| l["result"] != "equal").collect();
    assert_eq!(damaged.len(), 1, "{logs:#?}");
    assert_eq!(damaged[0]["result"], "damaged");
    assert_eq!(damaged[0]["store"], "B");
    let position = damaged[0]["position"].as_u64().unwrap();
    assert!(position <= at as u64 && position > 0, "{position} and {at}");
    assert!(
        file.to_string_lossy()
            .contains(&format!("log-{:03}", damaged[0]["log"].as_u64().unwrap()))
    );
    // The other way round the same store is named by its other letter.
    let (_, logs) = compare(other.path(), one.path());
    assert!(logs.iter().any(|log| log["store"] == "A"), "{logs:#?}");
    // A store that another one was never a copy of is refused.
    let third = store_dir();
    let mut alone = Setup::new(third.path(), 1).set("logs=2").start();
    assert!(alone.terminate().success());
    assert_eq!(compare(one.path(), third.path()).0, Some(1));
}

/// With fixed roles, too: nobody has to wipe a slave by hand because bits of its log flipped.
#[test]
fn a_slave_whose_log_is_damaged_fetches_it_from_its_master_again() {
    let (one, other) = (store_dir(), store_dir());
    let first = master(one.path(), "SYNC_MASTER");
    let mut master = first.start();
    prepare(&master);
    let second = slave(&first, other.path(), 1);
    let mut slave = second.start();
    until_in_sync(&master);
    let mut connection = master.connect();
    for number in 0..600 {
        let mut body = format!("number {number} ").into_bytes();
        body.resize(8_000, number as u8);
        let message = Message::new(TOPIC, number % QUEUES, body);
        connection.send(&message).unwrap();
    }
    until_caught_up(&master, &slave);
    slave.kill();
    flip_bit(other.path(), b"number 40 ", 100);
    let mut slave = second.start();
    until("the damage is repaired", || {
        slave
            .output()
            .contains("wiped and fetched from the master again")
    });
    until_in_sync(&master);
    until_caught_up(&master, &slave);
    for queue in 0..QUEUES {
        assert_eq!(raw(&slave, queue), raw(&master, queue), "queue {queue}");
    }
    drop(connection);
    assert!(master.terminate().success());
    assert!(slave.terminate().success());
    let (code, logs) = compare(one.path(), other.path());
    assert_eq!(code, Some(0), "{logs:#?}");
}

/// The sum of a metric over all logs.
fn of_all_logs(node: &Node, name: &str) -> f64 {
    let page = page(node);
    let of_name = page
        .lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|l| l.starts_with('{')));
    of_name
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum()
}

/// Bits flip in a part of a log that no start reads, of the master or of the slave: the search finds it, and the other one has it.
fn old_damage_is_repaired_in_place(is_master: bool) {
    const SCRUB: &str = "scrubBytesPerSecond=1073741824";
    let (one, other) = (store_dir(), store_dir());
    let first = master(one.path(), "SYNC_MASTER").set(SCRUB);
    let mut master = first.start();
    prepare(&master);
    let second = slave(&first, other.path(), 1).set(SCRUB);
    let mut slave = second.start();
    until_in_sync(&master);
    let mut connection = master.connect();
    for number in 0..600 {
        let mut body = format!("number {number} ").into_bytes();
        body.resize(8_000, number as u8);
        let message = Message::new(TOPIC, number % QUEUES, body);
        connection.send(&message).unwrap();
    }
    drop(connection);
    until_caught_up(&master, &slave);
    let sent: Vec<Vec<u8>> = (0..QUEUES).map(|queue| raw(&master, queue)).collect();
    // A clean stop leaves a snapshot of everything.
    assert!(slave.terminate().success());
    assert!(master.terminate().success());
    let rotten = if is_master { one.path() } else { other.path() };
    for number in [40, 41, 300] {
        flip_bit(rotten, format!("number {number} ").as_bytes(), 100);
    }
    assert_eq!(compare(one.path(), other.path()).0, Some(1));
    let mut master = first.start();
    let mut slave = second.start();
    let node = if is_master { &master } else { &slave };
    until("the damage is repaired", || {
        node.output().matches("they are whole again").count() == 3
    });
    assert_eq!(node.output().matches("are damaged on the disk").count(), 3);
    // Of the two only the master shows its metrics at the port that is known here.
    let of_master = |name: &str| of_all_logs(&master, name);
    let repaired_bytes = of_master("ringmq_log_repaired_bytes_total");
    assert_eq!(
        repaired_bytes > 3.0 * 8_000.0,
        is_master,
        "{repaired_bytes}"
    );
    assert_eq!(of_master("ringmq_log_damaged_bytes"), 0.0);
    assert!(of_master("ringmq_log_scrubbed_bytes_total") > 4_000_000.0);
    for (queue, sent) in (0..QUEUES).zip(&sent) {
        assert!(raw(&master, queue) == *sent, "queue {queue} of the master");
        assert!(raw(&slave, queue) == *sent, "queue {queue} of the slave");
    }
    assert!(slave.terminate().success());
    assert!(master.terminate().success());
    let (code, logs) = compare(one.path(), other.path());
    assert_eq!(code, Some(0), "{logs:#?}");
}

#[test]
fn old_damage_on_a_master_is_fetched_from_its_slave_and_repaired_in_place() {
    old_damage_is_repaired_in_place(true);
}

#[test]
fn old_damage_on_a_slave_is_fetched_from_its_master_and_repaired_in_place() {
    old_damage_is_repaired_in_place(false);
}
