"""Code of a saga that raises where no step is to blame: it is tried again, and in the end a person is told."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from pydantic import BaseModel

from relay.broker.properties import Delivery
from relay.messaging import Command, Done, Failure, Retry, Service, Transaction
from relay.messaging.jobs import keep
from relay.messaging.settling import Settling
from relay.saga import Orchestrator, Saga, history, jobs, locks, timers
from relay.saga.tally import INTERRUPTION_RETRY, TIMER_RETRY
from relay.tasks import end
from tests.support.database import Database
from tests.support.saga import (
    connect,
    delivery_of,
    hear,
    last_sent,
    logged,
    pool_of,
    sent,
    status_of,
    then_the_log_tells_the_record,
)
from tests.support.snippets import fenced
from tests.support.waiting import eventually

LATER: Final = timedelta(hours=1)


class Trip(BaseModel):
    name: str
    heard: int = 0


class Book(Command):
    name: str


class Cancel(Command):
    name: str


class Rent(Command):
    name: str


class Travel:
    """Books, checks, rents a car if one is wanted, and closes. The functions in `bugs` raise."""

    def __init__(self, *, queues: bool = False) -> None:
        self.bugs: dict[str, Exception] = {}
        self.service = Service("travel", retry=Retry(attempts=1))
        self.saga = saga = Saga(
            "trip", state=Trip, lock=(lambda trip: ("trip", trip.name)) if queues else None, on_locked="queue"
        )
        book = saga.step(to="hotel", retry=Retry(attempts=2, backoff="1s..1s"))(self.book)
        book.on(Done)(self.booked)
        book.compensate(self.cancel)
        saga.local(readonly=True)(self.check)
        saga.step(to="cars", when=self.wants_car, readonly=True)(self.rent)
        saga.local(pivot=True)(self.close)
        self.orchestrator = Orchestrator(self.service, saga, seed=1)

    def book(self, trip: Trip) -> Book:
        self._stumble("book")
        return Book(name=trip.name)

    def booked(self, trip: Trip, reply: Done) -> None:
        self._stumble("booked")
        trip.heard += 1

    def cancel(self, trip: Trip) -> Cancel:
        self._stumble("cancel")
        return Cancel(name=trip.name)

    async def check(self, trip: Trip, tx: Transaction) -> Failure | None:
        if "killer" in self.bugs:
            await tx.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        if "contender" in self.bugs:
            await tx.execute("SELECT FROM contended FOR UPDATE NOWAIT")
        self._stumble("check")
        return None

    def wants_car(self, trip: Trip) -> bool:
        self._stumble("wants_car")
        return True

    def rent(self, trip: Trip) -> Rent:
        return Rent(name=trip.name)

    async def close(self, trip: Trip, tx: Transaction) -> Failure | None:
        return None

    async def start(self, conn: AsyncConnection[TupleRow], name: str = "Rome") -> UUID:
        async with conn.transaction():
            return await self.orchestrator.start(self.saga, Trip(name=name), conn)

    async def abort(self, conn: AsyncConnection[TupleRow], saga_id: UUID) -> bool:
        async with conn.transaction():
            return await self.orchestrator.abort(saga_id, "enough", conn)

    async def fire(self, conn: AsyncConnection[TupleRow]) -> int:
        """Whatever is due within an hour."""
        async with conn.transaction():
            return await self.orchestrator.fire_due(conn, limit=100, at=datetime.now(UTC) + LATER)

    async def fire_often(self, conn: AsyncConnection[TupleRow], times: int = TIMER_RETRY.attempts) -> None:
        for _ in range(times):
            assert await self.fire(conn) == 1

    def _stumble(self, name: str) -> None:
        if name in self.bugs:
            raise type(self.bugs[name])(*self.bugs[name].args)


BUG: Final = ValueError("no\nink")


@dataclass(frozen=True)
class Stall:
    """Where a saga stalls: what raises, and at which time."""

    bug: str
    at: str
    status: str
    """What it goes on as."""


async def given_a_step_that_is_tried_again(travel: Travel, conn: AsyncConnection[TupleRow], database: Database) -> None:
    await travel.fire(conn)


async def given_a_check_that_is_tried_again(
    travel: Travel, conn: AsyncConnection[TupleRow], database: Database
) -> None:
    travel.bugs = {"check": BUG}
    await hear(travel.service, conn, Done(), last_sent(database))
    database.query("UPDATE relay.saga_timer SET fired_at = now() WHERE purpose <> 'retry'")


async def given_a_step_that_is_to_be_undone(
    travel: Travel, conn: AsyncConnection[TupleRow], database: Database
) -> None:
    await travel.fire(conn)
    await travel.fire(conn)


Given = Callable[[Travel, AsyncConnection[TupleRow], Database], Awaitable[None]]

STALLS: Final[list[tuple[Given, Stall]]] = [
    (given_a_step_that_is_tried_again, Stall("book", "the next attempt of book", "RUNNING")),
    (given_a_check_that_is_tried_again, Stall("wants_car", "the next attempt of check", "RUNNING")),
    (given_a_step_that_is_to_be_undone, Stall("cancel", "the timeout of book", "COMPENSATING")),
]
every_stall = pytest.mark.parametrize(
    ("given", "stall"), STALLS, ids=["what makes a command", "a condition", "what makes the command that undoes"]
)


@pytest.fixture
async def conn(database: Database) -> AsyncIterator[AsyncConnection[TupleRow]]:
    async with await connect(database) as connection:
        yield connection


async def given_it_stalls(
    given: Given, stall: Stall, travel: Travel, conn: AsyncConnection[TupleRow], database: Database
) -> UUID:
    """The saga, suspended."""
    saga_id = await travel.start(conn)
    await given(travel, conn, database)
    travel.bugs = {stall.bug: BUG}
    await travel.fire_often(conn)
    return saga_id


def reason_of(database: Database) -> object:
    return database.value("SELECT reason FROM relay.saga")


def tally_of(database: Database) -> list[tuple[object, ...]]:
    """Failures and interruptions of the timers that are not fired."""
    return database.query("SELECT failures, interruptions FROM relay.saga_timer WHERE fired_at IS NULL")


@every_stall
async def test_after_its_budget_the_saga_is_suspended_with_the_reason(
    database: Database, conn: AsyncConnection[TupleRow], given: Given, stall: Stall, caplog: pytest.LogCaptureFixture
) -> None:
    travel = Travel()
    saga_id = await travel.start(conn)
    await given(travel, conn, database)
    before = logged(database)
    travel.bugs = {stall.bug: BUG}

    await travel.fire_often(conn, TIMER_RETRY.attempts - 1)
    assert (status_of(database), logged(database)) == ("RUNNING", before)
    await travel.fire_often(conn, 1)

    assert status_of(database) == "SUSPENDED"
    assert reason_of(database) == f"at {stall.at}: ValueError: no ink"
    assert logged(database) == [*before, f"SagaSuspended {stall.at.split()[-1]}"]
    await then_the_log_tells_the_record(conn, database, saga_id)
    told = [(line.levelno, line.__dict__["action"]) for line in caplog.records]
    assert told.count((logging.ERROR, "timer_failed")) == TIMER_RETRY.attempts
    assert told[-1] == (logging.ERROR, "saga_suspended")


@every_stall
async def test_nothing_is_tried_any_more_and_whoever_asks_is_told(
    database: Database, conn: AsyncConnection[TupleRow], given: Given, stall: Stall
) -> None:
    travel = Travel()
    saga_id = await given_it_stalls(given, stall, travel, conn, database)

    assert await travel.fire(conn) == 0
    assert await timers.next_due_s(conn, "travel") is None
    with psycopg.connect(database.dsn, autocommit=True) as asking:
        sheet = history.sheet(asking, saga_id)
    assert sheet is not None
    (timer,) = sheet.timers
    assert (timer.due_at, timer.due_in_seconds, timer.failures) == (None, None, TIMER_RETRY.attempts)


async def let_it_try_again(conn: AsyncConnection[TupleRow], saga_id: UUID) -> None:
    """As docs/sagas.md has it, with the rights of the service."""
    (statement,) = (block for block in fenced("sagas.md", "sql") if block.startswith("UPDATE relay.saga_timer"))
    cursor = await conn.execute(re.sub(r"saga_id = '[^']+'", f"saga_id = '{saga_id}'", statement).encode())
    assert cursor.rowcount == 1


@every_stall
async def test_when_the_code_is_mended_and_somebody_says_so_it_goes_on(
    database: Database, conn: AsyncConnection[TupleRow], given: Given, stall: Stall
) -> None:
    travel = Travel()
    saga_id = await given_it_stalls(given, stall, travel, conn, database)
    commands = len(sent(database))
    travel.bugs = {}

    await let_it_try_again(conn, saga_id)
    assert await travel.fire(conn) == 1

    assert (status_of(database), len(sent(database))) == (stall.status, commands + 1)
    assert reason_of(database) == (None if stall.status == "RUNNING" else "no reply within 60 s")
    await then_the_log_tells_the_record(conn, database, saga_id)


async def test_when_it_is_not_mended_it_is_suspended_again(database: Database, conn: AsyncConnection[TupleRow]) -> None:
    travel = Travel()
    saga_id = await given_it_stalls(*STALLS[0], travel, conn, database)
    await let_it_try_again(conn, saga_id)

    await travel.fire_often(conn)

    assert logged(database).count("SagaSuspended book") == 2
    assert await travel.fire(conn) == 0


async def test_what_else_happens_in_the_saga_has_it_tried_once_more(
    database: Database, conn: AsyncConnection[TupleRow]
) -> None:
    """The hotel answers after all; by now the code is mended."""
    travel = Travel()
    saga_id = await given_it_stalls(*STALLS[0], travel, conn, database)
    travel.bugs = {}

    await hear(travel.service, conn, Done(), sent(database)[0])

    assert (status_of(database), last_sent(database).type) == ("RUNNING", "Rent")
    of_it = "FROM relay.saga_timer WHERE purpose = 'retry' AND step = 'book' AND"
    assert database.value(f"SELECT count(*) {of_it} due_at <= now() AND fired_at IS NULL") == 1
    await travel.fire(conn)
    assert database.value(f"SELECT count(*) {of_it} fired_at IS NULL") == 0
    await then_the_log_tells_the_record(conn, database, saga_id)


async def test_what_raises_again_when_something_else_has_happened_is_not_tried_for_another_hour(
    database: Database, conn: AsyncConnection[TupleRow]
) -> None:
    travel = Travel()
    await given_it_stalls(*STALLS[0], travel, conn, database)
    database.query("UPDATE relay.saga_timer SET due_at = now(), interruptions = 0 WHERE due_at = 'infinity'")

    await travel.fire_often(conn, 1)

    assert await travel.fire(conn) == 0
    assert logged(database)[-2:] == ["SagaSuspended book"] * 2


async def test_it_can_be_aborted_and_leaves_no_timer(database: Database, conn: AsyncConnection[TupleRow]) -> None:
    travel = Travel()
    saga_id = await given_it_stalls(*STALLS[0], travel, conn, database)

    assert await travel.abort(conn, saga_id)
    assert (status_of(database), last_sent(database).type) == ("COMPENSATING", "Cancel")
    await hear(travel.service, conn, Done(), last_sent(database))

    assert (status_of(database), reason_of(database)) == ("COMPENSATED", "enough")
    await travel.fire(conn)
    assert tally_of(database) == []


async def test_the_budget_is_that_of_all_instances(database: Database, conn: AsyncConnection[TupleRow]) -> None:
    """Each forgets, as after a crash; the row does not."""
    await Travel().start(conn)
    await Travel().fire(conn)
    for number in range(TIMER_RETRY.attempts):
        assert status_of(database) == "RUNNING"
        assert tally_of(database) == [(number, 0)]
        another = Travel()
        another.bugs = {"book": BUG}
        await another.fire(conn)
    assert status_of(database) == "SUSPENDED"


async def test_one_whose_turn_had_come_keeps_its_lock_and_begins_when_the_code_is_mended(
    database: Database, conn: AsyncConnection[TupleRow]
) -> None:
    travel = Travel(queues=True)
    first, second = await travel.start(conn), await travel.start(conn)
    assert await travel.abort(conn, first)
    await hear(travel.service, conn, Done(), sent(database)[0])
    await hear(travel.service, conn, Done(), last_sent(database))
    database.query("UPDATE relay.saga_timer SET fired_at = now() WHERE saga_id = %s", first)
    travel.bugs = {"book": BUG}

    await travel.fire_often(conn)

    assert status_of(database, second) == "SUSPENDED"
    assert await locks.holder(conn, ("trip", "Rome")) == second
    await then_the_log_tells_the_record(conn, database, second)
    travel.bugs = {}
    await let_it_try_again(conn, second)
    await travel.fire(conn)
    assert logged(database, second) == ["SagaWaiting", "SagaSuspended", "SagaStarted", "StepStarted book"]
    assert status_of(database, second) == "RUNNING"


@pytest.mark.parametrize(
    "error",
    [psycopg.errors.DeadlockDetected(), psycopg.errors.SerializationFailure(), psycopg.OperationalError("lost")],
    ids=lambda error: type(error).__name__,
)
async def test_trouble_that_passes_does_not_spend_the_budget(
    database: Database, conn: AsyncConnection[TupleRow], error: Exception
) -> None:
    travel = Travel()
    await travel.start(conn)
    await travel.fire(conn)
    travel.bugs = {"book": error}

    await travel.fire_often(conn, TIMER_RETRY.attempts + 1)

    assert status_of(database) == "RUNNING"
    assert tally_of(database) == [(0, TIMER_RETRY.attempts + 1)]
    travel.bugs = {}
    await travel.fire(conn)
    assert last_sent(database).attempt == 2


async def test_a_lock_that_others_hold_for_long_does_not_spend_the_budget(
    database: Database, conn: AsyncConnection[TupleRow]
) -> None:
    travel = Travel()
    await travel.start(conn)
    await given_a_check_that_is_tried_again(travel, conn, database)
    database.query("CREATE TABLE contended AS SELECT 1 AS one")
    database.query("GRANT ALL ON contended TO orders")
    travel.bugs = {"contender": BUG}
    async with await connect(database) as other, other.transaction():
        await other.execute("SELECT FROM contended FOR UPDATE")
        await travel.fire_often(conn, TIMER_RETRY.attempts + 1)

    await travel.fire_often(conn, 1)

    assert last_sent(database).type == "Rent"


async def test_a_lock_that_is_never_free_ends_too(database: Database, conn: AsyncConnection[TupleRow]) -> None:
    travel = Travel()
    await travel.start(conn)
    await travel.fire(conn)
    travel.bugs = {"book": psycopg.errors.LockNotAvailable("taken")}

    await travel.fire_often(conn, INTERRUPTION_RETRY.attempts)

    assert status_of(database) == "SUSPENDED"
    assert reason_of(database) == "at the next attempt of book: LockNotAvailable: taken"


async def test_a_step_that_breaks_its_connection_each_time_ends_too(
    database: Database, conn: AsyncConnection[TupleRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can write down why: it is found in the tally, and not tried again."""
    monkeypatch.setattr("relay.saga.jobs.TIMER_POLL_S", 0.01)
    monkeypatch.setattr("relay.saga.timers.SPREAD_CAP_S", 0.01)
    travel = Travel()
    saga_id = await travel.start(conn)
    await given_a_check_that_is_tried_again(travel, conn, database)
    database.query("UPDATE relay.saga_timer SET due_at = now(), interruptions = %s", INTERRUPTION_RETRY.attempts - 2)
    travel.bugs = {"killer": BUG}
    job = jobs.TimerJob("travel", travel.orchestrator.fire_due)
    async with pool_of(database) as pool:
        firing = asyncio.create_task(keep("travel", "timers", job.run, pool))
        await eventually(lambda: status_of(database) == "SUSPENDED")
        await end(firing)

    count = INTERRUPTION_RETRY.attempts
    said = f"AlwaysInterrupted: {count} conflicts or lost connections, one after the other"
    assert reason_of(database) == f"at the next attempt of check: {said}"
    await then_the_log_tells_the_record(conn, database, saga_id)


