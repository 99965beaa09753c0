//! A broker whose role the controller decides (`enableControllerMode`): master, slave, and back, in one process.
//!
//! A thread with an executor of its own runs the **agent** for as long as the process lives: it takes an id, registers, sends
//! heartbeats, hears who is the master, and tells the controller who is in sync. The main thread runs the node in the role of
//! the moment; when the role changes, the node drains, stops its logs and starts again in the other role, as a restart by hand
//! would do it. Source in RocketMQ: `ReplicasManager`.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::app::node::{self, RunError};
use crate::app::replication::{MasterAddress, read_secret};
use crate::app::shutdown::{Phase, Shutdown};
use crate::base::config::value::BrokerRole;
use crate::base::config::{Config, Roles};
use crate::client::{ClientError, RemotingClient};
use crate::ha::control::Control;
use crate::ha::handshake::Secret;
use crate::io::body::Body;
use crate::io::env::Env;
use crate::io::process::sleepless_ns;
use crate::io::ring::{Executor, Placement, RingEnv};
use crate::server::Handler;
use crate::server::connection::{Connection, Responder};
use crate::wire::ha::{Nonce, Side, proof, proof_is_right};
use crate::wire::remoting::code::{request, response};
use crate::wire::remoting::command::{Command, Outgoing};
use crate::wire::remoting::controller::{HELLO, PROVE, SyncStateSet, hex, unhex};
use crate::wire::remoting::json;

/// File in the store's directory: which broker of its group this is.
const IDENTITY: &str = "ringmq.replica";
/// How often roles and in-sync sets are looked at.
const TICK: Duration = Duration::from_millis(10);
/// Pause before the next controller is tried.
const PAUSE: Duration = Duration::from_millis(100);
/// A change of the in-sync set is agreed on by then, or asked for again.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(4);
/// How long a node that could not start waits for its next try.
const RETRY: Duration = Duration::from_millis(500);

/// What the node is started as.
#[derive(Clone)]
pub struct Life {
    pub control: Arc<Control>,
    /// Epoch of a master; 0 of a slave.
    pub master_epoch: u32,
    /// Epoch of the group as it is heard of now, for registrations.
    pub group_epoch: u32,
    /// The in-sync set at the election and its epoch.
    pub in_sync: (BTreeSet<u64>, u32),
    /// Where the master takes slaves.
    pub master: MasterAddress,
}

/// What the controller said last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Word {
    epoch: u32,
    master: Option<u64>,
    master_address: String,
    in_sync: BTreeSet<u64>,
    in_sync_epoch: u32,
}

/// What this broker is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// Nobody has said.
    Unknown,
    Master(u32),
    Slave,
}

impl Word {
    fn role_of(&self, id: u64) -> Wanted {
        match self.master {
            _ if id == 0 => Wanted::Unknown,
            Some(master) if master == id => Wanted::Master(self.epoch),
            Some(_) => Wanted::Slave,
            // Nobody is the master: whoever has a store can be read from.
            None => Wanted::Unknown,
        }
    }
}

/// Between the agent and the main thread.
struct Board {
    control: Arc<Control>,
    master: MasterAddress,
    word: Mutex<Word>,
    changed: Condvar,
    /// The node has ended for good: the agent says good-bye.
    is_over: AtomicBool,
}

impl Board {
    fn word(&self) -> MutexGuard<'_, Word> {
        // It is whole between any two statements.
        self.word.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wanted(&self) -> Wanted {
        self.word().role_of(self.control.id())
    }

    /// The controller has spoken.
    fn hear(&self, word: Word) {
        let mut known = self.word();
        if word.epoch < known.epoch || word == *known {
            return;
        }
        let own = self.control.id();
        if word.epoch > known.epoch || word.master != known.master {
            tracing::info!(
                master = word.master,
                epoch = word.epoch,
                own,
                "the controller says who is the master"
            );
        }
        self.control.hear_epoch(word.epoch);
        if word.master == Some(own) && word.epoch == self.control.master_epoch() {
            self.control
                .on_committed(word.in_sync.clone(), word.in_sync_epoch);
        } else if word.master != Some(own) && !word.master_address.is_empty() {
            self.master.set(&word.master_address);
        }
        *known = word;
        drop(known);
        self.changed.notify_all();
    }
}

