"""The loop of a service: a message in, one transaction, its acknowledgement."""

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from functools import partial
from typing import Any, Final, TypeVar

import psycopg

from relay.backoff import Backoff
from relay.broker import properties as names
from relay.broker.connection import Connection
from relay.broker.consumer import Consumer
from relay.broker.properties import Delivery
from relay.broker.topology import ServiceQueue, declare_service
from relay.errors import BrokerAway, BrokerError
from relay.messaging import inbox, outbox
from relay.messaging.handler import Handling, Route
from relay.messaging.lanes import Lanes
from relay.messaging.message import Incoming, Reply, Unprocessable
from relay.messaging.retry import AWAY_CAP_S, AWAY_FIRST_S, Patience, Trouble, trouble
from relay.messaging.transaction import Pool, Transaction
from relay.tasks import end

PREFETCH_MESSAGES: Final = 50
"""Messages that the broker hands out before it sees an acknowledgement. It hides the round trip, no more."""

CONCURRENCY: Final = 8
"""Messages handled at once, each in a transaction on a connection of its own: their commits share the disk's work."""

BROKER_FIRST_S: Final = 0.1
BROKER_CAP_S: Final = 5.0
"""Waits between attempts to connect to RabbitMQ."""

STOP_GRACE_S: Final = 10.0
"""How long the transaction at hand may still take when the service is stopped; then it is rolled back."""

