"""A relay is no synchronous standby: no COMMIT may wait for a message to be published."""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from relay.demo.servers.postgres import PrivatePostgres
from tests.conftest import VirtualHost
from tests.support.database import Database, Databases
from tests.support.mailbox import mailbox
from tests.support.process import RelayProcess
from tests.support.servers import with_roles
from tests.support.waiting import eventually

EVENT = "INSERT INTO relay.outbox (aggregate_type, aggregate_id, type, payload) VALUES ('order', '7', 'Moved', '{}')"
NAME = "shop"
"""Of the source, and with it of the relay's connections: "saga-relay shop"."""
STANDBY = "real_standby"
COMMIT_S = 20.0
"""How long a COMMIT may take at most: as long as a relay takes to notice that it is waited for, and to leave."""
END_S = 10.0
"""How long pg_receivewal may take to end when it is told to."""


@dataclass(frozen=True)
class Source:
    """A PostgreSQL of the test's own, whose synchronous_standby_names it may change, and a database in it."""

    server: PrivatePostgres
    database: Database

    def require(self, names: str) -> None:
        """Set synchronous_standby_names, now."""
        with psycopg.connect(self.database.superuser_dsn, autocommit=True) as connection:
            connection.execute(sql.SQL("ALTER SYSTEM SET synchronous_standby_names = {}").format(sql.Literal(names)))
            connection.execute("SELECT pg_reload_conf()")

    def program(self, name: str) -> Path:
        """One of PostgreSQL's programs, of the same installation as the server."""
        return Path(f"/proc/{self.server.pid}/exe").resolve().with_name(name)

    async def commit(self) -> None:
        """Commit a message as a service does, within COMMIT_S."""
        async with asyncio.timeout(COMMIT_S), await psycopg.AsyncConnection.connect(self.database.dsn) as connection:
            await connection.execute(EVENT)


@pytest.fixture
def source() -> Iterator[Source]:
    with PrivatePostgres(durable=False) as server:
        database = Databases(with_roles(server.dsn("postgres"))).create()
        yield Source(server, database)
        database.connection.close()


@asynccontextmanager
async def real_standby(source: Source, folder: Path) -> AsyncIterator[None]:
    """pg_receivewal, which confirms what it has written: whom a DBA may make synchronous."""
    dsn = f"{source.database.superuser_dsn}?application_name={STANDBY}"
    process = await asyncio.create_subprocess_exec(
        source.program("pg_receivewal"),
        "--synchronous",
        "--status-interval=1",  # it looks whether it is to end after each wait, and may wait as long
        "--directory",
        folder,
        "--dbname",
        dsn,
        stderr=subprocess.DEVNULL,
    )
    try:
        await eventually(
            lambda: (
                source.database.value(
                    "SELECT count(*) FROM pg_stat_replication WHERE application_name = %s AND state = 'streaming'",
                    STANDBY,
                )
                == 1
            )
        )
        yield
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), END_S)


async def refused(relay: RelayProcess) -> None:
    """The relay ends for a reason that a person can act on."""
    await relay.until("source_stopped")
    assert await relay.status() == 3
    (stopped,) = relay.said("source_stopped")
    assert "synchronous" in stopped["message"]
    assert "synchronous_standby_names" in stopped["message"] + stopped["hint"]


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(f'FIRST 1 ("saga-relay {NAME}", {STANDBY})', id="sync"),
        pytest.param(f'FIRST 1 ({STANDBY}, "saga-relay {NAME}")', id="potential"),
        pytest.param(f'ANY 1 ("saga-relay {NAME}", {STANDBY})', id="quorum"),
    ],
)
async def test_a_relay_that_would_be_a_synchronous_standby_refuses_to_run(
    names: str, source: Source, vhost: VirtualHost, tmp_path: Path
) -> None:
    async with real_standby(source, tmp_path):
        source.require(names)
        async with RelayProcess(source.database.dsn, vhost.url, name=NAME) as relay:
            refusing = asyncio.create_task(refused(relay))
            while not refusing.done():
                await source.commit()
            await refusing
        await source.commit()


async def test_a_relay_that_alone_would_be_waited_for_refuses_to_run(source: Source, vhost: VirtualHost) -> None:
    source.require("*")
    async with RelayProcess(source.database.dsn, vhost.url, name=NAME) as relay:
        await refused(relay)
    source.require("")
    await source.commit()


async def test_a_relay_that_becomes_a_synchronous_standby_leaves_and_releases_who_waits(
    source: Source, vhost: VirtualHost, tmp_path: Path
) -> None:
    async with (
        mailbox(vhost.url) as box,
        real_standby(source, tmp_path),
        RelayProcess(source.database.dsn, vhost.url, name=NAME) as relay,
    ):
        await relay.until("streaming")
        await source.commit()
        await box.until_count(1)
        source.require(f'FIRST 1 ("saga-relay {NAME}", {STANDBY})')
        refusing = asyncio.create_task(refused(relay))
        while not refusing.done():
            await source.commit()
        await refusing
        await source.commit()


async def test_once_it_is_not_waited_for_any_more_it_runs_and_nothing_is_missing(
    source: Source, vhost: VirtualHost
) -> None:
    async with mailbox(vhost.url) as box:
        source.require("*")
        waiting = asyncio.create_task(source.commit())
        async with RelayProcess(source.database.dsn, vhost.url, name=NAME) as relay:
            await refused(relay)
        source.require("")
        await waiting
        async with RelayProcess(source.database.dsn, vhost.url, name=NAME) as relay:
            await relay.until("streaming")
            await box.until_count(1)
            assert await relay.end() == 0
