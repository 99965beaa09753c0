//! The servers of one command: name servers and brokers, each connected when it is first asked.
//!
//! Everything that the verbs ask of more than one of them is here: the first name server that answers, the masters of a
//! cluster, the brokers of a topic. An answer with a code other than 0 is an [`AdminError::Refused`].

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;

use crate::admin::args::{Common, Where};
use crate::admin::{AdminError, Outcome};
use crate::client::{ClientError, Reconnecting};
use crate::io::env::Env;
use crate::io::ring::RingEnv;
use crate::wire::remoting::body::{
    BrokerData, ClusterInfo, ConsumeStats, MASTER_ID, QueueData, TopicConfig, TopicList,
    TopicRouteData, TopicStatsTable,
};
use crate::wire::remoting::code::{request, request_name, response, response_name};
use crate::wire::remoting::command::{Command, Outgoing};
use crate::wire::remoting::json;

/// See the module's page.
pub struct Session {
    env: RingEnv,
    namesrv: Vec<String>,
    timeout: Duration,
    peers: RefCell<BTreeMap<String, Rc<Reconnecting<RingEnv>>>>,
}

/// The master of a broker name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Master {
    pub cluster: String,
    pub broker_name: String,
    pub address: String,
}

/// A broker of a topic, with the topic's queues there.
#[derive(Clone, Debug)]
pub struct TopicBroker {
    pub master: Master,
    pub queues: QueueData,
}

impl Session {
    pub fn new(env: RingEnv, common: &Common) -> Self {
        let timeout = Duration::from_millis(common.timeout.max(1));
        Self::with(env, &common.namesrv, timeout)
    }

    /// For name servers between semicolons (or commas, which the old tools take, too).
    pub fn with(env: RingEnv, namesrv: &str, timeout: Duration) -> Self {
        Self {
            env,
            namesrv: namesrv
                .split([';', ','])
                .map(str::trim)
                .filter(|address| !address.is_empty())
                .map(str::to_owned)
                .collect(),
            timeout,
            peers: RefCell::default(),
        }
    }

    pub fn now_ms(&self) -> u64 {
        self.env.now_ms()
    }

    pub fn random_u64(&self) -> u64 {
        self.env.random_u64()
    }

    pub async fn sleep(&self, time: Duration) {
        self.env.sleep(time).await;
    }

    /// The name servers of the command line.
    pub fn namesrv_addresses(&self) -> &[String] {
        &self.namesrv
    }

    /// Asks a server and gives back its answer, whatever its code.
    pub async fn ask(&self, address: &str, request: Outgoing, body: Bytes) -> Outcome<Command> {
        self.raw(address, request, body)
            .await
            .map_err(|error| AdminError::Failed(reason_of(&error)))
    }

    async fn raw(
        &self,
        address: &str,
        request: Outgoing,
        body: Bytes,
    ) -> Result<Command, ClientError> {
        let peer = self
            .peers
            .borrow_mut()
            .entry(address.to_owned())
            .or_insert_with(|| Rc::new(Reconnecting::new(self.env.clone(), address)))
            .clone();
        peer.call(request, body, self.timeout).await
    }

    /// Asks a server; an answer with another code than 0 is an error.
    pub async fn call(&self, address: &str, request: Outgoing, body: Bytes) -> Outcome<Command> {
        let code = request.code;
        let answer = self.ask(address, request, body).await?;
        accepted(address, code, answer)
    }

    /// The same for a request without a body and an answer with a JSON body.
    pub async fn fetch<T: DeserializeOwned>(&self, address: &str, request: Outgoing) -> Outcome<T> {
        let code = request.code;
        let answer = self.call(address, request, Bytes::new()).await?;
        read_body(address, code, &answer)
    }

    /// Asks the first name server that answers. The order is that of the command line.
    pub async fn ask_namesrv(&self, request: Outgoing) -> Outcome<(String, Command)> {
        let mut failed = Vec::new();
        for address in &self.namesrv {
            match self.raw(address, request.clone(), Bytes::new()).await {
                Ok(answer) => return Ok((address.clone(), answer)),
                Err(error) => failed.push(reason_of(&error)),
            }
        }
        match failed.is_empty() {
            true => Err(AdminError::Usage(
                "no name server: give one with -n HOST:PORT or NAMESRV_ADDR".into(),
            )),
            false => Err(AdminError::Failed(failed.join("\n"))),
        }
    }

    async fn fetch_namesrv<T: DeserializeOwned>(&self, request: Outgoing) -> Outcome<T> {
        let code = request.code;
        let (address, answer) = self.ask_namesrv(request).await?;
        let answer = accepted(&address, code, answer)?;
        read_body(&address, code, &answer)
    }

    pub async fn cluster_info(&self) -> Outcome<ClusterInfo> {
        self.fetch_namesrv(Outgoing::request(request::GET_BROKER_CLUSTER_INFO))
            .await
    }

    /// All topics of the name server.
    pub async fn topic_list(&self) -> Outcome<TopicList> {
        self.fetch_namesrv(Outgoing::request(
            request::GET_ALL_TOPIC_LIST_FROM_NAMESERVER,
        ))
        .await
    }

    /// The route of a topic; `None` if there is none.
    pub async fn find_route(&self, topic: &str) -> Outcome<Option<TopicRouteData>> {
        let ask = Outgoing::request(request::GET_ROUTEINFO_BY_TOPIC)
            .field("topic", topic.to_owned())
            .field("acceptStandardJsonOnly", true);
        let (address, answer) = self.ask_namesrv(ask).await?;
        if answer.code == response::TOPIC_NOT_EXIST {
            return Ok(None);
        }
        let answer = accepted(&address, request::GET_ROUTEINFO_BY_TOPIC, answer)?;
        read_body(&address, request::GET_ROUTEINFO_BY_TOPIC, &answer).map(Some)
    }

