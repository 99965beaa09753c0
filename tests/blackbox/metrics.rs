//! The metrics port from outside: what a scraper sees of traffic, lag and refusals, what a probe sees of health, and
//! members of one group that subscribe differently.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::admin::ringmq;
use crate::client::{Answer, Command, Connection, Message, Pull, code, now_ms};
use crate::node::{Node, Setup, store_dir};

const NO_PERMISSION: i32 = 16;
const GET_CONSUMER_CONNECTION_LIST: i32 = 203;
const VIEW_BROKER_STATS_DATA: i32 = 315;
const DELETE_GROUP: i32 = 207;
const POP_MESSAGE: i32 = 200_050;
const ACK_MESSAGE: i32 = 200_051;

fn metrics_address(node: &Node) -> SocketAddr {
    SocketAddr::new(node.broker.ip(), node.setup.namesrv_port + 2)
}

/// Status and body of a page.
fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

/// Status and reasons of the page that says whether sends are taken.
pub fn readiness(node: &Node) -> (u16, String) {
    get(metrics_address(node), "/readyz")
}

/// The metrics of a node.
pub fn page(node: &Node) -> String {
    let (status, page) = get(metrics_address(node), "/metrics");
    assert_eq!(status, 200, "{page}");
    page
}

/// The value of the one series that has this name and these labels.
fn value(page: &str, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let mut found = page.lines().filter(|line| {
        line.strip_prefix(name)
            .is_some_and(|rest| rest.starts_with('{'))
            && labels
                .iter()
                .all(|(label, value)| line.contains(&format!("{label}=\"{value}\"")))
    });
    let line = found.next()?;
    assert_eq!(found.next(), None, "{name} {labels:?} is no single series");
    Some(line.rsplit(' ').next().unwrap().parse().unwrap())
}

fn sum(page: &str, name: &str) -> f64 {
    let series = page.lines().filter(|line| {
        line.strip_prefix(name)
            .is_some_and(|rest| rest.starts_with('{'))
    });
    series
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum()
}

fn heartbeat(
    connection: &mut Connection,
    client: &str,
    topic: &str,
    expression: &str,
) -> Answer<Command> {
    let tags: Vec<&str> = expression.split("||").map(str::trim).collect();
    let body = json!({
        "clientID": client,
        "consumerDataSet": [{
            "consumeFromWhere": "CONSUME_FROM_FIRST_OFFSET", "consumeType": "CONSUME_PASSIVELY",
            "groupName": "differing", "messageModel": "CLUSTERING", "unitMode": false,
            "subscriptionDataSet": [{
                "classFilterMode": false, "codeSet": [], "expressionType": "TAG", "subString": expression,
                "subVersion": now_ms(), "tagsSet": tags, "topic": topic,
            }],
        }],
        "producerDataSet": [],
    });
    connection.ask(&Command::request(
        code::HEART_BEAT,
        &[],
        body.to_string().into_bytes(),
    ))
}

fn statistic(connection: &mut Connection, name: &str, key: &str) -> Option<i64> {
    let fields = [
        ("statsName", name.to_string()),
        ("statsKey", key.to_string()),
    ];
    let answer = connection
        .ask(&Command::request(
            VIEW_BROKER_STATS_DATA,
            &fields,
            Vec::new(),
        ))
        .unwrap();
    let body: Value = serde_json::from_slice(&answer.body).ok()?;
    body["statsDay"]["sum"].as_i64()
}

fn field(command: &Command, name: &str) -> String {
    let found = command.fields.iter().find(|(field, _)| *field == name);
    found.unwrap_or_else(|| panic!("no {name}")).1.clone()
}

