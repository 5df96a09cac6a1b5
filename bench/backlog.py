"""Databases with rows in the outbox that a slot has not seen yet: many measurements read the same ones."""

import itertools
import random
import secrets
import string
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, LiteralString

import psycopg
from psycopg import sql

from bench.helper import Helper, MeasurementFailed, number
from bench.matrix import Shape
from bench.subject import Relay, migrate
from bench.times import STAMP_DIGITS
from relay.demo.access import RELAY, create_database, create_role
from relay.demo.host import LOOPBACK
from relay.demo.postgres import PrivatePostgres

AGGREGATES: Final = 1000
TYPES: Final = ("OrderCreated", "OrderPaid", "OrderShipped", "OrderClosed")

NOISE_CHARACTERS: Final = 8192
"""Payloads are cut out of so much random text: PostgreSQL would squeeze anything regular."""
SHIFTS: Final = NOISE_CHARACTERS - 4096
"""At so many places. The longest payload fits behind the last."""

POLL_S: Final = 0.01
RELEASE_S: Final = 10.0
"""How long a walsender may take to let go of its slot."""
HELPER_S: Final = 30.0

# A procedure: it commits in between. The text that frames number and noise is of JSON.
WRITE: Final[LiteralString] = """
    DO $$ DECLARE noise CONSTANT text := {noise}; types CONSTANT text[] := {types}; BEGIN
        FOR start IN 0..{last} BY {step} LOOP
            INSERT INTO relay.outbox (aggregate_type, aggregate_id, type, payload)
            SELECT 'order', (n % {aggregates})::text, types[1 + n % {type_count}],
                   ('{{"n": "' || lpad(n::text, {digits}, '0') || '", "text": "'
                       || substr(noise, 1 + n * 7 % {shifts}, {length}) || '"}}')::json
            FROM generate_series(start + 1, start + {step}) AS n;
            COMMIT;
        END LOOP;
    END $$
"""

FRAME_CHARACTERS: Final = len('{"n": "", "text": ""}') + STAMP_DIGITS


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
class Backlog:
    """A database whose outbox has rows of one shape, and the LSN behind them."""

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
    def database(self) -> Iterator[Database]:
        """A database for a while. The relay has been started in it once, and stopped."""
        name = f"bench_{next(_numbers)}"
        made = Database(self._server.dsn(name, RELAY, self._password), self._server.dsn(name), f"{name}_template")
        with psycopg.connect(self._server.dsn("postgres"), autocommit=True) as connection:
            create_database(connection, name, RELAY)
            try:
                self._start_once(made)
                yield made
            finally:
                _drop_slot(connection, made.template)
                connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
                connection.execute("CHECKPOINT")  # gives the WAL of the slot back

    @contextmanager
    def backlog(self, shape: Shape) -> Iterator[Backlog]:
        """A database with rows of that shape that nobody has read yet."""
        with self.database() as database:
            with psycopg.connect(database.superuser_dsn, autocommit=True) as connection:
                connection.execute("SET synchronous_commit = off")
                connection.execute(_write(shape))
                connection.execute("SET synchronous_commit = on")
                connection.execute("CREATE TABLE written ()")  # its commit makes everything before it durable
                (end,) = connection.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone() or ("",)
                connection.execute("CHECKPOINT")
            yield Backlog(database, shape, end)

    def _start_once(self, database: Database) -> None:
        migrate(self._relay, database.dsn)
        with Helper("bench.sink", "--expect", 1) as sink:
            port = int(number(sink.until("listening", HELPER_S), "port"))
            with Relay(
                self._relay, database.dsn, f"amqp://bench:bench@{LOOPBACK}:{port}/%2F", database.template
            ) as relay:
                relay.streaming()
                relay.stop()


def _write(shape: Shape) -> sql.Composed:
    dice = random.Random(shape.rows)
    noise = "".join(dice.choices(string.ascii_letters + string.digits, k=NOISE_CHARACTERS))
    return sql.SQL(WRITE).format(
        last=shape.rows - 1,
        step=shape.per_transaction,
        aggregates=AGGREGATES,
        types=list(TYPES),
        type_count=len(TYPES),
        digits=STAMP_DIGITS,
        noise=noise,
        shifts=SHIFTS,
        length=shape.payload_bytes - FRAME_CHARACTERS,
    )


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
