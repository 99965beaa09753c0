//! A node: the executors of one process, from their start to their end.
//!
//! All cores do the same steps and wait for each other between them: open logs, connect the mesh, learn topics, start the
//! broker, open ports, serve; then drain, stop the logs, end. A core that fails takes the others with it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_lite::future::{block_on, or};

use crate::app::boot;
use crate::app::controlled::Life;
use crate::app::replication::{self, MasterAddress, Reopen, ToFollow};
use crate::app::run::print;
use crate::app::shutdown::{Phase, Shutdown};
use crate::app::supervisor;
use crate::base::config::value::{BrokerRole, FlushDiskType, MessageRequestMode};
use crate::base::config::{Config, Roles};
use crate::base::limits::KEY_TAIL_ENTRIES;
use crate::broker::dispatch::Broker;
use crate::broker::metrics::{Metrics, MetricsSite};
use crate::broker::options::{BrokerOptions, DelayRules, TransactionRules};
use crate::broker::registration::{BrokerIdentity, Registrar, RegistrationSource};
use crate::broker::routes::NameServers;
use crate::broker::to_master::ToMaster;
use crate::ha::control::Control;
use crate::ha::handshake::Secret;
use crate::io::env::Env;
use crate::io::interrupts;
use crate::io::process;
use crate::io::ring::RingEnv;
use crate::io::rlimit::raise_locked_memory;
use crate::io::tcp::Listener;
use crate::namesrv::handlers::NameServer;
use crate::namesrv::kv::KvStore;
use crate::namesrv::options::NamesrvOptions;
use crate::server::Handler;
use crate::server::http;
use crate::server::listener::{Server, ServerOptions};
use crate::shard::executor::{CoreStart, ExecutorOptions, run_on_cores, run_once};
use crate::shard::message::ShardRequest;
use crate::shard::meta::{DataVersion, MetaCommand};
use crate::shard::{Shard, ShardHandle, ShardOptions};
use crate::store::LogOptions;
use crate::store::manifest::Manifest;
use crate::store::retention::{DiskRules, keep};
use crate::store::scrub::ScrubOptions;
use crate::wire::remoting::body::TopicConfig;

/// A log gets a snapshot when it has grown by this: what recovery has to read at most.
const SNAPSHOT_BYTES: u64 = 128 << 20;
/// How often ASYNC_FLUSH flushes.
const FLUSH_INTERVAL: Duration = Duration::from_millis(500);
/// How long the boot line waits for the name servers.
const REGISTRATION_WAIT: Duration = Duration::from_secs(5);
/// How often the port of the metrics is tried again if it was taken.
const METRICS_RETRY: Duration = Duration::from_secs(10);
/// How often a core looks whether the others have come as far.
const MEET_POLL: Duration = Duration::from_millis(1);

/// Why a node ended without being asked to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("the executors of the shards cannot be started: {0}")]
    Start(String),
    #[error("{0}")]
    Failed(String),
}

/// A place where all cores meet, once; or where they learn that one of them will not come.
struct Meeting {
    cores: usize,
    arrived: [AtomicUsize; 6],
    failed: AtomicBool,
}

/// The places, in order.
#[derive(Clone, Copy)]
enum Place {
    LogsOpen,
    MeshConnected,
    BrokerStarted,
    PortsOpen,
    Drained,
    LogsStopped,
}

impl Meeting {
    fn new(cores: usize) -> Self {
        Self {
            cores,
            arrived: Default::default(),
            failed: AtomicBool::new(false),
        }
    }

    async fn at(&self, env: &RingEnv, place: Place) -> Result<(), String> {
        let arrived = &self.arrived[place as usize];
        arrived.fetch_add(1, Ordering::AcqRel);
        while arrived.load(Ordering::Acquire) < self.cores {
            if self.failed.load(Ordering::Acquire) {
                return Err("another core failed".into());
            }
            env.sleep(MEET_POLL).await;
        }
        Ok(())
    }
}

/// Called once when everything answers requests.
type Serving = dyn Fn(&Config, Roles) + Send + Sync;