#[test]
fn traffic_lag_and_refusals_are_on_the_page_and_every_core_is_summed() {
    let directory = store_dir();
    let node = Setup::new(directory.path(), 2).start();
    let address = metrics_address(&node);
    let mut client = node.connect();
    client.create_topic("measured", 4).unwrap();
    client.create_group("lagging").unwrap();
    for number in 0..12 {
        let message = Message::new("measured", number % 4, vec![b'x'; 2_000]);
        client.send(&message).unwrap();
    }
    client
        .send(&Message::new("measured", 0, "later").property("TIMER_DELAY_SEC", "3600"))
        .unwrap();
    for queue in 0..4 {
        let pulled = client.pull(&Pull::new("measured", queue, 0)).unwrap();
        assert_eq!(pulled.records.len(), 3);
        client
            .commit_offset("lagging", "measured", queue, 1)
            .unwrap();
    }
    let refused = client.ask(&Command::request(9_999, &[], Vec::new()));
    assert_ne!(refused.unwrap().code, 0);

    let (status, page) = get(address, "/metrics");
    assert_eq!(status, 200);
    let of_topic = [("topic", "measured"), ("message_type", "normal")];
    assert_eq!(
        value(&page, "rocketmq_messages_in_total", &of_topic),
        Some(12.0)
    );
    assert_eq!(
        value(&page, "rocketmq_throughput_in_total", &of_topic),
        Some(24_000.0)
    );
    let small = [of_topic[0], of_topic[1], ("le", "1024")];
    assert_eq!(
        value(&page, "rocketmq_message_size_bucket", &small),
        Some(0.0)
    );
    let fits = [of_topic[0], of_topic[1], ("le", "4096")];
    assert_eq!(
        value(&page, "rocketmq_message_size_bucket", &fits),
        Some(12.0)
    );
    let delayed = [("topic", "measured"), ("message_type", "delay")];
    assert_eq!(
        value(&page, "rocketmq_messages_in_total", &delayed),
        Some(1.0)
    );
    assert_eq!(
        value(&page, "rocketmq_timing_messages", &[("topic", "measured")]),
        Some(1.0)
    );
    let group = [("topic", "measured"), ("consumer_group", "lagging")];
    assert_eq!(
        value(&page, "rocketmq_consumer_lag_messages", &group),
        Some(8.0)
    );
    assert_eq!(
        value(&page, "rocketmq_consumer_ready_messages", &group),
        Some(8.0)
    );
    assert_eq!(
        value(&page, "rocketmq_consumer_inflight_messages", &group),
        Some(0.0)
    );
    let age_ms = value(&page, "rocketmq_consumer_lag_latency", &group).unwrap();
    assert!((0.0..60_000.0).contains(&age_ms), "{age_ms}");
    let unknown = [("reason", "not_supported")];
    assert_eq!(value(&page, "ringmq_refused_total", &unknown), Some(1.0));
    for shard in ["0", "1"] {
        let own = [("shard", shard)];
        assert!(value(&page, "ringmq_log_flush_seconds_count", &own).unwrap() > 0.0);
        assert!(value(&page, "ringmq_log_batch_bytes_sum", &own).unwrap() > 4_000.0);
        let busy = value(&page, "ringmq_shard_busy_ratio", &own).unwrap();
        assert!((0.0..=1.0).contains(&busy), "{busy}");
        let tail = [("shard", shard), ("cache", "tail")];
        assert!(value(&page, "ringmq_cache_bytes", &tail).unwrap() > 0.0);
        assert_eq!(value(&page, "ringmq_log_writable", &own), Some(1.0));
    }
    let resident = value(&page, "process_resident_memory_bytes", &[]).unwrap();
    assert!((1e6..1e9).contains(&resident), "{resident}");
    assert!(sum(&page, "rocketmq_topic_number") > 1.0);

    // Who catches up has no lag and no age.
    for queue in 0..4 {
        client
            .commit_offset("lagging", "measured", queue, 3)
            .unwrap();
    }
    let (_, page) = get(address, "/metrics");
    assert_eq!(
        value(&page, "rocketmq_consumer_lag_messages", &group),
        Some(0.0)
    );
    assert_eq!(
        value(&page, "rocketmq_consumer_lag_latency", &group),
        Some(0.0)
    );
}

