//! What the shell needs of glommio: sockets, tasks, timers, on the executor that runs whoever asks. Its twin is for tokio.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::time::Duration;

use bytes::BytesMut;
use futures_lite::AsyncReadExt;
use futures_lite::future::or;
use futures_lite::io::{AsyncWriteExt, ReadHalf, WriteHalf, split};
use glommio_ng::net::TcpStream;

pub use glommio_ng::timer::sleep;

pub type Reader = ReadHalf<TcpStream>;
pub type Writer = WriteHalf<TcpStream>;
/// A future that a stream keeps.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T>>>;

/// Bytes of one read: they are zeroed before.
const READ_BYTES: usize = 64 << 10;

/// Connects to `host:port`. A name is looked up on the executor, which waits for it: use addresses.
pub async fn connect(address: &str) -> io::Result<(Reader, Writer)> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(split(stream))
}

/// Reads behind `input`; 0: nothing will come any more.
pub async fn read(reader: &mut Reader, input: &mut BytesMut) -> io::Result<usize> {
    let before = input.len();
    input.resize(before + READ_BYTES, 0);
    let read = reader.read(&mut input[before..]).await;
    input.truncate(before + read.as_ref().map_or(0, |&bytes| bytes));
    read
}

pub async fn write(writer: &mut Writer, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    writer.write_vectored(slices).await
}

pub async fn shutdown(writer: &mut Writer) -> io::Result<()> {
    writer.close().await
}

/// Runs a task until it ends.
pub fn spawn(task: impl Future<Output = ()> + 'static) {
    glommio_ng::spawn_local(task).detach();
}

/// Nothing if it takes longer.
pub async fn timeout<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    let late = async {
        sleep(limit).await;
        None
    };
    or(async { Some(work.await) }, late).await
}
