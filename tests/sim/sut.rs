//! What the model needs of a broker: a small trait, so that the model does not depend on how shards and logs are wired.
//!
//! `real.rs` implements it with the store and the shards, `toy.rs` with a store of 400 lines that can be broken at will.

use std::time::Duration;

use ringmq::io::sim::SimEnv;

/// A queue of one incarnation of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Queue {
    pub topic_id: u32,
    pub queue_id: u32,
}

/// A topic as the broker knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    pub name: String,
    pub id: u32,
    pub queues: u32,
}

/// A message on its way in.
#[derive(Clone, Debug)]
pub struct Message {
    pub body: Vec<u8>,
    /// Where the model keeps a message's identity.
    pub properties: Vec<u8>,
    pub tags_code: i64,
}

/// A message on its way out.
#[derive(Clone, Debug)]
pub struct Stored {
    pub queue_offset: i64,
    pub body: Vec<u8>,
    pub properties: Vec<u8>,
}

/// What a pull asks for.
#[derive(Clone, Copy, Debug)]
pub struct PullWish {
    pub offset: i64,
    pub messages_max: u32,
    /// Only messages with this tags code.
    pub tags_code: Option<i64>,
    pub suspend_ms: u64,
}

/// What a pull gives.
#[derive(Clone, Debug, Default)]
pub struct PullGift {
    pub messages: Vec<Stored>,
    /// Where to go on: entries from the asked offset (or `min_offset`, if that is greater) up to here were looked at.
    pub next_offset: i64,
    pub min_offset: i64,
    pub max_offset: i64,
}

/// Why the broker did not do it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// For now: too much is waiting.
    Busy,
    DiskFull(String),
    /// The log takes no writes since one failed.
    Poisoned(String),
    /// The queue or the topic is not there.
    NoQueue,
    Stopping,
    /// Stored bytes could not be read, or are damaged.
    Unreadable(String),
}

/// A bug that is planted in the system, to show that the model finds it.
pub type PlantedBug = &'static str;

/// How a broker is set up.
#[derive(Clone, Debug)]
pub struct Settings {
    /// SYNC_FLUSH; otherwise ASYNC_FLUSH.
    pub sync_flush: bool,
    pub logs: u8,
    pub shards: usize,
    pub segment_bytes: u64,
    /// Age from which messages may be removed.
    pub retention: Option<Duration>,
    pub planted: Option<PlantedBug>,
}

/// How to start a broker on what is on a machine's disk.
pub trait SystemUnderTest: Clone + 'static {
    type Broker: Broker;

    /// Opens or creates the store and serves. An error names what is wrong with the disk.
    fn start(
        &self,
        env: SimEnv,
        settings: Settings,
    ) -> impl Future<Output = Result<Self::Broker, String>> + 'static;
}

/// A running broker. An `Ok` is an acknowledgement: the promise begins with it.
pub trait Broker: Clone + 'static {
    async fn create_topic(&self, name: &str, queues: u32) -> Result<Topic, Refused>;
    async fn delete_topic(&self, name: &str) -> Result<(), Refused>;
    fn topics(&self) -> Vec<Topic>;
    /// The log of a queue.
    fn log_of(&self, queue: Queue) -> u8;
    /// Stores messages; gives the queue offset of the first, the others follow.
    async fn append(&self, queue: Queue, messages: Vec<Message>) -> Result<i64, Refused>;
    async fn pull(&self, queue: Queue, wish: PullWish) -> Result<PullGift, Refused>;
    /// First offset and next offset.
    async fn bounds(&self, queue: Queue) -> Result<(i64, i64), Refused>;
    async fn commit_offset(&self, group: &str, queue: Queue, offset: i64) -> Result<(), Refused>;
    async fn query_offset(&self, group: &str, queue: Queue) -> Result<Option<i64>, Refused>;
    /// Drains and stops. The process is gone afterwards.
    async fn stop(&self);
}
