//! Who is connected: the members of consumer and producer groups, on each group's home core.
//!
//! [`ClientTable`] is pure: every event gives the groups that changed, each with what every core has to know
//! ([`OnlineGroup`]) and whom to tell (NOTIFY_CONSUMER_IDS_CHANGED). The shell in `heartbeat.rs` publishes and pushes.
//! Unlike RocketMQ, a group keeps one subscription set per member and shows their union, so two members that disagree
//! do not take each other's topics away with every heartbeat; the disagreement is reported once.
//!
//! Source: `ConsumerManager`, `ConsumerGroupInfo`, `ProducerManager`, `DefaultConsumerIdsChangeListener`.

use std::collections::BTreeMap;
use std::sync::Arc;

use ahash::AHashMap;

use crate::base::id::ConnectionId;
use crate::shard::message::ClientInfo;
use crate::shard::meta::{Member, OnlineGroup};
use crate::wire::remoting::body::{ConsumerData, SubscriptionData};

/// A client that was not heard of for this long is gone (`channelExpiredTimeout`), in milliseconds.
pub const EXPIRY_MS: u64 = 120_000;
/// Members whose rebalance is their own business.
pub(super) const BROADCASTING: &str = "BROADCASTING";

/// What an event changed in one group.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupChange {
    pub online: Arc<OnlineGroup>,
    /// Connections to tell that the group's members changed; without the one that caused it.
    pub notify: Vec<ConnectionId>,
}

/// Two members of one group that subscribe differently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disagreement {
    pub group: Arc<str>,
    pub topic: String,
    /// Client and its expression; none if it does not subscribe the topic.
    pub one: (Arc<str>, Option<String>),
    pub other: (Arc<str>, Option<String>),
}

#[derive(Debug)]
struct ConsumerMember {
    member: Member,
    subscriptions: Vec<SubscriptionData>,
}

#[derive(Debug, Default)]
struct ConsumerGroup {
    members: Vec<ConsumerMember>,
    consume_type: String,
    message_model: String,
    consume_from_where: String,
    /// A disagreement was reported and still holds.
    reported: bool,
}

impl ConsumerGroup {
    fn online(&self, name: &Arc<str>) -> Arc<OnlineGroup> {
        Arc::new(OnlineGroup {
            name: name.clone(),
            members: self.members.iter().map(|m| m.member.clone()).collect(),
            subscriptions: self.union(),
            consume_type: self.consume_type.clone(),
            message_model: self.message_model.clone(),
            consume_from_where: self.consume_from_where.clone(),
        })
    }

    /// By topic, the subscription with the greatest version.
    fn union(&self) -> AHashMap<String, SubscriptionData> {
        let mut union: AHashMap<String, SubscriptionData> = AHashMap::new();
        for subscription in self.members.iter().flat_map(|m| &m.subscriptions) {
            let newest = union
                .get(&subscription.topic)
                .is_none_or(|known| known.sub_version < subscription.sub_version);
            if newest {
                union.insert(subscription.topic.clone(), subscription.clone());
            }
        }
        union
    }

    fn notified(&self, but: Option<ConnectionId>, wanted: bool) -> Vec<ConnectionId> {
        if !wanted || self.message_model == BROADCASTING {
            return Vec::new();
        }
        let connections = self.members.iter().map(|m| m.member.connection);
        connections.filter(|&c| Some(c) != but).collect()
    }

    /// The first topic that two members see differently.
    fn disagreement(&self, name: &Arc<str>) -> Option<Disagreement> {
        let (first, others) = self.members.split_first()?;
        others
            .iter()
            .find_map(|other| differing(first, other, name))
    }
}

fn expressions(member: &ConsumerMember) -> BTreeMap<&str, &str> {
    member
        .subscriptions
        .iter()
        .map(|s| (s.topic.as_str(), s.sub_string.as_str()))
        .collect()
}

fn differing(
    one: &ConsumerMember,
    other: &ConsumerMember,
    name: &Arc<str>,
) -> Option<Disagreement> {
    let (mine, theirs) = (expressions(one), expressions(other));
    let topic = mine
        .keys()
        .chain(theirs.keys())
        .find(|topic| mine.get(*topic) != theirs.get(*topic))?;
    let side = |member: &ConsumerMember, expressions: &BTreeMap<&str, &str>| {
        (
            member.member.client.client_id.clone(),
            expressions.get(topic).map(|e| (*e).to_owned()),
        )
    };
    Some(Disagreement {
        group: name.clone(),
        topic: (*topic).to_owned(),
        one: side(one, &mine),
        other: side(other, &theirs),
    })
}

