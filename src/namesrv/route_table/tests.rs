//! Each rule of the table by itself, then random histories against its invariants.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use serde_json::json;

use super::*;

const A: &str = "10.0.0.1:10911";
const B: &str = "10.0.0.2:10911";
const C: &str = "10.0.0.3:10911";
const INTERVAL_MS: u64 = 5000;

fn version(counter: i64) -> DataVersion {
    DataVersion {
        counter,
        state_version: 0,
        timestamp: 1_700_000_000_000,
    }
}

fn queues(count: u32, perm: i32) -> TopicQueues {
    TopicQueues {
        read_queue_nums: count,
        write_queue_nums: count,
        perm,
        topic_sys_flag: 0,
    }
}

/// Broker `b` of cluster `c` with topics of 8 queues.
fn broker(addr: &str, broker_id: i64, counter: i64, topics: &[&str]) -> Registration {
    Registration {
        cluster: "c".into(),
        broker_name: "b".into(),
        broker_addr: addr.into(),
        broker_id,
        ha_server_addr: format!("ha-{addr}"),
        version: version(counter),
        topics: topics
            .iter()
            .map(|&topic| (topic.into(), queues(8, 6)))
            .collect(),
        ..Registration::default()
    }
}

fn named(mut registration: Registration, name: &str) -> Registration {
    registration.broker_name = name.into();
    registration
}

fn acting(mut registration: Registration) -> Registration {
    registration.enable_acting_master = Some(true);
    registration
}

fn leaving(addr: &str) -> Unregistration {
    Unregistration {
        cluster: "c".into(),
        broker_name: "b".into(),
        broker_addr: addr.into(),
    }
}

fn connection(serial: u64) -> ConnectionId {
    ConnectionId { core: 0, serial }
}

impl RouteTable {
    fn put(&mut self, registration: Registration) -> Registered {
        let registered = self.register(registration, None, 0, RegisterOptions::default());
        self.assert_invariants();
        registered.unwrap()
    }

    fn perm(&self, topic: &str, name: &str) -> Option<i32> {
        let view = self.route(topic, RouteOptions::default()).ok()?;
        let data = view
            .queue_datas
            .iter()
            .find(|data| data.broker_name == name);
        data.map(|data| data.perm)
    }

    fn queue_count(&self, topic: &str) -> u32 {
        let view = self.route(topic, RouteOptions::default()).unwrap();
        view.queue_datas[0].read_queue_nums
    }
}

#[test]
fn a_registered_broker_serves_its_topics() {
    let mut table = RouteTable::default();
    assert_eq!(
        table.put(broker(A, 0, 1, &["T", "U"])),
        Registered::default()
    );
    let view = table.route("T", RouteOptions::default()).unwrap();
    assert_eq!(
        json!(view),
        json!({
            "brokerDatas": [{"brokerAddrs": {"0": A}, "brokerName": "b", "cluster": "c", "enableActingMaster": false}],
            "filterServerTable": {},
            "queueDatas": [{"brokerName": "b", "perm": 6, "readQueueNums": 8, "topicSysFlag": 0, "writeQueueNums": 8}],
        })
    );
    assert_eq!(table.all_topics(), ["T", "U"]);
    assert_eq!(table.topics_of_cluster("c"), ["T", "U"]);
    assert!(table.topics_of_cluster("d").is_empty());
    assert_eq!(table.system_topics(), (vec!["c", "b"], Some(A)));
}

#[test]
fn one_topic_alone_cannot_be_a_brokers_first_registration_and_leaves_no_trace() {
    let mut table = RouteTable::default();
    let refused = table.register(broker(A, 0, 1, &["T"]), None, 0, RegisterOptions::default());
    assert!(
        refused
            .unwrap_err()
            .to_string()
            .starts_with("register broker failed")
    );
    table.assert_invariants();
    assert_eq!(table.counts(), (0, 0));
    assert!(table.system_topics().0.is_empty());
    // An empty registration makes it known, and then one topic is an increment.
    table.put(broker(A, 0, 1, &[]));
    table.put(broker(A, 0, 2, &["T"]));
    assert_eq!(table.all_topics(), ["T"]);
}

