//! Bringing entries into the order of the files: what was in memory is sorted, runs are merged. Pure, and in steps.
//!
//! Hashes are spread evenly, so their upper bits say nearly where an entry goes: sorting is two passes over memory and
//! then neighbours. Hashes that someone made alike on purpose cost a comparing sort, as any would.

use crate::store::keys::entry::Entry;
use crate::store::keys::parts::MERGE_RUNS;

/// Entries of one bucket, on average. The counters of a part of 32,768 entries then are 32 KiB.
const BUCKET_ENTRIES: usize = 4;

/// Sorts entries by buckets of their hashes. First all of them are counted, then all placed, then each bucket is sorted.
pub struct BucketSort {
    /// Of a hash, to get its bucket.
    shift: u32,
    /// While counting: entries of each bucket. Then where its next entry goes; in the end where it ends.
    ends: Vec<u32>,
    entries: Vec<Entry>,
    /// Buckets that are sorted.
    sorted: usize,
}

impl BucketSort {
    /// A sort of so many entries, fewer than 2^32.
    pub fn new(count: usize) -> Self {
        let buckets = (count / BUCKET_ENTRIES).next_power_of_two().max(2);
        let nothing = Entry {
            hash: 0,
            position: 0,
            seconds: 0,
        };
        Self {
            shift: u64::BITS - buckets.trailing_zeros(),
            ends: vec![0; buckets],
            entries: vec![nothing; count],
            sorted: 0,
        }
    }

    /// Step one, for all entries, in any pieces.
    pub fn count(&mut self, piece: &[Entry]) {
        for entry in piece {
            self.ends[(entry.hash >> self.shift) as usize] += 1;
        }
    }

    /// Between the first and the second step.
    pub fn counted(&mut self) {
        let mut at = 0;
        for end in &mut self.ends {
            at += std::mem::replace(end, at);
        }
        assert_eq!(
            at as usize,
            self.entries.len(),
            "each entry is counted once"
        );
    }

    /// Step two, for the same entries.
    pub fn place(&mut self, piece: &[Entry]) {
        for entry in piece {
            let end = &mut self.ends[(entry.hash >> self.shift) as usize];
            self.entries[*end as usize] = *entry;
            *end += 1;
        }
    }

    /// Step three: sorts on until about so many entries are done. False: all are.
    pub fn sort(&mut self, entries: usize) -> bool {
        let begin = self.sorted_entries();
        let mut from = begin;
        while self.sorted < self.ends.len() && from - begin < entries {
            let to = self.ends[self.sorted] as usize;
            self.entries[from..to].sort_unstable();
            from = to;
            self.sorted += 1;
        }
        self.sorted < self.ends.len()
    }

    fn sorted_entries(&self) -> usize {
        self.sorted
            .checked_sub(1)
            .map_or(0, |last| self.ends[last] as usize)
    }

    /// The entries, in the order of [`Entry`] when all steps are done.
    pub fn into_entries(self) -> Vec<Entry> {
        self.entries
    }
}

/// Which of at most [`MERGE_RUNS`] runs has the next entry, by the hashes on which they stand. Runs with larger positions
/// come first: of two entries with one hash, theirs is the newer.
pub struct Heads {
    /// Those that are at their end have the largest hash and stand behind all that are not.
    hashes: [u64; MERGE_RUNS],
    count: usize,
}

impl Heads {
    /// Panics if there are too many.
    pub fn new(hashes: impl Iterator<Item = u64>) -> Self {
        let mut heads = Self {
            hashes: [u64::MAX; MERGE_RUNS],
            count: 0,
        };
        for hash in hashes {
            heads.hashes[heads.count] = hash;
            heads.count += 1;
        }
        heads
    }

    /// The run that is next; `None` when all are at their end.
    pub fn lowest(&self) -> Option<usize> {
        // No branch depends on the hashes, which nobody could foretell.
        let mut lowest = (self.hashes[0], 0);
        for (at, &hash) in self.hashes.iter().enumerate().skip(1) {
            lowest = if hash < lowest.0 { (hash, at) } else { lowest };
        }
        (self.count > 0).then_some(lowest.1)
    }

    /// A run stands on another entry.
    pub fn set(&mut self, at: usize, hash: u64) {
        self.hashes[at] = hash;
    }

    /// A run is at its end: those behind it move up by one.
    pub fn remove(&mut self, at: usize) {
        self.hashes.copy_within(at + 1.., at);
        self.hashes[MERGE_RUNS - 1] = u64::MAX;
        self.count -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sorted(entries: &[Entry], step: usize) -> Vec<Entry> {
        let mut sort = BucketSort::new(entries.len());
        entries.chunks(step).for_each(|piece| sort.count(piece));
        sort.counted();
        entries.chunks(step).for_each(|piece| sort.place(piece));
        while sort.sort(step) {}
        sort.into_entries()
    }

    /// Merges runs, each of which has the positions before those of the one before it.
    fn merged(runs: &[Vec<Entry>]) -> Vec<Entry> {
        let mut rest: Vec<&[Entry]> = runs.iter().map(|run| &run[..]).collect();
        rest.retain(|run| !run.is_empty());
        let mut heads = Heads::new(rest.iter().map(|run| run[0].hash));
        let mut out = Vec::new();
        while let Some(at) = heads.lowest() {
            out.push(rest[at][0]);
            rest[at] = &rest[at][1..];
            match rest[at].first() {
                Some(entry) => heads.set(at, entry.hash),
                None => {
                    heads.remove(at);
                    rest.remove(at);
                }
            }
        }
        out
    }

    /// Few and many different hashes, also the first and the last there are.
    fn hashes() -> impl Strategy<Value = u64> {
        prop_oneof![any::<u64>(), 0u64..4, (0u64..4).prop_map(|n| u64::MAX - n)]
    }

    proptest! {
        #[test]
        fn buckets_sort_as_a_comparing_sort_does(
            hashes in proptest::collection::vec(hashes(), 0..400),
            step in 1usize..200,
        ) {
            let entries: Vec<Entry> = hashes
                .iter()
                .enumerate()
                .map(|(n, &hash)| Entry { hash, position: n as u64 / 2, seconds: n as u32 % 3 })
                .collect();
            let mut expected = entries.clone();
            expected.sort();
            prop_assert_eq!(sorted(&entries, step), expected);
        }

        #[test]
        fn a_merge_of_runs_is_all_of_them_in_order(
            hashes in proptest::collection::vec(proptest::collection::vec(hashes(), 0..30), 0..=MERGE_RUNS),
        ) {
            let mut position = 0;
            let mut runs: Vec<Vec<Entry>> = hashes
                .iter()
                .map(|hashes| {
                    let mut run: Vec<Entry> = hashes
                        .iter()
                        .map(|&hash| {
                            position += 1;
                            Entry { hash, position, seconds: 7 }
                        })
                        .collect();
                    run.sort();
                    run
                })
                .collect();
            runs.reverse();
            let mut expected = runs.concat();
            expected.sort();
            prop_assert_eq!(merged(&runs), expected);
        }
    }
}
