//! The log of one shard: append, group commit, the tables behind it.
//!
//! A record is encoded once, into the open batch's buffer. The driver seals what there is, writes it, and when it is on the
//! medium that the mode asks for, applies the records to the tables and tells the listener. Positions:
//! released <= durable <= written <= appended. Invariants: nothing is visible in a table before it is durable here and
//! allowed to be ([`CommitLog::set_release_limit`]); a failed write poisons the log for good; a batch never crosses a
//! segment; two buffers in flight never share a sector. A log of a replica takes whole batches instead (`replica.rs`).

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use crate::base::doubt::Doubt;
use crate::base::histogram::Histogram;
use crate::base::limits::{
    BATCH_BYTES_TARGET, GROUP_BATCHES_MAX, LOG_PENDING_BYTES_MAX, REPLICA_RUN_BYTES_MAX,
    SECTOR_BYTES,
};
use crate::base::notify::Notify;
use crate::base::offset::{LogId, PhysicalOffset, Position};
use crate::base::planted::{PlantedBug, planted};
use crate::io::aligned_buf::PageBuf;
use crate::io::env::{DiskFile, Env};
use crate::store::batch::{ALIGN_BYTES, BatchHeader, FLAG_SEGMENT_END, HEADER_BYTES};
use crate::store::control::Control;
use crate::store::delayed;
use crate::store::group_commit::GroupCommit;
use crate::store::index_files::IndexFiles;
use crate::store::keys::entry::TopicHash;
use crate::store::keys::{KeyIndex, KeyIndexOptions};
use crate::store::log_reader::LogReader;
use crate::store::recovery::{self, Damage, Recovered};
use crate::store::scrub::ScrubOptions;
use crate::store::seed;
use crate::store::segment::{Ahead, Segments, ahead_bytes, hurry, is_roomy};
use crate::store::snapshot::{self, Mark, Writer};
use crate::store::tables::timers::{Timer, TimerKey};
use crate::store::tables::{Effect, Tables};
use crate::store::types::{
    Appended, Copies, NewMessage, NewRecords, QueueEntry, QueueKey, Refusal,
};
use crate::wire::record::{Patch, RecordFields};

pub(super) mod cut;
pub mod halves;
pub mod mend;
pub mod missed;
mod read;
pub mod repair;
pub mod replica;
pub mod scrub;
#[cfg(test)]
mod tests;

/// First size of a batch's buffer; it doubles up to the target.
const BATCH_BYTES_FIRST: usize = 8 << 10;
/// Pause between two steps of making space that nobody waits for.
const SPACE_PAUSE: Duration = Duration::from_millis(20);
/// How long to wait before space is asked for again after the disk was full.
const DISK_FULL_RETRY: Duration = Duration::from_millis(200);
/// What a delayed message may grow by when it is stored in its queue: the record of its timer's end, a property.
const FIRING_BYTES: usize = 128;
/// Index blocks are written when so many wait.
const INDEX_BLOCKS_WAITING: usize = 64;

/// What a log is opened with.
#[derive(Clone, Debug)]
pub struct LogOptions {
    pub log: LogId,
    pub directory: PathBuf,
    pub store_id: u64,
    pub segment_bytes: u64,
    /// SYNC_FLUSH: acknowledged means flushed. Else written, and flushed every [`LogOptions::flush_interval`].
    pub flush_each_write: bool,
    pub flush_interval: Duration,
    pub tail_cache_bytes: usize,
    pub read_cache_bytes: usize,
    /// For blocks of the queue index and for the key index, half each.
    pub index_cache_bytes: usize,
    /// Entries of the key index in memory before they become a file; 0: messages are not found by key.
    pub key_tail_entries: usize,
    /// A snapshot is made when the log has grown by this since the last one.
    pub snapshot_bytes: u64,
    /// How its older part is searched for damage.
    pub scrub: ScrubOptions,
    /// `storeHost` of the records: the broker's address as clients see it.
    pub store_host: SocketAddr,
    /// The log is a copy of another broker's: it takes that one's batches and no record of its own.
    pub replica: bool,
    /// With a controller: the epoch that it gave this master, and that its batches have; 0 of a replica. Without one the epoch
    /// is one more than the last one of the log.
    pub elected: Option<u32>,
}

/// Who hears that a log has got further. Called from the log's driver; must not wait.
pub trait LogListener {
    /// Everything before `end` is as durable as the mode asks, and in the tables. `touched` has the queues with new
    /// visible messages, perhaps more than once.
    fn on_durable(&self, log: LogId, end: Position, touched: &[QueueKey]);
    /// Nothing will become durable any more.
    fn on_poisoned(&self, log: LogId, reason: &Arc<str>);
}

/// Bounds of the time that a group commit takes, in microseconds.
const FLUSH_US_BOUNDS: &[u64] = &[
    100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000,
    1_000_000, 5_000_000,
];
/// Bounds of the bytes of a group commit.
const GROUP_BYTES_BOUNDS: &[u64] = &[
    4 << 10,
    8 << 10,
    16 << 10,
    64 << 10,
    256 << 10,
    1 << 20,
    4 << 20,
    8 << 20,
];

/// What the group commits of a log took since its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitFigures {
    /// From the first write of a group to the completion of its last, in microseconds; with SYNC_FLUSH the flush is in it.
    pub flush_us: Histogram,
    /// Bytes of a group as they are written, in whole sectors.
    pub group_bytes: Histogram,
}

impl Default for CommitFigures {
    fn default() -> Self {
        Self {
            flush_us: Histogram::new(FLUSH_US_BOUNDS),
            group_bytes: Histogram::new(GROUP_BYTES_BOUNDS),
        }
    }
}

struct OpenBatch {
    /// Position of the header.
    start: u64,
    /// Position of the buffer's first byte: `start` rounded down to a sector.
    buffer_start: u64,
    buffer: PageBuf,
    /// Bytes of the buffer that are used.
    used: usize,
    record_count: u32,
    first_timestamp_ms: u64,
}

#[derive(Clone)]
struct SealedBatch {
    /// Position of its (first) header.
    start: u64,
    buffer_start: u64,
    /// Where the batch after it begins.
    end: u64,
    buffer: Rc<PageBuf>,
}

struct State {
    commit: GroupCommit,
    open: Option<OpenBatch>,
    sealed: VecDeque<SealedBatch>,
    /// The buffer that holds the sector in which the next batch begins, with its position.
    last: Option<(u64, Rc<PageBuf>)>,
    /// Where the next batch begins.
    next: u64,
    last_crc: u32,
    /// Everything before this is in the tables and may be acknowledged: the end of a batch.
    released: u64,
    /// CRC field of the batch that ends there, for snapshots.
    released_crc: u32,
    /// Its epoch. Not this life's, which may have written nothing: a replica would refuse older batches that follow.
    released_epoch: u32,
    /// (end of a sealed batch, its CRC, its epoch), of those that are not released.
    crcs: VecDeque<(u64, u32, u32)>,
    effects: VecDeque<(u64, Effect)>,
    /// Epoch of the last batch. A replica's are its master's.
    epoch: u32,
    /// Of a replica: what is written or about to be and not in the tables yet.
    unapplied: VecDeque<SealedBatch>,
    /// Of a replica: the batches before this are in the tables.
    applied: u64,
    poisoned: Option<Arc<str>>,
    disk_full: Option<Arc<str>>,
    stopping: bool,
}

