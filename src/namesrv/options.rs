//! Options of the name server and what of them may be changed over the wire.
//!
//! UPDATE_NAMESRV_CONFIG takes keys of [`CHANGEABLE`] only. RocketMQ has a list of forbidden keys instead, which let a
//! peer choose files to be written (CVE-2023-37582). What is changed here lasts until the name server stops.

use std::path::PathBuf;

use crate::namesrv::route_table::RegisterOptions;

/// RocketMQ's `NamesrvConfig`, as far as it means something here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamesrvOptions {
    pub listen_port: u16,
    /// The file of the key-value table.
    pub kv_config_path: PathBuf,
    /// Milliseconds between two looks for brokers that are silent.
    pub scan_interval_ms: u64,
    pub support_acting_master: bool,
    pub order_message_enable: bool,
    pub return_order_topic_config_to_broker: bool,
    pub enable_all_topic_list: bool,
    pub enable_topic_list: bool,
    pub notify_min_broker_id_changed: bool,
    pub need_wait_for_service: bool,
    pub wait_seconds_for_service: u64,
    pub delete_topic_with_broker_registration: bool,
}

impl Default for NamesrvOptions {
    fn default() -> Self {
        Self {
            listen_port: 9876,
            kv_config_path: PathBuf::from("kvConfig.json"),
            scan_interval_ms: 5000,
            support_acting_master: false,
            order_message_enable: false,
            return_order_topic_config_to_broker: true,
            enable_all_topic_list: true,
            enable_topic_list: true,
            notify_min_broker_id_changed: false,
            need_wait_for_service: false,
            wait_seconds_for_service: 45,
            delete_topic_with_broker_registration: false,
        }
    }
}

/// Keys that UPDATE_NAMESRV_CONFIG may set. None of them names a file, an address or a program.
pub const CHANGEABLE: [&str; 10] = [
    "deleteTopicWithBrokerRegistration",
    "enableAllTopicList",
    "enableTopicList",
    "needWaitForService",
    "notifyMinBrokerIdChanged",
    "orderMessageEnable",
    "returnOrderTopicConfigToBroker",
    "scanNotActiveBrokerInterval",
    "supportActingMaster",
    "waitSecondsForService",
];
/// Bounds of scanNotActiveBrokerInterval in milliseconds.
const SCAN_INTERVAL_MS: std::ops::RangeInclusive<u64> = 100..=600_000;
/// Bounds of waitSecondsForService.
const WAIT_SECONDS: std::ops::RangeInclusive<u64> = 0..=86_400;

/// Keys of RocketMQ that do nothing here, with what RocketMQ answers for them, so that tools find all keys.
const FOREIGN: [(&str, &str); 11] = [
    ("clientRequestThreadPoolNums", "8"),
    ("clientRequestThreadPoolQueueCapacity", "50000"),
    ("clusterTest", "false"),
    (
        "configBlackList",
        "configBlackList;configStorePath;kvConfigPath",
    ),
    ("configStorePath", ""),
    ("defaultThreadPoolNums", "16"),
    ("defaultThreadPoolQueueCapacity", "10000"),
    ("enableControllerInNamesrv", "false"),
    ("productEnvName", "center"),
    ("serverChannelMaxIdleTimeSeconds", "120"),
    ("unRegisterBrokerQueueCapacity", "3000"),
];

/// Why a change is refused. Nothing of it was applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    #[error(
        "Can not update config '{key}' over the network: only {list} can be changed; set others in the name server's configuration file",
        list = CHANGEABLE.join(", ")
    )]
    NotAllowed { key: String },
    #[error("the value '{value}' of '{key}' is not {wanted}")]
    Value {
        key: String,
        value: String,
        wanted: String,
    },
    #[error("line {number} of the configuration is '{line}', which is not key=value")]
    Syntax { number: usize, line: String },
}

impl NamesrvOptions {
    /// What the route table needs of them.
    pub fn register_options(&self) -> RegisterOptions {
        RegisterOptions {
            delete_missing_topics: self.delete_topic_with_broker_registration,
        }
    }

    /// GET_NAMESRV_CONFIG: lines `key=value`, sorted by key.
    pub fn to_properties(&self) -> String {
        let mut pairs: Vec<(&str, String)> = FOREIGN
            .iter()
            .map(|&(key, value)| (key, value.to_owned()))
            .collect();
        let path = self.kv_config_path.display().to_string();
        pairs.extend([
            (
                "deleteTopicWithBrokerRegistration",
                self.delete_topic_with_broker_registration.to_string(),
            ),
            ("enableAllTopicList", self.enable_all_topic_list.to_string()),
            ("enableTopicList", self.enable_topic_list.to_string()),
            ("kvConfigPath", path),
            ("listenPort", self.listen_port.to_string()),
            ("needWaitForService", self.need_wait_for_service.to_string()),
            (
                "notifyMinBrokerIdChanged",
                self.notify_min_broker_id_changed.to_string(),
            ),
            ("orderMessageEnable", self.order_message_enable.to_string()),
            (
                "returnOrderTopicConfigToBroker",
                self.return_order_topic_config_to_broker.to_string(),
            ),
            (
                "scanNotActiveBrokerInterval",
                self.scan_interval_ms.to_string(),
            ),
            (
                "supportActingMaster",
                self.support_acting_master.to_string(),
            ),
            (
                "waitSecondsForService",
                self.wait_seconds_for_service.to_string(),
            ),
        ]);
        pairs.sort_unstable();
        let mut text = String::new();
        for (key, value) in pairs {
            text.push_str(key);
            text.push('=');
            // A path is the only value that could hold a line end; it must not look like another key.
            text.push_str(&value.replace(['\n', '\r'], "?"));
            text.push('\n');
        }
        text
    }

