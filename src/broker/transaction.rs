//! Transactions: END_TRANSACTION (37), and asking producers how theirs ended (CHECK_TRANSACTION_STATE, 39), once more if
//! a tool wants it (323).
//!
//! A half message waits in the log of its queue, and the shard that owns the log ends its transaction once, whoever asks and
//! however often. Here is what that means to clients: which end is taken, what the committed message looks like, whom to
//! ask, and when to give up. Producers know a half by where it was stored first, which stays when the half is moved.
//!
//! Source: `EndTransactionProcessor`, `TransactionalMessageServiceImpl`, `AbstractTransactionalMessageCheckListener`.

use std::sync::Arc;

use bytes::Bytes;

use crate::base::names;
use crate::base::offset::{LogId, PhysicalOffset, Position};
use crate::broker::dispatch::{Answer, Broker, Outcome};
use crate::broker::error::BrokerError;
use crate::broker::send::delayed_properties;
use crate::broker::send_plan::check_properties;
use crate::broker::sent_properties::Sent;
use crate::broker::statistics::Counted;
use crate::broker::topics::{self, PERM_READ, PERM_WRITE};
use crate::shard::ShardHandle;
use crate::shard::message::{
    HalfEnd, NewHalf, NewMessage, Outcome as TransactionOutcome, Refusal, ShardReply, ShardRequest,
};
use crate::shard::transactions::{CheckRules, HalfDue};
use crate::wire::message_id::MessageId;
use crate::wire::properties::{self, PropertiesBuilder, name};
use crate::wire::record::{
    RecordFields, RecordView, SYS_FLAG_BORN_HOST_V6, SYS_FLAG_STORE_HOST_V6, SYS_FLAG_TRANSACTION,
    SYS_FLAG_TRANSACTION_COMMIT, SYS_FLAG_TRANSACTION_ROLLBACK,
};
use crate::wire::remoting::code::{request, response};
use crate::wire::remoting::command::{Command, Encoding, Outgoing};

/// Room for the properties that a half gets while its transaction is open or when it is committed, besides its topic.
pub(super) const SPARE_BYTES: usize = 256;

/// What the broker's configuration says of transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransactionRules {
    /// `rejectTransactionMessage`.
    pub reject: bool,
    /// `transactionTimeOut`: age at which an open transaction is checked first, in milliseconds.
    pub timeout_ms: u64,
    /// `transactionCheckInterval`: between two checks, in milliseconds.
    pub check_period_ms: u64,
    /// `transactionCheckMax`: checks after which a transaction is given up.
    pub checks_max: u32,
}

impl TransactionRules {
    /// RocketMQ's defaults.
    pub fn rocketmq() -> Self {
        Self {
            reject: false,
            timeout_ms: 6_000,
            check_period_ms: 30_000,
            checks_max: 15,
        }
    }

    /// How long the producer of a half with these properties is not asked, in milliseconds. Source: `getImmunityTime`.
    pub fn immunity_ms(&self, half: &[u8]) -> u64 {
        match properties::int(half, name::CHECK_IMMUNITY_TIME) {
            None | Some(-1) => self.timeout_ms,
            Some(seconds) => u64::try_from(seconds).unwrap_or(0).saturating_mul(1_000),
        }
    }
}

/// Header of END_TRANSACTION.
#[derive(Debug, PartialEq)]
struct End {
    group: String,
    outcome: TransactionOutcome,
    log: LogId,
    origin: u64,
    /// As the producer gave them.
    commit_log_offset: i64,
    queue_offset: i64,
    from_check: bool,
}

