package sample;

import java.util.Map;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.springframework.boot.SpringApplication;
import org.springframework.boot.autoconfigure.SpringBootApplication;

/** Sends in every way that RocketMQTemplate has, listens in every way that its annotations have, and checks what came. */
@SpringBootApplication
public class Application {
    static final String[] TOPICS = {"concurrent", "orderly", "retry", "tagged", "request", "transaction", "pull", "said", "shouted"};

    public static void main(String[] arguments) throws Exception {
        if (System.getProperty("sample.run") == null) {
            System.setProperty("sample.run", "spring-" + System.currentTimeMillis());
        }
        // A listener of a topic that is made later would look for it only every 30 seconds.
        String address = System.getenv().getOrDefault("NAMESRV_ADDR", "127.0.0.1:9876");
        DefaultMQProducer maker = new DefaultMQProducer("topics");
        maker.setNamesrvAddr(address);
        maker.start();
        for (String topic : TOPICS) {
            maker.createTopic("TBW102", System.getProperty("sample.run") + "-" + topic, 4, Map.of());
        }
        maker.shutdown();
        System.exit(SpringApplication.exit(SpringApplication.run(Application.class, arguments)));
    }
}
