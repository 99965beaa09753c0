//! One connection: read, decode, hand over; gather what is ready and write it in one call.
//!
//! Invariants: a request is answered at most once; a connection whose peer breaks the framing is closed without an
//! answer and no other connection notices; what waits for an answer and what waits to be written is bounded in bytes
//! (`base/limits.rs`): over the bound the socket is not read.
//!
//! Two tasks per connection. The reader hands over all complete commands of one read before it gives up its turn, and
//! the writer is woken once for all that they queued, so a burst costs one read and one write. Neither has a timer: a
//! sweep of the core (`listener.rs`) closes what is idle or does not read, in ticks of a few seconds.
//!
//! The first byte of a connection tells its protocol, remoting or native. Only the cutting of frames and the shape of
//! answers differ.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use ahash::AHashMap;
use bytes::Bytes;

use crate::base::id::ConnectionId;
use crate::base::limits::{
    CONNECTION_REQUEST_BYTES_MAX, CONNECTION_REQUESTS_MAX, CONNECTION_RESPONSE_BYTES_MAX,
};
use crate::io::body::Body;
use crate::io::tcp::{ReadBuffer, Stream};
use crate::server::Handler;
use crate::server::outbox::Outbox;
use crate::server::tasks::Tasks;
use crate::wire::native;
use crate::wire::remoting::code::response;
use crate::wire::remoting::command::{Command, Encoding, FLAG_ONEWAY, FLAG_RESPONSE, Outgoing};
use crate::wire::remoting::frame::{self, FrameError};
use crate::wire::remoting::shape::Shapes;
use crate::wire::remoting::stored::Stored;

/// Bytes that a writer writes, and that a reader's requests may be answered with at once, before others of the core run.
const TURN_BYTES: usize = 256 << 10;

/// How often a core without room looks for some.
const CROWD_PAUSE: Duration = Duration::from_millis(1);

/// Request bytes of a connection's turn in a crowd. At least what a busy connection reads at once.
pub(super) const CROWD_TURN_BYTES: isize = 64 << 10;

/// Why a request of ours to a client got no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvokeError {
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("the connection was closed")]
    Closed,
}

/// What the connections of one server on one core have in common.
pub struct Core {
    pub tasks: Rc<dyn Tasks>,
    pub handler: Rc<dyn Handler>,
    /// Connections that wait for a turn because the handler has no room, or others waited already. First come, first
    /// served.
    crowd: RefCell<VecDeque<Rc<Connection>>>,
    /// A task gives out the turns.
    disperses: Cell<bool>,
    /// That task, while it waits for room.
    room: Cell<Option<Waker>>,
    /// Counts the sweeps; the only clock of a connection that has nothing to do.
    pub tick: Cell<u32>,
}

impl Core {
    pub fn new(tasks: Rc<dyn Tasks>, handler: Rc<dyn Handler>) -> Self {
        Self {
            tasks,
            handler,
            crowd: RefCell::default(),
            disperses: Cell::new(false),
            room: Cell::default(),
            tick: Cell::new(0),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// No request is read any more; what is queued is written, then it closes.
    Draining,
    Closed,
}

/// What the peer speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    /// It has said nothing yet.
    Unknown,
    Remoting,
    Native,
}

/// The peer's bytes are no frame of its protocol.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Remoting(#[from] FrameError),
    #[error(transparent)]
    Native(#[from] native::frame::FrameError),
}

/// A request of ours that waits.
#[derive(Default)]
struct Call {
    answer: RefCell<Option<Result<Command, InvokeError>>>,
    waker: Cell<Option<Waker>>,
}

impl Call {
    fn complete(&self, answer: Result<Command, InvokeError>) {
        *self.answer.borrow_mut() = Some(answer);
        wake(&self.waker);
    }
}

/// See the module's page.
pub struct Connection {
    id: ConnectionId,
    core: Rc<Core>,
    stream: Stream,
    state: Cell<State>,
    protocol: Cell<Protocol>,
    /// Tasks that have not ended.
    tasks: Cell<u8>,

