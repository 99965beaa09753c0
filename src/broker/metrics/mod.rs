//! The metrics page, and the pages of health: `/metrics`, `/healthz`, `/readyz`.
//!
//! Every core counts for itself with plain numbers; a scrape asks all cores over the mesh and adds up. Nothing is kept
//! between scrapes but what the busy ratio needs, and nothing runs without a scrape. Names and labels that begin with
//! `rocketmq_` are those of RocketMQ 5 (`BrokerMetricsConstant`, `DefaultStoreMetricsConstant`, `PopMetricsConstant`),
//! with its units (milliseconds for the lags); those that begin with `ringmq_` are ours, in seconds and bytes. Left out is
//! what has no counterpart: `rocketmq_processor_watermark` and the revive figures of POP.

pub mod text;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_lite::future::yield_now;

use crate::base::histogram::Histogram;
use crate::base::names;
use crate::broker::dispatch::Broker;
use crate::broker::error::BrokerError;
use crate::io::process;
use crate::server::http::{Page, PageFuture, Site, Status};
use crate::shard::figures::ShardFigures;
use crate::shard::message::{
    BrokerFigures, GroupCommand, ShardReply, ShardRequest, Traffic, TrafficKind,
};
use crate::shard::meta::Member;
use crate::wire::remoting::command::LANGUAGES;
use text::{Family, Kind, Label, TextPage};

/// A core that does not answer for so long is not well.
const CORE_ANSWERS_WITHIN: Duration = Duration::from_secs(5);
/// Rows of a page that are written before others have their turn.
const ROWS_AT_ONCE: usize = 64;
/// Content type of the text format.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

const fn counter(name: &'static str, help: &'static str) -> Family {
    Family {
        name,
        kind: Kind::Counter,
        help,
    }
}

const fn gauge(name: &'static str, help: &'static str) -> Family {
    Family {
        name,
        kind: Kind::Gauge,
        help,
    }
}

const fn histogram(name: &'static str, help: &'static str) -> Family {
    Family {
        name,
        kind: Kind::Histogram,
        help,
    }
}

