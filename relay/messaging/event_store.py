"""The event store: an aggregate is what happened to it, and each event is a message that the relay publishes."""

from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Generic, LiteralString, NamedTuple, TypeAlias, TypeVar, cast, overload
from uuid import UUID

from psycopg import AsyncConnection, Connection
from psycopg.rows import class_row, scalar_row
from pydantic import JsonValue
from pydantic_core import from_json, to_json

from relay.errors import RelayError
from relay.messaging.message import Event, Unprocessable, decode, kind_of, type_of
from relay.messaging.outbox import Aggregate, require_transaction

AnyEvent = TypeVar("AnyEvent", bound=Event)

# One statement, so that it is done whole or not at all, and no savepoint is needed. Of two transactions that append to
# one stream at once, the later waits at `next` for the earlier one to end, and inserts nothing if that commits.
# `others` reads what `next` returns, so it comes after it, and inserts only if it did.
_APPEND: Final[LiteralString] = """
    WITH event AS (
        SELECT %(expected)s::bigint + position AS version, type, data::json
        FROM unnest(%(types)s::text[], %(data)s::text[]) WITH ORDINALITY AS given (type, data, position)
    ), next AS (
        INSERT INTO relay.event_store (stream_type, stream_id, version, type, data, headers)
        SELECT %(stream_type)s::text, %(stream_id)s::text, version, type, data, %(headers)s::text::json
        FROM event
        WHERE version = %(expected)s::bigint + 1 AND %(expected)s::bigint = (
            SELECT coalesce(max(stored.version), 0) FROM relay.event_store AS stored
            WHERE stored.stream_type = %(stream_type)s::text AND stored.stream_id = %(stream_id)s::text)
        ON CONFLICT (stream_type, stream_id, version) DO NOTHING
        RETURNING version
    ), others AS (
        INSERT INTO relay.event_store (stream_type, stream_id, version, type, data, headers)
        SELECT %(stream_type)s::text, %(stream_id)s::text, version, type, data, %(headers)s::text::json
        FROM event
        WHERE version > %(expected)s::bigint + 1 AND EXISTS (SELECT FROM next)
        ORDER BY version
        RETURNING version
    )
    SELECT max(version) FROM (SELECT version FROM next UNION ALL SELECT version FROM others) AS appended
"""

_VERSION: Final[LiteralString] = """
    SELECT coalesce(max(version), 0) FROM relay.event_store WHERE stream_type = %s AND stream_id = %s
"""

_LOAD: Final[LiteralString] = """
    SELECT version, type, data::text, headers::text, id, created_at FROM relay.event_store
    WHERE stream_type = %s AND stream_id = %s AND version > %s
    ORDER BY version LIMIT %s
"""


class WrongVersion(RelayError):
    """The stream is not at the version that the new events were decided on. Nothing was appended.

    The transaction goes on: nothing else in it is undone.
    """

    hint = "Load the stream again, decide again on what it says now, and append to that."

    def __init__(self, stream: Aggregate, expected: int, actual: int) -> None:
        super().__init__(f"{_named(stream)} is at version {actual}, not at {expected}")
        self.stream = stream
        self.expected = expected
        self.actual = actual


class UnreadableEvent(RelayError):
    """An event of the stream is of a type that is not known here, or does not fit that type."""

    hint = (
        "Events are never changed: give `load` every type that the stream has ever had, able to read the oldest of it."
    )


@dataclass(frozen=True, slots=True)
class StoredEvent(Generic[AnyEvent]):
    """An event as the stream has it. `id` is that of the message, `created_at` the start of its transaction."""

    version: int
    event: AnyEvent
    id: UUID
    created_at: datetime
    headers: Mapping[str, JsonValue]


class _Row(NamedTuple):
    version: int
    type: str
    data: str
    headers: str
    id: UUID
    created_at: datetime


_Parameters: TypeAlias = dict[str, str | int | list[str]]


@overload
def append(
    conn: Connection[Any],
    stream: Aggregate,
    expected_version: int,
    events: Sequence[Event],
    *,
    headers: Mapping[str, JsonValue] = ...,
) -> int: ...
@overload
def append(
    conn: AsyncConnection[Any],
    stream: Aggregate,
    expected_version: int,
    events: Sequence[Event],
    *,
    headers: Mapping[str, JsonValue] = ...,
) -> Coroutine[Any, Any, int]: ...
def append(
    conn: Connection[Any] | AsyncConnection[Any],
    stream: Aggregate,
    expected_version: int,
    events: Sequence[Event],
    *,
    headers: Mapping[str, JsonValue] = {},
) -> int | Coroutine[Any, Any, int]:
    """Append events in the caller's transaction, and return the stream's new version; on an async connection, await it.

    `expected_version` is the version of the last event that the new ones were decided on, 0 for a stream that is new.
    The events get the versions after it, in their order; without events nothing is done. The relay publishes them
    after the commit, in the order of their versions. `headers` are extra AMQP headers of each.

    Raises WrongVersion when the stream is at another version, earlier or later; the transaction can go on. Who appends
    while another transaction does so to the same stream waits for its end, and gets WrongVersion if that commits. In
    REPEATABLE READ and SERIALIZABLE PostgreSQL refuses with a serialization failure then, as it does to any statement.
    Raises NotInTransaction, TypeError for what is no Event, and whatever psycopg raises.
    """
    require_transaction(conn)
    if expected_version < 0:
        raise ValueError(f"expected_version is {expected_version}, and a stream begins at 0")
    parameters = _parameters(stream, expected_version, events, headers)
    if isinstance(conn, AsyncConnection):
        return _append_async(conn, stream, expected_version, parameters)
    return _append(conn, stream, expected_version, parameters)