/// Runs a broker in the roles that the controller gives it, until it is told to stop.
pub fn run(config: &Arc<Config>, shutdown: &Shutdown) -> Result<(), RunError> {
    let secret = read_secret(&config.store.ha_secret_file).map_err(RunError::Failed)?;
    std::fs::create_dir_all(&config.store.root)
        .map_err(|error| RunError::Failed(format!("{}: {error}", config.store.root.display())))?;
    let board = Arc::new(Board {
        control: Control::new(Box::new(sleepless_ns)),
        master: MasterAddress::default(),
        word: Mutex::default(),
        changed: Condvar::new(),
        is_over: AtomicBool::new(false),
    });
    let agent = {
        let (config, board) = (config.clone(), board.clone());
        Executor::spawn("controller", Placement::Unbound, move || async move {
            let env = RingEnv::new();
            let agent = Agent::new(env, config, secret, board);
            agent.live().await;
        })
        .map_err(|error| RunError::Start(error.to_string()))?
    };
    let result = live(config, shutdown, &board);
    // No answer leaves any more, so nobody has to wait for the lease.
    board.control.resign();
    board.is_over.store(true, Ordering::Release);
    let _ = agent.join();
    result
}

/// One life after the other.
fn live(config: &Arc<Config>, shutdown: &Shutdown, board: &Arc<Board>) -> Result<(), RunError> {
    let mut is_first = true;
    loop {
        let Some(role) = wait_for_role(shutdown, board) else {
            return Ok(());
        };
        let id = board.control.id();
        let mut own = Config::clone(config);
        let master_epoch = match role {
            Wanted::Master(epoch) => {
                own.broker.role = BrokerRole::SyncMaster;
                own.broker.broker_id = 0;
                epoch
            }
            Wanted::Slave | Wanted::Unknown => {
                own.broker.role = BrokerRole::Slave;
                own.broker.broker_id = id;
                0
            }
        };
        let word = board.word().clone();
        let life = Life {
            control: board.control.clone(),
            master_epoch,
            group_epoch: word.epoch,
            in_sync: (word.in_sync, word.in_sync_epoch),
            master: board.master.clone(),
        };
        tracing::info!(role = ?role, id, "the broker starts in this role");
        board.control.restarts();
        let stop = Shutdown::new();
        let is_change = Arc::new(AtomicBool::new(false));
        let watch = watch_role(role, board, shutdown, &stop, &is_change)
            .map_err(|error| RunError::Start(error.to_string()))?;
        let announce = is_first;
        let result = node::start_node_with(
            Arc::new(own),
            Roles::Broker,
            stop.clone(),
            Some(life),
            move |config, roles| {
                if announce {
                    node::announce(config, roles);
                }
            },
        );
        is_first = false;
        // It may have ended by itself.
        stop.request(Phase::Draining);
        let _ = watch.join();
        match result {
            Err(error) if !is_change.load(Ordering::Acquire) => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "the broker did not end its role well");
                std::thread::sleep(RETRY);
            }
            Ok(()) => {}
        }
        if shutdown.phase() >= Phase::Draining {
            return Ok(());
        }
    }
}

/// The role to start in; nothing when the process is to stop.
fn wait_for_role(shutdown: &Shutdown, board: &Board) -> Option<Wanted> {
    let mut word = board.word();
    loop {
        if shutdown.phase() >= Phase::Draining {
            return None;
        }
        match word.role_of(board.control.id()) {
            Wanted::Unknown => {}
            role => return Some(role),
        }
        let waited = board.changed.wait_timeout(word, TICK);
        word = waited.unwrap_or_else(PoisonError::into_inner).0;
    }
}

