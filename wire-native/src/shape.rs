//! What the last produce headers of a connection looked like: a producer writes the same header again and again, with
//! other numbers in it.
//!
//! What a verifier looks at in a flatbuffer is where tables, vtables, texts and vectors are. A header that has the same
//! bytes there as one that was verified needs no second look: its fields are at the same places. Only the id, the numbers of
//! its queue and the letters of the topic's name may be others. That takes a tenth of verifying and reading it.
//!
//! Headers of one queue only: with more there is more to do than to read them.

use std::ops::Range;

use smallvec::{SmallVec, smallvec};

use crate::generated as fb;
use crate::layout::{OFFSET_BYTES, TableAt, target, u32_at, u64_at};
use crate::message::{Ack, Produce, ProduceQueue};
use crate::recent::Recent;

/// A longer header is verified each time.
const SHAPED_BYTES_MAX: usize = 1 << 10;

/// See the module's page.
#[derive(Debug, Default)]
pub struct ProduceShapes {
    recent: Recent<Shape>,
}

#[derive(Debug)]
struct Shape {
    /// The header, 8 bytes each, little-endian; what is free is 0.
    words: Box<[u64]>,
    /// Ones where a header of this shape may have any bits.
    free: Box<[u64]>,
    ack: Ack,
    /// Where the fields are; one that is absent is 0.
    id: Option<usize>,
    queue_id: Option<usize>,
    records: Option<usize>,
    bytes: Option<usize>,
    topic: Range<usize>,
}

impl ProduceShapes {
    /// Id and body of a header that is like one that [`ProduceShapes::learn`] was given, as
    /// [`crate::message::Envelope::read`] gives them. `None`: nothing is known about it.
    #[inline]
    pub fn read<'h>(&mut self, header: &'h [u8]) -> Option<(u64, Produce<'h>)> {
        self.recent.find(|shape| shape.read(header))
    }

    /// A header that was verified and that nothing was known about.
    pub fn learn(&mut self, header: &[u8], produce: &Produce<'_>) {
        self.recent.learn(|| Shape::of(header, produce));
    }
}

impl Shape {
    /// `None` for a header that is not worth it, or whose fields lie where its structure is.
    fn of(header: &[u8], produce: &Produce<'_>) -> Option<Self> {
        if produce.queues.len() != 1
            || header.len() > SHAPED_BYTES_MAX
            || !header.len().is_multiple_of(size_of::<u64>())
        {
            return None;
        }
        let root = TableAt::root(header)?;
        let body_type = root.field(fb::Header::VT_BODY_TYPE)?;
        let body = root.field(fb::Header::VT_BODY)?;
        let table = TableAt::behind(header, body)?;
        let queues = table.field(fb::Produce::VT_QUEUES)?;
        let vector = target(header, queues)?;
        let queue = TableAt::behind(header, vector.checked_add(OFFSET_BYTES)?)?;
        let topic_field = queue.field(fb::ProduceQueue::VT_TOPIC)?;
        let topic_text = target(header, topic_field)?;
        let topic_first = topic_text.checked_add(OFFSET_BYTES)?;
        let topic = topic_first..topic_first.checked_add(u32_at(header, topic_text)? as usize)?;

        let offset = |at: usize| at..at + OFFSET_BYTES;
        let mut structure: SmallVec<[Range<usize>; 16]> = smallvec![
            // Where the root is, and the identifier.
            0..2 * OFFSET_BYTES,
            body_type..body_type + 1,
            offset(body),
            offset(queues),
            vector..vector + 2 * OFFSET_BYTES,
            offset(topic_field),
            offset(topic_text),
        ];
        structure.extend(table.field(fb::Produce::VT_ACK).map(|at| at..at + 1));
        for table in [&root, &table, &queue] {
            structure.extend(table.structure());
        }

        let number = |at: Option<usize>, bytes: usize| at.map_or(0..0, |at| at..at + bytes);
        let id = root.field(fb::Header::VT_ID);
        let queue_id = queue.field(fb::ProduceQueue::VT_QUEUE_ID);
        let records = queue.field(fb::ProduceQueue::VT_RECORDS);
        let bytes = queue.field(fb::ProduceQueue::VT_BYTES);
        let values = [
            number(id, size_of::<u64>()),
            number(queue_id, size_of::<u32>()),
            number(records, size_of::<u32>()),
            number(bytes, size_of::<u32>()),
            topic.clone(),
        ];
        let mut free = vec![0; header.len()];
        for value in values {
            let overlaps =
                |other: &Range<usize>| value.start < other.end && other.start < value.end;
            if structure.iter().any(overlaps) {
                return None;
            }
            free.get_mut(value)?.fill(0xFF);
        }
        let free: Box<[u64]> = words(&free).collect();
        Some(Self {
            words: words(header)
                .zip(&free)
                .map(|(word, free)| word & !free)
                .collect(),
            free,
            ack: produce.ack,
            id,
            queue_id,
            records,
            bytes,
            topic,
        })
    }