struct Node {
    config: Arc<Config>,
    roles: Roles,
    shutdown: Shutdown,
    meeting: Meeting,
    manifest: Option<Manifest>,
    /// Of master and slaves; empty without one.
    secret: Secret,
    master: MasterAddress,
    /// With a controller.
    life: Option<Life>,
    /// A slave's logs have to be opened again.
    reopen: Reopen,
    started_ms: u64,
    serving: Box<Serving>,
}

/// Runs the node until it is told to stop, or until it cannot go on. The machine was checked and the store is locked.
///
/// It returns when everything has ended: at [`Phase::Draining`] no new connection and no new request is taken, what is under
/// way is answered, the broker says good-bye to its name servers; at [`Phase::Now`] all that is dropped.
pub fn start_node(config: Arc<Config>, roles: Roles, shutdown: Shutdown) -> Result<(), RunError> {
    if config.broker.role != BrokerRole::Slave {
        return start_node_with(config, roles, shutdown, None, announce);
    }
    let mut is_first = true;
    loop {
        let stop = Shutdown::new();
        let watch = {
            let (shutdown, stop) = (shutdown.clone(), stop.clone());
            std::thread::Builder::new()
                .name("stop".to_owned())
                .spawn(move || {
                    let asked = shutdown.reached(Phase::Draining);
                    block_on(or(asked, stop.reached(Phase::Draining)));
                    stop.request(Phase::Draining);
                })
                .map_err(|error| RunError::Start(error.to_string()))?
        };
        let opens_again = Arc::new(AtomicBool::new(false));
        let reopen = {
            let (opens_again, stop) = (opens_again.clone(), stop.clone());
            move || {
                opens_again.store(true, Ordering::Release);
                stop.request(Phase::Draining);
            }
        };
        let announces = std::mem::replace(&mut is_first, false);
        let serving = move |config: &Config, roles| {
            if announces {
                announce(config, roles);
            }
        };
        let config = config.clone();
        let result = run_life(config, roles, stop.clone(), None, Arc::new(reopen), serving);
        // It may have ended by itself.
        stop.request(Phase::Draining);
        let _ = watch.join();
        let is_over = shutdown.phase() > Phase::Running || !opens_again.load(Ordering::Acquire);
        if result.is_err() || is_over {
            return result;
        }
        tracing::info!("this slave opens its logs again");
    }
}

/// The same in a role that the controller has decided, if there is a `life`; and calls `serving` once when everything answers requests.
pub fn start_node_with(
    config: Arc<Config>,
    roles: Roles,
    shutdown: Shutdown,
    life: Option<Life>,
    serving: impl Fn(&Config, Roles) + Send + Sync + 'static,
) -> Result<(), RunError> {
    let control = life.as_ref().map(|life| life.control.clone());
    let reopen = move || {
        if let Some(control) = &control {
            control.ask_for_restart();
        }
    };
    run_life(config, roles, shutdown, life, Arc::new(reopen), serving)
}

