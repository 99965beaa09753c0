//! Frames of sends, made once by the broker's codec and then only patched: opaque, born timestamp, unique key, stamp.
//!
//! A load generator must not spend its core on formatting. Every field that changes has a fixed width: `opaque` starts at
//! [`OPAQUE_FIRST`] and so always has ten digits, the born timestamp has thirteen, a unique key sixteen hexadecimal ones
//! behind a prefix. Source of the fields: `SendMessageRequestHeaderV2`, `MessageDecoder.encodeMessage`.

use bytes::{BufMut, BytesMut};
use ringmq::wire::properties::{PropertiesBuilder, name};
use ringmq::wire::remoting::code::request;
use ringmq::wire::remoting::command::{Encoding, Outgoing};

use crate::payload::{STAMP_BYTES, Stamp};

/// The first opaque: all that follow have as many digits.
pub const OPAQUE_FIRST: i32 = 1_000_000_000;
/// Stands in a template where the opaque goes.
const OPAQUE_MARK: i32 = 1_987_654_321;
/// Stands in a template where the milliseconds go.
const BORN_MARK: i64 = 1_765_432_198_765;
/// Digits of a unique key that change.
pub(crate) const KEY_DIGITS: usize = 16;
/// Stands in a template where these digits go.
pub(crate) const KEY_MARK: &str = "FEDCBA9876543210";
/// Total size, magic, CRC, flag, body length before the body of one message of a batch.
const BATCH_ITEM_HEAD_BYTES: usize = 5 * 4;

/// What all sends of a run have in common.
#[derive(Clone, Debug)]
pub struct SendShape {
    pub encoding: Encoding,
    pub producer_group: String,
    /// Messages of a request; more than one is SEND_BATCH_MESSAGE.
    pub batch: usize,
    /// Sixteen hexadecimal digits, different for each producer of a run.
    pub key_prefix: String,
    pub properties: Vec<(String, String)>,
    /// [`ringmq::wire::record::SYS_FLAG_TRANSACTION_PREPARED`] for half messages.
    pub sys_flag: i32,
}

/// The header of sends to one queue.
pub struct SendHeader {
    bytes: Vec<u8>,
    opaque_at: usize,
    opaque_is_text: bool,
    born_at: usize,
    key_at: usize,
}

/// The body of all sends of a producer.
pub struct SendBody {
    bytes: Vec<u8>,
    /// Where each message has its stamp; empty if the messages are too small for one.
    stamps_at: Vec<usize>,
    /// Where each message of a batch has its key; empty for single sends.
    keys_at: Vec<usize>,
}

/// What differs from one send to the next.
#[derive(Clone, Copy, Debug)]
pub struct SendNumbers {
    pub opaque: i32,
    pub born_ms: i64,
    /// Number of the first message's unique key.
    pub key: u64,
    /// Of the first message; the others of a batch have the sequences that follow.
    pub stamp: Stamp,
}

pub(crate) fn properties(shape: &SendShape) -> Vec<u8> {
    let mut builder = PropertiesBuilder::new();
    for (name, value) in &shape.properties {
        builder.append(name, value);
    }
    builder
        .append(name::UNIQUE_KEY, &format!("{}{KEY_MARK}", shape.key_prefix))
        .append(name::WAIT, "true");
    builder.as_bytes().to_vec()
}

/// Where `mark` is, which must be there exactly once.
pub(crate) fn only(bytes: &[u8], mark: &[u8]) -> usize {
    let mut found = bytes
        .windows(mark.len())
        .enumerate()
        .filter(|(_, window)| *window == mark);
    let at = found.next().map(|(at, _)| at);
    assert!(found.next().is_none(), "a mark of a template is unique");
    at.unwrap_or_else(|| panic!("a template has all its marks"))
}

