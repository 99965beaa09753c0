//! Runs a real broker as a child process and looks at it from outside.
//!
//! `RINGMQ_BIN` names another binary than the one that cargo built. With `RINGMQ_AGAINST=namesrv,broker` (two addresses)
//! the tests that need no power over the process run against a server that is already there, for example the original.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{self, Child, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::client::{Command, Connection, code};
use crate::ports::free_ports;

/// A broker that does not serve by then is broken.
const BOOT_TIMEOUT: Duration = Duration::from_secs(60);
/// A TERM that takes longer than this is a hang.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// The binary under test.
pub fn binary() -> PathBuf {
    match std::env::var_os("RINGMQ_BIN") {
        Some(path) => path.into(),
        None => env!("CARGO_BIN_EXE_ringmq").into(),
    }
}

/// The binary with an environment of its own: a variable that starts with `RINGMQ_` would be a configuration key to it.
pub fn broker_command() -> process::Command {
    let mut command = process::Command::new(binary());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("RINGMQ_") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// Whether the binary is fit for statements about memory and time.
pub fn is_optimised() -> bool {
    let path = binary();
    path.components().any(|part| part.as_os_str() == "release") || !cfg!(debug_assertions)
}

/// A number from the environment, for the long forms of the campaigns.
pub fn knob(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}={text} is not a number")),
        Err(_) => default,
    }
}

/// How a node is started. The store survives restarts with the same or another configuration.
#[derive(Clone, Debug)]
pub struct Setup {
    pub store: PathBuf,
    pub shards: u32,
    pub memory_bytes: u64,
    /// `key=value`, as for `--set`.
    pub settings: Vec<String>,
    pub namesrv_port: u16,
    pub broker_port: u16,
    /// A broker alone, registered with the name server of another node; else both in one process.
    pub broker_only: bool,
}

impl Setup {
    pub fn new(store: &Path, shards: u32) -> Self {
        let (namesrv_port, broker_port) = free_ports();
        Self {
            store: store.to_path_buf(),
            shards,
            memory_bytes: 256 << 20,
            // Small segments, so that short tests see them roll.
            settings: vec![
                "mappedFileSizeCommitLog=16777216".into(),
                // A port of the block that nothing else of the node takes.
                format!("metricsPromExporterPort={}", namesrv_port + 2),
            ],
            namesrv_port,
            broker_port,
            broker_only: false,
        }
    }

    /// A broker that registers with the name server of another setup.
    pub fn beside(other: &Self, store: &Path, shards: u32) -> Self {
        let own = Self::new(store, shards);
        Self {
            namesrv_port: other.namesrv_port,
            broker_only: true,
            ..own
        }
    }

    /// Adds a setting, or replaces the one of the same key.
    pub fn set(mut self, setting: &str) -> Self {
        let key = setting.split('=').next().unwrap_or(setting);
        let other = |known: &String| known.split('=').next() != Some(key);
        self.settings.retain(other);
        self.settings.push(setting.into());
        self
    }

    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory_bytes = bytes;
        self
    }

    /// The command line that this setup stands for.
    pub fn command(&self) -> process::Command {
        let mut command = broker_command();
        if self.broker_only {
            let namesrv = format!("127.0.0.1:{}", self.namesrv_port);
            command.args(["broker", "-n", &namesrv]);
        } else {
            let port = self.namesrv_port.to_string();
            command.args(["standalone", "--namesrv-port", &port]);
        }
        command
            .args(["--bind", "127.0.0.1"])
            .arg("--store")
            .arg(&self.store)
            .args(["--port", &self.broker_port.to_string()])
            .args(["--shards", &self.shards.to_string()])
            .args(["--memory", &self.memory_bytes.to_string()]);
        for setting in &self.settings {
            command.args(["--set", setting]);
        }
        command
    }

    /// Starts the process without waiting for anything.
    pub fn spawn(&self) -> Node {
        static LOG_NUMBER: AtomicU32 = AtomicU32::new(0);
        let log = std::env::temp_dir().join(format!(
            "ringmq-test-{}-{}.log",
            process::id(),
            LOG_NUMBER.fetch_add(1, Ordering::Relaxed)
        ));
        let output = File::create(&log).unwrap();
        let child = self
            .command()
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap_or_else(|error| panic!("{} does not start: {error}", binary().display()));
        Node {
            setup: self.clone(),
            child: Some(child),
            log,
            namesrv: SocketAddr::from((Ipv4Addr::LOCALHOST, self.namesrv_port)),
            broker: SocketAddr::from((Ipv4Addr::LOCALHOST, self.broker_port)),
            started: Instant::now(),
            serving_after: Duration::ZERO,
        }
    }

    /// Starts the process and waits until it serves.
    pub fn start(&self) -> Node {
        let mut node = self.spawn();
        if let Err(reason) = node.wait_until_serving() {
            panic!("{reason}\n{}", node.output());
        }
        node
    }
}

/// A running broker with its name server. Killed when dropped.
pub struct Node {
    pub setup: Setup,
    child: Option<Child>,
    log: PathBuf,
    pub namesrv: SocketAddr,
    pub broker: SocketAddr,
    started: Instant,
    /// From the start of the process to its first answer.
    pub serving_after: Duration,
}