fn run_life(
    config: Arc<Config>,
    roles: Roles,
    shutdown: Shutdown,
    life: Option<Life>,
    reopen: Reopen,
    serving: impl Fn(&Config, Roles) + Send + Sync + 'static,
) -> Result<(), RunError> {
    // The rings need it, whatever the shell's limit is; the preflight has said so where it cannot be raised.
    if let Err(error) = raise_locked_memory() {
        tracing::warn!(%error, "the limit of locked memory (ulimit -l) stays as it is");
    }
    let cores = if roles.has_broker() {
        config.node.shards
    } else {
        1
    };
    let secret = replication::read_secret(&config.store.ha_secret_file);
    let secret = secret.map_err(RunError::Failed)?;
    let is_slave = config.broker.role == BrokerRole::Slave;
    let master = match &life {
        Some(life) => life.master.clone(),
        None => MasterAddress::new(&config),
    };
    let manifest = if roles.has_broker() && is_slave {
        let (config, shutdown, secret) = (config.clone(), shutdown.clone(), secret.clone());
        let master = master.clone();
        let made = run_once(move |env| async move {
            let identity = identity(&config);
            replication::manifest_of_slave(&env, &config, &identity, &secret, &master, &shutdown)
                .await
        });
        Some(made.map_err(RunError::Start)?.map_err(RunError::Failed)?)
    } else if roles.has_broker() {
        let (root, segment_bytes) = (config.store.root.clone(), config.store.segment_bytes);
        let logs = match config.store.logs {
            0 => cores as u16,
            logs => logs,
        };
        let manifest = run_once(move |env| async move {
            env.create_dir(&root).await?;
            Manifest::open_or_create(&env, &root, logs as u8, segment_bytes).await
        })
        .map_err(RunError::Start)?
        .map_err(|error| RunError::Failed(error.to_string()))?;
        if manifest.segment_bytes != config.store.segment_bytes {
            tracing::warn!(
                mappedFileSizeCommitLog = config.store.segment_bytes,
                store = manifest.segment_bytes,
                "the store was made with another segment size and keeps it"
            );
        }
        Some(manifest)
    } else {
        None
    };
    if let (Some(life), Some(manifest)) = (&life, &manifest) {
        let (set, set_epoch) = life.in_sync.clone();
        let logs = usize::from(manifest.logs);
        life.control
            .begin_life(life.master_epoch, logs, set, set_epoch);
    }
    let of_disk = interrupts::disk_processors(Path::new("/"), &config.store.root);
    let options = ExecutorOptions {
        count: cores,
        processors: interrupts::in_order(process::processors(), cores, &of_disk),
        pin: config.node.pin_shards,
    };
    let node = Arc::new(Node {
        secret,
        master,
        life,
        reopen,
        config,
        roles,
        shutdown,
        meeting: Meeting::new(cores),
        manifest,
        started_ms: std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_millis() as u64),
        serving: Box::new(serving),
    });
    run_on_cores(&options, move |start| {
        let node = node.clone();
        async move {
            let result = node.run_core(start).await;
            if result.is_err() {
                node.meeting.failed.store(true, Ordering::Release);
                node.shutdown.request(Phase::Draining);
            }
            result
        }
    })
    .map_err(RunError::Failed)
}

/// What a core of a broker runs.
struct BrokerCore {
    shard: Rc<Shard<RingEnv>>,
    server: Rc<Server>,
    registrar: Option<Registrar<RingEnv, BrokerTopics>>,
    /// On core 0, unless they are switched off.
    metrics: Option<Rc<Metrics>>,
}

impl Node {
    async fn run_core(&self, start: CoreStart) -> Result<(), String> {
        let env = start.env.clone();
        let index = start.index;
        let mut servers = Vec::new();
        let namesrv = if self.roles.has_namesrv() && index == 0 {
            let (namesrv, server) = self.start_namesrv(&env).await?;
            servers.push(server);
            Some(namesrv)
        } else {
            None
        };
        let broker = if self.roles.has_broker() {
            let broker = self.start_broker(start).await?;
            servers.push(broker.server.clone());
            Some(broker)
        } else {
            None
        };
        self.meeting.at(&env, Place::PortsOpen).await?;
        if index == 0 {
            if let Some(registrar) = broker.as_ref().and_then(|broker| broker.registrar.as_ref()) {
                registrar.start();
                self.await_registration(&env, registrar).await;
            }
            if let Some(metrics) = broker.as_ref().and_then(|broker| broker.metrics.as_ref()) {
                metrics.set_serving(true);
            }
            (self.serving)(&self.config, self.roles);
        }
        self.shutdown.reached(Phase::Draining).await;
        self.drain(&env, index, servers, broker, namesrv).await
    }

    async fn drain(
        &self,
        env: &RingEnv,
        index: usize,
        servers: Vec<Rc<Server>>,
        broker: Option<BrokerCore>,
        namesrv: Option<Rc<NameServer<RingEnv>>>,
    ) -> Result<(), String> {
        if index == 0 {
            tracing::info!("stopping: no new requests are taken");
        }
        if let Some(broker) = &broker {
            if let Some(metrics) = &broker.metrics {
                metrics.set_serving(false);
            }
            if let Some(registrar) = &broker.registrar {
                // Who becomes the master is to be it at once: its connection ends, and with it the old registration.
                let is_change = self
                    .life
                    .as_ref()
                    .is_some_and(|life| life.master_epoch == 0);
                if !is_change {
                    registrar.stop().await;
                }
            }
            broker.shard.release_pulls();
        }
        let limit = Duration::from_secs(self.config.server.drain_s).min(Duration::from_secs(5));
        for server in servers.iter().rev() {
            server.stop(limit).await;
        }
        if let Some(namesrv) = namesrv {
            namesrv.stop();
        }
        self.meeting.at(env, Place::Drained).await?;
        if let Some(broker) = broker {
            broker
                .shard
                .stop()
                .await
                .map_err(|error| format!("stopping the logs of shard {index}: {error}"))?;
        }
        self.meeting.at(env, Place::LogsStopped).await
    }

