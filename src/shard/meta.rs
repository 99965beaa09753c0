//! Topics, subscription groups and online clients as every core knows them.
//!
//! Core 0 writes topics and groups to log 0 and then publishes each change; a group's home core publishes its members.
//! Every core applies the changes in the order in which they were published, so a lookup is a local map.

use std::collections::BTreeMap;
use std::sync::Arc;

use ahash::AHashMap;

use crate::base::id::ConnectionId;
use crate::base::offset::LogId;
use crate::shard::message::ClientInfo;
use crate::wire::remoting::body::{
    SetMessageRequestModeRequestBody, SubscriptionData, SubscriptionGroupConfig,
    SubscriptionsDiffer, TopicConfig,
};

/// One incarnation of a topic.
#[derive(Clone, Debug, PartialEq)]
pub struct Topic {
    /// Never used again after a deletion.
    pub id: u32,
    pub name: Arc<str>,
    pub config: TopicConfig,
    /// Log of each queue, by queue id. It only grows; its length is the greatest queue count that the topic ever had.
    pub logs: Vec<LogId>,
}

pub use crate::wire::remoting::body::DataVersion;

/// A client of a group that is connected now.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    pub connection: ConnectionId,
    pub client: ClientInfo,
    /// Milliseconds since 1970 of its last heartbeat.
    pub last_heartbeat_ms: u64,
}

/// A consumer group with its connected members, as its home core last published it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OnlineGroup {
    pub name: Arc<str>,
    pub members: Vec<Member>,
    /// By topic; the one with the greatest subVersion that a member sent.
    pub subscriptions: AHashMap<String, SubscriptionData>,
    /// CONSUME_ACTIVELY, CONSUME_PASSIVELY, CONSUME_POP.
    pub consume_type: String,
    /// CLUSTERING, BROADCASTING.
    pub message_model: String,
    pub consume_from_where: String,
    /// Two members that subscribe differently, if any do.
    pub differ: Option<Arc<SubscriptionsDiffer>>,
    /// Its members speak the native protocol.
    pub is_native: bool,
}

/// A change that every core applies. Cheap to clone.
#[derive(Clone, Debug)]
pub enum MetaChange {
    TopicPut(Arc<Topic>),
    TopicDeleted(Arc<Topic>),
    GroupPut(Arc<SubscriptionGroupConfig>),
    GroupDeleted(Arc<str>),
    /// Versions of the topic and group tables after the change before.
    Versions {
        topics: DataVersion,
        groups: DataVersion,
    },
    /// Members of a consumer group; without members it is forgotten.
    ConsumersOnline(Arc<OnlineGroup>),
    /// Members of a producer group, likewise.
    ProducersOnline(Arc<OnlineGroup>),
    /// All configuration values that were changed at run time.
    Settings(Arc<BTreeMap<String, String>>),
    /// How a group consumes a topic.
    RequestMode(Arc<SetMessageRequestModeRequestBody>),
    /// After a start: all topics, groups and settings that log 0 has were published before this.
    Complete,
}

/// A durable change, for core 0.
#[derive(Clone, Debug)]
pub enum MetaCommand {
    /// Makes or changes a topic. Queues that it has already keep their log.
    PutTopic(TopicConfig),
    /// Only if it is not there yet (auto-creation by several cores at once).
    CreateTopicIfAbsent(TopicConfig),
    /// With its queues, messages and consumer offsets.
    DeleteTopic(String),
    PutGroup(SubscriptionGroupConfig),
    CreateGroupIfAbsent(SubscriptionGroupConfig),
    DeleteGroup(String),
    /// Configuration values that change at run time, added to those changed before.
    PutSettings(BTreeMap<String, String>),
    /// How a group consumes a topic: by pulling or by popping.
    PutRequestMode(SetMessageRequestModeRequestBody),
}

/// What a core knows. Lookups borrow; changes come through [`Meta::apply`] only.
#[derive(Debug, Default)]
pub struct Meta {
    pub topics: AHashMap<Arc<str>, Arc<Topic>>,
    pub topics_by_id: AHashMap<u32, Arc<Topic>>,
    pub groups: AHashMap<Arc<str>, Arc<SubscriptionGroupConfig>>,
    pub consumers: AHashMap<Arc<str>, Arc<OnlineGroup>>,
    pub producers: AHashMap<Arc<str>, Arc<OnlineGroup>>,
    pub topics_version: DataVersion,
    pub groups_version: DataVersion,
    /// Configuration values that were changed at run time; they go before the configuration file.
    pub settings: Arc<BTreeMap<String, String>>,
    /// By topic, then by group.
    pub request_modes: BTreeMap<String, BTreeMap<String, Arc<SetMessageRequestModeRequestBody>>>,
    /// Log 0 has been read: what is not here does not exist.
    pub complete: bool,
}

impl Meta {
    /// Applies one change.
    pub fn apply(&mut self, change: MetaChange) {
        match change {
            MetaChange::TopicPut(topic) => {
                self.topics_by_id.insert(topic.id, topic.clone());
                self.topics.insert(topic.name.clone(), topic);
            }
            MetaChange::TopicDeleted(topic) => {
                self.topics_by_id.remove(&topic.id);
                if self
                    .topics
                    .get(&topic.name)
                    .is_some_and(|current| current.id == topic.id)
                {
                    self.topics.remove(&topic.name);
                }
            }
            MetaChange::GroupPut(group) => {
                self.groups
                    .insert(Arc::from(group.group_name.as_str()), group);
            }
            MetaChange::GroupDeleted(name) => {
                self.groups.remove(&name);
            }
            MetaChange::Versions { topics, groups } => {
                self.topics_version = topics;
                self.groups_version = groups;
            }
            MetaChange::ConsumersOnline(group) => publish_online(&mut self.consumers, group),
            MetaChange::ProducersOnline(group) => publish_online(&mut self.producers, group),
            MetaChange::Settings(settings) => self.settings = settings,
            MetaChange::RequestMode(mode) => {
                self.request_modes
                    .entry(mode.topic.clone())
                    .or_default()
                    .insert(mode.consumer_group.clone(), mode);
            }
            MetaChange::Complete => self.complete = true,
        }
    }
}

fn publish_online(table: &mut AHashMap<Arc<str>, Arc<OnlineGroup>>, group: Arc<OnlineGroup>) {
    if group.members.is_empty() {
        table.remove(&group.name);
    } else {
        table.insert(group.name.clone(), group);
    }
}