#[test]
fn a_topic_is_overwritten_only_by_another_data_version() {
    let mut table = RouteTable::default();
    table.put(broker(A, 0, 1, &["T", "U"]));
    let mut grown = broker(A, 0, 1, &["T", "U", "V"]);
    grown.topics[0].1 = queues(16, 6);
    table.put(grown.clone());
    assert_eq!(table.queue_count("T"), 8);
    assert_eq!(
        table.queue_count("V"),
        8,
        "an unknown pair is taken all the same"
    );
    grown.version = version(2);
    table.put(grown);
    assert_eq!(table.queue_count("T"), 16);
}

#[test]
fn topics_that_a_later_registration_lacks_stay_unless_the_option_says_otherwise() {
    let mut table = RouteTable::default();
    table.put(broker(A, 0, 1, &["T", "U"]));
    table.put(named(broker(B, 0, 1, &["T", "U"]), "b2"));
    table.put(broker(A, 0, 2, &["T", "V"]));
    assert_eq!(table.all_topics(), ["T", "U", "V"]);
    let delete = RegisterOptions {
        delete_missing_topics: true,
    };
    table
        .register(broker(A, 0, 3, &["T", "W"]), None, 0, delete)
        .unwrap();
    table.assert_invariants();
    assert_eq!(table.all_topics(), ["T", "U", "W"]);
    assert_eq!(table.perm("U", "b"), None);
    assert_eq!(table.perm("U", "b2"), Some(6));
}

#[test]
fn a_slave_gets_its_masters_addresses_and_brings_no_topics() {
    let mut table = RouteTable::default();
    table.put(broker(A, 0, 1, &["T", "U"]));
    let mut slave = broker(B, 1, 1, &["T", "X"]);
    slave.enable_acting_master = Some(false);
    let registered = table.put(slave);
    assert_eq!(registered.master, Some((format!("ha-{A}"), A.into())));
    assert_eq!(table.all_topics(), ["T", "U"]);
    assert_eq!(table.members("b"), BTreeMap::from([(0, A), (1, B)]));
}

#[test]
fn a_prime_slave_brings_topics_without_write_permission() {
    let mut table = RouteTable::default();
    table.put(acting(broker(B, 1, 1, &["T", "U"])));
    assert_eq!(table.perm("T", "b"), Some(4));
    // A second slave with a greater id is no prime slave, nor is a slave of a version that does not know the field.
    table.put(acting(broker(C, 2, 1, &["X", "Y"])));
    table.put(named(broker("10.0.0.9:1", 1, 1, &["X", "Y"]), "old"));
    assert_eq!(table.all_topics(), ["T", "U"]);
}

#[test]
fn a_slave_that_becomes_master_has_one_id() {
    let mut table = RouteTable::default();
    table.put(acting(broker(A, 0, 1, &["T", "U"])));
    table.put(acting(broker(B, 1, 1, &[])));
    let mut promoted = acting(broker(B, 0, 2, &["T", "U"]));
    promoted.version.state_version = 1;
    table.put(promoted);
    assert_eq!(table.members("b"), BTreeMap::from([(0, B)]));
    // The old master, which is behind, is turned away and is not alive any more.
    let registered = table.put(acting(broker(A, 0, 9, &["T", "U"])));
    assert!(registered.superseded);
    assert_eq!(table.members("b"), BTreeMap::from([(0, B)]));
    assert!(!table.heartbeat("c", A, 1));
    assert!(table.heartbeat("c", B, 1));
}

#[test]
fn another_address_takes_an_id_over_when_its_state_is_not_older() {
    let mut table = RouteTable::default();
    table.put(broker(A, 0, 5, &["T", "U"]));
    let registered = table.put(broker(B, 0, 1, &["T", "U"]));
    assert!(!registered.superseded);
    assert_eq!(table.members("b"), BTreeMap::from([(0, B)]));
    // The loser's farewell and its expiry change nothing.
    table.unregister(&[leaving(A)]);
    table.assert_invariants();
    assert_eq!(table.members("b"), BTreeMap::from([(0, B)]));
    assert_eq!(table.all_topics(), ["T", "U"]);
}

