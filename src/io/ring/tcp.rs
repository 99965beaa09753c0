//! Sockets of an executor. Every method must be called on the executor that made the handle.
//!
//! A [`Stream`] is shared by the task that reads and the task that writes. The system call is tried first; where it would
//! block, the executor's set of sockets tells when more has come. So a request costs one recv(2), and nothing here
//! hands the kernel memory that has to outlive a call.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::net::{Shutdown, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use socket2::{Domain, MsgHdr, Protocol, SockRef, Socket, Type};

use crate::io::net::{Net, NetStream};
use crate::io::ring::core::Core;
use crate::io::ring::sockets::{Directions, Readiness};
use crate::io::ring::timers::Sleep;

/// Connections that the kernel completes before we accept them (RocketMQ's `serverSocketBacklog`).
const BACKLOG: i32 = 1024;

/// A socket in the executor's set. It is taken out and closed when this is dropped.
struct Registered {
    core: Rc<Core>,
    socket: Socket,
    directions: Rc<Directions>,
    key: usize,
}

impl Registered {
    fn new(socket: Socket) -> io::Result<Rc<Self>> {
        let core = Core::current();
        let directions = Directions::new();
        let key = core.sockets.add(socket.as_raw_fd(), directions.clone())?;
        Ok(Rc::new(Self {
            core,
            socket,
            directions,
            key,
        }))
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let descriptor: RawFd = self.socket.as_raw_fd();
        self.core.sockets.remove(descriptor, self.key);
    }
}

/// A listening socket. Several cores may bind the same address; the kernel spreads the connections.
pub struct Listener {
    registered: Rc<Registered>,
    local: SocketAddr,
}

impl Listener {
    /// Listens on an address; port 0 is any free one.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        Self::bind_as(address, true)
    }

    /// The same for one core alone: fails if any socket listens there.
    pub fn bind_alone(address: SocketAddr) -> io::Result<Self> {
        Self::bind_as(address, false)
    }

    fn bind_as(address: SocketAddr, shared: bool) -> io::Result<Self> {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM.nonblocking(),
            Some(Protocol::TCP),
        )?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(shared)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let local = inet(socket.local_addr()?)?;
        Ok(Self {
            registered: Registered::new(socket)?,
            local,
        })
    }

    /// Stops listening at once: the kernel completes no further connection.
    pub fn shutdown(&self) {
        // An error means that it does not listen any more.
        let _ = self.registered.socket.shutdown(Shutdown::Both);
    }

    /// The address with the real port.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// The next connection. An error concerns that connection, or descriptors or memory that are used up.
    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Stream>> {
        try_until_pending(&self.registered.directions.readable, cx, || {
            let (socket, _) = self.registered.socket.accept()?;
            // A socket that cannot be asked for its peer was reset before we came.
            socket
                .set_nonblocking(true)
                .and_then(|()| Stream::new(socket))
                .map_err(|error| io::Error::new(io::ErrorKind::ConnectionAborted, error))
        })
    }
}

