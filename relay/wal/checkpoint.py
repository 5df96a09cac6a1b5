"""relay.checkpoint: what the relay remembers, in the source's own database, about each of its slots."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

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


async def read_checkpoint(connection: AsyncConnection[TupleRow], slot: str) -> Checkpoint | None:
    """The checkpoint of a slot, None before its first start."""
    row = await fetch_one(connection, "SELECT state, flush_lsn::text FROM relay.checkpoint WHERE slot = %s", (slot,))
    return Checkpoint(State(row[0]), parse_lsn(row[1]) if row[1] else None) if row else None


async def write_state(connection: AsyncConnection[TupleRow], slot: str, state: State) -> None:
    """Record how far the first start has come."""
    await connection.execute(
        "INSERT INTO relay.checkpoint (slot, state) VALUES (%s, %s)"
        " ON CONFLICT (slot) DO UPDATE SET state = excluded.state, written_at = clock_timestamp()",
        (slot, state),
    )


async def write_progress(
    connection: AsyncConnection[TupleRow], slot: str, flush: Lsn, oldest_unconfirmed_commit_at: datetime | None
) -> None:
    """Record what is settled, and since when the oldest unsettled commit waits."""
    await connection.execute(
        "UPDATE relay.checkpoint"
        " SET flush_lsn = %s, oldest_unconfirmed_commit_at = %s, written_at = clock_timestamp() WHERE slot = %s",
        (format_lsn(flush), oldest_unconfirmed_commit_at, slot),
    )
