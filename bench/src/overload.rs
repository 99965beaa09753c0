//! More load than a broker can take: what it still does, whom it refuses and why, what it needs for that.
//!
//! One thread holds all connections. It finds the peak with a closed loop, then offers a multiple of it in an open loop, the
//! requests in turns over the connections. What a socket does not take is not offered to it (`held_back`): a client with
//! a full socket waits, too. Beside the load some consumers read far more slowly than they ask. At the end many
//! clients connect, all go away at once and come back within seconds (a name server or a switch was restarted).

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use ringmq::wire::remoting::code::{request, response};
use ringmq::wire::remoting::command::{Encoding, Outgoing};
use serde::{Deserialize, Serialize};

use crate::clock::Origin;
use crate::connection::{Connection, ConnectionError, Sent};
use crate::control::{Broker, Control, ControlError};
use crate::frames::{SendBody, SendHeader, SendNumbers, SendShape};
use crate::payload::{Stamp, filler};
use crate::plan::Protocol;
use crate::process::usage;
use crate::producer::code_name;
use crate::reactor::Reactor;

/// Bytes that wait for a socket; a connection with more is offered nothing.
const WAITING_BYTES_MAX: usize = 64 << 10;
/// Requests of a connection without an answer.
const IN_FLIGHT_MAX: usize = 4_096;
/// How long answers are waited for after a phase.
const DRAIN: Duration = Duration::from_secs(20);
/// Greatest latency that is told from greater ones.
const LATENCY_US_MAX: u64 = 120_000_000;
/// What a slow consumer takes of its answers, and how often.
const SLOW_BYTES: usize = 4 << 10;
const SLOW_PAUSE: Duration = Duration::from_millis(50);
/// Pulls that a slow consumer has on their way.
const SLOW_PULLS: usize = 256;
/// How often the answers to a storm are looked for while it comes.
const STORM_LOOK: Duration = Duration::from_millis(5);
/// A client of a storm gives up after it.
const STORM_PATIENCE: Duration = Duration::from_secs(60);

/// What is done.
#[derive(Clone, Debug)]
pub struct OverloadPlan {
    pub broker: Broker,
    pub broker_pids: Vec<u32>,
    pub topic: String,
    pub queues: u32,
    pub size: usize,
    pub connections: usize,
    /// Requests in flight when the peak is looked for, over all connections.
    pub in_flight: usize,
    pub seconds: f64,
    /// Multiples of the peak.
    pub factors: Vec<f64>,
    pub slow_consumers: usize,
    pub storm: usize,
    /// In which they come back; the first time they come in half of it.
    pub storm_seconds: f64,
}

/// Why it could not be done.
#[derive(Debug, thiserror::Error)]
pub enum OverloadError {
    #[error("{0}")]
    Control(#[from] ControlError),
    #[error("a connection of the load broke: {0}")]
    Connection(#[from] ConnectionError),
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// What one load came to.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Phase {
    pub name: String,
    /// Messages per second that were due; 0 in the closed loop.
    pub offered_per_second: f64,
    /// Messages per second that were written to a socket.
    pub sent_per_second: f64,
    /// Messages per second that were acknowledged.
    pub goodput_per_second: f64,
    /// `goodput_per_second` by that of the peak.
    pub goodput_ratio: f64,
    /// From the writing to the acknowledgement, milliseconds.
    pub latency_p50_ms: f64,
    pub latency_p99_ms: f64,
    pub latency_max_ms: f64,
    /// By code and remark, whose numbers are shown as `#`: how many, and the first remark as it came.
    pub refused: BTreeMap<String, Refused>,
    /// Messages that were due and that no socket took.
    pub held_back: u64,
    /// Requests without an answer when all waiting was over.
    pub unanswered: u64,
    /// Acknowledged messages of the connection that has the fewest, and the most.
    pub connection_min: u64,
    pub connection_max: u64,
    /// Of the broker at the end of the phase.
    pub broker_resident_bytes: u64,
    pub broker_peak_bytes: u64,
}

/// See [`Phase::refused`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Refused {
    pub count: u64,
    pub example: String,
}

/// What became of the storm.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Storm {
    pub clients: usize,
    pub came_within_seconds: f64,
    /// From the first attempt to the answer that came last.
    pub settled_seconds: f64,
    /// Longest wait of one client from its attempt to its answer, milliseconds.
    pub slowest_ms: f64,
    pub failed: usize,
    pub first_failure: String,
    pub broker_resident_bytes: u64,
}

