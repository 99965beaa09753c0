package check;

import static check.Kit.check;
import static check.Kit.equal;
import static check.Kit.message;
import static check.Kit.name;
import static check.Kit.series;
import static check.Kit.until;

import java.io.File;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashSet;
import java.util.List;
import java.util.Properties;
import java.util.Set;
import java.util.stream.Collectors;
import org.apache.rocketmq.client.QueryResult;
import org.apache.rocketmq.client.consumer.DefaultMQPullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.PullResult;
import org.apache.rocketmq.client.consumer.PullStatus;
import org.apache.rocketmq.client.exception.MQBrokerException;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.common.MixAll;
import org.apache.rocketmq.common.TopicConfig;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;
import org.apache.rocketmq.remoting.protocol.admin.ConsumeStats;
import org.apache.rocketmq.remoting.protocol.admin.TopicStatsTable;
import org.apache.rocketmq.remoting.protocol.body.BrokerStatsData;
import org.apache.rocketmq.remoting.protocol.body.CMResult;
import org.apache.rocketmq.remoting.protocol.body.ClusterInfo;
import org.apache.rocketmq.remoting.protocol.body.ConsumerConnection;
import org.apache.rocketmq.remoting.protocol.body.KVTable;
import org.apache.rocketmq.remoting.protocol.body.ProducerTableInfo;
import org.apache.rocketmq.remoting.protocol.body.SubscriptionGroupWrapper;
import org.apache.rocketmq.remoting.protocol.route.TopicRouteData;
import org.apache.rocketmq.remoting.protocol.subscription.SubscriptionGroupConfig;
import org.apache.rocketmq.tools.admin.DefaultMQAdminExt;

/**
 * What rocketmq-dashboard and rocketmq-exporter ask for, page by page, with the client that they use, since neither is in a
 * registry; and how soon a group owns all queues again.
 */
public final class Since5Operators {
    private static final int QUEUES = 8;

    private Since5Operators() {
    }

    private static DefaultMQAdminExt admin() throws Exception {
        DefaultMQAdminExt admin = new DefaultMQAdminExt();
        admin.setNamesrvAddr(Kit.ADDRESS);
        admin.setInstanceName(name("instance"));
        admin.start();
        Kit.closing(admin::shutdown);
        return admin;
    }

    private static String master(DefaultMQAdminExt admin) throws Exception {
        ClusterInfo cluster = admin.examineBrokerClusterInfo();
        return cluster.getBrokerAddrTable().values().iterator().next().getBrokerAddrs().get(MixAll.MASTER_ID);
    }

    private static void makeTopic(DefaultMQAdminExt admin, String topic) throws Exception {
        TopicConfig config = new TopicConfig(topic);
        config.setReadQueueNums(QUEUES);
        config.setWriteQueueNums(QUEUES);
        admin.createAndUpdateTopicConfig(master(admin), config);
        until(() -> {
            try {
                return admin.examineTopicRouteInfo(topic).getQueueDatas().size() == 1;
            } catch (Exception notYet) {
                return false;
            }
        }, () -> "no route of " + topic);
    }

    private static String code(Throwable error) {
        for (Throwable one = error; one != null; one = one.getCause()) {
            if (one instanceof MQBrokerException) {
                return String.valueOf(((MQBrokerException) one).getResponseCode());
            }
        }
        return String.valueOf(error);
    }

