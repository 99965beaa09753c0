//! The executors of a process: one per core, pinned where that is possible.

use std::future::Future;
use std::sync::Arc;

use crate::io::nudge::Nudger;
use crate::io::ring::{Executor, Placement, RingEnv};
use crate::shard::mesh::{MeshEnds, mesh};

/// How the executors are started.
#[derive(Clone, Debug)]
pub struct ExecutorOptions {
    pub count: usize,
    /// Processors that this process may use, in order. Executor *i* is pinned to the *i*-th if there are enough.
    pub processors: Vec<usize>,
    pub pin: bool,
}

/// What runs on one core.
pub struct CoreStart {
    pub index: usize,
    pub env: RingEnv,
    pub mesh: MeshEnds,
}

/// Starts an executor per core and waits until all have ended. `run` is called on each of them.
/// The error is that of the first core that failed.
pub fn run_on_cores<F, R>(options: &ExecutorOptions, run: F) -> Result<(), String>
where
    F: Fn(CoreStart) -> R + Send + Sync + 'static,
    R: Future<Output = Result<(), String>> + 'static,
{
    let run = Arc::new(run);
    let mut handles = Vec::new();
    let nudger = Nudger::default();
    let _nudging = nudger
        .start()
        .map_err(|error| format!("the thread that wakes the executors: {error}"))?;
    let pinned = options.pin && options.processors.len() >= options.count;
    for (index, ends) in mesh(options.count).into_iter().enumerate() {
        let placement = if pinned {
            Placement::Fixed(options.processors[index])
        } else {
            Placement::Unbound
        };
        let run = run.clone();
        let nudger = nudger.clone();
        let handle = Executor::spawn(&format!("shard-{index}"), placement, move || async move {
            nudger.register();
            run(CoreStart {
                index,
                env: RingEnv::new(),
                mesh: ends,
            })
            .await
        })
        .map_err(|error| format!("shard {index}: {error}"))?;
        handles.push(handle);
    }
    let mut result = Ok(());
    for (index, handle) in handles.into_iter().enumerate() {
        let ended = match handle.join() {
            Ok(Ok(ended)) => ended,
            Ok(Err(error)) => Err(format!("shard {index} has no executor: {error}")),
            Err(_) => Err(format!("shard {index} ended by a panic")),
        };
        if result.is_ok() {
            result = ended;
        }
    }
    result
}

/// Runs one future on an executor of its own and waits for it: what has to be done before the cores start.
pub fn run_once<T: Send + 'static, R>(
    run: impl FnOnce(RingEnv) -> R + Send + 'static,
) -> Result<T, String>
where
    R: Future<Output = T> + 'static,
{
    let handle = Executor::spawn("start", Placement::Unbound, move || async move {
        run(RingEnv::new()).await
    })
    .map_err(|error| error.to_string())?;
    match handle.join() {
        Ok(ran) => ran.map_err(|error| error.to_string()),
        Err(_) => Err("a panic at the start".into()),
    }
}
