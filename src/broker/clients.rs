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
use crate::broker::subscription::is_tag_type;
use crate::shard::message::ClientInfo;
use crate::shard::meta::{Member, OnlineGroup};
use crate::wire::remoting::body::{ConsumerData, SubscriptionData, SubscriptionsDiffer};

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

/// What a heartbeat of a consumer group comes to.
#[derive(Debug, Default, PartialEq)]
pub struct Heard {
    /// The group changed.
    pub change: Option<GroupChange>,
    /// Members subscribe differently, and otherwise than when that was reported last.
    pub report: Option<Arc<SubscriptionsDiffer>>,
    /// The heartbeat was not taken because its subscription differs from that of the members.
    pub refused: bool,
}

/// What is asked of the table besides keeping the members.
#[derive(Clone, Copy, Debug)]
pub struct HeartbeatRules {
    /// The group's `notifyConsumerIdsChangedEnable`.
    pub notify: bool,
    /// `rejectInconsistentSubscription`: who subscribes otherwise than the members is not taken.
    pub strict: bool,
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
    /// The disagreement that was reported and still holds.
    differ: Option<Arc<SubscriptionsDiffer>>,
    /// The last heartbeat that was refused for its subscription: it comes again and again.
    refused: Option<SubscriptionsDiffer>,
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
            differ: self.differ.clone(),
            is_native: false,
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

    /// The first topic that two members see differently; each is compared with the one that has been there longest.
    fn disagreement(&self) -> Option<SubscriptionsDiffer> {
        let (first, others) = self.members.split_first()?;
        others.iter().find_map(|other| {
            let id = &other.member.client.client_id;
            differing(first, id, &other.subscriptions)
        })
    }

    /// What of a refused heartbeat is to be reported.
    fn refused(&mut self, differ: SubscriptionsDiffer) -> Option<Arc<SubscriptionsDiffer>> {
        if self.refused.as_ref() == Some(&differ) {
            return None;
        }
        self.refused = Some(differ.clone());
        Some(Arc::new(differ))
    }

    /// Whether the members disagree now, and what of it is to be reported.
    fn compare(&mut self) -> Option<Arc<SubscriptionsDiffer>> {
        let differ = self.disagreement();
        if differ.as_ref() == self.differ.as_deref() {
            return None;
        }
        self.differ = differ.map(Arc::new);
        self.differ.clone()
    }
}

/// What an expression asks for, whatever the order of its tags.
fn meaning(subscription: &SubscriptionData) -> (bool, Vec<&str>) {
    if !is_tag_type(subscription.expression_type.as_deref()) {
        return (false, vec![subscription.sub_string.trim()]);
    }
    let mut tags: Vec<&str> = subscription
        .sub_string
        .split("||")
        .map(str::trim)
        .filter(|tag| !tag.is_empty())
        .collect();
    tags.sort_unstable();
    tags.dedup();
    if tags.is_empty() {
        tags.push("*");
    }
    (true, tags)
}

fn by_topic(subscriptions: &[SubscriptionData]) -> BTreeMap<&str, &SubscriptionData> {
    let named = subscriptions.iter().map(|s| (s.topic.as_str(), s));
    named.collect()
}

