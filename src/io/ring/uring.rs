//! The io_uring of one thread: its set-up, one entry in, one turn of the kernel, all completions out.

use std::io;
use std::time::Duration;

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, squeue};

/// Entries that can be given to the kernel at once; more make one call more.
const SUBMISSIONS: u32 = 256;
/// Completions that wait without the kernel's overflow list.
const COMPLETIONS: u32 = 4096;
/// `IORING_ENTER_GETEVENTS`: run the work that completions need, and wait for as many as asked.
const ENTER_GETEVENTS: u32 = 1;

pub(super) struct Ring {
    ring: IoUring,
}

impl Ring {
    /// On the thread that will use it. Errors as `io_uring_setup(2)`.
    pub fn new() -> io::Result<Self> {
        // Completions are worked off when this thread enters the kernel, and at no other time; nobody else submits.
        let quiet = IoUring::builder()
            .setup_cqsize(COMPLETIONS)
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .build(SUBMISSIONS);
        let ring = match quiet {
            Ok(ring) => ring,
            // Before Linux 6.1.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => IoUring::builder()
                .setup_cqsize(COMPLETIONS)
                .build(SUBMISSIONS)?,
            Err(error) => return Err(error),
        };
        if !ring.params().is_feature_ext_arg() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "this kernel's io_uring has no timed waits: Linux 5.11 or newer is needed",
            ));
        }
        Ok(Self { ring })
    }

    /// Adds an entry, which the kernel sees with the next [`Ring::enter`].
    ///
    /// # Safety
    /// The memory and descriptors that it names live until its completion.
    pub unsafe fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: that is what this function asks of its caller.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            self.ring.submit()?;
        }
        Ok(())
    }

    /// Something has completed that the next [`Ring::enter`] will tell of. No system call; false before Linux 6.1.
    pub fn has_completed(&mut self) -> bool {
        self.ring.submission().taskrun()
    }

    /// Gives the kernel what was pushed. An error shows again in the next [`Ring::enter`].
    pub fn submit(&mut self) {
        let _ = self.ring.submit();
    }

    /// Submits, and waits up to `wait` for a completion (`None`: without end; zero: not at all).
    pub fn enter(&mut self, wait: Option<Duration>) -> io::Result<()> {
        let result = match wait {
            Some(Duration::ZERO) => {
                let submitted = self.ring.submission().len() as u32;
                // SAFETY: no argument is passed along; the flag makes the kernel work off what is deferred.
                unsafe {
                    self.ring.submitter().enter::<libc::sigset_t>(
                        submitted,
                        0,
                        ENTER_GETEVENTS,
                        None,
                    )
                }
            }
            Some(wait) => {
                let wait = Timespec::from(wait);
                self.ring
                    .submitter()
                    .submit_with_args(1, &SubmitArgs::new().timespec(&wait))
            }
            None => self.ring.submit_and_wait(1),
        };
        match result {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // The time is over; a signal; the kernel wants its completions taken first.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Moves what has completed into `completions`.
    pub fn take(&mut self, completions: &mut Vec<cqueue::Entry>) {
        completions.extend(self.ring.completion());
    }
}
