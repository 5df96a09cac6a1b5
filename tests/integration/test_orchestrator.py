"""A saga's state, its log and its commands commit together; any instance handles any reply; a copy does nothing."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from pydantic import BaseModel

from relay.broker.properties import Delivery, Properties
from relay.messaging import (
    Command,
    Failure,
    Incoming,
    NotInTransaction,
    Reply,
    Service,
    Transaction,
    Unprocessable,
)
from relay.saga import DefinitionError, Operation, Orchestrator, Record, Saga, Status, UnexpectedReply, log
from relay.saga.transition import rebuild
from tests.support.database import Database
from tests.support.waiting import eventually

WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


class Trip(BaseModel):
    name: str
    room: int | None = None
    reason: str | None = None


class BookRoom(Command):
    name: str


class RoomBooked(Reply):
    number: int


class HotelFull(Failure):
    pass


class Surprise(Reply):
    pass


Hearing = Callable[[Any, Transaction], Awaitable[None]]


class Listening(Service):
    """A service that gives its handlers of replies away, so that a test can call them without a broker."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.heard_by: dict[type[Reply], Hearing] = {}

    def reply(self, reply_type: type[Any], handler: Hearing) -> None:
        super().reply(reply_type, handler)
        self.heard_by[reply_type] = handler


class Travel:
    """A travel agency: notes the trip, books a room, and closes the file. Made anew, it is another instance."""

    def __init__(self) -> None:
        self.service = Listening("travel")
        self.saga = Saga("trip", state=Trip)
        self.saga.local()(self.note).compensate(self.strike)
        self.book = self.saga.step(to="hotel")(self.book_room)
        self.book.on(RoomBooked)(self.booked)
        self.book.on(HotelFull)(self.full)
        self.saga.local(pivot=True)(self.close)
        self.orchestrator = Orchestrator(self.service, self.saga)

    async def note(self, trip: Trip, tx: Transaction) -> None:
        await tx.execute("INSERT INTO trips (name, state) VALUES (%s, 'open')", (trip.name,))

    async def strike(self, trip: Trip, tx: Transaction) -> None:
        await tx.execute("UPDATE trips SET state = %s WHERE name = %s", (f"off: {trip.reason}", trip.name))

    def book_room(self, trip: Trip) -> BookRoom:
        return BookRoom(name=trip.name)

    def booked(self, trip: Trip, reply: RoomBooked) -> None:
        trip.room = reply.number

    def full(self, trip: Trip, reply: HotelFull) -> None:
        trip.reason = "full"

    async def close(self, trip: Trip, tx: Transaction) -> None:
        await tx.execute("UPDATE trips SET state = %s WHERE name = %s", (f"room {trip.room}", trip.name))

    async def start(self, conn: AsyncConnection[TupleRow], name: str = "Rome") -> UUID:
        async with conn.transaction():
            return await self.orchestrator.start(self.saga, Trip(name=name), conn)

    async def hear(
        self, conn: AsyncConnection[TupleRow], reply: Reply, operation: Operation | str | None, message_id: str = "r1"
    ) -> None:
        """Handle a reply in a transaction, as the service's loop does."""
        headers = {} if operation is None else {"operation": str(operation)}
        properties = Properties(message_id, type=type(reply).__name__, headers=headers)
        incoming = Incoming.of(Delivery(1, "relay.replies", "travel", False, properties, b""))
        async with conn.transaction():
            await self.service.heard_by[type(reply)](reply, Transaction(conn, incoming))


@pytest.fixture
def travel() -> Travel:
    return Travel()


@pytest.fixture
def trips(make_database: Callable[..., Database]) -> Database:
    database = make_database()
    database.query("CREATE TABLE trips (name text PRIMARY KEY, state text NOT NULL)")
    database.query("GRANT ALL ON trips TO orders")
    return database


async def connect(database: Database) -> AsyncConnection[TupleRow]:
    return await AsyncConnection.connect(database.role_dsn("orders"), autocommit=True)


@pytest.fixture
async def conn(trips: Database) -> AsyncIterator[AsyncConnection[TupleRow]]:
    async with await connect(trips) as connection:
        yield connection


def saga_row(database: Database) -> tuple[object, ...]:
    ((status, step, state),) = database.query("SELECT status, step, state FROM relay.saga")
    return status, step, state


