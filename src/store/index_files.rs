//! The files of a log's queue index, and what was read from them.
//!
//! A block is one sector of a file with [`FILE_BLOCKS`] of them (`tables/consume_queue.rs` has its layout). Queues fill their blocks side
//! by side, so neighbours in a file are of the same time: for a reader that goes on in order [`GROUP_BLOCKS`] are read at once,
//! before it needs them; for others one.

use std::cell::{Cell, RefCell};
use std::io;
use std::path::PathBuf;
use std::rc::Rc;

use ahash::{AHashMap, AHashSet};

use crate::base::limits::SECTOR_BYTES;
use crate::base::notify::Notify;
use crate::io::aligned_buf::PageBuf;
use crate::io::env::{DiskFile, Env, OpenMode};
use crate::store::tables::consume_queue::{BLOCK_ENTRIES, Block, EntryRun, Place, entry_of};
use crate::store::types::QueueEntry;

/// Sectors of one file.
const FILE_BLOCKS: u32 = 16 << 10;
/// Neighbours that are read for a reader in order, itself included.
const GROUP_BLOCKS: u32 = 8;
const _: () = assert!(FILE_BLOCKS.is_multiple_of(GROUP_BLOCKS));
/// Blocks that are written at once.
const WRITE_BLOCKS_MAX: usize = 64;
/// A reader that has come to this entry of a block will want the next one.
const AHEAD_ENTRY: usize = BLOCK_ENTRIES / 4;

/// Blocks by number, with their last use.
type Blocks = AHashMap<u32, (Block, u64)>;

/// See the module's page.
pub struct IndexFiles<E: Env> {
    env: E,
    directory: PathBuf,
    files: RefCell<AHashMap<u32, E::File>>,
    blocks: RefCell<Blocks>,
    blocks_max: usize,
    /// Grows with each use.
    clock: Cell<u64>,
    /// Groups that are being read.
    reading: RefCell<AHashSet<u32>>,
    was_read: Notify,
    /// Beginnings and ends of writes: what was read meanwhile of blocks that no queue names may be old.
    writes: Cell<u64>,
}

impl<E: Env> IndexFiles<E> {
    /// Keeps as many blocks in memory as `bytes_max` has room for, and a few in any case.
    pub fn new(env: E, directory: PathBuf, bytes_max: usize) -> Rc<Self> {
        Rc::new(Self {
            env,
            directory,
            files: RefCell::default(),
            blocks: RefCell::default(),
            blocks_max: (bytes_max / SECTOR_BYTES).max(4 * GROUP_BLOCKS as usize),
            clock: Cell::new(0),
            reading: RefCell::default(),
            was_read: Notify::default(),
            writes: Cell::new(0),
        })
    }

    /// Bytes of blocks in memory.
    pub fn bytes(&self) -> usize {
        self.blocks.borrow().len() * SECTOR_BYTES
    }

    async fn file(&self, number: u32, create: bool) -> io::Result<E::File> {
        if let Some(open) = self.files.borrow().get(&number) {
            return Ok(open.clone());
        }
        let path = self.directory.join(format!("{number:08}.idx"));
        let mode = OpenMode {
            create,
            flush_each_write: false,
        };
        let open = self.env.open(&path, mode).await?;
        self.files.borrow_mut().insert(number, open.clone());
        Ok(open)
    }

    /// Writes blocks, neighbours in one go. Not flushed.
    pub async fn write(&self, blocks: &[(u32, Block)]) -> io::Result<()> {
        self.writes.set(self.writes.get() + 1);
        let result = self.write_all(blocks).await;
        self.writes.set(self.writes.get() + 1);
        // What was read of a block before it was freed and used again is stale now.
        let mut read = self.blocks.borrow_mut();
        for (number, _) in blocks {
            read.remove(number);
        }
        result
    }

