//! The key index of one log: which records have a key, newest first.
//!
//! It is a fold of the log and nothing else: no snapshot names it, no send waits for it, nothing is flushed for it
//! before the log. The newest entries are in memory; full ones become sorted files (runs) in the background, neighbours
//! of one size are merged. A file that is missing or damaged is a gap, and gaps are read from the log again
//! while the broker serves. Memory: tail and sealed parts are bounded, filters and blocks share a budget, and each
//! block of 203 entries has 8 bytes. Files: `entry.rs`, `order.rs`, `parts.rs`, `spares.rs` (pure), `run.rs` (format), `files.rs`, `keeper.rs`.

pub mod entry;
mod files;
mod keeper;
mod order;
mod parts;
mod run;
mod spares;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::io;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use ahash::AHashMap;

use crate::base::limits::{KEY_BLOCKS_PER_LOOKUP_MAX, SECTOR_BYTES};
use crate::base::notify::Notify;
use crate::base::offset::LogId;
use crate::io::env::Env;
use crate::store::keys::entry::{Entry, MessageKeys, TopicHash};
use crate::store::keys::files::Loaded;
use crate::store::keys::parts::{Part, Parts, Run};
use crate::store::keys::spares::Spares;
use crate::store::segment::Segments;

/// So often a lookup begins again because a file went away under it.
const LOOKUP_TRIES: u32 = 4;
/// How long a lookup waits for gaps.
const WAIT_FOR_GAPS: Duration = Duration::from_secs(2);
/// And only if they have at most so many bytes of the log.
const WAIT_GAP_BYTES: u64 = 512 << 20;
/// Entries of a part in memory that a lookup looks at before others have their turn.
const LOOK_ENTRIES: usize = 16 << 10;

/// What a key index is opened with.
#[derive(Clone, Debug)]
pub struct KeyIndexOptions {
    pub log: LogId,
    pub store_id: u64,
    /// Directory of its files.
    pub directory: PathBuf,
    /// Entries in memory before they become a file; 0: there is no index.
    pub tail_entries_max: usize,
    /// Memory for filters and blocks.
    pub cache_bytes: usize,
}

/// The newest message that is in the index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Newest {
    pub position: u64,
    /// Store time in milliseconds.
    pub store_ms: u64,
}

type Block = Rc<[u8]>;

/// See the module's page.
pub struct KeyIndex<E: Env> {
    env: E,
    options: KeyIndexOptions,
    segments: Rc<Segments<E>>,
    parts: RefCell<Parts>,
    loaded: RefCell<AHashMap<u64, Rc<Loaded>>>,
    opened: RefCell<AHashMap<u64, E::File>>,
    /// (run, block) -> its bytes and when it was used last.
    blocks: RefCell<AHashMap<(u64, u32), (Block, u64)>>,
    clock: Cell<u64>,
    next_id: Cell<u64>,
    spares: RefCell<Spares>,
    newest: Cell<Newest>,
    /// What is staged last; the newest when it is durable.
    staged: Cell<Newest>,
    work: Notify,
    changed: Notify,
    merging: Cell<bool>,
    keeping: Cell<bool>,
    stopping: Cell<bool>,
}

impl<E: Env> KeyIndex<E> {
    /// Opens the index of a log that has `start..end`. What it cannot read it makes again: this never fails.
    pub async fn open(
        env: E,
        options: KeyIndexOptions,
        segments: Rc<Segments<E>>,
        end: u64,
    ) -> Rc<Self> {
        let start = segments.start();
        let mut next_id = 1;
        let mut runs = Vec::new();
        let mut spares = Spares::default();
        if options.tail_entries_max > 0 {
            match keeper::find_runs(&env, &options, end, &mut spares).await {
                Ok((found, last_id)) => {
                    runs = found;
                    next_id = last_id + 1;
                }
                Err(error) => {
                    tracing::warn!(log = options.log, %error, "the files of the key index cannot be listed: it is made again from the log");
                }
            }
        }
        let parts = Parts::new(start, end, runs, options.tail_entries_max);
        let gap_bytes = parts.gap_bytes();
        let newest = parts
            .runs()
            .next()
            .map_or_else(Newest::default, |run| Newest {
                position: run.to,
                store_ms: u64::from(run.last_seconds) * 1_000,
            });
        if options.tail_entries_max > 0 {
            tracing::info!(
                log = options.log,
                runs = parts.runs().count(),
                gap_bytes,
                "key index opened"
            );
        }
        Rc::new(Self {
            env,
            options,
            segments,
            parts: RefCell::new(parts),
            loaded: RefCell::default(),
            opened: RefCell::default(),
            blocks: RefCell::default(),
            clock: Cell::new(0),
            next_id: Cell::new(next_id),
            spares: RefCell::new(spares),
            newest: Cell::new(newest),
            staged: Cell::new(newest),
            work: Notify::default(),
            changed: Notify::default(),
            merging: Cell::new(false),
            keeping: Cell::new(false),
            stopping: Cell::new(false),
        })
    }

