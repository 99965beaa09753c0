//! The command line: flags to a plan, a run to text and files.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::agents::{coordinate, machine_of, serve};
use crate::control::Control;
use crate::floor::{floor, text};
use crate::measure::{Kind, histogram};
use crate::overload::{OverloadPlan, overload};
use crate::peer::Peer;
use crate::plan::{
    Burst, Consume, Header, Mode, Plan, Produce, Protocol, Transaction, fetch_bytes,
};
use crate::progress::Progress;
use crate::report::{RESULTS_MAX, load_of, page};
use crate::result::{Parts, RunResult, decode, summarise, write_hlog};
use crate::run::{Share, prepare};
use crate::search::Search;
use crate::table::markdown;
use crate::workload::Workload;

/// Load for brokers that speak the Apache RocketMQ remoting protocol.
///
/// Closed loop: --in-flight requests are always on their way. Open loop (--rate): a request is due whether or not the broker
/// keeps up, and its latency counts from that moment.
#[derive(Parser)]
#[command(name = "ringmq-bench", version)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Send messages one by one (SEND_MESSAGE_V2)
    Producer(ProduceArgs),
    /// Send messages in batches (SEND_BATCH_MESSAGE)
    Batchproducer(ProduceArgs),
    /// Send half messages and end their transactions
    Tproducer(TransactionArgs),
    /// Pull messages (PULL_MESSAGE)
    Consumer(ConsumerArgs),
    /// Send and pull, with the latency from the due time to the delivery
    EndToEnd(EndToEndArgs),
    /// Find the highest rate that holds a latency bound
    Search(SearchArgs),
    /// Offer more than the broker can take, and a storm of clients: goodput, reasons of refusals, memory
    Overload(OverloadArgs),
    /// Run a workload file of the OpenMessaging Benchmark
    Workload(WorkloadArgs),
    /// Make load for a coordinator (--agents), one after the other
    Agent(AgentArgs),
    /// Run the load generator of another broker, and count the CPU time of both
    Peer(PeerArgs),
    /// What a round trip with a flushed write costs on this machine without any broker
    Floor {
        /// Directory on the file system of the broker's store
        #[arg(long, default_value = ".")]
        store: PathBuf,
        /// Seconds for each of the two measurements
        #[arg(long, default_value_t = 3.0)]
        secs: f64,
    },
    /// Show results side by side: a table, and a page with --html
    Compare(CompareArgs),
    /// Medians of results by case and side (CASE/SIDE is their name), as a Markdown table
    Table {
        /// Results (--json)
        #[arg(required = true)]
        results: Vec<PathBuf>,
    },
}

/// The cluster that is measured.
#[derive(Args, Clone)]
struct Target {
    /// Name server; all brokers that it knows are used, but by overload, which loads the first
    #[arg(
        short = 'n',
        long,
        env = "NAMESRV_ADDR",
        default_value = "127.0.0.1:9876"
    )]
    namesrv: String,
    /// Process of the broker, to count its CPU time and memory; several with commas
    #[arg(long, value_delimiter = ',')]
    broker_pid: Vec<u32>,
}

#[derive(Args, Clone)]
struct Common {
    #[command(flatten)]
    target: Target,
    /// Broker, without asking a name server
    #[arg(long)]
    broker: Option<String>,
    /// Topic; a producer makes it. With --topics the names get a number
    #[arg(short, long, default_value = "RingmqBench")]
    topic: String,
    /// Number of topics
    #[arg(long, default_value_t = 1)]
    topics: usize,
    /// Queues of each topic on each broker
    #[arg(long, default_value_t = 4)]
    queues: u32,
    /// Connections to each broker, over all threads
    #[arg(short, long, default_value_t = 1)]
    connections: usize,
    /// Threads of this program
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Processors to pin the threads to, in turns
    #[arg(long, value_delimiter = ',')]
    cpus: Vec<usize>,
    /// Seconds of load before the measurement
    #[arg(long, default_value_t = 2.0)]
    warm: f64,
    /// Seconds of the measurement
    #[arg(long, default_value_t = 5.0)]
    secs: f64,
    /// Encoding of request headers
    #[arg(long, value_enum, default_value = "json")]
    header: Header,
    /// What is spoken with the broker; topics are made by remoting in any case
    #[arg(long, value_enum, default_value = "remoting")]
    protocol: Protocol,
    /// Name of the result
    #[arg(long, default_value = "")]
    name: String,
    #[command(flatten)]
    output: Output,
}

