//! Configuration: RocketMQ's keys with defaults, units and bounds; an unknown key is an error that names the nearest.
//!
//! [`Config`] is made once by [`load`] from a file, the environment and flags, in this order of increasing precedence, and
//! never changes. Each key of RocketMQ is honoured (the tables in `broker.rs`, `store.rs`, `namesrv.rs`, `server.rs`; ours are
//! in `node.rs`), known and without effect (a warning that says why, `foreign.rs`), or refused because ignoring it would break
//! a promise. All problems are reported together. This file touches neither disk nor environment: `app` hands both in.

mod broker;
mod controller;
mod foreign;
mod load;
pub mod memory;
mod namesrv;
mod node;
pub mod properties;
mod server;
mod setting;
mod store;
pub mod value;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

pub use broker::BrokerSettings;
pub use controller::ControllerSettings;
pub use load::{Machine, Sources, env_name, load};
pub use memory::MemoryShares;
pub use namesrv::NamesrvSettings;
pub use node::NodeSettings;
pub use server::ServerSettings;
pub use setting::Setting;
pub use store::StoreSettings;
use value::MetricsExporterType;

/// What a process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Roles {
    Namesrv,
    Broker,
    /// Both in one process.
    Standalone,
    /// A node of the controller: neither of them.
    Controller,
}

impl Roles {
    pub fn has_namesrv(self) -> bool {
        matches!(self, Self::Namesrv | Self::Standalone)
    }

    pub fn has_broker(self) -> bool {
        matches!(self, Self::Broker | Self::Standalone)
    }
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Default,
    /// Found on this machine or for this role, because nothing was set.
    Found,
    File {
        path: PathBuf,
        line: usize,
    },
    /// The name of the environment variable.
    Environment(String),
    /// The flag as it was written.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Found => f.write_str("found here"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(flag) => f.write_str(flag),
        }
    }
}

/// Everything that a process was told, or found out at its start. Immutable.
#[derive(Clone, Debug)]
pub struct Config {
    pub roles: Roles,
    pub node: NodeSettings,
    pub server: ServerSettings,
    pub broker: BrokerSettings,
    pub namesrv: NamesrvSettings,
    pub controller: ControllerSettings,
    pub store: StoreSettings,
    /// The shares of `memory` per shard.
    pub memory: MemoryShares,
    /// `bindAddress` as a number.
    pub bind_ip: IpAddr,
    /// `metricsPromExporterHost` as a number.
    pub metrics_ip: IpAddr,
    /// `brokerIP1` as a number: what message ids and stored records carry.
    pub advertised_ip: IpAddr,
    /// What an operator should read once: keys without effect, values that were moved into their bounds.
    pub warnings: Vec<Problem>,
    origins: BTreeMap<&'static str, Origin>,
}

impl Config {
    /// Port of the "VIP" listener, if it is opened.
    pub fn fast_listen_port(&self) -> Option<u16> {
        let port = self.server.listen_port.checked_sub(2)?;
        (self.server.fast_listen && port > 0).then_some(port)
    }

    /// Ports of the native protocol, one for each shard; none if they are not opened.
    pub fn native_ports(&self) -> Vec<u16> {
        match self.server.native_port {
            0 => Vec::new(),
            first => (0..self.node.shards)
                .map_while(|shard| first.checked_add(u16::try_from(shard).ok()?))
                .collect(),
        }
    }

