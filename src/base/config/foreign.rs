//! Keys of RocketMQ that are known but do nothing here, each with the reason; and those whose promise would be broken
//! silently if they were only warned of, so that they are refused.
//!
//! The names are those of RocketMQ's `BrokerConfig`, `MessageStoreConfig`, `NettyServerConfig`, `NettyClientConfig`,
//! `NamesrvConfig`, `ControllerConfig` and `AuthConfig`, of Java system properties that people put into these files, and of
//! older versions. The warning is worded as the end of the sentence "KEY does nothing here: ...".

/// Keys with one reason.
pub struct Ignored {
    pub reason: &'static str,
    /// Between blanks.
    keys: &'static str,
}

impl Ignored {
    pub fn keys(&self) -> impl Iterator<Item = &'static str> {
        self.keys.split_ascii_whitespace()
    }
}

/// A key that may stand in a file only with one of its harmless values.
pub struct Refused {
    pub key: &'static str,
    /// Values that change nothing.
    pub harmless: &'static [&'static str],
    pub reason: &'static str,
}

/// Keys that are read and checked but that nothing acts on yet: whoever sets one is told so. A key leaves this list in the
/// change that makes it act.
pub const NOT_YET: &[&str] = &[
    "brokerTopicEnable",
    "channelExpiredTimeout",
    "clearRetryTopicWhenDeleteTopic",
    "clusterTopicEnable",
    "compressedRegister",
    "defaultQueryMaxNum",
    "enableCreateSysGroup",
    "enableMixedMessageType",
    "enableRegisterProducer",
    "enableRetryTopicV2",
    "filterSupportRetry",
    "forceRegister",
    "initPopOffsetByCheckMsgInMem",
    "msgTraceTopicName",
    "notifyConsumerIdsChangedEnable",
    "popFromRetryProbability",
    "popLongPollingForceNotifyInterval",
    "popPollingMapSize",
    "popResponseReturnActualRetryTopic",
    "registerBrokerTimeoutMills",
    "rejectPullConsumerEnable",
    "retrieveMessageFromPopRetryTopicV1",
    "reviveQueueNum",
    "rocketmq.broker.rebalance.lockMaxLiveTime",
    "serverSocketBacklog",
    "serverSocketRcvBufSize",
    "serverSocketSndBufSize",
    "startAcceptSendRequestTimeStamp",
    "storeReplyMessageEnable",
    "subscriptionExpiredTimeout",
    "syncFlushTimeout",
    "useServerSideResetOffset",
    "validateSystemTopicWhenUpdateTopic",
];

/// Other spellings, first the one that is met, then ours.
pub const ALIASES: &[(&str, &str)] = &[
    ("mapedFileSizeCommitLog", "mappedFileSizeCommitLog"),
    ("mapedFileSizeConsumeQueue", "mappedFileSizeConsumeQueue"),
    (
        "mappedFileSizeBatchConsumeQueue",
        "mapperFileSizeBatchConsumeQueue",
    ),
    (
        "flushLeastPagesWhenWarmMappedFile",
        "flushLeastPagesWhenWarmMapedFile",
    ),
    (
        "destroyMappedFileIntervalForcibly",
        "destroyMapedFileIntervalForcibly",
    ),
    ("warmMappedFileEnable", "warmMapedFileEnable"),
    ("haSlaveFallbehindMax", "haMaxGapNotInSync"),
    ("brokerIP", "brokerIP1"),
    ("rocketmq.namesrv.addr", "namesrvAddr"),
    ("fetchNamesrvAddrByDnsLookup", "fetchNameSrvAddrByDnsLookup"),
    ("registerBrokerTimeoutMillis", "registerBrokerTimeoutMills"),
    ("migrateFromAclV1Enabled", "migrateAuthFromV1Enabled"),
];

const REPLICAS: &str = "there is no slave that acts as a master here, and no log of DLedger: enableControllerMode with `ringmq controller` elects a master";
const BESIDE: &str = "a controller is a process of its own here: `ringmq controller`";
const ACCESS: &str = "access control is not built yet; without it the broker would be open to everybody while the file says otherwise";

