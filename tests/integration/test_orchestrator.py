"""A saga's state, its log and its commands commit together; any instance handles any reply; a copy does nothing."""

import asyncio
from collections.abc import AsyncIterator, Callable
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from pydantic import BaseModel

from relay.messaging import (
    Command,
    Compensated,
    Failure,
    NotInTransaction,
    OperationCancelled,
    Reply,
    Retry,
    Service,
    Transaction,
    Unprocessable,
)
from relay.messaging.handler import Outcome
from relay.saga import DefinitionError, NoSuchSaga, Operation, Orchestrator, Saga, UnexpectedReply
from relay.saga.description import fingerprint
from tests.support.database import Database
from tests.support.saga import connect, hear, last_sent, logged, sent, status_of, then_the_log_tells_the_record
from tests.support.waiting import eventually

STRANGER = UUID("00000000-0000-4000-8000-000000000000")
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


class Trip(BaseModel):
    name: str
    room: int | None = None
    reason: str | None = None


class RoomBooked(Reply):
    number: int


class HotelFull(Failure):
    pass


class HotelBusy(Failure):
    pass


class BookRoom(Command):
    replies = (RoomBooked, HotelFull, HotelBusy)
    name: str


class CancelRoom(Command):
    number: int | None


class Post(Command):
    name: str


class Surprise(Reply):
    pass


class Refused(Failure):
    pass


class Travel:
    """A travel agency: notes the trip, books a room in a hotel or else in a hostel, and closes the file.

    Made anew, it is another instance. What its local steps do can be changed by a test.
    """

    def __init__(self) -> None:
        self.service = Service("travel")
        self.saga = saga = Saga("trip", state=Trip)
        saga.local(retry=Retry(attempts=2, backoff="1s..1s"))(self.note).compensate(self.strike)
        quick = Retry(attempts=2, backoff="1s..1s")
        self.book = saga.step(to="hotel", retry=quick, compensation_retry=quick, transient=(HotelBusy,))(self.book_room)
        hostel = self.book.or_else(to="hostel", retry=Retry(attempts=1, backoff="1s..1s"))(self.book_bed)
        for step in (self.book, hostel):
            step.on(RoomBooked)(self.booked)
            step.on(HotelFull)(self.full)
            step.on(HotelBusy)(self.full)
            step.compensate(self.cancel_room)
        saga.local(retry=Retry(attempts=2, backoff="1s..1s"), pivot=True)(self.close)
        self.more()
        self.orchestrator = Orchestrator(self.service, saga, seed=1)

    def more(self) -> None:
        """Further steps."""

    async def note(self, trip: Trip, tx: Transaction) -> Failure | None:
        await tx.execute("INSERT INTO trips (name, state) VALUES (%s, 'open')", (trip.name,))
        return None

    async def strike(self, trip: Trip, tx: Transaction) -> Failure | None:
        await tx.execute("UPDATE trips SET state = %s WHERE name = %s", (f"off: {trip.reason}", trip.name))
        return None

    def book_room(self, trip: Trip) -> BookRoom:
        return BookRoom(name=trip.name)

    def book_bed(self, trip: Trip) -> BookRoom:
        return BookRoom(name=trip.name)

    def cancel_room(self, trip: Trip) -> CancelRoom:
        return CancelRoom(number=trip.room)

    def booked(self, trip: Trip, reply: RoomBooked) -> None:
        trip.room = reply.number

    def full(self, trip: Trip, reply: Failure) -> None:
        trip.reason = type(reply).__name__

    async def close(self, trip: Trip, tx: Transaction) -> Failure | None:
        await tx.execute("UPDATE trips SET state = %s WHERE name = %s", (f"room {trip.room}", trip.name))
        return None

    async def start(self, conn: AsyncConnection[TupleRow], name: str = "Rome") -> UUID:
        async with conn.transaction():
            return await self.orchestrator.start(self.saga, Trip(name=name), conn)


