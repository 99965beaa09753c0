//! The command line: flags to a run, a run to text.

use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ringmq::wire::remoting::command::Encoding;

use crate::control::{Broker, Control, resolve};
use crate::frames::SendShape;
use crate::measure::{Failures, Interval, Recorder, Window, add_failure, histogram};
use crate::payload::filler;
use crate::process::{Usage, own_cpu_seconds, usage};
use crate::producer::{Origin, Worker};
use crate::schedule::Arrivals;

/// The topic of RocketMQ's own benchmarks: every broker has it, with 1,024 queues, and lets nobody change it.
const OWN_TOPIC: &str = "BenchmarkTest";

/// Load for brokers that speak the Apache RocketMQ remoting protocol.
#[derive(Parser)]
#[command(name = "ringmq-bench", version)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Send messages one by one (SEND_MESSAGE_V2)
    Producer(ProducerArgs),
    /// Send messages in batches (SEND_BATCH_MESSAGE)
    Batchproducer(BatchArgs),
}

/// How headers are written.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Header {
    /// As Java clients do by default
    Json,
    /// RocketMQ's binary header
    Binary,
}

#[derive(Args, Clone)]
struct ProducerArgs {
    /// Name server; all brokers that it knows are used
    #[arg(
        short = 'n',
        long,
        env = "NAMESRV_ADDR",
        default_value = "127.0.0.1:9876"
    )]
    namesrv: String,
    /// Broker, without asking a name server
    #[arg(long)]
    broker: Option<String>,
    /// Process of the broker, to count its CPU time and memory; several with commas
    #[arg(long, value_delimiter = ',')]
    broker_pid: Vec<u32>,
    /// Topic; it is made. With --topics the names get a number
    #[arg(short, long, default_value = "RingmqBench")]
    topic: String,
    /// Number of topics
    #[arg(long, default_value_t = 1)]
    topics: usize,
    /// Queues of each topic on each broker
    #[arg(long, default_value_t = 4)]
    queues: u32,
    /// Bytes of a message's body
    #[arg(short = 's', long, default_value_t = 1024)]
    size: usize,
    /// Requests in flight, over all connections (in the original: threads)
    #[arg(short = 'w', long, default_value_t = 64)]
    in_flight: usize,
    /// Connections to each broker, over all threads
    #[arg(short, long, default_value_t = 1)]
    connections: usize,
    /// Threads of this program
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Processors to pin the threads to, in turns
    #[arg(long, value_delimiter = ',')]
    cpus: Vec<usize>,
    /// Open loop: messages per second. Latency counts from the moment that a message was due
    #[arg(long)]
    rate: Option<f64>,
    /// Seconds of load before the measurement
    #[arg(long, default_value_t = 2.0)]
    warm: f64,
    /// Seconds of the measurement
    #[arg(long, default_value_t = 5.0)]
    secs: f64,
    /// Encoding of request headers
    #[arg(long, value_enum, default_value = "json")]
    header: Header,
}

#[derive(Args, Clone)]
struct BatchArgs {
    /// Messages of a request
    #[arg(short = 'b', long, default_value_t = 32)]
    batch: usize,
    #[command(flatten)]
    producer: ProducerArgs,
}

/// Runs what the command line says.
pub fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Producer(args) => produce(&args, 1),
        Verb::Batchproducer(args) => produce(&args.producer, args.batch),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("ringmq-bench: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn brokers(args: &ProducerArgs) -> Result<Vec<Broker>, String> {
    match &args.broker {
        Some(address) => Ok(vec![Broker {
            name: String::new(),
            address: resolve(address).map_err(|error| error.to_string())?,
        }]),
        None => Control::connect(&args.namesrv)
            .and_then(|mut namesrv| namesrv.brokers())
            .map_err(|error| error.to_string()),
    }
}

