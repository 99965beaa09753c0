package check;

import static check.Kit.closing;
import static check.Kit.consumer;
import static check.Kit.equal;
import static check.Kit.message;
import static check.Kit.name;
import static check.Kit.producer;
import static check.Kit.series;
import static check.Kit.until;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.stream.Collectors;
import org.apache.rocketmq.client.consumer.DefaultLitePullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.consumer.rebalance.AllocateMessageQueueAveragely;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.utils.MessageUtil;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;

/** Lite pull, request and reply, namespaces and message trace: clients 4.7 and newer. */
public final class Since47 {
    private Since47() {
    }

    public static void theLitePullConsumerSubscribesPollsAndGoesOn() throws Exception {
        String topic = name("lite");
        String group = name("group");
        DefaultMQProducer producer = producer();
        for (String word : Arrays.asList("one", "two")) {
            for (String body : series(word, 40)) {
                producer.send(message(topic, body));
            }
            DefaultLitePullConsumer consumer = new DefaultLitePullConsumer(group);
            consumer.setNamesrvAddr(Kit.ADDRESS);
            consumer.setInstanceName(name("instance"));
            consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
            consumer.subscribe(topic, "*");
            consumer.start();
            closing(consumer::shutdown);
            List<String> bodies = new ArrayList<>();
            until(() -> {
                consumer.poll(500).forEach(found -> bodies.add(Kit.body(found)));
                return bodies.size() >= 40;
            }, () -> bodies);
            consumer.commitSync();
            consumer.shutdown();
            equal(Kit.sorted(series(word, 40)), Kit.sorted(bodies));
        }
    }

    public static void aRequestGetsItsReply() throws Exception {
        if (System.getProperty("check.version", "").matches("5\\.[0-4]\\..*")) {
            throw new Kit.Skipped("this client gives up when the request was sent (apache/rocketmq issues 6726, 9319)");
        }
        String topic = name("request");
        DefaultMQProducer producer = producer();
        producer.send(message(topic, "warm up"));
        DefaultMQProducer replies = producer();
        DefaultMQPushConsumer consumer = consumer(name("group"));
        consumer.subscribe(topic, "*");
        consumer.registerMessageListener((MessageListenerConcurrently) (batch, context) -> {
            for (MessageExt request : batch) {
                if (Kit.body(request).equals("warm up")) {
                    continue;
                }
                try {
                    replies.send(MessageUtil.createReplyMessage(request, ("reply to " + Kit.body(request)).getBytes(StandardCharsets.UTF_8)));
                } catch (Exception problem) {
                    problem.printStackTrace();
                }
            }
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        consumer.start();
        for (String body : series("q", 5)) {
            Message reply = producer.request(message(topic, body), 30_000);
            equal("reply to " + body, new String(reply.getBody(), StandardCharsets.UTF_8));
        }
    }

    @SuppressWarnings("deprecation")
    public static void aNamespaceKeepsTopicsApart() throws Exception {
        String topic = name("space");
        String group = name("group");
        for (String space : Arrays.asList("INST_one", "INST_two")) {
            DefaultMQProducer producer = new DefaultMQProducer(name("producers"));
            producer.setNamespace(space);
            Kit.start(producer);
            for (String body : series(space, 10)) {
                producer.send(message(topic, body));
            }
        }
        for (String space : Arrays.asList("INST_one", "INST_two")) {
            Kit.Got got = new Kit.Got();
            DefaultMQPushConsumer consumer = consumer(group);
            consumer.setNamespace(space);
            consumer.subscribe(topic, "*");
            consumer.registerMessageListener(got.listener());
            consumer.start();
            got.exactly(series(space, 10));
            equal(topic, got.messages.get(0).getTopic());
        }
    }

    public static void theTraceOfAMessageIsStored() throws Exception {
        String topic = name("trace");
        DefaultMQProducer producer = new DefaultMQProducer(name("producers"), null, true, null);
        Kit.start(producer);
        List<String> ids = new ArrayList<>();
        for (String body : series("m", 5)) {
            SendResult result = producer.send(message(topic, body));
            ids.add(result.getMsgId());
        }
        Kit.Got got = new Kit.Got();
        DefaultMQPushConsumer consumer = new DefaultMQPushConsumer(name("group"), null, new AllocateMessageQueueAveragely(), true, null);
        consumer.setNamesrvAddr(Kit.ADDRESS);
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.subscribe(topic, "*");
        consumer.registerMessageListener(got.listener());
        consumer.start();
        closing(consumer::shutdown);
        got.exactly(series("m", 5));
        // The trace goes out by itself a little later, and its topic is made by it.
        Thread.sleep(6000);
        Kit.Got traces = new Kit.Got();
        DefaultMQPushConsumer reader = consumer(name("group"));
        reader.subscribe("RMQ_SYS_TRACE_TOPIC", "*");
        reader.registerMessageListener(traces.listener());
        reader.start();
        until(() -> {
            String all = traces.bodies().stream().collect(Collectors.joining("\n"));
            return ids.stream().allMatch(id -> all.contains("Pub") && all.contains("SubAfter") && all.contains(id));
        }, () -> traces.messages.size() + " traces");
    }
}
