//! An executor for tests that need the real world.

use crate::io::glommio::GlommioEnv;
use crate::io::rlimit;

/// Runs a test on an executor of its own, after raising the limit on locked memory as far as allowed.
pub fn on_executor<T>(test: impl AsyncFnOnce(GlommioEnv) -> T) -> T {
    let _ = rlimit::raise_locked_memory();
    let executor = match glommio::LocalExecutorBuilder::default().make() {
        Ok(executor) => executor,
        Err(error) => panic!("no io_uring executor: {error}; raise the memlock limit (ulimit -l)"),
    };
    executor.run(async move { test(GlommioEnv::new()).await })
}
