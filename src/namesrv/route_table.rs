//! Which broker serves which topic, and which brokers are alive: RocketMQ's `RouteInfoManager` without its lock.
//!
//! Pure: no clock, no socket, no file. Times are milliseconds of a monotonic clock and come in as arguments, so a jump
//! of the wall clock expires nobody. One core owns the table; the handlers call it, the scan timer calls [`RouteTable::scan`].
//!
//! Invariants, checked by [`RouteTable::assert_invariants`] in tests: a broker name has an address, and every such
//! address has a live entry; a cluster has a broker name; a topic has queues, and only on broker names that exist.
//! Not here: persistence. All of it is rebuilt from the registrations that brokers repeat every 30 seconds.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use serde_json::Value;

use crate::base::id::ConnectionId;
use crate::namesrv::bodies::{
    BrokerDataView, ClusterInfoView, QueueDataView, TopicQueues, TopicRouteView,
};
use crate::wire::remoting::body::{DataVersion, MASTER_ID};

/// `RouteInfoManager.DEFAULT_BROKER_CHANNEL_EXPIRED_TIME`.
pub const HEARTBEAT_TIMEOUT_MS_DEFAULT: u64 = 120_000;
/// Permission bits (`PermName`).
pub const PERM_READ: i32 = 4;
pub const PERM_WRITE: i32 = 2;
/// Bits of `topicSysFlag` (`TopicSysFlag`).
const SYS_FLAG_UNIT: i32 = 1;
const SYS_FLAG_UNIT_SUB: i32 = 2;
/// Topics of this prefix are never routed to an acting master (`TopicValidator.SYNC_BROKER_MEMBER_GROUP_PREFIX`).
const SYNC_BROKER_MEMBER_PREFIX: &str = "rmq_sys_SYNC_BROKER_MEMBER_";
/// Topics remembered after their last broker left, to name that cause in the remark of a route miss.
const GONE_TOPICS_MAX: usize = 64 << 10;

/// Options of the name server that change what the table does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RegisterOptions {
    /// `deleteTopicWithBrokerRegistration`: topics that a registration lacks are removed from that broker.
    pub delete_missing_topics: bool,
}

/// REGISTER_BROKER with its body decoded.
#[derive(Clone, Debug, Default)]
pub struct Registration {
    pub cluster: String,
    pub broker_name: String,
    pub broker_addr: String,
    pub broker_id: i64,
    pub ha_server_addr: String,
    pub zone_name: Option<String>,
    /// `None` from a broker before 5.0, which cannot be a prime slave.
    pub enable_acting_master: Option<bool>,
    pub heartbeat_timeout_ms: Option<u64>,
    pub version: DataVersion,
    pub topics: Vec<(String, TopicQueues)>,
    /// Of static topics: topic, broker name and `TopicQueueMappingInfo`.
    pub mappings: Vec<(String, String, Value)>,
    pub filter_servers: Vec<String>,
}

/// The address that leaves, as UNREGISTER_BROKER names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unregistration {
    pub cluster: String,
    pub broker_name: String,
    pub broker_addr: String,
}

/// What a registration answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registered {
    /// For a slave whose master is alive: the master's HA address and address.
    pub master: Option<(String, String)>,
    /// Another address with a greater stateVersion holds this id: nothing was changed.
    pub superseded: bool,
    pub min_id_change: Option<MinIdChange>,
}

/// Why a registration is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// The wording of RocketMQ first; then what the broker has to do.
    #[error(
        "register broker failed: broker {broker_name} id {broker_id} is not registered here and sent one topic only; register all topics first"
    )]
    SingleTopicFirst { broker_name: String, broker_id: i64 },
}

/// The smallest id of a group changed: what NOTIFY_MIN_BROKER_ID_CHANGE (905) tells the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MinIdChange {
    pub broker_name: String,
    pub min_broker_id: i64,
    pub min_broker_addr: String,
    pub offline_broker_addr: Option<String>,
    pub ha_broker_addr: Option<String>,
    /// Addresses to tell.
    pub targets: Vec<String>,
}

