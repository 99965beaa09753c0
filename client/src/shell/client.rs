//! A broker as a client sees it: its connections, its topics.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use ringmq_wire_native::frame::Frame;
use ringmq_wire_native::message::{
    Envelope, Message, Metadata, OffsetCommit, OffsetQuery, QueueOffset, QueueTime,
};

use super::connection::Connection;
use super::consumer::{Consumer, ConsumerOptions};
use super::producer::{Producer, ProducerOptions};
use crate::core::link::Welcome;
use crate::core::routes::{Queue, Routes, Topic};
use crate::error::Error;

/// What is known of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueOffsets {
    /// Where the group goes on, if it has committed an offset.
    pub committed: Option<i64>,
    /// First offset that retention has left.
    pub min_offset: i64,
    /// Offset of the next message.
    pub max_offset: i64,
    /// First offset at or after the time that was asked for.
    pub at_timestamp: Option<i64>,
}

/// How a client connects.
#[derive(Clone, Debug)]
pub struct ClientBuilder {
    client_id: String,
    credentials: Vec<u8>,
    connect_timeout: Duration,
    request_timeout: Duration,
    create_queues: u32,
}

impl Default for ClientBuilder {
    fn default() -> Self {
        Self {
            client_id: format!("{}@{:08x}", std::process::id(), fastrand::u32(..)),
            credentials: Vec::new(),
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(10),
            create_queues: 4,
        }
    }
}

impl ClientBuilder {
    /// Names this client, for the broker's log.
    pub fn client_id(mut self, id: impl Into<String>) -> Self {
        self.client_id = id.into();
        self
    }

    /// What the broker is told about who this is. Brokers without access control do not look at it.
    pub fn credentials(mut self, credentials: impl Into<Vec<u8>>) -> Self {
        self.credentials = credentials.into();
        self
    }

    /// How long a connection and its hello may take.
    pub fn connect_timeout(mut self, limit: Duration) -> Self {
        self.connect_timeout = limit;
        self
    }

    /// How long an answer may take.
    pub fn request_timeout(mut self, limit: Duration) -> Self {
        self.request_timeout = limit;
        self
    }

    /// How many queues a topic gets that is made by its first message; 0: it is not made.
    pub fn create_queues(mut self, queues: u32) -> Self {
        self.create_queues = queues;
        self
    }

    /// Connects to a broker, `host:port`.
    pub async fn connect(self, address: impl Into<String>) -> Result<Client, Error> {
        let client = Client {
            inner: Arc::new(Inner {
                address: address.into(),
                options: self,
                connections: tokio::sync::Mutex::default(),
                routes: Mutex::default(),
            }),
        };
        client.connection(None).await?;
        Ok(client)
    }
}

struct Inner {
    address: String,
    options: ClientBuilder,
    connections: tokio::sync::Mutex<HashMap<String, Arc<Connection>>>,
    routes: Mutex<Routes>,
}

/// A broker. Cheap to clone: all clones use the same connections, one for each core of the broker if each has its own port
/// (`nativePort`), else one.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

impl Client {
    /// Connects to a broker, `host:port`, with the defaults of [`ClientBuilder`].
    pub async fn connect(address: impl Into<String>) -> Result<Self, Error> {
        ClientBuilder::default().connect(address).await
    }

    /// Sets how to connect.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    /// A producer with default options.
    pub fn producer(&self) -> Producer {
        self.producer_with(ProducerOptions::default())
    }

    /// A producer.
    pub fn producer_with(&self, options: ProducerOptions) -> Producer {
        Producer::new(self.clone(), options)
    }

    /// A consumer of a group with default options. It has no queues yet.
    pub fn consumer(&self, group: impl Into<String>) -> Consumer {
        self.consumer_with(group, ConsumerOptions::default())
    }

    /// A consumer of a group. It has no queues yet.
    pub fn consumer_with(&self, group: impl Into<String>, options: ConsumerOptions) -> Consumer {
        Consumer::new(self.clone(), group.into(), options)
    }

