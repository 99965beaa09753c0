//! The broker's side of the name server: which registration is sent when, to each address of `namesrvAddr`.
//!
//! One task per name server, so that a slow one delays no other. The decisions are in [`Progress`] and the requests in free
//! functions, all of them pure; [`Registrar`] sends. Source in RocketMQ: `BrokerOuterAPI`, `BrokerController.registerBrokerAll`.
//!
//! What a name server makes of a registration rules this file: it overwrites a topic only if the DataVersion differs from
//! the last one that the broker sent, and it refuses a single topic of a broker that it does not know. So
//! - a changed topic goes alone: a name server that has forgotten us refuses it, and then gets the whole table;
//! - each of several requests for one version has another timestamp, and the last has the true one;
//! - a table too large to be repeated every 30 seconds is not: the name server is asked for its version.
//!
//! Not here: heartbeats of acting masters (904).

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use bytes::Bytes;

use crate::client::{ClientError, RemotingClient};
use crate::io::body::Body;
use crate::io::env::Env;
use crate::server::Handler;
use crate::server::connection::{Connection, Responder};
use crate::wire::remoting::body::{
    DataVersion, KVTable, RegisterBrokerBody, TopicConfig, TopicConfigAndMappingSerializeWrapper,
};
use crate::wire::remoting::code::{request, response};
use crate::wire::remoting::command::{Command, Outgoing};
use crate::wire::remoting::json;

/// Bounds of `registerNameServerPeriod` in milliseconds.
pub const PERIOD_MS_MIN: u64 = 10_000;
pub const PERIOD_MS_MAX: u64 = 60_000;
/// Permission bits read and write (`PermName`).
const PERM_READ_WRITE: i32 = 6;
/// A larger table is not repeated each period: its encoding would hold up the core that does it.
const REPEATED_TOPICS_MAX: usize = 256;
/// More changed topics than this are sent with the whole table.
const SINGLE_TOPICS_MAX: usize = 16;
/// Estimated bytes of one registration, far below the 16 MiB of a frame and a few milliseconds of work.
const BATCH_BYTES_TARGET: usize = 256 << 10;
/// Bytes of a topic in a registration without its name and attributes.
const TOPIC_BYTES_FIXED: usize = 180;
/// `registerBrokerTimeoutMills`.
const CALL_TIMEOUT: Duration = Duration::from_millis(24_000);
/// How long a stopping broker waits for its farewell to be answered.
const UNREGISTER_TIMEOUT: Duration = Duration::from_secs(3);
/// Pause after the first failure; doubled with each further one.
const BACKOFF_MS_FIRST: u64 = 1000;
const BACKOFF_MS_MAX: u64 = 15_000;

const _: () = assert!(BATCH_BYTES_TARGET * 8 <= crate::base::limits::FRAME_BYTES_MAX);
const _: () = assert!(BACKOFF_MS_MAX <= PERIOD_MS_MAX);

/// Who registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerIdentity {
    pub cluster: String,
    pub broker_name: String,
    /// 0 is a master.
    pub broker_id: i64,
    /// `brokerIP1:listenPort`.
    pub address: String,
    /// `brokerIP2:haListenPort`.
    pub ha_address: String,
    /// `brokerPermission`: without read or write, every topic is registered without it too.
    pub permission: i32,
}

/// What the registrar needs of the broker. Called on the registrar's core; must not call back into it.
pub trait RegistrationSource: 'static {
    /// Version of the topic table now.
    fn version(&self) -> DataVersion;
    /// How many topics there are.
    fn topic_count(&self) -> usize;
    /// All topics, of the same moment as [`RegistrationSource::version`] called next to it.
    fn topics(&self) -> Vec<TopicConfig>;
    /// One topic, unless it was deleted.
    fn topic(&self, name: &str) -> Option<TopicConfig>;
    /// A name server says that these topics are ordered (`TopicConfigManager.updateOrderTopicConfig`): those that exist get
    /// the flag `order`; none loses it. Called with each answer, so it has to be cheap when nothing changes.
    fn order_topics(&self, topics: &BTreeSet<String>);
    /// A name server tells a slave where its master takes slaves: `host:port`. Called with each answer.
    fn master_at(&self, _ha_address: &str) {}
}

