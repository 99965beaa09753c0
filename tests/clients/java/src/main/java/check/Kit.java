package check;

import java.lang.reflect.Method;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;

/** Names, clients that are closed after their check, and waiting. Only what client 4.3 has. */
final class Kit {
    static final String ADDRESS = System.getenv("NAMESRV_ADDR");
    static final long WAIT_MS = 1000L * Integer.getInteger("check.wait", 60);
    private static final String RUN = System.currentTimeMillis() + "-" + (System.nanoTime() & 0xffff);
    private static final AtomicInteger NEXT = new AtomicInteger();
    private static final List<Runnable> OPEN = new ArrayList<>();

    private Kit() {
    }

    /** Thrown by a check that this version of the client cannot pass anywhere. */
    static final class Skipped extends RuntimeException {
        Skipped(String why) {
            super(why);
        }
    }

    static String name(String prefix) {
        return "java-" + prefix + "-" + RUN + "-" + NEXT.incrementAndGet();
    }

    static void closing(Runnable close) {
        OPEN.add(close);
    }

    static void closeAll() {
        Collections.reverse(OPEN);
        for (Runnable close : OPEN) {
            try {
                close.run();
            } catch (RuntimeException ignored) {
                // The check has its verdict already.
            }
        }
        OPEN.clear();
    }

    static <P extends DefaultMQProducer> P start(P producer) throws Exception {
        producer.setNamesrvAddr(ADDRESS);
        producer.setInstanceName(name("instance"));
        producer.setSendMsgTimeout(10_000);
        producer.start();
        closing(producer::shutdown);
        return producer;
    }

    static DefaultMQProducer producer() throws Exception {
        return start(new DefaultMQProducer(name("producers")));
    }

    static DefaultMQPushConsumer consumer(String group) {
        DefaultMQPushConsumer consumer = new DefaultMQPushConsumer(group);
        consumer.setNamesrvAddr(ADDRESS);
        consumer.setInstanceName(name("instance"));
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        closing(consumer::shutdown);
        return consumer;
    }

    /** What consumers got, in the order of arrival. */
    static final class Got {
        final List<MessageExt> messages = new CopyOnWriteArrayList<>();
        final List<Long> times = new CopyOnWriteArrayList<>();

        MessageListenerConcurrently listener() {
            return (batch, context) -> {
                add(batch);
                return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
            };
        }

        synchronized void add(List<MessageExt> batch) {
            for (MessageExt message : batch) {
                times.add(System.currentTimeMillis());
                messages.add(message);
            }
        }

        List<String> bodies() {
            return messages.stream().map(Kit::body).collect(Collectors.toList());
        }

        void exactly(List<String> wanted) throws Exception {
            until(() -> messages.size() >= wanted.size(), this::bodies);
            Thread.sleep(300);
            equal(sorted(wanted), sorted(bodies()));
        }
    }

    static List<String> sorted(List<String> some) {
        return some.stream().sorted().collect(Collectors.toList());
    }

    static Message message(String topic, String body) {
        return new Message(topic, "TagA", body.getBytes(StandardCharsets.UTF_8));
    }

    static String body(MessageExt message) {
        return new String(message.getBody(), StandardCharsets.UTF_8);
    }

    static List<String> series(String word, int count) {
        return IntStream.range(0, count).mapToObj(n -> word + " " + n).collect(Collectors.toList());
    }

    /** Waits while this process runs: time in which it was stopped does not count. */
    static void until(Callable<Boolean> condition, Callable<?> what) throws Exception {
        long waited = 0;
        while (!condition.call()) {
            if (waited > WAIT_MS) {
                throw new AssertionError("not within " + WAIT_MS + " ms: " + what.call());
            }
            long begun = System.currentTimeMillis();
            Thread.sleep(20);
            waited += Math.min(System.currentTimeMillis() - begun, 200);
        }
    }

    static void equal(Object wanted, Object found) {
        if (!String.valueOf(wanted).equals(String.valueOf(found))) {
            throw new AssertionError("wanted " + wanted + ", found " + found);
        }
    }

    static void check(boolean holds, Object what) {
        if (!holds) {
            throw new AssertionError(String.valueOf(what));
        }
    }

    /** MessageModel moved to another package in 5.x. */
    static void broadcasting(DefaultMQPushConsumer consumer) throws Exception {
        for (Method method : DefaultMQPushConsumer.class.getMethods()) {
            if (method.getName().equals("setMessageModel")) {
                for (Object model : method.getParameterTypes()[0].getEnumConstants()) {
                    if (model.toString().equals("BROADCASTING")) {
                        method.invoke(consumer, model);
                    }
                }
            }
        }
    }
}
