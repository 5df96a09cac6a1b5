"""A message commits with the work that it is about, or not at all."""

from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.rows import dict_row

from relay.messaging import Command, Event, NotInTransaction, Reply, WrongDestination, outbox
from tests.support.database import Database


class OrderCreated(Event):
    note: str


class Pay(Command): ...


class Paid(Reply): ...


@pytest.fixture
async def conn(database: Database) -> AsyncIterator[AsyncConnection]:
    async with await AsyncConnection.connect(database.role_dsn("orders")) as connection:
        yield connection


def messages(database: Database) -> list[tuple[object, ...]]:
    return database.query("SELECT kind, aggregate_type, aggregate_id, type FROM relay.outbox ORDER BY seq")


async def test_a_committed_message_is_there_with_its_id(database: Database, conn: AsyncConnection) -> None:
    async with conn.transaction():
        message_id = await outbox.add(conn, OrderCreated(note="hi"), aggregate=("order", "7"))

    assert isinstance(message_id, UUID)
    assert database.value("SELECT id FROM relay.outbox") == message_id
    assert messages(database) == [("event", "order", "7", "OrderCreated")]


async def test_a_rolled_back_message_never_was(database: Database, conn: AsyncConnection) -> None:
    async with conn.transaction(force_rollback=True):
        await outbox.add(conn, OrderCreated(note="hi"), aggregate=("order", "7"))

    assert messages(database) == []


async def test_a_message_of_a_rolled_back_savepoint_never_was(database: Database, conn: AsyncConnection) -> None:
    async with conn.transaction():
        await outbox.add(conn, OrderCreated(note="kept"), aggregate=("order", "7"))
        async with conn.transaction(force_rollback=True):
            await outbox.add(conn, OrderCreated(note="gone"), aggregate=("order", "8"))

    assert [row[2] for row in messages(database)] == ["7"]


def test_a_synchronous_connection_does_as_well(database: Database) -> None:
    with psycopg.connect(database.role_dsn("orders")) as conn:
        message_id = outbox.add(conn, OrderCreated(note="hi"), aggregate=("order", uuid4()))

    assert database.value("SELECT id FROM relay.outbox") == message_id


async def test_everything_that_a_message_carries_is_stored(database: Database, conn: AsyncConnection) -> None:
    saga_id, cause = uuid4(), uuid4()
    async with conn.transaction():
        await outbox.add(
            conn,
            Pay(),
            aggregate=("order", "7"),
            to="billing",
            correlation_id=saga_id,
            reply_to="orders",
            causation_id=cause,
            operation="s/pay/action",
            headers={"traceparent": "00-1", "n": 3},
        )

    columns = "kind, destination, correlation_id, reply_to, causation_id, operation, headers"
    assert database.query(f"SELECT {columns} FROM relay.outbox") == [
        ("command", "billing", str(saga_id), "orders", str(cause), "s/pay/action", {"traceparent": "00-1", "n": 3})
    ]


async def test_the_payload_is_kept_as_it_was_written(database: Database, conn: AsyncConnection) -> None:
    note = 'ünïcode "quoted" \\ \x00 NUL, which PostgreSQL keeps in json as its escape'
    async with conn.transaction():
        await outbox.add(conn, OrderCreated(note=note), aggregate=("order", "7"))

    assert database.value("SELECT payload::text FROM relay.outbox") == OrderCreated(note=note).model_dump_json()


async def test_the_caller_s_row_factory_does_not_matter(database: Database) -> None:
    async with await AsyncConnection.connect(database.role_dsn("orders"), row_factory=dict_row) as conn:
        message_id = await outbox.add(conn, OrderCreated(note="hi"), aggregate=("order", "7"))

    assert database.value("SELECT id FROM relay.outbox") == message_id


async def test_a_connection_that_commits_by_itself_is_refused(database: Database) -> None:
    async with await AsyncConnection.connect(database.role_dsn("orders"), autocommit=True) as conn:
        with pytest.raises(NotInTransaction):
            await outbox.add(conn, OrderCreated(note="hi"), aggregate=("order", "7"))

    assert messages(database) == []


def test_a_synchronous_connection_that_commits_by_itself_is_refused(database: Database) -> None:
    with psycopg.connect(database.role_dsn("orders"), autocommit=True) as conn, pytest.raises(NotInTransaction):
        outbox.add(conn, OrderCreated(note="hi"), aggregate=("order", "7"))


async def test_a_transaction_on_a_connection_in_autocommit_mode_is_fine(database: Database) -> None:
    async with (
        await AsyncConnection.connect(database.role_dsn("orders"), autocommit=True) as conn,
        conn.transaction(),
    ):
        await outbox.add(conn, OrderCreated(note="hi"), aggregate=("order", "7"))

    assert messages(database) == [("event", "order", "7", "OrderCreated")]


@pytest.mark.parametrize("message", [Pay(), Paid()], ids=["command", "reply"])
async def test_a_command_or_reply_needs_a_destination(conn: AsyncConnection, message: Command | Reply) -> None:
    with pytest.raises(WrongDestination, match="needs a destination"):
        await outbox.add(conn, message, aggregate=("order", "7"))


async def test_an_event_has_no_destination(conn: AsyncConnection) -> None:
    with pytest.raises(WrongDestination, match="has no destination"):
        await outbox.add(conn, OrderCreated(note="hi"), aggregate=("order", "7"), to="billing")
