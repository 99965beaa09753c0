//! Raft between the nodes of a controller: openraft with our frames under it.
//!
//! The requests of Raft are JSON bodies of remoting commands with codes of our own, on the port that brokers use too. Whoever
//! sends one has to have proved that it knows the shared secret, or to come from loopback (see `server.rs`). One connection to
//! each other node, one request on it at a time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use openraft::error::{
    CheckIsLeaderError, ClientWriteError, InstallSnapshotError, NetworkError, RPCError, RaftError,
    RemoteError, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use openraft::{BasicNode, Raft, RaftMetrics, ServerState, SnapshotPolicy};
use serde::Serialize;
use serde::de::DeserializeOwned;

use tokio::sync::{Mutex, watch};
use tokio::time::timeout;

use crate::controller::agreement::{Agreement, NotLeader};
use crate::controller::disk::{Disk, Types};
use crate::controller::node::AGREEMENT_LIMIT;
use crate::controller::peer::{Peer, PeerError};
use crate::controller::state::{Change, Groups, Outcome};

/// Request codes of the nodes among themselves: far from RocketMQ's, and no client has reason to send one.
pub const RAFT_APPEND: i32 = 30_001;
pub const RAFT_VOTE: i32 = 30_002;
pub const RAFT_SNAPSHOT: i32 = 30_003;

/// A leader tells the others that it lives.
const HEARTBEAT_MS: u64 = 75;
/// After so long without a word from the leader another node stands for election.
const ELECTION_MS_MIN: u64 = 300;
const ELECTION_MS_MAX: u64 = 500;
/// Entries of the log before a snapshot takes their place.
const SNAPSHOT_ENTRIES: u64 = 1_000;
/// Pause before an unreachable node is tried again.
const BACKOFF: Duration = Duration::from_millis(100);

type CallError<E> = RPCError<u64, BasicNode, E>;

/// Why a node does not take part.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the Raft library refuses its configuration: {0}")]
    Config(#[from] openraft::ConfigError),
    #[error("Raft does not start: {0}")]
    Raft(String),
}

struct Connections {
    secret: Arc<[u8]>,
}

struct Connection {
    target: u64,
    peer: Peer,
}

impl RaftNetworkFactory<Types> for Connections {
    type Network = Connection;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Connection {
        Connection {
            target,
            peer: Peer::new(&node.addr, self.secret.clone()),
        }
    }
}

impl Connection {
    async fn call<Q: Serialize, A: DeserializeOwned, E>(
        &mut self,
        code: i32,
        request: &Q,
        option: &RPCOption,
    ) -> Result<A, CallError<E>>
    where
        E: std::error::Error + DeserializeOwned,
    {
        let body = serde_json::to_vec(request)
            .map_err(|error| RPCError::Network(NetworkError::new(&error)))?;
        let answer = match self.peer.call(code, body, option.hard_ttl()).await {
            Ok(answer) => answer,
            Err(error @ PeerError::Connect { .. }) => {
                return Err(RPCError::Unreachable(Unreachable::new(&error)));
            }
            Err(error) => return Err(RPCError::Network(NetworkError::new(&error))),
        };
        let result: Result<A, E> = serde_json::from_slice(&answer)
            .map_err(|error| RPCError::Network(NetworkError::new(&error)))?;
        result.map_err(|error| RPCError::RemoteError(RemoteError::new(self.target, error)))
    }
}

impl RaftNetwork<Types> for Connection {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, CallError<RaftError<u64>>> {
        self.call(RAFT_APPEND, &request, &option).await
    }

    async fn install_snapshot(
        &mut self,
        request: InstallSnapshotRequest<Types>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<u64>, CallError<RaftError<u64, InstallSnapshotError>>> {
        self.call(RAFT_SNAPSHOT, &request, &option).await
    }

    async fn vote(
        &mut self,
        request: VoteRequest<u64>,
        option: RPCOption,
    ) -> Result<VoteResponse<u64>, CallError<RaftError<u64>>> {
        self.call(RAFT_VOTE, &request, &option).await
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(BACKOFF))
    }
}

