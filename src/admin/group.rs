//! `ringmq group list|show|create|delete`.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde_json::{Value, json};

use crate::admin::args::{Confirm, GroupVerb, Where};
use crate::admin::output::{Part, Table};
use crate::admin::session::{Master, Session, accepted, read_body};
use crate::admin::{AdminError, Context, Outcome, lag, topic};
use crate::base::names;
use crate::wire::remoting::body::{
    ConsumerConnection, SubscriptionGroupConfig, SubscriptionGroupWrapper,
};
use crate::wire::remoting::code::{request, response};
use crate::wire::remoting::command::Outgoing;

/// Changes of a group; what is `None` stays, or gets its default in a new one.
#[derive(Clone, Debug, Default)]
pub struct GroupChange {
    pub retry_max_times: Option<i32>,
    pub retry_queues: Option<i32>,
    pub consume_enable: Option<bool>,
    pub broadcast_enable: Option<bool>,
    pub from_min_enable: Option<bool>,
    pub orderly: Option<bool>,
    pub broker_id: Option<i64>,
    pub which_broker_when_slow: Option<i64>,
    pub notify_ids_changed: Option<bool>,
    pub retry_policy: Option<Value>,
    /// `+key=value` and `-key` between commas.
    pub attributes: Option<String>,
}

pub async fn run(context: &Context, verb: GroupVerb) -> Outcome {
    match verb {
        GroupVerb::List { all } => list(context, all).await,
        GroupVerb::Show { group } => show(context, &group).await,
        GroupVerb::Create {
            group,
            retry_max_times,
            retry_queues,
            consume_enable,
            broadcast_enable,
            orderly,
            attributes,
            place,
        } => {
            let change = GroupChange {
                retry_max_times,
                retry_queues,
                consume_enable,
                broadcast_enable,
                orderly,
                attributes,
                ..GroupChange::default()
            };
            create(context, &group, &change, &place).await
        }
        GroupVerb::Delete {
            group,
            keep_topics,
            confirm,
        } => delete(context, &group, keep_topics, confirm).await,
    }
}

/// All groups of a broker.
pub async fn groups_of_broker(
    session: &Session,
    address: &str,
) -> Outcome<BTreeMap<String, SubscriptionGroupConfig>> {
    let ask = Outgoing::request(request::GET_ALL_SUBSCRIPTIONGROUP_CONFIG);
    let all: SubscriptionGroupWrapper = session.fetch(address, ask).await?;
    Ok(all.subscription_group_table)
}

/// Who of a group is connected to a broker; `None`: nobody.
pub async fn connections(
    session: &Session,
    address: &str,
    group: &str,
) -> Outcome<Option<ConsumerConnection>> {
    let ask = Outgoing::request(request::GET_CONSUMER_CONNECTION_LIST)
        .field("consumerGroup", group.to_owned());
    let answer = session.ask(address, ask, Bytes::new()).await?;
    if answer.code == response::CONSUMER_NOT_ONLINE {
        return Ok(None);
    }
    let code = request::GET_CONSUMER_CONNECTION_LIST;
    let answer = accepted(address, code, answer)?;
    read_body(address, code, &answer).map(Some)
}

/// A group's configuration on a broker; `None` if it has no such group.
pub async fn config(
    session: &Session,
    address: &str,
    group: &str,
) -> Outcome<Option<SubscriptionGroupConfig>> {
    let ask =
        Outgoing::request(request::GET_SUBSCRIPTIONGROUP_CONFIG).field("group", group.to_owned());
    let answer = session.ask(address, ask, Bytes::new()).await?;
    if answer.code == response::SUBSCRIPTION_GROUP_NOT_EXIST {
        return Ok(None);
    }
    let code = request::GET_SUBSCRIPTIONGROUP_CONFIG;
    let answer = accepted(address, code, answer)?;
    read_body(address, code, &answer).map(Some)
}

