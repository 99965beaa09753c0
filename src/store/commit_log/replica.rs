//! The log of a replica: it takes whole batches of another log, byte for byte at the same positions.
//!
//! A batch is taken if it is whole, of the same store, and the successor of the one before; the rest of the way is the one
//! of every log: written, flushed as the mode says, applied to the tables by the code of recovery. Neighbouring batches
//! are written together as a **run**, one run at a time and at most [`REPLICA_RUN_BYTES_MAX`] long, so that a slave that
//! is behind writes as the disk likes it.
//!
//! That weakens what recovery may conclude from a batch behind a torn one. In a log of one's own nobody writes a batch that
//! says "the log is durable up to here" before it is. In a replica that sentence is the master's, and a crash may leave it
//! whole behind a torn batch of the same run. So a directory whose log was a replica has the file `replica`: what lies
//! within one run behind a torn place proves nothing there, and it is fetched again. When the log becomes one of its own,
//! that part is wiped, durably, before the file goes.

use std::io;
use std::path::Path;
use std::rc::Rc;

use smallvec::SmallVec;

use crate::base::limits::{
    HA_BATCHES_BYTES_MAX, REPLICA_RUN_BYTES_MAX, REPLICA_TORN_BYTES_MAX, SECTOR_BYTES,
};
use crate::base::offset::Position;
use crate::base::planted::{PlantedBug, planted};
use crate::io::aligned_buf::{PageBuf, PageSlice};
use crate::io::env::{DiskFile, Env, OpenMode};
use crate::store::batch::{BatchHeader, HEADER_BYTES};
use crate::store::commit_log::{CommitLog, OpenBatch, SealedBatch, State};
use crate::store::keys::entry::{MessageKeys, TopicHash};
use crate::store::recovery::{effect_of, raw_records};
use crate::store::scrub::next_of;
use crate::store::segment::{Segments, zero_pages};
use crate::store::tables::Effect;
use crate::store::types::{QueueKey, Refusal};
use crate::wire::record::RecordView;

const MARK: &str = "replica";
/// Zeros written at once where a replica's last run may have been torn.
const WIPE_BYTES: usize = 256 << 10;

/// End of a log, as another one has to know it to go on from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogEnd {
    pub position: u64,
    /// Epoch and CRC field of the batch that ends there; 0 if there is none.
    pub epoch: u32,
    pub previous_crc: u32,
}

/// Why a replica does not take a batch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplicaError {
    /// Worth another try when there is space: see [`CommitLog::space_beyond`].
    #[error("there is no space for it yet")]
    NoSpace,
    #[error("no batch of this store begins at position {position}")]
    NoBatch { position: u64 },
    #[error("the batch at position {position} is damaged: its CRC is wrong")]
    Damaged { position: u64 },
    #[error("the batch at position {position} does not follow the one before it here")]
    NoSuccessor { position: u64 },
    #[error(transparent)]
    Refused(Refusal),
}

/// How another log's end lies to this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// It is a prefix of this one.
    Prefix,
    /// Its end lies before the first segment that retention has left here.
    TooOld { start: u64 },
    /// It has more than this one.
    Longer { end: u64 },
    /// It has other bytes.
    Diverged,
}

/// Whether the log in a directory was, or is, a replica.
pub async fn is_marked<E: Env>(env: &E, directory: &Path) -> io::Result<bool> {
    let entries = env.list(directory).await?;
    Ok(entries.iter().any(|(name, _)| name == MARK))
}

/// Notes durably that the log is a replica, before it takes its first batch.
pub(super) async fn mark<E: Env>(env: &E, directory: &Path) -> io::Result<()> {
    let mode = OpenMode {
        create: true,
        flush_each_write: false,
    };
    env.open(&directory.join(MARK), mode).await?.sync().await?;
    env.sync_dir(directory).await
}