    #[inline]
    fn read<'h>(&self, header: &'h [u8]) -> Option<(u64, Produce<'h>)> {
        if header.len() != size_of::<u64>() * self.words.len() {
            return None;
        }
        // Without a branch for each word.
        let known = self.words.iter().zip(&self.free);
        let differs = words(header)
            .zip(known)
            .fold(0, |differs, (word, (known, free))| {
                differs | (word & !free) ^ known
            });
        if differs != 0 {
            return None;
        }
        let number = |at: Option<usize>| at.map_or(Some(0), |at| u32_at(header, at));
        let queue = ProduceQueue {
            topic: std::str::from_utf8(header.get(self.topic.clone())?).ok()?,
            queue_id: number(self.queue_id)?,
            records: number(self.records)?,
            bytes: number(self.bytes)?,
        };
        let id = self.id.map_or(Some(0), |at| u64_at(header, at))?;
        let produce = Produce {
            ack: self.ack,
            queues: smallvec![queue],
        };
        Some((id, produce))
    }
}

/// A header as words; its length is a multiple of theirs.
#[inline]
fn words(header: &[u8]) -> impl Iterator<Item = u64> + '_ {
    let (words, _) = header.as_chunks();
    words.iter().map(|&word| u64::from_le_bytes(word))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frame::PREFIX_BYTES;
    use crate::message::{Encoder, Envelope, Message};

    fn header(id: u64, topic: &str, queue_id: u32, records: u32, bytes: u32) -> Vec<u8> {
        let produce = Produce {
            ack: Ack::Durable,
            queues: smallvec![ProduceQueue {
                topic,
                queue_id,
                records,
                bytes,
            }],
        };
        let mut encoder = Encoder::new();
        encoder.encode(id, &Message::Produce(produce), 0)[PREFIX_BYTES..].to_vec()
    }

    /// What shapes say of a header is what the verifier and the generated code say. Whether they said something.
    fn check(shapes: &mut ProduceShapes, header: &[u8]) -> bool {
        let plain = Envelope::read(header);
        if let Some((id, produce)) = shapes.read(header) {
            let message = Message::Produce(produce);
            assert_eq!(plain, Ok(Envelope { id, message }));
            return true;
        }
        if let Ok(Envelope {
            message: Message::Produce(produce),
            ..
        }) = &plain
        {
            shapes.learn(header, produce);
        }
        false
    }

    #[test]
    fn a_header_with_other_numbers_and_letters_is_not_verified_again() {
        let mut shapes = ProduceShapes::default();
        assert!(!check(&mut shapes, &header(7, "orders-1", 3, 1, 1_100)));
        assert!(check(
            &mut shapes,
            &header(u64::MAX, "orders-2", 1, 240, 99)
        ));
        assert!(check(&mut shapes, &header(1, "Ünicode", 9, 9, u32::MAX)));
        // A field that has its default is absent: another shape.
        assert!(!check(&mut shapes, &header(8, "orders-1", 0, 1, 1_100)));
        assert!(check(&mut shapes, &header(9, "orders-2", 0, 2, 2_200)));
        assert!(!check(&mut shapes, &header(10, "orders-10", 3, 1, 1_100)));
    }

    #[test]
    fn letters_that_are_no_text_are_left_to_the_verifier() {
        let mut shapes = ProduceShapes::default();
        let mut bytes = header(7, "orders-1", 3, 1, 1_100);
        assert!(!check(&mut shapes, &bytes));
        let at = bytes.windows(6).position(|text| text == b"orders").unwrap();
        bytes[at] = 0xFF;
        assert!(Envelope::read(&bytes).is_err());
        assert!(!check(&mut shapes, &bytes));
    }

    #[test]
    fn more_queues_than_one_and_a_long_header_make_no_shape() {
        let mut shapes = ProduceShapes::default();
        let queue = |queue_id| ProduceQueue {
            topic: "orders",
            queue_id,
            records: 1,
            bytes: 8,
        };
        let produce = Produce {
            ack: Ack::Durable,
            queues: smallvec![queue(1), queue(2)],
        };
        let mut encoder = Encoder::new();
        let two = encoder.encode(5, &Message::Produce(produce), 0)[PREFIX_BYTES..].to_vec();
        let long = header(7, &"t".repeat(SHAPED_BYTES_MAX), 3, 1, 1_100);
        for header in [two, long] {
            assert!(!check(&mut shapes, &header));
            assert!(!check(&mut shapes, &header));
        }
    }

    /// Fields may lie anywhere in a buffer that the verifier lets pass, also where an offset is.
    #[test]
    fn a_field_in_the_place_of_structure_makes_no_shape() {
        let mut bytes = header(7, "orders-1", 3, 1, 1_100);
        let root = TableAt::root(&bytes).unwrap();
        let body = root.field(fb::Header::VT_BODY).unwrap();
        let produce = TableAt::behind(&bytes, body).unwrap();
        let queues = produce.field(fb::Produce::VT_QUEUES).unwrap();
        let first = target(&bytes, queues).unwrap() + OFFSET_BYTES;
        let [_, vtable] = TableAt::behind(&bytes, first).unwrap().structure();
        let entry = |vt: u16| vtable.start + usize::from(vt);
        let (topic, records) = (
            entry(fb::ProduceQueue::VT_TOPIC),
            entry(fb::ProduceQueue::VT_RECORDS),
        );
        // The number of records is where the offset of the topic is.
        bytes.copy_within(topic..topic + 2, records);
        assert!(Envelope::read(&bytes).is_ok());
        let mut shapes = ProduceShapes::default();
        assert!(!check(&mut shapes, &bytes));
        assert!(shapes.recent.known().is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn a_changed_header_is_read_as_if_it_were_verified(
            first in (1..u64::MAX, "[a-z]{1,20}", 0..3u32, any::<u32>(), any::<u32>()),
            second in (1..u64::MAX, "[a-z]{1,20}", 0..3u32, any::<u32>(), any::<u32>()),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            more in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ) {
            let mut shapes = ProduceShapes::default();
            let make = |(id, topic, queue_id, records, bytes): &(u64, String, u32, u32, u32)|
                header(*id, topic, *queue_id, *records, *bytes);
            let mut bytes = make(&first);
            for (at, byte) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            // The changed one may become a shape, if it passes; then it and others are compared with it.
            check(&mut shapes, &bytes);
            check(&mut shapes, &bytes);
            check(&mut shapes, &make(&first));
            check(&mut shapes, &make(&second));
            for (at, byte) in &more {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
                check(&mut shapes, &bytes);
            }
        }
    }
}
