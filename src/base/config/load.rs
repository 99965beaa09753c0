//! Sources to [`Config`]: precedence, the three classes of keys, and the defaults that depend on machine and role.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use crate::base::config::foreign::NOT_YET;
use crate::base::config::value::{Addresses, BrokerRole};
use crate::base::config::{BrokerSettings, host_port, settings};
use crate::base::config::{
    Config, ConfigError, ControllerSettings, KeyClass, NamesrvSettings, NodeSettings, Origin,
    Problem, Roles, ServerSettings, StoreSettings, classify, known_keys, memory, nearest_key,
    properties, value,
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
            controller: ControllerSettings::default(),
            store: StoreSettings::default(),
            memory: memory::MemoryShares {
                io_bytes: 0,
                tail_cache_bytes: 0,
                read_cache_bytes: 0,
                index_bytes: 0,
                connection_bytes: 0,
            },
            bind_ip: Ipv4Addr::UNSPECIFIED.into(),
            metrics_ip: Ipv4Addr::UNSPECIFIED.into(),
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
                    "listenPort" if self.config.roles == Roles::Controller => {
                        "controllerListenPort"
                    }
                    _ => setting.key,
                };
                if text.is_empty() {
                    // An empty value is how files and templates say "not set".
                    return;
                }
                if NOT_YET.contains(&field) && self.config.get(field).as_deref() != Some(text) {
                    self.warn(
                        Some(origin.clone()),
                        format!(
                            "{key} is known and checked, but this version does not act on it yet"
                        ),
                    );
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
        if !self.is_set("controllerStorePath") {
            self.found("controllerStorePath");
            self.config.controller.directory = self.config.store.root.join("controller");
        }
        if self.config.node.shards == 0 {
            self.found("shards");
            self.config.node.shards = match roles {
                Roles::Namesrv | Roles::Controller => 1,
                Roles::Standalone => (machine.cores / 2).clamp(1, STANDALONE_SHARDS_MAX),
                Roles::Broker => machine
                    .cores
                    .clamp(1, usize::from(crate::base::offset::LOG_ID_MAX) + 1),
            };
        }
        if !self.is_set("pinShards") {
            self.found("pinShards");
            self.config.node.pin_shards = roles == Roles::Broker && machine.cores >= PIN_CORES_MIN;
        }
        if self.config.store.logs == 0 {
            self.found("logs");
            self.config.store.logs = self.config.node.shards as u16;
        }
        if self.config.node.memory_bytes == 0 {
            self.found("memory");
            let most_bytes = match roles {
                Roles::Standalone => memory::STANDALONE_BYTES_MAX,
                Roles::Broker | Roles::Namesrv | Roles::Controller => memory::DEFAULT_BYTES_MAX,
            };
            self.config.node.memory_bytes =
                memory::default_budget(machine.memory_bytes, most_bytes, self.config.node.shards);
        }
        if self.config.store.replication_port == 0 {
            self.found("haListenPort");
            self.config.store.replication_port = self.config.server.listen_port.saturating_add(1);
        }
        if self.config.store.in_sync_replicas == 0 {
            self.found("inSyncReplicas");
            self.config.store.in_sync_replicas = match self.config.broker.role {
                BrokerRole::SyncMaster => 2,
                BrokerRole::AsyncMaster | BrokerRole::Slave => 1,
            };
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
        let host = self.config.broker.metrics_host.clone();
        if host.is_empty() {
            self.config.metrics_ip = self.config.bind_ip;
        } else if let Some(ip) = host.parse().ok().or_else(|| (machine.resolve)(&host)) {
            self.config.metrics_ip = ip;
        } else {
            let origin = self.config.origins.get("metricsPromExporterHost").cloned();
            self.error(
                origin,
                format!("metricsPromExporterHost={host}: no such address or host name; 0.0.0.0 binds all addresses"),
            );
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
        if self.config.roles == Roles::Controller {
            self.check_controller();
        }
        let config = &self.config;
        if !config.roles.has_broker() {
            return;
        }
        if config.broker.controller_mode {
            return self.check_controlled();
        }
        let is_slave = config.broker.role == BrokerRole::Slave;
        if is_slave != (config.broker.broker_id != 0) {
            self.error(
                self.origin_of("brokerId").or(self.origin_of("brokerRole")),
                format!(
                    "brokerRole={} and brokerId={} do not fit: a master has brokerId 0, a slave (brokerRole=SLAVE) a greater one",
                    value::Value::render(&config.broker.role),
                    config.broker.broker_id
                ),
            );
        }
        self.check_replicas();
        self.check_names();
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

    fn check_names(&mut self) {
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
    }

    /// A node of a controller: its peers, and the secret that they share.
    fn check_controller(&mut self) {
        if !self.is_set("controllerDLegerPeers") {
            self.found("controllerDLegerPeers");
            let host = self.config.broker.advertised_host.clone();
            let address = host_port(&host, self.config.controller.listen_port);
            self.config.controller.peers = format!("{}-{address}", self.config.controller.self_id);
        }
        let keys = &self.config.controller;
        let error = match keys.members() {
            Err(error) => Some(("controllerDLegerPeers", error)),
            Ok((id, members)) => {
                let is_far = members.values().any(|address| !is_loopback(address));
                let has_secret = !self.config.store.ha_secret_file.as_os_str().is_empty();
                (members.len() > 1 && is_far && !has_secret).then(|| {
                    let message = format!(
                        "node n{id} talks to nodes on other machines and needs haSecretFile, with the same content on all of them: \
                         without a shared secret anybody could vote"
                    );
                    ("controllerDLegerPeers", message)
                })
            }
        };
        if let Some((key, message)) = error {
            self.error(self.origin_of(key), message);
        }
    }

    /// A broker whose role a controller decides.
    fn check_controlled(&mut self) {
        let broker = &self.config.broker;
        let mut errors = Vec::new();
        if self.config.roles == Roles::Standalone {
            errors.push((
                "enableControllerMode",
                "enableControllerMode needs a broker of its own: `ringmq broker`".to_owned(),
            ));
        }
        if broker.controller_addresses.0.is_empty() {
            let message = "enableControllerMode=true needs controllerAddr: host:port of all controllers, between semicolons";
            errors.push(("enableControllerMode", message.to_owned()));
        }
        if broker.role == BrokerRole::Slave || broker.broker_id != 0 {
            errors.push((
                "brokerRole",
                "with enableControllerMode the controller decides about brokerRole and brokerId: remove them".to_owned(),
            ));
        }
        if broker.heartbeat_ms * 3 > broker.controller_timeout_ms {
            let message = format!(
                "brokerHeartbeatInterval={} is too long for controllerHeartBeatTimeoutMills={}: at most a third of it, or one lost \
                 heartbeat deposes the master",
                broker.heartbeat_ms, broker.controller_timeout_ms
            );
            errors.push(("brokerHeartbeatInterval", message));
        }
        let has_secret = !self.config.store.ha_secret_file.as_os_str().is_empty();
        if !has_secret && !self.config.bind_ip.is_loopback() {
            let message = "enableControllerMode between machines needs haSecretFile, with the same content on brokers and controllers: \
                without a shared secret anybody could take the place of a replica";
            errors.push(("enableControllerMode", message.to_owned()));
        }
        for (key, message) in errors {
            self.error(self.origin_of(key), message);
        }
        self.check_names();
        self.check_ports();
        self.check_segment();
    }

    fn check_replicas(&mut self) {
        let config = &self.config;
        let (store, role) = (&config.store, config.broker.role);
        if store.min_in_sync_replicas > store.in_sync_replicas && role == BrokerRole::SyncMaster {
            let message = format!(
                "minInSyncReplicas={} is more than inSyncReplicas={}: sends would be refused that nobody waits for",
                store.min_in_sync_replicas, store.in_sync_replicas
            );
            self.error(self.origin_of("minInSyncReplicas"), message);
        }
        let config = &self.config;
        let store = &config.store;
        let has_secret = !store.ha_secret_file.as_os_str().is_empty();
        if has_secret {
            return;
        }
        let waits = role == BrokerRole::SyncMaster && store.in_sync_replicas > 1;
        let host = store
            .ha_master_address
            .rsplit_once(':')
            .map(|(host, _)| host);
        let is_far = host.is_some_and(|host| {
            let host = host.trim_matches(['[', ']']);
            let is_loopback = |ip: IpAddr| ip.is_loopback();
            host != "localhost" && !host.parse().is_ok_and(is_loopback)
        });
        if waits && !config.bind_ip.is_loopback() {
            self.error(
                self.origin_of("brokerRole"),
                "a SYNC_MASTER whose slaves come from other machines needs haSecretFile: without a shared secret anybody who reaches \
                 haListenPort could read all messages and acknowledge them"
                    .to_owned(),
            );
        }
        if role == BrokerRole::Slave && is_far {
            self.error(
                self.origin_of("haMasterAddress"),
                "a slave of a master on another machine needs haSecretFile, with the same content as the master's"
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
        if config.roles.has_broker() && config.server.native_port > 0 {
            let (first, shards) = (config.server.native_port, config.node.shards);
            let last = usize::from(first) + shards - 1;
            let others = ports.iter().copied().chain(
                config
                    .roles
                    .has_namesrv()
                    .then_some(("namesrvListenPort", config.namesrv.listen_port)),
            );
            let taken = others
                .into_iter()
                .find(|(_, port)| (usize::from(first)..=last).contains(&usize::from(*port)));
            let message = match taken {
                _ if last > usize::from(u16::MAX) => Some(format!(
                    "nativePort={first} is too high: {shards} shards need the ports up to {last}"
                )),
                Some((other, port)) => Some(format!(
                    "nativePort={first} takes the ports {first} to {last} (one for each shard), and {port} is {other}: change one of them"
                )),
                None => None,
            };
            if let Some(message) = message {
                self.error(self.origin_of("nativePort"), message);
            }
        }
        let config = &self.config;
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

/// Whether `host:port` is on this machine by its text.
fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_matches(['[', ']']);
    host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// Shards of a standalone process at most: it is a first run or a test more often than a server.
const STANDALONE_SHARDS_MAX: usize = 4;
/// With fewer cores a pinned shard often waits for a thread of its clients that has its core while another is free.
const PIN_CORES_MIN: usize = 4;

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

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test may panic.
mod tests {
    use super::*;
    use crate::base::config::value::FlushDiskType;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const HOST: &str = "10.1.2.3";

    fn machine() -> Machine<'static> {
        Machine {
            host_name: Some("mq-host".into()),
            cores: 8,
            memory_bytes: Some(16 << 30),
            first_address: HOST.parse().ok(),
            in_container: false,
            resolve: &|name| (name == "mq.example.org").then(|| "10.9.9.9".parse().unwrap()),
        }
    }

    fn file(text: &str) -> Sources {
        Sources {
            file: Some(("broker.conf".into(), text.to_owned())),
            ..Sources::default()
        }
    }

    fn with_env(mut sources: Sources, name: &str, value: &str) -> Sources {
        sources.environment.push((name.into(), value.into()));
        sources
    }

    fn with_flag(mut sources: Sources, key: &str, value: &str) -> Sources {
        let flag = format!("--set {key}={value}");
        sources.flags.push((key.into(), value.into(), flag));
        sources
    }

    fn loaded(roles: Roles, sources: &Sources) -> Config {
        load(roles, sources, &machine()).unwrap()
    }

    fn refused(roles: Roles, text: &str) -> String {
        load(roles, &file(text), &machine())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn a_key_that_nothing_acts_on_yet_is_told_and_each_of_them_is_a_key() {
        for key in NOT_YET {
            assert!(
                settings().any(|setting| setting.key == *key),
                "{key} is no honoured key"
            );
        }
        let set = |value: &str| {
            let mut sources = Sources::default();
            sources.flags.push((
                "syncFlushTimeout".to_owned(),
                value.to_owned(),
                "--set".to_owned(),
            ));
            loaded(Roles::Standalone, &sources).warnings
        };
        assert_eq!(set("5000"), [], "the default changes nothing");
        assert!(
            set("6000")[0]
                .to_string()
                .contains("does not act on it yet")
        );
    }

    #[test]
    fn every_known_key_has_one_class_and_one_variable() {
        let keys: Vec<_> = known_keys().collect();
        let unique: BTreeSet<_> = keys.iter().collect();
        assert_eq!(unique.len(), keys.len(), "a key stands in two tables");
        assert!(keys.len() > 500, "{}", keys.len());
        let mut names = BTreeMap::new();
        for key in keys {
            if let Some(other) = names.insert(env_name(key), key) {
                panic!("{other} and {key} have the same variable");
            }
            assert!(classify(key).is_some(), "{key}");
        }
    }

    #[test]
    fn every_default_is_within_its_own_bounds() {
        let mut config = loaded(Roles::Standalone, &Sources::default());
        for setting in settings() {
            let text = config.get(setting.key).unwrap();
            assert_eq!(
                config.set(setting.key, &text),
                Some(Ok(None)),
                "{}",
                setting.key
            );
            assert!(setting.doc().ends_with('.'), "{}", setting.key);
        }
    }

    #[test]
    fn variables_are_named_after_their_keys() {
        for (key, name) in [
            ("brokerName", "RINGMQ_BROKER_NAME"),
            ("brokerIP1", "RINGMQ_BROKER_IP1"),
            ("namesrvAddr", "RINGMQ_NAMESRV_ADDR"),
            ("shards", "RINGMQ_SHARDS"),
            ("checkCRCOnRecover", "RINGMQ_CHECK_CRC_ON_RECOVER"),
            ("tls.server.mode", "RINGMQ_TLS_SERVER_MODE"),
        ] {
            assert_eq!(env_name(key), name);
        }
    }

    #[test]
    fn the_controller_mode_needs_to_know_where_and_leaves_the_role_to_the_controller() {
        let good = "enableControllerMode=true\ncontrollerAddr=10.0.0.1:9878;10.0.0.2:9878\nhaSecretFile=/etc/s\n";
        let config = loaded(Roles::Broker, &file(good));
        assert_eq!(config.broker.controller_addresses.0.len(), 2);
        for (more, wanted) in [
            ("brokerRole=SLAVE\nbrokerId=1", "the controller decides"),
            ("brokerHeartbeatInterval=900", "at most a third"),
            ("controllerHeartBeatTimeoutMills=100", "300 to"),
        ] {
            let text = refused(Roles::Broker, &format!("{good}{more}\n"));
            assert!(text.contains(wanted), "{text}");
        }
        let text = refused(
            Roles::Broker,
            "enableControllerMode=true\nbindAddress=0.0.0.0\n",
        );
        assert!(
            text.contains("controllerAddr") && text.contains("haSecretFile"),
            "{text}"
        );
        let text = refused(Roles::Standalone, good);
        assert!(text.contains("`ringmq broker`"), "{text}");
    }

    #[test]
    fn a_node_of_a_controller_knows_its_peers_and_shares_their_secret() {
        let one = loaded(Roles::Controller, &Sources::default());
        assert_eq!(one.controller.members().unwrap().1.len(), 1);
        let peers = "controllerDLegerPeers=n0-10.0.0.1:1;n1-10.0.0.2:1;n2-10.0.0.3:1\n";
        assert!(refused(Roles::Controller, peers).contains("haSecretFile"));
        let config = loaded(
            Roles::Controller,
            &file(&format!("{peers}listenPort=7\nhaSecretFile=/etc/s\n")),
        );
        assert_eq!(config.controller.listen_port, 7);
        assert!(
            refused(Roles::Controller, "controllerDLegerPeers=n0-a:1;n1-b:2").contains("1, 3 or 5")
        );
    }

    #[test]
    fn a_flag_counts_more_than_the_environment_and_that_more_than_the_file() {
        let sources = file("brokerName=from-file");
        let config = loaded(Roles::Broker, &sources);
        assert_eq!(config.broker.broker_name, "from-file");
        assert_eq!(config.origin("brokerName").to_string(), "broker.conf:1");

        let sources = with_env(sources, "RINGMQ_BROKER_NAME", "from-env");
        let config = loaded(Roles::Broker, &sources);
        assert_eq!(config.broker.broker_name, "from-env");

        let sources = with_flag(sources, "brokerName", "from-flag");
        let config = loaded(Roles::Broker, &sources);
        assert_eq!(config.broker.broker_name, "from-flag");
        assert_eq!(
            config.origin("brokerName").to_string(),
            "--set brokerName=from-flag"
        );
    }

    #[test]
    fn the_variable_of_rocketmq_names_the_name_servers_of_a_broker() {
        let sources = with_env(Sources::default(), "NAMESRV_ADDR", "a:1;b:2");
        let config = loaded(Roles::Broker, &sources);
        assert_eq!(config.namesrv_addresses_text(), "a:1;b:2");
        let sources = with_env(sources, "RINGMQ_NAMESRV_ADDR", "c:3");
        assert_eq!(
            loaded(Roles::Broker, &sources).namesrv_addresses_text(),
            "c:3"
        );
        let config = loaded(
            Roles::Standalone,
            &with_env(Sources::default(), "NAMESRV_ADDR", "a:1"),
        );
        assert_eq!(config.namesrv_addresses_text(), "127.0.0.1:9876");
        assert_eq!(config.warnings, [], "the variable is often set for clients");
    }

    #[test]
    fn a_broker_conf_as_people_have_it_is_taken() {
        let text = "\
# Licensed to somebody
brokerClusterName = DefaultCluster
brokerName = broker-a
brokerId = 0
deleteWhen = 04
fileReservedTime = 48
brokerRole = ASYNC_MASTER
flushDiskType = ASYNC_FLUSH
namesrvAddr=192.168.0.1:9876;192.168.0.2:9876
mapedFileSizeCommitLog=1073741824
mapedFileSizeConsumeQueue=300000
storePathRootDir=/data/store
storePathCommitLog=/data/store/commitlog
sendMessageThreadPoolNums=128
aclEnable=false
maxMessageSize=65536
brokerIP1=mq.example.org
";
        let config = loaded(Roles::Broker, &file(text));
        assert_eq!(config.store.flush, FlushDiskType::AsyncFlush);
        assert_eq!(config.store.retention_hours, 48);
        assert_eq!(config.store.segment_bytes, 1 << 30);
        assert_eq!(config.store.body_bytes_max, 65536);
        assert_eq!(config.store.root, Path::new("/data/store"));
        assert_eq!(config.broker_address(), "mq.example.org:10911");
        assert_eq!(config.advertised_ip.to_string(), "10.9.9.9");
        let warned: Vec<_> = config
            .warnings
            .iter()
            .map(|warning| warning.to_string())
            .collect();
        for (warning, line) in warned.iter().zip([11, 13, 14, 15]) {
            assert!(
                warning.starts_with(&format!("broker.conf:{line}: ")),
                "{warning}"
            );
        }
        assert_eq!(warned.len(), 4, "{warned:#?}");
        assert!(warned[2].contains("no thread pools"), "{}", warned[2]);
    }

    #[test]
    fn an_unknown_key_names_file_line_and_the_nearest_key() {
        let error = refused(
            Roles::Broker,
            "\nflushDiskTyp=SYNC_FLUSH\nbrokername=x\nzzz=1\n",
        );
        let lines: Vec<_> = error.lines().collect();
        assert_eq!(
            lines,
            [
                "broker.conf:2: unknown key flushDiskTyp; did you mean flushDiskType?",
                "broker.conf:3: unknown key brokername; did you mean brokerName?",
                "broker.conf:4: unknown key zzz; `ringmq config list` shows all keys",
            ]
        );
    }

    #[test]
    fn keys_whose_loss_would_break_a_promise_are_refused() {
        for text in [
            "aclEnable=true",
            "authenticationEnabled=TRUE",
            "tls.server.mode=enforcing",
            "enableDLegerCommitLog=true",
        ] {
            let error = refused(Roles::Broker, text);
            assert!(error.contains("is refused: "), "{error}");
            assert!(error.starts_with("broker.conf:1: "), "{error}");
        }
        loaded(
            Roles::Broker,
            &file("inSyncReplicas=1\nbrokerRole=SYNC_MASTER"),
        );
    }

    #[test]
    fn a_sync_master_waits_for_one_slave_and_roles_fit_their_ids() {
        let config = loaded(Roles::Standalone, &file("brokerRole=SYNC_MASTER"));
        assert_eq!(config.store.in_sync_replicas, 2);
        let config = loaded(Roles::Standalone, &Sources::default());
        assert_eq!(config.store.in_sync_replicas, 1);
        for text in ["brokerRole=SLAVE", "brokerId=1"] {
            let error = refused(Roles::Standalone, text);
            assert!(error.contains("do not fit"), "{error}");
        }
        let text = "brokerRole=SLAVE\nbrokerId=1\nhaMasterAddress=127.0.0.1:10912";
        loaded(Roles::Broker, &file(text));
        let error = refused(
            Roles::Standalone,
            "brokerRole=SYNC_MASTER\nminInSyncReplicas=3",
        );
        assert!(error.contains("minInSyncReplicas=3"), "{error}");
    }

    #[test]
    fn replicas_on_other_machines_need_a_secret() {
        for text in [
            "brokerRole=SYNC_MASTER",
            "brokerRole=SLAVE\nbrokerId=1\nhaMasterAddress=10.0.0.1:10912",
        ] {
            let error = refused(Roles::Broker, text);
            assert!(error.contains("haSecretFile"), "{error}");
            loaded(
                Roles::Broker,
                &file(&format!("{text}\nhaSecretFile=/etc/ringmq/ha.secret")),
            );
        }
    }

    #[test]
    fn a_wrong_value_says_what_was_expected() {
        for (text, expected) in [
            ("flushDiskType=NOW", "one of SYNC_FLUSH ASYNC_FLUSH"),
            ("listenPort=0", "1 to 65535"),
            ("autoCreateTopicEnable=yes", "true or false"),
            ("mappedFileSizeCommitLog=1000", "1 MiB to 1 GiB"),
            ("maxMessageSize=5MiB", "1 bytes to 4 MiB"),
            ("namesrvAddr=localhost", "host:port"),
            ("memory=10m", "at least"),
            ("brokerName=a b", "letters, digits"),
            ("bindAddress=no.such.host", "no such address"),
        ] {
            let error = refused(Roles::Broker, text);
            assert!(error.contains(expected), "{text}: {error}");
            assert!(error.starts_with("broker.conf:1: "), "{error}");
        }
    }

    #[test]
    fn the_name_server_has_its_port_under_both_names() {
        assert_eq!(loaded(Roles::Namesrv, &file("")).namesrv.listen_port, 9876);
        let config = loaded(Roles::Namesrv, &file("listenPort=19876"));
        assert_eq!(config.namesrv.listen_port, 19876);
        let config = loaded(
            Roles::Standalone,
            &file("listenPort=20911\nnamesrvListenPort=19876"),
        );
        assert_eq!(
            (config.server.listen_port, config.namesrv.listen_port),
            (20911, 19876)
        );
        assert_eq!(config.fast_listen_port(), Some(20909));
        assert_eq!(config.replication_address(), "127.0.0.1:20912");
        let error = refused(Roles::Standalone, "listenPort=9878");
        assert!(error.contains("same port"), "{error}");
        loaded(
            Roles::Standalone,
            &file("listenPort=9878\nfastListenEnable=false"),
        );
    }

    #[test]
    fn a_first_run_is_on_loopback_and_in_a_container_on_all_addresses() {
        let config = loaded(Roles::Standalone, &Sources::default());
        assert_eq!(config.server.bind_address, "127.0.0.1");
        assert_eq!(config.broker_address(), "127.0.0.1:10911");
        assert_eq!(config.store.root, Path::new("./ringmq-data"));
        assert_eq!(config.warnings, []);

        let inside = Machine {
            in_container: true,
            ..machine()
        };
        let config = load(Roles::Standalone, &Sources::default(), &inside).unwrap();
        assert_eq!(config.server.bind_address, "0.0.0.0");
        assert_eq!(config.broker_address(), format!("{HOST}:10911"));
        assert!(config.warnings[0].message.contains("set brokerIP1"));
        let named = with_flag(Sources::default(), "brokerIP1", "10.0.0.9");
        assert_eq!(
            load(Roles::Standalone, &named, &inside).unwrap().warnings,
            []
        );

        let config = loaded(
            Roles::Broker,
            &with_flag(Sources::default(), "namesrvAddr", "a:1"),
        );
        assert_eq!(config.server.bind_address, "0.0.0.0");
        assert_eq!(config.broker_address(), format!("{HOST}:10911"));
        assert_eq!(config.warnings, []);
    }

    #[test]
    fn an_advertised_loopback_on_open_ports_is_warned_of() {
        let sources = with_flag(file("namesrvAddr=a:1"), "brokerIP1", "127.0.0.1");
        let config = loaded(Roles::Broker, &sources);
        assert!(
            config.warnings[0]
                .message
                .contains("other machines cannot reach")
        );
        let config = loaded(
            Roles::Broker,
            &file("namesrvAddr=a:1\nbrokerIP1=later.example.org"),
        );
        assert!(
            config.warnings[0]
                .message
                .contains("cannot be resolved now")
        );
        assert_eq!(config.broker_address(), "later.example.org:10911");
    }

    #[test]
    fn a_broker_without_name_server_is_warned_of() {
        let config = loaded(Roles::Broker, &Sources::default());
        assert!(
            config.warnings[0]
                .message
                .contains("will not find this broker")
        );
    }

    #[test]
    fn sizes_follow_the_machine_and_the_role() {
        let shards = |roles| loaded(roles, &Sources::default()).node.shards;
        assert_eq!(shards(Roles::Broker), 8);
        assert_eq!(shards(Roles::Standalone), 4);
        assert_eq!(shards(Roles::Namesrv), 1);
        let pinned = |roles| loaded(roles, &Sources::default()).node.pin_shards;
        assert!(pinned(Roles::Broker) && !pinned(Roles::Standalone));
        assert!(
            !loaded(Roles::Broker, &file("pinShards=false"))
                .node
                .pin_shards
        );
        let config = loaded(Roles::Broker, &file("shards=3\nmemory=300MiB"));
        assert_eq!((config.node.shards, config.store.logs), (3, 3));
        assert_eq!(config.node.memory_bytes, 300 << 20);
        assert!(config.memory.tail_cache_bytes > 30 << 20);
    }

    #[test]
    fn a_small_segment_bounds_messages() {
        let config = loaded(Roles::Standalone, &file("mappedFileSizeCommitLog=1MiB"));
        assert!(config.store.body_bytes_max < 1 << 20);
        let error = refused(
            Roles::Standalone,
            "mappedFileSizeCommitLog=1MiB\nmaxMessageSize=1MiB",
        );
        assert!(error.contains("does not fit"), "{error}");
    }

    #[test]
    fn variables_of_kubernetes_are_not_taken_for_ours() {
        let mut sources = Sources::default();
        for name in [
            "RINGMQ_SERVICE_HOST",
            "RINGMQ_SERVICE_PORT_REMOTING",
            "RINGMQ_PORT",
            "RINGMQ_PORT_9876_TCP_ADDR",
            "RINGMQ_BROKER_PORT_10911_TCP",
        ] {
            sources = with_env(sources, name, "tcp://10.0.0.1:9876");
        }
        assert_eq!(loaded(Roles::Standalone, &sources).warnings, []);
        let config = loaded(
            Roles::Standalone,
            &with_env(sources, "RINGMQ_BROKER_NAM", "x"),
        );
        assert!(
            config.warnings[0]
                .to_string()
                .contains("the nearest is RINGMQ_BROKER_NAME")
        );
    }

    #[test]
    fn a_key_that_stands_twice_is_warned_of_and_the_last_one_counts() {
        let config = loaded(Roles::Standalone, &file("shards=1\nshards=2"));
        assert_eq!(config.node.shards, 2);
        assert!(config.warnings[0].to_string().contains("line 1"));
    }

    #[test]
    fn the_store_of_a_unit_is_where_systemd_says() {
        let of = |environment: &[(&str, &str)]| {
            let sources = environment
                .iter()
                .fold(file("namesrvAddr=a:1"), |sources, (name, value)| {
                    with_env(sources, name, value)
                });
            loaded(Roles::Broker, &sources).store.root
        };
        assert_eq!(
            of(&[("HOME", "/home/u")]),
            Path::new("/home/u/.local/share/ringmq")
        );
        assert_eq!(
            of(&[("HOME", "/h"), ("XDG_DATA_HOME", "/x")]),
            Path::new("/x/ringmq")
        );
        assert_eq!(
            of(&[("HOME", "/h"), ("STATE_DIRECTORY", "/var/lib/ringmq")]),
            Path::new("/var/lib/ringmq")
        );
        assert_eq!(of(&[]), Path::new("./ringmq-data"));
    }

    #[test]
    fn what_is_listed_sets_the_same_again() {
        let sources = with_flag(file("brokerName=b\nfileReservedTime=7"), "shards", "2");
        let config = loaded(Roles::Standalone, &sources);
        let again = loaded(Roles::Standalone, &file(&config.properties_text()));
        assert_eq!(again.properties_text(), config.properties_text());
    }

    proptest! {
        #[test]
        fn no_file_makes_the_reader_panic(text in "(([a-zA-Z.]{1,20}|brokerName|memory|shards|listenPort|messageDelayLevel|namesrvAddr|mappedFileSizeCommitLog)[=: ]?[^\n]{0,12}\n){0,8}") {
            for roles in [Roles::Namesrv, Roles::Broker, Roles::Standalone] {
                if let Ok(config) = load(roles, &file(&text), &machine()) {
                    let shares = memory::split(config.node.memory_bytes, config.node.shards);
                    prop_assert_eq!(Ok(config.memory), shares);
                }
            }
        }
    }

    #[test]
    fn metrics_are_on_where_the_broker_is_bound_and_can_be_switched_off() {
        let address = |text: &str| {
            let config = loaded(Roles::Broker, &file(text));
            config.metrics_address().map(|address| address.to_string())
        };
        assert_eq!(address("").as_deref(), Some("0.0.0.0:5557"));
        assert_eq!(
            address("bindAddress=127.0.0.1\nmetricsPromExporterPort=7").as_deref(),
            Some("127.0.0.1:7")
        );
        assert_eq!(
            address("metricsPromExporterHost=::1").as_deref(),
            Some("[::1]:5557")
        );
        assert_eq!(address("metricsExporterType=DISABLE"), None);
        assert_eq!(address("metricsPromExporterPort=0"), None);
    }
}
