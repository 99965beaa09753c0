//! queryMsgById, queryMsgByKey, queryMsgByUniqueKey, queryMsgByOffset, sendMessage, consumeMessage, printMsg,
//! printMsgByQueue.
//!
//! The original writes bodies to files below /tmp, where anyone may have put a link; here the body is printed.

use crate::admin::mqadmin::{Old, text};
use crate::admin::output::line;
use crate::admin::session::TopicBroker;
use crate::admin::stored::{
    NewMessage, Queue, QueueReader, Stored, by_key, by_offset_id, queues_of, send, time_of,
};
use crate::admin::{AdminError, Outcome};
use crate::base::names::AUTO_CREATE_TOPIC;
use crate::wire::properties::{PropertiesBuilder, name};

/// Most messages with one unique key.
const SAME_ID_MAX: u32 = 32;
/// Messages that consumeMessage prints if it is not told.
const CONSUME_COUNT: i64 = 128;
/// Permission bit of a route: producers may write.
const PERM_WRITE: i32 = 2;

/// Text of a body; what is no text is shown as far as it is.
fn body_text(message: &Stored) -> String {
    String::from_utf8_lossy(&message.unpacked()).into_owned()
}

/// The properties as Java prints a map.
fn properties_text(message: &Stored) -> String {
    let pairs: Vec<String> = message
        .property_map()
        .iter()
        .map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default()))
        .collect();
    format!("{{{}}}", pairs.join(", "))
}

/// `MessageExt.toString`, without the body's bytes.
fn message_text(message: &Stored) -> String {
    format!(
        "MessageExt [brokerName={}, queueId={}, storeSize={}, queueOffset={}, sysFlag={}, bornTimestamp={}, bornHost=/{}, storeTimestamp={}, storeHost=/{}, msgId={}, commitLogOffset={}, bodyCRC={}, reconsumeTimes={}, preparedTransactionOffset={}, toString()=Message{{topic='{}', flag={}, properties={}}}]",
        message.broker_name,
        message.queue_id,
        message.store_size,
        message.queue_offset,
        message.sys_flag,
        message.born_timestamp,
        message.born_host,
        message.store_timestamp,
        message.store_host,
        message.offset_msg_id,
        message.commit_log_offset,
        message.body_crc,
        message.reconsume_times,
        message.prepared_transaction_offset,
        message.topic,
        message.flag,
        properties_text(message)
    )
}

fn print_line(message: &Stored, with_body: bool) {
    let body = match with_body {
        true => body_text(message),
        false => "NOT PRINT BODY".to_owned(),
    };
    line(&format!(
        "MSGID: {} {} BODY: {body}",
        message.msg_id(),
        message_text(message)
    ));
}

impl Old {
    async fn print_message(&self, message: &Stored, with_id: bool) -> Outcome {
        let row = |name: &str, value: &str| line(&format!("{name:<20} {value}"));
        let property = |name: &str| message.property(name).unwrap_or("null");
        if with_id {
            row("OffsetID:", &message.offset_msg_id);
        }
        row("Topic:", &message.topic);
        row("Tags:", &format!("[{}]", property(name::TAGS)));
        row("Keys:", &format!("[{}]", property(name::KEYS)));
        row("Queue ID:", &message.queue_id.to_string());
        row("Queue Offset:", &message.queue_offset.to_string());
        row("CommitLog Offset:", &message.commit_log_offset.to_string());
        row("Reconsume Times:", &message.reconsume_times.to_string());
        row("Born Timestamp:", &text::comma_time(message.born_timestamp));
        row(
            "Store Timestamp:",
            &text::comma_time(message.store_timestamp),
        );
        row("Born Host:", &message.born_host);
        row("Store Host:", &message.store_host);
        row("System Flag:", &message.sys_flag.to_string());
        row("Properties:", &properties_text(message));
        row("Message Body:", &body_text(message));
        line("");
        let tracks = self.tracks(message).await?;
        if tracks.is_empty() {
            line("");
            line("WARN: No Consumer");
        }
        for track in tracks {
            line(&track);
        }
        Ok(())
    }

