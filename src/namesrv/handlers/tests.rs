//! Every request code with its code, remark and body, then a broker's life over a real socket.

#![allow(clippy::unwrap_used)]

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Instant;

use bytes::BytesMut;
use proptest::prelude::*;

use super::*;
use crate::client::RemotingClient;
use crate::io::ring::RingEnv;
use crate::io::ring::testing::on_executor;
use crate::io::tcp::Listener;
use crate::server::listener::{Server, ServerOptions};
use crate::wire::remoting::body::{
    ClusterInfo, GetBrokerMemberGroupResponseBody, KVTable, RegisterBrokerBody, TopicConfig,
    TopicList,
};
use crate::wire::remoting::command::{Encoding, FieldValue};
use crate::wire::remoting::frame::next_frame;

const ADDR: &str = "127.0.0.1:30911";
/// Dumped from RocketMQ 5.5.0.
const REGISTRATION: &str = r#"{"filterServerList":[],"topicConfigSerializeWrapper":{"dataVersion":{"counter":3,"stateVersion":0,"timestamp":1700000000000},"mappingDataVersion":{"counter":3,"stateVersion":0,"timestamp":1700000000000},"topicConfigTable":{"T":{"attributes":{},"order":false,"perm":7,"readQueueNums":8,"topicFilterType":"SINGLE_TAG","topicName":"T","topicSysFlag":0,"writeQueueNums":8},"U":{"attributes":{"+message.type":"FIFO"},"order":false,"perm":6,"readQueueNums":4,"topicFilterType":"SINGLE_TAG","topicName":"U","topicSysFlag":3,"writeQueueNums":2}},"topicQueueMappingDetailMap":{},"topicQueueMappingInfoMap":{"U":{"bname":"b1","currIdMap":{0:0},"dirty":false,"epoch":1,"scope":"__global__","topic":"U","totalQueues":4}}}}"#;
const VERSION_JSON: &str = r#"{"counter":3,"stateVersion":0,"timestamp":1700000000000}"#;

/// A request as it arrives.
fn received(header: Outgoing, body: &[u8]) -> Command {
    let mut frame = BytesMut::from(&header.frame(Encoding::Json, body)[..]);
    next_frame(&mut frame).unwrap().unwrap()
}

fn ask(code: i32, fields: &[(&'static str, &'static str)]) -> Outgoing {
    fields
        .iter()
        .fold(Outgoing::request(code), |header, &(name, value)| {
            header.field(name, value)
        })
}

fn of_broker(code: i32) -> Outgoing {
    ask(
        code,
        &[
            ("brokerName", "b1"),
            ("brokerAddr", ADDR),
            ("clusterName", "C1"),
            ("haServerAddr", "127.0.0.1:30912"),
            ("brokerId", "0"),
        ],
    )
}

fn field(header: &Outgoing, name: &str) -> Option<String> {
    let (_, value) = header.fields.iter().find(|(field, _)| field == name)?;
    Some(match value {
        FieldValue::Text(text) => text.to_string(),
        FieldValue::Shared(text) => text.to_string(),
        FieldValue::Int(number) => number.to_string(),
        FieldValue::Bool(flag) => flag.to_string(),
    })
}

struct World {
    env: RingEnv,
    server: Rc<NameServer<RingEnv>>,
    directory: tempfile::TempDir,
}

impl World {
    /// The answer to a request, when it is there.
    async fn answer(&self, command: &Command) -> (Outgoing, String) {
        let slot = Rc::new(Cell::new(None));
        let reply = slot.clone();
        self.server.answer(command, None, move |header, body| {
            assert!(reply.replace(Some((header, body))).is_none(), "one answer");
        });
        let started = Instant::now();
        loop {
            if let Some((header, body)) = slot.take() {
                return (header, String::from_utf8(body.to_vec()).unwrap());
            }
            assert!(started.elapsed() < Duration::from_secs(20), "no answer");
            self.env.sleep(Duration::from_millis(1)).await;
        }
    }

    async fn call(&self, header: Outgoing, body: &str) -> (Outgoing, String) {
        self.answer(&received(header, body.as_bytes())).await
    }

    /// A request that has to succeed.
    async fn ok(&self, header: Outgoing, body: &str) -> (Outgoing, String) {
        let code = header.code;
        let (header, body) = self.call(header, body).await;
        assert_eq!(
            (header.code, &header.remark),
            (0, &None),
            "answer to {code}"
        );
        (header, body)
    }

