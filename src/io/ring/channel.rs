//! A bounded channel from one executor to another. What arrives is handed to a function, in order, between two turns.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use crossbeam_queue::ArrayQueue;

use crate::io::ring::core::{Core, Inbox, Remote};

/// Messages that are handed over in one turn, so that a busy sender does not keep the receiver from its sockets.
const TURN_MESSAGES_MAX: usize = 256;

struct Shared<T> {
    messages: ArrayQueue<T>,
    receiver: OnceLock<Arc<Remote>>,
    closed: AtomicBool,
}

/// The end that puts messages in.
pub struct Sender<T>(Arc<Shared<T>>);

/// The end that gets them, before it is connected.
pub struct Receiver<T>(Arc<Shared<T>>);

/// Why a message was not taken; it comes back.
pub enum TrySendError<T> {
    Full(T),
    Closed(T),
}

/// A channel with `slots` places.
pub fn channel<T: Send + 'static>(slots: usize) -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared {
        messages: ArrayQueue::new(slots),
        receiver: OnceLock::new(),
        closed: AtomicBool::new(false),
    });
    (Sender(shared.clone()), Receiver(shared))
}

impl<T: Send + 'static> Sender<T> {
    /// Puts a message in and wakes the receiver if it sleeps.
    pub fn try_send(&self, message: T) -> Result<(), TrySendError<T>> {
        if self.0.closed.load(Ordering::Acquire) {
            return Err(TrySendError::Closed(message));
        }
        self.0.messages.push(message).map_err(TrySendError::Full)?;
        if let Some(receiver) = self.0.receiver.get() {
            Remote::wake(receiver);
        }
        Ok(())
    }
}

impl<T: Send + 'static> Receiver<T> {
    /// Hands everything that arrives to `take`, on the executor that this is called on, until that ends.
    pub fn connect(self, take: impl Fn(T) + 'static) {
        let core = Core::current();
        // The only receiver sets it once.
        let _ = self.0.receiver.set(core.remote());
        core.add_inbox(Rc::new(Connected {
            shared: self.0,
            take,
            taking: Cell::new(false),
        }));
    }
}

struct Connected<T, F> {
    shared: Arc<Shared<T>>,
    take: F,
    taking: Cell<bool>,
}

impl<T: Send + 'static, F: Fn(T)> Inbox for Connected<T, F> {
    fn is_waiting(&self) -> bool {
        !self.shared.messages.is_empty()
    }

    fn take(&self) {
        if self.taking.replace(true) {
            return;
        }
        for _ in 0..TURN_MESSAGES_MAX {
            let Some(message) = self.shared.messages.pop() else {
                break;
            };
            (self.take)(message);
        }
        self.taking.set(false);
    }
}

impl<T, F> Drop for Connected<T, F> {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
        while self.shared.messages.pop().is_some() {}
    }
}