    /// Whether there is an index at all.
    pub fn is_on(&self) -> bool {
        self.options.tail_entries_max > 0
    }

    /// A message was appended: its keys wait until it is durable.
    pub fn stage(&self, position: u64, store_ms: u64, topic: TopicHash, keys: MessageKeys<'_>) {
        if !self.is_on() {
            return;
        }
        let mut parts = self.parts.borrow_mut();
        let mut any = false;
        keys.hashes(topic, |hash| {
            any = true;
            parts.stage(Entry {
                hash,
                position,
                seconds: (store_ms / 1_000) as u32,
            });
        });
        if any {
            self.staged.set(Newest { position, store_ms });
        }
    }

    /// The log is durable up to `end`, where a batch begins.
    pub fn commit(&self, end: u64) {
        if !self.is_on() {
            return;
        }
        if self.parts.borrow_mut().commit(end) {
            self.work.notify();
        }
        let staged = self.staged.get();
        if staged.position < end {
            self.newest.set(staged);
        }
    }

    /// What is appended and not durable never will be.
    pub fn forget_staged(&self) {
        self.parts.borrow_mut().forget_staged();
    }

    /// The log begins at `start` now.
    pub fn trim(&self, start: u64) {
        let mut parts = self.parts.borrow_mut();
        parts.trim(start);
        if parts.has_garbage() {
            self.work.notify();
        }
    }

    /// The newest message that is in the index; from an older life only its second is known, and about where it is.
    pub fn newest(&self) -> Newest {
        self.newest.get()
    }

    /// Completes when no part of the log is missing in the index, or after `limit`. Does not wait for a whole log.
    async fn settled(&self, limit: Duration) {
        let settled = || {
            let bytes = self.parts.borrow().gap_bytes();
            bytes == 0 || bytes > WAIT_GAP_BYTES || self.stopping.get()
        };
        if settled() {
            return;
        }
        let sleep = self.env.sleep(limit);
        futures_lite::future::or(self.changed.until(settled), sleep).await;
    }

    /// Bytes of the log that are not in the index (yet).
    pub fn gap_bytes(&self) -> u64 {
        self.parts.borrow().gap_bytes()
    }

    /// Positions of records that may have the key with this hash and were stored in these seconds, the newest first, at
    /// most `count_max`. The record says whether it really has it.
    pub async fn find(
        self: &Rc<Self>,
        hash: u64,
        seconds: RangeInclusive<u32>,
        count_max: usize,
    ) -> io::Result<Vec<u64>> {
        let begun = self.env.now_ns();
        let mut tries = 0;
        loop {
            tries += 1;
            match self.look(hash, &seconds, count_max).await {
                // What lies in a gap is found when the log has been read again.
                Ok((_, true)) if tries < LOOKUP_TRIES => {
                    let spent = Duration::from_nanos(self.env.now_ns() - begun);
                    self.settled(WAIT_FOR_GAPS.saturating_sub(spent)).await;
                }
                Ok((found, _)) => return Ok(found),
                Err((id, error)) => {
                    // A run that is gone was merged or expired: the new list has what it had.
                    let gone = !self.parts.borrow().has(id);
                    if !gone {
                        self.on_damaged(id, &error);
                    }
                    if tries == LOOKUP_TRIES {
                        return Err(error);
                    }
                }
            }
        }
    }

    async fn look(
        self: &Rc<Self>,
        hash: u64,
        seconds: &RangeInclusive<u32>,
        count_max: usize,
    ) -> Result<(Vec<u64>, bool), (u64, io::Error)> {
        let start = self.segments.start();
        let wanted = |entry: &Entry| {
            entry.hash == hash && seconds.contains(&entry.seconds) && entry.position >= start
        };
        let (mut found, older): (Vec<u64>, Vec<Part>) = {
            let parts = self.parts.borrow();
            let found = parts.in_tail(wanted).take(count_max).collect();
            (found, parts.newest_first())
        };
        let mut gap_seen = false;
        let mut blocks_left = KEY_BLOCKS_PER_LOOKUP_MAX;
        for part in older {
            if found.len() >= count_max {
                break;
            }
            match part {
                Part::Gap { .. } => gap_seen = true,
                Part::Sealed(sealed) => {
                    for piece in sealed.entries.rchunks(LOOK_ENTRIES) {
                        let entries = piece.iter().rev().filter(|entry| wanted(entry));
                        found.extend(entries.map(|entry| entry.position));
                        futures_lite::future::yield_now().await;
                    }
                }
                Part::Run(run) => {
                    let id = run.id;
                    self.look_into(&run, hash, &wanted, count_max, &mut found, &mut blocks_left)
                        .await
                        .map_err(|error| (id, error))?;
                }
            }
        }
        found.truncate(count_max);
        Ok((found, gap_seen))
    }

