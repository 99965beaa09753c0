//! A controller, and brokers that it makes masters and slaves, as processes on loopback: nothing acknowledged is lost.
//!
//! `RINGMQ_FAILOVER_CYCLES` (4) is how often each campaign kills the master under load. What producers were promised is kept
//! outside of the brokers; the time without a successful send is printed.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::client::{Command, Connection, Message, answer, sent};
use crate::ledger::{LedgerFile, message};
use crate::node::{Node, Setup, broker_command, knob, signal, store_dir, tail};
use crate::ports::free_ports;
use crate::store_files::{compare, flip_bit};

const TOPIC: &str = "elected";
const GROUP: &str = "trio";
const QUEUES: i32 = 4;
/// Whatever takes longer than this does not happen.
const PATIENCE: Duration = Duration::from_secs(30);
/// The promise of docs/replication.md, with room for a machine that does other things too.
const SILENCE_MAX: Duration = Duration::from_secs(10);

const GET_SYNC_STATE_DATA: i32 = 1006;

/// A process that is no broker. Killed when dropped.
struct Process {
    arguments: Vec<String>,
    child: Option<Child>,
    log: PathBuf,
    address: SocketAddr,
}

impl Process {
    fn new(arguments: &[&str], log: PathBuf, port: u16) -> Self {
        let mut process = Self {
            arguments: arguments.iter().map(|text| text.to_string()).collect(),
            child: None,
            log,
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        };
        process.start();
        process
    }

    fn start(&mut self) {
        let output = fs::File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .unwrap();
        let child = broker_command()
            .args(&self.arguments)
            .stdout(Stdio::from(output.try_clone().unwrap()))
            .stderr(Stdio::from(output))
            .spawn();
        self.child = Some(child.unwrap());
        until("the process listens", || {
            Connection::open(self.address).is_ok()
        });
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let text = fs::read_to_string(&self.log).unwrap_or_default();
            eprintln!("output of {:?}:\n{}", self.arguments, tail(&text, 40));
        }
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "{what}: not after {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

struct Broker {
    setup: Setup,
    node: Option<Node>,
    _store: TempDir,
}

/// What the controller says of the group.
#[derive(Debug)]
struct Said {
    master: SocketAddr,
    in_sync: usize,
    epoch: i64,
}

struct Cluster {
    brokers: Vec<Broker>,
    controllers: Vec<Process>,
    namesrv: Process,
    files: TempDir,
}

impl Cluster {
    fn new(brokers: usize, controllers: usize, settings: &[&str]) -> Self {
        Self::with(brokers, controllers, settings, &[])
    }

