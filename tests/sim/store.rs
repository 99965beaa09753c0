//! The real logs under the model, with as little as possible around them: no shards, no mesh, one task per request.
//!
//! Topics are metadata records of log 0; queues go round robin to the logs. Every request waits until the log is durable
//! beyond its record. This is where a fault of the store itself shows first and with the shortest trace.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use ringmq::base::offset::{LogId, Position};
use ringmq::io::env::Env;
use ringmq::io::sim::SimEnv;
use ringmq::store::control::Control;
use ringmq::store::manifest::Manifest;
use ringmq::store::scrub::ScrubOptions;
use ringmq::store::types::{NewMessage, QueueKey, Refusal};
use ringmq::store::{CommitLog, LogListener, LogOptions};
use ringmq::wire::record::RecordView;

use crate::sut::{
    Broker, Message, PullGift, PullWish, Queue, Refused, Settings, Stored, SystemUnderTest, Topic,
};
use crate::workload::within;

const DIRECTORY: &str = "/data/store";
const TOPIC_PREFIX: &str = "topic/";
const LAST_ID: &str = "last-topic-id";

/// Wakes everyone who waits, each time.
#[derive(Default)]
pub struct Bell(RefCell<Vec<Waker>>);

impl Bell {
    pub fn ring(&self) {
        let waiting = std::mem::take(&mut *self.0.borrow_mut());
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Waits until `look` gives something; it looks now and at each ring.
    pub async fn until<T>(&self, mut look: impl FnMut() -> Option<T>) -> T {
        poll_fn(|context| match look() {
            Some(found) => Poll::Ready(found),
            None => {
                self.0.borrow_mut().push(context.waker().clone());
                Poll::Pending
            }
        })
        .await
    }
}

struct Listener(Rc<Bell>);

impl LogListener for Listener {
    fn on_durable(&self, _log: LogId, _end: Position, _touched: &[QueueKey]) {
        self.0.ring();
    }

    fn on_poisoned(&self, _log: LogId, _reason: &Arc<str>) {
        self.0.ring();
    }
}

/// The store's own faults by name, for the features of a build with `planted-bugs`.
pub fn plant(settings: &Settings) {
    #[cfg(feature = "planted-bugs")]
    {
        use ringmq::base::planted::PlantedBug;
        ringmq::base::planted::plant(settings.planted.map(|name| match name {
            "FlushSkipped" => PlantedBug::FlushSkipped,
            "AckBeforeFlush" => PlantedBug::AckBeforeFlush,
            "BatchCrcIgnored" => PlantedBug::BatchCrcIgnored,
            "TruncatedTailAccepted" => PlantedBug::TruncatedTailAccepted,
            other => panic!("the store has no planted bug {other}"),
        }));
    }
    #[cfg(not(feature = "planted-bugs"))]
    assert!(
        settings.planted.is_none(),
        "build with --features planted-bugs"
    );
}

pub fn refused(refusal: Refusal) -> Refused {
    match refusal {
        Refusal::Busy { .. }
        | Refusal::SpaceOnItsWay { .. }
        | Refusal::TooManyTransactions { .. }
        | Refusal::MeshFull { .. } => Refused::Busy,
        Refusal::DiskFull { reason } => Refused::DiskFull(reason.to_string()),
        Refusal::Poisoned { reason, .. } => Refused::Poisoned(reason.to_string()),
        Refusal::NoQueue => Refused::NoQueue,
        Refusal::Stopping => Refused::Stopping,
        Refusal::Read { reason } => Refused::Unreadable(reason.to_string()),
        Refusal::Replica
        | Refusal::NoLease
        | Refusal::Unsettled
        | Refusal::TooFewReplicas { .. } => Refused::Busy,
        other @ Refusal::TooLarge { .. } => panic!("the model sends nothing too large: {other}"),
    }
}

/// The logs of one store.
#[derive(Clone)]
pub struct Logs;

#[derive(Clone)]
pub struct LogsBroker {
    env: SimEnv,
    logs: Vec<Rc<CommitLog<SimEnv>>>,
    bell: Rc<Bell>,
    next_topic_id: Rc<Cell<u32>>,
    names: Rc<RefCell<BTreeMap<u32, Topic>>>,
}

impl SystemUnderTest for Logs {
    type Broker = LogsBroker;

    fn start(
        &self,
        env: SimEnv,
        settings: Settings,
    ) -> impl Future<Output = Result<LogsBroker, String>> + 'static {
        plant(&settings);
        async move { open(env, settings).await.map_err(|error| error.to_string()) }
    }
}

