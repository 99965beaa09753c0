//! Cutting a log back: a master that returns has what the master after it never got, and gives it up before it follows.
//!
//! Only with a controller, which has decided whose log counts. The running replica notes durably where to cut (a file
//! `cut-<position>` in the log's directory) and is opened again; opening does the cut first and removes the note last, so a crash
//! in between only means that it is done again. Everything goes: snapshots of a later position, later segments, and the bytes
//! behind the cut as far as batches, or evidence of damage that recovery would find, may lie there. Tables, queue index and key
//! index are folds of the log and are made from what is left.

use std::io;
use std::path::{Path, PathBuf};

use crate::base::limits::SECTOR_BYTES;
use crate::base::offset::Position;
use crate::base::planted::{PlantedBug, planted};
use crate::io::env::{DiskFile, Env, OpenMode};
use crate::store::batch::{BatchHeader, HEADER_BYTES};
use crate::store::commit_log::{CommitLog, LogOptions};
use crate::store::recovery::EVIDENCE_BYTES;
use crate::store::segment::{self, Segments, zero_pages};
use crate::store::{seed, snapshot};

const NOTE: &str = "cut-";
/// Bytes looked at, and written if they are not zeros, at once.
const PIECE_BYTES: u64 = 256 << 10;

/// Whether a file of a log's directory is the note of a cut, and where.
pub fn position_of(name: &str) -> Option<u64> {
    name.strip_prefix(NOTE)?.parse().ok()
}

fn note_of(directory: &Path, position: u64) -> PathBuf {
    directory.join(format!("{NOTE}{position:020}"))
}

impl<E: Env> CommitLog<E> {
    /// The last epoch of this log that is not greater than `epoch`, and where its batches end. (0, start) if there is none.
    pub async fn end_of_epoch(&self, epoch: u32) -> io::Result<(u32, u64)> {
        let end = self.durable_here().0;
        let mut at = self.start_position().0;
        // The last segment that begins with such a batch: epochs only grow.
        let mut next = at;
        while next < end
            && self
                .header_at(next)
                .await?
                .is_some_and(|header| header.epoch <= epoch)
        {
            at = next;
            next = self.segments().segment_end(next);
        }
        let mut found = 0;
        while at < end {
            let Some(header) = self
                .header_at(at)
                .await?
                .filter(|header| header.epoch <= epoch)
            else {
                break;
            };
            found = header.epoch;
            at = match header.ends_segment() {
                true => self.segments().segment_end(at),
                false => at + u64::from(header.length),
            };
        }
        Ok((found, at))
    }

    /// Notes durably that this log has to be cut to what it has in common with its master's, whose last epoch that is not
    /// greater than this log's is `epoch` and ends there at `position`. It happens when the log is opened again.
    pub async fn ask_for_cut(&self, epoch: u32, position: u64) -> io::Result<()> {
        let (own_epoch, own_end) = self.end_of_epoch(epoch).await?;
        let cut = position.min(own_end);
        let (start, end) = (self.start_position().0, self.replica_end().position);
        // Retention has left nothing that both have.
        let cut = if cut < start { 0 } else { cut };
        tracing::warn!(
            log = self.id(),
            cut,
            end,
            epoch,
            own_epoch,
            "this log has what its master has not: it is cut back"
        );
        let directory = &self.options().directory;
        let mode = OpenMode {
            create: true,
            flush_each_write: false,
        };
        let note = note_of(directory, cut);
        self.env().open(&note, mode).await?.sync().await?;
        self.env().sync_dir(directory).await
    }
}

/// Where a cut leaves nothing that the tables could be made from, the whole log goes: its beginning, and every snapshot from
/// before the cut, are gone. The slave stream brings a seed then.
pub(super) async fn start_over<E: Env>(env: &E, options: &LogOptions) -> io::Result<()> {
    let directory = &options.directory;
    let entries = env.list(directory).await?;
    let names = || entries.iter().map(|(name, _)| &**name);
    let Some(cut) = names().filter_map(position_of).min() else {
        return Ok(());
    };
    let start = names().filter_map(segment::start_of).min().unwrap_or(0);
    let has_snapshot = names()
        .filter_map(snapshot::position_of)
        .any(|position| position <= cut);
    if start == 0 || cut >= start && has_snapshot {
        return Ok(());
    }
    tracing::warn!(
        log = options.log,
        cut,
        start,
        "what is left of this log cannot be built upon: it begins anew"
    );
    seed::empty(env, directory).await
}

/// Carries out what [`CommitLog::ask_for_cut`] has noted, durably. Gives where recovery has to end, for a planted fault that only
/// pretends to.
pub(super) async fn carry_out<E: Env>(
    env: &E,
    options: &LogOptions,
    segments: &Segments<E>,
) -> io::Result<Option<u64>> {
    let directory = &options.directory;
    let notes: Vec<u64> = env
        .list(directory)
        .await?
        .iter()
        .filter_map(|(name, _)| position_of(name))
        .collect();
    let Some(cut) = notes.iter().copied().min() else {
        return Ok(None);
    };
    snapshot::remove_beyond(env, directory, cut).await?;
    let pretends = planted(PlantedBug::TruncateInMemory);
    if !pretends {
        segments.remove_beyond(cut).await?;
        wipe(env, options, segments, cut).await?;
    }
    for note in notes {
        env.remove(&note_of(directory, note)).await?;
    }
    env.sync_dir(directory).await?;
    tracing::info!(log = options.log, cut, "the log was cut back");
    Ok(pretends.then_some(cut))
}

/// Makes zeros of everything behind `cut` in its segment that could be taken for a batch of this log.
async fn wipe<E: Env>(
    env: &E,
    options: &LogOptions,
    segments: &Segments<E>,
    cut: u64,
) -> io::Result<()> {
    let Some((file, _)) = segments.locate(cut) else {
        return Ok(());
    };
    let sector = SECTOR_BYTES as u64;
    let limit = segments.segment_end(cut).min(segments.allocated_end());
    let within = |at: u64| at % segments.segment_bytes();
    let mut end = cut;
    while end + (HEADER_BYTES as u64) <= limit {
        let at = end & !(sector - 1);
        let pages = file.read_at(within(at), 2 * SECTOR_BYTES).await?;
        let head = pages.get((end - at) as usize..).unwrap_or_default();
        let Some(header) = BatchHeader::read(head, Position(end), options.store_id) else {
            break;
        };
        end += u64::from(header.length).max(HEADER_BYTES as u64);
    }
    // A crash while batches were written may have left whole ones behind a torn one.
    let limit = (end + EVIDENCE_BYTES).next_multiple_of(sector).min(limit);
    let mut at = cut & !(sector - 1);
    if at < cut {
        let pages = file.read_at(within(at), SECTOR_BYTES).await?;
        let mut kept = env.alloc(SECTOR_BYTES);
        kept.as_mut().fill(0);
        let front = ((cut - at) as usize).min(pages.len());
        kept.as_mut()[..front].copy_from_slice(&pages[..front]);
        file.write_at(std::rc::Rc::new(kept), within(at)).await?;
        at += sector;
    }
    while at < limit {
        let bytes = PIECE_BYTES.min(limit - at) as usize;
        let pages = file.read_at(within(at), bytes).await?;
        if pages.iter().any(|byte| *byte != 0) {
            file.write_at(zero_pages(env, bytes), within(at)).await?;
        }
        at += bytes as u64;
    }
    file.sync().await
}
