//! What the broker has promised, kept outside of it.
//!
//! Producers write one line per acknowledgement and flush the file before the line counts. The checker compares the
//! ledger with what consumers get: each acknowledged message exactly once, at its offset, byte for byte, in order.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write;
use std::path::Path;

use crate::client::{Connection, Message};
use crate::record::Record;

/// A queue by topic and number.
pub type Queue = (String, i32);

/// The message with this id. Size and content follow from the id, so any byte can be checked without keeping it.
pub fn message(queue: &Queue, id: u64, bytes_max: usize) -> Message {
    let body = body(id, bytes_max);
    Message::new(&queue.0, queue.1, body)
        .property("UNIQ_KEY", &format!("{id:032X}"))
        .property("KEYS", &format!("key{id}"))
}

/// The body of a message.
pub fn body(id: u64, bytes_max: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(id);
    // Most messages are small, a few are large.
    let bytes = match random.u8(..) {
        0..8 => random.usize(1..=bytes_max),
        8..80 => random.usize(1..=bytes_max.min(4_096)),
        _ => random.usize(1..=bytes_max.min(512)),
    };
    let mut body = vec![0; bytes];
    random.fill(&mut body);
    body
}

fn id_of(record: &Record) -> Option<u64> {
    let text = record.properties.get("UNIQ_KEY")?;
    let id = u128::from_str_radix(text, 16).ok()?;
    u64::try_from(id).ok()
}

/// One producer's file of acknowledgements.
pub struct LedgerFile {
    file: File,
}

impl LedgerFile {
    pub fn create(path: &Path) -> Self {
        Self {
            file: File::options()
                .create(true)
                .append(true)
                .open(path)
                .unwrap(),
        }
    }

    /// Appends lines and flushes them to the disk; only then they count.
    pub fn write(&mut self, lines: &str) {
        if !lines.is_empty() {
            self.file.write_all(lines.as_bytes()).unwrap();
            self.file.sync_data().unwrap();
        }
    }
}

/// What a producer knows of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Sent, and no answer came: it may be stored, once.
    InDoubt,
    /// Refused: not to be stored... unless the refusal came after the write, which the broker has to say by its code.
    Refused,
    Acknowledged {
        offset: i64,
    },
}

/// All promises of one store.
#[derive(Default)]
pub struct Ledger {
    /// Every id that was ever sent, with its queue.
    sent: HashMap<u64, (Queue, Fate)>,
    /// Acknowledged offsets of each queue.
    promised: BTreeMap<Queue, BTreeMap<i64, u64>>,
    /// Where the next check of a queue starts.
    checked: BTreeMap<Queue, i64>,
    /// Oldest messages may have been removed to keep the store within its bound.
    pub retention: bool,
    /// First offset of each queue at the last check: it never goes back.
    first: BTreeMap<Queue, i64>,
    /// What consumers have seen: a crash must not take it back.
    seen: BTreeMap<Queue, BTreeMap<i64, u64>>,
    /// Highest acknowledged consumer offset, and the highest that was sent.
    commits: BTreeMap<Queue, (i64, i64)>,
    pub counts: Counts,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub acknowledged: u64,
    pub in_doubt: u64,
    pub in_doubt_stored: u64,
    pub refused: u64,
    pub records_checked: u64,
    pub commits: u64,
    /// Body bytes that whole checks have found, all queues together.
    pub bytes_kept: u64,
}

/// Greatest body of the campaign's messages.
pub const BODY_BYTES_MAX: usize = 200 << 10;

impl Ledger {
    pub fn sent(&mut self, queue: &Queue, id: u64, fate: Fate) {
        match fate {
            Fate::InDoubt => self.counts.in_doubt += 1,
            Fate::Refused => self.counts.refused += 1,
            Fate::Acknowledged { offset } => {
                self.counts.acknowledged += 1;
                let promised = self.promised.entry(queue.clone()).or_default();
                if let Some(other) = promised.insert(offset, id) {
                    panic!("{queue:?}: offset {offset} was given to {other:x} and to {id:x}");
                }
            }
        }
        let known = self.sent.insert(id, (queue.clone(), fate));
        assert!(known.is_none(), "ids are unique");
    }

    pub fn saw(&mut self, queue: &Queue, offset: i64, record: &Record) {
        let id = id_of(record).unwrap_or_else(|| panic!("{queue:?}: a record without our id"));
        let seen = self.seen.entry(queue.clone()).or_default();
        if let Some(other) = seen.insert(offset, id) {
            assert_eq!(other, id, "{queue:?}: offset {offset} changed");
        }
    }

