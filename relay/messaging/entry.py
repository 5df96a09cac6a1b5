"""The first statement of a message's transaction: whether it may go on, is new, and is the first of its operation."""

from typing import Any, Final, LiteralString, NamedTuple, cast

from psycopg import AsyncConnection
from psycopg.rows import tuple_row

from relay.messaging.message import Incoming


class Entry(NamedTuple):
    """What the tables say about a message."""

    waits: bool
    """It may not go on: an earlier message of its aggregate has been put off, or this one has, and is not this
    transaction's any more."""
    fresh: bool
    """The inbox has it now, and did not before."""
    begun: bool
    """Its operation has been recorded now, and was not before."""


# Each is one statement, because most messages need no other of the library's. What waits inserts nothing; what has been
# seen begins no operation. An insert waits for the end of another transaction that has inserted the same.
#
# What is put off in a lane of its own keeps nobody waiting, dead or not: it could as well have come later.
# And an action must not wait for a person because another cannot be undone.
_BEHIND: Final[LiteralString] = """
    WITH gate AS MATERIALIZED (
        SELECT EXISTS (
            SELECT FROM relay.deferred AS d
            WHERE d.consumer = %(consumer)s AND d.aggregate_type = %(aggregate_type)s
              AND d.aggregate_id = %(aggregate_id)s
              AND (d.message_id = %(message_id)s OR (d.lane = '' AND NOT %(overtakes)s))) AS closed
    )"""

_AGAIN: Final[LiteralString] = """
    WITH taken AS (
        DELETE FROM relay.deferred
        WHERE consumer = %(consumer)s AND message_id = %(message_id)s AND attempts = %(attempts)s
        RETURNING message_id
    ), gate AS MATERIALIZED (
        SELECT NOT EXISTS (SELECT FROM taken) AS closed
    )"""

_INBOX: Final[LiteralString] = """, fresh AS (
        INSERT INTO relay.inbox (consumer, message_id, sent_at)
        SELECT %(consumer)s, %(message_id)s, %(sent_at)s::timestamptz FROM gate WHERE NOT closed
        ON CONFLICT DO NOTHING
        RETURNING message_id
    )"""

_OPERATION: Final[LiteralString] = """, begun AS (
        INSERT INTO relay.operation (consumer, operation, outcome, attempt)
        SELECT %(consumer)s, %(operation)s, %(outcome)s, %(attempt)s FROM fresh
        ON CONFLICT DO NOTHING
        RETURNING operation
    )
    SELECT closed, EXISTS (SELECT FROM fresh), EXISTS (SELECT FROM begun) FROM gate
"""

_NO_OPERATION: Final[LiteralString] = """
    SELECT closed, EXISTS (SELECT FROM fresh), false FROM gate
"""

_ENTER: Final = _BEHIND + _INBOX + _NO_OPERATION
_ENTER_WITH_OPERATION: Final = _BEHIND + _INBOX + _OPERATION
_ENTER_AGAIN: Final = _AGAIN + _INBOX + _NO_OPERATION
_ENTER_AGAIN_WITH_OPERATION: Final = _AGAIN + _INBOX + _OPERATION


async def enter(
    conn: AsyncConnection[Any],
    consumer: str,
    incoming: Incoming,
    *,
    outcome: str | None = None,
    attempts: int | None = None,
    overtakes: bool = False,
) -> Entry:
    """Enter a message in the caller's transaction.

    `outcome` is what its operation is recorded with, None for a message without one. `attempts` is given for a message
    that was put off and has been claimed with this number: its row is deleted. One that `overtakes` waits behind none
    that was put off.
    """
    parameters: dict[str, object] = {
        "consumer": consumer,
        "message_id": incoming.message_id,
        "sent_at": incoming.sent_at,
    }
    if attempts is None:
        statement = _ENTER if outcome is None else _ENTER_WITH_OPERATION
        parameters["aggregate_type"], parameters["aggregate_id"] = incoming.aggregate
        parameters["overtakes"] = overtakes
    else:
        statement = _ENTER_AGAIN if outcome is None else _ENTER_AGAIN_WITH_OPERATION
        parameters["attempts"] = attempts
    if outcome is not None:
        parameters |= {"operation": incoming.operation, "outcome": outcome, "attempt": incoming.attempt}
    cursor = await conn.cursor(row_factory=tuple_row).execute(statement, parameters)
    return Entry(*cast(tuple[bool, bool, bool], await cursor.fetchone()))
