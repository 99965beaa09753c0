//! The sending side: one thread with its connections, closed or open loop.
//!
//! Answers that came in one read make room for requests that leave in one write, so the cost per message falls as the
//! load grows. A request is a failure if its answer has another code than success, or says something else than an answer to
//! a send has to say. Transactions are half messages, ended by a one-way request as soon as they are stored.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use ringmq::wire::remoting::code::{request, response, response_name};
use ringmq::wire::remoting::command::{Encoding, Outgoing};

use crate::answer::{Answer, number};
use crate::clock::Origin;
use crate::connection::{Connection, ConnectionError, Sent};
use crate::frames::{SendBody, SendHeader, SendNumbers, SendShape};
use crate::ledger::Entry;
use crate::measure::Recorder;
use crate::native::NativeSend;
use crate::payload::Stamp;
use crate::plan::Protocol;
use crate::queues::Queues;
use crate::reactor::{NAP, Reactor, settle};
use crate::schedule::{Arrivals, Picker, Schedule};

/// Bytes that are gathered before they are written.
const FLUSH_BYTES: usize = 256 << 10;
/// How long answers are waited for when the run is over.
const DRAIN: Duration = Duration::from_secs(10);
/// `commitOrRollback` of END_TRANSACTION.
const COMMIT: i32 = 8;
const ROLLBACK: i32 = 12;

/// What one producer thread does.
pub struct ProducerSpec {
    /// Number of this thread among all of the run, also of other processes.
    pub number: u32,
    pub run: u64,
    pub queues: Arc<Queues>,
    pub shape: SendShape,
    pub protocol: Protocol,
    pub message: Vec<u8>,
    /// To each broker.
    pub connections: usize,
    /// Requests on all connections of this thread.
    pub in_flight: usize,
    pub arrivals: Arrivals,
    pub skew: f64,
    /// Half messages; of 100, so many are rolled back.
    pub rollback_percent: Option<f64>,
    /// Keep the entries of acknowledged messages.
    pub keep_entries: bool,
    pub cpu: Option<usize>,
}

/// What a producer thread did, warm-up included.
#[derive(Debug, Default)]
pub struct Produced {
    pub entries: Vec<Entry>,
    pub error: Option<String>,
}

/// One connection with the queues that it writes to.
struct Lane {
    connection: Connection,
    /// Number of its broker's first queue.
    first_queue: usize,
    picker: Picker,
    /// Next sequence by queue of the broker.
    sequences: Vec<u64>,
    producer: u32,
    in_flight_max: usize,
}

/// The frames of sends to one queue.
enum SendFrame {
    Remoting(SendHeader),
    Native(NativeSend),
}

/// A producer thread that has its connections.
pub struct Producer {
    spec: ProducerSpec,
    lanes: Vec<Lane>,
    sends: Vec<SendFrame>,
    body: SendBody,
    next_lane: usize,
    key: u64,
    entries: Vec<Entry>,
    random: fastrand::Rng,
    scratch: BytesMut,
    lane_numbers: Vec<usize>,
}

/// What a run shares with all of its threads.
pub struct Shared {
    pub origin: Origin,
    /// No request begins after it.
    pub until_ns: u64,
    pub stop: AtomicBool,
    /// Messages that were acknowledged and delivered so far, warm-up included.
    pub acknowledged: AtomicU64,
    pub delivered: AtomicU64,
}

