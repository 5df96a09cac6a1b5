"""The DDL in sql/, applied in order and once."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import LiteralString

import psycopg
from psycopg import Connection

from relay.errors import ConfigError, RelayError
from relay.wal.connection import prepared, refusal

LOCK_KEY = 0x72656C6179
"""Advisory lock: two migrations of one database wait for each other. (The letters of "relay".)"""

OWN = "relay"
"""Under what the relay's own migrations are remembered; those of other folders, under the folder's name."""

_BOOKKEEPING: LiteralString = """
    CREATE SCHEMA IF NOT EXISTS relay;
    CREATE TABLE IF NOT EXISTS relay.migration (
        folder      text        NOT NULL,
        name        text        NOT NULL,
        applied_at  timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (folder, name)
    )
"""


_OUTSIDE: LiteralString = """
    SELECT set_config('search_path', string_agg(quote_ident(name), ', ' ORDER BY position), true)
    FROM unnest(current_schemas(false)) WITH ORDINALITY AS path (name, position) WHERE name <> 'relay'
"""


class MigrationFailed(RelayError):
    """A migration's SQL was refused; nothing of that file has been applied."""

    hint = "Migrations run as the database's owner: see docs/setup.md."


@dataclass(frozen=True, slots=True)
class Migration:
    """A numbered file, like 0001_messages.sql, in its folder."""

    folder: str
    name: str
    path: Path


def sql_folder() -> Path:
    """Where the relay's own migrations are: inside an installed package, or beside it in a checkout."""
    installed = Path(__file__).parent / "sql"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "sql" / "relay"


def migrations(folder: Path, name: str) -> Iterator[Migration]:
    """The migrations of a folder, in order. Raises ConfigError when it holds none."""
    paths = sorted(folder.glob("[0-9]*.sql"))
    if not paths:
        raise ConfigError(f"{folder} holds no numbered migrations like 0001_orders.sql")
    return (Migration(name, path.name, path) for path in paths)


def migrate(dsn: str, folder: Path | None = None, *, service_role: str | None = None) -> list[str]:
    """Apply what is missing: the relay's own migrations, then those of `folder`, each in one transaction.

    `service_role` is given the rights that a service needs. Returns the names of what was applied.
    Raises SourceError, SourceAway or MigrationFailed.
    """
    wanted = list(migrations(sql_folder(), OWN))
    if folder is not None:
        if folder.resolve().name == OWN:
            raise ConfigError(f"{folder} is called like the relay's own migrations", "Give the folder another name.")
        wanted += migrations(folder, folder.resolve().name)
    try:
        with psycopg.connect(prepared(dsn, "saga-relay migrate"), autocommit=True) as connection:
            connection.execute("SELECT pg_advisory_lock(%s)", (LOCK_KEY,))
            applied = [step for step in wanted if _apply(connection, step)]
            if service_role is not None:
                connection.execute("SELECT relay.grant_service(%s)", (service_role,))
    except psycopg.Error as error:
        raise refusal(error, dsn) from error
    return [f"{step.folder}/{step.name}" for step in applied]


def _apply(connection: Connection, step: Migration) -> bool:
    """Apply one migration unless it is there. The bookkeeping commits with it."""
    with connection.transaction():
        if connection.execute("SELECT to_regclass('relay.migration') IS NULL").fetchone() == (True,):
            connection.execute(_BOOKKEEPING)
        known = "SELECT 1 FROM relay.migration WHERE folder = %s AND name = %s"
        if connection.execute(known, (step.folder, step.name)).fetchone():
            return False
        # The default search path begins with the schema named like the role. For a role `relay` that is the relay's,
        # and tables of somebody's own migration, created without naming a schema, would land in it.
        connection.execute(_OUTSIDE)
        try:
            connection.execute(step.path.read_bytes())
        except psycopg.Error as error:
            raise MigrationFailed(f"{step.folder}/{step.name}: {error.diag.message_primary or error}") from error
        connection.execute("INSERT INTO relay.migration (folder, name) VALUES (%s, %s)", (step.folder, step.name))
    return True