#[test]
fn unregistering_the_last_address_removes_name_cluster_and_topics() {
    let mut table = RouteTable::default();
    table.put(broker(A, 0, 1, &["T", "U"]));
    table.put(broker(B, 1, 1, &[]));
    table.put(named(broker(C, 0, 1, &["T", "V"]), "b2"));
    table.unregister(&[leaving(A)]);
    table.assert_invariants();
    assert_eq!(
        table.perm("T", "b"),
        Some(6),
        "without acting master the write bit stays"
    );
    table.unregister(&[leaving(B)]);
    table.assert_invariants();
    assert_eq!(table.all_topics(), ["T", "V"]);
    assert_eq!(table.perm("T", "b"), None);
    assert_eq!(table.system_topics().0, ["c", "b2"]);
    table.unregister(&[Unregistration {
        broker_name: "b2".into(),
        ..leaving(C)
    }]);
    table.assert_invariants();
    assert_eq!(table.system_topics(), (vec![], None));
    assert_eq!(table.counts(), (0, 0));
}

#[test]
fn a_farewell_under_another_name_or_cluster_ends_nobody() {
    let mut table = RouteTable::default();
    table.put(broker(A, 0, 1, &["T", "U"]));
    table.unregister(&[
        Unregistration {
            broker_name: "x".into(),
            ..leaving(A)
        },
        Unregistration {
            cluster: "x".into(),
            ..leaving(A)
        },
        leaving(B),
    ]);
    table.assert_invariants();
    assert_eq!(table.members("b"), BTreeMap::from([(0, A)]));
}

#[test]
fn an_address_that_comes_back_under_another_name_leaves_the_old_one() {
    let mut table = RouteTable::default();
    table.put(broker(A, 0, 1, &["T", "U"]));
    table.put(named(broker(A, 0, 1, &["U", "V"]), "renamed"));
    assert!(table.members("b").is_empty());
    assert_eq!(table.all_topics(), ["U", "V"]);
    let mut moved = named(broker(A, 0, 1, &["U", "V"]), "renamed");
    moved.cluster = "c2".into();
    table.put(moved);
    assert_eq!(table.system_topics().0, ["c2", "renamed"]);
}

#[test]
fn when_a_master_leaves_an_acting_group_loses_its_write_permission() {
    let mut table = RouteTable::default();
    table.put(acting(broker(A, 0, 1, &["T", "U"])));
    table.put(acting(broker(B, 1, 1, &[])));
    table.unregister(&[leaving(A)]);
    table.assert_invariants();
    assert_eq!(table.perm("T", "b"), Some(4));
    let addrs = |table: &RouteTable, topic: &str, acting_master| {
        let options = RouteOptions {
            acting_master,
            ..RouteOptions::default()
        };
        let view = table.route(topic, options).unwrap();
        json!(view.broker_datas[0].broker_addrs)
    };
    assert_eq!(addrs(&table, "T", false), json!({"1": B}));
    assert_eq!(addrs(&table, "T", true), json!({"0": B}));
    assert_eq!(table.members("b"), BTreeMap::from([(1, B)]));
}

#[test]
fn an_acting_master_is_not_shown_where_it_may_not_act() {
    let mut table = RouteTable::default();
    let mut slave = acting(broker(B, 1, 1, &["T", "rmq_sys_SYNC_BROKER_MEMBER_b"]));
    table.put(slave.clone());
    let options = RouteOptions {
        acting_master: true,
        ..RouteOptions::default()
    };
    let view = table
        .route("rmq_sys_SYNC_BROKER_MEMBER_b", options)
        .unwrap();
    assert_eq!(view.broker_datas[0].broker_addrs, BTreeMap::from([(1, B)]));
    // Queues that can be written have a master that a name server elsewhere still sees.
    table.add_write_perm("b");
    let view = table.route("T", options).unwrap();
    assert_eq!(view.broker_datas[0].broker_addrs, BTreeMap::from([(1, B)]));
    // A group that does not want one has none.
    slave.enable_acting_master = Some(false);
    table.put(slave);
    table.wipe_write_perm("b");
    let view = table.route("T", options).unwrap();
    assert_eq!(view.broker_datas[0].broker_addrs, BTreeMap::from([(1, B)]));
}

