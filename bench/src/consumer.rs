//! The receiving side: one thread that pulls its queues, one pull in flight for each (PULL_MESSAGE).
//!
//! A pull at the end of a queue waits at the broker. Every record is looked at: topic, queue, and an offset that follows
//! the one before, since a queue that only sends write has no gaps. With the native protocol all queues of a connection
//! are in one fetch session, and the next fetch leaves before the records of the last one are looked at.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::BytesMut;
use ringmq::wire::record::RecordView;
use ringmq::wire::remoting::code::{request, response};
use ringmq::wire::remoting::command::{Encoding, Outgoing};

use crate::answer::number;
use crate::clock::Origin;
use crate::connection::{Connection, ConnectionError, Sent};
use crate::ledger::Entry;
use crate::measure::Recorder;
use crate::native::{self, Added, FetchLimits};
use crate::payload::Stamp;
use crate::plan::Protocol;
use crate::producer::{Shared, code_name};
use crate::queues::Queues;
use crate::reactor::{NAP, Reactor, settle};

/// How long a pull waits at the broker for a message.
const SUSPEND: Duration = Duration::from_secs(5);
/// How long a queue rests after an error.
const RETRY_NS: u64 = 20_000_000;
/// `PullSysFlag`: wait for a message, and the subscription is in the request.
const PULL_FLAGS: i32 = 2 | 4;
/// How long answers are waited for when the run is over: nothing is lost with them.
const DRAIN_NS: u64 = 200_000_000;

/// A queue to pull.
#[derive(Clone, Copy, Debug)]
pub struct Assigned {
    pub queue: usize,
    pub from: u64,
    /// Where a catch-up ends; none waits for more.
    pub until: Option<u64>,
}

/// What one consumer thread does.
pub struct ConsumerSpec {
    /// Only messages of this run are followed to their producer.
    pub run: u64,
    pub queues: Arc<Queues>,
    pub assigned: Vec<Assigned>,
    pub connections: usize,
    pub group: String,
    pub pull_messages: u32,
    /// Bytes that a native fetch asks for.
    pub fetch_bytes: u32,
    pub protocol: Protocol,
    pub check_crc: bool,
    pub keep_entries: bool,
    pub encoding: Encoding,
    pub cpu: Option<usize>,
}

/// What a consumer thread did.
#[derive(Debug, Default)]
pub struct Consumed {
    pub entries: Vec<Entry>,
    pub error: Option<String>,
    /// When the last message came, nanoseconds since the run began.
    pub last_ns: u64,
}

/// Where a queue is.
struct Cursor {
    queue: usize,
    lane: usize,
    next: u64,
    until: Option<u64>,
    /// When to ask again after an error.
    retry_ns: Option<u64>,
}

impl Cursor {
    fn is_done(&self) -> bool {
        self.until.is_some_and(|until| self.next >= until)
    }
}

/// A consumer thread that has its connections.
pub struct Consumer {
    spec: ConsumerSpec,
    lanes: Vec<Connection>,
    cursors: Vec<Cursor>,
    entries: Vec<Entry>,
    scratch: BytesMut,
    last_ns: u64,
}

/// The two recorders of a consumer thread.
pub struct Recorders {
    pub pull: Recorder,
    pub end_to_end: Recorder,
}

impl Consumer {
    /// Connects, and spreads the queues over the connections to their brokers.
    pub fn new(spec: ConsumerSpec) -> Result<Self, ConnectionError> {
        let mut lanes = Vec::new();
        let mut cursors = Vec::new();
        for (index, broker) in spec.queues.brokers.iter().enumerate() {
            let range = spec.queues.of_broker(index);
            let mine: Vec<_> = spec
                .assigned
                .iter()
                .filter(|one| range.contains(&one.queue))
                .collect();
            let first = lanes.len();
            let connections = spec.connections.min(mine.len());
            for _ in 0..connections {
                lanes.push(Connection::connect(broker.address, spec.protocol)?);
            }
            for (at, one) in mine.into_iter().enumerate() {
                cursors.push(Cursor {
                    queue: one.queue,
                    lane: first + at % connections,
                    next: one.from,
                    until: one.until,
                    retry_ns: None,
                });
            }
        }
        Ok(Self {
            spec,
            lanes,
            cursors,
            entries: Vec::new(),
            scratch: BytesMut::new(),
            last_ns: 0,
        })
    }

    /// Pulls until all queues are where they should end, or the run stops.
    pub fn run(mut self, shared: &Shared, mut recorders: Recorders) -> Consumed {
        let error = self
            .pull(shared, &mut recorders)
            .err()
            .map(|error| error.to_string());
        recorders.pull.finish();
        recorders.end_to_end.finish();
        Consumed {
            entries: self.entries,
            error,
            last_ns: self.last_ns,
        }
    }

