"""How long a message takes from its COMMIT to its confirm, and to its consumer."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from bench.backlog import Database
from bench.helper import Helper, number
from bench.matrix import LATENCY_RATES, Capture, LatencyCase, Queue
from bench.servers import BrokerMaker, declare
from bench.statistics import Percentiles
from bench.subject import Relay
from bench.throughput import READY_S, drain
from bench.times import delays_ms, read_times
from relay.demo.servers.host import LOOPBACK

PHASE_S: Final = 10.0
"""How long each rate is kept."""

WARM_UP: Final = (100, 1.0)
"""Messages a second, and seconds, before anything is counted: the route is new to broker and relay."""

SETTLE_S: Final = 30.0
"""How long the last message may take to be confirmed and consumed."""


@dataclass(frozen=True, slots=True)
class LatencySample:
    """One measurement at one rate: from the return of COMMIT."""

    sent: Percentiles
    """Until the first byte of it was on its way to RabbitMQ: what PostgreSQL and the relay take."""
    confirm: Percentiles
    consumer: Percentiles


class Latency:
    """Measures with one relay and a new RabbitMQ each time.

    Between them stands a process that notes messages and confirms as they pass; the consumer is connected directly.
    """

    def __init__(self, relay: Path, brokers: BrokerMaker) -> None:
        self._relay = relay
        self._brokers = brokers

    def measure(self, database: Database, queue: Queue) -> Mapping[LatencyCase, LatencySample]:
        """Every rate, one after the other."""
        phases = [WARM_UP, *((rate, PHASE_S) for rate in LATENCY_RATES)]
        counts = [round(rate * seconds) for rate, seconds in phases]
        total = sum(counts)
        with TemporaryDirectory(prefix="relay-bench-") as directory, self._brokers() as broker:
            declare(broker.url, queue)
            files = [Path(directory) / name for name in ("written", "sent", "confirmed", "consumed")]
            written, sent, confirmed, consumed = files
            parts = urlsplit(broker.url)
            server = ("--host", parts.hostname, "--port", parts.port)
            with (
                database.slot_here() as slot,
                drain(broker.url, total, "--times", consumed) as drained,
                Helper("bench.tap", *server, "--expect", total, "--sent", sent, "--confirmed", confirmed) as tap,
            ):
                port = int(number(tap.until("listening", READY_S), "port"))
                login = parts.netloc.rpartition("@")[0]
                through = urlunsplit(parts._replace(netloc=f"{login}@{LOOPBACK}:{port}"))
                with Relay(self._relay, database.dsn, through, slot, Capture.OUTBOX) as relay:
                    relay.streaming()
                    pace = [argument for rate, seconds in phases for argument in ("--phase", f"{rate}:{seconds}")]
                    with Helper("bench.writer", "--dsn", database.dsn, *pace, "--times", written) as writer:
                        writer.until("complete", READY_S + sum(seconds for _, seconds in phases))
                    drained.until("complete", SETTLE_S)
                    tap.until("complete", SETTLE_S)
                    relay.stop()
            times = [read_times(path) for path in files]
        bounds = list(itertools.accumulate(counts))
        return {
            LatencyCase(queue, rate): _sample(range(first, last), *times)
            for rate, (first, last) in zip(LATENCY_RATES, itertools.pairwise(bounds), strict=True)
        }


def _sample(numbers: range, written: dict[int, int], *seen: dict[int, int]) -> LatencySample:
    committed = {number: written[number] for number in numbers}
    return LatencySample(*(Percentiles.of(delays_ms(committed, times)) for times in seen))
