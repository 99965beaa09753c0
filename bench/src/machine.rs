//! Facts of the machine that a figure means nothing without. What cannot be read is left out.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Where a run took place.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Machine {
    pub kernel: String,
    pub cpu: String,
    pub cpus: usize,
    /// Frequency governor of the first processor.
    pub governor: Option<String>,
    pub memory_bytes: u64,
    /// Of this process; the broker's own limit is in its settings or its unit.
    pub memlock: Option<String>,
    /// Of the broker's process.
    pub broker_memlock: Option<String>,
    /// The file system of the broker's store, if that is on this machine.
    pub store: Option<Mount>,
    /// Load average of the last minute before the run: others were at work if it is not near 0.
    pub load_before: f64,
}

/// A mounted file system.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Mount {
    pub path: String,
    pub device: String,
    pub file_system: String,
    pub options: String,
}

/// Reads all of it. `store` is the broker's directory, if it is known.
pub fn facts(store: Option<&str>, broker_pid: Option<u32>) -> Machine {
    let text = |path: &str| {
        fs::read_to_string(path)
            .ok()
            .map(|text| text.trim().to_owned())
    };
    let cpuinfo = text("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.trim().strip_prefix(':'))
        .unwrap_or("unknown");
    let uname = rustix::system::uname();
    Machine {
        kernel: format!(
            "{} {}",
            uname.sysname().to_string_lossy(),
            uname.release().to_string_lossy()
        ),
        cpu: model.trim().to_owned(),
        cpus: std::thread::available_parallelism().map_or(0, usize::from),
        governor: text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        memory_bytes: text("/proc/meminfo").map_or(0, |text| kib(&text, "MemTotal:") << 10),
        memlock: limit("/proc/self/limits"),
        broker_memlock: broker_pid.and_then(|pid| limit(&format!("/proc/{pid}/limits"))),
        store: store.and_then(|store| {
            let store = fs::canonicalize(store).ok()?;
            mount_of(&store, &text("/proc/self/mounts")?)
        }),
        load_before: text("/proc/loadavg")
            .and_then(|text| text.split(' ').next()?.parse().ok())
            .unwrap_or(0.0),
    }
}

fn kib(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|line| {
            line.strip_prefix(name)?
                .trim()
                .strip_suffix("kB")?
                .trim()
                .parse()
                .ok()
        })
        .unwrap_or(0)
}

fn limit(path: &str) -> Option<String> {
    let limits = fs::read_to_string(path).ok()?;
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max locked memory"))?;
    Some(line.split_whitespace().next()?.to_owned())
}

/// The mount with the longest path that `path` is below; of two with one path the later one counts.
fn mount_of(path: &Path, mounts: &str) -> Option<Mount> {
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let mount = Mount {
                device: fields.next()?.to_owned(),
                path: fields.next()?.replace("\\040", " "),
                file_system: fields.next()?.to_owned(),
                options: fields.next()?.to_owned(),
            };
            path.starts_with(&mount.path).then_some(mount)
        })
        .max_by_key(|mount| mount.path.len())
}

/// The settings of a broker that decide about its figures, where it has them.
pub fn telling_settings(all: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    const KEYS: [&str; 14] = [
        "brokerName",
        "brokerRole",
        "flushDiskType",
        "storePathRootDir",
        "mappedFileSizeCommitLog",
        "transientStorePoolEnable",
        "waitTimeMillsInSendQueue",
        "sendMessageThreadPoolNums",
        "flushCommitLogTimed",
        "flushIntervalCommitLog",
        "shards",
        "pinShards",
        "memory",
        "logs",
    ];
    all.iter()
        .filter(|(key, _)| KEYS.contains(&key.as_str()))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_deepest_mount_counts() {
        let mounts = "/dev/a / ext4 rw,relatime 0 0\ntmpfs /data tmpfs rw 0 0\n/dev/b /data/my\\040disk xfs rw,noatime 0 0\n";
        let of = |path: &str| mount_of(Path::new(path), mounts).unwrap();
        assert_eq!(of("/data/my disk/store").file_system, "xfs");
        assert_eq!(of("/data/my disk/store").options, "rw,noatime");
        assert_eq!(of("/data/other").device, "tmpfs");
        assert_eq!(of("/database").device, "/dev/a");
    }

    #[test]
    fn this_machine_has_a_kernel_and_memory() {
        let machine = facts(Some("/"), Some(std::process::id()));
        assert!(machine.kernel.starts_with("Linux "), "{machine:?}");
        assert!(
            machine.memory_bytes > 1 << 20 && machine.cpus > 0,
            "{machine:?}"
        );
        assert_eq!(machine.memlock, machine.broker_memlock);
        assert_eq!(machine.store.unwrap().path, "/");
    }
}
