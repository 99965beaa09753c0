//! How far a group is behind, from one reading of each broker, and from it the rows that `group` and `offset` show.
//!
//! A lag is never negative: an offset that was reset beyond the end, or committed while the end was read, counts as 0.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::admin::Outcome;
use crate::admin::output::Table;
use crate::admin::session::Session;
use crate::base::names;
use crate::wire::remoting::body::{
    ConsumeStats, MessageQueue, QueryConsumeTimeSpanBody, TimerMetrics,
};
use crate::wire::remoting::code::request;
use crate::wire::remoting::command::Outgoing;

/// One queue of a group.
#[derive(Clone, Debug)]
pub struct QueueLag {
    pub queue: MessageQueue,
    pub broker_offset: i64,
    pub consumer_offset: i64,
    /// The first offset that no POP consumer was given; the committed one without POP.
    pub pull_offset: i64,
    pub last_timestamp: i64,
    /// The first offset that is still there; `None` if that was not asked.
    pub min_offset: Option<i64>,
    /// For how long the oldest message that waits has been there, in milliseconds; `None` if that was not asked.
    pub delay_ms: Option<i64>,
}

impl QueueLag {
    pub fn lag(&self) -> i64 {
        (self.broker_offset - self.consumer_offset).max(0)
    }

    /// What POP consumers were given and have not acknowledged, of [`QueueLag::lag`].
    pub fn in_flight(&self) -> i64 {
        (self.pull_offset - self.consumer_offset).clamp(0, self.lag())
    }

    /// What retention has removed, of [`QueueLag::lag`]: nobody can consume it any more.
    pub fn removed(&self) -> Option<i64> {
        let gone = self.min_offset? - self.consumer_offset;
        Some(gone.clamp(0, self.lag()))
    }

    /// Whether this is the group's own retry topic.
    pub fn is_retry(&self) -> bool {
        names::is_retry_topic(&self.queue.topic)
    }
}

/// The queues of an answer of one broker.
pub fn of_stats(stats: ConsumeStats) -> impl Iterator<Item = QueueLag> {
    stats
        .offset_table
        .into_iter()
        .map(|(queue, offset)| QueueLag {
            queue,
            broker_offset: offset.broker_offset,
            consumer_offset: offset.consumer_offset,
            pull_offset: offset.pull_offset,
            last_timestamp: offset.last_timestamp,
            min_offset: None,
            delay_ms: None,
        })
}

/// The queues of a group on these brokers, of one topic or of all in which it has offsets.
pub async fn of_group(
    session: &Session,
    group: &str,
    topic: Option<&str>,
    brokers: impl IntoIterator<Item = String>,
) -> Outcome<Vec<QueueLag>> {
    let mut lags = Vec::new();
    for address in brokers {
        let stats = session.consume_stats(&address, group, topic).await?;
        let mut of_broker: Vec<QueueLag> = of_stats(stats).collect();
        let mut topics: Vec<String> = of_broker.iter().map(|l| l.queue.topic.clone()).collect();
        topics.dedup();
        for topic in topics {
            let delays = delays(session, &address, group, &topic).await;
            let begins = begins(session, &address, &topic).await;
            for lag in of_broker.iter_mut().filter(|l| l.queue.topic == topic) {
                lag.delay_ms = delays.get(&lag.queue).copied();
                lag.min_offset = begins.get(&lag.queue).copied();
            }
        }
        lags.extend(of_broker);
    }
    Ok(lags)
}

/// By queue: how long its next message has waited. A broker that cannot tell is no failure.
async fn delays(
    session: &Session,
    address: &str,
    group: &str,
    topic: &str,
) -> BTreeMap<MessageQueue, i64> {
    let ask = Outgoing::request(request::QUERY_CONSUME_TIME_SPAN)
        .field("topic", topic.to_owned())
        .field("group", group.to_owned());
    let spans: Outcome<QueryConsumeTimeSpanBody> = session.fetch(address, ask).await;
    match spans {
        Ok(spans) => spans
            .consume_time_span_set
            .into_iter()
            .map(|span| (span.message_queue, span.delay_time.max(0)))
            .collect(),
        Err(_) => BTreeMap::new(),
    }
}

