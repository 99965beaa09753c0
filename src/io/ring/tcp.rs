//! Sockets of an executor. Every method must be called on the executor that made the handle.
//!
//! A [`Stream`] is shared by the task that reads and the task that writes. The system call is tried first; where it would
//! block, one multishot poll per socket tells for the rest of its life when more has come. So a request costs one
//! recv(2), and nothing here hands the kernel memory that has to outlive a call.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::net::{Shutdown, SocketAddr, ToSocketAddrs};
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use socket2::{Domain, MsgHdr, Protocol, SockRef, Socket, Type};

use crate::io::ring::core::Core;
use crate::io::ring::op::Readiness;
use crate::io::ring::timers::Sleep;

/// Connections that the kernel completes before we accept them (RocketMQ's `serverSocketBacklog`).
const BACKLOG: i32 = 1024;
/// What a reader waits for.
const READ_EVENTS: libc::c_short = libc::POLLIN | libc::POLLRDHUP;

/// A listening socket. Several cores may bind the same address; the kernel spreads the connections.
pub struct Listener {
    socket: Socket,
    local: SocketAddr,
    core: Rc<Core>,
    arrived: Rc<Readiness>,
}

impl Listener {
    /// Listens on an address; port 0 is any free one.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM.nonblocking(),
            Some(Protocol::TCP),
        )?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let local = inet(socket.local_addr()?)?;
        Ok(Self {
            socket,
            local,
            core: Core::current(),
            arrived: Readiness::new(),
        })
    }

    /// Stops listening at once: the kernel completes no further connection, although the poll in the ring keeps the
    /// socket open for a while after it was closed.
    pub fn shutdown(&self) {
        // An error means that it does not listen any more.
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// The address with the real port.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// The next connection. An error concerns that connection, or descriptors or memory that are used up.
    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Stream>> {
        let fd = self.socket.as_raw_fd();
        try_until_pending(&self.core, fd, READ_EVENTS, true, &self.arrived, cx, || {
            let (socket, _) = self.socket.accept()?;
            // A socket that cannot be asked for its peer was reset before we came.
            socket
                .set_nonblocking(true)
                .and_then(|()| Stream::new(socket))
                .map_err(|error| io::Error::new(io::ErrorKind::ConnectionAborted, error))
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.core.unwatch(&self.arrived);
    }
}

/// Tries a system call as long as the socket may be ready for it; where it would block, the task waits.
fn try_until_pending<T>(
    core: &Core,
    fd: i32,
    events: libc::c_short,
    every: bool,
    readiness: &Rc<Readiness>,
    cx: &Context<'_>,
    mut attempt: impl FnMut() -> io::Result<T>,
) -> Poll<io::Result<T>> {
    loop {
        if !readiness.ready.get() && !readiness.ended.get() {
            readiness.wait(cx);
            core.watch(fd, events, every, readiness);
            return Poll::Pending;
        }
        match attempt() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                readiness.ready.set(false);
                readiness.ended.set(false);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return Poll::Ready(result),
        }
    }
}

/// A connected socket with TCP_NODELAY. See the module's page.
pub struct Stream {
    socket: Cell<Option<Rc<Socket>>>,
    /// `None` for a stream that was closed from the start.
    core: Option<Rc<Core>>,
    readable: Rc<Readiness>,
    writable: Rc<Readiness>,
    peer: SocketAddr,
    local: SocketAddr,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stream({} to {})", self.local, self.peer)
    }
}

impl Stream {
    fn new(socket: Socket) -> io::Result<Self> {
        socket.set_tcp_nodelay(true)?;
        let (peer, local) = (inet(socket.peer_addr()?)?, inet(socket.local_addr()?)?);
        let mut stream = Self::closed(peer, local);
        stream.socket = Cell::new(Some(Rc::new(socket)));
        stream.core = Some(Core::current());
        Ok(stream)
    }

