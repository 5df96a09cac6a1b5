"""Ordered parallel consumption, whole: the relay, a hash exchange, N queues, consumers that die. Nothing overtakes."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from relay.broker.connection import Connection
from relay.broker.consumer import Consumer
from relay.broker.properties import Delivery
from relay.demo.servers.rabbitmq import PrivateRabbitMQ
from relay.errors import BrokerAway
from tests.conftest import VirtualHost
from tests.support.database import Database
from tests.support.link import Link
from tests.support.process import Process
from tests.support.servers import RabbitServer, management
from tests.support.topology import Topology, billing
from tests.support.verdict import assert_delivered, committed_messages
from tests.support.waiting import eventually
from tests.support.writer import Writers

PREFETCH = 20
WAIT_S = 60.0
SEED = 7
WRITER_PAUSE_S = 0.02
APPLY_TRIES = 5
"""Each takes some twelve seconds, in which consumers that are alive empty what they have."""
DELIVERY_LIMIT = 1000
"""Consumers are killed often here; the messages that they held would go to the dead letters at some time."""


CONFIRMED = "SELECT confirmed_flush_lsn >= %s::pg_lsn FROM pg_replication_slots WHERE slot_name = 'relay_shop'"


class Handler:
    """What all consumers do with a message, and the order in which they first did it."""

    def __init__(self) -> None:
        self.handled: list[Delivery] = []
        self._ids: set[str | None] = set()
        self._news = asyncio.Condition()

    async def handle(self, delivery: Delivery) -> None:
        """Note it, and let others have their turn, as a handler with a database does."""
        async with self._news:
            self.handled.append(delivery)
            self._ids.add(delivery.properties.message_id)
            self._news.notify_all()
        await asyncio.sleep(0)

    async def until(self, more: int) -> None:
        """Wait until so many more have been handled."""
        target = len(self.handled) + more
        async with asyncio.timeout(WAIT_S), self._news:
            await self._news.wait_for(lambda: len(self.handled) >= target)

    async def until_ids(self, ids: set[str]) -> None:
        """Wait until all of these have been handled."""
        try:
            async with asyncio.timeout(WAIT_S), self._news:
                await self._news.wait_for(lambda: ids <= self._ids)
        except TimeoutError:
            raise AssertionError(f"{len(ids - self._ids)} messages were never handled") from None


class Worker:
    """One consumer of one partition. Killed, its connection breaks in the middle of whatever it does; it comes back."""

    def __init__(self, url: str, queue: str, handler: Handler) -> None:
        self._link = Link(url)
        self._queue = queue
        self._handler = handler

    async def run(self) -> None:
        """Consume until cancelled, like a service with a supervisor."""
        async with self._link:
            while True:
                try:
                    await self._consume(await Connection.open(self._link.url, name=self._queue))
                except BrokerAway:
                    await self._link.restore()

    async def _consume(self, connection: Connection) -> None:
        try:
            consumer = await Consumer.open(connection, self._queue, PREFETCH)
            while True:
                delivery = await consumer.next()
                await self._handler.handle(delivery)
                consumer.ack(delivery)
        finally:
            # Not in good order: pika would cancel the consumer first, and RabbitMQ give the messages that follow to the
            # other consumer before it has these back. docs/topology.md tells.
            await self._link.cut()
            await connection.close()

    async def kill(self) -> None:
        """What it has not answered comes again, to whoever is the active consumer then."""
        await self._link.cut()


@asynccontextmanager
async def workers(url: str, partitions: Iterable[int], handler: Handler) -> AsyncIterator[list[Worker]]:
    """Two for each partition: one is active, the other waits for its end."""
    running = [Worker(url, f"billing.{number}", handler) for number in partitions for _ in range(2)]
    tasks = [asyncio.create_task(worker.run()) for worker in running]
    try:
        yield running
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


class Shop:
    """The relay with the topology in its own configuration."""

    def __init__(self, directory: Path, database: Database, vhost: VirtualHost) -> None:
        self._file = directory / "relay.toml"
        self._database = database
        self._vhost = vhost
        self.topology = Topology(directory, vhost)

    def configure(self, partitions: int) -> None:
        """What an operator writes into relay.toml."""
        group = billing(partitions, DELIVERY_LIMIT)
        self.topology.write(group)
        source = f'[[source]]\nname = "shop"\ndsn = "{self._database.dsn}"\n'
        self._file.write_text(source + group, encoding="utf-8")
        self._file.chmod(0o600)

    def relay(self) -> Process:
        settings = {"RELAY_CONFIG": str(self._file), "RELAY_BROKER__URL": self._vhost.url}
        return Process(["relay", "run"], settings | {"RELAY_LOG_FORMAT": "json", "RELAY_HTTP__LISTEN": ""})

    async def resize(self, *, until: str = "") -> None:
        """Apply, again and again while partitions hold messages, as docs/topology.md has it; or until it says this."""
        for _ in range(APPLY_TRIES):
            ended = await self.topology.run("apply")
            if ended.code == 0 or (until and until in ended.err):
                return
            assert "hold messages" in ended.err or "out of use and stays" in ended.err, ended.err
        raise AssertionError(f"the partitions are never empty: {ended.err}")


@pytest.fixture
def shop(tmp_path: Path, database: Database, vhost: VirtualHost) -> Shop:
    return Shop(tmp_path, database, vhost)


def everything(database: Database) -> set[str]:
    return {message_id for message_id, _ in committed_messages(database)}


async def ready(url: str, queue: str) -> int:
    """How many messages wait in a queue."""
    connection = await Connection.open(url, name="test")
    channel = await connection.channel()
    answer = (await channel.call(channel.raw.queue_declare, queue, passive=True)).method
    await connection.close()
    return int(answer.message_count)


async def killed_at_random(running: list[Worker], handler: Handler, kills: int, dice: random.Random) -> None:
    for _ in range(kills):
        await handler.until(dice.randint(20, 60))
        await dice.choice(running).kill()


@pytest.mark.timeout(300)
async def test_nothing_is_handled_out_of_order_whoever_dies_and_however_many_there_are(
    shop: Shop, database: Database, vhost: VirtualHost
) -> None:
    dice = random.Random(SEED)
    handler = Handler()
    async with Writers(database.dsn, seed=SEED, aggregates=12, pause_s=WRITER_PAUSE_S) as writers:
        shop.configure(3)
        await shop.topology.applied()
        for partitions, following in ((3, 5), (5, 2)):
            async with workers(vhost.url, range(partitions), handler) as running:
                async with shop.relay() as relay:
                    await relay.until("streaming")
                    await killed_at_random(running, handler, kills=8, dice=dice)
                    assert await relay.end() == 0
                shop.configure(following)
                await shop.resize(until="out of use and stays")
            await shop.resize()
    # The writers never paused: what they wrote while no relay ran is published now.
    async with workers(vhost.url, range(2), handler), shop.relay():
        await handler.until_ids(everything(database))
    assert_delivered(committed_messages(database), handler.handled, writers.rolled_back)


@pytest.fixture
def own_rabbit() -> Iterator[PrivateRabbitMQ]:
    server = PrivateRabbitMQ()
    server.start()
    with server:
        yield server


@pytest.mark.timeout(300)
async def test_nor_when_the_broker_itself_starts_again_with_messages_in_the_partitions(
    tmp_path: Path, database: Database, own_rabbit: PrivateRabbitMQ
) -> None:
    """RabbitMQ with Mnesia deals the aggregates out anew then; the relay restores the old deal before it publishes.

    Were it not so, some aggregates would have their later messages in a partition that is emptied before the one that
    has the earlier ones, in whatever order that happens: what moves, moves in a circle.
    """
    handler = Handler()
    with management(own_rabbit.management_url, own_rabbit.admin.name, own_rabbit.admin.password) as api:
        vhost = VirtualHost("/", RabbitServer(own_rabbit.amqp_url(), api, {}))
        shop = Shop(tmp_path, database, vhost)
        shop.configure(4)
        await shop.topology.applied()
        async with shop.relay() as relay:
            await relay.until("streaming")
            async with Writers(database.dsn, seed=SEED, aggregates=12, pause_s=WRITER_PAUSE_S) as writers:
                # Nobody consumes yet: every aggregate has messages in its partition when the broker goes down.
                await eventually(lambda: writers.committed > 300)
                await asyncio.to_thread(own_rabbit.stop)
                await asyncio.to_thread(own_rabbit.start)
                before = writers.committed
                await eventually(lambda: writers.committed > before + 300)
            target = database.value("SELECT pg_current_wal_lsn()::text")
            await eventually(lambda: database.value(CONFIRMED, target), WAIT_S)
        for number in range(4):
            waiting = await ready(own_rabbit.amqp_url(), f"billing.{number}")
            async with workers(own_rabbit.amqp_url(), [number], handler):
                await handler.until(waiting)
    assert_delivered(committed_messages(database), handler.handled, writers.rolled_back)
