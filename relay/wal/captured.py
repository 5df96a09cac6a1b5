"""relay.captured: the tables whose changes a slot's relay publishes, and how far the copy of each has come."""

from collections.abc import Mapping
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
    oid: int
    """Of the table, which may be renamed."""
    copy_id: str
    """What tells the copy of its rows from earlier and later ones. Ids of messages come from it."""


def begun(oid: int, *, copied: bool) -> Captured:
    """A table that is captured from now on: once its rows are copied, or without that."""
    return Captured(State.COPYING if copied else State.STREAMING, None, oid, str(uuid4()))


async def read_captured(connection: AsyncConnection[TupleRow], slot: str) -> dict[TableName, Captured]:
    """Every table that is captured for a slot."""
    query: LiteralString = """
        SELECT table_schema, table_name, state, since::text, table_oid::bigint, copy_id::text
        FROM relay.captured WHERE slot = %s
    """
    rows = await (await connection.execute(query, (slot,))).fetchall()
    return {
        TableName(schema, name): Captured(State(state), parse_lsn(since) if since else None, oid, copy_id)
        for schema, name, state, since, oid, copy_id in rows
    }


async def write_captured(
    connection: AsyncConnection[TupleRow], slot: str, tables: Mapping[TableName, Captured]
) -> None:
    """Record that these tables are captured, and no others; all or nothing."""
    insert: LiteralString = """
        INSERT INTO relay.captured (slot, table_schema, table_name, state, since, table_oid, copy_id)
        SELECT %s, * FROM unnest(%s::text[], %s::text[], %s::text[], %s::pg_lsn[], %s::oid[], %s::uuid[])
    """
    rows = [
        (*table, one.state, None if one.since is None else format_lsn(one.since), one.oid, one.copy_id)
        for table, one in tables.items()
    ]
    async with connection.transaction():
        await connection.execute("DELETE FROM relay.captured WHERE slot = %s", (slot,))
        if rows:
            await connection.execute(insert, (slot, *map(list, zip(*rows, strict=True))))
