//! One connection under load: frames gathered into few system calls, and what is in flight on it.
//!
//! The socket blocks only where the caller asks for it. An answer must belong to a request that is in flight: a number
//! that was never sent, or was answered before, is an error of the broker and is counted as one.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::answer::{Answer, AnswerError, Inbox, native_parts};
use crate::frames::OPAQUE_FIRST;
use crate::native::{self, Hosts};
use crate::plan::Protocol;

/// Requests that one connection can have in flight.
pub const IN_FLIGHT_MAX: usize = 1 << SLOT_BITS;
const SLOT_BITS: u32 = 20;
/// A slot is used again under another number this many times before numbers come back.
const GENERATIONS: u32 = 1 << 10;
/// Bytes of one read.
const READ_BYTES: usize = 256 << 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

const _: () = assert!(OPAQUE_FIRST as i64 + ((GENERATIONS as i64) << SLOT_BITS) <= i32::MAX as i64);

/// A broken connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    #[error("the broker closed the connection")]
    Closed,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the broker answers with what is no frame: {0}")]
    Frame(#[from] AnswerError),
}

/// A request in flight.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// When it was meant to be sent, nanoseconds since the run began.
    pub due_ns: u64,
    /// Whose request: an index that the caller gives a meaning.
    pub target: u32,
    /// Number of its first message, as the caller counts them.
    pub sequence: u64,
}

#[derive(Clone, Copy)]
struct Slot {
    generation: u32,
    sent: Option<Sent>,
}

/// What is in flight on a connection, by opaque.
#[derive(Default)]
pub struct InFlight {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl InFlight {
    /// Requests without an answer.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether every request has its answer.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes a number for a request; the caller keeps below [`IN_FLIGHT_MAX`].
    pub fn begin(&mut self, sent: Sent) -> i32 {
        let at = self.free.pop().unwrap_or_else(|| {
            assert!(
                self.slots.len() < IN_FLIGHT_MAX,
                "the caller bounds what is in flight"
            );
            self.slots.push(Slot {
                generation: 0,
                sent: None,
            });
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[at as usize];
        slot.sent = Some(sent);
        OPAQUE_FIRST + ((slot.generation << SLOT_BITS) | at) as i32
    }

    /// The request that an answer is for; none if there is no such request in flight.
    pub fn end(&mut self, opaque: i32) -> Option<Sent> {
        let number = u32::try_from(opaque.checked_sub(OPAQUE_FIRST)?).ok()?;
        let at = number & (IN_FLIGHT_MAX as u32 - 1);
        let slot = self.slots.get_mut(at as usize)?;
        if slot.generation != number >> SLOT_BITS {
            return None;
        }
        let sent = slot.sent.take()?;
        slot.generation = (slot.generation + 1) % GENERATIONS;
        self.free.push(at);
        Some(sent)
    }

    /// All that never got an answer.
    pub fn abandoned(&self) -> impl Iterator<Item = Sent> {
        self.slots.iter().filter_map(|slot| slot.sent)
    }
}

/// A connection to a broker.
pub struct Connection {
    stream: TcpStream,
    pub in_flight: InFlight,
    /// Frames that wait to be written; the caller appends to it.
    pub out: Vec<u8>,
    written: usize,
    inbox: Inbox,
    hosts: Option<Hosts>,
}

impl Connection {
    /// Connects; small frames leave at once.
    pub fn connect(address: SocketAddr, protocol: Protocol) -> Result<Self, ConnectionError> {
        let stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)?;
        stream.set_nodelay(true)?;
        let mut connection = Self {
            stream,
            in_flight: InFlight::default(),
            out: Vec::new(),
            written: 0,
            inbox: Inbox::new(protocol, READ_BYTES),
            hosts: None,
        };
        if protocol == Protocol::Native {
            connection.out = native::hello();
            connection.flush()?;
            while connection.hosts.is_none() {
                connection.receive(true)?;
                if let Some(frame) = connection.inbox.next_frame()? {
                    let (header, _) = native_parts(frame)?;
                    let hosts = native::hosts_of(header).map_err(AnswerError::Header)?;
                    connection.hosts = Some(hosts);
                }
            }
        }
        Ok(connection)
    }

    /// The addresses that native records have room for.
    pub fn hosts(&self) -> Option<Hosts> {
        self.hosts
    }

    /// For epoll.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Whether frames wait to be written.
    pub fn has_output(&self) -> bool {
        self.written < self.out.len()
    }

    /// Writes as much as the socket takes now.
    pub fn flush(&mut self) -> Result<(), ConnectionError> {
        while self.has_output() {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match send(&self.stream, &self.out[self.written..], flags) {
                Ok(bytes) => self.written += bytes,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(ConnectionError::Io(error.into())),
            }
        }
        self.out.clear();
        self.written = 0;
        Ok(())
    }

    /// Reads once; with `wait` until something comes or the socket's timeout passes. Returns whether anything came.
    pub fn receive(&mut self, wait: bool) -> Result<bool, ConnectionError> {
        let flags = if wait {
            RecvFlags::empty()
        } else {
            RecvFlags::DONTWAIT
        };
        match recv(&self.stream, self.inbox.room()?, flags) {
            Ok((0, _)) => Err(ConnectionError::Closed),
            Ok((bytes, _)) => {
                self.inbox.advance(bytes);
                Ok(true)
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(ConnectionError::Io(error.into())),
        }
    }

    /// Whether a whole answer was read.
    pub fn has_answer(&self) -> Result<bool, ConnectionError> {
        Ok(self.inbox.has_frame()?)
    }

    /// The next whole answer of what was read, and what it answers.
    pub fn next_answer(&mut self) -> Result<Option<(Answer<'_>, Option<Sent>)>, ConnectionError> {
        let Some(answer) = self.inbox.next_answer()? else {
            return Ok(None);
        };
        let sent = if answer.is_response() {
            self.in_flight.end(answer.opaque)
        } else {
            None
        };
        Ok(Some((answer, sent)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn sent(target: u32) -> Sent {
        Sent {
            due_ns: 1,
            target,
            sequence: 2,
        }
    }

    #[test]
    fn an_answer_ends_one_request_once() {
        let mut in_flight = InFlight::default();
        let first = in_flight.begin(sent(1));
        let second = in_flight.begin(sent(2));
        assert_eq!(in_flight.end(second).unwrap().target, 2);
        assert!(in_flight.end(second).is_none(), "a second answer");
        let third = in_flight.begin(sent(3));
        assert_ne!(third, second, "a late answer must not end another request");
        assert!(in_flight.end(second).is_none());
        assert_eq!(in_flight.len(), 2);
        assert_eq!(in_flight.end(first).unwrap().target, 1);
        assert_eq!(in_flight.end(third).unwrap().target, 3);
        assert!(in_flight.is_empty());
    }

    #[test]
    fn a_number_that_was_never_sent_ends_nothing() {
        let mut in_flight = InFlight::default();
        in_flight.begin(sent(1));
        for opaque in [
            0,
            -1,
            i32::MIN,
            i32::MAX,
            OPAQUE_FIRST + 1,
            OPAQUE_FIRST - 1,
        ] {
            assert!(in_flight.end(opaque).is_none(), "{opaque}");
        }
    }
}
