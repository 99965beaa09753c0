//! A set of numbers that are handed out one after the other.

use ahash::AHashMap;

/// 64 neighbours share a word, so that many of them stay in a cache.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdSet {
    words: AHashMap<u32, u64>,
}

impl IdSet {
    /// Puts a number in.
    pub fn insert(&mut self, id: u32) {
        *self.words.entry(id / u64::BITS).or_default() |= bit(id);
    }

    /// Takes a number out, if it is in.
    pub fn remove(&mut self, id: u32) {
        let number = id / u64::BITS;
        if let Some(word) = self.words.get_mut(&number) {
            *word &= !bit(id);
            if *word == 0 {
                self.words.remove(&number);
            }
        }
    }

    /// Whether a number is in.
    pub fn contains(&self, id: u32) -> bool {
        let word = self.words.get(&(id / u64::BITS));
        word.is_some_and(|word| word & bit(id) != 0)
    }
}

fn bit(id: u32) -> u64 {
    1 << (id % u64::BITS)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn has_what_a_set_has_and_keeps_no_empty_words(
            steps in prop::collection::vec((any::<bool>(), 0u32..300), 0..200),
        ) {
            let (mut ids, mut plain) = (IdSet::default(), BTreeSet::new());
            for (goes_in, id) in steps {
                // Some are far away.
                let id = if id < 250 { id } else { u32::MAX - id };
                if goes_in {
                    ids.insert(id);
                    plain.insert(id);
                } else {
                    ids.remove(id);
                    plain.remove(&id);
                }
                prop_assert_eq!(ids.contains(id), goes_in);
            }
            for id in (0..300).chain(u32::MAX - 300..=u32::MAX) {
                prop_assert_eq!(ids.contains(id), plain.contains(&id));
            }
            let words: BTreeSet<u32> = plain.iter().map(|id| id / u64::BITS).collect();
            prop_assert_eq!(ids.words.len(), words.len());
        }
    }
}
