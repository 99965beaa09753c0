//! Consumer groups of the native protocol: join, heartbeat, leave, and which commits are those of an owner.
//!
//! A group lives on its home core, in memory, as remoting's groups do (`ShardHandle::shard_of_group`). What is decided there is
//! in `membership.rs`; here are checks, the clock, the numbers of queues, and the list of members that tools ask for. A group has
//! members of one protocol at a time, since each side would share out all queues among its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::base::limits::{
    GROUP_CHARS_MAX, NATIVE_FETCH_QUEUES_MAX, NATIVE_MEMBER_TOPICS_MAX, NATIVE_MEMBERS_MAX,
};
use crate::base::names;
use crate::broker::dispatch::Broker;
use crate::broker::error::BrokerError;
use crate::broker::native::NativeClient;
use crate::broker::native::membership::{Claim, Group, GroupQueue, MemberId, SessionRules, Told};
use crate::broker::subscription::subscription;
use crate::broker::topics::PERM_READ;
use crate::server::connection::NativeResponder;
use crate::shard::message::{
    ClientInfo, GroupCommand, MemberAsk, MemberCommand, MemberReply, NamedQueues, Refusal,
    ShardReply, ShardRequest,
};
use crate::shard::meta::{Member, MetaChange, OnlineGroup};
use crate::wire::native::message::{
    Assignment, GroupHeartbeat, GroupJoin, GroupLeave, Message, TopicQueues,
};
use crate::wire::remoting::command::{LANGUAGES, VERSION as REMOTING_VERSION};

/// A group with what tools are told of its members.
struct HomeGroup {
    group: Group,
    members: BTreeMap<MemberId, (Member, BTreeSet<Arc<str>>)>,
}

/// The groups of one home core.
pub(super) struct Groups {
    started_ms: u64,
    by_name: BTreeMap<Arc<str>, HomeGroup>,
}

impl Groups {
    /// See [`super::Native::new`].
    pub fn new(started_ms: u64) -> Self {
        Self {
            started_ms,
            by_name: BTreeMap::new(),
        }
    }
}

