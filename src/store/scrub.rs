//! Reading a log for its checksums alone: whole batches in order, and what lies between two of them that are not neighbours.
//!
//! A [`Walk`] holds one piece of the log at a time, whatever the batches' lengths say, and computes their CRCs over the pieces. It
//! reads through the log's read gate, so that a commit goes first, and past the read cache, so that nobody's chunks are pushed
//! out of it. What the device does not give is tried again sector by sector; a sector that stays unreadable is damaged like one
//! with flipped bits. [`check_answer`] is pure: it says whether what another copy has sent belongs into such a gap.

use std::time::Duration;

use crate::base::limits::{HA_BATCHES_BYTES_MAX, SCRUB_PIECE_BYTES, SECTOR_BYTES};
use crate::base::offset::Position;
use crate::io::aligned_buf::PageBuf;
use crate::io::env::{DiskFile, Env};
use crate::store::batch::{ALIGN_BYTES, BatchHeader, CRC_FROM, HEADER_BYTES};
use crate::store::read_gate::ReadGate;
use crate::store::segment::Segments;

/// So often a piece is read in vain before its sectors are read one by one.
const READ_TRIES: u32 = 3;
/// Pause between these.
const READ_PAUSE: Duration = Duration::from_millis(20);

/// How a log is searched for damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubOptions {
    /// What a pass reads at most; 0: there are none, and only a place that somebody found damaged is looked at.
    pub bytes_per_second: u64,
    /// A pass begins at most this often.
    pub period: Duration,
}

impl ScrubOptions {
    /// No passes.
    pub const OFF: Self = Self {
        bytes_per_second: 0,
        period: Duration::MAX,
    };
}

/// Acknowledged bytes between two whole batches that are no whole batches themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damaged {
    /// End of the whole batch before it.
    pub position: u64,
    /// CRC field of that batch; none where a segment begins of which nobody has read what lies before.
    pub previous_crc: Option<u32>,
    /// Where the next whole batch begins.
    pub end: u64,
    /// What that one has as the CRC field of the batch before it: of the last one that is missing.
    pub end_crc: u32,
}

impl Damaged {
    pub fn bytes(&self) -> u64 {
        self.end - self.position
    }
}

/// Where the batch behind this one begins.
pub fn next_of(header: &BatchHeader, segment_end: u64) -> u64 {
    match header.ends_segment() {
        true => segment_end,
        false => header.position + u64::from(header.length),
    }
}

/// Bytes a second, kept on the average.
struct Pace {
    bytes_per_second: u64,
    next_ns: u64,
}

/// Part of a log in memory.
#[derive(Default)]
struct Window {
    start: u64,
    /// Where it ends: behind the bytes, or behind what could not be read.
    end: u64,
    pages: Option<PageBuf>,
}

/// See the module's page.
pub struct Walk<'a, E: Env> {
    env: &'a E,
    segments: &'a Segments<E>,
    gate: &'a ReadGate,
    store_id: u64,
    window: Window,
    /// Up to here sectors are read one by one.
    singly_until: u64,
    pace: Option<Pace>,
}

impl<'a, E: Env> Walk<'a, E> {
    pub fn new(env: &'a E, segments: &'a Segments<E>, gate: &'a ReadGate, store_id: u64) -> Self {
        Self {
            env,
            segments,
            gate,
            store_id,
            window: Window::default(),
            singly_until: 0,
            pace: None,
        }
    }

    /// The same, but not faster than this.
    pub fn paced(mut self, bytes_per_second: u64) -> Self {
        self.pace = (bytes_per_second > 0).then(|| Pace {
            bytes_per_second,
            next_ns: self.env.now_ns(),
        });
        self
    }

    /// What was read may have changed.
    pub fn forget(&mut self) {
        self.window = Window::default();
        self.singly_until = 0;
    }

