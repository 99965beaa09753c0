//! Writing and reading runs: the only lines of the key index that wait for a disk.

use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::base::limits::SECTOR_BYTES;
use crate::io::aligned_buf::PageBuf;
use crate::io::env::{DiskFile, Env, OpenMode};
use crate::store::keys::entry::Entry;
use crate::store::keys::parts::Run;
use crate::store::keys::run::{self, BLOCK_ENTRIES, Filter};

/// Blocks that are written or read at once.
const PIECE_BLOCKS: usize = 16;
/// Fences and filters are written and read in pieces of this.
const PIECE_BYTES: usize = 256 << 10;
const SUFFIX: &str = ".keys";
const SPARE_SUFFIX: &str = ".spare";

/// What is kept in memory of a run.
pub struct Loaded {
    pub fences: Vec<u64>,
    /// Absent if there is no room for it.
    pub filter: Option<Filter>,
}

/// File of a run.
pub fn path_of(directory: &Path, id: u64) -> PathBuf {
    directory.join(format!("{id:012}{SUFFIX}"))
}

/// The id of a file's name.
pub fn id_of(name: &str) -> Option<u64> {
    name.strip_suffix(SUFFIX)?.parse().ok()
}

/// File that was that of a run and is to be written over.
pub fn spare_path_of(directory: &Path, id: u64) -> PathBuf {
    directory.join(format!("{id:012}{SPARE_SUFFIX}"))
}

