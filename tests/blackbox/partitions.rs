//! Brokers and controllers in network namespaces whose links are cut, one direction at a time: nothing acknowledged is lost, and
//! no two brokers acknowledge at once.
//!
//! Three brokers, three controllers, and a name server have a namespace and an address each; a bridge in a further one connects
//! them. A direction is cut by giving the sender a wrong link address of the receiver: its packets vanish, as in a broken
//! cable, and nobody gets an error. Producers sit beside every broker and beside the name server, and each of them sends to each
//! broker as long as the test lasts, whatever the name server says: a master that is cut off is tempted from its own machine.
//! Needs root and `ip`; else it is skipped aloud. `RINGMQ_PARTITION_ROUNDS` (4) rounds of `RINGMQ_PARTITION_S` (4) seconds,
//! beginning with number `RINGMQ_PARTITION_FROM` (0) of the list; a producer pauses `RINGMQ_PARTITION_PAUSE_MS` (4) after a
//! burst; `RINGMQ_PARTITION_ALONE` (1) times a master is alone in its set.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command as Shell, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;
use tempfile::TempDir;

use crate::client::{Command, Connection, answer, sent};
use crate::ledger::message;
use crate::node::{broker_command, knob, store_dir, tail};

const TOPIC: &str = "parted";
const GROUP: &str = "trio";
const QUEUES: i32 = 4;
const BODY_BYTES_MAX: usize = 2_000;
const BROKERS: usize = 3;
/// The first controller among the nodes; the brokers come first.
const CONTROLLER: usize = BROKERS;
/// Where the name server is, and the test.
const CLIENTS: usize = 6;
const NODES: usize = 7;
/// Sends of one producer that are under way together.
const BURST: usize = 4;
/// A lease is three quarters of a timeout, both as they come.
const LEASE: Duration = Duration::from_millis(750);
/// Whatever takes longer than this does not happen.
const PATIENCE: Duration = Duration::from_secs(90);
const GET_METADATA: i32 = 1005;
const GET_SYNC_STATE_DATA: i32 = 1006;

/// A direction: from a node, to a node.
type Link = (usize, usize);

fn host(node: usize) -> String {
    format!("10.77.0.{}", 10 + node)
}

fn broker_address(node: usize) -> SocketAddr {
    format!("{}:10911", host(node)).parse().unwrap()
}

fn controller_address(node: usize) -> SocketAddr {
    format!("{}:9878", host(node)).parse().unwrap()
}

fn namesrv_address() -> SocketAddr {
    format!("{}:9876", host(CLIENTS)).parse().unwrap()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "{what}: not after {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Runs lines of `ip`, in a namespace or outside.
fn ip(namespace: Option<&str>, lines: &[String]) -> Result<(), String> {
    let mut shell = Shell::new("ip");
    if let Some(name) = namespace {
        shell.args(["-n", name]);
    }
    let child = shell
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.map_err(|error| format!("ip: {error}"))?;
    let text = lines.join("\n") + "\n";
    let written = child.stdin.take().unwrap().write_all(text.as_bytes());
    written.map_err(|error| format!("ip: {error}"))?;
    let done = child.wait_with_output().unwrap();
    match done.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&done.stderr).trim().to_owned()),
    }
}

/// The namespaces. Gone when dropped.
struct Network {
    prefix: String,
    cut: Mutex<BTreeSet<Link>>,
}