def logged(database: Database) -> list[str]:
    return [
        f"{event} {step or ''}".strip()
        for event, step in database.query("SELECT event, step FROM relay.saga_log ORDER BY saga_id, ordinal")
    ]


async def then_the_log_tells_the_state(conn: AsyncConnection[TupleRow], database: Database, saga_id: UUID) -> None:
    status, step, state = saga_row(database)
    assert rebuild(await log.read(conn, saga_id)) == Record(Status(status), step, state)  # type: ignore[arg-type]
    ordinals = database.query("SELECT ordinal FROM relay.saga_log ORDER BY at, ordinal")
    assert ordinals == [(number,) for number in range(1, len(ordinals) + 1)]


async def test_starting_runs_the_local_steps_and_sends_the_first_command(
    trips: Database, travel: Travel, conn: AsyncConnection[TupleRow]
) -> None:
    saga_id = await travel.start(conn)

    assert trips.query("SELECT * FROM trips") == [("Rome", "open")]
    assert saga_row(trips) == ("RUNNING", "book_room", {"name": "Rome", "room": None, "reason": None})
    assert logged(trips) == ["SagaStarted", "StepStarted note", "StepSucceeded note", "StepStarted book_room"]
    columns = "kind, type, payload, destination, reply_to, aggregate_type, aggregate_id, correlation_id, operation"
    assert trips.query(f"SELECT {columns} FROM relay.outbox") == [
        (
            "command",
            "BookRoom",
            {"name": "Rome"},
            "hotel",
            "travel",
            "trip",
            str(saga_id),
            str(saga_id),
            f"{saga_id}/book_room/action",
        )
    ]
    await then_the_log_tells_the_state(conn, trips, saga_id)


async def test_a_rolled_back_start_leaves_nothing(
    trips: Database, travel: Travel, conn: AsyncConnection[TupleRow]
) -> None:
    async with conn.transaction(force_rollback=True):
        await travel.orchestrator.start(travel.saga, Trip(name="Rome"), conn)

    tables = ("trips", "relay.saga", "relay.saga_log", "relay.outbox")
    assert [trips.value(f"SELECT count(*) FROM {table}") for table in tables] == [0, 0, 0, 0]


async def test_the_state_that_was_given_is_not_changed(travel: Travel, conn: AsyncConnection[TupleRow]) -> None:
    trip = Trip(name="Rome")
    async with conn.transaction():
        saga_id = await travel.orchestrator.start(travel.saga, trip, conn)
    await travel.hear(conn, RoomBooked(number=7), Operation(saga_id, "book_room"))

    assert trip == Trip(name="Rome")


async def test_starting_without_a_transaction_is_refused(travel: Travel, conn: AsyncConnection[TupleRow]) -> None:
    with pytest.raises(NotInTransaction):
        await travel.orchestrator.start(travel.saga, Trip(name="Rome"), conn)


async def test_a_saga_of_somebody_else_is_refused(travel: Travel, conn: AsyncConnection[TupleRow]) -> None:
    async with conn.transaction():
        with pytest.raises(DefinitionError, match="trip is not one of the orchestrator's"):
            await travel.orchestrator.start(Travel().saga, Trip(name="Rome"), conn)


async def test_a_good_reply_completes_the_saga(
    trips: Database, travel: Travel, conn: AsyncConnection[TupleRow]
) -> None:
    saga_id = await travel.start(conn)

    await travel.hear(conn, RoomBooked(number=7), Operation(saga_id, "book_room"), "r1")

    assert trips.query("SELECT * FROM trips") == [("Rome", "room 7")]
    assert saga_row(trips) == ("COMPLETED", None, {"name": "Rome", "room": 7, "reason": None})
    assert logged(trips)[4:] == ["StepSucceeded book_room", "StepStarted close", "StepSucceeded close", "SagaCompleted"]
    assert trips.query("SELECT message_id FROM relay.saga_log ORDER BY ordinal") == [(None,)] * 4 + [("r1",)] * 4
    await then_the_log_tells_the_state(conn, trips, saga_id)


async def test_a_failure_undoes_what_was_done(trips: Database, travel: Travel, conn: AsyncConnection[TupleRow]) -> None:
    saga_id = await travel.start(conn)

    await travel.hear(conn, HotelFull(), Operation(saga_id, "book_room"))

    assert trips.query("SELECT * FROM trips") == [("Rome", "off: full")]
    assert saga_row(trips)[:2] == ("COMPENSATED", None)
    assert logged(trips)[4:] == [
        "StepFailed book_room",
        "StepCompensating note",
        "StepCompensated note",
        "SagaCompensated",
    ]
    await then_the_log_tells_the_state(conn, trips, saga_id)


