//! What the simulations of several brokers share: what their stores are made of, what is sent, a master's port, and logs that have
//! to be copies of each other.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ringmq::base::limits::SECTOR_BYTES;
use ringmq::base::offset::{LogId, PhysicalOffset, Position};
use ringmq::ha::handshake::StreamError;
use ringmq::ha::master::{StreamTimes, let_in, serve};
use ringmq::io::aligned_buf::PageSlice;
use ringmq::io::env::Env;
use ringmq::io::sim::{Control as World, SimEnv, SimStream};
use ringmq::shard::message::{NewMessage, QueueKey, ShardReply, ShardRequest};
use ringmq::shard::meta::MetaCommand;
use ringmq::shard::{Role, Shard, ShardHandle, ShardOptions};
use ringmq::store::batch::BatchHeader;
use ringmq::store::manifest::{FORMAT, Manifest, log_directory};
use ringmq::store::retention::{self, RetentionRules};
use ringmq::store::scrub::ScrubOptions;
use ringmq::store::{CommitLog, LogOptions};
use ringmq::wire::ha::StoreShape;
use ringmq::wire::remoting::body::TopicConfig;

use crate::ledger::breach;
use crate::sut::PlantedBug;
use crate::workload::within;

pub const TOPIC: &str = "T";
pub const QUEUES: u32 = 4;
pub const LOGS: u8 = 2;
/// Segments that a run does not fill, and some that it fills, so that retention can remove them.
pub const SEGMENT_BYTES: [u64; 2] = [1 << 20, 128 << 10];
/// How often retention is looked at.
pub const RETENTION_PERIOD: Duration = Duration::from_millis(50);
/// Damage is found soon.
const SCRUB: ScrubOptions = ScrubOptions {
    bytes_per_second: 64 << 20,
    period: Duration::from_millis(300),
};
/// And repaired by then, in virtual time, if another copy is connected.
pub const WHOLE_WITHIN: Duration = Duration::from_secs(120);
pub const SECRET: &[u8] = b"a shared secret";

pub fn plant(bug: Option<PlantedBug>) {
    #[cfg(feature = "planted-bugs")]
    {
        use ringmq::base::planted::PlantedBug;
        ringmq::base::planted::plant(bug.map(|name| match name {
            "ReplicaAcksBeforeFlush" => PlantedBug::ReplicaAcksBeforeFlush,
            "AckBeforeReplica" => PlantedBug::AckBeforeReplica,
            "ForgetToFence" => PlantedBug::ForgetToFence,
            "TruncateInMemory" => PlantedBug::TruncateInMemory,
            "ElectOutside" => PlantedBug::ElectOutside,
            "StandThoughDamaged" => PlantedBug::StandThoughDamaged,
            "RepairOverNeighbours" => PlantedBug::RepairOverNeighbours,
            other => panic!("no planted bug {other}"),
        }));
    }
    #[cfg(not(feature = "planted-bugs"))]
    assert!(bug.is_none(), "build with --features planted-bugs");
}

/// Of a slave's new store, made like its master's.
pub fn manifest_like(store_id: u64, segment_bytes: u64) -> Manifest {
    Manifest {
        format: FORMAT,
        store_id,
        logs: LOGS,
        segment_bytes,
    }
}

/// One core with small caches. `elected` as in [`LogOptions`].
pub fn shard_options(
    directory: PathBuf,
    manifest: &Manifest,
    flush_each_write: bool,
    role: Role,
    elected: Option<u32>,
) -> ShardOptions {
    ShardOptions {
        index: 0,
        count: 1,
        logs: manifest.logs,
        directory: directory.clone(),
        log: LogOptions {
            log: 0,
            directory,
            store_id: manifest.store_id,
            segment_bytes: manifest.segment_bytes,
            flush_each_write,
            flush_interval: Duration::from_millis(50),
            tail_cache_bytes: 64 << 10,
            read_cache_bytes: 512 << 10,
            index_cache_bytes: 64 << 10,
            key_tail_entries: 64,
            snapshot_bytes: manifest.segment_bytes / 2,
            scrub: SCRUB,
            store_host: ([127, 0, 0, 1], 10911).into(),
            replica: matches!(role, Role::Slave),
            elected,
        },
        role,
    }
}

