//! A broker of one log in 400 lines that can be broken at will: the test of the model itself.
//!
//! Everything is a record of the log, a batch is one group commit, recovery reads all of it. It is right as it is; each
//! name in [`BUGS`] makes it wrong in one place, and the model has to see it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::path::Path;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use ringmq::base::limits::SECTOR_BYTES;
use ringmq::io::env::{DiskFile, Env, OpenMode};
use ringmq::io::sim::{SimEnv, SimFile};

use crate::sut::{
    Broker, Message, PlantedBug, PullGift, PullWish, Queue, Refused, Settings, Stored,
    SystemUnderTest, Topic,
};
use crate::workload::within;

/// What can be planted.
pub const BUGS: &[PlantedBug] = &[
    "a flush is skipped",
    "acknowledged before the flush",
    "visible before the flush",
    "a checksum is ignored",
    "a torn tail is accepted",
    "a cut tail is not flushed away",
    "recovered bytes are not flushed",
    "a failed write is acknowledged",
    "a failed write is tried again",
    "the directory is not flushed",
    "the last batch is dropped by recovery",
    "a batch is recovered twice",
    "consumer offsets are kept in memory",
    "a parked pull is not woken",
    "a deletion is not logged",
    "a deleted topic stays until the restart",
    "the messages of a send are stored in reverse",
    "a full disk fails the log",
    "the last byte of a large body is lost",
    "a filtered pull skips too far",
];

const DIRECTORY: &str = "/toy";
const LOG: &str = "/toy/log";
const MAGIC: u32 = 0x70_79_01_17;
const HEADER_BYTES: usize = 20;
const PENDING_MAX: usize = 500;

#[derive(Clone, Debug)]
enum Record {
    Topic {
        name: String,
        id: u32,
        queues: u32,
    },
    TopicDeleted {
        name: String,
    },
    Message {
        queue: (u32, u32),
        body: Vec<u8>,
        properties: Vec<u8>,
        tags_code: i64,
    },
    Offset {
        group: String,
        queue: (u32, u32),
        offset: i64,
    },
}

impl Record {
    /// `kind | number | number | number | length, bytes | length, bytes`, all numbers of 8 bytes.
    fn encode(&self, out: &mut Vec<u8>) {
        let (kind, numbers, first, second): (u8, [u64; 3], &[u8], &[u8]) = match self {
            Self::Topic { name, id, queues } => (
                1,
                [u64::from(*id), u64::from(*queues), 0],
                name.as_bytes(),
                &[],
            ),
            Self::TopicDeleted { name } => (2, [0; 3], name.as_bytes(), &[]),
            Self::Message {
                queue,
                body,
                properties,
                tags_code,
            } => (
                3,
                [u64::from(queue.0), u64::from(queue.1), *tags_code as u64],
                body,
                properties,
            ),
            Self::Offset {
                group,
                queue,
                offset,
            } => (
                4,
                [u64::from(queue.0), u64::from(queue.1), *offset as u64],
                group.as_bytes(),
                &[],
            ),
        };
        out.push(kind);
        numbers
            .iter()
            .for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
        for bytes in [first, second] {
            out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
            out.extend_from_slice(bytes);
        }
    }

    fn decode(input: &mut &[u8]) -> Option<Self> {
        let (kind, rest) = input.split_first()?;
        *input = rest;
        let mut take = |count: usize| {
            let (taken, rest) = input.split_at_checked(count)?;
            *input = rest;
            Some(taken.to_vec())
        };
        let numbers = take(24)?;
        let numbers: Vec<u64> = numbers.chunks(8).map(number).collect();
        let first_bytes = number(&take(8)?) as usize;
        let first = take(first_bytes)?;
        let second_bytes = number(&take(8)?) as usize;
        let second = take(second_bytes)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let queue = (numbers[0] as u32, numbers[1] as u32);
        Some(match kind {
            1 => Self::Topic {
                name: text(&first),
                id: queue.0,
                queues: queue.1,
            },
            2 => Self::TopicDeleted { name: text(&first) },
            3 => Self::Message {
                queue,
                body: first,
                properties: second,
                tags_code: numbers[2] as i64,
            },
            4 => Self::Offset {
                group: text(&first),
                queue,
                offset: numbers[2] as i64,
            },
            _ => return None,
        })
    }
}

