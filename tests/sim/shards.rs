//! The real shards with their logs and the mesh between them, as the broker sees them: through `ShardHandle`.
//!
//! All cores of the process run in the one world. A client's request enters at any core, so that most cross the mesh.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use ringmq::io::env::Env;
use ringmq::io::sim::SimEnv;
use ringmq::shard::message::{
    LocalReply, MeshMessage, MessageFilter, NewMessage, Pull, QueueKey, Refusal, ShardReply,
    ShardRequest,
};
use ringmq::shard::meta::{MetaCommand, Topic as ShardTopic};
use ringmq::shard::replication::MasterRules;
use ringmq::shard::{Mesh, Role, Shard, ShardHandle, ShardOptions};
use ringmq::store::LogOptions;
use ringmq::store::manifest::Manifest;
use ringmq::store::retention::{RetentionRules, clean};
use ringmq::store::scrub::ScrubOptions;
use ringmq::wire::record::RecordView;
use ringmq::wire::remoting::body::TopicConfig;

use crate::ledger::breach;
use crate::store::{key, plant, refused};
use crate::sut::{
    Broker, Message, PullGift, PullWish, Queue, Refused, Settings, Stored, SystemUnderTest, Topic,
};

const DIRECTORY: &str = "/data/ringmq-data";
/// How often retention looks.
const RETENTION_PERIOD: Duration = Duration::from_millis(100);
/// Longest time of a message between two cores.
const MESH_DELAY_US_MAX: u64 = 30;

/// Messages from one core to another, in order, each after a while.
#[derive(Default)]
struct Road {
    waiting: RefCell<VecDeque<MeshMessage>>,
    moving: Cell<bool>,
}

/// The sending ends of one core.
struct SimMesh {
    env: SimEnv,
    from: usize,
    roads: Vec<Rc<Road>>,
    shards: Vec<Weak<Shard<SimEnv>>>,
}

impl Mesh for SimMesh {
    fn send(&self, to: usize, message: MeshMessage) -> Result<(), (MeshMessage, Refusal)> {
        let road = self.roads[to].clone();
        road.waiting.borrow_mut().push_back(message);
        if !road.moving.replace(true) {
            let (env, from, shard) = (self.env.clone(), self.from, self.shards[to].clone());
            self.env.spawn(async move {
                loop {
                    let delay_us = env.random_u64() % MESH_DELAY_US_MAX;
                    env.sleep(Duration::from_micros(delay_us)).await;
                    let next = road.waiting.borrow_mut().pop_front();
                    match (next, shard.upgrade()) {
                        (Some(message), Some(shard)) => shard.on_mesh(from, message),
                        _ => break,
                    }
                }
                road.moving.set(false);
            });
        }
        Ok(())
    }
}

/// The shards of one broker.
#[derive(Clone)]
pub struct Shards;

#[derive(Clone)]
pub struct ShardsBroker {
    env: SimEnv,
    shards: Vec<Rc<Shard<SimEnv>>>,
    handles: Vec<ShardHandle>,
}

impl SystemUnderTest for Shards {
    type Broker = ShardsBroker;

    fn start(
        &self,
        env: SimEnv,
        settings: Settings,
    ) -> impl Future<Output = Result<ShardsBroker, String>> + 'static {
        plant(&settings);
        async move { open(env, settings).await.map_err(|error| error.to_string()) }
    }
}