/// All that came out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Overload {
    /// The first is the peak.
    pub phases: Vec<Phase>,
    /// Bytes that all slow consumers together have taken.
    pub slow_consumers_bytes: u64,
    pub slow_consumers_failed: u64,
    pub storm: Option<Storm>,
    /// `memory` of the broker's settings, if it has such a key.
    pub broker_memory: Option<String>,
}

/// A remark without its numbers, so that equal reasons are one.
fn reason_of(code: i32, remark: &str) -> String {
    let mut reason = code_name(code);
    reason.push_str(": ");
    for character in remark.chars() {
        match character {
            '0'..='9' if reason.ends_with('#') => {}
            '0'..='9' => reason.push('#'),
            other => reason.push(other),
        }
    }
    reason
}

struct Load {
    origin: Origin,
    connections: Vec<Connection>,
    reactor: Reactor,
    sends: Vec<SendHeader>,
    body: SendBody,
    next_connection: usize,
    next_queue: usize,
    key: u64,
    pids: Vec<u32>,
}

/// What is counted in a phase.
struct Tally {
    acknowledged: Vec<u64>,
    /// Those of them that came within the measured time.
    in_time: u64,
    until_ns: u64,
    refused: BTreeMap<String, Refused>,
    latency: Histogram<u64>,
    sent: u64,
    held_back: u64,
}

impl Load {
    fn new(plan: &OverloadPlan) -> Result<Self, OverloadError> {
        let shape = SendShape {
            encoding: Encoding::Json,
            producer_group: "overload".to_owned(),
            batch: 1,
            key_prefix: format!("{:016X}", fastrand::u64(..)),
            properties: Vec::new(),
            sys_flag: 0,
        };
        let message = filler(plan.size);
        let body = SendBody::new(&shape, &message);
        let connections: Result<Vec<_>, _> = (0..plan.connections)
            .map(|_| Connection::connect(plan.broker.address, Protocol::Remoting))
            .collect();
        let connections = connections?;
        let header =
            |queue| SendHeader::new(&shape, &plan.topic, &plan.broker.name, queue, body.len());
        Ok(Self {
            origin: Origin::now(),
            reactor: Reactor::new(connections.iter())?,
            connections,
            sends: (0..plan.queues).map(header).collect(),
            body,
            next_connection: 0,
            next_queue: 0,
            key: 0,
            pids: plan.broker_pids.clone(),
        })
    }

    fn begin(&mut self, index: usize, now_ns: u64) {
        let connection = &mut self.connections[index];
        let epoch_ns = self.origin.epoch_ns(now_ns);
        let numbers = SendNumbers {
            opaque: connection.in_flight.begin(Sent {
                due_ns: now_ns,
                target: index as u32,
                sequence: self.key,
            }),
            born_ms: epoch_ns / 1_000_000,
            key: self.key,
            stamp: Stamp {
                producer: index as u32,
                run: 0,
                sequence: self.key,
                due_ns: epoch_ns,
            },
        };
        self.key += 1;
        self.next_queue = (self.next_queue + 1) % self.sends.len();
        self.sends[self.next_queue].append(&self.body, &numbers, &mut connection.out);
    }

