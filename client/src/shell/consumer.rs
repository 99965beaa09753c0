//! A consumer: queues that were assigned to it, by hand or by the broker, read over one fetch session for each core of the
//! broker.
//!
//! While the application looks at what one fetch brought, the next one is on its way. A connection that is lost is opened
//! again, and its queues go on where the last record came from.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_core::Stream;
use ringmq_wire_native::code::STALE_MEMBER;
use ringmq_wire_native::frame::{Frame, Sections};
use ringmq_wire_native::message::{Fetch, FetchQueue, FilterKind, Message};
use tokio::sync::{Mutex, mpsc};

use super::client::{Client, read, unexpected};
use super::connection::{Answers, Connection, Place};
use super::group::Member;
use super::rt;
use crate::core::group::Membership;
use crate::core::link::LinkError;
use crate::core::message::Received;
use crate::core::routes::Queue;
use crate::error::Error;

/// Wait before a lost connection is opened again.
const RECONNECT: Duration = Duration::from_millis(200);
/// Wait before a queue of ours is read again that the broker refused to read.
const REFUSED_QUEUE: Duration = Duration::from_secs(1);
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
    /// For members of a group: what was taken is committed so often, and when a queue goes to somebody else. A message counts as
    /// done when the next one is asked for. None: only [`Consumer::commit`] commits.
    pub auto_commit: Option<Duration>,
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
            auto_commit: Some(Duration::from_secs(5)),
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

/// What changed in the queues of a member of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rebalance {
    /// These are read from now on.
    Assigned(Vec<Queue>),
    /// These go to somebody else. What was taken of them is committed already (`auto_commit`), and the next owner gets them when
    /// this has been said.
    Revoked(Vec<Queue>),
    /// These are not ours any more, and somebody else may have them already: the broker was not reached in time. What was
    /// not committed is read again, by whoever has them.
    Lost(Vec<Queue>),
}

type OnRebalance = Box<dyn FnMut(&Rebalance) + Send>;

/// What a consumer has that is a member of its group.
struct Subscribed {
    member: Arc<Member>,
    commits: Option<Instant>,
    /// Queues of ours that the broker refused to read.
    refused: Vec<(Queue, Instant)>,
}

