//! Attacks on admin requests, replayed: configuration over the wire (CVE-2023-33246, CVE-2023-37582), and names that
//! would leave the store's directory if they became file names.

use std::path::Path;

use serde_json::json;

use crate::client::{Command, Connection, Message, answer, create_topic};
use crate::node::{Setup, store_dir};

const UPDATE_BROKER_CONFIG: i32 = 25;
const GET_BROKER_CONFIG: i32 = 26;
const UPDATE_NAMESRV_CONFIG: i32 = 318;
const GET_NAMESRV_CONFIG: i32 = 319;
const NO_PERMISSION: i32 = 16;

fn code_of(connection: &mut Connection, command: &Command) -> i32 {
    connection.ask(command).unwrap().code
}

fn text_of(connection: &mut Connection, code: i32) -> String {
    let answer = connection.call(&Command::request(code, &[], Vec::new()));
    String::from_utf8(answer.unwrap().body).unwrap()
}

#[test]
fn configuration_over_the_wire_takes_no_path_no_command_and_nothing_unknown() {
    let directory = store_dir();
    let mut node = Setup::new(directory.path(), 1).start();
    let mark = directory.path().join("owned");
    let command = format!("-c $@|sh . echo touch {};", mark.display());
    let mut broker = node.connect();
    let before = text_of(&mut broker, GET_BROKER_CONFIG);
    for attack in [
        // CVE-2023-33246: the filter server's start command is built of this path.
        format!("filterServerNums=1\nrocketmqHome={command}\n"),
        format!("rocketmqHome={command}"),
        "filterServerNums=1".to_owned(),
        "brokerConfigPath=/tmp/owned".to_owned(),
        "storePathRootDir=/tmp/owned".to_owned(),
        "storePathCommitLog=/tmp/owned".to_owned(),
        "namesrvAddr=10.0.0.1:9876".to_owned(),
        "configBlackList=".to_owned(),
        // Allowed and not allowed together: nothing of it happens.
        "fileReservedTime=1\nbrokerName=other".to_owned(),
        "notAKey=1".to_owned(),
        "fileReservedTime=-1".to_owned(),
        "fileReservedTime=72\u{0}x".to_owned(),
    ] {
        let update = Command::request(UPDATE_BROKER_CONFIG, &[], attack.clone().into_bytes());
        assert_ne!(code_of(&mut broker, &update), answer::SUCCESS, "{attack}");
    }
    assert_eq!(text_of(&mut broker, GET_BROKER_CONFIG), before);

    // CVE-2023-37582: the name server writes what it is sent to the path that it is sent.
    let mut namesrv = node.connect_namesrv();
    let before = text_of(&mut namesrv, GET_NAMESRV_CONFIG);
    for attack in [
        format!("configStorePath={}\nproductEnvName=owned", mark.display()),
        format!("kvConfigPath={}", mark.display()),
        format!("rocketmqHome={command}"),
        "configBlackList=".to_owned(),
        "notAKey=1".to_owned(),
    ] {
        let update = Command::request(UPDATE_NAMESRV_CONFIG, &[], attack.clone().into_bytes());
        assert_eq!(code_of(&mut namesrv, &update), NO_PERMISSION, "{attack}");
    }
    assert_eq!(text_of(&mut namesrv, GET_NAMESRV_CONFIG), before);
    assert!(!mark.exists());
    assert!(node.is_alive());
}

/// Names that are no names: of other directories, of devices, with separators of the broker's own tables.
const BAD_NAMES: [&str; 9] = [
    "../../x",
    "..",
    "/etc/x",
    "a/b",
    "a\\b",
    "a@b",
    "a b",
    "a\u{0}b",
    "%RETRY%../../x",
];

#[test]
fn a_name_that_is_a_path_is_refused_at_every_entrance() {
    let directory = store_dir();
    let mut node = Setup::new(directory.path(), 1).start();
    let mut broker = node.connect();
    broker.create_topic("T", 1).unwrap();
    broker.create_group("G").unwrap();
    broker.send(&Message::new("T", 0, "x")).unwrap();
    let offset = broker.read_queue("T", 0, 0).unwrap()[0].physical_offset;
    let before = tree(directory.path());
    for name in BAD_NAMES {
        let field = |key, value: &str| (key, value.to_owned());
        let mut entrances = vec![
            ("17", create_topic(name, 1)),
            (
                "215",
                Command::request(215, &[field("topic", name)], Vec::new()),
            ),
            ("310", Message::new(name, 0, "x").send_v2()),
            ("10", Message::new(name, 0, "x").send_v1()),
            (
                "320",
                crate::client::send_batch(&[Message::new(name, 0, "x")]),
            ),
            (
                "36",
                Command::request(
                    36,
                    &[
                        ("offset", offset.to_string()),
                        field("group", name),
                        field("delayLevel", "0"),
                    ],
                    Vec::new(),
                ),
            ),
            (
                "314",
                Command::request(
                    314,
                    &[field("srcGroup", "G"), field("destGroup", name)],
                    Vec::new(),
                ),
            ),
            (
                "15",
                Command::request(
                    15,
                    &[
                        field("consumerGroup", name),
                        field("topic", "T"),
                        field("queueId", "0"),
                        field("commitOffset", "1"),
                    ],
                    Vec::new(),
                ),
            ),
        ];
        let topics = json!({"topicConfigList": [{"topicName": name, "readQueueNums": 1, "writeQueueNums": 1, "perm": 6}]});
        entrances.push((
            "18",
            Command::request(18, &[], topics.to_string().into_bytes()),
        ));
        let group = json!({"groupName": name});
        entrances.push((
            "200",
            Command::request(200, &[], group.to_string().into_bytes()),
        ));
        let groups = json!({"groupConfigList": [{"groupName": name}]});
        entrances.push((
            "225",
            Command::request(225, &[], groups.to_string().into_bytes()),
        ));
        let mode =
            json!({"consumerGroup": "G", "mode": "POP", "popShareQueueNum": 0, "topic": name});
        entrances.push((
            "401",
            Command::request(401, &[], mode.to_string().into_bytes()),
        ));
        for (what, command) in entrances {
            let code = code_of(&mut broker, &command);
            assert_ne!(code, answer::SUCCESS, "{what} took {name:?}");
        }
    }
    let mut after = tree(directory.path());
    // A log may have taken its next segment meanwhile.
    after.retain(|name| !before.contains(name) && !name.ends_with(".seg"));
    assert!(
        after.is_empty(),
        "files with names that a client gave: {after:?}"
    );
    assert!(!directory.path().join("../../x").exists());
    // Nothing of it is known afterwards, here or at the name server.
    for (mut connection, code) in [(node.connect(), 21), (node.connect_namesrv(), 206)] {
        let list = text_of(&mut connection, code);
        assert!(!list.contains("..") && !list.contains('/'), "{list}");
    }
    assert!(node.is_alive());
}

/// Names of all files and directories below one, sorted.
fn tree(directory: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut open = vec![directory.to_path_buf()];
    while let Some(path) = open.pop() {
        for entry in std::fs::read_dir(&path).unwrap().flatten() {
            names.push(entry.path().display().to_string());
            if entry.path().is_dir() {
                open.push(entry.path());
            }
        }
    }
    names.sort();
    names
}
