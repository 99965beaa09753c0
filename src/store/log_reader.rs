//! Positions of a log to bytes: from the tail cache, from chunks that were read before, or from the disk.
//!
//! The newest buffers of the log stay as they were written (the tail cache): a consumer that keeps up never meets the disk.
//! Behind that, chunks of [`CHUNK_BYTES`] are read with O_DIRECT, one read in flight per chunk however many
//! consumers want it, with a readahead that grows while a reader goes on in order. Reads run as background
//! tasks: a commit goes first.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

use ahash::AHashMap;
use smallvec::SmallVec;

use crate::base::limits::READ_BYTES;
use crate::base::notify::Notify;
use crate::io::aligned_buf::{PageBuf, PageSlice};
use crate::io::env::{DiskFile, Env};
use crate::store::read_gate::ReadGate;
use crate::store::segment::Segments;

/// What is read from the log at once.
pub const CHUNK_BYTES: u64 = READ_BYTES as u64;
/// Chunks read ahead of a reader that goes on in order, at most.
const READAHEAD_CHUNKS_MAX: u64 = 8;
/// They are asked for so many at a time, which the kernel makes one request of the device.
const READAHEAD_STEP_CHUNKS: u64 = 4;
/// So many chunks are kept in any case; for more there has to be memory that is ready.
const CHUNKS_MIN: usize = 32;
/// Readers in order that are told apart: consumers of several groups read one log at several places.
const STREAMS_MAX: usize = 8;
/// Uses that are remembered for each chunk that there may be, before those that do not count are thrown away.
const ORDER_PER_CHUNK_MAX: usize = 4;
/// How often a chunk is read again that others pushed out before it was used.
const CHUNK_TRIES: u32 = 32;

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
        /// When it was used last.
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

/// Of a failed chunk every use is the last: nobody has asked for it yet.
fn is_last_use(chunks: &AHashMap<u64, Chunk>, number: u64, time: u64) -> bool {
    match chunks.get(&number) {
        Some(Chunk::Ready { used, .. }) => *used == time,
        Some(Chunk::Failed { .. }) => true,
        _ => false,
    }
}

/// Reads of one log. See the module's page.
pub struct LogReader<E: Env> {
    env: E,
    segments: Rc<Segments<E>>,
    tail: RefCell<VecDeque<Cached>>,
    /// Which of them was asked for last; it may be another one by now.
    last_found: Cell<usize>,
    tail_bytes: Cell<usize>,
    tail_bytes_max: usize,
    chunks: RefCell<AHashMap<u64, Chunk>>,
    chunks_max: usize,
    /// Uses of chunks by their time, the oldest first. One that is not the last of its chunk does not count any more.
    order: RefCell<VecDeque<(u64, u64)>>,
    /// Grows with each use.
    clock: Cell<u64>,
    loaded: Notify,
    gate: ReadGate,
    streams: RefCell<Vec<Stream>>,
}

