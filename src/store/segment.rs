//! The files of one log: fixed-size O_DIRECT segments, named by the position of their first byte.
//!
//! Space ahead of the tail is reserved and zeroed in the background, so that a commit changes no file-system metadata
//! and never meets ENOSPC ([`Ahead::Reserved`]: only that, for a replica far behind): a full disk shows here, where no acknowledged byte is involved, and is tried again.
//! A segment that retention frees is renamed to be the next one and needs no zeroing: its stale batches carry other
//! positions. Invariant: everything below `allocated_end` is reserved; nothing is appended beyond it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;

use crate::base::limits::SECTOR_BYTES;
use crate::io::aligned_buf::PageBuf;
use crate::io::env::{DiskFile, DiskSpace, Env, OpenMode};

/// Space is reserved in steps of this, or of a segment if that is smaller.
const EXTEND_STEP_BYTES: u64 = 16 << 20;
/// Zeros written at once where there is time; up to [`HURRY_MAX`] times doubled where there is not.
const ZERO_WRITE_BYTES: u64 = 256 << 10;
const HURRY_MAX: u32 = 3;
/// Space is reserved in steps of this where it is not zeroed: a step waits for the writes that are under way in its file.
const RESERVE_STEP_BYTES: u64 = 64 << 20;
const SUFFIX: &str = ".seg";
const SPARE_NAME: &str = "spare";

/// Whether a file of a log's directory is a segment, and where it begins.
pub fn start_of(name: &str) -> Option<u64> {
    name.strip_suffix(SUFFIX)?.parse().ok()
}

/// How space ahead of the tail is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ahead {
    /// Reserved and zeroed: a small flushed write into it costs half of one into space that is only reserved.
    Zeroed,
    /// Only reserved, for who writes so much at once that zeros would cost as much as the data.
    Reserved,
}

/// Space that is always to be there ahead of the tail (or two segments, if those are smaller).
const AHEAD_BYTES_MIN: u64 = 64 << 20;

/// How much space is to be there ahead of the tail of a log that has `log_bytes`. On a disk with room (`is_roomy`) it is as
/// much as there is log, up to a segment and a quarter: what is zeroed then is the next segment and not the one that
/// commits go to. In the same file they would have to wait for what the zeros change in the file system's journal.
pub fn ahead_bytes(log_bytes: u64, segment_bytes: u64, is_roomy: bool) -> u64 {
    let min = AHEAD_BYTES_MIN.min(2 * segment_bytes);
    match is_roomy {
        true => log_bytes.min(segment_bytes + segment_bytes / 4).max(min),
        false => min,
    }
}

/// Whether a disk has room for more space ahead than a log needs: a third of it is free.
pub fn is_roomy(space: DiskSpace) -> bool {
    space.available_bytes > space.total_bytes / 3
}

/// How urgent more space is, 0 to 3, if `left_bytes` of `ahead_bytes` are left: how many quarters of them are used up, or
/// of their upper half if they are more than a log needs.
pub fn hurry(left_bytes: u64, ahead_bytes: u64) -> u32 {
    let spare_bytes = match ahead_bytes > AHEAD_BYTES_MIN {
        true => ahead_bytes / 2,
        false => 0,
    };
    let all_bytes = (ahead_bytes - spare_bytes).max(1);
    let used_bytes = all_bytes.saturating_sub(left_bytes.saturating_sub(spare_bytes));
    ((4 * used_bytes / all_bytes) as u32).min(HURRY_MAX)
}

/// The segment files of one log. See the module's page.
pub struct Segments<E: Env> {
    env: E,
    directory: PathBuf,
    segment_bytes: u64,
    flush_each_write: bool,
    files: RefCell<BTreeMap<u64, E::File>>,
    /// Position up to which space is reserved.
    allocated_end: Cell<u64>,
    has_spare: Cell<bool>,
    /// The segment that somebody writes to although the log has gone on: it is not removed meanwhile.
    pinned: Cell<Option<u64>>,
}

