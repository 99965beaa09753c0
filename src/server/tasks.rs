//! What a connection needs of its core, without the type parameter of [`Env`]: to start a task and to wait.
//!
//! Both are called per connection or per request of ours to a client, never per request that we serve, so that the box
//! does not matter.

use std::pin::Pin;
use std::time::Duration;

use crate::io::env::Env;

/// A future of this core.
pub type LocalFuture<T> = Pin<Box<dyn Future<Output = T>>>;

/// See the module's page. Every [`Env`] is one.
pub trait Tasks: 'static {
    /// Runs a task on this core until it ends.
    fn start(&self, task: LocalFuture<()>);
    /// Completes after `duration`.
    fn wait(&self, duration: Duration) -> LocalFuture<()>;
}

impl<E: Env> Tasks for E {
    fn start(&self, task: LocalFuture<()>) {
        self.spawn(task);
    }

    fn wait(&self, duration: Duration) -> LocalFuture<()> {
        Box::pin(self.sleep(duration))
    }
}