/// Ends the node when the process is to stop, when the role changes, or when a log has to be opened anew.
fn watch_role(
    role: Wanted,
    board: &Arc<Board>,
    shutdown: &Shutdown,
    stop: &Shutdown,
    is_change: &Arc<AtomicBool>,
) -> io::Result<std::thread::JoinHandle<()>> {
    let (board, shutdown) = (board.clone(), shutdown.clone());
    let (stop, is_change) = (stop.clone(), is_change.clone());
    std::thread::Builder::new()
        .name("role".to_owned())
        .spawn(move || {
            while stop.phase() == Phase::Running {
                if shutdown.phase() >= Phase::Draining {
                    stop.request(Phase::Draining);
                    return;
                }
                let wanted = board.wanted();
                let is_other = wanted != role && wanted != Wanted::Unknown;
                if is_other || board.control.wants_restart() {
                    tracing::info!(from = ?role, to = ?wanted, "the role changes");
                    is_change.store(true, Ordering::Release);
                    stop.request(Phase::Draining);
                    return;
                }
                std::thread::sleep(TICK);
            }
        })
}

/// Which broker of its group this is, durable in the store's directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Identity {
    cluster: String,
    broker_name: String,
    broker_id: u64,
    check_code: String,
}

impl Identity {
    fn read(path: &Path) -> io::Result<Option<Self>> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let identity = serde_json::from_slice(&bytes)?;
        Ok(Some(identity))
    }

    /// Writes it durably under a name.
    fn write(&self, path: &Path) -> io::Result<()> {
        let mut file = std::fs::File::create(path)?;
        file.write_all(&json::to_standard_vec(self))?;
        file.sync_all()?;
        match path.parent() {
            Some(directory) => std::fs::File::open(directory)?.sync_all(),
            None => Ok(()),
        }
    }
}

/// Why the controller did not do what it was asked.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("code {code}: {remark}")]
    Refused { code: i32, remark: String },
    #[error(
        "this store was a slave's, and the controller has no master for its group: start the broker that was the master, or make this \
         one the master with `ringmq cluster elect`"
    )]
    WasSlave,
    #[error("no controller of controllerAddr leads at the moment: {0}")]
    NoLeader(String),
    #[error(
        "it did not prove that it knows the secret: haSecretFile has to have the same content on brokers and controllers"
    )]
    Secret,
}

/// Hears what the controller says of its own accord.
struct Ear(Arc<Board>);

impl Handler for Ear {
    fn handle(&self, request: Command, responder: Responder) {
        if request.code == request::NOTIFY_BROKER_ROLE_CHANGED {
            self.0.hear(word_of(&request));
            return responder.send(Outgoing::success(), Body::Empty);
        }
        let remark = format!(" request type {} not supported", request.code);
        let refusal = Outgoing::error(response::REQUEST_CODE_NOT_SUPPORTED, remark);
        responder.send(refusal, Body::Empty);
    }

    fn closed(&self, _connection: &Rc<Connection>) {}
}

fn word_of(command: &Command) -> Word {
    let number = |name| command.int(name).ok().flatten();
    let set: SyncStateSet = json::from_slice(&command.body).unwrap_or_default();
    Word {
        epoch: number("masterEpoch").unwrap_or(0).clamp(0, u32::MAX.into()) as u32,
        master: number("masterBrokerId").and_then(|id| u64::try_from(id).ok()),
        master_address: command
            .text("masterHaAddress")
            .unwrap_or_default()
            .into_owned(),
        in_sync: set
            .sync_state_set
            .iter()
            .filter_map(|id| u64::try_from(*id).ok())
            .collect(),
        in_sync_epoch: set.sync_state_set_epoch.max(0) as u32,
    }
}

/// See the module's page.
struct Agent {
    env: RingEnv,
    config: Arc<Config>,
    secret: Secret,
    board: Arc<Board>,
    leader: RefCell<Option<Rc<RemotingClient>>>,
    /// Which address is tried next.
    next: Cell<usize>,
    identity: RefCell<Option<Identity>>,
    is_registered: Cell<bool>,
    /// This process has been made, or found, what it is: a master of an earlier life needs a new epoch first.
    has_asked: Cell<bool>,
    told: RefCell<String>,
    /// Epoch of the last heartbeat: a new master wants its first lease at once.
    told_epoch: Cell<u32>,
}

