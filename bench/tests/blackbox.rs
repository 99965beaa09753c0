//! The harness against the broker's binary: every verb for a moment, and what it writes.
//!
//! `RINGMQ_BIN` names the binary; otherwise it is looked for where cargo puts it. `RINGMQ_AGAINST=namesrv` uses a name server
//! that is already there, for example the original's.
#![allow(clippy::unwrap_used)]

#[path = "../../tests/ports/mod.rs"]
mod ports;

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::serialization::Deserializer;
use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
use ringmq_bench::measure::Kind;
use ringmq_bench::overload::Overload;
use ringmq_bench::result::RunResult;

/// A test that takes all of the machine for itself writes, the others read.
static MACHINE: RwLock<()> = RwLock::new(());

enum Share {
    Some(#[allow(dead_code)] RwLockReadGuard<'static, ()>),
    All(#[allow(dead_code)] RwLockWriteGuard<'static, ()>),
}

/// A broker of our own, or one that is there.
struct Broker {
    /// Released when the broker has ended.
    #[allow(dead_code)]
    share: Share,
    namesrv: String,
    child: Option<Child>,
    directory: tempfile::TempDir,
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn broker_binary() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("RINGMQ_BIN") {
        return Some(path.into());
    }
    let beside = Path::new(env!("CARGO_BIN_EXE_ringmq-bench")).with_file_name("ringmq");
    beside.exists().then_some(beside)
}

/// None if there is no broker to test against.
fn broker() -> Option<Broker> {
    // A test that failed says nothing about the others.
    start(Share::Some(
        MACHINE.read().unwrap_or_else(PoisonError::into_inner),
    ))
}

/// The same, while no other test has one.
fn broker_alone() -> Option<Broker> {
    start(Share::All(
        MACHINE.write().unwrap_or_else(PoisonError::into_inner),
    ))
}

fn start(share: Share) -> Option<Broker> {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    if let Ok(namesrv) = std::env::var("RINGMQ_AGAINST") {
        return Some(Broker {
            share,
            namesrv,
            child: None,
            directory,
        });
    }
    let Some(binary) = broker_binary() else {
        println!(
            "SKIPPED harness against the broker: there is no ringmq beside ringmq-bench; cargo build makes it"
        );
        return None;
    };
    let (namesrv_port, broker_port) = ports::free_ports();
    let mut command = Command::new(binary);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("RINGMQ_") {
            command.env_remove(name);
        }
    }
    let log = fs::File::create(directory.path().join("broker.log")).unwrap();
    let child = command
        .args([
            "standalone",
            "--bind",
            "127.0.0.1",
            "--shards",
            "1",
            "--memory",
            "268435456",
        ])
        .args([
            "--namesrv-port",
            &namesrv_port.to_string(),
            "--port",
            &broker_port.to_string(),
        ])
        .arg("--store")
        .arg(directory.path().join("store"))
        .args(["--set", "mappedFileSizeCommitLog=16777216"])
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    let mut broker = Broker {
        share,
        namesrv: format!("127.0.0.1:{namesrv_port}"),
        child: Some(child),
        directory,
    };
    let began = Instant::now();
    loop {
        // The broker registers itself within its first second; a bench that finds none says so.
        let up = [namesrv_port, broker_port]
            .iter()
            .all(|port| TcpStream::connect(("127.0.0.1", *port)).is_ok());
        if up {
            break;
        }
        let ended = broker
            .child
            .as_mut()
            .and_then(|child| child.try_wait().unwrap());
        let log = || fs::read_to_string(broker.directory.path().join("broker.log")).unwrap();
        assert!(ended.is_none(), "the broker ended: {}", log());
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "the broker does not serve: {}",
            log()
        );
        thread::sleep(Duration::from_millis(50));
    }
    thread::sleep(Duration::from_millis(500));
    Some(broker)
}

