//! A result: what was run where, and what came out, as JSON that lasts; with it `.hlog` files and a few lines of text.
//!
//! Latencies are in nanoseconds. Histograms are kept whole (HdrHistogram V2, compressed, base64), so that results of
//! several processes or runs are merged and compared without a loss.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::interval_log::IntervalLogWriterBuilder;
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};
use serde::{Deserialize, Serialize};

use crate::ledger::Verdict;
use crate::machine::Machine;
use crate::measure::{
    Failures, INTERVAL_NS, Interval, Kind, add_failure, failure_count, histogram,
};
use crate::plan::Plan;
use crate::run::{Outcome, Sample};

/// Of the file; a reader refuses what it does not know.
pub const FORMAT: u32 = 1;

/// One run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunResult {
    pub format: u32,
    pub name: String,
    pub version: String,
    /// Milliseconds since 1970 at which the measurement began.
    pub began_ms: i64,
    /// Of the measured part.
    pub seconds: f64,
    pub command: Vec<String>,
    pub plan: Plan,
    /// Processes that made the load.
    pub processes: u32,
    pub machine: Machine,
    /// The first broker's settings that decide about figures.
    pub broker_settings: BTreeMap<String, String>,
    pub usage: Usage,
    pub measured: Vec<Measured>,
    pub failures: Failures,
    pub verdict: Option<Verdict>,
    pub samples: Vec<Sample>,
}

/// CPU time and memory of the measured part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    pub client_cpu_seconds: f64,
    pub client_cpu_seconds_per_million: f64,
    /// The broker's are there if its process was named.
    pub broker_cpu_seconds: Option<f64>,
    pub broker_cpu_seconds_per_million: Option<f64>,
    pub broker_resident_bytes: Option<u64>,
    pub broker_peak_resident_bytes: Option<u64>,
    /// Processors that others used meanwhile; above 0.3 the figures are not to be trusted. Unknown without the broker.
    pub foreign_cpus: Option<f64>,
    /// The longest time for which this program did not get to run although it should have.
    #[serde(default)]
    pub stall_seconds: f64,
}

/// Messages and latencies of one kind.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    pub kind: Kind,
    pub messages: u64,
    pub bytes: u64,
    pub messages_per_second: f64,
    pub bytes_per_second: f64,
    pub latency: Quantiles,
    pub failures: Failures,
    /// All latencies.
    pub histogram: String,
    pub series: Vec<Second>,
}

/// Latencies in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quantiles {
    pub count: u64,
    pub mean: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p999: u64,
    pub p9999: u64,
    pub p99999: u64,
    pub max: u64,
}

/// One second.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Second {
    pub index: u64,
    pub messages: u64,
    pub errors: u64,
    pub latency: Quantiles,
    /// Its latencies; only between processes, since the `.hlog` file has them too.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub histogram: Option<String>,
}

/// A file that is no result.
#[derive(Debug, thiserror::Error)]
pub enum ResultError {
    #[error("{path}: {source}")]
    Io {
        path: String,
        source: std::io::Error,
    },
    #[error("{path} is no result of this program: {reason}")]
    Content { path: String, reason: String },
}

impl Quantiles {
    /// Of these latencies.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile);
        Self {
            count: histogram.len(),
            mean: histogram.mean() as u64,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            p9999: at(0.9999),
            p99999: at(0.99999),
            max: if histogram.is_empty() {
                0
            } else {
                histogram.max()
            },
        }
    }
}

/// A histogram as text.
pub fn encode(histogram: &Histogram<u64>) -> String {
    let mut bytes = Vec::new();
    // Writing to a vector does not fail, and what is counted here fits the format.
    let _ = V2DeflateSerializer::new().serialize(histogram, &mut bytes);
    STANDARD.encode(bytes)
}

/// A histogram from its text.
pub fn decode(text: &str) -> Result<Histogram<u64>, String> {
    let bytes = STANDARD.decode(text).map_err(|error| error.to_string())?;
    Deserializer::new()
        .deserialize(&mut &bytes[..])
        .map_err(|error| error.to_string())
}

/// What a whole run consists of, before it is summed up.
pub struct Parts<'a> {
    pub plan: &'a Plan,
    pub processes: u32,
    pub machine: Machine,
    pub settings: BTreeMap<String, String>,
    pub outcome: &'a Outcome,
    /// Keep each second's histogram, for a coordinator that merges.
    pub whole_series: bool,
}

