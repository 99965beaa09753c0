//! Settings of a machine that cost a broker something, read from /proc and /sys below a root, so that tests can have their own.
//!
//! Each check is one function: what it is now, what that costs, the remedy. What cannot be read gives no finding.
//! Sources: Documentation/ABI/stable/sysfs-block, admin-guide/pm/{cpufreq,cpuidle}.rst, admin-guide/cgroup-v2.rst and
//! networking/scaling.rst of the kernel.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::app::doctor::measure::Measured;
use crate::app::doctor::{Finding, Verdict};
use crate::io::interrupts;
use crate::io::process::{self, Resource};

/// From here on stolen time is worth a line.
const STOLEN_TOLERATED: f64 = 0.005;
/// A core that sleeps deeper than this wakes up too late for a flush of a tenth of a millisecond.
const IDLE_EXIT_US_MAX: u64 = 50;
/// As long as a flush of a fast disk takes, so that its end finds the processor awake.
const HALT_POLL_NS_MIN: u64 = 100_000;
/// The listeners ask for so many waiting connections.
const BACKLOG_WANTED: u64 = 1_024;
/// Locked memory that is enough for the rings and registered buffers of any machine.
const LOCKED_BYTES_ENOUGH: u64 = 64 << 20;

struct Machine<'a> {
    root: &'a Path,
    measured: Option<&'a Measured>,
}

impl Machine<'_> {
    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    fn text(&self, path: &str) -> Option<String> {
        let text = fs::read_to_string(self.path(path)).ok()?;
        Some(text.trim().to_owned())
    }

    fn number(&self, path: &str) -> Option<u64> {
        self.text(path)?.parse().ok()
    }

    /// Names in a directory, in order.
    fn names(&self, path: &str) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.path(path))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort_unstable();
        names
    }

    /// How late cores wake up here.
    fn lateness(&self) -> String {
        self.measured.map_or_else(String::new, |measured| {
            format!(
                "; here a sleep ends {:.0} us late, {:.0} us at the 99th percentile",
                measured.late.us(0.5),
                measured.late.us(0.99)
            )
        })
    }
}

fn ok(knob: &'static str, found: impl Into<String>, effect: impl Into<String>) -> Finding {
    Finding {
        knob,
        verdict: Verdict::Ok,
        found: found.into(),
        effect: effect.into(),
        remedy: String::new(),
    }
}

fn costs(
    knob: &'static str,
    found: impl Into<String>,
    effect: impl Into<String>,
    remedy: impl Into<String>,
) -> Finding {
    Finding {
        knob,
        verdict: Verdict::Costs,
        found: found.into(),
        effect: effect.into(),
        remedy: remedy.into(),
    }
}

/// All findings. `directory` is where the store is or will be.
pub fn all(root: &Path, directory: &Path, measured: Option<&Measured>) -> Vec<Finding> {
    let machine = Machine { root, measured };
    let device = fs::metadata(directory).ok().map(|it| it.dev());
    let queue = device.and_then(|device| queue_of(&machine, device));
    let mut findings: Vec<Finding> = [
        file_system(&machine, directory),
        queue
            .as_deref()
            .and_then(|queue| scheduler(&machine, queue)),
        queue
            .as_deref()
            .and_then(|queue| write_cache(&machine, queue)),
        governor(&machine),
        idle_states(&machine),
        halt_polling(&machine),
        disk_interrupts(&machine, directory),
        clock(&machine),
        quota(&machine),
        load(&machine),
        stolen(&machine),
        isolation(&machine),
        huge_pages(&machine),
        swap(&machine),
        backlog(&machine),
        mitigations(&machine),
        locked_memory(),
        open_files(),
    ]
    .into_iter()
    .flatten()
    .collect();
    findings.extend(receive_queues(&machine));
    findings
}

