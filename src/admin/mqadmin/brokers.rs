//! clusterList, brokerStatus, broker and name server configuration, key-value pairs, write permission.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::admin::broker::{change_config, config, parse_properties, runtime};
use crate::admin::mqadmin::Old;
use crate::admin::output::line;
use crate::admin::session::Master;
use crate::admin::{AdminError, Outcome};
use crate::wire::remoting::code::{request, response};
use crate::wire::remoting::command::Outgoing;

impl Old {
    pub(super) async fn cluster_list(&self) -> Outcome {
        if self.flags.has('i') {
            return Err(AdminError::Usage(
                "-i is not offered: repeat the command with `watch -n SECONDS`".into(),
            ));
        }
        let info = self.session.cluster_info().await?;
        let more = self.flags.has('m');
        if more {
            line(&format!(
                "{:<16}  {:<32} {:>14} {:>14} {:>14} {:>14}",
                "#Cluster Name",
                "#Broker Name",
                "#InTotalYest",
                "#OutTotalYest",
                "#InTotalToday",
                "#OutTotalToday"
            ));
        } else {
            line(&format!(
                "{:<22}  {:<22}  {:<4}  {:<22} {:<16}  {:>16}  {:>30}  {:<22}  {:<11}  {:<12}  {:<8}  {:<10}",
                "#Cluster Name",
                "#Broker Name",
                "#BID",
                "#Addr",
                "#Version",
                "#InTPS(LOAD)",
                "#OutTPS(LOAD)",
                "#Timer(Progress)",
                "#PCWait(ms)",
                "#Hour",
                "#SPACE",
                "#ACTIVATED"
            ));
        }
        for (cluster, brokers) in &info.cluster_addr_table {
            if self.flags.get('c').is_some_and(|wanted| wanted != cluster) {
                continue;
            }
            for name in brokers {
                let Some(broker) = info.broker_addr_table.get(name) else {
                    continue;
                };
                for (id, address) in &broker.broker_addrs {
                    let figures = runtime(&self.session, address).await?;
                    match more {
                        true => self.more_row(cluster, name, &figures),
                        false => self.base_row((cluster, name, *id, address), &figures),
                    }
                }
            }
        }
        Ok(())
    }

    fn more_row(&self, cluster: &str, name: &str, figures: &BTreeMap<String, String>) {
        let number = |key: &str| -> i64 {
            let text = figures.get(key).map(String::as_str);
            text.and_then(|text| text.parse().ok()).unwrap_or(0)
        };
        line(&format!(
            "{cluster:<16}  {name:<32} {:>14} {:>14} {:>14} {:>14}",
            number("msgPutTotalTodayMorning") - number("msgPutTotalYesterdayMorning"),
            number("msgGetTotalTodayMorning") - number("msgGetTotalYesterdayMorning"),
            number("msgPutTotalTodayNow") - number("msgPutTotalTodayMorning"),
            number("msgGetTotalTodayNow") - number("msgGetTotalTodayMorning"),
        ));
    }

    fn base_row(
        &self,
        (cluster, name, id, address): (&str, &str, i64, &str),
        figures: &BTreeMap<String, String>,
    ) {
        let text = |key: &str| figures.get(key).map_or("", String::as_str);
        let or_n = |key: &str| figures.get(key).map_or("N", String::as_str);
        let float = |key: &str| -> f64 {
            let first = text(key).split(' ').next().unwrap_or_default();
            first.parse().unwrap_or(0.0)
        };
        let incoming = format!(
            "{:9.2}({},{}ms)",
            float("putTps"),
            text("sendThreadPoolQueueSize"),
            text("sendThreadPoolQueueHeadWaitTimeMills")
        );
        let outgoing = format!(
            "{:9.2}({},{}ms|{},{}ms)",
            float("getTransferredTps"),
            text("pullThreadPoolQueueSize"),
            text("pullThreadPoolQueueHeadWaitTimeMills"),
            or_n("ackThreadPoolQueueSize"),
            or_n("ackThreadPoolQueueHeadWaitTimeMills")
        );
        let timer = format!(
            "{}-{}({:.1}w, {:.1}, {:.1})",
            float("timerReadBehind") as i64,
            float("timerOffsetBehind") as i64,
            float("timerCongestNum") / 10_000.0,
            float("timerEnqueueTps"),
            float("timerDequeueTps")
        );
        let hours = match float("earliestMessageTimeStamp") {
            earliest if earliest > 0.0 => (self.session.now_ms() as f64 - earliest) / 3_600_000.0,
            _ => 0.0,
        };
        line(&format!(
            "{cluster:<22}  {name:<22}  {id:<4}  {address:<22} {:<16}  {incoming:>16}  {outgoing:>30}  {timer:<22}  {:>11}  {:<12}  {:<8}  {:>10}",
            text("brokerVersionDesc"),
            text("pageCacheLockTimeMills"),
            format!("{hours:.2}"),
            format!("{:.4}", float("commitLogDiskRatio")),
            text("brokerActive")
        ));
    }

