//! All that cores say to each other. Everything here is owned and `Send`: a page slice cannot cross, so a read for
//! another core costs one copy.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::base::histogram::Histogram;
use crate::base::id::ConnectionId;
use crate::base::offset::{LogId, Position};
use crate::ha::master::Wish;
use crate::io::body::Body;
use crate::io::tcp::DetachedStream;
use crate::shard::figures::ShardFigures;
use crate::shard::meta::{MetaChange, MetaCommand, OnlineGroup};
use crate::shard::pop::message::{PopReply, PopRequest};
use crate::wire::remoting::body::{ConsumerData, HeartbeatData};
use crate::wire::remoting::command::{Command, Outgoing};
use crate::wire::sql::CompiledFilter;

pub use crate::shard::query::newest_first;
pub use crate::store::keys::entry::KeyKind;
pub use crate::store::tables::halves::{Half, Outcome};
pub use crate::store::types::{
    Appended, Copies, NewMessage, NewRecords, QueueBounds, QueueKey, RecordMark, Refusal,
};

/// Which messages of a queue a consumer wants (`MessageFilter`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MessageFilter {
    All,
    /// Hashes of the wanted tags (`SubscriptionData.codeSet`).
    Codes(Arc<[i64]>),
    /// By properties: the records have to be read.
    Sql(Arc<CompiledFilter>),
}

impl MessageFilter {
    /// Whether an entry with this tags code may be wanted; a SQL92 filter says so of all.
    pub fn matches_entry(&self, tags_code: i64) -> bool {
        match self {
            Self::All | Self::Sql(_) => true,
            Self::Codes(codes) => codes.contains(&tags_code),
        }
    }

    /// Whether a message with these properties is wanted, if its entry is.
    pub fn matches_properties(&self, properties: &[u8]) -> bool {
        match self {
            Self::All | Self::Codes(_) => true,
            Self::Sql(filter) => filter.matches(properties),
        }
    }
}

/// A pull of one queue.
#[derive(Clone, Debug)]
pub struct Pull {
    pub queue: QueueKey,
    /// First queue offset wanted.
    pub offset: i64,
    /// At least 1.
    pub messages_max: u32,
    /// The first message is returned whatever its size.
    pub bytes_max: u32,
    pub filter: MessageFilter,
    /// How long to wait for a match, in milliseconds; 0 answers at once.
    pub suspend_ms: u64,
    /// Consumer group and offset to commit on the way (`PullSysFlag` COMMIT_OFFSET).
    pub commit: Option<(Arc<str>, i64)>,
}

/// RocketMQ's `GetMessageStatus`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullStatus {
    Found,
    NoMatchedMessage,
    /// The queue exists on the broker and was never written to (or lost all to retention).
    NoMessageInQueue,
    /// `offset` is the next one to be written.
    OffsetOverflowOne,
    OffsetOverflowBadly,
    OffsetTooSmall,
}

/// Answer to a [`Pull`]. `B` is [`Body`] on a core, [`Bytes`] between cores.
#[derive(Clone, Debug)]
pub struct Pulled<B> {
    pub status: PullStatus,
    pub next_offset: i64,
    pub min_offset: i64,
    /// Exclusive.
    pub max_offset: i64,
    /// Whole stored records, one after the other.
    pub records: B,
    pub message_count: u32,
    /// What was read lies before all that the master keeps in memory of its log.
    pub is_far_behind: bool,
}

/// `BoundaryType` of a search by time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boundary {
    /// First offset with a store time at or after the given one.
    Lower,
    /// Last offset with a store time at or before it.
    Upper,
}

/// A question for messages by key, in all logs of a core.
#[derive(Clone, Debug)]
pub struct KeyQuery {
    pub topic: Arc<str>,
    pub topic_id: u32,
    pub key: Arc<str>,
    /// Which keys: KEYS, UNIQ_KEY or both.
    pub kinds: Vec<KeyKind>,
    /// Store times in milliseconds, both inclusive.
    pub begin_ms: i64,
    pub end_ms: i64,
    pub messages_max: usize,
}

