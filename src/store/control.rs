//! Control records: everything durable that is not a message. They stand between message records in the batches.
//!
//! Big-endian like the message record, so that one scan reads both: total size u32, magic u32 [`MAGIC`], kind u8, payload.
//! Text is a u16 length and UTF-8. Kind 6 is a delayed message, see [`crate::store::delayed`], kind 16 a half message, see
//! [`crate::store::half`]. A kind that this version does not know is skipped by recovery with a warning.

use std::sync::Arc;

use crate::store::tables::halves::Outcome;
use crate::store::tables::pop::InFlight;
use crate::store::tables::timers::TimerKey;
use crate::store::types::QueueKey;

/// Magic of a control record; a message record has `DA A3 20 A7` or `DA A3 20 AB` there.
pub const MAGIC: u32 = 0xDAA3_20C0;
/// Bytes in front of the payload.
pub const HEADER_BYTES: usize = 9;

/// A control record as a value.
#[derive(Clone, Debug, PartialEq)]
pub enum Control {
    /// From here on messages of the topic `name` in this log belong to incarnation `topic_id`.
    TopicOpened { topic_id: u32, name: Arc<str> },
    /// The incarnation is gone, with its queues and their consumer offsets in this log.
    TopicDropped { topic_id: u32 },
    /// A consumer group's offset in a queue of this log.
    OffsetCommitted {
        group: Arc<str>,
        queue: QueueKey,
        offset: i64,
    },
    /// A consumer group is gone with all its offsets in this log.
    OffsetsDropped { group: Arc<str> },
    /// Log 0 only: one key of the metadata (topics, groups) has a new value, or none any more. The shard layer owns the content.
    Metadata {
        key: Arc<str>,
        value: Option<Arc<[u8]>>,
    },
    /// Delayed messages of this log that are not any more: their messages, or copies elsewhere in the log, stand in the
    /// same batch, or their topic is gone.
    TimersDone { timers: Arc<[TimerKey]> },
    /// The producers of these half messages, by origin, were asked how their transactions ended; each with the time of
    /// its next check in milliseconds.
    HalvesChecked { halves: Arc<[(u64, u64)]> },
    /// Transactions of this log, by the origins of their halves, have ended. What was committed stands in the same batch.
    HalvesEnded { halves: Arc<[(u64, Outcome)]> },
    /// Messages of a queue of this log were given to a POP consumer of a group.
    Popped {
        group: Arc<str>,
        queue: QueueKey,
        /// The first offset that the group has not looked at yet.
        next: i64,
        /// What is in flight below this is gone by retention.
        min: i64,
        messages: Arc<[(i64, InFlight)]>,
    },
    /// Messages that were given out are done with.
    PopAcked {
        group: Arc<str>,
        queue: QueueKey,
        offsets: Arc<[i64]>,
    },
    /// A message that was given out becomes visible at another time.
    PopChanged {
        group: Arc<str>,
        queue: QueueKey,
        offset: i64,
        state: InFlight,
    },
    /// Nothing: so many bytes of zeros, after which the log ends in another sector.
    Filler { bytes: usize },
}

/// Why a control record cannot be read although its batch's CRC is right: written by a newer version, or our bug.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    #[error("unknown kind {kind}")]
    UnknownKind { kind: u8 },
    #[error("kind {kind} is cut short")]
    Short { kind: u8 },
}

impl Control {
    fn kind(&self) -> u8 {
        match self {
            Self::TopicOpened { .. } => 1,
            Self::TopicDropped { .. } => 2,
            Self::OffsetCommitted { .. } => 3,
            Self::OffsetsDropped { .. } => 4,
            Self::Metadata { .. } => 5,
            Self::TimersDone { .. } => 7,
            Self::HalvesChecked { .. } => 17,
            Self::HalvesEnded { .. } => 18,
            Self::Popped { .. } => 20,
            Self::PopAcked { .. } => 21,
            Self::PopChanged { .. } => 22,
            Self::Filler { .. } => 23,
        }
    }

