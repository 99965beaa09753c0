//! Offsets that are reset while their group consumes: a member is moved with its next pull, whatever it commits until then.

use crate::client::{Command, Connection, Message, Pull, answer};
use crate::node::{Node, Setup, store_dir};

const INVOKE_BROKER_TO_RESET_OFFSET: i32 = 222;
const RESET_CONSUMER_CLIENT_OFFSET: i32 = 220;
const QUERY_CORRECTION_OFFSET: i32 = 308;
const GET_BROKER_RUNTIME_INFO: i32 = 28;

fn reset(connection: &mut Connection, timestamp: i64) -> String {
    let fields = [
        ("topic", "T".to_owned()),
        ("group", "G".to_owned()),
        ("timestamp", timestamp.to_string()),
        ("isForce", "true".to_owned()),
    ];
    let request = Command::request(INVOKE_BROKER_TO_RESET_OFFSET, &fields, Vec::new());
    let answer = connection.call(&request).unwrap();
    String::from_utf8(answer.body).unwrap()
}

/// A client of a node that has topic T with one queue of so many messages, and group G.
fn filled(node: &Node, messages: u32) -> Connection {
    let mut tool = node.connect();
    tool.create_topic("T", 1).unwrap();
    tool.create_group("G").unwrap();
    for number in 0..messages {
        tool.send(&Message::new("T", 0, format!("{number}")))
            .unwrap();
    }
    tool
}

fn pull(offset: i64) -> Pull {
    let mut pull = Pull::new("T", 0, offset);
    pull.group = "G".into();
    pull
}

#[test]
fn a_member_that_pulls_on_is_sent_to_the_new_offset_and_its_commits_do_not_count_until_then() {
    let directory = store_dir();
    // Two cores: the member's connection may be on another one than its queue.
    let node = Setup::new(directory.path(), 2).start();
    let mut tool = filled(&node, 10);
    for _ in 0..6 {
        let mut member = node.connect();
        member.heartbeat("member", "G", "T").unwrap();
        member.commit_offset("G", "T", 0, 8).unwrap();
        let body = reset(&mut tool, 0);
        assert!(body.ends_with(":0}}"), "{body}");
        assert_eq!(tool.consumer_offset("G", "T", 0).unwrap(), Some(0));
        // It was told (220); one that does not listen goes on as if nothing was.
        member.commit_offset("G", "T", 0, 9).unwrap();
        assert_eq!(tool.consumer_offset("G", "T", 0).unwrap(), Some(0));
        let moved = member.pull(&pull(9)).unwrap();
        assert_eq!(
            (moved.code, moved.next_offset),
            (answer::PULL_OFFSET_MOVED, 0)
        );
        let told = |command: &Command| command.code == RESET_CONSUMER_CLIENT_OFFSET;
        assert!(member.pushed.iter().any(told), "{:?}", member.pushed);
        let found = member.pull(&pull(0)).unwrap();
        assert_eq!(found.code, answer::SUCCESS);
        assert_eq!(found.records.first().unwrap().queue_offset, 0);
        member.commit_offset("G", "T", 0, 3).unwrap();
        assert_eq!(tool.consumer_offset("G", "T", 0).unwrap(), Some(3));
        member.unregister("member", "G").unwrap();
    }
}

#[test]
fn a_member_that_listens_is_not_told_twice() {
    let directory = store_dir();
    let node = Setup::new(directory.path(), 2).start();
    let mut tool = filled(&node, 4);
    let mut member = node.connect();
    member.heartbeat("member", "G", "T").unwrap();
    reset(&mut tool, 0);
    let found = member.pull(&pull(0)).unwrap();
    assert_eq!((found.code, found.records.len()), (answer::SUCCESS, 4));
    member.commit_offset("G", "T", 0, 4).unwrap();
    assert_eq!(tool.consumer_offset("G", "T", 0).unwrap(), Some(4));
}

#[test]
fn a_group_that_is_not_there_just_has_other_offsets() {
    let directory = store_dir();
    let node = Setup::new(directory.path(), 1).start();
    let mut tool = filled(&node, 4);
    tool.commit_offset("G", "T", 0, 4).unwrap();
    reset(&mut tool, 0);
    assert_eq!(tool.consumer_offset("G", "T", 0).unwrap(), Some(0));
    // Nobody has to follow, so the next commit counts.
    tool.commit_offset("G", "T", 0, 2).unwrap();
    assert_eq!(tool.consumer_offset("G", "T", 0).unwrap(), Some(2));
    let fields = [
        ("topic", "T".to_owned()),
        ("compareGroup", "H".to_owned()),
        ("filterGroups", String::new()),
    ];
    let correction = Command::request(QUERY_CORRECTION_OFFSET, &fields, Vec::new());
    let body = tool.call(&correction).unwrap().body;
    assert_eq!(
        String::from_utf8(body).unwrap(),
        "{\"correctionOffsets\":{0:2}}"
    );
}

#[test]
fn the_runtime_info_tells_the_time_of_the_oldest_message() {
    let begun_ms = crate::client::now_ms();
    let directory = store_dir();
    let node = Setup::new(directory.path(), 2).start();
    let mut tool = filled(&node, 3);
    let request = Command::request(GET_BROKER_RUNTIME_INFO, &[], Vec::new());
    let answer = tool.call(&request).unwrap();
    let info: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    let text = info["table"]["earliestMessageTimeStamp"].as_str().unwrap();
    let earliest_ms: i64 = text.parse().unwrap();
    assert!(
        (begun_ms..=crate::client::now_ms()).contains(&earliest_ms),
        "{earliest_ms}"
    );
}