    /// Several ids may stand between commas.
    pub(super) async fn query_by_id(&self) -> Outcome {
        for id in self.need('i')?.split(',').map(str::trim) {
            let mut found = match by_offset_id(&self.session, id).await {
                Ok(message) => message,
                // What the client gave as the id of a message is its unique key.
                Err(_) if self.flags.has('t') => None,
                Err(error) => return Err(error),
            };
            if let (None, Some(topic)) = (&found, self.flags.get('t')) {
                let range = (0, i64::MAX);
                let by_unique = by_key(&self.session, topic, id, true, range, 1).await?;
                found = by_unique.into_iter().next();
            }
            match found {
                Some(message) => self.print_message(&message, true).await?,
                None => {
                    return Err(AdminError::NotFound(format!("no message has the id {id}")));
                }
            }
        }
        Ok(())
    }

    pub(super) async fn query_by_key(&self) -> Outcome {
        let range = (
            self.number('b')?.unwrap_or(0),
            self.number('e')?.unwrap_or(i64::MAX),
        );
        let max = self.number('m')?.unwrap_or(64);
        let (topic, key) = (self.need('t')?, self.need('k')?);
        let found = by_key(&self.session, topic, key, false, range, max).await?;
        line(&format!(
            "{:<50} {:>4} {:>40}",
            "#Message ID", "#QID", "#Offset"
        ));
        for message in &found {
            line(&format!(
                "{:<50} {:>4} {:>40}",
                message.msg_id(),
                message.queue_id,
                message.queue_offset
            ));
        }
        match found.is_empty() {
            true => Err(AdminError::NotFound(format!(
                "no message of {topic} has the key '{key}'"
            ))),
            false => Ok(()),
        }
    }

    pub(super) async fn query_by_unique_key(&self) -> Outcome {
        let (topic, id) = (self.need('t')?, self.need('i')?);
        let range = (0, i64::MAX);
        let mut found = by_key(&self.session, topic, id, true, range, SAME_ID_MAX).await?;
        // The first one that was stored.
        found.reverse();
        if !self.flags.has('a') {
            found.truncate(1);
        }
        for message in &found {
            self.print_message(message, false).await?;
        }
        match found.is_empty() {
            true => Err(AdminError::NotFound(format!(
                "no message of {topic} has the id {id}"
            ))),
            false => Ok(()),
        }
    }

    async fn queue(&self, broker_name: &str, queue_id: i32) -> Outcome<Queue> {
        let topic = self.need('t')?;
        let queues = queues_of(&self.session, topic).await?;
        queues
            .into_iter()
            .find(|queue| queue.master.broker_name == broker_name && queue.queue_id == queue_id)
            .ok_or_else(|| {
                AdminError::NotFound(format!(
                    "the topic '{topic}' has no queue {queue_id} on a broker '{broker_name}'"
                ))
            })
    }

    pub(super) async fn query_by_offset(&self) -> Outcome {
        let queue_id: i32 = self.number('i')?.unwrap_or(0);
        let offset: i64 = self.number('o')?.unwrap_or(0);
        let queue = self.queue(self.need('b')?, queue_id).await?;
        let mut reader = QueueReader::from_offset(&self.session, queue, Some(offset)).await?;
        match reader.next(&self.session).await? {
            Some(message) if message.queue_offset == offset => {
                self.print_message(&message, true).await
            }
            _ => Err(AdminError::NotFound(format!(
                "queue {queue_id} has no message at offset {offset}"
            ))),
        }
    }

    pub(super) async fn send_message(&self) -> Outcome {
        let (topic, body) = (self.need('t')?, self.need('p')?);
        let queue_id: Option<i32> = self.number('i')?;
        if queue_id.is_some() && !self.flags.has('b') {
            return Err(AdminError::Usage(
                "Broker name must be set if the queue is chosen!".into(),
            ));
        }
        let route = match self.session.find_route(topic).await? {
            Some(route) => route,
            None => self.session.route(AUTO_CREATE_TOPIC).await?,
        };
        let brokers = crate::admin::session::brokers_of_route(&route);
        let fits = |broker: &&TopicBroker| {
            let named = self.flags.get('b');
            named.is_none_or(|name| name == broker.master.broker_name)
                && (named.is_some() || broker.queues.perm & PERM_WRITE != 0)
        };
        let broker = brokers
            .iter()
            .find(fits)
            .ok_or_else(|| AdminError::NotFound(format!("no such broker has '{topic}'")))?;
        let session = &self.session;
        let unique_key = format!("{:016X}{:016X}", session.random_u64(), session.now_ms());
        let mut properties = PropertiesBuilder::new();
        properties
            .append(name::UNIQUE_KEY, &unique_key)
            .append(name::WAIT, "true");
        if let Some(keys) = self.flags.get('k') {
            properties.set(name::KEYS, keys);
        }
        if let Some(tags) = self.flags.get('c') {
            properties.set(name::TAGS, tags);
        }
        let message = NewMessage {
            topic,
            queue_id: queue_id.unwrap_or(-1),
            flag: 0,
            sys_flag: 0,
            properties: properties.as_bytes(),
            body: body.to_owned().into(),
            creates_topic: true,
        };
        let sent = send(session, &broker.master.address, message).await?;
        line(&format!(
            "{:<32}  {:<4}  {:<20}    {}",
            "#Broker Name", "#QID", "#Send Result", "#MsgId"
        ));
        line(&format!(
            "{:<32}  {:<4}  {:<20}    {unique_key}",
            broker.master.broker_name, sent.queue_id, "SEND_OK"
        ));
        Ok(())
    }