/// Source and options of the mount with the longest path above `directory`; the later one of two with one path.
fn mount_of(mounts: &str, directory: &Path) -> Option<(String, Vec<String>)> {
    let of_line = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        let path = fields.next()?.replace("\\040", " ");
        let kind = fields.next()?.to_owned();
        let options = fields.next()?.split(',').map(str::to_owned).collect();
        directory
            .starts_with(&path)
            .then_some((path.len(), kind, options))
    };
    let (_, kind, options) = mounts.lines().filter_map(of_line).max_by_key(|it| it.0)?;
    Some((kind, options))
}

fn file_system(machine: &Machine, directory: &Path) -> Option<Finding> {
    const KNOB: &str = "file system";
    let (kind, options) = mount_of(&machine.text("/proc/mounts")?, directory)?;
    let found = format!("{kind} ({})", options.join(","));
    let has = |wanted: &[&str]| options.iter().find(|it| wanted.contains(&it.as_str()));
    if let Some(option) = has(&["nobarrier", "barrier=0"]) {
        return Some(costs(
            KNOB,
            found,
            format!(
                "with {option} a flush does not reach the device: what was acknowledged can be lost with the power"
            ),
            "mount it without that, unless the device's cache outlives the power",
        ));
    }
    if let Some(option) = has(&["sync", "dirsync", "data=journal", "discard", "strictatime"]) {
        return Some(costs(
            KNOB,
            found,
            match option.as_str() {
                "discard" => {
                    "the device trims each file that is removed, and may do nothing else meanwhile"
                }
                "data=journal" => "every byte is written twice, and never with O_DIRECT",
                "strictatime" => "each read of a file writes its time",
                _ => "each change of a file waits for the device by itself",
            },
            match option.as_str() {
                "discard" => "tuning/tune.sh apply mount DIR, and fstrim.timer in its place",
                _ => "tuning/tune.sh apply mount DIR",
            },
        ));
    }
    match kind.as_str() {
        "ext4" | "xfs" => Some(ok(KNOB, found, "")),
        _ => Some(costs(
            KNOB,
            found,
            "only ext4 and xfs were tried: writing over blocks in place, O_DIRECT, flushes that reach the device",
            "put the store on ext4 or xfs",
        )),
    }
}

/// Directory of the request queue of a block device, with `/` in front: a partition has that of its disk.
fn queue_of(machine: &Machine, device: u64) -> Option<String> {
    let target = interrupts::sysfs_of(machine.root, device)?;
    let root = fs::canonicalize(machine.root).ok()?;
    let found = [Some(target.as_path()), target.parent()]
        .into_iter()
        .flatten()
        .map(|path| path.join("queue"))
        .find(|path| path.is_dir())?;
    let below = found.strip_prefix(root).ok()?;
    Some(format!("/{}", below.display()))
}

fn scheduler(machine: &Machine, queue: &str) -> Option<Finding> {
    const KNOB: &str = "disk scheduler";
    let all = machine.text(&format!("{queue}/scheduler"))?;
    let chosen = match all.split_once('[') {
        Some((_, rest)) => rest.split(']').next()?,
        None => all.as_str(),
    };
    if chosen == "none" {
        return Some(ok(KNOB, "none", ""));
    }
    let disk = queue.trim_end_matches("/queue").rsplit('/').next()?;
    Some(costs(
        KNOB,
        format!("{chosen} on {disk}"),
        "an SSD needs nobody to sort its requests: each goes through one more queue and its lock (a spinning disk is better off with mq-deadline)",
        format!("tuning/tune.sh apply scheduler {disk}"),
    ))
}

