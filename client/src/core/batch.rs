//! Which records leave together, and when. Pure: times are nanoseconds of the caller's clock.
//!
//! Records of a queue wait in its open batch. A batch leaves when a place in flight is free and it has waited for the
//! linger time or has enough bytes. Without a linger time, which is the normal case, a record that comes to an idle
//! queue leaves at once, and while frames are in flight the next batch grows: the busier, the larger.
//!
//! Each queue has one batch in flight at a time, also while it is sent again, so that none overtakes another: the order
//! within a queue is the order of [`Batcher::push`].

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::core::routes::Queue;

/// When batches leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchOptions {
    /// A batch with so many bytes of records is closed; the next record opens another one. One larger record is a batch.
    pub batch_bytes: usize,
    /// How long an open batch may wait for more records if a place is free.
    pub linger: Duration,
    /// Batches in flight, over all queues.
    pub in_flight_max: usize,
}

impl Default for BatchOptions {
    fn default() -> Self {
        Self {
            batch_bytes: 256 << 10,
            linger: Duration::ZERO,
            in_flight_max: 64,
        }
    }
}

/// Records of one queue that leave together. `T` is what the caller keeps for each record.
#[derive(Debug, PartialEq, Eq)]
pub struct Batch<T> {
    /// Where they go.
    pub queue: Queue,
    /// Whole records, one after the other.
    pub records: Vec<u8>,
    /// One for each record, in their order.
    pub tokens: Vec<T>,
    /// When its first record came.
    pub opened_ns: u64,
}

/// The batches of one queue, oldest first; only the last one is open.
#[derive(Debug)]
struct Line<T> {
    batches: VecDeque<Batch<T>>,
    is_in_flight: bool,
}

/// See the module's page.
#[derive(Debug)]
pub struct Batcher<T> {
    options: BatchOptions,
    lines: HashMap<Queue, Line<T>>,
    /// Queues with batches, in the order in which they came to wait.
    order: VecDeque<Queue>,
    in_flight: usize,
    bytes: usize,
}

impl<T> Batcher<T> {
    /// Nothing waits yet.
    pub fn new(options: BatchOptions) -> Self {
        Self {
            options,
            lines: HashMap::new(),
            order: VecDeque::new(),
            in_flight: 0,
            bytes: 0,
        }
    }

    /// Bytes of records that wait and are not in flight.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether nothing waits and nothing is in flight.
    pub fn is_idle(&self) -> bool {
        self.order.is_empty() && self.in_flight == 0
    }

    /// A record for a queue.
    pub fn push(&mut self, queue: &Queue, record: &[u8], token: T, now_ns: u64) {
        if !self.lines.contains_key(queue) {
            let line = Line {
                batches: VecDeque::new(),
                is_in_flight: false,
            };
            self.lines.insert(queue.clone(), line);
        }
        let Some(line) = self.lines.get_mut(queue) else {
            return;
        };
        if line.batches.is_empty() {
            self.order.push_back(queue.clone());
        }
        let room = self.options.batch_bytes;
        let fits = |batch: &&mut Batch<T>| batch.records.len() + record.len() <= room;
        match line.batches.back_mut().filter(fits) {
            Some(batch) => {
                batch.records.extend_from_slice(record);
                batch.tokens.push(token);
            }
            None => line.batches.push_back(Batch {
                queue: queue.clone(),
                records: record.to_vec(),
                tokens: vec![token],
                opened_ns: now_ns,
            }),
        }
        self.bytes += record.len();
    }

    /// The next batch that may leave now. It is in flight until [`Batcher::landed`].
    pub fn take(&mut self, now_ns: u64) -> Option<Batch<T>> {
        if self.in_flight >= self.options.in_flight_max {
            return None;
        }
        let at = self.order.iter().position(|queue| {
            self.lines
                .get(queue)
                .is_some_and(|line| !line.is_in_flight && self.due_ns(line) <= now_ns)
        })?;
        let queue = self.order.remove(at)?;
        let line = self.lines.get_mut(&queue)?;
        let batch = line.batches.pop_front()?;
        line.is_in_flight = true;
        self.in_flight += 1;
        self.bytes -= batch.records.len();
        if !line.batches.is_empty() {
            self.order.push_back(queue);
        }
        Some(batch)
    }

    /// A batch has its answer, whatever it is: the next one of its queue may leave.
    pub fn landed(&mut self, queue: &Queue) {
        self.in_flight -= 1;
        if let Some(line) = self.lines.get_mut(queue) {
            line.is_in_flight = false;
            if line.batches.is_empty() {
                self.lines.remove(queue);
            }
        }
    }