impl Drop for Subscribed {
    fn drop(&mut self) {
        self.member.leave();
    }
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
    subscribed: Option<Subscribed>,
    on_rebalance: Option<OnRebalance>,
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
            subscribed: None,
            on_rebalance: None,
            answers,
            incoming,
        }
    }

    /// The consumer group.
    pub fn group(&self) -> &str {
        &self.group
    }

    /// Becomes a member of the group: the broker shares the queues of these topics out among all members, and moves them when
    /// members come and go. Each begins where the group has committed. Queues that were assigned by hand are read no longer.
    ///
    /// Heartbeats are sent by a task of the runtime. A queue that is to move is given up within [`Consumer::next`] only, after
    /// what was taken of it is committed: whoever works on a message keeps its queue, and whoever never asks for the next one
    /// keeps his queues for ever.
    ///
    /// The membership ends when the consumer is dropped or [closed](Consumer::close), or if the broker has not heard of it for
    /// its session timeout.
    pub fn subscribe(&mut self, topics: &[&str]) {
        let topics: Vec<String> = topics.iter().map(|&topic| topic.to_owned()).collect();
        if let Some(subscribed) = &self.subscribed {
            return subscribed
                .member
                .with(|membership, now_ns| membership.subscribe(topics, now_ns));
        }
        let queues: Vec<Queue> = self.by_queue.keys().cloned().collect();
        for queue in queues {
            self.unassign(&queue);
        }
        let id = format!("{}-{:032x}", self.client.client_id(), fastrand::u128(..));
        let membership = Membership::new(self.group.clone(), id, topics);
        self.subscribed = Some(Subscribed {
            member: Member::begin(self.client.clone(), membership),
            commits: self
                .options
                .auto_commit
                .map(|period| Instant::now() + period),
            refused: Vec::new(),
        });
    }

    /// Is called from within [`Consumer::next`] whenever the queues of this member change.
    pub fn on_rebalance(&mut self, listener: impl FnMut(&Rebalance) + Send + 'static) {
        self.on_rebalance = Some(Box::new(listener));
    }

    /// Commits what was taken, unless `auto_commit` is off, and leaves the group: others get the queues at once.
    pub async fn close(mut self) -> Result<(), Error> {
        let committed = match self.options.auto_commit {
            Some(_) if self.subscribed.is_some() => self.commit().await,
            _ => Ok(()),
        };
        if let Some(subscribed) = self.subscribed.take() {
            let member = subscribed.member.clone();
            drop(subscribed);
            let limit = self.client.request_timeout();
            let _ = rt::timeout(limit, member.left()).await;
        }
        committed
    }

    /// Reads all queues of a topic.
    pub async fn assign_topic(&mut self, topic: &str, start: StartAt) -> Result<(), Error> {
        let queues = self.client.queues(topic).await?;
        self.assign(&queues, start).await
    }

    /// Reads these queues, beside those that it reads already.
    pub async fn assign(&mut self, queues: &[Queue], start: StartAt) -> Result<(), Error> {
        let starts = starts(&self.client, &self.group, queues, start).await?;
        for (queue, offset, _) in starts {
            self.read_from(&queue, offset);
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
            if self.subscribed.is_some() {
                self.keep_up().await?;
            }
            if let Some(received) = self.take_one()? {
                return Ok(received);
            }
            self.receive().await?;
        }
    }

    /// Does what a member has to do before the next message. May be given up at any time, and then does the rest later.
    async fn keep_up(&mut self) -> Result<(), Error> {
        let Some(subscribed) = &mut self.subscribed else {
            return Ok(());
        };
        let now = Instant::now();
        if let (Some(commits), Some(period)) = (subscribed.commits, self.options.auto_commit)
            && commits <= now
        {
            subscribed.commits = Some(now + period);
            self.commit_ours(None).await?;
        }
        let Some(subscribed) = &mut self.subscribed else {
            return Ok(());
        };
        let due = subscribed.refused.iter().position(|(_, at)| *at <= now);
        if let Some(due) = due {
            let (queue, _) = subscribed.refused.swap_remove(due);
            let member = subscribed.member.clone();
            if member.with(|membership, now_ns| membership.owns(&queue, now_ns)) {
                self.assign(&[queue], StartAt::Committed).await?;
            }
        }
        let Some(subscribed) = &self.subscribed else {
            return Ok(());
        };
        let member = subscribed.member.clone();
        if let Some(error) = member.take_refusal() {
            return Err(error);
        }
        if !member.has_news() {
            return Ok(());
        }
        let (lost, unwanted) = member.with(|membership, now_ns| {
            membership.tick(now_ns);
            (membership.take_lost(), membership.unwanted())
        });
        if !lost.is_empty() {
            self.stop_reading(&lost);
            self.say(Rebalance::Lost(lost));
        }
        if !unwanted.is_empty() {
            if self.options.auto_commit.is_some() {
                self.commit_ours(Some(&unwanted)).await?;
            }
            self.stop_reading(&unwanted);
            self.say(Rebalance::Revoked(unwanted.clone()));
            member.with(|membership, now_ns| membership.released(&unwanted, now_ns));
        }
        let (generation, new) = member.with(|membership, _| membership.new_queues());
        if !new.is_empty() {
            // The topic may have grown since it was asked for, and is not to be made again if it is gone.
            let topics: BTreeSet<&str> = new.iter().map(|queue| &queue.topic[..]).collect();
            for topic in topics {
                self.client.queues(topic).await?;
            }
            let starts = starts(&self.client, &self.group, &new, StartAt::Committed);
            let starts = match starts.await {
                Ok(starts) => starts,
                Err(error) => {
                    rt::sleep(RECONNECT).await;
                    return Err(error);
                }
            };
            let not_ours = member.with(|membership, _| membership.taken(generation, &new));
            let mut ours = Vec::new();
            for (queue, offset, committed) in starts {
                if !not_ours.contains(&queue) {
                    self.read_from(&queue, offset);
                    if let Some(reading) = self.reading_mut(&queue) {
                        reading.committed = committed;
                    }
                    ours.push(queue);
                }
            }
            if !ours.is_empty() {
                self.say(Rebalance::Assigned(ours));
            }
        }
        Ok(())
    }

    fn say(&mut self, change: Rebalance) {
        if let Some(listener) = &mut self.on_rebalance {
            listener(&change);
        }
    }

    fn stop_reading(&mut self, queues: &[Queue]) {
        for queue in queues {
            self.unassign(queue);
        }
        if let Some(subscribed) = &mut self.subscribed {
            subscribed
                .refused
                .retain(|(queue, _)| !queues.contains(queue));
        }
    }

    fn reading_mut(&mut self, queue: &Queue) -> Option<&mut Reading> {
        let handle = self.by_queue.get(queue)?;
        self.readings.get_mut(handle)
    }

    /// Commits what was taken of these queues, or of all, as a member does. Queues that are not ours any more are left out:
    /// their next owner reads on from the last commit.
    async fn commit_ours(&mut self, only: Option<&[Queue]>) -> Result<(), Error> {
        for error in self.commit_changed(only).await? {
            match error {
                Error::Queue { code, .. } if code == STALE_MEMBER => {
                    if let Some(subscribed) = &self.subscribed {
                        subscribed
                            .member
                            .with(|membership, now_ns| membership.doubted(now_ns));
                    }
                }
                error => return Err(error),
            }
        }
        Ok(())
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
        let refused = self.commit_changed(None).await?;
        refused.into_iter().next().map_or(Ok(()), Err)
    }

    /// The queues that are refused.
    async fn commit_changed(&mut self, only: Option<&[Queue]>) -> Result<Vec<Error>, Error> {
        let changed: Vec<(u32, Queue, i64)> = self
            .readings
            .iter()
            .filter(|(_, reading)| reading.committed != Some(reading.consumed))
            .filter(|(_, reading)| only.is_none_or(|only| only.contains(&reading.queue)))
            .map(|(&handle, reading)| (handle, reading.queue.clone(), reading.consumed))
            .collect();
        if changed.is_empty() {
            return Ok(Vec::new());
        }
        let offsets: Vec<(Queue, i64)> = changed
            .iter()
            .map(|(_, queue, offset)| (queue.clone(), *offset))
            .collect();
        let (member_id, generation) = match &self.subscribed {
            Some(subscribed) => subscribed
                .member
                .with(|membership, _| (membership.member_id().to_owned(), membership.generation())),
            None => (String::new(), 0),
        };
        let refused = self
            .client
            .commit_as(&self.group, &offsets, (&member_id, generation))
            .await?;
        for (handle, queue, offset) in changed {
            let is_refused = refused.iter().any(|error| {
                matches!(error, Error::Queue { topic, queue_id, .. }
                    if *topic == queue.topic && *queue_id == queue.queue_id)
            });
            if let Some(reading) = self.readings.get_mut(&handle)
                && !is_refused
            {
                reading.committed = Some(offset);
            }
        }
        Ok(refused)
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
        if self.readings.is_empty() && self.subscribed.is_none() {
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
                match self.client.connection(address.as_deref()).await {
                    Ok(opened) => self.lanes[index].connection = Some(opened),
                    Err(error) => {
                        if self.subscribed.is_some() {
                            rt::sleep(RECONNECT).await;
                        }
                        return Err(error);
                    }
                }
            }
            self.fetch(index);
        }
        let answer = match &self.subscribed {
            None => self.incoming.recv().await,
            Some(subscribed) => {
                let retry = subscribed.refused.iter().map(|(_, at)| *at).min();
                let wakes = subscribed.commits.into_iter().chain(retry).min();
                let member = subscribed.member.clone();
                tokio::select! {
                    answer = self.incoming.recv() => answer,
                    () = member.rings.notified() => return Ok(()),
                    () = wait_until(wakes) => return Ok(()),
                    () = rt::sleep(member.lease_left()), if !self.readings.is_empty() => return Ok(()),
                }
            }
        };
        let Some(((index, epoch), answer)) = answer else {
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
                rt::sleep(RECONNECT).await;
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
                    if let Some(subscribed) = &mut self.subscribed {
                        let again = Instant::now() + REFUSED_QUEUE;
                        subscribed.refused.push((queue, again));
                    }
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

/// Where queues begin, and what the group has committed there.
async fn starts(
    client: &Client,
    group: &str,
    queues: &[Queue],
    start: StartAt,
) -> Result<Vec<(Queue, i64, Option<i64>)>, Error> {
    for queue in queues {
        client.topic(&queue.topic).await?;
    }
    let offsets: Vec<(i64, Option<i64>)> = match start {
        StartAt::Offset(offset) => vec![(offset, None); queues.len()],
        _ => {
            let timestamp_ms = match start {
                StartAt::Timestamp(timestamp_ms) => Some(timestamp_ms),
                _ => None,
            };
            let group = (start == StartAt::Committed).then_some(group);
            let known = client.offsets(group, queues, timestamp_ms).await?;
            known
                .into_iter()
                .map(|known| {
                    let offset = match start {
                        StartAt::Committed => known.committed.unwrap_or(known.min_offset),
                        StartAt::Latest => known.max_offset,
                        StartAt::Timestamp(_) => known.at_timestamp.unwrap_or(known.max_offset),
                        _ => known.min_offset,
                    };
                    (offset, known.committed)
                })
                .collect()
        }
    };
    let starts = queues.iter().zip(offsets);
    Ok(starts
        .map(|(queue, (offset, committed))| (queue.clone(), offset, committed))
        .collect())
}

async fn wait_until(time: Option<Instant>) {
    match time {
        Some(time) => rt::sleep(time.saturating_duration_since(Instant::now())).await,
        None => std::future::pending().await,
    }
}

type Next = rt::BoxFuture<Result<Received, Error>>;

/// The messages of a consumer, one after the other, without an end.
pub struct RecordStream {
    consumer: Arc<Mutex<Consumer>>,
    next: Option<Next>,
}

impl RecordStream {
    /// See [`Consumer::close`].
    pub async fn close(self) -> Result<(), Error> {
        drop(self.next);
        match Arc::try_unwrap(self.consumer) {
            Ok(consumer) => consumer.into_inner().close().await,
            Err(_) => Ok(()), // The one future that had it as well is gone.
        }
    }

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
