"""The peer: Debezium's engine with its outbox router, publishing as Debezium Server does."""
