//! `ringmq offset show|reset|clone|skip`.
//!
//! A reset is shown queue by queue before it is done: what it repeats and what it skips. The broker of a queue does it
//! (222), whether the group is connected or not.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::admin::args::{Confirm, OffsetVerb, Where};
use crate::admin::output::Table;
use crate::admin::session::Session;
use crate::admin::stored::{Queue, queues_of, time_of};
use crate::admin::{AdminError, Context, Outcome, lag};
use crate::wire::remoting::body::{MessageQueue, ResetOffsetBody};
use crate::wire::remoting::code::request;
use crate::wire::remoting::command::Outgoing;

/// Where a group is to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// At the first message that was stored at this time or later, in milliseconds since 1970; 0 is the oldest one.
    Time(i64),
    End,
    /// At this offset of one queue.
    Offset(i64),
}

pub async fn run(context: &Context, verb: OffsetVerb) -> Outcome {
    match verb {
        OffsetVerb::Show { group, topic } => show(context, &group, topic.as_deref()).await,
        OffsetVerb::Reset {
            group,
            topic,
            to,
            queue,
            broker_name,
            offset,
            confirm,
        } => {
            let target = match (offset, to.as_deref()) {
                (Some(offset), _) => Target::Offset(offset),
                (None, Some("begin")) => Target::Time(0),
                (None, Some("end")) => Target::End,
                (None, Some(time)) => Target::Time(time_of(time, &context.session)?),
                (None, None) => {
                    return Err(AdminError::Usage("give --to or --offset".into()));
                }
            };
            let only = Only {
                queue,
                broker_name: broker_name.as_deref(),
            };
            reset(context, (&group, &topic), target, only, confirm).await
        }
        OffsetVerb::Skip {
            group,
            topic,
            confirm,
        } => {
            let all = Only::default();
            reset(context, (&group, &topic), Target::End, all, confirm).await
        }
        OffsetVerb::Clone {
            from,
            to,
            topic,
            confirm,
        } => clone(context, &from, &to, topic.as_deref(), confirm).await,
    }
}

async fn show(context: &Context, group: &str, topic: Option<&str>) -> Outcome {
    let session = &context.session;
    let masters = session.masters(&Where::default()).await?;
    let addresses = masters.into_iter().map(|master| master.address);
    let lags = lag::of_group(session, group, topic, addresses).await?;
    if lags.is_empty() {
        return Err(AdminError::NotFound(format!(
            "the group '{group}' has committed no offset{}",
            topic.map(|t| format!(" in {t}")).unwrap_or_default()
        )));
    }
    context.output.list(&lag::table(&lags));
    Ok(())
}

/// Which queues.
#[derive(Clone, Copy, Default)]
struct Only<'a> {
    queue: Option<i32>,
    broker_name: Option<&'a str>,
}

/// Sets offsets of a group on one broker: of one queue, or of all of a topic. The answer says what they are now.
pub async fn reset_on_broker(
    session: &Session,
    address: &str,
    (group, topic): (&str, &str),
    queue: Option<i32>,
    target: Target,
) -> Outcome<BTreeMap<MessageQueue, i64>> {
    let (timestamp, offset) = match target {
        Target::Time(ms) => (ms, None),
        Target::End => (-1, None),
        Target::Offset(offset) => (0, Some(offset)),
    };
    let ask = Outgoing::request(request::INVOKE_BROKER_TO_RESET_OFFSET)
        .field("topic", topic.to_owned())
        .field("group", group.to_owned())
        .field("timestamp", timestamp)
        .field("isForce", true)
        .field("queueId", queue.unwrap_or(-1))
        .field_if("offset", offset);
    let body: ResetOffsetBody = session.fetch(address, ask).await?;
    Ok(body.offset_table)
}