impl Network {
    fn new() -> Result<Self, String> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        Self::sweep();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let network = Self {
            prefix: format!("rmq-{}-{number}", process::id()),
            cut: Mutex::default(),
        };
        let hub = network.hub();
        let adds: Vec<String> = (0..NODES)
            .map(|node| network.name(node))
            .chain([hub.clone()])
            .map(|name| format!("netns add {name}"))
            .collect();
        ip(None, &adds)?;
        let mut lines = vec!["link add br0 type bridge".to_owned()];
        lines.push("link set br0 up".to_owned());
        for node in 0..NODES {
            let name = network.name(node);
            lines.push(format!(
                "link add port{node} type veth peer name eth0 netns {name}"
            ));
            lines.push(format!("link set port{node} master br0 up"));
        }
        ip(Some(&hub), &lines)?;
        for node in 0..NODES {
            let mut lines = vec![
                "link set lo up".to_owned(),
                format!("link set eth0 address {}", Self::mac(node)),
                format!("addr add {}/24 dev eth0", host(node)),
                "link set eth0 up".to_owned(),
            ];
            for to in (0..NODES).filter(|to| *to != node) {
                lines.push(Self::neighbour(to, false));
            }
            ip(Some(&network.name(node)), &lines)?;
        }
        Ok(network)
    }

    /// Removes what a test left that was killed.
    fn sweep() {
        let Ok(entries) = fs::read_dir("/run/netns") else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let mut parts = name.split('-');
            let is_ours = parts.next() == Some("rmq");
            let owner = parts.next().and_then(|pid| pid.parse::<u32>().ok());
            if is_ours && owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
                let _ = ip(None, &[format!("netns del {name}")]);
            }
        }
    }

    fn hub(&self) -> String {
        format!("{}-hub", self.prefix)
    }

    fn name(&self, node: usize) -> String {
        format!("{}-n{node}", self.prefix)
    }

    fn mac(node: usize) -> String {
        format!("02:00:00:00:00:{:02x}", 10 + node)
    }

    /// Where packets to a node go: nobody has the other address.
    fn neighbour(to: usize, is_cut: bool) -> String {
        let mac = match is_cut {
            true => "02:00:00:00:ff:ff".to_owned(),
            false => Self::mac(to),
        };
        format!(
            "neigh replace {} lladdr {mac} dev eth0 nud permanent",
            host(to)
        )
    }

    /// From now on these directions are cut and no others.
    fn set(&self, wanted: &BTreeSet<Link>) {
        let mut cut = self.cut.lock().unwrap();
        for from in 0..NODES {
            let lines: Vec<String> = (0..NODES)
                .filter(|to| cut.contains(&(from, *to)) != wanted.contains(&(from, *to)))
                .map(|to| Self::neighbour(to, wanted.contains(&(from, to))))
                .collect();
            if !lines.is_empty() {
                ip(Some(&self.name(from)), &lines).unwrap();
            }
        }
        *cut = wanted.clone();
    }

    /// Puts the calling thread beside a node; processes that it starts are there too.
    fn enter(&self, node: usize) {
        let path = format!("/run/netns/{}", self.name(node));
        let file = File::open(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in (0..NODES).map(|node| self.name(node)).chain([self.hub()]) {
            let _ = ip(None, &[format!("netns del {name}")]);
        }
    }
}

