"""Large and odd transactions, through the real relay."""

import asyncio
import json
import re
import threading
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from relay.daemon.pump import LONG_S
from tests.conftest import VirtualHost
from tests.support.database import Database
from tests.support.mailbox import Mailbox, mailbox
from tests.support.process import RelayProcess
from tests.support.proxy import AMQP, Proxy
from tests.support.waiting import eventually

EVENT = "INSERT INTO relay.outbox (aggregate_type, aggregate_id, type, payload) VALUES ('order', %s, 'Moved', %s)"
ROWS = (
    "INSERT INTO relay.outbox (aggregate_type, aggregate_id, type, payload)"
    " SELECT 'order', (n %% 1000)::text, 'Moved', json_build_object('n', n, 'filling', repeat('x', 180))"
    " FROM generate_series(1, %s) AS n"
)

STATEMENTS = 10_000
SMALL_ROWS = 10_000
LARGE_ROWS = 300_000
LARGE_S = 240.0
"""How long a transaction of LARGE_ROWS may take on a busy machine."""
MOST_MB = 80.0
MORE_MB = 6.0
"""What the large transaction may take more than the small one: what an allocator leaves scattered."""

LOOKS = 20
BUSY_PAUSE_S = 0.02
BUSY = "INSERT INTO busy SELECT n, repeat('x', 500) FROM generate_series(1, 500) AS n"
FOLLOWS = (
    "SELECT confirmed_flush_lsn >= %s::pg_lsn AND restart_lsn >= %s::pg_lsn"
    " FROM pg_replication_slots WHERE slot_name = %s"
)
FOLLOWS_S = 20.0
"""How far behind the slot may be. Its restart position moves when PostgreSQL logs its running transactions, which a
checkpoint makes it do."""


def slot_of(database: Database) -> str:
    return f"relay_{database.name}"


async def confirmed(database: Database, within_s: float = 30.0) -> None:
    """Wait until PostgreSQL was told that everything is settled."""
    query = "SELECT confirmed_flush_lsn >= %s::pg_lsn FROM pg_replication_slots WHERE slot_name = %s"
    target = str(database.value("SELECT pg_current_wal_lsn()"))
    await eventually(lambda: database.value(query, target, slot_of(database)), within_s)


def bodies(box: Mailbox) -> list[object]:
    return [json.loads(delivery.body) for delivery in box.deliveries]


async def test_a_transaction_of_ten_thousand_statements_arrives_whole_and_in_order(
    database: Database, vhost: VirtualHost
) -> None:
    async with mailbox(vhost.url) as box, RelayProcess(database.dsn, vhost.url) as relay:
        await relay.until("streaming")

        def write() -> None:
            with psycopg.connect(database.dsn) as connection, connection.pipeline():
                for number in range(STATEMENTS):
                    connection.execute(EVENT, (str(number % 7), str(number)))

        await asyncio.to_thread(write)
        await box.until_count(STATEMENTS)
        await confirmed(database)
    assert bodies(box) == list(range(STATEMENTS))


async def test_interleaved_transactions_keep_the_order_in_which_they_commit(
    database: Database, vhost: VirtualHost
) -> None:
    async with mailbox(vhost.url) as box, RelayProcess(database.dsn, vhost.url) as relay:
        await relay.until("streaming")
        with psycopg.connect(database.dsn) as early, psycopg.connect(database.dsn) as late:
            early.execute(EVENT, ("1", '"began first, 1"'))
            late.execute(EVENT, ("1", '"began second, 1"'))
            early.execute(EVENT, ("1", '"began first, 2"'))
            late.execute(EVENT, ("1", '"began second, 2"'))
            late.commit()
            early.execute(EVENT, ("1", '"began first, 3"'))
            early.commit()
        await box.until_count(5)
        await confirmed(database)
    assert bodies(box) == [
        "began second, 1",
        "began second, 2",
        "began first, 1",
        "began first, 2",
        "began first, 3",
    ]


async def test_of_rolled_back_savepoints_at_any_depth_nothing_is_published(
    database: Database, vhost: VirtualHost
) -> None:
    async with mailbox(vhost.url) as box, RelayProcess(database.dsn, vhost.url) as relay:
        await relay.until("streaming")
        with psycopg.connect(database.dsn) as connection:
            connection.execute(EVENT, ("1", "1"))
            with connection.transaction():
                connection.execute(EVENT, ("1", "2"))
                with connection.transaction(force_rollback=True):
                    connection.execute(EVENT, ("1", '"inner"'))
                connection.execute(EVENT, ("1", "3"))
            with connection.transaction(force_rollback=True):
                with connection.transaction():
                    connection.execute(EVENT, ("1", '"released, and then rolled back with the outer one"'))
                connection.execute(EVENT, ("1", '"outer"'))
            connection.execute(EVENT, ("1", "4"))
        await box.until_count(4)
        await confirmed(database)
    assert bodies(box) == [1, 2, 3, 4]


