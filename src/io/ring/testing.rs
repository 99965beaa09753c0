//! An executor for tests that need the real world.

use crate::io::ring::{Executor, RingEnv};
use crate::io::rlimit;

/// Runs a test on an executor of its own, after raising the limit on locked memory as far as allowed.
pub fn on_executor<T>(test: impl AsyncFnOnce(RingEnv) -> T) -> T {
    let _ = rlimit::raise_locked_memory();
    let run = Executor::run("test", move || async move { test(RingEnv::new()).await });
    match run {
        Ok(value) => value,
        Err(error) => panic!("no io_uring: {error}; raise the memlock limit (ulimit -l)"),
    }
}