#[derive(Args, Clone)]
struct Output {
    /// Write the result as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write the result as a page
    #[arg(long)]
    html: Option<PathBuf>,
    /// Agents that make the load instead of this process; see `agent`
    #[arg(long, value_delimiter = ',')]
    agents: Vec<String>,
    /// Write the latencies of every second as an HdrHistogram interval log
    #[arg(long)]
    hlog: Option<PathBuf>,
}

#[derive(Args, Clone)]
struct Load {
    /// Bytes of a message's body
    #[arg(short = 's', long, default_value_t = 1024)]
    size: usize,
    /// Requests in flight, over all connections (in the original: threads)
    #[arg(short = 'w', long, default_value_t = 64)]
    in_flight: usize,
    /// Open loop: messages per second. Latency counts from the moment that a message was due
    #[arg(long)]
    rate: Option<f64>,
    /// Random gaps (a Poisson process) instead of equal ones
    #[arg(long, requires = "rate")]
    poisson: bool,
    /// Bursts, as RATE,EVERY,FOR: every EVERY seconds RATE messages per second for FOR seconds
    #[arg(long, requires = "rate", value_parser = burst)]
    burst: Option<Burst>,
    /// Exponent of a Zipf distribution over the queues; 0 takes them in turns
    #[arg(long, default_value_t = 0.0)]
    skew: f64,
    /// TAGS of every message
    #[arg(long)]
    tag: Option<String>,
}

#[derive(Args, Clone)]
struct ProduceArgs {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    load: Load,
    /// Messages of a request [default of batchproducer: 32]
    #[arg(short = 'b', long)]
    batch: Option<usize>,
}

#[derive(Args, Clone)]
struct TransactionArgs {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    load: Load,
    /// Of 100 transactions, so many are rolled back
    #[arg(long, default_value_t = 0.0)]
    rollback_percent: f64,
}

#[derive(Args, Clone)]
struct Pulls {
    /// Consumer group
    #[arg(short, long, default_value = "benchmark_consumer")]
    group: String,
    /// Messages that one pull asks for
    #[arg(long, default_value_t = 32)]
    pull_messages: u32,
    /// Bytes that one fetch asks for (--protocol native)
    #[arg(long, default_value_t = fetch_bytes())]
    fetch_bytes: u32,
    /// Check the CRC of every body
    #[arg(long)]
    check_crc: bool,
}

#[derive(Args, Clone)]
struct ConsumerArgs {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    pulls: Pulls,
    /// Where to begin and end
    #[arg(long, value_enum, default_value = "hot")]
    mode: Mode,
}

#[derive(Args, Clone)]
struct EndToEndArgs {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    load: Load,
    #[command(flatten)]
    pulls: Pulls,
    /// Messages of a request
    #[arg(short = 'b', long, default_value_t = 1)]
    batch: usize,
    /// Count lost, duplicated, misplaced and reordered messages; takes about 80 bytes of memory per message
    #[arg(long)]
    verify: bool,
}

#[derive(Args, Clone)]
struct SearchArgs {
    #[command(flatten)]
    produce: ProduceArgs,
    /// The bound in milliseconds
    #[arg(long, default_value_t = 10.0)]
    bound_ms: f64,
    /// The quantile that has to stay below it
    #[arg(long, default_value_t = 0.99)]
    quantile: f64,
    /// The first rate, messages per second
    #[arg(long, default_value_t = 10_000.0)]
    first: f64,
    /// Precision of the answer, as a ratio
    #[arg(long, default_value_t = 1.05)]
    precision: f64,
    /// Measure end to end instead of the acknowledgement
    #[arg(long)]
    end_to_end: bool,
}

