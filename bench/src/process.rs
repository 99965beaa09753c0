//! What a process has used so far, from /proc: the broker's by its number, and our own.

use std::fs;
use std::io;

use rustix::time::{ClockId, clock_gettime};

/// CPU time and memory of a process, or of several together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// User and system time of all its threads.
    pub cpu_seconds: f64,
    pub resident_bytes: u64,
    /// The most that was resident.
    pub peak_resident_bytes: u64,
}

/// Reads /proc/PID/stat and status of these processes and adds them up.
pub fn usage(pids: &[u32]) -> io::Result<Usage> {
    let mut sum = Usage::default();
    for pid in pids {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let ticks = ticks_of(&stat)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, stat.clone()))?;
        sum.cpu_seconds += ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
        sum.resident_bytes += kib_of(&status, "VmRSS:") << 10;
        sum.peak_resident_bytes += kib_of(&status, "VmHWM:") << 10;
    }
    Ok(sum)
}

/// utime + stime of a line of /proc/PID/stat. The name of the process may contain spaces and brackets.
fn ticks_of(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn kib_of(status: &str, name: &str) -> u64 {
    status
        .lines()
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

/// CPU seconds that all processes of the machine have used, interrupts included.
pub fn machine_cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks: Vec<u64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_ascii_whitespace()
        .skip(1)
        .filter_map(|field| field.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal: neither idle nor iowait is work.
    let busy: u64 = [0, 1, 2, 5, 6, 7]
        .iter()
        .filter_map(|at| ticks.get(*at))
        .sum();
    busy as f64 / rustix::param::clock_ticks_per_second() as f64
}

/// CPU time of this process, all threads.
pub fn own_cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_with_brackets_does_not_move_the_fields() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 1 0 5 6 7";
        assert_eq!(ticks_of(stat), Some(200));
    }

    #[test]
    fn our_own_usage_grows_with_work() {
        let before = own_cpu_seconds();
        let mut sum = 0u64;
        while own_cpu_seconds() < before + 0.03 {
            sum = sum.wrapping_add(1);
        }
        let usage = usage(&[std::process::id()]).unwrap();
        assert!(
            usage.cpu_seconds > 0.0 && usage.resident_bytes > 0,
            "{usage:?} {sum}"
        );
    }
}
