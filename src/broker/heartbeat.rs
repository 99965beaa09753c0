//! Heartbeats and what depends on them: 34, 35, 38, 46, the notices 40, and the shell of [`ClientTable`].
//!
//! A heartbeat is handled on its connection's core: it makes missing groups and retry topics (core 0), registers with
//! each group's home core, and is answered when all of them know. The home core publishes a changed group to every core
//! first and pushes the notices behind it, over the same channels, so who is told and asks again sees the change. The
//! client that joins is told as well, or it would share out the queues 20 s later; but after the answer to its heartbeat,
//! because Apache's client mistakes an earlier notice for a change of its own.
//!
//! Source: `ClientManageProcessor`, `ConsumerManager`, `ConsumerManageProcessor`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::base::id::ConnectionId;
use crate::base::names;
use crate::broker::clients::{BROADCASTING, GroupChange, Heard, HeartbeatRules};
use crate::broker::dispatch::{Answer, Broker, Outcome};
use crate::broker::error::BrokerError;
use crate::broker::filters;
use crate::broker::subscription::is_tag_type;
use crate::broker::topics::{self, PERM_READ, PERM_WRITE};
use crate::server::connection::Responder;
use crate::shard::message::{
    ClientInfo, GroupCommand, LocalReply, MemberReply, ShardReply, ShardRequest,
};
use crate::shard::meta::{MetaChange, MetaCommand, Topic};
use crate::wire::remoting::body::{
    CheckClientRequestBody, ConsumerData, GetConsumerListByGroupResponseBody, HeartbeatData,
    SubscriptionGroupConfig,
};
use crate::wire::remoting::code::request;
use crate::wire::remoting::command::{Command, Encoding, Outgoing};

/// How often silent clients are looked for (`ClientHousekeepingService`).
const EXPIRY_SCAN: Duration = Duration::from_secs(10);

impl Broker {
    /// Takes over what this core is asked as a home of groups and as a holder of connections.
    pub(super) fn serve_groups(&self) {
        let broker = self.clone();
        self.shard
            .set_group_handler(move |command| broker.group_command(command));
        let broker = self.clone();
        self.shard
            .set_push_handler(move |connections, frame| broker.push_here(&connections, &frame));
        let broker = self.clone();
        self.shard.spawn(async move {
            loop {
                broker.shard.sleep(EXPIRY_SCAN).await;
                let now_ms = broker.shard.now_ms();
                let (consumers, producers) = broker
                    .clients
                    .borrow_mut()
                    .expire(now_ms, |group| broker.notifies(group));
                broker.publish_changes(consumers, producers);
                broker.expire_members();
            }
        });
    }

    /// 34, on the connection's core.
    pub(super) fn heartbeat(&self, command: Command, responder: Responder) {
        // From here on the connection is known to be open until `connection_closed` says otherwise.
        let connection = responder.connection.clone();
        self.connections
            .borrow_mut()
            .insert(connection.id(), connection);
        let broker = self.clone();
        self.shard.spawn(async move {
            let connection = responder.connection.clone();
            let mut joined = Vec::new();
            let outcome = broker
                .register(&command, connection.id(), connection.peer(), &mut joined)
                .await;
            broker.finish(responder, outcome);
            for group in joined {
                connection.push_frame(ids_changed(group));
            }
        });
    }

    async fn register(
        &self,
        command: &Command,
        connection: ConnectionId,
        address: SocketAddr,
        joined: &mut Vec<Arc<str>>,
    ) -> Outcome {
        let data: HeartbeatData = self.body(command)?;
        let client = ClientInfo {
            client_id: Arc::from(data.client_id.as_str()),
            address,
            language: command.language,
            version: command.version,
        };
        for group in &data.consumer_data_set {
            self.make_group(group).await?;
        }
        for producer in data.producer_data_set {
            let group: Arc<str> = Arc::from(producer.group_name.as_str());
            let home = self.shard.shard_of_group(&group);
            let command = GroupCommand::ProducerHeartbeat {
                connection,
                client: client.clone(),
                group,
            };
            self.tell_home(connection, home, command).await?;
        }
        for group in data.consumer_data_set {
            if self.known_group(&group.group_name).is_none() {
                // It may not be created: its pulls are refused with the reason.
                continue;
            }
            let home = self.shard.shard_of_group(&group.group_name);
            let name: Arc<str> = Arc::from(group.group_name.as_str());
            let is_told = !self.is_member(&name, connection)
                && group.message_model != BROADCASTING
                && self.notifies(&name);
            let command = GroupCommand::ConsumerHeartbeat {
                connection,
                client: client.clone(),
                data: group,
            };
            self.tell_home(connection, home, command).await?;
            if is_told {
                joined.push(name);
            }
        }
        // The fields of the second heartbeat version are left out: clients then send whole heartbeats.
        Answer::done()
    }

    /// Whether a connection was a member of a consumer group when the group was last published.
    fn is_member(&self, group: &str, connection: ConnectionId) -> bool {
        let meta = self.shard.meta();
        let members = meta.consumers.get(group).map(|group| &group.members);
        members.is_some_and(|members| members.iter().any(|m| m.connection == connection))
    }

