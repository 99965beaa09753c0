//! Produce: records of many queues in one frame, checked here and copied once, by the core that owns their queue.
//!
//! What a record may not be: broken, of another queue, too large, or one that means more than a message for now (delay,
//! transaction, recall, retry): those are sent by remoting. The records of one queue are stored together or not at all;
//! each queue has its own answer.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::base::limits::{NATIVE_QUEUES_MAX, NATIVE_RECORDS_MAX};
use crate::broker::dispatch::Broker;
use crate::broker::error::BrokerError;
use crate::broker::native::{Fault, send_header};
use crate::broker::send::stored_code;
use crate::broker::send_plan::{Plan, plan};
use crate::broker::sent_properties::Sent;
use crate::broker::statistics::Counted;
use crate::broker::topics;
use crate::server::connection::NativeResponder;
use crate::shard::ShardHandle;
use crate::shard::message::{
    Appended, Copies, LocalReply, NewRecords, RecordMark, ShardReply, ShardRequest,
};
use crate::shard::meta::Topic;
use crate::wire::native::frame::{Frame, Sections};
use crate::wire::native::message::{
    Ack, Envelope, Message, Produce, ProduceQueue, ProduceResult, StoredAt,
};
use crate::wire::properties::name;
use crate::wire::record::{
    RECORD_BYTES_MIN, RecordView, SYS_FLAG_MULTI_TAGS, SYS_FLAG_TRANSACTION,
};
use crate::wire::remoting::body::TopicConfig;
use crate::wire::remoting::code::response;

/// Queues of a topic that a produce makes, as a send does.
const CREATE_QUEUES: u32 = 4;

/// Whether topics may still be made for a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Round {
    First,
    AfterCreation,
}

/// What becomes of the records of one queue.
enum Planned {
    Append(usize, Box<NewRecords>, &'static str),
    Create(TopicConfig),
}

/// What came of the records of one queue.
#[derive(Clone, Debug)]
enum Stored {
    Appended(Appended),
    Failed(Fault),
}

/// To whom the answer of a frame goes.
struct Asker {
    responder: NativeResponder,
    id: u64,
    ack: Ack,
}

/// The answer of a frame, until the last of its queues has its own.
struct Pending {
    asker: Asker,
    results: Vec<Option<Stored>>,
    missing: usize,
}

impl Broker {
    pub(super) fn native_produce(
        &self,
        id: u64,
        frame: &Frame,
        produce: &Produce<'_>,
        responder: NativeResponder,
        round: Round,
    ) {
        let count = produce.queues.len();
        if count == 0 || count > NATIVE_QUEUES_MAX {
            let error = BrokerError::InvalidParameter(format!(
                "the frame has records of {count} queues; allowed are 1 to {NATIVE_QUEUES_MAX}"
            ));
            return self.native_refuse(produce.ack, responder, id, &error);
        }
        let peer = responder.connection.peer();
        let mut sections = Sections::new(frame.payload.clone());
        let mut planned: SmallVec<[Result<Planned, BrokerError>; 1]> = SmallVec::new();
        for queue in &produce.queues {
            match sections.take(queue.bytes) {
                Ok(records) => planned.push(self.plan_produce(queue, records, peer)),
                Err(error) => {
                    let error = BrokerError::MessageIllegal(error.to_string());
                    return self.native_refuse(produce.ack, responder, id, &error);
                }
            }
        }
        let creates =
            |planned: &Result<Planned, BrokerError>| matches!(planned, Ok(Planned::Create(_)));
        if round == Round::First && planned.iter().any(creates) {
            let configs: Vec<TopicConfig> = planned
                .into_iter()
                .filter_map(|planned| match planned {
                    Ok(Planned::Create(config)) => Some(config),
                    _ => None,
                })
                .collect();
            let (broker, frame) = (self.clone(), frame.clone());
            return self
                .shard
                .spawn(async move { broker.create_and_produce(configs, frame, responder).await });
        }
        let asker = Asker {
            responder,
            id,
            ack: produce.ack,
        };
        if planned.len() == 1
            && let Some(planned) = planned.pop()
        {
            return self.store(planned, move |broker, stored| {
                broker.answer_produce(asker, &[Some(stored)]);
            });
        }
        let pending = Rc::new(RefCell::new(Some(Pending {
            asker,
            results: vec![None; count],
            missing: count,
        })));
        for (index, planned) in planned.into_iter().enumerate() {
            let pending = pending.clone();
            self.store(planned, move |broker, stored| {
                broker.produced(&pending, index, stored);
            });
        }
    }