    fn bind(&self, port: u16) -> Result<Listener, String> {
        let address = SocketAddr::new(self.config.bind_ip, port);
        Listener::bind(address).map_err(|error| format!("port {address} cannot be opened: {error}"))
    }

    fn server(&self, env: &RingEnv, core: usize, handler: Rc<dyn Handler>) -> Rc<Server> {
        let options = ServerOptions {
            core: core as u16,
            idle_close: Duration::from_secs(self.config.server.idle_s),
            ..ServerOptions::default()
        };
        Server::new(env, options, handler)
    }

    async fn start_namesrv(
        &self,
        env: &RingEnv,
    ) -> Result<(Rc<NameServer<RingEnv>>, Rc<Server>), String> {
        let keys = &self.config.namesrv;
        let options = NamesrvOptions {
            listen_port: keys.listen_port,
            kv_config_path: keys.kv_config_path.clone(),
            scan_interval_ms: keys.scan_period_ms,
            support_acting_master: keys.acting_master,
            order_message_enable: keys.order_messages,
            return_order_topic_config_to_broker: keys.return_order_config,
            enable_all_topic_list: keys.all_topic_list,
            enable_topic_list: keys.topic_list,
            notify_min_broker_id_changed: keys.notify_min_broker_id,
            need_wait_for_service: keys.wait_for_service,
            wait_seconds_for_service: keys.wait_for_service_s,
            delete_topic_with_broker_registration: keys.delete_unregistered_topics,
        };
        let kv = KvStore::load(env.clone(), &options.kv_config_path)
            .await
            .map_err(|error| error.to_string())?;
        let namesrv = NameServer::new(env.clone(), options, kv);
        namesrv.start();
        let server = self.server(env, 0, namesrv.clone());
        server.serve(self.bind(keys.listen_port)?);
        Ok((namesrv, server))
    }

    fn log_options(&self, manifest: &Manifest) -> LogOptions {
        let config = &self.config;
        // Logs of one shard divide its caches.
        let logs = usize::from(manifest.logs)
            .div_ceil(config.node.shards)
            .max(1);
        LogOptions {
            log: 0,
            directory: config.store.root.clone(),
            store_id: manifest.store_id,
            segment_bytes: manifest.segment_bytes,
            flush_each_write: matches!(config.store.flush, FlushDiskType::SyncFlush),
            flush_interval: FLUSH_INTERVAL,
            tail_cache_bytes: config.memory.tail_cache_bytes as usize / logs,
            read_cache_bytes: config.memory.read_cache_bytes as usize / logs,
            index_cache_bytes: config.memory.index_bytes as usize / logs,
            key_tail_entries: if config.store.key_index {
                KEY_TAIL_ENTRIES
            } else {
                0
            },
            snapshot_bytes: SNAPSHOT_BYTES.min(4 * manifest.segment_bytes),
            scrub: ScrubOptions {
                bytes_per_second: config.store.scrub_bytes_per_second,
                period: Duration::from_secs(config.store.scrub_period_hours * 3600),
            },
            store_host: self.store_host(),
            replica: config.broker.role == BrokerRole::Slave,
            elected: self.life.as_ref().map(|life| life.master_epoch),
        }
    }

    fn control(&self) -> Option<Arc<Control>> {
        self.life.as_ref().map(|life| life.control.clone())
    }

    fn store_host(&self) -> SocketAddr {
        SocketAddr::new(self.config.advertised_ip, self.config.server.listen_port)
    }

