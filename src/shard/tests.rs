//! One core over one simulated disk: offsets and queries by key as the broker asks for them.
#![allow(clippy::unwrap_used)] // A test that meets an error it did not plan for is to fail.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use crate::io::env::Env;
use crate::io::sim::{Crash, SimEnv, SimOptions, SimWorld};
use crate::shard::message::{
    KeyKind, KeyQuery, MessageFilter, NewMessage, NewRecords, Pull, QueueKey, RecordMark,
    ShardReply, ShardRequest,
};
use crate::shard::meta::{MetaCommand, Topic};
use crate::shard::testing::{self, Store};
use crate::shard::{Shard, ShardHandle};
use crate::store;
use crate::store::keys::entry::MessageKeys;
use crate::wire::record::{RecordFields, RecordView, SYS_FLAG_MULTI_TAGS};
use crate::wire::remoting::body::TopicConfig;

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
        properties: format!("KEYS\x01{keys}\x02UNIQ_KEY\x01{unique}\x02").into(),
        ..store::testing::message(
            ShardHandle::key(topic, queue_id),
            &topic.name,
            unique.as_bytes().to_vec(),
        )
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

/// Whole records of one queue, one for each of `unique`, with nothing in what the broker fills in.
fn whole_records(topic: &Topic, queue_id: u32, unique: &[String]) -> NewRecords {
    let nowhere = ([0, 0, 0, 0], 0).into();
    let (mut records, mut marks, mut body_bytes) = (Vec::new(), SmallVec::new(), 0);
    for name in unique {
        let properties = format!("KEYS\x01whole\x02UNIQ_KEY\x01{name}\x02");
        let fields = RecordFields {
            topic: &topic.name,
            body: name.as_bytes(),
            properties: properties.as_bytes(),
            queue_id: queue_id as i32,
            flag: 7,
            queue_offset: -1,
            physical_offset: -1,
            sys_flag: 0,
            born_timestamp: 5,
            born_host: nowhere,
            store_timestamp: -1,
            store_host: nowhere,
            reconsume_times: 0,
            prepared_transaction_offset: 9,
        };
        let at = records.len();
        records.resize(at + fields.encoded_len(), 0);
        fields.encode_into(&mut records[at..]);
        let view = RecordView::parse(&records[at..]).unwrap();
        marks.push(RecordMark::new(
            &view,
            11,
            MessageKeys::of(view.properties()),
        ));
        body_bytes += name.len() as u64;
    }
    NewRecords {
        queue: ShardHandle::key(topic, queue_id),
        topic: topic.name.clone(),
        records: records.into(),
        marks,
        sys_flag: SYS_FLAG_MULTI_TAGS,
        born_host: ([127, 0, 0, 1], 5555).into(),
        body_bytes,
    }
}

#[test]
fn whole_records_are_stored_among_others_as_they_came_and_survive_a_loss_of_power() {
    let world = SimWorld::new(4, SimOptions::default());
    let env = world.env();
    let check = async |core: &ShardHandle, topic: &Topic| {
        let pull = Pull {
            queue: ShardHandle::key(topic, 1),
            offset: 0,
            messages_max: 32,
            bytes_max: 1 << 20,
            filter: MessageFilter::All,
            suspend_ms: 0,
            commit: None,
        };
        let ShardReply::Pulled(pulled) = core.ask(0, ShardRequest::Pull(Box::new(pull))).await
        else {
            panic!("it is refused")
        };
        let bytes = pulled.records.into_bytes();
        let records: Vec<RecordView<'_>> = crate::wire::record::records(&bytes)
            .map(|record| record.unwrap())
            .collect();
        let bodies: Vec<&[u8]> = records.iter().map(|record| record.body()).collect();
        let expected = ["before", "w0", "w1", "w2", "behind"];
        assert_eq!(bodies, expected.map(str::as_bytes));
        for (number, record) in records.iter().enumerate() {
            record.check_body().unwrap();
            assert_eq!(record.queue_offset(), number as i64);
            assert_eq!(record.born_host(), ([127, 0, 0, 1], 5555).into());
            assert_eq!(record.store_host(), records[0].store_host());
            assert!(record.store_timestamp() > 0 && record.prepared_transaction_offset() == 0);
        }
        for pair in records[1..4].windows(2) {
            let end = pair[0].physical_offset() + pair[0].total_bytes() as i64;
            assert_eq!(pair[1].physical_offset(), end, "one behind the other");
            assert_eq!(
                (pair[1].flag(), pair[1].sys_flag()),
                (7, SYS_FLAG_MULTI_TAGS)
            );
        }
        let whole = found(core, query(topic, "whole", &[KeyKind::Key])).await;
        assert_eq!(whole, ["w2", "w1", "w0"]);
    };
    world.block_on(async {
        let shard = start(&env).await;
        let core = shard.handle();
        let topic = topic(&core).await;
        send(&core, &topic, 1, "k", "before").await;
        let new = whole_records(&topic, 1, &["w0", "w1", "w2"].map(String::from));
        let reply = core
            .ask(0, ShardRequest::AppendRecords(Box::new(new)))
            .await;
        let ShardReply::Appended(appended) = reply else {
            panic!("{reply:?}")
        };
        assert_eq!(appended.queue_offset, 1);
        assert_eq!(appended.physical_offsets.len(), 1);
        send(&core, &topic, 1, "k", "behind").await;
        check(&core, &topic).await;
    });
    world.crash(0, Crash::Power);
    let env = world.restart(0);
    world.block_on(async {
        let shard = start(&env).await;
        let core = shard.handle();
        let topic = core.meta().topics["T"].clone();
        check(&core, &topic).await;
    });
}

