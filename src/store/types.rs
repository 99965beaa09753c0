//! What goes into a log and what comes out of it, as values.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::base::offset::{LogId, PhysicalOffset};
use crate::store::keys::entry::MessageKeys;
use crate::wire::record::RecordView;

/// A queue: the id of its topic's incarnation (a deleted and re-made topic has another one) and its number in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueKey {
    pub topic_id: u32,
    pub queue_id: u32,
}

/// A message to store, as the broker has completed it.
#[derive(Clone, Debug)]
pub struct NewMessage {
    pub queue: QueueKey,
    pub topic: Arc<str>,
    pub body: Bytes,
    /// The final properties string, at most [`crate::base::limits::PROPERTIES_BYTES_MAX`].
    pub properties: Bytes,
    /// Java's `String.hashCode` of TAGS, sign-extended; 0 without tags.
    pub tags_code: i64,
    pub flag: i32,
    /// As RocketMQ's message sysFlag; the bits for IPv6 hosts are set by the store.
    pub sys_flag: i32,
    /// Milliseconds since 1970, from the client.
    pub born_timestamp: i64,
    pub born_host: SocketAddr,
    pub reconsume_times: i32,
    pub prepared_transaction_offset: i64,
    /// Where its keys are, if that is known already.
    pub key_places: Option<KeyPlaces>,
}

impl NewMessage {
    /// What it is found by.
    pub fn keys(&self) -> MessageKeys<'_> {
        match self.key_places {
            Some(places) => {
                let keys = places.of(&self.properties);
                debug_assert_eq!(keys, MessageKeys::of(&self.properties));
                keys
            }
            None => MessageKeys::of(&self.properties),
        }
    }
}

/// Where UNIQ_KEY and KEYS have their values in a message's properties, each from and to; empty if there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyPlaces {
    unique: (u16, u16),
    keys: (u16, u16),
}

impl KeyPlaces {
    /// Of keys that are slices of `properties`.
    pub fn new(properties: &[u8], keys: MessageKeys<'_>) -> Self {
        let begin = properties.as_ptr().addr();
        // Properties have at most 65,535 bytes.
        let span = |value: &[u8]| match value.as_ptr().addr().checked_sub(begin) {
            Some(from) if !value.is_empty() => (from as u16, (from + value.len()) as u16),
            _ => (0, 0),
        };
        Self {
            unique: span(keys.unique),
            keys: span(keys.keys),
        }
    }

    /// The keys in properties of which these are the places.
    pub fn of(self, properties: &[u8]) -> MessageKeys<'_> {
        let value = |(from, to): (u16, u16)| &properties[from.into()..to.into()];
        MessageKeys {
            unique: value(self.unique),
            keys: value(self.keys),
        }
    }
}

/// Whole records of one queue, as a client made them and the broker has checked them. What the store knows is filled in
/// when they are copied.
#[derive(Clone, Debug)]
pub struct NewRecords {
    pub queue: QueueKey,
    pub topic: Arc<str>,
    /// One after the other.
    pub records: Bytes,
    /// One for each record, in their order.
    pub marks: SmallVec<[RecordMark; 1]>,
    /// Bits of sysFlag that the broker sets.
    pub sys_flag: i32,
    /// Its family is that of the records, and so is that of the broker's own address.
    pub born_host: SocketAddr,
    /// Bytes of all bodies.
    pub body_bytes: u64,
}

/// What is known of a record without reading it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordMark {
    /// Length of the record.
    pub bytes: u32,
    /// Where its properties begin; they end with it.
    pub properties_at: u32,
    /// As [`NewMessage::tags_code`].
    pub tags_code: i64,
    key_places: KeyPlaces,
}

impl RecordMark {
    /// The mark of a record whose properties have been read.
    pub fn new(record: &RecordView<'_>, tags_code: i64, keys: MessageKeys<'_>) -> Self {
        Self {
            bytes: record.total_bytes() as u32,
            properties_at: record.properties_at() as u32,
            tags_code,
            key_places: KeyPlaces::new(record.properties(), keys),
        }
    }

    /// The keys of the record that this is the mark of.
    pub fn keys_of<'a>(&self, record: &'a [u8]) -> MessageKeys<'a> {
        self.key_places.of(&record[self.properties_at as usize..])
    }
}

/// Where a stored message is. For a batch: of its first message, the others follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    pub queue_offset: i64,
    /// One per message; of [`NewRecords`] the first one only, since each record begins where the one before it ends.
    pub physical_offsets: SmallVec<[PhysicalOffset; 1]>,
    pub store_timestamp: i64,
    pub copies: Copies,
}

/// Whether what was stored has as many copies as the broker is configured for (`inSyncReplicas`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Copies {
    #[default]
    Enough,
    /// Too few slaves are in sync: stored without them.
    NoSlave,
    /// The slaves did not say so in time (`slaveTimeout`). They may have it, or get it.
    Late,
}

/// Why a log or a shard refuses a request. `broker/dispatch.rs` maps it to a response code and a remark.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "log {log} waits for its disk: {pending_bytes} bytes are pending, the limit is {limit_bytes}"
    )]
    Busy {
        log: LogId,
        pending_bytes: usize,
        limit_bytes: usize,
    },
    #[error("log {log} grows faster than the disk gives it space; send again")]
    SpaceOnItsWay { log: LogId },
    #[error("the disk is full: {reason}")]
    DiskFull { reason: Arc<str> },
    #[error("log {log} takes no writes: {reason}. Reads go on; repair the disk and restart")]
    Poisoned { log: LogId, reason: Arc<str> },
    #[error("a record of {bytes} bytes is larger than the limit of {limit_bytes}")]
    TooLarge { bytes: usize, limit_bytes: usize },
    #[error(
        "log {log} has {open} open transactions, the limit is {limit}: commit them or roll them back, or send without a transaction"
    )]
    TooManyTransactions {
        log: LogId,
        open: usize,
        limit: usize,
    },
    #[error(
        "this broker is a slave (brokerRole=SLAVE): it serves reads only; send to the master of its group"
    )]
    Replica,
    #[error(
        "{in_sync} replicas are in sync, the master included, and minInSyncReplicas is {needed}: nothing was stored; `haStatus` shows who is missing"
    )]
    TooFewReplicas { in_sync: u32, needed: u32 },
    #[error(
        "this broker has no lease of the controller at the moment, so it may not be the master any more; ask the name server again"
    )]
    NoLease,
    #[error(
        "this broker has come back and does not know yet which of its messages count: it serves reads when its master has said so"
    )]
    Unsettled,
    #[error("the queue is not on this broker any more")]
    NoQueue,
    #[error("core {shard} has {waiting} requests waiting, the limit is {limit}")]
    MeshFull {
        shard: usize,
        waiting: usize,
        limit: usize,
    },
    #[error("the broker is stopping")]
    Stopping,
    #[error("reading the log failed: {reason}")]
    Read { reason: Arc<str> },
}

/// One entry of a queue's index: RocketMQ's 20 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueEntry {
    /// Position of the record in its log.
    pub position: u64,
    /// Bytes of the record.
    pub size: u32,
    pub tags_code: i64,
}

/// First and next offset of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueBounds {
    pub min_offset: i64,
    /// Exclusive: the offset of the next message that is acknowledged.
    pub max_offset: i64,
    /// Store time of the last message in milliseconds, 0 if there is none.
    pub last_store_timestamp: i64,
}