/// Every metric.
pub const FAMILIES: &[Family] = &[
    gauge(
        "rocketmq_broker_permission",
        "What may be done here: 6 read and write, 4 read, 2 write.",
    ),
    gauge("rocketmq_topic_number", "Topics."),
    gauge(
        "rocketmq_consumer_group_number",
        "Consumer groups that have a configuration.",
    ),
    counter(
        "rocketmq_messages_in_total",
        "Messages stored for producers; halves of transactions count for RMQ_SYS_TRANS_HALF_TOPIC until they are committed.",
    ),
    counter(
        "rocketmq_messages_out_total",
        "Messages given to consumers.",
    ),
    counter(
        "rocketmq_throughput_in_total",
        "Bytes of the bodies of messages stored for producers.",
    ),
    counter(
        "rocketmq_throughput_out_total",
        "Bytes of the records given to consumers.",
    ),
    histogram(
        "rocketmq_message_size",
        "Bytes of the bodies of sent messages.",
    ),
    gauge(
        "rocketmq_producer_connections",
        "Connections that are members of producer groups.",
    ),
    gauge(
        "rocketmq_consumer_connections",
        "Connections that are members of consumer groups.",
    ),
    gauge(
        "rocketmq_consumer_lag_messages",
        "Messages that a group has not acknowledged.",
    ),
    gauge(
        "rocketmq_consumer_lag_latency",
        "Age in milliseconds of the oldest message that a group has not acknowledged; 0 without any.",
    ),
    gauge(
        "rocketmq_consumer_inflight_messages",
        "Messages given to POP consumers of a group and not acknowledged yet.",
    ),
    gauge(
        "rocketmq_consumer_queueing_latency",
        "Age in milliseconds of the oldest message that waits for a group; 0 without any.",
    ),
    gauge(
        "rocketmq_consumer_ready_messages",
        "Messages that wait for a group.",
    ),
    counter(
        "rocketmq_send_to_dlq_messages_total",
        "Messages that a group gave up.",
    ),
    gauge("rocketmq_half_messages", "Open transactions."),
    counter("rocketmq_commit_messages_total", "Committed transactions."),
    counter(
        "rocketmq_rollback_messages_total",
        "Transactions that were rolled back.",
    ),
    gauge(
        "rocketmq_storage_size",
        "Bytes in use on the disk of the store, by whomever.",
    ),
    gauge(
        "rocketmq_storage_flush_behind_bytes",
        "Bytes that are appended and not yet durable.",
    ),
    gauge(
        "rocketmq_storage_dispatch_behind_bytes",
        "Bytes that are durable and not yet in the queues: always 0, both happen at once.",
    ),
    gauge(
        "rocketmq_storage_message_reserve_time",
        "Age in milliseconds of the oldest message.",
    ),
    gauge(
        "rocketmq_timing_messages",
        "Delayed messages that wait for their time.",
    ),
    counter(
        "rocketmq_timer_enqueue_total",
        "Delayed messages that were taken.",
    ),
    counter(
        "rocketmq_timer_dequeue_total",
        "Delayed messages that were delivered.",
    ),
    gauge(
        "rocketmq_timer_enqueue_lag",
        "Delayed messages that are stored and not yet known to the timers: always 0.",
    ),
    gauge(
        "rocketmq_timer_enqueue_latency",
        "Their age in milliseconds: always 0.",
    ),
    gauge(
        "rocketmq_timer_dequeue_latency",
        "Milliseconds by which the next delayed message is late.",
    ),
    gauge("ringmq_build_info", "1; the version is a label."),
    gauge(
        "ringmq_shard_busy_ratio",
        "Share of the time since the last scrape in which a core had something to do.",
    ),
    counter(
        "ringmq_shard_busy_seconds_total",
        "Time in which a core had something to do.",
    ),
    gauge("ringmq_shard_held_pulls", "Pulls that wait for messages."),
    gauge(
        "ringmq_connections",
        "Client connections that sent a heartbeat.",
    ),
    gauge("ringmq_log_bytes", "Bytes of a log."),
    gauge(
        "ringmq_log_writable",
        "1 while a log takes writes, 0 if it failed or its disk is full.",
    ),
    gauge(
        "ringmq_log_pending_bytes",
        "Bytes of a log that are appended and not yet durable, with SYNC_MASTER on the slaves too.",
    ),
    gauge(
        "ringmq_slave_behind_bytes",
        "On a master, by slave: what the slave has not acknowledged of a log.",
    ),
    gauge(
        "ringmq_slave_in_sync",
        "On a master, by slave: 1 while the slave counts as a copy of a log.",
    ),
    gauge(
        "ringmq_master_connected",
        "On a slave: 1 while a log follows its master.",
    ),
    gauge(
        "ringmq_master_ahead_bytes",
        "On a slave: what its master had more of a log when it last said so.",
    ),
    histogram(
        "ringmq_log_flush_seconds",
        "Time of a group commit, with its flush under SYNC_FLUSH.",
    ),
    histogram("ringmq_log_batch_bytes", "Bytes of a group commit."),
    counter(
        "ringmq_log_scrubbed_bytes_total",
        "Bytes of a log that the search for damage has read and found whole.",
    ),
    gauge(
        "ringmq_log_damaged_bytes",
        "Acknowledged bytes of the older part of a log that were found damaged and are not repaired.",
    ),
    counter(
        "ringmq_log_repaired_bytes_total",
        "Damaged bytes of a log that were fetched from another copy.",
    ),
    gauge(
        "ringmq_cache_bytes",
        "Bytes of a cache: tail (newest bytes of the log), read (chunks read from the disk), index (blocks of the queue index).",
    ),
    gauge("ringmq_disk_total_bytes", "Size of the disk of a log."),
    gauge(
        "ringmq_disk_available_bytes",
        "Bytes of that disk that are free.",
    ),
    counter("ringmq_refused_total", "Refused requests by reason."),
    counter(
        "ringmq_messages_acknowledged_total",
        "Messages that POP consumers acknowledged.",
    ),
    counter(
        "ringmq_messages_sent_back_total",
        "Messages that consumers gave back to be tried again.",
    ),
    counter(
        "ringmq_messages_missed_total",
        "Messages that retention removed before a consumer group had consumed them.",
    ),
    histogram(
        "ringmq_timer_late_seconds",
        "From when a delayed message was due until it was durable in its queue.",
    ),
    gauge(
        "ringmq_group_subscriptions_differ",
        "1 for a consumer group whose members subscribe differently.",
    ),
    gauge("process_resident_memory_bytes", "Resident memory."),
    counter(
        "process_cpu_seconds_total",
        "Processor time of the process.",
    ),
    gauge("process_open_fds", "Open file descriptors."),
    gauge(
        "process_start_time_seconds",
        "When the broker started, seconds since 1970.",
    ),
];

