//! `ringmq topic list|show|stats|create|delete`.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde_json::json;

use crate::admin::args::{Confirm, TopicVerb, Where};
use crate::admin::output::{Part, Table};
use crate::admin::session::{Session, TopicBroker};
use crate::admin::{Context, Outcome};
use crate::base::names;
use crate::wire::remoting::body::{GroupList, TopicConfig, TopicList};
use crate::wire::remoting::code::{request, response};
use crate::wire::remoting::command::Outgoing;

/// Queues of a new topic, as mqadmin makes it.
const QUEUES: u32 = 8;
/// Namespace of the key-value table that has the order of queues.
pub const ORDER_TOPIC_CONFIG: &str = "ORDER_TOPIC_CONFIG";

/// Changes of a topic; what is `None` stays, or gets its default in a new one.
#[derive(Clone, Debug, Default)]
pub struct TopicChange {
    pub read_queues: Option<u32>,
    pub write_queues: Option<u32>,
    pub perm: Option<i32>,
    pub order: Option<bool>,
    pub topic_sys_flag: Option<i32>,
    pub attributes: Option<String>,
}

pub async fn run(context: &Context, verb: TopicVerb) -> Outcome {
    match verb {
        TopicVerb::List { all } => list(context, all).await,
        TopicVerb::Show { topic } => show(context, &topic).await,
        TopicVerb::Stats { topic } => stats(context, &topic).await,
        TopicVerb::Create {
            topic,
            queues,
            read_queues,
            write_queues,
            perm,
            order,
            attributes,
            place,
        } => {
            let change = TopicChange {
                read_queues: read_queues.or(queues),
                write_queues: write_queues.or(queues),
                perm,
                order,
                topic_sys_flag: None,
                attributes,
            };
            create(context, &topic, change, &place).await
        }
        TopicVerb::Delete { topics, confirm } => delete(context, &topics, confirm).await,
    }
}

/// What a topic is for, by its name.
fn kind(name: &str, system: &BTreeSet<String>) -> &'static str {
    match name {
        _ if names::is_retry_topic(name) => "retry",
        _ if names::is_dlq_topic(name) => "dead letters",
        _ if names::is_system_topic(name) || system.contains(name) => "system",
        _ => "normal",
    }
}

/// Topics that belong to brokers, as those say themselves.
pub async fn system_topics(session: &Session) -> Outcome<BTreeSet<String>> {
    let mut system = BTreeSet::new();
    for master in session.masters(&Where::default()).await? {
        let ask = Outgoing::request(request::GET_SYSTEM_TOPIC_LIST_FROM_BROKER);
        let list: TopicList = session.fetch(&master.address, ask).await?;
        system.extend(list.topic_list);
    }
    Ok(system)
}

async fn list(context: &Context, all: bool) -> Outcome {
    let topics = context.session.topic_list().await?.topic_list;
    let system = system_topics(&context.session).await?;
    let mut table = Table::new(&["topic", "kind"]);
    for topic in &topics {
        let kind = kind(topic, &system);
        if all || kind == "normal" {
            table.push([json!(topic), json!(kind)]);
        }
    }
    context.output.list(&table);
    Ok(())
}

/// Groups that consume a topic, by all of its brokers.
pub async fn groups_of(
    session: &Session,
    topic: &str,
    brokers: &[TopicBroker],
) -> Outcome<BTreeSet<String>> {
    let mut groups = BTreeSet::new();
    for broker in brokers {
        let ask =
            Outgoing::request(request::QUERY_TOPIC_CONSUME_BY_WHO).field("topic", topic.to_owned());
        let list: GroupList = session.fetch(&broker.master.address, ask).await?;
        groups.extend(list.group_list);
    }
    Ok(groups)
}

