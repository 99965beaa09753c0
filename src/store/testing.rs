//! What the tests of this layer share: the options of a small log in the simulated world, a message, and a listener that expects no failure.
#![allow(clippy::unwrap_used, clippy::panic)] // A test that meets an error it did not plan for is to fail.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::base::offset::{LogId, Position};
use crate::store::scrub::ScrubOptions;
use crate::store::types::{NewMessage, QueueKey};
use crate::store::{LogListener, LogOptions};

/// Nothing but the log itself looks at what it has made durable.
pub struct Quiet;

impl LogListener for Quiet {
    fn on_durable(&self, _log: LogId, _end: Position, _touched: &[QueueKey]) {}
    fn on_poisoned(&self, _log: LogId, reason: &Arc<str>) {
        panic!("{reason}");
    }
}

/// A message without properties.
pub fn message(queue: QueueKey, topic: &str, body: impl Into<Bytes>) -> NewMessage {
    NewMessage {
        queue,
        topic: Arc::from(topic),
        body: body.into(),
        properties: Bytes::new(),
        tags_code: 0,
        flag: 0,
        sys_flag: 0,
        born_timestamp: 5,
        born_host: ([127, 0, 0, 1], 5555).into(),
        reconsume_times: 0,
        prepared_transaction_offset: 0,
        key_places: None,
    }
}

/// SYNC_FLUSH, caches of a few batches, a snapshot every segment, no keys kept in memory.
pub fn small_log(directory: &Path, segment_bytes: u64) -> LogOptions {
    LogOptions {
        log: 0,
        directory: directory.to_owned(),
        store_id: 9,
        segment_bytes,
        flush_each_write: true,
        flush_interval: Duration::from_millis(50),
        tail_cache_bytes: 32 << 10,
        read_cache_bytes: 512 << 10,
        index_cache_bytes: 16 << 10,
        key_tail_entries: 0,
        snapshot_bytes: segment_bytes,
        scrub: ScrubOptions::OFF,
        store_host: ([127, 0, 0, 1], 10911).into(),
        replica: false,
        elected: None,
    }
}

/// A log and an undamaged copy of it on one disk, for the search for damage and the repair.
pub mod copies {
    use std::path::PathBuf;
    use std::rc::Rc;

    use super::*;
    use crate::base::limits::SECTOR_BYTES;
    use crate::io::env::{DiskFile, Env, OpenMode};
    use crate::io::sim::{SimEnv, SimWorld};
    use crate::store::CommitLog;
    use crate::store::batch::BatchHeader;
    use crate::store::scrub::Damaged;
    use crate::store::segment;

    pub const SEGMENT_BYTES: u64 = 128 << 10;
    pub const PERIOD: Duration = Duration::from_millis(200);
    pub const FAST: ScrubOptions = ScrubOptions {
        bytes_per_second: 1 << 40,
        period: PERIOD,
    };

    /// What [`fill`] fills.
    pub const QUEUE: QueueKey = QueueKey {
        topic_id: 1,
        queue_id: 0,
    };

    /// The log that is damaged.
    pub fn here() -> PathBuf {
        PathBuf::from("/data/here")
    }

    /// Its copy.
    pub fn there() -> PathBuf {
        PathBuf::from("/data/there")
    }

    /// Opens one of them and starts it.
    pub async fn open(
        env: &SimEnv,
        directory: &Path,
        scrub: ScrubOptions,
    ) -> Rc<CommitLog<SimEnv>> {
        env.create_dir(directory).await.unwrap();
        let mut options = small_log(directory, SEGMENT_BYTES);
        options.scrub = scrub;
        let log = CommitLog::open(env.clone(), options).await.unwrap();
        log.start(Rc::new(Quiet));
        log
    }

    /// Appends until the log has so many bytes, in batches of several sizes.
    pub async fn fill(env: &SimEnv, log: &CommitLog<SimEnv>, bytes: u64) {
        while log.durable().0 < bytes {
            let size = 100 + (env.random_u64() % 9_000) as usize;
            let body = vec![(env.random_u64() % 256) as u8; size];
            let _ = log.append(&[message(QUEUE, "T", body)]);
            env.sleep(Duration::from_micros(env.random_u64() % 900))
                .await;
        }
    }

    /// Segments of a log: where they begin, and what is in them.
    pub fn content(world: &SimWorld, directory: &Path) -> Vec<(u64, Vec<u8>)> {
        world.with_disk(0, |disk| {
            let files = disk.files();
            let segments = files.iter().filter_map(|(path, _)| {
                let name = path.file_name()?.to_str()?;
                let start = segment::start_of(name).filter(|_| path.parent() == Some(directory))?;
                Some((start, disk.content(path)?))
            });
            segments.collect()
        })
    }

    /// Whether a batch has this byte: behind the mark at a segment's end lies nothing.
    pub fn is_of_a_batch(content: &[(u64, Vec<u8>)], position: u64) -> bool {
        let found = content
            .iter()
            .find(|(start, bytes)| (*start..*start + bytes.len() as u64).contains(&position));
        let (start, bytes) = found.unwrap();
        let mut at = 0;
        while let Some(header) = BatchHeader::read(&bytes[at..], Position(start + at as u64), 9) {
            at += header.length as usize;
            if position < start + at as u64 {
                return true;
            }
        }
        false
    }

    /// A log of three segments and more with a snapshot at its end, and a copy of it, both stopped. Tells where it ends.
    pub fn make_copies(world: &SimWorld) -> u64 {
        let env = world.env();
        world.block_on(async {
            let log = open(&env, &here(), ScrubOptions::OFF).await;
            fill(&env, &log, 3 * SEGMENT_BYTES + SEGMENT_BYTES / 2).await;
            log.stop().await.unwrap();
            env.create_dir(&there()).await.unwrap();
            let files = world.with_disk(0, |disk| disk.files());
            for (path, _) in files
                .iter()
                .filter(|(path, _)| path.parent() == Some(&here()))
            {
                let bytes = world.with_disk(0, |disk| disk.content(path)).unwrap();
                let mode = OpenMode {
                    create: true,
                    flush_each_write: false,
                };
                let copy = there().join(path.file_name().unwrap());
                let file = env.open(&copy, mode).await.unwrap();
                let mut pages = env.alloc(bytes.len().next_multiple_of(SECTOR_BYTES));
                pages.as_mut().fill(0);
                pages.as_mut()[..bytes.len()].copy_from_slice(&bytes);
                if !bytes.is_empty() {
                    file.write_at(Rc::new(pages), 0).await.unwrap();
                    file.truncate(bytes.len() as u64).await.unwrap();
                }
                file.sync().await.unwrap();
            }
            env.sync_dir(&there()).await.unwrap();
            log.durable().0
        })
    }

    /// Flips bits of the damaged one.
    pub fn flip(world: &SimWorld, position: u64, mask: u8) {
        let start = position / SEGMENT_BYTES * SEGMENT_BYTES;
        let path = here().join(format!("{start:020}.seg"));
        assert!(world.with_disk(0, |disk| disk.flip_bits(&path, position - start, mask)));
    }

    /// The first damaged place, when one has been found.
    pub async fn found(env: &SimEnv, log: &Rc<CommitLog<SimEnv>>) -> Damaged {
        for _ in 0..1_000 {
            if let Some(damaged) = log.fetchable(u64::MAX, |_| false) {
                return damaged;
            }
            env.sleep(Duration::from_millis(10)).await;
        }
        panic!("nothing was found");
    }
}