fn pair(queue: Queue) -> (u32, u32) {
    (queue.topic_id, queue.queue_id)
}

#[derive(Clone)]
struct Kept {
    body: Vec<u8>,
    properties: Vec<u8>,
    tags_code: i64,
}

#[derive(Default)]
struct Tables {
    topics: BTreeMap<String, (u32, u32)>,
    last_topic_id: u32,
    queues: BTreeMap<(u32, u32), Vec<Kept>>,
    offsets: BTreeMap<(String, (u32, u32)), i64>,
}

impl Tables {
    /// Applies a record; gives the offset of a message.
    fn apply(&mut self, record: &Record) -> i64 {
        match record {
            Record::Topic { name, id, queues } => {
                self.topics.insert(name.clone(), (*id, *queues));
                self.last_topic_id = self.last_topic_id.max(*id);
                for queue_id in 0..*queues {
                    self.queues.insert((*id, queue_id), Vec::new());
                }
            }
            Record::TopicDeleted { name } => {
                if let Some((gone, _)) = self.topics.remove(name) {
                    self.queues.retain(|(id, _), _| *id != gone);
                }
            }
            Record::Message {
                queue,
                body,
                properties,
                tags_code,
            } => {
                let entries = self.queues.entry(*queue).or_default();
                entries.push(Kept {
                    body: body.clone(),
                    properties: properties.clone(),
                    tags_code: *tags_code,
                });
                return entries.len() as i64 - 1;
            }
            Record::Offset {
                group,
                queue,
                offset,
            } => {
                self.offsets.insert((group.clone(), *queue), *offset);
            }
        }
        0
    }
}

type Answer = Rc<RefCell<Option<Result<i64, Refused>>>>;

/// Wakes everyone who waits, each time.
#[derive(Clone, Default)]
struct Bell(Rc<RefCell<Vec<Waker>>>);

