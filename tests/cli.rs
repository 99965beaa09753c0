//! The binary as scripts see it: exit codes, boot lines, signals, refusals of one line.

#![allow(clippy::unwrap_used)] // A test may panic.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

mod ports;

use ports::free_ports;

fn ringmq(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringmq"));
    command.current_dir(directory).env_remove("NAMESRV_ADDR");
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("RINGMQ_")) {
        command.env_remove(name);
    }
    command
}

fn run(arguments: &[&str]) -> (i32, String, String) {
    let directory = tempfile::tempdir().unwrap();
    finished(ringmq(directory.path()).args(arguments).output().unwrap())
}

fn finished(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// A directory on a disk: tmpfs may not take O_DIRECT.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// A process that is killed when a test fails.
struct Node {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Node {
    fn standalone(directory: &Path, ports: (u16, u16), more: &[&str]) -> Self {
        let (namesrv, broker) = (ports.0.to_string(), ports.1.to_string());
        let mut child = ringmq(directory)
            .args(["standalone", "--bind", "127.0.0.1", "--shards", "1"])
            .args(["--namesrv-port", &namesrv, "--port", &broker])
            .args(["--set", "mappedFileSizeCommitLog=16MiB"])
            .args(["--set", "brokerName=b1", "--set", "fastListenEnable=false"])
            .args(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    fn line(&mut self) -> String {
        self.lines.next().unwrap().unwrap()
    }

    fn booted(&mut self) {
        while !self.line().contains("The broker[b1") {}
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let status = Command::new("kill").args([name, &pid]).status().unwrap();
        assert!(status.success());
    }

    fn exit(&mut self) -> (i32, String) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "it does not stop");
            std::thread::sleep(Duration::from_millis(10));
        }
        let mut log = String::new();
        let mut stderr = self.child.stderr.take().unwrap();
        stderr.read_to_string(&mut log).unwrap();
        let status = self.child.wait().unwrap();
        (status.code().expect("an exit and no signal"), log)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn help_and_version_are_no_failure() {
    let (code, out, _) = run(&["--help"]);
    assert_eq!(code, 0);
    for word in [
        "Examples:",
        "ringmq standalone",
        "Exit codes",
        "RINGMQ_BROKER_NAME",
    ] {
        assert!(out.contains(word), "{word}");
    }
    let (code, out, _) = run(&["--version"]);
    assert_eq!(code, 0);
    let expected = concat!("ringmq ", env!("CARGO_PKG_VERSION"));
    assert!(out.starts_with(expected), "{out}");
    let (code, out, _) = run(&["dev", "--help"]);
    assert_eq!(code, 0);
    assert!(out.contains("--namesrv-port"));
}

#[test]
fn a_wrong_command_line_is_exit_code_2() {
    for arguments in [
        &[][..],
        &["sing"],
        &["standalone", "--no-such-flag"],
        &["broker", "--set", "no-equals-sign"],
        &["completions", "no-such-shell"],
    ] {
        let (code, out, err) = run(arguments);
        assert_eq!((code, out.as_str()), (2, ""), "{arguments:?}");
        assert!(!err.is_empty());
    }
}

#[test]
fn a_wrong_configuration_is_exit_code_78_and_names_file_line_and_nearest_key() {
    let directory = directory();
    let file = directory.path().join("broker.conf");
    let text = "brokerName=a\nflushDiskTyp=SYNC_FLUSH\nlistenPort=zero\n";
    fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    let (code, out, err) = run(&["broker", "-c", file]);
    assert_eq!((code, out.as_str()), (78, ""));
    let lines: Vec<_> = err.lines().collect();
    assert_eq!(lines.len(), 2, "{err}");
    assert_eq!(
        lines[0],
        format!("ringmq: {file}:2: unknown key flushDiskTyp; did you mean flushDiskType?")
    );
    let start = format!("ringmq: {file}:3: listenPort=zero: expected");
    assert!(lines[1].starts_with(&start), "{err}");

    for arguments in [
        &["broker", "-c", "/no/such/file"][..],
        &["standalone", "--memory", "lots"],
        &["standalone", "--set", "aclEnable=true"],
        &["standalone", "--log-level", "loud"],
        &["standalone", "unknownKey=1"],
        &["config", "explain", "flushDisk"],
        &["config", "check", file],
    ] {
        let (code, _, err) = run(arguments);
        assert_eq!(code, 78, "{arguments:?}: {err}");
    }
}

#[test]
fn flags_count_more_than_the_environment_and_that_more_than_the_file() {
    let directory = directory();
    let text = "brokerName=file\nregionId=file\nbrokerId=0\n";
    fs::write(directory.path().join("b.conf"), text).unwrap();
    let output = ringmq(directory.path())
        .args(["broker", "-c", "b.conf", "-p", "-n", "10.0.0.1:9876"])
        .args(["--set", "brokerClusterName=flag"])
        .env("RINGMQ_BROKER_NAME", "env")
        .env("RINGMQ_BROKER_CLUSTER_NAME", "env")
        .env("NAMESRV_ADDR", "10.0.0.2:9876")
        .output()
        .unwrap();
    let (code, out, err) = finished(output);
    assert_eq!(code, 0, "{err}");
    for line in [
        "regionId=file",
        "brokerName=env",
        "brokerClusterName=flag",
        "namesrvAddr=10.0.0.1:9876",
    ] {
        assert!(out.lines().any(|printed| printed == line), "{line}\n{out}");
    }
}

#[test]
fn what_is_printed_as_configuration_is_a_configuration() {
    let directory = directory();
    let path = directory.path().join("all.conf");
    let (_, out, _) = run(&["standalone", "-p"]);
    fs::write(&path, out).unwrap();
    let path = path.to_str().unwrap();
    let (code, out, err) = run(&["config", "check", path, "--as", "standalone"]);
    assert_eq!(code, 0, "{out}{err}");
}

#[test]
fn config_list_and_explain_tell_values_origins_and_reasons() {
    let (code, out, _) = run(&["config", "list", "--set", "shards=3", "--json"]);
    assert_eq!(code, 0);
    let listing: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(listing["shards"]["value"], "3");
    assert_eq!(listing["shards"]["origin"], "--set shards=3");
    assert_eq!(listing["fileReservedTime"]["value"], "72");
    let (_, out, _) = run(&["config", "explain", "mapedFileSizeCommitLog"]);
    for word in [
        "mappedFileSizeCommitLog",
        "1 GiB",
        "multiple of 4096",
        "RINGMQ_MAPPED_FILE_SIZE_COMMIT_LOG",
    ] {
        assert!(out.contains(word), "{word}: {out}");
    }
    let (code, out, _) = run(&["config", "explain", "transientStorePoolEnable"]);
    assert_eq!(code, 0);
    assert!(out.contains("does nothing here"));
}

#[test]
fn completions_name_the_subcommands() {
    let (code, out, _) = run(&["completions", "bash"]);
    assert_eq!(code, 0);
    assert!(out.contains("standalone") && out.contains("namesrv"));
}

#[test]
fn a_listing_whose_reader_leaves_is_no_failure() {
    let directory = directory();
    let mut child = ringmq(directory.path())
        .args(["config", "list"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let (code, _, err) = finished(child.wait_with_output().unwrap());
    assert_eq!((code, err.as_str()), (0, ""));
}

#[test]
fn a_start_prints_the_boot_lines_of_the_original_and_term_stops_it_with_0() {
    let directory = directory();
    let (namesrv, broker) = free_ports();
    let mut node = Node::standalone(directory.path(), (namesrv, broker), &[]);
    let namesrv_line = "The Name Server boot success. serializeType=JSON, address 127.0.0.1";
    assert_eq!(node.line(), format!("{namesrv_line}:{namesrv}"));
    let broker_line = format!(
        "The broker[b1, 127.0.0.1:{broker}] boot success. serializeType=JSON and name server is 127.0.0.1:{namesrv}"
    );
    assert_eq!(node.line(), broker_line);
    assert!(directory.path().join("ringmq-data/lock").exists());
    node.signal("-TERM");
    let (code, log) = node.exit();
    assert_eq!(code, 0, "{log}");
}

#[test]
fn int_stops_it_too() {
    let directory = directory();
    let mut node = Node::standalone(directory.path(), free_ports(), &[]);
    node.booted();
    node.signal("-INT");
    assert_eq!(node.exit().0, 0);
}

#[test]
fn hup_opens_the_log_file_again() {
    let directory = directory();
    let log = directory.path().join("log/broker.log");
    let more = ["--log-file", "log/broker.log", "--log-format", "json"];
    let mut node = Node::standalone(directory.path(), free_ports(), &more);
    node.booted();
    let moved = directory.path().join("log/moved");
    fs::rename(&log, &moved).unwrap();
    node.signal("-HUP");
    let deadline = Instant::now() + Duration::from_secs(10);
    while !fs::read_to_string(&log).is_ok_and(|text| text.ends_with('\n')) {
        assert!(Instant::now() < deadline, "no new log file");
        std::thread::sleep(Duration::from_millis(10));
    }
    node.signal("-TERM");
    let (code, stderr) = node.exit();
    assert_eq!((code, stderr.as_str()), (0, ""), "the log goes to the file");
    for line in fs::read_to_string(&log).unwrap().lines() {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(event["message"].is_string(), "{line}");
    }
}

#[test]
fn a_second_broker_on_the_same_store_is_refused_with_the_first_ones_process() {
    let directory = directory();
    let mut first = Node::standalone(directory.path(), free_ports(), &[]);
    first.booted();
    let pid = first.child.id();
    let (code, err) = Node::standalone(directory.path(), free_ports(), &[]).exit();
    assert_eq!(code, 1);
    let refusals: Vec<_> = err
        .lines()
        .filter(|line| line.starts_with("ringmq: "))
        .collect();
    assert_eq!(refusals.len(), 1, "{err}");
    let owner = format!("is in use by process {pid}");
    assert!(refusals[0].contains(&owner), "{err}");
}

#[test]
fn a_port_that_is_taken_is_refused_with_its_owner_and_the_flag() {
    let directory = directory();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let (code, err) = Node::standalone(directory.path(), (port, free_ports().1), &[]).exit();
    assert_eq!(code, 1);
    let owner = std::process::id();
    let what = format!("port 127.0.0.1:{port} is in use by process {owner}");
    assert!(
        err.contains(&what) && err.contains("--namesrv-port"),
        "{err}"
    );
}
