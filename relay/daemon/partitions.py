"""The outbox and the saga log over time: their partitions are made ahead.

Those of the outbox are dropped when they are old and surely published; those of the saga log are kept.
"""

import asyncio
from collections.abc import Callable
from datetime import date, timedelta
from typing import Final, LiteralString, NamedTuple

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from relay.backoff import Backoff
from relay.errors import SourceError
from relay.log import SourceLog
from relay.wal.connection import connect
from relay.wal.lsn import Lsn, format_lsn, parse_lsn

OUTBOX: Final = "outbox"
SAGA_LOG: Final = "saga_log"

DAYS_AHEAD: Final = 7
"""How many days to come have a partition: so long a relay may be away before rows land in the default one."""

MONTHS_AHEAD: Final = 3
"""How many months to come have a partition of the saga log, for the same reason."""

LOOK_EVERY_S: Final = 600.0
"""How often the partitions are looked at when nothing was left to do. There is work once a day."""

RETRY_FIRST_S: Final = 2.0
"""The delay after a lock that was not to be had, or while something old is not confirmed yet."""

RETRY_CAP_S: Final = 60.0
"""The longest such delay: an attempt is a connection, and up to 50 ms in which writers may queue behind it."""

PATIENCE: Final = 12
"""Attempts in a row with something in the way before the log says what: some five minutes, with the delays above."""

PRUNE_ROWS: Final = 5_000
"""Rows of the outbox's default partition that are deleted in one transaction: below 0.2 s on two busy cores."""

_SESSION: Final[LiteralString] = (
    # What is looked at under a lock has to be what is there. And a synchronous standby is not waited for with these
    # locks held: what a failover undoes is done again.
    "SET default_transaction_isolation = 'read committed'; SET synchronous_commit = off"
)

_PROOF: Final[LiteralString] = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text, pg_current_wal_insert_lsn()::text"


class Proof(NamedTuple):
    """Every row of the outbox with a txid below `before` is settled once everything before `lsn` is.

    `before` is the xmin of a snapshot: those transactions had ended when it was taken. `lsn` is the insert position
    of the WAL, read after that: the commit of each of them lies before it.
    """

    before: str
    lsn: Lsn