#[derive(Args, Clone)]
struct OverloadArgs {
    #[command(flatten)]
    target: Target,
    #[arg(short, long, default_value = "RingmqOverload")]
    topic: String,
    #[arg(long, default_value_t = 8)]
    queues: u32,
    /// Bytes of a message's body
    #[arg(short = 's', long, default_value_t = 1024)]
    size: usize,
    #[arg(short, long, default_value_t = 200)]
    connections: usize,
    /// Requests in flight while the peak is looked for
    #[arg(short = 'w', long, default_value_t = 1024)]
    in_flight: usize,
    /// Seconds of each phase
    #[arg(long, default_value_t = 10.0)]
    secs: f64,
    /// Multiples of the peak that are offered
    #[arg(long, value_delimiter = ',', default_values_t = [2.0, 10.0])]
    factors: Vec<f64>,
    /// Consumers beside the load that ask for much and take little
    #[arg(long, default_value_t = 8)]
    slow_consumers: usize,
    /// Seconds in which they come back
    #[arg(long, default_value_t = 10.0)]
    storm_secs: f64,
    /// Clients that go away at once and come back at the end; 0: none. Each needs a file descriptor here and one at the broker
    #[arg(long, default_value_t = 10_000)]
    storm: usize,
    /// Write the result as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Args, Clone)]
struct WorkloadArgs {
    /// The file
    file: PathBuf,
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    load: Load,
    #[command(flatten)]
    pulls: Pulls,
    /// Messages of a request
    #[arg(short = 'b', long, default_value_t = 1)]
    batch: usize,
    /// Take --warm and --secs instead of the file's minutes
    #[arg(long)]
    short: bool,
}

#[derive(Args, Clone)]
struct AgentArgs {
    /// Whoever reaches this address decides what load this machine makes
    #[arg(long, default_value = "127.0.0.1:7700")]
    listen: String,
    /// End after the first run
    #[arg(long)]
    once: bool,
}

#[derive(Args, Clone)]
struct PeerArgs {
    /// Process of the broker, to count its CPU time and memory; several with commas
    #[arg(long, value_delimiter = ',')]
    broker_pid: Vec<u32>,
    /// Name of the result
    #[arg(long, default_value = "peer")]
    name: String,
    /// When the broker acknowledges, in a word or two
    #[arg(long, default_value = "unknown")]
    flush: String,
    /// Directory of the broker's store, to note its file system
    #[arg(long)]
    store: Option<String>,
    /// Write the result as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Program and arguments; what it has to print is in bench/README.md
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

#[derive(Args, Clone)]
struct CompareArgs {
    /// Results (--json), at most 8
    #[arg(required = true, num_args = 1..=RESULTS_MAX)]
    results: Vec<PathBuf>,
    /// Write a page
    #[arg(long)]
    html: Option<PathBuf>,
}

fn burst(text: &str) -> Result<Burst, String> {
    let numbers: Result<Vec<f64>, _> = text.split(',').map(|part| part.trim().parse()).collect();
    match numbers.as_deref() {
        Ok([rate, every_seconds, for_seconds]) => Ok(Burst {
            rate: *rate,
            every_seconds: *every_seconds,
            for_seconds: *for_seconds,
        }),
        _ => Err("three numbers are wanted, RATE,EVERY,FOR".to_owned()),
    }
}

impl Common {
    fn plan(&self, verb: &str) -> Plan {
        Plan {
            name: if self.name.is_empty() {
                verb.to_owned()
            } else {
                self.name.clone()
            },
            namesrv: self.target.namesrv.clone(),
            broker: self.broker.clone(),
            broker_pids: self.target.broker_pid.clone(),
            topic: self.topic.clone(),
            topics: self.topics,
            queues: self.queues,
            size: 0,
            header: self.header,
            protocol: self.protocol,
            produce: None,
            consume: None,
            warm_seconds: self.warm,
            seconds: self.secs,
            verify: false,
        }
    }

    fn produce(&self, load: &Load, batch: usize) -> Produce {
        Produce {
            batch,
            in_flight: load.in_flight,
            connections: self.connections,
            threads: self.threads,
            cpus: self.cpus.clone(),
            rate: load.rate,
            poisson: load.poisson,
            burst: load.burst,
            skew: load.skew,
            tag: load.tag.clone(),
            transaction: None,
        }
    }

