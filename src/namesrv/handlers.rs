//! What each request to the name server means: RocketMQ's `ClientRequestProcessor` and `DefaultRequestProcessor`.
//!
//! [`NameServer`] runs on one core, which owns its listener, its table and its key-value file. Every request is answered
//! at once, except changes of the key-value table, which are answered when they are durable.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;

use crate::base::id::ConnectionId;
use crate::io::body::Body;
use crate::io::env::Env;
use crate::namesrv::bodies::{
    KvTableView, MemberGroupBody, MemberGroupView, TopicListView, TopicQueues,
};
use crate::namesrv::kv::{KvStore, ORDER_TOPIC_CONFIG};
use crate::namesrv::notify;
use crate::namesrv::options::{ChangeError, NamesrvOptions};
use crate::namesrv::route_table::{
    MinIdChange, RegisterError, Registered, Registration, Removed, RouteMiss, RouteOptions,
    RouteTable, UnitTopics, Unregistration,
};
use crate::server::Handler;
use crate::server::connection::{Connection, Responder};
use crate::wire::remoting::body::{DataVersion, TopicRouteData};
use crate::wire::remoting::code::{request, request_name, response};
use crate::wire::remoting::command::{Command, FieldError, Outgoing};
use crate::wire::remoting::json::{self, JsonError};
use crate::wire::remoting::register;

/// `MQVersion.V4_9_4`: from here on a client reads a route as standard JSON.
const VERSION_OF_STANDARD_JSON: i32 = 401;
/// How long after the start a route miss mentions it, since brokers come back every 30 seconds.
const JUST_STARTED_MS: u64 = 60_000;
/// Characters of a peer's text that a remark or a log line quotes.
const QUOTED_CHARS_MAX: usize = 300;

/// An answer: header and body.
type Answer = (Outgoing, Bytes);

