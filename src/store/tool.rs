//! `ringmq store check` and `ringmq store dump`: read a store that no broker has open. They write nothing.

use std::io::{self, Write};
use std::path::Path;

use serde_json::json;

use crate::base::offset::LogId;
use crate::io::env::Env;
use crate::store::batch::HEADER_BYTES;
use crate::store::commit_log::replica;
use crate::store::control::Control;
use crate::store::delayed;
use crate::store::half;
use crate::store::manifest::{Manifest, log_directory};
use crate::store::recovery::{Damage, Scanner, Step, is_control, raw_records};
use crate::store::segment::Segments;
use crate::store::snapshot;
use crate::wire::properties;
use crate::wire::record::RecordView;

/// What a log was found to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogReport {
    pub log: LogId,
    pub segments: usize,
    /// First position that is there, and the end of the last whole batch.
    pub start: u64,
    pub end: u64,
    pub batches: u64,
    pub messages: u64,
    pub controls: u64,
    /// Position of the newest whole snapshot.
    pub snapshot: Option<u64>,
    pub damage: Option<Damage>,
    /// Records whose own content is wrong although their batch's CRC is right, with position and reason.
    pub bad_records: Vec<(u64, String)>,
}

impl LogReport {
    /// Whether nothing acknowledged is missing or wrong.
    pub fn is_sound(&self) -> bool {
        self.damage.is_none() && self.bad_records.is_empty()
    }
}

/// One record of a log, as `dump` shows it.
enum Shown<'a> {
    Message(RecordView<'a>),
    Delayed(delayed::Head, RecordView<'a>),
    Half(half::Head, RecordView<'a>),
    Control(Control),
    Unreadable(String),
}

pub(super) async fn manifest_of<E: Env>(env: &E, directory: &Path) -> io::Result<Manifest> {
    Manifest::read(env, directory).await?.ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!(
                "{} is no store of ringmq: it has no file ringmq.store",
                directory.display()
            ),
        )
    })
}