/// All that the cores said.
struct Gathered {
    shards: Vec<ShardFigures>,
    brokers: Vec<BrokerFigures>,
}

/// The pages of one broker, on one core.
pub struct Metrics {
    broker: Broker,
    /// Ports are open and it is not stopping.
    serving: Cell<bool>,
    /// Per core at the last scrape: time up and time idle, in nanoseconds.
    before: RefCell<Vec<(u64, u64)>>,
    /// `metricsLabel`.
    labels: Vec<(String, String)>,
    version: &'static str,
}

/// `a:b,c:d`; what is no label is left out and told.
fn labels_of(text: &str) -> Vec<(String, String)> {
    let mut labels = Vec::new();
    for item in text
        .split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
    {
        match item.split_once(':') {
            Some((name, value)) if text::is_label_name(name) && !value.contains(':') => {
                labels.push((name.to_owned(), value.to_owned()));
            }
            _ => tracing::warn!(item, "metricsLabel has an item that is not name:value"),
        }
    }
    labels
}

fn flag(value: bool) -> &'static str {
    if value { "true" } else { "false" }
}

/// `is_retry` and `is_system` of a group's metrics.
fn kinds(topic: &str, group: &str) -> [Label<'static>; 2] {
    let is_system = names::is_system_topic(topic) || names::is_system_group(group);
    [
        ("is_retry", flag(names::is_retry_topic(topic))),
        ("is_system", flag(is_system)),
    ]
}

impl Metrics {
    pub fn new(broker: Broker, labels: &str, version: &'static str) -> Rc<Self> {
        Rc::new(Self {
            broker,
            serving: Cell::new(false),
            before: RefCell::default(),
            labels: labels_of(labels),
            version,
        })
    }

    /// The ports are open, or are about to close.
    pub fn set_serving(&self, serving: bool) {
        self.serving.set(serving);
    }

    /// Asks every core; all at once, so that the slowest one counts and not the sum.
    async fn gather(&self) -> Result<Gathered, BrokerError> {
        let shard = &self.broker.shard;
        let mut gathered = Gathered {
            shards: Vec::with_capacity(shard.count()),
            brokers: Vec::with_capacity(shard.count()),
        };
        for core in 0..shard.count() {
            match self.broker.ask(core, ShardRequest::Figures).await? {
                ShardReply::Figures(figures) => gathered.shards.push(*figures),
                other => return Err(BrokerError::unexpected(&other)),
            }
            let command = ShardRequest::Group(Box::new(GroupCommand::Figures));
            match self.broker.ask(core, command).await? {
                ShardReply::BrokerFigures(figures) => gathered.brokers.push(*figures),
                other => return Err(BrokerError::unexpected(&other)),
            }
        }
        Ok(gathered)
    }

    async fn page_of_metrics(&self) -> Page {
        match self.gather().await {
            Ok(gathered) => Page {
                status: Status::Ok,
                content_type: TEXT_FORMAT,
                body: self.write(&gathered).await,
            },
            Err(error) => Page::text(Status::Unavailable, format!("{error}\n")),
        }
    }