    /// A request that has to fail: its code and remark.
    async fn refused(&self, header: Outgoing, body: &str) -> (i32, String) {
        let (header, body) = self.call(header, body).await;
        assert_ne!(header.code, 0);
        assert_eq!(body, "");
        (header.code, header.remark.unwrap().into_owned())
    }

    async fn register(&self) {
        self.ok(of_broker(103), REGISTRATION).await;
    }

    fn set(&self, change: impl FnOnce(&mut NamesrvOptions)) {
        change(&mut self.server.options.borrow_mut());
    }
}

fn kv_path(directory: &Path) -> std::path::PathBuf {
    directory.join("sub").join("kvConfig.json")
}

fn on_name_server<T>(test: impl AsyncFnOnce(&World) -> T) -> T {
    on_executor(async move |env| {
        let directory = tempfile::tempdir().unwrap();
        let kv = KvStore::load(env.clone(), &kv_path(directory.path()))
            .await
            .unwrap();
        let server = NameServer::new(env.clone(), NamesrvOptions::default(), kv);
        let world = World {
            env,
            server,
            directory,
        };
        test(&world).await
    })
}

const ROUTE_T: &str = r#"{"brokerDatas":[{"brokerAddrs":{KEY:"127.0.0.1:30911"},"brokerName":"b1","cluster":"C1","enableActingMaster":false}],"filterServerTable":{},"queueDatas":[{"brokerName":"b1","perm":7,"readQueueNums":8,"topicSysFlag":0,"writeQueueNums":8}]}"#;

#[test]
fn a_route_is_byte_for_byte_javas_with_keys_quoted_by_version() {
    on_name_server(async |world| {
        world.register().await;
        let quoted = ROUTE_T.replace("KEY", "\"0\"");
        let bare = ROUTE_T.replace("KEY", "0");
        for (version, accept, wanted) in [
            (513, None, &quoted),
            (401, None, &quoted),
            (400, None, &bare),
            (300, None, &bare),
            (300, Some("true"), &quoted),
            (300, Some("false"), &bare),
        ] {
            let mut header = ask(105, &[("topic", "T")]);
            if let Some(accept) = accept {
                header = header.field("acceptStandardJsonOnly", accept);
            }
            let mut command = received(header, b"");
            command.version = version;
            let (header, body) = world.answer(&command).await;
            assert_eq!(header.code, 0);
            assert_eq!(body, *wanted, "version {version}, {accept:?}");
            let data: TopicRouteData = json::from_slice(body.as_bytes()).unwrap();
            assert_eq!(data.broker_datas[0].broker_addrs[&0], ADDR);
        }
    });
}

#[test]
fn a_static_topic_and_a_zone_are_in_the_route() {
    on_name_server(async |world| {
        world
            .ok(of_broker(103).field("__ZONE_NAME", "z1"), REGISTRATION)
            .await;
        let (_, body) = world.ok(ask(105, &[("topic", "U")]), "").await;
        let data: TopicRouteData = json::from_slice(body.as_bytes()).unwrap();
        assert_eq!(data.broker_datas[0].zone_name.as_deref(), Some("z1"));
        assert_eq!(
            (
                data.queue_datas[0].read_queue_nums,
                data.queue_datas[0].write_queue_nums
            ),
            (4, 2)
        );
        assert_eq!(
            data.topic_queue_mapping_by_broker.unwrap()["b1"]["totalQueues"],
            4
        );
        for (mode, zone, brokers) in [
            ("true", "Z1", 1),
            ("true", "z2", 0),
            ("true", " ", 1),
            ("false", "z2", 1),
        ] {
            let header = ask(
                105,
                &[("topic", "U"), ("__ZONE_MODE", mode), ("__ZONE_NAME", zone)],
            );
            let (_, body) = world.ok(header, "").await;
            let data: TopicRouteData = json::from_slice(body.as_bytes()).unwrap();
            assert_eq!(
                (data.broker_datas.len(), data.queue_datas.len()),
                (brokers, brokers),
                "{mode} {zone}"
            );
        }
    });
}

