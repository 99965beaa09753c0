//! Consumer and producer groups as tools see and change them: 200, 225, 207, 201, 352, 203, 204, 328, 345.
//!
//! Source: `AdminBrokerProcessor`, `SubscriptionGroupManager`.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::base::names;
use crate::broker::dispatch::{Answer, Broker, Outcome};
use crate::broker::error::BrokerError;
use crate::broker::topics::{page, wire_version};
use crate::shard::message::{ShardReply, ShardRequest};
use crate::shard::meta::{Member, MetaCommand};
use crate::wire::remoting::body::{
    Connection, ConsumerConnection, ProducerConnection, ProducerInfo, ProducerTableInfo,
    QuerySubscriptionResponseBody, SubscriptionGroupConfig, SubscriptionGroupList,
    SubscriptionGroupWrapper,
};
use crate::wire::remoting::command::{Command, LANGUAGES, Outgoing};

/// Queues of a retry topic; as many as a topic may have would make no sense for one.
const RETRY_QUEUES_MAX: i32 = 1_024;

/// Of 100 pops of a group, how many take the messages of a higher priority first.
pub(super) const PRIORITY_FACTOR: &str = "priority.factor";

/// Of `SubscriptionGroupAttributes` all others are of lite topics, which this broker does not have.
fn check_attribute(key: &str, value: Option<&str>) -> Result<(), BrokerError> {
    if key != PRIORITY_FACTOR {
        return Err(BrokerError::System(format!(
            "unsupported key: {key}; this broker offers {PRIORITY_FACTOR}"
        )));
    }
    match value {
        Some(factor) if !factor.parse().is_ok_and(|factor: u8| factor <= 100) => {
            Err(BrokerError::System(format!(
                "the attribute {key} is '{factor}'; it is a number from 0 to 100"
            )))
        }
        _ => Ok(()),
    }
}