/// What a scan or a closed connection removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Cluster, broker name, address.
    pub brokers: Vec<(String, String, String)>,
    /// Connections of expired brokers, to be closed.
    pub connections: Vec<ConnectionId>,
    pub min_id_changes: Vec<MinIdChange>,
}

/// Why there is no route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteMiss {
    /// No broker is registered here at all.
    NoBroker,
    /// Brokers served it, the last of them was this one, and all are gone.
    BrokersGone { last_broker: String },
    /// No broker that is registered here has it.
    UnknownTopic { brokers: usize },
}

/// How a route is asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct RouteOptions<'a> {
    /// `supportActingMaster`.
    pub acting_master: bool,
    /// The zone of a client that asks for brokers nearby (`__ZONE_MODE`, `__ZONE_NAME`).
    pub zone: Option<&'a str>,
    /// Value of `ORDER_TOPIC_CONFIG`, when the name server returns it.
    pub order_topic_conf: Option<&'a str>,
}

/// Which topics of units a list is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnitTopics {
    Unit,
    UnitSub,
    UnitSubNotUnit,
}

#[derive(Debug)]
struct Group {
    cluster: Rc<str>,
    addrs: BTreeMap<i64, Rc<str>>,
    zone_name: Option<String>,
    enable_acting_master: bool,
}

impl Group {
    fn min_id(&self) -> Option<i64> {
        self.addrs.keys().next().copied()
    }

    fn has_master(&self) -> bool {
        self.addrs.contains_key(&MASTER_ID)
    }
}

#[derive(Debug)]
struct Live {
    broker_name: Rc<str>,
    last_update_ms: u64,
    timeout_ms: u64,
    version: DataVersion,
    connection: Option<ConnectionId>,
    ha_server_addr: String,
    filter_servers: Vec<String>,
}

/// Cluster and address of a broker.
type AddrKey = (Rc<str>, Rc<str>);

/// See the module's page.
#[derive(Debug, Default)]
pub struct RouteTable {
    /// topicQueueTable.
    topics: BTreeMap<Rc<str>, BTreeMap<Rc<str>, TopicQueues>>,
    /// topicQueueMappingInfoTable, of static topics.
    mappings: BTreeMap<Rc<str>, BTreeMap<String, Value>>,
    /// brokerAddrTable.
    groups: BTreeMap<Rc<str>, Group>,
    /// clusterAddrTable.
    clusters: BTreeMap<Rc<str>, BTreeSet<Rc<str>>>,
    /// brokerLiveTable and filterServerTable.
    live: BTreeMap<AddrKey, Live>,
    /// Topics whose last broker left, with its name.
    gone: BTreeMap<Rc<str>, Rc<str>>,
    last_scan_ms: Option<u64>,
}