impl Agent {
    fn new(env: RingEnv, config: Arc<Config>, secret: Secret, board: Arc<Board>) -> Rc<Self> {
        Rc::new(Self {
            env,
            config,
            secret,
            board,
            leader: RefCell::default(),
            next: Cell::new(0),
            identity: RefCell::default(),
            is_registered: Cell::new(false),
            has_asked: Cell::new(false),
            told: RefCell::default(),
            told_epoch: Cell::new(0),
        })
    }

    async fn live(self: Rc<Self>) {
        {
            let agent = self.clone();
            self.env.spawn(async move { agent.keep_sets().await });
        }
        let period = Duration::from_millis(self.config.broker.heartbeat_ms);
        loop {
            let begun_ns = self.env.now_ns();
            let is_over = self.board.is_over.load(Ordering::Acquire);
            let result = self.turn(is_over).await;
            if is_over {
                return;
            }
            let pause = match result {
                Ok(()) => {
                    if !self.told.take().is_empty() {
                        tracing::info!("the controller answers again");
                    }
                    period
                }
                Err(error) => {
                    let text = error.to_string();
                    if *self.told.borrow() != text {
                        tracing::warn!(
                            error = text,
                            "the controller does not do its part; it is tried again"
                        );
                        *self.told.borrow_mut() = text;
                    }
                    let is_answer = matches!(&error, AskError::WasSlave)
                        || matches!(&error, AskError::Refused { code, .. } if *code != response::CONTROLLER_NOT_LEADER);
                    if !is_answer {
                        self.leader.take();
                    }
                    PAUSE
                }
            };
            // Until the next one is due, or the end.
            while !self.board.is_over.load(Ordering::Acquire)
                && self.board.control.master_epoch() == self.told_epoch.get()
                && self.env.now_ns() - begun_ns < pause.as_nanos() as u64
            {
                self.env.sleep(TICK).await;
            }
        }
    }

    /// Whatever is next: an id, a registration, a role, a heartbeat.
    async fn turn(&self, is_over: bool) -> Result<(), AskError> {
        if is_over && !self.is_registered.get() {
            return Ok(());
        }
        let identity = self.identity().await?;
        if !self.is_registered.get() {
            self.register(&identity).await?;
        }
        self.heartbeat(&identity, is_over).await?;
        match self.has_asked.get() || is_over {
            true => Ok(()),
            false => self.ask_for_role(&identity).await,
        }
    }

    fn call_timeout(&self) -> Duration {
        Duration::from_millis(self.config.broker.controller_timeout_ms / 2)
    }

    /// The connection to the controllers' leader.
    async fn leader(&self) -> Result<Rc<RemotingClient>, AskError> {
        let known = self.leader.borrow().clone();
        if let Some(client) = known.filter(|client| client.is_open()) {
            return Ok(client);
        }
        let addresses = &self.config.broker.controller_addresses.0;
        let mut why = "none answers".to_owned();
        for _ in 0..addresses.len() {
            let at = self.next.get();
            self.next.set((at + 1) % addresses.len());
            let found = async {
                let client = self.connect(&addresses[at]).await?;
                let metadata = self
                    .call(
                        &client,
                        Outgoing::request(request::CONTROLLER_GET_METADATA_INFO),
                        Vec::new(),
                    )
                    .await?;
                if metadata.flag("isLeader") {
                    return Ok(client);
                }
                match metadata.text("controllerLeaderAddress") {
                    Some(address) if !address.is_empty() => self.connect(&address).await,
                    _ => Err(AskError::NoLeader(format!("{} knows none", addresses[at]))),
                }
            };
            match found.await {
                Ok(client) => {
                    self.leader.replace(Some(client.clone()));
                    return Ok(client);
                }
                Err(error @ AskError::Secret) => return Err(error),
                Err(error) => why = error.to_string(),
            }
        }
        Err(AskError::NoLeader(why))
    }

