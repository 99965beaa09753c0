//! What the frames of the native protocol mean. They call the shards through the same handle as remoting requests do, and
//! are bound by the same permissions, limits and refusals.
//!
//! `produce.rs` stores records, `fetch.rs` reads them (`session.rs` is its pure part), `offsets.rs` has the offsets of
//! queues and groups, `groups.rs` the members of groups (`membership.rs` and `assignor.rs` are its pure parts). Here are the
//! entrance, hello, metadata and ping. Layout and meaning of frames: `wire-native/`.

mod assignor;
mod fetch;
mod groups;
mod membership;
mod offsets;
mod produce;
pub mod session;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use ahash::AHashMap;

use crate::base::id::ConnectionId;
use crate::base::limits::{GROUP_CHARS_MAX, NATIVE_TOPICS_MAX};
use crate::broker::dispatch::{Broker, code_of};
use crate::broker::error::BrokerError;
use crate::broker::send_plan::{Plan, SendHeader, plan};
use crate::server::connection::NativeResponder;
use crate::shard::meta::Topic;
use crate::wire::native::frame::{FRAME_BYTES_MAX, Frame};
use crate::wire::native::message::{
    Encoder, Envelope, Hello, HelloReply, Message, Metadata, MetadataReply, QueueMetadata,
    ShardAddress, TopicMetadata,
};
use crate::wire::native::shape::ProduceShapes;
use crate::wire::native::{VERSION, feature};
use crate::wire::remoting::code::response;
use fetch::FetchSession;
use groups::Groups;

/// What the replies call this software.
const SOFTWARE: &str = concat!("ringmq/", env!("CARGO_PKG_VERSION"));

/// What a core keeps for its native connections.
pub(super) struct Native {
    encoder: RefCell<Encoder>,
    clients: RefCell<AHashMap<ConnectionId, Rc<NativeClient>>>,
    /// Groups whose home is this core.
    groups: RefCell<Groups>,
}

impl Native {
    /// At this time of the monotonic clock the broker started: who was there before had a session until then at most.
    pub fn new(started_ms: u64) -> Self {
        Self {
            encoder: RefCell::default(),
            clients: RefCell::default(),
            groups: RefCell::new(Groups::new(started_ms)),
        }
    }
}

/// A connection that has said hello.
pub(super) struct NativeClient {
    /// As it named itself.
    client_id: Arc<str>,
    /// Fetch sessions by the client's numbers.
    sessions: RefCell<AHashMap<u32, Rc<FetchSession>>>,
    /// What its produce headers look like.
    shapes: RefCell<ProduceShapes>,
}

/// A topic by its name, or why it is not there.
type FoundTopic = (Arc<str>, Result<Arc<Topic>, BrokerError>);

/// What is wrong with a part of a request: a response code and a remark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub code: i32,
    pub remark: String,
}

