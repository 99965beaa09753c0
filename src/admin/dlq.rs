//! `ringmq dlq list|show|resend|export`: messages that a group gave up.
//!
//! They lie in `%DLQ%group` and stay there whatever is done with them. A message that is sent again keeps its body, keys,
//! tags and its producer's id; what the broker added on its way to the dead letters is left off, so it counts as new.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::admin::args::{Confirm, DlqVerb, ResendTo, Select};
use crate::admin::output::{Progress, Table};
use crate::admin::session::Session;
use crate::admin::stored::{NewMessage, QueueReader, Sent, Stored, queues_of, range_of, send};
use crate::admin::{AdminError, Context, Outcome};
use crate::base::names;
use crate::wire::properties::{PropertiesBuilder, name};

/// Of the system flag: a compressed body and how it was compressed; nothing else is true of a message sent again.
const SYS_FLAG_KEPT: i32 = 0x1 | 0x700;
/// What brokers add to a message, or what was meant for its first delivery only.
const LEFT_OFF: [&str; 18] = [
    name::DELAY,
    name::REAL_TOPIC,
    name::REAL_QUEUE_ID,
    name::MIN_OFFSET,
    name::MAX_OFFSET,
    name::RECONSUME_TIME,
    name::MAX_RECONSUME_TIMES,
    name::CLUSTER,
    name::MSG_REGION,
    name::TRACE_ON,
    name::POP_CK,
    name::FIRST_POP_TIME,
    name::TIMER_DELAY_SEC,
    name::TIMER_DELAY_MS,
    name::TIMER_DELIVER_MS,
    name::TIMER_OUT_MS,
    name::TRANSACTION_PREPARED,
    name::WAIT,
];

pub async fn run(context: &Context, verb: DlqVerb) -> Outcome {
    match verb {
        DlqVerb::List => list(context).await,
        DlqVerb::Show { group, select } => show(context, &group, &select).await,
        DlqVerb::Resend {
            group,
            select,
            to,
            rate,
            confirm,
        } => resend(context, &group, &select, to, rate, confirm).await,
        DlqVerb::Export {
            group,
            select,
            file,
        } => export(context, &group, &select, &file).await,
    }
}

async fn list(context: &Context) -> Outcome {
    let session = &context.session;
    let mut table = Table::new(&["group", "topic", "messages", "lastUpdateTimestamp"]);
    for topic in session.topic_list().await?.topic_list {
        let Some(group) = names::group_of_dlq_topic(&topic) else {
            continue;
        };
        let (mut messages, mut last) = (0, 0);
        for broker in session.topic_brokers(&topic).await? {
            let stats = session.topic_stats(&broker.master.address, &topic).await?;
            for offsets in stats.offset_table.values() {
                messages += (offsets.max_offset - offsets.min_offset).max(0);
                last = last.max(offsets.last_update_timestamp);
            }
        }
        table.push([json!(group), json!(topic), json!(messages), json!(last)]);
    }
    context.output.list(&table);
    Ok(())
}

/// Reads the dead letters of a group that were selected.
struct Letters<'a> {
    session: &'a Session,
    select: &'a Select,
    range: (i64, i64),
    readers: Vec<QueueReader>,
    given: usize,
}

impl<'a> Letters<'a> {
    async fn open(session: &'a Session, group: &str, select: &'a Select) -> Outcome<Self> {
        let range = range_of(&select.between, session)?;
        let topic = names::dlq_topic(group);
        if session.find_route(&topic).await?.is_none() {
            return Err(AdminError::NotFound(format!(
                "the group '{group}' has no dead letters: there is no topic '{topic}'"
            )));
        }
        let mut readers = Vec::new();
        for queue in queues_of(session, &topic).await? {
            readers.push(QueueReader::from_time(session, queue, range.0).await?);
        }
        // The last one is read first, so that it can be dropped.
        readers.reverse();
        Ok(Self {
            session,
            select,
            range,
            readers,
            given: 0,
        })
    }

    fn left(&self) -> usize {
        let left: i64 = self.readers.iter().map(QueueReader::left).sum();
        usize::try_from(left).unwrap_or(0)
    }

    /// The next selected message, and the address of its broker.
    async fn next(&mut self) -> Outcome<Option<(Stored, String)>> {
        if self.select.max.is_some_and(|max| self.given >= max) {
            return Ok(None);
        }
        while let Some(reader) = self.readers.last_mut() {
            match reader.next(self.session).await? {
                Some(message) if message.store_timestamp > self.range.1 => {
                    self.readers.pop();
                }
                Some(message) => {
                    if message.store_timestamp >= self.range.0 && matches(self.select, &message) {
                        self.given += 1;
                        return Ok(Some((message, reader.queue().master.address.clone())));
                    }
                }
                None => {
                    self.readers.pop();
                }
            }
        }
        Ok(None)
    }
}

