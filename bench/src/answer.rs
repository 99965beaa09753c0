//! Answers of a broker, decoded where they lie in the receive buffer: nothing is copied but a remark.
//!
//! Written apart from the broker's own decoder, so that a fault in that one is seen here. Every length is checked before
//! it is used. A header has the fields that answers to sends and pulls have; others are skipped.

use std::ops::Range;

use ringmq::wire::native::frame::{MAGIC, PREFIX_BYTES as NATIVE_PREFIX_BYTES, padded};
use ringmq::wire::native::message::{Envelope, Message};
use serde::Deserialize;

use crate::plan::Protocol;

/// The longest frame that is believed.
pub const FRAME_BYTES_MAX: usize = 16 << 20;
const PREFIX_BYTES: usize = 8;
const FLAG_RESPONSE: i32 = 1;

/// Bytes that are no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    #[error("a frame says that {bytes} bytes follow; allowed are 4 to {FRAME_BYTES_MAX}")]
    Length { bytes: u32 },
    #[error("the header has {header_bytes} bytes, its frame {frame_bytes}")]
    HeaderLength {
        header_bytes: usize,
        frame_bytes: usize,
    },
    #[error("the header has encoding {encoding}; known are 0 (JSON) and 1 (ROCKETMQ)")]
    Encoding { encoding: u8 },
    #[error("the header is broken: {0}")]
    Header(String),
}

/// Fields of a header that somebody here reads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Fields<'a> {
    pub msg_id: Option<&'a str>,
    pub transaction_id: Option<&'a str>,
    pub queue_id: Option<&'a str>,
    pub queue_offset: Option<&'a str>,
    pub next_begin_offset: Option<&'a str>,
    pub min_offset: Option<&'a str>,
    pub max_offset: Option<&'a str>,
}

/// Numbers that a native answer carries as numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Produced {
    /// Of the first message.
    pub queue_offset: i64,
}

/// Records of one queue in the answer to a native fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched<'a> {
    pub handle: u32,
    pub code: i32,
    pub remark: String,
    pub next_offset: i64,
    pub records: &'a [u8],
}

/// One answer, or a question of the broker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer<'a> {
    pub code: i32,
    pub opaque: i32,
    pub flag: i32,
    pub remark: Option<String>,
    pub fields: Fields<'a>,
    pub body: &'a [u8],
    /// Of a native produce.
    pub produced: Option<Produced>,
    /// Of a native fetch.
    pub fetched: Vec<Fetched<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonHeader<'a> {
    code: i32,
    #[serde(default)]
    flag: i32,
    opaque: i32,
    #[serde(default)]
    remark: Option<String>,
    #[serde(borrow, default)]
    ext_fields: Option<Fields<'a>>,
}

/// The number in a field that has to be there.
pub fn number(name: &str, text: Option<&str>) -> Result<i64, String> {
    let text = text.ok_or_else(|| format!("the answer lacks {name}"))?;
    text.parse()
        .map_err(|_| format!("{name} of the answer is '{text}', which is no number"))
}

/// Where the first frame of `buffer` ends; none if more has to be read first.
pub fn frame_bytes(buffer: &[u8]) -> Result<Option<usize>, AnswerError> {
    let Some(prefix) = buffer.first_chunk::<4>() else {
        return Ok(None);
    };
    let bytes = u32::from_be_bytes(*prefix);
    if !(4..=FRAME_BYTES_MAX).contains(&(bytes as usize)) {
        return Err(AnswerError::Length { bytes });
    }
    Ok(Some(4 + bytes as usize))
}

