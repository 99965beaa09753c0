//! Keys of the store: where messages lie, how they are flushed, when they go. RocketMQ's `MessageStoreConfig`.

use std::path::PathBuf;

use crate::base::config::setting::settings;
use crate::base::config::value::{Bounds, DelayLevels, FlushDiskType, Hours};
use crate::base::limits::{MESSAGE_BODY_BYTES_MAX, SECTOR_BYTES};
use crate::base::offset::LOG_ID_MAX;

settings! {
    /// What the store and the shards read. See the module's page.
    StoreSettings {
        /// Directory of the store. One broker at a time may use it.
        "storePathRootDir" root: PathBuf = PathBuf::new(), Bounds::Any, "",
            found "standalone: ./ringmq-data; else $STATE_DIRECTORY, $XDG_DATA_HOME/ringmq or ~/.local/share/ringmq";
        /// When a send is acknowledged. SYNC_FLUSH: its bytes are flushed to the device and survive a power loss.
        /// ASYNC_FLUSH: they are written to the device without a flush and survive a kill of the process.
        "flushDiskType" flush: FlushDiskType = FlushDiskType::SyncFlush, Bounds::Any, "";
        /// How long a send waits for its flush before it is answered FLUSH_DISK_TIMEOUT.
        "syncFlushTimeout" flush_timeout_ms: u64 = 5000, Bounds::Range(1, 600_000), "ms";
        /// Logs of a new store, each of which is one append stream; recorded in it, later values change nothing.
        "logs" logs: u16 = 0, Bounds::Range(0, LOG_ID_MAX as u64 + 1), "logs", found "one per shard";
        /// Length of one segment of a log. The disk is taken a segment at a time.
        "mappedFileSizeCommitLog" segment_bytes: u64 = 1 << 30,
            Bounds::BytesMultiple(1 << 20, 1 << 30, SECTOR_BYTES as u64), "bytes";
        /// Greatest message body. Lower mappedFileSizeCommitLog lowers it too: a message has to fit into a segment.
        "maxMessageSize" body_bytes_max: u64 = MESSAGE_BODY_BYTES_MAX as u64, Bounds::Bytes(1, MESSAGE_BODY_BYTES_MAX as u64), "bytes";
        /// Age at which a segment may be removed, consumed or not.
        "fileReservedTime" retention_hours: u64 = 72, Bounds::Range(1, 1_000_000), "hours";
        /// Bytes of all logs above which the oldest segments are removed before their time; 0 is no bound.
        "storeBytesMax" store_bytes_max: u64 = 0, Bounds::Bytes(0, u64::MAX), "bytes";
        /// Hours of the day, local time, in which old segments are removed.
        "deleteWhen" delete_hours: Hours = Hours(vec![4]), Bounds::Any, "hours of the day";
        /// How often the store looks for segments to remove.
        "cleanResourceInterval" retention_period_ms: u64 = 10_000, Bounds::Range(100, 3_600_000), "ms";
        /// Use of the disk above which old segments are removed at any hour.
        "diskMaxUsedSpaceRatio" disk_clean_percent: u8 = 75, Bounds::Clamp(10, 95), "percent";
        /// Use of the disk above which segments are removed before their time.
        "diskSpaceCleanForciblyRatio" disk_clean_early_percent: u8 = 85, Bounds::Clamp(30, 85), "percent";
        /// Use of the disk above which sends are refused until there is space again.
        "diskSpaceWarningLevelRatio" disk_refuse_percent: u8 = 90, Bounds::Clamp(35, 90), "percent";
        /// Segments may be removed before their time when the disk fills up. If false, sends are refused instead.
        "cleanFileForciblyEnable" clean_early: bool = true, Bounds::Any, "";
        /// What a search for damage in the older part of a log reads at most; 0 switches the search off, and then only what a
        /// reader finds damaged is looked at.
        "scrubBytesPerSecond" scrub_bytes_per_second: u64 = 4 << 20, Bounds::Bytes(0, 1 << 40), "bytes";
        /// How often such a search begins. The first one begins soon after a start, which is not remembered.
        "scrubPeriodHours" scrub_period_hours: u64 = 168, Bounds::Range(1, 10_000), "hours";
        /// Messages can be found by key.
        "messageIndexEnable" key_index: bool = true, Bounds::Any, "";
        /// Delays of the levels of delayed messages; level 1 is the first.
        "messageDelayLevel" delay_levels: DelayLevels = DelayLevels::rocketmq(), Bounds::Any, "s, m, h or d";
        /// Messages may be delivered at any chosen time.
        "timerWheelEnable" timer: bool = true, Bounds::Any, "";
        /// Longest delay of a message with a chosen time.
        "timerMaxDelaySec" timer_delay_max_s: u64 = 259_200, Bounds::Range(1, 10 * 365 * 86_400), "s";
        /// Chosen delivery times are moved to the next multiple of this, never back. RocketMQ has 1000 and moves back.
        "timerPrecisionMs" timer_precision_ms: u64 = 1, Bounds::Range(1, 60_000), "ms";
        /// Port for replicas, which registrations carry. Slaves follow this broker there.
        "haListenPort" replication_port: u16 = 0, Bounds::Any, "", found "listenPort + 1";
        /// host:port of the master's haListenPort, for a slave. Without it the name servers are asked.
        "haMasterAddress" ha_master_address: String = String::new(), Bounds::Any, "";
        /// File with the secret that master and slaves share, at least 16 bytes; blanks around it do not count. Without it
        /// both sides talk over loopback only.
        "haSecretFile" ha_secret_file: PathBuf = PathBuf::new(), Bounds::Any, "";
        /// Copies that a send waits for with SYNC_MASTER, the master's own included.
        "inSyncReplicas" in_sync_replicas: u32 = 0, Bounds::Range(0, 16), "copies", found "2 with SYNC_MASTER, else 1";
        /// With fewer copies in sync a SYNC_MASTER refuses sends. 1: the master goes on alone, and says so in each answer.
        "minInSyncReplicas" min_in_sync_replicas: u32 = 1, Bounds::Range(1, 16), "copies";
        /// A send waits for every slave that is in sync, however many there are.
        "allAckInSyncStateSet" all_ack_in_sync: bool = false, Bounds::Any, "";
        /// How long a send waits for slaves before it is answered FLUSH_SLAVE_TIMEOUT.
        "slaveTimeout" slave_timeout_ms: u64 = 3000, Bounds::Range(1, 600_000), "ms";
        /// A slave that is further behind in a log is not in sync.
        "haMaxGapNotInSync" ha_gap_bytes_max: u64 = 256 << 20, Bounds::Bytes(1 << 20, 1 << 40), "bytes";
        /// A slave that has not got on for so long, although there was something to get, is not in sync.
        "haMaxTimeSlaveNotCatchup" ha_stuck_ms_max: u64 = 15_000, Bounds::Range(100, 600_000), "ms";
        /// Pause after which master and slave tell each other that they are there.
        "haSendHeartbeatInterval" ha_heartbeat_ms: u64 = 5000, Bounds::Range(50, 600_000), "ms";
        /// A connection between master and slave that was silent for so long is given up.
        "haHousekeepingInterval" ha_silence_ms: u64 = 20_000, Bounds::Range(200, 600_000), "ms";
    }
}
