"""A queue of the test's own, and what arrived in it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from relay.broker.connection import Connection
from relay.broker.consumer import Consumer
from relay.broker.properties import COMMANDS, EVENTS, Delivery
from relay.broker.topology import declare_exchanges
from relay.errors import BrokerAway

ARRIVAL_S = 60.0
RETRY_S = 0.2
PREFETCH = 500
QUEUE_IS_DURABLE_S = 4.0
"""RabbitMQ writes the names of new quorum queues to its disk lazily, and tells nobody when it has. Killed before that,
it forgets a queue, or comes back with one that never has a leader (rabbitmq-server, issue 10070)."""
QUORUM = {"x-queue-type": "quorum"}


class Mailbox:
    """Collects what arrives, in order, also across restarts of the broker."""

    def __init__(self, url: str, queue: str, prefetch: int = PREFETCH) -> None:
        self._url = url
        self._queue = queue
        self._prefetch = prefetch
        self.deliveries: list[Delivery] = []
        self._news = asyncio.Condition()

    async def collect(self) -> None:
        """Consume for ever."""
        while True:
            try:
                await self._consume(await Connection.open(self._url, name="mailbox"))
            except BrokerAway:
                await asyncio.sleep(RETRY_S)  # between attempts to connect to a broker that is restarting

    async def _consume(self, connection: Connection) -> None:
        try:
            consumer = await Consumer.open(connection, self._queue, prefetch=self._prefetch)
            while True:
                delivery = await consumer.next()
                async with self._news:
                    self.deliveries.append(delivery)
                    self._news.notify_all()
                consumer.ack(delivery)
        finally:
            await connection.close()

    async def until(self, enough: Callable[[list[Delivery]], bool], within_s: float = ARRIVAL_S) -> list[Delivery]:
        """Wait until enough has arrived; fail with what has."""
        try:
            async with asyncio.timeout(within_s), self._news:
                await self._news.wait_for(lambda: enough(self.deliveries))
        except TimeoutError:
            raise AssertionError(f"only {len(self.deliveries)} messages arrived") from None
        return list(self.deliveries)

    async def until_count(self, count: int) -> list[Delivery]:
        """Wait for so many messages."""
        return await self.until(lambda deliveries: len(deliveries) >= count)

    async def until_ids(self, ids: set[str], within_s: float = ARRIVAL_S) -> list[Delivery]:
        """Wait until all of these have arrived at least once."""
        seen: set[str] = set()
        looked = 0

        def all_there(deliveries: list[Delivery]) -> bool:
            nonlocal looked
            seen.update(str(delivery.properties.message_id) for delivery in deliveries[looked:])
            looked = len(deliveries)
            return ids <= seen

        return await self.until(all_there, within_s)


@asynccontextmanager
async def mailbox(
    url: str,
    queue: str = "mailbox",
    *,
    commands_for: str | None = None,
    prefetch: int = PREFETCH,
    arguments: Mapping[str, str | int] = QUORUM,
) -> AsyncIterator[Mailbox]:
    """A durable queue that gets every event, or the commands for one service."""
    connection = await Connection.open(url, name="mailbox")
    channel = await connection.channel()
    await declare_exchanges(channel)
    await channel.call(channel.raw.queue_declare, queue, durable=True, arguments=dict(arguments))
    if commands_for is None:
        await channel.call(channel.raw.queue_bind, queue, EVENTS, routing_key="#")
    else:
        await channel.call(channel.raw.queue_bind, queue, COMMANDS, routing_key=commands_for)
    await connection.close()
    box = Mailbox(url, queue, prefetch)
    collecting = asyncio.create_task(box.collect())
    try:
        yield box
    finally:
        collecting.cancel()
        await asyncio.wait({collecting})