class Raising(Travel):
    """One whose last local step writes, and then raises."""

    async def close(self, trip: Trip, tx: Transaction) -> Failure | None:
        await super().close(trip, tx)
        raise ValueError("no ink\nleft\0 \ud800")


class Refusing(Travel):
    """One whose last local step writes, and then refuses."""

    async def close(self, trip: Trip, tx: Transaction) -> Failure | None:
        await super().close(trip, tx)
        return Refused()


class RefusingAtOnce(Travel):
    """One whose first local step writes, and then refuses."""

    async def note(self, trip: Trip, tx: Transaction) -> Failure | None:
        await super().note(trip, tx)
        return Refused()


class Sending(Travel):
    """One that has the tickets sent when there is no way back."""

    def more(self) -> None:
        self.saga.step(to="post")(self.send_tickets)

    def send_tickets(self, trip: Trip) -> Post:
        return Post(name=trip.name)


class Swallowing(Travel):
    """One whose last local step goes on after a statement has failed."""

    async def close(self, trip: Trip, tx: Transaction) -> Failure | None:
        with pytest.raises(psycopg.errors.UndefinedTable):
            await tx.execute("SELECT FROM nowhere")
        return None


class Contending(Travel):
    """One whose last local step does not wait for locks."""

    async def close(self, trip: Trip, tx: Transaction) -> Failure | None:
        await tx.execute("SELECT FROM trips FOR UPDATE NOWAIT")
        return await super().close(trip, tx)


@pytest.fixture
def travel() -> Travel:
    return Travel()


@pytest.fixture
def trips(make_database: Callable[..., Database]) -> Database:
    database = make_database()
    database.query("CREATE TABLE trips (name text PRIMARY KEY, state text NOT NULL)")
    database.query("GRANT ALL ON trips TO orders")
    return database


@pytest.fixture
async def conn(trips: Database) -> AsyncIterator[AsyncConnection[TupleRow]]:
    async with await connect(trips) as connection:
        yield connection


async def fire(travel: Travel, conn: AsyncConnection[TupleRow]) -> int:
    """Fire every timer, as if its time had come."""
    await conn.execute("UPDATE relay.saga_timer SET due_at = clock_timestamp() WHERE fired_at IS NULL")
    async with conn.transaction():
        return await travel.orchestrator.fire_due(conn)


def saga_row(database: Database) -> tuple[object, ...]:
    ((status, step, state),) = database.query("SELECT status, step, state FROM relay.saga")
    return status, step, state


async def test_starting_runs_the_local_steps_and_sends_the_first_command(
    trips: Database, travel: Travel, conn: AsyncConnection[TupleRow]
) -> None:
    saga_id = await travel.start(conn)

    assert trips.query("SELECT * FROM trips") == [("Rome", "open")]
    assert saga_row(trips) == ("RUNNING", "book_room", {"name": "Rome", "room": None, "reason": None})
    assert logged(trips) == ["SagaStarted", "StepStarted note", "StepSucceeded note", "StepStarted book_room"]
    columns = "kind, type, payload, destination, reply_to, aggregate_type, aggregate_id, correlation_id, operation"
    assert trips.query(f"SELECT {columns}, headers FROM relay.outbox") == [
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
            {},
        )
    ]
    await then_the_log_tells_the_record(conn, trips, saga_id)


async def test_the_hash_of_the_definition_is_kept(
    trips: Database, travel: Travel, conn: AsyncConnection[TupleRow]
) -> None:
    await travel.start(conn)

    assert trips.value("SELECT definition FROM relay.saga") == fingerprint(travel.saga)


async def test_ids_of_sagas_are_in_the_order_of_time(
    trips: Database, travel: Travel, conn: AsyncConnection[TupleRow]
) -> None:
    first = await travel.start(conn)
    await eventually(lambda: trips.value("SELECT clock_timestamp() > started_at + interval '2 ms' FROM relay.saga"))

    assert first.version == 7
    assert first < await travel.start(conn, "Oslo")


