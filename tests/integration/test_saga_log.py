"""The permanent record: nobody changes it, and what the engine stores of a saga can be rebuilt from it."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from itertools import groupby
from uuid import UUID

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from pydantic import BaseModel

from relay.broker.properties import Delivery
from relay.messaging import Command, Compensated, Done, Failure, OperationCancelled, Reply, Retry, Service, Transaction
from relay.saga import Orchestrator, Record, Saga, Status, log
from relay.saga.log import Happened, LogEvent
from relay.saga.record import rebuild
from tests.support.database import Database
from tests.support.saga import Sent, connect, delivery_of, last_sent, sent

SAGAS = 800
"""For each seed."""

WORKERS = 3
ROUNDS_MAX = 300
LATER = timedelta(days=2)

POISONED = 29
"""Of every so manieth journey the flight cannot be asked for again: then its code raises."""


class Journey(BaseModel):
    name: str
    car: bool
    seat: int | None = None
    room: int | None = None
    tries: int = 0


class Booked(Reply):
    number: int


class Full(Failure):
    why: str


class Busy(Failure):
    pass


class Order(Command):
    replies = (Booked, Full, Busy)
    name: str


class Cancel(Command):
    replies = (Compensated, Busy)
    number: int | None


class Meet(Command):
    name: str


class Moody:
    """What local steps do: they write, and then they go well, refuse, or raise, as chance has it."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    async def act(self, journey: Journey, tx: Transaction) -> Failure | None:
        journey.tries += 1
        await tx.execute("INSERT INTO trips (name, state) VALUES (%s, 'open')", (journey.name,))
        mood = self._chance.random()
        if mood < 0.1:
            raise ValueError("no ink")
        if mood < 0.15:
            await tx.execute("SELECT 1 / 0")
        return Full(why="closed") if mood < 0.25 else None


