//! Core 0's writer of topics, groups and settings: each command is durable in log 0 and known to every core before it is
//! answered. Commands that wait and have nothing to do with each other share one flush and one round of the cores.
//!
//! Keys in log 0: `topic/<name>` and `group/<name>` (JSON), `settings` (JSON), `versions` (JSON), `next-topic-id` (JSON),
//! `request-mode/<topic>/<group>` (JSON).

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::base::notify::Notify;
use crate::base::offset::LogId;
use crate::io::env::Env;
use crate::shard::core::{ReplyTo, Shard};
use crate::shard::message::{LocalReply, Orphan, Refusal, ShardReply, ShardRequest};
use crate::shard::meta::{DataVersion, MetaChange, MetaCommand, Topic};
use crate::store::control::Control;
use crate::wire::remoting::body::TopicConfig;

const NEXT_TOPIC_ID: &str = "next-topic-id";
const VERSIONS: &str = "versions";
const SETTINGS: &str = "settings";
const TOPIC: &str = "topic/";
const GROUP: &str = "group/";
const REQUEST_MODE: &str = "request-mode/";
/// Commands that may wait.
const COMMANDS_MAX: usize = 16 << 10;
/// Commands that share a flush.
const TOGETHER_MAX: usize = 128;

#[derive(Serialize, Deserialize)]
struct StoredTopic {
    id: u32,
    logs: Vec<LogId>,
    config: TopicConfig,
}

#[derive(Clone, Copy, Default, Serialize, Deserialize)]
struct Versions {
    topics: DataVersion,
    groups: DataVersion,
}

/// Commands that wait for their turn, and what only the writer knows.
#[derive(Default)]
pub struct MetaWriter {
    waiting: RefCell<VecDeque<(MetaCommand, ReplyTo)>>,
    work: Notify,
    next_topic_id: std::cell::Cell<u32>,
    next_log: std::cell::Cell<u32>,
}

/// What one or more commands come to.
#[derive(Default)]
struct Plan {
    /// Into log 0.
    records: Vec<Control>,
    /// To every core, when durable.
    changes: Vec<MetaChange>,
    /// Afterwards: queues to forget.
    dropped_topic: Option<u32>,
    /// Afterwards: offsets to forget.
    dropped_group: Option<Arc<str>>,
}

fn put<T: Serialize>(key: String, value: &T) -> Control {
    let json = serde_json::to_vec(value).unwrap_or_default();
    Control::Metadata {
        key: key.into(),
        value: Some(json.into()),
    }
}

fn remove(key: String) -> Control {
    Control::Metadata {
        key: key.into(),
        value: None,
    }
}

impl<E: Env> Shard<E> {
    /// A command for core 0.
    pub(super) fn queue_meta(&self, command: MetaCommand, reply_to: ReplyTo) {
        if self.is_slave() {
            return self.reply(reply_to, ShardReply::Refused(Refusal::Replica));
        }
        let mut waiting = self.meta_writer.waiting.borrow_mut();
        if self.options.index != 0 || waiting.len() >= COMMANDS_MAX {
            let refusal = Refusal::MeshFull {
                shard: self.options.index,
                waiting: waiting.len(),
                limit: COMMANDS_MAX,
            };
            drop(waiting);
            return self.reply(reply_to, ShardReply::Refused(refusal));
        }
        waiting.push_back((command, reply_to));
        drop(waiting);
        self.meta_writer.work.notify();
    }

    /// Core 0: publishes what log 0 has, then serves commands.
    pub(super) async fn write_meta(self: Rc<Self>) {
        self.publish_stored().await;
        loop {
            let commands = self.take_together();
            if commands.is_empty() {
                self.meta_writer.work.notified().await;
                continue;
            }
            let mut plan = Plan::default();
            let mut versions = None;
            let mut waiting = Vec::with_capacity(commands.len());
            for (command, reply_to) in commands {
                if self.plan(command, &mut plan, &mut versions) {
                    waiting.push(reply_to);
                } else {
                    self.reply(reply_to, LocalReply::Done);
                }
            }
            if let Some(versions) = versions {
                plan.records.push(put(VERSIONS.into(), &versions));
                plan.changes.push(MetaChange::Versions {
                    topics: versions.topics,
                    groups: versions.groups,
                });
            }
            let refusal = match waiting.is_empty() {
                true => None,
                false => self.carry_out(plan).await.err(),
            };
            for reply_to in waiting {
                let reply = refusal
                    .clone()
                    .map_or(LocalReply::Done, LocalReply::Refused);
                self.reply(reply_to, reply);
            }
        }
    }

