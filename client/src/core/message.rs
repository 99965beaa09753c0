//! Messages: what a producer sends, and what a consumer gets.

use std::net::SocketAddr;

use bytes::Bytes;
use ringmq_wire_native::properties::{self, PropertiesBuilder, name};
use ringmq_wire_native::record::{PROPERTIES_BYTES_MAX, RecordError, RecordFields, RecordView};

/// A message to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Topic that it goes to.
    pub topic: String,
    /// What it says; not empty.
    pub body: Bytes,
    /// The queue, if it matters. Without one the producer takes the queue of `order_key`, or the queues in turns.
    pub queue_id: Option<u32>,
    /// Messages with the same key go to the same queue, as long as the topic keeps its number of queues.
    pub order_key: Option<String>,
    /// A number for the application.
    pub flag: i32,
    properties: PropertiesBuilder,
    unique_id: Option<String>,
}

/// Why a message cannot be sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// A message says something.
    #[error("the body is empty")]
    EmptyBody,
    /// The broker's limit.
    #[error("the body has {bytes} bytes, the broker takes {limit_bytes}")]
    Body {
        /// Of the body.
        bytes: usize,
        /// The broker's maxMessageSize.
        limit_bytes: usize,
    },
    /// The limit of the stored record.
    #[error("the properties have {bytes} bytes, the limit is {PROPERTIES_BYTES_MAX}")]
    Properties {
        /// Of all names and values with their separators.
        bytes: usize,
    },
    /// The limit of topic names.
    #[error("the topic has {bytes} bytes, the limit is 255")]
    Topic {
        /// Of the name.
        bytes: usize,
    },
}

impl Message {
    /// A message for a topic.
    pub fn new(topic: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self {
            topic: topic.into(),
            body: body.into(),
            queue_id: None,
            order_key: None,
            flag: 0,
            properties: PropertiesBuilder::new(),
            unique_id: None,
        }
    }

    /// Sets the tag, by which consumers filter.
    pub fn tag(self, tag: &str) -> Self {
        self.property(name::TAGS, tag)
    }

    /// Sets the keys, by which messages are found; several with spaces between them.
    pub fn keys(self, keys: &str) -> Self {
        self.property(name::KEYS, keys)
    }

    /// Sets a property of the application. The bytes 1 and 2 are left out of name and value: they separate properties.
    pub fn property(mut self, name: &str, value: &str) -> Self {
        self.properties.set(name, value);
        self
    }

    /// Chooses the queue.
    pub fn queue(mut self, queue_id: u32) -> Self {
        self.queue_id = Some(queue_id);
        self
    }

    /// Keeps the order among messages with the same key.
    pub fn order_key(mut self, key: impl Into<String>) -> Self {
        self.order_key = Some(key.into());
        self
    }

    /// Sets the unique id instead of having one made. Whoever sends a message again with the same id lets consumers see that
    /// it is the same.
    pub fn unique_id(mut self, id: impl Into<String>) -> Self {
        self.unique_id = Some(id.into());
        self
    }

    /// The record of this message, with room for what the broker fills in, behind `out`; and its unique id.
    pub fn encode(
        &self,
        queue_id: u32,
        born_timestamp_ms: i64,
        (born_host, store_host): (SocketAddr, SocketAddr),
        body_bytes_max: usize,
        out: &mut Vec<u8>,
    ) -> Result<String, MessageError> {
        if self.body.is_empty() {
            return Err(MessageError::EmptyBody);
        }
        if self.body.len() > body_bytes_max {
            return Err(MessageError::Body {
                bytes: self.body.len(),
                limit_bytes: body_bytes_max,
            });
        }
        if self.topic.len() > 255 {
            return Err(MessageError::Topic {
                bytes: self.topic.len(),
            });
        }
        let unique_id = self.unique_id.clone().unwrap_or_else(new_unique_id);
        let mut properties = self.properties.clone();
        if let Some(key) = &self.order_key {
            properties.set(name::SHARDING_KEY, key);
        }
        properties.set(name::UNIQUE_KEY, &unique_id);
        let properties = properties.finish();
        if properties.len() > PROPERTIES_BYTES_MAX {
            return Err(MessageError::Properties {
                bytes: properties.len(),
            });
        }
        let record = RecordFields {
            topic: &self.topic,
            body: &self.body,
            properties: &properties,
            queue_id: queue_id as i32,
            flag: self.flag,
            queue_offset: 0,
            physical_offset: 0,
            sys_flag: 0,
            born_timestamp: born_timestamp_ms,
            born_host,
            store_timestamp: 0,
            store_host,
            reconsume_times: 0,
            prepared_transaction_offset: 0,
        };
        let at = out.len();
        out.resize(at + record.encoded_len(), 0);
        record.encode_into(&mut out[at..]);
        Ok(unique_id)
    }
}

/// 32 hexadecimal digits, as long as RocketMQ's unique ids are. Random: two are the same once in many lifetimes.
fn new_unique_id() -> String {
    format!("{:032X}", fastrand::u128(..))
}

/// A stored message, as a consumer gets it. Cheap to clone: it is a slice of what was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    record: Bytes,
    topic: (u32, u32),
    body: (u32, u32),
    properties_at: u32,
}

