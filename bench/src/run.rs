//! One run: resolve, make topics, connect, start the threads together, watch the clock, collect.
//!
//! Everything that may fail or take long happens before the clock starts. The thread that calls this only sleeps, collects
//! intervals and samples /proc once per second.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use ringmq::wire::properties::name;
use ringmq::wire::record::SYS_FLAG_TRANSACTION_PREPARED;
use serde::{Deserialize, Serialize};

use crate::clock::Origin;
use crate::connection::IN_FLIGHT_MAX;
use crate::consumer::{Assigned, Consumer, ConsumerSpec, Recorders};
use crate::control::{Broker, Control, resolve};
use crate::frames::SendShape;
use crate::ledger::{Entry, Verdict, judge};
use crate::measure::{Failures, Interval, Kind, Recorder, Window, add_failure, failure_count};
use crate::payload::filler;
use crate::plan::{Burst, Mode, Plan, Produce};
use crate::process::{machine_cpu_seconds, own_cpu_seconds, usage};
use crate::producer::{Producer, ProducerSpec, Shared, encoding};
use crate::queues::Queues;
use crate::schedule::Arrivals;

/// From the start of the threads to the first request.
const LEAD_NS: u64 = 50_000_000;
/// How long messages may still be on their way to a consumer when the last one is acknowledged.
const DELIVERY_NS: u64 = 10_000_000_000;
/// The same where another process may receive what this one sends.
const SHARED_DELIVERY_NS: u64 = 1_000_000_000;
/// Collecting and sampling.
const TICK: Duration = Duration::from_millis(100);
/// The topic of RocketMQ's own benchmarks: every broker has it and lets nobody change it.
const OWN_TOPIC: &str = "BenchmarkTest";

/// Processes at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Seconds since the measurement began.
    pub at_seconds: f64,
    pub broker_cpu_seconds: f64,
    pub broker_resident_bytes: u64,
    pub broker_peak_resident_bytes: u64,
    pub client_cpu_seconds: f64,
    pub machine_cpu_seconds: f64,
}

/// What a run gave.
pub struct Outcome {
    /// By kind and second.
    pub intervals: BTreeMap<(Kind, u64), Interval>,
    /// Of the measured part.
    pub seconds: f64,
    /// The first is at its begin, the last at its end.
    pub samples: Vec<Sample>,
    /// What stopped a thread.
    pub failures: Failures,
    pub verdict: Option<Verdict>,
    pub began_epoch_ns: i64,
    /// The longest time for which the thread that only sleeps woke up too late.
    pub stall_seconds: f64,
}

/// What a progress display may show.
pub struct Live<'a> {
    pub at_seconds: f64,
    /// Of the whole run with its warm-up; none if only the broker decides when it ends.
    pub of_seconds: Option<f64>,
    pub acknowledged: u64,
    pub delivered: u64,
    pub failures: u64,
    /// The last second that is complete.
    pub last: Option<&'a Interval>,
}

/// This process's share of a run with several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    pub index: u32,
    pub count: u32,
    /// The same for all.
    pub run: u64,
}

impl Share {
    /// The only process.
    pub fn whole() -> Self {
        Self {
            index: 0,
            count: 1,
            run: fastrand::u64(..),
        }
    }
}

/// A run that only needs its start.
pub struct Prepared {
    plan: Plan,
    share: Share,
    producers: Vec<Producer>,
    consumers: Vec<Consumer>,
    pub settings: BTreeMap<String, String>,
    /// Messages that a catch-up has in front of it.
    pub backlog: u64,
}

/// Number `index` of `count` as equal parts of `all`.
fn part(all: usize, index: usize, count: usize) -> usize {
    all / count + usize::from(index < all % count)
}

fn queues_of(plan: &Plan) -> Result<Queues, String> {
    let brokers = match &plan.broker {
        Some(address) => vec![Broker {
            name: String::new(),
            address: resolve(address).map_err(|error| error.to_string())?,
        }],
        None => Control::connect(&plan.namesrv)
            .and_then(|mut namesrv| namesrv.brokers())
            .map_err(|error| error.to_string())?,
    };
    Ok(Queues {
        brokers,
        topics: plan.topic_names(),
        per_topic: plan.queues,
    })
}

