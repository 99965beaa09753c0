//! The index of all queues of one log, without a file per queue.
//!
//! A queue's newest entries are in memory; each [`BLOCK_ENTRIES`] of them become a block of one sector in the log's shared
//! index files (`store/index_files.rs` writes and reads those). In memory a queue keeps 16 bytes per block: 10^8 messages
//! cost 8 MB. Blocks are a cache of what the log says: a snapshot names those that it needs, and a block is used
//! again only when no snapshot on the disk names it.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use ahash::AHashMap;
use smallvec::SmallVec;

use crate::base::limits::SECTOR_BYTES;
use crate::store::snapshot::{Reader, Short, Writer};
use crate::store::types::{QueueBounds, QueueEntry, QueueKey};

/// RocketMQ's consume queue unit: position i64, size i32, tags code i64, big-endian.
pub const ENTRY_BYTES: usize = 20;
/// Entries of one block.
pub const BLOCK_ENTRIES: usize = (SECTOR_BYTES - BLOCK_HEADER_BYTES) / ENTRY_BYTES;
/// Topic id, queue id (u32 each) and the queue offset of the first entry (i64): lets a check see whose block it is.
const BLOCK_HEADER_BYTES: usize = 16;

/// A full block on its way to the index file, or read from it.
pub type Block = Rc<[u8]>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BlockRef {
    number: u32,
    first_position: u64,
}

#[derive(Debug, Default)]
struct Queue {
    /// Offset of the first entry that is still there.
    min: i64,
    /// Offset of the first entry of `blocks[0]`, or of `tail` if there is no block.
    base: i64,
    blocks: VecDeque<BlockRef>,
    tail: Vec<QueueEntry>,
    /// Next offset to be given to a message that is appended but perhaps not durable yet.
    assigned: i64,
    last_store_timestamp: i64,
}

impl Queue {
    fn tail_first(&self) -> i64 {
        self.base + (self.blocks.len() * BLOCK_ENTRIES) as i64
    }

    fn max(&self) -> i64 {
        self.tail_first() + self.tail.len() as i64
    }
}

/// Where an entry is in the index files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its block.
    pub number: u32,
    pub index: usize,
    /// The blocks of the same queue before and behind.
    pub previous: Option<u32>,
    pub next: Option<u32>,
}

/// What a look at one offset gives.
#[derive(Debug, PartialEq, Eq)]
pub enum Lookup {
    Entry(QueueEntry),
    /// The entry is in a block that has to be read.
    InBlock(Place),
    /// No such queue or offset.
    Nothing,
}

/// See the module's page.
#[derive(Default)]
pub struct ConsumeQueues {
    queues: AHashMap<QueueKey, Queue>,
    /// First block number that was never used.
    next_block: u32,
    /// Blocks that may be used again now.
    free: Vec<u32>,
    /// Blocks that a snapshot on the disk may still name.
    freed: Vec<u32>,
    /// Full blocks that are not in the index file yet.
    unwritten: BTreeMap<u32, Block>,
}

impl ConsumeQueues {
    /// The offset of the first of so many messages that are being appended.
    pub fn assign(&mut self, key: QueueKey, count: usize) -> i64 {
        let queue = self.queues.entry(key).or_default();
        let offset = queue.assigned;
        queue.assigned += count as i64;
        offset
    }

    /// Messages one after the other, the first one at `offset`, have become durable. Offsets of a queue are contiguous; one
    /// that jumps is our bug (or recovery of a log whose front is gone: then the queue begins there).
    pub fn push(
        &mut self,
        key: QueueKey,
        offset: i64,
        entries: &[QueueEntry],
        store_timestamp: i64,
    ) {
        let queue = self.queues.entry(key).or_default();
        if queue.tail.is_empty() && queue.blocks.is_empty() && offset > queue.max() {
            queue.base = offset;
            queue.min = offset;
        }
        assert_eq!(
            offset,
            queue.max(),
            "queue {key:?}: entries are pushed in the order of their offsets"
        );
        queue.assigned = queue.assigned.max(offset + entries.len() as i64);
        queue.last_store_timestamp = store_timestamp;
        let mut rest = entries;
        while !rest.is_empty() {
            let room = (BLOCK_ENTRIES - queue.tail.len()).min(rest.len());
            let (now, behind) = rest.split_at(room);
            queue.tail.extend_from_slice(now);
            rest = behind;
            if queue.tail.len() == BLOCK_ENTRIES {
                let number = self.free.pop().unwrap_or_else(|| {
                    self.next_block += 1;
                    self.next_block - 1
                });
                let first = queue.tail_first();
                let block = encode_block(key, first, &queue.tail);
                queue.blocks.push_back(BlockRef {
                    number,
                    first_position: queue.tail[0].position,
                });
                queue.tail.clear();
                self.unwritten.insert(number, block);
            }
        }
    }