    fn pull(&mut self, shared: &Shared, recorders: &mut Recorders) -> Result<(), ConnectionError> {
        settle(self.spec.cpu)?;
        let mut reactor = Reactor::new(self.lanes.iter())?;
        let mut open = 0;
        let begin_ns = shared.origin.elapsed_ns();
        for at in 0..self.cursors.len() {
            if !self.cursors[at].is_done() {
                if self.spec.protocol == Protocol::Remoting {
                    self.ask(at, begin_ns);
                }
                open += 1;
            }
        }
        if self.spec.protocol == Protocol::Native {
            for lane in 0..self.lanes.len() {
                let all: Vec<usize> = (0..self.cursors.len())
                    .filter(|&at| self.cursors[at].lane == lane && !self.cursors[at].is_done())
                    .collect();
                self.fetch(lane, &all, &[], begin_ns);
            }
        }
        let mut gives_up_ns = u64::MAX;
        let mut resting = 0;
        while open > 0 {
            let now_ns = shared.origin.elapsed_ns();
            recorders.pull.advance(now_ns);
            recorders.end_to_end.advance(now_ns);
            if shared.stop.load(Ordering::Relaxed) {
                gives_up_ns = gives_up_ns.min(now_ns + DRAIN_NS);
                if now_ns >= gives_up_ns {
                    return Ok(());
                }
            }
            if resting > 0 {
                for at in 0..self.cursors.len() {
                    if self.cursors[at]
                        .retry_ns
                        .is_some_and(|retry_ns| retry_ns <= now_ns)
                    {
                        self.cursors[at].retry_ns = None;
                        resting -= 1;
                        match self.spec.protocol {
                            Protocol::Remoting => self.ask(at, now_ns),
                            Protocol::Native => {
                                self.fetch(self.cursors[at].lane, &[at], &[], now_ns);
                            }
                        }
                    }
                }
            }
            for (index, connection) in self.lanes.iter_mut().enumerate() {
                reactor.flush(index, connection)?;
            }
            let wait = if resting > 0 {
                Duration::from_millis(5)
            } else {
                NAP
            };
            if self.lanes.len() == 1 && resting == 0 && !reactor.is_stuck(0) {
                if self.lanes[0].receive(true)? {
                    self.take_answers(0, shared, recorders, (&mut open, &mut resting))?;
                }
                continue;
            }
            for at in 0..reactor.wait(wait)? {
                let ready = reactor.ready(at);
                if ready.readable && self.lanes[ready.index].receive(false)? {
                    self.take_answers(ready.index, shared, recorders, (&mut open, &mut resting))?;
                }
            }
        }
        Ok(())
    }

    /// Asks for what comes next in a queue.
    fn ask(&mut self, at: usize, now_ns: u64) {
        let cursor = &self.cursors[at];
        let connection = &mut self.lanes[cursor.lane];
        let mut ask = Outgoing::request(request::PULL_MESSAGE)
            .field("consumerGroup", self.spec.group.clone())
            .field("topic", self.spec.queues.topic(cursor.queue).to_owned())
            .field("queueId", self.spec.queues.id(cursor.queue))
            .field("queueOffset", cursor.next as i64)
            .field("maxMsgNums", self.spec.pull_messages)
            .field("sysFlag", PULL_FLAGS)
            .field("commitOffset", 0)
            .field("suspendTimeoutMillis", SUSPEND.as_millis() as i64)
            .field("subscription", "*")
            .field("subVersion", 0)
            .field("expressionType", "TAG");
        ask.opaque = connection.in_flight.begin(Sent {
            due_ns: now_ns,
            target: at as u32,
            sequence: cursor.next,
        });
        self.scratch.clear();
        ask.encode(self.spec.encoding, 0, &mut self.scratch);
        connection.out.extend_from_slice(&self.scratch);
    }

    /// Asks for what comes next in all queues of a connection, and names those that are new or done.
    fn fetch(&mut self, lane: usize, add: &[usize], done: &[u32], now_ns: u64) {
        let added: Vec<Added> = add
            .iter()
            .map(|&at| {
                let cursor = &self.cursors[at];
                Added {
                    handle: at as u32,
                    topic: self.spec.queues.topic(cursor.queue),
                    queue_id: self.spec.queues.id(cursor.queue),
                    offset: cursor.next,
                }
            })
            .collect();
        let connection = &mut self.lanes[lane];
        let id = connection.in_flight.begin(Sent {
            due_ns: now_ns,
            target: lane as u32,
            sequence: 0,
        });
        let limits = FetchLimits {
            bytes_max: self.spec.fetch_bytes,
            wait_ms: SUSPEND.as_millis() as u32,
        };
        let group = &self.spec.group;
        native::fetch(id, group, &added, done, limits, &mut connection.out);
    }