async fn show(context: &Context, topic: &str) -> Outcome {
    let session = &context.session;
    let route = session.route(topic).await?;
    let brokers = crate::admin::session::brokers_of_route(&route);
    let mut table = Table::new(&[
        "cluster",
        "brokerName",
        "address",
        "readQueues",
        "writeQueues",
        "perm",
        "order",
        "attributes",
    ]);
    for broker in &brokers {
        let config = session.topic_config(&broker.master.address, topic).await?;
        let attributes: Vec<String> = config
            .attributes
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        table.push([
            json!(broker.master.cluster),
            json!(broker.master.broker_name),
            json!(broker.master.address),
            json!(broker.queues.read_queue_nums),
            json!(broker.queues.write_queue_nums),
            json!(perm_text(broker.queues.perm)),
            json!(config.order),
            json!(attributes),
        ]);
    }
    let groups = groups_of(session, topic, &brokers).await?;
    context.output.parts(&[
        ("topic", Part::Value(json!(topic))),
        ("orderTopicConf", Part::Value(json!(route.order_topic_conf))),
        ("groups", Part::Value(json!(groups))),
        ("brokers", Part::Table(table)),
    ]);
    Ok(())
}

/// `RW-` as mqadmin writes it.
pub fn perm_text(perm: i32) -> String {
    let bit = |bit: i32, letter: char| if perm & bit != 0 { letter } else { '-' };
    [bit(4, 'R'), bit(2, 'W'), bit(1, 'X')].iter().collect()
}

async fn stats(context: &Context, topic: &str) -> Outcome {
    let session = &context.session;
    let mut table = Table::new(&[
        "brokerName",
        "queueId",
        "minOffset",
        "maxOffset",
        "messages",
        "lastUpdateTimestamp",
    ]);
    for broker in session.topic_brokers(topic).await? {
        let stats = session.topic_stats(&broker.master.address, topic).await?;
        for (queue, offsets) in stats.offset_table {
            table.push([
                json!(queue.broker_name),
                json!(queue.queue_id),
                json!(offsets.min_offset),
                json!(offsets.max_offset),
                json!((offsets.max_offset - offsets.min_offset).max(0)),
                json!(offsets.last_update_timestamp),
            ]);
        }
    }
    context.output.list(&table);
    Ok(())
}

/// Creates or changes a topic on one broker, and says what it is then.
pub async fn put_topic(
    session: &Session,
    address: &str,
    topic: &str,
    change: &TopicChange,
) -> Outcome<TopicConfig> {
    let ask = Outgoing::request(request::GET_TOPIC_CONFIG)
        .field("topic", topic.to_owned())
        .field("lo", true);
    let answer = session.ask(address, ask, Bytes::new()).await?;
    let is_new = answer.code == response::TOPIC_NOT_EXIST;
    let current = match is_new {
        true => TopicConfig {
            topic_name: topic.to_owned(),
            read_queue_nums: QUEUES,
            write_queue_nums: QUEUES,
            ..TopicConfig::default()
        },
        false => {
            let answer =
                crate::admin::session::accepted(address, request::GET_TOPIC_CONFIG, answer)?;
            crate::admin::session::read_body(address, request::GET_TOPIC_CONFIG, &answer)?
        }
    };
    let wanted = TopicConfig {
        read_queue_nums: change.read_queues.unwrap_or(current.read_queue_nums),
        write_queue_nums: change.write_queues.unwrap_or(current.write_queue_nums),
        perm: change.perm.unwrap_or(current.perm),
        order: change.order.unwrap_or(current.order),
        topic_sys_flag: change.topic_sys_flag.unwrap_or(current.topic_sys_flag),
        ..current
    };
    let ask = Outgoing::request(request::UPDATE_AND_CREATE_TOPIC)
        .field("topic", topic.to_owned())
        .field("defaultTopic", names::AUTO_CREATE_TOPIC)
        .field("readQueueNums", wanted.read_queue_nums)
        .field("writeQueueNums", wanted.write_queue_nums)
        .field("perm", wanted.perm)
        .field("topicFilterType", wanted.topic_filter_type.clone())
        .field("topicSysFlag", wanted.topic_sys_flag)
        .field("order", wanted.order)
        .field_if("attributes", change.attributes.clone());
    session.call(address, ask, Bytes::new()).await?;
    Ok(wanted)
}

