//! The controllers of the simulation: the real [`Node`] on an agreement of our own, and what a broker talks to it with.
//!
//! The agreement is what Raft promises and no more: one leader in a term, changes applied in one order, a leader confirmed only
//! while it leads. It takes time, stalls for longer than anybody waits, and ends with an outcome that nobody hears of; another
//! node leads at any moment, and the one before it may not know for seconds. The nodes agree without the simulated network:
//! cuts are between brokers, and between brokers and controllers.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ringmq::controller::ControllerOptions;
use ringmq::controller::agreement::{Agreement, NotLeader};
use ringmq::controller::node::{AGREEMENT_LIMIT, Node, PUSH_FRAMES_MAX};
use ringmq::controller::state::{Change, Groups, Outcome};
use ringmq::ha::agent::{Heard, Word};
use ringmq::io::env::Env;
use ringmq::io::net::{Net, NetStream, read_more, write_all};
use ringmq::io::sim::{Control, SimEnv, SimNetwork, SimStream};
use ringmq::io::tcp::ReadBuffer;
use ringmq::wire::remoting::code::request;
use ringmq::wire::remoting::command::{Command, Encoding, Outgoing};
use ringmq::wire::remoting::frame::next_frame;
use tokio::sync::mpsc;

use crate::ledger::breach;
use crate::store::Bell;
use crate::workload::within;

pub const GROUP: &str = "g";

/// Monotonic time of a machine whose clock runs at `rate` thousandths of the world's speed.
pub fn local_ns(now_ns: u64, rate: u64) -> u64 {
    (u128::from(now_ns) * u128::from(rate) / 1_000) as u64
}

struct Entry {
    term: u64,
    change: Change,
    ready_ns: u64,
    outcome: Rc<RefCell<Option<Outcome>>>,
}

/// What all controllers have agreed on, and who leads.
#[derive(Default)]
pub struct Parliament {
    term: Cell<u64>,
    leader: Cell<Option<usize>>,
    /// The term that each node believes it leads in.
    beliefs: RefCell<Vec<Option<u64>>>,
    groups: RefCell<Groups>,
    /// As each node has heard of it.
    known: RefCell<Vec<Groups>>,
    pending: RefCell<VecDeque<Entry>>,
    pub elections: Cell<u64>,
    pub unknown: Cell<u64>,
}

impl Parliament {
    pub fn new(nodes: usize) -> Rc<Self> {
        let parliament = Self::default();
        parliament.beliefs.borrow_mut().resize(nodes, None);
        parliament
            .known
            .borrow_mut()
            .resize(nodes, Groups::default());
        Rc::new(parliament)
    }

    pub fn leader(&self) -> Option<usize> {
        self.leader.get()
    }

    /// Whether nothing is being agreed on.
    pub fn is_quiet(&self) -> bool {
        self.pending.borrow().is_empty()
    }

    /// The disks of all controllers are lost.
    pub fn forget(&self) {
        self.pending.borrow_mut().clear();
        *self.groups.borrow_mut() = Groups::default();
        for known in self.known.borrow_mut().iter_mut() {
            *known = Groups::default();
        }
    }

    /// The group's committed state.
    pub fn group(&self) -> Option<ringmq::controller::state::Group> {
        self.groups.borrow().0.get(GROUP).cloned()
    }

    fn apply(&self, entry: Entry) {
        let before = self.group();
        let outcome = self.groups.borrow_mut().apply_in(entry.term, &entry.change);
        tracing::debug!(change = ?entry.change, ?outcome, "agreed");
        if let (Change::Elect { candidate, .. }, Outcome::Done(_), Some(before)) =
            (&entry.change, &outcome, before)
        {
            self.elections.set(self.elections.get() + 1);
            if !before.in_sync.is_empty() && !before.in_sync.contains(candidate) {
                breach(format!(
                    "broker {candidate} is elected from outside of the in-sync set {:?}",
                    before.in_sync
                ));
            }
        }
        *entry.outcome.borrow_mut() = Some(outcome);
    }