/// Makes the topics, asks for settings and offsets, connects.
pub fn prepare(plan: &Plan, share: Share) -> Result<Prepared, String> {
    plan.check()?;
    let queues = Arc::new(queues_of(plan)?);
    let mut settings = BTreeMap::new();
    let mut assigned = Vec::new();
    for (index, broker) in queues.brokers.iter().enumerate() {
        let mut control =
            Control::connect(&broker.address.to_string()).map_err(|error| error.to_string())?;
        if index == 0 {
            // A broker that does not tell them is measured all the same.
            settings = control.broker_config().unwrap_or_default();
        }
        if plan.produce.is_some() && share.index == 0 {
            for topic in queues.topics.iter().filter(|topic| *topic != OWN_TOPIC) {
                control
                    .make_topic(topic, plan.queues)
                    .map_err(|error| error.to_string())?;
            }
        }
        if let Some(consume) = &plan.consume {
            for queue in queues
                .of_broker(index)
                .filter(|queue| *queue as u32 % share.count == share.index)
            {
                let offset = |control: &mut Control, newest| {
                    control
                        .offset(queues.topic(queue), queues.id(queue), newest)
                        .map_err(|error| error.to_string())
                };
                let end = offset(&mut control, true)?;
                assigned.push(match consume.mode {
                    Mode::Hot => Assigned {
                        queue,
                        from: end,
                        until: None,
                    },
                    Mode::CatchUp | Mode::Cold => Assigned {
                        queue,
                        from: offset(&mut control, false)?,
                        until: Some(end),
                    },
                });
            }
        }
    }
    let backlog = assigned
        .iter()
        .filter_map(|one| Some(one.until?.saturating_sub(one.from)))
        .sum();
    let mut producers = Vec::new();
    if let Some(produce) = &plan.produce {
        for spec in producer_specs(plan, produce, share, &queues) {
            producers.push(Producer::new(spec).map_err(|error| error.to_string())?);
        }
    }
    let mut consumers = Vec::new();
    if let Some(consume) = &plan.consume {
        if consume.mode == Mode::Cold {
            drop_page_cache();
        }
        let threads = consume.threads.min(assigned.len().max(1));
        for index in 0..threads {
            let spec = ConsumerSpec {
                run: share.run,
                queues: queues.clone(),
                assigned: assigned
                    .iter()
                    .copied()
                    .skip(index)
                    .step_by(threads)
                    .collect(),
                connections: part(consume.connections, index, threads).max(1),
                group: consume.group.clone(),
                pull_messages: consume.pull_messages,
                fetch_bytes: consume.fetch_bytes,
                protocol: plan.protocol,
                check_crc: consume.check_crc || plan.verify,
                keep_entries: plan.verify,
                encoding: encoding(plan.header),
                cpu: (!consume.cpus.is_empty()).then(|| consume.cpus[index % consume.cpus.len()]),
            };
            consumers.push(Consumer::new(spec).map_err(|error| error.to_string())?);
        }
    }
    Ok(Prepared {
        plan: plan.clone(),
        share,
        producers,
        consumers,
        settings,
        backlog,
    })
}

fn producer_specs(
    plan: &Plan,
    produce: &Produce,
    share: Share,
    queues: &Arc<Queues>,
) -> Vec<ProducerSpec> {
    let message = filler(plan.size);
    let all = produce.threads * share.count as usize;
    // Of the whole run: threads of all processes.
    let rate = |messages: f64| messages / produce.batch as f64 / all as f64;
    let mut properties = Vec::new();
    if let Some(tag) = &produce.tag {
        properties.push((name::TAGS.to_owned(), tag.clone()));
    }
    let group = "benchmark_producer";
    if produce.transaction.is_some() {
        properties.push((name::TRANSACTION_PREPARED.to_owned(), "true".to_owned()));
        properties.push((name::PRODUCER_GROUP.to_owned(), group.to_owned()));
    }
    (0..produce.threads)
        .map(|index| {
            let number = share.index as usize * produce.threads + index;
            ProducerSpec {
                number: number as u32,
                run: share.run,
                queues: queues.clone(),
                shape: SendShape {
                    encoding: encoding(plan.header),
                    producer_group: group.to_owned(),
                    batch: produce.batch,
                    key_prefix: format!("{:012X}{:04X}", share.run >> 16, number as u16),
                    properties: properties.clone(),
                    sys_flag: match produce.transaction {
                        Some(_) => SYS_FLAG_TRANSACTION_PREPARED,
                        None => 0,
                    },
                },
                protocol: plan.protocol,
                message: message.clone(),
                connections: part(produce.connections, number, all).max(1),
                in_flight: match produce.rate {
                    None => part(produce.in_flight, number, all).max(1),
                    // The rate decides; this only bounds memory when the broker stands still.
                    Some(_) => IN_FLIGHT_MAX / 4,
                },
                arrivals: match produce.rate {
                    None => Arrivals::Closed,
                    Some(messages) => Arrivals::Open {
                        rate: rate(messages),
                        poisson: produce.poisson,
                        burst: produce.burst.map(|burst| Burst {
                            rate: rate(burst.rate),
                            ..burst
                        }),
                    },
                },
                skew: produce.skew,
                rollback_percent: produce.transaction.map(|one| one.rollback_percent),
                keep_entries: plan.verify && plan.consume.is_some(),
                cpu: (!produce.cpus.is_empty()).then(|| produce.cpus[index % produce.cpus.len()]),
            }
        })
        .collect()
}

