"""Changes of plain tables -> messages."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter
from typing import Final, TypeAlias

from relay.capture.change import Op, Origin, Rendered, RowChange, Shape, TableColumn, Writer
from relay.capture.identity import derived_id, snapshot_id
from relay.capture.message import CaptureError, Kind, Message
from relay.capture.native import aggregate_id
from relay.capture.timestamp import printed
from relay.errors import ConfigError
from relay.wal.lsn import NOWHERE
from relay.wal.pattern import ColumnPattern
from relay.wal.pgoutput import Delete, Insert, Relation, Row, Unchanged, Update
from relay.wal.pgtype import PgType, unknown
from relay.wal.table import TableName

PARTS: Final = 16
"""Ids that one change of a row may use up. The second half of a key change begins there, whatever the writer makes of
the first: so its id does not depend on the envelope."""

FULL: Final = "f"
"""Relation.replica_identity of a table whose old rows come whole."""

_TYPES: Final[dict[Op, str]] = {
    Op.INSERT: "inserted",
    Op.UPDATE: "updated",
    Op.DELETE: "deleted",
    Op.TRUNCATE: "truncated",
    Op.SNAPSHOT: "snapshot",
}
"""The message type of each."""

_Projection: TypeAlias = Callable[[Row], Row]

_new: Final = tuple.__new__
"""Makes a named tuple in half the time of its own constructor, which is Python."""


@dataclass(frozen=True, slots=True)
class _Table:
    """How the rows of a table are read, by its newest description."""

    shape: Shape
    width: int
    """Columns that a row has on its way in, with those that are excluded."""
    project: _Projection | None
    """Leaves the excluded columns out; None when there are none."""

    def captured(self, row: Row) -> Row:
        """The row without its excluded columns. Raises CaptureError when it is not one of this table."""
        if len(row) != self.width:
            raise CaptureError(f"a row of {self.shape} has {len(row)} values, where {self.width} columns are described")
        return row if self.project is None else self.project(row)

    def only_key(self, row: Row) -> Row:
        """A row of which nothing but the key is known. A partition with an identity of its own may send more."""
        return tuple(value if place in self.shape.key else None for place, value in enumerate(row))

    def rekeyed(self, before: Row, after: Row) -> bool:
        """Whether the key changed. What was not sent of the new row is filled in already."""
        return any(after[place] != before[place] for place in self.shape.key)


class TableCapture:
    """Turns changes of the tables that are described to it into messages, and ignores every other table.

    Each change of a row is one change for the writer, but for an UPDATE of the key, which is two: the row under the old
    key is deleted, the one under the new key inserted. So whoever keeps a copy by key needs to know nothing else.
    """

    def __init__(self, name: str, exclude: Iterable[str], writer: Writer) -> None:
        """`name` is the capture's; `exclude` are columns, like `password` or `public.customers.ssn`.

        Raises ConfigError when one of them is no column's name.
        """
        try:
            self._exclude = tuple(ColumnPattern.parse(column) for column in exclude)
        except ValueError as error:
            raise ConfigError(f"exclude_columns of capture {name}: {error}") from None
        self._name = name
        self._writer = writer
        self._tables: dict[int, _Table] = {}

    def describe(
        self,
        relation: Relation,
        types: Mapping[int, PgType],
        primary_key: Sequence[str],
        captured_as: TableName | None = None,
    ) -> None:
        """The table looks like this from here on. `primary_key` matters where the replica identity is FULL.

        `captured_as` is the name under which it is captured, if it has another by now: what is excluded stays so.

        Raises CaptureError when a column of the key is excluded.
        """
        name = TableName(relation.namespace, relation.name)
        names = {name, captured_as or name}
        excluded = {
            column.name for column in relation.columns if any(self._is_excluded(one, column.name) for one in names)
        }
        key = _key(relation, primary_key)
        if key & excluded:
            raise CaptureError(
                f"{name} is told by {', '.join(sorted(key & excluded))}, which exclude_columns leaves out",
                "Without its key nobody knows which row changed: take it out of exclude_columns, or give the table "
                "another replica identity.",
            )
        kept = [place for place, column in enumerate(relation.columns) if column.name not in excluded]
        columns = [relation.columns[place] for place in kept]
        shape = Shape(
            relation.oid,
            relation.namespace,
            relation.name,
            tuple(
                TableColumn(column.name, types.get(column.type_oid) or unknown(column.type_oid), column.type_modifier)
                for column in columns
            ),
            tuple(place for place, column in enumerate(columns) if column.name in key),
        )
        known = self._tables.get(relation.oid)
        if known is not None and known.shape == shape:
            shape = known.shape  # it comes again after every reconnect; writers keep what they know by the shape
        width = len(relation.columns)
        self._tables[relation.oid] = _Table(shape, width, _projection(kept) if len(kept) < width else None)

    def _is_excluded(self, table: TableName, column: str) -> bool:
        return any(pattern.covers(table, column) for pattern in self._exclude)

    def messages(self, change: Insert | Update | Delete, origin: Origin) -> list[Message]:
        """The messages of a change, in their order; none when the table is not described. Raises CaptureError."""
        table = self._tables.get(change.relation_oid)
        if table is None:
            return []
        return [
            self._message(one, rendered, derived_id(origin, part))
            for number, one in enumerate(_changes(table, change, origin))
            for part, rendered in enumerate(self._writer.write(one), number * PARTS)
        ]

    def truncated(self, relation_oid: int, origin: Origin) -> list[Message]:
        """The messages of a table that was emptied; none when it is not described.

        One TRUNCATE may empty several tables, at one LSN. The name of the table tells their messages apart, and not its
        number among them: that depends on which of them are captured.
        """
        table = self._tables.get(relation_oid)
        if table is None:
            return []
        change = RowChange(table.shape, Op.TRUNCATE, None, False, None, origin._replace(ordinal=0))
        name = str(table.shape)
        return [
            self._message(change, rendered, derived_id(change.origin, f"{name}/{part}" if part else name))
            for part, rendered in enumerate(self._writer.write(change))
        ]

    def snapshot_row(self, oid: int, row: Row, copy_id: str, taken_at: datetime) -> list[Message]:
        """The messages of a row that was there when the capture of its table, which is described, began.

        A row that is the same has the same id in every snapshot and in every envelope. Raises CaptureError.
        """
        table = self._tables[oid]
        after = table.captured(row)
        origin = Origin(copy_id, 0, NOWHERE, NOWHERE, 0, taken_at, None)
        change = RowChange(table.shape, Op.SNAPSHOT, None, False, after, origin)
        key, content = aggregate_id(table.shape, after), _content(after)
        return [
            self._message(
                change,
                rendered,
                snapshot_id(copy_id, str(table.shape), key, b"%b\0%d" % (content, part) if part else content),
            )
            for part, rendered in enumerate(self._writer.write(change))
        ]

    def _message(self, change: RowChange, rendered: Rendered, message_id: str) -> Message:
        shape = change.shape
        row = change.before if change.after is None else change.after
        fields = (
            message_id,
            Kind.EVENT,
            str(shape),
            "" if row is None else aggregate_id(shape, row),
            _TYPES[change.op],
            None,
            None,
            None,
            None,
            None,
            rendered.headers,
            rendered.payload,
            printed(change.origin.committed_at),
            self._name,
        )
        return _new(Message, fields)


def _key(relation: Relation, primary_key: Sequence[str]) -> set[str]:
    """The columns that tell a row from others; none where nothing does.

    With FULL pgoutput marks every column as key. Without a primary key beside it there is none: a row's values are no
    name for it, as they change.
    """
    if relation.replica_identity != FULL:
        return {column.name for column in relation.columns if column.is_key}
    there = {column.name for column in relation.columns}
    return set(primary_key) if there.issuperset(primary_key) else set()


def _projection(kept: Sequence[int]) -> _Projection:
    """Picks these values out of a row."""
    if len(kept) > 1:
        return itemgetter(*kept)
    return lambda row: tuple(row[place] for place in kept)  # itemgetter of one makes no tuple, of none does not exist


def _changes(table: _Table, change: Insert | Update | Delete, origin: Origin) -> tuple[RowChange, ...]:
    shape = table.shape
    if isinstance(change, Insert):
        return (_new(RowChange, (shape, Op.INSERT, None, False, table.captured(change.new), origin)),)
    before, whole = _before(table, change)
    if isinstance(change, Delete):
        return (RowChange(shape, Op.DELETE, before, whole, None, origin),)
    after = table.captured(change.new)
    if before is None:
        return (RowChange(shape, Op.UPDATE, None, False, after, origin),)
    if Unchanged.TOAST in after:
        after = _filled(after, before)
        whole = whole and Unchanged.TOAST not in after
    if not table.rekeyed(before, after):
        return (RowChange(shape, Op.UPDATE, before, whole, after, origin),)
    return (
        RowChange(shape, Op.DELETE, before, whole, None, origin),
        RowChange(shape, Op.INSERT, None, False, after, origin),
    )


def _before(table: _Table, change: Update | Delete) -> tuple[Row | None, bool]:
    """What is known of the old row, and whether that is all of it."""
    if change.old is not None:
        return table.captured(change.old), True
    if change.key is None or not table.shape.key:
        return None, False
    return table.only_key(table.captured(change.key)), False


def _filled(after: Row, before: Row) -> Row:
    """What was not sent is as it was, where that is known.

    A value that is stored out of line is never null: a null in the old row is one that is not known. (So it is in a
    partition whose replica identity is not FULL, below a table where it is.)
    """
    return tuple(
        old if value is Unchanged.TOAST and old is not None else value for value, old in zip(after, before, strict=True)
    )


def _content(row: Row) -> bytes:
    """A row as bytes, another for each other row. PostgreSQL has a zero byte in no text."""
    return b"\0".join(b"=" + value if isinstance(value, bytes) else b"" for value in row)
