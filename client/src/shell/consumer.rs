//! A consumer: queues that were assigned to it, read over one fetch session for each core of the broker.
//!
//! While the application looks at what one fetch brought, the next one is on its way. A connection that is lost is opened
//! again, and its queues go on where the last record came from.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use ringmq_wire_native::frame::{Frame, Sections};
use ringmq_wire_native::message::{Fetch, FetchQueue, FilterKind, Message};
use tokio::sync::{Mutex, mpsc};
use tokio::time::sleep;

use crate::core::link::LinkError;
use crate::core::message::Received;
use crate::core::routes::Queue;
use crate::shell::Error;
use crate::shell::client::{Client, read, unexpected};
use crate::shell::connection::{Answers, Connection, Place};

/// Wait before a lost connection is opened again.
const RECONNECT: Duration = Duration::from_millis(200);
/// PULL_OFFSET_MOVED: there is nothing at the offset, the queue goes on elsewhere.
const OFFSET_MOVED: i32 = 21;
/// The only session of a connection that a lane has; other consumers of the client take other numbers.
static NEXT_SESSION: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(1);

/// How a consumer reads.
#[derive(Clone, Debug)]
pub struct ConsumerOptions {
    /// A fetch is answered when so many bytes are there.
    pub min_bytes: u32,
    /// And with about so many at most.
    pub max_bytes: u32,
    /// Or after so long.
    pub max_wait: Duration,
    /// Which messages are wanted: tags as in RocketMQ, such as `a || b`; `*` for all.
    pub tags: String,
    /// Which messages are wanted, by a SQL92 expression over their properties, instead of `tags`.
    pub sql: Option<String>,
    /// Check the CRC of every body. TCP has a checksum of its own; this also finds what happened in the broker's memory.
    pub check_crc: bool,
}

impl Default for ConsumerOptions {
    fn default() -> Self {
        Self {
            min_bytes: 1,
            max_bytes: 1 << 20,
            max_wait: Duration::from_secs(5),
            tags: "*".to_owned(),
            sql: None,
            check_crc: true,
        }
    }
}

/// Where a queue begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartAt {
    /// Where the group has committed; without that, at the first message that is there.
    Committed,
    /// At the first message that is there.
    Earliest,
    /// Behind the last message that is there.
    Latest,
    /// At the first message that was stored at this time or later, milliseconds since 1970.
    Timestamp(i64),
    /// There.
    Offset(i64),
}

/// A queue that is read.
struct Reading {
    queue: Queue,
    lane: usize,
    /// Offset behind the last record that came.
    fetched: i64,
    /// Offset behind the last record that the application took.
    consumed: i64,
    /// It is known that this was committed.
    committed: Option<i64>,
}

/// The queues of one core.
struct Lane {
    address: Option<String>,
    session: u32,
    connection: Option<Arc<Connection>>,
    /// What the next fetch says.
    add: Vec<u32>,
    remove: Vec<u32>,
    in_flight: u32,
    /// Answers from before the connection was lost do not count.
    epoch: u64,
    queues: usize,
}

/// Records of one queue that came together.
struct Chunk {
    handle: u32,
    records: Bytes,
}

/// See the module's page.
pub struct Consumer {
    client: Client,
    group: String,
    options: ConsumerOptions,
    lanes: Vec<Lane>,
    readings: HashMap<u32, Reading>,
    by_queue: HashMap<Queue, u32>,
    next_handle: u32,
    chunks: VecDeque<Chunk>,
    answers: Answers,
    incoming: mpsc::UnboundedReceiver<(Place, Result<Frame, Error>)>,
}

impl Consumer {
    pub(super) fn new(client: Client, group: String, options: ConsumerOptions) -> Self {
        let (answers, incoming) = mpsc::unbounded_channel();
        Self {
            client,
            group,
            options,
            lanes: Vec::new(),
            readings: HashMap::new(),
            by_queue: HashMap::new(),
            next_handle: 0,
            chunks: VecDeque::new(),
            answers,
            incoming,
        }
    }

