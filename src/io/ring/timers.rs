//! Timers of an executor: a sorted map from due time to waker.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::io::ring::core::Core;

/// Due time, and a number that makes it unique.
type Key = (Instant, u64);

#[derive(Default)]
pub(super) struct Timers {
    due: RefCell<BTreeMap<Key, Waker>>,
    next: Cell<u64>,
}

impl Timers {
    /// Time until the first one is due; zero if it is already.
    pub fn next_in(&self) -> Option<Duration> {
        let due = self.due.borrow();
        let ((at, _), _) = due.first_key_value()?;
        Some(at.saturating_duration_since(Instant::now()))
    }

    pub fn is_empty(&self) -> bool {
        self.due.borrow().is_empty()
    }

    /// Wakes what is due.
    pub fn fire(&self, now: Instant) {
        loop {
            // The borrow ends before the waker runs.
            let waker = {
                let mut due = self.due.borrow_mut();
                match due.first_entry() {
                    Some(entry) if entry.key().0 <= now => entry.remove(),
                    _ => return,
                }
            };
            waker.wake();
        }
    }
}

/// Completes when its time has come.
pub(super) struct Sleep {
    core: Rc<Core>,
    at: Instant,
    key: Option<Key>,
}

impl Sleep {
    pub fn new(core: Rc<Core>, duration: Duration) -> Self {
        // A time beyond the clock's range is as good as a hundred years.
        let at = Instant::now()
            .checked_add(duration)
            .unwrap_or_else(|| Instant::now() + Duration::from_secs(100 * 365 * 86_400));
        Self {
            core,
            at,
            key: None,
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if Instant::now() >= self.at {
            return Poll::Ready(());
        }
        let timers = &self.core.timers;
        let key = self.key.unwrap_or_else(|| {
            let number = timers.next.get();
            timers.next.set(number + 1);
            (self.at, number)
        });
        timers.due.borrow_mut().insert(key, cx.waker().clone());
        self.key = Some(key);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            // The waker is dropped after the borrow.
            let waker = self.core.timers.due.borrow_mut().remove(&key);
            drop(waker);
        }
    }
}
