//! A heartbeat from outside: it takes every registered thread out of a wait in the kernel, a few times a second.
//!
//! An executor sleeps in `io_uring_enter` until something completes. About one start in 1,500 on a busy machine (Linux
//! 6.18, with an earlier executor) showed one that slept although its timer was due; nothing ends such a sleep but another
//! completion. A signal ends every wait with EINTR, wherever the wakeup was lost, and the executor's loop then looks at all
//! its timers, rings and queues again. So a lost wakeup costs at most one [`INTERVAL`] and never a node. The handler does
//! nothing; the wake costs an idle core about 20 microseconds a second (see the README's idle figures).

use std::io;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Time between two nudges of one thread.
pub const INTERVAL: Duration = Duration::from_millis(250);

/// Ignored by default and used by nobody else in this process.
const SIGNAL: libc::c_int = libc::SIGURG;

extern "C" fn nothing(_: libc::c_int) {}

/// The threads that are nudged.
#[derive(Clone, Default)]
pub struct Nudger {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Kernel thread ids.
    threads: Mutex<Vec<libc::pid_t>>,
    stopped: AtomicBool,
}

/// Ends the nudging when it is dropped; the thread itself ends within one [`INTERVAL`].
pub struct Nudging {
    inner: Arc<Inner>,
}

impl Nudger {
    /// Starts the thread that nudges. Errors: the handler cannot be installed, or no thread can be started.
    pub fn start(&self) -> io::Result<Nudging> {
        install()?;
        let inner = self.inner.clone();
        thread::Builder::new().name("nudge".into()).spawn(move || {
            while !inner.stopped.load(Ordering::Acquire) {
                thread::sleep(INTERVAL);
                inner.nudge();
            }
        })?;
        Ok(Nudging {
            inner: self.inner.clone(),
        })
    }

    /// From now on the calling thread is nudged.
    pub fn register(&self) {
        // SAFETY: gettid has no arguments and cannot fail.
        let thread = unsafe { libc::gettid() };
        self.inner.threads().push(thread);
    }
}

impl Inner {
    fn threads(&self) -> std::sync::MutexGuard<'_, Vec<libc::pid_t>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn nudge(&self) {
        for &thread in self.threads().iter() {
            // SAFETY: plain numbers. A thread that has ended gives ESRCH; if its number went to another thread of this
            // process, that one runs an empty handler.
            unsafe {
                libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, SIGNAL);
            }
        }
    }
}

impl Drop for Nudging {
    fn drop(&mut self) {
        self.inner.stopped.store(true, Ordering::Release);
    }
}

/// Without SA_RESTART, so that a wait ends.
fn install() -> io::Result<()> {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: an all-zero sigaction is valid (no flags, empty mask); the handler does nothing, so it is safe in any context.
    let result = unsafe {
        (*action.as_mut_ptr()).sa_sigaction =
            nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
        libc::sigemptyset(&raw mut (*action.as_mut_ptr()).sa_mask);
        libc::sigaction(SIGNAL, action.as_ptr(), std::ptr::null_mut())
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_waits_in_the_kernel_for_ever_is_taken_out() {
        let nudger = Nudger::default();
        let _nudging = nudger.start().unwrap();
        let waiter = thread::spawn(move || {
            nudger.register();
            // SAFETY: no descriptors are passed, the timeout is endless.
            let result = unsafe { libc::poll(std::ptr::null_mut(), 0, -1) };
            (result, io::Error::last_os_error().kind())
        });
        assert_eq!(waiter.join().unwrap(), (-1, io::ErrorKind::Interrupted));
    }
}
