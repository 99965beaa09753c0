//! The broker itself as tools see it: runtime figures (28), configuration (26, 25), replication state (907).
//!
//! Only the keys of [`CHANGEABLE`] can be changed over the network: a list of what may, because a list of what may not
//! was RocketMQ's way to a remote code execution (CVE-2023-33246). Source: `AdminBrokerProcessor`.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::base::offset::PhysicalOffset;
use crate::broker::dispatch::{Answer, Broker, Outcome};
use crate::broker::error::BrokerError;
use crate::broker::topics::wire_version;
use crate::io::body::Body;
use crate::shard::message::{ShardReply, ShardRequest, ShardStats};
use crate::shard::meta::MetaCommand;
use crate::wire::remoting::body::KVTable;
use crate::wire::remoting::command::{Command, Outgoing, VERSION};
use crate::wire::remoting::json;

/// A key that UPDATE_BROKER_CONFIG takes. It is read anew where it acts.
struct Changeable {
    key: &'static str,
    is_legal: fn(&str) -> bool,
    wanted: &'static str,
}

const CHANGEABLE: [Changeable; 2] = [
    Changeable {
        key: "fileReservedTime",
        is_legal: is_hours,
        wanted: "a number of hours, at least 1",
    },
    Changeable {
        key: "deleteWhen",
        is_legal: is_hour_list,
        wanted: "hours of the day, such as 04 or 04;16",
    },
];

fn is_hours(value: &str) -> bool {
    value.parse::<u32>().is_ok_and(|hours| hours >= 1)
}

fn is_hour_list(value: &str) -> bool {
    value
        .split(';')
        .all(|hour| hour.trim().parse::<u8>().is_ok_and(|hour| hour < 24))
}

/// `key=value` lines as `java.util.Properties` reads them, without its escapes; `#` and `!` begin comments.
fn parse_properties(text: &str) -> Vec<(String, String)> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with(['#', '!']))
        .map(|line| {
            let (key, value) = line.split_once('=').unwrap_or((line, ""));
            (key.trim().to_owned(), value.trim().to_owned())
        })
        .collect()
}

/// The changes of a request, each allowed and well formed.
fn checked_changes(text: &str) -> Result<BTreeMap<String, String>, BrokerError> {
    let mut changes = BTreeMap::new();
    for (key, value) in parse_properties(text) {
        let Some(known) = CHANGEABLE.iter().find(|known| known.key == key) else {
            let keys: Vec<&str> = CHANGEABLE.iter().map(|known| known.key).collect();
            return Err(BrokerError::NoPermission(format!(
                "the configuration key '{key}' cannot be changed at run time; these can: {}",
                keys.join(", ")
            )));
        };
        if !(known.is_legal)(&value) {
            return Err(BrokerError::InvalidParameter(format!(
                "the value '{value}' of {key} is not {}",
                known.wanted
            )));
        }
        changes.insert(key, value);
    }
    Ok(changes)
}

/// `[ 0 days, 0 hours, 1 minutes, 8 seconds ]`.
fn duration_text(ms: u64) -> String {
    let seconds = ms / 1_000;
    format!(
        "[ {} days, {} hours, {} minutes, {} seconds ]",
        seconds / 86_400,
        seconds / 3_600 % 24,
        seconds / 60 % 60,
        seconds % 60
    )
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}

