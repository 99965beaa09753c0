//! The seam: disk, clock, tasks and randomness as the store and the shards see them.
//!
//! Two backends implement it: `io/ring` (production) and `io/sim` (one thread, one seed, faults at will).
//! All futures are local to their core (`!Send`). No lock, no thread and no real time is visible above this line.

use std::future::Future;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use crate::io::aligned_buf::PageBuf;

/// How a file is opened; always for reading and writing, O_DIRECT where the file system has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenMode {
    /// Create it if it is not there.
    pub create: bool,
    /// A write completes only when its bytes are flushed to the device (O_DSYNC).
    pub flush_each_write: bool,
}

/// Space of a file system in bytes, for unprivileged users.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskSpace {
    pub total_bytes: u64,
    pub available_bytes: u64,
}

/// One entry of a directory: file name and length in bytes.
pub type DirEntry = (String, u64);

/// What a core may do to the world. Cloning gives another handle to the same world.
pub trait Env: Clone + 'static {
    type File: DiskFile;

    /// Wall clock, milliseconds since 1970. May jump.
    fn now_ms(&self) -> u64;
    /// Monotonic clock, nanoseconds since an arbitrary start.
    fn now_ns(&self) -> u64;
    /// How long this core has slept since its start because nothing was to do, in nanoseconds; 0 where that is not known.
    fn idle_ns(&self) -> u64 {
        0
    }
    /// Completes after `duration`.
    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static;
    /// A commit is about to go to the device, or has come back: meanwhile what comes in by the network need not end a
    /// sleep of this core, since it could only wait for the next commit.
    fn commit_under_way(&self, _under_way: bool) {}
    /// Runs a task on this core until it ends.
    fn spawn(&self, task: impl Future<Output = ()> + 'static);
    /// The same for a task that commits a log. It takes its turn like others, unless [`Env::hurry_commits`].
    fn spawn_commit(&self, task: impl Future<Output = ()> + 'static) {
        self.spawn(task);
    }

    /// The tasks of [`Env::spawn_commit`] that can go on do so next.
    fn hurry_commits(&self) {}
    /// Whether tasks of this core wait for their turn.
    fn is_busy(&self) -> bool {
        false
    }

    /// The same with a small share of the core: catch-up reads, pre-writing of segments, snapshots.
    fn spawn_background(&self, task: impl Future<Output = ()> + 'static);
    /// A random number; in the simulator it comes from the seed.
    fn random_u64(&self) -> u64;
    /// A buffer for disk writes: `bytes` (a multiple of [`crate::base::limits::SECTOR_BYTES`]) of undefined content.
    fn alloc(&self, bytes: usize) -> PageBuf;
    /// The same for a batch of a log, which stays in memory until the tail cache drops it: the newest one can grow in place.
    fn alloc_batch(&self, bytes: usize) -> PageBuf {
        self.alloc(bytes)
    }

    /// Whether a read of [`crate::base::limits::READ_BYTES`] finds memory that is there already. If not, some is prepared, and whoever
    /// can give up an older buffer instead should do so: new memory costs the executor its first touch.
    fn read_memory_is_ready(&self) -> bool {
        true
    }

    /// Opens a file. Errors as `open(2)`.
    fn open(
        &self,
        path: &Path,
        mode: OpenMode,
    ) -> impl Future<Output = io::Result<Self::File>> + 'static;
    /// Files (not directories) of a directory, in no order.
    fn list(&self, directory: &Path) -> impl Future<Output = io::Result<Vec<DirEntry>>> + 'static;
    /// Makes a directory and its parents; no error if it is there.
    fn create_dir(&self, directory: &Path) -> impl Future<Output = io::Result<()>> + 'static;
    /// Renames a file over whatever has the new name. Durable only after [`Env::sync_dir`].
    fn rename(&self, from: &Path, to: &Path) -> impl Future<Output = io::Result<()>> + 'static;
    /// Removes a file. Durable only after [`Env::sync_dir`].
    fn remove(&self, path: &Path) -> impl Future<Output = io::Result<()>> + 'static;
    /// Makes creations, renames and removals in a directory durable.
    fn sync_dir(&self, directory: &Path) -> impl Future<Output = io::Result<()>> + 'static;
    /// Space of the file system that holds `directory`.
    fn disk_space(&self, directory: &Path) -> io::Result<DiskSpace>;
}

/// An open file. Positions, lengths and buffers are multiples of a sector (4 KiB) unless said otherwise.
/// Cloning gives another handle; the file is closed with the last one.
#[allow(clippy::len_without_is_empty)] // The length is asked of the disk; nobody asks whether a file is empty.
pub trait DiskFile: Clone + 'static {
    /// Writes the whole of `buf` at `position`. All or an error. Trim the buffer first ([`PageBuf::trim_to`]).
    /// Without `flush_each_write` the bytes survive the process, not a loss of power, until [`DiskFile::sync`].
    fn write_at(
        &self,
        buf: Rc<PageBuf>,
        position: u64,
    ) -> impl Future<Output = io::Result<()>> + 'static;
    /// The same for several buffers that follow each other, as one write with one flush.
    fn write_all_at(
        &self,
        bufs: Vec<Rc<PageBuf>>,
        position: u64,
    ) -> impl Future<Output = io::Result<()>> + 'static;
    /// Reads up to `bytes` at `position`; shorter only at the end of the file.
    fn read_at(
        &self,
        position: u64,
        bytes: usize,
    ) -> impl Future<Output = io::Result<PageBuf>> + 'static;
    /// Flushes written bytes and the file's length to the device (fdatasync).
    fn sync(&self) -> impl Future<Output = io::Result<()>> + 'static;
    /// Reserves space for a range, extending the file's length (fallocate). ENOSPC if there is none.
    fn allocate(&self, position: u64, bytes: u64)
    -> impl Future<Output = io::Result<()>> + 'static;
    /// Cuts or extends the file to `bytes` (any number).
    fn truncate(&self, bytes: u64) -> impl Future<Output = io::Result<()>> + 'static;
    /// Length in bytes (any number).
    fn len(&self) -> impl Future<Output = io::Result<u64>> + 'static;
}
