//! A broker whose role the controller decides (`enableControllerMode`): master, slave, and back, in one process.
//!
//! A thread with an executor of its own runs the **agent** for as long as the process lives: it takes an id, registers, sends
//! heartbeats, hears who is the master, and tells the controller who is in sync. What it says and makes of the answers is decided
//! in `ha/agent.rs`; here are its sockets and files. The main thread runs the node in the role of the moment; when the role
//! changes, the node drains, stops its logs and starts again in the other role, as a restart by hand would do it. Source in
//! RocketMQ: `ReplicasManager`.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_lite::future::{block_on, or};

use crate::app::node::{self, RunError};
use crate::app::replication::{MasterAddress, read_secret};
use crate::app::shutdown::{Phase, Shutdown};
use crate::base::config::value::BrokerRole;
use crate::base::config::{Config, Roles};
use crate::base::doubt::Doubt;
use crate::client::{ClientError, RemotingClient};
use crate::ha::agent::{
    Agent, AgentOptions, Ask, CHANGE_TIMEOUT, Heard, Identity, Looked, Opening, PAUSE, SetKeeper,
    Step, Trouble, Wanted, Word,
};
use crate::ha::control::Control;
use crate::ha::handshake::Secret;
use crate::io::body::Body;
use crate::io::env::Env;
use crate::io::net::within;
use crate::io::process::sleepless_ns;
use crate::io::ring::{Executor, Placement, RingEnv};
use crate::server::Handler;
use crate::server::connection::{Connection, Responder};
use crate::store::commit_log::repair;
use crate::wire::ha::Nonce;
use crate::wire::remoting::code::{request, response};
use crate::wire::remoting::command::{Command, Outgoing};
use crate::wire::remoting::controller::Greeting;
use crate::wire::remoting::json;

/// File in the store's directory: which broker of its group this is.
const IDENTITY: &str = "ringmq.replica";
/// The in-sync set is looked at so often even if nothing has rung.
const LOOK: Duration = Duration::from_secs(1);
/// A disk that cannot be read so often is left to the opening of the logs, which says what is wrong with it.
const LOOKS_MAX: u32 = 20;
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
    /// Where it takes clients.
    pub master_clients: MasterAddress,
}

/// Between the agent and the main thread.
struct Board {
    control: Arc<Control>,
    heard: Arc<Heard>,
    master: MasterAddress,
    master_clients: MasterAddress,
    /// The node has ended for good: the agent says good-bye.
    is_over: AtomicBool,
}

impl Board {
    fn new() -> Arc<Self> {
        let control = Control::new(Box::new(sleepless_ns));
        let master = MasterAddress::default();
        let master_clients = MasterAddress::default();
        let (slaves, clients) = (master.clone(), master_clients.clone());
        let on_word = move |word: Option<&Word>| {
            if let Some(word) = word {
                slaves.set(&word.master_address);
                clients.set(&word.master_clients);
            }
        };
        Arc::new(Self {
            heard: Heard::new(control.clone(), Box::new(on_word)),
            control,
            master,
            master_clients,
            is_over: AtomicBool::new(false),
        })
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }
}

/// Runs a broker in the roles that the controller gives it, until it is told to stop.
pub fn run(config: &Arc<Config>, shutdown: &Shutdown) -> Result<(), RunError> {
    let secret = read_secret(&config.store.ha_secret_file).map_err(RunError::Failed)?;
    std::fs::create_dir_all(&config.store.root)
        .map_err(|error| RunError::Failed(format!("{}: {error}", config.store.root.display())))?;
    let board = Board::new();
    let agent = {
        let (config, board) = (config.clone(), board.clone());
        Executor::spawn("controller", Placement::Unbound, move || async move {
            let env = RingEnv::new();
            Driver::new(env, config, secret, board).live().await;
        })
        .map_err(|error| RunError::Start(error.to_string()))?
    };
    let result = live(config, shutdown, &board);
    // No answer leaves any more, so nobody has to wait for the lease.
    board.control.resign();
    board.is_over.store(true, Ordering::Release);
    board.control.bell().ring();
    let _ = agent.join();
    result
}

