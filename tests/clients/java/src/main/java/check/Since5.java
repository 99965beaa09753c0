package check;

import static check.Kit.equal;
import static check.Kit.message;
import static check.Kit.name;
import static check.Kit.producer;
import static check.Kit.series;
import static check.Kit.until;

import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Set;
import java.util.stream.Collectors;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageRequestMode;
import org.apache.rocketmq.tools.admin.DefaultMQAdminExt;

/** Timers of any delay, POP consumers and consumers that the broker assigns: clients 5.x. */
public final class Since5 {
    private Since5() {
    }

    public static void aTimerOfAnyDelayComesWhenItIsDue() throws Exception {
        String topic = name("timer");
        DefaultMQProducer producer = producer();
        producer.send(message(topic, "first"));
        Kit.Got got = new Kit.Got();
        DefaultMQPushConsumer consumer = Kit.consumer(name("group"));
        consumer.subscribe(topic, "*");
        consumer.registerMessageListener(got.listener());
        consumer.start();
        until(() -> got.messages.size() == 1, got::bodies);
        Message late = message(topic, "late");
        late.setDelayTimeMs(3300);
        long begun = System.currentTimeMillis();
        producer.send(late);
        until(() -> got.messages.size() == 2, got::bodies);
        long took = got.times.get(1) - begun;
        Kit.check(took > 2200 && took < 6000, took + " ms");
    }

    public static void popConsumersShareAQueueAndGetARefusedMessageAgain() throws Exception {
        String topic = name("pop");
        String group = name("group");
        DefaultMQAdminExt admin = new DefaultMQAdminExt();
        admin.setNamesrvAddr(Kit.ADDRESS);
        admin.setInstanceName(name("instance"));
        admin.start();
        Kit.closing(admin::shutdown);
        Set<String> brokers = admin.examineBrokerClusterInfo().getBrokerAddrTable().values().stream()
            .flatMap(data -> data.getBrokerAddrs().values().stream()).collect(Collectors.toSet());
        DefaultMQProducer producer = producer();
        producer.send(message(topic, "first"));
        for (String broker : brokers) {
            admin.setMessageRequestMode(broker, topic, group, MessageRequestMode.POP, 8, 3000);
        }
        List<Kit.Got> all = Arrays.asList(new Kit.Got(), new Kit.Got());
        for (Kit.Got got : all) {
            DefaultMQPushConsumer consumer = Kit.consumer(group);
            consumer.setClientRebalance(false);
            consumer.setPopInvisibleTime(10_000);
            consumer.subscribe(topic, "*");
            consumer.registerMessageListener((MessageListenerConcurrently) (batch, context) -> {
                got.add(batch);
                boolean refuse = batch.stream().anyMatch(m -> Kit.body(m).equals("m 7") && m.getReconsumeTimes() == 0);
                return refuse ? ConsumeConcurrentlyStatus.RECONSUME_LATER : ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
            });
            consumer.start();
        }
        for (String body : series("m", 40)) {
            producer.send(message(topic, body));
        }
        until(() -> all.stream().mapToInt(got -> got.messages.size()).sum() >= 42, () -> all.stream().map(Kit.Got::bodies).collect(Collectors.toList()));
        List<String> bodies = all.stream().flatMap(got -> got.bodies().stream()).collect(Collectors.toList());
        Kit.check(bodies.containsAll(series("m", 40)), bodies);
        equal(2, Collections.frequency(bodies, "m 7"));
    }
}
