//! The file on a disk that loses, tears and reorders what was not flushed.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use super::*;
use crate::io::sim::{Crash, SimEnv, SimOptions, SimWorld};

const PATH: &str = "/data/namesrv/kvConfig.json";

/// Puts the numbers from `first` on, one after the other, and notes the last that is answered.
async fn put_on(store: KvStore<SimEnv>, env: SimEnv, first: u64, answered: Rc<Cell<u64>>) {
    for number in first.. {
        let done = answered.clone();
        // Long values make files of several sectors, which can be torn.
        let value = format!("{number} {}", "x".repeat((number % 7 * 900) as usize));
        store
            .put("NS", "number", &value, move |result| {
                result.unwrap();
                done.set(number);
            })
            .unwrap();
        // Some changes wait for their answer, some are together in one file.
        if !number.is_multiple_of(3) {
            while answered.get() < number {
                env.sleep(Duration::from_micros(50)).await;
            }
        }
    }
}

fn number(store: &KvStore<SimEnv>) -> u64 {
    store.get("NS", "number").map_or(0, |value| {
        let (number, padding) = value.split_once(' ').unwrap();
        let number: u64 = number.parse().unwrap();
        assert_eq!(padding.len() as u64, number % 7 * 900, "a whole value");
        number
    })
}

#[test]
fn a_crash_at_any_moment_leaves_a_whole_file_with_every_answered_change() {
    for seed in 0..150 {
        let world = SimWorld::new(seed, SimOptions::default());
        let mut env = world.env();
        let answered = Rc::new(Cell::new(0));
        for round in 0..4 {
            let load = KvStore::load(env.clone(), Path::new(PATH));
            let store = world.block_on(load).unwrap();
            let found = number(&store);
            assert!(
                found >= answered.get(),
                "seed {seed} round {round}: {found} is found, {} was answered",
                answered.get()
            );
            answered.set(found);
            env.spawn(put_on(store, env.clone(), found + 1, answered.clone()));
            world.run_for(Duration::from_micros(world.random_u64() % 20_000));
            let crash = match round % 2 {
                0 => Crash::Power,
                _ => Crash::Process,
            };
            world.crash(0, crash);
            env = world.restart(0);
        }
        assert!(answered.get() > 0 || seed > 0, "nothing was ever written");
    }
}

#[test]
fn a_failed_write_is_told_and_the_next_one_has_both_changes() {
    let mut options = SimOptions::default();
    options.disk.faults.writes_always_fail = true;
    let world = SimWorld::new(1, options);
    let env = world.env();
    let store = world
        .block_on(KvStore::load(env.clone(), Path::new(PATH)))
        .unwrap();
    let result = Rc::new(RefCell::new(None));
    let slot = result.clone();
    store
        .put("NS", "a", "1", move |done| {
            slot.replace(Some(done));
        })
        .unwrap();
    world.run_until(|| result.borrow().is_some()).unwrap();
    let error = result.take().unwrap().unwrap_err();
    assert!(
        error.contains(PATH) && error.contains("memory") || error.contains("until"),
        "{error}"
    );
    world.with_disk(0, |disk| disk.options.faults.writes_always_fail = false);
    let slot = result.clone();
    store
        .put("NS", "b", "2", move |done| {
            slot.replace(Some(done));
        })
        .unwrap();
    world.run_until(|| result.borrow().is_some()).unwrap();
    assert_eq!(result.take(), Some(Ok(())));
    world.crash(0, Crash::Power);
    let env = world.restart(0);
    let store = world.block_on(KvStore::load(env, Path::new(PATH))).unwrap();
    assert_eq!(
        (
            store.get("NS", "a").as_deref(),
            store.get("NS", "b").as_deref()
        ),
        (Some("1"), Some("2"))
    );
}
