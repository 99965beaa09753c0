//! When the next request is due. Pure: time is an argument.

/// How requests come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arrivals {
    /// A fixed number is in flight; an answer makes room for the next request.
    Closed,
    /// A rate that does not care about answers.
    Open {
        /// Nanoseconds between requests of this worker.
        gap_ns: f64,
    },
}

/// The due times of one worker's requests.
#[derive(Clone, Debug)]
pub struct Schedule {
    arrivals: Arrivals,
    next_ns: f64,
}

impl Schedule {
    /// The first request of an open loop is due at `first_ns`.
    pub fn new(arrivals: Arrivals, first_ns: u64) -> Self {
        Self {
            arrivals,
            next_ns: first_ns as f64,
        }
    }

    /// The due time of the next request, if it is due by now. In a closed loop that is always now.
    pub fn take(&mut self, now_ns: u64) -> Option<u64> {
        match self.arrivals {
            Arrivals::Closed => Some(now_ns),
            Arrivals::Open { gap_ns } => {
                let due_ns = self.next_ns as u64;
                if due_ns > now_ns {
                    return None;
                }
                self.next_ns += gap_ns;
                Some(due_ns)
            }
        }
    }

    /// When to look again; none in a closed loop, which waits for answers.
    pub fn next_ns(&self) -> Option<u64> {
        match self.arrivals {
            Arrivals::Closed => None,
            Arrivals::Open { .. } => Some(self.next_ns as u64),
        }
    }
}