#[test]
fn what_retention_removes_before_a_group_has_consumed_it_is_counted_and_said() {
    let directory = store_dir();
    let node = Setup::new(directory.path(), 1)
        .set("mappedFileSizeCommitLog=2097152")
        .set("storeBytesMax=6291456")
        .set("cleanResourceInterval=100")
        .start();
    let mut client = node.connect();
    client.create_topic("kept", 1).unwrap();
    for group in ["left", "done", "popping"] {
        client.create_group(group).unwrap();
    }
    let send = |client: &mut Connection, count: usize| {
        for _ in 0..count {
            client
                .send(&Message::new("kept", 0, vec![b'x'; 64 << 10]))
                .unwrap();
        }
    };
    send(&mut client, 8);
    client.commit_offset("left", "kept", 0, 5).unwrap();
    let now = now_ms().to_string();
    let pop = [
        ("consumerGroup", "popping"),
        ("topic", "kept"),
        ("queueId", "0"),
        ("maxMsgNums", "2"),
        ("invisibleTime", "60000"),
        ("pollTime", "0"),
        ("bornTime", &now),
        ("initMode", "0"),
        ("expType", "TAG"),
        ("exp", "*"),
    ]
    .map(|(name, value)| (name, value.to_owned()));
    let popped = client
        .ask(&Command::request(POP_MESSAGE, &pop, Vec::new()))
        .unwrap();
    assert_eq!(popped.code, 0, "{}", popped.remark);
    for _ in 0..20 {
        send(&mut client, 10);
        let end = client.max_offset("kept", 0).unwrap();
        client.commit_offset("done", "kept", 0, end).unwrap();
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut gone = 0;
    // 13 MiB were sent, and at most 6 and a segment stay.
    while gone < 64 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(200));
        gone = client.min_offset("kept", 0).unwrap();
    }
    std::thread::sleep(Duration::from_millis(500));
    let begin = client.min_offset("kept", 0).unwrap();
    assert!(begin >= 64, "retention has removed nothing: {begin}");
    let page = page(&node);
    let missed = |group: &str| {
        let labels = [("topic", "kept"), ("consumer_group", group)];
        value(&page, "ringmq_messages_missed_total", &labels)
    };
    assert_eq!(
        missed("left"),
        Some((begin - 5) as f64),
        "begins at {begin}"
    );
    assert_eq!(missed("done"), Some(0.0), "it had consumed everything");
    assert_eq!(
        missed("popping"),
        Some(begin as f64),
        "two were in flight, the rest was never given out"
    );
    let shown = |group: &str| ringmq(&node, &["group", "show", group, "-o", "json"]).json();
    let left = shown("left");
    assert_eq!(left["removed"], begin - 5, "{left}");
    assert_eq!(left["queues"][0]["removed"], begin - 5, "{left}");
    assert_eq!(left["lag"], 208 - 5, "{left}");
    // Of the oldest message that is still there.
    assert!(left["delaySeconds"].as_f64().unwrap() < 600.0, "{left}");
    assert_eq!(shown("done")["removed"], 0);
    let said = node.output();
    let said = said
        .lines()
        .filter(|line| line.contains("retention removed messages that a group had not consumed"));
    let (mut of_left, mut of_done) = (0, 0);
    for line in said {
        assert!(line.contains("kept"), "{line}");
        of_left += usize::from(line.contains("left"));
        of_done += usize::from(line.contains("group=done"));
    }
    assert!(of_left > 0, "no warning");
    assert_eq!(of_done, 0);
    // A group that is gone misses nothing any more.
    let fields = [
        ("groupName", "left".to_owned()),
        ("cleanOffset", "true".to_owned()),
    ];
    let deleted = client
        .ask(&Command::request(DELETE_GROUP, &fields, Vec::new()))
        .unwrap();
    assert_eq!(deleted.code, 0, "{}", deleted.remark);
    let page = self::page(&node);
    let labels = [("topic", "kept"), ("consumer_group", "left")];
    assert_eq!(value(&page, "ringmq_messages_missed_total", &labels), None);
}

