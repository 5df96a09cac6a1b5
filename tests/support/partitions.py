"""Looking after partitions: a caretaker as the relay runs one, and what is in its way."""

from datetime import timedelta
from typing import Final, LiteralString

import psycopg
import pytest

from relay.daemon.partitions import Partitions
from relay.log import SourceLog
from relay.wal.lsn import Lsn
from tests.support.database import Database
from tests.support.waiting import eventually

WEEK: Final = timedelta(days=7)
EVERYTHING: Final = Lsn(2**63)

_WAITS: Final = (
    "SELECT count(*) FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = %s)"
)


class Settled:
    """Up to where a relay has settled everything, as the test wants it."""

    def __init__(self, lsn: Lsn = EVERYTHING) -> None:
        self.lsn = lsn
        self.asked = 0

    def __call__(self) -> Lsn:
        self.asked += 1
        return self.lsn


def caretaker(dsn: str, settled: Settled | None = None, retention: timedelta = WEEK) -> Partitions:
    return Partitions(dsn, "saga-relay test", retention, settled or Settled(), SourceLog("shop", "relay_shop"))


def actions(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log says, by its actions."""
    return [record.__dict__["action"] for record in caplog.records if "action" in record.__dict__]


def attached(database: Database, table: str) -> list[str]:
    """The partitions besides the default one, in the order of their names."""
    query = "SELECT inhrelid::regclass::text AS name FROM pg_inherits WHERE inhparent = %s::regclass ORDER BY name"
    names = [str(row[0]) for row in database.query(query, f"relay.{table}")]
    return [name for name in names if name != f"relay.{table}_default"]


def ask(dsn: str, query: LiteralString, *parameters: object) -> object:
    """The one value of a query, on a connection of its own; None for a statement."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(query, parameters)
        row = cursor.fetchone() if cursor.description else None
    return row[0] if row else None


def given_patience(database: Database, function: str) -> None:
    """It waits for its locks until the test has seen it wait."""
    database.query(f"ALTER FUNCTION relay.{function} SET lock_timeout = '30s'")


async def waits_for_a_lock(database: Database) -> None:
    await eventually(lambda: database.value(_WAITS, database.name) == 1)


def attachments_proven(dsn: str, query: LiteralString, *parameters: object) -> list[str]:
    """The default partitions that PostgreSQL did not read while it attached others, because it had a proof."""
    said: list[str] = []
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.add_notice_handler(lambda notice: said.append(str(notice.message_primary)))
        connection.execute("SET client_min_messages = debug1")
        connection.execute(query, parameters)
    words = "updated partition constraint for default partition"
    return [line.split('"')[1] for line in said if line.startswith(words) and "is implied" in line]
