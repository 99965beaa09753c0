//! Keys of the broker: what requests mean. RocketMQ's `BrokerConfig`.

use crate::base::config::setting::settings;
use crate::base::config::value::{
    Addresses, Bounds, BrokerRole, MessageRequestMode, MetricsExporterType,
};

settings! {
    /// What the broker reads. See the module's page.
    BrokerSettings {
        /// Name of the cluster that this broker belongs to.
        "brokerClusterName" cluster_name: String = "DefaultCluster".into(), Bounds::Any, "";
        /// Name of this broker. Routes are stored under it, so no two brokers may share one.
        "brokerName" broker_name: String = String::new(), Bounds::Any, "", found "the host's name";
        /// 0 is the master of its group, each of its slaves has a greater number of its own.
        "brokerId" broker_id: u64 = 0, Bounds::Any, "";
        /// Role in the replication group. ASYNC_MASTER: slaves follow, nobody waits for them. SYNC_MASTER: a send is
        /// acknowledged when inSyncReplicas have it. SLAVE: a copy of the master, which serves reads.
        "brokerRole" role: BrokerRole = BrokerRole::AsyncMaster, Bounds::Any, "";
        /// Address that clients are told to connect to; may be a DNS name. Every client has to reach it.
        "brokerIP1" advertised_host: String = String::new(), Bounds::Any, "",
            found "127.0.0.1 when bound to loopback, else the address of the default route";
        /// Address that replicas are told to connect to.
        "brokerIP2" replication_host: String = String::new(), Bounds::Any, "", found "brokerIP1";
        /// What may be done here: 6 read and write, 4 read only, 2 write only, 0 nothing.
        "brokerPermission" permission: u8 = 6, Bounds::Range(0, 7), "";
        /// Name servers to register with. The host of each may be a DNS name.
        "namesrvAddr" namesrv_addresses: Addresses = Addresses::default(), Bounds::Any, "",
            found "standalone registers with its own name server";
        /// How often all topics are registered with the name servers.
        "registerNameServerPeriod" register_period_ms: u64 = 30_000, Bounds::Clamp(10_000, 60_000), "ms";
        /// How long a name server may take to answer a registration.
        "registerBrokerTimeoutMills" register_timeout_ms: u64 = 24_000, Bounds::Range(100, 600_000), "ms";
        /// Register each period even if nothing has changed.
        "forceRegister" force_register: bool = true, Bounds::Any, "";
        /// Send registrations zlib-compressed.
        "compressedRegister" register_compressed: bool = false, Bounds::Any, "";

        /// A send to an unknown topic creates it.
        "autoCreateTopicEnable" auto_create_topic: bool = true, Bounds::Any, "";
        /// Queues of a topic that is created by a send; the client may ask for fewer.
        "defaultTopicQueueNums" default_topic_queues: u32 = 8, Bounds::Range(1, 1024), "queues";
        /// A topic with the cluster's name may serve as a template for new ones.
        "clusterTopicEnable" cluster_topic: bool = true, Bounds::Any, "";
        /// A topic with the broker's name may serve as a template for new ones.
        "brokerTopicEnable" broker_topic: bool = true, Bounds::Any, "";
        /// A heartbeat of an unknown consumer group creates it.
        "autoCreateSubscriptionGroup" auto_create_group: bool = true, Bounds::Any, "";
        /// The requests that create and change topics refuse the names of system topics.
        "validateSystemTopicWhenUpdateTopic" validate_system_topic: bool = true, Bounds::Any, "";
        /// Groups with system names may be created by clients.
        "enableCreateSysGroup" create_system_groups: bool = true, Bounds::Any, "";
        /// Topics may take messages of any type, whatever their attribute `message.type` says.
        "enableMixedMessageType" mixed_message_type: bool = false, Bounds::Any, "";
        /// Deleting a topic deletes its retry topics of POP consumers.
        "clearRetryTopicWhenDeleteTopic" clear_retry_topic: bool = true, Bounds::Any, "";

        /// Make the topic for the clients' trace messages.
        "traceTopicEnable" trace_topic: bool = false, Bounds::Any, "";
        /// Name of the topic for the clients' trace messages.
        "msgTraceTopicName" trace_topic_name: String = "RMQ_SYS_TRACE_TOPIC".into(), Bounds::Any, "";
        /// Tell clients in each answer to a send that they may trace.
        "traceOn" trace_on: bool = true, Bounds::Any, "";
        /// Region that answers to a send carry.
        "regionId" region_id: String = "DefaultRegion".into(), Bounds::Any, "";
        /// Sends are refused until this time.
        "startAcceptSendRequestTimeStamp" accept_sends_from_ms: u64 = 0, Bounds::Any, "ms since 1970";

        /// Controllers decide which broker of the group is the master; see controllerAddr.
        "enableControllerMode" controller_mode: bool = false, Bounds::Any, "";
        /// All nodes of the controller, host:port between semicolons.
        "controllerAddr" controller_addresses: Addresses = Addresses::default(), Bounds::Any, "";
        /// A master that the controller has not heard for so long is deposed; it acknowledges nothing after three quarters of it
        /// without an answer. RocketMQ has 10000.
        "controllerHeartBeatTimeoutMills" controller_timeout_ms: u64 = 1000, Bounds::Range(300, 60_000), "ms";
        /// How often the controller hears of this broker. RocketMQ has 1000.
        "brokerHeartbeatInterval" heartbeat_ms: u64 = 200, Bounds::Range(20, 20_000), "ms";
        /// Of brokers whose logs are equally long the one with the least number is elected.
        "brokerElectionPriority" election_priority: u32 = 2_147_483_647, Bounds::Range(0, 2_147_483_647), "";
        /// A master sends consumers that are far behind to a slave.
        "slaveReadEnable" slave_read: bool = false, Bounds::Any, "";
        /// A pull that finds nothing waits here for a message.
        "longPollingEnable" long_polling: bool = true, Bounds::Any, "";
        /// How long a pull waits if longPollingEnable is false.
        "shortPollingTimeMills" short_polling_ms: u64 = 1000, Bounds::Range(1, 60_000), "ms";
        /// Lite pull consumers may pull.
        "litePullMessageEnable" lite_pull: bool = true, Bounds::Any, "";
        /// Pulls that do not come from a push consumer are refused.
        "rejectPullConsumerEnable" reject_pull_consumer: bool = false, Bounds::Any, "";
        /// SQL92 subscriptions are understood. RocketMQ has this off; here it costs nothing until it is used.
        "enablePropertyFilter" property_filter: bool = true, Bounds::Any, "";
        /// Filters apply to retried messages too.
        "filterSupportRetry" filter_retry: bool = false, Bounds::Any, "";
        /// Most messages of one query by key.
        "defaultQueryMaxNum" query_messages_max: u32 = 32, Bounds::Range(1, 1024), "messages";
        /// A reset of offsets takes effect here, at the next pull, not in each client.
        "useServerSideResetOffset" server_side_reset: bool = true, Bounds::Any, "";

        /// The members of a group are told at once when one joins or leaves.
        "notifyConsumerIdsChangedEnable" notify_group_changes: bool = true, Bounds::Any, "";
        /// A client that sent no heartbeat for this long is taken out of its groups.
        "channelExpiredTimeout" client_expired_ms: u64 = 120_000, Bounds::Range(1000, 86_400_000), "ms";
        /// A consumer whose subscription differs from that of its group's members is refused, not only warned of. Ours.
        "rejectInconsistentSubscription" strict_subscriptions: bool = false, Bounds::Any, "";
        /// A subscription that no heartbeat renewed for this long is forgotten.
        "subscriptionExpiredTimeout" subscription_expired_ms: u64 = 600_000, Bounds::Range(1000, 86_400_000), "ms";
        /// Producers are kept in a table, for transactions and for the lists of the admin tools.
        "enableRegisterProducer" register_producers: bool = true, Bounds::Any, "";
        /// Lifetime of a queue lock of an orderly consumer without a renewal. In RocketMQ a Java system property.
        "rocketmq.broker.rebalance.lockMaxLiveTime" queue_lock_ms: u64 = 60_000, Bounds::Range(1000, 3_600_000), "ms";

        /// The broker assigns queues to the consumers that ask for it.
        "serverLoadBalancerEnable" server_load_balancer: bool = true, Bounds::Any, "";
        /// How consumers that ask for an assignment take messages unless set for their group.
        "defaultMessageRequestMode" request_mode: MessageRequestMode = MessageRequestMode::Pull, Bounds::Any, "";
        /// Queues that the members of a POP group share; -1 shares all.
        "defaultPopShareQueueNum" pop_share_queues: i32 = -1, Bounds::Any, "queues";
        /// The highest queue has the messages of the highest priority; false: queue 0 has.
        "priorityOrderAsc" priority_order_asc: bool = true, Bounds::Any, "";
        /// Of a topic of priorities: how many of 100 POP requests get messages that are due again before new ones.
        "popFromRetryProbabilityForPriority" priority_retry_percent: u8 = 0, Bounds::Range(0, 100), "percent";
        /// POP requests that may wait on one queue.
        "popPollingSize" pop_polling_per_queue_max: u32 = 1024, Bounds::Range(1, 1_000_000), "requests";
        /// POP requests that may wait in all.
        "maxPopPollingSize" pop_polling_max: u64 = 100_000, Bounds::Range(1, 10_000_000), "requests";
        /// Queues and groups on which POP requests may wait.
        "popPollingMapSize" pop_polling_queues_max: u64 = 100_000, Bounds::Range(1, 10_000_000), "queues";
        /// Waiting POP requests look again after this time even if nothing woke them.
        "popLongPollingForceNotifyInterval" pop_force_notify_ms: u64 = 800, Bounds::Range(10, 60_000), "ms";
        /// Queues of the revive topic, whose number is part of each POP receipt.
        "reviveQueueNum" revive_queues: u32 = 8, Bounds::Range(1, 1024), "queues";
        /// A POP group that starts at the end starts at 0 when the first message is still in memory.
        "initPopOffsetByCheckMsgInMem" pop_init_offset_by_memory: bool = true, Bounds::Any, "";
        /// Share of POP requests that look at the retry topic first.
        "popFromRetryProbability" pop_from_retry_percent: u8 = 20, Bounds::Range(0, 100), "percent";
        /// Retries of POP consumers go to `%RETRY%group+topic`, not `%RETRY%group_topic`.
        "enableRetryTopicV2" pop_retry_topic_v2: bool = false, Bounds::Any, "";
        /// The older retry topics of POP consumers are read too.
        "retrieveMessageFromPopRetryTopicV1" pop_read_retry_topic_v1: bool = true, Bounds::Any, "";
        /// Retried messages reach POP consumers under the name of the retry topic.
        "popResponseReturnActualRetryTopic" pop_actual_retry_topic: bool = false, Bounds::Any, "";

        /// A member of a consumer group of the native protocol that was silent for so long owns no queue any more. Members send
        /// a heartbeat five times as often, and every 3 s at least. After a start no queue moves in such groups for as long: lower it by restarts
        /// while no members are connected.
        "nativeSessionTimeoutMillis" native_session_ms: u64 = 10_000, Bounds::Range(1_000, 300_000), "ms";

        /// Transactional sends are refused.
        "rejectTransactionMessage" reject_transactions: bool = false, Bounds::Any, "";
        /// Age at which an open transaction is checked first.
        "transactionTimeOut" transaction_timeout_ms: u64 = 6000, Bounds::Range(1, 86_400_000), "ms";
        /// Checks after which an open transaction is given up.
        "transactionCheckMax" transaction_checks_max: u32 = 15, Bounds::Range(1, 10_000), "checks";
        /// How often open transactions are looked at.
        "transactionCheckInterval" transaction_check_period_ms: u64 = 30_000, Bounds::Range(100, 86_400_000), "ms";

        /// The answers of request-reply are stored in the reply topic too.
        "storeReplyMessageEnable" store_replies: bool = true, Bounds::Any, "";
        /// Delayed messages may be recalled by their handle.
        "recallMessageEnable" recall: bool = false, Bounds::Any, "";
        /// A recall is taken even while the broker is not writeable.
        "allowRecallWhenBrokerNotWriteable" recall_when_not_writeable: bool = true, Bounds::Any, "";

        /// How metrics are offered: PROM at a port of their own, or DISABLE.
        "metricsExporterType" metrics_exporter: MetricsExporterType = MetricsExporterType::Prom, Bounds::Any, "";
        /// Port of the metrics, of /healthz and /readyz; 0 is none.
        "metricsPromExporterPort" metrics_port: u16 = 5557, Bounds::Any, "";
        /// Address that the port of the metrics is opened on.
        "metricsPromExporterHost" metrics_host: String = String::new(), Bounds::Any, "", found "bindAddress";
        /// Labels that every metric gets besides its own, such as zone:a,rack:7.
        "metricsLabel" metrics_labels: String = String::new(), Bounds::Any, "";

        /// Keys that the update requests of the admin tools may not change, between semicolons.
        "configBlackList" config_black_list: String = "configBlackList;brokerConfigPath;configStorePath;kvConfigPath".into(), Bounds::Any, "";
    }
}
