//! One TCP connection: a task that reads, a task that writes, and whoever asks.
//!
//! Asking encodes under a lock and wakes the writer, which writes everything that waits in one call, so that requests
//! that are made together leave together.

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use ringmq_wire_native::frame::Frame;
use ringmq_wire_native::message::Message;
use tokio::sync::{Notify, mpsc, oneshot};

use super::rt::{self, Reader, Writer};
use crate::core::link::{Incoming, Link, Welcome};
use crate::error::Error;

/// Slices of one write.
const SLICES_MAX: usize = 64;
/// Bytes that one read has room for at least.
const READ_BYTES: usize = 64 << 10;
/// Of a frame that is not whole yet, so many bytes get their memory at once.
const READ_BYTES_MAX: usize = 4 << 20;
/// Requests without an answer wait while so many bytes wait to be written.
const OUT_BYTES_MAX: usize = 8 << 20;

/// A lane of a consumer: its number, and which life of it.
pub type Place = (usize, u64);
/// Where the answers of a consumer go.
pub type Answers = mpsc::UnboundedSender<(Place, Result<Frame, Error>)>;

enum Waiter {
    Once(oneshot::Sender<Frame>),
    Lane(Place, Answers),
}

struct State {
    link: Link,
    out_bytes: usize,
    waiting: HashMap<u64, Waiter>,
    /// Why the connection ended.
    closed: Option<String>,
}

/// See the module's page.
pub struct Connection {
    address: String,
    welcome: Welcome,
    state: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// There is something to write, or nothing will come any more.
    work: Notify,
    /// Something was written.
    written: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Whoever panicked left nothing half done: each turn ends with a whole state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self, address: &str, reason: &str) {
        let waiting = {
            let mut state = self.lock();
            state.closed.get_or_insert_with(|| reason.to_owned());
            std::mem::take(&mut state.waiting)
        };
        for waiter in waiting.into_values() {
            if let Waiter::Lane(lane, answers) = waiter {
                let error = Error::Closed {
                    address: address.to_owned(),
                    reason: reason.to_owned(),
                };
                let _ = answers.send((lane, Err(error)));
            }
        }
        self.work.notify_one();
        self.written.notify_waiters();
    }
}

impl Connection {
    /// Connects and says hello.
    pub async fn open(
        address: &str,
        client_id: &str,
        credentials: &[u8],
        limit: Duration,
    ) -> Result<Self, Error> {
        let refused = |reason: String| Error::Connect {
            address: address.to_owned(),
            reason,
        };
        let opening = async {
            let (mut reader, mut writer) = rt::connect(address)
                .await
                .map_err(|error| refused(error.to_string()))?;
            let mut link = Link::new(client_id, credentials);
            let mut out = std::mem::take(link.out());
            write_all(&mut writer, &mut out)
                .await
                .map_err(|error| refused(error.to_string()))?;
            let mut input = BytesMut::new();
            loop {
                match link.read(&mut input)? {
                    Some(Incoming::Ready(welcome)) => {
                        return Ok((reader, writer, link, input, *welcome));
                    }
                    Some(Incoming::Answer(..)) => {}
                    None => {
                        input.reserve(READ_BYTES);
                        let bytes = rt::read(&mut reader, &mut input)
                            .await
                            .map_err(|error| refused(error.to_string()))?;
                        if bytes == 0 {
                            return Err(refused(
                                "it closes the connection; does it speak the native protocol?"
                                    .to_owned(),
                            ));
                        }
                    }
                }
            }
        };
        let (reader, writer, link, input, welcome) = rt::timeout(limit, opening)
            .await
            .ok_or_else(|| refused(format!("no answer within {limit:?}")))??;
        let state = Arc::new(Shared {
            state: Mutex::new(State {
                link,
                out_bytes: 0,
                waiting: HashMap::new(),
                closed: None,
            }),
            work: Notify::new(),
            written: Notify::new(),
        });
        let (read, written) = (state.clone(), state.clone());
        let (read_address, written_address) = (address.to_owned(), address.to_owned());
        rt::spawn(async move {
            let reason = read_all(reader, input, &read).await;
            read.close(&read_address, &reason);
        });
        rt::spawn(async move {
            if let Err(error) = write_while_open(writer, &written).await {
                written.close(&written_address, &error.to_string());
            }
        });
        Ok(Self {
            address: address.to_owned(),
            welcome,
            state,
        })
    }

    /// What the broker said at the beginning.
    pub fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    /// Whether requests can still be made.
    pub fn is_open(&self) -> bool {
        self.state.lock().closed.is_none()
    }

    fn closed(&self, reason: &str) -> Error {
        Error::Closed {
            address: self.address.clone(),
            reason: reason.to_owned(),
        }
    }

