//! What the simulated world claims, over many seeds: each "may" is shown to happen, each "never" not to.
#![allow(clippy::unwrap_used)] // A test that meets an error it did not plan for is to fail.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use crate::base::limits::SECTOR_BYTES;
use crate::io::aligned_buf::PageBuf;
use crate::io::env::{DiskFile, Env, OpenMode};
use crate::io::sim::{Crash, Errno, OpKind, SimEnv, SimFile, SimOptions, SimWorld, Stalled};

const SECTOR: u64 = SECTOR_BYTES as u64;
const PLAIN: OpenMode = OpenMode {
    create: true,
    flush_each_write: false,
};
const FLUSHED: OpenMode = OpenMode {
    create: true,
    flush_each_write: true,
};

fn world(seed: u64) -> SimWorld {
    SimWorld::new(seed, SimOptions::default())
}

fn sectors(count: usize, byte: u8) -> Rc<PageBuf> {
    Rc::new(PageBuf::from_heap(vec![byte; count * SECTOR_BYTES]))
}

/// A file whose name is durable.
async fn durable_file(env: &SimEnv, mode: OpenMode) -> SimFile {
    env.create_dir(Path::new("/d")).await.unwrap();
    env.sync_dir(Path::new("/")).await.unwrap();
    let file = env.open(Path::new("/d/f"), mode).await.unwrap();
    env.sync_dir(Path::new("/d")).await.unwrap();
    file
}

fn content(world: &SimWorld) -> Vec<u8> {
    world.with_disk(0, |disk| disk.content(Path::new("/d/f")).unwrap())
}

/// Contents of the file over many seeds after `prepare` and a crash.
fn outcomes<F: Future<Output = ()>>(
    seeds: u64,
    crash: Crash,
    prepare: impl Fn(SimEnv) -> F,
) -> BTreeSet<Vec<u8>> {
    (0..seeds)
        .map(|seed| {
            let world = world(seed);
            world.block_on(prepare(world.env()));
            world.crash(0, crash);
            world.restart(0);
            content(&world)
        })
        .collect()
}

#[test]
fn what_was_flushed_survives_a_loss_of_power() {
    for mode in [PLAIN, FLUSHED] {
        let seen = outcomes(200, Crash::Power, |env| async move {
            let file = durable_file(&env, mode).await;
            file.write_at(sectors(3, 1), 0).await.unwrap();
            file.write_at(sectors(1, 2), SECTOR).await.unwrap();
            if !mode.flush_each_write {
                file.sync().await.unwrap();
            }
        });
        let mut expected = vec![1; 3 * SECTOR_BYTES];
        expected[SECTOR_BYTES..2 * SECTOR_BYTES].fill(2);
        assert_eq!(seen, BTreeSet::from([expected]));
    }
}

#[test]
fn what_was_not_flushed_may_be_lost_kept_or_torn_at_512_bytes_by_a_loss_of_power() {
    let seen = outcomes(400, Crash::Power, |env| async move {
        let file = durable_file(&env, PLAIN).await;
        file.write_at(sectors(2, 1), 0).await.unwrap();
        file.sync().await.unwrap();
        file.write_at(sectors(2, 9), 0).await.unwrap();
    });
    assert!(seen.contains(&vec![1; 2 * SECTOR_BYTES]), "never lost");
    assert!(seen.contains(&vec![9; 2 * SECTOR_BYTES]), "never kept");
    let torn: Vec<_> = seen
        .iter()
        .filter(|content| content.contains(&1) && content.contains(&9))
        .collect();
    assert!(torn.len() > 50, "hardly ever torn: {}", torn.len());
    for content in seen {
        for piece in content.chunks(512) {
            assert!(piece.iter().all(|byte| *byte == piece[0]));
        }
    }
}