/// What the store of a broker is made of.
pub fn shape_of(shard: &Shard<SimEnv>) -> StoreShape {
    let options = shard.logs().next().unwrap().options();
    StoreShape {
        store_id: options.store_id,
        logs: u16::from(LOGS),
        segment_bytes: options.segment_bytes,
    }
}

/// What a master does with a connection. In production the socket goes to the core of the log in between.
pub fn accept(
    env: &SimEnv,
    shard: &Rc<Shard<SimEnv>>,
    stream: SimStream,
    times: StreamTimes,
    is_elected: bool,
) {
    let (own, shard) = (env.clone(), shard.clone());
    env.spawn(async move {
        let shape = shape_of(&shard);
        match let_in(&own, &stream, SECRET, shape, is_elected).await {
            Ok(Some((log, wish))) => {
                let log = shard.logs().find(|own| own.id() == log).cloned().unwrap();
                serve(own, Rc::new(stream), wish, log, shard, times).await;
            }
            Err(StreamError::Refused(remark)) => breach(format!("a slave is refused: {remark}")),
            Err(StreamError::Unexpected(what)) => panic!("{what}"),
            // It asked what to make of its store, or the connection broke.
            Ok(None) | Err(_) => {}
        }
    });
}

/// Asks a master for the topic; the answer if it is not done.
pub async fn make_topic(master: &ShardHandle) -> Result<(), String> {
    let config = TopicConfig {
        topic_name: TOPIC.to_owned(),
        read_queue_nums: QUEUES,
        write_queue_nums: QUEUES,
        ..TopicConfig::default()
    };
    let command = MetaCommand::CreateTopicIfAbsent(config);
    match master.ask(0, ShardRequest::Meta(Box::new(command))).await {
        ShardReply::Done => Ok(()),
        other => Err(format!("no topic: {other:?}")),
    }
}

pub fn message(body: Vec<u8>, topic: Arc<str>, queue: QueueKey) -> NewMessage {
    NewMessage {
        queue,
        topic,
        body: body.into(),
        properties: b"TAGS\x01a\x02".as_slice().into(),
        tags_code: 97,
        flag: 0,
        sys_flag: 0,
        born_timestamp: 5,
        born_host: ([127, 0, 0, 1], 5555).into(),
        reconsume_times: 0,
        prepared_transaction_offset: 0,
        key_places: None,
    }
}

/// Removes the oldest segments of a master but for about `bytes_max`.
pub async fn retain(shard: &Shard<SimEnv>, bytes_max: u64) {
    for log in shard.logs() {
        let rules = RetentionRules {
            bytes_max: Some(bytes_max),
            ..RetentionRules::default()
        };
        // A log that fails meanwhile is found elsewhere.
        let _ = retention::clean(log, rules).await;
    }
}

/// What every pass of a master's retention begins with.
pub async fn finish_trims(env: SimEnv, shard: std::rc::Weak<Shard<SimEnv>>) {
    while let Some(shard) = shard.upgrade() {
        for log in shard.logs() {
            // A disk that fails has to be able to read again first.
            let _ = log.finish_trim().await;
        }
        drop(shard);
        env.sleep(RETENTION_PERIOD).await;
    }
}

/// An acknowledged message: where clients find it, and where its record lies.
#[derive(Clone, Copy, Debug)]
pub struct Stored {
    pub queue: QueueKey,
    pub offset: i64,
    pub at: PhysicalOffset,
}

/// Whether retention has removed a message here. The tables forget a segment before its file goes, and a crash in between leaves the
/// file, which may then stay until the next pass.
pub fn was_removed(shard: &Shard<SimEnv>, stored: &Stored) -> bool {
    let Some((id, position)) = stored.at.split() else {
        breach(format!("{stored:?} is no place"));
    };
    let log = shard.logs().find(|log| log.id() == id).unwrap();
    let start = log.start_position();
    let is_forgotten = stored.offset < log.bounds(stored.queue).min_offset;
    let is_next = position.0 < start.0 + log.options().segment_bytes;
    position < start || is_forgotten && is_next
}

