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
use crate::store::scrub::next_of;
use crate::store::segment::{self, Segments, zero_pages};
use crate::store::{seed, snapshot};

const NOTE: &str = "cut-";
/// The same where no chain of batches says how far it goes: what lies behind is damaged.
const WIPE_NOTE: &str = "wipe-";
/// Bytes looked at, and written if they are not zeros, at once.
const PIECE_BYTES: u64 = 256 << 10;

/// Whether a file of a log's directory is the note of a cut, and where.
pub fn position_of(name: &str) -> Option<u64> {
    read_note(name).map(|(_, position)| position)
}

/// Which of the two notes, and where to cut.
fn read_note(name: &str) -> Option<(&'static str, u64)> {
    [NOTE, WIPE_NOTE].into_iter().find_map(|note| {
        let position = name.strip_prefix(note)?.parse().ok()?;
        Some((note, position))
    })
}

fn note_of(directory: &Path, note: &str, position: u64) -> PathBuf {
    directory.join(format!("{note}{position:020}"))
}

async fn write_note<E: Env>(
    env: &E,
    directory: &Path,
    note: &str,
    position: u64,
) -> io::Result<()> {
    let mode = OpenMode {
        create: true,
        flush_each_write: false,
    };
    let path = note_of(directory, note, position);
    env.open(&path, mode).await?.sync().await?;
    env.sync_dir(directory).await
}

/// Notes durably that everything from `position` on has to be wiped.
pub(super) async fn note_wipe<E: Env>(env: &E, directory: &Path, position: u64) -> io::Result<()> {
    write_note(env, directory, WIPE_NOTE, position).await
}

/// Notes of a directory: which, and where to cut.
async fn notes<E: Env>(env: &E, directory: &Path) -> io::Result<Vec<(&'static str, u64)>> {
    let entries = env.list(directory).await?;
    let found = entries.iter().filter_map(|(name, _)| read_note(name));
    Ok(found.collect())
}

/// Where the log will be cut when it is opened.
pub(super) async fn noted<E: Env>(env: &E, directory: &Path) -> io::Result<Option<u64>> {
    let notes = notes(env, directory).await?;
    Ok(notes.iter().map(|(_, cut)| *cut).min())
}

impl<E: Env> CommitLog<E> {
    /// The last epoch of this log that is not greater than `epoch`, and where its batches end. (0, start) if there is none. What is
    /// damaged on the way there is passed over, since the other log may be where it can be had from. Only if the epoch may
    /// end within it this log does not know: another one, which is whole, must not be cut to what can be read of this one.
    pub async fn end_of_epoch(&self, epoch: u32) -> io::Result<(u32, u64)> {
        let (found, end, damaged) = self.read_to_end_of_epoch(epoch, true).await?;
        if let Some(position) = damaged {
            self.suspect(position);
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "log {} is damaged at position {position} here, so where it parts from another one is not known",
                    self.id()
                ),
            ));
        }
        Ok((found, end))
    }

    /// The same, and where it is not known: the end of what can be read, and that once more. `passes`: damage with whole batches
    /// of the same epochs behind it is passed over.
    async fn read_to_end_of_epoch(
        &self,
        epoch: u32,
        passes: bool,
    ) -> io::Result<(u32, u64, Option<u64>)> {
        let end = self.durable_here().0;
        let mut walk = self.walker();
        let mut at = self.start_position().0;
        // The last segment that begins with such a batch: epochs only grow. One whose first batch cannot be read may be one.
        let mut next = self.segments().segment_end(at);
        while next < end {
            match walk.batch_at(next, None).await {
                Some(header) if header.epoch > epoch => break,
                Some(_) => at = next,
                None => {}
            }
            next = self.segments().segment_end(next);
        }
        let mut found = 0;
        let mut previous_crc = None;
        while at < end {
            let header = match walk.batch_at(at, previous_crc).await {
                Some(header) => header,
                None if passes => match walk.search(at + 1, end, found).await {
                    Some(header) if header.epoch <= epoch => {
                        self.suspect(at);
                        header
                    }
                    _ => return Ok((found, at, Some(at))),
                },
                None => return Ok((found, at, Some(at))),
            };
            if header.epoch > epoch {
                break;
            }
            found = header.epoch;
            previous_crc = Some(header.crc);
            at = next_of(&header, self.segments().segment_end(header.position));
        }
        Ok((found, at, None))
    }

    /// Notes durably that this log has to be cut to what it has in common with its master's, whose last epoch that is not
    /// greater than this log's is `epoch` and ends there at `position`. It happens when the log is opened again.
    pub async fn ask_for_cut(&self, epoch: u32, position: u64) -> io::Result<()> {
        // Cut where its own damage is, it gets more from its master again than it would have to.
        let (own_epoch, own_end, _) = self.read_to_end_of_epoch(epoch, false).await?;
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
        write_note(self.env(), &self.options().directory, NOTE, cut).await
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
    let notes = notes(env, directory).await?;
    let Some(cut) = notes.iter().map(|(_, cut)| *cut).min() else {
        return Ok(None);
    };
    let is_damaged = notes.iter().any(|(note, _)| *note == WIPE_NOTE);
    snapshot::remove_beyond(env, directory, cut).await?;
    let pretends = planted(PlantedBug::TruncateInMemory);
    if !pretends {
        segments.remove_beyond(cut).await?;
        wipe(env, options, segments, cut, is_damaged).await?;
    }
    for (note, position) in notes {
        env.remove(&note_of(directory, note, position)).await?;
    }
    env.sync_dir(directory).await?;
    tracing::info!(log = options.log, cut, "the log was cut back");
    Ok(pretends.then_some(cut))
}

/// Makes zeros of everything behind `cut` in its segment that could be taken for a batch of this log. `is_damaged`: the batches
/// there do not lead from one to the next any more.
async fn wipe<E: Env>(
    env: &E,
    options: &LogOptions,
    segments: &Segments<E>,
    cut: u64,
    is_damaged: bool,
) -> io::Result<()> {
    let Some((file, _)) = segments.locate(cut) else {
        return Ok(());
    };
    let sector = SECTOR_BYTES as u64;
    let limit = segments.segment_end(cut).min(segments.allocated_end());
    let within = |at: u64| at % segments.segment_bytes();
    let mut end = if is_damaged { limit } else { cut };
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
