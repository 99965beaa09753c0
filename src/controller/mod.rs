//! `ringmq controller`: who is the master of each broker group, agreed on by Raft among 1, 3 or 5 nodes.
//!
//! `state.rs` and `live.rs` decide and are pure; `consensus.rs`, `disk.rs` and `peer.rs` are the Raft library (openraft) with its
//! frames and its file; `node.rs` answers requests and watches over masters while it is the leader, on anything that can agree
//! (`agreement.rs`: Raft, or what the simulation has in its place); `server.rs` has the port.
//! This is the one part of the process that runs on tokio, on threads of its own, because the Raft library does; nothing of it
//! runs in a broker or name server. It knows neither stores nor shards.

pub mod agreement;
pub mod consensus;
pub mod disk;
pub mod live;
pub mod node;
mod peer;
mod server;
pub mod state;

pub use server::run;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// What a node is started with.
#[derive(Clone, Debug)]
pub struct ControllerOptions {
    pub listen: SocketAddr,
    /// `controllerDLegerGroup`, for the answer to 1005.
    pub group: String,
    pub id: u64,
    /// `host:port` of all nodes by number, this one included.
    pub members: BTreeMap<u64, String>,
    pub directory: PathBuf,
    /// `enableElectUncleanMaster`.
    pub unclean: bool,
    /// How often masters are looked at.
    pub scan: Duration,
    /// Empty without one: then only loopback may change anything.
    pub secret: Arc<[u8]>,
    /// For GET_CONTROLLER_CONFIG.
    pub settings: String,
}

/// Text of a node's number, as RocketMQ's peers have it.
pub fn node_name(id: u64) -> String {
    format!("n{id}")
}