    /// Sends a registration, unless the connection was closed while the heartbeat waited for something: its close has
    /// been told to the home core already, and nobody would ever take the client out again.
    async fn tell_home(
        &self,
        connection: ConnectionId,
        home: usize,
        command: GroupCommand,
    ) -> Result<(), BrokerError> {
        if !self.connections.borrow().contains_key(&connection) {
            return Ok(());
        }
        let name = match &command {
            GroupCommand::ConsumerHeartbeat { data, .. } => data.group_name.clone(),
            _ => String::new(),
        };
        match self
            .ask(home, ShardRequest::Group(Box::new(command)))
            .await?
        {
            ShardReply::Flag(false) => Err(BrokerError::SubscriptionDiffers),
            ShardReply::Member(reply) if matches!(*reply, MemberReply::OtherProtocol) => {
                Err(BrokerError::OtherProtocol {
                    group: name.to_string(),
                })
            }
            _ => Ok(()),
        }
    }

    /// The group of a heartbeat and its retry topic, made if they are not there and may be.
    async fn make_group(&self, data: &ConsumerData) -> Result<(), BrokerError> {
        if self.options.is_slave() {
            // Its master made them, or will.
            return Ok(());
        }
        let group = data.group_name.as_str();
        if self.known_group(group).is_none() {
            names::check_group(group)?;
            if !self.options.auto_create_group && !names::is_system_group(group) {
                tracing::warn!(
                    group,
                    "a consumer of an unknown group is ignored: autoCreateSubscriptionGroup is off"
                );
                return Ok(());
            }
            self.create_group(group).await?;
        }
        let queues = self
            .known_group(group)
            .map_or(1, |config| config.retry_queue_nums);
        self.retry_topic(group, queues).await.map(|_| ())
    }

    /// The retry topic of a group, made with so many queues if it is not there.
    pub(super) async fn retry_topic(
        &self,
        group: &str,
        queues: i32,
    ) -> Result<Arc<Topic>, BrokerError> {
        let name = names::retry_topic(group);
        names::check_topic(&name)?;
        let config = topics::config(&name, queues.max(1) as u32, PERM_READ | PERM_WRITE);
        self.topic_or_create(config).await
    }

    /// Makes a consumer group with RocketMQ's defaults.
    pub(super) async fn create_group(&self, group: &str) -> Result<(), BrokerError> {
        let config = SubscriptionGroupConfig {
            group_name: group.to_owned(),
            ..SubscriptionGroupConfig::default()
        };
        self.change(MetaCommand::CreateGroupIfAbsent(config)).await
    }

    /// 35.
    pub(super) async fn unregister(self, command: Command, connection: ConnectionId) -> Outcome {
        let client_id: Arc<str> = Arc::from(command.required_text("clientID")?);
        let named = |field: &str| -> Option<Arc<str>> {
            command
                .text(field)
                .filter(|group| !group.is_empty())
                .map(Arc::from)
        };
        let (producer, consumer) = (named("producerGroup"), named("consumerGroup"));
        for (producer_group, consumer_group) in [(producer, None), (None, consumer)] {
            let Some(group) = producer_group.as_ref().or(consumer_group.as_ref()) else {
                continue;
            };
            let home = self.shard.shard_of_group(group);
            let command = GroupCommand::Unregister {
                connection,
                client_id: client_id.clone(),
                producer_group: producer_group.clone(),
                consumer_group: consumer_group.clone(),
            };
            self.ask(home, ShardRequest::Group(Box::new(command)))
                .await?;
        }
        Answer::done()
    }

    /// 38. Clients of one id on two connections (one of them dying) count once.
    pub(super) fn consumer_list(&self, command: &Command) -> Outcome {
        let group = command.required_text("consumerGroup")?;
        let meta = self.shard.meta();
        let online = meta
            .consumers
            .get(group.as_ref())
            .ok_or_else(|| BrokerError::System(format!("no consumer for this group, {group}")))?;
        let mut ids: Vec<String> = Vec::with_capacity(online.members.len());
        for member in &online.members {
            if !ids.iter().any(|id| **id == *member.client.client_id) {
                ids.push(member.client.client_id.to_string());
            }
        }
        Answer::json(&GetConsumerListByGroupResponseBody {
            consumer_id_list: ids,
        })
    }

    /// 46: whether this broker can filter as a consumer wants.
    pub(super) fn check_client(&self, command: &Command) -> Outcome {
        let config: CheckClientRequestBody = self.body(command)?;
        let subscription = &config.subscription_data;
        let kind = subscription.expression_type.as_deref();
        if !is_tag_type(kind) {
            filters::check_type(kind, &self.options)?;
            self.filters.of_subscription(subscription)?;
        }
        Answer::done()
    }

    /// The connection is gone: every core forgets what its groups had of it.
    pub(super) fn connection_closed(&self, connection: ConnectionId) {
        if self.connections.borrow_mut().remove(&connection).is_none() {
            return;
        }
        for core in 0..self.shard.count() {
            let command = GroupCommand::ConnectionClosed { connection };
            self.shard
                .call(core, ShardRequest::Group(Box::new(command)), |_| ());
        }
    }