impl<E: Env> LogReader<E> {
    /// Budgets in bytes: of the tail cache, of chunks.
    pub fn new(
        env: E,
        segments: Rc<Segments<E>>,
        tail_bytes_max: usize,
        chunk_bytes_max: usize,
    ) -> Rc<Self> {
        Rc::new(Self {
            env,
            segments,
            tail: RefCell::default(),
            last_found: Cell::new(0),
            tail_bytes: Cell::new(0),
            tail_bytes_max,
            chunks: RefCell::default(),
            chunks_max: (chunk_bytes_max / CHUNK_BYTES as usize).max(4),
            order: RefCell::default(),
            clock: Cell::new(0),
            loaded: Notify::default(),
            gate: ReadGate::default(),
            streams: RefCell::default(),
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
        // Most of what is not there lies before all of it.
        tail.front().filter(|oldest| oldest.start <= position)?;
        // A reader goes on where it was, so that its buffer is mostly the one that was asked for last.
        let is_last_before = |at: usize| {
            tail.get(at).is_some_and(|cached| cached.start <= position)
                && tail.get(at + 1).is_none_or(|next| next.start > position)
        };
        let after = match self.last_found.get() {
            last if is_last_before(last) => last + 1,
            _ => tail.partition_point(|cached| cached.start <= position),
        };
        self.last_found.set(after.saturating_sub(1));
        // Two neighbours can both hold a shared sector's front; the later one has all of a record that begins in it.
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
        // What is read ahead must not push out what is wanted now.
        let there = self.use_chunk(number);
        // Never beyond what is surely written: the last chunks are in the tail cache or read one by one.
        let end = self.segments.allocated_end();
        let window = match self.readahead(number) {
            // A whole window is there, so it waits until some can be read at once.
            READAHEAD_CHUNKS_MAX if !number.is_multiple_of(READAHEAD_STEP_CHUNKS) => 0,
            window => window,
        };
        for ahead in 1..=window {
            if (number + ahead + 1) * CHUNK_BYTES + self.tail_bytes.get() as u64 <= end {
                self.start_load(number + ahead);
            }
        }
        if let Some(pages) = there {
            return Ok(pages);
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
            if let Some(pages) = self.use_chunk(number) {
                return Ok(pages);
            }
            let mut chunks = self.chunks.borrow_mut();
            if let Some(Chunk::Failed { error }) = chunks.get(&number) {
                let error = io::Error::other(error.to_string());
                chunks.remove(&number);
                return Err(error);
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
        self.make_room();
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
            let chunk = match result {
                Ok(pages) => Chunk::Ready {
                    pages: Rc::new(pages),
                    used,
                },
                Err(error) => Chunk::Failed {
                    error: error.to_string().into(),
                },
            };
            reader.chunks.borrow_mut().insert(number, chunk);
            reader.order.borrow_mut().push_back((number, used));
            reader.loaded.notify();
        });
    }

    /// Pushes out the chunks that were used longest ago, if one more would be too many, or has no memory that is ready.
    fn make_room(&self) {
        let mut chunks = self.chunks.borrow_mut();
        let mut order = self.order.borrow_mut();
        let is_small = chunks.len() < CHUNKS_MIN.min(self.chunks_max);
        let kept_max = match self.env.read_memory_is_ready() || is_small {
            true => self.chunks_max - 1,
            false => self.chunks_max.min(chunks.len()) - 1,
        };
        while chunks.len() > kept_max {
            let Some((number, time)) = order.pop_front() else {
                break;
            };
            if is_last_use(&chunks, number, time) {
                chunks.remove(&number);
            }
        }
    }

    /// A chunk that is there.
    fn use_chunk(&self, number: u64) -> Option<Rc<PageBuf>> {
        let mut chunks = self.chunks.borrow_mut();
        let Some(Chunk::Ready { pages, used }) = chunks.get_mut(&number) else {
            return None;
        };
        *used = self.tick();
        let (pages, time) = (pages.clone(), *used);
        let mut order = self.order.borrow_mut();
        match order.back_mut() {
            // A reader in order uses it for each of its records.
            Some(last) if last.0 == number => last.1 = time,
            _ => order.push_back((number, time)),
        }
        if order.len() > ORDER_PER_CHUNK_MAX * self.chunks_max {
            order.retain(|&(number, time)| is_last_use(&chunks, number, time));
        }
        Some(pages)
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
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::io::sim::{OpKind, SimEnv, SimOptions, SimWorld};
    use crate::store::segment::Ahead;

    const SEGMENT_BYTES: u64 = 16 << 20;

    fn with_reader<T>(
        chunks_max: u64,
        memory_is_slow: bool,
        test: impl AsyncFnOnce(SimEnv, Rc<LogReader<SimEnv>>) -> T,
    ) -> (T, u64) {
        let options = SimOptions {
            memory_is_slow,
            ..SimOptions::default()
        };
        let world = SimWorld::new(1, options);
        let env = world.env();
        let reads = || world.with_disk(0, |disk| disk.count_of(OpKind::Read));
        world.block_on(async {
            let directory = PathBuf::from("/data/log");
            env.create_dir(&directory).await.unwrap();
            let segments =
                Segments::open(env.clone(), directory.clone(), SEGMENT_BYTES, true).await;
            let segments = Rc::new(segments.unwrap());
            for _ in 0..4 {
                segments.extend(Ahead::Reserved, || 0).await.unwrap();
            }
            let budget = (chunks_max * CHUNK_BYTES) as usize;
            let reader = LogReader::new(env.clone(), segments, 0, budget);
            let before = reads();
            let result = test(env.clone(), reader).await;
            (result, reads() - before)
        })
    }

    /// Reads chunks one after the other and tells how many reads of the disk that took, readahead included.
    fn reads_for(chunks_max: u64, numbers: &[u64]) -> u64 {
        let test = async |env: SimEnv, reader: Rc<LogReader<SimEnv>>| {
            for number in numbers {
                reader.chunk(*number).await.unwrap();
                env.sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        with_reader(chunks_max, false, test).1
    }

    #[test]
    fn each_of_several_readers_that_go_on_in_order_is_read_ahead_for() {
        // Nobody goes on in order.
        assert_eq!(reads_for(64, &[10, 200, 90, 300, 40]), 5);
        assert_eq!(reads_for(64, &[10, 10, 10]), 1);
        // Windows of 1, 2, 4 and 8 chunks; a whole one is read on in steps of four: 16 asks for 18 to 24.
        let one = reads_for(64, &[10, 11, 12, 13, 14, 15, 16, 17]);
        assert_eq!(one, 15, "chunks 10 to 24");
        // Two in turns: as much for each of them.
        let two = reads_for(
            64,
            &[
                10, 210, 11, 211, 12, 212, 13, 213, 14, 214, 15, 215, 16, 216, 17, 217,
            ],
        );
        assert_eq!(two, 15 + 15);
        // A small cache is not filled by it: 2 chunks for one reader, 1 for each of two.
        assert_eq!(reads_for(4, &[10, 11, 12, 13]), 4 + 2);
        assert_eq!(reads_for(4, &[10, 200, 11, 201, 12, 202]), 6 + 2);
    }

    #[test]
    fn a_record_is_read_from_the_last_buffer_that_begins_before_it_wherever_the_reader_was() {
        const SECTOR: u64 = 4 << 10;
        with_reader(1, false, async |env, reader| {
            // Two sectors each; a buffer's last one is the next buffer's first.
            let add = |number: u8| {
                let mut pages = env.alloc(2 * SECTOR as usize);
                pages.as_mut().fill(number);
                reader.add_tail(u64::from(number) * SECTOR, Rc::new(pages));
            };
            (0..40).for_each(add);
            let found = |position| reader.in_tail(position, 100).map(|slice| slice[0]);
            for positions in [[100, 5_000], [5_000, 100], [38 * SECTOR, 38 * SECTOR + 9]] {
                for position in positions {
                    assert_eq!(found(position), Some((position / SECTOR) as u8));
                }
            }
            // Others go before the one that was asked for, and come behind it.
            reader.evict_tail(40 * SECTOR);
            assert_eq!(found(39 * SECTOR + 5), Some(39));
            add(40);
            assert_eq!(found(40 * SECTOR), Some(40));
            assert_eq!(found(39 * SECTOR), Some(39));
            assert_eq!(found(0), None);
        });
    }

    #[test]
    fn the_chunk_that_was_used_longest_ago_goes_first() {
        let again: Vec<u64> = (0..40).map(|number| 3 * number).collect();
        // All fit, however often they are used.
        let mut order = again.clone();
        for _ in 0..20 {
            order.extend(&again);
        }
        assert_eq!(reads_for(64, &order), 40);
        // One more than there is room for, in a circle: none is found again.
        let circle: Vec<u64> = (0..3 * 41).map(|at| 3 * (at % 41)).collect();
        assert_eq!(reads_for(40, &circle), 3 * 41);
        // One of them is used in between all the time, and stays.
        let with_one: Vec<u64> = circle.iter().flat_map(|&number| [number, 300]).collect();
        assert_eq!(reads_for(41, &with_one), 3 * 41 + 1);
    }

    #[test]
    fn what_was_read_ahead_is_there_when_its_reader_comes() {
        // Much longer than the cache: each is read once, and the last step ahead of the end.
        let numbers: Vec<u64> = (0..256).collect();
        let end = 252 + READAHEAD_CHUNKS_MAX + 1;
        assert_eq!(reads_for(64, &numbers), end);
        assert_eq!(reads_for(CHUNKS_MIN as u64, &numbers), end);
    }

    #[test]
    fn without_memory_that_is_ready_a_chunk_takes_the_place_of_an_older_one() {
        let fill = async |_: SimEnv, reader: Rc<LogReader<SimEnv>>| {
            for number in 0..100 {
                reader.chunk(4 * number).await.unwrap();
            }
            reader.chunk_bytes() / CHUNK_BYTES as usize
        };
        assert_eq!(with_reader(64, false, fill).0, 64);
        assert_eq!(with_reader(64, true, fill).0, CHUNKS_MIN);
        assert_eq!(with_reader(8, true, fill).0, 8);
    }

    #[test]
    fn uses_that_do_not_count_any_more_are_thrown_away() {
        let forget = async |_: SimEnv, reader: Rc<LogReader<SimEnv>>| {
            for _ in 0..1000 {
                reader.chunk(10).await.unwrap();
                reader.chunk(20).await.unwrap();
                reader.forget(10 * CHUNK_BYTES..10 * CHUNK_BYTES, 0);
            }
            reader.order.borrow().len()
        };
        assert!(with_reader(8, false, forget).0 <= ORDER_PER_CHUNK_MAX * 8);
    }
}