    /// Applies what is due, in order.
    fn pump(&self, now_ns: u64) {
        loop {
            let mut pending = self.pending.borrow_mut();
            if pending.front().is_none_or(|entry| entry.ready_ns > now_ns) {
                return;
            }
            let entry = pending.pop_front();
            drop(pending);
            if let Some(entry) = entry {
                self.apply(entry);
            }
        }
    }

    /// Another node leads from now on, or nobody. It has some of what was under way; the rest is gone.
    pub fn lead(&self, leader: Option<usize>, random: u64) {
        let kept = random as usize % (self.pending.borrow().len() + 1);
        for _ in 0..kept {
            let entry = self.pending.borrow_mut().pop_front();
            if let Some(entry) = entry {
                self.apply(entry);
            }
        }
        self.pending.borrow_mut().clear();
        self.term.set(self.term.get() + 1);
        self.leader.set(leader);
        if let Some(leader) = leader {
            self.beliefs.borrow_mut()[leader] = Some(self.term.get());
        }
    }

    /// A node hears that it leads no more.
    pub fn enlighten(&self, node: usize) {
        if self.leader.get() != Some(node) {
            self.beliefs.borrow_mut()[node] = None;
        }
    }

    fn learn(&self, node: usize) {
        self.known.borrow_mut()[node] = self.groups.borrow().clone();
    }
}

/// A node's end of a [`Parliament`].
pub struct Seat {
    parliament: Rc<Parliament>,
    env: SimEnv,
    node: usize,
    rate: u64,
}

impl Seat {
    fn is_leader(&self) -> bool {
        let parliament = &self.parliament;
        parliament.leader.get() == Some(self.node)
            && parliament.beliefs.borrow()[self.node] == Some(parliament.term.get())
    }

    fn not_leader(&self) -> NotLeader {
        self.parliament.enlighten(self.node);
        NotLeader(self.parliament.leader.get().map(|leader| leader as u64))
    }
}

impl Agreement for Seat {
    fn now_ms(&self) -> u64 {
        local_ns(self.env.now_ns(), self.rate) / 1_000_000
    }

    async fn sleep(&self, duration: Duration) {
        self.env.sleep(duration).await;
    }

    fn term(&self) -> Option<u64> {
        self.parliament.beliefs.borrow()[self.node]
    }

    async fn lead(&self) -> Result<(), NotLeader> {
        let random = self.env.random_u64();
        let pause_us = match random % 64 {
            0 => 300_000,
            _ => (random >> 8) % 3_000,
        };
        // Confirmed at some moment after the question, applied by the answer.
        self.env.sleep(Duration::from_micros(pause_us)).await;
        let is_confirmed = self.is_leader();
        self.parliament.learn(self.node);
        self.env.sleep(Duration::from_micros(pause_us / 4)).await;
        match is_confirmed {
            true => Ok(()),
            false => Err(self.not_leader()),
        }
    }

