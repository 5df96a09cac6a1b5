"""What can no longer matter is forgotten, in small transactions; what still may is not."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import psycopg
import pytest

from relay.messaging.pruning import Pruning
from tests.support.database import Database
from tests.support.notebook import SERVICE, pool_of
from tests.support.waiting import eventually

BATCH = 10
HANDLED = """
    INSERT INTO relay.inbox (consumer, message_id, sent_at, handled_at)
    SELECT %s, %s || n, now() - %s::interval, now() - %s::interval FROM generate_series(1, %s) AS n
"""
RECORDED = """
    INSERT INTO relay.operation (consumer, operation, outcome, at)
    SELECT %s, %s || n, 'done', now() - %s::interval FROM generate_series(1, %s) AS n
"""
KINDS = "SELECT DISTINCT consumer, rtrim(message_id, '0123456789') FROM relay.inbox ORDER BY 1, 2"
OPERATIONS = "SELECT DISTINCT consumer, rtrim(operation, '0123456789') FROM relay.operation ORDER BY 1, 2"
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
SIZES = """
    CREATE TABLE sizes (rows bigint);
    CREATE FUNCTION note_size() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
    BEGIN INSERT INTO public.sizes SELECT count(*) FROM gone; RETURN NULL; END $$;
    CREATE TRIGGER sizes AFTER DELETE ON relay.inbox REFERENCING OLD TABLE AS gone
        FOR EACH STATEMENT EXECUTE FUNCTION note_size();
"""


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("relay.messaging.pruning.BATCH", BATCH)
    monkeypatch.setattr("relay.messaging.pruning.BATCH_PAUSE_S", 0.0)
    caplog.set_level(logging.INFO, "relay")


@asynccontextmanager
async def pruning(database: Database) -> AsyncIterator[None]:
    async with pool_of(database.role_dsn(SERVICE)) as pool:
        job = asyncio.create_task(Pruning(SERVICE).run(pool))
        try:
            yield
        finally:
            job.cancel()
            await asyncio.gather(job, return_exceptions=True)


def until(database: Database, query: str, *rows: tuple[str, str]) -> Callable[[], bool]:
    return lambda: database.query(query) == list(rows)


async def test_old_ids_are_forgotten_in_small_batches(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    database.query(SIZES)
    database.query(HANDLED, SERVICE, "old", "31 days 1 hour", "31 days 1 hour", 35)
    database.query(HANDLED, SERVICE, "young", "30 days 23 hours", "30 days 23 hours", 5)
    async with pruning(database):
        await eventually(until(database, KINDS, (SERVICE, "young")))
        await eventually(lambda: "forgot 35 rows of relay.inbox" in caplog.text)

    sizes = [size for (size,) in database.query("SELECT rows FROM sizes WHERE rows > 0")]
    assert sizes == [10, 10, 10, 5]


async def test_the_sender_s_time_counts_where_it_is_told_and_what_another_service_handled_is_its_own(
    database: Database,
) -> None:
    """A copy is judged by its sender's time: while it could pass for young, its id is known."""
    database.query(HANDLED, SERVICE, "from a clock that is ahead ", "-1 day", "90 days", 1)
    database.query(HANDLED, SERVICE, "handled late ", "90 days", "1 day", 1)
    database.query(HANDLED, SERVICE, "by our time ", None, "32 days", 1)
    database.query(HANDLED, SERVICE, "by our time too ", None, "1 day", 1)
    database.query(HANDLED, "orders", "old ", "90 days", "90 days", 1)
    async with pruning(database):
        await eventually(
            until(
                database,
                KINDS,
                (SERVICE, "by our time too "),
                (SERVICE, "from a clock that is ahead "),
                (SERVICE, "handled late "),
                ("orders", "old "),
            )
        )


async def test_old_operations_are_forgotten(database: Database) -> None:
    database.query(RECORDED, SERVICE, "old", "91 days", 25)
    database.query(RECORDED, SERVICE, "young", "89 days", 5)
    database.query(RECORDED, "orders", "old", "91 days", 1)
    async with pruning(database):
        await eventually(until(database, OPERATIONS, (SERVICE, "young"), ("orders", "old")))


async def test_an_operation_that_changes_at_this_moment_is_not_forgotten(database: Database) -> None:
    database.query(RECORDED, SERVICE, "x", "100 days", 1)
    with psycopg.connect(database.role_dsn(SERVICE)) as other:
        other.execute("UPDATE relay.operation SET outcome = 'compensated', at = clock_timestamp()")
        async with pruning(database):
            await eventually(lambda: database.value(WAITING) == 1)
            other.commit()
            await eventually(lambda: database.value(WAITING) == 0)

    assert database.query("SELECT outcome FROM relay.operation") == [("compensated",)]
