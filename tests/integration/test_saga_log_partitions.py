"""The saga log over time: a partition for each month to come, guarded as the log itself is, and never dropped."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import LiteralString
from uuid import uuid4

import psycopg
import pytest
from psycopg import AsyncConnection, sql

from relay import schema
from relay.daemon.partitions import MONTHS_AHEAD
from relay.schema import migrate, sql_folder
from relay.tasks import end
from tests.support.database import Database
from tests.support.partitions import (
    actions,
    ask,
    attachments_proven,
    caretaker,
    given_patience,
    waits_for_a_lock,
)
from tests.support.partitions import attached as partitions_of
from tests.support.waiting import eventually

DEFAULT = "relay.saga_log_default"
CREATE: LiteralString = "SELECT relay.create_partition('saga_log', %s)"
INSERT: LiteralString = (
    "INSERT INTO relay.saga_log (saga_id, ordinal, event, at) VALUES (%s, 1, 'SagaStarted', coalesce(%s, now()))"
    " RETURNING tableoid::regclass::text"
)
RIGHTS = (
    "SELECT given.grantee::regrole::text, string_agg(given.privilege_type, ',' ORDER BY given.privilege_type)"
    " FROM pg_class AS c, aclexplode(c.relacl) AS given"
    " WHERE c.oid = %s::regclass AND given.grantee <> c.relowner GROUP BY 1"
)
"""Who has which rights on a table besides its owner; PUBLIC is called `-`."""

CHANGES: tuple[LiteralString, ...] = ("UPDATE {} SET reason = 'x'", "DELETE FROM {}", "TRUNCATE {}")

LOCK_TIMEOUT_MS = 50
"""How long the relay waits for a lock, and a writer behind it: sql/relay/0005_outbox_partitions.sql."""

MARGIN_MS = 400
"""What a busy machine adds to that, and PostgreSQL to make the partition once it has the lock."""


@pytest.fixture(autouse=True)
def _hear_the_source(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "relay.source")


def month(number: int) -> date:
    """The first day of the month so many from now."""
    now = datetime.now(UTC)
    months = now.year * 12 + now.month - 1 + number
    return date(months // 12, months % 12 + 1, 1)


def name(number: int) -> str:
    return f"relay.saga_log_p{month(number):%Y%m}"


def attached(database: Database) -> list[str]:
    return partitions_of(database, "saga_log")


def ahead() -> list[str]:
    """Next month's is not made any more in the last hour of a month."""
    begins = datetime.combine(month(1), datetime.min.time(), UTC)
    first = 1 if begins - datetime.now(UTC) > timedelta(hours=1) else 2
    return [name(number) for number in range(first, MONTHS_AHEAD + 1)]


def insert(database: Database, number: int = 0) -> str:
    """Commit an event of that month, of now for this one. The partition that it landed in."""
    at = datetime.combine(month(number), datetime.min.time(), UTC) if number else None
    return str(database.value(INSERT, uuid4(), at))


@asynccontextmanager
async def busy_writer(database: Database) -> AsyncIterator[list[float]]:
    """A service that commits event after event. The list has the milliseconds that each took."""
    took: list[float] = []
    enough = asyncio.Event()

    async def write() -> None:
        async with await AsyncConnection.connect(database.role_dsn("orders"), autocommit=True) as connection:
            while not enough.is_set():
                began = time.monotonic()
                await connection.execute(INSERT, (uuid4(), None))
                took.append((time.monotonic() - began) * 1000)

    writing = asyncio.create_task(write())
    try:
        yield took
        enough.set()
        await writing
    finally:
        await end(writing)


