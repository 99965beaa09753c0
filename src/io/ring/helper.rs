//! The thread beside an executor for system calls that would stop it: directories, names, reservations of space,
//! the first touch of new memory.

use std::io;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};
use std::{future::poll_fn, thread};

type Work = Box<dyn FnOnce() + Send>;

/// Where work goes. The thread ends when this is dropped and all work is done.
pub(super) struct Helper {
    work: mpsc::Sender<Work>,
}

struct Slot<T> {
    result: Option<T>,
    waker: Option<Waker>,
}

impl Helper {
    pub fn start(name: &str) -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel::<Work>();
        thread::Builder::new()
            .name(format!("{name}-io"))
            .spawn(move || {
                while let Ok(work) = receiver.recv() {
                    work();
                }
            })?;
        Ok(Self { work: sender })
    }

    /// Has `work` done on the thread; nobody hears of its end. False: the thread has ended.
    pub fn post(&self, work: impl FnOnce() + Send + 'static) -> bool {
        self.work.send(Box::new(work)).is_ok()
    }

    /// Runs `work` on the thread, one after the other, and completes with what it returns.
    pub fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> impl Future<Output = io::Result<T>> + 'static {
        let slot = Arc::new(Mutex::new(Slot {
            result: None,
            waker: None::<Waker>,
        }));
        let theirs = slot.clone();
        let sent = self.work.send(Box::new(move || {
            let result = work();
            let mut slot = theirs.lock().unwrap_or_else(PoisonError::into_inner);
            slot.result = Some(result);
            let waker = slot.waker.take();
            drop(slot);
            if let Some(waker) = waker {
                waker.wake();
            }
        }));
        poll_fn(move |cx| {
            if sent.is_err() {
                return Poll::Ready(Err(io::Error::other("the helper thread has ended")));
            }
            let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
            match slot.result.take() {
                Some(result) => Poll::Ready(result),
                None => {
                    slot.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
    }
}