class Partitions:
    """Looks after relay.outbox and relay.saga_log, during one session of a source, on short connections of its own.

    `safe` is the LSN up to which everything is settled. A row of the outbox goes `retention` after its `created_at`,
    and only if it is settled; an event of the saga log never goes. A lock is waited for no longer than
    sql/relay/0005_outbox_partitions.sql says; what is in the way of one table is not in the way of the other. Nothing
    that goes wrong here stops the source: a row without a partition lands in the default one, and is published.
    """

    def __init__(self, dsn: str, name: str, retention: timedelta, safe: Callable[[], Lsn], log: SourceLog) -> None:
        self._dsn = dsn
        self._name = name
        self._retention = retention
        self._safe = safe
        self._log = log
        self._proof: Proof | None = None
        self._in_the_way: dict[str, str] = {}  # by table
        self._refused: set[tuple[str, str | None]] = set()
        self._kept: set[date] = set()

    async def run(self) -> None:
        """Attend to the partitions now and every LOOK_EVERY_S, until cancelled. What fails is tried again."""
        backoff = Backoff(RETRY_FIRST_S, RETRY_CAP_S)
        failed = 0
        while True:
            if await self.attend():
                failed = 0
                backoff.reset()
                await asyncio.sleep(LOOK_EVERY_S)
                continue
            failed = failed + 1 if self._in_the_way else 0
            if failed == PATIENCE:
                self._log.warning("partitions_blocked", self._trouble())
            await asyncio.sleep(backoff.next())

    def _trouble(self) -> str:
        words = "; ".join(f"relay.{table}: {what}" for table, what in self._in_the_way.items())
        return f"not looked after is {words}; see docs/outbox-partitions.md"

    async def attend(self) -> bool:
        """Make, drop and prune what is due. False when some of it has to be tried again soon."""
        self._in_the_way = {}
        try:
            async with await connect(self._dsn, name=self._name) as connection:
                await connection.execute(_SESSION)
                created = await self._create(connection, OUTBOX, DAYS_AHEAD)
                created += await self._create(connection, SAGA_LOG, MONTHS_AHEAD)
                if created:
                    self._log.info("partitions_created", f"made {', '.join(created)}")
                return await self._remove(connection) and not self._in_the_way
        except (psycopg.Error, SourceError) as error:
            self._in_the_way[OUTBOX] = self._in_the_way[SAGA_LOG] = _one_line(error)
            return False

    async def _create(self, connection: AsyncConnection[TupleRow], table: str, ahead: int) -> list[str]:
        """Make the partitions of a table to come. The names of those that were made."""
        created = []
        missing: LiteralString = "SELECT first FROM relay.partitions_missing(%s, %s)"
        for (first,) in await self._ask(connection, table, missing, table, ahead):
            if await self._ask(connection, table, "SELECT relay.create_partition(%s, %s)", table, first) == [(True,)]:
                created.append(_partition(table, first))
            if table in self._in_the_way:
                break  # the others wait for the same lock, and writers would wait with each of them
        return created

    async def _remove(self, connection: AsyncConnection[TupleRow]) -> bool:
        """Drop and prune what is past the retention. False while the proof that it is published is outstanding."""
        days = await self._ask(connection, OUTBOX, "SELECT day FROM relay.outbox_days_expired(%s)", self._retention)
        rows = await self._ask(connection, OUTBOX, "SELECT relay.outbox_default_expired(%s)", self._retention)
        if not days and rows != [(True,)]:
            return True
        if self._proof is None:
            ((before, lsn),) = await (await connection.execute(_PROOF)).fetchall()
            self._proof = Proof(before, parse_lsn(lsn))
        if self._safe() < self._proof.lsn:
            return False
        for (day,) in days:
            await self._drop(connection, day, self._proof)
            if OUTBOX in self._in_the_way:
                break
        if rows == [(True,)]:
            await self._prune(connection, self._proof)
        if OUTBOX not in self._in_the_way:
            self._proof = None
        return True

    async def _drop(self, connection: AsyncConnection[TupleRow], day: date, proof: Proof) -> None:
        query: LiteralString = "SELECT relay.drop_outbox_partition(%s, %s, %s::xid8, %s::pg_lsn)"
        parameters = (day, self._retention, proof.before, format_lsn(proof.lsn))
        dropped = await self._ask(connection, OUTBOX, query, *parameters)
        if dropped == [(True,)]:
            self._kept.discard(day)
            self._log.info("partition_dropped", f"dropped {_partition(OUTBOX, day)}: all of it is published")
        elif dropped == [(False,)] and day not in self._kept:
            self._kept.add(day)
            words = (
                f"{_partition(OUTBOX, day)} is kept: rows of transaction {proof.before} or later may not be published"
            )
            self._log.warning("partition_kept", words)

    async def _prune(self, connection: AsyncConnection[TupleRow], proof: Proof) -> None:
        """Delete from the default partition, oldest first, PRUNE_ROWS at a time."""
        query: LiteralString = "SELECT relay.prune_outbox_default(%s, %s::xid8, %s::pg_lsn, %s)"
        parameters = (self._retention, proof.before, format_lsn(proof.lsn), PRUNE_ROWS)
        total, pruned = 0, PRUNE_ROWS
        while pruned == PRUNE_ROWS:
            answer = await self._ask(connection, OUTBOX, query, *parameters)
            pruned = answer[0][0] if answer else 0
            total += pruned
        if total:
            self._log.info("default_pruned", f"deleted {total} published rows from relay.outbox_default")

    async def _ask(
        self, connection: AsyncConnection[TupleRow], table: str, query: LiteralString, *parameters: object
    ) -> list[TupleRow]:
        """The answer, or none when the server refuses: for now, or until somebody mends it. Raises when it is away.

        `table` is what it is about: what is in the way is noted for it alone.
        """
        try:
            return await (await connection.execute(query, parameters)).fetchall()
        except psycopg.Error as error:
            if connection.closed:
                raise
            if isinstance(error, psycopg.OperationalError):
                self._in_the_way[table] = _one_line(error)
            elif (table, error.sqlstate) not in self._refused:
                self._refused.add((table, error.sqlstate))
                words = f"relay.{table} is not looked after: {_one_line(error)}; see docs/outbox-partitions.md"
                self._log.warning("partitions_refused", words)
            return []


def _partition(table: str, first: date) -> str:
    return f"{table}_p{first:%Y%m}" if table == SAGA_LOG else f"{table}_p{first:%Y%m%d}"


def _one_line(error: Exception) -> str:
    primary = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    return " ".join((primary or str(error)).split())
