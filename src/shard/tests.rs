//! One core over one simulated disk: offsets and queries by key as the broker asks for them.
#![allow(clippy::unwrap_used)] // A test that meets an error it did not plan for is to fail.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::io::env::Env;
use crate::io::sim::{Crash, SimEnv, SimOptions, SimWorld};
use crate::shard::message::{KeyKind, KeyQuery, NewMessage, QueueKey, ShardReply, ShardRequest};
use crate::shard::meta::{MetaCommand, Topic};
use crate::shard::testing::{self, Store};
use crate::shard::{Shard, ShardHandle};
use crate::wire::record::RecordView;

const SEGMENT_BYTES: u64 = 1 << 20;

async fn start(env: &SimEnv) -> Rc<Shard<SimEnv>> {
    let store = Store {
        logs: 2,
        segment_bytes: SEGMENT_BYTES,
        key_tail_entries: 4,
        snapshot_bytes: SEGMENT_BYTES,
    };
    testing::start(env, store).await
}

async fn topic(core: &ShardHandle) -> Arc<Topic> {
    testing::topic(core, 4).await
}

async fn send(core: &ShardHandle, topic: &Topic, queue_id: u32, keys: &str, unique: &str) {
    let message = NewMessage {
        queue: ShardHandle::key(topic, queue_id),
        topic: topic.name.clone(),
        body: unique.as_bytes().to_vec().into(),
        properties: format!("KEYS\x01{keys}\x02UNIQ_KEY\x01{unique}\x02").into(),
        tags_code: 0,
        flag: 0,
        sys_flag: 0,
        born_timestamp: 5,
        born_host: ([127, 0, 0, 1], 5555).into(),
        reconsume_times: 0,
        prepared_transaction_offset: 0,
    };
    let reply = core.ask(0, ShardRequest::Append(Box::new([message]))).await;
    assert!(matches!(reply, ShardReply::Appended(_)));
}

fn query(topic: &Topic, key: &str, kinds: &[KeyKind]) -> KeyQuery {
    KeyQuery {
        topic: topic.name.clone(),
        topic_id: topic.id,
        key: Arc::from(key),
        kinds: kinds.to_vec(),
        begin_ms: 0,
        end_ms: i64::MAX,
        messages_max: 10,
    }
}

/// Bodies of what is found.
async fn found(core: &ShardHandle, query: KeyQuery) -> Vec<String> {
    let request = ShardRequest::FindByKey(Box::new(query));
    let ShardReply::Found(finds) = core.ask(0, request).await else {
        panic!("it is refused")
    };
    let body = |record: crate::io::body::Body| {
        let record = record.into_bytes();
        let view = RecordView::parse(&record).unwrap();
        String::from_utf8(view.body().to_vec()).unwrap()
    };
    finds
        .found
        .into_iter()
        .map(|(_, record)| body(record))
        .collect()
}

#[test]
fn messages_of_all_logs_are_found_by_key_the_newest_first_also_after_a_crash() {
    use KeyKind::{Key, Unique};
    let world = SimWorld::new(1, SimOptions::default());
    let env = world.env();
    let check = async |core: &ShardHandle, topic: &Topic, middle_ms: i64| {
        let all = found(core, query(topic, "shared", &[Key])).await;
        assert_eq!(all, ["m6", "m5", "m4", "m3", "m2", "m1", "m0"]);
        let few = KeyQuery {
            messages_max: 2,
            ..query(topic, "shared", &[Key])
        };
        assert_eq!(found(core, few).await, ["m6", "m5"]);
        let early = KeyQuery {
            end_ms: middle_ms,
            ..query(topic, "shared", &[Key])
        };
        assert_eq!(found(core, early).await, ["m2", "m1", "m0"]);
        let late = KeyQuery {
            begin_ms: middle_ms + 1,
            ..query(topic, "shared", &[Key])
        };
        assert_eq!(found(core, late).await, ["m6", "m5", "m4", "m3"]);
        assert_eq!(found(core, query(topic, "k3", &[Key])).await, ["m3"]);
        assert_eq!(found(core, query(topic, "m3", &[Unique])).await, ["m3"]);
        assert_eq!(found(core, query(topic, "m3", &[Key])).await.len(), 0);
        assert_eq!(
            found(core, query(topic, "m3", &[Key, Unique])).await,
            ["m3"]
        );
        assert_eq!(found(core, query(topic, "share", &[Key])).await.len(), 0);
    };
    let middle_ms = world.block_on(async {
        let shard = start(&env).await;
        let core = shard.handle();
        let topic = topic(&core).await;
        let mut middle_ms = 0;
        for number in 0..7 {
            send(
                &core,
                &topic,
                number % 4,
                &format!("k{number} shared"),
                &format!("m{number}"),
            )
            .await;
            if number == 2 {
                middle_ms = env.now_ms() as i64;
            }
            env.sleep(Duration::from_millis(2)).await;
        }
        check(&core, &topic, middle_ms).await;
        middle_ms
    });
    world.crash(0, Crash::Power);
    let env = world.restart(0);
    world.block_on(async {
        let shard = start(&env).await;
        let core = shard.handle();
        let topic = core.meta().topics["T"].clone();
        check(&core, &topic, middle_ms).await;
    });
}

#[test]
fn a_topic_that_is_made_again_does_not_show_what_it_had_before() {
    let world = SimWorld::new(2, SimOptions::default());
    let env = world.env();
    world.block_on(async {
        let shard = start(&env).await;
        let core = shard.handle();
        let old = topic(&core).await;
        send(&core, &old, 0, "k", "old").await;
        let command = MetaCommand::DeleteTopic("T".into());
        core.ask(0, ShardRequest::Meta(Box::new(command))).await;
        let new = topic(&core).await;
        assert_eq!(
            found(&core, query(&new, "k", &[KeyKind::Key])).await.len(),
            0
        );
        send(&core, &new, 0, "k", "new").await;
        assert_eq!(
            found(&core, query(&new, "k", &[KeyKind::Key])).await,
            ["new"]
        );
    });
}

#[test]
fn an_offset_that_is_being_committed_is_seen_by_whoever_asks_next() {
    let world = SimWorld::new(3, SimOptions::default());
    let env = world.env();
    world.block_on(async {
        let shard = start(&env).await;
        let core = shard.handle();
        let topic = topic(&core).await;
        let queue: QueueKey = ShardHandle::key(&topic, 1);
        let group: Arc<str> = Arc::from("G");
        let commit = |offset| ShardRequest::CommitOffset {
            group: group.clone(),
            queue,
            offset,
        };
        let asked = async || {
            let group = group.clone();
            match core
                .ask(0, ShardRequest::QueryOffset { group, queue })
                .await
            {
                ShardReply::Offset(offset) => offset,
                other => panic!("{other:?}"),
            }
        };
        core.ask(0, commit(7)).await;
        // As a oneway request: nobody waits for its answer.
        core.call(0, commit(2), |_| {});
        assert_eq!(asked().await, Some(2));
        core.call(0, commit(3), |_| {});
        core.call(0, commit(4), |_| {});
        assert_eq!(asked().await, Some(4));
        env.sleep(Duration::from_secs(1)).await;
        assert_eq!(asked().await, Some(4));
        core.call(0, commit(5), |_| {});
        core.ask(
            0,
            ShardRequest::DropGroup {
                group: group.clone(),
            },
        )
        .await;
        assert_eq!(asked().await, None);
    });
}
