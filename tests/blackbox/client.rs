//! A small blocking client of the remoting protocol, written from the protocol's description alone.
//!
//! It shares no code with the product, so that a test cannot inherit a bug of the codec that it checks. It speaks both
//! header forms, allows many requests in flight on one connection, and keeps requests that the server sends by itself.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use crate::record::{self, Record};

/// Request codes (`RequestCode`).
pub mod code {
    pub const SEND_MESSAGE: i32 = 10;
    pub const PULL_MESSAGE: i32 = 11;
    pub const QUERY_CONSUMER_OFFSET: i32 = 14;
    pub const QUERY_MESSAGE: i32 = 12;
    pub const UPDATE_CONSUMER_OFFSET: i32 = 15;
    pub const UPDATE_AND_CREATE_TOPIC: i32 = 17;
    pub const SEARCH_OFFSET_BY_TIMESTAMP: i32 = 29;
    pub const GET_MAX_OFFSET: i32 = 30;
    pub const GET_MIN_OFFSET: i32 = 31;
    pub const GET_EARLIEST_MSG_STORETIME: i32 = 32;
    pub const HEART_BEAT: i32 = 34;
    pub const UNREGISTER_CLIENT: i32 = 35;
    pub const CONSUMER_SEND_MSG_BACK: i32 = 36;
    pub const END_TRANSACTION: i32 = 37;
    pub const GET_CONSUMER_LIST_BY_GROUP: i32 = 38;
    pub const CHECK_TRANSACTION_STATE: i32 = 39;
    pub const NOTIFY_CONSUMER_IDS_CHANGED: i32 = 40;
    pub const LOCK_BATCH_MQ: i32 = 41;
    pub const UNLOCK_BATCH_MQ: i32 = 42;
    pub const GET_ROUTEINFO_BY_TOPIC: i32 = 105;
    pub const GET_BROKER_CLUSTER_INFO: i32 = 106;
    pub const GET_BROKER_HA_STATUS: i32 = 907;
    pub const UPDATE_AND_CREATE_SUBSCRIPTIONGROUP: i32 = 200;
    pub const DELETE_TOPIC_IN_BROKER: i32 = 215;
    pub const SEND_MESSAGE_V2: i32 = 310;
    pub const SEND_BATCH_MESSAGE: i32 = 320;
    pub const SEND_REPLY_MESSAGE_V2: i32 = 325;
    pub const PUSH_REPLY_MESSAGE_TO_CLIENT: i32 = 326;
}

/// Response codes (`ResponseCode`).
pub mod answer {
    pub const SUCCESS: i32 = 0;
    pub const SLAVE_NOT_AVAILABLE: i32 = 11;
    pub const FLUSH_SLAVE_TIMEOUT: i32 = 12;
    pub const SERVICE_NOT_AVAILABLE: i32 = 14;
    pub const SYSTEM_ERROR: i32 = 1;
    pub const REQUEST_CODE_NOT_SUPPORTED: i32 = 3;
    pub const MESSAGE_ILLEGAL: i32 = 13;
    pub const TOPIC_NOT_EXIST: i32 = 17;
    pub const PULL_NOT_FOUND: i32 = 19;
    pub const PULL_RETRY_IMMEDIATELY: i32 = 20;
    pub const PULL_OFFSET_MOVED: i32 = 21;
    pub const QUERY_NOT_FOUND: i32 = 22;
    pub const INVALID_PARAMETER: i32 = 29;
}

const FLAG_RESPONSE: i32 = 1;
const FLAG_ONEWAY: i32 = 2;
/// Bits of a pull's sysFlag.
const PULL_COMMIT_OFFSET: i32 = 1;
const PULL_SUSPEND: i32 = 2;
const PULL_SUBSCRIPTION: i32 = 4;
/// What we claim to be: V5_5_0.
const VERSION: i32 = 513;
/// Longer than any answer may take, a parked pull included.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Json,
    Binary,
}

