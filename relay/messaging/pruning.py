"""The job that forgets what can no longer matter: old ids in the inbox, old operations."""

import asyncio
from datetime import timedelta
from functools import partial
from typing import Any, Final, LiteralString

from psycopg import AsyncConnection

from relay.messaging.attempt import attempt
from relay.messaging.log import ServiceLog
from relay.messaging.operation import OPERATION_RETENTION
from relay.messaging.receiver import INBOX_RETENTION
from relay.messaging.transaction import Pool

INBOX_MARGIN: Final = timedelta(days=1)
"""How much longer than INBOX_RETENTION an id is kept: clocks of senders, services and databases differ."""

PRUNE_EVERY_S: Final = 600.0
"""How often this looks for what is old."""

BATCH: Final = 1_000
"""Rows deleted in one transaction."""

BATCH_PAUSE_S: Final = 0.1
"""Between two of them, so that they do not crowd out the work of the service."""

# By the sender's time, because that is what a copy is judged by when it comes again; those that tell none by ours.
_INBOX: Final[LiteralString] = """
    DELETE FROM relay.inbox WHERE ctid = ANY (ARRAY (
        SELECT ctid FROM relay.inbox
        WHERE consumer = %(consumer)s AND handled_at < now() - %(age)s
          AND (sent_at IS NULL OR sent_at < now() - %(age)s)
        LIMIT %(batch)s))
"""

# The time is asked for once more: older releases of PostgreSQL delete by ctid also what somebody has changed meanwhile.
_OPERATIONS: Final[LiteralString] = """
    DELETE FROM relay.operation WHERE at < now() - %(age)s AND ctid = ANY (ARRAY (
        SELECT ctid FROM relay.operation WHERE consumer = %(consumer)s AND at < now() - %(age)s LIMIT %(batch)s))
"""

_TABLES: Final = (
    ("inbox", _INBOX, INBOX_RETENTION + INBOX_MARGIN),
    ("operation", _OPERATIONS, OPERATION_RETENTION),
)


class Pruning:
    """Deletes what is old of one service, in small transactions."""

    def __init__(self, consumer: str) -> None:
        self._consumer = consumer
        self._log = ServiceLog(consumer)

    async def run(self, pool: Pool) -> None:
        """Prune now and then, until cancelled. Raises what psycopg raises when the database goes away."""
        while True:
            for table, statement, age in _TABLES:
                await self._prune(pool, table, statement, age)
            await asyncio.sleep(PRUNE_EVERY_S)

    async def _prune(self, pool: Pool, table: str, statement: LiteralString, age: timedelta) -> None:
        parameters = {"consumer": self._consumer, "age": age, "batch": BATCH}
        total = 0
        while (deleted := await attempt(pool, partial(_delete, statement=statement, parameters=parameters))) > 0:
            total += deleted
            await asyncio.sleep(BATCH_PAUSE_S)
        if total:
            words = f"{self._consumer}: forgot {total} rows of relay.{table} that are older than {age.days} days"
            self._log.info("pruned", words, table=table, rows=total)


async def _delete(conn: AsyncConnection[Any], statement: LiteralString, parameters: dict[str, object]) -> int:
    return (await conn.execute(statement, parameters)).rowcount
