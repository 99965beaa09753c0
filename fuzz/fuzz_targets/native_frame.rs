//! What a native connection reads: frames cut from a stream, headers verified, sections of records. No bytes may panic, and a
//! header that is understood is understood the same after it was written again.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use ringmq_wire_native::frame::{Sections, frame_bytes_wanted, next_frame};
use ringmq_wire_native::message::{Encoder, Envelope, Message};
use ringmq_wire_native::record::records;
use ringmq_wire_native::shape::ProduceShapes;

fuzz_target!(|data: &[u8]| {
    let mut buffer = BytesMut::from(data);
    let _ = frame_bytes_wanted(&buffer);
    let mut shapes = ProduceShapes::default();
    while let Ok(Some(frame)) = next_frame(&mut buffer) {
        // Declared first: it has to outlive what is compared with it.
        let ours;
        let verified = Envelope::read(&frame.header);
        // What a shape says of a header is what it says itself.
        let known = shapes.read(&frame.header);
        let is_known = known.is_some();
        if let Some((id, produce)) = known {
            let message = Message::Produce(produce);
            assert_eq!(verified, Ok(Envelope { id, message }));
        }
        let Ok(envelope) = verified else {
            continue;
        };
        if let Message::Produce(produce) = &envelope.message {
            if !is_known {
                shapes.learn(&frame.header, produce);
            }
            let mut sections = Sections::new(frame.payload.clone());
            for queue in &produce.queues {
                let Ok(section) = sections.take(queue.bytes) else {
                    break;
                };
                for record in records(&section) {
                    let Ok(record) = record else { break };
                    let _ = record.check_body();
                }
            }
        }
        // A message of a later version has no words of ours.
        if matches!(envelope.message, Message::Unknown(_)) {
            continue;
        }
        let mut encoder = Encoder::new();
        let written = encoder.encode(envelope.id, &envelope.message, frame.payload.len());
        let mut again = BytesMut::from(written);
        again.extend_from_slice(&frame.payload);
        ours = next_frame(&mut again).expect("our own frame").expect("all of it");
        let read = Envelope::read(&ours.header).expect("our own header");
        assert_eq!(read.id, envelope.id);
        assert_eq!(read.message, envelope.message);
    }
});