/// One life after the other.
fn live(config: &Arc<Config>, shutdown: &Shutdown, board: &Arc<Board>) -> Result<(), RunError> {
    let mut is_first = true;
    loop {
        let Some(opening) = wait_for_opening(shutdown, board) else {
            return Ok(());
        };
        let Opening {
            role,
            master_epoch,
            group_epoch,
            in_sync,
        } = opening;
        let id = board.control.id();
        let mut own = Config::clone(config);
        (own.broker.role, own.broker.broker_id) = match role {
            Wanted::Master(_) => (BrokerRole::SyncMaster, 0),
            Wanted::Slave | Wanted::Unknown => (BrokerRole::Slave, id),
        };
        let life = Life {
            control: board.control.clone(),
            master_epoch,
            group_epoch,
            in_sync,
            master: board.master.clone(),
            master_clients: board.master_clients.clone(),
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
        if board.control.has_failed() && is_change.load(Ordering::Acquire) {
            // Its disk was not to be trusted any more: whoever starts it again has looked at that.
            return Err(RunError::Failed(
                "a log of this broker took no writes any more, and another broker is the master by now".to_owned(),
            ));
        }
        if shutdown.phase() >= Phase::Draining {
            return Ok(());
        }
    }
}

/// How to open the logs; nothing when the process is to stop.
fn wait_for_opening(shutdown: &Shutdown, board: &Board) -> Option<Opening> {
    loop {
        let seen = board.control.bell().rings();
        if shutdown.phase() >= Phase::Draining {
            return None;
        }
        if let Some(opening) = board.heard.opening() {
            return Some(opening);
        }
        block_on(or(
            board.control.bell().rung(seen),
            shutdown.reached(Phase::Draining),
        ));
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
            loop {
                let seen = board.control.bell().rings();
                if stop.phase() > Phase::Running {
                    return;
                }
                if shutdown.phase() >= Phase::Draining {
                    stop.request(Phase::Draining);
                    return;
                }
                if board.heard.is_over(role) {
                    tracing::info!(from = ?role, "the role changes");
                    is_change.store(true, Ordering::Release);
                    stop.request(Phase::Draining);
                    return;
                }
                let ends = or(
                    shutdown.reached(Phase::Draining),
                    stop.reached(Phase::Draining),
                );
                block_on(or(board.control.bell().rung(seen), ends));
            }
        })
}

fn read_identity(path: &Path) -> io::Result<Option<Identity>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let identity = serde_json::from_slice(&bytes)
        .map_err(|error| io::Error::other(format!("{}: {error}", path.display())))?;
    Ok(Some(identity))
}

/// Writes it durably under a name, in the place of what is there.
fn write_identity(path: &Path, identity: &Identity) -> io::Result<()> {
    let draft = path.with_extension("draft");
    let mut file = std::fs::File::create(&draft)?;
    file.write_all(&json::to_standard_vec(identity))?;
    file.sync_all()?;
    std::fs::rename(&draft, path)?;
    match path.parent() {
        Some(directory) => std::fs::File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

/// Why the controller did not do what it was asked.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("code {code}: {remark}")]
    Refused { code: i32, remark: String },
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
            self.0.heard.hear(Word::read(&request));
            return responder.send(Outgoing::success(), Body::Empty);
        }
        let remark = format!(" request type {} not supported", request.code);
        let refusal = Outgoing::error(response::REQUEST_CODE_NOT_SUPPORTED, remark);
        responder.send(refusal, Body::Empty);
    }

    fn closed(&self, _connection: &Rc<Connection>) {}
}

/// Drives [`Agent`] and [`SetKeeper`].
struct Driver {
    env: RingEnv,
    config: Arc<Config>,
    secret: Secret,
    board: Arc<Board>,
    leader: RefCell<Option<Rc<RemotingClient>>>,
    /// Which address is tried next.
    next: Cell<usize>,
    told: RefCell<String>,
    /// How often the logs could not be looked at.
    looks: Cell<u32>,
}

impl Driver {
    fn new(env: RingEnv, config: Arc<Config>, secret: Secret, board: Arc<Board>) -> Rc<Self> {
        Rc::new(Self {
            env,
            config,
            secret,
            board,
            leader: RefCell::default(),
            next: Cell::new(0),
            told: RefCell::default(),
            looks: Cell::new(0),
        })
    }

    fn agent(&self) -> Agent {
        let keys = &self.config.broker;
        let code = [self.env.random_u64(), self.env.random_u64()];
        let options = AgentOptions {
            cluster: keys.cluster_name.clone(),
            broker_name: keys.broker_name.clone(),
            address: self.config.broker_address(),
            ha_address: self.config.replication_address(),
            timeout_ms: keys.controller_timeout_ms,
            heartbeat_ms: keys.heartbeat_ms,
            priority: keys.election_priority,
            check_code: format!("{:016x}{:016x}", code[0], code[1]),
        };
        Agent::new(options, self.board.heard.clone())
    }

    async fn live(self: Rc<Self>) {
        {
            let driver = self.clone();
            self.env.spawn(async move { driver.keep_sets().await });
        }
        let bell = self.board.control.bell();
        let mut agent = self.agent();
        let mut is_well = true;
        loop {
            let seen = bell.rings();
            if self.board.is_over() {
                agent.end();
            }
            let result = match agent.next_step() {
                Step::Over => return,
                Step::Wait { until_ns } => {
                    if is_well && !self.told.take().is_empty() {
                        tracing::info!("the controller answers again");
                    }
                    let left_ns = until_ns.saturating_sub(self.board.control.now_ns());
                    within(&self.env, Duration::from_nanos(left_ns), bell.rung(seen)).await;
                    continue;
                }
                Step::Ask(ask) => self.ask(&mut agent, ask).await,
                step => self.store(&mut agent, step).await,
            };
            is_well = result.is_ok();
            if let Err(trouble) = result {
                self.tell(&trouble);
            }
        }
    }