impl Bell {
    fn ring(&self) {
        let waiting = std::mem::take(&mut *self.0.borrow_mut());
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Waits until `look` gives something; it looks now and at each ring.
    async fn until<T>(&self, mut look: impl FnMut() -> Option<T>) -> T {
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

struct State {
    tables: Tables,
    pending: Vec<(Vec<Record>, Answer)>,
    position: u64,
    failed: Option<String>,
    stopping: bool,
    next_topic_id: u32,
}

#[derive(Clone)]
pub struct Toy;

#[derive(Clone)]
pub struct ToyBroker {
    env: SimEnv,
    settings: Settings,
    state: Rc<RefCell<State>>,
    bell: Bell,
}

fn encode(position: u64, records: &[Record]) -> Vec<u8> {
    let mut payload = Vec::new();
    records
        .iter()
        .for_each(|record| record.encode(&mut payload));
    let mut batch = Vec::with_capacity(HEADER_BYTES + payload.len());
    batch.extend_from_slice(&MAGIC.to_le_bytes());
    batch.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    batch.extend_from_slice(&position.to_le_bytes());
    batch.extend_from_slice(&crc32c::crc32c(&payload).to_le_bytes());
    batch.extend_from_slice(&payload);
    batch.resize(batch.len().next_multiple_of(SECTOR_BYTES), 0);
    batch
}

fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

impl SystemUnderTest for Toy {
    type Broker = ToyBroker;

    #[allow(clippy::manual_async_fn)] // The future must not borrow the toy.
    fn start(
        &self,
        env: SimEnv,
        settings: Settings,
    ) -> impl Future<Output = Result<ToyBroker, String>> + 'static {
        async move { open(env, settings).await.map_err(|error| error.to_string()) }
    }
}

async fn open(env: SimEnv, settings: Settings) -> std::io::Result<ToyBroker> {
    let bug = |name: &str| {
        debug_assert!(BUGS.contains(&name));
        settings.planted == Some(name)
    };
    env.create_dir(Path::new(DIRECTORY)).await?;
    env.sync_dir(Path::new("/")).await?;
    let mode = OpenMode {
        create: true,
        flush_each_write: settings.sync_flush && !bug("a flush is skipped"),
    };
    let file = env.open(Path::new(LOG), mode).await?;
    if !bug("the directory is not flushed") {
        env.sync_dir(Path::new(DIRECTORY)).await?;
    }

    let bytes = file.len().await?.next_multiple_of(SECTOR_BYTES as u64) as usize;
    let content = if bytes == 0 {
        Vec::new()
    } else {
        file.read_at(0, bytes).await?.to_vec()
    };
    let mut tables = Tables::default();
    let mut batches = Vec::new();
    let mut position = 0;
    while let Some(header) = content.get(position..position + HEADER_BYTES) {
        let payload_bytes = number(&header[4..8]) as usize;
        let end = position + HEADER_BYTES + payload_bytes;
        if number(&header[..4]) != u64::from(MAGIC) || number(&header[8..16]) != position as u64 {
            break;
        }
        let Some(payload) = content.get(position + HEADER_BYTES..end) else {
            break;
        };
        let checked = u64::from(crc32c::crc32c(payload)) == number(&header[16..20]);
        if !checked && !bug("a checksum is ignored") && !bug("a torn tail is accepted") {
            break;
        }
        let mut input = payload;
        let records: Vec<Record> = std::iter::from_fn(|| Record::decode(&mut input)).collect();
        if !input.is_empty() && !bug("a torn tail is accepted") {
            break;
        }
        batches.push(records);
        position = end.next_multiple_of(SECTOR_BYTES);
    }
    if bug("the last batch is dropped by recovery") {
        batches.pop();
    }
    if bug("a batch is recovered twice") {
        batches.extend(batches.last().cloned());
    }
    for record in batches.iter().flatten() {
        tables.apply(record);
    }
    file.truncate(position as u64).await?;
    if !bug("recovered bytes are not flushed") && !bug("a cut tail is not flushed away") {
        file.sync().await?;
    }
    let state = State {
        next_topic_id: tables.last_topic_id + 1,
        tables,
        pending: Vec::new(),
        position: position as u64,
        failed: None,
        stopping: false,
    };
    let broker = ToyBroker {
        env: env.clone(),
        settings,
        state: Rc::new(RefCell::new(state)),
        bell: Bell::default(),
    };
    env.spawn(broker.clone().write_batches(file));
    Ok(broker)
}

impl ToyBroker {
    fn bug(&self, name: &str) -> bool {
        debug_assert!(BUGS.contains(&name));
        self.settings.planted == Some(name)
    }

    async fn write_batches(self, file: SimFile) {
        loop {
            let (batch, position) = self
                .bell
                .until(|| {
                    let mut state = self.state.borrow_mut();
                    let batch = std::mem::take(&mut state.pending);
                    (!batch.is_empty()).then_some((batch, state.position))
                })
                .await;
            let records: Vec<Record> = batch
                .iter()
                .flat_map(|(records, _)| records.clone())
                .filter(|record| {
                    !(self.bug("a deletion is not logged")
                        && matches!(record, Record::TopicDeleted { .. }))
                })
                .collect();
            let bytes = encode(position, &records);
            let count = bytes.len() as u64;
            let pages = Rc::new(ringmq::io::aligned_buf::PageBuf::from_heap(bytes));
            if self.bug("acknowledged before the flush") {
                self.settle(&batch);
            }
            if self.bug("visible before the flush") {
                let mut state = self.state.borrow_mut();
                records.iter().for_each(|record| {
                    state.tables.apply(record);
                });
            }
            let mut result = file.write_at(pages.clone(), position).await;
            if self.bug("a failed write is tried again") && result.is_err() {
                // As the first implementation of many: a flush says that all is well.
                result = file.sync().await;
            }
            if self.bug("a failed write is acknowledged") {
                result = Ok(());
            }
            let full = |error: &std::io::Error| error.raw_os_error() == Some(28);
            match result {
                Ok(()) => {
                    self.state.borrow_mut().position += count;
                    if self.bug("visible before the flush") {
                        self.answer_visible(&batch);
                    } else if !self.bug("acknowledged before the flush") {
                        self.settle(&batch);
                    }
                }
                Err(error) if full(&error) && !self.bug("a full disk fails the log") => {
                    for (_, answer) in &batch {
                        *answer.borrow_mut() = Some(Err(Refused::DiskFull(error.to_string())));
                    }
                }
                Err(error) => {
                    let why = error.to_string();
                    let mut state = self.state.borrow_mut();
                    state.failed = Some(why.clone());
                    let waiting = std::mem::take(&mut state.pending);
                    for (_, answer) in batch.iter().chain(&waiting) {
                        *answer.borrow_mut() = Some(Err(Refused::Poisoned(why.clone())));
                    }
                    drop(state);
                    self.bell.ring();
                    return;
                }
            }
            self.bell.ring();
        }
    }

    /// Applies a batch that is as durable as asked for, and answers.
    fn settle(&self, batch: &[(Vec<Record>, Answer)]) {
        let mut state = self.state.borrow_mut();
        for (records, answer) in batch {
            let mut first = None;
            for record in records {
                let forget = matches!(record, Record::TopicDeleted { .. })
                    && self.bug("a deleted topic stays until the restart");
                if !forget {
                    let offset = state.tables.apply(record);
                    first.get_or_insert(offset);
                }
            }
            *answer.borrow_mut() = Some(Ok(first.unwrap_or(0)));
        }
    }

    /// As [`ToyBroker::settle`] for records that are applied already.
    fn answer_visible(&self, batch: &[(Vec<Record>, Answer)]) {
        let state = self.state.borrow();
        let mut behind: BTreeMap<(u32, u32), i64> = BTreeMap::new();
        for (records, answer) in batch.iter().rev() {
            let mut first = 0;
            for record in records.iter().rev() {
                if let Record::Message { queue, .. } = record {
                    let count = behind.entry(*queue).or_default();
                    *count += 1;
                    first = state.tables.queues.get(queue).map_or(0, Vec::len) as i64 - *count;
                }
            }
            *answer.borrow_mut() = Some(Ok(first));
        }
    }

    async fn log(&self, records: Vec<Record>) -> Result<i64, Refused> {
        let answer: Answer = Rc::default();
        {
            let mut state = self.state.borrow_mut();
            if state.stopping {
                return Err(Refused::Stopping);
            }
            if let Some(why) = &state.failed {
                return Err(Refused::Poisoned(why.clone()));
            }
            if state.pending.len() >= PENDING_MAX {
                return Err(Refused::Busy);
            }
            if let Some(Record::Message { queue, .. }) = records.first()
                && !state.tables.queues.contains_key(queue)
            {
                return Err(Refused::NoQueue);
            }
            state.pending.push((records, answer.clone()));
        }
        self.bell.ring();
        self.bell.until(|| answer.borrow_mut().take()).await
    }

    fn look(&self, queue: Queue, wish: &PullWish) -> Result<PullGift, Refused> {
        let state = self.state.borrow();
        let entries = state
            .tables
            .queues
            .get(&pair(queue))
            .ok_or(Refused::NoQueue)?;
        let mut gift = PullGift {
            next_offset: wish.offset,
            max_offset: entries.len() as i64,
            ..PullGift::default()
        };
        for (at, entry) in entries.iter().enumerate().skip(wish.offset as usize) {
            if gift.messages.len() == wish.messages_max as usize {
                break;
            }
            gift.next_offset = at as i64 + 1;
            if wish
                .tags_code
                .is_none_or(|wanted| wanted == entry.tags_code)
            {
                gift.messages.push(Stored {
                    queue_offset: at as i64,
                    body: entry.body.clone(),
                    properties: entry.properties.clone(),
                });
            }
        }
        if wish.tags_code.is_some() && self.bug("a filtered pull skips too far") {
            gift.next_offset = gift.max_offset;
        }
        Ok(gift)
    }
}

impl Broker for ToyBroker {
    async fn create_topic(&self, name: &str, queues: u32) -> Result<Topic, Refused> {
        let id = {
            let mut state = self.state.borrow_mut();
            state.next_topic_id += 1;
            state.next_topic_id - 1
        };
        let name = name.to_owned();
        self.log(vec![Record::Topic {
            name: name.clone(),
            id,
            queues,
        }])
        .await?;
        Ok(Topic { name, id, queues })
    }

    async fn delete_topic(&self, name: &str) -> Result<(), Refused> {
        self.log(vec![Record::TopicDeleted {
            name: name.to_owned(),
        }])
        .await?;
        Ok(())
    }

    fn topics(&self) -> Vec<Topic> {
        let state = self.state.borrow();
        let topics = state.tables.topics.iter();
        topics
            .map(|(name, &(id, queues))| Topic {
                name: name.clone(),
                id,
                queues,
            })
            .collect()
    }

    fn log_of(&self, _queue: Queue) -> u8 {
        0
    }

    async fn append(&self, queue: Queue, messages: Vec<Message>) -> Result<i64, Refused> {
        let mut records: Vec<Record> = messages
            .into_iter()
            .map(|mut message| {
                if self.bug("the last byte of a large body is lost") && message.body.len() > 4_000 {
                    message.body.pop();
                }
                Record::Message {
                    queue: pair(queue),
                    body: message.body,
                    properties: message.properties,
                    tags_code: message.tags_code,
                }
            })
            .collect();
        if self.bug("the messages of a send are stored in reverse") {
            records.reverse();
        }
        self.log(records).await
    }

    async fn pull(&self, queue: Queue, wish: PullWish) -> Result<PullGift, Refused> {
        let gift = self.look(queue, &wish)?;
        if !gift.messages.is_empty() || wish.suspend_ms == 0 {
            return Ok(gift);
        }
        let found = self.bell.until(|| {
            let gift = self.look(queue, &wish);
            let done = !matches!(&gift, Ok(gift) if gift.messages.is_empty());
            (done && !self.bug("a parked pull is not woken")).then_some(gift)
        });
        match within(&self.env, Duration::from_millis(wish.suspend_ms), found).await {
            Some(gift) => gift,
            None if self.bug("a parked pull is not woken") => Ok(gift),
            None => self.look(queue, &wish),
        }
    }

    async fn bounds(&self, queue: Queue) -> Result<(i64, i64), Refused> {
        let state = self.state.borrow();
        let entries = state
            .tables
            .queues
            .get(&pair(queue))
            .ok_or(Refused::NoQueue)?;
        Ok((0, entries.len() as i64))
    }

    async fn commit_offset(&self, group: &str, queue: Queue, offset: i64) -> Result<(), Refused> {
        let record = Record::Offset {
            group: group.to_owned(),
            queue: pair(queue),
            offset,
        };
        if self.bug("consumer offsets are kept in memory") {
            self.state.borrow_mut().tables.apply(&record);
            return Ok(());
        }
        self.log(vec![record]).await.map(|_| ())
    }

    async fn query_offset(&self, group: &str, queue: Queue) -> Result<Option<i64>, Refused> {
        let state = self.state.borrow();
        Ok(state
            .tables
            .offsets
            .get(&(group.to_owned(), pair(queue)))
            .copied())
    }

    async fn stop(&self) {
        self.state.borrow_mut().stopping = true;
        self.bell
            .until(|| {
                let state = self.state.borrow();
                (state.pending.is_empty() || state.failed.is_some()).then_some(())
            })
            .await;
    }
}
