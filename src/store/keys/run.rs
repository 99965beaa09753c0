//! A run on the disk: `keys/<id>.keys`, written once.
//!
//! Sector 0 is the header. Then blocks of one sector: CRC-32C of what follows (u32), number of entries (u32), 8 bytes
//! unused, and up to [`BLOCK_ENTRIES`] entries of 20 bytes (hash u64, position u64, seconds u32) in the order of
//! [`Entry`]. Behind the blocks the hash of each block's first entry (u64, the fences), and a Bloom filter, each on whole
//! sectors. All little-endian. The header is written when everything else is flushed: a file with a whole
//! header is a whole file.

use crate::base::limits::SECTOR_BYTES;
use crate::store::keys::entry::Entry;
use crate::store::keys::parts::Run;
use crate::store::snapshot::{Reader, Short, Writer};

const MAGIC: u32 = u32::from_le_bytes(*b"RMQK");
/// 1 had other hashes and another filter; such a file is made again from the log.
const VERSION: u32 = 2;
const BLOCK_HEADER_BYTES: usize = 16;
const ENTRY_BYTES: usize = 20;
/// Entries of one block.
pub const BLOCK_ENTRIES: usize = (SECTOR_BYTES - BLOCK_HEADER_BYTES) / ENTRY_BYTES;
/// Bits that one entry sets in the filter.
const FILTER_PROBES: u32 = 6;
/// All bits of an entry lie in one part of the filter of this size: one cache line.
const FILTER_LINE_BYTES: usize = 64;

/// Where the fences of a run begin.
pub fn fences_at(blocks: u32) -> u64 {
    (1 + u64::from(blocks)) * SECTOR_BYTES as u64
}

/// Bytes of the fences without padding.
pub fn fences_bytes(blocks: u32) -> usize {
    blocks as usize * 8
}

/// Where the filter of a run begins.
pub fn filter_at(blocks: u32) -> u64 {
    fences_at(blocks) + fences_bytes(blocks).next_multiple_of(SECTOR_BYTES) as u64
}

/// Bytes of the file of a run of so many entries.
pub fn file_bytes(entries: u64) -> u64 {
    let blocks = entries.div_ceil(BLOCK_ENTRIES as u64) as u32;
    let filter_bytes = Filter::bytes_for(entries);
    filter_at(blocks) + filter_bytes.next_multiple_of(SECTOR_BYTES) as u64
}

/// Header of a run as one sector.
pub fn encode_header(run: &Run, store_id: u64, log: u8) -> Vec<u8> {
    let mut out = Writer::default();
    out.u32(MAGIC);
    out.u32(VERSION);
    out.u64(store_id);
    out.u32(log.into());
    out.u64(run.id);
    out.u64(run.from);
    out.u64(run.to);
    out.u64(run.entries);
    out.u32(run.blocks);
    out.u32(run.filter_bytes);
    out.u32(run.first_seconds);
    out.u32(run.last_seconds);
    out.u32(run.fences_crc);
    out.u32(run.filter_crc);
    let mut sector = out.finish();
    let crc = crc32c::crc32c(&sector);
    sector.extend_from_slice(&crc.to_le_bytes());
    sector.resize(SECTOR_BYTES, 0);
    sector
}

/// The run of a header, or `None` if it is none, or one of another store.
pub fn decode_header(sector: &[u8], store_id: u64, log: u8) -> Option<Run> {
    let mut input = Reader::new(sector);
    let parse = |input: &mut Reader<'_>| -> Result<_, Short> {
        let kind = (input.u32()?, input.u32()?, input.u64()?, input.u32()?);
        let run = Run {
            id: input.u64()?,
            from: input.u64()?,
            to: input.u64()?,
            entries: input.u64()?,
            blocks: input.u32()?,
            filter_bytes: input.u32()?,
            first_seconds: input.u32()?,
            last_seconds: input.u32()?,
            fences_crc: input.u32()?,
            filter_crc: input.u32()?,
        };
        Ok((kind, run))
    };
    let (kind, run) = parse(&mut input).ok()?;
    let bytes = sector.len() - input.left();
    let crc = input.u32().ok()?;
    let right = kind == (MAGIC, VERSION, store_id, u32::from(log))
        && crc == crc32c::crc32c(&sector[..bytes])
        && run.from < run.to
        && run.entries <= u64::from(run.blocks) * BLOCK_ENTRIES as u64;
    right.then_some(run)
}

