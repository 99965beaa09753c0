//! Topics as tools see and change them: 17, 18, 215, 21, 351, 202, 305, 300, 343; and those that exist from the start.
//!
//! Core 0 makes every change durable and publishes it; here it is only checked and asked for.
//! Source: `AdminBrokerProcessor`, `TopicConfigManager`, `AttributeParser`, `TopicAttributes`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::base::names;
use crate::broker::dispatch::{Answer, Broker, Outcome};
use crate::broker::error::BrokerError;
use crate::broker::options::BrokerOptions;
use crate::shard::message::{CommittedOffset, ShardReply, ShardRequest};
use crate::shard::meta::{DataVersion, MetaCommand, Topic};
use crate::wire::remoting::body::{
    self, CreateTopicListRequestBody, GroupList, MessageQueue, TopicConfig,
    TopicConfigAndMappingSerializeWrapper, TopicList, TopicOffset, TopicStatsTable,
};
use crate::wire::remoting::command::{Command, Outgoing};

/// Permission bit: consumers may read.
pub const PERM_READ: i32 = 4;
/// Permission bit: producers may write.
pub const PERM_WRITE: i32 = 2;
/// Permission bit: topics may be created on the model of this one.
pub const PERM_INHERIT: i32 = 1;
/// All permission bits (`PermName`).
const PERM_ALL: i32 = 15;
/// Queues of one topic. RocketMQ has no bound; each costs memory on its core.
const QUEUES_MAX: i32 = 65_536;

/// A topic with as many queues to read as to write.
pub fn config(name: &str, queues: u32, perm: i32) -> TopicConfig {
    TopicConfig {
        topic_name: name.into(),
        read_queue_nums: queues,
        write_queue_nums: queues,
        perm,
        ..TopicConfig::default()
    }
}

/// The topics that a broker has from its start.
pub fn boot_topics(options: &BrokerOptions) -> Vec<TopicConfig> {
    let read_write = PERM_READ | PERM_WRITE;
    let model = read_write | PERM_INHERIT;
    let auto_create = if options.auto_create_topic {
        model
    } else {
        read_write
    };
    let mut topics = vec![
        config(names::SELF_TEST_TOPIC, 1, read_write),
        config(
            names::AUTO_CREATE_TOPIC,
            options.default_topic_queues,
            auto_create,
        ),
        // Not RocketMQ's 1024: the benchmark tools need a few queues, and a tool can add more.
        config(names::BENCHMARK_TOPIC, 16, read_write),
        config(&options.cluster, 16, model),
        config(&options.broker, 1, model),
        config(names::OFFSET_MOVED_TOPIC, 1, read_write),
        config(names::SCHEDULE_TOPIC, 18, read_write),
        config(&names::reply_topic(&options.cluster), 1, read_write),
        config(names::TRANS_HALF_TOPIC, 1, read_write),
        config(names::TRANS_OP_HALF_TOPIC, 1, read_write),
    ];
    if options.trace_topic {
        topics.push(config(names::TRACE_TOPIC, 1, read_write));
    }
    topics
}

/// Whether a topic belongs to the broker: tools may neither change nor delete it.
fn is_system(name: &str, options: &BrokerOptions) -> bool {
    names::is_system_topic(name)
        || *name == *options.cluster
        || *name == *options.broker
        || *name == names::reply_topic(&options.cluster)
}

/// A queue id that the topic does not have.
pub fn no_queue(topic: &str, queue_id: u32) -> BrokerError {
    BrokerError::InvalidParameter(format!("the topic '{topic}' has no queue {queue_id}"))
}

fn check_name(name: &str, options: &BrokerOptions) -> Result<(), BrokerError> {
    names::check_topic(name)?;
    if is_system(name, options) {
        return Err(BrokerError::InvalidParameter(format!(
            "the topic '{name}' belongs to the broker and cannot be changed"
        )));
    }
    Ok(())
}