fn produce(args: &ProducerArgs, batch: usize) -> Result<(), String> {
    let brokers = brokers(args)?;
    let topics: Vec<_> = (0..args.topics)
        .map(|index| {
            if args.topics == 1 {
                args.topic.clone()
            } else {
                format!("{}{index}", args.topic)
            }
        })
        .collect();
    for broker in &brokers {
        let mut control =
            Control::connect(&broker.address.to_string()).map_err(|error| error.to_string())?;
        for topic in topics.iter().filter(|topic| *topic != OWN_TOPIC) {
            control
                .make_topic(topic, args.queues)
                .map_err(|error| error.to_string())?;
        }
    }
    let origin = Origin::now();
    let run = fastrand::u64(..);
    let nanos = |seconds: f64| (seconds * 1e9) as u64;
    let begin_ns = nanos(0.2);
    let window = Window {
        from_ns: begin_ns + nanos(args.warm),
        until_ns: begin_ns + nanos(args.warm) + nanos(args.secs),
    };
    let (sender, intervals) = channel::<Interval>();
    let stop = AtomicBool::new(false);
    let message = filler(args.size);
    let workers: Vec<_> = (0..args.threads)
        .map(|number| Worker {
            number: number as u32,
            run,
            origin,
            brokers: brokers.clone(),
            topics: topics.clone(),
            queues: args.queues,
            shape: SendShape {
                encoding: match args.header {
                    Header::Json => Encoding::Json,
                    Header::Binary => Encoding::Binary,
                },
                producer_group: "benchmark_producer".to_owned(),
                batch,
                key_prefix: format!("{:012X}{number:04X}", run >> 16),
                properties: Vec::new(),
            },
            message: message.clone(),
            connections: (args.connections / args.threads).max(1),
            in_flight: match args.rate {
                None => (args.in_flight / args.threads).max(1),
                Some(_) => 1 << 17,
            },
            arrivals: match args.rate {
                None => Arrivals::Closed,
                Some(rate) => Arrivals::Open {
                    gap_ns: 1e9 * batch as f64 * args.threads as f64 / rate,
                },
            },
            first_ns: begin_ns,
            until_ns: window.until_ns,
            cpu: (!args.cpus.is_empty()).then(|| args.cpus[number % args.cpus.len()]),
        })
        .collect();
    let mut usages = [(Usage::default(), 0.0); 2];
    let mut failures = Failures::new();
    thread::scope(|scope| {
        let threads: Vec<_> = workers
            .iter()
            .map(|worker| {
                let recorder = Recorder::new(window, sender.clone());
                let stop = &stop;
                scope.spawn(move || worker.run(recorder, stop))
            })
            .collect();
        drop(sender);
        for (at_ns, slot) in [window.from_ns, window.until_ns]
            .into_iter()
            .zip(&mut usages)
        {
            thread::sleep(Duration::from_nanos(
                at_ns.saturating_sub(origin.elapsed_ns()),
            ));
            slot.0 = usage(&args.broker_pid).unwrap_or_default();
            slot.1 = own_cpu_seconds();
        }
        for thread in threads {
            match thread.join() {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => add_failure(&mut failures, "connection", 1, &error.to_string()),
                Err(_) => add_failure(&mut failures, "panic", 1, "a worker ended by a panic"),
            }
        }
    });
    let mut total = histogram();
    let mut messages = 0;
    for interval in intervals {
        messages += interval.messages;
        let _ = total.add(&interval.latencies);
        for (kind, failure) in interval.failures {
            add_failure(&mut failures, &kind, failure.count, &failure.remark);
        }
    }
    let ms = |ns: u64| ns as f64 / 1e6;
    let errors: u64 = failures.values().map(|failure| failure.count).sum();
    println!(
        "{:.0} messages/s, latency ms p50 {:.3} p99 {:.3} p999 {:.3} max {:.3}, {errors} errors",
        messages as f64 / args.secs,
        ms(total.value_at_quantile(0.5)),
        ms(total.value_at_quantile(0.99)),
        ms(total.value_at_quantile(0.999)),
        ms(total.max()),
    );
    let per_million = |seconds: f64| seconds * 1e6 / messages.max(1) as f64;
    println!(
        "client CPU {:.2} s ({:.2} s per million messages)",
        usages[1].1 - usages[0].1,
        per_million(usages[1].1 - usages[0].1)
    );
    if !args.broker_pid.is_empty() {
        let cpu = usages[1].0.cpu_seconds - usages[0].0.cpu_seconds;
        println!(
            "broker CPU {cpu:.2} s ({:.2} s per million messages), resident {} MiB, peak {} MiB",
            per_million(cpu),
            usages[1].0.resident_bytes >> 20,
            usages[1].0.peak_resident_bytes >> 20
        );
    }
    for (kind, failure) in &failures {
        println!("error {kind}: {} times: {}", failure.count, failure.remark);
    }
    if messages == 0 {
        return Err("no message was acknowledged".to_owned());
    }
    Ok(())
}