def _append(conn: Connection[Any], stream: Aggregate, expected: int, parameters: _Parameters) -> int:
    if not parameters["types"]:
        return expected
    cursor = conn.cursor(row_factory=scalar_row)
    version = cursor.execute(_APPEND, parameters).fetchone()
    if version is None:
        actual = cursor.execute(_VERSION, _key(stream)).fetchone()
        raise WrongVersion(stream, expected, cast(int, actual))
    return cast(int, version)


async def _append_async(conn: AsyncConnection[Any], stream: Aggregate, expected: int, parameters: _Parameters) -> int:
    if not parameters["types"]:
        return expected
    cursor = conn.cursor(row_factory=scalar_row)
    version = await (await cursor.execute(_APPEND, parameters)).fetchone()
    if version is None:
        actual = await (await cursor.execute(_VERSION, _key(stream))).fetchone()
        raise WrongVersion(stream, expected, cast(int, actual))
    return cast(int, version)


@overload
def load(
    conn: Connection[Any],
    stream: Aggregate,
    types: Iterable[type[AnyEvent]],
    *,
    after_version: int = ...,
    limit: int | None = ...,
) -> list[StoredEvent[AnyEvent]]: ...
@overload
def load(
    conn: AsyncConnection[Any],
    stream: Aggregate,
    types: Iterable[type[AnyEvent]],
    *,
    after_version: int = ...,
    limit: int | None = ...,
) -> Coroutine[Any, Any, list[StoredEvent[AnyEvent]]]: ...
def load(
    conn: Connection[Any] | AsyncConnection[Any],
    stream: Aggregate,
    types: Iterable[type[AnyEvent]],
    *,
    after_version: int = 0,
    limit: int | None = None,
) -> list[StoredEvent[AnyEvent]] | Coroutine[Any, Any, list[StoredEvent[AnyEvent]]]:
    """The events of a stream, in the order of their versions; on an async connection, await it.

    A stream that is not there has none. `types` are the classes that the events are read into, found by their names.
    All that is asked for is in memory at once: read a long stream in pages, with `limit`, and the last version of the
    page before as `after_version`.
    Raises UnreadableEvent, and whatever psycopg raises.
    """
    parameters = (*_key(stream), after_version, limit)
    known = {type_of(known): known for known in types}
    if isinstance(conn, AsyncConnection):
        return _load_async(conn, stream, parameters, known)
    rows = conn.cursor(row_factory=class_row(_Row)).execute(_LOAD, parameters).fetchall()
    return [_stored(stream, row, known) for row in rows]


async def _load_async(
    conn: AsyncConnection[Any],
    stream: Aggregate,
    parameters: tuple[str | int | None, ...],
    known: Mapping[str, type[AnyEvent]],
) -> list[StoredEvent[AnyEvent]]:
    cursor = await conn.cursor(row_factory=class_row(_Row)).execute(_LOAD, parameters)
    return [_stored(stream, row, known) for row in await cursor.fetchall()]


def _stored(stream: Aggregate, row: _Row, known: Mapping[str, type[AnyEvent]]) -> StoredEvent[AnyEvent]:
    where = f"version {row.version} of {_named(stream)}"
    event_type = known.get(row.type)
    if event_type is None:
        raise UnreadableEvent(f"{where} is of the type {row.type}, which it is not to be read with")
    try:
        event = decode(event_type, row.data.encode())
    except Unprocessable as error:
        raise UnreadableEvent(f"{where}: {error}") from None
    return StoredEvent(row.version, event, row.id, row.created_at, from_json(row.headers))


def _parameters(
    stream: Aggregate, expected: int, events: Sequence[Event], headers: Mapping[str, JsonValue]
) -> _Parameters:
    for event in events:
        if kind_of(event) != "event":
            raise TypeError(f"{type_of(event)} is no Event")
    stream_type, stream_id = _key(stream)
    return {
        "stream_type": stream_type,
        "stream_id": stream_id,
        "expected": expected,
        "types": [type_of(event) for event in events],
        "data": [event.model_dump_json() for event in events],
        "headers": to_json(headers).decode(),
    }


def _key(stream: Aggregate) -> tuple[str, str]:
    return stream[0], str(stream[1])


def _named(stream: Aggregate) -> str:
    return " ".join(_key(stream))
