"""The operator's side of relay.deferred: what could not be handled, and what is to become of it.

For tools: plain connections, no loop. A service need not be running, and may.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, LiteralString, NamedTuple

from psycopg import Connection
from psycopg.rows import class_row, dict_row, tuple_row
from pydantic import JsonValue


@dataclass(frozen=True, slots=True)
class Entry:
    """A message that is not handled. The names and their meaning are a contract: `relay dead list --format json`."""

    consumer: str
    id: str
    type: str
    aggregate_type: str
    aggregate_id: str
    state: str
    """dead; retrying: it is tried again at `due_at`; waiting: another one of its aggregate comes first."""
    behind: int
    """How many messages of its aggregate wait behind it."""
    attempts: int
    error: str | None
    """What the last attempt failed with."""
    deferred_at: datetime
    due_at: datetime | None
    dead_at: datetime | None
    dead_seconds: float | None


@dataclass(frozen=True, slots=True)
class Sheet(Entry):
    """A message that is not handled, whole."""

    history: JsonValue
    """Its failures, the oldest first: objects with `at`, `attempt` and `error`."""
    properties: JsonValue
    """Its AMQP properties and headers."""
    body: str
    """One that is no text in UTF-8, as \\x and hexadecimal digits."""


class Selection(NamedTuple):
    """Which messages are meant: those for which everything holds that is given."""

    ids: tuple[str, ...] = ()
    aggregate: tuple[str, str] | None = None
    """Type and id."""
    type: str | None = None
    consumer: str | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing is given, so that all messages are meant."""
        return self == Selection()


_CHOSEN: Final[LiteralString] = """
    WHERE (%(all)s OR d.dead_at IS NOT NULL)
      AND (%(ids)s::text[] IS NULL OR d.message_id = ANY (%(ids)s))
      AND (%(aggregate_type)s::text IS NULL OR d.aggregate_type = %(aggregate_type)s)
      AND (%(aggregate_id)s::text IS NULL OR d.aggregate_id = %(aggregate_id)s)
      AND (%(type)s::text IS NULL OR d.type = %(type)s)
      AND (%(consumer)s::text IS NULL OR d.consumer = %(consumer)s)
"""

# A page is taken first, and what stands before and behind each of its messages looked up afterwards, in an index.
_ENTRY: Final[LiteralString] = """
    SELECT d.consumer, d.message_id AS id, d.type, d.aggregate_type, d.aggregate_id,
           CASE WHEN d.dead_at IS NOT NULL THEN 'dead' WHEN earlier.there THEN 'waiting' ELSE 'retrying' END AS state,
           behind.count AS behind, d.attempts, d.history -> -1 ->> 'error' AS error, d.deferred_at,
           CASE WHEN d.dead_at IS NULL AND NOT earlier.there THEN d.due_at END AS due_at, d.dead_at,
           extract(epoch FROM clock_timestamp() - d.dead_at)::float8 AS dead_seconds
"""

_SHEET: Final[LiteralString] = ", d.history, d.properties, d.body"

_FROM: Final[LiteralString] = " FROM (SELECT * FROM relay.deferred AS d"

_PAGE: Final[LiteralString] = """
        ORDER BY d.seq LIMIT %(limit)s
    ) AS d, LATERAL (
        SELECT EXISTS (
            SELECT FROM relay.deferred AS other
            WHERE other.consumer = d.consumer AND other.aggregate_type = d.aggregate_type
              AND other.aggregate_id = d.aggregate_id AND other.lane = d.lane AND other.seq < d.seq) AS there
    ) AS earlier, LATERAL (
        SELECT count(*) FROM relay.deferred AS other
        WHERE other.consumer = d.consumer AND other.aggregate_type = d.aggregate_type
          AND other.aggregate_id = d.aggregate_id AND other.lane = d.lane AND other.seq > d.seq
    ) AS behind
    ORDER BY d.seq
"""

# What was tried until it was dead is kept in the history, and its attempts are counted anew.
_REPLAY: Final[LiteralString] = """
    UPDATE relay.deferred AS d SET dead_at = NULL, attempts = 0, due_at = clock_timestamp()
"""

# The rows are locked first, and deleted after their ids are in the inbox: a copy that arrives meanwhile finds either.
# The sender's time is left out, so that the id is remembered for the inbox's whole retention from now on.
_LOCK: Final[LiteralString] = "SELECT d.consumer, d.message_id FROM relay.deferred AS d"

_IN_ORDER: Final[LiteralString] = " ORDER BY d.seq FOR UPDATE"

_REMEMBER: Final[LiteralString] = """
    INSERT INTO relay.inbox (consumer, message_id)
    SELECT * FROM unnest(%(consumers)s::text[], %(ids)s::text[]) ON CONFLICT DO NOTHING
"""

_DELETE: Final[LiteralString] = """
    DELETE FROM relay.deferred AS d USING unnest(%(consumers)s::text[], %(ids)s::text[]) AS dropped (consumer, id)
    WHERE d.consumer = dropped.consumer AND d.message_id = dropped.id
"""


def entries(
    connection: Connection[Any], selection: Selection, limit: int | None = None, *, waiting: bool = False
) -> list[Entry]:
    """The dead messages that are selected, in the order in which they were put off.

    `waiting`: also those that are still tried again, and those that wait behind another one.
    """
    named = _named(selection, waiting=waiting) | {"limit": limit}
    return connection.cursor(row_factory=class_row(Entry)).execute(_ENTRY + _FROM + _CHOSEN + _PAGE, named).fetchall()


def sheets(connection: Connection[Any], message_id: str) -> list[Sheet]:
    """Everything about the messages with this id, dead or not: one for each service that has not handled it."""
    named = _named(Selection((message_id,)), waiting=True) | {"limit": None}
    query: LiteralString = _ENTRY + _SHEET + _FROM + _CHOSEN + _PAGE
    rows = connection.cursor(row_factory=dict_row).execute(query, named).fetchall()
    return [Sheet(**row | {"body": _text(row["body"])}) for row in rows]


def replay(connection: Connection[Any], selection: Selection) -> int:
    """Have the dead messages that are selected tried again, under their own ids, by any instance; how many there are.

    Those behind them follow when they are handled.
    """
    return connection.execute(_REPLAY + _CHOSEN, _named(selection)).rowcount


def drop(connection: Connection[Any], selection: Selection) -> int:
    """Drop the dead messages that are selected; how many there are. They will never be handled, nor will a copy be.

    What waits behind them is tried from now on.
    """
    with connection.transaction():
        chosen = connection.cursor(row_factory=tuple_row).execute(_LOCK + _CHOSEN + _IN_ORDER, _named(selection))
        rows = chosen.fetchall()
        named = {"consumers": [consumer for consumer, _ in rows], "ids": [message_id for _, message_id in rows]}
        connection.execute(_REMEMBER, named)
        connection.execute(_DELETE, named)
    return len(rows)


def _named(selection: Selection, *, waiting: bool = False) -> dict[str, object]:
    """What _CHOSEN is given. `waiting`: also what is not dead."""
    aggregate_type, aggregate_id = selection.aggregate or (None, None)
    return {
        "all": waiting,
        "ids": list(selection.ids) or None,
        "aggregate_type": aggregate_type,
        "aggregate_id": aggregate_id,
        "type": selection.type,
        "consumer": selection.consumer,
    }


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError:
        return f"\\x{body.hex()}"