#[test]
fn writes_that_were_not_flushed_are_lost_independently_of_their_order() {
    let seen = outcomes(300, Crash::Power, |env| async move {
        let file = durable_file(&env, PLAIN).await;
        file.write_at(sectors(2, 1), 0).await.unwrap();
        file.sync().await.unwrap();
        file.write_at(sectors(1, 5), 0).await.unwrap();
        file.write_at(sectors(1, 6), SECTOR).await.unwrap();
    });
    let first = |content: &Vec<u8>| content[0] == 5;
    let second = |content: &Vec<u8>| content[SECTOR_BYTES] == 6;
    assert!(
        seen.iter()
            .any(|content| first(content) && !second(content))
    );
    assert!(
        seen.iter()
            .any(|content| !first(content) && second(content))
    );
}

#[test]
fn completed_writes_survive_the_process_and_writes_in_flight_may() {
    let seen = outcomes(200, Crash::Process, |env| async move {
        let file = durable_file(&env, PLAIN).await;
        file.write_at(sectors(1, 1), 0).await.unwrap();
        let late = file.clone();
        env.spawn(async move {
            let _ = late.write_at(sectors(1, 2), SECTOR).await;
        });
        env.control().after_steps(2 + env.random_u64() % 2).await;
    });
    let first: BTreeSet<_> = seen
        .iter()
        .map(|bytes| bytes[..SECTOR_BYTES].to_vec())
        .collect();
    assert_eq!(first, BTreeSet::from([vec![1; SECTOR_BYTES]]));
    let second: BTreeSet<_> = seen
        .iter()
        .map(|bytes| bytes[SECTOR_BYTES..].to_vec())
        .collect();
    assert!(second.contains(&vec![]), "never lost");
    assert!(second.contains(&vec![2; SECTOR_BYTES]), "never kept");
    assert!(second.len() > 10, "never torn");
}

#[test]
fn what_survived_the_process_unflushed_may_still_be_lost_with_the_power() {
    let mut lost = 0;
    for seed in 0..100 {
        let world = world(seed);
        let env = world.env();
        world.block_on(async {
            let file = durable_file(&env, PLAIN).await;
            file.write_at(sectors(1, 1), 0).await.unwrap();
        });
        world.crash(0, Crash::Process);
        let env = world.restart(0);
        assert_eq!(content(&world), vec![1; SECTOR_BYTES]);
        if seed % 2 == 0 {
            world.block_on(async {
                let file = env.open(Path::new("/d/f"), PLAIN).await.unwrap();
                file.sync().await.unwrap();
            });
        }
        world.crash(0, Crash::Power);
        let survived = content(&world) == vec![1; SECTOR_BYTES];
        assert!(survived || seed % 2 == 1, "seed {seed}: a flush was lost");
        lost += u32::from(!survived);
    }
    assert!(lost > 10);
}

#[test]
fn a_flushed_write_is_not_undone_by_an_older_volatile_one() {
    let seen = outcomes(200, Crash::Power, |env| async move {
        let plain = durable_file(&env, PLAIN).await;
        plain.write_at(sectors(1, 1), 0).await.unwrap();
        let flushed = env.open(Path::new("/d/f"), FLUSHED).await.unwrap();
        flushed.write_at(sectors(1, 2), 0).await.unwrap();
    });
    assert_eq!(seen, BTreeSet::from([vec![2; SECTOR_BYTES]]));
}

#[test]
fn a_flush_covers_only_what_was_complete_when_it_began() {
    let (mut raced, mut lost) = (0, 0);
    for seed in 0..400 {
        let world = world(seed);
        let env = world.env();
        let written = Rc::new(Cell::new(false));
        world.block_on(async {
            let file = durable_file(&env, PLAIN).await;
            file.write_at(sectors(1, 1), 0).await.unwrap();
            file.sync().await.unwrap();
            let (write, done) = (file.clone(), written.clone());
            env.spawn(async move {
                write.write_at(sectors(1, 2), 0).await.unwrap();
                done.set(true);
            });
            file.sync().await.unwrap();
        });
        if written.get() {
            raced += 1;
            world.crash(0, Crash::Power);
            lost += u32::from(content(&world)[0] == 1);
        }
    }
    assert!(raced > 50 && lost > 10, "{lost} of {raced}");
}

