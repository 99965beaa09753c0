//! The properties of a message that a producer sent: read, cleaned and completed in one pass and one allocation.
//!
//! Pure. The broker adds UNIQ_KEY if it is missing, CLUSTER, MSG_REGION and TRACE_ON, and drops what a client may not
//! set (POP_CK) and what it sets itself. Source: `SendMessageProcessor.sendMessage`, `MessageDecoder.string2messageProperties`.

use bytes::Bytes;

use crate::broker::delay::DelayProperties;
use crate::store::keys::entry::MessageKeys;
use crate::store::types::KeyPlaces;
use crate::wire::properties::{self, NAME_END, VALUE_END, tags_code};

/// Appends one property.
fn push(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.push(NAME_END);
    out.extend_from_slice(value);
    out.push(VALUE_END);
}

/// As `Message.getPriority`: what is no number is none.
fn priority(value: &[u8]) -> Option<u32> {
    std::str::from_utf8(value)
        .ok()?
        .parse::<i32>()
        .ok()?
        .try_into()
        .ok()
}

/// What a send needs to know of the sent properties.
#[derive(Debug, Default)]
pub struct Sent<'a> {
    pub tags_code: i64,
    pub unique_key: Option<&'a [u8]>,
    pub keys: Option<&'a [u8]>,
    /// TRAN_MSG=true.
    pub half: bool,
    /// It has a sharding key: its order counts.
    pub is_ordered: bool,
    pub delay: DelayProperties<'a>,
    /// `_SYS_MSG_PRIORITY_`, if it is a number from 0 on.
    pub priority: Option<u32>,
    /// TIMER_DEL_UNIQKEY: it takes a delayed message back.
    pub is_recall: bool,
    /// POP_CK: it pretends to have been popped.
    pub is_popped: bool,
    /// One is among them that the broker does not take from a client, or perhaps not.
    may_drop: bool,
    /// Bytes of the names and values, with their separators.
    all_bytes: usize,
}

/// Which of the delay properties a stored message loses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    Nothing,
    /// A dead letter has no delay level.
    Level,
    /// A level goes before a chosen time.
    Times,
}

/// Properties that the broker sets itself or does not take from a client.
fn is_dropped(name: &[u8], drop: Dropped) -> bool {
    match name {
        b"CLUSTER" | b"MSG_REGION" | b"TRACE_ON" | b"POP_CK" => true,
        b"DELAY" => drop == Dropped::Level,
        b"TIMER_DELAY_SEC" | b"TIMER_DELAY_MS" | b"TIMER_DELIVER_MS" => drop == Dropped::Times,
        _ => false,
    }
}

impl<'a> Sent<'a> {
    /// Reads a properties string.
    pub fn read(properties: &'a [u8]) -> Self {
        let mut sent = Self::default();
        for (name, value) in properties::iter(properties) {
            sent.all_bytes += name.len() + value.len() + 2;
            match name {
                b"TAGS" => sent.tags_code = tags_code(&String::from_utf8_lossy(value)),
                b"UNIQ_KEY" => sent.unique_key = Some(value),
                b"KEYS" => sent.keys = Some(value),
                b"TRAN_MSG" => sent.half = value.eq_ignore_ascii_case(b"true"),
                b"_SYS_MSG_PRIORITY_" => sent.priority = priority(value),
                b"TIMER_DEL_UNIQKEY" => sent.is_recall = true,
                b"POP_CK" => sent.is_popped = true,
                b"__SHARDINGKEY" => sent.is_ordered = true,
                b"CLUSTER" | b"MSG_REGION" | b"TRACE_ON" => sent.may_drop = true,
                b"DELAY" => sent.delay.level = Some(value),
                b"TIMER_DELAY_SEC" => sent.delay.delay_sec = Some(value),
                b"TIMER_DELAY_MS" => sent.delay.delay_ms = Some(value),
                b"TIMER_DELIVER_MS" => sent.delay.deliver_ms = Some(value),
                _ => {}
            }
        }
        sent.may_drop |= sent.is_popped
            || sent.priority.is_some()
            || sent.delay.level.is_some()
            || sent.delay.has_time();
        sent
    }

