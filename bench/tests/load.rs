//! The sending side against a server whose behaviour is known.
#![allow(clippy::unwrap_used)]

mod toy;

use std::collections::HashSet;
use std::time::Duration;

use ringmq_bench::measure::Kind;
use ringmq_bench::plan::{Header, Plan, Produce};
use ringmq_bench::result::{Parts, RunResult, summarise};
use ringmq_bench::run::{Share, prepare};
use toy::{Manner, Toy, start};

fn plan(toy: &Toy) -> Plan {
    Plan {
        name: "test".into(),
        namesrv: String::new(),
        broker: Some(toy.address.to_string()),
        broker_pids: Vec::new(),
        topic: "T".into(),
        topics: 1,
        queues: 4,
        size: 64,
        header: Header::Json,
        protocol: Default::default(),
        produce: Some(Produce {
            batch: 1,
            in_flight: 1,
            connections: 1,
            threads: 1,
            cpus: Vec::new(),
            rate: None,
            poisson: false,
            burst: None,
            skew: 0.0,
            tag: None,
            transaction: None,
        }),
        consume: None,
        warm_seconds: 0.0,
        seconds: 2.0,
        verify: false,
    }
}

fn run(plan: &Plan) -> RunResult {
    let outcome = prepare(plan, Share::whole()).unwrap().execute(|_| {});
    summarise(Parts {
        plan,
        processes: 1,
        machine: Default::default(),
        settings: Default::default(),
        outcome: &outcome,
        whole_series: false,
    })
}

fn with(plan: &mut Plan, change: impl FnOnce(&mut Produce)) {
    change(plan.produce.as_mut().unwrap());
}

const PAUSE: Duration = Duration::from_millis(600);

fn pausing() -> Toy {
    start(Manner::Pauses {
        after: Duration::from_millis(700),
        pause: PAUSE,
    })
}

/// The server stands still for 600 of 2,000 ms. At 500 messages/s that is 300 of 1,000 messages, which wait from 600 ms
/// down to nothing: a tenth of all waits for more than 400 ms.
#[test]
fn an_open_loop_shows_a_pause_to_all_messages_that_were_due_in_it() {
    let toy = pausing();
    let mut plan = plan(&toy);
    with(&mut plan, |produce| produce.rate = Some(500.0));
    let result = run(&plan);
    let latency = result.of(Kind::Publish).unwrap().latency;
    assert_eq!(latency.count, 1000, "every message that was due counts");
    assert!(
        result.all_failures().is_empty(),
        "{:?}",
        result.all_failures()
    );
    let ms = |ns: u64| ns / 1_000_000;
    assert!(ms(latency.p90) >= 350, "p90 is {} ms", ms(latency.p90));
    assert!(ms(latency.p99) >= 550, "p99 is {} ms", ms(latency.p99));
    assert!(ms(latency.max) >= 590, "max is {} ms", ms(latency.max));
    assert!(ms(latency.p50) < 200, "p50 is {} ms", ms(latency.p50));
}

/// The same pause in a closed loop meets the one message that was in flight: that is the omission.
#[test]
fn a_closed_loop_omits_the_same_pause() {
    let toy = pausing();
    let result = run(&plan(&toy));
    let latency = result.of(Kind::Publish).unwrap().latency;
    let ms = |ns: u64| ns / 1_000_000;
    assert!(latency.count > 1000, "{latency:?}");
    assert!(ms(latency.max) >= 590, "max is {} ms", ms(latency.max));
    assert!(ms(latency.p99) < 300, "p99 is {} ms", ms(latency.p99));
}

#[test]
fn a_rate_is_kept_and_all_keys_differ() {
    for (header, batch, connections, threads) in
        [(Header::Json, 1, 3, 1), (Header::Binary, 4, 2, 2)]
    {
        let toy = start(Manner::Honest);
        let mut plan = plan(&toy);
        plan.header = header;
        plan.seconds = 1.0;
        with(&mut plan, |produce| {
            produce.rate = Some(1000.0);
            (produce.batch, produce.connections, produce.threads) = (batch, connections, threads);
        });
        let result = run(&plan);
        let publish = result.of(Kind::Publish).unwrap();
        assert!(
            result.all_failures().is_empty(),
            "{:?}",
            result.all_failures()
        );
        assert!(
            (500..=1000).contains(&publish.messages),
            "{} messages",
            publish.messages
        );
        assert_eq!(publish.latency.count, 1000 / batch as u64);
        let keys = toy.keys.lock().unwrap();
        let distinct: HashSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len(), "no key comes twice");
        assert_eq!(keys.len(), 1000 / batch);
        assert!(keys.iter().all(|key| key.len() == 32), "{}", keys[0]);
    }
}

#[test]
fn random_gaps_keep_the_rate_too() {
    let toy = start(Manner::Honest);
    let mut plan = plan(&toy);
    plan.seconds = 1.0;
    with(&mut plan, |produce| {
        produce.rate = Some(2000.0);
        produce.poisson = true;
    });
    let count = run(&plan).of(Kind::Publish).unwrap().latency.count;
    assert!((1700..2300).contains(&count), "{count}");
}

/// Kinds of failures and how many messages counted as sent, in a short closed loop.
fn failures(manner: Manner) -> (Vec<String>, u64) {
    let toy = start(manner);
    let mut plan = plan(&toy);
    plan.seconds = 0.3;
    with(&mut plan, |produce| produce.in_flight = 4);
    let result = run(&plan);
    let messages = result
        .measured
        .iter()
        .map(|measured| measured.messages)
        .sum();
    (result.all_failures().into_keys().collect(), messages)
}

#[test]
fn a_wrong_answer_is_no_success() {
    assert_eq!(
        failures(Manner::WrongQueue),
        (vec!["wrong answer".to_owned()], 0)
    );
    assert_eq!(
        failures(Manner::NoOffset),
        (vec!["wrong answer".to_owned()], 0)
    );
}

/// The request itself then has no answer, which takes the time that a run waits for late ones.
#[test]
fn an_answer_that_nobody_asked_for_is_counted_and_ends_no_request() {
    assert_eq!(
        failures(Manner::WrongOpaque),
        (
            vec!["unanswered".to_owned(), "unasked answer".to_owned()],
            0
        )
    );
}

#[test]
fn a_refusal_is_counted_by_its_code() {
    let (kinds, messages) = failures(Manner::Busy);
    assert_eq!(kinds, ["2 SYSTEM_BUSY"]);
    assert!(messages > 0);
}

#[test]
fn bytes_that_are_no_frame_end_the_run_with_a_reason() {
    let (kinds, messages) = failures(Manner::Garbage);
    assert_eq!(kinds, ["producer thread", "unanswered"]);
    assert_eq!(messages, 0);
}