/// The log goes on as one of its own from `end`: wipes what a torn run may have left behind it.
pub(super) async fn forget_mark<E: Env>(
    env: &E,
    directory: &Path,
    segments: &Segments<E>,
    end: u64,
    last_sector: &Option<Rc<PageBuf>>,
) -> io::Result<()> {
    if !is_marked(env, directory).await? {
        return Ok(());
    }
    let sector = SECTOR_BYTES as u64;
    let wiped_end = (end + REPLICA_TORN_BYTES_MAX as u64)
        .next_multiple_of(sector)
        .min(segments.allocated_end());
    let mut at = end & !(sector - 1);
    if let Some(last) = last_sector {
        let mut kept = env.alloc(SECTOR_BYTES);
        kept.as_mut().fill(0);
        let front = (end - at) as usize;
        kept.as_mut()[..front].copy_from_slice(&last[..front]);
        write(segments, at, Rc::new(kept)).await?;
        at += sector;
    }
    while at < wiped_end {
        let left = (wiped_end - at).min(segments.segment_end(at) - at) as usize;
        let bytes = left.min(WIPE_BYTES);
        write(segments, at, zero_pages(env, bytes)).await?;
        at += bytes as u64;
    }
    segments.sync_from(end).await?;
    env.remove(&directory.join(MARK)).await?;
    env.sync_dir(directory).await?;
    tracing::info!(directory = %directory.display(), end, "this log was a replica and is its own from here on");
    Ok(())
}

async fn write<E: Env>(segments: &Segments<E>, at: u64, pages: Rc<PageBuf>) -> io::Result<()> {
    let (file, within) = segments
        .locate(at)
        .ok_or_else(|| io::Error::other(format!("no segment has position {at}")))?;
    file.write_at(pages, within).await
}

impl<E: Env> CommitLog<E> {
    /// Where a replica goes on: behind the last batch that it has taken.
    pub fn replica_end(&self) -> LogEnd {
        let state = self.state.borrow();
        LogEnd {
            position: state.next,
            epoch: if state.next == 0 { 0 } else { state.epoch },
            previous_crc: state.last_crc,
        }
    }

    /// The master's log ends there.
    pub fn set_master_end(&self, end: u64) {
        self.master_end.set(end);
    }

    /// Takes the batches at the front of `bytes`, which begin where this log ends. Returns how many bytes were taken; the rest
    /// is no whole batch. With an error nothing behind the batches that were taken before is.
    pub fn append_replicated(&self, bytes: &[u8]) -> Result<usize, ReplicaError> {
        let mut taken = 0;
        let result = loop {
            match self.take_batch(&bytes[taken..]) {
                Ok(0) => break Ok(taken),
                Ok(bytes) => taken += bytes,
                Err(ReplicaError::NoSpace) if taken > 0 => break Ok(taken),
                Err(error) => break Err(error),
            }
        };
        if taken > 0 {
            self.work.notify();
            self.wake_space();
        }
        result
    }

    fn take_batch(&self, bytes: &[u8]) -> Result<usize, ReplicaError> {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        if let Some(reason) = &state.poisoned {
            return Err(ReplicaError::Refused(Refusal::Poisoned {
                log: self.options.log,
                reason: reason.clone(),
            }));
        }
        if state.stopping {
            return Err(ReplicaError::Refused(Refusal::Stopping));
        }
        if let Some(refusal) = self.refuse_damaged() {
            return Err(ReplicaError::Refused(refusal));
        }
        let position = state.next;
        if bytes.len() < HEADER_BYTES {
            return Ok(0);
        }
        let header = BatchHeader::read(bytes, Position(position), self.options.store_id)
            .ok_or(ReplicaError::NoBatch { position })?;
        let length = header.length as usize;
        if bytes.len() < length {
            return Ok(0);
        }
        if !header.crc_is_right(bytes) {
            return Err(ReplicaError::Damaged { position });
        }
        let segment_end = self.segments.segment_end(position);
        let end = position + u64::from(header.length);
        if header.previous_crc != state.last_crc || header.epoch < state.epoch || end > segment_end
        {
            return Err(ReplicaError::NoSuccessor { position });
        }
        if end.next_multiple_of(SECTOR_BYTES as u64) > self.segments.allocated_end() {
            self.space.notify();
            return Err(ReplicaError::NoSpace);
        }
        let is_full = state
            .open
            .as_ref()
            .is_some_and(|open| (position - open.start) as usize + length > REPLICA_RUN_BYTES_MAX);
        if is_full {
            self.close_run(state);
        }
        self.put_in_run(state, &bytes[..length], header.first_timestamp_ms);
        state.last_crc = header.crc;
        state.epoch = header.epoch;
        state.next = if header.ends_segment() {
            segment_end
        } else {
            end
        };
        state.commit.on_append(Position(state.next));
        state
            .crcs
            .push_back((state.next, state.last_crc, state.epoch));
        if state.next == segment_end {
            self.close_run(state);
        }
        Ok(length)
    }