impl Received {
    /// Takes the first record out of `records`, whose lengths are checked, and its CRC if that is wanted.
    pub fn take(records: &mut Bytes, check_crc: bool) -> Result<Self, RecordError> {
        let view = RecordView::parse(records)?;
        if check_crc {
            view.check_body()?;
        }
        let body = view.body_range();
        let topic_end = view.properties_at() - 2;
        let topic_at = topic_end - view.topic().len();
        let (bytes, properties_at) = (view.total_bytes(), view.properties_at() as u32);
        Ok(Self {
            record: records.split_to(bytes),
            topic: (topic_at as u32, topic_end as u32),
            body: (body.start as u32, body.end as u32),
            properties_at,
        })
    }

    /// Topic of the message.
    pub fn topic(&self) -> &str {
        let bytes = &self.record[self.topic.0 as usize..self.topic.1 as usize];
        std::str::from_utf8(bytes).unwrap_or_default() // it was looked at when the record was taken
    }

    /// What it says.
    pub fn body(&self) -> Bytes {
        self.record
            .slice(self.body.0 as usize..self.body.1 as usize)
    }

    /// The queue that it is in.
    pub fn queue_id(&self) -> u32 {
        self.int(12)
    }

    /// Its place in the queue.
    pub fn queue_offset(&self) -> i64 {
        self.long(20)
    }

    /// Its place in the broker's logs.
    pub fn physical_offset(&self) -> i64 {
        self.long(28)
    }

    /// The application's number.
    pub fn flag(&self) -> i32 {
        self.int(16) as i32
    }

    /// When it was made, milliseconds since 1970 by its producer's clock.
    pub fn born_timestamp_ms(&self) -> i64 {
        self.long(40)
    }

    /// When it was stored, milliseconds since 1970 by the broker's clock.
    pub fn store_timestamp_ms(&self) -> i64 {
        self.view(|record| record.store_timestamp())
    }

    /// Where it came from.
    pub fn born_host(&self) -> Option<SocketAddr> {
        self.view(|record| Some(record.born_host()))
    }

    /// A property, if it is there.
    pub fn property(&self, name: &str) -> Option<&str> {
        properties::get(self.properties(), name)
    }

    /// The tag, if it has one.
    pub fn tag(&self) -> Option<&str> {
        self.property(name::TAGS)
    }

    /// The keys, separated by spaces.
    pub fn keys(&self) -> Option<&str> {
        self.property(name::KEYS)
    }

    /// The unique id, by which a message that was sent twice is known.
    pub fn unique_id(&self) -> Option<&str> {
        self.property(name::UNIQUE_KEY)
    }

    /// All properties, as they are stored.
    pub fn properties(&self) -> &[u8] {
        &self.record[self.properties_at as usize..]
    }

    /// The whole record, byte for byte as it is stored.
    pub fn record(&self) -> &Bytes {
        &self.record
    }

    fn int(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.record[at..at + 4]);
        u32::from_be_bytes(bytes)
    }

    fn long(&self, at: usize) -> i64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.record[at..at + 8]);
        i64::from_be_bytes(bytes)
    }

    fn view<T: Default>(&self, read: impl FnOnce(RecordView<'_>) -> T) -> T {
        RecordView::parse(&self.record)
            .map(read)
            .unwrap_or_default()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn hosts() -> (SocketAddr, SocketAddr) {
        (
            "127.0.0.1:1".parse().unwrap(),
            "[::1]:10911".parse().unwrap(),
        )
    }

    #[test]
    fn what_is_sent_can_be_read_from_the_record() {
        let mut out = vec![7; 3];
        let message = Message::new("T", "hello")
            .tag("red")
            .keys("a b")
            .property("p", "v")
            .order_key("o");
        let id = message.encode(3, 44, hosts(), 100, &mut out).unwrap();
        let mut records = Bytes::from(out).split_off(3);
        let received = Received::take(&mut records, true).unwrap();
        assert!(records.is_empty());
        assert_eq!(
            (received.topic(), &received.body()[..]),
            ("T", &b"hello"[..])
        );
        assert_eq!((received.queue_id(), received.born_timestamp_ms()), (3, 44));
        assert_eq!(
            (received.tag(), received.keys()),
            (Some("red"), Some("a b"))
        );
        assert_eq!(received.property("p"), Some("v"));
        assert_eq!(received.property("__SHARDINGKEY"), Some("o"));
        assert_eq!(received.unique_id(), Some(&id[..]));
        assert_eq!(received.born_host(), Some(hosts().0));
        assert_eq!(id.len(), 32);
    }

    #[test]
    fn what_cannot_be_stored_is_refused_before_it_leaves() {
        let encode = |message: Message| message.encode(0, 0, hosts(), 10, &mut Vec::new());
        assert_eq!(encode(Message::new("T", "")), Err(MessageError::EmptyBody));
        assert!(matches!(
            encode(Message::new("T", vec![1; 11])),
            Err(MessageError::Body { bytes: 11, .. })
        ));
        assert!(matches!(
            encode(Message::new("T", "x").property("p", &"v".repeat(40_000))),
            Err(MessageError::Properties { .. })
        ));
        assert!(matches!(
            encode(Message::new("t".repeat(256), "x")),
            Err(MessageError::Topic { bytes: 256 })
        ));
    }
}
