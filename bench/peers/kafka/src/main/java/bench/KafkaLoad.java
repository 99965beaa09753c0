package bench;

import java.nio.ByteBuffer;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Base64;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.locks.LockSupport;
import org.HdrHistogram.Histogram;
import org.HdrHistogram.SynchronizedHistogram;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.ConsumerRecords;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/**
 * Load for Apache Kafka through its own client, in the terms of ringmq-bench: 1 KiB messages, one topic of four partitions,
 * latency from the moment a message was due. What it prints is described in bench/README.md.
 *
 * <pre>
 * publish    BOOTSTRAP TOPIC IN_FLIGHT WARM SECONDS   so many records are always on their way; the client makes batches of them
 * fill       (the same)                               publish, and the topic stays
 * end-to-end BOOTSTRAP TOPIC RATE WARM SECONDS        open loop, with a consumer beside it
 * pull       BOOTSTRAP TOPIC                          the whole topic once
 * </pre>
 *
 * A topic is made at the beginning of a run and deleted at its end, but for {@code fill} and the {@code pull} that follows it.
 */
public final class KafkaLoad {
    private static final int PARTITIONS = 4;
    private static final int BYTES = 1024;
    private static final long ANSWER_SECONDS_MAX = 10;

    private final String bootstrap;
    private final String topic;
    private final Histogram latencies = new SynchronizedHistogram(1, TimeUnit.HOURS.toNanos(1), 3);
    private final AtomicLong messages = new AtomicLong();
    private final AtomicLong errors = new AtomicLong();
    private long fromNs = Long.MAX_VALUE;
    private long untilNs = Long.MAX_VALUE;

    private KafkaLoad(String bootstrap, String topic) {
        this.bootstrap = bootstrap;
        this.topic = topic;
    }

    public static void main(String[] args) throws Exception {
        KafkaLoad load = new KafkaLoad(args[1], args[2]);
        switch (args[0]) {
            case "fill" -> load.publish(Integer.parseInt(args[3]), seconds(args[4]), seconds(args[5]));
            case "publish" -> load.publish(Integer.parseInt(args[3]), seconds(args[4]), seconds(args[5]));
            case "end-to-end" -> load.endToEnd(Double.parseDouble(args[3]), seconds(args[4]), seconds(args[5]));
            case "pull" -> load.pull();
            default -> throw new IllegalArgumentException(args[0]);
        }
        if (!args[0].equals("fill")) {
            load.deleteTopic();
        }
    }

    private static long seconds(String text) {
        return (long) (Double.parseDouble(text) * 1e9);
    }

    private static void say(String line) {
        System.out.println("ringmq-bench " + line);
        System.out.flush();
    }

    private void result(String kind, double seconds) {
        ByteBuffer bytes = ByteBuffer.allocate(latencies.getNeededByteBufferCapacity());
        int length = latencies.encodeIntoCompressedByteBuffer(bytes);
        byte[] encoded = new byte[length];
        bytes.flip().get(encoded);
        say(kind + " " + messages.get() + " " + messages.get() * BYTES + " " + seconds + " " + errors.get() + " "
                + Base64.getEncoder().encodeToString(encoded));
    }

    private KafkaProducer<byte[], byte[]> producer() {
        Properties properties = new Properties();
        properties.put("bootstrap.servers", bootstrap);
        properties.put("linger.ms", "0"); // a record goes as soon as a request may
        return new KafkaProducer<>(properties, new ByteArraySerializer(), new ByteArraySerializer());
    }

    private KafkaConsumer<byte[], byte[]> consumer() {
        Properties properties = new Properties();
        properties.put("bootstrap.servers", bootstrap);
        properties.put("max.poll.records", "5000");
        KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(properties, new ByteArrayDeserializer(), new ByteArrayDeserializer());
        consumer.assign(partitions());
        return consumer;
    }

    private List<TopicPartition> partitions() {
        List<TopicPartition> partitions = new ArrayList<>();
        for (int partition = 0; partition < PARTITIONS; partition++) {
            partitions.add(new TopicPartition(topic, partition));
        }
        return partitions;
    }

    private void createTopic() throws Exception {
        try (Admin admin = Admin.create(Map.of("bootstrap.servers", bootstrap))) {
            admin.createTopics(List.of(new NewTopic(topic, PARTITIONS, (short) 1))).all().get();
        }
    }

    private void deleteTopic() throws Exception {
        try (Admin admin = Admin.create(Map.of("bootstrap.servers", bootstrap))) {
            admin.deleteTopics(List.of(topic)).all().get();
        }
    }

    private void window(long warmNs, long lengthNs) {
        fromNs = System.nanoTime() + warmNs;
        untilNs = fromNs + lengthNs;
    }

