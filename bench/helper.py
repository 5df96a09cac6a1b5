"""Processes of the benchmark's own: how one is started, and how it tells what it has seen."""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

END_S: Final = 10.0
"""How long a helper may take to end once it is told to."""

Event = Mapping[str, object]


class MeasurementFailed(Exception):
    """A measurement did not come to its end. Others may."""


def say(event: str, **fields: object) -> None:
    """Tell the benchmark what has happened: one JSON object a line on standard output."""
    print(json.dumps({"event": event, **fields}), flush=True)


def end_with_parent() -> None:
    """End this process when the benchmark does, however that comes about."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


class Helper:
    """A module of the benchmark as a process. Its standard input is its leash: it ends when that is closed."""

    def __init__(self, module: str, *arguments: object) -> None:
        self._name = module
        self._process = subprocess.Popen(
            (sys.executable, "-m", module, *(str(argument) for argument in arguments)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parent.parent,
        )
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def _read(self) -> None:
        assert self._process.stdout is not None  # noqa: S101  it is a pipe
        for line in self._process.stdout:
            self._events.put(json.loads(line))
        self._events.put(None)

    def until(self, event: str, within_s: float) -> Event:
        """The next event of that name; others before it are passed over. Raises MeasurementFailed."""
        while True:
            try:
                said = self._events.get(timeout=within_s)
            except queue.Empty:
                raise MeasurementFailed(f"{self._name} did not say {event!r} within {within_s:g} s") from None
            if said is None:
                raise MeasurementFailed(f"{self._name} ended before it said {event!r}")
            if said["event"] == event:
                return said

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None  # noqa: S101  it is a pipe
        self._process.stdin.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(END_S)


def number(event: Event, name: str) -> float:
    """A number of an event."""
    value = event[name]
    if not isinstance(value, int | float):
        raise MeasurementFailed(f"{name} of {event} is no number")
    return float(value)
