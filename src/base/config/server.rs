//! Keys of ports and connections. RocketMQ's `NettyServerConfig`.

use crate::base::config::setting::settings;
use crate::base::config::value::Bounds;

settings! {
    /// What the listeners and connections read. See the module's page.
    ServerSettings {
        /// Address that all ports are opened on.
        "bindAddress" bind_address: String = String::new(), Bounds::Any, "",
            found "0.0.0.0; standalone outside of a container: 127.0.0.1";
        /// Port of the broker, or of the name server in `ringmq namesrv`.
        "listenPort" listen_port: u16 = 10911, Bounds::Range(1, 65535), "", found "10911; namesrv: 9876";
        /// The broker listens on listenPort - 2 as well, for clients with vipChannelEnabled.
        "fastListenEnable" fast_listen: bool = true, Bounds::Any, "";
        /// First of the ports of the native protocol, one for each shard: shard 0 listens on this one, shard 1 on the next, and
        /// so on. A client that connects to the shard of a queue is served without a detour over another core. With 0 native
        /// clients use listenPort, which speaks both protocols.
        "nativePort" native_port: u16 = 0, Bounds::Range(0, 65535), "";
        /// A connection on which nothing moved for this long is closed.
        "serverChannelMaxIdleTimeSeconds" idle_s: u64 = 120, Bounds::Range(1, 86_400), "s";
        /// Connections that the kernel holds until they are accepted.
        "serverSocketBacklog" backlog: u32 = 1024, Bounds::Range(1, 65_535), "connections";
        /// Send buffer of a socket; 0 leaves it to the kernel.
        "serverSocketSndBufSize" send_buffer_bytes: u64 = 0, Bounds::Bytes(0, 1 << 30), "bytes";
        /// Receive buffer of a socket; 0 leaves it to the kernel.
        "serverSocketRcvBufSize" receive_buffer_bytes: u64 = 0, Bounds::Bytes(0, 1 << 30), "bytes";
        /// How long requests under way may take after a TERM before the process ends.
        "shutdownWaitTimeSeconds" drain_s: u64 = 30, Bounds::Range(0, 3600), "s";
    }
}