#[test]
fn lengths_and_cuts_are_volatile_until_they_are_flushed() {
    let seen = outcomes(200, Crash::Power, |env| async move {
        let file = durable_file(&env, PLAIN).await;
        file.write_at(sectors(4, 1), 0).await.unwrap();
        file.sync().await.unwrap();
        file.truncate(SECTOR + 100).await.unwrap();
    });
    assert_eq!(
        seen,
        BTreeSet::from([vec![1; 4 * SECTOR_BYTES], vec![1; SECTOR_BYTES + 100]])
    );
    let seen = outcomes(200, Crash::Power, |env| async move {
        let file = durable_file(&env, PLAIN).await;
        file.write_at(sectors(2, 1), 0).await.unwrap();
        file.truncate(SECTOR + 100).await.unwrap();
        file.allocate(0, 3 * SECTOR).await.unwrap();
        file.sync().await.unwrap();
    });
    let mut expected = vec![0; 3 * SECTOR_BYTES];
    expected[..SECTOR_BYTES + 100].fill(1);
    assert_eq!(seen, BTreeSet::from([expected]));
    let lengths: BTreeSet<usize> = outcomes(200, Crash::Power, |env| async move {
        let file = durable_file(&env, PLAIN).await;
        file.allocate(0, 3 * SECTOR).await.unwrap();
    })
    .iter()
    .map(Vec::len)
    .collect();
    assert_eq!(lengths, BTreeSet::from([0, 3 * SECTOR_BYTES]));
}