/// The id of the run that a spare file was of.
pub fn spare_id_of(name: &str) -> Option<u64> {
    name.strip_suffix(SPARE_SUFFIX)?.parse().ok()
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// Opens a file that is there, or makes it.
pub async fn open<E: Env>(env: &E, directory: &Path, id: u64, create: bool) -> io::Result<E::File> {
    let mode = OpenMode {
        create,
        flush_each_write: false,
    };
    env.open(&path_of(directory, id), mode).await
}

/// Writes bytes at a sector, padded with zeros.
async fn write_padded<E: Env>(env: &E, file: &E::File, bytes: &[u8], at: u64) -> io::Result<()> {
    for (number, piece) in bytes.chunks(PIECE_BYTES).enumerate() {
        let mut pages = env.alloc(piece.len().next_multiple_of(SECTOR_BYTES));
        let memory = pages.as_mut();
        memory[..piece.len()].copy_from_slice(piece);
        memory[piece.len()..].fill(0);
        file.write_at(Rc::new(pages), at + (number * PIECE_BYTES) as u64)
            .await?;
    }
    Ok(())
}

async fn read_exact<F: DiskFile>(file: &F, at: u64, bytes: usize) -> io::Result<Vec<u8>> {
    let mut all = Vec::with_capacity(bytes);
    while all.len() < bytes {
        let left = (bytes - all.len()).next_multiple_of(SECTOR_BYTES);
        let piece = file
            .read_at(at + all.len() as u64, left.min(PIECE_BYTES))
            .await?;
        if piece.is_empty() {
            return Err(damaged("it is cut short"));
        }
        let wanted = piece.len().min(bytes - all.len());
        all.extend_from_slice(&piece[..wanted]);
    }
    Ok(all)
}

/// The header of a file: `None` if it is not a whole run of this log.
pub async fn read_header<F: DiskFile>(file: &F, store_id: u64, log: u8) -> io::Result<Option<Run>> {
    let sector = file.read_at(0, SECTOR_BYTES).await?;
    Ok(run::decode_header(&sector, store_id, log))
}

/// Writes a header anew, durably: a log that lost its end takes the index along.
pub async fn write_header<E: Env>(
    env: &E,
    file: &E::File,
    run: &Run,
    store_id: u64,
    log: u8,
) -> io::Result<()> {
    write_padded(env, file, &run::encode_header(run, store_id, log), 0).await?;
    file.sync().await
}

/// Fences and, if wanted, the filter of a run.
pub async fn load<F: DiskFile>(file: &F, run: &Run, with_filter: bool) -> io::Result<Loaded> {
    let bytes = read_exact(
        file,
        run::fences_at(run.blocks),
        run::fences_bytes(run.blocks),
    )
    .await?;
    if crc32c::crc32c(&bytes) != run.fences_crc {
        return Err(damaged("the CRC of its fences is wrong"));
    }
    let fences = bytes
        .chunks_exact(8)
        .filter_map(|fence| fence.first_chunk().map(|fence| u64::from_le_bytes(*fence)))
        .collect();
    let filter = if with_filter {
        let at = run::filter_at(run.blocks);
        let bytes = read_exact(file, at, run.filter_bytes as usize).await?;
        if crc32c::crc32c(&bytes) != run.filter_crc {
            return Err(damaged("the CRC of its filter is wrong"));
        }
        Filter::from_bytes(bytes)
    } else {
        None
    };
    Ok(Loaded { fences, filter })
}

/// One block of a run as its bytes, checked.
pub async fn read_block<F: DiskFile>(file: &F, block: u32) -> io::Result<Rc<[u8]>> {
    let at = (1 + u64::from(block)) * SECTOR_BYTES as u64;
    let pages = file.read_at(at, SECTOR_BYTES).await?;
    if run::decode_block(&pages).is_none() {
        return Err(damaged("the CRC of a block is wrong"));
    }
    Ok(Rc::from(&pages[..]))
}

/// Writes a run, entry by entry.
pub struct RunWriter<E: Env> {
    env: E,
    file: E::File,
    block: Vec<Entry>,
    piece: Option<PageBuf>,
    /// Blocks in `piece`.
    filled: usize,
    written: u32,
    fences: Vec<u64>,
    filter: Filter,
    entries: u64,
    seconds: (u32, u32),
}

impl<E: Env> RunWriter<E> {
    /// A writer of at most so many entries.
    pub fn new(env: E, file: E::File, entries_max: u64) -> Self {
        Self {
            env,
            file,
            block: Vec::with_capacity(BLOCK_ENTRIES),
            piece: None,
            filled: 0,
            written: 0,
            fences: Vec::new(),
            filter: Filter::with_room(entries_max),
            entries: 0,
            seconds: (u32::MAX, 0),
        }
    }

    /// Adds the next entry in the order of [`Entry`]. True: call [`RunWriter::flush`] before the next one.
    #[must_use]
    pub fn put(&mut self, entry: Entry) -> bool {
        if self.block.is_empty() {
            self.fences.push(entry.hash);
        }
        self.block.push(entry);
        self.filter.add(entry.hash);
        self.entries += 1;
        self.seconds.0 = self.seconds.0.min(entry.seconds);
        self.seconds.1 = self.seconds.1.max(entry.seconds);
        if self.block.len() == BLOCK_ENTRIES {
            self.end_block();
        }
        self.filled == PIECE_BLOCKS
    }

    fn end_block(&mut self) {
        if self.block.is_empty() {
            return;
        }
        let env = &self.env;
        let piece = self
            .piece
            .get_or_insert_with(|| env.alloc(PIECE_BLOCKS * SECTOR_BYTES));
        let at = self.filled * SECTOR_BYTES;
        run::encode_block(&self.block, &mut piece.as_mut()[at..at + SECTOR_BYTES]);
        self.block.clear();
        self.filled += 1;
    }

    /// Writes the full blocks.
    pub async fn flush(&mut self) -> io::Result<()> {
        let Some(mut piece) = self.piece.take() else {
            return Ok(());
        };
        piece.trim_to(self.filled * SECTOR_BYTES);
        let at = (1 + u64::from(self.written)) * SECTOR_BYTES as u64;
        self.written += self.filled as u32;
        self.filled = 0;
        self.file.write_at(Rc::new(piece), at).await
    }

    /// Writes the rest and makes all of it durable but the name.
    pub async fn finish(
        mut self,
        id: u64,
        span: std::ops::Range<u64>,
        store_id: u64,
        log: u8,
    ) -> io::Result<(Run, Loaded)> {
        self.end_block();
        self.flush().await?;
        let fences: Vec<u8> = self
            .fences
            .iter()
            .flat_map(|fence| fence.to_le_bytes())
            .collect();
        let run = Run {
            id,
            from: span.start,
            to: span.end,
            entries: self.entries,
            blocks: self.written,
            filter_bytes: self.filter.bytes().len() as u32,
            first_seconds: self.seconds.0.min(self.seconds.1),
            last_seconds: self.seconds.1,
            fences_crc: crc32c::crc32c(&fences),
            filter_crc: crc32c::crc32c(self.filter.bytes()),
        };
        let (env, file) = (&self.env, &self.file);
        write_padded(env, file, &fences, run::fences_at(run.blocks)).await?;
        write_padded(env, file, self.filter.bytes(), run::filter_at(run.blocks)).await?;
        self.file.sync().await?;
        write_header(env, file, &run, store_id, log).await?;
        let loaded = Loaded {
            fences: self.fences,
            filter: Some(self.filter),
        };
        Ok((run, loaded))
    }
}

/// Reads the entries of a run in their order.
pub struct RunReader<F> {
    file: F,
    run: Rc<Run>,
    next_block: u32,
    entries: Vec<Entry>,
    at: usize,
}

impl<F: DiskFile> RunReader<F> {
    pub fn new(file: F, run: Rc<Run>) -> Self {
        Self {
            file,
            run,
            next_block: 0,
            entries: Vec::new(),
            at: 0,
        }
    }

    /// The entry that the reader stands on; `None` before [`RunReader::fill`] and at the end.
    pub fn peek(&self) -> Option<&Entry> {
        self.entries.get(self.at)
    }

    /// Goes on by one. True: call [`RunReader::fill`].
    #[must_use]
    pub fn advance(&mut self) -> bool {
        self.at += 1;
        self.at >= self.entries.len()
    }

    /// Reads on, past blocks without an entry of the run's part of the log.
    pub async fn fill(&mut self) -> io::Result<()> {
        self.entries.clear();
        self.at = 0;
        while self.entries.is_empty() && self.next_block < self.run.blocks {
            let count = PIECE_BLOCKS.min((self.run.blocks - self.next_block) as usize);
            let at = (1 + u64::from(self.next_block)) * SECTOR_BYTES as u64;
            let pages = self.file.read_at(at, count * SECTOR_BYTES).await?;
            if pages.len() < count * SECTOR_BYTES {
                return Err(damaged("it is cut short"));
            }
            for sector in pages.chunks_exact(SECTOR_BYTES).take(count) {
                let block = run::decode_block(sector)
                    .ok_or_else(|| damaged("the CRC of a block is wrong"))?;
                let span = self.run.from..self.run.to;
                self.entries
                    .extend(block.filter(|entry| span.contains(&entry.position)));
            }
            self.next_block += count as u32;
        }
        Ok(())
    }
}