    fn begin(
        &self,
        message: &Message<'_>,
        payload: Vec<Bytes>,
        waiter: Option<Waiter>,
    ) -> Result<u64, Error> {
        let mut state = self.state.lock();
        if let Some(reason) = &state.closed {
            return Err(self.closed(reason));
        }
        state.out_bytes += payload.iter().map(Bytes::len).sum::<usize>();
        let id = state.link.request(message, payload);
        if let Some(waiter) = waiter {
            state.waiting.insert(id, waiter);
        }
        drop(state);
        self.state.work.notify_one();
        Ok(id)
    }

    /// Asks and waits for the answer.
    pub async fn ask(
        &self,
        message: &Message<'_>,
        payload: Vec<Bytes>,
        limit: Duration,
    ) -> Result<Frame, Error> {
        let (sender, receiver) = oneshot::channel();
        let id = self.begin(message, payload, Some(Waiter::Once(sender)))?;
        match rt::timeout(limit, receiver).await {
            Some(Ok(frame)) => Ok(frame),
            Some(Err(_)) => {
                let reason = self.state.lock().closed.clone();
                Err(self.closed(&reason.unwrap_or_default()))
            }
            None => {
                self.state.lock().waiting.remove(&id);
                Err(Error::Timeout(limit))
            }
        }
    }

    /// Asks; the answer, or the end of the connection, goes to a lane of a consumer.
    pub fn ask_for_lane(
        &self,
        message: &Message<'_>,
        lane: Place,
        answers: &Answers,
    ) -> Result<(), Error> {
        let waiter = Waiter::Lane(lane, answers.clone());
        self.begin(message, Vec::new(), Some(waiter)).map(drop)
    }

    /// Sends what has no answer, and waits while too much waits to be written.
    pub async fn tell(&self, message: &Message<'_>, payload: Vec<Bytes>) -> Result<(), Error> {
        self.begin(message, payload, None)?;
        loop {
            let written = self.state.written.notified();
            {
                let state = self.state.lock();
                if let Some(reason) = &state.closed {
                    return Err(self.closed(reason));
                }
                if state.out_bytes < OUT_BYTES_MAX {
                    return Ok(());
                }
            }
            written.await;
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.state.close(&self.address, "it is not needed any more");
    }
}

async fn write_all(writer: &mut Writer, out: &mut VecDeque<Bytes>) -> io::Result<()> {
    while !out.is_empty() {
        let slices: Vec<IoSlice<'_>> = out
            .iter()
            .take(SLICES_MAX)
            .map(|part| IoSlice::new(part))
            .collect();
        let mut bytes = rt::write(writer, &slices).await?;
        if bytes == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        while let Some(first) = out.front_mut() {
            let taken = bytes.min(first.len());
            first.advance(taken);
            bytes -= taken;
            if !first.is_empty() {
                break;
            }
            out.pop_front();
        }
    }
    Ok(())
}

/// Writes what comes until the connection is closed.
async fn write_while_open(mut writer: Writer, shared: &Shared) -> io::Result<()> {
    loop {
        let (mut out, closed) = {
            let mut state = shared.lock();
            let out = std::mem::take(state.link.out());
            state.out_bytes = 0;
            (out, state.closed.is_some())
        };
        if closed {
            return rt::shutdown(&mut writer).await;
        }
        if out.is_empty() {
            shared.work.notified().await;
            continue;
        }
        write_all(&mut writer, &mut out).await?;
        shared.written.notify_waiters();
    }
}

/// Reads until the connection ends, and says why it did.
async fn read_all(mut reader: Reader, mut input: BytesMut, shared: &Shared) -> String {
    loop {
        loop {
            let mut state = shared.lock();
            if state.closed.is_some() {
                return "closed".to_owned();
            }
            match state.link.read(&mut input) {
                Ok(Some(Incoming::Answer(id, frame))) => match state.waiting.remove(&id) {
                    Some(Waiter::Once(sender)) => drop(sender.send(frame)),
                    Some(Waiter::Lane(lane, answers)) => drop(answers.send((lane, Ok(frame)))),
                    // Whoever asked has given up.
                    None => {}
                },
                Ok(Some(Incoming::Ready(_))) => {}
                Ok(None) => break,
                Err(error) => return error.to_string(),
            }
        }
        let wanted = Link::bytes_wanted(&input);
        input.reserve(wanted.clamp(READ_BYTES, READ_BYTES_MAX));
        match rt::read(&mut reader, &mut input).await {
            Ok(0) => return "the broker closed it".to_owned(),
            Ok(_) => {}
            Err(error) => return error.to_string(),
        }
    }
}