/// Sums up a run.
pub fn summarise(parts: Parts) -> RunResult {
    let Parts {
        plan,
        processes,
        machine,
        settings,
        outcome,
        whole_series,
    } = parts;
    let mut measured = Vec::new();
    for kind in [Kind::Publish, Kind::Pull, Kind::EndToEnd] {
        let intervals: Vec<_> = outcome
            .intervals
            .values()
            .filter(|interval| interval.kind == kind)
            .collect();
        if !intervals.is_empty() {
            measured.push(measure(kind, &intervals, outcome.seconds, whole_series));
        }
    }
    let mut usage = usage_of(plan, &outcome.samples, work(&measured));
    usage.stall_seconds = outcome.stall_seconds;
    RunResult {
        format: FORMAT,
        name: plan.name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        began_ms: outcome.began_epoch_ns / 1_000_000,
        seconds: outcome.seconds,
        command: std::env::args().collect(),
        plan: plan.clone(),
        processes,
        machine,
        broker_settings: crate::machine::telling_settings(&settings),
        usage,
        measured,
        failures: outcome.failures.clone(),
        verdict: outcome.verdict.clone(),
        samples: outcome.samples.clone(),
    }
}

fn measure(kind: Kind, intervals: &[&Interval], seconds: f64, whole_series: bool) -> Measured {
    let mut total = histogram();
    let mut failures = Failures::new();
    let mut series = Vec::new();
    for interval in intervals {
        // All have the same bounds.
        let _ = total.add(&interval.latencies);
        for (name, failure) in &interval.failures {
            add_failure(&mut failures, name, failure.count, &failure.remark);
        }
        series.push(Second {
            index: interval.index,
            messages: interval.messages,
            errors: failure_count(&interval.failures),
            latency: Quantiles::of(&interval.latencies),
            histogram: whole_series.then(|| encode(&interval.latencies)),
        });
    }
    let messages = intervals.iter().map(|interval| interval.messages).sum();
    let bytes = intervals.iter().map(|interval| interval.bytes).sum();
    Measured {
        kind,
        messages,
        bytes,
        messages_per_second: messages as f64 / seconds,
        bytes_per_second: bytes as f64 / seconds,
        latency: Quantiles::of(&total),
        failures,
        histogram: encode(&total),
        series,
    }
}

/// Messages that the broker dealt with: sent ones, or delivered ones if none were sent.
fn work(measured: &[Measured]) -> u64 {
    measured.first().map_or(0, |first| first.messages)
}

/// What a run's processes used from the first sample to the last, for so many messages.
pub fn usage_of(plan: &Plan, samples: &[Sample], messages: u64) -> Usage {
    let (Some(first), Some(last)) = (samples.first(), samples.last()) else {
        return Usage::default();
    };
    let per_million = |seconds: f64| {
        if messages == 0 {
            0.0
        } else {
            seconds * 1e6 / messages as f64
        }
    };
    let client = last.client_cpu_seconds - first.client_cpu_seconds;
    let broker = (!plan.broker_pids.is_empty())
        .then_some(last.broker_cpu_seconds - first.broker_cpu_seconds);
    let length = last.at_seconds - first.at_seconds;
    Usage {
        client_cpu_seconds: client,
        client_cpu_seconds_per_million: per_million(client),
        broker_cpu_seconds: broker,
        broker_cpu_seconds_per_million: broker.map(per_million),
        broker_resident_bytes: broker.map(|_| last.broker_resident_bytes),
        broker_peak_resident_bytes: broker.map(|_| last.broker_peak_resident_bytes),
        foreign_cpus: broker.filter(|_| length > 0.0).map(|broker| {
            let all = last.machine_cpu_seconds - first.machine_cpu_seconds;
            ((all - broker - client) / length).max(0.0)
        }),
        stall_seconds: 0.0,
    }
}

impl RunResult {
    /// Measurements of one kind.
    pub fn of(&self, kind: Kind) -> Option<&Measured> {
        self.measured.iter().find(|measured| measured.kind == kind)
    }

    /// Everything that went wrong, of all kinds.
    pub fn all_failures(&self) -> Failures {
        let mut all = self.failures.clone();
        for (name, failure) in self.measured.iter().flat_map(|measured| &measured.failures) {
            add_failure(&mut all, name, failure.count, &failure.remark);
        }
        all
    }

    /// Reads a result.
    pub fn load(path: &Path) -> Result<Self, ResultError> {
        let shown = path.display().to_string();
        let text = fs::read_to_string(path).map_err(|source| ResultError::Io {
            path: shown.clone(),
            source,
        })?;
        let result: Self = serde_json::from_str(&text).map_err(|error| ResultError::Content {
            path: shown.clone(),
            reason: error.to_string(),
        })?;
        if result.format != FORMAT {
            return Err(ResultError::Content {
                path: shown,
                reason: format!(
                    "its format is {}; this program knows {FORMAT}",
                    result.format
                ),
            });
        }
        Ok(result)
    }

