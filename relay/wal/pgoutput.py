"""Messages of PostgreSQL's output plugin pgoutput, protocol version 1: bytes -> values. Pure.

Source: PostgreSQL documentation, "Logical Replication Message Formats". Values arrive as text, as the type's output
function writes it, because the relay does not ask for binary.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Final, NamedTuple, TypeAlias

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


class Begin(NamedTuple):
    """The first message of a transaction. Transactions come whole, in the order of their commits."""

    final_lsn: Lsn
    committed_at: datetime
    xid: int


class Commit(NamedTuple):
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


class Insert(NamedTuple):
    """A new row. A named tuple, as Begin and Commit: there is one a message, and it takes a quarter of the time."""

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
_TUPLE_HEAD: Final = struct.Struct(">BH")
_INSERT_HEAD: Final = struct.Struct(">IBH")
_MESSAGE_HEAD: Final = struct.Struct(">BQ")
_TRUNCATE_HEAD: Final = struct.Struct(">IB")

_CASCADE: Final = 1
_RESTART_IDENTITY: Final = 2

# Kinds of columns.
_TEXT: Final = ord("t")
_BINARY: Final = ord("b")
_NULL: Final = ord("n")
_UNCHANGED: Final = ord("u")

# Kinds of tuples.
_NEW: Final = ord("N")
_OLD: Final = ord("O")
_KEY: Final = ord("K")

# The hot path: looked up once, not for each row.
_INSERT_HEAD_BYTES: Final = _INSERT_HEAD.size
_insert_head: Final = _INSERT_HEAD.unpack_from
_u32: Final = _U32.unpack_from
_new: Final = tuple.__new__
"""Makes a named tuple in half the time of its own constructor, which is Python."""


class _Truncated(Exception):
    """The message ends before `at`, where a value should be."""

    def __init__(self, at: int) -> None:
        self.at = at


def decode(data: bytes) -> Message:
    """Decode one message.

    Raises ProtocolError when it is truncated, longer than it should be, or of an unknown kind; with the offset, where a
    place can be told.
    """
    decoder = _DECODERS.get(data[0]) if data else None
    if decoder is None:
        raise ProtocolError(f"unknown pgoutput message {data[:1]!r} of {len(data)} bytes")
    try:
        message, end = decoder(data, 1)
    except _Truncated as truncated:
        raise ProtocolError(f"pgoutput message {data[:1]!r} is truncated at byte {truncated.at}") from None
    except (struct.error, IndexError):
        raise ProtocolError(f"pgoutput message {data[:1]!r} of {len(data)} bytes is truncated") from None
    except UnicodeDecodeError as error:
        raise ProtocolError(f"pgoutput message {data[:1]!r} holds a name that is not UTF-8: {error.reason}") from None
    if end == len(data):
        return message
    if end > len(data):
        raise ProtocolError(f"pgoutput message {data[:1]!r} of {len(data)} bytes is truncated: it needs {end}")
    raise ProtocolError(f"pgoutput message {data[:1]!r} has {len(data) - end} bytes too many at byte {end}")


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


def _columns(data: bytes, at: int, count: int) -> tuple[Row, int]:
    """The hot path: most bytes of a stream are rows, so this is one loop with one call and one slice per text.

    A length that leads out of the message is not noticed here: the next column is not there, or the end is wrong.
    """
    values: list[Value] = []
    for _ in range(count):
        kind = data[at]
        if kind == _TEXT:
            (length,) = _u32(data, at + 1)
            start = at + 5
            at = start + length
            values.append(data[start:at])
        elif kind == _NULL:
            values.append(None)
            at += 1
        elif kind == _UNCHANGED:
            values.append(Unchanged.TOAST)
            at += 1
        elif kind == _BINARY:
            binary, at = _bytes(data, at + 1)
            values.append(Binary(binary))
        else:
            raise ProtocolError(f"unknown kind of column {data[at : at + 1]!r} at byte {at}")
    return tuple(values), at


def _tuple(data: bytes, at: int, *allowed: int) -> tuple[int, Row, int]:
    """A tuple and its kind: K for a key, O for an old row, N for a new one."""
    kind, count = _TUPLE_HEAD.unpack_from(data, at)
    if kind not in allowed:
        raise _unexpected(data, at)
    row, end = _columns(data, at + _TUPLE_HEAD.size, count)
    return kind, row, end


def _unexpected(data: bytes, at: int) -> ProtocolError:
    return ProtocolError(f"unexpected kind of tuple {data[at : at + 1]!r} at byte {at}")


def _begin(data: bytes, at: int) -> tuple[Begin, int]:
    final_lsn, micros, xid = _BEGIN.unpack_from(data, at)
    return _new(Begin, (final_lsn, to_time(micros), xid)), at + _BEGIN.size


def _commit(data: bytes, at: int) -> tuple[Commit, int]:
    _flags, commit_lsn, end_lsn, micros = _COMMIT.unpack_from(data, at)
    return _new(Commit, (commit_lsn, end_lsn, to_time(micros))), at + _COMMIT.size


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
    oid, kind, count = _insert_head(data, at)
    if kind != _NEW:
        raise _unexpected(data, at + 4)
    new, end = _columns(data, at + _INSERT_HEAD_BYTES, count)
    return _new(Insert, (oid, new)), end


def _update(data: bytes, at: int) -> tuple[Update, int]:
    (oid,) = _U32.unpack_from(data, at)
    kind, row, at = _tuple(data, at + 4, _KEY, _OLD, _NEW)
    if kind == _NEW:
        return Update(oid, None, None, row), at
    _, new, at = _tuple(data, at, _NEW)
    return (Update(oid, row, None, new) if kind == _KEY else Update(oid, None, row, new)), at


def _delete(data: bytes, at: int) -> tuple[Delete, int]:
    (oid,) = _U32.unpack_from(data, at)
    kind, row, at = _tuple(data, at + 4, _KEY, _OLD)
    return (Delete(oid, row, None) if kind == _KEY else Delete(oid, None, row)), at


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


_DECODERS: Final[dict[int, Callable[[bytes, int], tuple[Message, int]]]] = {
    ord("B"): _begin,
    ord("C"): _commit,
    ord("O"): _origin,
    ord("R"): _relation,
    ord("Y"): _type,
    ord("I"): _insert,
    ord("U"): _update,
    ord("D"): _delete,
    ord("T"): _truncate,
    ord("M"): _message,
}
