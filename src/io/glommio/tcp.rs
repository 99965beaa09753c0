//! Sockets of a glommio executor. Every method must be called on the executor that made the handle.
//!
//! A [`Stream`] is shared by the task that reads and the task that writes; the socket is borrowed only inside a poll.
//! The runtime tries the system call first and waits for readiness only if it would block, so nothing here hands the
//! kernel memory that has to outlive a call.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::{Shutdown, SocketAddr, ToSocketAddrs};
use std::os::fd::{FromRawFd, IntoRawFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use futures_lite::{AsyncRead, AsyncWrite};
use glommio::net::{TcpListener, TcpStream};
use socket2::{Domain, Protocol, Socket, Type};

use crate::io::glommio::env::io_error;

/// Connections that the kernel completes before we accept them (RocketMQ's `serverSocketBacklog`).
const BACKLOG: i32 = 1024;

/// A listening socket. Several cores may bind the same address; the kernel spreads the connections.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    /// The same socket once more, because the runtime's handle can neither be shut down nor lends its descriptor.
    handle: Socket,
    local: SocketAddr,
}

impl Listener {
    /// Listens on an address; port 0 is any free one.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let handle = socket.try_clone()?;
        // SAFETY: the descriptor is a listening socket that nothing else owns: `into_raw_fd` gave it up.
        let socket = unsafe { TcpListener::from_raw_fd(socket.into_raw_fd()) };
        let local = socket.local_addr().map_err(io_error)?;
        Ok(Self {
            socket,
            handle,
            local,
        })
    }

    /// Stops listening at once: the kernel completes no further connection, even while an accept is pending in the
    /// ring, which keeps the socket open for a while after it was closed.
    pub fn shutdown(&self) {
        // An error means that it does not listen any more.
        let _ = self.handle.shutdown(Shutdown::Both);
    }

    /// The address with the real port.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// The next connection. An error concerns that connection, or descriptors or memory that are used up.
    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Stream>> {
        self.socket.poll_accept(cx).map(|accepted| {
            // A socket that cannot be asked for its peer was reset before we came.
            Stream::new(accepted.map_err(io_error)?)
                .map_err(|error| io::Error::new(io::ErrorKind::ConnectionAborted, error))
        })
    }
}

/// A connected socket with TCP_NODELAY. See the module's page.
#[derive(Debug)]
pub struct Stream {
    socket: RefCell<Option<TcpStream>>,
    peer: SocketAddr,
    local: SocketAddr,
}

impl Stream {
    fn new(socket: TcpStream) -> io::Result<Self> {
        socket.set_nodelay(true).map_err(io_error)?;
        let peer = socket.peer_addr().map_err(io_error)?;
        let local = socket.local_addr().map_err(io_error)?;
        Ok(Self {
            socket: RefCell::new(Some(socket)),
            peer: canonical(peer),
            local: canonical(local),
        })
    }

    /// A stream that was closed already: it reads its end and refuses writes.
    pub fn closed(peer: SocketAddr, local: SocketAddr) -> Self {
        Self {
            socket: RefCell::new(None),
            peer,
            local,
        }
    }

    /// Address of the peer.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Our address.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Reads once into the spare capacity of `buffer`, of which there must be some. 0 is the end.
    pub fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut BytesMut,
    ) -> Poll<io::Result<usize>> {
        let mut socket = self.socket.borrow_mut();
        let Some(socket) = socket.as_mut() else {
            return Poll::Ready(Ok(0));
        };
        let spare = buffer.spare_capacity_mut();
        assert!(!spare.is_empty(), "a read of nothing looks like the end");
        // SAFETY: memory and length are those of `spare`, borrowed from `buffer` until the slice's last use. The
        // runtime passes an unbuffered read on to recv(2), which only writes to it.
        let target =
            unsafe { std::slice::from_raw_parts_mut(spare.as_mut_ptr().cast::<u8>(), spare.len()) };
        match Pin::new(socket).poll_read(cx, target) {
            Poll::Ready(Ok(bytes)) => {
                assert!(bytes <= target.len());
                let len = buffer.len() + bytes;
                // SAFETY: the kernel wrote `bytes` bytes behind the old length, within the capacity.
                unsafe { buffer.set_len(len) };
                Poll::Ready(Ok(bytes))
            }
            other => other,
        }
    }

    /// Writes the start of `slices`, as much as the socket takes now, in one system call.
    pub fn poll_write(
        &self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.socket.borrow_mut().as_mut() {
            Some(socket) => Pin::new(socket).poll_write_vectored(cx, slices),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    /// Ends both directions, which wakes whoever waits for the socket. The descriptor stays open.
    pub fn shutdown(&self) {
        if let Some(socket) = self.socket.borrow().as_ref() {
            // An error means that the peer was faster.
            let mut cx = Context::from_waker(std::task::Waker::noop());
            let _ = socket.poll_shutdown(&mut cx, Shutdown::Both);
        }
    }

    /// Closes the descriptor.
    pub fn close(&self) {
        self.socket.take();
    }
}

/// IPv4 addresses that an IPv6 socket shows as `::ffff:a.b.c.d` are IPv4 addresses to everyone above.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Connects to `host:port` within `timeout`, name resolution included. The addresses of a name are tried in order.
pub async fn connect(address: &str, timeout: Duration) -> io::Result<Stream> {
    let attempt = async {
        let mut failed = None;
        for address in resolve(address).await? {
            match TcpStream::connect(address).await {
                Ok(socket) => return Stream::new(socket),
                Err(error) => failed = Some(io_error(error)),
            }
        }
        Err(failed.unwrap_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                format!("'{address}' has no address"),
            )
        }))
    };
    let mut attempt = std::pin::pin!(attempt);
    let mut limit = std::pin::pin!(glommio::timer::sleep(timeout));
    poll_fn(|cx| match attempt.as_mut().poll(cx) {
        Poll::Pending => limit.as_mut().poll(cx).map(|()| {
            Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no connection to {address} within {timeout:?}"),
            ))
        }),
        ready => ready,
    })
    .await
}

/// A literal address costs nothing; a name is looked up on the executor's helper thread.
async fn resolve(address: &str) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = address.parse() {
        return Ok(vec![address]);
    }
    let name = address.to_owned();
    glommio::executor()
        .spawn_blocking(move || name.to_socket_addrs().map(Iterator::collect))
        .await
}
