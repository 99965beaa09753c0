//! The body of SEND_BATCH_MESSAGE: messages of one topic, one after the other (`MessageDecoder.encodeMessage`).
//!
//! ```text
//! 0  total size  i32      12 flag         i32
//! 4  magic       i32, 0   16 body         i32 length, bytes
//! 8  body CRC    i32, 0   .. properties   i16 length, bytes
//! ```
//! Magic and CRC say nothing: clients write zeros.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Messages of one batch. Each costs memory of its own before it is stored, so there has to be a bound; 4 MiB of the
/// smallest messages that anyone sends are fewer.
pub const BATCH_MESSAGES_MAX: usize = 64 << 10;

/// Total size, magic, CRC, flag and the two lengths.
const FIXED_BYTES: usize = 5 * 4 + 2;

/// One message of a batch, sliced from the request's body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchItem {
    pub flag: i32,
    pub body: Bytes,
    /// The last separator may be missing.
    pub properties: Bytes,
}

/// A body that is no batch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    #[error("the batch has no message")]
    Empty,
    #[error("the batch has more than {limit} messages")]
    TooMany { limit: usize },
    #[error(
        "message {index} of the batch says that it has {total_bytes} bytes; {left_bytes} are left"
    )]
    Length {
        index: usize,
        total_bytes: i32,
        left_bytes: usize,
    },
    #[error(
        "the {what} of message {index} of the batch has {bytes} bytes; {left_bytes} are left of the message"
    )]
    Overrun {
        index: usize,
        what: &'static str,
        bytes: i32,
        left_bytes: usize,
    },
    #[error("message {index} of the batch has {spare_bytes} bytes behind its properties")]
    Spare { index: usize, spare_bytes: usize },
}

/// Takes a batch apart; no byte of it is copied.
pub fn decode(batch: &Bytes) -> Result<Vec<BatchItem>, BatchError> {
    if batch.is_empty() {
        return Err(BatchError::Empty);
    }
    let mut items = Vec::new();
    let mut at = 0;
    while at < batch.len() {
        let index = items.len();
        if index == BATCH_MESSAGES_MAX {
            return Err(BatchError::TooMany {
                limit: BATCH_MESSAGES_MAX,
            });
        }
        let rest = &batch[at..];
        let total_bytes = match rest.first_chunk() {
            Some(total) => i32::from_be_bytes(*total),
            None => rest.len() as i32,
        };
        let mut item = match usize::try_from(total_bytes) {
            Ok(bytes) if (FIXED_BYTES..=rest.len()).contains(&bytes) => &rest[..bytes],
            _ => {
                return Err(BatchError::Length {
                    index,
                    total_bytes,
                    left_bytes: rest.len(),
                });
            }
        };
        at += item.len();
        item.advance(3 * 4);
        let flag = item.get_i32();
        let message_body_bytes = item.get_i32();
        // The length of the properties has to fit behind the body.
        let message_body = take(&mut item, index, "body", message_body_bytes, 2)?;
        let properties_bytes = item.get_i16().into();
        let properties = take(&mut item, index, "property text", properties_bytes, 0)?;
        if !item.is_empty() {
            return Err(BatchError::Spare {
                index,
                spare_bytes: item.len(),
            });
        }
        items.push(BatchItem {
            flag,
            body: batch.slice_ref(message_body),
            properties: batch.slice_ref(properties),
        });
    }
    Ok(items)
}

fn take<'a>(
    item: &mut &'a [u8],
    index: usize,
    what: &'static str,
    bytes: i32,
    behind: usize,
) -> Result<&'a [u8], BatchError> {
    match usize::try_from(bytes) {
        Ok(length) if length + behind <= item.len() => {
            let (taken, rest) = item.split_at(length);
            *item = rest;
            Ok(taken)
        }
        _ => Err(BatchError::Overrun {
            index,
            what,
            bytes,
            left_bytes: item.len(),
        }),
    }
}

/// Puts a batch together, as clients do. Properties longer than a signed 16-bit number can say are an error of ours.
pub fn encode(items: &[BatchItem]) -> Bytes {
    let mut out = BytesMut::new();
    for item in items {
        assert!(item.properties.len() <= i16::MAX as usize);
        out.put_u32((FIXED_BYTES + item.body.len() + item.properties.len()) as u32);
        out.put_bytes(0, 2 * 4);
        out.put_i32(item.flag);
        out.put_u32(item.body.len() as u32);
        out.put_slice(&item.body);
        out.put_i16(item.properties.len() as i16);
        out.put_slice(&item.properties);
    }
    out.freeze()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn items() -> impl Strategy<Value = Vec<BatchItem>> {
        let item = (any::<i32>(), any::<Vec<u8>>(), any::<Vec<u8>>()).prop_map(
            |(flag, body, properties)| BatchItem {
                flag,
                body: body.into(),
                properties: properties.into(),
            },
        );
        proptest::collection::vec(item, 1..8)
    }

    #[test]
    fn the_count_of_messages_is_bounded() {
        let item = BatchItem {
            flag: 0,
            body: Bytes::new(),
            properties: Bytes::new(),
        };
        let mut many = vec![item; BATCH_MESSAGES_MAX];
        assert!(decode(&encode(&many)).is_ok());
        many.push(many[0].clone());
        assert!(matches!(
            decode(&encode(&many)),
            Err(BatchError::TooMany { .. })
        ));
        assert_eq!(decode(&Bytes::new()), Err(BatchError::Empty));
    }

    #[test]
    fn lengths_that_lie_are_errors() {
        let good = encode(&[BatchItem {
            flag: 1,
            body: Bytes::from_static(b"body"),
            properties: Bytes::from_static(b"a\x01b"),
        }]);
        assert!(decode(&good).is_ok());
        // Each of the three lengths: too small, too large, negative.
        // A body of 8 or 9 bytes would leave no room for the length of the properties.
        for (at, bytes) in [(3, [0x1C, 0x1E]), (19, [3, 5]), (19, [8, 9]), (25, [2, 4])] {
            for (at, byte) in [(at, bytes[0]), (at, bytes[1]), (at, 0xFF), (at - 1, 0x80)] {
                let mut bad = good.to_vec();
                bad[at] = byte;
                assert!(decode(&bad.into()).is_err(), "byte {at} = {byte}");
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(items in items()) {
            prop_assert_eq!(decode(&encode(&items)).unwrap(), items);
        }

        #[test]
        fn a_torn_batch_is_an_error(items in items(), torn in 1..22usize) {
            let mut bytes = encode(&items);
            bytes.truncate(bytes.len() - torn);
            prop_assert!(decode(&bytes).is_err());
        }

        #[test]
        fn mutated_batches_never_panic(
            items in items(),
            mutations in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..5),
        ) {
            let mut bytes = encode(&items).to_vec();
            for (at, byte) in mutations {
                let at = usize::from(at) % bytes.len();
                bytes[at] = byte;
            }
            let _ = decode(&bytes.into());
        }
    }
}
