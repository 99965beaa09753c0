//! A damaged place in the older part of a log is written again, from another copy, in place.
//!
//! What may be written there is known from what is around it: the batches have to lead, each with a right CRC and the CRC field
//! of the one before, from the last whole batch to the next one, which names its predecessor's CRC. So it does not matter who sends
//! them, nor how much of that copy is confirmed: other bytes than those that were acknowledged here do not fit. A place that
//! takes more than one answer is walked through once without writing, and becomes several places whose ends are known.
//!
//! Only the damaged bytes change. The sectors at both ends are read first, and their other bytes are written back as they are; a
//! sector that the log's own commits still write is left alone until they have moved on; a segment that is being mended is neither
//! removed nor recycled. A crash in between leaves sectors with old or with new content, so the place is damaged or whole, and nothing else is
//! touched. After the write the place is read from the disk again before it counts as whole.

use std::io;
use std::rc::Rc;

use crate::base::limits::{HA_BATCHES_BYTES_MAX, HA_FRAME_BYTES_TARGET, SECTOR_BYTES};
use crate::base::planted::{PlantedBug, planted};
use crate::io::env::{DiskFile, Env};
use crate::store::commit_log::CommitLog;
use crate::store::scrub::{Damaged, Mismatch, check_answer, next_of};

/// Why a place is still damaged.
#[derive(Debug, thiserror::Error)]
pub enum MendError {
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    #[error("the batches end at position {end}, the place at {wanted_end}")]
    Short { end: u64, wanted_end: u64 },
    #[error("the log still writes there")]
    TooNew,
    #[error("another place is being written")]
    Busy,
    #[error("its segment is gone")]
    Gone,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it was written and cannot be read: the device keeps it damaged")]
    StillDamaged,
}

/// A place that somebody is asked for; nobody else is as long as this lives.
pub struct Fetch<E: Env>(Rc<CommitLog<E>>);

impl<E: Env> Drop for Fetch<E> {
    fn drop(&mut self) {
        self.0.scrub.fetched.set(None);
        self.0.look_again();
    }
}

/// A repair under way: its segment stays, and the log does not stop.
struct Mending<'a, E: Env>(&'a CommitLog<E>);

impl<E: Env> Drop for Mending<'_, E> {
    fn drop(&mut self) {
        self.0.scrub.is_mending.set(false);
        self.0.segments.unpin();
        self.0.scrub.mended.notify();
    }
}

fn floor(position: u64) -> u64 {
    position & !(SECTOR_BYTES as u64 - 1)
}

impl<E: Env> CommitLog<E> {
    /// The first damaged place that another copy, which is durable up to `durable_there`, can be asked for now.
    pub fn fetchable(
        &self,
        durable_there: u64,
        is_refused: impl Fn(u64) -> bool,
    ) -> Option<Damaged> {
        if self.scrub.damaged.borrow().is_empty() || self.scrub.fetched.get().is_some() {
            return None;
        }
        let start = self.segments.start();
        let mut damaged = self.scrub.damaged.borrow_mut();
        damaged.retain(|position, _| *position >= start);
        let settled_end = self.settled_end();
        let is_settled =
            |damaged: &&Damaged| damaged.end.next_multiple_of(SECTOR_BYTES as u64) <= settled_end;
        damaged
            .values()
            .filter(is_settled)
            .find(|damaged| damaged.end <= durable_there && !is_refused(damaged.position))
            .copied()
    }

    /// Takes it on.
    pub fn begin_fetch(self: &Rc<Self>, damaged: &Damaged) -> Fetch<E> {
        self.scrub.fetched.set(Some(damaged.position));
        Fetch(self.clone())
    }

    /// A damaged place becomes several ones, since it comes in so many answers.
    pub fn split_damaged(&self, whole: &Damaged, parts: &[Damaged]) {
        let mut damaged = self.scrub.damaged.borrow_mut();
        if damaged.get(&whole.position) == Some(whole) {
            damaged.remove(&whole.position);
            damaged.extend(parts.iter().map(|part| (part.position, *part)));
        }
        drop(damaged);
        self.look_again();
    }