async def test_a_rolled_back_start_leaves_nothing(
    trips: Database, travel: Travel, conn: AsyncConnection[TupleRow]
) -> None:
    async with conn.transaction(force_rollback=True):
        await travel.orchestrator.start(travel.saga, Trip(name="Rome"), conn)

    tables = ("trips", "relay.saga", "relay.saga_log", "relay.saga_timer", "relay.outbox")
    assert [trips.value(f"SELECT count(*) FROM {table}") for table in tables] == [0, 0, 0, 0, 0]


async def test_the_state_that_was_given_is_not_changed(travel: Travel, conn: AsyncConnection[TupleRow]) -> None:
    trip = Trip(name="Rome")
    async with conn.transaction():
        saga_id = await travel.orchestrator.start(travel.saga, trip, conn)
    await hear(travel.service, conn, RoomBooked(number=7), str(Operation(saga_id, "book_room")))

    assert trip == Trip(name="Rome")


async def test_starting_without_a_transaction_is_refused(travel: Travel, conn: AsyncConnection[TupleRow]) -> None:
    with pytest.raises(NotInTransaction):
        await travel.orchestrator.start(travel.saga, Trip(name="Rome"), conn)


async def test_starting_leaves_the_commit_to_the_caller(
    trips: Database, travel: Travel, conn: AsyncConnection[TupleRow]
) -> None:
    await conn.set_autocommit(False)

    await travel.orchestrator.start(travel.saga, Trip(name="Rome"), conn)
    await conn.rollback()

    assert trips.query("SELECT * FROM trips") == []


async def test_a_saga_of_somebody_else_is_refused(travel: Travel, conn: AsyncConnection[TupleRow]) -> None:
    async with conn.transaction():
        with pytest.raises(DefinitionError, match="trip is not one of the orchestrator's"):
            await travel.orchestrator.start(Travel().saga, Trip(name="Rome"), conn)


async def test_a_good_reply_completes_the_saga(
    trips: Database, travel: Travel, conn: AsyncConnection[TupleRow]
) -> None:
    saga_id = await travel.start(conn)

    await hear(travel.service, conn, RoomBooked(number=7), last_sent(trips), "r1")

    assert trips.query("SELECT * FROM trips") == [("Rome", "room 7")]
    assert saga_row(trips) == ("COMPLETED", None, {"name": "Rome", "room": 7, "reason": None})
    assert logged(trips)[4:] == ["StepSucceeded book_room", "StepStarted close", "StepSucceeded close", "SagaCompleted"]
    assert trips.query("SELECT message_id FROM relay.saga_log ORDER BY ordinal") == [(None,)] * 4 + [("r1",)] * 4
    assert trips.value("SELECT ended_at >= started_at FROM relay.saga") is True
    await then_the_log_tells_the_record(conn, trips, saga_id)


async def test_the_second_alternative_is_asked_when_the_first_has_failed(
    trips: Database, travel: Travel, conn: AsyncConnection[TupleRow]
) -> None:
    saga_id = await travel.start(conn)

    await hear(travel.service, conn, HotelFull(), last_sent(trips))

    assert last_sent(trips).to == "hostel"
    assert last_sent(trips).operation == f"{saga_id}/book_room/book_bed"
    await hear(travel.service, conn, RoomBooked(number=9), last_sent(trips))
    assert saga_row(trips)[0] == "COMPLETED"
    await then_the_log_tells_the_record(conn, trips, saga_id)


async def test_a_failure_undoes_what_was_done(trips: Database, travel: Travel, conn: AsyncConnection[TupleRow]) -> None:
    saga_id = await travel.start(conn)

    await hear(travel.service, conn, HotelFull(), last_sent(trips))
    await hear(travel.service, conn, HotelFull(), last_sent(trips))

    assert trips.query("SELECT * FROM trips") == [("Rome", "off: HotelFull")]
    assert saga_row(trips)[:2] == ("COMPENSATED", None)
    assert logged(trips)[6:] == [
        "StepFailed book_bed",
        "StepCompensating note",
        "StepCompensated note",
        "SagaCompensated",
    ]
    await then_the_log_tells_the_record(conn, trips, saga_id)