    /// The times of `-s` or `-b` and of `-e`.
    fn times(&self, begin: char, end: char) -> Outcome<(i64, i64)> {
        let time = |flag, default| match self.flags.get(flag) {
            Some(text) => time_of(text, &self.session),
            None => Ok(default),
        };
        Ok((time(begin, 0)?, time(end, i64::MAX)?))
    }

    pub(super) async fn consume_message(&self) -> Outcome {
        let topic = self.need('t')?;
        let (begin_ms, end_ms) = self.times('s', 'e')?;
        let mut left: i64 = self.number('c')?.unwrap_or(CONSUME_COUNT);
        if left <= 0 {
            return Err(AdminError::Usage(
                "Please input a positive messageNumber!".into(),
            ));
        }
        let queue_id: Option<i32> = self.number('i')?;
        let offset: Option<i64> = self.number('o')?;
        if queue_id.is_some() && !self.flags.has('b') {
            return Err(AdminError::Usage(
                "Please set the brokerName before queueId!".into(),
            ));
        }
        if offset.is_some() && queue_id.is_none() {
            return Err(AdminError::Usage(
                "Please set queueId before offset!".into(),
            ));
        }
        let broker = self.flags.get('b');
        for queue in queues_of(&self.session, topic).await? {
            let wanted = queue_id.is_none_or(|id| id == queue.queue_id)
                && broker.is_none_or(|name| name == queue.master.broker_name);
            if !wanted {
                continue;
            }
            let mut reader = match offset {
                Some(_) => QueueReader::from_offset(&self.session, queue, offset).await?,
                None => QueueReader::from_time(&self.session, queue, begin_ms).await?,
            };
            let mut first = true;
            while left > 0
                && let Some(message) = reader.next(&self.session).await?
                && message.store_timestamp <= end_ms
            {
                if std::mem::take(&mut first) {
                    line("Consume ok");
                }
                print_line(&message, true);
                left -= 1;
            }
        }
        Ok(())
    }

    pub(super) async fn print_messages(&self) -> Outcome {
        let (begin_ms, end_ms) = self.times('b', 'e')?;
        let with_body = self.boolean('d').unwrap_or(true);
        for queue in queues_of(&self.session, self.need('t')?).await? {
            let shown = self.queue_text(&queue);
            let (min, max) = (
                queue.min_offset(&self.session).await?,
                queue.max_offset(&self.session).await?,
            );
            line(&format!("minOffset={min}, maxOffset={max}, {shown}"));
            let mut reader = QueueReader::from_time(&self.session, queue, begin_ms).await?;
            while let Some(message) = reader.next(&self.session).await?
                && message.store_timestamp <= end_ms
            {
                print_line(&message, with_body);
            }
            line(&"-".repeat(56));
        }
        Ok(())
    }

    /// `MessageQueue.toString`.
    fn queue_text(&self, queue: &Queue) -> String {
        format!(
            "MessageQueue [topic={}, brokerName={}, queueId={}]",
            queue.topic, queue.master.broker_name, queue.queue_id
        )
    }

    pub(super) async fn print_queue(&self) -> Outcome {
        let (begin_ms, end_ms) = self.times('b', 'e')?;
        let queue = self
            .queue(self.need('a')?, self.number('i')?.unwrap_or(0))
            .await?;
        // As the original: nothing is printed without -p true.
        if self.boolean('p') != Some(true) {
            return Ok(());
        }
        let with_body = self.boolean('d').unwrap_or(false);
        let mut reader = QueueReader::from_time(&self.session, queue, begin_ms).await?;
        while let Some(message) = reader.next(&self.session).await?
            && message.store_timestamp <= end_ms
        {
            print_line(&message, with_body);
        }
        Ok(())
    }
}