impl<E: Env> Segments<E> {
    /// Opens what is there. Errors name the file.
    pub async fn open(
        env: E,
        directory: PathBuf,
        segment_bytes: u64,
        flush_each_write: bool,
    ) -> io::Result<Self> {
        assert!(
            segment_bytes.is_multiple_of(SECTOR_BYTES as u64) && segment_bytes > 0,
            "segments are whole sectors"
        );
        env.create_dir(&directory).await?;
        // Its name in the directory above has to be as durable as what will be acknowledged in it.
        if let Some(above) = directory.parent() {
            env.sync_dir(above).await?;
        }
        // The last process may have ended between making a file and flushing its name: what is found is made durable
        // before it is built upon.
        env.sync_dir(&directory).await?;
        let mut lengths = BTreeMap::new();
        let mut has_spare = false;
        for (name, bytes) in env.list(&directory).await? {
            if name == SPARE_NAME {
                has_spare = bytes == segment_bytes;
            }
            let Some(start) = start_of(&name) else {
                continue;
            };
            if !start.is_multiple_of(segment_bytes) {
                return Err(io::Error::other(format!(
                    "{}/{name} does not begin at a multiple of {segment_bytes}: mappedFileSizeCommitLog was another one when this store was made",
                    directory.display()
                )));
            }
            lengths.insert(start / segment_bytes, bytes);
        }
        let segments = Self {
            env,
            directory,
            segment_bytes,
            flush_each_write,
            files: RefCell::default(),
            allocated_end: Cell::new(0),
            has_spare: Cell::new(has_spare),
            pinned: Cell::new(None),
        };
        let mut allocated_end = None;
        for (&index, &bytes) in &lengths {
            let start = index * segment_bytes;
            // Reserved space is contiguous; a file behind a shorter one was made ahead and holds nothing yet.
            if allocated_end.is_none_or(|end| end == start) {
                allocated_end =
                    Some(start + (bytes & !(SECTOR_BYTES as u64 - 1)).min(segment_bytes));
            }
            let file = segments.open_file(index, false).await?;
            segments.files.borrow_mut().insert(index, file);
        }
        segments.allocated_end.set(allocated_end.unwrap_or(0));
        Ok(segments)
    }

    fn path(&self, index: u64) -> PathBuf {
        self.directory
            .join(format!("{:020}{SUFFIX}", index * self.segment_bytes))
    }

    async fn open_file(&self, index: u64, create: bool) -> io::Result<E::File> {
        let path = self.path(index);
        let mode = OpenMode {
            create,
            flush_each_write: self.flush_each_write,
        };
        self.env
            .open(&path, mode)
            .await
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
    }

    /// Bytes of a segment.
    pub fn segment_bytes(&self) -> u64 {
        self.segment_bytes
    }

    /// The file that holds `position`, and the position in it.
    pub fn locate(&self, position: u64) -> Option<(E::File, u64)> {
        let index = position / self.segment_bytes;
        let file = self.files.borrow().get(&index)?.clone();
        Some((file, position % self.segment_bytes))
    }

    /// Position of the first byte that is still there.
    pub fn start(&self) -> u64 {
        self.files
            .borrow()
            .keys()
            .next()
            .map_or(self.allocated_end.get(), |index| index * self.segment_bytes)
    }

    /// Position up to which space is reserved.
    pub fn allocated_end(&self) -> u64 {
        self.allocated_end.get()
    }

    /// First position behind the segment that holds `position`.
    pub fn segment_end(&self, position: u64) -> u64 {
        (position / self.segment_bytes + 1) * self.segment_bytes
    }

    /// How many segments there are.
    pub fn count(&self) -> usize {
        self.files.borrow().len()
    }

    /// Reserves the next step of space. One caller at a time. ENOSPC leaves everything as it was. `hurry` is asked all the time:
    /// 0 if there is plenty, 3 if the log is about to meet the end of its space. Zeros that come slowly leave the device to
    /// commits, but who reaches their end waits for a whole step.
    pub async fn extend(&self, ahead: Ahead, hurry: impl Fn() -> u32) -> io::Result<()> {
        let from = self.allocated_end.get();
        let index = from / self.segment_bytes;
        let at = from % self.segment_bytes;
        if at == 0 && self.has_spare.get() && !self.files.borrow().contains_key(&index) {
            let spare = self.directory.join(SPARE_NAME);
            self.env.rename(&spare, &self.path(index)).await?;
            self.has_spare.set(false);
            self.env.sync_dir(&self.directory).await?;
            let file = self.open_file(index, false).await?;
            self.files.borrow_mut().insert(index, file);
            self.allocated_end.set(from + self.segment_bytes);
            return Ok(());
        }
        let known = self.files.borrow().get(&index).cloned();
        let is_new = known.is_none();
        let file = match known {
            Some(file) => file,
            None => self.open_file(index, true).await?,
        };
        let step = match ahead {
            Ahead::Zeroed => EXTEND_STEP_BYTES,
            Ahead::Reserved => RESERVE_STEP_BYTES,
        };
        let step = step.min(self.segment_bytes - at);
        let is_reserved = match file.allocate(at, step).await {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::Unsupported => false,
            Err(error) => return Err(error),
        };
        match ahead {
            Ahead::Reserved if is_reserved => file.sync().await?,
            // What cannot be reserved is had by writing to it.
            _ => self.write_zeros(index, at, step, hurry).await?,
        }
        if is_new {
            self.env.sync_dir(&self.directory).await?;
            self.files.borrow_mut().insert(index, file);
        }
        self.allocated_end.set(from + step);
        Ok(())
    }