    fn with(brokers: usize, controllers: usize, settings: &[&str], of_brokers: &[&str]) -> Self {
        let files = store_dir();
        let path = |name: &str| files.path().join(name);
        let port = free_ports().0;
        let kv = format!("kvConfigPath={}", path("kv.json").display());
        let arguments = [
            "namesrv",
            "--bind",
            "127.0.0.1",
            "--port",
            &port.to_string(),
            "--set",
            &kv,
        ];
        let namesrv = Process::new(&arguments, path("namesrv.log"), port);
        let ports: Vec<u16> = (0..controllers).map(|_| free_ports().0).collect();
        let peers: Vec<String> = (0..controllers)
            .map(|id| format!("n{id}-127.0.0.1:{}", ports[id]))
            .collect();
        let peers = peers.join(";");
        let controllers: Vec<Process> = (0..controllers)
            .map(|id| {
                let (name, own) = (format!("n{id}"), ports[id].to_string());
                let directory = path(&name).display().to_string();
                let mut arguments = vec![
                    "controller",
                    "--bind",
                    "127.0.0.1",
                    "--port",
                    &own,
                    "--store",
                    &directory,
                ];
                arguments.extend(["--id", &name, "--peers", &peers]);
                for setting in settings {
                    arguments.extend(["--set", setting]);
                }
                Process::new(&arguments, path(&format!("{name}.log")), ports[id])
            })
            .collect();
        let addresses: Vec<String> = ports
            .iter()
            .map(|port| format!("127.0.0.1:{port}"))
            .collect();
        let brokers = (0..brokers)
            .map(|_| {
                let store = store_dir();
                let mut setup = Setup::new(store.path(), 1)
                    .set("logs=2")
                    .set(&format!("brokerName={GROUP}"))
                    .set("enableControllerMode=true")
                    .set(&format!("controllerAddr={}", addresses.join(";")));
                for setting in of_brokers {
                    setup = setup.set(setting);
                }
                setup.namesrv_port = port;
                setup.broker_only = true;
                Broker {
                    setup,
                    node: None,
                    _store: store,
                }
            })
            .collect();
        let mut cluster = Self {
            brokers,
            controllers,
            namesrv,
            files,
        };
        for at in 0..cluster.brokers.len() {
            cluster.spawn(at);
            if at == 0 {
                until("the first broker is the master", || {
                    cluster.route_master().is_some()
                });
            }
        }
        let all = cluster.brokers.len();
        cluster.until_in_sync(all);
        let mut connection = cluster.connect_master();
        connection.create_topic(TOPIC, QUEUES as u32).unwrap();
        connection.create_group("blackbox-consumer").unwrap();
        cluster
    }

    fn spawn(&mut self, at: usize) {
        self.brokers[at].node = Some(self.brokers[at].setup.spawn());
    }

    fn node(&self, at: usize) -> &Node {
        self.brokers[at].node.as_ref().unwrap()
    }

    fn kill(&mut self, at: usize) {
        self.brokers[at].node.take().unwrap().kill();
    }

    fn address(&self, at: usize) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.brokers[at].setup.broker_port))
    }

    fn at(&self, address: SocketAddr) -> usize {
        (0..self.brokers.len())
            .find(|at| self.address(*at) == address)
            .unwrap()
    }

    /// What any controller says.
    fn said(&self) -> Option<Said> {
        self.controllers.iter().find_map(|controller| {
            let mut connection = Connection::open(controller.address).ok()?;
            connection.set_read_timeout(Duration::from_secs(2)).ok()?;
            let body = format!("[\"{GROUP}\"]").into_bytes();
            let found = connection
                .call(&Command::request(GET_SYNC_STATE_DATA, &[], body))
                .ok()?;
            let found: Value = serde_json::from_slice(&found.body).ok()?;
            let group = &found["replicasInfoTable"][GROUP];
            Some(Said {
                master: group["masterAddress"].as_str()?.parse().ok()?,
                in_sync: group["inSyncReplicas"].as_array()?.len(),
                epoch: group["masterEpoch"].as_i64()?,
            })
        })
    }

    fn until_in_sync(&self, count: usize) {
        until(&format!("{count} brokers are in sync"), || {
            self.said().is_some_and(|said| said.in_sync == count)
        });
    }

    /// The master as clients find it.
    fn route_master(&self) -> Option<SocketAddr> {
        route_master(self.namesrv.address, None)
    }

    fn connect_master(&self) -> Connection {
        let mut found = None;
        until("clients find a master", || {
            found = self
                .route_master()
                .and_then(|address| Connection::open(address).ok());
            found.is_some()
        });
        found.unwrap()
    }

    /// The first broker that is not the master.
    fn slave(&self) -> usize {
        let master = self.said().unwrap().master;
        (0..self.brokers.len())
            .find(|at| self.address(*at) != master)
            .unwrap()
    }

    fn master(&self) -> usize {
        self.at(self.said().unwrap().master)
    }

    /// Every acknowledged message is at its offset, byte for byte, and no queue has one twice or out of order.
    fn check(&self, address: SocketAddr, ledger: &Ledger) {
        let mut reader = Connection::open(address).unwrap();
        for queue in 0..QUEUES {
            let records = reader.read_queue(TOPIC, queue, 0).unwrap();
            let mut last = None;
            for (number, record) in records.iter().enumerate() {
                assert_eq!(record.queue_offset, number as i64);
                let id = u64::from_str_radix(&record.properties["UNIQ_KEY"], 16).unwrap();
                assert!(last < Some(id), "queue {queue}: {id} behind {last:?}");
                last = Some(id);
            }
            for ((_, offset), id) in ledger.acknowledged.range((queue, 0)..(queue + 1, 0)) {
                let found = records.get(*offset as usize);
                let found = found.unwrap_or_else(|| panic!("queue {queue} lost offset {offset}"));
                assert_eq!(
                    found.body,
                    body_of(queue, *id),
                    "queue {queue} offset {offset}"
                );
            }
        }
    }

    /// All brokers have the same queues, whoever was master when.
    fn check_all(&self, ledger: &Ledger) {
        let wanted = ends(self.said().unwrap().master);
        assert!(wanted.iter().all(Option::is_some), "{wanted:?}");
        for at in 0..self.brokers.len() {
            until("all brokers have all queues", || {
                ends(self.address(at)) == wanted
            });
            self.check(self.address(at), ledger);
        }
    }
}