    pub fn commit(&mut self, queue: &Queue, offset: i64, acknowledged: bool) {
        let (promised, highest) = self.commits.entry(queue.clone()).or_insert((-1, -1));
        *highest = (*highest).max(offset);
        if acknowledged {
            *promised = (*promised).max(offset);
            self.counts.commits += 1;
        }
    }

    /// Compares one queue with the ledger, from where the last check ended, or all of it.
    pub fn check(&mut self, connection: &mut Connection, queue: &Queue, whole: bool) {
        let min_offset = connection.min_offset(&queue.0, queue.1).unwrap();
        let first = self.first.entry(queue.clone()).or_insert(0);
        assert!(
            *first <= min_offset,
            "{queue:?}: what retention removed came back"
        );
        assert!(
            min_offset == 0 || self.retention,
            "{queue:?} starts at {min_offset} without any retention"
        );
        *first = min_offset;
        let from = match whole {
            true => min_offset,
            false => min_offset.max(self.checked.get(queue).copied().unwrap_or(0)),
        };
        let mut records = connection.read_queue(&queue.0, queue.1, from).unwrap();
        let mut start = from;
        if self.retention {
            // It may have gone on while the queue was read, and a reader is sent on to the new start: only what is still
            // there has to be without a gap.
            let min_offset = connection.min_offset(&queue.0, queue.1).unwrap();
            records.retain(|record| record.queue_offset >= min_offset);
            start = records
                .first()
                .map_or(from.max(min_offset), |record| record.queue_offset);
        }
        let from = start;
        let mut by_id = HashMap::new();
        for (number, record) in records.iter().enumerate() {
            let offset = from + number as i64;
            assert_eq!(
                record.queue_offset, offset,
                "{queue:?}: offsets have no gap"
            );
            assert_eq!((&record.topic, record.queue_id), (&queue.0, queue.1));
            let id = id_of(record).unwrap_or_else(|| panic!("{queue:?}: a record without our id"));
            if let Some(first) = by_id.insert(id, offset) {
                panic!("{queue:?}: {id:x} is stored twice, at {first} and {offset}");
            }
            let Some((sent_to, fate)) = self.sent.get(&id) else {
                panic!("{queue:?}: {id:x} at {offset} was never sent");
            };
            assert_eq!(sent_to, queue, "{id:x} went to another queue");
            match fate {
                Fate::InDoubt => self.counts.in_doubt_stored += u64::from(!whole),
                Fate::Refused => panic!("{queue:?}: {id:x} at {offset} was refused"),
                Fate::Acknowledged { offset: promised } => {
                    assert_eq!(*promised, offset, "{queue:?}: {id:x} has moved");
                }
            }
            assert!(
                record.body == body(id, BODY_BYTES_MAX),
                "{queue:?}: the body of {id:x} at {offset} has changed"
            );
        }
        self.counts.records_checked += records.len() as u64;
        if whole {
            self.counts.bytes_kept += records
                .iter()
                .map(|record| record.body.len() as u64)
                .sum::<u64>();
        }
        let end = from + records.len() as i64;
        let empty = BTreeMap::new();
        for (name, table) in [("acknowledged", &self.promised), ("read", &self.seen)] {
            for (offset, id) in table.get(queue).unwrap_or(&empty).range(from..) {
                assert!(
                    *offset < end && by_id.get(id) == Some(offset),
                    "{queue:?}: {id:x} was {name} at {offset} and is lost; the queue ends at {end}"
                );
            }
        }
        assert_eq!(connection.max_offset(&queue.0, queue.1).unwrap(), end);
        self.checked.insert(queue.clone(), end);
    }

    /// A stored consumer offset is at least what was acknowledged and at most what was sent.
    pub fn check_commit(&mut self, connection: &mut Connection, group: &str, queue: &Queue) {
        let Some((promised, highest)) = self.commits.get(queue).copied() else {
            return;
        };
        let stored = connection
            .consumer_offset(group, &queue.0, queue.1)
            .unwrap()
            .unwrap_or(-1);
        assert!(
            (promised..=highest).contains(&stored),
            "{queue:?}: the consumer offset is {stored}, acknowledged was {promised}, sent {highest}"
        );
        // Whatever it is now is what a crash may not take back any more.
        self.commits.insert(queue.clone(), (stored, highest));
    }
}