#[test]
fn whole_records_wait_in_line_for_space_like_messages_do() {
    let world = SimWorld::new(5, SimOptions::default());
    let env = world.env();
    world.block_on(async {
        let shard = start(&env).await;
        let core = shard.handle();
        let topic = topic(&core).await;
        // More than the space that is there at the start, all at once: some have to wait for the disk.
        let names: Vec<String> = (0..100)
            .map(|number| format!("{number}").repeat(1_000))
            .collect();
        let answers = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
        for _ in 0..40 {
            let new = whole_records(&topic, 1, &names);
            let answers = answers.clone();
            core.call(
                0,
                ShardRequest::AppendRecords(Box::new(new)),
                move |reply| {
                    let ShardReply::Appended(appended) = reply else {
                        panic!("{reply:?}")
                    };
                    answers.borrow_mut().push(appended.queue_offset);
                },
            );
        }
        while answers.borrow().len() < 40 {
            env.sleep(Duration::from_millis(1)).await;
        }
        let expected: Vec<i64> = (0..40).map(|number| number * 100).collect();
        assert_eq!(*answers.borrow(), expected);
    });
}

#[test]
fn offsets_and_settings_wait_in_line_for_space_like_messages_do() {
    let world = SimWorld::new(6, SimOptions::default());
    let env = world.env();
    let group: Arc<str> = "g".into();
    world.block_on(async {
        let shard = start(&env).await;
        let core = shard.handle();
        let topic = topic(&core).await;
        // Of the log that has the settings, too.
        let queue_id = topic.logs.iter().position(|&log| log == 0).unwrap() as u32;
        let queue = ShardHandle::key(&topic, queue_id);
        let names: Vec<String> = (0..100)
            .map(|number| format!("{number}").repeat(1_000))
            .collect();
        let answers = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
        let send = |name: &'static str| {
            let (new, answers) = (whole_records(&topic, queue_id, &names), answers.clone());
            let request = ShardRequest::AppendRecords(Box::new(new));
            core.call(0, request, move |reply| {
                assert!(matches!(reply, ShardReply::Appended(_)), "{reply:?}");
                answers.borrow_mut().push(name);
            });
        };
        // More than the space that is there at the start, all at once: some have to wait for the disk.
        (0..40).for_each(|_| send("before"));
        assert!(!shard.is_first_in_line(&shard.logs[&0]));
        for (name, offset) in [("5", 5), ("3", 3), ("9", 9)] {
            let answers = answers.clone();
            let group = group.clone();
            let request = ShardRequest::CommitOffset {
                group,
                queue,
                offset,
            };
            core.call(0, request, move |reply| {
                assert!(matches!(reply, ShardReply::Done), "{reply:?}");
                answers.borrow_mut().push(name);
            });
        }
        // Whoever commits an offset sees it.
        let request = ShardRequest::QueryOffset {
            group: group.clone(),
            queue,
        };
        let told = answers.clone();
        core.call(0, request, move |reply| {
            assert!(matches!(reply, ShardReply::Offset(Some(9))), "{reply:?}");
            told.borrow_mut().push("asked");
        });
        let config = TopicConfig {
            topic_name: "another".into(),
            ..TopicConfig::default()
        };
        let request = ShardRequest::Meta(Box::new(MetaCommand::PutTopic(config)));
        let told = answers.clone();
        core.call(0, request, move |reply| {
            assert!(matches!(reply, ShardReply::Done), "{reply:?}");
            told.borrow_mut().push("topic");
        });
        // The command of the topic is taken up by a task: it joins the line a little later than what came with it.
        env.sleep(Duration::from_nanos(1)).await;
        (0..40).for_each(|_| send("behind"));
        while answers.borrow().len() < 85 {
            env.sleep(Duration::from_millis(1)).await;
        }
        let answers = answers.borrow();
        assert_eq!(answers[40..44], ["5", "3", "9", "asked"]);
        assert!(answers[..45].contains(&"topic"), "{answers:?}");
    });
    world.crash(0, Crash::Power);
    let env = world.restart(0);
    world.block_on(async {
        let shard = start(&env).await;
        let core = shard.handle();
        let topic = core.meta().topics["T"].clone();
        assert!(core.meta().topics.contains_key("another"));
        let queue_id = topic.logs.iter().position(|&log| log == 0).unwrap() as u32;
        let queue = ShardHandle::key(&topic, queue_id);
        let reply = core
            .ask(0, ShardRequest::QueryOffset { group, queue })
            .await;
        assert!(matches!(reply, ShardReply::Offset(Some(9))), "{reply:?}");
    });
}