#[test]
fn permissions_are_wiped_and_added_until_the_next_version() {
    let mut table = RouteTable::default();
    let mut registration = broker(A, 0, 1, &["T", "U", "TBW102"]);
    registration.topics[2].1.perm = 7;
    table.put(registration.clone());
    assert_eq!(table.wipe_write_perm("b"), 3);
    assert_eq!(
        (table.perm("T", "b"), table.perm("TBW102", "b")),
        (Some(4), Some(5))
    );
    table.put(registration.clone());
    assert_eq!(
        table.perm("T", "b"),
        Some(4),
        "the same version does not bring it back"
    );
    assert_eq!(table.add_write_perm("b"), 3);
    assert_eq!(
        (table.perm("T", "b"), table.perm("TBW102", "b")),
        (Some(6), Some(6))
    );
    table.wipe_write_perm("b");
    registration.version = version(2);
    table.put(registration);
    assert_eq!(table.perm("TBW102", "b"), Some(7));
    assert_eq!(table.wipe_write_perm("nobody"), 0);
}

#[test]
fn a_topic_is_deleted_everywhere_or_in_one_cluster() {
    let mut table = RouteTable::default();
    table.put(broker(A, 0, 1, &["T", "U"]));
    let mut other = named(broker(B, 0, 1, &["T", "U"]), "b2");
    other.cluster = "c2".into();
    table.put(other);
    table.delete_topic("T", Some("c"));
    table.assert_invariants();
    assert_eq!(
        (table.perm("T", "b"), table.perm("T", "b2")),
        (None, Some(6))
    );
    table.delete_topic("T", Some("unknown"));
    assert_eq!(table.perm("T", "b2"), Some(6));
    table.delete_topic("T", Some("c2"));
    table.delete_topic("U", None);
    table.delete_topic("never there", None);
    table.assert_invariants();
    assert!(table.all_topics().is_empty());
}

#[test]
fn a_topic_is_registered_only_on_brokers_that_are_known() {
    let mut table = RouteTable::default();
    table.put(broker(A, 0, 1, &[]));
    let unknown = vec![("b".into(), queues(1, 6)), ("x".into(), queues(1, 6))];
    assert_eq!(table.register_topic("T", unknown), Err("x".to_owned()));
    assert!(table.all_topics().is_empty());
    table.register_topic("T", Vec::new()).unwrap();
    table
        .register_topic("T", vec![("b".into(), queues(3, 6))])
        .unwrap();
    table.assert_invariants();
    assert_eq!(table.queue_count("T"), 3);
}

#[test]
fn unit_topics_are_told_by_their_flags() {
    let mut table = RouteTable::default();
    let mut registration = broker(A, 0, 1, &["none", "unit", "sub", "both"]);
    for (at, flag) in [0, 1, 2, 3].into_iter().enumerate() {
        registration.topics[at].1.topic_sys_flag = flag;
    }
    table.put(registration);
    assert_eq!(table.unit_topics(UnitTopics::Unit), ["both", "unit"]);
    assert_eq!(table.unit_topics(UnitTopics::UnitSub), ["both", "sub"]);
    assert_eq!(table.unit_topics(UnitTopics::UnitSubNotUnit), ["sub"]);
}

#[test]
fn silence_beyond_the_timeout_removes_a_broker_and_names_its_connection() {
    let mut table = RouteTable::default();
    let options = RegisterOptions::default();
    table
        .register(
            broker(A, 0, 1, &["T", "U"]),
            Some(connection(7)),
            0,
            options,
        )
        .unwrap();
    let mut short = named(broker(B, 0, 1, &["T", "V"]), "b2");
    short.heartbeat_timeout_ms = Some(10_000);
    table
        .register(short, Some(connection(8)), 0, options)
        .unwrap();
    let mut at = |now_ms| {
        let removed = table.scan(now_ms, INTERVAL_MS);
        table.assert_invariants();
        removed
    };
    for now_ms in (0..=10_000).step_by(5000) {
        assert_eq!(at(now_ms), Removed::default());
    }
    let removed = at(15_000);
    assert_eq!(removed.connections, [connection(8)]);
    assert_eq!(removed.brokers, [("c".into(), "b2".into(), B.into())]);
    for now_ms in (20_000..=120_000).step_by(5000) {
        assert_eq!(at(now_ms), Removed::default(), "at {now_ms}");
    }
    assert_eq!(at(125_000).connections, [connection(7)]);
    assert_eq!(table.counts(), (0, 0));
}