fn named(queues: &[TopicQueues<'_>]) -> NamedQueues {
    let named = queues.iter();
    named
        .map(|queues| (Arc::from(queues.topic), queues.queue_ids.clone()))
        .collect()
}

fn group_queues(queues: NamedQueues) -> BTreeSet<GroupQueue> {
    let each = |(topic, queue_ids): (Arc<str>, Vec<u32>)| {
        queue_ids.into_iter().map(move |queue_id| GroupQueue {
            topic: topic.clone(),
            queue_id,
        })
    };
    queues.into_iter().flat_map(each).collect()
}

fn pairs(queues: Vec<(Arc<str>, u32)>) -> Vec<GroupQueue> {
    let pair = |(topic, queue_id)| GroupQueue { topic, queue_id };
    queues.into_iter().map(pair).collect()
}

fn assigned(told: Told) -> MemberReply {
    let mut queues: NamedQueues = Vec::new();
    for queue in told.queues {
        match queues.last_mut() {
            Some((topic, queue_ids)) if *topic == queue.topic => queue_ids.push(queue.queue_id),
            _ => queues.push((queue.topic, vec![queue.queue_id])),
        }
    }
    MemberReply::Assigned {
        generation: told.generation,
        queues,
        heartbeat_ms: told.heartbeat_ms,
    }
}

impl Broker {
    pub(super) fn native_join(
        &self,
        id: u64,
        client: &NativeClient,
        join: &GroupJoin<'_>,
        responder: NativeResponder,
    ) {
        if let Err(error) = self.check_join(join) {
            return self.native_error(responder, id, &error);
        }
        let group: Arc<str> = Arc::from(join.group);
        let member_id: MemberId = match join.member_id {
            "" => Arc::from(format!(
                "{}-{:016x}",
                client.client_id,
                self.shard.random_u64()
            )),
            given => Arc::from(given),
        };
        let existed = self.known_group(&group).is_some();
        let topics: BTreeSet<Arc<str>> = join.topics.iter().map(|&topic| topic.into()).collect();
        let command = MemberCommand {
            group: group.clone(),
            member_id: member_id.clone(),
            generation: join.generation,
            ask: MemberAsk::Join {
                connection: responder.connection.id(),
                client: ClientInfo {
                    client_id: member_id,
                    address: responder.connection.peer(),
                    language: LANGUAGES.iter().position(|&l| l == "RUST").unwrap_or(0) as u8,
                    version: REMOTING_VERSION,
                },
                topics: topics.into_iter().collect(),
                owned: named(&join.owned),
                existed,
            },
        };
        let broker = self.clone();
        self.shard.spawn(async move {
            if !existed && let Err(error) = broker.create_group_of_session(&group).await {
                return broker.native_error(responder, id, &error);
            }
            broker.ask_home(id, command, responder).await;
        });
    }

    fn check_join(&self, join: &GroupJoin<'_>) -> Result<(), BrokerError> {
        self.check_member(join.group, join.member_id, &join.owned)?;
        names::check_group(join.group)?;
        if join.topics.is_empty() || join.topics.len() > NATIVE_MEMBER_TOPICS_MAX {
            return Err(BrokerError::InvalidParameter(format!(
                "a member subscribes to {} topics; it is 1 to {NATIVE_MEMBER_TOPICS_MAX}",
                join.topics.len()
            )));
        }
        for topic in &join.topics {
            names::check_topic(topic)?;
        }
        Ok(())
    }

    fn check_member(
        &self,
        group: &str,
        member_id: &str,
        owned: &[TopicQueues<'_>],
    ) -> Result<(), BrokerError> {
        if self.options.is_slave() {
            return Err(BrokerError::Unavailable(
                "this broker is a slave: groups have their members at the master".into(),
            ));
        }
        if !self.shard.may_acknowledge() {
            return Err(Refusal::NoLease.into());
        }
        if group.len() > GROUP_CHARS_MAX || member_id.len() > GROUP_CHARS_MAX {
            return Err(BrokerError::InvalidParameter(format!(
                "the name of the group or of the member is longer than {GROUP_CHARS_MAX} bytes"
            )));
        }
        let queues: usize = owned.iter().map(|topic| topic.queue_ids.len()).sum();
        if queues > NATIVE_FETCH_QUEUES_MAX {
            return Err(BrokerError::InvalidParameter(format!(
                "the member owns {queues} queues, the limit is {NATIVE_FETCH_QUEUES_MAX}"
            )));
        }
        Ok(())
    }

    pub(super) fn native_heartbeat(
        &self,
        id: u64,
        heartbeat: &GroupHeartbeat<'_>,
        responder: NativeResponder,
    ) {
        let checked = self.check_member(heartbeat.group, heartbeat.member_id, &heartbeat.owned);
        if let Err(error) = checked {
            return self.native_error(responder, id, &error);
        }
        let command = MemberCommand {
            group: Arc::from(heartbeat.group),
            member_id: Arc::from(heartbeat.member_id),
            generation: heartbeat.generation,
            ask: MemberAsk::Heartbeat {
                owned: named(&heartbeat.owned),
            },
        };
        let broker = self.clone();
        self.shard
            .spawn(async move { broker.ask_home(id, command, responder).await });
    }

    pub(super) fn native_leave(&self, id: u64, leave: &GroupLeave<'_>, responder: NativeResponder) {
        if let Err(error) = self.check_member(leave.group, leave.member_id, &[]) {
            return self.native_error(responder, id, &error);
        }
        let command = MemberCommand {
            group: Arc::from(leave.group),
            member_id: Arc::from(leave.member_id),
            generation: 0,
            ask: MemberAsk::Leave,
        };
        let broker = self.clone();
        self.shard
            .spawn(async move { broker.ask_home(id, command, responder).await });
    }

    async fn ask_member(&self, command: MemberCommand) -> Result<MemberReply, BrokerError> {
        let home = self.shard.shard_of_group(&command.group);
        let (group, member) = (command.group.clone(), command.member_id.clone());
        let command = GroupCommand::Member(command);
        let reply = match self
            .ask(home, ShardRequest::Group(Box::new(command)))
            .await?
        {
            ShardReply::Member(reply) => *reply,
            other => return Err(BrokerError::unexpected(&other)),
        };
        match reply {
            MemberReply::Unknown => Err(BrokerError::UnknownMember {
                group: group.to_string(),
                member: member.to_string(),
            }),
            MemberReply::OtherProtocol => Err(BrokerError::OtherProtocol {
                group: group.to_string(),
            }),
            MemberReply::Full(members) => Err(BrokerError::Unavailable(format!(
                "the group '{group}' has {members} members, which is the limit"
            ))),
            reply => Ok(reply),
        }
    }

    async fn ask_home(&self, id: u64, command: MemberCommand, responder: NativeResponder) {
        let member_id = command.member_id.clone();
        match self.ask_member(command).await {
            Ok(MemberReply::Assigned {
                generation,
                queues,
                heartbeat_ms,
            }) => {
                let queues = queues
                    .iter()
                    .map(|(topic, queue_ids)| TopicQueues {
                        topic,
                        queue_ids: queue_ids.clone(),
                    })
                    .collect();
                let assignment = Assignment {
                    member_id: &member_id,
                    generation,
                    queues,
                    heartbeat_interval_ms: heartbeat_ms as u32,
                    session_timeout_ms: self.options.native_session_ms as u32,
                };
                self.native_answer(responder, id, &Message::Assignment(assignment));
            }
            Ok(other) => self.native_error(responder, id, &BrokerError::unexpected(&other)),
            Err(error) => self.native_error(responder, id, &error),
        }
    }

    /// Which of these queues the member may commit. [`Broker::end_commit`] has to follow for those.
    pub(super) async fn begin_commit(
        &self,
        group: &Arc<str>,
        member_id: &Arc<str>,
        generation: i64,
        queues: Vec<(Arc<str>, u32)>,
    ) -> Result<Vec<bool>, BrokerError> {
        let command = MemberCommand {
            group: group.clone(),
            member_id: member_id.clone(),
            generation,
            ask: MemberAsk::BeginCommit { queues },
        };
        match self.ask_member(command).await? {
            MemberReply::MayCommit(allowed) => Ok(allowed),
            other => Err(BrokerError::unexpected(&other)),
        }
    }

    pub(super) async fn end_commit(
        &self,
        group: &Arc<str>,
        member_id: &Arc<str>,
        queues: Vec<(Arc<str>, u32)>,
    ) {
        let command = MemberCommand {
            group: group.clone(),
            member_id: member_id.clone(),
            generation: 0,
            ask: MemberAsk::EndCommit { queues },
        };
        if let Err(error) = self.ask_member(command).await {
            tracing::debug!(%group, %error, "the home core of a group is gone");
        }
    }

    /// What the home core of a group is asked.
    pub(in crate::broker) fn member_command(&self, command: MemberCommand) -> MemberReply {
        let now_ms = self.shard.monotonic_ms();
        let remoting = self.clients.borrow().consumers_of(&command.group);
        let mut groups = self.native.groups.borrow_mut();
        let started_ms = groups.started_ms;
        let MemberCommand {
            group: name,
            member_id,
            generation,
            ask,
        } = command;
        let home = match groups.by_name.get_mut(&name) {
            Some(home) => home,
            None => {
                let MemberAsk::Join { existed, .. } = &ask else {
                    return match ask {
                        MemberAsk::BeginCommit { queues } => {
                            MemberReply::MayCommit(vec![false; queues.len()])
                        }
                        MemberAsk::Leave | MemberAsk::EndCommit { .. } => nothing(),
                        _ => MemberReply::Unknown,
                    };
                };
                let rules = SessionRules {
                    timeout_ms: self.options.native_session_ms,
                };
                // Nobody can have been a member of a group that did not exist.
                let settles_ms = existed.then_some(started_ms + rules.timeout_ms);
                let settles_ms = settles_ms.filter(|&settles_ms| now_ms < settles_ms);
                let first = self.shard.now_ms() as i64;
                groups.by_name.entry(name.clone()).or_insert(HomeGroup {
                    group: Group::new(rules, first, settles_ms),
                    members: BTreeMap::new(),
                })
            }
        };
        let queues_of = |topic: &str| match self.known_topic(topic) {
            Some(topic) if topic.config.perm & PERM_READ != 0 => topic.config.read_queue_nums,
            _ => 0,
        };
        let claim = |owned| Claim {
            generation,
            owned: group_queues(owned),
        };
        let joins = matches!(ask, MemberAsk::Join { .. });
        let reply = match ask {
            MemberAsk::Join {
                connection,
                client,
                topics,
                owned,
                existed: _,
            } => {
                let members = home.group.member_count();
                if remoting > 0 {
                    MemberReply::OtherProtocol
                } else if members >= NATIVE_MEMBERS_MAX && !home.group.is_member(&member_id) {
                    MemberReply::Full(members)
                } else {
                    let topics: BTreeSet<Arc<str>> = topics.into_iter().collect();
                    let member = Member {
                        connection,
                        client,
                        last_heartbeat_ms: self.shard.now_ms(),
                    };
                    home.members
                        .insert(member_id.clone(), (member, topics.clone()));
                    let claim = claim(owned);
                    assigned(
                        home.group
                            .join(now_ms, &member_id, topics, &claim, queues_of),
                    )
                }
            }
            MemberAsk::Heartbeat { owned } => {
                let told = home
                    .group
                    .heartbeat(now_ms, &member_id, &claim(owned), queues_of);
                if let (Some(_), Some((member, _))) = (&told, home.members.get_mut(&member_id)) {
                    member.last_heartbeat_ms = self.shard.now_ms();
                }
                told.map_or(MemberReply::Unknown, assigned)
            }
            MemberAsk::Leave => {
                home.group.leave(now_ms, &member_id, queues_of);
                nothing()
            }
            MemberAsk::BeginCommit { queues } => {
                let queues = pairs(queues);
                let allowed = home
                    .group
                    .begin_commit(now_ms, &member_id, generation, &queues);
                MemberReply::MayCommit(allowed)
            }
            MemberAsk::EndCommit { queues } => {
                home.group.end_commit(&pairs(queues));
                nothing()
            }
        };
        let changed = home.members.len() != home.group.member_count();
        if joins || changed || home.group.is_empty() {
            drop(groups);
            self.publish_members(&name);
        }
        reply
    }

    /// Sees to it that those who fell silent are not listed any more. Their queues are free without this.
    pub(in crate::broker) fn expire_members(&self) {
        let now_ms = self.shard.monotonic_ms();
        let names: Vec<Arc<str>> = {
            let mut groups = self.native.groups.borrow_mut();
            let silent = groups.by_name.iter_mut();
            silent
                .filter_map(|(name, home)| home.group.expire(now_ms).then(|| name.clone()))
                .collect()
        };
        for name in names {
            self.publish_members(&name);
        }
    }

    /// Whether the group has members of the native protocol. On its home core.
    pub(in crate::broker) fn has_native_members(&self, group: &str) -> bool {
        let now_ms = self.shard.monotonic_ms();
        let mut groups = self.native.groups.borrow_mut();
        groups.by_name.get_mut(group).is_some_and(|home| {
            home.group.expire(now_ms);
            home.group.member_count() > 0
        })
    }

    /// Tells every core who the members are, if that has changed.
    fn publish_members(&self, name: &Arc<str>) {
        let mut groups = self.native.groups.borrow_mut();
        let Some(home) = groups.by_name.get_mut(name) else {
            return;
        };
        let HomeGroup { group, members } = home;
        members.retain(|id, _| group.is_member(id));
        let subscribed = members.values().flat_map(|(_, topics)| topics);
        let online = OnlineGroup {
            name: name.clone(),
            members: members.values().map(|(member, _)| member.clone()).collect(),
            subscriptions: subscribed
                .filter_map(|topic| Some((topic.to_string(), subscription(topic, "*", 0).ok()?)))
                .collect(),
            consume_type: "CONSUME_ACTIVELY".into(),
            message_model: "CLUSTERING".into(),
            consume_from_where: "CONSUME_FROM_FIRST_OFFSET".into(),
            differ: None,
            is_native: true,
        };
        let is_empty = group.is_empty();
        if is_empty {
            groups.by_name.remove(name);
        }
        drop(groups);
        let is_same = {
            let meta = self.shard.meta();
            let known = meta.consumers.get(name);
            let times = |group: &OnlineGroup| {
                let mut group = group.clone();
                group
                    .members
                    .iter_mut()
                    .for_each(|m| m.last_heartbeat_ms = 0);
                group
            };
            match known {
                Some(known) => {
                    !known.is_native && online.members.is_empty() || times(known) == times(&online)
                }
                None => online.members.is_empty(),
            }
        };
        if !is_same {
            self.shard
                .publish(MetaChange::ConsumersOnline(Arc::new(online)));
        }
    }
}

fn nothing() -> MemberReply {
    MemberReply::Assigned {
        generation: 0,
        queues: Vec::new(),
        heartbeat_ms: 0,
    }
}
