//! One run by several processes, on one machine or more: agents make the load, a coordinator merges what they measured.
//!
//! The coordinator tells each agent its share of the plan, one after the other, so that topics are there when the second one
//! connects. When all are ready it starts them together. Messages are lines of JSON. An agent does what anybody who
//! reaches its port tells it, so it listens on the loopback address unless it is told otherwise.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::control::resolve;
use crate::machine::{Machine, facts};
use crate::measure::{Failures, Interval, add_failure};
use crate::plan::Plan;
use crate::progress::Progress;
use crate::result::{Parts, RunResult, decode, summarise};
use crate::run::{Outcome, Share, prepare};

/// A line that is longer is no message of ours: a result of an hour has a few megabytes.
const LINE_BYTES_MAX: u64 = 256 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an agent may take to connect to brokers and make topics.
const READY_TIMEOUT: Duration = Duration::from_secs(300);

/// To an agent.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Order {
    Prepare { plan: Box<Plan>, share: Share },
    Start,
}

/// From an agent.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Report {
    Ready,
    Done { result: Box<RunResult> },
    Failed { reason: String },
}

struct Line {
    reader: BufReader<TcpStream>,
    peer: String,
}

impl Line {
    fn new(stream: TcpStream, peer: String) -> Self {
        let _ = stream.set_nodelay(true);
        Self {
            reader: BufReader::new(stream),
            peer,
        }
    }

    fn send(&mut self, message: &impl Serialize) -> Result<(), String> {
        let mut text = serde_json::to_string(message).map_err(|error| error.to_string())?;
        text.push('\n');
        self.reader
            .get_mut()
            .write_all(text.as_bytes())
            .map_err(|error| format!("{}: {error}", self.peer))
    }

    fn receive<T: DeserializeOwned>(&mut self, timeout: Option<Duration>) -> Result<T, String> {
        let failed = |peer: &str, error: &dyn std::fmt::Display| format!("{peer}: {error}");
        self.reader
            .get_ref()
            .set_read_timeout(timeout)
            .map_err(|error| failed(&self.peer, &error))?;
        let mut text = Vec::new();
        (&mut self.reader)
            .take(LINE_BYTES_MAX)
            .read_until(b'\n', &mut text)
            .map_err(|error| failed(&self.peer, &error))?;
        if text.is_empty() {
            return Err(failed(&self.peer, &"the connection was closed"));
        }
        serde_json::from_slice(&text).map_err(|error| failed(&self.peer, &error))
    }
}

/// Serves coordinators one after the other; with `once` a single one.
pub fn serve(listen: &str, once: bool) -> Result<(), String> {
    let listener = TcpListener::bind(resolve(listen).map_err(|error| error.to_string())?)
        .map_err(|error| format!("cannot listen on {listen}: {error}"))?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    println!("agent listens on {address}");
    for stream in listener.incoming() {
        match stream {
            Ok(stream) => {
                let peer = stream
                    .peer_addr()
                    .map_or_else(|_| "coordinator".to_owned(), |peer| peer.to_string());
                if let Err(reason) = obey(&mut Line::new(stream, peer)) {
                    eprintln!("ringmq-bench agent: {reason}");
                }
            }
            Err(error) => eprintln!("ringmq-bench agent: {error}"),
        }
        if once {
            break;
        }
    }
    Ok(())
}

fn obey(line: &mut Line) -> Result<(), String> {
    let Order::Prepare { plan, share } = line.receive(Some(READY_TIMEOUT))? else {
        return Err("an order to start came before the plan".to_owned());
    };
    let prepared = match prepare(&plan, share) {
        Ok(prepared) => prepared,
        Err(reason) => {
            line.send(&Report::Failed {
                reason: reason.clone(),
            })?;
            return Err(reason);
        }
    };
    let settings = prepared.settings.clone();
    let machine = machine_of(&plan, &settings);
    line.send(&Report::Ready)?;
    let Order::Start = line.receive(Some(READY_TIMEOUT))? else {
        return Err("a second plan came instead of the order to start".to_owned());
    };
    let mut progress = Progress::new(&plan.name);
    let outcome = prepared.execute(|live| progress.show(live));
    drop(progress);
    let result = summarise(Parts {
        plan: &plan,
        processes: 1,
        machine,
        settings,
        outcome: &outcome,
        whole_series: true,
    });
    line.send(&Report::Done {
        result: Box::new(result),
    })
}

/// The machine, with the file system of the store that a broker's settings name.
pub fn machine_of(plan: &Plan, settings: &BTreeMap<String, String>) -> Machine {
    facts(
        settings.get("storePathRootDir").map(String::as_str),
        plan.broker_pids.first().copied(),
    )
}