async def test_another_instance_takes_the_reply(
    trips: Database, travel: Travel, conn: AsyncConnection[TupleRow]
) -> None:
    saga_id = await travel.start(conn)
    await Travel().hear(conn, RoomBooked(number=7), Operation(saga_id, "book_room"))
    assert saga_row(trips)[0] == "COMPLETED"


@pytest.mark.parametrize("late", [RoomBooked(number=8), HotelFull()], ids=["copy", "change of mind"])
async def test_a_reply_after_the_end_changes_nothing(
    trips: Database, travel: Travel, conn: AsyncConnection[TupleRow], late: Reply
) -> None:
    saga_id = await travel.start(conn)
    await travel.hear(conn, RoomBooked(number=7), Operation(saga_id, "book_room"), "r1")
    before = (saga_row(trips), logged(trips), trips.query("SELECT * FROM trips"))

    await travel.hear(conn, late, Operation(saga_id, "book_room"), "r2")

    assert (saga_row(trips), logged(trips), trips.query("SELECT * FROM trips")) == before


async def test_two_replies_at_once_are_handled_one_after_the_other(
    trips: Database, travel: Travel, conn: AsyncConnection[TupleRow]
) -> None:
    saga_id = await travel.start(conn)
    operation = Operation(saga_id, "book_room")
    async with await connect(trips) as other:
        async with conn.transaction():
            await conn.execute("SELECT FROM relay.saga FOR UPDATE")
            copies = [
                asyncio.create_task(travel.hear(other, RoomBooked(number=7), operation, "r1")),
                asyncio.create_task(_hear_apart(trips, RoomBooked(number=8), operation, "r2")),
            ]
            await eventually(lambda: trips.value(WAITING) == 2)
        await asyncio.gather(*copies)

    assert logged(trips).count("SagaCompleted") == 1
    await then_the_log_tells_the_state(conn, trips, saga_id)


async def _hear_apart(database: Database, reply: Reply, operation: Operation, message_id: str) -> None:
    async with await connect(database) as conn:
        await Travel().hear(conn, reply, operation, message_id)


@pytest.mark.parametrize(
    "operation",
    [None, "", "book_room", f"{uuid4()}/book_room/action", f"{uuid4()}/book_room", "no-uuid/book_room/action"],
)
async def test_a_reply_to_no_saga_of_ours_is_unprocessable(
    travel: Travel, conn: AsyncConnection[TupleRow], operation: str | None
) -> None:
    with pytest.raises(Unprocessable):
        await travel.hear(conn, RoomBooked(number=7), operation)


async def test_a_saga_whose_definition_is_gone_is_unprocessable(
    trips: Database, travel: Travel, conn: AsyncConnection[TupleRow]
) -> None:
    saga_id = await travel.start(conn)
    trips.query("UPDATE relay.saga SET type = 'cruise'")
    with pytest.raises(Unprocessable, match="is a cruise, which is not defined here"):
        await travel.hear(conn, RoomBooked(number=7), Operation(saga_id, "book_room"))


async def test_a_reply_that_the_step_does_not_handle_leaves_the_saga_waiting(
    trips: Database, travel: Travel, conn: AsyncConnection[TupleRow]
) -> None:
    travel.service.heard_by[Surprise] = travel.service.heard_by[RoomBooked]
    saga_id = await travel.start(conn)

    with pytest.raises(UnexpectedReply, match="saga trip, step book_room: nothing handles the reply Surprise"):
        await travel.hear(conn, Surprise(), Operation(saga_id, "book_room"))

    assert saga_row(trips)[:2] == ("RUNNING", "book_room")


async def test_a_local_step_that_raises_undoes_the_whole_transition(
    trips: Database, travel: Travel, conn: AsyncConnection[TupleRow]
) -> None:
    saga_id = await travel.start(conn)
    trips.query("ALTER TABLE trips ADD CHECK (state = 'open')")

    with pytest.raises(psycopg.errors.CheckViolation):
        await travel.hear(conn, RoomBooked(number=7), Operation(saga_id, "book_room"))

    assert saga_row(trips)[:2] == ("RUNNING", "book_room")
    assert len(logged(trips)) == 4