    /// What the home core of a group is asked.
    fn group_command(&self, command: GroupCommand) -> LocalReply {
        let now_ms = self.shard.now_ms();
        if let GroupCommand::Statistics { name, key } = &command {
            return self.statistics_here(name, key, now_ms);
        }
        if let GroupCommand::Figures = &command {
            return ShardReply::BrokerFigures(Box::new(self.figures_here()));
        }
        if let GroupCommand::Member(command) = command {
            return LocalReply::Member(Box::new(self.member_command(command)));
        }
        if let GroupCommand::OffsetsReset { group, queues } = command {
            let mut resets = self.resets.borrow_mut();
            for queue in queues {
                let groups = resets.entry(queue).or_default();
                if !groups.contains(&group) {
                    groups.push(group.clone());
                }
            }
            return LocalReply::Done;
        }
        let mut clients = self.clients.borrow_mut();
        let (consumers, producers) = match command {
            GroupCommand::ConsumerHeartbeat {
                connection,
                client,
                data,
            } => {
                let group = data.group_name.clone();
                if self.has_native_members(&group) {
                    return LocalReply::Member(Box::new(MemberReply::OtherProtocol));
                }
                let rules = HeartbeatRules {
                    notify: self.notifies(&group),
                    strict: self.options.strict_subscriptions,
                };
                let heard = clients.consumer_heartbeat(now_ms, connection, client, data, rules);
                warn_of(&group, &heard);
                if heard.refused {
                    return ShardReply::Flag(false);
                }
                (heard.change.into_iter().collect(), Vec::new())
            }
            GroupCommand::Statistics { .. }
            | GroupCommand::Figures
            | GroupCommand::Member(_)
            | GroupCommand::OffsetsReset { .. } => (Vec::new(), Vec::new()),
            GroupCommand::ProducerHeartbeat {
                connection,
                client,
                group,
            } => {
                let change = clients.producer_heartbeat(now_ms, connection, client, group);
                (Vec::new(), change.into_iter().collect())
            }
            GroupCommand::Unregister {
                connection,
                client_id: _,
                producer_group,
                consumer_group,
            } => {
                let consumers = consumer_group.and_then(|group| {
                    clients.leave_consumers(connection, &group, self.notifies(&group))
                });
                let producers =
                    producer_group.and_then(|group| clients.leave_producers(connection, &group));
                (
                    consumers.into_iter().collect(),
                    producers.into_iter().collect(),
                )
            }
            GroupCommand::ConnectionClosed { connection } => {
                clients.closed(connection, |group| self.notifies(group))
            }
        };
        drop(clients);
        self.publish_changes(consumers, producers);
        ShardReply::Done
    }

    /// `notifyConsumerIdsChangedEnable` of a group.
    fn notifies(&self, group: &str) -> bool {
        self.known_group(group)
            .is_none_or(|config| config.notify_consumer_ids_changed_enable)
    }

    fn publish_changes(&self, consumers: Vec<GroupChange>, producers: Vec<GroupChange>) {
        for change in producers {
            self.shard
                .publish(MetaChange::ProducersOnline(change.online));
        }
        for change in consumers {
            let name = change.online.name.clone();
            self.shard
                .publish(MetaChange::ConsumersOnline(change.online));
            if !change.notify.is_empty() {
                self.push(&change.notify, &ids_changed(name));
            }
        }
    }

    /// Writes a frame of ours to connections of any core; those that are gone are skipped.
    pub(super) fn push(&self, connections: &[ConnectionId], frame: &Bytes) {
        for core in 0..self.shard.count() {
            let there: Vec<ConnectionId> = connections
                .iter()
                .copied()
                .filter(|connection| usize::from(connection.core) == core)
                .collect();
            if there.is_empty() {
                continue;
            }
            let request = ShardRequest::PushFrame {
                connections: there,
                frame: frame.clone(),
            };
            self.shard.call(core, request, |_| ());
        }
    }

    fn push_here(&self, ids: &[ConnectionId], frame: &Bytes) {
        for id in ids {
            let connection = self.connections.borrow().get(id).cloned();
            if let Some(connection) = connection {
                connection.push_frame(frame.clone());
            }
        }
    }
}

/// The notice that the members of a consumer group have changed.
fn ids_changed(group: Arc<str>) -> Bytes {
    Outgoing::oneway(request::NOTIFY_CONSUMER_IDS_CHANGED)
        .field("consumerGroup", group)
        .frame(Encoding::Json, b"")
}

fn warn_of(group: &str, heard: &Heard) {
    match &heard.report {
        Some(differ) if heard.refused => tracing::warn!(
            group,
            "a member is refused (rejectInconsistentSubscription) because members would subscribe differently: {differ}. \
             Give all one subscription, or use two groups"
        ),
        Some(differ) => tracing::warn!(
            group,
            "members of one consumer group subscribe differently: {differ}. Messages go to members that do not want \
             them, and others miss them. Give all one subscription, or use two groups"
        ),
        None => {}
    }
}
