//! What a frame says, as values that borrow from its header. Meanings and units are in `schema.fbs`.
//!
//! [`Envelope::read`] verifies a header and reads it; [`Encoder`] makes one. Absent texts are empty, absent lists have no
//! members: the two are not told apart. A member of the union that this version does not know is [`Message::Unknown`].

use flatbuffers::{FlatBufferBuilder, ForwardsUOffset, UnionWIPOffset, Vector, WIPOffset};
use smallvec::SmallVec;

use crate::frame::{ALIGN_BYTES, FrameError, PREFIX_BYTES, prefix, verified};
use crate::generated as fb;
pub use crate::generated::{Ack, FilterKind};
use crate::layout::{OFFSET_BYTES, TableAt, target};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello<'a> {
    pub version: u16,
    pub features: u64,
    pub client_id: &'a str,
    pub software: &'a str,
    pub credentials: &'a [u8],
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HelloReply<'a> {
    pub version: u16,
    pub features: u64,
    pub cluster: &'a str,
    pub broker: &'a str,
    pub shard: u16,
    pub shards: u16,
    pub frame_bytes_max: u32,
    pub body_bytes_max: u32,
    pub born_host: &'a str,
    pub store_host: &'a str,
    pub now_ms: i64,
    pub software: &'a str,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata<'a> {
    pub topics: Vec<&'a str>,
    pub create_queues: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardAddress<'a> {
    pub shard: u16,
    pub host: &'a str,
    pub port: u16,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueMetadata {
    pub queue_id: u32,
    pub shard: u16,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicMetadata<'a> {
    pub topic: &'a str,
    pub code: i32,
    pub remark: &'a str,
    pub write_queues: u32,
    pub read_queues: u32,
    pub permission: u8,
    pub queues: Vec<QueueMetadata>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetadataReply<'a> {
    pub topics: Vec<TopicMetadata<'a>>,
    pub shards: Vec<ShardAddress<'a>>,
    pub direct: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProduceQueue<'a> {
    pub topic: &'a str,
    pub queue_id: u32,
    pub records: u32,
    pub bytes: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Produce<'a> {
    pub ack: Ack,
    pub queues: SmallVec<[ProduceQueue<'a>; 1]>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProduceResult<'a> {
    pub code: i32,
    pub remark: &'a str,
    pub queue_offset: i64,
    pub physical_offset: i64,
    pub store_timestamp_ms: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FetchQueue<'a> {
    pub handle: u32,
    pub topic: &'a str,
    pub queue_id: u32,
    pub offset: i64,
    pub filter_kind: FilterKind,
    pub filter: &'a str,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fetch<'a> {
    pub session: u32,
    pub group: &'a str,
    pub add: Vec<FetchQueue<'a>>,
    pub remove: Vec<u32>,
    pub min_bytes: u32,
    pub max_bytes: u32,
    pub max_wait_ms: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FetchedQueue<'a> {
    pub handle: u32,
    pub code: i32,
    pub remark: &'a str,
    pub next_offset: i64,
    pub min_offset: i64,
    pub max_offset: i64,
    pub records: u32,
    pub bytes: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FetchReply<'a> {
    pub session: u32,
    pub queues: SmallVec<[FetchedQueue<'a>; 4]>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueOffset<'a> {
    pub topic: &'a str,
    pub queue_id: u32,
    pub offset: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OffsetCommit<'a> {
    pub group: &'a str,
    pub queues: Vec<QueueOffset<'a>>,
    pub member_id: &'a str,
    pub generation: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueResult<'a> {
    pub code: i32,
    pub remark: &'a str,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueTime<'a> {
    pub topic: &'a str,
    pub queue_id: u32,
    pub timestamp_ms: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OffsetQuery<'a> {
    pub group: &'a str,
    pub queues: Vec<QueueTime<'a>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueOffsets<'a> {
    pub code: i32,
    pub remark: &'a str,
    pub committed: i64,
    pub min_offset: i64,
    pub max_offset: i64,
    pub at_timestamp: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicQueues<'a> {
    pub topic: &'a str,
    pub queue_ids: Vec<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupJoin<'a> {
    pub group: &'a str,
    pub member_id: &'a str,
    pub topics: Vec<&'a str>,
    pub generation: i64,
    pub owned: Vec<TopicQueues<'a>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupHeartbeat<'a> {
    pub group: &'a str,
    pub member_id: &'a str,
    pub generation: i64,
    pub owned: Vec<TopicQueues<'a>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupLeave<'a> {
    pub group: &'a str,
    pub member_id: &'a str,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment<'a> {
    pub member_id: &'a str,
    pub generation: i64,
    pub queues: Vec<TopicQueues<'a>>,
    pub heartbeat_interval_ms: u32,
    pub session_timeout_ms: u32,
}

/// Body of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    Hello(Hello<'a>),
    HelloReply(HelloReply<'a>),
    Ping,
    Pong {
        now_ms: i64,
    },
    Error {
        code: i32,
        remark: &'a str,
    },
    Metadata(Metadata<'a>),
    MetadataReply(MetadataReply<'a>),
    Produce(Produce<'a>),
    ProduceReply(SmallVec<[ProduceResult<'a>; 1]>),
    Fetch(Fetch<'a>),
    FetchReply(FetchReply<'a>),
    OffsetCommit(OffsetCommit<'a>),
    OffsetCommitReply(Vec<QueueResult<'a>>),
    OffsetQuery(OffsetQuery<'a>),
    OffsetQueryReply(Vec<QueueOffsets<'a>>),
    GroupJoin(GroupJoin<'a>),
    GroupHeartbeat(GroupHeartbeat<'a>),
    GroupLeave(GroupLeave<'a>),
    Assignment(Assignment<'a>),
    /// A member of the union that a newer peer knows; 0: there is none.
    Unknown(u8),
}

/// Header of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    pub id: u64,
    pub message: Message<'a>,
}

fn list<'a, T, U>(
    items: Option<Vector<'a, ForwardsUOffset<T>>>,
    convert: impl FnMut(T::Inner) -> U,
) -> Vec<U>
where
    T: flatbuffers::Follow<'a> + 'a,
{
    items
        .map(|items| items.iter().map(convert).collect())
        .unwrap_or_default()
}

fn topic_queues_of<'a>(queues: fb::TopicQueues<'a>) -> TopicQueues<'a> {
    TopicQueues {
        topic: queues.topic().unwrap_or_default(),
        queue_ids: queues.queue_ids().into_iter().flatten().collect(),
    }
}

impl<'a> Envelope<'a> {
    /// Verifies and reads the header of a frame.
    pub fn read(header: &'a [u8]) -> Result<Self, FrameError> {
        let header = verified(header)?;
        Ok(Self {
            id: header.id(),
            message: Message::of(&header),
        })
    }
}

impl<'a> Message<'a> {
    fn of(header: &fb::Header<'a>) -> Self {
        let known = match header.body_type() {
            fb::Body::Hello => header.body_as_hello().map(|body| {
                Self::Hello(Hello {
                    version: body.version(),
                    features: body.features(),
                    client_id: body.client_id().unwrap_or_default(),
                    software: body.software().unwrap_or_default(),
                    credentials: body.credentials().map(|c| c.bytes()).unwrap_or_default(),
                })
            }),
            fb::Body::HelloReply => header.body_as_hello_reply().map(|body| {
                Self::HelloReply(HelloReply {
                    version: body.version(),
                    features: body.features(),
                    cluster: body.cluster().unwrap_or_default(),
                    broker: body.broker().unwrap_or_default(),
                    shard: body.shard(),
                    shards: body.shards(),
                    frame_bytes_max: body.frame_bytes_max(),
                    body_bytes_max: body.body_bytes_max(),
                    born_host: body.born_host().unwrap_or_default(),
                    store_host: body.store_host().unwrap_or_default(),
                    now_ms: body.now_ms(),
                    software: body.software().unwrap_or_default(),
                })
            }),
            fb::Body::Ping => Some(Self::Ping),
            fb::Body::Pong => header.body_as_pong().map(|body| Self::Pong {
                now_ms: body.now_ms(),
            }),
            fb::Body::Error => header.body_as_error().map(|body| Self::Error {
                code: body.code(),
                remark: body.remark().unwrap_or_default(),
            }),
            fb::Body::Metadata => header.body_as_metadata().map(|body| {
                Self::Metadata(Metadata {
                    topics: list(body.topics(), |topic| topic),
                    create_queues: body.create_queues(),
                })
            }),
            fb::Body::MetadataReply => header.body_as_metadata_reply().map(|body| {
                Self::MetadataReply(MetadataReply {
                    topics: list(body.topics(), |topic| TopicMetadata {
                        topic: topic.topic().unwrap_or_default(),
                        code: topic.code(),
                        remark: topic.remark().unwrap_or_default(),
                        write_queues: topic.write_queues(),
                        read_queues: topic.read_queues(),
                        permission: topic.permission(),
                        queues: list(topic.queues(), |queue| QueueMetadata {
                            queue_id: queue.queue_id(),
                            shard: queue.shard(),
                        }),
                    }),
                    shards: list(body.shards(), |shard| ShardAddress {
                        shard: shard.shard(),
                        host: shard.host().unwrap_or_default(),
                        port: shard.port(),
                    }),
                    direct: body.direct(),
                })
            }),
            fb::Body::Produce => header.body_as_produce().map(|body| {
                Self::Produce(Produce {
                    ack: body.ack(),
                    queues: body
                        .queues()
                        .into_iter()
                        .flatten()
                        .map(|queue| ProduceQueue {
                            topic: queue.topic().unwrap_or_default(),
                            queue_id: queue.queue_id(),
                            records: queue.records(),
                            bytes: queue.bytes(),
                        })
                        .collect(),
                })
            }),
            fb::Body::ProduceReply => header.body_as_produce_reply().map(|body| {
                let results = body
                    .queues()
                    .into_iter()
                    .flatten()
                    .map(|result| ProduceResult {
                        code: result.code(),
                        remark: result.remark().unwrap_or_default(),
                        queue_offset: result.queue_offset(),
                        physical_offset: result.physical_offset(),
                        store_timestamp_ms: result.store_timestamp_ms(),
                    });
                Self::ProduceReply(results.collect())
            }),
            fb::Body::Fetch => header.body_as_fetch().map(|body| {
                Self::Fetch(Fetch {
                    session: body.session(),
                    group: body.group().unwrap_or_default(),
                    add: list(body.add(), |queue| FetchQueue {
                        handle: queue.handle(),
                        topic: queue.topic().unwrap_or_default(),
                        queue_id: queue.queue_id(),
                        offset: queue.offset(),
                        filter_kind: queue.filter_kind(),
                        filter: queue.filter().unwrap_or_default(),
                    }),
                    remove: body.remove().into_iter().flatten().collect(),
                    min_bytes: body.min_bytes(),
                    max_bytes: body.max_bytes(),
                    max_wait_ms: body.max_wait_ms(),
                })
            }),
            fb::Body::FetchReply => header.body_as_fetch_reply().map(|body| {
                let queues = body
                    .queues()
                    .into_iter()
                    .flatten()
                    .map(|queue| FetchedQueue {
                        handle: queue.handle(),
                        code: queue.code(),
                        remark: queue.remark().unwrap_or_default(),
                        next_offset: queue.next_offset(),
                        min_offset: queue.min_offset(),
                        max_offset: queue.max_offset(),
                        records: queue.records(),
                        bytes: queue.bytes(),
                    });
                Self::FetchReply(FetchReply {
                    session: body.session(),
                    queues: queues.collect(),
                })
            }),
            fb::Body::OffsetCommit => header.body_as_offset_commit().map(|body| {
                Self::OffsetCommit(OffsetCommit {
                    group: body.group().unwrap_or_default(),
                    queues: list(body.queues(), |queue| QueueOffset {
                        topic: queue.topic().unwrap_or_default(),
                        queue_id: queue.queue_id(),
                        offset: queue.offset(),
                    }),
                    member_id: body.member_id().unwrap_or_default(),
                    generation: body.generation(),
                })
            }),
            fb::Body::OffsetCommitReply => header.body_as_offset_commit_reply().map(|body| {
                Self::OffsetCommitReply(list(body.queues(), |result| QueueResult {
                    code: result.code(),
                    remark: result.remark().unwrap_or_default(),
                }))
            }),
            fb::Body::OffsetQuery => header.body_as_offset_query().map(|body| {
                Self::OffsetQuery(OffsetQuery {
                    group: body.group().unwrap_or_default(),
                    queues: list(body.queues(), |queue| QueueTime {
                        topic: queue.topic().unwrap_or_default(),
                        queue_id: queue.queue_id(),
                        timestamp_ms: queue.timestamp_ms(),
                    }),
                })
            }),
            fb::Body::OffsetQueryReply => header.body_as_offset_query_reply().map(|body| {
                Self::OffsetQueryReply(list(body.queues(), |queue| QueueOffsets {
                    code: queue.code(),
                    remark: queue.remark().unwrap_or_default(),
                    committed: queue.committed(),
                    min_offset: queue.min_offset(),
                    max_offset: queue.max_offset(),
                    at_timestamp: queue.at_timestamp(),
                }))
            }),
            fb::Body::GroupJoin => header.body_as_group_join().map(|body| {
                Self::GroupJoin(GroupJoin {
                    group: body.group().unwrap_or_default(),
                    member_id: body.member_id().unwrap_or_default(),
                    topics: list(body.topics(), |topic| topic),
                    generation: body.generation(),
                    owned: list(body.owned(), topic_queues_of),
                })
            }),
            fb::Body::GroupHeartbeat => header.body_as_group_heartbeat().map(|body| {
                Self::GroupHeartbeat(GroupHeartbeat {
                    group: body.group().unwrap_or_default(),
                    member_id: body.member_id().unwrap_or_default(),
                    generation: body.generation(),
                    owned: list(body.owned(), topic_queues_of),
                })
            }),
            fb::Body::GroupLeave => header.body_as_group_leave().map(|body| {
                Self::GroupLeave(GroupLeave {
                    group: body.group().unwrap_or_default(),
                    member_id: body.member_id().unwrap_or_default(),
                })
            }),
            fb::Body::Assignment => header.body_as_assignment().map(|body| {
                Self::Assignment(Assignment {
                    member_id: body.member_id().unwrap_or_default(),
                    generation: body.generation(),
                    queues: list(body.queues(), topic_queues_of),
                    heartbeat_interval_ms: body.heartbeat_interval_ms(),
                    session_timeout_ms: body.session_timeout_ms(),
                })
            }),
            _ => None,
        };
        known.unwrap_or(Self::Unknown(header.body_type().0))
    }
}

type Builder = FlatBufferBuilder<'static>;
type Text = Option<WIPOffset<&'static str>>;

/// Makes headers of frames. Its memory is used again, so making a frame allocates nothing after the first ones.
pub struct Encoder {
    builder: Builder,
    frame: Vec<u8>,
    /// Made when it is wanted for the first time.
    stored: Option<StoredFrame>,
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Encoder {
    pub fn new() -> Self {
        Self {
            builder: FlatBufferBuilder::with_capacity(512),
            frame: Vec::new(),
            stored: None,
        }
    }

    /// The frame that answers a produce of one queue whose records were stored: a [`Message::ProduceReply`] with one result of
    /// code 0. Each single message has one, so it is not built but filled in.
    #[inline]
    pub fn encode_stored(&mut self, id: u64, stored: &StoredAt) -> &[u8] {
        let frame = self.stored.get_or_insert_with(StoredFrame::new);
        frame.fill(id, stored)
    }

    /// Prefix and header of a frame; the payload of so many bytes, a multiple of 8, is to follow.
    ///
    /// # Panics
    ///
    /// If header or frame are greater than [`crate::frame`] allows: whoever makes a frame knows how large it gets.
    pub fn encode(&mut self, id: u64, message: &Message<'_>, payload_bytes: usize) -> &[u8] {
        let builder = &mut self.builder;
        builder.reset();
        let (body_type, body) = body(builder, message);
        let header = fb::Header::create(
            builder,
            &fb::HeaderArgs {
                id,
                body_type,
                body,
            },
        );
        fb::finish_header_buffer(builder, header);
        self.frame.clear();
        put_frame(&mut self.frame, builder.finished_data(), payload_bytes);
        &self.frame
    }
}

/// Where the records of one queue were stored; see `ProduceResult` in `schema.fbs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredAt {
    pub queue_offset: i64,
    pub physical_offset: i64,
    pub store_timestamp_ms: i64,
}

/// The answer to a produce that was stored, and where its numbers are in it, 8 bytes each.
struct StoredFrame {
    frame: Box<[u8]>,
    id: usize,
    queue_offset: usize,
    physical_offset: usize,
    store_timestamp_ms: usize,
}

impl StoredFrame {
    fn new() -> Self {
        let mut builder = Builder::with_capacity(256);
        // A number that is 0, the default, is written all the same: there may be another one in its place.
        builder.force_defaults(true);
        let result = fb::ProduceResult::create(&mut builder, &fb::ProduceResultArgs::default());
        let queues = Some(builder.create_vector(&[result]));
        let reply = fb::ProduceReply::create(&mut builder, &fb::ProduceReplyArgs { queues });
        let (body_type, body) = (fb::Body::ProduceReply, union(reply));
        let header = fb::HeaderArgs {
            id: 0,
            body_type,
            body,
        };
        let header = fb::Header::create(&mut builder, &header);
        fb::finish_header_buffer(&mut builder, header);
        let mut frame = Vec::new();
        put_frame(&mut frame, builder.finished_data(), 0);
        let places = places_of_stored(&frame[PREFIX_BYTES..]);
        let [id, queue_offset, physical_offset, store_timestamp_ms] = places
            .expect("the builder wrote all of them")
            .map(|at| PREFIX_BYTES + at);
        Self {
            frame: frame.into(),
            id,
            queue_offset,
            physical_offset,
            store_timestamp_ms,
        }
    }

    #[inline]
    fn fill(&mut self, id: u64, stored: &StoredAt) -> &[u8] {
        let mut put = |at: usize, bytes: [u8; 8]| self.frame[at..at + 8].copy_from_slice(&bytes);
        put(self.id, id.to_le_bytes());
        put(self.queue_offset, stored.queue_offset.to_le_bytes());
        put(self.physical_offset, stored.physical_offset.to_le_bytes());
        put(
            self.store_timestamp_ms,
            stored.store_timestamp_ms.to_le_bytes(),
        );
        &self.frame
    }
}

/// Where in a header the id is, and queue offset, physical offset and timestamp of its first result.
fn places_of_stored(header: &[u8]) -> Option<[usize; 4]> {
    let root = TableAt::root(header)?;
    let reply = TableAt::behind(header, root.field(fb::Header::VT_BODY)?)?;
    let queues = target(header, reply.field(fb::ProduceReply::VT_QUEUES)?)?;
    let result = TableAt::behind(header, queues + OFFSET_BYTES)?;
    Some([
        root.field(fb::Header::VT_ID)?,
        result.field(fb::ProduceResult::VT_QUEUE_OFFSET)?,
        result.field(fb::ProduceResult::VT_PHYSICAL_OFFSET)?,
        result.field(fb::ProduceResult::VT_STORE_TIMESTAMP_MS)?,
    ])
}

/// Prefix, header and the zeros behind it.
fn put_frame(frame: &mut Vec<u8>, header: &[u8], payload_bytes: usize) {
    let header_bytes = header.len().next_multiple_of(ALIGN_BYTES);
    frame.extend_from_slice(&prefix(header_bytes, payload_bytes));
    frame.extend_from_slice(header);
    frame.resize(PREFIX_BYTES + header_bytes, 0);
}

/// Texts that are empty are left out.
fn text(builder: &mut Builder, text: &str) -> Text {
    (!text.is_empty()).then(|| builder.create_string(text))
}

/// A text that may be the one before it: the topic of neighbouring queues is written once.
struct Shared<'t> {
    last: Option<(&'t str, WIPOffset<&'static str>)>,
}

impl<'t> Shared<'t> {
    fn new() -> Self {
        Self { last: None }
    }

    fn text(&mut self, builder: &mut Builder, text: &'t str) -> Text {
        if text.is_empty() {
            return None;
        }
        if let Some((last, at)) = self.last
            && last == text
        {
            return Some(at);
        }
        let at = builder.create_string(text);
        self.last = Some((text, at));
        Some(at)
    }
}

type Table<T> = WIPOffset<T>;
type Tables<T> = Option<WIPOffset<Vector<'static, ForwardsUOffset<T>>>>;

/// A list that has no members is left out.
fn tables<'m, M, T>(
    builder: &mut Builder,
    items: &'m [M],
    mut make: impl FnMut(&mut Builder, &'m M) -> Table<T>,
) -> Tables<T> {
    if items.is_empty() {
        return None;
    }
    let made: SmallVec<[Table<T>; 16]> = items.iter().map(|item| make(builder, item)).collect();
    Some(builder.create_vector(&made))
}

fn union<T>(table: Table<T>) -> Option<WIPOffset<UnionWIPOffset>> {
    Some(table.as_union_value())
}

fn body(
    builder: &mut Builder,
    message: &Message<'_>,
) -> (fb::Body, Option<WIPOffset<UnionWIPOffset>>) {
    match message {
        Message::Hello(hello) => {
            let args = fb::HelloArgs {
                version: hello.version,
                features: hello.features,
                client_id: text(builder, hello.client_id),
                software: text(builder, hello.software),
                credentials: (!hello.credentials.is_empty())
                    .then(|| builder.create_vector(hello.credentials)),
            };
            (fb::Body::Hello, union(fb::Hello::create(builder, &args)))
        }
        Message::HelloReply(reply) => {
            let args = fb::HelloReplyArgs {
                version: reply.version,
                features: reply.features,
                cluster: text(builder, reply.cluster),
                broker: text(builder, reply.broker),
                shard: reply.shard,
                shards: reply.shards,
                frame_bytes_max: reply.frame_bytes_max,
                body_bytes_max: reply.body_bytes_max,
                born_host: text(builder, reply.born_host),
                store_host: text(builder, reply.store_host),
                now_ms: reply.now_ms,
                software: text(builder, reply.software),
            };
            let reply = fb::HelloReply::create(builder, &args);
            (fb::Body::HelloReply, union(reply))
        }
        Message::Ping => {
            let ping = fb::Ping::create(builder, &fb::PingArgs {});
            (fb::Body::Ping, union(ping))
        }
        Message::Pong { now_ms } => {
            let pong = fb::Pong::create(builder, &fb::PongArgs { now_ms: *now_ms });
            (fb::Body::Pong, union(pong))
        }
        Message::Error { code, remark } => {
            let remark = text(builder, remark);
            let args = fb::ErrorArgs {
                code: *code,
                remark,
            };
            (fb::Body::Error, union(fb::Error::create(builder, &args)))
        }
        Message::Metadata(metadata) => {
            let topics: Vec<_> = metadata
                .topics
                .iter()
                .map(|topic| builder.create_string(topic))
                .collect();
            let args = fb::MetadataArgs {
                topics: (!topics.is_empty()).then(|| builder.create_vector(&topics)),
                create_queues: metadata.create_queues,
            };
            let metadata = fb::Metadata::create(builder, &args);
            (fb::Body::Metadata, union(metadata))
        }
        Message::MetadataReply(reply) => {
            let args = fb::MetadataReplyArgs {
                topics: tables(builder, &reply.topics, topic_metadata),
                shards: tables(builder, &reply.shards, |builder, shard| {
                    let args = fb::ShardAddressArgs {
                        shard: shard.shard,
                        host: text(builder, shard.host),
                        port: shard.port,
                    };
                    fb::ShardAddress::create(builder, &args)
                }),
                direct: reply.direct,
            };
            let reply = fb::MetadataReply::create(builder, &args);
            (fb::Body::MetadataReply, union(reply))
        }
        Message::Produce(produce) => {
            let mut topics = Shared::new();
            let args = fb::ProduceArgs {
                ack: produce.ack,
                queues: tables(builder, &produce.queues, |builder, queue| {
                    let args = fb::ProduceQueueArgs {
                        topic: topics.text(builder, queue.topic),
                        queue_id: queue.queue_id,
                        records: queue.records,
                        bytes: queue.bytes,
                    };
                    fb::ProduceQueue::create(builder, &args)
                }),
            };
            let produce = fb::Produce::create(builder, &args);
            (fb::Body::Produce, union(produce))
        }
        Message::ProduceReply(results) => {
            let args = fb::ProduceReplyArgs {
                queues: tables(builder, results, |builder, result| {
                    let args = fb::ProduceResultArgs {
                        code: result.code,
                        remark: text(builder, result.remark),
                        queue_offset: result.queue_offset,
                        physical_offset: result.physical_offset,
                        store_timestamp_ms: result.store_timestamp_ms,
                    };
                    fb::ProduceResult::create(builder, &args)
                }),
            };
            let reply = fb::ProduceReply::create(builder, &args);
            (fb::Body::ProduceReply, union(reply))
        }
        Message::Fetch(fetch) => {
            let mut topics = Shared::new();
            let args = fb::FetchArgs {
                session: fetch.session,
                group: text(builder, fetch.group),
                add: tables(builder, &fetch.add, |builder, queue| {
                    let args = fb::FetchQueueArgs {
                        handle: queue.handle,
                        topic: topics.text(builder, queue.topic),
                        queue_id: queue.queue_id,
                        offset: queue.offset,
                        filter_kind: queue.filter_kind,
                        filter: text(builder, queue.filter),
                    };
                    fb::FetchQueue::create(builder, &args)
                }),
                remove: (!fetch.remove.is_empty()).then(|| builder.create_vector(&fetch.remove)),
                min_bytes: fetch.min_bytes,
                max_bytes: fetch.max_bytes,
                max_wait_ms: fetch.max_wait_ms,
            };
            (fb::Body::Fetch, union(fb::Fetch::create(builder, &args)))
        }
        Message::FetchReply(reply) => {
            let args = fb::FetchReplyArgs {
                session: reply.session,
                queues: tables(builder, &reply.queues, |builder, queue| {
                    let args = fb::FetchedQueueArgs {
                        handle: queue.handle,
                        code: queue.code,
                        remark: text(builder, queue.remark),
                        next_offset: queue.next_offset,
                        min_offset: queue.min_offset,
                        max_offset: queue.max_offset,
                        records: queue.records,
                        bytes: queue.bytes,
                    };
                    fb::FetchedQueue::create(builder, &args)
                }),
            };
            let reply = fb::FetchReply::create(builder, &args);
            (fb::Body::FetchReply, union(reply))
        }
        Message::OffsetCommit(commit) => {
            let mut topics = Shared::new();
            let args = fb::OffsetCommitArgs {
                group: text(builder, commit.group),
                queues: tables(builder, &commit.queues, |builder, queue| {
                    let args = fb::QueueOffsetArgs {
                        topic: topics.text(builder, queue.topic),
                        queue_id: queue.queue_id,
                        offset: queue.offset,
                    };
                    fb::QueueOffset::create(builder, &args)
                }),
                member_id: text(builder, commit.member_id),
                generation: commit.generation,
            };
            let commit = fb::OffsetCommit::create(builder, &args);
            (fb::Body::OffsetCommit, union(commit))
        }
        Message::OffsetCommitReply(results) => {
            let args = fb::OffsetCommitReplyArgs {
                queues: tables(builder, results, |builder, result| {
                    let args = fb::QueueResultArgs {
                        code: result.code,
                        remark: text(builder, result.remark),
                    };
                    fb::QueueResult::create(builder, &args)
                }),
            };
            let reply = fb::OffsetCommitReply::create(builder, &args);
            (fb::Body::OffsetCommitReply, union(reply))
        }
        Message::OffsetQuery(query) => {
            let mut topics = Shared::new();
            let args = fb::OffsetQueryArgs {
                group: text(builder, query.group),
                queues: tables(builder, &query.queues, |builder, queue| {
                    let args = fb::QueueTimeArgs {
                        topic: topics.text(builder, queue.topic),
                        queue_id: queue.queue_id,
                        timestamp_ms: queue.timestamp_ms,
                    };
                    fb::QueueTime::create(builder, &args)
                }),
            };
            let query = fb::OffsetQuery::create(builder, &args);
            (fb::Body::OffsetQuery, union(query))
        }
        Message::OffsetQueryReply(offsets) => {
            let args = fb::OffsetQueryReplyArgs {
                queues: tables(builder, offsets, |builder, queue| {
                    let args = fb::QueueOffsetsArgs {
                        code: queue.code,
                        remark: text(builder, queue.remark),
                        committed: queue.committed,
                        min_offset: queue.min_offset,
                        max_offset: queue.max_offset,
                        at_timestamp: queue.at_timestamp,
                    };
                    fb::QueueOffsets::create(builder, &args)
                }),
            };
            let reply = fb::OffsetQueryReply::create(builder, &args);
            (fb::Body::OffsetQueryReply, union(reply))
        }
        Message::GroupJoin(join) => {
            let topics: Vec<_> = join
                .topics
                .iter()
                .map(|topic| builder.create_string(topic))
                .collect();
            let args = fb::GroupJoinArgs {
                group: text(builder, join.group),
                member_id: text(builder, join.member_id),
                topics: (!topics.is_empty()).then(|| builder.create_vector(&topics)),
                generation: join.generation,
                owned: tables(builder, &join.owned, topic_queues),
            };
            let join = fb::GroupJoin::create(builder, &args);
            (fb::Body::GroupJoin, union(join))
        }
        Message::GroupHeartbeat(heartbeat) => {
            let args = fb::GroupHeartbeatArgs {
                group: text(builder, heartbeat.group),
                member_id: text(builder, heartbeat.member_id),
                generation: heartbeat.generation,
                owned: tables(builder, &heartbeat.owned, topic_queues),
            };
            let heartbeat = fb::GroupHeartbeat::create(builder, &args);
            (fb::Body::GroupHeartbeat, union(heartbeat))
        }
        Message::GroupLeave(leave) => {
            let args = fb::GroupLeaveArgs {
                group: text(builder, leave.group),
                member_id: text(builder, leave.member_id),
            };
            let leave = fb::GroupLeave::create(builder, &args);
            (fb::Body::GroupLeave, union(leave))
        }
        Message::Assignment(assignment) => {
            let args = fb::AssignmentArgs {
                member_id: text(builder, assignment.member_id),
                generation: assignment.generation,
                queues: tables(builder, &assignment.queues, topic_queues),
                heartbeat_interval_ms: assignment.heartbeat_interval_ms,
                session_timeout_ms: assignment.session_timeout_ms,
            };
            let assignment = fb::Assignment::create(builder, &args);
            (fb::Body::Assignment, union(assignment))
        }
        // Nothing is sent that nobody knows: only that it is nothing.
        Message::Unknown(_) => (fb::Body::NONE, None),
    }
}

fn topic_queues(
    builder: &mut Builder,
    queues: &TopicQueues<'_>,
) -> Table<fb::TopicQueues<'static>> {
    let args = fb::TopicQueuesArgs {
        topic: text(builder, queues.topic),
        queue_ids: (!queues.queue_ids.is_empty()).then(|| builder.create_vector(&queues.queue_ids)),
    };
    fb::TopicQueues::create(builder, &args)
}

fn topic_metadata(
    builder: &mut Builder,
    topic: &TopicMetadata<'_>,
) -> Table<fb::TopicMetadata<'static>> {
    let args = fb::TopicMetadataArgs {
        topic: text(builder, topic.topic),
        code: topic.code,
        remark: text(builder, topic.remark),
        write_queues: topic.write_queues,
        read_queues: topic.read_queues,
        permission: topic.permission,
        queues: tables(builder, &topic.queues, |builder, queue| {
            let args = fb::QueueMetadataArgs {
                queue_id: queue.queue_id,
                shard: queue.shard,
            };
            fb::QueueMetadata::create(builder, &args)
        }),
    };
    fb::TopicMetadata::create(builder, &args)
}