class TestAhead:
    async def test_the_months_to_come_have_a_partition_each(
        self, database: Database, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert await caretaker(database.dsn).attend()
        assert await caretaker(database.dsn).attend()

        assert attached(database) == ahead()
        landed = [insert(database, number) for number in (0, 2, MONTHS_AHEAD, MONTHS_AHEAD + 1)]
        assert landed == [DEFAULT, name(2), name(MONTHS_AHEAD), DEFAULT]
        assert actions(caplog) == ["partitions_created"]
        assert f"saga_log_p{month(2):%Y%m}" in caplog.text

    async def test_a_month_of_which_the_default_partition_has_events_stays_there_and_none_is_lost(
        self, database: Database
    ) -> None:
        """The relay was away for longer than its partitions reach."""
        saga = uuid4()
        for ordinal, number in enumerate((-4, -1, 0, 2), start=1):
            at = datetime.combine(month(number), datetime.min.time(), UTC)
            database.query(
                "INSERT INTO relay.saga_log (saga_id, ordinal, event, at) VALUES (%s, %s, 'StepStarted', %s)",
                *(saga, ordinal, at),
            )

        assert await caretaker(database.dsn).attend()

        assert attached(database) == [partition for partition in ahead() if partition != name(2)]
        assert insert(database, 2) == DEFAULT
        query = "SELECT ordinal FROM relay.saga_log WHERE saga_id = %s ORDER BY ordinal"
        assert database.query(query, saga) == [(1,), (2,), (3,), (4,)]

    async def test_an_event_that_commits_while_the_lock_is_waited_for_keeps_its_month_in_the_default_partition(
        self, database: Database
    ) -> None:
        given_patience(database, "create_partition")
        with psycopg.connect(database.role_dsn("orders")) as open_transaction:
            open_transaction.execute(INSERT, (uuid4(), datetime.combine(month(2), datetime.min.time(), UTC)))
            making = asyncio.create_task(asyncio.to_thread(ask, database.dsn, CREATE, month(2)))
            await waits_for_a_lock(database)
            open_transaction.commit()

        assert await making is False
        assert attached(database) == []
        assert database.value("SELECT to_regclass(%s)", name(2)) is None

    def test_only_a_month_to_come_is_made_from_its_first_day_on(self, database: Database) -> None:
        days = (month(0), month(-1), month(2) + timedelta(days=1))

        assert [ask(database.dsn, CREATE, day) for day in days] == [False] * 3
        assert ask(database.dsn, "SELECT relay.create_partition('parked', %s)", month(2)) is False
        assert attached(database) == []

    async def test_the_default_partition_is_not_read_to_attach_another_one(self, database: Database) -> None:
        insert(database)
        assert attachments_proven(database.dsn, CREATE, month(2)) == ["saga_log_default"]
        assert [insert(database, number) for number in (0, -1, -400, 400)] == [DEFAULT] * 4

    async def test_a_year_of_events_that_is_over_stays(self, database: Database) -> None:
        create = sql.SQL("CREATE TABLE {} PARTITION OF relay.saga_log FOR VALUES FROM ({}) TO ({})")
        for number in range(-12, 0):
            bounds = (f"{month(number)} 00:00+00", f"{month(number + 1)} 00:00+00")
            with psycopg.connect(database.dsn) as connection:
                connection.execute(create.format(sql.Identifier(*name(number).split(".")), *map(sql.Literal, bounds)))
            assert insert(database, number) == name(number)

        assert await caretaker(database.dsn, retention=timedelta(seconds=1)).attend()

        assert attached(database) == [*(name(number) for number in range(-12, 0)), *ahead()]
        assert database.value("SELECT count(*) FROM relay.saga_log") == 12


class TestAppendOnly:
    @pytest.mark.parametrize("change", CHANGES)
    async def test_no_event_of_a_partition_is_changed_or_removed_even_by_its_owner(
        self, database: Database, change: LiteralString
    ) -> None:
        assert await caretaker(database.dsn).attend()
        insert(database, 2)

        for table in ("relay.saga_log", name(2)):
            with (
                psycopg.connect(database.dsn) as connection,
                pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"),
            ):
                connection.execute(sql.SQL(change).format(sql.Identifier(*table.split("."))))
        assert database.value("SELECT count(*) FROM relay.saga_log") == 1

    async def test_a_service_goes_through_the_log_itself_whatever_the_default_privileges_say(
        self, database: Database
    ) -> None:
        everything = "ALTER DEFAULT PRIVILEGES FOR ROLE relay IN SCHEMA relay GRANT ALL ON TABLES TO orders, PUBLIC"
        database.query(everything)
        assert await caretaker(database.dsn).attend()

        with psycopg.connect(database.role_dsn("orders"), autocommit=True) as connection:
            at = datetime.combine(month(2), datetime.min.time(), UTC)
            assert connection.execute(INSERT, (uuid4(), at)).fetchall() == [(name(2),)]
            assert connection.execute("SELECT count(*) FROM relay.saga_log").fetchall() == [(1,)]
        assert database.query(RIGHTS, name(2)) == [("orders", "INSERT,SELECT")]
        assert ("orders", "INSERT,SELECT") in database.query(RIGHTS, "relay.saga_log")

    async def test_without_default_privileges_a_partition_is_the_owner_s_alone(self, database: Database) -> None:
        assert await caretaker(database.dsn).attend()

        query = sql.SQL("SELECT FROM {}").format(sql.Identifier(*name(2).split(".")))
        with (
            psycopg.connect(database.role_dsn("orders")) as connection,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            connection.execute(query)

    async def test_a_partition_checks_what_the_log_checks(self, database: Database) -> None:
        assert await caretaker(database.dsn).attend()

        at = datetime.combine(month(2), datetime.min.time(), UTC)
        with pytest.raises(psycopg.errors.CheckViolation, match="saga_log_event_check"):
            database.query(INSERT.replace("SagaStarted", "SagaForgotten"), uuid4(), at)
        indexes = "SELECT count(*) FROM pg_index WHERE indrelid = %s::regclass"
        assert database.value(indexes, name(2)) == database.value(indexes, "relay.saga_log")


class TestWriters:
    async def test_they_never_wait_for_longer_than_the_lock_timeout(self, database: Database) -> None:
        """While an open transaction is in the way, and while the partitions are made after all."""
        keeper = caretaker(database.dsn)
        async with busy_writer(database) as took:
            await eventually(lambda: len(took) > 20)
            with psycopg.connect(database.role_dsn("orders")) as open_transaction:
                open_transaction.execute(INSERT, (uuid4(), None))
                for _ in range(5):
                    so_far = len(took)
                    assert not await keeper.attend()
                    await eventually(lambda written=so_far: len(took) > written)  # type: ignore[misc]
                assert attached(database) == []
            async with asyncio.timeout(30):
                while not await keeper.attend():
                    pass
            so_far = len(took)
            await eventually(lambda: len(took) > so_far + 20)

        assert attached(database) == ahead()
        assert max(took) < LOCK_TIMEOUT_MS + MARGIN_MS

    async def test_what_is_in_the_way_of_the_log_is_not_in_the_way_of_the_outbox(self, database: Database) -> None:
        with psycopg.connect(database.role_dsn("orders")) as open_transaction:
            open_transaction.execute(INSERT, (uuid4(), None))
            assert not await caretaker(database.dsn).attend()

        assert attached(database) == []
        assert partitions_of(database, "outbox") != []

    async def test_what_is_in_the_way_of_the_outbox_is_not_in_the_way_of_the_log(self, database: Database) -> None:
        message = (
            "INSERT INTO relay.outbox (aggregate_type, aggregate_id, type, payload) VALUES ('order', '7', 'A', '1')"
        )
        with psycopg.connect(database.role_dsn("orders")) as open_transaction:
            open_transaction.execute(message)
            assert not await caretaker(database.dsn).attend()

        assert partitions_of(database, "outbox") == []
        assert attached(database) == ahead()

    async def test_two_relays_at_once_do_not_get_into_each_other_s_way(
        self, database: Database, caplog: pytest.LogCaptureFixture
    ) -> None:
        relays = [caretaker(database.dsn), caretaker(database.dsn)]

        async with asyncio.timeout(30):
            while not all(await asyncio.gather(*(relay.attend() for relay in relays))):
                pass

        assert attached(database) == ahead()
        assert set(actions(caplog)) == {"partitions_created"}


class TestMigration:
    async def test_events_stay_and_whoever_looked_after_the_outbox_looks_after_the_log_too(
        self, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        database.query("DROP SCHEMA relay CASCADE")
        for path in sql_folder().glob("*.sql"):
            if path.name < "0011":
                shutil.copy(path, tmp_path)
        with monkeypatch.context() as before:
            before.setattr(schema, "sql_folder", lambda: tmp_path)
            migrate(database.dsn)
        for number in (-3, 0):
            insert(database, number)
        database.query("SELECT relay.grant_outbox_partitions('customers')")
        database.query("GRANT SELECT, INSERT ON relay.saga_log TO orders")
        database.query("GRANT ALL ON relay.saga_log_default TO orders, PUBLIC")

        assert migrate(database.dsn)[0] == "relay/0011_saga_log_partitions.sql"

        assert await caretaker(database.role_dsn("customers")).attend()
        assert attached(database) == ahead()
        assert partitions_of(database, "outbox") != []
        assert database.value("SELECT count(*) FROM relay.saga_log_default") == 2
        assert database.query(RIGHTS, DEFAULT) == [("orders", "INSERT,SELECT")]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            ask(database.role_dsn("customers"), "SELECT FROM relay.saga_log")
