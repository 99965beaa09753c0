//! [`Env`] on a glommio executor. Every method must be called on the executor that made the handle.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use glommio::io::{DmaFile, OpenOptions};
use glommio::{Latency, Shares, TaskQueueHandle};

use crate::base::limits::SECTOR_BYTES;
use crate::io::aligned_buf::PageBuf;
use crate::io::env::{DirEntry, DiskFile, DiskSpace, Env, OpenMode};
use crate::io::glommio::pages::DmaPages;

/// Shares of the queue that commits and connections run in; background work has [`BACKGROUND_SHARES`].
const FOREGROUND_SHARES: usize = 1000;
const BACKGROUND_SHARES: usize = 50;

struct Inner {
    started: Instant,
    background: TaskQueueHandle,
    random: RefCell<fastrand::Rng>,
}

/// Handle of one core to the real world.
#[derive(Clone)]
pub struct GlommioEnv(Rc<Inner>);

impl GlommioEnv {
    /// For the executor that this is called on.
    pub fn new() -> Self {
        // Dropping priority is by shares; the default queue of the executor has 1000 of them.
        const { assert!(BACKGROUND_SHARES < FOREGROUND_SHARES) };
        let background = glommio::executor().create_task_queue(
            Shares::Static(BACKGROUND_SHARES),
            Latency::NotImportant,
            "background",
        );
        Self(Rc::new(Inner {
            started: Instant::now(),
            background,
            random: RefCell::new(fastrand::Rng::new()),
        }))
    }
}

impl Default for GlommioEnv {
    fn default() -> Self {
        Self::new()
    }
}

pub(super) fn io_error<T>(error: glommio::GlommioError<T>) -> io::Error {
    match error {
        glommio::GlommioError::IoError(error) => error,
        glommio::GlommioError::EnhancedIoError { source, .. } => source,
        other => io::Error::other(other.to_string()),
    }
}

impl Env for GlommioEnv {
    type File = GlommioFile;

    fn now_ms(&self) -> u64 {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_millis() as u64)
    }

    fn now_ns(&self) -> u64 {
        self.0.started.elapsed().as_nanos() as u64
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static {
        glommio::timer::sleep(duration)
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        glommio::spawn_local(task).detach();
    }

    fn spawn_background(&self, task: impl Future<Output = ()> + 'static) {
        glommio::spawn_local_into(task, self.0.background)
            .expect("the background queue was made by this executor and is never removed")
            .detach();
    }

    fn random_u64(&self) -> u64 {
        self.0.random.borrow_mut().u64(..)
    }

    fn alloc(&self, bytes: usize) -> PageBuf {
        assert!(
            bytes > 0 && bytes.is_multiple_of(SECTOR_BYTES),
            "whole sectors"
        );
        PageBuf::from_dma(DmaPages(Rc::new(glommio::allocate_dma_buffer(bytes))))
    }

    fn open(
        &self,
        path: &Path,
        mode: OpenMode,
    ) -> impl Future<Output = io::Result<GlommioFile>> + 'static {
        let path = path.to_owned();
        async move {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(mode.create);
            if mode.flush_each_write {
                options.custom_flags(libc::O_DSYNC);
            }
            let file = options.dma_open(&path).await.map_err(io_error)?;
            Ok(GlommioFile(Rc::new(file)))
        }
    }

    fn list(&self, directory: &Path) -> impl Future<Output = io::Result<Vec<DirEntry>>> + 'static {
        let directory = directory.to_owned();
        blocking(move || {
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
        blocking(move || std::fs::create_dir_all(&directory))
    }

    fn rename(&self, from: &Path, to: &Path) -> impl Future<Output = io::Result<()>> + 'static {
        let (from, to) = (from.to_owned(), to.to_owned());
        blocking(move || std::fs::rename(&from, &to))
    }

    fn remove(&self, path: &Path) -> impl Future<Output = io::Result<()>> + 'static {
        let path = path.to_owned();
        blocking(move || std::fs::remove_file(&path))
    }

    fn sync_dir(&self, directory: &Path) -> impl Future<Output = io::Result<()>> + 'static {
        let directory = directory.to_owned();
        blocking(move || std::fs::File::open(&directory)?.sync_all())
    }

    fn disk_space(&self, directory: &Path) -> io::Result<DiskSpace> {
        disk_space(directory)
    }
}

/// Metadata calls have no place on the reactor: they run on the executor's helper thread.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    glommio::executor().spawn_blocking(work).await
}

/// Space of the file system that holds `directory`, as an unprivileged user sees it.
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
        total_bytes: stat.f_blocks * stat.f_frsize,
        available_bytes: stat.f_bavail * stat.f_frsize,
    })
}

/// An open O_DIRECT file.
#[derive(Clone)]
pub struct GlommioFile(Rc<DmaFile>);

impl DiskFile for GlommioFile {
    fn write_at(
        &self,
        buf: Rc<PageBuf>,
        position: u64,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        assert!(buf.len().is_multiple_of(SECTOR_BYTES), "whole sectors");
        let file = self.0.clone();
        async move {
            let bytes = buf.len();
            let Some(pages) = buf.as_dma() else {
                return Err(io::Error::other(
                    "only buffers of this backend can be written",
                ));
            };
            let written = file
                .write_rc_at(pages.0.clone(), position)
                .await
                .map_err(io_error)?;
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
        let file = self.0.clone();
        async move {
            let pages = file
                .read_at_aligned(position, bytes)
                .await
                .map_err(io_error)?;
            Ok(PageBuf::from_read(pages))
        }
    }

    fn sync(&self) -> impl Future<Output = io::Result<()>> + 'static {
        let file = self.0.clone();
        async move { file.fdatasync().await.map_err(io_error) }
    }

    fn allocate(
        &self,
        position: u64,
        bytes: u64,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        use std::os::fd::AsRawFd;
        let file = self.0.clone();
        async move {
            let fd = file.as_raw_fd();
            let result = blocking(move || {
                // SAFETY: plain system call; `file` outlives it because it is held across the await below.
                match unsafe { libc::fallocate(fd, 0, position as i64, bytes as i64) } {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                }
            })
            .await;
            drop(file);
            result
        }
    }

    fn truncate(&self, bytes: u64) -> impl Future<Output = io::Result<()>> + 'static {
        let file = self.0.clone();
        async move { file.truncate(bytes).await.map_err(io_error) }
    }

    fn len(&self) -> impl Future<Output = io::Result<u64>> + 'static {
        let file = self.0.clone();
        async move { file.file_size().await.map_err(io_error) }
    }
}
