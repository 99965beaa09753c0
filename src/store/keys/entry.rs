//! What the key index keeps of a message: a hash per key, its position, its second. Pure.
//!
//! RocketMQ's `IndexService`: a message is found by each of its KEYS (separated by spaces) and by its UNIQ_KEY, within
//! its topic. Hashes are the same for ever, since files keep them; what two keys share by chance is told apart by
//! the record itself.

use std::cmp::Ordering;

use twox_hash::XxHash3_64;

use crate::base::limits::KEYS_PER_MESSAGE_MAX;
use crate::wire::properties::{self, name};

/// Which property of a message a key is looked up in. Both are kept apart, as by RocketMQ's `indexType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// One of KEYS.
    Key,
    /// UNIQ_KEY, the message id that the client made.
    Unique,
}

/// One key of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub hash: u64,
    /// Position of the record in its log.
    pub position: u64,
    /// Store time in seconds since 1970.
    pub seconds: u32,
}

/// By hash, then the newest first: the order in the files.
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.hash, other.position, other.seconds).cmp(&(other.hash, self.position, self.seconds))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// What the hashes of a topic's keys begin with.
#[derive(Clone, Copy, Debug)]
pub struct TopicHash(u64);

impl TopicHash {
    pub fn of(topic: &str) -> Self {
        Self(XxHash3_64::oneshot(topic.as_bytes()))
    }

    /// XXH3 of the key's bytes, seeded with the topic's XXH3 and the kind: eight bytes and more at a time, where a hash that
    /// goes byte by byte was 7 % of all that a broker did for messages in large frames.
    fn key(self, kind: KeyKind, key: &[u8]) -> u64 {
        let seed = match kind {
            KeyKind::Key => self.0,
            KeyKind::Unique => !self.0,
        };
        XxHash3_64::oneshot_with_seed(seed, key)
    }
}

/// The hash under which a key of a topic's message is kept.
pub fn hash_of(topic: &str, kind: KeyKind, key: &str) -> u64 {
    TopicHash::of(topic).key(kind, key.as_bytes())
}

/// What a message is found by, as its properties say it; empty if it has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MessageKeys<'a> {
    /// The last UNIQ_KEY, as a Java map would have it.
    pub unique: &'a [u8],
    /// The last KEYS.
    pub keys: &'a [u8],
}

impl<'a> MessageKeys<'a> {
    /// The keys among a message's properties.
    pub fn of(properties: &'a [u8]) -> Self {
        let mut found = Self::default();
        for (property, value) in properties::iter(properties) {
            if property == name::KEYS.as_bytes() {
                found.keys = value;
            } else if property == name::UNIQUE_KEY.as_bytes() {
                found.unique = value;
            }
        }
        found
    }

    /// Gives the hash of every key to `each`.
    pub fn hashes(self, topic: TopicHash, mut each: impl FnMut(u64)) {
        if !self.unique.is_empty() {
            each(topic.key(KeyKind::Unique, self.unique));
        }
        for key in self.split() {
            each(topic.key(KeyKind::Key, key));
        }
    }

    fn split(self) -> impl Iterator<Item = &'a [u8]> {
        self.keys
            .split(|&byte| byte == b' ')
            .filter(|key| !key.is_empty())
            .take(KEYS_PER_MESSAGE_MAX)
    }
}

/// Whether a message with these properties has this key.
pub fn has_key(properties: &[u8], kind: KeyKind, key: &str) -> bool {
    let keys = MessageKeys::of(properties);
    match kind {
        KeyKind::Key => keys.split().any(|found| found == key.as_bytes()),
        KeyKind::Unique => !keys.unique.is_empty() && keys.unique == key.as_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_and_the_unique_key_are_kept_and_found_again() {
        let properties = b"KEYS\x01one  zwei \x02TAGS\x01t\x02UNIQ_KEY\x01AC\x02";
        let mut hashes = Vec::new();
        MessageKeys::of(properties).hashes(TopicHash::of("T"), |hash| hashes.push(hash));
        let expected = [
            hash_of("T", KeyKind::Unique, "AC"),
            hash_of("T", KeyKind::Key, "one"),
            hash_of("T", KeyKind::Key, "zwei"),
        ];
        assert_eq!(hashes, expected);
        assert!(has_key(properties, KeyKind::Key, "zwei"));
        assert!(!has_key(properties, KeyKind::Key, "on"));
        assert!(!has_key(properties, KeyKind::Key, "AC"), "kinds are apart");
        assert!(has_key(properties, KeyKind::Unique, "AC"));
        assert!(!has_key(b"", KeyKind::Unique, ""));
    }

    #[test]
    fn hashes_never_change_because_files_keep_them() {
        // As the reference implementation has it: xxh3_64("one", seed = xxh3_64("T")).
        assert_eq!(hash_of("T", KeyKind::Key, "one"), 4_023_891_676_530_342_656);
    }

    #[test]
    fn topic_and_kind_are_part_of_the_hash() {
        let hash = hash_of("T", KeyKind::Key, "k");
        assert_ne!(hash, hash_of("T2", KeyKind::Key, "k"));
        assert_ne!(hash, hash_of("T", KeyKind::Unique, "k"));
    }
}
