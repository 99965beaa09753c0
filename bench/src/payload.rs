//! What a message of the harness carries: a stamp in the first bytes of its body, then filler.
//!
//! The stamp says who sent it, as which one of its queue and when it was due, so that a consumer can count lost, doubled
//! and reordered messages and measure the time from the intended send to the delivery. All numbers are big-endian.
//!
//! ```text
//! 0  magic     u32      16 sequence  u64, of this producer in this queue, from 0
//! 4  producer  u32      24 due       i64, ns since 1970
//! 8  run       u64      32 CRC-32 of the 32 bytes before
//! ```

/// Bytes of a stamp; a shorter body carries none.
pub const STAMP_BYTES: usize = 36;

const MAGIC: u32 = 0x524D_4C31;

/// Who sent a message, as which one and when it was due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub producer: u32,
    pub run: u64,
    /// Of this producer in this queue, from 0.
    pub sequence: u64,
    /// Nanoseconds since 1970.
    pub due_ns: i64,
}

impl Stamp {
    /// Writes the stamp to the start of a body, if it has room for one.
    pub fn write(&self, body: &mut [u8]) {
        let Some(out) = body.first_chunk_mut::<STAMP_BYTES>() else {
            return;
        };
        out[0..4].copy_from_slice(&MAGIC.to_be_bytes());
        out[4..8].copy_from_slice(&self.producer.to_be_bytes());
        out[8..16].copy_from_slice(&self.run.to_be_bytes());
        out[16..24].copy_from_slice(&self.sequence.to_be_bytes());
        out[24..32].copy_from_slice(&self.due_ns.to_be_bytes());
        let crc = ringmq::wire::record::body_crc(&out[..32]);
        out[32..36].copy_from_slice(&crc.to_be_bytes());
    }

    /// The stamp of a body; none if the body is somebody else's or damaged.
    pub fn read(body: &[u8]) -> Option<Self> {
        let stamp = body.first_chunk::<STAMP_BYTES>()?;
        let word = |at: usize| {
            u32::from_be_bytes([stamp[at], stamp[at + 1], stamp[at + 2], stamp[at + 3]])
        };
        let long = |at: usize| u64::from(word(at)) << 32 | u64::from(word(at + 4));
        let intact = word(0) == MAGIC && word(32) == ringmq::wire::record::body_crc(&stamp[..32]);
        intact.then(|| Self {
            producer: word(4),
            run: long(8),
            sequence: long(16),
            due_ns: long(24) as i64,
        })
    }
}

/// A body of `bytes` with filler that no compression shortens.
pub fn filler(bytes: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(0x5EED);
    let mut body = vec![0; bytes];
    random.fill(&mut body);
    body
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_stamp_reads_back_and_damage_is_seen(
            producer: u32, run: u64, sequence: u64, due_ns: i64,
            at in 0..STAMP_BYTES, bit in 0..8u32,
        ) {
            let stamp = Stamp { producer, run, sequence, due_ns };
            let mut body = filler(100);
            stamp.write(&mut body);
            prop_assert_eq!(Stamp::read(&body), Some(stamp));
            // The sign bit of the CRC is always clear, as RocketMQ keeps it.
            body[at] ^= 1 << bit;
            prop_assert_eq!(Stamp::read(&body), None);
        }

        #[test]
        fn other_bodies_have_no_stamp(body in proptest::collection::vec(any::<u8>(), 0..60)) {
            prop_assert_eq!(Stamp::read(&body), None);
        }
    }

    #[test]
    fn a_body_without_room_stays_as_it_is() {
        let mut body = filler(STAMP_BYTES - 1);
        Stamp {
            producer: 1,
            run: 2,
            sequence: 3,
            due_ns: 4,
        }
        .write(&mut body);
        assert_eq!(body, filler(STAMP_BYTES - 1));
    }
}