    input: RefCell<ReadBuffer>,
    /// What its requests look like.
    shapes: RefCell<Shapes>,
    requests: Cell<usize>,
    request_bytes: Cell<usize>,
    /// The reader, while it waits for a budget.
    reader: Cell<Option<Waker>>,
    /// It is in the core's crowd.
    in_crowd: Cell<bool>,
    /// Request bytes that are left of its turn; below zero what it has had more than that. Zero without a crowd.
    turn_bytes: Cell<isize>,

    outbox: RefCell<Outbox>,
    /// The writer, while it waits for something to write.
    writer: Cell<Option<Waker>>,

    calls: RefCell<AHashMap<i32, Rc<Call>>>,
    next_opaque: Cell<i32>,

    /// Tick of the last read or write.
    active_tick: Cell<u32>,
    /// Tick since which the peer has not taken what waits to be written.
    stalled_tick: Cell<u32>,
    #[cfg(test)]
    pub(super) writes: Cell<u32>,
}

/// Gives turns to a crowd while there is room. Each connection hands over as much as the others, however much it has:
/// without turns those whose answers had just made the room took it, got more answers, and others waited for
/// seconds. That an answer makes room would not be enough to go on: what a connection waits for may be a message that
/// nobody has sent yet.
async fn disperse(core: Rc<Core>) {
    loop {
        if !core.handler.has_room() {
            let mut pause = core.tasks.wait(CROWD_PAUSE);
            poll_fn(|cx| {
                core.room.set(Some(cx.waker().clone()));
                match core.handler.has_room() {
                    true => Poll::Ready(()),
                    false => pause.as_mut().poll(cx),
                }
            })
            .await;
            core.room.take();
            continue;
        }
        let Some(connection) = core.crowd.borrow_mut().pop_front() else {
            core.disperses.set(false);
            return;
        };
        let turn_bytes = connection.turn_bytes.get();
        if turn_bytes <= 0 {
            connection.turn_bytes.set(turn_bytes + CROWD_TURN_BYTES);
        }
        if connection.turn_bytes.get() > 0 || !connection.is_open() {
            connection.in_crowd.set(false);
            wake(&connection.reader);
        } else {
            core.crowd.borrow_mut().push_back(connection);
        }
        // One at a time: it comes back to the front if the room ends before its turn does.
        futures_lite::future::yield_now().await;
    }
}

fn wake(waker: &Cell<Option<Waker>>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

impl Connection {
    /// Runs a connection until it closes.
    pub fn start(stream: Stream, id: ConnectionId, core: Rc<Core>) -> Rc<Self> {
        let connection = Rc::new(Self::new(stream, id, core));
        connection.tasks.set(2);
        let reader = connection.clone();
        connection.core.tasks.start(Box::pin(async move {
            reader.read_all().await;
            reader.task_ended();
        }));
        let writer = connection.clone();
        connection.core.tasks.start(Box::pin(async move {
            writer.write_all().await;
            writer.task_ended();
        }));
        connection
    }

    fn new(stream: Stream, id: ConnectionId, core: Rc<Core>) -> Self {
        let tick = core.tick.get();
        Self {
            id,
            core,
            stream,
            state: Cell::new(State::Open),
            protocol: Cell::new(Protocol::Unknown),
            tasks: Cell::new(0),
            input: RefCell::default(),
            shapes: RefCell::default(),
            requests: Cell::new(0),
            request_bytes: Cell::new(0),
            reader: Cell::new(None),
            in_crowd: Cell::new(false),
            turn_bytes: Cell::new(0),
            outbox: RefCell::default(),
            writer: Cell::new(None),
            calls: RefCell::default(),
            next_opaque: Cell::new(0),
            active_tick: Cell::new(tick),
            stalled_tick: Cell::new(tick),
            #[cfg(test)]
            writes: Cell::new(0),
        }
    }

    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// Address of the peer.
    pub fn peer(&self) -> SocketAddr {
        self.stream.peer()
    }

    /// Address that the peer connected to.
    pub fn local(&self) -> SocketAddr {
        self.stream.local()
    }

    /// Whether it still takes requests and answers.
    pub fn is_open(&self) -> bool {
        self.state.get() == State::Open
    }

    /// Whether nothing waits for an answer or to be written.
    pub fn is_quiet(&self) -> bool {
        self.requests.get() == 0 && self.outbox.borrow().is_empty()
    }

    /// Sends a request of ours that wants no answer (flag and opaque are set here).
    /// Dropped when the peer leaves too much unread: such a request may be lost anyhow.
    pub fn push_oneway(&self, mut request: Outgoing, body: Bytes) {
        request.opaque = self.take_opaque();
        request.flag = FLAG_ONEWAY;
        if self.takes_pushes() {
            self.enqueue(|outbox| {
                outbox.push_command(&request, Encoding::Json, Body::Bytes(body));
            });
        }
    }

    /// Writes a frame that is encoded already (length prefix included). Dropped as in [`Connection::push_oneway`].
    pub fn push_frame(&self, frame: Bytes) {
        if self.takes_pushes() {
            self.enqueue(|outbox| outbox.push_frame(frame));
        }
    }

    /// Sends a request of ours and waits for the answer.
    pub async fn invoke(
        self: &Rc<Self>,
        mut request: Outgoing,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Command, InvokeError> {
        if !self.is_open() {
            return Err(InvokeError::Closed);
        }
        request.opaque = self.take_opaque();
        request.flag = 0;
        let call = Rc::new(Call::default());
        self.calls.borrow_mut().insert(request.opaque, call.clone());
        // Dropped at the end or when the caller gives up: a late answer is then unknown.
        let _registered = Registered {
            connection: self,
            opaque: request.opaque,
        };
        self.enqueue(|outbox| outbox.push_command(&request, Encoding::Json, Body::Bytes(body)));

        let mut limit = self.core.tasks.wait(timeout);
        poll_fn(|cx| {
            if let Some(answer) = call.answer.borrow_mut().take() {
                return Poll::Ready(answer);
            }
            call.waker.set(Some(cx.waker().clone()));
            limit
                .as_mut()
                .poll(cx)
                .map(|()| Err(InvokeError::Timeout(timeout)))
        })
        .await
    }

    /// Closes it, after what is already queued has been written.
    pub fn close(&self) {
        if self.state.get() == State::Open {
            self.state.set(State::Draining);
            wake(&self.reader);
            wake(&self.writer);
        }
    }

    /// Closes it and drops what is queued.
    pub fn close_now(&self) {
        if self.state.replace(State::Closed) != State::Closed {
            self.outbox.borrow_mut().clear();
            // Wakes both tasks if they wait for the socket.
            self.stream.shutdown();
            wake(&self.reader);
            wake(&self.writer);
        }
    }

    /// Called by the core's sweep: closes what is idle or stalled for so many ticks, and gives memory back.
    pub fn sweep(&self, idle_ticks: u32, stalled_ticks: u32) {
        let tick = self.core.tick.get();
        let quiet_ticks = tick.wrapping_sub(self.active_tick.get());
        if !self.outbox.borrow().is_empty()
            && tick.wrapping_sub(self.stalled_tick.get()) > stalled_ticks
        {
            tracing::warn!(peer = %self.peer(), bytes = self.outbox.borrow().len(), "the peer does not read; closing");
            self.close_now();
        } else if quiet_ticks > idle_ticks {
            tracing::debug!(peer = %self.peer(), "idle; closing");
            self.close_now();
        } else if quiet_ticks > 0 {
            self.input.borrow_mut().shrink();
            self.shapes.borrow_mut().clear();
            self.outbox.borrow_mut().shrink();
        }
    }

    fn take_opaque(&self) -> i32 {
        self.next_opaque
            .replace(self.next_opaque.get().wrapping_add(1))
    }

    fn takes_pushes(&self) -> bool {
        self.outbox.borrow().len() < CONNECTION_RESPONSE_BYTES_MAX
    }

    /// Queues something and wakes the writer, unless it is busy with the socket.
    fn enqueue(&self, push: impl FnOnce(&mut Outbox)) {
        if !self.is_open() {
            return;
        }
        let mut outbox = self.outbox.borrow_mut();
        if outbox.is_empty() {
            self.stalled_tick.set(self.core.tick.get());
        }
        push(&mut outbox);
        wake(&self.writer);
    }

    /// The core has no room, or others wait for it and it is not this connection's turn. Who asks one thing at a time never
    /// waits for those who ask for much.
    fn is_crowded(&self) -> bool {
        let is_due = || self.turn_bytes.get() > 0 || self.core.crowd.borrow().is_empty();
        let has_turn = || !self.in_crowd.get() && is_due();
        self.asks_for_much() && !(self.core.handler.has_room() && has_turn())
    }

    /// It has a request under way or has sent more than one. A first request for each of a crowd would come one by one between
    /// the turns, with an answer and a system call of its own: most of what a core does with 200 of them.
    fn asks_for_much(&self) -> bool {
        let is_followed = || {
            let bytes = &self.input.borrow().bytes;
            match self.protocol.get() {
                Protocol::Native => native::frame::is_followed(bytes),
                Protocol::Unknown | Protocol::Remoting => frame::is_followed(bytes),
            }
        };
        self.requests.get() > 0 || is_followed()
    }

    /// Too much of its own waits.
    fn is_full(&self) -> bool {
        self.requests.get() >= CONNECTION_REQUESTS_MAX
            || self.request_bytes.get() >= CONNECTION_REQUEST_BYTES_MAX
            || self.outbox.borrow().len() >= CONNECTION_RESPONSE_BYTES_MAX
    }

    fn over_budget(&self) -> bool {
        self.is_full() || self.is_crowded()
    }

    /// A request is handed over.
    fn request_begins(&self, bytes: usize) {
        self.requests.set(self.requests.get() + 1);
        self.request_bytes.set(self.request_bytes.get() + bytes);
        self.turn_bytes
            .set(match self.core.crowd.borrow().is_empty() {
                true => 0,
                false => self.turn_bytes.get() - bytes as isize,
            });
    }

    /// A request that was handed over needs no memory of the connection any more.
    fn request_ended(&self, bytes: usize) {
        self.requests.set(self.requests.get().saturating_sub(1));
        let left = self.request_bytes.get().saturating_sub(bytes);
        self.request_bytes.set(left);
        self.budget_changed();
        if let Some(waker) = self.core.room.take() {
            match self.core.handler.has_room() {
                true => waker.wake(),
                false => self.core.room.set(Some(waker)),
            }
        }
    }

    /// Something was answered or written. In the crowd the reader waits for its turn; else it may have to join that.
    fn budget_changed(&self) {
        let has_to_wait = self.in_crowd.get() && self.asks_for_much();
        if !has_to_wait && !self.is_full() {
            wake(&self.reader);
        }
    }

    async fn read_all(self: &Rc<Self>) {
        loop {
            match self.hand_over().await {
                Ok(()) => {}
                Err(error) => {
                    tracing::debug!(peer = %self.peer(), %error, "broken framing; closing");
                    return match error {
                        Broken::Remoting(_) => self.close_now(),
                        Broken::Native(error) => self.refuse_native(&error.to_string()),
                    };
                }
            }
            if !self.is_open() {
                return;
            }
            match poll_fn(|cx| self.poll_input(cx)).await {
                // A half-open peer gets what is queued for it, but nothing that is still to come.
                Ok(Input::End) => return self.close(),
                Ok(Input::Some) => {}
                Ok(Input::More) => futures_lite::future::yield_now().await,
                Err(error) => {
                    tracing::debug!(peer = %self.peer(), %error, "reading failed; closing");
                    return self.close_now();
                }
            }
            let first = self.input.borrow().bytes.first().copied();
            if self.protocol.get() == Protocol::Unknown {
                let is_native =
                    first == Some(native::frame::MAGIC[0]) && self.core.handler.speaks_native();
                self.protocol.set(match is_native {
                    true => Protocol::Native,
                    false => Protocol::Remoting,
                });
            }
            if self.protocol.get() == Protocol::Native {
                continue;
            }
            if let Some(protocol) = first.and_then(foreign_protocol) {
                tracing::info!(peer = %self.peer(), local = %self.local(),
                    "the peer speaks {protocol}, which this port does not; closing");
                return self.close_now();
            }
        }
    }

    /// Hands over every command that was read, as far as the budgets allow.
    async fn hand_over(self: &Rc<Self>) -> Result<(), Broken> {
        let mut answered_bytes = self.outbox.borrow().len();
        while self.is_open() {
            if self.over_budget() {
                poll_fn(|cx| self.poll_budget(cx)).await;
                continue;
            }
            let waiting_bytes = self.outbox.borrow().len();
            if waiting_bytes.saturating_sub(answered_bytes) >= TURN_BYTES {
                futures_lite::future::yield_now().await;
                answered_bytes = self.outbox.borrow().len();
                continue;
            }
            if self.protocol.get() == Protocol::Native {
                if !self.hand_over_native()? {
                    return Ok(());
                }
                continue;
            }
            let (command, bytes) = {
                let buffer = &mut self.input.borrow_mut().bytes;
                let before = buffer.len();
                match frame::next_frame_like(buffer, &mut self.shapes.borrow_mut())? {
                    Some(command) => (command, before - buffer.len()),
                    None => return Ok(()),
                }
            };
            if command.flag & FLAG_RESPONSE != 0 {
                self.complete(command);
                continue;
            }
            self.request_begins(bytes);
            let responder = Responder {
                connection: self.clone(),
                opaque: command.opaque,
                encoding: command.encoding,
                oneway: command.flag & FLAG_ONEWAY != 0,
                request_bytes: bytes,
            };
            self.core.handler.handle(command, responder);
        }
        Ok(())
    }

    /// Hands over one frame of the native protocol; false if there is no whole one.
    fn hand_over_native(self: &Rc<Self>) -> Result<bool, native::frame::FrameError> {
        let (frame, bytes) = {
            let buffer = &mut self.input.borrow_mut().bytes;
            let before = buffer.len();
            match native::frame::next_frame(buffer)? {
                Some(frame) => (frame, before - buffer.len()),
                None => return Ok(false),
            }
        };
        self.request_begins(bytes);
        let responder = NativeResponder {
            connection: self.clone(),
            request_bytes: bytes,
            answered: false,
        };
        self.core.handler.handle_native(frame, responder);
        Ok(true)
    }

    /// Tells a native peer that it broke the protocol, and closes.
    pub fn refuse_native(&self, remark: &str) {
        let error = native::message::Message::Error {
            code: response::SYSTEM_ERROR,
            remark,
        };
        let mut encoder = native::message::Encoder::new();
        let frame = encoder.encode(0, &error, 0);
        self.enqueue(|outbox| outbox.push_native(frame, []));
        self.close();
    }

    fn complete(&self, answer: Command) {
        let call = self.calls.borrow_mut().remove(&answer.opaque);
        match call {
            Some(call) => call.complete(Ok(answer)),
            None => {
                tracing::debug!(peer = %self.peer(), opaque = answer.opaque, "an answer that nothing waits for");
            }
        }
    }

    fn poll_budget(self: &Rc<Self>, cx: &mut Context<'_>) -> Poll<()> {
        if !self.over_budget() || !self.is_open() {
            return Poll::Ready(());
        }
        // Who has too much of its own would only pass on its turn.
        if !self.is_full() && !self.in_crowd.replace(true) {
            let mut crowd = self.core.crowd.borrow_mut();
            // The room may have ended before its turn did.
            match self.turn_bytes.get() > 0 {
                true => crowd.push_front(self.clone()),
                false => crowd.push_back(self.clone()),
            }
            if !self.core.disperses.replace(true) {
                self.core.tasks.start(Box::pin(disperse(self.core.clone())));
            }
        }
        self.reader.set(Some(cx.waker().clone()));
        Poll::Pending
    }

    fn poll_input(&self, cx: &mut Context<'_>) -> Poll<io::Result<Input>> {
        let mut input = self.input.borrow_mut();
        let missing_bytes = match self.protocol.get() {
            Protocol::Native => native::frame::frame_bytes_wanted(&input.bytes),
            Protocol::Unknown | Protocol::Remoting => frame::frame_bytes_wanted(&input.bytes),
        };
        input.prepare(missing_bytes);
        let offered_bytes = input.bytes.capacity() - input.bytes.len();
        let bytes = ready!(self.stream.poll_read(cx, &mut input.bytes))?;
        if bytes == 0 {
            return Poll::Ready(Ok(Input::End));
        }
        self.active_tick.set(self.core.tick.get());
        Poll::Ready(Ok(match input.filled(bytes, offered_bytes) {
            true => Input::More,
            false => Input::Some,
        }))
    }

    async fn write_all(&self) {
        match poll_fn(|cx| self.poll_output(cx)).await {
            // All is written and nothing more will come.
            Ok(()) => self.close_now(),
            Err(error) => {
                tracing::debug!(peer = %self.peer(), %error, "writing failed; closing");
                self.close_now();
            }
        }
    }

    fn poll_output(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut turn_bytes = 0;
        loop {
            let mut outbox = self.outbox.borrow_mut();
            if outbox.is_empty() {
                if !self.is_open() {
                    return Poll::Ready(Ok(()));
                }
                self.writer.set(Some(cx.waker().clone()));
                return Poll::Pending;
            }
            if turn_bytes >= TURN_BYTES {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let bytes = ready!(self.stream.poll_write(cx, &outbox.slices()))?;
            #[cfg(test)]
            self.writes.set(self.writes.get() + 1);
            outbox.written(bytes);
            turn_bytes += bytes;
            let tick = self.core.tick.get();
            self.active_tick.set(tick);
            self.stalled_tick.set(tick);
            drop(outbox);
            self.budget_changed();
        }
    }

    /// The last task closes the socket and tells everyone who waits.
    fn task_ended(self: &Rc<Self>) {
        self.tasks.set(self.tasks.get() - 1);
        if self.tasks.get() > 0 {
            return;
        }
        assert_eq!(self.state.get(), State::Closed, "both tasks ended");
        self.stream.close();
        self.input.borrow_mut().bytes.clear();
        self.input.borrow_mut().shrink();
        self.outbox.borrow_mut().clear();
        let calls = std::mem::take(&mut *self.calls.borrow_mut());
        for call in calls.into_values() {
            call.complete(Err(InvokeError::Closed));
        }
        self.core.handler.closed(self);
    }
}

enum Input {
    End,
    Some,
    /// The read filled its buffer.
    More,
}

/// Takes a request of ours off the list when its caller stops waiting.
struct Registered<'a> {
    connection: &'a Connection,
    opaque: i32,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.connection.calls.borrow_mut().remove(&self.opaque);
    }
}

/// A frame is at most 16 MiB, so its first byte is 0 or, just, 1: anything else tells another protocol.
fn foreign_protocol(first: u8) -> Option<&'static str> {
    match first {
        0 | 1 => None,
        0x16 => Some("TLS"),
        0x0D => Some("PROXY v2"),
        b'P' => Some("PROXY v1 or HTTP"),
        b'A'..=b'Z' => Some("HTTP or another text protocol"),
        _ => Some("an unknown protocol"),
    }
}

/// The right to answer one request. Dropping it without an answer is right for a oneway request only.
pub struct Responder {
    pub connection: Rc<Connection>,
    pub opaque: i32,
    pub encoding: Encoding,
    pub oneway: bool,
    /// Bytes of the request, given back to the connection's budget when this is dropped.
    pub request_bytes: usize,
}

impl Responder {
    /// Answers, unless the request was oneway. Opaque and the response flag are set here.
    pub fn send(mut self, mut response: Outgoing, body: Body) {
        if self.oneway {
            return;
        }
        response.opaque = self.opaque;
        response.flag = FLAG_RESPONSE;
        self.connection
            .enqueue(|outbox| outbox.push_command(&response, self.encoding, body));
        // From here on it is like a request that wants no answer.
        self.oneway = true;
    }

