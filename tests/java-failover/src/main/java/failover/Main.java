package failover;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.concurrent.ConcurrentHashMap;
import org.apache.rocketmq.client.consumer.DefaultMQPullConsumer;
import org.apache.rocketmq.client.consumer.PullResult;
import org.apache.rocketmq.client.consumer.PullStatus;
import org.apache.rocketmq.client.hook.SendMessageContext;
import org.apache.rocketmq.client.hook.SendMessageHook;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.SendStatus;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;

/**
 * A producer as RocketMQ ships it, with a ledger outside of the brokers, and the check of that ledger.
 *
 * <p>produce NAMESRV TOPIC DIRECTORY THREADS: sends until DIRECTORY/stop is there. A message that fails with all of the client's own
 * retries is sent again under the same key, as an application does. check NAMESRV TOPIC DIRECTORY: reads everything and compares;
 * DIRECTORY/kills has the time of each kill, milliseconds since 1970.
 */
public final class Main {
    private static final int QUEUES = 4;

    private Main() {
    }

    public static void main(String[] args) throws Exception {
        switch (args[0]) {
            case "produce" -> produce(args[1], args[2], Path.of(args[3]), Integer.parseInt(args[4]));
            case "check" -> System.exit(check(args[1], args[2], Path.of(args[3])) ? 0 : 1);
            default -> throw new IllegalArgumentException(args[0]);
        }
    }

    /** Lines that are on the disk before the next message is sent. */
    private static final class Ledger implements AutoCloseable {
        private final FileChannel file;

        Ledger(Path path) throws IOException {
            file = FileChannel.open(path, StandardOpenOption.CREATE, StandardOpenOption.WRITE, StandardOpenOption.APPEND);
        }

        void write(String line) throws IOException {
            ByteBuffer bytes = ByteBuffer.wrap((line + "\n").getBytes(StandardCharsets.UTF_8));
            while (bytes.hasRemaining()) {
                file.write(bytes);
            }
            file.force(false);
        }

        @Override
        public void close() throws IOException {
            file.close();
        }
    }

    private static void produce(String namesrv, String topic, Path directory, int threads) throws Exception {
        DefaultMQProducer producer = new DefaultMQProducer("java-failover-producer");
        producer.setNamesrvAddr(namesrv);
        String poll = System.getProperty("poll");
        if (poll != null && !poll.isEmpty()) {
            producer.setPollNameServerInterval(Integer.parseInt(poll));
        }
        // What the client really sends, its own retries included.
        ThreadLocal<int[]> attempts = ThreadLocal.withInitial(() -> new int[1]);
        producer.start();
        producer.getDefaultMQProducerImpl().registerSendMessageHook(new SendMessageHook() {
            @Override
            public String hookName() {
                return "attempts";
            }

            @Override
            public void sendMessageBefore(SendMessageContext context) {
                attempts.get()[0]++;
            }

            @Override
            public void sendMessageAfter(SendMessageContext context) {
            }
        });
        producer.createTopic("TBW102", topic, QUEUES, new HashMap<>());
        Map<String, Integer> failures = new ConcurrentHashMap<>();
        List<Thread> all = new ArrayList<>();
        for (int number = 0; number < threads; number++) {
            int own = number;
            Thread thread = new Thread(() -> {
                try (Ledger acks = new Ledger(directory.resolve("acks-" + own)); Ledger sent = new Ledger(directory.resolve("sent-" + own))) {
                    for (int id = 0; !Files.exists(directory.resolve("stop")); id++) {
                        String key = own + "-" + id;
                        attempts.get()[0] = 0;
                        while (true) {
                            Message message = new Message(topic, "", key, (key + " " + "x".repeat(id % 700)).getBytes(StandardCharsets.UTF_8));
                            String failure;
                            try {
                                SendResult result = producer.send(message);
                                if (result.getSendStatus() == SendStatus.SEND_OK) {
                                    MessageQueue queue = result.getMessageQueue();
                                    acks.write(System.currentTimeMillis() + " " + key + " " + result.getMsgId() + " " + queue.getBrokerName() + " "
                                        + queue.getQueueId() + " " + result.getQueueOffset());
                                    break;
                                }
                                failure = result.getSendStatus().toString();
                            } catch (Exception exception) {
                                String text = String.valueOf(exception.getMessage());
                                failure = exception.getClass().getSimpleName() + ": " + text.substring(0, Math.min(60, text.length())).replace('\n', ' ');
                            }
                            failures.merge(failure.replaceAll("[0-9]+", "N"), 1, Integer::sum);
                            if (Files.exists(directory.resolve("stop"))) {
                                break;
                            }
                            Thread.sleep(20);
                        }
                        if (attempts.get()[0] > 1) {
                            sent.write(key + " " + attempts.get()[0]);
                        }
                        Thread.sleep(2);
                    }
                } catch (Exception exception) {
                    exception.printStackTrace();
                }
            });
            thread.start();
            all.add(thread);
        }
        for (Thread thread : all) {
            thread.join();
        }
        new TreeMap<>(failures).forEach((what, count) -> System.out.println(count + " times " + what));
        producer.shutdown();
    }

    private record Ack(long at, String key, String msgId, String broker, int queue, long offset) {
        int thread() {
            return Integer.parseInt(key.substring(0, key.indexOf('-')));
        }

        int number() {
            return Integer.parseInt(key.substring(key.indexOf('-') + 1));
        }
    }

