//! Message properties: `name \x01 value \x02`, one after the other, and what is computed from them.
//!
//! Source: `common/.../message/MessageDecoder.string2messageProperties`, `MessageConst`, `MessageExtBrokerInner`.

use bytes::{BufMut, Bytes, BytesMut};

/// Between a name and its value.
pub const NAME_END: u8 = 1;
/// Behind a value. The last one may lack it.
pub const VALUE_END: u8 = 2;

macro_rules! names {
    ($($(#[$meta:meta])* $name:ident = $text:literal,)*) => {
        $($(#[$meta])* pub const $name: &str = $text;)*
    };
}

/// Names of properties that RocketMQ gives a meaning (`MessageConst`).
pub mod name {
    names! {
        /// Separated by spaces.
        KEYS = "KEYS",
        TAGS = "TAGS",
        WAIT = "WAIT",
        DELAY = "DELAY",
        RETRY_TOPIC = "RETRY_TOPIC",
        ORIGIN_GROUP = "ORIGIN_GROUP",
        REAL_TOPIC = "REAL_TOPIC",
        REAL_QUEUE_ID = "REAL_QID",
        TRANSACTION_PREPARED = "TRAN_MSG",
        PRODUCER_GROUP = "PGROUP",
        MIN_OFFSET = "MIN_OFFSET",
        MAX_OFFSET = "MAX_OFFSET",
        ORIGIN_MESSAGE_ID = "ORIGIN_MESSAGE_ID",
        RECONSUME_TIME = "RECONSUME_TIME",
        MSG_REGION = "MSG_REGION",
        TRACE_ON = "TRACE_ON",
        /// Unique id that the client made.
        UNIQUE_KEY = "UNIQ_KEY",
        MAX_RECONSUME_TIMES = "MAX_RECONSUME_TIMES",
        PRIORITY = "_SYS_MSG_PRIORITY_",
        INNER_NUM = "INNER_NUM",
        INNER_BASE = "INNER_BASE",
        CHECK_IMMUNITY_TIME = "CHECK_IMMUNITY_TIME_IN_SECONDS",
        TRANSACTION_PREPARED_QUEUE_OFFSET = "TRAN_PREPARED_QUEUE_OFFSET",
        TRANSACTION_ID = "__transactionId__",
        TRANSACTION_CHECK_TIMES = "TRANSACTION_CHECK_TIMES",
        CORRELATION_ID = "CORRELATION_ID",
        REPLY_TO_CLIENT = "REPLY_TO_CLIENT",
        TTL = "TTL",
        PUSH_REPLY_TIME = "PUSH_REPLY_TIME",
        MESSAGE_TYPE = "MSG_TYPE",
        CLUSTER = "CLUSTER",
        POP_CK = "POP_CK",
        FIRST_POP_TIME = "1ST_POP_TIME",
        SHARDING_KEY = "__SHARDINGKEY",
        TIMER_DELAY_SEC = "TIMER_DELAY_SEC",
        TIMER_DELAY_MS = "TIMER_DELAY_MS",
        TIMER_DELIVER_MS = "TIMER_DELIVER_MS",
        TIMER_ENQUEUE_MS = "TIMER_ENQUEUE_MS",
        TIMER_DEQUEUE_MS = "TIMER_DEQUEUE_MS",
        TIMER_ROLL_TIMES = "TIMER_ROLL_TIMES",
        TIMER_OUT_MS = "TIMER_OUT_MS",
        TIMER_DEL_UNIQUE_KEY = "TIMER_DEL_UNIQKEY",
        DLQ_ORIGIN_TOPIC = "DLQ_ORIGIN_TOPIC",
        DLQ_ORIGIN_MESSAGE_ID = "DLQ_ORIGIN_MESSAGE_ID",
    }
}

/// All properties by Java's rules: a part without a name, a value or the byte between them is skipped.
pub fn iter(properties: &[u8]) -> Iter<'_> {
    Iter {
        properties,
        word_at: 0,
        found: 0,
        scanned: 0,
        part_at: 0,
    }
}

/// See [`iter`]. Both separators are looked for at once, eight bytes at a time: names and values are short, so that wider
/// steps, which have to be set up for each of them, cost more than they save.
#[derive(Clone, Debug)]
pub struct Iter<'a> {
    properties: &'a [u8],
    /// Of the word in which separators were found.
    word_at: usize,
    /// The upper bit of each of its bytes that may be a separator and has not been looked at.
    found: u64,
    /// Words before this have been looked for separators.
    scanned: usize,
    /// Where the next part begins.
    part_at: usize,
}

impl Iter<'_> {
    /// The next separator and where it is.
    #[inline]
    fn separator(&mut self) -> Option<(usize, u8)> {
        loop {
            while self.found != 0 {
                let at = self.word_at + self.found.trailing_zeros() as usize / 8;
                self.found &= self.found - 1;
                match self.properties.get(at) {
                    Some(&byte @ (NAME_END | VALUE_END)) => return Some((at, byte)),
                    // Another byte that is as small, or one above it.
                    _ => continue,
                }
            }
            let rest = self.properties.get(self.scanned..)?;
            let word = match rest.first_chunk() {
                Some(chunk) => u64::from_le_bytes(*chunk),
                None if rest.is_empty() => return None,
                None => {
                    let mut last = [0xFF; 8];
                    last[..rest.len()].copy_from_slice(rest);
                    u64::from_le_bytes(last)
                }
            };
            self.found = at_most_two(word);
            self.word_at = self.scanned;
            self.scanned += 8;
        }
    }
}

impl<'a> Iterator for Iter<'a> {
    type Item = (&'a [u8], &'a [u8]);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let start = self.part_at;
            if start >= self.properties.len() {
                return None;
            }
            let mut name_end = None;
            let end = loop {
                match self.separator() {
                    Some((at, NAME_END)) => name_end = name_end.or(Some(at)),
                    Some((at, _)) => break at,
                    None => break self.properties.len(),
                }
            };
            self.part_at = end + 1;
            let Some(name_end) = name_end else { continue };
            let name = &self.properties[start..name_end];
            let value = &self.properties[name_end + 1..end];
            if !name.is_empty() && !value.is_empty() {
                return Some((name, value));
            }
        }
    }
}