    /// First and next visible offset.
    pub fn bounds(&self, key: QueueKey) -> QueueBounds {
        self.queues
            .get(&key)
            .map_or_else(QueueBounds::default, |queue| QueueBounds {
                min_offset: queue.min,
                max_offset: queue.max(),
                last_store_timestamp: queue.last_store_timestamp,
            })
    }

    /// Position before which the log has no message of the queue that is still there.
    pub fn first_position(&self, key: QueueKey) -> Option<u64> {
        let queue = self.queues.get(&key)?;
        let block = queue.blocks.front().map(|block| block.first_position);
        block.or_else(|| queue.tail.first().map(|entry| entry.position))
    }

    /// The entry at an offset, or where it is.
    pub fn lookup(&self, key: QueueKey, offset: i64) -> Lookup {
        let mut run = EntryRun::new();
        match self.lookup_run(key, offset, 1, &mut run) {
            Some(place) => Lookup::InBlock(place),
            None => run
                .first()
                .map_or(Lookup::Nothing, |&entry| Lookup::Entry(entry)),
        }
    }

    /// Appends the entries from an offset on: none if there is none, else as many as lie together, but no more than `count`,
    /// which is not 0. If they are on the disk, where.
    pub fn lookup_run(
        &self,
        key: QueueKey,
        offset: i64,
        count: usize,
        run: &mut EntryRun,
    ) -> Option<Place> {
        let queue = self.queues.get(&key)?;
        if offset < queue.min || offset >= queue.max() {
            return None;
        }
        if let Ok(at) = usize::try_from(offset - queue.tail_first()) {
            let rest = &queue.tail[at..];
            run.extend_from_slice(&rest[..rest.len().min(count)]);
            return None;
        }
        let at = (offset - queue.base) as usize;
        let (block, index) = (at / BLOCK_ENTRIES, at % BLOCK_ENTRIES);
        let number = queue.blocks[block].number;
        if let Some(block) = self.unwritten.get(&number) {
            let these = index..BLOCK_ENTRIES.min(index + count);
            run.extend(these.map(|index| entry_of(block, index)));
            return None;
        }
        let number_of = |block: usize| queue.blocks.get(block).map(|block| block.number);
        Some(Place {
            number,
            index,
            previous: block.checked_sub(1).and_then(number_of),
            next: number_of(block + 1).filter(|next| !self.unwritten.contains_key(next)),
        })
    }

    /// The position of the entry at an offset, or that of the first one in its block if that is on the disk.
    pub fn position_before(&self, key: QueueKey, offset: i64) -> Option<u64> {
        let queue = self.queues.get(&key)?;
        let tail_first = queue.tail_first();
        if offset >= tail_first {
            let entry = queue.tail.get((offset - tail_first) as usize)?;
            return Some(entry.position);
        }
        let at = usize::try_from(offset - queue.base).ok()?;
        let block = queue.blocks.get(at / BLOCK_ENTRIES)?;
        Some(block.first_position)
    }

    /// Forgets the queues of a topic incarnation.
    pub fn drop_topic(&mut self, topic_id: u32) {
        let freed = &mut self.freed;
        let unwritten = &mut self.unwritten;
        self.queues.retain(|key, queue| {
            if key.topic_id == topic_id {
                for block in &queue.blocks {
                    unwritten.remove(&block.number);
                    freed.push(block.number);
                }
            }
            key.topic_id != topic_id
        });
    }

