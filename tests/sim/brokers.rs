//! What the simulations of several brokers share: what their stores are made of, what is sent, a master's port, and logs that have
//! to be copies of each other.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ringmq::base::offset::PhysicalOffset;
use ringmq::ha::handshake::StreamError;
use ringmq::ha::master::{StreamTimes, let_in, serve};
use ringmq::io::env::Env;
use ringmq::io::sim::{SimEnv, SimStream};
use ringmq::shard::message::{NewMessage, QueueKey, ShardReply, ShardRequest};
use ringmq::shard::meta::MetaCommand;
use ringmq::shard::{Role, Shard, ShardHandle, ShardOptions};
use ringmq::store::manifest::{FORMAT, Manifest};
use ringmq::store::retention::{self, RetentionRules};
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

/// What a slave has durably is the front of its master's log, byte for byte.
pub async fn compare_log(master: &CommitLog<SimEnv>, slave: &CommitLog<SimEnv>, who: &str) {
    let (log, end) = (master.id(), slave.durable_here().0);
    if end > master.durable_here().0 {
        breach(format!("log {log}: {who} has more than its master"));
    }
    let mut position = master.start_position().max(slave.start_position()).0;
    while position < end {
        let theirs = slave.batches_from(position, 1).await.unwrap();
        let ours = master.batches_from(position, 1).await.unwrap();
        let is_same = theirs.next == ours.next
            && theirs
                .slices
                .iter()
                .flat_map(|slice| slice.iter())
                .eq(ours.slices.iter().flat_map(|slice| slice.iter()));
        if !is_same {
            breach(format!(
                "log {log}: {who} has other bytes at {position} than its master"
            ));
        }
        position = theirs.next;
    }
}