    /// In many turns: with a hundred thousand queues the page has some megabytes.
    async fn write(&self, gathered: &Gathered) -> String {
        let options = &self.broker.options;
        let mut common: Vec<(&str, &str)> = self
            .labels
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        common.extend([
            ("node_type", "broker"),
            ("cluster", &*options.cluster),
            ("node_id", &*options.broker),
        ]);
        let mut page = TextPage::new(FAMILIES, &common);
        page.sample("ringmq_build_info", &[("version", self.version)], 1);
        page.sample("rocketmq_broker_permission", &[], options.permission);
        self.write_meta(&mut page);
        self.write_shards(&mut page, &gathered.shards);
        self.write_lags(&mut page, &gathered.shards).await;
        self.write_delays(&mut page, &gathered.shards);
        write_traffic(&mut page, &gathered.brokers).await;
        write_process(&mut page, options.boot_ms);
        page.finish()
    }

    fn write_meta(&self, page: &mut TextPage) {
        let meta = self.broker.shard.meta();
        page.sample("rocketmq_topic_number", &[], meta.topics.len());
        page.sample("rocketmq_consumer_group_number", &[], meta.groups.len());
        let mut producers: BTreeMap<(u8, i32), u64> = BTreeMap::new();
        for member in meta.producers.values().flat_map(|group| &group.members) {
            *producers.entry(client_kind(member)).or_default() += 1;
        }
        for ((language, version), count) in producers {
            let labels = [
                ("language", &*language_of(language)),
                ("version", &*version_of(version)),
                ("protocol_type", "remoting"),
            ];
            page.sample("rocketmq_producer_connections", &labels, count);
        }
        for (group, online) in &meta.consumers {
            let mut consumers: BTreeMap<(u8, i32), u64> = BTreeMap::new();
            for member in &online.members {
                *consumers.entry(client_kind(member)).or_default() += 1;
            }
            for ((language, version), count) in consumers {
                let labels = [
                    ("consumer_group", &**group),
                    ("language", &*language_of(language)),
                    ("version", &*version_of(version)),
                    ("consume_mode", consume_mode(&online.consume_type)),
                    ("protocol_type", "remoting"),
                    ("is_system", flag(names::is_system_group(group))),
                ];
                page.sample("rocketmq_consumer_connections", &labels, count);
            }
            if online.differ.is_some() {
                let labels = [("consumer_group", &**group)];
                page.sample("ringmq_group_subscriptions_differ", &labels, 1);
            }
        }
    }

