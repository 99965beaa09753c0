//! Positions of a log to bytes: from the tail cache, from chunks that were read before, or from the disk.
//!
//! The newest buffers of the log stay as they were written (the tail cache): a consumer that keeps up never meets the disk.
//! Behind that, chunks of [`CHUNK_BYTES`] are read with O_DIRECT, one read in flight per chunk however many
//! consumers want it, with a readahead that grows while a reader goes on in order. Reads run as background
//! tasks: a commit goes first.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;

use ahash::AHashMap;
use smallvec::SmallVec;

use crate::base::limits::SECTOR_BYTES;
use crate::base::notify::Notify;
use crate::io::aligned_buf::{PageBuf, PageSlice};
use crate::io::env::{DiskFile, Env, OpenMode};
use crate::store::read_gate::ReadGate;
use crate::store::segment::Segments;
use crate::store::tables::consume_queue::{Block, entry_of};
use crate::store::types::QueueEntry;

/// What is read from the log at once.
pub const CHUNK_BYTES: u64 = 128 << 10;
/// Chunks read ahead of a reader that goes on in order, at most.
const READAHEAD_CHUNKS_MAX: u64 = 8;
/// Readers in order that are told apart: consumers of several groups read one log at several places.
const STREAMS_MAX: usize = 8;
/// How often a chunk is read again that others pushed out before it was used.
const CHUNK_TRIES: u32 = 32;
/// Sectors of one index file.
const INDEX_FILE_BLOCKS: u32 = 16 << 10;

struct Cached {
    /// Log position of the buffer's first byte.
    start: u64,
    /// Nothing before this is taken from it.
    from: u64,
    pages: Rc<PageBuf>,
}

enum Chunk {
    /// `stale`: the log has written into it since the read began, so it is read once more.
    Loading {
        stale: bool,
    },
    Ready {
        pages: Rc<PageBuf>,
        used: u64,
    },
    Failed {
        error: Rc<str>,
    },
}

/// A reader that may go on in order.
struct Stream {
    /// Its last chunk.
    last: u64,
    /// Chunks to read ahead of it.
    window: u64,
    /// When it last read: the oldest makes room for a new one.
    used: u64,
}

/// Reads of one log. See the module's page.
pub struct LogReader<E: Env> {
    env: E,
    segments: Rc<Segments<E>>,
    tail: RefCell<VecDeque<Cached>>,
    tail_bytes: Cell<usize>,
    tail_bytes_max: usize,
    chunks: RefCell<AHashMap<u64, Chunk>>,
    chunks_max: usize,
    /// Grows with each use: the oldest chunk goes first.
    clock: Cell<u64>,
    loaded: Notify,
    gate: ReadGate,
    streams: RefCell<Vec<Stream>>,
    index_directory: PathBuf,
    index_files: RefCell<AHashMap<u32, E::File>>,
    blocks: RefCell<AHashMap<u32, (Block, u64)>>,
    blocks_max: usize,
}

impl<E: Env> LogReader<E> {
    /// Budgets in bytes: of the tail cache, of chunks, of index blocks.
    pub fn new(
        env: E,
        segments: Rc<Segments<E>>,
        index_directory: PathBuf,
        tail_bytes_max: usize,
        chunk_bytes_max: usize,
        block_bytes_max: usize,
    ) -> Rc<Self> {
        Rc::new(Self {
            env,
            segments,
            tail: RefCell::default(),
            tail_bytes: Cell::new(0),
            tail_bytes_max,
            chunks: RefCell::default(),
            chunks_max: (chunk_bytes_max / CHUNK_BYTES as usize).max(4),
            clock: Cell::new(0),
            loaded: Notify::default(),
            gate: ReadGate::default(),
            streams: RefCell::default(),
            index_directory,
            index_files: RefCell::default(),
            blocks: RefCell::default(),
            blocks_max: (block_bytes_max / SECTOR_BYTES).max(16),
        })
    }