impl SendBody {
    /// A body of messages of `size` bytes each.
    pub fn new(shape: &SendShape, message: &[u8]) -> Self {
        if shape.batch == 1 {
            return Self {
                bytes: message.to_vec(),
                stamps_at: if message.len() < STAMP_BYTES {
                    Vec::new()
                } else {
                    vec![0]
                },
                keys_at: Vec::new(),
            };
        }
        let properties = properties(shape);
        let item_bytes = BATCH_ITEM_HEAD_BYTES + message.len() + 2 + properties.len();
        let mut bytes = BytesMut::with_capacity(shape.batch * item_bytes);
        for _ in 0..shape.batch {
            bytes.put_u32(item_bytes as u32);
            bytes.put_bytes(0, 3 * 4);
            bytes.put_u32(message.len() as u32);
            bytes.put_slice(message);
            bytes.put_u16(properties.len() as u16);
            bytes.put_slice(&properties);
        }
        let key_at = only(&properties, KEY_MARK.as_bytes());
        let starts = (0..shape.batch).map(|index| index * item_bytes + BATCH_ITEM_HEAD_BYTES);
        Self {
            stamps_at: if message.len() < STAMP_BYTES {
                Vec::new()
            } else {
                starts.clone().collect()
            },
            keys_at: starts
                .map(|start| start + message.len() + 2 + key_at)
                .collect(),
            bytes: bytes.to_vec(),
        }
    }

    /// Bytes of the body of one request.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Never: a batch has a message.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

impl SendHeader {
    /// The header of sends to a queue, for bodies of `body_bytes`.
    pub fn new(
        shape: &SendShape,
        topic: &str,
        broker_name: &str,
        queue_id: u32,
        body_bytes: usize,
    ) -> Self {
        let code = if shape.batch > 1 {
            request::SEND_BATCH_MESSAGE
        } else {
            request::SEND_MESSAGE_V2
        };
        let properties = String::from_utf8_lossy(&properties(shape)).into_owned();
        let mut send = Outgoing::request(code)
            .field("a", shape.producer_group.clone())
            .field("b", topic.to_owned())
            .field("c", "TBW102")
            .field("d", 4)
            .field("e", queue_id)
            .field("f", shape.sys_flag)
            .field("g", BORN_MARK)
            .field("h", 0)
            .field("i", properties)
            .field("j", 0)
            .field("k", false)
            .field("m", shape.batch > 1)
            .field("n", broker_name.to_owned());
        send.opaque = OPAQUE_MARK;
        let mut bytes = BytesMut::new();
        send.encode(shape.encoding, body_bytes, &mut bytes);
        let opaque_is_text = shape.encoding == Encoding::Json;
        let opaque_at = if opaque_is_text {
            only(&bytes, OPAQUE_MARK.to_string().as_bytes())
        } else {
            only(&bytes, &OPAQUE_MARK.to_be_bytes())
        };
        Self {
            opaque_at,
            opaque_is_text,
            born_at: only(&bytes, BORN_MARK.to_string().as_bytes()),
            key_at: only(&bytes, KEY_MARK.as_bytes()),
            bytes: bytes.to_vec(),
        }
    }

    /// Appends the frame of one send.
    pub fn append(&self, body: &SendBody, numbers: &SendNumbers, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&self.bytes);
        let header = &mut out[start..];
        if self.opaque_is_text {
            put_decimal(
                numbers.opaque as u64,
                &mut header[self.opaque_at..self.opaque_at + 10],
            );
        } else {
            header[self.opaque_at..self.opaque_at + 4]
                .copy_from_slice(&numbers.opaque.to_be_bytes());
        }
        put_decimal(
            numbers.born_ms as u64,
            &mut header[self.born_at..self.born_at + 13],
        );
        put_hex(
            numbers.key,
            &mut header[self.key_at..self.key_at + KEY_DIGITS],
        );
        let start = out.len();
        out.extend_from_slice(&body.bytes);
        let bytes = &mut out[start..];
        for (index, &at) in body.stamps_at.iter().enumerate() {
            let mut stamp = numbers.stamp;
            stamp.sequence += index as u64;
            stamp.write(&mut bytes[at..]);
        }
        for (index, &at) in body.keys_at.iter().enumerate() {
            put_hex(numbers.key + index as u64, &mut bytes[at..at + KEY_DIGITS]);
        }
    }
}