impl End {
    /// None if the producer does not know itself how its transaction ended.
    fn read(command: &Command) -> Result<Option<Self>, BrokerError> {
        let group = command.required_text("producerGroup")?.into_owned();
        let queue_offset = command.required_int("tranStateTableOffset")?;
        let commit_log_offset = command.required_int("commitLogOffset")?;
        let outcome = match command.required_i32("commitOrRollback")? {
            0 => return Ok(None),
            SYS_FLAG_TRANSACTION_COMMIT => TransactionOutcome::Committed,
            SYS_FLAG_TRANSACTION_ROLLBACK => TransactionOutcome::RolledBack,
            other => {
                return Err(BrokerError::System(format!(
                    "the header field 'commitOrRollback' is {other}; {SYS_FLAG_TRANSACTION_COMMIT} commits, {SYS_FLAG_TRANSACTION_ROLLBACK} rolls back, 0 leaves it open"
                )));
            }
        };
        let (log, position) = PhysicalOffset(commit_log_offset)
            .split()
            .ok_or_else(|| not_found(commit_log_offset))?;
        Ok(Some(Self {
            group,
            outcome,
            log,
            origin: position.0,
            commit_log_offset,
            queue_offset,
            from_check: command.flag("fromTransactionCheck"),
        }))
    }

    /// Whether this may end the transaction of that half. Source: `checkPrepareMessage`, `rejectCommitOrRollback`.
    fn check(
        &self,
        half: &RecordView<'_>,
        rules: &TransactionRules,
        now_ms: u64,
    ) -> Result<(), BrokerError> {
        let group = properties::get(half.properties(), name::PRODUCER_GROUP).unwrap_or_default();
        if group != self.group {
            return Err(BrokerError::System(format!(
                "The producer group wrong: the half message at {} is of the group '{group}', not '{}'",
                self.commit_log_offset, self.group
            )));
        }
        if half.queue_offset() != self.queue_offset {
            return Err(BrokerError::System(format!(
                "The transaction state table offset wrong: the half message at {} has {}, not {}",
                self.commit_log_offset,
                half.queue_offset(),
                self.queue_offset
            )));
        }
        let own_immunity = properties::contains(half.properties(), name::CHECK_IMMUNITY_TIME);
        let age_ms = (now_ms as i64).saturating_sub(half.born_timestamp());
        let immunity_ms = rules.immunity_ms(half.properties());
        if own_immunity && !self.from_check && age_ms > immunity_ms as i64 {
            return Err(BrokerError::IllegalOperation(format!(
                "the half message at {} is {age_ms} ms old, more than its {} of {immunity_ms} ms: only the answer to a check ends it",
                self.commit_log_offset,
                name::CHECK_IMMUNITY_TIME
            )));
        }
        Ok(())
    }
}

fn not_found(commit_log_offset: i64) -> BrokerError {
    BrokerError::System(format!(
        "Find prepared transaction message failed: no transaction is open at {commit_log_offset}. It was ended or given up before, or its topic was deleted"
    ))
}

fn ended_otherwise(commit_log_offset: i64, outcome: TransactionOutcome) -> BrokerError {
    let how = match outcome {
        TransactionOutcome::Committed => "was committed before",
        TransactionOutcome::RolledBack => "was rolled back before",
        TransactionOutcome::GivenUp => {
            "was given up after too many checks; its message is in TRANS_CHECK_MAX_TIME_TOPIC"
        }
    };
    BrokerError::System(format!("the transaction at {commit_log_offset} {how}"))
}

/// A half with the message flags of a message that is in no transaction (any more).
fn plain_sys_flag(half: &RecordView<'_>) -> i32 {
    half.sys_flag() & !(SYS_FLAG_TRANSACTION | SYS_FLAG_BORN_HOST_V6 | SYS_FLAG_STORE_HOST_V6)
}

/// The properties that a producer sees of its half when it is asked: how often that happened, too.
fn checked_properties(half: &RecordView<'_>, checks: u32) -> Bytes {
    let mut asked = PropertiesBuilder::from_bytes(half.properties(), SPARE_BYTES);
    asked.set(name::TRANSACTION_CHECK_TIMES, &checks.to_string());
    asked.finish()
}

