//! What `tuning/` offers is tried: the seccomp profile holds a real broker, the script sets and undoes, the unit's promise to
//! systemd is kept, and the doctor leaves no trace.

#![allow(clippy::unwrap_used)] // A test may panic.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::str::FromStr;
use std::time::Duration;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use syscalls::Sysno;

mod ports;

use ports::free_ports;

const EPERM: u32 = 1;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn ringmq() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringmq"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("RINGMQ_")) {
        command.env_remove(name);
    }
    command.env_remove("NAMESRV_ADDR");
    command
}

/// A directory on a disk: tmpfs may not take O_DIRECT.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The profile as a filter of the kernel, without the calls of `but`.
fn filter(but: &[&str]) -> BpfProgram {
    let path = repository().join("tuning/container/seccomp.json");
    let profile: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
    assert_eq!(profile["defaultErrnoRet"], EPERM);
    let mut allowed = BTreeMap::new();
    for rule in profile["syscalls"].as_array().unwrap() {
        assert_eq!(rule["action"], "SCMP_ACT_ALLOW");
        for name in rule["names"].as_array().unwrap() {
            let name = name.as_str().unwrap();
            // Calls that other architectures have.
            let Ok(number) = Sysno::from_str(name) else {
                continue;
            };
            if !but.contains(&name) {
                allowed.insert(i64::from(number.id()), Vec::new());
            }
        }
    }
    assert!(allowed.len() > 100);
    let filter = SeccompFilter::new(
        allowed,
        SeccompAction::Errno(EPERM),
        SeccompAction::Allow,
        std::env::consts::ARCH.try_into().unwrap(),
    );
    filter.unwrap().try_into().unwrap()
}

/// Runs a command under a filter: children inherit that of the thread that starts them. None where no filter may be set.
fn under(filter: BpfProgram, mut command: Command) -> Option<Output> {
    let thread = std::thread::spawn(move || {
        if let Err(error) = seccompiler::apply_filter(&filter) {
            println!("SKIPPED the container's seccomp profile: {error}");
            return None;
        }
        Some(command.output().unwrap())
    });
    thread.join().unwrap()
}

#[test]
fn the_profile_of_the_container_lets_a_broker_work_and_nothing_without_io_uring() {
    let directory = directory();
    // A broker of its own, a message sent and received, a stop.
    let try_it = || {
        let mut command = ringmq();
        command.arg("try").env("TMPDIR", directory.path());
        command
    };
    let Some(output) = under(filter(&[]), try_it()) else {
        return;
    };
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("received"));

    let output = under(filter(&["io_uring_setup"]), try_it()).unwrap();
    assert_eq!(output.status.code(), Some(1));
    let reason = text(&output.stderr);
    assert!(reason.contains("--security-opt seccomp="), "{reason}");
}

