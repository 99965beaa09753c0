//! `ringmq topic|group|message|dlq|offset|broker|cluster`: what they print, what they change, and how they end.

use std::fs;

use serde_json::json;

use super::ringmq;
use crate::client::{Command, Connection, Message, code};
use crate::node::{Node, Setup, store_dir};
use crate::pop;
use crate::record::Record;

const NOT_FOUND: i32 = 3;
const USAGE: i32 = 2;

fn node(directory: &tempfile::TempDir) -> Node {
    Setup::new(directory.path(), 2).start()
}

fn send(connection: &mut Connection, topic: &str, queue: i32, number: u32) {
    let message = Message::new(topic, queue, format!("body {number}"))
        .property("KEYS", &format!("key{number}"))
        .property("UNIQ_KEY", &format!("{number:032X}"));
    connection.send(&message).unwrap();
}

/// Sends messages and gives them up for a group at once.
fn make_dead_letters(connection: &mut Connection, topic: &str, group: &str, count: u32) {
    connection.create_group(group).unwrap();
    connection.heartbeat("member", group, topic).unwrap();
    for number in 0..count {
        send(connection, topic, 0, number);
    }
    for record in connection.read_queue(topic, 0, 0).unwrap() {
        give_back(connection, &record, group, "-1");
    }
}

/// As a consumer that failed; level -1 gives the message up.
fn give_back(connection: &mut Connection, record: &Record, group: &str, level: &str) {
    let fields = [
        ("offset", record.physical_offset.to_string()),
        ("group", group.to_owned()),
        ("delayLevel", level.to_owned()),
        ("originTopic", record.topic.clone()),
    ];
    let back = Command::request(code::CONSUMER_SEND_MSG_BACK, &fields, Vec::new());
    connection.call(&back).unwrap();
}

#[test]
fn a_topic_is_made_changed_shown_and_deleted_only_after_a_yes() {
    let directory = store_dir();
    let node = node(&directory);
    let mut connection = node.connect();
    ringmq(&node, &["topic", "create", "T", "-q", "3"]).ok();
    // Only what is given changes.
    ringmq(&node, &["topic", "create", "T", "--write-queues", "2"]).ok();
    let shown = ringmq(&node, &["topic", "show", "T", "-o", "json"]).json();
    assert_eq!(shown["brokers"][0]["readQueues"], 3);
    assert_eq!(shown["brokers"][0]["writeQueues"], 2);
    for number in 0..5 {
        send(&mut connection, "T", 1, number);
    }
    let stats = ringmq(&node, &["-o", "json", "topic", "stats", "T"]);
    assert_eq!(stats.code, USAGE, "a flag stands behind its noun");
    let stats = ringmq(&node, &["topic", "-o", "json", "stats", "T"]).json();
    assert_eq!(stats[1]["messages"], 5);
    assert_eq!(stats[1]["maxOffset"], 5);
    assert!(stats[1]["lastUpdateTimestamp"].as_i64().unwrap() > 0);
    let table = ringmq(&node, &["topic", "stats", "T"]).ok();
    assert!(table.starts_with("BROKER NAME"), "{table}");

    let dry = ringmq(&node, &["topic", "delete", "T", "--dry-run"]).ok();
    assert!(dry.contains("would delete T"), "{dry}");
    let unconfirmed = ringmq(&node, &["topic", "delete", "T"]);
    assert_eq!(unconfirmed.code, USAGE, "{unconfirmed:?}");
    assert!(unconfirmed.err.contains("--yes"), "{unconfirmed:?}");
    let listed = ringmq(&node, &["topic", "list"]).ok();
    assert!(
        listed.lines().any(|line| line.starts_with("T  ")),
        "{listed}"
    );
    ringmq(&node, &["topic", "delete", "T", "--yes"]).ok();
    assert_eq!(ringmq(&node, &["topic", "show", "T"]).code, NOT_FOUND);
    let listed = ringmq(&node, &["topic", "list"]).ok();
    assert!(
        !listed.lines().any(|line| line.starts_with("T  ")),
        "{listed}"
    );
    // One that is not there keeps the others from being deleted.
    ringmq(&node, &["topic", "create", "T"]).ok();
    let both = ringmq(&node, &["topic", "delete", "T", "gone", "--yes"]);
    assert_eq!(both.code, NOT_FOUND, "{both:?}");
    ringmq(&node, &["topic", "show", "T"]).ok();
}