async def test_transactions_that_publish_nothing_are_passed_by(database: Database, vhost: VirtualHost) -> None:
    database.query("CREATE TABLE other (n int)")
    async with mailbox(vhost.url) as box, RelayProcess(database.dsn, vhost.url) as relay:
        await relay.until("streaming")
        with psycopg.connect(database.dsn) as connection:
            connection.execute(EVENT, ("1", "1"))
            connection.commit()
            connection.execute("SELECT pg_current_xact_id()")  # an id, and nothing else: empty
            connection.commit()
        database.query("INSERT INTO other SELECT generate_series(1, 1000)")
        database.query("UPDATE relay.outbox SET headers = headers")
        with psycopg.connect(database.dsn) as connection, connection.transaction(force_rollback=True):
            connection.execute(EVENT, ("1", '"rolled back"'))
        database.query("DELETE FROM relay.outbox")
        await confirmed(database)
        database.query(EVENT, "1", "2")
        await box.until_count(2)
        await confirmed(database)
    assert bodies(box) == [1, 2]


async def test_what_other_tables_write_is_not_kept_for_a_silent_outbox(database: Database, vhost: VirtualHost) -> None:
    database.query("CREATE TABLE busy (n int, filling text)")
    enough = threading.Event()

    def write() -> None:
        with psycopg.connect(database.superuser_dsn, autocommit=True) as connection:
            while not enough.wait(BUSY_PAUSE_S):
                connection.execute(BUSY)

    def follows_to(position: object) -> object:
        database.query("CHECKPOINT")
        return database.value(FOLLOWS, position, position, slot_of(database))

    async with RelayProcess(database.dsn, vhost.url) as relay:
        await relay.until("streaming")
        writing = asyncio.create_task(asyncio.to_thread(write))
        try:
            for _ in range(LOOKS):
                position = database.value("SELECT pg_current_wal_lsn()")
                await eventually(partial(follows_to, position), FOLLOWS_S)
        finally:
            enough.set()
            await writing
    written = database.value("SELECT count(*) FROM busy")
    assert isinstance(written, int)
    assert written > 0


async def test_a_transaction_that_takes_long_is_logged_with_what_it_holds(
    database: Database, vhost: VirtualHost
) -> None:
    url = vhost.user_url("relay")
    async with (
        mailbox(vhost.url) as box,
        Proxy(urlsplit(url).port or 5672, AMQP) as proxy,
        RelayProcess(database.dsn, proxy.url_of(url)) as relay,
    ):
        await relay.until("streaming")
        proxy.hold()
        database.query(ROWS, SMALL_ROWS)
        await asyncio.sleep(1.2 * LONG_S)  # the broker is slow: the passing of time is what is tested
        proxy.release()
        await relay.until("transaction_long", where=lambda line: line["messages"] == SMALL_ROWS)
        assert len(relay.said("transaction_long")) > 1, "it is said before the end, too"
        await box.until_count(SMALL_ROWS)


def peak_mb(relay: RelayProcess) -> float:
    """The most memory that it has had at once."""
    status = Path(f"/proc/{relay.process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024


@pytest.mark.timeout(LARGE_S)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the peak")
async def test_memory_does_not_depend_on_the_size_of_a_transaction(database: Database, vhost: VirtualHost) -> None:
    forgetful = {"x-max-length": 1000, "x-overflow": "drop-head"}
    vhost.server.put(f"queues/{vhost.name}/pit", {"durable": True, "arguments": forgetful})
    async with RelayProcess(database.dsn, vhost.url) as relay:
        await relay.until("streaming")
        binding = f"/api/bindings/{vhost.name}/e/relay.events/q/pit"
        vhost.server.api.post(binding, json={"routing_key": "#"}).raise_for_status()
        peaks = []
        for rows in (SMALL_ROWS, LARGE_ROWS):
            await asyncio.to_thread(database.query, ROWS, rows)
            await confirmed(database, LARGE_S)
            peaks.append(peak_mb(relay))
        assert not relay.said("event_unheard")
        assert await relay.end() == 0
    small_mb, large_mb = peaks
    assert large_mb < MOST_MB
    assert large_mb - small_mb < MORE_MB