    /** Says where the measured part begins and ends, at those times. */
    private Thread clock() {
        Thread thread = new Thread(() -> {
            sleepUntil(fromNs);
            say("begin");
            sleepUntil(untilNs);
            say("end");
        });
        thread.start();
        return thread;
    }

    private static void sleepUntil(long atNs) {
        for (long now = System.nanoTime(); now < atNs; now = System.nanoTime()) {
            LockSupport.parkNanos(atNs - now);
        }
    }

    private void answered(long dueNs, long nowNs) {
        if (nowNs >= fromNs && nowNs < untilNs) {
            messages.incrementAndGet();
        }
        if (dueNs >= fromNs && dueNs < untilNs) {
            latencies.recordValue(Math.max(1, nowNs - dueNs));
        }
    }

    private void publish(int inFlight, long warmNs, long lengthNs) throws Exception {
        createTopic();
        Semaphore room = new Semaphore(inFlight);
        byte[] body = new byte[BYTES];
        try (KafkaProducer<byte[], byte[]> producer = producer()) {
            producer.partitionsFor(topic);
            window(warmNs, lengthNs);
            Thread clock = clock();
            for (int next = 0; System.nanoTime() < untilNs; next++) {
                room.acquire();
                long dueNs = System.nanoTime();
                producer.send(new ProducerRecord<>(topic, next % PARTITIONS, null, body), (stored, error) -> {
                    room.release();
                    if (error == null) {
                        answered(dueNs, System.nanoTime());
                    } else {
                        errors.incrementAndGet();
                    }
                });
            }
            boolean all = room.tryAcquire(inFlight, ANSWER_SECONDS_MAX, TimeUnit.SECONDS);
            errors.addAndGet(all ? 0 : inFlight - room.availablePermits());
            clock.join();
        }
        result("publish", lengthNs / 1e9);
    }

    private void endToEnd(double rate, long warmNs, long lengthNs) throws Exception {
        createTopic();
        long due = (long) (rate * (warmNs + lengthNs) / 1e9);
        AtomicLong delivered = new AtomicLong();
        try (KafkaProducer<byte[], byte[]> producer = producer(); KafkaConsumer<byte[], byte[]> consumer = consumer()) {
            producer.partitionsFor(topic);
            consumer.seekToBeginning(partitions());
            consumer.poll(Duration.ofMillis(100));
            window(warmNs, lengthNs);
            long beganNs = System.nanoTime();
            Thread clock = clock();
            Thread reader = new Thread(() -> {
                long lastNs = untilNs + TimeUnit.SECONDS.toNanos(ANSWER_SECONDS_MAX);
                while (delivered.get() < due && System.nanoTime() < lastNs) {
                    ConsumerRecords<byte[], byte[]> records = consumer.poll(Duration.ofMillis(100));
                    long nowNs = System.nanoTime();
                    for (ConsumerRecord<byte[], byte[]> one : records) {
                        answered(ByteBuffer.wrap(one.value()).getLong(), nowNs);
                        delivered.incrementAndGet();
                    }
                }
            });
            reader.start();
            for (long next = 0; next < due; next++) {
                long dueNs = beganNs + (long) (next * 1e9 / rate);
                sleepUntil(dueNs);
                byte[] body = new byte[BYTES];
                ByteBuffer.wrap(body).putLong(dueNs);
                producer.send(new ProducerRecord<>(topic, (int) (next % PARTITIONS), null, body), (stored, error) -> {
                    if (error != null) {
                        errors.incrementAndGet();
                    }
                });
            }
            reader.join();
            clock.join();
        }
        errors.addAndGet(due - delivered.get());
        result("end-to-end", lengthNs / 1e9);
    }

    private void pull() throws Exception {
        try (KafkaConsumer<byte[], byte[]> consumer = consumer()) {
            long all = 0;
            for (long end : consumer.endOffsets(partitions()).values()) {
                all += end;
            }
            consumer.seekToBeginning(partitions());
            say("begin");
            fromNs = System.nanoTime();
            while (messages.get() < all) {
                long askedNs = System.nanoTime();
                ConsumerRecords<byte[], byte[]> records = consumer.poll(Duration.ofSeconds(ANSWER_SECONDS_MAX));
                if (records.isEmpty()) {
                    errors.addAndGet(all - messages.get());
                    break;
                }
                for (ConsumerRecord<byte[], byte[]> one : records) {
                    if (one.value().length != BYTES) {
                        errors.incrementAndGet();
                    }
                }
                messages.addAndGet(records.count());
                latencies.recordValue(Math.max(1, System.nanoTime() - askedNs));
            }
            double seconds = (System.nanoTime() - fromNs) / 1e9;
            say("end");
            result("pull", seconds);
        }
    }
}