#[test]
fn a_message_is_found_by_its_ids_and_keys_and_printed_in_order() {
    let directory = store_dir();
    let node = node(&directory);
    ringmq(&node, &["topic", "create", "T", "-q", "2"]).ok();
    let mut sent = Vec::new();
    for number in 0..3 {
        let body = format!("body {number}");
        let line = ringmq(
            &node,
            &[
                "message",
                "send",
                "-t",
                "T",
                &body,
                "-k",
                "order",
                "--tags",
                "a",
                "-q",
                "1",
                "-p",
                "colour=red",
                "-o",
                "json",
            ],
        );
        sent.push(line.json());
    }
    let found = ringmq(
        &node,
        &["message", "query", "-t", "T", "-k", "order", "-o", "json"],
    );
    let found = found.json_lines();
    assert_eq!(found.len(), 3);
    assert_eq!(found[0]["properties"]["colour"], "red");
    for id in [&sent[1]["msgId"], &sent[1]["offsetMsgId"]] {
        let id = id.as_str().unwrap();
        let got = ringmq(&node, &["message", "get", id, "-t", "T", "-o", "json"]).json();
        assert_eq!(got["body"], "body 1", "{id}");
        assert_eq!(got["queueOffset"], 1);
    }
    let id = sent[2]["offsetMsgId"].as_str().unwrap();
    let got = ringmq(&node, &["message", "get", id]).ok();
    assert!(got.contains("body 2"), "{got}");
    let printed = ringmq(
        &node,
        &[
            "message", "print", "-t", "T", "-q", "1", "--from", "1", "--count", "1", "-o", "json",
        ],
    );
    let printed = printed.json_lines();
    assert_eq!(printed.len(), 1);
    assert_eq!(printed[0]["body"], "body 1");
    let none = ringmq(&node, &["message", "query", "-t", "T", "-k", "nobody"]);
    assert_eq!(none.code, NOT_FOUND, "{none:?}");
    let wrong = ringmq(
        &node,
        &["message", "print", "-t", "T", "--begin", "yesterday"],
    );
    assert_eq!(wrong.code, USAGE, "{wrong:?}");
}

#[test]
fn dead_letters_are_listed_exported_and_sent_again_as_selected() {
    let directory = store_dir();
    let node = node(&directory);
    let mut connection = node.connect();
    connection.create_topic("T", 1).unwrap();
    make_dead_letters(&mut connection, "T", "G", 4);
    let listed = ringmq(&node, &["dlq", "list", "-o", "json"]).json();
    assert_eq!(listed[0]["group"], "G");
    assert_eq!(listed[0]["messages"], 4);
    let shown = ringmq(&node, &["dlq", "show", "G", "-o", "json"]).json();
    assert_eq!(shown.as_array().unwrap().len(), 4);
    assert_eq!(shown[0]["originTopic"], "T");
    let by_key = ringmq(&node, &["dlq", "show", "G", "-k", "key2", "-o", "json"]).json();
    assert_eq!(by_key.as_array().unwrap().len(), 1);

    let file = directory.path().join("letters");
    let path = file.to_str().unwrap();
    ringmq(&node, &["dlq", "export", "G", "-f", path]).ok();
    let lines = fs::read_to_string(&file).unwrap();
    assert_eq!(lines.lines().count(), 4);
    assert!(lines.contains("body 3"), "{lines}");
    let again = ringmq(&node, &["dlq", "export", "G", "-f", path]);
    assert_eq!(
        again.code, 1,
        "a file that is there stays as it is: {again:?}"
    );

    let dry = ringmq(&node, &["dlq", "resend", "G", "-k", "key1", "--dry-run"]).ok();
    assert!(dry.contains("send 1 dead letters"), "{dry}");
    assert_eq!(connection.max_offset("%RETRY%G", 0).unwrap(), 0);
    let resent = ringmq(
        &node,
        &[
            "dlq", "resend", "G", "-k", "key1", "-k", "key3", "--yes", "-o", "json",
        ],
    );
    let resent = resent.json_lines();
    assert_eq!(resent.len(), 2);
    assert!(
        resent.iter().all(|line| line["result"] == "sent"),
        "{resent:?}"
    );
    let retried = connection.read_queue("%RETRY%G", 0, 0).unwrap();
    assert_eq!(retried.len(), 2);
    assert_eq!(retried[0].body, b"body 1");
    assert_eq!(retried[0].properties["RETRY_TOPIC"], "T");
    assert_eq!(retried[0].properties["KEYS"], "key1");
    assert_eq!(retried[0].reconsume_times, 0);

    // To all groups of the topic: as any message of it.
    let id = format!("{:032X}", 2);
    ringmq(
        &node,
        &["dlq", "resend", "G", "--id", &id, "--to", "topic", "--yes"],
    )
    .ok();
    let topic = connection.read_queue("T", 0, 4).unwrap();
    assert_eq!(topic.len(), 1);
    assert_eq!(topic[0].body, b"body 2");
    assert!(!topic[0].properties.contains_key("RETRY_TOPIC"));
    let nothing = ringmq(&node, &["dlq", "resend", "G", "-k", "nobody", "--yes"]);
    assert_eq!(nothing.code, NOT_FOUND, "{nothing:?}");
    // They are still there.
    assert_eq!(connection.max_offset("%DLQ%G", 0).unwrap(), 4);
}