    /// The consumer group.
    pub fn group(&self) -> &str {
        &self.group
    }

    /// Reads all queues of a topic.
    pub async fn assign_topic(&mut self, topic: &str, start: StartAt) -> Result<(), Error> {
        let queues = self.client.queues(topic).await?;
        self.assign(&queues, start).await
    }

    /// Reads these queues, beside those that it reads already.
    pub async fn assign(&mut self, queues: &[Queue], start: StartAt) -> Result<(), Error> {
        for queue in queues {
            self.client.topic(&queue.topic).await?;
        }
        let offsets = match start {
            StartAt::Offset(offset) => vec![offset; queues.len()],
            _ => {
                let timestamp_ms = match start {
                    StartAt::Timestamp(timestamp_ms) => Some(timestamp_ms),
                    _ => None,
                };
                let group = (start == StartAt::Committed).then_some(&self.group[..]);
                let known = self.client.offsets(group, queues, timestamp_ms).await?;
                known
                    .into_iter()
                    .map(|known| match start {
                        StartAt::Committed => known.committed.unwrap_or(known.min_offset),
                        StartAt::Latest => known.max_offset,
                        StartAt::Timestamp(_) => known.at_timestamp.unwrap_or(known.max_offset),
                        _ => known.min_offset,
                    })
                    .collect()
            }
        };
        for (queue, offset) in queues.iter().zip(offsets) {
            self.read_from(queue, offset);
        }
        Ok(())
    }

    /// Goes on elsewhere in a queue that is assigned. What came of it and was not taken is dropped.
    pub fn seek(&mut self, queue: &Queue, offset: i64) {
        if self.by_queue.contains_key(queue) {
            self.read_from(queue, offset);
        }
    }

    /// Reads a queue no longer.
    pub fn unassign(&mut self, queue: &Queue) {
        let Some(handle) = self.by_queue.remove(queue) else {
            return;
        };
        self.chunks.retain(|chunk| chunk.handle != handle);
        if let Some(reading) = self.readings.remove(&handle) {
            let lane = &mut self.lanes[reading.lane];
            lane.queues -= 1;
            match lane.add.iter().position(|&added| added == handle) {
                Some(at) => drop(lane.add.remove(at)),
                None => lane.remove.push(handle),
            }
        }
    }

    /// The queues that are read.
    pub fn assigned(&self) -> impl Iterator<Item = &Queue> {
        self.by_queue.keys()
    }

    /// Offset behind the last message of a queue that was taken.
    pub fn position(&self, queue: &Queue) -> Option<i64> {
        let handle = self.by_queue.get(queue)?;
        Some(self.readings.get(handle)?.consumed)
    }

    /// Every position gets a handle of its own, so that what still comes from an earlier one is known.
    fn read_from(&mut self, queue: &Queue, offset: i64) {
        self.unassign(queue);
        let address = self.client.address_of(queue);
        let lane = match self.lanes.iter().position(|lane| lane.address == address) {
            Some(lane) => lane,
            None => {
                self.lanes.push(Lane {
                    address,
                    session: NEXT_SESSION.fetch_add(1, std::sync::atomic::Ordering::Relaxed),
                    connection: None,
                    add: Vec::new(),
                    remove: Vec::new(),
                    in_flight: 0,
                    epoch: 0,
                    queues: 0,
                });
                self.lanes.len() - 1
            }
        };
        let handle = self.next_handle;
        self.next_handle += 1;
        self.lanes[lane].add.push(handle);
        self.lanes[lane].queues += 1;
        self.by_queue.insert(queue.clone(), handle);
        self.readings.insert(
            handle,
            Reading {
                queue: queue.clone(),
                lane,
                fetched: offset,
                consumed: offset,
                committed: None,
            },
        );
    }

    /// The next message; waits for one as long as it takes. After an error of the connection it may be called again: then it
    /// connects again, and goes on behind the last message.
    pub async fn next(&mut self) -> Result<Received, Error> {
        loop {
            if let Some(received) = self.take_one()? {
                return Ok(received);
            }
            self.receive().await?;
        }
    }

