//! What the shell needs of tokio: sockets, tasks, timers. Its twin is for glommio.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

pub use tokio::time::sleep;

pub type Reader = OwnedReadHalf;
pub type Writer = OwnedWriteHalf;
/// A future that a stream keeps.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Connects to `host:port`.
pub async fn connect(address: &str) -> io::Result<(Reader, Writer)> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream.into_split())
}

/// Reads into the room behind `input`; 0: nothing will come any more.
pub async fn read(reader: &mut Reader, input: &mut BytesMut) -> io::Result<usize> {
    reader.read_buf(input).await
}

pub async fn write(writer: &mut Writer, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    writer.write_vectored(slices).await
}

pub async fn shutdown(writer: &mut Writer) -> io::Result<()> {
    writer.shutdown().await
}

/// Runs a task until it ends.
pub fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task);
}

/// Nothing if it takes longer.
pub async fn timeout<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(limit, work).await.ok()
}
