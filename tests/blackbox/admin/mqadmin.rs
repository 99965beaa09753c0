//! `ringmq mqadmin`: what run books grep for. The phrases are those of RocketMQ's own tool.

use super::ringmq;
use crate::client::Message;
use crate::node::{Setup, store_dir};

#[test]
fn the_old_commands_print_what_run_books_grep() {
    let directory = store_dir();
    let node = Setup::new(directory.path(), 1).set("brokerName=b1").start();
    let mut connection = node.connect();
    let broker = node.broker.to_string();
    let old = |words: &str| {
        let words: Vec<&str> = ["mqadmin"].into_iter().chain(words.split(' ')).collect();
        ringmq(&node, &words)
    };
    let made = old("updateTopic -c DefaultCluster -t T -r 3 -w 3").ok();
    assert!(
        made.contains(&format!("create topic to {broker} success")),
        "{made}"
    );
    assert!(
        made.contains("TopicConfig [topicName=T, readQueueNums=3, writeQueueNums=3, perm=RW-"),
        "{made}"
    );
    let route = old("topicRoute -t T").ok();
    assert!(route.contains("\"writeQueueNums\":3"), "{route}");
    assert!(route.contains(&broker), "{route}");
    assert!(old("topicRoute -t T -l").ok().contains("#ReadQueue"));
    assert!(old("topicList").ok().lines().any(|line| line == "T"));
    for number in 0..5 {
        let message = Message::new("T", 2, format!("body {number}"))
            .property("KEYS", "k")
            .property("UNIQ_KEY", &format!("{number:032X}"));
        connection.send(&message).unwrap();
    }
    let status = old("topicStatus -t T").ok();
    assert!(
        status.starts_with("#Broker Name                      #QID"),
        "{status}"
    );
    let row = status
        .lines()
        .find(|line| line.contains("  2     0"))
        .unwrap();
    let cells: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(cells[..4], ["b1", "2", "0", "5"], "{status}");
    let clusters = old("clusterList").ok();
    assert!(
        clusters.contains("#InTPS(LOAD)") && clusters.contains(&broker),
        "{clusters}"
    );
    assert!(clusters.contains("V5_5_0"), "{clusters}");
    let runtime = old(&format!("brokerStatus -b {broker}")).ok();
    assert!(
        runtime.contains("putTps                          : "),
        "{runtime}"
    );

    let sent = old("sendMessage -t T -p hello -k mine -b b1 -i 0").ok();
    assert!(sent.contains("SEND_OK"), "{sent}");
    let keys = old("queryMsgByKey -t T -k k").ok();
    assert_eq!(keys.lines().count(), 6, "{keys}");
    let id = format!("{:032X}", 3);
    let one = old(&format!("queryMsgByUniqueKey -t T -i {id}")).ok();
    assert!(one.contains("Queue Offset:        3"), "{one}");
    let by_offset = old("queryMsgByOffset -t T -b b1 -i 2 -o 3").ok();
    let offset_id = by_offset
        .lines()
        .find_map(|line| line.strip_prefix("OffsetID:"));
    let by_id = old(&format!(
        "queryMsgById -t T -i {}",
        offset_id.unwrap().trim()
    ))
    .ok();
    assert!(by_id.contains("WARN: No Consumer"), "{by_id}");
    assert!(by_id.contains("Keys:                [k]"), "{by_id}");
    let consumed = old("consumeMessage -t T -b b1 -i 2 -o 1 -c 2").ok();
    assert!(
        consumed.contains("body 1") && consumed.contains("body 2"),
        "{consumed}"
    );
    assert!(!consumed.contains("body 3"), "{consumed}");

    assert!(
        old(&format!("updateSubGroup -b {broker} -g G -r 5"))
            .ok()
            .contains("success")
    );
    assert!(
        old("getConsumerConfig -g G")
            .ok()
            .contains("retryMaxTimes                           =  5")
    );
    connection.commit_offset("G", "T", 2, 4).unwrap();
    let progress = old("consumerProgress -g G").ok();
    assert!(progress.contains("Consume Diff Total: 2"), "{progress}");
    let reset = old("resetOffsetByTime -g G -t T -s 0").ok();
    assert!(
        reset.contains("start reset consumer offset by specified, group[G], topic[T]"),
        "{reset}"
    );
    assert_eq!(connection.consumer_offset("G", "T", 2).unwrap(), Some(0));
    old("skipAccumulatedMessage -g G -t T").ok();
    assert_eq!(connection.consumer_offset("G", "T", 2).unwrap(), Some(5));
    old("cloneGroupOffset -s G -d H -t T").ok();
    assert_eq!(connection.consumer_offset("H", "T", 2).unwrap(), Some(5));
    connection.heartbeat("member", "G", "T").unwrap();
    let online = old("consumerConnection -g G").ok();
    assert!(
        online.contains("member") && online.contains("ConsumeType: CONSUME_PASSIVELY"),
        "{online}"
    );
    let producers = old("producerConnection -g blackbox-producer -t T").ok();
    assert!(producers.starts_with("0001  member"), "{producers}");
    let tracked = old("queryMsgByOffset -t T -b b1 -i 2 -o 3").ok();
    assert!(
        tracked.contains("MessageTrack [consumerGroup=G, trackType=CONSUMED,"),
        "{tracked}"
    );

    let config = old(&format!("getBrokerConfig -b {broker}")).ok();
    assert!(
        config.contains(&format!("============{broker}============")),
        "{config}"
    );
    old(&format!(
        "updateBrokerConfig -b {broker} -k fileReservedTime -v 70"
    ))
    .ok();
    let refused = old(&format!(
        "updateBrokerConfig -b {broker} -k rocketmqHome -v /x"
    ));
    assert_eq!(refused.code, 1, "{refused:?}");
    let gone = old("deleteTopic -t T -c DefaultCluster").ok();
    assert!(
        gone.contains("delete topic [T] from cluster [DefaultCluster] success."),
        "{gone}"
    );
    assert!(
        gone.contains("delete topic [T] from NameServer success."),
        "{gone}"
    );
    assert_eq!(old("topicRoute -t T").code, 3);
}

#[test]
fn what_the_old_tool_cannot_do_here_is_said_with_usage() {
    let directory = store_dir();
    let node = Setup::new(directory.path(), 1).start();
    let unknown = ringmq(&node, &["mqadmin", "electMaster"]);
    assert_eq!(unknown.code, 2);
    assert!(unknown.err.contains("docs/mqadmin.md"), "{unknown:?}");
    let missing = ringmq(&node, &["mqadmin", "topicStatus"]);
    assert_eq!(missing.code, 2);
    assert!(missing.err.contains("-t,--topic <arg>"), "{missing:?}");
    let help = ringmq(&node, &["mqadmin", "help", "resetOffsetByTime"]).ok();
    assert!(help.contains("-s,--timestamp <arg>"), "{help}");
    assert!(
        ringmq(&node, &["mqadmin"])
            .ok()
            .contains("consumerProgress")
    );
}
