"""How many sagas a second, how long one takes, and where the CPU time goes: CreateOrder, for credit only."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import psycopg

from bench.helper import Helper, MeasurementFailed
from bench.machine import Used
from bench.shop import Shop
from bench.statistics import Percentiles

WARM_UP: Final = 200
"""Orders before anything is counted: connections, plans and routes are new."""

READY_S: Final = 30.0
LEAST_RATE: Final = 10
"""A measurement with fewer sagas a second than this has failed, and ends."""

POLL_S: Final = 0.05
"""How often to look whether all sagas have ended."""

MS_PER_S: Final = 1e3

OTHERS: Final = "everything else"
IDLE: Final = "idle"

_NOW: Final = "SELECT clock_timestamp()"

_UNFINISHED: Final = "SELECT count(*) FROM relay.saga WHERE status NOT IN ('COMPLETED', 'COMPENSATED')"

# By the log: what happened, and when it was written down.
_TIMES: Final = """
    SELECT extract(epoch FROM begun.at)::float8, extract(epoch FROM ended.at)::float8
    FROM relay.saga_log AS begun JOIN relay.saga_log AS ended ON ended.saga_id = begun.saga_id
    WHERE begun.event = 'SagaStarted' AND begun.at >= %s AND ended.event = 'SagaCompleted'
"""


@dataclass(frozen=True, slots=True)
class SagaSample:
    """What one measurement found."""

    rate: float
    """Completed sagas a second, from the start of the first to the end of the last."""
    took: Percentiles
    """From the start of a saga to its end."""
    cpu_ms: Mapping[str, float]
    """CPU ms a saga: of each process and what it has started, of everything else on the machine, and idle."""


def measure(shop: Shop, orders: int, rate: int | None) -> SagaSample:
    """Place orders, so many a second or as fast as they are taken, and wait for the end of every saga.

    Raises MeasurementFailed when one does not complete.
    """
    shop.tidy()
    pace = () if rate is None else ("--rate", rate)
    within_s = READY_S + orders / LEAST_RATE
    with (
        psycopg.connect(shop.orders_dsn, autocommit=True) as connection,
        Helper("bench.buyers", "--port", shop.port, "--orders", orders, *pace) as buyers,
    ):
        (since,) = connection.execute(_NOW).fetchone() or (None,)
        buyers.until("ready", READY_S)
        before = shop.used(buyers.pid)
        buyers.until("complete", within_s)
        _wait(connection, within_s)
        after = shop.used(buyers.pid)
        times = connection.execute(_TIMES, (since,)).fetchall()
    if len(times) != orders:
        raise MeasurementFailed(f"{len(times):,} of {orders:,} sagas completed, and the others ended otherwise")
    return sample(times, cpu_ms(before, after, orders))


def sample(times: list[tuple[float, float]], cpu: Mapping[str, float]) -> SagaSample:
    """What the times of starts and ends say, in s. Pure."""
    begun, ended = zip(*times, strict=True)
    took = Percentiles.of([(end - start) * MS_PER_S for start, end in times])
    return SagaSample(len(times) / (max(ended) - min(begun)), took, cpu)


def cpu_ms(before: Used, after: Used, sagas: int) -> dict[str, float]:
    """CPU ms a saga between two moments. Pure."""
    parts = {name: used - before.by_name[name] for name, used in after.by_name.items()}
    others = max(0.0, after.busy - before.busy - sum(parts.values()))
    seconds = {**parts, OTHERS: others, IDLE: max(0.0, after.idle - before.idle)}
    return {name: part * MS_PER_S / sagas for name, part in seconds.items()}


def _wait(connection: "psycopg.Connection", within_s: float) -> None:
    """Wait until no saga is under way."""
    deadline = time.monotonic() + within_s
    while (count := connection.execute(_UNFINISHED).fetchone()) != (0,):
        if time.monotonic() > deadline:
            raise MeasurementFailed(f"{count[0] if count else 0:,} sagas did not end within {within_s:g} s")
        time.sleep(POLL_S)