/// The same, or is just doing so.
pub async fn is_removed(env: &SimEnv, shard: &Shard<SimEnv>, stored: &Stored) -> bool {
    let removed = async {
        while !was_removed(shard, stored) {
            env.sleep(Duration::from_millis(10)).await;
        }
    };
    within(env, Duration::from_secs(1), removed).await.is_some()
}

/// Whether a damaged place of a slave, whose first batch ends at `next`, goes on into the last sector of its log: none of the
/// master's batches in between is whole there.
async fn reaches_into_last_sector(
    master: &CommitLog<SimEnv>,
    slave: &CommitLog<SimEnv>,
    mut next: u64,
) -> bool {
    let settled_end = slave.durable_here().0 & !(SECTOR_BYTES as u64 - 1);
    while next <= settled_end {
        if slave.batches_from(next, 1).await.is_ok() {
            return false;
        }
        match master.batches_from(next, 1).await {
            Ok(batches) => next = batches.next,
            Err(_) => return false,
        }
    }
    true
}

/// What a slave has durably is the front of its master's log, byte for byte.
pub async fn compare_log(master: &CommitLog<SimEnv>, slave: &CommitLog<SimEnv>, who: &str) {
    let (log, end) = (master.id(), slave.durable_here().0);
    if end > master.durable_here().0 {
        breach(format!("log {log}: {who} has more than its master"));
    }
    let start = || master.start_position().max(slave.start_position()).0;
    let mut position = start();
    while position < end {
        let theirs = slave.batches_from(position, 1).await;
        let ours = master.batches_from(position, 1).await;
        if position < start() {
            // Retention goes on.
            position = start();
            continue;
        }
        let (theirs, ours) = match (theirs, ours) {
            (Ok(theirs), Ok(ours)) => (theirs, ours),
            // What reaches into the last sector is repaired when the log has left that.
            (Err(_), Ok(ours)) if reaches_into_last_sector(master, slave, ours.next).await => {
                return;
            }
            (theirs, ours) => breach(format!(
                "log {log}: at {position} of {:?} to {end}, {who}: {theirs:?}, master: {ours:?}",
                (slave.start_position(), master.start_position())
            )),
        };
        let whole = |slices: &[PageSlice]| {
            let parts: Vec<&[u8]> = slices.iter().map(|slice| &slice[..]).collect();
            parts.concat()
        };
        let is_same = theirs.next == ours.next && whole(&theirs.slices) == whole(&ours.slices);
        if !is_same {
            breach(format!(
                "log {log}: {who} has other bytes at {position} than its master"
            ));
        }
        position = theirs.next;
    }
}

/// Where the files of a log begin; none if there are no segments.
pub fn start_on_disk(world: &World, node: usize, directory: &Path) -> Option<u64> {
    let files = world.with_disk(node, |disk| disk.files());
    let names = files
        .iter()
        .filter(|(path, _)| path.parent() == Some(directory))
        .filter_map(|(path, _)| path.file_name()?.to_str());
    names.filter_map(ringmq::store::segment::start_of).min()
}

/// Where bits of a log may flip: in front of what its next start reads, so that only a search finds it.
pub fn old_part(world: &World, node: usize, directory: &Path) -> std::ops::Range<u64> {
    let files = world.with_disk(node, |disk| disk.files());
    let of_log = || {
        let mine = files
            .iter()
            .filter(|(path, _)| path.parent() == Some(directory));
        mine.filter_map(|(path, _)| path.file_name()?.to_str())
    };
    let start = start_on_disk(world, node, directory);
    let snapshots = of_log().filter_map(|name| name.strip_prefix("snapshot-")?.parse().ok());
    start.unwrap_or(0)..snapshots.max().unwrap_or(0)
}

