//! The sending side: one thread with its connections, closed or open loop.
//!
//! Answers that came in one read make room for requests that leave in one write, so the cost per message falls as the
//! load grows. The thread waits in `recv` where it has one connection and no timetable, and in epoll otherwise.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ringmq::wire::remoting::code::{response, response_name};
use ringmq::wire::remoting::command::Command;
use rustix::event::{Timespec, epoll};

use crate::connection::{Connection, ConnectionError, Sent};
use crate::control::Broker;
use crate::frames::{SendBody, SendHeader, SendNumbers, SendShape};
use crate::measure::Recorder;
use crate::payload::Stamp;
use crate::schedule::{Arrivals, Schedule};

/// Bytes that are gathered before they are written.
const FLUSH_BYTES: usize = 256 << 10;
/// Bytes of one read.
const READ_BYTES: usize = 256 << 10;
/// How long a worker sleeps at most before it looks whether the run is over.
const NAP: Duration = Duration::from_millis(100);
/// How long answers are waited for when the run is over.
const DRAIN: Duration = Duration::from_secs(10);

/// When a run began, on both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    instant: Instant,
    epoch_ns: i64,
}

impl Origin {
    /// The run begins now.
    pub fn now() -> Self {
        let epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            instant: Instant::now(),
            epoch_ns: epoch.as_nanos() as i64,
        }
    }

    /// Nanoseconds since the run began.
    pub fn elapsed_ns(&self) -> u64 {
        self.instant.elapsed().as_nanos() as u64
    }

    /// A moment of the run in nanoseconds since 1970.
    pub fn epoch_ns(&self, at_ns: u64) -> i64 {
        self.epoch_ns + at_ns as i64
    }
}

/// What one worker does.
pub struct Worker {
    /// Number of this worker among all of the run, also of other processes.
    pub number: u32,
    pub run: u64,
    pub origin: Origin,
    pub brokers: Vec<Broker>,
    pub topics: Vec<String>,
    /// Queues of each topic on each broker.
    pub queues: u32,
    pub shape: SendShape,
    pub message: Vec<u8>,
    /// To each broker.
    pub connections: usize,
    /// Requests on all connections of this worker.
    pub in_flight: usize,
    pub arrivals: Arrivals,
    /// When the first request is due, nanoseconds since the run began.
    pub first_ns: u64,
    /// No request begins after it.
    pub until_ns: u64,
    pub cpu: Option<usize>,
}

/// What a worker did, warm-up included.
#[derive(Clone, Copy, Debug, Default)]
pub struct Done {
    pub requests: u64,
    pub unanswered: u64,
}

struct Lane {
    connection: Connection,
    /// Index of its first target, and how many it has: those of its broker.
    targets: std::ops::Range<usize>,
    next_target: usize,
    /// By target, from the first one of its broker.
    sequences: Vec<u64>,
    producer: u32,
    in_flight_max: usize,
    wants_output: bool,
}

struct Run<'a> {
    worker: &'a Worker,
    lanes: Vec<Lane>,
    headers: Vec<SendHeader>,
    body: SendBody,
    schedule: Schedule,
    next_lane: usize,
    key: u64,
    done: Done,
}

impl Worker {
    /// Sends until the run is over or `stop` says so, then waits for what is in flight.
    pub fn run(&self, mut recorder: Recorder, stop: &AtomicBool) -> Result<Done, ConnectionError> {
        if let Some(cpu) = self.cpu {
            let mut set = rustix::thread::CpuSet::new();
            set.set(cpu);
            rustix::thread::sched_setaffinity(None, &set).map_err(io::Error::from)?;
        }
        let body = SendBody::new(&self.shape, &self.message);
        let mut headers = Vec::new();
        let mut lanes = Vec::new();
        for broker in &self.brokers {
            let first = headers.len();
            for topic in &self.topics {
                for queue in 0..self.queues {
                    headers.push(SendHeader::new(
                        &self.shape,
                        topic,
                        &broker.name,
                        queue,
                        body.len(),
                    ));
                }
            }
            for _ in 0..self.connections {
                lanes.push(Lane {
                    connection: Connection::connect(broker.address)?,
                    targets: first..headers.len(),
                    // Connections begin at different queues, so that few of them do not all write the same one.
                    next_target: first
                        + (lanes.len() * 7 + self.number as usize * 3) % (headers.len() - first),
                    sequences: vec![0; headers.len() - first],
                    producer: self.number << 12 | lanes.len() as u32,
                    in_flight_max: 0,
                    wants_output: false,
                });
            }
        }
        let count = lanes.len();
        for (index, lane) in lanes.iter_mut().enumerate() {
            lane.in_flight_max =
                self.in_flight / count + usize::from(index < self.in_flight % count);
        }
        let mut run = Run {
            worker: self,
            schedule: Schedule::new(self.arrivals, self.first_ns),
            lanes,
            headers,
            body,
            next_lane: 0,
            key: 0,
            done: Done::default(),
        };
        run.run(&mut recorder, stop)?;
        recorder.finish();
        Ok(run.done)
    }
}

