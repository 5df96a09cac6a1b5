"""A change of a captured table, whatever pgoutput message or snapshot it came from. Pure values."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple, Protocol

from relay.wal.lsn import Lsn
from relay.wal.pgoutput import Row
from relay.wal.pgtype import PgType


class Op(StrEnum):
    """What was done to a row, or, for a truncation, to all rows of a table."""

    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"
    TRUNCATE = "truncate"
    SNAPSHOT = "snapshot"
    """The row was there when the table's capture began."""


@dataclass(frozen=True, slots=True)
class TableColumn:
    """A column that is captured."""

    name: str
    type: PgType
    modifier: int
    """The column's type modifier, -1 for none: the scale of numeric(10,2) or the length of bit(8)."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A table as it looks from here on, without its excluded columns. Rows of a RowChange fit it, value by value."""

    oid: int
    namespace: str
    name: str
    columns: tuple[TableColumn, ...]
    key: tuple[int, ...]
    """Where the columns are that tell a row from others, in the order of the columns; none where nothing does."""

    def __str__(self) -> str:
        return f"{self.namespace}.{self.name}"


class Origin(NamedTuple):
    """Where a change comes from. All of it survives a crash of anybody, and a promotion, but for `committed_at`."""

    system_identifier: str
    """Of the cluster; of a row of a snapshot, what tells this copy of its table from others."""
    xid: int
    commit_lsn: Lsn
    """Where the record of the commit lies: Begin.final_lsn. 0 for rows of a snapshot."""
    lsn: Lsn
    """Where the change lies: wal_start of its frame."""
    ordinal: int
    """Changes of one LSN are counted from 0: a COPY writes many rows at once."""
    committed_at: datetime
    """Of the transaction; of a snapshot, when it was taken."""
    last_commit_lsn: Lsn | None
    """End of the last transaction that this stream brought before, None when there was none."""


class RowChange(NamedTuple):
    """One change. A change of the key is two of them: the row under the old key is deleted, the new one inserted."""

    shape: Shape
    op: Op
    before: Row | None
    """The old row: whole with replica identity FULL, else its key with None elsewhere; None where nothing is known."""
    before_is_whole: bool
    after: Row | None
    """The new row. Values that the UPDATE left alone and PostgreSQL did not send are Unchanged.TOAST."""
    origin: Origin


class Rendered(NamedTuple):
    """What is sent for a change: usually one of them."""

    headers: bytes
    """A JSON object of further headers."""
    payload: bytes
    """Empty for a tombstone."""


class Writer(Protocol):
    """Turns changes into what is sent. Pure."""

    def write(self, change: RowChange) -> Sequence[Rendered]:
        """What is sent for one change, in this order."""
        ...
