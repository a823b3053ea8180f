import io.debezium.engine.ChangeEvent;
import io.debezium.engine.DebeziumEngine;
import io.debezium.engine.format.JsonByteArray;
import java.io.FileReader;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.atomic.AtomicReference;

/**
 * Runs Debezium's engine with JSON output until so many events have come, drops them, and prints one JSON line:
 * events, bytes of their values, nanoseconds from the first batch to the last, events of the first batch, and the
 * process's CPU seconds and peak memory.
 *
 * Arguments: a file of the engine's properties, the number of events.
 */
public final class Engine {
    private long events;
    private long bytes;
    private long first;
    private long last;
    private long head;
    private final CountDownLatch done = new CountDownLatch(1);
    private final AtomicReference<Throwable> failure = new AtomicReference<>();

    private void handle(
            List<ChangeEvent<byte[], byte[]>> batch,
            DebeziumEngine.RecordCommitter<ChangeEvent<byte[], byte[]>> committer,
            long wanted) throws InterruptedException {
        long now = System.nanoTime();
        if (events == 0) {
            first = now;
            head = batch.size();
        }
        for (ChangeEvent<byte[], byte[]> event : batch) {
            if (event.value() != null) {
                events++;
                bytes += event.value().length;
            }
        }
        committer.markProcessed(batch.get(batch.size() - 1));
        committer.markBatchFinished();
        last = System.nanoTime();
        if (events >= wanted) {
            done.countDown();
        }
    }

    private static long peak() throws Exception {
        for (String line : Files.readAllLines(Path.of("/proc/self/status"))) {
            if (line.startsWith("VmHWM:")) {
                return Long.parseLong(line.replaceAll("\\D", "")) * 1024;
            }
        }
        return 0;
    }

    public static void main(String[] arguments) throws Exception {
        Properties properties = new Properties();
        try (FileReader reader = new FileReader(arguments[0])) {
            properties.load(reader);
        }
        long wanted = Long.parseLong(arguments[1]);
        Engine counter = new Engine();
        DebeziumEngine<ChangeEvent<byte[], byte[]>> engine = DebeziumEngine.create(JsonByteArray.class)
                .using(properties)
                .notifying((batch, committer) -> counter.handle(batch, committer, wanted))
                .using((success, message, error) -> {
                    if (!success) {
                        counter.failure.set(error != null ? error : new IllegalStateException(message));
                    }
                    counter.done.countDown();
                })
                .build();
        ExecutorService executor = Executors.newSingleThreadExecutor();
        executor.execute(engine);
        counter.done.await();
        long cpu = ProcessHandle.current().info().totalCpuDuration().orElseThrow().toNanos();
        engine.close();
        executor.shutdown();
        if (counter.failure.get() != null) {
            counter.failure.get().printStackTrace();
            System.exit(1);
        }
        System.out.printf(
                "{\"events\": %d, \"bytes\": %d, \"nanoseconds\": %d, \"head\": %d, \"cpu\": %.3f, \"peak\": %d}%n",
                counter.events, counter.bytes, counter.last - counter.first, counter.head, cpu / 1e9, peak());
        System.exit(0);
    }
}