impl Producer {
    /// Connects and makes the frames.
    pub fn new(spec: ProducerSpec) -> Result<Self, ConnectionError> {
        let body = SendBody::new(&spec.shape, &spec.message);
        let queues = &spec.queues;
        let mut sends = Vec::with_capacity(queues.len());
        let mut lanes = Vec::new();
        for (index, broker) in queues.brokers.iter().enumerate() {
            let range = queues.of_broker(index);
            let first_lane = lanes.len();
            for _ in 0..spec.connections {
                let producer = spec.number << 12 | lanes.len() as u32;
                // Connections begin at different queues, so that few of them do not all write the same one.
                let first = lanes.len() + spec.number as usize * spec.connections;
                lanes.push(Lane {
                    connection: Connection::connect(broker.address, spec.protocol)?,
                    first_queue: range.start,
                    picker: Picker::new(
                        range.len(),
                        first,
                        spec.skew,
                        u64::from(producer) ^ spec.run,
                    ),
                    sequences: vec![0; range.len()],
                    producer,
                    in_flight_max: 0,
                });
            }
            let hosts = lanes
                .get(first_lane)
                .and_then(|lane: &Lane| lane.connection.hosts());
            for queue in range {
                let (topic, id) = (queues.topic(queue), queues.id(queue));
                sends.push(match hosts {
                    Some(hosts) => {
                        let message = &spec.message;
                        SendFrame::Native(NativeSend::new(&spec.shape, topic, id, message, hosts))
                    }
                    None => {
                        let (name, bytes) = (&broker.name, body.len());
                        SendFrame::Remoting(SendHeader::new(&spec.shape, topic, name, id, bytes))
                    }
                });
            }
        }
        let count = lanes.len();
        for (index, lane) in lanes.iter_mut().enumerate() {
            lane.in_flight_max =
                spec.in_flight / count + usize::from(index < spec.in_flight % count);
        }
        Ok(Self {
            body,
            sends,
            next_lane: 0,
            key: 0,
            entries: Vec::new(),
            random: fastrand::Rng::with_seed(spec.run ^ u64::from(spec.number)),
            scratch: BytesMut::new(),
            lane_numbers: (0..count).collect(),
            lanes,
            spec,
        })
    }

    /// Sends until the run is over, then waits for what is in flight.
    pub fn run(mut self, shared: &Shared, mut recorder: Recorder, first_ns: u64) -> Produced {
        let error = self
            .load(shared, &mut recorder, first_ns)
            .err()
            .map(|error| error.to_string());
        let now_ns = shared.origin.elapsed_ns();
        let messages = self.spec.shape.batch as u64;
        let why = error
            .as_deref()
            .unwrap_or("no answer came in the time after the run");
        for lane in &self.lanes {
            for sent in lane.connection.in_flight.abandoned() {
                recorder.failed(sent.due_ns, now_ns, messages, "unanswered", why);
            }
        }
        recorder.finish();
        Produced {
            entries: self.entries,
            error,
        }
    }

    fn load(
        &mut self,
        shared: &Shared,
        recorder: &mut Recorder,
        first_ns: u64,
    ) -> Result<(), ConnectionError> {
        settle(self.spec.cpu)?;
        let mut reactor = Reactor::new(self.lanes.iter().map(|lane| &lane.connection))?;
        let seed = self.spec.run.wrapping_add(u64::from(self.spec.number));
        let mut schedule = Schedule::new(self.spec.arrivals, first_ns, seed);
        let single = self.lanes.len() == 1 && self.spec.arrivals == Arrivals::Closed;
        let mut gives_up_ns = u64::MAX;
        std::thread::sleep(Duration::from_nanos(
            first_ns.saturating_sub(shared.origin.elapsed_ns()),
        ));
        loop {
            let now_ns = shared.origin.elapsed_ns();
            recorder.advance(now_ns);
            let is_stopped = shared.stop.load(Ordering::Relaxed);
            let is_over = is_stopped || now_ns >= shared.until_ns;
            // Once behind the end, too: what was due before it is sent, however late this thread comes.
            if !is_stopped && gives_up_ns == u64::MAX {
                self.fill(shared, &mut schedule, now_ns)?;
            }
            if is_over {
                gives_up_ns = gives_up_ns.min(now_ns + DRAIN.as_nanos() as u64);
                let idle = |lane: &Lane| {
                    lane.connection.in_flight.is_empty() && !lane.connection.has_output()
                };
                if self.lanes.iter().all(idle) || now_ns >= gives_up_ns {
                    return Ok(());
                }
            }
            for &index in &self.lane_numbers {
                reactor.flush(index, &mut self.lanes[index].connection)?;
            }
            if single && !reactor.is_stuck(0) {
                if self.lanes[0].connection.receive(true)? {
                    self.answers(0, shared, recorder)?;
                }
                continue;
            }
            let wait = match schedule.next_ns() {
                Some(next_ns) if gives_up_ns == u64::MAX => {
                    Duration::from_nanos(next_ns.saturating_sub(shared.origin.elapsed_ns()))
                        .min(NAP)
                }
                _ => NAP,
            };
            for at in 0..reactor.wait(wait)? {
                let ready = reactor.ready(at);
                if ready.writable {
                    reactor.flush(ready.index, &mut self.lanes[ready.index].connection)?;
                }
                if ready.readable && self.lanes[ready.index].connection.receive(false)? {
                    self.answers(ready.index, shared, recorder)?;
                }
            }
        }
    }

