//! A half message in the log: a control record around the message that a transaction will commit or roll back.
//!
//! Layout, big-endian: the control header (size u32, magic u32, kind u8 = [`KIND`]), origin u64, time of the next check in
//! milliseconds u64, checks so far u32, topic incarnation u32, then a whole message record with the real topic and queue.
//! The **origin** is the position of the inner record where the half was stored first: producers know it by that, and
//! it stays when retention stores the half again. The inner record's queue offset is its origin too.

use crate::store::control::{HEADER_BYTES, MAGIC};
use crate::store::delayed::new_message;
use crate::store::types::NewMessage;
use crate::wire::record::{RecordError, RecordView};

/// Kind of the control record.
pub const KIND: u8 = 16;
const ORIGIN_AT: usize = HEADER_BYTES;
const CHECK_AT: usize = ORIGIN_AT + 8;
const CHECKS_AT: usize = CHECK_AT + 8;
const TOPIC_ID_AT: usize = CHECKS_AT + 4;
/// Where the message record begins.
pub const RECORD_AT: usize = TOPIC_ID_AT + 4;

/// What stands in front of the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Position of the inner record of the first storing.
    pub origin: u64,
    /// When its producer is asked next, milliseconds since 1970.
    pub check_at_ms: u64,
    /// How often its producer was asked.
    pub checks: u32,
    pub topic_id: u32,
}

/// A half record whose batch is whole and which cannot be read all the same: our bug.
#[derive(Debug, thiserror::Error)]
pub enum HalfError {
    #[error("it is no half message")]
    Kind,
    #[error("the message in it: {0}")]
    Record(#[from] RecordError),
}

/// Whether a control record is a half message.
pub fn is_half(record: &[u8]) -> bool {
    record.get(4..8) == Some(&MAGIC.to_be_bytes()) && record.get(8) == Some(&KIND)
}

/// Writes all but the message into `record`, which has the length of the whole; returns where the message goes.
pub fn write_head(record: &mut [u8], head: Head) -> &mut [u8] {
    let total = record.len() as u32;
    record[..4].copy_from_slice(&total.to_be_bytes());
    record[4..8].copy_from_slice(&MAGIC.to_be_bytes());
    record[8] = KIND;
    record[ORIGIN_AT..CHECK_AT].copy_from_slice(&head.origin.to_be_bytes());
    record[CHECK_AT..CHECKS_AT].copy_from_slice(&head.check_at_ms.to_be_bytes());
    record[CHECKS_AT..TOPIC_ID_AT].copy_from_slice(&head.checks.to_be_bytes());
    record[TOPIC_ID_AT..RECORD_AT].copy_from_slice(&head.topic_id.to_be_bytes());
    &mut record[RECORD_AT..]
}

/// The head of a half record.
pub fn head(record: &[u8]) -> Result<Head, HalfError> {
    if !is_half(record) || record.len() < RECORD_AT {
        return Err(HalfError::Kind);
    }
    let u64_at = |at: usize| {
        let bytes = record[at..].first_chunk();
        bytes.copied().map_or(0, u64::from_be_bytes)
    };
    let u32_at = |at: usize| {
        let bytes = record[at..].first_chunk();
        bytes.copied().map_or(0, u32::from_be_bytes)
    };
    Ok(Head {
        origin: u64_at(ORIGIN_AT),
        check_at_ms: u64_at(CHECK_AT),
        checks: u32_at(CHECKS_AT),
        topic_id: u32_at(TOPIC_ID_AT),
    })
}

/// The head of a half record and its message in place; the body's CRC is checked.
pub fn view(record: &[u8]) -> Result<(Head, RecordView<'_>), HalfError> {
    let head = head(record)?;
    let view = RecordView::parse_checked(&record[RECORD_AT..])?;
    Ok((head, view))
}

/// The message of a half record, to be stored again.
pub fn message(record: &[u8]) -> Result<(Head, NewMessage), HalfError> {
    let (head, view) = view(record)?;
    Ok((head, new_message(&view, head.topic_id)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::store::types::QueueKey;
    use crate::wire::record::RecordFields;
    use proptest::prelude::*;

    fn encode(head: Head, queue_id: u32, body: &[u8]) -> Vec<u8> {
        let fields = RecordFields {
            topic: "T",
            body,
            properties: b"PGROUP\x01g\x02",
            queue_id: queue_id as i32,
            flag: 3,
            queue_offset: head.origin as i64,
            physical_offset: 7,
            sys_flag: 0,
            born_timestamp: 4,
            born_host: ([10, 0, 0, 1], 9).into(),
            store_timestamp: 1,
            store_host: ([127, 0, 0, 1], 10911).into(),
            reconsume_times: 2,
            prepared_transaction_offset: 0,
        };
        let mut record = vec![0xAA; RECORD_AT + fields.encoded_len()];
        fields.encode_into(write_head(&mut record, head));
        record
    }

    proptest! {
        #[test]
        fn a_half_is_read_as_it_was_written(
            (origin, check_at_ms, checks, topic_id) in (0..=i64::MAX as u64, any::<u64>(), any::<u32>(), any::<u32>()),
            queue_id in 0..1000u32,
            body in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let sent = Head { origin, check_at_ms, checks, topic_id };
            let record = encode(sent, queue_id, &body);
            let (head, read) = message(&record).unwrap();
            prop_assert_eq!(head, sent);
            prop_assert_eq!(read.queue, QueueKey { topic_id, queue_id });
            prop_assert_eq!(&read.body[..], &body[..]);
            prop_assert_eq!(&read.properties[..], b"PGROUP\x01g\x02");
            prop_assert_eq!((read.flag, read.born_timestamp, read.reconsume_times), (3, 4, 2));
            let (_, view) = view(&record).unwrap();
            prop_assert_eq!(view.queue_offset(), origin as i64);
        }

        #[test]
        fn a_spoiled_body_is_noticed(body in proptest::collection::vec(any::<u8>(), 1..50), bit in 0u8..8) {
            let sent = Head { origin: 1, check_at_ms: 2, checks: 3, topic_id: 4 };
            let mut record = encode(sent, 0, &body);
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
