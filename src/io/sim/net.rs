//! Connections between simulated machines: byte streams that are delayed, cut in pieces, held up while a link is cut, and
//! ended by the crash of either side.
//!
//! Bytes of one connection stay in order, as TCP's do; those of several connections overtake each other. A link is cut in one
//! direction or both: what was sent meanwhile comes when it is whole again, unless the connection is gone by then.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::BytesMut;

use crate::io::env::Env;
use crate::io::net::{Net, NetStream};
use crate::io::sim::env::SimEnv;
use crate::io::sim::world::{Control, NodeId};

/// What a connection holds on its way before its writer has to wait.
const IN_FLIGHT_BYTES_MAX: usize = 256 << 10;
/// How often a cut link is looked at.
const CUT_POLL: Duration = Duration::from_millis(1);

type Accept = Rc<dyn Fn(SimStream)>;

struct State {
    control: Control,
    listeners: RefCell<BTreeMap<String, (SimEnv, Accept)>>,
    /// From one machine to another: nothing arrives.
    cut: RefCell<BTreeSet<(NodeId, NodeId)>>,
    delay_us_max: Cell<u64>,
}

/// The network of a world. Cheap to clone.
#[derive(Clone)]
pub struct SimNetwork(Rc<State>);

impl SimNetwork {
    /// A network without a fault.
    pub fn new(control: Control) -> Self {
        Self(Rc::new(State {
            control,
            listeners: RefCell::default(),
            cut: RefCell::default(),
            delay_us_max: Cell::new(200),
        }))
    }

    /// Takes connections to an address, for as long as the process lives.
    pub fn listen(&self, env: &SimEnv, address: &str, accept: impl Fn(SimStream) + 'static) {
        let listener = (env.clone(), Rc::new(accept) as Accept);
        self.0
            .listeners
            .borrow_mut()
            .insert(address.to_owned(), listener);
    }

    /// What a core of a machine connects with.
    pub fn of(&self, env: &SimEnv) -> SimNet {
        SimNet {
            network: self.clone(),
            env: env.clone(),
        }
    }

    /// Cuts the way from one machine to another, or mends it.
    pub fn set_cut(&self, from: NodeId, to: NodeId, is_cut: bool) {
        let mut cut = self.0.cut.borrow_mut();
        if is_cut {
            cut.insert((from, to));
        } else {
            cut.remove(&(from, to));
        }
    }

    /// Greatest delay of a piece from now on.
    pub fn set_delay_us_max(&self, delay_us_max: u64) {
        self.0.delay_us_max.set(delay_us_max.max(1));
    }

    fn is_cut(&self, from: NodeId, to: NodeId) -> bool {
        self.0.cut.borrow().contains(&(from, to))
    }

    fn delay(&self) -> Duration {
        let state = &self.0;
        Duration::from_micros(state.control.random_u64() % state.delay_us_max.get())
    }
}

/// See [`SimNetwork::of`].
#[derive(Clone)]
pub struct SimNet {
    network: SimNetwork,
    env: SimEnv,
}

impl Net for SimNet {
    type Stream = SimStream;

    fn connect(
        &self,
        address: &str,
        timeout: Duration,
    ) -> impl Future<Output = io::Result<SimStream>> + 'static {
        let (network, env, address) = (self.network.clone(), self.env.clone(), address.to_owned());
        async move {
            env.sleep(network.delay()).await;
            let listener = network.0.listeners.borrow().get(&address).cloned();
            let Some((host, accept)) = listener.filter(|(host, _)| host.is_alive()) else {
                return Err(io::ErrorKind::ConnectionRefused.into());
            };
            let (here, there) = (env.node(), host.node());
            if network.is_cut(here, there) || network.is_cut(there, here) {
                env.sleep(timeout).await;
                return Err(io::ErrorKind::TimedOut.into());
            }
            let up = Pipe::new(&network, here, there);
            let down = Pipe::new(&network, there, here);
            accept(SimStream {
                incoming: up.clone(),
                outgoing: down.clone(),
                peer: address_of(here),
            });
            Ok(SimStream {
                incoming: down,
                outgoing: up,
                peer: address_of(there),
            })
        }
    }
}

fn address_of(node: NodeId) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::new(127, 0, 0, 1 + node as u8).into(), 10912)
}

