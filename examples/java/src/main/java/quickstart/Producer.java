package quickstart;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.common.message.Message;

/** Sends ten messages one by one, five as a batch, and one without waiting. */
public final class Producer {
    static final String NAME_SERVER =
        System.getProperty("namesrv", System.getenv().getOrDefault("NAMESRV_ADDR", "127.0.0.1:9876"));
    static final String TOPIC = System.getProperty("topic", "quickstart");

    public static void main(String[] args) throws Exception {
        DefaultMQProducer producer = new DefaultMQProducer("quickstart-producer");
        producer.setNamesrvAddr(NAME_SERVER);
        producer.start();
        try {
            for (int number = 0; number < 10; number++) {
                SendResult result = producer.send(message("Hello RingMQ " + number));
                System.out.printf("%s %s queue %d offset %d%n", result.getSendStatus(), result.getMsgId(),
                    result.getMessageQueue().getQueueId(), result.getQueueOffset());
            }
            List<Message> batch = new ArrayList<>();
            for (int number = 0; number < 5; number++) {
                batch.add(message("Batch " + number));
            }
            SendResult result = producer.send(batch);
            System.out.printf("%s batch queue %d offset %d%n", result.getSendStatus(),
                result.getMessageQueue().getQueueId(), result.getQueueOffset());
            producer.sendOneway(message("Nobody waits for this one"));
        } finally {
            producer.shutdown();
        }
    }

    private static Message message(String text) {
        Message message = new Message(TOPIC, "greeting", "key-" + text.hashCode(), text.getBytes(StandardCharsets.UTF_8));
        message.putUserProperty("language", "Java");
        return message;
    }

    private Producer() {
    }
}