/// CHECK_TRANSACTION_STATE for one half: a whole frame. `checks` counts this one.
fn check_frame(half: &RecordView<'_>, due: &HalfDue, checks: u32, broker: &str) -> Bytes {
    let offset = PhysicalOffset::new(due.log, Position(due.origin));
    let key = properties::get(half.properties(), name::UNIQUE_KEY).map(str::to_owned);
    let id = MessageId {
        host: half.store_host(),
        offset,
    };
    let properties = checked_properties(half, checks);
    let fields = RecordFields {
        properties: &properties,
        physical_offset: offset.0,
        ..half.fields()
    };
    let mut body = vec![0; fields.encoded_len()];
    fields.encode_into(&mut body);
    Outgoing::oneway(request::CHECK_TRANSACTION_STATE)
        .field("topic", half.topic().to_owned())
        .field("tranStateTableOffset", half.queue_offset())
        .field("commitLogOffset", offset.0)
        .field("offsetMsgId", id.encode())
        .field_if("msgId", key.clone())
        .field_if("transactionId", key)
        .field("bname", broker.to_owned())
        .frame(Encoding::Json, &body)
}

impl Broker {
    /// 37. An end that the producer does not know itself is answered and changes nothing.
    pub(super) async fn end_transaction(self, command: Command) -> Outcome {
        let Some(end) = End::read(&command)? else {
            return Answer::done();
        };
        if self.options.is_slave() {
            let remark = Refusal::Replica.to_string();
            return Ok(Outgoing::error(response::SLAVE_NOT_AVAILABLE, remark).into());
        }
        let outcome = self.end(&end).await;
        if let Err(error) = &outcome
            && command.is_oneway()
        {
            // Nobody reads the answer. The producer is asked later.
            tracing::debug!(group = end.group, offset = end.commit_log_offset, %error, "the end of a transaction was not taken");
        }
        outcome
    }

    async fn end(&self, end: &End) -> Outcome {
        let core = self.shard.shard_of_log(end.log);
        let request = ShardRequest::ReadHalf {
            log: end.log,
            origin: end.origin,
        };
        let mut ended = None;
        let how = match self.ask(core, request).await? {
            ShardReply::Record(Some(record)) => {
                let record = record.into_bytes();
                let how = self.half_end(end, &record)?;
                let half = parse(&record)?;
                ended = Some((Arc::<str>::from(half.topic()), half.body().len() as u64));
                how
            }
            ShardReply::Record(None) => HalfEnd::Ask,
            other => return Err(BrokerError::unexpected(&other)),
        };
        match self.end_half(end.log, end.origin, how).await? {
            Some(outcome) if outcome == end.outcome => {
                if let Some((topic, bytes)) = ended {
                    self.count_end(outcome, &topic, bytes);
                }
                Answer::done()
            }
            Some(outcome) => Err(ended_otherwise(end.commit_log_offset, outcome)),
            None => Err(not_found(end.commit_log_offset)),
        }
    }

    /// A committed message counts for its topic only now; as a half it counted for the topic of the halves.
    fn count_end(&self, outcome: TransactionOutcome, topic: &Arc<str>, bytes: u64) {
        let now_ms = self.shard.now_ms();
        match outcome {
            TransactionOutcome::Committed => {
                self.count(Counted::Committed, topic, "", now_ms, (1, bytes));
                self.count(Counted::In, topic, "transaction", now_ms, (1, bytes));
            }
            TransactionOutcome::RolledBack => {
                self.count(Counted::RolledBack, topic, "", now_ms, (1, bytes));
            }
            TransactionOutcome::GivenUp => {}
        }
    }

    /// Ends a transaction at the core that runs its log; how it ended, if that is known.
    pub(super) async fn end_half(
        &self,
        log: LogId,
        origin: u64,
        how: HalfEnd,
    ) -> Result<Option<TransactionOutcome>, BrokerError> {
        let core = self.shard.shard_of_log(log);
        let request = ShardRequest::EndHalf {
            log,
            origin,
            end: Box::new(how),
        };
        match self.ask(core, request).await? {
            ShardReply::HalfEnded(outcome) => Ok(outcome),
            other => Err(BrokerError::unexpected(&other)),
        }
    }