/// One direction of a connection.
struct Pipe {
    network: SimNetwork,
    from: NodeId,
    to: NodeId,
    /// In order; `None` is the end.
    on_the_way: RefCell<VecDeque<Option<Vec<u8>>>>,
    arrived: RefCell<VecDeque<u8>>,
    /// Bytes that the reader has not taken, wherever they are.
    held_bytes: Cell<usize>,
    has_ended: Cell<bool>,
    /// Nobody reads any more.
    is_deaf: Cell<bool>,
    is_moving: Cell<bool>,
    reader: RefCell<Option<Waker>>,
    writer: RefCell<Option<Waker>>,
}

impl Pipe {
    fn new(network: &SimNetwork, from: NodeId, to: NodeId) -> Rc<Self> {
        Rc::new(Self {
            network: network.clone(),
            from,
            to,
            on_the_way: RefCell::default(),
            arrived: RefCell::default(),
            held_bytes: Cell::new(0),
            has_ended: Cell::new(false),
            is_deaf: Cell::new(false),
            is_moving: Cell::new(false),
            reader: RefCell::default(),
            writer: RefCell::default(),
        })
    }

    fn send(self: &Rc<Self>, piece: Option<Vec<u8>>) {
        self.on_the_way.borrow_mut().push_back(piece);
        if self.is_moving.replace(true) {
            return;
        }
        let pipe = self.clone();
        let control = self.network.0.control.clone();
        control.clone().spawn(async move {
            loop {
                control.sleep(pipe.network.delay()).await;
                while pipe.network.is_cut(pipe.from, pipe.to) {
                    control.sleep(CUT_POLL).await;
                }
                let next = pipe.on_the_way.borrow_mut().pop_front();
                match next {
                    None => break,
                    Some(None) => pipe.end(),
                    Some(Some(bytes)) => pipe.arrived.borrow_mut().extend(bytes),
                }
                wake(&pipe.reader);
            }
            pipe.is_moving.set(false);
        });
    }

    /// The reader hears of the end when it has taken what has arrived.
    fn end(&self) {
        self.has_ended.set(true);
        wake(&self.reader);
        wake(&self.writer);
    }
}

fn wake(waker: &RefCell<Option<Waker>>) {
    let waker = waker.borrow_mut().take();
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// One end of a connection.
pub struct SimStream {
    incoming: Rc<Pipe>,
    outgoing: Rc<Pipe>,
    peer: SocketAddr,
}

impl NetStream for SimStream {
    fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut BytesMut) -> Poll<io::Result<usize>> {
        let pipe = &self.incoming;
        let room = buffer.capacity() - buffer.len();
        assert!(room > 0, "a read of nothing looks like the end");
        let bytes = pipe.arrived.borrow().len().min(room);
        if bytes == 0 {
            if pipe.has_ended.get() || pipe.is_deaf.get() {
                return Poll::Ready(Ok(0));
            }
            *pipe.reader.borrow_mut() = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let mut arrived = pipe.arrived.borrow_mut();
        let (front, back) = arrived.as_slices();
        let of_front = front.len().min(bytes);
        buffer.extend_from_slice(&front[..of_front]);
        buffer.extend_from_slice(&back[..bytes - of_front]);
        arrived.drain(..bytes);
        pipe.held_bytes.set(pipe.held_bytes.get() - bytes);
        wake(&pipe.writer);
        Poll::Ready(Ok(bytes))
    }

    fn poll_write(&self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let pipe = &self.outgoing;
        if pipe.is_deaf.get() || pipe.has_ended.get() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = IN_FLIGHT_BYTES_MAX.saturating_sub(pipe.held_bytes.get());
        if room == 0 {
            *pipe.writer.borrow_mut() = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let offered: usize = slices.iter().map(|slice| slice.len()).sum();
        // Now and then only a part is taken.
        let random = self.outgoing.network.0.control.random_u64();
        let most = offered.min(room);
        let bytes = match random % 4 {
            0 if most > 1 => 1 + (random >> 2) as usize % (most - 1),
            _ => most,
        };
        let mut piece = Vec::with_capacity(bytes);
        for slice in slices {
            let left = bytes - piece.len();
            piece.extend_from_slice(&slice[..slice.len().min(left)]);
        }
        pipe.held_bytes.set(pipe.held_bytes.get() + bytes);
        pipe.send(Some(piece));
        Poll::Ready(Ok(bytes))
    }

    fn peer(&self) -> SocketAddr {
        self.peer
    }

    fn shutdown(&self) {
        self.incoming.is_deaf.set(true);
        wake(&self.incoming.reader);
        wake(&self.incoming.writer);
        if !self.outgoing.has_ended.get() {
            self.outgoing.send(None);
        }
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        self.shutdown();
    }
}