    async fn start_broker(&self, start: CoreStart) -> Result<BrokerCore, String> {
        let CoreStart { index, env, mesh } = start;
        let manifest = self
            .manifest
            .as_ref()
            .ok_or("the store has no manifest: start_node makes it")?;
        let options = ShardOptions {
            index,
            count: self.config.node.shards,
            logs: manifest.logs,
            directory: self.config.store.root.clone(),
            log: self.log_options(manifest),
            role: replication::role(&self.config, self.control()),
        };
        let shard = Shard::open(env.clone(), options)
            .await
            .map_err(|error| format!("the logs of shard {index} cannot be opened: {error}"))?;
        self.meeting.at(&env, Place::LogsOpen).await?;
        let mesh = mesh.connect(env.clone(), shard.clone()).await;
        shard.join(mesh);
        // An answer of a core that has no mesh yet would be lost, and core 0 asks as soon as it starts.
        self.meeting.at(&env, Place::MeshConnected).await?;
        shard.start();
        shard.ready().await;
        let broker = Broker::start(shard.handle(), self.broker_options());
        let name_servers = &self.config.broker.namesrv_addresses.0;
        if !name_servers.is_empty() {
            broker.set_routes(Rc::new(NameServers::new(env.clone(), name_servers)));
        }
        let server = self.server(&env, index, Rc::new(broker.clone()));
        {
            let server = server.clone();
            shard.handle().set_push_handler(move |connections, frame| {
                for id in connections {
                    if let Some(connection) = server.get(id) {
                        connection.push_frame(frame.clone());
                    }
                }
            });
        }
        self.meeting.at(&env, Place::BrokerStarted).await?;
        if shard.is_slave() {
            if let Some(life) = &self.life {
                let (address, control) = (life.master_clients.clone(), life.control.clone());
                let link =
                    ToMaster::new(env.clone(), move || address.get(), move || control.epoch());
                broker.set_master_link(Rc::new(link));
            }
            let (config, secret) = (&self.config, &self.secret);
            let to_master = ToFollow {
                manifest,
                secret,
                master: &self.master,
                control: self.control(),
                reopen: &self.reopen,
            };
            replication::follow_master(&env, config, to_master, &shard);
        } else {
            replication::adopt_slaves(&env, &self.config, &shard);
        }
        if index == 0 && !shard.is_slave() {
            broker
                .create_boot_topics()
                .await
                .map_err(|error| format!("the system topics cannot be made: {error}"))?;
        }
        let port = self.config.server.listen_port;
        server.serve(self.bind(port)?);
        if let Some(fast) = self.config.fast_listen_port() {
            server.serve(self.bind(fast)?);
        }
        if let Some(&native) = self.config.native_ports().get(index) {
            let address = SocketAddr::new(self.config.bind_ip, native);
            let listener = Listener::bind_alone(address).map_err(|error| {
                format!("port {address} (nativePort) cannot be opened: {error}")
            })?;
            server.serve(listener);
        }
        if !shard.is_slave() {
            self.keep_retention(&env, &shard);
        }
        if index == 0 && !shard.is_slave() {
            replication::serve_slaves(&env, &self.config, manifest, &self.secret, &shard)?;
        }
        let metrics = (index == 0)
            .then(|| self.serve_metrics(&env, &broker))
            .flatten();
        let registrar = (index == 0 && !self.config.broker.namesrv_addresses.0.is_empty())
            .then(|| self.registrar(&env, &shard.handle()));
        Ok(BrokerCore {
            shard,
            server,
            registrar,
            metrics,
        })
    }

    /// Opens the port of the metrics. A port that is taken stops nothing: it is told, and tried again.
    fn serve_metrics(&self, env: &RingEnv, broker: &Broker) -> Option<Rc<Metrics>> {
        let address = self.config.metrics_address()?;
        let labels = &self.config.broker.metrics_labels;
        let metrics = Metrics::new(broker.clone(), labels, env!("CARGO_PKG_VERSION"));
        let site = Rc::new(MetricsSite(metrics.clone()));
        match Listener::bind_alone(address) {
            Ok(listener) => http::serve(env, listener, site),
            Err(error) => {
                tracing::warn!(%address, %error, "no metrics: their port cannot be opened; it is tried again every {} s. \
                    Another one is set by metricsPromExporterPort, 0 switches it off", METRICS_RETRY.as_secs());
                let own = env.clone();
                env.spawn_background(async move {
                    loop {
                        own.sleep(METRICS_RETRY).await;
                        if let Ok(listener) = Listener::bind_alone(address) {
                            tracing::info!(%address, "the port of the metrics is open now");
                            return http::serve(&own, listener, site);
                        }
                    }
                });
            }
        }
        Some(metrics)
    }