    async fn write_all(&self, blocks: &[(u32, Block)]) -> io::Result<()> {
        let mut at = 0;
        while at < blocks.len() {
            let first = blocks[at].0;
            let file_number = first / FILE_BLOCKS;
            let mut count = 1;
            while count < WRITE_BLOCKS_MAX
                && at + count < blocks.len()
                && blocks[at + count].0 == first + count as u32
                && blocks[at + count].0 / FILE_BLOCKS == file_number
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
            let file = self.file(file_number, true).await?;
            file.write_at(Rc::new(pages), place_of(first)).await?;
            at += count;
        }
        Ok(())
    }

    /// Flushes all files.
    pub async fn sync(&self) -> io::Result<()> {
        let files: Vec<E::File> = self.files.borrow().values().cloned().collect();
        for file in files {
            file.sync().await?;
        }
        self.env.sync_dir(&self.directory).await
    }

    /// An entry of a written block.
    pub async fn entry(self: &Rc<Self>, place: Place) -> io::Result<QueueEntry> {
        if let Some(entry) = self.entry_in_memory(place) {
            if place.index == AHEAD_ENTRY {
                self.read_ahead(place);
            }
            return Ok(entry);
        }
        if place.previous.is_some_and(|block| self.is_in_memory(block)) {
            self.read_group(place.number / GROUP_BLOCKS).await;
            if let Some(entry) = self.entry_in_memory(place) {
                return Ok(entry);
            }
        }
        let pages = self.read(place.number, 1).await?;
        if pages.len() < SECTOR_BYTES {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("index block {} is not in its file", place.number),
            ));
        }
        let block: Block = Rc::from(&pages[..]);
        let entry = entry_of(&block, place.index);
        self.keep(place.number, block);
        Ok(entry)
    }

    /// Appends the entries of a written block from a place on, no more than `count`.
    pub async fn entries(
        self: &Rc<Self>,
        place: Place,
        count: usize,
        run: &mut EntryRun,
    ) -> io::Result<()> {
        run.push(self.entry(place).await?);
        let more = place.index + 1..BLOCK_ENTRIES.min(place.index + count);
        if more.contains(&AHEAD_ENTRY) {
            self.read_ahead(place);
        }
        if let Some((block, _)) = self.blocks.borrow().get(&place.number) {
            run.extend(more.map(|index| entry_of(block, index)));
        }
        Ok(())
    }

    /// A reader has come so far that it will want the next block soon.
    fn read_ahead(self: &Rc<Self>, place: Place) {
        if let Some(next) = place.next
            && !self.is_in_memory(next)
        {
            let files = self.clone();
            self.env
                .spawn(async move { files.read_group(next / GROUP_BLOCKS).await });
        }
    }

    fn is_in_memory(&self, number: u32) -> bool {
        self.blocks.borrow().contains_key(&number)
    }

    fn entry_in_memory(&self, place: Place) -> Option<QueueEntry> {
        let mut blocks = self.blocks.borrow_mut();
        let (block, used) = blocks.get_mut(&place.number)?;
        *used = self.tick();
        Some(entry_of(block, place.index))
    }

    fn tick(&self) -> u64 {
        self.clock.set(self.clock.get() + 1);
        self.clock.get()
    }

    async fn read(&self, first: u32, count: u32) -> io::Result<PageBuf> {
        let file = self.file(first / FILE_BLOCKS, false).await?;
        file.read_at(place_of(first), count as usize * SECTOR_BYTES)
            .await
    }

    /// Reads a group unless somebody does, and keeps what is whole of it. Whoever needs a block of it and does not find it then reads
    /// that one for itself, and meets the error if there was one.
    async fn read_group(&self, group: u32) {
        if !self.reading.borrow_mut().insert(group) {
            return self
                .was_read
                .until(|| !self.reading.borrow().contains(&group))
                .await;
        }
        let first = group * GROUP_BLOCKS;
        let writes = self.writes.get();
        let pages = self.read(first, GROUP_BLOCKS).await;
        self.reading.borrow_mut().remove(&group);
        // Even: no write was under way.
        if let Ok(pages) = pages
            && writes.is_multiple_of(2)
            && writes == self.writes.get()
        {
            for (number, block) in (first..).zip(pages.chunks_exact(SECTOR_BYTES)) {
                if !self.is_in_memory(number) {
                    self.keep(number, Rc::from(block));
                }
            }
        }
        self.was_read.notify();
    }

    fn keep(&self, number: u32, block: Block) {
        let mut blocks = self.blocks.borrow_mut();
        if blocks.len() >= self.blocks_max {
            let mut ages: Vec<u64> = blocks.values().map(|(_, used)| *used).collect();
            let half = ages.len() / 2;
            let (_, median, _) = ages.select_nth_unstable(half);
            let median = *median;
            blocks.retain(|_, (_, used)| *used > median);
        }
        blocks.insert(number, (block, self.tick()));
    }
}