/// Runs a plan on agents and merges what they say.
pub fn coordinate(plan: &Plan, addresses: &[String]) -> Result<(RunResult, Outcome), String> {
    plan.check()?;
    if plan.verify {
        return Err(
            "--verify needs producer and consumer in one process; leave out --agents".to_owned(),
        );
    }
    let run = Share::whole().run;
    let mut lines = Vec::new();
    for (index, address) in addresses.iter().enumerate() {
        let to = resolve(address).map_err(|error| error.to_string())?;
        let stream = TcpStream::connect_timeout(&to, CONNECT_TIMEOUT)
            .map_err(|error| format!("{address}: {error}"))?;
        let mut line = Line::new(stream, address.clone());
        let share = Share {
            index: index as u32,
            count: addresses.len() as u32,
            run,
        };
        let mut plan = plan.clone();
        if index > 0 {
            // One looks at the broker's processes.
            plan.broker_pids.clear();
        }
        line.send(&Order::Prepare {
            plan: Box::new(plan),
            share,
        })?;
        match line.receive(Some(READY_TIMEOUT))? {
            Report::Ready => lines.push(line),
            Report::Failed { reason } => return Err(format!("{address}: {reason}")),
            Report::Done { .. } => {
                return Err(format!("{address}: a result came before the start"));
            }
        }
    }
    for line in &mut lines {
        line.send(&Order::Start)?;
    }
    let mut results = Vec::new();
    for line in &mut lines {
        match line.receive(None)? {
            Report::Done { result } => results.push(*result),
            Report::Failed { reason } => return Err(format!("{}: {reason}", line.peer)),
            Report::Ready => return Err(format!("{}: it says twice that it is ready", line.peer)),
        }
    }
    let mut outcome = merge(&results)?;
    let first = &results[0];
    // Processes on this machine are no foreigners to each other: their time is the client's.
    for sample in &mut outcome.samples {
        for other in &results[1..] {
            let at = |seconds: f64| {
                let near = other.samples.iter().min_by(|one, two| {
                    let distance =
                        |sample: &crate::run::Sample| (sample.at_seconds - seconds).abs();
                    distance(one).total_cmp(&distance(two))
                });
                near.map_or(0.0, |sample| sample.client_cpu_seconds)
            };
            sample.client_cpu_seconds += at(sample.at_seconds);
        }
    }
    let mut result = summarise(Parts {
        plan,
        processes: results.len() as u32,
        machine: first.machine.clone(),
        settings: first.broker_settings.clone(),
        outcome: &outcome,
        whole_series: false,
    });
    let here = |address: &String| resolve(address).is_ok_and(|address| address.ip().is_loopback());
    if !addresses.iter().all(here) {
        result.usage.foreign_cpus = None; // other machines' time is in there
    }
    Ok((result, outcome))
}

/// All intervals of all processes, second by second.
fn merge(results: &[RunResult]) -> Result<Outcome, String> {
    let first = results.first().ok_or("there are no agents")?;
    let mut outcome = Outcome {
        intervals: BTreeMap::new(),
        seconds: results
            .iter()
            .map(|result| result.seconds)
            .fold(0.0, f64::max),
        samples: first.samples.clone(),
        failures: Failures::new(),
        verdict: None,
        stall_seconds: results
            .iter()
            .map(|result| result.usage.stall_seconds)
            .fold(0.0, f64::max),
        began_epoch_ns: first.began_ms * 1_000_000,
    };
    for result in results {
        for (kind, failure) in &result.failures {
            add_failure(&mut outcome.failures, kind, failure.count, &failure.remark);
        }
        for measured in &result.measured {
            for (at, second) in measured.series.iter().enumerate() {
                let key = (measured.kind, second.index);
                let into = outcome
                    .intervals
                    .entry(key)
                    .or_insert_with(|| Interval::new(measured.kind, second.index));
                let mut piece = Interval::new(measured.kind, second.index);
                let text = second
                    .histogram
                    .as_deref()
                    .ok_or("an agent left out the histograms of its seconds")?;
                piece
                    .latencies
                    .add(decode(text)?)
                    .map_err(|error| error.to_string())?;
                piece.messages = second.messages;
                if measured.messages > 0 {
                    piece.bytes = (measured.bytes as u128 * u128::from(second.messages)
                        / u128::from(measured.messages)) as u64;
                }
                if at == 0 {
                    piece.failures = measured.failures.clone();
                }
                into.merge(piece);
            }
        }
    }
    Ok(outcome)
}