/// Flips a bit of a log of a machine that does not run, and tells whether there was one: the file, the place in it, and which.
pub fn flip_bit(
    world: &World,
    node: usize,
    directory: &Path,
    segment_bytes: u64,
    position: u64,
) -> Option<(PathBuf, u64, u8)> {
    let segment = position / segment_bytes * segment_bytes;
    let path = directory.join(format!("{segment:020}.seg"));
    let (at, mask) = (position - segment, 1 << (world.random_u64() % 8));
    let is_there = world.with_disk(node, |disk| disk.flip_bits(&path, at, mask));
    is_there.then(|| {
        world.note("bits are flipped", position);
        (path, at, mask)
    })
}

/// What a disk has of a running log, segment by segment.
struct OnDisk<'a> {
    world: &'a World,
    node: usize,
    log: &'a CommitLog<SimEnv>,
    segment: (u64, Vec<u8>),
}

impl OnDisk<'_> {
    /// The whole batch at a position, and where the next one begins.
    fn batch(&mut self, position: u64) -> Option<(BatchHeader, u64)> {
        let options = self.log.options();
        let start = position / options.segment_bytes * options.segment_bytes;
        if self.segment.0 != start {
            let path = options.directory.join(format!("{start:020}.seg"));
            let bytes = self.world.with_disk(self.node, |disk| disk.content(&path));
            self.segment = (start, bytes.unwrap_or_default());
        }
        let bytes = self.segment.1.get((position - start) as usize..)?;
        let header = BatchHeader::read(bytes, Position(position), options.store_id)?;
        let next = match header.ends_segment() {
            true => start + options.segment_bytes,
            false => position + u64::from(header.length),
        };
        header.crc_is_right(bytes).then_some((header, next))
    }
}

/// The first place of a running log where its disk has no whole batch. What reaches into the sector at its end does not count: the next
/// commit writes that again, and until then nobody can repair it.
fn first_damage(world: &World, node: usize, log: &CommitLog<SimEnv>) -> Option<u64> {
    let end = log.durable_here().0 & !(SECTOR_BYTES as u64 - 1);
    let mut disk = OnDisk {
        world,
        node,
        log,
        segment: (u64::MAX, Vec::new()),
    };
    let mut position = log.start_position().0;
    let mut previous_crc = None;
    while position < end {
        let found = disk.batch(position);
        let whole =
            found.filter(|(header, _)| previous_crc.is_none_or(|crc| crc == header.previous_crc));
        let Some((header, next)) = whole else {
            let mut behind = (position + 8..=end).step_by(8);
            return behind
                .any(|at| disk.batch(at).is_some())
                .then_some(position);
        };
        previous_crc = Some(header.crc);
        position = next;
    }
    None
}

/// Waits until every log is whole on the disk of its machine, but for what `is_elsewhere` (log, position) says that nobody else has.
pub async fn until_whole(
    world: &World,
    node: usize,
    shard: &Shard<SimEnv>,
    is_elsewhere: impl Fn(LogId, u64) -> bool,
) -> Result<(), String> {
    let until_ns = world.now_ns() + WHOLE_WITHIN.as_nanos() as u64;
    loop {
        let damaged: Vec<(LogId, u64)> = shard
            .logs()
            .filter_map(|log| Some((log.id(), first_damage(world, node, log)?)))
            .filter(|(log, position)| is_elsewhere(*log, *position))
            .collect();
        if damaged.is_empty() {
            return Ok(());
        }
        if world.now_ns() > until_ns {
            let figures: Vec<_> = shard.logs().map(|log| log.scrub_figures()).collect();
            return Err(format!(
                "machine {node} is not whole within {WHOLE_WITHIN:?}: (log, position) {damaged:?}, {figures:?}"
            ));
        }
        world.sleep(Duration::from_millis(50)).await;
    }
}

/// The directories of a store's logs.
pub fn log_directories(root: &Path) -> impl Iterator<Item = (LogId, PathBuf)> {
    (0..LOGS).map(|log| (log, log_directory(root, log)))
}