/// Answer to a [`KeyQuery`]. `B` as in [`Pulled`].
#[derive(Clone, Debug)]
pub struct KeyFinds<B> {
    /// Store time in milliseconds and whole record, the newest first.
    pub found: Vec<(i64, B)>,
    /// Physical offset and store time of the newest message that is in an index of this core; 0 if there is none.
    pub newest_offset: i64,
    pub newest_ms: i64,
    /// Bytes of the logs that are being read for the index and were not looked at.
    pub missing_bytes: u64,
}

/// A message that becomes visible at a time.
#[derive(Clone, Debug)]
pub struct Delayed {
    pub message: NewMessage,
    /// Milliseconds since 1970.
    pub due_ms: u64,
}

/// A half message: invisible until its transaction is committed.
#[derive(Clone, Debug)]
pub struct NewHalf {
    pub message: NewMessage,
    /// After so many milliseconds its producer is asked how the transaction ended.
    pub check_after_ms: u64,
}

/// What is to become of an open half.
#[derive(Clone, Debug)]
pub enum HalfEnd {
    /// The message is stored in its queue, or for the time when it is due, in milliseconds since 1970.
    Commit(NewMessage, Option<u64>),
    RollBack,
    GiveUp,
    /// Nothing: only how it ended is asked.
    Ask,
}

/// To the core that owns a queue, a log, a group or the metadata.
#[derive(Debug)]
pub enum ShardRequest {
    /// One message, or several of one queue that become consecutive records in one batch.
    Append(Box<[NewMessage]>),
    /// Whole records of one queue that become consecutive records in one batch.
    AppendRecords(Box<NewRecords>),
    /// A message for later; answered as [`ShardRequest::Append`], with queue offset 0, when it is durable.
    AppendDelayed(Box<Delayed>),
    /// A half message; answered as [`ShardRequest::Append`], with its origin as the queue offset, when it is durable.
    AppendHalf(Box<NewHalf>),
    /// The message record of an open half, to the core that runs the log.
    ReadHalf {
        log: LogId,
        origin: u64,
    },
    /// Likewise; answered with how the transaction ended, when that is durable.
    EndHalf {
        log: LogId,
        origin: u64,
        end: Box<HalfEnd>,
    },
    /// The oldest open halves of each log of this core, at most `limit` together.
    OpenHalves {
        limit: usize,
    },
    Pull(Box<Pull>),
    /// Of POP consumers.
    Pop(Box<PopRequest>),
    Bounds(QueueKey),
    /// Bounds of several queues of this core, in the order asked.
    BoundsOf(Vec<QueueKey>),
    SearchByTime {
        queue: QueueKey,
        timestamp_ms: i64,
        boundary: Boundary,
    },
    /// Store time of the first message of a queue.
    EarliestTime(QueueKey),
    /// One record by its place.
    ReadRecord {
        log: LogId,
        position: Position,
    },
    /// Messages with a key, from the logs of this core.
    FindByKey(Box<KeyQuery>),
    CommitOffset {
        group: Arc<str>,
        queue: QueueKey,
        offset: i64,
    },
    QueryOffset {
        group: Arc<str>,
        queue: QueueKey,
    },
    /// Commits an offset that an operator chose: what the members commit does not count until one has heard of it.
    ResetOffset {
        group: Arc<str>,
        queue: QueueKey,
        offset: i64,
    },
    /// A member pulls at this offset: where it has to go on instead, if it has not been told yet.
    TakeReset {
        group: Arc<str>,
        queue: QueueKey,
        asked: i64,
    },
    /// Locks queues of this core for a client (`RebalanceLockManager`); the answer has those that it holds.
    LockQueues {
        group: Arc<str>,
        client_id: Arc<str>,
        queues: Vec<QueueKey>,
    },
    UnlockQueues {
        group: Arc<str>,
        client_id: Arc<str>,
        queues: Vec<QueueKey>,
    },
    /// To core 0: a durable change of topics or groups, answered when it is durable and known to every core.
    Meta(Box<MetaCommand>),
    /// To every core, from core 0 or a group's home.
    Publish(MetaChange),
    /// To a group's home core.
    Group(Box<GroupCommand>),
    /// Writes a frame of ours to connections of this core; those that are gone are skipped.
    PushFrame {
        connections: Vec<ConnectionId>,
        frame: Bytes,
    },
    /// Sends a request of ours to a client of this core and answers with what it says.
    Call(Box<ClientCall>),
    /// Forgets the queues of a topic incarnation, with their consumer offsets, durably.
    DropTopic {
        topic_id: u32,
    },
    /// Forgets the consumer offsets of a group on this core, durably.
    DropGroup {
        group: Arc<str>,
    },
    /// Whether a client of the group holds a queue lock of this core that has not expired
    /// (`RebalanceLockManager.isLockAllExpired`, negated).
    HoldsLock {
        group: Arc<str>,
    },
    /// Committed offsets of this core: of one group, of one topic, or all.
    Offsets {
        group: Option<Arc<str>>,
        topic_id: Option<u32>,
    },
    /// A slave that has proved itself, to the core that runs the log that it wants to follow.
    AdoptSlave(Box<SlaveConnection>),
    /// Figures of this core since its start, and of its logs.
    Stats,
    /// All that a core tells of itself: see [`crate::shard::figures`].
    Figures,
    /// After recovery: drops what this core's logs have of topics that were deleted while a crash came in between.
    /// Topics that the metadata lost (their id is `next_topic_id` or more) come back in the answer.
    DropOrphans {
        next_topic_id: u32,
    },
}