/// REGISTER_BROKER with these topics.
pub fn register_request(
    identity: &BrokerIdentity,
    version: DataVersion,
    topics: &[TopicConfig],
) -> (Outgoing, Bytes) {
    let table: BTreeMap<String, TopicConfig> = topics
        .iter()
        .map(|topic| {
            let mut topic = topic.clone();
            if identity.permission & PERM_READ_WRITE != PERM_READ_WRITE {
                topic.perm &= identity.permission;
            }
            (topic.topic_name.clone(), topic)
        })
        .collect();
    let body = json::to_vec(&RegisterBrokerBody {
        filter_server_list: Vec::new(),
        topic_config_serialize_wrapper: TopicConfigAndMappingSerializeWrapper {
            data_version: version,
            mapping_data_version: version,
            topic_config_table: table,
            ..TopicConfigAndMappingSerializeWrapper::default()
        },
    });
    // Java keeps the checksum in a signed number and so clears its sign.
    let crc = i64::from(crc32fast::hash(&body) & 0x7FFF_FFFF);
    let header = identified(request::REGISTER_BROKER, identity)
        .field("haServerAddr", identity.ha_address.clone())
        .field("enableActingMaster", false)
        .field("compressed", false)
        .field("bodyCrc32", crc);
    (header, body.into())
}

/// UNREGISTER_BROKER.
pub fn unregister_request(identity: &BrokerIdentity) -> Outgoing {
    identified(request::UNREGISTER_BROKER, identity)
}

/// QUERY_DATA_VERSION: whether the name server has this version of our topics. If so it counts as a heartbeat.
pub fn query_request(identity: &BrokerIdentity, version: DataVersion) -> (Outgoing, Bytes) {
    let header = identified(request::QUERY_DATA_VERSION, identity);
    (header, json::to_vec(&version).into())
}

fn identified(code: i32, identity: &BrokerIdentity) -> Outgoing {
    Outgoing::request(code)
        .field("brokerName", identity.broker_name.clone())
        .field("brokerAddr", identity.address.clone())
        .field("clusterName", identity.cluster.clone())
        .field("brokerId", identity.broker_id)
}

/// One request's share of a table: a version and a range of the topics.
pub type Batch = (DataVersion, std::ops::Range<usize>);

/// Divides a whole table into requests. Each has another version, and the last has `version`.
pub fn batches(version: DataVersion, topics: &[TopicConfig]) -> Vec<Batch> {
    let mut ranges = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (index, topic) in topics.iter().enumerate() {
        let topic_bytes = estimated_bytes(topic);
        // A name server refuses a first registration with one topic, so a batch has two at least.
        if bytes + topic_bytes > BATCH_BYTES_TARGET && index - start >= 2 {
            ranges.push(start..index);
            (start, bytes) = (index, 0);
        }
        bytes += topic_bytes;
    }
    if topics.len() == 1 {
        ranges.push(0..0);
    }
    ranges.push(start..topics.len());
    let count = ranges.len();
    ranges
        .into_iter()
        .enumerate()
        .map(|(index, range)| (step_version(version, count - 1 - index), range))
        .collect()
}

/// A version that differs from that of every other step and is never taken for a complete table.
fn step_version(version: DataVersion, steps_left: usize) -> DataVersion {
    DataVersion {
        timestamp: version.timestamp.wrapping_sub(steps_left as i64),
        ..version
    }
}

fn estimated_bytes(topic: &TopicConfig) -> usize {
    let attributes: usize = topic
        .attributes
        .iter()
        .map(|(name, value)| name.len() + value.len() + 6)
        .sum();
    TOPIC_BYTES_FIXED + 2 * topic.topic_name.len() + attributes
}

/// What to send next to one name server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// The whole table.
    All,
    /// These topics, one by one.
    Topics(BTreeSet<String>),
    /// Whether it has this version, as a heartbeat.
    Ask(DataVersion),
}

/// How a plan ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The name server has all of our table in this version.
    Registered(DataVersion),
    /// It refused a change because it does not know us, or knows another version.
    Forgotten,
    /// No answer, or a refusal.
    Failed,
}

/// What is worth a line in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Up,
    Down,
}

/// What one name server knows of us, and when it is due. Times are milliseconds of a monotonic clock.
#[derive(Debug)]
pub struct Progress {
    period_ms: u64,
    /// The version that it has completely.
    known: Option<DataVersion>,
    /// The whole table has to be sent.
    all: bool,
    /// Topics that changed since.
    changed: BTreeSet<String>,
    due_ms: u64,
    failures: u32,
    /// The last turn.
    up: Option<bool>,
}

impl Progress {
    /// A name server that knows nothing; due at once. The period is clamped to its bounds.
    pub fn new(period_ms: u64) -> Self {
        Self {
            period_ms: period_ms.clamp(PERIOD_MS_MIN, PERIOD_MS_MAX),
            known: None,
            all: true,
            changed: BTreeSet::new(),
            due_ms: 0,
            failures: 0,
            up: None,
        }
    }

