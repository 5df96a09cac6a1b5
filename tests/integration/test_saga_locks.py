"""What a saga works on is locked: a second saga on it fails, waits or queues, and nobody is forgotten."""

import asyncio
from collections.abc import AsyncIterator
from typing import Literal
from uuid import UUID

import pytest
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from pydantic import BaseModel

from relay.messaging import Command, Done, Failure, OperationCancelled, Reply, Retry, Service, Transaction
from relay.saga import Locked, Orchestrator, Saga, jobs, locks
from tests.support.database import Database
from tests.support.saga import Sent, connect, hear, logged, sent, status_of, then_the_log_tells_the_record
from tests.support.waiting import eventually

WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
STARTERS = 8
ROUNDS = 12


class Order(BaseModel):
    order_id: str


class Ship(Command):
    order_id: str


class Broken(Failure):
    pass


class Shipping:
    """A saga that works on an order, and ends with the first reply."""

    def __init__(self, on_locked: Literal["fail", "wait", "queue"], service: str = "travel") -> None:
        self.service = Service(service)
        self.saga = saga = Saga("ship", state=Order, lock=self.lock, on_locked=on_locked, lock_timeout="5m")
        saga.local()(self.check).compensate(self.forget)
        once = Retry(attempts=1, backoff="1s..1s")
        step = saga.step(to="carrier", retry=once, compensation_retry=once)(self.ship)
        step.on(Done)(self.shipped)
        step.on(Broken)(self.broken)
        step.compensate(self.stop)
        saga.local(pivot=True)(self.close)
        self.orchestrator = Orchestrator(self.service, saga)

    def lock(self, order: Order) -> tuple[str, str]:
        return "order", order.order_id

    async def check(self, order: Order, tx: Transaction) -> None:
        return None

    async def forget(self, order: Order, tx: Transaction) -> None:
        return None

    def ship(self, order: Order) -> Ship:
        return Ship(order_id=order.order_id)

    def stop(self, order: Order) -> Ship:
        return Ship(order_id=order.order_id)

    def shipped(self, order: Order, reply: Done) -> None: ...

    def broken(self, order: Order, reply: Broken) -> None: ...

    async def close(self, order: Order, tx: Transaction) -> None:
        return None

    async def start(self, conn: AsyncConnection[TupleRow], order_id: str = "7") -> UUID:
        async with conn.transaction():
            return await self.orchestrator.start(self.saga, Order(order_id=order_id), conn)

    async def fire(self, conn: AsyncConnection[TupleRow]) -> int:
        async with conn.transaction():
            return await self.orchestrator.fire_due(conn)

    async def end(self, conn: AsyncConnection[TupleRow], command: Sent, reply: Reply | None = None) -> None:
        await hear(self.service, conn, reply or Done(), command)


@pytest.fixture
async def conn(database: Database) -> AsyncIterator[AsyncConnection[TupleRow]]:
    async with await connect(database) as connection:
        yield connection


def command_of(database: Database, saga_id: UUID) -> Sent:
    (command,) = [command for command in sent(database) if command.saga_id == saga_id]
    return command


async def test_a_saga_holds_what_it_works_on_until_it_ends(database: Database, conn: AsyncConnection[TupleRow]) -> None:
    shipping = Shipping("fail")
    saga_id = await shipping.start(conn)

    assert await locks.holder(conn, ("order", "7")) == saga_id
    assert await locks.holder(conn, ("order", "8")) is None
    await shipping.end(conn, command_of(database, saga_id))
    assert status_of(database) == "COMPLETED"
    assert await locks.holder(conn, ("order", "7")) is None
    assert database.value("SELECT count(*) FROM relay.saga_lock") == 0


async def test_a_saga_that_is_undone_lets_go_too(database: Database, conn: AsyncConnection[TupleRow]) -> None:
    shipping = Shipping("fail")
    saga_id = await shipping.start(conn)

    await shipping.end(conn, command_of(database, saga_id), Broken())

    assert status_of(database) == "COMPENSATED"
    assert await locks.holder(conn, ("order", "7")) is None


async def test_a_second_saga_fails_and_is_told_who_holds_it(
    database: Database, conn: AsyncConnection[TupleRow]
) -> None:
    shipping = Shipping("fail")
    first = await shipping.start(conn)

    with pytest.raises(Locked, match=f"order/7 is being worked on by saga {first}") as refused:
        await shipping.start(conn)

    assert refused.value.holder == first
    assert database.value("SELECT count(*) FROM relay.saga") == 1
    await shipping.start(conn, "8")


async def test_what_is_called_alike_when_it_is_put_together_is_not_the_same(
    database: Database, conn: AsyncConnection[TupleRow]
) -> None:
    async with conn.transaction():
        await locks.take(conn, locks.resource_of(("order/7", "line")), UUID(int=1), "orders")

    assert await locks.holder(conn, ("order/7", "line")) == UUID(int=1)
    assert await locks.holder(conn, ("order", "7/line")) is None