    /// Drops whole blocks whose entries all lie below `log_start`, and entries of tails. Returns the queues whose first
    /// block lies on the border: [`ConsumeQueues::set_min`] finishes those when the block has been read.
    pub fn trim(&mut self, log_start: u64) -> Vec<QueueKey> {
        let mut border = Vec::new();
        for (key, queue) in &mut self.queues {
            while let Some(first) = queue.blocks.front().copied() {
                let next = queue
                    .blocks
                    .get(1)
                    .map(|block| block.first_position)
                    .or_else(|| queue.tail.first().map(|entry| entry.position));
                // Without a successor nobody knows where the block ends: it is looked into.
                if next.is_some_and(|next| next <= log_start) {
                    queue.blocks.pop_front();
                    queue.base += BLOCK_ENTRIES as i64;
                    self.unwritten.remove(&first.number);
                    self.freed.push(first.number);
                } else {
                    break;
                }
            }
            queue.min = queue.min.max(queue.base);
            match queue.blocks.front() {
                Some(first) if first.first_position < log_start => border.push(*key),
                Some(_) => {}
                None => {
                    let gone = queue
                        .tail
                        .iter()
                        .take_while(|entry| entry.position < log_start)
                        .count();
                    queue.tail.drain(..gone);
                    queue.base += gone as i64;
                    queue.min = queue.base;
                }
            }
        }
        // The order in which they are read is the same in every run of a seed.
        border.sort_unstable();
        border
    }

    /// Sets the first offset that is still there, within the first block or at its end.
    pub fn set_min(&mut self, key: QueueKey, min: i64) {
        if let Some(queue) = self.queues.get_mut(&key) {
            queue.min = queue.min.max(min.min(queue.max()));
        }
    }

    /// Full blocks that are not in the index file yet.
    pub fn unwritten(&self) -> Vec<(u32, Block)> {
        self.unwritten
            .iter()
            .map(|(&number, block)| (number, block.clone()))
            .collect()
    }

    /// How many full blocks wait for the index file.
    pub fn unwritten_count(&self) -> usize {
        self.unwritten.len()
    }

    /// A block is in the index file.
    pub fn on_written(&mut self, number: u32, block: &Block) {
        if self
            .unwritten
            .get(&number)
            .is_some_and(|current| Rc::ptr_eq(current, block))
        {
            self.unwritten.remove(&number);
        }
    }

    /// Blocks that were freed before a snapshot was begun: to be given back with [`ConsumeQueues::reuse`] when it is
    /// durable and the older ones are gone.
    pub fn take_freed(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.freed)
    }

    /// These blocks may be used again.
    pub fn reuse(&mut self, blocks: Vec<u32>) {
        self.free.extend(blocks);
    }

    /// Keys of all queues, in no order.
    pub fn keys(&self) -> impl Iterator<Item = QueueKey> + '_ {
        self.queues.keys().copied()
    }

    pub(super) fn write(&self, out: &mut Writer) {
        out.u32(self.next_block);
        out.u32((self.free.len() + self.freed.len()) as u32);
        for &number in self.free.iter().chain(&self.freed) {
            out.u32(number);
        }
        out.u32(self.queues.len() as u32);
        for (key, queue) in &self.queues {
            out.u32(key.topic_id);
            out.u32(key.queue_id);
            out.u64(queue.min as u64);
            out.u64(queue.base as u64);
            out.u64(queue.last_store_timestamp as u64);
            out.u32(queue.blocks.len() as u32);
            for block in &queue.blocks {
                out.u32(block.number);
                out.u64(block.first_position);
            }
            out.u32(queue.tail.len() as u32);
            for entry in &queue.tail {
                out.u64(entry.position);
                out.u32(entry.size);
                out.u64(entry.tags_code as u64);
            }
        }
    }

    /// As [`ConsumeQueues::write`], of queues without entries that begin where these begin.
    pub(super) fn write_beginnings(&self, out: &mut Writer, is_open: impl Fn(u32) -> bool) {
        // No block, and none to be used again.
        out.u32(0);
        out.u32(0);
        let queues = || self.queues.iter().filter(|(key, _)| is_open(key.topic_id));
        out.u32(queues().count() as u32);
        for (key, queue) in queues() {
            out.u32(key.topic_id);
            out.u32(key.queue_id);
            out.u64(queue.min as u64);
            out.u64(queue.min as u64);
            out.u64(queue.last_store_timestamp as u64);
            out.u32(0);
            out.u32(0);
        }
    }

    /// A topic incarnation is opened here: its queues have no entry before.
    pub(super) fn begin_topic(&mut self, topic_id: u32) {
        let timestamps: Vec<(QueueKey, i64)> = self
            .queues
            .iter()
            .filter(|(key, _)| key.topic_id == topic_id)
            .map(|(key, queue)| (*key, queue.last_store_timestamp))
            .collect();
        self.drop_topic(topic_id);
        for (key, last_store_timestamp) in timestamps {
            let queue = Queue {
                last_store_timestamp,
                ..Queue::default()
            };
            self.queues.insert(key, queue);
        }
    }

    pub(super) fn read(input: &mut Reader<'_>) -> Result<Self, Short> {
        let mut table = Self {
            next_block: input.u32()?,
            ..Self::default()
        };
        for _ in 0..input.u32()? {
            table.free.push(input.u32()?);
        }
        for _ in 0..input.u32()? {
            let key = QueueKey {
                topic_id: input.u32()?,
                queue_id: input.u32()?,
            };
            let mut queue = Queue {
                min: input.u64()? as i64,
                base: input.u64()? as i64,
                last_store_timestamp: input.u64()? as i64,
                ..Queue::default()
            };
            for _ in 0..input.u32()? {
                queue.blocks.push_back(BlockRef {
                    number: input.u32()?,
                    first_position: input.u64()?,
                });
            }
            for _ in 0..input.u32()? {
                queue.tail.push(QueueEntry {
                    position: input.u64()?,
                    size: input.u32()?,
                    tags_code: input.u64()? as i64,
                });
            }
            queue.assigned = queue.max();
            table.queues.insert(key, queue);
        }
        Ok(table)
    }

    /// After recovery no message is appended and not durable: offsets go on where the durable ones end.
    pub fn forget_assigned(&mut self) {
        for queue in self.queues.values_mut() {
            queue.assigned = queue.max();
        }
    }
}

