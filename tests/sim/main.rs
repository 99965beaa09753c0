//! The simulation: the store and the shards under seeded crashes and faults, with a model of the promise beside them.
//!
//! `RINGMQ_SEED=n cargo test --test sim the_shards` runs one seed with a trace, `RINGMQ_SIM_SEEDS=n` so many. A failure prints
//! its seed. See ARCHITECTURE.md, Simulation.
#![allow(clippy::unwrap_used)] // A test that meets an error it did not plan for is to fail.

mod brokers;
mod controlled;
mod controllers;
mod ledger;
mod replicas;
mod run;
mod shards;
mod store;
mod sut;
mod toy;
mod workload;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use ringmq::io::sim::{Crash, Errno};

use run::{Limits, Tweaks, find_bug, run_all, run_seed, run_seeds, seeds_from_env};
use shards::Shards;
use store::Logs;
use toy::{BUGS, Toy};

const TOY_LIMITS: Limits = Limits {
    logs_max: 1,
    shards_max: 1,
    segment_bytes: &[64 << 10],
    huge_messages: false,
    retention: false,
};

/// The store on its own: retention is driven by the shards.
const LOGS_LIMITS: Limits = Limits {
    logs_max: 3,
    shards_max: 1,
    segment_bytes: &[1 << 20, 2 << 20],
    huge_messages: true,
    retention: false,
};

#[test]
fn the_logs_keep_the_promise() {
    let counts = run_seeds(&Logs, &LOGS_LIMITS, seeds_from_env(60));
    assert!(counts.acknowledged > 0 && counts.delivered > 0 && counts.restarts > 0);
}

const SHARDS_LIMITS: Limits = Limits {
    logs_max: 4,
    shards_max: 3,
    segment_bytes: &[1 << 20, 2 << 20],
    huge_messages: true,
    retention: true,
};

#[test]
fn the_shards_keep_the_promise() {
    let counts = run_seeds(&Shards, &SHARDS_LIMITS, seeds_from_env(60));
    assert!(counts.acknowledged > 0 && counts.delivered > 0 && counts.restarts > 0);
}

/// Runs each seed, on all processors, until one breaks the promise: the sum of what they counted, and who broke it how. With
/// `RINGMQ_SIM_KEEP_GOING` the others run all the same.
fn each_seed<C: Default + Send>(
    seeds: Vec<u64>,
    run: impl Fn(u64) -> Result<C, String> + Sync,
    add: impl Fn(&mut C, &C) + Sync,
) -> (C, Vec<(u64, String)>) {
    let keep_going = std::env::var_os("RINGMQ_SIM_KEEP_GOING").is_some();
    let next = AtomicUsize::new(0);
    let results: Mutex<(C, Vec<(u64, String)>)> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if !keep_going && !results.lock().unwrap().1.is_empty() {
                        return;
                    }
                    let outcome = run(*seed);
                    let mut results = results.lock().unwrap();
                    match outcome {
                        Ok(counts) => add(&mut results.0, &counts),
                        Err(why) => {
                            if keep_going {
                                eprintln!("RINGMQ_SEED={seed}: {why}");
                            }
                            results.1.push((*seed, why));
                        }
                    }
                }
            });
        }
    });
    results.into_inner().unwrap()
}

/// Two machines: `RINGMQ_SEED=n cargo test --test sim a_pair` runs one seed with a trace.
#[test]
fn a_pair_keeps_the_promise() {
    if let Ok(seed) = std::env::var("RINGMQ_SEED") {
        let seed = seed.parse().unwrap();
        match replicas::run_seed(seed, None, true) {
            Ok(counts) => eprintln!("{counts:?}"),
            Err(why) => panic!("RINGMQ_SEED={seed} breaks the promise: {why}"),
        }
        return;
    }
    let (sum, failures) = each_seed(
        seeds_from_env(40).collect(),
        |seed| replicas::run_seed(seed, None, false),
        replicas::Counts::add,
    );
    let mib = run::resident_mib();
    eprintln!("{sum:?}, {mib} MiB resident at the end");
    if let Some((seed, why)) = failures.iter().min() {
        panic!("RINGMQ_SEED={seed} breaks the promise: {why}");
    }
    assert!(sum.acknowledged > 0 && sum.checked > 0 && sum.promotions > 0);
    assert!(sum.rotted > 0 && sum.repaired_bytes > 0);
}

/// What the product's code logs, between the lines of the trace.
fn log_to_stderr() {
    let logs = tracing_subscriber::fmt().with_writer(std::io::stderr);
    let _ = logs
        .without_time()
        .with_max_level(tracing::Level::DEBUG)
        .try_init();
}