/// By queue: the first offset that is still there. A broker that cannot tell is no failure.
async fn begins(session: &Session, address: &str, topic: &str) -> BTreeMap<MessageQueue, i64> {
    let stats = session.topic_stats(address, topic).await;
    let table = stats.map(|stats| stats.offset_table).unwrap_or_default();
    table
        .into_iter()
        .map(|(queue, offsets)| (queue, offsets.min_offset))
        .collect()
}

/// The lag of a group: what waits to be delivered the first time, and what waits to be delivered again.
pub fn sums(lags: &[QueueLag]) -> (i64, i64) {
    let sum = |retry: bool| {
        let of_kind = lags.iter().filter(|lag| lag.is_retry() == retry);
        of_kind.map(QueueLag::lag).sum()
    };
    (sum(false), sum(true))
}

/// How much of the lag POP consumers have in flight; the rest is ready.
pub fn in_flight(lags: &[QueueLag]) -> i64 {
    lags.iter().map(QueueLag::in_flight).sum()
}

/// How much of the lag is gone, as far as the brokers could tell.
pub fn removed(lags: &[QueueLag]) -> Option<i64> {
    let known = lags.iter().filter_map(QueueLag::removed);
    known.reduce(|sum, removed| sum + removed)
}

/// Messages of a topic that wait for their time on these brokers. A broker that cannot tell is no failure.
pub async fn delayed(
    session: &Session,
    topic: &str,
    brokers: impl IntoIterator<Item = String>,
) -> u64 {
    let mut count = 0;
    for address in brokers {
        let ask = Outgoing::request(request::GET_TIMER_METRICS);
        let metrics: Outcome<TimerMetrics> = session.fetch(&address, ask).await;
        let metric = metrics
            .ok()
            .and_then(|all| all.timing_count.get(topic).copied());
        count += metric.map_or(0, |metric| metric.count);
    }
    count
}

/// The longest that a message has waited, in seconds.
pub fn delay_seconds(lags: &[QueueLag]) -> Option<f64> {
    let longest = lags.iter().filter_map(|lag| lag.delay_ms).max()?;
    Some(longest as f64 / 1_000.0)
}

pub fn table(lags: &[QueueLag]) -> Table {
    let mut table = Table::new(&[
        "topic",
        "brokerName",
        "queueId",
        "brokerOffset",
        "consumerOffset",
        "lag",
        "inFlight",
        "removed",
        "delaySeconds",
        "lastConsumedTimestamp",
    ]);
    for lag in lags {
        let delay = lag.delay_ms.map(|ms| json!(ms as f64 / 1_000.0));
        table.push([
            json!(lag.queue.topic),
            json!(lag.queue.broker_name),
            json!(lag.queue.queue_id),
            json!(lag.broker_offset),
            json!(lag.consumer_offset),
            json!(lag.lag()),
            json!(lag.in_flight()),
            json!(lag.removed()),
            delay.unwrap_or(Value::Null),
            json!(lag.last_timestamp),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lag(topic: &str, broker_offset: i64, consumer_offset: i64) -> QueueLag {
        QueueLag {
            queue: MessageQueue {
                topic: topic.into(),
                ..MessageQueue::default()
            },
            broker_offset,
            consumer_offset,
            pull_offset: consumer_offset + 1,
            last_timestamp: 0,
            min_offset: Some(6),
            delay_ms: Some(broker_offset),
        }
    }

    #[test]
    fn a_lag_is_never_negative_and_retries_count_apart() {
        let lags = [lag("T", 5, 9), lag("T", 9, 5), lag("%RETRY%G", 7, 4)];
        assert_eq!(sums(&lags), (4, 3));
        assert_eq!(in_flight(&lags), 2);
        let gone: Vec<Option<i64>> = lags.iter().map(QueueLag::removed).collect();
        assert_eq!(gone, [Some(0), Some(1), Some(2)]);
        assert_eq!(removed(&lags), Some(3));
        assert_eq!(removed(&[]), None);
        assert_eq!(delay_seconds(&lags), Some(0.009));
        assert_eq!(delay_seconds(&[]), None);
    }
}
