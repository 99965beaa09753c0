//! What the key index keeps of a message: a hash per key, its position, its second. Pure.
//!
//! RocketMQ's `IndexService`: a message is found by each of its KEYS (separated by spaces) and by its UNIQ_KEY, within
//! its topic. Hashes are the same for ever, since files keep them; what two keys share by chance is told apart by
//! the record itself.

use std::cmp::Ordering;

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

/// FNV-1a of 64 bits; [`finish`] spreads it over all bits.
fn feed(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    })
}

/// The finalizer of MurmurHash3.
fn finish(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xC4CE_B9FE_1A85_EC53);
    hash ^ (hash >> 33)
}

fn topic_hash(topic: &str) -> u64 {
    feed(0xCBF2_9CE4_8422_2325, topic.as_bytes())
}

fn key_hash(topic_hash: u64, kind: KeyKind, key: &[u8]) -> u64 {
    // No topic has these bytes.
    let mark: &[u8] = match kind {
        KeyKind::Key => &[1],
        KeyKind::Unique => &[2],
    };
    finish(feed(feed(topic_hash, mark), key))
}

/// The hash under which a key of a topic's message is kept.
pub fn hash_of(topic: &str, kind: KeyKind, key: &str) -> u64 {
    key_hash(topic_hash(topic), kind, key.as_bytes())
}

/// The last KEYS and UNIQ_KEY of a message, as a Java map would have them.
fn key_properties(properties: &[u8]) -> (&[u8], &[u8]) {
    let (mut keys, mut unique): (&[u8], &[u8]) = (&[], &[]);
    for (found, value) in properties::iter(properties) {
        if found == name::KEYS.as_bytes() {
            keys = value;
        } else if found == name::UNIQUE_KEY.as_bytes() {
            unique = value;
        }
    }
    (keys, unique)
}

fn split_keys(keys: &[u8]) -> impl Iterator<Item = &[u8]> {
    keys.split(|&byte| byte == b' ')
        .filter(|key| !key.is_empty())
        .take(KEYS_PER_MESSAGE_MAX)
}

/// Gives the hash of every key of a message to `each`.
pub fn hashes_of(topic: &str, properties: &[u8], mut each: impl FnMut(u64)) {
    let (keys, unique) = key_properties(properties);
    if keys.is_empty() && unique.is_empty() {
        return;
    }
    let topic_hash = topic_hash(topic);
    if !unique.is_empty() {
        each(key_hash(topic_hash, KeyKind::Unique, unique));
    }
    for key in split_keys(keys) {
        each(key_hash(topic_hash, KeyKind::Key, key));
    }
}

/// Whether a message with these properties has this key.
pub fn has_key(properties: &[u8], kind: KeyKind, key: &str) -> bool {
    let (keys, unique) = key_properties(properties);
    match kind {
        KeyKind::Key => split_keys(keys).any(|found| found == key.as_bytes()),
        KeyKind::Unique => !unique.is_empty() && unique == key.as_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_and_the_unique_key_are_kept_and_found_again() {
        let properties = b"KEYS\x01one  zwei \x02TAGS\x01t\x02UNIQ_KEY\x01AC\x02";
        let mut hashes = Vec::new();
        hashes_of("T", properties, |hash| hashes.push(hash));
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
        assert_eq!(
            hash_of("T", KeyKind::Key, "one"),
            18_034_150_408_818_225_095
        );
    }

    #[test]
    fn topic_and_kind_are_part_of_the_hash() {
        let hash = hash_of("T", KeyKind::Key, "k");
        assert_ne!(hash, hash_of("T2", KeyKind::Key, "k"));
        assert_ne!(hash, hash_of("T", KeyKind::Unique, "k"));
    }
}
