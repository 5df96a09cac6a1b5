"""Timers of sagas: fired by any instance when they are due, once, and nothing waits behind ten thousand of them."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from pydantic import BaseModel

from relay.messaging import Command, Done, Event, Failure, NotInTransaction, Operation, Retry, Service, Transaction
from relay.saga import Orchestrator, Saga, jobs, timers
from relay.tasks import end
from tests.support.database import Database
from tests.support.saga import (
    connect,
    hear,
    last_sent,
    logged,
    pool_of,
    sent,
    status_of,
    then_the_log_tells_the_record,
)
from tests.support.waiting import eventually

CROWD = 10_000
REPLIES = 500
ONE_SECOND_S = 1.0


class Job(BaseModel):
    name: str
    seen: int = 0


class Work(Command):
    name: str


class Working:
    """A saga of one remote step, which can be undone, and a local pivot. `poison` makes its retries raise."""

    def __init__(self, *, timeout: str | None = None, step_timeout: str = "30s", poison: str = "") -> None:
        self.service = Service("travel")
        self.poison = poison
        self.saga = saga = Saga("work", state=Job, timeout=timeout)
        self.step = saga.step(to="worker", retry=Retry(attempts=3, backoff="1s..1s"), timeout=step_timeout)(self.work)
        self.step.compensate(self.undo)
        saga.local(pivot=True)(self.close)
        self.orchestrator = Orchestrator(self.service, saga, seed=1)

    def work(self, job: Job) -> Work:
        if job.name == self.poison:
            raise ValueError("poisoned")
        return Work(name=job.name)

    def undo(self, job: Job) -> Work:
        return Work(name=job.name)

    async def close(self, job: Job, tx: Transaction) -> Failure | None:
        return None

    async def start(self, conn: AsyncConnection[TupleRow], name: str = "a") -> UUID:
        async with conn.transaction():
            return await self.orchestrator.start(self.saga, Job(name=name), conn)

    async def fire(self, conn: AsyncConnection[TupleRow], limit: int = 100, at: datetime | None = None) -> int:
        async with conn.transaction():
            return await self.orchestrator.fire_due(conn, limit=limit, at=at)

    def timer_job(self) -> jobs.TimerJob:
        return jobs.TimerJob(self.service.name, self.orchestrator.fire_due)


class Noted(Event):
    pass


class Queueing:
    """A saga that waits for others of its name, writes, and then sends a command. `poison` makes that raise."""

    def __init__(self) -> None:
        self.service = Service("travel")
        self.poison = ""
        self.saga = saga = Saga("queueing", state=Job, lock=lambda job: ("job", job.name), on_locked="queue")
        saga.local(readonly=True)(self.note)
        saga.step(to="worker")(self.work)
        self.orchestrator = Orchestrator(self.service, saga, seed=1)

    async def note(self, job: Job, tx: Transaction) -> Failure | None:
        await tx.add(Noted(), aggregate=("job", job.name))
        return None

    def work(self, job: Job) -> Work:
        if job.name == self.poison:
            raise ValueError("poisoned")
        return Work(name=job.name)

    async def start(self, conn: AsyncConnection[TupleRow]) -> UUID:
        async with conn.transaction():
            return await self.orchestrator.start(self.saga, Job(name="a"), conn)

    async def fire(self, conn: AsyncConnection[TupleRow]) -> int:
        async with conn.transaction():
            return await self.orchestrator.fire_due(conn)


@pytest.fixture
async def conn(database: Database) -> AsyncIterator[AsyncConnection[TupleRow]]:
    async with await connect(database) as connection:
        yield connection


@asynccontextmanager
async def running(database: Database, *instances: Working) -> AsyncIterator[list["asyncio.Task[None]"]]:
    """Instances of a service that fire timers."""
    async with pool_of(database) as pool:
        tasks = [asyncio.create_task(instance.timer_job().run(pool)) for instance in instances]
        try:
            yield tasks
        finally:
            await end(*tasks)


def make_due(database: Database, where: str = "true") -> None:
    database.query(f"UPDATE relay.saga_timer SET due_at = clock_timestamp() WHERE fired_at IS NULL AND {where}")


def unfired(database: Database) -> object:
    return database.value("SELECT count(*) FROM relay.saga_timer WHERE fired_at IS NULL")


async def test_a_command_has_a_timeout_from_its_start(database: Database, conn: AsyncConnection[TupleRow]) -> None:
    saga_id = await Working(timeout="1h").start(conn)

    rows = database.query(
        "SELECT service, saga_id, purpose, step, attempt, round(extract(epoch FROM due_at - now())) IN (30, 3600)"
        " FROM relay.saga_timer ORDER BY id"
    )
    assert rows == [
        ("travel", saga_id, "saga_timeout", None, None, True),
        ("travel", saga_id, "timeout", "work", 1, True),
    ]


async def test_nothing_is_fired_before_its_time(database: Database, conn: AsyncConnection[TupleRow]) -> None:
    working = Working()
    await working.start(conn)

    assert await working.fire(conn) == 0
    assert unfired(database) == 1


async def test_as_if_it_were_later_it_is_fired(database: Database, conn: AsyncConnection[TupleRow]) -> None:
    working = Working()
    await working.start(conn)

    assert await working.fire(conn, at=datetime.now(UTC) + timedelta(seconds=31)) == 1
    assert "StepTimedOut work" in logged(database)


async def test_firing_without_a_transaction_is_refused(conn: AsyncConnection[TupleRow]) -> None:
    with pytest.raises(NotInTransaction):
        await Working().orchestrator.fire_due(conn)


async def test_a_timeout_leads_to_another_attempt(database: Database, conn: AsyncConnection[TupleRow]) -> None:
    working = Working()
    saga_id = await working.start(conn)

    make_due(database)
    assert await working.fire(conn) == 1
    make_due(database, "purpose = 'retry'")
    assert await working.fire(conn) == 1

    assert logged(database)[2:] == ["StepTimedOut work", "StepStarted work"]
    assert last_sent(database).headers == {"attempt": "2"}
    await then_the_log_tells_the_record(conn, database, saga_id)


async def test_a_saga_that_takes_too_long_is_undone(database: Database, conn: AsyncConnection[TupleRow]) -> None:
    working = Working(timeout="10m")
    saga_id = await working.start(conn)

    make_due(database, "purpose = 'saga_timeout'")
    await working.fire(conn)

    assert (status_of(database), logged(database)[2]) == ("COMPENSATING", "SagaTimedOut")
    await then_the_log_tells_the_record(conn, database, saga_id)


async def test_a_timer_that_is_stale_does_nothing(database: Database, conn: AsyncConnection[TupleRow]) -> None:
    working = Working()
    await working.start(conn)
    make_due(database)
    await hear(working.service, conn, Done(), last_sent(database))
    before = logged(database)

    assert await working.fire(conn) == 1

    assert (logged(database), unfired(database)) == (before, 0)


async def test_two_timers_of_one_saga_are_fired_one_after_the_other(
    database: Database, conn: AsyncConnection[TupleRow]
) -> None:
    working = Working(timeout="10m")
    saga_id = await working.start(conn)

    make_due(database)
    assert await working.fire(conn) == 2

    assert sorted(logged(database)[2:4]) == ["SagaTimedOut", "StepTimedOut work"]
    await then_the_log_tells_the_record(conn, database, saga_id)


async def test_a_busy_saga_is_not_waited_for(database: Database, conn: AsyncConnection[TupleRow]) -> None:
    working = Working()
    busy, free = await working.start(conn, "a"), await working.start(conn, "b")
    make_due(database)
    async with await connect(database) as other, other.transaction():
        await other.execute("SELECT FROM relay.saga WHERE id = %s FOR UPDATE", (busy,))

        assert await working.fire(conn) == 1

    assert "StepTimedOut work" in logged(database, free)
    assert "StepTimedOut work" not in logged(database, busy)
    assert await working.fire(conn) == 1


async def test_two_instances_never_fire_the_same(database: Database, conn: AsyncConnection[TupleRow]) -> None:
    working = Working()
    for number in range(6):
        await working.start(conn, str(number))
    make_due(database)
    async with await connect(database) as other, other.transaction():
        assert await working.orchestrator.fire_due(other, limit=3) == 3

        assert await working.fire(conn) == 3

    assert logged(database).count("StepTimedOut work") == 6


async def test_the_timers_of_another_service_are_left_alone(
    database: Database, conn: AsyncConnection[TupleRow]
) -> None:
    working = Working()
    await working.start(conn)
    make_due(database)
    database.query("UPDATE relay.saga_timer SET service = 'freight'")

    assert await working.fire(conn) == 0


async def test_a_timer_whose_saga_raises_is_put_off_and_holds_up_no_other(
    database: Database, conn: AsyncConnection[TupleRow], caplog: pytest.LogCaptureFixture
) -> None:
    working = Working()
    poisoned, fine = await working.start(conn, "p"), await working.start(conn, "b")
    make_due(database)
    await working.fire(conn)
    make_due(database, "purpose = 'retry'")
    working.poison = "p"
    before = (logged(database, poisoned), len(sent(database)))

    assert await working.fire(conn) == 2

    assert logged(database, poisoned) == before[0]
    assert [command.saga_id for command in sent(database)[before[1] :]] == [fine]
    put_off = "SELECT failures, extract(epoch FROM due_at - now()) BETWEEN 0.1 AND 1 FROM relay.saga_timer"
    assert database.query(f"{put_off} WHERE purpose = 'retry' AND fired_at IS NULL") == [(1, True)]
    (line,) = [record for record in caplog.records if record.__dict__["action"] == "timer_failed"]
    assert (line.levelno, line.__dict__["saga_id"]) == (logging.ERROR, str(poisoned))
    assert "ValueError: poisoned" in line.getMessage()


async def test_nothing_is_left_of_a_timer_whose_saga_raises(
    database: Database, conn: AsyncConnection[TupleRow]
) -> None:
    """It begins with a local step, which writes, and raises when it makes its command."""
    working = Queueing()
    await working.start(conn)
    second = await working.start(conn)
    await hear(working.service, conn, Done(), last_sent(database))
    working.poison = "a"

    assert await working.fire(conn) == 1

    assert logged(database, second) == ["SagaWaiting"]
    assert database.value("SELECT count(*) FROM relay.outbox WHERE type = 'Noted'") == 1


async def test_a_timer_that_was_put_off_is_fired_later(database: Database, conn: AsyncConnection[TupleRow]) -> None:
    working = Working()
    await working.start(conn, "p")
    make_due(database)
    await working.fire(conn)
    for _ in range(2):
        make_due(database, "purpose = 'retry'")
        working.poison = "p"
        await working.fire(conn)
    working.poison = ""

    make_due(database, "purpose = 'retry'")
    await working.fire(conn)

    assert last_sent(database).attempt == 2
    assert database.value("SELECT failures FROM relay.saga_timer WHERE purpose = 'retry'") == 2


async def test_timers_of_sagas_that_have_ended_are_swept(database: Database, conn: AsyncConnection[TupleRow]) -> None:
    working = Working()
    over, running_one = await working.start(conn, "a"), await working.start(conn, "b")
    await hear(working.service, conn, Done(), sent(database)[0])
    make_due(database)

    async with conn.transaction():
        assert await timers.sweep(conn, "travel") == 1

    assert status_of(database, over) == "COMPLETED"
    assert database.query("SELECT saga_id FROM relay.saga_timer") == [(running_one,)]


async def test_fired_timers_are_forgotten_after_their_retention_in_small_portions(
    database: Database, conn: AsyncConnection[TupleRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timers, "PRUNE_TIMERS", 4)
    age = "now() - number * interval '1 day'"
    fired = f"SELECT 'travel', gen_random_uuid(), 'retry', now(), {age} FROM generate_series(1, 13) AS number"
    database.query(f"INSERT INTO relay.saga_timer (service, saga_id, purpose, due_at, fired_at) {fired}")
    database.query(
        "INSERT INTO relay.saga_timer (service, saga_id, purpose, due_at)"
        " VALUES ('travel', gen_random_uuid(), 'retry', '2020-01-01')"
    )

    assert [await timers.prune(conn) for _ in range(3)] == [4, 3, 0]

    assert database.value("SELECT count(*) FROM relay.saga_timer") == 1 + 6
    assert unfired(database) == 1


async def test_pruning_runs_beside_the_service(database: Database) -> None:
    database.query(
        "INSERT INTO relay.saga_timer (service, saga_id, purpose, due_at, fired_at)"
        " SELECT 'travel', gen_random_uuid(), 'retry', '2020-01-01', '2020-01-01' FROM generate_series(1, 2500)"
    )
    async with pool_of(database) as pool:
        task = asyncio.create_task(jobs.prune(pool))
        await eventually(lambda: database.value("SELECT count(*) FROM relay.saga_timer") == 0)
        await end(task)


async def test_pruning_pauses_between_its_portions(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not crowd out the work of the service, however many there are."""
    monkeypatch.setattr(jobs, "BATCH_PAUSE_S", 3600.0)
    portions: list[int] = []

    async def prune(conn: AsyncConnection[TupleRow]) -> int:
        portions.append(timers.PRUNE_TIMERS)
        return timers.PRUNE_TIMERS

    monkeypatch.setattr(timers, "prune", prune)
    async with pool_of(database) as pool:
        task = asyncio.create_task(jobs.prune(pool))
        await eventually(lambda: portions)
        async with pool.connection() as conn:  # longer than another portion would take
            await conn.execute("SELECT pg_sleep(0.2)")
        await end(task)

    assert len(portions) == 1


