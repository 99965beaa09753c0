//! `ringmq message get|query|print|send`.

use serde_json::json;

use crate::admin::args::MessageVerb;
use crate::admin::output::Part;
use crate::admin::stored::{
    NewMessage, QueueReader, Stored, by_key, by_offset_id, queues_of, range_of, send,
};
use crate::admin::{AdminError, Context, Outcome};
use crate::base::names;
use crate::wire::properties::{PropertiesBuilder, name};

/// Most messages of one id: a producer's retry can store one twice.
const SAME_ID_MAX: u32 = 32;
/// Permission bit of a route: producers may write.
const PERM_WRITE: i32 = 2;

pub async fn run(context: &Context, verb: MessageVerb) -> Outcome {
    match verb {
        MessageVerb::Get { id, topic } => get(context, &id, topic.as_deref()).await,
        MessageVerb::Query {
            topic,
            key,
            between,
            max,
        } => {
            let range = range_of(&between, &context.session)?;
            let found = by_key(&context.session, &topic, &key, false, range, max).await?;
            for message in &found {
                context.output.item(&message.to_json(), || message.line());
            }
            match found.is_empty() {
                true => Err(AdminError::NotFound(format!(
                    "no message of {topic} has the key '{key}' in that time"
                ))),
                false => Ok(()),
            }
        }
        MessageVerb::Print {
            topic,
            queue,
            broker_name,
            from,
            between,
            count,
        } => {
            let (begin_ms, end_ms) = range_of(&between, &context.session)?;
            let queues = queues_of(&context.session, &topic).await?;
            let wanted: Vec<_> = queues
                .into_iter()
                .filter(|one| queue.is_none_or(|id| id == one.queue_id))
                .filter(|one| {
                    broker_name
                        .as_ref()
                        .is_none_or(|name| *name == one.master.broker_name)
                })
                .collect();
            if wanted.is_empty() {
                return Err(AdminError::NotFound(format!(
                    "the topic '{topic}' has no such queue"
                )));
            }
            for queue in wanted {
                let mut reader = match from {
                    Some(_) => QueueReader::from_offset(&context.session, queue, from).await?,
                    None => QueueReader::from_time(&context.session, queue, begin_ms).await?,
                };
                for _ in 0..count {
                    match reader.next(&context.session).await? {
                        Some(message) if message.store_timestamp <= end_ms => {
                            context.output.item(&message.to_json(), || message.line());
                        }
                        _ => break,
                    }
                }
            }
            Ok(())
        }
        MessageVerb::Send {
            topic,
            body,
            keys,
            tags,
            properties,
            broker_name,
            queue,
        } => {
            let mut built = PropertiesBuilder::new();
            for property in &properties {
                let Some((name, value)) = property.split_once('=') else {
                    return Err(AdminError::Usage(format!(
                        "the property '{property}' is not NAME=VALUE"
                    )));
                };
                built.append(name, value);
            }
            send_one(
                context,
                &topic,
                body,
                (keys, tags),
                built,
                (broker_name, queue),
            )
            .await
        }
    }
}

async fn get(context: &Context, id: &str, topic: Option<&str>) -> Outcome {
    let session = &context.session;
    let mut found: Vec<Stored> = match topic {
        Some(topic) => by_key(session, topic, id, true, (0, i64::MAX), SAME_ID_MAX).await?,
        None => Vec::new(),
    };
    // A unique key may have the form of an offset id, but names no broker then.
    if found.is_empty() {
        match by_offset_id(session, id).await {
            Ok(message) => found.extend(message),
            Err(error) if topic.is_none() => return Err(unique_key_hint(error)),
            Err(_) => {}
        }
    }
    if found.is_empty() {
        return Err(AdminError::NotFound(match topic {
            Some(topic) => format!("no message of {topic} has the id {id}"),
            None => {
                format!("no message is at {id}; if this is a unique key, add the topic with -t")
            }
        }));
    }
    for message in &found {
        if context.output.is_json() {
            context.output.item(&message.to_json(), String::new);
            continue;
        }
        let value = message.to_json();
        let mut parts: Vec<(&str, Part)> = Vec::new();
        let members = value.as_object().into_iter().flatten();
        for (name, value) in members.filter(|(name, _)| *name != "properties") {
            parts.push((name, Part::Value(value.clone())));
        }
        let mut properties = crate::admin::output::Table::new(&["property", "value"]);
        for (name, value) in message.property_map() {
            properties.push([name.into(), value]);
        }
        parts.push(("properties", Part::Table(properties)));
        context.output.parts(&parts);
    }
    Ok(())
}

fn unique_key_hint(error: AdminError) -> AdminError {
    match error {
        AdminError::Failed(reason) => AdminError::Failed(format!(
            "{reason}\nif this is a unique key, add the topic with -t"
        )),
        other => other,
    }
}

async fn send_one(
    context: &Context,
    topic: &str,
    body: String,
    (keys, tags): (Option<String>, Option<String>),
    mut properties: PropertiesBuilder,
    (broker_name, queue): (Option<String>, Option<i32>),
) -> Outcome {
    let session = &context.session;
    let route = match session.find_route(topic).await? {
        Some(route) => route,
        // Nobody made the topic yet: it is created where new topics go.
        None => session.route(names::AUTO_CREATE_TOPIC).await.map_err(|_| {
            AdminError::NotFound(format!(
                "there is no topic '{topic}', and no broker creates topics by itself: ringmq topic create {topic}"
            ))
        })?,
    };
    let brokers = crate::admin::session::brokers_of_route(&route);
    let broker = brokers
        .iter()
        .filter(|broker| broker.queues.perm & PERM_WRITE != 0 && broker.queues.write_queue_nums > 0)
        .find(|broker| {
            broker_name
                .as_ref()
                .is_none_or(|name| *name == broker.master.broker_name)
        })
        .ok_or_else(|| {
            AdminError::NotFound(format!("no such broker takes messages for '{topic}'"))
        })?;
    let unique_key = format!("{:016X}{:016X}", session.random_u64(), session.now_ms());
    properties.set(name::UNIQUE_KEY, &unique_key);
    properties.set(name::WAIT, "true");
    if let Some(keys) = keys {
        properties.set(name::KEYS, &keys);
    }
    if let Some(tags) = tags {
        properties.set(name::TAGS, &tags);
    }
    let sent = send(
        session,
        &broker.master.address,
        NewMessage {
            topic,
            queue_id: queue.unwrap_or(-1),
            flag: 0,
            sys_flag: 0,
            properties: properties.as_bytes(),
            body: body.into(),
            creates_topic: true,
        },
    )
    .await?;
    let value = json!({
        "brokerName": broker.master.broker_name,
        "queueId": sent.queue_id,
        "queueOffset": sent.queue_offset,
        "msgId": unique_key,
        "offsetMsgId": sent.offset_msg_id,
    });
    context.output.item(&value, || {
        format!(
            "stored by {} in queue {} at offset {}, id {unique_key}, offset id {}",
            broker.master.broker_name, sent.queue_id, sent.queue_offset, sent.offset_msg_id
        )
    });
    Ok(())
}