#[test]
fn names_are_volatile_until_their_directory_is_flushed_and_change_in_order() {
    let names = |synced: bool| -> BTreeSet<Vec<String>> {
        (0..300)
            .map(|seed| {
                let world = world(seed);
                let env = world.env();
                world.block_on(async {
                    durable_file(&env, PLAIN).await;
                    env.open(Path::new("/d/g"), PLAIN).await.unwrap();
                    env.rename(Path::new("/d/g"), Path::new("/d/h"))
                        .await
                        .unwrap();
                    env.remove(Path::new("/d/f")).await.unwrap();
                    if synced {
                        env.sync_dir(Path::new("/d")).await.unwrap();
                    }
                });
                world.crash(0, Crash::Power);
                world.with_disk(0, |disk| {
                    disk.files()
                        .iter()
                        .map(|(path, _)| path.file_name().unwrap().to_str().unwrap().to_owned())
                        .collect()
                })
            })
            .collect()
    };
    let owned = |names: &[&str]| {
        names
            .iter()
            .map(|name| (*name).to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(true), BTreeSet::from([owned(&["h"])]));
    assert_eq!(
        names(false),
        BTreeSet::from([
            owned(&["f"]),
            owned(&["f", "g"]),
            owned(&["f", "h"]),
            owned(&["h"])
        ])
    );
}

#[test]
fn a_directory_whose_parent_was_not_flushed_may_take_its_files_with_it() {
    let mut lost = 0;
    for seed in 0..50 {
        let world = world(seed);
        let env = world.env();
        world.block_on(async {
            env.create_dir(Path::new("/a/b")).await.unwrap();
            env.open(Path::new("/a/b/f"), PLAIN).await.unwrap();
            env.sync_dir(Path::new("/a/b")).await.unwrap();
            env.sync_dir(Path::new("/a")).await.unwrap();
        });
        world.crash(0, Crash::Power);
        lost += usize::from(world.with_disk(0, |disk| disk.files().is_empty()));
    }
    assert!((1..50).contains(&lost));
}

#[test]
fn the_same_seed_gives_the_same_trace_and_another_one_does_not() {
    let run = |seed: u64| {
        let options = SimOptions {
            nodes: 2,
            wall_skew_max_ms: 1_000,
            wall_jump_every: Some(Duration::from_millis(1)),
            ..SimOptions::default()
        };
        let world = SimWorld::new(seed, options);
        world.with_disk(0, |disk| {
            disk.options.faults.write_eio_per_million = 100_000
        });
        for node in 0..2 {
            let env = world.core(node);
            for writer in 0..8 {
                let env = env.clone();
                env.clone().spawn_background(async move {
                    let path = format!("/f{writer}");
                    let file = env.open(Path::new(&path), PLAIN).await.unwrap();
                    loop {
                        let mut page = env.alloc(SECTOR_BYTES);
                        page.as_mut()[0] = env.now_ms() as u8;
                        let at = env.random_u64() % 8 * SECTOR;
                        let _ = file.write_at(Rc::new(page), at).await;
                        env.list(Path::new("/")).await.unwrap();
                        env.sleep(Duration::from_micros(50)).await;
                    }
                });
            }
        }
        world.run_for(Duration::from_millis(3));
        world.crash(0, Crash::Power);
        world.restart(0);
        world.run_for(Duration::from_millis(3));
        let contents = world.with_disk(0, |disk| {
            let paths = disk.files();
            paths
                .iter()
                .map(|(path, _)| disk.content(path).unwrap())
                .collect::<Vec<_>>()
        });
        (world.trace_hash(), world.steps(), world.now_ns(), contents)
    };
    for seed in 0..5 {
        assert!(run(seed) == run(seed));
    }
    assert_ne!(run(1).0, run(2).0);
}

#[test]
fn a_failed_write_may_have_happened_or_not() {
    let seen: BTreeSet<Vec<u8>> = (0..200)
        .map(|seed| {
            let world = world(seed);
            let env = world.env();
            world.block_on(async {
                let file = durable_file(&env, FLUSHED).await;
                file.write_at(sectors(1, 1), 0).await.unwrap();
                world.with_disk(0, |disk| {
                    let next = disk.count_of(OpKind::Write);
                    let faults = &mut disk.options.faults;
                    faults.fail_nth_of.insert((OpKind::Write, next), Errno::Io);
                });
                let error = file.write_at(sectors(1, 2), 0).await.unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::EIO));
            });
            world.crash(0, Crash::Power);
            content(&world)
        })
        .collect();
    assert!(seen.contains(&vec![1; SECTOR_BYTES]));
    assert!(seen.contains(&vec![2; SECTOR_BYTES]));
    assert!(seen.len() > 10, "never torn");
}

#[test]
fn a_flush_that_is_tried_again_after_a_failure_says_that_all_is_well_and_may_lie() {
    let mut lost = 0;
    for seed in 0..100 {
        let world = world(seed);
        let env = world.env();
        world.block_on(async {
            let file = durable_file(&env, PLAIN).await;
            file.write_at(sectors(1, 1), 0).await.unwrap();
            file.sync().await.unwrap();
            file.write_at(sectors(1, 2), 0).await.unwrap();
            world.with_disk(0, |disk| {
                let next = disk.count();
                disk.options.faults.fail_nth.insert(next, Errno::Io);
            });
            file.sync().await.unwrap_err();
            file.sync().await.unwrap();
            assert_eq!(file.read_at(0, SECTOR_BYTES).await.unwrap()[0], 2);
        });
        world.crash(0, Crash::Power);
        lost += u32::from(content(&world)[0] == 1);
    }
    assert!((20..80).contains(&lost), "{lost} of 100");
}

#[test]
fn a_device_that_lies_about_flushes_loses_data() {
    let mut lost = 0;
    for seed in 0..50 {
        let world = world(seed);
        let env = world.env();
        world.block_on(async {
            let file = durable_file(&env, FLUSHED).await;
            world.with_disk(0, |disk| disk.options.honest_flush = false);
            file.write_at(sectors(1, 1), 0).await.unwrap();
        });
        world.crash(0, Crash::Power);
        lost += u32::from(content(&world) != vec![1; SECTOR_BYTES]);
    }
    assert!(lost > 10);
}