    fn put_in_run(&self, state: &mut State, batch: &[u8], first_timestamp_ms: u64) {
        if state.open.is_none() {
            // A log that is far behind fills the whole run.
            let bytes = match self.is_far_behind(state.next) {
                true => batch.len().max(REPLICA_RUN_BYTES_MAX - HEADER_BYTES),
                false => batch.len(),
            };
            self.open_batch(state, bytes, first_timestamp_ms);
            if let Some(open) = &mut state.open {
                // The header is part of what is copied.
                open.used -= HEADER_BYTES;
            }
        }
        let Some(open) = &mut state.open else {
            unreachable!("it was opened just now");
        };
        self.make_room(open, batch.len());
        open.buffer.as_mut()[open.used..open.used + batch.len()].copy_from_slice(batch);
        open.used += batch.len();
        open.record_count += 1;
    }

    /// Nothing more goes into the open run.
    fn close_run(&self, state: &mut State) {
        let Some(open) = state.open.take() else {
            return;
        };
        let OpenBatch {
            start,
            buffer_start,
            mut buffer,
            used,
            ..
        } = open;
        let padded = used.next_multiple_of(SECTOR_BYTES);
        buffer.as_mut()[used..padded].fill(0);
        buffer.trim_to(padded);
        let buffer = Rc::new(buffer);
        state.last = Some((buffer_start, buffer.clone()));
        self.reader.add_tail(buffer_start, buffer.clone());
        let run = SealedBatch {
            start,
            buffer_start,
            end: state.next,
            buffer,
        };
        state.unapplied.push_back(run.clone());
        state.sealed.push_back(run);
    }

    /// The run to write next.
    pub(super) fn take_run(&self, state: &mut State) -> Option<SealedBatch> {
        if state.sealed.is_empty() {
            self.close_run(state);
        }
        state.sealed.pop_front()
    }

    /// The batches before `end` are released: their records go into the tables. The error is why the log cannot go on.
    pub(super) fn apply_runs(
        &self,
        end: u64,
        touched: &mut SmallVec<[QueueKey; 32]>,
    ) -> Result<(), String> {
        loop {
            let front = self.state.borrow().unapplied.front().cloned();
            let Some(run) = front else { return Ok(()) };
            let mut at = run.start.max(self.state.borrow().applied);
            while at < run.end {
                let batch = &run.buffer[(at - run.buffer_start) as usize..];
                let header = BatchHeader::read(batch, Position(at), self.options.store_id)
                    .ok_or_else(|| format!("the batch at {at} changed while it was written"))?;
                let next = match header.ends_segment() {
                    true => self.segments.segment_end(at),
                    false => at + u64::from(header.length),
                };
                if next > end {
                    return Ok(());
                }
                let records = &batch[HEADER_BYTES..HEADER_BYTES + header.record_bytes as usize];
                self.apply_records(at + HEADER_BYTES as u64, records, touched)?;
                if header.ends_segment() {
                    self.segment_times
                        .borrow_mut()
                        .insert(next, header.first_timestamp_ms);
                }
                at = next;
                self.state.borrow_mut().applied = at;
                let is_whole = self.tables.borrow_mut().leave_seed(at)?;
                if is_whole {
                    self.is_seeding.set(false);
                    tracing::info!(
                        log = self.options.log,
                        start = self.segments.start(),
                        end = at,
                        "this log is a whole copy of its master's"
                    );
                }
            }
            self.state.borrow_mut().unapplied.pop_front();
        }
    }

