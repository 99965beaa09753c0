//! The requests byte for byte, the decisions one by one and against a model of Java's name server, and the tasks against
//! a scripted name server on a real socket.

#![allow(clippy::unwrap_used)]

use std::net::Ipv4Addr;
use std::time::Instant;

use proptest::prelude::*;

use super::*;
use crate::io::ring::RingEnv;
use crate::io::ring::testing::on_executor;
use crate::io::tcp::Listener;
use crate::server::listener::{Server, ServerOptions};
use crate::wire::remoting::command::FieldValue;

fn identity() -> BrokerIdentity {
    BrokerIdentity {
        cluster: "C1".into(),
        broker_name: "b1".into(),
        broker_id: 0,
        address: "127.0.0.1:10911".into(),
        ha_address: "127.0.0.1:10912".into(),
        permission: 6,
    }
}

fn topic(name: &str, queues: u32) -> TopicConfig {
    TopicConfig {
        topic_name: name.into(),
        read_queue_nums: queues,
        write_queue_nums: queues,
        ..TopicConfig::default()
    }
}

fn version(counter: i64) -> DataVersion {
    DataVersion {
        counter,
        state_version: 0,
        timestamp: 1_700_000_000_000,
    }
}

fn field(header: &Outgoing, name: &str) -> String {
    match &header
        .fields
        .iter()
        .find(|(field, _)| field == name)
        .unwrap()
        .1
    {
        FieldValue::Text(text) => text.to_string(),
        FieldValue::Shared(text) => text.to_string(),
        FieldValue::Int(number) => number.to_string(),
        FieldValue::Bool(flag) => flag.to_string(),
    }
}

#[test]
fn a_registration_is_what_java_brokers_send() {
    let (header, body) = register_request(&identity(), version(3), &[topic("T", 8)]);
    // Dumped from RocketMQ 5.5.0.
    let golden = concat!(
        r#"{"filterServerList":[],"topicConfigSerializeWrapper":{"#,
        r#""dataVersion":{"counter":3,"stateVersion":0,"timestamp":1700000000000},"#,
        r#""mappingDataVersion":{"counter":3,"stateVersion":0,"timestamp":1700000000000},"#,
        r#""topicConfigTable":{"T":{"attributes":{},"order":false,"perm":6,"readQueueNums":8,"#,
        r#""topicFilterType":"SINGLE_TAG","topicName":"T","topicSysFlag":0,"writeQueueNums":8}},"#,
        r#""topicQueueMappingDetailMap":{},"topicQueueMappingInfoMap":{}}}"#
    );
    assert_eq!(std::str::from_utf8(&body).unwrap(), golden);
    assert_eq!(header.code, 103);
    let crc = crc32fast::hash(golden.as_bytes()) & 0x7FFF_FFFF;
    for (name, value) in [
        ("brokerName", "b1"),
        ("brokerAddr", "127.0.0.1:10911"),
        ("clusterName", "C1"),
        ("haServerAddr", "127.0.0.1:10912"),
        ("brokerId", "0"),
        ("compressed", "false"),
        ("enableActingMaster", "false"),
        ("bodyCrc32", &crc.to_string()),
    ] {
        assert_eq!(field(&header, name), value, "{name}");
    }
}

#[test]
fn a_broker_without_a_permission_registers_its_topics_without_it() {
    let mut read_only = identity();
    read_only.permission = 4;
    let mut inherited = topic("TBW102", 8);
    inherited.perm = 7;
    let perm = |identity: &BrokerIdentity| {
        let (_, body) = register_request(identity, version(1), std::slice::from_ref(&inherited));
        let body: RegisterBrokerBody = json::from_slice(&body).unwrap();
        body.topic_config_serialize_wrapper.topic_config_table["TBW102"].perm
    };
    assert_eq!(perm(&read_only), 4);
    assert_eq!(
        perm(&identity()),
        7,
        "a whole permission leaves the others alone"
    );
}

#[test]
fn farewell_and_question_name_the_broker() {
    let farewell = unregister_request(&identity());
    assert_eq!(farewell.code, 104);
    let (question, body) = query_request(&identity(), version(3));
    assert_eq!(question.code, 322);
    assert_eq!(
        &body[..],
        br#"{"counter":3,"stateVersion":0,"timestamp":1700000000000}"#
    );
    for header in [farewell, question] {
        for (name, value) in [
            ("brokerName", "b1"),
            ("brokerAddr", "127.0.0.1:10911"),
            ("clusterName", "C1"),
            ("brokerId", "0"),
        ] {
            assert_eq!(field(&header, name), value);
        }
    }
}