#[test]
fn the_service_manager_is_told_when_it_serves_and_when_it_stops() {
    let directory = directory();
    let path = directory.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let told = || {
        let mut buffer = [0; 256];
        let bytes = manager.recv(&mut buffer).unwrap();
        text(&buffer[..bytes]).trim().to_owned()
    };
    let (namesrv, broker) = free_ports();
    let mut child = ringmq()
        .args(["standalone", "--bind", "127.0.0.1", "--shards", "1"])
        .args(["--namesrv-port", &namesrv.to_string()])
        .args(["--port", &broker.to_string()])
        .arg("--store")
        .arg(directory.path().join("store"))
        .env("NOTIFY_SOCKET", &path)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    assert_eq!(told(), "READY=1");
    TcpStream::connect(("127.0.0.1", broker)).unwrap();
    let killed = Command::new("kill").arg(child.id().to_string()).status();
    assert!(killed.unwrap().success());
    assert_eq!(told(), "STOPPING=1");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn the_unit_is_one_that_systemd_understands() {
    let unit = fs::read_to_string(repository().join("tuning/ringmq.service")).unwrap();
    for line in [
        "Type=notify",
        "LimitMEMLOCK=infinity",
        "NoNewPrivileges=yes",
        "RestartPreventExitStatus=2 78",
    ] {
        assert!(unit.lines().any(|it| it == line), "{line}");
    }
    let directory = tempfile::tempdir().unwrap();
    let copy = directory.path().join("ringmq.service");
    // It is not installed here.
    fs::write(&copy, unit.replace("/usr/local/bin/ringmq", "/bin/true")).unwrap();
    match Command::new("systemd-analyze")
        .arg("verify")
        .arg(&copy)
        .output()
    {
        Ok(output) => {
            let said = text(&output.stderr);
            let ours: Vec<&str> = said
                .lines()
                .filter(|line| line.contains("ringmq.service"))
                .collect();
            assert!(ours.is_empty(), "{ours:?}");
        }
        Err(_) => println!("SKIPPED systemd-analyze verify: it is not on this machine"),
    }
}

/// A machine as the script sees it: a /proc and /sys of its own.
struct Machine {
    root: tempfile::TempDir,
}

impl Machine {
    fn new(files: &[(&str, &str)]) -> Self {
        let machine = Self {
            root: tempfile::tempdir().unwrap(),
        };
        for (path, text) in files {
            let path = machine.path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        }
        machine
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path.trim_start_matches('/'))
    }

    fn read(&self, path: &str) -> String {
        let text = fs::read_to_string(self.path(path)).unwrap();
        text.trim().to_owned()
    }

    fn tune(&self, arguments: &[&str]) -> Output {
        Command::new("bash")
            .arg(repository().join("tuning/tune.sh"))
            .args(arguments)
            .env("TUNE_ROOT", self.root.path())
            .env("TUNE_STATE", self.path("/state"))
            .output()
            .unwrap()
    }

    fn tuned(&self, arguments: &[&str]) {
        let output = self.tune(arguments);
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
}

#[test]
fn each_knob_is_set_and_set_back() {
    const GOVERNOR: &str = "/sys/devices/system/cpu/cpu1/cpufreq/scaling_governor";
    const SCHEDULER: &str = "/sys/block/nvme0n1/queue/scheduler";
    const DEEP: &str = "/sys/devices/system/cpu/cpu0/cpuidle/state2/disable";
    const SHALLOW: &str = "/sys/devices/system/cpu/cpu0/cpuidle/state1/disable";
    const IRQ: &str = "/proc/irq/31/smp_affinity_list";
    const RPS: &str = "/sys/class/net/eth0/queues/rx-0/rps_cpus";
    const HUGE: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
    const POLL: &str = "/sys/module/haltpoll/parameters/guest_halt_poll_ns";
    const DISK_IRQ: &str = "/proc/irq/36/smp_affinity_list";
    let machine = Machine::new(&[
        (GOVERNOR, "powersave"),
        (SCHEDULER, "none [mq-deadline] kyber"),
        (DEEP, "0"),
        ("/sys/devices/system/cpu/cpu0/cpuidle/state2/latency", "133"),
        (SHALLOW, "0"),
        ("/sys/devices/system/cpu/cpu0/cpuidle/state1/latency", "2"),
        ("/sys/class/net/eth0/device/msi_irqs/31", "msi"),
        (IRQ, "0-1"),
        ("/sys/class/net/eth0/device/msi_irqs/30", "msi"),
        (RPS, "00"),
        (HUGE, "[always] madvise never"),
        (POLL, "0"),
        (DISK_IRQ, "0-1"),
        ("/sys/devices/pci0/msi_irqs/36", "msix"),
        ("/sys/devices/pci0/virtio1/block/vda/size", "1"),
        ("/proc/sys/vm/swappiness", "60"),
        ("/proc/sys/net/core/somaxconn", "128"),
        ("/proc/sys/net/ipv4/tcp_max_syn_backlog", "512"),
    ]);
    // One whose core the kernel does not let anybody choose.
    fs::create_dir_all(machine.path("/proc/irq/30/smp_affinity_list")).unwrap();
    let disk = machine.path("/sys/devices/pci0/virtio1/block/vda");
    std::os::unix::fs::symlink(disk, machine.path("/sys/block/vda")).unwrap();
    for knob in [
        "governor",
        "idle",
        "hugepages",
        "swappiness",
        "backlog",
        "haltpoll",
    ] {
        machine.tuned(&["apply", knob]);
    }
    machine.tuned(&["apply", "diskirq", "vda", "1"]);
    assert_eq!(
        (machine.read(POLL), machine.read(DISK_IRQ)),
        ("200000".into(), "1".into())
    );
    machine.tuned(&["apply", "scheduler", "nvme0n1"]);
    machine.tuned(&["apply", "nic", "eth0"]);
    // A second time: the way back is still the first state.
    machine.tuned(&["apply", "governor"]);
    assert_eq!(machine.read(GOVERNOR), "performance");
    assert_eq!(machine.read(SCHEDULER), "none");
    assert_eq!(machine.read(DEEP), "1");
    assert_eq!(machine.read(SHALLOW), "0");
    assert_eq!(machine.read(IRQ), "0");
    assert_eq!(machine.read(HUGE), "madvise");
    assert_eq!(machine.read("/proc/sys/net/core/somaxconn"), "4096");
    let cores = std::thread::available_parallelism().unwrap().get();
    if (2..=32).contains(&cores) {
        let mask = format!("{:x}", (1u64 << cores) - 1);
        assert_eq!(machine.read(RPS), mask);
    }
    machine.tuned(&["undo", "governor"]);
    assert_eq!(machine.read(GOVERNOR), "powersave");
    machine.tuned(&["undo", "all"]);
    assert_eq!(machine.read(SCHEDULER), "mq-deadline");
    assert_eq!(machine.read(DEEP), "0");
    assert_eq!(machine.read(IRQ), "0-1");
    assert_eq!(machine.read(RPS), "00");
    assert_eq!(machine.read(HUGE), "always");
    assert_eq!(
        (machine.read(POLL), machine.read(DISK_IRQ)),
        ("0".into(), "0-1".into())
    );
    assert_eq!(machine.read("/proc/sys/vm/swappiness"), "60");
    assert_eq!(machine.read("/proc/sys/net/core/somaxconn"), "128");

    machine.tuned(&["apply", "memlock", "mq"]);
    let limits = "/etc/security/limits.d/ringmq.conf";
    assert!(machine.read(limits).contains("mq - memlock unlimited"));
    machine.tuned(&["undo", "memlock"]);
    assert!(!machine.path(limits).exists());
}

#[test]
fn a_knob_that_a_machine_has_not_is_said_and_nothing_is_changed() {
    let machine = Machine::new(&[]);
    for arguments in [
        ["apply", "governor"],
        ["apply", "idle"],
        ["apply", "haltpoll"],
        ["apply", "frobnicate"],
        ["undo", "governor"],
    ] {
        let output = machine.tune(&arguments);
        assert!(!output.status.success(), "{arguments:?}");
        assert!(text(&output.stderr).starts_with("tune.sh: "));
    }
    let output = machine.tune(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stdout).contains("Knobs: governor;"));
    assert!(!text(&output.stdout).contains("set -euo"));
}

