//! The codec from outside: what is encoded is decoded, bytes of any kind never panic, and older peers are understood.
//!
//! `older/` and `older_2/` have earlier schemas, the code that flatc made of them, and frames that were written with it once.
//! They stay as they are: whatever is changed, they have to mean the same. The second is the last one without groups.
#![allow(clippy::unwrap_used)] // a test may panic

#[allow(warnings, clippy::all, clippy::unwrap_used)]
#[rustfmt::skip]
#[path = "older/generated.rs"]
mod older;
#[allow(warnings, clippy::all, clippy::unwrap_used)]
#[rustfmt::skip]
#[path = "older_2/generated.rs"]
mod older_2;

use std::path::PathBuf;

use bytes::{Bytes, BytesMut};
use flatbuffers::FlatBufferBuilder;
use proptest::prelude::*;
use ringmq_wire_native::frame::{
    FRAME_BYTES_MAX, FrameError, HEADER_BYTES_MAX, MAGIC, PREFIX_BYTES, Sections,
    frame_bytes_wanted, next_frame, padded,
};
use ringmq_wire_native::message::*;
use ringmq_wire_native::record::{RecordFields, records};

/// Texts and numbers of which messages are made.
#[derive(Clone, Debug)]
struct Parts {
    texts: Vec<String>,
    numbers: Vec<u64>,
    count: usize,
}

fn parts() -> impl Strategy<Value = Parts> {
    let texts = prop::collection::vec("[a-zA-Z0-9ä:.%]{0,12}", 8);
    let numbers = prop::collection::vec(any::<u64>(), 12);
    (texts, numbers, 0usize..5).prop_map(|(texts, numbers, count)| Parts {
        texts,
        numbers,
        count,
    })
}

