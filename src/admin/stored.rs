//! Stored messages as commands see them, and how they are read and sent: pull (11), offsets (29, 30, 31), send (310).
//!
//! Reading commits nothing: it pulls as RocketMQ's own tools do, with their group and without a subscription.

use std::collections::VecDeque;
use std::io::Read;

use bytes::Bytes;
use flate2::read::ZlibDecoder;
use serde_json::{Map, Value, json};

use crate::admin::args::Between;
use crate::admin::session::{Master, Session, accepted};
use crate::admin::{AdminError, Outcome};
use crate::base::civil::{parse_time, readable_time};
use crate::base::names::AUTO_CREATE_TOPIC;
use crate::base::offset::PhysicalOffset;
use crate::wire::message_id::MessageId;
use crate::wire::properties::{self, name};
use crate::wire::record::{RecordView, SYS_FLAG_COMPRESSED, records};
use crate::wire::remoting::code::{request, response};
use crate::wire::remoting::command::{Command, Outgoing};

/// The group that RocketMQ's own tools consume with, so that no new one is left behind.
pub const TOOLS_GROUP: &str = "TOOLS_CONSUMER";
/// The producer group of what is sent here.
const PRODUCER_GROUP: &str = "CLIENT_INNER_PRODUCER";
/// `PullSysFlag`: the subscription is in the request.
const PULL_FLAGS: i32 = 4;
/// Bits of the system flag that name the compression (`CompressionType`); LZ4 is 1, ZSTD 2, zlib 3 or none.
const COMPRESSION_BITS: i32 = 0x700;
const COMPRESSION_ZLIB: i32 = 0x300;
/// Bytes of a compressed body that are shown at most, unpacked: what was stored may be a bomb.
const UNPACKED_BYTES_MAX: u64 = 64 << 20;
/// Messages of one pull.
const PULL_MESSAGES: u32 = 64;

/// A message as a broker keeps it.
#[derive(Clone, Debug)]
pub struct Stored {
    pub broker_name: String,
    pub offset_msg_id: String,
    pub topic: String,
    pub queue_id: i32,
    pub queue_offset: i64,
    pub commit_log_offset: i64,
    pub store_size: usize,
    pub body_crc: u32,
    pub flag: i32,
    pub sys_flag: i32,
    pub born_timestamp: i64,
    pub born_host: String,
    pub store_timestamp: i64,
    pub store_host: String,
    pub reconsume_times: i32,
    pub prepared_transaction_offset: i64,
    /// As it is stored, perhaps compressed.
    pub body: Bytes,
    pub properties: Bytes,
}

impl Stored {
    pub fn of(record: &RecordView<'_>, broker_name: &str) -> Self {
        let id = MessageId {
            host: record.store_host(),
            offset: PhysicalOffset(record.physical_offset()),
        };
        Self {
            broker_name: broker_name.to_owned(),
            offset_msg_id: id.encode(),
            topic: record.topic().to_owned(),
            queue_id: record.queue_id(),
            queue_offset: record.queue_offset(),
            commit_log_offset: record.physical_offset(),
            store_size: record.total_bytes(),
            body_crc: record.body_crc(),
            flag: record.flag(),
            sys_flag: record.sys_flag(),
            born_timestamp: record.born_timestamp(),
            born_host: record.born_host().to_string(),
            store_timestamp: record.store_timestamp(),
            store_host: record.store_host().to_string(),
            reconsume_times: record.reconsume_times(),
            prepared_transaction_offset: record.prepared_transaction_offset(),
            body: Bytes::copy_from_slice(record.body()),
            properties: Bytes::copy_from_slice(record.properties()),
        }
    }

    pub fn property(&self, name: &str) -> Option<&str> {
        properties::get(&self.properties, name)
    }

    /// The id that the client gave it, or else its offset id.
    pub fn msg_id(&self) -> &str {
        self.property(name::UNIQUE_KEY)
            .unwrap_or(&self.offset_msg_id)
    }