    /// The record's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; 4];
        out.extend_from_slice(&MAGIC.to_be_bytes());
        out.push(self.kind());
        match self {
            Self::TopicOpened { topic_id, name } => {
                out.extend_from_slice(&topic_id.to_be_bytes());
                put_text(&mut out, name);
            }
            Self::TopicDropped { topic_id } => out.extend_from_slice(&topic_id.to_be_bytes()),
            Self::OffsetCommitted {
                group,
                queue,
                offset,
            } => {
                out.extend_from_slice(&queue.topic_id.to_be_bytes());
                out.extend_from_slice(&queue.queue_id.to_be_bytes());
                out.extend_from_slice(&offset.to_be_bytes());
                put_text(&mut out, group);
            }
            Self::OffsetsDropped { group } => put_text(&mut out, group),
            Self::Metadata { key, value } => {
                put_text(&mut out, key);
                out.push(u8::from(value.is_some()));
                out.extend_from_slice(value.as_deref().unwrap_or_default());
            }
            Self::TimersDone { timers } => {
                for timer in timers.iter() {
                    out.extend_from_slice(&timer.due_ms.to_be_bytes());
                    out.extend_from_slice(&timer.position.to_be_bytes());
                }
            }
            Self::HalvesChecked { halves } => {
                for (origin, check_at_ms) in halves.iter() {
                    out.extend_from_slice(&origin.to_be_bytes());
                    out.extend_from_slice(&check_at_ms.to_be_bytes());
                }
            }
            Self::HalvesEnded { halves } => {
                for (origin, outcome) in halves.iter() {
                    out.extend_from_slice(&origin.to_be_bytes());
                    out.push(outcome.code());
                }
            }
            Self::Popped {
                group,
                queue,
                next,
                min,
                messages,
            } => {
                put_queue(&mut out, *queue);
                put_text(&mut out, group);
                out.extend_from_slice(&next.to_be_bytes());
                out.extend_from_slice(&min.to_be_bytes());
                for (offset, state) in messages.iter() {
                    out.extend_from_slice(&offset.to_be_bytes());
                    put_in_flight(&mut out, *state);
                }
            }
            Self::PopAcked {
                group,
                queue,
                offsets,
            } => {
                put_queue(&mut out, *queue);
                put_text(&mut out, group);
                for offset in offsets.iter() {
                    out.extend_from_slice(&offset.to_be_bytes());
                }
            }
            Self::PopChanged {
                group,
                queue,
                offset,
                state,
            } => {
                put_queue(&mut out, *queue);
                put_text(&mut out, group);
                out.extend_from_slice(&offset.to_be_bytes());
                put_in_flight(&mut out, *state);
            }
            Self::Filler { bytes } => out.resize(out.len() + bytes, 0),
        }
        let total = out.len() as u32;
        out[..4].copy_from_slice(&total.to_be_bytes());
        out
    }

    /// Reads a whole record whose size and magic the caller has checked.
    pub fn decode(record: &[u8]) -> Result<Self, ControlError> {
        let kind = *record.get(8).ok_or(ControlError::Short { kind: 0 })?;
        let short = ControlError::Short { kind };
        let mut rest = &record[HEADER_BYTES..];
        let control = match kind {
            1 => Self::TopicOpened {
                topic_id: take_u32(&mut rest).ok_or(short.clone())?,
                name: take_text(&mut rest).ok_or(short)?,
            },
            2 => Self::TopicDropped {
                topic_id: take_u32(&mut rest).ok_or(short)?,
            },
            3 => Self::OffsetCommitted {
                queue: QueueKey {
                    topic_id: take_u32(&mut rest).ok_or(short.clone())?,
                    queue_id: take_u32(&mut rest).ok_or(short.clone())?,
                },
                offset: take_u64(&mut rest).ok_or(short.clone())? as i64,
                group: take_text(&mut rest).ok_or(short)?,
            },
            4 => Self::OffsetsDropped {
                group: take_text(&mut rest).ok_or(short)?,
            },
            5 => {
                let key = take_text(&mut rest).ok_or(short.clone())?;
                let (&present, value) = rest.split_first().ok_or(short)?;
                Self::Metadata {
                    key,
                    value: (present != 0).then(|| Arc::from(value)),
                }
            }
            7 => {
                let mut timers = Vec::with_capacity(rest.len() / 16);
                while !rest.is_empty() {
                    timers.push(TimerKey {
                        due_ms: take_u64(&mut rest).ok_or(short.clone())?,
                        position: take_u64(&mut rest).ok_or(short.clone())?,
                    });
                }
                Self::TimersDone {
                    timers: timers.into(),
                }
            }
            17 => {
                let mut halves = Vec::with_capacity(rest.len() / 16);
                while !rest.is_empty() {
                    let origin = take_u64(&mut rest).ok_or(short.clone())?;
                    halves.push((origin, take_u64(&mut rest).ok_or(short.clone())?));
                }
                Self::HalvesChecked {
                    halves: halves.into(),
                }
            }
            18 => {
                let mut halves = Vec::with_capacity(rest.len() / 9);
                while !rest.is_empty() {
                    let origin = take_u64(&mut rest).ok_or(short.clone())?;
                    let (&outcome, tail) = rest.split_first().ok_or(short.clone())?;
                    rest = tail;
                    halves.push((origin, Outcome::of_code(outcome)));
                }
                Self::HalvesEnded {
                    halves: halves.into(),
                }
            }
            20 => {
                let queue = take_queue(&mut rest).ok_or(short.clone())?;
                let group = take_text(&mut rest).ok_or(short.clone())?;
                let next = take_u64(&mut rest).ok_or(short.clone())? as i64;
                let min = take_u64(&mut rest).ok_or(short.clone())? as i64;
                let mut messages = Vec::with_capacity(rest.len() / 28);
                while !rest.is_empty() {
                    let offset = take_u64(&mut rest).ok_or(short.clone())? as i64;
                    messages.push((offset, take_in_flight(&mut rest).ok_or(short.clone())?));
                }
                Self::Popped {
                    group,
                    queue,
                    next,
                    min,
                    messages: messages.into(),
                }
            }
            21 => {
                let queue = take_queue(&mut rest).ok_or(short.clone())?;
                let group = take_text(&mut rest).ok_or(short.clone())?;
                let mut offsets = Vec::with_capacity(rest.len() / 8);
                while !rest.is_empty() {
                    offsets.push(take_u64(&mut rest).ok_or(short.clone())? as i64);
                }
                Self::PopAcked {
                    group,
                    queue,
                    offsets: offsets.into(),
                }
            }
            22 => Self::PopChanged {
                queue: take_queue(&mut rest).ok_or(short.clone())?,
                group: take_text(&mut rest).ok_or(short.clone())?,
                offset: take_u64(&mut rest).ok_or(short.clone())? as i64,
                state: take_in_flight(&mut rest).ok_or(short)?,
            },
            23 => Self::Filler { bytes: rest.len() },
            kind => return Err(ControlError::UnknownKind { kind }),
        };
        Ok(control)
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    let bytes = &text.as_bytes()[..text.len().min(u16::MAX as usize)];
    out.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
    out.extend_from_slice(bytes);
}