/// Checks what a tool wants a topic to be.
fn check_config(config: &TopicConfig, options: &BrokerOptions) -> Result<(), BrokerError> {
    check_name(&config.topic_name, options)?;
    for (what, queues) in [
        ("readQueueNums", config.read_queue_nums),
        ("writeQueueNums", config.write_queue_nums),
    ] {
        if queues > QUEUES_MAX as u32 {
            return Err(BrokerError::InvalidParameter(format!(
                "{what} is {queues}, the limit is {QUEUES_MAX}"
            )));
        }
    }
    if !(0..=PERM_ALL).contains(&config.perm) {
        return Err(BrokerError::InvalidParameter(format!(
            "perm is {}; it is the sum of read 4, write 2 and inherit 1",
            config.perm
        )));
    }
    Ok(())
}

/// The attributes after a tool's changes: `+key=value` adds or changes, `-key` deletes, separated by commas.
fn changed_attributes(
    current: &BTreeMap<String, String>,
    changes: &str,
) -> Result<BTreeMap<String, String>, BrokerError> {
    let mut attributes = current.clone();
    for change in changes.split(',').map(str::trim).filter(|c| !c.is_empty()) {
        if let Some(key) = change.strip_prefix('-') {
            check_attribute_key(key)?;
            attributes.remove(key);
        } else if let Some((key, value)) = change.strip_prefix('+').and_then(|c| c.split_once('='))
        {
            check_attribute(key, value)?;
            attributes.insert(key.into(), value.into());
        } else {
            return Err(BrokerError::System(format!(
                "the attribute change '{change}' is neither +key=value nor -key"
            )));
        }
    }
    Ok(attributes)
}

/// `TopicAttributes`.
const ATTRIBUTES: [&str; 5] = [
    "queue.type",
    "cleanup.policy",
    "message.type",
    "reserve.time",
    "lite.topic.expiration",
];

fn check_attribute_key(key: &str) -> Result<(), BrokerError> {
    if ATTRIBUTES.contains(&key) {
        return Ok(());
    }
    Err(BrokerError::System(format!(
        "unsupported key: {key}; known are {}",
        ATTRIBUTES.join(", ")
    )))
}

fn check_attribute(key: &str, value: &str) -> Result<(), BrokerError> {
    check_attribute_key(key)?;
    let one_of = |allowed: &[&str]| {
        if allowed.contains(&value) {
            return Ok(());
        }
        Err(BrokerError::System(format!(
            "the attribute {key} is '{value}'; this broker offers {}",
            allowed.join(", ")
        )))
    };
    match key {
        "queue.type" => one_of(&["SimpleCQ"]),
        "cleanup.policy" => one_of(&["DELETE"]),
        "message.type" => one_of(&[
            "UNSPECIFIED",
            "NORMAL",
            "FIFO",
            "DELAY",
            "TRANSACTION",
            "PRIORITY",
            "LITE",
            "MIXED",
        ]),
        _ if value.parse::<i64>().is_ok() => Ok(()),
        _ => Err(BrokerError::System(format!(
            "the attribute {key} is '{value}', which is not a number"
        ))),
    }
}

impl Broker {
    pub(super) async fn put_topic(self, command: Command) -> Outcome {
        let name = command.required_text("topic")?.into_owned();
        let current = self.known_topic(&name).map(|topic| topic.config.clone());
        let queues = |field| -> Result<u32, BrokerError> {
            let queues = command.required_i32(field)?;
            u32::try_from(queues).map_err(|_| {
                BrokerError::InvalidParameter(format!("{field} is {queues}, which is negative"))
            })
        };
        let attributes = match command.text("attributes") {
            Some(changes) => {
                let none = BTreeMap::new();
                let known = current.as_ref().map_or(&none, |config| &config.attributes);
                changed_attributes(known, &changes)?
            }
            None => current
                .as_ref()
                .map(|config| config.attributes.clone())
                .unwrap_or_default(),
        };
        let wanted = TopicConfig {
            attributes,
            order: command.flag("order"),
            perm: command.required_i32("perm")?,
            read_queue_nums: queues("readQueueNums")?,
            topic_filter_type: command
                .text("topicFilterType")
                .map_or_else(|| "SINGLE_TAG".into(), |kind| kind.into_owned()),
            topic_name: name,
            topic_sys_flag: command.int32("topicSysFlag")?.unwrap_or(0),
            write_queue_nums: queues("writeQueueNums")?,
        };
        check_config(&wanted, &self.options)?;
        if current.as_ref() != Some(&wanted) {
            self.change(MetaCommand::PutTopic(wanted)).await?;
        }
        Answer::done()
    }

