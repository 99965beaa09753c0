//! The verifying mode: what was acknowledged against what was delivered. Pure.
//!
//! Producers log every acknowledged message with the offset that the answer named, consumers every delivered one. From
//! both follows what was lost, delivered twice, delivered at another place than the acknowledgement said, or out of the
//! order in which its producer sent it to its queue. The protocol promises that order only to a producer that has one
//! request in flight per queue.

use serde::{Deserialize, Serialize};

/// A message at its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Index of the queue among all of the run.
    pub queue: u32,
    pub producer: u32,
    /// Of the producer in the queue, from 0.
    pub sequence: u64,
    pub offset: u64,
}

/// What the comparison found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    pub acknowledged: u64,
    pub delivered: u64,
    /// Acknowledged and never delivered.
    pub lost: u64,
    /// Deliveries of a message beyond its first.
    pub duplicated: u64,
    /// Delivered at another offset than its acknowledgement named.
    pub misplaced: u64,
    /// Delivered behind a message that its producer sent to the same queue later.
    pub reordered: u64,
    /// Delivered without an acknowledgement: the answer was an error or did not come. That is allowed.
    pub unacknowledged: u64,
    /// Queues, with the first sequences that are missing.
    pub examples: Vec<String>,
}

impl Verdict {
    /// Whether the broker kept its promise; the order counts only where the protocol promises one.
    pub fn is_clean(&self, order_counts: bool) -> bool {
        self.lost == 0
            && self.duplicated == 0
            && self.misplaced == 0
            && (!order_counts || self.reordered == 0)
    }
}

/// Compares. `seen` must be in the order of delivery within each queue.
pub fn judge(mut acknowledged: Vec<Entry>, seen: Vec<Entry>) -> Verdict {
    const EXAMPLES_MAX: usize = 5;
    let mut verdict = Verdict {
        acknowledged: acknowledged.len() as u64,
        delivered: seen.len() as u64,
        ..Verdict::default()
    };
    let mut last = std::collections::HashMap::new();
    for entry in &seen {
        let highest = last
            .entry((entry.queue, entry.producer))
            .or_insert(entry.sequence);
        if entry.sequence < *highest {
            verdict.reordered += 1;
        }
        *highest = entry.sequence.max(*highest);
    }
    acknowledged.sort_unstable();
    let mut seen = seen;
    seen.sort_unstable();
    let key = |entry: &Entry| (entry.queue, entry.producer, entry.sequence);
    let mut seen = seen.into_iter().peekable();
    for ack in &acknowledged {
        while let Some(other) = seen.next_if(|entry| key(entry) < key(ack)) {
            verdict.unacknowledged += 1;
            while seen.next_if(|entry| key(entry) == key(&other)).is_some() {
                verdict.duplicated += 1;
            }
        }
        let mut times = 0;
        let mut right_place = false;
        while let Some(entry) = seen.next_if(|entry| key(entry) == key(ack)) {
            times += 1;
            right_place |= entry.offset == ack.offset;
        }
        if times == 0 {
            verdict.lost += 1;
            if verdict.examples.len() < EXAMPLES_MAX {
                verdict.examples.push(format!(
                    "queue {}, producer {:#x}, sequence {}, offset {}",
                    ack.queue, ack.producer, ack.sequence, ack.offset
                ));
            }
            continue;
        }
        verdict.duplicated += times - 1;
        verdict.misplaced += u64::from(!right_place);
    }
    while let Some(other) = seen.next() {
        verdict.unacknowledged += 1;
        while seen.next_if(|entry| key(entry) == key(&other)).is_some() {
            verdict.duplicated += 1;
        }
    }
    verdict
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(queue: u32, producer: u32, sequence: u64, offset: u64) -> Entry {
        Entry {
            queue,
            producer,
            sequence,
            offset,
        }
    }

    #[test]
    fn what_comes_back_once_in_order_at_its_place_is_clean() {
        let all: Vec<_> = (0..10).map(|n| entry(0, 1, n, n + 5)).collect();
        let verdict = judge(all.clone(), all);
        assert!(verdict.is_clean(true), "{verdict:?}");
        assert_eq!(verdict.delivered, 10);
    }

    #[test]
    fn each_fault_is_counted_as_what_it_is() {
        let acks = vec![
            entry(0, 1, 0, 0),
            entry(0, 1, 1, 1),
            entry(0, 1, 2, 2),
            entry(1, 1, 0, 0),
        ];
        let seen = vec![
            entry(0, 1, 2, 2), // before 0: two reordered ones follow
            entry(0, 1, 0, 0),
            entry(0, 1, 0, 3), // twice
            entry(1, 1, 0, 7), // elsewhere
            entry(1, 1, 1, 8), // never acknowledged
        ];
        let verdict = judge(acks, seen);
        assert_eq!(
            (verdict.lost, verdict.duplicated, verdict.misplaced),
            (1, 1, 1),
            "{verdict:?}"
        );
        assert_eq!(
            (verdict.reordered, verdict.unacknowledged),
            (2, 1),
            "{verdict:?}"
        );
        assert!(verdict.examples[0].contains("sequence 1"), "{verdict:?}");
    }

    proptest! {
        /// Drops and repeats some deliveries; the counts are those of what was done.
        #[test]
        fn drops_and_repeats_are_counted_exactly(
            times in proptest::collection::vec(0u64..3, 1..200),
            producers in 1u32..4,
        ) {
            let acks: Vec<_> = (0..times.len() as u64)
                .map(|n| entry((n % 2) as u32, (n % u64::from(producers)) as u32, n, n))
                .collect();
            let seen: Vec<_> = acks
                .iter()
                .zip(&times)
                .flat_map(|(ack, times)| std::iter::repeat_n(*ack, *times as usize))
                .collect();
            let verdict = judge(acks, seen);
            prop_assert_eq!(verdict.lost, times.iter().filter(|times| **times == 0).count() as u64);
            prop_assert_eq!(verdict.duplicated, times.iter().filter(|times| **times == 2).count() as u64);
            prop_assert_eq!((verdict.misplaced, verdict.reordered, verdict.unacknowledged), (0, 0, 0));
        }
    }
}