impl<'a> Answer<'a> {
    /// Decodes one whole frame.
    pub fn decode(frame: &'a [u8]) -> Result<Self, AnswerError> {
        let Some(mark) = frame.get(4..PREFIX_BYTES) else {
            return Err(AnswerError::Header(
                "the frame has no header mark".to_owned(),
            ));
        };
        let header_bytes =
            usize::from(mark[1]) << 16 | usize::from(mark[2]) << 8 | usize::from(mark[3]);
        let Some((header, body)) = frame[PREFIX_BYTES..].split_at_checked(header_bytes) else {
            return Err(AnswerError::HeaderLength {
                header_bytes,
                frame_bytes: frame.len(),
            });
        };
        match mark[0] {
            0 => {
                let header: JsonHeader = serde_json::from_slice(header)
                    .map_err(|error| AnswerError::Header(error.to_string()))?;
                Ok(Self {
                    code: header.code,
                    opaque: header.opaque,
                    flag: header.flag,
                    remark: header.remark,
                    fields: header.ext_fields.unwrap_or_default(),
                    body,
                    ..Self::default()
                })
            }
            1 => {
                let mut answer = binary(header).ok_or_else(|| {
                    AnswerError::Header("a length points behind the end".to_owned())
                })?;
                answer.body = body;
                Ok(answer)
            }
            encoding => Err(AnswerError::Encoding { encoding }),
        }
    }

    /// Decodes one whole frame of the native protocol.
    pub fn decode_native(frame: &'a [u8]) -> Result<Self, AnswerError> {
        let broken = |error: String| AnswerError::Header(error);
        let (header, payload) = native_parts(frame)?;
        let envelope = Envelope::read(header).map_err(|error| broken(error.to_string()))?;
        let mut answer = Self {
            opaque: i32::try_from(envelope.id).unwrap_or(-1),
            flag: FLAG_RESPONSE,
            ..Self::default()
        };
        match envelope.message {
            Message::ProduceReply(results) => {
                let [result] = &results[..] else {
                    return Err(broken(format!("{} results for one queue", results.len())));
                };
                answer.code = result.code;
                answer.remark = (!result.remark.is_empty()).then(|| result.remark.to_owned());
                answer.produced = Some(Produced {
                    queue_offset: result.queue_offset,
                });
            }
            Message::FetchReply(reply) => {
                let mut rest = payload;
                for queue in reply.queues {
                    let bytes = queue.bytes as usize;
                    if bytes > rest.len() {
                        return Err(broken(format!(
                            "{bytes} bytes of records in {}",
                            rest.len()
                        )));
                    }
                    answer.fetched.push(Fetched {
                        handle: queue.handle,
                        code: queue.code,
                        remark: queue.remark.to_owned(),
                        next_offset: queue.next_offset,
                        records: &rest[..bytes],
                    });
                    rest = &rest[padded(bytes).min(rest.len())..];
                }
            }
            Message::Error { code, remark } => {
                answer.code = code;
                answer.remark = Some(remark.to_owned());
            }
            other => return Err(broken(format!("it says {other:?}"))),
        }
        Ok(answer)
    }

    /// Whether this answers a request.
    pub fn is_response(&self) -> bool {
        self.flag & FLAG_RESPONSE != 0
    }
}

/// code i16, language u8, version i16, opaque i32, flag i32, remark, fields (`RocketMQSerializable`).
fn binary(header: &[u8]) -> Option<Answer<'_>> {
    let mut rest = header;
    let code = i16::from_be_bytes(*take(&mut rest, 2)?.first_chunk()?);
    take(&mut rest, 1 + 2)?;
    let opaque = i32::from_be_bytes(*take(&mut rest, 4)?.first_chunk()?);
    let flag = i32::from_be_bytes(*take(&mut rest, 4)?.first_chunk()?);
    let remark = counted(&mut rest, 4)?;
    let mut map = counted(&mut rest, 4)?;
    let mut fields = Fields::default();
    while !map.is_empty() {
        let name = counted(&mut map, 2)?;
        let value = std::str::from_utf8(counted(&mut map, 4)?).ok();
        match name {
            b"msgId" => fields.msg_id = value,
            b"transactionId" => fields.transaction_id = value,
            b"queueId" => fields.queue_id = value,
            b"queueOffset" => fields.queue_offset = value,
            b"nextBeginOffset" => fields.next_begin_offset = value,
            b"minOffset" => fields.min_offset = value,
            b"maxOffset" => fields.max_offset = value,
            _ => {}
        }
    }
    Some(Answer {
        code: code.into(),
        opaque,
        flag,
        remark: (!remark.is_empty()).then(|| String::from_utf8_lossy(remark).into_owned()),
        fields,
        ..Answer::default()
    })
}