@pytest.mark.alone
async def test_any_instance_fires_within_a_second(database: Database, conn: AsyncConnection[TupleRow]) -> None:
    """Three instances; two of them are killed; the timer is one that none of them has set."""
    async with running(database, Working(), Working(), Working()) as (first, second, _):
        await end(first, second)
        await Working(step_timeout="700ms").start(conn)
        await eventually(lambda: "StepTimedOut work" in logged(database))

    assert lateness_s(database, "purpose = 'timeout'") < ONE_SECOND_S


@pytest.mark.alone
async def test_each_of_many_is_fired_once_and_in_time(database: Database, conn: AsyncConnection[TupleRow]) -> None:
    instances = [Working(step_timeout="1s") for _ in range(3)]
    async with running(database, *instances):
        for number in range(60):
            await instances[0].start(conn, str(number))
        await eventually(lambda: logged(database).count("StepTimedOut work") == 60)

    assert logged(database).count("StepTimedOut work") == 60
    assert lateness_s(database, "purpose = 'timeout' AND attempt = 1") < ONE_SECOND_S


async def test_it_waits_no_longer_than_until_the_next_is_due(
    database: Database, conn: AsyncConnection[TupleRow]
) -> None:
    working = Working()
    await working.start(conn)
    job = working.timer_job()
    assert await job.fire(conn) == jobs.TIMER_POLL_S

    database.query("UPDATE relay.saga_timer SET due_at = clock_timestamp() + interval '0.2 s'")
    assert 0 < await job.fire(conn) <= 0.2


