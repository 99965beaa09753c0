//! updateTopic, updateTopicPerm, deleteTopic, topicList, topicRoute, topicStatus, topicClusterList, updateOrderConf.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::admin::args::Where;
use crate::admin::mqadmin::{Old, text};
use crate::admin::output::line;
use crate::admin::session::{accepted, brokers_of_route};
use crate::admin::topic::{ORDER_TOPIC_CONFIG, TopicChange, groups_of, put_topic, remove};
use crate::admin::{AdminError, Outcome};
use crate::base::names;
use crate::wire::remoting::body::TopicConfig;
use crate::wire::remoting::code::request;
use crate::wire::remoting::command::Outgoing;

/// Bits of a topic's system flag (`TopicSysFlag`).
const FLAG_UNIT: i32 = 1;
const FLAG_UNIT_SUB: i32 = 2;

impl Old {
    pub(super) async fn topic_list(&self) -> Outcome {
        let topics = self.session.topic_list().await?.topic_list;
        if !self.flags.has('c') {
            topics.iter().for_each(|topic| line(topic));
            return Ok(());
        }
        line(&format!(
            "{:<20}  {:<48}  {:<48}",
            "#Cluster Name", "#Topic", "#Consumer Group"
        ));
        for topic in topics {
            if names::is_retry_topic(&topic) || names::is_dlq_topic(&topic) {
                continue;
            }
            let brokers = match self.session.find_route(&topic).await? {
                Some(route) => brokers_of_route(&route),
                None => Vec::new(),
            };
            let cluster = brokers.first().map(|b| b.master.cluster.clone());
            let mut groups = groups_of(&self.session, &topic, &brokers).await?;
            if groups.is_empty() {
                groups.insert(String::new());
            }
            for group in groups {
                line(&format!(
                    "{:<20}  {:<64}  {:<64}",
                    text::front(cluster.as_deref().unwrap_or_default(), 20),
                    text::front(&topic, 64),
                    text::front(&group, 64)
                ));
            }
        }
        Ok(())
    }

    pub(super) async fn topic_route(&self) -> Outcome {
        let route = self.session.route(self.need('t')?).await?;
        if !self.flags.has('l') {
            let value = serde_json::to_value(&route)
                .map_err(|error| AdminError::Failed(error.to_string()))?;
            line(&text::pretty(&value));
            return Ok(());
        }
        let row = |cells: [String; 6]| {
            let [cluster, broker, addresses, read, write, perm] = cells;
            line(&format!(
                "{cluster:<45} {broker:<32} {addresses:<50} {read:<10} {write:<11} {perm:<5}"
            ));
        };
        row([
            "#ClusterName",
            "#BrokerName",
            "#BrokerAddrs",
            "#ReadQueue",
            "#WriteQueue",
            "#Perm",
        ]
        .map(str::to_owned));
        let (mut read, mut write, mut brokers) = (0, 0, BTreeSet::new());
        for broker in &route.broker_datas {
            let queues = route
                .queue_datas
                .iter()
                .find(|queues| queues.broker_name == broker.broker_name);
            let Some(queues) = queues else { continue };
            read += queues.read_queue_nums;
            write += queues.write_queue_nums;
            brokers.insert(&broker.broker_name);
            let addresses: Vec<String> = broker
                .broker_addrs
                .iter()
                .map(|(id, address)| format!("{id}={address}"))
                .collect();
            row([
                broker.cluster.clone(),
                broker.broker_name.clone(),
                format!("{{{}}}", addresses.join(", ")),
                queues.read_queue_nums.to_string(),
                queues.write_queue_nums.to_string(),
                queues.perm.to_string(),
            ]);
        }
        line(&"-".repeat(158));
        row([
            "Total:".to_owned(),
            brokers.len().to_string(),
            String::new(),
            read.to_string(),
            write.to_string(),
            String::new(),
        ]);
        Ok(())
    }

    pub(super) async fn topic_status(&self) -> Outcome {
        let topic = self.need('t')?;
        line(&format!(
            "{:<32}  {:<4}  {:<20}  {:<20}    {}",
            "#Broker Name", "#QID", "#Min Offset", "#Max Offset", "#Last Updated"
        ));
        let mut tps = 0.0;
        for broker in self.session.topic_brokers(topic).await? {
            let stats = self
                .session
                .topic_stats(&broker.master.address, topic)
                .await?;
            tps += stats.topic_put_tps;
            for (queue, offsets) in stats.offset_table {
                let time = match offsets.last_update_timestamp {
                    ..=0 => String::new(),
                    ms => text::comma_time(ms),
                };
                line(&format!(
                    "{:<32}  {:<4}  {:<20}  {:<20}    {time}",
                    text::front(&queue.broker_name, 32),
                    queue.queue_id,
                    offsets.min_offset,
                    offsets.max_offset
                ));
            }
        }
        line("");
        line(&format!("Topic Put TPS: {tps:?}"));
        Ok(())
    }