fn take<'a>(rest: &mut &'a [u8], bytes: usize) -> Option<&'a [u8]> {
    let (head, tail) = rest.split_at_checked(bytes)?;
    *rest = tail;
    Some(head)
}

fn counted<'a>(rest: &mut &'a [u8], length_bytes: usize) -> Option<&'a [u8]> {
    let length = match length_bytes {
        2 => i16::from_be_bytes(*take(rest, 2)?.first_chunk()?).into(),
        _ => i32::from_be_bytes(*take(rest, 4)?.first_chunk()?),
    };
    take(rest, usize::try_from(length).ok()?)
}

/// Header and payload of a whole native frame.
pub fn native_parts(frame: &[u8]) -> Result<(&[u8], &[u8]), AnswerError> {
    let short = || AnswerError::Header("the frame is shorter than its header".to_owned());
    let length = frame.get(8..).and_then(|rest| rest.first_chunk::<4>());
    let header_bytes = u32::from_le_bytes(*length.ok_or_else(short)?) as usize;
    let rest = frame.get(NATIVE_PREFIX_BYTES..).ok_or_else(short)?;
    rest.split_at_checked(header_bytes).ok_or_else(short)
}

/// Where the first frame ends, by its protocol's rules.
fn end_of_frame(protocol: Protocol, buffer: &[u8]) -> Result<Option<usize>, AnswerError> {
    if protocol == Protocol::Remoting {
        return frame_bytes(buffer);
    }
    let Some(prefix) = buffer.first_chunk::<8>() else {
        return Ok(None);
    };
    if prefix[..4] != MAGIC {
        return Err(AnswerError::Header(format!(
            "a frame begins with {:02x?}",
            &prefix[..4]
        )));
    }
    let bytes = u32::from_le_bytes([prefix[4], prefix[5], prefix[6], prefix[7]]);
    if !(NATIVE_PREFIX_BYTES..=FRAME_BYTES_MAX).contains(&(bytes as usize)) {
        return Err(AnswerError::Length { bytes });
    }
    Ok(Some(bytes as usize))
}

/// Bytes that were received and not yet taken.
pub struct Inbox {
    protocol: Protocol,
    bytes: Vec<u8>,
    filled: Range<usize>,
}

impl Inbox {
    /// Room for `bytes` in one read.
    pub fn new(protocol: Protocol, bytes: usize) -> Self {
        Self {
            protocol,
            bytes: vec![0; bytes],
            filled: 0..0,
        }
    }

    /// Where to read to; never empty.
    pub fn room(&mut self) -> Result<&mut [u8], AnswerError> {
        if self.filled.is_empty() {
            self.filled = 0..0;
        }
        let wanted = end_of_frame(self.protocol, self.filled())?.unwrap_or(0);
        if self.filled.start > 0
            && (self.filled.start + wanted > self.bytes.len()
                || self.bytes.len() == self.filled.end)
        {
            self.bytes.copy_within(self.filled.clone(), 0);
            self.filled = 0..self.filled.len();
        }
        // Bounded: a length above the limit is an error.
        if wanted > self.bytes.len() || self.filled.end == self.bytes.len() {
            self.bytes.resize(wanted.max(2 * self.bytes.len()), 0);
        }
        Ok(&mut self.bytes[self.filled.end..])
    }

    /// So many bytes were read.
    pub fn advance(&mut self, bytes: usize) {
        self.filled.end += bytes;
    }

    fn filled(&self) -> &[u8] {
        &self.bytes[self.filled.clone()]
    }

