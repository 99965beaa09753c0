//! The bodies that a live RocketMQ 5.5.0 wrote read back and are written alike.
#![allow(clippy::unwrap_used)]

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::wire::remoting::body::*;
use crate::wire::remoting::json;

/// Reads the text as `T`, expects it to be written as it was, and returns it.
fn same<T: DeserializeOwned + Serialize>(text: &str) -> T {
    let body: T = json::from_slice(text.as_bytes()).unwrap();
    assert_eq!(json::to_string(&body), text);
    body
}

#[test]
fn the_live_route_is_written_for_new_and_for_old_clients() {
    let standard = r#"{"brokerDatas":[{"brokerAddrs":{"0":"127.0.0.1:30911"},"brokerName":"b1","cluster":"C1","enableActingMaster":false}],"filterServerTable":{},"queueDatas":[{"brokerName":"b1","perm":7,"readQueueNums":8,"topicSysFlag":0,"writeQueueNums":8}]}"#;
    let old = standard.replace(r#""0":"#, "0:");
    let route: TopicRouteData = same(&old);
    assert_eq!(
        String::from_utf8(json::to_standard_vec(&route)).unwrap(),
        standard
    );
    assert_eq!(
        json::from_slice::<TopicRouteData>(standard.as_bytes()).unwrap(),
        route
    );
    assert_eq!(
        route.broker_datas[0].broker_addrs[&MASTER_ID],
        "127.0.0.1:30911"
    );
}

#[test]
fn a_heartbeat_reads_back() {
    let heartbeat: HeartbeatData = same(
        r#"{"clientID":"10.0.0.1@1234#999","consumerDataSet":[{"consumeFromWhere":"CONSUME_FROM_LAST_OFFSET","consumeType":"CONSUME_PASSIVELY","groupName":"CG","messageModel":"CLUSTERING","subscriptionDataSet":[{"classFilterMode":false,"codeSet":[97,98],"expressionType":"TAG","subString":"a || b","subVersion":1700000000000,"tagsSet":["a","b"],"topic":"T"}],"unitMode":false}],"heartbeatFingerprint":0,"producerDataSet":[{"groupName":"PG"}],"withoutSub":false}"#,
    );
    assert!(
        heartbeat.consumer_data_set[0].subscription_data_set[0]
            .code_set
            .contains(&98)
    );
}

#[test]
fn a_heartbeat_of_another_language_is_understood() {
    let heartbeat: HeartbeatData = json::from_slice(
        br#"{"clientID":"c","consumerDataSet":[{"consumeFromWhere":4,"consumeType":1,"groupName":"CG","messageModel":0,"subscriptionDataSet":[{"codeSet":["97"],"subString":"*","subVersion":"17","tagsSet":null,"topic":"T","new":{}}]}],"producerDataSet":null}"#,
    )
    .unwrap();
    let consumer = &heartbeat.consumer_data_set[0];
    assert_eq!(consumer.consume_from_where, "CONSUME_FROM_FIRST_OFFSET");
    assert_eq!(consumer.consume_type, "CONSUME_PASSIVELY");
    assert_eq!(consumer.message_model, "BROADCASTING");
    assert_eq!(consumer.subscription_data_set[0].sub_version, 17);
    assert!(consumer.subscription_data_set[0].code_set.contains(&97));
    assert!(json::from_slice::<ConsumerData>(br#"{"messageModel":9}"#).is_err());
}

#[test]
fn registrations_and_tables_read_back() {
    let register: RegisterBrokerBody = same(
        r#"{"filterServerList":[],"topicConfigSerializeWrapper":{"dataVersion":{"counter":3,"stateVersion":0,"timestamp":1700000000000},"mappingDataVersion":{"counter":3,"stateVersion":0,"timestamp":1700000000000},"topicConfigTable":{"T":{"attributes":{},"order":false,"perm":6,"readQueueNums":8,"topicFilterType":"SINGLE_TAG","topicName":"T","topicSysFlag":0,"writeQueueNums":8}},"topicQueueMappingDetailMap":{},"topicQueueMappingInfoMap":{}}}"#,
    );
    let wrapper = register.topic_config_serialize_wrapper;
    assert_eq!(wrapper.data_version.counter, 3);
    assert_eq!(wrapper.topic_config_table["T"].write_queue_nums, 8);
    same::<TopicConfigSerializeWrapper>(
        r#"{"dataVersion":{"counter":3,"stateVersion":0,"timestamp":1},"topicConfigTable":{}}"#,
    );
    same::<ClusterInfo>(
        r#"{"brokerAddrTable":{"b":{"brokerAddrs":{0:"127.0.0.1:10911",1:"x"},"brokerName":"b","cluster":"c","enableActingMaster":false}},"clusterAddrTable":{"c":["b"]}}"#,
    );
    same::<TopicList>(r#"{"brokerAddr":"127.0.0.1:30911","topicList":["C1","b1"]}"#);
    same::<TopicList>(r#"{"topicList":[]}"#);
    same::<KVTable>(r#"{"table":{"T1":"b1:4"}}"#);
    same::<GetBrokerMemberGroupResponseBody>(
        r#"{"brokerMemberGroup":{"brokerAddrs":{0:"ip:port"},"brokerName":"b","cluster":"c"}}"#,
    );
    same::<KVConfigSerializeWrapper>(r#"{"configTable":{"NS":{"key":"value"}}}"#);
}

#[test]
fn bodies_of_tools_read_back() {
    let queue = r#"{"brokerName":"b","queueId":0,"topic":"T"}"#;
    let stats: TopicStatsTable = same(
        r#"{"offsetTable":{{"brokerName":"b","queueId":0,"topic":"T"}:{"lastUpdateTimestamp":1700000000000,"maxOffset":5,"minOffset":0}},"topicPutTps":0.0}"#,
    );
    let key = MessageQueue {
        broker_name: "b".into(),
        queue_id: 0,
        topic: "T".into(),
    };
    assert_eq!(stats.offset_table[&key].max_offset, 5);
    let consume = r#"{"consumeTps":1.5,"offsetTable":{{"brokerName":"b","queueId":0,"topic":"T"}:{"brokerOffset":5,"consumerOffset":3,"lastTimestamp":1700000000000,"pullOffset":4}}}"#;
    same::<ConsumeStats>(consume);
    same::<ConsumeStatsList>(&format!(
        r#"{{"brokerAddr":"a:1","consumeStatsList":[{{"CG":[{consume}]}}],"totalDiff":2,"totalInflightDiff":0}}"#
    ));
    same::<ResetOffsetBody>(&format!(r#"{{"offsetTable":{{{queue}:10}}}}"#));
    same::<ResetOffsetBodyForC>(
        r#"{"offsetTable":[{"brokerName":"b","offset":10,"queueId":0,"topic":"T"}]}"#,
    );
    same::<GetConsumerStatusBody>(&format!(
        r#"{{"consumerTable":{{"cid":{{{queue}:10}}}},"messageQueueTable":{{{queue}:10}}}}"#
    ));
    same::<LockBatchRequestBody>(&format!(
        r#"{{"clientId":"cid","consumerGroup":"CG","mqSet":[{queue}],"onlyThisBroker":false}}"#
    ));
    same::<LockBatchResponseBody>(&format!(r#"{{"lockOKMQSet":[{queue}]}}"#));
    same::<GetConsumerListByGroupResponseBody>(r#"{"consumerIdList":["a","b"]}"#);
    same::<ConsumerConnection>(
        r#"{"connectionSet":[{"clientAddr":"10.0.0.1:5000","clientId":"cid","language":"JAVA","version":513}],"consumeFromWhere":"CONSUME_FROM_LAST_OFFSET","consumeType":"CONSUME_PASSIVELY","messageModel":"CLUSTERING","subscriptionTable":{"T":{"classFilterMode":false,"codeSet":[97,98],"expressionType":"TAG","subString":"a || b","subVersion":1700000000000,"tagsSet":["a","b"],"topic":"T"}}}"#,
    );
    same::<ProducerTableInfo>(
        r#"{"data":{"PG":[{"clientId":"cid","language":"JAVA","lastUpdateTimestamp":1700000000000,"remoteIP":"/127.0.0.1:44314","version":513}]}}"#,
    );
    same::<BrokerStatsData>(
        r#"{"statsDay":{"avgpt":0.0,"sum":0,"tps":0.0},"statsHour":{"avgpt":0.0,"sum":0,"tps":0.0},"statsMinute":{"avgpt":0.0,"sum":0,"tps":0.0}}"#,
    );
    same::<GroupList>(r#"{"groupList":["CG"]}"#);
    same::<SubscriptionGroupWrapper>(
        r#"{"dataVersion":{"counter":0,"stateVersion":0,"timestamp":0},"forbiddenTable":{},"subscriptionGroupTable":{"CG":{"attributes":{},"brokerId":0,"consumeBroadcastEnable":true,"consumeEnable":true,"consumeFromMinEnable":true,"consumeMessageOrderly":false,"consumeTimeoutMinute":15,"groupName":"CG","groupRetryPolicy":{"exponentialRetryPolicy":{"initial":5000,"max":7200000,"multiplier":2},"type":"EXPONENTIAL"},"groupSysFlag":0,"notifyConsumerIdsChangedEnable":true,"retryMaxTimes":16,"retryQueueNums":1,"whichBrokerWhenConsumeSlowly":1}}}"#,
    );
    same::<QueryConsumeTimeSpanBody>(&format!(
        r#"{{"consumeTimeSpanSet":[{{"consumeTimeStamp":0,"consumeTimeStampStr":"1970-01-01#00:00:00:000","delayTime":5,"maxTimeStamp":0,"messageQueue":{queue},"minTimeStamp":0}}]}}"#
    ));
    same::<QueryConsumeQueueResponseBody>(
        r#"{"maxQueueIndex":7,"minQueueIndex":0,"queueData":[{"eval":false,"physicOffset":0,"physicSize":193,"tagsCode":97}]}"#,
    );
    same::<QueryCorrectionOffsetBody>(r#"{"correctionOffsets":{0:5}}"#);
    same::<ConsumeMessageDirectlyResult>(
        r#"{"autoCommit":true,"consumeResult":"CR_SUCCESS","order":false,"spentTimeMills":0}"#,
    );
    same::<GroupForbidden>(r#"{"group":"CG","readable":false,"topic":"T"}"#);
    same::<ConsumerOffsetSerializeWrapper>(
        r#"{"dataVersion":{"counter":0,"stateVersion":0,"timestamp":0},"offsetTable":{"T@CG":{0:5}}}"#,
    );
    same::<BatchAckMessageRequestBody>(
        r#"{"acks":[{"b":"AQI=","c":"CG","it":0,"pt":0,"q":0,"r":"0","rq":0,"so":0,"t":"T"}],"brokerName":"b"}"#,
    );
    same::<QueryAssignmentResponseBody>(
        r#"{"messageQueueAssignments":[{"messageQueue":{"brokerName":"b1","queueId":1,"topic":"T1"},"mode":"PULL"}]}"#,
    );
    same::<QueryAssignmentResponseBody>("{}");
}

#[test]
fn what_is_unknown_of_a_group_is_kept() {
    let group: SubscriptionGroupConfig =
        json::from_slice(br#"{"groupName":"CG","subscriptionDataSet":[{"topic":"T"}]}"#).unwrap();
    assert_eq!(group.retry_max_times, 16);
    let written: Value = json::from_slice(&json::to_vec(&group)).unwrap();
    assert_eq!(written["subscriptionDataSet"][0]["topic"], "T");
    assert_eq!(written["groupRetryPolicy"]["type"], "CUSTOMIZED");
}

#[test]
fn versions_are_compared_by_state_then_counter_then_time() {
    let version = |state_version, counter, timestamp| DataVersion {
        counter,
        state_version,
        timestamp,
    };
    assert!(version(1, 0, 0) > version(0, 9, 9));
    assert!(version(0, 2, 0) > version(0, 1, 9));
    assert!(version(0, 1, 2) > version(0, 1, 1));
    assert_eq!(version(0, 1, 1).next(0, 7), version(0, 2, 7));
}