    async fn change(&self, change: Change) -> Result<Outcome, NotLeader> {
        if !self.is_leader() {
            return Err(self.not_leader());
        }
        let parliament = &self.parliament;
        let outcome = Rc::default();
        let ready_ns = {
            let random = self.env.random_u64();
            let pause_us = match random % 32 {
                0 => (random >> 8) % 5_000_000,
                _ => (random >> 8) % 5_000,
            };
            let last_ns = parliament.pending.borrow().back().map(|last| last.ready_ns);
            let ready_ns = self.env.now_ns() + pause_us * 1_000;
            ready_ns.max(last_ns.unwrap_or(0))
        };
        parliament.pending.borrow_mut().push_back(Entry {
            term: parliament.term.get(),
            change,
            ready_ns,
            outcome: Rc::clone(&outcome),
        });
        // It is applied whether this node lives or not.
        let control = self.env.control().clone();
        {
            let parliament = parliament.clone();
            let world = control.clone();
            control.spawn(async move {
                let left_ns = ready_ns.saturating_sub(world.now_ns());
                world.sleep(Duration::from_nanos(left_ns)).await;
                parliament.pump(world.now_ns());
            });
        }
        let until_ns = self.env.now_ns() + AGREEMENT_LIMIT.as_nanos() as u64;
        while self.env.now_ns() < until_ns {
            let found = outcome.borrow().clone();
            if let Some(found) = found {
                self.parliament.learn(self.node);
                return Ok(found);
            }
            self.env.sleep(Duration::from_micros(500)).await;
            // It was dropped, or another leader has taken it over: this one does not hear which.
            if !self.is_leader() {
                break;
            }
        }
        parliament.unknown.set(parliament.unknown.get() + 1);
        Err(self.not_leader())
    }

    fn groups<T>(&self, look: impl FnOnce(&Groups) -> T) -> T {
        look(&self.parliament.known.borrow()[self.node])
    }

    async fn leader(&self) -> Option<u64> {
        self.parliament.leader.get().map(|leader| leader as u64)
    }

    async fn news(&self, limit: Duration) -> bool {
        let random = self.env.random_u64();
        let limit_us = limit.as_micros() as u64;
        self.env
            .sleep(Duration::from_micros(random % limit_us + 1))
            .await;
        if random.is_multiple_of(4) {
            self.parliament.learn(self.node);
        }
        true
    }

    async fn answer(&self, _code: i32, _body: &[u8]) -> Option<Result<Vec<u8>, String>> {
        None
    }
}

pub fn address(controller: usize) -> String {
    format!("controller-{controller}")
}

/// Starts a controller on a machine that has just started.
pub fn start(
    env: &SimEnv,
    network: &SimNetwork,
    parliament: &Rc<Parliament>,
    node: usize,
    rate: u64,
) {
    let nodes = parliament.beliefs.borrow().len();
    // What it believed was in its memory.
    parliament.beliefs.borrow_mut()[node] = None;
    parliament.learn(node);
    let options = ControllerOptions {
        listen: ([127, 0, 0, 1], 9878).into(),
        group: "controllers".to_owned(),
        id: node as u64,
        members: (0..nodes).map(|id| (id as u64, address(id))).collect(),
        directory: PathBuf::new(),
        unclean: false,
        scan: Duration::from_millis(50),
        secret: Arc::from([]),
        settings: String::new(),
    };
    let seat = Seat {
        parliament: parliament.clone(),
        env: env.clone(),
        node,
        rate,
    };
    let node = Node::new(options, seat);
    env.spawn(node.clone().watch());
    let own = env.clone();
    network.listen(env, &address(seat_of(&node)), move |stream| {
        own.spawn(serve(own.clone(), node.clone(), stream));
    });
}

fn seat_of(node: &Node<Seat>) -> usize {
    node.agreement.node
}

/// A connection, as `controller/server.rs` has it.
async fn serve(env: SimEnv, node: Arc<Node<Seat>>, stream: SimStream) {
    let stream = Rc::new(stream);
    let (push, mut frames) = mpsc::channel::<Bytes>(PUSH_FRAMES_MAX);
    {
        let stream = stream.clone();
        env.spawn(async move {
            while let Some(frame) = frames.recv().await {
                if write_all(&*stream, &[&frame]).await.is_err() {
                    return;
                }
            }
        });
    }
    let mut buffer = ReadBuffer::new();
    loop {
        let command = match next_frame(&mut buffer.bytes) {
            Ok(Some(command)) => command,
            Ok(None) => match read_more(&*stream, &mut buffer, 0).await {
                Ok(()) => continue,
                Err(_) => {
                    node.on_gone(&push);
                    return stream.shutdown();
                }
            },
            Err(error) => breach(format!("a broker sends what is no frame: {error}")),
        };
        let (node, push) = (node.clone(), push.clone());
        env.spawn(async move {
            let (mut answer, body) = node.answer(&command, true, &push).await;
            answer.opaque = command.opaque;
            let _ = push.send(answer.frame(command.encoding, &body)).await;
        });
    }
}