/// For brokers that read through the page cache. Only root may, so that it cannot be a condition.
fn drop_page_cache() {
    rustix::fs::sync();
    if let Err(error) = fs::write("/proc/sys/vm/drop_caches", "1") {
        eprintln!(
            "warning: the page cache stays as it is ({error}); a broker that reads through it may read from memory"
        );
    }
}

impl Prepared {
    /// Runs it; `watch` is called about every second.
    pub fn execute(self, mut watch: impl FnMut(&Live)) -> Outcome {
        let Self {
            plan,
            share,
            producers,
            consumers,
            ..
        } = self;
        let catches_up = producers.is_empty()
            && plan
                .consume
                .as_ref()
                .is_some_and(|consume| consume.mode != Mode::Hot);
        let nanos = |seconds: f64| (seconds * 1e9) as u64;
        let warm_ns = if catches_up {
            0
        } else {
            nanos(plan.warm_seconds)
        };
        let window = Window {
            from_ns: if catches_up { 0 } else { LEAD_NS + warm_ns },
            // A catch-up ends where its backlog does.
            until_ns: if catches_up {
                u64::MAX
            } else {
                LEAD_NS + warm_ns + nanos(plan.seconds)
            },
        };
        let shared = Shared {
            origin: Origin::now(),
            until_ns: window.until_ns,
            stop: AtomicBool::new(false),
            acknowledged: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
        };
        let (sender, receiver) = channel();
        let recorder = |kind, sender: &std::sync::mpsc::Sender<Interval>| {
            Recorder::new(kind, window, sender.clone())
        };
        let acknowledged = Mutex::new(Vec::<Entry>::new());
        let delivered = Mutex::new(Vec::<Entry>::new());
        let failures = Mutex::new(Failures::new());
        let last_ns = AtomicU64::new(0);
        let threads = producers.len();
        let producing = AtomicU64::new(threads as u64);
        let consuming = AtomicU64::new(consumers.len() as u64);
        let mut collector = Collector {
            receiver,
            intervals: BTreeMap::new(),
            samples: Vec::new(),
            pids: plan.broker_pids.clone(),
            window,
            stall_ns: 0,
        };
        thread::scope(|scope| {
            for (index, producer) in producers.into_iter().enumerate() {
                let recorder = recorder(Kind::Publish, &sender);
                let (shared, failures, acknowledged, producing) =
                    (&shared, &failures, &acknowledged, &producing);
                // Threads of one rate take turns.
                let share_of_gap = match plan
                    .produce
                    .as_ref()
                    .and_then(|produce| Some((produce.rate?, produce.batch)))
                {
                    Some((rate, batch)) => {
                        let number = share.index as usize * threads + index;
                        (1e9 * batch as f64 / rate * number as f64) as u64
                    }
                    None => 0,
                };
                scope.spawn(move || {
                    let done = producer.run(shared, recorder, LEAD_NS + share_of_gap);
                    lock(acknowledged).extend(done.entries);
                    if let Some(error) = done.error {
                        add_failure(&mut lock(failures), "producer thread", 1, &error);
                    }
                    producing.fetch_sub(1, Ordering::Release);
                });
            }
            for consumer in consumers {
                let recorders = Recorders {
                    pull: recorder(Kind::Pull, &sender),
                    end_to_end: recorder(Kind::EndToEnd, &sender),
                };
                let (shared, failures, delivered, consuming, last_ns) =
                    (&shared, &failures, &delivered, &consuming, &last_ns);
                scope.spawn(move || {
                    let done = consumer.run(shared, recorders);
                    lock(delivered).extend(done.entries);
                    if let Some(error) = done.error {
                        add_failure(&mut lock(failures), "consumer thread", 1, &error);
                    }
                    last_ns.fetch_max(done.last_ns, Ordering::Relaxed);
                    consuming.fetch_sub(1, Ordering::Release);
                });
            }
            drop(sender);
            let mut gives_up_ns = None;
            let mut shown = Instant::now();
            loop {
                let ended = collector.tick(&shared);
                let now_ns = shared.origin.elapsed_ns();
                let (acks, deliveries) = (
                    shared.acknowledged.load(Ordering::Relaxed),
                    shared.delivered.load(Ordering::Relaxed),
                );
                if producing.load(Ordering::Acquire) == 0
                    && !catches_up
                    && now_ns >= window.until_ns
                {
                    let limit_ns = *gives_up_ns.get_or_insert(
                        now_ns
                            + if share.count > 1 {
                                SHARED_DELIVERY_NS
                            } else {
                                DELIVERY_NS
                            },
                    );
                    if threads == 0
                        || (share.count == 1 && deliveries >= acks)
                        || now_ns >= limit_ns
                    {
                        shared.stop.store(true, Ordering::Relaxed);
                    }
                }
                let all_failed = threads > 0
                    && producing.load(Ordering::Acquire) == 0
                    && now_ns < window.until_ns;
                if all_failed
                    || (!catches_up && consuming.load(Ordering::Acquire) == 0 && threads == 0)
                {
                    shared.stop.store(true, Ordering::Relaxed);
                }
                if ended {
                    break;
                }
                if shown.elapsed() >= Duration::from_secs(1) {
                    shown = Instant::now();
                    watch(&collector.live(now_ns, acks, deliveries));
                }
            }
        });
        collector.sample(&shared);
        let seconds = if catches_up {
            last_ns
                .load(Ordering::Relaxed)
                .saturating_sub(window.from_ns)
                .max(1) as f64
                / 1e9
        } else {
            plan.seconds
        };
        let verdict = (plan.verify && plan.consume.is_some() && plan.produce.is_some())
            .then(|| judge(into_inner(acknowledged), into_inner(delivered)));
        Outcome {
            intervals: collector.intervals,
            seconds,
            samples: collector.samples,
            failures: into_inner(failures),
            verdict,
            stall_seconds: collector.stall_ns as f64 / 1e9,
            began_epoch_ns: shared.origin.epoch_ns(window.from_ns),
        }
    }
}

