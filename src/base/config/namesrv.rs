//! Keys of the name server. RocketMQ's `NamesrvConfig`.

use std::path::PathBuf;

use crate::base::config::setting::settings;
use crate::base::config::value::Bounds;

settings! {
    /// What the name server reads. See the module's page.
    NamesrvSettings {
        /// Port of the name server. `ringmq namesrv` takes it from listenPort too.
        "namesrvListenPort" listen_port: u16 = 9876, Bounds::Range(1, 65535), "";
        /// File of the key-value table, in RocketMQ's JSON.
        "kvConfigPath" kv_config_path: PathBuf = PathBuf::new(), Bounds::Any, "", found "namesrv/kvConfig.json below storePathRootDir";
        /// How often brokers that are not heard of any more are looked for.
        "scanNotActiveBrokerInterval" scan_period_ms: u64 = 5000, Bounds::Range(100, 600_000), "ms";
        /// Routes carry the order configuration of a topic.
        "orderMessageEnable" order_messages: bool = false, Bounds::Any, "";
        /// The answer to a registration carries the order configuration of all topics.
        "returnOrderTopicConfigToBroker" return_order_config: bool = true, Bounds::Any, "";
        /// The list of all topics may be asked for.
        "enableAllTopicList" all_topic_list: bool = true, Bounds::Any, "";
        /// The list of a cluster's topics may be asked for.
        "enableTopicList" topic_list: bool = true, Bounds::Any, "";
        /// A group without its master is shown with its smallest id as master, for reading.
        "supportActingMaster" acting_master: bool = false, Bounds::Any, "";
        /// Brokers are told when the smallest id of their group changes.
        "notifyMinBrokerIdChanged" notify_min_broker_id: bool = false, Bounds::Any, "";
        /// Routes are refused for waitSecondsForService after the start, until brokers have registered.
        "needWaitForService" wait_for_service: bool = false, Bounds::Any, "";
        /// See needWaitForService.
        "waitSecondsForService" wait_for_service_s: u64 = 45, Bounds::Range(0, 86_400), "s";
        /// Topics that a broker does not register any more are removed.
        "deleteTopicWithBrokerRegistration" delete_unregistered_topics: bool = false, Bounds::Any, "";
    }
}