    fn write_shards(&self, page: &mut TextPage, shards: &[ShardFigures]) {
        let storage = [("storage_type", "local"), ("storage_medium", "disk")];
        let mut before = self.before.borrow_mut();
        before.resize(shards.len(), (0, 0));
        let now_ms = self.broker.shard.now_ms();
        let (mut pending, mut used, mut earliest) = (0, 0, None::<u64>);
        for (number, shard) in shards.iter().enumerate() {
            let shard_name = number.to_string();
            let own = [("shard", shard_name.as_str())];
            let (up_before, idle_before) =
                std::mem::replace(&mut before[number], (shard.up_ns, shard.idle_ns));
            let up_ns = shard.up_ns.saturating_sub(up_before).max(1);
            let idle_ns = shard.idle_ns.saturating_sub(idle_before).min(up_ns);
            let busy = 1.0 - idle_ns as f64 / up_ns as f64;
            page.sample("ringmq_shard_busy_ratio", &own, format!("{busy:.6}"));
            let busy_s = shard.up_ns.saturating_sub(shard.idle_ns) as f64 / 1e9;
            page.sample("ringmq_shard_busy_seconds_total", &own, busy_s);
            page.sample("ringmq_shard_held_pulls", &own, shard.held_pulls);
            page.histogram(
                "ringmq_timer_late_seconds",
                &own,
                &shard.timers_late_ms,
                1_000,
            );
            for log in &shard.logs {
                let log_name = log.log.to_string();
                let own = [("shard", shard_name.as_str()), ("log", log_name.as_str())];
                page.sample("ringmq_log_bytes", &own, log.bytes);
                let writable = u8::from(log.refusal.is_none());
                page.sample("ringmq_log_writable", &own, writable);
                page.sample("ringmq_log_pending_bytes", &own, log.pending_bytes);
                for slave in &log.replicas {
                    let id = slave.broker_id.to_string();
                    let own = [("log", log_name.as_str()), ("slave", id.as_str())];
                    let behind = log.durable_here.0.saturating_sub(slave.acked.0);
                    page.sample("ringmq_slave_behind_bytes", &own, behind);
                    page.sample("ringmq_slave_in_sync", &own, u8::from(slave.is_in_sync));
                }
                if let Some(master) = log.master {
                    let ahead = master.end.0.saturating_sub(log.durable_here.0);
                    let connected = u8::from(master.is_connected);
                    page.sample("ringmq_master_connected", &own, connected);
                    page.sample("ringmq_master_ahead_bytes", &own, ahead);
                }
                page.histogram(
                    "ringmq_log_flush_seconds",
                    &own,
                    &log.commits.flush_us,
                    1_000_000,
                );
                page.histogram("ringmq_log_batch_bytes", &own, &log.commits.group_bytes, 1);
                let scrub = &log.scrub;
                for (name, bytes) in [
                    ("ringmq_log_scrubbed_bytes_total", scrub.scrubbed_bytes),
                    ("ringmq_log_damaged_bytes", scrub.damaged_bytes),
                    ("ringmq_log_repaired_bytes_total", scrub.repaired_bytes),
                ] {
                    page.sample(name, &own, bytes);
                }
                for (cache, bytes) in [
                    ("tail", log.tail_cache_bytes),
                    ("read", log.read_cache_bytes),
                    ("index", log.index_cache_bytes),
                ] {
                    let labels = [own[0], own[1], ("cache", cache)];
                    page.sample("ringmq_cache_bytes", &labels, bytes);
                }
                page.sample("ringmq_disk_total_bytes", &own, log.disk_total_bytes);
                page.sample(
                    "ringmq_disk_available_bytes",
                    &own,
                    log.disk_available_bytes,
                );
                pending += log.pending_bytes;
                // All logs lie on one disk.
                used = log
                    .disk_total_bytes
                    .saturating_sub(log.disk_available_bytes);
                earliest = match (earliest, log.earliest_ms) {
                    (Some(known), Some(new)) => Some(known.min(new)),
                    (known, new) => known.or(new),
                };
            }
        }
        page.sample("rocketmq_storage_size", &storage, used);
        page.sample("rocketmq_storage_flush_behind_bytes", &storage, pending);
        page.sample("rocketmq_storage_dispatch_behind_bytes", &storage, 0);
        if let Some(earliest) = earliest {
            let age_ms = now_ms.saturating_sub(earliest);
            page.sample("rocketmq_storage_message_reserve_time", &storage, age_ms);
        }
    }

    fn topic_name(&self, topic_id: u32) -> Option<Arc<str>> {
        let meta = self.broker.shard.meta();
        meta.topics_by_id
            .get(&topic_id)
            .map(|topic| topic.name.clone())
    }

    async fn write_lags(&self, page: &mut TextPage, shards: &[ShardFigures]) {
        /// Lag of a group and topic over all cores.
        #[derive(Default)]
        struct Sum {
            behind: u64,
            in_flight: u64,
            oldest_ms: Option<i64>,
            missed: u64,
        }
        let mut sums: BTreeMap<(Arc<str>, Arc<str>), Sum> = BTreeMap::new();
        let mut turns = Turns::default();
        for lag in shards.iter().flat_map(|shard| &shard.lags) {
            turns.row().await;
            let Some(topic) = self.topic_name(lag.topic_id) else {
                continue;
            };
            let sum = sums.entry((lag.group.clone(), topic)).or_default();
            sum.behind += lag.behind;
            sum.in_flight += lag.in_flight;
            sum.oldest_ms = match (sum.oldest_ms, lag.oldest_ms) {
                (Some(known), Some(new)) => Some(known.min(new)),
                (known, new) => known.or(new),
            };
        }
        for (group, topic_id, messages) in shards.iter().flat_map(|shard| &shard.missed) {
            if let Some(topic) = self.topic_name(*topic_id) {
                sums.entry((group.clone(), topic)).or_default().missed += messages;
            }
        }
        let now_ms = self.broker.shard.now_ms() as i64;
        for ((group, topic), sum) in &sums {
            turns.row().await;
            let [is_retry, is_system] = kinds(topic, group);
            let labels = [
                ("topic", &**topic),
                ("consumer_group", &**group),
                is_retry,
                is_system,
            ];
            let ready = sum.behind - sum.in_flight;
            page.sample("rocketmq_consumer_lag_messages", &labels, sum.behind);
            page.sample(
                "rocketmq_consumer_inflight_messages",
                &labels,
                sum.in_flight,
            );
            page.sample("rocketmq_consumer_ready_messages", &labels, ready);
            // Also 0: an alert on its increase needs a value before the first one.
            page.sample("ringmq_messages_missed_total", &labels, sum.missed);
            let age_ms = match (sum.behind, sum.oldest_ms) {
                (0, _) => Some(0),
                (_, Some(oldest_ms)) => Some((now_ms - oldest_ms).max(0)),
                // More queues are behind than are looked at: unknown is not 0.
                (_, None) => None,
            };
            if let Some(age_ms) = age_ms {
                page.sample("rocketmq_consumer_lag_latency", &labels, age_ms);
                let waits_ms = if ready == 0 { 0 } else { age_ms };
                page.sample("rocketmq_consumer_queueing_latency", &labels, waits_ms);
            }
        }
    }