async fn open(env: SimEnv, settings: Settings) -> std::io::Result<ShardsBroker> {
    let directory = PathBuf::from(DIRECTORY);
    let manifest =
        Manifest::open_or_create(&env, &directory, settings.logs, settings.segment_bytes).await?;
    let mut shards = Vec::new();
    for index in 0..settings.shards {
        let options = ShardOptions {
            index,
            count: settings.shards,
            logs: manifest.logs,
            directory: directory.clone(),
            log: LogOptions {
                log: 0,
                directory: directory.clone(),
                store_id: manifest.store_id,
                segment_bytes: manifest.segment_bytes,
                flush_each_write: settings.sync_flush,
                flush_interval: Duration::from_millis(50),
                tail_cache_bytes: 64 << 10,
                read_cache_bytes: 512 << 10,
                index_cache_bytes: 64 << 10,
                key_tail_entries: 64,
                snapshot_bytes: manifest.segment_bytes / 2,
                scrub: ScrubOptions::OFF,
                store_host: ([127, 0, 0, 1], 10911).into(),
                replica: false,
                elected: None,
            },
            role: Role::Master(MasterRules::alone()),
        };
        shards.push(Shard::open(env.clone(), options).await?);
    }
    for (from, shard) in shards.iter().enumerate() {
        let mesh = SimMesh {
            env: env.clone(),
            from,
            roads: (0..shards.len()).map(|_| Rc::default()).collect(),
            shards: shards.iter().map(Rc::downgrade).collect(),
        };
        shard.join(Rc::new(mesh));
    }
    for shard in &shards {
        shard.start();
    }
    for shard in &shards {
        shard.ready().await;
    }
    if let Some(age) = settings.retention {
        for log in shards.iter().flat_map(|shard| shard.logs()) {
            let (env, log) = (env.clone(), log.clone());
            env.clone().spawn_background(async move {
                loop {
                    env.sleep(RETENTION_PERIOD).await;
                    let rules = RetentionRules {
                        older_than_ms: Some(env.now_ms() - age.as_millis() as u64),
                        bytes_max: None,
                        ..RetentionRules::default()
                    };
                    // Tried again at the next pass.
                    let _ = clean(&log, rules).await;
                }
            });
        }
    }
    Ok(ShardsBroker {
        env,
        handles: shards.iter().map(|shard| shard.handle()).collect(),
        shards,
    })
}

fn unexpected(reply: LocalReply) -> Refused {
    match reply {
        ShardReply::Refused(refusal) => refused(refusal),
        other => breach(format!("an answer of the wrong kind: {other:?}")),
    }
}

impl ShardsBroker {
    /// The core that a client happens to be connected to.
    fn any_core(&self) -> &ShardHandle {
        &self.handles[self.env.random_u64() as usize % self.handles.len()]
    }

    fn topic(&self, core: &ShardHandle, queue: Queue) -> Result<Arc<ShardTopic>, Refused> {
        let meta = core.meta();
        meta.topics_by_id
            .get(&queue.topic_id)
            .cloned()
            .ok_or(Refused::NoQueue)
    }

    /// Asks the owner of a queue, from any core.
    async fn ask_owner(
        &self,
        queue: Queue,
        request: impl FnOnce(QueueKey) -> ShardRequest,
    ) -> Result<LocalReply, Refused> {
        let core = self.any_core();
        let topic = self.topic(core, queue)?;
        let owner = core
            .shard_of_queue(&topic, queue.queue_id)
            .ok_or(Refused::NoQueue)?;
        Ok(core.ask(owner, request(key(queue))).await)
    }

    async fn command(&self, command: MetaCommand) -> Result<(), Refused> {
        let reply = self
            .any_core()
            .ask(0, ShardRequest::Meta(Box::new(command)))
            .await;
        match reply {
            ShardReply::Done => Ok(()),
            other => Err(unexpected(other)),
        }
    }
}

fn topic_of(topic: &ShardTopic) -> Topic {
    Topic {
        name: topic.name.to_string(),
        id: topic.id,
        queues: topic.logs.len() as u32,
    }
}

/// Whole records one after the other.
fn records_of(mut bytes: &[u8]) -> Result<Vec<Stored>, Refused> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let record = RecordView::parse_checked(bytes).map_err(|error| {
            Refused::Unreadable(format!("a pull gave something that is no record: {error}"))
        })?;
        found.push(Stored {
            queue_offset: record.queue_offset(),
            body: record.body().to_vec(),
            properties: record.properties().to_vec(),
        });
        bytes = &bytes[record.total_bytes()..];
    }
    Ok(found)
}

impl Broker for ShardsBroker {
    async fn create_topic(&self, name: &str, queues: u32) -> Result<Topic, Refused> {
        let config = TopicConfig {
            topic_name: name.to_owned(),
            read_queue_nums: queues,
            write_queue_nums: queues,
            ..TopicConfig::default()
        };
        self.command(MetaCommand::CreateTopicIfAbsent(config))
            .await?;
        let meta = self.any_core().meta();
        match meta.topics.get(name) {
            Some(topic) => Ok(topic_of(topic)),
            None => breach(format!("{name} was made, and a core does not know it")),
        }
    }

    async fn delete_topic(&self, name: &str) -> Result<(), Refused> {
        self.command(MetaCommand::DeleteTopic(name.to_owned()))
            .await
    }