async def test_a_failure_that_passes_is_tried_again_after_a_while(
    trips: Database, travel: Travel, conn: AsyncConnection[TupleRow]
) -> None:
    saga_id = await travel.start(conn)

    await hear(travel.service, conn, HotelBusy(), last_sent(trips))

    ((delay_s, attempt),) = trips.query(
        "SELECT extract(epoch FROM due_at - now())::float8, attempt FROM relay.saga_timer WHERE purpose = 'retry'"
    )
    assert attempt == 1
    assert isinstance(delay_s, float)
    assert 0 < delay_s <= 1
    assert len(sent(trips)) == 1
    await fire(travel, conn)
    assert last_sent(trips).headers == {"attempt": "2"}
    assert last_sent(trips).operation == f"{saga_id}/book_room/action"
    await hear(travel.service, conn, RoomBooked(number=7), last_sent(trips))
    assert saga_row(trips)[0] == "COMPLETED"
    await then_the_log_tells_the_record(conn, trips, saga_id)


async def test_an_abort_undoes_a_saga_whose_reply_is_on_its_way(
    trips: Database, travel: Travel, conn: AsyncConnection[TupleRow]
) -> None:
    saga_id = await travel.start(conn)
    command = last_sent(trips)

    async with conn.transaction():
        assert await travel.orchestrator.abort(saga_id, "the customer called", conn)
    await hear(travel.service, conn, RoomBooked(number=7), command)

    undo = last_sent(trips)
    assert (undo.type, undo.payload, undo.headers) == ("CancelRoom", {"number": 7}, {"compensation": "1"})
    assert undo.operation == command.operation
    await hear(travel.service, conn, Compensated(), undo)
    assert saga_row(trips)[0] == "COMPENSATED"
    assert trips.value("SELECT reason FROM relay.saga") == "the customer called"
    await then_the_log_tells_the_record(conn, trips, saga_id)


async def test_a_compensation_that_fails_is_asked_for_again_and_then_the_saga_is_suspended(
    trips: Database, travel: Travel, conn: AsyncConnection[TupleRow], caplog: pytest.LogCaptureFixture
) -> None:
    saga_id = await travel.start(conn)
    async with conn.transaction():
        await travel.orchestrator.abort(saga_id, "over", conn)
    await hear(travel.service, conn, RoomBooked(number=7), last_sent(trips))

    await hear(travel.service, conn, OperationCancelled(), last_sent(trips))
    await fire(travel, conn)
    assert last_sent(trips).headers == {"compensation": "2"}
    await hear(travel.service, conn, OperationCancelled(), last_sent(trips))

    assert saga_row(trips)[0] == "SUSPENDED"
    assert [record.levelname for record in caplog.records if record.__dict__["action"] == "saga_suspended"] == ["ERROR"]
    await hear(travel.service, conn, Compensated(), last_sent(trips))
    assert saga_row(trips)[0] == "COMPENSATED"
    await then_the_log_tells_the_record(conn, trips, saga_id)


async def test_an_abort_comes_too_late_for_a_saga_that_has_ended(
    trips: Database, travel: Travel, conn: AsyncConnection[TupleRow]
) -> None:
    saga_id = await travel.start(conn)
    await hear(travel.service, conn, RoomBooked(number=7), last_sent(trips))

    async with conn.transaction():
        assert not await travel.orchestrator.abort(saga_id, "over", conn)

    assert saga_row(trips)[0] == "COMPLETED"


async def test_an_abort_comes_too_late_past_the_point_of_no_return(
    trips: Database, conn: AsyncConnection[TupleRow]
) -> None:
    travel = Sending()
    saga_id = await travel.start(conn)
    await hear(travel.service, conn, RoomBooked(number=7), last_sent(trips))

    async with conn.transaction():
        assert not await travel.orchestrator.abort(saga_id, "over", conn)

    assert saga_row(trips)[:2] == ("RUNNING", "send_tickets")


