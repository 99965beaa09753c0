//! What is measured: latencies by histogram, messages and errors, one piece per second.
//!
//! Each worker has a [`Recorder`] and sends one [`Interval`] per second over a channel; the collector merges them. A
//! latency counts if its request was due within the window, however late the answer comes; a message counts for the
//! throughput if its answer came within the window. Histograms hold nanoseconds with three significant digits.

use std::collections::BTreeMap;
use std::sync::mpsc::Sender;

use hdrhistogram::Histogram;

/// Length of an interval.
pub const INTERVAL_NS: u64 = 1_000_000_000;
/// The longest latency that is told apart from longer ones: an hour.
const LATENCY_NS_MAX: u64 = 3_600_000_000_000;

/// A histogram for latencies in nanoseconds.
pub fn histogram() -> Histogram<u64> {
    let histogram = Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3);
    histogram.unwrap_or_else(|_| unreachable!("the bounds are constants that fit each other"))
}

/// What a latency is the latency of.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A send, from its due time to its acknowledgement.
    Publish,
    /// A pull that brought messages, from its request to its answer.
    Pull,
    /// A message, from its due time to its delivery.
    EndToEnd,
}

/// Errors of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Failure {
    pub count: u64,
    /// What the first one said.
    pub remark: String,
}

/// Errors by kind.
pub type Failures = BTreeMap<String, Failure>;

/// How many errors there were, of all kinds.
pub fn failure_count(failures: &Failures) -> u64 {
    failures.values().map(|failure| failure.count).sum()
}

/// Adds errors of one kind; the first remark stays.
pub fn add_failure(failures: &mut Failures, kind: &str, count: u64, remark: &str) {
    let entry = failures.entry(kind.to_owned()).or_insert_with(|| Failure {
        count: 0,
        remark: remark.to_owned(),
    });
    entry.count += count;
}

/// One second of one worker.
pub struct Interval {
    pub kind: Kind,
    /// Seconds since the window began.
    pub index: u64,
    pub latencies: Histogram<u64>,
    pub messages: u64,
    pub bytes: u64,
    pub failures: Failures,
}

impl Interval {
    /// An empty one.
    pub fn new(kind: Kind, index: u64) -> Self {
        Self {
            kind,
            index,
            latencies: histogram(),
            messages: 0,
            bytes: 0,
            failures: Failures::new(),
        }
    }

    fn is_empty(&self) -> bool {
        self.messages == 0 && self.latencies.is_empty() && self.failures.is_empty()
    }

    /// Adds another worker's.
    pub fn merge(&mut self, other: Interval) {
        // Both have the same bounds, so all of its values fit.
        let _ = self.latencies.add(&other.latencies);
        self.messages += other.messages;
        self.bytes += other.bytes;
        for (kind, failure) in other.failures {
            add_failure(&mut self.failures, &kind, failure.count, &failure.remark);
        }
    }
}

/// When the measured part of a run begins and ends, nanoseconds since the run began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub from_ns: u64,
    pub until_ns: u64,
}

impl Window {
    /// Whether a moment is measured.
    pub fn contains(&self, at_ns: u64) -> bool {
        (self.from_ns..self.until_ns).contains(&at_ns)
    }
}

/// A worker's own measurements.
pub struct Recorder {
    window: Window,
    current: Interval,
    ends_ns: u64,
    sink: Sender<Interval>,
}

impl Recorder {
    /// A recorder that tells its intervals to `sink`.
    pub fn new(kind: Kind, window: Window, sink: Sender<Interval>) -> Self {
        Self {
            window,
            current: Interval::new(kind, 0),
            ends_ns: window.from_ns + INTERVAL_NS,
            sink,
        }
    }

    /// An answer to a request that was due at `due_ns` and stood for so many messages and bytes.
    pub fn answered(&mut self, due_ns: u64, now_ns: u64, messages: u64, bytes: u64) {
        self.advance(now_ns);
        if self.window.contains(now_ns) {
            self.current.messages += messages;
            self.current.bytes += bytes;
        }
        if self.window.contains(due_ns) {
            self.current
                .latencies
                .saturating_record(now_ns.saturating_sub(due_ns).max(1));
        }
    }

    /// Messages or requests that went wrong, due at `due_ns`.
    pub fn failed(&mut self, due_ns: u64, now_ns: u64, count: u64, kind: &str, remark: &str) {
        self.advance(now_ns);
        if self.window.contains(due_ns) {
            add_failure(&mut self.current.failures, kind, count, remark);
        }
    }

    /// Passes on what is complete. What comes behind the window belongs to its last second.
    pub fn advance(&mut self, now_ns: u64) {
        if now_ns < self.ends_ns || self.ends_ns >= self.window.until_ns {
            return;
        }
        let now_ns = now_ns.min(self.window.until_ns - 1);
        let index = (now_ns - self.window.from_ns) / INTERVAL_NS;
        let next = Interval::new(self.current.kind, index);
        let done = std::mem::replace(&mut self.current, next);
        self.ends_ns = self.window.from_ns + (index + 1) * INTERVAL_NS;
        self.send(done);
    }

    /// Passes on the rest.
    pub fn finish(mut self) {
        let kind = self.current.kind;
        let rest = std::mem::replace(&mut self.current, Interval::new(kind, 0));
        self.send(rest);
    }

    fn send(&self, interval: Interval) {
        if !interval.is_empty() {
            // The collector ends only after all workers, or because the run was given up.
            let _ = self.sink.send(interval);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    const S: u64 = INTERVAL_NS;

    #[test]
    fn a_latency_counts_by_its_due_time_and_a_message_by_its_answer() {
        let (sender, receiver) = channel();
        let window = Window {
            from_ns: S,
            until_ns: 3 * S,
        };
        let mut recorder = Recorder::new(Kind::Publish, window, sender);
        recorder.answered(S / 2, S - 1, 1, 10); // all of it before the window
        recorder.answered(S / 2, S + 1, 1, 10); // due before, answered within
        recorder.answered(S + 5, S + 9, 1, 10);
        recorder.answered(3 * S - 7, 3 * S + 5 * S, 1, 10); // due within, answered behind
        recorder.answered(3 * S + 1, 3 * S + 5 * S, 1, 10); // all of it behind
        recorder.finish();
        let all: Vec<_> = receiver.iter().collect();
        assert_eq!(all.iter().map(|one| one.messages).sum::<u64>(), 2);
        assert_eq!(all.iter().map(|one| one.latencies.len()).sum::<u64>(), 2);
        let last = all.last().unwrap();
        assert_eq!(last.index, 1);
        assert!(
            last.latencies.max() > 5 * S,
            "the late answer shows in the last second"
        );
    }

    #[test]
    fn intervals_come_by_the_second_and_empty_ones_not_at_all() {
        let (sender, receiver) = channel();
        let window = Window {
            from_ns: 0,
            until_ns: 10 * S,
        };
        let mut recorder = Recorder::new(Kind::Publish, window, sender);
        recorder.answered(0, 5, 1, 1);
        recorder.answered(4 * S, 4 * S + 5, 2, 1);
        recorder.failed(4 * S, 4 * S + 6, 3, "busy", "first");
        recorder.failed(4 * S, 4 * S + 7, 1, "busy", "second");
        recorder.finish();
        let all: Vec<_> = receiver.iter().collect();
        assert_eq!(
            all.iter()
                .map(|one| (one.index, one.messages))
                .collect::<Vec<_>>(),
            [(0, 1), (4, 2)]
        );
        assert_eq!(all[1].failures["busy"].count, 4);
        assert_eq!(all[1].failures["busy"].remark, "first");
    }
}