    /// The same for a send that was stored.
    pub fn send_stored(mut self, stored: &Stored<'_>) {
        if self.oneway {
            return;
        }
        self.connection
            .enqueue(|outbox| outbox.push_stored(stored, self.encoding, self.opaque));
        self.oneway = true;
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        let connection = &self.connection;
        if !self.oneway && connection.is_open() {
            tracing::warn!(peer = %connection.peer(), opaque = self.opaque, "a request got no answer");
        }
        connection.request_ended(self.request_bytes);
    }
}

/// The right to answer one request of the native protocol. Dropping it without an answer is right for a request that
/// wants none only: see [`NativeResponder::stay_silent`].
pub struct NativeResponder {
    pub connection: Rc<Connection>,
    /// Bytes of the request, given back to the connection's budget when this is dropped.
    request_bytes: usize,
    answered: bool,
}

impl NativeResponder {
    /// Answers with a frame: its prefix and header, and the sections of its payload, each of which gets its zeros here.
    pub fn send(mut self, head: &[u8], sections: impl IntoIterator<Item = Body>) {
        self.connection
            .enqueue(|outbox| outbox.push_native(head, sections));
        self.answered = true;
    }

    /// The request wants no answer.
    pub fn stay_silent(mut self) {
        self.answered = true;
    }