    /// Writes and flushes zeros to a part of a segment that was reserved just now.
    async fn write_zeros(
        &self,
        index: u64,
        at: u64,
        step: u64,
        hurry: impl Fn() -> u32,
    ) -> io::Result<()> {
        // A second handle without O_DSYNC: zeros need one flush at the end, not one each.
        let plain = self
            .env
            .open(&self.path(index), OpenMode::default())
            .await?;
        let zero_bytes = ZERO_WRITE_BYTES.min(step);
        let zeros = zero_pages(&self.env, zero_bytes as usize);
        let mut written = 0;
        while step - written >= zero_bytes {
            let count = ((step - written) / zero_bytes).min(1 << hurry().min(HURRY_MAX));
            let buffers = vec![zeros.clone(); count as usize];
            plain.write_all_at(buffers, at + written).await?;
            written += count * zero_bytes;
        }
        if written < step {
            let rest = zero_pages(&self.env, (step - written) as usize);
            plain.write_at(rest, at + written).await?;
        }
        plain.sync().await
    }

    /// Takes a log that begins at `position` (the start of a segment) although no segment is there.
    pub fn begin_at(&self, position: u64) {
        assert!(self.files.borrow().is_empty() && position.is_multiple_of(self.segment_bytes));
        self.allocated_end.set(position);
    }

    /// The segment with this position stays until it is unpinned: one at a time.
    pub fn pin(&self, position: u64) {
        assert!(self.pinned.get().is_none(), "one repair at a time");
        self.pinned.set(Some(position / self.segment_bytes));
    }

    /// It may go again.
    pub fn unpin(&self) {
        self.pinned.set(None);
    }

    /// Removes the first segment if it lies wholly below `position`; keeps it for recycling if there is no spare.
    /// Returns the new start of the log.
    pub async fn remove_first_below(&self, position: u64) -> io::Result<Option<u64>> {
        let first = self.files.borrow().keys().next().copied();
        let Some(index) = first else { return Ok(None) };
        if (index + 1) * self.segment_bytes > position || self.pinned.get() == Some(index) {
            return Ok(None);
        }
        let path = self.path(index);
        self.files.borrow_mut().remove(&index);
        if self.has_spare.get() {
            self.env.remove(&path).await?;
        } else {
            self.env
                .rename(&path, &self.directory.join(SPARE_NAME))
                .await?;
            self.has_spare.set(true);
        }
        self.env.sync_dir(&self.directory).await?;
        Ok(Some(self.start()))
    }

    /// Removes the segments that begin behind `position`, the last one first, durably.
    pub async fn remove_beyond(&self, position: u64) -> io::Result<()> {
        let first = position / self.segment_bytes + 1;
        let indices: Vec<u64> = self
            .files
            .borrow()
            .range(first..)
            .map(|(index, _)| *index)
            .collect();
        for index in indices.into_iter().rev() {
            self.files.borrow_mut().remove(&index);
            self.env.remove(&self.path(index)).await?;
            self.env.sync_dir(&self.directory).await?;
        }
        let end = self.allocated_end.get().min(first * self.segment_bytes);
        self.allocated_end.set(end);
        Ok(())
    }

    /// Gives the spare segment back to a disk that runs full. Returns whether there was one.
    pub async fn drop_spare(&self) -> io::Result<bool> {
        if !self.has_spare.replace(false) {
            return Ok(false);
        }
        self.env.remove(&self.directory.join(SPARE_NAME)).await?;
        Ok(true)
    }

