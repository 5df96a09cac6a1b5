"""The table relay.deferred: messages that could not be handled yet, and those of their aggregates that came later.

What is here is acknowledged. The first one of a lane is tried again when it is due, by any instance; the others wait
behind it, dead or not.
"""

import json
from dataclasses import dataclass
from typing import Any, Final, LiteralString, NamedTuple, cast

from psycopg import AsyncConnection
from psycopg.rows import tuple_row
from pydantic import JsonValue

from relay.broker.properties import Properties
from relay.messaging import properties
from relay.messaging.failures import HISTORY_MAX, Entry, History, Mishap
from relay.messaging.message import Incoming
from relay.messaging.retry import Retry


class Lane(NamedTuple):
    """What waits for each other: the messages of an aggregate; or one that overtakes them, by itself, under its id."""

    aggregate_type: str
    aggregate_id: str
    message_id: str = ""


@dataclass(frozen=True, slots=True)
class Kept:
    """A message that was put off, and has been claimed. `attempts` includes the one that it has been claimed for."""

    message_id: str
    type: str
    properties: Properties
    body: bytes
    attempts: int
    history: History
    overtakes: bool = False


# A copy that is delivered again finds the row here, or, when that is gone, the id in the inbox: it changes nothing.
_INSERT: Final[LiteralString] = """
    INSERT INTO relay.deferred (consumer, message_id, aggregate_type, aggregate_id, lane, type, properties, body,
                                attempts, history, due_at, dead_at)
    SELECT %(consumer)s, %(message_id)s, %(aggregate_type)s, %(aggregate_id)s, %(lane)s, %(type)s,
           %(properties)s::text::json, %(body)s, %(attempts)s, %(history)s::text::json,
           clock_timestamp() + make_interval(secs => %(delay_s)s),
           CASE WHEN %(dead)s THEN clock_timestamp() END
    WHERE NOT EXISTS (SELECT FROM relay.inbox WHERE consumer = %(consumer)s AND message_id = %(message_id)s)
    ON CONFLICT DO NOTHING
"""

# The time of the statement, not the clock's: an index finds what is due by one that stays the same. The first one of
# its lane is looked up for each, in an index: a join would compare all that wait behind one with each other.
_DUE: Final[LiteralString] = """
    SELECT d.aggregate_type, d.aggregate_id, d.lane FROM relay.deferred AS d
    WHERE d.consumer = %(consumer)s AND d.dead_at IS NULL AND d.due_at <= statement_timestamp() AND d.seq = (
        SELECT first.seq FROM relay.deferred AS first
        WHERE first.consumer = d.consumer AND first.aggregate_type = d.aggregate_type
          AND first.aggregate_id = d.aggregate_id AND first.lane = d.lane
        ORDER BY first.seq LIMIT 1)
    ORDER BY d.due_at LIMIT %(limit)s
"""

# The first of the lane is found before anything is locked: to skip a locked one would be to overtake it.
_CLAIM: Final[LiteralString] = """
    WITH head AS (
        SELECT d.consumer, d.message_id FROM relay.deferred AS d
        WHERE d.consumer = %(consumer)s AND d.message_id = (
            SELECT first.message_id FROM relay.deferred AS first
            WHERE first.consumer = %(consumer)s AND first.aggregate_type = %(aggregate_type)s
              AND first.aggregate_id = %(aggregate_id)s AND first.lane = %(lane)s
            ORDER BY first.seq LIMIT 1)
          AND d.dead_at IS NULL AND d.due_at <= clock_timestamp()
        FOR UPDATE SKIP LOCKED
    )
    UPDATE relay.deferred AS d
    SET attempts = d.attempts + 1,
        due_at = clock_timestamp()
            + make_interval(secs => least(%(cap_s)s::float8, %(first_s)s::float8 * 2.0::float8 ^ least(d.attempts, 64)))
    FROM head WHERE d.consumer = head.consumer AND d.message_id = head.message_id
    RETURNING d.message_id, d.type, d.properties, d.body, d.attempts, d.history
"""