    async fn connect(&self, address: &str) -> Result<Rc<RemotingClient>, AskError> {
        let ear = Rc::new(Ear(self.board.clone()));
        let client =
            RemotingClient::connect_with(&self.env, address, self.call_timeout(), ear).await?;
        if self.secret.is_empty() {
            return Ok(Rc::new(client));
        }
        let mut ours = Nonce::default();
        for half in ours.chunks_mut(8) {
            half.copy_from_slice(&self.env.random_u64().to_le_bytes());
        }
        let hello = Outgoing::request(HELLO).field("nonce", hex(&ours));
        let challenge = self.call(&client, hello, Vec::new()).await?;
        let theirs: Option<Nonce> = challenge.text("nonce").and_then(|text| unhex(&text));
        let found = challenge.text("proof").and_then(|text| unhex(&text));
        let (Some(theirs), Some(found)) = (theirs, found) else {
            return Err(AskError::Secret);
        };
        if !proof_is_right(&self.secret, Side::Controller, &ours, &theirs, &found) {
            return Err(AskError::Secret);
        }
        let proof = proof(&self.secret, Side::ControllerClient, &ours, &theirs);
        let prove = Outgoing::request(PROVE).field("proof", hex(&proof));
        self.call(&client, prove, Vec::new()).await?;
        Ok(Rc::new(client))
    }

    async fn call(
        &self,
        client: &RemotingClient,
        header: Outgoing,
        body: Vec<u8>,
    ) -> Result<Command, AskError> {
        self.call_within(client, header, body, self.call_timeout())
            .await
    }

    async fn call_within(
        &self,
        client: &RemotingClient,
        header: Outgoing,
        body: Vec<u8>,
        limit: Duration,
    ) -> Result<Command, AskError> {
        let answer = client.call(header, Bytes::from(body), limit).await?;
        if answer.code == response::SUCCESS {
            return Ok(answer);
        }
        Err(AskError::Refused {
            code: answer.code,
            remark: answer.remark.unwrap_or_default().to_string(),
        })
    }

    fn identity_path(&self) -> PathBuf {
        self.config.store.root.join(IDENTITY)
    }

    /// Who this broker is. The first time the controller gives it an id; what it applied for is durable before, so that a
    /// crash leaves no id without an owner.
    async fn identity(&self) -> Result<Identity, AskError> {
        if let Some(known) = self.identity.borrow().clone() {
            return Ok(known);
        }
        let keys = &self.config.broker;
        let (path, applied) = (
            self.identity_path(),
            self.identity_path().with_extension("new"),
        );
        let found = match Identity::read(&path)? {
            Some(known) => known,
            None => {
                let client = self.leader().await?;
                let mut wish = match Identity::read(&applied)? {
                    Some(wish) => wish,
                    None => {
                        let code = [self.env.random_u64(), self.env.random_u64()];
                        Identity {
                            cluster: keys.cluster_name.clone(),
                            broker_name: keys.broker_name.clone(),
                            broker_id: 0,
                            check_code: format!("{:016x}{:016x}", code[0], code[1]),
                        }
                    }
                };
                if wish.broker_id == 0 {
                    let ask = self.named(request::CONTROLLER_GET_NEXT_BROKER_ID);
                    let answer = self.call(&client, ask, Vec::new()).await?;
                    let next = answer.int("nextBrokerId").ok().flatten();
                    wish.broker_id = next.and_then(|id| u64::try_from(id).ok()).unwrap_or(1);
                    wish.write(&applied)?;
                }
                let apply = self
                    .named(request::CONTROLLER_APPLY_BROKER_ID)
                    .field("appliedBrokerId", wish.broker_id as i64)
                    .field("registerCheckCode", wish.check_code.clone());
                match self.call(&client, apply, Vec::new()).await {
                    Ok(_) => {}
                    Err(error @ AskError::Refused { .. }) => {
                        // Another broker was faster: the next try asks for another id.
                        std::fs::remove_file(&applied)?;
                        return Err(error);
                    }
                    Err(error) => return Err(error),
                }
                wish.write(&path)?;
                let _ = std::fs::remove_file(&applied);
                wish
            }
        };
        if found.broker_name != keys.broker_name {
            return Err(AskError::Io(io::Error::other(format!(
                "{}: this store is of group '{}', the configuration says brokerName={}",
                path.display(),
                found.broker_name,
                keys.broker_name
            ))));
        }
        self.board.control.set_id(found.broker_id);
        *self.identity.borrow_mut() = Some(found.clone());
        Ok(found)
    }