#[test]
fn the_page_keeps_to_the_text_format_and_the_connection_is_kept() {
    let directory = store_dir();
    let node = Setup::new(directory.path(), 1).start();
    let mut stream = TcpStream::connect(metrics_address(&node)).unwrap();
    let mut lengths = Vec::new();
    for _ in 0..3 {
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
            .unwrap();
        let mut answer = Vec::new();
        let head_end = loop {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            answer.push(byte[0]);
            if answer.ends_with(b"\r\n\r\n") {
                break answer.len();
            }
        };
        let head = String::from_utf8(answer[..head_end].to_vec()).unwrap();
        assert!(head.contains("version=0.0.4"), "{head}");
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: "));
        let mut body = vec![0; length.unwrap().parse().unwrap()];
        stream.read_exact(&mut body).unwrap();
        let body = String::from_utf8(body).unwrap();
        let mut typed = BTreeSet::new();
        for line in body.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert!(typed.insert(name.to_owned()), "{name} comes twice");
            } else if !line.starts_with("# HELP ") {
                let (series, value) = line.rsplit_once(' ').unwrap();
                value.parse::<f64>().unwrap_or_else(|_| panic!("{line}"));
                let name = series.split('{').next().unwrap();
                let family = ["_bucket", "_sum", "_count"]
                    .iter()
                    .find_map(|suffix| {
                        name.strip_suffix(suffix)
                            .filter(|name| typed.contains(*name))
                    })
                    .unwrap_or(name);
                assert!(typed.contains(family), "{line} has no type");
            }
        }
        assert!(typed.len() > 40);
        lengths.push(body.len());
    }
    assert_eq!(lengths.len(), 3);
}

#[test]
fn probes_see_health_and_what_is_no_http_ends_its_own_connection_only() {
    let directory = store_dir();
    let node = Setup::new(directory.path(), 2).start();
    let address = metrics_address(&node);
    assert_eq!(get(address, "/healthz"), (200, "ok\n".into()));
    // The name server knows the broker a moment before the broker calls itself ready.
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match get(address, "/readyz") {
            (200, page) => break assert_eq!(page, "ready\n"),
            (503, page) => assert_eq!(page, "the ports are not open (yet, or any more)\n"),
            other => panic!("{other:?}"),
        }
        assert!(Instant::now() < deadline, "{}", node.output());
    }
    assert_eq!(get(address, "/secret").0, 404);
    let mut wrong = TcpStream::connect(address).unwrap();
    wrong.write_all(b"\0\0\0\x10garbage\r\n\r\n").unwrap();
    let mut answer = String::new();
    wrong.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert_eq!(get(address, "/healthz").0, 200);
}