#[test]
fn a_route_miss_starts_with_javas_words_and_says_why() {
    on_name_server(async |world| {
        let miss = async |topic| {
            let (code, remark) = world.refused(ask(105, &[("topic", topic)]), "").await;
            assert_eq!(code, 17);
            let (first, why) = remark.split_once('\n').unwrap();
            assert_eq!(
                first,
                format!("No topic route info in name server for the topic: {topic}")
            );
            why.to_owned()
        };
        let why = miss("X").await;
        assert!(
            why.starts_with("No broker is registered") && why.contains("started 0 s ago"),
            "{why}"
        );
        world.register().await;
        assert!(miss("X").await.contains("No registered broker has it"));
        world.ok(of_broker(104), "").await;
        assert!(miss("T").await.contains("the last was 'b1'"));
    });
}

#[test]
fn a_name_server_that_waits_for_service_refuses_routes_at_first() {
    on_name_server(async |world| {
        world.register().await;
        world.set(|options| options.need_wait_for_service = true);
        let (code, remark) = world.refused(ask(105, &[("topic", "T")]), "").await;
        assert_eq!(code, 1);
        assert!(remark.starts_with("name server not ready"), "{remark}");
        world.set(|options| options.wait_seconds_for_service = 0);
        world.ok(ask(105, &[("topic", "T")]), "").await;
    });
}

#[test]
fn registrations_in_all_forms_are_taken_and_a_wrong_checksum_is_not() {
    on_name_server(async |world| {
        let crc = |body: &[u8]| (crc32fast::hash(body) & 0x7FFF_FFFF) as i32;
        let header = of_broker(103).field("bodyCrc32", crc(REGISTRATION.as_bytes()));
        let (header, body) = world.ok(header, REGISTRATION).await;
        assert!(header.fields.is_empty());
        assert_eq!(body, "");
        let wrong = crc(REGISTRATION.as_bytes()) ^ 1;
        let (code, remark) = world
            .refused(of_broker(103).field("bodyCrc32", wrong), REGISTRATION)
            .await;
        assert_eq!(code, 1);
        assert!(remark.starts_with("crc32 not match"), "{remark}");

        // Compressed, by the header's word.
        let plain: RegisterBrokerBody = json::from_slice(REGISTRATION.as_bytes()).unwrap();
        let compressed = register::encode_compressed(&plain).unwrap();
        world.ok(of_broker(104), "").await;
        let header = of_broker(103)
            .field("compressed", true)
            .field("bodyCrc32", crc(&compressed));
        let (header, _) = world.answer(&received(header, &compressed)).await;
        assert_eq!(header.code, 0);
        let (_, body) = world.ok(ask(105, &[("topic", "T")]), "").await;
        assert_eq!(body, ROUTE_T.replace("KEY", "\"0\""));

        // Before V3_0_11 the body is the topic table alone.
        world.ok(of_broker(104), "").await;
        let table = json::to_vec(&plain.topic_config_serialize_wrapper);
        let mut command = received(of_broker(103), &table);
        command.version = 36;
        assert_eq!(world.answer(&command).await.0.code, 0);
        assert_eq!(world.server.counts(), (1, 2));

        // Without a body a broker is known without topics.
        world.ok(of_broker(104), "").await;
        world.ok(of_broker(103), "").await;
        assert_eq!(world.server.counts(), (1, 0));
    });
}

#[test]
fn a_broken_registration_is_refused_with_the_field_that_is_wrong() {
    on_name_server(async |world| {
        let without = |name: &str| {
            let mut header = of_broker(103);
            header.fields.retain(|(field, _)| field != name);
            header
        };
        for name in ["brokerName", "brokerAddr", "clusterName", "brokerId"] {
            let (code, remark) = world.refused(without(name), REGISTRATION).await;
            assert_eq!(code, 1);
            assert!(remark.contains(name), "{remark}");
        }
        for (name, value) in [
            ("brokerName", " "),
            ("brokerId", "zero"),
            ("bodyCrc32", "x"),
        ] {
            let (code, remark) = world
                .refused(without(name).field(name, value), REGISTRATION)
                .await;
            assert_eq!(code, 1);
            assert!(remark.contains(name), "{remark}");
        }
        let (code, _) = world.refused(of_broker(103), "{").await;
        assert_eq!(code, 1);
        let one = r#"{"topicConfigSerializeWrapper":{"topicConfigTable":{"T":{"topicName":"T"}}}}"#;
        let (code, remark) = world.refused(of_broker(103), one).await;
        assert_eq!(code, 1);
        assert!(remark.starts_with("register broker failed"), "{remark}");
        assert_eq!(world.server.counts(), (0, 0));
    });
}