impl RouteTable {
    /// REGISTER_BROKER (`RouteInfoManager.registerBroker`). The numbers are the steps of that algorithm.
    pub fn register(
        &mut self,
        registration: Registration,
        connection: Option<ConnectionId>,
        now_ms: u64,
        options: RegisterOptions,
    ) -> Result<Registered, RegisterError> {
        let Registration {
            broker_id,
            version,
            enable_acting_master,
            ..
        } = registration;
        let cluster: Rc<str> = registration.cluster.into();
        let name: Rc<str> = registration.broker_name.into();
        let addr: Rc<str> = registration.broker_addr.into();
        let key: AddrKey = (cluster.clone(), addr.clone());
        self.evict_other_identities(&key, &name);

        // 4, before anything is changed: it does not depend on steps 1 to 3, and a refusal must leave no broker name
        // without an address behind.
        let known_id = self
            .groups
            .get(&name)
            .is_some_and(|group| group.addrs.contains_key(&broker_id));
        if !known_id && registration.topics.len() == 1 {
            return Err(RegisterError::SingleTopicFirst {
                broker_name: name.to_string(),
                broker_id,
            });
        }

        // 1.
        self.clusters
            .entry(cluster.clone())
            .or_default()
            .insert(name.clone());
        let group = self.groups.entry(name.clone()).or_insert_with(|| Group {
            cluster: cluster.clone(),
            addrs: BTreeMap::new(),
            zone_name: None,
            enable_acting_master: false,
        });
        group.enable_acting_master = enable_acting_master.unwrap_or(false);
        group.zone_name = registration.zone_name;
        let smaller_id_came = group.min_id().is_some_and(|min| broker_id < min);

        // 2: a slave that became master keeps its address and changes its id.
        group
            .addrs
            .retain(|&id, known| id == broker_id || *known != addr);

        // 3.
        if let Some(holder) = group.addrs.get(&broker_id)
            && *holder != addr
            && let Some(holder) = self.live.get(&(cluster.clone(), holder.clone()))
            && holder.version.state_version > version.state_version
        {
            self.live.remove(&key);
            return Ok(Registered {
                superseded: true,
                ..Registered::default()
            });
        }

        // 5.
        let first = group.addrs.insert(broker_id, addr.clone()).is_none();
        let is_master = broker_id == MASTER_ID;
        let is_prime_slave =
            enable_acting_master.is_some() && !is_master && group.min_id() == Some(broker_id);
        let wipe_write = is_prime_slave && group.enable_acting_master;
        let changed = first
            || self
                .live
                .get(&key)
                .is_none_or(|live| live.version != version);

        // 6, 7 and 8.
        if is_master || is_prime_slave {
            if options.delete_missing_topics && registration.mappings.is_empty() {
                let kept: BTreeSet<&str> = registration
                    .topics
                    .iter()
                    .map(|(topic, _)| topic.as_str())
                    .collect();
                self.topics.retain(|topic, brokers| {
                    if !kept.contains(&**topic) {
                        brokers.remove(&name);
                    }
                    !brokers.is_empty()
                });
                self.drop_mappings_without_topic();
            }
            for (topic, mut queues) in registration.topics {
                if wipe_write {
                    queues.perm &= !PERM_WRITE;
                }
                let topic: Rc<str> = topic.into();
                self.gone.remove(&topic);
                let brokers = self.topics.entry(topic).or_default();
                if changed || !brokers.contains_key(&name) {
                    brokers.insert(name.clone(), queues);
                }
            }
            if changed {
                for (topic, broker_name, info) in registration.mappings {
                    // A mapping belongs to a topic; one without would never be removed again.
                    if let Some((topic, _)) = self.topics.get_key_value(topic.as_str()) {
                        self.mappings
                            .entry(topic.clone())
                            .or_default()
                            .insert(broker_name, info);
                    }
                }
            }
        }

        // 9.
        self.live.insert(
            key,
            Live {
                broker_name: name.clone(),
                last_update_ms: now_ms,
                timeout_ms: registration
                    .heartbeat_timeout_ms
                    .unwrap_or(HEARTBEAT_TIMEOUT_MS_DEFAULT),
                version,
                connection,
                ha_server_addr: registration.ha_server_addr,
                filter_servers: registration.filter_servers,
            },
        );

        // 10.
        let mut answer = Registered::default();
        if !is_master
            && let Some(master) = self.groups[&name].addrs.get(&MASTER_ID)
            && let Some(live) = self.live.get(&(cluster, master.clone()))
        {
            answer.master = Some((live.ha_server_addr.clone(), master.to_string()));
        }
        if smaller_id_came {
            answer.min_id_change = self.min_id_change(&name, None);
        }
        Ok(answer)
    }

    /// UNREGISTER_BROKER of one or several addresses (`RouteInfoManager.unRegisterBroker`).
    pub fn unregister(&mut self, requests: &[Unregistration]) -> Vec<MinIdChange> {
        let mut emptied: BTreeSet<Rc<str>> = BTreeSet::new();
        let mut reduced: BTreeSet<Rc<str>> = BTreeSet::new();
        let mut changes = Vec::new();
        for request in requests {
            let key: AddrKey = (
                request.cluster.as_str().into(),
                request.broker_addr.as_str().into(),
            );
            // An address that is not alive under this cluster and name is not this broker's: another one that took it over
            // must not leave because of a late farewell.
            let Some(name) = self
                .live
                .get(&key)
                .map(|live| live.broker_name.clone())
                .filter(|name| **name == *request.broker_name)
            else {
                continue;
            };
            self.live.remove(&key);
            let Some(group) = self.groups.get_mut(&name) else {
                continue;
            };
            let min_before = group.min_id();
            let count_before = group.addrs.len();
            group.addrs.retain(|_, addr| *addr != key.1);
            if group.addrs.is_empty() {
                self.groups.remove(&name);
                self.forget_in_clusters(&name);
                reduced.remove(&name);
                emptied.insert(name);
            } else if group.addrs.len() < count_before {
                if group.min_id() != min_before {
                    changes.extend(self.min_id_change(&name, Some(&key.1)));
                }
                reduced.insert(name);
            }
        }
        self.clean_topics(&emptied, &reduced);
        changes.retain(|change| self.groups.contains_key(change.broker_name.as_str()));
        changes
    }