/// A frame in either direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    pub encoding: Encoding,
    pub code: i32,
    pub version: i32,
    pub opaque: i32,
    pub flag: i32,
    pub remark: String,
    pub fields: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Command {
    pub fn request(code: i32, fields: &[(&str, String)], body: Vec<u8>) -> Self {
        Self {
            encoding: Encoding::Json,
            code,
            version: VERSION,
            opaque: 0,
            flag: 0,
            remark: String::new(),
            fields: fields
                .iter()
                .map(|(name, value)| (name.to_string(), value.clone()))
                .collect(),
            body,
        }
    }

    pub fn oneway(mut self) -> Self {
        self.flag |= FLAG_ONEWAY;
        self
    }

    pub fn is_response(&self) -> bool {
        self.flag & FLAG_RESPONSE != 0
    }

    /// The whole frame, length prefix included.
    pub fn encode(&self) -> Vec<u8> {
        let header = match self.encoding {
            Encoding::Json => self.json_header(),
            Encoding::Binary => self.binary_header(),
        };
        let mark = (self.encoding as u32) << 24 | header.len() as u32;
        let mut frame = Vec::with_capacity(8 + header.len() + self.body.len());
        frame.extend_from_slice(&((4 + header.len() + self.body.len()) as u32).to_be_bytes());
        frame.extend_from_slice(&mark.to_be_bytes());
        frame.extend_from_slice(&header);
        frame.extend_from_slice(&self.body);
        frame
    }

    fn json_header(&self) -> Vec<u8> {
        let mut header = json!({
            "code": self.code, "language": "OTHER", "version": self.version, "opaque": self.opaque,
            "flag": self.flag, "extFields": self.fields, "serializeTypeCurrentRPC": "JSON",
        });
        if !self.remark.is_empty() {
            header["remark"] = Value::from(self.remark.as_str());
        }
        header.to_string().into_bytes()
    }

    fn binary_header(&self) -> Vec<u8> {
        let mut map = Vec::new();
        for (name, value) in &self.fields {
            map.extend_from_slice(&(name.len() as u16).to_be_bytes());
            map.extend_from_slice(name.as_bytes());
            map.extend_from_slice(&(value.len() as u32).to_be_bytes());
            map.extend_from_slice(value.as_bytes());
        }
        let mut header = Vec::new();
        header.extend_from_slice(&(self.code as i16).to_be_bytes());
        header.push(7); // LanguageCode OTHER
        header.extend_from_slice(&(self.version as i16).to_be_bytes());
        header.extend_from_slice(&self.opaque.to_be_bytes());
        header.extend_from_slice(&self.flag.to_be_bytes());
        header.extend_from_slice(&(self.remark.len() as u32).to_be_bytes());
        header.extend_from_slice(self.remark.as_bytes());
        header.extend_from_slice(&(map.len() as u32).to_be_bytes());
        header.extend_from_slice(&map);
        header
    }

    /// A frame without its length prefix.
    pub fn decode(frame: &[u8]) -> Result<Self, String> {
        let mut bytes = Cursor { rest: frame };
        let mark = bytes.u32()?;
        let mut header = Cursor {
            rest: bytes.take((mark & 0x00FF_FFFF) as usize)?,
        };
        let body = bytes.rest.to_vec();
        match mark >> 24 {
            0 => Self::from_json(header.rest, body),
            1 => Self::from_binary(&mut header, body),
            other => Err(format!("serialise type {other}")),
        }
    }

    fn from_json(header: &[u8], body: Vec<u8>) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(header).map_err(|error| {
            format!("{error} in the header {}", String::from_utf8_lossy(header))
        })?;
        let number = |name: &str| value[name].as_i64().map(|number| number as i32);
        let mut fields = BTreeMap::new();
        if let Some(map) = value["extFields"].as_object() {
            for (name, field) in map {
                // Java's parser takes the fields as a map of strings, so a bare number would be a bug of the server.
                let text = field
                    .as_str()
                    .ok_or_else(|| format!("extFields.{name} is {field}, not a string"))?;
                fields.insert(name.clone(), text.to_string());
            }
        }
        Ok(Self {
            encoding: Encoding::Json,
            code: number("code").ok_or("no code")?,
            version: number("version").ok_or("no version")?,
            opaque: number("opaque").ok_or("no opaque")?,
            flag: number("flag").ok_or("no flag")?,
            remark: value["remark"].as_str().unwrap_or_default().to_string(),
            fields,
            body,
        })
    }

    fn from_binary(header: &mut Cursor<'_>, body: Vec<u8>) -> Result<Self, String> {
        let code = i32::from(header.u16()? as i16);
        header.take(1)?;
        let version = i32::from(header.u16()?);
        let opaque = header.u32()? as i32;
        let flag = header.u32()? as i32;
        let remark_bytes = header.u32()? as usize;
        let remark = header.text(remark_bytes)?;
        let map_bytes = header.u32()? as usize;
        let mut map = Cursor {
            rest: header.take(map_bytes)?,
        };
        let mut fields = BTreeMap::new();
        while !map.rest.is_empty() {
            let name_bytes = usize::from(map.u16()?);
            let name = map.text(name_bytes)?;
            let value_bytes = map.u32()? as usize;
            let value = map.text(value_bytes)?;
            fields.insert(name, value);
        }
        Ok(Self {
            encoding: Encoding::Binary,
            code,
            version,
            opaque,
            flag,
            remark,
            fields,
            body,
        })
    }
}

struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self
            .rest
            .split_at_checked(bytes)
            .ok_or_else(|| format!("{bytes} bytes are announced, {} are left", self.rest.len()))?;
        self.rest = rest;
        Ok(taken)
    }

    fn u16(&mut self) -> Result<u16, String> {
        Ok(u16::from_be_bytes(self.take(2)?.try_into().unwrap()))
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_be_bytes(self.take(4)?.try_into().unwrap()))
    }

    fn text(&mut self, bytes: usize) -> Result<String, String> {
        String::from_utf8(self.take(bytes)?.to_vec()).map_err(|error| error.to_string())
    }
}

/// Why a call did not give its answer.
#[derive(Debug)]
pub enum Failure {
    /// The connection broke, or the answer did not come in time.
    Io(#[allow(dead_code)] io::Error), // read by its Debug form
    /// The server sent something that is not the protocol.
    Protocol(#[allow(dead_code)] String), // read by its Debug form
    /// The server answered with an error code.
    Refused { code: i32, remark: String },
}

impl Failure {
    pub fn code(&self) -> Option<i32> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }

    pub fn remark(&self) -> &str {
        match self {
            Self::Refused { remark, .. } => remark,
            _ => "",
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

pub type Answer<T> = Result<T, Failure>;

/// A message to be sent.
#[derive(Clone, Debug, Default)]
pub struct Message {
    pub topic: String,
    /// -1 lets the broker choose.
    pub queue_id: i32,
    pub body: Vec<u8>,
    pub properties: Vec<(String, String)>,
    pub flag: i32,
    pub sys_flag: i32,
}

impl Message {
    pub fn new(topic: &str, queue_id: i32, body: impl Into<Vec<u8>>) -> Self {
        Self {
            topic: topic.to_string(),
            queue_id,
            body: body.into(),
            ..Self::default()
        }
    }

    pub fn property(mut self, name: &str, value: &str) -> Self {
        self.properties.push((name.to_string(), value.to_string()));
        self
    }

    fn properties_text(&self) -> String {
        self.properties
            .iter()
            .map(|(name, value)| format!("{name}\u{1}{value}\u{2}"))
            .collect()
    }

    /// SEND_MESSAGE_V2, the form of today's clients.
    pub fn send_v2(&self) -> Command {
        self.send_with_short_names(code::SEND_MESSAGE_V2, self.body.clone(), false)
    }

    /// SEND_MESSAGE, the form of old clients.
    pub fn send_v1(&self) -> Command {
        let fields = [
            ("producerGroup", "blackbox-producer".to_string()),
            ("topic", self.topic.clone()),
            ("defaultTopic", "TBW102".to_string()),
            ("defaultTopicQueueNums", "4".to_string()),
            ("queueId", self.queue_id.to_string()),
            ("sysFlag", self.sys_flag.to_string()),
            ("bornTimestamp", now_ms().to_string()),
            ("flag", self.flag.to_string()),
            ("properties", self.properties_text()),
            ("reconsumeTimes", "0".to_string()),
            ("unitMode", "false".to_string()),
            ("batch", "false".to_string()),
        ];
        Command::request(code::SEND_MESSAGE, &fields, self.body.clone())
    }

    fn send_with_short_names(&self, code: i32, body: Vec<u8>, batch: bool) -> Command {
        let fields = [
            ("a", "blackbox-producer".to_string()),
            ("b", self.topic.clone()),
            ("c", "TBW102".to_string()),
            ("d", "4".to_string()),
            ("e", self.queue_id.to_string()),
            ("f", self.sys_flag.to_string()),
            ("g", now_ms().to_string()),
            ("h", self.flag.to_string()),
            ("i", self.properties_text()),
            ("j", "0".to_string()),
            ("k", "false".to_string()),
            ("m", batch.to_string()),
        ];
        Command::request(code, &fields, body)
    }
}

/// SEND_BATCH_MESSAGE: all messages go to the queue of the first.
pub fn send_batch(messages: &[Message]) -> Command {
    let mut body = Vec::new();
    for message in messages {
        let properties = message.properties_text();
        let total = 4 * 5 + message.body.len() + 2 + properties.len();
        body.extend_from_slice(&(total as u32).to_be_bytes());
        body.extend_from_slice(&[0; 8]); // magic and body CRC, which clients leave empty
        body.extend_from_slice(&message.flag.to_be_bytes());
        body.extend_from_slice(&(message.body.len() as u32).to_be_bytes());
        body.extend_from_slice(&message.body);
        body.extend_from_slice(&(properties.len() as u16).to_be_bytes());
        body.extend_from_slice(properties.as_bytes());
    }
    let envelope = Message {
        properties: vec![("WAIT".into(), "true".into())],
        ..messages[0].clone()
    };
    envelope.send_with_short_names(code::SEND_BATCH_MESSAGE, body, true)
}

/// What a send was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    pub queue_id: i32,
    pub queue_offset: i64,
    /// Offset message id; several with commas for a batch.
    pub msg_id: String,
}

/// A pull of one queue.
#[derive(Clone, Debug)]
pub struct Pull {
    pub group: String,
    pub topic: String,
    pub queue_id: i32,
    pub offset: i64,
    pub messages_max: i32,
    /// `*`, or tags separated by `||`.
    pub tags: String,
    /// Milliseconds that the broker may wait for a message; 0 answers at once.
    pub suspend_ms: u64,
    /// Consumer offset to store on the way.
    pub commit: Option<i64>,
}

impl Pull {
    pub fn new(topic: &str, queue_id: i32, offset: i64) -> Self {
        Self {
            group: "blackbox-consumer".into(),
            topic: topic.into(),
            queue_id,
            offset,
            messages_max: 32,
            tags: "*".into(),
            suspend_ms: 0,
            commit: None,
        }
    }

    pub fn command(&self) -> Command {
        let mut sys_flag = PULL_SUBSCRIPTION;
        if self.suspend_ms > 0 {
            sys_flag |= PULL_SUSPEND;
        }
        if self.commit.is_some() {
            sys_flag |= PULL_COMMIT_OFFSET;
        }
        let fields = [
            ("consumerGroup", self.group.clone()),
            ("topic", self.topic.clone()),
            ("queueId", self.queue_id.to_string()),
            ("queueOffset", self.offset.to_string()),
            ("maxMsgNums", self.messages_max.to_string()),
            ("sysFlag", sys_flag.to_string()),
            ("commitOffset", self.commit.unwrap_or(0).to_string()),
            ("suspendTimeoutMillis", self.suspend_ms.to_string()),
            ("subscription", self.tags.clone()),
            ("subVersion", "0".to_string()),
            ("expressionType", "TAG".to_string()),
        ];
        Command::request(code::PULL_MESSAGE, &fields, Vec::new())
    }
}

/// Answer to a pull: codes 0, 19, 20 and 21 are answers, not errors.
#[derive(Clone, Debug)]
pub struct Pulled {
    pub code: i32,
    pub next_offset: i64,
    pub min_offset: i64,
    pub max_offset: i64,
    pub records: Vec<Record>,
}

/// One TCP connection. Not for use by several threads.
pub struct Connection {
    writer: TcpStream,
    reader: BufReader<TcpStream>,
    next_opaque: i32,
    /// Answers that arrived before somebody waited for them.
    early: HashMap<i32, Command>,
    /// Requests that the server sent by itself.
    pub pushed: Vec<Command>,
    /// Header form of what we send.
    pub encoding: Encoding,
}

impl Connection {
    pub fn open(address: SocketAddr) -> io::Result<Self> {
        Self::open_within(address, Duration::from_secs(5))
    }

    pub fn open_within(address: SocketAddr, timeout: Duration) -> io::Result<Self> {
        let writer = TcpStream::connect_timeout(&address, timeout)?;
        writer.set_nodelay(true)?;
        writer.set_read_timeout(Some(READ_TIMEOUT))?;
        writer.set_write_timeout(Some(READ_TIMEOUT))?;
        let reader = BufReader::with_capacity(256 << 10, writer.try_clone()?);
        Ok(Self {
            writer,
            reader,
            next_opaque: 1,
            early: HashMap::new(),
            pushed: Vec::new(),
            encoding: Encoding::Json,
        })
    }

    pub fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.writer.set_read_timeout(Some(timeout))
    }

    /// Sends a request and returns its opaque, without waiting.
    pub fn start(&mut self, command: &Command) -> io::Result<i32> {
        let opaque = self.next_opaque;
        self.next_opaque += 1;
        let command = Command {
            opaque,
            encoding: self.encoding,
            ..command.clone()
        };
        self.writer.write_all(&command.encode())?;
        Ok(opaque)
    }

    /// Answers a request that the server sent by itself with code 0.
    pub fn take(&mut self, pushed: &Command) -> io::Result<()> {
        let mut taken = Command::request(answer::SUCCESS, &[], Vec::new());
        (taken.opaque, taken.flag) = (pushed.opaque, FLAG_RESPONSE);
        self.writer.write_all(&taken.encode())
    }

    /// The next frame, whatever it is.
    pub fn receive(&mut self) -> Answer<Command> {
        let mut prefix = [0; 4];
        self.reader.read_exact(&mut prefix)?;
        let bytes = u32::from_be_bytes(prefix) as usize;
        if !(4..=16 << 20).contains(&bytes) {
            return Err(Failure::Protocol(format!("a frame of {bytes} bytes")));
        }
        let mut frame = vec![0; bytes];
        self.reader.read_exact(&mut frame)?;
        Command::decode(&frame).map_err(Failure::Protocol)
    }

    /// The next answer to any request of ours.
    pub fn next_answer(&mut self) -> Answer<Command> {
        if let Some(opaque) = self.early.keys().next().copied() {
            return Ok(self.early.remove(&opaque).unwrap());
        }
        loop {
            let command = self.receive()?;
            if command.is_response() {
                return Ok(command);
            }
            self.pushed.push(command);
        }
    }

    /// The answer to one request; answers to others are kept for their own `wait`.
    pub fn wait(&mut self, opaque: i32) -> Answer<Command> {
        loop {
            if let Some(command) = self.early.remove(&opaque) {
                return Ok(command);
            }
            let command = self.receive()?;
            if !command.is_response() {
                self.pushed.push(command);
            } else if command.opaque == opaque {
                return Ok(command);
            } else {
                self.early.insert(command.opaque, command);
            }
        }
    }

    /// Sends a request and waits for its answer, whatever its code.
    pub fn ask(&mut self, command: &Command) -> Answer<Command> {
        let opaque = self.start(command)?;
        self.wait(opaque)
    }

    /// Like [`Connection::ask`], but any code except 0 is a failure.
    pub fn call(&mut self, command: &Command) -> Answer<Command> {
        accept(self.ask(command)?)
    }

    pub fn send(&mut self, message: &Message) -> Answer<Sent> {
        sent(self.ask(&message.send_v2())?)
    }

    pub fn send_batch(&mut self, messages: &[Message]) -> Answer<Sent> {
        sent(self.ask(&send_batch(messages))?)
    }

    pub fn pull(&mut self, pull: &Pull) -> Answer<Pulled> {
        pulled(self.ask(&pull.command())?)
    }

    /// All records of a queue from `offset` on, and the offset after the last.
    pub fn read_queue(&mut self, topic: &str, queue_id: i32, offset: i64) -> Answer<Vec<Record>> {
        let mut pull = Pull::new(topic, queue_id, offset);
        let mut records = Vec::new();
        loop {
            let pulled = self.pull(&pull)?;
            match pulled.code {
                answer::SUCCESS | answer::PULL_RETRY_IMMEDIATELY => {
                    if pulled.next_offset <= pull.offset {
                        return Err(Failure::Protocol(format!(
                            "a pull at {} of {topic}/{queue_id} goes on at {}",
                            pull.offset, pulled.next_offset
                        )));
                    }
                    records.extend(pulled.records);
                    pull.offset = pulled.next_offset;
                }
                answer::PULL_NOT_FOUND => return Ok(records),
                // Nothing at this offset: retention moved the start, or the queue ends before it.
                answer::PULL_OFFSET_MOVED if pulled.next_offset > pull.offset => {
                    pull.offset = pulled.next_offset;
                }
                code => {
                    return Err(Failure::Protocol(format!(
                        "pull of {topic}/{queue_id} at {}: code {code}, next {}, min {}, max {}",
                        pull.offset, pulled.next_offset, pulled.min_offset, pulled.max_offset
                    )));
                }
            }
        }
    }

    pub fn create_topic(&mut self, topic: &str, queues: u32) -> Answer<()> {
        self.call(&create_topic(topic, queues)).map(drop)
    }

    pub fn delete_topic(&mut self, topic: &str) -> Answer<()> {
        let fields = [("topic", topic.to_string())];
        self.call(&Command::request(
            code::DELETE_TOPIC_IN_BROKER,
            &fields,
            Vec::new(),
        ))
        .map(drop)
    }

    pub fn create_group(&mut self, group: &str) -> Answer<()> {
        let body = json!({
            "groupName": group, "consumeEnable": true, "consumeFromMinEnable": true, "consumeBroadcastEnable": true,
            "retryQueueNums": 1, "retryMaxTimes": 16, "brokerId": 0, "whichBrokerWhenConsumeSlowly": 1,
            "notifyConsumerIdsChangedEnable": true,
        });
        self.call(&Command::request(
            code::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP,
            &[],
            body.to_string().into_bytes(),
        ))
        .map(drop)
    }

    /// The route of a topic, from the name server.
    pub fn route(&mut self, topic: &str) -> Answer<Value> {
        let fields = [
            ("topic", topic.to_string()),
            ("acceptStandardJsonOnly", "true".to_string()),
        ];
        let answer = self.call(&Command::request(
            code::GET_ROUTEINFO_BY_TOPIC,
            &fields,
            Vec::new(),
        ))?;
        serde_json::from_slice(&answer.body).map_err(|error| Failure::Protocol(error.to_string()))
    }

    fn queue_number(
        &mut self,
        code: i32,
        topic: &str,
        queue_id: i32,
        more: &[(&str, String)],
        field: &str,
    ) -> Answer<i64> {
        let mut fields = vec![
            ("topic", topic.to_string()),
            ("queueId", queue_id.to_string()),
        ];
        fields.extend_from_slice(more);
        number(
            &self.call(&Command::request(code, &fields, Vec::new()))?,
            field,
        )
    }

    pub fn max_offset(&mut self, topic: &str, queue_id: i32) -> Answer<i64> {
        self.queue_number(code::GET_MAX_OFFSET, topic, queue_id, &[], "offset")
    }

    pub fn min_offset(&mut self, topic: &str, queue_id: i32) -> Answer<i64> {
        self.queue_number(code::GET_MIN_OFFSET, topic, queue_id, &[], "offset")
    }

    pub fn earliest_store_time(&mut self, topic: &str, queue_id: i32) -> Answer<i64> {
        let code = code::GET_EARLIEST_MSG_STORETIME;
        self.queue_number(code, topic, queue_id, &[], "timestamp")
    }

    pub fn search_offset(
        &mut self,
        topic: &str,
        queue_id: i32,
        timestamp_ms: i64,
        boundary: &str,
    ) -> Answer<i64> {
        let more = [
            ("timestamp", timestamp_ms.to_string()),
            ("boundaryType", boundary.to_string()),
        ];
        let code = code::SEARCH_OFFSET_BY_TIMESTAMP;
        self.queue_number(code, topic, queue_id, &more, "offset")
    }

    pub fn commit_offset(
        &mut self,
        group: &str,
        topic: &str,
        queue_id: i32,
        offset: i64,
    ) -> Answer<()> {
        self.call(&commit_offset(group, topic, queue_id, offset))
            .map(drop)
    }

    /// The stored consumer offset, `None` if there is none.
    pub fn consumer_offset(
        &mut self,
        group: &str,
        topic: &str,
        queue_id: i32,
    ) -> Answer<Option<i64>> {
        let more = [
            ("consumerGroup", group.to_string()),
            ("setZeroIfNotFound", "false".to_string()),
        ];
        let code = code::QUERY_CONSUMER_OFFSET;
        match self.queue_number(code, topic, queue_id, &more, "offset") {
            Ok(offset) => Ok(Some(offset)),
            Err(failure) if failure.code() == Some(answer::QUERY_NOT_FOUND) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// A push consumer's heartbeat with one subscription to all of a topic.
    pub fn heartbeat(&mut self, client_id: &str, group: &str, topic: &str) -> Answer<Command> {
        let body = json!({
            "clientID": client_id,
            "consumerDataSet": [{
                "consumeFromWhere": "CONSUME_FROM_FIRST_OFFSET", "consumeType": "CONSUME_PASSIVELY",
                "groupName": group, "messageModel": "CLUSTERING", "unitMode": false,
                "subscriptionDataSet": [{
                    "classFilterMode": false, "codeSet": [], "expressionType": "TAG", "subString": "*",
                    "subVersion": now_ms(), "tagsSet": [], "topic": topic,
                }],
            }],
            "heartbeatFingerprint": 0, "producerDataSet": [{"groupName": "blackbox-producer"}], "withoutSub": false,
        });
        self.call(&Command::request(
            code::HEART_BEAT,
            &[],
            body.to_string().into_bytes(),
        ))
    }

    /// Of a client that only produces.
    pub fn producer_heartbeat(&mut self, client_id: &str, group: &str) -> Answer<Command> {
        let body = json!({
            "clientID": client_id, "heartbeatFingerprint": 0, "withoutSub": false,
            "producerDataSet": [{ "groupName": group }], "consumerDataSet": [],
        });
        let body = body.to_string().into_bytes();
        self.call(&Command::request(code::HEART_BEAT, &[], body))
    }

    pub fn unregister(&mut self, client_id: &str, group: &str) -> Answer<()> {
        let fields = [
            ("clientID", client_id.to_string()),
            ("consumerGroup", group.to_string()),
        ];
        self.call(&Command::request(
            code::UNREGISTER_CLIENT,
            &fields,
            Vec::new(),
        ))
        .map(drop)
    }

    /// Client ids of a consumer group.
    pub fn consumers(&mut self, group: &str) -> Answer<Vec<String>> {
        let fields = [("consumerGroup", group.to_string())];
        let answer = self.call(&Command::request(
            code::GET_CONSUMER_LIST_BY_GROUP,
            &fields,
            Vec::new(),
        ))?;
        let body: Value = serde_json::from_slice(&answer.body)
            .map_err(|error| Failure::Protocol(error.to_string()))?;
        Ok(body["consumerIdList"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|id| id.as_str().map(str::to_string))
            .collect())
    }

    /// Tries to lock queues for an orderly consumer; the answer has the queue ids that it now holds.
    pub fn lock(
        &mut self,
        client_id: &str,
        group: &str,
        broker_name: &str,
        topic: &str,
        queue_ids: &[i32],
    ) -> Answer<Vec<i64>> {
        let body = lock_body(client_id, group, broker_name, topic, queue_ids);
        let answer = self.call(&Command::request(code::LOCK_BATCH_MQ, &[], body))?;
        let body: Value = serde_json::from_slice(&answer.body)
            .map_err(|error| Failure::Protocol(error.to_string()))?;
        let mut held: Vec<i64> = body["lockOKMQSet"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|queue| queue["queueId"].as_i64())
            .collect();
        held.sort_unstable();
        Ok(held)
    }

    pub fn unlock(
        &mut self,
        client_id: &str,
        group: &str,
        broker_name: &str,
        topic: &str,
        queue_ids: &[i32],
    ) -> Answer<()> {
        let body = lock_body(client_id, group, broker_name, topic, queue_ids);
        self.call(&Command::request(code::UNLOCK_BATCH_MQ, &[], body))
            .map(drop)
    }
}

pub fn create_topic(topic: &str, queues: u32) -> Command {
    let fields = [
        ("topic", topic.to_string()),
        ("defaultTopic", "TBW102".to_string()),
        ("readQueueNums", queues.to_string()),
        ("writeQueueNums", queues.to_string()),
        ("perm", "6".to_string()),
        ("topicFilterType", "SINGLE_TAG".to_string()),
        ("topicSysFlag", "0".to_string()),
        ("order", "false".to_string()),
    ];
    Command::request(code::UPDATE_AND_CREATE_TOPIC, &fields, Vec::new())
}

pub fn commit_offset(group: &str, topic: &str, queue_id: i32, offset: i64) -> Command {
    let fields = [
        ("consumerGroup", group.to_string()),
        ("topic", topic.to_string()),
        ("queueId", queue_id.to_string()),
        ("commitOffset", offset.to_string()),
    ];
    Command::request(code::UPDATE_CONSUMER_OFFSET, &fields, Vec::new())
}

fn lock_body(
    client_id: &str,
    group: &str,
    broker_name: &str,
    topic: &str,
    queue_ids: &[i32],
) -> Vec<u8> {
    let queues: Vec<Value> = queue_ids
        .iter()
        .map(|id| json!({"brokerName": broker_name, "queueId": id, "topic": topic}))
        .collect();
    json!({"clientId": client_id, "consumerGroup": group, "mqSet": queues, "onlyThisBroker": false})
        .to_string()
        .into_bytes()
}

/// Any code except 0 becomes a failure.
pub fn accept(answer: Command) -> Answer<Command> {
    if answer.code == answer::SUCCESS {
        Ok(answer)
    } else {
        Err(Failure::Refused {
            code: answer.code,
            remark: answer.remark,
        })
    }
}

/// Reads the answer to a send of any kind.
pub fn sent(answer: Command) -> Answer<Sent> {
    let answer = accept(answer)?;
    Ok(Sent {
        queue_id: number(&answer, "queueId")? as i32,
        queue_offset: number(&answer, "queueOffset")?,
        msg_id: field(&answer, "msgId")?.to_string(),
    })
}

/// Reads the answer to a pull. The records are decoded and their CRCs checked.
pub fn pulled(answer: Command) -> Answer<Pulled> {
    let is_answer = matches!(
        answer.code,
        answer::SUCCESS
            | answer::PULL_NOT_FOUND
            | answer::PULL_RETRY_IMMEDIATELY
            | answer::PULL_OFFSET_MOVED
    );
    if !is_answer {
        accept(answer)?;
        unreachable!("code 0 is an answer");
    }
    field(&answer, "suggestWhichBrokerId")?; // the Java client fails without it
    Ok(Pulled {
        code: answer.code,
        next_offset: number(&answer, "nextBeginOffset")?,
        min_offset: number(&answer, "minOffset")?,
        max_offset: number(&answer, "maxOffset")?,
        records: record::decode_all(&answer.body).map_err(Failure::Protocol)?,
    })
}

fn field<'a>(answer: &'a Command, name: &str) -> Answer<&'a str> {
    match answer.fields.get(name) {
        Some(value) => Ok(value),
        None => Err(Failure::Protocol(format!(
            "the answer has no '{name}': {answer:?}"
        ))),
    }
}

fn number(answer: &Command, name: &str) -> Answer<i64> {
    let value = field(answer, name)?;
    value
        .parse()
        .map_err(|_| Failure::Protocol(format!("'{name}' is '{value}'")))
}

pub fn now_ms() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_millis() as i64
}