async fn open(env: SimEnv, settings: Settings) -> std::io::Result<LogsBroker> {
    let directory = PathBuf::from(DIRECTORY);
    let manifest =
        Manifest::open_or_create(&env, &directory, settings.logs, settings.segment_bytes).await?;
    let bell = Rc::new(Bell::default());
    let mut logs = Vec::new();
    for log in 0..manifest.logs {
        let options = LogOptions {
            log,
            directory: directory.join(format!("log-{log}")),
            store_id: manifest.store_id,
            segment_bytes: manifest.segment_bytes,
            flush_each_write: settings.sync_flush,
            flush_interval: Duration::from_millis(50),
            tail_cache_bytes: 64 << 10,
            read_cache_bytes: 1 << 20,
            index_cache_bytes: 64 << 10,
            key_tail_entries: 64,
            snapshot_bytes: settings.segment_bytes / 2,
            scrub: ScrubOptions::OFF,
            store_host: ([127, 0, 0, 1], 10911).into(),
            replica: false,
            elected: None,
        };
        logs.push(CommitLog::open(env.clone(), options).await?);
    }
    for log in &logs {
        log.start(Rc::new(Listener(bell.clone())));
    }
    let broker = LogsBroker {
        env,
        logs,
        bell,
        next_topic_id: Rc::default(),
        names: Rc::default(),
    };
    broker.read_topics();
    Ok(broker)
}

fn number(bytes: &[u8]) -> u32 {
    std::str::from_utf8(bytes).unwrap().parse().unwrap()
}

impl LogsBroker {
    fn read_topics(&self) {
        let tables = self.logs[0].tables().borrow();
        let last = tables
            .metadata
            .get(LAST_ID)
            .map_or(0, |value| number(value));
        // A loss of power in ASYNC_FLUSH may take back what log 0 knew, and leave messages of that topic elsewhere.
        let used = self.logs.iter().filter_map(|log| {
            let tables = log.tables().borrow();
            tables.open_topics.all().map(|(id, _)| id).max()
        });
        let last = used.max().unwrap_or(0).max(last);
        self.next_topic_id.set(last + 1);
        *self.names.borrow_mut() = tables
            .metadata
            .with_prefix(TOPIC_PREFIX)
            .map(|(key, value)| {
                let mut parts = value.split(|byte| *byte == b' ');
                let mut next = || number(parts.next().unwrap());
                let topic = Topic {
                    name: key[TOPIC_PREFIX.len()..].to_owned(),
                    id: next(),
                    queues: next(),
                };
                (topic.id, topic)
            })
            .collect();
    }

    fn log(&self, queue: Queue) -> &Rc<CommitLog<SimEnv>> {
        &self.logs[usize::from(self.log_of(queue))]
    }

    /// Waits until a log is durable beyond a position.
    async fn durable(&self, log: &CommitLog<SimEnv>, position: Position) -> Result<(), Refused> {
        self.bell
            .until(|| {
                if log.durable() > position {
                    return Some(Ok(()));
                }
                match log.refusal() {
                    Some(refusal @ Refusal::Poisoned { .. }) => Some(Err(refused(refusal))),
                    _ => None,
                }
            })
            .await
    }

    async fn control(&self, log: &CommitLog<SimEnv>, controls: &[Control]) -> Result<(), Refused> {
        let position = log.append_control(controls).map_err(refused)?;
        self.durable(log, position).await
    }

    fn topic(&self, queue: Queue) -> Result<Topic, Refused> {
        let topics = self.names.borrow();
        topics.get(&queue.topic_id).cloned().ok_or(Refused::NoQueue)
    }

    async fn look(&self, queue: Queue, wish: &PullWish) -> Result<PullGift, Refused> {
        let unreadable = |error: std::io::Error| Refused::Unreadable(error.to_string());
        self.topic(queue)?;
        let log = self.log(queue);
        let bounds = log.bounds(key(queue));
        let mut gift = PullGift {
            next_offset: wish.offset.max(bounds.min_offset),
            min_offset: bounds.min_offset,
            max_offset: bounds.max_offset,
            ..PullGift::default()
        };
        if wish.offset < bounds.min_offset {
            return Ok(gift);
        }
        while gift.next_offset < bounds.max_offset
            && gift.messages.len() < wish.messages_max as usize
        {
            let entry = log.entry(key(queue), gift.next_offset).await;
            let Some(entry) = self.still_there(queue, gift.next_offset, entry)? else {
                break;
            };
            gift.next_offset += 1;
            if wish
                .tags_code
                .is_some_and(|wanted| wanted != entry.tags_code)
            {
                continue;
            }
            let slices = log.record(key(queue), gift.next_offset - 1, entry).await;
            let Some(slices) = self.still_there(queue, gift.next_offset - 1, slices.map(Some))?
            else {
                gift.next_offset -= 1;
                break;
            };
            let mut bytes = Vec::new();
            slices
                .iter()
                .for_each(|slice| bytes.extend_from_slice(slice));
            let record = RecordView::parse_checked(&bytes).map_err(|error| {
                unreadable(std::io::Error::other(format!("{entry:?}: {error}")))
            })?;
            gift.messages.push(Stored {
                queue_offset: record.queue_offset(),
                body: record.body().to_vec(),
                properties: record.properties().to_vec(),
            });
        }
        if gift.messages.is_empty() {
            gift.min_offset = log.bounds(key(queue)).min_offset;
        }
        Ok(gift)
    }