async def test_a_busy_saga_is_not_asked_after_all_the_time(database: Database, conn: AsyncConnection[TupleRow]) -> None:
    working = Working()
    saga_id = await working.start(conn)
    make_due(database)
    async with await connect(database) as other, other.transaction():
        await other.execute("SELECT FROM relay.saga WHERE id = %s FOR UPDATE", (saga_id,))

        assert await working.timer_job().fire(conn) == jobs.TIMER_BUSY_S


def lateness_s(database: Database, where: str) -> float:
    """How long after its time the last of these was fired, or has not been yet."""
    late = (
        "SELECT extract(epoch FROM max(coalesce(fired_at, clock_timestamp()) - due_at))::float8 FROM relay.saga_timer"
    )
    value = database.value(f"{late} WHERE {where}")
    assert isinstance(value, float)
    return value


async def given_a_crowd(database: Database, working: Working, conn: AsyncConnection[TupleRow]) -> list[str]:
    """Copies of a saga that waits for its reply, each with its timer. Their operations."""
    model = await working.start(conn, "crowd")
    database.query(
        "INSERT INTO relay.saga (id, type, status, step, state, definition, progress, events)"
        " SELECT gen_random_uuid(), type, status, step, state, definition, progress, events"
        " FROM relay.saga, generate_series(2, %s) WHERE id = %s",
        CROWD,
        model,
    )
    database.query(
        "INSERT INTO relay.saga_timer (service, saga_id, purpose, step, attempt, due_at)"
        " SELECT 'travel', id, 'timeout', 'work', 1, now() + interval '1 h' FROM relay.saga WHERE id <> %s",
        model,
    )
    database.query("ANALYZE relay.saga, relay.saga_timer")
    return [str(Operation(saga_id, "work")) for (saga_id,) in database.query("SELECT id FROM relay.saga")]


