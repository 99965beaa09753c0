//! What the broker needs of the configuration, fixed at its start. Names in the docs are RocketMQ's keys.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::base::limits::MESSAGE_BODY_BYTES_MAX;
use crate::broker::topics::{PERM_READ, PERM_WRITE};

pub use crate::broker::delay::DelayRules;
pub use crate::broker::transaction::TransactionRules;

/// See the module's page.
#[derive(Clone, Debug)]
pub struct BrokerOptions {
    /// `brokerClusterName`.
    pub cluster: Arc<str>,
    /// `brokerName`.
    pub broker: Arc<str>,
    /// `brokerId`; 0 is the master.
    pub broker_id: i64,
    /// `slaveReadEnable`: consumers that are far behind are sent to a slave.
    pub slave_read: bool,
    /// `brokerIP1` and `listenPort`: what clients connect to, and the store host of every record and message id.
    pub store_host: SocketAddr,
    /// What native clients connect to, `brokerIP1`; and the port of each core (`nativePort`), none: any port is any core's.
    pub native_host: String,
    pub native_ports: Vec<u16>,
    /// `nativeSessionTimeoutMillis`: a member of a native group that was silent for so long owns nothing.
    pub native_session_ms: u64,
    /// `regionId`.
    pub region: Arc<str>,
    /// `traceOn`: tells clients that they may send trace messages.
    pub trace_on: bool,
    /// `traceTopicEnable`: RMQ_SYS_TRACE_TOPIC exists from the start.
    pub trace_topic: bool,
    /// `brokerPermission`: read 4, write 2.
    pub permission: i32,
    /// `autoCreateTopicEnable`.
    pub auto_create_topic: bool,
    /// `autoCreateSubscriptionGroup`.
    pub auto_create_group: bool,
    /// `defaultTopicQueueNums`: queues of TBW102.
    pub default_topic_queues: u32,
    /// `maxMessageSize` in bytes: body of a message, or of a whole batch.
    pub message_bytes_max: usize,
    /// Delay levels and timers.
    pub delay: DelayRules,
    /// Transactions and their checks.
    pub transactions: TransactionRules,
    /// `recallMessageEnable`.
    pub recall: bool,
    /// `allowRecallWhenBrokerNotWriteable`.
    pub recall_when_not_writable: bool,
    /// `enablePropertyFilter`: SQL92 subscriptions are understood. RocketMQ's default is false.
    pub property_filter: bool,
    /// `rejectInconsistentSubscription`: a member that subscribes otherwise than its group is not taken.
    pub strict_subscriptions: bool,
    /// `messageIndexEnable`: messages are found by key.
    pub key_index: bool,
    /// `litePullMessageEnable`.
    pub lite_pull: bool,
    /// `longPollingEnable`: without it an empty pull is answered after `short_polling_ms`.
    pub long_polling: bool,
    /// `shortPollingTimeMills`, in milliseconds.
    pub short_polling_ms: u64,
    /// Longest time that a pull is held, whatever the client asks for, in milliseconds.
    pub suspend_ms_max: u64,
    /// `popPollingSize`: POP requests of one group that may wait for one queue.
    pub pop_polling_per_queue_max: usize,
    /// `maxPopPollingSize`: POP requests that may wait on one core.
    pub pop_polling_max: usize,
    /// `priorityOrderAsc`: the highest queue of a topic of priorities goes first, not queue 0.
    pub priority_order_asc: bool,
    /// `popFromRetryProbabilityForPriority`: of 100 pops by priority so many take what is due again before what is new.
    pub priority_retry_percent: u8,
    /// `defaultMessageRequestMode` is POP.
    pub default_mode_is_pop: bool,
    /// `defaultPopShareQueueNum`.
    pub default_pop_share_queues: i32,
    /// `serverLoadBalancerEnable`: without it everybody is assigned every queue.
    pub server_load_balancer: bool,
    /// When the broker started, milliseconds since 1970.
    pub boot_ms: u64,
    /// All configuration keys with their values as text, for GET_BROKER_CONFIG; sorted, without secrets.
    pub settings: Arc<[(String, String)]>,
}

impl BrokerOptions {
    /// The defaults of RocketMQ for a broker with these names and this address.
    pub fn new(cluster: &str, broker: &str, store_host: SocketAddr) -> Self {
        Self {
            cluster: Arc::from(cluster),
            broker: Arc::from(broker),
            broker_id: 0,
            slave_read: false,
            store_host,
            native_host: store_host.ip().to_string(),
            native_ports: Vec::new(),
            native_session_ms: 10_000,
            region: Arc::from("DefaultRegion"),
            trace_on: true,
            trace_topic: false,
            permission: PERM_READ | PERM_WRITE,
            auto_create_topic: true,
            auto_create_group: true,
            default_topic_queues: 8,
            message_bytes_max: MESSAGE_BODY_BYTES_MAX,
            delay: DelayRules::rocketmq(),
            transactions: TransactionRules::rocketmq(),
            recall: false,
            recall_when_not_writable: true,
            property_filter: true,
            strict_subscriptions: false,
            key_index: true,
            lite_pull: true,
            long_polling: true,
            short_polling_ms: 1_000,
            suspend_ms_max: 120_000,
            pop_polling_per_queue_max: 1_024,
            pop_polling_max: 100_000,
            priority_order_asc: true,
            priority_retry_percent: 0,
            default_mode_is_pop: false,
            default_pop_share_queues: -1,
            server_load_balancer: true,
            boot_ms: 0,
            settings: Arc::from([]),
        }
    }

    /// A copy of its master, which serves reads.
    pub fn is_slave(&self) -> bool {
        self.broker_id != 0
    }

    pub fn readable(&self) -> bool {
        self.permission & PERM_READ != 0
    }

    pub fn writable(&self) -> bool {
        self.permission & PERM_WRITE != 0
    }
}