impl Broker {
    /// Entrance of all native frames.
    pub(super) fn native(&self, frame: Frame, responder: NativeResponder) {
        let id = responder.connection.id();
        let client = self.native.clients.borrow().get(&id).cloned();
        let known = client
            .as_ref()
            .and_then(|client| client.shapes.borrow_mut().read(&frame.header));
        if let Some((id, produce)) = known {
            return self.native_produce(id, &frame, &produce, responder, produce::Round::First);
        }
        let envelope = match Envelope::read(&frame.header) {
            Ok(envelope) => envelope,
            Err(error) => {
                tracing::debug!(peer = %responder.connection.peer(), %error, "a broken header; closing");
                self.statistics.borrow_mut().refused("bad_request");
                return responder.refuse(&error.to_string());
            }
        };
        let Some(client) = client else {
            return match envelope.message {
                Message::Hello(hello) => self.native_hello(envelope.id, &hello, responder),
                _ => responder.refuse("the first frame of a connection has to be a Hello"),
            };
        };
        let id = envelope.id;
        match envelope.message {
            Message::Produce(produce) => {
                client.shapes.borrow_mut().learn(&frame.header, &produce);
                self.native_produce(id, &frame, &produce, responder, produce::Round::First);
            }
            Message::Fetch(fetch) => self.native_fetch(id, &client, &fetch, responder),
            Message::Ping => {
                let now_ms = self.shard.now_ms() as i64;
                self.native_answer(responder, id, &Message::Pong { now_ms });
            }
            Message::Metadata(metadata) => self.native_metadata(id, &metadata, responder),
            Message::OffsetCommit(commit) => self.native_commit(id, &commit, responder),
            Message::OffsetQuery(query) => self.native_offsets(id, &query, responder),
            Message::GroupJoin(join) => self.native_join(id, &client, &join, responder),
            Message::GroupHeartbeat(heartbeat) => self.native_heartbeat(id, &heartbeat, responder),
            Message::GroupLeave(leave) => self.native_leave(id, &leave, responder),
            Message::Hello(_) => {
                let error = BrokerError::InvalidParameter(
                    "this connection has said hello already".to_owned(),
                );
                self.native_error(responder, id, &error);
            }
            Message::Unknown(_)
            | Message::HelloReply(_)
            | Message::Pong { .. }
            | Message::Error { .. }
            | Message::MetadataReply(_)
            | Message::ProduceReply(_)
            | Message::FetchReply(_)
            | Message::OffsetCommitReply(_)
            | Message::OffsetQueryReply(_)
            | Message::Assignment(_) => {
                self.statistics.borrow_mut().refused("not_supported");
                let remark = "this broker does not know the request; its version of the protocol is in the answer to Hello";
                let error = Message::Error {
                    code: response::REQUEST_CODE_NOT_SUPPORTED,
                    remark,
                };
                self.native_answer(responder, id, &error);
            }
        }
    }

    /// A connection of this core is gone.
    pub(super) fn native_closed(&self, id: ConnectionId) {
        let client = self.native.clients.borrow_mut().remove(&id);
        if let Some(client) = client {
            for session in client.sessions.take().into_values() {
                session.end();
            }
        }
    }

    fn native_answer(&self, responder: NativeResponder, id: u64, message: &Message<'_>) {
        let mut encoder = self.native.encoder.borrow_mut();
        responder.send(encoder.encode(id, message, 0), []);
    }

    fn native_error(&self, responder: NativeResponder, id: u64, error: &BrokerError) {
        let Fault { code, remark } = self.fault(error);
        let message = Message::Error {
            code,
            remark: &remark,
        };
        self.native_answer(responder, id, &message);
    }

    /// Code and remark of an error, counted.
    fn fault(&self, error: &BrokerError) -> Fault {
        self.statistics.borrow_mut().refused(error.reason());
        Fault {
            code: code_of(error),
            remark: error.to_string(),
        }
    }

    fn native_hello(&self, id: u64, hello: &Hello<'_>, responder: NativeResponder) {
        if hello.version == 0 {
            return responder.refuse("the version in Hello is 0; the first one is 1");
        }
        if hello.client_id.len() > GROUP_CHARS_MAX {
            return responder.refuse("the client id in Hello is longer than 255 bytes");
        }
        let connection = &responder.connection;
        tracing::debug!(peer = %connection.peer(), client = hello.client_id, software = hello.software,
            version = hello.version, "a native client");
        let client = Rc::new(NativeClient {
            client_id: Arc::from(hello.client_id),
            sessions: RefCell::default(),
            shapes: RefCell::default(),
        });
        self.native
            .clients
            .borrow_mut()
            .insert(connection.id(), client);
        let options = &self.options;
        let born_host = canonical(connection.peer()).to_string();
        let store_host = canonical(options.store_host).to_string();
        let reply = HelloReply {
            version: hello.version.min(VERSION),
            features: hello.features & feature::ALL,
            cluster: &options.cluster,
            broker: &options.broker,
            shard: self.shard.index() as u16,
            shards: self.shard.count() as u16,
            frame_bytes_max: FRAME_BYTES_MAX as u32,
            body_bytes_max: options.message_bytes_max as u32,
            born_host: &born_host,
            store_host: &store_host,
            now_ms: self.shard.now_ms() as i64,
            software: SOFTWARE,
        };
        self.native_answer(responder, id, &Message::HelloReply(reply));
    }

