//! How a log ends, in the simulated world.
#![allow(clippy::unwrap_used)] // A test that meets an error it did not plan for is to fail.

use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use crate::io::env::Env;
use crate::io::sim::{Errno, OpKind, SimOptions, SimWorld};
use crate::store::testing::{Quiet, message, small_log};
use crate::store::types::QueueKey;
use crate::store::{CommitLog, LogOptions};

/// A snapshot that could not be saved is tried again after a pause; a log that is asked to stop does not wait for its end.
#[test]
fn a_stop_does_not_wait_for_what_failed_to_be_tried_again() {
    let world = SimWorld::new(7, SimOptions::default());
    let env = world.env();
    let directory = Path::new("/data/log");
    world.block_on(async {
        env.create_dir(directory).await.unwrap();
        let options = LogOptions {
            snapshot_bytes: 4 << 10,
            ..small_log(directory, 1 << 20)
        };
        let log = CommitLog::open(env.clone(), options).await.unwrap();
        log.start(Rc::new(Quiet));
        // The snapshot does not get its name.
        let renames = || world.with_disk(0, |disk| disk.count_of(OpKind::Rename));
        let fails = renames();
        world.with_disk(0, |disk| {
            let faults = &mut disk.options.faults.fail_nth_of;
            faults.insert((OpKind::Rename, fails), Errno::Io);
        });
        let queue = QueueKey {
            topic_id: 1,
            queue_id: 0,
        };
        while renames() == fails {
            log.append(&[message(queue, "T", vec![7; 1000])]).unwrap();
            env.sleep(Duration::from_millis(1)).await;
        }
        // It has failed by then, and nothing else goes on.
        env.sleep(Duration::from_millis(20)).await;
        let asked_ns = env.now_ns();
        log.stop().await.unwrap();
        let took = Duration::from_nanos(env.now_ns() - asked_ns);
        assert!(took < Duration::from_millis(100), "{took:?}");
    });
}

/// Space ahead of a log of 96 MiB, in MiB, give or take one step of making it.
fn space_ahead_mib(capacity_bytes: u64) -> u64 {
    let world = SimWorld::new(7, SimOptions::default());
    world.with_disk(0, |disk| disk.options.capacity_bytes = capacity_bytes);
    let env = world.env();
    let directory = Path::new("/data/log");
    let queue = QueueKey {
        topic_id: 1,
        queue_id: 0,
    };
    world.block_on(async {
        env.create_dir(directory).await.unwrap();
        let options = small_log(directory, 256 << 20);
        let log = CommitLog::open(env.clone(), options).await.unwrap();
        log.start(Rc::new(Quiet));
        while log.appended() < 96 << 20 {
            // No space yet, or too much under way: a client would send again.
            let _ = log.append(&[message(queue, "T", vec![7; 1 << 20])]);
            env.sleep(Duration::from_millis(5)).await;
        }
        env.sleep(Duration::from_secs(1)).await;
        let ahead = log.allocated_end() - log.appended();
        log.stop().await.unwrap();
        ahead >> 20
    })
}

/// Zeros then go to another segment than the one that commits go to.
#[test]
fn on_a_disk_with_room_there_is_as_much_space_ahead_as_there_is_log() {
    let roomy = space_ahead_mib(1 << 40);
    assert!((96 - 16..96 + 16).contains(&roomy), "{roomy} MiB");
    let full = space_ahead_mib(220 << 20);
    assert!((64 - 16..64 + 16).contains(&full), "{full} MiB");
}
