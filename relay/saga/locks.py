"""Semantic locks: a thing that a saga works on says so, and a second saga on it fails, waits or queues."""

from collections.abc import Sequence
from typing import Any, Final, LiteralString, cast
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import scalar_row

from relay.errors import RelayError
from relay.messaging.outbox import Aggregate

LOCK_TRIES: Final = 100
"""How often a lock is asked for when each time somebody else was quicker to take it, or to leave it."""

_TAKE: Final[LiteralString] = """
    INSERT INTO relay.saga_lock (resource, saga_id, service, taken_at) VALUES (%s, %s, %s, clock_timestamp())
    ON CONFLICT (resource) WHERE taken_at IS NOT NULL DO NOTHING
"""

_HOLDER: Final[LiteralString] = "SELECT saga_id FROM relay.saga_lock WHERE resource = %s AND taken_at IS NOT NULL"

_QUEUE: Final[LiteralString] = "INSERT INTO relay.saga_lock (resource, saga_id, service) VALUES (%s, %s, %s)"

_LEAVE: Final[LiteralString] = "DELETE FROM relay.saga_lock WHERE resource = %s AND saga_id = %s"

# An update, though nothing is changed: to end, the holder has to wait for whoever queues; and if it sees the queue as
# that was before, in REPEATABLE READ, it is told so, and begins again. A lock alone would not tell it.
_STAY: Final[LiteralString] = """
    UPDATE relay.saga_lock SET taken_at = taken_at WHERE resource = %s AND taken_at IS NOT NULL RETURNING saga_id
"""

# One statement after that which gave the resources back, never the same one: the rows of those who came in between are
# seen by a newer snapshot only. A waiter that gives up at this moment is waited for, and the next one is taken.
_GRANT: Final[LiteralString] = """
    WITH next AS MATERIALIZED (
        SELECT first.resource, first.saga_id FROM unnest(%s::text[]) AS freed (resource), LATERAL (
            SELECT waiting.resource, waiting.saga_id FROM relay.saga_lock AS waiting
            WHERE waiting.resource = freed.resource AND waiting.taken_at IS NULL
            ORDER BY waiting.position LIMIT 1 FOR UPDATE) AS first
    ), granted AS (
        UPDATE relay.saga_lock AS lock SET taken_at = clock_timestamp()
        FROM next WHERE lock.resource = next.resource AND lock.saga_id = next.saga_id
        RETURNING lock.service, lock.saga_id
    )
    INSERT INTO relay.saga_timer (service, saga_id, purpose, due_at)
    SELECT service, saga_id, 'lock', clock_timestamp() FROM granted
"""


class Locked(RelayError):
    """Another saga works on it, and this one is declared not to wait."""

    hint = "Try again when that saga has ended, or declare the saga with on_locked='wait' or 'queue'."

    def __init__(self, resource: str, holder: UUID | None) -> None:
        super().__init__(f"{resource} is being worked on by {'saga ' + str(holder) if holder else 'another saga'}")
        self.resource = resource
        self.holder = holder


def resource_of(aggregate: Aggregate) -> str:
    """What is locked, as relay.saga_lock names it: the type, a slash, the id. No two have the same name."""
    # The first slash ends the type, so there is none in it. In an id they may be.
    aggregate_type = aggregate[0].replace("%", "%25").replace("/", "%2F")
    return f"{aggregate_type}/{aggregate[1]}"


async def holder(conn: AsyncConnection[Any], aggregate: Aggregate) -> UUID | None:
    """The saga that works on it just now, None when there is none."""
    return await _holder(conn, resource_of(aggregate))


async def take(conn: AsyncConnection[Any], resource: str, saga_id: UUID, service: str) -> None:
    """Lock in the caller's transaction. A transaction that takes or gives back the same is waited for.

    Raises Locked when another saga has it.
    """
    for _ in range(LOCK_TRIES):
        if await _taken(conn, resource, saga_id, service):
            return
        by = await _holder(conn, resource)
        if by is not None:
            raise Locked(resource, by)
    raise Locked(resource, None)


async def take_or_queue(conn: AsyncConnection[Any], resource: str, saga_id: UUID, service: str) -> bool:
    """Lock in the caller's transaction, or queue for it; whether it is locked now.

    Those who queue are let in as they came: by `grant`, in the transaction of the saga that had it before.
    Raises Locked in the unlikely case that others were quicker LOCK_TRIES times.
    """
    for _ in range(LOCK_TRIES):
        if await _taken(conn, resource, saga_id, service):
            return True
        await conn.execute(_QUEUE, (resource, saga_id, service))
        # Whoever has it may be ending, and not see us: our row has not committed. So its row is ours until we have:
        # to end it has to wait for us. If it has ended, nobody would ever wake us: begin again.
        if await _holder(conn, resource, _STAY) is not None:
            return False
        await conn.execute(_LEAVE, (resource, saga_id))
    raise Locked(resource, None)


async def grant(conn: AsyncConnection[Any], resources: Sequence[str]) -> None:
    """Let in the next in the queue of each of these, which the caller's transaction has given back.

    A timer, due at once, starts the saga that was let in: whichever instance of its service comes first fires it.
    """
    await conn.execute(_GRANT, (list(resources),))


async def _taken(conn: AsyncConnection[Any], resource: str, saga_id: UUID, service: str) -> bool:
    return (await conn.execute(_TAKE, (resource, saga_id, service))).rowcount == 1


async def _holder(conn: AsyncConnection[Any], resource: str, query: LiteralString = _HOLDER) -> UUID | None:
    cursor = await conn.cursor(row_factory=scalar_row).execute(query, (resource,))
    return cast("UUID | None", await cursor.fetchone())