CROWD_LEFT = """
    SELECT count(*) FROM relay.saga_timer AS timer JOIN relay.saga AS saga ON saga.id = timer.saga_id
    WHERE timer.fired_at IS NULL AND timer.purpose = 'timeout' AND saga.state ->> 'name' = 'crowd'
"""

LIVELY = """
    purpose = 'timeout' AND attempt = 1 AND due_at < clock_timestamp()
    AND saga_id IN (SELECT id FROM relay.saga WHERE state ->> 'name' = 'lively')
"""


@pytest.mark.alone
async def test_ten_thousand_due_at_once_hold_up_neither_replies_nor_new_timers(
    database: Database, conn: AsyncConnection[TupleRow]
) -> None:
    working, lively = Working(step_timeout="2h"), Working(step_timeout="100ms")
    crowd = await given_a_crowd(database, working, conn)
    waits_s = []

    make_due(database)
    async with running(database, working):
        for number, operation in enumerate(crowd[:REPLIES]):
            before_s = time.monotonic()
            await hear(working.service, conn, Done(), operation)
            waits_s.append(time.monotonic() - before_s)
            if number % 10 == 0:
                await lively.start(conn, "lively")
        left = database.value(CROWD_LEFT)
        await eventually(
            lambda: database.value(f"SELECT bool_and(fired_at IS NOT NULL) FROM relay.saga_timer WHERE {LIVELY}")
        )

    late_s = lateness_s(database, LIVELY)
    print(f"replies took {max(waits_s):.3f} s at most; new timers were {late_s:.3f} s late at most; {left} still due")
    assert left != 0, "it was over before anything could be seen"
    assert max(waits_s) < ONE_SECOND_S
    assert late_s < ONE_SECOND_S