    pub(super) async fn topic_clusters(&self) -> Outcome {
        let route = self.session.route(self.need('t')?).await?;
        let clusters: BTreeSet<String> =
            route.broker_datas.into_iter().map(|b| b.cluster).collect();
        clusters.iter().for_each(|cluster| line(cluster));
        Ok(())
    }

    pub(super) async fn update_topic(&self) -> Outcome {
        let topic = self.need('t')?;
        let (unit, unit_sub) = (self.boolean('u'), self.boolean('s'));
        let bit = |given: Option<bool>, bit| if given == Some(true) { bit } else { 0 };
        let flags = bit(unit, FLAG_UNIT) | bit(unit_sub, FLAG_UNIT_SUB);
        let order = self.boolean('o').unwrap_or(false);
        // The original sets what is not given to its defaults, which has cost many a topic its queues; here it stays.
        let change = TopicChange {
            read_queues: self.number('r')?,
            write_queues: self.number('w')?,
            perm: self.number('p')?,
            order: self.boolean('o'),
            topic_sys_flag: unit.or(unit_sub).map(|_| flags),
            attributes: self.flags.get('a').map(str::to_owned),
        };
        let mut last: Option<TopicConfig> = None;
        let mut queues = BTreeMap::new();
        for master in self.masters().await? {
            let config = put_topic(&self.session, &master.address, topic, &change).await?;
            line(&format!("create topic to {} success.", master.address));
            queues.insert(master.broker_name, config.write_queue_nums);
            last = Some(config);
        }
        if order {
            crate::admin::topic::put_order(&self.session, topic, &queues).await?;
            let parts: Vec<String> = queues.iter().map(|(b, n)| format!("{b}:{n}")).collect();
            let what = if self.flags.has('b') {
                "broker"
            } else {
                "cluster"
            };
            line(&format!(
                "set {what} orderConf. isOrder=true, orderConf=[{}]",
                parts.join(";")
            ));
        }
        if let Some(config) = last {
            line(&text::topic_config(&config));
        }
        Ok(())
    }

    pub(super) async fn update_topic_perm(&self) -> Outcome {
        let topic = self.need('t')?;
        let perm: i32 = self.number('p')?.unwrap_or(6);
        let brokers = self.session.topic_brokers(topic).await?;
        let mut last = None;
        for master in self.masters().await? {
            let has_it = brokers.iter().any(|b| b.master.address == master.address);
            if !has_it {
                continue;
            }
            let before = self
                .session
                .topic_config(&master.address, topic)
                .await?
                .perm;
            if before == perm {
                line("new perm equals to the old one!");
                continue;
            }
            let change = TopicChange {
                perm: Some(perm),
                ..TopicChange::default()
            };
            last = Some(put_topic(&self.session, &master.address, topic, &change).await?);
            line(&format!(
                "update topic perm from {before} to {perm} in {} success.",
                master.address
            ));
        }
        if let Some(config) = last {
            line(&format!("{}.", text::topic_config(&config)));
        }
        Ok(())
    }

    pub(super) async fn delete_topic(&self) -> Outcome {
        let (topic, cluster) = (self.need('t')?, self.need('c')?);
        let place = Where {
            broker: None,
            cluster: Some(cluster.to_owned()),
        };
        let masters = self.session.masters(&place).await?;
        let addresses: Vec<String> = masters.into_iter().map(|m| m.address).collect();
        remove(&self.session, topic, &addresses).await?;
        line(&format!(
            "delete topic [{topic}] from cluster [{cluster}] success."
        ));
        line(&format!("delete topic [{topic}] from NameServer success."));
        Ok(())
    }

    pub(super) async fn order_conf(&self) -> Outcome {
        let topic = self.need('t')?;
        let ask = |code| {
            Outgoing::request(code)
                .field("namespace", ORDER_TOPIC_CONFIG)
                .field("key", topic.to_owned())
        };
        match self.need('m')? {
            "get" => {
                let (address, answer) = self
                    .session
                    .ask_namesrv(ask(request::GET_KV_CONFIG))
                    .await?;
                let answer = accepted(&address, request::GET_KV_CONFIG, answer)?;
                line(&format!(
                    "get orderConf success. topic=[{topic}], orderConf=[{}] ",
                    answer.text("value").unwrap_or_default()
                ));
            }
            "put" => {
                let value = self.need('v')?;
                self.all_namesrv(ask(request::PUT_KV_CONFIG).field("value", value.to_owned()))
                    .await?;
                line(&format!(
                    "update orderConf success. topic=[{topic}], orderConf=[{value}]"
                ));
            }
            "delete" => {
                self.all_namesrv(ask(request::DELETE_KV_CONFIG)).await?;
                line(&format!("delete orderConf success. topic=[{topic}]"));
            }
            other => {
                return Err(AdminError::Usage(format!(
                    "the method '{other}' of -m is none of get, put, delete"
                )));
            }
        }
        Ok(())
    }

    /// Asks every name server; the first refusal ends it.
    pub(super) async fn all_namesrv(&self, ask: Outgoing) -> Outcome {
        for address in self.session.namesrv_addresses() {
            self.session
                .call(address, ask.clone(), Bytes::new())
                .await?;
        }
        Ok(())
    }
}