    /// Tells when commits of the log are under way.
    pub fn gate(&self) -> &ReadGate {
        &self.gate
    }

    fn tick(&self) -> u64 {
        self.clock.set(self.clock.get() + 1);
        self.clock.get()
    }

    /// A sealed buffer whose first byte is at `start`. Buffers come in order; they overlap by a partial sector at most.
    pub fn add_tail(&self, start: u64, pages: Rc<PageBuf>) {
        self.tail_bytes
            .set(self.tail_bytes.get() + pages.memory_bytes());
        self.tail.borrow_mut().push_back(Cached {
            start,
            from: start,
            pages,
        });
    }

    /// Drops the oldest buffers over the budget that lie below `durable`.
    pub fn evict_tail(&self, durable: u64) {
        let mut tail = self.tail.borrow_mut();
        while self.tail_bytes.get() > self.tail_bytes_max {
            match tail.front() {
                Some(oldest) if oldest.start + (oldest.pages.len() as u64) <= durable => {
                    self.tail_bytes
                        .set(self.tail_bytes.get() - oldest.pages.memory_bytes());
                    tail.pop_front();
                }
                _ => break,
            }
        }
    }

    /// What lies before `end` is on the disk with another content than a buffer of the tail may have: a log that was opened over
    /// damage begins its first buffer with a copy of it.
    pub fn forget_tail(&self, end: u64) {
        for cached in self.tail.borrow_mut().iter_mut() {
            cached.from = cached.from.max(end);
        }
    }

    /// Bytes of chunks that were read from the log.
    pub fn chunk_bytes(&self) -> usize {
        self.chunks.borrow().len() * CHUNK_BYTES as usize
    }

    /// Bytes of index blocks in memory.
    pub fn block_bytes(&self) -> usize {
        self.blocks.borrow().len() * SECTOR_BYTES
    }

    /// Bytes of the tail cache.
    pub fn tail_bytes(&self) -> usize {
        self.tail_bytes.get()
    }

    /// Where the tail cache begins; the largest position if it is empty.
    pub fn tail_start(&self) -> u64 {
        self.tail
            .borrow()
            .front()
            .map_or(u64::MAX, |oldest| oldest.start)
    }

    /// The bytes at `position`, if they are in the tail cache.
    fn in_tail(&self, position: u64, bytes: usize) -> Option<PageSlice> {
        let tail = self.tail.borrow();
        // Two neighbours can both hold a shared sector's front; the later one has all of a record that begins in it.
        let after = tail.partition_point(|cached| cached.start <= position);
        for cached in tail.range(..after).rev().take(2) {
            let at = (position - cached.start) as usize;
            if position >= cached.from && at + bytes <= cached.pages.len() {
                return Some(PageSlice::new(cached.pages.clone(), at, bytes));
            }
        }
        None
    }