fn put_queue(out: &mut Vec<u8>, queue: QueueKey) {
    out.extend_from_slice(&queue.topic_id.to_be_bytes());
    out.extend_from_slice(&queue.queue_id.to_be_bytes());
}

fn put_in_flight(out: &mut Vec<u8>, state: InFlight) {
    out.extend_from_slice(&state.pop_ms.to_be_bytes());
    out.extend_from_slice(&state.visible_ms.to_be_bytes());
    out.extend_from_slice(&state.deliveries.to_be_bytes());
}

fn take_queue(rest: &mut &[u8]) -> Option<QueueKey> {
    Some(QueueKey {
        topic_id: take_u32(rest)?,
        queue_id: take_u32(rest)?,
    })
}

fn take_in_flight(rest: &mut &[u8]) -> Option<InFlight> {
    Some(InFlight {
        pop_ms: take_u64(rest)?,
        visible_ms: take_u64(rest)?,
        deliveries: take_u32(rest)?,
    })
}

fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    let (head, tail) = rest.split_first_chunk::<4>()?;
    *rest = tail;
    Some(u32::from_be_bytes(*head))
}

fn take_u64(rest: &mut &[u8]) -> Option<u64> {
    let (head, tail) = rest.split_first_chunk::<8>()?;
    *rest = tail;
    Some(u64::from_be_bytes(*head))
}

