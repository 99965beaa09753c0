//! `ringmq try`: one message through a name server and a broker over real sockets, one line for each step.
//!
//! Without `--namesrv` it runs both here for a moment, on free loopback ports and in a temporary directory that it
//! removes again. The client side is the crate's own and does what any RocketMQ client does: it asks the name server for
//! the topic's route (TBW102's if nobody made the topic yet), sends to the broker of the route with SEND_MESSAGE_V2,
//! and pulls what it sent back by its queue and offset. It commits no offset.

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::app::cli::{Flag, TryArgs};
use crate::app::node::start_node_with;
use crate::app::run::{Exit, load_from, needs, print};
use crate::app::shutdown::{Phase, Shutdown};
use crate::base::config::{Config, Roles, Sources};
use crate::base::names::AUTO_CREATE_TOPIC;
use crate::client::{ClientError, RemotingClient};
use crate::io::env::Env;
use crate::io::preflight::{self, Needs, Report};
use crate::io::ring::RingEnv;
use crate::shard::executor::run_once;
use crate::wire::properties::{PropertiesBuilder, name};
use crate::wire::record::RecordView;
use crate::wire::remoting::body::{MASTER_ID, TopicRouteData};
use crate::wire::remoting::code::{request, response};
use crate::wire::remoting::command::{Command, Outgoing};
use crate::wire::remoting::json;

/// What is sent unless the command line says otherwise.
const BODY: &str = "hello";
/// The group that RocketMQ's own tools consume with, so that no new one is left behind.
const GROUP: &str = "TOOLS_CONSUMER";
const PRODUCER_GROUP: &str = "ringmq-try";
/// For each request.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long the node may take until it serves, and until it has stopped.
const NODE_WAIT: Duration = Duration::from_secs(30);
/// Permission bit of a route: producers may write.
const PERM_WRITE: i32 = 2;
/// `PullSysFlag`: wait for a message, and the subscription is in the request.
const PULL_FLAGS: i32 = 2 | 4;

/// `ringmq try`.
pub fn run(args: &TryArgs) -> Exit {
    let result = match &args.namesrv {
        Some(addresses) => {
            let nothing = Needs {
                shards: 1,
                store: None,
                ports: Vec::new(),
            };
            checked(preflight::check(&nothing))
                .and_then(|_| talk(addresses.clone(), args.topic.clone(), 1))
        }
        None => with_own_node(&args.topic),
    };
    match result {
        Ok(()) => Exit::Stopped,
        Err(reason) => Exit::Failed.because(&reason),
    }
}

/// The report, unless it says that nothing can run here.
fn checked(report: Report) -> Result<Report, String> {
    if report.obstacles.is_empty() {
        return Ok(report);
    }
    let lines: Vec<_> = report
        .obstacles
        .iter()
        .map(|obstacle| format!("cannot start: {obstacle}"))
        .collect();
    Err(lines.join("\n"))
}

/// A directory that goes when this is dropped.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // Whoever cannot remove it cannot use it either: the next run takes another name.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs a node for as long as it takes.
fn with_own_node(topic: &str) -> Result<(), String> {
    let (config, report, directory) = place()?;
    let config = Arc::new(config);
    let begin = Instant::now();
    let shutdown = Shutdown::new();
    // Said when the node serves; the end of the channel says that it does not run any more.
    let (sender, serves) = channel();
    let node = {
        let (config, shutdown) = (config.clone(), shutdown.clone());
        thread::Builder::new()
            .name("node".to_owned())
            .spawn(move || {
                start_node_with(config, Roles::Standalone, shutdown, None, move |_, _| {
                    let _ = sender.send(());
                })
            })
            .map_err(|error| format!("no thread for the node: {error}"))?
    };
    let result = match serves.recv_timeout(NODE_WAIT) {
        Ok(()) => {
            let namesrv = address(config.namesrv.listen_port);
            step(
                1,
                "started",
                &format!(
                    "name server {namesrv} and broker {}, store {}, {}",
                    config.broker_address(),
                    directory.0.display(),
                    config.get("flushDiskType").unwrap_or_default()
                ),
                begin.elapsed(),
            );
            talk(namesrv, topic.to_owned(), 2)
        }
        // Why it does not run is what its thread returns.
        Err(RecvTimeoutError::Disconnected) => Ok(()),
        Err(RecvTimeoutError::Timeout) => {
            Err(format!("the broker does not serve after {NODE_WAIT:?}"))
        }
    };
    let begin = Instant::now();
    shutdown.request(Phase::Draining);
    let ended = node
        .join()
        .map_err(|_| "the node ended by a panic".to_owned())?;
    drop(report);
    drop(directory);
    result?;
    ended.map_err(|error| error.to_string())?;
    step(
        5,
        "stopped",
        "broker and name server; the store was removed",
        begin.elapsed(),
    );
    print("It works. `ringmq standalone` runs a broker that stays.");
    Ok(())
}

