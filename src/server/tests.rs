//! Connections and servers over loopback: the server on an executor, its peers as blocking sockets on threads.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use crate::base::id::ConnectionId;
use crate::base::limits::{CONNECTION_REQUESTS_MAX, CONNECTION_RESPONSE_BYTES_MAX};
use crate::client::{ClientError, Reconnecting, RemotingClient};
use crate::io::body::Body;
use crate::io::env::Env;
use crate::io::ring::RingEnv;
use crate::io::ring::testing::on_executor;
use crate::io::tcp::Listener;
use crate::server::Handler;
use crate::server::connection::{CROWD_TURN_BYTES, Connection, Core, InvokeError, Responder};
use crate::server::listener::{Server, ServerOptions};
use crate::wire::remoting::command::{Command, Encoding, FLAG_ONEWAY, FLAG_RESPONSE, Outgoing};
use crate::wire::remoting::frame::next_frame;

const SECOND: Duration = Duration::from_secs(1);
/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(20);

/// Answers a request with its own body, or keeps it.
#[derive(Default)]
struct TestHandler {
    /// Requests are kept instead of answered.
    keep: Cell<bool>,
    /// Bytes of each answer's body; 0 is an echo.
    answer_bytes: Cell<usize>,
    kept: RefCell<Vec<(Responder, Bytes)>>,
    handled: Cell<usize>,
    closed: Cell<usize>,
    last: RefCell<Option<Rc<Connection>>>,
    /// Kept requests after which there is no room until half of them are answered; 0 is no limit.
    room: Cell<usize>,
    is_full: Cell<bool>,
    /// Requests of each connection, by its serial.
    handled_of: RefCell<BTreeMap<u64, usize>>,
}

impl Handler for TestHandler {
    fn handle(&self, request: Command, responder: Responder) {
        self.handled.set(self.handled.get() + 1);
        let serial = responder.connection.id().serial;
        *self.handled_of.borrow_mut().entry(serial).or_default() += 1;
        *self.last.borrow_mut() = Some(responder.connection.clone());
        let body = match self.answer_bytes.get() {
            0 => request.body,
            bytes => Bytes::from(vec![7; bytes]),
        };
        if self.keep.get() {
            self.kept.borrow_mut().push((responder, body));
            let kept = self.kept.borrow().len();
            if self.room.get() > 0 && kept >= self.room.get() {
                self.is_full.set(true);
            }
        } else {
            echo(responder, body);
        }
    }

    fn has_room(&self) -> bool {
        !self.is_full.get()
    }

    fn closed(&self, _connection: &Rc<Connection>) {
        self.closed.set(self.closed.get() + 1);
    }
}

impl TestHandler {
    fn answer_kept(&self) {
        for (responder, body) in self.kept.take() {
            echo(responder, body);
        }
        self.is_full.set(false);
    }

    /// Answers the oldest half of what is kept, one after the other, as a commit does.
    fn answer_half(&self) {
        let half = self.kept.borrow().len().div_ceil(2);
        for _ in 0..half {
            let (responder, body) = self.kept.borrow_mut().remove(0);
            if self.kept.borrow().len() <= self.room.get() / 2 {
                self.is_full.set(false);
            }
            echo(responder, body);
        }
    }
}

fn echo(responder: Responder, body: Bytes) {
    responder.send(Outgoing::default(), Body::Bytes(body));
}

struct World {
    env: RingEnv,
    handler: Rc<TestHandler>,
    server: Rc<Server>,
    address: SocketAddr,
}

impl World {
    /// Waits until something is so.
    async fn until(&self, what: &str, so: impl Fn() -> bool) {
        let started = Instant::now();
        while !so() {
            assert!(started.elapsed() < PATIENCE, "never so: {what}");
            self.env.sleep(Duration::from_millis(2)).await;
        }
    }

    /// Runs a peer on a thread and waits for it.
    async fn peer<T: Send + 'static>(
        &self,
        peer: impl FnOnce(SocketAddr) -> T + Send + 'static,
    ) -> T {
        let address = self.address;
        let thread = std::thread::spawn(move || peer(address));
        self.until("the peer ends", || thread.is_finished()).await;
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    fn last(&self) -> Rc<Connection> {
        self.handler.last.borrow().clone().unwrap()
    }
}