    /// Where the metrics are offered, if they are.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        let broker = &self.broker;
        let is_on = broker.metrics_exporter == MetricsExporterType::Prom && broker.metrics_port > 0;
        is_on.then_some(SocketAddr::new(self.metrics_ip, broker.metrics_port))
    }

    /// `host:port` that routes carry for this broker.
    pub fn broker_address(&self) -> String {
        host_port(&self.broker.advertised_host, self.server.listen_port)
    }

    /// `host:port` that registrations carry for replicas.
    pub fn replication_address(&self) -> String {
        host_port(&self.broker.replication_host, self.store.replication_port)
    }

    /// Name servers between semicolons, as the boot line has them.
    pub fn namesrv_addresses_text(&self) -> String {
        value::Value::render(&self.broker.namesrv_addresses)
    }

    /// All keys with their values and origins, sorted by key.
    pub fn entries(&self) -> Vec<Entry> {
        let mut entries: Vec<_> = settings()
            .filter_map(|setting| {
                Some(Entry {
                    key: setting.key,
                    value: self.get(setting.key)?,
                    origin: self.origin(setting.key),
                })
            })
            .collect();
        entries.sort_by_key(|entry| entry.key);
        entries
    }

    /// The text of a key, in any of its spellings.
    pub fn get(&self, key: &str) -> Option<String> {
        let key = foreign::canonical(key);
        self.node
            .get(key)
            .or_else(|| self.server.get(key))
            .or_else(|| self.broker.get(key))
            .or_else(|| self.namesrv.get(key))
            .or_else(|| self.store.get(key))
            .or_else(|| self.controller.get(key))
    }

    /// Where the value of a key came from.
    pub fn origin(&self, key: &str) -> Origin {
        self.origins
            .get(foreign::canonical(key))
            .cloned()
            .unwrap_or(Origin::Default)
    }

    /// All keys as properties, sorted: the body of the admin requests that ask for them, and a file that sets the same.
    pub fn properties_text(&self) -> String {
        let mut text = String::new();
        for entry in self.entries() {
            text.push_str(&properties::render(entry.key, &entry.value));
            text.push('\n');
        }
        text
    }

    fn set(&mut self, key: &str, text: &str) -> Option<Result<Option<String>, String>> {
        self.node
            .set(key, text)
            .or_else(|| self.server.set(key, text))
            .or_else(|| self.broker.set(key, text))
            .or_else(|| self.namesrv.set(key, text))
            .or_else(|| self.store.set(key, text))
            .or_else(|| self.controller.set(key, text))
    }
}

/// One line of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: &'static str,
    pub value: String,
    pub origin: Origin,
}

/// `host:port`, with brackets around an IPv6 address.
pub fn host_port(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// Every key that means something here.
pub fn settings() -> impl Iterator<Item = &'static Setting> {
    [
        NodeSettings::SETTINGS,
        ServerSettings::SETTINGS,
        BrokerSettings::SETTINGS,
        StoreSettings::SETTINGS,
        NamesrvSettings::SETTINGS,
        ControllerSettings::SETTINGS,
    ]
    .into_iter()
    .flatten()
}

/// The class of a key.
#[derive(Clone, Copy, Debug)]
pub enum KeyClass {
    Honoured(&'static Setting),
    /// Known to RocketMQ, without effect here, and why.
    Ignored(&'static str),
    /// Harmless with one of these values, else refused, and why.
    Refused(&'static [&'static str], &'static str),
}

/// The class of a key in any of its spellings, and the spelling that the tables have. `None`: unknown.
pub fn classify(key: &str) -> Option<(&str, KeyClass)> {
    let key = foreign::canonical(key);
    if let Some(setting) = settings().find(|setting| setting.key == key) {
        return Some((key, KeyClass::Honoured(setting)));
    }
    if let Some(entry) = foreign::refused(key) {
        return Some((key, KeyClass::Refused(entry.harmless, entry.reason)));
    }
    foreign::ignored_reason(key).map(|reason| (key, KeyClass::Ignored(reason)))
}

/// Every known spelling of every known key.
fn known_keys() -> impl Iterator<Item = &'static str> {
    settings()
        .map(|setting| setting.key)
        .chain(foreign::REFUSED.iter().map(|entry| entry.key))
        .chain(foreign::IGNORED.iter().flat_map(foreign::Ignored::keys))
        .chain(foreign::ALIASES.iter().map(|(alias, _)| *alias))
}

/// The known key that is most like an unknown one, if any is like it.
pub fn nearest_key(key: &str) -> Option<&'static str> {
    let wanted = key.to_lowercase();
    let nearest = known_keys()
        .map(|known| {
            let likeness = strsim::normalized_damerau_levenshtein(&known.to_lowercase(), &wanted);
            (known, likeness)
        })
        .max_by(|(_, a), (_, b)| a.total_cmp(b))?;
    (nearest.1 >= 0.6).then_some(nearest.0)
}

/// One thing that is wrong, or worth knowing, and where it was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub origin: Option<Origin>,
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Some(origin) => write!(f, "{origin}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

/// Everything that is wrong with a configuration, one line each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", lines(.0))]
pub struct ConfigError(pub Vec<Problem>);

fn lines(problems: &[Problem]) -> String {
    let lines: Vec<_> = problems.iter().map(Problem::to_string).collect();
    lines.join("\n")
}