/// Where a block lies in its file.
fn place_of(number: u32) -> u64 {
    u64::from(number % FILE_BLOCKS) * SECTOR_BYTES as u64
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::io::sim::{OpKind, SimEnv, SimOptions, SimWorld};
    use crate::store::tables::consume_queue::ConsumeQueues;
    use crate::store::tables::consume_queue::Lookup;
    use crate::store::types::QueueKey;

    const QUEUES: u32 = 4;
    const BLOCKS_PER_QUEUE: usize = 16;

    fn key(queue_id: u32) -> QueueKey {
        QueueKey {
            topic_id: 7,
            queue_id,
        }
    }

    fn entry(queue: u32, offset: i64) -> QueueEntry {
        QueueEntry {
            position: (u64::from(queue) << 40) + offset as u64 * 100,
            size: 100,
            tags_code: i64::from(queue),
        }
    }

    /// Queues that were filled side by side, with all of their whole blocks written; and the reads of the disk that `test` made.
    fn reads_of(test: impl AsyncFnOnce(SimEnv, Rc<IndexFiles<SimEnv>>, ConsumeQueues)) -> u64 {
        let world = SimWorld::new(1, SimOptions::default());
        let env = world.env();
        let reads = || world.with_disk(0, |disk| disk.count_of(OpKind::Read));
        world.block_on(async {
            let directory = PathBuf::from("/data/index");
            env.create_dir(&directory).await.unwrap();
            let mut queues = ConsumeQueues::default();
            for offset in 0..(BLOCKS_PER_QUEUE * BLOCK_ENTRIES) as i64 {
                for queue in 0..QUEUES {
                    queues.assign(key(queue), 1);
                    queues.push(key(queue), offset, &[entry(queue, offset)], offset);
                }
            }
            let files = IndexFiles::new(env.clone(), directory, 64 << 20);
            let blocks = queues.unwritten();
            files.write(&blocks).await.unwrap();
            for (number, block) in &blocks {
                queues.on_written(*number, block);
            }
            let before = reads();
            test(env.clone(), files, queues).await;
            reads() - before
        })
    }

    async fn check(
        files: &Rc<IndexFiles<SimEnv>>,
        queues: &ConsumeQueues,
        queue: u32,
        offset: i64,
    ) {
        let found = match queues.lookup(key(queue), offset) {
            Lookup::Entry(entry) => entry,
            Lookup::InBlock(place) => files.entry(place).await.unwrap(),
            Lookup::Nothing => panic!("no entry at {offset} of queue {queue}"),
        };
        assert_eq!(found, entry(queue, offset));
    }

    #[test]
    fn a_reader_of_runs_reads_as_much_at_once_and_finds_the_same() {
        let entries = (BLOCKS_PER_QUEUE * BLOCK_ENTRIES) as i64;
        let one_by_one = reads_of(async move |_, files, queues| {
            for offset in 0..entries {
                check(&files, &queues, 1, offset).await;
            }
        });
        let in_runs = reads_of(async move |_, files, queues| {
            let mut offset = 0;
            while offset < entries {
                let mut run = EntryRun::new();
                if let Some(place) = queues.lookup_run(key(1), offset, 32, &mut run) {
                    files.entries(place, 32, &mut run).await.unwrap();
                }
                assert!((1..=32).contains(&run.len()));
                for found in run {
                    assert_eq!(found, entry(1, offset));
                    offset += 1;
                }
            }
        });
        assert_eq!(in_runs, one_by_one);
    }

    #[test]
    fn a_reader_in_order_reads_many_blocks_at_once() {
        let blocks = u64::from(QUEUES) * BLOCKS_PER_QUEUE as u64;
        let reads = reads_of(async |_, files, queues| {
            for offset in 0..(BLOCKS_PER_QUEUE * BLOCK_ENTRIES) as i64 {
                for queue in 0..QUEUES {
                    check(&files, &queues, queue, offset).await;
                }
            }
        });
        // The first block of each queue, and every group once.
        let groups = blocks / u64::from(GROUP_BLOCKS);
        assert!(
            (groups..=groups + u64::from(QUEUES)).contains(&reads),
            "{reads} reads of {groups} groups"
        );
    }

    #[test]
    fn somebody_who_looks_here_and_there_reads_one_block_each_time() {
        let reads = reads_of(async |_, files, queues| {
            for block in [3, 9, 1, 12, 6] {
                check(&files, &queues, 2, block * BLOCK_ENTRIES as i64 + 3).await;
            }
            assert_eq!(files.bytes(), 5 * SECTOR_BYTES);
        });
        assert_eq!(reads, 5);
    }

    #[test]
    fn the_next_blocks_are_there_before_their_reader_comes() {
        for run_entries in [1, 32] {
            let reads = reads_of(async |env, files, queues| {
                let mut offset = 0;
                while offset <= AHEAD_ENTRY as i64 {
                    let mut run = EntryRun::new();
                    let place = queues.lookup_run(key(0), offset, run_entries, &mut run);
                    let place = place.expect("it was written");
                    files.entries(place, run_entries, &mut run).await.unwrap();
                    assert_eq!(run.len(), run_entries);
                    offset += run_entries as i64;
                }
                env.sleep(std::time::Duration::from_secs(1)).await;
                let Lookup::InBlock(next) = queues.lookup(key(0), BLOCK_ENTRIES as i64) else {
                    panic!("it was written");
                };
                assert!(files.is_in_memory(next.number), "runs of {run_entries}");
            });
            assert_eq!(reads, 2);
        }
    }

    #[test]
    fn what_was_read_while_neighbours_were_written_is_not_kept() {
        reads_of(async |env, files, queues| {
            let group = 1;
            let first = group * GROUP_BLOCKS;
            let new: Block = Rc::from([0xee; SECTOR_BYTES]);
            for begins_before in [true, false] {
                let reader = files.clone();
                env.spawn(async move { reader.read_group(group).await });
                while begins_before && !files.reading.borrow().contains(&group) {
                    futures_lite::future::yield_now().await;
                }
                files.write(&[(first + 2, new.clone())]).await.unwrap();
                env.sleep(std::time::Duration::from_secs(1)).await;
                let mut group = first..first + GROUP_BLOCKS;
                assert!(!group.any(|number| files.is_in_memory(number)));
            }
            // With nothing in between it is.
            files.read_group(group).await;
            assert_eq!(files.bytes(), GROUP_BLOCKS as usize * SECTOR_BYTES);
            assert_eq!(files.blocks.borrow()[&(first + 2)].0, new);
            // And gone again when it is written anew.
            files.write(&[(first + 2, new)]).await.unwrap();
            assert!(!files.is_in_memory(first + 2) && files.is_in_memory(first + 3));
            drop(queues);
        });
    }

    #[test]
    fn a_group_that_cannot_be_read_is_an_error_of_the_block_that_is_wanted_only() {
        reads_of(async |_, files, queues| {
            let last = u64::from(QUEUES) * BLOCKS_PER_QUEUE as u64 - 1;
            let missing = Place {
                number: last as u32 + 1,
                index: 0,
                previous: Some(last as u32),
                next: None,
            };
            let offset = ((BLOCKS_PER_QUEUE - 1) * BLOCK_ENTRIES) as i64;
            check(&files, &queues, QUEUES - 1, offset).await;
            assert!(files.entry(missing).await.is_err());
            check(&files, &queues, QUEUES - 1, offset + 1).await;
        });
    }
}
