"""A consumer handles each message once."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
from psycopg import AsyncConnection

from relay.broker.properties import Delivery, Properties
from relay.messaging import Event, Outcome, Service, Transaction
from tests.support.database import Database
from tests.support.waiting import eventually

Connect = Callable[[], AbstractAsyncContextManager[AsyncConnection]]

WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


@pytest.fixture
def connect(database: Database) -> Connect:
    @asynccontextmanager
    async def connected() -> AsyncIterator[AsyncConnection]:
        async with await AsyncConnection.connect(database.role_dsn("orders")) as connection:
            yield connection

    return connected


class Paid(Event): ...


def delivery() -> Delivery:
    properties = Properties("m1", type="Paid", timestamp=int(time.time()))
    return Delivery(1, "relay.events", "order.Paid", False, properties, b"{}")


async def paid(event: Paid, tx: Transaction) -> None: ...


def service(name: str) -> Service:
    listening = Service(name)
    listening.event(Paid)(paid)
    return listening


async def test_a_message_is_new_once(connect: Connect) -> None:
    async with connect() as conn, conn.transaction():
        assert await service("orders").handle(delivery(), conn) is Outcome.HANDLED
        assert await service("orders").handle(delivery(), conn) is Outcome.SEEN_BEFORE


async def test_two_consumers_each_handle_it(connect: Connect) -> None:
    async with connect() as conn, conn.transaction():
        assert await service("orders").handle(delivery(), conn) is Outcome.HANDLED
        assert await service("customers").handle(delivery(), conn) is Outcome.HANDLED


async def test_the_sender_s_time_is_noted(connect: Connect, database: Database) -> None:
    sent = delivery()
    async with connect() as conn, conn.transaction():
        await service("orders").handle(sent, conn)

    assert database.value("SELECT extract(epoch FROM sent_at)::int FROM relay.inbox") == sent.properties.timestamp


@pytest.mark.parametrize(
    ("first_commits", "outcome"), [(True, Outcome.SEEN_BEFORE), (False, Outcome.HANDLED)], ids=["commits", "rolls back"]
)
async def test_a_copy_waits_for_the_transaction_that_handles_the_first(
    connect: Connect, database: Database, first_commits: bool, outcome: Outcome
) -> None:
    async with connect() as first, connect() as second:
        await service("orders").handle(delivery(), first)
        copy = asyncio.create_task(service("orders").handle(delivery(), second))
        await eventually(lambda: database.value(WAITING) == 1)
        assert not copy.done()

        await (first.commit() if first_commits else first.rollback())

        assert await copy is outcome
