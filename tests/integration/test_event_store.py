"""The event store: events are appended to the version that they were decided on, and never change."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import AsyncConnection, IsolationLevel
from psycopg.rows import dict_row

from relay.messaging import (
    Command,
    Event,
    NotInTransaction,
    StoredEvent,
    UnreadableEvent,
    WrongVersion,
    event_store,
)
from tests.support.database import Database
from tests.support.waiting import eventually


class Opened(Event):
    owner: str


class Deposited(Event):
    amount: str


class Closed(Event): ...


class Close(Command): ...


ACCOUNT = ("account", "7")
TYPES = (Opened, Deposited, Closed)

WAITS_FOR_A_LOCK = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
)


@pytest.fixture
async def conn(database: Database) -> AsyncIterator[AsyncConnection]:
    async with await AsyncConnection.connect(database.role_dsn("orders")) as connection:
        yield connection


def stored(database: Database) -> list[tuple[object, ...]]:
    return database.query("SELECT stream_type, stream_id, version, type FROM relay.event_store ORDER BY seq")


class TestAppending:
    async def test_events_get_the_versions_after_the_expected_one_in_their_order(
        self, database: Database, conn: AsyncConnection
    ) -> None:
        async with conn.transaction():
            assert await event_store.append(conn, ACCOUNT, 0, [Opened(owner="Ann")]) == 1
            assert await event_store.append(conn, ACCOUNT, 1, [Deposited(amount="5"), Deposited(amount="6")]) == 3
            assert await event_store.append(conn, ACCOUNT, 3, [Deposited(amount="7"), Closed()]) == 5

        types = ["Opened", "Deposited", "Deposited", "Deposited", "Closed"]
        assert stored(database) == [("account", "7", number, name) for number, name in enumerate(types, 1)]
        assert database.value("SELECT data::text FROM relay.event_store WHERE version = 2") == '{"amount":"5"}'

    async def test_streams_know_nothing_of_each_other(self, database: Database, conn: AsyncConnection) -> None:
        order_id = uuid4()
        async with conn.transaction():
            assert await event_store.append(conn, ACCOUNT, 0, [Opened(owner="Ann")]) == 1
            assert await event_store.append(conn, ("account", order_id), 0, [Opened(owner="Bob")]) == 1
            assert await event_store.append(conn, ("order", "7"), 0, [Opened(owner="Cy")]) == 1

        assert [row[:3] for row in stored(database)] == [
            ("account", "7", 1),
            ("account", str(order_id), 1),
            ("order", "7", 1),
        ]

    async def test_a_rolled_back_event_never_was(self, database: Database, conn: AsyncConnection) -> None:
        async with conn.transaction(force_rollback=True):
            await event_store.append(conn, ACCOUNT, 0, [Opened(owner="Ann")])

        assert stored(database) == []

    async def test_without_events_nothing_is_done(self, database: Database, conn: AsyncConnection) -> None:
        assert await event_store.append(conn, ACCOUNT, 3, []) == 3
        assert stored(database) == []

    def test_a_synchronous_connection_does_as_well(self, database: Database) -> None:
        with psycopg.connect(database.role_dsn("orders"), row_factory=dict_row) as conn:
            assert event_store.append(conn, ACCOUNT, 0, [Opened(owner="Ann"), Closed()]) == 2
            with pytest.raises(WrongVersion, match="account 7 is at version 2, not at 0"):
                event_store.append(conn, ACCOUNT, 0, [Opened(owner="Bob")])
            assert event_store.append(conn, ACCOUNT, 2, []) == 2
            assert [one.event for one in event_store.load(conn, ACCOUNT, TYPES)] == [Opened(owner="Ann"), Closed()]

        assert len(stored(database)) == 2

    async def test_a_connection_that_commits_by_itself_is_refused(self, database: Database) -> None:
        async with await AsyncConnection.connect(database.role_dsn("orders"), autocommit=True) as conn:
            with pytest.raises(NotInTransaction):
                await event_store.append(conn, ACCOUNT, 0, [Opened(owner="Ann")])

        assert stored(database) == []

    async def test_only_events_have_happened(self, database: Database, conn: AsyncConnection) -> None:
        with pytest.raises(TypeError, match="Close is no Event"):
            await event_store.append(conn, ACCOUNT, 0, [Close()])  # type: ignore[list-item]

    async def test_no_stream_is_at_a_version_below_zero(self, conn: AsyncConnection) -> None:
        with pytest.raises(ValueError, match="-1"):
            await event_store.append(conn, ACCOUNT, -1, [Closed()])


class TestTheWrongVersion:
    @pytest.mark.parametrize("expected", [0, 1, 3, 10], ids=["new", "earlier", "just beyond", "far beyond"])
    @pytest.mark.parametrize("count", [1, 3])
    async def test_nothing_is_appended_and_the_transaction_goes_on(
        self, database: Database, conn: AsyncConnection, expected: int, count: int
    ) -> None:
        async with conn.transaction():
            await event_store.append(conn, ACCOUNT, 0, [Opened(owner="Ann"), Closed()])
            with pytest.raises(WrongVersion) as wrong:
                await event_store.append(conn, ACCOUNT, expected, [Closed()] * count)
            await event_store.append(conn, ("account", "8"), 0, [Opened(owner="Bob")])

        assert (wrong.value.stream, wrong.value.expected, wrong.value.actual) == (ACCOUNT, expected, 2)
        assert str(wrong.value) == f"account 7 is at version 2, not at {expected}"
        assert [row[1:3] for row in stored(database)] == [("7", 1), ("7", 2), ("8", 1)]

    async def test_a_stream_that_is_not_there_is_at_version_zero(self, conn: AsyncConnection) -> None:
        with pytest.raises(WrongVersion, match="account 7 is at version 0, not at 1"):
            await event_store.append(conn, ACCOUNT, 1, [Closed()])


class Beside:
    """A connection of its own that appends in a thread, and may have to wait."""

    def __init__(self, database: Database, level: IsolationLevel | None = None) -> None:
        self.conn = psycopg.connect(database.role_dsn("orders"))
        self.conn.isolation_level = level
        self._pool = ThreadPoolExecutor(1)

    def append(self, expected: int, *events: Event) -> "Future[int]":
        return self._pool.submit(event_store.append, self.conn, ACCOUNT, expected, events)

    def close(self) -> None:
        self.conn.close()
        self._pool.shutdown()


@pytest.fixture
def beside(database: Database, request: pytest.FixtureRequest) -> Callable[..., Beside]:
    def make(level: IsolationLevel | None = None) -> Beside:
        made = Beside(database, level)
        request.addfinalizer(made.close)
        return made

    return make


class TestTwoAtOnce:
    async def waiting(self, database: Database) -> None:
        await eventually(lambda: database.value(WAITS_FOR_A_LOCK) == 1)

    @pytest.mark.parametrize("count", [1, 3])
    async def test_the_second_waits_for_the_first_and_is_refused_when_it_commits(
        self, database: Database, beside: Callable[..., Beside], count: int
    ) -> None:
        first, second = beside(), beside()
        first.append(0, Opened(owner="Ann")).result()
        refused = second.append(0, *[Opened(owner="Bob")] * count)
        await self.waiting(database)
        first.conn.commit()

        with pytest.raises(WrongVersion, match="account 7 is at version 1, not at 0"):
            await asyncio.wrap_future(refused)
        assert await asyncio.wrap_future(second.append(1, Closed())) == 2  # in the same transaction
        second.conn.commit()
        assert [row[3] for row in stored(database)] == ["Opened", "Closed"]

    async def test_the_second_appends_when_the_first_rolls_back(
        self, database: Database, beside: Callable[..., Beside]
    ) -> None:
        first, second = beside(), beside()
        first.append(0, Opened(owner="Ann"), Closed()).result()
        late = second.append(0, Opened(owner="Bob"))
        await self.waiting(database)
        first.conn.rollback()

        assert await asyncio.wrap_future(late) == 1
        second.conn.commit()
        assert database.query("SELECT version, data FROM relay.event_store") == [(1, {"owner": "Bob"})]

    async def test_under_a_snapshot_the_second_gets_a_serialization_failure(
        self, database: Database, beside: Callable[..., Beside]
    ) -> None:
        first, second = beside(), beside(IsolationLevel.REPEATABLE_READ)
        second.conn.execute("SELECT")
        first.append(0, Opened(owner="Ann")).result()
        first.conn.commit()

        with pytest.raises(psycopg.errors.SerializationFailure):
            await asyncio.wrap_future(second.append(0, Opened(owner="Bob")))

    def test_many_writers_leave_no_gap_and_lose_nothing(self, database: Database) -> None:
        writers, each = 4, 10
        start = threading.Barrier(writers)

        def write(writer: int) -> None:
            done = 0
            with psycopg.connect(database.role_dsn("orders")) as conn:
                start.wait()
                while done < each:
                    version = len(event_store.load(conn, ACCOUNT, TYPES))
                    with suppress(WrongVersion):
                        event_store.append(conn, ACCOUNT, version, [Deposited(amount=f"{writer}/{done}")])
                        done += 1
                    conn.commit()

        with ThreadPoolExecutor(writers) as pool:
            list(pool.map(write, range(writers)))

        amounts = [data["amount"] for (data,) in database.query("SELECT data FROM relay.event_store ORDER BY version")]
        versions = [version for (version,) in database.query("SELECT version FROM relay.event_store ORDER BY seq")]
        assert versions == list(range(1, writers * each + 1))
        for writer in range(writers):
            own = [amount for amount in amounts if amount.startswith(f"{writer}/")]
            assert own == [f"{writer}/{number}" for number in range(each)]


class TestLoading:
    @pytest.fixture
    async def account(self, conn: AsyncConnection) -> AsyncConnection:
        await event_store.append(conn, ACCOUNT, 0, [Opened(owner="Ann")], headers={"traceparent": "00-1", "n": 3})
        await event_store.append(conn, ACCOUNT, 1, [Deposited(amount="5.00"), Closed()])
        await event_store.append(conn, ("account", "8"), 0, [Opened(owner="Bob")])
        await conn.commit()
        return conn

    async def test_a_stream_comes_back_as_it_was_appended(self, database: Database, account: AsyncConnection) -> None:
        events = await event_store.load(account, ACCOUNT, TYPES)

        assert [one.event for one in events] == [Opened(owner="Ann"), Deposited(amount="5.00"), Closed()]
        assert [one.version for one in events] == [1, 2, 3]
        assert [one.headers for one in events] == [{"traceparent": "00-1", "n": 3}, {}, {}]
        kept = database.query("SELECT id, created_at FROM relay.event_store WHERE stream_id = '7' ORDER BY version")
        assert [(one.id, one.created_at) for one in events] == kept
        assert all(isinstance(one.id, UUID) for one in events)

    async def test_a_stream_that_is_not_there_has_no_events(self, account: AsyncConnection) -> None:
        assert await event_store.load(account, ("account", "9"), TYPES) == []

    async def test_a_long_stream_is_read_in_pages(self, account: AsyncConnection) -> None:
        pages: list[list[str]] = []
        page: list[StoredEvent[Event]] = await event_store.load(account, ACCOUNT, TYPES, limit=2)
        while page:
            pages.append([type(one.event).__name__ for one in page])
            page = await event_store.load(account, ACCOUNT, TYPES, after_version=page[-1].version, limit=2)

        assert pages == [["Opened", "Deposited"], ["Closed"]]

    async def test_the_caller_s_row_factory_does_not_matter(self, database: Database, account: AsyncConnection) -> None:
        async with await AsyncConnection.connect(database.role_dsn("orders"), row_factory=dict_row) as conn:
            assert len(await event_store.load(conn, ACCOUNT, TYPES)) == 3

    async def test_an_event_of_an_unknown_type_is_told(self, account: AsyncConnection) -> None:
        with pytest.raises(UnreadableEvent, match="version 2 of account 7 is of the type Deposited"):
            await event_store.load(account, ACCOUNT, [Opened, Closed])

    async def test_an_event_that_does_not_fit_its_type_is_told_without_its_values(
        self, database: Database, conn: AsyncConnection
    ) -> None:
        database.query(
            "INSERT INTO relay.event_store (stream_type, stream_id, version, type, data)"
            """ VALUES ('account', '7', 1, 'Opened', '{"owner": 49152}')"""
        )
        with pytest.raises(UnreadableEvent, match=r"version 1 of account 7: .*owner") as refused:
            await event_store.load(conn, ACCOUNT, TYPES)
        assert "49152" not in str(refused.value)


class TestTheTable:
    @pytest.fixture(autouse=True)
    def an_event(self, database: Database) -> None:
        database.query(
            "INSERT INTO relay.event_store (stream_type, stream_id, version, type, data)"
            " VALUES ('account', '7', 1, 'Opened', '{}')"
        )

    @pytest.mark.parametrize(
        "statement",
        [
            "UPDATE relay.event_store SET type = 'x'",
            "DELETE FROM relay.event_store",
            "TRUNCATE relay.event_store",
        ],
    )
    def test_not_even_its_owner_changes_what_happened(self, database: Database, statement: str) -> None:
        with psycopg.connect(database.dsn) as conn, pytest.raises(psycopg.errors.InsufficientPrivilege) as refused:
            conn.execute(statement)
        assert "relay.event_store is append-only" in str(refused.value)

    @pytest.mark.parametrize("right", ["UPDATE", "DELETE", "TRUNCATE"])
    def test_a_service_has_no_right_to_change_it(self, database: Database, right: str) -> None:
        assert database.value("SELECT has_table_privilege('orders', 'relay.event_store', %s)", right) is False

    def test_an_id_is_there_once(self, database: Database) -> None:
        with pytest.raises(psycopg.errors.UniqueViolation, match="event_store_id_key"):
            database.query(
                "INSERT INTO relay.event_store (id, stream_type, stream_id, version, type, data)"
                " SELECT id, 'account', '8', 1, 'Opened', '{}' FROM relay.event_store"
            )
