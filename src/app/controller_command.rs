//! `ringmq controller`: a node of the controller, until it is told to stop.

use std::net::SocketAddr;
use std::time::Duration;

use crate::app::replication::read_secret;
use crate::app::run::print;
use crate::app::shutdown::{Phase, Shutdown};
use crate::app::supervisor;
use crate::base::config::Config;
use crate::controller::{self, ControllerOptions, node_name};

/// Runs the node. The machine was checked.
pub fn run(config: &Config, shutdown: &Shutdown) -> Result<(), String> {
    let keys = &config.controller;
    let (id, members) = keys.members()?;
    let options = ControllerOptions {
        listen: SocketAddr::new(config.bind_ip, keys.listen_port),
        group: keys.group.clone(),
        id,
        directory: keys.directory.clone(),
        unclean: keys.unclean,
        scan: Duration::from_millis(keys.scan_ms),
        secret: read_secret(&config.store.ha_secret_file)?,
        settings: config.properties_text(),
        members,
    };
    let line = format!(
        "The controller node {} serves at {}, one of {}. Brokers: enableControllerMode=true, controllerAddr={}",
        node_name(id),
        options.listen,
        options.members.len(),
        options
            .members
            .values()
            .cloned()
            .collect::<Vec<_>>()
            .join(";"),
    );
    let serving = || {
        print(&line);
        supervisor::serving();
    };
    controller::run(options, serving, shutdown.reached(Phase::Draining))
}
