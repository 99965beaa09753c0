//! Clients: their heartbeats, and how tools see them.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::wire::remoting::body::lenient;

/// `heartbeat.SubscriptionData`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SubscriptionData {
    pub class_filter_mode: bool,
    #[serde(deserialize_with = "lenient::int_set")]
    pub code_set: BTreeSet<i64>,
    /// TAG or SQL92.
    pub expression_type: Option<String>,
    /// `*`, or tags separated by `||`.
    pub sub_string: String,
    #[serde(deserialize_with = "lenient::int")]
    pub sub_version: i64,
    pub tags_set: BTreeSet<String>,
    pub topic: String,
}

/// `heartbeat.ConsumerData`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConsumerData {
    #[serde(deserialize_with = "lenient::consume_from_where")]
    pub consume_from_where: String,
    #[serde(deserialize_with = "lenient::consume_type")]
    pub consume_type: String,
    pub group_name: String,
    #[serde(deserialize_with = "lenient::message_model")]
    pub message_model: String,
    pub subscription_data_set: Vec<SubscriptionData>,
    pub unit_mode: bool,
}

/// `heartbeat.ProducerData`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProducerData {
    pub group_name: String,
}

/// `heartbeat.HeartbeatData`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HeartbeatData {
    #[serde(rename = "clientID")]
    pub client_id: String,
    pub consumer_data_set: Vec<ConsumerData>,
    #[serde(deserialize_with = "lenient::int")]
    pub heartbeat_fingerprint: i64,
    pub producer_data_set: Vec<ProducerData>,
    pub without_sub: bool,
}

/// Body of CHECK_CLIENT_CONFIG (`body.CheckClientRequestBody`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CheckClientRequestBody {
    pub client_id: String,
    pub group: String,
    pub namespace: Option<String>,
    pub subscription_data: SubscriptionData,
}

/// Body of the answer to GET_CONSUMER_LIST_BY_GROUP (`body.GetConsumerListByGroupResponseBody`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GetConsumerListByGroupResponseBody {
    pub consumer_id_list: Vec<String>,
}

/// `body.Connection`: one client of a group.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Connection {
    pub client_addr: String,
    pub client_id: String,
    /// A name of [`crate::wire::remoting::command::LANGUAGES`].
    pub language: String,
    pub version: i32,
}

/// `body.ConsumerConnection`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConsumerConnection {
    pub connection_set: Vec<Connection>,
    pub consume_from_where: String,
    pub consume_type: String,
    pub message_model: String,
    /// By topic.
    pub subscription_table: BTreeMap<String, SubscriptionData>,
    /// Of this broker, not of RocketMQ, whose tools ignore it: members subscribe differently.
    pub subscriptions_differ: Option<SubscriptionsDiffer>,
}

/// Two members of one consumer group that subscribe a topic differently: each gets messages that the other wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SubscriptionsDiffer {
    pub topic: String,
    pub one_client: String,
    /// Its expression; none if it does not subscribe the topic.
    pub one_subscription: Option<String>,
    pub other_client: String,
    pub other_subscription: Option<String>,
}

impl std::fmt::Display for SubscriptionsDiffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let side = |client: &str, subscription: &Option<String>| match subscription {
            Some(expression) => format!("{client} subscribes '{expression}'"),
            None => format!("{client} does not subscribe it"),
        };
        write!(
            f,
            "of the topic '{}': {}, {}",
            self.topic,
            side(&self.one_client, &self.one_subscription),
            side(&self.other_client, &self.other_subscription)
        )
    }
}

/// `body.ProducerConnection`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProducerConnection {
    pub connection_set: Vec<Connection>,
}

/// `body.ProducerInfo`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProducerInfo {
    pub client_id: String,
    pub language: String,
    pub last_update_timestamp: i64,
    /// With a slash in front, as Java prints socket addresses.
    #[serde(rename = "remoteIP")]
    pub remote_ip: String,
    pub version: i32,
}

/// `body.ProducerTableInfo`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProducerTableInfo {
    /// By group.
    pub data: BTreeMap<String, Vec<ProducerInfo>>,
}

/// `body.QuerySubscriptionResponseBody`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct QuerySubscriptionResponseBody {
    pub group: String,
    pub subscription_data: Option<SubscriptionData>,
    pub topic: String,
}

/// `body.ConsumeMessageDirectlyResult`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConsumeMessageDirectlyResult {
    pub auto_commit: bool,
    /// CR_SUCCESS, CR_LATER, CR_ROLLBACK, CR_COMMIT, CR_THROW_EXCEPTION, CR_RETURN_NULL.
    pub consume_result: String,
    pub order: bool,
    pub remark: Option<String>,
    pub spent_time_mills: i64,
}

/// `body.ConsumerRunningInfo`, for tools; a broker passes it on as it came. `rest` has the tables by queue, whose keys are
/// text here, so that it can be read and shown but not written again.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConsumerRunningInfo {
    pub jstack: Option<String>,
    pub properties: BTreeMap<String, Value>,
    pub subscription_set: Vec<SubscriptionData>,
    #[serde(flatten)]
    pub rest: serde_json::Map<String, Value>,
}
