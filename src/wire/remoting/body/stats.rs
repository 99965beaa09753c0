//! Offsets and statistics, as tools ask for them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::wire::remoting::body::client::SubscriptionData;
use crate::wire::remoting::body::queue::{MessageQueue, keyed};

/// `admin.TopicOffset`.
#[derive(Clone, Debug, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TopicOffset {
    /// Store time of the last message in milliseconds, 0 if there is none.
    pub last_update_timestamp: i64,
    /// Exclusive.
    pub max_offset: i64,
    pub min_offset: i64,
}

/// `admin.TopicStatsTable`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TopicStatsTable {
    #[serde(deserialize_with = "keyed")]
    pub offset_table: BTreeMap<MessageQueue, TopicOffset>,
    pub topic_put_tps: f64,
}

/// `admin.OffsetWrapper`.
#[derive(Clone, Debug, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OffsetWrapper {
    /// Exclusive.
    pub broker_offset: i64,
    pub consumer_offset: i64,
    /// Store time of the last consumed message in milliseconds.
    pub last_timestamp: i64,
    pub pull_offset: i64,
}

/// `TimerMetrics.TimerMetricsSerializeWrapper`, without its data version.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TimerMetrics {
    /// By topic.
    pub timing_count: BTreeMap<String, TimerMetric>,
}

/// `TimerMetrics.Metric`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TimerMetric {
    /// Delayed messages that wait.
    pub count: u64,
    /// When that was so, in milliseconds.
    pub time_stamp: i64,
}

/// `admin.ConsumeStats`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConsumeStats {
    pub consume_tps: f64,
    #[serde(deserialize_with = "keyed")]
    pub offset_table: BTreeMap<MessageQueue, OffsetWrapper>,
}

/// `admin.ConsumeStatsList`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConsumeStatsList {
    pub broker_addr: String,
    /// Each element has one group.
    pub consume_stats_list: Vec<BTreeMap<String, Vec<ConsumeStats>>>,
    pub total_diff: i64,
    pub total_inflight_diff: i64,
}

/// `body.BrokerStatsItem`.
#[derive(Clone, Debug, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BrokerStatsItem {
    /// Average value per put.
    pub avgpt: f64,
    pub sum: i64,
    pub tps: f64,
}

/// `body.BrokerStatsData`.
#[derive(Clone, Debug, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BrokerStatsData {
    pub stats_day: BrokerStatsItem,
    pub stats_hour: BrokerStatsItem,
    pub stats_minute: BrokerStatsItem,
}

/// `body.QueueTimeSpan`; all times are -1 for an empty queue.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct QueueTimeSpan {
    pub consume_time_stamp: i64,
    pub consume_time_stamp_str: Option<String>,
    pub delay_time: i64,
    pub max_time_stamp: i64,
    pub max_time_stamp_str: Option<String>,
    pub message_queue: MessageQueue,
    pub min_time_stamp: i64,
    pub min_time_stamp_str: Option<String>,
}

/// `body.QueryConsumeTimeSpanBody`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct QueryConsumeTimeSpanBody {
    pub consume_time_span_set: Vec<QueueTimeSpan>,
}

/// `body.ConsumeQueueData`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConsumeQueueData {
    pub bit_map: Option<String>,
    pub eval: bool,
    pub extend_data_json: Option<String>,
    pub msg: Option<String>,
    pub physic_offset: i64,
    pub physic_size: i32,
    pub tags_code: i64,
}

/// `body.QueryConsumeQueueResponseBody`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct QueryConsumeQueueResponseBody {
    pub filter_data: Option<String>,
    pub max_queue_index: i64,
    pub min_queue_index: i64,
    pub queue_data: Vec<ConsumeQueueData>,
    pub subscription_data: Option<SubscriptionData>,
}

/// `body.QueryCorrectionOffsetBody`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct QueryCorrectionOffsetBody {
    /// By queue id.
    pub correction_offsets: BTreeMap<i32, i64>,
}