#[test]
fn one_topic_alone_is_registered_behind_an_empty_table() {
    assert_eq!(batches(version(1), &[]), [(version(1), 0..0)]);
    let two = batches(version(1), &[topic("T", 8)]);
    assert_eq!(
        two,
        [(step_version(version(1), 1), 0..0), (version(1), 0..1)]
    );
    assert_ne!(two[0].0, two[1].0);
}

proptest! {
    #[test]
    fn batches_cover_the_table_in_bounded_frames_with_a_version_each(
        count in 0..4000usize,
        name_bytes in 1..120usize,
        attribute_bytes in prop_oneof![Just(0usize), 1..400usize],
    ) {
        let topics: Vec<TopicConfig> = (0..count)
            .map(|index| {
                let mut config = topic(&format!("{index:0name_bytes$}"), 8);
                if attribute_bytes > 0 {
                    config.attributes.insert("a".into(), "v".repeat(attribute_bytes));
                }
                config
            })
            .collect();
        let batches = batches(version(9), &topics);
        let mut next = 0;
        for (index, (batch_version, range)) in batches.iter().enumerate() {
            prop_assert_eq!(range.start, next);
            next = range.end;
            prop_assert_eq!(*batch_version == version(9), index + 1 == batches.len());
            prop_assert!(index == 0 || batches[index - 1].0 != *batch_version);
            let (_, body) = register_request(&identity(), *batch_version, &topics[range.clone()]);
            prop_assert!(body.len() < 2 * BATCH_BYTES_TARGET, "{} bytes", body.len());
        }
        prop_assert_eq!(next, count);
        prop_assert!(batches[0].1.len() != 1);
    }
}

#[test]
fn a_name_server_gets_all_first_then_single_changes_then_a_heartbeat_each_period() {
    let mut progress = Progress::new(30_000);
    assert_eq!(progress.due_ms(), 0);
    assert_eq!(progress.begin(version(1), 5), Plan::All);
    assert_eq!(
        progress.end(Outcome::Registered(version(1)), 100),
        Some(Turn::Up)
    );
    assert_eq!(progress.due_ms(), 30_100);
    // A small table is repeated: that is the heartbeat.
    assert_eq!(progress.begin(version(1), 5), Plan::All);
    assert_eq!(progress.end(Outcome::Registered(version(1)), 30_100), None);
    progress.topic_changed("T");
    assert_eq!(progress.due_ms(), 0);
    assert_eq!(
        progress.begin(version(2), 6),
        Plan::Topics(BTreeSet::from(["T".into()]))
    );
    // What changes while that is under way follows at once.
    progress.topic_changed("U");
    assert_eq!(progress.end(Outcome::Registered(version(2)), 31_000), None);
    assert_eq!(progress.due_ms(), 0);
    assert_eq!(
        progress.begin(version(3), 7),
        Plan::Topics(BTreeSet::from(["U".into()]))
    );
    progress.end(Outcome::Registered(version(3)), 31_100);
    assert_eq!(progress.due_ms(), 61_100);
}

#[test]
fn a_large_table_is_not_repeated_but_asked_for_unless_it_changed() {
    let mut progress = Progress::new(30_000);
    let many = REPEATED_TOPICS_MAX + 1;
    progress.begin(version(1), many);
    progress.end(Outcome::Registered(version(1)), 0);
    assert_eq!(progress.begin(version(1), many), Plan::Ask(version(1)));
    // The name server was restarted behind a proxy that kept our connection.
    assert_eq!(progress.end(Outcome::Forgotten, 30_000), None);
    assert_eq!(progress.due_ms(), 30_000);
    assert_eq!(progress.begin(version(1), many), Plan::All);
    progress.end(Outcome::Registered(version(1)), 30_100);
    // A change that nobody reported is found by its version.
    assert_eq!(progress.begin(version(2), many), Plan::All);
    progress.end(Outcome::Registered(version(2)), 60_000);
    // Many changes are cheaper all together.
    for index in 0..=SINGLE_TOPICS_MAX {
        progress.topic_changed(&index.to_string());
    }
    assert_eq!(progress.begin(version(3), many), Plan::All);
}