/// See the module's page.
pub struct CommitLog<E: Env> {
    env: E,
    options: LogOptions,
    segments: Rc<Segments<E>>,
    reader: Rc<LogReader<E>>,
    index: Rc<IndexFiles<E>>,
    tables: RefCell<Tables>,
    keys: Rc<KeyIndex<E>>,
    state: RefCell<State>,
    listener: RefCell<Option<Rc<dyn LogListener>>>,
    figures: RefCell<CommitFigures>,
    /// Why new messages are refused although there is still space: the disk is fuller than the configuration allows.
    too_full: RefCell<Option<Arc<str>>>,
    /// Nothing beyond this is released, however durable it is here.
    release_limit: Cell<u64>,
    /// Under a controller a log that was opened with so much does not know how much of it counts. 0: it does.
    unsettled_end: Cell<u64>,
    /// Of a replica: where its master's log ended when that last said so; 0 if it has not, and of any other log.
    master_end: Cell<u64>,
    /// Where it ended when it was opened: what lies before was read from the disk.
    opened_end: u64,
    /// It was begun from a seed and has not come to its end yet.
    is_seeding: Cell<bool>,
    /// The queues begin at the first messages from here on; none while that changes.
    tables_start: Cell<Option<u64>>,
    /// Where they begin when that is over, and how many are at it.
    trims_to: Cell<u64>,
    trims_running: Cell<u32>,
    /// Of a replica: what its master has to send again. See `repair.rs`.
    damage: Cell<Option<Damage>>,
    doubt: Cell<Doubt>,
    /// Damage in the older part. See `scrub.rs`.
    scrub: scrub::Scrub,
    /// It is durable further, or takes no writes any more.
    grown: Notify,
    work: Notify,
    space: Notify,
    extended: Notify,
    drained: Notify,
    last_snapshot: Cell<u64>,
    snapshot_running: Cell<bool>,
    blocks_running: Cell<bool>,
    unsynced_from: Cell<Option<u64>>,
    /// In ASYNC_FLUSH: everything before this is flushed.
    flushed: Cell<u64>,
    flushing: Cell<bool>,
    flush_ended: Notify,
    snapshot_saving: Cell<bool>,
    snapshot_ended: Notify,
    /// A flush of index files failed in this life.
    index_failed: Cell<bool>,
    /// (first position of a segment's successor, store time of the segment's last record): retention by age.
    pub(super) segment_times: RefCell<std::collections::BTreeMap<u64, u64>>,
    /// What retention took before its time.
    missed: RefCell<missed::Missed>,
    /// The disk has room for more space ahead than has to be.
    roomy: Cell<bool>,
}

