"""What the tests of the saga engine share: answering commands as participants do, and looking at what is stored."""

import itertools
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool
from pydantic import JsonValue

from relay.broker.properties import ATTEMPT, COMPENSATION, Delivery, HeaderValue, Properties
from relay.messaging import Operation, Outcome, Reply, Service
from relay.messaging.message import type_of
from relay.saga import Record, log
from relay.saga.record import rebuild
from tests.support.database import Database

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Sent:
    """A command that stands in the outbox. `headers` are those that a reply repeats."""

    seq: int
    type: str
    to: str
    operation: str
    headers: Mapping[str, str]
    payload: Mapping[str, JsonValue]

    @property
    def saga_id(self) -> UUID:
        return Operation.parse(self.operation).saga_id

    @property
    def compensates(self) -> bool:
        return COMPENSATION in self.headers

    @property
    def attempt(self) -> int:
        return int(self.headers.get(COMPENSATION) or self.headers.get(ATTEMPT) or 1)


def sent(database: Database, after_seq: int = 0) -> list[Sent]:
    """The commands in the outbox, in the order in which they were written."""
    columns = "seq, type, destination, operation, headers, payload"
    rows = database.query(
        f"SELECT {columns} FROM relay.outbox WHERE kind = 'command' AND seq > %s ORDER BY seq", after_seq
    )
    return [Sent(*row) for row in rows]  # type: ignore[arg-type]


def last_sent(database: Database) -> Sent:
    return sent(database)[-1]


def delivery_of(reply: Reply, command: Sent | str | None, message_id: str | None = None) -> Delivery:
    """A reply as the broker hands it over. `command` is what it answers: one in the outbox, or only an operation."""
    headers: dict[str, HeaderValue] = {}
    if isinstance(command, Sent):
        headers = {"operation": command.operation, **command.headers}
    elif command is not None:
        headers = {"operation": command}
    properties = Properties(message_id or f"r{next(_numbers)}", type=type_of(reply), headers=headers)
    return Delivery(1, "relay.replies", "travel", False, properties, reply.model_dump_json().encode())


async def hear(
    service: Service,
    conn: AsyncConnection[TupleRow],
    reply: Reply,
    command: Sent | str | None,
    message_id: str | None = None,
) -> Outcome:
    """Handle a reply in a transaction, as the service's loop does."""
    async with conn.transaction():
        return await service.handle(delivery_of(reply, command, message_id), conn)


async def connect(database: Database) -> AsyncConnection[TupleRow]:
    """As the service `orders`."""
    return await AsyncConnection.connect(database.role_dsn("orders"), autocommit=True)


def status_of(database: Database, saga_id: UUID | None = None) -> object:
    """Where a saga stands: the only one, or that one."""
    where = "" if saga_id is None else f" WHERE id = '{saga_id}'"
    return database.value(f"SELECT status FROM relay.saga{where}")


def logged(database: Database, saga_id: UUID | None = None) -> list[str]:
    """The events of a saga, or of all, with their steps."""
    where = "" if saga_id is None else f" WHERE saga_id = '{saga_id}'"
    return [
        f"{event} {step or ''}".strip()
        for event, step in database.query(f"SELECT event, step FROM relay.saga_log{where} ORDER BY saga_id, ordinal")
    ]


def record_of(database: Database, saga_id: UUID) -> Record:
    """The record that relay.saga holds."""
    ((status, state, progress, reason),) = database.query(
        "SELECT status, state, progress, reason FROM relay.saga WHERE id = %s", saga_id
    )
    return Record.of(status, state, progress, reason)  # type: ignore[arg-type]


async def then_the_log_tells_the_record(conn: AsyncConnection[Any], database: Database, saga_id: UUID) -> None:
    """What the log says is what the row says, and its ordinals have no gap."""
    assert rebuild(await log.read(conn, saga_id)) == record_of(database, saga_id)
    ordinals = database.query("SELECT ordinal FROM relay.saga_log WHERE saga_id = %s ORDER BY at, ordinal", saga_id)
    assert ordinals == [(number,) for number in range(1, len(ordinals) + 1)]
    assert database.value("SELECT events FROM relay.saga WHERE id = %s", saga_id) == len(ordinals)


@asynccontextmanager
async def pool_of(database: Database) -> AsyncIterator[AsyncConnectionPool[AsyncConnection[TupleRow]]]:
    """Connections of the service orders, as its jobs get them."""
    async with AsyncConnectionPool(
        database.role_dsn("orders"), min_size=1, max_size=4, kwargs={"autocommit": True}, open=False
    ) as pool:
        yield pool