    fn apply_records(
        &self,
        mut at: u64,
        records: &[u8],
        touched: &mut SmallVec<[QueueKey; 32]>,
    ) -> Result<(), String> {
        let mut tables = self.tables.borrow_mut();
        for record in raw_records(records) {
            if let Some(effect) = effect_of(record, at, &tables) {
                if let Effect::Message {
                    store_timestamp, ..
                } = &effect
                    && let Ok(view) = RecordView::parse(record)
                {
                    let topic = TopicHash::of(view.topic());
                    let keys = MessageKeys::of(view.properties());
                    self.keys.stage(at, *store_timestamp as u64, topic, keys);
                }
                let folded = tables.fold(at, effect);
                let folded = folded.map_err(|jump| format!("position {at}: {jump}"))?;
                if let Some(queue) = folded
                    && touched.last() != Some(&queue)
                {
                    touched.push(queue);
                }
            }
            at += record.len() as u64;
        }
        Ok(())
    }

    /// How a replica's end lies to this log.
    pub async fn relation_of(&self, other: LogEnd) -> io::Result<Relation> {
        let known = {
            let state = self.state.borrow();
            let end = state.commit.durable().0;
            if other.position > end {
                return Ok(Relation::Longer { end });
            }
            if other.position == state.released {
                Some(state.released_crc)
            } else {
                let mut ends = state.crcs.iter();
                let found = ends.find(|(at, ..)| *at == other.position);
                found.map(|(_, crc, _)| *crc)
            }
        };
        let start = self.start_position().0;
        if other.position < start {
            return Ok(Relation::TooOld { start });
        }
        let previous_crc = match known {
            Some(crc) => Some(crc),
            None => self.crc_before(other.position).await?,
        };
        let same = previous_crc == Some(other.previous_crc) && other.epoch <= self.epoch();
        Ok(if same {
            Relation::Prefix
        } else {
            Relation::Diverged
        })
    }