fn write_cache(machine: &Machine, queue: &str) -> Option<Finding> {
    const KNOB: &str = "write cache";
    let cache = machine.text(&format!("{queue}/write_cache"))?;
    if cache != "write back" {
        return Some(ok(
            KNOB,
            cache,
            "a write is durable when it is done: a flush costs nothing",
        ));
    }
    let has_fua = machine.number(&format!("{queue}/fua")) == Some(1);
    Some(match has_fua {
        true => ok(
            KNOB,
            cache,
            "with forced unit access: a flushed write is one request",
        ),
        false => {
            let here = machine.measured.map_or_else(String::new, |measured| {
                format!("; here {:.0} us for both", measured.flushed_4k.us(0.5))
            });
            ok(
                KNOB,
                cache,
                format!(
                    "without forced unit access: a flushed write is a write and a flush of the whole cache{here}"
                ),
            )
        }
    })
}

fn governor(machine: &Machine) -> Option<Finding> {
    const KNOB: &str = "cpu governor";
    let path = "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor";
    let Some(governor) = machine.text(path) else {
        return Some(ok(
            KNOB,
            "none",
            "frequencies are the host's or the firmware's business",
        ));
    };
    if governor == "performance" {
        return Some(ok(KNOB, governor, ""));
    }
    Some(costs(
        KNOB,
        governor,
        format!(
            "a core that waits for a flush is taken for idle and slowed down{}",
            machine.lateness()
        ),
        "tuning/tune.sh apply governor",
    ))
}

fn idle_states(machine: &Machine) -> Option<Finding> {
    const KNOB: &str = "idle states";
    let root = "/sys/devices/system/cpu/cpu0/cpuidle";
    let deepest = machine
        .names(root)
        .into_iter()
        .filter(|state| machine.number(&format!("{root}/{state}/disable")) == Some(0))
        .filter_map(|state| {
            let name = machine.text(&format!("{root}/{state}/name"))?;
            Some((machine.number(&format!("{root}/{state}/latency"))?, name))
        })
        .max()?;
    let (exit_us, name) = deepest;
    let found = format!("down to {name}, {exit_us} us to leave it");
    Some(match exit_us > IDLE_EXIT_US_MAX {
        true => costs(
            KNOB,
            found,
            format!(
                "each flush and each message finds its core asleep{}",
                machine.lateness()
            ),
            "tuning/tune.sh apply idle",
        ),
        false => ok(KNOB, found, ""),
    })
}

/// A guest that does not look for work for a moment before it sleeps leaves each wakeup to its host.
fn halt_polling(machine: &Machine) -> Option<Finding> {
    const KNOB: &str = "halt polling";
    let governor = machine.text("/sys/devices/system/cpu/cpuidle/current_governor")?;
    let poll_ns = machine.number("/sys/module/haltpoll/parameters/guest_halt_poll_ns")?;
    if governor != "haltpoll" {
        return None;
    }
    let found = format!(
        "{} us before a processor of this guest sleeps",
        poll_ns / 1_000
    );
    Some(match poll_ns < HALT_POLL_NS_MIN {
        true => costs(
            KNOB,
            found,
            format!(
                "the end of each flush and each message waits until the host has woken the processor{}",
                machine.lateness()
            ),
            "tuning/tune.sh apply haltpoll",
        ),
        false => ok(KNOB, found, ""),
    })
}

/// Where the ends of flushed writes arrive.
fn disk_interrupts(machine: &Machine, directory: &Path) -> Option<Finding> {
    const KNOB: &str = "disk interrupts";
    let all = machine.names("/sys/devices/system/cpu");
    let is_processor = |name: &&String| {
        name.strip_prefix("cpu")
            .is_some_and(|rest| rest.parse::<u32>().is_ok())
    };
    let count = all.iter().filter(is_processor).count();
    let found = interrupts::disk_processors(machine.root, directory);
    if found.is_empty() || count == 0 {
        return None;
    }
    let text: Vec<String> = found.iter().map(usize::to_string).collect();
    let text = text.join(", ");
    Some(match found.len() < count {
        true => costs(
            KNOB,
            format!("on {} of {count} processors ({text})", found.len()),
            "a shard on another one waits for a wakeup more at each flush, and for a program that never sleeps on this one until the kernel's next tick",
            format!(
                "keep other programs off processor {text}; with --shards N and pinShards=true the first shards are there"
            ),
        ),
        false => ok(KNOB, "on every processor", ""),
    })
}