    /// What the shard is to do with an open half, if the end is one for it.
    fn half_end(&self, end: &End, record: &Bytes) -> Result<HalfEnd, BrokerError> {
        let half = parse(record)?;
        let now_ms = self.shard.now_ms();
        end.check(&half, &self.options.transactions, now_ms)?;
        if end.outcome != TransactionOutcome::Committed {
            return Ok(HalfEnd::RollBack);
        }
        let topic = self.topic(half.topic())?;
        let queue_id = half.queue_id() as u32;
        let mut kept = PropertiesBuilder::from_bytes(half.properties(), 0);
        kept.remove(name::REAL_TOPIC);
        kept.remove(name::REAL_QUEUE_ID);
        let mut properties = kept.finish();
        let delay = Sent::read(&properties).delay;
        let due = self.options.delay.due(&delay, now_ms)?;
        if let Some(due) = due {
            properties = delayed_properties(&properties, &topic.name, queue_id, due, now_ms);
            check_properties(properties.len())?;
        }
        let message = NewMessage {
            queue: ShardHandle::key(&topic, queue_id),
            topic: topic.name.clone(),
            body: record.slice(half.body_range()),
            tags_code: properties::tags_code_of(&properties),
            properties,
            flag: half.flag(),
            sys_flag: plain_sys_flag(&half) | SYS_FLAG_TRANSACTION_COMMIT,
            born_timestamp: half.born_timestamp(),
            born_host: half.born_host(),
            reconsume_times: half.reconsume_times(),
            prepared_transaction_offset: end.commit_log_offset,
            key_places: None,
        };
        Ok(HalfEnd::Commit(message, due.map(|due| due.at_ms)))
    }

    /// Takes over asking producers about the open transactions of this core's logs.
    pub(super) fn serve_checks(&self) {
        let rules = CheckRules {
            period_ms: self.options.transactions.check_period_ms,
        };
        let broker = self.clone();
        self.shard.set_check_handler(rules, move |due| {
            let broker = broker.clone();
            Box::pin(async move {
                for half in due {
                    broker.check_back(half).await;
                }
            })
        });
    }

    /// Asks a producer about one half, or gives it up after the last check.
    async fn check_back(&self, due: HalfDue) {
        let half = match parse(&due.record) {
            Ok(half) => half,
            Err(error) => {
                return tracing::error!(log = due.log, origin = due.origin, %error, "a half message");
            }
        };
        let group = properties::get(half.properties(), name::PRODUCER_GROUP).unwrap_or_default();
        if due.checks >= self.options.transactions.checks_max {
            match self.give_up(&due, &half).await {
                Ok(()) => {
                    tracing::warn!(
                        topic = half.topic(),
                        group,
                        checks = due.checks,
                        "nobody told how a transaction ended: its message is in {} now",
                        names::TRANS_CHECK_MAX_TIME_TOPIC
                    );
                }
                Err(error) => {
                    tracing::warn!(topic = half.topic(), group, %error, "a transaction cannot be given up; it is tried again at its next check");
                }
            }
            return;
        }
        let producer = {
            let meta = self.shard.meta();
            let members = meta.producers.get(group).map(|online| &online.members[..]);
            let members = members.unwrap_or_default();
            match members.len() as u64 {
                0 => None,
                // Another one at each check: the one that sent the half may be gone or stuck.
                count => members
                    .get((self.shard.random_u64() % count) as usize)
                    .map(|member| member.connection),
            }
        };
        let Some(producer) = producer else {
            tracing::debug!(
                topic = half.topic(),
                group,
                checks = due.checks,
                "no producer of the group is connected that could tell how its transaction ended"
            );
            return;
        };
        let frame = check_frame(&half, &due, due.checks + 1, &self.options.broker);
        self.push(&[producer], &frame);
    }