async fn list(context: &Context, all: bool) -> Outcome {
    let session = &context.session;
    let masters = session.masters(&Where::default()).await?;
    let mut groups: BTreeMap<String, Vec<Master>> = BTreeMap::new();
    for master in &masters {
        for group in groups_of_broker(session, &master.address)
            .await?
            .into_keys()
        {
            groups.entry(group).or_default().push(master.clone());
        }
    }
    let mut table = Table::new(&[
        "group",
        "members",
        "lag",
        "retryLag",
        "consumeType",
        "messageModel",
        "topics",
    ]);
    for (group, masters) in groups {
        if !all && names::is_system_group(&group) {
            continue;
        }
        let (mut members, mut topics, mut lags) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
        let (mut kind, mut model) = (Value::Null, Value::Null);
        for master in &masters {
            if let Some(online) = connections(session, &master.address, &group).await? {
                (kind, model) = (json!(online.consume_type), json!(online.message_model));
                members.extend(online.connection_set.into_iter().map(|c| c.client_id));
                topics.extend(online.subscription_table.into_keys());
            }
            let stats = session.consume_stats(&master.address, &group, None).await?;
            lags.extend(lag::of_stats(stats));
        }
        topics.retain(|topic| !names::is_retry_topic(topic));
        let (new, retry) = lag::sums(&lags);
        table.push([
            json!(group),
            json!(members.len()),
            json!(new),
            json!(retry),
            kind,
            model,
            json!(topics),
        ]);
    }
    context.output.list(&table);
    Ok(())
}

/// The masters that know a group, with its configuration there.
async fn places(session: &Session, group: &str) -> Outcome<Vec<(Master, SubscriptionGroupConfig)>> {
    let mut places = Vec::new();
    for master in session.masters(&Where::default()).await? {
        if let Some(config) = config(session, &master.address, group).await? {
            places.push((master, config));
        }
    }
    match places.is_empty() {
        true => Err(AdminError::NotFound(format!(
            "no broker knows the group '{group}'"
        ))),
        false => Ok(places),
    }
}

async fn show(context: &Context, group: &str) -> Outcome {
    let session = &context.session;
    let places = places(session, group).await?;
    let mut members = Table::new(&[
        "clientId",
        "clientAddr",
        "language",
        "version",
        "brokerName",
    ]);
    let mut subscriptions = Table::new(&[
        "topic",
        "expressionType",
        "subscription",
        "brokerName",
        "subVersion",
    ]);
    let mut head: Vec<(&str, Part)> = vec![("group", Part::Value(json!(group)))];
    let (mut online, mut differ) = (None, None);
    for (master, _) in &places {
        let Some(found) = connections(session, &master.address, group).await? else {
            continue;
        };
        for member in &found.connection_set {
            members.push([
                json!(member.client_id),
                json!(member.client_addr),
                json!(member.language),
                json!(member.version),
                json!(master.broker_name),
            ]);
        }
        for (topic, data) in &found.subscription_table {
            subscriptions.push([
                json!(topic),
                json!(data.expression_type),
                json!(data.sub_string),
                json!(master.broker_name),
                json!(data.sub_version),
            ]);
        }
        differ = found.subscriptions_differ.clone().or(differ);
        online = Some(found);
    }
    let addresses = || places.iter().map(|(master, _)| master.address.clone());
    let lags = lag::of_group(session, group, None, addresses()).await?;
    let (new, retry) = lag::sums(&lags);
    let delayed = lag::delayed(session, &names::retry_topic(group), addresses()).await;
    head.push(("online", Part::Value(json!(online.is_some()))));
    if let Some(online) = &online {
        head.push(("consumeType", Part::Value(json!(online.consume_type))));
        head.push(("messageModel", Part::Value(json!(online.message_model))));
        head.push((
            "consumeFromWhere",
            Part::Value(json!(online.consume_from_where)),
        ));
    }
    if let Some((_, config)) = places.first() {
        head.push(("consumeEnable", Part::Value(json!(config.consume_enable))));
        head.push((
            "orderly",
            Part::Value(json!(config.consume_message_orderly)),
        ));
        head.push(("retryMaxTimes", Part::Value(json!(config.retry_max_times))));
        head.push((
            "retryPolicy",
            Part::Value(config.group_retry_policy.clone()),
        ));
        head.push(("attributes", Part::Value(json!(config.attributes))));
    }
    head.push(("lag", Part::Value(json!(new))));
    head.push(("inFlight", Part::Value(json!(lag::in_flight(&lags)))));
    head.push(("removed", Part::Value(json!(lag::removed(&lags)))));
    head.push(("retryLag", Part::Value(json!(retry))));
    head.push(("delayedRetries", Part::Value(json!(delayed))));
    head.push((
        "delaySeconds",
        Part::Value(json!(lag::delay_seconds(&lags))),
    ));
    // Each member gets messages that another one wanted: the trap that nobody sees.
    let differ = differ.map(|differ| differ.to_string());
    head.push(("subscriptionsDiffer", Part::Value(json!(differ))));
    head.push(("members", Part::Table(members)));
    head.push(("subscriptions", Part::Table(subscriptions)));
    head.push(("queues", Part::Table(lag::table(&lags))));
    context.output.parts(&head);
    Ok(())
}

