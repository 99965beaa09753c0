//! A histogram with few fixed bounds: counted in the hot path without an allocation, summed and shown by whoever asks.
//!
//! Each core has its own, so that counting is an increment of a plain number; [`Histogram::add`] joins those of all cores.
//! Invariant: the counts are per bucket, not cumulative; the last bucket has no bound.

/// Bounds of one histogram at most.
const BOUNDS_MAX: usize = 15;

/// See the module's page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Histogram {
    bounds: &'static [u64],
    counts: [u64; BOUNDS_MAX + 1],
    sum: u64,
}

impl Histogram {
    /// An empty one. The bounds ascend; a value that equals a bound counts below it.
    pub const fn new(bounds: &'static [u64]) -> Self {
        assert!(bounds.len() <= BOUNDS_MAX);
        Self {
            bounds,
            counts: [0; BOUNDS_MAX + 1],
            sum: 0,
        }
    }

    /// Counts one value.
    pub fn record(&mut self, value: u64) {
        self.record_many(value, 1);
    }

    /// Counts the same value several times.
    pub fn record_many(&mut self, value: u64, times: u64) {
        let bucket = self
            .bounds
            .iter()
            .position(|&bound| value <= bound)
            .unwrap_or(self.bounds.len());
        self.counts[bucket] += times;
        self.sum = self.sum.saturating_add(value.saturating_mul(times));
    }

    /// Adds what another one of the same bounds has counted.
    pub fn add(&mut self, other: &Self) {
        assert_eq!(self.bounds, other.bounds, "histograms of one kind");
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
        self.sum = self.sum.saturating_add(other.sum);
    }

    /// How many values were counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The sum of the values.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// Each bound with how many values are not above it; the values above the last bound are in [`Histogram::count`] only.
    pub fn cumulative(&self) -> impl Iterator<Item = (u64, u64)> {
        let mut below = 0;
        self.bounds
            .iter()
            .zip(self.counts)
            .map(move |(&bound, count)| {
                below += count;
                (bound, below)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_counts_in_every_bucket_that_it_is_not_above() {
        let mut histogram = Histogram::new(&[10, 20]);
        for value in [3, 10, 11, 21] {
            histogram.record(value);
        }
        let shown: Vec<_> = histogram.cumulative().collect();
        assert_eq!(shown, [(10, 2), (20, 3)]);
        assert_eq!((histogram.count(), histogram.sum()), (4, 45));
    }

    #[test]
    fn cores_are_summed() {
        let mut one = Histogram::new(&[10]);
        let mut other = Histogram::new(&[10]);
        one.record_many(5, 2);
        other.record(50);
        one.add(&other);
        assert_eq!((one.count(), one.sum()), (3, 60));
        assert_eq!(one.cumulative().collect::<Vec<_>>(), [(10, 2)]);
    }
}
