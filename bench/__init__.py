"""Throughput, latency and memory of the relay, beside what the servers give and beside a peer. `make bench` runs it."""
