import com.rabbitmq.client.AMQP;
import com.rabbitmq.client.Channel;
import com.rabbitmq.client.Connection;
import com.rabbitmq.client.ConnectionFactory;
import io.debezium.engine.ChangeEvent;
import io.debezium.engine.DebeziumEngine;
import io.debezium.engine.Header;
import io.debezium.engine.format.Json;
import io.debezium.engine.format.KeyValueHeaderChangeEventFormat;
import io.debezium.engine.format.SerializationFormat;
import io.debezium.engine.format.SimpleString;
import java.io.FileReader;
import java.io.IOException;
import java.io.Reader;
import java.nio.charset.StandardCharsets;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.TimeoutException;

/**
 * Debezium's engine with a RabbitMQ sink that does what the one of Debezium Server does: it publishes a whole batch,
 * persistent, waits until all of it is confirmed, and then marks the batch as finished.
 *
 * Its one argument is a properties file: the engine's properties, and sink.url, sink.exchange, sink.format (of keys and
 * values: json, or text where a router has made texts of them) and, if keys are wanted, sink.key.header.
 */
public final class DebeziumToRabbit implements DebeziumEngine.ChangeConsumer<ChangeEvent<String, String>> {
    /** How long the broker may take to confirm a batch, as in Debezium Server. */
    private static final long CONFIRM_MS = 30_000;

    private static final int PERSISTENT = 2;

    private final Channel channel;
    private final String exchange;
    private final String keyHeader;

    private DebeziumToRabbit(Channel channel, String exchange, String keyHeader) {
        this.channel = channel;
        this.exchange = exchange;
        this.keyHeader = keyHeader;
    }

    @Override
    public void handleBatch(
            List<ChangeEvent<String, String>> events,
            DebeziumEngine.RecordCommitter<ChangeEvent<String, String>> committer)
            throws InterruptedException {
        try {
            for (ChangeEvent<String, String> event : events) {
                if (event.value() != null) {
                    byte[] body = event.value().getBytes(StandardCharsets.UTF_8);
                    channel.basicPublish(exchange, event.destination(), properties(event), body);
                }
                committer.markProcessed(event);
            }
            channel.waitForConfirmsOrDie(CONFIRM_MS);
        } catch (IOException | TimeoutException error) {
            throw new IllegalStateException("RabbitMQ did not confirm a batch", error);
        }
        committer.markBatchFinished();
    }

    private AMQP.BasicProperties properties(ChangeEvent<String, String> event) {
        Map<String, Object> headers = new HashMap<>();
        for (Header<Object> header : event.<Object>headers()) {
            headers.put(header.getKey(), header.getValue());
        }
        if (keyHeader != null) {
            headers.put(keyHeader, event.key());
        }
        return new AMQP.BasicProperties.Builder().deliveryMode(PERSISTENT).headers(headers).build();
    }

    private static Class<? extends SerializationFormat<String>> format(String name) {
        return switch (name) {
            case "json" -> Json.class;
            case "text" -> SimpleString.class;
            default -> throw new IllegalArgumentException("sink.format should be json or text, not " + name);
        };
    }

    public static void main(String[] arguments) throws Exception {
        Properties settings = new Properties();
        try (Reader file = new FileReader(arguments[0], StandardCharsets.UTF_8)) {
            settings.load(file);
        }
        Class<? extends SerializationFormat<String>> format = format(settings.getProperty("sink.format"));
        ConnectionFactory factory = new ConnectionFactory();
        factory.setUri(settings.getProperty("sink.url"));
        Connection connection = factory.newConnection();
        Channel channel = connection.createChannel();
        channel.confirmSelect();
        DebeziumEngine.create(KeyValueHeaderChangeEventFormat.of(format, format, Json.class))
                .using(settings)
                .notifying(new DebeziumToRabbit(
                        channel, settings.getProperty("sink.exchange"), settings.getProperty("sink.key.header")))
                .using((success, message, error) -> {
                    if (!success) {
                        System.err.println(message);
                        System.exit(1);
                    }
                })
                .build()
                .run();
    }
}