    /// What the message is found by.
    pub fn message_keys(&self) -> MessageKeys<'a> {
        MessageKeys {
            unique: self.unique_key.unwrap_or_default(),
            keys: self.keys.unwrap_or_default(),
        }
    }

    /// Whether all of `properties`, which these were read from, stays as it is.
    fn stays(&self, properties: &[u8]) -> bool {
        // What is no pair is not counted; the last one may lack its separator.
        let bytes = properties.len() + usize::from(properties.last() != Some(&VALUE_END));
        !self.may_drop && !properties.is_empty() && self.all_bytes == bytes
    }

    /// The priority by which its queue is chosen. A half, delayed or ordered message has none: its kind goes before
    /// (`TopicMessageType.parseFromMessageProperty`).
    pub fn priority_of_queue(&self) -> Option<u32> {
        let is_other = self.half || self.is_ordered || self.delay.level.is_some();
        self.priority
            .filter(|_| !is_other && !self.delay.has_time())
    }

    /// The `message_type` of RocketMQ's metrics (`BrokerMetricsManager.getMessageType`).
    pub fn message_type(&self) -> &'static str {
        if self.half {
            "transaction"
        } else if self.is_ordered {
            "fifo"
        } else if self.delay.level.is_some() || self.delay.has_time() {
            "delay"
        } else {
            "normal"
        }
    }
}

/// The properties that every message gets from its broker, encoded once.
#[derive(Clone, Debug)]
pub struct BrokerProperties(Vec<u8>);

impl BrokerProperties {
    pub fn new(cluster: &str, region: &str, trace_on: bool) -> Self {
        let mut encoded = Vec::new();
        push(&mut encoded, b"CLUSTER", cluster.as_bytes());
        push(&mut encoded, b"MSG_REGION", region.as_bytes());
        push(
            &mut encoded,
            b"TRACE_ON",
            if trace_on { b"true" } else { b"false" },
        );
        Self(encoded)
    }

    /// The string to store: what was sent, without what the broker sets itself, then the broker's own.
    /// `unique_key` is added if the message has none. Also where its keys are, if nothing has to be looked for.
    pub fn complete(
        &self,
        properties: &[u8],
        sent: &Sent<'_>,
        unique_key: Option<&str>,
        drop: Dropped,
    ) -> (Bytes, Option<KeyPlaces>) {
        let key_bytes = unique_key.map_or(0, |key| key.len() + b"UNIQ_KEY".len() + 2);
        let mut stored = Vec::with_capacity(sent.all_bytes + key_bytes + self.0.len());
        let stays = sent.stays(properties);
        if stays {
            stored.extend_from_slice(properties);
            if stored.len() < sent.all_bytes {
                stored.push(VALUE_END);
            }
        } else {
            put_what_stays(properties, sent, drop, &mut stored);
        }
        if let Some(key) = unique_key {
            push(&mut stored, b"UNIQ_KEY", key.as_bytes());
        }
        stored.extend_from_slice(&self.0);
        let places = (stays && unique_key.is_none())
            .then(|| KeyPlaces::new(properties, sent.message_keys()));
        (stored.into(), places)
    }
}

