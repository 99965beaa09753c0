//! The native protocol of RingMQ: frames of sends made once and then only patched, fetches, and answers where they lie.
//!
//! A send is whole stored records. What changes from one to the next is patched: the frame's id, and of each record the
//! born timestamp, the stamp, the unique key, and the CRC of its body, which a real client has to compute as well.

use std::net::SocketAddr;

use ringmq::wire::native::frame::padded;
use ringmq::wire::native::message::{
    Ack, Encoder, Envelope, Fetch, FetchQueue, FilterKind, Hello, Message, Produce, ProduceQueue,
};
use ringmq::wire::record::{RecordFields, RecordView, body_crc};

use crate::frames::{KEY_DIGITS, KEY_MARK, SendNumbers, SendShape, only, properties, put_hex};
use crate::payload::STAMP_BYTES;

/// Stands in a template where the id goes.
const ID_MARK: u64 = 0xD1CE_0FF5_E7BE_EF01;
/// Where a record has the CRC of its body, and its born timestamp.
const CRC_AT: usize = 8;
const BORN_AT: usize = 40;
/// The only session of a connection.
const SESSION: u32 = 1;
/// The id of hello: no request has it.
pub const HELLO_ID: u64 = 1;

/// Both addresses that records have room for.
pub type Hosts = (SocketAddr, SocketAddr);

/// The first frame of a connection.
pub fn hello() -> Vec<u8> {
    let hello = Message::Hello(Hello {
        version: ringmq::wire::native::VERSION,
        client_id: "ringmq-bench",
        software: concat!("ringmq-bench/", env!("CARGO_PKG_VERSION")),
        ..Hello::default()
    });
    Encoder::new().encode(HELLO_ID, &hello, 0).to_vec()
}

/// What the answer to hello says of the hosts.
pub fn hosts_of(header: &[u8]) -> Result<Hosts, String> {
    let envelope = Envelope::read(header).map_err(|error| error.to_string())?;
    match envelope.message {
        Message::HelloReply(reply) => {
            let address = |text: &str| {
                text.parse()
                    .map_err(|_| format!("'{text}' in the answer to hello is no address"))
            };
            Ok((address(reply.born_host)?, address(reply.store_host)?))
        }
        other => Err(format!("hello was answered by {other:?}")),
    }
}

/// Sends to one queue.
pub struct NativeSend {
    frame: Vec<u8>,
    id_at: usize,
    /// Where each record begins.
    records_at: Vec<usize>,
    /// Within a record.
    body: std::ops::Range<usize>,
    key_at: usize,
}

impl NativeSend {
    /// The frame of sends of `shape.batch` messages to a queue.
    pub fn new(
        shape: &SendShape,
        topic: &str,
        queue_id: u32,
        message: &[u8],
        (born_host, store_host): Hosts,
    ) -> Self {
        let properties = properties(shape);
        let fields = RecordFields {
            topic,
            body: message,
            properties: &properties,
            queue_id: queue_id as i32,
            flag: 0,
            queue_offset: 0,
            physical_offset: 0,
            sys_flag: 0,
            born_timestamp: 0,
            born_host,
            store_timestamp: 0,
            store_host,
            reconsume_times: 0,
            prepared_transaction_offset: 0,
        };
        let mut record = vec![0; fields.encoded_len()];
        fields.encode_into(&mut record);
        let body = match RecordView::parse(&record) {
            Ok(view) => view.body_range(),
            Err(error) => panic!("the codec does not read what it wrote: {error}"),
        };
        let key_at = body.end + only(&record[body.end..], KEY_MARK.as_bytes());
        let bytes = record.len() * shape.batch;
        let produce = Message::Produce(Produce {
            ack: Ack::Durable,
            queues: [ProduceQueue {
                topic,
                queue_id,
                records: shape.batch as u32,
                bytes: bytes as u32,
            }]
            .into_iter()
            .collect(),
        });
        let mut frame = Encoder::new()
            .encode(ID_MARK, &produce, padded(bytes))
            .to_vec();
        let id_at = only(&frame, &ID_MARK.to_le_bytes());
        let first = frame.len();
        for _ in 0..shape.batch {
            frame.extend_from_slice(&record);
        }
        frame.resize(first + padded(bytes), 0);
        Self {
            frame,
            id_at,
            records_at: (0..shape.batch)
                .map(|index| first + index * record.len())
                .collect(),
            body,
            key_at,
        }
    }

