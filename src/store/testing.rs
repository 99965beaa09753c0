//! What the tests of this layer share: the options of a small log in the simulated world, a message, and a listener that expects no failure.
#![allow(clippy::unwrap_used, clippy::panic)] // A test that meets an error it did not plan for is to fail.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::base::offset::{LogId, Position};
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
        store_host: ([127, 0, 0, 1], 10911).into(),
        replica: false,
        elected: None,
    }
}