    /// Begins all requests that are due and have room.
    fn fill(
        &mut self,
        shared: &Shared,
        schedule: &mut Schedule,
        now_ns: u64,
    ) -> Result<(), ConnectionError> {
        let lanes = self.lanes.len();
        let mut full = 0;
        while full < lanes {
            let index = self.next_lane;
            self.next_lane = if index + 1 == lanes { 0 } else { index + 1 };
            let lane = &mut self.lanes[index];
            // A socket that takes no more gets no more: what waits here is not in flight.
            if lane.connection.in_flight.len() >= lane.in_flight_max
                || lane.connection.out.len() >= 4 * FLUSH_BYTES
            {
                full += 1;
                continue;
            }
            match schedule.take(now_ns) {
                Some(due_ns) if due_ns < shared.until_ns => self.begin(index, shared, due_ns),
                _ => return Ok(()),
            }
            full = 0;
            let connection = &mut self.lanes[index].connection;
            if connection.out.len() >= FLUSH_BYTES {
                connection.flush()?;
            }
        }
        Ok(())
    }

    fn begin(&mut self, index: usize, shared: &Shared, due_ns: u64) {
        let lane = &mut self.lanes[index];
        let picked = lane.picker.pick();
        let queue = lane.first_queue + picked;
        let batch = self.spec.shape.batch as u64;
        let sequence = lane.sequences[picked];
        lane.sequences[picked] += batch;
        let epoch_ns = shared.origin.epoch_ns(due_ns);
        let numbers = SendNumbers {
            opaque: lane.connection.in_flight.begin(Sent {
                due_ns,
                target: queue as u32,
                sequence,
            }),
            born_ms: epoch_ns / 1_000_000,
            key: self.key,
            stamp: Stamp {
                producer: lane.producer,
                run: self.spec.run,
                sequence,
                due_ns: epoch_ns,
            },
        };
        self.key += batch;
        let out = &mut lane.connection.out;
        match &self.sends[queue] {
            SendFrame::Remoting(header) => header.append(&self.body, &numbers, out),
            SendFrame::Native(send) => send.append(&numbers, out),
        }
    }

