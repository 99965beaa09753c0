//! RECALL_MESSAGE (370): a delayed message is taken back by the handle that its send was answered with.
//!
//! The handle names topic, broker, time and unique key, but no queue, so every log with a queue of the topic gets a recall:
//! a delayed message with TIMER_DEL_UNIQKEY that is due one millisecond earlier and ends both (`shard/timers.rs`). As in
//! RocketMQ the answer says that the recall is stored, not that there was such a message; and a producer may send
//! a message with TIMER_DEL_UNIQKEY and the time of the other one itself.
//! Source: `RecallMessageProcessor`, `RecallMessageHandle`.

use std::net::SocketAddr;
use std::sync::Arc;

use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;

use crate::broker::dispatch::{Broker, Outcome};
use crate::broker::error::BrokerError;
use crate::shard::ShardHandle;
use crate::shard::message::{Appended, Delayed, NewMessage, ShardReply, ShardRequest};
use crate::shard::meta::Topic;
use crate::wire::properties::{PropertiesBuilder, name, tags_code};
use crate::wire::remoting::command::{Command, Outgoing};

/// URL-safe Base64 as Java writes it, and as it reads it: with padding or without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
/// Tag of a stored recall (`RECALL_MESSAGE_TAG`).
const RECALL_TAG: &str = "_RECALL_TAG_";

/// What a client may name a delayed message by (`RecallMessageHandle.HandleV1`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RecallHandle {
    pub topic: String,
    pub broker: String,
    /// When the message is due, milliseconds since 1970.
    pub at_ms: u64,
    pub unique_key: String,
}

impl RecallHandle {
    pub fn encode(&self) -> String {
        let Self {
            topic,
            broker,
            at_ms,
            unique_key,
        } = self;
        BASE64.encode(format!("v1 {topic} {broker} {at_ms} {unique_key}"))
    }

    /// `None` for a text that is no handle.
    pub fn decode(text: &str) -> Option<Self> {
        let text = String::from_utf8(BASE64.decode(text).ok()?).ok()?;
        let parts: Vec<&str> = text.split(' ').collect();
        let ["v1", topic, broker, at_ms, unique_key] = parts[..] else {
            return None;
        };
        Some(Self {
            topic: topic.to_owned(),
            broker: broker.to_owned(),
            // A time that is no number is one that has passed.
            at_ms: at_ms.parse().unwrap_or(0),
            unique_key: unique_key.to_owned(),
        })
    }
}

impl Broker {
    /// 370, in RocketMQ's order of checks.
    pub(super) async fn recall(self, command: Command, born_host: SocketAddr) -> Outcome {
        let name = command.required_text("topic")?.into_owned();
        let handle = command.required_text("recallHandle")?.into_owned();
        if !self.options.recall {
            return Err(BrokerError::NoPermission(
                "recall failed, operation is forbidden: recallMessageEnable is false".into(),
            ));
        }
        if !self.options.writable() && !self.options.recall_when_not_writable {
            return Err(BrokerError::Unavailable(
                "recall failed, broker service not available: its brokerPermission has no write bit (allowRecallWhenBrokerNotWriteable)".into(),
            ));
        }
        let topic = self.topic(&name)?;
        let illegal = |reason: &str| BrokerError::IllegalOperation(reason.into());
        let handle =
            RecallHandle::decode(&handle).ok_or_else(|| illegal("recall handle is invalid"))?;
        if handle.topic != name {
            return Err(illegal("recall failed, topic not match"));
        }
        if handle.broker != *self.options.broker {
            return Err(illegal(
                "recall failed, broker service not available: the handle is of another broker",
            ));
        }
        let now_ms = self.shard.now_ms();
        let left_ms = handle.at_ms.saturating_sub(now_ms);
        let limit_ms = self.options.delay.timer_delay_max_s.saturating_mul(1_000);
        if left_ms == 0 || left_ms >= limit_ms {
            return Err(illegal(
                "recall failed, timestamp invalid: the message is delivered already, or later than timerMaxDelaySec allows",
            ));
        }
        let mut properties = PropertiesBuilder::default();
        properties.set(name::TIMER_DEL_UNIQUE_KEY, &handle.unique_key);
        properties.set(name::UNIQUE_KEY, &handle.unique_key);
        properties.set(name::TAGS, RECALL_TAG);
        properties.set(name::TIMER_DELIVER_MS, &handle.at_ms.to_string());
        if let Some(group) = command.text("producerGroup") {
            properties.set(name::PRODUCER_GROUP, &group);
        }
        let message = NewMessage {
            queue: ShardHandle::key(&topic, 0),
            topic: topic.name.clone(),
            body: Bytes::from_static(b"0"),
            properties: properties.finish(),
            tags_code: tags_code(RECALL_TAG),
            flag: 0,
            sys_flag: 0,
            born_timestamp: now_ms as i64,
            born_host,
            reconsume_times: 0,
            prepared_transaction_offset: 0,
            key_places: None,
        };
        self.store_recall(&topic, message, handle.at_ms).await?;
        Ok(Outgoing::success()
            .field("msgId", handle.unique_key)
            .field("MSG_REGION", self.options.region.clone())
            .into())
    }