/// A broker's connection to a controller.
pub struct Line {
    stream: SimStream,
    opaque: Cell<i32>,
    outbox: RefCell<VecDeque<Bytes>>,
    answers: RefCell<BTreeMap<i32, Command>>,
    is_open: Cell<bool>,
    bell: Bell,
}

impl Line {
    /// Connects; what the controller says of its own accord goes to `heard`.
    pub async fn connect(
        env: &SimEnv,
        network: &SimNetwork,
        address: &str,
        limit: Duration,
        heard: Option<Arc<Heard>>,
    ) -> Option<Rc<Self>> {
        let stream = network.of(env).connect(address, limit).await.ok()?;
        let line = Rc::new(Self {
            stream,
            opaque: Cell::new(0),
            outbox: RefCell::default(),
            answers: RefCell::default(),
            is_open: Cell::new(true),
            bell: Bell::default(),
        });
        {
            let line = line.clone();
            env.spawn(async move { line.read(heard).await });
        }
        {
            let line = line.clone();
            env.spawn(async move { line.write().await });
        }
        Some(line)
    }

    pub fn is_open(&self) -> bool {
        self.is_open.get()
    }

    pub fn close(&self) {
        self.is_open.set(false);
        self.stream.shutdown();
        self.bell.ring();
    }

    async fn read(&self, heard: Option<Arc<Heard>>) {
        let mut buffer = ReadBuffer::new();
        while self.is_open.get() {
            match next_frame(&mut buffer.bytes) {
                Ok(Some(command)) if command.is_response() => {
                    self.answers.borrow_mut().insert(command.opaque, command);
                    self.bell.ring();
                }
                Ok(Some(command)) => {
                    assert_eq!(command.code, request::NOTIFY_BROKER_ROLE_CHANGED);
                    if let Some(heard) = &heard {
                        heard.hear(Word::read(&command));
                    }
                }
                Ok(None) => {
                    if read_more(&self.stream, &mut buffer, 0).await.is_err() {
                        return self.close();
                    }
                }
                Err(error) => breach(format!("a controller sends what is no frame: {error}")),
            }
        }
    }

    async fn write(&self) {
        while self.is_open.get() {
            let next = || {
                let frame = self.outbox.borrow_mut().pop_front();
                frame.map(Some).or((!self.is_open.get()).then_some(None))
            };
            let Some(frame) = self.bell.until(next).await else {
                return;
            };
            if write_all(&self.stream, &[&frame]).await.is_err() {
                return self.close();
            }
        }
    }

    /// The answer to a request, or none in time.
    pub async fn call(
        &self,
        env: &SimEnv,
        mut header: Outgoing,
        body: &[u8],
        limit: Duration,
    ) -> Option<Command> {
        let opaque = self.opaque.get() + 1;
        self.opaque.set(opaque);
        header.opaque = opaque;
        let frame = header.frame(Encoding::Json, body);
        self.outbox.borrow_mut().push_back(frame);
        self.bell.ring();
        let answer = self.bell.until(|| {
            let answer = self.answers.borrow_mut().remove(&opaque);
            answer.map(Some).or((!self.is_open.get()).then_some(None))
        });
        within(env, limit, answer).await.flatten()
    }
}

/// Makes some node lead, if its machine is up.
pub fn elect_leader(world: &Control, parliament: &Parliament, up: &[usize], random: u64) {
    let leader = match up.len() {
        0 => None,
        count => Some(up[random as usize % count]),
    };
    parliament.lead(leader, random >> 16);
    world.note("the controllers' leader", leader.map_or(99, |l| l as u64));
}
