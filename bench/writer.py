"""Commits messages at a given pace, and notes when each COMMIT has returned.

`python -m bench.writer --dsn DSN --phase 100:10 --phase 1000:10 --times FILE`: so many a second for so many seconds.
"""

import argparse
import itertools
import threading
import time
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import psycopg

from bench.helper import end_with_parent, say
from bench.times import STAMP_DIGITS, write_times

CONNECTIONS: Final = 8
"""Writers at work. A COMMIT waits for the disk: one alone cannot commit a thousand times a second."""

START_S: Final = 0.2
"""Until the first message is due: every connection is at its place by then."""

TEXT: Final = "x" * 160

INSERT: Final = (
    "INSERT INTO relay.outbox (aggregate_type, aggregate_id, type, payload) VALUES ('order', %s, 'OrderCreated', %s)"
)


def due_times(phases: Iterable[tuple[float, float]]) -> list[float]:
    """When each message is due, in s from the start. A phase has so many messages a second for so many seconds."""
    due: list[float] = []
    begun = 0.0
    for rate, seconds in phases:
        due += [begun + number / rate for number in range(round(rate * seconds))]
        begun += seconds
    return due


def payload(number: int) -> str:
    """The JSON of a message."""
    return f'{{"n": "{number:0{STAMP_DIGITS}}", "text": "{TEXT}"}}'


def write(dsn: str, due: Sequence[float], numbers: "itertools.count[int]", start_s: float, times: "array[int]") -> None:
    """One connection's share: take the next number, wait until it is due, commit, note the time."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        while (number := next(numbers)) < len(due):
            time.sleep(max(0.0, start_s + due[number] - time.monotonic()))
            connection.execute(INSERT, (str(number % 100), payload(number)), prepare=True)
            times.extend((number, time.monotonic_ns()))


def main() -> None:
    """Write all phases, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dsn", required=True)
    parser.add_argument("--phase", action="append", required=True)
    parser.add_argument("--times", type=Path, required=True)
    arguments = parser.parse_args()
    end_with_parent()
    due = due_times(tuple(map(float, phase.split(":"))) for phase in arguments.phase)  # type: ignore[misc]
    numbers, times = itertools.count(), [array("q") for _ in range(CONNECTIONS)]
    start_s = time.monotonic() + START_S
    threads = [
        threading.Thread(target=write, args=(arguments.dsn, due, numbers, start_s, own), daemon=True) for own in times
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    write_times(arguments.times, array("q", itertools.chain.from_iterable(times)))
    say("complete")


if __name__ == "__main__":
    main()
