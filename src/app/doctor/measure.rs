//! What a machine has to be measured for: flushed writes, reads, a loopback round trip, wakeups, system calls, stolen time.
//!
//! The disk is asked through [`Env`] as the log asks it: O_DIRECT, flushed by each write, into space that was written before.
//! All of it takes about two seconds and 34 MiB in one scratch file.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::io::env::{DiskFile, Env, OpenMode};
use crate::shard::executor::run_once;

const MIB: usize = 1 << 20;
/// Written in advance, then written over with flushes.
const PREWRITTEN_BYTES: usize = 32 * MIB;
/// Behind that, only allocated.
const ALLOCATED_BYTES: usize = 2 * MIB;
const WRITES_4K: usize = 400;
const WRITES_64K: usize = 100;
const WRITES_1M: usize = 16;
const READ_BYTES: usize = 128 << 10;
const ROUND_TRIPS: usize = 1_000;
const MESSAGE_BYTES: usize = 1 << 10;
const SLEEPS: usize = 200;
const SYSTEM_CALLS: u32 = 100_000;

/// Times of one thing that was done many times, ascending.
#[derive(Clone, Debug, Default)]
pub struct Times(Vec<Duration>);

impl Times {
    fn new(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self(times)
    }

    /// The time at a share of 0 to 1, in microseconds.
    pub fn us(&self, share: f64) -> f64 {
        let last = self.0.len().saturating_sub(1);
        let at = (share * last as f64).round() as usize;
        self.0.get(at).map_or(0.0, |time| time.as_secs_f64() * 1e6)
    }

    /// MB/s of `bytes` each.
    fn mb_per_s(&self, bytes: usize) -> f64 {
        let seconds: f64 = self.0.iter().map(Duration::as_secs_f64).sum();
        (bytes * self.0.len()) as f64 / seconds.max(1e-9) / 1e6
    }
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    pub flushed_4k: Times,
    pub flushed_4k_allocated: Times,
    pub flushed_64k: Times,
    pub flushed_1m: Times,
    pub read_128k: Times,
    pub round_trip: Times,
    /// How late a thread comes out of a sleep of 1 ms.
    pub late: Times,
    pub system_call_ns: f64,
    pub crc_gb_per_s: f64,
    /// Share of the processors' time that the host gave to others meanwhile; none where the kernel does not count it.
    pub stolen: Option<f64>,
}

/// A line of the report. Times are in microseconds.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Figure {
    pub what: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50_us: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99_us: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_us: Option<f64>,
    pub meaning: String,
}

impl Measured {
    pub fn figures(&self) -> Vec<Figure> {
        let of = |what, times: &Times, meaning: String| Figure {
            what,
            p50_us: Some(times.us(0.5)),
            p99_us: Some(times.us(0.99)),
            max_us: Some(times.us(1.0)),
            meaning,
        };
        let one = |what, meaning: String| Figure {
            what,
            p50_us: None,
            p99_us: None,
            max_us: None,
            meaning,
        };
        let ratio = self.flushed_4k_allocated.us(0.5) / self.flushed_4k.us(0.5).max(1e-3);
        let floor = self.flushed_4k.us(0.5) + self.round_trip.us(0.5);
        let mut figures = vec![
            of(
                "flushed write of 4 KiB",
                &self.flushed_4k,
                format!(
                    "a durable send cannot be faster than this and a round trip: {floor:.0} us"
                ),
            ),
            of(
                "the same, space only allocated",
                &self.flushed_4k_allocated,
                format!("{ratio:.1} x: why segments are written in advance"),
            ),
            of(
                "flushed write of 64 KiB",
                &self.flushed_64k,
                "a commit of 60 messages of 1 KiB".into(),
            ),
            of(
                "flushed write of 1 MiB",
                &self.flushed_1m,
                format!("{:.0} MB/s into one log", self.flushed_1m.mb_per_s(MIB)),
            ),
            of(
                "read of 128 KiB",
                &self.read_128k,
                format!(
                    "{:.0} MB/s of a backlog, one read in flight",
                    self.read_128k.mb_per_s(READ_BYTES)
                ),
            ),
            of(
                "loopback round trip of 1 KiB",
                &self.round_trip,
                "two threads, blocking sockets".into(),
            ),
            of(
                "late after a sleep of 1 ms",
                &self.late,
                "how long a core takes to wake up".into(),
            ),
            one(
                "system call",
                format!(
                    "{:.0} ns each; a single send takes about five",
                    self.system_call_ns
                ),
            ),
            one(
                "CRC-32C",
                format!("{:.1} GB/s on one core", self.crc_gb_per_s),
            ),
        ];
        if let Some(stolen) = self.stolen {
            figures.push(one(
                "stolen time",
                format!(
                    "{:.1} % of the processors' time went to other guests of the host",
                    stolen * 100.0
                ),
            ));
        }
        figures
    }
}