    /// When the first batch that may leave has waited long enough; none if none may leave.
    pub fn next_due_ns(&self) -> Option<u64> {
        if self.in_flight >= self.options.in_flight_max {
            return None;
        }
        self.order
            .iter()
            .filter_map(|queue| self.lines.get(queue))
            .filter(|line| !line.is_in_flight)
            .map(|line| self.due_ns(line))
            .min()
    }

    fn due_ns(&self, line: &Line<T>) -> u64 {
        match line.batches.front() {
            Some(first)
                if line.batches.len() == 1 && first.records.len() < self.options.batch_bytes =>
            {
                let linger_ns = u64::try_from(self.options.linger.as_nanos()).unwrap_or(u64::MAX);
                first.opened_ns.saturating_add(linger_ns)
            }
            _ => 0,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn batcher(batch_bytes: usize, linger_ns: u64, in_flight_max: usize) -> Batcher<u32> {
        Batcher::new(BatchOptions {
            batch_bytes,
            linger: Duration::from_nanos(linger_ns),
            in_flight_max,
        })
    }

    fn queue(id: u32) -> Queue {
        Queue::new("T", id)
    }

    #[test]
    fn a_record_for_an_idle_queue_leaves_at_once_and_the_next_ones_wait_for_it() {
        let mut batcher = batcher(100, 0, 10);
        batcher.push(&queue(0), b"one", 1, 5);
        assert_eq!(batcher.take(5).unwrap().tokens, [1]);
        batcher.push(&queue(0), b"two", 2, 6);
        batcher.push(&queue(0), b"six", 6, 6);
        assert!(batcher.take(1000).is_none());
        assert!(batcher.next_due_ns().is_none());
        batcher.landed(&queue(0));
        let batch = batcher.take(7).unwrap();
        assert_eq!(
            (&batch.records[..], &batch.tokens[..]),
            (&b"twosix"[..], &[2, 6][..])
        );
    }

    #[test]
    fn a_batch_lingers_unless_it_is_full() {
        let mut batcher = batcher(6, 100, 10);
        batcher.push(&queue(0), b"one", 1, 5);
        assert_eq!(batcher.next_due_ns(), Some(105));
        assert!(batcher.take(104).is_none());
        batcher.push(&queue(0), b"two", 2, 50);
        assert_eq!(batcher.take(50).unwrap().tokens, [1, 2]);
        batcher.push(&queue(1), b"one", 3, 60);
        assert_eq!(batcher.take(160).unwrap().tokens, [3]);
    }

    proptest! {
        /// Whatever is pushed leaves once, in order within its queue, in batches within their limit, a queue at a time.
        #[test]
        fn every_record_leaves_once_and_in_order(
            steps in prop::collection::vec((0u8..4, 0u32..3, 1usize..9), 1..300),
            in_flight_max in 1usize..4,
            linger_ns in 0u64..20,
        ) {
            let mut batcher = batcher(16, linger_ns, in_flight_max);
            let (mut now, mut pushed) = (0u64, [0u32; 3]);
            let mut flying: Vec<Batch<u32>> = Vec::new();
            let mut landed: [Vec<u32>; 3] = Default::default();
            for (kind, id, bytes) in steps {
                now += 1;
                match kind {
                    0 | 1 => {
                        batcher.push(&queue(id), &vec![7; bytes], pushed[id as usize], now);
                        pushed[id as usize] += 1;
                    }
                    2 => {
                        if let Some(batch) = batcher.take(now) {
                            prop_assert!(batch.records.len() <= 16);
                            prop_assert!(flying.iter().all(|other| other.queue != batch.queue));
                            flying.push(batch);
                            prop_assert!(flying.len() <= in_flight_max);
                        }
                    }
                    _ if flying.is_empty() => {}
                    _ => {
                        let batch = flying.remove(bytes % flying.len());
                        batcher.landed(&batch.queue);
                        landed[batch.queue.queue_id as usize].extend(batch.tokens);
                    }
                }
            }
            for batch in flying {
                batcher.landed(&batch.queue);
                landed[batch.queue.queue_id as usize].extend(batch.tokens);
            }
            now += linger_ns;
            while let Some(batch) = batcher.take(now) {
                batcher.landed(&batch.queue);
                landed[batch.queue.queue_id as usize].extend(batch.tokens);
            }
            prop_assert!(batcher.is_idle());
            prop_assert_eq!(batcher.bytes(), 0);
            for (count, landed) in pushed.iter().zip(landed) {
                prop_assert_eq!(landed, (0..*count).collect::<Vec<_>>());
            }
        }
    }
}