impl<E: Env> CommitLog<E> {
    /// Opens or makes a log and recovers it. A log that is damaged before its tail opens for reading only and says why.
    pub async fn open(env: E, options: LogOptions) -> io::Result<Rc<Self>> {
        let flush = options.flush_each_write && !planted(PlantedBug::FlushSkipped);
        env.create_dir(&options.directory).await?;
        seed::install(&env, &options.directory, options.store_id).await?;
        cut::start_over(&env, &options).await?;
        let segments = Rc::new(
            Segments::open(
                env.clone(),
                options.directory.clone(),
                options.segment_bytes,
                flush,
            )
            .await?,
        );
        let index_directory = options.directory.join("index");
        env.create_dir(&index_directory).await?;
        env.sync_dir(&options.directory).await?;
        let pretended_end = cut::carry_out(&env, &options, &segments).await?;
        let reader = LogReader::new(
            env.clone(),
            segments.clone(),
            options.tail_cache_bytes,
            options.read_cache_bytes,
        );
        let index = IndexFiles::new(env.clone(), index_directory, options.index_cache_bytes / 2);
        let Recovered {
            mut tables,
            end,
            previous_crc,
            epoch,
            last_sector,
            behind,
            snapshot_position,
            segment_times,
        } = recovery::recover(&env, &options, &segments, pretended_end).await?;
        let last_epoch = epoch;
        let epoch = match options.elected {
            _ if options.replica => epoch,
            None => epoch + 1,
            Some(elected) if elected > epoch => elected,
            Some(elected) => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!(
                        "log {} has batches of epoch {epoch}, and this master was given epoch {elected}: it asks for a later one",
                        options.log
                    ),
                ));
            }
        };
        // What the last process wrote and did not live to flush is about to be shown and built upon.
        segments.sync_from(snapshot_position).await?;
        let is_seeding = tables.seeding.is_some();
        let (damage, mut doubt) = (behind.damage, Doubt::None);
        if options.replica {
            replica::mark(&env, &options.directory).await?;
            if options.elected.is_some() {
                let known = repair::marked(&env, &options.directory).await?;
                // What began from a seed lacks everything until it has come to the seed's end.
                let lacks = match is_seeding {
                    true => Doubt::Damaged,
                    false => behind.doubt(),
                };
                doubt = known.max(lacks);
                if doubt > known {
                    repair::mark(&env, &options.directory, doubt).await?;
                }
            }
        } else if damage.is_none() {
            replica::forget_mark(&env, &options.directory, &segments, end, &last_sector).await?;
            repair::forget(&env, &options.directory).await?;
        }
        tables.queues.forget_assigned();
        let keys = KeyIndexOptions {
            log: options.log,
            store_id: options.store_id,
            directory: options.directory.join("keys"),
            tail_entries_max: options.key_tail_entries,
            cache_bytes: options.index_cache_bytes / 2,
        };
        let keys = KeyIndex::open(env.clone(), keys, segments.clone(), end).await;
        if let Some(damage) = &damage {
            let reason = damage.to_string();
            if options.replica {
                tracing::error!(log = options.log, %reason, "the log is damaged: reads go on up to there, and the rest is fetched from the master again as soon as that is there");
            } else {
                tracing::error!(log = options.log, %reason, "the log is damaged: reads go on up to there, writes are refused. If no other broker has it, restore its files from a copy; if one has, make that one the master");
            }
        }
        let poisoned = damage
            .filter(|_| !options.replica)
            .map(|damage| Arc::<str>::from(damage.to_string()));
        let log = Rc::new(Self {
            env,
            segments,
            reader,
            index,
            tables: RefCell::new(tables),
            keys,
            state: RefCell::new(State {
                commit: GroupCommit::new(Position(end)),
                open: None,
                sealed: VecDeque::new(),
                last: last_sector.map(|pages| (end & !(SECTOR_BYTES as u64 - 1), pages)),
                next: end,
                last_crc: previous_crc,
                released: end,
                released_crc: previous_crc,
                released_epoch: last_epoch,
                crcs: VecDeque::new(),
                effects: VecDeque::new(),
                epoch,
                unapplied: VecDeque::new(),
                applied: end,
                poisoned,
                disk_full: None,
                stopping: false,
            }),
            listener: RefCell::default(),
            figures: RefCell::default(),
            too_full: RefCell::default(),
            // A replica hears from its master what is confirmed, a master from its replicas.
            unsettled_end: Cell::new(options.elected.map_or(0, |_| end)),
            master_end: Cell::default(),
            opened_end: end,
            is_seeding: Cell::new(is_seeding),
            tables_start: Cell::default(),
            trims_to: Cell::default(),
            trims_running: Cell::default(),
            damage: Cell::new(damage.filter(|_| options.replica)),
            doubt: Cell::new(doubt),
            scrub: scrub::Scrub::default(),
            release_limit: Cell::new(match options.elected {
                Some(_) if options.replica => 0,
                _ => u64::MAX,
            }),
            grown: Notify::default(),
            work: Notify::default(),
            space: Notify::default(),
            extended: Notify::default(),
            drained: Notify::default(),
            last_snapshot: Cell::new(snapshot_position),
            snapshot_running: Cell::new(false),
            blocks_running: Cell::new(false),
            unsynced_from: Cell::new(None),
            flushed: Cell::new(end),
            flushing: Cell::new(false),
            flush_ended: Notify::default(),
            snapshot_saving: Cell::new(false),
            snapshot_ended: Notify::default(),
            index_failed: Cell::new(false),
            segment_times: RefCell::new(segment_times),
            missed: RefCell::default(),
            roomy: Cell::new(false),
            options,
        });
        // Retention may have removed segments after the snapshot was made.
        log.trim_tables(log.segments.start()).await?;
        // The first message must not wait for the disk to give space; a full disk is not an error here.
        if log.needs_space() {
            log.extend_once().await;
        }
        Ok(log)
    }

    /// Starts the tasks of the log. Once.
    pub fn start(self: &Rc<Self>, listener: Rc<dyn LogListener>) {
        *self.listener.borrow_mut() = Some(listener);
        let log = self.clone();
        self.env.spawn_commit(async move { log.drive().await });
        self.keys.start();
        let log = self.clone();
        self.env
            .spawn_background(async move { log.keep_space().await });
        let log = self.clone();
        self.env
            .spawn_background(async move { log.keep_scrubbed().await });
        if !self.options.flush_each_write {
            let log = self.clone();
            self.env
                .spawn_background(async move { log.flush_by_time().await });
        }
    }

    pub(super) fn env(&self) -> &E {
        &self.env
    }

    pub fn id(&self) -> LogId {
        self.options.log
    }

    pub fn options(&self) -> &LogOptions {
        &self.options
    }

    /// The tables, for looking.
    pub fn tables(&self) -> &RefCell<Tables> {
        &self.tables
    }

    /// Where messages are found by key.
    pub fn keys(&self) -> &Rc<KeyIndex<E>> {
        &self.keys
    }

    pub fn reader(&self) -> &Rc<LogReader<E>> {
        &self.reader
    }

    /// Bytes of the queue index's blocks in memory.
    pub fn index_bytes(&self) -> usize {
        self.index.bytes()
    }

    pub(super) fn segments(&self) -> &Rc<Segments<E>> {
        &self.segments
    }

    /// Everything before this is in the tables and acknowledged, or may be: as durable as the mode asks, here and wherever
    /// else it has to be.
    pub fn durable(&self) -> Position {
        Position(self.state.borrow().released)
    }

    /// Everything before this is as durable here as the mode asks: what a replica may be given.
    pub fn durable_here(&self) -> Position {
        self.state.borrow().commit.durable()
    }

    /// Nothing beyond `limit` is shown or acknowledged from now on; what was, stays so. At first there is no limit.
    pub fn set_release_limit(&self, limit: u64) {
        if self.state.borrow().stopping {
            return;
        }
        if limit >= self.unsettled_end.get() {
            self.unsettled_end.set(0);
        }
        if self.release_limit.replace(limit) < limit {
            self.release();
        }
    }

    /// Whether what this log holds may be shown. A replica under a controller has to hear first that everything that it was
    /// opened with is confirmed: what a master had stored and nobody else got is cut off when it returns.
    pub fn is_settled(&self) -> bool {
        (self.is_confirmed() || !self.options.replica) && !self.is_seeding.get()
    }

    /// Whether nothing that this log was opened with can be cut off any more. No snapshot is made before: it would take the place of
    /// the older one from which the log is recovered after a cut.
    pub(super) fn is_confirmed(&self) -> bool {
        self.unsettled_end.get() == 0
    }

    /// Whether it was begun from a seed and has not come to its end yet: it is of no use without its master.
    pub fn is_seeding(&self) -> bool {
        self.is_seeding.get()
    }

    /// Where recovery would begin.
    pub(super) fn snapshot_position(&self) -> u64 {
        self.last_snapshot.get()
    }

    /// Where the queues of the tables begin; none while retention moves that.
    pub(super) fn tables_start(&self) -> Option<u64> {
        self.tables_start.get()
    }

    /// Where the tables end, and the CRC field of the batch before.
    pub(super) fn released(&self) -> (u64, u32, u32) {
        let state = self.state.borrow();
        (state.released, state.released_crc, state.released_epoch)
    }

    /// Completes when `done` says so; asked again whenever the log is durable further, and when it takes no more writes.
    pub async fn grown_until(&self, done: impl FnMut() -> bool) {
        self.grown.until(done).await;
    }

    /// Wakes whoever waits in [`CommitLog::grown_until`].
    pub fn look_again(&self) {
        self.grown.notify();
    }

    /// First position that retention has left.
    pub fn start_position(&self) -> Position {
        Position(self.segments.start())
    }

    /// What its group commits took.
    pub fn figures(&self) -> CommitFigures {
        *self.figures.borrow()
    }

    /// Why space is missing, if the disk is full.
    pub fn disk_full(&self) -> Option<Arc<str>> {
        let really = self.state.borrow().disk_full.clone();
        really.or_else(|| self.too_full.borrow().clone())
    }

    /// New messages are refused for this reason, or taken again. What was taken goes on: offsets, acknowledgements, timers
    /// that fire, ends of transactions.
    pub fn set_too_full(&self, reason: Option<Arc<str>>) {
        let mut known = self.too_full.borrow_mut();
        match (&*known, &reason) {
            (None, Some(reason)) => {
                tracing::error!(log = self.options.log, %reason, "sends are refused");
            }
            (Some(_), None) => tracing::info!(log = self.options.log, "sends are taken again"),
            _ => {}
        }
        *known = reason;
    }

    /// Gives the segment back to the disk that is kept for later.
    pub(super) async fn drop_spare(&self) -> io::Result<bool> {
        self.segments.drop_spare().await
    }

    /// When the first batch that retention has left was stored, milliseconds since 1970; none in an empty log, or if it
    /// cannot be read.
    pub async fn first_timestamp_ms(&self) -> Option<u64> {
        let start = self.start_position().0;
        if start + HEADER_BYTES as u64 > self.durable().0 {
            return None;
        }
        let head = self.reader.read_whole(start, HEADER_BYTES).await.ok()?;
        BatchHeader::read(&head, Position(start), self.options.store_id)
            .map(|header| header.first_timestamp_ms)
    }

    /// Bytes that are appended and not yet released.
    pub fn pending_bytes(&self) -> u64 {
        self.state.borrow().pending_bytes()
    }

    /// Why the log takes no writes, if so.
    pub fn refusal(&self) -> Option<Refusal> {
        let state = self.state.borrow();
        if let Some(reason) = &state.poisoned {
            return Some(Refusal::Poisoned {
                log: self.options.log,
                reason: reason.clone(),
            });
        }
        if state.stopping {
            return Some(Refusal::Stopping);
        }
        drop(state);
        self.refuse_damaged()
    }

    /// A replica with damage takes nothing before that is wiped.
    fn refuse_damaged(&self) -> Option<Refusal> {
        let damage = self.damage.get()?;
        Some(Refusal::Poisoned {
            log: self.options.log,
            reason: damage.to_string().into(),
        })
    }

    fn refuse(&self, state: &State) -> Option<Refusal> {
        if let Some(reason) = &state.poisoned {
            return Some(Refusal::Poisoned {
                log: self.options.log,
                reason: reason.clone(),
            });
        }
        if state.stopping {
            return Some(Refusal::Stopping);
        }
        if self.options.replica {
            return Some(Refusal::Replica);
        }
        let pending_bytes = state.pending_bytes() as usize;
        (pending_bytes > LOG_PENDING_BYTES_MAX).then_some(Refusal::Busy {
            log: self.options.log,
            pending_bytes,
            limit_bytes: LOG_PENDING_BYTES_MAX,
        })
    }

    /// The same for a new message.
    fn refuse_new(&self, state: &State) -> Option<Refusal> {
        let too_full = || {
            let reason = self.too_full.borrow().clone()?;
            Some(Refusal::DiskFull { reason })
        };
        self.refuse(state).or_else(too_full)
    }

    /// Appends messages of one queue as consecutive records of one batch. `Ok` is a promise only when the log is durable
    /// beyond the returned position.
    pub fn append(&self, messages: &[NewMessage]) -> Result<(Appended, Position), Refusal> {
        let mut state = self.state.borrow_mut();
        if let Some(refusal) = self.refuse_new(&state) {
            return Err(refusal);
        }
        let store_timestamp = self.env.now_ms();
        let Some(first) = messages.first() else {
            return Err(Refusal::NoQueue);
        };
        let mut tables = self.tables.borrow_mut();
        let opened = opening(&state, &tables, first.queue, &first.topic);
        let total = messages
            .iter()
            .map(|message| self.record_bytes(message))
            .sum::<usize>()
            + opened.as_ref().map_or(0, |(record, _)| record.len());
        self.reserve(&mut state, total, store_timestamp)?;
        if let Some((record, control)) = opened {
            let at = state.put(&record);
            state.effects.push_back((at, Effect::Control(control)));
        }
        let mut appended = Appended {
            queue_offset: 0,
            physical_offsets: SmallVec::new(),
            store_timestamp: store_timestamp as i64,
            copies: Copies::Enough,
        };
        let first_offset = tables.queues.assign(first.queue, messages.len());
        appended.queue_offset = first_offset;
        let mut entries: SmallVec<[QueueEntry; 1]> = SmallVec::with_capacity(messages.len());
        let topic = TopicHash::of(&first.topic);
        for (message, queue_offset) in messages.iter().zip(first_offset..) {
            let entry = self.put_message(&mut state, message, topic, queue_offset, store_timestamp);
            let position = Position(entry.position);
            let physical = PhysicalOffset::new(self.options.log, position);
            appended.physical_offsets.push(physical);
            entries.push(entry);
        }
        let last = Position(entries.last().map_or(0, |entry| entry.position));
        state.put_entries(first.queue, first_offset, entries, store_timestamp);
        self.work_waits(&state);
        drop(state);
        drop(tables);
        self.wake_space();
        Ok((appended, last))
    }

    /// There is something to commit. What fills a batch and more is not kept waiting for what is still to be read.
    fn work_waits(&self, state: &State) {
        self.work.notify();
        if !state.sealed.is_empty() && state.commit.may_write() {
            self.env.hurry_commits();
        }
    }

    /// Appends whole records of one queue to one batch, as [`CommitLog::append`]. They are copied from where they were
    /// received to the batch's pages, and what is not known before is filled in there.
    pub fn append_records(&self, new: &NewRecords) -> Result<(Appended, Position), Refusal> {
        let mut state = self.state.borrow_mut();
        if let Some(refusal) = self.refuse_new(&state) {
            return Err(refusal);
        }
        let store_timestamp = self.env.now_ms();
        let mut tables = self.tables.borrow_mut();
        let opened = opening(&state, &tables, new.queue, &new.topic);
        let total = new.records.len() + opened.as_ref().map_or(0, |(record, _)| record.len());
        self.reserve(&mut state, total, store_timestamp)?;
        if let Some((record, control)) = opened {
            let at = state.put(&record);
            state.effects.push_back((at, Effect::Control(control)));
        }
        let mut appended = Appended {
            queue_offset: 0,
            physical_offsets: SmallVec::new(),
            store_timestamp: store_timestamp as i64,
            copies: Copies::Enough,
        };
        let first_offset = tables.queues.assign(new.queue, new.marks.len());
        appended.queue_offset = first_offset;
        let patch = Patch::new(
            new.sys_flag,
            new.born_host,
            store_timestamp as i64,
            self.options.store_host,
        );
        let topic = TopicHash::of(&new.topic);
        let mut entries: SmallVec<[QueueEntry; 1]> = SmallVec::with_capacity(new.marks.len());
        let mut last = Position::default();
        let mut rest = &new.records[..];
        for (mark, queue_offset) in new.marks.iter().zip(first_offset..) {
            let (record, behind) = rest.split_at(mark.bytes as usize);
            rest = behind;
            let (at, memory) = state.take(record.len());
            last = Position(at);
            let physical = PhysicalOffset::new(self.options.log, last);
            patch.copy(queue_offset, physical.0, record, memory);
            if appended.physical_offsets.is_empty() {
                appended.physical_offsets.push(physical);
            }
            self.keys
                .stage(at, store_timestamp, topic, mark.keys_of(record));
            entries.push(QueueEntry {
                position: at,
                size: mark.bytes,
                tags_code: mark.tags_code,
            });
        }
        state.put_entries(new.queue, first_offset, entries, store_timestamp);
        assert!(rest.is_empty(), "the marks are those of the records");
        self.work_waits(&state);
        drop(state);
        drop(tables);
        self.wake_space();
        Ok((appended, last))
    }

    /// Appends control records to one batch. As [`CommitLog::append`].
    pub fn append_control(&self, controls: &[Control]) -> Result<Position, Refusal> {
        let mut state = self.state.borrow_mut();
        if let Some(refusal) = self.refuse(&state) {
            return Err(refusal);
        }
        let records: Vec<Vec<u8>> = controls.iter().map(Control::encode).collect();
        let total = records.iter().map(Vec::len).sum();
        self.reserve(&mut state, total, self.env.now_ms())?;
        let mut last = Position::default();
        for (record, control) in records.iter().zip(controls) {
            let at = state.put(record);
            state
                .effects
                .push_back((at, Effect::Control(control.clone())));
            last = Position(at);
        }
        drop(state);
        self.work.notify();
        self.wake_space();
        Ok(last)
    }

    /// Appends a message that becomes visible later. The physical offset is that of the message within the delayed record;
    /// a queue offset it gets when it is due. As [`CommitLog::append`].
    pub fn append_delayed(
        &self,
        message: &NewMessage,
        due_ms: u64,
    ) -> Result<(Appended, Position), Refusal> {
        let mut state = self.state.borrow_mut();
        if let Some(refusal) = self.refuse_new(&state) {
            return Err(refusal);
        }
        let store_timestamp = self.env.now_ms();
        let opened = opening(&state, &self.tables.borrow(), message.queue, &message.topic);
        let total = delayed::RECORD_AT
            + self.record_bytes(message)
            + opened.as_ref().map_or(0, |(record, _)| record.len());
        // What is taken now has to fit when it is due.
        self.check_size(total + FIRING_BYTES)?;
        self.reserve(&mut state, total, store_timestamp)?;
        if let Some((record, control)) = opened {
            let at = state.put(&record);
            state.effects.push_back((at, Effect::Control(control)));
        }
        let at = self.put_delayed(&mut state, message, due_ms, store_timestamp);
        drop(state);
        self.work.notify();
        self.wake_space();
        let inner = Position(at).advance(delayed::RECORD_AT as u64);
        let appended = Appended {
            queue_offset: 0,
            physical_offsets: SmallVec::from_iter([PhysicalOffset::new(self.options.log, inner)]),
            store_timestamp: store_timestamp as i64,
            copies: Copies::Enough,
        };
        Ok((appended, Position(at)))
    }

    /// Ends timers, in one batch with what they become: messages in their queues, or delayed messages anew. After a crash
    /// all of it has happened or nothing. The topics are open in this log. As [`CommitLog::append`].
    pub fn append_moved(
        &self,
        messages: &[NewMessage],
        delayed: &[(NewMessage, u64)],
        timers: &[TimerKey],
    ) -> Result<Position, Refusal> {
        let done = Control::TimersDone {
            timers: timers.into(),
        };
        self.append_batch(messages, delayed, done)
    }

    /// Appends all of this to one batch; the record `done` comes last. The topics are open in this log.
    fn append_batch(
        &self,
        messages: &[NewMessage],
        delayed: &[(NewMessage, u64)],
        done: Control,
    ) -> Result<Position, Refusal> {
        let mut state = self.state.borrow_mut();
        if let Some(refusal) = self.refuse(&state) {
            return Err(refusal);
        }
        let store_timestamp = self.env.now_ms();
        let done_record = done.encode();
        let total = done_record.len()
            + messages
                .iter()
                .map(|message| self.record_bytes(message))
                .sum::<usize>()
            + delayed
                .iter()
                .map(|(message, _)| delayed::RECORD_AT + self.record_bytes(message))
                .sum::<usize>();
        self.reserve(&mut state, total, store_timestamp)?;
        let mut tables = self.tables.borrow_mut();
        for message in messages {
            let queue_offset = tables.queues.assign(message.queue, 1);
            let topic = TopicHash::of(&message.topic);
            let entry = self.put_message(&mut state, message, topic, queue_offset, store_timestamp);
            let effect = Effect::Message {
                queue: message.queue,
                queue_offset,
                entry,
                store_timestamp: store_timestamp as i64,
            };
            state.effects.push_back((entry.position, effect));
        }
        for (message, due_ms) in delayed {
            self.put_delayed(&mut state, message, *due_ms, store_timestamp);
        }
        let at = state.put(&done_record);
        state.effects.push_back((at, Effect::Control(done)));
        drop(tables);
        drop(state);
        self.work.notify();
        self.wake_space();
        Ok(Position(at))
    }

    fn record_bytes(&self, message: &NewMessage) -> usize {
        record_fields(message, 0, 0, 0, self.options.store_host, |fields| {
            fields.encoded_len()
        })
    }

    /// Puts a message into the open batch, which has room for it: its entry.
    fn put_message(
        &self,
        state: &mut State,
        message: &NewMessage,
        topic: TopicHash,
        queue_offset: i64,
        store_timestamp: u64,
    ) -> QueueEntry {
        let size = self.record_bytes(message);
        let (at, memory) = state.take(size);
        record_fields(
            message,
            queue_offset,
            PhysicalOffset::new(self.options.log, Position(at)).0,
            store_timestamp as i64,
            self.options.store_host,
            |fields| fields.encode_into(memory),
        );
        self.keys.stage(at, store_timestamp, topic, message.keys());
        QueueEntry {
            position: at,
            size: size as u32,
            tags_code: message.tags_code,
        }
    }

    /// The same for a delayed one: the position of the delayed record.
    fn put_delayed(
        &self,
        state: &mut State,
        message: &NewMessage,
        due_ms: u64,
        store_timestamp: u64,
    ) -> u64 {
        let bytes = delayed::RECORD_AT + self.record_bytes(message);
        let topic_id = message.queue.topic_id;
        let (at, memory) = state.take(bytes);
        let inner = Position(at).advance(delayed::RECORD_AT as u64);
        let memory = delayed::write_head(memory, delayed::Head { due_ms, topic_id });
        record_fields(
            message,
            0,
            PhysicalOffset::new(self.options.log, inner).0,
            store_timestamp as i64,
            self.options.store_host,
            |fields| fields.encode_into(memory),
        );
        let key = TimerKey {
            due_ms,
            position: at,
        };
        let timer = Timer {
            bytes: bytes as u32,
            topic_id,
        };
        state
            .effects
            .push_back((at, Effect::Delayed { key, timer }));
        at
    }

    /// Whether so many bytes of records fit into a segment.
    fn check_size(&self, bytes: usize) -> Result<(), Refusal> {
        let segment_bytes = self.options.segment_bytes as usize;
        let limit_bytes = segment_bytes - 2 * HEADER_BYTES - SECTOR_BYTES;
        if bytes > limit_bytes {
            return Err(Refusal::TooLarge { bytes, limit_bytes });
        }
        Ok(())
    }

    /// Makes sure that `bytes` of records fit into the open batch.
    fn reserve(&self, state: &mut State, bytes: usize, now_ms: u64) -> Result<(), Refusal> {
        self.check_size(bytes)?;
        // Where the batch begins if it has to be a new one, and whether it has to.
        let (start, used) = match &state.open {
            Some(open) if open.used + bytes <= BATCH_BYTES_TARGET || open.record_count == 0 => (
                open.start,
                open.used - (open.start - open.buffer_start) as usize,
            ),
            Some(_) => {
                let end = self.seal_end(state);
                (end, HEADER_BYTES)
            }
            None => (state.next, HEADER_BYTES),
        };
        let segment_end = self.segments.segment_end(start);
        let batch_end = start + (used + bytes).next_multiple_of(ALIGN_BYTES) as u64;
        let rolls = batch_end + HEADER_BYTES as u64 > segment_end;
        let needed_end = if rolls {
            segment_end
                + (HEADER_BYTES + bytes + HEADER_BYTES).next_multiple_of(SECTOR_BYTES) as u64
        } else {
            (batch_end + HEADER_BYTES as u64).next_multiple_of(SECTOR_BYTES as u64)
        };
        if needed_end > self.segments.allocated_end() {
            self.space.notify();
            return Err(match &state.disk_full {
                Some(reason) => Refusal::DiskFull {
                    reason: reason.clone(),
                },
                None => Refusal::SpaceOnItsWay {
                    log: self.options.log,
                },
            });
        }
        if rolls {
            self.roll(state);
        } else if let Some(open) = &state.open
            && open.start != start
        {
            self.seal(state, true);
        }
        if state.open.is_none() {
            self.open_batch(state, bytes, now_ms);
        }
        let Some(open) = &mut state.open else {
            unreachable!("it was opened just now");
        };
        self.make_room(open, bytes);
        Ok(())
    }

    /// Makes the buffer of an open batch large enough for so many more bytes, which its segment has.
    fn make_room(&self, open: &mut OpenBatch, bytes: usize) {
        let wanted = (open.used + bytes).next_multiple_of(SECTOR_BYTES);
        if wanted <= open.buffer.len() {
            return;
        }
        let usual = match self.options.replica {
            true => REPLICA_RUN_BYTES_MAX,
            false => BATCH_BYTES_TARGET,
        };
        // Doubling: each byte is moved at most once on the average, and only while the device is busy.
        let room = (self.segments.segment_end(open.start) - open.buffer_start) as usize;
        let bigger = wanted
            .max((open.buffer.len() * 2).min(usual + SECTOR_BYTES))
            .min(room);
        if !open.buffer.grow(bigger) {
            let mut buffer = self.env.alloc_batch(bigger);
            buffer.as_mut()[..open.used].copy_from_slice(&open.buffer[..open.used]);
            open.buffer = buffer;
        }
    }

    /// Position up to which the log is flushed, which in ASYNC_FLUSH is behind the acknowledged one: a loss of power may
    /// tear what lies between, and that is no damage.
    fn flushed(&self, state: &State) -> u64 {
        if self.options.flush_each_write {
            state.commit.durable().0
        } else {
            self.flushed.get()
        }
    }

    /// Flushes what ASYNC_FLUSH has written since the last time. A failure ends the log.
    async fn flush_written(&self) -> io::Result<()> {
        // One at a time: whoever finds nothing to flush must not go on while another flush is under way.
        self.flush_ended.until(|| !self.flushing.get()).await;
        let Some(from) = self.unsynced_from.take() else {
            return Ok(());
        };
        self.flushing.set(true);
        let end = self.durable_here().0;
        let result = self.segments.sync_from(from).await;
        self.flushing.set(false);
        self.flush_ended.notify();
        if let Err(error) = &result {
            self.poison(format!("flushing failed: {error}"));
        } else {
            self.flushed.set(self.flushed.get().max(end));
        }
        result
    }

    /// Where the next batch would begin if the open one were sealed to a whole sector now.
    fn seal_end(&self, state: &State) -> u64 {
        state.open.as_ref().map_or(state.next, |open| {
            open.buffer_start + open.used.next_multiple_of(SECTOR_BYTES) as u64
        })
    }

    fn open_batch(&self, state: &mut State, bytes: usize, now_ms: u64) {
        let start = state.next;
        let buffer_start = start & !(SECTOR_BYTES as u64 - 1);
        let front = (start - buffer_start) as usize;
        let room = (self.segments.segment_end(start) - buffer_start) as usize;
        let size = (front + HEADER_BYTES + bytes)
            .max(BATCH_BYTES_FIRST)
            .next_multiple_of(SECTOR_BYTES)
            .min(room);
        let mut buffer = self.env.alloc_batch(size);
        let memory = buffer.as_mut();
        if front > 0 {
            let (last_start, last) = state
                .last
                .as_ref()
                .expect("whoever ended inside a sector left it");
            let at = (buffer_start - last_start) as usize;
            memory[..front].copy_from_slice(&last[at..at + front]);
        }
        memory[front..front + HEADER_BYTES].fill(0);
        state.open = Some(OpenBatch {
            start,
            buffer_start,
            buffer,
            used: front + HEADER_BYTES,
            record_count: 0,
            first_timestamp_ms: now_ms,
        });
    }

    /// Seals the open batch. `pad`: to a whole sector, because the next batch may be written at the same time.
    fn seal(&self, state: &mut State, pad: bool) {
        let Some(open) = state.open.take() else {
            return;
        };
        let OpenBatch {
            start,
            buffer_start,
            mut buffer,
            used,
            record_count,
            first_timestamp_ms,
        } = open;
        let front = (start - buffer_start) as usize;
        let end = if pad {
            used.next_multiple_of(SECTOR_BYTES)
        } else {
            front + (used - front).next_multiple_of(ALIGN_BYTES)
        };
        let padded = end.next_multiple_of(SECTOR_BYTES);
        let memory = buffer.as_mut();
        memory[used..padded].fill(0);
        let mut header = BatchHeader {
            length: (end - front) as u32,
            crc: 0,
            previous_crc: state.last_crc,
            position: start,
            durable: self.flushed(state),
            first_timestamp_ms,
            epoch: state.epoch,
            record_bytes: (used - front - HEADER_BYTES) as u32,
            record_count,
            flags: 0,
            store_id: self.options.store_id,
        };
        state.last_crc = header.seal(&mut memory[front..end]);
        buffer.trim_to(padded);
        let next = buffer_start + end as u64;
        self.push_sealed(state, start, buffer_start, next, buffer);
    }

    fn push_sealed(
        &self,
        state: &mut State,
        start: u64,
        buffer_start: u64,
        next: u64,
        buffer: PageBuf,
    ) {
        let buffer = Rc::new(buffer);
        state.next = next;
        state.commit.on_append(Position(next));
        state.crcs.push_back((next, state.last_crc, state.epoch));
        state.last = Some((buffer_start, buffer.clone()));
        self.reader.add_tail(buffer_start, buffer.clone());
        state.sealed.push_back(SealedBatch {
            start,
            buffer_start,
            end: next,
            buffer,
        });
    }

    /// Ends the segment: seals what is open and writes the mark behind it.
    fn roll(&self, state: &mut State) {
        self.segment_times
            .borrow_mut()
            .insert(self.segments.segment_end(state.next), self.env.now_ms());
        if state.open.is_some() {
            self.seal(state, true);
        }
        let start = state.next;
        let segment_end = self.segments.segment_end(start);
        if start.is_multiple_of(self.options.segment_bytes) {
            // The sealed batch filled its segment to the last byte: there is no room for a mark and none is needed.
            return;
        }
        self.open_batch(state, 0, self.env.now_ms());
        let Some(open) = state.open.take() else {
            unreachable!("it was opened just now");
        };
        let front = (open.start - open.buffer_start) as usize;
        let mut buffer = open.buffer;
        let end = front + HEADER_BYTES;
        let padded = end.next_multiple_of(SECTOR_BYTES);
        let memory = buffer.as_mut();
        memory[end..padded].fill(0);
        let mut header = BatchHeader {
            length: HEADER_BYTES as u32,
            crc: 0,
            previous_crc: state.last_crc,
            position: start,
            durable: self.flushed(state),
            first_timestamp_ms: open.first_timestamp_ms,
            epoch: state.epoch,
            record_bytes: 0,
            record_count: 0,
            flags: FLAG_SEGMENT_END,
            store_id: self.options.store_id,
        };
        state.last_crc = header.seal(&mut memory[front..end]);
        buffer.trim_to(padded);
        self.push_sealed(state, start, open.buffer_start, segment_end, buffer);
    }

    /// What is to be written now: all that is sealed and, behind it, what is open.
    fn take_group(&self) -> Option<Vec<SealedBatch>> {
        let mut state = self.state.borrow_mut();
        if !state.commit.may_write() {
            return None;
        }
        if self.options.replica {
            let run = self.take_run(&mut state)?;
            state.commit.on_write(Position(run.end));
            return Some(vec![run]);
        }
        let count = state.sealed.len().min(GROUP_BATCHES_MAX);
        let mut group: Vec<SealedBatch> = state.sealed.drain(..count).collect();
        // The last one of a group may end inside a sector: the next group is written only when this one is durable.
        if state.sealed.is_empty()
            && state
                .open
                .as_ref()
                .is_some_and(|open| open.record_count > 0)
        {
            self.seal(&mut state, false);
            group.extend(state.sealed.pop_front());
        }
        let end = group.last()?.end;
        state.commit.on_write(Position(end));
        Some(group)
    }

    /// The only lines that wait for the device. An error ends the log.
    async fn drive(self: Rc<Self>) {
        loop {
            let Some(group) = self.take_group() else {
                self.drained.notify();
                if self.state.borrow().poisoned.is_some() {
                    return;
                }
                self.work.notified().await;
                continue;
            };
            let end = group.last().map_or(0, |batch| batch.end);
            if planted(PlantedBug::AckBeforeFlush) {
                self.on_durable_here(end);
            }
            let begun_ns = self.env.now_ns();
            self.env.commit_under_way(true);
            self.reader.gate().commit_begins();
            let written = self.write_group(&group).await;
            self.env.commit_under_way(false);
            self.reader.gate().commit_ended(self.env.now_ns());
            match written {
                Ok(()) => {
                    let took_ns = self.env.now_ns() - begun_ns;
                    let bytes: u64 = group.iter().map(|batch| batch.buffer.len() as u64).sum();
                    {
                        let mut figures = self.figures.borrow_mut();
                        figures.flush_us.record(took_ns / 1_000);
                        figures.group_bytes.record(bytes);
                    }
                    let start = group.first().map_or(0, |batch| batch.buffer_start);
                    if !self.options.flush_each_write && self.unsynced_from.get().is_none() {
                        self.unsynced_from.set(Some(start));
                    }
                    self.reader.forget(start..end, 0);
                    let is_busy = self.env.is_busy();
                    if !planted(PlantedBug::AckBeforeFlush) {
                        self.on_durable_here(end);
                    }
                    self.reader.evict_tail(end);
                    self.look_after();
                    if is_busy && self.state.borrow().sealed.is_empty() {
                        // More is about to come: as much as fills a batch, or all that was there to be read.
                        futures_lite::future::yield_now().await;
                    }
                }
                Err(error) => {
                    self.poison(format!(
                        "writing at position {} failed: {error}",
                        group.first().map_or(0, |batch| batch.buffer_start)
                    ));
                    return;
                }
            }
        }
    }

    fn appended(&self) -> u64 {
        self.state.borrow().commit.appended().0
    }

    async fn write_group(&self, group: &[SealedBatch]) -> io::Result<()> {
        let locate = |batch: &SealedBatch| {
            self.segments.locate(batch.buffer_start).ok_or_else(|| {
                io::Error::other(format!("no segment has position {}", batch.buffer_start))
            })
        };
        if let [one] = group {
            let (file, at) = locate(one)?;
            return file.write_at(one.buffer.clone(), at).await;
        }
        // One write, with one flush, unless a segment ends within it; recovery cuts at the first batch that is not whole.
        let follows = |pair: &[SealedBatch]| {
            let end = pair[0].buffer_start + pair[0].buffer.len() as u64;
            end == pair[1].buffer_start && !end.is_multiple_of(self.options.segment_bytes)
        };
        if let Some(first) = group.first()
            && group.windows(2).all(follows)
        {
            let (file, at) = locate(first)?;
            let buffers = group.iter().map(|batch| batch.buffer.clone()).collect();
            return file.write_all_at(buffers, at).await;
        }
        // All at once.
        let outstanding = Rc::new((
            Cell::new(group.len()),
            RefCell::new(Ok(())),
            Notify::default(),
        ));
        for batch in group {
            let (file, at) = locate(batch)?;
            let buffer = batch.buffer.clone();
            let outstanding = outstanding.clone();
            self.env.spawn(async move {
                if let Err(error) = file.write_at(buffer, at).await {
                    *outstanding.1.borrow_mut() = Err(error);
                }
                outstanding.0.set(outstanding.0.get() - 1);
                outstanding.2.notify();
            });
        }
        outstanding.2.until(|| outstanding.0.get() == 0).await;
        outstanding.1.replace(Ok(()))
    }

    /// Everything before `end` is durable here.
    fn on_durable_here(&self, end: u64) {
        self.state.borrow_mut().commit.on_durable(Position(end));
        self.grown.notify();
        self.release();
    }

    /// What is durable and allowed goes into the tables, and to the listener.
    fn release(&self) {
        let mut touched: SmallVec<[QueueKey; 32]> = SmallVec::new();
        let end = {
            let mut state = self.state.borrow_mut();
            let state = &mut *state;
            if state.poisoned.is_some() {
                return;
            }
            let before = state.released;
            let allowed = state.commit.durable().0.min(self.release_limit.get());
            while let Some(&(at, crc, epoch)) = state.crcs.front() {
                if at > allowed {
                    break;
                }
                state.released = at;
                state.released_crc = crc;
                state.released_epoch = epoch;
                state.crcs.pop_front();
            }
            let end = state.released;
            if end == before {
                return;
            }
            let mut tables = self.tables.borrow_mut();
            while state.effects.front().is_some_and(|(at, _)| *at < end) {
                let Some((_, effect)) = state.effects.pop_front() else {
                    break;
                };
                if let Some(queue) = tables.apply(effect)
                    && touched.last() != Some(&queue)
                {
                    touched.push(queue);
                }
            }
            end
        };
        if self.options.replica
            && let Err(reason) = self.apply_runs(end, &mut touched)
        {
            return self.poison(reason);
        }
        self.keys.commit(end);
        if self.options.elected.is_some() {
            // Slaves are told what is confirmed.
            self.grown.notify();
        }
        let listener = self.listener.borrow().clone();
        if let Some(listener) = listener {
            listener.on_durable(self.options.log, Position(end), &touched);
        }
    }

    /// Ends all writing, for good.
    fn poison(&self, reason: String) {
        let reason: Arc<str> = reason.into();
        tracing::error!(log = self.options.log, %reason, "the log takes no writes any more");
        {
            let mut state = self.state.borrow_mut();
            state.commit.on_failure();
            state.poisoned = Some(reason.clone());
            state.open = None;
            state.sealed.clear();
            state.effects.clear();
            state.unapplied.clear();
        }
        self.keys.forget_staged();
        self.scrub.ring();
        let listener = self.listener.borrow().clone();
        if let Some(listener) = listener {
            listener.on_poisoned(self.options.log, &reason);
        }
        self.drained.notify();
        self.extended.notify();
        self.grown.notify();
    }

    /// Starts what is due behind the commits: index blocks, a snapshot.
    fn look_after(self: &Rc<Self>) {
        if !self.blocks_running.get()
            && self.tables.borrow().queues.unwritten_count() >= INDEX_BLOCKS_WAITING
        {
            self.blocks_running.set(true);
            let log = self.clone();
            self.env.spawn_background(async move {
                if let Err(error) = log.write_index().await {
                    tracing::warn!(log = log.options.log, %error, "index blocks stay in memory: their file cannot be written");
                    log.pause(Duration::from_secs(1)).await;
                }
                log.blocks_running.set(false);
            });
        }
        let grown = self.durable().0 - self.last_snapshot.get();
        let is_due =
            grown >= self.options.snapshot_bytes && self.is_confirmed() && !self.is_seeding.get();
        if is_due && !self.snapshot_running.get() {
            self.snapshot_running.set(true);
            let log = self.clone();
            self.env.spawn_background(async move {
                if let Err(error) = log.save_snapshot().await {
                    tracing::warn!(log = log.options.log, %error, "no snapshot: recovery will read more of the log");
                    log.pause(Duration::from_secs(5)).await;
                }
                log.snapshot_running.set(false);
            });
        }
    }

    /// Before something is tried again. A log that is to stop waits for nothing.
    async fn pause(&self, duration: Duration) {
        let stops = self.grown.until(|| self.state.borrow().stopping);
        futures_lite::future::or(stops, self.env.sleep(duration)).await;
    }

    async fn write_index(&self) -> io::Result<()> {
        let blocks = self.tables.borrow().queues.unwritten();
        self.index.write(&blocks).await?;
        let mut tables = self.tables.borrow_mut();
        for (number, block) in &blocks {
            tables.queues.on_written(*number, block);
        }
        Ok(())
    }

    /// Makes a snapshot at the durable end of the log, after the index blocks that it names.
    pub async fn save_snapshot(&self) -> io::Result<()> {
        // Retention, growth and the end of the process may all want one, and there is one temporary file.
        self.snapshot_ended
            .until(|| !self.snapshot_saving.get())
            .await;
        self.snapshot_saving.set(true);
        let result = self.save_one_snapshot().await;
        self.snapshot_saving.set(false);
        self.snapshot_ended.notify();
        result
    }

    async fn save_one_snapshot(&self) -> io::Result<()> {
        if self.is_seeding.get() {
            return Err(io::Error::other(
                "this log is an unfinished copy: its seed is its snapshot",
            ));
        }
        if !self.is_confirmed() {
            return Err(io::Error::other(
                "it is not known yet how much of this log counts",
            ));
        }
        if self.index_failed.get() {
            return Err(io::Error::other(
                "an index file could not be flushed: no snapshot may name its blocks before the next start",
            ));
        }
        let (mark, payload, freed) = {
            let state = self.state.borrow();
            let mut tables = self.tables.borrow_mut();
            let mark = Mark {
                position: state.released,
                previous_crc: state.released_crc,
                epoch: state.released_epoch,
                store_id: self.options.store_id,
            };
            let mut out = Writer::default();
            tables.write(&mut out);
            let times = self.segment_times.borrow();
            out.u32(times.len() as u32);
            for (end, time) in times.iter() {
                out.u64(*end);
                out.u64(*time);
            }
            (mark, out.finish(), tables.queues.take_freed())
        };
        // The log itself has to be on the device up to there, in ASYNC_FLUSH too: the snapshot stands in for it.
        self.flush_written().await?;
        self.write_index().await?;
        if let Err(error) = self.index.sync().await {
            // A second flush might say that all is well although the blocks are gone. Without a snapshot the next start
            // makes them again from the log.
            self.index_failed.set(true);
            return Err(error);
        }
        snapshot::save(&self.env, &self.options.directory, mark, &payload).await?;
        self.tables.borrow_mut().queues.reuse(freed);
        self.last_snapshot.set(mark.position);
        Ok(())
    }

    /// Space that a log has to have ahead of its tail.
    fn ahead_bytes_min(&self) -> u64 {
        ahead_bytes(0, self.options.segment_bytes, false)
    }

    /// Space that there is to be ahead of a log that ends at `next`.
    fn ahead_bytes(&self, next: u64) -> u64 {
        let log_bytes = next.saturating_sub(self.segments.start());
        ahead_bytes(log_bytes, self.options.segment_bytes, self.roomy.get())
    }

    /// A replica that is further behind than the space ahead of its tail writes long runs: to zero its space first would be
    /// to write everything twice.
    fn ahead(&self) -> Ahead {
        let next = self.state.borrow().next;
        match self.is_far_behind(next) {
            true => Ahead::Reserved,
            false => Ahead::Zeroed,
        }
    }

    /// Of a replica that ends at `next`: the master has more than the space that is always ahead of the tail.
    fn is_far_behind(&self, next: u64) -> bool {
        self.master_end.get() > next + self.ahead_bytes_min()
    }

    /// Whether there is more space than has to be, and nearly as much as there is to be.
    fn is_at_leisure(&self) -> bool {
        self.ahead_bytes(self.appended()) > self.ahead_bytes_min() && self.hurry() == 0
    }

    /// How urgent more space is, 0 to 3.
    fn hurry(&self) -> u32 {
        let next = self.appended();
        let left_bytes = self.segments.allocated_end().saturating_sub(next);
        hurry(left_bytes, self.ahead_bytes(next))
    }

    fn needs_space(&self) -> bool {
        if self.damage.get().is_some() {
            // Segments are about to be removed.
            return false;
        }
        let next = self.state.borrow().next;
        self.segments.allocated_end() < next + self.ahead_bytes(next)
    }

    fn wake_space(&self) {
        if self.needs_space() {
            self.space.notify();
        }
    }

    /// Completes when there is more space than `end`, or none to be had, or the log takes no writes any more. What was
    /// refused with [`Refusal::SpaceOnItsWay`] is worth another try then.
    pub async fn space_beyond(&self, end: u64) {
        self.extended
            .until(|| {
                let state = self.state.borrow();
                self.segments.allocated_end() > end
                    || state.disk_full.is_some()
                    || state.poisoned.is_some()
                    || state.stopping
            })
            .await;
    }

    /// Position up to which there is space.
    pub fn allocated_end(&self) -> u64 {
        self.segments.allocated_end()
    }

    async fn extend_once(&self) -> bool {
        let extended = self.try_extend().await;
        self.extended.notify();
        extended
    }

    async fn try_extend(&self) -> bool {
        match self.segments.extend(self.ahead(), || self.hurry()).await {
            Ok(()) => {
                let space = self.env.disk_space(&self.options.directory);
                self.roomy.set(space.is_ok_and(is_roomy));
                if self.state.borrow_mut().disk_full.take().is_some() {
                    tracing::info!(
                        log = self.options.log,
                        "there is space again: sends are taken"
                    );
                }
                true
            }
            Err(error) => {
                let reason = format!(
                    "{} has no room for more of log {}: {error}. Free space, or shorten fileReservedTime; sends are taken again by themselves",
                    self.options.directory.display(),
                    self.options.log
                );
                let mut state = self.state.borrow_mut();
                if state.disk_full.is_none() {
                    tracing::error!(log = self.options.log, %reason, "sends will be refused when the space that is left is used");
                }
                state.disk_full = Some(reason.into());
                false
            }
        }
    }

    async fn keep_space(self: Rc<Self>) {
        loop {
            {
                let state = self.state.borrow();
                if state.stopping || state.poisoned.is_some() {
                    return;
                }
            }
            if !self.needs_space() {
                self.space.notified().await;
                continue;
            }
            if !self.extend_once().await {
                let _ = self.segments.drop_spare().await;
                self.keys.drop_spares().await;
                self.env.sleep(DISK_FULL_RETRY).await;
            } else if self.is_at_leisure() {
                self.env.sleep(SPACE_PAUSE).await;
            }
        }
    }

    async fn flush_by_time(self: Rc<Self>) {
        loop {
            self.env.sleep(self.options.flush_interval).await;
            {
                let state = self.state.borrow();
                if state.poisoned.is_some()
                    || (state.stopping && self.unsynced_from.get().is_none())
                {
                    return;
                }
            }
            if self.flush_written().await.is_err() {
                return;
            }
        }
    }

    /// Takes no more appends, waits until all is durable, makes a snapshot.
    pub async fn stop(self: &Rc<Self>) -> io::Result<()> {
        if self.options.elected.is_none() {
            // What is durable here is shown at the next start anyway. With a controller it may be cut off then, and no snapshot
            // may have it.
            self.set_release_limit(u64::MAX);
        }
        self.state.borrow_mut().stopping = true;
        self.scrub.ring();
        self.grown.notify();
        self.space.notify();
        self.extended.notify();
        self.work.notify();
        self.drained
            .until(|| {
                let state = self.state.borrow();
                state.poisoned.is_some()
                    || (state.open.is_none()
                        && state.sealed.is_empty()
                        && state.commit.pending_bytes() == 0)
            })
            .await;
        self.keys.stop().await;
        self.scrub
            .mended
            .until(|| !self.scrub.is_mending.get())
            .await;
        if self.state.borrow().poisoned.is_some() {
            return Ok(());
        }
        while self.snapshot_running.get() {
            self.env.sleep(Duration::from_millis(5)).await;
        }
        let is_newer = self.durable().0 != self.last_snapshot.get();
        if is_newer && self.is_confirmed() && !self.is_seeding.get() {
            self.save_snapshot().await?;
        }
        Ok(())
    }

    /// The messages' fold follows the log's new start. What could not be read of an index block is tried again by
    /// [`Self::finish_trim`].
    pub(super) async fn trim_tables(&self, start: u64) -> io::Result<()> {
        self.keys.trim(start);
        self.tables_start.set(None);
        self.trims_to.set(start);
        self.trims_running.set(self.trims_running.get() + 1);
        let trimmed = self.trim_queues(start).await;
        self.trims_running.set(self.trims_running.get() - 1);
        trimmed?;
        if self.trims_to.get() == start {
            self.tables_start.set(Some(start));
        }
        Ok(())
    }

    /// Ends what a trim has begun and could not end: until then no copy of this log can begin with a seed.
    pub async fn finish_trim(&self) -> io::Result<()> {
        if self.tables_start.get().is_some() || self.trims_running.get() > 0 {
            return Ok(());
        }
        self.trim_tables(self.trims_to.get()).await
    }

    async fn trim_queues(&self, start: u64) -> io::Result<()> {
        let border = self.tables.borrow_mut().queues.trim(start);
        for queue in border {
            let bounds = self.bounds(queue);
            let (mut low, mut high) = (bounds.min_offset, bounds.max_offset);
            while low < high {
                let middle = low + (high - low) / 2;
                match self.entry(queue, middle).await? {
                    Some(entry) if entry.position < start => low = middle + 1,
                    _ => high = middle,
                }
            }
            self.tables.borrow_mut().queues.set_min(queue, low);
        }
        Ok(())
    }
}

