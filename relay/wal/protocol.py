"""The frames inside a replication stream's CopyData: bytes <-> values. Pure.

Source: PostgreSQL documentation, "Streaming Replication Protocol".
"""

import struct
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from relay.errors import SourceError
from relay.wal.lsn import Lsn

EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
"""PostgreSQL counts its time in microseconds from here."""

_XLOGDATA: Final = struct.Struct(">cQQq")
_KEEPALIVE: Final = struct.Struct(">cQqB")
_STATUS: Final = struct.Struct(">cQQQqB")


class ProtocolError(SourceError):
    """PostgreSQL sent bytes that the protocol does not allow, or that this version of the relay does not know."""

    hint = "Please report it, with the versions of PostgreSQL and the relay."


@dataclass(frozen=True, slots=True)
class XLogData:
    """A piece of the stream: one message of the output plugin."""

    wal_start: Lsn
    """Where the change lies; 0 for messages that have no place of their own, as Relation has none."""
    wal_end: Lsn
    data: bytes


@dataclass(frozen=True, slots=True)
class Keepalive:
    """The server is there, and has sent everything before `wal_end`."""

    wal_end: Lsn
    reply_requested: bool


def parse_frame(frame: bytes) -> XLogData | Keepalive:
    """Read one frame. Raises ProtocolError when it is truncated, too long or of an unknown kind."""
    kind = frame[:1]
    if kind == b"w" and len(frame) >= _XLOGDATA.size:
        _, start, end, _sent_at = _XLOGDATA.unpack_from(frame)
        return XLogData(Lsn(start), Lsn(end), frame[_XLOGDATA.size :])
    if kind == b"k" and len(frame) == _KEEPALIVE.size:
        _, end, _sent_at, reply = _KEEPALIVE.unpack(frame)
        return Keepalive(Lsn(end), bool(reply))
    raise ProtocolError(f"unexpected frame of {len(frame)} bytes that begins with {kind!r} in the replication stream")


def status_frame(flush: Lsn, now: datetime, *, reply_requested: bool = False) -> bytes:
    """A standby status update: everything before `flush` is settled, and PostgreSQL may forget it.

    Written, flushed and applied are one position: the relay stores nothing that it has not settled.
    """
    micros = (now - EPOCH) // timedelta(microseconds=1)
    return _STATUS.pack(b"r", flush, flush, flush, micros, reply_requested)


def to_time(micros: int) -> datetime:
    """A time as PostgreSQL sends it. Raises ProtocolError when it lies outside Python's years."""
    try:
        return EPOCH + timedelta(microseconds=micros)
    except OverflowError as error:
        raise ProtocolError(f"{micros} microseconds since 2000 is no time that can be told") from error