/// Why a request is refused; the text is the remark.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Field(#[from] FieldError),
    #[error("the header field '{name}' is empty")]
    Empty { name: &'static str },
    #[error("crc32 not match: the header says {header}, the body of {body_bytes} bytes has {body}")]
    Crc {
        header: i32,
        body: i32,
        body_bytes: usize,
    },
    #[error(transparent)]
    Registration(#[from] register::RegisterError),
    #[error(transparent)]
    Register(#[from] RegisterError),
    #[error(transparent)]
    Json(#[from] JsonError),
    #[error(
        "Register topic contains illegal broker: '{broker_name}' is not registered with this name server"
    )]
    UnknownBroker { broker_name: String },
    #[error("{0}")]
    Disabled(&'static str),
    #[error(
        "name server not ready: it started {started_s} s ago and answers routes after {wait_s} s (waitSecondsForService)"
    )]
    NotReady { started_s: u64, wait_s: u64 },
    #[error(transparent)]
    Change(#[from] ChangeError),
    #[error("{0}")]
    NotFound(String),
    #[error("No topic route info in name server for the topic: {topic}\n{why}")]
    NoRoute { topic: String, why: String },
    #[error(" request type {0} not supported{by_name}", by_name = by_name(*.0))]
    Unknown(i32),
}

/// The name of a request that RocketMQ has and this name server does not serve.
fn by_name(code: i32) -> String {
    request_name(code).map_or_else(String::new, |name| format!(": {name}"))
}

impl Refused {
    fn code(&self) -> i32 {
        match self {
            Self::Change(ChangeError::NotAllowed { .. }) => response::NO_PERMISSION,
            Self::NotFound(_) => response::QUERY_NOT_FOUND,
            Self::NoRoute { .. } => response::TOPIC_NOT_EXIST,
            Self::Unknown(_) => response::REQUEST_CODE_NOT_SUPPORTED,
            _ => response::SYSTEM_ERROR,
        }
    }
}

/// See the module's page.
pub struct NameServer<E: Env> {
    env: E,
    options: RefCell<NamesrvOptions>,
    table: RefCell<RouteTable>,
    kv: KvStore<E>,
    /// Connections that registered a broker: an expired broker's is closed.
    connections: RefCell<BTreeMap<ConnectionId, Rc<Connection>>>,
    started_ms: u64,
    stopping: Cell<bool>,
}

impl<E: Env> NameServer<E> {
    /// On the core that will serve it. [`NameServer::start`] has to follow.
    pub fn new(env: E, options: NamesrvOptions, kv: KvStore<E>) -> Rc<Self> {
        let started_ms = monotonic_ms(&env);
        Rc::new(Self {
            env,
            options: RefCell::new(options),
            table: RefCell::default(),
            kv,
            connections: RefCell::default(),
            started_ms,
            stopping: Cell::new(false),
        })
    }

    /// Starts the timer that removes silent brokers.
    pub fn start(self: &Rc<Self>) {
        let server = self.clone();
        self.env.spawn(async move {
            while !server.stopping.get() {
                server.scan();
                let interval_ms = server.options.borrow().scan_interval_ms;
                server.env.sleep(Duration::from_millis(interval_ms)).await;
            }
        });
    }

    /// Ends the timer after its current interval.
    pub fn stop(&self) {
        self.stopping.set(true);
    }

    /// Brokers alive and topics known.
    pub fn counts(&self) -> (usize, usize) {
        self.table.borrow().counts()
    }

    fn scan(&self) {
        let interval_ms = self.options.borrow().scan_interval_ms;
        let removed = self
            .table
            .borrow_mut()
            .scan(monotonic_ms(&self.env), interval_ms);
        for id in &removed.connections {
            let connection = self.connections.borrow_mut().remove(id);
            if let Some(connection) = connection {
                connection.close();
            }
        }
        self.removed(removed, "was silent for longer than its heartbeat timeout");
    }

    fn removed(&self, removed: Removed, why: &str) {
        for (cluster, name, addr) in &removed.brokers {
            tracing::warn!("broker {name} {addr} of cluster {cluster} is removed: it {why}");
        }
        self.notify(removed.min_id_changes);
    }

    fn notify(&self, changes: Vec<MinIdChange>) {
        if self.options.borrow().notify_min_broker_id_changed {
            for change in changes {
                notify::send(&self.env, &change);
            }
        }
    }

    /// Answers a request; `reply` is called once, now or when a change is durable.
    fn answer(
        &self,
        request: &Command,
        connection: Option<ConnectionId>,
        reply: impl FnOnce(Outgoing, Bytes) + 'static,
    ) {
        let result = match request.code {
            request::PUT_KV_CONFIG | request::DELETE_KV_CONFIG => match self.change_kv(request) {
                Ok(change) => return self.apply_kv(change, reply),
                Err(refused) => Err(refused),
            },
            _ => self.look_up(request, connection),
        };
        match result {
            Ok((header, body)) => reply(header, body),
            Err(refused) => reply(
                Outgoing::error(refused.code(), refused.to_string()),
                Bytes::new(),
            ),
        }
    }

    fn look_up(
        &self,
        request: &Command,
        connection: Option<ConnectionId>,
    ) -> Result<Answer, Refused> {
        match request.code {
            request::GET_KV_CONFIG => self.get_kv(request),
            request::REGISTER_BROKER => self.register(request, connection),
            request::UNREGISTER_BROKER => self.unregister(request),
            request::GET_ROUTEINFO_BY_TOPIC => self.route(request),
            request::GET_BROKER_CLUSTER_INFO => Ok(dialect(&self.table.borrow().cluster_info())),
            request::WIPE_WRITE_PERM_OF_BROKER => {
                let name = request.required_text("brokerName")?;
                let count = self.table.borrow_mut().wipe_write_perm(&name);
                tracing::info!("write permission of broker {name} taken from {count} topics");
                Ok(header_only(
                    Outgoing::success().field("wipeTopicCount", count as i64),
                ))
            }
            request::ADD_WRITE_PERM_OF_BROKER => {
                let name = request.required_text("brokerName")?;
                let count = self.table.borrow_mut().add_write_perm(&name);
                tracing::info!("write permission of broker {name} given to {count} topics");
                Ok(header_only(
                    Outgoing::success().field("addTopicCount", count as i64),
                ))
            }
            request::GET_ALL_TOPIC_LIST_FROM_NAMESERVER => {
                if !self.options.borrow().enable_all_topic_list {
                    return Err(Refused::Disabled(
                        "disable: enableAllTopicList is false on this name server",
                    ));
                }
                Ok(topic_list(self.table.borrow().all_topics(), None))
            }
            request::DELETE_TOPIC_IN_NAMESRV => {
                let topic = request.required_text("topic")?;
                let cluster = request.text("clusterName").filter(|name| !name.is_empty());
                self.table
                    .borrow_mut()
                    .delete_topic(&topic, cluster.as_deref());
                Ok(header_only(Outgoing::success()))
            }
            request::REGISTER_TOPIC_IN_NAMESRV => self.register_topic(request),
            request::GET_KVLIST_BY_NAMESPACE => {
                let namespace = request.required_text("namespace")?;
                self.kv.with_namespace(&namespace, |keys| match keys {
                    Some(table) => Ok(dialect(&KvTableView { table })),
                    None => Err(Refused::NotFound(format!(
                        "No config item, Namespace: {}",
                        quoted(&namespace)
                    ))),
                })
            }
            request::GET_TOPICS_BY_CLUSTER => {
                if !self.options.borrow().enable_topic_list {
                    return Err(Refused::Disabled(
                        "disable: enableTopicList is false on this name server",
                    ));
                }
                let cluster = request.required_text("cluster")?;
                Ok(topic_list(
                    self.table.borrow().topics_of_cluster(&cluster),
                    None,
                ))
            }
            request::GET_SYSTEM_TOPIC_LIST_FROM_NS => {
                let table = self.table.borrow();
                let (topics, addr) = table.system_topics();
                Ok(topic_list(topics, addr))
            }
            request::GET_UNIT_TOPIC_LIST => Ok(self.unit_topics(UnitTopics::Unit)),
            request::GET_HAS_UNIT_SUB_TOPIC_LIST => Ok(self.unit_topics(UnitTopics::UnitSub)),
            request::GET_HAS_UNIT_SUB_UNUNIT_TOPIC_LIST => {
                Ok(self.unit_topics(UnitTopics::UnitSubNotUnit))
            }
            request::UPDATE_NAMESRV_CONFIG => self.update_config(request),
            request::GET_NAMESRV_CONFIG => Ok((
                Outgoing::success(),
                self.options.borrow().to_properties().into(),
            )),
            request::QUERY_DATA_VERSION => self.query_data_version(request),
            request::GET_BROKER_MEMBER_GROUP => {
                let cluster = request.required_text("clusterName")?;
                let broker_name = request.required_text("brokerName")?;
                let table = self.table.borrow();
                Ok(dialect(&MemberGroupBody {
                    broker_member_group: MemberGroupView {
                        broker_addrs: table.members(&broker_name),
                        broker_name: &broker_name,
                        cluster: &cluster,
                    },
                }))
            }
            request::BROKER_HEARTBEAT => {
                let cluster = request.required_text("clusterName")?;
                let addr = request.required_text("brokerAddr")?;
                self.table
                    .borrow_mut()
                    .heartbeat(&cluster, &addr, monotonic_ms(&self.env));
                Ok(header_only(Outgoing::success()))
            }
            code => Err(Refused::Unknown(code)),
        }
    }

    fn register(
        &self,
        request: &Command,
        connection: Option<ConnectionId>,
    ) -> Result<Answer, Refused> {
        let registration = registration(request)?;
        let (name, addr, id) = (
            registration.broker_name.clone(),
            registration.broker_addr.clone(),
            registration.broker_id,
        );
        let options = self.options.borrow().register_options();
        let known = self.table.borrow().members(&name).get(&id) == Some(&addr.as_str());
        let Registered {
            master,
            superseded,
            min_id_change,
        } = self.table.borrow_mut().register(
            registration,
            connection,
            monotonic_ms(&self.env),
            options,
        )?;
        if superseded {
            tracing::warn!(
                "broker {name} id {id} at {addr} is ignored: another address holds the id with a greater stateVersion"
            );
        } else if !known {
            tracing::info!("broker {name} id {id} registered at {addr}");
        }
        self.notify(min_id_change.into_iter().collect());
        let mut header = Outgoing::success();
        if let Some((ha_server_addr, master_addr)) = master {
            header = header
                .field("haServerAddr", ha_server_addr)
                .field("masterAddr", master_addr);
        }
        let body = if self.options.borrow().return_order_topic_config_to_broker {
            self.kv
                .with_namespace(ORDER_TOPIC_CONFIG, |keys| {
                    keys.map(|table| json::to_vec(&KvTableView { table }))
                })
                .unwrap_or_default()
        } else {
            Vec::new()
        };
        Ok((header, body.into()))
    }

    fn unregister(&self, request: &Command) -> Result<Answer, Refused> {
        let leaving = Unregistration {
            cluster: request.required_text("clusterName")?.into_owned(),
            broker_name: request.required_text("brokerName")?.into_owned(),
            broker_addr: request.required_text("brokerAddr")?.into_owned(),
        };
        request.required_int("brokerId")?;
        tracing::info!(
            "broker {} {} of cluster {} unregisters",
            quoted(&leaving.broker_name),
            quoted(&leaving.broker_addr),
            quoted(&leaving.cluster)
        );
        let changes = self.table.borrow_mut().unregister(&[leaving]);
        self.notify(changes);
        Ok(header_only(Outgoing::success()))
    }

    fn route(&self, request: &Command) -> Result<Answer, Refused> {
        let options = self.options.borrow();
        let started_ms = monotonic_ms(&self.env).saturating_sub(self.started_ms);
        if options.need_wait_for_service && started_ms < options.wait_seconds_for_service * 1000 {
            return Err(Refused::NotReady {
                started_s: started_ms / 1000,
                wait_s: options.wait_seconds_for_service,
            });
        }
        let topic = request.required_text("topic")?;
        let order_topic_conf = options
            .order_message_enable
            .then(|| self.kv.get(ORDER_TOPIC_CONFIG, &topic))
            .flatten();
        let zone = request
            .flag("__ZONE_MODE")
            .then(|| request.text("__ZONE_NAME"))
            .flatten()
            .filter(|zone| !zone.trim().is_empty());
        let table = self.table.borrow();
        let route = table.route(
            &topic,
            RouteOptions {
                acting_master: options.support_acting_master,
                zone: zone.as_deref(),
                order_topic_conf: order_topic_conf.as_deref(),
            },
        );
        match route {
            Ok(view) => {
                let standard = request.version >= VERSION_OF_STANDARD_JSON
                    || request.flag("acceptStandardJsonOnly");
                let body = if standard {
                    json::to_standard_vec(&view)
                } else {
                    json::to_vec(&view)
                };
                Ok((Outgoing::success(), body.into()))
            }
            Err(miss) => Err(Refused::NoRoute {
                topic: quoted(&topic).into_owned(),
                why: why_no_route(&miss, started_ms),
            }),
        }
    }

    fn register_topic(&self, request: &Command) -> Result<Answer, Refused> {
        let topic = not_empty(request, "topic")?;
        if !request.body.is_empty() {
            let data: TopicRouteData = json::from_slice(&request.body)?;
            let queues = data
                .queue_datas
                .into_iter()
                .map(|data| {
                    let queues = TopicQueues {
                        read_queue_nums: data.read_queue_nums,
                        write_queue_nums: data.write_queue_nums,
                        perm: data.perm,
                        topic_sys_flag: data.topic_sys_flag,
                    };
                    (data.broker_name, queues)
                })
                .collect();
            self.table
                .borrow_mut()
                .register_topic(&topic, queues)
                .map_err(|broker_name| Refused::UnknownBroker { broker_name })?;
        }
        Ok(header_only(Outgoing::success()))
    }

    fn unit_topics(&self, which: UnitTopics) -> Answer {
        topic_list(self.table.borrow().unit_topics(which), None)
    }

    fn update_config(&self, request: &Command) -> Result<Answer, Refused> {
        let text = String::from_utf8_lossy(&request.body);
        let changed = self.options.borrow().changed(&text)?;
        tracing::info!(
            "configuration changed over the network: {:?}",
            quoted(&text)
        );
        self.options.replace(changed);
        Ok(header_only(Outgoing::success()))
    }

    fn query_data_version(&self, request: &Command) -> Result<Answer, Refused> {
        let cluster = request.required_text("clusterName")?;
        let addr = request.required_text("brokerAddr")?;
        let asked: DataVersion = match request.body.is_empty() {
            true => DataVersion::default(),
            false => json::from_slice(&request.body)?,
        };
        let (changed, known) = self.table.borrow_mut().query_data_version(
            &cluster,
            &addr,
            asked,
            monotonic_ms(&self.env),
        );
        let body = known.map(|version| json::to_vec(&version));
        Ok((
            Outgoing::success().field("changed", changed),
            body.unwrap_or_default().into(),
        ))
    }

    fn get_kv(&self, request: &Command) -> Result<Answer, Refused> {
        let namespace = request.required_text("namespace")?;
        let key = request.required_text("key")?;
        match self.kv.get(&namespace, &key) {
            Some(value) => Ok(header_only(Outgoing::success().field("value", value))),
            None => Err(Refused::NotFound(format!(
                "No config item, Namespace: {} Key: {}",
                quoted(&namespace),
                quoted(&key)
            ))),
        }
    }

    fn change_kv(&self, request: &Command) -> Result<KvChange, Refused> {
        let value = match request.code {
            request::PUT_KV_CONFIG => Some(request.required_text("value")?.into_owned()),
            _ => None,
        };
        Ok(KvChange {
            namespace: request.required_text("namespace")?.into_owned(),
            key: request.required_text("key")?.into_owned(),
            value,
        })
    }

    fn apply_kv(&self, change: KvChange, reply: impl FnOnce(Outgoing, Bytes) + 'static) {
        let KvChange {
            namespace,
            key,
            value,
        } = change;
        // The reply is used by whichever way it ends; `put` may refuse before it takes it.
        let reply = Rc::new(Cell::new(Some(reply)));
        let done_reply = reply.clone();
        let done = move |result: Result<(), String>| {
            if let Some(reply) = done_reply.take() {
                let header = match result {
                    Ok(()) => Outgoing::success(),
                    Err(reason) => Outgoing::error(response::SYSTEM_ERROR, reason),
                };
                reply(header, Bytes::new());
            }
        };
        match value {
            Some(value) => {
                if let Err(full) = self.kv.put(&namespace, &key, &value, done)
                    && let Some(reply) = reply.take()
                {
                    reply(
                        Outgoing::error(response::SYSTEM_ERROR, full.to_string()),
                        Bytes::new(),
                    );
                }
            }
            None => self.kv.delete(&namespace, &key, done),
        }
    }
}

struct KvChange {
    namespace: String,
    key: String,
    value: Option<String>,
}

impl<E: Env> Handler for NameServer<E> {
    fn handle(&self, request: Command, responder: Responder) {
        let connection = responder.connection.clone();
        if request.code == request::REGISTER_BROKER {
            self.connections
                .borrow_mut()
                .insert(connection.id(), connection.clone());
        }
        self.answer(&request, Some(connection.id()), move |header, body| {
            let body = if body.is_empty() {
                Body::Empty
            } else {
                Body::Bytes(body)
            };
            responder.send(header, body);
        });
    }

    fn closed(&self, connection: &Rc<Connection>) {
        if self
            .connections
            .borrow_mut()
            .remove(&connection.id())
            .is_some()
        {
            let removed = self.table.borrow_mut().connection_closed(connection.id());
            self.removed(removed, "closed its connection");
        }
    }
}

/// REGISTER_BROKER as the table wants it.
fn registration(request: &Command) -> Result<Registration, Refused> {
    let header_crc = request.int32("bodyCrc32")?.unwrap_or(0);
    if header_crc != 0 {
        let body_crc = (crc32fast::hash(&request.body) & 0x7FFF_FFFF) as i32;
        if header_crc != body_crc {
            return Err(Refused::Crc {
                header: header_crc,
                body: body_crc,
                body_bytes: request.body.len(),
            });
        }
    }
    let cluster = not_empty(request, "clusterName")?.into_owned();
    let broker_name = not_empty(request, "brokerName")?.into_owned();
    let broker_addr = not_empty(request, "brokerAddr")?.into_owned();
    let broker_id = request.required_int("brokerId")?;
    let body = register::decode(&request.body, request.flag("compressed"), request.version)?;
    let topics = body.topic_config_serialize_wrapper;
    Ok(Registration {
        cluster,
        broker_addr,
        broker_id,
        ha_server_addr: request
            .text("haServerAddr")
            .unwrap_or_default()
            .into_owned(),
        zone_name: request.text("__ZONE_NAME").map(Cow::into_owned),
        enable_acting_master: request
            .text("enableActingMaster")
            .map(|value| value.eq_ignore_ascii_case("true")),
        heartbeat_timeout_ms: request
            .int("heartbeatTimeoutMillis")?
            .map(|timeout| timeout.max(0) as u64),
        version: topics.data_version,
        topics: topics
            .topic_config_table
            .into_iter()
            .map(|(key, config)| {
                let queues = TopicQueues {
                    read_queue_nums: config.read_queue_nums,
                    write_queue_nums: config.write_queue_nums,
                    perm: config.perm,
                    topic_sys_flag: config.topic_sys_flag,
                };
                let topic = if config.topic_name.is_empty() {
                    key
                } else {
                    config.topic_name
                };
                (topic, queues)
            })
            .collect(),
        mappings: topics
            .topic_queue_mapping_info_map
            .into_iter()
            .map(|(topic, info)| {
                let holder = match info.get("bname") {
                    Some(Value::String(name)) => name.clone(),
                    _ => broker_name.clone(),
                };
                (topic, holder, info)
            })
            .collect(),
        filter_servers: body.filter_server_list,
        broker_name,
    })
}

fn not_empty<'a>(request: &'a Command, name: &'static str) -> Result<Cow<'a, str>, Refused> {
    let text = request.required_text(name)?;
    if text.trim().is_empty() {
        return Err(Refused::Empty { name });
    }
    Ok(text)
}

/// The second line of a route miss: which case it is, and what to do.
fn why_no_route(miss: &RouteMiss, started_ms: u64) -> String {
    let mut why = match miss {
        RouteMiss::NoBroker => "No broker is registered with this name server: \
            check that a broker runs and that its namesrvAddr names this address."
            .to_owned(),
        RouteMiss::BrokersGone { last_broker } => format!(
            "The brokers that served it are gone; the last was '{}': check why it stopped or lost its connection.",
            quoted(last_broker)
        ),
        RouteMiss::UnknownTopic { brokers } => format!(
            "No registered broker has it (broker names here: {brokers}): create the topic or check its name."
        ),
    };
    if started_ms < JUST_STARTED_MS {
        why.push_str(&format!(
            " This name server started {} s ago; brokers register every 30 s.",
            started_ms / 1000
        ));
    }
    why
}

/// The start of a text that a peer sent.
fn quoted(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(QUOTED_CHARS_MAX) {
        Some((end, _)) => Cow::Owned(format!("{}...", &text[..end])),
        None => Cow::Borrowed(text),
    }
}

fn header_only(header: Outgoing) -> Answer {
    (header, Bytes::new())
}

fn dialect<T: Serialize>(body: &T) -> Answer {
    (Outgoing::success(), json::to_vec(body).into())
}

fn topic_list(topic_list: Vec<&str>, broker_addr: Option<&str>) -> Answer {
    dialect(&TopicListView {
        broker_addr,
        topic_list,
    })
}

fn monotonic_ms(env: &impl Env) -> u64 {
    env.now_ns() / 1_000_000
}

#[cfg(test)]
mod tests;