/// See the module's page. One per core; it knows the groups whose home that core is.
#[derive(Debug, Default)]
pub struct ClientTable {
    // Ordered, so that what is pushed when a connection closes does not depend on a hash seed.
    consumers: BTreeMap<Arc<str>, ConsumerGroup>,
    producers: BTreeMap<Arc<str>, Vec<Member>>,
}

impl ClientTable {
    /// One consumer group of a heartbeat. `notify` is the group's `notifyConsumerIdsChangedEnable`.
    pub fn consumer_heartbeat(
        &mut self,
        now_ms: u64,
        connection: ConnectionId,
        client: ClientInfo,
        data: ConsumerData,
        notify: bool,
    ) -> (Option<GroupChange>, Option<Disagreement>) {
        let name: Arc<str> = Arc::from(data.group_name.as_str());
        let group = self.consumers.entry(name.clone()).or_default();
        let topics_before: Vec<String> = topics_of(group);
        let kind_before = (group.consume_type != data.consume_type)
            || (group.message_model != data.message_model)
            || (group.consume_from_where != data.consume_from_where);
        group.consume_type = data.consume_type;
        group.message_model = data.message_model;
        group.consume_from_where = data.consume_from_where;

        let found = group
            .members
            .iter_mut()
            .find(|m| m.member.connection == connection);
        let (joined, changed) = match found {
            Some(known) => {
                known.member.last_heartbeat_ms = now_ms;
                let same = known.member.client == client
                    && known.subscriptions == data.subscription_data_set;
                known.member.client = client;
                known.subscriptions = data.subscription_data_set;
                (false, !same)
            }
            None => {
                group.members.push(ConsumerMember {
                    member: Member {
                        connection,
                        client,
                        last_heartbeat_ms: now_ms,
                    },
                    subscriptions: data.subscription_data_set,
                });
                (true, true)
            }
        };
        if !changed && !kind_before {
            return (None, None);
        }
        let told = joined || topics_of(group) != topics_before;
        let disagreement = group.disagreement(&name);
        let was_reported = std::mem::replace(&mut group.reported, disagreement.is_some());
        let report = disagreement.filter(|_| !was_reported);
        let change = GroupChange {
            online: group.online(&name),
            notify: group.notified(Some(connection), notify && told),
        };
        (Some(change), report)
    }

    /// One producer group of a heartbeat.
    pub fn producer_heartbeat(
        &mut self,
        now_ms: u64,
        connection: ConnectionId,
        client: ClientInfo,
        group: Arc<str>,
    ) -> Option<GroupChange> {
        let members = self.producers.entry(group.clone()).or_default();
        let known = members.iter_mut().find(|m| m.connection == connection);
        if let Some(known) = known {
            known.last_heartbeat_ms = now_ms;
            if known.client == client {
                return None;
            }
            known.client = client;
        } else {
            members.push(Member {
                connection,
                client,
                last_heartbeat_ms: now_ms,
            });
        }
        Some(GroupChange {
            online: online_producers(&group, members),
            notify: Vec::new(),
        })
    }

    /// A client leaves a consumer group. `notify` as in [`Self::consumer_heartbeat`].
    pub fn leave_consumers(
        &mut self,
        connection: ConnectionId,
        group: &str,
        notify: bool,
    ) -> Option<GroupChange> {
        self.retain_consumers(group, notify, |m| m.connection != connection)
    }

    /// A client leaves a producer group.
    pub fn leave_producers(
        &mut self,
        connection: ConnectionId,
        group: &str,
    ) -> Option<GroupChange> {
        self.retain_producers(group, |m| m.connection != connection)
    }

    /// A connection is gone: changed consumer groups, then changed producer groups.
    pub fn closed(
        &mut self,
        connection: ConnectionId,
        notify: impl Fn(&str) -> bool,
    ) -> (Vec<GroupChange>, Vec<GroupChange>) {
        self.retain(notify, |m| m.connection != connection)
    }

    /// Forgets the clients that were silent for too long.
    pub fn expire(
        &mut self,
        now_ms: u64,
        notify: impl Fn(&str) -> bool,
    ) -> (Vec<GroupChange>, Vec<GroupChange>) {
        self.retain(notify, |m| {
            now_ms.saturating_sub(m.last_heartbeat_ms) < EXPIRY_MS
        })
    }