async def test_a_rolled_back_start_holds_nothing(conn: AsyncConnection[TupleRow]) -> None:
    shipping = Shipping("fail")
    async with conn.transaction(force_rollback=True):
        await shipping.orchestrator.start(shipping.saga, Order(order_id="7"), conn)

    assert await locks.holder(conn, ("order", "7")) is None


async def test_a_second_saga_waits_and_starts_when_the_first_has_ended(
    database: Database, conn: AsyncConnection[TupleRow]
) -> None:
    shipping = Shipping("wait")
    first, second = await shipping.start(conn), await shipping.start(conn)
    assert (status_of(database, second), logged(database, second)) == ("WAITING", ["SagaWaiting"])

    await shipping.end(conn, command_of(database, first))
    assert await locks.holder(conn, ("order", "7")) == second
    await shipping.fire(conn)

    assert status_of(database, second) == "RUNNING"
    await then_the_log_tells_the_record(conn, database, second)
    await shipping.end(conn, command_of(database, second))
    assert status_of(database, second) == "COMPLETED"
    await then_the_log_tells_the_record(conn, database, second)


async def test_those_that_queue_are_let_in_as_they_came(database: Database, conn: AsyncConnection[TupleRow]) -> None:
    shipping = Shipping("queue")
    line = [await shipping.start(conn) for _ in range(5)]
    # Where a row lies in the table says nothing about its turn.
    database.query("UPDATE relay.saga_lock SET service = service WHERE saga_id = %s", line[1])

    for saga_id in line:
        await shipping.fire(conn)
        await shipping.end(conn, command_of(database, saga_id))

    assert [command.saga_id for command in sent(database)] == line
    assert database.value("SELECT count(*) FROM relay.saga_lock") == 0


async def test_who_waits_gives_up_after_a_while(database: Database, conn: AsyncConnection[TupleRow]) -> None:
    shipping = Shipping("wait")
    first, second, third = [await shipping.start(conn) for _ in range(3)]
    assert database.query(
        "SELECT DISTINCT extract(epoch FROM due_at - now()) > 290 FROM relay.saga_timer WHERE purpose = 'lock_timeout'"
    ) == [(True,)]

    database.query("UPDATE relay.saga_timer SET due_at = now() WHERE saga_id = %s", second)
    await shipping.fire(conn)

    assert status_of(database, second) == "COMPENSATED"
    await then_the_log_tells_the_record(conn, database, second)
    assert await locks.holder(conn, ("order", "7")) == first
    await shipping.end(conn, command_of(database, first))
    assert await locks.holder(conn, ("order", "7")) == third


async def test_who_queues_has_no_timeout(database: Database, conn: AsyncConnection[TupleRow]) -> None:
    shipping = Shipping("queue")
    await shipping.start(conn)
    await shipping.start(conn)

    assert database.query("SELECT purpose FROM relay.saga_timer WHERE purpose = 'lock_timeout'") == []


async def test_one_that_was_let_in_and_is_aborted_lets_in_the_next(
    database: Database, conn: AsyncConnection[TupleRow]
) -> None:
    shipping = Shipping("queue")
    first, second, third = [await shipping.start(conn) for _ in range(3)]
    await shipping.end(conn, command_of(database, first))

    async with conn.transaction():
        assert await shipping.orchestrator.abort(second, "not needed", conn)

    assert await locks.holder(conn, ("order", "7")) == third
    await shipping.fire(conn)
    assert (status_of(database, second), status_of(database, third)) == ("COMPENSATED", "RUNNING")


async def test_a_suspended_saga_keeps_what_it_holds(database: Database, conn: AsyncConnection[TupleRow]) -> None:
    shipping = Shipping("fail")
    saga_id = await shipping.start(conn)
    async with conn.transaction():
        await shipping.orchestrator.abort(saga_id, "over", conn)
    await shipping.end(conn, command_of(database, saga_id))

    await shipping.end(conn, sent(database)[-1], OperationCancelled())

    assert status_of(database) == "SUSPENDED"
    assert await locks.holder(conn, ("order", "7")) == saga_id


async def test_the_service_of_who_waits_starts_it(database: Database, conn: AsyncConnection[TupleRow]) -> None:
    here, there = Shipping("queue", "travel"), Shipping("queue", "freight")
    first = await here.start(conn)
    second = await there.start(conn)
    await here.end(conn, command_of(database, first))

    await here.fire(conn)
    assert status_of(database, second) == "WAITING"
    await there.fire(conn)
    assert status_of(database, second) == "RUNNING"