/// A child of the test. Killed when dropped.
struct Process {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Process {
    fn start(network: &Network, node: usize, name: &str, arguments: &[String], log: &Path) -> Self {
        let output = File::options().create(true).append(true).open(log).unwrap();
        let mut command = broker_command();
        command
            .args(arguments)
            .stdout(output.try_clone().unwrap())
            .stderr(output);
        // A thread of its own, so that nobody else changes the place.
        let child = std::thread::scope(|scope| {
            let started = scope.spawn(|| {
                network.enter(node);
                command.spawn().unwrap()
            });
            started.join().unwrap()
        });
        Self {
            child,
            name: name.to_owned(),
            log: log.to_path_buf(),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let text = fs::read_to_string(&self.log).unwrap_or_default();
            eprintln!("output of {}:\n{}", self.name, tail(&text, 40));
        }
    }
}

/// What the controllers say of the group.
#[derive(Clone, Debug)]
struct Said {
    master: usize,
    in_sync: usize,
    epoch: i64,
}

struct Cluster {
    // Processes end before their network does.
    _processes: Vec<Process>,
    network: Arc<Network>,
    _files: TempDir,
}

impl Cluster {
    /// The calling thread is at [`CLIENTS`] from now on.
    fn new(network: Network, settings: &[&str]) -> Self {
        let network = Arc::new(network);
        network.enter(CLIENTS);
        let files = store_dir();
        let path = |name: String| files.path().join(name);
        let secret = path("secret".to_owned());
        fs::write(&secret, "0123456789abcdef0123456789abcdef").unwrap();
        set_private(&secret);
        let secret = format!("haSecretFile={}", secret.display());
        let peers: Vec<String> = (0..3)
            .map(|id| format!("n{id}-{}", controller_address(CONTROLLER + id)))
            .collect();
        let peers = peers.join(";");
        let addresses: Vec<String> = (0..3)
            .map(|id| controller_address(CONTROLLER + id).to_string())
            .collect();
        let controllers = format!("controllerAddr={}", addresses.join(";"));
        let mut processes = Vec::new();
        let mut start = |node: usize, name: String, arguments: &[&str], settings: &[&str]| {
            let mut all: Vec<String> = arguments.iter().map(|text| text.to_string()).collect();
            all.extend(["--bind".to_owned(), host(node)]);
            for setting in settings {
                all.extend(["--set".to_owned(), setting.to_string()]);
            }
            let log = path(format!("{name}.log"));
            processes.push(Process::start(&network, node, &name, &all, &log));
        };
        let kv = format!("kvConfigPath={}", path("kv.json".to_owned()).display());
        start(
            CLIENTS,
            "namesrv".to_owned(),
            &["namesrv", "--port", "9876"],
            &[&kv],
        );
        for id in 0..3 {
            let (name, store) = (format!("n{id}"), path(format!("controller-{id}")));
            let store = store.display().to_string();
            let arguments = [
                "controller",
                "--port",
                "9878",
                "--store",
                &store,
                "--id",
                &name,
                "--peers",
                &peers,
            ];
            let mut all = vec![&secret[..]];
            all.extend(settings);
            start(
                CONTROLLER + id,
                format!("controller-{id}"),
                &arguments,
                &all,
            );
        }
        let namesrv = namesrv_address().to_string();
        for node in 0..BROKERS {
            let store = path(format!("store-{node}")).display().to_string();
            let arguments = [
                "broker",
                "-n",
                &namesrv,
                "--port",
                "10911",
                "--store",
                &store,
                "--shards",
                "1",
                "--memory",
                "134217728",
            ];
            let name = format!("brokerName={GROUP}");
            let all = [
                &secret,
                &controllers,
                &name,
                "logs=2",
                "enableControllerMode=true",
                "mappedFileSizeCommitLog=16777216",
                "slaveTimeout=1000",
            ];
            start(node, format!("broker-{node}"), &arguments, &all);
            if node == 0 {
                until("the first broker is the master", || {
                    said().is_some() && open(broker_address(0)).is_some()
                });
            }
        }
        until_in_sync(BROKERS);
        until("there are a topic and a group", || {
            open(broker_address(said_now().master)).is_some_and(|mut connection| {
                connection.create_topic(TOPIC, QUEUES as u32).is_ok()
                    && connection.create_group("blackbox-consumer").is_ok()
            })
        });
        Self {
            _processes: processes,
            network,
            _files: files,
        }
    }
}

/// Secrets are read only from files that nobody else may read.
fn set_private(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

fn open(address: SocketAddr) -> Option<Connection> {
    let connection = Connection::open_within(address, Duration::from_millis(500)).ok()?;
    connection.set_read_timeout(Duration::from_secs(5)).ok()?;
    Some(connection)
}

/// What the leader of the controllers says.
fn said() -> Option<Said> {
    let mut connection = open(controller_address(CONTROLLER + leader()?))?;
    let body = format!("[\"{GROUP}\"]").into_bytes();
    let found = connection
        .call(&Command::request(GET_SYNC_STATE_DATA, &[], body))
        .ok()?;
    let found: Value = serde_json::from_slice(&found.body).ok()?;
    let group = &found["replicasInfoTable"][GROUP];
    let master: SocketAddr = group["masterAddress"].as_str()?.parse().ok()?;
    Some(Said {
        master: (0..BROKERS).find(|node| broker_address(*node) == master)?,
        in_sync: group["inSyncReplicas"].as_array()?.len(),
        epoch: group["masterEpoch"].as_i64()?,
    })
}

/// The same, as soon as there is an answer.
fn said_now() -> Said {
    let mut found = None;
    until("a controller leads and knows the group", || {
        found = said();
        found.is_some()
    });
    found.unwrap()
}

/// Who leads, as soon as somebody does.
fn leader_now() -> usize {
    let mut found = None;
    until("a controller leads", || {
        found = leader();
        found.is_some()
    });
    found.unwrap()
}

/// Which controller leads.
fn leader() -> Option<usize> {
    (0..3).find(|id| {
        open(controller_address(CONTROLLER + id)).is_some_and(|mut connection| {
            let found = connection.call(&Command::request(GET_METADATA, &[], Vec::new()));
            found.is_ok_and(|found| found.fields["isLeader"] == "true")
        })
    })
}

fn until_in_sync(count: usize) {
    until(&format!("{count} brokers are in sync"), || {
        said().is_some_and(|said| said.in_sync == count)
    });
}

/// Who stored a message: its id begins with the address, four bytes each for host and port.
fn broker_of(msg_id: &str) -> usize {
    let host = u32::from_str_radix(&msg_id[..8], 16).unwrap();
    (host & 0xff) as usize - 10
}

/// A message that a broker said it has stored.
#[derive(Clone, Copy, Debug)]
struct Ack {
    queue: i32,
    offset: i64,
    id: u64,
    /// Who stored it: a slave passes sends on.
    broker: usize,
    sent: Instant,
    got: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Taken {
    broker: usize,
    sent: Instant,
    got: Instant,
    code: i32,
}

/// What all producers were told.
#[derive(Default)]
struct Told {
    acks: Vec<Ack>,
    /// Sends that a broker stored without a promise: codes 11 and 12.
    taken: Vec<Taken>,
    refused: BTreeMap<(usize, i32), u64>,
    sent: u64,
}

struct Producers {
    told: Arc<Mutex<Told>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Producers {
    fn start(network: &Arc<Network>) -> Self {
        let (told, stop) = (Arc::<Mutex<Told>>::default(), Arc::<AtomicBool>::default());
        let pause = Duration::from_millis(knob("RINGMQ_PARTITION_PAUSE_MS", 4));
        let places = [0, 1, 2, CLIENTS];
        let pairs = places
            .iter()
            .flat_map(|place| (0..BROKERS).map(move |broker| (*place, broker)));
        let threads = pairs
            .enumerate()
            .map(|(number, (place, broker))| {
                let (network, told, stop) = (network.clone(), told.clone(), stop.clone());
                std::thread::spawn(move || {
                    network.enter(place);
                    let mut next = (number as u64 + 1) << 40;
                    while !stop.load(Ordering::Relaxed) {
                        if let Some(connection) = open(broker_address(broker)) {
                            produce(connection, broker, &mut next, &told, &stop, pause);
                        }
                        std::thread::sleep(Duration::from_millis(20));
                    }
                })
            })
            .collect();
        Self {
            told,
            stop,
            threads,
        }
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap()
    }

    /// How many acknowledgements there are.
    fn count(&self) -> usize {
        self.told().acks.len()
    }

    /// Those of what was sent since then.
    fn acks_since(&self, begun: Instant) -> Vec<Ack> {
        let told = self.told();
        let since = told.acks.iter().filter(|ack| ack.sent > begun);
        since.copied().collect()
    }

    fn has_ack_since(&self, begun: Instant) -> bool {
        let told = self.told();
        told.acks.iter().rev().any(|ack| ack.sent > begun)
    }

    fn end(mut self) -> Told {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        std::mem::take(&mut *self.told())
    }
}

impl Drop for Producers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Sends each id once, in bursts, until the connection breaks.
fn produce(
    mut connection: Connection,
    broker: usize,
    next: &mut u64,
    told: &Mutex<Told>,
    stop: &AtomicBool,
    pause: Duration,
) {
    while !stop.load(Ordering::Relaxed) {
        let mut waiting = HashMap::new();
        for _ in 0..BURST {
            *next += 1;
            let (id, queue) = (*next, (*next % QUEUES as u64) as i32);
            let command = message(&(TOPIC.to_owned(), queue), id, BODY_BYTES_MAX).send_v2();
            let begun = Instant::now();
            match connection.start(&command) {
                Ok(opaque) => waiting.insert(opaque, (id, begun)),
                Err(_) => return,
            };
        }
        told.lock().unwrap().sent += BURST as u64;
        let mut is_refused = false;
        while !waiting.is_empty() {
            let Ok(found) = connection.next_answer() else {
                return;
            };
            let got = Instant::now();
            let (code, (id, begun)) = (found.code, waiting.remove(&found.opaque).unwrap());
            let msg_id = found.fields.get("msgId").cloned();
            let result = sent(found);
            let mut told = told.lock().unwrap();
            match result {
                Ok(sent) => told.acks.push(Ack {
                    queue: sent.queue_id,
                    offset: sent.queue_offset,
                    id,
                    broker: broker_of(&sent.msg_id),
                    sent: begun,
                    got,
                }),
                Err(_) => {
                    if let Some(msg_id) = msg_id {
                        told.taken.push(Taken {
                            broker: broker_of(&msg_id),
                            sent: begun,
                            got,
                            code,
                        });
                    }
                    *told.refused.entry((broker, code)).or_default() += 1;
                    is_refused = true;
                }
            }
        }
        let pause_refused = Duration::from_millis(20);
        std::thread::sleep(if is_refused { pause_refused } else { pause });
    }
}

/// Who is where when a round begins.
struct Places {
    master: usize,
    /// The controller that leads.
    leader: usize,
}

impl Places {
    fn slaves(&self) -> [usize; 2] {
        let others: Vec<usize> = (0..BROKERS).filter(|node| *node != self.master).collect();
        [others[0], others[1]]
    }

    fn followers(&self) -> [usize; 2] {
        let others: Vec<usize> = (CONTROLLER..CLIENTS)
            .filter(|node| *node != self.leader)
            .collect();
        [others[0], others[1]]
    }
}

/// Both directions between the members of two groups.
fn between(some: &[usize], others: &[usize]) -> BTreeSet<Link> {
    let one_way = one_way(some, others);
    let back = one_way.iter().map(|(from, to)| (*to, *from));
    one_way.iter().copied().chain(back).collect()
}

fn one_way(from: &[usize], to: &[usize]) -> BTreeSet<Link> {
    from.iter()
        .flat_map(|from| to.iter().map(move |to| (*from, *to)))
        .filter(|(from, to)| from != to)
        .collect()
}

fn all_but(some: &[usize]) -> Vec<usize> {
    (0..NODES).filter(|node| !some.contains(node)).collect()
}

/// A kind of partition: its name, and what is cut. Everybody is a machine of its own, and often a broker and a controller share
/// the fate of a site.
type Kind = (&'static str, fn(&Places) -> BTreeSet<Link>);

const KINDS: &[Kind] = &[
    ("half: the master with the controllers' leader", |places| {
        let minority = [places.master, places.leader];
        between(&minority, &all_but(&minority))
    }),
    ("one way: nobody hears the master", |places| {
        one_way(&[places.master], &all_but(&[]))
    }),
    (
        "bridge: two sites see only a third, the master at an end",
        |places| {
            let [other, _] = places.slaves();
            let [_, follower] = places.followers();
            between(&[places.master, places.leader], &[other, follower])
        },
    ),
    ("most controllers alone", |places| {
        between(&places.followers(), &all_but(&places.followers()))
    }),
    ("one way: the master hears nobody", |places| {
        one_way(&all_but(&[]), &[places.master])
    }),
    ("the master alone", |places| {
        between(&[places.master], &all_but(&[places.master]))
    }),
    (
        "half: the master with a controller that follows",
        |places| {
            let minority = [places.master, places.followers()[0]];
            between(&minority, &all_but(&minority))
        },
    ),
    ("half: the master, its clients and a controller", |places| {
        let minority = [places.master, places.followers()[0], CLIENTS];
        between(&minority, &all_but(&minority))
    }),
    ("half: the master with most controllers", |places| {
        let minority = [
            places.slaves()[0],
            places.slaves()[1],
            places.followers()[0],
        ];
        between(&minority, &all_but(&minority))
    }),
    ("bridge: the master in the middle", |places| {
        let [one, other] = places.slaves();
        let [follower, another] = places.followers();
        between(&[one, follower], &[other, another])
    }),
    ("the controllers' leader alone", |places| {
        between(&[places.leader], &all_but(&[places.leader]))
    }),
    (
        "the leader sees brokers, but no other controller",
        |places| between(&[places.leader], &places.followers()),
    ),
    ("one way: no controller hears the leader", |places| {
        one_way(&[places.leader], &places.followers())
    }),
    ("one way: the leader hears no controller", |places| {
        one_way(&places.followers(), &[places.leader])
    }),
    ("a slave alone", |places| {
        let slave = places.slaves()[0];
        between(&[slave], &all_but(&[slave]))
    }),
    ("both slaves alone", |places| {
        let [one, other] = places.slaves();
        let mut cut = between(&[one], &all_but(&[one]));
        cut.extend(between(&[other], &all_but(&[other])));
        cut
    }),
    ("one way: the slaves do not hear the master", |places| {
        one_way(&[places.master], &places.slaves())
    }),
    ("one way: the master does not hear the slaves", |places| {
        one_way(&places.slaves(), &[places.master])
    }),
    ("the master sees no controller", |places| {
        between(&[places.master], &[3, 4, 5])
    }),
    ("one way: no controller hears the master", |places| {
        one_way(&[places.master], &[3, 4, 5])
    }),
    ("brokers see one controller, which is alone", |places| {
        let mut cut = between(&places.followers(), &[0, 1, 2]);
        cut.extend(between(&places.followers(), &[places.leader]));
        cut
    }),
    ("the name server alone", |_| {
        between(&[CLIENTS], &all_but(&[CLIENTS]))
    }),
    ("everybody alone", |_| between(&all_but(&[]), &all_but(&[]))),
];

/// Whether packets go both ways.
fn sees(cut: &BTreeSet<Link>, one: usize, other: usize) -> bool {
    one == other || !cut.contains(&(one, other)) && !cut.contains(&(other, one))
}

/// Whether a broker can talk with a controller that can talk with a majority: nobody else has a lease for it.
fn can_have_lease(cut: &BTreeSet<Link>, broker: usize) -> bool {
    let controllers = CONTROLLER..CLIENTS;
    controllers.clone().any(|leader| {
        let voters = controllers.clone().filter(|node| sees(cut, leader, *node));
        sees(cut, broker, leader) && voters.count() >= 2
    })
}

/// How often the acknowledging broker changed at least. Each acknowledgement belongs to some moment between its send and its
/// answer at which its broker was the only master; a broker stays the master as long as that explains everything.
fn switches(acks: &[Ack]) -> usize {
    let mut by_end: Vec<&Ack> = acks.iter().collect();
    by_end.sort_by_key(|ack| ack.got);
    let mut master: Option<usize> = None;
    // The last moment at which each broker was the master.
    let mut last = BTreeMap::new();
    let mut count = 0;
    for ack in by_end {
        if master == Some(ack.broker) {
            continue;
        }
        if last
            .get(&ack.broker)
            .is_some_and(|moment| ack.sent <= *moment)
        {
            continue;
        }
        if let Some(before) = master.replace(ack.broker) {
            count += 1;
            last.insert(before, ack.got);
        }
    }
    count
}

/// What is acknowledged before another send begins lies before it in its queue, whoever took the two; and no offset is given twice.
fn check_order(acks: &[Ack]) {
    for queue in 0..QUEUES {
        let mut by_send: Vec<&Ack> = acks.iter().filter(|ack| ack.queue == queue).collect();
        let mut by_end = by_send.clone();
        by_send.sort_by_key(|ack| ack.sent);
        by_end.sort_by_key(|ack| ack.got);
        let mut ended = by_end.iter().peekable();
        let mut greatest: Option<&Ack> = None;
        for ack in by_send {
            while let Some(before) = ended.next_if(|before| before.got < ack.sent) {
                if greatest.is_none_or(|known| known.offset < before.offset) {
                    greatest = Some(before);
                }
            }
            if let Some(before) = greatest {
                assert!(
                    before.offset < ack.offset,
                    "two masters: {before:?} was acknowledged before this was sent: {ack:?}"
                );
            }
        }
        let mut offsets = BTreeMap::new();
        for ack in acks.iter().filter(|ack| ack.queue == queue) {
            if let Some(other) = offsets.insert(ack.offset, ack) {
                panic!("two messages were acknowledged at one offset: {other:?} {ack:?}");
            }
        }
    }
}

/// Whoever can have no lease has not taken a send since the last one ended.
fn check_leases(producers: &Producers, cut: &BTreeSet<Link>, begun: Instant, ended: Instant) {
    let (acks, taken) = {
        let told = producers.told();
        (told.acks.clone(), told.taken.clone())
    };
    let acks = acks.iter().map(|ack| Taken {
        broker: ack.broker,
        sent: ack.sent,
        got: ack.got,
        code: answer::SUCCESS,
    });
    // What was answered later may have been taken later.
    let meanwhile: Vec<Taken> = acks
        .chain(taken)
        .filter(|taken| taken.sent > begun + LEASE && taken.got < ended)
        .collect();
    for broker in (0..BROKERS).filter(|broker| !can_have_lease(cut, *broker)) {
        let wrong: Vec<_> = meanwhile
            .iter()
            .filter(|taken| taken.broker == broker)
            .map(|taken| (taken.sent - begun, taken.code))
            .collect();
        assert!(
            wrong.is_empty(),
            "broker {broker} had no lease and took {} sends; after the cut, with code: {:?}",
            wrong.len(),
            &wrong[..wrong.len().min(10)]
        );
    }
}

/// The longest time without an acknowledgement since a moment, until the last one.
fn silence(acks: &[Ack], begun: Instant) -> Duration {
    let since = acks.iter().map(|ack| ack.got).filter(|got| *got > begun);
    let mut times: Vec<Instant> = since.chain([begun]).collect();
    times.sort();
    let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
    gaps.max().unwrap_or_default()
}

/// Reads what came since the last time and compares: every acknowledged message is at its offset, byte for byte, and none is
/// there twice.
#[derive(Default)]
struct Checker {
    /// By broker and queue.
    next: BTreeMap<(usize, i32), i64>,
    ids: BTreeMap<usize, BTreeSet<u64>>,
}

impl Checker {
    fn check(&mut self, acks: &[Ack], broker: usize) -> usize {
        let mut reader = open(broker_address(broker)).unwrap();
        let mut count = 0;
        for queue in 0..QUEUES {
            let next = self.next.entry((broker, queue)).or_default();
            let first = *next;
            let wanted = acks
                .iter()
                .filter(|ack| ack.queue == queue && ack.offset >= first);
            let wanted: BTreeMap<i64, u64> = wanted.map(|ack| (ack.offset, ack.id)).collect();
            let last = wanted.last_key_value().map_or(-1, |(offset, _)| *offset);
            until("a broker has what was acknowledged", || {
                reader.max_offset(TOPIC, queue).is_ok_and(|end| {
                    end > last || {
                        say!("broker {broker}, queue {queue}: {end} of {}", last + 1);
                        std::thread::sleep(Duration::from_millis(500));
                        false
                    }
                })
            });
            let records = reader.read_queue(TOPIC, queue, first).unwrap();
            let ids = self.ids.entry(broker).or_default();
            for (at, record) in records.iter().enumerate() {
                assert_eq!(record.queue_offset, first + at as i64);
                let id = u64::from_str_radix(&record.properties["UNIQ_KEY"], 16).unwrap();
                assert!(ids.insert(id), "broker {broker} has {id:x} twice");
                let body = message(&(TOPIC.to_owned(), queue), id, BODY_BYTES_MAX).body;
                assert!(record.body == body, "broker {broker}: {record:?}");
                if let Some(promised) = wanted.get(&record.queue_offset) {
                    assert_eq!(*promised, id, "broker {broker}, queue {queue}: {record:?}");
                }
            }
            *next = first + records.len() as i64;
            assert!(
                *next > last,
                "broker {broker}, queue {queue}: it lost {last}"
            );
            count += records.len();
        }
        count
    }
}

fn network() -> Option<Network> {
    match Network::new() {
        Ok(network) => Some(network),
        Err(reason) => {
            say!("SKIPPED partitions: needs root, ip and network namespaces: {reason}");
            None
        }
    }
}

#[test]
fn whatever_link_is_cut_nothing_acknowledged_is_lost_and_one_master_acknowledges() {
    let Some(network) = network() else { return };
    let cluster = Cluster::new(network, &[]);
    let (rounds, seconds) = (
        knob("RINGMQ_PARTITION_ROUNDS", 4),
        knob("RINGMQ_PARTITION_S", 4),
    );
    let first = knob("RINGMQ_PARTITION_FROM", 0);
    let producers = Producers::start(&cluster.network);
    let mut checker = Checker::default();
    let (mut gone, mut back, mut whole) = (Vec::new(), Vec::new(), Vec::new());
    let mut checked = 0;
    for number in first..first + rounds {
        let before = producers.count();
        until("sends succeed", || producers.count() > before + 100);
        until_in_sync(BROKERS);
        let said_before = said_now();
        let mark = Instant::now();
        let places = Places {
            master: said_before.master,
            leader: CONTROLLER + leader_now(),
        };
        let (name, kind) = KINDS[number as usize % KINDS.len()];
        let cut = kind(&places);
        cluster.network.set(&cut);
        let begun = Instant::now();
        std::thread::sleep(Duration::from_secs(seconds));
        let ended = Instant::now();
        cluster.network.set(&BTreeSet::new());
        let healed = Instant::now();
        until("sends succeed again", || producers.has_ack_since(healed));
        let writable = healed.elapsed();
        until_in_sync(BROKERS);
        let in_sync = healed.elapsed();
        check_leases(&producers, &cut, begun, ended);
        let acks = producers.acks_since(mark);
        // Later than what is compared with it.
        let said_after = said_now();
        let elections = (said_after.epoch - said_before.epoch) as usize;
        let (switches, silence) = (switches(&acks), silence(&acks, begun));
        let meanwhile = |from: Instant, to: Instant| {
            acks.iter()
                .filter(|ack| from < ack.sent && ack.sent < to)
                .count()
        };
        let has_majority = (0..BROKERS).any(|broker| can_have_lease(&cut, broker));
        say!(
            "round {number}, {name}: broker {} to {}, {elections} elections, {switches} switches, {} acknowledged, {} while it was cut; \
             longest time without a success {silence:.1?}{}; after it was whole: writable {writable:.1?}, all in sync {in_sync:.1?}",
            said_before.master,
            said_after.master,
            acks.len(),
            meanwhile(begun, ended),
            if has_majority { "" } else { " (no majority)" },
        );
        assert!(
            switches <= elections,
            "{switches} times another broker acknowledged, with {elections} elections"
        );
        check_order(&acks);
        match has_majority {
            true => gone.push(silence),
            false => back.push(writable),
        }
        whole.push(in_sync);
        for broker in 0..BROKERS {
            let acks = producers.told().acks.clone();
            checked += checker.check(&acks, broker);
        }
    }
    until_in_sync(BROKERS);
    let told = producers.end();
    until_in_sync(BROKERS);
    check_order(&told.acks);
    let mut all = Checker::default();
    for broker in 0..BROKERS {
        checked += all.check(&told.acks, broker);
    }
    let worst = |times: &[Duration]| times.iter().max().copied().unwrap_or_default();
    let median = |times: &[Duration]| {
        let mut times = times.to_vec();
        times.sort();
        times.get(times.len() / 2).copied().unwrap_or_default()
    };
    say!(
        "{rounds} partitions of {seconds} s: {} of {} sends acknowledged, {checked} records read, by broker and code refused {:?}; \
         longest time without a success with a majority: p50 {:.1?}, max {:.1?}; writable after a time without one: p50 {:.1?}, max {:.1?}; \
         all in sync again: p50 {:.1?}, max {:.1?}",
        told.acks.len(),
        told.sent,
        told.refused,
        median(&gone),
        worst(&gone),
        median(&back),
        worst(&back),
        median(&whole),
        worst(&whole),
    );
}

/// The set is the master alone, so it could acknowledge without asking anybody; then it is cut off together with its producers, and
/// somebody who lacks messages takes its place, as the configuration allows. Only its lease keeps the two apart.
#[test]
fn a_master_alone_in_its_set_acknowledges_nothing_once_it_is_cut_off() {
    let Some(network) = network() else { return };
    let cluster = Cluster::new(network, &["enableElectUncleanMaster=true"]);
    let producers = Producers::start(&cluster.network);
    for round in 0..knob("RINGMQ_PARTITION_ALONE", 1) {
        until_in_sync(BROKERS);
        let said_before = said_now();
        let mark = Instant::now();
        let master = said_before.master;
        let slaves: Vec<usize> = (0..BROKERS).filter(|node| *node != master).collect();
        cluster.network.set(&between(&slaves, &all_but(&slaves)));
        until_in_sync(1);
        let alone = Instant::now();
        until("the master goes on alone", || {
            producers.has_ack_since(alone)
        });
        let cut = between(&[master], &all_but(&[master]));
        cluster.network.set(&cut);
        let begun = Instant::now();
        until("somebody else is the master", || {
            said().is_some_and(|said| said.master != master)
        });
        until("it acknowledges", || {
            let told = producers.told();
            told.acks.iter().rev().any(|ack| ack.broker != master)
        });
        let silence = begun.elapsed();
        // Time for the old one to acknowledge what it must not.
        std::thread::sleep(Duration::from_secs(4));
        let ended = Instant::now();
        cluster.network.set(&BTreeSet::new());
        until_in_sync(BROKERS);
        check_leases(&producers, &cut, begun, ended);
        let switches = switches(&producers.acks_since(mark));
        let said_after = said_now();
        let elections = (said_after.epoch - said_before.epoch) as usize;
        say!(
            "round {round}: broker {master}, alone in its set, was cut off; broker {} acknowledged {silence:.1?} later; {elections} elections, {switches} switches",
            said_after.master
        );
        assert!(
            (1..=elections).contains(&switches),
            "{switches} switches, {elections} elections"
        );
    }
    producers.end();
}
