//! Request and reply: SEND_REPLY_MESSAGE (324), SEND_REPLY_MESSAGE_V2 (325).
//!
//! A reply names the client that asked (REPLY_TO_CLIENT); the broker pushes it there (326) and waits for its answer. The
//! reply is also stored in the reply topic, as RocketMQ does by default, so that tools can find it.
//! Source: `ReplyMessageProcessor`.

use std::net::SocketAddr;
use std::time::Duration;

use crate::broker::dispatch::{Answer, Broker, Outcome};
use crate::broker::error::BrokerError;
use crate::shard::message::ClientAnswer;
use crate::shard::meta::Member;
use crate::wire::properties::{self, PropertiesBuilder, name};
use crate::wire::remoting::code::{request, response};
use crate::wire::remoting::command::{Command, Outgoing};

/// How long a reply waits for the first heartbeat of the client that it is for: less than the 3 s for which Java clients wait for
/// the answer to a send.
const HEARTBEAT_WAIT: Duration = Duration::from_millis(1_500);
const HEARTBEAT_LOOK: Duration = Duration::from_millis(50);

/// Fields of a send by their long names and their letters.
const FIELDS: [(&str, &str); 11] = [
    ("producerGroup", "a"),
    ("topic", "b"),
    ("defaultTopic", "c"),
    ("defaultTopicQueueNums", "d"),
    ("queueId", "e"),
    ("sysFlag", "f"),
    ("bornTimestamp", "g"),
    ("flag", "h"),
    ("reconsumeTimes", "j"),
    ("unitMode", "k"),
    ("maxReconsumeTimes", "l"),
];

impl Broker {
    pub(super) async fn reply(self, command: Command, born_host: SocketAddr) -> Outcome {
        let long = command.code == request::SEND_REPLY_MESSAGE;
        let name_of = |(long_name, letter): (&'static str, &'static str)| {
            if long { long_name } else { letter }
        };
        let properties = command
            .shared(name_of(("properties", "i")))
            .unwrap_or_default();
        let client_id = properties::get(&properties, name::REPLY_TO_CLIENT).ok_or_else(|| {
            BrokerError::System(
                "the reply lacks the property REPLY_TO_CLIENT, which names who asked".into(),
            )
        })?;
        let member = self.who_asked(client_id).await?;
        let now_ms = self.shard.now_ms();
        let mut pushed = PropertiesBuilder::from_bytes(&properties, 64);
        pushed.set(name::PUSH_REPLY_TIME, &now_ms.to_string());
        let mut head = Outgoing::request(request::PUSH_REPLY_MESSAGE_TO_CLIENT)
            .field("bornHost", born_host.to_string())
            .field("storeHost", self.options.store_host.to_string())
            .field("storeTimestamp", now_ms as i64)
            .field(
                "properties",
                String::from_utf8_lossy(pushed.as_bytes()).into_owned(),
            );
        for field in FIELDS {
            if let Some(value) = command.text(name_of(field)) {
                head = head.field(field.0, value.into_owned());
            }
        }
        let queue_id = command.int32(name_of(("queueId", "e")))?.unwrap_or(0);
        match self.call(&member, head, command.body.clone()).await? {
            ClientAnswer::Answered(answer) if answer.code == response::SUCCESS => {}
            ClientAnswer::Answered(answer) => {
                return Err(BrokerError::System(format!(
                    "the client '{client_id}' refused the reply with code {}: {}",
                    answer.code,
                    answer.remark.unwrap_or_default()
                )));
            }
            ClientAnswer::Timeout | ClientAnswer::Closed => {
                return Err(BrokerError::System(format!(
                    "the client '{client_id}' did not take the reply"
                )));
            }
        }
        let stored = self.store_reply(&command, born_host).await;
        Ok(match stored {
            Ok(head) => head.into(),
            // It was delivered, which is what counts.
            Err(error) => {
                tracing::warn!(%error, "a reply was delivered and could not be stored");
                let head = Outgoing::success()
                    .field("msgId", "0")
                    .field("queueId", queue_id)
                    .field("queueOffset", 0i64);
                Answer::from(self.with_region(head))
            }
        })
    }

    /// The client that a reply is for. A Java client tells its id by its heartbeat, the first of which goes out a second after its
    /// start (`MQClientInstance.startScheduledTask`), and may have asked before; RocketMQ loses such a reply.
    async fn who_asked(&self, client_id: &str) -> Result<Member, BrokerError> {
        let began_ms = self.shard.now_ms();
        loop {
            if let Some(member) = self.producer(client_id) {
                return Ok(member);
            }
            let waited_ms = self.shard.now_ms().saturating_sub(began_ms);
            if waited_ms >= HEARTBEAT_WAIT.as_millis() as u64 {
                return Err(BrokerError::System(format!(
                    "the client '{client_id}' that asked is not connected to this broker"
                )));
            }
            self.shard.sleep(HEARTBEAT_LOOK).await;
        }
    }

    /// A connected producer by its client id.
    fn producer(&self, client_id: &str) -> Option<Member> {
        let meta = self.shard.meta();
        meta.producers
            .values()
            .flat_map(|online| &online.members)
            .find(|member| *member.client.client_id == *client_id)
            .cloned()
    }
}