    /// Delayed messages and transactions, by topic.
    fn write_delays(&self, page: &mut TextPage, shards: &[ShardFigures]) {
        let storage = [("storage_type", "local"), ("storage_medium", "disk")];
        let logs = || shards.iter().flat_map(|shard| &shard.logs);
        let by_topic = |rows: &mut dyn Iterator<Item = (u32, u64)>| {
            let mut sums: BTreeMap<Arc<str>, u64> = BTreeMap::new();
            for (topic_id, count) in rows {
                if let Some(topic) = self.topic_name(topic_id) {
                    *sums.entry(topic).or_default() += count;
                }
            }
            sums
        };
        let timing = by_topic(&mut logs().flat_map(|log| log.timing.iter().copied()));
        let taken = by_topic(
            &mut shards
                .iter()
                .flat_map(|s| s.timers_accepted.iter().copied()),
        );
        let fired = by_topic(&mut shards.iter().flat_map(|s| s.timers_fired.iter().copied()));
        for (name, sums) in [
            ("rocketmq_timing_messages", timing),
            ("rocketmq_timer_enqueue_total", taken),
            ("rocketmq_timer_dequeue_total", fired),
        ] {
            for (topic, count) in sums {
                page.sample(name, &[storage[0], storage[1], ("topic", &topic)], count);
            }
        }
        let late_ms = logs().map(|log| log.timing_late_ms).max().unwrap_or(0);
        page.sample("rocketmq_timer_dequeue_latency", &storage, late_ms);
        page.sample("rocketmq_timer_enqueue_lag", &storage, 0);
        page.sample("rocketmq_timer_enqueue_latency", &storage, 0);
        let halves = by_topic(&mut logs().flat_map(|log| log.halves.iter().copied()));
        for (topic, count) in halves {
            page.sample("rocketmq_half_messages", &[("topic", &topic)], count);
        }
    }

    /// Every core answers, whatever it says.
    async fn page_of_health(&self) -> Page {
        let cores = async {
            for core in 0..self.broker.shard.count() {
                let ping = ShardRequest::BoundsOf(Vec::new());
                if let Err(error) = self.broker.ask(core, ping).await {
                    return Err(format!("core {core}: {error}\n"));
                }
            }
            Ok(())
        };
        let limit = async {
            self.broker.shard.sleep(CORE_ANSWERS_WITHIN).await;
            Err(format!(
                "a core does not answer within {} s\n",
                CORE_ANSWERS_WITHIN.as_secs()
            ))
        };
        match futures_lite::future::or(cores, limit).await {
            Ok(()) => Page::text(Status::Ok, "ok\n"),
            Err(reason) => Page::text(Status::Unavailable, reason),
        }
    }