    /** Cluster, topic, consumer, message, dead letter and ops page of the dashboard. */
    public static void theDashboardsPagesShowWhatIsThere() throws Exception {
        DefaultMQAdminExt admin = admin();
        String topic = name("topic");
        String group = name("group");
        String broker = master(admin);
        // Cluster page: 106, 28, 26.
        ClusterInfo cluster = admin.examineBrokerClusterInfo();
        check(!cluster.getClusterAddrTable().isEmpty(), cluster.toJson());
        KVTable figures = admin.fetchBrokerRuntimeStats(broker);
        for (String key : Arrays.asList("brokerVersionDesc", "putTps", "getTransferredTps", "msgPutTotalTodayNow", "msgPutTotalYesterdayMorning",
            "msgPutTotalTodayMorning", "msgGetTotalTodayNow", "msgGetTotalYesterdayMorning", "msgGetTotalTodayMorning", "bootTimestamp")) {
            check(figures.getTable().containsKey(key), key + " is not in " + figures.getTable().keySet());
        }
        Double.parseDouble(figures.getTable().get("putTps").split(" ")[0]);
        Double.parseDouble(figures.getTable().get("getTransferredTps").split(" ")[0]);
        Long.parseLong(figures.getTable().get("msgPutTotalTodayNow"));
        Properties settings = admin.getBrokerConfig(broker);
        check(settings.containsKey("brokerName"), settings.keySet());
        // Topic page: 17, 206, 304, 105, 202, 351.
        makeTopic(admin, topic);
        check(admin.fetchAllTopicList().getTopicList().contains(topic), "the new topic is not listed");
        TopicRouteData route = admin.examineTopicRouteInfo(topic);
        equal(QUEUES, route.getQueueDatas().get(0).getWriteQueueNums());
        equal(QUEUES, admin.examineTopicConfig(broker, topic).getReadQueueNums());
        DefaultMQProducer producer = Kit.producer();
        List<SendResult> sent = new ArrayList<>();
        for (String body : series("m", 40)) {
            Message one = message(topic, body);
            one.setKeys("key-" + body.replace(' ', '-'));
            sent.add(producer.send(one));
        }
        TopicStatsTable stats = admin.examineTopicStats(topic);
        equal(QUEUES, stats.getOffsetTable().size());
        equal(40L, stats.getOffsetTable().values().stream().mapToLong(one -> one.getMaxOffset() - one.getMinOffset()).sum());
        // Consumer page: 201, 203, 208, 307, 300, 343, 200, 222.
        Kit.Got got = new Kit.Got();
        DefaultMQPushConsumer consumer = Kit.consumer(group);
        consumer.subscribe(topic, "*");
        consumer.registerMessageListener(got.listener());
        consumer.start();
        got.exactly(series("m", 40));
        ConsumerConnection connections = admin.examineConsumerConnectionInfo(group);
        equal(1, connections.getConnectionSet().size());
        String client = connections.getConnectionSet().iterator().next().getClientId();
        until(() -> admin.examineConsumeStats(group).computeTotalDiff() == 0, () -> admin.examineConsumeStats(group).toJson());
        ConsumeStats progress = admin.examineConsumeStats(group, topic);
        equal(QUEUES, progress.getOffsetTable().size());
        check(admin.getConsumerRunningInfo(group, client, true).getMqTable().size() >= QUEUES, "the running info has too few queues");
        check(admin.queryTopicConsumeByWho(topic).getGroupList().contains(group), "300 does not name the group");
        check(admin.queryTopicsByConsumer(group).getTopicList().contains(topic), admin.queryTopicsByConsumer(group).getTopicList());
        SubscriptionGroupWrapper groups = admin.getAllSubscriptionGroup(broker, 8000);
        check(groups.getSubscriptionGroupTable().containsKey(group), "201 does not have the group");
        SubscriptionGroupConfig config = admin.examineSubscriptionGroupConfig(broker, group);
        config.setRetryMaxTimes(3);
        admin.createAndUpdateSubscriptionGroupConfig(broker, config);
        equal(3, admin.examineSubscriptionGroupConfig(broker, group).getRetryMaxTimes());
        equal(QUEUES, admin.queryConsumeTimeSpan(topic, group).size());
        // Message page: 12, 33, 309, and who has got it.
        QueryResult byKey = admin.queryMessage(topic, "key-m-7", 64, 0, System.currentTimeMillis() + 60_000);
        equal("[m 7]", byKey.getMessageList().stream().map(Kit::body).collect(Collectors.toList()));
        MessageExt one = admin.viewMessage(topic, sent.get(11).getMsgId());
        equal("m 11", Kit.body(one));
        equal("m 11", Kit.body(admin.viewMessage(topic, sent.get(11).getOffsetMsgId())));
        equal(CMResult.CR_SUCCESS, admin.consumeMessageDirectly(group, client, topic, one.getMsgId()).getConsumeResult());
        equal("[m 11]", Arrays.asList(got.bodies().get(40)));
        check(admin.messageTrackDetail(one).stream().anyMatch(track -> track.getConsumerGroup().equals(group)), "nobody has got the message");
        // Its button to consume again from the beginning: 222.
        consumer.suspend();
        equal(QUEUES, admin.resetOffsetByTimestamp(topic, group, 0, true).size());
        consumer.resume();
        until(() -> got.messages.size() >= 81, got::bodies);
        // Dead letter page: what is not there yet has no route (17).
        try {
            admin.examineTopicRouteInfo(MixAll.getDLQTopic(group));
            throw new AssertionError("there are dead letters");
        } catch (Exception expected) {
            check(String.valueOf(expected).contains("17"), expected);
        }
        // Ops page: 25, 26; and the buttons that remove: 207, 215, 216.
        Properties change = new Properties();
        change.setProperty("fileReservedTime", "71");
        admin.updateBrokerConfig(broker, change);
        equal("71", admin.getBrokerConfig(broker).getProperty("fileReservedTime"));
        change.setProperty("fileReservedTime", settings.getProperty("fileReservedTime"));
        admin.updateBrokerConfig(broker, change);
        consumer.shutdown();
        admin.deleteSubscriptionGroup(broker, group, true);
        try {
            check(admin.examineSubscriptionGroupConfig(broker, group) == null, "the group is still there");
        } catch (Exception gone) {
            check(code(gone).matches("26|.*26.*"), gone);
        }
        admin.deleteTopicInBroker(new HashSet<>(Arrays.asList(broker)), topic);
        admin.deleteTopicInNameServer(new HashSet<>(Arrays.asList(Kit.ADDRESS)), topic);
        check(!admin.fetchAllTopicList().getTopicList().contains(topic), "the topic is still listed");
    }

