//! Sources to [`Config`]: precedence, the three classes of keys, and the defaults that depend on machine and role.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use crate::base::config::value::{Addresses, BrokerRole};
use crate::base::config::{BrokerSettings, host_port, settings};
use crate::base::config::{
    Config, ConfigError, KeyClass, NamesrvSettings, NodeSettings, Origin, Problem, Roles,
    ServerSettings, StoreSettings, classify, known_keys, memory, nearest_key, properties, value,
};

/// What `app` found out about the machine.
pub struct Machine<'a> {
    pub host_name: Option<String>,
    /// Cores that the process may use.
    pub cores: usize,
    /// Memory that the process may use: of the container, else of the machine.
    pub memory_bytes: Option<u64>,
    /// The address of the default route.
    pub first_address: Option<IpAddr>,
    pub in_container: bool,
    /// Addresses of a host name.
    pub resolve: &'a dyn Fn(&str) -> Option<IpAddr>,
}

/// Where values come from, in increasing precedence.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Path and content of the file of `-c`.
    pub file: Option<(PathBuf, String)>,
    /// All variables of the environment.
    pub environment: Vec<(String, String)>,
    /// Key, value and the flag as it was written.
    pub flags: Vec<(String, String, String)>,
}

impl Sources {
    fn variable(&self, name: &str) -> Option<&str> {
        let found = self.environment.iter().rev().find(|(key, _)| key == name);
        found
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }
}

/// Prefix of the variables that set a key.
const ENV_PREFIX: &str = "RINGMQ_";
/// Variables with the prefix that are not keys: the log filter, and the file of `-c`.
const ENV_OTHER: [&str; 2] = ["RINGMQ_LOG", "RINGMQ_CONFIG"];
/// The variable that RocketMQ itself reads.
const ENV_NAMESRV: &str = "NAMESRV_ADDR";

/// The variable that sets a key: `brokerIP1` is set by `RINGMQ_BROKER_IP1`.
pub fn env_name(key: &str) -> String {
    let mut name = ENV_PREFIX.to_owned();
    let chars: Vec<char> = key.chars().collect();
    for (at, &char) in chars.iter().enumerate() {
        if !char.is_ascii_alphanumeric() {
            name.push('_');
            continue;
        }
        let after_lower = at > 0 && !chars[at - 1].is_ascii_uppercase();
        let before_lower = chars.get(at + 1).is_some_and(char::is_ascii_lowercase);
        let word_starts = at > 0
            && chars[at - 1].is_ascii_alphanumeric()
            && char.is_ascii_uppercase()
            && (after_lower || before_lower);
        if word_starts {
            name.push('_');
        }
        name.push(char.to_ascii_uppercase());
    }
    name
}

/// Variables that Kubernetes makes for a service named `ringmq...`; nobody wrote them for us.
fn made_by_kubernetes(name: &str) -> bool {
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.ends_with("_PORT")
        || name.contains("_PORT_")
}

struct Loader {
    config: Config,
    errors: Vec<Problem>,
}

/// Makes the configuration. All errors are found before any is returned.
pub fn load(roles: Roles, sources: &Sources, machine: &Machine) -> Result<Config, ConfigError> {
    let mut loader = Loader {
        config: Config {
            roles,
            node: NodeSettings::default(),
            server: ServerSettings::default(),
            broker: BrokerSettings::default(),
            namesrv: NamesrvSettings::default(),
            store: StoreSettings::default(),
            memory: memory::MemoryShares {
                io_bytes: 0,
                tail_cache_bytes: 0,
                read_cache_bytes: 0,
                index_bytes: 0,
                connection_bytes: 0,
            },
            bind_ip: Ipv4Addr::UNSPECIFIED.into(),
            advertised_ip: Ipv4Addr::LOCALHOST.into(),
            warnings: Vec::new(),
            origins: BTreeMap::new(),
        },
        errors: Vec::new(),
    };
    if let Some((path, text)) = &sources.file {
        loader.take_file(path, text);
    }
    loader.take_environment(sources);
    for (key, value, flag) in &sources.flags {
        loader.take(key, value, Origin::Flag(flag.clone()));
    }
    loader.find_defaults(sources, machine);
    loader.check();
    if loader.errors.is_empty() {
        Ok(loader.config)
    } else {
        Err(ConfigError(loader.errors))
    }
}

impl Loader {
    fn error(&mut self, origin: Option<Origin>, message: String) {
        self.errors.push(Problem { origin, message });
    }

    fn warn(&mut self, origin: Option<Origin>, message: String) {
        self.config.warnings.push(Problem { origin, message });
    }

