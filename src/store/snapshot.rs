//! A snapshot: all tables of one log at one durable position, so that recovery reads the log from there only.
//!
//! File `snapshot-<position>`: header of 64 bytes (magic `RMQS`, version u32, payload bytes u64, CRC-32C of the payload
//! u32, log position u64, CRC field of the batch before it u32, epoch u32, store id u64), payload, zeros to a
//! sector. Little-endian. It is written under another name, flushed, renamed, and the directory flushed, before an older
//! one is removed: there is always one that is whole, or none and the whole log.

use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use crate::base::limits::SECTOR_BYTES;
use crate::io::env::{DiskFile, Env, OpenMode};

const MAGIC: u32 = u32::from_le_bytes(*b"RMQS");
const VERSION: u32 = 3;
const HEADER_BYTES: usize = 64;
const PREFIX: &str = "snapshot-";
const TEMPORARY: &str = "snapshot.new";
/// A snapshot is read and written in pieces of this.
const PIECE_BYTES: usize = 256 << 10;

/// A snapshot's bytes end too early: it is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the snapshot ends too early")]
pub struct Short;

/// Writes values little-endian.
#[derive(Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    pub fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        self.u32(bytes.len() as u32);
        self.0.extend_from_slice(bytes);
    }

    pub fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// Reads what a [`Writer`] wrote; never beyond the end.
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Bytes that are not read yet.
    pub fn left(&self) -> usize {
        self.0.len()
    }

    pub fn u32(&mut self) -> Result<u32, Short> {
        let (head, tail) = self.0.split_first_chunk::<4>().ok_or(Short)?;
        self.0 = tail;
        Ok(u32::from_le_bytes(*head))
    }

    pub fn u64(&mut self) -> Result<u64, Short> {
        let (head, tail) = self.0.split_first_chunk::<8>().ok_or(Short)?;
        self.0 = tail;
        Ok(u64::from_le_bytes(*head))
    }

    pub fn bytes(&mut self) -> Result<&'a [u8], Short> {
        let length = self.u32()? as usize;
        if self.0.len() < length {
            return Err(Short);
        }
        let (head, tail) = self.0.split_at(length);
        self.0 = tail;
        Ok(head)
    }

    pub fn text(&mut self) -> Result<Arc<str>, Short> {
        std::str::from_utf8(self.bytes()?)
            .map(Arc::from)
            .map_err(|_| Short)
    }
}

/// Where in the log a snapshot stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The first batch that the snapshot does not contain begins here.
    pub position: u64,
    /// CRC field of the batch before.
    pub previous_crc: u32,
    pub epoch: u32,
    pub store_id: u64,
}

/// Whether a file of a log's directory is a snapshot, and of which position.
pub fn position_of(name: &str) -> Option<u64> {
    name.strip_prefix(PREFIX)?.parse().ok()
}

pub(super) fn path_of(directory: &Path, position: u64) -> PathBuf {
    directory.join(format!("{PREFIX}{position:020}"))
}

/// Writes a snapshot durably, then removes the older ones.
pub async fn save<E: Env>(env: &E, directory: &Path, mark: Mark, payload: &[u8]) -> io::Result<()> {
    let path = path_of(directory, mark.position);
    write(env, &path, TEMPORARY, mark, payload).await?;
    for (name, _) in env.list(directory).await? {
        if position_of(&name).is_some_and(|position| position < mark.position) {
            env.remove(&directory.join(name)).await?;
        }
    }
    env.sync_dir(directory).await
}

/// Writes a snapshot durably under a name of its own. Who may write at the same time has another `temporary` name.
pub(super) async fn write<E: Env>(
    env: &E,
    path: &Path,
    temporary: &str,
    mark: Mark,
    payload: &[u8],
) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut image = Vec::with_capacity(HEADER_BYTES + payload.len());
    image.extend_from_slice(&MAGIC.to_le_bytes());
    image.extend_from_slice(&VERSION.to_le_bytes());
    image.extend_from_slice(&(payload.len() as u64).to_le_bytes());
    image.extend_from_slice(&crc32c::crc32c(payload).to_le_bytes());
    image.extend_from_slice(&mark.position.to_le_bytes());
    image.extend_from_slice(&mark.previous_crc.to_le_bytes());
    image.extend_from_slice(&mark.epoch.to_le_bytes());
    image.extend_from_slice(&mark.store_id.to_le_bytes());
    image.resize(HEADER_BYTES, 0);
    image.extend_from_slice(payload);
    let temporary = directory.join(temporary);
    let file = env
        .open(
            &temporary,
            OpenMode {
                create: true,
                flush_each_write: false,
            },
        )
        .await?;
    file.truncate(0).await?;
    for (number, piece) in image.chunks(PIECE_BYTES).enumerate() {
        let mut pages = env.alloc(piece.len().next_multiple_of(SECTOR_BYTES));
        let memory = pages.as_mut();
        memory[..piece.len()].copy_from_slice(piece);
        memory[piece.len()..].fill(0);
        file.write_at(Rc::new(pages), (number * PIECE_BYTES) as u64)
            .await?;
    }
    file.sync().await?;
    env.rename(&temporary, path).await?;
    env.sync_dir(directory).await
}