/// Starts a node of the given members, `host:port` by id.
pub async fn start(
    id: u64,
    members: &BTreeMap<u64, String>,
    disk: &Disk,
    secret: Arc<[u8]>,
) -> Result<Raft<Types>, StartError> {
    let config = openraft::Config {
        cluster_name: "ringmq-controller".to_owned(),
        heartbeat_interval: HEARTBEAT_MS,
        election_timeout_min: ELECTION_MS_MIN,
        election_timeout_max: ELECTION_MS_MAX,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_ENTRIES),
        max_in_snapshot_log_to_keep: SNAPSHOT_ENTRIES / 10,
        ..openraft::Config::default()
    };
    let config = Arc::new(config.validate()?);
    let network = Connections { secret };
    let failed = |error: &dyn std::fmt::Display| StartError::Raft(error.to_string());
    let raft = Raft::new(id, config, network, disk.clone(), disk.machine())
        .await
        .map_err(|error| failed(&error))?;
    if !raft
        .is_initialized()
        .await
        .map_err(|error| failed(&error))?
    {
        let members: BTreeMap<u64, BasicNode> = members
            .iter()
            .map(|(id, address)| (*id, BasicNode::new(address)))
            .collect();
        // Every node may do so: with the same members it is the same first entry.
        if let Err(error) = raft.initialize(members).await {
            tracing::debug!(%error, "this node was made a member by another one");
        }
    }
    Ok(raft)
}

/// What the nodes agree on, by Raft.
pub struct RaftAgreement {
    pub raft: Raft<Types>,
    disk: Disk,
    started: Instant,
    /// Of the one that watches.
    metrics: Mutex<watch::Receiver<RaftMetrics<u64, BasicNode>>>,
}

impl RaftAgreement {
    pub fn new(raft: Raft<Types>, disk: Disk) -> Self {
        Self {
            metrics: Mutex::new(raft.metrics()),
            raft,
            disk,
            started: Instant::now(),
        }
    }
}

impl Agreement for RaftAgreement {
    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    fn term(&self) -> Option<u64> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        (metrics.state == ServerState::Leader).then_some(metrics.current_term)
    }

    async fn lead(&self) -> Result<(), NotLeader> {
        match timeout(AGREEMENT_LIMIT, self.raft.ensure_linearizable()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(to)))) => {
                Err(NotLeader(to.leader_id))
            }
            Ok(Err(_)) | Err(_) => Err(NotLeader(None)),
        }
    }

    async fn change(&self, change: Change) -> Result<Outcome, NotLeader> {
        match timeout(AGREEMENT_LIMIT, self.raft.client_write(change)).await {
            Ok(Ok(written)) => Ok(written.data),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to)))) => {
                Err(NotLeader(to.leader_id))
            }
            Ok(Err(_)) | Err(_) => Err(NotLeader(None)),
        }
    }

    fn groups<T>(&self, look: impl FnOnce(&Groups) -> T) -> T {
        look(&self.disk.groups())
    }

    async fn leader(&self) -> Option<u64> {
        self.raft.current_leader().await
    }

    async fn news(&self, limit: Duration) -> bool {
        let mut metrics = self.metrics.lock().await;
        !matches!(timeout(limit, metrics.changed()).await, Ok(Err(_)))
    }

    async fn answer(&self, code: i32, body: &[u8]) -> Option<Result<Vec<u8>, String>> {
        let result = match code {
            RAFT_APPEND => match serde_json::from_slice(body) {
                Ok(request) => serde_json::to_vec(&self.raft.append_entries(request).await),
                Err(error) => Err(error),
            },
            RAFT_VOTE => match serde_json::from_slice(body) {
                Ok(request) => serde_json::to_vec(&self.raft.vote(request).await),
                Err(error) => Err(error),
            },
            RAFT_SNAPSHOT => match serde_json::from_slice(body) {
                Ok(request) => serde_json::to_vec(&self.raft.install_snapshot(request).await),
                Err(error) => Err(error),
            },
            _ => return None,
        };
        Some(result.map_err(|error| error.to_string()))
    }
}
