"""What code of users, of strangers, or a session's settings must not be able to do to the engine."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Final
from uuid import UUID

import psycopg
import pytest
from psycopg import AsyncConnection, IsolationLevel
from psycopg.rows import TupleRow
from pydantic import BaseModel

from relay.broker.properties import COMMANDS, Delivery, HeaderValue, Properties
from relay.messaging import Command, Done, Failure, Outcome, Retry, Service, Transaction, Unprocessable
from relay.messaging.jobs import keep
from relay.messaging.uuid7 import uuid7
from relay.saga import Orchestrator, Saga, jobs
from relay.tasks import end
from tests.conftest import VirtualHost
from tests.support.courier import Courier
from tests.support.database import Database
from tests.support.notebook import SERVICE, Note, Notebook, pool_of, running, then_written
from tests.support.saga import connect, hear, last_sent, status_of
from tests.support.waiting import eventually

DEFERRED: Final = "SELECT message_id, dead_at IS NOT NULL FROM relay.deferred ORDER BY seq"


class Broken(Exception):
    """It cannot even say what it is."""

    def __str__(self) -> str:
        raise AttributeError("no words")


async def tell(courier: Courier, text: str, **headers: HeaderValue) -> None:
    named: dict[str, HeaderValue] = {"aggregate_type": "book", "aggregate_id": text[0], **headers}
    await courier.send(SERVICE, Note(text=text), message_id=text, headers=named)


@pytest.mark.parametrize("error", [asyncio.CancelledError, psycopg.OperationalError, Broken])
async def test_whatever_a_handler_raises_its_message_is_put_off_and_blocks_no_other(
    notes: Database, vhost: VirtualHost, courier: Courier, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where that looks like an end of its task, or like an absence of the database."""
    monkeypatch.setattr("relay.messaging.retry.AWAY_CAP_S", 0.1)
    notebook = Notebook(Retry(attempts=4, backoff="50ms..50ms"))

    def stumble(note: Note, _: Transaction) -> None:
        if note.text == "a1":
            raise error

    notebook.stumble = stumble
    async with running(notebook, notes.role_dsn(SERVICE), vhost.user_url(SERVICE)):
        for text in ("a1", "a2", "b1"):
            await tell(courier, text)
        await then_written(notes, "b1")
        await eventually(lambda: notes.query(DEFERRED) == [("a1", True), ("a2", False)])


async def test_a_number_of_any_length_is_no_attempt(notes: Database, vhost: VirtualHost, courier: Courier) -> None:
    async with running(Notebook(), notes.role_dsn(SERVICE), vhost.user_url(SERVICE)) as service:
        await tell(courier, "a1", operation="s/x/action", attempt="9" * 5_000)
        await then_written(notes, "a1")
        assert not service.done()


class Job(BaseModel):
    name: str
    lock: str = "1"


class Work(Command):
    name: str


