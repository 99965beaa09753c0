//! A fetch session: which queues a client reads, where each is, and what the fetch that waits has got so far. Pure.
//!
//! Each queue is **ready** (it is to be read when a fetch waits) or **being read**: one pull at the owner, which is
//! parked there while there is nothing. Pulls outlive fetches, so a fetch that finds nothing costs nothing per queue, and
//! is not told about queues that have nothing to say. A pull that ends while no fetch waits is dropped and its queue is
//! ready again: nothing is held for a client that does not ask.

use std::collections::VecDeque;

use ahash::AHashMap;

use crate::io::body::Body;

/// Names one pull; a queue that was moved or removed meanwhile has no use for what it brings.
pub type PullNumber = u64;

/// A queue of a session.
#[derive(Debug)]
struct Queue<Q> {
    what: Q,
    next: i64,
    reading: Option<PullNumber>,
}

/// What a fetch waits for.
#[derive(Debug)]
pub struct Waiting<R> {
    pub responder: R,
    pub id: u64,
    pub min_bytes: usize,
    pub max_bytes: usize,
    /// Milliseconds of the caller's clock.
    pub deadline_ms: u64,
    pub parts: Vec<Part>,
    pub bytes: usize,
    /// There is something to say that is no record, or no room for what was found.
    urgent: bool,
}

impl<R> Waiting<R> {
    /// Bytes that may still be read for it. The last eighth is left free: a pull for so little would cost more than it brings.
    fn room(&self) -> usize {
        let left = self.max_bytes.saturating_sub(self.bytes);
        let is_full = self.urgent || (self.bytes > 0 && left < self.max_bytes / 8);
        if is_full { 0 } else { left }
    }
}

/// Something about one queue for the answer.
#[derive(Debug)]
pub struct Part {
    pub handle: u32,
    /// 0, or a response code.
    pub code: i32,
    pub remark: String,
    pub next_offset: i64,
    pub min_offset: i64,
    pub max_offset: i64,
    pub records: u32,
    pub body: Body,
}

/// A queue to be read now.
#[derive(Debug, PartialEq, Eq)]
pub struct Read<Q> {
    pub handle: u32,
    pub number: PullNumber,
    pub what: Q,
    pub offset: i64,
    pub bytes_max: usize,
}

/// See the module's page. `Q` says what a queue is, `R` is the right to answer.
#[derive(Debug)]
pub struct Session<Q, R> {
    queues: AHashMap<u32, Queue<Q>>,
    ready: VecDeque<u32>,
    /// Queues that are not looked at again before the next fetch.
    resting: Vec<u32>,
    waiting: Option<Waiting<R>>,
    next_number: PullNumber,
    /// Pulls that have not ended, those that nobody wants any more among them.
    outstanding: usize,
}

impl<Q, R> Default for Session<Q, R> {
    fn default() -> Self {
        Self {
            queues: AHashMap::new(),
            ready: VecDeque::new(),
            resting: Vec::new(),
            waiting: None,
            next_number: 0,
            outstanding: 0,
        }
    }
}

impl<Q: Clone, R> Session<Q, R> {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn len(&self) -> usize {
        self.queues.len()
    }

    pub fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    /// Pulls that have not ended.
    pub fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Adds a queue, or moves it.
    pub fn put(&mut self, handle: u32, what: Q, next: i64) {
        let queue = Queue {
            what,
            next,
            reading: None,
        };
        let before = self.queues.insert(handle, queue);
        // One that is being read is in no line.
        if before.is_some_and(|before| before.reading.is_none()) {
            self.take_out(handle);
        }
        self.ready.push_back(handle);
    }

    fn take_out(&mut self, handle: u32) {
        self.ready.retain(|&ready| ready != handle);
        self.resting.retain(|&resting| resting != handle);
    }

    pub fn remove(&mut self, handle: u32) {
        if self.queues.remove(&handle).is_some() {
            self.take_out(handle);
        }
    }

    pub fn has(&self, handle: u32) -> bool {
        self.queues.contains_key(&handle)
    }

    /// A fetch waits from now on; the one that waited before is to be answered with what it has.
    pub fn wait(
        &mut self,
        responder: R,
        id: u64,
        (min_bytes, max_bytes): (usize, usize),
        deadline_ms: u64,
    ) -> Option<Waiting<R>> {
        self.ready.extend(self.resting.drain(..));
        self.waiting.replace(Waiting {
            responder,
            id,
            min_bytes: min_bytes.max(1),
            max_bytes: max_bytes.max(1),
            deadline_ms,
            parts: Vec::new(),
            bytes: 0,
            urgent: false,
        })
    }