    /// Ends the connection after telling the peer why.
    pub fn refuse(mut self, remark: &str) {
        self.connection.refuse_native(remark);
        self.answered = true;
    }
}

impl Drop for NativeResponder {
    fn drop(&mut self) {
        let connection = &self.connection;
        if !self.answered && connection.is_open() {
            tracing::warn!(peer = %connection.peer(), "a native request got no answer");
        }
        connection.request_ended(self.request_bytes);
    }
}

/// What a detached connection has instead of a core.
#[cfg(test)]
struct Nowhere;

#[cfg(test)]
impl Tasks for Nowhere {
    fn start(&self, _task: crate::server::tasks::LocalFuture<()>) {}

    fn wait(&self, _duration: Duration) -> crate::server::tasks::LocalFuture<()> {
        Box::pin(std::future::pending())
    }
}

#[cfg(test)]
impl Handler for Nowhere {
    fn handle(&self, _request: Command, _responder: Responder) {}

    fn closed(&self, _connection: &Rc<Connection>) {}
}

#[cfg(test)]
impl Connection {
    /// A connection without a socket or an executor, for tests of handlers: what is sent stays until it is taken.
    pub fn detached(id: ConnectionId) -> Rc<Self> {
        let core = Core::new(Rc::new(Nowhere), Rc::new(Nowhere));
        Self::loaded(id, Rc::new(core), &[])
    }

