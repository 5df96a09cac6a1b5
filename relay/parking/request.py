"""relay.parked_request: what operators ask, as the relay sees it."""

from enum import StrEnum
from typing import Final, LiteralString, NamedTuple

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from relay.capture.message import Kind, Lane
from relay.wal.connection import fetch_one

ASKED: Final = "relay_parked_asked"
"""The channel that tells the relay of a new request. The payload is the slot."""

PROGRESS: Final = "relay_parked_progress"
"""The channel that tells the operators of progress. The payload is the slot."""

KEPT_DAYS: Final = 30
"""How long a finished request can be looked up, in days."""


class Action(StrEnum):
    """What is to become of parked messages."""

    REPLAY = "replay"
    """Publish them, with all that waits behind them."""
    DROP = "drop"
    """Never publish them."""


class Request(NamedTuple):
    """What an operator asks."""

    id: int
    action: Action
    ids: tuple[str, ...] | None
    """Messages whose lanes are meant. None: whatever the other columns say."""
    first_only: bool
    """Only these messages themselves are meant, each the first of its lane."""
    lanes: tuple[Lane, ...] | None
    """What was selected, None when that has not been found out yet."""
    dropped: int
    """How many messages it has dropped so far."""


_TAKE: LiteralString = """
    UPDATE relay.parked_request SET state = 'taken', progress_at = clock_timestamp()
    WHERE id = (
        SELECT id FROM relay.parked_request
        WHERE slot = %s AND (state = 'taken' OR state = 'asked' AND expires_at > clock_timestamp())
        ORDER BY id LIMIT 1 FOR UPDATE)
    RETURNING id, action, ids, first_only, lanes, dropped
"""


async def take(connection: AsyncConnection[TupleRow], slot: str) -> Request | None:
    """The oldest request that is not done, be it one that another relay has begun. From here on nobody withdraws it."""
    row = await fetch_one(connection, _TAKE, (slot,))
    if row is None:
        return None
    number, action, ids, first_only, lanes, dropped = row
    return Request(
        number,
        Action(action),
        None if ids is None else tuple(ids),
        first_only,
        None if lanes is None else _lanes(lanes),
        dropped,
    )


_SELECT_LANES: LiteralString = """
    UPDATE relay.parked_request AS request SET lanes = (
        SELECT coalesce(jsonb_agg(DISTINCT jsonb_build_array(
            parked.aggregate_type, parked.aggregate_id, parked.kind, parked.destination)), '[]')
        FROM relay.parked
        WHERE parked.slot = request.slot
            AND (request.ids IS NULL OR parked.id = ANY (request.ids))
            AND (request.aggregate_type IS NULL OR parked.aggregate_type = request.aggregate_type)
            AND (request.aggregate_id IS NULL OR parked.aggregate_id = request.aggregate_id)
            AND (request.reason IS NULL OR parked.reason = request.reason))
    WHERE id = %s RETURNING lanes
"""


async def select_lanes(connection: AsyncConnection[TupleRow], request: Request) -> tuple[Lane, ...]:
    """Find out which lanes have a message that a request selects, and remember them: a relay that resumes it, when
    some of these messages are gone already, has to finish the same lanes."""
    row = await fetch_one(connection, _SELECT_LANES, (request.id,))
    return () if row is None else _lanes(row[0])


def _lanes(values: list[list[str]]) -> tuple[Lane, ...]:
    return tuple(Lane(kind_of, aggregate, Kind(kind), destination) for kind_of, aggregate, kind, destination in values)


async def is_open(connection: AsyncConnection[TupleRow], slot: str) -> bool:
    """Whether any request may still make room."""
    query: LiteralString = """
        SELECT 1 FROM relay.parked_request
        WHERE slot = %s AND (state = 'taken' OR state = 'asked' AND expires_at > clock_timestamp()) LIMIT 1
    """
    return await fetch_one(connection, query, (slot,)) is not None


_FINISH: LiteralString = """
    WITH finished AS (
        UPDATE relay.parked_request
        SET state = 'done', still_parked = %(still_parked)s, detail = %(detail)s, progress_at = clock_timestamp()
        WHERE id = %(id)s)
    SELECT pg_notify(%(channel)s, %(slot)s)
"""


async def finish(
    connection: AsyncConnection[TupleRow], slot: str, request: int, still_parked: int, detail: str | None
) -> None:
    """A request has been seen to, and so many messages of its lanes are still parked."""
    named = {"id": request, "slot": slot, "channel": PROGRESS, "still_parked": still_parked, "detail": detail}
    await connection.execute(_FINISH, named)


async def discard(connection: AsyncConnection[TupleRow], slot: str) -> None:
    """Throw away requests that are long done, and those that nobody took while who asked was there."""
    query: LiteralString = """
        DELETE FROM relay.parked_request
        WHERE slot = %s AND (state = 'done' AND progress_at < clock_timestamp() - make_interval(days => %s)
            OR state = 'asked' AND expires_at < clock_timestamp() - interval '1 hour')
    """
    await connection.execute(query, (slot, KEPT_DAYS))