    /// The CRC field of the batch that ends at `position`, if one ends there. The batch behind has it too, and may be damaged. Neither
    /// can be read: then it is not known whether one does.
    async fn crc_before(&self, position: u64) -> io::Result<Option<u32>> {
        let mut walk = self.walker();
        if let Some(header) = walk.batch_at(position, None).await {
            return Ok(Some(header.previous_crc));
        }
        let segment_start = |position| position - position % self.options.segment_bytes;
        let mut at = segment_start(position.saturating_sub(1)).max(self.start_position().0);
        let mut previous_crc = None;
        while at < position {
            let Some(header) = walk.batch_at(at, previous_crc).await else {
                self.suspect(at);
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!(
                        "log {} is damaged at position {at} here, so it is not known whether the other one is its front",
                        self.id()
                    ),
                ));
            };
            previous_crc = Some(header.crc);
            at = next_of(&header, self.segments.segment_end(at));
        }
        Ok(previous_crc.filter(|_| at == position))
    }

    /// Epoch of this life.
    pub fn epoch(&self) -> u32 {
        self.state.borrow().epoch
    }

    pub(in crate::store) async fn header_at(
        &self,
        position: u64,
    ) -> io::Result<Option<BatchHeader>> {
        let head = self.reader.read_whole(position, HEADER_BYTES).await?;
        Ok(BatchHeader::read(
            &head,
            Position(position),
            self.options.store_id,
        ))
    }

    /// Whole durable batches from `position` on, as they lie in memory: at least one, then as many as `bytes_max` allows and
    /// this segment has. Gives them with their length and the position behind them. `position` is durable here.
    pub async fn batches_from(&self, position: u64, bytes_max: usize) -> io::Result<Batches> {
        let durable = self.durable_here().0;
        // What comes from the disk may be damaged; a slave would drop the connection for it.
        let disk_end = self.reader.tail_start().max(self.opened_end);
        let damaged = |at: u64| {
            self.suspect(at);
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "no whole batch begins at position {at}; `ringmq store check` shows what is damaged"
                ),
            )
        };
        let mut found = Batches {
            slices: Vec::new(),
            bytes: 0,
            next: position,
        };
        while found.next < durable {
            let at = found.next;
            let segment_end = self.segments.segment_end(at);
            // A damaged length must not be read, nor sent.
            let is_possible = |header: &BatchHeader| {
                at + u64::from(header.length) <= segment_end
                    && header.length as usize <= HA_BATCHES_BYTES_MAX
            };
            let Some(header) = self.header_at(at).await?.filter(is_possible) else {
                let error = damaged(at);
                if found.bytes > 0 {
                    // What lies before it goes first.
                    break;
                }
                return Err(error);
            };
            let length = header.length as usize;
            if found.bytes > 0 && found.bytes + length > bytes_max {
                break;
            }
            let slices = self.reader.read(at, length).await?;
            if at < disk_end && !header.crc_is_right_in(slices.iter().map(|slice| &slice[..])) {
                let error = damaged(at);
                if found.bytes > 0 {
                    break;
                }
                return Err(error);
            }
            for slice in slices {
                let joined = found
                    .slices
                    .last_mut()
                    .is_some_and(|last: &mut PageSlice| last.try_join(&slice));
                if !joined {
                    found.slices.push(slice);
                }
            }
            found.bytes += length;
            if header.ends_segment() {
                found.next = self.segments.segment_end(at);
                break;
            }
            found.next = at + length as u64;
        }
        Ok(found)
    }

    /// Somebody will ask for the batches of this range soon, in order.
    pub fn read_ahead(&self, range: std::ops::Range<u64>) {
        let end = range.end.min(self.durable_here().0);
        self.reader.read_ahead(range.start..end);
    }

    /// What a replica may acknowledge.
    pub fn replica_durable(&self) -> u64 {
        if planted(PlantedBug::ReplicaAcksBeforeFlush) {
            return self.state.borrow().next;
        }
        self.durable_here().0
    }

    /// Whether the log is about to stop or takes no writes any more.
    pub fn has_ended(&self) -> bool {
        let state = self.state.borrow();
        state.stopping || state.poisoned.is_some()
    }
}

/// Batches on their way to a replica.
#[derive(Debug)]
pub struct Batches {
    pub slices: Vec<PageSlice>,
    pub bytes: usize,
    /// Where the next batch begins.
    pub next: u64,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::base::offset::LogId;
    use crate::io::sim::{OpKind, SimEnv, SimOptions, SimWorld};
    use crate::store::log_reader::CHUNK_BYTES;
    use crate::store::testing::{self, small_log};
    use crate::store::types::NewMessage;

    const JUNK: u8 = 0xEE;

    async fn open(env: &SimEnv, directory: &Path) -> Rc<CommitLog<SimEnv>> {
        env.create_dir(directory).await.unwrap();
        let options = small_log(directory, 1 << 20);
        CommitLog::open(env.clone(), options).await.unwrap()
    }

    fn message() -> NewMessage {
        let queue = QueueKey {
            topic_id: 1,
            queue_id: 0,
        };
        testing::message(queue, "T", vec![7; 700])
    }

    /// Bytes of the two sectors from the one that has the log's end, behind that end.
    async fn behind(log: &CommitLog<SimEnv>, end: u64) -> Vec<u8> {
        let (file, at) = log.segments.locate(end).unwrap();
        let front = at % SECTOR_BYTES as u64;
        let pages = file.read_at(at - front, 2 * SECTOR_BYTES).await.unwrap();
        pages[front as usize..].to_vec()
    }

