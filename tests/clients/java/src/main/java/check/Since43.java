package check;

import static check.Kit.closing;
import static check.Kit.consumer;
import static check.Kit.equal;
import static check.Kit.message;
import static check.Kit.name;
import static check.Kit.producer;
import static check.Kit.series;
import static check.Kit.until;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.stream.Collectors;
import org.apache.rocketmq.client.consumer.DefaultMQPullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.MessageSelector;
import org.apache.rocketmq.client.consumer.PullResult;
import org.apache.rocketmq.client.consumer.PullStatus;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.ConsumeOrderlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.consumer.listener.MessageListenerOrderly;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.LocalTransactionState;
import org.apache.rocketmq.client.producer.SendCallback;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.SendStatus;
import org.apache.rocketmq.client.producer.TransactionListener;
import org.apache.rocketmq.client.producer.TransactionMQProducer;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;

/** What every client since 4.3 can do. */
public final class Since43 {
    private Since43() {
    }

    public static void everyWayToSendArrives() throws Exception {
        String topic = name("ways");
        DefaultMQProducer producer = producer();
        List<String> wanted = new ArrayList<>();
        for (String body : series("sync", 20)) {
            Message message = message(topic, body);
            message.setKeys(Arrays.asList("k1", "k2"));
            message.putUserProperty("colour", "grün");
            SendResult result = producer.send(message);
            equal(SendStatus.SEND_OK, result.getSendStatus());
            Kit.check(result.getMsgId() != null && result.getOffsetMsgId() != null, result);
            wanted.add(body);
        }
        CountDownLatch done = new CountDownLatch(20);
        for (String body : series("async", 20)) {
            producer.send(message(topic, body), new SendCallback() {
                @Override
                public void onSuccess(SendResult result) {
                    done.countDown();
                }

                @Override
                public void onException(Throwable problem) {
                    problem.printStackTrace();
                }
            });
            producer.sendOneway(message(topic, "one way" + body));
            wanted.add(body);
            wanted.add("one way" + body);
        }
        Kit.check(done.await(30, TimeUnit.SECONDS), "asynchronous sends");
        List<Message> batch = series("batch", 20).stream().map(body -> message(topic, body)).collect(Collectors.toList());
        equal(SendStatus.SEND_OK, producer.send(batch).getSendStatus());
        wanted.addAll(series("batch", 20));
        Kit.Got got = new Kit.Got();
        DefaultMQPushConsumer consumer = consumer(name("group"));
        consumer.subscribe(topic, "*");
        consumer.registerMessageListener(got.listener());
        consumer.start();
        got.exactly(wanted);
        MessageExt first = got.messages.stream().filter(m -> Kit.body(m).startsWith("sync")).findFirst().get();
        equal("grün", first.getUserProperty("colour"));
        equal("k1 k2", first.getKeys());
    }

    public static void aLargeBodyIsCompressedAndComesBack() throws Exception {
        String topic = name("large");
        String body = String.join(" ", Collections.nCopies(100_000, "all work and no play"));
        producer().send(message(topic, body));
        Kit.Got got = new Kit.Got();
        DefaultMQPushConsumer consumer = consumer(name("group"));
        consumer.subscribe(topic, "*");
        consumer.registerMessageListener(got.listener());
        consumer.start();
        until(() -> got.messages.size() == 1, () -> "the large body");
        Kit.check(got.bodies().get(0).equals(body), "the body differs");
    }

