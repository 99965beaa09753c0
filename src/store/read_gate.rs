//! When a large read may go to the device: a commit goes first.
//!
//! A device serves what it was given in the order in which it came. Eight reads of 128 KiB that lie in front of a flushed
//! write of one sector make it take 2.3 ms instead of 0.15; one read makes it take 0.25. So a log that has no commit
//! reads with many reads in flight, and one that commits with one at a time, which begins when a commit has ended.

use std::cell::Cell;
use std::time::Duration;

use crate::base::notify::Notify;
use crate::io::env::Env;

/// Reads in flight while nothing is committed.
const READS_MAX: u32 = 8;
/// A log commits when its last commit ended this short a time ago.
const RECENT_NS: u64 = 5_000_000;
/// A read waits for a commit that is under way, but not longer than this, about the time of a small one: a device or a core
/// that is slow with a write must not stop all reading. One read that is there at the same time costs a commit 0.1 ms.
const WAIT_MAX: Duration = Duration::from_micros(200);

/// See the module's page.
#[derive(Default)]
pub struct ReadGate {
    reads: Cell<u32>,
    commit_under_way: Cell<bool>,
    /// When the last commit ended, by the clock of [`Env::now_ns`].
    commit_ended_ns: Cell<Option<u64>>,
    changed: Notify,
}

/// The right to read; it ends with its holder.
pub struct Turn<'a>(&'a ReadGate);

impl ReadGate {
    /// A commit is given to the device.
    pub fn commit_begins(&self) {
        self.commit_under_way.set(true);
    }

    /// It has come back, for good or not.
    pub fn commit_ended(&self, now_ns: u64) {
        self.commit_under_way.set(false);
        self.commit_ended_ns.set(Some(now_ns));
        self.changed.notify();
    }

    fn reads_max(&self, now_ns: u64) -> u32 {
        let ended_ns = self.commit_ended_ns.get();
        let is_recent = ended_ns.is_some_and(|ended_ns| now_ns < ended_ns + RECENT_NS);
        match is_recent || self.commit_under_way.get() {
            true => 1,
            false => READS_MAX,
        }
    }

    /// Waits until a read may begin. Those who wait are served in the order in which they came.
    pub async fn turn<E: Env>(&self, env: &E) -> Turn<'_> {
        if self.commit_under_way.get() {
            let ended = self.changed.until(|| !self.commit_under_way.get());
            futures_lite::future::or(ended, env.sleep(WAIT_MAX)).await;
        }
        let is_free = || self.reads.get() < self.reads_max(env.now_ns());
        self.changed.until(is_free).await;
        self.reads.set(self.reads.get() + 1);
        Turn(self)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.reads.set(self.0.reads.get() - 1);
        self.0.changed.notify();
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::io::sim::{SimOptions, SimWorld};

    /// Reads that have begun, of `count` that want to and keep their turn.
    fn begin(world: &SimWorld, gate: &Rc<ReadGate>, count: u32) -> Rc<Cell<u32>> {
        let begun = Rc::new(Cell::new(0));
        for _ in 0..count {
            let (env, gate, begun) = (world.env(), gate.clone(), begun.clone());
            world.spawn(async move {
                let _turn = gate.turn(&env).await;
                begun.set(begun.get() + 1);
                env.sleep(Duration::from_millis(20)).await;
            });
        }
        begun
    }

    #[test]
    fn a_log_that_commits_reads_one_by_one_and_behind_its_commit() {
        let world = SimWorld::new(1, SimOptions::default());
        let gate = Rc::new(ReadGate::default());
        gate.commit_begins();
        let begun = begin(&world, &gate, 3);
        world.run_for(WAIT_MAX / 2);
        assert_eq!(begun.get(), 0);
        gate.commit_ended(world.env().now_ns());
        world.run_for(Duration::from_millis(4));
        assert_eq!(begun.get(), 1);
        // The first one ends after 20 ms; nothing has been committed for long then.
        world.run_for(Duration::from_millis(18));
        assert_eq!(begun.get(), 3);
    }

    #[test]
    fn a_log_that_commits_nothing_reads_at_once_and_a_commit_that_hangs_stops_no_read() {
        let world = SimWorld::new(1, SimOptions::default());
        let gate = Rc::new(ReadGate::default());
        let begun = begin(&world, &gate, READS_MAX + 1);
        world.run_for(Duration::from_millis(1));
        assert_eq!(begun.get(), READS_MAX);
        world.run_for(Duration::from_millis(100));
        assert_eq!(begun.get(), READS_MAX + 1);
        gate.commit_begins();
        let begun = begin(&world, &gate, 2);
        world.run_for(Duration::from_millis(3));
        assert_eq!(begun.get(), 1);
    }
}