impl Node {
    /// A node for a test that needs no power over the process: the one of `RINGMQ_AGAINST`, or a fresh one.
    pub fn for_everyday(store: &Path, shards: u32) -> Self {
        let Ok(addresses) = std::env::var("RINGMQ_AGAINST") else {
            return Setup::new(store, shards).start();
        };
        let (namesrv, broker) = addresses.split_once(',').expect("namesrv,broker");
        Self {
            setup: Setup::new(store, shards),
            child: None,
            log: PathBuf::new(),
            namesrv: namesrv.parse().unwrap(),
            broker: broker.parse().unwrap(),
            started: Instant::now(),
            serving_after: Duration::ZERO,
        }
    }

    /// The original makes an acknowledged message readable a little later; ours does so at once, so this waits only for it.
    pub fn settle(&self) {
        if self.child.is_none() {
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// Waits until the broker answers and the name server knows it.
    pub fn wait_until_serving(&mut self) -> Result<(), String> {
        while !self.answers(self.broker) {
            self.check_boot()?;
        }
        self.serving_after = self.started.elapsed();
        while !self.registered() {
            self.check_boot()?;
        }
        Ok(())
    }

    fn check_boot(&mut self) -> Result<(), String> {
        if let Some(status) = self.try_status() {
            return Err(format!("the broker ended at start: {status}"));
        }
        if self.started.elapsed() > BOOT_TIMEOUT {
            return Err(format!("the broker does not serve after {BOOT_TIMEOUT:?}"));
        }
        std::thread::sleep(Duration::from_millis(2));
        Ok(())
    }

    fn answers(&self, address: SocketAddr) -> bool {
        let Ok(mut connection) = Connection::open(address) else {
            return false;
        };
        let request = Command::request(code::GET_MAX_OFFSET, &[], Vec::new());
        connection.set_read_timeout(Duration::from_secs(5)).is_ok()
            && connection.ask(&request).is_ok()
    }

    fn registered(&self) -> bool {
        let Ok(mut connection) = Connection::open(self.namesrv) else {
            return false;
        };
        let request = Command::request(code::GET_BROKER_CLUSTER_INFO, &[], Vec::new());
        let Ok(answer) = connection.ask(&request) else {
            return false;
        };
        // The address stands between quotes, whatever the form of the tables around it.
        let address = format!("\"{}\"", self.broker);
        String::from_utf8_lossy(&answer.body).contains(&address)
    }

    pub fn connect(&self) -> Connection {
        match Connection::open(self.broker) {
            Ok(connection) => connection,
            Err(error) => panic!(
                "no connection to {}: {error}\n{}",
                self.broker,
                self.output()
            ),
        }
    }

    pub fn connect_namesrv(&self) -> Connection {
        match Connection::open(self.namesrv) {
            Ok(connection) => connection,
            Err(error) => panic!(
                "no connection to {}: {error}\n{}",
                self.namesrv,
                self.output()
            ),
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("a running child").id()
    }

    /// The exit status if the process has ended.
    pub fn try_status(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().unwrap()
    }

    pub fn is_alive(&mut self) -> bool {
        self.child.is_none() || self.try_status().is_none()
    }

    /// kill -9. The setup can start it again.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// TERM, and the status with which the process ends.
    pub fn terminate(&mut self) -> ExitStatus {
        let pid = self.pid();
        signal(pid, "TERM");
        let deadline = Instant::now() + DRAIN_TIMEOUT;
        loop {
            if let Some(status) = self.try_status() {
                self.child = None;
                return status;
            }
            if Instant::now() > deadline {
                panic!(
                    "still running {DRAIN_TIMEOUT:?} after TERM\n{}",
                    self.output()
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What the process printed.
    pub fn output(&self) -> String {
        fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Resident memory in bytes (VmRSS).
    pub fn rss_bytes(&self) -> u64 {
        self.status_kib("VmRSS:") << 10
    }

    fn status_kib(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        let number = line.split_whitespace().nth(1).unwrap();
        number.parse().unwrap()
    }

    pub fn fd_count(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .unwrap()
            .count()
    }

    /// User and system time that the process has used, in clock ticks of 10 ms.
    pub fn cpu_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        // The name in parentheses may hold spaces; the 14th and 15th fields of the whole line are the times.
        let after_name = stat.rsplit_once(')').unwrap().1;
        let ticks: u64 = after_name
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(|field| field.parse::<u64>().unwrap())
            .sum();
        Duration::from_millis(ticks * 10)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("output of {}:\n{}", self.broker, tail(&self.output(), 60));
        }
        let _ = fs::remove_file(&self.log);
    }
}

/// The last lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Sends a signal by the shell's own `kill`, which needs no further package.
pub fn signal(pid: u32, name: &str) {
    let status = process::Command::new("sh")
        .args(["-c", &format!("kill -{name} {pid}")])
        .status()
        .unwrap();
    assert!(status.success(), "kill -{name} {pid}");
}

/// A directory for a store, on a disk file system if the default temporary directory is not one.
pub fn store_dir() -> tempfile::TempDir {
    match std::env::var_os("RINGMQ_TEST_DIR") {
        Some(parent) => tempfile::tempdir_in(parent).unwrap(),
        None => tempfile::tempdir().unwrap(),
    }
}

/// Files below a directory and their bytes as the file system counts them.
pub fn disk_usage(directory: &Path) -> (usize, u64) {
    use std::os::unix::fs::MetadataExt;
    let (mut files, mut bytes) = (0, 0);
    let Ok(entries) = fs::read_dir(directory) else {
        return (0, 0);
    };
    for entry in entries.flatten() {
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        if metadata.is_dir() {
            let below = disk_usage(&entry.path());
            files += below.0;
            bytes += below.1;
        } else {
            files += 1;
            bytes += metadata.blocks() * 512;
        }
    }
    (files, bytes)
}

/// Whether something listens there.
pub fn listens(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
}