    /// The next command, and those behind it as long as they put other topics and groups: planning one of these does not
    /// depend on what the others change. A deletion or a change of settings goes alone.
    fn take_together(&self) -> Vec<(MetaCommand, ReplyTo)> {
        let mut waiting = self.meta_writer.waiting.borrow_mut();
        let mut taken: Vec<(MetaCommand, ReplyTo)> = Vec::new();
        let mut names: HashSet<(bool, String)> = HashSet::new();
        while taken.len() < TOGETHER_MAX {
            let Some((command, _)) = waiting.front() else {
                break;
            };
            let name = match command {
                MetaCommand::PutTopic(topic) | MetaCommand::CreateTopicIfAbsent(topic) => {
                    Some((true, topic.topic_name.clone()))
                }
                MetaCommand::PutGroup(group) | MetaCommand::CreateGroupIfAbsent(group) => {
                    Some((false, group.group_name.clone()))
                }
                _ => None,
            };
            let alone = name.is_none();
            let independent = name.is_some_and(|name| names.insert(name));
            if !independent && !taken.is_empty() {
                break;
            }
            taken.extend(waiting.pop_front());
            if alone {
                break;
            }
        }
        taken
    }

    async fn carry_out(self: &Rc<Self>, plan: Plan) -> Result<(), Refusal> {
        let handle = self.handle();
        let Some(log) = self.logs.get(&0) else {
            return Err(Refusal::Stopping);
        };
        // At the gate of log 0 like any append: refused when the log is.
        let durable = Rc::new(RefCell::new(None));
        let bell = Rc::new(Notify::default());
        let (slot, ring) = (durable.clone(), bell.clone());
        self.append_control(
            log,
            &plan.records,
            ReplyTo::Local(Box::new(move |reply| {
                *slot.borrow_mut() = Some(reply);
                ring.notify();
            })),
        );
        bell.notified().await;
        if let Some(LocalReply::Refused(refusal)) = durable.take() {
            return Err(refusal);
        }
        let topics: Vec<Arc<str>> = plan
            .changes
            .iter()
            .filter_map(|change| match change {
                MetaChange::TopicPut(topic) | MetaChange::TopicDeleted(topic) => {
                    Some(topic.name.clone())
                }
                _ => None,
            })
            .collect();
        // A core takes changes in the order of publishing, so to wait for the last one is to wait for all.
        let mut changes = plan.changes;
        let last = changes.pop();
        for change in changes {
            handle.publish(change);
        }
        if let Some(last) = last {
            handle.publish_and_wait(last).await;
        }
        let handler = self.handlers.topics.borrow().clone();
        if let Some(handler) = handler
            && !topics.is_empty()
        {
            handler(&topics);
        }
        for shard in 0..handle.count() {
            if let Some(topic_id) = plan.dropped_topic
                && let LocalReply::Refused(refusal) = handle
                    .ask(shard, ShardRequest::DropTopic { topic_id })
                    .await
            {
                tracing::warn!(shard, topic_id, %refusal, "the rest of a deleted topic stays until the next start");
            }
            if let Some(group) = &plan.dropped_group
                && let LocalReply::Refused(refusal) = handle
                    .ask(
                        shard,
                        ShardRequest::DropGroup {
                            group: group.clone(),
                        },
                    )
                    .await
            {
                return Err(refusal);
            }
        }
        Ok(())
    }