    /// The next whole frame, decoded.
    pub fn next_answer(&mut self) -> Result<Option<Answer<'_>>, AnswerError> {
        let protocol = self.protocol;
        let Some(frame) = self.next_frame()? else {
            return Ok(None);
        };
        match protocol {
            Protocol::Remoting => Answer::decode(frame).map(Some),
            Protocol::Native => Answer::decode_native(frame).map(Some),
        }
    }

    /// Whether there is a whole frame.
    pub fn has_frame(&self) -> Result<bool, AnswerError> {
        let end = end_of_frame(self.protocol, self.filled())?;
        Ok(end.is_some_and(|bytes| self.filled().len() >= bytes))
    }

    /// The next whole frame.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, AnswerError> {
        let Some(bytes) = end_of_frame(self.protocol, self.filled())? else {
            return Ok(None);
        };
        if self.filled.len() < bytes {
            return Ok(None);
        }
        let start = self.filled.start;
        self.filled.start += bytes;
        Ok(Some(&self.bytes[start..start + bytes]))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use ringmq::wire::remoting::command::{Encoding, Outgoing};

    use super::*;

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Answer::decode(&bytes);
            let mut inbox = Inbox::new(Protocol::Remoting, 16);
            for chunk in bytes.chunks(7) {
                let Ok(room) = inbox.room() else { return Ok(()) };
                let read = room.len().min(chunk.len());
                room[..read].copy_from_slice(&chunk[..read]);
                inbox.advance(read);
                while let Ok(Some(_)) = inbox.next_answer() {}
            }
        }

        #[test]
        fn what_the_codec_writes_reads_back_however_it_is_cut(
            frames in proptest::collection::vec(
                (any::<i16>(), any::<i32>(), ".{0,20}", 0i64..i64::MAX, proptest::collection::vec(any::<u8>(), 0..100), any::<bool>()),
                1..8,
            ),
            cut in 1usize..64,
        ) {
            let mut wire = Vec::new();
            for (code, opaque, remark, offset, body, binary) in &frames {
                let mut outgoing = Outgoing::request((*code).into())
                    .field("queueOffset", *offset)
                    .field("somethingElse", "x")
                    .field("msgId", "AB,CD");
                outgoing.opaque = *opaque;
                outgoing.flag = 1;
                outgoing.remark = (!remark.is_empty()).then(|| remark.clone().into());
                let encoding = if *binary { Encoding::Binary } else { Encoding::Json };
                wire.extend_from_slice(&outgoing.frame(encoding, body));
            }
            let mut inbox = Inbox::new(Protocol::Remoting, 16);
            let mut expected = frames.iter();
            for chunk in wire.chunks(cut) {
                let mut chunk = chunk;
                while !chunk.is_empty() {
                    let room = inbox.room().unwrap();
                    let read = room.len().min(chunk.len());
                    room[..read].copy_from_slice(&chunk[..read]);
                    chunk = &chunk[read..];
                    inbox.advance(read);
                    while let Some(answer) = inbox.next_answer().unwrap() {
                        let (code, opaque, remark, offset, body, _) = expected.next().unwrap();
                        prop_assert_eq!(answer.code, i32::from(*code));
                        prop_assert_eq!(answer.opaque, *opaque);
                        prop_assert!(answer.is_response());
                        prop_assert_eq!(answer.remark.clone().unwrap_or_default(), remark.clone());
                        prop_assert_eq!(number("queueOffset", answer.fields.queue_offset), Ok(*offset));
                        prop_assert_eq!(answer.fields.msg_id, Some("AB,CD"));
                        prop_assert_eq!(answer.body, &body[..]);
                    }
                }
            }
            prop_assert!(expected.next().is_none());
        }
    }

    #[test]
    fn a_length_that_no_frame_has_is_an_error_before_room_is_made() {
        let mut inbox = Inbox::new(Protocol::Remoting, 8);
        inbox.room().unwrap()[..4].copy_from_slice(&[0x7f, 0xff, 0xff, 0xff]);
        inbox.advance(4);
        assert_eq!(
            inbox.room().unwrap_err(),
            AnswerError::Length { bytes: 0x7fff_ffff }
        );
    }
}