    /// Flushes all segments from the one that holds `position`: ASYNC_FLUSH's timer, and the end of a clean stop.
    pub async fn sync_from(&self, position: u64) -> io::Result<()> {
        let files: Vec<E::File> = self
            .files
            .borrow()
            .range(position / self.segment_bytes..)
            .map(|(_, file)| file.clone())
            .collect();
        for file in files {
            file.sync().await?;
        }
        Ok(())
    }
}

/// A buffer of zeros for the disk.
pub fn zero_pages<E: Env>(env: &E, bytes: usize) -> Rc<PageBuf> {
    let mut pages = env.alloc(bytes);
    pages.as_mut().fill(0);
    Rc::new(pages)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::io::sim::{OpKind, SimOptions, SimWorld};

    const SEGMENT_BYTES: u64 = 1 << 20;

    #[test]
    fn the_hurry_grows_as_the_space_ahead_shrinks() {
        let of = |left_mib: u64, ahead_mib: u64| hurry(left_mib << 20, ahead_mib << 20);
        let few = [80, 64, 49, 48, 33, 17, 16, 1, 0].map(|left| of(left, 64));
        assert_eq!(few, [0, 0, 0, 1, 1, 2, 3, 3, 3]);
        // Of more than has to be only the upper half counts: the next segment is to be ready, not begun.
        let many = [1280, 1121, 1120, 960, 800, 640, 0].map(|left| of(left, 1280));
        assert_eq!(many, [0, 0, 1, 2, 3, 3, 3]);
    }

    #[test]
    fn space_ahead_grows_with_the_log_where_there_is_room() {
        let mib = |bytes: u64| bytes >> 20;
        let ahead = |log_mib: u64, is_roomy| mib(ahead_bytes(log_mib << 20, 1 << 30, is_roomy));
        let logs = [0, 64, 65, 1_000, 1_280, 100_000];
        assert_eq!(
            logs.map(|log| ahead(log, true)),
            [64, 64, 65, 1_000, 1_280, 1_280]
        );
        assert_eq!(logs.map(|log| ahead(log, false)), [64; 6]);
        assert_eq!(
            ahead_bytes(1 << 40, 1 << 20, true),
            2 << 20,
            "two small segments"
        );
        let space = |available_bytes| DiskSpace {
            total_bytes: 300,
            available_bytes,
        };
        assert!(is_roomy(space(101)) && !is_roomy(space(100)));
    }

    #[test]
    fn space_that_is_only_reserved_costs_no_write_and_is_there_and_zero() {
        let world = SimWorld::new(1, SimOptions::default());
        let env = world.env();
        let node = 0;
        let writes = || world.with_disk(node, |disk| disk.count_of(OpKind::Write));
        world.block_on(async {
            let directory = PathBuf::from("/data/log");
            env.create_dir(&directory).await.unwrap();
            let segments = Segments::open(env.clone(), directory.clone(), SEGMENT_BYTES, true);
            let segments = segments.await.unwrap();
            segments.extend(Ahead::Reserved, || 0).await.unwrap();
            assert_eq!(writes(), 0);
            assert_eq!(segments.allocated_end(), SEGMENT_BYTES);
            let (file, at) = segments
                .locate(SEGMENT_BYTES - SECTOR_BYTES as u64)
                .unwrap();
            let last = file.read_at(at, SECTOR_BYTES).await.unwrap();
            assert_eq!(&last[..], [0; SECTOR_BYTES]);
            segments.extend(Ahead::Zeroed, || 0).await.unwrap();
            assert_eq!(writes() * ZERO_WRITE_BYTES, SEGMENT_BYTES);
            // In a hurry all of it at once; the hurry may begin in the middle.
            let before = writes();
            segments.extend(Ahead::Zeroed, || HURRY_MAX).await.unwrap();
            assert_eq!(writes(), before + 1);
            let asked = Cell::new(0);
            let hurry = || asked.replace(1);
            segments.extend(Ahead::Zeroed, hurry).await.unwrap();
            assert_eq!(writes(), before + 1 + 3);
            let end = segments.allocated_end();
            assert_eq!(end, 4 * SEGMENT_BYTES);
            let (file, at) = segments.locate(end - SECTOR_BYTES as u64).unwrap();
            assert_eq!(at + SECTOR_BYTES as u64, SEGMENT_BYTES);
            assert_eq!(file.len().await.unwrap(), SEGMENT_BYTES);
            // Both are found again.
            let again = Segments::open(env.clone(), directory, SEGMENT_BYTES, true).await;
            assert_eq!(again.unwrap().allocated_end(), 4 * SEGMENT_BYTES);
        });
    }
}
