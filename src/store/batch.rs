//! The batch: what one group commit adds to a log. Whole, or it is the end of the log.
//!
//! Little-endian header of 64 bytes, then records back to back, then zeros up to a multiple of 8 (or of a sector, when
//! the next batch is written in parallel and must not share one).
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `RMQB` |
//! | 4 | 4 | bytes of the batch with header and padding: the next one starts there |
//! | 8 | 4 | CRC-32C of everything behind this field up to the end of the batch |
//! | 12 | 4 | CRC-32C field of the batch before: a chain, so that a whole batch of an older life is never taken for a successor |
//! | 16 | 8 | position of this header in the log: stale bytes of a recycled segment have another one |
//! | 24 | 8 | position up to which the log was durable when this was sealed: tells a torn tail from damage |
//! | 32 | 8 | store time of the first record, milliseconds since 1970 |
//! | 40 | 4 | epoch (the term of the master that wrote it) |
//! | 44 | 4 | bytes of the records |
//! | 48 | 4 | number of records |
//! | 52 | 4 | flags: 1 = nothing follows in this segment, the log goes on at the start of the next |
//! | 56 | 8 | identity of the store |

use crate::base::offset::Position;

/// Bytes of a header.
pub const HEADER_BYTES: usize = 64;
/// Batches start at multiples of this.
pub const ALIGN_BYTES: usize = 8;
/// Flag: the last batch of its segment.
pub const FLAG_SEGMENT_END: u32 = 1;

/// The CRC of a batch covers it from here to its end.
pub const CRC_FROM: usize = PREVIOUS_CRC_AT;

const MAGIC: u32 = u32::from_le_bytes(*b"RMQB");
const LENGTH_AT: usize = 4;
const CRC_AT: usize = 8;
const PREVIOUS_CRC_AT: usize = 12;
const POSITION_AT: usize = 16;
const DURABLE_AT: usize = 24;
const FIRST_TIMESTAMP_AT: usize = 32;
const EPOCH_AT: usize = 40;
const RECORD_BYTES_AT: usize = 44;
const RECORD_COUNT_AT: usize = 48;
const FLAGS_AT: usize = 52;
const STORE_ID_AT: usize = 56;
const _: () = assert!(STORE_ID_AT + 8 == HEADER_BYTES);

/// A header as values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchHeader {
    pub length: u32,
    pub crc: u32,
    pub previous_crc: u32,
    pub position: u64,
    pub durable: u64,
    pub first_timestamp_ms: u64,
    pub epoch: u32,
    pub record_bytes: u32,
    pub record_count: u32,
    pub flags: u32,
    pub store_id: u64,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut four = [0; 4];
    four.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(four)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut eight = [0; 8];
    eight.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(eight)
}

impl BatchHeader {
    /// Writes the header in front of a complete batch and returns its CRC.
    /// `batch` is the whole batch with its padding, `self.length` its length.
    pub fn seal(&mut self, batch: &mut [u8]) -> u32 {
        assert!(batch.len() == self.length as usize && batch.len() >= HEADER_BYTES);
        batch[..4].copy_from_slice(&MAGIC.to_le_bytes());
        batch[LENGTH_AT..CRC_AT].copy_from_slice(&self.length.to_le_bytes());
        batch[PREVIOUS_CRC_AT..POSITION_AT].copy_from_slice(&self.previous_crc.to_le_bytes());
        batch[POSITION_AT..DURABLE_AT].copy_from_slice(&self.position.to_le_bytes());
        batch[DURABLE_AT..FIRST_TIMESTAMP_AT].copy_from_slice(&self.durable.to_le_bytes());
        batch[FIRST_TIMESTAMP_AT..EPOCH_AT].copy_from_slice(&self.first_timestamp_ms.to_le_bytes());
        batch[EPOCH_AT..RECORD_BYTES_AT].copy_from_slice(&self.epoch.to_le_bytes());
        batch[RECORD_BYTES_AT..RECORD_COUNT_AT].copy_from_slice(&self.record_bytes.to_le_bytes());
        batch[RECORD_COUNT_AT..FLAGS_AT].copy_from_slice(&self.record_count.to_le_bytes());
        batch[FLAGS_AT..STORE_ID_AT].copy_from_slice(&self.flags.to_le_bytes());
        batch[STORE_ID_AT..HEADER_BYTES].copy_from_slice(&self.store_id.to_le_bytes());
        self.crc = crc32c::crc32c(&batch[PREVIOUS_CRC_AT..]);
        batch[CRC_AT..PREVIOUS_CRC_AT].copy_from_slice(&self.crc.to_le_bytes());
        self.crc
    }

    /// Reads a header if the first [`HEADER_BYTES`] look like the one of a batch at `position`. Checks no CRC.
    pub fn read(bytes: &[u8], position: Position, store_id: u64) -> Option<Self> {
        if bytes.len() < HEADER_BYTES || u32_at(bytes, 0) != MAGIC {
            return None;
        }
        let header = Self {
            length: u32_at(bytes, LENGTH_AT),
            crc: u32_at(bytes, CRC_AT),
            previous_crc: u32_at(bytes, PREVIOUS_CRC_AT),
            position: u64_at(bytes, POSITION_AT),
            durable: u64_at(bytes, DURABLE_AT),
            first_timestamp_ms: u64_at(bytes, FIRST_TIMESTAMP_AT),
            epoch: u32_at(bytes, EPOCH_AT),
            record_bytes: u32_at(bytes, RECORD_BYTES_AT),
            record_count: u32_at(bytes, RECORD_COUNT_AT),
            flags: u32_at(bytes, FLAGS_AT),
            store_id: u64_at(bytes, STORE_ID_AT),
        };
        let fits = header.length as usize >= HEADER_BYTES + header.record_bytes as usize
            && (header.length as usize).is_multiple_of(ALIGN_BYTES);
        (header.position == position.0 && header.store_id == store_id && fits).then_some(header)
    }