    /// Removes brokers that were silent for longer than their timeout. To be called every `interval_ms`.
    ///
    /// A scan that comes later than two intervals shows that this process did not run (it was stopped, or starved).
    /// Then the heartbeats wait in the sockets: nobody is removed until the next scan, when they have been read.
    pub fn scan(&mut self, now_ms: u64, interval_ms: u64) -> Removed {
        let paused = self
            .last_scan_ms
            .replace(now_ms)
            .is_some_and(|last| now_ms.saturating_sub(last) > 2 * interval_ms);
        if paused {
            return Removed::default();
        }
        self.remove_where(|live| live.last_update_ms.saturating_add(live.timeout_ms) < now_ms)
    }

    /// A connection is gone: so are the brokers that registered last over it.
    pub fn connection_closed(&mut self, connection: ConnectionId) -> Removed {
        let mut removed = self.remove_where(|live| live.connection == Some(connection));
        removed.connections.clear();
        removed
    }

    /// BROKER_HEARTBEAT. An address that is not registered is not made known by it.
    pub fn heartbeat(&mut self, cluster: &str, broker_addr: &str, now_ms: u64) -> bool {
        match self.live.get_mut(&(cluster.into(), broker_addr.into())) {
            Some(live) => {
                live.last_update_ms = now_ms;
                true
            }
            None => false,
        }
    }

    /// QUERY_DATA_VERSION: the version that is known for an address. Equal versions count as a heartbeat.
    pub fn query_data_version(
        &mut self,
        cluster: &str,
        broker_addr: &str,
        asked: DataVersion,
        now_ms: u64,
    ) -> (bool, Option<DataVersion>) {
        match self.live.get_mut(&(cluster.into(), broker_addr.into())) {
            Some(live) => {
                let changed = live.version != asked;
                if !changed {
                    live.last_update_ms = now_ms;
                }
                (changed, Some(live.version))
            }
            None => (true, None),
        }
    }

    /// WIPE_WRITE_PERM_OF_BROKER: returns the number of topics. The broker's next new DataVersion brings them back.
    pub fn wipe_write_perm(&mut self, broker_name: &str) -> usize {
        self.change_perm(broker_name, |perm| perm & !PERM_WRITE)
    }

    /// ADD_WRITE_PERM_OF_BROKER: sets exactly read and write, as RocketMQ does.
    pub fn add_write_perm(&mut self, broker_name: &str) -> usize {
        self.change_perm(broker_name, |_| PERM_READ | PERM_WRITE)
    }

    /// DELETE_TOPIC_IN_NAMESRV, of one cluster or of all. No error if there is none.
    pub fn delete_topic(&mut self, topic: &str, cluster: Option<&str>) {
        if let Some(cluster) = cluster {
            if let Some(names) = self.clusters.get(cluster)
                && let Some(brokers) = self.topics.get_mut(topic)
            {
                brokers.retain(|name, _| !names.contains(name));
                if brokers.is_empty() {
                    self.topics.remove(topic);
                }
            }
        } else {
            self.topics.remove(topic);
        }
        if !self.topics.contains_key(topic) {
            self.mappings.remove(topic);
            self.gone.remove(topic);
        }
    }

