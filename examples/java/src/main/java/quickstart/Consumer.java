package quickstart;

import java.nio.charset.StandardCharsets;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.ConsumeOrderlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.consumer.listener.MessageListenerOrderly;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.MessageExt;

/**
 * Prints what Producer sends, from the first message on. Ends after -Dcount=N messages (16), or after -Dseconds=N (60)
 * with an error. With -Dorderly=true the queues are locked and their order is kept.
 */
public final class Consumer {
    public static void main(String[] args) throws Exception {
        CountDownLatch left = new CountDownLatch(Integer.getInteger("count", 16));
        DefaultMQPushConsumer consumer = new DefaultMQPushConsumer(System.getProperty("group", "quickstart-consumer"));
        consumer.setNamesrvAddr(Producer.NAME_SERVER);
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.subscribe(Producer.TOPIC, "*");
        if (Boolean.getBoolean("orderly")) {
            consumer.registerMessageListener((MessageListenerOrderly) (messages, context) -> {
                print(messages, left);
                return ConsumeOrderlyStatus.SUCCESS;
            });
        } else {
            consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
                print(messages, left);
                return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
            });
        }
        consumer.start();
        boolean complete = left.await(Integer.getInteger("seconds", 60), TimeUnit.SECONDS);
        consumer.shutdown(); // stores the consumer offsets
        if (!complete) {
            System.err.printf("%d messages did not come%n", left.getCount());
        }
        System.exit(complete ? 0 : 1); // the client leaves threads behind that Maven would wait for
    }

    private static void print(List<MessageExt> messages, CountDownLatch left) {
        for (MessageExt message : messages) {
            System.out.printf("queue %d offset %d: %s%n", message.getQueueId(), message.getQueueOffset(),
                new String(message.getBody(), StandardCharsets.UTF_8));
            left.countDown();
        }
    }

    private Consumer() {
    }
}
