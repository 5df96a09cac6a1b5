"""The rows of relay.saga: where each saga stands, for whoever gets its next reply."""

from dataclasses import dataclass
from typing import Any, Final, LiteralString, cast
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import scalar_row, tuple_row
from pydantic_core import to_json

from relay.saga.transition import Record, Status

_NEW_ID: Final[LiteralString] = "SELECT relay.new_message_id()"

_INSERT: Final[LiteralString] = """
    INSERT INTO relay.saga (id, type, status, step, state) VALUES (%s, %s, %s, %s, %s::text::json)
"""

_LOCK: Final[LiteralString] = "SELECT type, status, step, state FROM relay.saga WHERE id = %s FOR UPDATE"

_UPDATE: Final[LiteralString] = """
    UPDATE relay.saga SET status = %s, step = %s, state = %s::text::json, updated_at = clock_timestamp() WHERE id = %s
"""


@dataclass(frozen=True, slots=True)
class Stored:
    """A saga's row."""

    type: str
    record: Record


async def new_id(conn: AsyncConnection[Any]) -> UUID:
    """An id for a saga: sorted by time, where the server can make such ids."""
    cursor = await conn.cursor(row_factory=scalar_row).execute(_NEW_ID)
    return cast(UUID, await cursor.fetchone())


async def insert(conn: AsyncConnection[Any], saga_id: UUID, saga_type: str, record: Record) -> None:
    """Store a saga that has been started."""
    await conn.execute(_INSERT, (saga_id, saga_type, record.status, record.step, to_json(record.state).decode()))


async def lock(conn: AsyncConnection[Any], saga_id: UUID) -> Stored | None:
    """Read a saga and lock it until the transaction ends; None when there is none of that id.

    Whoever else has it locked is waited for, so that the replies of one saga are handled one after the other.
    """
    cursor = await conn.cursor(row_factory=tuple_row).execute(_LOCK, (saga_id,))
    row = await cursor.fetchone()
    if row is None:
        return None
    saga_type, status, step, state = row
    return Stored(saga_type, Record(Status(status), step, state))


async def update(conn: AsyncConnection[Any], saga_id: UUID, record: Record) -> None:
    """Store where a saga stands now. The caller holds its lock."""
    await conn.execute(_UPDATE, (record.status, record.step, to_json(record.state).decode(), saga_id))
