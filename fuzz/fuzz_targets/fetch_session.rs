//! The fetch state that a broker keeps for a native consumer, driven by any order of puts, removals, fetches, ends of pulls and
//! finds, beside a model: nothing is read twice at a time, nothing that was removed is read, every queue is read from where it is,
//! and an answer has no more bytes than were asked for unless it is one find.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use ringmq::broker::native::session::{Part, Read, Session, Waiting};
use ringmq::io::body::Body;

struct Model {
    session: Session<u32, u64>,
    /// Handle: where it goes on, and which pull reads it.
    queues: BTreeMap<u32, (i64, Option<u64>)>,
    pulls: Vec<Read<u32>>,
    waiting: Option<u64>,
}

impl Model {
    fn check_answer(&self, answer: &Waiting<u64>) {
        let bytes: usize = answer.parts.iter().map(|part| part.body.len()).sum();
        assert_eq!(bytes, answer.bytes);
        let finds = answer.parts.iter().filter(|part| part.body.len() > 0).count();
        assert!(bytes <= answer.max_bytes || finds == 1);
        assert_eq!(Some(answer.responder), self.waiting);
    }

    fn step(&mut self, op: u8, a: u8, b: u8, now_ms: u64) {
        let handle = u32::from(a % 8);
        match op % 9 {
            0 => {
                self.session.put(handle, handle, i64::from(b));
                self.queues.insert(handle, (i64::from(b), None));
            }
            1 => {
                self.session.remove(handle);
                self.queues.remove(&handle);
            }
            2 => {
                let before = self.session.wait(now_ms, now_ms, (usize::from(a), usize::from(b) * 4), now_ms + 3);
                if let Some(answer) = &before {
                    self.check_answer(answer);
                }
                assert_eq!(before.is_some(), self.waiting.is_some());
                self.waiting = Some(now_ms);
            }
            3 => {
                if let Some(read) = self.session.next_read() {
                    assert!(self.waiting.is_some(), "read for nobody");
                    let queue = self.queues.get_mut(&read.handle).expect("a queue that is there");
                    assert_eq!(queue.0, read.offset);
                    assert_eq!(queue.1, None, "read twice at a time");
                    assert!(read.bytes_max > 0);
                    queue.1 = Some(read.number);
                    self.pulls.push(read);
                }
            }
            4..=6 => {
                if self.pulls.is_empty() {
                    return;
                }
                let read = self.pulls.swap_remove(usize::from(a) % self.pulls.len());
                let wanted = self.queues.get(&read.handle).is_some_and(|it| it.1 == Some(read.number));
                assert_eq!(self.session.ended(read.handle, read.number), wanted);
                if !wanted {
                    return;
                }
                let queue = self.queues.get_mut(&read.handle).expect("it is wanted");
                queue.1 = None;
                match op % 9 {
                    4 => {
                        let next_offset = queue.0 + 1;
                        let part = Part {
                            handle: read.handle,
                            code: 0,
                            remark: String::new(),
                            next_offset,
                            min_offset: 0,
                            max_offset: 0,
                            records: 1,
                            body: Body::Bytes(vec![0; usize::from(b) + 1].into()),
                        };
                        if self.session.found(part) {
                            assert!(self.waiting.is_some());
                            queue.0 = next_offset;
                        }
                    }
                    5 => self.session.rest(read.handle),
                    _ => {}
                }
            }
            7 => {
                if let Some(queue) = self.queues.get_mut(&handle) {
                    queue.0 = i64::from(b);
                }
                self.session.moved(handle, i64::from(b));
            }
            _ => {
                let deadline_ms = self.session.deadline_ms();
                if let Some(answer) = self.session.take_finished(now_ms) {
                    self.check_answer(&answer);
                    self.waiting = None;
                } else {
                    assert!(deadline_ms.is_none_or(|deadline_ms| deadline_ms > now_ms), "nobody waits longer than asked");
                }
            }
        }
        assert_eq!(self.session.len(), self.queues.len());
        assert_eq!(self.session.outstanding(), self.pulls.len());
        assert_eq!(self.session.is_waiting(), self.waiting.is_some());
    }
}

fuzz_target!(|data: &[u8]| {
    let mut model = Model {
        session: Session::new(),
        queues: BTreeMap::new(),
        pulls: Vec::new(),
        waiting: None,
    };
    for (now_ms, step) in data.chunks_exact(3).enumerate() {
        model.step(step[0], step[1], step[2], now_ms as u64);
    }
    // At the end every queue that nobody reads is offered to a fetch with room.
    for read in std::mem::take(&mut model.pulls) {
        model.session.ended(read.handle, read.number);
    }
    model.session.take_waiting();
    model.session.wait(0, 0, (1, usize::MAX / 2), u64::MAX);
    let mut offered: Vec<u32> = std::iter::from_fn(|| model.session.next_read()).map(|read| read.handle).collect();
    offered.sort_unstable();
    assert_eq!(offered, model.queues.keys().copied().collect::<Vec<_>>());
});