    pub(super) async fn put_topics(self, command: Command) -> Outcome {
        let list: CreateTopicListRequestBody = self.body(&command)?;
        // All are checked before the first is changed.
        for config in &list.topic_config_list {
            check_config(config, &self.options)?;
        }
        for config in list.topic_config_list {
            let same = self
                .known_topic(&config.topic_name)
                .is_some_and(|topic| topic.config == config);
            if !same {
                self.change(MetaCommand::PutTopic(config)).await?;
            }
        }
        Answer::done()
    }

    pub(super) async fn delete_topic(self, command: Command) -> Outcome {
        let name = command.required_text("topic")?.into_owned();
        check_name(&name, &self.options)?;
        if self.known_topic(&name).is_some() {
            self.change(MetaCommand::DeleteTopic(name)).await?;
        }
        Answer::done()
    }

    /// 21, with the paging of `topicSeq` and `maxTopicNum`.
    pub(super) fn all_topics(&self, command: &Command) -> Outcome {
        let meta = self.shard.meta();
        let (skip, take) = page(command, "topicSeq", "maxTopicNum")?;
        let table: BTreeMap<String, TopicConfig> = meta
            .topics
            .iter()
            .map(|(name, topic)| (name.to_string(), topic.config.clone()))
            .collect();
        let total = table.len();
        let head = Outgoing::success().field("totalTopicNum", total as i64);
        Answer::json_with(
            head,
            &TopicConfigAndMappingSerializeWrapper {
                data_version: wire_version(meta.topics_version),
                topic_config_table: table.into_iter().skip(skip).take(take).collect(),
                ..TopicConfigAndMappingSerializeWrapper::default()
            },
        )
    }

    pub(super) fn one_topic(&self, command: &Command) -> Outcome {
        let topic = self.topic(&command.required_text("topic")?)?;
        Answer::json(&topic.config)
    }

    pub(super) async fn topic_stats(self, command: Command) -> Outcome {
        let topic = self.topic(&command.required_text("topic")?)?;
        let queues = topic
            .config
            .read_queue_nums
            .max(topic.config.write_queue_nums);
        let bounds = self.bounds_of(&topic, queues).await?;
        let offset_table = bounds
            .iter()
            .enumerate()
            .map(|(queue_id, bounds)| {
                let offset = TopicOffset {
                    last_update_timestamp: bounds.last_store_timestamp,
                    max_offset: bounds.max_offset,
                    min_offset: bounds.min_offset,
                };
                (self.message_queue(&topic.name, queue_id as u32), offset)
            })
            .collect();
        Answer::json(&TopicStatsTable {
            offset_table,
            topic_put_tps: 0.0,
        })
    }

    pub(super) fn system_topics(&self) -> Outcome {
        let meta = self.shard.meta();
        let topics = meta
            .topics
            .keys()
            .filter(|name| is_system(name, &self.options))
            .map(|name| name.to_string())
            .collect();
        Answer::json(&TopicList {
            broker_addr: Some(self.options.store_host.to_string()),
            topic_list: topics,
        })
    }

    /// 300: groups that are connected and subscribe the topic, and those that have offsets in it.
    pub(super) async fn groups_of_topic(self, command: Command) -> Outcome {
        let name = command.required_text("topic")?.into_owned();
        let mut groups: BTreeSet<String> = BTreeSet::new();
        for (group, online) in &self.shard.meta().consumers {
            if online.subscriptions.contains_key(&name) {
                groups.insert(group.to_string());
            }
        }
        if let Some(topic) = self.known_topic(&name) {
            let offsets = self.offsets(None, Some(&topic)).await?;
            groups.extend(offsets.into_iter().map(|o| o.group.to_string()));
        }
        Answer::json(&GroupList { group_list: groups })
    }

    /// 343: topics in which a group has offsets.
    pub(super) async fn topics_of_group(self, command: Command) -> Outcome {
        let group = command.required_text("group")?.into_owned();
        let offsets = self.offsets(Some(&group), None).await?;
        let meta = self.shard.meta();
        let topics = offsets
            .iter()
            .filter_map(|o| meta.topics_by_id.get(&o.queue.topic_id))
            .map(|topic| topic.name.to_string())
            .collect();
        Answer::json(&TopicList {
            broker_addr: None,
            topic_list: topics,
        })
    }

