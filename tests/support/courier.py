"""The relay's stand-in for tests of the library: it carries outbox rows to the broker, when it is told to."""

import asyncio
from dataclasses import dataclass
from types import TracebackType
from typing import Self, cast
from uuid import uuid4

from pydantic import BaseModel

from relay.broker.connection import Channel, Connection
from relay.broker.consumer import Consumer
from relay.broker.encoding import Template
from relay.broker.properties import (
    AGGREGATE_ID,
    AGGREGATE_TYPE,
    CAUSATION_ID,
    COMMANDS,
    EVENTS,
    OPERATION,
    REPLIES,
    Delivery,
    HeaderValue,
    Properties,
    Varying,
)
from relay.broker.publisher import Outcome, Publisher
from relay.broker.topology import ServiceQueue, declare_service
from tests.support.database import Database

WAIT_S = 30.0
ID = 5
EXCHANGES = {"event": EVENTS, "command": COMMANDS, "reply": REPLIES}
ROWS = (
    "SELECT kind, type, aggregate_type, aggregate_id, destination, id, correlation_id, reply_to, causation_id,"
    " operation, headers, payload::text FROM relay.outbox ORDER BY seq"
)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message as it is handed to the broker: where to, what about it, and its body, byte for byte."""

    exchange: str
    routing_key: str
    properties: Properties
    body: bytes

    @property
    def template(self) -> Template:
        return Template(self.exchange, self.routing_key, self.properties)

    @property
    def varying(self) -> Varying:
        said = self.properties
        return Varying(said.message_id or "", said.correlation_id, said.reply_to, said.timestamp, {})


class Courier:
    """Publishes with all rights in the virtual host."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._carried: set[object] = set()

    async def __aenter__(self) -> Self:
        self._connection = await Connection.open(self._url, name="courier")
        self._publisher: Publisher[asyncio.Future[Outcome]] = await Publisher.open(
            self._connection, lambda waiting, outcome: waiting.set_result(outcome), lambda: None
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._connection.close()

    async def declare(self, queue: ServiceQueue) -> None:
        """Declare the queue of a service whose own user may not create it."""
        await declare_service(await self.channel(), queue)

    async def channel(self) -> Channel:
        return await self._connection.channel()

    async def publish(self, message: Outgoing) -> None:
        """Publish, and wait until a queue has it."""
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._publisher.publish(message.template, message.varying, message.body, outcome)
        async with asyncio.timeout(WAIT_S):
            assert await outcome is Outcome.CONFIRMED

    async def send(self, service: str, payload: BaseModel, **said: object) -> str:
        """Send a command with a fresh id, and return the id."""
        message_id = str(said.pop("message_id", uuid4()))
        properties = Properties(message_id, type=type(payload).__name__, **said)  # type: ignore[arg-type]
        await self.publish(Outgoing(COMMANDS, service, properties, payload.model_dump_json().encode()))
        return message_id

    async def carry(self, database: Database, *, again: bool = False) -> int:
        """Publish the rows of the outbox that have not been published yet, or all of them, in their order."""
        rows = [row for row in database.query(ROWS) if again or row[ID] not in self._carried]
        for row in rows:
            await self.publish(_outgoing(row))
            self._carried.add(row[ID])
        return len(rows)

    async def take(self, queue: str) -> Delivery:
        """Take the next message out of a queue."""
        consumer = await Consumer.open(self._connection, queue, prefetch=1)
        async with asyncio.timeout(WAIT_S):
            delivery = await consumer.next()
        consumer.ack(delivery)
        await consumer.close()
        return delivery


def _outgoing(row: tuple[object, ...]) -> Outgoing:
    kind, name, aggregate_type, aggregate_id, destination, message_id, correlation_id, reply_to, cause, operation = (
        None if value is None else str(value) for value in row[:-2]
    )
    optional = {CAUSATION_ID: cause, OPERATION: operation}
    headers = cast(dict[str, HeaderValue], row[-2])
    headers |= {key: value for key, value in optional.items() if value is not None}
    headers |= {AGGREGATE_TYPE: aggregate_type, AGGREGATE_ID: aggregate_id}
    properties = Properties(message_id, name, correlation_id=correlation_id, reply_to=reply_to, headers=headers)
    key = destination or f"{aggregate_type}.{name}"
    return Outgoing(EXCHANGES[str(kind)], key, properties, str(row[-1]).encode())