    async fn read(&mut self, start: u64, bytes: u64) -> std::io::Result<Option<PageBuf>> {
        if let Some(pace) = &mut self.pace {
            let now_ns = self.env.now_ns();
            if pace.next_ns > now_ns {
                let wait = Duration::from_nanos(pace.next_ns - now_ns);
                self.env.sleep(wait).await;
            }
            let costs_ns = u128::from(bytes) * 1_000_000_000 / u128::from(pace.bytes_per_second);
            pace.next_ns = pace.next_ns.max(now_ns) + costs_ns as u64;
        }
        let _turn = self.gate.turn(self.env).await;
        match self.segments.locate(start) {
            Some((file, at)) => file.read_at(at, bytes as usize).await.map(Some),
            None => Ok(None),
        }
    }

    async fn load(&mut self, position: u64) {
        let sector = SECTOR_BYTES as u64;
        let start = position & !(sector - 1);
        let piece = SCRUB_PIECE_BYTES.min(self.segments.segment_end(start) - start);
        self.window = Window::default();
        if start >= self.singly_until {
            for tries in 0..READ_TRIES {
                if tries > 0 {
                    self.env.sleep(READ_PAUSE).await;
                }
                if let Ok(pages) = self.read(start, piece).await {
                    self.set(start, piece, pages);
                    return;
                }
            }
            self.singly_until = start + piece;
        }
        let pages = self.read(start, sector).await.ok().flatten();
        self.set(start, sector, pages);
    }

    fn set(&mut self, start: u64, bytes: u64, pages: Option<PageBuf>) {
        self.window = Window {
            start,
            end: start + bytes,
            pages,
        };
    }

    /// The bytes from `position` to the end of a piece, at least `bytes_min` of them unless a segment ends or they cannot be read.
    async fn bytes_at(&mut self, position: u64, bytes_min: usize) -> &[u8] {
        let wanted_end = (position + bytes_min as u64).min(self.segments.segment_end(position));
        if position < self.window.start || wanted_end > self.window.end {
            self.load(position).await;
        }
        let Some(pages) = &self.window.pages else {
            return &[];
        };
        let at = (position - self.window.start) as usize;
        pages.get(at..).unwrap_or_default()
    }

    async fn header_at(&mut self, position: u64) -> Option<BatchHeader> {
        let segment_end = self.segments.segment_end(position);
        let store_id = self.store_id;
        let head = self.bytes_at(position, HEADER_BYTES).await;
        let header = BatchHeader::read(head, Position(position), store_id)?;
        let is_possible = position + u64::from(header.length) <= segment_end
            && header.length as usize <= HA_BATCHES_BYTES_MAX;
        is_possible.then_some(header)
    }

    /// The header of the batch that begins at `position`, if that is whole, and the successor of the one with this CRC field.
    pub async fn batch_at(
        &mut self,
        position: u64,
        previous_crc: Option<u32>,
    ) -> Option<BatchHeader> {
        let header = self.header_at(position).await?;
        if previous_crc.is_some_and(|crc| crc != header.previous_crc) {
            return None;
        }
        let (mut at, end) = (
            position + CRC_FROM as u64,
            position + u64::from(header.length),
        );
        let mut crc = 0;
        while at < end {
            let bytes = self.bytes_at(at, 1).await;
            let bytes = &bytes[..bytes.len().min((end - at) as usize)];
            if bytes.is_empty() {
                return None;
            }
            crc = crc32c::crc32c_append(crc, bytes);
            at += bytes.len() as u64;
        }
        (crc == header.crc).then_some(header)
    }