    /// When the fetch that waits has waited long enough.
    pub fn deadline_ms(&self) -> Option<u64> {
        Some(self.waiting.as_ref()?.deadline_ms)
    }

    /// The next queue to read, if a fetch waits and has room. The caller reads it and says what came of it.
    pub fn next_read(&mut self) -> Option<Read<Q>> {
        let bytes_max = self.waiting.as_ref()?.room();
        if bytes_max == 0 {
            return None;
        }
        let handle = self.ready.pop_front()?;
        let number = self.next_number;
        let queue = self.queues.get_mut(&handle)?;
        self.next_number += 1;
        queue.reading = Some(number);
        self.outstanding += 1;
        Some(Read {
            handle,
            number,
            what: queue.what.clone(),
            offset: queue.next,
            bytes_max,
        })
    }

    /// A pull has ended. Whether its queue still waits for it; if so it is ready again.
    pub fn ended(&mut self, handle: u32, number: PullNumber) -> bool {
        self.outstanding -= 1;
        let Some(queue) = self.queues.get_mut(&handle) else {
            return false;
        };
        if queue.reading != Some(number) {
            return false;
        }
        queue.reading = None;
        self.ready.push_back(handle);
        true
    }

    /// The queue has just ended a pull too early to be asked again at once: the owner parks none now, because it stops. The
    /// fetch that waits does not wait longer.
    pub fn rest(&mut self, handle: u32) {
        self.take_out(handle);
        self.resting.push(handle);
        if let Some(waiting) = &mut self.waiting {
            waiting.urgent = true;
        }
    }

    /// The queue goes on there; what lies before is not wanted.
    pub fn moved(&mut self, handle: u32, next: i64) {
        if let Some(queue) = self.queues.get_mut(&handle) {
            queue.next = next;
        }
    }

    /// Records for the fetch that waits: the queue goes on behind them. Without one, or without room, they are dropped
    /// and read again later. Whether they were taken.
    pub fn found(&mut self, part: Part) -> bool {
        let Some(waiting) = &mut self.waiting else {
            return false;
        };
        let bytes = part.body.len();
        // The first records come whatever their size.
        if waiting.bytes > 0 && waiting.bytes + bytes > waiting.max_bytes {
            waiting.urgent = true;
            return false;
        }
        waiting.bytes += bytes;
        let next = part.next_offset;
        let handle = part.handle;
        waiting.parts.push(part);
        self.moved(handle, next);
        true
    }

    /// Something about a queue that the client has to hear. Without a fetch that waits it is found again later.
    pub fn tell(&mut self, part: Part) {
        if let Some(waiting) = &mut self.waiting {
            waiting.urgent = true;
            waiting.parts.push(part);
        }
    }

    /// Whether a fetch waits.
    pub fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// The fetch that waits, if it has enough, has to hear something, or has waited long enough.
    pub fn take_finished(&mut self, now_ms: u64) -> Option<Waiting<R>> {
        let waiting = self.waiting.as_ref()?;
        let enough = waiting.bytes >= waiting.min_bytes || waiting.room() == 0;
        let finished = enough || waiting.deadline_ms <= now_ms;
        if finished { self.waiting.take() } else { None }
    }

