//! The slave stream of a node: the port on a master, the logs that follow on a slave, and a slave's first contact.
//!
//! Core 0 of a master accepts and lets slaves prove themselves; the socket then goes to the core that runs the log. Core 0
//! alone, because a slave cannot choose the core that the kernel hands its connection to. A slave without a store asks its
//! master what to make, and waits for it as long as it takes.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::app::shutdown::{Phase, Shutdown};
use crate::base::config::Config;
use crate::base::config::value::BrokerRole;
use crate::base::limits::{HA_STRANGERS_MAX, SECTOR_BYTES};
use crate::base::offset::LOG_ID_MAX;
use crate::broker::registration::{BrokerIdentity, register_request};
use crate::client::RemotingClient;
use crate::ha::control::Control;
use crate::ha::handshake::Secret;
use crate::ha::master::{StreamTimes, let_in, serve};
use crate::ha::replica_window::ReplicaRules;
use crate::ha::slave::{SlaveOptions, ask_shape, follow, follow_retention};
use crate::io::env::Env;
use crate::io::ring::RingEnv;
use crate::io::tcp::{Listener, RingNet};
use crate::shard::message::{ShardRequest, SlaveConnection};
use crate::shard::meta::DataVersion;
use crate::shard::replication::MasterRules;
use crate::shard::{Role, Shard};
use crate::store::manifest::{FORMAT, Manifest};
use crate::wire::ha::StoreShape;
use crate::wire::remoting::code::response;

/// A secret is at least so long.
const SECRET_BYTES_MIN: usize = 16;
/// Pause after a failed accept, and between two tries to find or reach the master.
const PAUSE: Duration = Duration::from_secs(1);
/// With a controller a stream without a frame for so many heartbeat timeouts counts as broken: after a cut of the network TCP tries
/// again as late as the cut was long, and until then the group has one copy less.
const SILENCE_TIMEOUTS: u64 = 5;
/// With a controller a slave that has not got on for so many heartbeat timeouts leaves the in-sync set.
const STUCK_TIMEOUTS: u64 = 3;
/// How often the controller's election is told how far the logs of a slave are.
const LOG_STATE_PERIOD: Duration = Duration::from_millis(50);
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Where a slave's master takes slaves, as the name servers say, for all cores.
#[derive(Clone, Default)]
pub struct MasterAddress(Arc<Mutex<Option<String>>>);

impl MasterAddress {
    /// The fixed address of the configuration, if there is one.
    pub fn new(config: &Config) -> Self {
        let fixed = config.store.ha_master_address.clone();
        let fixed = (!fixed.is_empty()).then_some(fixed);
        Self(Arc::new(Mutex::new(fixed)))
    }

    pub fn get(&self) -> Option<String> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub fn set(&self, address: &str) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_deref() != Some(address) {
            tracing::info!(master = address, "the master is there");
            *known = Some(address.to_owned());
        }
    }
}

/// The secret of `haSecretFile`, empty without one.
pub fn read_secret(path: &Path) -> Result<Secret, String> {
    if path.as_os_str().is_empty() {
        return Ok(Arc::from([]));
    }
    let named = |what: String| format!("haSecretFile={}: {what}", path.display());
    let content = std::fs::read(path).map_err(|error| named(error.to_string()))?;
    let secret = content.trim_ascii();
    if secret.len() < SECRET_BYTES_MIN {
        return Err(named(format!(
            "it has {} bytes, and a secret needs at least {SECRET_BYTES_MIN}: `openssl rand -hex 32` makes one",
            secret.len()
        )));
    }
    Ok(Arc::from(secret))
}

/// What the configuration makes this broker in its group.
pub fn role(config: &Config, control: Option<Arc<Control>>) -> Role {
    let store = &config.store;
    if config.broker.role == BrokerRole::Slave {
        return Role::Slave;
    }
    Role::Master(MasterRules {
        replicas: ReplicaRules {
            waits: control.is_some()
                || config.broker.role == BrokerRole::SyncMaster && store.in_sync_replicas > 1,
            in_sync_replicas: store.in_sync_replicas,
            min_in_sync_replicas: store.min_in_sync_replicas,
            all_ack: store.all_ack_in_sync,
            gap_bytes_max: store.ha_gap_bytes_max,
            // With a controller every member of the set is waited for, so one that hangs has to leave it soon.
            stuck_ms_max: match control {
                Some(_) => store
                    .ha_stuck_ms_max
                    .min(STUCK_TIMEOUTS * config.broker.controller_timeout_ms),
                None => store.ha_stuck_ms_max,
            },
        },
        slave_timeout_ms: store.slave_timeout_ms,
        control,
    })
}

