"""The position of a byte in the write-ahead log."""

import re
from typing import NamedTuple, NewType

from relay.errors import RelayError

Lsn = NewType("Lsn", int)
"""A log sequence number: bytes since the beginning of the cluster's write-ahead log."""

NOWHERE = Lsn(0)
"""PostgreSQL's 0/0: no position. START_REPLICATION from there means: from where the slot was last confirmed."""


class Position(NamedTuple):
    """Where a message lies in the stream: the same whenever it is read again. They sort in the order of the stream."""

    commit_lsn: Lsn
    """The commit record of its transaction; NOWHERE for rows that are older than the slot, which come first."""
    ordinal: int
    """Its number among the messages of that transaction, from 0; the `seq` of a row that is older than the slot."""


_TEXT = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")


class LsnError(RelayError):
    """The text is no log sequence number."""


def parse_lsn(text: str) -> Lsn:
    """Read what PostgreSQL prints, like 16/B374D848. Raises LsnError."""
    match = _TEXT.fullmatch(text)
    if match is None:
        raise LsnError(f"{text!r} is no log sequence number like 16/B374D848")
    return Lsn(int(match[1], 16) << 32 | int(match[2], 16))


def format_lsn(lsn: Lsn) -> str:
    """Write it as PostgreSQL does."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"