/// Fills one sector with entries.
pub fn encode_block(entries: &[Entry], sector: &mut [u8]) {
    assert!(entries.len() <= BLOCK_ENTRIES && sector.len() == SECTOR_BYTES);
    sector.fill(0);
    sector[4..8].copy_from_slice(&(entries.len() as u32).to_le_bytes());
    let places = sector[BLOCK_HEADER_BYTES..].chunks_exact_mut(ENTRY_BYTES);
    for (entry, place) in entries.iter().zip(places) {
        place[..8].copy_from_slice(&entry.hash.to_le_bytes());
        place[8..16].copy_from_slice(&entry.position.to_le_bytes());
        place[16..].copy_from_slice(&entry.seconds.to_le_bytes());
    }
    let crc = crc32c::crc32c(&sector[4..]);
    sector[..4].copy_from_slice(&crc.to_le_bytes());
}

/// The entries of a block, or `None` if it is damaged.
pub fn decode_block(sector: &[u8]) -> Option<impl Iterator<Item = Entry> + '_> {
    let (crc, rest) = sector.split_first_chunk::<4>()?;
    let (count, _) = rest.split_first_chunk::<4>()?;
    let count = u32::from_le_bytes(*count) as usize;
    if sector.len() != SECTOR_BYTES
        || u32::from_le_bytes(*crc) != crc32c::crc32c(rest)
        || count > BLOCK_ENTRIES
    {
        return None;
    }
    let places = sector[BLOCK_HEADER_BYTES..].chunks_exact(ENTRY_BYTES);
    Some(places.take(count).filter_map(|place| {
        let (hash, place) = place.split_first_chunk::<8>()?;
        let (position, place) = place.split_first_chunk::<8>()?;
        Some(Entry {
            hash: u64::from_le_bytes(*hash),
            position: u64::from_le_bytes(*position),
            seconds: u32::from_le_bytes(*place.first_chunk::<4>()?),
        })
    }))
}

/// First block that may have this hash, if any has.
pub fn first_block(fences: &[u64], hash: u64) -> usize {
    // The last block that begins before the hash may end with it.
    fences
        .partition_point(|&fence| fence < hash)
        .saturating_sub(1)
}

/// A Bloom filter of 8 bits for each entry: some 3 % of the hashes that are not there seem to be.
pub struct Filter(Vec<u8>);

impl Filter {
    /// An empty filter for so many entries.
    pub fn with_room(entries: u64) -> Self {
        Self(vec![0; Self::bytes_for(entries)])
    }

    fn bytes_for(entries: u64) -> usize {
        let bytes = (entries as usize).next_multiple_of(FILTER_LINE_BYTES);
        bytes.max(FILTER_LINE_BYTES)
    }