    private static boolean check(String namesrv, String topic, Path directory) throws Exception {
        List<Ack> acks = new ArrayList<>();
        Map<String, Integer> attempts = new HashMap<>();
        try (var files = Files.list(directory)) {
            for (Path path : files.toList()) {
                String name = path.getFileName().toString();
                for (String line : name.startsWith("acks-") || name.startsWith("sent-") ? Files.readAllLines(path) : List.<String>of()) {
                    String[] words = line.split(" ");
                    if (name.startsWith("sent-")) {
                        attempts.put(words[0], Integer.parseInt(words[1]));
                    } else {
                        acks.add(new Ack(Long.parseLong(words[0]), words[1], words[2], words[3], Integer.parseInt(words[4]), Long.parseLong(words[5])));
                    }
                }
            }
        }
        Map<Integer, List<MessageExt>> stored = read(namesrv, topic);
        int lost = 0;
        int extra = 0;
        int resent = 0;
        int unordered = 0;
        int records = 0;
        Map<String, Integer> copies = new HashMap<>();
        for (List<MessageExt> queue : stored.values()) {
            for (int offset = 0; offset < queue.size(); offset++) {
                MessageExt message = queue.get(offset);
                if (message.getQueueOffset() != offset) {
                    System.out.println("queue " + message.getQueueId() + " has offset " + message.getQueueOffset() + " at " + offset);
                    lost++;
                }
                copies.merge(message.getKeys(), 1, Integer::sum);
                records++;
            }
        }
        for (Map.Entry<String, Integer> copy : copies.entrySet()) {
            if (copy.getValue() > attempts.getOrDefault(copy.getKey(), 1)) {
                System.out.println(copy.getKey() + " is there " + copy.getValue() + " times, and was sent " + attempts.getOrDefault(copy.getKey(), 1) + " times");
                extra++;
            } else if (copy.getValue() > 1) {
                resent++;
            }
        }
        Set<String> places = new HashSet<>();
        acks.sort((one, other) -> Long.compare(one.offset, other.offset));
        Map<String, Integer> last = new HashMap<>();
        for (Ack ack : acks) {
            List<MessageExt> queue = stored.getOrDefault(ack.queue, List.of());
            boolean isThere = ack.offset < queue.size() && queue.get((int) ack.offset).getKeys().equals(ack.key)
                && queue.get((int) ack.offset).getMsgId().equals(ack.msgId)
                && new String(queue.get((int) ack.offset).getBody(), StandardCharsets.UTF_8).startsWith(ack.key + " ");
            if (!isThere || !places.add(ack.queue + "/" + ack.offset)) {
                System.out.println("lost: " + ack);
                lost++;
            }
            Integer before = last.put(ack.queue + "/" + ack.thread(), ack.number());
            if (before != null && before >= ack.number()) {
                System.out.println("out of order: " + ack + " behind " + before);
                unordered++;
            }
        }
        System.out.printf("%d acknowledged, %d stored: %d lost, %d there more often than sent, %d there more than once as the client sent them again, %d out of order%n",
            acks.size(), records, lost, extra, resent, unordered);
        silences(acks, directory.resolve("kills"));
        return lost == 0 && extra == 0 && unordered == 0 && !acks.isEmpty();
    }

    /** The longest time between two successes from each kill to the next one. */
    private static void silences(List<Ack> acks, Path path) throws IOException {
        if (!Files.exists(path)) {
            return;
        }
        long[] kills = Files.readAllLines(path).stream().mapToLong(Long::parseLong).sorted().toArray();
        long[] times = acks.stream().mapToLong(Ack::at).sorted().toArray();
        List<Long> silences = new ArrayList<>();
        for (int number = 0; number < kills.length; number++) {
            long end = number + 1 < kills.length ? kills[number + 1] : Long.MAX_VALUE;
            long longest = 0;
            int at = Arrays.binarySearch(times, kills[number]);
            for (int next = at < 0 ? -at - 1 : at; next > 0 && next < times.length && times[next - 1] < end; next++) {
                longest = Math.max(longest, times[next] - times[next - 1]);
            }
            silences.add(longest);
        }
        Collections.sort(silences);
        if (!silences.isEmpty()) {
            System.out.printf("%d kills; milliseconds without a success: p50 %d, p90 %d, p99 %d, max %d%n", silences.size(), silences.get(silences.size() / 2),
                silences.get(silences.size() * 9 / 10), silences.get(silences.size() * 99 / 100), silences.get(silences.size() - 1));
        }
    }

    private static Map<Integer, List<MessageExt>> read(String namesrv, String topic) throws Exception {
        DefaultMQPullConsumer consumer = new DefaultMQPullConsumer("java-failover-reader");
        consumer.setNamesrvAddr(namesrv);
        consumer.start();
        Map<Integer, List<MessageExt>> all = new HashMap<>();
        for (MessageQueue queue : consumer.fetchSubscribeMessageQueues(topic)) {
            List<MessageExt> found = new ArrayList<>();
            long end = consumer.maxOffset(queue);
            long next = consumer.minOffset(queue);
            while (next < end) {
                PullResult result = consumer.pull(queue, "*", next, 32);
                if (result.getPullStatus() == PullStatus.FOUND) {
                    found.addAll(result.getMsgFoundList());
                }
                next = result.getNextBeginOffset();
            }
            all.put(queue.getQueueId(), found);
        }
        consumer.shutdown();
        return all;
    }
}