    /// When [`Progress::begin`] is to be called.
    pub fn due_ms(&self) -> u64 {
        self.due_ms
    }

    /// Whether the last exchange succeeded.
    pub fn is_up(&self) -> bool {
        self.up == Some(true)
    }

    /// A topic was made or changed. Sent at once, unless the name server does not answer.
    pub fn topic_changed(&mut self, topic: &str) {
        if !self.all {
            self.changed.insert(topic.to_owned());
        }
        self.due_now();
    }

    /// Several topics changed, or one was deleted, or who we are.
    pub fn table_changed(&mut self) {
        self.all = true;
        self.due_now();
    }

    /// The connection is gone, and with it, in the eyes of the name server, we are.
    pub fn disconnected(&mut self, now_ms: u64) {
        self.known = None;
        self.all = true;
        if self.failures == 0 {
            self.due_ms = self.due_ms.min(now_ms + BACKOFF_MS_FIRST);
        }
    }

    fn due_now(&mut self) {
        if self.failures == 0 {
            self.due_ms = 0;
        }
    }

    /// Takes what is to be sent. [`Progress::end`] has to follow.
    pub fn begin(&mut self, version: DataVersion, topic_count: usize) -> Plan {
        // What is reported from here on makes it due again.
        self.due_ms = u64::MAX;
        let all = std::mem::take(&mut self.all);
        let changed = std::mem::take(&mut self.changed);
        match self.known {
            Some(_) if !all && !changed.is_empty() && changed.len() <= SINGLE_TOPICS_MAX => {
                Plan::Topics(changed)
            }
            Some(known)
                if !all
                    && changed.is_empty()
                    && known == version
                    && topic_count > REPEATED_TOPICS_MAX =>
            {
                Plan::Ask(version)
            }
            _ => Plan::All,
        }
    }

    /// Notes how it ended and when the next is due.
    pub fn end(&mut self, outcome: Outcome, now_ms: u64) -> Option<Turn> {
        let up = match outcome {
            Outcome::Registered(version) => {
                self.failures = 0;
                self.known = Some(version);
                let more = self.all || !self.changed.is_empty();
                let next_ms = if more {
                    now_ms
                } else {
                    now_ms + self.period_ms
                };
                self.due_ms = self.due_ms.min(next_ms);
                true
            }
            Outcome::Forgotten => {
                self.known = None;
                self.all = true;
                self.changed.clear();
                self.due_ms = now_ms;
                return None;
            }
            Outcome::Failed => {
                self.known = None;
                self.all = true;
                self.changed.clear();
                self.due_ms = now_ms + backoff_ms(self.failures);
                self.failures = self.failures.saturating_add(1);
                false
            }
        };
        if self.up.replace(up) == Some(up) {
            return None;
        }
        Some(if up { Turn::Up } else { Turn::Down })
    }
}

fn backoff_ms(failures: u32) -> u64 {
    BACKOFF_MS_FIRST
        .saturating_mul(1 << failures.min(16))
        .min(BACKOFF_MS_MAX)
}

/// Why an exchange failed; the text is the log line's.
#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("it answers code {code}: {remark}")]
    Refused { code: i32, remark: String },
    #[error("the broker is stopping")]
    Stopping,
}