    /// The ports are open and every log takes writes.
    async fn page_of_readiness(&self) -> Page {
        let mut reasons = String::new();
        if !self.serving.get() {
            reasons.push_str("the ports are not open (yet, or any more)\n");
        }
        match self.broker.all_stats().await {
            Ok(stats) => {
                for log in stats.iter().flat_map(|core| &core.logs) {
                    if let Some(refusal) = &log.refusal {
                        // Writing to a string does not fail.
                        let _ = writeln!(reasons, "log {}: {refusal}", log.log);
                    }
                }
            }
            Err(error) => {
                let _ = writeln!(reasons, "{error}");
            }
        }
        if reasons.is_empty() {
            Page::text(Status::Ok, "ready\n")
        } else {
            Page::text(Status::Unavailable, reasons)
        }
    }
}

/// The pages as a [`Site`].
pub struct MetricsSite(pub Rc<Metrics>);

impl Site for MetricsSite {
    fn page(&self, path: &str) -> PageFuture {
        let metrics = self.0.clone();
        match path {
            "/metrics" => Box::pin(async move { metrics.page_of_metrics().await }),
            "/healthz" => Box::pin(async move { metrics.page_of_health().await }),
            "/readyz" => Box::pin(async move { metrics.page_of_readiness().await }),
            "/" => Box::pin(async { Page::text(Status::Ok, "/metrics\n/healthz\n/readyz\n") }),
            _ => Box::pin(async {
                Page::text(
                    Status::NotFound,
                    "there are /metrics, /healthz and /readyz\n",
                )
            }),
        }
    }
}

impl Broker {
    /// What this core has counted.
    pub(super) fn figures_here(&self) -> BrokerFigures {
        let statistics = self.statistics.borrow();
        BrokerFigures {
            connections: self.connections.borrow().len() as u64,
            traffic: statistics.traffic(),
            refusals: statistics.refusals(),
        }
    }
}

fn client_kind(member: &Member) -> (u8, i32) {
    (member.client.language, member.client.version)
}

fn language_of(language: u8) -> String {
    let name = LANGUAGES.get(usize::from(language)).unwrap_or(&"OTHER");
    name.to_lowercase()
}

/// The ordinal of `MQVersion`; its names are a list of every release, which nobody but RocketMQ keeps.
fn version_of(version: i32) -> String {
    version.to_string()
}

/// `ConsumeType.getTypeCN`, in lower case.
fn consume_mode(consume_type: &str) -> &'static str {
    match consume_type {
        "CONSUME_ACTIVELY" => "pull",
        "CONSUME_POP" => "pop",
        _ => "push",
    }
}

/// A metric for a kind of traffic: messages, and bytes where RocketMQ has them.
fn traffic_names(kind: TrafficKind) -> (&'static str, Option<&'static str>) {
    match kind {
        TrafficKind::In => (
            "rocketmq_messages_in_total",
            Some("rocketmq_throughput_in_total"),
        ),
        TrafficKind::Out => (
            "rocketmq_messages_out_total",
            Some("rocketmq_throughput_out_total"),
        ),
        TrafficKind::Acked => ("ringmq_messages_acknowledged_total", None),
        TrafficKind::SentBack => ("ringmq_messages_sent_back_total", None),
        TrafficKind::Dead => ("rocketmq_send_to_dlq_messages_total", None),
        TrafficKind::Committed => ("rocketmq_commit_messages_total", None),
        TrafficKind::RolledBack => ("rocketmq_rollback_messages_total", None),
    }
}

/// Lets others have their turn while many rows are written.
#[derive(Default)]
struct Turns {
    rows: usize,
}

impl Turns {
    async fn row(&mut self) {
        self.rows += 1;
        if self.rows.is_multiple_of(ROWS_AT_ONCE) {
            yield_now().await;
        }
    }
}