/// Creates or changes a group on one broker, and says what it is then.
pub async fn put_group(
    session: &Session,
    address: &str,
    group: &str,
    change: &GroupChange,
) -> Outcome<SubscriptionGroupConfig> {
    // RocketMQ creates a group that it is asked about; the answer is the same.
    let current = config(session, address, group).await?.unwrap_or_default();
    let changes = change.attributes.as_deref().unwrap_or_default();
    let changes = changes.split(',').map(str::trim).filter(|c| !c.is_empty());
    let attributes = changes.map(|change| change.split_once('=').unwrap_or((change, "")));
    let wanted = SubscriptionGroupConfig {
        // Changes only: a broker keeps what is not named.
        attributes: attributes
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect(),
        group_name: group.to_owned(),
        retry_max_times: change.retry_max_times.unwrap_or(current.retry_max_times),
        retry_queue_nums: change.retry_queues.unwrap_or(current.retry_queue_nums),
        consume_enable: change.consume_enable.unwrap_or(current.consume_enable),
        consume_broadcast_enable: change
            .broadcast_enable
            .unwrap_or(current.consume_broadcast_enable),
        consume_from_min_enable: change
            .from_min_enable
            .unwrap_or(current.consume_from_min_enable),
        consume_message_orderly: change.orderly.unwrap_or(current.consume_message_orderly),
        broker_id: change.broker_id.unwrap_or(current.broker_id),
        which_broker_when_consume_slowly: change
            .which_broker_when_slow
            .unwrap_or(current.which_broker_when_consume_slowly),
        notify_consumer_ids_changed_enable: change
            .notify_ids_changed
            .unwrap_or(current.notify_consumer_ids_changed_enable),
        group_retry_policy: change
            .retry_policy
            .clone()
            .unwrap_or(current.group_retry_policy.clone()),
        ..current
    };
    let body = crate::wire::remoting::json::to_vec(&wanted);
    let ask = Outgoing::request(request::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP);
    session.call(address, ask, body.into()).await?;
    Ok(wanted)
}

async fn create(context: &Context, group: &str, change: &GroupChange, place: &Where) -> Outcome {
    let mut table = Table::new(&[
        "brokerName",
        "address",
        "consumeEnable",
        "orderly",
        "retryMaxTimes",
        "retryQueues",
    ]);
    for master in context.session.masters(place).await? {
        let config = put_group(&context.session, &master.address, group, change).await?;
        table.push([
            json!(master.broker_name),
            json!(master.address),
            json!(config.consume_enable),
            json!(config.consume_message_orderly),
            json!(config.retry_max_times),
            json!(config.retry_queue_nums),
        ]);
    }
    context.output.list(&table);
    Ok(())
}

/// Removes a group from one broker.
pub async fn remove(session: &Session, address: &str, group: &str, clean_offset: bool) -> Outcome {
    let ask = Outgoing::request(request::DELETE_SUBSCRIPTIONGROUP)
        .field("groupName", group.to_owned())
        .field("cleanOffset", clean_offset);
    session.call(address, ask, Bytes::new()).await.map(drop)
}

async fn delete(context: &Context, group: &str, keep_topics: bool, confirm: Confirm) -> Outcome {
    let session = &context.session;
    let places = places(session, group).await?;
    let topics: Vec<String> = match keep_topics {
        true => Vec::new(),
        false => {
            let known = session.topic_list().await?.topic_list;
            let own = [names::retry_topic(group), names::dlq_topic(group)];
            own.into_iter()
                .filter(|name| known.contains(name))
                .collect()
        }
    };
    let mut members = 0;
    for (master, _) in &places {
        if let Some(online) = connections(session, &master.address, group).await? {
            members += online.connection_set.len();
        }
    }
    let mut table = Table::new(&["group", "brokers", "members", "topics"]);
    let brokers: Vec<&String> = places.iter().map(|(m, _)| &m.broker_name).collect();
    table.push([json!(group), json!(brokers), json!(members), json!(topics)]);
    context.output.list(&table);
    let what = match topics.is_empty() {
        true => format!("delete the group {group} with its offsets"),
        false => format!(
            "delete the group {group} with its offsets and {}",
            topics.join(" and ")
        ),
    };
    if !context.output.confirmed(confirm, &what)? {
        return Ok(());
    }
    let masters: Vec<String> = places.into_iter().map(|(m, _)| m.address).collect();
    for address in &masters {
        remove(session, address, group, true).await?;
    }
    for name in &topics {
        topic::remove(session, name, &masters).await?;
    }
    context.output.say(&format!("deleted {group}"));
    Ok(())
}
