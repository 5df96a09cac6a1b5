"""The ids of messages that have no row with an id of its own. A stable contract: consumers tell copies apart by them.

They are UUIDs of version 5 (RFC 9562: SHA-1 of a namespace and a name), because that is the version that makes the same
id from the same facts, and that everybody's standard library can make as well.
"""

from hashlib import sha1
from typing import Final
from uuid import UUID

from relay.capture.change import Origin

NAMESPACE: Final = UUID("9870ee2d-4d34-4345-bc1d-9830409b790d")
"""Ours, for good: another one would give every message another id."""

_NAMESPACE: Final = NAMESPACE.bytes
_VARIANT: Final = "89ab"
"""The sixteenth digit of a hash, as RFC 9562 wants it: its upper bits are 10."""


def derived_id(origin: Origin, part: int | str = 0) -> str:
    """The id of a message that is known by where its change lies in the write-ahead log.

    The same whenever the change is read again: after a crash, by a promoted standby, with another configuration. `part`
    tells several messages of one change apart: their number, or the name of the table where one change is about
    several. The name that is hashed: system identifier, commit LSN, xid, LSN and ordinal, all in decimal, with slashes
    between them; and, unless it is 0, a slash and the part.
    """
    name = f"{origin.system_identifier}/{origin.commit_lsn}/{origin.xid}/{origin.lsn}/{origin.ordinal}"
    return _uuid5((f"{name}/{part}" if part else name).encode())


def snapshot_id(copy_id: str, table: str, key: str, payload: bytes) -> str:
    """The id of the message of a row that was there before: the same as long as the row is, in one copy of its table.

    A copy that a crash interrupts and that begins again is the same copy: `copy_id` says so. Another one, after the
    slot was lost for instance, is not: meanwhile the row may have changed, and changed back, and a consumer that took
    the second message for the first would keep what was in between.

    The name that is hashed: `snapshot`, the copy's id, the table as schema.table, the key and the payload, with
    a zero byte between them, which PostgreSQL has in no text.
    """
    return _uuid5(b"\0".join((b"snapshot", copy_id.encode(), table.encode(), key.encode(), payload)))


def _uuid5(name: bytes) -> str:
    """uuid.uuid5 without the object in between, in a third of the time."""
    digits = sha1(_NAMESPACE + name, usedforsecurity=False).hexdigest()
    variant = _VARIANT[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-5{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:32]}"
