"""The outbox: a message that commits with the work that it is about."""

from collections.abc import Coroutine, Mapping
from typing import Any, Final, LiteralString, TypeAlias, TypedDict, Unpack, cast, overload
from uuid import UUID

from psycopg import AsyncConnection, Connection
from psycopg.pq import TransactionStatus
from psycopg.rows import scalar_row
from pydantic import JsonValue
from pydantic_core import to_json

from relay.errors import RelayError
from relay.messaging.message import Message, kind_of, type_of

Aggregate: TypeAlias = tuple[str, str | UUID]
"""Type and id of what must stay in order: ("order", order_id)."""

_INSERT: Final[LiteralString] = """
    INSERT INTO relay.outbox (kind, aggregate_type, aggregate_id, type, destination, correlation_id, reply_to,
                              causation_id, operation, headers, payload)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s::text::json, %s::text::json)
    RETURNING id
"""


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
    Raises NotInTransaction or WrongDestination, and whatever psycopg raises.
    """
    require_transaction(conn)
    parameters = _row(message, aggregate, options)
    if isinstance(conn, AsyncConnection):
        return _insert(conn, parameters)
    return cast(UUID, conn.cursor(row_factory=scalar_row).execute(_INSERT, parameters).fetchone())


async def _insert(conn: AsyncConnection[Any], parameters: list[str | None]) -> UUID:
    cursor = await conn.cursor(row_factory=scalar_row).execute(_INSERT, parameters)
    return cast(UUID, await cursor.fetchone())


def _row(message: Message, aggregate: Aggregate, options: Options) -> list[str | None]:
    """What is inserted, in the order of the statement's columns."""
    kind, destination = kind_of(message), options.get("to")
    if (kind == "event") != (destination is None):
        wrong = "an event has no destination" if kind == "event" else f"a {kind} needs a destination: to="
        raise WrongDestination(f"{type_of(message)}: {wrong}")
    return [
        kind,
        aggregate[0],
        str(aggregate[1]),
        type_of(message),
        destination,
        _text(options.get("correlation_id")),
        options.get("reply_to"),
        _text(options.get("causation_id")),
        options.get("operation"),
        to_json(options.get("headers", {})).decode(),
        message.model_dump_json(),
    ]


def _text(value: str | UUID | None) -> str | None:
    return None if value is None else str(value)
