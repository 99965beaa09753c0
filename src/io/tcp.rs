//! Sockets: accept with SO_REUSEPORT, read into `BytesMut`, gather-write of slices. Thin over the runtime.
//!
//! [`Listener`], [`Stream`] and [`connect`] are the backend's. [`ReadBuffer`] decides how much memory a connection may
//! hold for what it reads: a few KiB when it is quiet, as much as it fills when it is busy, and for a large frame only
//! in proportion to what the peer has really sent, whatever length it announces.

use bytes::BytesMut;

pub use crate::io::ring::{DetachedStream, Listener, RingNet, Stream, connect};

/// Most slices of one gather-write (`UIO_MAXIOV`).
pub const GATHER_SLICES_MAX: usize = 1024;
/// What a connection reads at once while it is quiet.
const READ_BYTES_MIN: usize = 4 << 10;
/// What a connection reads at once when each read fills the buffer.
const READ_BYTES_MAX: usize = 64 << 10;
/// A frame up to this size gets its memory as soon as its length is known; a larger one as it arrives.
const FRAME_BYTES_AT_ONCE: usize = 256 << 10;
/// Below this much free space a buffer is renewed before the next read.
const SPARE_BYTES_MIN: usize = 1 << 10;

const _: () = assert!(SPARE_BYTES_MIN < READ_BYTES_MIN && READ_BYTES_MIN <= READ_BYTES_MAX);

/// Bytes that were read and not yet decoded. See the module's page.
#[derive(Debug)]
pub struct ReadBuffer {
    pub bytes: BytesMut,
    /// How much to offer to the next read.
    read_bytes: usize,
}

impl ReadBuffer {
    /// Without memory until the first read.
    pub fn new() -> Self {
        Self {
            bytes: BytesMut::new(),
            read_bytes: READ_BYTES_MIN,
        }
    }

    /// Makes room for a read. `missing_bytes` is what the frame at the front still lacks, already checked against the
    /// greatest legal frame; 0 if that is not known.
    pub fn prepare(&mut self, missing_bytes: usize) {
        let have_bytes = self.bytes.len();
        let spare_bytes = self.bytes.capacity() - have_bytes;
        let wanted_bytes = missing_bytes.min(FRAME_BYTES_AT_ONCE.max(have_bytes));
        if spare_bytes < SPARE_BYTES_MIN.max(wanted_bytes) {
            self.bytes.reserve(self.read_bytes.max(wanted_bytes));
        }
    }

    /// Adapts to a read that got `bytes` of the `offered_bytes`; true if there is probably more to read.
    pub fn filled(&mut self, bytes: usize, offered_bytes: usize) -> bool {
        let full = bytes == offered_bytes;
        if full {
            self.read_bytes = (self.read_bytes * 2).min(READ_BYTES_MAX);
        } else if bytes < self.read_bytes / 4 {
            self.read_bytes = (self.read_bytes / 2).max(READ_BYTES_MIN);
        }
        full
    }

    /// Gives memory back while the connection is quiet.
    pub fn shrink(&mut self) {
        if self.bytes.is_empty() {
            self.bytes = BytesMut::new();
        }
        self.read_bytes = READ_BYTES_MIN;
    }
}

impl Default for ReadBuffer {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quiet_connection_holds_a_few_kib_and_after_a_sweep_nothing() {
        let mut buffer = ReadBuffer::new();
        assert_eq!(buffer.bytes.capacity(), 0);
        buffer.prepare(0);
        assert!(buffer.bytes.capacity() <= 8 << 10);
        buffer.shrink();
        assert_eq!(buffer.bytes.capacity(), 0);
    }

    #[test]
    fn an_announced_length_alone_reserves_only_a_bounded_part_of_it() {
        let mut buffer = ReadBuffer::new();
        buffer.bytes.extend_from_slice(&[0; 4]);
        buffer.prepare(16 << 20);
        assert!(buffer.bytes.capacity() <= 2 * FRAME_BYTES_AT_ONCE);
    }

    #[test]
    fn a_large_frame_grows_with_what_was_received() {
        let frame_bytes = 16 << 20;
        let mut buffer = ReadBuffer::new();
        let mut reads = 0;
        while buffer.bytes.len() < frame_bytes {
            buffer.prepare(frame_bytes - buffer.bytes.len());
            let capacity = buffer.bytes.capacity();
            assert!(capacity <= 3 * buffer.bytes.len().max(FRAME_BYTES_AT_ONCE));
            let spare_bytes = capacity - buffer.bytes.len();
            assert!(spare_bytes > 0);
            buffer.bytes.resize(capacity, 7);
            buffer.filled(spare_bytes, spare_bytes);
            reads += 1;
        }
        assert!(reads < 12, "{reads} reads");
    }

    #[test]
    fn full_reads_double_the_next_one_and_small_ones_halve_it() {
        let mut buffer = ReadBuffer::new();
        for _ in 0..10 {
            assert!(buffer.filled(READ_BYTES_MIN, READ_BYTES_MIN));
        }
        assert_eq!(buffer.read_bytes, READ_BYTES_MAX);
        for _ in 0..10 {
            assert!(!buffer.filled(100, READ_BYTES_MAX));
        }
        assert_eq!(buffer.read_bytes, READ_BYTES_MIN);
    }

    #[test]
    fn a_buffer_without_shared_parts_is_used_again_instead_of_allocated() {
        let mut buffer = ReadBuffer::new();
        buffer.prepare(0);
        let first = buffer.bytes.as_ptr() as usize;
        for _ in 0..100 {
            buffer.prepare(0);
            buffer.bytes.extend_from_slice(&[1; 500]);
            drop(buffer.bytes.split_to(500).freeze());
        }
        let last = buffer.bytes.as_ptr() as usize;
        assert!(last.abs_diff(first) < READ_BYTES_MIN * 2);
    }
}