    fn take_answers(
        &mut self,
        lane: usize,
        shared: &Shared,
        recorders: &mut Recorders,
        (open, resting): (&mut usize, &mut usize),
    ) -> Result<(), ConnectionError> {
        match self.spec.protocol {
            Protocol::Remoting => self.answers(lane, shared, recorders, open, resting),
            Protocol::Native => self.native_answers(lane, shared, recorders, open, resting),
        }
    }

    fn native_answers(
        &mut self,
        lane: usize,
        shared: &Shared,
        recorders: &mut Recorders,
        open: &mut usize,
        resting: &mut usize,
    ) -> Result<(), ConnectionError> {
        let now_ns = shared.origin.elapsed_ns();
        let mut done = Vec::new();
        if !shared.stop.load(Ordering::Relaxed)
            && self.lanes[lane].has_answer()?
            && self.lanes[lane].in_flight.len() == 1
        {
            // The broker makes the next answer while this one is looked at.
            self.fetch(lane, &[], &[], now_ns);
            self.lanes[lane].flush()?;
        }
        while let Some((answer, sent)) = self.lanes[lane].next_answer()? {
            let Some(sent) = sent else {
                let remark = format!("id {} is not in flight", answer.opaque);
                recorders
                    .pull
                    .failed(now_ns, now_ns, 1, "unasked answer", &remark);
                continue;
            };
            if answer.code != response::SUCCESS {
                let remark = answer.remark.as_deref().unwrap_or_default();
                recorders
                    .pull
                    .failed(now_ns, now_ns, 1, &code_name(answer.code), remark);
            }
            let (mut all_messages, mut all_bytes) = (0, 0);
            for fetched in &answer.fetched {
                let at = fetched.handle as usize;
                let Some(cursor) = self.cursors.get_mut(at).filter(|cursor| !cursor.is_done())
                else {
                    continue;
                };
                let taken = match fetched.code {
                    response::SUCCESS => {
                        let taking = Taking {
                            spec: &self.spec,
                            origin: &shared.origin,
                            queue: cursor.queue,
                            from: cursor.next,
                            now_ns,
                        };
                        taking
                            .take(
                                fetched.records,
                                fetched.next_offset,
                                recorders,
                                &mut self.entries,
                            )
                            .map_err(|remark| ("wrong answer".to_owned(), remark))
                    }
                    response::PULL_OFFSET_MOVED => {
                        let remark = format!("from {} to {}", cursor.next, fetched.next_offset);
                        recorders
                            .pull
                            .failed(now_ns, now_ns, 1, "offset moved", &remark);
                        Ok((fetched.next_offset.max(0) as u64, 0, 0))
                    }
                    code => Err((code_name(code), fetched.remark.clone())),
                };
                match taken {
                    Ok((next, messages, bytes)) => {
                        cursor.next = next;
                        all_messages += messages;
                        all_bytes += bytes;
                        if cursor.is_done() {
                            *open -= 1;
                            done.push(fetched.handle);
                        }
                    }
                    Err((kind, remark)) => {
                        recorders.pull.failed(now_ns, now_ns, 1, &kind, &remark);
                        cursor.retry_ns = Some(now_ns + RETRY_NS);
                        *resting += 1;
                    }
                }
            }
            if all_messages > 0 {
                shared.delivered.fetch_add(all_messages, Ordering::Relaxed);
                recorders
                    .pull
                    .answered(sent.due_ns, now_ns, all_messages, all_bytes);
                self.last_ns = now_ns;
            }
        }
        let is_idle = self.lanes[lane].in_flight.is_empty();
        if (is_idle || !done.is_empty()) && *open > 0 && !shared.stop.load(Ordering::Relaxed) {
            self.fetch(lane, &[], &done, now_ns);
        }
        Ok(())
    }

