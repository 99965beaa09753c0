//! Waking tasks of one core: no lock, no thread.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// An edge that tasks of one core wait for. A notification without a waiter is remembered once.
#[derive(Debug, Default)]
pub struct Notify {
    ready: Cell<bool>,
    waiters: RefCell<Vec<Waker>>,
}

impl Notify {
    /// Wakes all waiters, or the next one that comes.
    pub fn notify(&self) {
        self.ready.set(true);
        let waiters = std::mem::take(&mut *self.waiters.borrow_mut());
        for waiter in waiters {
            waiter.wake();
        }
    }

    /// Completes at the next notification, or at once if there was one since the last wait. For one waiter.
    pub async fn notified(&self) {
        poll_fn(|context| {
            if self.ready.replace(false) {
                return Poll::Ready(());
            }
            let mut waiters = self.waiters.borrow_mut();
            // Whoever waits with a time limit comes again without ever having been woken.
            if !waiters.iter().any(|w| w.will_wake(context.waker())) {
                waiters.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }

    /// Completes when `done` says so; asked again at each notification. For any number of waiters.
    pub async fn until(&self, mut done: impl FnMut() -> bool) {
        poll_fn(|context| {
            if done() {
                return Poll::Ready(());
            }
            self.waiters.borrow_mut().push(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}
