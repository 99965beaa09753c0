//! What [`crate::controller::node::Node`] stands on: a clock, and nodes that agree on changes.
//!
//! In production that is Raft (`consensus.rs`). The simulation has one of its own, in which agreement takes time, fails, or has
//! an outcome that nobody hears of, and in which another node leads at any moment; the decisions above are the real ones.

use std::future::Future;
use std::time::Duration;

use crate::controller::state::{Change, Groups, Outcome};

/// Not agreed, or nobody knows: perhaps this node leads no more, and perhaps the one with this number does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotLeader(pub Option<u64>);

/// See the module's page.
pub trait Agreement: 'static {
    /// Milliseconds of a clock that never goes back.
    fn now_ms(&self) -> u64;

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()>;

    /// The term in which this node leads, as far as it knows. No two nodes lead in the same one.
    fn term(&self) -> Option<u64>;

    /// Makes sure that this node leads, which a majority confirms from now on, and that it has applied everything.
    fn lead(&self) -> impl Future<Output = Result<(), NotLeader>>;

    /// Lets all agree on a change and applies it ([`Groups::apply_in`]). After an error it may still be agreed on.
    fn change(&self, change: Change) -> impl Future<Output = Result<Outcome, NotLeader>>;

    /// Looks at what has been agreed on, as far as this node has heard.
    fn groups<T>(&self, look: impl FnOnce(&Groups) -> T) -> T;

    /// Number of the node that leads, if this one knows.
    fn leader(&self) -> impl Future<Output = Option<u64>>;

    /// Waits until another node may lead, at most so long. False: this node has ended.
    fn news(&self, limit: Duration) -> impl Future<Output = bool>;

    /// The answer to a request of another node, if `code` is one of theirs.
    fn answer(
        &self,
        code: i32,
        body: &[u8],
    ) -> impl Future<Output = Option<Result<Vec<u8>, String>>>;
}
