//! updateSubGroup, deleteSubGroup, getConsumerConfig, setConsumeMode, consumerProgress, connections, offsets.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::admin::args::Where;
use crate::admin::group::{self, GroupChange, put_group};
use crate::admin::mqadmin::{Old, text};
use crate::admin::offset::{Target, clone_on_broker, reset_on_broker};
use crate::admin::output::line;
use crate::admin::stored::time_of;
use crate::admin::{AdminError, Outcome, lag, topic};
use crate::base::names;
use crate::wire::remoting::body::{ConsumerConnection, ProducerConnection};
use crate::wire::remoting::code::{request, response};
use crate::wire::remoting::command::Outgoing;

impl Old {
    pub(super) async fn update_group(&self) -> Outcome {
        let name = self.need('g')?;
        let policy: Option<Value> = match self.flags.get('p') {
            Some(text) => Some(serde_json::from_str(text).map_err(|error| {
                AdminError::Usage(format!("the retry policy of -p is no JSON: {error}"))
            })?),
            None => None,
        };
        let change = GroupChange {
            retry_max_times: self.number('r')?,
            retry_queues: self.number('q')?,
            consume_enable: self.boolean('s'),
            broadcast_enable: self.boolean('d'),
            from_min_enable: self.boolean('m'),
            orderly: self.boolean('o'),
            broker_id: self.number('i')?,
            which_broker_when_slow: self.number('w')?,
            notify_ids_changed: self.boolean('a'),
            retry_policy: policy,
            attributes: None,
        };
        let mut last = None;
        for master in self.masters().await? {
            last = Some(put_group(&self.session, &master.address, name, &change).await?);
            line(&format!(
                "create subscription group to {} success.",
                master.address
            ));
        }
        if let Some(config) = last {
            line(&text::group_config(&config));
        }
        Ok(())
    }