    fn broker_options(&self) -> BrokerOptions {
        let config = &self.config;
        let keys = &config.broker;
        let mut settings: Vec<(String, String)> = config
            .entries()
            .into_iter()
            .map(|entry| (entry.key.to_owned(), entry.value))
            .collect();
        settings.sort();
        BrokerOptions {
            native_host: keys.advertised_host.clone(),
            native_ports: config.native_ports(),
            native_session_ms: keys.native_session_ms,
            key_index: config.store.key_index,
            broker_id: keys.broker_id as i64,
            slave_read: keys.slave_read,
            region: Arc::from(keys.region_id.as_str()),
            trace_on: keys.trace_on,
            trace_topic: keys.trace_topic,
            permission: i32::from(keys.permission),
            // A slave makes nothing: its master's topics and groups come with the log.
            auto_create_topic: keys.auto_create_topic && keys.broker_id == 0,
            auto_create_group: keys.auto_create_group && keys.broker_id == 0,
            default_topic_queues: keys.default_topic_queues,
            message_bytes_max: config.store.body_bytes_max as usize,
            delay: DelayRules {
                levels_ms: config.store.delay_levels.0.clone(),
                timer: config.store.timer,
                timer_delay_max_s: config.store.timer_delay_max_s,
                timer_precision_ms: config.store.timer_precision_ms,
            },
            transactions: TransactionRules {
                reject: keys.reject_transactions,
                timeout_ms: keys.transaction_timeout_ms,
                check_period_ms: keys.transaction_check_period_ms,
                checks_max: keys.transaction_checks_max,
            },
            strict_subscriptions: keys.strict_subscriptions,
            recall: keys.recall,
            recall_when_not_writable: keys.recall_when_not_writeable,
            property_filter: keys.property_filter,
            lite_pull: keys.lite_pull,
            long_polling: keys.long_polling,
            short_polling_ms: keys.short_polling_ms,
            pop_polling_per_queue_max: keys.pop_polling_per_queue_max as usize,
            pop_polling_max: keys.pop_polling_max as usize,
            priority_order_asc: keys.priority_order_asc,
            priority_retry_percent: keys.priority_retry_percent,
            default_mode_is_pop: keys.request_mode == MessageRequestMode::Pop,
            default_pop_share_queues: keys.pop_share_queues,
            server_load_balancer: keys.server_load_balancer,
            boot_ms: self.started_ms,
            settings: settings.into(),
            ..BrokerOptions::new(&keys.cluster_name, &keys.broker_name, self.store_host())
        }
    }

    fn registrar(&self, env: &RingEnv, handle: &ShardHandle) -> Registrar<RingEnv, BrokerTopics> {
        let keys = &self.config.broker;
        let identity = identity(&self.config);
        let source = Rc::new(BrokerTopics {
            handle: handle.clone(),
            master: self
                .config
                .store
                .ha_master_address
                .is_empty()
                .then(|| self.master.clone())
                .filter(|_| self.life.is_none()),
            group_epoch: self.life.as_ref().map(|life| i64::from(life.group_epoch)),
        });
        let registrar = Registrar::new(
            env.clone(),
            identity,
            &keys.namesrv_addresses.0,
            keys.register_period_ms,
            source,
        );
        let (own, topics) = (registrar.clone(), handle.clone());
        handle.set_topics_handler(move |names| match names {
            [one] if topics.meta().topics.contains_key(one) => own.topic_changed(one),
            _ => own.table_changed(),
        });
        registrar
    }

    async fn await_registration(
        &self,
        env: &RingEnv,
        registrar: &Registrar<RingEnv, BrokerTopics>,
    ) {
        let begin = env.now_ns();
        while !registrar.states().iter().any(|(_, up)| *up) {
            if env.now_ns() - begin > REGISTRATION_WAIT.as_nanos() as u64
                || self.shutdown.phase() != Phase::Running
            {
                tracing::warn!("no name server has this broker yet; it goes on trying");
                return;
            }
            env.sleep(MEET_POLL).await;
        }
    }