    /// Takes all whole answers that were read.
    fn answers(
        &mut self,
        index: usize,
        shared: &Shared,
        recorder: &mut Recorder,
    ) -> Result<(), ConnectionError> {
        let now_ns = shared.origin.elapsed_ns();
        let batch = self.spec.shape.batch as u64;
        let bytes = batch * self.spec.message.len() as u64;
        let lane = &mut self.lanes[index];
        let mut acknowledged = 0;
        let mut ends = Vec::new();
        while let Some((answer, sent)) = lane.connection.next_answer()? {
            if !answer.is_response() {
                continue; // a question of the broker, such as a check of a transaction
            }
            let Some(sent) = sent else {
                let remark = format!("opaque {} is not in flight", answer.opaque);
                recorder.failed(now_ns, now_ns, 1, "unasked answer", &remark);
                continue;
            };
            if answer.code != response::SUCCESS {
                let remark = answer.remark.as_deref().unwrap_or_default();
                recorder.failed(sent.due_ns, now_ns, batch, &code_name(answer.code), remark);
                continue;
            }
            let offset = match check(&answer, self.spec.queues.id(sent.target as usize)) {
                Ok(offset) => offset,
                Err(remark) => {
                    recorder.failed(sent.due_ns, now_ns, batch, "wrong answer", &remark);
                    continue;
                }
            };
            acknowledged += batch;
            recorder.answered(sent.due_ns, now_ns, batch, bytes);
            if self.spec.keep_entries {
                self.entries.extend((0..batch).map(|at| Entry {
                    queue: sent.target,
                    producer: lane.producer,
                    sequence: sent.sequence + at,
                    offset: offset + at,
                }));
            }
            if let Some(percent) = self.spec.rollback_percent {
                let rolls_back = self.random.f64() * 100.0 < percent;
                match end_of(
                    &self.spec,
                    sent.target as usize,
                    &answer,
                    offset,
                    rolls_back,
                ) {
                    Ok(end) => ends.push(end),
                    Err(remark) => {
                        recorder.failed(sent.due_ns, now_ns, batch, "wrong answer", &remark)
                    }
                }
            }
        }
        for end in ends {
            self.scratch.clear();
            end.encode(self.spec.shape.encoding, 0, &mut self.scratch);
            lane.connection.out.extend_from_slice(&self.scratch);
        }
        shared
            .acknowledged
            .fetch_add(acknowledged, Ordering::Relaxed);
        Ok(())
    }
}

/// A response code with its name.
pub fn code_name(code: i32) -> String {
    format!("{code} {}", response_name(code).unwrap_or("unknown"))
}

/// What an answer to a send has to say: a message id, the queue that was asked for, an offset in it, which is returned.
fn check(answer: &Answer, queue: u32) -> Result<u64, String> {
    let is_offset =
        |offset: i64| u64::try_from(offset).map_err(|_| format!("the queue offset is {offset}"));
    if let Some(produced) = answer.produced {
        return is_offset(produced.queue_offset);
    }
    let answered = number("queueId", answer.fields.queue_id)?;
    if answered != i64::from(queue) {
        return Err(format!(
            "sent to queue {queue}, answered for queue {answered}"
        ));
    }
    if answer.fields.msg_id.is_none_or(str::is_empty) {
        return Err("the answer lacks msgId".to_owned());
    }
    let offset = number("queueOffset", answer.fields.queue_offset)?;
    is_offset(offset)
}

/// END_TRANSACTION for a half message that was stored. Its physical offset is the end of its offset message id.
fn end_of(
    spec: &ProducerSpec,
    queue: usize,
    answer: &Answer,
    offset: u64,
    rolls_back: bool,
) -> Result<Outgoing, String> {
    let id = answer.fields.msg_id.unwrap_or_default();
    let position = id
        .len()
        .checked_sub(16)
        .and_then(|at| i64::from_str_radix(id.get(at..)?, 16).ok())
        .ok_or_else(|| format!("'{id}' is no offset message id"))?;
    let key = answer
        .fields
        .transaction_id
        .ok_or("the answer lacks transactionId")?;
    Ok(Outgoing::oneway(request::END_TRANSACTION)
        .field("topic", spec.queues.topic(queue).to_owned())
        .field("producerGroup", spec.shape.producer_group.clone())
        .field("tranStateTableOffset", offset as i64)
        .field("commitLogOffset", position)
        .field(
            "commitOrRollback",
            if rolls_back { ROLLBACK } else { COMMIT },
        )
        .field("fromTransactionCheck", false)
        .field("msgId", key.to_owned())
        .field("transactionId", key.to_owned()))
}

/// The codec's name for what the plan says.
pub fn encoding(header: crate::plan::Header) -> Encoding {
    match header {
        crate::plan::Header::Json => Encoding::Json,
        crate::plan::Header::Binary => Encoding::Binary,
    }
}