/// A message of each kind, made of `parts`.
fn messages(parts: &Parts) -> Vec<Message<'_>> {
    let text = |at: usize| &parts.texts[at % 8][..];
    let long = |at: usize| parts.numbers[at % 12] as i64;
    let word = |at: usize| parts.numbers[at % 12] as u32;
    let code = |at: usize| parts.numbers[at % 12] as i32;
    let short = |at: usize| parts.numbers[at % 12] as u16;
    let each = 0..parts.count;
    let kind = |at: usize| match word(at) % 2 {
        0 => FilterKind::Tags,
        _ => FilterKind::Sql92,
    };
    let owned = |from: usize| -> Vec<TopicQueues<'_>> {
        each.clone()
            .map(|at| TopicQueues {
                topic: text(at + from),
                queue_ids: (0..at).map(word).collect(),
            })
            .collect()
    };
    let ack = if word(0).is_multiple_of(2) {
        Ack::None
    } else {
        Ack::Durable
    };
    vec![
        Message::Hello(Hello {
            version: short(0),
            features: parts.numbers[1],
            client_id: text(0),
            software: text(1),
            credentials: text(2).as_bytes(),
        }),
        Message::HelloReply(HelloReply {
            version: short(0),
            features: parts.numbers[1],
            cluster: text(0),
            broker: text(1),
            shard: short(2),
            shards: short(3),
            frame_bytes_max: word(4),
            body_bytes_max: word(5),
            born_host: text(2),
            store_host: text(3),
            now_ms: long(6),
            software: text(4),
        }),
        Message::Ping,
        Message::Pong { now_ms: long(0) },
        Message::Error {
            code: code(0),
            remark: text(0),
        },
        Message::Metadata(Metadata {
            topics: each.clone().map(text).collect(),
            create_queues: word(0),
        }),
        Message::MetadataReply(MetadataReply {
            topics: each
                .clone()
                .map(|at| TopicMetadata {
                    topic: text(at),
                    code: code(at),
                    remark: text(at + 1),
                    write_queues: word(at),
                    read_queues: word(at + 1),
                    permission: short(at) as u8,
                    queues: (0..at)
                        .map(|at| QueueMetadata {
                            queue_id: word(at),
                            shard: short(at),
                        })
                        .collect(),
                })
                .collect(),
            shards: each
                .clone()
                .map(|at| ShardAddress {
                    shard: short(at),
                    host: text(at),
                    port: short(at + 1),
                })
                .collect(),
            direct: word(0).is_multiple_of(2),
        }),
        Message::Produce(Produce {
            ack,
            queues: each
                .clone()
                .map(|at| ProduceQueue {
                    topic: text(at / 2),
                    queue_id: word(at),
                    records: word(at + 1),
                    bytes: word(at + 2),
                })
                .collect(),
        }),
        Message::ProduceReply(
            each.clone()
                .map(|at| ProduceResult {
                    code: code(at),
                    remark: text(at),
                    queue_offset: long(at),
                    physical_offset: long(at + 1),
                    store_timestamp_ms: long(at + 2),
                })
                .collect(),
        ),
        Message::Fetch(Fetch {
            session: word(0),
            group: text(0),
            add: each
                .clone()
                .map(|at| FetchQueue {
                    handle: word(at),
                    topic: text(at / 3),
                    queue_id: word(at + 1),
                    offset: long(at),
                    filter_kind: kind(at),
                    filter: text(at + 1),
                })
                .collect(),
            remove: each.clone().map(word).collect(),
            min_bytes: word(1),
            max_bytes: word(2),
            max_wait_ms: word(3),
        }),
        Message::FetchReply(FetchReply {
            session: word(0),
            queues: each
                .clone()
                .map(|at| FetchedQueue {
                    handle: word(at),
                    code: code(at),
                    remark: text(at),
                    next_offset: long(at),
                    min_offset: long(at + 1),
                    max_offset: long(at + 2),
                    records: word(at + 1),
                    bytes: word(at + 2),
                })
                .collect(),
        }),
        Message::OffsetCommit(OffsetCommit {
            group: text(0),
            queues: each
                .clone()
                .map(|at| QueueOffset {
                    topic: text(at),
                    queue_id: word(at),
                    offset: long(at),
                })
                .collect(),
            member_id: text(1),
            generation: long(2),
        }),
        Message::OffsetCommitReply(
            each.clone()
                .map(|at| QueueResult {
                    code: code(at),
                    remark: text(at),
                })
                .collect(),
        ),
        Message::OffsetQuery(OffsetQuery {
            group: text(0),
            queues: each
                .clone()
                .map(|at| QueueTime {
                    topic: text(at),
                    queue_id: word(at),
                    timestamp_ms: long(at),
                })
                .collect(),
        }),
        Message::GroupJoin(GroupJoin {
            group: text(0),
            member_id: text(1),
            topics: each.clone().map(text).collect(),
            generation: long(1),
            owned: owned(2),
        }),
        Message::GroupHeartbeat(GroupHeartbeat {
            group: text(0),
            member_id: text(1),
            generation: long(3),
            owned: owned(3),
        }),
        Message::GroupLeave(GroupLeave {
            group: text(0),
            member_id: text(1),
        }),
        Message::Assignment(Assignment {
            member_id: text(0),
            generation: long(4),
            queues: owned(4),
            heartbeat_interval_ms: word(5),
            session_timeout_ms: word(6),
        }),
        Message::OffsetQueryReply(
            each.map(|at| QueueOffsets {
                code: code(at),
                remark: text(at),
                committed: long(at),
                min_offset: long(at + 1),
                max_offset: long(at + 2),
                at_timestamp: long(at + 3),
            })
            .collect(),
        ),
    ]
}

