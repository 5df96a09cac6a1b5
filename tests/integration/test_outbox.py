"""A message commits with the work that it is about, or not at all."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.rows import dict_row

from relay.capture.change import Origin
from relay.capture.logical import LogicalCapture
from relay.capture.message import Kind, Message
from relay.messaging import Command, Event, NotInTransaction, Reply, Transaction, WrongDestination, outbox
from relay.wal.pgoutput import LogicalMessage, decode
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


class Log:
    """The messages that committed to the write-ahead log since the slot was made, as the relay understands them."""

    ORIGIN = Origin("1", 1, 1, 1, 0, datetime(2026, 1, 1, tzinfo=UTC), None)

    def __init__(self, database: Database) -> None:
        self._database = database
        self._slot = f"log_{database.name}"
        database.query("CREATE PUBLICATION nothing")
        database.query("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", self._slot)

    def messages(self) -> list[Message]:
        frames = self._database.query(
            "SELECT data FROM pg_logical_slot_get_binary_changes("
            "%s, NULL, NULL, 'proto_version', '1', 'publication_names', 'nothing', 'messages', 'true')",
            self._slot,
        )
        decoded = [decode(data) for (data,) in frames if isinstance(data, bytes)]
        logical = [one for one in decoded if isinstance(one, LogicalMessage)]
        captured = [LogicalCapture("logical").message(one, self.ORIGIN) for one in logical]
        return [message for message in captured if message is not None]


class TestInTheLogAlone:
    @pytest.fixture
    def log(self, database: Database) -> Log:
        return Log(database)

    async def test_a_committed_message_is_there_with_its_id_and_in_no_table(
        self, database: Database, conn: AsyncConnection, log: Log
    ) -> None:
        async with conn.transaction():
            message_id = await outbox.add(conn, OrderCreated(note="hi"), aggregate=("order", "7"), wal_only=True)

        (message,) = log.messages()
        assert message[:9] == (str(message_id), Kind.EVENT, "order", "7", "OrderCreated", None, None, None, None)
        assert (message.headers, message.payload) == (b"{}", b'{"note":"hi"}')
        assert messages(database) == []

    async def test_everything_that_a_message_carries_is_in_it(self, conn: AsyncConnection, log: Log) -> None:
        saga_id, cause = uuid4(), uuid4()
        async with conn.transaction():
            await outbox.add(
                conn,
                Pay(),
                aggregate=('odd "type"', "ünïcode \\ id"),
                to="billing",
                correlation_id=saga_id,
                reply_to="orders",
                causation_id=cause,
                operation="s/pay/action",
                headers={"traceparent": "00-1", "n": 3},
                wal_only=True,
            )

        (message,) = log.messages()
        assert message[1:10] == (
            Kind.COMMAND,
            'odd "type"',
            "ünïcode \\ id",
            "Pay",
            "billing",
            str(saga_id),
            "orders",
            str(cause),
            "s/pay/action",
        )
        assert message.headers == b'{"traceparent":"00-1","n":3}'

    async def test_the_payload_is_that_of_a_row(self, database: Database, conn: AsyncConnection, log: Log) -> None:
        note = 'ünïcode "quoted" \\ \x00 1.00'
        async with conn.transaction():
            await outbox.add(conn, OrderCreated(note=note), aggregate=("order", "7"))
            await outbox.add(conn, OrderCreated(note=note), aggregate=("order", "7"), wal_only=True)

        (message,) = log.messages()
        assert message.payload.decode() == database.value("SELECT payload::text FROM relay.outbox")

    async def test_what_is_rolled_back_never_was(self, conn: AsyncConnection, log: Log) -> None:
        async with conn.transaction(force_rollback=True):
            await outbox.add(conn, OrderCreated(note="gone"), aggregate=("order", "7"), wal_only=True)
        async with conn.transaction():
            await outbox.add(conn, OrderCreated(note="kept"), aggregate=("order", "8"), wal_only=True)
            async with conn.transaction(force_rollback=True):
                await outbox.add(conn, OrderCreated(note="gone"), aggregate=("order", "9"), wal_only=True)

        assert [message.aggregate_id for message in log.messages()] == ["8"]

    async def test_it_takes_no_right_on_any_table(self, database: Database, conn: AsyncConnection, log: Log) -> None:
        database.query("REVOKE ALL ON ALL TABLES IN SCHEMA relay FROM orders")
        database.query("REVOKE USAGE ON SCHEMA relay FROM orders")
        async with conn.transaction():
            await outbox.add(conn, OrderCreated(note="hi"), aggregate=("order", "7"), wal_only=True)

        assert len(log.messages()) == 1

    def test_a_synchronous_connection_does_as_well(self, database: Database, log: Log) -> None:
        with psycopg.connect(database.role_dsn("orders"), row_factory=dict_row) as conn:
            ids = [outbox.add(conn, OrderCreated(note="hi"), aggregate=("order", "7"), wal_only=True) for _ in range(3)]

        assert [message.id for message in log.messages()] == [str(one) for one in ids]
        assert len(set(ids)) == 3

    async def test_an_id_begins_with_the_time(self, conn: AsyncConnection) -> None:
        before = datetime.now(UTC)
        async with conn.transaction():
            message_id = await outbox.add(conn, OrderCreated(note="hi"), aggregate=("order", "7"), wal_only=True)

        made_ms = message_id.int >> 80
        assert int(before.timestamp() * 1000) <= made_ms <= datetime.now(UTC).timestamp() * 1000
        assert (message_id.version, message_id.variant) == (7, "specified in RFC 4122")

    async def test_a_handler_may_write_one_too(self, conn: AsyncConnection, log: Log) -> None:
        async with conn.transaction():
            await Transaction(conn).add(OrderCreated(note="hi"), aggregate=("order", "7"), wal_only=True)

        assert [message.type for message in log.messages()] == ["OrderCreated"]

    async def test_a_connection_that_commits_by_itself_is_refused(self, database: Database, log: Log) -> None:
        async with await AsyncConnection.connect(database.role_dsn("orders"), autocommit=True) as conn:
            with pytest.raises(NotInTransaction):
                await outbox.add(conn, OrderCreated(note="hi"), aggregate=("order", "7"), wal_only=True)

        assert log.messages() == []