#[test]
fn a_rate_spaces_out_what_is_sent_again_and_a_refusal_is_told_message_by_message() {
    let directory = store_dir();
    // A send to a topic that was deleted must not make it again.
    let node = Setup::new(directory.path(), 2)
        .set("autoCreateTopicEnable=false")
        .start();
    let mut connection = node.connect();
    connection.create_topic("T", 1).unwrap();
    make_dead_letters(&mut connection, "T", "G", 4);
    let begin = std::time::Instant::now();
    ringmq(&node, &["dlq", "resend", "G", "--rate", "5", "--yes"]).ok();
    assert!(begin.elapsed().as_millis() >= 600, "{:?}", begin.elapsed());
    connection.delete_topic("T").unwrap();
    ringmq(&node, &["topic", "list"]).ok();
    let failed = ringmq(
        &node,
        &["dlq", "resend", "G", "--to", "topic", "--yes", "-o", "json"],
    );
    assert_eq!(failed.code, 4, "{failed:?}");
    assert_eq!(failed.out.matches("\"failed\"").count(), 4, "{failed:?}");
}

#[test]
fn offsets_are_shown_reset_skipped_and_cloned() {
    let directory = store_dir();
    let node = node(&directory);
    let mut connection = node.connect();
    connection.create_topic("T", 2).unwrap();
    connection.create_group("G").unwrap();
    for number in 0..6 {
        send(&mut connection, "T", (number % 2) as i32, number);
    }
    connection.commit_offset("G", "T", 0, 2).unwrap();
    connection.commit_offset("G", "T", 1, 3).unwrap();
    let shown = ringmq(&node, &["group", "show", "G", "-o", "json"]).json();
    assert_eq!(shown["lag"], 1);
    assert_eq!(shown["online"], false);
    assert_eq!(shown["queues"][0]["lag"], 1);
    assert!(shown["delaySeconds"].as_f64().unwrap() >= 0.0);
    // Beyond the end: nothing is left, and nothing is negative.
    connection.commit_offset("G", "T", 1, 9).unwrap();
    let shown = ringmq(&node, &["offset", "show", "G", "-o", "json"]).json();
    assert_eq!(shown[1]["lag"], 0);

    let reset = ["offset", "reset", "G", "-t", "T", "--to", "begin"];
    let dry = ringmq(&node, &[&reset[..], &["--dry-run", "-o", "json"]].concat()).json();
    assert_eq!(dry[0]["repeated"], 2);
    assert_eq!(ringmq(&node, &reset).code, USAGE);
    assert_eq!(connection.consumer_offset("G", "T", 0).unwrap(), Some(2));
    ringmq(&node, &[&reset[..], &["--yes"]].concat()).ok();
    assert_eq!(connection.consumer_offset("G", "T", 0).unwrap(), Some(0));
    assert_eq!(connection.consumer_offset("G", "T", 1).unwrap(), Some(0));
    let one = ["offset", "reset", "G", "-t", "T", "-q", "1", "--offset"];
    ringmq(&node, &[&one[..], &["2", "--yes"]].concat()).ok();
    assert_eq!(connection.consumer_offset("G", "T", 1).unwrap(), Some(2));
    assert_eq!(connection.consumer_offset("G", "T", 0).unwrap(), Some(0));
    let outside = ringmq(&node, &[&one[..], &["99", "--yes"]].concat());
    assert_eq!(outside.code, 1, "{outside:?}");
    ringmq(&node, &["offset", "clone", "G", "H", "--yes"]).ok();
    assert_eq!(connection.consumer_offset("H", "T", 1).unwrap(), Some(2));
    ringmq(&node, &["offset", "skip", "G", "-t", "T", "--yes"]).ok();
    assert_eq!(connection.consumer_offset("G", "T", 0).unwrap(), Some(3));
    let nobody = ringmq(&node, &["offset", "show", "nobody"]);
    assert_eq!(nobody.code, NOT_FOUND, "{nobody:?}");
}