/// Appends the pairs that the broker takes from a client.
fn put_what_stays(properties: &[u8], sent: &Sent<'_>, drop: Dropped, stored: &mut Vec<u8>) {
    let drops_priority = sent.priority.is_some() && sent.priority_of_queue().is_none();
    for (name, value) in properties::iter(properties) {
        if drops_priority && name == b"_SYS_MSG_PRIORITY_" {
            continue;
        }
        if !is_dropped(name, drop) {
            push(stored, name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(properties: &[u8], key: Option<&str>, drop: Dropped) -> Vec<(String, String)> {
        let sent = Sent::read(properties);
        let broker = BrokerProperties::new("C1", "R", true);
        let (stored, places) = broker.complete(properties, &sent, key, drop);
        // Nothing else comes of it if each pair is looked at.
        let (looked_at, none) = broker.complete(
            properties,
            &Sent {
                may_drop: true,
                ..sent
            },
            key,
            drop,
        );
        assert_eq!((&stored, none), (&looked_at, None));
        if let Some(places) = places {
            assert_eq!(places.of(&stored), MessageKeys::of(&stored));
        }
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        properties::iter(&stored)
            .map(|(n, v)| (text(n), text(v)))
            .collect()
    }

    #[test]
    fn what_is_no_pair_does_not_stay() {
        for (sent, stays) in [
            (
                &b"TAGS\x01a\x02KEYS\x01k\x02UNIQ_KEY\x01U\x02p\x01v"[..],
                true,
            ),
            (b"UNIQ_KEY\x01U\x02KEYS\x01k\x02KEYS\x01l m\x02", true),
            (b"p\x01v\x02", true),
            (b"", false),
            (b"p", false),
            (b"p\x01\x02q\x01v\x02", false),
            (b"\x01v\x02q\x01v\x02", false),
            (b"q\x01v\x02\x02", false),
            (b"q\x01v\x02rest", false),
            (b"q\x01v\x02TRACE_ON\x01false\x02", false),
        ] {
            assert_eq!(Sent::read(sent).stays(sent), stays, "{sent:?}");
            for key in [None, Some("K")] {
                completed(sent, key, Dropped::Nothing);
            }
        }
    }

    #[test]
    fn a_priority_stays_unless_the_kind_of_the_message_goes_before() {
        let has = |properties: &str| {
            let stored = completed(properties.as_bytes(), None, Dropped::Nothing);
            stored.iter().any(|(name, _)| name == "_SYS_MSG_PRIORITY_")
        };
        assert!(has("_SYS_MSG_PRIORITY_\x013\x02"));
        assert!(!has("_SYS_MSG_PRIORITY_\x013\x02DELAY\x011\x02"));
        assert!(!has("__SHARDINGKEY\x01k\x02_SYS_MSG_PRIORITY_\x013\x02"));
        assert!(
            has("_SYS_MSG_PRIORITY_\x01x\x02DELAY\x011\x02"),
            "that is none"
        );
    }

    #[test]
    fn the_broker_adds_its_own_and_keeps_what_was_sent() {
        let stored = completed(b"TAGS\x01a\x02p\x01v\x02", Some("K"), Dropped::Nothing);
        let expected = [
            ("TAGS", "a"),
            ("p", "v"),
            ("UNIQ_KEY", "K"),
            ("CLUSTER", "C1"),
            ("MSG_REGION", "R"),
            ("TRACE_ON", "true"),
        ];
        assert_eq!(stored, expected.map(|(n, v)| (n.to_owned(), v.to_owned())));
    }

    #[test]
    fn a_client_can_neither_forge_broker_properties_nor_a_pop_receipt() {
        let stored = completed(
            b"CLUSTER\x01x\x02POP_CK\x01y\x02TRACE_ON\x01no\x02",
            None,
            Dropped::Nothing,
        );
        assert!(
            stored
                .iter()
                .all(|(_, value)| !["x", "y", "no"].contains(&value.as_str()))
        );
    }

    #[test]
    fn a_dead_letter_loses_its_delay() {
        let names = |drop| -> Vec<String> {
            completed(b"DELAY\x013\x02a\x01b", None, drop)
                .into_iter()
                .map(|(n, _)| n)
                .collect()
        };
        assert!(names(Dropped::Nothing).contains(&"DELAY".to_owned()));
        assert!(!names(Dropped::Level).contains(&"DELAY".to_owned()));
        assert!(
            names(Dropped::Level).contains(&"a".to_owned()),
            "an unterminated last property counts"
        );
    }

    #[test]
    fn what_a_send_needs_is_found() {
        let sent = Sent::read(
            b"TAGS\x01a\x02KEYS\x01k1 k2\x02UNIQ_KEY\x01U\x02TRAN_MSG\x01TRUE\x02DELAY\x012\x02",
        );
        assert_eq!(sent.tags_code, 97);
        assert_eq!(sent.unique_key, Some(&b"U"[..]));
        assert!(sent.keys.is_some() && sent.half);
        assert_eq!(sent.delay.level, Some(&b"2"[..]));
    }

    #[test]
    fn a_level_drops_the_chosen_time() {
        let stored = completed(
            b"DELAY\x013\x02TIMER_DELAY_SEC\x015\x02TIMER_DELIVER_MS\x019\x02a\x01b\x02",
            None,
            Dropped::Times,
        );
        let names: Vec<&str> = stored.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["DELAY", "a", "CLUSTER", "MSG_REGION", "TRACE_ON"]);
    }
}