    fn retain(
        &mut self,
        notify: impl Fn(&str) -> bool,
        stays: impl Fn(&Member) -> bool,
    ) -> (Vec<GroupChange>, Vec<GroupChange>) {
        let consumers: Vec<_> = self.consumers.keys().cloned().collect();
        let producers: Vec<_> = self.producers.keys().cloned().collect();
        (
            consumers
                .iter()
                .filter_map(|group| self.retain_consumers(group, notify(group), &stays))
                .collect(),
            producers
                .iter()
                .filter_map(|group| self.retain_producers(group, &stays))
                .collect(),
        )
    }

    fn retain_consumers(
        &mut self,
        group: &str,
        notify: bool,
        stays: impl Fn(&Member) -> bool,
    ) -> Option<GroupChange> {
        let (name, entry) = self.consumers.get_key_value(group)?;
        if entry.members.iter().all(|m| stays(&m.member)) {
            return None;
        }
        let name = name.clone();
        let entry = self.consumers.get_mut(group)?;
        entry.members.retain(|m| stays(&m.member));
        entry.reported = entry.reported && entry.disagreement(&name).is_some();
        let change = GroupChange {
            online: entry.online(&name),
            notify: entry.notified(None, notify),
        };
        if entry.members.is_empty() {
            self.consumers.remove(group);
        }
        Some(change)
    }

    fn retain_producers(
        &mut self,
        group: &str,
        stays: impl Fn(&Member) -> bool,
    ) -> Option<GroupChange> {
        let (name, members) = self.producers.get_key_value(group)?;
        if members.iter().all(&stays) {
            return None;
        }
        let name = name.clone();
        let members = self.producers.get_mut(group)?;
        members.retain(stays);
        let online = online_producers(&name, members);
        if members.is_empty() {
            self.producers.remove(group);
        }
        Some(GroupChange {
            online,
            notify: Vec::new(),
        })
    }
}

fn topics_of(group: &ConsumerGroup) -> Vec<String> {
    let mut topics: Vec<String> = group.union().into_keys().collect();
    topics.sort_unstable();
    topics
}