    /// Sends for a while: `rate` messages per second, or `in_flight` requests at a time if there is no rate.
    fn phase(
        &mut self,
        name: String,
        rate: Option<f64>,
        in_flight: usize,
        time: Duration,
    ) -> Result<Phase, OverloadError> {
        let count = self.connections.len();
        let began_ns = self.origin.elapsed_ns();
        let until_ns = began_ns + time.as_nanos() as u64;
        let mut tally = Tally {
            acknowledged: vec![0; count],
            in_time: 0,
            until_ns,
            refused: BTreeMap::new(),
            latency: Histogram::new_with_max(LATENCY_US_MAX, 2).map_err(io::Error::other)?,
            sent: 0,
            held_back: 0,
        };
        let mut due_total = 0u64;
        let window = in_flight.div_ceil(count).max(1);
        loop {
            let now_ns = self.origin.elapsed_ns();
            if now_ns >= until_ns {
                break;
            }
            match rate {
                Some(rate) => {
                    let due = (rate * (now_ns - began_ns) as f64 / 1e9) as u64;
                    while due_total < due {
                        due_total += 1;
                        let index = self.next_connection;
                        self.next_connection = (index + 1) % count;
                        let connection = &self.connections[index];
                        let is_full = connection.out.len() >= WAITING_BYTES_MAX
                            || connection.in_flight.len() >= IN_FLIGHT_MAX;
                        if is_full {
                            tally.held_back += 1;
                        } else {
                            tally.sent += 1;
                            self.begin(index, now_ns);
                        }
                    }
                }
                None => {
                    for index in 0..count {
                        while self.connections[index].in_flight.len() < window {
                            tally.sent += 1;
                            self.begin(index, now_ns);
                        }
                    }
                }
            }
            self.turn(&mut tally, Duration::from_micros(500))?;
        }
        let drained_ns = until_ns + DRAIN.as_nanos() as u64;
        let is_busy = |connection: &Connection| !connection.in_flight.is_empty();
        while self.connections.iter().any(is_busy) && self.origin.elapsed_ns() < drained_ns {
            self.turn(&mut tally, Duration::from_millis(10))?;
        }
        let seconds = time.as_secs_f64();
        let in_flight = self
            .connections
            .iter()
            .map(|one| one.in_flight.len() as u64);
        let quantile = |quantile| tally.latency.value_at_quantile(quantile) as f64 / 1e3;
        let broker = usage(&self.pids)?;
        Ok(Phase {
            name,
            offered_per_second: rate.unwrap_or(0.0),
            sent_per_second: tally.sent as f64 / seconds,
            goodput_per_second: tally.in_time as f64 / seconds,
            goodput_ratio: 1.0,
            latency_p50_ms: quantile(0.5),
            latency_p99_ms: quantile(0.99),
            latency_max_ms: tally.latency.max() as f64 / 1e3,
            unanswered: in_flight.sum(),
            connection_min: tally.acknowledged.iter().copied().min().unwrap_or(0),
            connection_max: tally.acknowledged.iter().copied().max().unwrap_or(0),
            refused: tally.refused,
            held_back: tally.held_back,
            broker_resident_bytes: broker.resident_bytes,
            broker_peak_bytes: broker.peak_resident_bytes,
        })
    }

    /// Writes what waits, waits for the sockets, takes the answers.
    fn turn(&mut self, tally: &mut Tally, wait: Duration) -> Result<(), OverloadError> {
        for (index, connection) in self.connections.iter_mut().enumerate() {
            self.reactor.flush(index, connection)?;
        }
        for at in 0..self.reactor.wait(wait)? {
            let ready = self.reactor.ready(at);
            let connection = &mut self.connections[ready.index];
            if ready.writable {
                self.reactor.flush(ready.index, connection)?;
            }
            if !ready.readable || !connection.receive(false)? {
                continue;
            }
            let now_ns = self.origin.elapsed_ns();
            while let Some((answer, sent)) = connection.next_answer()? {
                let Some(sent) = sent else { continue };
                if answer.code == response::SUCCESS {
                    tally.acknowledged[ready.index] += 1;
                    tally.in_time += u64::from(now_ns <= tally.until_ns);
                    let waited_us = now_ns.saturating_sub(sent.due_ns) / 1_000;
                    tally.latency.saturating_record(waited_us.max(1));
                } else {
                    let remark = answer.remark.as_deref().unwrap_or_default();
                    let reason = tally.refused.entry(reason_of(answer.code, remark));
                    let reason = reason.or_insert_with(|| Refused {
                        count: 0,
                        example: remark.to_owned(),
                    });
                    reason.count += 1;
                }
            }
        }
        Ok(())
    }
}

