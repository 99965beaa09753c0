//! JSON bodies that only the broker reads or writes, with RocketMQ's names. Members are in alphabetical order, as
//! fastjson writes them; the classes have the same names in `remoting/.../protocol/{admin,body}` unless said otherwise.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::shard::meta::DataVersion;
use crate::wire::remoting::body::{
    MessageQueue, SubscriptionData, SubscriptionGroupConfig, TopicConfig,
};

/// Body of 18 and of 225.
#[derive(Debug, Deserialize)]
pub struct ConfigList<T> {
    #[serde(alias = "topicConfigList", alias = "groupConfigList")]
    pub configs: Vec<T>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TopicList {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broker_addr: Option<String>,
    pub topic_list: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupList {
    pub group_list: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TopicOffset {
    pub last_update_timestamp: i64,
    pub max_offset: i64,
    pub min_offset: i64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TopicStatsTable {
    pub offset_table: BTreeMap<MessageQueue, TopicOffset>,
    pub topic_put_tps: f64,
}

/// `TopicConfigAndMappingSerializeWrapper`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TopicConfigTable {
    pub data_version: DataVersion,
    pub mapping_data_version: DataVersion,
    pub topic_config_table: BTreeMap<String, TopicConfig>,
    pub topic_queue_mapping_detail_map: BTreeMap<String, String>,
}

/// `SubscriptionGroupWrapper`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupConfigTable {
    pub data_version: DataVersion,
    pub forbidden_table: BTreeMap<String, String>,
    pub subscription_group_table: BTreeMap<String, SubscriptionGroupConfig>,
}

/// `ConsumerOffsetSerializeWrapper`: `topic@group` to queue to offset.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConsumerOffsets {
    pub data_version: DataVersion,
    pub offset_table: BTreeMap<String, BTreeMap<u32, i64>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConsumerIds {
    pub consumer_id_list: Vec<String>,
}

/// Body of 41 and 42.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LockBatch {
    pub client_id: String,
    pub consumer_group: String,
    pub mq_set: Vec<MessageQueue>,
}

#[derive(Serialize)]
pub struct LockedBatch {
    #[serde(rename = "lockOKMQSet")]
    pub locked: Vec<MessageQueue>,
}

/// Body of 46.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientConfig {
    pub client_id: String,
    pub group: String,
    pub subscription_data: SubscriptionData,
}

/// `body.Connection`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientConnection {
    pub client_addr: String,
    pub client_id: String,
    pub language: &'static str,
    pub version: i32,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConsumerConnection {
    pub connection_set: Vec<ClientConnection>,
    pub consume_from_where: String,
    pub consume_type: String,
    pub message_model: String,
    pub subscription_table: BTreeMap<String, SubscriptionData>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProducerConnection {
    pub connection_set: Vec<ClientConnection>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProducerInfo {
    pub client_id: String,
    pub language: &'static str,
    pub last_update_timestamp: u64,
    #[serde(rename = "remoteIP")]
    pub remote_ip: String,
    pub version: i32,
}

#[derive(Serialize)]
pub struct ProducerTableInfo {
    pub data: BTreeMap<String, Vec<ProducerInfo>>,
}

/// `admin.OffsetWrapper`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OffsetWrapper {
    pub broker_offset: i64,
    pub consumer_offset: i64,
    pub last_timestamp: i64,
    pub pull_offset: i64,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConsumeStats {
    pub consume_tps: f64,
    pub offset_table: BTreeMap<MessageQueue, OffsetWrapper>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConsumeStatsList {
    pub broker_addr: String,
    pub consume_stats_list: Vec<BTreeMap<String, Vec<ConsumeStats>>>,
    pub total_diff: i64,
    pub total_inflight_diff: i64,
}

/// `ResetOffsetBody`: body of 220 and answer of 222.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ResetOffset {
    pub offset_table: BTreeMap<MessageQueue, i64>,
}

/// `ResetOffsetBodyForC`: body of 220 for clients that cannot read objects as keys.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ResetOffsetForC {
    pub offset_table: Vec<QueueOffset>,
}

/// `MessageQueueForC`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct QueueOffset {
    pub broker_name: String,
    pub offset: i64,
    pub queue_id: i32,
    pub topic: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct QuerySubscription {
    pub group: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subscription_data: Option<SubscriptionData>,
    pub topic: String,
}

#[derive(Serialize)]
pub struct KvTable {
    pub table: BTreeMap<String, String>,
}

/// `HARuntimeInfo` of a master without slaves.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HaRuntimeInfo {
    pub ha_client_runtime_info: HaClientRuntimeInfo,
    pub ha_connection_info: Vec<String>,
    pub in_sync_slave_nums: i32,
    pub master: bool,
    pub master_commit_log_max_offset: i64,
}

#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HaClientRuntimeInfo {
    pub last_read_timestamp: i64,
    pub last_write_timestamp: i64,
    pub master_flush_offset: i64,
    pub max_offset: i64,
    pub transferred_byte_in_second: i64,
}
