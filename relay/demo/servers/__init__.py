"""PostgreSQL and RabbitMQ of our own, as programs or in containers. No server that already runs is ever touched."""
