"""The rows of the outbox that were committed before the source's slot existed."""

from collections.abc import AsyncIterator
from typing import Final

from psycopg import AsyncConnection, AsyncServerCursor, sql
from psycopg.rows import TupleRow

from relay.capture.message import Message
from relay.capture.outbox import COLUMNS, SCHEMA, TABLE, to_message

FETCH: Final = 500
"""Rows fetched at once: the backlog may be larger than memory."""


async def backlog(connection: AsyncConnection[TupleRow], snapshot: str) -> AsyncIterator[tuple[int, Message]]:
    """The `seq` and the message of every row that the exported snapshot shows, in the order of `seq`."""
    columns = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(column)) for column in COLUMNS)
    query = sql.SQL("SELECT seq, {} FROM {} ORDER BY seq").format(columns, sql.Identifier(SCHEMA, TABLE))
    async with connection.transaction():
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        await connection.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(snapshot)))
        async with AsyncServerCursor(connection, "backlog") as cursor:
            cursor.itersize = FETCH
            await cursor.execute(query)
            async for seq, *row in cursor:
                yield seq, to_message([None if value is None else value.encode() for value in row])