#[test]
fn a_full_disk_refuses_new_space_and_takes_what_it_has_space_for() {
    let world = world(1);
    let env = world.env();
    world.block_on(async {
        let file = durable_file(&env, PLAIN).await;
        file.allocate(0, 2 * SECTOR).await.unwrap();
        world.with_disk(0, |disk| disk.options.capacity_bytes = 3 * SECTOR);
        assert_eq!(
            env.disk_space(Path::new("/d")).unwrap().available_bytes,
            SECTOR
        );
        let error = file.allocate(2 * SECTOR, 2 * SECTOR).await.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        let error = file.write_at(sectors(2, 1), 2 * SECTOR).await.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        assert_eq!(file.len().await.unwrap(), 2 * SECTOR);
        file.write_at(sectors(2, 1), 0).await.unwrap();
        world.with_disk(0, |disk| disk.options.capacity_bytes = 4 * SECTOR);
        file.write_at(sectors(2, 1), 2 * SECTOR).await.unwrap();
        env.remove(Path::new("/d/f")).await.unwrap();
        assert_eq!(
            env.disk_space(Path::new("/d")).unwrap().available_bytes,
            4 * SECTOR
        );
    });
}

#[test]
fn a_read_is_short_only_at_the_end_of_the_file() {
    let world = world(1);
    let env = world.env();
    world.block_on(async {
        let file = durable_file(&env, PLAIN).await;
        file.write_at(sectors(2, 7), 0).await.unwrap();
        file.truncate(SECTOR + 5).await.unwrap();
        assert_eq!(
            file.read_at(0, SECTOR_BYTES).await.unwrap().len(),
            SECTOR_BYTES
        );
        assert_eq!(*file.read_at(SECTOR, SECTOR_BYTES).await.unwrap(), [7; 5]);
        assert!(
            file.read_at(8 * SECTOR, SECTOR_BYTES)
                .await
                .unwrap()
                .is_empty()
        );
        let missing = env.open(Path::new("/d/none"), OpenMode::default()).await;
        assert_eq!(missing.err().unwrap().kind(), std::io::ErrorKind::NotFound);
        let nowhere = env.open(Path::new("/none/f"), PLAIN).await;
        assert_eq!(nowhere.err().unwrap().kind(), std::io::ErrorKind::NotFound);
    });
}

#[test]
fn a_crash_ends_a_task_at_any_await_and_dead_handles_do_nothing() {
    let mut reached = BTreeSet::new();
    for seed in 0..60 {
        let world = world(seed);
        let env = world.env();
        let place = Rc::new(Cell::new(0));
        let mark = place.clone();
        let task = env.clone();
        let held = Rc::new(());
        let holds = held.clone();
        env.spawn(async move {
            let _holds = holds;
            let file = durable_file(&task, PLAIN).await;
            mark.set(1);
            file.write_at(sectors(1, 1), 0).await.unwrap();
            mark.set(2);
            file.sync().await.unwrap();
            mark.set(3);
            task.sleep(Duration::from_millis(1)).await;
            mark.set(4);
        });
        world.block_on(world.after_steps(seed / 2));
        world.crash(0, Crash::Power);
        let at = place.get();
        reached.insert(at);
        assert_eq!(
            Rc::strong_count(&held),
            1,
            "a task of a dead process is kept"
        );
        let dead = env.clone();
        env.spawn(async move { panic!("a task of a dead process runs: {:?}", dead.now_ns()) });
        world.spawn({
            let dead = env.clone();
            async move {
                let _ = dead.create_dir(Path::new("/ghost")).await;
                panic!("a dead process did something");
            }
        });
        let fresh = world.restart(0);
        world.run_for(Duration::from_millis(10));
        assert_eq!(place.get(), at);
        assert!(!env.is_alive() && fresh.is_alive());
        let ghost = world.block_on(fresh.list(Path::new("/ghost")));
        assert!(ghost.is_err());
    }
    assert!(reached.len() >= 4, "{reached:?}");
}