    /// Removes segments by age, at the hours of deleteWhen or when the disk fills up, by bytes at any time, and before their
    /// time when the disk is about to be full; refuses new messages when it is.
    fn keep_retention(&self, env: &RingEnv, shard: &Rc<Shard<RingEnv>>) {
        let store = &self.config.store;
        let period = Duration::from_millis(store.retention_period_ms);
        let (hours, reserved_h) = (store.delete_hours.0.clone(), store.retention_hours);
        let disk = DiskRules {
            clean_percent: store.disk_clean_percent,
            clean_early_percent: store.disk_clean_early_percent,
            clean_early: store.clean_early,
            refuse_percent: store.disk_refuse_percent,
        };
        let logs = self
            .manifest
            .as_ref()
            .map_or(1, |manifest| u64::from(manifest.logs));
        let bytes_max = (store.store_bytes_max > 0).then(|| store.store_bytes_max / logs);
        let (env, shard) = (env.clone(), shard.clone());
        env.clone().spawn_background(async move {
            loop {
                let settings = shard.handle().meta().settings.clone();
                let hours = settings
                    .get("deleteWhen")
                    .map(|text| {
                        text.split(';')
                            .filter_map(|h| h.trim().parse().ok())
                            .collect()
                    })
                    .unwrap_or_else(|| hours.clone());
                let reserved_h = settings
                    .get("fileReservedTime")
                    .and_then(|hours| hours.trim().parse().ok())
                    .unwrap_or(reserved_h);
                let now_ms = env.now_ms();
                let hour = hours.contains(&process::local_hour(now_ms));
                let older_than_ms = now_ms.saturating_sub(reserved_h * 3_600_000);
                for log in shard.logs() {
                    if let Err(error) = keep(log, &disk, older_than_ms, bytes_max, hour).await {
                        tracing::warn!(log = log.id(), %error, "old segments cannot be removed");
                    }
                }
                env.sleep(period).await;
            }
        });
    }
}

/// Who this broker is to name servers.
fn identity(config: &Config) -> BrokerIdentity {
    let keys = &config.broker;
    BrokerIdentity {
        cluster: keys.cluster_name.clone(),
        broker_name: keys.broker_name.clone(),
        address: config.broker_address(),
        broker_id: keys.broker_id as i64,
        ha_address: config.replication_address(),
        permission: i32::from(keys.permission),
    }
}

/// The broker's topics, for its registration.
struct BrokerTopics {
    handle: ShardHandle,
    /// Of a slave that has no fixed master.
    master: Option<MasterAddress>,
    /// With a controller: a name server takes the greater one of two that say they are the master.
    group_epoch: Option<i64>,
}

impl RegistrationSource for BrokerTopics {
    fn version(&self) -> DataVersion {
        let version = self.handle.meta().topics_version;
        DataVersion {
            state_version: self.group_epoch.unwrap_or(version.state_version),
            ..version
        }
    }

    fn topic_count(&self) -> usize {
        self.handle.meta().topics.len()
    }

    fn topics(&self) -> Vec<TopicConfig> {
        let meta = self.handle.meta();
        meta.topics.values().map(|t| t.config.clone()).collect()
    }

    fn topic(&self, name: &str) -> Option<TopicConfig> {
        let meta = self.handle.meta();
        meta.topics.get(name).map(|topic| topic.config.clone())
    }

    fn master_at(&self, ha_address: &str) {
        if let Some(master) = &self.master {
            master.set(ha_address);
        }
    }

    fn order_topics(&self, topics: &BTreeSet<String>) {
        let changed: Vec<TopicConfig> = {
            let meta = self.handle.meta();
            topics
                .iter()
                .filter_map(|name| meta.topics.get(name.as_str()))
                .filter(|topic| !topic.config.order)
                .map(|topic| TopicConfig {
                    order: true,
                    ..topic.config.clone()
                })
                .collect()
        };
        for config in changed {
            let command = ShardRequest::Meta(Box::new(MetaCommand::PutTopic(config)));
            self.handle.call(0, command, |_| {});
        }
    }
}

/// Prints the boot lines of what is ready, and tells the service manager.
pub fn announce(config: &Config, roles: Roles) {
    if roles.has_namesrv() {
        print(&boot::namesrv_line(config));
    }
    if roles.has_broker() {
        print(&boot::broker_line(config));
    }
    if roles == Roles::Standalone {
        print(&boot::standalone_help(config));
    }
    supervisor::serving();
}