    pub async fn route(&self, topic: &str) -> Outcome<TopicRouteData> {
        self.find_route(topic)
            .await?
            .ok_or_else(|| AdminError::NotFound(format!("there is no topic '{topic}'")))
    }

    /// The brokers of a topic, by name.
    pub async fn topic_brokers(&self, topic: &str) -> Outcome<Vec<TopicBroker>> {
        Ok(brokers_of_route(&self.route(topic).await?))
    }

    /// The masters that a command line means: all, those of a cluster, or the one of an address.
    pub async fn masters(&self, place: &Where) -> Outcome<Vec<Master>> {
        let masters = masters_of(&self.cluster_info().await?);
        if let Some(wanted) = &place.broker {
            return Ok(vec![find_broker(&masters, wanted)]);
        }
        let found: Vec<Master> = masters
            .into_iter()
            .filter(|master| {
                place
                    .cluster
                    .as_ref()
                    .is_none_or(|cluster| *cluster == master.cluster)
            })
            .collect();
        match (&place.cluster, found.is_empty()) {
            (Some(cluster), true) => Err(AdminError::NotFound(format!(
                "no master of the cluster '{cluster}' is registered"
            ))),
            (None, true) => Err(AdminError::NotFound(
                "the name server knows no master".into(),
            )),
            _ => Ok(found),
        }
    }

    /// The broker of a name or an address.
    pub async fn broker(&self, wanted: &str) -> Outcome<Master> {
        if wanted.contains(':') {
            return Ok(find_broker(&[], wanted));
        }
        let masters = masters_of(&self.cluster_info().await?);
        masters
            .into_iter()
            .find(|master| master.broker_name == wanted)
            .ok_or_else(|| {
                AdminError::NotFound(format!(
                    "no broker with the name '{wanted}' is registered; an address is HOST:PORT"
                ))
            })
    }

    pub async fn topic_config(&self, address: &str, topic: &str) -> Outcome<TopicConfig> {
        let ask = Outgoing::request(request::GET_TOPIC_CONFIG)
            .field("topic", topic.to_owned())
            .field("lo", true);
        self.fetch(address, ask).await
    }

    pub async fn topic_stats(&self, address: &str, topic: &str) -> Outcome<TopicStatsTable> {
        let ask = Outgoing::request(request::GET_TOPIC_STATS_INFO).field("topic", topic.to_owned());
        self.fetch(address, ask).await
    }

    /// Offsets of a group on one broker, of one topic or of all in which it has some.
    pub async fn consume_stats(
        &self,
        address: &str,
        group: &str,
        topic: Option<&str>,
    ) -> Outcome<ConsumeStats> {
        let ask = Outgoing::request(request::GET_CONSUME_STATS)
            .field("consumerGroup", group.to_owned())
            .field_if("topic", topic.map(str::to_owned));
        self.fetch(address, ask).await
    }
}

/// The masters of the brokers of a route that have queues of its topic.
pub fn brokers_of_route(route: &TopicRouteData) -> Vec<TopicBroker> {
    let mut brokers: Vec<TopicBroker> = route
        .queue_datas
        .iter()
        .filter_map(|queues| {
            let broker = route
                .broker_datas
                .iter()
                .find(|broker| broker.broker_name == queues.broker_name)?;
            Some(TopicBroker {
                master: master_of(broker)?,
                queues: queues.clone(),
            })
        })
        .collect();
    brokers.sort_by(|one, other| one.master.broker_name.cmp(&other.master.broker_name));
    brokers
}

fn master_of(broker: &BrokerData) -> Option<Master> {
    Some(Master {
        cluster: broker.cluster.clone(),
        broker_name: broker.broker_name.clone(),
        address: broker.broker_addrs.get(&MASTER_ID)?.clone(),
    })
}

/// The masters of all clusters, by cluster and name.
pub fn masters_of(info: &ClusterInfo) -> Vec<Master> {
    let mut masters: Vec<Master> = info
        .broker_addr_table
        .values()
        .filter_map(master_of)
        .collect();
    masters.sort_by(|one, other| {
        (&one.cluster, &one.broker_name).cmp(&(&other.cluster, &other.broker_name))
    });
    masters
}

/// A broker by its address; one that is not registered has no name.
fn find_broker(masters: &[Master], address: &str) -> Master {
    masters
        .iter()
        .find(|master| master.address == address || master.broker_name == address)
        .cloned()
        .unwrap_or_else(|| Master {
            cluster: String::new(),
            broker_name: String::new(),
            address: address.to_owned(),
        })
}

/// An answer with code 0, or the refusal.
pub fn accepted(address: &str, code: i32, answer: Command) -> Outcome<Command> {
    if answer.code == response::SUCCESS {
        return Ok(answer);
    }
    Err(AdminError::Refused {
        address: address.to_owned(),
        request: request_name(code).unwrap_or("the request"),
        code: answer.code,
        name: response_name(answer.code).unwrap_or("unknown code"),
        remark: answer.remark.unwrap_or_default(),
    })
}

/// The JSON body of an answer.
pub fn read_body<T: DeserializeOwned>(address: &str, code: i32, answer: &Command) -> Outcome<T> {
    json::from_slice(&answer.body).map_err(|error| {
        AdminError::Failed(format!(
            "the answer of {address} to {} cannot be read: {error}",
            request_name(code).unwrap_or("the request")
        ))
    })
}

fn reason_of(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
