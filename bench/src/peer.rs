//! Another broker's load generator as a run of this program: it makes the load, this program counts the processes' CPU time.
//!
//! A generator says what it does on its standard output, a line each, and whatever else it prints is passed on to stderr:
//!
//! ```text
//! ringmq-bench begin
//! ringmq-bench end
//! ringmq-bench KIND MESSAGES BYTES SECONDS ERRORS HISTOGRAM
//! ```
//!
//! `begin` and `end` stand where the measured part begins and ends; KIND is `publish`, `pull` or `end-to-end`; HISTOGRAM has the
//! latencies in nanoseconds (HdrHistogram V2, compressed, base64), counted as [`crate::measure`] counts them.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::machine::facts;
use crate::measure::{Failures, Kind, add_failure};
use crate::plan::{Header, Plan, Protocol};
use crate::process;
use crate::result::{FORMAT, Measured, Quantiles, RunResult, decode, usage_of};
use crate::run::Sample;

/// What the lines that count begin with.
const MARK: &str = "ringmq-bench ";

/// What to run, and what its result is called.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Of the result: CASE/SIDE.
    pub name: String,
    pub broker_pids: Vec<u32>,
    /// What the peer promises when it acknowledges, for the table.
    pub flush: String,
    /// Its store, whose file system is noted.
    pub store: Option<String>,
    /// A program and its arguments.
    pub command: Vec<String>,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    #[error("no program was named")]
    NoCommand,
    #[error("{0}: {1}")]
    Start(String, io::Error),
    #[error("processes cannot be read: {0}")]
    Processes(io::Error),
    #[error("the load generator said {line:?}: {reason}")]
    Line { line: String, reason: String },
    #[error("the load generator ended ({0}) without {1}")]
    Incomplete(std::process::ExitStatus, &'static str),
}

/// One line of a generator.
#[derive(Debug)]
enum Line {
    Begin,
    End,
    Measured(Box<Measured>, f64),
}

impl Peer {
    /// Runs it to its end.
    pub fn run(&self) -> Result<RunResult, PeerError> {
        let machine = facts(self.store.as_deref(), self.broker_pids.first().copied());
        let (program, arguments) = self.command.split_first().ok_or(PeerError::NoCommand)?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| PeerError::Start(program.clone(), error))?;
        let ended = self.listen(&mut child);
        if ended.is_err() {
            let _ = child.kill();
        }
        let status = child.wait().map_err(PeerError::Processes)?;
        let heard = ended?;
        let missing = |what| PeerError::Incomplete(status, what);
        if heard.samples.len() != 2 {
            return Err(missing("both of begin and end"));
        }
        if heard.measured.is_empty() {
            return Err(missing("a result"));
        }
        if !status.success() {
            return Err(missing("success"));
        }
        let plan = self.plan(heard.seconds);
        Ok(RunResult {
            format: FORMAT,
            name: self.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            began_ms: heard.began_ms,
            seconds: heard.seconds,
            command: self.command.clone(),
            processes: 1,
            machine,
            broker_settings: BTreeMap::from([("flushDiskType".to_owned(), self.flush.clone())]),
            usage: usage_of(&plan, &heard.samples, heard.measured[0].messages),
            plan,
            measured: heard.measured,
            failures: Failures::new(),
            verdict: None,
            samples: heard.samples,
        })
    }

    fn listen(&self, child: &mut std::process::Child) -> Result<Heard, PeerError> {
        let client = child.id();
        let mut heard = Heard::default();
        let mut began = Instant::now();
        let output = child.stdout.take().map(BufReader::new);
        for line in output.into_iter().flat_map(BufRead::lines) {
            let line = line.map_err(PeerError::Processes)?;
            let Some(said) = line.strip_prefix(MARK) else {
                eprintln!("{line}");
                continue;
            };
            let parsed = parse(said).map_err(|reason| PeerError::Line {
                line: line.clone(),
                reason,
            })?;
            match parsed {
                Line::Begin => {
                    began = Instant::now();
                    let now = SystemTime::now().duration_since(UNIX_EPOCH);
                    heard.began_ms = now.map_or(0, |now| now.as_millis() as i64);
                    heard.samples = vec![self.sample(client, 0.0)?];
                }
                Line::End => {
                    heard.samples.truncate(1);
                    let at_seconds = began.elapsed().as_secs_f64();
                    heard.samples.push(self.sample(client, at_seconds)?);
                }
                Line::Measured(measured, seconds) => {
                    heard.seconds = seconds;
                    heard.measured.push(*measured);
                }
            }
        }
        Ok(heard)
    }

    fn sample(&self, client: u32, at_seconds: f64) -> Result<Sample, PeerError> {
        let broker = process::usage(&self.broker_pids).map_err(PeerError::Processes)?;
        let client = process::usage(&[client]).map_err(PeerError::Processes)?;
        Ok(Sample {
            at_seconds,
            broker_cpu_seconds: broker.cpu_seconds,
            broker_resident_bytes: broker.resident_bytes,
            broker_peak_resident_bytes: broker.peak_resident_bytes,
            client_cpu_seconds: client.cpu_seconds,
            machine_cpu_seconds: process::machine_cpu_seconds(),
        })
    }

    /// A plan that says nothing: the command has all of it.
    fn plan(&self, seconds: f64) -> Plan {
        Plan {
            name: self.name.clone(),
            namesrv: String::new(),
            broker: None,
            broker_pids: self.broker_pids.clone(),
            topic: String::new(),
            topics: 1,
            queues: 0,
            size: 0,
            header: Header::default(),
            protocol: Protocol::default(),
            produce: None,
            consume: None,
            warm_seconds: 0.0,
            seconds,
            verify: false,
        }
    }
}