/// The upper bit of each byte that is two or less. Above the first such byte others may be marked, too.
const fn at_most_two(word: u64) -> u64 {
    const ONES: u64 = u64::MAX / 0xFF;
    word.wrapping_sub(3 * ONES) & !word & (0x80 * ONES)
}

fn split_pair(part: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = part.iter().position(|&byte| byte == NAME_END)?;
    let (name, value) = (&part[..at], &part[at + 1..]);
    (!name.is_empty() && !value.is_empty()).then_some((name, value))
}

/// A property's value. If the name comes more than once the last one counts, as in a Java map. A value that is not UTF-8
/// is none; from a client it cannot come, because header text is UTF-8 by then.
pub fn get<'a>(properties: &'a [u8], name: &str) -> Option<&'a str> {
    let (_, value) = iter(properties)
        .filter(|(found, _)| *found == name.as_bytes())
        .last()?;
    std::str::from_utf8(value).ok()
}

/// Whether a property is there.
pub fn contains(properties: &[u8], name: &str) -> bool {
    iter(properties).any(|(found, _)| found == name.as_bytes())
}

/// Java's `Boolean.parseBoolean` of a property.
pub fn flag(properties: &[u8], name: &str) -> bool {
    get(properties, name).is_some_and(|value| value.eq_ignore_ascii_case("true"))
}

/// A property as a number; none if it is not one.
pub fn int(properties: &[u8], name: &str) -> Option<i64> {
    get(properties, name)?.parse().ok()
}

/// Java's `String.hashCode`, over UTF-16 units.
pub fn hash_code(text: &str) -> i32 {
    text.encode_utf16().fold(0i32, |hash, unit| {
        hash.wrapping_mul(31).wrapping_add(i32::from(unit))
    })
}

/// The tags code of a queue entry: the hash of TAGS, sign-extended.
pub fn tags_code(tags: &str) -> i64 {
    hash_code(tags).into()
}

/// The tags code of a message with these properties; 0 without tags.
pub fn tags_code_of(properties: &[u8]) -> i64 {
    get(properties, name::TAGS).map_or(0, tags_code)
}

/// Properties that are being changed. What is not touched stays byte for byte.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PropertiesBuilder {
    text: BytesMut,
}

impl PropertiesBuilder {
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts with a copy of `properties` and room for `spare_bytes` more.
    pub fn from_bytes(properties: &[u8], spare_bytes: usize) -> Self {
        let mut text = BytesMut::with_capacity(properties.len() + spare_bytes);
        text.extend_from_slice(properties);
        Self { text }
    }

    /// Adds a property behind all others, whether or not it is there already. The two separators are left out of what is
    /// given, because they would make other properties; an empty name or value adds nothing.
    pub fn append(&mut self, name: &str, value: &str) -> &mut Self {
        if name.is_empty() || value.is_empty() {
            return self;
        }
        if !matches!(self.text.last(), None | Some(&VALUE_END)) {
            self.text.put_u8(VALUE_END);
        }
        let start = self.text.len();
        self.put(name);
        let name_end = self.text.len();
        self.text.put_u8(NAME_END);
        self.put(value);
        if name_end == start || self.text.len() == name_end + 1 {
            self.text.truncate(start);
        } else {
            self.text.put_u8(VALUE_END);
        }
        self
    }

    /// Adds a property, in place of any that has its name.
    pub fn set(&mut self, name: &str, value: &str) -> &mut Self {
        self.remove(name);
        self.append(name, value)
    }

    /// Removes all properties of a name.
    pub fn remove(&mut self, name: &str) -> &mut Self {
        if contains(&self.text, name) {
            let mut kept = BytesMut::with_capacity(self.text.capacity());
            for part in self.text.split_inclusive(|&byte| byte == VALUE_END) {
                let bare = part.strip_suffix(&[VALUE_END]).unwrap_or(part);
                if split_pair(bare).is_none_or(|(found, _)| found != name.as_bytes()) {
                    kept.extend_from_slice(part);
                }
            }
            self.text = kept;
        }
        self
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        get(&self.text, name)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.text
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.text.len()
    }

    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    pub fn finish(self) -> Bytes {
        self.text.freeze()
    }