fn serve<T>(options: ServerOptions, test: impl AsyncFnOnce(&World) -> T) -> T {
    on_executor(async move |env| {
        let handler = Rc::new(TestHandler::default());
        let server = Server::new(&env, options, handler.clone());
        let listener = Listener::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = listener.local();
        server.serve(listener);
        let world = World {
            env,
            handler,
            server,
            address,
        };
        let result = test(&world).await;
        world.server.stop(Duration::ZERO).await;
        result
    })
}

/// A blocking client.
struct Peer {
    socket: TcpStream,
    input: BytesMut,
}

impl Peer {
    fn new(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self {
            socket,
            input: BytesMut::new(),
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).unwrap();
    }

    /// The next command, or `None` at the end.
    fn receive(&mut self) -> Option<Command> {
        loop {
            if let Some(command) = next_frame(&mut self.input).unwrap() {
                return Some(command);
            }
            let mut chunk = vec![0; 64 << 10];
            match self.socket.read(&mut chunk).unwrap() {
                0 => {
                    assert!(self.input.is_empty(), "the end is in the middle of a frame");
                    return None;
                }
                bytes => self.input.extend_from_slice(&chunk[..bytes]),
            }
        }
    }

    fn echoes(&mut self, opaque: i32) -> bool {
        let content = format!("body of {opaque}");
        self.send(&request(opaque, Encoding::Json, content.as_bytes()));
        let answer = self.receive().unwrap();
        answer.opaque == opaque && answer.flag == FLAG_RESPONSE && answer.body == content
    }

