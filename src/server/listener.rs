//! One accept loop per core and listening address, and the connections of that core.
//!
//! A process has one [`Server`] per core and role. It accepts, keeps its connections by id, limits their number, sweeps
//! them every few seconds while there are any, and stops gracefully: no new connections, then each one is closed as soon
//! as nothing of it waits.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ahash::AHashMap;

use crate::base::id::ConnectionId;
use crate::io::env::Env;
use crate::io::tcp::{Listener, Stream};
use crate::server::Handler;
use crate::server::connection::{Connection, Core, NativeResponder, Responder};
use crate::server::tasks::Tasks;
use crate::wire::native::frame::Frame;
use crate::wire::remoting::command::Command;

/// Wait after a failed accept: descriptors or memory are used up, and asking again at once would only spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections that are accepted before others of the core run.
const ACCEPT_TURN: u32 = 16;
/// How often a stopping server looks whether a connection has become quiet.
const STOP_POLL: Duration = Duration::from_millis(10);

/// Serials of connections are unique in the process, whichever server made them.
static NEXT_SERIAL: AtomicU64 = AtomicU64::new(1);

/// An id that no connection had.
pub fn new_connection_id(core: u16) -> ConnectionId {
    ConnectionId {
        core,
        serial: NEXT_SERIAL.fetch_add(1, Ordering::Relaxed),
    }
}

/// What an operator may set. Times are kept to the precision of `sweep_interval`, never shorter than asked.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Number of this core, for the ids of its connections.
    pub core: u16,
    /// A connection with neither read nor write for so long is closed (`serverChannelMaxIdleTimeSeconds`).
    pub idle_close: Duration,
    /// A peer that takes none of what waits for it for so long is closed.
    pub stalled_close: Duration,
    pub sweep_interval: Duration,
    /// Connections of this core; further ones are closed at once.
    pub connections_max: usize,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            core: 0,
            idle_close: Duration::from_secs(120),
            stalled_close: Duration::from_secs(60),
            sweep_interval: Duration::from_secs(5),
            connections_max: 65_536,
        }
    }
}

/// See the module's page.
pub struct Server {
    options: ServerOptions,
    core: Rc<Core>,
    connections: RefCell<AHashMap<u64, Rc<Connection>>>,
    sweeping: Cell<bool>,
    stopping: Cell<bool>,
    /// The accept loops, to be woken by a stop.
    acceptors: RefCell<Vec<Rc<Acceptor>>>,
    /// Connections refused since the last sweep that said so.
    refused: Cell<u64>,
    #[cfg(test)]
    pub(super) accept_failures: Cell<u32>,
}

/// An accept loop and what wakes it.
struct Acceptor {
    listener: Listener,
    waker: Cell<Option<Waker>>,
}

/// Takes a connection off the list before its handler hears that it is gone.
struct Listed {
    server: Weak<Server>,
    handler: Rc<dyn Handler>,
}

impl Handler for Listed {
    fn handle(&self, request: Command, responder: Responder) {
        self.handler.handle(request, responder);
    }

    fn has_room(&self) -> bool {
        self.handler.has_room()
    }

    fn speaks_native(&self) -> bool {
        self.handler.speaks_native()
    }

    fn handle_native(&self, frame: Frame, responder: NativeResponder) {
        self.handler.handle_native(frame, responder);
    }

    fn closed(&self, connection: &Rc<Connection>) {
        if let Some(server) = self.server.upgrade() {
            server
                .connections
                .borrow_mut()
                .remove(&connection.id().serial);
        }
        self.handler.closed(connection);
    }
}

impl Server {
    /// A server of this core, without a listener yet.
    pub fn new<E: Env>(env: &E, options: ServerOptions, handler: Rc<dyn Handler>) -> Rc<Self> {
        let tasks: Rc<dyn Tasks> = Rc::new(env.clone());
        Rc::new_cyclic(|server| Self {
            options,
            core: Rc::new(Core::new(
                tasks,
                Rc::new(Listed {
                    server: server.clone(),
                    handler,
                }),
            )),
            connections: RefCell::default(),
            sweeping: Cell::new(false),
            stopping: Cell::new(false),
            acceptors: RefCell::default(),
            refused: Cell::new(0),
            #[cfg(test)]
            accept_failures: Cell::new(0),
        })
    }

    /// Accepts from a listener until the server stops. May be called for several.
    pub fn serve(self: &Rc<Self>, listener: Listener) {
        let acceptor = Rc::new(Acceptor {
            listener,
            waker: Cell::new(None),
        });
        self.acceptors.borrow_mut().push(acceptor.clone());
        let server = self.clone();
        self.core.tasks.start(Box::pin(async move {
            server.accept_all(&acceptor).await;
        }));
    }

