"""A consumer handles each message once."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
from psycopg import AsyncConnection

from relay.broker.properties import Delivery, Properties
from relay.messaging import Incoming, inbox
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


def message(message_id: str) -> Incoming:
    properties = Properties(message_id, type="Paid", timestamp=1_700_000_000)
    return Incoming.of(Delivery(1, "relay.replies", "orders", False, properties, b"{}"))


async def test_a_message_is_new_once(connect: Connect) -> None:
    async with connect() as conn:
        assert await inbox.add(conn, "orders", message("m1"))
        assert not await inbox.add(conn, "orders", message("m1"))


async def test_two_consumers_each_handle_it(connect: Connect) -> None:
    async with connect() as conn:
        assert await inbox.add(conn, "orders", message("m1"))
        assert await inbox.add(conn, "customers", message("m1"))


async def test_the_sender_s_time_is_noted(connect: Connect, database: Database) -> None:
    async with connect() as conn:
        await inbox.add(conn, "orders", message("m1"))

    assert database.value("SELECT extract(epoch FROM sent_at)::int FROM relay.inbox") == 1_700_000_000


@pytest.mark.parametrize(("first_commits", "copy_is_new"), [(True, False), (False, True)])
async def test_a_copy_waits_for_the_transaction_that_handles_the_first(
    connect: Connect, database: Database, first_commits: bool, copy_is_new: bool
) -> None:
    async with connect() as first, connect() as second:
        await inbox.add(first, "orders", message("m1"))
        copy = asyncio.create_task(inbox.add(second, "orders", message("m1")))
        await eventually(lambda: database.value(WAITING) == 1)
        assert not copy.done()

        await (first.commit() if first_commits else first.rollback())

        assert await copy is copy_is_new