#[test]
fn a_slaves_registration_is_answered_with_its_master() {
    on_name_server(async |world| {
        world.register().await;
        let slave = ask(
            103,
            &[
                ("brokerName", "b1"),
                ("brokerAddr", "127.0.0.1:30921"),
                ("clusterName", "C1"),
                ("haServerAddr", "127.0.0.1:30922"),
                ("brokerId", "1"),
                ("enableActingMaster", "false"),
            ],
        );
        let (header, _) = world.ok(slave, "").await;
        assert_eq!(
            field(&header, "haServerAddr").as_deref(),
            Some("127.0.0.1:30912")
        );
        assert_eq!(field(&header, "masterAddr").as_deref(), Some(ADDR));
        let (_, body) = world
            .ok(ask(901, &[("clusterName", "C1"), ("brokerName", "b1")]), "")
            .await;
        assert_eq!(
            body,
            r#"{"brokerMemberGroup":{"brokerAddrs":{0:"127.0.0.1:30911",1:"127.0.0.1:30921"},"brokerName":"b1","cluster":"C1"}}"#
        );
        let members: GetBrokerMemberGroupResponseBody = json::from_slice(body.as_bytes()).unwrap();
        assert_eq!(members.broker_member_group.broker_addrs.len(), 2);
        let (_, body) = world
            .ok(
                ask(901, &[("clusterName", "C1"), ("brokerName", "none")]),
                "",
            )
            .await;
        assert_eq!(
            body,
            r#"{"brokerMemberGroup":{"brokerAddrs":{},"brokerName":"none","cluster":"C1"}}"#
        );
    });
}

