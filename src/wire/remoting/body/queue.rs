//! Queues, and maps that have them as keys.

use std::collections::BTreeMap;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

use crate::wire::remoting::json;

/// `common.message.MessageQueue`. Ordered as fastjson writes its keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MessageQueue {
    pub broker_name: String,
    pub queue_id: i32,
    pub topic: String,
}

/// Reads a map whose keys are queues: [`json::parse`] has made their compact JSON text of them.
pub(super) fn keyed<'de, D, V>(deserializer: D) -> Result<BTreeMap<MessageQueue, V>, D::Error>
where
    D: Deserializer<'de>,
    V: Deserialize<'de>,
{
    BTreeMap::<String, V>::deserialize(deserializer)?
        .into_iter()
        .map(|(key, value)| match json::from_slice(key.as_bytes()) {
            Ok(queue) => Ok((queue, value)),
            Err(error) => Err(D::Error::custom(format_args!(
                "the key {key:?} is no message queue: {error}"
            ))),
        })
        .collect()
}

/// `body.LockBatchRequestBody` and `body.UnlockBatchRequestBody`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LockBatchRequestBody {
    pub client_id: String,
    pub consumer_group: String,
    pub mq_set: Vec<MessageQueue>,
    pub only_this_broker: bool,
}

/// `body.LockBatchResponseBody`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LockBatchResponseBody {
    #[serde(rename = "lockOKMQSet")]
    pub lock_ok_mq_set: Vec<MessageQueue>,
}

/// `body.ResetOffsetBody`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ResetOffsetBody {
    #[serde(deserialize_with = "keyed")]
    pub offset_table: BTreeMap<MessageQueue, i64>,
}

/// `body.ResetOffsetBodyForC`, for clients written in C++.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ResetOffsetBodyForC {
    pub offset_table: Vec<MessageQueueForC>,
}

/// `body.MessageQueueForC`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MessageQueueForC {
    pub broker_name: String,
    pub offset: i64,
    pub queue_id: i32,
    pub topic: String,
}

/// `body.GetConsumerStatusBody`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GetConsumerStatusBody {
    /// By client id.
    #[serde(
        deserialize_with = "by_client",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub consumer_table: BTreeMap<String, BTreeMap<MessageQueue, i64>>,
    #[serde(deserialize_with = "keyed", skip_serializing_if = "BTreeMap::is_empty")]
    pub message_queue_table: BTreeMap<MessageQueue, i64>,
}

fn by_client<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, BTreeMap<MessageQueue, i64>>, D::Error> {
    #[derive(Deserialize)]
    struct Offsets(#[serde(deserialize_with = "keyed")] BTreeMap<MessageQueue, i64>);
    let table = BTreeMap::<String, Offsets>::deserialize(deserializer)?;
    Ok(table
        .into_iter()
        .map(|(client, offsets)| (client, offsets.0))
        .collect())
}