    public static void orderlyConsumersSeeTheOrderOfAQueue() throws Exception {
        String topic = name("orderly");
        DefaultMQProducer producer = producer();
        for (int n = 0; n < 90; n++) {
            producer.send(message(topic, String.format("%d-%03d", n % 3, n)), (queues, m, key) -> queues.get((Integer) key % queues.size()), n % 3);
        }
        Kit.Got got = new Kit.Got();
        AtomicInteger refused = new AtomicInteger();
        DefaultMQPushConsumer consumer = consumer(name("group"));
        consumer.subscribe(topic, "*");
        consumer.registerMessageListener((MessageListenerOrderly) (batch, context) -> {
            if (Kit.body(batch.get(0)).equals("1-031") && refused.getAndIncrement() == 0) {
                return ConsumeOrderlyStatus.SUSPEND_CURRENT_QUEUE_A_MOMENT;
            }
            got.add(batch);
            return ConsumeOrderlyStatus.SUCCESS;
        });
        consumer.start();
        until(() -> got.messages.size() >= 90, () -> got.messages.size());
        for (String key : Arrays.asList("0-", "1-", "2-")) {
            List<String> mine = got.bodies().stream().filter(body -> body.startsWith(key)).collect(Collectors.toList());
            equal(30, mine.size());
            equal(Kit.sorted(mine), mine);
        }
        equal(2, refused.get());
    }

    public static void aDelayedMessageComesWhenItIsDue() throws Exception {
        String topic = name("delay");
        DefaultMQProducer producer = producer();
        producer.send(message(topic, "first"));
        Kit.Got got = new Kit.Got();
        DefaultMQPushConsumer consumer = consumer(name("group"));
        consumer.subscribe(topic, "*");
        consumer.registerMessageListener(got.listener());
        consumer.start();
        until(() -> got.messages.size() == 1, got::bodies);
        Message late = message(topic, "late");
        late.setDelayTimeLevel(2);
        long begun = System.currentTimeMillis();
        producer.send(late);
        until(() -> got.messages.size() == 2, got::bodies);
        long took = got.times.get(1) - begun;
        Kit.check(took > 4900 && took < 8000, took + " ms");
    }

    public static void tagsAndSqlFilter() throws Exception {
        String topic = name("filter");
        DefaultMQProducer producer = producer();
        for (int n = 0; n < 20; n++) {
            Message message = message(topic, "m " + n);
            message.setTags(n % 2 == 0 ? "red" : "blue");
            message.putUserProperty("n", String.valueOf(n));
            producer.send(message);
        }
        Kit.Got tagged = new Kit.Got();
        DefaultMQPushConsumer byTag = consumer(name("group"));
        byTag.subscribe(topic, "red || green");
        byTag.registerMessageListener(tagged.listener());
        byTag.start();
        Kit.Got selected = new Kit.Got();
        DefaultMQPushConsumer bySql = consumer(name("group"));
        bySql.subscribe(topic, MessageSelector.bySql("n BETWEEN 3 AND 7 AND TAGS = 'blue'"));
        bySql.registerMessageListener(selected.listener());
        bySql.start();
        tagged.exactly(series("m", 20).stream().filter(body -> Integer.parseInt(body.substring(2)) % 2 == 0).collect(Collectors.toList()));
        selected.exactly(Arrays.asList("m 3", "m 5", "m 7"));
    }

    public static void aRefusedMessageComesAgainAndThenIsADeadLetter() throws Exception {
        String topic = name("retry");
        String group = name("group");
        producer().send(message(topic, "refuse me"));
        Kit.Got got = new Kit.Got();
        DefaultMQPushConsumer consumer = consumer(group);
        consumer.setMaxReconsumeTimes(1);
        consumer.subscribe(topic, "*");
        consumer.registerMessageListener((MessageListenerConcurrently) (batch, context) -> {
            got.add(batch);
            context.setDelayLevelWhenNextConsume(1);
            return ConsumeConcurrentlyStatus.RECONSUME_LATER;
        });
        consumer.start();
        until(() -> got.messages.size() == 2, got::bodies);
        equal(1, got.messages.get(1).getReconsumeTimes());
        equal(topic, got.messages.get(1).getTopic());
        Kit.Got dead = new Kit.Got();
        DefaultMQPushConsumer letters = consumer(name("group"));
        letters.subscribe("%DLQ%" + group, "*");
        letters.registerMessageListener(dead.listener());
        letters.start();
        dead.exactly(Arrays.asList("refuse me"));
    }