    /// All messages of a queue that came together; waits for some as long as it takes.
    pub async fn next_batch(&mut self) -> Result<Vec<Received>, Error> {
        let first = self.next().await?;
        let handle = self.chunks.front().map(|chunk| chunk.handle);
        let mut batch = vec![first];
        while self.chunks.front().map(|chunk| chunk.handle) == handle {
            match self.take_one()? {
                Some(received) => batch.push(received),
                None => break,
            }
        }
        Ok(batch)
    }

    /// Commits for the group what was taken so far, durably.
    pub async fn commit(&mut self) -> Result<(), Error> {
        let changed: Vec<(u32, Queue, i64)> = self
            .readings
            .iter()
            .filter(|(_, reading)| reading.committed != Some(reading.consumed))
            .map(|(&handle, reading)| (handle, reading.queue.clone(), reading.consumed))
            .collect();
        if changed.is_empty() {
            return Ok(());
        }
        let offsets: Vec<(Queue, i64)> = changed
            .iter()
            .map(|(_, queue, offset)| (queue.clone(), *offset))
            .collect();
        self.client.commit(&self.group, &offsets).await?;
        for (handle, _, offset) in changed {
            if let Some(reading) = self.readings.get_mut(&handle) {
                reading.committed = Some(offset);
            }
        }
        Ok(())
    }

    /// The messages as a stream. [`RecordStream::commit`] commits.
    pub fn into_stream(self) -> RecordStream {
        RecordStream {
            consumer: Arc::new(Mutex::new(self)),
            next: None,
        }
    }

    /// A message that is here already.
    fn take_one(&mut self) -> Result<Option<Received>, Error> {
        while let Some(chunk) = self.chunks.front_mut() {
            if chunk.records.is_empty() {
                self.chunks.pop_front();
                continue;
            }
            let received = Received::take(&mut chunk.records, self.options.check_crc)
                .map_err(|error| Error::Unexpected(error.to_string()));
            let handle = chunk.handle;
            if received.is_err() || chunk.records.is_empty() {
                self.chunks.pop_front();
            }
            let received = received?;
            if let Some(reading) = self.readings.get_mut(&handle) {
                reading.consumed = received.queue_offset() + 1;
            }
            return Ok(Some(received));
        }
        Ok(None)
    }

    /// Sees to it that all cores are asked, and takes one answer. May be given up at any time.
    async fn receive(&mut self) -> Result<(), Error> {
        if self.readings.is_empty() {
            return Err(Error::NothingAssigned);
        }
        for index in 0..self.lanes.len() {
            let lane = &self.lanes[index];
            let changed = !lane.add.is_empty() || !lane.remove.is_empty();
            if !changed && (lane.queues == 0 || lane.in_flight > 0) {
                continue;
            }
            if lane.connection.is_none() {
                let address = lane.address.clone();
                let opened = self.client.connection(address.as_deref()).await?;
                self.lanes[index].connection = Some(opened);
            }
            self.fetch(index);
        }
        let Some(((index, epoch), answer)) = self.incoming.recv().await else {
            return Ok(());
        };
        if self.lanes[index].epoch != epoch {
            return Ok(());
        }
        let lane = &mut self.lanes[index];
        lane.in_flight = lane.in_flight.saturating_sub(1);
        match answer {
            Ok(frame) => self.take_answer(index, &frame),
            Err(_) => {
                self.lost(index);
                sleep(RECONNECT).await;
                Ok(())
            }
        }
    }

    /// The connection of a lane is gone, and with it the session: all of its queues are named again.
    fn lost(&mut self, index: usize) {
        let lane = &mut self.lanes[index];
        lane.connection = None;
        lane.in_flight = 0;
        lane.epoch += 1;
        lane.remove.clear();
        lane.add = self
            .readings
            .iter()
            .filter(|(_, reading)| reading.lane == index)
            .map(|(&handle, _)| handle)
            .collect();
    }