fn times(config: &Config) -> StreamTimes {
    let store = &config.store;
    let (mut heartbeat_ms, mut silence_ms) = (store.ha_heartbeat_ms, store.ha_silence_ms);
    if config.broker.controller_mode {
        let timeout_ms = config.broker.controller_timeout_ms;
        heartbeat_ms = heartbeat_ms.min(timeout_ms);
        silence_ms = silence_ms.min(SILENCE_TIMEOUTS * timeout_ms);
    }
    StreamTimes {
        heartbeat: Duration::from_millis(heartbeat_ms),
        silence: Duration::from_millis(silence_ms),
    }
}

fn shape(manifest: &Manifest) -> StoreShape {
    StoreShape {
        store_id: manifest.store_id,
        logs: u16::from(manifest.logs),
        segment_bytes: manifest.segment_bytes,
    }
}

/// The manifest of a slave's store; a new one is made like the master's, as soon as that answers.
pub async fn manifest_of_slave(
    env: &RingEnv,
    config: &Config,
    identity: &BrokerIdentity,
    secret: &Secret,
    master: &MasterAddress,
    shutdown: &Shutdown,
) -> Result<Manifest, String> {
    let root = &config.store.root;
    let read = Manifest::read(env, root).await;
    if let Some(found) = read.map_err(|error| error.to_string())? {
        return Ok(found);
    }
    let mut told = String::new();
    while shutdown.phase() == Phase::Running {
        let asked = match master.get() {
            Some(address) => Ok(address),
            None if config.broker.controller_mode => {
                Err("the controller has not said where the master is".to_owned())
            }
            None => ask_name_servers(env, config, identity).await,
        };
        let failure = match asked {
            Ok(address) => match ask_shape(env, &RingNet, &address, secret).await {
                Ok(shape) => return make_manifest(env, root, shape).await,
                Err(error) => format!("{address}: {error}"),
            },
            Err(error) => error,
        };
        if failure != told {
            tracing::warn!(error = %failure, "this slave has no store yet and its master does not answer; it is tried again");
            told = failure;
        }
        env.sleep(PAUSE).await;
    }
    Err("stopped before the master could be asked what store to make".to_owned())
}

async fn make_manifest(env: &RingEnv, root: &Path, shape: StoreShape) -> Result<Manifest, String> {
    let is_sound = (1..=u16::from(LOG_ID_MAX) + 1).contains(&shape.logs)
        && (1 << 20..=1 << 30).contains(&shape.segment_bytes)
        && shape.segment_bytes.is_multiple_of(SECTOR_BYTES as u64);
    let logs = u8::try_from(shape.logs).ok().filter(|_| is_sound);
    let Some(logs) = logs else {
        return Err(format!(
            "the master describes a store that cannot be: {shape:?}"
        ));
    };
    let manifest = Manifest {
        format: FORMAT,
        store_id: shape.store_id,
        logs,
        segment_bytes: shape.segment_bytes,
    };
    let made = Manifest::create(env, root, manifest).await;
    made.map_err(|error| error.to_string())
}

/// Where the master takes slaves: a name server says so to each slave that registers.
async fn ask_name_servers(
    env: &RingEnv,
    config: &Config,
    identity: &BrokerIdentity,
) -> Result<String, String> {
    let mut failure = "no name server is set: use haMasterAddress or namesrvAddr".to_owned();
    for address in &config.broker.namesrv_addresses.0 {
        let asked = async {
            let client = RemotingClient::connect(env, address, CALL_TIMEOUT)
                .await
                .map_err(|error| error.to_string())?;
            let (header, body) = register_request(identity, DataVersion::default(), &[]);
            let answer = client
                .call(header, body, CALL_TIMEOUT)
                .await
                .map_err(|error| error.to_string())?;
            match answer.text("haServerAddr") {
                _ if answer.code != response::SUCCESS => {
                    Err(answer.remark.unwrap_or_default().to_string())
                }
                Some(found) if !found.is_empty() => Ok(found.into_owned()),
                _ => Err(format!("it knows no master of {}", identity.broker_name)),
            }
        };
        match asked.await {
            Ok(found) => return Ok(found),
            Err(error) => failure = format!("name server {address}: {error}"),
        }
    }
    Err(failure)
}

/// What every core of a master does with a slave that core 0 lets in.
pub fn adopt_slaves(env: &RingEnv, config: &Config, shard: &Rc<Shard<RingEnv>>) {
    let (env, times, own) = (env.clone(), times(config), Rc::downgrade(shard));
    shard.handle().set_slave_handler(move |slave| {
        let Some(shard) = own.upgrade() else { return };
        let log = shard.logs().find(|log| log.id() == slave.log).cloned();
        let (Some(log), Ok(stream)) = (log, slave.stream.attach()) else {
            return;
        };
        let own = env.clone();
        env.spawn(async move {
            let stream = Rc::new(stream);
            let (id, broker_id) = (log.id(), slave.wish.broker_id);
            let end = serve(own, stream, slave.wish, log, shard, times).await;
            tracing::warn!(log = id, slave = broker_id, reason = %end, "a slave follows this log no more");
        });
    });
}