    public static void aBroadcastReachesEveryConsumer() throws Exception {
        String topic = name("broadcast");
        String group = name("group");
        DefaultMQProducer producer = producer();
        producer.send(message(topic, "first"));
        List<Kit.Got> all = Arrays.asList(new Kit.Got(), new Kit.Got());
        for (Kit.Got got : all) {
            DefaultMQPushConsumer consumer = consumer(group);
            Kit.broadcasting(consumer);
            consumer.subscribe(topic, "*");
            consumer.registerMessageListener(got.listener());
            consumer.start();
        }
        Thread.sleep(2000);
        for (String body : series("m", 10)) {
            producer.send(message(topic, body));
        }
        for (Kit.Got got : all) {
            until(() -> got.bodies().containsAll(series("m", 10)), got::bodies);
        }
    }

    public static void twoConsumersShareTheQueues() throws Exception {
        String topic = name("share");
        String group = name("group");
        DefaultMQProducer producer = producer();
        producer.send(message(topic, "first"));
        List<Kit.Got> all = Arrays.asList(new Kit.Got(), new Kit.Got());
        List<DefaultMQPushConsumer> consumers = new ArrayList<>();
        for (Kit.Got got : all) {
            DefaultMQPushConsumer consumer = consumer(group);
            consumer.subscribe(topic, "*");
            consumer.registerMessageListener(got.listener());
            consumer.start();
            consumers.add(consumer);
        }
        until(() -> all.get(0).messages.size() + all.get(1).messages.size() > 0, () -> "the first");
        Thread.sleep(3000);
        for (String body : series("m", 80)) {
            producer.send(message(topic, body));
        }
        until(() -> all.get(0).messages.size() + all.get(1).messages.size() >= 81, () -> all.get(0).messages.size() + " and " + all.get(1).messages.size());
        Kit.check(all.stream().allMatch(got -> got.messages.size() > 5), "not shared: " + all.stream().map(got -> got.messages.size()).collect(Collectors.toList()));
        // What one leaves the other takes at once.
        consumers.get(0).shutdown();
        long begun = System.currentTimeMillis();
        for (String body : series("n", 40)) {
            producer.send(message(topic, body));
        }
        until(() -> all.get(1).bodies().containsAll(series("n", 40)), () -> {
            Map<Integer, Long> queues = all.get(1).messages.stream().filter(m -> Kit.body(m).startsWith("n "))
                .collect(Collectors.groupingBy(MessageExt::getQueueId, Collectors.counting()));
            return "messages by queue of the one that is left: " + queues + ", of the other: " + all.get(0).bodies().stream().filter(b -> b.startsWith("n ")).count();
        });
        Kit.check(System.currentTimeMillis() - begun < 40_000, "the rebalance took " + (System.currentTimeMillis() - begun) + " ms");
    }

    @SuppressWarnings("deprecation")
    public static void thePullConsumerReadsAndCommits() throws Exception {
        String topic = name("pull");
        DefaultMQProducer producer = producer();
        for (String body : series("m", 20)) {
            producer.send(message(topic, body));
        }
        DefaultMQPullConsumer consumer = new DefaultMQPullConsumer(name("group"));
        consumer.setNamesrvAddr(Kit.ADDRESS);
        consumer.setInstanceName(name("instance"));
        consumer.start();
        closing(consumer::shutdown);
        List<String> bodies = new ArrayList<>();
        for (MessageQueue queue : consumer.fetchSubscribeMessageQueues(topic)) {
            long offset = 0;
            for (;;) {
                PullResult result = consumer.pull(queue, "*", offset, 32);
                if (result.getPullStatus() != PullStatus.FOUND) {
                    break;
                }
                result.getMsgFoundList().forEach(message -> bodies.add(Kit.body(message)));
                offset = result.getNextBeginOffset();
            }
            equal(offset, consumer.maxOffset(queue));
            equal(0, consumer.minOffset(queue));
            equal(offset, consumer.searchOffset(queue, System.currentTimeMillis() + 60_000));
        }
        equal(Kit.sorted(series("m", 20)), Kit.sorted(bodies));
    }