fn online_producers(name: &Arc<str>, members: &[Member]) -> Arc<OnlineGroup> {
    Arc::new(OnlineGroup {
        name: name.clone(),
        members: members.to_vec(),
        ..OnlineGroup::default()
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::broker::subscription;

    fn connection(serial: u64) -> ConnectionId {
        ConnectionId { core: 0, serial }
    }

    fn client(id: &str) -> ClientInfo {
        ClientInfo {
            client_id: Arc::from(id),
            address: "127.0.0.1:5000".parse().unwrap(),
            language: 0,
            version: 513,
        }
    }

    fn data(subscriptions: &[(&str, &str, i64)]) -> ConsumerData {
        ConsumerData {
            group_name: "G".into(),
            consume_type: "CONSUME_PASSIVELY".into(),
            message_model: "CLUSTERING".into(),
            consume_from_where: "CONSUME_FROM_LAST_OFFSET".into(),
            subscription_data_set: subscriptions
                .iter()
                .map(|(topic, expression, version)| {
                    subscription::subscription(topic, expression, *version).unwrap()
                })
                .collect(),
            unit_mode: false,
        }
    }

    fn beat(
        table: &mut ClientTable,
        now_ms: u64,
        serial: u64,
        subscriptions: &[(&str, &str, i64)],
    ) -> (Option<GroupChange>, Option<Disagreement>) {
        let id = format!("c{serial}");
        table.consumer_heartbeat(
            now_ms,
            connection(serial),
            client(&id),
            data(subscriptions),
            true,
        )
    }

    #[test]
    fn a_join_is_told_to_the_others_but_not_to_the_one_who_joins() {
        let mut table = ClientTable::default();
        let first = beat(&mut table, 0, 1, &[("T", "*", 1)]).0.unwrap();
        assert_eq!(first.notify, []);
        let second = beat(&mut table, 0, 2, &[("T", "*", 2)]).0.unwrap();
        assert_eq!(second.notify, [connection(1)]);
        assert_eq!(second.online.members.len(), 2);
        assert_eq!(second.online.subscriptions["T"].sub_version, 2);
    }

    #[test]
    fn the_same_heartbeat_again_changes_nothing() {
        let mut table = ClientTable::default();
        beat(&mut table, 0, 1, &[("T", "*", 1)]);
        assert_eq!(beat(&mut table, 30_000, 1, &[("T", "*", 1)]), (None, None));
    }

    #[test]
    fn a_newer_subscription_is_published_without_a_notice_and_an_older_one_does_not_replace_it() {
        let mut table = ClientTable::default();
        beat(&mut table, 0, 1, &[("T", "a", 5)]);
        beat(&mut table, 0, 2, &[("T", "a", 4)]);
        let newer = beat(&mut table, 0, 1, &[("T", "b", 6)]).0.unwrap();
        assert_eq!(newer.notify, []);
        assert_eq!(newer.online.subscriptions["T"].sub_string, "b");
        let older = beat(&mut table, 0, 2, &[("T", "c", 5)]).0.unwrap();
        assert_eq!(older.online.subscriptions["T"].sub_string, "b");
    }

    #[test]
    fn members_that_disagree_keep_all_topics_and_are_reported_once() {
        let mut table = ClientTable::default();
        beat(&mut table, 0, 1, &[("T", "a", 1)]);
        let (change, report) = beat(&mut table, 0, 2, &[("T", "a", 1), ("U", "*", 1)]);
        let change = change.unwrap();
        assert!(change.online.subscriptions.contains_key("T"));
        assert!(change.online.subscriptions.contains_key("U"));
        let report = report.unwrap();
        assert_eq!(report.topic, "U");
        assert_eq!(report.one, (Arc::from("c1"), None));
        assert_eq!(report.other, (Arc::from("c2"), Some("*".into())));
        assert_eq!(beat(&mut table, 1, 1, &[("T", "x", 2)]).1, None, "once");
        assert_eq!(
            beat(&mut table, 1, 1, &[("T", "a", 3), ("U", "*", 3)]).1,
            None
        );
        assert!(
            beat(&mut table, 2, 2, &[("T", "z", 4), ("U", "*", 1)])
                .1
                .is_some(),
            "a new one"
        );
    }

    #[test]
    fn a_topic_that_all_members_dropped_is_gone_and_told() {
        let mut table = ClientTable::default();
        beat(&mut table, 0, 1, &[("T", "*", 1), ("U", "*", 1)]);
        beat(&mut table, 0, 2, &[("T", "*", 1)]);
        let change = beat(&mut table, 0, 1, &[("T", "*", 1)]).0.unwrap();
        assert!(!change.online.subscriptions.contains_key("U"));
        assert_eq!(change.notify, [connection(2)]);
    }

    #[test]
    fn leaving_by_unregistering_closing_or_silence_tells_who_stays() {
        let mut table = ClientTable::default();
        for serial in 1..=4 {
            beat(&mut table, 0, serial, &[("T", "*", 1)]);
        }
        let left = table.leave_consumers(connection(4), "G", true).unwrap();
        assert_eq!(left.notify, [connection(1), connection(2), connection(3)]);
        assert_eq!(table.leave_consumers(connection(4), "G", true), None);

        let (closed, _) = table.closed(connection(3), |_| true);
        assert_eq!(closed[0].notify, [connection(1), connection(2)]);

        beat(&mut table, 100_000, 1, &[("T", "*", 1)]);
        assert_eq!(table.expire(119_999, |_| true), (vec![], vec![]));
        let (expired, _) = table.expire(120_000, |_| true);
        assert_eq!(expired[0].notify, [connection(1)]);
        let (last, _) = table.closed(connection(1), |_| true);
        assert!(last[0].online.members.is_empty());
        assert!(table.consumers.is_empty(), "an empty group is forgotten");
    }

    #[test]
    fn broadcasting_groups_and_silenced_groups_are_not_told() {
        let mut table = ClientTable::default();
        beat(&mut table, 0, 1, &[("T", "*", 1)]);
        let quiet = table.consumer_heartbeat(
            0,
            connection(2),
            client("c2"),
            data(&[("T", "*", 1)]),
            false,
        );
        assert_eq!(quiet.0.unwrap().notify, []);
        let mut cast = data(&[("T", "*", 1)]);
        cast.message_model = BROADCASTING.into();
        let cast = table.consumer_heartbeat(0, connection(3), client("c3"), cast, true);
        assert_eq!(cast.0.unwrap().notify, []);
    }

    #[test]
    fn producers_come_and_go() {
        let mut table = ClientTable::default();
        let joined = table.producer_heartbeat(0, connection(1), client("p"), Arc::from("P"));
        assert_eq!(joined.unwrap().online.members.len(), 1);
        assert_eq!(
            table.producer_heartbeat(1, connection(1), client("p"), Arc::from("P")),
            None
        );
        let left = table.leave_producers(connection(1), "P").unwrap();
        assert!(left.online.members.is_empty());
        assert_eq!(table.closed(connection(1), |_| true), (vec![], vec![]));
    }
}
