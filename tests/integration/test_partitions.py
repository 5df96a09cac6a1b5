"""The outbox over time: partitions are made ahead, and dropped when they are old and surely published."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from typing import LiteralString

import psycopg
import pytest
from psycopg import AsyncConnection, sql
from psycopg.conninfo import make_conninfo

from relay.daemon import partitions
from relay.daemon.partitions import DAYS_AHEAD
from relay.tasks import end
from relay.wal.lsn import NOWHERE, Lsn, parse_lsn
from tests.conftest import VirtualHost
from tests.support.database import Database
from tests.support.mailbox import mailbox
from tests.support.partitions import (
    EVERYTHING,
    Settled,
    actions,
    ask,
    attachments_proven,
    caretaker,
    given_patience,
    waits_for_a_lock,
)
from tests.support.partitions import attached as partitions_of
from tests.support.process import Process
from tests.support.waiting import eventually

LONG_AGO = 30

INSERT = (
    "INSERT INTO relay.outbox (aggregate_type, aggregate_id, type, payload, created_at)"
    " VALUES ('order', '7', 'OrderPaid', '{}', now() + make_interval(days => %s))"
    " RETURNING tableoid::regclass::text, id::text"
)
CREATE: LiteralString = "SELECT relay.create_outbox_partition(%s)"
DROP = "SELECT relay.drop_outbox_partition(%s, '7 days', %s::xid8, %s::pg_lsn)"
PROOF = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text, pg_current_wal_insert_lsn()::text"


@pytest.fixture(autouse=True)
def _hear_the_source(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "relay.source")


def day(days_from_now: int) -> date:
    return datetime.now(UTC).date() + timedelta(days=days_from_now)


def name(days_from_now: int) -> str:
    return f"relay.outbox_p{day(days_from_now):%Y%m%d}"


def attached(database: Database) -> list[str]:
    """The partitions besides the default one, in the order of their names."""
    return partitions_of(database, "outbox")


def first() -> int:
    """How many days from now the first partition is: tomorrow's is not made any more in the last hour of a day."""
    return (datetime.now(UTC) + timedelta(hours=1)).date().toordinal() - datetime.now(UTC).date().toordinal() + 1


def ahead() -> list[str]:
    return [name(number) for number in range(first(), DAYS_AHEAD + 1)]


def insert(database: Database, days_from_now: int = 0) -> str:
    """Commit a message of that day. The partition that it landed in."""
    ((partition, _),) = database.query(INSERT, days_from_now)
    return str(partition)


def given_a_partition(database: Database, days_from_now: int = -LONG_AGO, called: str | None = None) -> str:
    """One that a relay made before that day."""
    partition = called or name(days_from_now)
    bounds = sql.SQL("FOR VALUES FROM ({}) TO ({})").format(
        f"{day(days_from_now)} 00:00+00", f"{day(days_from_now + 1)} 00:00+00"
    )
    create = sql.SQL("CREATE TABLE {} PARTITION OF relay.outbox {}")
    with psycopg.connect(database.dsn) as connection:
        connection.execute(create.format(sql.Identifier(*partition.split(".")), bounds))
    return partition


def insert_into_a_partition_of(database: Database, days_from_now: int) -> bool:
    """A partition of that day, and a committed message in it."""
    return given_a_partition(database, days_from_now) == insert(database, days_from_now)


def position(database: Database) -> Lsn:
    """Behind all that is in the WAL so far."""
    return parse_lsn(str(database.value("SELECT pg_current_wal_insert_lsn()")))


def advance(database: Database, slot: str) -> None:
    """It has confirmed all that was committed so far; one more commit sees to it that all of that is on disk."""
    insert(database)
    database.query("SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())", slot)


@asynccontextmanager
async def busy_writer(database: Database) -> AsyncIterator[list[str]]:
    """A service that commits message after message, and fails when it has to wait for a lock for half a second.

    The list has the partition that each landed in.
    """
    landed: list[str] = []
    enough = asyncio.Event()

    async def write() -> None:
        dsn = make_conninfo(database.role_dsn("orders"), options="-c lock_timeout=500")
        async with await AsyncConnection.connect(dsn, autocommit=True) as connection:
            while not enough.is_set():
                row = await (await connection.execute(INSERT, (0,))).fetchone()
                assert row is not None
                landed.append(row[0])

    writing = asyncio.create_task(write())
    try:
        yield landed
        enough.set()
        await writing
    finally:
        await end(writing)