fn clock(machine: &Machine) -> Option<Finding> {
    const KNOB: &str = "clock source";
    let source =
        machine.text("/sys/devices/system/clocksource/clocksource0/current_clocksource")?;
    Some(match source.as_str() {
        "tsc" | "kvm-clock" | "arch_sys_counter" | "hyperv_clocksource_tsc_page" => {
            ok(KNOB, source, "")
        }
        _ => costs(
            KNOB,
            source,
            "each look at the clock is a system call or slower, and a message takes several",
            "boot with clocksource=tsc tsc=reliable if the processor's counter is stable",
        ),
    })
}

/// Limits of the control group that this process is in, and of those above it.
fn quota(machine: &Machine) -> Option<Finding> {
    const KNOB: &str = "cpu quota";
    let groups = machine.text("/proc/self/cgroup")?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let path = Path::new(own);
    let mut throttled = 0;
    let mut tightest: Option<f64> = None;
    for group in path.ancestors() {
        let directory = format!("/sys/fs/cgroup{}", group.display());
        let directory = directory.trim_end_matches('/');
        if let Some(cores) = machine
            .text(&format!("{directory}/cpu.max"))
            .and_then(|text| cores_of(&text))
        {
            tightest = Some(tightest.map_or(cores, |least| least.min(cores)));
            let stat = machine
                .text(&format!("{directory}/cpu.stat"))
                .unwrap_or_default();
            throttled += stat
                .lines()
                .find_map(|line| line.strip_prefix("nr_throttled "))
                .and_then(|number| number.parse::<u64>().ok())
                .unwrap_or(0);
        }
    }
    Some(match tightest {
        None => ok(KNOB, "none", ""),
        Some(cores) => costs(
            KNOB,
            format!("{cores:.2} cores, reached {throttled} times"),
            "when it is reached all cores stop until the next tenth of a second",
            "give whole cores instead of a share of time: cpuset.cpus, --cpuset-cpus, or a static CPU manager policy in Kubernetes",
        ),
    })
}

/// `cpu.max` is `QUOTA PERIOD` in microseconds, or `max PERIOD`.
fn cores_of(text: &str) -> Option<f64> {
    let (quota, period) = text.split_once(' ')?;
    let (quota, period): (f64, f64) = (quota.parse().ok()?, period.parse().ok()?);
    (period > 0.0).then(|| quota / period)
}

fn load(machine: &Machine) -> Option<Finding> {
    const KNOB: &str = "load";
    let text = machine.text("/proc/loadavg")?;
    let load: f64 = text.split(' ').next()?.parse().ok()?;
    let cores = process::cores() as f64;
    let found = format!("{load:.2} on {cores} cores");
    Some(match load > cores / 4.0 {
        true => costs(
            KNOB,
            found,
            "others are at work: the figures above are theirs, too",
            "measure again when it is quiet",
        ),
        false => ok(KNOB, found, ""),
    })
}

fn stolen(machine: &Machine) -> Option<Finding> {
    let stolen = machine.measured?.stolen?;
    let found = format!("{:.1} %", stolen * 100.0);
    Some(match stolen > STOLEN_TOLERATED {
        true => costs(
            "stolen time",
            found,
            "the host gives this machine's processors to others: no setting in here changes that",
            "ask for dedicated processors",
        ),
        false => ok("stolen time", found, ""),
    })
}

fn isolation(machine: &Machine) -> Option<Finding> {
    let isolated = machine.text("/sys/devices/system/cpu/isolated")?;
    let found = match isolated.as_str() {
        "" => "none".to_owned(),
        cores => format!("cores {cores}"),
    };
    Some(ok(
        "isolated cores",
        found,
        "see tuning/README.md for machines with many cores",
    ))
}

