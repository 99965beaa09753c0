//! `ringmq try` as a newcomer sees it.

#![allow(clippy::unwrap_used)] // A test may panic.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

mod ports;

fn ringmq(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringmq"));
    // Its store goes where this test can see it.
    command.current_dir(directory).env("TMPDIR", directory);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("RINGMQ_")) {
        command.env_remove(name);
    }
    command
}

/// A directory on a disk: tmpfs may not take O_DIRECT.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn try_it(directory: &Path, arguments: &[&str]) -> (i32, Vec<String>, String) {
    let output = ringmq(directory)
        .arg("try")
        .args(arguments)
        .output()
        .unwrap();
    let lines = String::from_utf8(output.stdout).unwrap();
    (
        output.status.code().unwrap(),
        lines.lines().map(str::to_owned).collect(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

/// From `, queue` on: queue and offset, as both lines have them.
fn place(line: &str) -> &str {
    let begin = line.find(", queue ").unwrap();
    let end = line[begin + 2..].match_indices(", ").nth(1).unwrap().0;
    &line[begin..begin + 2 + end]
}

#[test]
fn one_command_shows_a_message_sent_and_received_and_leaves_nothing_behind() {
    let directory = directory();
    let (code, lines, err) = try_it(directory.path(), &[]);
    assert_eq!(code, 0, "{lines:?} {err}");
    assert_eq!(lines.len(), 6, "{lines:?}");
    assert!(lines[0].starts_with("1 started") && lines[0].contains("SYNC_FLUSH"));
    assert!(lines[1].starts_with("2 route    TopicTest"));
    assert!(lines[2].starts_with("3 sent     \"hello\" to TopicTest, queue 0, offset 0, "));
    assert!(lines[3].starts_with("4 received \"hello\" from TopicTest, queue 0, offset 0, "));
    assert!(lines[4].starts_with("5 stopped"));
    let left: Vec<_> = fs::read_dir(directory.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn what_the_broker_refuses_is_told_and_is_exit_code_1() {
    let directory = directory();
    let (code, _, err) = try_it(directory.path(), &["--topic", "no blanks"]);
    assert_eq!(code, 1);
    assert!(
        err.contains("with code 29") && err.contains("no blanks"),
        "{err}"
    );
    assert_eq!(err.lines().count(), 1, "{err}");
    assert!(fs::read_dir(directory.path()).unwrap().next().is_none());
}

#[test]
fn without_a_name_server_there_the_address_is_told() {
    let address = format!("127.0.0.1:{}", ports::free_ports().0);
    let directory = directory();
    let (code, lines, err) = try_it(directory.path(), &["-n", &address]);
    assert_eq!((code, lines.len()), (1, 0));
    assert!(err.contains(&address), "{err}");
}

/// Killed when the test ends, however.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_broker_that_runs_already_is_tried_by_its_name_server() {
    let directory = directory();
    let ports = ports::free_ports();
    let mut node = Killed(
        ringmq(directory.path())
            .args(["standalone", "--bind", "127.0.0.1", "--shards", "2"])
            .args(["--namesrv-port", &ports.0.to_string()])
            .args(["--port", &ports.1.to_string()])
            .args(["--set", "mappedFileSizeCommitLog=16MiB"])
            .args(["--set", "fastListenEnable=false"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let mut booted = BufReader::new(node.0.stdout.take().unwrap()).lines();
    while !booted.next().unwrap().unwrap().contains("The broker[") {}

    let namesrv = format!("127.0.0.1:{}", ports.0);
    for offset in 0..3 {
        let (code, lines, err) = try_it(directory.path(), &["-n", &namesrv]);
        assert_eq!(code, 0, "{lines:?} {err}");
        assert_eq!(lines.len(), 3, "{lines:?}");
        let new = lines[0].contains("which makes new topics");
        assert_eq!(new, offset == 0, "{lines:?}");
        assert_eq!(place(&lines[1]), format!(", queue 0, offset {offset}"));
        assert_eq!(place(&lines[1]), place(&lines[2]));
    }
}