#[test]
fn heartbeats_and_equal_versions_prolong_life_and_make_nobody_known() {
    let mut table = RouteTable::default();
    table.put(broker(A, 0, 1, &["T", "U"]));
    assert!(table.heartbeat("c", A, 100_000));
    table.scan(215_000, INTERVAL_MS);
    assert_eq!(table.counts().0, 1);
    assert_eq!(
        table.query_data_version("c", A, version(1), 200_000),
        (false, Some(version(1)))
    );
    table.scan(219_000, INTERVAL_MS);
    table.scan(223_000, INTERVAL_MS);
    assert_eq!(table.counts().0, 1);
    // Another version does not: that broker has to register.
    assert_eq!(
        table.query_data_version("c", A, version(2), 300_000),
        (true, Some(version(1)))
    );
    assert_eq!(
        table.query_data_version("c", B, version(1), 300_000),
        (true, None)
    );
    assert!(!table.heartbeat("c", B, 300_000));
    assert!(!table.heartbeat("x", A, 300_000));
    table.scan(321_000, INTERVAL_MS);
    assert_eq!(table.counts().0, 1, "this scan came late");
    table.scan(322_000, INTERVAL_MS);
    assert_eq!(table.counts().0, 0);
}

#[test]
fn a_process_that_was_stopped_expires_nobody_before_it_has_read_the_heartbeats() {
    let mut table = RouteTable::default();
    table.put(broker(A, 0, 1, &["T", "U"]));
    table.put(named(broker(B, 0, 1, &["T", "U"]), "dead"));
    table.scan(0, INTERVAL_MS);
    // Stopped for ten minutes; the scan runs before the sockets are read.
    assert_eq!(table.scan(600_000, INTERVAL_MS), Removed::default());
    assert!(table.heartbeat("c", A, 600_010));
    let removed = table.scan(605_000, INTERVAL_MS);
    assert_eq!(removed.brokers, [("c".into(), "dead".into(), B.into())]);
    // Two intervals are still on time.
    assert_eq!(table.scan(615_000, INTERVAL_MS), Removed::default());
    assert_eq!(table.members("b"), BTreeMap::from([(0, A)]));
}

#[test]
fn a_closed_connection_takes_only_brokers_that_registered_last_over_it() {
    let mut table = RouteTable::default();
    let options = RegisterOptions::default();
    table
        .register(
            broker(A, 0, 1, &["T", "U"]),
            Some(connection(1)),
            0,
            options,
        )
        .unwrap();
    table
        .register(broker(B, 1, 1, &[]), Some(connection(2)), 0, options)
        .unwrap();
    table
        .register(
            broker(A, 0, 1, &["T", "U"]),
            Some(connection(3)),
            0,
            options,
        )
        .unwrap();
    assert_eq!(table.connection_closed(connection(1)), Removed::default());
    let removed = table.connection_closed(connection(3));
    table.assert_invariants();
    assert_eq!(removed.brokers, [("c".into(), "b".into(), A.into())]);
    assert_eq!(table.members("b"), BTreeMap::from([(1, B)]));
}

#[test]
fn a_new_smallest_id_is_told_to_those_who_need_it() {
    let mut table = RouteTable::default();
    assert_eq!(table.put(broker(B, 1, 1, &[])).min_id_change, None);
    assert_eq!(table.put(broker(C, 2, 1, &[])).min_id_change, None);
    let change = table
        .put(broker(A, 0, 1, &["T", "U"]))
        .min_id_change
        .unwrap();
    let wanted = MinIdChange {
        broker_name: "b".into(),
        min_broker_id: 0,
        min_broker_addr: A.into(),
        offline_broker_addr: None,
        ha_broker_addr: Some(format!("ha-{A}")),
        targets: vec![B.into(), C.into()],
    };
    assert_eq!(change, wanted);
    assert_eq!(
        table.unregister(&[leaving(C)]),
        [],
        "the smallest id is the same"
    );
    let changes = table.unregister(&[leaving(A)]);
    assert_eq!(changes.len(), 1);
    assert_eq!(changes[0].offline_broker_addr.as_deref(), Some(A));
    assert_eq!(
        (changes[0].min_broker_id, &*changes[0].targets),
        (1, &[B.to_owned()][..])
    );
    assert_eq!(table.unregister(&[leaving(B)]), []);
}