/// Measures in `directory`. The error says what could not be done.
pub fn all(directory: &Path) -> Result<Measured, String> {
    let stat = || fs::read_to_string("/proc/stat").unwrap_or_default();
    let before = stat();
    let scratch = Scratch(directory.join(format!(".ringmq-doctor-{}", std::process::id())));
    let path = scratch.0.clone();
    let mut measured = run_once(move |env| async move { disk(&env, &path).await })?
        .map_err(|error| format!("{}: {error}", scratch.0.display()))?;
    drop(scratch);
    measured.round_trip = round_trips().map_err(|error| format!("loopback: {error}"))?;
    measured.late = late();
    measured.system_call_ns = system_call_ns();
    measured.crc_gb_per_s = crc_gb_per_s();
    measured.stolen = stolen(&before, &stat());
    Ok(measured)
}

/// Removes the file, however the measurement ends.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The figures of the disk in a new file at `path`.
async fn disk<E: Env>(env: &E, path: &Path) -> io::Result<Measured> {
    let mode = OpenMode {
        create: true,
        flush_each_write: true,
    };
    let file = env.open(path, mode).await?;
    file.allocate(0, (PREWRITTEN_BYTES + ALLOCATED_BYTES) as u64)
        .await?;
    for at in (0..PREWRITTEN_BYTES).step_by(MIB) {
        file.write_at(filled(env, MIB), at as u64).await?;
    }
    let writes = async |bytes: usize, count: usize, from: usize| {
        let mut times = Vec::with_capacity(count);
        for number in 0..count {
            let buffer = filled(env, bytes);
            let begun = env.now_ns();
            file.write_at(buffer, (from + number * bytes) as u64)
                .await?;
            times.push(Duration::from_nanos(env.now_ns() - begun));
        }
        io::Result::Ok(Times::new(times))
    };
    let mut measured = Measured {
        flushed_4k: writes(4 << 10, WRITES_4K, 0).await?,
        flushed_4k_allocated: writes(4 << 10, WRITES_4K, PREWRITTEN_BYTES).await?,
        flushed_64k: writes(64 << 10, WRITES_64K, 0).await?,
        flushed_1m: writes(MIB, WRITES_1M, 0).await?,
        ..Measured::default()
    };
    let mut times = Vec::new();
    for at in (0..PREWRITTEN_BYTES).step_by(READ_BYTES) {
        let begun = env.now_ns();
        file.read_at(at as u64, READ_BYTES).await?;
        times.push(Duration::from_nanos(env.now_ns() - begun));
    }
    measured.read_128k = Times::new(times);
    Ok(measured)
}

fn filled<E: Env>(env: &E, bytes: usize) -> Rc<crate::io::aligned_buf::PageBuf> {
    let mut buffer = env.alloc(bytes);
    // Not zeros: some devices store those without writing.
    for (at, byte) in buffer.as_mut().iter_mut().enumerate() {
        *byte = ((at * 31) >> 3) as u8;
    }
    Rc::new(buffer)
}