fn ends(address: SocketAddr) -> Vec<Option<i64>> {
    let Ok(mut connection) = Connection::open(address) else {
        return Vec::new();
    };
    let queues = 0..QUEUES;
    queues
        .map(|queue| connection.max_offset(TOPIC, queue).ok())
        .collect()
}

fn body_of(queue: i32, id: u64) -> Vec<u8> {
    message(&(TOPIC.to_owned(), queue), id, 4_000).body
}

fn route_master(namesrv: SocketAddr, topic: Option<&str>) -> Option<SocketAddr> {
    let mut connection = Connection::open(namesrv).ok()?;
    let brokers = match topic {
        Some(topic) => connection.route(topic).ok()?["brokerDatas"].clone(),
        None => {
            let request = Command::request(
                crate::client::code::GET_BROKER_CLUSTER_INFO,
                &[],
                Vec::new(),
            );
            let found = connection.call(&request).ok()?;
            // Java's maps have numbers for keys, without quotes.
            let text = String::from_utf8_lossy(&found.body).replace("{0:", "{\"0\":");
            let address = text.split("\"0\":\"").nth(1)?.split('"').next()?.to_owned();
            return address.parse().ok();
        }
    };
    brokers
        .as_array()?
        .iter()
        .find_map(|broker| broker["brokerAddrs"]["0"].as_str()?.parse().ok())
}

/// What the producer was promised, and when.
#[derive(Default)]
struct Ledger {
    acknowledged: BTreeMap<(i32, i64), u64>,
    successes: Vec<Instant>,
    refused: BTreeMap<i32, u64>,
    sent: u64,
}

