//! Every bound of the product, by name, with its unit. Bounds that depend on each other say so at compile time.

/// What O_DIRECT asks of address, offset and length of a write.
pub const SECTOR_BYTES: usize = 4 << 10;
/// Greatest remoting frame, without its length prefix (`com.rocketmq.remoting.frameMaxLength`).
pub const FRAME_BYTES_MAX: usize = 16 << 20;
/// Greatest message body, RocketMQ's `maxMessageSize`.
pub const MESSAGE_BODY_BYTES_MAX: usize = 4 << 20;
/// Greatest properties string of a message: its length is a signed 16-bit number in the record.
pub const PROPERTIES_BYTES_MAX: usize = i16::MAX as usize;
/// A batch of the log is sealed when it has grown to this; one larger record makes a batch of its own.
pub const BATCH_BYTES_TARGET: usize = 256 << 10;
/// Greatest record: body, properties, topic and the fixed part.
pub const RECORD_BYTES_MAX: usize = MESSAGE_BODY_BYTES_MAX + (64 << 10);
/// Bytes appended to one log that may wait for their write, before sends are refused with SYSTEM_BUSY.
pub const LOG_PENDING_BYTES_MAX: usize = 64 << 20;
/// Full batches written in one group commit. More would take longer to write than their answers take, and would be all that a
/// core has room for: it would have nothing to do meanwhile.
pub const GROUP_BATCHES_MAX: usize = 8;
/// Longest topic name of a send (`TopicValidator.TOPIC_MAX_LENGTH`).
pub const TOPIC_CHARS_MAX: usize = 127;
/// Longest `%RETRY%` or `%DLQ%` topic name (`TopicValidator.RETRY_OR_DLQ_TOPIC_MAX_LENGTH`).
pub const RETRY_TOPIC_CHARS_MAX: usize = 255;
/// Longest group name (the client's `Validators.CHARACTER_MAX_LENGTH`).
pub const GROUP_CHARS_MAX: usize = 255;
/// Keys of one message that are indexed.
pub const KEYS_PER_MESSAGE_MAX: usize = 256;
/// Keys of messages of one log that may wait until they are durable; of more the log is read again later.
pub const KEY_ENTRIES_STAGED_MAX: usize = 256 << 10;
/// Full parts of a key index that may wait in memory for their file; of older ones the log is read again later.
pub const KEY_PARTS_SEALED_MAX: usize = 8;
/// Entries of a key index in memory before they become a file.
pub const KEY_TAIL_ENTRIES: usize = 32 << 10;
/// Blocks of a key index that one lookup reads at most.
pub const KEY_BLOCKS_PER_LOOKUP_MAX: usize = 256;
/// Messages of one answer to a query by key (`maxMsgsNumBatch`).
pub const QUERY_MESSAGES_MAX: usize = 64;
/// Bytes of one answer to a query by key, unless its first message alone is larger.
pub const QUERY_BYTES_MAX: usize = 4 << 20;
/// Messages of one pull answer.
pub const PULL_MESSAGES_MAX: usize = 1024;
/// Bytes of one pull answer, unless its first message alone is larger.
pub const PULL_BYTES_MAX: usize = 256 << 10;
/// Queue entries that one pull may look at before it answers, whatever its filter.
pub const PULL_SCAN_ENTRIES_MAX: u64 = 800;
/// Bytes that one filtered pull may look at before it answers: records it reads and work of its SQL92 filter.
pub const PULL_SCAN_BYTES_MAX: usize = 4 << 20;
/// Messages of one POP answer (`PopMessageProcessor`).
pub const POP_MESSAGES_MAX: u32 = 32;
/// Messages of one queue that one group may have in flight: more are given out when some are acknowledged.
pub const POP_IN_FLIGHT_MAX: usize = 10_000;
/// Bytes of a SQL92 expression.
pub const SQL_BYTES_MAX: usize = 32 << 10;
/// How deep a SQL92 expression may be nested by parentheses and signs.
pub const SQL_DEPTH_MAX: usize = 100;
/// Operands and operators of a SQL92 expression.
pub const SQL_STEPS_MAX: usize = 4096;
/// Compiled SQL92 expressions, and bad ones, that a core keeps.
pub const SQL_CACHED_MAX: usize = 128;
/// Requests of one connection that may wait for their answer before its socket is not read any more.
pub const CONNECTION_REQUESTS_MAX: usize = 4096;
/// Request bytes of one connection that may wait for their answer, likewise.
pub const CONNECTION_REQUEST_BYTES_MAX: usize = 32 << 20;
/// Sends of all connections of a core that are not answered yet, before connections that wait for answers are not read.
pub const CORE_SENDS_MAX: usize = 4 << 10;
/// Bytes of their bodies.
pub const CORE_SEND_BYTES_MAX: usize = 32 << 20;
/// Topics of one native request for metadata.
pub const NATIVE_TOPICS_MAX: usize = 1024;
/// Queues of one native produce, offset commit or offset query.
pub const NATIVE_QUEUES_MAX: usize = 4096;
/// Records of one queue in one native produce: each takes 16 bytes of memory beside its own.
pub const NATIVE_RECORDS_MAX: usize = 64 << 10;
/// Fetch sessions of one native connection.
pub const NATIVE_SESSIONS_MAX: usize = 16;
/// Queues of one fetch session.
pub const NATIVE_FETCH_QUEUES_MAX: usize = 8192;
/// Bytes of records in the answer to one native fetch, unless its first records alone are larger.
pub const NATIVE_FETCH_BYTES_MAX: usize = 8 << 20;
/// Members of one native consumer group.
pub const NATIVE_MEMBERS_MAX: usize = 1024;
/// Topics that one of them subscribes to. Every change of a group looks at all of its topics and queues.
pub const NATIVE_MEMBER_TOPICS_MAX: usize = 64;
/// Response bytes of one connection that may wait for the peer to read, likewise.
pub const CONNECTION_RESPONSE_BYTES_MAX: usize = 32 << 20;
/// Open transactions of one log, each with about 100 bytes of memory, before half messages are refused with SYSTEM_BUSY.
pub const TRANSACTIONS_OPEN_MAX: usize = 512 << 10;
/// Rows of statistics (topics, and groups of topics) that a core keeps.
pub const STATISTICS_ROWS_MAX: usize = 4096;
/// Messages in flight between two cores.
pub const MESH_SLOTS: usize = 1024;
/// Messages to another core that may wait for a slot, before requests are refused with SYSTEM_BUSY.
pub const MESH_WAITING_MAX: usize = 64 << 10;
/// Batches in one frame of the slave stream. It has to hold any one batch, and a request full of tiny messages grows by
/// what each record has around its body.
pub const HA_BATCHES_BYTES_MAX: usize = 128 << 20;
/// Batches that a master puts into one frame of the slave stream, unless one alone is larger.
pub const HA_FRAME_BYTES_TARGET: usize = 512 << 10;
/// What a master reads from the disk ahead of what it sends to one slave.
pub const HA_READ_AHEAD_BYTES: u64 = 4 << 20;
/// Every other frame of the slave stream.
pub const HA_CONTROL_BYTES_MAX: usize = 1 << 10;
/// What a slave lets be on its way to it per log, and so what it holds in memory besides its caches.
pub const HA_WINDOW_BYTES: u64 = 8 << 20;
/// Bytes that a slave writes in one go, unless one batch alone is larger.
/// With the sectors at both of its ends it takes half of a large page.
pub const REPLICA_RUN_BYTES_MAX: usize = (1 << 20) - SECTOR_BYTES;
/// A crash of a slave tears no more than this. Recovery relies on it, so it never shrinks below what any version has written
/// in one go.
pub const REPLICA_TORN_BYTES_MAX: usize = 1 << 20;
/// What a search for damage holds of a log at once.
pub const SCRUB_PIECE_BYTES: u64 = 256 << 10;
/// Damaged places of one log that are remembered until they are repaired; further ones are found by a later pass.
pub const SCRUB_DAMAGED_MAX: usize = 1024;
/// Places that readers found damaged and nobody has looked at yet.
pub const SCRUB_SUSPECTS_MAX: usize = 16;
/// Answers that a large damaged place may take to be fetched.
pub const FETCH_PIECES_MAX: usize = 64 << 10;
/// Connections at the slave stream's port that have not proved themselves; further ones are closed at once.
pub const HA_STRANGERS_MAX: usize = 64;
/// Broker groups that a controller keeps, and brokers of one of them.
pub const CONTROLLER_GROUPS_MAX: usize = 4096;
pub const CONTROLLER_REPLICAS_MAX: usize = 16;
/// Connections that a controller keeps open at the same time.
pub const CONTROLLER_CONNECTIONS_MAX: usize = 16_384;
/// Header fields of one command.
pub const HEADER_FIELDS_MAX: usize = 256;