    /// Asks a core for more, and names what has changed.
    fn fetch(&mut self, index: usize) {
        let lane = &self.lanes[index];
        let Some(connection) = lane.connection.clone() else {
            return;
        };
        let (filter_kind, filter) = match &self.options.sql {
            Some(sql) => (FilterKind::Sql92, &sql[..]),
            None => (FilterKind::Tags, &self.options.tags[..]),
        };
        let add = lane
            .add
            .iter()
            .filter_map(|&handle| {
                let reading = self.readings.get(&handle)?;
                Some(FetchQueue {
                    handle,
                    topic: &reading.queue.topic,
                    queue_id: reading.queue.queue_id,
                    offset: reading.fetched,
                    filter_kind,
                    filter,
                })
            })
            .collect();
        let fetch = Message::Fetch(Fetch {
            session: lane.session,
            group: &self.group,
            add,
            remove: lane.remove.clone(),
            min_bytes: self.options.min_bytes,
            max_bytes: self.options.max_bytes,
            max_wait_ms: u32::try_from(self.options.max_wait.as_millis()).unwrap_or(u32::MAX),
        });
        let place = (index, lane.epoch);
        let asked = connection.ask_for_lane(&fetch, place, &self.answers);
        drop(fetch);
        match asked {
            Ok(()) => {
                let lane = &mut self.lanes[index];
                lane.in_flight += 1;
                lane.add.clear();
                lane.remove.clear();
            }
            // The next turn opens another one.
            Err(_) => self.lost(index),
        }
    }

    fn take_answer(&mut self, index: usize, frame: &Frame) -> Result<(), Error> {
        let message = match read(frame) {
            Ok(message) => message,
            Err(error) => {
                // The broker did not take what was said: it is said again, if the application goes on.
                self.lost(index);
                return Err(error);
            }
        };
        let Message::FetchReply(reply) = message else {
            return Err(unexpected(&message));
        };
        let mut sections = Sections::new(frame.payload.clone());
        let mut failed = None;
        for queue in &reply.queues {
            let records = sections
                .take(queue.bytes)
                .map_err(|error| Error::Link(LinkError::Frame(error)))?;
            let Some(reading) = self.readings.get_mut(&queue.handle) else {
                continue; // of a position that was left
            };
            match queue.code {
                0 => {
                    reading.fetched = queue.next_offset;
                    self.chunks.push_back(Chunk {
                        handle: queue.handle,
                        records,
                    });
                }
                OFFSET_MOVED => {
                    reading.fetched = queue.next_offset;
                    reading.consumed = queue.next_offset;
                }
                code => {
                    failed.get_or_insert_with(|| Error::Queue {
                        topic: reading.queue.topic.clone(),
                        queue_id: reading.queue.queue_id,
                        code,
                        remark: queue.remark.to_owned(),
                    });
                    let queue = reading.queue.clone();
                    self.unassign(&queue);
                }
            }
        }
        // The next answer is made while this one is looked at. One that waits already would be ended by another one.
        let lane = &self.lanes[index];
        if lane.queues > 0 && lane.in_flight == 0 {
            self.fetch(index);
        }
        failed.map_or(Ok(()), Err)
    }
}

type Next = Pin<Box<dyn Future<Output = Result<Received, Error>> + Send>>;

/// The messages of a consumer, one after the other, without an end.
pub struct RecordStream {
    consumer: Arc<Mutex<Consumer>>,
    next: Option<Next>,
}

impl RecordStream {
    /// Commits for the group what the stream has given so far, durably.
    pub async fn commit(&mut self) -> Result<(), Error> {
        // Nothing is lost with it: a message is taken in the turn in which it is given.
        self.next = None;
        self.consumer.lock().await.commit().await
    }
}

impl Stream for RecordStream {
    type Item = Result<Received, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let consumer = self.consumer.clone();
        let next = self.next.get_or_insert_with(|| {
            Box::pin(async move { consumer.lock_owned().await.next().await })
        });
        let received = ready!(next.as_mut().poll(cx));
        self.next = None;
        Poll::Ready(Some(received))
    }
}