#[test]
fn a_route_miss_says_which_case_it_is() {
    let mut table = RouteTable::default();
    let miss = |table: &RouteTable, topic| table.route(topic, RouteOptions::default()).unwrap_err();
    assert_eq!(miss(&table, "T"), RouteMiss::NoBroker);
    table.put(broker(A, 0, 1, &["T", "U"]));
    table.put(named(broker(B, 0, 1, &["V", "W"]), "b2"));
    assert_eq!(miss(&table, "X"), RouteMiss::UnknownTopic { brokers: 2 });
    table.unregister(&[leaving(A)]);
    let gone = RouteMiss::BrokersGone {
        last_broker: "b".into(),
    };
    assert_eq!(miss(&table, "T"), gone);
    table.unregister(&[Unregistration {
        broker_name: "b2".into(),
        ..leaving(B)
    }]);
    assert_eq!(miss(&table, "T"), gone);
    assert_eq!(miss(&table, "X"), RouteMiss::NoBroker);
    table.delete_topic("T", None);
    assert_eq!(miss(&table, "T"), RouteMiss::NoBroker);
    table.put(broker(A, 0, 1, &["U", "Y"]));
    table.delete_topic("U", None);
    assert_eq!(miss(&table, "U"), RouteMiss::UnknownTopic { brokers: 1 });
}

#[test]
fn a_client_of_a_zone_gets_its_zones_brokers_and_groups_without_master() {
    let mut table = RouteTable::default();
    for (name, addr, id, zone) in [
        ("near", A, 0, Some("Z1")),
        ("far", B, 0, Some("z2")),
        ("nowhere", C, 0, None),
        ("headless", "10.0.0.4:1", 1, Some("z2")),
    ] {
        let mut registration = named(broker(addr, id, 1, &["T", "U"]), name);
        registration.enable_acting_master = Some(false);
        registration.zone_name = zone.map(Into::into);
        registration.filter_servers = vec![format!("filter-{name}")];
        table.put(registration);
    }
    let view = table
        .route(
            "T",
            RouteOptions {
                zone: Some("z1"),
                ..RouteOptions::default()
            },
        )
        .unwrap();
    let names: Vec<_> = view
        .broker_datas
        .iter()
        .map(|data| data.broker_name)
        .collect();
    assert_eq!(names, ["headless", "near"]);
    let names: Vec<_> = view
        .queue_datas
        .iter()
        .map(|data| data.broker_name)
        .collect();
    assert_eq!(names, ["headless", "near"]);
    assert_eq!(view.filter_server_table.len(), 2);
    assert_eq!(json!(view)["brokerDatas"][1]["zoneName"], "Z1");
    let all = table.route("T", RouteOptions::default()).unwrap();
    assert_eq!(
        (all.broker_datas.len(), all.filter_server_table.len()),
        (4, 4)
    );
}

#[test]
fn mappings_of_static_topics_live_as_long_as_their_topic() {
    let mut table = RouteTable::default();
    let mut registration = broker(A, 0, 1, &["T", "U"]);
    let info = json!({"bname": "b", "totalQueues": 4});
    registration.mappings = vec![
        ("T".into(), "b".into(), info.clone()),
        ("without topic".into(), "b".into(), info.clone()),
    ];
    table.put(registration);
    let view = table.route("T", RouteOptions::default()).unwrap();
    assert_eq!(json!(view)["topicQueueMappingByBroker"], json!({"b": info}));
    table.delete_topic("T", None);
    table.assert_invariants();
}

