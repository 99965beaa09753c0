//! Answers of the name server as views of its tables, so that a route is written from the table without a copy of it.
//!
//! Field for field they are `TopicRouteData`, `ClusterInfo`, `TopicList`, `KVTable` and `BrokerMemberGroup` of
//! `wire::remoting::body`, which clients read; a test holds the two together.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

/// Queues of a topic on one broker name: `route.QueueData` without the name, which is the key in the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TopicQueues {
    pub read_queue_nums: u32,
    pub write_queue_nums: u32,
    pub perm: i32,
    pub topic_sys_flag: i32,
}

/// `route.BrokerData`.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BrokerDataView<'a> {
    pub broker_addrs: BTreeMap<i64, &'a str>,
    pub broker_name: &'a str,
    pub cluster: &'a str,
    pub enable_acting_master: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone_name: Option<&'a str>,
}

/// `route.QueueData`.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct QueueDataView<'a> {
    pub broker_name: &'a str,
    pub perm: i32,
    pub read_queue_nums: u32,
    pub topic_sys_flag: i32,
    pub write_queue_nums: u32,
}

impl<'a> QueueDataView<'a> {
    pub fn new(broker_name: &'a str, queues: &TopicQueues) -> Self {
        Self {
            broker_name,
            perm: queues.perm,
            read_queue_nums: queues.read_queue_nums,
            topic_sys_flag: queues.topic_sys_flag,
            write_queue_nums: queues.write_queue_nums,
        }
    }
}

/// `route.TopicRouteData`.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TopicRouteView<'a> {
    pub broker_datas: Vec<BrokerDataView<'a>>,
    pub filter_server_table: BTreeMap<&'a str, &'a [String]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order_topic_conf: Option<&'a str>,
    pub queue_datas: Vec<QueueDataView<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic_queue_mapping_by_broker: Option<&'a BTreeMap<String, Value>>,
}

/// `body.ClusterInfo`.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterInfoView<'a> {
    pub broker_addr_table: BTreeMap<&'a str, BrokerDataView<'a>>,
    pub cluster_addr_table: BTreeMap<&'a str, Vec<&'a str>>,
}

/// `body.TopicList`.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TopicListView<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broker_addr: Option<&'a str>,
    pub topic_list: Vec<&'a str>,
}

/// `body.KVTable`.
#[derive(Debug, PartialEq, Serialize)]
pub struct KvTableView<'a> {
    pub table: &'a BTreeMap<String, String>,
}

/// `body.BrokerMemberGroup`.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberGroupView<'a> {
    pub broker_addrs: BTreeMap<i64, &'a str>,
    pub broker_name: &'a str,
    pub cluster: &'a str,
}

/// `body.GetBrokerMemberGroupResponseBody`.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberGroupBody<'a> {
    pub broker_member_group: MemberGroupView<'a>,
}
