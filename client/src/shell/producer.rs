//! A producer: messages go into batches, a task sends these and sends them again where that may help.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use ringmq_wire_native::frame::{PREFIX_BYTES, padded};
use ringmq_wire_native::message::{Ack, Message as Body, Produce, ProduceQueue};
use ringmq_wire_native::properties::hash_code;
use tokio::sync::{Notify, oneshot};

use super::client::{Client, read, unexpected};
use super::rt;
use crate::core::batch::{Batch, BatchOptions, Batcher};
use crate::core::message::Message;
use crate::core::routes::Queue;
use crate::error::Error;

/// The broker is busy with what it has: again a little later.
const SYSTEM_BUSY: i32 = 2;
/// The disk is full, or the broker is stopping: another try may find it well.
const SERVICE_NOT_AVAILABLE: i32 = 14;
/// The topic was deleted since we asked for it.
const TOPIC_NOT_EXIST: i32 = 17;
/// First wait before a batch is sent again; it doubles up to [`BACKOFF_MAX`].
const BACKOFF: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// Headers of a frame, at most: what is left of it is for records.
const HEADER_BYTES: usize = 64 << 10;
/// Queues of one frame.
const QUEUES_PER_FRAME: usize = 256;

/// How a producer sends.
#[derive(Clone, Debug)]
pub struct ProducerOptions {
    /// When batches leave.
    pub batch: BatchOptions,
    /// How often a batch is sent again that failed in a way that may pass: a busy broker, a lost connection.
    pub retries: u32,
    /// Bytes of messages that may wait; whoever sends more waits.
    pub buffer_bytes: usize,
}

impl Default for ProducerOptions {
    fn default() -> Self {
        Self {
            batch: BatchOptions::default(),
            retries: 10,
            buffer_bytes: 32 << 20,
        }
    }
}

/// Where a message was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Queue that it is in.
    pub queue_id: u32,
    /// Its place in the queue.
    pub queue_offset: i64,
    /// Its place in the broker's logs.
    pub physical_offset: i64,
    /// When, milliseconds since 1970 by the broker's clock.
    pub store_timestamp_ms: i64,
    /// Its unique id, which every copy of it has.
    pub unique_id: String,
    /// 0, or a response code of RocketMQ that says that it has fewer copies than the broker is configured for: 11 if slaves
    /// are missing, 12 if they did not say in time that they have it.
    pub code: i32,
}

/// A message on its way: a future that ends when it is acknowledged or given up. Dropping it takes nothing back.
#[derive(Debug)]
pub struct Delivery(oneshot::Receiver<Result<Receipt, Error>>);

impl Future for Delivery {
    type Output = Result<Receipt, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0)
            .poll(cx)
            .map(|answer| answer.unwrap_or(Err(Error::ProducerClosed)))
    }
}

/// What is kept for a record until it is stored.
struct Token {
    unique_id: String,
    bytes: u32,
    /// None: nobody waits, and the broker is not asked to answer.
    reply: Option<oneshot::Sender<Result<Receipt, Error>>>,
}

impl Token {
    fn fail(self, error: &Error) {
        if let Some(reply) = self.reply {
            let _ = reply.send(Err(error.clone()));
        }
    }
}

struct State {
    /// Those that are acknowledged, and those that are not.
    batchers: [Batcher<Token>; 2],
    /// By topic: where messages without a queue go now.
    turns: HashMap<String, u32>,
    is_closed: bool,
}

struct Shared {
    client: Client,
    options: ProducerOptions,
    begun: Instant,
    state: Mutex<State>,
    /// There is something to do for the task.
    work: Notify,
    /// Something has landed.
    landed: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Sends messages. Share it by reference or `Arc`; when it is dropped what waits is still sent.
pub struct Producer {
    shared: Arc<Shared>,
}

impl Producer {
    pub(super) fn new(client: Client, options: ProducerOptions) -> Self {
        let batcher = || Batcher::new(options.batch.clone());
        let shared = Arc::new(Shared {
            client,
            begun: Instant::now(),
            state: Mutex::new(State {
                batchers: [batcher(), batcher()],
                turns: HashMap::new(),
                is_closed: false,
            }),
            work: Notify::new(),
            landed: Notify::new(),
            options,
        });
        rt::spawn(run(shared.clone()));
        Self { shared }
    }

    /// Sends a message and waits until it is acknowledged.
    pub async fn send(&self, message: Message) -> Result<Receipt, Error> {
        self.submit(message).await?.await
    }

    /// Hands a message over; the result ends when it is acknowledged. This waits only for room, and for what is to be known
    /// of a new topic.
    pub async fn submit(&self, message: Message) -> Result<Delivery, Error> {
        let (sender, receiver) = oneshot::channel();
        self.push(message, Some(sender)).await?;
        Ok(Delivery(receiver))
    }

    /// Sends a message without an acknowledgement: it is lost if anything goes wrong, and nobody hears of it. Its order among
    /// acknowledged messages is not kept.
    pub async fn send_oneway(&self, message: Message) -> Result<(), Error> {
        self.push(message, None).await
    }

