//! One core over a simulated disk, its topic and its messages, for the tests of what the shard does with them.
#![allow(clippy::unwrap_used)] // A test that meets an error it did not plan for is to fail.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::io::env::Env;
use crate::io::sim::SimEnv;
use crate::shard::message::{NewMessage, ShardReply, ShardRequest};
use crate::shard::meta::{MetaCommand, Topic};
use crate::shard::replication::MasterRules;
use crate::shard::{Role, Shard, ShardHandle, ShardOptions};
use crate::store::manifest::Manifest;
use crate::store::scrub::ScrubOptions;
use crate::store::{self, LogOptions};
use crate::wire::remoting::body::TopicConfig;

/// The topic of these tests.
pub const TOPIC: &str = "T";

/// In what the stores of the tests differ.
pub struct Store {
    pub logs: u8,
    pub segment_bytes: u64,
    pub key_tail_entries: usize,
    pub snapshot_bytes: u64,
}

/// Opens the store below `/data`, or makes it, and waits until the core serves.
pub async fn start(env: &SimEnv, store: Store) -> Rc<Shard<SimEnv>> {
    let directory = PathBuf::from("/data");
    let manifest = Manifest::open_or_create(env, &directory, store.logs, store.segment_bytes)
        .await
        .unwrap();
    env.sync_dir(Path::new("/")).await.unwrap();
    let options = ShardOptions {
        index: 0,
        count: 1,
        logs: manifest.logs,
        directory: directory.clone(),
        log: LogOptions {
            log: 0,
            directory: directory.clone(),
            store_id: manifest.store_id,
            segment_bytes: manifest.segment_bytes,
            flush_each_write: true,
            flush_interval: Duration::from_millis(50),
            tail_cache_bytes: 32 << 10,
            read_cache_bytes: 512 << 10,
            index_cache_bytes: 64 << 10,
            key_tail_entries: store.key_tail_entries,
            snapshot_bytes: store.snapshot_bytes,
            scrub: ScrubOptions::OFF,
            store_host: ([127, 0, 0, 1], 10911).into(),
            replica: false,
            elected: None,
        },
        role: Role::Master(MasterRules::alone()),
    };
    let shard = Shard::open(env.clone(), options).await.unwrap();
    for log in shard.logs() {
        env.sync_dir(&log.options().directory).await.unwrap();
    }
    env.sync_dir(&directory).await.unwrap();
    shard.start();
    shard.ready().await;
    shard
}

/// The topic, made if it is not there.
pub async fn topic(core: &ShardHandle, queues: u32) -> Arc<Topic> {
    let config = TopicConfig {
        topic_name: TOPIC.into(),
        read_queue_nums: queues,
        write_queue_nums: queues,
        ..TopicConfig::default()
    };
    let command = MetaCommand::CreateTopicIfAbsent(config);
    let reply = core.ask(0, ShardRequest::Meta(Box::new(command))).await;
    assert!(matches!(reply, ShardReply::Done));
    core.meta().topics[TOPIC].clone()
}

/// A message with a tag.
pub fn message(topic: &Topic, queue_id: u32, body: impl Into<Bytes>) -> NewMessage {
    NewMessage {
        properties: b"TAGS\x01a\x02".as_slice().into(),
        tags_code: 97,
        flag: 3,
        reconsume_times: 1,
        ..store::testing::message(ShardHandle::key(topic, queue_id), &topic.name, body)
    }
}