    fn take_file(&mut self, path: &Path, text: &str) {
        let mut lines: BTreeMap<String, usize> = BTreeMap::new();
        for pair in properties::parse(text) {
            let origin = Origin::File {
                path: path.to_owned(),
                line: pair.line,
            };
            if let Some(earlier) = lines.insert(pair.key.clone(), pair.line) {
                self.warn(
                    Some(origin.clone()),
                    format!("{} stands in line {earlier} too: this one counts", pair.key),
                );
            }
            self.take(&pair.key, &pair.value, origin);
        }
    }

    fn take_environment(&mut self, sources: &Sources) {
        let by_name: BTreeMap<String, &'static str> =
            known_keys().map(|key| (env_name(key), key)).collect();
        if self.config.roles == Roles::Broker
            && let Some(value) = sources.variable(ENV_NAMESRV)
        {
            self.take(
                "namesrvAddr",
                value,
                Origin::Environment(ENV_NAMESRV.to_owned()),
            );
        }
        for (name, value) in &sources.environment {
            if !name.starts_with(ENV_PREFIX) || ENV_OTHER.contains(&name.as_str()) {
                continue;
            }
            let origin = Origin::Environment(name.clone());
            if let Some(key) = by_name.get(name) {
                self.take(key, value, origin);
            } else if !made_by_kubernetes(name) {
                // Not an error: variables come from places that a user does not control.
                let nearest = by_name
                    .keys()
                    .max_by(|a, b| strsim::jaro(a, name).total_cmp(&strsim::jaro(b, name)));
                let hint = nearest.map_or(String::new(), |nearest| {
                    format!("; the nearest is {nearest}")
                });
                self.warn(Some(origin), format!("no key has this variable{hint}"));
            }
        }
    }

    /// One key with its value, whatever its class.
    fn take(&mut self, key: &str, text: &str, origin: Origin) {
        let text = text.trim();
        let Some((canonical, class)) = classify(key) else {
            let hint = match nearest_key(key) {
                Some(nearest) => format!("; did you mean {nearest}?"),
                None => "; `ringmq config list` shows all keys".to_owned(),
            };
            return self.error(Some(origin), format!("unknown key {key}{hint}"));
        };
        match class {
            KeyClass::Ignored(reason) => {
                self.warn(Some(origin), format!("{key} does nothing here: {reason}"));
            }
            KeyClass::Refused(harmless, reason) => {
                if harmless
                    .iter()
                    .any(|value| value.eq_ignore_ascii_case(text))
                {
                    self.warn(
                        Some(origin),
                        format!("{key}={text} is how it is here anyway"),
                    );
                } else {
                    let harmless = harmless.join(" or ");
                    self.error(
                        Some(origin),
                        format!(
                            "{key}={text} is refused: {reason}; remove it or set it to {harmless}"
                        ),
                    );
                }
            }
            KeyClass::Honoured(setting) => {
                // The name server of RocketMQ has its port under the same key as the broker.
                let field = match canonical {
                    "listenPort" if self.config.roles == Roles::Namesrv => "namesrvListenPort",
                    _ => setting.key,
                };
                if text.is_empty() {
                    // An empty value is how files and templates say "not set".
                    return;
                }
                match self.config.set(field, text) {
                    Some(Ok(warning)) => {
                        self.config.origins.insert(
                            settings()
                                .find(|known| known.key == field)
                                .map_or(setting.key, |known| known.key),
                            origin.clone(),
                        );
                        if let Some(warning) = warning {
                            self.warn(Some(origin), format!("{key}: {warning}"));
                        }
                    }
                    Some(Err(expected)) => {
                        self.error(Some(origin), format!("{key}={text}: expected {expected}"));
                    }
                    None => unreachable!("a key of the tables has a field"),
                }
            }
        }
    }

    fn is_set(&self, key: &str) -> bool {
        self.config.origins.contains_key(key)
    }

    fn found(&mut self, key: &'static str) {
        self.config.origins.insert(key, Origin::Found);
    }