    /** One round of the exporter's tasks: 106, 206, 105, 202, 300, 203, 208, 11, 315, 28, 328. */
    public static void theExportersRoundFindsItsFigures() throws Exception {
        DefaultMQAdminExt admin = admin();
        String topic = name("topic");
        String group = name("group");
        makeTopic(admin, topic);
        String broker = master(admin);
        DefaultMQProducer producer = Kit.producer();
        Kit.Got got = new Kit.Got();
        DefaultMQPushConsumer consumer = Kit.consumer(group);
        consumer.subscribe(topic, "*");
        consumer.registerMessageListener(got.listener());
        consumer.start();
        for (String body : series("m", 60)) {
            producer.send(message(topic, body));
        }
        got.exactly(series("m", 60));
        // collectTopicOffset, collectProducer
        Set<String> topics = admin.fetchAllTopicList().getTopicList();
        check(topics.contains(topic), topics);
        long max = 0;
        for (MessageQueue queue : admin.examineTopicStats(topic).getOffsetTable().keySet()) {
            max += admin.examineTopicStats(topic).getOffsetTable().get(queue).getMaxOffset();
        }
        equal(60L, max);
        ProducerTableInfo producers = admin.getAllProducerInfo(broker);
        check(producers.getData().containsKey(producer.getProducerGroup()), producers.getData().keySet());
        // collectConsumerOffset: lag, and the age of the message at the group's offset by a pull of it.
        check(admin.queryTopicConsumeByWho(topic).getGroupList().contains(group), "300 does not name the group");
        ConsumerConnection connections = admin.examineConsumerConnectionInfo(group);
        equal(1, connections.getConnectionSet().size());
        until(() -> admin.examineConsumeStats(group, topic).computeTotalDiff() == 0, () -> admin.examineConsumeStats(group, topic).toJson());
        DefaultMQPullConsumer pull = new DefaultMQPullConsumer(MixAll.TOOLS_CONSUMER_GROUP);
        pull.setNamesrvAddr(Kit.ADDRESS);
        pull.setInstanceName(name("instance"));
        pull.start();
        Kit.closing(pull::shutdown);
        MessageQueue queue = pull.fetchSubscribeMessageQueues(topic).iterator().next();
        PullResult last = pull.pull(queue, "*", pull.maxOffset(queue) - 1, 1);
        equal(PullStatus.FOUND, last.getPullStatus());
        check(last.getMsgFoundList().get(0).getStoreTimestamp() > 0, "no store time");
        // collectBrokerStatsTopic, collectBrokerStats
        until(() -> sum(admin, broker, "TOPIC_PUT_NUMS", topic) == 60 && sum(admin, broker, "GROUP_GET_NUMS", topic + "@" + group) == 60,
            () -> sum(admin, broker, "TOPIC_PUT_NUMS", topic) + " put, " + sum(admin, broker, "GROUP_GET_NUMS", topic + "@" + group) + " got");
        check(sum(admin, broker, "TOPIC_PUT_SIZE", topic) > 0 && sum(admin, broker, "GROUP_GET_SIZE", topic + "@" + group) > 0, "no bytes");
        check(sum(admin, broker, "BROKER_PUT_NUMS", admin.examineBrokerClusterInfo().getClusterAddrTable().keySet().iterator().next()) >= 60, "BROKER_PUT_NUMS");
        // collectBrokerRuntimeStats: its parser takes these as numbers.
        KVTable figures = admin.fetchBrokerRuntimeStats(broker);
        for (String key : Arrays.asList("msgPutTotalTodayMorning", "msgGetTotalYesterdayMorning", "remainTransientStoreBufferNumbs", "commitLogMinOffset",
            "commitLogMaxOffset", "earliestMessageTimeStamp", "dispatchMaxBuffer", "sendThreadPoolQueueSize", "pullThreadPoolQueueSize",
            "sendThreadPoolQueueHeadWaitTimeMills", "pullThreadPoolQueueHeadWaitTimeMills", "brokerVersion", "bootTimestamp", "putMessageTimesTotal",
            "putMessageSizeTotal")) {
            String value = figures.getTable().get(key);
            check(value != null && value.matches("-?\\d+"), key + "=" + value);
        }
        for (String key : Arrays.asList("putTps", "getFoundTps", "getMissTps", "getTotalTps", "getTransferredTps")) {
            String value = figures.getTable().get(key);
            check(value != null && value.split(" ").length == 3, key + "=" + value);
        }
        System.out.println("exporter: " + figures.getTable());
    }

