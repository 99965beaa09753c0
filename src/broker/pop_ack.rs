//! ACK_MESSAGE (200051), BATCH_ACK_MESSAGE (200151), CHANGE_MESSAGE_INVISIBLETIME (200053).
//!
//! Answered when the owner of the queue has it durably. Source: `AckMessageProcessor`, `ChangeInvisibleTimeProcessor`.

use std::sync::Arc;

use crate::broker::dispatch::{Answer, Broker, Outcome};
use crate::broker::error::BrokerError;
use crate::broker::receipt::{self, ORDER_REVIVE_QUEUE, Origin};
use crate::broker::statistics::Counted;
use crate::shard::message::{QueueKey, ShardReply, ShardRequest};
use crate::shard::pop::message::{PopAck, PopChange, PopReply, PopRequest, Receipt};
use crate::wire::remoting::body::{BatchAck, BatchAckMessageRequestBody};
use crate::wire::remoting::code::response;
use crate::wire::remoting::command::{Command, Outgoing};

/// Offsets that one entry of a batch may acknowledge.
const BATCH_OFFSETS_MAX: usize = 4096;

/// The offsets of a bit set that begins at `start`: least significant bit of the first byte first.
fn offsets_of(bit_set: &[u8], start: i64) -> impl Iterator<Item = i64> {
    bit_set.iter().enumerate().flat_map(move |(at, byte)| {
        (0..8)
            .filter(move |bit| byte >> bit & 1 == 1)
            .map(move |bit| start.saturating_add((at * 8) as i64 + bit))
    })
}

/// The bytes of a Base64 text (RFC 4648, padded, as Java's encoder writes it), or `None`.
fn base64(text: &str) -> Option<Vec<u8>> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = text.trim_end_matches('=').as_bytes();
    if text.len() - digits.len() > 2 || digits.len() % 4 == 1 {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3 + 2);
    for group in digits.chunks(4) {
        let mut bits = 0u32;
        for digit in group {
            let value = ALPHABET.iter().position(|known| known == digit)?;
            bits = bits << 6 | value as u32;
        }
        bits <<= 6 * (4 - group.len());
        bytes.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    Some(bytes)
}

impl Broker {
    /// Core and key of the queue that a receipt belongs to.
    fn queue_of_receipt(
        &self,
        group: &str,
        topic: &str,
        origin: Origin,
        queue_id: i32,
    ) -> Result<(usize, QueueKey), BrokerError> {
        let topic = self.topic(&origin.topic(group, topic))?;
        let queues = topic.config.read_queue_nums;
        u32::try_from(queue_id)
            .ok()
            .filter(|&id| id < queues)
            .and_then(|_| self.owner(&topic, queue_id.into()))
            .ok_or_else(|| {
                BrokerError::MessageIllegal(format!(
                    "the queue id {queue_id} is illegal: the topic '{}' has {queues} queues to read",
                    topic.name
                ))
            })
    }

    async fn ask_pop(
        &self,
        core: usize,
        request: PopRequest,
    ) -> Result<ShardReply<crate::io::body::Body>, BrokerError> {
        self.ask(core, ShardRequest::Pop(Box::new(request))).await
    }

    /// 200051.
    pub(super) async fn ack(self, command: Command) -> Outcome {
        let group = command.required_text("consumerGroup")?;
        let topic = command.required_text("topic")?;
        let queue_id = command.required_i32("queueId")?;
        let offset = command.required_int("offset")?;
        let receipt = receipt::parse(&command.required_text("extraInfo")?)?;
        let (core, queue) = self.queue_of_receipt(&group, &topic, receipt.origin, queue_id)?;
        let ack = PopAck {
            group: Arc::from(group.as_ref()),
            queue,
            receipts: vec![Receipt {
                offset,
                pop_ms: receipt.pop_ms,
            }],
            order: receipt.order,
        };
        match self.ask_pop(core, PopRequest::Ack(ack)).await? {
            ShardReply::Done => {
                self.count_acks(&topic, &group, 1);
                Answer::done()
            }
            ShardReply::Pop(reply) => refused(&reply, &topic, queue_id),
            other => Err(BrokerError::unexpected(&other)),
        }
    }

    /// 200151: an entry that cannot be acknowledged does not keep the others from it, and is told in the remark.
    pub(super) async fn batch_ack(self, command: Command) -> Outcome {
        let body: BatchAckMessageRequestBody = self.body(&command)?;
        let mut failed = None;
        for entry in &body.acks {
            if let Err(error) = self.ack_entry(entry).await {
                failed.get_or_insert(error);
            }
        }
        match failed {
            None => Answer::done(),
            Some(error) => Err(error),
        }
    }

    fn count_acks(&self, topic: &str, group: &str, count: u64) {
        let topic: Arc<str> = Arc::from(topic);
        self.count(
            Counted::Acked,
            &topic,
            group,
            self.shard.now_ms(),
            (count, 0),
        );
    }