fn round_trips() -> io::Result<Times> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut near = TcpStream::connect(listener.local_addr()?)?;
    let (mut far, _) = listener.accept()?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let echo = thread::spawn(move || {
        let mut message = [0; MESSAGE_BYTES];
        while far.read_exact(&mut message).is_ok() {
            if far.write_all(&message).is_err() {
                break;
            }
        }
    });
    let mut message = [7; MESSAGE_BYTES];
    let mut times = Vec::with_capacity(ROUND_TRIPS);
    for _ in 0..ROUND_TRIPS {
        let begun = Instant::now();
        near.write_all(&message)?;
        near.read_exact(&mut message)?;
        times.push(begun.elapsed());
    }
    drop(near);
    let _ = echo.join();
    Ok(Times::new(times))
}

fn late() -> Times {
    const SLEEP: Duration = Duration::from_millis(1);
    let sleep = |_| {
        let begun = Instant::now();
        thread::sleep(SLEEP);
        begun.elapsed().saturating_sub(SLEEP)
    };
    Times::new((0..SLEEPS).map(sleep).collect())
}

fn system_call_ns() -> f64 {
    let begun = Instant::now();
    for _ in 0..SYSTEM_CALLS {
        std::hint::black_box(std::process::id());
    }
    begun.elapsed().as_nanos() as f64 / f64::from(SYSTEM_CALLS)
}

fn crc_gb_per_s() -> f64 {
    let bytes = vec![7u8; MIB];
    let begun = Instant::now();
    for _ in 0..64 {
        std::hint::black_box(crc32c::crc32c(&bytes));
    }
    (64 * MIB) as f64 / begun.elapsed().as_secs_f64() / 1e9
}

/// From two readings of /proc/stat: the share of stolen time (the eighth number of the line `cpu`).
fn stolen(before: &str, after: &str) -> Option<f64> {
    let ticks = |text: &str| -> Option<(u64, u64)> {
        let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let numbers: Vec<u64> = line
            .split_whitespace()
            .map_while(|number| number.parse().ok())
            .take(8)
            .collect();
        Some((*numbers.get(7)?, numbers.iter().sum()))
    };
    let (stolen_before, all_before) = ticks(before)?;
    let (stolen_after, all_after) = ticks(after)?;
    let all = all_after.saturating_sub(all_before);
    (all > 0).then(|| stolen_after.saturating_sub(stolen_before) as f64 / all as f64)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::io::sim::{SimOptions, SimWorld};

    #[test]
    fn shares_of_ascending_times() {
        let times = Times::new((1..=101).rev().map(Duration::from_micros).collect());
        assert_eq!(times.us(0.5), 51.0);
        assert_eq!(times.us(0.99), 100.0);
        assert_eq!(times.us(1.0), 101.0);
        assert_eq!(Times::default().us(0.5), 0.0);
    }

    #[test]
    fn stolen_time_is_a_share_of_all() {
        let before = "cpu  10 0 10 80 0 0 0 0 0 0\ncpu0 1 2\n";
        let after = "cpu  20 0 20 150 0 0 0 10 5 5\n";
        assert_eq!(stolen(before, after), Some(0.1));
        assert_eq!(stolen(before, before), None);
        assert_eq!(stolen("", after), None);
    }

    #[test]
    fn the_disk_is_measured_through_the_seam() {
        let world = SimWorld::new(3, SimOptions::default());
        let env = world.env();
        let measured = world.block_on(async move {
            env.create_dir(Path::new("/data")).await.unwrap();
            disk(&env, Path::new("/data/scratch")).await
        });
        let measured = measured.unwrap();
        assert_eq!(measured.flushed_4k.0.len(), WRITES_4K);
        assert_eq!(measured.read_128k.0.len(), PREWRITTEN_BYTES / READ_BYTES);
    }
}