async def test_a_start_waits_for_the_one_that_is_not_committed_yet(
    database: Database, conn: AsyncConnection[TupleRow]
) -> None:
    shipping = Shipping("fail")
    async with await connect(database) as other:
        async with conn.transaction():
            first = await shipping.orchestrator.start(shipping.saga, Order(order_id="7"), conn)
            second = asyncio.create_task(shipping.start(other))
            await eventually(lambda: database.value(WAITING) == 1)
        with pytest.raises(Locked, match=str(first)):
            await second


async def test_a_start_gets_in_when_the_other_one_is_rolled_back(
    database: Database, conn: AsyncConnection[TupleRow]
) -> None:
    shipping = Shipping("fail")
    async with await connect(database) as other:
        async with conn.transaction(force_rollback=True):
            await shipping.orchestrator.start(shipping.saga, Order(order_id="7"), conn)
            second = asyncio.create_task(shipping.start(other))
            await eventually(lambda: database.value(WAITING) == 1)
        saga_id = await second
        assert await locks.holder(conn, ("order", "7")) == saga_id


async def test_an_end_waits_for_the_one_that_is_about_to_queue(
    database: Database, conn: AsyncConnection[TupleRow]
) -> None:
    """The lost wake-up: whoever ends cannot see the row of one that queues and has not committed."""
    shipping = Shipping("queue")
    first = await shipping.start(conn)
    async with await connect(database) as other:
        async with conn.transaction():
            second = await shipping.orchestrator.start(shipping.saga, Order(order_id="7"), conn)
            ending = asyncio.create_task(shipping.end(other, command_of(database, first)))
            await eventually(lambda: database.value(WAITING) == 1)
        await ending

    assert await locks.holder(conn, ("order", "7")) == second


class Asking:
    """A saga that works on an order, and is undone when nobody answers its only question."""

    def __init__(self) -> None:
        self.service = Service("travel")
        self.saga = saga = Saga("ask", state=Order, lock=lambda order: ("order", order.order_id), on_locked="queue")
        saga.step(to="carrier", readonly=True, retry=Retry(attempts=1))(self.ask)
        self.orchestrator = Orchestrator(self.service, saga)

    def ask(self, order: Order) -> Ship:
        return Ship(order_id=order.order_id)