#[test]
fn failures_back_off_are_told_once_and_end_with_the_whole_table() {
    let mut progress = Progress::new(30_000);
    progress.begin(version(1), 5);
    let mut now_ms = 0;
    let mut pauses = Vec::new();
    for failure in 0..6 {
        let turn = progress.end(Outcome::Failed, now_ms);
        assert_eq!(turn, (failure == 0).then_some(Turn::Down));
        pauses.push(progress.due_ms() - now_ms);
        // Changes do not make it come sooner: it has to send all anyway.
        progress.topic_changed("T");
        progress.table_changed();
        assert_eq!(progress.due_ms() - now_ms, pauses[failure]);
        now_ms = progress.due_ms();
        assert_eq!(progress.begin(version(1), 5), Plan::All);
    }
    assert_eq!(pauses, [1000, 2000, 4000, 8000, 15_000, 15_000]);
    assert_eq!(
        progress.end(Outcome::Registered(version(1)), now_ms),
        Some(Turn::Up)
    );
    assert!(progress.is_up());
    // A failed change is repeated as part of the whole.
    progress.topic_changed("T");
    progress.begin(version(2), 5);
    assert_eq!(progress.end(Outcome::Failed, now_ms), Some(Turn::Down));
    assert_eq!(progress.begin(version(2), 5), Plan::All);
}

#[test]
fn a_lost_connection_registers_again_soon() {
    let mut progress = Progress::new(30_000);
    progress.begin(version(1), 5);
    progress.end(Outcome::Registered(version(1)), 0);
    progress.disconnected(10_000);
    assert_eq!(progress.due_ms(), 11_000);
    assert_eq!(progress.begin(version(1), 5), Plan::All);
}

#[test]
fn the_period_has_bounds() {
    for (asked_ms, period_ms) in [(0, 10_000), (30_000, 30_000), (3_600_000, 60_000)] {
        let mut progress = Progress::new(asked_ms);
        progress.begin(version(1), 1);
        progress.end(Outcome::Registered(version(1)), 0);
        assert_eq!(progress.due_ms(), period_ms);
    }
}

/// What Java's name server does with our registrations, as far as this file relies on it.
#[derive(Default)]
struct JavaNameServer {
    version: Option<DataVersion>,
    queues: BTreeMap<String, u32>,
}

impl JavaNameServer {
    fn register(&mut self, version: DataVersion, topics: &[TopicConfig]) -> bool {
        if self.version.is_none() && topics.len() == 1 {
            return false;
        }
        let changed = self.version != Some(version);
        for topic in topics {
            if changed || !self.queues.contains_key(&topic.topic_name) {
                self.queues
                    .insert(topic.topic_name.clone(), topic.read_queue_nums);
            }
        }
        self.version = Some(version);
        true
    }
}

/// Carries a plan out against the model as [`Registrar::carry_out`] does; `lost_at` is the request whose answer is lost.
fn carry_out(
    plan: Plan,
    server: &mut JavaNameServer,
    version: DataVersion,
    table: &BTreeMap<String, TopicConfig>,
    lost_at: Option<usize>,
) -> Outcome {
    match plan {
        Plan::All => {
            let topics: Vec<TopicConfig> = table.values().cloned().collect();
            for (index, (batch_version, range)) in batches(version, &topics).into_iter().enumerate()
            {
                if !server.register(batch_version, &topics[range]) || lost_at == Some(index) {
                    return Outcome::Failed;
                }
            }
            Outcome::Registered(version)
        }
        Plan::Topics(names) => {
            let topics: Vec<_> = names.iter().filter_map(|name| table.get(name)).collect();
            if topics.is_empty() {
                return Outcome::Forgotten;
            }
            for (index, topic) in topics.iter().enumerate() {
                let step = step_version(version, topics.len() - 1 - index);
                if !server.register(step, std::slice::from_ref(*topic)) {
                    return Outcome::Forgotten;
                }
                if lost_at == Some(index) {
                    return Outcome::Failed;
                }
            }
            Outcome::Registered(version)
        }
        Plan::Ask(asked) if lost_at == Some(0) || server.version != Some(asked) => {
            Outcome::Forgotten
        }
        Plan::Ask(asked) => Outcome::Registered(asked),
    }
}