    /// Committed offsets of all cores, of one group, of one topic, or all.
    pub(super) async fn offsets(
        &self,
        group: Option<&str>,
        topic: Option<&Arc<Topic>>,
    ) -> Result<Vec<CommittedOffset>, BrokerError> {
        let group: Option<Arc<str>> = group.map(Arc::from);
        let topic_id = topic.map(|topic| topic.id);
        let mut all = Vec::new();
        for core in 0..self.shard.count() {
            let request = ShardRequest::Offsets {
                group: group.clone(),
                topic_id,
            };
            match self.ask(core, request).await? {
                ShardReply::Offsets(found) => all.extend(found),
                other => return Err(BrokerError::unexpected(&other)),
            }
        }
        Ok(all)
    }

    /// A queue of this broker as clients name it.
    pub(super) fn message_queue(&self, topic: &str, queue_id: u32) -> MessageQueue {
        MessageQueue {
            broker_name: self.options.broker.to_string(),
            queue_id: queue_id as i32,
            topic: topic.into(),
        }
    }
}

/// A table's version as it is written.
pub(super) fn wire_version(version: DataVersion) -> body::DataVersion {
    body::DataVersion {
        counter: version.counter,
        state_version: version.state_version,
        timestamp: version.timestamp,
    }
}

/// First entry and number of entries that a paged list request wants; all without the fields.
pub(super) fn page(
    command: &Command,
    first: &'static str,
    count: &'static str,
) -> Result<(usize, usize), BrokerError> {
    let skip = command.int32(first)?.unwrap_or(0).max(0) as usize;
    let take = match command.int32(count)? {
        Some(count) if count > 0 => count as usize,
        _ => usize::MAX,
    };
    Ok((skip, take))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn options() -> BrokerOptions {
        BrokerOptions::new("C", "b", "127.0.0.1:10911".parse().unwrap())
    }

    #[test]
    fn topics_may_be_created_by_a_send_only_if_the_model_is_inheritable() {
        let inheritable = |auto_create_topic| {
            let options = BrokerOptions {
                auto_create_topic,
                ..options()
            };
            let topics = boot_topics(&options);
            let model = topics.iter().find(|t| t.topic_name == "TBW102").unwrap();
            model.perm & PERM_INHERIT != 0
        };
        assert!(inheritable(true));
        assert!(!inheritable(false));
    }

    #[test]
    fn tools_may_not_change_what_belongs_to_the_broker() {
        for name in ["TBW102", "rmq_sys_wheel_timer", "C", "b", "C_REPLY_TOPIC"] {
            let refused = check_config(&config(name, 1, 6), &options());
            assert!(
                matches!(refused, Err(BrokerError::InvalidParameter(_))),
                "{name}"
            );
        }
        assert!(check_config(&config("%RETRY%g", 1, 6), &options()).is_ok());
    }

    #[test]
    fn queue_counts_and_permissions_have_bounds() {
        assert!(check_config(&config("T", 65_536, 7), &options()).is_ok());
        assert!(check_config(&config("T", 65_537, 7), &options()).is_err());
        assert!(check_config(&config("T", 1, 16), &options()).is_err());
        assert!(check_config(&config("T", 1, -1), &options()).is_err());
    }

    #[test]
    fn attributes_are_added_changed_and_deleted() {
        let none = BTreeMap::new();
        let some = changed_attributes(&none, "+message.type=FIFO,+reserve.time=5").unwrap();
        assert_eq!(some["message.type"], "FIFO");
        let fewer = changed_attributes(&some, "-reserve.time,+message.type=NORMAL").unwrap();
        assert_eq!(
            fewer,
            BTreeMap::from([("message.type".to_owned(), "NORMAL".to_owned())])
        );
    }

    #[test]
    fn unknown_attributes_are_named() {
        let error = changed_attributes(&BTreeMap::new(), "+foo=1").unwrap_err();
        assert!(error.to_string().starts_with("unsupported key: foo"));
        for bad in [
            "message.type=FIFO",
            "+message.type",
            "+reserve.time=x",
            "+queue.type=BatchCQ",
        ] {
            assert!(changed_attributes(&BTreeMap::new(), bad).is_err(), "{bad}");
        }
    }
}
