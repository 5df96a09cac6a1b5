"""Changes of tables -> Debezium's change events and tombstones."""

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from relay.capture.change import Op, Origin, Rendered, RowChange, Shape, TableColumn
from relay.capture.debezium.codec import Codec, codec
from relay.capture.debezium.settings import DebeziumSettings, Operation
from relay.capture.message import CaptureError
from relay.capture.values import Unreadable, json_string, named
from relay.wal.pgoutput import Row, Unchanged

KEY: Final = "key"
"""The header that has the key, as Kafka's message key has it."""

CONNECTOR: Final = "postgresql"
"""What `source.connector` says: consumers may look at it."""

_OPERATIONS: Final = {
    Op.INSERT: Operation.CREATE,
    Op.UPDATE: Operation.UPDATE,
    Op.DELETE: Operation.DELETE,
    Op.TRUNCATE: Operation.TRUNCATE,
    Op.SNAPSHOT: Operation.READ,
}

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_NO_HEADERS: Final = b"{}"
_NULL: Final = "null"
_TOMBSTONE: Final = b""
_NO_ORIGIN: Final = '"origin":null,"origin_lsn":null'


class DebeziumWriter:
    """Writes a change as Debezium's PostgreSQL connector does with its JSON converter without schemas.

    One body a change; after a delete comes an empty one with the same key, unless `tombstones` is off. Operations that
    are skipped give none. The header `key` has the key's JSON as a text; a change without a key has no such header.

    Bodies hold the time of processing, so the same change read twice is not the same body. Raises Unreadable, with
    table and column, when a value is not of its type.
    """

    def __init__(
        self,
        settings: DebeziumSettings,
        topic_prefix: str,
        database: str,
        version: str,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        """`topic_prefix` counts where the settings have none; `version` is the relay's; `clock` gives nanoseconds."""
        self._settings = settings
        self._clock = clock
        # What stands before the time of the commit, and after the mark of a snapshot.
        name = json_string(settings.topic_prefix or topic_prefix)
        self._head = f'{{"version":{json_string(version)},"connector":"{CONNECTOR}","name":{name},"ts_ms":'
        self._database = json_string(database)
        self._tables: dict[int, _Table] = {}
        """By oid, for the newest shape."""

    def write(self, change: RowChange) -> Sequence[Rendered]:
        """The event of a change, and its tombstone."""
        op = _OPERATIONS[change.op]
        if op in self._settings.skipped:
            return ()
        table = self._tables.get(change.shape.oid)
        if table is None or (table.shape is not change.shape and table.shape != change.shape):
            table = self._tables[change.shape.oid] = _Table(change.shape, self._settings)
        event = Rendered(table.headers(change), self._event(op, change, table).encode())
        if op is Operation.DELETE and self._settings.tombstones:
            return (event, Rendered(event.headers, _TOMBSTONE))
        return (event,)

    def _event(self, op: Operation, change: RowChange, table: "_Table") -> str:
        ns = self._clock()
        return (
            f'{{"before":{table.row(change.before)},"after":{table.row(change.after)},'
            f'"source":{self._source(change, table)},"transaction":null,"op":"{op}",'
            f'"ts_ms":{ns // 1_000_000},"ts_us":{ns // 1_000},"ts_ns":{ns}}}'
        )

    def _source(self, change: RowChange, table: "_Table") -> str:
        origin = change.origin
        us = (origin.committed_at - _EPOCH) // _MICROSECOND
        return (
            f'{self._head}{us // 1_000},"snapshot":"{"true" if change.op is Op.SNAPSHOT else "false"}",'
            f'"db":{self._database},"sequence":"{_sequence(origin)}","ts_us":{us},"ts_ns":{us * 1_000},{table.named}'
            f'"txId":{origin.xid or _NULL},"lsn":{int(origin.lsn) or _NULL},"xmin":null,{_NO_ORIGIN}}}'
        )


def _sequence(origin: Origin) -> str:
    """The end of the last transaction before, and the place of the change: an array, as a text, of texts."""
    positions = [rf"\"{int(lsn)}\"" if lsn else _NULL for lsn in (origin.last_commit_lsn, origin.lsn)]
    return f"[{','.join(positions)}]"


class _Column(NamedTuple):
    """A column that is sent."""

    place: int
    name: str
    """As JSON, with the colon."""
    codec: Codec


class _Table:
    """How the rows of one shape are written."""

    def __init__(self, shape: Shape, settings: DebeziumSettings) -> None:
        self.shape = shape
        self.named = f'"schema":{json_string(shape.namespace)},"table":{json_string(shape.name)},'
        self._columns = [
            _Column(place, f"{json_string(column.name)}:", found)
            for place, column in enumerate(shape.columns)
            if (found := codec(column.type, column.modifier, settings)) is not None
        ]
        self._key = [column for column in self._columns if column.place in shape.key]

    def headers(self, change: RowChange) -> bytes:
        """With the key of the row, unless there is none to tell."""
        row = change.before if change.after is None else change.after
        if row is None or not self.shape.key:
            return _NO_HEADERS
        return f'{{"{KEY}":{json_string(self._object(row, self._key))}}}'.encode()

    def row(self, row: Row | None) -> str:
        """An object of all columns; those that nothing is known of are null."""
        return _NULL if row is None else self._object(row, self._columns)

    def _object(self, row: Row, columns: list[_Column]) -> str:
        parts: list[str] = []
        for place, name, (write, unavailable, _) in columns:
            value = row[place]
            if value is None:
                parts.append(name + _NULL)
            elif value is Unchanged.TOAST:
                parts.append(name + unavailable)
            elif isinstance(value, bytes):
                try:
                    parts.append(name + write(value.decode()))
                except ValueError as error:
                    raise _unreadable(self.shape, self.shape.columns[place], error) from None
            else:
                raise CaptureError(f"column {self.shape.columns[place].name} of {self.shape} was not sent as text")
        return f"{{{','.join(parts)}}}"


def _unreadable(shape: Shape, column: TableColumn, error: ValueError) -> Unreadable:
    """Of the error's own text: it tells a place, and never a value."""
    reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else error
    return Unreadable(f"column {column.name} of {shape}: a value of type {named(column.type)} cannot be read: {reason}")