_READY: Final = "SELECT FROM relay.inbox LIMIT 0"

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class Worker:
    """Handles the messages of one service. One attempt at one message is one transaction."""

    def __init__(
        self, queue: ServiceQueue, routes: Mapping[str, Route], pool: Pool, *, prefetch: int, concurrency: int
    ) -> None:
        self._queue = queue
        self._routes = routes
        self._pool = pool
        self._prefetch = prefetch
        self._concurrency = concurrency
        self._broker_backoff = Backoff(BROKER_FIRST_S, BROKER_CAP_S)

    async def run(self, amqp_url: str) -> None:
        """Consume until cancelled. Raises BrokerError when RabbitMQ refuses what waiting does not mend."""
        while True:
            try:
                # Without its database a service would only hold messages, and each loss of the connection would count
                # against their delivery limit.
                await self._database_is_ready()
                await self._consume(amqp_url)
            except BrokerAway as error:
                delay_s = self._broker_backoff.next()
                self._log(logging.WARNING, f"{error}; trying again", "broker_away", delay_s=round(delay_s, 3))
                await asyncio.sleep(delay_s)

    async def _database_is_ready(self) -> None:
        backoff = Backoff(AWAY_FIRST_S, AWAY_CAP_S)
        while True:
            try:
                async with self._pool.connection() as conn:
                    await conn.execute(_READY)
                return
            except psycopg.Error as error:
                # A missing table or right may appear too: nobody has to start things in a certain order.
                hint = "" if trouble(error) is Trouble.AWAY else " (has `relay migrate` given this role its rights?)"
                self._log(logging.WARNING, f"the database is not ready: {_one_line(error)}{hint}", "database_not_ready")
            await asyncio.sleep(backoff.next())

    async def _consume(self, amqp_url: str) -> None:
        connection = await Connection.open(amqp_url, name=self._queue.name)
        try:
            await declare_service(await connection.channel(), self._queue)
            consumer = await Consumer.open(connection, self._queue.name, self._prefetch)
            self._broker_backoff.reset()
            self._log(logging.INFO, f"consuming {self._queue.name}", "consuming")
            async with Lanes(self._concurrency) as lanes:
                while True:
                    delivery = await _next(consumer)
                    lanes.start(_aggregate(delivery), partial(self._handle, delivery, consumer, connection))
        finally:
            await connection.close()
            self._log(logging.INFO, f"stopped consuming {self._queue.name}", "consuming_stopped")

    async def _handle(self, delivery: Delivery, consumer: Consumer, connection: Connection) -> None:
        """Settle one delivery: acknowledged or rejected, however long that takes."""
        try:
            incoming, handling = self._understand(delivery)
        except Unprocessable as error:
            self._reject(delivery, consumer, error)
            return
        patience = Patience()
        while True:
            try:
                async with self._pool.connection() as conn:
                    await _finish(self._transact(Transaction(conn, incoming), incoming, handling, delivery, consumer))
                return
            except Unprocessable as error:
                self._reject(delivery, consumer, error)
                return
            except Exception as error:  # the supervisor's edge: a handler may raise anything
                delay_s = patience.after(error)
                if delay_s is None:
                    self._reject(delivery, consumer, error)
                    return
                self._log_failure(incoming, error, delay_s)
            await _pause(delay_s, connection)

    def _understand(self, delivery: Delivery) -> tuple[Incoming, Handling]:
        incoming = Incoming.of(delivery)
        route = self._routes.get(incoming.type)
        if route is None:
            raise Unprocessable(f"service {self._queue.name} has no handler of {incoming.type}")
        return incoming, route.prepare(incoming)

    async def _transact(
        self, tx: Transaction, incoming: Incoming, handling: Handling, delivery: Delivery, consumer: Consumer
    ) -> None:
        """One attempt. Whatever dies after the commit and before the acknowledgement, the inbox knows the message."""
        async with tx.connection.transaction():
            fresh = await inbox.add(tx.connection, self._queue.name, incoming)
            if fresh:
                reply = await handling(tx)
                tx.require_alive()
                if reply is not None:
                    await _send_reply(tx, incoming, reply)
        consumer.ack(delivery)
        action = "message_handled" if fresh else "message_seen_before"
        self._log(logging.DEBUG, f"{incoming.type} {incoming.message_id}", action)

    def _reject(self, delivery: Delivery, consumer: Consumer, error: Exception) -> None:
        consumer.reject(delivery)
        said = delivery.properties
        known = isinstance(error, Unprocessable)
        text = f"{said.type} {said.message_id} goes to the dead letters: {error if known else type(error).__name__}"
        logger.error(
            text,
            exc_info=None if known else error,
            extra={"action": "message_rejected", "service": self._queue.name, "message_id": said.message_id},
        )

    def _log_failure(self, incoming: Incoming, error: Exception, delay_s: float) -> None:
        kind = trouble(error)
        text = f"{incoming.type} {incoming.message_id} is tried again: {type(error).__name__}: {_one_line(error)}"
        level = logging.WARNING if kind is Trouble.AWAY else logging.INFO
        action = {
            Trouble.AWAY: "database_away",
            Trouble.CONFLICT: "transaction_conflict",
            Trouble.FAULT: "handler_failed",
        }[kind]
        self._log(level, text, action, message_id=incoming.message_id, delay_s=round(delay_s, 3))

    def _log(self, level: int, text: str, action: str, **fields: str | float) -> None:
        logger.log(level, text, extra={"action": action, "service": self._queue.name, **fields})


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


async def _send_reply(tx: Transaction, incoming: Incoming, reply: Reply) -> None:
    """The reply belongs to the aggregate and the operation of its command. Who wants none gets none."""
    if incoming.reply_to is None:
        return
    await outbox.add(
        tx.connection,
        reply,
        aggregate=incoming.aggregate,
        to=incoming.reply_to,
        correlation_id=incoming.correlation_id,
        causation_id=incoming.message_id,
        operation=incoming.operation,
    )


async def _pause(delay_s: float, connection: Connection) -> None:
    """Wait before another try. Raises BrokerAway when the connection goes meanwhile: the message comes again."""
    await asyncio.wait({connection.closed}, timeout=delay_s)
    if connection.closed.done():
        raise BrokerAway(str(connection.closed.result()))


async def _finish(work: Coroutine[Any, Any, Result]) -> Result:
    """Await work that gets STOP_GRACE_S to end when its awaiter is cancelled, and is cancelled only then."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task}, timeout=STOP_GRACE_S)
        await end(task)  # whatever failed, the message comes again
        raise


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