/// A place for the store and two free ports. The system's directory for temporary files comes first; if it is in memory
/// or does not take O_DIRECT, this directory is tried.
fn place() -> Result<(Config, Report, Temporary), String> {
    let mut second_best = None;
    let mut reason = String::new();
    for base in [std::env::temp_dir(), PathBuf::from(".")] {
        let directory = Temporary(base.join(format!("ringmq-try-{}", std::process::id())));
        let config = configure(&directory.0)?;
        match checked(preflight::check(&needs(&config))) {
            Ok(report) if report.warnings.is_empty() => return Ok((config, report, directory)),
            Ok(report) => {
                second_best.get_or_insert((config, report, directory));
            }
            Err(obstacles) => reason = obstacles,
        }
    }
    let (config, report, directory) = second_best.ok_or(reason)?;
    for warning in &report.warnings {
        Exit::Stopped.because(&format!("warning: {warning}"));
    }
    Ok((config, report, directory))
}

/// A small standalone node that only this machine can reach. The environment and files have no say.
fn configure(directory: &Path) -> Result<Config, String> {
    let (namesrv, broker) = free_ports().map_err(|error| format!("no free port: {error}"))?;
    let directory = std::path::absolute(directory).map_err(|error| error.to_string())?;
    let keys = [
        ("storePathRootDir", directory.display().to_string()),
        ("bindAddress", Ipv4Addr::LOCALHOST.to_string()),
        ("namesrvListenPort", namesrv.to_string()),
        ("listenPort", broker.to_string()),
        ("fastListenEnable", "false".to_owned()),
        ("brokerName", "try".to_owned()),
        ("shards", "1".to_owned()),
        ("pinShards", "false".to_owned()),
        ("memory", "64MiB".to_owned()),
        ("mappedFileSizeCommitLog", "16MiB".to_owned()),
    ];
    let flags = keys
        .into_iter()
        .map(|(key, value)| -> Flag { (key.to_owned(), value, key.to_owned()) })
        .collect();
    let sources = Sources {
        file: None,
        environment: Vec::new(),
        flags,
    };
    load_from(Roles::Standalone, &sources).map_err(|error| error.to_string())
}

