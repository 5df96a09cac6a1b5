"""The outbox: a message that commits with the work that it is about."""

from collections.abc import Coroutine, Mapping
from typing import Any, Final, LiteralString, NamedTuple, TypeAlias, TypedDict, Unpack, cast, overload
from uuid import UUID

from psycopg import AsyncConnection, Connection
from psycopg.pq import TransactionStatus
from psycopg.rows import scalar_row
from pydantic import JsonValue
from pydantic_core import to_json

from relay.errors import RelayError
from relay.messaging.message import Message, kind_of, type_of
from relay.messaging.uuid7 import uuid7

Aggregate: TypeAlias = tuple[str, str | UUID]
"""Type and id of what must stay in order: ("order", order_id)."""

INSERT: Final[LiteralString] = """
    INSERT INTO relay.outbox (kind, aggregate_type, aggregate_id, type, destination, correlation_id, reply_to,
                              causation_id, operation, headers, payload)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s::text::json, %s::text::json)
    RETURNING id
"""
"""Writes a Row. A statement that does more begins with something that writes too."""

# Since PostgreSQL 17 there is a fourth parameter, `flush`, false unless given. The commit flushes a transactional
# message anyway, so three mean the same in every version. The cast decides between the functions for text and bytea.
_EMIT: Final[LiteralString] = "SELECT pg_catalog.pg_logical_emit_message(true, 'relay.outbox', %s::text)"


class NotInTransaction(RelayError):
    """The connection commits each statement by itself, so a message would not commit with the work it belongs to."""

    hint = "Put the message and the work into one `with conn.transaction():`, or turn autocommit off."


class WrongDestination(RelayError):
    """A command or a reply is addressed to one service, with `to`; an event is addressed to nobody."""


class Options(TypedDict, total=False):
    """What a message may carry besides its payload. All of it may be left out, except `to` of a command or reply."""

    to: str
    """The service addressed."""
    correlation_id: str | UUID | None
    """What the message is part of: the saga's id."""
    reply_to: str | None
    """The service that the reply goes to."""
    causation_id: str | UUID | None
    """Id of the message that caused this one."""
    operation: str | None
    """What must happen at most once: saga id / step / branch."""
    headers: Mapping[str, JsonValue]
    """Extra AMQP headers."""
    wal_only: bool
    """Write the message to the write-ahead log, and to no table."""


class Row(NamedTuple):
    """What is inserted, in the order of the statement's columns and under their names."""

    kind: str
    aggregate_type: str
    aggregate_id: str
    type: str
    destination: str | None
    correlation_id: str | None
    reply_to: str | None
    causation_id: str | None
    operation: str | None
    headers: str
    payload: str


def require_transaction(conn: Connection[Any] | AsyncConnection[Any]) -> None:
    """Raise NotInTransaction when what is written on the connection now would commit alone."""
    if conn.autocommit and conn.info.transaction_status == TransactionStatus.IDLE:
        raise NotInTransaction("the connection is in autocommit mode and not in a transaction")


@overload
def add(conn: Connection[Any], message: Message, *, aggregate: Aggregate, **options: Unpack[Options]) -> UUID: ...
@overload
def add(
    conn: AsyncConnection[Any], message: Message, *, aggregate: Aggregate, **options: Unpack[Options]
) -> Coroutine[Any, Any, UUID]: ...
def add(
    conn: Connection[Any] | AsyncConnection[Any],
    message: Message,
    *,
    aggregate: Aggregate,
    **options: Unpack[Options],
) -> UUID | Coroutine[Any, Any, UUID]:
    """Write a message in the caller's transaction, and return its id; on an async connection, await it.

    The relay publishes it after the commit; after a rollback it never was. Messages of one aggregate are published in
    the order of the commits, and within a transaction in the order of the calls.

    With `wal_only=True` no row is written: the message stands in the write-ahead log and nowhere else, and commits or
    rolls back all the same. It takes no right on any table. What a lost slot swallowed is published again from rows, so
    such a message is gone then. The source needs a capture of kind `logical`, which it has unless configured otherwise.

    Raises NotInTransaction or WrongDestination, and whatever psycopg raises.
    """
    require_transaction(conn)
    row = _row(message, aggregate, options)
    if options.get("wal_only"):
        return _emit(conn, row)
    if isinstance(conn, AsyncConnection):
        return _insert(conn, row)
    return cast(UUID, conn.cursor(row_factory=scalar_row).execute(INSERT, row).fetchone())


async def _insert(conn: AsyncConnection[Any], row: Row) -> UUID:
    cursor = await conn.cursor(row_factory=scalar_row).execute(INSERT, row)
    return cast(UUID, await cursor.fetchone())


def _emit(conn: Connection[Any] | AsyncConnection[Any], row: Row) -> UUID | Coroutine[Any, Any, UUID]:
    message_id = uuid7()
    content = _content(message_id, row)
    if isinstance(conn, AsyncConnection):
        return _emit_async(conn, message_id, content)
    conn.execute(_EMIT, (content,))
    return message_id


async def _emit_async(conn: AsyncConnection[Any], message_id: UUID, content: str) -> UUID:
    await conn.execute(_EMIT, (content,))
    return message_id


def _content(message_id: UUID, row: Row) -> str:
    """A JSON object with the columns of the outbox, nulls left out. Headers and payload are JSON already."""
    names = {name: value for name, value in row._asdict().items() if value is not None}
    headers, payload = names.pop("headers"), names.pop("payload")
    head = to_json({"id": message_id, **names}).decode()
    return f'{head[:-1]},"headers":{headers},"payload":{payload}}}'


def _row(message: Message, aggregate: Aggregate, options: Options) -> Row:
    kind, destination = kind_of(message), options.get("to")
    if (kind == "event") != (destination is None):
        wrong = "an event has no destination" if kind == "event" else f"a {kind} needs a destination: to="
        raise WrongDestination(f"{type_of(message)}: {wrong}")
    return Row(
        kind=kind,
        aggregate_type=aggregate[0],
        aggregate_id=str(aggregate[1]),
        type=type_of(message),
        destination=destination,
        correlation_id=_text(options.get("correlation_id")),
        reply_to=options.get("reply_to"),
        causation_id=_text(options.get("causation_id")),
        operation=options.get("operation"),
        headers=to_json(options.get("headers", {})).decode(),
        payload=message.model_dump_json(),
    )


def _text(value: str | UUID | None) -> str | None:
    return None if value is None else str(value)