class Agency:
    """Sagas with everything in them: parallel and conditional steps, alternatives, a pivot, steps after it, locks."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.firing = False
        self.service = Service("travel")
        self.sagas = [self._saga("tour", "reverse"), self._saga("cruise", "parallel"), self._queueing()]
        self.orchestrator = Orchestrator(self.service, *self.sagas, seed=seed)

    def _saga(self, name: str, compensation: str) -> Saga[Journey]:
        saga = Saga(name, state=Journey, timeout="1h", compensation=compensation)  # type: ignore[arg-type]
        moody = Moody(self.chance)
        thrice, twice = Retry(attempts=3, backoff="1s..4s"), Retry(attempts=2, backoff="1s..1s")

        @saga.local(retry=thrice)
        async def note(journey: Journey, tx: Transaction) -> Failure | None:
            return await moody.act(journey, tx)

        @note.compensate
        async def strike(journey: Journey, tx: Transaction) -> Failure | None:
            return await moody.act(journey, tx)

        with saga.parallel():

            @saga.step(to="air", retry=thrice, compensation_retry=thrice, transient=(Busy,))
            def fly(journey: Journey) -> Order:
                if self.firing and int(journey.name.split()[1]) % POISONED == 0:
                    raise ValueError("no such flight")
                return Order(name=journey.name)

            @saga.step(to="hotel", retry=twice, compensation_retry=twice, transient=(Busy,))
            def sleep(journey: Journey) -> Order:
                return Order(name=journey.name)

            @saga.step(to="cars", retry=twice, compensation_retry=twice, when=lambda journey: journey.car)
            def drive(journey: Journey) -> Order:
                return Order(name=journey.name)

        @sleep.or_else(to="hostel", retry=twice, compensation_retry=twice)
        def sleep_cheap(journey: Journey) -> Order:
            return Order(name=journey.name)

        for step in (fly, sleep, drive, sleep_cheap):

            @step.on(Booked)
            def booked(journey: Journey, reply: Booked) -> None:
                journey.seat = reply.number

            @step.on(Full)
            @step.on(Busy)
            def refused(journey: Journey, reply: Failure) -> None:
                journey.tries += 1

            @step.compensate
            def cancel(journey: Journey) -> Cancel:
                return Cancel(number=journey.seat)

        @saga.local(retry=twice, pivot=True)
        async def close(journey: Journey, tx: Transaction) -> Failure | None:
            return await moody.act(journey, tx)

        @saga.step(to="post", retry=thrice)
        def send_tickets(journey: Journey) -> Order:
            return Order(name=journey.name)

        for reply in (Booked, Full, Busy):
            send_tickets.on(reply)(lambda journey, reply: None)
        return saga

    def _queueing(self) -> Saga[Journey]:
        saga = Saga("visit", state=Journey, lock=lambda journey: ("city", journey.name[-1]), on_locked="wait")

        @saga.step(to="guide", retry=Retry(attempts=2, backoff="1s..1s"))
        def meet(journey: Journey) -> Meet:
            return Meet(name=journey.name)

        return saga


@pytest.fixture
def trips(database: Database) -> Database:
    database.query("CREATE TABLE trips (name text, state text NOT NULL)")
    database.query("GRANT ALL ON trips TO orders")
    return database


class Fate:
    """Plays participants, the network and the clock, as chance has it."""

    def __init__(self, agency: Agency, database: Database, seed: int) -> None:
        self._agency = agency
        self._database = database
        self._chance = random.Random(seed)
        self._seq = 0
        self._under_way: list[Delivery] = []
        self.aborted = 0

    async def start(self, conn: AsyncConnection[TupleRow], number: int) -> None:
        saga = self._chance.choice(self._agency.sagas)
        state = Journey(name=f"trip {number}", car=self._chance.random() < 0.5)
        try:
            async with conn.transaction():
                await self._agency.orchestrator.start(saga, state, conn)
        except (ValueError, psycopg.errors.DivisionByZero):
            pass  # the first step raised: there is no such saga

    async def round(self, conns: list[AsyncConnection[TupleRow]]) -> bool:
        """Let some time pass; whether anything is left to happen."""
        commands = sent(self._database, self._seq)
        self._seq = max([self._seq, *(command.seq for command in commands)])
        for command in commands:
            self._under_way += self._answers(command)
        self._chance.shuffle(self._under_way)
        some = self._chance.randint(0, len(self._under_way))
        arriving, self._under_way = self._under_way[:some], self._under_way[some:]
        work: Iterator[Delivery] = iter(arriving)
        await asyncio.gather(*(self._hear(conn, work) for conn in conns))
        await self._abort(conns[0], self._chance.randint(0, 6))
        self._agency.firing = True
        fired = await asyncio.gather(*(self._fire(conn) for conn in conns))
        self._agency.firing = False
        return bool(commands or self._under_way or any(fired))

    def _answers(self, command: Sent) -> list[Delivery]:
        """What a command is answered with: nothing, one reply, the same twice, or two that contradict each other."""
        mood = self._chance.random()
        if mood < 0.08:
            return []
        first = delivery_of(self._reply(command), command)
        if mood < 0.16:
            return [first, first]
        if mood < 0.24:
            return [first, delivery_of(self._reply(command), command)]
        return [first]

    def _reply(self, command: Sent) -> Reply:
        mood = self._chance.random()
        if command.compensates:
            return Compensated() if mood < 0.8 else Busy()
        if mood < 0.7:
            return Booked(number=self._chance.randint(1, 99)) if command.to != "guide" else Done()
        if mood < 0.75 or command.to == "guide":
            return OperationCancelled()
        return Full(why="no") if mood < 0.85 else Busy()

    async def _hear(self, conn: AsyncConnection[TupleRow], work: Iterator[Delivery]) -> None:
        for delivery in work:
            while True:
                try:
                    async with conn.transaction():
                        await self._agency.service.handle(delivery, conn)
                    break
                except psycopg.errors.DeadlockDetected:
                    continue

    async def _fire(self, conn: AsyncConnection[TupleRow]) -> int:
        async with conn.transaction():
            limit = self._chance.randint(1, 60)
            return await self._agency.orchestrator.fire_due(conn, limit=limit, at=datetime.now(UTC) + LATER)

    async def _abort(self, conn: AsyncConnection[TupleRow], count: int) -> None:
        unfinished = "SELECT id FROM relay.saga WHERE ended_at IS NULL ORDER BY id"
        sagas = [saga_id for (saga_id,) in self._database.query(unfinished) if isinstance(saga_id, UUID)]
        for saga_id in self._chance.sample(sagas, min(count, len(sagas))):
            async with conn.transaction():
                self.aborted += await self._agency.orchestrator.abort(saga_id, "the customer called", conn)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_thousands_of_random_sagas_are_rebuilt_from_their_logs(
    trips: Database, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.saga.tally.TIMER_RETRY", Retry(attempts=1, backoff="1s..1s"))
    agency = Agency(seed)
    fate = Fate(agency, trips, seed)
    async with AsyncExitStack() as stack:
        conns = [await stack.enter_async_context(await connect(trips)) for _ in range(WORKERS)]
        for number in range(SAGAS):
            await fate.start(conns[0], number)
        for _ in range(ROUNDS_MAX):
            if not await fate.round(conns):
                break
        else:
            raise AssertionError("it never ends")

    logs = logs_of(trips)
    rows = "SELECT id, status, state, progress, reason, events FROM relay.saga"
    for saga_id, status, state, progress, reason, events in trips.query(rows):
        record = Record.of(status, state, progress, reason)  # type: ignore[arg-type]
        assert rebuild(logs[saga_id]) == record
        assert len(logs[saga_id]) == events
        assert status in (Status.COMPLETED, Status.COMPENSATED, Status.SUSPENDED), logs[saga_id]
    then_everything_happened_somewhere(logs, fate)


def logs_of(database: Database) -> dict[object, list[LogEvent]]:
    rows = database.query(
        "SELECT saga_id, event, step, attempt, reason, detail FROM relay.saga_log ORDER BY saga_id, ordinal"
    )
    return {
        saga_id: [LogEvent(Happened(event), *rest) for _, event, *rest in events]  # type: ignore[arg-type]
        for saga_id, events in groupby(rows, lambda row: row[0])
    }


def then_everything_happened_somewhere(logs: dict[object, list[LogEvent]], fate: Fate) -> None:
    """A test of luck is worth something only if nearly everything came about."""
    seen = {event.what for events in logs.values() for event in events}
    assert set(Happened) - seen <= {Happened.OPERATOR_ACTION}
    assert any("timer" in event.detail for events in logs.values() for event in events), "none has stalled"
    assert fate.aborted
    assert len(logs) > SAGAS / 2


@pytest.fixture
async def conn(trips: Database) -> AsyncIterator[AsyncConnection[TupleRow]]:
    async with await connect(trips) as connection:
        yield connection


async def test_it_is_read_as_it_was_written(trips: Database, conn: AsyncConnection[TupleRow]) -> None:
    agency = Agency(1)
    async with conn.transaction():
        saga_id = await agency.orchestrator.start(agency.sagas[2], Journey(name="trip 1", car=False), conn)
    async with conn.transaction():
        await agency.service.handle(delivery_of(OperationCancelled(), last_sent(trips), "m1"), conn)

    events = await log.read(conn, saga_id)

    assert events[0].what is Happened.SAGA_STARTED
    assert events[0].detail["state"] == Journey(name="trip 1", car=False).model_dump(mode="json")
    failed = next(event for event in events if event.what is Happened.STEP_FAILED)
    assert (failed.step, failed.attempt, failed.reason) == ("meet", 1, "OperationCancelled")
    assert trips.query("SELECT DISTINCT message_id FROM relay.saga_log WHERE event = 'StepFailed'") == [("m1",)]


@pytest.mark.parametrize("change", ["UPDATE relay.saga_log SET reason = 'x'", "DELETE FROM relay.saga_log"])
@pytest.mark.parametrize("role", ["orders", "superuser"])
async def test_nobody_changes_it(trips: Database, conn: AsyncConnection[TupleRow], change: str, role: str) -> None:
    """A service has no right to; whoever has the right meets the trigger."""
    await given_an_event(conn)
    dsn = trips.role_dsn("orders") if role == "orders" else trips.superuser_dsn
    with psycopg.connect(dsn) as other, pytest.raises(psycopg.errors.InsufficientPrivilege) as refused:
        other.execute(change.encode())

    assert ("append-only" in str(refused.value)) is (role == "superuser")


@pytest.mark.parametrize("table", ["relay.saga_log", "relay.saga_log_default"])
async def test_nobody_empties_it(trips: Database, conn: AsyncConnection[TupleRow], table: str) -> None:
    await given_an_event(conn)
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
        trips.query(f"TRUNCATE {table}")


async def given_an_event(conn: AsyncConnection[TupleRow]) -> None:
    agency = Agency(1)
    async with conn.transaction():
        await agency.orchestrator.start(agency.sagas[2], Journey(name="trip 1", car=False), conn)
