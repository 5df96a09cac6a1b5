"""The life of one private server: started, stopped, killed, started again, and gone without a trace."""

import re
import subprocess
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Self

from relay.demo.host import POLL_S, Account, PrivateDirectory, ServerFailed, end, free_ports, server_account

START_S = 120.0
"""How long a start may take, with the recovery after a crash. A busy machine with one core needs a good part of it."""
RETRY_S = 0.2
"""How long to wait before the next attempt when the remains of the last process are still in the way."""
PORT_ATTEMPTS = 5
LOG_LINES = 20

PORT_TAKEN = re.compile(r"address already in use|eaddrinuse|dist_port_already_used", re.IGNORECASE)


class PortTaken(ServerFailed):
    """Somebody else took a port between our choice and the server's start."""


class PrivateServer(ABC):
    """A server of our own: own directory, own ports on 127.0.0.1, own passwords.

    The ports and the data stay the same from the first start until `close`, whatever happens in between. Not for
    several threads at once. As a context manager it is started at the beginning and closed at the end.
    """

    title: ClassVar[str]
    ports_needed: ClassVar[int]
    remains: ClassVar[re.Pattern[str]]
    """What it says when it cannot start yet because its last process is not quite gone."""

    def __init__(self) -> None:
        self._account = Account()
        self._directory: PrivateDirectory | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._ports: list[int] = []
        self._was_ready = False

    # What the two servers answer differently

    @abstractmethod
    def _set_up(self) -> None:
        """Once, before the first start: find the program, create the data directory."""

    @abstractmethod
    def _configure(self) -> None:
        """Write what depends on the ports."""

    @abstractmethod
    def _spawn(self) -> subprocess.Popen[bytes]:
        """Start the process that becomes the server itself, and what it needs beside it."""

    @abstractmethod
    def _is_ready(self) -> bool:
        """Whether this very process takes connections."""

    @abstractmethod
    def stop(self) -> None:
        """End it cleanly, within a bound; nothing if it does not run."""

    def _discard(self) -> None:
        """End it when its data no longer matters."""
        self.stop()

    # What they have in common

    @property
    def directory(self) -> Path:
        """Where everything of it is."""
        return self._private.path

    @property
    def log(self) -> Path:
        """What it said, since the first start."""
        return self.directory / "server.log"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The server process that was started last."""
        if self._process is None:
            raise RuntimeError(f"{self.title} has not been started")
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def port(self) -> int:
        """The port that its clients use."""
        if not self._ports:
            raise RuntimeError(f"{self.title} has not been started")
        return self._ports[0]

    @property
    def _private(self) -> PrivateDirectory:
        if self._directory is None:
            raise RuntimeError(f"{self.title} has not been started")
        return self._directory

    def start(self) -> None:
        """Start it and wait until it takes connections; nothing if it runs.

        Raises ServerMissing, or ServerFailed with its last words. If the first start fails, nothing is left of it.
        """
        if self.running:
            return
        if self._was_ready:
            self._launch()
            return
        try:
            self._start_first()
        except BaseException:  # Ctrl-C as well: nobody else knows of the directory yet
            self.close()
            raise

    def _start_first(self) -> None:
        self._account = server_account()
        self._directory = PrivateDirectory(f"relay-{self.title.lower()}-", self._account)
        self._set_up()
        for attempts_left in reversed(range(PORT_ATTEMPTS)):
            self._ports = free_ports(self.ports_needed)
            self._configure()
            try:
                self._launch()
            except PortTaken:
                if not attempts_left:
                    raise
            else:
                self._was_ready = True
                return

    def _launch(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            log_start = self.log.stat().st_size if self.log.exists() else 0
            self._process = self._spawn()
            if self._becomes_ready(self._process, deadline):
                return
            said = read_from(self.log, log_start)
            if not self.remains.search(said):
                raise self._failure(f"ended with status {self._process.returncode} instead of starting", said)
            if time.monotonic() > deadline:
                raise self._failure(f"could not start within {START_S:.0f} s", said)
            self._private.end_stragglers()
            time.sleep(RETRY_S)

    def _becomes_ready(self, process: subprocess.Popen[bytes], deadline: float) -> bool:
        """Wait until it is ready, or has ended (false)."""
        while not self._is_ready():
            with suppress(subprocess.TimeoutExpired):
                process.wait(POLL_S)
                return False
            if time.monotonic() > deadline:
                end(process)
                raise self._failure(f"was not ready within {START_S:.0f} s", read_from(self.log, 0))
        return True

    def _failure(self, what: str, said: str) -> ServerFailed:
        last_words = "\n".join(said.splitlines()[-LOG_LINES:])
        kind = PortTaken if PORT_TAKEN.search(said) else ServerFailed
        return kind(f"{self.title} {what}:\n{last_words}")

    def kill(self) -> None:
        """SIGKILL, and wait for its end; nothing if it does not run."""
        if self.running:
            end(self.process)

    def restart(self) -> None:
        """Stop it and start it again."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop it and remove everything of it. It may be started again, from nothing."""
        try:
            self._discard()
        finally:
            if self._directory is not None:
                self._directory.remove()
                self._directory = None
            self._was_ready = False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_from(log: Path, offset: int) -> str:
    """What the log says from that byte on."""
    with log.open("rb") as file:
        file.seek(offset)
        return file.read().decode(errors="replace")