/// Opens the port for slaves, on core 0 of a master. Without a secret that is for loopback only.
pub fn serve_slaves(
    env: &RingEnv,
    config: &Config,
    manifest: &Manifest,
    secret: &Secret,
    shard: &Rc<Shard<RingEnv>>,
) -> Result<(), String> {
    let address = SocketAddr::new(config.bind_ip, config.store.replication_port);
    let needs_slaves = config.broker.role == BrokerRole::SyncMaster;
    if secret.is_empty() && !config.bind_ip.is_loopback() {
        tracing::debug!(%address, "no haSecretFile: the port for slaves stays closed");
        return Ok(());
    }
    let listener = match Listener::bind_alone(address) {
        Ok(listener) => listener,
        Err(error) if needs_slaves => {
            return Err(format!(
                "port {address} (haListenPort) cannot be opened for slaves: {error}"
            ));
        }
        Err(error) => {
            tracing::warn!(%address, %error, "slaves cannot follow this broker: their port cannot be opened; another one is set by haListenPort");
            return Ok(());
        }
    };
    let (env, shape, secret) = (env.clone(), shape(manifest), secret.clone());
    let handle = shard.handle();
    let is_elected = config.broker.controller_mode;
    env.clone().spawn(async move {
        let strangers = Rc::new(std::cell::Cell::new(0));
        loop {
            let stream = match poll_fn(|cx| listener.poll_accept(cx)).await {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::debug!(%error, "accepting a slave");
                    env.sleep(PAUSE).await;
                    continue;
                }
            };
            if strangers.get() >= HA_STRANGERS_MAX {
                continue;
            }
            strangers.set(strangers.get() + 1);
            let (own, secret, strangers) = (env.clone(), secret.clone(), strangers.clone());
            let handle = handle.clone();
            env.spawn(async move {
                let result = let_in(&own, &stream, &secret, shape, is_elected).await;
                strangers.set(strangers.get() - 1);
                match result {
                    Ok(Some((log, wish))) => {
                        let Ok(stream) = stream.detach() else { return };
                        let slave = SlaveConnection { stream, log, wish };
                        let core = handle.shard_of_log(log);
                        handle.call(core, ShardRequest::AdoptSlave(Box::new(slave)), |_| {});
                    }
                    Ok(None) => {}
                    Err(error) => {
                        tracing::warn!(peer = %stream.peer(), %error, "a connection at haListenPort is refused");
                    }
                }
            });
        }
    });
    Ok(())
}

/// Ends the life of a slave's node and begins another one, for the sake of its logs.
pub type Reopen = Arc<dyn Fn() + Send + Sync>;

/// What a slave follows its master with.
pub struct ToFollow<'a> {
    pub manifest: &'a Manifest,
    pub secret: &'a Secret,
    pub master: &'a MasterAddress,
    pub control: Option<Arc<Control>>,
    pub reopen: &'a Reopen,
}

/// Lets the logs of a slave's core follow their master, and its retention follow the master's.
pub fn follow_master(
    env: &RingEnv,
    config: &Config,
    with: ToFollow<'_>,
    shard: &Rc<Shard<RingEnv>>,
) {
    if let Some(control) = &with.control {
        let (own, shard, control) = (env.clone(), shard.clone(), control.clone());
        env.spawn(async move {
            while shard.logs().any(|log| !log.has_ended()) {
                for log in shard.logs() {
                    control.note_log(log.id(), log.epoch(), log.durable_here().0);
                }
                own.sleep(LOG_STATE_PERIOD).await;
            }
        });
    }
    for log in shard.logs() {
        let Some(progress) = shard.slave_progress(log.id()) else {
            continue;
        };
        let (master, reopen) = (with.master.clone(), with.reopen.clone());
        let options = SlaveOptions {
            broker_id: config.broker.broker_id,
            shape: shape(with.manifest),
            secret: with.secret.clone(),
            times: times(config),
            master: Rc::new(move || master.get()),
            control: with.control.clone(),
            reopen: Rc::new(move || reopen()),
        };
        let (own, log) = (env.clone(), log.clone());
        let period = Duration::from_millis(config.store.retention_period_ms);
        {
            let (own, log, progress) = (env.clone(), log.clone(), progress.clone());
            env.spawn_background(follow_retention(own, log, progress, period));
        }
        env.spawn(async move { follow(own, RingNet, log, options, progress).await });
    }
}