async def test_an_instance_that_does_not_know_the_saga_leaves_it_to_one_that_does(
    database: Database, conn: AsyncConnection[TupleRow], caplog: pytest.LogCaptureFixture
) -> None:
    travel, old = Travel(), Orchestrator(Service("travel"))
    await travel.start(conn)
    await travel.fire(conn)
    for _ in range(2 * TIMER_RETRY.attempts):
        async with conn.transaction():
            assert await old.fire_due(conn, at=datetime.now(UTC) + LATER) == 1

    assert status_of(database) == "RUNNING"
    assert "which is not defined here" in caplog.text
    await travel.fire(conn)
    assert last_sent(database).attempt == 2


async def test_when_not_even_the_suspension_can_be_stored_that_is_tried_again(
    database: Database, conn: AsyncConnection[TupleRow], caplog: pytest.LogCaptureFixture
) -> None:
    travel = Travel()
    await travel.start(conn)
    await travel.fire(conn)
    travel.bugs = {"book": BUG}
    database.query(
        "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'no space left' USING ERRCODE = 'disk_full'; END $$"
    )
    database.query(
        "CREATE TRIGGER full_disk BEFORE INSERT ON relay.saga_log FOR EACH ROW"
        " WHEN (new.event = 'SagaSuspended') EXECUTE FUNCTION full_disk()"
    )

    await travel.fire_often(conn, TIMER_RETRY.attempts + 2)
    assert status_of(database) == "RUNNING"
    assert "DiskFull: no space left" in caplog.text

    database.query("DROP TRIGGER full_disk ON relay.saga_log")
    await travel.fire_often(conn, 1)
    assert (status_of(database), reason_of(database)) == (
        "SUSPENDED",
        "at the next attempt of book: ValueError: no ink",
    )


