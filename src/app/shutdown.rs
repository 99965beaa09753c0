//! The wish to stop, from a signal to every executor.
//!
//! One [`Shutdown`] is shared by the thread that takes signals and all executors. It goes through its phases once and in one
//! direction. A task waits with [`Shutdown::reached`], on any runtime: wakers may be woken from any thread.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use slab::Slab;

/// How far a stop has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    #[default]
    Running,
    /// No new work; what is under way is ended.
    Draining,
    /// Stop at once. What was acknowledged is safe all the same.
    Now,
}

#[derive(Default)]
struct State {
    phase: Phase,
    wakers: Slab<Waker>,
}

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    changed: Condvar,
}

/// See the module's page. Cloning gives another handle to the same wish.
#[derive(Clone, Default)]
pub struct Shutdown(Arc<Inner>);

impl Shutdown {
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is whole between any two statements, so a panic of another holder has broken nothing.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn phase(&self) -> Phase {
        self.state().phase
    }

    /// Goes to a later phase and wakes all that wait; to an earlier one it does nothing.
    pub fn request(&self, phase: Phase) {
        let wakers: Vec<Waker> = {
            let mut state = self.state();
            if phase <= state.phase {
                return;
            }
            state.phase = phase;
            state.wakers.drain().collect()
        };
        self.0.changed.notify_all();
        for waker in wakers {
            waker.wake();
        }
    }

    /// Completes when this phase or a later one is reached.
    pub fn reached(&self, phase: Phase) -> Reached {
        Reached {
            shutdown: self.clone(),
            phase,
            waits_at: None,
        }
    }

    /// The same for a thread without a runtime.
    pub fn wait(&self, phase: Phase) {
        let mut state = self.state();
        while state.phase < phase {
            state = self
                .0
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// See [`Shutdown::reached`].
pub struct Reached {
    shutdown: Shutdown,
    phase: Phase,
    /// Where the waker is, as long as the phase is earlier: reaching any phase takes all wakers out.
    waits_at: Option<(usize, Phase)>,
}

impl Future for Reached {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let shutdown = self.shutdown.clone();
        let mut state = shutdown.state();
        if state.phase >= self.phase {
            return Poll::Ready(());
        }
        match self.waits_at {
            Some((key, phase)) if phase == state.phase => {
                state.wakers[key].clone_from(context.waker());
            }
            _ => {
                let key = state.wakers.insert(context.waker().clone());
                self.waits_at = Some((key, state.phase));
            }
        }
        Poll::Pending
    }
}

impl Drop for Reached {
    fn drop(&mut self) {
        let mut state = self.shutdown.state();
        if let Some((key, phase)) = self.waits_at
            && phase == state.phase
        {
            state.wakers.remove(key);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test may panic.
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn poll(future: &mut Reached, count: &Arc<Count>) -> Poll<()> {
        let waker = count.clone().into();
        Pin::new(future).poll(&mut Context::from_waker(&waker))
    }

    #[test]
    fn phases_go_one_way() {
        let shutdown = Shutdown::new();
        shutdown.request(Phase::Now);
        shutdown.request(Phase::Draining);
        assert_eq!(shutdown.phase(), Phase::Now);
        shutdown.wait(Phase::Draining);
    }

    #[test]
    fn who_waits_is_woken_once_and_who_left_is_forgotten() {
        let shutdown = Shutdown::new();
        let (drain_count, now_count) = (Arc::new(Count::default()), Arc::new(Count::default()));
        let mut drain = shutdown.reached(Phase::Draining);
        let mut now = shutdown.reached(Phase::Now);
        for _ in 0..3 {
            assert!(poll(&mut drain, &drain_count).is_pending());
            assert!(poll(&mut now, &now_count).is_pending());
        }
        let mut left = shutdown.reached(Phase::Now);
        assert!(poll(&mut left, &drain_count).is_pending());
        drop(left);
        assert_eq!(shutdown.state().wakers.len(), 2);

        shutdown.request(Phase::Draining);
        assert!(poll(&mut drain, &drain_count).is_ready());
        assert_eq!(drain_count.0.load(Ordering::SeqCst), 1);
        assert!(poll(&mut now, &now_count).is_pending());
        let mut late = shutdown.reached(Phase::Now);
        assert!(poll(&mut late, &drain_count).is_pending());
        drop(drain);
        assert_eq!(
            shutdown.state().wakers.len(),
            2,
            "a drop takes only its own waker"
        );

        shutdown.request(Phase::Now);
        assert!(poll(&mut now, &now_count).is_ready());
        assert!(shutdown.state().wakers.is_empty());
    }

    #[test]
    fn a_thread_waits_without_a_runtime() {
        let shutdown = Shutdown::new();
        let waiting = {
            let shutdown = shutdown.clone();
            std::thread::spawn(move || shutdown.wait(Phase::Draining))
        };
        shutdown.request(Phase::Draining);
        waiting.join().unwrap();
    }

    #[test]
    fn an_executor_that_sleeps_is_woken_from_another_thread() {
        let shutdown = Shutdown::new();
        let handle = shutdown.clone();
        std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(50));
            handle.request(Phase::Draining);
        });
        // The plainest runtime there is: it sleeps in `park` and is woken by `unpark`.
        struct Unpark(std::thread::Thread);
        impl Wake for Unpark {
            fn wake(self: Arc<Self>) {
                self.0.unpark();
            }
        }
        let waker = Arc::new(Unpark(std::thread::current())).into();
        let mut future = shutdown.reached(Phase::Draining);
        while Pin::new(&mut future)
            .poll(&mut Context::from_waker(&waker))
            .is_pending()
        {
            std::thread::park();
        }
    }
}