    fn consume(&self, pulls: &Pulls, mode: Mode) -> Consume {
        Consume {
            mode,
            group: pulls.group.clone(),
            connections: self.connections,
            threads: self.threads,
            cpus: self.cpus.clone(),
            pull_messages: pulls.pull_messages,
            fetch_bytes: pulls.fetch_bytes,
            check_crc: pulls.check_crc,
        }
    }
}

/// Runs what the command line says.
pub fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Producer(args) => produce(&args, "producer", 1),
        Verb::Batchproducer(args) => produce(&args, "batchproducer", 32),
        Verb::Tproducer(args) => {
            let mut produce = args.common.produce(&args.load, 1);
            produce.transaction = Some(Transaction {
                rollback_percent: args.rollback_percent,
            });
            let plan = Plan {
                size: args.load.size,
                produce: Some(produce),
                ..args.common.plan("tproducer")
            };
            run(&plan, &args.common.output)
        }
        Verb::Consumer(args) => {
            let plan = Plan {
                consume: Some(args.common.consume(&args.pulls, args.mode)),
                ..args.common.plan("consumer")
            };
            run(&plan, &args.common.output)
        }
        Verb::EndToEnd(args) => {
            let plan = Plan {
                size: args.load.size,
                produce: Some(args.common.produce(&args.load, args.batch)),
                consume: Some(args.common.consume(&args.pulls, Mode::Hot)),
                verify: args.verify,
                ..args.common.plan("end-to-end")
            };
            run(&plan, &args.common.output)
        }
        Verb::Search(args) => search(&args),
        Verb::Overload(args) => overload_of(&args),
        Verb::Workload(args) => workload(&args),
        Verb::Agent(args) => serve(&args.listen, args.once),
        Verb::Peer(args) => peer(args),
        Verb::Floor { store, secs } => lowest(&store, secs),
        Verb::Compare(args) => compare(&args),
        Verb::Table { results } => load(&results).map(|results| print!("{}", markdown(&results))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("ringmq-bench: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn lowest(store: &Path, secs: f64) -> Result<(), String> {
    let time = Duration::try_from_secs_f64(secs).map_err(|error| format!("--secs: {error}"))?;
    let floors = floor(store, time).map_err(|error| format!("{}: {error}", store.display()))?;
    print!("{}", text(&floors));
    Ok(())
}

fn produce(args: &ProduceArgs, verb: &str, batch: usize) -> Result<(), String> {
    let plan = Plan {
        size: args.load.size,
        produce: Some(args.common.produce(&args.load, args.batch.unwrap_or(batch))),
        ..args.common.plan(verb)
    };
    run(&plan, &args.common.output)
}

fn overload_of(args: &OverloadArgs) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let mut namesrv = Control::connect(&args.target.namesrv).map_err(|error| text(&error))?;
    let brokers = namesrv.brokers().map_err(|error| text(&error))?;
    let broker = brokers.into_iter().next().ok_or("there is no broker")?;
    let plan = OverloadPlan {
        broker,
        broker_pids: args.target.broker_pid.clone(),
        topic: args.topic.clone(),
        queues: args.queues.max(1),
        size: args.size,
        connections: args.connections.max(1),
        in_flight: args.in_flight,
        seconds: args.secs,
        factors: args.factors.clone(),
        slow_consumers: args.slow_consumers,
        storm: args.storm,
        storm_seconds: args.storm_secs,
    };
    let result = overload(&plan, |line| println!("{line}")).map_err(|error| text(&error))?;
    if let Some(path) = &args.json {
        let json = serde_json::to_vec_pretty(&result).map_err(|error| text(&error))?;
        std::fs::write(path, json).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

fn peer(args: PeerArgs) -> Result<(), String> {
    let peer = Peer {
        name: args.name,
        broker_pids: args.broker_pid,
        flush: args.flush,
        store: args.store,
        command: args.command,
    };
    let result = peer.run().map_err(|error| error.to_string())?;
    print!("{}", result.text());
    if let Some(path) = &args.json {
        result.save(path).map_err(|error| error.to_string())?;
    }
    verdict_of(&result)
}

/// Runs a plan, prints what came out and writes the files that are wanted.
fn run(plan: &Plan, output: &Output) -> Result<(), String> {
    let result = measure(plan, output)?;
    print!("{}", result.text());
    if let Some(path) = &output.json {
        result.save(path).map_err(|error| error.to_string())?;
    }
    if let Some(path) = &output.html {
        write_page(path, std::slice::from_ref(&result))?;
    }
    verdict_of(&result)
}

fn write_page(path: &Path, results: &[RunResult]) -> Result<(), String> {
    std::fs::write(path, page(results)).map_err(|error| format!("{}: {error}", path.display()))
}

fn load(paths: &[PathBuf]) -> Result<Vec<RunResult>, String> {
    let results: Result<_, _> = paths.iter().map(|path| RunResult::load(path)).collect();
    results.map_err(|error| error.to_string())
}

fn compare(args: &CompareArgs) -> Result<(), String> {
    let results = load(&args.results)?;
    for result in &results {
        println!("{} ({})", result.name, load_of(&result.plan));
        print!("{}", result.text());
    }
    match &args.html {
        Some(path) => write_page(path, &results),
        None => Ok(()),
    }
}

/// Tries rates until the highest one is known that keeps the bound; the result of its run is the one that is written.
fn search(args: &SearchArgs) -> Result<(), String> {
    let common = &args.produce.common;
    let bound_ns = (args.bound_ms * 1e6) as u64;
    let mut search = Search::new(args.first, args.precision);
    let mut best = None;
    while let Some(rate) = search.next() {
        let mut load = args.produce.load.clone();
        load.rate = Some(rate);
        let pulls = Pulls {
            group: "benchmark_consumer".to_owned(),
            pull_messages: 32,
            fetch_bytes: fetch_bytes(),
            check_crc: false,
        };
        let plan = Plan {
            size: load.size,
            produce: Some(common.produce(&load, args.produce.batch.unwrap_or(1))),
            consume: args.end_to_end.then(|| common.consume(&pulls, Mode::Hot)),
            ..common.plan("search")
        };
        let output = Output {
            json: None,
            html: None,
            hlog: None,
            agents: common.output.agents.clone(),
        };
        let result = measure(&plan, &output)?;
        let kind = if args.end_to_end {
            Kind::EndToEnd
        } else {
            Kind::Publish
        };
        let held = result.of(kind).is_some_and(|measured| {
            let reached = measured.latency.count as f64
                * plan.produce.as_ref().map_or(1, |one| one.batch) as f64;
            let histogram = decode(&measured.histogram).unwrap_or_else(|_| histogram());
            println!(
                "{rate:.0} messages/s: {:.0} came, quantile {} is {:.3} ms",
                measured.messages_per_second,
                args.quantile,
                histogram.value_at_quantile(args.quantile) as f64 / 1e6
            );
            // What was due and never answered is missing in the histogram, so the count has to be right too.
            reached >= 0.99 * rate * result.seconds
                && measured.messages_per_second >= 0.99 * rate
                && result.all_failures().is_empty()
                && histogram.value_at_quantile(args.quantile) <= bound_ns
        });
        if held {
            best = Some(result);
        }
        search.tried(held);
    }
    let Some(result) = best else {
        return Err(format!(
            "no rate keeps quantile {} below {} ms",
            args.quantile, args.bound_ms
        ));
    };
    println!(
        "highest rate: {:.0} messages/s keep quantile {} below {} ms",
        search.best().unwrap_or_default(),
        args.quantile,
        args.bound_ms
    );
    print!("{}", result.text());
    if let Some(path) = &common.output.json {
        result.save(path).map_err(|error| error.to_string())?;
    }
    if let Some(path) = &common.output.html {
        write_page(path, std::slice::from_ref(&result))?;
    }
    Ok(())
}

fn workload(args: &WorkloadArgs) -> Result<(), String> {
    let text = std::fs::read_to_string(&args.file)
        .map_err(|error| format!("{}: {error}", args.file.display()))?;
    let file = Workload::parse(&text).map_err(|error| error.to_string())?;
    let base = args.common.plan("workload");
    let produce = args.common.produce(&args.load, args.batch);
    let consume = args.common.consume(&args.pulls, Mode::Hot);
    let mut plan = file
        .plan(base, produce, consume)
        .map_err(|error| error.to_string())?;
    if args.short {
        plan.warm_seconds = args.common.warm;
        plan.seconds = args.common.secs;
    }
    if !args.common.name.is_empty() {
        plan.name.clone_from(&args.common.name);
    }
    run(&plan, &args.common.output)
}

fn measure(plan: &Plan, output: &Output) -> Result<RunResult, String> {
    if !output.agents.is_empty() {
        let (result, outcome) = coordinate(plan, &output.agents)?;
        if let Some(path) = &output.hlog {
            write_hlog(&outcome, path).map_err(|error| error.to_string())?;
        }
        return Ok(result);
    }
    let prepared = prepare(plan, Share::whole())?;
    let settings = prepared.settings.clone();
    let machine = machine_of(plan, &settings);
    let mut progress = Progress::new(&plan.name);
    let outcome = prepared.execute(|live| progress.show(live));
    drop(progress);
    if let Some(path) = &output.hlog {
        write_hlog(&outcome, path).map_err(|error| error.to_string())?;
    }
    Ok(summarise(Parts {
        plan,
        processes: 1,
        machine,
        settings,
        outcome: &outcome,
        whole_series: false,
    }))
}

/// Whether a run is a success: something was measured, and what was verified is right.
fn verdict_of(result: &RunResult) -> Result<(), String> {
    if result
        .measured
        .iter()
        .all(|measured| measured.messages == 0)
    {
        return Err("nothing was measured".to_owned());
    }
    if let Some(verdict) = &result.verdict {
        let produce = result.plan.produce.as_ref();
        let order_counts = produce.is_some_and(|produce| {
            produce.rate.is_none() && produce.in_flight <= produce.connections
        });
        if !verdict.is_clean(order_counts) {
            return Err("the broker did not keep its promise".to_owned());
        }
    }
    Ok(())
}
