"""A private epmd: the port mapper that every Erlang node, RabbitMQ among them, registers with."""

import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from relay.demo.servers.host import (
    CONNECT_S,
    LOOPBACK,
    POLL_S,
    Account,
    ServerFailed,
    ServerMissing,
    bound_socket,
    end,
    environment,
    find_program,
    spawn,
)
from relay.demo.servers.server import PortTaken

START_S = 10.0

WITH_OUR_SOCKET = 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$1" -systemd -port "$2" 3<&0 0</dev/null'
"""Hands the socket on standard input over as systemd does: as descriptor 3, to the process that LISTEN_PID names."""

NAMES_REQUEST = b"\x00\x01n"
"""Answered with epmd's port in four bytes, and the nodes. Source: Erlang's documentation, "Distribution Protocol"."""


class PortMapper:
    """An epmd on a port of our own, on 127.0.0.1. RabbitMQ would start one that others share and that outlives it."""

    def __init__(self, port: int, account: Account, directory: Path) -> None:
        self._port = port
        self._account = account
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Its process; None before the first start."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start it and wait until it takes connections; nothing if it runs.

        Raises PortTaken, ServerMissing, ServerFailed.
        """
        if self._process is not None and self._process.poll() is None:
            return
        program = find_program("epmd")
        if program is None:
            raise ServerMissing("There is no epmd on this machine.", "It is a part of Erlang, which RabbitMQ needs.")
        try:
            listener = bound_socket(self._port)
        except OSError as error:
            raise PortTaken(f"epmd cannot have port {self._port}: {error.strerror}.") from error
        if self._takes_a_socket(program):
            with listener:
                listener.listen()
                command = ("/bin/sh", "-c", WITH_OUR_SOCKET, "sh", program, str(self._port))
                self._process = self._spawn(*command, stdin=listener.fileno())
        else:  # it listens on ::1 as well, whatever it is told
            listener.close()
            self._process = self._spawn(program, "-address", LOOPBACK, "-port", str(self._port))
        self._wait(self._process)

    def stop(self) -> None:
        """End it; nothing if it does not run."""
        if self._process is not None:
            end(self._process)

    def _takes_a_socket(self, program: Path) -> bool:
        """Whether it was built to work with systemd, as Debian's: its usage says so. Any unknown option brings that."""
        return "-systemd" in self._account.run(program, "-help").stdout

    def _spawn(self, *command: str | Path, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        log = self._directory / "epmd.log"
        return spawn(command, account=self._account, env=environment(), cwd=self._directory, log=log, stdin=stdin)

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_S
        while not self._answers():
            if process.poll() is not None or time.monotonic() > deadline:
                end(process)
                said = (self._directory / "epmd.log").read_text(errors="replace").strip()
                raise ServerFailed(f"epmd does not answer on port {self._port}.\n{said}")
            time.sleep(POLL_S)

    def _answers(self) -> bool:
        """Whether it tells its port: so it is an epmd, and not just a socket that waits for one."""
        with suppress(OSError), socket.create_connection((LOOPBACK, self._port), CONNECT_S) as connection:
            connection.sendall(NAMES_REQUEST)
            return connection.recv(4) == self._port.to_bytes(4)
        return False