/// One byte after the other, as the slowest network would bring them.
fn cut(bytes: &[u8], at_once: usize) -> Vec<ringmq_wire_native::frame::Frame> {
    let mut input = BytesMut::new();
    let mut frames = Vec::new();
    for piece in bytes.chunks(at_once) {
        input.extend_from_slice(piece);
        while let Some(frame) = next_frame(&mut input).unwrap() {
            frames.push(frame);
        }
    }
    assert!(input.is_empty());
    frames
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded_however_it_is_cut(parts in parts(), id: u64, at_once in 1usize..200) {
        let mut encoder = Encoder::new();
        for message in messages(&parts) {
            let mut bytes = encoder.encode(id, &message, 16).to_vec();
            prop_assert!(bytes.len().is_multiple_of(8));
            prop_assert!(frame_bytes_wanted(&bytes) == 16);
            bytes.extend_from_slice(&[7; 16]);
            bytes.extend_from_slice(encoder.encode(id, &message, 0));
            let frames = cut(&bytes, at_once);
            prop_assert_eq!(frames.len(), 2);
            prop_assert_eq!(&frames[0].payload[..], &[7; 16][..]);
            prop_assert!(frames[1].payload.is_empty());
            for frame in frames {
                let envelope = Envelope::read(&frame.header).unwrap();
                prop_assert_eq!(envelope.id, id);
                // Both borrow from what does not live equally long, so they are compared by what they print.
                prop_assert_eq!(format!("{:?}", envelope.message), format!("{message:?}"));
            }
        }
    }

    #[test]
    fn the_answer_that_is_filled_in_says_what_the_built_one_says(
        answers in prop::collection::vec((any::<u64>(), any::<i64>(), any::<i64>(), any::<i64>()), 1..4),
        zero in 0usize..5,
    ) {
        let mut encoder = Encoder::new();
        for (id, queue_offset, physical_offset, store_timestamp_ms) in answers {
            let number = |at: usize, number: i64| if at == zero { 0 } else { number };
            let stored = StoredAt {
                queue_offset: number(0, queue_offset),
                physical_offset: number(1, physical_offset),
                store_timestamp_ms: number(2, store_timestamp_ms),
            };
            let frames = cut(encoder.encode_stored(id, &stored), 64);
            prop_assert_eq!(frames.len(), 1);
            prop_assert!(frames[0].payload.is_empty());
            let result = ProduceResult {
                queue_offset: stored.queue_offset,
                physical_offset: stored.physical_offset,
                store_timestamp_ms: stored.store_timestamp_ms,
                ..ProduceResult::default()
            };
            let message = Message::ProduceReply([result].into_iter().collect());
            prop_assert_eq!(Envelope::read(&frames[0].header), Ok(Envelope { id, message }));
        }
    }

    #[test]
    fn any_bytes_behind_a_good_prefix_never_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 0..600),
        is_marked: bool,
    ) {
        let length = bytes.len() / 8 * 8;
        bytes.truncate(length);
        if is_marked && length >= 8 {
            bytes[4..8].copy_from_slice(b"RMQ1");
        }
        let mut frame = Vec::new();
        frame.extend_from_slice(&MAGIC);
        frame.extend_from_slice(&((16 + length) as u32).to_le_bytes());
        frame.extend_from_slice(&(length as u32).to_le_bytes());
        frame.extend_from_slice(&[0; 4]);
        frame.extend_from_slice(&bytes);
        let mut input = BytesMut::from(&frame[..]);
        if let Ok(Some(frame)) = next_frame(&mut input) {
            let _ = Envelope::read(&frame.header).map(|envelope| format!("{envelope:?}"));
        }
    }

    #[test]
    fn flipped_bits_never_panic(
        parts in parts(),
        which in 0usize..19,
        flips in prop::collection::vec((any::<u16>(), 0u8..8), 1..12),
    ) {
        let messages = messages(&parts);
        let mut bytes = Encoder::new().encode(1, &messages[which], 0).to_vec();
        for (at, bit) in flips {
            let at = usize::from(at) % bytes.len();
            bytes[at] ^= 1 << bit;
        }
        let mut input = BytesMut::from(&bytes[..]);
        if let Ok(Some(frame)) = next_frame(&mut input)
            && let Ok(envelope) = Envelope::read(&frame.header)
        {
            let _ = format!("{envelope:?}");
            if let Message::Produce(produce) = envelope.message {
                let mut sections = Sections::new(frame.payload.clone());
                for queue in produce.queues {
                    let _ = sections.take(queue.bytes);
                }
            }
        }
    }

    #[test]
    fn sections_are_what_was_put_in(lengths in prop::collection::vec(0usize..50, 0..10), more in 1u32..100) {
        let mut payload = Vec::new();
        for (index, &length) in lengths.iter().enumerate() {
            payload.resize(payload.len() + length, index as u8 + 1);
            payload.resize(padded(payload.len()), 0);
        }
        let mut sections = Sections::new(Bytes::from(payload));
        for (index, &length) in lengths.iter().enumerate() {
            let section = sections.take(length as u32).unwrap();
            prop_assert_eq!(&section[..], &vec![index as u8 + 1; length][..]);
        }
        prop_assert!(sections.take(more).is_err(), "nothing is left");
    }
}