    /// Whole batches that another copy lacks, of one segment, from `position` on and not beyond `end`: read from the disk and
    /// checked. None if this copy has no such ones, or not durably.
    pub async fn whole_batches(&self, position: u64, end: u64) -> Vec<u8> {
        let end = end
            .min(self.durable_here().0)
            .min(position.saturating_add(HA_BATCHES_BYTES_MAX as u64));
        if position < self.segments.start() || position >= end {
            return Vec::new();
        }
        let mut walk = self.walker();
        let found = walk.copy(position, end, HA_FRAME_BYTES_TARGET).await;
        match position >= self.segments.start() {
            true => found,
            // Retention was faster, and the file may be another segment by now.
            false => Vec::new(),
        }
    }

    /// Writes the batches that are missing, all of them, and tells whether the place is whole then.
    pub async fn mend(&self, damaged: &Damaged, batches: &[u8]) -> Result<(), MendError> {
        let (store_id, segment_bytes) = (self.options.store_id, self.options.segment_bytes);
        let link = check_answer(damaged, store_id, segment_bytes, batches)?;
        if link.position != damaged.end {
            return Err(MendError::Short {
                end: link.position,
                wanted_end: damaged.end,
            });
        }
        self.write_in_place(damaged.position, batches).await?;
        let mut walk = self.walker();
        let (mut position, mut previous_crc) = (damaged.position, damaged.previous_crc);
        while position < damaged.end {
            let Some(header) = walk.batch_at(position, previous_crc).await else {
                return Err(MendError::StillDamaged);
            };
            position = next_of(&header, self.segments.segment_end(position));
            previous_crc = Some(header.crc);
        }
        self.scrub.damaged.borrow_mut().remove(&damaged.position);
        let repaired = &self.scrub.repaired_bytes;
        repaired.set(repaired.get() + damaged.bytes());
        Ok(())
    }

    async fn write_in_place(&self, position: u64, batches: &[u8]) -> Result<(), MendError> {
        if self.scrub.is_mending.get() || self.has_ended() {
            return Err(MendError::Busy);
        }
        let sector = SECTOR_BYTES as u64;
        let end = position + batches.len() as u64;
        let (first, last) = (floor(position), end.next_multiple_of(sector));
        if last > self.settled_end() {
            return Err(MendError::TooNew);
        }
        let (file, at) = self.segments.locate(first).ok_or(MendError::Gone)?;
        self.segments.pin(first);
        self.scrub.is_mending.set(true);
        let _mending = Mending(self);
        let mut pages = self.env.alloc((last - first) as usize);
        let memory = pages.as_mut();
        let (front, back) = ((position - first) as usize, (end - first) as usize);
        // Front and back may be one sector.
        for (is_shared, sector_at) in [(front > 0, first), (end < last, floor(end))] {
            if !is_shared {
                continue;
            }
            let kept = file.read_at(at + (sector_at - first), SECTOR_BYTES).await?;
            if kept.len() < SECTOR_BYTES {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            let into = (sector_at - first) as usize;
            memory[into..into + SECTOR_BYTES].copy_from_slice(&kept[..SECTOR_BYTES]);
        }
        memory[front..back].copy_from_slice(batches);
        if planted(PlantedBug::RepairOverNeighbours) {
            memory[..front].fill(0);
            memory[back..].fill(0);
        }
        file.write_at(Rc::new(pages), at).await?;
        if !self.options.flush_each_write {
            // One place for flushes: a failure must be seen by who has promised them.
            let from = self.unsynced_from.get().map_or(first, |at| at.min(first));
            self.unsynced_from.set(Some(from));
            self.flush_written().await?;
        }
        self.reader.forget(first..last, 0);
        self.reader.forget_tail(last);
        Ok(())
    }
}