/// Where a client subscribes otherwise than a member. One client on two connections, of which one is dying, does not.
fn differing(
    one: &ConsumerMember,
    other_id: &Arc<str>,
    other: &[SubscriptionData],
) -> Option<SubscriptionsDiffer> {
    if one.member.client.client_id == *other_id {
        return None;
    }
    let (mine, theirs) = (by_topic(&one.subscriptions), by_topic(other));
    let topic = mine.keys().chain(theirs.keys()).find(|topic| {
        let (one, other) = (mine.get(*topic), theirs.get(*topic));
        one.map(|s| meaning(s)) != other.map(|s| meaning(s))
    })?;
    let expression = |of: &BTreeMap<&str, &SubscriptionData>| {
        of.get(topic).map(|found| match &found.expression_type {
            kind if is_tag_type(kind.as_deref()) => found.sub_string.clone(),
            Some(kind) => format!("{kind}: {}", found.sub_string),
            None => found.sub_string.clone(),
        })
    };
    Some(SubscriptionsDiffer {
        topic: (*topic).to_owned(),
        one_client: one.member.client.client_id.to_string(),
        one_subscription: expression(&mine),
        other_client: other_id.to_string(),
        other_subscription: expression(&theirs),
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
    /// One consumer group of a heartbeat.
    pub fn consumer_heartbeat(
        &mut self,
        now_ms: u64,
        connection: ConnectionId,
        client: ClientInfo,
        data: ConsumerData,
        rules: HeartbeatRules,
    ) -> Heard {
        let name: Arc<str> = Arc::from(data.group_name.as_str());
        let group = self.consumers.entry(name.clone()).or_default();
        if rules.strict {
            let differ = group
                .members
                .iter()
                .filter(|known| known.member.connection != connection)
                .find_map(|known| differing(known, &client.client_id, &data.subscription_data_set));
            if let Some(differ) = differ {
                let own = group
                    .members
                    .iter_mut()
                    .find(|known| known.member.connection == connection);
                if let Some(own) = own {
                    // It is alive, and stays with what it subscribed before.
                    own.member.last_heartbeat_ms = now_ms;
                }
                return Heard {
                    refused: true,
                    report: group.refused(differ),
                    ..Heard::default()
                };
            }
        }
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
            return Heard::default();
        }
        let told = joined || topics_of(group) != topics_before;
        let report = group.compare();
        let change = GroupChange {
            online: group.online(&name),
            notify: group.notified(Some(connection), rules.notify && told),
        };
        Heard {
            change: Some(change),
            report,
            refused: false,
        }
    }

    /// How many members a consumer group has.
    pub fn consumers_of(&self, group: &str) -> usize {
        self.consumers
            .get(group)
            .map_or(0, |group| group.members.len())
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
        // What remains of a disagreement was reported when it began.
        let _ = entry.compare();
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
    ) -> (Option<GroupChange>, Option<Arc<SubscriptionsDiffer>>) {
        let id = format!("c{serial}");
        let heard = table.consumer_heartbeat(
            now_ms,
            connection(serial),
            client(&id),
            data(subscriptions),
            RULES,
        );
        assert!(!heard.refused);
        (heard.change, heard.report)
    }

    const RULES: HeartbeatRules = HeartbeatRules {
        notify: true,
        strict: false,
    };

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
    fn members_that_disagree_keep_all_topics_and_are_reported_once_per_change() {
        let mut table = ClientTable::default();
        beat(&mut table, 0, 1, &[("T", "a", 1)]);
        let (change, report) = beat(&mut table, 0, 2, &[("T", "a", 1), ("U", "*", 1)]);
        let change = change.unwrap();
        assert!(change.online.subscriptions.contains_key("T"));
        assert!(change.online.subscriptions.contains_key("U"));
        let report = report.unwrap();
        assert_eq!(change.online.differ, Some(report.clone()));
        assert_eq!(report.topic, "U");
        assert_eq!(
            (report.one_client.as_str(), &report.one_subscription),
            ("c1", &None)
        );
        assert_eq!(report.other_client, "c2");
        assert_eq!(report.other_subscription.as_deref(), Some("*"));
        // The same again, and a new version of the same expression, are no change of it.
        let again = [("T", "a", 1), ("U", "*", 1)];
        assert_eq!(beat(&mut table, 1, 2, &again).1, None);
        assert_eq!(beat(&mut table, 1, 1, &[("T", "a", 2)]).1, None);
        let report = beat(&mut table, 1, 1, &[("T", "x", 3)]).1.unwrap();
        assert_eq!(report.one_subscription.as_deref(), Some("x"), "another one");
        let (change, report) = beat(&mut table, 1, 1, &[("T", "a", 3), ("U", "*", 3)]);
        assert_eq!(report, None, "they agree");
        assert_eq!(change.unwrap().online.differ, None);
        let report = beat(&mut table, 2, 2, &[("T", "z", 4), ("U", "*", 1)]).1;
        assert!(report.is_some(), "a new one");
    }

    #[test]
    fn the_order_of_tags_is_no_disagreement_and_the_kind_of_the_expression_is_one() {
        let mut table = ClientTable::default();
        beat(&mut table, 0, 1, &[("T", "a || b", 1)]);
        assert_eq!(beat(&mut table, 0, 2, &[("T", "b||a", 1)]).1, None);
        let mut sql = data(&[("T", "b||a", 2)]);
        sql.subscription_data_set[0].expression_type = Some("SQL92".into());
        let heard = table.consumer_heartbeat(1, connection(2), client("c2"), sql, RULES);
        let report = heard.report.unwrap();
        assert_eq!(report.other_subscription.as_deref(), Some("SQL92: b||a"));
    }

    #[test]
    fn a_client_that_comes_back_on_a_new_connection_does_not_disagree_with_itself() {
        let mut table = ClientTable::default();
        beat(&mut table, 0, 1, &[("T", "a", 1)]);
        let new = data(&[("T", "b", 2)]);
        let heard = table.consumer_heartbeat(1, connection(9), client("c1"), new, RULES);
        assert_eq!(heard.report, None);
    }

    #[test]
    fn a_disagreement_ends_when_one_side_leaves() {
        let mut table = ClientTable::default();
        beat(&mut table, 0, 1, &[("T", "a", 1)]);
        beat(&mut table, 0, 2, &[("T", "b", 1)]);
        let left = table.leave_consumers(connection(2), "G", true).unwrap();
        assert_eq!(left.online.differ, None);
    }

    #[test]
    fn a_strict_group_does_not_take_who_subscribes_otherwise_and_says_so_once() {
        let strict = HeartbeatRules {
            strict: true,
            ..RULES
        };
        let mut table = ClientTable::default();
        let mut beat = |now_ms, serial, expression| {
            let id = format!("c{serial}");
            let data = data(&[("T", expression, 1)]);
            table.consumer_heartbeat(now_ms, connection(serial), client(&id), data, strict)
        };
        assert!(!beat(0, 1, "a").refused);
        let heard = beat(0, 2, "b");
        assert!(heard.refused && heard.report.is_some() && heard.change.is_none());
        let again = beat(30_000, 2, "b");
        assert!(again.refused && again.report.is_none(), "once");
        assert!(!beat(30_000, 3, "a").refused);
        // A member that changes its mind stays a member with what it said before.
        assert!(beat(60_000, 3, "c").refused);
        let online = table
            .leave_consumers(connection(1), "G", true)
            .unwrap()
            .online;
        assert_eq!(online.members.len(), 1);
        assert_eq!(online.subscriptions["T"].sub_string, "a");
        assert_eq!(online.members[0].last_heartbeat_ms, 60_000);
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
            HeartbeatRules {
                notify: false,
                ..RULES
            },
        );
        assert_eq!(quiet.change.unwrap().notify, []);
        let mut cast = data(&[("T", "*", 1)]);
        cast.message_model = BROADCASTING.into();
        let cast = table.consumer_heartbeat(0, connection(3), client("c3"), cast, RULES);
        assert_eq!(cast.change.unwrap().notify, []);
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
