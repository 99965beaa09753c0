//! A delayed message in the log: a control record around the message record that it will become.
//!
//! Layout, big-endian: the control header (size u32, magic u32, kind u8 = [`KIND`]), due time in milliseconds u64, topic
//! incarnation u32, then a whole message record with the real topic and queue and queue offset 0. The inner record carries
//! its own physical offset, so the id that the producer gets can be looked up like any other. When it is due, the
//! message is stored again in its queue, in one batch with [`crate::store::control::Control::TimersDone`].

use std::sync::Arc;

use bytes::Bytes;

use crate::store::control::{HEADER_BYTES, MAGIC};
use crate::store::types::{NewMessage, QueueKey};
use crate::wire::properties;
use crate::wire::record::{RecordError, RecordView};

/// Kind of the control record.
pub const KIND: u8 = 6;
const DUE_AT: usize = HEADER_BYTES;
const TOPIC_ID_AT: usize = DUE_AT + 8;
/// Where the message record begins.
pub const RECORD_AT: usize = TOPIC_ID_AT + 4;

/// What stands in front of the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Milliseconds since 1970.
    pub due_ms: u64,
    pub topic_id: u32,
}

/// A delayed record whose batch is whole and which cannot be read all the same: our bug.
#[derive(Debug, thiserror::Error)]
pub enum DelayedError {
    #[error("it is no delayed message")]
    Kind,
    #[error("the message in it: {0}")]
    Record(#[from] RecordError),
}

/// Whether a control record is a delayed message.
pub fn is_delayed(record: &[u8]) -> bool {
    record.get(4..8) == Some(&MAGIC.to_be_bytes()) && record.get(8) == Some(&KIND)
}

/// Writes all but the message into `record`, which has the length of the whole; returns where the message goes.
pub fn write_head(record: &mut [u8], head: Head) -> &mut [u8] {
    let total = record.len() as u32;
    record[..4].copy_from_slice(&total.to_be_bytes());
    record[4..8].copy_from_slice(&MAGIC.to_be_bytes());
    record[8] = KIND;
    record[DUE_AT..TOPIC_ID_AT].copy_from_slice(&head.due_ms.to_be_bytes());
    record[TOPIC_ID_AT..RECORD_AT].copy_from_slice(&head.topic_id.to_be_bytes());
    &mut record[RECORD_AT..]
}

/// The head of a delayed record.
pub fn head(record: &[u8]) -> Result<Head, DelayedError> {
    if !is_delayed(record) {
        return Err(DelayedError::Kind);
    }
    let due = record.get(DUE_AT..).and_then(|rest| rest.first_chunk());
    let topic_id = record
        .get(TOPIC_ID_AT..)
        .and_then(|rest| rest.first_chunk());
    match (due, topic_id) {
        (Some(due), Some(topic_id)) => Ok(Head {
            due_ms: u64::from_be_bytes(*due),
            topic_id: u32::from_be_bytes(*topic_id),
        }),
        _ => Err(DelayedError::Kind),
    }
}

/// The head of a delayed record and its message in place; the body's CRC is checked.
pub fn view(record: &[u8]) -> Result<(Head, RecordView<'_>), DelayedError> {
    let head = head(record)?;
    let view = RecordView::parse_checked(&record[RECORD_AT..])?;
    Ok((head, view))
}

/// The message of a delayed record, to be stored again.
pub fn message(record: &[u8]) -> Result<(Head, NewMessage), DelayedError> {
    let (head, view) = view(record)?;
    Ok((head, new_message(&view, head.topic_id)))
}

/// A stored message of a topic incarnation as one to store.
pub fn new_message(view: &RecordView<'_>, topic_id: u32) -> NewMessage {
    NewMessage {
        queue: QueueKey {
            topic_id,
            queue_id: view.queue_id() as u32,
        },
        topic: Arc::from(view.topic()),
        // A copy: the record may be a slice of a page that other records share.
        body: Bytes::copy_from_slice(view.body()),
        properties: Bytes::copy_from_slice(view.properties()),
        tags_code: properties::tags_code_of(view.properties()),
        flag: view.flag(),
        sys_flag: view.sys_flag(),
        born_timestamp: view.born_timestamp(),
        born_host: view.born_host(),
        reconsume_times: view.reconsume_times(),
        prepared_transaction_offset: view.prepared_transaction_offset(),
        key_places: None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::wire::record::{RecordFields, SYS_FLAG_BORN_HOST_V6, SYS_FLAG_STORE_HOST_V6};
    use proptest::prelude::*;

    fn any_message() -> impl Strategy<Value = NewMessage> {
        let numbers = (
            any::<u32>(),
            0..=i32::MAX as u32,
            any::<i32>(),
            any::<i64>(),
            any::<i32>(),
            any::<i64>(),
        );
        let texts = (
            "[a-zA-Z0-9%_-]{1,40}",
            proptest::collection::vec(any::<u8>(), 0..300),
            proptest::collection::vec(("[A-Z]{1,8}", "[a-z]{1,8}"), 0..4),
        );
        (numbers, texts, any::<bool>(), any::<u16>(), any::<i32>()).prop_map(
            |(
                (topic_id, queue_id, flag, born, times, prepared),
                (topic, body, pairs),
                v6,
                port,
                sys,
            )| {
                let properties: String = pairs
                    .into_iter()
                    .map(|(name, value)| format!("{name}\x01{value}\x02"))
                    .collect();
                let hosts = SYS_FLAG_BORN_HOST_V6 | SYS_FLAG_STORE_HOST_V6;
                NewMessage {
                    queue: QueueKey { topic_id, queue_id },
                    topic: topic.into(),
                    body: body.into(),
                    tags_code: properties::tags_code_of(properties.as_bytes()),
                    properties: properties.into_bytes().into(),
                    flag,
                    sys_flag: sys & !hosts,
                    born_timestamp: born,
                    born_host: if v6 {
                        (std::net::Ipv6Addr::LOCALHOST, port).into()
                    } else {
                        ([10, 0, 0, 1], port).into()
                    },
                    reconsume_times: times,
                    prepared_transaction_offset: prepared,
                    key_places: None,
                }
            },
        )
    }

    fn encode(message: &NewMessage, due_ms: u64) -> Vec<u8> {
        let fields = RecordFields {
            topic: &message.topic,
            body: &message.body,
            properties: &message.properties,
            queue_id: message.queue.queue_id as i32,
            flag: message.flag,
            queue_offset: 0,
            physical_offset: 7,
            sys_flag: message.sys_flag,
            born_timestamp: message.born_timestamp,
            born_host: message.born_host,
            store_timestamp: 1,
            store_host: ([127, 0, 0, 1], 10911).into(),
            reconsume_times: message.reconsume_times,
            prepared_transaction_offset: message.prepared_transaction_offset,
        };
        let mut record = vec![0xAA; RECORD_AT + fields.encoded_len()];
        let head = Head {
            due_ms,
            topic_id: message.queue.topic_id,
        };
        fields.encode_into(write_head(&mut record, head));
        record
    }

    /// The flags of IPv6 hosts are the record's, not the message's.
    fn without_host_flags(mut message: NewMessage) -> NewMessage {
        message.sys_flag &= !(SYS_FLAG_BORN_HOST_V6 | SYS_FLAG_STORE_HOST_V6);
        message
    }

    proptest! {
        #[test]
        fn a_delayed_message_is_read_as_it_was_written(sent in any_message(), due_ms in any::<u64>()) {
            let record = encode(&sent, due_ms);
            let (head, read) = message(&record).unwrap();
            prop_assert_eq!(head, Head { due_ms, topic_id: sent.queue.topic_id });
            prop_assert_eq!(format!("{:?}", without_host_flags(read)), format!("{sent:?}"));
        }

        #[test]
        fn a_spoiled_body_is_noticed(sent in any_message().prop_filter("a body", |sent| !sent.body.is_empty()), bit in 0u8..8) {
            let mut record = encode(&sent, 1);
            let at = RECORD_AT + RecordView::parse(&record[RECORD_AT..]).unwrap().body_range().start;
            record[at] ^= 1 << bit;
            prop_assert!(message(&record).is_err());
        }

        #[test]
        fn arbitrary_records_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut record = bytes;
            let _ = message(&record);
            if record.len() >= HEADER_BYTES {
                record[4..8].copy_from_slice(&MAGIC.to_be_bytes());
                record[8] = KIND;
                let _ = message(&record);
            }
        }
    }
}