async def test_an_abort_of_no_saga_is_an_error(travel: Travel, conn: AsyncConnection[TupleRow]) -> None:
    async with conn.transaction():
        with pytest.raises(NoSuchSaga, match="there is no saga"):
            await travel.orchestrator.abort(uuid4(), "over", conn)


async def test_another_instance_takes_the_reply(
    trips: Database, travel: Travel, conn: AsyncConnection[TupleRow]
) -> None:
    await travel.start(conn)
    await hear(Travel().service, conn, RoomBooked(number=7), last_sent(trips))
    assert saga_row(trips)[0] == "COMPLETED"


@pytest.mark.parametrize("late", [RoomBooked(number=8), HotelFull()], ids=["copy", "change of mind"])
async def test_a_reply_after_the_end_changes_nothing(
    trips: Database, travel: Travel, conn: AsyncConnection[TupleRow], late: Reply
) -> None:
    await travel.start(conn)
    await hear(travel.service, conn, RoomBooked(number=7), last_sent(trips), "r1")
    before = (saga_row(trips), logged(trips), trips.query("SELECT * FROM trips"))

    assert await hear(travel.service, conn, late, last_sent(trips), "r2") is Outcome.HANDLED

    assert (saga_row(trips), logged(trips), trips.query("SELECT * FROM trips")) == before


async def test_two_replies_at_once_are_handled_one_after_the_other(
    trips: Database, travel: Travel, conn: AsyncConnection[TupleRow]
) -> None:
    saga_id = await travel.start(conn)
    async with await connect(trips) as other, await connect(trips) as third:
        async with conn.transaction():
            await conn.execute("SELECT FROM relay.saga FOR UPDATE")
            copies = [
                asyncio.create_task(hear(travel.service, other, RoomBooked(number=7), last_sent(trips), "r1")),
                asyncio.create_task(hear(Travel().service, third, RoomBooked(number=8), last_sent(trips), "r2")),
            ]
            await eventually(lambda: trips.value(WAITING) == 2)
        await asyncio.gather(*copies)

    assert logged(trips).count("SagaCompleted") == 1
    await then_the_log_tells_the_record(conn, trips, saga_id)


@pytest.mark.parametrize(
    "operation",
    ["", "book_room", f"{STRANGER}/book_room/action", f"{STRANGER}/book_room", "no-uuid/book_room/action"],
)
async def test_a_reply_to_no_saga_of_ours_is_unprocessable(
    travel: Travel, conn: AsyncConnection[TupleRow], operation: str
) -> None:
    with pytest.raises(Unprocessable):
        await hear(travel.service, conn, RoomBooked(number=7), operation)


@pytest.mark.parametrize("step", ["nothing", "note"])
async def test_a_reply_to_no_remote_step_is_unprocessable(
    travel: Travel, conn: AsyncConnection[TupleRow], step: str
) -> None:
    saga_id = await travel.start(conn)
    with pytest.raises(Unprocessable, match=f"saga trip has no step {step} in another service"):
        await hear(travel.service, conn, RoomBooked(number=7), str(Operation(saga_id, step)))


async def test_a_saga_whose_definition_is_gone_is_unprocessable(
    trips: Database, travel: Travel, conn: AsyncConnection[TupleRow]
) -> None:
    await travel.start(conn)
    trips.query("UPDATE relay.saga SET type = 'cruise'")
    with pytest.raises(Unprocessable, match="is a cruise, which is not defined here"):
        await hear(travel.service, conn, RoomBooked(number=7), last_sent(trips))


async def test_a_reply_that_the_step_does_not_handle_leaves_the_saga_waiting(
    trips: Database, travel: Travel, conn: AsyncConnection[TupleRow]
) -> None:
    await travel.start(conn)

    with pytest.raises(UnexpectedReply, match="saga trip, step book_room: nothing handles the reply Surprise"):
        await hear(travel.service, conn, Surprise(), last_sent(trips))

    assert saga_row(trips)[:2] == ("RUNNING", "book_room")