    /// The keys, one by one.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.property(name::KEYS)
            .unwrap_or_default()
            .split_whitespace()
    }

    /// The body as it was before a client compressed it with zlib; other kinds stay as they are.
    pub fn unpacked(&self) -> Bytes {
        let kind = self.sys_flag & COMPRESSION_BITS;
        if self.sys_flag & SYS_FLAG_COMPRESSED == 0 || !matches!(kind, 0 | COMPRESSION_ZLIB) {
            return self.body.clone();
        }
        let mut unpacked = Vec::new();
        let mut decoder = ZlibDecoder::new(&self.body[..]).take(UNPACKED_BYTES_MAX);
        match decoder.read_to_end(&mut unpacked) {
            Ok(_) => unpacked.into(),
            Err(_) => self.body.clone(),
        }
    }

    /// Names and values of the properties.
    pub fn property_map(&self) -> Map<String, Value> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        properties::iter(&self.properties)
            .map(|(name, value)| (text(name), Value::from(text(value))))
            .collect()
    }

    /// Everything as JSON. The body is text if it is UTF-8, else `bodyHex`.
    pub fn to_json(&self) -> Value {
        let mut value = json!({
            "offsetMsgId": self.offset_msg_id,
            "msgId": self.msg_id(),
            "brokerName": self.broker_name,
            "topic": self.topic,
            "queueId": self.queue_id,
            "queueOffset": self.queue_offset,
            "commitLogOffset": self.commit_log_offset,
            "storeSize": self.store_size,
            "bodyCrc": self.body_crc,
            "flag": self.flag,
            "sysFlag": self.sys_flag,
            "bornTimestamp": self.born_timestamp,
            "bornHost": self.born_host,
            "storeTimestamp": self.store_timestamp,
            "storeHost": self.store_host,
            "reconsumeTimes": self.reconsume_times,
            "preparedTransactionOffset": self.prepared_transaction_offset,
            "properties": self.property_map(),
        });
        let body = self.unpacked();
        match std::str::from_utf8(&body) {
            Ok(text) => value["body"] = text.into(),
            Err(_) => value["bodyHex"] = hex(&body).into(),
        }
        value
    }

    /// One line for people.
    pub fn line(&self) -> String {
        let keys = self.property(name::KEYS).unwrap_or("-");
        let tags = self.property(name::TAGS).unwrap_or("-");
        let line = format!(
            "{} {} queue {} offset {} id {} keys {keys} tags {tags} body {}",
            readable_time(u64::try_from(self.store_timestamp).unwrap_or(0)),
            self.broker_name,
            self.queue_id,
            self.queue_offset,
            self.msg_id(),
            preview(&self.unpacked()),
        );
        line.chars()
            .map(|c| if c.is_control() { '?' } else { c })
            .collect()
    }
}

/// Upper-case hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02X}"); // Writing to a string does not fail.
        text
    })
}

/// The start of a body.
fn preview(body: &[u8]) -> String {
    const CHARS_MAX: usize = 200;
    match std::str::from_utf8(body) {
        Ok(text) if text.chars().nth(CHARS_MAX).is_none() => text.to_owned(),
        Ok(text) => format!(
            "{}... ({} bytes)",
            text.chars().take(CHARS_MAX).collect::<String>(),
            body.len()
        ),
        Err(_) => format!("{} bytes, not text", body.len()),
    }
}

/// The messages in an answer.
pub fn messages_in(body: &[u8], broker_name: &str) -> Outcome<Vec<Stored>> {
    records(body)
        .map(|record| {
            record
                .map(|record| Stored::of(&record, broker_name))
                .map_err(|error| {
                    AdminError::Failed(format!(
                        "a message that a broker sent cannot be read: {error}"
                    ))
                })
        })
        .collect()
}

/// What a `--begin` or `--end` means, in milliseconds since 1970.
pub fn time_of(text: &str, session: &Session) -> Outcome<i64> {
    parse_time(text, session.now_ms())
        .and_then(|ms| i64::try_from(ms).ok())
        .ok_or_else(|| {
            AdminError::Usage(format!(
                "'{text}' is no time: write 2026-01-31T08:00 (UTC), milliseconds since 1970, now, -90s, -30m, -2h or -7d"
            ))
        })
}

/// Both ends of a range, inclusive.
pub fn range_of(between: &Between, session: &Session) -> Outcome<(i64, i64)> {
    let begin = match &between.begin {
        Some(text) => time_of(text, session)?,
        None => 0,
    };
    let end = match &between.end {
        Some(text) => time_of(text, session)?,
        None => i64::MAX,
    };
    Ok((begin, end))
}

/// A number field of an answer.
fn number(address: &str, answer: &Command, field: &'static str) -> Outcome<i64> {
    answer
        .required_int(field)
        .map_err(|error| AdminError::Failed(format!("the answer of {address}: {error}")))
}

/// One queue on one broker.
#[derive(Clone, Debug)]
pub struct Queue {
    pub master: Master,
    pub topic: String,
    pub queue_id: i32,
}

impl Queue {
    fn ask(&self, code: i32) -> Outgoing {
        Outgoing::request(code)
            .field("topic", self.topic.clone())
            .field("queueId", self.queue_id)
    }

    async fn offset(&self, session: &Session, ask: Outgoing) -> Outcome<i64> {
        let address = &self.master.address;
        let answer = session.call(address, ask, Bytes::new()).await?;
        number(address, &answer, "offset")
    }