/// Sends with a window to whoever is the master, as a client does that asks for the route again after an error.
struct Producer {
    ledger: Arc<Mutex<Ledger>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Producer {
    fn start(cluster: &Cluster) -> Self {
        let (namesrv, file) = (
            cluster.namesrv.address,
            cluster.files.path().join("acknowledged"),
        );
        let (ledger, stop) = (
            Arc::<Mutex<Ledger>>::default(),
            Arc::<AtomicBool>::default(),
        );
        let (own, stopping) = (ledger.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut file = LedgerFile::create(&file);
            while !stopping.load(Ordering::Relaxed) {
                let address = route_master(namesrv, Some(TOPIC));
                if let Some(connection) = address.and_then(|address| Connection::open(address).ok())
                {
                    produce(connection, &mut file, &own, &stopping);
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        Self {
            ledger,
            stop,
            thread: Some(thread),
        }
    }

    fn successes(&self) -> usize {
        self.ledger.lock().unwrap().successes.len()
    }

    fn until_more(&self, count: usize) {
        let before = self.successes();
        until("sends succeed", || self.successes() >= before + count);
    }

    /// The longest time between two successes of which the second came after `begun`.
    fn silence_since(&self, begun: Instant) -> Duration {
        let ledger = self.ledger.lock().unwrap();
        let pairs = ledger.successes.windows(2);
        let gaps = pairs
            .filter(|pair| pair[1] > begun)
            .map(|pair| pair[1] - pair[0]);
        gaps.max().unwrap_or_default()
    }

    fn end(mut self) -> Ledger {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        std::mem::take(&mut *self.ledger.lock().unwrap())
    }
}

fn produce(
    mut connection: Connection,
    file: &mut LedgerFile,
    ledger: &Mutex<Ledger>,
    stop: &AtomicBool,
) {
    connection.set_read_timeout(Duration::from_secs(4)).unwrap();
    let mut waiting = BTreeMap::new();
    loop {
        while waiting.len() < 16 && !stop.load(Ordering::Relaxed) {
            let id = {
                let mut ledger = ledger.lock().unwrap();
                ledger.sent += 1;
                ledger.sent
            };
            let queue = (id % QUEUES as u64) as i32;
            let command = message(&(TOPIC.to_owned(), queue), id, 4_000).send_v2();
            match connection.start(&command) {
                Ok(opaque) => waiting.insert(opaque, id),
                Err(_) => return,
            };
        }
        if waiting.is_empty() {
            return;
        }
        let Ok(found) = connection.next_answer() else {
            return;
        };
        let (code, id) = (found.code, waiting.remove(&found.opaque).unwrap());
        match sent(found) {
            Ok(sent) => {
                file.write(&format!("{} {} {id}\n", sent.queue_id, sent.queue_offset));
                let mut ledger = ledger.lock().unwrap();
                let other = ledger
                    .acknowledged
                    .insert((sent.queue_id, sent.queue_offset), id);
                assert_eq!(other, None, "two messages were acknowledged at one offset");
                ledger.successes.push(Instant::now());
            }
            Err(_) => {
                *ledger.lock().unwrap().refused.entry(code).or_default() += 1;
                return;
            }
        }
    }
}

fn say_silences(what: &str, mut silences: Vec<Duration>, ledger: &Ledger) {
    silences.sort();
    say!(
        "{what}: {} times, {} of {} sends acknowledged, refused {:?}; longest time without a success: p50 {:?}, max {:?}",
        silences.len(),
        ledger.acknowledged.len(),
        ledger.sent,
        ledger.refused,
        silences[silences.len() / 2],
        silences.last().unwrap(),
    );
    assert!(*silences.last().unwrap() < SILENCE_MAX, "{silences:?}");
}

/// Kills the master again and again while a producer sends, and lets it come back.
fn kill_masters(mut cluster: Cluster, what: &str) {
    let producer = Producer::start(&cluster);
    let mut silences = Vec::new();
    for _ in 0..knob("RINGMQ_FAILOVER_CYCLES", 4) {
        cluster.until_in_sync(cluster.brokers.len());
        producer.until_more(200);
        let master = cluster.master();
        let begun = Instant::now();
        cluster.kill(master);
        producer.until_more(50);
        silences.push(producer.silence_since(begun));
        cluster.spawn(master);
    }
    cluster.until_in_sync(cluster.brokers.len());
    producer.until_more(100);
    let ledger = producer.end();
    cluster.check_all(&ledger);
    say_silences(what, silences, &ledger);
}

#[test]
fn a_pair_whose_master_is_killed_again_and_again_loses_nothing_acknowledged() {
    kill_masters(
        Cluster::new(2, 1, &[]),
        "kill -9 of the master, 2 brokers and 1 controller",
    );
}

#[test]
fn three_brokers_under_three_controllers_lose_nothing_acknowledged() {
    kill_masters(
        Cluster::new(3, 3, &[]),
        "kill -9 of the master, 3 brokers and 3 controllers",
    );
}

#[test]
fn the_leader_of_the_controllers_may_die_and_a_master_after_it() {
    let mut cluster = Cluster::new(2, 3, &[]);
    let producer = Producer::start(&cluster);
    let mut silences = Vec::new();
    for _ in 0..3 {
        producer.until_more(200);
        let leader = (0..cluster.controllers.len())
            .find(|at| {
                let mut connection = Connection::open(cluster.controllers[*at].address).unwrap();
                let found = connection.call(&Command::request(1005, &[], Vec::new()));
                found.is_ok_and(|found| found.fields["isLeader"] == "true")
            })
            .unwrap();
        let epoch = cluster.said().unwrap().epoch;
        let begun = Instant::now();
        cluster.controllers[leader].kill();
        std::thread::sleep(Duration::from_secs(3));
        producer.until_more(50);
        silences.push(producer.silence_since(begun));
        cluster.controllers[leader].start();
        until("the group is known", || cluster.said().is_some());
        say!(
            "the controllers' leader was killed: epoch {epoch} to {}",
            cluster.said().unwrap().epoch
        );
        cluster.until_in_sync(2);
    }
    // With another leader a master is deposed as before.
    let master = cluster.master();
    cluster.kill(master);
    producer.until_more(50);
    cluster.spawn(master);
    cluster.until_in_sync(2);
    let ledger = producer.end();
    cluster.check_all(&ledger);
    say_silences("kill -9 of the controllers' leader", silences, &ledger);
}

/// A slave is lost, so the set is the master alone; then the master is stopped for longer than its lease, and a broker that is
/// not in sync takes its place, as the configuration allows. When the old master goes on, it has a send in its hands that it
/// could store and acknowledge without asking anybody, but for its lease.
#[test]
fn a_master_that_was_stopped_past_its_lease_acknowledges_nothing() {
    let mut cluster = Cluster::new(2, 1, &["enableElectUncleanMaster=true"]);
    for round in 0..3 {
        cluster.until_in_sync(2);
        let (master, slave) = (cluster.master(), cluster.slave());
        let mut connection = cluster.connect_master();
        connection
            .send(
                &Message::new(TOPIC, 0, "both have it")
                    .property("UNIQ_KEY", &format!("{round:032X}")),
            )
            .unwrap();
        cluster.kill(slave);
        cluster.until_in_sync(1);
        connection
            .send(&Message::new(TOPIC, 0, "the master alone"))
            .unwrap();
        let before = cluster.said().unwrap();
        let pid = cluster.node(master).pid();
        signal(pid, "STOP");
        cluster.spawn(slave);
        let wanted = cluster.address(slave);
        until("the other one is the master", || {
            cluster.said().is_some_and(|said| said.master == wanted)
        });
        until("clients find it", || cluster.route_master() == Some(wanted));
        assert!(cluster.said().unwrap().epoch > before.epoch);
        let mut other = Connection::open(wanted).unwrap();
        until("it takes sends", || {
            other.send(&Message::new(TOPIC, 1, "the new one")).is_ok()
        });
        // It is in the socket's buffer when the old master wakes up.
        let opaque = connection
            .start(&Message::new(TOPIC, 2, "a ghost").send_v2())
            .unwrap();
        signal(pid, "CONT");
        let ghost = connection.wait(opaque);
        assert!(
            ghost
                .as_ref()
                .map_or(true, |found| found.code != answer::SUCCESS),
            "a deposed master has acknowledged: {ghost:?}"
        );
        // It gives up what the new master never had, and follows.
        cluster.until_in_sync(2);
        until("both have the same queues", || {
            ends(cluster.address(0)) == ends(cluster.address(1))
        });
        let records = Connection::open(cluster.address(master))
            .unwrap()
            .read_queue(TOPIC, 2, 0)
            .unwrap();
        assert!(records.is_empty(), "{} ghosts", records.len());
    }
}

/// What the slave never got is cut off, durably, and with it everything that was made of it.
#[test]
fn a_master_that_returns_gives_up_what_nobody_else_has() {
    let mut cluster = Cluster::new(2, 1, &[]);
    let mut connection = cluster.connect_master();
    for number in 0..40 {
        connection
            .send(&Message::new(
                TOPIC,
                number % QUEUES,
                format!("common {number}"),
            ))
            .unwrap();
    }
    let (master, slave) = (cluster.master(), cluster.slave());
    until("both have the same queues", || {
        ends(cluster.address(0)) == ends(cluster.address(1))
    });
    let wanted = ends(cluster.address(slave));
    // The slave hears nothing any more, so these are on one disk only, and nobody is told otherwise.
    let pid = cluster.node(slave).pid();
    signal(pid, "STOP");
    for number in 0..30 {
        let alone = Message::new(TOPIC, number % QUEUES, vec![7; 100_000]);
        connection.start(&alone.send_v2()).unwrap();
    }
    std::thread::sleep(Duration::from_millis(400));
    cluster.kill(master);
    signal(pid, "CONT");
    until("the slave is the master", || {
        cluster
            .said()
            .is_some_and(|said| said.master == cluster.address(slave))
    });
    let mut connection = cluster.connect_master();
    // Some of what was in the slave's socket may have reached it.
    let kept = ends(cluster.address(slave));
    assert!(
        kept.iter()
            .zip(&wanted)
            .all(|(kept, wanted)| kept >= wanted),
        "{kept:?} {wanted:?}"
    );
    until("it takes sends", || {
        connection
            .send(&Message::new(TOPIC, 0, "the new one"))
            .is_ok()
    });
    cluster.spawn(master);
    cluster.until_in_sync(2);
    assert!(
        cluster
            .node(master)
            .output()
            .contains("the log was cut back"),
        "nothing was to be cut"
    );
    until("both have the same queues", || {
        ends(cluster.address(0)) == ends(cluster.address(1))
    });
    // Once more: what was cut does not come back with a start.
    for at in [master, slave, master] {
        cluster.kill(at);
        cluster.spawn(at);
        cluster.until_in_sync(2);
        until("both have the same queues", || {
            ends(cluster.address(0)) == ends(cluster.address(1))
        });
    }
    let mut raw = Vec::new();
    for at in 0..2 {
        let mut reader = Connection::open(cluster.address(at)).unwrap();
        let queues: Vec<_> = (0..QUEUES)
            .map(|queue| reader.read_queue(TOPIC, queue, 0).unwrap())
            .collect();
        let text = |body: &[u8]| String::from_utf8_lossy(&body[..body.len().min(20)]).into_owned();
        let bodies: Vec<Vec<String>> = queues
            .iter()
            .map(|records| records.iter().map(|record| text(&record.body)).collect())
            .collect();
        raw.push(bodies);
    }
    assert_eq!(raw[0], raw[1]);
}

/// RocketMQ's clients ask for a route every half minute: until then they send to whom they know.
#[test]
fn a_slave_passes_sends_on_to_its_master_and_says_so_when_it_cannot() {
    let mut cluster = Cluster::new(2, 1, &[]);
    let old = cluster.master();
    cluster.kill(old);
    until("the other one is the master", || {
        cluster
            .said()
            .is_some_and(|said| cluster.at(said.master) != old)
    });
    cluster.spawn(old);
    cluster.until_in_sync(2);
    let master = cluster.master();
    let port = |at: usize| format!("{:08X}", cluster.brokers[at].setup.broker_port);
    let mut producer = None;
    until("the old one takes connections", || {
        producer = Connection::open(cluster.address(old)).ok();
        producer.is_some()
    });
    let mut producer = producer.unwrap();
    for number in 0..40 {
        let queue = number % QUEUES;
        let text = format!("passed on {number}");
        let message = Message::new(TOPIC, queue, text.clone()).property("KEYS", "key");
        let sent = producer.send(&message).unwrap();
        assert_eq!(sent.queue_id, queue);
        assert_eq!(sent.msg_id[8..16], port(master), "{sent:?}");
        let records = cluster
            .connect_master()
            .read_queue(TOPIC, queue, sent.queue_offset)
            .unwrap();
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].body, text.as_bytes());
        assert_eq!(records[0].properties["KEYS"], "key");
    }
    // A refusal of the master is the answer, too.
    let unknown = producer.send(&Message::new(TOPIC, 99, "no such queue"));
    assert!(unknown.is_err(), "{unknown:?}");
    cluster.kill(master);
    let refused = producer.send(&Message::new(TOPIC, 0, "nobody is there"));
    let code = refused.unwrap_err().code();
    assert!(
        matches!(
            code,
            None | Some(answer::SERVICE_NOT_AVAILABLE | answer::SYSTEM_ERROR)
        ),
        "{code:?}"
    );
}

/// Whoever hangs leaves the set by the controller's leave, and sends go on with those that there are.
#[test]
fn a_slave_that_hangs_leaves_the_set_and_comes_back() {
    let cluster = Cluster::new(2, 1, &[]);
    let producer = Producer::start(&cluster);
    producer.until_more(100);
    let pid = cluster.node(cluster.slave()).pid();
    let begun = Instant::now();
    signal(pid, "STOP");
    cluster.until_in_sync(1);
    producer.until_more(50);
    let silence = producer.silence_since(begun);
    signal(pid, "CONT");
    cluster.until_in_sync(2);
    producer.until_more(50);
    let ledger = producer.end();
    cluster.check_all(&ledger);
    say_silences("SIGSTOP of the slave", vec![silence], &ledger);
}

#[test]
fn an_operator_moves_the_master_and_nothing_is_lost() {
    let cluster = Cluster::new(2, 1, &[]);
    let producer = Producer::start(&cluster);
    let mut silences = Vec::new();
    for _ in 0..3 {
        cluster.until_in_sync(2);
        producer.until_more(100);
        let wanted = cluster.address(cluster.slave());
        let id = cluster.slave() as i64 + 1;
        let begun = Instant::now();
        let at = cluster.controllers[0].address.to_string();
        let ringmq = |words: &[&str]| {
            let done = broker_command()
                .args(words)
                .args(["--controller", &at])
                .output()
                .unwrap();
            assert!(done.status.success(), "{words:?}: {done:?}");
            String::from_utf8(done.stdout).unwrap()
        };
        let told = ringmq(&["cluster", "elect", GROUP, &id.to_string(), "--yes"]);
        assert!(told.contains(&wanted.to_string()), "{told}");
        let status = ringmq(&["cluster", "status", GROUP, "-o", "json"]);
        assert!(status.contains("\"master\""), "{status}");
        assert_eq!(cluster.said().unwrap().master, wanted);
        producer.until_more(50);
        silences.push(producer.silence_since(begun));
    }
    cluster.until_in_sync(2);
    let ledger = producer.end();
    cluster.check_all(&ledger);
    say_silences("a master moved by hand", silences, &ledger);
}

#[test]
fn a_broker_that_was_away_for_longer_than_the_retention_begins_anew_and_can_be_elected() {
    let retention = [
        "mappedFileSizeCommitLog=1048576",
        "storeBytesMax=6291456",
        "cleanResourceInterval=100",
    ];
    let mut cluster = Cluster::with(2, 1, &[], &retention);
    let mut connection = cluster.connect_master();
    connection.send(&Message::new(TOPIC, 0, "first")).unwrap();
    connection
        .commit_offset("blackbox-consumer", TOPIC, 0, 1)
        .unwrap();
    let away = cluster.slave();
    cluster.kill(away);
    cluster.until_in_sync(1);
    // Several times what is kept.
    for number in 0..400u32 {
        let body = vec![number as u8; 64 << 10];
        let message = Message::new(TOPIC, number as i32 % QUEUES, body);
        connection.send(&message).unwrap();
    }
    until("retention has removed the beginning of both logs", || {
        (0..QUEUES).all(|queue| {
            let first = connection.min_offset(TOPIC, queue);
            first.is_ok_and(|first| first > 1)
        })
    });
    cluster.spawn(away);
    cluster.until_in_sync(2);
    connection
        .send(&Message::new(TOPIC, 1, "both have it"))
        .unwrap();
    let wanted = ends(cluster.said().unwrap().master);
    let other = cluster.master();
    cluster.kill(other);
    until("the other one is the master", || {
        cluster
            .said()
            .is_some_and(|said| said.master == cluster.address(away))
            && cluster.route_master() == Some(cluster.address(away))
    });
    let mut connection = cluster.connect_master();
    assert_eq!(ends(cluster.address(away)), wanted);
    let offset = connection.consumer_offset("blackbox-consumer", TOPIC, 0);
    assert_eq!(offset.unwrap(), Some(1));
    for queue in 0..QUEUES {
        let first = connection.min_offset(TOPIC, queue).unwrap();
        let records = connection.read_queue(TOPIC, queue, first).unwrap();
        let end = wanted[queue as usize].unwrap();
        assert_eq!(records.len() as i64, end - first, "queue {queue}");
    }
    until("it takes messages alone", || {
        connection.send(&Message::new(TOPIC, 2, "alone")).is_ok()
    });
}

/// One broker of a pair is killed under load, comes back with a damaged log, and is the only one a moment later.
fn damage_one_copy(is_master: bool) {
    let mut cluster = Cluster::new(2, 1, &[]);
    let producer = Producer::start(&cluster);
    producer.until_more(10_000);
    let damaged = match is_master {
        true => cluster.master(),
        false => cluster.slave(),
    };
    cluster.kill(damaged);
    cluster.until_in_sync(1);
    let (place, id) = {
        let ledger = producer.ledger.lock().unwrap();
        let mut places = ledger.acknowledged.iter();
        // Enough lies behind it for a proof, and it was acknowledged while both were there.
        let found = places
            .find(|(place, id)| (500..1_500).contains(*id) && body_of(place.0, **id).len() > 200);
        found.map(|(place, id)| (*place, *id)).unwrap()
    };
    let body = body_of(place.0, id);
    flip_bit(&cluster.brokers[damaged].setup.store, &body, body.len() / 2);
    cluster.spawn(damaged);
    cluster.until_in_sync(2);
    let said = cluster.node(damaged).output();
    assert!(
        said.contains("wiped and fetched from the master again"),
        "nothing was repaired"
    );
    producer.until_more(100);
    // It is the only one that has everything.
    let other = 1 - damaged;
    cluster.kill(other);
    until("the one that was damaged is the master", || {
        let address = cluster.address(damaged);
        cluster.said().is_some_and(|said| said.master == address)
    });
    producer.until_more(100);
    cluster.spawn(other);
    cluster.until_in_sync(2);
    let ledger = producer.end();
    cluster.check_all(&ledger);
    for at in [other, damaged] {
        let mut node = cluster.brokers[at].node.take().unwrap();
        assert!(node.terminate().success());
    }
    let stores = [0, 1].map(|at| cluster.brokers[at].setup.store.clone());
    for log in compare(&stores[0], &stores[1]).1 {
        assert_eq!(log["result"], "equal");
    }
}

#[test]
fn a_slave_whose_log_is_damaged_fetches_it_from_its_master_again() {
    damage_one_copy(false);
}

#[test]
fn a_master_whose_log_is_damaged_gives_way_and_fetches_it_from_its_successor_again() {
    damage_one_copy(true);
}