    /// UPDATE_NAMESRV_CONFIG: the options after a change, or why none of it is applied.
    pub fn changed(&self, properties: &str) -> Result<Self, ChangeError> {
        let mut options = self.clone();
        for (index, line) in properties.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with(['#', '!']) {
                continue;
            }
            let (key, value) = line
                .split_once(['=', ':'])
                .ok_or_else(|| ChangeError::Syntax {
                    number: index + 1,
                    line: quoted(line),
                })?;
            options.set(key.trim(), value.trim())?;
        }
        Ok(options)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), ChangeError> {
        match key {
            "deleteTopicWithBrokerRegistration" => {
                self.delete_topic_with_broker_registration = boolean(key, value)?;
            }
            "enableAllTopicList" => self.enable_all_topic_list = boolean(key, value)?,
            "enableTopicList" => self.enable_topic_list = boolean(key, value)?,
            "needWaitForService" => self.need_wait_for_service = boolean(key, value)?,
            "notifyMinBrokerIdChanged" => self.notify_min_broker_id_changed = boolean(key, value)?,
            "orderMessageEnable" => self.order_message_enable = boolean(key, value)?,
            "returnOrderTopicConfigToBroker" => {
                self.return_order_topic_config_to_broker = boolean(key, value)?;
            }
            "scanNotActiveBrokerInterval" => {
                self.scan_interval_ms = number(key, value, SCAN_INTERVAL_MS)?;
            }
            "supportActingMaster" => self.support_acting_master = boolean(key, value)?,
            "waitSecondsForService" => {
                self.wait_seconds_for_service = number(key, value, WAIT_SECONDS)?;
            }
            _ => return Err(ChangeError::NotAllowed { key: quoted(key) }),
        }
        Ok(())
    }
}

fn quoted(text: &str) -> String {
    text.chars().take(100).collect()
}

fn boolean(key: &str, value: &str) -> Result<bool, ChangeError> {
    value
        .to_ascii_lowercase()
        .parse()
        .map_err(|_: std::str::ParseBoolError| ChangeError::Value {
            key: key.to_owned(),
            value: quoted(value),
            wanted: "true or false".to_owned(),
        })
}

fn number(
    key: &str,
    value: &str,
    range: std::ops::RangeInclusive<u64>,
) -> Result<u64, ChangeError> {
    value
        .parse()
        .ok()
        .filter(|number| range.contains(number))
        .ok_or_else(|| ChangeError::Value {
            key: key.to_owned(),
            value: quoted(value),
            wanted: format!("a number from {} to {}", range.start(), range.end()),
        })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_changeable_key_is_listed_and_can_be_changed() {
        let options = NamesrvOptions::default();
        for key in CHANGEABLE {
            let text = options.to_properties();
            let old = text
                .lines()
                .find_map(|line| line.strip_prefix(&format!("{key}=")))
                .unwrap();
            let new = match old {
                "true" => "false",
                "false" => "TRUE",
                _ => "777",
            };
            let changed = options
                .changed(&format!("# a comment\n\n{key} = {new}\r\n"))
                .unwrap();
            assert_ne!(changed, options, "{key}");
            let line = format!("{key}={}\n", new.to_lowercase());
            assert!(changed.to_properties().contains(&line), "{key}");
        }
    }

    #[test]
    fn no_other_key_can_be_changed_and_the_refusal_names_it() {
        let options = NamesrvOptions::default();
        let text = options.to_properties();
        let listed = text.lines().filter_map(|line| line.split('=').next());
        let others = listed.filter(|key| !CHANGEABLE.contains(key));
        for key in others.chain([
            "rocketmqHome",
            "configStorePathName",
            "",
            "enableTopicList2",
        ]) {
            let error = options.changed(&format!("orderMessageEnable=true\n{key}=/tmp/x\n"));
            let error = error.unwrap_err();
            assert!(
                matches!(error, ChangeError::NotAllowed { .. }),
                "{key}: {error}"
            );
            assert!(error.to_string().contains(&format!("'{key}'")), "{error}");
        }
    }

    #[test]
    fn a_value_that_is_wrong_is_refused_with_what_is_wanted() {
        let options = NamesrvOptions::default();
        for (line, wanted) in [
            (
                "supportActingMaster=yes",
                "'yes' of 'supportActingMaster' is not true or false",
            ),
            ("scanNotActiveBrokerInterval=5", "from 100 to 600000"),
            ("waitSecondsForService=-1", "from 0 to 86400"),
            ("orderMessageEnable", "line 1"),
        ] {
            let error = options.changed(line).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn the_list_of_keys_is_sorted_and_has_those_of_rocketmq() {
        let text = NamesrvOptions::default().to_properties();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.is_sorted());
        for line in [
            "listenPort=9876",
            "scanNotActiveBrokerInterval=5000",
            "clusterTest=false",
        ] {
            assert!(lines.contains(&line), "{line}");
        }
    }
}