/// The attributes of a group after a tool's changes: the key `+name` sets one, `-name` removes one
/// (`AttributeUtil.alterCurrentAttributes`). A key without either comes from a tool that sends back what it has read.
fn changed_attributes(
    current: &BTreeMap<String, String>,
    changes: BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, BrokerError> {
    let mut attributes = current.clone();
    for (change, value) in changes {
        if let Some(key) = change.strip_prefix('-') {
            check_attribute(key, None)?;
            attributes.remove(key);
        } else {
            let key = change.strip_prefix('+').unwrap_or(&change);
            check_attribute(key, Some(&value))?;
            attributes.insert(key.to_owned(), value);
        }
    }
    Ok(attributes)
}

fn check_config(config: &SubscriptionGroupConfig) -> Result<(), BrokerError> {
    changed_attributes(&BTreeMap::new(), config.attributes.clone())?;
    names::check_group(&config.group_name)?;
    // The retry topic's name is longer than the group's and has the same limit.
    names::check_topic(&names::retry_topic(&config.group_name))?;
    if !(0..=RETRY_QUEUES_MAX).contains(&config.retry_queue_nums) {
        return Err(BrokerError::InvalidParameter(format!(
            "retryQueueNums is {}; it is 0 to {RETRY_QUEUES_MAX}",
            config.retry_queue_nums
        )));
    }
    Ok(())
}

fn language(ordinal: u8) -> String {
    let name = LANGUAGES.get(usize::from(ordinal)).copied();
    name.unwrap_or("OTHER").to_owned()
}

fn connections(members: &[Member]) -> Vec<Connection> {
    members
        .iter()
        .map(|member| Connection {
            client_addr: member.client.address.to_string(),
            client_id: member.client.client_id.to_string(),
            language: language(member.client.language),
            version: member.client.version,
        })
        .collect()
}

impl Broker {
    pub(super) async fn put_group(self, command: Command) -> Outcome {
        let config: SubscriptionGroupConfig = self.body(&command)?;
        check_config(&config)?;
        self.put_group_config(config).await?;
        Answer::done()
    }

    pub(super) async fn put_groups(self, command: Command) -> Outcome {
        let list: SubscriptionGroupList = self.body(&command)?;
        // All are checked before the first is changed.
        for config in &list.group_config_list {
            check_config(config)?;
        }
        for config in list.group_config_list {
            self.put_group_config(config).await?;
        }
        Answer::done()
    }

    async fn put_group_config(
        &self,
        mut config: SubscriptionGroupConfig,
    ) -> Result<(), BrokerError> {
        let known = self.known_group(&config.group_name);
        let none = BTreeMap::new();
        let current = known.as_ref().map_or(&none, |known| &known.attributes);
        config.attributes = changed_attributes(current, config.attributes)?;
        if known.as_deref() == Some(&config) {
            return Ok(());
        }
        self.change(MetaCommand::PutGroup(config)).await
    }

    pub(super) async fn delete_group(self, command: Command) -> Outcome {
        let group = command.required_text("groupName")?.into_owned();
        if self.known_group(&group).is_some() {
            self.change(MetaCommand::DeleteGroup(group.clone())).await?;
        }
        if command.flag("cleanOffset") {
            let group: Arc<str> = Arc::from(group);
            for core in 0..self.shard.count() {
                let request = ShardRequest::DropGroup {
                    group: group.clone(),
                };
                match self.ask(core, request).await? {
                    ShardReply::Done => {}
                    other => return Err(BrokerError::unexpected(&other)),
                }
            }
        }
        Answer::done()
    }

    /// 201, with the paging of `groupSeq` and `maxGroupNum`.
    pub(super) fn all_groups(&self, command: &Command) -> Outcome {
        let meta = self.shard.meta();
        let (skip, take) = page(command, "groupSeq", "maxGroupNum")?;
        let table: BTreeMap<String, SubscriptionGroupConfig> = meta
            .groups
            .iter()
            .map(|(name, config)| (name.to_string(), config.as_ref().clone()))
            .collect();
        let head = Outgoing::success().field("totalGroupNum", table.len() as i64);
        Answer::json_with(
            head,
            &SubscriptionGroupWrapper {
                data_version: wire_version(meta.groups_version),
                forbidden_table: BTreeMap::new(),
                subscription_group_table: table.into_iter().skip(skip).take(take).collect(),
            },
        )
    }

    /// 352. Unlike RocketMQ, looking does not create.
    pub(super) fn one_group(&self, command: &Command) -> Outcome {
        let group = command.required_text("group")?;
        let config = self
            .known_group(&group)
            .ok_or_else(|| BrokerError::NoGroup {
                group: group.into_owned(),
            })?;
        Answer::json(config.as_ref())
    }

    /// 203.
    pub(super) fn consumer_connections(&self, command: &Command) -> Outcome {
        let group = command.required_text("consumerGroup")?;
        let meta = self.shard.meta();
        let online = meta
            .consumers
            .get(group.as_ref())
            .ok_or_else(|| BrokerError::NotOnline {
                group: group.to_string(),
            })?;
        Answer::json(&ConsumerConnection {
            connection_set: connections(&online.members),
            consume_from_where: online.consume_from_where.clone(),
            consume_type: online.consume_type.clone(),
            message_model: online.message_model.clone(),
            subscription_table: online
                .subscriptions
                .iter()
                .map(|(topic, data)| (topic.clone(), data.clone()))
                .collect(),
            subscriptions_differ: online.differ.as_deref().cloned(),
        })
    }

    /// 204.
    pub(super) fn producer_connections(&self, command: &Command) -> Outcome {
        let group = command.required_text("producerGroup")?;
        let meta = self.shard.meta();
        let online = meta.producers.get(group.as_ref()).ok_or_else(|| {
            BrokerError::System(format!(" the producer group[{group}] not exist"))
        })?;
        Answer::json(&ProducerConnection {
            connection_set: connections(&online.members),
        })
    }

    /// 328.
    pub(super) fn all_producers(&self) -> Outcome {
        let meta = self.shard.meta();
        let info = |member: &Member| ProducerInfo {
            client_id: member.client.client_id.to_string(),
            language: language(member.client.language),
            last_update_timestamp: member.last_heartbeat_ms as i64,
            // With the slash of Java's addresses.
            remote_ip: format!("/{}", member.client.address),
            version: member.client.version,
        };
        let data = meta
            .producers
            .iter()
            .map(|(group, online)| (group.to_string(), online.members.iter().map(info).collect()))
            .collect();
        Answer::json(&ProducerTableInfo { data })
    }

    /// 345.
    pub(super) fn subscription_of(&self, command: &Command) -> Outcome {
        let group = command.required_text("group")?.into_owned();
        let topic = command.required_text("topic")?.into_owned();
        let meta = self.shard.meta();
        let subscription_data = meta
            .consumers
            .get(group.as_str())
            .and_then(|online| online.subscriptions.get(&topic))
            .cloned();
        Answer::json(&QuerySubscriptionResponseBody {
            group,
            subscription_data,
            topic,
        })
    }
}