#[test]
fn a_length_that_is_a_lie_is_refused_before_anything_of_that_size_is_read() {
    let prefix = |frame: u32, header: u32| {
        let mut bytes = BytesMut::from(&MAGIC[..]);
        bytes.extend_from_slice(&frame.to_le_bytes());
        bytes.extend_from_slice(&header.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes
    };
    for frame_bytes in [
        0,
        8,
        16,
        20,
        25,
        FRAME_BYTES_MAX as u32 + 8,
        u32::MAX,
        u32::MAX - 7,
    ] {
        let mut bytes = prefix(frame_bytes, 8);
        assert_eq!(
            next_frame(&mut bytes),
            Err(FrameError::Length { frame_bytes })
        );
    }
    let large = HEADER_BYTES_MAX as u32 + 8;
    for (frame_bytes, header_bytes) in [
        (32, 24),
        (32, 0),
        (32, 12),
        (32, u32::MAX),
        (8 << 20, large),
    ] {
        let mut bytes = prefix(frame_bytes, header_bytes);
        assert!(
            matches!(next_frame(&mut bytes), Err(FrameError::HeaderLength { .. })),
            "{frame_bytes} {header_bytes}"
        );
    }
    assert_eq!(
        frame_bytes_wanted(&prefix(1 << 20, 8)),
        (1 << 20) - PREFIX_BYTES
    );
    let mut other = BytesMut::from(&[0xFE, b'R', b'M', b'X'][..]);
    assert!(matches!(
        next_frame(&mut other),
        Err(FrameError::Magic { .. })
    ));
}

#[test]
fn a_header_that_names_one_text_a_million_times_is_not_followed() {
    let mut builder = FlatBufferBuilder::new();
    let text = "x".repeat(400_000);
    let topic = builder.create_string(&text);
    let topics = builder.create_vector(&vec![topic; 100_000]);
    let metadata = older::Metadata::create(
        &mut builder,
        &older::MetadataArgs {
            topics: Some(topics),
        },
    );
    let bytes = older_frame(
        &mut builder,
        older::Body::Metadata,
        metadata.as_union_value(),
        b"",
    );
    let mut input = BytesMut::from(&bytes[..]);
    let frame = next_frame(&mut input).unwrap().unwrap();
    let begun = std::time::Instant::now();
    assert!(Envelope::read(&frame.header).is_err());
    assert!(begun.elapsed().as_millis() < 500, "{:?}", begun.elapsed());
}

type Union = flatbuffers::WIPOffset<flatbuffers::UnionWIPOffset>;

/// A frame as the older code makes it.
fn older_frame(
    builder: &mut FlatBufferBuilder<'_>,
    body_type: older::Body,
    body: Union,
    payload: &[u8],
) -> Vec<u8> {
    let header = older::Header::create(
        builder,
        &older::HeaderArgs {
            id: 77,
            body_type,
            body: Some(body),
        },
    );
    older::finish_header_buffer(builder, header);
    whole(builder.finished_data(), payload)
}

/// The frame around a header.
fn whole(header: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut header = header.to_vec();
    header.resize(padded(header.len()), 0);
    let mut payload = payload.to_vec();
    payload.resize(padded(payload.len()), 0);
    let mut frame = MAGIC.to_vec();
    frame.extend_from_slice(&((16 + header.len() + payload.len()) as u32).to_le_bytes());
    frame.extend_from_slice(&(header.len() as u32).to_le_bytes());
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(&header);
    frame.extend_from_slice(&payload);
    frame
}

fn older_records() -> Vec<u8> {
    let mut bytes = Vec::new();
    for body in [&b"first of an older client"[..], b"second"] {
        let fields = RecordFields {
            topic: "older",
            body,
            properties: b"TAGS\x01old\x02",
            queue_id: 1,
            flag: 0,
            queue_offset: 0,
            physical_offset: 0,
            sys_flag: 0,
            born_timestamp: 1_700_000_000_000,
            born_host: "127.0.0.1:1".parse().unwrap(),
            store_timestamp: 0,
            store_host: "127.0.0.1:2".parse().unwrap(),
            reconsume_times: 0,
            prepared_transaction_offset: 0,
        };
        let at = bytes.len();
        bytes.resize(at + fields.encoded_len(), 0);
        fields.encode_into(&mut bytes[at..]);
    }
    bytes
}

/// The frames of an older client, and one of a client of the future.
fn older_frames() -> Vec<(&'static str, Vec<u8>)> {
    let mut frames = Vec::new();
    let mut builder = FlatBufferBuilder::new();
    let client_id = Some(builder.create_string("older client"));
    let hello = older::Hello::create(
        &mut builder,
        &older::HelloArgs {
            version: 1,
            client_id,
            ..Default::default()
        },
    );
    let union = hello.as_union_value();
    frames.push((
        "hello",
        older_frame(&mut builder, older::Body::Hello, union, b""),
    ));
    builder.reset();
    let topic = builder.create_string("older");
    let topics = Some(builder.create_vector(&[topic]));
    let metadata = older::Metadata::create(&mut builder, &older::MetadataArgs { topics });
    let union = metadata.as_union_value();
    frames.push((
        "metadata",
        older_frame(&mut builder, older::Body::Metadata, union, b""),
    ));
    builder.reset();
    let records = older_records();
    let topic = Some(builder.create_string("older"));
    let queue = older::ProduceQueue::create(
        &mut builder,
        &older::ProduceQueueArgs {
            topic,
            queue_id: 1,
            records: 2,
            bytes: records.len() as u32,
        },
    );
    let queues = Some(builder.create_vector(&[queue]));
    let produce = older::Produce::create(
        &mut builder,
        &older::ProduceArgs {
            ack: older::Ack::Durable,
            queues,
        },
    );
    let union = produce.as_union_value();
    frames.push((
        "produce",
        older_frame(&mut builder, older::Body::Produce, union, &records),
    ));
    builder.reset();
    let topic = Some(builder.create_string("older"));
    let queue = older::FetchQueue::create(
        &mut builder,
        &older::FetchQueueArgs {
            handle: 7,
            topic,
            queue_id: 1,
            offset: 0,
        },
    );
    let add = Some(builder.create_vector(&[queue]));
    let group = Some(builder.create_string("older-readers"));
    let fetch = older::Fetch::create(
        &mut builder,
        &older::FetchArgs {
            session: 3,
            group,
            add,
            max_wait_ms: 5_000,
            ..Default::default()
        },
    );
    let union = fetch.as_union_value();
    frames.push((
        "fetch",
        older_frame(&mut builder, older::Body::Fetch, union, b""),
    ));
    builder.reset();
    let future = older::Pong::create(&mut builder, &older::PongArgs { now_ms: 5 });
    let union = future.as_union_value();
    frames.push((
        "unknown",
        older_frame(&mut builder, older::Body(200), union, b""),
    ));
    frames
}

fn stored(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/older/{name}.bin"))
}

/// `RINGMQ_WRITE_OLDER=1` wrote the files, once.
#[test]
fn frames_of_an_older_client_mean_what_they_meant() {
    for (name, frame) in older_frames() {
        if std::env::var_os("RINGMQ_WRITE_OLDER").is_some() {
            std::fs::write(stored(name), &frame).unwrap();
        }
        assert_eq!(std::fs::read(stored(name)).unwrap(), frame, "{name}");
    }
    let read = |name: &str| {
        let mut input = BytesMut::from(&std::fs::read(stored(name)).unwrap()[..]);
        let frame = next_frame(&mut input).unwrap().unwrap();
        assert!(input.is_empty());
        frame
    };
    let frame = read("hello");
    let envelope = Envelope::read(&frame.header).unwrap();
    let expected = Hello {
        version: 1,
        client_id: "older client",
        ..Hello::default()
    };
    assert_eq!(envelope.id, 77);
    assert_eq!(envelope.message, Message::Hello(expected));
    let frame = read("metadata");
    let expected = Metadata {
        topics: vec!["older"],
        create_queues: 0,
    };
    assert_eq!(
        Envelope::read(&frame.header).unwrap().message,
        Message::Metadata(expected)
    );
    let frame = read("produce");
    let Message::Produce(produce) = Envelope::read(&frame.header).unwrap().message else {
        panic!("no produce");
    };
    assert_eq!(produce.ack, Ack::Durable);
    let records_bytes = &frame.payload[..produce.queues[0].bytes as usize];
    let bodies: Vec<_> = records(records_bytes)
        .map(|record| {
            let record = record.unwrap();
            record.check_body().unwrap();
            record.body().to_vec()
        })
        .collect();
    assert_eq!(bodies, [&b"first of an older client"[..], b"second"]);
    let frame = read("fetch");
    let Message::Fetch(fetch) = Envelope::read(&frame.header).unwrap().message else {
        panic!("no fetch");
    };
    assert_eq!((fetch.min_bytes, fetch.max_bytes), (1, 1 << 20), "defaults");
    assert_eq!(fetch.add[0].filter_kind, FilterKind::Tags);
    let frame = read("unknown");
    assert_eq!(
        Envelope::read(&frame.header).unwrap().message,
        Message::Unknown(200)
    );
}

#[test]
fn an_older_client_reads_what_this_one_says() {
    let parts = Parts {
        texts: vec!["text".into(); 8],
        numbers: (1..13).collect(),
        count: 3,
    };
    for message in messages(&parts) {
        let bytes = Encoder::new().encode(9, &message, 0).to_vec();
        let header = older::root_as_header(&bytes[PREFIX_BYTES..]).unwrap();
        assert_eq!(header.id(), 9);
        match message {
            Message::HelloReply(reply) => {
                let read = header.body_as_hello_reply().unwrap();
                assert_eq!(read.store_host(), Some(reply.store_host));
            }
            Message::ProduceReply(results) => {
                let read = header.body_as_produce_reply().unwrap().queues().unwrap();
                assert_eq!(read.get(2).queue_offset(), results[2].queue_offset);
            }
            Message::FetchReply(reply) => {
                let read = header.body_as_fetch_reply().unwrap().queues().unwrap();
                assert_eq!(read.get(2).bytes(), reply.queues[2].bytes);
            }
            Message::OffsetQueryReply(_) => {
                assert!(older::Body::ENUM_MAX < header.body_type().0);
            }
            _ => {}
        }
    }
}

/// The frames of a client that knows nothing of groups.
fn frames_without_groups() -> Vec<(&'static str, Vec<u8>)> {
    let mut builder = FlatBufferBuilder::new();
    let mut frame = |name, body: fn(&mut FlatBufferBuilder<'static>) -> (older_2::Body, Union)| {
        builder.reset();
        let (body_type, body) = body(&mut builder);
        let header = older_2::Header::create(
            &mut builder,
            &older_2::HeaderArgs {
                id: 78,
                body_type,
                body: Some(body),
            },
        );
        older_2::finish_header_buffer(&mut builder, header);
        (name, whole(builder.finished_data(), b""))
    };
    vec![
        frame("hello", |builder| {
            let client_id = Some(builder.create_string("no groups"));
            let credentials = Some(builder.create_vector(&[1u8, 2, 3]));
            let args = older_2::HelloArgs {
                version: 1,
                client_id,
                credentials,
                ..Default::default()
            };
            let hello = older_2::Hello::create(builder, &args);
            (older_2::Body::Hello, hello.as_union_value())
        }),
        frame("commit", |builder| {
            let group = Some(builder.create_string("older-readers"));
            let topic = Some(builder.create_string("older"));
            let args = older_2::QueueOffsetArgs {
                topic,
                queue_id: 1,
                offset: 2,
            };
            let queue = older_2::QueueOffset::create(builder, &args);
            let queues = Some(builder.create_vector(&[queue]));
            let args = older_2::OffsetCommitArgs { group, queues };
            let commit = older_2::OffsetCommit::create(builder, &args);
            (older_2::Body::OffsetCommit, commit.as_union_value())
        }),
    ]
}

#[test]
fn a_commit_of_a_client_without_groups_is_one_of_no_member() {
    for (name, frame) in frames_without_groups() {
        let path = format!("{}/tests/older_2/{name}.bin", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("RINGMQ_WRITE_OLDER").is_some() {
            std::fs::write(&path, &frame).unwrap();
        }
        assert_eq!(std::fs::read(&path).unwrap(), frame, "{name}");
        let frame = next_frame(&mut BytesMut::from(&frame[..]))
            .unwrap()
            .unwrap();
        let read = Envelope::read(&frame.header).unwrap();
        assert_eq!(read.id, 78);
        match read.message {
            Message::Hello(hello) => {
                assert_eq!((hello.features, hello.credentials), (0, &[1, 2, 3][..]))
            }
            Message::OffsetCommit(commit) => {
                assert_eq!((commit.member_id, commit.generation), ("", 0));
                assert_eq!((commit.queues[0].queue_id, commit.queues[0].offset), (1, 2));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_peer_without_groups_reads_a_commit_of_a_member_and_does_not_know_a_join() {
    let parts = Parts {
        texts: vec!["text".into(); 8],
        numbers: (1..13).collect(),
        count: 3,
    };
    let (mut commits, mut unknown) = (0, 0);
    for message in messages(&parts) {
        let bytes = Encoder::new().encode(9, &message, 0).to_vec();
        let header = older_2::root_as_header(&bytes[PREFIX_BYTES..]).unwrap();
        match message {
            Message::OffsetCommit(commit) => {
                let read = header.body_as_offset_commit().unwrap();
                assert_eq!(read.group(), Some(commit.group));
                assert_eq!(
                    read.queues().unwrap().get(2).offset(),
                    commit.queues[2].offset
                );
                commits += 1;
            }
            Message::GroupJoin(_)
            | Message::GroupHeartbeat(_)
            | Message::GroupLeave(_)
            | Message::Assignment(_) => {
                assert!(older_2::Body::ENUM_MAX < header.body_type().0);
                unknown += 1;
            }
            _ => assert!(header.body_type().0 <= older_2::Body::ENUM_MAX),
        }
    }
    assert_eq!((commits, unknown), (1, 4));
}