    /// A live connection of this core.
    pub fn get(&self, id: ConnectionId) -> Option<Rc<Connection>> {
        if id.core != self.options.core {
            return None;
        }
        self.connections.borrow().get(&id.serial).cloned()
    }

    /// Live connections of this core.
    pub fn connection_count(&self) -> usize {
        self.connections.borrow().len()
    }

    /// Stops accepting, closes each connection as soon as nothing of it waits for an answer or to be written, and after
    /// `limit` whatever is left. Returns when all are gone.
    pub async fn stop(&self, limit: Duration) {
        self.stopping.set(true);
        for acceptor in self.acceptors.take() {
            acceptor.listener.shutdown();
            if let Some(waker) = acceptor.waker.take() {
                waker.wake();
            }
        }
        let mut waited = Duration::ZERO;
        while self.connection_count() > 0 {
            let late = waited >= limit;
            for connection in self.snapshot() {
                if late {
                    connection.close_now();
                } else if connection.is_quiet() {
                    connection.close();
                }
            }
            self.core.tasks.wait(STOP_POLL).await;
            waited += STOP_POLL;
        }
    }

    fn snapshot(&self) -> Vec<Rc<Connection>> {
        self.connections.borrow().values().cloned().collect()
    }

    async fn accept_all(self: &Rc<Self>, acceptor: &Acceptor) {
        let local = acceptor.listener.local();
        let mut turn: u32 = 0;
        loop {
            match poll_fn(|cx| self.poll_accept(acceptor, cx)).await {
                None => return,
                Some(Ok(stream)) => self.adopt(stream),
                // The peer was gone before we came.
                Some(Err(error))
                    if matches!(
                        error.kind(),
                        io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
                    ) =>
                {
                    tracing::debug!(%local, %error, "a connection was gone before it was accepted");
                }
                Some(Err(error)) => {
                    tracing::warn!(%local, %error, connections = self.connection_count(),
                        "cannot accept; raise the limit of open files (ulimit -n, LimitNOFILE) if that is the cause");
                    #[cfg(test)]
                    self.accept_failures.set(self.accept_failures.get() + 1);
                    self.core.tasks.wait(ACCEPT_PAUSE).await;
                }
            }
            turn = turn.wrapping_add(1);
            if turn.is_multiple_of(ACCEPT_TURN) {
                futures_lite::future::yield_now().await;
            }
        }
    }

    fn poll_accept(
        &self,
        acceptor: &Acceptor,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Stream>>> {
        if self.stopping.get() {
            return Poll::Ready(None);
        }
        acceptor.waker.set(Some(cx.waker().clone()));
        acceptor.listener.poll_accept(cx).map(Some)
    }

    fn adopt(self: &Rc<Self>, stream: Stream) {
        if self.connection_count() >= self.options.connections_max {
            if self.refused.replace(self.refused.get() + 1) == 0 {
                tracing::warn!(peer = %stream.peer(), limit = self.options.connections_max,
                    "too many connections on this core; refusing new ones");
            }
            return;
        }
        let id = new_connection_id(self.options.core);
        let connection = Connection::start(stream, id, self.core.clone());
        self.connections.borrow_mut().insert(id.serial, connection);
        if !self.sweeping.replace(true) {
            let server = self.clone();
            self.core
                .tasks
                .start(Box::pin(async move { server.sweep_while_needed().await }));
        }
    }

    /// Ends with the last connection, so that an idle server has no timer.
    async fn sweep_while_needed(&self) {
        let ticks = |time: Duration| {
            let interval_ns = self.options.sweep_interval.as_nanos().max(1);
            u32::try_from(time.as_nanos().div_ceil(interval_ns)).unwrap_or(u32::MAX)
        };
        let (idle_ticks, stalled_ticks) = (
            ticks(self.options.idle_close),
            ticks(self.options.stalled_close),
        );
        while self.connection_count() > 0 {
            self.core.tasks.wait(self.options.sweep_interval).await;
            self.core.tick.set(self.core.tick.get().wrapping_add(1));
            if self.refused.get() > 1 {
                tracing::warn!(
                    count = self.refused.get(),
                    limit = self.options.connections_max,
                    "connections were refused"
                );
            }
            self.refused.set(0);
            for connection in self.snapshot() {
                connection.sweep(idle_ticks, stalled_ticks);
            }
        }
        self.sweeping.set(false);
    }
}