const _: () = assert!(BATCH_BYTES_TARGET.is_multiple_of(SECTOR_BYTES));
const _: () = assert!(RECORD_BYTES_MAX < FRAME_BYTES_MAX);
const _: () = assert!(NATIVE_FETCH_BYTES_MAX + RECORD_BYTES_MAX < FRAME_BYTES_MAX);
const _: () = assert!(LOG_PENDING_BYTES_MAX > 2 * RECORD_BYTES_MAX);
const _: () = assert!(HA_BATCHES_BYTES_MAX > FRAME_BYTES_MAX + RECORD_BYTES_MAX);
const _: () = assert!(REPLICA_RUN_BYTES_MAX > BATCH_BYTES_TARGET);
const _: () = assert!(REPLICA_RUN_BYTES_MAX.is_multiple_of(SECTOR_BYTES));
const _: () = assert!(REPLICA_RUN_BYTES_MAX <= REPLICA_TORN_BYTES_MAX);
const _: () = assert!(HA_WINDOW_BYTES > 2 * REPLICA_RUN_BYTES_MAX as u64);
const _: () = assert!(SCRUB_PIECE_BYTES.is_multiple_of(SECTOR_BYTES as u64));
const _: () = assert!(SQL_STEPS_MAX < u16::MAX as usize);
/// What is read of a log at once; an executor has memory for reads of this size that is never zeroed again.
pub const READ_BYTES: usize = 128 << 10;