    /// Adds what to write and publish for a command to `plan`; false if it changes nothing. `versions` are those that the
    /// commands planned before it lead to, if any.
    fn plan(&self, command: MetaCommand, plan: &mut Plan, versions: &mut Option<Versions>) -> bool {
        let now_ms = self.env.now_ms() as i64;
        let meta = self.meta.borrow();
        let mut next = versions.unwrap_or(Versions {
            topics: meta.topics_version,
            groups: meta.groups_version,
        });
        match command {
            MetaCommand::CreateTopicIfAbsent(config)
                if meta.topics.contains_key(config.topic_name.as_str()) =>
            {
                return false;
            }
            MetaCommand::PutTopic(config) | MetaCommand::CreateTopicIfAbsent(config) => {
                let known = meta.topics.get(config.topic_name.as_str());
                if known.is_some_and(|known| known.config == config) {
                    return false;
                }
                let id = known.map_or_else(
                    || {
                        let id = self.meta_writer.next_topic_id.get();
                        self.meta_writer.next_topic_id.set(id + 1);
                        plan.records.push(put(NEXT_TOPIC_ID.into(), &(id + 1)));
                        id
                    },
                    |known| known.id,
                );
                let mut logs = known.map(|known| known.logs.clone()).unwrap_or_default();
                let queues = config.read_queue_nums.max(config.write_queue_nums) as usize;
                while logs.len() < queues {
                    let log = self.meta_writer.next_log.get();
                    logs.push((log % u32::from(self.options.logs)) as LogId);
                    self.meta_writer.next_log.set(log.wrapping_add(1));
                }
                let topic = self.topic(id, config, logs, plan);
                next.topics = next.topics.next(0, now_ms);
                plan.changes.push(MetaChange::TopicPut(topic));
            }
            MetaCommand::DeleteTopic(name) => {
                let Some(topic) = meta.topics.get(name.as_str()) else {
                    return false;
                };
                plan.records.push(remove(format!("{TOPIC}{name}")));
                plan.changes.push(MetaChange::TopicDeleted(topic.clone()));
                plan.dropped_topic = Some(topic.id);
                next.topics = next.topics.next(0, now_ms);
            }
            MetaCommand::CreateGroupIfAbsent(config)
                if meta.groups.contains_key(config.group_name.as_str()) =>
            {
                return false;
            }
            MetaCommand::PutGroup(config) | MetaCommand::CreateGroupIfAbsent(config) => {
                if meta.groups.get(config.group_name.as_str()).map(|g| &**g) == Some(&config) {
                    return false;
                }
                plan.records
                    .push(put(format!("{GROUP}{}", config.group_name), &config));
                plan.changes.push(MetaChange::GroupPut(Arc::new(config)));
                next.groups = next.groups.next(0, now_ms);
            }
            MetaCommand::DeleteGroup(name) => {
                if !meta.groups.contains_key(name.as_str()) {
                    return false;
                }
                plan.records.push(remove(format!("{GROUP}{name}")));
                plan.changes.push(MetaChange::GroupDeleted(name.into()));
                next.groups = next.groups.next(0, now_ms);
            }
            MetaCommand::PutSettings(changed) => {
                let mut settings: BTreeMap<String, String> = (*meta.settings).clone();
                settings.extend(changed);
                if settings == *meta.settings {
                    return false;
                }
                plan.records.push(put(SETTINGS.into(), &settings));
                plan.changes.push(MetaChange::Settings(Arc::new(settings)));
            }
            MetaCommand::PutRequestMode(mode) => {
                let key = format!("{REQUEST_MODE}{}/{}", mode.topic, mode.consumer_group);
                plan.records.push(put(key, &mode));
                plan.changes.push(MetaChange::RequestMode(Arc::new(mode)));
            }
        }
        *versions = Some(next);
        true
    }

    fn topic(&self, id: u32, config: TopicConfig, logs: Vec<LogId>, plan: &mut Plan) -> Arc<Topic> {
        let stored = StoredTopic {
            id,
            logs: logs.clone(),
            config: config.clone(),
        };
        plan.records
            .push(put(format!("{TOPIC}{}", config.topic_name), &stored));
        Arc::new(Topic {
            id,
            name: Arc::from(config.topic_name.as_str()),
            config,
            logs,
        })
    }

    /// What a key of log 0 says to the cores; a removed key has no value.
    fn changes_of(&self, key: &str, value: Option<&[u8]>) -> Vec<MetaChange> {
        fn read<T: serde::de::DeserializeOwned>(key: &str, value: &[u8]) -> Option<T> {
            let read = serde_json::from_slice(value);
            read.inspect_err(|error| {
                tracing::error!(key, %error, "this cannot be read: a newer version wrote it");
            })
            .ok()
        }
        let mut changes = Vec::new();
        if let Some(name) = key.strip_prefix(TOPIC) {
            let stored: Option<StoredTopic> = value.and_then(|value| read(key, value));
            let known = self.meta.borrow().topics.get(name).cloned();
            if let Some(known) = known
                && stored.as_ref().is_none_or(|stored| stored.id != known.id)
            {
                changes.push(MetaChange::TopicDeleted(known));
            }
            changes.extend(stored.map(|stored| {
                MetaChange::TopicPut(Arc::new(Topic {
                    id: stored.id,
                    name: Arc::from(stored.config.topic_name.as_str()),
                    config: stored.config,
                    logs: stored.logs,
                }))
            }));
        } else if let Some(name) = key.strip_prefix(GROUP) {
            changes.extend(match value {
                Some(value) => read(key, value).map(|group| MetaChange::GroupPut(Arc::new(group))),
                None => Some(MetaChange::GroupDeleted(name.into())),
            });
        } else if key.starts_with(REQUEST_MODE) {
            let mode = value.and_then(|value| read(key, value));
            changes.extend(mode.map(|mode| MetaChange::RequestMode(Arc::new(mode))));
        } else if key == SETTINGS {
            let settings = value.and_then(|value| read(key, value));
            changes.extend(settings.map(|settings| MetaChange::Settings(Arc::new(settings))));
        } else if key == VERSIONS {
            let versions = value.and_then(|value| read(key, value));
            changes.extend(
                versions.map(|Versions { topics, groups }| MetaChange::Versions { topics, groups }),
            );
        }
        changes
    }