#[test]
fn clusters_and_lists_have_javas_bodies() {
    on_name_server(async |world| {
        let (_, body) = world.ok(ask(304, &[]), "").await;
        assert_eq!(body, r#"{"topicList":[]}"#);
        world.register().await;
        let (_, body) = world.ok(ask(106, &[]), "").await;
        assert_eq!(
            body,
            r#"{"brokerAddrTable":{"b1":{"brokerAddrs":{0:"127.0.0.1:30911"},"brokerName":"b1","cluster":"C1","enableActingMaster":false}},"clusterAddrTable":{"C1":["b1"]}}"#
        );
        let info: ClusterInfo = json::from_slice(body.as_bytes()).unwrap();
        assert_eq!(info.broker_addr_table["b1"].broker_addrs[&0], ADDR);
        for (header, wanted) in [
            (
                ask(304, &[]),
                r#"{"brokerAddr":"127.0.0.1:30911","topicList":["C1","b1"]}"#,
            ),
            (ask(206, &[]), r#"{"topicList":["T","U"]}"#),
            (ask(224, &[("cluster", "C1")]), r#"{"topicList":["T","U"]}"#),
            (ask(224, &[("cluster", "C2")]), r#"{"topicList":[]}"#),
            (ask(311, &[]), r#"{"topicList":["U"]}"#),
            (ask(312, &[]), r#"{"topicList":["U"]}"#),
            (ask(313, &[]), r#"{"topicList":[]}"#),
        ] {
            let code = header.code;
            let (_, body) = world.ok(header, "").await;
            assert_eq!(body, wanted, "{code}");
            json::from_slice::<TopicList>(body.as_bytes()).unwrap();
        }
        world.set(|options| {
            options.enable_all_topic_list = false;
            options.enable_topic_list = false;
        });
        for header in [ask(206, &[]), ask(224, &[("cluster", "C1")])] {
            let (code, remark) = world.refused(header, "").await;
            assert_eq!(code, 1);
            assert!(remark.starts_with("disable"), "{remark}");
        }
    });
}

#[test]
fn write_permission_goes_and_comes() {
    on_name_server(async |world| {
        world.register().await;
        let (header, _) = world.ok(ask(205, &[("brokerName", "b1")]), "").await;
        assert_eq!(field(&header, "wipeTopicCount").as_deref(), Some("2"));
        let (_, body) = world.ok(ask(105, &[("topic", "T")]), "").await;
        assert!(body.contains(r#""perm":5"#), "{body}");
        let (header, _) = world.ok(ask(327, &[("brokerName", "b1")]), "").await;
        assert_eq!(field(&header, "addTopicCount").as_deref(), Some("2"));
        let (_, body) = world.ok(ask(105, &[("topic", "T")]), "").await;
        assert!(body.contains(r#""perm":6"#), "{body}");
    });
}

#[test]
fn topics_are_deleted_and_registered_by_name() {
    on_name_server(async |world| {
        world.register().await;
        world
            .ok(ask(216, &[("topic", "T"), ("clusterName", "other")]), "")
            .await;
        world.ok(ask(105, &[("topic", "T")]), "").await;
        world
            .ok(ask(216, &[("topic", "T"), ("clusterName", "C1")]), "")
            .await;
        world.ok(ask(216, &[("topic", "T")]), "").await;
        assert_eq!(world.refused(ask(105, &[("topic", "T")]), "").await.0, 17);
        let data = r#"{"queueDatas":[{"brokerName":"b1","perm":6,"readQueueNums":3,"topicSysFlag":0,"writeQueueNums":3}]}"#;
        world.ok(ask(217, &[("topic", "T")]), data).await;
        let (_, body) = world.ok(ask(105, &[("topic", "T")]), "").await;
        assert!(body.contains(r#""readQueueNums":3"#), "{body}");
        let unknown = data.replace("b1", "b9");
        let (code, remark) = world.refused(ask(217, &[("topic", "V")]), &unknown).await;
        assert_eq!(code, 1);
        assert!(remark.contains("'b9'"), "{remark}");
    });
}

#[test]
fn a_data_version_is_compared_and_told() {
    on_name_server(async |world| {
        let (header, body) = world.ok(of_broker(322), VERSION_JSON).await;
        assert_eq!(
            (field(&header, "changed").as_deref(), body.as_str()),
            (Some("true"), "")
        );
        world.register().await;
        let (header, body) = world.ok(of_broker(322), VERSION_JSON).await;
        assert_eq!(
            (field(&header, "changed").as_deref(), body.as_str()),
            (Some("false"), VERSION_JSON)
        );
        let (header, body) = world
            .ok(of_broker(322), &VERSION_JSON.replace(":3", ":4"))
            .await;
        assert_eq!(
            (field(&header, "changed").as_deref(), body.as_str()),
            (Some("true"), VERSION_JSON)
        );
        world.ok(of_broker(904), "").await;
        world
            .ok(
                ask(
                    904,
                    &[
                        ("clusterName", "C1"),
                        ("brokerAddr", "9.9.9.9:1"),
                        ("brokerName", "b1"),
                    ],
                ),
                "",
            )
            .await;
        assert_eq!(world.server.counts(), (1, 2));
    });
}

#[test]
fn configuration_is_shown_and_changed_by_an_allow_list() {
    on_name_server(async |world| {
        let (_, body) = world.ok(ask(319, &[]), "").await;
        let keys: Vec<&str> = body
            .lines()
            .filter_map(|line| line.split('=').next())
            .collect();
        assert!(keys.is_sorted());
        for key in [
            "listenPort",
            "kvConfigPath",
            "configStorePath",
            "productEnvName",
            "clusterTest",
            "orderMessageEnable",
            "returnOrderTopicConfigToBroker",
            "clientRequestThreadPoolNums",
            "clientRequestThreadPoolQueueCapacity",
            "defaultThreadPoolNums",
            "defaultThreadPoolQueueCapacity",
            "scanNotActiveBrokerInterval",
            "unRegisterBrokerQueueCapacity",
            "supportActingMaster",
            "enableAllTopicList",
            "enableTopicList",
            "notifyMinBrokerIdChanged",
            "enableControllerInNamesrv",
            "needWaitForService",
            "waitSecondsForService",
            "deleteTopicWithBrokerRegistration",
            "configBlackList",
        ] {
            assert!(keys.contains(&key), "{key}");
        }
        world
            .ok(
                ask(318, &[]),
                "orderMessageEnable=true\nenableTopicList=false\n",
            )
            .await;
        assert!(
            world
                .ok(ask(319, &[]), "")
                .await
                .1
                .contains("orderMessageEnable=true\n")
        );
        for key in [
            "kvConfigPath",
            "configStorePath",
            "configBlackList",
            "rocketmqHome",
            "listenPort",
        ] {
            let text = format!("orderMessageEnable=false\n{key}=/etc/cron.d/x\n");
            let (code, remark) = world.refused(ask(318, &[]), &text).await;
            assert_eq!(code, 16);
            assert!(
                remark.starts_with("Can not update config") && remark.contains(key),
                "{remark}"
            );
        }
        assert_eq!(world.refused(ask(318, &[]), "no assignment").await.0, 1);
        assert!(
            world
                .ok(ask(319, &[]), "")
                .await
                .1
                .contains("orderMessageEnable=true\n")
        );
    });
}

#[test]
fn unknown_codes_and_missing_fields_are_answered() {
    on_name_server(async |world| {
        for code in [0, 10, 34, 301, 999, 32_000] {
            let (answer, remark) = world.refused(ask(code, &[]), "").await;
            assert_eq!(answer, 3);
            assert!(
                remark.starts_with(&format!(" request type {code} not supported")),
                "{remark}"
            );
        }
        for code in [
            100, 101, 102, 103, 104, 105, 205, 216, 217, 219, 224, 322, 327, 901, 904,
        ] {
            let (answer, remark) = world.refused(ask(code, &[]), "").await;
            assert_eq!(answer, 1, "{code}");
            assert!(remark.contains("lacks the field"), "{code}: {remark}");
        }
    });
}

#[test]
fn key_values_are_kept_in_javas_file_and_survive() {
    on_name_server(async |world| {
        let key = |code, key| ask(code, &[("namespace", "NS"), ("key", key)]);
        let (code, remark) = world.refused(key(101, "k"), "").await;
        assert_eq!(
            (code, remark.as_str()),
            (22, "No config item, Namespace: NS Key: k")
        );
        let (code, remark) = world.refused(ask(219, &[("namespace", "NS")]), "").await;
        assert_eq!(
            (code, remark.as_str()),
            (22, "No config item, Namespace: NS")
        );
        world.ok(key(100, "k").field("value", "值\n2"), "").await;
        world.ok(key(100, "k2").field("value", "v2"), "").await;
        let (header, _) = world.ok(key(101, "k"), "").await;
        assert_eq!(field(&header, "value").as_deref(), Some("值\n2"));
        let (_, body) = world.ok(ask(219, &[("namespace", "NS")]), "").await;
        let table: KVTable = json::from_slice(body.as_bytes()).unwrap();
        assert_eq!(table.table["k"], "值\n2");
        let path = kv_path(world.directory.path());
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(
            text,
            "{\"configTable\":{\"NS\":{\"k\":\"值\\n2\",\"k2\":\"v2\"}}}\n"
        );
        world.ok(key(102, "k"), "").await;
        world.ok(key(102, "k"), "").await;
        world
            .ok(ask(102, &[("namespace", "none"), ("key", "k")]), "")
            .await;
        let again = KvStore::load(world.env.clone(), &path).await.unwrap();
        assert_eq!(
            (again.get("NS", "k"), again.get("NS", "k2").as_deref()),
            (None, Some("v2"))
        );
        let left = std::fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!(left, 1, "no temporary file stays");
    });
}

#[test]
fn order_configuration_reaches_brokers_and_when_enabled_clients() {
    on_name_server(async |world| {
        let put = ask(
            100,
            &[
                ("namespace", ORDER_TOPIC_CONFIG),
                ("key", "T"),
                ("value", "b1:8"),
            ],
        );
        world.ok(put, "").await;
        let (_, body) = world.ok(of_broker(103), REGISTRATION).await;
        assert_eq!(body, r#"{"table":{"T":"b1:8"}}"#);
        let route = async || world.ok(ask(105, &[("topic", "T")]), "").await.1;
        assert!(!route().await.contains("orderTopicConf"));
        world.set(|options| {
            options.order_message_enable = true;
            options.return_order_topic_config_to_broker = false;
        });
        assert!(route().await.contains(r#""orderTopicConf":"b1:8""#));
        let (_, body) = world.ok(of_broker(103), REGISTRATION).await;
        assert_eq!(body, "");
    });
}

#[test]
fn a_change_that_cannot_be_written_is_refused_with_the_file() {
    on_name_server(async |world| {
        // A file where the directory has to be.
        std::fs::write(world.directory.path().join("sub"), "x").unwrap();
        let put = ask(100, &[("namespace", "NS"), ("key", "k"), ("value", "v")]);
        let (code, remark) = world.refused(put.clone(), "").await;
        assert_eq!(code, 1);
        assert!(remark.contains("kvConfig.json"), "{remark}");
        std::fs::remove_file(world.directory.path().join("sub")).unwrap();
        world.ok(put, "").await;
        let mut large = ask(100, &[("namespace", "NS"), ("key", "large")]);
        large = large.field("value", "x".repeat(crate::namesrv::kv::KV_TEXT_BYTES_MAX));
        let (code, remark) = world.refused(large, "").await;
        assert_eq!(code, 1);
        assert!(remark.contains("limit"), "{remark}");
    });
}

#[test]
fn a_damaged_file_stops_the_start_and_is_named() {
    on_executor(async |env: RingEnv| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kvConfig.json");
        for text in ["", "{", "{\"configTable\":[1]}", "[]", "{}x", "\u{0}"] {
            std::fs::write(&path, text).unwrap();
            let error = KvStore::load(env.clone(), &path)
                .await
                .err()
                .unwrap()
                .to_string();
            assert!(
                error.contains("kvConfig.json") && error.contains("damaged"),
                "{text}: {error}"
            );
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        // What Java writes is read, pretty or not.
        std::fs::write(
            &path,
            "{\n\t\"configTable\":{\"NS\":{\n\t\t\"k\":\"v\"}}\n}",
        )
        .unwrap();
        let store = KvStore::load(env, &path).await.unwrap();
        assert_eq!(store.get("NS", "k").as_deref(), Some("v"));
    });
}

#[test]
fn many_changes_at_once_are_all_answered_after_they_are_in_the_file() {
    on_name_server(async |world| {
        let path = kv_path(world.directory.path());
        let answered = Rc::new(Cell::new(0));
        for index in 0..200 {
            let header = ask(100, &[("namespace", "NS")])
                .field("key", format!("k{index}"))
                .field("value", "v".repeat(index));
            let (answered, path) = (answered.clone(), path.clone());
            world
                .server
                .answer(&received(header, b""), None, move |header, _| {
                    assert_eq!(header.code, 0);
                    let text = std::fs::read_to_string(&path).unwrap();
                    assert!(
                        text.contains(&format!("\"k{index}\":")),
                        "k{index} is in the file"
                    );
                    answered.set(answered.get() + 1);
                });
        }
        while answered.get() < 200 {
            world.env.sleep(Duration::from_millis(1)).await;
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]
    #[test]
    fn no_request_panics(requests in proptest::collection::vec(
        (
            prop_oneof![100..107i32, 205..225i32, 304..328i32, Just(901), Just(904)],
            proptest::collection::vec((0..14usize, "[ -~]{0,8}"), 0..8),
            proptest::collection::vec(any::<u8>(), 0..60),
            any::<bool>(),
        ),
        1..60,
    )) {
        const NAMES: [&str; 14] = [
            "brokerName", "brokerAddr", "clusterName", "haServerAddr", "brokerId", "topic", "namespace", "key",
            "value", "cluster", "compressed", "bodyCrc32", "heartbeatTimeoutMillis", "enableActingMaster",
        ];
        on_name_server(async |world| {
            for (code, fields, body, registered) in &requests {
                let mut header = Outgoing::request(*code);
                for (name, value) in fields {
                    header = header.field(NAMES[*name], value.clone());
                }
                let body: &[u8] = if *registered { REGISTRATION.as_bytes() } else { body };
                world.answer(&received(header, body)).await;
                world.server.table.borrow().assert_invariants();
            }
        });
    }
}

/// Serves the name server on a port of its own, with its timer.
async fn serve(world: &World) -> (Rc<Server>, String) {
    let server = Server::new(&world.env, ServerOptions::default(), world.server.clone());
    let listener = Listener::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let address = listener.local().to_string();
    server.serve(listener);
    world.server.start();
    (server, address)
}

async fn until(world: &World, what: &str, so: impl Fn() -> bool) {
    let started = Instant::now();
    while !so() {
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "never so: {what}"
        );
        world.env.sleep(Duration::from_millis(2)).await;
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn over_a_socket_a_broker_registers_is_found_and_leaves_with_its_connection() {
    on_name_server(async |world| {
        let (server, address) = serve(world).await;
        let connect = async || {
            RemotingClient::connect(&world.env, &address, 5 * SECOND)
                .await
                .unwrap()
        };
        let broker = connect().await;
        let client = connect().await;
        let mut body = RegisterBrokerBody::default();
        for name in ["T", "U", "V"] {
            let config = TopicConfig {
                topic_name: name.into(),
                read_queue_nums: 8,
                write_queue_nums: 8,
                ..TopicConfig::default()
            };
            body.topic_config_serialize_wrapper
                .topic_config_table
                .insert(name.into(), config);
        }
        let compressed = register::encode_compressed(&body).unwrap();
        let header = of_broker(103).field("compressed", true);
        let answer = broker
            .call(header, compressed.into(), 5 * SECOND)
            .await
            .unwrap();
        assert_eq!(answer.code, 0);
        let route = async || {
            let header = ask(105, &[("topic", "U")]);
            client.call(header, Bytes::new(), 5 * SECOND).await.unwrap()
        };
        let answer = route().await;
        assert_eq!(answer.code, 0);
        let data: TopicRouteData = json::from_slice(&answer.body).unwrap();
        assert_eq!(data.queue_datas[0].read_queue_nums, 8);
        // Farewell, and back over another connection, which is then lost.
        let answer = broker
            .call(of_broker(104), Bytes::new(), 5 * SECOND)
            .await
            .unwrap();
        assert_eq!(answer.code, 0);
        let answer = route().await;
        assert_eq!(answer.code, 17);
        assert!(
            answer
                .remark
                .unwrap()
                .contains("topic: U\nThe brokers that served it are gone")
        );
        let again = connect().await;
        let answer = again
            .call(
                of_broker(103),
                Bytes::from_static(REGISTRATION.as_bytes()),
                5 * SECOND,
            )
            .await
            .unwrap();
        assert_eq!(answer.code, 0);
        drop(broker);
        assert_eq!(
            route().await.code,
            0,
            "the connection of the first registration does not count"
        );
        drop(again);
        until(world, "the broker is gone", || {
            world.server.counts() == (0, 0)
        })
        .await;
        assert!(world.server.connections.borrow().is_empty());
        assert_eq!(route().await.code, 17);
        world.server.stop();
        server.stop(Duration::ZERO).await;
    });
}

#[test]
fn a_silent_broker_expires_and_its_connection_is_closed() {
    on_name_server(async |world| {
        world.set(|options| options.scan_interval_ms = 100);
        let (server, address) = serve(world).await;
        let broker = RemotingClient::connect(&world.env, &address, 5 * SECOND)
            .await
            .unwrap();
        let header = of_broker(103).field("heartbeatTimeoutMillis", "600");
        let answer = broker.call(header, Bytes::new(), 5 * SECOND).await.unwrap();
        assert_eq!(answer.code, 0);
        // A heartbeat prolongs its life.
        for _ in 0..4 {
            world.env.sleep(Duration::from_millis(250)).await;
            let answer = broker
                .call(of_broker(904), Bytes::new(), 5 * SECOND)
                .await
                .unwrap();
            assert_eq!(answer.code, 0);
            assert_eq!(world.server.counts().0, 1);
        }
        until(world, "it expires", || world.server.counts().0 == 0).await;
        until(world, "its connection is closed", || !broker.is_open()).await;
        world.server.stop();
        server.stop(Duration::ZERO).await;
    });
}

/// Keeps the requests that it gets.
#[derive(Default)]
struct Brokers(RefCell<Vec<(String, String)>>);

impl Handler for Brokers {
    fn handle(&self, request: Command, responder: Responder) {
        assert_eq!(request.code, 905);
        assert!(responder.oneway);
        let text = |name| request.text(name).unwrap().into_owned();
        self.0
            .borrow_mut()
            .push((text("minBrokerId"), text("minBrokerAddr")));
    }

    fn closed(&self, _connection: &Rc<Connection>) {}
}

#[test]
fn a_group_is_told_of_its_new_smallest_id_if_that_is_enabled() {
    on_name_server(async |world| {
        let told = Rc::new(Brokers::default());
        let server = Server::new(&world.env, ServerOptions::default(), told.clone());
        let listener = Listener::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let slave_addr = listener.local().to_string();
        server.serve(listener);
        let slave = |addr: &str| {
            ask(
                103,
                &[
                    ("brokerName", "b1"),
                    ("clusterName", "C1"),
                    ("brokerId", "1"),
                ],
            )
            .field("brokerAddr", addr.to_owned())
            .field("haServerAddr", "h")
        };
        world.ok(slave(&slave_addr), "").await;
        world.register().await;
        world.ok(of_broker(104), "").await;
        world.set(|options| options.notify_min_broker_id_changed = true);
        world.register().await;
        until(world, "the slave hears of its master", || {
            told.0.borrow().len() == 1
        })
        .await;
        world.ok(of_broker(104), "").await;
        until(world, "the slave hears that it is alone", || {
            told.0.borrow().len() == 2
        })
        .await;
        assert_eq!(
            *told.0.borrow(),
            [
                ("0".to_owned(), ADDR.to_owned()),
                ("1".to_owned(), slave_addr)
            ]
        );
        server.stop(Duration::ZERO).await;
    });
}