    /// A stream that was closed already: it reads its end and refuses writes.
    pub fn closed(peer: SocketAddr, local: SocketAddr) -> Self {
        Self {
            socket: Cell::new(None),
            core: None,
            readable: Readiness::new(),
            writable: Readiness::new(),
            peer: canonical(peer),
            local: canonical(local),
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

    /// The open socket and its executor.
    fn open(&self) -> Option<(Rc<Socket>, &Core)> {
        let socket = self.socket.take();
        self.socket.set(socket.clone());
        Some((socket?, self.core.as_deref()?))
    }

    /// Reads once into the spare capacity of `buffer`, of which there must be some. 0 is the end.
    pub fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut BytesMut,
    ) -> Poll<io::Result<usize>> {
        let Some((socket, core)) = self.open() else {
            return Poll::Ready(Ok(0));
        };
        let fd = socket.as_raw_fd();
        let spare = buffer.spare_capacity_mut();
        assert!(!spare.is_empty(), "a read of nothing looks like the end");
        let offered = spare.len();
        let read = try_until_pending(core, fd, READ_EVENTS, true, &self.readable, cx, || {
            socket.recv(spare)
        });
        if let Poll::Ready(Ok(bytes)) = read {
            assert!(bytes <= offered);
            if bytes < offered && bytes > 0 {
                // All that had come is read; whatever comes next, the end included, is told by the poll.
                self.readable.ready.set(self.readable.armed.get().is_none());
            }
            let len = buffer.len() + bytes;
            // SAFETY: the kernel wrote `bytes` bytes behind the old length, within the capacity.
            unsafe { buffer.set_len(len) };
        }
        read
    }

    /// Writes the start of `slices`, as much as the socket takes now, in one system call.
    pub fn poll_write(
        &self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Some((socket, core)) = self.open() else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        let fd = socket.as_raw_fd();
        try_until_pending(core, fd, libc::POLLOUT, false, &self.writable, cx, || {
            socket.sendmsg(&MsgHdr::new().with_buffers(slices), libc::MSG_NOSIGNAL)
        })
    }

    /// Ends both directions, which wakes whoever waits for the socket. The descriptor stays open.
    pub fn shutdown(&self) {
        if let Some((socket, _)) = self.open() {
            // An error means that the peer was faster.
            let _ = socket.shutdown(Shutdown::Both);
        }
        for direction in [&self.readable, &self.writable] {
            direction.ended.set(true);
            direction.wake();
        }
    }

    /// Closes the descriptor.
    pub fn close(&self) {
        for direction in [&self.readable, &self.writable] {
            if let Some(core) = &self.core {
                core.unwatch(direction);
            }
            direction.wake();
        }
        self.socket.take();
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.close();
    }
}

fn inet(address: socket2::SockAddr) -> io::Result<SocketAddr> {
    address
        .as_socket()
        .ok_or_else(|| io::Error::other("not an internet address"))
}

/// IPv4 addresses that an IPv6 socket shows as `::ffff:a.b.c.d` are IPv4 addresses to everyone above.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Connects to `host:port` within `timeout`, name resolution included. The addresses of a name are tried in order.
pub async fn connect(address: &str, timeout: Duration) -> io::Result<Stream> {
    let core = Core::current();
    let attempt = async {
        let mut failed = None;
        for address in resolve(&core, address).await? {
            match connect_to(&core, address).await {
                Ok(socket) => return Stream::new(socket),
                Err(error) => failed = Some(error),
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
    let mut limit = std::pin::pin!(Sleep::new(core.clone(), timeout));
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

/// Ends the watch of a connection attempt that is given up.
struct Watched<'a>(&'a Core, Rc<Readiness>);

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        self.0.unwatch(&self.1);
    }
}

async fn connect_to(core: &Core, address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    match socket.connect(&address.into()) {
        Ok(()) => return Ok(socket),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(error) => return Err(error),
    }
    let watched = Watched(core, Readiness::new());
    watched.1.ready.set(false);
    poll_fn(|cx| {
        if watched.1.ready.get() {
            return Poll::Ready(());
        }
        watched.1.wait(cx);
        core.watch(socket.as_raw_fd(), libc::POLLOUT, false, &watched.1);
        Poll::Pending
    })
    .await;
    match SockRef::from(&socket).take_error()? {
        None => Ok(socket),
        Some(error) => Err(error),
    }
}

/// A literal address costs nothing; a name is looked up on the executor's helper thread.
async fn resolve(core: &Core, address: &str) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = address.parse() {
        return Ok(vec![address]);
    }
    let name = address.to_owned();
    core.helper
        .run(move || name.to_socket_addrs().map(Iterator::collect))
        .await
}