class TestAhead:
    async def test_the_days_to_come_have_a_partition_each(
        self, database: Database, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert await caretaker(database.dsn).attend()

        assert attached(database) == ahead()
        assert [insert(database, number) for number in (0, 2, DAYS_AHEAD)] == [
            "relay.outbox_default",
            name(2),
            name(DAYS_AHEAD),
        ]
        assert actions(caplog) == ["partitions_created"]

    async def test_what_is_there_already_is_neither_made_again_nor_told_again(
        self, database: Database, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert await caretaker(database.dsn).attend()
        assert await caretaker(database.dsn).attend()

        assert attached(database) == ahead()
        assert actions(caplog) == ["partitions_created"]

    async def test_a_partition_is_like_the_outbox_itself(self, database: Database) -> None:
        insert(database)
        assert await caretaker(database.dsn).attend()
        insert(database, 2)

        assert database.query("SELECT seq FROM relay.outbox ORDER BY seq") == [(1,), (2,)]
        indexes = "SELECT count(*) FROM pg_index WHERE indrelid = %s::regclass"
        assert database.value(indexes, name(2)) == database.value(indexes, "relay.outbox") == 2
        with pytest.raises(psycopg.errors.CheckViolation, match="outbox_destination_check"):
            database.query(INSERT.replace("(aggregate", "(kind, aggregate").replace("('order", "('command', 'order"), 2)

    async def test_a_service_reads_and_writes_through_the_outbox_as_before(self, database: Database) -> None:
        assert await caretaker(database.dsn).attend()

        with psycopg.connect(database.role_dsn("orders")) as connection:
            assert connection.execute(INSERT, (2,)).fetchall()[0][0] == name(2)
            assert connection.execute("SELECT count(*) FROM relay.outbox").fetchall() == [(1,)]

    async def test_a_day_of_which_the_default_partition_has_rows_stays_there(self, database: Database) -> None:
        insert(database, 2)

        assert await caretaker(database.dsn).attend()

        assert attached(database) == [partition for partition in ahead() if partition != name(2)]
        assert insert(database, 2) == "relay.outbox_default"

    async def test_a_row_that_commits_while_the_lock_is_waited_for_keeps_its_day_in_the_default_partition(
        self, database: Database
    ) -> None:
        given_patience(database, "create_partition")
        with psycopg.connect(database.role_dsn("orders")) as open_transaction:
            open_transaction.execute(INSERT, (2,))
            making = asyncio.create_task(asyncio.to_thread(ask, database.dsn, CREATE, day(2)))
            await waits_for_a_lock(database)
            open_transaction.commit()

        assert await making is False
        assert attached(database) == []
        assert database.value("SELECT to_regclass(%s)", name(2)) is None

    def test_a_day_that_has_begun_is_never_made(self, database: Database) -> None:
        """A writer that is about to put a row of it into the default partition would be refused."""
        assert [ask(database.dsn, CREATE, day(number)) for number in (0, -1)] == [False, False]
        assert attached(database) == []

    async def test_an_open_transaction_that_wrote_to_a_partition_is_not_in_the_way(self, database: Database) -> None:
        given_a_partition(database, 0)
        with psycopg.connect(database.role_dsn("orders")) as open_transaction:
            assert open_transaction.execute(INSERT, (0,)).fetchall()[0][0] == name(0)

            assert await caretaker(database.dsn).attend()

        assert attached(database) == [name(0), *ahead()]

    async def test_rows_of_a_new_partition_come_through_under_the_name_of_the_outbox(self, database: Database) -> None:
        database.query(
            "CREATE PUBLICATION relay_shop FOR TABLE relay.outbox"
            " WITH (publish = 'insert', publish_via_partition_root = true)"
        )
        slot = f"{database.name}_shop"
        database.query("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", slot)
        insert(database)
        assert await caretaker(database.dsn).attend()
        insert(database, 2)

        query = (
            "SELECT data FROM pg_logical_slot_peek_binary_changes"
            "(%s, NULL, NULL, 'proto_version', '1', 'publication_names', 'relay_shop')"
        )
        changes = [bytes(row[0]) for row in database.query(query, slot)]  # type: ignore[call-overload]
        root = database.value("SELECT 'relay.outbox'::regclass::oid::int")
        inserts = [int.from_bytes(change[1:5], "big") for change in changes if change.startswith(b"I")]
        assert inserts == [root, root]

    async def test_the_default_partition_is_not_read_to_attach_another_one(self, database: Database) -> None:
        """It may be large, and its writers would wait. PostgreSQL says that it has a proof instead."""
        insert(database)
        assert attachments_proven(database.dsn, CREATE, day(2)) == ["outbox_default"]

    async def test_the_default_partition_takes_every_row_afterwards(self, database: Database) -> None:
        assert await caretaker(database.dsn).attend()

        for days in (0, -1, -400, DAYS_AHEAD + 1, 4000):
            assert insert(database, days) == "relay.outbox_default"

    async def test_writers_of_the_default_partition_go_on_meanwhile(self, database: Database) -> None:
        async with busy_writer(database) as landed:
            await eventually(lambda: len(landed) > 20)
            keeper = caretaker(database.dsn)
            async with asyncio.timeout(30):
                while not await keeper.attend():
                    pass
            so_far = len(landed)
            await eventually(lambda: len(landed) > so_far + 20)

        assert attached(database) == ahead()
        assert set(landed) == {"relay.outbox_default"}

    async def test_a_name_that_is_taken_is_refused_once_and_the_other_days_are_made(
        self, database: Database, caplog: pytest.LogCaptureFixture
    ) -> None:
        database.query(f"CREATE TABLE {name(2)} (mine text)")

        keeper = caretaker(database.dsn)
        assert await keeper.attend()
        assert await keeper.attend()

        assert attached(database) == [partition for partition in ahead() if partition != name(2)]
        assert actions(caplog) == ["partitions_refused", "partitions_created"]

    async def test_killed_in_the_middle_it_leaves_nothing_behind(self, database: Database) -> None:
        given_patience(database, "create_partition")
        with psycopg.connect(database.role_dsn("orders")) as open_transaction:
            open_transaction.execute(INSERT, (0,))
            attending = asyncio.create_task(caretaker(database.dsn).attend())
            await waits_for_a_lock(database)
            kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'saga-relay test'"
            database.query(f"{kill} AND datname = %s", database.name)
            assert not await attending

        assert database.value("SELECT to_regclass(%s)", ahead()[0]) is None
        assert insert(database, first()) == "relay.outbox_default"
        assert await caretaker(database.dsn).attend()
        assert attached(database) == ahead()[1:]

    async def test_two_relays_at_once_do_not_get_into_each_other_s_way(
        self, database: Database, caplog: pytest.LogCaptureFixture
    ) -> None:
        given_a_partition(database)
        relays = [caretaker(database.dsn), caretaker(database.dsn)]

        async with asyncio.timeout(30):
            while not all(await asyncio.gather(*(relay.attend() for relay in relays))):
                pass

        assert attached(database) == ahead()
        assert set(actions(caplog)) == {"partitions_created", "partition_dropped"}
        assert actions(caplog).count("partition_dropped") == 1

    async def test_it_waits_for_its_turn(self, database: Database) -> None:
        database.query("BEGIN; SELECT pg_advisory_xact_lock(hashtextextended('relay.outbox', 0))")

        assert not await caretaker(database.dsn).attend()
        assert attached(database) == []

        database.query("COMMIT")
        assert await caretaker(database.dsn).attend()


class TestPastTheRetention:
    async def test_an_old_partition_is_dropped_and_what_is_younger_stays(
        self, database: Database, caplog: pytest.LogCaptureFixture
    ) -> None:
        for days in (-9, -8, -7, -1):
            assert insert_into_a_partition_of(database, days)

        assert await caretaker(database.dsn).attend()

        assert attached(database) == [name(-7), name(-1), *ahead()]
        assert actions(caplog).count("partition_dropped") == 2

    async def test_the_retention_is_what_was_set(self, database: Database) -> None:
        for days in (-9, -2, -1):
            assert insert_into_a_partition_of(database, days)

        assert await caretaker(database.dsn, retention=timedelta(days=1)).attend()

        assert attached(database) == [name(-1), *ahead()]

    async def test_old_rows_of_the_default_partition_are_deleted_in_batches(
        self, database: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(partitions, "PRUNE_ROWS", 2)
        for days in (0, -6, -8, -9, -10, -11, -12):
            insert(database, days)

        assert await caretaker(database.dsn).attend()

        assert database.value("SELECT count(*) FROM relay.outbox") == 2
        assert "default_pruned" in actions(caplog)

    async def test_nothing_goes_before_what_was_committed_so_far_is_settled(self, database: Database) -> None:
        insert(database, -LONG_AGO)
        insert_into_a_partition_of(database, -LONG_AGO + 1)
        before = position(database)
        settled = Settled(NOWHERE)
        keeper = caretaker(database.dsn, settled)

        assert not await keeper.attend()
        settled.lsn = before
        assert not await keeper.attend()
        assert database.value("SELECT count(*) FROM relay.outbox") == 2

        settled.lsn = position(database)
        assert await keeper.attend()
        assert database.value("SELECT count(*) FROM relay.outbox") == 0

    async def test_a_row_that_came_after_the_proof_keeps_its_partition_until_it_is_settled_too(
        self, database: Database, caplog: pytest.LogCaptureFixture
    ) -> None:
        insert_into_a_partition_of(database, -LONG_AGO)
        insert(database, -LONG_AGO - 1)
        settled = Settled(NOWHERE)
        keeper = caretaker(database.dsn, settled)
        assert not await keeper.attend()  # has its proof now
        insert(database, -LONG_AGO)
        insert(database, -LONG_AGO - 1)

        settled.lsn = EVERYTHING
        assert await keeper.attend()
        assert database.query("SELECT tableoid::regclass::text FROM relay.outbox ORDER BY seq") == [
            (name(-LONG_AGO),),
            (name(-LONG_AGO),),
            ("relay.outbox_default",),
        ]
        assert actions(caplog).count("partition_kept") == 1

        assert await keeper.attend()
        assert database.value("SELECT count(*) FROM relay.outbox") == 0

    async def test_a_row_that_is_not_committed_yet_keeps_its_partition(self, database: Database) -> None:
        insert_into_a_partition_of(database, -LONG_AGO)
        keeper = caretaker(database.dsn)
        with psycopg.connect(database.role_dsn("orders")) as open_transaction:
            open_transaction.execute(INSERT, (-LONG_AGO,))

            assert not await keeper.attend()
            assert name(-LONG_AGO) in attached(database)

            open_transaction.commit()
            assert await keeper.attend()
            assert name(-LONG_AGO) in attached(database)

    async def test_a_row_that_commits_while_the_lock_is_waited_for_keeps_its_partition(
        self, database: Database
    ) -> None:
        insert_into_a_partition_of(database, -LONG_AGO)
        given_patience(database, "drop_outbox_partition")
        (proof,) = database.query(PROOF)
        with psycopg.connect(database.role_dsn("orders")) as open_transaction:
            open_transaction.execute(INSERT, (-LONG_AGO,))
            dropping = asyncio.create_task(asyncio.to_thread(ask, database.dsn, DROP, day(-LONG_AGO), *proof))
            await waits_for_a_lock(database)
            open_transaction.commit()

        assert await dropping is False
        assert database.value("SELECT count(*) FROM relay.outbox") == 2

    async def test_no_writer_waits_while_an_open_transaction_is_in_the_way_and_then_it_is_done(
        self, database: Database
    ) -> None:
        insert_into_a_partition_of(database, -LONG_AGO)
        keeper = caretaker(database.dsn)
        async with busy_writer(database) as landed:
            with psycopg.connect(database.role_dsn("orders")) as open_transaction:
                open_transaction.execute(INSERT, (0,))
                for _ in range(5):
                    so_far = len(landed)
                    assert not await keeper.attend()
                    await eventually(lambda written=so_far: len(landed) > written)  # type: ignore[misc]
                assert attached(database) == [name(-LONG_AGO)]
            async with asyncio.timeout(30):
                while not await keeper.attend():
                    pass

        assert attached(database) == ahead()

    async def test_a_reader_in_the_way_only_delays_it(self, database: Database) -> None:
        insert_into_a_partition_of(database, -LONG_AGO)
        with psycopg.connect(database.dsn) as reader:
            reader.execute("SELECT FROM relay.outbox")
            assert not await caretaker(database.dsn).attend()
            assert insert(database) == "relay.outbox_default"

        assert await caretaker(database.dsn).attend()
        assert attached(database) == ahead()

    async def test_a_partition_that_somebody_else_made_is_left_alone(self, database: Database) -> None:
        archive = given_a_partition(database, called="relay.outbox_archive")
        insert(database, -LONG_AGO)

        assert await caretaker(database.dsn).attend()

        assert attached(database) == [archive, *ahead()]

    async def test_it_looks_at_what_is_there_now_whatever_the_role_s_isolation_level(self, database: Database) -> None:
        insert_into_a_partition_of(database, -LONG_AGO)
        dsn = make_conninfo(database.dsn, options="-c default_transaction_isolation=serializable")

        with pytest.raises(psycopg.errors.InvalidTransactionState):
            ask(dsn, DROP, day(-LONG_AGO), *database.query(PROOF)[0])
        assert await caretaker(dsn).attend()
        assert attached(database) == ahead()


class TestOtherSlotsOfTheDatabase:
    @pytest.fixture
    def slot(self, database: Database) -> str:
        """Another source of the same database, which has not confirmed what is old by now."""
        slot = f"{database.name}_other"
        database.query("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", slot)
        database.query("INSERT INTO relay.checkpoint (slot, state) VALUES (%s, 'streaming')", slot)
        insert_into_a_partition_of(database, -LONG_AGO)
        insert(database, -LONG_AGO - 1)
        return slot

    async def test_what_one_of_them_has_not_confirmed_stays(self, database: Database, slot: str) -> None:
        keeper = caretaker(database.dsn)
        assert not await keeper.attend()
        assert attached(database) == [name(-LONG_AGO), *ahead()]
        assert database.value("SELECT count(*) FROM relay.outbox") == 2

        advance(database, slot)
        assert await keeper.attend()
        assert attached(database) == ahead()
        assert database.value("SELECT count(*) FROM relay.outbox_default") == 1

    async def test_what_one_of_them_copies_still_stays(self, database: Database, slot: str) -> None:
        database.query("UPDATE relay.checkpoint SET state = 'copying'")
        keeper = caretaker(database.dsn)
        assert not await keeper.attend()
        advance(database, slot)

        assert not await keeper.attend()
        assert attached(database) == [name(-LONG_AGO), *ahead()]

    async def test_what_one_that_was_lost_may_need_stays(self, database: Database, slot: str) -> None:
        database.query("SELECT pg_drop_replication_slot(%s)", slot)
        keeper = caretaker(database.dsn)

        assert not await keeper.attend()
        assert database.value("SELECT count(*) FROM relay.outbox") == 2

        database.query("DELETE FROM relay.checkpoint")
        assert await keeper.attend()
        assert database.value("SELECT count(*) FROM relay.outbox") == 0


class TestRights:
    async def test_a_role_without_them_is_told_once_for_each_table(
        self, database: Database, caplog: pytest.LogCaptureFixture
    ) -> None:
        keeper = caretaker(database.role_dsn("customers"))

        assert await keeper.attend()
        assert await keeper.attend()

        assert attached(database) == []
        assert actions(caplog) == ["partitions_refused"] * 2
        assert "permission denied" in caplog.text

    async def test_a_role_that_owns_nothing_is_given_them(self, database: Database) -> None:
        insert_into_a_partition_of(database, -LONG_AGO)
        insert(database, -LONG_AGO - 1)
        database.query("SELECT relay.grant_outbox_partitions('customers')")

        assert await caretaker(database.role_dsn("customers")).attend()

        assert attached(database) == ahead()
        assert database.value("SELECT count(*) FROM relay.outbox") == 0
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            ask(database.role_dsn("customers"), f"DROP TABLE {name(2)}")

    async def test_a_database_that_is_not_migrated_is_told_once_for_each_table(
        self, database: Database, caplog: pytest.LogCaptureFixture
    ) -> None:
        database.query("DROP FUNCTION relay.partitions_missing")
        database.query("DROP FUNCTION relay.outbox_days_expired")
        keeper = caretaker(database.dsn)

        assert await keeper.attend()
        assert await keeper.attend()

        assert actions(caplog) == ["partitions_refused"] * 2


class TestRun:
    @pytest.fixture(autouse=True)
    def _quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(partitions, "RETRY_FIRST_S", 0.02)
        monkeypatch.setattr(partitions, "RETRY_CAP_S", 0.02)
        monkeypatch.setattr(partitions, "PATIENCE", 3)

    async def test_what_is_in_the_way_for_long_is_told_once_and_then_it_is_done(
        self, database: Database, caplog: pytest.LogCaptureFixture
    ) -> None:
        insert_into_a_partition_of(database, -LONG_AGO)
        settled = Settled()
        with psycopg.connect(database.role_dsn("orders")) as open_transaction:
            open_transaction.execute(INSERT, (0,))
            running = asyncio.create_task(caretaker(database.dsn, settled).run())
            await eventually(lambda: settled.asked > 2 * partitions.PATIENCE)
        await eventually(lambda: len(actions(caplog)) == 4)
        await end(running)

        assert attached(database) == ahead()
        made, blocked, *done = actions(caplog)
        assert (made, blocked) == ("partitions_created", "partitions_blocked")
        assert sorted(done) == ["partition_dropped", "partitions_created"]
        assert "relay.outbox: canceling statement due to lock timeout" in caplog.text

    async def test_what_is_not_settled_for_long_is_no_trouble(
        self, database: Database, caplog: pytest.LogCaptureFixture
    ) -> None:
        insert_into_a_partition_of(database, -LONG_AGO)
        settled = Settled(NOWHERE)
        running = asyncio.create_task(caretaker(database.dsn, settled).run())
        await eventually(lambda: settled.asked > 2 * partitions.PATIENCE)
        await end(running)

        assert actions(caplog) == ["partitions_created"]

    async def test_it_looks_again_when_it_is_time(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(partitions, "LOOK_EVERY_S", 0.05)
        running = asyncio.create_task(caretaker(database.dsn).run())
        await eventually(lambda: attached(database) == ahead())

        insert_into_a_partition_of(database, -LONG_AGO)
        await eventually(lambda: attached(database) == ahead())
        await end(running)

    async def test_a_server_that_is_away_is_tried_again(
        self, database: Database, caplog: pytest.LogCaptureFixture
    ) -> None:
        keeper = caretaker(make_conninfo(database.dsn, host="127.0.0.1", port=1))

        assert not await keeper.attend()
        assert actions(caplog) == []


class TestWithTheRelay:
    """The relay as a process, between real servers."""

    def relay(self, database: Database, vhost: VirtualHost) -> Process:
        settings = {
            "RELAY_SOURCE__0__DSN": database.dsn,
            "RELAY_SOURCE__0__OUTBOX_RETENTION": "2d",
            "RELAY_BROKER__URL": vhost.user_url("relay"),
            "RELAY_LOG_FORMAT": "json",
        }
        return Process(["relay", "run"], settings)

    async def test_a_relay_that_was_away_for_longer_than_the_partitions_reach_loses_nothing(
        self, database: Database, vhost: VirtualHost
    ) -> None:
        async with mailbox(vhost.url) as box:
            async with self.relay(database, vhost) as relay:
                await relay.until("streaming")
                await relay.until("partitions_created")
                assert await relay.end() == 0
            with psycopg.connect(database.dsn) as connection:  # time goes by: all of them are used up and gone
                for partition in ahead():
                    connection.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(*partition.split("."))))
            written = [str(database.query(INSERT, days)[0][1]) for days in (-3, -1, 0, 0, first())]
            assert database.value("SELECT count(*) FROM relay.outbox_default") == len(written)

            async with self.relay(database, vhost) as relay:
                await relay.until("partitions_created")
                written.append(str(database.query(INSERT, DAYS_AHEAD)[0][1]))
                arrived = await box.until_count(len(written))
                await relay.until("default_pruned")

        assert [delivery.properties.message_id for delivery in arrived] == written
        assert attached(database) == ahead()[1:]
        assert database.value("SELECT count(*) FROM relay.outbox") == len(written) - 1

    async def test_what_is_published_and_old_is_dropped_while_the_relay_is_idle(
        self, database: Database, vhost: VirtualHost
    ) -> None:
        insert_into_a_partition_of(database, -3)
        async with mailbox(vhost.url) as box, self.relay(database, vhost) as relay:
            await box.until_count(1)
            await relay.until("partition_dropped")

        assert attached(database) == ahead()