    /// A read that fails, or finds nothing, because retention was faster is no failure.
    fn still_there<T>(
        &self,
        queue: Queue,
        offset: i64,
        result: std::io::Result<Option<T>>,
    ) -> Result<Option<T>, Refused> {
        match result {
            Ok(Some(found)) => Ok(Some(found)),
            _ if offset < self.log(queue).bounds(key(queue)).min_offset => Ok(None),
            Ok(None) => Err(Refused::Unreadable(format!(
                "{queue:?} has no entry at {offset}, which is within its bounds"
            ))),
            Err(error) => Err(Refused::Unreadable(error.to_string())),
        }
    }
}

pub fn key(queue: Queue) -> QueueKey {
    QueueKey {
        topic_id: queue.topic_id,
        queue_id: queue.queue_id,
    }
}

impl Broker for LogsBroker {
    async fn create_topic(&self, name: &str, queues: u32) -> Result<Topic, Refused> {
        let id = self.next_topic_id.get();
        self.next_topic_id.set(id + 1);
        let put = |key: String, value: String| Control::Metadata {
            key: key.into(),
            value: Some(value.into_bytes().into()),
        };
        let controls = [
            put(LAST_ID.to_owned(), id.to_string()),
            put(format!("{TOPIC_PREFIX}{name}"), format!("{id} {queues}")),
        ];
        self.control(&self.logs[0], &controls).await?;
        let topic = Topic {
            name: name.to_owned(),
            id,
            queues,
        };
        self.names.borrow_mut().insert(id, topic.clone());
        Ok(topic)
    }

    async fn delete_topic(&self, name: &str) -> Result<(), Refused> {
        let id = self
            .names
            .borrow()
            .values()
            .find(|topic| topic.name == name)
            .map(|topic| topic.id)
            .ok_or(Refused::NoQueue)?;
        let gone = Control::Metadata {
            key: format!("{TOPIC_PREFIX}{name}").into(),
            value: None,
        };
        self.control(&self.logs[0], &[gone]).await?;
        self.names.borrow_mut().remove(&id);
        for log in &self.logs {
            // What this misses is dropped after the next start, or stays as rubbish under an id that is never used again.
            let _ = self
                .control(log, &[Control::TopicDropped { topic_id: id }])
                .await;
        }
        Ok(())
    }

    fn topics(&self) -> Vec<Topic> {
        self.names.borrow().values().cloned().collect()
    }

    fn log_of(&self, queue: Queue) -> u8 {
        ((queue.topic_id + queue.queue_id) % self.logs.len() as u32) as u8
    }

    async fn append(&self, queue: Queue, messages: Vec<Message>) -> Result<i64, Refused> {
        let name: Arc<str> = self.topic(queue)?.name.into();
        let messages: Vec<NewMessage> = messages
            .into_iter()
            .map(|message| NewMessage {
                queue: key(queue),
                topic: name.clone(),
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
        let log = self.log(queue);
        let (appended, position) = log.append(&messages).map_err(refused)?;
        self.durable(log, position).await?;
        Ok(appended.queue_offset)
    }

    async fn pull(&self, queue: Queue, wish: PullWish) -> Result<PullGift, Refused> {
        let began_ns = self.env.now_ns();
        let mut wish = wish;
        loop {
            let gift = self.look(queue, &wish).await?;
            let waited = Duration::from_nanos(self.env.now_ns() - began_ns);
            let left = Duration::from_millis(wish.suspend_ms).saturating_sub(waited);
            let moved = gift.next_offset != wish.offset && wish.tags_code.is_none();
            if !gift.messages.is_empty() || left.is_zero() || moved {
                return Ok(gift);
            }
            wish.offset = gift.next_offset;
            let grown = self.bell.until(|| {
                let gone = self.topic(queue).is_err();
                (gone || self.log(queue).bounds(key(queue)).max_offset > wish.offset).then_some(())
            });
            let _ = within(&self.env, left, grown).await;
        }
    }

    async fn bounds(&self, queue: Queue) -> Result<(i64, i64), Refused> {
        self.topic(queue)?;
        let bounds = self.log(queue).bounds(key(queue));
        Ok((bounds.min_offset, bounds.max_offset))
    }

    async fn commit_offset(&self, group: &str, queue: Queue, offset: i64) -> Result<(), Refused> {
        let control = Control::OffsetCommitted {
            group: group.into(),
            queue: key(queue),
            offset,
        };
        self.control(self.log(queue), &[control]).await
    }

    async fn query_offset(&self, group: &str, queue: Queue) -> Result<Option<i64>, Refused> {
        self.topic(queue)?;
        let tables = self.log(queue).tables().borrow();
        Ok(tables.offsets.get(group, key(queue)))
    }

    async fn stop(&self) {
        for log in &self.logs {
            let _ = log.stop().await;
        }
    }
}