    pub(super) async fn broker_status(&self) -> Outcome {
        let of_cluster = !self.flags.has('b');
        for master in self.masters().await? {
            for (key, value) in runtime(&self.session, &master.address).await? {
                match of_cluster {
                    true => line(&format!("{:<24} {key:<32}: {value}", master.address)),
                    false => line(&format!("{key:<32}: {value}")),
                }
            }
        }
        Ok(())
    }

    pub(super) async fn broker_config(&self) -> Outcome {
        let of_cluster = !self.flags.has('b');
        for master in self.masters().await? {
            let head = match of_cluster {
                true => format!("Master: {}", master.address),
                false => master.address.clone(),
            };
            line(&format!("============{head}============"));
            for (key, value) in config(&self.session, &master.address).await? {
                line(&format!("{key:<50}=  {value}"));
            }
            line("");
        }
        Ok(())
    }

    pub(super) async fn update_broker_config(&self) -> Outcome {
        let change = BTreeMap::from([(self.need('k')?.to_owned(), self.need('v')?.to_owned())]);
        for Master { address, .. } in self.masters().await? {
            change_config(&self.session, &address, &change).await?;
            line(&format!("update broker config success, {address}"));
        }
        Ok(())
    }

    pub(super) async fn namesrv_config(&self) -> Outcome {
        for address in self.session.namesrv_addresses() {
            let ask = Outgoing::request(request::GET_NAMESRV_CONFIG);
            let answer = self.session.call(address, ask, Bytes::new()).await?;
            line(&format!("============{address}============"));
            for (key, value) in parse_properties(&String::from_utf8_lossy(&answer.body)) {
                line(&format!("{key:<50}=  {value}"));
            }
        }
        Ok(())
    }

    fn kv(&self, code: i32) -> Outcome<Outgoing> {
        Ok(Outgoing::request(code)
            .field("namespace", self.need('s')?.to_owned())
            .field("key", self.need('k')?.to_owned()))
    }

    pub(super) async fn update_kv(&self) -> Outcome {
        let ask = self.kv(request::PUT_KV_CONFIG)?;
        let ask = ask.field("value", self.need('v')?.to_owned());
        self.all_namesrv(ask).await?;
        line("create or update kv config to namespace success.");
        Ok(())
    }

    pub(super) async fn delete_kv(&self) -> Outcome {
        self.all_namesrv(self.kv(request::DELETE_KV_CONFIG)?)
            .await?;
        line("delete kv config from namespace success.");
        Ok(())
    }

    /// wipeWritePerm and addWritePerm; here `-b` is a broker's name.
    pub(super) async fn write_perm(&self, wipe: bool) -> Outcome {
        let name = self.need('b')?;
        let (code, count, verb) = match wipe {
            true => (request::WIPE_WRITE_PERM_OF_BROKER, "wipeTopicCount", "wipe"),
            false => (request::ADD_WRITE_PERM_OF_BROKER, "addTopicCount", "add"),
        };
        let mut failed = 0;
        for address in self.session.namesrv_addresses() {
            let ask = Outgoing::request(code).field("brokerName", name.to_owned());
            let answer = self.session.ask(address, ask, Bytes::new()).await?;
            let front = format!("{verb} write perm of broker[{name}] in name server[{address}]");
            if answer.code == response::SUCCESS {
                line(&format!(
                    "{front} OK, {}",
                    answer.text(count).unwrap_or_default()
                ));
            } else {
                failed += 1;
                line(&format!("{front} Failed"));
            }
        }
        match failed {
            0 => Ok(()),
            _ => Err(AdminError::Partly(format!("{failed} name servers refused"))),
        }
    }
}