    fn native_metadata(&self, id: u64, metadata: &Metadata<'_>, responder: NativeResponder) {
        if metadata.topics.len() > NATIVE_TOPICS_MAX {
            let error = BrokerError::InvalidParameter(format!(
                "{} topics are asked for at once, the limit is {NATIVE_TOPICS_MAX}",
                metadata.topics.len()
            ));
            return self.native_error(responder, id, &error);
        }
        let names: Vec<Arc<str>> = metadata.topics.iter().map(|&name| name.into()).collect();
        let all_known = names.iter().all(|name| self.known_topic(name).is_some());
        if all_known || metadata.create_queues == 0 {
            let found = names
                .iter()
                .map(|name| (name.clone(), self.topic(name)))
                .collect();
            return self.answer_metadata(id, found, responder);
        }
        let (broker, queues) = (self.clone(), metadata.create_queues);
        self.shard.spawn(async move {
            let mut found = Vec::with_capacity(names.len());
            for name in names {
                let topic = broker.topic_or_send_would_create(&name, queues).await;
                found.push((name, topic));
            }
            broker.answer_metadata(id, found, responder);
        });
    }

    /// A topic; one that is missing is made as by a send that wants so many queues.
    async fn topic_or_send_would_create(
        &self,
        name: &str,
        queues: u32,
    ) -> Result<Arc<Topic>, BrokerError> {
        let header = send_header(name, 0, queues);
        let planned = plan(&header, &self.shard.meta(), &self.options, 0);
        match planned {
            Ok(Plan::Create(config)) => self.topic_or_create(config).await,
            Ok(Plan::Append { topic, .. } | Plan::Retry { topic, .. }) => Ok(topic),
            // It may be there and only not be written to.
            Err(error) => self.known_topic(name).ok_or(error),
        }
    }

    fn answer_metadata(&self, id: u64, found: Vec<FoundTopic>, responder: NativeResponder) {
        let found: Vec<_> = found
            .into_iter()
            .map(|(name, topic)| (name, topic.map_err(|error| self.fault(&error))))
            .collect();
        let topics = found
            .iter()
            .map(|(name, topic)| match topic {
                Ok(topic) => TopicMetadata {
                    topic: name,
                    code: response::SUCCESS,
                    remark: "",
                    write_queues: topic.config.write_queue_nums,
                    read_queues: topic.config.read_queue_nums,
                    permission: topic.config.perm as u8,
                    queues: self.queue_metadata(topic),
                },
                Err(fault) => TopicMetadata {
                    topic: name,
                    code: fault.code,
                    remark: &fault.remark,
                    ..TopicMetadata::default()
                },
            })
            .collect();
        let (host, ports) = (&self.options.native_host, &self.options.native_ports);
        let shards = (0..self.shard.count())
            .map(|shard| ShardAddress {
                shard: shard as u16,
                host,
                port: ports
                    .get(shard)
                    .copied()
                    .unwrap_or(self.options.store_host.port()),
            })
            .collect();
        let reply = MetadataReply {
            topics,
            shards,
            direct: !ports.is_empty(),
        };
        self.native_answer(responder, id, &Message::MetadataReply(reply));
    }

    fn queue_metadata(&self, topic: &Topic) -> Vec<QueueMetadata> {
        let config = &topic.config;
        let queues = config.read_queue_nums.max(config.write_queue_nums);
        (0..queues)
            .filter_map(|queue_id| {
                let shard = self.shard.shard_of_queue(topic, queue_id)? as u16;
                Some(QueueMetadata { queue_id, shard })
            })
            .collect()
    }
}

/// An IPv4 address that came in through an IPv6 socket is one.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// A send as `send_plan` judges it: a batch to a queue, whose topic may be made with so many queues.
fn send_header(topic: &str, queue_id: i32, create_queues: u32) -> SendHeader<'_> {
    SendHeader {
        topic: topic.into(),
        default_topic: crate::base::names::AUTO_CREATE_TOPIC.into(),
        default_topic_queues: i32::try_from(create_queues).unwrap_or(i32::MAX),
        queue_id,
        sys_flag: 0,
        born_timestamp: 0,
        flag: 0,
        properties: std::borrow::Cow::default(),
        reconsume_times: 0,
        unit_mode: false,
        max_reconsume_times: None,
        batch: true,
    }
}
