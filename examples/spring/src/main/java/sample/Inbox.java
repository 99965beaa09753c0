package sample;

import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.function.Predicate;
import org.springframework.stereotype.Component;

/** What the listeners got. */
@Component
public class Inbox {
    public record Entry(String body, long atMs) { }

    private final Map<String, List<Entry>> entries = new ConcurrentHashMap<>();

    void put(String listener, String body) {
        of(listener).add(new Entry(body, System.currentTimeMillis()));
    }

    List<Entry> of(String listener) {
        return entries.computeIfAbsent(listener, name -> new CopyOnWriteArrayList<>());
    }

    List<String> bodies(String listener, Predicate<String> which) {
        return of(listener).stream().map(Entry::body).filter(which).toList();
    }
}