async fn reset(
    context: &Context,
    (group, topic): (&str, &str),
    target: Target,
    only: Only<'_>,
    confirm: Confirm,
) -> Outcome {
    let session = &context.session;
    let queues: Vec<Queue> = queues_of(session, topic)
        .await?
        .into_iter()
        .filter(|one| only.queue.is_none_or(|id| id == one.queue_id))
        .filter(|one| {
            only.broker_name
                .is_none_or(|name| name == one.master.broker_name)
        })
        .collect();
    if queues.is_empty() {
        return Err(AdminError::NotFound(format!(
            "the topic '{topic}' has no such queue"
        )));
    }
    if only.broker_name.is_none() && matches!(target, Target::Offset(_)) && queues.len() > 1 {
        return Err(AdminError::Usage(format!(
            "{} brokers have a queue {} of {topic}: choose one with --broker-name",
            queues.len(),
            only.queue.unwrap_or(0)
        )));
    }
    let mut table = Table::new(&[
        "brokerName",
        "queueId",
        "consumerOffset",
        "newOffset",
        "repeated",
        "skipped",
    ]);
    for queue in &queues {
        let now = queue.committed(session, group).await?;
        let new = match target {
            Target::Time(0) => queue.min_offset(session).await?,
            Target::Time(ms) => queue.offset_at(session, ms).await?,
            Target::End => queue.max_offset(session).await?,
            Target::Offset(offset) => offset,
        };
        table.push([
            json!(queue.master.broker_name),
            json!(queue.queue_id),
            json!(now),
            json!(new),
            now.map_or(Value::Null, |now| json!((now - new).max(0))),
            now.map_or(Value::Null, |now| json!((new - now).max(0))),
        ]);
    }
    context.output.list(&table);
    let what = format!("set these offsets of {group} in {topic}");
    if !context.output.confirmed(confirm, &what)? {
        return Ok(());
    }
    let mut by_broker: BTreeMap<String, Vec<i32>> = BTreeMap::new();
    for queue in &queues {
        by_broker
            .entry(queue.master.address.clone())
            .or_default()
            .push(queue.queue_id);
    }
    let mut count = 0;
    for address in by_broker.into_keys() {
        let done = reset_on_broker(session, &address, (group, topic), only.queue, target).await?;
        count += done.len();
    }
    context.output.say(&format!("{count} offsets set"));
    Ok(())
}

async fn clone(
    context: &Context,
    from: &str,
    to: &str,
    topic: Option<&str>,
    confirm: Confirm,
) -> Outcome {
    let session = &context.session;
    let masters = session.masters(&Where::default()).await?;
    let mut table = Table::new(&[
        "topic",
        "brokerName",
        "queueId",
        "consumerOffset",
        "newOffset",
    ]);
    for master in &masters {
        let source = session.consume_stats(&master.address, from, topic).await?;
        for (queue, offset) in source.offset_table {
            // A retry topic belongs to one group: its offsets mean nothing to another.
            if crate::base::names::is_retry_topic(&queue.topic) {
                continue;
            }
            let now = Queue {
                master: master.clone(),
                topic: queue.topic.clone(),
                queue_id: queue.queue_id,
            }
            .committed(session, to)
            .await?;
            table.push([
                json!(queue.topic),
                json!(queue.broker_name),
                json!(queue.queue_id),
                json!(now),
                json!(offset.consumer_offset),
            ]);
        }
    }
    if table.is_empty() {
        return Err(AdminError::NotFound(format!(
            "the group '{from}' has no offsets to copy"
        )));
    }
    context.output.list(&table);
    if !context
        .output
        .confirmed(confirm, &format!("give {to} these offsets of {from}"))?
    {
        return Ok(());
    }
    for master in &masters {
        clone_on_broker(session, &master.address, from, to, topic).await?;
    }
    context.output.say("offsets copied");
    Ok(())
}

/// Copies offsets on one broker (314).
pub async fn clone_on_broker(
    session: &Session,
    address: &str,
    from: &str,
    to: &str,
    topic: Option<&str>,
) -> Outcome {
    let ask = Outgoing::request(request::CLONE_GROUP_OFFSET)
        .field("srcGroup", from.to_owned())
        .field("destGroup", to.to_owned())
        .field_if("topic", topic.map(str::to_owned))
        .field("offline", true);
    session.call(address, ask, Bytes::new()).await.map(drop)
}
