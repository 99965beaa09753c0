//! [`Env`] on an executor of this backend. Every method must be called on the executor that made the handle.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use io_uring::{opcode, types};

use crate::base::limits::SECTOR_BYTES;
use crate::io::aligned_buf::PageBuf;
use crate::io::env::{DirEntry, DiskFile, DiskSpace, Env, OpenMode};
use crate::io::ring::core::{Core, Urgency};
use crate::io::ring::pages::Pages;
use crate::io::ring::timers::Sleep;

struct Inner {
    core: Rc<Core>,
    started: Instant,
    random: RefCell<fastrand::Rng>,
}

/// Handle of one core to the real world.
#[derive(Clone)]
pub struct RingEnv(Rc<Inner>);

impl RingEnv {
    /// For the executor that this is called on.
    pub fn new() -> Self {
        Self(Rc::new(Inner {
            core: Core::current(),
            started: Instant::now(),
            random: RefCell::new(fastrand::Rng::new()),
        }))
    }

    /// System calls that would stop the executor run on its helper thread.
    fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> impl Future<Output = io::Result<T>> + 'static {
        self.0.core.helper.run(work)
    }
}

impl Default for RingEnv {
    fn default() -> Self {
        Self::new()
    }
}

impl Env for RingEnv {
    type File = RingFile;

    fn now_ms(&self) -> u64 {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_millis() as u64)
    }

    fn now_ns(&self) -> u64 {
        self.0.started.elapsed().as_nanos() as u64
    }

    fn idle_ns(&self) -> u64 {
        self.0.core.idle_ns()
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static {
        Sleep::new(self.0.core.clone(), duration)
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.0.core.spawn(Urgency::Foreground, task);
    }

    fn spawn_commit(&self, task: impl Future<Output = ()> + 'static) {
        self.0.core.spawn(Urgency::Commit, task);
    }

    fn hurry_commits(&self) {
        self.0.core.hurry_commits();
    }

    fn is_busy(&self) -> bool {
        self.0.core.is_busy()
    }

    fn commit_under_way(&self, under_way: bool) {
        self.0.core.count_commit(under_way);
    }

    fn spawn_background(&self, task: impl Future<Output = ()> + 'static) {
        self.0.core.spawn(Urgency::Background, task);
    }

    fn random_u64(&self) -> u64 {
        self.0.random.borrow_mut().u64(..)
    }

    fn alloc(&self, bytes: usize) -> PageBuf {
        assert!(
            bytes > 0 && bytes.is_multiple_of(SECTOR_BYTES),
            "whole sectors"
        );
        PageBuf::from_pages(Pages::new(bytes))
    }

    fn alloc_batch(&self, bytes: usize) -> PageBuf {
        assert!(
            bytes > 0 && bytes.is_multiple_of(SECTOR_BYTES),
            "whole sectors"
        );
        PageBuf::from_pages(Pages::in_run(bytes))
    }

    fn read_memory_is_ready(&self) -> bool {
        Pages::piece_is_ready()
    }

    fn open(
        &self,
        path: &Path,
        mode: OpenMode,
    ) -> impl Future<Output = io::Result<RingFile>> + 'static {
        let path = path.to_owned();
        let core = self.0.core.clone();
        let opened = self.blocking(move || {
            let open = |direct: i32| {
                let dsync = if mode.flush_each_write {
                    libc::O_DSYNC
                } else {
                    0
                };
                std::fs::OpenOptions::new()
                    .read(true)
                    .write(true)
                    .create(mode.create)
                    .truncate(false)
                    .custom_flags(direct | dsync)
                    .open(&path)
            };
            match open(libc::O_DIRECT) {
                // A file system without O_DIRECT, such as tmpfs on older kernels.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => open(0),
                opened => opened,
            }
        });
        async move {
            Ok(RingFile {
                core,
                file: Arc::new(opened.await?),
            })
        }
    }

    fn list(&self, directory: &Path) -> impl Future<Output = io::Result<Vec<DirEntry>>> + 'static {
        let directory = directory.to_owned();
        self.blocking(move || {
            let mut entries = Vec::new();
            for entry in std::fs::read_dir(&directory)? {
                let entry = entry?;
                let metadata = entry.metadata()?;
                if metadata.is_file()
                    && let Ok(name) = entry.file_name().into_string()
                {
                    entries.push((name, metadata.len()));
                }
            }
            Ok(entries)
        })
    }

    fn create_dir(&self, directory: &Path) -> impl Future<Output = io::Result<()>> + 'static {
        let directory = directory.to_owned();
        self.blocking(move || std::fs::create_dir_all(&directory))
    }

    fn rename(&self, from: &Path, to: &Path) -> impl Future<Output = io::Result<()>> + 'static {
        let (from, to) = (from.to_owned(), to.to_owned());
        self.blocking(move || std::fs::rename(&from, &to))
    }

    fn remove(&self, path: &Path) -> impl Future<Output = io::Result<()>> + 'static {
        let path = path.to_owned();
        self.blocking(move || std::fs::remove_file(&path))
    }

    fn sync_dir(&self, directory: &Path) -> impl Future<Output = io::Result<()>> + 'static {
        let directory = directory.to_owned();
        self.blocking(move || std::fs::File::open(&directory)?.sync_all())
    }

    fn disk_space(&self, directory: &Path) -> io::Result<DiskSpace> {
        disk_space(directory)
    }
}

