//! A node: the executors of one process, from their start to their end.

use std::sync::Arc;

use crate::app::boot;
use crate::app::run::print;
use crate::app::shutdown::{Phase, Shutdown};
use crate::base::config::{Config, Roles};

/// Why a node ended without being asked to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("the executors of the shards cannot be started: {0}")]
    Start(String),
    #[error("{0}")]
    Failed(String),
}

/// Runs the node until it is told to stop, or until it cannot go on. The machine was checked and the store is locked.
///
/// It returns when everything has ended: at [`Phase::Draining`] no new connection and no new request is taken, what is under
/// way is answered, the broker says good-bye to its name servers; at [`Phase::Now`] all that is dropped.
pub fn start_node(config: Arc<Config>, roles: Roles, shutdown: Shutdown) -> Result<(), RunError> {
    // ---------------------------------------------------------------------------------------------------------------
    // The executors start here: one per `config.node.shards`, each with its share of `config.memory`, its listeners on
    // `config.bind_ip` with `config.server.listen_port`, `config.fast_listen_port()` and `config.namesrv.listen_port`,
    // and a task that awaits `shutdown.reached(Phase::Draining)`. `announce` is called when all ports are open and the
    // broker has offered its topics to its name servers.
    // ---------------------------------------------------------------------------------------------------------------
    tracing::warn!("no executor is wired up in this build: no port is open");
    announce(&config, roles);
    shutdown.wait(Phase::Draining);
    Ok(())
}

/// Prints the boot lines of what is ready.
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
}
