package sample;

import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.locks.LockSupport;
import java.util.function.Supplier;
import java.util.stream.IntStream;
import org.apache.rocketmq.client.producer.SendCallback;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.SendStatus;
import org.apache.rocketmq.spring.core.RocketMQLocalTransactionState;
import org.apache.rocketmq.spring.core.RocketMQTemplate;
import org.apache.rocketmq.spring.support.RocketMQHeaders;
import org.springframework.beans.factory.annotation.Value;
import org.springframework.boot.CommandLineRunner;
import org.springframework.boot.ExitCodeGenerator;
import org.springframework.cloud.stream.function.StreamBridge;
import org.springframework.messaging.Message;
import org.springframework.messaging.support.MessageBuilder;
import org.springframework.stereotype.Component;

/** Prints one line for each way to send; the exit code is 1 if one of them failed. */
@Component
public class Checks implements CommandLineRunner, ExitCodeGenerator {
    private interface Check {
        void run() throws Exception;
    }

    private static final long WAIT_MS = 1000L * Integer.getInteger("check.wait", 60);
    private final RocketMQTemplate template;
    private final StreamBridge bridge;
    private final Inbox inbox;
    private final String run;
    private int failed;

    public Checks(RocketMQTemplate template, StreamBridge bridge, Inbox inbox, @Value("${sample.run}") String run) {
        this.template = template;
        this.bridge = bridge;
        this.inbox = inbox;
        this.run = run;
    }

    @Override
    public int getExitCode() {
        return failed == 0 ? 0 : 1;
    }

    @Override
    public void run(String... arguments) {
        check("syncSend reaches a concurrent and a broadcast listener", this::sync);
        check("asyncSend and sendOneWay arrive", this::asyncAndOneWay);
        check("a batch arrives whole", this::batch);
        check("syncSendOrderly keeps the order of a key", this::orderly);
        check("delayed messages come when they are due", this::delayed);
        check("a message that a listener threw for comes again", this::retry);
        check("tag and SQL92 selectors", this::filters);
        check("sendAndReceive gets its reply", this::request);
        check("transactions commit, roll back and are checked", this::transactions);
        check("receive pulls", this::pull);
        check("Spring Cloud Stream functions", this::stream);
    }

    private void check(String name, Check check) {
        long begun = System.nanoTime();
        try {
            check.run();
            System.out.printf("passed  spring: %s, %.1f s%n", name, (System.nanoTime() - begun) / 1e9);
        } catch (Throwable problem) {
            failed++;
            problem.printStackTrace();
            System.out.printf("FAILED  spring: %s: %s%n", name, problem);
        }
    }

    private String topic(String name) {
        return run + "-" + name;
    }

    private static List<String> series(String word, int count) {
        return IntStream.range(0, count).mapToObj(n -> word + " " + n).toList();
    }

    /** Waits while this process runs: time in which it was stopped does not count. */
    private static void until(Supplier<Boolean> condition, Supplier<Object> what) throws InterruptedException {
        long waited = 0;
        while (!condition.get()) {
            if (waited > WAIT_MS) {
                throw new AssertionError("not within " + WAIT_MS + " ms: " + what.get());
            }
            long begun = System.currentTimeMillis();
            Thread.sleep(20);
            waited += Math.min(System.currentTimeMillis() - begun, 200);
        }
    }

    private void exactly(String listener, String word, List<String> wanted) throws InterruptedException {
        until(() -> inbox.bodies(listener, body -> body.startsWith(word)).size() >= wanted.size(), () -> inbox.of(listener));
        List<String> found = inbox.bodies(listener, body -> body.startsWith(word)).stream().sorted().toList();
        if (!found.equals(wanted.stream().sorted().toList())) {
            throw new AssertionError("wanted " + wanted + ", found " + found);
        }
    }

    private static void sent(SendResult result) {
        if (result.getSendStatus() != SendStatus.SEND_OK) {
            throw new AssertionError(result.toString());
        }
    }

    /** A new broadcast listener begins at the end of each queue, once it has found the queue. */
    private void awaitBroadcast() throws InterruptedException {
        int[] round = {0};
        until(() -> {
            String word = "round " + round[0]++ + ",";
            for (String body : series(word, 8)) {
                sent(template.syncSend(topic("concurrent"), body));
            }
            long begun = System.currentTimeMillis();
            while (inbox.bodies("broadcast", body -> body.startsWith(word)).size() < 8 && System.currentTimeMillis() < begun + 1000) {
                LockSupport.parkNanos(1_000_000);
            }
            return inbox.bodies("broadcast", body -> body.startsWith(word)).size() == 8;
        }, () -> inbox.of("broadcast"));
    }

