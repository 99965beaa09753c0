//! From the files of a log to its tables and its end: the newest snapshot, then the batches behind it.
//!
//! The scan ends at the first batch that is not whole. If no later batch says that the log was durable beyond that place,
//! it was the torn tail of a crash, which was never acknowledged. If one does, acknowledged bytes are damaged:
//! that is reported with place and size, and the log opens for reading up to there.

use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use crate::base::doubt::Doubt;
use crate::base::limits::{REPLICA_TORN_BYTES_MAX, SECTOR_BYTES};
use crate::base::offset::Position;
use crate::base::planted::{PlantedBug, planted};
use crate::io::aligned_buf::PageBuf;
use crate::io::env::{DiskFile, Env};
use crate::store::batch::{ALIGN_BYTES, BatchHeader, HEADER_BYTES};
use crate::store::commit_log::{LogOptions, replica};
use crate::store::control::{self, Control};
use crate::store::delayed;
use crate::store::half;
use crate::store::seed;
use crate::store::segment::Segments;
use crate::store::snapshot::{self, Reader};
use crate::store::tables::halves::Half;
use crate::store::tables::timers::{Timer, TimerKey};
use crate::store::tables::{Effect, Tables};
use crate::store::types::{QueueEntry, QueueKey};
use crate::wire::properties;
use crate::wire::record::RecordView;

/// The log is read in pieces of this.
const PIECE_BYTES: usize = 256 << 10;
/// How far behind a torn place a batch is looked for that proves damage: more than can be in flight at once.
pub const EVIDENCE_BYTES: u64 = 80 << 20;

/// Acknowledged bytes that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the batch at position {position} is damaged: at least {lost_bytes} acknowledged bytes from there cannot be read; `ringmq store check` shows the place"
)]
pub struct Damage {
    pub position: u64,
    pub lost_bytes: u64,
}

/// What lies behind the end of a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Behind {
    pub damage: Option<Damage>,
    /// A batch began at the end, or whole ones of the same life lie behind it.
    pub is_torn: bool,
}

impl Behind {
    pub fn doubt(&self) -> Doubt {
        match self {
            Self {
                damage: Some(_), ..
            } => Doubt::Damaged,
            Self { is_torn: true, .. } => Doubt::Torn,
            _ => Doubt::None,
        }
    }
}

/// What recovery found.
pub struct Recovered {
    pub tables: Tables,
    /// Where the next batch begins.
    pub end: u64,
    pub previous_crc: u32,
    pub epoch: u32,
    /// The sector in which `end` lies, if it is not at its start.
    pub last_sector: Option<Rc<PageBuf>>,
    pub behind: Behind,
    /// Position of the snapshot that was used.
    pub snapshot_position: u64,
    /// End of each finished segment -> store time of its last record.
    pub segment_times: BTreeMap<u64, u64>,
}

/// Reads batches of a log in order.
pub struct Scanner<'a, E: Env> {
    segments: &'a Segments<E>,
    store_id: u64,
    /// Where the next batch should begin.
    pub position: u64,
    pub previous_crc: u32,
    window_start: u64,
    window: Vec<u8>,
}

/// One step of a [`Scanner`].
pub enum Step {
    /// A whole batch: its header and its records.
    Batch(BatchHeader, std::ops::Range<usize>),
    /// No whole batch begins at the scanner's position.
    End,
}

impl<'a, E: Env> Scanner<'a, E> {
    pub fn new(segments: &'a Segments<E>, store_id: u64, position: u64, previous_crc: u32) -> Self {
        Self {
            segments,
            store_id,
            position,
            previous_crc,
            window_start: 0,
            window: Vec::new(),
        }
    }

    /// Takes the first batch's word for what stood before it: without a snapshot nobody else knows.
    pub async fn trust_first(&mut self) -> io::Result<()> {
        let position = self.position;
        self.load(position, HEADER_BYTES).await?;
        if let Some(first) = BatchHeader::read(self.at(position), Position(position), self.store_id)
        {
            self.previous_crc = first.previous_crc;
        }
        Ok(())
    }

