//! A server that answers what a producer asks, as a test tells it to: with pauses, or wrongly.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use ringmq::wire::remoting::code::request;
use ringmq::wire::remoting::command::{Command, Encoding, Outgoing};
use ringmq::wire::remoting::frame::next_frame;

/// What it does with sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    Honest,
    /// Answers nothing for so long, once, that long after the first send.
    Pauses {
        after: Duration,
        pause: Duration,
    },
    /// Answers each send for another queue than was asked for.
    WrongQueue,
    /// Answers with a number that no request has.
    WrongOpaque,
    /// Refuses every second send.
    Busy,
    /// Sends bytes that are no frame.
    Garbage,
    /// Answers without an offset.
    NoOffset,
}

/// The listening server; its threads end with the test's process.
pub struct Toy {
    pub address: SocketAddr,
    /// Unique keys of all sends.
    pub keys: Arc<Mutex<Vec<String>>>,
}

pub fn start(manner: Manner) -> Toy {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let keys = Arc::new(Mutex::new(Vec::new()));
    let all = keys.clone();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            stream.set_nodelay(true).unwrap();
            let keys = all.clone();
            thread::spawn(move || {
                let mut inbox = BytesMut::new();
                let mut chunk = vec![0; 64 << 10];
                let mut server = Server {
                    manner,
                    first: None,
                    paused: false,
                    sends: 0,
                };
                loop {
                    let read = match stream.read(&mut chunk) {
                        Ok(0) | Err(_) => return,
                        Ok(read) => read,
                    };
                    inbox.extend_from_slice(&chunk[..read]);
                    let mut out = Vec::new();
                    while let Some(command) = next_frame(&mut inbox).unwrap() {
                        server.answer(&command, &keys, &mut out);
                    }
                    if stream.write_all(&out).is_err() {
                        return;
                    }
                }
            });
        }
    });
    Toy { address, keys }
}

struct Server {
    manner: Manner,
    first: Option<Instant>,
    paused: bool,
    sends: u64,
}

impl Server {
    fn answer(&mut self, command: &Command, keys: &Mutex<Vec<String>>, out: &mut Vec<u8>) {
        let mut answer = Outgoing {
            flag: 1,
            opaque: command.opaque,
            ..Outgoing::default()
        };
        let is_send =
            [request::SEND_MESSAGE_V2, request::SEND_BATCH_MESSAGE].contains(&command.code);
        if !is_send {
            out.extend_from_slice(&answer.frame(Encoding::Json, b"flushDiskType=NONE\n"));
            return;
        }
        self.sends += 1;
        let first = *self.first.get_or_insert_with(Instant::now);
        if let Manner::Pauses { after, pause } = self.manner
            && !self.paused
            && first.elapsed() >= after
        {
            self.paused = true;
            thread::sleep(pause);
        }
        let properties = command.text("i").unwrap();
        let key = properties
            .split('\u{2}')
            .find_map(|pair| pair.strip_prefix("UNIQ_KEY\u{1}"))
            .unwrap();
        keys.lock().unwrap().push(key.to_owned());
        let mut queue = command.required_int("e").unwrap();
        match self.manner {
            Manner::Garbage => return out.extend_from_slice(&[0xff; 32]),
            Manner::WrongOpaque => answer.opaque ^= 0x0200_0000,
            Manner::WrongQueue => queue += 1,
            Manner::Busy if self.sends.is_multiple_of(2) => {
                answer.code = 2;
                answer.remark = Some("too busy".into());
            }
            _ => {}
        }
        let mut answer = answer
            .field("msgId", "7F000001000078BF0000000000000000")
            .field("queueId", queue);
        if self.manner != Manner::NoOffset {
            answer = answer.field("queueOffset", self.sends as i64);
        }
        out.extend_from_slice(&answer.frame(command.encoding, b""));
    }
}
