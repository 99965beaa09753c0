//! Open transactions for people: a request of our own (`RINGMQ_TRANSACTIONS`), for `ringmq tx`.
//!
//! Without `commitLogOffset` the answer lists open transactions, each log's oldest first, at most `limit` of them; with it,
//! one with all properties of its half message. The body is a JSON object.

use serde_json::{Value, json};

use crate::base::offset::{LogId, PhysicalOffset, Position};
use crate::broker::dispatch::{Answer, Broker, Outcome};
use crate::broker::error::BrokerError;
use crate::shard::message::{Half, HalfEnd, ShardReply, ShardRequest};
use crate::wire::message_id::MessageId;
use crate::wire::properties::{self, name};
use crate::wire::record::RecordView;
use crate::wire::remoting::command::{Command, Outgoing};

/// Transactions of one answer, if the request does not say.
const LIMIT: i32 = 100;
/// The same, whatever it says.
const LIMIT_MAX: i32 = 1_000;

fn shown(record: &RecordView<'_>, log: LogId, origin: u64, half: Option<Half>) -> Value {
    let offset = PhysicalOffset::new(log, Position(origin));
    let id = MessageId {
        host: record.store_host(),
        offset,
    };
    let text = |name| properties::get(record.properties(), name);
    json!({
        "offsetMsgId": id.encode(),
        "commitLogOffset": offset.0,
        "topic": record.topic(),
        "queueId": record.queue_id(),
        "producerGroup": text(name::PRODUCER_GROUP),
        "uniqueKey": text(name::UNIQUE_KEY),
        "bornTimestamp": record.born_timestamp(),
        "bornHost": record.born_host().to_string(),
        "bodyBytes": record.body().len(),
        "checks": half.map(|half| half.checks),
        "nextCheckTimestamp": half.map(|half| half.check_at_ms),
    })
}

impl Broker {
    pub(super) async fn transactions(self, command: Command) -> Outcome {
        match command.int("commitLogOffset")? {
            Some(offset) => self.show_transaction(offset).await,
            None => {
                let limit = command.int32("limit")?.unwrap_or(LIMIT);
                self.list_transactions(limit.clamp(1, LIMIT_MAX) as usize)
                    .await
            }
        }
    }

    async fn list_transactions(&self, limit: usize) -> Outcome {
        let (mut open, mut halves) = (0, Vec::new());
        for core in 0..self.shard.count() {
            match self.ask(core, ShardRequest::OpenHalves { limit }).await? {
                ShardReply::OpenHalves { count, oldest } => {
                    open += count;
                    halves.extend(oldest);
                }
                other => return Err(BrokerError::unexpected(&other)),
            }
        }
        let mut transactions = Vec::new();
        for (log, origin, half) in halves.into_iter().take(limit) {
            // Ended meanwhile, or unreadable: it is left out.
            if let Ok(Some(record)) = self.half_record(log, origin).await
                && let Ok(record) = RecordView::parse(&record)
            {
                transactions.push(shown(&record, log, origin, Some(half)));
            }
        }
        Answer::json_with(
            Outgoing::success(),
            &json!({"open": open, "transactions": transactions}),
        )
    }

    async fn show_transaction(&self, offset: i64) -> Outcome {
        let not_open = |how: &str| {
            BrokerError::NotFound(format!(
                "no transaction is open at the offset {offset}{how}"
            ))
        };
        let (log, position) = PhysicalOffset(offset).split().ok_or_else(|| not_open(""))?;
        let Some(record) = self.half_record(log, position.0).await? else {
            let how = match self.end_half(log, position.0, HalfEnd::Ask).await? {
                Some(outcome) => format!(": it ended as {outcome:?}"),
                None => String::new(),
            };
            return Err(not_open(&how));
        };
        let record = RecordView::parse(&record)
            .map_err(|error| BrokerError::System(format!("the stored half message: {error}")))?;
        let mut value = shown(&record, log, position.0, None);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        value["properties"] = properties::iter(record.properties())
            .map(|(name, value)| (text(name), Value::from(text(value))))
            .collect::<serde_json::Map<_, _>>()
            .into();
        Answer::json(&value)
    }

    /// The message record of an open half.
    async fn half_record(
        &self,
        log: LogId,
        origin: u64,
    ) -> Result<Option<bytes::Bytes>, BrokerError> {
        let core = self.shard.shard_of_log(log);
        match self
            .ask(core, ShardRequest::ReadHalf { log, origin })
            .await?
        {
            ShardReply::Record(record) => Ok(record.map(|record| record.into_bytes())),
            other => Err(BrokerError::unexpected(&other)),
        }
    }
}