    /// The fetch that waits, whatever it has.
    pub fn take_waiting(&mut self) -> Option<Waiting<R>> {
        self.waiting.take()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn part(handle: u32, bytes: usize, next_offset: i64) -> Part {
        Part {
            handle,
            code: 0,
            remark: String::new(),
            next_offset,
            min_offset: 0,
            max_offset: 0,
            records: 1,
            body: Body::Bytes(vec![0; bytes].into()),
        }
    }

    fn session(queues: u32) -> Session<u32, ()> {
        let mut session = Session::new();
        for queue in 0..queues {
            session.put(queue, queue, 0);
        }
        session
    }

    #[test]
    fn an_idle_fetch_reads_no_queue_that_is_being_read_already() {
        let mut session = session(3);
        assert!(session.wait((), 1, (1, 100), 10).is_none());
        let reads: Vec<_> = std::iter::from_fn(|| session.next_read()).collect();
        assert_eq!(reads.len(), 3);
        assert!(session.take_finished(9).is_none());
        assert!(session.take_finished(10).unwrap().parts.is_empty());
        session.wait((), 2, (1, 100), 20);
        assert!(session.next_read().is_none(), "all three are parked");
    }

    #[test]
    fn what_comes_while_nobody_waits_is_read_again() {
        let mut session = session(1);
        session.wait((), 1, (1, 100), 10);
        let read = session.next_read().unwrap();
        session.take_finished(10).unwrap();
        assert!(session.ended(0, read.number));
        session.found(part(0, 10, 5));
        session.wait((), 2, (1, 100), 20);
        assert_eq!(session.next_read().unwrap().offset, 0, "not moved on");
    }

    #[test]
    fn a_queue_that_was_moved_takes_nothing_from_its_old_pull() {
        let mut session = session(1);
        session.wait((), 1, (1, 100), 10);
        let old = session.next_read().unwrap();
        session.put(0, 0, 70);
        let new = session.next_read().unwrap();
        assert_eq!(new.offset, 70);
        assert!(!session.ended(0, old.number));
        assert!(session.ended(0, new.number));
        session.found(part(0, 10, 71));
        assert_eq!(session.next_read().unwrap().offset, 71);
        assert_eq!(session.take_finished(0).unwrap().parts.len(), 1);
    }

    #[test]
    fn a_fetch_ends_with_enough_bytes_and_stays_within_its_limit_but_for_the_first_records() {
        let mut session = session(2);
        session.wait((), 1, (150, 200), 10);
        let first = session.next_read().unwrap();
        assert_eq!(first.bytes_max, 200);
        session.ended(first.handle, first.number);
        session.found(part(first.handle, 120, 1));
        assert!(session.take_finished(0).is_none());
        let second = session.next_read().unwrap();
        assert_eq!(
            (second.handle, second.bytes_max),
            (1, 80),
            "queues take turns"
        );
        session.ended(second.handle, second.number);
        assert!(session.found(part(second.handle, 60, 1)));
        assert_eq!(session.take_finished(0).unwrap().bytes, 180);
        session.wait((), 2, (1000, 200), 10);
        for (bytes, taken) in [(150, true), (60, false)] {
            let read = session.next_read().unwrap();
            session.ended(read.handle, read.number);
            assert_eq!(session.found(part(read.handle, bytes, 7)), taken);
        }
        assert!(
            session.next_read().is_none(),
            "what has no room is not read in a circle"
        );
        assert_eq!(session.take_finished(0).unwrap().bytes, 150);
        session.wait((), 2, (1000, 200), 10);
        let most = session.next_read().unwrap();
        session.ended(most.handle, most.number);
        session.found(part(most.handle, 180, 8));
        assert!(
            session.next_read().is_none(),
            "the rest is not worth a pull"
        );
        assert_eq!(session.take_finished(0).unwrap().bytes, 180);
        session.wait((), 3, (1, 10), 10);
        let large = session.next_read().unwrap();
        session.ended(large.handle, large.number);
        session.found(part(large.handle, 1000, 9));
        assert_eq!(session.take_finished(0).unwrap().bytes, 1000);
    }

    #[test]
    fn a_queue_that_rests_is_read_by_the_next_fetch() {
        let mut session = session(1);
        session.wait((), 1, (1, 100), 10);
        let read = session.next_read().unwrap();
        session.ended(0, read.number);
        session.rest(0);
        assert!(session.next_read().is_none());
        assert!(
            session.take_finished(0).is_some(),
            "a broker that stops does not keep its clients waiting"
        );
        session.wait((), 2, (1, 100), 10);
        assert!(session.next_read().is_some());
        assert!(session.next_read().is_none());
    }

    #[test]
    fn a_removed_queue_is_neither_read_nor_told_about() {
        let mut session = session(2);
        session.wait((), 1, (1, 100), 10);
        let read = session.next_read().unwrap();
        session.remove(read.handle);
        assert!(!session.ended(read.handle, read.number));
        session.remove(1);
        assert!(session.next_read().is_none());
        assert_eq!((session.len(), session.outstanding()), (0, 0));
    }

    #[test]
    fn a_queue_that_is_put_twice_is_read_once() {
        let mut session = session(1);
        session.put(0, 0, 9);
        session.wait((), 1, (1, 100), 10);
        assert_eq!(session.next_read().unwrap().offset, 9);
        assert!(session.next_read().is_none());
    }

    #[test]
    fn bad_news_end_a_fetch_at_once() {
        let mut session = session(1);
        session.wait((), 1, (1000, 2000), 10);
        session.tell(Part {
            code: 17,
            ..part(0, 0, 0)
        });
        assert_eq!(session.take_finished(0).unwrap().parts[0].code, 17);
    }
}
