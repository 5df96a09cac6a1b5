"""The frames inside a replication stream's CopyData: bytes <-> values. Pure.

Source: PostgreSQL documentation, "Streaming Replication Protocol".
"""

import struct
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from relay.errors import SourceError
from relay.wal.lsn import Lsn

EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
"""PostgreSQL counts its time in microseconds from here."""

_MICROSECOND: Final = timedelta(microseconds=1)

_XLOGDATA: Final = struct.Struct(">BQQ8x")
_KEEPALIVE: Final = struct.Struct(">BQ8xB")
"""Without the time at which they were sent, which nobody needs."""
_STATUS: Final = struct.Struct(">cQQQqB")

_W: Final = ord("w")
_K: Final = ord("k")

# The hot path: one frame a row. Looked up once, not for each of them.
_HEAD_BYTES: Final = _XLOGDATA.size
_head: Final = _XLOGDATA.unpack_from
_new: Final = tuple.__new__
"""Makes a named tuple in half the time of its own constructor, which is Python."""


class ProtocolError(SourceError):
    """PostgreSQL sent bytes that the protocol does not allow, or that this version of the relay does not know."""

    hint = "Please report it, with the versions of PostgreSQL and the relay."


class XLogData(NamedTuple):
    """A piece of the stream: one message of the output plugin. A named tuple, because there is one a row."""

    wal_start: Lsn
    """Where the change lies; 0 for messages that have no place of their own, as Relation has none."""
    wal_end: Lsn
    data: bytes


class Keepalive(NamedTuple):
    """The server is there, and has sent everything before `wal_end`."""

    wal_end: Lsn
    reply_requested: bool


def parse_frame(frame: memoryview) -> XLogData | Keepalive:
    """Read one frame; what is kept of it is copied, once.

    Raises ProtocolError when it is truncated, too long or of an unknown kind.
    """
    size = len(frame)
    if size >= _HEAD_BYTES:
        kind, start, end = _head(frame)
        if kind == _W:
            return _new(XLogData, (start, end, frame[_HEAD_BYTES:].tobytes()))
    elif size == _KEEPALIVE.size and frame[0] == _K:
        _, end, reply = _KEEPALIVE.unpack(frame)
        return Keepalive(end, bool(reply))
    first = frame[:1].tobytes()
    raise ProtocolError(f"unexpected frame of {size} bytes that begins with {first!r} in the replication stream")


def status_frame(flush: Lsn, now: datetime, *, reply_requested: bool = False) -> bytes:
    """A standby status update: everything before `flush` is settled, and PostgreSQL may forget it.

    Written, flushed and applied are one position: the relay stores nothing that it has not settled.
    """
    micros = (now - EPOCH) // _MICROSECOND
    return _STATUS.pack(b"r", flush, flush, flush, micros, reply_requested)


def to_time(micros: int) -> datetime:
    """A time as PostgreSQL sends it. Raises ProtocolError when it lies outside Python's years."""
    try:
        return EPOCH + micros * _MICROSECOND
    except OverflowError as error:
        raise ProtocolError(f"{micros} microseconds since 2000 is no time that can be told") from error