#[test]
fn a_port_of_metrics_that_is_taken_stops_no_broker_and_is_opened_when_it_is_free() {
    let directory = store_dir();
    let setup = Setup::new(directory.path(), 1);
    let address = SocketAddr::from(([127, 0, 0, 1], setup.namesrv_port + 2));
    let taken = TcpListener::bind(address).unwrap();
    let node = setup.start();
    node.connect().create_topic("t", 1).unwrap();
    assert!(node.output().contains("no metrics"), "{}", node.output());
    drop(taken);
    let deadline = Instant::now() + Duration::from_secs(30);
    while TcpStream::connect(address).is_err() {
        assert!(Instant::now() < deadline, "{}", node.output());
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(get(address, "/healthz").0, 200);
}

#[test]
fn metrics_can_be_switched_off() {
    for off in ["metricsExporterType=DISABLE", "metricsPromExporterPort=0"] {
        let directory = store_dir();
        let node = Setup::new(directory.path(), 1).set(off).start();
        assert!(TcpStream::connect(metrics_address(&node)).is_err(), "{off}");
        assert!(!node.output().contains("no metrics"), "{off}");
    }
}

#[test]
fn members_that_subscribe_differently_are_named_once_and_seen_in_the_metrics_and_by_tools() {
    let directory = store_dir();
    let node = Setup::new(directory.path(), 2).start();
    let (mut one, mut other) = (node.connect(), node.connect());
    one.create_topic("shared", 2).unwrap();
    let warnings = || {
        let output = node.output();
        let lines = output
            .lines()
            .filter(|line| line.contains("subscribe differently"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let connections = |client: &mut Connection| -> Value {
        let fields = [("consumerGroup", "differing".to_string())];
        let request = Command::request(GET_CONSUMER_CONNECTION_LIST, &fields, Vec::new());
        serde_json::from_slice(&client.ask(&request).unwrap().body).unwrap()
    };
    assert_eq!(
        heartbeat(&mut one, "10.0.0.1@1", "shared", "a")
            .unwrap()
            .code,
        0
    );
    assert_eq!(connections(&mut one)["subscriptionsDiffer"], Value::Null);
    for _ in 0..3 {
        let answer = heartbeat(&mut other, "10.0.0.2@2", "shared", "b || c").unwrap();
        assert_eq!(answer.code, 0, "it is only warned of");
        heartbeat(&mut one, "10.0.0.1@1", "shared", "a").unwrap();
    }
    let seen = warnings();
    assert_eq!(seen.len(), 1, "{seen:?}");
    for part in [
        "10.0.0.1@1",
        "10.0.0.2@2",
        "'a'",
        "'b || c'",
        "shared",
        "differing",
    ] {
        assert!(seen[0].contains(part), "{part}: {}", seen[0]);
    }
    let told = connections(&mut one)["subscriptionsDiffer"].clone();
    assert_eq!(told["topic"], "shared");
    assert_eq!(told["oneSubscription"], "a");
    assert_eq!(told["otherClient"], "10.0.0.2@2");
    let group = [("consumer_group", "differing")];
    let differ = || {
        let (_, page) = get(metrics_address(&node), "/metrics");
        value(&page, "ringmq_group_subscriptions_differ", &group)
    };
    assert_eq!(differ(), Some(1.0));
    // They agree again, in whatever order the tags stand.
    heartbeat(&mut one, "10.0.0.1@1", "shared", "c||b").unwrap();
    assert_eq!(connections(&mut one)["subscriptionsDiffer"], Value::Null);
    assert_eq!(differ(), None);
    heartbeat(&mut one, "10.0.0.1@1", "shared", "d").unwrap();
    assert_eq!(warnings().len(), 2, "a new change");
}

#[test]
fn a_strict_broker_refuses_who_subscribes_differently() {
    let directory = store_dir();
    let setup = Setup::new(directory.path(), 2).set("rejectInconsistentSubscription=true");
    let node = setup.start();
    let (mut one, mut other) = (node.connect(), node.connect());
    one.create_topic("shared", 2).unwrap();
    assert_eq!(heartbeat(&mut one, "c1", "shared", "a").unwrap().code, 0);
    for _ in 0..2 {
        let answer = heartbeat(&mut other, "c2", "shared", "b").unwrap();
        assert_eq!(answer.code, NO_PERMISSION);
        assert!(answer.remark.contains("rejectInconsistentSubscription"));
    }
    assert_eq!(one.consumers("differing").unwrap(), ["c1"]);
    assert_eq!(node.output().matches("a member is refused").count(), 1);
    assert_eq!(heartbeat(&mut other, "c2", "shared", "a").unwrap().code, 0);
    assert_eq!(one.consumers("differing").unwrap().len(), 2);
    let (_, page) = get(metrics_address(&node), "/metrics");
    let refused = [("reason", "subscription_differs")];
    assert_eq!(value(&page, "ringmq_refused_total", &refused), Some(2.0));
}

#[test]
fn pops_acknowledgements_and_transactions_count_in_the_statistics() {
    let directory = store_dir();
    let node = Setup::new(directory.path(), 2).start();
    let mut client = node.connect();
    client.create_topic("counted", 1).unwrap();
    client.create_group("popping").unwrap();
    for body in ["one", "two"] {
        client.send(&Message::new("counted", 0, body)).unwrap();
    }
    let fields = |pairs: &[(&'static str, &str)]| -> Vec<(&'static str, String)> {
        pairs
            .iter()
            .map(|(name, value)| (*name, (*value).to_string()))
            .collect()
    };
    let now = now_ms().to_string();
    let pop = fields(&[
        ("consumerGroup", "popping"),
        ("topic", "counted"),
        ("queueId", "0"),
        ("maxMsgNums", "8"),
        ("invisibleTime", "60000"),
        ("pollTime", "0"),
        ("bornTime", &now),
        ("initMode", "0"),
        ("expType", "TAG"),
        ("exp", "*"),
    ]);
    let popped = client
        .ask(&Command::request(POP_MESSAGE, &pop, Vec::new()))
        .unwrap();
    assert_eq!(popped.code, 0, "{}", popped.remark);
    assert_eq!(
        statistic(&mut client, "GROUP_GET_NUMS", "counted@popping"),
        Some(2)
    );
    assert_eq!(
        statistic(&mut client, "GROUP_ACK_NUMS", "counted@popping"),
        None
    );
    let group = [("topic", "counted"), ("consumer_group", "popping")];
    let (_, page) = get(metrics_address(&node), "/metrics");
    assert_eq!(
        value(&page, "rocketmq_consumer_inflight_messages", &group),
        Some(2.0)
    );
    assert_eq!(
        value(&page, "rocketmq_consumer_ready_messages", &group),
        Some(0.0)
    );
    assert_eq!(
        value(&page, "rocketmq_consumer_lag_messages", &group),
        Some(2.0)
    );
    let receipt = format!(
        "0 {} {} 0 0 {} 0 0",
        field(&popped, "popTime"),
        field(&popped, "invisibleTime"),
        broker_name(&mut node.connect_namesrv(), "counted"),
    );
    let ack = fields(&[
        ("consumerGroup", "popping"),
        ("topic", "counted"),
        ("queueId", "0"),
        ("offset", "0"),
        ("extraInfo", &receipt),
    ]);
    let acked = client
        .ask(&Command::request(ACK_MESSAGE, &ack, Vec::new()))
        .unwrap();
    assert_eq!(acked.code, 0, "{}", acked.remark);
    assert_eq!(
        statistic(&mut client, "GROUP_ACK_NUMS", "counted@popping"),
        Some(1)
    );
    let (_, page) = get(metrics_address(&node), "/metrics");
    assert_eq!(
        value(&page, "rocketmq_consumer_inflight_messages", &group),
        Some(1.0)
    );

    // A half counts for the topic of the halves, and for its own when it is committed.
    let half = Message {
        sys_flag: 4,
        ..Message::new("counted", 0, "half")
    };
    let half = half
        .property("TRAN_MSG", "true")
        .property("PGROUP", "P")
        .property("UNIQ_KEY", "HALF1");
    let sent = client.ask(&half.send_v2()).unwrap();
    assert_eq!(sent.code, 0, "{}", sent.remark);
    assert_eq!(statistic(&mut client, "TOPIC_PUT_NUMS", "counted"), Some(2));
    assert_eq!(
        statistic(&mut client, "TOPIC_PUT_NUMS", "RMQ_SYS_TRANS_HALF_TOPIC"),
        Some(1)
    );
    let (_, page) = get(metrics_address(&node), "/metrics");
    assert_eq!(
        value(&page, "rocketmq_half_messages", &[("topic", "counted")]),
        Some(1.0)
    );
    let id = field(&sent, "msgId");
    let origin = i64::from_str_radix(&id[id.len() - 16..], 16)
        .unwrap()
        .to_string();
    let end = fields(&[
        ("producerGroup", "P"),
        ("tranStateTableOffset", &field(&sent, "queueOffset")),
        ("commitLogOffset", &origin),
        ("commitOrRollback", "8"),
        ("fromTransactionCheck", "false"),
        ("msgId", "HALF1"),
        ("transactionId", "HALF1"),
    ]);
    let ended = client
        .ask(&Command::request(code::END_TRANSACTION, &end, Vec::new()))
        .unwrap();
    assert_eq!(ended.code, 0, "{}", ended.remark);
    assert_eq!(statistic(&mut client, "TOPIC_PUT_NUMS", "counted"), Some(3));
    let (_, page) = get(metrics_address(&node), "/metrics");
    assert_eq!(
        value(&page, "rocketmq_half_messages", &[("topic", "counted")]),
        None
    );
    let committed = [("topic", "counted")];
    assert_eq!(
        value(&page, "rocketmq_commit_messages_total", &committed),
        Some(1.0)
    );
}

fn broker_name(namesrv: &mut Connection, topic: &str) -> String {
    let route = namesrv.route(topic).unwrap();
    route["queueDatas"][0]["brokerName"]
        .as_str()
        .unwrap()
        .to_owned()
}