/// A slave's connection on its way to the core of its log.
#[derive(Debug)]
pub struct SlaveConnection {
    pub stream: DetachedStream,
    pub log: LogId,
    pub wish: Wish,
}

/// Records of a topic that the metadata does not know: log 0 was damaged or cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphan {
    pub topic_id: u32,
    pub name: Arc<str>,
    pub queue_id: u32,
    pub log: LogId,
}

/// One thing that goes from core to core.
#[derive(Debug)]
pub enum MeshMessage {
    Request {
        /// Where the answer belongs on the asking core.
        ticket: u32,
        request: ShardRequest,
    },
    Reply {
        ticket: u32,
        reply: MeshReply,
    },
}

/// A request of ours to a client, wherever it is connected.
#[derive(Clone, Debug)]
pub struct ClientCall {
    pub connection: ConnectionId,
    pub request: Outgoing,
    pub body: Bytes,
    pub timeout: Duration,
}

/// What came of a [`ClientCall`].
#[derive(Clone, Debug)]
pub enum ClientAnswer {
    Answered(Box<Command>),
    Timeout,
    /// The client is not connected (any more).
    Closed,
}

/// One committed consumer offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommittedOffset {
    pub group: Arc<str>,
    pub queue: QueueKey,
    pub offset: i64,
    /// The first offset that no POP consumer was given; what lies between is in flight, or acknowledged out of order.
    /// Without POP consumers it is the committed offset.
    pub taken: i64,
}

/// Figures of one core, for BROKER_RUNTIME_INFO.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardStats {
    /// Messages stored and their record bytes since the start.
    pub put_messages: u64,
    pub put_bytes: u64,
    /// Messages given to consumers and their record bytes since the start.
    pub get_messages: u64,
    pub get_bytes: u64,
    /// Pulls that found something, and those that did not.
    pub get_found: u64,
    pub get_missed: u64,
    pub logs: Vec<LogStats>,
}

/// What the broker of one core has counted since its start: answer to [`GroupCommand::Figures`].
#[derive(Clone, Debug, Default)]
pub struct BrokerFigures {
    pub connections: u64,
    pub traffic: Vec<Traffic>,
    /// Refused requests by the reason.
    pub refusals: Vec<(&'static str, u64)>,
}

/// Messages of one topic, and of one kind or group.
#[derive(Clone, Debug)]
pub struct Traffic {
    pub kind: TrafficKind,
    pub topic: Arc<str>,
    /// What was sent: the type of the messages. What was taken: the consumer group.
    pub by: Arc<str>,
    pub messages: u64,
    pub bytes: u64,
    /// Sizes of sent messages in bytes.
    pub sizes: Option<Histogram>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TrafficKind {
    In,
    Out,
    Acked,
    /// To be tried again later, by a consumer.
    SentBack,
    /// Dead letters of a group.
    Dead,
    Committed,
    RolledBack,
}

/// Figures of one log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogStats {
    pub log: LogId,
    pub min: Position,
    /// Exclusive.
    pub max: Position,
    /// Bytes that are appended and not yet durable.
    pub pending_bytes: u64,
    /// Store time of the oldest batch in milliseconds, 0 if there is none.
    pub earliest_ms: i64,
    /// Space of the file system of this log.
    pub disk_total_bytes: u64,
    pub disk_available_bytes: u64,
    /// Directory of the log.
    pub path: String,
    /// Why it takes no writes, if so.
    pub refusal: Option<Arc<str>>,
    /// Durable here, whatever the slaves have. Exclusive.
    pub durable_here: Position,
    /// The slaves that follow it.
    pub replicas: Vec<ReplicaStats>,
    /// Of a slave's log.
    pub master: Option<MasterStats>,
}

/// A slave as its master's log sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicaStats {
    pub broker_id: u64,
    pub address: String,
    /// Everything before this is on its disk.
    pub acked: Position,
    pub is_in_sync: bool,
}