    /// A durable record, as one slice or several. The caller knows from the index that it is there.
    pub async fn read(
        self: &Rc<Self>,
        position: u64,
        bytes: usize,
    ) -> io::Result<SmallVec<[PageSlice; 2]>> {
        if let Some(slice) = self.in_tail(position, bytes) {
            return Ok(SmallVec::from_iter([slice]));
        }
        let mut slices = SmallVec::new();
        let mut at = position;
        let end = position + bytes as u64;
        while at < end {
            let number = at / CHUNK_BYTES;
            let chunk = self.chunk(number).await?;
            let offset = at % CHUNK_BYTES;
            let available = (chunk.len() as u64).saturating_sub(offset).min(end - at);
            if available == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    format!("the log has no byte at {at}"),
                ));
            }
            slices.push(PageSlice::new(chunk, offset as usize, available as usize));
            at += available;
        }
        Ok(slices)
    }

    /// The same as one contiguous slice; a record over the border of chunks is copied.
    pub async fn read_whole(self: &Rc<Self>, position: u64, bytes: usize) -> io::Result<PageSlice> {
        let slices = self.read(position, bytes).await?;
        if let [one] = &slices[..] {
            return Ok(one.clone());
        }
        let mut copy = Vec::with_capacity(bytes);
        for slice in &slices {
            copy.extend_from_slice(slice);
        }
        Ok(PageSlice::new(Rc::new(PageBuf::from_heap(copy)), 0, bytes))
    }

    /// Begins to read what somebody who goes on in order will ask for: the whole chunks of `range` that are on the disk only,
    /// as many as leave room for other readers.
    pub fn read_ahead(self: &Rc<Self>, range: std::ops::Range<u64>) {
        let first = range.start / CHUNK_BYTES;
        let end = range.end.min(self.tail_start()) / CHUNK_BYTES;
        for number in first..end.min(first + self.chunks_max as u64 / 4) {
            self.start_load(number);
        }
    }

    /// How many chunks behind this one are worth reading before somebody asks for them: none before a reader goes on in order,
    /// and all readers together no more than half of the cache.
    fn readahead(&self, number: u64) -> u64 {
        let used = self.tick();
        let mut streams = self.streams.borrow_mut();
        if let Some(stream) = streams.iter_mut().find(|stream| stream.last == number) {
            stream.used = used;
            return 0;
        }
        let in_order = streams
            .iter_mut()
            .find(|stream| stream.last.checked_add(1) == Some(number));
        if let Some(stream) = in_order {
            let window = (stream.window * 2).clamp(1, READAHEAD_CHUNKS_MAX);
            *stream = Stream {
                last: number,
                window,
                used,
            };
            let running = streams.iter().filter(|stream| stream.window > 0).count();
            return window.min((self.chunks_max / 2 / running.max(1)) as u64);
        }
        if streams.len() == STREAMS_MAX {
            let oldest = (0..STREAMS_MAX).min_by_key(|at| streams[*at].used);
            oldest.map(|at| streams.swap_remove(at));
        }
        streams.push(Stream {
            last: number,
            window: 0,
            used,
        });
        0
    }

    async fn chunk(self: &Rc<Self>, number: u64) -> io::Result<Rc<PageBuf>> {
        // Never beyond what is surely written: the last chunks are in the tail cache or read one by one.
        let end = self.segments.allocated_end();
        for ahead in 1..=self.readahead(number) {
            if (number + ahead + 1) * CHUNK_BYTES + self.tail_bytes.get() as u64 <= end {
                self.start_load(number + ahead);
            }
        }
        // Other readers may push it out again before this one runs: then it is read once more.
        for _ in 0..CHUNK_TRIES {
            self.start_load(number);
            self.loaded
                .until(|| {
                    !matches!(
                        self.chunks.borrow().get(&number),
                        Some(Chunk::Loading { .. })
                    )
                })
                .await;
            let tick = self.tick();
            let mut chunks = self.chunks.borrow_mut();
            match chunks.get_mut(&number) {
                Some(Chunk::Ready { pages, used }) => {
                    *used = tick;
                    return Ok(pages.clone());
                }
                Some(Chunk::Failed { error }) => {
                    let error = io::Error::other(error.to_string());
                    chunks.remove(&number);
                    return Err(error);
                }
                _ => {}
            }
        }
        Err(io::Error::other(
            "a chunk is pushed out of the read cache faster than it is read: give the broker more --memory",
        ))
    }

    /// Begins to read a chunk unless it is there or on its way.
    fn start_load(self: &Rc<Self>, number: u64) {
        if self.chunks.borrow().contains_key(&number) {
            return;
        }
        self.chunks
            .borrow_mut()
            .insert(number, Chunk::Loading { stale: false });
        let reader = self.clone();
        self.env.spawn_background(async move {
            let result = loop {
                let result = reader.load(number).await;
                match reader.chunks.borrow_mut().get_mut(&number) {
                    Some(Chunk::Loading { stale }) if *stale => *stale = false,
                    _ => break result,
                }
            };
            let used = reader.tick();
            let mut chunks = reader.chunks.borrow_mut();
            let chunk = match result {
                Ok(pages) => Chunk::Ready {
                    pages: Rc::new(pages),
                    used,
                },
                Err(error) => Chunk::Failed {
                    error: error.to_string().into(),
                },
            };
            chunks.insert(number, chunk);
            while chunks.len() > reader.chunks_max {
                let oldest = chunks
                    .iter()
                    .filter_map(|(&number, chunk)| match chunk {
                        Chunk::Ready { used, .. } => Some((*used, number)),
                        _ => None,
                    })
                    .min();
                match oldest {
                    Some((_, oldest)) if oldest != number => {
                        chunks.remove(&oldest);
                    }
                    _ => break,
                }
            }
            drop(chunks);
            reader.loaded.notify();
        });
    }

    async fn load(&self, number: u64) -> io::Result<PageBuf> {
        let position = number * CHUNK_BYTES;
        let gone = || {
            io::Error::new(
                io::ErrorKind::NotFound,
                format!("the segment with position {position} is gone"),
            )
        };
        let (file, at) = self.segments.locate(position).ok_or_else(gone)?;
        let bytes = CHUNK_BYTES.min(self.segments.segment_bytes() - at);
        let _turn = self.gate.turn(&self.env).await;
        file.read_at(at, bytes as usize).await
    }

    /// Forgets chunks that the log has written into since, and all below `start`.
    pub fn forget(&self, written: std::ops::Range<u64>, start: u64) {
        let (first, last) = (written.start / CHUNK_BYTES, written.end / CHUNK_BYTES);
        let mut chunks = self.chunks.borrow_mut();
        if chunks.is_empty() {
            return;
        }
        chunks.retain(|number, chunk| {
            if !(first..=last).contains(number) {
                return true;
            }
            match chunk {
                Chunk::Loading { stale } => {
                    *stale = true;
                    true
                }
                _ => false,
            }
        });
        if start > 0 {
            chunks.retain(|&number, chunk| {
                (number + 1) * CHUNK_BYTES > start || matches!(chunk, Chunk::Loading { .. })
            });
        }
    }

    async fn index_file(&self, file: u32, create: bool) -> io::Result<E::File> {
        if let Some(open) = self.index_files.borrow().get(&file) {
            return Ok(open.clone());
        }
        let path = self.index_directory.join(format!("{file:08}.idx"));
        let open = self
            .env
            .open(
                &path,
                OpenMode {
                    create,
                    flush_each_write: false,
                },
            )
            .await?;
        self.index_files.borrow_mut().insert(file, open.clone());
        Ok(open)
    }

    /// Writes index blocks, neighbours in one go. Not flushed.
    pub async fn write_blocks(&self, blocks: &[(u32, Block)]) -> io::Result<()> {
        let mut at = 0;
        while at < blocks.len() {
            let first = blocks[at].0;
            let file_number = first / INDEX_FILE_BLOCKS;
            let mut count = 1;
            while count < 64
                && at + count < blocks.len()
                && blocks[at + count].0 == first + count as u32
                && blocks[at + count].0 / INDEX_FILE_BLOCKS == file_number
            {
                count += 1;
            }
            let mut pages = self.env.alloc(count * SECTOR_BYTES);
            for (slot, (_, block)) in pages
                .as_mut()
                .chunks_exact_mut(SECTOR_BYTES)
                .zip(&blocks[at..at + count])
            {
                slot.copy_from_slice(block);
            }
            let file = self.index_file(file_number, true).await?;
            let position = u64::from(first % INDEX_FILE_BLOCKS) * SECTOR_BYTES as u64;
            file.write_at(Rc::new(pages), position).await?;
            // What was read of a block before it was freed and used again is stale now.
            for (number, _) in &blocks[at..at + count] {
                self.blocks.borrow_mut().remove(number);
            }
            at += count;
        }
        Ok(())
    }

    /// Flushes all index files.
    pub async fn sync_blocks(&self) -> io::Result<()> {
        let files: Vec<E::File> = self.index_files.borrow().values().cloned().collect();
        for file in files {
            file.sync().await?;
        }
        self.env.sync_dir(&self.index_directory).await
    }

    /// An entry of a written index block.
    pub async fn block_entry(&self, number: u32, index: usize) -> io::Result<QueueEntry> {
        let tick = self.tick();
        if let Some((block, used)) = self.blocks.borrow_mut().get_mut(&number) {
            *used = tick;
            return Ok(entry_of(block, index));
        }
        let file = self.index_file(number / INDEX_FILE_BLOCKS, false).await?;
        let position = u64::from(number % INDEX_FILE_BLOCKS) * SECTOR_BYTES as u64;
        let pages = file.read_at(position, SECTOR_BYTES).await?;
        if pages.len() < SECTOR_BYTES {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("index block {number} is not in its file"),
            ));
        }
        let block: Block = Rc::from(&pages[..]);
        let entry = entry_of(&block, index);
        let mut blocks = self.blocks.borrow_mut();
        if blocks.len() >= self.blocks_max {
            let half = blocks.len() / 2;
            let mut ages: Vec<u64> = blocks.values().map(|(_, used)| *used).collect();
            let (_, median, _) = ages.select_nth_unstable(half);
            let median = *median;
            blocks.retain(|_, (_, used)| *used > median);
        }
        blocks.insert(number, (block, tick));
        Ok(entry)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::io::sim::{OpKind, SimEnv, SimOptions, SimWorld};
    use crate::store::segment::Ahead;

    const SEGMENT_BYTES: u64 = 16 << 20;

    /// Reads chunks one after the other and tells how many reads of the disk that took, readahead included.
    fn reads_for(chunks_max: u64, numbers: &[u64]) -> u64 {
        let world = SimWorld::new(1, SimOptions::default());
        let env = world.env();
        let reads = || world.with_disk(0, |disk| disk.count_of(OpKind::Read));
        world.block_on(async {
            let directory = PathBuf::from("/data/log");
            env.create_dir(&directory).await.unwrap();
            let segments =
                Segments::open(env.clone(), directory.clone(), SEGMENT_BYTES, true).await;
            let segments = Rc::new(segments.unwrap());
            for _ in 0..4 {
                segments.extend(Ahead::Reserved).await.unwrap();
            }
            let budget = (chunks_max * CHUNK_BYTES) as usize;
            let reader: Rc<LogReader<SimEnv>> =
                LogReader::new(env.clone(), segments, directory, 0, budget, 0);
            let before = reads();
            for number in numbers {
                reader.chunk(*number).await.unwrap();
                env.sleep(std::time::Duration::from_millis(10)).await;
            }
            reads() - before
        })
    }

    #[test]
    fn each_of_several_readers_that_go_on_in_order_is_read_ahead_for() {
        // Nobody goes on in order.
        assert_eq!(reads_for(64, &[10, 200, 90, 300, 40]), 5);
        assert_eq!(reads_for(64, &[10, 10, 10]), 1);
        // Windows of 1, 2, 4, 8 and 8 chunks.
        let one = reads_for(64, &[10, 11, 12, 13, 14, 15]);
        assert_eq!(one, 6 + 8);
        // Two in turns: as much for each of them.
        let two = reads_for(64, &[10, 200, 11, 201, 12, 202, 13, 203, 14, 204, 15, 205]);
        assert_eq!(two, 2 * one);
        // A small cache is not filled by it: 2 chunks for one reader, 1 for each of two.
        assert_eq!(reads_for(4, &[10, 11, 12, 13]), 4 + 2);
        assert_eq!(reads_for(4, &[10, 200, 11, 201, 12, 202]), 6 + 2);
    }
}