class Raising:
    """A saga whose local step, which waits for its turn at first, raises what a test says; and one that is sound."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.service = Service("travel")
        self.error = error
        self.saga = saga = Saga("raising", state=Job, lock=lambda job: ("job", job.lock), on_locked="queue")
        saga.local(retry=Retry(attempts=1, backoff="1s..1s"), readonly=True)(self.note)
        saga.step(to="worker", readonly=True)(self.work)
        self.orchestrator = Orchestrator(self.service, saga, seed=1)

    async def note(self, job: Job, tx: Transaction) -> Failure | None:
        if job.name == "killer":
            await tx.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        if job.name == "bad" and self.error is not None:
            raise self.error
        return None

    def work(self, job: Job) -> Work:
        return Work(name=job.name)

    async def start(self, conn: AsyncConnection[TupleRow], name: str, lock: str = "1") -> UUID:
        async with conn.transaction():
            return await self.orchestrator.start(self.saga, Job(name=name, lock=lock), conn)


@pytest.fixture
async def conn(database: Database) -> AsyncIterator[AsyncConnection[TupleRow]]:
    async with await connect(database) as connection:
        yield connection


@pytest.mark.parametrize(
    "error", [asyncio.CancelledError(), psycopg.OperationalError("another database is away"), Broken()]
)
async def test_whatever_a_local_step_raises_is_a_failed_attempt(
    database: Database, conn: AsyncConnection[TupleRow], error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    raising = Raising(error)
    await raising.start(conn, "good")
    bad = await raising.start(conn, "bad")
    await hear(raising.service, conn, Done(), last_sent(database))  # a good one's work
    async with conn.transaction():
        assert await raising.orchestrator.fire_due(conn) == 1

    assert status_of(database, bad) == "COMPENSATED"
    assert [record.levelname for record in caplog.records if record.action == "step_given_up"] == ["ERROR"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("level", [IsolationLevel.READ_COMMITTED, IsolationLevel.REPEATABLE_READ])
async def test_who_queues_while_the_holder_ends_is_let_in_in_every_isolation(
    database: Database, conn: AsyncConnection[TupleRow], level: IsolationLevel
) -> None:
    raising = Raising()
    await raising.start(conn, "good")
    command = last_sent(database)
    await conn.set_isolation_level(level)
    async with await connect(database) as other:
        await other.set_isolation_level(level)
        for again in (False, True):  # who loses against another transaction begins again
            try:
                async with conn.transaction():
                    await conn.execute("SELECT FROM relay.saga")  # from here on it sees what was then
                    if not again:
                        waiting = await raising.start(other, "second")
                    await hear(raising.service, conn, Done(), command)
                break
            except psycopg.errors.SerializationFailure:
                assert level is not IsolationLevel.READ_COMMITTED
        async with other.transaction():
            await raising.orchestrator.fire_due(other)

    assert status_of(database, waiting) == "RUNNING"


async def test_a_local_step_that_breaks_its_connection_does_not_hold_up_the_timers_of_others(
    database: Database, conn: AsyncConnection[TupleRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.saga.jobs.TIMER_POLL_S", 0.05)
    raising = Raising()
    await raising.start(conn, "good", "1")
    killer = await raising.start(conn, "killer", "1")
    await hear(raising.service, conn, Done(), last_sent(database))
    await raising.start(conn, "good", "2")
    waiting = await raising.start(conn, "good", "2")
    await hear(raising.service, conn, Done(), last_sent(database))
    # Both are in one batch, and the one that kills it is the first.
    database.query("UPDATE relay.saga_timer SET due_at = now() - interval '1 minute' WHERE purpose = 'lock'")
    job = jobs.TimerJob(raising.service.name, raising.orchestrator.fire_due)
    async with pool_of(database.role_dsn("orders")) as pool:
        firing = asyncio.create_task(keep("travel", "timers", job.run, pool))
        await eventually(lambda: status_of(database, waiting) == "RUNNING")
        await eventually(lambda: database.value("SELECT max(interruptions) FROM relay.saga_timer") != 0)
        await end(firing)

    assert status_of(database, killer) == "WAITING"


class Undo(Command):
    name: str


def begun_ago(days: int) -> UUID:
    """The id of a saga that began so long ago: its first bits are the time."""
    began_ms = int((time.time() - days * 86_400) * 1000)
    return UUID(int=began_ms << 80 | uuid7().int & ((1 << 80) - 1))


@pytest.mark.parametrize(("days", "outcome"), [(89, "Compensated"), (91, None)])
async def test_nobody_says_that_something_is_undone_which_may_have_been_forgotten(
    notes: Database, days: int, outcome: str | None
) -> None:
    service = Service(SERVICE)

    @service.compensation(Undo)
    async def undo(command: Undo, tx: Transaction) -> None:
        raise AssertionError("it has not been done")

    saga_id = begun_ago(days)
    headers: dict[str, HeaderValue] = {"operation": f"{saga_id}/x/action", "compensation": "1"}
    said = Properties("m1", type="Undo", reply_to="travel", headers=headers)
    delivery = Delivery(1, COMMANDS, SERVICE, False, said, b'{"name": "a"}')
    async with await AsyncConnection.connect(notes.role_dsn(SERVICE), autocommit=True) as conn:
        if outcome is None:
            with pytest.raises(Unprocessable, match="forgotten"):
                async with conn.transaction():
                    await service.handle(delivery, conn)
        else:
            async with conn.transaction():
                assert await service.handle(delivery, conn) is Outcome.HANDLED

    assert notes.value("SELECT max(type) FROM relay.outbox") == outcome


async def test_an_action_whose_cancellation_may_have_been_forgotten_is_not_done_when_it_is_replayed(
    notes: Database, vhost: VirtualHost, courier: Courier
) -> None:
    notebook = Notebook()
    notes.query(
        "INSERT INTO relay.deferred (consumer, message_id, aggregate_type, aggregate_id, type, properties, body)"
        " VALUES (%s, 'a1', 'book', 'a', 'Note', %s, %s)",
        *(SERVICE, f'{{"message_id": "a1", "type": "Note", "headers": {{"operation": "{begun_ago(91)}/x/action"}}}}'),
        b'{"text": "a1"}',
    )
    async with running(notebook, notes.role_dsn(SERVICE), vhost.user_url(SERVICE)):
        await eventually(lambda: notes.query(DEFERRED) == [("a1", True)])
    assert "forgotten" in str(notes.value("SELECT history FROM relay.deferred"))
    assert notes.value("SELECT count(*) FROM relay.inbox") == 0


class Visit(BaseModel):
    name: str


class Twofold:
    """A saga with two steps under way at once; its answers come in any order, and one of them may be dead."""

    def __init__(self) -> None:
        self.service = Service("travel")
        self.saga = saga = Saga("visit", state=Visit)
        with saga.parallel():
            saga.step(to="worker", readonly=True)(self.see)
            saga.step(to="worker", readonly=True)(self.hear)
        self.orchestrator = Orchestrator(self.service, saga)
        self.service.command(Work)(self.work)
        self.service.compensation(Undo)(self.undo)

    def see(self, visit: Visit) -> Work:
        return Work(name=visit.name)

    def hear(self, visit: Visit) -> Work:
        return Work(name=visit.name)

    async def work(self, command: Work, tx: Transaction) -> None: ...

    async def undo(self, command: Undo, tx: Transaction) -> None: ...


def given_a_dead_message(database: Database, saga_id: UUID) -> None:
    database.query(
        "INSERT INTO relay.deferred"
        " (consumer, message_id, aggregate_type, aggregate_id, type, properties, body, dead_at)"
        " VALUES ('travel', 'dead', 'visit', %s, 'Work', '{}', '', now())",
        str(saga_id),
    )


def message(saga_id: UUID, name: str, body: str, **headers: HeaderValue) -> Delivery:
    of_it: dict[str, HeaderValue] = {"aggregate_type": "visit", "aggregate_id": str(saga_id), **headers}
    return Delivery(1, COMMANDS, "travel", False, Properties(f"m-{name}", type=name, headers=of_it), body.encode())


@pytest.mark.parametrize(
    ("name", "headers", "outcome"),
    [
        ("Done", {"operation": "{}/see/action"}, Outcome.HANDLED),
        ("Undo", {"operation": "{}/see/action", "compensation": "1"}, Outcome.HANDLED),
        ("Work", {"operation": "{}/see/action"}, Outcome.DEFERRED),
        ("Undo", {}, Outcome.DEFERRED),
    ],
    ids=["a reply", "what undoes", "an action", "what has no operation"],
)
async def test_only_what_a_saga_takes_in_any_order_passes_a_dead_message(
    database: Database, conn: AsyncConnection[TupleRow], name: str, headers: dict[str, str], outcome: Outcome
) -> None:
    """An action that can never be done must not keep the saga from being undone, nor an answer others from arriving."""
    twofold = Twofold()
    async with conn.transaction():
        saga_id = await twofold.orchestrator.start(twofold.saga, Visit(name="Rome"), conn)
    given_a_dead_message(database, saga_id)

    body = "{}" if name == "Done" else '{"name": "Rome"}'
    said: dict[str, HeaderValue] = {key: value.format(saga_id) for key, value in headers.items()}
    async with conn.transaction():
        assert await twofold.service.handle(message(saga_id, name, body, **said), conn) is outcome
