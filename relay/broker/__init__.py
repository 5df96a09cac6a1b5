"""RabbitMQ out. Everything that knows pika lives here, and nothing here knows PostgreSQL."""