    /// Makes `bytes` at `position` available in the window, as far as the segment has them.
    async fn load(&mut self, position: u64, bytes: usize) -> io::Result<()> {
        let have = position >= self.window_start
            && position + bytes as u64 <= self.window_start + self.window.len() as u64;
        if have {
            return Ok(());
        }
        let start = position & !(SECTOR_BYTES as u64 - 1);
        let segment_end = self.segments.segment_end(position);
        let end = (position + bytes as u64)
            .max(start + PIECE_BYTES as u64)
            .min(segment_end)
            .next_multiple_of(SECTOR_BYTES as u64);
        self.window.clear();
        self.window_start = start;
        let Some((file, at)) = self.segments.locate(start) else {
            return Ok(());
        };
        let mut at = at;
        let mut left = (end - start) as usize;
        while left > 0 {
            let pages = file.read_at(at, left.min(PIECE_BYTES)).await?;
            if pages.is_empty() {
                break;
            }
            self.window.extend_from_slice(&pages);
            at += pages.len() as u64;
            left -= pages.len().min(left);
        }
        Ok(())
    }

    /// The bytes of the window from `position` on.
    fn at(&self, position: u64) -> &[u8] {
        self.window
            .get((position - self.window_start) as usize..)
            .unwrap_or_default()
    }

    /// Bytes of the records of the batch that [`Scanner::next`] gave.
    pub fn records(&self, range: std::ops::Range<usize>) -> &[u8] {
        &self.window[range]
    }

    /// The next batch. The scanner stands behind it then.
    pub async fn next(&mut self) -> io::Result<Step> {
        let position = self.position;
        let segment_end = self.segments.segment_end(position);
        self.load(position, HEADER_BYTES).await?;
        let Some(header) = BatchHeader::read(self.at(position), Position(position), self.store_id)
        else {
            return Ok(Step::End);
        };
        if position + u64::from(header.length) > segment_end
            || header.previous_crc != self.previous_crc
        {
            return Ok(Step::End);
        }
        self.load(position, header.length as usize).await?;
        let batch = self.at(position);
        if batch.len() < header.length as usize {
            return Ok(Step::End);
        }
        let right = header.crc_is_right(batch)
            || planted(PlantedBug::BatchCrcIgnored)
            || planted(PlantedBug::TruncatedTailAccepted);
        if !right {
            return Ok(Step::End);
        }
        let begin = (position - self.window_start) as usize + HEADER_BYTES;
        self.previous_crc = header.crc;
        self.position = if header.ends_segment() {
            segment_end
        } else {
            position + u64::from(header.length)
        };
        Ok(Step::Batch(
            header,
            begin..begin + header.record_bytes as usize,
        ))
    }

    /// After [`Step::End`]: whether there is a batch that cannot be read, and not just the end of the log.
    pub async fn is_unreadable(&mut self) -> io::Result<bool> {
        let position = self.position;
        self.load(position, HEADER_BYTES).await?;
        let head = BatchHeader::read(self.at(position), Position(position), self.store_id);
        Ok(head.is_some() || self.damage(false).await?.is_some())
    }

    /// Looks behind a torn place for a batch that was sealed when the log was durable beyond it. Of a log that was a replica
    /// only what lies further behind than one run counts: see `commit_log/replica.rs`.
    pub async fn damage(&mut self, was_replica: bool) -> io::Result<Option<Damage>> {
        Ok(self.look_behind(was_replica, None).await?.damage)
    }

    /// The same, and whether something was torn there, if that is asked with the last epoch of the log: what an earlier life left
    /// behind its end was given up.
    pub async fn look_behind(
        &mut self,
        was_replica: bool,
        epoch: Option<u32>,
    ) -> io::Result<Behind> {
        let torn = self.position;
        self.load(torn, HEADER_BYTES).await?;
        let mut is_torn =
            epoch.is_some() && BatchHeader::resembles(self.at(torn), Position(torn), self.store_id);
        let nearest = if was_replica {
            REPLICA_TORN_BYTES_MAX as u64
        } else {
            1
        };
        let mut at = (torn + 1).next_multiple_of(ALIGN_BYTES as u64);
        let end = (torn + EVIDENCE_BYTES).min(self.segments.allocated_end());
        let mut lost = 0;
        while at < end {
            let segment_end = self.segments.segment_end(at);
            if at + HEADER_BYTES as u64 > segment_end {
                at = segment_end;
                continue;
            }
            self.load(at, HEADER_BYTES).await?;
            let Some(last) = self.at(at).len().checked_sub(HEADER_BYTES) else {
                // The file is shorter than a segment: nothing can be behind its end.
                at = segment_end;
                continue;
            };
            // Places at which a whole header fits into the window.
            let places = last / ALIGN_BYTES * ALIGN_BYTES + ALIGN_BYTES;
            let Some(found) = BatchHeader::find(&self.at(at)[..places]) else {
                at += places as u64;
                continue;
            };
            at += found as u64;
            let Some(header) = BatchHeader::read(self.at(at), Position(at), self.store_id) else {
                at += ALIGN_BYTES as u64;
                continue;
            };
            let is_proof = header.durable > torn && at >= torn + nearest;
            let is_hint = !is_torn && epoch.is_some_and(|epoch| header.epoch >= epoch);
            if (is_proof || is_hint) && at + u64::from(header.length) <= segment_end {
                self.load(at, header.length as usize).await?;
                if header.crc_is_right(self.at(at)) {
                    is_torn |= is_hint;
                    if is_proof {
                        lost = lost.max(header.durable - torn);
                    }
                    at += u64::from(header.length).max(ALIGN_BYTES as u64);
                    continue;
                }
            }
            at += ALIGN_BYTES as u64;
        }
        Ok(Behind {
            damage: (lost > 0).then_some(Damage {
                position: torn,
                lost_bytes: lost,
            }),
            is_torn,
        })
    }
}

