//! Assignment of queues by the broker, and acknowledgement of popped messages in batches.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::wire::remoting::body::queue::MessageQueue;

/// `body.QueryAssignmentRequestBody`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct QueryAssignmentRequestBody {
    pub client_id: String,
    pub consumer_group: String,
    /// CLUSTERING or BROADCASTING.
    pub message_model: String,
    /// AVG or AVG_BY_CIRCLE.
    pub strategy_name: String,
    pub topic: String,
}

/// `common.message.MessageQueueAssignment`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MessageQueueAssignment {
    pub attachments: Option<BTreeMap<String, String>>,
    pub message_queue: MessageQueue,
    /// PULL or POP.
    pub mode: String,
}

/// `body.QueryAssignmentResponseBody`. Without assignments the field is left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct QueryAssignmentResponseBody {
    pub message_queue_assignments: Option<Vec<MessageQueueAssignment>>,
}

/// `body.SetMessageRequestModeRequestBody`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SetMessageRequestModeRequestBody {
    pub consumer_group: String,
    /// PULL or POP.
    pub mode: String,
    pub pop_share_queue_num: i32,
    pub topic: String,
}

/// Body of GET_ALL_MESSAGE_REQUEST_MODE (`MessageRequestModeSerializeWrapper`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MessageRequestModeSerializeWrapper {
    /// By topic, then by group.
    pub message_request_mode_map:
        BTreeMap<String, BTreeMap<String, SetMessageRequestModeRequestBody>>,
}

/// `body.BatchAckMessageRequestBody`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BatchAckMessageRequestBody {
    pub acks: Vec<BatchAck>,
    pub broker_name: String,
}

/// `body.BatchAck`; the names on the wire are one or two letters.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BatchAck {
    /// Base64 of a little-endian bit set over offsets from `start_offset` on.
    #[serde(rename = "b")]
    pub bit_set: String,
    #[serde(rename = "c")]
    pub consumer_group: String,
    #[serde(rename = "it")]
    pub invisible_time_ms: i64,
    #[serde(rename = "pt")]
    pub pop_time_ms: i64,
    #[serde(rename = "q")]
    pub queue_id: i32,
    /// 0 for the topic, 1 and 2 for its retry topics.
    #[serde(rename = "r")]
    pub retry: String,
    #[serde(rename = "rq")]
    pub revive_queue_id: i32,
    #[serde(rename = "so")]
    pub start_offset: i64,
    #[serde(rename = "t")]
    pub topic: String,
}
