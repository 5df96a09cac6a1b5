"""A database per test, cloned from a template that is migrated once."""

import itertools
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import psycopg
from psycopg import sql

from relay.demo.access import RELAY, create_database
from relay.schema import migrate
from tests.support.servers import SERVICES, PostgresServer

SQL = Path(__file__).parents[2] / "sql"


@dataclass
class Database:
    """A migrated database. `dsn` is the relay's: it owns the database and may replicate."""

    name: str
    server: PostgresServer

    @property
    def dsn(self) -> str:
        return self.server.dsn_of(self.name, RELAY)

    @property
    def superuser_dsn(self) -> str:
        return self.server.dsn_of(self.name)

    def role_dsn(self, role: str) -> str:
        """The DSN of a service's role."""
        return self.server.dsn_of(self.name, role)

    @cached_property
    def connection(self) -> "psycopg.Connection":
        """The superuser's, in autocommit mode."""
        return psycopg.connect(self.superuser_dsn, autocommit=True)

    def reconnect(self) -> None:
        """After the server was away."""
        self.connection.close()
        del self.connection

    def query(self, text: str, *parameters: object) -> list[tuple[object, ...]]:
        """Rows of a query; none for a statement that has none."""
        cursor = self.connection.execute(sql.SQL(text), parameters)  # type: ignore[arg-type]
        return cursor.fetchall() if cursor.description else []

    def value(self, text: str, *parameters: object) -> object:
        """The one value of a query."""
        ((value,),) = self.query(text, *parameters)
        return value


_NUMBERS = itertools.count(1)
"""One line of numbers for all: several may make databases on one server."""


class Databases:
    """Makes databases, and drops them with their slots."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._prefix = f"t{os.getpid()}_"
        self._templates: dict[tuple[str, ...], str] = {}
        self._made: list[Database] = []

    def create(self, *folders: str) -> Database:
        """A database with the relay's schema and the tables of these folders below sql/."""
        if folders not in self._templates:
            template = self._create("template1")
            for folder in folders or (None,):
                migrate(template.dsn, SQL / folder if folder else None, service_role=folder)
            if not folders:
                for role in SERVICES:
                    template.query(f"SELECT relay.grant_service('{role}')")
            template.connection.close()  # a template in use cannot be cloned
            self._templates[folders] = template.name
        return self._create(self._templates[folders])

    def create_empty(self) -> Database:
        """A database without the relay's schema."""
        return self._create("template1")

    def _create(self, template: str) -> Database:
        name = f"{self._prefix}{next(_NUMBERS)}"
        with psycopg.connect(self._server.dsn, autocommit=True) as connection:
            # By files: page by page, all of it would go through the WAL, and every slot would have to read past it.
            clone = sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE {} STRATEGY FILE_COPY")
            connection.execute(clone.format(*map(sql.Identifier, (name, RELAY, template))))
            create_database(connection, name, RELAY, SERVICES)
        database = Database(name, self._server)
        self._made.append(database)
        return database

    def drop(self, database: Database) -> None:
        """Drop a database, its slots, and whoever is still connected."""
        self._made.remove(database)
        database.connection.close()
        with psycopg.connect(self._server.dsn, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots"
                " WHERE database = %s AND active_pid IS NOT NULL",
                (database.name,),
            )
            slots = "SELECT slot_name FROM pg_replication_slots WHERE database = %s AND NOT temporary"
            for (slot,) in connection.execute(slots, (database.name,)).fetchall():
                _drop_slot(connection, slot)
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(database.name)))

    def drop_all(self) -> None:
        """The templates too."""
        for database in list(self._made):
            self.drop(database)


def _drop_slot(connection: "psycopg.Connection", slot: str) -> None:
    """A walsender that was told to end takes a moment: PostgreSQL itself waits for it, a lock_timeout bounds that."""
    for _ in range(100):
        try:
            connection.execute("SELECT pg_drop_replication_slot(%s)", (slot,))
        except psycopg.errors.ObjectInUse:
            connection.execute("SELECT pg_sleep(0.05)")
        else:
            return
    raise AssertionError(f"slot {slot} is still in use")