/// Removes the snapshots of positions behind `position`, durably: the log is about to be cut there.
pub async fn remove_beyond<E: Env>(env: &E, directory: &Path, position: u64) -> io::Result<()> {
    for (name, _) in env.list(directory).await? {
        if position_of(&name).is_some_and(|at| at > position) {
            env.remove(&directory.join(name)).await?;
        }
    }
    env.sync_dir(directory).await
}

/// Reads the newest whole snapshot. A damaged one is logged and passed over if the log still has its first byte
/// (`log_start` 0), from which everything can be built again. Otherwise that is an error, as is one that cannot be read:
/// a start without it would forget the topics, groups and offsets that only the snapshot knows.
pub async fn load<E: Env>(
    env: &E,
    directory: &Path,
    store_id: u64,
    log_start: u64,
) -> io::Result<Option<(Mark, Vec<u8>)>> {
    load_below(env, directory, store_id, log_start, None).await
}

/// The same of those that do not lie behind `limit`.
pub async fn load_below<E: Env>(
    env: &E,
    directory: &Path,
    store_id: u64,
    log_start: u64,
    limit: Option<u64>,
) -> io::Result<Option<(Mark, Vec<u8>)>> {
    let mut positions: Vec<u64> = env
        .list(directory)
        .await?
        .into_iter()
        .filter_map(|(name, _)| position_of(&name))
        .filter(|position| limit.is_none_or(|limit| *position <= limit))
        .collect();
    positions.sort_unstable();
    while let Some(position) = positions.pop() {
        let path = path_of(directory, position);
        match read(env, &path, Some(position), store_id).await {
            Ok(found) => return Ok(Some(found)),
            Err(error) if error.kind() != io::ErrorKind::InvalidData => {
                return Err(io::Error::new(
                    error.kind(),
                    format!("{}: {error}", path.display()),
                ));
            }
            Err(error) if log_start > 0 => {
                return Err(io::Error::new(
                    error.kind(),
                    format!(
                        "{}: {error}. The log begins at position {log_start}, so only this snapshot knows the topics, \
                         groups and offsets from before; restore the file, or move it away to start without them",
                        path.display()
                    ),
                ));
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a snapshot cannot be used; the next older one, or the whole log, is read instead");
            }
        }
    }
    Ok(None)
}

/// Reads a snapshot, of any position or this one. `InvalidData`: it is not whole, or of another store.
pub(super) async fn read<E: Env>(
    env: &E,
    path: &Path,
    position: Option<u64>,
    store_id: u64,
) -> io::Result<(Mark, Vec<u8>)> {
    let file = env.open(path, OpenMode::default()).await?;
    let length = file.len().await? as usize;
    let mut image = Vec::with_capacity(length);
    while image.len() < length {
        let piece = file.read_at(image.len() as u64, PIECE_BYTES).await?;
        if piece.is_empty() {
            break;
        }
        image.extend_from_slice(&piece);
    }
    let damaged = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut header = Reader::new(&image);
    let parse = |header: &mut Reader<'_>| -> Result<_, Short> {
        Ok((
            header.u32()?,
            header.u32()?,
            header.u64()? as usize,
            header.u32()?,
            Mark {
                position: header.u64()?,
                previous_crc: header.u32()?,
                epoch: header.u32()?,
                store_id: header.u64()?,
            },
        ))
    };
    let (magic, version, bytes, crc, mark) =
        parse(&mut header).map_err(|short| damaged(&short.to_string()))?;
    if magic != MAGIC || version != VERSION {
        return Err(damaged("it is not a snapshot of this version"));
    }
    let is_there = position.is_none_or(|position| position == mark.position);
    if !is_there || mark.store_id != store_id {
        return Err(damaged("it belongs to another store or position"));
    }
    let payload = image
        .get(HEADER_BYTES..HEADER_BYTES.saturating_add(bytes))
        .ok_or_else(|| damaged("it is cut short"))?;
    if crc32c::crc32c(payload) != crc {
        return Err(damaged("its CRC is wrong"));
    }
    Ok((mark, payload.to_vec()))
}