/// Tries a system call as long as the socket may be ready for it; where it would block, the task waits.
fn try_until_pending<T>(
    readiness: &Readiness,
    cx: &Context<'_>,
    mut attempt: impl FnMut() -> io::Result<T>,
) -> Poll<io::Result<T>> {
    loop {
        if !readiness.ready.get() && !readiness.ended.get() {
            readiness.wait(cx);
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
    /// `None` once it is closed.
    open: Cell<Option<Rc<Registered>>>,
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
        Self::registered(Registered::new(socket)?)
    }

    fn registered(open: Rc<Registered>) -> io::Result<Self> {
        open.socket.set_tcp_nodelay(true)?;
        let (peer, local) = (
            inet(open.socket.peer_addr()?)?,
            inet(open.socket.local_addr()?)?,
        );
        let stream = Self::closed(peer, local);
        stream.open.set(Some(open));
        Ok(stream)
    }

    /// A stream that was closed already: it reads its end and refuses writes.
    pub fn closed(peer: SocketAddr, local: SocketAddr) -> Self {
        Self {
            open: Cell::new(None),
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

    fn open(&self) -> Option<Rc<Registered>> {
        let open = self.open.take();
        self.open.set(open.clone());
        open
    }

    /// Reads once into the spare capacity of `buffer`, of which there must be some. 0 is the end.
    pub fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut BytesMut,
    ) -> Poll<io::Result<usize>> {
        let Some(open) = self.open() else {
            return Poll::Ready(Ok(0));
        };
        let readable = &open.directions.readable;
        let spare = buffer.spare_capacity_mut();
        assert!(!spare.is_empty(), "a read of nothing looks like the end");
        let offered = spare.len();
        let read = try_until_pending(readable, cx, || open.socket.recv(spare));
        if let Poll::Ready(Ok(bytes)) = read {
            assert!(bytes <= offered);
            if bytes < offered && bytes > 0 {
                // All that had come is read; whatever comes next, the end included, is an edge that is told.
                readable.ready.set(false);
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
        let Some(open) = self.open() else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        try_until_pending(&open.directions.writable, cx, || {
            open.socket
                .sendmsg(&MsgHdr::new().with_buffers(slices), libc::MSG_NOSIGNAL)
        })
    }

    /// Takes the socket out of this executor, so that another one may go on with it.
    pub fn detach(&self) -> io::Result<DetachedStream> {
        let Some(open) = self.open.take() else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let socket = open.socket.try_clone()?;
        Ok(DetachedStream(socket))
    }

    /// Ends both directions, which wakes whoever waits for the socket. The descriptor stays open.
    pub fn shutdown(&self) {
        let Some(open) = self.open() else { return };
        // An error means that the peer was faster.
        let _ = open.socket.shutdown(Shutdown::Both);
        for direction in [&open.directions.readable, &open.directions.writable] {
            direction.ended.set(true);
            direction.wake();
        }
    }

    /// Closes the descriptor.
    pub fn close(&self) {
        let Some(open) = self.open.take() else { return };
        open.directions.readable.wake();
        open.directions.writable.wake();
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.close();
    }
}

/// A connected socket on its way from one executor to another.
#[derive(Debug)]
pub struct DetachedStream(Socket);

impl DetachedStream {
    /// Goes on with it on this executor.
    pub fn attach(self) -> io::Result<Stream> {
        Stream::new(self.0)
    }
}

impl NetStream for Stream {
    fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut BytesMut) -> Poll<io::Result<usize>> {
        Stream::poll_read(self, cx, buffer)
    }

    fn poll_write(&self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Stream::poll_write(self, cx, slices)
    }

    fn peer(&self) -> SocketAddr {
        Stream::peer(self)
    }

    fn shutdown(&self) {
        Stream::shutdown(self);
    }
}

/// Connections of an executor.
#[derive(Clone, Copy, Debug)]
pub struct RingNet;

impl Net for RingNet {
    type Stream = Stream;

    fn connect(
        &self,
        address: &str,
        timeout: Duration,
    ) -> impl Future<Output = io::Result<Stream>> + 'static {
        let address = address.to_owned();
        async move { connect(&address, timeout).await }
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
            match connect_to(address).await {
                Ok(open) => return Stream::registered(open),
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

async fn connect_to(address: SocketAddr) -> io::Result<Rc<Registered>> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    match socket.connect(&address.into()) {
        Ok(()) => return Registered::new(socket),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(error) => return Err(error),
    }
    let open = Registered::new(socket)?;
    let writable = &open.directions.writable;
    writable.ready.set(false);
    poll_fn(|cx| {
        if writable.ready.get() {
            return Poll::Ready(());
        }
        writable.wait(cx);
        Poll::Pending
    })
    .await;
    match SockRef::from(&open.socket).take_error()? {
        None => Ok(open),
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