    pub(super) async fn delete_group(&self) -> Outcome {
        let name = self.need('g')?;
        let clean = self.boolean('r').unwrap_or(false);
        let masters = self.masters().await?;
        let of_cluster = match self.flags.has('b') {
            true => String::new(),
            false => format!(" in cluster [{}]", self.need('c')?),
        };
        for master in &masters {
            group::remove(&self.session, &master.address, name, clean).await?;
            line(&format!(
                "delete subscription group [{name}] from broker [{}]{of_cluster} success.",
                master.address
            ));
        }
        // As the original: of a whole cluster the topics of the group go, too.
        if !of_cluster.is_empty() {
            let addresses: Vec<String> = masters.into_iter().map(|m| m.address).collect();
            for own in [names::retry_topic(name), names::dlq_topic(name)] {
                topic::remove(&self.session, &own, &addresses).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn group_config(&self) -> Outcome {
        let name = self.need('g')?;
        for master in self.session.masters(&Where::default()).await? {
            let Some(config) = group::config(&self.session, &master.address, name).await? else {
                continue;
            };
            let bar = "=".repeat(29);
            line(&format!(
                "{bar}{}:{}{bar}",
                master.cluster, master.broker_name
            ));
            let value = serde_json::to_value(&config)
                .map_err(|error| AdminError::Failed(error.to_string()))?;
            for (key, value) in value.as_object().into_iter().flatten() {
                let value = value
                    .as_str()
                    .map_or_else(|| value.to_string(), str::to_owned);
                line(&format!("{key:<40}=  {value}"));
            }
        }
        Ok(())
    }

    pub(super) async fn consume_mode(&self) -> Outcome {
        let (topic, name, mode) = (self.need('t')?, self.need('g')?, self.need('m')?);
        let mode = mode.to_uppercase();
        let queues: i32 = self.number('q')?.unwrap_or(0);
        let body = json!({
            "consumerGroup": name,
            "mode": mode,
            "popShareQueueNum": queues,
            "topic": topic,
        });
        for master in self.masters().await? {
            let ask = Outgoing::request(request::SET_MESSAGE_REQUEST_MODE);
            self.session
                .call(&master.address, ask, body.to_string().into())
                .await?;
            line(&format!("set consume mode to {} success.", master.address));
        }
        line(&format!(
            "topic[{topic}] group[{name}] consume mode[{mode}] popShareQueueNum[{queues}]"
        ));
        Ok(())
    }

    /// The masters that may know a group: those of its retry topic, or else all.
    async fn places(&self, name: &str) -> Outcome<Vec<String>> {
        let route = self.session.find_route(&names::retry_topic(name)).await?;
        let brokers = route.map(|route| crate::admin::session::brokers_of_route(&route));
        match brokers {
            Some(brokers) if !brokers.is_empty() => {
                Ok(brokers.into_iter().map(|b| b.master.address).collect())
            }
            _ => {
                let masters = self.session.masters(&Where::default()).await?;
                Ok(masters.into_iter().map(|master| master.address).collect())
            }
        }
    }

    pub(super) async fn progress(&self) -> Outcome {
        match self.flags.get('g') {
            Some(name) => self.progress_of(name).await,
            None => self.progress_of_all().await,
        }
    }

    async fn progress_of(&self, name: &str) -> Outcome {
        let topic = self.flags.get('t');
        let mut table = BTreeMap::new();
        let mut tps = 0.0;
        for address in self.places(name).await? {
            let stats = self.session.consume_stats(&address, name, topic).await?;
            tps += stats.consume_tps;
            for (queue, offset) in stats.offset_table {
                // By topic first, as the original sorts its queues.
                let key = (
                    queue.topic.clone(),
                    queue.broker_name.clone(),
                    queue.queue_id,
                );
                table.insert(key, offset);
            }
        }
        let show_ip = self.boolean('s') == Some(true);
        let owners = match show_ip {
            true => self.owners(name).await?,
            false => BTreeMap::new(),
        };
        let ip = |key: &(String, String, i32)| match show_ip {
            true => format!("{:<20} ", owners.get(key).map_or("N/A", String::as_str)),
            false => String::new(),
        };
        let ip_head = match show_ip {
            true => format!("{:<20} ", "#Client IP"),
            false => String::new(),
        };
        line(&format!(
            "{:<64}  {:<32}  {:<4}  {:<20}  {:<20}  {ip_head}{:<20} {:<20}{}",
            "#Topic",
            "#Broker Name",
            "#QID",
            "#Broker Offset",
            "#Consumer Offset",
            "#Diff",
            "#Inflight",
            "#LastTime"
        ));
        let (mut diffs, mut inflights) = (0, 0);
        for (key, offset) in &table {
            // Never negative, unlike the original's: an offset beyond the end has nothing to consume.
            let diff = (offset.broker_offset - offset.consumer_offset).max(0);
            let inflight = (offset.pull_offset - offset.consumer_offset).max(0);
            diffs += diff;
            inflights += inflight;
            let last = match offset.last_timestamp {
                0 => "N/A".to_owned(),
                ms => text::second_time(ms),
            };
            line(&format!(
                "{:<64}  {:<32}  {:<4}  {:<20}  {:<20}  {}{diff:<20} {inflight:<20} {last}",
                text::front(&key.0, 64),
                text::front(&key.1, 32),
                key.2,
                offset.broker_offset,
                offset.consumer_offset,
                ip(key)
            ));
        }
        line("");
        line(&format!("Consume TPS: {tps:.2}"));
        line(&format!("Consume Diff Total: {diffs}"));
        line(&format!("Consume Inflight Total: {inflights}"));
        Ok(())
    }

    /// Who of a group has which queue: what each member says itself (307).
    async fn owners(&self, name: &str) -> Outcome<BTreeMap<(String, String, i32), String>> {
        let mut owners = BTreeMap::new();
        for address in self.places(name).await? {
            let Some(online) = group::connections(&self.session, &address, name).await? else {
                continue;
            };
            for member in online.connection_set {
                let ask = Outgoing::request(request::GET_CONSUMER_RUNNING_INFO)
                    .field("consumerGroup", name.to_owned())
                    .field("clientId", member.client_id.clone())
                    .field("jstackEnable", false);
                let info: Value = self.session.fetch(&address, ask).await?;
                for key in info["mqTable"].as_object().into_iter().flatten() {
                    let queue: Value = serde_json::from_str(key.0).unwrap_or_default();
                    let text = |field: &str| queue[field].as_str().unwrap_or_default().to_owned();
                    let id = queue["queueId"].as_i64().unwrap_or(-1) as i32;
                    let ip = member.client_id.split('@').next().unwrap_or_default();
                    owners.insert((text("topic"), text("brokerName"), id), ip.to_owned());
                }
            }
        }
        Ok(owners)
    }

    async fn progress_of_all(&self) -> Outcome {
        line(&format!(
            "{:<64}  {:<6}  {:<24} {:<5}  {:<14}  {:<7}  {}",
            "#Group", "#Count", "#Version", "#Type", "#Model", "#TPS", "#Diff Total"
        ));
        for topic in self.session.topic_list().await?.topic_list {
            let Some(name) = names::group_of_retry_topic(&topic) else {
                continue;
            };
            let (mut lags, mut tps) = (Vec::new(), 0.0);
            let mut online: Option<ConsumerConnection> = None;
            for address in self.places(name).await? {
                let stats = self.session.consume_stats(&address, name, None).await?;
                tps += stats.consume_tps;
                lags.extend(lag::of_stats(stats));
                let found = group::connections(&self.session, &address, name).await?;
                online = online.or(found);
            }
            let total: i64 = lags.iter().map(lag::QueueLag::lag).sum();
            let (mut count, mut version) = (0, "OFFLINE".to_owned());
            let (mut kind, mut model) = ("", String::new());
            if let Some(online) = online {
                count = online.connection_set.len();
                let least = online
                    .connection_set
                    .iter()
                    .map(|member| member.version)
                    .min();
                version = text::version(least.unwrap_or(0));
                kind = match online.consume_type.as_str() {
                    "CONSUME_ACTIVELY" => "PULL",
                    "CONSUME_POP" => "POP",
                    _ => "PUSH",
                };
                model = online.message_model;
            }
            line(&format!(
                "{:<64}  {count:<6}  {version:<24} {kind:<5}  {model:<14}  {:<7}  {total}",
                text::front(name, 64),
                tps as i64
            ));
        }
        Ok(())
    }

    pub(super) async fn consumers(&self) -> Outcome {
        let name = self.need('g')?;
        let places = match self.flags.get('b') {
            Some(address) => vec![address.to_owned()],
            None => self.places(name).await?,
        };
        let mut online = None;
        for address in places {
            online = group::connections(&self.session, &address, name).await?;
            if online.is_some() {
                break;
            }
        }
        let online = online.ok_or_else(|| {
            AdminError::NotFound(format!("Not found the consumer group connection: {name}"))
        })?;
        line(&format!(
            "{:<36} {:<22} {:<10} {}",
            "#ClientId", "#ClientAddr", "#Language", "#Version"
        ));
        for member in &online.connection_set {
            line(&format!(
                "{:<36} {:<22} {:<10} {}",
                member.client_id,
                member.client_addr,
                member.language,
                text::version(member.version)
            ));
        }
        line("");
        line("Below is subscription:");
        line(&format!("{:<20} {}", "#Topic", "#SubExpression"));
        for (topic, data) in &online.subscription_table {
            line(&format!("{topic:<20} {}", data.sub_string));
        }
        line("");
        line(&format!("ConsumeType: {}", online.consume_type));
        line(&format!("MessageModel: {}", online.message_model));
        line(&format!("ConsumeFromWhere: {}", online.consume_from_where));
        Ok(())
    }

    pub(super) async fn producers(&self) -> Outcome {
        let (name, topic) = (self.need('g')?, self.need('t')?);
        let mut refusal = None;
        for broker in self.session.topic_brokers(topic).await? {
            let ask = Outgoing::request(request::GET_PRODUCER_CONNECTION_LIST)
                .field("producerGroup", name.to_owned());
            let address = &broker.master.address;
            let found: Outcome<ProducerConnection> = self.session.fetch(address, ask).await;
            match found {
                Ok(online) => {
                    for (at, member) in online.connection_set.iter().enumerate() {
                        line(&format!(
                            "{:04}  {:<32} {:<22} {:<8} {}",
                            at + 1,
                            member.client_id,
                            member.client_addr,
                            member.language,
                            text::version(member.version)
                        ));
                    }
                    return Ok(());
                }
                Err(error) => refusal = Some(error),
            }
        }
        Err(refusal.unwrap_or_else(|| AdminError::NotFound(format!("no broker has {topic}"))))
    }

    pub(super) async fn reset_offset(&self) -> Outcome {
        let (name, topic, time) = (self.need('g')?, self.need('t')?, self.need('s')?);
        let timestamp = match time {
            // What skipAccumulatedMessage does.
            "-1" => -1,
            time => time_of(time, &self.session)?,
        };
        let queue: Option<i32> = self.number('q')?;
        let target = match self.number('o')? {
            Some(offset) => Target::Offset(offset),
            None if timestamp < 0 => Target::End,
            None => Target::Time(timestamp),
        };
        if let (Some(address), Some(queue)) = (self.flags.get('b'), queue.filter(|&id| id >= 0)) {
            line(&format!(
                "start reset consumer offset by specified, group[{name}], topic[{topic}], queueId[{queue}], broker[{address}], timestamp(string)[{time}], timestamp(long)[{timestamp}]"
            ));
            let done =
                reset_on_broker(&self.session, address, (name, topic), Some(queue), target).await?;
            for offset in done.values() {
                line(&format!("reset consumer offset to {offset}"));
            }
            return Ok(());
        }
        if matches!(target, Target::Offset(_)) {
            return Err(AdminError::Usage(
                "an offset of -o belongs to one queue: add -b ADDRESS and -q QUEUE".into(),
            ));
        }
        let table = self.reset_topic(name, topic, target).await?;
        let force = self.boolean('f').unwrap_or(true);
        line(&format!(
            "start reset consumer offset by specified, group[{name}], topic[{topic}], force[{force}], timestamp(string)[{time}], timestamp(long)[{timestamp}]"
        ));
        print_offsets(&table);
        Ok(())
    }

    pub(super) async fn skip(&self) -> Outcome {
        let (name, topic) = (self.need('g')?, self.need('t')?);
        let table = self.reset_topic(name, topic, Target::End).await?;
        print_offsets(&table);
        Ok(())
    }

    async fn reset_topic(
        &self,
        name: &str,
        topic: &str,
        target: Target,
    ) -> Outcome<BTreeMap<(String, i32), i64>> {
        let mut table = BTreeMap::new();
        for broker in self.session.topic_brokers(topic).await? {
            let address = &broker.master.address;
            let done = reset_on_broker(&self.session, address, (name, topic), None, target).await?;
            table.extend(
                done.into_iter()
                    .map(|(queue, offset)| ((queue.broker_name, queue.queue_id), offset)),
            );
        }
        Ok(table)
    }

    pub(super) async fn clone_offset(&self) -> Outcome {
        let (from, to, topic) = (self.need('s')?, self.need('d')?, self.need('t')?);
        for broker in self.session.topic_brokers(topic).await? {
            clone_on_broker(&self.session, &broker.master.address, from, to, Some(topic)).await?;
        }
        line(&format!(
            "clone group offset success. srcGroup[{from}], destGroup=[{to}], topic[{topic}]"
        ));
        Ok(())
    }

    /// What became of a message in each group that consumes its topic (`messageTrackDetail`).
    pub(super) async fn tracks(
        &self,
        message: &crate::admin::stored::Stored,
    ) -> Outcome<Vec<String>> {
        let brokers = self.session.topic_brokers(&message.topic).await?;
        let groups = topic::groups_of(&self.session, &message.topic, &brokers).await?;
        let mut tracks = Vec::new();
        for name in groups {
            let mut online = None;
            for broker in &brokers {
                let found =
                    group::connections(&self.session, &broker.master.address, &name).await?;
                online = online.or(found);
            }
            let (kind, reason) = match &online {
                None => (
                    "NOT_ONLINE",
                    format!(
                        "CODE:{} DESC:Not found the consumer group connection",
                        response::CONSUMER_NOT_ONLINE
                    ),
                ),
                Some(online) if online.message_model == "BROADCASTING" => {
                    ("CONSUME_BROADCASTING", "null".to_owned())
                }
                Some(online) if online.consume_type == "CONSUME_ACTIVELY" => {
                    ("PULL", "null".to_owned())
                }
                Some(_) => {
                    let committed = match brokers
                        .iter()
                        .find(|b| b.master.broker_name == message.broker_name)
                    {
                        Some(broker) => {
                            crate::admin::stored::Queue {
                                master: broker.master.clone(),
                                topic: message.topic.clone(),
                                queue_id: message.queue_id,
                            }
                            .committed(&self.session, &name)
                            .await?
                        }
                        None => None,
                    };
                    match committed.is_some_and(|offset| offset > message.queue_offset) {
                        true => ("CONSUMED", "null".to_owned()),
                        false => ("NOT_CONSUME_YET", "null".to_owned()),
                    }
                }
            };
            tracks.push(format!(
                "MessageTrack [consumerGroup={name}, trackType={kind}, exceptionDesc={reason}]"
            ));
        }
        Ok(tracks)
    }
}

fn print_offsets(table: &BTreeMap<(String, i32), i64>) {
    line(&format!(
        "{:<40}  {:<40}  {:<40}",
        "#brokerName", "#queueId", "#offset"
    ));
    for ((broker, queue), offset) in table {
        line(&format!(
            "{:<40}  {queue:<40}  {offset:<40}",
            text::front(broker, 32)
        ));
    }
}
