"""A local step that takes too long has failed: it is cancelled, leaves nothing behind, and its saga is free again."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, TypeAlias
from uuid import UUID

import pytest
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from pydantic import BaseModel

from relay.messaging import Command, Done, Failure, Retry, Service, Transaction
from relay.saga import Orchestrator, Saga, TookTooLong
from tests.support.database import Database
from tests.support.saga import (
    connect,
    hear,
    last_sent,
    logged,
    record_of,
    status_of,
    then_the_log_tells_the_record,
)

TIMEOUT: Final = "300ms"
IN_TIME_S: Final = 5.0
"""Long before anything here is done by itself."""

TOO_LONG: Final = "TookTooLong: not done within 0.3 s"


class Trip(BaseModel):
    name: str
    notes: int = 0


class Book(Command):
    name: str


Slow: TypeAlias = Callable[[Transaction], Awaitable[None]]


async def a_query(tx: Transaction) -> None:
    await tx.execute("SELECT pg_sleep(60)")


async def something_else(tx: Transaction) -> None:
    await asyncio.Event().wait()


async def a_lock_that_somebody_else_has(tx: Transaction) -> None:
    await tx.execute("SELECT FROM taken FOR UPDATE")


async def a_query_whose_cancellation_it_swallows(tx: Transaction) -> None:
    try:
        await a_query(tx)
    except asyncio.CancelledError:
        await tx.execute("SELECT")  # the transaction has failed: nothing can be done in it


async def something_else_whose_cancellation_it_swallows_once(tx: Transaction) -> None:
    try:
        await something_else(tx)
    except asyncio.CancelledError:
        await something_else(tx)


async def something_else_whose_cancellation_it_swallows_for_good(tx: Transaction) -> None:
    """And then it goes on writing, as if all were well."""
    try:
        await something_else(tx)
    except asyncio.CancelledError:
        await tx.execute("INSERT INTO notes VALUES ('late')")


SLOW: Final[list[Slow]] = [
    a_query,
    something_else,
    a_lock_that_somebody_else_has,
    a_query_whose_cancellation_it_swallows,
    something_else_whose_cancellation_it_swallows_once,
    something_else_whose_cancellation_it_swallows_for_good,
]
whatever_it_awaits = pytest.mark.parametrize("slow", SLOW, ids=lambda slow: slow.__name__)


class Travel:
    """Opens, books, notes, closes: local steps but for the booking. Those in `slow` take longer than they may."""

    def __init__(self, *, attempts: int = 2) -> None:
        self.slow: dict[str, Slow] = {}
        self.service = Service("travel")
        self.saga = saga = Saga("trip", state=Trip)
        retry = Retry(attempts=attempts, backoff="1s..1s")
        first = saga.local(timeout=TIMEOUT, compensation_retry=retry)(self.open)
        first.compensate(self.reopen)
        saga.step(to="hotel", readonly=True)(self.book)
        saga.local(timeout=TIMEOUT, readonly=True, retry=retry)(self.note)
        saga.local(pivot=True)(self.close)
        saga.local(timeout=TIMEOUT, retry=retry)(self.file)
        self.orchestrator = Orchestrator(self.service, saga, seed=1)

    def book(self, trip: Trip) -> Book:
        return Book(name=trip.name)

    async def open(self, trip: Trip, tx: Transaction) -> Failure | None:
        return await self._work("open", trip, tx)

    async def reopen(self, trip: Trip, tx: Transaction) -> Failure | None:
        return await self._work("reopen", trip, tx)

    async def note(self, trip: Trip, tx: Transaction) -> Failure | None:
        return await self._work("note", trip, tx)

    async def close(self, trip: Trip, tx: Transaction) -> Failure | None:
        return None

    async def file(self, trip: Trip, tx: Transaction) -> Failure | None:
        return await self._work("file", trip, tx)

    async def start(self, conn: AsyncConnection[TupleRow]) -> UUID:
        async with conn.transaction():
            return await self.orchestrator.start(self.saga, Trip(name="Rome"), conn)

    async def fire(self, conn: AsyncConnection[TupleRow], database: Database) -> None:
        """The next attempt of whatever is to be tried again."""
        database.query("UPDATE relay.saga_timer SET due_at = now() WHERE purpose LIKE '%%retry'")
        async with conn.transaction():
            await self.orchestrator.fire_due(conn)

    async def _work(self, name: str, trip: Trip, tx: Transaction) -> Failure | None:
        trip.notes += 1
        await tx.execute("INSERT INTO notes VALUES (%s)", (name,))
        if name in self.slow:
            await self.slow[name](tx)
        return None


@pytest.fixture(autouse=True)
def soon_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.messaging.deadline.AGAIN_S", 0.5)


@pytest.fixture
def notes(database: Database) -> Database:
    database.query("CREATE TABLE notes (text text)")
    database.query("CREATE TABLE taken AS SELECT 1 AS one")
    database.query("GRANT ALL ON notes, taken TO orders")
    return database


@pytest.fixture
async def conn(notes: Database) -> AsyncIterator[AsyncConnection[TupleRow]]:
    async with await connect(notes) as other, other.transaction():
        await other.execute("SELECT FROM taken FOR UPDATE")
        async with await connect(notes) as connection:
            yield connection


def written(notes: Database) -> list[object]:
    return [text for (text,) in notes.query("SELECT text FROM notes")]


def reasons(notes: Database, event: str) -> list[object]:
    return [reason for (reason,) in notes.query("SELECT reason FROM relay.saga_log WHERE event = %s", event)]


@whatever_it_awaits
async def test_a_step_that_takes_too_long_is_a_failed_attempt_that_leaves_nothing_behind(
    notes: Database, conn: AsyncConnection[TupleRow], slow: Slow
) -> None:
    travel = Travel()
    saga_id = await travel.start(conn)
    travel.slow = {"note": slow}
    begun_s = time.monotonic()

    await hear(travel.service, conn, Done(), last_sent(notes))

    assert time.monotonic() - begun_s < IN_TIME_S
    assert logged(notes)[-1] == "StepFailed note"
    assert reasons(notes, "StepFailed") == [TOO_LONG]
    assert (written(notes), record_of(notes, saga_id).state["notes"]) == (["open"], 1)
    assert (
        notes.value("SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query ~ '^SELECT pg_sleep'") == 0
    )
    await then_the_log_tells_the_record(conn, notes, saga_id)


@whatever_it_awaits
async def test_it_is_tried_again_and_goes_on_when_it_is_quick_enough(
    notes: Database, conn: AsyncConnection[TupleRow], slow: Slow
) -> None:
    travel = Travel()
    await travel.start(conn)
    travel.slow = {"note": slow}
    await hear(travel.service, conn, Done(), last_sent(notes))
    travel.slow = {}

    await travel.fire(conn, notes)

    assert status_of(notes) == "COMPLETED"
    assert written(notes) == ["open", "note", "file"]


async def test_its_saga_is_free_for_others_as_soon_as_the_time_is_over(
    notes: Database, conn: AsyncConnection[TupleRow]
) -> None:
    travel = Travel()
    saga_id = await travel.start(conn)
    travel.slow = {"note": something_else}
    hearing = asyncio.create_task(hear(travel.service, conn, Done(), last_sent(notes)))
    async with await connect(notes) as other, other.transaction():
        await asyncio.wait_for(other.execute("SELECT FROM relay.saga WHERE id = %s FOR UPDATE", (saga_id,)), IN_TIME_S)
    await hearing


async def test_when_its_budget_is_spent_before_the_pivot_the_saga_is_undone(
    notes: Database, conn: AsyncConnection[TupleRow]
) -> None:
    travel = Travel()
    await travel.start(conn)
    travel.slow = {"note": a_query}
    await hear(travel.service, conn, Done(), last_sent(notes))

    await travel.fire(conn, notes)

    assert status_of(notes) == "COMPENSATED"
    assert notes.value("SELECT reason FROM relay.saga") == TOO_LONG
    assert written(notes) == ["open", "reopen"]


async def test_when_its_budget_is_spent_after_the_pivot_the_saga_is_suspended(
    notes: Database, conn: AsyncConnection[TupleRow]
) -> None:
    travel = Travel()
    saga_id = await travel.start(conn)
    travel.slow = {"file": a_query}
    await hear(travel.service, conn, Done(), last_sent(notes))

    await travel.fire(conn, notes)

    assert status_of(notes) == "SUSPENDED"
    assert notes.value("SELECT reason FROM relay.saga") == f"file: {TOO_LONG}"
    await then_the_log_tells_the_record(conn, notes, saga_id)


async def test_what_undoes_it_has_as_much_time_and_a_budget_of_its_own(
    notes: Database, conn: AsyncConnection[TupleRow]
) -> None:
    travel = Travel(attempts=3)
    saga_id = await travel.start(conn)
    await hear_a_refusal(travel, conn, notes)
    assert reasons(notes, "CompensationFailed") == [TOO_LONG]
    assert status_of(notes) == "COMPENSATING"

    await travel.fire(conn, notes)
    travel.slow = {}
    await travel.fire(conn, notes)

    assert status_of(notes) == "COMPENSATED"
    assert reasons(notes, "CompensationFailed") == [TOO_LONG] * 2
    assert written(notes) == ["open", "reopen"]
    await then_the_log_tells_the_record(conn, notes, saga_id)


async def test_what_cannot_be_undone_in_time_suspends_the_saga(
    notes: Database, conn: AsyncConnection[TupleRow]
) -> None:
    travel = Travel(attempts=1)
    await travel.start(conn)

    await hear_a_refusal(travel, conn, notes)

    assert status_of(notes) == "SUSPENDED"
    assert notes.value("SELECT reason FROM relay.saga") == f"open cannot be undone: {TOO_LONG}"


async def hear_a_refusal(travel: Travel, conn: AsyncConnection[TupleRow], notes: Database) -> None:
    """Nobody has heard of this booking, so the saga is undone; that takes too long."""
    travel.slow = {"reopen": a_query}
    async with conn.transaction():
        saga_id = last_sent(notes).saga_id
        await travel.orchestrator.abort(saga_id, "enough", conn)
    await hear(travel.service, conn, Done(), last_sent(notes))


@whatever_it_awaits
async def test_who_starts_a_saga_whose_first_step_takes_too_long_is_told(
    notes: Database, conn: AsyncConnection[TupleRow], slow: Slow
) -> None:
    travel = Travel()
    travel.slow = {"open": slow}

    with pytest.raises(TookTooLong, match=r"not done within 0\.3 s"):
        await travel.start(conn)

    assert notes.value("SELECT count(*) FROM relay.saga") == 0
    assert written(notes) == []


async def test_a_step_that_says_nothing_about_it_has_the_time_that_the_docs_tell(
    notes: Database, conn: AsyncConnection[TupleRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.saga.step.LOCAL_TIMEOUT", TIMEOUT)
    saga = Saga("hasty", state=Trip)

    @saga.local()
    async def sleep(trip: Trip, tx: Transaction) -> None:
        await a_query(tx)

    orchestrator = Orchestrator(Service("hasty"), saga)
    with pytest.raises(TookTooLong):
        async with conn.transaction():
            await orchestrator.start(saga, Trip(name="Rome"), conn)