/// The records of a batch as raw bytes, in order. Ends early at one whose size is impossible.
pub fn raw_records(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let size = u32::from_be_bytes(*bytes.first_chunk::<4>()?) as usize;
        if size < control::HEADER_BYTES || size > bytes.len() {
            return None;
        }
        let (record, rest) = bytes.split_at(size);
        bytes = rest;
        Some(record)
    })
}

/// Whether a raw record is a control record.
pub fn is_control(record: &[u8]) -> bool {
    record.get(4..8) == Some(&control::MAGIC.to_be_bytes())
}

/// What a record does to the tables, or `None` for one that does nothing.
pub fn effect_of(record: &[u8], position: u64, tables: &Tables) -> Option<Effect> {
    if delayed::is_delayed(record) {
        let head = delayed::head(record).ok()?;
        return Some(Effect::Delayed {
            key: TimerKey {
                due_ms: head.due_ms,
                position,
            },
            timer: Timer {
                bytes: record.len() as u32,
                topic_id: head.topic_id,
            },
        });
    }
    if half::is_half(record) {
        let head = half::head(record).ok()?;
        return Some(Effect::Half {
            origin: head.origin,
            half: Half {
                position,
                bytes: record.len() as u32,
                topic_id: head.topic_id,
                check_at_ms: head.check_at_ms,
                checks: head.checks,
            },
        });
    }
    if is_control(record) {
        return match Control::decode(record) {
            Ok(control) => Some(Effect::Control(control)),
            Err(error) => {
                tracing::warn!(position, %error, "a control record is passed over: a newer version wrote it");
                None
            }
        };
    }
    let view = RecordView::parse(record).ok()?;
    let topic_id = tables.topic_id(view.topic())?;
    Some(Effect::Message {
        queue: QueueKey {
            topic_id,
            queue_id: view.queue_id() as u32,
        },
        queue_offset: view.queue_offset(),
        entry: QueueEntry {
            position,
            size: record.len() as u32,
            tags_code: properties::tags_code_of(view.properties()),
        },
        store_timestamp: view.store_timestamp(),
    })
}

