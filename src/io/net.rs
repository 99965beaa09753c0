//! The seam of the network, for what has to run in the simulator too: the slave stream.
//!
//! `io/ring` has the sockets, `io/sim` pipes of the simulated world that can be cut and delayed. Behind the two traits are
//! the few things that `ha` does with a stream: a gather-write, a read into a bounded buffer, a time limit.

use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;

use crate::io::env::Env;
use crate::io::tcp::{GATHER_SLICES_MAX, ReadBuffer};

/// A connected byte stream of one core, shared by a task that reads and one that writes.
pub trait NetStream: 'static {
    /// Reads once into the spare capacity of `buffer`, of which there must be some. 0 is the end.
    fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut BytesMut) -> Poll<io::Result<usize>>;
    /// Writes the start of `slices`, as much as is taken now.
    fn poll_write(&self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>>;
    /// Address of the peer.
    fn peer(&self) -> SocketAddr;
    /// Ends both directions, which wakes whoever waits for it.
    fn shutdown(&self);
}

/// Where connections come from.
pub trait Net: Clone + 'static {
    type Stream: NetStream;

    /// Connects to `host:port`.
    fn connect(
        &self,
        address: &str,
        timeout: Duration,
    ) -> impl Future<Output = io::Result<Self::Stream>> + 'static;
}

/// Writes all of `parts`, in order.
pub async fn write_all<S: NetStream>(stream: &S, parts: &[&[u8]]) -> io::Result<()> {
    let (mut part, mut offset) = (0, 0);
    while part < parts.len() {
        if offset == parts[part].len() {
            (part, offset) = (part + 1, 0);
            continue;
        }
        let mut slices = Vec::with_capacity((parts.len() - part).min(GATHER_SLICES_MAX));
        slices.push(IoSlice::new(&parts[part][offset..]));
        let rest = parts[part + 1..].iter().filter(|part| !part.is_empty());
        slices.extend(
            rest.take(GATHER_SLICES_MAX - 1)
                .map(|part| IoSlice::new(part)),
        );
        let mut written = poll_fn(|cx| stream.poll_write(cx, &slices)).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        while written > 0 {
            let left = parts[part].len() - offset;
            if written < left {
                offset += written;
                break;
            }
            written -= left;
            (part, offset) = (part + 1, 0);
        }
    }
    Ok(())
}

/// Reads once more into `buffer`; `missing_bytes` as in [`ReadBuffer::prepare`]. The end is an error.
pub async fn read_more<S: NetStream>(
    stream: &S,
    buffer: &mut ReadBuffer,
    missing_bytes: usize,
) -> io::Result<()> {
    buffer.prepare(missing_bytes);
    let offered_bytes = buffer.bytes.capacity() - buffer.bytes.len();
    let read = poll_fn(|cx| stream.poll_read(cx, &mut buffer.bytes)).await?;
    if read == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    buffer.filled(read, offered_bytes);
    Ok(())
}

/// The output of a future, or none if it takes longer.
pub async fn within<E: Env, T>(
    env: &E,
    limit: Duration,
    future: impl Future<Output = T>,
) -> Option<T> {
    let mut future = pin!(future);
    let mut sleep = pin!(env.sleep(limit));
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        sleep.as_mut().poll(cx).map(|()| None)
    })
    .await
}