impl State {
    /// Bytes that are appended and not yet released.
    fn pending_bytes(&self) -> u64 {
        self.commit.appended().0 - self.released
    }

    /// Takes room for one record in the open batch: its position and its memory.
    fn take(&mut self, bytes: usize) -> (u64, &mut [u8]) {
        let open = self.open.as_mut().expect("room was reserved");
        let at = open.used;
        open.used += bytes;
        open.record_count += 1;
        let position = open.buffer_start + at as u64;
        self.commit
            .on_append(Position(open.buffer_start + open.used as u64));
        (position, &mut open.buffer.as_mut()[at..at + bytes])
    }

    fn put(&mut self, record: &[u8]) -> u64 {
        let (position, memory) = self.take(record.len());
        memory.copy_from_slice(record);
        position
    }

    /// Messages of one queue that are one after the other in the open batch: entries of their queue when it is durable.
    fn put_entries(
        &mut self,
        queue: QueueKey,
        first_offset: i64,
        entries: SmallVec<[QueueEntry; 1]>,
        store_timestamp: u64,
    ) {
        let Some(&first) = entries.first() else {
            return;
        };
        let store_timestamp = store_timestamp as i64;
        let effect = match entries.len() {
            1 => Effect::Message {
                queue,
                queue_offset: first_offset,
                entry: first,
                store_timestamp,
            },
            _ => Effect::Messages {
                queue,
                first_offset,
                entries: entries.into_boxed_slice(),
                store_timestamp,
            },
        };
        self.effects.push_back((first.position, effect));
    }
}