/// The runtime table of what the cores say.
fn runtime_table(stats: &[ShardStats], boot_ms: u64, now_ms: u64) -> BTreeMap<String, String> {
    let sum = |of: fn(&ShardStats) -> u64| stats.iter().map(of).sum::<u64>();
    let logs = || stats.iter().flat_map(|core| &core.logs);
    let (puts, put_bytes) = (sum(|s| s.put_messages), sum(|s| s.put_bytes));
    let gets = sum(|s| s.get_messages);
    let pending: u64 = logs().map(|log| log.pending_bytes).sum();
    let max = logs()
        .map(|log| PhysicalOffset::new(log.log, log.max).0)
        .max();
    let min = logs()
        .map(|log| PhysicalOffset::new(log.log, log.min).0)
        .min();
    let earliest = logs().map(|log| log.earliest_ms).filter(|&ms| ms > 0).min();
    let uptime_ms = now_ms.saturating_sub(boot_ms);
    let per_second = |count: u64| {
        let rate = count as f64 * 1_000.0 / uptime_ms.max(1) as f64;
        format!("{rate:.2} {rate:.2} {rate:.2}")
    };
    let mut table = BTreeMap::new();
    let mut put = |key: &str, value: String| {
        table.insert(key.to_owned(), value);
    };
    put("bootTimestamp", boot_ms.to_string());
    put("brokerActive", "true".into());
    put("brokerVersion", VERSION.to_string());
    put("brokerVersionDesc", "V5_5_0".into());
    put("runtime", duration_text(uptime_ms));
    put("putTps", per_second(puts));
    put("getFoundTps", per_second(sum(|s| s.get_found)));
    put("getMissTps", per_second(sum(|s| s.get_missed)));
    put(
        "getTotalTps",
        per_second(sum(|s| s.get_found) + sum(|s| s.get_missed)),
    );
    // 4.x tools read the first spelling, 5.x the second.
    put("getTransferedTps", per_second(gets));
    put("getTransferredTps", per_second(gets));
    put("putMessageTimesTotal", puts.to_string());
    put("putMessageSizeTotal", put_bytes.to_string());
    put(
        "putMessageAverageSize",
        format!("{:.1}", put_bytes as f64 / puts.max(1) as f64),
    );
    put("msgPutTotalTodayNow", puts.to_string());
    put("msgGetTotalTodayNow", gets.to_string());
    for key in [
        "msgPutTotalTodayMorning",
        "msgPutTotalYesterdayMorning",
        "msgGetTotalTodayMorning",
        "msgGetTotalYesterdayMorning",
        "putMessageEntireTimeMax",
        "getMessageEntireTimeMax",
        "putMessageFailedTimes",
        "dispatchMaxBuffer",
        "dispatchBehindBytes",
        "pageCacheLockTimeMills",
        "remainTransientStoreBufferNumbs",
        "startAcceptSendRequestTimeStamp",
        "sendThreadPoolQueueSize",
        "sendThreadPoolQueueCapacity",
        "sendThreadPoolQueueHeadWaitTimeMills",
        "pullThreadPoolQueueSize",
        "pullThreadPoolQueueCapacity",
        "pullThreadPoolQueueHeadWaitTimeMills",
        "queryThreadPoolQueueSize",
        "queryThreadPoolQueueCapacity",
        "queryThreadPoolQueueHeadWaitTimeMills",
        "EndTransactionQueueSize",
        "EndTransactionThreadPoolQueueCapacity",
    ] {
        // What tools expect to find and this broker has no such thing to measure.
        put(key, "0".into());
    }
    put("commitLogMinOffset", min.unwrap_or(0).to_string());
    put("commitLogMaxOffset", max.unwrap_or(0).to_string());
    put("remainHowManyDataToFlush", format!("{pending} B"));
    put(
        "earliestMessageTimeStamp",
        earliest.unwrap_or(-1).to_string(),
    );
    let mut worst_ratio: f64 = 0.0;
    for log in logs() {
        if log.disk_total_bytes == 0 {
            continue;
        }
        let ratio = 1.0 - log.disk_available_bytes as f64 / log.disk_total_bytes as f64;
        worst_ratio = worst_ratio.max(ratio);
        put(
            &format!("commitLogDiskRatio_{}", log.path),
            format!("{ratio:.4}"),
        );
    }
    put("commitLogDiskRatio", format!("{worst_ratio:.4}"));
    put("consumeQueueDiskRatio", format!("{worst_ratio:.4}"));
    if let Some(log) = logs().next() {
        put(
            "commitLogDirCapacity",
            format!(
                "Total : {:.1} GiB, Free : {:.1} GiB.",
                gib(log.disk_total_bytes),
                gib(log.disk_available_bytes)
            ),
        );
    }
    table
}

impl Broker {
    pub(super) async fn all_stats(&self) -> Result<Vec<ShardStats>, BrokerError> {
        let mut all = Vec::with_capacity(self.shard.count());
        for core in 0..self.shard.count() {
            match self.ask(core, ShardRequest::Stats).await? {
                ShardReply::Stats(stats) => all.push(*stats),
                other => return Err(BrokerError::unexpected(&other)),
            }
        }
        Ok(all)
    }

    /// 28.
    pub(super) async fn runtime_info(self) -> Outcome {
        let stats = self.all_stats().await?;
        Answer::json(&KVTable {
            table: runtime_table(&stats, self.options.boot_ms, self.shard.now_ms()),
        })
    }

    /// 26.
    pub(super) fn config_text(&self) -> Outcome {
        let meta = self.shard.meta();
        let mut settings: BTreeMap<&str, &str> = self
            .options
            .settings
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect();
        for (key, value) in meta.settings.iter() {
            settings.insert(key, value);
        }
        let mut text = String::new();
        for (key, value) in settings {
            let _ = writeln!(text, "{key}={value}"); // Writing to a string does not fail.
        }
        Ok(Answer {
            head: Outgoing::success().field(
                "version",
                json::to_string(&wire_version(meta.topics_version)),
            ),
            body: Body::Bytes(text.into()),
        })
    }