    /// Stores the records of one queue, as far as they may be, and tells what came of it.
    fn store(
        &self,
        planned: Result<Planned, BrokerError>,
        tell: impl FnOnce(&Broker, Stored) + 'static,
    ) {
        let (shard, new, message_type) = match planned {
            Ok(Planned::Append(shard, new, message_type)) => (shard, new, message_type),
            Ok(Planned::Create(config)) => {
                let error = BrokerError::NoTopic {
                    topic: config.topic_name,
                };
                return tell(self, Stored::Failed(self.fault(&error)));
            }
            Err(error) => return tell(self, Stored::Failed(self.fault(&error))),
        };
        let broker = self.clone();
        let (topic, count, body_bytes) =
            (new.topic.clone(), new.marks.len() as u64, new.body_bytes);
        let ticket = self.underway.begin(body_bytes as usize);
        self.shard
            .call(shard, ShardRequest::AppendRecords(new), move |reply| {
                drop(ticket);
                let stored = broker.stored_records(reply);
                if let Stored::Appended(appended) = &stored {
                    broker.count(
                        Counted::In,
                        &topic,
                        message_type,
                        appended.store_timestamp as u64,
                        (count, body_bytes),
                    );
                }
                tell(&broker, stored);
            });
    }

    /// Makes topics as sends would, then stores the frame; a topic that could not be made is refused then.
    async fn create_and_produce(
        &self,
        configs: Vec<TopicConfig>,
        frame: Frame,
        responder: NativeResponder,
    ) {
        for config in configs {
            let name = config.topic_name.clone();
            if let Err(error) = self.topic_or_create(config).await {
                tracing::warn!(topic = name, %error, "a topic cannot be made for a produce");
            }
        }
        // It was read before, so it can be read again.
        match Envelope::read(&frame.header) {
            Ok(Envelope {
                id,
                message: Message::Produce(produce),
            }) => self.native_produce(id, &frame, &produce, responder, Round::AfterCreation),
            _ => responder.refuse("the frame has changed"),
        }
    }

    /// Refuses a whole frame; nothing of it is stored.
    fn native_refuse(&self, ack: Ack, responder: NativeResponder, id: u64, error: &BrokerError) {
        if ack == Ack::None {
            self.fault(error);
            return responder.stay_silent();
        }
        self.native_error(responder, id, error);
    }

    fn plan_produce(
        &self,
        queue: &ProduceQueue<'_>,
        records: Bytes,
        peer: SocketAddr,
    ) -> Result<Planned, BrokerError> {
        let queue_id = i32::try_from(queue.queue_id)
            .map_err(|_| topics::no_queue(queue.topic, queue.queue_id))?;
        let header = send_header(queue.topic, queue_id, CREATE_QUEUES);
        let planned = plan(&header, &self.shard.meta(), &self.options, 0)?;
        let topic = match planned {
            Plan::Append { topic, .. } => topic,
            // The records are checked when it is there.
            Plan::Create(config) => return Ok(Planned::Create(config)),
            Plan::Retry { .. } => {
                return Err(BrokerError::MessageIllegal(
                    "messages for a retry topic are sent by remoting".into(),
                ));
            }
        };
        let shard = self
            .shard
            .shard_of_queue(&topic, queue.queue_id)
            .ok_or_else(|| topics::no_queue(queue.topic, queue.queue_id))?;
        let (new, message_type) = self.check_records(&topic, queue, records, peer)?;
        Ok(Planned::Append(shard, Box::new(new), message_type))
    }

    /// The records of one queue, each checked: lengths, magic, CRC, topic, queue, and that it is a message for now.
    fn check_records(
        &self,
        topic: &Topic,
        queue: &ProduceQueue<'_>,
        records: Bytes,
        peer: SocketAddr,
    ) -> Result<(NewRecords, &'static str), BrokerError> {
        let count = queue.records as usize;
        if count == 0 || count > NATIVE_RECORDS_MAX {
            return Err(BrokerError::MessageIllegal(format!(
                "{count} records of queue {} of '{}' are announced; allowed are 1 to {NATIVE_RECORDS_MAX}",
                queue.queue_id, queue.topic
            )));
        }
        // As many as are announced, if there are so many.
        let mut marks: SmallVec<[RecordMark; 1]> =
            SmallVec::with_capacity(count.min(1 + records.len() / RECORD_BYTES_MIN));
        let (mut rest, mut body_bytes, mut message_type) = (&records[..], 0, "normal");
        while !rest.is_empty() {
            let index = marks.len();
            if index == count {
                return Err(illegal(
                    queue,
                    index,
                    "there are bytes behind the last record",
                ));
            }
            let record = RecordView::parse_checked(rest)
                .map_err(|error| illegal(queue, index, &error.to_string()))?;
            rest = &rest[record.total_bytes()..];
            self.check_record(topic, queue, &record, peer)
                .map_err(|what| illegal(queue, index, &what))?;
            let sent = Sent::read(record.properties());
            check_meaning(&record, &sent).map_err(|what| illegal(queue, index, &what))?;
            body_bytes += record.body().len() as u64;
            if index == 0 {
                message_type = sent.message_type();
            }
            marks.push(RecordMark::new(
                &record,
                sent.tags_code,
                sent.message_keys(),
            ));
        }
        if marks.len() != count {
            let what = format!("{count} records are announced");
            return Err(illegal(queue, marks.len(), &what));
        }
        let multi_tags = topic.config.topic_filter_type == "MULTI_TAG";
        let new = NewRecords {
            queue: ShardHandle::key(topic, queue.queue_id),
            topic: topic.name.clone(),
            records,
            marks,
            sys_flag: if multi_tags { SYS_FLAG_MULTI_TAGS } else { 0 },
            born_host: peer,
            body_bytes,
        };
        Ok((new, message_type))
    }