impl CallError {
    /// With its causes, since a log line has one line.
    fn full_text(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

/// One name server.
struct Target {
    address: String,
    progress: RefCell<Progress>,
    client: RefCell<Option<Rc<RemotingClient>>>,
    /// Wakes the task that waits for the due time.
    waker: Cell<Option<Waker>>,
}

impl Target {
    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// Notices when the connection to a name server is lost, so that a name server that restarts gets our topics within
/// seconds and not with the next period.
struct OnClose<E: Env> {
    env: E,
    target: std::rc::Weak<Target>,
}

impl<E: Env> Handler for OnClose<E> {
    fn handle(&self, request: Command, responder: Responder) {
        let remark = format!(" request type {} not supported", request.code);
        let refusal = Outgoing::error(response::REQUEST_CODE_NOT_SUPPORTED, remark);
        responder.send(refusal, Body::Empty);
    }

    fn closed(&self, connection: &Rc<Connection>) {
        let Some(target) = self.target.upgrade() else {
            return;
        };
        // A connection that we gave up and replaced is no news.
        let current = target
            .client
            .borrow()
            .as_ref()
            .is_some_and(|client| client.connection().id() == connection.id());
        if current {
            target
                .progress
                .borrow_mut()
                .disconnected(monotonic_ms(&self.env));
            target.wake();
        }
    }
}

struct Inner<E: Env, S: RegistrationSource> {
    env: E,
    identity: BrokerIdentity,
    source: Rc<S>,
    targets: Vec<Rc<Target>>,
    stopping: Cell<bool>,
}

/// Keeps this broker registered. Cheap to clone; all clones are one.
pub struct Registrar<E: Env, S: RegistrationSource>(Rc<Inner<E, S>>);

impl<E: Env, S: RegistrationSource> Clone for Registrar<E, S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<E: Env, S: RegistrationSource> Registrar<E, S> {
    /// For the name servers `host:port` of `namesrvAddr`. [`Registrar::start`] has to follow.
    pub fn new(
        env: E,
        identity: BrokerIdentity,
        addresses: &[String],
        period_ms: u64,
        source: Rc<S>,
    ) -> Self {
        let targets = addresses
            .iter()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .map(|address| {
                Rc::new(Target {
                    address: address.clone(),
                    progress: RefCell::new(Progress::new(period_ms)),
                    client: RefCell::new(None),
                    waker: Cell::new(None),
                })
            })
            .collect();
        Self(Rc::new(Inner {
            env,
            identity,
            source,
            targets,
            stopping: Cell::new(false),
        }))
    }

    /// Registers everywhere, now and from now on.
    pub fn start(&self) {
        for target in &self.0.targets {
            let (registrar, target) = (self.clone(), target.clone());
            self.0
                .env
                .spawn(async move { registrar.serve(&target).await });
        }
    }

    /// A topic was made or changed: to be called after the source has it, with its new version.
    pub fn topic_changed(&self, topic: &str) {
        self.each(|progress| progress.topic_changed(topic));
    }

    /// Several topics changed, or one was deleted.
    pub fn table_changed(&self) {
        self.each(Progress::table_changed);
    }

    /// Each name server and whether it has our registration, as far as we know.
    pub fn states(&self) -> Vec<(&str, bool)> {
        let states = self.0.targets.iter();
        states
            .map(|target| (target.address.as_str(), target.progress.borrow().is_up()))
            .collect()
    }

    /// Ends the registration and unregisters everywhere, in parallel and without insisting.
    pub async fn stop(&self) {
        self.0.stopping.set(true);
        let waiting = Rc::new(Cell::new(self.0.targets.len()));
        let waker: Rc<Cell<Option<Waker>>> = Rc::default();
        for target in &self.0.targets {
            target.wake();
            let (registrar, target) = (self.clone(), target.clone());
            let (waiting, waker) = (waiting.clone(), waker.clone());
            self.0.env.spawn(async move {
                let header = unregister_request(&registrar.0.identity);
                // Only where a connection is open: another name server does not know us.
                let client = target.client.borrow().clone();
                if let Some(client) = client.filter(|client| client.is_open()) {
                    let farewell = client.call(header, Bytes::new(), UNREGISTER_TIMEOUT).await;
                    if let Err(error) = farewell {
                        tracing::debug!("farewell to name server {}: {error}", target.address);
                    }
                }
                target.client.take();
                waiting.set(waiting.get() - 1);
                if let Some(waker) = waker.take() {
                    waker.wake();
                }
            });
        }
        std::future::poll_fn(|cx| {
            if waiting.get() == 0 {
                return Poll::Ready(());
            }
            waker.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
    }

    fn each(&self, change: impl Fn(&mut Progress)) {
        for target in &self.0.targets {
            change(&mut target.progress.borrow_mut());
            target.wake();
        }
    }

    /// The task of one name server.
    async fn serve(&self, target: &Rc<Target>) {
        let inner = &self.0;
        loop {
            self.until_due(target).await;
            if inner.stopping.get() {
                return;
            }
            let plan = target
                .progress
                .borrow_mut()
                .begin(inner.source.version(), inner.source.topic_count());
            let result = self.carry_out(target, plan).await;
            if inner.stopping.get() {
                return;
            }
            let now_ms = monotonic_ms(&inner.env);
            let (outcome, error) = match result {
                Ok(outcome) => (outcome, String::new()),
                Err(error) => {
                    target.client.take();
                    (Outcome::Failed, error.full_text())
                }
            };
            let turn = target.progress.borrow_mut().end(outcome, now_ms);
            match turn {
                Some(Turn::Up) => tracing::info!(
                    "registered with name server {} as {} {}",
                    target.address,
                    inner.identity.broker_name,
                    inner.identity.address
                ),
                Some(Turn::Down) => tracing::warn!(
                    "not registered with name server {}: {error}; it is tried again until it succeeds",
                    target.address
                ),
                None => {}
            }
        }
    }

    /// Waits for the due time, which may come nearer meanwhile.
    async fn until_due(&self, target: &Target) {
        let inner = &self.0;
        loop {
            let due_ms = target.progress.borrow().due_ms();
            let left_ms = due_ms.saturating_sub(monotonic_ms(&inner.env));
            if left_ms == 0 || inner.stopping.get() {
                return;
            }
            let mut sleep = pin!(inner.env.sleep(Duration::from_millis(left_ms)));
            std::future::poll_fn(|cx| {
                target.waker.set(Some(cx.waker().clone()));
                let nearer = target.progress.borrow().due_ms() < due_ms;
                if nearer || inner.stopping.get() {
                    return Poll::Ready(());
                }
                sleep.as_mut().poll(cx)
            })
            .await;
        }
    }

    async fn carry_out(&self, target: &Rc<Target>, plan: Plan) -> Result<Outcome, CallError> {
        let inner = &self.0;
        match plan {
            Plan::All => {
                let (version, topics) = (inner.source.version(), inner.source.topics());
                for (batch_version, range) in batches(version, &topics) {
                    let (header, body) =
                        register_request(&inner.identity, batch_version, &topics[range]);
                    let answer = self.call(target, header, body).await?;
                    if answer.code != response::SUCCESS {
                        return Err(refused(&answer));
                    }
                    self.take_order_topics(&answer);
                    if let Some(master) = answer.text("haServerAddr").filter(|a| !a.is_empty()) {
                        inner.source.master_at(&master);
                    }
                }
                Ok(Outcome::Registered(version))
            }
            Plan::Topics(names) => {
                let version = inner.source.version();
                let topics: Vec<TopicConfig> = names
                    .iter()
                    .filter_map(|name| inner.source.topic(name))
                    .collect();
                if topics.is_empty() {
                    // All were deleted again; what is left to say needs the whole table.
                    return Ok(Outcome::Forgotten);
                }
                for (index, topic) in topics.iter().enumerate() {
                    let step = step_version(version, topics.len() - 1 - index);
                    let (header, body) =
                        register_request(&inner.identity, step, std::slice::from_ref(topic));
                    let answer = self.call(target, header, body).await?;
                    if answer.code != response::SUCCESS {
                        return Ok(Outcome::Forgotten);
                    }
                }
                Ok(Outcome::Registered(version))
            }
            Plan::Ask(version) => {
                let (header, body) = query_request(&inner.identity, version);
                let answer = self.call(target, header, body).await?;
                if answer.code == response::SUCCESS && !answer.flag_or("changed", true) {
                    Ok(Outcome::Registered(version))
                } else {
                    Ok(Outcome::Forgotten)
                }
            }
        }
    }

    async fn call(
        &self,
        target: &Rc<Target>,
        header: Outgoing,
        body: Bytes,
    ) -> Result<Command, CallError> {
        // A registration behind the farewell would bring us back.
        if self.0.stopping.get() {
            return Err(CallError::Stopping);
        }
        let known = target.client.borrow().clone();
        let client = match known.filter(|client| client.is_open()) {
            Some(client) => client,
            None => {
                let on_close = Rc::new(OnClose {
                    env: self.0.env.clone(),
                    target: Rc::downgrade(target),
                });
                let client = RemotingClient::connect_with(
                    &self.0.env,
                    &target.address,
                    CALL_TIMEOUT,
                    on_close,
                )
                .await?;
                let client = Rc::new(client);
                target.client.replace(Some(client.clone()));
                client
            }
        };
        Ok(client.call(header, body, CALL_TIMEOUT).await?)
    }

    /// The answer to a registration has the table of ordered topics, if there is one.
    fn take_order_topics(&self, answer: &Command) {
        if answer.body.is_empty() {
            return;
        }
        match json::from_slice::<KVTable>(&answer.body) {
            Ok(table) if !table.table.is_empty() => {
                let topics = table.table.into_keys().collect();
                self.0.source.order_topics(&topics);
            }
            Ok(_) => {}
            Err(error) => tracing::debug!("a name server's table of ordered topics: {error}"),
        }
    }
}

fn refused(answer: &Command) -> CallError {
    CallError::Refused {
        code: answer.code,
        remark: answer.remark.clone().unwrap_or_default(),
    }
}

fn monotonic_ms(env: &impl Env) -> u64 {
    env.now_ns() / 1_000_000
}

#[cfg(test)]
mod tests;
