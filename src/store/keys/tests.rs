//! The index of a real log in the simulated world against a search through all records, whatever happens in between.
#![allow(clippy::unwrap_used)] // A test that meets an error it did not plan for is to fail.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use crate::base::offset::Position;
use crate::io::env::Env;
use crate::io::sim::{Crash, SimEnv, SimOptions, SimWorld};
use crate::store::keys::entry::{self, KeyKind};
use crate::store::log_reader::CHUNK_BYTES;
use crate::store::retention::{RetentionRules, clean};
use crate::store::testing::{self, Quiet, small_log};
use crate::store::types::{NewMessage, QueueKey};
use crate::store::{CommitLog, LogOptions};
use crate::wire::properties::{self, name};
use crate::wire::record::RecordView;

const SEGMENT_BYTES: u64 = CHUNK_BYTES;
const TOPIC: &str = "T";
const KEYS: u64 = 12;
const QUEUE: QueueKey = QueueKey {
    topic_id: 1,
    queue_id: 0,
};

type Log = Rc<CommitLog<SimEnv>>;

async fn open(env: &SimEnv, tail_entries: usize, sync_flush: bool) -> Log {
    let directory = PathBuf::from("/data/log");
    env.create_dir(&directory).await.unwrap();
    env.sync_dir(Path::new("/")).await.unwrap();
    env.sync_dir(Path::new("/data")).await.unwrap();
    let options = LogOptions {
        flush_each_write: sync_flush,
        key_tail_entries: tail_entries,
        ..small_log(&directory, SEGMENT_BYTES)
    };
    let log = CommitLog::open(env.clone(), options).await.unwrap();
    env.sync_dir(&directory).await.unwrap();
    log.start(Rc::new(Quiet));
    log
}

fn key(number: u64) -> String {
    format!("key-{number}")
}

fn message(env: &SimEnv) -> NewMessage {
    let mut properties = String::from("TAGS\x01a\x02");
    let keys = env.random_u64() % 4;
    if keys > 0 {
        let keys: Vec<String> = (0..keys).map(|_| key(env.random_u64() % KEYS)).collect();
        properties += &format!("KEYS\x01{}\x02", keys.join(" "));
    }
    if !env.random_u64().is_multiple_of(3) {
        properties += &format!("UNIQ_KEY\x01{}", key(env.random_u64() % KEYS));
    }
    NewMessage {
        properties: properties.into(),
        tags_code: 97,
        ..testing::message(QUEUE, TOPIC, vec![7; (env.random_u64() % 2_000) as usize])
    }
}

/// Every key of every visible record, by reading them all, the newest first.
async fn search_all(log: &Log) -> BTreeMap<(bool, String), Vec<(u64, u32)>> {
    let mut found: BTreeMap<(bool, String), Vec<(u64, u32)>> = BTreeMap::new();
    let bounds = log.bounds(QUEUE);
    for offset in (bounds.min_offset..bounds.max_offset).rev() {
        let entry = log.entry(QUEUE, offset).await.unwrap().unwrap();
        let bytes = log
            .reader()
            .read_whole(entry.position, entry.size as usize)
            .await
            .unwrap();
        let record = RecordView::parse(&bytes).unwrap();
        let place = (entry.position, (record.store_timestamp() / 1_000) as u32);
        let mut put = |unique: bool, key: &str| {
            let places = found.entry((unique, key.to_owned())).or_default();
            if places.last() != Some(&place) {
                places.push(place);
            }
        };
        if let Some(keys) = properties::get(record.properties(), name::KEYS) {
            keys.split(' ').for_each(|key| put(false, key));
        }
        if let Some(key) = properties::get(record.properties(), name::UNIQUE_KEY) {
            put(true, key);
        }
    }
    found
}

/// Compares the index with the search, for all keys. The log is quiet.
async fn check(seed: u64, env: &SimEnv, log: &Log) -> usize {
    let index = log.keys();
    let mut tries = 0;
    while index.gap_bytes() > 0 {
        tries += 1;
        assert!(tries < 10_000, "seed {seed}: a gap stays");
        env.sleep(Duration::from_millis(1)).await;
    }
    let all = search_all(log).await;
    let mut total = 0;
    for unique in [false, true] {
        for number in 0..=KEYS {
            let (key, kind) = (
                key(number),
                if unique {
                    KeyKind::Unique
                } else {
                    KeyKind::Key
                },
            );
            let hash = entry::hash_of(TOPIC, kind, &key);
            let nothing = Vec::new();
            let right = all.get(&(unique, key)).unwrap_or(&nothing);
            let positions = |places: &[(u64, u32)]| -> Vec<u64> {
                places.iter().map(|(position, _)| *position).collect()
            };
            let mut found = index.find(hash, 0..=u32::MAX, 100_000).await.unwrap();
            // A message that has a key twice is named twice.
            found.dedup();
            assert_eq!(found, positions(right), "seed {seed} {kind:?} {number}");
            let few = index.find(hash, 0..=u32::MAX, 3).await.unwrap();
            assert!(few.len() <= 3 && few.iter().all(|place| found.contains(place)));
            assert_eq!(few.first(), found.first(), "seed {seed}");
            if let Some((_, middle)) = right.get(right.len() / 2) {
                let newer = right.iter().filter(|(_, seconds)| seconds >= middle);
                let newer: Vec<(u64, u32)> = newer.copied().collect();
                let mut found = index.find(hash, *middle..=u32::MAX, 100_000).await.unwrap();
                found.dedup();
                assert_eq!(found, positions(&newer), "seed {seed}");
            }
            total += right.len();
        }
    }
    total
}

