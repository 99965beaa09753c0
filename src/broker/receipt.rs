//! Receipts of popped messages and the three header fields that clients make them of.
//!
//! Pure. A receipt (`POP_CK`, `extraInfo`) is text between spaces: start offset of the batch, pop time, invisible time,
//! number of the revive queue, retry flag, broker name, queue id, queue offset. Only pop time, retry flag and revive
//! queue mean something here. Source: `ExtraInfoUtil`, `KeyBuilder`.

use std::borrow::Cow;
use std::fmt::Write;

use crate::base::names;
use crate::broker::error::BrokerError;

/// Revive queue of orderly pops (`KeyBuilder.POP_ORDER_REVIVE_QUEUE`).
pub const ORDER_REVIVE_QUEUE: i32 = 999;
/// Fields of a receipt that names its message's batch; one that names the message has one more.
const FIELDS_MIN: usize = 7;

/// Which topic a message was popped from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    Topic,
    /// `%RETRY%group_topic`.
    RetryV1,
    /// `%RETRY%group+topic`.
    RetryV2,
}

impl Origin {
    /// As in receipts and header fields.
    fn flag(self) -> char {
        match self {
            Self::Topic => '0',
            Self::RetryV1 => '1',
            Self::RetryV2 => '2',
        }
    }

    pub fn from_flag(flag: &str) -> Option<Self> {
        match flag {
            "0" => Some(Self::Topic),
            "1" => Some(Self::RetryV1),
            "2" => Some(Self::RetryV2),
            _ => None,
        }
    }

    /// The topic that a receipt of a group means, where a request names `topic`: clients name either of both.
    pub fn topic<'a>(self, group: &str, topic: &'a str) -> Cow<'a, str> {
        if names::is_retry_topic(topic) {
            return topic.into();
        }
        match self {
            Self::Topic => topic.into(),
            Self::RetryV1 => names::pop_retry_topic(group, topic).into(),
            Self::RetryV2 => names::pop_retry_topic_v2(group, topic).into(),
        }
    }
}

/// What counts in a receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParsedReceipt {
    /// Milliseconds since 1970.
    pub pop_ms: u64,
    pub order: bool,
    pub origin: Origin,
}

/// Reads an `extraInfo`.
pub fn parse(text: &str) -> Result<ParsedReceipt, BrokerError> {
    let bad = |what: &str| {
        let mut shown = text.to_owned();
        shown.truncate(shown.floor_char_boundary(200));
        BrokerError::InvalidParameter(format!(
            "extraInfo is no receipt of a popped message ({what}): '{shown}'; send back the POP_CK of the message"
        ))
    };
    let fields: Vec<&str> = text.split(' ').take(FIELDS_MIN + 2).collect();
    if fields.len() < FIELDS_MIN {
        return Err(bad("it has too few fields"));
    }
    Ok(ParsedReceipt {
        pop_ms: fields[1]
            .parse()
            .map_err(|_| bad("its pop time is no number"))?,
        order: fields[3]
            .parse::<i32>()
            .map_err(|_| bad("its revive queue is no number"))?
            == ORDER_REVIVE_QUEUE,
        origin: Origin::from_flag(fields[4])
            .ok_or_else(|| bad("its retry flag is not 0, 1 or 2"))?,
    })
}

/// Messages of one queue in an answer, as they stand in its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoppedQueue {
    pub origin: Origin,
    pub queue_id: u32,
    /// Offset, and how often it was given out before.
    pub messages: Vec<(i64, u32)>,
}

/// `startOffsetInfo`, `msgOffsetInfo` and `orderCountInfo` of an answer. Each queue is in it once.
pub fn offset_fields(queues: &[PoppedQueue]) -> (String, String, String) {
    let (mut starts, mut offsets, mut counts) = (String::new(), String::new(), String::new());
    for queue in queues {
        let (flag, id) = (queue.origin.flag(), queue.queue_id);
        // Clients acknowledge several at once by their distance from it.
        let Some(start) = queue.messages.iter().map(|&(offset, _)| offset).min() else {
            continue;
        };
        if !starts.is_empty() {
            starts.push(';');
            offsets.push(';');
        }
        // Writing to a string cannot fail.
        let _ = write!(starts, "{flag} {id} {start}");
        let _ = write!(offsets, "{flag} {id} ");
        let mut fewest = u32::MAX;
        for (number, (offset, count)) in queue.messages.iter().enumerate() {
            let comma = if number == 0 { "" } else { "," };
            let _ = write!(offsets, "{comma}{offset}");
            fewest = fewest.min(*count);
            let semicolon = if counts.is_empty() { "" } else { ";" };
            let _ = write!(counts, "{semicolon}{flag} qo{id}%{offset} {count}");
        }
        let _ = write!(counts, ";{flag} {id} {fewest}");
    }
    (starts, offsets, counts)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_receipt_of_the_java_client_is_read() {
        let receipt = parse("0 1795197313507 10000 0 0 b1 3 7").unwrap();
        assert_eq!(receipt.pop_ms, 1795197313507);
        assert_eq!((receipt.order, receipt.origin), (false, Origin::Topic));
        let orderly = parse("0 5 10000 999 1 b1 3").unwrap();
        assert_eq!((orderly.order, orderly.origin), (true, Origin::RetryV1));
        for bad in [
            "",
            "0 1 2 3 4 5",
            "0 x 1 0 0 b 0",
            "0 1 1 0 9 b 0",
            "0 1 1 x 0 b 0",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_topic_of_a_receipt_is_a_retry_topic_whichever_the_client_names() {
        assert_eq!(Origin::Topic.topic("G", "T"), "T");
        assert_eq!(Origin::RetryV1.topic("G", "T"), "%RETRY%G_T");
        assert_eq!(Origin::RetryV2.topic("G", "T"), "%RETRY%G+T");
        assert_eq!(Origin::RetryV1.topic("G", "%RETRY%G_T"), "%RETRY%G_T");
    }

    #[test]
    fn the_fields_are_those_that_the_java_client_parses() {
        let queue = |origin, queue_id, messages: &[(i64, u32)]| PoppedQueue {
            origin,
            queue_id,
            messages: messages.to_vec(),
        };
        let (starts, offsets, counts) = offset_fields(&[
            queue(Origin::Topic, 2, &[(5, 1), (7, 0)]),
            queue(Origin::RetryV1, 0, &[(0, 3)]),
            queue(Origin::Topic, 3, &[(9, 0), (2, 1)]),
        ]);
        assert_eq!(starts, "0 2 5;1 0 0;0 3 2");
        assert_eq!(offsets, "0 2 5,7;1 0 0;0 3 9,2");
        let first = "0 qo2%5 1;0 qo2%7 0;0 2 0;1 qo0%0 3;1 0 3";
        assert_eq!(counts, format!("{first};0 qo3%9 0;0 qo3%2 1;0 3 0"));
    }

    proptest! {
        #[test]
        fn arbitrary_receipts_never_panic(text in ".{0,80}") {
            let _ = parse(&text);
        }
    }
}