    async fn look_into(
        self: &Rc<Self>,
        run: &Rc<Run>,
        hash: u64,
        wanted: &impl Fn(&Entry) -> bool,
        count_max: usize,
        found: &mut Vec<u64>,
        blocks_left: &mut usize,
    ) -> io::Result<()> {
        if run.entries == 0 {
            return Ok(());
        }
        let loaded = self.load(run).await?;
        if loaded
            .filter
            .as_ref()
            .is_some_and(|filter| !filter.may_have(hash))
        {
            return Ok(());
        }
        let first = run::first_block(&loaded.fences, hash);
        for (block, &fence) in loaded.fences.iter().enumerate().skip(first) {
            if fence > hash || found.len() >= count_max || *blocks_left == 0 {
                break;
            }
            *blocks_left -= 1;
            let bytes = self.block(run, block as u32).await?;
            let Some(entries) = run::decode_block(&bytes) else {
                return Err(io::Error::from(io::ErrorKind::InvalidData));
            };
            found.extend(
                entries
                    .filter(|entry| wanted(entry) && entry.position < run.to)
                    .map(|entry| entry.position),
            );
        }
        Ok(())
    }

    /// A block of a run, from memory if it was used lately.
    async fn block(&self, run: &Run, number: u32) -> io::Result<Block> {
        let key = (run.id, number);
        let tick = self.clock.get() + 1;
        self.clock.set(tick);
        if let Some((block, used)) = self.blocks.borrow_mut().get_mut(&key) {
            *used = tick;
            return Ok(block.clone());
        }
        let file = self.file(run.id).await?;
        let block = files::read_block(&file, number).await;
        self.still_has(run)?;
        let block = block?;
        let mut blocks = self.blocks.borrow_mut();
        let blocks_max = (self.options.cache_bytes / 4 / SECTOR_BYTES).max(16);
        if blocks.len() >= blocks_max {
            // The older half goes.
            let mut ages: Vec<u64> = blocks.values().map(|(_, used)| *used).collect();
            let half = ages.len() / 2;
            let (_, median, _) = ages.select_nth_unstable(half);
            let median = *median;
            blocks.retain(|_, (_, used)| *used > median);
        }
        blocks.insert(key, (block.clone(), tick));
        Ok(block)
    }

    async fn file(&self, id: u64) -> io::Result<E::File> {
        if let Some(file) = self.opened.borrow().get(&id) {
            return Ok(file.clone());
        }
        let file = files::open(&self.env, &self.options.directory, id, false).await?;
        // It may have been removed meanwhile; then nobody asks for it again.
        if self.parts.borrow().has(id) {
            self.opened.borrow_mut().insert(id, file.clone());
        }
        Ok(file)
    }

    /// Fences and filter of a run.
    async fn load(&self, run: &Rc<Run>) -> io::Result<Rc<Loaded>> {
        if let Some(loaded) = self.loaded.borrow().get(&run.id) {
            return Ok(loaded.clone());
        }
        let file = self.file(run.id).await?;
        let with_filter = self.has_room_for(run);
        let loaded = files::load(&file, run, with_filter).await;
        self.still_has(run)?;
        let loaded = Rc::new(loaded?);
        self.loaded.borrow_mut().insert(run.id, loaded.clone());
        Ok(loaded)
    }

    /// What was read of a run is its own only if it is still part of the index: else its file may have been written over.
    fn still_has(&self, run: &Run) -> io::Result<()> {
        match self.parts.borrow().has(run.id) {
            true => Ok(()),
            false => Err(io::Error::new(
                io::ErrorKind::NotFound,
                "this file of the key index was merged or removed meanwhile",
            )),
        }
    }

    /// Whether the filter of a run fits into the budget beside those of all newer runs: the newest have theirs first.
    fn has_room_for(&self, run: &Run) -> bool {
        let budget = self.options.cache_bytes as u64 * 3 / 4;
        let parts = self.parts.borrow();
        let newer = parts.runs().take_while(|one| one.id != run.id);
        let used: u64 = newer.map(|one| u64::from(one.filter_bytes)).sum();
        used + u64::from(run.filter_bytes) <= budget
    }

    fn on_damaged(&self, id: u64, error: &io::Error) {
        let path = files::path_of(&self.options.directory, id);
        if self.parts.borrow_mut().on_damaged(id) {
            tracing::warn!(log = self.options.log, path = %path.display(), %error, "a file of the key index is damaged: it is made again from the log");
            self.work.notify();
        }
    }
}