    /// A connection without a socket that has read something already.
    pub fn loaded(id: ConnectionId, core: Rc<Core>, input: &[u8]) -> Rc<Self> {
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
        let connection = Self::new(Stream::closed(nowhere, nowhere), id, core);
        connection.input.borrow_mut().bytes.extend_from_slice(input);
        Rc::new(connection)
    }

    /// Hands over what is loaded.
    pub async fn hand_over_loaded(self: Rc<Self>) {
        assert!(self.hand_over().await.is_ok());
    }

    /// Sizes of the two tasks.
    pub fn task_bytes(self: &Rc<Self>) -> (usize, usize) {
        (
            size_of_val(&self.read_all()),
            size_of_val(&self.write_all()),
        )
    }

    /// Requests of ours that wait for an answer.
    pub fn call_count(&self) -> usize {
        self.calls.borrow().len()
    }

    /// Everything that was sent on a detached connection.
    pub fn take_output(&self) -> bytes::BytesMut {
        let mut outbox = self.outbox.borrow_mut();
        let mut output = bytes::BytesMut::new();
        while !outbox.is_empty() {
            let bytes = outbox
                .slices()
                .iter()
                .map(|slice| {
                    output.extend_from_slice(slice);
                    slice.len()
                })
                .sum();
            outbox.written(bytes);
        }
        output
    }
}
