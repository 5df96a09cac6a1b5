"""How many messages a second, at what price: one measurement of each kind."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic_ns
from typing import Final
from urllib.parse import unquote, urlsplit

from bench.backlog import Backlog
from bench.helper import Helper, MeasurementFailed, number
from bench.matrix import Queue
from bench.servers import QUEUE, BrokerMaker, declare, programs
from bench.subject import PUBLICATIONS, Relay
from relay.demo.servers.host import LOOPBACK
from relay.demo.servers.postgres import PrivatePostgres

WINDOW: Final = 1000
"""Messages that the bare publisher has unconfirmed at most."""

READY_S: Final = 60.0
"""How long a process of ours may take to be ready: the bare publisher reads its messages first."""

LEAST_RATE: Final = 1_000
"""A measurement that is slower than this has failed, and ends."""
PATIENCE_S: Final = 60.0
"""How long any measurement may take beside that."""

CONFIRM_S: Final = 10.0
"""How long the relay may take to report what is confirmed."""

NS_PER_S: Final = 1e9
US_PER_S: Final = 1e6


@dataclass(frozen=True, slots=True)
class Sample:
    """What one measurement found. CPU time and memory are of the process that publishes."""

    rate: float
    """Messages a second."""
    cpu_us: float | None = None
    """CPU microseconds a message."""
    memory_mb: float | None = None
    """The most memory it has had resident."""


def within_s(backlog: Backlog) -> float:
    """How long the slowest measurement of it may take."""
    return PATIENCE_S + backlog.shape.rows / LEAST_RATE


class Throughput:
    """Measures with one PostgreSQL, one relay, and a new RabbitMQ each time."""

    def __init__(self, server: PrivatePostgres, relay: Path, brokers: BrokerMaker) -> None:
        self._receiver = programs(server) / "pg_recvlogical"
        self._relay = relay
        self._brokers = brokers

    def wal(self, backlog: Backlog) -> Sample:
        """What PostgreSQL gives: pg_recvlogical throws everything away."""
        with backlog.database.slot() as slot:
            begun_ns = monotonic_ns()
            with self._receiving(backlog, slot):
                pass
            return Sample(_rate(backlog, begun_ns, monotonic_ns()))

    def sink(self, backlog: Backlog, record: Path | None = None, profile: Path | None = None) -> Sample:
        """What the relay can do when the broker costs nothing. `record` keeps the messages as they came."""
        recording = () if record is None else ("--record", record)
        with backlog.database.slot() as slot, Helper("bench.sink", "--expect", backlog.shape.rows, *recording) as sink:
            port = int(number(sink.until("listening", READY_S), "port"))
            url = f"amqp://bench:bench@{LOOPBACK}:{port}/%2F"
            with Relay(self._relay, backlog.database.dsn, url, slot, backlog.shape.capture, profile) as relay:
                relay.streaming()
                complete = sink.until("complete", within_s(backlog))
                rate = _rate(backlog, number(complete, "first_ns"), number(complete, "last_ns"))
                sample = _sample(relay, backlog, rate)
                relay.stop()
                return sample

    def bare(self, backlog: Backlog, queue: Queue, recorded: Path) -> Sample:
        """What is left for a relay that costs nothing: its messages are ready, PostgreSQL sends the WAL."""
        with self._brokers() as broker, backlog.database.slot() as slot:
            declare(broker.url, queue)
            with drain(broker.url, backlog.shape.rows) as drained:
                arguments = ("--url", broker.url, "--messages", recorded, "--window", WINDOW)
                with Helper("bench.bare", *arguments) as publisher:
                    publisher.until("ready", READY_S)
                    with self._receiving(backlog, slot):
                        complete = publisher.until("complete", within_s(backlog))
                consumed = drained.until("complete", within_s(backlog))
                return Sample(_rate(backlog, number(consumed, "first_ns"), number(complete, "last_ns")))

    def relay(self, backlog: Backlog, queue: Queue) -> Sample:
        """The relay, from PostgreSQL to RabbitMQ."""
        with self._brokers() as broker, backlog.database.slot() as slot:
            declare(broker.url, queue)
            with (
                drain(broker.url, backlog.shape.rows) as drained,
                Relay(self._relay, backlog.database.dsn, broker.url, slot, backlog.shape.capture) as relay,
            ):
                relay.streaming()
                consumed = drained.until("complete", within_s(backlog))
                backlog.database.wait_until_confirmed(slot, backlog.end, CONFIRM_S)
                rate = _rate(backlog, number(consumed, "first_ns"), number(consumed, "last_ns"))
                sample = _sample(relay, backlog, rate)
                relay.stop()
                return sample

    @contextmanager
    def _receiving(self, backlog: Backlog, slot: str) -> Iterator[None]:
        """pg_recvlogical reads the backlog. Waits at the end until it has read all of it."""
        parts = urlsplit(backlog.database.dsn)
        publication = PUBLICATIONS[backlog.shape.capture]
        process = subprocess.Popen(
            (
                self._receiver,
                *("--start", "--no-loop", "--slot", slot, "--endpos", backlog.end, "--file", os.devnull),
                *("--option", "proto_version=1", "--option", f"publication_names={publication}"),
                *("--host", parts.hostname or "", "--port", str(parts.port)),
                *("--username", parts.username or "", "--dbname", parts.path[1:]),
            ),
            env={**os.environ, "PGPASSWORD": unquote(parts.password or "")},
        )
        try:
            yield
            try:
                status = process.wait(within_s(backlog))
            except subprocess.TimeoutExpired:
                raise MeasurementFailed("pg_recvlogical did not read the backlog in time") from None
            if status != 0:
                raise MeasurementFailed(f"pg_recvlogical ended with status {status}")
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


@contextmanager
def drain(url: str, rows: int, *arguments: object) -> Iterator[Helper]:
    """A consumer of the queue, ready for its messages."""
    with Helper("bench.drain", "--url", url, "--queue", QUEUE, "--expect", rows, *arguments) as drained:
        drained.until("ready", READY_S)
        yield drained


def _rate(backlog: Backlog, first_ns: float, last_ns: float) -> float:
    return backlog.shape.rows / (last_ns - first_ns) * NS_PER_S


def _sample(relay: Relay, backlog: Backlog, rate: float) -> Sample:
    return Sample(rate, relay.used_cpu_s() / backlog.shape.rows * US_PER_S, relay.peak_memory_mb())
