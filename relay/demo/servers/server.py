"""The life of one server of our own: started, stopped, killed, started again, and gone without a trace."""

import re
import subprocess
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Self

from relay.demo.servers.host import (
    LOOPBACK,
    POLL_S,
    Account,
    PrivateDirectory,
    ServerFailed,
    end,
    free_ports,
    how_it_ended,
    server_account,
)

START_S = 120.0
"""How long a start may take, with the recovery after a crash. A busy machine with one core needs a good part of it."""
RETRY_S = 0.2
"""How long to wait before the next attempt when the remains of the last process are still in the way."""
PORT_ATTEMPTS = 5
LOG_LINES = 20

PORT_TAKEN = re.compile(
    r"address already in use|eaddrinuse|dist_port_already_used|port is already allocated", re.IGNORECASE
)


class PortTaken(ServerFailed):
    """Somebody else took a port between our choice and the server's start."""


class Server(ABC):
    """A server of our own: own data, own ports, own passwords.

    The ports and the data stay the same from the first start until `close`, whatever happens in between. Not for
    several threads at once. As a context manager it is started at the beginning and closed at the end.
    """

    title: ClassVar[str]
    ports_needed: ClassVar[int]

    def __init__(self) -> None:
        self._ports: list[int] = []
        self._was_ready = False

    # What a process and a container answer differently

    @property
    @abstractmethod
    def where(self) -> str:
        """What it is, and where: for a person."""

    @property
    @abstractmethod
    def running(self) -> bool: ...

    @property
    @abstractmethod
    def ending(self) -> str:
        """How it ended, in words. For one that does not run."""

    @property
    def pid(self) -> int | None:
        """Its process on this machine, the one that was started last; None for one in a container."""
        return None

    @property
    def container(self) -> str | None:
        """The name of its container, if it is in one."""
        return None

    @property
    def host(self) -> str:
        """Where its clients find its ports."""
        return LOOPBACK

    @abstractmethod
    def stop(self) -> None:
        """End it cleanly, within a bound; nothing if it does not run."""

    @abstractmethod
    def kill(self) -> None:
        """SIGKILL, and wait for its end; nothing if it does not run."""

    @abstractmethod
    def _prepare(self) -> None:
        """Once, before the first start."""

    @abstractmethod
    def _configure(self) -> None:
        """Write what depends on the ports, which may not be those of the last attempt."""

    @abstractmethod
    def _launch(self) -> None:
        """Start it and wait until it takes connections. Raises ServerFailed, PortTaken."""

    @abstractmethod
    def _remove(self) -> None:
        """End it, and remove everything of it."""

    # What the two kinds of PostgreSQL and of RabbitMQ answer differently

    @abstractmethod
    def _is_ready(self) -> bool:
        """Whether this very server takes connections."""

    # What they have in common

    @property
    def port(self) -> int:
        """The port that its clients use."""
        if not self._ports:
            raise self._not_started()
        return self._ports[0]

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
        except BaseException:  # Ctrl-C as well: nobody else knows yet what there is to remove
            self.close()
            raise

    def _start_first(self) -> None:
        self._prepare()
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

    def restart(self) -> None:
        """Stop it and start it again."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop it and remove everything of it. It may be started again, from nothing."""
        try:
            self._remove()
        finally:
            self._was_ready = False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _not_started(self) -> RuntimeError:
        return RuntimeError(f"{self.title} has not been started")

    def _failure(self, what: str, said: str) -> ServerFailed:
        last_words = "\n".join(said.splitlines()[-LOG_LINES:])
        kind = PortTaken if PORT_TAKEN.search(said) else ServerFailed
        return kind(f"{self.title} {what}:\n{last_words}")


class PrivateServer(Server):
    """A server as a process of ours: own directory, own ports on 127.0.0.1."""

    remains: ClassVar[re.Pattern[str]]
    """What it says when it cannot start yet because its last process is not quite gone."""

    def __init__(self) -> None:
        super().__init__()
        self._account = Account()
        self._directory: PrivateDirectory | None = None
        self._process: subprocess.Popen[bytes] | None = None

    # What the two servers answer differently

    @abstractmethod
    def _set_up(self) -> None:
        """Once, before the first start: find the program, create the data directory."""

    @abstractmethod
    def _spawn(self) -> subprocess.Popen[bytes]:
        """Start the process that becomes the server itself, and what it needs beside it."""

    def _discard(self) -> None:
        """End it when its data no longer matters."""
        self.stop()

    # What they have in common

    @property
    def where(self) -> str:
        return f"a private {self.title}"

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
            raise self._not_started()
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def ending(self) -> str:
        return how_it_ended(self.process.wait())

    @property
    def _private(self) -> PrivateDirectory:
        if self._directory is None:
            raise self._not_started()
        return self._directory

    def _prepare(self) -> None:
        self._account = server_account()
        self._directory = PrivateDirectory(f"relay-{self.title.lower()}-", self._account)
        self._set_up()

    def _launch(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            log_start = self.log.stat().st_size if self.log.exists() else 0
            self._process = self._spawn()
            if self._becomes_ready(self._process, deadline):
                return
            said = read_from(self.log, log_start)
            if not self.remains.search(said):
                raise self._failure(f"{self.ending} instead of starting", said)
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

    def kill(self) -> None:
        if self.running:
            end(self.process)

    def _remove(self) -> None:
        try:
            self._discard()
        finally:
            if self._directory is not None:
                self._directory.remove()
                self._directory = None


def read_from(log: Path, offset: int) -> str:
    """What the log says from that byte on."""
    with log.open("rb") as file:
        file.seek(offset)
        return file.read().decode(errors="replace")
