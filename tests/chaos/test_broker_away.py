"""RabbitMQ is away for longer than PostgreSQL has patience: the stream stays, and goes on where it stopped."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest

from relay.demo.servers.postgres import PrivatePostgres
from tests.conftest import VirtualHost
from tests.support.database import Database, Databases
from tests.support.mailbox import mailbox
from tests.support.process import RelayProcess
from tests.support.proxy import AMQP, Proxy
from tests.support.servers import with_roles
from tests.support.verdict import assert_delivered, committed_messages
from tests.support.writer import Writers

WAL_SENDER_TIMEOUT_S = 2
AWAY_S = 3.5 * WAL_SENDER_TIMEOUT_S
"""More than three times what PostgreSQL waits for a sign of life."""
LOOK_EVERY_S = 0.1
FAST_S = 5.0
"""How long a fast shutdown may take while messages wait."""
MESSAGES = 200

TIMEOUT = "terminating walsender process due to replication timeout"
EVENT = "INSERT INTO relay.outbox (aggregate_type, aggregate_id, type, payload) VALUES ('order', '7', 'Moved', %s)"


@dataclass(frozen=True)
class Source:
    """A PostgreSQL of the test's own that soon loses patience, and a database in it."""

    server: PrivatePostgres
    database: Database

    def walsenders(self) -> list[tuple[object, ...]]:
        """The replication connections, each by its process and the time it began."""
        return self.database.query("SELECT pid, backend_start FROM pg_stat_replication")


@pytest.fixture
def source() -> Iterator[Source]:
    settings = {"wal_sender_timeout": f"{WAL_SENDER_TIMEOUT_S}s"}
    with PrivatePostgres(durable=False, settings=settings) as server:
        database = Databases(with_roles(server.dsn("postgres"))).create()
        yield Source(server, database)
        database.connection.close()


async def vanishes(proxy: Proxy) -> None:
    """Connections are reset, and new ones refused."""
    await proxy.refuse()


async def falls_silent(proxy: Proxy) -> None:
    """Connections stay, and nothing comes through any more."""
    proxy.hold()


async def hangs(proxy: Proxy) -> None:
    """Connections are reset; new ones are taken, and never answered."""
    await proxy.refuse()
    proxy.hold()
    await proxy.restore()


async def returns(proxy: Proxy) -> None:
    """Everything is as it was."""
    proxy.release()
    if not proxy.listens:
        await proxy.restore()


@pytest.mark.parametrize("goes_away", [vanishes, falls_silent, hangs])
async def test_the_replication_connection_outlives_an_absent_broker(
    goes_away: Callable[[Proxy], Awaitable[None]], source: Source, vhost: VirtualHost
) -> None:
    database = source.database
    url = vhost.user_url("relay")
    async with (
        mailbox(vhost.url) as box,
        Proxy(urlsplit(url).port or 5672, AMQP) as proxy,
        RelayProcess(database.dsn, proxy.url_of(url)) as relay,
    ):
        await relay.until("streaming")
        async with Writers(database.dsn, seed=4, pause_s=0.02) as writers:
            await box.until_count(MESSAGES)
            before = source.walsenders()
            await goes_away(proxy)
            seen = [before]
            until = time.monotonic() + AWAY_S
            while time.monotonic() < until:
                seen.append(await asyncio.to_thread(source.walsenders))
                await asyncio.sleep(LOOK_EVERY_S)  # the passing of time is what is tested
            arrived = len(box.deliveries)
            await returns(proxy)
            await box.until_count(arrived + MESSAGES)
        committed = committed_messages(database)
        deliveries = await box.until_ids({message_id for message_id, _ in committed})
        seen.append(source.walsenders())
        assert await relay.end() == 0
    assert len(before) == 1
    assert all(now == before for now in seen), "the replication connection was made anew"
    assert TIMEOUT not in source.server.log.read_text()
    assert_delivered(committed, deliveries, writers.rolled_back)


@pytest.mark.parametrize("goes_away", [vanishes, falls_silent])
async def test_a_fast_shutdown_does_not_wait_for_an_absent_broker(
    goes_away: Callable[[Proxy], Awaitable[None]], source: Source, vhost: VirtualHost
) -> None:
    database = source.database
    url = vhost.user_url("relay")
    async with (
        mailbox(vhost.url) as box,
        Proxy(urlsplit(url).port or 5672, AMQP) as proxy,
        RelayProcess(database.dsn, proxy.url_of(url)) as relay,
    ):
        await relay.until("streaming")
        database.query(EVENT, "0")
        await box.until_count(1)
        await goes_away(proxy)
        for number in range(1, MESSAGES):
            database.query(EVENT, json.dumps(number))
        database.connection.close()

        began = time.monotonic()
        await asyncio.to_thread(source.server.stop, "fast")
        took_s = time.monotonic() - began
        assert source.server.process.returncode == 0, "it was not shut down in good order"
        assert took_s < FAST_S

        await relay.until("reconnecting")
        await asyncio.to_thread(source.server.start)
        await returns(proxy)
        deliveries = await box.until(lambda so_far: json.loads(so_far[-1].body) == MESSAGES - 1)
        assert await relay.end() == 0
    first_seen = list(dict.fromkeys(json.loads(delivery.body) for delivery in deliveries))
    assert first_seen == list(range(MESSAGES))