#[test]
fn the_order_of_runnable_tasks_and_of_disk_operations_differs_between_seeds() {
    let orders: BTreeSet<Vec<u32>> = (0..100)
        .map(|seed| {
            let world = world(seed);
            let order = Rc::new(RefCell::new(Vec::new()));
            for task in 0..3 {
                let order = order.clone();
                world
                    .env()
                    .spawn(async move { order.borrow_mut().push(task) });
            }
            world.run_for(Duration::from_millis(1));
            order.take()
        })
        .collect();
    assert_eq!(orders.len(), 6);
}

#[test]
fn time_is_virtual_and_a_stalled_world_says_so() {
    let world = SimWorld::new(
        1,
        SimOptions {
            steps_max: 1_000,
            ..SimOptions::default()
        },
    );
    let began = std::time::Instant::now();
    let env = world.env();
    let before_ms = env.now_ms();
    world.run_for(Duration::from_secs(86_400));
    assert!(began.elapsed() < Duration::from_secs(60));
    assert_eq!(env.now_ms() - before_ms, 86_400_000);
    let stalled = world.try_block_on(std::future::pending::<()>());
    assert_eq!(stalled, Err(Stalled::Deadlock));
    let endless = world.try_block_on(async {
        loop {
            env.sleep(Duration::from_millis(1)).await;
        }
    });
    assert_eq!(endless, Err::<(), _>(Stalled::StepLimit(1_000)));
}

#[test]
fn wall_clocks_differ_between_machines_and_jump_when_asked() {
    let world = SimWorld::new(
        3,
        SimOptions {
            nodes: 2,
            wall_skew_max_ms: 60_000,
            ..SimOptions::default()
        },
    );
    let (first, second) = (world.core(0), world.core(1));
    assert_ne!(first.now_ms(), second.now_ms());
    assert_eq!(first.now_ns(), second.now_ns());
    let before_ms = first.now_ms();
    world.jump_clock(0, -5_000);
    assert_eq!(before_ms - first.now_ms(), 5_000);
}

#[test]
fn background_tasks_yield_to_foreground_tasks() {
    let world = world(5);
    let counts = Rc::new([Cell::new(0u32), Cell::new(0u32)]);
    let spin = |kind: usize| {
        let counts = counts.clone();
        async move {
            loop {
                counts[kind].set(counts[kind].get() + 1);
                let mut yielded = false;
                std::future::poll_fn(|context| {
                    if std::mem::replace(&mut yielded, true) {
                        return std::task::Poll::Ready(());
                    }
                    context.waker().wake_by_ref();
                    std::task::Poll::Pending
                })
                .await;
            }
        }
    };
    world.env().spawn(spin(0));
    world.env().spawn_background(spin(1));
    world.block_on(world.after_steps(10_000));
    assert!(counts[0].get() > 5 * counts[1].get() && counts[1].get() > 100);
}

#[test]
fn a_flipped_bit_is_read_and_survives() {
    let world = world(1);
    let env = world.env();
    world.block_on(async {
        let file = durable_file(&env, FLUSHED).await;
        file.write_at(sectors(1, 1), 0).await.unwrap();
    });
    assert!(world.with_disk(0, |disk| disk.flip_bits(Path::new("/d/f"), 77, 0x80)));
    assert!(!world.with_disk(0, |disk| disk.flip_bits(Path::new("/d/f"), SECTOR, 1)));
    assert_eq!(content(&world)[77], 0x81);
    world.crash(0, Crash::Power);
    assert_eq!(content(&world)[77], 0x81);
}
