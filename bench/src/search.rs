//! The highest rate that holds a latency bound. Pure: says which rate to try, is told whether it held.
//!
//! The rate doubles until it does not hold; then the gap between the highest that held and the lowest that did not is
//! halved (by ratio) until it is narrow. A rate that failed once is tried a second time before it counts, because one pause of
//! the machine says nothing about the broker.

/// Where a search is.
#[derive(Clone, Debug)]
pub struct Search {
    held: Option<f64>,
    failed: Option<f64>,
    next: f64,
    strikes: u32,
    /// Where to stop: lowest failed over highest held.
    precision: f64,
    lowest: f64,
}

/// How often a rate has to fail.
const STRIKES: u32 = 2;

impl Search {
    /// Begins at `first` messages/s; ends when the answer is known within `precision`, such as 1.05.
    pub fn new(first: f64, precision: f64) -> Self {
        Self {
            held: None,
            failed: None,
            next: first,
            strikes: 0,
            precision: precision.max(1.001),
            lowest: first / 1024.0,
        }
    }

    /// The rate to try now; none if the search is over.
    pub fn next(&self) -> Option<f64> {
        match (self.held, self.failed) {
            (Some(held), Some(failed)) if failed / held <= self.precision => None,
            (None, Some(failed)) if failed <= self.lowest => None,
            _ => Some(self.next),
        }
    }

    /// Whether the rate that was tried held.
    pub fn tried(&mut self, held: bool) {
        if !held {
            self.strikes += 1;
            if self.strikes < STRIKES {
                return;
            }
        }
        self.strikes = 0;
        if held {
            self.held = Some(self.next);
        } else {
            self.failed = Some(self.next);
        }
        self.next = match (self.held, self.failed) {
            (Some(held), Some(failed)) => (held * failed).sqrt(),
            (Some(held), None) => held * 2.0,
            (None, Some(failed)) => failed / 2.0,
            (None, None) => self.next,
        };
    }

    /// The highest rate that held.
    pub fn best(&self) -> Option<f64> {
        self.held
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Runs a search against a broker that holds up to `limit`; returns what it found and how many tries it took.
    fn found(limit: f64, first: f64) -> (Option<f64>, u32) {
        let mut search = Search::new(first, 1.05);
        let mut tries = 0;
        while let Some(rate) = search.next() {
            search.tried(rate <= limit);
            tries += 1;
            assert!(tries < 100, "a search ends");
        }
        (search.best(), tries)
    }

    proptest! {
        #[test]
        fn the_limit_is_found_from_below_and_from_above(limit in 100.0f64..1e7, first in 1000.0f64..1e5) {
            prop_assume!(limit > first / 512.0);
            let (best, tries) = found(limit, first);
            let best = best.unwrap();
            prop_assert!(best <= limit && best * 1.051 >= limit, "{best} of {limit}");
            prop_assert!(tries < 50, "{tries}");
        }
    }

    #[test]
    fn nothing_holds_on_a_dead_broker() {
        assert_eq!(found(0.0, 1000.0).0, None);
    }

    #[test]
    fn one_failure_alone_does_not_count() {
        let mut search = Search::new(1000.0, 1.05);
        search.tried(false);
        assert_eq!(search.next(), Some(1000.0));
        search.tried(true);
        assert_eq!(search.best(), Some(1000.0));
        assert_eq!(search.next(), Some(2000.0));
    }
}