    /// Waits until everything that was handed over has landed.
    pub async fn flush(&self) {
        self.wait_until(|state| state.batchers.iter().all(Batcher::is_idle))
            .await;
    }

    /// Sends what waits and ends.
    pub async fn close(self) {
        self.flush().await;
    }

    async fn wait_until(&self, done: impl Fn(&State) -> bool) {
        loop {
            let landed = self.shared.landed.notified();
            if done(&self.shared.lock()) {
                return;
            }
            landed.await;
        }
    }

    async fn push(
        &self,
        message: Message,
        reply: Option<oneshot::Sender<Result<Receipt, Error>>>,
    ) -> Result<(), Error> {
        let shared = &*self.shared;
        let queues = match shared.client.known_queues(&message.topic) {
            Some(queues) => queues,
            None => shared.client.topic(&message.topic).await?.write_queues,
        };
        let room = shared.options.buffer_bytes;
        if shared.lock().bytes() > room {
            self.wait_until(|state| state.bytes() <= room).await;
        }
        let welcome = shared.client.welcome().await?;
        let born_ms = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_millis() as i64);
        let mut state = shared.lock();
        let queue_id = state.queue_of(&message, queues.max(1));
        let mut record = Vec::with_capacity(message.body.len() + 256);
        let hosts = (welcome.born_host, welcome.store_host);
        let unique_id = message.encode(
            queue_id,
            born_ms,
            hosts,
            welcome.body_bytes_max,
            &mut record,
        )?;
        let token = Token {
            unique_id,
            bytes: record.len() as u32,
            reply,
        };
        let kind = usize::from(token.reply.is_none());
        let queue = Queue::new(message.topic, queue_id);
        state.batchers[kind].push(&queue, &record, token, shared.now_ns());
        drop(state);
        shared.work.notify_one();
        Ok(())
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.shared.lock().is_closed = true;
        self.shared.work.notify_one();
    }
}

impl State {
    fn bytes(&self) -> usize {
        self.batchers.iter().map(Batcher::bytes).sum()
    }

    fn queue_of(&mut self, message: &Message, queues: u32) -> u32 {
        if let Some(queue_id) = message.queue_id {
            return queue_id;
        }
        if let Some(key) = &message.order_key {
            return (hash_code(key) as u32) % queues;
        }
        if !self.turns.contains_key(&message.topic) {
            let first = fastrand::u32(..);
            self.turns.insert(message.topic.clone(), first);
        }
        self.turns
            .get(&message.topic)
            .map_or(0, |turn| turn % queues)
    }
}

/// The task of a producer: takes batches that may leave and has them sent.
async fn run(shared: Arc<Shared>) {
    loop {
        let mut frames: HashMap<(Option<String>, usize), Vec<Batch<Token>>> = HashMap::new();
        let due_ns = {
            let mut state = shared.lock();
            let now_ns = shared.now_ns();
            let State {
                batchers, turns, ..
            } = &mut *state;
            for (kind, batcher) in batchers.iter_mut().enumerate() {
                while let Some(batch) = batcher.take(now_ns) {
                    // The next messages of the topic go to the next queue: a batch fills before the queues change.
                    if let Some(turn) = turns.get_mut(&batch.queue.topic) {
                        *turn = turn.wrapping_add(1);
                    }
                    let address = shared.client.address_of(&batch.queue);
                    frames.entry((address, kind)).or_default().push(batch);
                }
            }
            if state.is_closed && state.batchers.iter().all(Batcher::is_idle) {
                return;
            }
            state.batchers.iter().filter_map(Batcher::next_due_ns).min()
        };
        for ((address, kind), batches) in frames {
            for batches in into_frames(batches) {
                let (shared, address) = (shared.clone(), address.clone());
                rt::spawn(async move { send(&shared, address, kind, batches).await });
            }
        }
        match due_ns {
            Some(due_ns) => {
                let wait = Duration::from_nanos(due_ns.saturating_sub(shared.now_ns()));
                tokio::select! {
                    () = shared.work.notified() => {}
                    () = rt::sleep(wait) => {}
                }
            }
            None => shared.work.notified().await,
        }
    }
}

/// Batches that go into one frame together: by bytes and by number.
fn into_frames(batches: Vec<Batch<Token>>) -> Vec<Vec<Batch<Token>>> {
    const ROOM: usize = ringmq_wire_native::frame::FRAME_BYTES_MAX - PREFIX_BYTES - HEADER_BYTES;
    let mut frames: Vec<Vec<Batch<Token>>> = Vec::new();
    let mut bytes = 0;
    for batch in batches {
        let more = padded(batch.records.len());
        match frames.last_mut() {
            Some(last) if bytes + more <= ROOM && last.len() < QUEUES_PER_FRAME => {
                last.push(batch);
                bytes += more;
            }
            _ => {
                frames.push(vec![batch]);
                bytes = more;
            }
        }
    }
    frames
}

/// What came of one batch of a frame.
enum Outcome {
    /// Of its first record.
    Stored(Place),
    Failed(Error),
}