impl Broker {
    fn bench(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_ringmq-bench"))
            .args(args)
            .args(["-n", &self.namesrv])
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Runs a verb that has to succeed, and reads its result.
    fn result(&self, args: &[&str]) -> RunResult {
        let json = self.directory.path().join("result.json");
        let mut all = args.to_vec();
        all.extend(["--json", json.to_str().unwrap()]);
        let output = self.bench(&all);
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(output.status.success(), "{args:?}: {text}");
        RunResult::load(&json).unwrap()
    }
}

fn messages(result: &RunResult, kind: Kind) -> u64 {
    assert!(
        result.all_failures().is_empty(),
        "{:?}",
        result.all_failures()
    );
    result.of(kind).unwrap().messages
}

#[test]
fn every_verb_works_against_the_broker() {
    let Some(broker) = broker() else { return };
    let pid = broker.child.as_ref().map(|child| child.id().to_string());
    let mut producer = vec![
        "producer", "-t", "Single", "--warm", "0", "--secs", "1", "--header", "binary",
    ];
    if let Some(pid) = &pid {
        producer.extend(["--broker-pid", pid]);
    }
    let result = broker.result(&producer);
    let sent = messages(&result, Kind::Publish);
    assert!(sent > 100, "{sent} messages");
    assert!(
        result.broker_settings.contains_key("flushDiskType"),
        "{:?}",
        result.broker_settings
    );
    if pid.is_some() {
        assert!(result.usage.broker_cpu_seconds.unwrap() > 0.0);
        assert!(result.usage.broker_resident_bytes.unwrap() > 1 << 20);
        assert!(result.machine.store.is_some());
    }

    let drained = broker.result(&[
        "consumer",
        "-t",
        "Single",
        "--mode",
        "catch-up",
        "--check-crc",
    ]);
    // What is in flight when the second is over is stored too, but not counted.
    let got = messages(&drained, Kind::Pull);
    assert!(got >= sent && got < sent + 1000, "{got} of {sent}");

    let batches = broker.result(&["batchproducer", "-t", "Batch", "--warm", "0", "--secs", "1"]);
    let sent = messages(&batches, Kind::Publish);
    assert_eq!(sent % 32, 0);
    let got = messages(
        &broker.result(&["consumer", "-t", "Batch", "--mode", "catch-up"]),
        Kind::Pull,
    );
    assert!(got >= sent && got.is_multiple_of(32), "{got} of {sent}");
}

#[test]
fn a_verified_run_loses_nothing_and_writes_its_files() {
    let Some(broker) = broker() else { return };
    let at = |name: &str| {
        broker
            .directory
            .path()
            .join(name)
            .to_str()
            .unwrap()
            .to_owned()
    };
    let (hlog, html) = (at("run.hlog"), at("run.html"));
    let result = broker.result(&[
        "end-to-end",
        "-t",
        "Verified",
        "--rate",
        "500",
        "--warm",
        "0",
        "--secs",
        "2",
        "--verify",
        "--hlog",
        &hlog,
        "--html",
        &html,
    ]);
    let verdict = result.verdict.clone().unwrap();
    assert_eq!(
        (verdict.acknowledged, verdict.delivered),
        (1000, 1000),
        "{verdict:?}"
    );
    assert!(verdict.is_clean(false), "{verdict:?}");
    assert_eq!(result.of(Kind::EndToEnd).unwrap().latency.count, 1000);
    // The log has each latency once more.
    let text = fs::read(&hlog).unwrap();
    let mut counts = std::collections::BTreeMap::new();
    for entry in IntervalLogIterator::new(&text) {
        if let LogEntry::Interval(interval) = entry.unwrap() {
            let bytes = base64::Engine::decode(
                &base64::engine::general_purpose::STANDARD,
                interval.encoded_histogram(),
            )
            .unwrap();
            let histogram: hdrhistogram::Histogram<u64> =
                Deserializer::new().deserialize(&mut &bytes[..]).unwrap();
            *counts
                .entry(interval.tag().unwrap().as_str().to_owned())
                .or_insert(0) += histogram.len();
        }
    }
    assert_eq!(
        (counts["publish"], counts["end-to-end"]),
        (1000, 1000),
        "{counts:?}"
    );
    let page = fs::read_to_string(&html).unwrap();
    assert!(page.contains("<svg") && page.contains("0 lost, 0 duplicated"));
}

#[test]
fn one_in_flight_per_queue_keeps_its_order() {
    let Some(broker) = broker() else { return };
    let result = broker.result(&[
        "end-to-end",
        "-t",
        "Ordered",
        "-w",
        "1",
        "--warm",
        "0",
        "--secs",
        "1",
        "--verify",
    ]);
    let verdict = result.verdict.unwrap();
    assert!(
        verdict.is_clean(true) && verdict.acknowledged > 50,
        "{verdict:?}"
    );
}

#[test]
fn a_verified_native_run_loses_nothing() {
    let Some(broker) = broker() else { return };
    for batch in ["1", "20"] {
        let topic = format!("Native{batch}");
        let result = broker.result(&[
            "end-to-end",
            "--protocol",
            "native",
            "--batch",
            batch,
            "-t",
            &topic,
            "--warm",
            "0",
            "--secs",
            "1",
            "--verify",
        ]);
        let verdict = result.verdict.unwrap();
        assert!(
            verdict.is_clean(false) && verdict.acknowledged > 50,
            "{verdict:?}"
        );
    }
}

#[test]
fn transactions_are_committed_or_rolled_back() {
    let Some(broker) = broker() else { return };
    let result = broker.result(&[
        "tproducer",
        "-t",
        "Transactions",
        "--rate",
        "200",
        "--warm",
        "0",
        "--secs",
        "1",
        "--rollback-percent",
        "50",
    ]);
    assert_eq!(result.of(Kind::Publish).unwrap().latency.count, 200);
    let began = Instant::now();
    loop {
        // The ends of the transactions are one-way, so they may still be on their way.
        let output = broker.bench(&[
            "consumer",
            "-t",
            "Transactions",
            "--mode",
            "catch-up",
            "--json",
            "/dev/stdout",
        ]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let received = text
            .split("\"messages\": ")
            .nth(1)
            .and_then(|rest| rest.split(',').next()?.parse::<u64>().ok());
        if received.is_some_and(|received| (60..=140).contains(&received)) {
            return;
        }
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "{received:?} of 200 half messages came: {text}"
        );
        thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn two_agents_share_one_load() {
    let Some(broker) = broker() else { return };
    let mut agents = Vec::new();
    let mut addresses = Vec::new();
    for _ in 0..2 {
        let mut child = Command::new(env!("CARGO_BIN_EXE_ringmq-bench"))
            .args(["agent", "--listen", "127.0.0.1:0", "--once"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = child.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
        addresses.push(line.trim().rsplit(' ').next().unwrap().to_owned());
        agents.push(child);
    }
    let result = broker.result(&[
        "producer",
        "-t",
        "Shared",
        "--rate",
        "400",
        "--warm",
        "0",
        "--secs",
        "2",
        "--agents",
        &addresses.join(","),
    ]);
    assert_eq!(result.processes, 2);
    assert_eq!(result.of(Kind::Publish).unwrap().latency.count, 800);
    for mut agent in agents {
        assert!(agent.wait().unwrap().success());
    }
    let got = messages(
        &broker.result(&["consumer", "-t", "Shared", "--mode", "catch-up"]),
        Kind::Pull,
    );
    assert_eq!(got, 800);
}

#[test]
fn a_workload_file_runs() {
    let Some(broker) = broker() else { return };
    let file = broker.directory.path().join("workload.yaml");
    fs::write(
        &file,
        "name: small\ntopics: 2\npartitionsPerTopic: 2\nmessageSize: 100\nsubscriptionsPerTopic: 1\nconsumerPerSubscription: 1\n\
         producersPerTopic: 1\nproducerRate: 300\ntestDurationMinutes: 1\n",
    )
    .unwrap();
    let result = broker.result(&[
        "workload",
        file.to_str().unwrap(),
        "-t",
        "Workload",
        "--short",
        "--warm",
        "0",
        "--secs",
        "1",
    ]);
    assert_eq!(result.of(Kind::EndToEnd).unwrap().latency.count, 300);
    assert_eq!(result.name, "small");
}

#[test]
fn nobody_at_the_address_is_an_error_that_names_it() {
    let output = Command::new(env!("CARGO_BIN_EXE_ringmq-bench"))
        .args(["producer", "-n", "127.0.0.1:1"])
        .output()
        .unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("127.0.0.1:1"), "{text}");
}

/// Before the broker stopped reading at its limit, twice the peak brought the goodput to a hundredth of it.
#[test]
fn a_broker_that_is_offered_ten_times_its_peak_goes_on_at_its_peak_and_starves_nobody() {
    let Some(broker) = broker_alone() else { return };
    let json = broker.directory.path().join("overload.json");
    let pid = broker.child.as_ref().map(|child| child.id().to_string());
    let mut args = vec![
        "overload",
        "--secs",
        "2",
        "--connections",
        "64",
        "--storm",
        "300",
    ];
    args.extend([
        "--storm-secs",
        "2",
        "--slow-consumers",
        "4",
        "--json",
        json.to_str().unwrap(),
    ]);
    if let Some(pid) = &pid {
        args.extend(["--broker-pid", pid]);
    }
    let output = broker.bench(&args);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{output:?}");
    println!("{text}");
    let result: Overload = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
    assert_eq!(result.phases.len(), 3);
    for phase in &result.phases {
        assert!(phase.goodput_ratio > 0.4, "{text}");
        assert!(phase.connection_min > 0, "a connection starves: {text}");
        assert_eq!(phase.unanswered, 0, "{text}");
        // What is refused is told why.
        for (reason, refused) in &phase.refused {
            let is_busy = reason.starts_with("2 SYSTEM_BUSY: ");
            assert!(is_busy && refused.example.len() > 20, "{text}");
        }
        // 256 MiB of caches, 64 MiB of appends, 32 MiB of answers for each of the four that do not read.
        assert!(phase.broker_peak_bytes < 800 << 20, "{text}");
    }
    assert_eq!(result.slow_consumers_failed, 0, "{text}");
    let storm = result.storm.unwrap();
    assert_eq!(storm.failed, 0, "{text}");
    assert!(storm.settled_seconds < 20.0, "{text}");
}