    fn named(&self, code: i32) -> Outgoing {
        let keys = &self.config.broker;
        Outgoing::request(code)
            .field("clusterName", keys.cluster_name.clone())
            .field("brokerName", keys.broker_name.clone())
    }

    async fn register(&self, identity: &Identity) -> Result<(), AskError> {
        let client = self.leader().await?;
        let header = |code| {
            self.named(code)
                .field("registerCheckCode", identity.check_code.clone())
        };
        let register = || {
            header(request::CONTROLLER_REGISTER_BROKER)
                .field("brokerId", identity.broker_id as i64)
                .field("brokerAddress", self.config.broker_address())
                .field("brokerHaAddress", self.config.replication_address())
                .field(
                    "heartbeatTimeoutMillis",
                    self.config.broker.controller_timeout_ms as i64,
                )
        };
        let answer = match self.call(&client, register(), Vec::new()).await {
            Err(AskError::Refused {
                code:
                    response::CONTROLLER_BROKER_NEED_TO_BE_REGISTERED
                    | response::CONTROLLER_BROKER_METADATA_NOT_EXIST,
                ..
            }) => {
                // The controller lost everything, or was made anew: we keep the id that we have.
                let apply = header(request::CONTROLLER_APPLY_BROKER_ID)
                    .field("appliedBrokerId", identity.broker_id as i64)
                    .field("returns", true);
                self.call(&client, apply, Vec::new()).await?;
                self.call(&client, register(), Vec::new()).await?
            }
            other => other?,
        };
        self.is_registered.set(true);
        let word = word_of(&answer);
        // A master of an earlier life has to be elected again before it is one.
        if word.master != Some(identity.broker_id) {
            self.board.hear(word);
        }
        Ok(())
    }

    /// Asks to be elected, which the controller refuses unless the group has no master, or this one, or a dead one.
    async fn ask_for_role(&self, identity: &Identity) -> Result<(), AskError> {
        let client = self.leader().await?;
        let known = self.board.word().clone();
        let (log_epoch, _) = self.board.control.log_state();
        if known.master.is_none() && known.epoch == 0 && self.was_replica() {
            return Err(AskError::WasSlave);
        }
        let elect = self
            .named(request::CONTROLLER_ELECT_MASTER)
            .field("brokerId", identity.broker_id as i64)
            .field("designateElect", false)
            .field("logEpoch", i64::from(log_epoch));
        match self
            .call_within(&client, elect, Vec::new(), CHANGE_TIMEOUT)
            .await
        {
            Ok(answer) => {
                let mut word = word_of(&answer);
                // The body of this answer is another one; who was just elected is alone in the set.
                word.in_sync = word.master.into_iter().collect();
                word.in_sync_epoch = answer
                    .int("syncStateSetEpoch")
                    .ok()
                    .flatten()
                    .unwrap_or(0)
                    .max(0) as u32;
                self.board.hear(word);
            }
            Err(AskError::Refused {
                code:
                    response::CONTROLLER_MASTER_STILL_EXIST | response::CONTROLLER_MASTER_NOT_AVAILABLE,
                ..
            }) => {}
            Err(error) => return Err(error),
        }
        self.has_asked.set(true);
        Ok(())
    }

    /// Whether any log of the store is a slave's.
    fn was_replica(&self) -> bool {
        let Ok(entries) = std::fs::read_dir(&self.config.store.root) else {
            return false;
        };
        entries.flatten().any(|entry| {
            entry.file_name().to_string_lossy().starts_with("log-")
                && entry.path().join("replica").exists()
        })
    }