/// Brokers under controllers: `RINGMQ_SEED=n cargo test --test sim brokers_under` runs one seed with a trace.
#[test]
fn brokers_under_controllers_keep_the_promise() {
    if let Ok(seed) = std::env::var("RINGMQ_SEED") {
        let seed = seed.parse().unwrap();
        log_to_stderr();
        match controlled::run_seed(seed, None, true) {
            Ok(counts) => eprintln!("{counts:?}"),
            Err(why) => panic!("RINGMQ_SEED={seed} breaks the promise: {why}"),
        }
        return;
    }
    let (sum, failures) = each_seed(
        seeds_from_env(24).collect(),
        |seed| controlled::run_seed(seed, None, false),
        controlled::Counts::add,
    );
    let mib = run::resident_mib();
    eprintln!("{sum:?}, {mib} MiB resident at the end");
    if let Some((seed, why)) = failures.iter().min() {
        panic!("RINGMQ_SEED={seed} breaks the promise: {why}");
    }
    assert!(sum.acknowledged > 0 && sum.checked > 0 && sum.elections > 24);
    assert!(sum.rotted_old > 0 && sum.repaired_bytes > 0);
}

/// Each fault that is planted in what a controller makes possible is found, and how soon.
#[cfg(feature = "planted-bugs")]
#[test]
fn brokers_under_controllers_with_a_planted_bug_break_the_promise() {
    let mut missed = Vec::new();
    for bug in [
        "AckBeforeReplica",
        "ForgetToFence",
        "TruncateInMemory",
        "ElectOutside",
        "StandThoughDamaged",
    ] {
        let found = (0..400).find_map(|seed| {
            let why = controlled::run_seed(seed, Some(bug), false).err()?;
            Some((seed, why))
        });
        match found {
            Some((seed, why)) => eprintln!("{bug}: {} seeds: {why}", seed + 1),
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}

/// Each fault that is planted in the replication is found, and how soon.
#[cfg(feature = "planted-bugs")]
#[test]
fn a_pair_with_a_planted_bug_breaks_the_promise() {
    for bug in [
        "AckBeforeReplica",
        "ReplicaAcksBeforeFlush",
        "RepairOverNeighbours",
    ] {
        let found = (0..200).find_map(|seed| {
            let why = replicas::run_seed(seed, Some(bug), false).err()?;
            Some((seed, why))
        });
        let (seed, why) = found.unwrap_or_else(|| panic!("{bug} was not found"));
        eprintln!("{bug}: {} seeds: {why}", seed + 1);
    }
}

#[test]
fn the_model_finds_nothing_in_a_toy_broker_that_is_right() {
    let counts = run_seeds(&Toy, &TOY_LIMITS, 0..100);
    assert!(counts.acknowledged > 1_000 && counts.delivered > 1_000);
    assert!(counts.restarts > 40 && counts.commits > 50);
    assert!(counts.unknown_kept > 0 && counts.unknown_gone > 0);
    assert!(counts.refused_full > 0 && counts.refused_failed > 0);
}

#[test]
fn the_model_finds_each_bug_that_is_planted_in_the_toy_broker() {
    let mut missed = Vec::new();
    for bug in BUGS {
        match find_bug(&Toy, &TOY_LIMITS, bug, 400) {
            Some((seed, why)) => eprintln!("{bug}: {} seeds: {why}", seed + 1),
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}

/// Each operation of a life's beginning fails in turn, and each step of a start is the last one in turn.
fn every_place(seeds: std::ops::Range<u64>, places: u64) -> Vec<(u64, Tweaks)> {
    let fault = |place, errno| Tweaks {
        first_life_fault: Some((place, errno)),
        ..Tweaks::default()
    };
    let crash = |place, crash| Tweaks {
        second_start_crash: Some((place, crash)),
        ..Tweaks::default()
    };
    seeds
        .flat_map(|seed| {
            (0..places).flat_map(move |place| {
                [
                    (seed, fault(place, Errno::Io)),
                    (seed, fault(place, Errno::NoSpace)),
                    (seed, crash(place, Crash::Power)),
                    (seed, crash(place, Crash::Process)),
                ]
            })
        })
        .collect()
}

#[test]
fn a_fault_or_a_crash_at_every_place_of_a_toy_broker_is_survived() {
    run_all(&Toy, &TOY_LIMITS, &every_place(0..2, 30));
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..5 {
        let run = || {
            run_seed(&Toy, &TOY_LIMITS, seed, &Tweaks::default())
                .ok()
                .unwrap()
        };
        let (first, second) = (run(), run());
        assert_eq!(first.trace_hash, second.trace_hash);
        assert_eq!(first.counts, second.counts);
    }
}

/// Each fault that is planted in the store is found, and how soon.
#[cfg(feature = "planted-bugs")]
#[test]
fn the_model_finds_each_bug_that_is_planted_in_the_store() {
    const PLANTED: &[sut::PlantedBug] = &[
        "FlushSkipped",
        "AckBeforeFlush",
        "BatchCrcIgnored",
        "TruncatedTailAccepted",
    ];
    let mut missed = Vec::new();
    for bug in PLANTED {
        match find_bug(&Shards, &SHARDS_LIMITS, bug, 400) {
            Some((seed, why)) => eprintln!("{bug}: {} seeds: {why}", seed + 1),
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