#[test]
fn whoever_asks_how_far_all_groups_are_does_not_keep_others_waiting() {
    const QUEUES: u32 = 2_000;
    const GROUPS: u32 = 3;
    let world = SimWorld::new(7, SimOptions::default());
    let env = world.env();
    world.block_on(async {
        let shard = start(&env).await;
        let core = shard.handle();
        let topic = testing::topic(&core, QUEUES).await;
        send(&core, &topic, 7, "k", "u").await;
        for group in 0..GROUPS {
            for queue_id in (0..QUEUES).rev() {
                let request = ShardRequest::CommitOffset {
                    group: format!("g{group}").into(),
                    queue: ShardHandle::key(&topic, queue_id),
                    offset: 0,
                };
                core.call(0, request, |_| {});
            }
        }
        // Another one of a queue before it is durable: the later one counts.
        let queue = ShardHandle::key(&topic, 9);
        let group: Arc<str> = "g1".into();
        let request = ShardRequest::CommitOffset {
            group: group.clone(),
            queue,
            offset: 1,
        };
        core.call(0, request, |_| {});
        let of_group = ShardRequest::Offsets {
            group: Some(group),
            topic_id: Some(topic.id),
        };
        let all = ShardRequest::Offsets {
            group: None,
            topic_id: None,
        };
        for (request, groups) in [(of_group, 1..2), (all, 0..GROUPS)] {
            let ShardReply::Offsets(found) = core.ask(0, request).await else {
                panic!("no offsets");
            };
            let expected: Vec<_> = groups
                .flat_map(|group| (0..QUEUES).map(move |queue_id| (group, queue_id)))
                .map(|(group, queue_id)| {
                    let offset = i64::from((group, queue_id) == (1, 9));
                    (format!("g{group}"), queue_id, offset, offset)
                })
                .collect();
            let found: Vec<_> = found
                .iter()
                .map(|o| (o.group.to_string(), o.queue.queue_id, o.offset, o.taken))
                .collect();
            assert_eq!(found, expected);
        }
        let answer = std::rc::Rc::new(std::cell::RefCell::new(None));
        let slot = answer.clone();
        core.call(0, ShardRequest::Figures, move |reply| {
            *slot.borrow_mut() = Some(reply);
        });
        let mut turns = 0;
        while answer.borrow().is_none() {
            futures_lite::future::yield_now().await;
            turns += 1;
        }
        let Some(ShardReply::Figures(figures)) = answer.take() else {
            panic!("no figures");
        };
        let behind: Vec<u64> = figures.lags.iter().map(|lag| lag.behind).collect();
        assert_eq!(behind, [1; GROUPS as usize]);
        assert!(turns > QUEUES * GROUPS / 256, "only {turns} turns between");
    });
}