    fn tell(&self, trouble: &Trouble) {
        if *self.told.borrow() != trouble.text {
            tracing::warn!(
                error = trouble.text,
                "the controller does not do its part; it is tried again"
            );
            *self.told.borrow_mut() = trouble.text.clone();
        }
        if !trouble.is_answer {
            self.leader.take();
        }
    }

    async fn ask(&self, agent: &mut Agent, ask: Ask) -> Result<(), Trouble> {
        let client = match self.leader().await {
            Ok(client) => client,
            Err(error) => return agent.on_failed(error.to_string()),
        };
        let request = agent.request(ask);
        let body = Bytes::from(agent.body(ask));
        match client.call(request, body, agent.limit(ask)).await {
            Ok(answer) => agent.on_answer(&answer),
            Err(error) => agent.on_failed(error.to_string()),
        }
    }

    /// Files, which are small and few.
    async fn store(&self, agent: &mut Agent, step: Step) -> Result<(), Trouble> {
        let root = &self.config.store.root;
        let own = root.join(IDENTITY);
        let wish = own.with_extension("new");
        let done = match step {
            Step::Load => match read_identity(&own).and_then(|o| Ok((o, read_identity(&wish)?))) {
                Ok((own, wish)) => return agent.on_loaded(own, wish),
                Err(error) => Err(error),
            },
            Step::Look => match look(&self.env, root).await {
                Ok(looked) => return agent.on_looked(looked),
                Err(error) if self.looks.get() < LOOKS_MAX => {
                    self.looks.set(self.looks.get() + 1);
                    Err(error)
                }
                Err(error) => {
                    tracing::error!(%error, "a log cannot be looked at, and is taken for damaged");
                    return agent.on_looked(Looked {
                        logs: vec![(0, 0, 0, Doubt::Damaged)],
                        ..Looked::default()
                    });
                }
            },
            Step::SaveWish(identity) => write_identity(&wish, &identity),
            Step::SaveOwn(identity) => write_identity(&own, &identity).map(|()| {
                let _ = std::fs::remove_file(&wish);
            }),
            Step::DropWish => std::fs::remove_file(&wish),
            Step::Ask(_) | Step::Wait { .. } | Step::Over => Ok(()),
        };
        match done {
            Ok(()) => agent.on_saved(),
            Err(error) => agent.on_failed(error.to_string()),
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
        let greeting = Greeting::new(ours);
        let challenge = self.call(&client, greeting.hello()).await?;
        let prove = greeting.prove(&self.secret, &challenge);
        self.call(&client, prove.ok_or(AskError::Secret)?).await?;
        Ok(Rc::new(client))
    }

    async fn call(&self, client: &RemotingClient, header: Outgoing) -> Result<Command, AskError> {
        let limit = self.call_timeout();
        let answer = client.call(header, Bytes::new(), limit).await?;
        if answer.code == response::SUCCESS {
            return Ok(answer);
        }
        Err(AskError::Refused {
            code: answer.code,
            remark: answer.remark.unwrap_or_default().to_string(),
        })
    }

    /// While this is the master: has the controller agree on who is in sync.
    async fn keep_sets(self: Rc<Self>) {
        let control = &self.board.control;
        let mut keeper = SetKeeper::new(control.clone(), self.config.broker.broker_name.clone());
        while !self.board.is_over() {
            let seen = control.bell().rings();
            let Some((alter, body, proposal)) = keeper.next_proposal() else {
                within(&self.env, LOOK, control.bell().rung(seen)).await;
                continue;
            };
            let known = self.leader.borrow().clone();
            let Some(client) = known.filter(|client| client.is_open()) else {
                self.env.sleep(PAUSE).await;
                continue;
            };
            let answer = client.call(alter, Bytes::from(body), CHANGE_TIMEOUT).await;
            if !answer.is_ok_and(|answer| keeper.on_answer(&answer)) {
                tracing::debug!(set = ?proposal.set, "the controller does not agree on the in-sync set");
                self.env.sleep(PAUSE).await;
            }
        }
    }
}

/// Looks at all logs of a store before any of them is opened.
async fn look(env: &RingEnv, root: &Path) -> io::Result<Looked> {
    let looks = repair::look(env, root).await?;
    for (log, found) in &looks {
        if let Some(damage) = found.damage {
            tracing::error!(log, %damage, "this log is damaged: the broker is not elected while others of the in-sync set may have what it lacks");
        }
    }
    Ok(Looked::of(&looks))
}
