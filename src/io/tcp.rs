//! Sockets: accept with SO_REUSEPORT, read into `BytesMut`, gather-write of slices. Thin over the runtime.
