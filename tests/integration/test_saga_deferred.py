"""What a local step leaves for its commit to find, a deferred constraint broken, is the failure of that step alone."""

from collections.abc import AsyncIterator
from uuid import UUID

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from pydantic import BaseModel

from relay.messaging import Command, Done, Retry, Service, Transaction
from relay.saga import Orchestrator, Saga
from tests.support.database import Database
from tests.support.saga import connect, hear, last_sent, status_of, then_the_log_tells_the_record

CHILD = "INSERT INTO child VALUES (%s)"
PARENT = "INSERT INTO parent VALUES (%s)"

BROKEN = "ForeignKeyViolation"


class Family(BaseModel):
    name: str


class Ask(Command):
    name: str


class Registry:
    """Asks, and then registers a child before its parent. Of `orphans` the parent never comes."""

    def __init__(self, *orphans: str) -> None:
        self.orphans = set(orphans)
        self.service = Service("travel")
        self.saga = saga = Saga("family", state=Family)
        saga.step(to="office", readonly=True)(self.ask)
        retry = Retry(attempts=2, backoff="1s..1s")
        saga.local(readonly=True, retry=retry)(self.register)
        self.orchestrator = Orchestrator(self.service, saga, seed=1)

    def ask(self, family: Family) -> Ask:
        return Ask(name=family.name)

    async def register(self, family: Family, tx: Transaction) -> None:
        await tx.execute(CHILD, (family.name,))
        if family.name not in self.orphans:
            await tx.execute(PARENT, (family.name,))

    async def start(self, conn: AsyncConnection[TupleRow], database: Database, name: str) -> UUID:
        """Start one, and have it answered: its local step is tried for the first time."""
        async with conn.transaction():
            saga_id = await self.orchestrator.start(self.saga, Family(name=name), conn)
        await hear(self.service, conn, Done(), last_sent(database))
        return saga_id

    async def fire(self, conn: AsyncConnection[TupleRow]) -> int:
        async with conn.transaction():
            return await self.orchestrator.fire_due(conn)


@pytest.fixture
async def conn(database: Database) -> AsyncIterator[AsyncConnection[TupleRow]]:
    database.query("CREATE TABLE parent (name text PRIMARY KEY)")
    database.query("CREATE TABLE child (name text REFERENCES parent DEFERRABLE INITIALLY DEFERRED)")
    database.query("GRANT ALL ON parent, child TO orders")
    async with await connect(database) as connection:
        yield connection


async def test_it_is_a_failed_attempt_and_costs_other_sagas_nothing(
    database: Database, conn: AsyncConnection[TupleRow]
) -> None:
    registry = Registry("Oliver", "Bob")
    oliver, bob = await registry.start(conn, database, "Oliver"), await registry.start(conn, database, "Bob")
    ada = await registry.start(conn, database, "Ada")
    assert [status_of(database, saga_id) for saga_id in (oliver, bob, ada)] == ["RUNNING", "RUNNING", "COMPLETED"]

    registry.orphans = {"Oliver"}
    database.query("UPDATE relay.saga_timer SET due_at = now() WHERE purpose = 'retry'")
    assert await registry.fire(conn) == 2

    assert [status_of(database, saga_id) for saga_id in (oliver, bob)] == ["COMPENSATED", "COMPLETED"]
    failures = "SELECT reason FROM relay.saga_log WHERE saga_id = %s AND event = 'StepFailed'"
    assert [BROKEN in str(reason) for (reason,) in database.query(failures, oliver)] == [True, True]
    assert database.query("SELECT name FROM child ORDER BY name") == [("Ada",), ("Bob",)]
    await then_the_log_tells_the_record(conn, database, oliver)


async def test_who_starts_a_saga_may_mend_it_until_the_commit(
    database: Database, conn: AsyncConnection[TupleRow]
) -> None:
    registry = Registry("Oliver", "Eve")
    saga = Saga("family_now", state=Family)
    saga.local(readonly=True)(registry.register)
    orchestrator = Orchestrator(Service("travel"), saga)

    async with conn.transaction():
        await conn.execute(CHILD, ("Cy",))
        await orchestrator.start(saga, Family(name="Oliver"), conn)
        await conn.execute(PARENT, ("Cy",))
        await conn.execute(PARENT, ("Oliver",))
    assert status_of(database) == "COMPLETED"

    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        async with conn.transaction():
            await orchestrator.start(saga, Family(name="Eve"), conn)