    /// 323: opens the transaction of a message that was given up once more, so that its producer is asked again.
    pub(super) async fn resume_check(self, command: Command) -> Outcome {
        let id = command.required_text("msgId")?.into_owned();
        let parsed =
            MessageId::parse(&id).map_err(|error| BrokerError::System(error.to_string()))?;
        let stored = self.stored_record(parsed.offset.0).await?;
        let record = parse(&stored)?;
        let real = |name| properties::get(record.properties(), name).map(str::to_owned);
        let (topic, queue_id) = match (real(name::REAL_TOPIC), real(name::REAL_QUEUE_ID)) {
            (Some(topic), Some(queue)) if record.topic() == names::TRANS_CHECK_MAX_TIME_TOPIC => {
                (self.topic(&topic)?, queue.parse::<u32>().unwrap_or(0))
            }
            _ => {
                return Err(BrokerError::System(format!(
                    "the message {id} is of the topic '{}': only messages of {} can be checked again",
                    record.topic(),
                    names::TRANS_CHECK_MAX_TIME_TOPIC
                )));
            }
        };
        let (core, queue) = self
            .owner(&topic, queue_id.into())
            .ok_or_else(|| topics::no_queue(&topic.name, queue_id))?;
        let mut kept = PropertiesBuilder::from_bytes(record.properties(), 0);
        kept.remove(name::TRANSACTION_CHECK_TIMES);
        let half = NewHalf {
            message: NewMessage {
                queue,
                topic: topic.name.clone(),
                body: stored.slice(record.body_range()),
                properties: kept.finish(),
                tags_code: properties::tags_code_of(record.properties()),
                flag: record.flag(),
                sys_flag: plain_sys_flag(&record),
                born_timestamp: record.born_timestamp(),
                born_host: record.born_host(),
                reconsume_times: record.reconsume_times(),
                prepared_transaction_offset: 0,
                key_places: None,
            },
            // At once: the operator waits for it.
            check_after_ms: 0,
        };
        match self
            .ask(core, ShardRequest::AppendHalf(Box::new(half)))
            .await?
        {
            ShardReply::Appended(_) => Answer::done(),
            other => Err(BrokerError::unexpected(&other)),
        }
    }

    /// Moves a half to TRANS_CHECK_MAX_TIME_TOPIC and ends its transaction. After a crash in between it is there twice.
    async fn give_up(&self, due: &HalfDue, half: &RecordView<'_>) -> Result<(), BrokerError> {
        let config = topics::config(names::TRANS_CHECK_MAX_TIME_TOPIC, 1, PERM_READ | PERM_WRITE);
        let topic = self.topic_or_create(config).await?;
        let (core, queue) = self
            .owner(&topic, 0)
            .ok_or_else(|| topics::no_queue(&topic.name, 0))?;
        let message = NewMessage {
            queue,
            topic: topic.name.clone(),
            body: due.record.slice(half.body_range()),
            properties: checked_properties(half, due.checks),
            tags_code: properties::tags_code_of(half.properties()),
            flag: half.flag(),
            sys_flag: plain_sys_flag(half),
            born_timestamp: half.born_timestamp(),
            born_host: half.born_host(),
            reconsume_times: half.reconsume_times(),
            prepared_transaction_offset: 0,
            key_places: None,
        };
        match self
            .ask(core, ShardRequest::Append(Box::new([message])))
            .await?
        {
            ShardReply::Appended(_) => {}
            other => return Err(BrokerError::unexpected(&other)),
        }
        self.end_half(due.log, due.origin, HalfEnd::GiveUp).await?;
        Ok(())
    }
}