    /// Appends the frame of one send.
    pub fn append(&self, numbers: &SendNumbers, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&self.frame);
        let frame = &mut out[start..];
        frame[self.id_at..self.id_at + 8].copy_from_slice(&(numbers.opaque as u64).to_le_bytes());
        for (index, &at) in self.records_at.iter().enumerate() {
            let record = &mut frame[at..];
            let body = &mut record[self.body.clone()];
            if body.len() >= STAMP_BYTES {
                let mut stamp = numbers.stamp;
                stamp.sequence += index as u64;
                stamp.write(body);
            }
            let crc = body_crc(body);
            record[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_be_bytes());
            record[BORN_AT..BORN_AT + 8].copy_from_slice(&numbers.born_ms.to_be_bytes());
            put_hex(
                numbers.key + index as u64,
                &mut record[self.key_at..self.key_at + KEY_DIGITS],
            );
        }
    }
}

/// A queue that a fetch adds.
pub struct Added<'a> {
    pub handle: u32,
    pub topic: &'a str,
    pub queue_id: u32,
    pub offset: u64,
}

/// What a fetch asks for.
#[derive(Clone, Copy, Debug)]
pub struct FetchLimits {
    pub bytes_max: u32,
    pub wait_ms: u32,
}

/// Appends the frame of a fetch.
pub fn fetch(
    id: i32,
    group: &str,
    add: &[Added<'_>],
    remove: &[u32],
    limits: FetchLimits,
    out: &mut Vec<u8>,
) {
    let fetch = Message::Fetch(Fetch {
        session: SESSION,
        group,
        add: add
            .iter()
            .map(|queue| FetchQueue {
                handle: queue.handle,
                topic: queue.topic,
                queue_id: queue.queue_id,
                offset: queue.offset as i64,
                filter_kind: FilterKind::Tags,
                filter: "",
            })
            .collect(),
        remove: remove.to_vec(),
        min_bytes: 1,
        max_bytes: limits.bytes_max,
        max_wait_ms: limits.wait_ms,
    });
    out.extend_from_slice(Encoder::new().encode(id as u64, &fetch, 0));
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bytes::BytesMut;
    use ringmq::wire::native::frame::next_frame;
    use ringmq::wire::properties;
    use ringmq::wire::record::records;
    use ringmq::wire::remoting::command::Encoding;

    use super::*;
    use crate::payload::{Stamp, filler};

    #[test]
    fn a_patched_frame_has_whole_records_that_say_what_was_patched() {
        for size in [1, 100, 1024] {
            let shape = SendShape {
                encoding: Encoding::Json,
                producer_group: "G".into(),
                batch: 3,
                key_prefix: "00112233445566AA".into(),
                properties: vec![("TAGS".into(), "a".into())],
                sys_flag: 0,
            };
            let hosts = ("127.0.0.1:1".parse().unwrap(), "[::1]:2".parse().unwrap());
            let send = NativeSend::new(&shape, "Topic", 5, &filler(size), hosts);
            let stamp = Stamp {
                producer: 7,
                run: 8,
                sequence: 100,
                due_ns: 9,
            };
            let numbers = SendNumbers {
                opaque: 1_000_000_007,
                born_ms: 44,
                key: 9,
                stamp,
            };
            let mut wire = Vec::new();
            send.append(&numbers, &mut wire);
            send.append(&numbers, &mut wire);
            let mut buffer = BytesMut::from(&wire[..]);
            for _ in 0..2 {
                let frame = next_frame(&mut buffer).unwrap().unwrap();
                let envelope = Envelope::read(&frame.header).unwrap();
                assert_eq!(envelope.id, 1_000_000_007);
                let Message::Produce(produce) = envelope.message else {
                    panic!()
                };
                let bytes = produce.queues[0].bytes as usize;
                let found: Vec<_> = records(&frame.payload[..bytes])
                    .map(|record| record.unwrap())
                    .collect();
                assert_eq!(found.len(), 3);
                for (index, record) in found.iter().enumerate() {
                    record.check_body().unwrap();
                    assert_eq!(
                        (record.topic(), record.queue_id(), record.born_timestamp()),
                        ("Topic", 5, 44)
                    );
                    let key = format!("00112233445566AA{:016X}", 9 + index);
                    assert_eq!(
                        properties::get(record.properties(), "UNIQ_KEY"),
                        Some(&key[..])
                    );
                    if size >= STAMP_BYTES {
                        let expected = Stamp {
                            sequence: 100 + index as u64,
                            ..stamp
                        };
                        assert_eq!(Stamp::read(record.body()), Some(expected));
                    }
                }
            }
        }
    }
}
