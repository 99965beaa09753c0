//! Keys of the process, which RocketMQ does not have: cores, memory, logs.

use std::path::PathBuf;

use crate::base::config::setting::settings;
use crate::base::config::value::{Bounds, LogFormat};

/// Most shards of a process: what a log number has room for.
const SHARDS_MAX: u64 = crate::base::offset::LOG_ID_MAX as u64 + 1;

settings! {
    /// What the process itself reads. See the module's page.
    NodeSettings {
        /// Cores to use, each with an executor of its own.
        "shards" shards: usize = 0, Bounds::Range(0, SHARDS_MAX), "cores",
            found "the cores that the process may use; standalone: half of them, at most 4; namesrv: 1";
        /// Pin each shard to a core.
        "pinShards" pin_shards: bool = false, Bounds::Any, "",
            found "broker: true on 4 cores and more; else false, since clients of the same machine need the cores too";
        /// All memory that caches, indexes and connections may take together. It is taken as it is needed.
        "memory" memory_bytes: u64 = 0, Bounds::Bytes(0, u64::MAX), "bytes",
            found "a quarter of the memory of the container or machine, at most 1 GiB (standalone: 256 MiB)";
        /// Least level of what is logged: error, warn, info, debug, trace, or filters such as info,ringmq::store=debug.
        "logLevel" log_level: String = "info".into(), Bounds::Any, "";
        /// Shape of a log line: text or json.
        "logFormat" log_format: LogFormat = LogFormat::Text, Bounds::Any, "";
        /// File for the log; without one it goes to standard error.
        "logFile" log_file: PathBuf = PathBuf::new(), Bounds::Any, "";
        /// The log file is rotated at this length.
        "logFileBytesMax" log_file_bytes_max: u64 = 64 << 20, Bounds::Bytes(4096, 1 << 40), "bytes";
        /// Rotated log files that are kept, besides the one that is written.
        "logFilesKept" log_files_kept: u32 = 5, Bounds::Range(0, 1000), "files";
    }
}