    fn find_defaults(&mut self, sources: &Sources, machine: &Machine) {
        let roles = self.config.roles;
        self.find_addresses(machine);
        if !self.is_set("brokerName") {
            self.found("brokerName");
            self.config.broker.broker_name = machine
                .host_name
                .clone()
                .filter(|name| !name.is_empty())
                .unwrap_or_else(|| "broker-a".to_owned());
        }
        if roles == Roles::Standalone {
            if self.is_set("namesrvAddr") {
                let origin = self.config.origins.get("namesrvAddr").cloned();
                self.warn(
                    origin,
                    "namesrvAddr does nothing here: standalone registers with its own name server; \
                     `ringmq broker` registers elsewhere"
                        .to_owned(),
                );
            }
            self.found("namesrvAddr");
            let host = match self.config.bind_ip {
                ip if ip.is_unspecified() => Ipv4Addr::LOCALHOST.to_string(),
                ip => ip.to_string(),
            };
            let address = host_port(&host, self.config.namesrv.listen_port);
            self.config.broker.namesrv_addresses = Addresses(vec![address]);
        }
        if !self.is_set("storePathRootDir") {
            self.found("storePathRootDir");
            self.config.store.root = default_root(roles, sources);
        }
        if !self.is_set("kvConfigPath") {
            self.found("kvConfigPath");
            self.config.namesrv.kv_config_path =
                self.config.store.root.join("namesrv").join("kvConfig.json");
        }
        if self.config.node.shards == 0 {
            self.found("shards");
            self.config.node.shards = match roles {
                Roles::Namesrv => 1,
                Roles::Standalone => machine.cores.clamp(1, STANDALONE_SHARDS_MAX),
                Roles::Broker => machine
                    .cores
                    .clamp(1, usize::from(crate::base::offset::LOG_ID_MAX) + 1),
            };
        }
        if self.config.store.logs == 0 {
            self.found("logs");
            self.config.store.logs = self.config.node.shards as u16;
        }
        if self.config.node.memory_bytes == 0 {
            self.found("memory");
            self.config.node.memory_bytes =
                memory::default_budget(machine.memory_bytes, self.config.node.shards);
        }
        if self.config.store.replication_port == 0 {
            self.found("haListenPort");
            self.config.store.replication_port = self.config.server.listen_port.saturating_add(1);
        }
        if !self.is_set("logLevel")
            && let Some(level) = sources.variable("RINGMQ_LOG")
        {
            self.config.node.log_level = level.to_owned();
            self.config
                .origins
                .insert("logLevel", Origin::Environment("RINGMQ_LOG".to_owned()));
        }
    }

    /// bindAddress and brokerIP1. A newcomer on a laptop gets loopback, which needs no thought and opens nothing; in a
    /// container loopback would be useless, so there all addresses are bound.
    fn find_addresses(&mut self, machine: &Machine) {
        if !self.is_set("bindAddress") {
            self.found("bindAddress");
            let inside = self.config.roles == Roles::Standalone && !machine.in_container;
            self.config.server.bind_address =
                if inside { "127.0.0.1" } else { "0.0.0.0" }.to_owned();
        }
        let bind = self.config.server.bind_address.clone();
        match bind.parse().ok().or_else(|| (machine.resolve)(&bind)) {
            Some(ip) => self.config.bind_ip = ip,
            None => {
                let origin = self.config.origins.get("bindAddress").cloned();
                self.error(
                    origin,
                    format!("bindAddress={bind}: no such address or host name; 0.0.0.0 binds all addresses"),
                );
            }
        }
        let bind_ip = self.config.bind_ip;
        if !self.is_set("brokerIP1") {
            self.found("brokerIP1");
            let ip = if bind_ip.is_unspecified() {
                machine.first_address.unwrap_or(Ipv4Addr::LOCALHOST.into())
            } else {
                bind_ip
            };
            self.config.broker.advertised_host = ip.to_string();
        }
        let host = self.config.broker.advertised_host.clone();
        match host.parse().ok().or_else(|| (machine.resolve)(&host)) {
            Some(ip) => self.config.advertised_ip = ip,
            None => {
                let fallback = machine.first_address.unwrap_or(Ipv4Addr::LOCALHOST.into());
                self.config.advertised_ip = fallback;
                let origin = self.config.origins.get("brokerIP1").cloned();
                self.warn(
                    origin,
                    format!("brokerIP1={host} cannot be resolved now: clients are told this name, message ids carry {fallback}"),
                );
            }
        }
        if !self.is_set("brokerIP2") {
            self.found("brokerIP2");
            self.config.broker.replication_host = host;
        }
        if self.config.roles.has_broker() && bind_ip.is_unspecified() {
            let advertised = self.config.advertised_ip;
            let why = if advertised.is_loopback() {
                "clients on other machines cannot reach it"
            } else if machine.in_container && !self.is_set_by_user("brokerIP1") {
                "clients outside of the container's network may not reach it"
            } else {
                return;
            };
            let shown = self.config.broker.advertised_host.clone();
            self.warn(
                None,
                format!("clients will be told to connect to {shown}: {why}; set brokerIP1 to an address or name that all of them reach"),
            );
        }
    }