    /// The first whole batch that begins at `from` or later and ends at `until` or before. Epochs only grow: one of an older life
    /// than `epoch`, in what that life has left behind the mark at a segment's end, is none.
    pub async fn search(&mut self, from: u64, until: u64, epoch: u32) -> Option<BatchHeader> {
        let mut at = from.next_multiple_of(ALIGN_BYTES as u64);
        while at < until {
            let segment_end = self.segments.segment_end(at);
            if at + HEADER_BYTES as u64 > segment_end {
                at = segment_end;
                continue;
            }
            let store_id = self.store_id;
            let bytes = self.bytes_at(at, HEADER_BYTES).await;
            let found = (0..(bytes.len() + 1).saturating_sub(HEADER_BYTES))
                .step_by(ALIGN_BYTES)
                .find(|&skip| {
                    let position = Position(at + skip as u64);
                    BatchHeader::read(&bytes[skip..], position, store_id).is_some()
                });
            let looked_at = bytes.len();
            let Some(skip) = found else {
                // The last bytes of a piece may be the front of a header.
                at = match looked_at >= HEADER_BYTES {
                    true => at + (looked_at - HEADER_BYTES) as u64 + ALIGN_BYTES as u64,
                    false => self.window.end.max(at + ALIGN_BYTES as u64),
                };
                at &= !(ALIGN_BYTES as u64 - 1);
                continue;
            };
            at += skip as u64;
            if let Some(header) = self.batch_at(at, None).await
                && next_of(&header, segment_end) <= until
                && header.epoch >= epoch
            {
                return Some(header);
            }
            at += ALIGN_BYTES as u64;
        }
        None
    }

    /// Whole batches of one segment from `position` on that end at `end` or before: at least one if there is one, then as many as
    /// `bytes_max` allows.
    pub async fn copy(&mut self, position: u64, end: u64, bytes_max: usize) -> Vec<u8> {
        let segment_end = self.segments.segment_end(position);
        let mut found = Vec::new();
        let mut at = position;
        while at < end.min(segment_end) {
            let Some(header) = self.header_at(at).await else {
                break;
            };
            let (length, front) = (header.length as usize, found.len());
            if next_of(&header, segment_end) > end || front > 0 && front + length > bytes_max {
                break;
            }
            while found.len() < front + length {
                let missing = front + length - found.len();
                let bytes = self.bytes_at(at + (length - missing) as u64, 1).await;
                if bytes.is_empty() {
                    break;
                }
                found.extend_from_slice(&bytes[..bytes.len().min(missing)]);
            }
            if !header.crc_is_right(&found[front..]) {
                found.truncate(front);
                break;
            }
            at = next_of(&header, segment_end);
        }
        found
    }
}

/// Why what another copy has sent is not written here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    #[error("it has no whole batch there")]
    Nothing,
    #[error("its batch at position {0} is not the one that is missing here")]
    Other(u64),
}

/// How far an answer leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Where the batch behind its last one begins.
    pub position: u64,
    /// CRC field of that last one.
    pub crc: u32,
}

/// Checks batches that were asked for from `damaged.position` on, byte by byte and each against the one before it. That they
/// are those that are missing is only known of batches that lead up to `damaged.end` with its CRC; others may be a part of them.
pub fn check_answer(
    damaged: &Damaged,
    store_id: u64,
    segment_bytes: u64,
    batches: &[u8],
) -> Result<Link, Mismatch> {
    let segment_end = (damaged.position / segment_bytes + 1) * segment_bytes;
    let mut position = damaged.position;
    let mut previous_crc = damaged.previous_crc;
    let mut left = batches;
    while !left.is_empty() {
        let other = Mismatch::Other(position);
        let header = BatchHeader::read(left, Position(position), store_id).ok_or(other)?;
        let next = next_of(&header, segment_end);
        let is_successor =
            header.crc_is_right(left) && previous_crc.is_none_or(|crc| crc == header.previous_crc);
        let fits = position + u64::from(header.length) <= segment_end && next <= damaged.end;
        if !(fits && is_successor) {
            return Err(other);
        }
        left = left.get(header.length as usize..).ok_or(other)?;
        // One answer is of one segment.
        if next == segment_end && !left.is_empty() {
            return Err(other);
        }
        position = next;
        previous_crc = Some(header.crc);
    }
    match previous_crc {
        Some(crc) if position > damaged.position => {
            if position == damaged.end && crc != damaged.end_crc {
                return Err(Mismatch::Other(position));
            }
            Ok(Link { position, crc })
        }
        _ => Err(Mismatch::Nothing),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test may panic.
mod tests;
