"""The relay and the demo's services as their users run them: processes of a checkout, watched from outside."""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from signal import SIGTERM
from typing import Final, Self

from bench.helper import MeasurementFailed
from bench.machine import cpu_s, peak_memory_mb
from bench.matrix import Capture
from bench.rows import TABLE

START_S: Final = 60.0
"""How long a process may take to work. A slot waits for transactions that are open."""

END_S: Final = 30.0
"""How long it may take to end after SIGTERM."""

LAST_LINES: Final = 20

NAME: Final = "bench"
"""The name of the source."""

_CAPTURE: Final = "RELAY_SOURCE__0__CAPTURE__0__"

CAPTURES: Final[Mapping[Capture, Mapping[str, str]]] = {
    Capture.OUTBOX: {},
    Capture.TABLE: {
        f"{_CAPTURE}KIND": "table",
        f"{_CAPTURE}TABLES": json.dumps([TABLE]),
        f"{_CAPTURE}ENVELOPE": "debezium",
        f"{_CAPTURE}SNAPSHOT": "never",
    },
}
"""What the relay is told to capture. The outbox it captures by itself, and an older one knows no other setting."""

PUBLICATIONS: Final[Mapping[Capture, str]] = {
    Capture.OUTBOX: f"relay_{NAME}",
    Capture.TABLE: f"relay_{NAME}_tables",
}
"""Where the relay has what it captures published."""


def captures_tables(directory: Path) -> bool:
    """Whether the relay in that checkout has the capture of plain tables. Older ones have not."""
    return (directory / "relay" / "capture" / "table.py").exists()


def has_sagas(directory: Path) -> bool:
    """Whether the demo in that checkout has a CreateOrder that this benchmark can run."""
    return (directory / "services" / "orders" / "saga.py").exists()


def command(
    directory: Path, module: str, *arguments: str, environment: Mapping[str, str], profile: Path | None = None
) -> subprocess.Popen[str]:
    """A module of that checkout as a process, the relay with no settings but these. cProfile writes to `profile`."""
    profiler = () if profile is None else ("-m", "cProfile", "-o", str(profile))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
    return subprocess.Popen(
        (sys.executable, *profiler, "-m", module, *arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=directory,
        env={**inherited, **environment, "PYTHONPATH": str(directory)},
    )


def migrate(directory: Path, dsn: str, service: str | None = None) -> None:
    """`relay migrate`: the schema that this relay wants, and the tables of a service of the demo, whose role it is."""
    arguments = [] if service is None else ["--service-role", service, "--sql", str(directory / "sql" / service)]
    process = command(directory, "relay", "migrate", *arguments, environment={"RELAY_SOURCE__0__DSN": dsn})
    _, said = process.communicate(timeout=START_S)
    if process.returncode != 0:
        raise MeasurementFailed(f"relay migrate ended with status {process.returncode}:\n{said}")


class Subject:
    """A process whose log, in JSON on its standard error, says how far it is. As a context manager it ends with it."""

    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        self._name = name
        self._process = process
        self._lines: list[str] = []
        self._actions: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def _read(self) -> None:
        assert self._process.stderr is not None  # noqa: S101  it is a pipe
        for line in self._process.stderr:
            self._lines.append(line.rstrip())
            try:
                action = str(json.loads(line)["action"])
            except (ValueError, KeyError):
                continue
            self._on(action)
            self._actions.put(action)
        self._actions.put("")

    def _on(self, action: str) -> None:
        """At once when the log has it, on a thread of its own."""

    def until(self, action: str) -> None:
        """Wait for the next line of that action; others before it are passed over. Raises MeasurementFailed."""
        deadline = time.monotonic() + START_S
        while True:
            try:
                said = self._actions.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise self.failure(f"did not say {action!r} within {START_S:g} s") from None
            if said == action:
                return
            if not said:
                raise self.failure(f"ended before it said {action!r}")

    def check(self) -> None:
        """Raises MeasurementFailed when it has ended."""
        if self._process.poll() is not None:
            raise self.failure(f"ended with status {self._process.returncode}")

    def peak_memory_mb(self) -> float:
        """The most memory that it has had, its start included."""
        self.check()
        return peak_memory_mb(self.pid)

    def stop(self) -> None:
        """End it in good order. Raises MeasurementFailed when it does not."""
        self._process.send_signal(SIGTERM)
        try:
            status = self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            raise self.failure(f"did not end within {END_S:g} s after SIGTERM") from None
        if status != 0:
            raise self.failure(f"ended with status {status} after SIGTERM")

    def failure(self, what: str) -> MeasurementFailed:
        """An error with its last words."""
        return MeasurementFailed("\n".join((f"{self._name} {what}; its last words:", *self._lines[-LAST_LINES:])))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join(END_S)
        if self._process.stderr is not None:
            self._process.stderr.close()


class Relay(Subject):
    """`relay run` on one slot. From `streaming` on it works; what it used until then is not counted."""

    def __init__(
        self, directory: Path, dsn: str, amqp_url: str, slot: str, capture: Capture, profile: Path | None = None
    ) -> None:
        settings = {
            "RELAY_SOURCE__0__DSN": dsn,
            "RELAY_SOURCE__0__NAME": NAME,
            "RELAY_SOURCE__0__SLOT": slot,
            "RELAY_BROKER__URL": amqp_url,
            "RELAY_HTTP__LISTEN": "",
            "RELAY_LOG_FORMAT": "json",
            **CAPTURES[capture],
        }
        self._started_cpu_s = 0.0
        super().__init__("the relay", command(directory, "relay", "run", environment=settings, profile=profile))

    def _on(self, action: str) -> None:
        if action == "streaming":
            self._started_cpu_s = cpu_s(self.pid)

    def streaming(self) -> None:
        """Wait until it streams. Raises MeasurementFailed."""
        self.until("streaming")

    def used_cpu_s(self) -> float:
        """CPU time since it began to stream."""
        self.check()
        return cpu_s(self.pid) - self._started_cpu_s