async def test_an_end_by_a_timer_waits_not_for_long_and_the_timers_of_others_are_fired(
    database: Database, conn: AsyncConnection[TupleRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is about to queue may keep its transaction open for as long as it likes."""
    monkeypatch.setattr(jobs, "LOCK_WAIT_S", 0.2)
    asking = Asking()

    async def start(order_id: str) -> UUID:
        return await asking.orchestrator.start(asking.saga, Order(order_id=order_id), conn)

    async with conn.transaction():
        first, other = await start("7"), await start("8")
    job = jobs.TimerJob(asking.service.name, asking.orchestrator.fire_due)
    async with await connect(database) as firing:
        async with conn.transaction():
            second = await start("7")
            database.query("UPDATE relay.saga_timer SET due_at = now()")
            async with asyncio.timeout(10):
                await job.fire(firing)
            assert (status_of(database, first), status_of(database, other)) == ("RUNNING", "COMPENSATED")
        database.query("UPDATE relay.saga_timer SET due_at = now() WHERE fired_at IS NULL AND saga_id = %s", first)
        await job.fire(firing)

    assert status_of(database, first) == "COMPENSATED"
    assert await locks.holder(conn, ("order", "7")) == second


async def test_who_comes_while_the_holder_ends_gets_in(database: Database, conn: AsyncConnection[TupleRow]) -> None:
    """The other half of it: one that queues behind a holder whose end is not committed yet."""
    shipping = Shipping("queue")
    first = await shipping.start(conn)
    async with await connect(database) as other:
        async with conn.transaction():
            await hear(shipping.service, conn, Done(), command_of(database, first))
            second = asyncio.create_task(shipping.start(other))
            await eventually(lambda: database.value(WAITING) == 1)
        saga_id = await second
        assert await locks.holder(conn, ("order", "7")) == saga_id

    assert status_of(database, saga_id) == "RUNNING"


async def test_who_queues_just_after_the_holder_has_ended_gets_in(
    database: Database, conn: AsyncConnection[TupleRow]
) -> None:
    """The holder was there when the lock was asked for, and is gone when the queue is joined."""
    shipping = Shipping("queue")
    first = await shipping.start(conn)
    database.query(
        "CREATE FUNCTION hold_up() RETURNS trigger LANGUAGE plpgsql AS $$"
        " BEGIN PERFORM pg_advisory_xact_lock(1); RETURN new; END $$"
    )
    database.query(
        "CREATE TRIGGER hold_up BEFORE INSERT ON relay.saga_lock FOR EACH ROW"
        " WHEN (new.taken_at IS NULL) EXECUTE FUNCTION hold_up()"
    )
    async with await connect(database) as other:
        async with conn.transaction():
            await conn.execute("SELECT pg_advisory_xact_lock(1)")
            second = asyncio.create_task(shipping.start(other))
            await eventually(lambda: database.value(WAITING) == 1)
            async with await connect(database) as third:
                await shipping.end(third, command_of(database, first))
        saga_id = await second

    assert await locks.holder(conn, ("order", "7")) == saga_id
    assert status_of(database, saga_id) == "RUNNING"


async def test_a_waiter_that_gives_up_as_the_holder_ends_is_passed_over(
    database: Database, conn: AsyncConnection[TupleRow]
) -> None:
    shipping = Shipping("queue")
    first, second, third = [await shipping.start(conn) for _ in range(3)]
    async with await connect(database) as other:
        async with conn.transaction():
            await shipping.orchestrator.abort(second, "not needed", conn)
            ending = asyncio.create_task(shipping.end(other, command_of(database, first)))
            await eventually(lambda: database.value(WAITING) == 1)
        await ending

    assert await locks.holder(conn, ("order", "7")) == third


async def test_an_aborted_waiter_that_was_just_let_in_passes_it_on(
    database: Database, conn: AsyncConnection[TupleRow]
) -> None:
    shipping = Shipping("queue")
    first, second, third = [await shipping.start(conn) for _ in range(3)]
    async with await connect(database) as other:
        async with conn.transaction():
            await hear(shipping.service, conn, Done(), command_of(database, first))
            abort = asyncio.create_task(_abort(shipping, other, second))
            await eventually(lambda: database.value(WAITING) == 1)
        assert await abort

    assert await locks.holder(conn, ("order", "7")) == third


async def test_many_start_and_end_at_once_and_each_works_alone(database: Database) -> None:
    """Eight starters, three orders, instances that end and fire: every saga gets its turn, and none shares it."""
    shipping = Shipping("queue")
    started: list[UUID] = []
    done = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        firing = group.create_task(_fire_until(shipping, database, done))
        ending = group.create_task(_end_until(shipping, database, done))
        starters = [asyncio.create_task(_start_many(shipping, database, started)) for _ in range(STARTERS)]
        await asyncio.gather(*starters)
        await eventually(lambda: database.value("SELECT count(*) FROM relay.saga WHERE ended_at IS NULL") == 0, 60)
        done.set()
        await asyncio.gather(firing, ending)

    assert database.value("SELECT count(*) FROM relay.saga WHERE status = 'COMPLETED'") == STARTERS * ROUNDS
    assert database.value("SELECT count(*) FROM relay.saga_lock") == 0
    assert _overlaps(database) == []


async def test_many_that_fail_never_share(database: Database) -> None:
    shipping = Shipping("fail")
    outcomes: list[bool] = []

    async def try_to_start() -> None:
        async with await connect(database) as conn:
            for _ in range(ROUNDS):
                try:
                    await shipping.start(conn)
                    outcomes.append(True)
                except Locked:
                    outcomes.append(False)

    await asyncio.gather(*(try_to_start() for _ in range(STARTERS)))

    assert outcomes.count(True) == 1


async def _abort(shipping: Shipping, conn: AsyncConnection[TupleRow], saga_id: UUID) -> bool:
    async with conn.transaction():
        return await shipping.orchestrator.abort(saga_id, "not needed", conn)


async def _start_many(shipping: Shipping, database: Database, started: list[UUID]) -> None:
    async with await connect(database) as conn:
        for number in range(ROUNDS):
            started.append(await shipping.start(conn, str(number % 3)))


async def _fire_until(shipping: Shipping, database: Database, done: asyncio.Event) -> None:
    async with await connect(database) as conn:
        while not done.is_set():
            await shipping.fire(conn)


async def _end_until(shipping: Shipping, database: Database, done: asyncio.Event) -> None:
    seq = 0
    async with await connect(database) as conn:
        while not done.is_set():
            commands = await asyncio.to_thread(sent, database, 0)
            for command in commands[seq:]:
                await shipping.end(conn, command)
            seq = len(commands)


def _overlaps(database: Database) -> list[tuple[object, ...]]:
    """Pairs of sagas that worked on one order at the same time. The log says when each began and ended."""
    return database.query(
        """
        WITH span AS (
            SELECT saga.id, saga.state ->> 'order_id' AS order_id,
                   max(log.at) FILTER (WHERE log.event = 'StepStarted' AND log.step = 'check') AS a,
                   max(log.at) FILTER (WHERE log.event = 'SagaCompleted') AS b
            FROM relay.saga AS saga JOIN relay.saga_log AS log ON log.saga_id = saga.id GROUP BY saga.id
        )
        SELECT one.id, two.id FROM span AS one JOIN span AS two ON one.order_id = two.order_id AND one.id < two.id
        WHERE one.a < two.b AND two.a < one.b
        """
    )
