"""The rows that are in a table when its capture begins: read in a snapshot, as messages."""

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Final

from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow

from relay.capture.captures import Captured
from relay.capture.change import Origin
from relay.capture.columns import EVENT_STORE, OUTBOX, VERSION, Taken
from relay.capture.message import Malformed, Message
from relay.capture.outbox import OutboxCapture
from relay.capture.rows import RowCapture
from relay.capture.table import TableCapture
from relay.wal.description import describe, types_and_key
from relay.wal.lsn import NOWHERE
from relay.wal.pgoutput import Insert, Relation, Row
from relay.wal.table import TableName

SEQ: Final = "seq"
"""The column of relay.outbox and relay.event_store that says in which order rows were inserted."""


class Copy:
    """Reads tables in one snapshot, whole: a policy that hides rows from the relay's role is an error.

    Rows of an outbox or an event store come in their order, as far as a column tells it; those of plain tables in any.
    """

    def __init__(self, connection: AsyncConnection[TupleRow]) -> None:
        """`connection` is for this alone, in autocommit mode."""
        self._connection = connection

    async def begin(self, snapshot: str) -> None:
        """Show what an exported snapshot shows, until the connection is closed."""
        await self._connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        await self._connection.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(snapshot)))
        await self._connection.execute("SET LOCAL row_security = off")

    async def messages(
        self, table: TableName, capture: Captured, copy_id: str
    ) -> AsyncIterator[tuple[int | None, Message | Malformed]]:
        """The messages of a table's rows, those of relay.outbox with their `seq`.

        `capture` is for this table alone; `copy_id` tells this copy of it from others.
        """
        relation = await describe(self._connection, table)
        if isinstance(capture, TableCapture):
            capture.describe(relation, *await types_and_key(self._connection, relation))
        else:
            capture.describe(relation)
        names = [column.name for column in relation.columns]
        order = [column for column in _order(capture) if column in names]
        origin = Origin(copy_id, 0, NOWHERE, NOWHERE, 0, datetime.now(UTC), None)
        async for row in self._rows(table, names, order):
            seq = int(_text(row[names.index(SEQ)])) if isinstance(capture, OutboxCapture) else None
            for message in _messages(capture, relation, row, origin):
                yield seq, message

    async def _rows(self, table: TableName, names: list[str], order: list[str]) -> AsyncIterator[Row]:
        """By COPY, whose text is that of pgoutput: a cast to text is another one for some types."""
        query = sql.SQL("COPY (SELECT {} FROM {}{}) TO STDOUT").format(
            sql.SQL(", ").join(map(sql.Identifier, names)),
            sql.Identifier(*table),
            sql.SQL(" ORDER BY {}").format(sql.SQL(", ").join(map(sql.Identifier, order))) if order else sql.SQL(""),
        )
        async with self._connection.cursor() as cursor, cursor.copy(query) as copy:
            async for row in copy.rows():
                yield tuple(None if value is None else value.encode() for value in row)


def _order(capture: Captured) -> tuple[str, ...]:
    """The columns that rows are to be read in the order of."""
    if isinstance(capture, OutboxCapture):
        return (SEQ,)
    if not isinstance(capture, RowCapture):
        return ()
    if capture.columns in (EVENT_STORE, OUTBOX):  # a table like the relay's own, which may have less
        return (SEQ, VERSION, "created_at")
    found = (capture.columns.expressions.get(field) for field in (VERSION, "created_at"))
    return tuple(one.column for one in found if isinstance(one, Taken) and not one.path)


def _messages(capture: Captured, relation: Relation, row: Row, origin: Origin) -> Iterator[Message | Malformed]:
    """What becomes of one row; one that is no message, to be set aside."""
    try:
        if isinstance(capture, TableCapture):
            yield from capture.snapshot_row(relation.oid, row, origin.system_identifier, origin.committed_at)
        elif isinstance(capture, RowCapture):
            yield capture.message(row, origin)
        elif (message := capture.capture(Insert(relation.oid, row))) is not None:
            yield message
    except Malformed as malformed:
        yield malformed


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else ""