/// Space of the file system that holds `directory`, as an unprivileged user sees it: blocks that are kept for root count
/// neither as used nor as free, so that the share in use is the one of `df` and of RocketMQ.
pub fn disk_space(directory: &Path) -> io::Result<DiskSpace> {
    let path: PathBuf = directory.to_owned();
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path is NUL-terminated and outlives the call; `stat` has room for the answer.
    if unsafe { libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: statvfs returned 0, so it filled the whole struct.
    let stat = unsafe { stat.assume_init() };
    Ok(DiskSpace {
        total_bytes: (stat.f_blocks - stat.f_bfree + stat.f_bavail) * stat.f_frsize,
        available_bytes: stat.f_bavail * stat.f_frsize,
    })
}

/// An open O_DIRECT file.
#[derive(Clone)]
pub struct RingFile {
    core: Rc<Core>,
    file: Arc<std::fs::File>,
}

fn result(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}

impl DiskFile for RingFile {
    fn write_at(
        &self,
        buf: Rc<PageBuf>,
        position: u64,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        assert!(buf.len().is_multiple_of(SECTOR_BYTES), "whole sectors");
        let (core, file) = (self.core.clone(), self.file.clone());
        async move {
            if buf.as_pages().is_none() {
                return Err(io::Error::other(
                    "only buffers of this backend can be written",
                ));
            }
            let bytes = buf.len();
            let entry = opcode::Write::new(types::Fd(file.as_raw_fd()), buf.as_ptr(), bytes as u32)
                .offset(position)
                .build();
            // SAFETY: the pages do not move and nobody writes to them: both handles go along until the completion.
            let done = unsafe { core.submit(entry, Box::new((buf, file))) };
            let written = result(done.await)?;
            if written == bytes {
                Ok(())
            } else {
                Err(io::Error::new(
                    io::ErrorKind::WriteZero,
                    format!("{written} of {bytes} bytes written at {position}"),
                ))
            }
        }
    }

    fn write_all_at(
        &self,
        bufs: Vec<Rc<PageBuf>>,
        position: u64,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        let (core, file) = (self.core.clone(), self.file.clone());
        async move {
            let is_ours = |buf: &Rc<PageBuf>| {
                buf.as_pages().is_some() && buf.len().is_multiple_of(SECTOR_BYTES)
            };
            if !bufs.iter().all(is_ours) {
                return Err(io::Error::other(
                    "only whole sectors of buffers of this backend can be written",
                ));
            }
            let parts: Vec<libc::iovec> = bufs
                .iter()
                .map(|buf| libc::iovec {
                    iov_base: buf.as_ptr().cast_mut().cast(),
                    iov_len: buf.len(),
                })
                .collect();
            let bytes: usize = bufs.iter().map(|buf| buf.len()).sum();
            let count = parts.len() as u32;
            let entry =
                opcode::Writev::new(types::Fd(file.as_raw_fd()), parts.as_ptr().cast(), count)
                    .offset(position)
                    .build();
            // SAFETY: the pages do not move and nobody writes to them, nor does the list of them, whose elements are on the
            // heap: all handles go along until the completion.
            let done = unsafe { core.submit(entry, Box::new((parts, bufs, file))) };
            let written = result(done.await)?;
            if written == bytes {
                Ok(())
            } else {
                Err(io::Error::new(
                    io::ErrorKind::WriteZero,
                    format!("{written} of {bytes} bytes written at {position}"),
                ))
            }
        }
    }

    fn read_at(
        &self,
        position: u64,
        bytes: usize,
    ) -> impl Future<Output = io::Result<PageBuf>> + 'static {
        let (core, file) = (self.core.clone(), self.file.clone());
        async move {
            let pages = Rc::new(RefCell::new(Pages::for_read(bytes)));
            let address = pages.borrow().address();
            let entry = opcode::Read::new(types::Fd(file.as_raw_fd()), address, bytes as u32)
                .offset(position)
                .build();
            // SAFETY: memory of `bytes` bytes that does not move and that nobody looks at before the completion, until
            // which it goes along with the descriptor.
            let done = unsafe { core.submit(entry, Box::new((pages.clone(), file))) };
            let read = result(done.await)?;
            let Some(pages) = Rc::into_inner(pages) else {
                return Err(io::Error::other("the pages of a read have two owners"));
            };
            let mut pages = pages.into_inner();
            pages.trim_to(read);
            Ok(PageBuf::from_pages(pages))
        }
    }

    fn sync(&self) -> impl Future<Output = io::Result<()>> + 'static {
        let (core, file) = (self.core.clone(), self.file.clone());
        async move {
            let entry = opcode::Fsync::new(types::Fd(file.as_raw_fd()))
                .flags(types::FsyncFlags::DATASYNC)
                .build();
            // SAFETY: it names no memory; the descriptor goes along.
            let done = unsafe { core.submit(entry, Box::new(file)) };
            result(done.await).map(|_| ())
        }
    }

    fn allocate(
        &self,
        position: u64,
        bytes: u64,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        let file = self.file.clone();
        self.core.helper.run(move || {
            // SAFETY: plain system call; `file` keeps the descriptor open until it returns.
            match unsafe { libc::fallocate(file.as_raw_fd(), 0, position as i64, bytes as i64) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        })
    }

    fn truncate(&self, bytes: u64) -> impl Future<Output = io::Result<()>> + 'static {
        let file = self.file.clone();
        self.core.helper.run(move || file.set_len(bytes))
    }

    fn len(&self) -> impl Future<Output = io::Result<u64>> + 'static {
        let file = self.file.clone();
        async move { Ok(file.metadata()?.len()) }
    }
}