    fn answers(
        &mut self,
        lane: usize,
        shared: &Shared,
        recorders: &mut Recorders,
        open: &mut usize,
        resting: &mut usize,
    ) -> Result<(), ConnectionError> {
        let now_ns = shared.origin.elapsed_ns();
        let mut again = Vec::new();
        while let Some((answer, sent)) = self.lanes[lane].next_answer()? {
            if !answer.is_response() {
                continue; // such as a notice that the members of a group changed
            }
            let Some(sent) = sent else {
                let remark = format!("opaque {} is not in flight", answer.opaque);
                recorders
                    .pull
                    .failed(now_ns, now_ns, 1, "unasked answer", &remark);
                continue;
            };
            let cursor = &mut self.cursors[sent.target as usize];
            let next = match answer.code {
                response::SUCCESS => {
                    let taking = Taking {
                        spec: &self.spec,
                        origin: &shared.origin,
                        queue: cursor.queue,
                        from: sent.sequence,
                        now_ns,
                    };
                    let said = number("nextBeginOffset", answer.fields.next_begin_offset);
                    let taken = said.and_then(|said| {
                        taking.take(answer.body, said, recorders, &mut self.entries)
                    });
                    match taken {
                        Ok((next, messages, bytes)) => {
                            shared.delivered.fetch_add(messages, Ordering::Relaxed);
                            recorders
                                .pull
                                .answered(sent.due_ns, now_ns, messages, bytes);
                            self.last_ns = now_ns;
                            Ok(next)
                        }
                        Err(remark) => Err(("wrong answer".to_owned(), remark)),
                    }
                }
                response::PULL_NOT_FOUND => Ok(sent.sequence),
                response::PULL_RETRY_IMMEDIATELY | response::PULL_OFFSET_MOVED => {
                    match number("nextBeginOffset", answer.fields.next_begin_offset) {
                        Ok(next) if answer.code == response::PULL_OFFSET_MOVED => {
                            let remark = format!("from {} to {next}", sent.sequence);
                            recorders
                                .pull
                                .failed(now_ns, now_ns, 1, "offset moved", &remark);
                            Ok(next.max(0) as u64)
                        }
                        Ok(next) => Ok(next.max(0) as u64),
                        Err(remark) => Err(("wrong answer".to_owned(), remark)),
                    }
                }
                code => Err((code_name(code), answer.remark.clone().unwrap_or_default())),
            };
            match next {
                Ok(next) => {
                    cursor.next = next;
                    if cursor.is_done() {
                        *open -= 1;
                    } else if !shared.stop.load(Ordering::Relaxed) {
                        again.push(sent.target as usize);
                    }
                }
                Err((kind, remark)) => {
                    recorders.pull.failed(now_ns, now_ns, 1, &kind, &remark);
                    cursor.retry_ns = Some(now_ns + RETRY_NS);
                    *resting += 1;
                }
            }
        }
        for at in again {
            self.ask(at, now_ns);
        }
        Ok(())
    }
}

/// The records of one answer.
struct Taking<'a> {
    spec: &'a ConsumerSpec,
    origin: &'a Origin,
    queue: usize,
    from: u64,
    now_ns: u64,
}

impl Taking<'_> {
    /// Looks at every record; returns the next offset, which has to be `said`, and how many messages and bytes of bodies
    /// there were.
    fn take(
        &self,
        mut rest: &[u8],
        said: i64,
        recorders: &mut Recorders,
        entries: &mut Vec<Entry>,
    ) -> Result<(u64, u64, u64), String> {
        let topic = self.spec.queues.topic(self.queue);
        let id = self.spec.queues.id(self.queue);
        let (mut next, mut messages, mut bytes) = (self.from, 0, 0);
        while !rest.is_empty() {
            let record = RecordView::parse(rest).map_err(|error| error.to_string())?;
            rest = &rest[record.total_bytes()..];
            if self.spec.check_crc {
                record.check_body().map_err(|error| error.to_string())?;
            }
            if record.topic() != topic || record.queue_id() as u32 != id {
                let (other, other_id) = (record.topic(), record.queue_id());
                return Err(format!(
                    "queue {id} of {topic} was asked for; a message of queue {other_id} of {other} came"
                ));
            }
            let offset = record.queue_offset() as u64;
            if offset != next {
                // What that means to messages is the ledger's to say; here it is counted once per place.
                let remark = format!("offset {next} was next, {offset} came");
                recorders
                    .pull
                    .failed(self.now_ns, self.now_ns, 1, "gap or repetition", &remark);
            }
            next = offset + 1;
            messages += 1;
            bytes += record.body().len() as u64;
            if let Some(stamp) = Stamp::read(record.body())
                && stamp.run == self.spec.run
            {
                let due_ns = self.origin.run_ns(stamp.due_ns);
                recorders
                    .end_to_end
                    .answered(due_ns, self.now_ns, 1, record.body().len() as u64);
                if self.spec.keep_entries {
                    entries.push(Entry {
                        queue: self.queue as u32,
                        producer: stamp.producer,
                        sequence: stamp.sequence,
                        offset,
                    });
                }
            }
        }
        if messages == 0 {
            return Err("a pull found messages, but brought none".to_owned());
        }
        if said != next as i64 {
            return Err(format!(
                "the last message has offset {}, but the next one is said to be {said}",
                next - 1
            ));
        }
        Ok((next, messages, bytes))
    }
}