    fn is_set_by_user(&self, key: &str) -> bool {
        !matches!(self.config.origins.get(key), None | Some(Origin::Found))
    }

    fn origin_of(&self, key: &str) -> Option<Origin> {
        self.is_set_by_user(key)
            .then(|| self.config.origins[key].clone())
    }

    /// What no single key can tell.
    fn check(&mut self) {
        let config = &self.config;
        let shards = config.node.shards;
        match memory::split(config.node.memory_bytes, shards) {
            Ok(shares) => self.config.memory = shares,
            Err(least) => {
                let (memory, least) = (value::size(config.node.memory_bytes), value::size(least));
                self.error(
                    self.origin_of("memory"),
                    format!("memory={memory} is too little for {shards} shards: at least {least}, or fewer shards"),
                );
            }
        }
        let config = &self.config;
        if !config.roles.has_broker() {
            return;
        }
        if config.broker.broker_id != 0 || config.broker.role == BrokerRole::Slave {
            self.error(
                self.origin_of("brokerId").or(self.origin_of("brokerRole")),
                "replicas are not built yet: brokerId has to be 0 and brokerRole a master"
                    .to_owned(),
            );
        }
        let config = &self.config;
        for (key, name) in [
            ("brokerName", &config.broker.broker_name),
            ("brokerClusterName", &config.broker.cluster_name),
        ] {
            // Both become topic names, and the name goes into receipts that are split at blanks.
            let valid = !name.is_empty()
                && name.len() <= 127
                && name
                    .chars()
                    .all(|char| char.is_ascii_alphanumeric() || "%|_-.".contains(char));
            if !valid {
                let message =
                    format!("{key}={name}: expected 1 to 127 letters, digits, %, |, _, - or .");
                let origin = self.origin_of(key);
                self.errors.push(Problem { origin, message });
            }
        }
        self.check_ports();
        self.check_segment();
        let config = &self.config;
        if config.roles == Roles::Broker && config.broker.namesrv_addresses.0.is_empty() {
            self.warn(
                None,
                "no name server is set, so clients will not find this broker: use -n HOST:9876, namesrvAddr or NAMESRV_ADDR"
                    .to_owned(),
            );
        }
    }

    fn check_ports(&mut self) {
        let config = &self.config;
        let mut ports = vec![("listenPort", config.server.listen_port)];
        if let Some(port) = config.fast_listen_port() {
            ports.push(("listenPort - 2 (fastListenEnable)", port));
        }
        if config.roles.has_namesrv() {
            let (name, port) = ("namesrvListenPort", config.namesrv.listen_port);
            if let Some((other, _)) = ports.iter().find(|(_, taken)| *taken == port) {
                let message =
                    format!("{name}={port} is the same port as {other}: change one of them");
                self.error(
                    self.origin_of("namesrvListenPort")
                        .or(self.origin_of("listenPort")),
                    message,
                );
            }
        }
    }

    /// A record has to fit into a segment: body, topic, properties and the batch around it.
    fn check_segment(&mut self) {
        const AROUND_BODY_BYTES: u64 = 128 << 10;
        let store = &self.config.store;
        let room = store.segment_bytes - AROUND_BODY_BYTES;
        if store.body_bytes_max <= room {
            return;
        }
        let segment = value::size(store.segment_bytes);
        if self.is_set_by_user("maxMessageSize") {
            let message = format!(
                "maxMessageSize={} does not fit into mappedFileSizeCommitLog={segment}: at most {room}",
                store.body_bytes_max
            );
            self.error(self.origin_of("maxMessageSize"), message);
        } else {
            self.config.store.body_bytes_max = room;
            self.found("maxMessageSize");
            self.warn(
                self.origin_of("mappedFileSizeCommitLog"),
                format!("mappedFileSizeCommitLog={segment} bounds messages to {room} bytes"),
            );
        }
    }
}

/// Shards of a standalone process at most: it is a first run or a test more often than a server.
const STANDALONE_SHARDS_MAX: usize = 4;

fn default_root(roles: Roles, sources: &Sources) -> PathBuf {
    if roles == Roles::Standalone {
        return PathBuf::from("./ringmq-data");
    }
    // systemd names the directory that a unit owns (StateDirectory=).
    if let Some(directory) = sources.variable("STATE_DIRECTORY") {
        let first = directory.split(':').next().unwrap_or(directory);
        return PathBuf::from(first);
    }
    if let Some(data) = sources.variable("XDG_DATA_HOME") {
        return Path::new(data).join("ringmq");
    }
    match sources.variable("HOME") {
        Some(home) => Path::new(home).join(".local/share/ringmq"),
        None => PathBuf::from("./ringmq-data"),
    }
}