async def test_a_local_step_that_raises_leaves_nothing_but_a_failed_attempt(
    trips: Database, conn: AsyncConnection[TupleRow]
) -> None:
    raising = Raising()
    saga_id = await raising.start(conn)

    await hear(raising.service, conn, RoomBooked(number=7), last_sent(trips))

    assert trips.query("SELECT * FROM trips") == [("Rome", "open")]
    assert logged(trips)[-1] == "StepFailed close"
    assert trips.value("SELECT reason FROM relay.saga_log WHERE event = 'StepFailed'") == "ValueError: no ink left ?"
    await then_the_log_tells_the_record(conn, trips, saga_id)


async def test_a_local_step_that_raised_is_tried_again(trips: Database, conn: AsyncConnection[TupleRow]) -> None:
    raising = Raising()
    saga_id = await raising.start(conn)
    await hear(raising.service, conn, RoomBooked(number=7), last_sent(trips))

    await fire(Travel(), conn)

    assert trips.query("SELECT * FROM trips") == [("Rome", "room 7")]
    assert saga_row(trips)[0] == "COMPLETED"
    await then_the_log_tells_the_record(conn, trips, saga_id)


async def test_a_local_step_that_goes_on_after_a_failed_statement_has_failed(
    trips: Database, conn: AsyncConnection[TupleRow]
) -> None:
    swallowing = Swallowing()
    await swallowing.start(conn)

    await hear(swallowing.service, conn, RoomBooked(number=7), last_sent(trips))

    assert logged(trips)[-1] == "StepFailed close"


async def test_a_local_step_that_refuses_is_undone_with_all_before_it(
    trips: Database, conn: AsyncConnection[TupleRow]
) -> None:
    refusing = Refusing()
    saga_id = await refusing.start(conn)

    await hear(refusing.service, conn, RoomBooked(number=7), last_sent(trips))

    assert trips.query("SELECT * FROM trips") == [("Rome", "open")]
    assert last_sent(trips).type == "CancelRoom"
    await hear(refusing.service, conn, Compensated(), last_sent(trips))
    assert trips.query("SELECT * FROM trips") == [("Rome", "off: None")]
    assert saga_row(trips)[0] == "COMPENSATED"
    await then_the_log_tells_the_record(conn, trips, saga_id)


async def test_a_saga_may_end_as_it_starts(trips: Database, conn: AsyncConnection[TupleRow]) -> None:
    refusing = RefusingAtOnce()

    saga_id = await refusing.start(conn)

    assert trips.query("SELECT * FROM trips") == []
    assert saga_row(trips)[0] == "COMPENSATED"
    assert trips.value("SELECT reason FROM relay.saga") == "Refused"
    await then_the_log_tells_the_record(conn, trips, saga_id)


async def test_what_a_local_step_raises_at_the_start_is_the_owner_s(
    trips: Database, travel: Travel, conn: AsyncConnection[TupleRow]
) -> None:
    await travel.start(conn)

    with pytest.raises(psycopg.errors.UniqueViolation):
        await travel.start(conn)

    assert trips.value("SELECT count(*) FROM relay.saga") == 1


async def test_a_conflict_with_another_transaction_is_no_failed_attempt(
    trips: Database, conn: AsyncConnection[TupleRow]
) -> None:
    contending = Contending()
    await contending.start(conn)
    async with await connect(trips) as other, other.transaction():
        await other.execute("SELECT FROM trips FOR UPDATE")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            await hear(contending.service, conn, RoomBooked(number=7), last_sent(trips), "r1")

    assert await hear(contending.service, conn, RoomBooked(number=7), last_sent(trips), "r1") is Outcome.HANDLED

    assert saga_row(trips)[0] == "COMPLETED"
    assert "StepFailed close" not in logged(trips)


async def test_a_suspended_database_row_names_the_steps_under_way(
    trips: Database, travel: Travel, conn: AsyncConnection[TupleRow]
) -> None:
    await travel.start(conn)

    assert status_of(trips) == "RUNNING"
    assert trips.value("SELECT progress FROM relay.saga") == {
        "steps": {"note": {"phase": "DONE", "attempt": 1}, "book_room": {"phase": "STARTED", "attempt": 1}}
    }
