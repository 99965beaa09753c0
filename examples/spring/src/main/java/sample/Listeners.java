package sample;

import java.util.concurrent.atomic.AtomicInteger;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.spring.annotation.ConsumeMode;
import org.apache.rocketmq.spring.annotation.MessageModel;
import org.apache.rocketmq.spring.annotation.RocketMQMessageListener;
import org.apache.rocketmq.spring.annotation.RocketMQTransactionListener;
import org.apache.rocketmq.spring.annotation.SelectorType;
import org.apache.rocketmq.spring.core.RocketMQListener;
import org.apache.rocketmq.spring.core.RocketMQLocalTransactionListener;
import org.apache.rocketmq.spring.core.RocketMQLocalTransactionState;
import org.apache.rocketmq.spring.core.RocketMQReplyListener;
import org.springframework.messaging.Message;
import org.springframework.stereotype.Component;

/** One listener of each kind. */
public class Listeners {
    private Listeners() {
    }

    @Component
    @RocketMQMessageListener(topic = "${sample.run}-concurrent", consumerGroup = "${sample.run}-g-concurrent")
    public static class Concurrent implements RocketMQListener<String> {
        private final Inbox inbox;

        public Concurrent(Inbox inbox) {
            this.inbox = inbox;
        }

        @Override
        public void onMessage(String body) {
            inbox.put("concurrent", body);
        }
    }

    @Component
    @RocketMQMessageListener(topic = "${sample.run}-concurrent", consumerGroup = "${sample.run}-g-broadcast", messageModel = MessageModel.BROADCASTING)
    public static class Broadcast implements RocketMQListener<String> {
        private final Inbox inbox;

        public Broadcast(Inbox inbox) {
            this.inbox = inbox;
        }

        @Override
        public void onMessage(String body) {
            inbox.put("broadcast", body);
        }
    }

    @Component
    @RocketMQMessageListener(topic = "${sample.run}-orderly", consumerGroup = "${sample.run}-g-orderly", consumeMode = ConsumeMode.ORDERLY)
    public static class Orderly implements RocketMQListener<MessageExt> {
        private final Inbox inbox;

        public Orderly(Inbox inbox) {
            this.inbox = inbox;
        }

        @Override
        public void onMessage(MessageExt message) {
            inbox.put("orderly", new String(message.getBody()));
        }
    }

    /** Throws for the first delivery: the message comes again after the delay of its level. */
    @Component
    @RocketMQMessageListener(topic = "${sample.run}-retry", consumerGroup = "${sample.run}-g-retry", delayLevelWhenNextConsume = 1)
    public static class Retry implements RocketMQListener<MessageExt> {
        private final Inbox inbox;

        public Retry(Inbox inbox) {
            this.inbox = inbox;
        }

        @Override
        public void onMessage(MessageExt message) {
            inbox.put("retry", new String(message.getBody()) + " " + message.getReconsumeTimes());
            if (message.getReconsumeTimes() == 0) {
                throw new IllegalStateException("again, please");
            }
        }
    }

    @Component
    @RocketMQMessageListener(topic = "${sample.run}-tagged", consumerGroup = "${sample.run}-g-tag", selectorExpression = "red || green")
    public static class Tagged implements RocketMQListener<String> {
        private final Inbox inbox;

        public Tagged(Inbox inbox) {
            this.inbox = inbox;
        }

        @Override
        public void onMessage(String body) {
            inbox.put("tagged", body);
        }
    }

    @Component
    @RocketMQMessageListener(topic = "${sample.run}-tagged", consumerGroup = "${sample.run}-g-sql", selectorType = SelectorType.SQL92,
        selectorExpression = "number BETWEEN 3 AND 5")
    public static class Selected implements RocketMQListener<String> {
        private final Inbox inbox;

        public Selected(Inbox inbox) {
            this.inbox = inbox;
        }

        @Override
        public void onMessage(String body) {
            inbox.put("selected", body);
        }
    }

    @Component
    @RocketMQMessageListener(topic = "${sample.run}-request", consumerGroup = "${sample.run}-g-request")
    public static class Replies implements RocketMQReplyListener<String, String> {
        @Override
        public String onMessage(String body) {
            return "reply to " + body;
        }
    }

    @Component
    @RocketMQMessageListener(topic = "${sample.run}-transaction", consumerGroup = "${sample.run}-g-transaction")
    public static class Committed implements RocketMQListener<String> {
        private final Inbox inbox;

        public Committed(Inbox inbox) {
            this.inbox = inbox;
        }

        @Override
        public void onMessage(String body) {
            inbox.put("transaction", body);
        }
    }

    /** The argument of the send says how its transaction ends; UNKNOWN lets the broker ask later. */
    @RocketMQTransactionListener
    public static class Transactions implements RocketMQLocalTransactionListener {
        static final AtomicInteger CHECKS = new AtomicInteger();

        @Override
        public RocketMQLocalTransactionState executeLocalTransaction(Message message, Object argument) {
            return (RocketMQLocalTransactionState) argument;
        }

        @Override
        public RocketMQLocalTransactionState checkLocalTransaction(Message message) {
            CHECKS.incrementAndGet();
            return RocketMQLocalTransactionState.COMMIT;
        }
    }
}
