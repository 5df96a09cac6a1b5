"""PostgreSQL in: slots, the replication stream, and the decoder of what comes through it."""
