"""Messages of PostgreSQL's output plugin pgoutput, protocol version 1: bytes -> values. Pure.

Source: PostgreSQL documentation, "Logical Replication Message Formats". Values arrive as text, as the type's output
function writes it, because the relay does not ask for binary.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Final, TypeAlias

from relay.wal.lsn import Lsn
from relay.wal.protocol import ProtocolError, to_time


class Unchanged(Enum):
    """An out-of-line (TOAST) value that the UPDATE did not touch. It is absent, not null."""

    TOAST = "unchanged"


@dataclass(frozen=True, slots=True)
class Binary:
    """A value in its type's binary format. Only sent when the subscriber asks for it."""

    data: bytes


Value: TypeAlias = "bytes | Binary | Unchanged | None"
"""One column: text as bytes, null as None."""
Row: TypeAlias = tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Begin:
    """The first message of a transaction. Transactions come whole, in the order of their commits."""

    final_lsn: Lsn
    committed_at: datetime
    xid: int


@dataclass(frozen=True, slots=True)
class Commit:
    """The last message of a transaction. `end_lsn` is the position to confirm: those of rows are not ordered."""

    commit_lsn: Lsn
    end_lsn: Lsn
    committed_at: datetime


@dataclass(frozen=True, slots=True)
class Origin:
    """The transaction was replicated here from elsewhere."""

    commit_lsn: Lsn
    name: str


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a relation, as published."""

    name: str
    is_key: bool
    type_oid: int
    type_modifier: int


@dataclass(frozen=True, slots=True)
class Relation:
    """What a table looks like from here on. Comes again after every reconnect and every change of the table."""

    oid: int
    namespace: str
    name: str
    replica_identity: str
    columns: tuple[Column, ...]


@dataclass(frozen=True, slots=True)
class Type:
    """The name of a type that is not built in."""

    oid: int
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Insert:
    """A new row."""

    relation_oid: int
    new: Row


@dataclass(frozen=True, slots=True)
class Update:
    """A changed row. `key` is its old key, if that changed; with replica identity full, `old` is the whole old row."""

    relation_oid: int
    key: Row | None
    old: Row | None
    new: Row


@dataclass(frozen=True, slots=True)
class Delete:
    """A row that is gone: its `key`, or with replica identity full the whole `old` row."""

    relation_oid: int
    key: Row | None
    old: Row | None


@dataclass(frozen=True, slots=True)
class Truncate:
    """Tables that were emptied."""

    relation_oids: tuple[int, ...]
    cascade: bool
    restart_identity: bool


@dataclass(frozen=True, slots=True)
class LogicalMessage:
    """What pg_logical_emit_message wrote. Outside of Begin and Commit when it is not transactional."""

    transactional: bool
    lsn: Lsn
    prefix: str
    content: bytes


Message: TypeAlias = Begin | Commit | Origin | Relation | Type | Insert | Update | Delete | Truncate | LogicalMessage

_U8: Final = struct.Struct(">B")
_U16: Final = struct.Struct(">H")
_U32: Final = struct.Struct(">I")
_COLUMN_TAIL: Final = struct.Struct(">Ii")
_BEGIN: Final = struct.Struct(">QqI")
_COMMIT: Final = struct.Struct(">BQQq")
_MESSAGE_HEAD: Final = struct.Struct(">BQ")
_TRUNCATE_HEAD: Final = struct.Struct(">IB")

_CASCADE: Final = 1
_RESTART_IDENTITY: Final = 2


class _Truncated(Exception):
    """The message ends before `at`, where a value should be."""

    def __init__(self, at: int) -> None:
        self.at = at


def decode(data: bytes) -> Message:
    """Decode one message.

    Raises ProtocolError with the offset when it is truncated, longer than it should be, or of an unknown kind.
    """
    decoder = _DECODERS.get(data[:1])
    if decoder is None:
        raise ProtocolError(f"unknown pgoutput message {data[:1]!r} of {len(data)} bytes")
    try:
        message, end = decoder(data, 1)
    except _Truncated as truncated:
        raise ProtocolError(f"pgoutput message {data[:1]!r} is truncated at byte {truncated.at}") from None
    except struct.error:
        raise ProtocolError(f"pgoutput message {data[:1]!r} of {len(data)} bytes is truncated") from None
    except UnicodeDecodeError as error:
        raise ProtocolError(f"pgoutput message {data[:1]!r} holds a name that is not UTF-8: {error.reason}") from None
    if end != len(data):
        raise ProtocolError(f"pgoutput message {data[:1]!r} has {len(data) - end} bytes too many at byte {end}")
    return message


def _string(data: bytes, at: int) -> tuple[str, int]:
    end = data.find(b"\0", at)
    if end < 0:
        raise _Truncated(at)
    return data[at:end].decode(), end + 1


def _bytes(data: bytes, at: int) -> tuple[bytes, int]:
    (length,) = _U32.unpack_from(data, at)
    end = at + 4 + length
    if end > len(data):
        raise _Truncated(at)
    return data[at + 4 : end], end


def _row(data: bytes, at: int) -> tuple[Row, int]:
    """The hot path: most bytes of a stream are rows, so this is one loop and no calls per column."""
    (count,) = _U16.unpack_from(data, at)
    at += 2
    values: list[Value] = []
    for _ in range(count):
        kind = data[at : at + 1]
        at += 1
        if kind in (b"t", b"b"):
            (length,) = _U32.unpack_from(data, at)
            start, at = at + 4, at + 4 + length
            text = data[start:at]
            values.append(text if kind == b"t" else Binary(text))
        elif kind == b"n":
            values.append(None)
        elif kind == b"u":
            values.append(Unchanged.TOAST)
        elif kind:
            raise ProtocolError(f"unknown kind of column {kind!r} at byte {at - 1}")
        if at > len(data):
            raise _Truncated(len(data))
    return tuple(values), at


def _tuple(data: bytes, at: int, *allowed: bytes) -> tuple[bytes, Row, int]:
    """A tuple and its kind: K for a key, O for an old row, N for a new one."""
    kind = data[at : at + 1]
    if not kind:
        raise _Truncated(at)
    if kind not in allowed:
        raise ProtocolError(f"unexpected kind of tuple {kind!r} at byte {at}")
    row, end = _row(data, at + 1)
    return kind, row, end


def _begin(data: bytes, at: int) -> tuple[Begin, int]:
    final_lsn, micros, xid = _BEGIN.unpack_from(data, at)
    return Begin(Lsn(final_lsn), to_time(micros), xid), at + _BEGIN.size


def _commit(data: bytes, at: int) -> tuple[Commit, int]:
    _flags, commit_lsn, end_lsn, micros = _COMMIT.unpack_from(data, at)
    return Commit(Lsn(commit_lsn), Lsn(end_lsn), to_time(micros)), at + _COMMIT.size


def _origin(data: bytes, at: int) -> tuple[Origin, int]:
    (lsn,) = struct.unpack_from(">Q", data, at)
    name, at = _string(data, at + 8)
    return Origin(Lsn(lsn), name), at


def _relation(data: bytes, at: int) -> tuple[Relation, int]:
    (oid,) = _U32.unpack_from(data, at)
    namespace, at = _string(data, at + 4)
    name, at = _string(data, at)
    (identity,) = _U8.unpack_from(data, at)
    (count,) = _U16.unpack_from(data, at + 1)
    at += 3
    columns = []
    for _ in range(count):
        (flags,) = _U8.unpack_from(data, at)
        column, at = _string(data, at + 1)
        type_oid, modifier = _COLUMN_TAIL.unpack_from(data, at)
        at += _COLUMN_TAIL.size
        columns.append(Column(column, bool(flags & 1), type_oid, modifier))
    # pg_catalog is sent as an empty string.
    return Relation(oid, namespace or "pg_catalog", name, chr(identity), tuple(columns)), at


def _type(data: bytes, at: int) -> tuple[Type, int]:
    (oid,) = _U32.unpack_from(data, at)
    namespace, at = _string(data, at + 4)
    name, at = _string(data, at)
    return Type(oid, namespace or "pg_catalog", name), at


def _insert(data: bytes, at: int) -> tuple[Insert, int]:
    (oid,) = _U32.unpack_from(data, at)
    _, new, at = _tuple(data, at + 4, b"N")
    return Insert(oid, new), at


def _update(data: bytes, at: int) -> tuple[Update, int]:
    (oid,) = _U32.unpack_from(data, at)
    kind, row, at = _tuple(data, at + 4, b"K", b"O", b"N")
    if kind == b"N":
        return Update(oid, None, None, row), at
    _, new, at = _tuple(data, at, b"N")
    return (Update(oid, row, None, new) if kind == b"K" else Update(oid, None, row, new)), at


def _delete(data: bytes, at: int) -> tuple[Delete, int]:
    (oid,) = _U32.unpack_from(data, at)
    kind, row, at = _tuple(data, at + 4, b"K", b"O")
    return (Delete(oid, row, None) if kind == b"K" else Delete(oid, None, row)), at


def _truncate(data: bytes, at: int) -> tuple[Truncate, int]:
    count, options = _TRUNCATE_HEAD.unpack_from(data, at)
    at += _TRUNCATE_HEAD.size
    oids = struct.unpack_from(f">{count}I", data, at) if count * 4 <= len(data) - at else None
    if oids is None:
        raise _Truncated(at)
    return Truncate(oids, bool(options & _CASCADE), bool(options & _RESTART_IDENTITY)), at + 4 * count


def _message(data: bytes, at: int) -> tuple[LogicalMessage, int]:
    flags, lsn = _MESSAGE_HEAD.unpack_from(data, at)
    prefix, at = _string(data, at + _MESSAGE_HEAD.size)
    content, at = _bytes(data, at)
    return LogicalMessage(bool(flags & 1), Lsn(lsn), prefix, content), at


_DECODERS: Final[dict[bytes, Callable[[bytes, int], tuple[Message, int]]]] = {
    b"B": _begin,
    b"C": _commit,
    b"O": _origin,
    b"R": _relation,
    b"Y": _type,
    b"I": _insert,
    b"U": _update,
    b"D": _delete,
    b"T": _truncate,
    b"M": _message,
}