async fn fill(env: &SimEnv, log: &Log, messages: u64) {
    let mut last = Position::default();
    for _ in 0..messages {
        let batch: Vec<NewMessage> = (0..1 + env.random_u64() % 3)
            .map(|_| message(env))
            .collect();
        // No space yet, or too much under way: a client would send again.
        if let Ok((_, position)) = log.append(&batch) {
            last = position;
        }
        env.sleep(Duration::from_micros(env.random_u64() % 40_000))
            .await;
    }
    while log.durable() <= last {
        env.sleep(Duration::from_millis(1)).await;
    }
}

fn files_named(world: &SimWorld, end: &str) -> Vec<(PathBuf, u64)> {
    let files = world.with_disk(0, |disk| disk.files());
    let is_named = |path: &Path| path.extension().is_some_and(|it| it == end);
    files
        .into_iter()
        .filter(|(path, _)| is_named(path))
        .collect()
}

fn key_files(world: &SimWorld) -> Vec<(PathBuf, u64)> {
    files_named(world, "keys")
}

#[test]
fn the_index_is_what_a_search_through_the_log_finds_after_crashes_damage_and_retention() {
    let seeds = match std::env::var("RINGMQ_SEED") {
        Ok(seed) => {
            let seed = seed.parse().unwrap();
            seed..seed + 1
        }
        Err(_) => {
            let count = std::env::var("RINGMQ_SIM_SEEDS").map(|count| count.parse().unwrap());
            0..count.unwrap_or(150)
        }
    };
    let (mut compared, mut damaged, mut merged, mut written_over) = (0, 0, 0, 0);
    for seed in seeds {
        let world = SimWorld::new(seed, SimOptions::default());
        let mut env = world.env();
        let tail_entries = [2, 8, 64][(seed % 3) as usize];
        let sync_flush = !seed.is_multiple_of(4);
        for life in 0..4 {
            let log = world.block_on(open(&env, tail_entries, sync_flush));
            let spare_before = files_named(&world, "spare");
            if life > 0 {
                compared += world.block_on(check(seed, &env, &log));
            }
            world.block_on(fill(&env, &log, 20 + world.random_u64() % 60));
            compared += world.block_on(check(seed, &env, &log));
            if world.random_u64().is_multiple_of(2) {
                let rules = RetentionRules {
                    older_than_ms: None,
                    bytes_max: Some(2 * SEGMENT_BYTES),
                    ..RetentionRules::default()
                };
                world.block_on(clean(&log, rules)).unwrap();
                compared += world.block_on(check(seed, &env, &log));
            }
            let parts = log.keys().parts.borrow();
            merged += parts.runs().filter(|run| parts.level(run) > 0).count();
            drop(parts);
            let spare = files_named(&world, "spare");
            written_over += spare_before
                .iter()
                .filter(|one| !spare.contains(one))
                .count();
            let files = key_files(&world);
            if world.random_u64().is_multiple_of(2) && !files.is_empty() {
                // While it serves: what it has in memory is good, what it reads is not.
                let (path, bytes) = &files[world.random_u64() as usize % files.len()];
                let at = world.random_u64() % bytes;
                world.with_disk(0, |disk| disk.flip_bits(path, at, 4));
                damaged += 1;
                compared += world.block_on(check(seed, &env, &log));
            }
            match world.random_u64() % 3 {
                0 => world.block_on(log.stop()).unwrap(),
                1 => {
                    // Under way: some of it is there afterwards.
                    let (env_, log_) = (env.clone(), log.clone());
                    let going = Rc::new(Cell::new(true));
                    world.spawn(async move {
                        while going.get() {
                            fill(&env_, &log_, 10).await;
                        }
                    });
                    world.run_for(Duration::from_millis(world.random_u64() % 300));
                }
                _ => {}
            }
            drop(log);
            let crash = match world.random_u64() % 2 {
                0 => Crash::Process,
                _ => Crash::Power,
            };
            world.crash(0, crash);
            env = world.restart(0);
            let files = key_files(&world);
            if world.random_u64().is_multiple_of(3) && !files.is_empty() {
                let (path, _) = &files[world.random_u64() as usize % files.len()];
                world.block_on(env.remove(path)).unwrap();
                damaged += 1;
            }
        }
    }
    assert!(compared > 50_000, "{compared} places were compared");
    assert!(damaged > 100, "{damaged} files were damaged");
    assert!(merged > 20, "{merged} files were merged ones");
    assert!(written_over > 20, "{written_over} files were written over");
}

#[test]
fn what_is_read_of_a_file_that_was_given_away_meanwhile_is_not_taken() {
    let world = SimWorld::new(1, SimOptions::default());
    let env = world.env();
    world.block_on(async {
        let log = open(&env, 8, true).await;
        fill(&env, &log, 40).await;
        let index = log.keys();
        let run = loop {
            let run = index.parts.borrow().runs().next().cloned();
            match run {
                Some(run) if run.entries > 0 => break run,
                _ => env.sleep(Duration::from_millis(1)).await,
            }
        };
        index.load(&run).await.unwrap();
        index.block(&run, 0).await.unwrap();
        index.loaded.borrow_mut().clear();
        index.blocks.borrow_mut().clear();
        // Its file is there, whole, and may be another run's by now.
        index.parts.borrow_mut().on_damaged(run.id);
        let kinds = (
            index.load(&run).await.err(),
            index.block(&run, 0).await.err(),
        );
        let kind = |error: Option<std::io::Error>| error.map(|error| error.kind());
        let gone = Some(std::io::ErrorKind::NotFound);
        assert_eq!((kind(kinds.0), kind(kinds.1)), (gone, gone));
        log.stop().await.unwrap();
    });
}