    async fn heartbeat(&self, identity: &Identity, resigns: bool) -> Result<(), AskError> {
        let client = self.leader().await?;
        let control = &self.board.control;
        let (log_epoch, log_bytes) = control.log_state();
        let epoch = control.master_epoch();
        self.told_epoch.set(epoch);
        let beat = Outgoing::request(request::BROKER_HEARTBEAT)
            .field("clusterName", identity.cluster.clone())
            .field("brokerAddr", self.config.broker_address())
            .field("brokerName", identity.broker_name.clone())
            .field("brokerId", identity.broker_id as i64)
            .field("epoch", i64::from(epoch))
            .field("logEpoch", i64::from(log_epoch))
            .field("maxOffset", log_bytes as i64)
            .field("confirmOffset", log_bytes as i64)
            .field(
                "heartbeatTimeoutMillis",
                self.config.broker.controller_timeout_ms as i64,
            )
            .field(
                "electionPriority",
                i64::from(self.config.broker.election_priority),
            )
            .field("resigns", resigns);
        // The lease counts from here, however long the answer takes.
        let sent_ns = control.now_ns();
        let answer = match self.call(&client, beat, Vec::new()).await {
            Err(error @ AskError::Refused { .. }) => {
                let is_forgotten = matches!(
                    error,
                    AskError::Refused {
                        code: response::CONTROLLER_BROKER_NEED_TO_BE_REGISTERED
                            | response::CONTROLLER_BROKER_METADATA_NOT_EXIST,
                        ..
                    }
                );
                if is_forgotten {
                    self.is_registered.set(false);
                    self.has_asked.set(false);
                }
                return Err(error);
            }
            other => other?,
        };
        let lease_ms = answer.int("leaseMillis").ok().flatten().unwrap_or(0).max(0) as u64;
        if lease_ms > 0 {
            control.renew(epoch, sent_ns, lease_ms);
        }
        let word = word_of(&answer);
        let is_ours = word.master == Some(identity.broker_id);
        // Batches with a greater epoch than the election's: a store from before the controller. It needs a later one.
        if is_ours && epoch == word.epoch && log_epoch > epoch {
            self.has_asked.set(false);
        }
        if word.master.is_none() {
            self.has_asked.set(false);
        }
        self.board.hear(word);
        Ok(())
    }

    /// While this is the master: has the controller agree on who is in sync.
    async fn keep_sets(self: Rc<Self>) {
        while !self.board.is_over.load(Ordering::Acquire) {
            self.env.sleep(TICK).await;
            let control = &self.board.control;
            let epoch = control.master_epoch();
            let (log_epoch, _) = control.log_state();
            if epoch == 0 || log_epoch > epoch {
                continue;
            }
            let Some(proposal) = control.propose() else {
                continue;
            };
            let known = self.leader.borrow().clone();
            let Some(client) = known.filter(|client| client.is_open()) else {
                continue;
            };
            let body = json::to_vec(&SyncStateSet {
                sync_state_set: proposal.set.iter().map(|id| *id as i64).collect(),
                sync_state_set_epoch: proposal.set_epoch as i32,
            });
            let alter = Outgoing::request(request::CONTROLLER_ALTER_SYNC_STATE_SET)
                .field("brokerName", self.config.broker.broker_name.clone())
                .field("masterBrokerId", control.id() as i64)
                .field("masterEpoch", i64::from(epoch));
            match self.call_within(&client, alter, body, CHANGE_TIMEOUT).await {
                Ok(answer) => {
                    let word = word_of(&answer);
                    tracing::info!(in_sync = ?word.in_sync, "the controller agrees on the in-sync set");
                    if control.master_epoch() == epoch {
                        control.on_committed(word.in_sync, word.in_sync_epoch);
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, set = ?proposal.set, "the controller does not agree on the in-sync set");
                    self.env.sleep(PAUSE).await;
                }
            }
        }
    }
}
