//! A seed: what a copy of a log is begun from when retention has removed the beginning of the original.
//!
//! It is a snapshot for the position where the original begins now, made later, at position `until`. The queues are empty and
//! begin where those of the original begin; everything else (topics, groups, consumer offsets, timers, transactions, POP) is as
//! of `until`. The copy folds the batches from its beginning on: up to `until` they fill the queues and do nothing else, and
//! there the queues have to end where the seed says. Until then nothing is shown, no snapshot is made, and the log does not
//! open as one of its own. Layout: the tables, a count of zero segment times, then `until` u64, number of queues
//! u32, and for each topic id u32, queue id u32, end i64; little-endian.
//!
//! A seed that arrives is written to the file `seed`. The next opening of the log removes everything else of it and makes the
//! seed its snapshot; a crash in between only means that this is done again.

use std::io;
use std::path::Path;

use ahash::AHashMap;

use crate::io::env::Env;
use crate::store::commit_log::{CommitLog, cut};
use crate::store::segment;
use crate::store::snapshot::{self, Mark, Reader, Short, Writer};
use crate::store::tables::{Seeding, Tables};
use crate::store::types::QueueKey;

#[cfg(test)]
mod tests;

pub(super) const NAME: &str = "seed";
/// While it is written: a snapshot of the log may be written at the same time.
const DRAFT: &str = "seed.new";

/// See the module's page.
pub struct Seed {
    /// Where the copy begins.
    pub mark: Mark,
    pub payload: Vec<u8>,
}

/// The tables of a log as the payload of a seed.
pub(super) fn write(tables: &Tables, until: u64) -> Vec<u8> {
    let mut out = Writer::default();
    tables.write_seed(&mut out);
    out.u32(0);
    out.u64(until);
    let is_open = |key: &QueueKey| tables.open_topics.is_open(key.topic_id);
    let keys: Vec<QueueKey> = tables.queues.keys().filter(is_open).collect();
    out.u32(keys.len() as u32);
    for key in keys {
        out.u32(key.topic_id);
        out.u32(key.queue_id);
        out.u64(tables.queues.bounds(key).max_offset as u64);
    }
    out.finish()
}

/// Reads what stands behind a snapshot's tables and segment times; nothing if it is not a seed's.
pub(super) fn read(input: &mut Reader<'_>) -> Result<Option<Seeding>, Short> {
    if input.left() == 0 {
        return Ok(None);
    }
    let mut seeding = Seeding {
        until: input.u64()?,
        ends: AHashMap::new(),
    };
    for _ in 0..input.u32()? {
        let key = QueueKey {
            topic_id: input.u32()?,
            queue_id: input.u32()?,
        };
        seeding.ends.insert(key, input.u64()? as i64);
    }
    Ok(Some(seeding))
}

impl<E: Env> CommitLog<E> {
    /// What a copy of this log can be begun from now. `WouldBlock`: retention is moving its beginning; it can be asked again.
    pub async fn make_seed(&self) -> io::Result<Seed> {
        let moving = || io::Error::from(io::ErrorKind::WouldBlock);
        let position = self.tables_start().ok_or_else(moving)?;
        let first = match position < self.durable_here().0 {
            true => self.walker().batch_at(position, None).await,
            false => None,
        };
        // Retention may have gone on while that was read.
        if self.tables_start() != Some(position) {
            return Err(moving());
        }
        let (released, released_crc, released_epoch) = self.released();
        let (epoch, previous_crc) = match first {
            // The batch before has no later epoch than the one behind it.
            Some(first) => (first.epoch, first.previous_crc),
            None if released == position => (released_epoch, released_crc),
            None => return Err(moving()),
        };
        Ok(Seed {
            mark: Mark {
                position,
                previous_crc,
                epoch,
                store_id: self.options().store_id,
            },
            payload: write(&self.tables().borrow(), released),
        })
    }

    /// Notes durably that this log begins anew from a seed when it is opened again.
    pub async fn note_seed(&self, seed: &Seed) -> io::Result<()> {
        let (env, directory) = (self.env(), &self.options().directory);
        let found = Reader::new(&seed.payload);
        check(found).map_err(|short| {
            io::Error::new(io::ErrorKind::InvalidData, format!("the seed: {short}"))
        })?;
        if !seed
            .mark
            .position
            .is_multiple_of(self.options().segment_bytes)
            || seed.mark.store_id != self.options().store_id
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the seed is of another store",
            ));
        }
        let path = directory.join(NAME);
        snapshot::write(env, &path, DRAFT, seed.mark, &seed.payload).await
    }
}

fn check(mut input: Reader<'_>) -> Result<(), Short> {
    Tables::read(&mut input)?;
    match (input.u32()?, read(&mut input)?) {
        (0, Some(_)) if input.left() == 0 => Ok(()),
        _ => Err(Short),
    }
}

/// Carries out what [`CommitLog::note_seed`] has noted, durably.
pub(super) async fn install<E: Env>(env: &E, directory: &Path, store_id: u64) -> io::Result<()> {
    let noted = env.list(directory).await?;
    if !noted.iter().any(|(name, _)| name == NAME) {
        return Ok(());
    }
    let path = directory.join(NAME);
    let (mark, _) = snapshot::read(env, &path, None, store_id)
        .await
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    empty(env, directory).await?;
    env.rename(&path, &snapshot::path_of(directory, mark.position))
        .await?;
    env.sync_dir(directory).await?;
    tracing::warn!(
        directory = %directory.display(),
        start = mark.position,
        "this log begins anew where its master's log begins: what it has to hold before it can be used comes over the stream"
    );
    Ok(())
}

/// Removes everything of a log but a noted seed, durably.
pub(super) async fn empty<E: Env>(env: &E, directory: &Path) -> io::Result<()> {
    for (name, _) in env.list(directory).await? {
        let is_of_the_log = segment::start_of(&name).is_some()
            || snapshot::position_of(&name).is_some()
            || cut::position_of(&name).is_some();
        if is_of_the_log {
            env.remove(&directory.join(name)).await?;
        }
    }
    for part in ["index", "keys"] {
        let part = directory.join(part);
        env.create_dir(&part).await?;
        for (name, _) in env.list(&part).await? {
            env.remove(&part.join(name)).await?;
        }
        env.sync_dir(&part).await?;
    }
    env.sync_dir(directory).await
}