async fn write_traffic(page: &mut TextPage, brokers: &[BrokerFigures]) {
    type Key<'a> = (TrafficKind, &'a Arc<str>, &'a Arc<str>);
    type Sum = (u64, u64, Option<Histogram>);
    let mut sums: BTreeMap<Key<'_>, Sum> = BTreeMap::new();
    let mut turns = Turns::default();
    for row in brokers.iter().flat_map(|broker| &broker.traffic) {
        turns.row().await;
        let Traffic {
            kind,
            topic,
            by,
            messages,
            bytes,
            sizes,
        } = row;
        let (sum_messages, sum_bytes, sum_sizes) = sums.entry((*kind, topic, by)).or_default();
        *sum_messages += messages;
        *sum_bytes += bytes;
        match (sum_sizes, sizes) {
            (Some(sum), Some(sizes)) => sum.add(sizes),
            (sum, Some(sizes)) => *sum = Some(*sizes),
            (_, None) => {}
        }
    }
    for ((kind, topic, by), (messages, bytes, sizes)) in sums {
        turns.row().await;
        let [is_retry, is_system] = kinds(topic, by);
        let topic_label = ("topic", &**topic);
        let labels: Vec<Label<'_>> = match kind {
            TrafficKind::In => vec![topic_label, ("message_type", by), is_system],
            TrafficKind::Committed | TrafficKind::RolledBack => vec![topic_label],
            _ => vec![topic_label, ("consumer_group", by), is_retry, is_system],
        };
        let (name, bytes_name) = traffic_names(kind);
        page.sample(name, &labels, messages);
        if let Some(name) = bytes_name {
            page.sample(name, &labels, bytes);
        }
        if let Some(sizes) = sizes {
            page.histogram("rocketmq_message_size", &labels[..2], &sizes, 1);
        }
    }
    let mut refused: BTreeMap<&str, u64> = BTreeMap::new();
    let mut connections = 0;
    for broker in brokers {
        connections += broker.connections;
        for (reason, count) in &broker.refusals {
            *refused.entry(reason).or_default() += count;
        }
    }
    for (reason, count) in refused {
        page.sample("ringmq_refused_total", &[("reason", reason)], count);
    }
    page.sample("ringmq_connections", &[], connections);
}

fn write_process(page: &mut TextPage, boot_ms: u64) {
    let usage = process::usage();
    if let Some(bytes) = usage.resident_bytes {
        page.sample("process_resident_memory_bytes", &[], bytes);
    }
    if let Some(seconds) = usage.cpu_seconds {
        page.sample("process_cpu_seconds_total", &[], seconds);
    }
    if let Some(count) = usage.open_files {
        page.sample("process_open_fds", &[], count);
    }
    page.sample("process_start_time_seconds", &[], boot_ms as f64 / 1e3);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_a_legal_name_once_and_a_help_of_one_line() {
        for (at, family) in FAMILIES.iter().enumerate() {
            let legal = family
                .name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
            assert!(legal && !family.help.contains('\n'), "{}", family.name);
            assert!(
                FAMILIES[..at].iter().all(|other| other.name != family.name),
                "{}",
                family.name
            );
            let is_total = family.name.ends_with("_total");
            assert_eq!(is_total, family.kind == Kind::Counter, "{}", family.name);
        }
    }

    #[test]
    fn own_labels_are_pairs_and_the_rest_is_left_out() {
        let labels = labels_of("zone:a, rack:7,,bad,a-b:c,x:y:z");
        let names: Vec<&str> = labels.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["zone", "rack"]);
    }

    #[test]
    fn the_cores_are_summed_by_topic_and_kind() {
        let traffic = |messages, by: &str| Traffic {
            kind: TrafficKind::Out,
            topic: Arc::from("T"),
            by: Arc::from(by),
            messages,
            bytes: 10 * messages,
            sizes: None,
        };
        let core = |messages| BrokerFigures {
            connections: 1,
            traffic: vec![traffic(messages, "G"), traffic(1, "H")],
            refusals: vec![("disk_full", messages)],
        };
        let mut page = TextPage::new(FAMILIES, &[]);
        futures_lite::future::block_on(write_traffic(&mut page, &[core(3), core(4)]));
        let text = page.finish();
        for line in [
            "rocketmq_messages_out_total{topic=\"T\",consumer_group=\"G\",is_retry=\"false\",is_system=\"false\"} 7",
            "rocketmq_throughput_out_total{topic=\"T\",consumer_group=\"H\",is_retry=\"false\",is_system=\"false\"} 20",
            "ringmq_refused_total{reason=\"disk_full\"} 7",
            "ringmq_connections{} 2",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