/// Where the first record of a batch is.
#[derive(Clone, Copy)]
struct Place {
    queue_offset: i64,
    physical_offset: i64,
    time_ms: i64,
    code: i32,
}

/// A batch that is being sent, with its records as the connection takes them.
struct Flying {
    queue: Queue,
    records: Bytes,
    tokens: Vec<Token>,
}

/// Sends batches as one frame, and those that failed again.
async fn send(shared: &Shared, address: Option<String>, kind: usize, batches: Vec<Batch<Token>>) {
    let mut flying: Vec<Flying> = batches
        .into_iter()
        .map(|batch| Flying {
            queue: batch.queue,
            records: batch.records.into(),
            tokens: batch.tokens,
        })
        .collect();
    let (mut tries, mut backoff) = (0, BACKOFF);
    while !flying.is_empty() {
        let outcomes = match send_once(shared, address.as_deref(), kind, &flying).await {
            Ok(outcomes) => outcomes,
            Err(error) => flying
                .iter()
                .map(|_| Outcome::Failed(error.clone()))
                .collect(),
        };
        let mut again = Vec::new();
        for (batch, outcome) in flying.into_iter().zip(outcomes) {
            match outcome {
                Outcome::Stored(place) => {
                    land(shared, kind, &batch.queue);
                    receipts(batch, place);
                }
                Outcome::Failed(error)
                    if kind == 0 && tries < shared.options.retries && may_pass(&error) =>
                {
                    if matches!(
                        error,
                        Error::Refused {
                            code: TOPIC_NOT_EXIST,
                            ..
                        }
                    ) {
                        shared.client.forget_topic(&batch.queue.topic);
                        // It is made anew if it may be; if not, the next try says so.
                        let _ = shared.client.topic(&batch.queue.topic).await;
                    }
                    again.push(batch);
                }
                Outcome::Failed(error) => {
                    land(shared, kind, &batch.queue);
                    for token in batch.tokens {
                        token.fail(&error);
                    }
                }
            }
        }
        flying = again;
        if !flying.is_empty() {
            tries += 1;
            rt::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }
}

/// Whether the same batch may fare better later.
fn may_pass(error: &Error) -> bool {
    match error {
        Error::Refused { code, .. } => {
            [SYSTEM_BUSY, SERVICE_NOT_AVAILABLE, TOPIC_NOT_EXIST].contains(code)
        }
        Error::Connect { .. } | Error::Closed { .. } | Error::Timeout(_) => true,
        _ => false,
    }
}

fn land(shared: &Shared, kind: usize, queue: &Queue) {
    shared.lock().batchers[kind].landed(queue);
    shared.landed.notify_waiters();
    shared.work.notify_one();
}

fn receipts(batch: Flying, place: Place) {
    let (mut queue_offset, mut physical_offset) = (place.queue_offset, place.physical_offset);
    for token in batch.tokens {
        if let Some(reply) = token.reply {
            let _ = reply.send(Ok(Receipt {
                queue_id: batch.queue.queue_id,
                queue_offset,
                physical_offset,
                store_timestamp_ms: place.time_ms,
                unique_id: token.unique_id,
                code: place.code,
            }));
        }
        queue_offset += 1;
        physical_offset += i64::from(token.bytes);
    }
}

async fn send_once(
    shared: &Shared,
    address: Option<&str>,
    kind: usize,
    flying: &[Flying],
) -> Result<Vec<Outcome>, Error> {
    let produce = Produce {
        ack: if kind == 0 { Ack::Durable } else { Ack::None },
        queues: flying
            .iter()
            .map(|batch| ProduceQueue {
                topic: &batch.queue.topic,
                queue_id: batch.queue.queue_id,
                records: batch.tokens.len() as u32,
                bytes: batch.records.len() as u32,
            })
            .collect(),
    };
    let payload: Vec<Bytes> = flying.iter().map(|batch| batch.records.clone()).collect();
    let connection = shared.client.connection(address).await?;
    if kind == 1 {
        connection.tell(&Body::Produce(produce), payload).await?;
        let nowhere = Place {
            queue_offset: -1,
            physical_offset: -1,
            time_ms: 0,
            code: 0,
        };
        return Ok(flying.iter().map(|_| Outcome::Stored(nowhere)).collect());
    }
    let frame = connection
        .ask(
            &Body::Produce(produce),
            payload,
            shared.client.request_timeout(),
        )
        .await?;
    match read(&frame)? {
        Body::ProduceReply(results) if results.len() == flying.len() => Ok(results
            .into_iter()
            .map(|result| match result.queue_offset {
                // With an offset it is stored, whatever the code says of its copies.
                0.. => Outcome::Stored(Place {
                    queue_offset: result.queue_offset,
                    physical_offset: result.physical_offset,
                    time_ms: result.store_timestamp_ms,
                    code: result.code,
                }),
                _ => Outcome::Failed(Error::Refused {
                    code: result.code,
                    remark: result.remark.to_owned(),
                }),
            })
            .collect()),
        other => Err(unexpected(&other)),
    }
}