/// Consumers that ask for much and take little.
struct SlowConsumers {
    stop: Arc<AtomicBool>,
    bytes: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

fn pull(topic: &str, queue: u32) -> Vec<u8> {
    let ask = Outgoing::request(request::PULL_MESSAGE)
        .field("consumerGroup", "overload_slow")
        .field("topic", topic.to_owned())
        .field("queueId", queue)
        .field("queueOffset", 0)
        .field("maxMsgNums", 256)
        .field("sysFlag", 4)
        .field("commitOffset", 0)
        .field("suspendTimeoutMillis", 1_000)
        .field("subscription", "*")
        .field("subVersion", 0)
        .field("expressionType", "TAG");
    ask.frame(Encoding::Json, &[]).to_vec()
}

impl SlowConsumers {
    fn start(plan: &OverloadPlan) -> Result<Self, OverloadError> {
        let (stop, bytes, failed) = (Arc::default(), Arc::default(), Arc::default());
        let mut streams = Vec::new();
        for number in 0..plan.slow_consumers {
            let mut stream = TcpStream::connect(plan.broker.address)?;
            let ask = pull(&plan.topic, number as u32 % plan.queues);
            stream.write_all(&ask.repeat(SLOW_PULLS))?;
            stream.set_nonblocking(true)?;
            streams.push(stream);
        }
        let (own_stop, own_bytes, own_failed): (Arc<AtomicBool>, Arc<AtomicU64>, Arc<AtomicU64>) =
            (Arc::clone(&stop), Arc::clone(&bytes), Arc::clone(&failed));
        let thread = std::thread::spawn(move || {
            let mut room = vec![0; SLOW_BYTES];
            while !own_stop.load(Ordering::Relaxed) {
                streams.retain_mut(|stream| match stream.read(&mut room) {
                    Ok(read) if read > 0 => {
                        own_bytes.fetch_add(read as u64, Ordering::Relaxed);
                        true
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => true,
                    _ => {
                        own_failed.fetch_add(1, Ordering::Relaxed);
                        false
                    }
                });
                std::thread::sleep(SLOW_PAUSE);
            }
        });
        Ok(Self {
            stop,
            bytes,
            failed,
            thread: Some(thread),
        })
    }

    fn end(mut self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let (bytes, failed) = (&self.bytes, &self.failed);
        (
            bytes.load(Ordering::Relaxed),
            failed.load(Ordering::Relaxed),
        )
    }
}

fn heartbeat(number: usize) -> Vec<u8> {
    let body = format!(
        r#"{{"clientID":"storm-{number}","consumerDataSet":[],"producerDataSet":[{{"groupName":"overload"}}]}}"#
    );
    let ask = Outgoing::request(request::HEART_BEAT);
    ask.frame(Encoding::Json, body.as_bytes()).to_vec()
}

/// One client of the storm: connects and says who it is; done when the broker has answered.
struct StormClient {
    stream: TcpStream,
    began: Instant,
    waits: bool,
}

fn storm_client(address: SocketAddr, number: usize) -> io::Result<StormClient> {
    let began = Instant::now();
    let mut stream = TcpStream::connect_timeout(&address, STORM_PATIENCE)?;
    stream.write_all(&heartbeat(number))?;
    stream.set_nonblocking(true)?;
    Ok(StormClient {
        stream,
        began,
        waits: true,
    })
}

/// Looks for answers; gives how many still wait.
fn look(clients: &mut [StormClient], storm: &mut Storm, began: Instant) -> usize {
    let mut room = [0; 1024];
    let mut waiting = 0;
    for client in clients.iter_mut().filter(|client| client.waits) {
        let failure = match client.stream.read(&mut room) {
            Ok(0) => "the broker closed the connection".to_owned(),
            Ok(_) => {
                client.waits = false;
                let waited_ms = client.began.elapsed().as_secs_f64() * 1e3;
                storm.slowest_ms = storm.slowest_ms.max(waited_ms);
                storm.settled_seconds = began.elapsed().as_secs_f64();
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                waiting += 1;
                continue;
            }
            Err(error) => error.to_string(),
        };
        client.waits = false;
        storm.failed += 1;
        storm.first_failure = failure;
    }
    waiting
}

/// `count` clients come within `time`.
fn come(address: SocketAddr, count: usize, time: Duration) -> (Storm, Vec<StormClient>) {
    let mut storm = Storm {
        clients: count,
        ..Storm::default()
    };
    let mut clients: Vec<StormClient> = Vec::with_capacity(count);
    let began = Instant::now();
    let mut looked = began;
    for number in 0..count {
        let due = time.mul_f64(number as f64 / count as f64);
        std::thread::sleep(due.saturating_sub(began.elapsed()));
        match storm_client(address, number) {
            Ok(client) => clients.push(client),
            Err(error) => {
                storm.failed += 1;
                storm.first_failure = error.to_string();
            }
        }
        if looked.elapsed() >= STORM_LOOK {
            looked = Instant::now();
            look(&mut clients, &mut storm, began);
        }
    }
    storm.came_within_seconds = began.elapsed().as_secs_f64();
    while look(&mut clients, &mut storm, began) > 0 && began.elapsed() < time + STORM_PATIENCE {
        std::thread::sleep(Duration::from_millis(5));
    }
    let silent = clients.iter().filter(|client| client.waits).count();
    if silent > 0 {
        storm.failed += silent;
        storm.first_failure = format!("no answer in {} s", STORM_PATIENCE.as_secs());
    }
    (storm, clients)
}

/// Does all of it, and tells `say` what was found as it is found.
pub fn overload(plan: &OverloadPlan, say: impl Fn(&str)) -> Result<Overload, OverloadError> {
    let mut control = Control::connect(&plan.broker.address.to_string())?;
    control.make_topic(&plan.topic, plan.queues)?;
    let settings = control.broker_config().unwrap_or_default();
    let mut result = Overload {
        broker_memory: settings.get("memory").cloned(),
        ..Overload::default()
    };
    let time = Duration::from_secs_f64(plan.seconds);
    let mut load = Load::new(plan)?;
    load.phase("warm-up".to_owned(), None, plan.in_flight, time / 2)?;
    let peak = load.phase("peak".to_owned(), None, plan.in_flight, time)?;
    say(&line(&peak));
    let slow = SlowConsumers::start(plan)?;
    let peak_per_second = peak.goodput_per_second;
    result.phases.push(peak);
    for factor in &plan.factors {
        let rate = factor * peak_per_second;
        let mut phase = load.phase(format!("{factor} x"), Some(rate), 0, time)?;
        phase.goodput_ratio = phase.goodput_per_second / peak_per_second.max(1.0);
        say(&line(&phase));
        result.phases.push(phase);
    }
    (result.slow_consumers_bytes, result.slow_consumers_failed) = slow.end();
    drop(load);
    if plan.storm > 0 {
        let time = Duration::from_secs_f64(plan.storm_seconds);
        let (_, clients) = come(plan.broker.address, plan.storm, time / 2);
        drop(clients);
        let (mut storm, clients) = come(plan.broker.address, plan.storm, time);
        storm.broker_resident_bytes = usage(&plan.broker_pids)?.resident_bytes;
        drop(clients);
        say(&format!(
            "storm: {} clients in {:.1} s, settled after {:.1} s, slowest {:.1} ms, {} failed {}, broker {} MiB",
            storm.clients,
            storm.came_within_seconds,
            storm.settled_seconds,
            storm.slowest_ms,
            storm.failed,
            storm.first_failure,
            storm.broker_resident_bytes >> 20
        ));
        result.storm = Some(storm);
    }
    say(&format!(
        "slow consumers: {} KiB taken, {} failed; broker memory={}",
        result.slow_consumers_bytes >> 10,
        result.slow_consumers_failed,
        result.broker_memory.as_deref().unwrap_or("?")
    ));
    Ok(result)
}

fn line(phase: &Phase) -> String {
    let mut text = format!(
        "{:8} offered {:8.0}/s, sent {:8.0}/s, acknowledged {:8.0}/s ({:3.0} % of the peak), p50 {:.1} p99 {:.1} max {:.1} ms, \
         a connection {}..{}, {} held back, {} unanswered, broker {} MiB (at most {})",
        phase.name,
        phase.offered_per_second,
        phase.sent_per_second,
        phase.goodput_per_second,
        100.0 * phase.goodput_ratio,
        phase.latency_p50_ms,
        phase.latency_p99_ms,
        phase.latency_max_ms,
        phase.connection_min,
        phase.connection_max,
        phase.held_back,
        phase.unanswered,
        phase.broker_resident_bytes >> 20,
        phase.broker_peak_bytes >> 20,
    );
    for (reason, refused) in &phase.refused {
        let (count, example) = (refused.count, &refused.example);
        text.push_str(&format!(
            "\n         {count} refused with {reason}\n           such as: {example}"
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remarks_that_differ_in_their_numbers_are_one_reason() {
        let one = reason_of(2, "67108864 bytes wait on shard 0");
        assert_eq!(one, reason_of(2, "6 bytes wait on shard 17"));
        assert!(one.ends_with(": # bytes wait on shard #"), "{one}");
        assert_ne!(one, reason_of(14, "6 bytes wait on shard 17"));
    }
}