fn encode_block(key: QueueKey, first_offset: i64, entries: &[QueueEntry]) -> Block {
    let mut block = Vec::with_capacity(SECTOR_BYTES);
    block.extend_from_slice(&key.topic_id.to_be_bytes());
    block.extend_from_slice(&key.queue_id.to_be_bytes());
    block.extend_from_slice(&first_offset.to_be_bytes());
    for entry in entries {
        block.extend_from_slice(&entry.position.to_be_bytes());
        block.extend_from_slice(&entry.size.to_be_bytes());
        block.extend_from_slice(&entry.tags_code.to_be_bytes());
    }
    block.resize(SECTOR_BYTES, 0);
    block.into()
}

/// Entries of one queue, one after the other: as many as a pull usually takes.
pub type EntryRun = SmallVec<[QueueEntry; 32]>;

/// The entry at `index` of a block's bytes.
pub fn entry_of(block: &[u8], index: usize) -> QueueEntry {
    let at = BLOCK_HEADER_BYTES + index * ENTRY_BYTES;
    let bytes = &block[at..at + ENTRY_BYTES];
    let mut position = [0; 8];
    let mut size = [0; 4];
    let mut tags_code = [0; 8];
    position.copy_from_slice(&bytes[..8]);
    size.copy_from_slice(&bytes[8..12]);
    tags_code.copy_from_slice(&bytes[12..]);
    QueueEntry {
        position: u64::from_be_bytes(position),
        size: u32::from_be_bytes(size),
        tags_code: i64::from_be_bytes(tags_code),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test may panic.
mod tests {
    use super::*;

    const KEY: QueueKey = QueueKey {
        topic_id: 1,
        queue_id: 0,
    };

    fn entry(n: i64) -> QueueEntry {
        QueueEntry {
            position: n as u64 * 100,
            size: 100,
            tags_code: n,
        }
    }

    fn filled(count: i64) -> ConsumeQueues {
        let mut queues = ConsumeQueues::default();
        for n in 0..count {
            assert_eq!(queues.assign(KEY, 1), n);
            queues.push(KEY, n, &[entry(n)], n);
        }
        queues
    }

    fn look(queues: &ConsumeQueues, offset: i64) -> Option<QueueEntry> {
        match queues.lookup(KEY, offset) {
            Lookup::Entry(entry) => Some(entry),
            Lookup::InBlock(_) => panic!("nothing was written to a file"),
            Lookup::Nothing => None,
        }
    }

    #[test]
    fn entries_are_found_in_blocks_and_in_the_tail() {
        let count = 3 * BLOCK_ENTRIES as i64 + 7;
        let queues = filled(count);
        for n in 0..count {
            assert_eq!(look(&queues, n), Some(entry(n)));
        }
        assert_eq!(look(&queues, count), None);
        assert_eq!(look(&queues, -1), None);
        assert_eq!(queues.unwritten_count(), 3);
        assert_eq!(queues.bounds(KEY).max_offset, count);
    }

    #[test]
    fn a_run_is_what_single_lookups_find() {
        let total = 3 * BLOCK_ENTRIES as i64 + 7;
        let mut queues = filled(total);
        let first_block = queues.unwritten().remove(0);
        queues.on_written(first_block.0, &first_block.1);
        for offset in -1..=total {
            for count in [1, 2, 5, 1_000] {
                let mut run = EntryRun::new();
                let place = queues.lookup_run(KEY, offset, count, &mut run);
                match queues.lookup(KEY, offset) {
                    Lookup::InBlock(on_disk) => assert_eq!((place, run.len()), (Some(on_disk), 0)),
                    Lookup::Nothing => assert_eq!((place, run.len()), (None, 0)),
                    Lookup::Entry(_) => {
                        assert_eq!(place, None);
                        assert!((1..=count).contains(&run.len()));
                        for (at, found) in run.iter().enumerate() {
                            assert_eq!(look(&queues, offset + at as i64), Some(*found));
                        }
                    }
                }
            }
        }
        // In a block as far as it goes, in the tail to its end.
        for (offset, entries) in [
            (BLOCK_ENTRIES as i64 + 1, BLOCK_ENTRIES - 1),
            (total - 5, 5),
        ] {
            let mut run = EntryRun::new();
            queues.lookup_run(KEY, offset, 1_000, &mut run);
            assert_eq!(run.len(), entries);
        }
    }

    #[test]
    fn an_offset_is_visible_only_when_its_message_is_durable() {
        let mut queues = ConsumeQueues::default();
        assert_eq!((queues.assign(KEY, 1), queues.assign(KEY, 1)), (0, 1));
        assert_eq!(queues.bounds(KEY).max_offset, 0);
        queues.push(KEY, 0, &[entry(0)], 5);
        assert_eq!(queues.bounds(KEY).max_offset, 1);
        assert_eq!(queues.lookup(KEY, 1), Lookup::Nothing);
    }

    #[test]
    fn a_written_block_is_named_and_a_snapshot_brings_it_back() {
        let mut queues = filled(BLOCK_ENTRIES as i64 + 1);
        let blocks = queues.unwritten();
        queues.on_written(blocks[0].0, &blocks[0].1);
        assert_eq!(
            queues.lookup(KEY, 5),
            Lookup::InBlock(Place {
                number: 0,
                index: 5,
                previous: None,
                next: None
            })
        );
        assert_eq!(entry_of(&blocks[0].1, 5), entry(5));
        let mut out = Writer::default();
        queues.write(&mut out);
        let bytes = out.finish();
        let copy = ConsumeQueues::read(&mut Reader::new(&bytes)).unwrap();
        assert_eq!(copy.bounds(KEY), queues.bounds(KEY));
        assert_eq!(copy.lookup(KEY, 5), queues.lookup(KEY, 5));
        assert_eq!(
            look(&copy, BLOCK_ENTRIES as i64),
            look(&queues, BLOCK_ENTRIES as i64)
        );
    }

    #[test]
    fn trimming_frees_whole_blocks_and_names_the_border() {
        let count = 2 * BLOCK_ENTRIES as i64 + 10;
        let mut queues = filled(count);
        let start = (BLOCK_ENTRIES as u64 + 3) * 100;
        assert_eq!(queues.trim(start), vec![KEY]);
        assert_eq!(queues.bounds(KEY).min_offset, BLOCK_ENTRIES as i64);
        queues.set_min(KEY, BLOCK_ENTRIES as i64 + 3);
        assert_eq!(queues.bounds(KEY).min_offset, BLOCK_ENTRIES as i64 + 3);
        assert_eq!(queues.take_freed(), vec![0]);
        assert_eq!(queues.trim(count as u64 * 100), vec![]);
        assert_eq!(queues.bounds(KEY).min_offset, count);
        assert_eq!(queues.bounds(KEY).max_offset, count);
        queues.push(KEY, count, &[entry(count)], 0);
        assert_eq!(look(&queues, count), Some(entry(count)));
    }
}