    /// 25.
    pub(super) async fn update_config(self, command: Command) -> Outcome {
        let changes = checked_changes(&String::from_utf8_lossy(&command.body))?;
        if !changes.is_empty() {
            tracing::info!(?changes, "the configuration was changed over the network");
            self.change(MetaCommand::PutSettings(changes)).await?;
        }
        Answer::done()
    }

    /// 907: each connection is one log of one slave. Positions are physical offsets, which name their log.
    pub(super) async fn ha_status(self) -> Outcome {
        let stats = self.all_stats().await?;
        let logs = stats.iter().flat_map(|core| &core.logs);
        let max = logs
            .map(|log| PhysicalOffset::new(log.log, log.max).0)
            .max();
        let logs = || stats.iter().flat_map(|core| &core.logs);
        let mut connections = Vec::new();
        let mut in_sync: BTreeMap<u64, usize> = BTreeMap::new();
        for log in logs() {
            for slave in &log.replicas {
                *in_sync.entry(slave.broker_id).or_default() += usize::from(slave.is_in_sync);
                connections.push(serde_json::json!({
                    "addr": slave.address,
                    "brokerId": slave.broker_id,
                    "diff": log.durable_here.0.saturating_sub(slave.acked.0),
                    "inSync": slave.is_in_sync,
                    "slaveAckOffset": PhysicalOffset::new(log.log, slave.acked).0,
                    "transferFromWhere": PhysicalOffset::new(log.log, slave.acked).0,
                    "transferredByteInSecond": 0,
                }));
            }
        }
        let log_count = logs().count();
        let masters =
            logs().filter_map(|log| Some(PhysicalOffset::new(log.log, log.master?.end).0));
        Answer::json(&serde_json::json!({
            "haClientRuntimeInfo": {
                "lastReadTimestamp": 0,
                "lastWriteTimestamp": 0,
                "masterFlushOffset": masters.max().unwrap_or(0),
                "maxOffset": if self.options.is_slave() { max.unwrap_or(0) } else { 0 },
                "transferredByteInSecond": 0,
            },
            "haConnectionInfo": connections,
            "inSyncSlaveNums": in_sync.values().filter(|logs| **logs == log_count).count(),
            "master": !self.options.is_slave(),
            "masterCommitLogMaxOffset": max.unwrap_or(0),
        }))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::base::offset::Position;
    use crate::shard::message::LogStats;

    #[test]
    fn only_what_is_on_the_list_can_be_changed() {
        let good = checked_changes("# by mqadmin\nfileReservedTime=71\ndeleteWhen = 04;16\n");
        assert_eq!(good.unwrap().len(), 2);
        for attack in [
            "rocketmqHome=/tmp",
            "filterServerNums=1",
            "brokerConfigPath=/etc/x",
        ] {
            assert!(
                matches!(checked_changes(attack), Err(BrokerError::NoPermission(_))),
                "{attack}"
            );
        }
        for wrong in [
            "fileReservedTime=0",
            "fileReservedTime=x",
            "deleteWhen=24",
            "deleteWhen=",
        ] {
            assert!(
                matches!(
                    checked_changes(wrong),
                    Err(BrokerError::InvalidParameter(_))
                ),
                "{wrong}"
            );
        }
    }

    #[test]
    fn the_runtime_table_sums_the_cores() {
        let core = |log, max| ShardStats {
            put_messages: 10,
            logs: vec![LogStats {
                log,
                max: Position(max),
                earliest_ms: 5 + i64::from(log),
                disk_total_bytes: 100,
                disk_available_bytes: 25,
                path: format!("/d/{log}"),
                ..LogStats::default()
            }],
            ..ShardStats::default()
        };
        let table = runtime_table(&[core(0, 7), core(1, 3)], 1_000, 11_000);
        assert_eq!(table["putMessageTimesTotal"], "20");
        assert_eq!(table["putTps"], "2.00 2.00 2.00");
        assert_eq!(table["commitLogMaxOffset"], ((1i64 << 56) + 3).to_string());
        assert_eq!(table["earliestMessageTimeStamp"], "5");
        assert_eq!(table["commitLogDiskRatio"], "0.7500");
        assert_eq!(
            table["runtime"],
            "[ 0 days, 0 hours, 0 minutes, 10 seconds ]"
        );
    }
}