/// Whether a message has one of the ids and one of the keys, as far as there are any.
fn matches(select: &Select, message: &Stored) -> bool {
    let has_id = |id: &String| {
        id.eq_ignore_ascii_case(&message.offset_msg_id)
            || [
                name::UNIQUE_KEY,
                name::ORIGIN_MESSAGE_ID,
                name::DLQ_ORIGIN_MESSAGE_ID,
            ]
            .iter()
            .any(|property| message.property(property) == Some(id))
    };
    let has_key = |key: &String| message.keys().any(|of_message| of_message == key);
    (select.ids.is_empty() || select.ids.iter().any(has_id))
        && (select.keys.is_empty() || select.keys.iter().any(has_key))
}

/// The topic that a dead letter was sent to at first.
fn origin_topic(message: &Stored) -> Option<&str> {
    message
        .property(name::RETRY_TOPIC)
        .or_else(|| message.property(name::DLQ_ORIGIN_TOPIC))
}

async fn show(context: &Context, group: &str, select: &Select) -> Outcome {
    let mut letters = Letters::open(&context.session, group, select).await?;
    let mut table = Table::new(&[
        "offsetMsgId",
        "msgId",
        "originTopic",
        "keys",
        "tags",
        "reconsumeTimes",
        "storeTimestamp",
        "bodyBytes",
    ]);
    while let Some((message, _)) = letters.next().await? {
        table.push([
            json!(message.offset_msg_id),
            json!(message.msg_id()),
            json!(origin_topic(&message)),
            json!(message.property(name::KEYS)),
            json!(message.property(name::TAGS)),
            json!(message.reconsume_times),
            json!(message.store_timestamp),
            json!(message.unpacked().len()),
        ]);
    }
    context.output.list(&table);
    Ok(())
}

async fn resend(
    context: &Context,
    group: &str,
    select: &Select,
    to: ResendTo,
    rate: u32,
    confirm: Confirm,
) -> Outcome {
    let session = &context.session;
    let mut letters = Letters::open(session, group, select).await?;
    if !confirm.yes {
        let mut count = 0;
        while letters.next().await?.is_some() {
            count += 1;
        }
        let target = match to {
            ResendTo::Group => format!("to {group} alone"),
            ResendTo::Topic => "to the topics that they came from".to_owned(),
        };
        let what = format!("send {count} dead letters of {group} again, {target}");
        if !context.output.confirmed(confirm, &what)? {
            return Ok(());
        }
        letters = Letters::open(session, group, select).await?;
    }
    let progress = Progress::new(letters.left());
    let gap = Duration::from_secs(1) / rate;
    let (mut sent_count, mut failed_count) = (0, 0);
    while let Some((message, address)) = letters.next().await? {
        if sent_count + failed_count > 0 {
            session.sleep(gap).await;
        }
        let result = send_again(session, group, &message, to, &address).await;
        let origin = origin_topic(&message).unwrap_or_default();
        match &result {
            Ok(sent) => {
                sent_count += 1;
                let value = json!({
                    "offsetMsgId": message.offset_msg_id,
                    "msgId": message.msg_id(),
                    "originTopic": origin,
                    "result": "sent",
                    "newOffsetMsgId": sent.offset_msg_id,
                    "queueId": sent.queue_id,
                    "queueOffset": sent.queue_offset,
                });
                let id = message.msg_id();
                context
                    .output
                    .item(&value, || format!("{id} sent as {}", sent.offset_msg_id));
            }
            Err(error) => {
                failed_count += 1;
                let value = json!({
                    "offsetMsgId": message.offset_msg_id,
                    "msgId": message.msg_id(),
                    "originTopic": origin,
                    "result": "failed",
                    "reason": error.to_string(),
                });
                let id = message.msg_id();
                context
                    .output
                    .item(&value, || format!("{id} failed: {error}"));
            }
        }
        progress.at(sent_count + failed_count);
    }
    drop(progress);
    context
        .output
        .say(&format!("{sent_count} sent, {failed_count} failed"));
    match (failed_count, sent_count) {
        (0, 0) => Err(AdminError::NotFound(format!(
            "no dead letter of '{group}' was selected"
        ))),
        (0, _) => Ok(()),
        _ => Err(AdminError::Partly(format!(
            "{failed_count} of {} dead letters were not sent",
            failed_count + sent_count
        ))),
    }
}

/// The properties of a dead letter when it is sent again.
fn properties_again(message: &Stored, to: ResendTo) -> PropertiesBuilder {
    let mut properties = PropertiesBuilder::from_bytes(&message.properties, 64);
    for name in LEFT_OFF {
        properties.remove(name);
    }
    match to {
        // The client gives it to its listener under the topic that is named here.
        ResendTo::Group => {
            if let Some(topic) = origin_topic(message) {
                properties.set(name::RETRY_TOPIC, topic);
            }
        }
        ResendTo::Topic => {
            for name in [
                name::RETRY_TOPIC,
                name::ORIGIN_MESSAGE_ID,
                name::DLQ_ORIGIN_TOPIC,
                name::DLQ_ORIGIN_MESSAGE_ID,
            ] {
                properties.remove(name);
            }
        }
    }
    properties
}