    fn put(&mut self, text: &str) {
        for piece in text
            .as_bytes()
            .split(|&byte| byte == NAME_END || byte == VALUE_END)
        {
            self.text.put_slice(piece);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pairs(properties: &[u8]) -> Vec<(String, String)> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        iter(properties)
            .map(|(name, value)| (text(name), text(value)))
            .collect()
    }

    /// The rules as they are said, one part after the other.
    fn split(properties: &[u8]) -> Vec<(&[u8], &[u8])> {
        properties
            .split(|&byte| byte == VALUE_END)
            .filter_map(split_pair)
            .collect()
    }

    proptest! {
        #[test]
        fn separators_are_found_wherever_they_are(
            text in prop::collection::vec(prop::sample::select(&[0u8, 1, 1, 2, 2, 3, b'a', b'b', 0x7F, 0x80, 0x81, 0x82, 0xFF][..]), 0..80),
        ) {
            prop_assert_eq!(iter(&text).collect::<Vec<_>>(), split(&text));
        }
    }

    #[test]
    fn parts_that_are_no_pair_are_skipped() {
        let found = pairs(b"KEYS\x01k\x02\x02x\x02\x01v\x02n\x01\x02a\x01b\x01c\x02last\x01one");
        let wanted = [("KEYS", "k"), ("a", "b\u{1}c"), ("last", "one")];
        assert_eq!(
            found,
            wanted.map(|(name, value)| (name.to_owned(), value.to_owned()))
        );
        assert_eq!(get(b"a\x011\x02a\x012\x02", "a"), Some("2"));
        assert_eq!(get(b"a\x01\xFF\x02", "a"), None);
        assert!(flag(b"WAIT\x01TRUE\x02", name::WAIT));
        assert_eq!(int(b"DELAY\x013", name::DELAY), Some(3));
        assert_eq!(int(b"DELAY\x01x", name::DELAY), None);
    }

    #[test]
    fn the_tags_code_is_javas_hash_code() {
        for (tags, code) in [
            ("", 0),
            ("a", 97),
            ("TagA", 2_598_919),
            ("polygenelubricants", i64::from(i32::MIN)),
            ("\u{1F600}", 1_772_899),
            ("中文", 646_394),
        ] {
            assert_eq!(tags_code(tags), code, "{tags}");
        }
        assert_eq!(tags_code_of(b"KEYS\x01k\x02TAGS\x01a\x02"), 97);
        assert_eq!(tags_code_of(b"KEYS\x01k\x02"), 0);
    }

    #[test]
    fn the_separator_that_old_clients_leave_out_is_added() {
        let mut builder = PropertiesBuilder::from_bytes(b"a\x01b", 16);
        builder.append("c", "d").remove("x").set("a", "B");
        assert_eq!(builder.as_bytes(), b"c\x01d\x02a\x01B\x02");
        builder
            .append("evil", "1\u{2}TRAN_MSG\u{1}true")
            .append("", "x")
            .append("y", "\u{1}");
        assert_eq!(pairs(builder.as_bytes()).len(), 3);
        assert_eq!(builder.get("TRAN_MSG"), None);
    }

    proptest! {
        #[test]
        fn properties_read_back(wanted in proptest::collection::vec(("[^\u{1}\u{2}]{1,9}", "[^\u{1}\u{2}]{1,9}"), 0..9)) {
            let mut builder = PropertiesBuilder::new();
            for (name, value) in &wanted {
                builder.append(name, value);
            }
            prop_assert_eq!(pairs(builder.as_bytes()), wanted);
        }

        #[test]
        fn set_and_remove_change_one_name_only(bytes in any::<Vec<u8>>(), name in "[a-z]{1,2}") {
            let mut builder = PropertiesBuilder::from_bytes(&bytes, 0);
            let others: Vec<_> =
                pairs(&bytes).into_iter().filter(|(found, _)| *found != name).collect();
            builder.set(&name, "value");
            prop_assert_eq!(builder.get(&name), Some("value"));
            builder.remove(&name);
            prop_assert_eq!(pairs(builder.as_bytes()), others);
        }

        #[test]
        fn removing_what_clients_wrote_leaves_the_rest(
            names in proptest::collection::vec("[abc]", 0..9),
            unterminated in any::<bool>(),
        ) {
            let mut text: Vec<u8> =
                names.iter().flat_map(|name| format!("{name}\u{1}v\u{2}").into_bytes()).collect();
            if unterminated {
                text.pop();
            }
            let mut builder = PropertiesBuilder::from_bytes(&text, 0);
            builder.remove("a").append("z", "v");
            let mut wanted: Vec<_> = names.into_iter().filter(|name| name != "a").collect();
            wanted.push("z".into());
            let found: Vec<_> = pairs(builder.as_bytes()).into_iter().map(|(name, _)| name).collect();
            prop_assert_eq!(found, wanted);
        }
    }
}