async def test_a_batch_that_takes_long_leaves_the_rest_of_it_to_the_next(
    database: Database, conn: AsyncConnection[TupleRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their sagas are not locked meanwhile."""
    monkeypatch.setattr("relay.saga.jobs.BATCH_S", 0.0)
    travel = Travel()
    for name in ("Rome", "Oslo", "Bonn"):
        await travel.start(conn, name)

    database.query("UPDATE relay.saga_timer SET due_at = now()")

    for _ in range(3):
        async with conn.transaction():
            assert await travel.orchestrator.fire_due(conn) == 1

    assert logged(database).count("StepTimedOut book") == 3


@pytest.mark.parametrize("bug", ["book", "wants_car"])
async def test_what_raises_as_the_saga_is_started_reaches_who_starts_it_and_there_is_none(
    database: Database, conn: AsyncConnection[TupleRow], bug: str
) -> None:
    travel = Travel()
    beginning = Saga("beginning", state=Trip)
    beginning.step(to="cars", when=travel.wants_car, readonly=True)(travel.rent)
    beginning.step(to="hotel")(travel.book)
    travel.bugs = {bug: BUG}
    saga = beginning if bug == "wants_car" else travel.saga
    orchestrator = Orchestrator(Service("travel"), saga)

    with pytest.raises(ValueError, match="no\nink"):
        async with conn.transaction():
            await orchestrator.start(saga, Trip(name="Rome"), conn)

    assert database.value("SELECT count(*) FROM relay.saga") == 0
    assert database.value("SELECT count(*) FROM relay.saga_timer") == 0


async def test_what_raises_as_the_saga_is_aborted_reaches_who_aborts_it_and_nothing_has_happened(
    database: Database, conn: AsyncConnection[TupleRow]
) -> None:
    travel = Travel()
    saga_id = await travel.start(conn)
    await travel.fire(conn)
    before = logged(database)
    travel.bugs = {"cancel": BUG}

    with pytest.raises(ValueError, match="no\nink"):
        await travel.abort(conn, saga_id)

    assert (status_of(database), logged(database)) == ("RUNNING", before)


class Letter:
    """A reply in the hands of the service's loop."""

    def __init__(self, delivery: Delivery) -> None:
        self.delivery = delivery
        self.answers: list[str] = []

    def ack(self) -> None:
        self.answers.append("ack")

    def reject(self) -> None:
        self.answers.append("reject")

    async def pause(self, delay_s: float) -> None:
        """It need not be waited for."""


@pytest.mark.parametrize("bug", ["booked", "wants_car"], ids=["a handler of a reply", "a condition"])
async def test_a_reply_on_which_code_raises_is_dead_and_its_saga_does_not_wait_for_ever(
    database: Database, conn: AsyncConnection[TupleRow], bug: str
) -> None:
    """The step gets no answer: so it is tried again, each answer is dead, and at last the saga is undone."""
    travel = Travel()
    saga_id = await travel.start(conn)
    travel.bugs = {bug: BUG}

    async with pool_of(database) as pool:
        settling = Settling(travel.service._receiver, pool, Retry(attempts=1))
        for attempt in (1, 2):
            letter = Letter(delivery_of(Done(), last_sent(database)))
            await settling.settle(letter)
            assert letter.answers == ["ack"]
            await travel.fire(conn)  # no reply within a minute
            if attempt == 1:
                await travel.fire(conn)  # the next attempt

    dead = database.query(
        "SELECT type, history::text LIKE '%%ValueError: no ink%%' FROM relay.deferred WHERE dead_at IS NOT NULL"
    )
    assert dead == [("Done", True)] * 2
    assert (status_of(database), last_sent(database).type) == ("COMPENSATING", "Cancel")
    assert reason_of(database) == "no reply within 60 s"
    await then_the_log_tells_the_record(conn, database, saga_id)