    private void sync() throws Exception {
        awaitBroadcast();
        for (String body : series("sync", 20)) {
            sent(template.syncSend(topic("concurrent"), body));
        }
        template.convertAndSend(topic("concurrent"), "sync 20");
        exactly("concurrent", "sync", series("sync", 21));
        exactly("broadcast", "sync", series("sync", 21));
    }

    private void asyncAndOneWay() throws Exception {
        CountDownLatch done = new CountDownLatch(20);
        for (String body : series("async", 20)) {
            template.asyncSend(topic("concurrent"), body, new SendCallback() {
                @Override
                public void onSuccess(SendResult result) {
                    done.countDown();
                }

                @Override
                public void onException(Throwable problem) {
                    problem.printStackTrace();
                }
            });
        }
        for (String body : series("oneway", 20)) {
            template.sendOneWay(topic("concurrent"), body);
        }
        if (!done.await(30, TimeUnit.SECONDS)) {
            throw new AssertionError(done.getCount() + " sends were not answered");
        }
        exactly("concurrent", "async", series("async", 20));
        exactly("concurrent", "oneway", series("oneway", 20));
    }

    private void batch() throws Exception {
        List<Message<String>> batch = new ArrayList<>();
        series("batch", 30).forEach(body -> batch.add(MessageBuilder.withPayload(body).build()));
        sent(template.syncSend(topic("concurrent"), batch));
        exactly("concurrent", "batch", series("batch", 30));
    }

    private void orderly() throws Exception {
        for (int n = 0; n < 90; n++) {
            sent(template.syncSendOrderly(topic("orderly"), String.format("%d-%03d", n % 3, n), "key " + n % 3));
        }
        until(() -> inbox.of("orderly").size() >= 90, () -> inbox.of("orderly").size());
        for (String key : List.of("0-", "1-", "2-")) {
            List<String> mine = inbox.bodies("orderly", body -> body.startsWith(key));
            if (mine.size() != 30 || !mine.equals(mine.stream().sorted(Comparator.naturalOrder()).toList())) {
                throw new AssertionError(mine.toString());
            }
        }
    }

    private void delayed() throws Exception {
        long begun = System.currentTimeMillis();
        sent(template.syncSend(topic("concurrent"), MessageBuilder.withPayload("level 0").build(), 3000, 2));
        sent(template.syncSendDelayTimeMills(topic("concurrent"), "timer 0", 3000));
        exactly("concurrent", "timer", List.of("timer 0"));
        exactly("concurrent", "level", List.of("level 0"));
        for (Inbox.Entry entry : inbox.of("concurrent")) {
            long took = entry.atMs() - begun;
            if (entry.body().startsWith("level") && (took < 4900 || took > 9000) || entry.body().startsWith("timer") && (took < 1900 || took > 7000)) {
                throw new AssertionError(entry.body() + " after " + took + " ms");
            }
        }
    }

    private void retry() throws Exception {
        sent(template.syncSend(topic("retry"), "refused"));
        exactly("retry", "refused", List.of("refused 0", "refused 1"));
    }

    private void filters() throws Exception {
        for (int n = 0; n < 10; n++) {
            String tag = n % 2 == 0 ? "red" : "blue";
            Message<String> message = MessageBuilder.withPayload("m " + n).setHeader("number", n).setHeader(RocketMQHeaders.KEYS, "k" + n).build();
            sent(template.syncSend(topic("tagged") + ":" + tag, message));
        }
        exactly("tagged", "m", List.of("m 0", "m 2", "m 4", "m 6", "m 8"));
        exactly("selected", "m", List.of("m 3", "m 4", "m 5"));
    }

    private void request() {
        for (String body : series("q", 5)) {
            String reply = template.sendAndReceive(topic("request"), body, String.class, 30_000);
            if (!reply.equals("reply to " + body)) {
                throw new AssertionError(reply);
            }
        }
    }

    private void transactions() throws Exception {
        for (RocketMQLocalTransactionState state : RocketMQLocalTransactionState.values()) {
            sent(template.sendMessageInTransaction(topic("transaction"), MessageBuilder.withPayload("t " + state).build(), state));
        }
        exactly("transaction", "t", List.of("t COMMIT", "t UNKNOWN"));
        if (Listeners.Transactions.CHECKS.get() == 0) {
            throw new AssertionError("the broker did not ask");
        }
    }

    private void pull() throws Exception {
        for (String body : series("p", 10)) {
            sent(template.syncSend(topic("pull"), body));
        }
        List<String> got = new ArrayList<>();
        until(() -> {
            got.addAll(template.receive(String.class, 1000));
            return got.size() >= 10;
        }, () -> got);
        if (!got.stream().sorted().toList().equals(series("p", 10))) {
            throw new AssertionError(got.toString());
        }
    }

    private void stream() throws Exception {
        for (String body : series("stream", 10)) {
            bridge.send("say-out-0", body);
        }
        exactly("heard", "STREAM", series("STREAM", 10));
    }
}