    async fn ack_entry(&self, entry: &BatchAck) -> Result<(), BrokerError> {
        let bad = |reason: String| {
            BrokerError::InvalidParameter(format!(
                "an acknowledgement for the topic '{}': {reason}",
                entry.topic
            ))
        };
        let origin = Origin::from_flag(&entry.retry)
            .ok_or_else(|| bad(format!("the retry flag '{}' is not 0, 1 or 2", entry.retry)))?;
        let bits = base64(&entry.bit_set).ok_or_else(|| bad("its bit set is no Base64".into()))?;
        let pop_ms = u64::try_from(entry.pop_time_ms).unwrap_or(0);
        let receipts: Vec<Receipt> = offsets_of(&bits, entry.start_offset)
            .take(BATCH_OFFSETS_MAX + 1)
            .map(|offset| Receipt { offset, pop_ms })
            .collect();
        if receipts.len() > BATCH_OFFSETS_MAX {
            return Err(bad(format!("it has more than {BATCH_OFFSETS_MAX} offsets")));
        }
        if receipts.is_empty() {
            return Ok(());
        }
        let group = entry.consumer_group.as_str();
        let (core, queue) = self.queue_of_receipt(group, &entry.topic, origin, entry.queue_id)?;
        let count = receipts.len() as u64;
        let ack = PopAck {
            group: Arc::from(group),
            queue,
            receipts,
            order: entry.revive_queue_id == ORDER_REVIVE_QUEUE,
        };
        match self.ask_pop(core, PopRequest::Ack(ack)).await? {
            // What is not there (any more) needs no acknowledgement.
            ShardReply::Done => {
                self.count_acks(&entry.topic, group, count);
                Ok(())
            }
            ShardReply::Pop(PopReply::NoOffset { .. }) => Ok(()),
            ShardReply::Pop(PopReply::NotGiven { offset }) => {
                Err(bad(format!("the offset {offset} was not given out")))
            }
            other => Err(BrokerError::unexpected(&other)),
        }
    }

    /// 200053.
    pub(super) async fn change_invisible_time(self, command: Command) -> Outcome {
        let group = command.required_text("consumerGroup")?;
        let topic = command.required_text("topic")?;
        let queue_id = command.required_i32("queueId")?;
        let offset = command.required_int("offset")?;
        let invisible_ms = command.required_int("invisibleTime")?;
        let receipt = receipt::parse(&command.required_text("extraInfo")?)?;
        let (core, queue) = self.queue_of_receipt(&group, &topic, receipt.origin, queue_id)?;
        let change = PopChange {
            group: Arc::from(group.as_ref()),
            queue,
            receipt: Receipt {
                offset,
                pop_ms: receipt.pop_ms,
            },
            invisible_ms: invisible_ms.max(0) as u64,
            order: receipt.order,
            suspend: command.flag("suspend"),
        };
        match self.ask_pop(core, PopRequest::Change(change)).await? {
            ShardReply::Pop(PopReply::Changed { pop_ms, visible_ms }) => {
                let revive_queue = if receipt.order { ORDER_REVIVE_QUEUE } else { 0 };
                Ok(Outgoing::success()
                    .field("popTime", pop_ms as i64)
                    .field("invisibleTime", visible_ms.saturating_sub(pop_ms) as i64)
                    .field("reviveQid", revive_queue)
                    .into())
            }
            // An orderly consumer that is late has nothing to wait for.
            ShardReply::Pop(PopReply::Stale { .. }) if receipt.order => Ok(Outgoing::success()
                .field("popTime", receipt.pop_ms as i64)
                .field("invisibleTime", invisible_ms)
                .field("reviveQid", ORDER_REVIVE_QUEUE)
                .into()),
            ShardReply::Pop(reply) => refused(&reply, &topic, queue_id),
            other => Err(BrokerError::unexpected(&other)),
        }
    }
}

/// The answer to a receipt that does not fit.
fn refused(reply: &PopReply<crate::io::body::Body>, topic: &str, queue_id: i32) -> Outcome {
    let head = match reply {
        PopReply::NoOffset { offset, min, max } => Outgoing::error(
            response::NO_MESSAGE,
            format!(
                "offset is illegal, key:{topic}@{queue_id}, commit:{offset}, store:{min}~{max}"
            ),
        ),
        PopReply::NotGiven { offset } => Outgoing::error(
            response::MESSAGE_ILLEGAL,
            format!(
                "the offset {offset} of the queue {queue_id} of '{topic}' was not given out to this group"
            ),
        ),
        PopReply::Stale { offset } => Outgoing::error(
            response::NO_MESSAGE,
            format!(
                "the receipt of the offset {offset} of the queue {queue_id} of '{topic}' is not valid any more: the message was acknowledged or given out again"
            ),
        ),
        other => return Err(BrokerError::unexpected(other)),
    };
    Ok(head.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_bit_set_of_java_names_its_offsets() {
        let bits = base64("AQI=").unwrap();
        let offsets: Vec<i64> = offsets_of(&bits, 100).collect();
        assert_eq!(offsets, [100, 109]);
        assert_eq!(offsets_of(&[], 5).count(), 0);
    }

    #[test]
    fn base64_of_every_length_is_read_and_other_text_is_not() {
        let known = [
            ("", ""),
            ("Zg==", "f"),
            ("Zm8=", "fo"),
            ("Zm9v", "foo"),
            ("Zm9vYg==", "foob"),
        ];
        for (text, bytes) in known {
            assert_eq!(base64(text).as_deref(), Some(bytes.as_bytes()), "{text}");
        }
        for bad in ["Z", "Z===", "Zm9v*", "-_-_"] {
            assert_eq!(base64(bad), None, "{bad}");
        }
    }
}