_FAIL: Final[LiteralString] = """
    UPDATE relay.deferred
    SET history = %(history)s::text::json, due_at = clock_timestamp() + make_interval(secs => %(delay_s)s),
        dead_at = CASE WHEN %(dead)s THEN clock_timestamp() END
    WHERE consumer = %(consumer)s AND message_id = %(message_id)s AND attempts = %(attempts)s
"""


async def follow(
    conn: AsyncConnection[Any], consumer: str, incoming: Incoming, said: Properties, *, overtakes: bool = False
) -> None:
    """Put a message behind those of its lane that are here. It has not been tried."""
    await put_off(conn, consumer, incoming, said, (), 0.0, overtakes=overtakes)


async def put_off(
    conn: AsyncConnection[Any],
    consumer: str,
    incoming: Incoming,
    said: Properties,
    history: History,
    delay_s: float | None,
    *,
    overtakes: bool = False,
) -> None:
    """Put off a message that has been tried, once for each entry of its history. None for the delay: it is dead.

    One that `overtakes` waits for none of its aggregate, and none waits for it.
    """
    parameters = {
        "consumer": consumer,
        "message_id": incoming.message_id,
        "aggregate_type": incoming.aggregate[0],
        "aggregate_id": incoming.aggregate[1],
        "lane": incoming.message_id if overtakes else "",
        "type": incoming.type,
        "properties": properties.to_json(said),
        "body": incoming.body,
        "attempts": len(history),
        "history": _written(history),
        "delay_s": delay_s or 0.0,
        "dead": delay_s is None,
    }
    await conn.execute(_INSERT, parameters)


async def due(conn: AsyncConnection[Any], consumer: str, limit: int) -> list[Lane]:
    """Lanes whose first message is to be tried again now, those that have been due for longest first."""
    cursor = await conn.cursor(row_factory=tuple_row).execute(_DUE, {"consumer": consumer, "limit": limit})
    return [Lane(*row) for row in await cursor.fetchall()]


async def claim(conn: AsyncConnection[Any], consumer: str, lane: Lane, retry: Retry) -> Kept | None:
    """Claim the first message of a lane for one more attempt, if it is due and nobody else is at it.

    The attempt is counted before it is made, and the message is due again some time later: should it end the process,
    it is not tried for ever, nor at once.
    """
    parameters = {
        "consumer": consumer,
        "aggregate_type": lane.aggregate_type,
        "aggregate_id": lane.aggregate_id,
        "lane": lane.message_id,
        "first_s": retry.first_s,
        "cap_s": retry.cap_s,
    }
    cursor = await conn.cursor(row_factory=tuple_row).execute(_CLAIM, parameters)
    row = await cursor.fetchone()
    if row is None:
        return None
    message_id, message_type, said, body, attempts, history = cast(
        tuple[str, str, dict[str, JsonValue], bytes, int, list[Entry]], row
    )
    return Kept(
        message_id,
        message_type,
        properties.from_json(said),
        body,
        attempts,
        tuple(Mishap.read(entry) for entry in history),
        overtakes=bool(lane.message_id),
    )


async def fail(conn: AsyncConnection[Any], consumer: str, kept: Kept, history: History, delay_s: float | None) -> None:
    """Note that the claimed attempt has failed. None for the delay: its tries are used up, and it is dead.

    Nothing is noted when the message is not the caller's any more.
    """
    parameters = {
        "consumer": consumer,
        "message_id": kept.message_id,
        "attempts": kept.attempts,
        "history": _written(history),
        "delay_s": delay_s or 0.0,
        "dead": delay_s is None,
    }
    await conn.execute(_FAIL, parameters)


def _written(history: History) -> str:
    return json.dumps([mishap.entry for mishap in history[-HISTORY_MAX:]])