fn take_text(rest: &mut &[u8]) -> Option<Arc<str>> {
    let (head, tail) = rest.split_first_chunk::<2>()?;
    let length = u16::from_be_bytes(*head) as usize;
    if tail.len() < length {
        return None;
    }
    let (text, tail) = tail.split_at(length);
    *rest = tail;
    Some(Arc::from(std::str::from_utf8(text).ok()?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test may panic.
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_in_flight() -> impl Strategy<Value = InFlight> {
        (any::<u64>(), any::<u64>(), any::<u32>()).prop_map(|(pop_ms, visible_ms, deliveries)| {
            InFlight {
                pop_ms,
                visible_ms,
                deliveries,
            }
        })
    }

    fn any_pop() -> impl Strategy<Value = Control> {
        let key = ("[a-zA-Z0-9%_-]{0,40}", any::<u32>(), any::<u32>());
        let messages = proptest::collection::vec((any::<i64>(), any_in_flight()), 0..20);
        let numbers = (any::<i64>(), any::<i64>());
        (key, numbers, messages, 0..3).prop_map(
            |((group, topic_id, queue_id), (next, min), messages, kind)| {
                let (group, queue) = (Arc::from(group), QueueKey { topic_id, queue_id });
                match (kind, messages.first()) {
                    (0, Some(&(offset, state))) => Control::PopChanged {
                        group,
                        queue,
                        offset,
                        state,
                    },
                    (1, _) => Control::PopAcked {
                        group,
                        queue,
                        offsets: messages.iter().map(|(offset, _)| *offset).collect(),
                    },
                    _ => Control::Popped {
                        group,
                        queue,
                        next,
                        min,
                        messages: messages.into(),
                    },
                }
            },
        )
    }

    fn any_control() -> impl Strategy<Value = Control> {
        let text = "[a-zA-Z0-9%_-]{0,40}";
        prop_oneof![
            any_pop(),
            (0..9000usize).prop_map(|bytes| Control::Filler { bytes }),
            (any::<u32>(), text).prop_map(|(topic_id, name)| Control::TopicOpened {
                topic_id,
                name: name.into()
            }),
            any::<u32>().prop_map(|topic_id| Control::TopicDropped { topic_id }),
            (text, any::<u32>(), any::<u32>(), any::<i64>()).prop_map(
                |(group, topic_id, queue_id, offset)| Control::OffsetCommitted {
                    group: group.into(),
                    queue: QueueKey { topic_id, queue_id },
                    offset
                }
            ),
            text.prop_map(|group| Control::OffsetsDropped {
                group: group.into()
            }),
            (
                text,
                proptest::option::of(proptest::collection::vec(any::<u8>(), 0..100))
            )
                .prop_map(|(key, value)| Control::Metadata {
                    key: key.into(),
                    value: value.map(Into::into)
                }),
            proptest::collection::vec((any::<u64>(), any::<u64>()), 0..20).prop_map(|timers| {
                let timers = timers.into_iter();
                Control::TimersDone {
                    timers: timers
                        .map(|(due_ms, position)| TimerKey { due_ms, position })
                        .collect(),
                }
            }),
            proptest::collection::vec((any::<u64>(), any::<u64>()), 0..20).prop_map(|halves| {
                Control::HalvesChecked {
                    halves: halves.into(),
                }
            }),
            proptest::collection::vec((any::<u64>(), 1..=3u8), 0..20).prop_map(|halves| {
                let halves = halves.into_iter();
                Control::HalvesEnded {
                    halves: halves
                        .map(|(origin, code)| (origin, Outcome::of_code(code)))
                        .collect(),
                }
            }),
        ]
    }

    proptest! {
        #[test]
        fn a_control_record_is_read_as_it_was_written(control in any_control()) {
            prop_assert_eq!(Control::decode(&control.encode()).unwrap(), control);
        }

        #[test]
        fn arbitrary_records_never_panic(bytes in proptest::collection::vec(any::<u8>(), 9..60)) {
            let _ = Control::decode(&bytes);
        }
    }
}
