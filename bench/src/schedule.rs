//! When the next request is due, and to which queue it goes. Pure: time is an argument.
//!
//! In an open loop a request has its due time whether or not the broker keeps up; latency counts from there, so a broker
//! that pauses for a second shows that second to every request that was due in it (no coordinated omission).

use crate::plan::Burst;

/// How requests come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arrivals {
    /// A fixed number is in flight; an answer makes room for the next request.
    Closed,
    /// A rate that does not care about answers.
    Open {
        /// Requests per second.
        rate: f64,
        poisson: bool,
        /// Its rate is in requests too.
        burst: Option<Burst>,
    },
}

/// The due times of one worker's requests.
pub struct Schedule {
    arrivals: Arrivals,
    first_ns: f64,
    next_ns: f64,
    random: fastrand::Rng,
}

impl Schedule {
    /// The first request of an open loop is due at `first_ns`.
    pub fn new(arrivals: Arrivals, first_ns: u64, seed: u64) -> Self {
        Self {
            arrivals,
            first_ns: first_ns as f64,
            next_ns: first_ns as f64,
            random: fastrand::Rng::with_seed(seed),
        }
    }

    /// The due time of the next request, if it is due by now. In a closed loop that is always now.
    pub fn take(&mut self, now_ns: u64) -> Option<u64> {
        let Arrivals::Open { poisson, .. } = self.arrivals else {
            return Some(now_ns);
        };
        let due_ns = self.next_ns as u64;
        if due_ns > now_ns {
            return None;
        }
        let gap_ns = 1e9 / self.rate_at(self.next_ns);
        self.next_ns += if poisson {
            // 1 - f64() is in (0, 1], so the logarithm is finite.
            -gap_ns * (1.0 - self.random.f64()).ln()
        } else {
            gap_ns
        };
        Some(due_ns)
    }

    /// When to look again; none in a closed loop, which waits for answers.
    pub fn next_ns(&self) -> Option<u64> {
        (self.arrivals != Arrivals::Closed).then_some(self.next_ns as u64)
    }

    fn rate_at(&self, at_ns: f64) -> f64 {
        match self.arrivals {
            Arrivals::Closed => f64::INFINITY,
            Arrivals::Open { rate, burst, .. } => match burst {
                Some(burst)
                    if (at_ns - self.first_ns) / 1e9 % burst.every_seconds < burst.for_seconds =>
                {
                    burst.rate
                }
                _ => rate,
            },
        }
    }
}

/// Which queue comes next.
pub struct Picker {
    count: usize,
    next: usize,
    /// Upper ends of the queues' shares of 0 to 1; empty if they come in turns.
    shares: Vec<f64>,
    random: fastrand::Rng,
}

impl Picker {
    /// Chooses among `count` queues; `skew` is the exponent of a Zipf distribution, 0 takes them in turns from `first`.
    pub fn new(count: usize, first: usize, skew: f64, seed: u64) -> Self {
        let mut shares = Vec::new();
        if skew > 0.0 {
            let mut sum = 0.0;
            for rank in 1..=count {
                sum += (rank as f64).powf(-skew);
                shares.push(sum);
            }
            for share in &mut shares {
                *share /= sum;
            }
        }
        Self {
            count,
            next: first % count,
            shares,
            random: fastrand::Rng::with_seed(seed),
        }
    }

    /// The index of the next queue.
    pub fn pick(&mut self) -> usize {
        if !self.shares.is_empty() {
            let at = self.random.f64();
            return self
                .shares
                .partition_point(|share| *share <= at)
                .min(self.count - 1);
        }
        let picked = self.next;
        self.next = if picked + 1 == self.count {
            0
        } else {
            picked + 1
        };
        picked
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn open(rate: f64, poisson: bool, burst: Option<Burst>) -> Schedule {
        Schedule::new(
            Arrivals::Open {
                rate,
                poisson,
                burst,
            },
            500,
            7,
        )
    }

    fn due_by(schedule: &mut Schedule, now_ns: u64) -> Vec<u64> {
        std::iter::from_fn(|| schedule.take(now_ns)).collect()
    }

    #[test]
    fn a_late_caller_gets_every_request_with_its_own_due_time() {
        let mut schedule = open(1000.0, false, None);
        assert!(due_by(&mut schedule, 499).is_empty());
        let due = due_by(&mut schedule, 3_000_499);
        assert_eq!(due, [500, 1_000_500, 2_000_500]);
        assert_eq!(schedule.next_ns(), Some(3_000_500));
    }

    #[test]
    fn random_arrivals_keep_the_rate() {
        let mut schedule = open(10_000.0, true, None);
        let due = due_by(&mut schedule, 10_000_000_000);
        assert!((95_000..105_000).contains(&due.len()), "{}", due.len());
        assert!(due.is_sorted());
        let gaps: std::collections::HashSet<_> =
            due.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps.len() > 1000, "gaps differ");
    }

    #[test]
    fn bursts_come_when_they_should() {
        let burst = Burst {
            rate: 1000.0,
            every_seconds: 2.0,
            for_seconds: 0.5,
        };
        let due = due_by(&mut open(100.0, false, Some(burst)), 4_000_000_499);
        // Twice half a second at 1,000 and one and a half at 100.
        assert!((1295..=1305).contains(&due.len()), "{}", due.len());
        let within = |from, until| due.iter().filter(|at| (from..until).contains(*at)).count();
        assert!((498..=502).contains(&within(0, 500_000_000)));
        assert!((148..=152).contains(&within(500_000_500, 2_000_000_000)));
    }

    #[test]
    fn queues_come_in_turns_or_by_rank() {
        let mut turns = Picker::new(3, 4, 0.0, 1);
        assert_eq!([turns.pick(), turns.pick(), turns.pick()], [1, 2, 0]);
        let mut zipf = Picker::new(10, 0, 1.0, 1);
        let mut counts = [0; 10];
        for _ in 0..100_000 {
            counts[zipf.pick()] += 1;
        }
        // Shares of rank r are 1/r over 2.929.
        assert!((33_000..35_500).contains(&counts[0]), "{counts:?}");
        assert!((16_000..18_200).contains(&counts[1]), "{counts:?}");
        assert!((3_000..3_900).contains(&counts[9]), "{counts:?}");
    }
}
