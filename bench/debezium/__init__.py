"""The peer: Debezium's engine, with its outbox router or without, publishing as Debezium Server does."""