    /// Everything that log 0 has, for the cores.
    fn stored_changes(&self) -> Vec<MetaChange> {
        let Some(log) = self.logs.get(&0) else {
            return Vec::new();
        };
        let tables = log.tables().borrow();
        let all = tables.metadata.with_prefix("");
        all.flat_map(|(key, value)| self.changes_of(key, Some(value)))
            .collect()
    }

    /// Core 0 of a slave: publishes what log 0 has, and then what its master adds to it.
    pub(super) async fn follow_meta(self: Rc<Self>) {
        let handle = self.handle();
        let Some(log) = self.logs.get(&0).cloned() else {
            return;
        };
        log.tables().borrow_mut().metadata.take_changed();
        for change in self.stored_changes() {
            handle.publish(change);
        }
        handle.publish_and_wait(MetaChange::Complete).await;
        while !self.log_has_ended(&log) {
            self.replication.meta_changed.notified().await;
            let keys = log.tables().borrow_mut().metadata.take_changed();
            let mut topics: Vec<Arc<str>> = Vec::new();
            for key in keys {
                let value = log.tables().borrow().metadata.get(&key).cloned();
                for change in self.changes_of(&key, value.as_deref()) {
                    if let MetaChange::TopicPut(topic) | MetaChange::TopicDeleted(topic) = &change {
                        topics.push(topic.name.clone());
                    }
                    handle.publish(change);
                }
            }
            let handler = self.handlers.topics.borrow().clone();
            if let Some(handler) = handler
                && !topics.is_empty()
            {
                handler(&topics);
            }
        }
    }

    /// After the start: everything that log 0 has goes to every core; what other logs have beyond it is put right.
    async fn publish_stored(self: &Rc<Self>) {
        let handle = self.handle();
        let changes = self.stored_changes();
        let (mut next_topic_id, mut queues) = (0, 0usize);
        if let Some(log) = self.logs.get(&0) {
            let tables = log.tables().borrow();
            if let Some(value) = tables.metadata.get(NEXT_TOPIC_ID) {
                next_topic_id = serde_json::from_slice(value).unwrap_or(0);
            }
        }
        for change in &changes {
            if let MetaChange::TopicPut(topic) = change {
                queues += topic.logs.len();
                next_topic_id = next_topic_id.max(topic.id + 1);
            }
        }
        self.meta_writer.next_topic_id.set(next_topic_id);
        self.meta_writer.next_log.set(queues as u32);
        for change in changes {
            handle.publish(change);
        }
        let mut orphans = Vec::new();
        for shard in 0..handle.count() {
            let request = ShardRequest::DropOrphans { next_topic_id };
            if let LocalReply::Orphans(found) = handle.ask(shard, request).await {
                orphans.extend(found);
            }
        }
        self.adopt(orphans).await;
        handle.publish_and_wait(MetaChange::Complete).await;
    }

    /// Makes topics again whose records are there but which log 0 lost.
    async fn adopt(self: &Rc<Self>, orphans: Vec<Orphan>) {
        let mut topics: BTreeMap<u32, (Arc<str>, Vec<LogId>)> = BTreeMap::new();
        for orphan in orphans {
            let (_, logs) = topics
                .entry(orphan.topic_id)
                .or_insert_with(|| (orphan.name.clone(), Vec::new()));
            let at = orphan.queue_id as usize;
            if logs.len() <= at {
                logs.resize(at + 1, orphan.log);
            }
            logs[at] = orphan.log;
        }
        for (id, (name, logs)) in topics {
            tracing::error!(topic = %name, topic_id = id, queues = logs.len(), "log 0 does not know this topic although messages of it are stored: it is made again with default settings");
            let config = TopicConfig {
                topic_name: name.to_string(),
                read_queue_nums: logs.len() as u32,
                write_queue_nums: logs.len() as u32,
                ..TopicConfig::default()
            };
            let mut plan = Plan::default();
            let next = self.meta_writer.next_topic_id.get().max(id + 1);
            self.meta_writer.next_topic_id.set(next);
            plan.records.push(put(NEXT_TOPIC_ID.into(), &next));
            let topic = self.topic(id, config, logs, &mut plan);
            plan.changes.push(MetaChange::TopicPut(topic));
            if let Err(refusal) = self.carry_out(plan).await {
                tracing::error!(topic = %name, %refusal, "the topic cannot be made again");
            }
        }
    }
}