    private static long sum(DefaultMQAdminExt admin, String broker, String figure, String key) {
        try {
            BrokerStatsData data = admin.viewBrokerStatsData(broker, figure, key);
            return Math.max(data.getStatsMinute().getSum(), Math.max(data.getStatsHour().getSum(), data.getStatsDay().getSum()));
        } catch (Exception notYet) {
            return -1;
        }
    }

    private static Set<MessageQueue> owned(DefaultMQPushConsumer consumer, String topic) {
        return consumer.getDefaultMQPushConsumerImpl().getRebalanceImpl().getProcessQueueTable().keySet().stream()
            .filter(queue -> queue.getTopic().equals(topic)).collect(Collectors.toSet());
    }

    private static DefaultMQPushConsumer member(String group, String topic) throws Exception {
        DefaultMQPushConsumer consumer = Kit.consumer(group);
        consumer.subscribe(topic, "*");
        consumer.registerMessageListener(new Kit.Got().listener());
        consumer.start();
        return consumer;
    }

    /** All queues have one owner each among these, and each of these has as many as the others. Milliseconds since `begun`. */
    private static long shared(long begun, String topic, DefaultMQPushConsumer... members) throws Exception {
        until(() -> {
            Set<MessageQueue> all = new HashSet<>();
            int count = 0;
            for (DefaultMQPushConsumer one : members) {
                Set<MessageQueue> own = owned(one, topic);
                if (own.size() != QUEUES / members.length) {
                    return false;
                }
                count += own.size();
                all.addAll(own);
            }
            return count == QUEUES && all.size() == QUEUES;
        }, () -> Arrays.stream(members).map(one -> owned(one, topic).size()).collect(Collectors.toList()));
        return (System.nanoTime() - begun) / 1_000_000;
    }

    /**
     * Without a word of the broker it takes 20 s; the bound is here to tell that from one, whatever else the machine does. A client
     * divides its queues at most once a second, so there is a pause before each event, and a start or a shutdown is over
     * when its call returns.
     */
    public static void aGroupOwnsAllQueuesAgainAfterAJoinALeaveAndAKill() throws Exception {
        DefaultMQAdminExt admin = admin();
        String topic = name("topic");
        String group = name("group");
        makeTopic(admin, topic);
        long limit = Long.getLong("check.rebalance.ms", 5_000);
        DefaultMQPushConsumer first = member(group, topic);
        shared(System.nanoTime(), topic, first);
        List<List<Long>> took = Arrays.asList(new ArrayList<>(), new ArrayList<>(), new ArrayList<>());
        for (int round = 0; round < 5; round++) {
            Thread.sleep(1_500);
            DefaultMQPushConsumer second = member(group, topic);
            took.get(0).add(shared(System.nanoTime(), topic, first, second));
            Thread.sleep(1_500);
            second.shutdown();
            took.get(1).add(shared(System.nanoTime(), topic, first));
            List<String> command = new ArrayList<>(Arrays.asList(System.getProperty("java.home") + File.separator + "bin" + File.separator + "java",
                "-cp", System.getProperty("java.class.path"), "-Duser.home=" + System.getProperty("user.home"), "check.Member", group, topic));
            Process other = new ProcessBuilder(command).redirectErrorStream(true).redirectOutput(ProcessBuilder.Redirect.INHERIT).start();
            Kit.closing(other::destroyForcibly);
            until(() -> owned(first, topic).size() == QUEUES / 2, () -> owned(first, topic));
            Thread.sleep(1_500);
            long begun = System.nanoTime();
            other.destroyForcibly();
            took.get(2).add(shared(begun, topic, first));
        }
        System.out.printf("rebalance: %s ms after a join, %s after a leave, %s after a kill%n", took.toArray());
        check(took.stream().flatMap(List::stream).allMatch(one -> one <= limit), took);
    }
}