#[derive(Clone, Debug)]
enum Event {
    /// A topic gets this many queues.
    Change {
        topic: usize,
        queues: u32,
    },
    Delete {
        topic: usize,
    },
    /// The name server forgets us without our noticing.
    Forget,
    Due {
        lost_at: Option<usize>,
    },
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..12usize, 1..100u32).prop_map(|(topic, queues)| Event::Change { topic, queues }),
        1 => (0..12usize).prop_map(|topic| Event::Delete { topic }),
        1 => Just(Event::Forget),
        4 => proptest::option::weighted(0.3, 0..3usize).prop_map(|lost_at| Event::Due { lost_at }),
    ]
}

proptest! {
    #[test]
    fn in_the_end_the_name_server_has_every_topic_as_it_is(
        large in any::<bool>(),
        events in proptest::collection::vec(event(), 1..40),
    ) {
        // More topics than are repeated each period, or few.
        let still = if large { REPEATED_TOPICS_MAX } else { 2 };
        let mut table: BTreeMap<String, TopicConfig> = (0..still)
            .map(|index| (format!("still{index}"), topic(&format!("still{index}"), 4)))
            .collect();
        let mut version = version(1);
        let mut server = JavaNameServer::default();
        let mut progress = Progress::new(30_000);
        let mut now_ms = 0;
        let turn = |progress: &mut Progress, server: &mut JavaNameServer, table: &BTreeMap<_, _>, version, lost_at, now_ms: &mut u64| {
            *now_ms = (*now_ms).max(progress.due_ms());
            let plan = progress.begin(version, table.len());
            let outcome = carry_out(plan, server, version, table, lost_at);
            progress.end(outcome, *now_ms);
            outcome
        };
        for event in events {
            match event {
                Event::Change { topic: index, queues } => {
                    let name = format!("T{index}");
                    table.insert(name.clone(), topic(&name, queues));
                    version = version.next(0, version.timestamp + 1);
                    progress.topic_changed(&name);
                }
                Event::Delete { topic: index } => {
                    if table.remove(&format!("T{index}")).is_some() {
                        version = version.next(0, version.timestamp + 1);
                        progress.table_changed();
                    }
                }
                Event::Forget => server = JavaNameServer::default(),
                Event::Due { lost_at } => {
                    turn(&mut progress, &mut server, &table, version, lost_at, &mut now_ms);
                }
            }
        }
        // Two undisturbed periods repair everything.
        for _ in 0..2 {
            let mut turns = 0;
            while !matches!(turn(&mut progress, &mut server, &table, version, None, &mut now_ms), Outcome::Registered(_)) {
                turns += 1;
                prop_assert!(turns < 4, "it never succeeds");
            }
        }
        for (name, config) in &table {
            prop_assert_eq!(server.queues.get(name), Some(&config.read_queue_nums), "{}", name);
        }
        prop_assert_eq!(server.version, Some(version));
    }
}

/// A source with a table that tests change.
#[derive(Default)]
struct Topics {
    version: Cell<DataVersion>,
    table: RefCell<BTreeMap<String, TopicConfig>>,
    ordered: RefCell<BTreeSet<String>>,
}

impl Topics {
    fn put(&self, config: TopicConfig) {
        self.version
            .set(self.version.get().next(0, 1_700_000_000_000));
        self.table
            .borrow_mut()
            .insert(config.topic_name.clone(), config);
    }
}

impl RegistrationSource for Topics {
    fn version(&self) -> DataVersion {
        self.version.get()
    }

    fn topic_count(&self) -> usize {
        self.table.borrow().len()
    }

    fn topics(&self) -> Vec<TopicConfig> {
        self.table.borrow().values().cloned().collect()
    }

    fn topic(&self, name: &str) -> Option<TopicConfig> {
        self.table.borrow().get(name).cloned()
    }

    fn order_topics(&self, topics: &BTreeSet<String>) {
        self.ordered.borrow_mut().extend(topics.iter().cloned());
    }
}

