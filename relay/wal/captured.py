"""relay.captured: the tables whose changes a slot's relay publishes, and how far the copy of each has come."""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import LiteralString, NamedTuple
from uuid import uuid4

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from relay.wal.lsn import Lsn, format_lsn, parse_lsn
from relay.wal.table import TableName


class State(StrEnum):
    """How far the capture of a table has come."""

    COPYING = "copying"
    """The rows that were there before are being published. After a crash that begins again."""
    STREAMING = "streaming"
    """They are, or were not wanted."""


class Captured(NamedTuple):
    """What is known of one table."""

    state: State
    since: Lsn | None
    """What committed before this was in the copy; None where there was no copy, or the slot began with it."""
    copy_id: str
    """What tells the copy of its rows from earlier and later ones. Ids of messages come from it."""


def begun(*, copied: bool) -> Captured:
    """A table that is captured from now on: once its rows are copied, or without that."""
    return Captured(State.COPYING if copied else State.STREAMING, None, str(uuid4()))


async def read_captured(connection: AsyncConnection[TupleRow], slot: str) -> dict[TableName, Captured]:
    """Every table that is captured for a slot."""
    query: LiteralString = (
        "SELECT table_schema, table_name, state, since::text, copy_id::text FROM relay.captured WHERE slot = %s"
    )
    rows = await (await connection.execute(query, (slot,))).fetchall()
    return {
        TableName(schema, name): Captured(State(state), parse_lsn(since) if since else None, copy_id)
        for schema, name, state, since, copy_id in rows
    }


async def write_captured(
    connection: AsyncConnection[TupleRow], slot: str, tables: Mapping[TableName, Captured]
) -> None:
    """Record tables, all or none."""
    query: LiteralString = """
        INSERT INTO relay.captured (slot, table_schema, table_name, state, since, copy_id)
        SELECT %s, * FROM unnest(%s::text[], %s::text[], %s::text[], %s::pg_lsn[], %s::uuid[])
        ON CONFLICT (slot, table_schema, table_name)
        DO UPDATE SET state = excluded.state, since = excluded.since, copy_id = excluded.copy_id
    """
    rows = [
        (*table, one.state, None if one.since is None else format_lsn(one.since), one.copy_id)
        for table, one in tables.items()
    ]
    if rows:
        await connection.execute(query, (slot, *map(list, zip(*rows, strict=True))))


async def forget_captured(connection: AsyncConnection[TupleRow], slot: str, tables: Iterable[TableName]) -> None:
    """These tables are captured no longer."""
    names = list(tables)
    query: LiteralString = """
        DELETE FROM relay.captured USING unnest(%s::text[], %s::text[]) AS gone (schema, name)
        WHERE slot = %s AND table_schema = gone.schema AND table_name = gone.name
    """
    await connection.execute(query, ([table.schema for table in names], [table.name for table in names], slot))
