"""The loop of a service: a message in, what is to become of it committed, its acknowledgement."""

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import Final

import psycopg

from relay.backoff import Backoff
from relay.broker import properties as names
from relay.broker.connection import Connection
from relay.broker.consumer import Consumer
from relay.broker.properties import Delivery
from relay.broker.topology import ServiceQueue, declare_service
from relay.errors import BrokerAway, BrokerError
from relay.messaging.attempt import STOP_GRACE_S
from relay.messaging.failures import described
from relay.messaging.lanes import Lanes
from relay.messaging.log import ServiceLog
from relay.messaging.retry import AWAY_CAP_S, AWAY_FIRST_S, Trouble, trouble
from relay.messaging.settling import Settling
from relay.messaging.transaction import Pool

__all__ = ["CONCURRENCY", "PREFETCH_MESSAGES", "STOP_GRACE_S", "Worker"]

PREFETCH_MESSAGES: Final = 50
"""Messages that the broker hands out before it sees an acknowledgement. It hides the round trip, no more."""

CONCURRENCY: Final = 8
"""Messages handled at once, each in a transaction on a connection of its own: their commits share the disk's work."""

BROKER_FIRST_S: Final = 0.1
BROKER_CAP_S: Final = 5.0
"""Waits between attempts to connect to RabbitMQ."""

_READY: Final = "SELECT deferred.lane FROM relay.inbox, relay.operation, relay.deferred LIMIT 0"
"""With the newest column that messages need: a service may be newer than its database."""


@dataclass(frozen=True, slots=True)
class _Held:
    """A delivery of a consumer's. See settling.Held."""

    delivery: Delivery
    consumer: Consumer
    connection: Connection

    def ack(self) -> None:
        self.consumer.ack(self.delivery)

    def reject(self) -> None:
        self.consumer.reject(self.delivery)

    async def pause(self, delay_s: float) -> None:
        """Raises BrokerAway when the connection goes meanwhile: the message comes again."""
        closed = self.connection.closed
        await asyncio.wait({closed}, timeout=delay_s)
        if closed.done():
            raise BrokerAway(str(closed.result()))


class Worker:
    """Consumes the queue of one service, and has each message settled: some at once, those of an aggregate in turn."""

    def __init__(self, queue: ServiceQueue, settling: Settling, pool: Pool, *, prefetch: int, concurrency: int) -> None:
        self._queue = queue
        self._settling = settling
        self._pool = pool
        self._prefetch = prefetch
        self._concurrency = concurrency
        self._log = ServiceLog(queue.name)
        self._broker_backoff = Backoff(BROKER_FIRST_S, BROKER_CAP_S)

    async def run(self, amqp_url: str) -> None:
        """Consume until cancelled. Raises BrokerError when RabbitMQ refuses what waiting does not mend."""
        while True:
            try:
                # Without its database a service would only hold messages, and each loss of the connection would count
                # against their delivery limit.
                await self.database_is_ready()
                await self._consume(amqp_url)
            except BrokerAway as error:
                delay_s = self._broker_backoff.next()
                self._log.warning("broker_away", f"{error}; trying again", delay_s=round(delay_s, 3))
                await asyncio.sleep(delay_s)

    async def database_is_ready(self) -> None:
        """Wait for the database, its tables and the rights on them."""
        backoff = Backoff(AWAY_FIRST_S, AWAY_CAP_S)
        while True:
            try:
                async with self._pool.connection() as conn:
                    await conn.execute(_READY)
                return
            except psycopg.Error as error:
                # A missing table or right may appear too: nobody has to start things in a certain order.
                hint = "" if trouble(error) is Trouble.AWAY else " (has `relay migrate` given this role its rights?)"
                self._log.warning("database_not_ready", f"the database is not ready: {described(error)}{hint}")
            await asyncio.sleep(backoff.next())

    async def _consume(self, amqp_url: str) -> None:
        connection = await Connection.open(amqp_url, name=self._queue.name)
        try:
            await declare_service(await connection.channel(), self._queue)
            consumer = await Consumer.open(connection, self._queue.name, self._prefetch)
            self._broker_backoff.reset()
            self._log.info("consuming", f"consuming {self._queue.name}")
            async with Lanes(self._concurrency) as lanes:
                while True:
                    delivery = await _next(consumer)
                    lanes.start(_aggregate(delivery), partial(self._settle, delivery, consumer, connection))
        finally:
            await connection.close()
            self._log.info("consuming_stopped", f"stopped consuming {self._queue.name}")

    async def _settle(self, delivery: Delivery, consumer: Consumer, connection: Connection) -> None:
        await self._settling.settle(_Held(delivery, consumer, connection))


def _aggregate(delivery: Delivery) -> tuple[str | None, str | None]:
    """What must stay in order. Messages without an aggregate wait for each other: nobody knows better."""
    said = delivery.properties
    return said.header(names.AGGREGATE_TYPE), said.header(names.AGGREGATE_ID)


async def _next(consumer: Consumer) -> Delivery:
    try:
        return await consumer.next()
    except BrokerError as error:
        # What was allowed a moment ago is worth asking for again, whatever closed the channel: RabbitMQ says 406 when
        # a delivery was held for too long, for instance through a long absence of the database.
        raise BrokerAway(str(error)) from error