    /// Writes the result.
    pub fn save(&self, path: &Path) -> Result<(), ResultError> {
        let text = serde_json::to_string_pretty(self).map_err(|error| ResultError::Content {
            path: path.display().to_string(),
            reason: error.to_string(),
        })?;
        fs::write(path, text + "\n").map_err(|source| ResultError::Io {
            path: path.display().to_string(),
            source,
        })
    }

    /// What a user reads.
    pub fn text(&self) -> String {
        use std::fmt::Write;
        let mut out = String::new();
        let ms = |ns: u64| ns as f64 / 1e6;
        for measured in &self.measured {
            let what = match measured.kind {
                Kind::Publish => "publish",
                Kind::Pull => "pull",
                Kind::EndToEnd => "end to end",
            };
            let latency = &measured.latency;
            let errors = failure_count(&measured.failures);
            let _ = writeln!(
                out,
                "{what}: {:.0} messages/s, {:.1} MB/s, latency ms p50 {:.3} p99 {:.3} p999 {:.3} max {:.3}, {errors} errors",
                measured.messages_per_second,
                measured.bytes_per_second / 1e6,
                ms(latency.p50),
                ms(latency.p99),
                ms(latency.p999),
                ms(latency.max),
            );
        }
        let usage = &self.usage;
        let _ = writeln!(
            out,
            "client: {:.2} CPU-s, {:.2} per million messages",
            usage.client_cpu_seconds, usage.client_cpu_seconds_per_million
        );
        if let (Some(cpu), Some(per_million)) = (
            usage.broker_cpu_seconds,
            usage.broker_cpu_seconds_per_million,
        ) {
            let _ = writeln!(
                out,
                "broker: {cpu:.2} CPU-s, {per_million:.2} per million messages, resident {} MiB, peak {} MiB; others used {:.2} processors",
                usage.broker_resident_bytes.unwrap_or(0) >> 20,
                usage.broker_peak_resident_bytes.unwrap_or(0) >> 20,
                usage.foreign_cpus.unwrap_or(0.0),
            );
        }
        if usage.stall_seconds > 0.05 {
            let _ = writeln!(
                out,
                "warning: the load generator itself did not get to run for {:.2} s; latencies up to that are its own",
                usage.stall_seconds
            );
        }
        if let Some(verdict) = &self.verdict {
            let _ = writeln!(
                out,
                "verified: {} acknowledged, {} delivered, {} lost, {} duplicated, {} misplaced, {} reordered, {} delivered without an acknowledgement",
                verdict.acknowledged,
                verdict.delivered,
                verdict.lost,
                verdict.duplicated,
                verdict.misplaced,
                verdict.reordered,
                verdict.unacknowledged
            );
            for example in &verdict.examples {
                let _ = writeln!(out, "lost: {example}");
            }
        }
        for (kind, failure) in self.all_failures() {
            let _ = writeln!(
                out,
                "error {kind}: {} times: {}",
                failure.count, failure.remark
            );
        }
        out
    }
}

/// Writes the intervals of a run as an interval log, one tag per kind, in nanoseconds.
pub fn write_hlog(outcome: &Outcome, path: &Path) -> Result<(), ResultError> {
    let io_error = |source| ResultError::Io {
        path: path.display().to_string(),
        source,
    };
    let broken = |reason: String| ResultError::Content {
        path: path.display().to_string(),
        reason,
    };
    let began = UNIX_EPOCH + Duration::from_nanos(outcome.began_epoch_ns.max(0) as u64);
    let mut bytes = Vec::new();
    let mut serializer = V2DeflateSerializer::new();
    {
        let mut log = IntervalLogWriterBuilder::new()
            .add_comment(
                "ringmq-bench; values are nanoseconds, the last column's unit is milliseconds",
            )
            .with_start_time(began)
            .with_base_time(began)
            .with_max_value_divisor(1e6)
            .begin_log_with(&mut bytes, &mut serializer)
            .map_err(io_error)?;
        let mut intervals: Vec<_> = outcome
            .intervals
            .values()
            .filter(|one| !one.latencies.is_empty())
            .collect();
        intervals.sort_by_key(|interval| interval.index);
        for interval in intervals {
            let tag = match interval.kind {
                Kind::Publish => "publish",
                Kind::Pull => "pull",
                Kind::EndToEnd => "end-to-end",
            };
            log.write_histogram(
                &interval.latencies,
                Duration::from_nanos(interval.index * INTERVAL_NS),
                Duration::from_nanos(INTERVAL_NS),
                hdrhistogram::serialization::interval_log::Tag::new(tag),
            )
            .map_err(|error| broken(error.to_string()))?;
        }
    }
    fs::File::create(path)
        .and_then(|mut file| file.write_all(&bytes))
        .map_err(io_error)
}