    #[test]
    fn a_log_that_was_a_replica_goes_on_over_zeros() {
        let world = SimWorld::new(1, SimOptions::default());
        let env = world.env();
        let directory = PathBuf::from("/data/log");
        let end = world.block_on(async {
            let log = open(&env, &directory).await;
            log.start(Rc::new(Deaf));
            // The log reserves its first space.
            while log.append(&[message()]).is_err() {
                env.sleep(Duration::from_millis(1)).await;
            }
            log.stop().await.unwrap();
            let end = log.durable_here().0;
            // What a slave may leave: its mark, and the rest of a run that was torn.
            mark(&env, &directory).await.unwrap();
            let (file, at) = log.segments.locate(end).unwrap();
            let front = (at % SECTOR_BYTES as u64) as usize;
            assert!(front > 0, "the end lies within a sector");
            let pages = file.read_at(at - front as u64, 2 * SECTOR_BYTES).await;
            let mut torn = env.alloc(2 * SECTOR_BYTES);
            torn.as_mut().fill(JUNK);
            torn.as_mut()[..front].copy_from_slice(&pages.unwrap()[..front]);
            file.write_at(Rc::new(torn), at - front as u64)
                .await
                .unwrap();
            assert!(behind(&log, end).await.iter().all(|byte| *byte == JUNK));
            end
        });
        world.block_on(async {
            let log = open(&env, &directory).await;
            assert_eq!(log.durable_here().0, end);
            assert!(behind(&log, end).await.iter().all(|byte| *byte == 0));
            assert!(!is_marked(&env, &directory).await.unwrap());
        });
    }

    /// Opens a replica, lets it make all of its space, and tells how many writes that took.
    fn writes_ahead(master_end: u64) -> u64 {
        let world = SimWorld::new(1, SimOptions::default());
        let env = world.env();
        let writes = || world.with_disk(0, |disk| disk.count_of(OpKind::Write));
        let directory = PathBuf::from("/data/log");
        world.block_on(async {
            env.create_dir(&directory).await.unwrap();
            let mut options = small_log(&directory, 1 << 20);
            options.replica = true;
            let log = CommitLog::open(env.clone(), options).await.unwrap();
            let before = writes();
            log.set_master_end(master_end);
            log.start(Rc::new(Deaf));
            while log.needs_space() {
                env.sleep(Duration::from_millis(1)).await;
            }
            writes() - before
        })
    }

    #[test]
    fn a_replica_zeroes_space_only_when_it_is_near_its_master() {
        assert_eq!(writes_ahead(3 << 20), 0);
        assert!(writes_ahead(1 << 20) > 0);
    }

    #[test]
    fn what_was_read_ahead_is_not_read_again_and_leaves_room_for_others() {
        let world = SimWorld::new(1, SimOptions::default());
        let env = world.env();
        let reads = || world.with_disk(0, |disk| disk.count_of(OpKind::Read));
        let directory = PathBuf::from("/data/log");
        let chunks = 16;
        world.block_on(async {
            env.create_dir(&directory).await.unwrap();
            let mut options = small_log(&directory, 4 << 20);
            options.read_cache_bytes = chunks * CHUNK_BYTES as usize;
            let log = CommitLog::open(env.clone(), options).await.unwrap();
            log.start(Rc::new(Deaf));
            while log.durable_here().0 < 1 << 20 {
                let _ = log.append(&[message()]);
                env.sleep(Duration::from_micros(100)).await;
            }
            let before = reads();
            log.read_ahead(0..1 << 20);
            env.sleep(Duration::from_millis(100)).await;
            assert_eq!(reads() - before, chunks as u64 / 4);
            log.header_at(0).await.unwrap().unwrap();
            assert_eq!(reads() - before, chunks as u64 / 4);
        });
    }

    struct Deaf;

    impl crate::store::LogListener for Deaf {
        fn on_durable(&self, _log: LogId, _end: Position, _touched: &[QueueKey]) {}
        fn on_poisoned(&self, _log: LogId, reason: &Arc<str>) {
            panic!("{reason}");
        }
    }
}