/// A group is shown with what is ready, what POP consumers have, what waits for a retry, and who subscribes what.
#[test]
fn a_group_is_shown_with_what_is_in_flight_what_is_delayed_and_whose_subscriptions_differ() {
    let directory = store_dir();
    let node = node(&directory);
    let mut connection = node.connect();
    connection.create_topic(pop::TOPIC, pop::QUEUES).unwrap();
    connection.create_group(pop::GROUP).unwrap();
    for number in 0..10 {
        send(&mut connection, pop::TOPIC, 0, number);
    }
    let first = connection.read_queue(pop::TOPIC, 0, 0).unwrap();
    let popped = pop::pop_request(pop::TOPIC, 4, 60_000, 0, &[]);
    let popped = pop::popped(&connection.ask(&popped).unwrap());
    assert_eq!(popped.len(), 4);
    let ack = pop::with_receipt(pop::ACK_MESSAGE, &popped[0], &[]);
    connection.call(&ack).unwrap();
    give_back(&mut connection, &first[9], pop::GROUP, "5");
    let show = || ringmq(&node, &["group", "show", pop::GROUP, "-o", "json"]).json();
    let shown = show();
    let figures = |name: &str| shown[name].as_i64().unwrap();
    assert_eq!(
        (
            figures("lag"),
            figures("inFlight"),
            figures("retryLag"),
            figures("delayedRetries")
        ),
        (9, 3, 0, 1),
        "{shown}"
    );
    assert_eq!(shown["queues"][0]["inFlight"], 3, "{shown}");
    assert_eq!(shown["subscriptionsDiffer"], serde_json::Value::Null);
    connection.heartbeat("one", pop::GROUP, pop::TOPIC).unwrap();
    let mut other = node.connect();
    other.heartbeat("other", pop::GROUP, "elsewhere").unwrap();
    let shown = show();
    let told = shown["subscriptionsDiffer"].as_str().unwrap_or_default();
    assert!(told.contains("one") && told.contains("other"), "{shown}");
}

#[test]
fn a_group_is_made_listed_shown_with_its_members_and_deleted_with_its_topics() {
    let directory = store_dir();
    let node = node(&directory);
    let mut connection = node.connect();
    connection.create_topic("T", 1).unwrap();
    ringmq(&node, &["group", "create", "G", "--retry-max-times", "3"]).ok();
    connection.heartbeat("member", "G", "T").unwrap();
    let shown = ringmq(&node, &["group", "show", "G", "-o", "json"]).json();
    assert_eq!(shown["members"][0]["clientId"], "member");
    assert_eq!(shown["retryMaxTimes"], 3);
    let topics: Vec<_> = shown["subscriptions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|subscription| subscription["topic"].clone())
        .collect();
    assert!(topics.contains(&json!("T")), "{topics:?}");
    let listed = ringmq(&node, &["group", "list", "-o", "json"]).json();
    let of_g = listed
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["group"] == "G");
    assert_eq!(of_g.unwrap()["members"], 1);
    connection.unregister("member", "G").unwrap();
    ringmq(&node, &["group", "delete", "G", "--yes"]).ok();
    assert_eq!(ringmq(&node, &["group", "show", "G"]).code, NOT_FOUND);
    let topics = ringmq(&node, &["topic", "list", "--all"]).ok();
    assert!(!topics.contains("%RETRY%G"), "{topics}");
}

#[test]
fn brokers_tell_their_figures_and_take_only_configuration_that_is_allowed() {
    let directory = store_dir();
    let node = node(&directory);
    let brokers = ringmq(&node, &["broker", "list", "-o", "json"]).json();
    assert_eq!(brokers[0]["address"], node.broker.to_string());
    assert_eq!(brokers[0]["state"], "up");
    assert_eq!(
        ringmq(&node, &["cluster", "list", "-o", "json"]).json()[0]["brokerId"],
        0
    );
    let name = brokers[0]["brokerName"].as_str().unwrap();
    let status = ringmq(&node, &["broker", "status", name, "-o", "json"]).json();
    assert_eq!(status["brokerActive"], "true");
    let set = ["broker", "config", "set", name, "fileReservedTime=71"];
    ringmq(&node, &[&set[..], &["--dry-run"]].concat()).ok();
    let get = [
        "broker",
        "config",
        "get",
        name,
        "fileReservedTime",
        "-o",
        "json",
    ];
    assert_eq!(ringmq(&node, &get).json()["fileReservedTime"], "72");
    ringmq(&node, &set).ok();
    assert_eq!(ringmq(&node, &get).json()["fileReservedTime"], "71");
    let refused = ringmq(
        &node,
        &["broker", "config", "set", name, "storePathRootDir=/x"],
    );
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.err.contains("fileReservedTime"), "{refused:?}");
    let unknown = ringmq(&node, &["broker", "config", "get", name, "nonsense"]);
    assert_eq!(unknown.code, NOT_FOUND, "{unknown:?}");
    // Nobody listens there.
    let nobody = ringmq(&node, &["topic", "list", "-n", "127.0.0.1:1"]);
    assert_eq!(nobody.code, 1, "{nobody:?}");
    assert!(nobody.err.contains("127.0.0.1:1"), "{nobody:?}");
}