    public static void transactionsEndAsTheProducerSays() throws Exception {
        String topic = name("transaction");
        AtomicInteger checks = new AtomicInteger();
        TransactionMQProducer producer = new TransactionMQProducer(name("producers"));
        producer.setTransactionListener(new TransactionListener() {
            @Override
            public LocalTransactionState executeLocalTransaction(Message message, Object argument) {
                return (LocalTransactionState) argument;
            }

            @Override
            public LocalTransactionState checkLocalTransaction(MessageExt message) {
                checks.incrementAndGet();
                return Kit.body(message).endsWith("commit") ? LocalTransactionState.COMMIT_MESSAGE : LocalTransactionState.ROLLBACK_MESSAGE;
            }
        });
        Kit.start(producer);
        producer.sendMessageInTransaction(message(topic, "commit"), LocalTransactionState.COMMIT_MESSAGE);
        producer.sendMessageInTransaction(message(topic, "rollback"), LocalTransactionState.ROLLBACK_MESSAGE);
        producer.sendMessageInTransaction(message(topic, "later commit"), LocalTransactionState.UNKNOW);
        producer.sendMessageInTransaction(message(topic, "later rollback"), LocalTransactionState.UNKNOW);
        Kit.Got got = new Kit.Got();
        DefaultMQPushConsumer consumer = consumer(name("group"));
        consumer.subscribe(topic, "*");
        consumer.registerMessageListener(got.listener());
        consumer.start();
        until(() -> checks.get() >= 2 && got.messages.size() >= 2, () -> checks + " checks, " + got.bodies());
        got.exactly(Arrays.asList("commit", "later commit"));
    }

    public static void queriesByIdAndKeyFindTheMessage() throws Exception {
        String topic = name("query");
        String key = name("key");
        DefaultMQProducer producer = producer();
        Message message = message(topic, "find me");
        message.setKeys(key);
        SendResult result = producer.send(message);
        until(() -> {
            try {
                return producer.queryMessage(topic, key, 32, 0, Long.MAX_VALUE).getMessageList().size() == 1;
            } catch (Exception notYet) {
                return false;
            }
        }, () -> key);
        equal("find me", Kit.body(producer.viewMessage(topic, result.getOffsetMsgId())));
        equal("find me", Kit.body(producer.viewMessage(topic, result.getMsgId())));
    }

    public static void theVipChannelWorks() throws Exception {
        String topic = name("vip");
        DefaultMQProducer producer = new DefaultMQProducer(name("producers"));
        producer.setVipChannelEnabled(true);
        Kit.start(producer);
        for (String body : series("m", 10)) {
            producer.send(message(topic, body));
        }
        Kit.Got got = new Kit.Got();
        DefaultMQPushConsumer consumer = consumer(name("group"));
        consumer.setVipChannelEnabled(true);
        consumer.subscribe(topic, "*");
        consumer.registerMessageListener(got.listener());
        consumer.start();
        got.exactly(series("m", 10));
    }

    public static void aGroupGoesOnWhereItStopped() throws Exception {
        String topic = name("resume");
        String group = name("group");
        DefaultMQProducer producer = producer();
        for (String word : Arrays.asList("one", "two", "three")) {
            for (String body : series(word, 10)) {
                producer.send(message(topic, body));
            }
            Kit.Got got = new Kit.Got();
            DefaultMQPushConsumer consumer = consumer(group);
            consumer.subscribe(topic, "*");
            consumer.registerMessageListener(got.listener());
            consumer.start();
            got.exactly(series(word, 10));
            consumer.shutdown();
        }
    }
}