    /// Whether the connection ends without a byte, by an end or a reset.
    fn ends_silently(&mut self) -> bool {
        match self.socket.read(&mut [0; 1]) {
            Ok(bytes) => bytes == 0,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }

    /// Closes with a reset.
    fn reset(self) {
        socket2::SockRef::from(&self.socket)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
    }
}

fn request(opaque: i32, encoding: Encoding, body: &[u8]) -> Bytes {
    Outgoing {
        code: 10,
        opaque,
        ..Outgoing::default()
    }
    .frame(encoding, body)
}

#[test]
fn requests_are_answered_in_the_encoding_in_which_they_came() {
    serve(ServerOptions::default(), async |world: &World| {
        world
            .peer(|address| {
                let mut peer = Peer::new(address);
                for (opaque, encoding) in [(5, Encoding::Json), (-6, Encoding::Binary)] {
                    peer.send(&request(opaque, encoding, b"x"));
                    let answer = peer.receive().unwrap();
                    assert_eq!((answer.opaque, answer.encoding), (opaque, encoding));
                    assert_eq!((answer.flag, &answer.body[..]), (FLAG_RESPONSE, &b"x"[..]));
                }
            })
            .await;
        let connection = world.last();
        assert!(connection.local() == world.address && connection.peer().ip().is_loopback());
    });
}

#[test]
fn oneway_requests_are_handled_and_never_answered() {
    serve(ServerOptions::default(), async |world: &World| {
        world
            .peer(|address| {
                let mut peer = Peer::new(address);
                let oneway = Outgoing {
                    opaque: 1,
                    flag: FLAG_ONEWAY,
                    ..Outgoing::default()
                };
                peer.send(&oneway.frame(Encoding::Json, b"x"));
                assert!(peer.echoes(2));
            })
            .await;
        assert_eq!(world.handler.handled.get(), 2);
    });
}

#[test]
fn ten_thousand_pipelined_requests_are_each_answered_once_in_any_order() {
    const COUNT: i32 = 10_000;
    serve(ServerOptions::default(), async |world: &World| {
        world.handler.keep.set(true);
        let (handler, env) = (world.handler.clone(), world.env.clone());
        world.env.spawn(async move {
            let mut random = fastrand::Rng::with_seed(7);
            while handler.closed.get() == 0 {
                let mut kept = handler.kept.take();
                random.shuffle(&mut kept);
                let later = kept.split_off(kept.len().div_ceil(2));
                kept.into_iter().for_each(|(to, body)| echo(to, body));
                handler.kept.borrow_mut().extend(later);
                env.sleep(Duration::from_millis(1)).await;
            }
        });
        world
            .peer(|address| {
                let mut peer = Peer::new(address);
                let mut socket = peer.socket.try_clone().unwrap();
                let writer = std::thread::spawn(move || {
                    let mut all = BytesMut::new();
                    for opaque in 0..COUNT {
                        let body = vec![opaque as u8; opaque as usize % 3000];
                        all.extend_from_slice(&request(opaque, Encoding::Binary, &body));
                    }
                    socket.write_all(&all).unwrap();
                });
                let mut seen = vec![false; COUNT as usize];
                let mut in_order = true;
                for at in 0..COUNT {
                    let answer = peer.receive().unwrap();
                    let opaque = answer.opaque as usize;
                    assert!(!std::mem::replace(&mut seen[opaque], true));
                    assert_eq!(answer.body, vec![opaque as u8; opaque % 3000]);
                    in_order &= answer.opaque == at;
                }
                assert!(!in_order, "the test must shuffle");
                writer.join().unwrap();
            })
            .await;
    });
}

#[test]
fn a_burst_of_pipelined_requests_is_answered_in_one_write() {
    serve(ServerOptions::default(), async |world: &World| {
        world
            .peer(|address| {
                let mut peer = Peer::new(address);
                let burst: Vec<u8> = (0..20)
                    .flat_map(|opaque| request(opaque, Encoding::Binary, b"x"))
                    .collect();
                peer.send(&burst);
                (0..20).for_each(|opaque| assert_eq!(peer.receive().unwrap().opaque, opaque));
            })
            .await;
        assert_eq!(world.last().writes.get(), 1);
    });
}

#[test]
fn frames_that_arrive_byte_by_byte_are_understood() {
    serve(ServerOptions::default(), async |world: &World| {
        world
            .peer(|address| {
                let mut peer = Peer::new(address);
                let bytes = [
                    request(1, Encoding::Json, b"abc"),
                    request(2, Encoding::Binary, b""),
                ]
                .concat();
                for byte in bytes {
                    peer.send(&[byte]);
                }
                assert_eq!(peer.receive().unwrap().body, "abc");
                assert_eq!(peer.receive().unwrap().opaque, 2);
            })
            .await;
    });
}

#[test]
fn a_large_frame_comes_back_whole() {
    serve(ServerOptions::default(), async |world: &World| {
        world
            .peer(|address| {
                let mut peer = Peer::new(address);
                let body: Vec<u8> = (0..15_000_000u32).map(|at| (at / 7) as u8).collect();
                let mut socket = peer.socket.try_clone().unwrap();
                let frame = request(1, Encoding::Json, &body);
                let writer = std::thread::spawn(move || socket.write_all(&frame).unwrap());
                assert!(peer.receive().unwrap().body == body);
                writer.join().unwrap();
                assert!(peer.echoes(2));
            })
            .await;
    });
}

#[test]
fn a_broken_frame_closes_its_own_connection_without_an_answer_and_no_other() {
    let mut unknown_encoding = request(1, Encoding::Json, b"").to_vec();
    unknown_encoding[4] = 9;
    let mut broken_json = request(1, Encoding::Json, b"").to_vec();
    broken_json[9] = b'!';
    let broken: Vec<Vec<u8>> = vec![
        vec![0xFF; 4],
        vec![0x00, 0x00, 0x00, 0x03],
        vec![0x01, 0x00, 0x00, 0x00],
        vec![0x00, 0x00, 0x00, 0x06, 0x00, 0x00, 0x00, 0x07, b'{', b'}'],
        unknown_encoding,
        broken_json,
        // One byte must be enough to tell another protocol.
        vec![0x16],
        b"P".to_vec(),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
    ];
    serve(ServerOptions::default(), async |world: &World| {
        let count = broken.len();
        world
            .peer(move |address| {
                let mut good = Peer::new(address);
                assert!(good.echoes(0));
                for (at, bytes) in broken.iter().enumerate() {
                    let mut bad = Peer::new(address);
                    bad.send(bytes);
                    assert!(bad.ends_silently(), "case {at}");
                    assert!(good.echoes(at as i32 + 1));
                }
            })
            .await;
        let handler = world.handler.clone();
        world
            .until("all are closed", || handler.closed.get() == count + 1)
            .await;
        assert_eq!(world.server.connection_count(), 0);
    });
}

#[test]
fn a_half_open_peer_gets_what_is_queued_and_then_the_end() {
    serve(ServerOptions::default(), async |world: &World| {
        // More than the socket takes at once, so that the end is read while the answer is still queued.
        world.handler.answer_bytes.set(15 << 20);
        world
            .peer(|address| {
                let mut peer = Peer::new(address);
                peer.send(&request(1, Encoding::Json, b"x"));
                peer.socket.shutdown(Shutdown::Write).unwrap();
                std::thread::sleep(SECOND / 5);
                let started = Instant::now();
                assert_eq!(peer.receive().unwrap().opaque, 1);
                assert!(peer.receive().is_none());
                assert!(started.elapsed() < 5 * SECOND);
            })
            .await;
        let handler = world.handler.clone();
        world.until("closed", || handler.closed.get() == 1).await;
    });
}

#[test]
fn answers_that_nobody_reads_stop_the_reading_until_they_are_read() {
    const ANSWER_BYTES: usize = 1 << 20;
    const COUNT: i32 = 200;
    serve(ServerOptions::default(), async |world: &World| {
        world.handler.answer_bytes.set(ANSWER_BYTES);
        let (go, wait) = std::sync::mpsc::channel();
        let address = world.address;
        let peer = std::thread::spawn(move || {
            let mut peer = Peer::new(address);
            for opaque in 0..COUNT {
                peer.send(&request(opaque, Encoding::Json, b""));
            }
            wait.recv().unwrap();
            for opaque in 0..COUNT {
                let answer = peer.receive().unwrap();
                assert_eq!((answer.opaque, answer.body.len()), (opaque, ANSWER_BYTES));
            }
        });
        let handler = world.handler.clone();
        let budget = CONNECTION_RESPONSE_BYTES_MAX / ANSWER_BYTES;
        world
            .until("the budget is used", || handler.handled.get() >= budget)
            .await;
        world.env.sleep(SECOND / 2).await;
        // Besides the budget there are the buffers of both sockets.
        let handled = handler.handled.get();
        assert!(handled < COUNT as usize / 2, "{handled} were handled");
        go.send(()).unwrap();
        world.until("all is read", || peer.is_finished()).await;
        peer.join().unwrap();
        assert_eq!(handler.handled.get(), COUNT as usize);
    });
}

#[test]
fn requests_over_the_limit_are_not_read_until_others_are_answered() {
    let count = CONNECTION_REQUESTS_MAX + 500;
    serve(ServerOptions::default(), async |world: &World| {
        world.handler.keep.set(true);
        let address = world.address;
        let peer = std::thread::spawn(move || {
            let mut peer = Peer::new(address);
            let all: Vec<u8> = (0..count)
                .flat_map(|opaque| request(opaque as i32, Encoding::Binary, b""))
                .collect();
            peer.send(&all);
            for opaque in 0..count {
                assert_eq!(peer.receive().unwrap().opaque, opaque as i32);
            }
        });
        let handler = world.handler.clone();
        world
            .until("the limit is reached", || {
                handler.handled.get() >= CONNECTION_REQUESTS_MAX
            })
            .await;
        world.env.sleep(SECOND / 5).await;
        assert_eq!(handler.handled.get(), CONNECTION_REQUESTS_MAX);
        handler.answer_kept();
        world
            .until("the rest is read", || handler.handled.get() == count)
            .await;
        handler.answer_kept();
        world.until("all is read", || peer.is_finished()).await;
        peer.join().unwrap();
    });
}

/// Sixteen connections that have more than they may hand over; what each one has handed over is looked at all the time.
#[test]
fn without_room_connections_take_turns() {
    const COUNT: usize = 4_000;
    const CONNECTIONS: u64 = 16;
    on_executor(async |env: RingEnv| {
        let handler = Rc::new(TestHandler::default());
        handler.keep.set(true);
        let one = request(0, Encoding::Binary, &[7; 1000]);
        let turn = CROWD_TURN_BYTES as usize / one.len() + 1;
        handler.room.set(turn * 5 / 2);
        let core = Rc::new(Core::new(Rc::new(env.clone()), handler.clone()));
        for serial in 0..CONNECTIONS {
            let id = ConnectionId { core: 0, serial };
            let connection = Connection::loaded(id, core.clone(), &one.repeat(COUNT));
            env.spawn(connection.hand_over_loaded());
        }
        let total = COUNT * CONNECTIONS as usize;
        let mut base = None;
        while handler.handled.get() < total {
            env.sleep(Duration::from_micros(100)).await;
            assert!(handler.kept.borrow().len() <= handler.room.get() + CONNECTIONS as usize);
            handler.answer_half();
            // The first connection came before there was a crowd, and at the end some have nothing more.
            let handled = handler.handled.get();
            if handled < total / 4 || handled > total * 3 / 4 {
                continue;
            }
            let shares = handler.handled_of.borrow();
            let base = base.get_or_insert_with(|| shares.clone());
            let since: Vec<_> = shares
                .iter()
                .map(|(serial, count)| count - base[serial])
                .collect();
            let (least, most) = (since.iter().min().unwrap(), since.iter().max().unwrap());
            assert!(most - least <= 2 * turn, "{since:?}");
        }
        assert!(base.is_some());
    });
}

#[test]
fn a_first_request_needs_no_room_and_no_turn() {
    on_executor(async |env: RingEnv| {
        let handler = Rc::new(TestHandler::default());
        handler.keep.set(true);
        handler.room.set(1);
        let core = Rc::new(Core::new(Rc::new(env.clone()), handler.clone()));
        let one = request(0, Encoding::Binary, b"");
        // The first one takes the room. Who asks for much has to wait, who asks for one thing has not.
        for (serial, count) in [(0, 10), (1, 1), (2, 10), (3, 1)] {
            let id = ConnectionId { core: 0, serial };
            let connection = Connection::loaded(id, core.clone(), &one.repeat(count));
            env.spawn(connection.hand_over_loaded());
        }
        env.sleep(Duration::from_millis(20)).await;
        assert!(!handler.has_room());
        let each = BTreeMap::from([(0, 1), (1, 1), (3, 1)]);
        assert_eq!(*handler.handled_of.borrow(), each);
        while handler.handled.get() < 22 {
            handler.answer_kept();
            env.sleep(Duration::from_millis(1)).await;
        }
    });
}

#[test]
fn who_asks_one_thing_at_a_time_does_not_wait_for_who_asks_for_much() {
    const GREEDY: usize = 12;
    const COUNT: usize = 4_000;
    serve(ServerOptions::default(), async |world: &World| {
        let handler = world.handler.clone();
        handler.keep.set(true);
        handler.room.set(256);
        let address = world.address;
        let peers: Vec<_> = (0..GREEDY)
            .map(|_| {
                let mut writer = Peer::new(address);
                let mut reader = Peer {
                    socket: writer.socket.try_clone().unwrap(),
                    input: BytesMut::new(),
                };
                std::thread::spawn(move || {
                    for opaque in 0..COUNT {
                        writer.send(&request(opaque as i32, Encoding::Binary, &[7; 1000]));
                    }
                });
                std::thread::spawn(move || {
                    for opaque in 0..COUNT {
                        assert_eq!(reader.receive().unwrap().opaque, opaque as i32);
                    }
                })
            })
            .collect();
        let modest = std::thread::spawn(move || {
            let mut peer = Peer::new(address);
            (0..100).all(|opaque| peer.echoes(opaque))
        });
        let total = GREEDY * COUNT + 100;
        let mut modest_ended_at = total;
        while handler.handled.get() < total {
            world.env.sleep(Duration::from_millis(1)).await;
            handler.answer_half();
            if modest.is_finished() {
                modest_ended_at = modest_ended_at.min(handler.handled.get());
            }
        }
        handler.room.set(0);
        handler.answer_kept();
        world
            .until("all is answered", || {
                peers.iter().all(|peer| peer.is_finished())
            })
            .await;
        for peer in peers {
            peer.join().unwrap();
        }
        assert!(modest.join().unwrap());
        assert!(modest_ended_at < total, "the modest one ended last");
    });
}

#[test]
fn a_request_to_a_client_ends_with_its_answer_a_timeout_or_the_close() {
    serve(ServerOptions::default(), async |world: &World| {
        let address = world.address;
        let peer = std::thread::spawn(move || {
            let mut peer = Peer::new(address);
            assert!(peer.echoes(77));
            let asked = peer.receive().unwrap();
            assert_eq!((asked.code, asked.flag), (220, 0));
            let answer = |opaque| Outgoing {
                code: 0,
                flag: FLAG_RESPONSE,
                opaque,
                ..Outgoing::default()
            };
            // The first answers nothing that was asked.
            peer.send(&answer(asked.opaque + 1000).frame(Encoding::Json, b"no"));
            peer.send(&answer(asked.opaque).frame(Encoding::Binary, b"yes"));
            let ignored = peer.receive().unwrap();
            assert_ne!(ignored.opaque, asked.opaque);
            let oneway = peer.receive().unwrap();
            assert_eq!((oneway.code, oneway.flag), (40, FLAG_ONEWAY));
            // A late answer is dropped.
            peer.send(&answer(ignored.opaque).frame(Encoding::Json, b""));
            peer.receive().unwrap();
        });
        let handler = world.handler.clone();
        world
            .until("connected", || handler.handled.get() == 1)
            .await;
        let connection = world.last();
        let ask = Outgoing {
            code: 220,
            ..Outgoing::default()
        };
        let answer = connection.invoke(ask.clone(), Bytes::new(), PATIENCE).await;
        assert_eq!(answer.unwrap().body, "yes");
        let short = Duration::from_millis(50);
        let answer = connection.invoke(ask.clone(), Bytes::new(), short).await;
        assert_eq!(answer.unwrap_err(), InvokeError::Timeout(short));
        assert_eq!(connection.call_count(), 0);
        let notice = Outgoing {
            code: 40,
            ..Outgoing::default()
        };
        connection.push_oneway(notice, Bytes::new());
        let answer = connection.invoke(ask.clone(), Bytes::new(), PATIENCE).await;
        assert_eq!(answer.unwrap_err(), InvokeError::Closed);
        let answer = connection.invoke(ask, Bytes::new(), PATIENCE).await;
        assert_eq!(answer.unwrap_err(), InvokeError::Closed);
        world.until("the peer ends", || peer.is_finished()).await;
        peer.join().unwrap();
    });
}

#[test]
fn a_reset_while_answers_are_pending_is_told_once_and_late_answers_go_nowhere() {
    serve(ServerOptions::default(), async |world: &World| {
        world.handler.keep.set(true);
        world
            .peer(|address| {
                let mut peer = Peer::new(address);
                (0..10).for_each(|opaque| peer.send(&request(opaque, Encoding::Json, b"x")));
                std::thread::sleep(SECOND / 10);
                peer.reset();
            })
            .await;
        let handler = world.handler.clone();
        world.until("closed", || handler.closed.get() == 1).await;
        assert_eq!(handler.kept.borrow().len(), 10);
        assert_eq!(world.server.get(world.last().id()).map(|_| ()), None);
        handler.answer_kept();
        assert!(!world.last().is_open() && world.last().is_quiet());
        world.env.sleep(SECOND / 20).await;
        assert_eq!(handler.closed.get(), 1);
    });
}

#[test]
fn a_close_lets_out_what_is_queued() {
    serve(ServerOptions::default(), async |world: &World| {
        let address = world.address;
        let peer = std::thread::spawn(move || {
            let mut peer = Peer::new(address);
            assert!(peer.echoes(1));
            assert_eq!(peer.receive().unwrap().body.len(), 8 << 20);
            assert!(peer.receive().is_none());
        });
        let handler = world.handler.clone();
        world
            .until("connected", || handler.handled.get() == 1)
            .await;
        let connection = world.last();
        assert!(world.server.get(connection.id()).is_some());
        connection.push_frame(Outgoing::default().frame(Encoding::Json, &vec![1; 8 << 20]));
        connection.close();
        world.until("the peer ends", || peer.is_finished()).await;
        peer.join().unwrap();
    });
}

#[test]
fn a_graceful_stop_answers_what_is_in_flight_and_accepts_nothing_new() {
    serve(ServerOptions::default(), async |world: &World| {
        world.handler.keep.set(true);
        let address = world.address;
        let peer = std::thread::spawn(move || {
            let mut idle = Peer::new(address);
            let mut busy = Peer::new(address);
            busy.send(&request(1, Encoding::Json, b"x"));
            assert!(idle.receive().is_none());
            assert!(TcpStream::connect(address).is_err());
            assert_eq!(busy.receive().unwrap().opaque, 1);
            assert!(busy.receive().is_none());
        });
        let handler = world.handler.clone();
        world
            .until("connected", || handler.handled.get() == 1)
            .await;
        let (later, env) = (handler.clone(), world.env.clone());
        world.env.spawn(async move {
            env.sleep(SECOND / 2).await;
            later.answer_kept();
        });
        world.server.stop(PATIENCE).await;
        assert_eq!(handler.closed.get(), 2);
        world.until("the peer ends", || peer.is_finished()).await;
        peer.join().unwrap();
    });
}

#[test]
fn a_graceful_stop_waits_no_longer_than_it_may() {
    serve(ServerOptions::default(), async |world: &World| {
        world.handler.keep.set(true);
        let address = world.address;
        let peer = std::thread::spawn(move || {
            let mut peer = Peer::new(address);
            peer.send(&request(1, Encoding::Json, b"x"));
            assert!(peer.ends_silently());
        });
        let handler = world.handler.clone();
        world
            .until("connected", || handler.handled.get() == 1)
            .await;
        let started = Instant::now();
        world.server.stop(SECOND / 5).await;
        assert!((SECOND / 5..5 * SECOND).contains(&started.elapsed()));
        world.until("the peer ends", || peer.is_finished()).await;
        peer.join().unwrap();
    });
}

fn swept() -> ServerOptions {
    ServerOptions {
        sweep_interval: Duration::from_millis(50),
        ..ServerOptions::default()
    }
}

#[test]
fn an_idle_connection_is_closed_and_a_busy_one_is_not() {
    let options = ServerOptions {
        idle_close: Duration::from_millis(400),
        ..swept()
    };
    serve(options, async |world: &World| {
        world
            .peer(|address| {
                let mut busy = Peer::new(address);
                let mut idle = Peer::new(address);
                assert!(idle.echoes(0));
                let started = Instant::now();
                for opaque in 0..20 {
                    assert!(busy.echoes(opaque));
                    std::thread::sleep(Duration::from_millis(50));
                }
                assert!(idle.ends_silently() && started.elapsed() > Duration::from_millis(400));
                assert!(busy.echoes(21));
            })
            .await;
    });
}

#[test]
fn a_peer_that_does_not_read_is_closed() {
    let options = ServerOptions {
        stalled_close: Duration::from_millis(300),
        ..swept()
    };
    serve(options, async |world: &World| {
        world.handler.answer_bytes.set(16 << 20);
        let address = world.address;
        let (done, wait) = std::sync::mpsc::channel::<()>();
        let peer = std::thread::spawn(move || {
            let mut peer = Peer::new(address);
            peer.send(&request(1, Encoding::Json, b"x"));
            let _ = wait.recv();
        });
        let handler = world.handler.clone();
        world.until("closed", || handler.closed.get() == 1).await;
        drop(done);
        peer.join().unwrap();
    });
}

#[test]
fn connections_over_the_limit_are_closed_and_others_go_on() {
    let options = ServerOptions {
        connections_max: 2,
        ..ServerOptions::default()
    };
    serve(options, async |world: &World| {
        world
            .peer(|address| {
                let mut peers = [Peer::new(address), Peer::new(address)];
                assert!(peers.iter_mut().all(|peer| peer.echoes(1)));
                assert!(Peer::new(address).ends_silently());
                assert!(peers.iter_mut().all(|peer| peer.echoes(2)));
                let [first, _second] = peers;
                drop(first);
                std::thread::sleep(SECOND / 5);
                assert!(Peer::new(address).echoes(3));
            })
            .await;
    });
}

#[test]
fn two_listeners_share_an_address_and_a_stopped_one_can_be_bound_again() {
    serve(ServerOptions::default(), async |world: &World| {
        let second = Listener::bind(world.address).unwrap();
        assert_eq!(second.local(), world.address);
    });
}

fn ask() -> Outgoing {
    Outgoing {
        code: 10,
        ..Outgoing::default()
    }
}

#[test]
fn a_client_calls_and_sends_oneway_and_says_why_a_call_failed() {
    serve(ServerOptions::default(), async |world: &World| {
        let address = world.address.to_string();
        let client = RemotingClient::connect(&world.env, &address, SECOND)
            .await
            .unwrap();
        client.oneway(ask(), Bytes::from_static(b"lost"));
        let answer = client.call(ask(), Bytes::from_static(b"a"), SECOND).await;
        assert_eq!(answer.unwrap().body, "a");
        assert_eq!(world.handler.handled.get(), 2);

        world.handler.keep.set(true);
        let failed = client.call(ask(), Bytes::new(), SECOND / 20).await;
        assert!(matches!(failed, Err(ClientError::Timeout { .. })));
        let closing = world.last();
        let env = world.env.clone();
        world.env.spawn(async move {
            env.sleep(SECOND / 20).await;
            closing.close();
        });
        let failed = client.call(ask(), Bytes::new(), PATIENCE).await;
        assert!(matches!(failed, Err(ClientError::Closed { .. })));
        assert!(!client.is_open());

        let nobody = Listener::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let gone = nobody.local().to_string();
        drop(nobody);
        world.env.sleep(SECOND / 20).await;
        let failed = RemotingClient::connect(&world.env, &gone, SECOND).await;
        assert!(matches!(failed, Err(ClientError::Connect { .. })));
    });
}

#[test]
fn a_client_is_closed_when_it_is_dropped_after_its_last_oneway() {
    serve(ServerOptions::default(), async |world: &World| {
        let address = format!("localhost:{}", world.address.port());
        let client = RemotingClient::connect(&world.env, &address, PATIENCE)
            .await
            .unwrap();
        client.oneway(ask(), Bytes::new());
        drop(client);
        let handler = world.handler.clone();
        world.until("closed", || handler.closed.get() == 1).await;
        assert_eq!(handler.handled.get(), 1);
    });
}

#[test]
fn a_reconnecting_client_connects_again_after_a_loss() {
    serve(ServerOptions::default(), async |world: &World| {
        let client = Reconnecting::new(world.env.clone(), world.address.to_string());
        for round in 1..=3 {
            let answer = client.call(ask(), Bytes::from_static(b"a"), PATIENCE).await;
            assert_eq!(answer.unwrap().body, "a");
            world.last().close_now();
            let handler = world.handler.clone();
            world
                .until("closed", || handler.closed.get() == round)
                .await;
            world.env.sleep(SECOND / 20).await;
        }
    });
}

#[test]
fn a_handler_can_be_tested_without_a_socket() {
    let connection = Connection::detached(crate::server::listener::new_connection_id(0));
    let handler = TestHandler::default();
    let mut frame = BytesMut::from(&request(9, Encoding::Binary, b"x")[..]);
    let responder = Responder {
        connection: connection.clone(),
        opaque: 9,
        encoding: Encoding::Binary,
        oneway: false,
        request_bytes: frame.len(),
    };
    handler.handle(next_frame(&mut frame).unwrap().unwrap(), responder);
    let answer = next_frame(&mut connection.take_output()).unwrap().unwrap();
    assert_eq!((answer.opaque, &answer.body[..]), (9, &b"x"[..]));
}

#[test]
fn an_idle_connection_costs_little_memory() {
    assert!(
        size_of::<Connection>() <= 640,
        "{} bytes",
        size_of::<Connection>()
    );
    let connection = Connection::detached(crate::server::listener::new_connection_id(0));
    let (reader, writer) = connection.task_bytes();
    assert!(reader + writer <= 2048, "{reader} and {writer} bytes");
}

const SELF_TEST: &str = "server::tests::without_free_descriptors_accepting_pauses_and_resumes";

#[test]
fn without_free_descriptors_accepting_pauses_and_resumes() {
    const MARK: &str = "RINGMQ_TEST_FEW_DESCRIPTORS";
    if std::env::var_os(MARK).is_none() {
        // The limit is the process's, so that this test needs one of its own.
        let binary = std::env::current_exe().unwrap();
        let output = std::process::Command::new("sh")
            .args(["-c", "ulimit -n 80 && exec \"$0\" --exact \"$1\""])
            .arg(binary)
            .arg(SELF_TEST)
            .env(MARK, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains("1 passed"),
            "{text}"
        );
        return;
    }
    serve(ServerOptions::default(), async |world: &World| {
        world
            .peer(|address| {
                let mut peers = Vec::new();
                while let Ok(socket) = TcpStream::connect(address) {
                    peers.push(socket);
                }
                assert!(peers.len() > 10);
                std::thread::sleep(SECOND / 2);
                drop(peers);
                assert!(Peer::new(address).echoes(1));
            })
            .await;
        let refusals = world.server.accept_failures.get();
        assert!((1..20).contains(&refusals), "{refusals} failed accepts");
    });
}