#[test]
fn the_doctor_measures_says_what_it_found_and_leaves_no_trace() {
    let directory = directory();
    let store = directory.path().join("not/yet");
    let ask = |arguments: &[&str]| {
        let mut command = ringmq();
        command.arg("doctor").arg("--store").arg(&store);
        command.args(arguments).output().unwrap()
    };
    let output = ask(&["-o", "json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let figures = report["measured"].as_array().unwrap();
    let flushed = &figures[0];
    assert_eq!(flushed["what"], "flushed write of 4 KiB");
    let at = |name: &str| flushed[name].as_f64().unwrap();
    assert!(0.0 < at("p50Us") && at("p50Us") <= at("p99Us") && at("p99Us") <= at("maxUs"));
    let findings = report["findings"].as_array().unwrap();
    let knobs: Vec<&str> = findings
        .iter()
        .map(|finding| finding["knob"].as_str().unwrap())
        .collect();
    for knob in ["file system", "load", "open files"] {
        assert!(knobs.contains(&knob), "{knobs:?}");
    }
    // What costs something has a remedy, and one that names the script names a knob that it has.
    let script = fs::read_to_string(repository().join("tuning/tune.sh")).unwrap();
    for finding in findings.iter().filter(|it| it["verdict"] != "ok") {
        let remedy = finding["remedy"].as_str().unwrap();
        assert!(!remedy.is_empty(), "{finding}");
        if let Some((_, rest)) = remedy.split_once("tune.sh apply ") {
            let knob = rest.split([' ', ',', ';']).next().unwrap();
            assert!(script.contains(&format!("\n{knob}")), "{knob}");
        }
    }
    let output = ask(&[]);
    assert!(text(&output.stdout).contains("flushed write of 4 KiB"));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);

    let output = ringmq()
        .args(["doctor", "--store", "/proc/mq"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("does not start here"));
}