/// Two ports that were free a moment ago. Both are held until both are known.
fn free_ports() -> std::io::Result<(u16, u16)> {
    let loopback = (IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
    let (one, other) = (TcpListener::bind(loopback)?, TcpListener::bind(loopback)?);
    Ok((one.local_addr()?.port(), other.local_addr()?.port()))
}

fn address(port: u16) -> String {
    format!("{}:{port}", Ipv4Addr::LOCALHOST)
}

fn step(number: u32, what: &str, text: &str, took: Duration) {
    let ms = took.as_secs_f64() * 1000.0;
    print(&format!("{number} {what:9}{text} ({ms:.1} ms)"));
}

/// Sends and pulls on an executor of its own. `first` is the number of the first step.
fn talk(namesrv: String, topic: String, first: u32) -> Result<(), String> {
    run_once(move |env| async move {
        let mut trial = Trial {
            env,
            topic,
            step: first,
        };
        trial.run(&namesrv).await
    })?
}

struct Trial {
    env: RingEnv,
    topic: String,
    step: u32,
}

/// A queue that can be sent to.
struct Target {
    broker: String,
    address: String,
    /// `None`: the topic is not there, and this is where new topics go.
    queues: Option<u32>,
}

struct Sent {
    queue_id: i32,
    queue_offset: i64,
    unique_key: String,
}

impl Trial {
    fn step(&mut self, what: &str, text: &str, took: Duration) {
        step(self.step, what, text, took);
        self.step += 1;
    }

    async fn run(&mut self, namesrv: &str) -> Result<(), String> {
        let begin = Instant::now();
        let target = self.route(namesrv).await?;
        let queues = match target.queues {
            Some(queues) => format!("{queues} queues"),
            None => "which makes new topics".to_owned(),
        };
        let text = format!(
            "{}: broker {} at {}, {queues}",
            self.topic, target.broker, target.address
        );
        self.step("route", &text, begin.elapsed());
        let broker = connect(&self.env, &target.address).await?;
        let sent = self.send(&broker).await?;
        self.pull(&broker, &sent).await
    }

    /// The first name server that answers, between semicolons.
    async fn route(&self, addresses: &str) -> Result<Target, String> {
        let mut failed = Vec::new();
        for address in addresses.split(';').map(str::trim) {
            match connect(&self.env, address).await {
                Ok(namesrv) => return self.route_from(&namesrv).await,
                Err(reason) => failed.push(reason),
            }
        }
        Err(failed.join("\n"))
    }

    async fn route_from(&self, namesrv: &RemotingClient) -> Result<Target, String> {
        let mut answer = ask_route(namesrv, &self.topic).await?;
        let is_new = answer.code == response::TOPIC_NOT_EXIST;
        if is_new {
            answer = ask_route(namesrv, AUTO_CREATE_TOPIC).await?;
        }
        let answer = successful(answer, "the name server refused the route")?;
        let route: TopicRouteData = json::from_slice(&answer.body)
            .map_err(|error| format!("the route cannot be read: {error}"))?;
        route
            .queue_datas
            .iter()
            .filter(|queues| queues.perm & PERM_WRITE != 0 && queues.write_queue_nums > 0)
            .find_map(|queues| {
                let broker = route
                    .broker_datas
                    .iter()
                    .find(|broker| broker.broker_name == queues.broker_name)?;
                Some(Target {
                    broker: broker.broker_name.clone(),
                    address: broker.broker_addrs.get(&MASTER_ID)?.clone(),
                    queues: (!is_new).then_some(queues.write_queue_nums),
                })
            })
            .ok_or_else(|| format!("no broker takes messages for the topic '{}'", self.topic))
    }

    async fn send(&mut self, broker: &RemotingClient) -> Result<Sent, String> {
        let unique_key = format!("{:016X}{:016X}", self.env.random_u64(), self.env.now_ms());
        let mut properties = PropertiesBuilder::new();
        properties
            .append(name::UNIQUE_KEY, &unique_key)
            .append(name::WAIT, "true");
        let properties = String::from_utf8_lossy(properties.as_bytes()).into_owned();
        let send = Outgoing::request(request::SEND_MESSAGE_V2)
            .field("a", PRODUCER_GROUP)
            .field("b", self.topic.clone())
            .field("c", AUTO_CREATE_TOPIC)
            .field("d", 4)
            .field("e", 0)
            .field("f", 0)
            .field("g", self.env.now_ms() as i64)
            .field("h", 0)
            .field("i", properties)
            .field("j", 0)
            .field("k", false)
            .field("m", false);
        let begin = Instant::now();
        let answer = call(broker, send, Bytes::from_static(BODY.as_bytes())).await?;
        let took = begin.elapsed();
        let answer = successful(answer, "the broker refused the message")?;
        let number = |field| {
            answer
                .required_int(field)
                .map_err(|error| error.to_string())
        };
        let sent = Sent {
            queue_id: number("queueId")? as i32,
            queue_offset: number("queueOffset")?,
            unique_key,
        };
        let text = format!(
            "{BODY:?} to {}, queue {}, offset {}, offsetMsgId {}",
            self.topic,
            sent.queue_id,
            sent.queue_offset,
            answer.text("msgId").unwrap_or_default()
        );
        self.step("sent", &text, took);
        Ok(sent)
    }

    async fn pull(&mut self, broker: &RemotingClient, sent: &Sent) -> Result<(), String> {
        let pull = Outgoing::request(request::PULL_MESSAGE)
            .field("consumerGroup", GROUP)
            .field("topic", self.topic.clone())
            .field("queueId", sent.queue_id)
            .field("queueOffset", sent.queue_offset)
            .field("maxMsgNums", 1)
            .field("sysFlag", PULL_FLAGS)
            .field("commitOffset", 0)
            .field("suspendTimeoutMillis", TIMEOUT.as_millis() as i64 / 2)
            .field("subscription", "*")
            .field("subVersion", 0)
            .field("expressionType", "TAG");
        let begin = Instant::now();
        let answer = call(broker, pull, Bytes::new()).await?;
        let took = begin.elapsed();
        let answer = successful(answer, "the broker gave no message")?;
        let record = RecordView::parse_checked(&answer.body)
            .map_err(|error| format!("the message that came back cannot be read: {error}"))?;
        let unique_key = crate::wire::properties::get(record.properties(), name::UNIQUE_KEY);
        if unique_key != Some(&sent.unique_key) || record.body() != BODY.as_bytes() {
            return Err(format!(
                "another message came back: {:?} with the key {}",
                String::from_utf8_lossy(record.body()),
                unique_key.unwrap_or_default()
            ));
        }
        let text = format!(
            "{:?} from {}, queue {}, offset {}, stored at {} ms since 1970",
            String::from_utf8_lossy(record.body()),
            record.topic(),
            record.queue_id(),
            record.queue_offset(),
            record.store_timestamp()
        );
        self.step("received", &text, took);
        Ok(())
    }
}

async fn connect(env: &RingEnv, address: &str) -> Result<RemotingClient, String> {
    RemotingClient::connect(env, address, TIMEOUT)
        .await
        .map_err(|error| reason_of(&error))
}

async fn ask_route(namesrv: &RemotingClient, topic: &str) -> Result<Command, String> {
    let ask = Outgoing::request(request::GET_ROUTEINFO_BY_TOPIC).field("topic", topic.to_owned());
    call(namesrv, ask, Bytes::new()).await
}

async fn call(client: &RemotingClient, ask: Outgoing, body: Bytes) -> Result<Command, String> {
    client
        .call(ask, body, TIMEOUT)
        .await
        .map_err(|error| reason_of(&error))
}

/// The error with its cause.
fn reason_of(error: &ClientError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// The answer, unless it has another code than success.
fn successful(answer: Command, what: &str) -> Result<Command, String> {
    if answer.code == response::SUCCESS {
        return Ok(answer);
    }
    Err(format!(
        "{what} with code {}: {}",
        answer.code,
        answer.remark.unwrap_or_default()
    ))
}