/// Recovers a log. `pretended_end` is for a planted fault.
pub async fn recover<E: Env>(
    env: &E,
    options: &LogOptions,
    segments: &Segments<E>,
    pretended_end: Option<u64>,
) -> io::Result<Recovered> {
    let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
    let started = env.now_ns();
    let mut recovered = Recovered {
        tables: Tables::default(),
        end: 0,
        previous_crc: 0,
        epoch: 0,
        last_sector: None,
        behind: Behind::default(),
        snapshot_position: 0,
        segment_times: BTreeMap::new(),
    };
    let mut any_previous_crc = false;
    let start = segments.start();
    match snapshot::load(env, &options.directory, options.store_id, start).await? {
        Some((mark, payload)) => {
            let mut reader = Reader::new(&payload);
            recovered.tables = Tables::read(&mut reader)
                .map_err(|short| invalid(format!("snapshot at {}: {short}", mark.position)))?;
            let times = reader.u32().unwrap_or(0);
            for _ in 0..times {
                if let (Ok(end), Ok(time)) = (reader.u64(), reader.u64()) {
                    recovered.segment_times.insert(end, time);
                }
            }
            recovered.previous_crc = mark.previous_crc;
            recovered.epoch = mark.epoch;
            recovered.end = mark.position;
            recovered.snapshot_position = mark.position;
            recovered.tables.seeding = seed::read(&mut reader)
                .map_err(|short| invalid(format!("snapshot at {}: {short}", mark.position)))?;
            let is_seed = recovered.tables.seeding.is_some()
                && mark.position.is_multiple_of(options.segment_bytes);
            if segments.count() == 0 && is_seed {
                segments.begin_at(mark.position);
            } else if segments.count() == 0 {
                return Err(invalid(format!(
                    "{} has a snapshot at position {} but no segment: files are missing",
                    options.directory.display(),
                    mark.position
                )));
            }
        }
        None => {
            recovered.end = start;
            // Without a snapshot nobody knows what stood before the first segment that is left.
            any_previous_crc = recovered.end > 0;
        }
    }
    let mut scanner = Scanner::new(
        segments,
        options.store_id,
        recovered.end,
        recovered.previous_crc,
    );
    if any_previous_crc {
        scanner.trust_first().await?;
    }
    let (mut batches, mut records, mut unknown) = (0u64, 0u64, 0u64);
    let not_of_the_seed = |error| invalid(format!("log {}: {error}", options.log));
    // Of a seed that was made where the log begins nothing is left to do.
    let left = recovered.tables.leave_seed(recovered.end);
    left.map_err(not_of_the_seed)?;
    while pretended_end.is_none_or(|end| scanner.position < end) {
        let begin = scanner.position + HEADER_BYTES as u64;
        let Step::Batch(header, range) = scanner.next().await? else {
            break;
        };
        recovered.epoch = recovered.epoch.max(header.epoch);
        if header.ends_segment() {
            recovered
                .segment_times
                .insert(scanner.position, header.first_timestamp_ms);
        }
        let mut at = begin;
        for record in raw_records(scanner.records(range)) {
            if let Some(effect) = effect_of(record, at, &recovered.tables) {
                let folded = recovered.tables.fold(at, effect);
                folded.map_err(|jump| {
                    invalid(format!("log {}, position {at}: {jump}", options.log))
                })?;
                records += 1;
            } else if !is_control(record) && recovered.tables.seeding.is_none() {
                unknown += 1;
            }
            at += record.len() as u64;
        }
        batches += 1;
        let left = recovered.tables.leave_seed(scanner.position);
        left.map_err(not_of_the_seed)?;
    }
    if let Some(seeding) = &recovered.tables.seeding
        && !options.replica
    {
        return Err(invalid(format!(
            "log {} is an unfinished copy of a master's: it ends at position {}, and is of use from {} on. Let this broker follow a \
             master as its slave first, or start it with an empty storePathRootDir",
            options.log, scanner.position, seeding.until
        )));
    }
    if unknown > 0 {
        tracing::error!(
            log = options.log,
            messages = unknown,
            "messages of topics that this log does not know are not served: the snapshot that named their topics is gone; `ringmq store dump` shows them"
        );
    }
    recovered.end = scanner.position;
    recovered.previous_crc = scanner.previous_crc;
    let was_replica = replica::is_marked(env, &options.directory).await?;
    if pretended_end.is_none() {
        recovered.behind = scanner
            .look_behind(was_replica, Some(recovered.epoch))
            .await?;
    }
    let within = recovered.end % SECTOR_BYTES as u64;
    if within > 0 {
        let sector = recovered.end - within;
        let (file, at) = segments
            .locate(sector)
            .ok_or_else(|| {
                invalid(format!(
                    "log {}: no segment has position {sector}: there are {} from {} on, {} bytes, and a snapshot at {}",
                    options.log,
                    segments.count(),
                    segments.start(),
                    segments.allocated_end() - segments.start(),
                    recovered.snapshot_position
                ))
            })?;
        let pages = file.read_at(at, SECTOR_BYTES).await?;
        let mut copy = env.alloc(SECTOR_BYTES);
        copy.as_mut().fill(0);
        copy.as_mut()[..pages.len().min(SECTOR_BYTES)]
            .copy_from_slice(&pages[..pages.len().min(SECTOR_BYTES)]);
        recovered.last_sector = Some(Rc::new(copy));
    }
    tracing::info!(
        log = options.log,
        snapshot = recovered.snapshot_position,
        end = recovered.end,
        batches,
        records,
        ms = (env.now_ns() - started) / 1_000_000,
        "log recovered"
    );
    Ok(recovered)
}
