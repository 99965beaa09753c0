//! Waking tasks and threads of any core when something has changed, so that nobody has to look again and again.
//!
//! Whoever waits says how many rings it has seen: one that came between its look and its wait is not lost.

use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

#[derive(Debug, Default)]
struct State {
    rings: u64,
    waiters: Vec<Waker>,
}

/// See the module's page.
#[derive(Debug, Default)]
pub struct Bell(Mutex<State>);

impl Bell {
    fn state(&self) -> MutexGuard<'_, State> {
        // It is whole between any two statements.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often it has rung.
    pub fn rings(&self) -> u64 {
        self.state().rings
    }

    /// Wakes all that wait.
    pub fn ring(&self) {
        let waiters = {
            let mut state = self.state();
            state.rings += 1;
            std::mem::take(&mut state.waiters)
        };
        waiters.into_iter().for_each(Waker::wake);
    }

    /// Completes when it has rung more often than `seen`.
    pub async fn rung(&self, seen: u64) {
        poll_fn(|context| {
            let mut state = self.state();
            if state.rings > seen {
                return Poll::Ready(());
            }
            // Whoever waits with a time limit comes again without ever having been woken.
            if !state.waiters.iter().any(|w| w.will_wake(context.waker())) {
                state.waiters.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;

    #[test]
    fn a_ring_of_another_thread_ends_the_wait_and_one_before_it_is_not_lost() {
        let bell = Arc::new(Bell::default());
        let seen = bell.rings();
        bell.ring();
        futures_lite::future::block_on(bell.rung(seen));
        let seen = bell.rings();
        let other = bell.clone();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            other.ring();
        });
        futures_lite::future::block_on(bell.rung(seen));
        assert_eq!(bell.rings(), seen + 1);
        thread.join().expect("it only rings");
    }
}