fn parse(record: &[u8]) -> Result<RecordView<'_>, BrokerError> {
    RecordView::parse(record)
        .map_err(|error| BrokerError::System(format!("the stored half message: {error}")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const ORIGIN: u64 = 4_711;

    fn half(properties: &[u8]) -> Vec<u8> {
        let fields = RecordFields {
            topic: "T",
            body: b"body",
            properties,
            queue_id: 3,
            flag: 7,
            queue_offset: ORIGIN as i64,
            // Where retention has carried it.
            physical_offset: 99_999,
            sys_flag: 0,
            born_timestamp: 1_000,
            born_host: ([10, 0, 0, 1], 5).into(),
            store_timestamp: 1_001,
            store_host: ([127, 0, 0, 1], 10911).into(),
            reconsume_times: 0,
            prepared_transaction_offset: 0,
        };
        let mut out = vec![0; fields.encoded_len()];
        fields.encode_into(&mut out);
        out
    }

    fn end(group: &str, queue_offset: i64, from_check: bool) -> End {
        End {
            group: group.into(),
            outcome: TransactionOutcome::Committed,
            log: 0,
            origin: ORIGIN,
            commit_log_offset: ORIGIN as i64,
            queue_offset,
            from_check,
        }
    }

    #[test]
    fn an_end_has_to_name_the_group_and_the_offset_of_its_half() {
        let stored = half(b"PGROUP\x01g\x02");
        let half = RecordView::parse(&stored).unwrap();
        let rules = TransactionRules::rocketmq();
        let remark = |end: End| match end.check(&half, &rules, 900_000) {
            Ok(()) => String::new(),
            Err(error) => error.to_string(),
        };
        assert_eq!(remark(end("g", ORIGIN as i64, false)), "");
        assert!(remark(end("other", ORIGIN as i64, false)).starts_with("The producer group wrong"));
        assert!(remark(end("g", 1, false)).starts_with("The transaction state table offset wrong"));
    }

    #[test]
    fn after_its_own_immunity_only_the_answer_to_a_check_ends_a_half() {
        let stored = half(b"PGROUP\x01g\x02CHECK_IMMUNITY_TIME_IN_SECONDS\x0110\x02");
        let half = RecordView::parse(&stored).unwrap();
        let rules = TransactionRules::rocketmq();
        let ends = |now_ms, from_check| {
            let result = end("g", ORIGIN as i64, from_check).check(&half, &rules, now_ms);
            !matches!(result, Err(BrokerError::IllegalOperation(_)))
        };
        assert!(ends(11_000, false));
        assert!(!ends(11_001, false));
        assert!(ends(11_001, true));
    }

    #[test]
    fn the_first_check_comes_after_the_halfs_own_time_or_the_brokers() {
        let rules = TransactionRules::rocketmq();
        let immunity_ms = |value: &str| {
            rules.immunity_ms(format!("CHECK_IMMUNITY_TIME_IN_SECONDS\x01{value}\x02").as_bytes())
        };
        assert_eq!(rules.immunity_ms(b""), 6_000);
        assert_eq!(immunity_ms("20"), 20_000);
        assert_eq!(immunity_ms("-1"), 6_000);
        assert_eq!(immunity_ms("soon"), 6_000);
        assert_eq!(immunity_ms("-7"), 0);
        assert_eq!(immunity_ms("9223372036854775807"), u64::MAX);
    }

    #[test]
    fn a_check_names_the_half_by_where_it_was_stored_first() {
        let stored = half(b"PGROUP\x01g\x02UNIQ_KEY\x01K\x02");
        let view = RecordView::parse(&stored).unwrap();
        let due = HalfDue {
            log: 2,
            origin: ORIGIN,
            checks: 4,
            record: Bytes::copy_from_slice(&stored),
        };
        let frame = check_frame(&view, &due, 5, "b1");
        let header_bytes =
            u32::from_be_bytes(*frame[4..].first_chunk().unwrap()) as usize & 0xFF_FFFF;
        let header: serde_json::Value =
            serde_json::from_slice(&frame[8..8 + header_bytes]).unwrap();
        let offset = PhysicalOffset::new(2, Position(ORIGIN));
        assert_eq!(header["code"], 39);
        assert_eq!(header["flag"], 2, "oneway");
        let fields = &header["extFields"];
        assert_eq!(fields["commitLogOffset"], offset.0.to_string());
        assert_eq!(fields["tranStateTableOffset"], ORIGIN.to_string());
        assert_eq!(
            (&fields["msgId"], &fields["transactionId"]),
            (&"K".into(), &"K".into())
        );
        let record = RecordView::parse_checked(&frame[8 + header_bytes..]).unwrap();
        assert_eq!(
            (record.topic(), record.queue_id(), record.flag()),
            ("T", 3, 7)
        );
        assert_eq!(record.physical_offset(), offset.0);
        let checks = properties::get(record.properties(), name::TRANSACTION_CHECK_TIMES);
        assert_eq!(checks, Some("5"));
    }
}
