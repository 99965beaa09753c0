//! The clock of a run: nanoseconds since it began, and what they are since 1970.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// When a run began, on both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    instant: Instant,
    epoch_ns: i64,
}

impl Origin {
    /// The run begins now.
    pub fn now() -> Self {
        let epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            instant: Instant::now(),
            epoch_ns: epoch.as_nanos() as i64,
        }
    }

    /// Nanoseconds since the run began.
    pub fn elapsed_ns(&self) -> u64 {
        self.instant.elapsed().as_nanos() as u64
    }

    /// A moment of the run in nanoseconds since 1970.
    pub fn epoch_ns(&self, at_ns: u64) -> i64 {
        self.epoch_ns + at_ns as i64
    }

    /// The other way round; a moment before the run is its begin.
    pub fn run_ns(&self, epoch_ns: i64) -> u64 {
        u64::try_from(epoch_ns - self.epoch_ns).unwrap_or(0)
    }
}
