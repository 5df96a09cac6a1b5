"""Databases with changes that a slot has not seen yet: many measurements read the same ones."""

import itertools
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, LiteralString

import psycopg
from psycopg import sql

from bench.helper import Helper, MeasurementFailed, number
from bench.matrix import Capture, Shape
from bench.rows import prepared, written
from bench.subject import Relay, migrate
from relay.demo.access import RELAY, create_database, create_role
from relay.demo.servers.host import LOOPBACK
from relay.demo.servers.postgres import PrivatePostgres

POLL_S: Final = 0.01
RELEASE_S: Final = 10.0
"""How long a walsender may take to let go of its slot."""
HELPER_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Database:
    """A migrated database that the relay's role owns."""

    dsn: str
    """The relay's."""
    superuser_dsn: str
    template: str
    """The slot that the relay itself made, before there were rows. It is only copied."""

    @contextmanager
    def slot(self) -> Iterator[str]:
        """A copy of the slot that the relay made before there were rows; dropped at the end."""
        with self._slot("SELECT pg_copy_logical_replication_slot(%(template)s, %(name)s)") as name:
            yield name

    @contextmanager
    def slot_here(self) -> Iterator[str]:
        """A slot for what is committed from now on; dropped at the end."""
        with self._slot("SELECT pg_create_logical_replication_slot(%(name)s, 'pgoutput')") as name:
            yield name

    @contextmanager
    def _slot(self, query: LiteralString) -> Iterator[str]:
        name = f"run_{next(_numbers)}"
        with psycopg.connect(self.superuser_dsn, autocommit=True) as connection:
            connection.execute(query, {"template": self.template, "name": name})
        try:
            yield name
        finally:
            with psycopg.connect(self.superuser_dsn, autocommit=True) as connection:
                _drop_slot(connection, name)

    def wait_until_confirmed(self, slot: str, end: str, within_s: float) -> None:
        """Wait until PostgreSQL has been told that all up to `end` is settled. Raises MeasurementFailed."""
        query = "SELECT confirmed_flush_lsn >= %s::pg_lsn FROM pg_replication_slots WHERE slot_name = %s"
        deadline = time.monotonic() + within_s
        with psycopg.connect(self.superuser_dsn, autocommit=True) as connection:
            while connection.execute(query, (end, slot)).fetchone() != (True,):
                if time.monotonic() > deadline:
                    raise MeasurementFailed(f"slot {slot} was not confirmed up to {end} within {within_s:g} s")
                time.sleep(POLL_S)


@dataclass(frozen=True, slots=True)
class ServiceDatabase:
    """The database of a service of the demo, which the relay's role owns."""

    dsn: str
    """The relay's."""
    superuser_dsn: str
    service_dsn: str
    slot: str
    """The slot that the relay is to make. It goes with the database."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """A database with changes of one shape, and the LSN behind them."""

    database: Database
    shape: Shape
    end: str


_numbers = itertools.count(1)


class Databases:
    """Makes databases on a server, each with the slot and the publication that the relay under test makes itself."""

    def __init__(self, server: PrivatePostgres, relay: Path) -> None:
        self._server = server
        self._relay = relay
        self._password = secrets.token_urlsafe(18)
        with psycopg.connect(server.dsn("postgres"), autocommit=True) as connection:
            create_role(connection, RELAY, self._password, "LOGIN REPLICATION")

    @contextmanager
    def database(self, capture: Capture) -> Iterator[Database]:
        """A database for a while. The relay has been started in it once, to capture that, and stopped."""
        name = f"bench_{next(_numbers)}"
        made = Database(self._server.dsn(name, RELAY, self._password), self._server.dsn(name), f"{name}_template")
        with psycopg.connect(self._server.dsn("postgres"), autocommit=True) as connection:
            create_database(connection, name, RELAY)
            try:
                self._start_once(made, capture)
                yield made
            finally:
                _drop_slot(connection, made.template)
                connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
                connection.execute("CHECKPOINT")  # gives the WAL of the slot back

    @contextmanager
    def of_service(self, service: str) -> Iterator[ServiceDatabase]:
        """The database of a service of the demo, for a while: migrated, empty, and without a slot yet."""
        password = secrets.token_urlsafe(18)
        slot = f"{service}_sagas"
        made = ServiceDatabase(
            self._server.dsn(service, RELAY, self._password),
            self._server.dsn(service),
            self._server.dsn(service, service, password),
            slot,
        )
        with psycopg.connect(self._server.dsn("postgres"), autocommit=True) as connection:
            create_role(connection, service, password)
            create_database(connection, service, RELAY, [service])
            try:
                migrate(self._relay, made.dsn, service)
                yield made
            finally:
                _drop_slot(connection, slot)
                connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(service)))
                connection.execute("CHECKPOINT")  # gives the WAL of the slot back

    @contextmanager
    def backlog(self, shape: Shape) -> Iterator[Backlog]:
        """A database with changes of that shape that nobody has read yet."""
        with self.database(shape.capture) as database:
            with psycopg.connect(database.superuser_dsn, autocommit=True) as connection:
                connection.execute("SET synchronous_commit = off")
                connection.execute(written(shape))
                connection.execute("SET synchronous_commit = on")
                connection.execute("CREATE TABLE written ()")  # its commit makes everything before it durable
                (end,) = connection.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone() or ("",)
                connection.execute("CHECKPOINT")
            yield Backlog(database, shape, end)

    def _start_once(self, database: Database, capture: Capture) -> None:
        migrate(self._relay, database.dsn)
        if (statements := prepared(capture)) is not None:
            with psycopg.connect(database.dsn) as connection:
                connection.execute(statements)
        with Helper("bench.sink", "--expect", 1) as sink:
            port = int(number(sink.until("listening", HELPER_S), "port"))
            url = f"amqp://bench:bench@{LOOPBACK}:{port}/%2F"
            with Relay(self._relay, database.dsn, url, database.template, capture) as relay:
                relay.streaming()
                relay.stop()


def _drop_slot(connection: "psycopg.Connection", slot: str) -> None:
    """Nothing if it is not there. A walsender whose client has gone takes a moment to let go of it."""
    deadline = time.monotonic() + RELEASE_S
    while True:
        try:
            query = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s"
            connection.execute(query, (slot,))
        except psycopg.errors.ObjectInUse:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)
        else:
            return
