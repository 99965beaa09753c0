package check;

import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;

/** A consumer in a process of its own, to be killed: group, topic. */
public final class Member {
    private Member() {
    }

    public static void main(String[] arguments) throws Exception {
        DefaultMQPushConsumer consumer = Kit.consumer(arguments[0]);
        consumer.subscribe(arguments[1], "*");
        consumer.registerMessageListener(new Kit.Got().listener());
        consumer.start();
        Thread.sleep(600_000);
        Runtime.getRuntime().halt(1);
    }
}