/// The record that says that a message's topic is open in this log, if nothing has said so before.
fn opening(
    state: &State,
    tables: &Tables,
    queue: QueueKey,
    topic: &Arc<str>,
) -> Option<(Vec<u8>, Control)> {
    let id = queue.topic_id;
    // By its number: a name would be followed to where it lies, which with many topics is in no cache.
    if tables.open_topics.is_open(id) {
        return None;
    }
    let pending = state.effects.iter().any(|(_, effect)| {
        matches!(effect, Effect::Control(Control::TopicOpened { topic_id, .. }) if *topic_id == id)
    });
    if pending {
        return None;
    }
    let control = Control::TopicOpened {
        topic_id: id,
        name: topic.clone(),
    };
    Some((control.encode(), control))
}

fn record_fields<T>(
    message: &NewMessage,
    queue_offset: i64,
    physical_offset: i64,
    store_timestamp: i64,
    store_host: SocketAddr,
    with: impl FnOnce(&RecordFields<'_>) -> T,
) -> T {
    with(&RecordFields {
        topic: &message.topic,
        body: &message.body,
        properties: &message.properties,
        queue_id: message.queue.queue_id as i32,
        flag: message.flag,
        queue_offset,
        physical_offset,
        sys_flag: message.sys_flag,
        born_timestamp: message.born_timestamp,
        born_host: message.born_host,
        store_timestamp,
        store_host,
        reconsume_times: message.reconsume_times,
        prepared_transaction_offset: message.prepared_transaction_offset,
    })
}