/// See [`Refused`].
pub const REFUSED: &[Refused] = &[
    Refused {
        key: "enableControllerInNamesrv",
        harmless: &["false"],
        reason: BESIDE,
    },
    Refused {
        key: "enableDLegerCommitLog",
        harmless: &["false"],
        reason: REPLICAS,
    },
    Refused {
        key: "enableSlaveActingMaster",
        harmless: &["false"],
        reason: REPLICAS,
    },
    Refused {
        key: "duplicationEnable",
        harmless: &["false"],
        reason: REPLICAS,
    },
    Refused {
        key: "aclEnable",
        harmless: &["false"],
        reason: ACCESS,
    },
    Refused {
        key: "authenticationEnabled",
        harmless: &["false"],
        reason: ACCESS,
    },
    Refused {
        key: "authorizationEnabled",
        harmless: &["false"],
        reason: ACCESS,
    },
    Refused {
        key: "tls.server.mode",
        harmless: &["disabled", "permissive"],
        reason: "TLS is not built yet; without it clients would talk in plain text while the file says otherwise",
    },
    Refused {
        key: "tls.server.need.client.auth",
        harmless: &["none", "optional"],
        reason: "TLS is not built yet; without it clients would talk in plain text while the file says otherwise",
    },
];

/// See [`Ignored`].
pub const IGNORED: &[Ignored] = &[
    Ignored {
        reason: "there are no thread pools; each core runs one executor (see shards)",
        keys: "
            sendMessageThreadPoolNums putMessageFutureThreadPoolNums pullMessageThreadPoolNums
            litePullMessageThreadPoolNums ackMessageThreadPoolNums processReplyMessageThreadPoolNums
            queryMessageThreadPoolNums adminBrokerThreadPoolNums clientManageThreadPoolNums
            consumerManageThreadPoolNums loadBalanceProcessorThreadPoolNums heartbeatThreadPoolNums
            recoverThreadPoolNums endTransactionThreadPoolNums clientRequestThreadPoolNums defaultThreadPoolNums
            controllerThreadPoolNums serverWorkerThreads serverCallbackExecutorThreads serverSelectorThreads
            clientWorkerThreads clientCallbackExecutorThreads timerGetMessageThreadNum timerPutMessageThreadNum
            timerEnableDisruptor dispatchCqThreads batchDispatchRequestThreadPoolNums compactionThreadNum
            serverNettyWorkerGroupEnable useEpollNativeSelector disableCallbackExecutor disableNettyWorkerGroup
            enableFastChannelEventProcess recoverConcurrently asyncSendEnable dispatchFromSenderThread",
    },
    Ignored {
        reason: "there are no request queues; limits are bytes and requests in flight, and a refusal names the one that was met",
        keys: "
            sendThreadPoolQueueCapacity putThreadPoolQueueCapacity pullThreadPoolQueueCapacity
            litePullThreadPoolQueueCapacity ackThreadPoolQueueCapacity replyThreadPoolQueueCapacity
            queryThreadPoolQueueCapacity clientManagerThreadPoolQueueCapacity consumerManagerThreadPoolQueueCapacity
            heartbeatThreadPoolQueueCapacity endTransactionPoolQueueCapacity adminBrokerThreadPoolQueueCapacity
            loadBalanceThreadPoolQueueCapacity clientRequestThreadPoolQueueCapacity defaultThreadPoolQueueCapacity
            controllerRequestThreadPoolQueueCapacity unRegisterBrokerQueueCapacity brokerFastFailureEnable
            waitTimeMillsInSendQueue waitTimeMillsInPullQueue waitTimeMillsInLitePullQueue
            waitTimeMillsInHeartbeatQueue waitTimeMillsInTransactionQueue waitTimeMillsInAckQueue
            waitTimeMillsInAdminBrokerQueue serverOnewaySemaphoreValue serverAsyncSemaphoreValue
            clientOnewaySemaphoreValue clientAsyncSemaphoreValue maxAsyncPutMessageRequests putMsgIndexHightWater
            osPageCacheBusyTimeOutMills putMessageTimeout enableNetWorkFlowControl maxMsgsNumBatch
            com.rocketmq.remoting.frameMaxLength",
    },
    Ignored {
        reason: "the log is written with O_DIRECT and group commit: there is no page cache, no memory map, no lock and no flush timer to tune (see flushDiskType)",
        keys: "
            flushIntervalCommitLog commitIntervalCommitLog flushCommitLogTimed flushCommitLogLeastPages
            commitCommitLogLeastPages flushCommitLogThoroughInterval commitCommitLogThoroughInterval
            flushLeastPagesWhenWarmMapedFile warmMapedFileEnable transientStorePoolEnable transientStorePoolSize
            fastFailIfNoBufferInStorePool useReentrantLockWhenPutMessage useABSLock
            spinLockCollisionRetreatOptimalDegree topicQueueLockNum debugLockEnable writeWithoutMmap
            wakeCommitWhenPutMessage wakeFlushWhenPutMessage transferMsgByHeap mappedFileSwapEnable
            commitLogForceSwapMapInterval commitLogSwapMapInterval commitLogSwapMapReserveFileNum
            logicQueueForceSwapMapInterval logicQueueSwapMapInterval cleanSwapedMapInterval
            logicQueueSwapMapReserveFileNum destroyMapedFileIntervalForcibly redeleteHangedFileInterval
            deleteCommitLogFilesInterval deleteConsumeQueueFilesInterval deleteFileBatchMax maxBatchDeleteFilesNum
            accessMessageInMemoryMaxRatio accessMessageInMemoryHotRatio coldDataFlowControlEnable coldDataScanEnable
            dataReadAheadEnable timerColdDataCheckIntervalMs sampleSteps coldCtrStrategyEnable usePIDColdCtrStrategy
            cgColdReadThreshold globalColdReadThreshold diskFallRecorded highSpeedMode enableAsyncReput
            recheckReputOffsetFromCq dispatchCqCacheNum",
    },
    Ignored {
        reason: "the store has a format of its own below storePathRootDir: queue index, key index and offsets have no files of this kind",
        keys: "
            storePathCommitLog storePathConsumeQueue storePathIndex storeCheckpoint abortFile
            storePathDLedgerCommitLog storePathEpochFile storePathBrokerIdentity readOnlyCommitLogStorePaths
            storeType messageStorePlugIn mappedFileSizeConsumeQueue mapperFileSizeBatchConsumeQueue
            enableConsumeQueueExt mappedFileSizeConsumeQueueExt bitMapLengthConsumeQueueExt
            flushIntervalConsumeQueue flushConsumeQueueLeastPages flushConsumeQueueThoroughInterval maxHashSlotNum
            maxIndexNum messageIndexSafe mappedFileSizeTimerLog timerFlushIntervalMs timerProgressLogIntervalMs
            timerWarmEnable timerRollWindowSlot timerCongestNumEachSlot timerMetricSmallThreshold
            timerEnableCheckMetrics timerCheckMetricsWhen timerInterceptDelayLevel timerSkipUnknownError
            timerEnableRetryUntilSuccess timerStopEnqueue timerStopDequeue flushConsumerOffsetInterval
            flushConsumerOffsetHistoryInterval flushDelayOffsetInterval transactionMetricFlushInterval
            transactionOpMsgMaxSize transactionOpBatchInterval consumerOffsetUpdateVersionStep
            delayOffsetUpdateVersionStep enableCleanExpiredOffset searchBcqByCacheEnable
            putConsumeQueueDataByFileChannel enableBuildConsumeQueueConcurrently correctLogicMinOffsetSleepInterval
            correctLogicMinOffsetForceInterval travelCqFileNumWhenGetMessage maxConsumeQueueScan
            sampleCountThreshold estimateAccumulation replicasPerDiskPartition
            logicalDiskSpaceCleanForciblyThreshold configManagerVersion configStorePath brokerConfigPath
            enableScheduleMessageStats enableScheduleAsyncDeliver scheduleAsyncDeliverMaxPendingLimit
            scheduleAsyncDeliverMaxResendNum2Blocked",
    },
    Ignored {
        reason: "there is no RocksDB in this broker",
        keys: "
            rocksdbCQDoubleWriteEnable cleanRocksDBDirtyCQIntervalMin statRocksDBCQIntervalSec
            memTableFlushIntervalMs memTableFlushInterval realTimePersistRocksDBConfig enableRocksDBLog
            bottomMostCompressionTypeForConsumeQueueStore rocksdbCompressionType rocksdbFlushWalFrequency
            rocksdbWalFileRollingThreshold enableAcceleratedRecovery batchWriteKvCqSize transferOffsetJsonToRocksdb
            transferMetadataJsonToRocksdb combineCQLoadingCQTypes combineCQPreferCQType combineAssignOffsetCQType
            combineCQEnableCheckSelf combineCQMaxExtraSearchCommitLogFiles popConsumerFSServiceInit
            popConsumerKVServiceLog popConsumerKVServiceInit popConsumerKVServiceEnable
            popReviveMaxReturnSizePerRead popReviveMaxAttemptTimes enableTimerMessageOnRocksDB timerRocksDBEnable
            indexRocksDBEnable combineCQUseRocksdbForLmq",
    },
    Ignored {
        reason: "every batch is checked by its CRC when it is read for recovery, and reads stop at what is acknowledged; neither can be switched off",
        keys: "
            checkCRCOnRecover forceVerifyPropCRC enabledAppendPropCRC maxChecksumRange readUnCommitted
            maxRecoveryCommitlogFiles enableLogConsumeQueueRepeatedlyBuildWhenRecover disappearTimeAfterStart",
    },
    Ignored {
        reason: "a pull is bounded by what its client asks for, up to 1024 messages and 256 KiB, wherever the messages lie",
        keys: "
            maxTransferBytesOnMessageInMemory maxTransferCountOnMessageInMemory maxTransferBytesOnMessageInDisk
            maxTransferCountOnMessageInDisk pullBatchMaxMessageCount maxFilterMessageSize
            disableConsumeIfConsumerReadSlowly consumerFallbehindThreshold",
    },
    Ignored {
        reason: "replication and election have no such knob here",
        keys: "
            haTransferBatchSize
            offsetCheckInSlave totalReplicas enableAutoInSyncReplicas
            haFlowControlEnable maxHaTransferByteInSecond syncMasterFlushOffsetWhenStartup
            maxSlaveResendLength syncFromLastFile asyncLearner dLegerGroup dLegerPeers dLegerSelfId
            preferredLeaderId enableBatchPush enableRemoteEscape skipPreOnline
            sendHeartbeatTimeoutMillis brokerNotActiveTimeoutMillis syncBrokerMemberGroupPeriod
            cleanOfflineBrokerInterval lockInStrictMode forwardTimeout fetchControllerAddrByDnsLookup
            syncBrokerMetadataPeriod checkSyncStateSetPeriod syncControllerMetadataPeriod
            controllerType
            mappedFileSize electMasterMaxRetryCount
            isProcessReadEvent processReadEvent notifyBrokerRoleChanged
            jraftConfig notifyMinBrokerIdChangeTimeoutMillis enableSplitMetadata
            splitMetadataSize",
    },
    Ignored {
        reason: "a registration is one request of any size, and the name server takes topics from each",
        keys: "
            enableSplitRegistration splitRegistrationSize enableSingleTopicRegister compatibleWithOldNameSrv",
    },
    Ignored {
        reason: "hosts in namesrvAddr may be DNS names and are resolved again at each connect; no address server is ever asked",
        keys: "
            fetchNameSrvAddrByDnsLookup fetchNamesrvAddrByAddressServer updateNameServerAddrPeriod
            fetchNamesrvAddrInterval loadBalancePollNameServerInterval rocketmq.namesrv.domain
            rocketmq.namesrv.domain.subgroup productEnvName clusterTest",
    },
    Ignored {
        reason: "metrics are offered as text of Prometheus only, cumulative, at metricsPromExporterPort",
        keys: "
            metricsGrpcExporterTarget metricsGrpcExporterHeader metricGrpcExporterTimeOutInMills
            metricGrpcExporterIntervalInMills metricLoggingExporterIntervalInMills
            metricsInDelta metricsOtelCardinalityLimit enableLmqStats",
    },
    Ignored {
        reason: "statistics are counted per core and cost nothing to keep",
        keys: "
            enableDetailStat autoDeleteUnusedStats accountStatsEnable accountStatsPrintZeroValues
            commercialBaseCount commercialSizePerMsg commercialEnable commercialTimerCount commercialTransCount
            commercialBigCount maxStatsIdleTimeInMinutes",
    },
    Ignored {
        reason: "light message queues, compacted topics and static topics are not built yet",
        keys: "
            enableLmq enableMultiDispatch maxLmqConsumeQueueNum enableCompaction compactionMappedFileSize
            compactionCqMappedFileSize compactionScheduleInternal maxOffsetMapSize useStaticSubscription",
    },
    Ignored {
        reason: "the record's version follows from the length of its topic",
        keys: "
            autoMessageVersionOnTopicLen maxTopicLength",
    },
    Ignored {
        reason: "receipts of POP consumers are kept by the owner of the queue, without check points that have to be merged or revived",
        keys: "
            reviveInterval reviveMaxSlow reviveScanTime enableSkipLongAwaitingAck reviveAckWaitMs enablePopLog
            enablePopBufferMerge popCkStayBufferTime popCkStayBufferTimeOut popCkMaxBufferSize
            popCkOffsetMaxQueueSize enablePopBatchAck enableNotifyBeforePopCalculateLag
            enableNotifyAfterPopOrderLockRelease popInflightMessageThreshold enablePopMessageThreshold
            skipWhenCKRePutReachMaxTimes appendAckAsync appendCkAsync",
    },
    Ignored {
        reason: "a popped message that is due again comes from its own queue; there is no retry topic whose queues could be separate",
        keys: "
            useSeparateRetryQueue",
    },
    Ignored {
        reason: "an SQL92 filter is evaluated on the message itself; there are no bit maps to compute ahead",
        keys: "
            enableCalcFilterBitMap expectConsumerNumUseFilter maxErrorRateOfBloomFilter filterDataCleanTimeSpan
            filterServerNums",
    },
    Ignored {
        reason: "offsets of broadcast consumers are kept by the consumers",
        keys: "
            enableBroadcastOffsetStore broadcastOffsetExpireSecond broadcastOffsetExpireMaxSecond",
    },
    Ignored {
        reason: "members of a group are always told at once",
        keys: "
            realTimeNotifyConsumerChange printChannelGroups printChannelGroupsMinNum",
    },
    Ignored {
        reason: "buffers and connections to name servers need no setting here",
        keys: "
            serverPooledByteBufAllocatorEnable clientPooledByteBufAllocatorEnable writeBufferHighWaterMark
            writeBufferLowWaterMark enableShutdownGracefully connectTimeoutMillis channelNotActiveInterval
            isScanAvailableNameSrv scanAvailableNameSrv circuitBreakerEnable circuitBreakerRecoverSecond
            circuitBreakerDegradeRuleCount circuitBreakerDegradeRuleSecond clientChannelMaxIdleTimeSeconds
            clientSocketSndBufSize clientSocketRcvBufSize clientCloseSocketIfTimeout socksProxyConfig
            maxReconnectIntervalTimeSeconds enableReconnectForGoAway enableTransparentRetry
            com.rocketmq.remoting.socket.sndbuf.size com.rocketmq.remoting.socket.rcvbuf.size
            rocketmq.serialize.type",
    },
    Ignored {
        reason: "TLS is not built yet; clients connect in plain text",
        keys: "
            useTLS tls.enable tls.config.file tls.test.mode.enable tls.server.keyPath tls.server.keyPassword
            tls.server.certPath tls.server.authClient tls.server.trustCertPath tls.client.keyPath
            tls.client.keyPassword tls.client.certPath tls.client.authServer tls.client.trustCertPath tls.ciphers
            tls.protocols",
    },
    Ignored {
        reason: "access control is not built yet; anybody who reaches the port may use it",
        keys: "
            configName clusterName authConfigPath authenticationProvider authenticationMetadataProvider
            authenticationStrategy authenticationWhitelist initAuthenticationUser
            innerClientAuthenticationCredentials authorizationProvider authorizationMetadataProvider
            authorizationStrategy authorizationWhitelist migrateAuthFromV1Enabled userCacheMaxNum
            userCacheExpiredSecond userCacheRefreshSecond aclCacheMaxNum aclCacheExpiredSecond aclCacheRefreshSecond
            statefulAuthenticationCacheMaxNum statefulAuthenticationCacheExpiredSecond
            statefulAuthorizationCacheMaxNum statefulAuthorizationCacheExpiredSecond accessKey secretKey",
    },
    Ignored {
        reason: "one process has one broker, needs no home directory, and writes one log (see logFile)",
        keys: "
            rocketmqHome isolateLogEnable isBrokerContainer isInBrokerContainer inBrokerContainer brokerContainerIP
            brokerConfigPaths",
    },
];

/// Why a known key does nothing here.
pub fn ignored_reason(key: &str) -> Option<&'static str> {
    IGNORED
        .iter()
        .find(|group| group.keys().any(|known| known == key))
        .map(|group| group.reason)
}

/// The entry of a key that may be refused.
pub fn refused(key: &str) -> Option<&'static Refused> {
    REFUSED.iter().find(|entry| entry.key == key)
}

/// The spelling that the tables have.
pub fn canonical(key: &str) -> &str {
    ALIASES
        .iter()
        .find(|(alias, _)| *alias == key)
        .map_or(key, |(_, canonical)| canonical)
}