    pub async fn max_offset(&self, session: &Session) -> Outcome<i64> {
        self.offset(session, self.ask(request::GET_MAX_OFFSET))
            .await
    }

    pub async fn min_offset(&self, session: &Session) -> Outcome<i64> {
        self.offset(session, self.ask(request::GET_MIN_OFFSET))
            .await
    }

    /// The first offset whose message was stored at this time or later.
    pub async fn offset_at(&self, session: &Session, timestamp_ms: i64) -> Outcome<i64> {
        let ask = self
            .ask(request::SEARCH_OFFSET_BY_TIMESTAMP)
            .field("timestamp", timestamp_ms)
            .field("boundaryType", "LOWER");
        self.offset(session, ask).await
    }

    /// The committed offset of a group, if there is one.
    pub async fn committed(&self, session: &Session, group: &str) -> Outcome<Option<i64>> {
        let ask = self
            .ask(request::QUERY_CONSUMER_OFFSET)
            .field("consumerGroup", group.to_owned())
            .field("setZeroIfNotFound", false);
        let address = &self.master.address;
        let answer = session.ask(address, ask, Bytes::new()).await?;
        if answer.code == response::QUERY_NOT_FOUND {
            return Ok(None);
        }
        let answer = accepted(address, request::QUERY_CONSUMER_OFFSET, answer)?;
        number(address, &answer, "offset").map(Some)
    }

    /// Messages from an offset on, the offset to go on with, and whether that is the end of the queue for now.
    async fn pull(
        &self,
        session: &Session,
        offset: i64,
        messages_max: u32,
    ) -> Outcome<(Vec<Stored>, i64, bool)> {
        let ask = Outgoing::request(request::PULL_MESSAGE)
            .field("consumerGroup", TOOLS_GROUP)
            .field("topic", self.topic.clone())
            .field("queueId", self.queue_id)
            .field("queueOffset", offset)
            .field("maxMsgNums", messages_max)
            .field("sysFlag", PULL_FLAGS)
            .field("commitOffset", 0)
            .field("suspendTimeoutMillis", 0)
            .field("subscription", "*")
            .field("subVersion", 0)
            .field("expressionType", "TAG");
        let address = &self.master.address;
        let answer = session.ask(address, ask, Bytes::new()).await?;
        match answer.code {
            response::SUCCESS => {
                let messages = messages_in(&answer.body, &self.master.broker_name)?;
                let next = number(address, &answer, "nextBeginOffset")?;
                Ok((messages, next, false))
            }
            // The oldest went while it was asked for, or there is nothing (any more).
            response::PULL_OFFSET_MOVED | response::PULL_RETRY_IMMEDIATELY => {
                let next = number(address, &answer, "nextBeginOffset")?;
                Ok((Vec::new(), next, next <= offset))
            }
            response::PULL_NOT_FOUND => Ok((Vec::new(), offset, true)),
            _ => Err(accepted(address, request::PULL_MESSAGE, answer)
                .err()
                .unwrap_or(AdminError::Failed("an answer of no known kind".into()))),
        }
    }
}

/// Reads a queue in order, up to the end that it had at the start.
pub struct QueueReader {
    queue: Queue,
    next: i64,
    end: i64,
    waiting: VecDeque<Stored>,
}

impl QueueReader {
    /// From an offset on, or from the oldest message.
    pub async fn from_offset(session: &Session, queue: Queue, from: Option<i64>) -> Outcome<Self> {
        let (min, end) = (
            queue.min_offset(session).await?,
            queue.max_offset(session).await?,
        );
        Ok(Self {
            queue,
            next: from.unwrap_or(min).max(min),
            end,
            waiting: VecDeque::new(),
        })
    }

    /// From the first message that was stored at this time or later.
    pub async fn from_time(session: &Session, queue: Queue, begin_ms: i64) -> Outcome<Self> {
        let from = match begin_ms {
            ..=0 => None,
            _ => Some(queue.offset_at(session, begin_ms).await?),
        };
        Self::from_offset(session, queue, from).await
    }

    /// Messages between here and the end.
    pub fn left(&self) -> i64 {
        (self.end - self.next).max(0) + self.waiting.len() as i64
    }

    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    pub async fn next(&mut self, session: &Session) -> Outcome<Option<Stored>> {
        while self.waiting.is_empty() && self.next < self.end {
            let (messages, next, ended) =
                self.queue.pull(session, self.next, PULL_MESSAGES).await?;
            // A broker that does not move on would be asked for ever.
            if messages.is_empty() && (ended || next <= self.next) {
                return Ok(None);
            }
            self.next = next;
            let end = self.end;
            self.waiting.extend(
                messages
                    .into_iter()
                    .filter(|message| message.queue_offset < end),
            );
        }
        Ok(self.waiting.pop_front())
    }
}