    fn check_record(
        &self,
        topic: &Topic,
        queue: &ProduceQueue<'_>,
        record: &RecordView<'_>,
        peer: SocketAddr,
    ) -> Result<(), String> {
        if record.topic() != &*topic.name || record.queue_id() as u32 != queue.queue_id {
            return Err(format!(
                "it is of queue {} of '{}'",
                record.queue_id(),
                record.topic()
            ));
        }
        let limit_bytes = self.options.message_bytes_max;
        let bytes = record.body().len();
        if bytes == 0 {
            return Err("its body is empty".into());
        }
        if bytes > limit_bytes {
            return Err(format!(
                "its body has {bytes} bytes, the limit is {limit_bytes} (maxMessageSize)"
            ));
        }
        let store_host = self.options.store_host;
        if !record.has_room_for(peer, store_host) {
            return Err(format!(
                "its hosts have other address families than {peer} and {store_host}, which the broker fills in; see the answer to Hello"
            ));
        }
        Ok(())
    }

    fn stored_records(&self, reply: LocalReply) -> Stored {
        match reply {
            ShardReply::Appended(appended) => Stored::Appended(appended),
            ShardReply::Refused(refusal) => Stored::Failed(self.fault(&refusal.into())),
            other => Stored::Failed(self.fault(&BrokerError::unexpected(&other))),
        }
    }

    /// The records of one queue have their answer; the last one sends all.
    fn produced(&self, pending: &Rc<RefCell<Option<Pending>>>, index: usize, stored: Stored) {
        let finished = {
            let mut slot = pending.borrow_mut();
            let Some(waiting) = slot.as_mut() else { return };
            waiting.results[index] = Some(stored);
            waiting.missing -= 1;
            if waiting.missing > 0 {
                return;
            }
            slot.take()
        };
        if let Some(Pending { asker, results, .. }) = finished {
            self.answer_produce(asker, &results);
        }
    }

    fn answer_produce(&self, asker: Asker, results: &[Option<Stored>]) {
        let Asker { responder, id, ack } = asker;
        if ack == Ack::None {
            return responder.stay_silent();
        }
        if let [Some(Stored::Appended(appended))] = results
            && stored_code(appended.copies) == response::SUCCESS
        {
            let stored = StoredAt {
                queue_offset: appended.queue_offset,
                physical_offset: first_offset(appended),
                store_timestamp_ms: appended.store_timestamp,
            };
            let mut encoder = self.native.encoder.borrow_mut();
            return responder.send(encoder.encode_stored(id, &stored), []);
        }
        let results = results.iter().flatten().map(|stored| match stored {
            Stored::Appended(appended) => ProduceResult {
                code: stored_code(appended.copies),
                remark: match appended.copies {
                    Copies::Enough => "",
                    Copies::NoSlave => "it is stored here, but too few slaves are in sync",
                    Copies::Late => {
                        "it is stored here, but the slaves did not say so in time (slaveTimeout)"
                    }
                },
                queue_offset: appended.queue_offset,
                physical_offset: first_offset(appended),
                store_timestamp_ms: appended.store_timestamp,
            },
            Stored::Failed(fault) => ProduceResult {
                code: fault.code,
                remark: &fault.remark,
                queue_offset: -1,
                physical_offset: -1,
                store_timestamp_ms: 0,
            },
        });
        let message = Message::ProduceReply(results.collect());
        self.native_answer(responder, id, &message);
    }
}

fn first_offset(appended: &Appended) -> i64 {
    let first = appended.physical_offsets.first();
    first.map_or(-1, |first| first.0)
}

fn illegal(queue: &ProduceQueue<'_>, index: usize, what: &str) -> BrokerError {
    BrokerError::MessageIllegal(format!(
        "record {index} for queue {} of '{}': {what}",
        queue.queue_id, queue.topic
    ))
}

/// What makes a record more than a message for now.
fn check_meaning(record: &RecordView<'_>, sent: &Sent<'_>) -> Result<(), String> {
    let reason = if record.sys_flag() & SYS_FLAG_TRANSACTION != 0 || sent.half {
        "it is of a transaction"
    } else if sent.delay.level.is_some() || sent.delay.has_time() {
        "it is to be delivered later"
    } else if sent.is_recall {
        "it takes another one back"
    } else if sent.is_popped {
        return Err(format!(
            "only the broker sets the property {}",
            name::POP_CK
        ));
    } else {
        return Ok(());
    };
    Err(format!("{reason}, and such messages are sent by remoting"))
}