    pub fn from_bytes(bytes: Vec<u8>) -> Option<Self> {
        (!bytes.is_empty() && bytes.len().is_multiple_of(FILTER_LINE_BYTES)).then_some(Self(bytes))
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The line of a hash and, in its upper bits, the bits of that line, nine for each probe.
    fn places(&self, hash: u64) -> (usize, u64) {
        // The upper bits choose the line, so that sorted entries fill one line after the other.
        let lines = (self.0.len() / FILTER_LINE_BYTES) as u128;
        let line = ((u128::from(hash) * lines) >> 64) as usize * FILTER_LINE_BYTES;
        (line, hash.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    /// Byte and mask of one probe in its line.
    fn probe(bits: u64, number: u32) -> (usize, u8) {
        let bit = (bits >> (55 - 9 * number)) as usize % (8 * FILTER_LINE_BYTES);
        (bit / 8, 1 << (bit % 8))
    }

    pub fn add(&mut self, hash: u64) {
        let (line, bits) = self.places(hash);
        let line = &mut self.0[line..line + FILTER_LINE_BYTES];
        for number in 0..FILTER_PROBES {
            let (byte, mask) = Self::probe(bits, number);
            line[byte] |= mask;
        }
    }

    /// False if it surely is not there.
    pub fn may_have(&self, hash: u64) -> bool {
        let (line, bits) = self.places(hash);
        let line = &self.0[line..line + FILTER_LINE_BYTES];
        (0..FILTER_PROBES).all(|number| {
            let (byte, mask) = Self::probe(bits, number);
            line[byte] & mask != 0
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run() -> Run {
        Run {
            id: 7,
            from: 10,
            to: 20,
            entries: 300,
            blocks: 2,
            filter_bytes: 320,
            first_seconds: 1,
            last_seconds: 2,
            fences_crc: 3,
            filter_crc: 4,
        }
    }

    #[test]
    fn a_header_is_taken_only_if_it_is_whole_and_ours() {
        let sector = encode_header(&run(), 5, 1);
        assert_eq!(decode_header(&sector, 5, 1), Some(run()));
        assert_eq!(decode_header(&sector, 6, 1), None);
        assert_eq!(decode_header(&sector, 5, 0), None);
        for at in 0..80 {
            let mut bad = sector.clone();
            bad[at] ^= 1;
            assert_ne!(decode_header(&bad, 5, 1), Some(run()), "byte {at}");
        }
        assert_eq!(decode_header(&[], 5, 1), None);
    }

    #[test]
    fn the_filter_has_all_that_was_added_and_little_else() {
        let hash = |n: u64| {
            crate::store::keys::entry::hash_of(
                "t",
                crate::store::keys::entry::KeyKind::Key,
                &n.to_string(),
            )
        };
        let mut filter = Filter::with_room(20_000);
        (0..20_000).for_each(|n| filter.add(hash(n)));
        assert!((0..20_000).all(|n| filter.may_have(hash(n))));
        let wrong = (20_000..120_000)
            .filter(|&n| filter.may_have(hash(n)))
            .count();
        assert!(wrong < 5_000, "{wrong} of 100,000");
    }

    proptest! {
        #[test]
        fn a_block_comes_back_and_damage_is_seen(
            entries in proptest::collection::vec((any::<u64>(), any::<u64>(), any::<u32>()), 0..=BLOCK_ENTRIES),
            at in 0..SECTOR_BYTES,
        ) {
            let entries: Vec<Entry> = entries
                .into_iter()
                .map(|(hash, position, seconds)| Entry { hash, position, seconds })
                .collect();
            let mut sector = vec![1; SECTOR_BYTES];
            encode_block(&entries, &mut sector);
            prop_assert_eq!(decode_block(&sector).unwrap().collect::<Vec<_>>(), entries);
            sector[at] ^= 1;
            prop_assert!(decode_block(&sector).is_none());
        }

        #[test]
        fn no_block_with_a_hash_lies_before_the_first_one(mut hashes in proptest::collection::vec(0u64..40, 1..60), wanted in 0u64..40) {
            hashes.sort_unstable();
            let blocks: Vec<&[u64]> = hashes.chunks(4).collect();
            let fences: Vec<u64> = blocks.iter().map(|block| block[0]).collect();
            let first = first_block(&fences, wanted);
            let real = blocks.iter().position(|block| block.contains(&wanted));
            prop_assert!(real.is_none_or(|real| first <= real && real <= first + 1));
        }
    }
}