fn huge_pages(machine: &Machine) -> Option<Finding> {
    const KNOB: &str = "huge pages";
    let text = machine.text("/sys/kernel/mm/transparent_hugepage/enabled")?;
    let chosen = text.split_once('[')?.1.split(']').next()?.to_owned();
    Some(match chosen.as_str() {
        "never" => costs(
            KNOB,
            chosen,
            "the runs of 2 MiB that batches are written from take 512 pages each, and as many entries of the translation cache",
            "tuning/tune.sh apply hugepages",
        ),
        _ => ok(
            KNOB,
            chosen,
            "batches are written from runs of 2 MiB that ask for one page",
        ),
    })
}

fn swap(machine: &Machine) -> Option<Finding> {
    const KNOB: &str = "swap";
    let meminfo = machine.text("/proc/meminfo")?;
    let total_kib: u64 = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("SwapTotal:"))?
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .ok()?;
    let swappiness = machine.number("/proc/sys/vm/swappiness")?;
    let found = format!("{} MiB, swappiness {swappiness}", total_kib >> 10);
    Some(match total_kib > 0 && swappiness > 10 {
        true => costs(
            KNOB,
            found,
            "a page of the broker that was swapped out stops a core for a disk read",
            "tuning/tune.sh apply swappiness",
        ),
        false => ok(KNOB, found, ""),
    })
}

fn backlog(machine: &Machine) -> Option<Finding> {
    const KNOB: &str = "listen backlog";
    let somaxconn = machine.number("/proc/sys/net/core/somaxconn")?;
    Some(match somaxconn < BACKLOG_WANTED {
        true => costs(
            KNOB,
            format!("net.core.somaxconn={somaxconn}"),
            "when thousands of clients come back at once their connections are dropped and tried again a second later",
            "tuning/tune.sh apply backlog",
        ),
        false => ok(KNOB, format!("net.core.somaxconn={somaxconn}"), ""),
    })
}

fn mitigations(machine: &Machine) -> Option<Finding> {
    let root = "/sys/devices/system/cpu/vulnerabilities";
    let names = machine.names(root);
    let mitigated = names
        .iter()
        .filter_map(|name| machine.text(&format!("{root}/{name}")))
        .filter(|text| text.starts_with("Mitigation"))
        .count();
    let call = machine.measured.map_or_else(String::new, |measured| {
        format!("a system call takes {:.0} ns here", measured.system_call_ns)
    });
    (!names.is_empty()).then(|| {
        ok(
            "mitigations",
            format!(
                "{mitigated} of {} known flaws of processors worked around",
                names.len()
            ),
            call,
        )
    })
}

fn locked_memory() -> Option<Finding> {
    const KNOB: &str = "locked memory";
    if process::may_lock_any_memory() {
        return Some(ok(KNOB, "as much as it likes (CAP_IPC_LOCK)", ""));
    }
    let limit = process::limit(Resource::LockedBytes).ok()?;
    let found = format!("{} KiB", limit.hard >> 10);
    Some(match limit.hard < LOCKED_BYTES_ENOUGH {
        true => costs(
            KNOB,
            found,
            "enough for the rings of a few cores; the preflight of the broker says when it is too little",
            "systemd: LimitMEMLOCK=infinity (tuning/ringmq.service); container: --ulimit memlock=-1; shell: /etc/security/limits.conf",
        ),
        false => ok(KNOB, found, ""),
    })
}

fn open_files() -> Option<Finding> {
    let limit = process::limit(Resource::OpenFiles).ok()?;
    // The preflight has looked at what is too few.
    Some(ok(
        "open files",
        format!("{} at most", limit.hard),
        "one for each connection",
    ))
}