/// Notes what it is sent and answers all of it with one code.
#[derive(Default)]
struct Scripted {
    code: Cell<i32>,
    seen: RefCell<Vec<(i32, Vec<String>)>>,
    connections: RefCell<Vec<Rc<Connection>>>,
}

impl Handler for Scripted {
    fn handle(&self, request: Command, responder: Responder) {
        let topics = json::from_slice::<RegisterBrokerBody>(&request.body)
            .map(|body| body.topic_config_serialize_wrapper.topic_config_table)
            .unwrap_or_default();
        self.seen
            .borrow_mut()
            .push((request.code, topics.into_keys().collect()));
        self.connections
            .borrow_mut()
            .push(responder.connection.clone());
        let answer = Outgoing {
            code: self.code.get(),
            ..Outgoing::default()
        };
        responder.send(
            answer,
            Body::Bytes(Bytes::from_static(br#"{"table":{"U":"b1:4"}}"#)),
        );
    }

    fn closed(&self, _connection: &Rc<Connection>) {}
}

impl Scripted {
    fn serve(env: &RingEnv, port: u16) -> (Rc<Self>, Rc<Server>, String) {
        let handler = Rc::new(Self::default());
        let server = Server::new(env, ServerOptions::default(), handler.clone());
        let listener = Listener::bind((Ipv4Addr::LOCALHOST, port).into()).unwrap();
        let address = listener.local().to_string();
        server.serve(listener);
        (handler, server, address)
    }

    fn count(&self) -> usize {
        self.seen.borrow().len()
    }
}

async fn until(env: &RingEnv, what: &str, so: impl Fn() -> bool) {
    let started = Instant::now();
    while !so() {
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "never so: {what}"
        );
        env.sleep(Duration::from_millis(2)).await;
    }
}

#[test]
fn a_broker_registers_everywhere_tells_changes_at_once_and_says_farewell() {
    on_executor(async |env| {
        let (first, server, first_address) = Scripted::serve(&env, 0);
        let (second, other_server, second_address) = Scripted::serve(&env, 0);
        let source = Rc::new(Topics::default());
        source.put(topic("T", 8));
        source.put(topic("U", 8));
        // The third one does not exist, and holds up nobody.
        let addresses = [first_address, second_address, "127.0.0.1:1".into()];
        let registrar = Registrar::new(env.clone(), identity(), &addresses, 30_000, source.clone());
        registrar.start();
        let all = (103, vec!["T".to_owned(), "U".to_owned()]);
        until(&env, "both have all", || {
            first.count() == 1 && second.count() == 1
        })
        .await;
        assert_eq!(*first.seen.borrow(), [all]);
        until(&env, "two are up", || {
            registrar.states().iter().filter(|(_, up)| *up).count() == 2
        })
        .await;
        assert_eq!(*source.ordered.borrow(), BTreeSet::from(["U".to_owned()]));
        source.put(topic("V", 4));
        registrar.topic_changed("V");
        until(&env, "both have the change", || {
            first.count() == 2 && second.count() == 2
        })
        .await;
        assert_eq!(first.seen.borrow()[1], (103, vec!["V".to_owned()]));
        registrar.stop().await;
        assert_eq!(first.seen.borrow().last(), Some(&(104, vec![])));
        assert_eq!(second.seen.borrow().last(), Some(&(104, vec![])));
        assert_eq!(first.count(), 3);
        server.stop(Duration::ZERO).await;
        other_server.stop(Duration::ZERO).await;
    });
}

#[test]
fn a_lost_connection_and_a_refusal_end_with_a_registration() {
    on_executor(async |env| {
        let (handler, server, address) = Scripted::serve(&env, 0);
        handler.code.set(1);
        let source = Rc::new(Topics::default());
        source.put(topic("T", 8));
        source.put(topic("U", 8));
        let registrar = Registrar::new(env.clone(), identity(), &[address], 30_000, source.clone());
        registrar.start();
        until(&env, "refused", || handler.count() == 1).await;
        handler.code.set(0);
        until(&env, "up after the pause", || registrar.states()[0].1).await;
        assert_eq!(handler.count(), 2);
        // The name server closes; the period of 30 seconds is not waited for.
        for connection in handler.connections.take() {
            connection.close();
        }
        until(&env, "registered again", || handler.count() == 3).await;
        registrar.stop().await;
        server.stop(Duration::ZERO).await;
    });
}