#[derive(Clone, Debug)]
enum Step {
    Register {
        cluster: u8,
        name: u8,
        addr: u8,
        id: i64,
        state_version: i64,
        counter: i64,
        acting: Option<bool>,
        short_life: bool,
        topics: Vec<u8>,
        connection: u64,
        delete_missing: bool,
    },
    Unregister {
        cluster: u8,
        name: u8,
        addr: u8,
    },
    Heartbeat {
        cluster: u8,
        addr: u8,
    },
    Pass {
        ms: u64,
    },
    Scan,
    Close {
        connection: u64,
    },
    Perm {
        name: u8,
        add: bool,
    },
    Delete {
        topic: u8,
        cluster: Option<u8>,
    },
    RegisterTopic {
        topic: u8,
        names: Vec<u8>,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let register = (
        (0..2u8, 0..3u8, 0..4u8, 0..3i64),
        (0..2i64, 0..3i64, any::<Option<bool>>(), any::<bool>()),
        proptest::collection::vec(0..4u8, 0..4),
        0..4u64,
        any::<bool>(),
    )
        .prop_map(|(who, version, mut topics, connection, delete_missing)| {
            topics.sort_unstable();
            topics.dedup();
            Step::Register {
                cluster: who.0,
                name: who.1,
                addr: who.2,
                id: who.3,
                state_version: version.0,
                counter: version.1,
                acting: version.2,
                short_life: version.3,
                topics,
                connection,
                delete_missing,
            }
        });
    prop_oneof![
        6 => register,
        2 => (0..2u8, 0..3u8, 0..4u8)
            .prop_map(|(cluster, name, addr)| Step::Unregister { cluster, name, addr }),
        1 => (0..2u8, 0..4u8).prop_map(|(cluster, addr)| Step::Heartbeat { cluster, addr }),
        2 => prop_oneof![1..6000u64, 1..200_000u64].prop_map(|ms| Step::Pass { ms }),
        2 => Just(Step::Scan),
        1 => (0..4u64).prop_map(|connection| Step::Close { connection }),
        1 => (0..3u8, any::<bool>()).prop_map(|(name, add)| Step::Perm { name, add }),
        1 => (0..4u8, proptest::option::of(0..2u8))
            .prop_map(|(topic, cluster)| Step::Delete { topic, cluster }),
        1 => (0..4u8, proptest::collection::vec(0..3u8, 0..3))
            .prop_map(|(topic, names)| Step::RegisterTopic { topic, names }),
    ]
}

/// Runs a step and checks what it must and must not have done.
fn run(table: &mut RouteTable, now_ms: &mut u64, last_scan_ms: &mut Option<u64>, step: Step) {
    let addr_of = |addr: u8| format!("10.0.0.{addr}:10911");
    match step {
        Step::Register {
            cluster,
            name,
            addr,
            id,
            state_version,
            counter,
            acting,
            short_life,
            topics,
            connection: serial,
            delete_missing,
        } => {
            let addr = addr_of(addr);
            let broker_name = format!("b{name}");
            let known = table.members(&broker_name).contains_key(&id);
            let topics: Vec<_> = topics
                .iter()
                .map(|topic| (format!("T{topic}"), queues(8, 6)))
                .collect();
            let registration = Registration {
                cluster: format!("c{cluster}"),
                broker_name: broker_name.clone(),
                broker_addr: addr.clone(),
                broker_id: id,
                version: DataVersion {
                    counter,
                    state_version,
                    timestamp: 0,
                },
                enable_acting_master: acting,
                heartbeat_timeout_ms: short_life.then_some(10_000),
                topics: topics.clone(),
                ..Registration::default()
            };
            let options = RegisterOptions {
                delete_missing_topics: delete_missing,
            };
            match table.register(registration, Some(connection(serial)), *now_ms, options) {
                Ok(registered) if registered.superseded => {
                    assert!(known);
                    let members = table.members(&broker_name);
                    assert!(!members.values().any(|member| *member == addr));
                }
                Ok(_) => {
                    assert_eq!(table.members(&broker_name).get(&id), Some(&addr.as_str()));
                    for (topic, _) in topics.iter().filter(|_| id == 0) {
                        let perm = table.perm(topic, &broker_name);
                        assert!(perm.is_some(), "{topic} of {broker_name}");
                    }
                }
                Err(RegisterError::SingleTopicFirst { .. }) => assert_eq!(topics.len(), 1),
            }
        }
        Step::Unregister {
            cluster,
            name,
            addr,
        } => {
            let request = Unregistration {
                cluster: format!("c{cluster}"),
                broker_name: format!("b{name}"),
                broker_addr: addr_of(addr),
            };
            let alive_before = table.counts().0;
            for change in table.unregister(std::slice::from_ref(&request)) {
                let members = table.members(&change.broker_name);
                assert_eq!(members.keys().next(), Some(&change.min_broker_id));
            }
            assert!(alive_before - table.counts().0 <= 1);
            let key = (
                request.cluster.as_str().into(),
                request.broker_addr.as_str().into(),
            );
            let left = table.live.get(&key);
            assert!(left.is_none_or(|live| *live.broker_name != *request.broker_name));
        }
        Step::Heartbeat { cluster, addr } => {
            let alive_before = table.counts().0;
            table.heartbeat(&format!("c{cluster}"), &addr_of(addr), *now_ms);
            assert_eq!(table.counts().0, alive_before);
        }
        Step::Pass { ms } => *now_ms += ms,
        Step::Scan => {
            let late = last_scan_ms.is_some_and(|last| *now_ms - last > 2 * INTERVAL_MS);
            *last_scan_ms = Some(*now_ms);
            let alive_before = table.counts().0;
            let removed = table.scan(*now_ms, INTERVAL_MS);
            assert_eq!(removed.brokers.len(), alive_before - table.counts().0);
            if late {
                assert!(removed.brokers.is_empty());
            } else {
                for live in table.live.values() {
                    assert!(live.last_update_ms + live.timeout_ms >= *now_ms);
                }
            }
        }
        Step::Close { connection: serial } => {
            table.connection_closed(connection(serial));
            let closed = Some(connection(serial));
            assert!(table.live.values().all(|live| live.connection != closed));
        }
        Step::Perm { name, add } => {
            let name = format!("b{name}");
            let count = if add {
                table.add_write_perm(&name)
            } else {
                table.wipe_write_perm(&name)
            };
            let perms: Vec<_> = table
                .all_topics()
                .iter()
                .filter_map(|topic| table.perm(topic, &name))
                .collect();
            assert_eq!(perms.len(), count);
            assert!(perms.iter().all(|perm| (perm & PERM_WRITE != 0) == add));
        }
        Step::Delete { topic, cluster } => {
            let topic = format!("T{topic}");
            let cluster = cluster.map(|cluster| format!("c{cluster}"));
            table.delete_topic(&topic, cluster.as_deref());
            match cluster {
                None => assert!(!table.all_topics().contains(&topic.as_str())),
                Some(cluster) => {
                    assert!(!table.topics_of_cluster(&cluster).contains(&topic.as_str()));
                }
            }
        }
        Step::RegisterTopic { topic, names } => {
            let queues = names
                .iter()
                .map(|name| (format!("b{name}"), queues(1, 6)))
                .collect();
            let result = table.register_topic(&format!("T{topic}"), queues);
            let all_known = names
                .iter()
                .all(|name| !table.members(&format!("b{name}")).is_empty());
            assert_eq!(result.is_ok(), all_known);
        }
    }
    table.assert_invariants();
}

proptest! {
    #[test]
    fn no_history_breaks_an_invariant(steps in proptest::collection::vec(step(), 1..60)) {
        let mut table = RouteTable::default();
        let (mut now_ms, mut last_scan_ms) = (1_000_000, None);
        for step in steps {
            run(&mut table, &mut now_ms, &mut last_scan_ms, step);
        }
        // Time alone removes everybody: nothing is kept without a heartbeat.
        for _ in 0..40 {
            now_ms += INTERVAL_MS;
            table.scan(now_ms, INTERVAL_MS);
        }
        table.assert_invariants();
        prop_assert_eq!(table.counts(), (0, 0));
        prop_assert!(table.mappings.is_empty());
    }
}
