//! What can go wrong with a simulated disk, as data: options that a test sets and may change while the world runs.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::time::Duration;

/// Kinds of disk operations, for faults that aim at one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OpKind {
    Write,
    Read,
    Sync,
    Allocate,
    Truncate,
    Len,
    Open,
    List,
    CreateDir,
    Rename,
    Remove,
    SyncDir,
}

impl OpKind {
    /// As the trace shows it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::Read => "read",
            Self::Sync => "sync",
            Self::Allocate => "allocate",
            Self::Truncate => "truncate",
            Self::Len => "len",
            Self::Open => "open",
            Self::List => "list",
            Self::CreateDir => "create_dir",
            Self::Rename => "rename",
            Self::Remove => "remove",
            Self::SyncDir => "sync_dir",
        }
    }
}

/// An error of the operating system that a disk can give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errno {
    /// EIO: the device failed. What a write or a flush was to do may have happened or not.
    Io,
    /// ENOSPC: there is no space left. Nothing happened.
    NoSpace,
}

impl Errno {
    /// As the operating system reports it.
    pub fn to_error(self) -> io::Error {
        io::Error::from_raw_os_error(match self {
            Self::Io => libc::EIO,
            Self::NoSpace => libc::ENOSPC,
        })
    }
}

/// How long operations take, in virtual time.
#[derive(Clone, Debug)]
pub struct Latency {
    /// Writes and reads, in nanoseconds.
    pub data_ns: Range<u64>,
    /// Added to a flush and to a write that flushes, in nanoseconds.
    pub flush_ns: Range<u64>,
    /// Opening, renaming and the like, in nanoseconds.
    pub metadata_ns: Range<u64>,
    /// How many operations of a million take up to `spike_max` longer.
    pub spikes_per_million: u32,
    pub spike_max: Duration,
}

impl Default for Latency {
    fn default() -> Self {
        Self {
            data_ns: 10_000..100_000,
            flush_ns: 50_000..500_000,
            metadata_ns: 5_000..50_000,
            spikes_per_million: 0,
            spike_max: Duration::from_secs(3),
        }
    }
}

/// Faults of a disk. All rates are operations of a million.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    pub write_eio_per_million: u32,
    pub read_eio_per_million: u32,
    pub sync_eio_per_million: u32,
    /// Every other operation.
    pub metadata_eio_per_million: u32,
    /// The n-th operation of a kind, counted from 0 since the disk was made, fails.
    pub fail_nth_of: BTreeMap<(OpKind, u64), Errno>,
    /// The n-th operation of any kind, counted from 0 since the disk was made, fails.
    pub fail_nth: BTreeMap<u64, Errno>,
    /// Every write and every flush fails from now on: a device that is gone.
    pub writes_always_fail: bool,
}

impl Faults {
    /// The fault of an operation, if it has one. `nth_of_kind` and `nth` count from 0.
    pub(super) fn decide(
        &self,
        random: &mut fastrand::Rng,
        kind: OpKind,
        nth_of_kind: u64,
        nth: u64,
    ) -> Option<Errno> {
        if let Some(errno) = self.fail_nth_of.get(&(kind, nth_of_kind)) {
            return Some(*errno);
        }
        if let Some(errno) = self.fail_nth.get(&nth) {
            return Some(*errno);
        }
        let rate = match kind {
            OpKind::Write | OpKind::Sync | OpKind::SyncDir if self.writes_always_fail => {
                return Some(Errno::Io);
            }
            OpKind::Write => self.write_eio_per_million,
            OpKind::Read => self.read_eio_per_million,
            OpKind::Sync => self.sync_eio_per_million,
            _ => self.metadata_eio_per_million,
        };
        (rate > 0 && random.u32(..1_000_000) < rate).then_some(Errno::Io)
    }
}

/// A simulated disk.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// Space of the file system in bytes.
    pub capacity_bytes: u64,
    pub latency: Latency,
    pub faults: Faults,
    /// What the device writes as a whole: a torn write is cut at multiples of this. 512 or 4096.
    pub atomic_bytes: usize,
    /// False for a device that says that it flushed and did not. A test of the promise must turn red with it.
    pub honest_flush: bool,
}

impl Default for DiskOptions {
    fn default() -> Self {
        Self {
            capacity_bytes: 1 << 40,
            latency: Latency::default(),
            faults: Faults::default(),
            atomic_bytes: 512,
            honest_flush: true,
        }
    }
}