/// A master as its slave's log sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MasterStats {
    pub is_connected: bool,
    /// Where its log ended when it last said so.
    pub end: Position,
}

/// What a group's home core is asked.
#[derive(Debug)]
pub enum GroupCommand {
    /// One consumer group of a client's heartbeat.
    ConsumerHeartbeat {
        connection: ConnectionId,
        client: ClientInfo,
        data: ConsumerData,
    },
    /// One producer group of a client's heartbeat.
    ProducerHeartbeat {
        connection: ConnectionId,
        client: ClientInfo,
        group: Arc<str>,
    },
    /// UNREGISTER_CLIENT.
    Unregister {
        connection: ConnectionId,
        client_id: Arc<str>,
        producer_group: Option<Arc<str>>,
        consumer_group: Option<Arc<str>>,
    },
    /// To every core: what it has counted for a name and key of VIEW_BROKER_STATS_DATA; the answer is numbers.
    Statistics { name: Arc<str>, key: Arc<str> },
    /// To every core: what the broker has counted there since its start.
    Figures,
    /// To every core: offsets of a group were set while it consumes. The next pull of each queue has to ask its owner.
    OffsetsReset {
        group: Arc<str>,
        queues: Vec<QueueKey>,
    },
    /// To every core: a connection is gone.
    ConnectionClosed { connection: ConnectionId },
    /// A member of a group of the native protocol.
    Member(MemberCommand),
}

/// Queues by the names of their topics.
pub type NamedQueues = Vec<(Arc<str>, Vec<u32>)>;

/// What a member of a native consumer group says to the home core of the group.
#[derive(Debug)]
pub struct MemberCommand {
    pub group: Arc<str>,
    pub member_id: Arc<str>,
    /// Of its last assignment.
    pub generation: i64,
    pub ask: MemberAsk,
}

#[derive(Debug)]
pub enum MemberAsk {
    Join {
        connection: ConnectionId,
        client: ClientInfo,
        topics: Vec<Arc<str>>,
        owned: NamedQueues,
        /// The group existed before this join, so a former life of this broker may have had members of it.
        existed: bool,
    },
    Heartbeat {
        owned: NamedQueues,
    },
    Leave,
    /// Offsets of these queues are to be committed, and then [`MemberAsk::EndCommit`] follows for those that may.
    BeginCommit {
        queues: Vec<(Arc<str>, u32)>,
    },
    EndCommit {
        queues: Vec<(Arc<str>, u32)>,
    },
}

/// What the home core of a native consumer group says.
#[derive(Debug)]
pub enum MemberReply {
    /// To a join, a heartbeat and, with nothing in it, a leave.
    Assigned {
        generation: i64,
        queues: NamedQueues,
        heartbeat_ms: u64,
    },
    Unknown,
    /// The group has members of the other protocol: to a join, and to a heartbeat of remoting.
    OtherProtocol,
    /// There are so many members, which is the limit.
    Full(usize),
    /// Which queues may be committed.
    MayCommit(Vec<bool>),
}

/// Who sent a heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientInfo {
    pub client_id: Arc<str>,
    pub address: SocketAddr,
    pub language: u8,
    pub version: i32,
}