    /// What the broker said of itself.
    pub async fn welcome(&self) -> Result<Welcome, Error> {
        Ok(self.connection(None).await?.welcome().clone())
    }

    /// Measures the way to the broker and back.
    pub async fn ping(&self) -> Result<Duration, Error> {
        let connection = self.connection(None).await?;
        let begun = std::time::Instant::now();
        let frame = connection
            .ask(&Message::Ping, Vec::new(), self.request_timeout())
            .await?;
        match read(&frame)? {
            Message::Pong { .. } => Ok(begun.elapsed()),
            other => Err(unexpected(&other)),
        }
    }

    /// The queues of a topic that consumers read.
    pub async fn queues(&self, topic: &str) -> Result<Vec<Queue>, Error> {
        let known = self.refresh(topic, 0).await?;
        Ok((0..known.read_queues)
            .map(|queue_id| Queue::new(topic, queue_id))
            .collect())
    }

    /// Makes a topic with so many queues, unless it exists: what the first message would do (`autoCreateTopicEnable`).
    pub async fn create_topic(&self, topic: &str, queues: u32) -> Result<(), Error> {
        self.refresh(topic, queues).await.map(drop)
    }

    /// What is known of queues: bounds, what a group has committed, and where a time is.
    pub async fn offsets(
        &self,
        group: Option<&str>,
        queues: &[Queue],
        timestamp_ms: Option<i64>,
    ) -> Result<Vec<QueueOffsets>, Error> {
        let query = OffsetQuery {
            group: group.unwrap_or_default(),
            queues: queues
                .iter()
                .map(|queue| QueueTime {
                    topic: &queue.topic,
                    queue_id: queue.queue_id,
                    timestamp_ms: timestamp_ms.unwrap_or(-1),
                })
                .collect(),
        };
        let frame = self
            .ask(None, &Message::OffsetQuery(query), Vec::new())
            .await?;
        let found = match read(&frame)? {
            Message::OffsetQueryReply(found) if found.len() == queues.len() => found,
            other => return Err(unexpected(&other)),
        };
        let there = |offset: i64| (offset >= 0).then_some(offset);
        queues
            .iter()
            .zip(found)
            .map(|(queue, found)| match found.code {
                0 => Ok(QueueOffsets {
                    committed: there(found.committed),
                    min_offset: found.min_offset,
                    max_offset: found.max_offset,
                    at_timestamp: there(found.at_timestamp),
                }),
                code => Err(Error::Queue {
                    topic: queue.topic.clone(),
                    queue_id: queue.queue_id,
                    code,
                    remark: found.remark.to_owned(),
                }),
            })
            .collect()
    }

    /// A consumer that shares the queues of these topics with the other members of its group: [`Consumer::subscribe`].
    pub fn subscribe(&self, group: impl Into<String>, topics: &[&str]) -> Consumer {
        let mut consumer = self.consumer(group);
        consumer.subscribe(topics);
        consumer
    }

    /// Commits where a group goes on, durably. This is for queues that were assigned by hand, and for tools: it asks no member
    /// of the group.
    pub async fn commit(&self, group: &str, offsets: &[(Queue, i64)]) -> Result<(), Error> {
        let refused = self.commit_as(group, offsets, ("", 0)).await?;
        refused.into_iter().next().map_or(Ok(()), Err)
    }

    /// The same for a member of the group in its generation; the queues that are refused.
    pub(super) async fn commit_as(
        &self,
        group: &str,
        offsets: &[(Queue, i64)],
        (member_id, generation): (&str, i64),
    ) -> Result<Vec<Error>, Error> {
        let commit = OffsetCommit {
            group,
            queues: offsets
                .iter()
                .map(|(queue, offset)| QueueOffset {
                    topic: &queue.topic,
                    queue_id: queue.queue_id,
                    offset: *offset,
                })
                .collect(),
            member_id,
            generation,
        };
        let frame = self
            .ask(None, &Message::OffsetCommit(commit), Vec::new())
            .await?;
        match read(&frame)? {
            Message::OffsetCommitReply(results) => Ok(offsets
                .iter()
                .zip(results)
                .filter(|(_, result)| result.code != 0)
                .map(|((queue, _), result)| Error::Queue {
                    topic: queue.topic.clone(),
                    queue_id: queue.queue_id,
                    code: result.code,
                    remark: result.remark.to_owned(),
                })
                .collect()),
            other => Err(unexpected(&other)),
        }
    }

