"""relay.checkpoint: what the relay remembers, in the source's own database, about each of its slots."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import LiteralString

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from relay.wal.connection import fetch_one
from relay.wal.lsn import Lsn, format_lsn, parse_lsn


class State(StrEnum):
    """How far a source's first start has come."""

    COPYING = "copying"
    """Rows older than the slot are being published. After a crash the slot is dropped and that begins again."""
    STREAMING = "streaming"
    """Everything older than the slot is published; from here on the slot is what must not be lost."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What was last written about a slot."""

    state: State
    flush_lsn: Lsn | None
    tables_since: Lsn | None
    """The publication of plain tables was there at this position; None when that is not known."""


async def read_checkpoint(connection: AsyncConnection[TupleRow], slot: str) -> Checkpoint | None:
    """The checkpoint of a slot, None before its first start."""
    query: LiteralString = "SELECT state, flush_lsn::text, tables_since::text FROM relay.checkpoint WHERE slot = %s"
    row = await fetch_one(connection, query, (slot,))
    if row is None:
        return None
    state, flush, tables_since = row
    return Checkpoint(State(state), *(None if lsn is None else parse_lsn(lsn) for lsn in (flush, tables_since)))


async def write_state(connection: AsyncConnection[TupleRow], slot: str, state: State) -> None:
    """Record how far the first start has come."""
    await connection.execute(
        "INSERT INTO relay.checkpoint (slot, state) VALUES (%s, %s)"
        " ON CONFLICT (slot) DO UPDATE SET state = excluded.state, written_at = clock_timestamp()",
        (slot, state),
    )


async def write_tables_since(connection: AsyncConnection[TupleRow], slot: str, *, before_slot: bool) -> Lsn:
    """Record that the publication of plain tables is there: before the slot was, or by now. Return the position."""
    query: LiteralString = """
        UPDATE relay.checkpoint SET tables_since = CASE WHEN %s THEN '0/0' ELSE pg_current_wal_insert_lsn() END
        WHERE slot = %s RETURNING tables_since::text
    """
    (since,) = await fetch_one(connection, query, (before_slot, slot)) or ("0/0",)
    return parse_lsn(since)


async def forget_tables_since(connection: AsyncConnection[TupleRow], slot: str) -> None:
    """The publication of plain tables has just been created: from where on it is there is not known yet."""
    await connection.execute("UPDATE relay.checkpoint SET tables_since = NULL WHERE slot = %s", (slot,))


async def write_progress(
    connection: AsyncConnection[TupleRow], slot: str, flush: Lsn, oldest_unconfirmed_commit_at: datetime | None
) -> None:
    """Record what is settled, and since when the oldest unsettled commit waits."""
    await connection.execute(
        "UPDATE relay.checkpoint"
        " SET flush_lsn = %s, oldest_unconfirmed_commit_at = %s, written_at = clock_timestamp() WHERE slot = %s",
        (format_lsn(flush), oldest_unconfirmed_commit_at, slot),
    )