    /// Stores a recall of a message that is due at `at_ms` in each log of the topic; where the last one is.
    pub(super) async fn store_recall(
        &self,
        topic: &Arc<Topic>,
        message: NewMessage,
        at_ms: u64,
    ) -> Result<Appended, BrokerError> {
        let mut stored = None;
        for (queue_id, log) in topic.logs.iter().enumerate() {
            if topic.logs[..queue_id].contains(log) {
                continue;
            }
            let delayed = Delayed {
                message: NewMessage {
                    queue: ShardHandle::key(topic, queue_id as u32),
                    ..message.clone()
                },
                due_ms: at_ms.saturating_sub(1),
            };
            let request = ShardRequest::AppendDelayed(Box::new(delayed));
            match self.ask(self.shard.shard_of_log(*log), request).await? {
                ShardReply::Appended(appended) => stored = Some(appended),
                other => return Err(BrokerError::unexpected(&other)),
            }
        }
        stored.ok_or_else(|| BrokerError::NoTopic {
            topic: topic.name.to_string(),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn handle(topic: &str, broker: &str, at_ms: u64, unique_key: &str) -> RecallHandle {
        RecallHandle {
            topic: topic.into(),
            broker: broker.into(),
            at_ms,
            unique_key: unique_key.into(),
        }
    }

    #[test]
    fn a_recall_handle_is_url_safe_base64() {
        let live = handle("T1", "b1", 1_795_197_379_001, "TM1");
        assert_eq!(live.encode(), "djEgVDEgYjEgMTc5NTE5NzM3OTAwMSBUTTE=");
        assert_eq!(handle("~~?", "b", 0, "k").encode(), "djEgfn4_IGIgMCBr");
    }

    #[test]
    fn a_handle_is_read_with_its_padding_or_without() {
        let live = handle("T1", "b1", 1_795_197_379_001, "TM1");
        let text = live.encode();
        assert_eq!(RecallHandle::decode(&text), Some(live.clone()));
        assert_eq!(RecallHandle::decode(text.trim_end_matches('=')), Some(live));
        for bad in ["", "%%%", "djI=", "djEgYQ=="] {
            assert_eq!(RecallHandle::decode(bad), None, "{bad}");
        }
        let no_number = BASE64.encode("v1 t b soon k");
        assert_eq!(RecallHandle::decode(&no_number).unwrap().at_ms, 0);
    }

    proptest! {
        #[test]
        fn a_handle_comes_back(topic in "[a-zA-Z0-9%_-]{1,40}", broker in "[a-z0-9.-]{1,20}", at_ms: u64, key in "[A-Z0-9]{1,40}") {
            let one = handle(&topic, &broker, at_ms, &key);
            prop_assert_eq!(RecallHandle::decode(&one.encode()), Some(one));
        }

        #[test]
        fn arbitrary_handles_never_panic(text in ".{0,100}") {
            let _ = RecallHandle::decode(&text);
        }
    }
}