/// Answer to a [`ShardRequest`]. `B` as in [`Pulled`].
#[derive(Debug)]
pub enum ShardReply<B> {
    Appended(Appended),
    Pulled(Pulled<B>),
    Pop(PopReply<B>),
    Bounds(QueueBounds),
    BoundsOf(Vec<QueueBounds>),
    /// An offset, or a timestamp in milliseconds.
    Number(i64),
    /// A consumer offset, if one was committed.
    Offset(Option<i64>),
    /// A stored record, if there is one.
    Record(Option<B>),
    /// How a transaction ended, now or before; none if that is not known any more.
    HalfEnded(Option<Outcome>),
    /// How many transactions are open on this core, and logs, origins and places of the oldest.
    OpenHalves {
        count: usize,
        oldest: Vec<(LogId, u64, Half)>,
    },
    Found(KeyFinds<B>),
    Queues(Vec<QueueKey>),
    Flag(bool),
    Numbers(Vec<u64>),
    Offsets(Vec<CommittedOffset>),
    Stats(Box<ShardStats>),
    Figures(Box<ShardFigures>),
    BrokerFigures(Box<BrokerFigures>),
    Called(ClientAnswer),
    Orphans(Vec<Orphan>),
    Member(Box<MemberReply>),
    Done,
    Refused(Refusal),
}

impl ShardReply<Body> {
    /// For another core: page slices are copied once.
    pub fn into_mesh(self) -> MeshReply {
        self.map(Body::into_bytes)
    }
}

impl ShardReply<Bytes> {
    /// As a caller on this core sees it.
    pub fn into_local(self) -> LocalReply {
        self.map(Body::Bytes)
    }
}

impl<B> ShardReply<B> {
    fn map<C>(self, convert: impl Fn(B) -> C) -> ShardReply<C> {
        match self {
            Self::Appended(appended) => ShardReply::Appended(appended),
            Self::Pulled(pulled) => ShardReply::Pulled(Pulled {
                status: pulled.status,
                next_offset: pulled.next_offset,
                min_offset: pulled.min_offset,
                max_offset: pulled.max_offset,
                records: convert(pulled.records),
                message_count: pulled.message_count,
                is_far_behind: pulled.is_far_behind,
            }),
            Self::Pop(reply) => ShardReply::Pop(reply.map(convert)),
            Self::Bounds(bounds) => ShardReply::Bounds(bounds),
            Self::BoundsOf(bounds) => ShardReply::BoundsOf(bounds),
            Self::Number(number) => ShardReply::Number(number),
            Self::Offset(offset) => ShardReply::Offset(offset),
            Self::Record(record) => ShardReply::Record(record.map(convert)),
            Self::HalfEnded(outcome) => ShardReply::HalfEnded(outcome),
            Self::OpenHalves { count, oldest } => ShardReply::OpenHalves { count, oldest },
            Self::Found(finds) => ShardReply::Found(KeyFinds {
                found: finds
                    .found
                    .into_iter()
                    .map(|(time_ms, record)| (time_ms, convert(record)))
                    .collect(),
                newest_offset: finds.newest_offset,
                newest_ms: finds.newest_ms,
                missing_bytes: finds.missing_bytes,
            }),
            Self::Queues(queues) => ShardReply::Queues(queues),
            Self::Flag(flag) => ShardReply::Flag(flag),
            Self::Numbers(numbers) => ShardReply::Numbers(numbers),
            Self::Offsets(offsets) => ShardReply::Offsets(offsets),
            Self::Stats(stats) => ShardReply::Stats(stats),
            Self::Figures(figures) => ShardReply::Figures(figures),
            Self::BrokerFigures(figures) => ShardReply::BrokerFigures(figures),
            Self::Called(answer) => ShardReply::Called(answer),
            Self::Orphans(orphans) => ShardReply::Orphans(orphans),
            Self::Member(reply) => ShardReply::Member(reply),
            Self::Done => ShardReply::Done,
            Self::Refused(refusal) => ShardReply::Refused(refusal),
        }
    }
}

/// What a caller on the same core gets.
pub type LocalReply = ShardReply<Body>;
/// What crosses cores.
pub type MeshReply = ShardReply<Bytes>;

// Kept next to the messages so that a new heartbeat field is an edit that the reviewer sees.
const _: fn(HeartbeatData, OnlineGroup) = |_, _| ();