    /// Where in `bytes`, at a multiple of [`ALIGN_BYTES`], the first header may begin: only its magic is looked at. Most of what is
    /// searched are zeros, 80 MiB of them after each start.
    pub fn find(bytes: &[u8]) -> Option<usize> {
        let magic = MAGIC.to_le_bytes();
        let at = bytes
            .chunks_exact(ALIGN_BYTES)
            .position(|eight| eight[..4] == magic)?;
        Some(at * ALIGN_BYTES)
    }

    /// Whether there was a header of a batch at `position`, although one of its fields may be another one by now.
    pub fn resembles(bytes: &[u8], position: Position, store_id: u64) -> bool {
        if bytes.len() < HEADER_BYTES {
            return false;
        }
        let marks = [
            u32_at(bytes, 0) == MAGIC,
            u64_at(bytes, POSITION_AT) == position.0,
            u64_at(bytes, STORE_ID_AT) == store_id,
        ];
        marks.iter().filter(|mark| **mark).count() >= 2
    }

    /// Whether the CRC of the whole batch is right. `batch` has at least `self.length` bytes.
    pub fn crc_is_right(&self, batch: &[u8]) -> bool {
        batch.len() >= self.length as usize
            && crc32c::crc32c(&batch[PREVIOUS_CRC_AT..self.length as usize]) == self.crc
    }

    /// The same of a batch in pieces, which are all of it and no more.
    pub fn crc_is_right_in<'a>(&self, pieces: impl IntoIterator<Item = &'a [u8]>) -> bool {
        let (mut crc, mut skip) = (0, CRC_FROM);
        for piece in pieces {
            let counted = &piece[skip.min(piece.len())..];
            skip -= skip.min(piece.len());
            crc = crc32c::crc32c_append(crc, counted);
        }
        crc == self.crc
    }

    /// Whether the log goes on in the next segment.
    pub fn ends_segment(&self) -> bool {
        self.flags & FLAG_SEGMENT_END != 0
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test may panic.
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sealed(records: &[u8], position: u64) -> (BatchHeader, Vec<u8>) {
        let length = (HEADER_BYTES + records.len()).next_multiple_of(ALIGN_BYTES);
        let mut batch = vec![0; length];
        batch[HEADER_BYTES..HEADER_BYTES + records.len()].copy_from_slice(records);
        let mut header = BatchHeader {
            length: length as u32,
            previous_crc: 7,
            position,
            durable: 3,
            first_timestamp_ms: 1_700_000_000_000,
            epoch: 2,
            record_bytes: records.len() as u32,
            record_count: 1,
            flags: 0,
            store_id: 99,
            crc: 0,
        };
        header.seal(&mut batch);
        (header, batch)
    }

    proptest! {
        #[test]
        fn a_header_is_read_as_it_was_sealed(records in proptest::collection::vec(any::<u8>(), 0..300), position in 0u64..1 << 50) {
            let (header, batch) = sealed(&records, position);
            let read = BatchHeader::read(&batch, Position(position), 99).unwrap();
            prop_assert_eq!(read, header);
            prop_assert!(read.crc_is_right(&batch));
        }

        #[test]
        fn a_batch_in_pieces_has_the_same_crc(records in proptest::collection::vec(any::<u8>(), 1..300), size in 1usize..400, at in any::<proptest::sample::Index>(), flip in 0u8..2) {
            let (_, mut batch) = sealed(&records, 4096);
            let at = at.index(batch.len());
            batch[at] ^= flip;
            let header = BatchHeader::read(&batch, Position(4096), 99);
            if let Some(header) = header.filter(|header| header.length as usize == batch.len()) {
                prop_assert_eq!(header.crc_is_right_in(batch.chunks(size)), header.crc_is_right(&batch));
            }
        }

        #[test]
        fn a_flipped_bit_is_noticed(records in proptest::collection::vec(any::<u8>(), 1..300), at in any::<proptest::sample::Index>(), bit in 0u8..8) {
            let (_, mut batch) = sealed(&records, 4096);
            let at = at.index(batch.len());
            batch[at] ^= 1 << bit;
            let whole = BatchHeader::read(&batch, Position(4096), 99).is_some_and(|header| header.crc_is_right(&batch));
            prop_assert!(!whole);
        }

        #[test]
        fn a_header_is_found_where_it_begins(records in proptest::collection::vec(any::<u8>(), 0..300), eights in 0usize..700) {
            let at = eights * ALIGN_BYTES;
            let (_, batch) = sealed(&records, at as u64);
            let bytes = [vec![0; at], batch].concat();
            prop_assert_eq!(BatchHeader::find(&bytes), Some(at));
            prop_assert_eq!(BatchHeader::find(&bytes[..at]), None);
            prop_assert_eq!(BatchHeader::find(&[vec![0; 4], bytes].concat()), None, "between two multiples of eight");
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(header) = BatchHeader::read(&bytes, Position(0), 0) {
                header.crc_is_right(&bytes);
            }
        }
    }

    #[test]
    fn stale_bytes_of_a_recycled_segment_are_no_batch() {
        let (_, batch) = sealed(b"records", 4096);
        assert!(BatchHeader::read(&batch, Position(8192), 99).is_none());
        assert!(BatchHeader::read(&batch, Position(4096), 98).is_none());
    }
}