    fn topics(&self) -> Vec<Topic> {
        let mut known = self.handles.iter().map(|core| {
            let mut topics: Vec<Topic> = core
                .meta()
                .topics
                .values()
                .map(|topic| topic_of(topic))
                .collect();
            topics.sort_by(|a, b| a.name.cmp(&b.name));
            topics
        });
        let first = known.next().unwrap_or_default();
        if let Some(other) = known.find(|other| *other != first) {
            breach(format!(
                "one core knows the topics {first:?}, another one {other:?}"
            ));
        }
        first
    }

    fn log_of(&self, queue: Queue) -> u8 {
        let meta = self.handles[0].meta();
        let topic = meta.topics_by_id.get(&queue.topic_id);
        topic
            .and_then(|topic| topic.logs.get(queue.queue_id as usize))
            .copied()
            .unwrap_or(0)
    }

    async fn append(&self, queue: Queue, messages: Vec<Message>) -> Result<i64, Refused> {
        let core = self.any_core();
        let topic = self.topic(core, queue)?;
        let owner = core
            .shard_of_queue(&topic, queue.queue_id)
            .ok_or(Refused::NoQueue)?;
        let count = messages.len();
        let messages = messages
            .into_iter()
            .map(|message| NewMessage {
                queue: key(queue),
                topic: topic.name.clone(),
                body: message.body.into(),
                properties: message.properties.into(),
                tags_code: message.tags_code,
                flag: 0,
                sys_flag: 0,
                born_timestamp: self.env.now_ms() as i64,
                born_host: ([127, 0, 0, 1], 5555).into(),
                reconsume_times: 0,
                prepared_transaction_offset: 0,
                key_places: None,
            })
            .collect();
        // The way that the broker takes: with a callback.
        let answer = Rc::new(RefCell::new(None));
        let bell = Rc::new(crate::store::Bell::default());
        let (slot, ring) = (answer.clone(), bell.clone());
        core.append(owner, messages, move |reply| {
            *slot.borrow_mut() = Some(reply);
            ring.ring();
        });
        match bell.until(|| answer.borrow_mut().take()).await {
            ShardReply::Appended(appended) => {
                if appended.physical_offsets.len() != count {
                    breach(format!(
                        "{count} messages were sent, {appended:?} came back"
                    ));
                }
                Ok(appended.queue_offset)
            }
            other => Err(unexpected(other)),
        }
    }

    async fn pull(&self, queue: Queue, wish: PullWish) -> Result<PullGift, Refused> {
        let reply = self
            .ask_owner(queue, |queue| {
                ShardRequest::Pull(Box::new(Pull {
                    queue,
                    offset: wish.offset,
                    messages_max: wish.messages_max,
                    bytes_max: 256 << 10,
                    filter: match wish.tags_code {
                        Some(code) => MessageFilter::Codes(Arc::from([code])),
                        None => MessageFilter::All,
                    },
                    suspend_ms: wish.suspend_ms,
                    commit: None,
                }))
            })
            .await?;
        let pulled = match reply {
            ShardReply::Pulled(pulled) => pulled,
            other => return Err(unexpected(other)),
        };
        let messages = records_of(&pulled.records.into_bytes())?;
        if messages.len() != pulled.message_count as usize {
            breach(format!(
                "{} records for {} messages",
                messages.len(),
                pulled.message_count
            ));
        }
        Ok(PullGift {
            messages,
            next_offset: pulled.next_offset,
            min_offset: pulled.min_offset,
            max_offset: pulled.max_offset,
        })
    }

    async fn bounds(&self, queue: Queue) -> Result<(i64, i64), Refused> {
        match self.ask_owner(queue, ShardRequest::Bounds).await? {
            ShardReply::Bounds(bounds) => Ok((bounds.min_offset, bounds.max_offset)),
            other => Err(unexpected(other)),
        }
    }

    async fn commit_offset(&self, group: &str, queue: Queue, offset: i64) -> Result<(), Refused> {
        let group = Arc::from(group);
        let commit = |queue| ShardRequest::CommitOffset {
            group,
            queue,
            offset,
        };
        match self.ask_owner(queue, commit).await? {
            ShardReply::Done => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    async fn query_offset(&self, group: &str, queue: Queue) -> Result<Option<i64>, Refused> {
        let group = Arc::from(group);
        match self
            .ask_owner(queue, |queue| ShardRequest::QueryOffset { group, queue })
            .await?
        {
            ShardReply::Offset(offset) => Ok(offset),
            other => Err(unexpected(other)),
        }
    }

    async fn stop(&self) {
        for shard in &self.shards {
            shard.release_pulls();
        }
        for shard in &self.shards {
            // A log that has failed cannot make its last snapshot.
            let _ = shard.stop().await;
        }
    }
}
