"""Crashes in mid-stream: every committed message arrives, no rolled-back one does, in order, with single effects."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from signal import SIGKILL

import pytest

from relay.demo.servers.postgres import PrivatePostgres
from relay.demo.servers.rabbitmq import PrivateRabbitMQ
from tests.conftest import VirtualHost
from tests.support.bookkeeper import bookkeeper
from tests.support.database import Database, Databases
from tests.support.mailbox import QUEUE_IS_DURABLE_S, Mailbox, mailbox
from tests.support.process import RelayProcess
from tests.support.servers import with_roles
from tests.support.verdict import assert_delivered, assert_effects_single, committed_messages
from tests.support.waiting import eventually
from tests.support.writer import Writers

KILLS = 10
MESSAGES_BETWEEN = 150
SETTLE_S = 90.0

pytestmark = pytest.mark.timeout(300)


async def all_arrived(database: Database, box: Mailbox, writers: Writers) -> None:
    """The judgement, once the writers have stopped."""
    committed = committed_messages(database)
    assert len(committed) >= writers.committed > 0
    assert writers.rolled_back
    deliveries = await box.until_ids({message_id for message_id, _ in committed}, SETTLE_S)
    await eventually(
        lambda: database.value("SELECT count(DISTINCT message_id) FROM effect") == len(committed), SETTLE_S
    )
    assert_delivered(committed, deliveries, writers.rolled_back)
    assert_effects_single(database)


async def more(box: Mailbox, count: int) -> None:
    """Wait until so many more messages have arrived: the stream flows."""
    target = len(box.deliveries) + count
    await box.until_count(target)


async def test_the_relay_is_killed_ten_times_in_mid_stream(database: Database, vhost: VirtualHost) -> None:
    async with mailbox(vhost.url) as box, bookkeeper(database, vhost.url):
        async with Writers(database.dsn, seed=1) as writers:
            for _ in range(KILLS):
                async with RelayProcess(database.dsn, vhost.user_url("relay")) as relay:
                    await more(box, MESSAGES_BETWEEN)
                    assert await relay.end(SIGKILL) == -SIGKILL
        async with RelayProcess(database.dsn, vhost.user_url("relay")) as relay:
            await all_arrived(database, box, writers)
            assert await relay.end() == 0


@pytest.fixture
def own_rabbit() -> Iterator[PrivateRabbitMQ]:
    """A broker that the test may kill."""
    with PrivateRabbitMQ() as server:
        yield server


@pytest.mark.parametrize("blow", [PrivateRabbitMQ.restart, PrivateRabbitMQ.kill], ids=["restarted", "killed"])
async def test_rabbitmq_goes_away_in_mid_stream(
    blow: Callable[[PrivateRabbitMQ], None], own_rabbit: PrivateRabbitMQ, database: Database
) -> None:
    url = own_rabbit.amqp_url()
    async with (
        mailbox(url) as box,
        bookkeeper(database, url),
        RelayProcess(database.dsn, url) as relay,
    ):
        async with Writers(database.dsn, seed=2, pause_s=0.02) as writers:
            await asyncio.sleep(QUEUE_IS_DURABLE_S)
            await more(box, MESSAGES_BETWEEN)
            await asyncio.to_thread(blow, own_rabbit)
            await relay.until("reconnecting")
            await asyncio.to_thread(own_rabbit.start)
            await more(box, MESSAGES_BETWEEN)
        await all_arrived(database, box, writers)
        assert await relay.end() == 0


@dataclass
class OwnPostgres:
    """A PostgreSQL that the test may kill, with a database in it."""

    server: PrivatePostgres
    database: Database


@pytest.fixture
def own_postgres() -> Iterator[OwnPostgres]:
    with PrivatePostgres() as server:
        database = Databases(with_roles(server.dsn("postgres"))).create()
        yield OwnPostgres(server, database)
        database.connection.close()


@pytest.mark.parametrize("blow", [PrivatePostgres.restart, PrivatePostgres.kill], ids=["restarted", "killed"])
async def test_postgresql_goes_away_in_mid_stream(
    blow: Callable[[PrivatePostgres], None], own_postgres: OwnPostgres, vhost: VirtualHost
) -> None:
    server, database = own_postgres.server, own_postgres.database
    async with (
        mailbox(vhost.url) as box,
        bookkeeper(database, vhost.url),
        RelayProcess(database.dsn, vhost.user_url("relay")) as relay,
    ):
        async with Writers(database.dsn, seed=3) as writers:
            await more(box, MESSAGES_BETWEEN)
            await asyncio.wait_for(asyncio.to_thread(blow, server), 30)
            await relay.until("reconnecting")
            await asyncio.to_thread(server.start)
            await more(box, MESSAGES_BETWEEN)
        database.reconnect()
        await all_arrived(database, box, writers)
        assert await relay.end() == 0