async fn send_again(
    session: &Session,
    group: &str,
    message: &Stored,
    to: ResendTo,
    address: &str,
) -> Outcome<Sent> {
    let origin = origin_topic(message).ok_or_else(|| {
        AdminError::Failed("the message does not say which topic it came from".into())
    })?;
    let properties = properties_again(message, to);
    let retry_topic = names::retry_topic(group);
    let (topic, address) = match to {
        ResendTo::Group => (retry_topic.as_str(), address.to_owned()),
        ResendTo::Topic => {
            let brokers = session.topic_brokers(origin).await?;
            let same = brokers.iter().find(|b| b.master.address == address);
            let broker = same.or(brokers.first()).ok_or_else(|| {
                AdminError::NotFound(format!("no broker has the topic '{origin}'"))
            })?;
            (origin, broker.master.address.clone())
        }
    };
    let again = NewMessage {
        topic,
        queue_id: -1,
        flag: message.flag,
        sys_flag: message.sys_flag & SYS_FLAG_KEPT,
        properties: properties.as_bytes(),
        body: message.body.clone(),
        creates_topic: false,
    };
    send(session, &address, again).await
}

async fn export(context: &Context, group: &str, select: &Select, file: &Path) -> Outcome {
    let mut letters = Letters::open(&context.session, group, select).await?;
    let failed = |error: std::io::Error| {
        AdminError::Failed(format!("{} cannot be written: {error}", file.display()))
    };
    let is_stdout = file.as_os_str() == "-";
    let mut out: Box<dyn Write> = match is_stdout {
        true => Box::new(std::io::stdout()),
        false => {
            let created = OpenOptions::new().write(true).create_new(true).open(file);
            Box::new(std::io::BufWriter::new(created.map_err(failed)?))
        }
    };
    let progress = Progress::new(letters.left());
    let mut count = 0;
    while let Some((message, _)) = letters.next().await? {
        writeln!(out, "{}", message.to_json()).map_err(failed)?;
        count += 1;
        progress.at(count);
    }
    out.flush().map_err(failed)?;
    drop(progress);
    if !is_stdout {
        let value = json!({"file": file.display().to_string(), "messages": count});
        context.output.item(&value, || {
            format!("{count} dead letters written to {}", file.display())
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::properties;
    use bytes::Bytes;

    fn letter(properties: &'static str) -> Stored {
        Stored {
            broker_name: "b".into(),
            offset_msg_id: "7F00000100002A9F0000000000000001".into(),
            topic: "%DLQ%G".into(),
            queue_id: 0,
            queue_offset: 0,
            commit_log_offset: 1,
            store_size: 100,
            body_crc: 0,
            flag: 0,
            sys_flag: 0,
            born_timestamp: 0,
            born_host: String::new(),
            store_timestamp: 0,
            store_host: String::new(),
            reconsume_times: 16,
            prepared_transaction_offset: 0,
            body: Bytes::new(),
            properties: Bytes::from_static(properties.as_bytes()),
        }
    }

    const PROPERTIES: &str = "RETRY_TOPIC\u{1}T\u{2}KEYS\u{1}k1 k2\u{2}DELAY\u{1}3\u{2}UNIQ_KEY\u{1}U\u{2}ORIGIN_MESSAGE_ID\u{1}O\u{2}mine\u{1}x\u{2}";

    #[test]
    fn a_letter_is_selected_by_any_of_its_ids_and_by_whole_keys() {
        let letter = letter(PROPERTIES);
        let select = |ids: &[&str], keys: &[&str]| Select {
            ids: ids.iter().map(|id| (*id).to_owned()).collect(),
            keys: keys.iter().map(|key| (*key).to_owned()).collect(),
            ..Select::default()
        };
        for id in ["U", "O", "7f00000100002a9f0000000000000001"] {
            assert!(matches(&select(&[id], &[]), &letter), "{id}");
        }
        assert!(matches(&select(&[], &["k2"]), &letter));
        assert!(!matches(&select(&[], &["k"]), &letter));
        assert!(!matches(&select(&["U"], &["k3"]), &letter));
        assert!(matches(&select(&[], &[]), &letter));
    }

    #[test]
    fn a_letter_sent_again_keeps_what_its_producer_wrote_and_loses_what_brokers_added() {
        let letter = letter(PROPERTIES);
        let to_group = properties_again(&letter, ResendTo::Group);
        let get = |properties: &PropertiesBuilder, name: &str| {
            properties::get(properties.as_bytes(), name).map(str::to_owned)
        };
        assert_eq!(get(&to_group, "RETRY_TOPIC").as_deref(), Some("T"));
        assert_eq!(get(&to_group, "KEYS").as_deref(), Some("k1 k2"));
        assert_eq!(get(&to_group, "mine").as_deref(), Some("x"));
        assert_eq!(get(&to_group, "DELAY"), None);
        let to_topic = properties_again(&letter, ResendTo::Topic);
        assert_eq!(get(&to_topic, "RETRY_TOPIC"), None);
        assert_eq!(get(&to_topic, "ORIGIN_MESSAGE_ID"), None);
        assert_eq!(get(&to_topic, "UNIQ_KEY").as_deref(), Some("U"));
    }
}
