package sample;

import java.util.function.Consumer;
import java.util.function.Function;
import org.springframework.context.annotation.Bean;
import org.springframework.context.annotation.Configuration;

/** The functions of Spring Cloud Stream; application.properties binds them to topics. */
@Configuration
public class Stream {
    @Bean
    public Function<String, String> shout() {
        return body -> body.toUpperCase();
    }

    @Bean
    public Consumer<String> heard(Inbox inbox) {
        return body -> inbox.put("heard", body);
    }
}