/// The queues of a topic that can be read, by broker and id.
pub async fn queues_of(session: &Session, topic: &str) -> Outcome<Vec<Queue>> {
    let brokers = session.topic_brokers(topic).await?;
    Ok(brokers
        .into_iter()
        .flat_map(|broker| {
            let (master, topic) = (broker.master, topic.to_owned());
            (0..broker.queues.read_queue_nums).map(move |queue_id| Queue {
                master: master.clone(),
                topic: topic.clone(),
                queue_id: queue_id as i32,
            })
        })
        .collect())
}

/// A message to send.
pub struct NewMessage<'a> {
    pub topic: &'a str,
    /// -1: the broker chooses.
    pub queue_id: i32,
    pub flag: i32,
    pub sys_flag: i32,
    pub properties: &'a [u8],
    pub body: Bytes,
    /// Whether a topic that is not there may be made by this message.
    pub creates_topic: bool,
}

/// Where a message went.
pub struct Sent {
    pub offset_msg_id: String,
    pub queue_id: i64,
    pub queue_offset: i64,
}

/// Sends a message to a broker.
pub async fn send(session: &Session, address: &str, message: NewMessage<'_>) -> Outcome<Sent> {
    let ask = Outgoing::request(request::SEND_MESSAGE_V2)
        .field("a", PRODUCER_GROUP)
        .field("b", message.topic.to_owned())
        // A topic on whose model another is made must exist, so nothing is made on the model of none.
        .field(
            "c",
            if message.creates_topic {
                AUTO_CREATE_TOPIC
            } else {
                ""
            },
        )
        .field("d", 4)
        .field("e", message.queue_id)
        .field("f", message.sys_flag)
        .field("g", session.now_ms() as i64)
        .field("h", message.flag)
        .field(
            "i",
            String::from_utf8_lossy(message.properties).into_owned(),
        )
        .field("j", 0)
        .field("k", false)
        .field("m", false);
    let answer = session.call(address, ask, message.body).await?;
    Ok(Sent {
        offset_msg_id: answer.text("msgId").unwrap_or_default().into_owned(),
        queue_id: number(address, &answer, "queueId")?,
        queue_offset: number(address, &answer, "queueOffset")?,
    })
}

/// Messages with a key, of all brokers of a topic, the newest first. `unique`: by the id that the client gave them.
pub async fn by_key(
    session: &Session,
    topic: &str,
    key: &str,
    unique: bool,
    (begin_ms, end_ms): (i64, i64),
    max: u32,
) -> Outcome<Vec<Stored>> {
    let mut found = Vec::new();
    for broker in session.topic_brokers(topic).await? {
        let mut ask = Outgoing::request(request::QUERY_MESSAGE)
            .field("topic", topic.to_owned())
            .field("key", key.to_owned())
            .field("maxNum", max)
            .field("beginTimestamp", begin_ms)
            .field("endTimestamp", end_ms);
        ask = match unique {
            true => ask.field("_UNIQUE_KEY_QUERY", true).field("indexType", "U"),
            false => ask.field("indexType", "K"),
        };
        let address = &broker.master.address;
        let answer = session.ask(address, ask, Bytes::new()).await?;
        if answer.code == response::QUERY_NOT_FOUND {
            continue;
        }
        let answer = accepted(address, request::QUERY_MESSAGE, answer)?;
        found.extend(messages_in(&answer.body, &broker.master.broker_name)?);
    }
    found.sort_by_key(|message| std::cmp::Reverse(message.store_timestamp));
    Ok(found)
}

/// The message of an offset id; `None` if there is none at that place.
pub async fn by_offset_id(session: &Session, id: &str) -> Outcome<Option<Stored>> {
    let parsed = MessageId::parse(id).map_err(|error| AdminError::Usage(error.to_string()))?;
    let address = parsed.host.to_string();
    let ask = Outgoing::request(request::VIEW_MESSAGE_BY_ID).field("offset", parsed.offset.0);
    let answer = session.ask(&address, ask, Bytes::new()).await?;
    if answer.code != response::SUCCESS {
        return match answer.code {
            response::SYSTEM_ERROR | response::QUERY_NOT_FOUND => Ok(None),
            _ => Err(accepted(&address, request::VIEW_MESSAGE_BY_ID, answer)
                .err()
                .unwrap_or(AdminError::Failed("an answer of no known kind".into()))),
        };
    }
    let name = session
        .masters(&Default::default())
        .await
        .ok()
        .and_then(|masters| masters.into_iter().find(|master| master.address == address))
        .map(|master| master.broker_name)
        .unwrap_or_default();
    Ok(messages_in(&answer.body, &name)?.pop())
}