#[derive(Default)]
struct Heard {
    began_ms: i64,
    seconds: f64,
    samples: Vec<Sample>,
    measured: Vec<Measured>,
}

/// What stands behind the mark.
fn parse(said: &str) -> Result<Line, String> {
    let words: Vec<&str> = said.split_whitespace().collect();
    let (kind, messages, bytes, seconds, errors, histogram) = match words[..] {
        ["begin"] => return Ok(Line::Begin),
        ["end"] => return Ok(Line::End),
        [kind, messages, bytes, seconds, errors, histogram] => {
            (kind, messages, bytes, seconds, errors, histogram)
        }
        _ => return Err("begin, end, or six words are wanted".to_owned()),
    };
    let kind = match kind {
        "publish" => Kind::Publish,
        "pull" => Kind::Pull,
        "end-to-end" => Kind::EndToEnd,
        _ => return Err(format!("{kind} is not publish, pull or end-to-end")),
    };
    let number = |text: &str| text.parse::<u64>().map_err(|error| error.to_string());
    let (messages, bytes, errors) = (number(messages)?, number(bytes)?, number(errors)?);
    let seconds: f64 = seconds.parse().map_err(|_| "no seconds".to_owned())?;
    if !(seconds.is_finite() && seconds > 0.0) {
        return Err(format!("{seconds} seconds"));
    }
    let latencies = decode(histogram)?;
    let mut failures = Failures::new();
    if errors > 0 {
        add_failure(&mut failures, "peer", errors, "said its load generator");
    }
    let measured = Measured {
        kind,
        messages,
        bytes,
        messages_per_second: messages as f64 / seconds,
        bytes_per_second: bytes as f64 / seconds,
        latency: Quantiles::of(&latencies),
        failures,
        histogram: histogram.to_owned(),
        series: Vec::new(),
    };
    Ok(Line::Measured(Box::new(measured), seconds))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::measure::{failure_count, histogram};
    use crate::result::encode;

    fn peer(script: &str) -> Result<RunResult, PeerError> {
        let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        Peer {
            name: "case/peer".to_owned(),
            broker_pids: vec![std::process::id()],
            flush: "no".to_owned(),
            store: None,
            command,
        }
        .run()
    }

    fn latencies() -> String {
        let mut histogram = histogram();
        for latency in [1_000, 2_000, 3_000] {
            histogram.record(latency).unwrap();
        }
        encode(&histogram)
    }

    #[test]
    fn what_a_generator_says_becomes_a_result() {
        let script = format!(
            "echo hello; echo ringmq-bench begin; i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; echo ringmq-bench end; \
             echo ringmq-bench publish 3000 30000 1.5 2 {}",
            latencies()
        );
        let result = peer(&script).unwrap();
        let publish = result.of(Kind::Publish).unwrap();
        assert_eq!(publish.messages_per_second, 2000.0);
        assert_eq!(publish.latency.count, 3);
        assert!((2_000..2_010).contains(&publish.latency.p50));
        assert_eq!(failure_count(&publish.failures), 2);
        assert_eq!(result.broker_settings["flushDiskType"], "no");
        assert!(result.usage.client_cpu_seconds > 0.0, "{:?}", result.usage);
        assert!(result.usage.broker_peak_resident_bytes.unwrap() > 0);
    }

    #[test]
    fn a_generator_that_fails_is_no_result() {
        let good = format!("echo ringmq-bench publish 1 1 1 0 {}", latencies());
        let bounds = "echo ringmq-bench begin; echo ringmq-bench end";
        for (script, wanted) in [
            ("exit 0".to_owned(), "without both"),
            (good.clone(), "without both"),
            (bounds.to_owned(), "without a result"),
            (format!("{bounds}; {good}; exit 3"), "without success"),
            ("echo ringmq-bench perhaps".to_owned(), "six words"),
            ("echo ringmq-bench pull 1 1 0 0 x".to_owned(), "0 seconds"),
            ("echo ringmq-bench pull 1 1 1 0 eA==".to_owned(), "said"),
            ("echo ringmq-bench push 1 1 1 0 x".to_owned(), "push is not"),
        ] {
            let error = peer(&script).unwrap_err().to_string();
            assert!(error.contains(wanted), "{script}: {error}");
        }
    }
}