/// Reads one log from its start and gives each record to `see`.
async fn walk<E: Env>(
    env: &E,
    directory: &Path,
    manifest: &Manifest,
    log: LogId,
    mut see: impl FnMut(u64, &Shown<'_>) -> io::Result<()>,
) -> io::Result<LogReport> {
    let path = log_directory(directory, log);
    let segments = Segments::open(env.clone(), path.clone(), manifest.segment_bytes, false).await?;
    let mut report = LogReport {
        log,
        segments: segments.count(),
        start: segments.start(),
        // What is shown here needs no snapshot: a damaged one is passed over.
        snapshot: snapshot::load(env, &path, manifest.store_id, 0)
            .await?
            .map(|(mark, _)| mark.position),
        ..LogReport::default()
    };
    let mut scanner = Scanner::new(&segments, manifest.store_id, report.start, 0);
    scanner.trust_first().await?;
    loop {
        let begin = scanner.position + HEADER_BYTES as u64;
        let Step::Batch(_, range) = scanner.next().await? else {
            break;
        };
        report.batches += 1;
        let mut at = begin;
        for record in raw_records(scanner.records(range)) {
            let shown = if delayed::is_delayed(record) {
                report.controls += 1;
                match delayed::view(record) {
                    Ok((head, view)) => Shown::Delayed(head, view),
                    Err(error) => Shown::Unreadable(error.to_string()),
                }
            } else if half::is_half(record) {
                report.controls += 1;
                match half::view(record) {
                    Ok((head, view)) => Shown::Half(head, view),
                    Err(error) => Shown::Unreadable(error.to_string()),
                }
            } else if is_control(record) {
                report.controls += 1;
                match Control::decode(record) {
                    Ok(control) => Shown::Control(control),
                    Err(error) => Shown::Unreadable(error.to_string()),
                }
            } else {
                report.messages += 1;
                match RecordView::parse_checked(record) {
                    Ok(view) => Shown::Message(view),
                    Err(error) => Shown::Unreadable(error.to_string()),
                }
            };
            if let Shown::Unreadable(reason) = &shown {
                report.bad_records.push((at, reason.clone()));
            }
            see(at, &shown)?;
            at += record.len() as u64;
        }
    }
    report.end = scanner.position;
    let was_replica = replica::is_marked(env, &path).await?;
    report.damage = scanner.damage(was_replica).await?;
    Ok(report)
}

/// Reads a whole store and writes what it found, a log a line. The reports tell whether all is well.
pub async fn check<E: Env>(
    env: &E,
    directory: &Path,
    out: &mut impl Write,
) -> io::Result<Vec<LogReport>> {
    let manifest = manifest_of(env, directory).await?;
    writeln!(
        out,
        "{}: format {}, {} logs, segments of {} bytes",
        directory.display(),
        manifest.format,
        manifest.logs,
        manifest.segment_bytes
    )?;
    let mut reports = Vec::new();
    for log in 0..manifest.logs {
        let report = walk(env, directory, &manifest, log, |_, _| Ok(())).await?;
        writeln!(
            out,
            "log {log}: {} segments, positions {}..{}, {} batches, {} messages, {} control records, snapshot {}: {}",
            report.segments,
            report.start,
            report.end,
            report.batches,
            report.messages,
            report.controls,
            report
                .snapshot
                .map_or("none".into(), |position| format!("at {position}")),
            if report.is_sound() {
                "sound"
            } else {
                "DAMAGED"
            }
        )?;
        if let Some(damage) = &report.damage {
            writeln!(out, "  {damage}")?;
        }
        for (position, reason) in &report.bad_records {
            writeln!(out, "  the record at position {position}: {reason}")?;
        }
        reports.push(report);
    }
    Ok(reports)
}

/// Writes every record of a store, one a line: as text, or as a JSON object.
pub async fn dump<E: Env>(
    env: &E,
    directory: &Path,
    as_json: bool,
    out: &mut impl Write,
) -> io::Result<Vec<LogReport>> {
    let manifest = manifest_of(env, directory).await?;
    let mut reports = Vec::new();
    for log in 0..manifest.logs {
        let report = walk(env, directory, &manifest, log, |position, shown| {
            let value = value_of(log, position, shown);
            if as_json {
                return writeln!(out, "{value}");
            }
            let mut line = String::new();
            if let Some(fields) = value.as_object() {
                for (name, value) in fields {
                    let text = value
                        .as_str()
                        .map_or_else(|| value.to_string(), str::to_owned);
                    line.push_str(&format!("{name}={text} "));
                }
            }
            writeln!(out, "{}", line.trim_end())
        })
        .await?;
        reports.push(report);
    }
    Ok(reports)
}

fn value_of(log: LogId, position: u64, shown: &Shown<'_>) -> serde_json::Value {
    match shown {
        Shown::Message(view) => json!({
            "log": log,
            "position": position,
            "kind": "message",
            "topic": view.topic(),
            "queueId": view.queue_id(),
            "queueOffset": view.queue_offset(),
            "storeTimestamp": view.store_timestamp(),
            "bornHost": view.born_host().to_string(),
            "reconsumeTimes": view.reconsume_times(),
            "sysFlag": view.sys_flag(),
            "bytes": view.total_bytes(),
            "bodyBytes": view.body().len(),
            "uniqueKey": properties::get(view.properties(), properties::name::UNIQUE_KEY),
            "keys": properties::get(view.properties(), properties::name::KEYS),
            "tags": properties::get(view.properties(), properties::name::TAGS),
        }),
        Shown::Delayed(head, view) => json!({
            "log": log,
            "position": position,
            "kind": "delayed",
            "dueMs": head.due_ms,
            "topic": view.topic(),
            "queueId": view.queue_id(),
            "bodyBytes": view.body().len(),
            "uniqueKey": properties::get(view.properties(), properties::name::UNIQUE_KEY),
        }),
        Shown::Half(head, view) => json!({
            "log": log,
            "position": position,
            "kind": "half",
            "origin": head.origin,
            "checks": head.checks,
            "checkAtMs": head.check_at_ms,
            "topic": view.topic(),
            "queueId": view.queue_id(),
            "producerGroup": properties::get(view.properties(), properties::name::PRODUCER_GROUP),
            "bodyBytes": view.body().len(),
            "uniqueKey": properties::get(view.properties(), properties::name::UNIQUE_KEY),
        }),
        Shown::Control(control) => {
            let (kind, detail) = match control {
                Control::TopicOpened { topic_id, name } => (
                    "topic-opened",
                    json!({"topicId": topic_id, "topic": &**name}),
                ),
                Control::TopicDropped { topic_id } => {
                    ("topic-dropped", json!({"topicId": topic_id}))
                }
                Control::OffsetCommitted {
                    group,
                    queue,
                    offset,
                } => (
                    "offset",
                    json!({"group": &**group, "topicId": queue.topic_id, "queueId": queue.queue_id, "offset": offset}),
                ),
                Control::OffsetsDropped { group } => {
                    ("offsets-dropped", json!({"group": &**group}))
                }
                Control::Metadata { key, value } => (
                    "metadata",
                    json!({"key": &**key, "value": value.as_deref().map(|value| String::from_utf8_lossy(value).into_owned())}),
                ),
                Control::Filler { bytes } => ("filler", json!({"bytes": bytes})),
                Control::TimersDone { timers } => {
                    let positions: Vec<u64> = timers.iter().map(|key| key.position).collect();
                    ("timers-done", json!({"positions": positions}))
                }
                Control::HalvesChecked { halves } => {
                    let origins: Vec<u64> = halves.iter().map(|(origin, _)| *origin).collect();
                    ("halves-checked", json!({"origins": origins}))
                }
                Control::HalvesEnded { halves } => {
                    let ends: Vec<_> = halves
                        .iter()
                        .map(|(origin, outcome)| json!([origin, format!("{outcome:?}")]))
                        .collect();
                    ("halves-ended", json!({"ends": ends}))
                }
                Control::Popped {
                    group,
                    queue,
                    next,
                    min,
                    messages,
                } => {
                    let messages: Vec<_> = messages
                        .iter()
                        .map(|(offset, state)| json!({"offset": offset, "popMs": state.pop_ms, "visibleMs": state.visible_ms, "deliveries": state.deliveries}))
                        .collect();
                    (
                        "popped",
                        json!({"group": &**group, "topicId": queue.topic_id, "queueId": queue.queue_id, "next": next, "min": min, "messages": messages}),
                    )
                }
                Control::PopAcked {
                    group,
                    queue,
                    offsets,
                } => (
                    "pop-acked",
                    json!({"group": &**group, "topicId": queue.topic_id, "queueId": queue.queue_id, "offsets": &**offsets}),
                ),
                Control::PopChanged {
                    group,
                    queue,
                    offset,
                    state,
                } => (
                    "pop-changed",
                    json!({"group": &**group, "topicId": queue.topic_id, "queueId": queue.queue_id, "offset": offset, "popMs": state.pop_ms, "visibleMs": state.visible_ms, "deliveries": state.deliveries}),
                ),
            };
            json!({"log": log, "position": position, "kind": kind, "detail": detail})
        }
        Shown::Unreadable(reason) => {
            json!({"log": log, "position": position, "kind": "unreadable", "reason": reason})
        }
    }
}