/// A thread that panicked while it held the lock left whole values behind.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn into_inner<T>(mutex: Mutex<T>) -> T {
    mutex
        .into_inner()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

struct Collector {
    receiver: Receiver<Interval>,
    intervals: BTreeMap<(Kind, u64), Interval>,
    samples: Vec<Sample>,
    pids: Vec<u32>,
    window: Window,
    stall_ns: u64,
}

impl Collector {
    /// Waits a moment for intervals and samples when that is due; true if all threads have ended.
    fn tick(&mut self, shared: &Shared) -> bool {
        let now_ns = shared.origin.elapsed_ns();
        let due_ns = self
            .window
            .from_ns
            .saturating_add(self.samples.len() as u64 * 1_000_000_000)
            .min(self.window.until_ns);
        let is_over = self.samples.last().is_some_and(|last| {
            last.at_seconds >= (self.window.until_ns - self.window.from_ns) as f64 / 1e9
        });
        if now_ns >= due_ns && !is_over {
            self.sample(shared);
        }
        let wait = if is_over {
            TICK
        } else {
            Duration::from_nanos(due_ns.saturating_sub(now_ns)).min(TICK)
        };
        let before_ns = shared.origin.elapsed_ns();
        let received = self.receiver.recv_timeout(wait);
        let late_ns =
            (shared.origin.elapsed_ns() - before_ns).saturating_sub(wait.as_nanos() as u64);
        if self.window.contains(before_ns) {
            self.stall_ns = self.stall_ns.max(late_ns);
        }
        match received {
            Ok(interval) => {
                let key = (interval.kind, interval.index);
                match self.intervals.entry(key) {
                    std::collections::btree_map::Entry::Vacant(entry) => {
                        entry.insert(interval);
                    }
                    std::collections::btree_map::Entry::Occupied(mut entry) => {
                        entry.get_mut().merge(interval)
                    }
                }
                false
            }
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => true,
        }
    }

    /// Looks at the processes; behind the window nothing is measured any more.
    fn sample(&mut self, shared: &Shared) {
        let now_ns = shared.origin.elapsed_ns();
        let at_seconds = (now_ns as f64 - self.window.from_ns as f64) / 1e9;
        let length = (self.window.until_ns - self.window.from_ns) as f64 / 1e9;
        if at_seconds < 0.0
            || self
                .samples
                .last()
                .is_some_and(|last| last.at_seconds >= length)
        {
            return;
        }
        let broker = usage(&self.pids).unwrap_or_default();
        self.samples.push(Sample {
            at_seconds,
            broker_cpu_seconds: broker.cpu_seconds,
            broker_resident_bytes: broker.resident_bytes,
            broker_peak_resident_bytes: broker.peak_resident_bytes,
            client_cpu_seconds: own_cpu_seconds(),
            machine_cpu_seconds: machine_cpu_seconds(),
        });
    }

    fn live(&self, now_ns: u64, acknowledged: u64, delivered: u64) -> Live<'_> {
        let failures = self
            .intervals
            .values()
            .map(|one| failure_count(&one.failures))
            .sum();
        Live {
            at_seconds: now_ns as f64 / 1e9,
            of_seconds: (self.window.until_ns != u64::MAX)
                .then_some(self.window.until_ns as f64 / 1e9),
            acknowledged,
            delivered,
            failures,
            last: self.intervals.values().next_back(),
        }
    }
}