/// Names the queues of an ordered topic in the key-value table of every name server: `broker:queues;...`.
pub async fn put_order(session: &Session, topic: &str, queues: &BTreeMap<String, u32>) -> Outcome {
    let parts: Vec<String> = queues
        .iter()
        .map(|(broker, queues)| format!("{broker}:{queues}"))
        .collect();
    let ask = Outgoing::request(request::PUT_KV_CONFIG)
        .field("namespace", ORDER_TOPIC_CONFIG)
        .field("key", topic.to_owned())
        .field("value", parts.join(";"));
    for address in session.namesrv_addresses() {
        session.call(address, ask.clone(), Bytes::new()).await?;
    }
    Ok(())
}

async fn create(context: &Context, topic: &str, change: TopicChange, place: &Where) -> Outcome {
    let session = &context.session;
    let masters = session.masters(place).await?;
    let mut table = Table::new(&[
        "brokerName",
        "address",
        "readQueues",
        "writeQueues",
        "perm",
        "order",
    ]);
    let mut order = BTreeMap::new();
    for master in &masters {
        let config = put_topic(session, &master.address, topic, &change).await?;
        order.insert(master.broker_name.clone(), config.write_queue_nums);
        table.push([
            json!(master.broker_name),
            json!(master.address),
            json!(config.read_queue_nums),
            json!(config.write_queue_nums),
            json!(perm_text(config.perm)),
            json!(config.order),
        ]);
    }
    if change.order == Some(true) {
        put_order(session, topic, &order).await?;
    }
    context.output.list(&table);
    Ok(())
}

/// Removes a topic from every broker that has it and from every name server.
pub async fn remove(session: &Session, topic: &str, masters: &[String]) -> Outcome {
    for address in masters {
        let ask =
            Outgoing::request(request::DELETE_TOPIC_IN_BROKER).field("topic", topic.to_owned());
        session.call(address, ask, Bytes::new()).await?;
    }
    for address in session.namesrv_addresses() {
        let ask =
            Outgoing::request(request::DELETE_TOPIC_IN_NAMESRV).field("topic", topic.to_owned());
        session.call(address, ask, Bytes::new()).await?;
    }
    Ok(())
}

async fn delete(context: &Context, topics: &[String], confirm: Confirm) -> Outcome {
    let session = &context.session;
    let mut table = Table::new(&["topic", "brokers", "messages", "groups"]);
    let mut plan: Vec<(&String, Vec<String>)> = Vec::new();
    // All of them are looked at before the first is deleted.
    for topic in topics {
        let brokers = session.topic_brokers(topic).await?;
        let mut messages = 0;
        for broker in &brokers {
            let stats = session.topic_stats(&broker.master.address, topic).await?;
            let of_queues = stats.offset_table.values();
            messages += of_queues
                .map(|offsets| (offsets.max_offset - offsets.min_offset).max(0))
                .sum::<i64>();
        }
        let groups = groups_of(session, topic, &brokers).await?;
        let names: Vec<&String> = brokers.iter().map(|b| &b.master.broker_name).collect();
        table.push([json!(topic), json!(names), json!(messages), json!(groups)]);
        plan.push((
            topic,
            brokers.into_iter().map(|b| b.master.address).collect(),
        ));
    }
    context.output.list(&table);
    let what = format!("delete {} with all messages", topics.join(", "));
    if !context.output.confirmed(confirm, &what)? {
        return Ok(());
    }
    for (topic, masters) in plan {
        remove(session, topic, &masters).await?;
        context.output.say(&format!("deleted {topic}"));
    }
    Ok(())
}