/// Fills `out` with the last digits of a number.
fn put_decimal(mut number: u64, out: &mut [u8]) {
    for digit in out.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

pub(crate) fn put_hex(number: u64, out: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for (index, digit) in out.iter_mut().enumerate() {
        *digit = DIGITS[(number >> (4 * (KEY_DIGITS - 1 - index))) as usize & 15];
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use ringmq::wire::batch;
    use ringmq::wire::properties;
    use ringmq::wire::remoting::frame::next_frame;

    use super::*;
    use crate::payload::filler;

    proptest! {
        /// The broker's own decoder reads what was patched, and nothing else has changed.
        #[test]
        fn a_patched_frame_says_what_was_patched(
            is_json: bool,
            batch_size in 1usize..5,
            size in 0usize..200,
            opaque in OPAQUE_FIRST..i32::MAX,
            born_ms in 1_000_000_000_000i64..9_999_999_999_999,
            key in 0u64..u64::MAX - 10,
            queue_id in 0u32..5000,
        ) {
            let shape = SendShape {
                encoding: if is_json { Encoding::Json } else { Encoding::Binary },
                producer_group: "G".into(),
                batch: batch_size,
                key_prefix: "00112233445566AA".into(),
                properties: vec![("TAGS".into(), "a".into())],
                sys_flag: 0,
            };
            let message = filler(size);
            let body = SendBody::new(&shape, &message);
            let header = SendHeader::new(&shape, "Topic", "b", queue_id, body.len());
            let stamp = Stamp { producer: 7, run: 8, sequence: 100, due_ns: 9 };
            let mut wire = Vec::new();
            // Twice, since the first frame must not change the template.
            for _ in 0..2 {
                header.append(&body, &SendNumbers { opaque, born_ms, key, stamp }, &mut wire);
            }
            let mut buffer = BytesMut::from(&wire[..]);
            for _ in 0..2 {
                let command = next_frame(&mut buffer).unwrap().unwrap();
                prop_assert_eq!(command.opaque, opaque);
                prop_assert_eq!(command.required_int("g"), Ok(born_ms));
                prop_assert_eq!(command.required_int("e"), Ok(i64::from(queue_id)));
                prop_assert_eq!(command.text("b").unwrap(), "Topic");
                prop_assert_eq!(command.flag("m"), batch_size > 1);
                let of = |at: usize| format!("00112233445566AA{:016X}", key + at as u64);
                let text = command.text("i").unwrap().into_owned();
                prop_assert_eq!(properties::get(text.as_bytes(), "UNIQ_KEY"), Some(&of(0)[..]));
                let bodies: Vec<_> = if batch_size == 1 {
                    vec![command.body.clone()]
                } else {
                    let items = batch::decode(&command.body).unwrap();
                    for (at, item) in items.iter().enumerate() {
                        prop_assert_eq!(properties::get(&item.properties, "UNIQ_KEY"), Some(&of(at)[..]));
                        prop_assert_eq!(properties::get(&item.properties, "TAGS"), Some("a"));
                    }
                    items.into_iter().map(|item| item.body).collect()
                };
                prop_assert_eq!(bodies.len(), batch_size);
                for (at, one) in bodies.iter().enumerate() {
                    if size < STAMP_BYTES {
                        prop_assert_eq!(&one[..], &message[..]);
                    } else {
                        let expected = Stamp { sequence: 100 + at as u64, ..stamp };
                        prop_assert_eq!(Stamp::read(one), Some(expected));
                        prop_assert_eq!(&one[STAMP_BYTES..], &message[STAMP_BYTES..]);
                    }
                }
            }
            prop_assert!(buffer.is_empty());
        }
    }
}