impl Run<'_> {
    fn now_ns(&self) -> u64 {
        self.worker.origin.elapsed_ns()
    }

    fn run(&mut self, recorder: &mut Recorder, stop: &AtomicBool) -> Result<(), ConnectionError> {
        let single = self.lanes.len() == 1 && self.worker.arrivals == Arrivals::Closed;
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(io::Error::from)?;
        for (index, lane) in self.lanes.iter().enumerate() {
            lane.connection.stream().set_read_timeout(Some(NAP))?;
            let data = epoll::EventData::new_u64(index as u64);
            epoll::add(&poll, lane.connection.stream(), data, epoll::EventFlags::IN)
                .map_err(io::Error::from)?;
        }
        let mut scratch = vec![0; READ_BYTES];
        let mut events = Vec::with_capacity(self.lanes.len().clamp(1, 1024));
        let mut gives_up_ns = u64::MAX;
        loop {
            let now_ns = self.now_ns();
            recorder.advance(now_ns);
            if now_ns < self.worker.until_ns && !stop.load(Ordering::Relaxed) {
                self.fill(now_ns)?;
            } else {
                gives_up_ns = gives_up_ns.min(now_ns + DRAIN.as_nanos() as u64);
                let idle = self
                    .lanes
                    .iter()
                    .all(|lane| lane.connection.in_flight.is_empty());
                if idle || now_ns >= gives_up_ns {
                    break;
                }
            }
            for index in 0..self.lanes.len() {
                self.flush(index, &poll)?;
            }
            if single && !self.lanes[0].wants_output {
                if self.lanes[0].connection.receive(&mut scratch, true)? {
                    self.answers(0, recorder)?;
                }
                continue;
            }
            let wait = match self.schedule.next_ns() {
                Some(next_ns) if gives_up_ns == u64::MAX => {
                    Duration::from_nanos(next_ns.saturating_sub(self.now_ns())).min(NAP)
                }
                _ => NAP,
            };
            let timeout = Timespec {
                tv_sec: wait.as_secs() as i64,
                tv_nsec: wait.subsec_nanos().into(),
            };
            events.clear();
            match epoll::wait(
                &poll,
                rustix::buffer::spare_capacity(&mut events),
                Some(&timeout),
            ) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(ConnectionError::Io(error.into())),
            }
            for event in &events {
                let index = event.data.u64() as usize;
                let flags = event.flags; // the struct is packed
                if flags.contains(epoll::EventFlags::OUT) {
                    self.flush(index, &poll)?;
                }
                if flags.intersects(!epoll::EventFlags::OUT)
                    && self.lanes[index].connection.receive(&mut scratch, false)?
                {
                    self.answers(index, recorder)?;
                }
            }
        }
        let now_ns = self.now_ns();
        for lane in &self.lanes {
            for sent in lane.connection.in_flight.abandoned() {
                self.done.unanswered += 1;
                let messages = self.worker.shape.batch as u64;
                recorder.failed(
                    sent.due_ns,
                    now_ns,
                    messages,
                    "unanswered",
                    "no answer came before the run was given up",
                );
            }
        }
        Ok(())
    }

    /// Writes what waits, and asks to be told when more can be written.
    fn flush(
        &mut self,
        index: usize,
        poll: &impl std::os::fd::AsFd,
    ) -> Result<(), ConnectionError> {
        let lane = &mut self.lanes[index];
        lane.connection.flush()?;
        let wants = lane.connection.has_output();
        if wants != lane.wants_output {
            lane.wants_output = wants;
            let mut flags = epoll::EventFlags::IN;
            flags.set(epoll::EventFlags::OUT, wants);
            let data = epoll::EventData::new_u64(index as u64);
            epoll::modify(poll, lane.connection.stream(), data, flags).map_err(io::Error::from)?;
        }
        Ok(())
    }

    /// Begins all requests that are due and have room.
    fn fill(&mut self, now_ns: u64) -> Result<(), ConnectionError> {
        let lanes = self.lanes.len();
        let mut full = 0;
        while full < lanes {
            let index = self.next_lane;
            self.next_lane = if index + 1 == lanes { 0 } else { index + 1 };
            let lane = &self.lanes[index];
            if lane.connection.in_flight.len() >= lane.in_flight_max || lane.wants_output {
                full += 1;
                continue;
            }
            let Some(due_ns) = self.schedule.take(now_ns) else {
                return Ok(());
            };
            if due_ns >= self.worker.until_ns {
                return Ok(());
            }
            full = 0;
            self.begin(index, due_ns);
            let lane = &mut self.lanes[index];
            if lane.connection.out.len() >= FLUSH_BYTES {
                lane.connection.flush()?;
                lane.wants_output =
                    lane.wants_output || lane.connection.out.len() >= 4 * FLUSH_BYTES;
            }
        }
        Ok(())
    }

    fn begin(&mut self, index: usize, due_ns: u64) {
        let lane = &mut self.lanes[index];
        let target = lane.next_target;
        lane.next_target = if target + 1 == lane.targets.end {
            lane.targets.start
        } else {
            target + 1
        };
        let batch = self.worker.shape.batch as u64;
        let sequence = &mut lane.sequences[target - lane.targets.start];
        let epoch_ns = self.worker.origin.epoch_ns(due_ns);
        let numbers = SendNumbers {
            opaque: lane.connection.in_flight.begin(Sent {
                due_ns,
                target: target as u32,
                sequence: *sequence,
            }),
            born_ms: epoch_ns / 1_000_000,
            key: self.key,
            stamp: Stamp {
                producer: lane.producer,
                run: self.worker.run,
                sequence: *sequence,
                due_ns: epoch_ns,
            },
        };
        *sequence += batch;
        self.key += batch;
        self.done.requests += 1;
        self.headers[target].append(&self.body, &numbers, &mut lane.connection.out);
    }

    /// Takes all whole answers that were read.
    fn answers(&mut self, index: usize, recorder: &mut Recorder) -> Result<(), ConnectionError> {
        let now_ns = self.now_ns();
        while let Some(answer) = self.lanes[index].connection.next()? {
            self.answer(index, &answer, now_ns, recorder);
        }
        Ok(())
    }

    fn answer(&mut self, index: usize, answer: &Command, now_ns: u64, recorder: &mut Recorder) {
        let batch = self.worker.shape.batch as u64;
        if !answer.is_response() {
            return; // a question of the broker, such as a check of a transaction
        }
        let Some(sent) = self.lanes[index].connection.in_flight.end(answer.opaque) else {
            let remark = format!("opaque {} is not in flight", answer.opaque);
            recorder.failed(now_ns, now_ns, 1, "unasked answer", &remark);
            return;
        };
        if answer.code != response::SUCCESS {
            let kind = format!(
                "{} {}",
                answer.code,
                response_name(answer.code).unwrap_or("unknown")
            );
            let remark = answer.remark.as_deref().unwrap_or_default();
            recorder.failed(sent.due_ns, now_ns, batch, &kind, remark);
            return;
        }
        let queue =
            (sent.target as usize - self.lanes[index].targets.start) as u32 % self.worker.queues;
        match check(answer, queue) {
            Ok(()) => {
                let bytes = batch * self.worker.message.len() as u64;
                recorder.answered(sent.due_ns, now_ns, batch, bytes);
            }
            Err(remark) => recorder.failed(sent.due_ns, now_ns, batch, "wrong answer", &remark),
        }
    }
}

/// What an answer to a send has to say: a message id, the queue that was asked for, an offset in it.
fn check(answer: &Command, queue: u32) -> Result<(), String> {
    let number = |name| answer.required_int(name).map_err(|error| error.to_string());
    if number("queueId")? != i64::from(queue) {
        return Err(format!(
            "sent to queue {queue}, answered for queue {}",
            number("queueId")?
        ));
    }
    if number("queueOffset")? < 0 {
        return Err(format!("the queue offset is {}", number("queueOffset")?));
    }
    match answer.bytes("msgId") {
        Some(id) if !id.is_empty() => Ok(()),
        _ => Err("there is no message id".to_owned()),
    }
}