    pub(super) fn client_id(&self) -> &str {
        &self.inner.options.client_id
    }

    pub(super) fn request_timeout(&self) -> Duration {
        self.inner.options.request_timeout
    }

    fn routes(&self) -> MutexGuard<'_, Routes> {
        self.inner
            .routes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A topic, asked for if it is not known; the broker makes it if it does not exist.
    pub(super) async fn topic(&self, name: &str) -> Result<Topic, Error> {
        if let Some(known) = self.routes().topic(name) {
            return Ok(known.clone());
        }
        self.refresh(name, self.inner.options.create_queues).await
    }

    pub(super) fn known_queues(&self, name: &str) -> Option<u32> {
        self.routes().topic(name).map(|topic| topic.write_queues)
    }

    pub(super) fn forget_topic(&self, name: &str) {
        self.routes().forget(name);
    }

    async fn refresh(&self, name: &str, create_queues: u32) -> Result<Topic, Error> {
        let metadata = Message::Metadata(Metadata {
            topics: vec![name],
            create_queues,
        });
        let frame = self.ask(None, &metadata, Vec::new()).await?;
        let message = read(&frame)?;
        let Message::MetadataReply(reply) = message else {
            return Err(unexpected(&message));
        };
        let mut routes = self.routes();
        routes.learn(&reply)?;
        routes
            .topic(name)
            .cloned()
            .ok_or_else(|| Error::Unexpected(format!("nothing about the topic '{name}'")))
    }

    /// Where the owner of a queue listens; none: any connection will do.
    pub(super) fn address_of(&self, queue: &Queue) -> Option<String> {
        self.routes()
            .address_of(&queue.topic, queue.queue_id)
            .map(str::to_owned)
    }

    /// An open connection to an address, or to the broker's first one.
    pub(super) async fn connection(&self, address: Option<&str>) -> Result<Arc<Connection>, Error> {
        let address = address.unwrap_or(&self.inner.address);
        let mut connections = self.inner.connections.lock().await;
        if let Some(open) = connections.get(address).filter(|known| known.is_open()) {
            return Ok(open.clone());
        }
        let options = &self.inner.options;
        let opened = Connection::open(
            address,
            &options.client_id,
            &options.credentials,
            options.connect_timeout,
        )
        .await?;
        let opened = Arc::new(opened);
        connections.insert(address.to_owned(), opened.clone());
        Ok(opened)
    }

    /// Asks and waits for the answer; an error of the broker is one.
    pub(super) async fn ask(
        &self,
        address: Option<&str>,
        message: &Message<'_>,
        payload: Vec<Bytes>,
    ) -> Result<Frame, Error> {
        let connection = self.connection(address).await?;
        connection
            .ask(message, payload, self.request_timeout())
            .await
    }
}

/// What a frame says; an error of the broker is one.
pub(super) fn read(frame: &Frame) -> Result<Message<'_>, Error> {
    let envelope = Envelope::read(&frame.header)
        .map_err(|error| Error::Link(crate::core::link::LinkError::Frame(error)))?;
    match envelope.message {
        Message::Error { code, remark } => Err(Error::Refused {
            code,
            remark: remark.to_owned(),
        }),
        message => Ok(message),
    }
}

pub(super) fn unexpected(message: &Message<'_>) -> Error {
    let mut text = format!("{message:?}");
    text.truncate(text.floor_char_boundary(200));
    Error::Unexpected(text)
}
