"""Everything that a source captures: which change becomes which messages. Pure."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Final, TypeAlias

from relay.capture.change import Origin
from relay.capture.logical import LogicalCapture
from relay.capture.message import Message
from relay.capture.outbox import SCHEMA, TABLE, OutboxCapture
from relay.capture.rows import RowCapture
from relay.capture.table import TableCapture
from relay.wal.lsn import NOWHERE, Lsn
from relay.wal.pattern import TablePattern
from relay.wal.pgoutput import Begin, Commit, Delete, Insert, LogicalMessage, Relation, Truncate, Update
from relay.wal.pgtype import PgType
from relay.wal.table import TableName

Captured: TypeAlias = OutboxCapture | RowCapture | TableCapture
RowChanged: TypeAlias = Insert | Update | Delete
Change: TypeAlias = RowChanged | Truncate | LogicalMessage

OUTBOX_TABLE: Final = TableName(SCHEMA, TABLE)

_NEVER: Final = datetime.min


class Captures:
    """Finds the capture of each change, by the newest description of its table.

    A change that no capture is for is no message. Ids that are derived depend on where a change lies,
    and not on what else is captured.
    """

    def __init__(
        self,
        system_identifier: str,
        tables: Mapping[TableName, Captured],
        logical: Sequence[LogicalCapture] = (),
        since: Mapping[TableName, Lsn] | None = None,
        on_ignored: Callable[[], None] = lambda: None,
        *,
        oids: Mapping[int, TableName] | None = None,
        patterns: Sequence[tuple[TablePattern, Captured]] = (),
    ) -> None:
        """`since`: what of a table committed before that position is in a copy that was published already.

        `on_ignored` is called for each change that no capture is for. `oids` tell the tables whose changes come under
        an older name, and `patterns` those that are gone by now.
        """
        self._oids = dict(oids or {})
        self._patterns = tuple(patterns)
        self._system_identifier = system_identifier
        self._tables = dict(tables)
        self._logical = {capture.prefix: capture for capture in logical}
        self._since = dict(since or {})
        self._known: dict[int, Captured] = {}
        self._oids_since: dict[int, Lsn] = {}
        self._xid = 0
        self._commit_lsn, self._committed_at = NOWHERE, _NEVER
        self._last_commit_lsn: Lsn | None = None
        self._lsn: Lsn | None = None
        self._ordinal = 0
        self._ignore = on_ignored
        outbox = self._tables.get(OUTBOX_TABLE)
        hot = isinstance(outbox, OutboxCapture) and OUTBOX_TABLE not in self._since
        self.of_outbox: Callable[[Insert], Message | None] = (
            outbox.capture if hot and isinstance(outbox, OutboxCapture) else _none
        )
        """The hot path: the message of a row of relay.outbox, None for every other row. Raises CaptureError."""

    def begin(self, begin: Begin) -> None:
        """What comes now belongs to this transaction."""
        self._commit_lsn, self._committed_at, self._xid = begin
        self._lsn = None

    def end(self, commit: Commit) -> None:
        """The transaction is complete."""
        self._last_commit_lsn = commit.end_lsn

    def describe(self, relation: Relation) -> bool:
        """The table looks like this from here on. True when `learn` has to follow. Raises CaptureError.

        A table that is renamed is still the one that was captured: by its oid, which also tells it from another one
        that takes its name.
        """
        name = self._oids.setdefault(relation.oid, TableName(relation.namespace, relation.name))
        capture = self._tables.get(name) or self._by_pattern(name)
        if capture is None:
            return False
        self._known[relation.oid] = capture
        if name in self._since:
            self._oids_since[relation.oid] = self._since[name]
        if isinstance(capture, TableCapture):
            return True
        capture.describe(relation)
        return False

    def learn(self, relation: Relation, types: Mapping[int, PgType], primary_key: Sequence[str]) -> None:
        """The types of the columns of a table that is described, and its primary key. Raises CaptureError."""
        capture = self._known[relation.oid]
        if isinstance(capture, TableCapture):
            capture.describe(relation, types, primary_key, self._oids[relation.oid])

    def _by_pattern(self, name: TableName) -> Captured | None:
        """The capture of a table that was dropped before the stream came to its changes."""
        return next((capture for pattern, capture in self._patterns if pattern.covers(name)), None)

    def messages(self, change: Change, lsn: Lsn) -> Sequence[Message]:
        """The messages of a change that lies at `lsn`, in their order. Raises Malformed or another CaptureError."""
        match change:
            case LogicalMessage():
                return self._of_logical(change, lsn)
            case Truncate():
                return [message for oid in change.relation_oids for message in self._of_truncated(oid, lsn)]
            case _:
                return self._of_row(change, lsn)

    def _of_row(self, change: RowChanged, lsn: Lsn) -> Sequence[Message]:
        oid = change.relation_oid
        capture = self._capture_of(oid)
        if isinstance(capture, TableCapture):
            return capture.messages(change, self._origin(lsn))
        if isinstance(capture, RowCapture) and isinstance(change, Insert):
            return [capture.message(change.new, self._origin(lsn))]
        if isinstance(capture, OutboxCapture) and isinstance(change, Insert):
            message = capture.capture(change)
            return [] if message is None else [message]
        return []

    def _of_truncated(self, oid: int, lsn: Lsn) -> Sequence[Message]:
        capture = self._capture_of(oid)
        return capture.truncated(oid, self._origin(lsn)) if isinstance(capture, TableCapture) else []

    def _of_logical(self, change: LogicalMessage, lsn: Lsn) -> Sequence[Message]:
        # Counted whoever captures it: PostgreSQL says where a logical message ends, and there the next row may lie.
        origin = self._origin(lsn)
        capture = self._logical.get(change.prefix)
        message = None if capture is None else capture.message(change, origin)
        if message is None:
            self._ignore()
            return []
        return [message]

    def _capture_of(self, oid: int) -> Captured | None:
        """The capture of a table for the transaction that is being read, None when none is."""
        capture = self._known.get(oid)
        if capture is None:
            self._ignore()
        elif self._commit_lsn < self._oids_since.get(oid, NOWHERE):
            return None
        return capture

    def _origin(self, lsn: Lsn) -> Origin:
        """Where a change comes from. What lies at one LSN is counted: the rows that a COPY writes at once, all of one
        table, and before them a logical message, which is always sent."""
        self._ordinal = self._ordinal + 1 if lsn == self._lsn else 0
        self._lsn = lsn
        return Origin(
            self._system_identifier,
            self._xid,
            self._commit_lsn,
            lsn,
            self._ordinal,
            self._committed_at,
            self._last_commit_lsn,
        )


def _none(_: Insert) -> None:
    """No rows of relay.outbox are captured, or not on the hot path."""