    /// REGISTER_TOPIC_IN_NAMESRV. With a broker that is not registered nothing is changed and its name is returned.
    pub fn register_topic(
        &mut self,
        topic: &str,
        queues: Vec<(String, TopicQueues)>,
    ) -> Result<(), String> {
        if let Some((unknown, _)) = queues
            .iter()
            .find(|(name, _)| !self.groups.contains_key(name.as_str()))
        {
            return Err(unknown.clone());
        }
        if queues.is_empty() {
            return Ok(());
        }
        self.gone.remove(topic);
        let brokers = self.topics.entry(topic.into()).or_default();
        for (name, queues) in queues {
            brokers.insert(name.into(), queues);
        }
        Ok(())
    }

    /// GET_ROUTEINFO_BY_TOPIC (`pickupTopicRouteData` and `ZoneRouteRPCHook`).
    pub fn route<'a>(
        &'a self,
        topic: &str,
        options: RouteOptions<'a>,
    ) -> Result<TopicRouteView<'a>, RouteMiss> {
        let Some(brokers) = self.topics.get(topic) else {
            return Err(self.why_no_route(topic));
        };
        let mut view = TopicRouteView {
            broker_datas: Vec::with_capacity(brokers.len()),
            filter_server_table: BTreeMap::new(),
            order_topic_conf: options.order_topic_conf,
            queue_datas: Vec::with_capacity(brokers.len()),
            topic_queue_mapping_by_broker: self.mappings.get(topic),
        };
        let acting_master = options.acting_master && !topic.starts_with(SYNC_BROKER_MEMBER_PREFIX);
        for (name, queues) in brokers {
            let Some(group) = self.groups.get(name) else {
                continue;
            };
            if let Some(zone) = options.zone
                && group.has_master()
                && !group
                    .zone_name
                    .as_deref()
                    .is_some_and(|own| own.eq_ignore_ascii_case(zone))
            {
                continue;
            }
            let mut data = broker_data(name, group);
            if acting_master
                && !group.has_master()
                && group.enable_acting_master
                && queues.perm & PERM_WRITE == 0
                && let Some((_, acting)) = data.broker_addrs.pop_first()
            {
                data.broker_addrs.insert(MASTER_ID, acting);
            }
            for addr in group.addrs.values() {
                if let Some(live) = self.live.get(&(group.cluster.clone(), addr.clone()))
                    && !live.filter_servers.is_empty()
                {
                    view.filter_server_table
                        .insert(addr, live.filter_servers.as_slice());
                }
            }
            view.broker_datas.push(data);
            view.queue_datas.push(QueueDataView::new(name, queues));
        }
        Ok(view)
    }

    /// GET_BROKER_CLUSTER_INFO.
    pub fn cluster_info(&self) -> ClusterInfoView<'_> {
        ClusterInfoView {
            broker_addr_table: self
                .groups
                .iter()
                .map(|(name, group)| (&**name, broker_data(name, group)))
                .collect(),
            cluster_addr_table: self
                .clusters
                .iter()
                .map(|(cluster, names)| (&**cluster, names.iter().map(|name| &**name).collect()))
                .collect(),
        }
    }

    /// GET_BROKER_MEMBER_GROUP: addresses by id, none for a name that is not known.
    pub fn members(&self, broker_name: &str) -> BTreeMap<i64, &str> {
        self.groups
            .get(broker_name)
            .map(|group| addrs_of(group))
            .unwrap_or_default()
    }

    /// GET_ALL_TOPIC_LIST_FROM_NAMESERVER.
    pub fn all_topics(&self) -> Vec<&str> {
        self.topics.keys().map(|topic| &**topic).collect()
    }

    /// GET_TOPICS_BY_CLUSTER.
    pub fn topics_of_cluster(&self, cluster: &str) -> Vec<&str> {
        let Some(names) = self.clusters.get(cluster) else {
            return Vec::new();
        };
        self.topics
            .iter()
            .filter(|(_, brokers)| brokers.keys().any(|name| names.contains(name)))
            .map(|(topic, _)| &**topic)
            .collect()
    }

    /// GET_SYSTEM_TOPIC_LIST_FROM_NS: names of clusters and brokers, and the address of some broker.
    pub fn system_topics(&self) -> (Vec<&str>, Option<&str>) {
        let mut names: Vec<&str> = Vec::new();
        for (cluster, brokers) in &self.clusters {
            names.push(cluster);
            names.extend(brokers.iter().map(|name| &**name));
        }
        let addr = self
            .groups
            .values()
            .find_map(|group| group.addrs.values().next())
            .map(|addr| &**addr);
        (names, addr)
    }

    /// GET_UNIT_TOPIC_LIST and its two relatives; the first broker of a topic decides.
    pub fn unit_topics(&self, which: UnitTopics) -> Vec<&str> {
        self.topics
            .iter()
            .filter(|(_, brokers)| {
                let flag = brokers
                    .values()
                    .next()
                    .map_or(0, |data| data.topic_sys_flag);
                let (unit, sub) = (flag & SYS_FLAG_UNIT != 0, flag & SYS_FLAG_UNIT_SUB != 0);
                match which {
                    UnitTopics::Unit => unit,
                    UnitTopics::UnitSub => sub,
                    UnitTopics::UnitSubNotUnit => sub && !unit,
                }
            })
            .map(|(topic, _)| &**topic)
            .collect()
    }

    /// How many addresses are alive and how many topics are known, for logs.
    pub fn counts(&self) -> (usize, usize) {
        (self.live.len(), self.topics.len())
    }

    /// An address has one identity. A broker that comes back under another name or cluster leaves the old one at once,
    /// where RocketMQ keeps the old name as a ghost that may never expire.
    fn evict_other_identities(&mut self, key: &AddrKey, name: &Rc<str>) {
        let others: Vec<Unregistration> = self
            .live
            .iter()
            .filter(|((cluster, addr), live)| {
                *addr == key.1 && (*cluster != key.0 || live.broker_name != *name)
            })
            .map(|((cluster, addr), live)| Unregistration {
                cluster: cluster.to_string(),
                broker_name: live.broker_name.to_string(),
                broker_addr: addr.to_string(),
            })
            .collect();
        if !others.is_empty() {
            self.unregister(&others);
        }
    }

    fn remove_where(&mut self, dead: impl Fn(&Live) -> bool) -> Removed {
        let mut removed = Removed::default();
        let mut requests = Vec::new();
        for ((cluster, addr), live) in &self.live {
            if dead(live) {
                let broker_name = live.broker_name.to_string();
                removed
                    .brokers
                    .push((cluster.to_string(), broker_name.clone(), addr.to_string()));
                removed.connections.extend(live.connection);
                requests.push(Unregistration {
                    cluster: cluster.to_string(),
                    broker_name,
                    broker_addr: addr.to_string(),
                });
            }
        }
        if !requests.is_empty() {
            removed.min_id_changes = self.unregister(&requests);
        }
        removed
    }

    fn forget_in_clusters(&mut self, name: &str) {
        self.clusters.retain(|_, names| {
            names.remove(name);
            !names.is_empty()
        });
    }

    /// Removes queues of brokers that left; where only the master left and a slave acts for it, the write bit goes.
    fn clean_topics(&mut self, emptied: &BTreeSet<Rc<str>>, reduced: &BTreeSet<Rc<str>>) {
        let without_master: Vec<&Rc<str>> = reduced
            .iter()
            .filter(|name| {
                self.groups
                    .get(&***name)
                    .is_some_and(|group| group.enable_acting_master && !group.has_master())
            })
            .collect();
        if emptied.is_empty() && without_master.is_empty() {
            return;
        }
        let gone = &mut self.gone;
        self.topics.retain(|topic, brokers| {
            for name in &without_master {
                if let Some(queues) = brokers.get_mut(&***name) {
                    queues.perm &= !PERM_WRITE;
                }
            }
            let mut last = None;
            brokers.retain(|name, _| {
                let leaves = emptied.contains(name);
                if leaves {
                    last = Some(name.clone());
                }
                !leaves
            });
            if brokers.is_empty()
                && let Some(last) = last
            {
                if gone.len() >= GONE_TOPICS_MAX {
                    gone.clear();
                }
                gone.insert(topic.clone(), last);
            }
            !brokers.is_empty()
        });
        self.drop_mappings_without_topic();
    }

    fn drop_mappings_without_topic(&mut self) {
        let topics = &self.topics;
        self.mappings.retain(|topic, _| topics.contains_key(topic));
    }

    fn change_perm(&mut self, broker_name: &str, change: impl Fn(i32) -> i32) -> usize {
        let mut count = 0;
        for queues in self
            .topics
            .values_mut()
            .filter_map(|brokers| brokers.get_mut(broker_name))
        {
            queues.perm = change(queues.perm);
            count += 1;
        }
        count
    }

    fn why_no_route(&self, topic: &str) -> RouteMiss {
        if let Some(last) = self.gone.get(topic) {
            RouteMiss::BrokersGone {
                last_broker: last.to_string(),
            }
        } else if self.groups.is_empty() {
            RouteMiss::NoBroker
        } else {
            RouteMiss::UnknownTopic {
                brokers: self.groups.len(),
            }
        }
    }

    /// Who is to be told of a new smallest id. The new minimum itself is told only when an address went offline.
    fn min_id_change(&self, name: &str, offline: Option<&str>) -> Option<MinIdChange> {
        let group = self.groups.get(name)?;
        let (&min_broker_id, min_addr) = group.addrs.first_key_value()?;
        let ha_broker_addr = self
            .live
            .get(&(group.cluster.clone(), min_addr.clone()))
            .map(|live| live.ha_server_addr.clone());
        Some(MinIdChange {
            broker_name: name.into(),
            min_broker_id,
            min_broker_addr: min_addr.to_string(),
            offline_broker_addr: offline.map(Into::into),
            ha_broker_addr,
            targets: group
                .addrs
                .iter()
                .filter(|&(&id, _)| offline.is_some() || id != min_broker_id)
                .map(|(_, addr)| addr.to_string())
                .collect(),
        })
    }

    /// Panics if an invariant of the module's page is broken.
    #[cfg(test)]
    pub fn assert_invariants(&self) {
        let mut clustered: BTreeSet<&Rc<str>> = BTreeSet::new();
        for (cluster, names) in &self.clusters {
            assert!(!names.is_empty(), "cluster {cluster} has no broker name");
            clustered.extend(names);
        }
        let named: BTreeSet<&Rc<str>> = self.groups.keys().collect();
        assert_eq!(
            named, clustered,
            "names in clusters are the names with addresses"
        );
        for (name, group) in &self.groups {
            assert!(!group.addrs.is_empty(), "broker {name} has no address");
            for addr in group.addrs.values() {
                let owners: Vec<_> = self.live.keys().filter(|(_, live)| live == addr).collect();
                assert_eq!(owners.len(), 1, "{name} {addr} has one live entry");
                let live = &self.live[owners[0]];
                assert_eq!(live.broker_name, *name, "the live entry of {addr}");
            }
            let addrs: BTreeSet<_> = group.addrs.values().collect();
            assert_eq!(
                addrs.len(),
                group.addrs.len(),
                "{name} has an address twice"
            );
        }
        for (topic, brokers) in &self.topics {
            assert!(!brokers.is_empty(), "topic {topic} has no broker");
            for name in brokers.keys() {
                assert!(
                    self.groups.contains_key(name),
                    "topic {topic} on {name}, which is gone"
                );
            }
            assert!(
                !self.gone.contains_key(topic),
                "topic {topic} is here and gone"
            );
        }
        for topic in self.mappings.keys() {
            assert!(
                self.topics.contains_key(topic),
                "mapping of {topic}, which is not here"
            );
        }
        assert!(self.gone.len() <= GONE_TOPICS_MAX);
    }
}

fn addrs_of(group: &Group) -> BTreeMap<i64, &str> {
    group
        .addrs
        .iter()
        .map(|(&id, addr)| (id, &**addr))
        .collect()
}

fn broker_data<'a>(name: &'a str, group: &'a Group) -> BrokerDataView<'a> {
    BrokerDataView {
        broker_addrs: addrs_of(group),
        broker_name: name,
        cluster: &group.cluster,
        enable_acting_master: group.enable_acting_master,
        zone_name: group.zone_name.as_deref(),
    }
}

#[cfg(test)]
mod tests;