/// A network interface whose packets all come in by one queue keeps one core busy with them, unless receive packet steering
/// spreads them.
fn receive_queues(machine: &Machine) -> Vec<Finding> {
    const KNOB: &str = "receive queues";
    let cores = process::cores();
    machine
        .names("/sys/class/net")
        .into_iter()
        // What has a device behind it: no loopback, bridge or tunnel.
        .filter(|name| machine.path(&format!("/sys/class/net/{name}/device")).exists())
        .filter_map(|name| {
            let root = format!("/sys/class/net/{name}/queues");
            let queues: Vec<String> = machine
                .names(&root)
                .into_iter()
                .filter(|queue| queue.starts_with("rx-"))
                .collect();
            let is_steered = queues.iter().any(|queue| {
                machine
                    .text(&format!("{root}/{queue}/rps_cpus"))
                    .is_some_and(|mask| mask.chars().any(|digit| !matches!(digit, '0' | ',')))
            });
            let found = format!("{} of {name} for {cores} cores", queues.len());
            match queues.len() {
                0 => None,
                n if n < cores && !is_steered => Some(costs(
                    KNOB,
                    found,
                    "the interrupts of a connection and its shard are on different cores, and few cores take all packets",
                    format!("tuning/tune.sh apply nic {name}"),
                )),
                _ => Some(ok(KNOB, found, "")),
            }
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A root with these files.
    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn of(
        root: &tempfile::TempDir,
        check: impl Fn(&Machine) -> Option<Finding>,
    ) -> Option<Finding> {
        check(&Machine {
            root: root.path(),
            measured: None,
        })
    }

    #[test]
    fn a_mount_that_drops_flushes_or_trims_at_each_removal_is_named() {
        let mounts = "/dev/a / ext4 rw,relatime 0 0\n/dev/b /data ext4 rw,nobarrier 0 0\n\
                      /dev/c /trim xfs rw,discard 0 0\ntmpfs /tmp tmpfs rw 0 0\n";
        let root = root(&[("proc/mounts", mounts)]);
        let of = |directory: &str| of(&root, |it| file_system(it, Path::new(directory))).unwrap();
        assert_eq!(of("/var/mq").verdict, Verdict::Ok);
        assert!(of("/data/mq").effect.contains("does not reach the device"));
        assert!(of("/trim/mq").remedy.contains("fstrim"));
        assert_eq!(of("/tmp/mq").verdict, Verdict::Costs);
        assert_eq!(
            of("/database").verdict,
            Verdict::Ok,
            "/data is not above it"
        );
    }

    #[test]
    fn a_partition_has_the_queue_of_its_disk() {
        let root = root(&[
            (
                "sys/devices/x/vda/queue/scheduler",
                "none [mq-deadline] kyber",
            ),
            ("sys/devices/x/vda/queue/write_cache", "write back"),
            ("sys/devices/x/vda/queue/fua", "0"),
            ("sys/devices/x/vda/vda1/size", "1"),
        ]);
        fs::create_dir_all(root.path().join("sys/dev/block")).unwrap();
        let target = root.path().join("sys/devices/x/vda/vda1");
        std::os::unix::fs::symlink(target, root.path().join("sys/dev/block/254:1")).unwrap();
        let machine = Machine {
            root: root.path(),
            measured: None,
        };
        let queue = queue_of(&machine, 254 << 8 | 1).unwrap();
        assert_eq!(queue, "/sys/devices/x/vda/queue");
        let finding = scheduler(&machine, &queue).unwrap();
        assert_eq!(finding.found, "mq-deadline on vda");
        assert_eq!(finding.remedy, "tuning/tune.sh apply scheduler vda");
        assert!(
            write_cache(&machine, &queue)
                .unwrap()
                .effect
                .contains("without forced")
        );
        assert_eq!(queue_of(&machine, 254 << 8 | 2), None);
    }

    #[test]
    fn processors_that_sleep_deeply_or_are_rationed_are_named() {
        let slow = root(&[
            (
                "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
                "powersave",
            ),
            ("sys/devices/system/cpu/cpu0/cpuidle/state0/name", "POLL"),
            ("sys/devices/system/cpu/cpu0/cpuidle/state0/latency", "0"),
            ("sys/devices/system/cpu/cpu0/cpuidle/state0/disable", "0"),
            ("sys/devices/system/cpu/cpu0/cpuidle/state1/name", "C6"),
            ("sys/devices/system/cpu/cpu0/cpuidle/state1/latency", "133"),
            ("sys/devices/system/cpu/cpu0/cpuidle/state1/disable", "0"),
            ("proc/self/cgroup", "0::/pod/box\n"),
            ("sys/fs/cgroup/pod/cpu.max", "150000 100000"),
            (
                "sys/fs/cgroup/pod/cpu.stat",
                "nr_periods 9\nnr_throttled 4\n",
            ),
            ("sys/fs/cgroup/pod/box/cpu.max", "max 100000"),
            (
                "sys/devices/system/clocksource/clocksource0/current_clocksource",
                "hpet",
            ),
        ]);
        assert_eq!(of(&slow, governor).unwrap().found, "powersave");
        assert_eq!(
            of(&slow, idle_states).unwrap().found,
            "down to C6, 133 us to leave it"
        );
        assert_eq!(
            of(&slow, quota).unwrap().found,
            "1.50 cores, reached 4 times"
        );
        assert_eq!(of(&slow, clock).unwrap().verdict, Verdict::Costs);
        let disable = slow
            .path()
            .join("sys/devices/system/cpu/cpu0/cpuidle/state1/disable");
        fs::write(disable, "1").unwrap();
        assert_eq!(of(&slow, idle_states).unwrap().verdict, Verdict::Ok);
        assert_eq!(
            of(&root(&[("proc/self/cgroup", "0::/\n")]), quota)
                .unwrap()
                .verdict,
            Verdict::Ok
        );
    }

    #[test]
    fn a_guest_that_sleeps_at_once_is_named() {
        let machine = |poll_ns: &str, governor: &str| {
            let root = root(&[
                ("sys/devices/system/cpu/cpuidle/current_governor", governor),
                ("sys/module/haltpoll/parameters/guest_halt_poll_ns", poll_ns),
            ]);
            of(&root, halt_polling)
        };
        let finding = machine("0", "haltpoll").unwrap();
        assert_eq!(finding.verdict, Verdict::Costs);
        assert_eq!(finding.remedy, "tuning/tune.sh apply haltpoll");
        assert_eq!(machine("200000", "haltpoll").unwrap().verdict, Verdict::Ok);
        assert!(machine("0", "menu").is_none());
    }

    #[test]
    fn memory_and_sockets() {
        let bad = root(&[
            (
                "sys/kernel/mm/transparent_hugepage/enabled",
                "always madvise [never]",
            ),
            (
                "proc/meminfo",
                "MemTotal: 1 kB\nSwapTotal:       2097148 kB\n",
            ),
            ("proc/sys/vm/swappiness", "60"),
            ("proc/sys/net/core/somaxconn", "128"),
        ]);
        for check in [huge_pages, swap, backlog] {
            assert_eq!(of(&bad, check).unwrap().verdict, Verdict::Costs);
        }
        let good = root(&[
            (
                "sys/kernel/mm/transparent_hugepage/enabled",
                "always [madvise] never",
            ),
            ("proc/meminfo", "SwapTotal:       0 kB\n"),
            ("proc/sys/vm/swappiness", "60"),
            ("proc/sys/net/core/somaxconn", "4096"),
        ]);
        for check in [huge_pages, swap, backlog] {
            assert_eq!(of(&good, check).unwrap().verdict, Verdict::Ok);
        }
    }

    #[test]
    fn what_cannot_be_read_is_left_out() {
        let empty = root(&[]);
        let directory = empty.path().join("store");
        let found = all(empty.path(), &directory, None);
        let knobs: Vec<&str> = found.iter().map(|finding| finding.knob).collect();
        assert_eq!(knobs, ["cpu governor", "locked memory", "open files"]);
    }
}
