//! Messages by key: QUERY_MESSAGE (12).
//!
//! Every core is asked, since a topic's queues lie on all of them. `indexType` K asks for KEYS, U for the unique key;
//! without it both count, as before RocketMQ 5.5. Source: `QueryMessageProcessor`.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::base::limits::{QUERY_BYTES_MAX, QUERY_MESSAGES_MAX};
use crate::broker::dispatch::{Answer, Broker, Outcome};
use crate::broker::error::BrokerError;
use crate::io::body::Body;
use crate::shard::message::{KeyKind, KeyQuery, ShardReply, ShardRequest, newest_first};
use crate::wire::remoting::command::{Command, Outgoing};

/// `defaultQueryMaxNum`: what a query by unique key looks for at most.
const UNIQUE_MESSAGES_MAX: usize = 32;

fn not_found() -> BrokerError {
    BrokerError::NotFound("can not find message, maybe time range not correct".into())
}

/// Which keys a request asks for.
fn kinds(command: &Command) -> Result<Vec<KeyKind>, BrokerError> {
    if command.flag("_UNIQUE_KEY_QUERY") {
        return Ok(vec![KeyKind::Unique]);
    }
    match command.text("indexType").as_deref() {
        None | Some("") => Ok(vec![KeyKind::Key, KeyKind::Unique]),
        Some("K") => Ok(vec![KeyKind::Key]),
        Some("U") => Ok(vec![KeyKind::Unique]),
        Some(other) => Err(BrokerError::InvalidParameter(format!(
            "the indexType '{other}' is not offered: K looks in the keys of messages, U in their unique keys"
        ))),
    }
}

impl Broker {
    pub(super) async fn query_message(self, command: Command) -> Outcome {
        if !self.options.key_index {
            return Err(BrokerError::System(
                "messages cannot be found by key: messageIndexEnable is false on this broker"
                    .into(),
            ));
        }
        let name = command.required_text("topic")?.into_owned();
        let key: Arc<str> = Arc::from(command.required_text("key")?);
        let kinds = kinds(&command)?;
        let messages_max = match kinds[..] {
            [KeyKind::Unique] if command.flag("_UNIQUE_KEY_QUERY") => UNIQUE_MESSAGES_MAX,
            _ => usize::try_from(command.required_i32("maxNum")?)
                .unwrap_or(0)
                .min(QUERY_MESSAGES_MAX),
        };
        let topic = self.known_topic(&name).ok_or_else(not_found)?;
        let query = KeyQuery {
            topic: topic.name.clone(),
            topic_id: topic.id,
            key,
            kinds,
            begin_ms: command.required_int("beginTimestamp")?,
            end_ms: command.required_int("endTimestamp")?,
            messages_max,
        };
        if messages_max == 0 || query.key.is_empty() || query.begin_ms > query.end_ms {
            return Err(not_found());
        }
        let (mut found, mut newest_ms, mut newest_offset) = (Vec::new(), 0, 0);
        let mut missing_bytes = 0;
        for core in 0..self.shard.count() {
            let request = ShardRequest::FindByKey(Box::new(query.clone()));
            match self.ask(core, request).await? {
                ShardReply::Found(finds) => {
                    found.extend(finds.found);
                    missing_bytes += finds.missing_bytes;
                    if finds.newest_ms > newest_ms {
                        newest_ms = finds.newest_ms;
                        newest_offset = finds.newest_offset;
                    }
                }
                other => return Err(BrokerError::unexpected(&other)),
            }
        }
        if found.is_empty() && missing_bytes > 0 {
            // Not "not found": nobody knows yet.
            return Err(BrokerError::System(format!(
                "the key index is being made again from the log, {} MiB are left: ask again later",
                missing_bytes.div_ceil(1 << 20)
            )));
        }
        if found.is_empty() {
            return Err(not_found());
        }
        newest_first(&mut found, messages_max, Body::len);
        Ok(Answer {
            head: Outgoing::success()
                .field("indexLastUpdateTimestamp", newest_ms)
                .field("indexLastUpdatePhyoffset", newest_offset),
            body: Body::Bytes(joined(found)),
        })
    }
}

/// All records in one piece: few and seldom, so a copy does not matter.
fn joined(found: Vec<(i64, Body)>) -> Bytes {
    let mut all = BytesMut::with_capacity(
        QUERY_BYTES_MAX.min(found.iter().map(|(_, record)| record.len()).sum()),
    );
    for (_, record) in found {
        all.extend_from_slice(&record.into_bytes());
    }
    all.freeze()
}
