"""docs/sagas.md and docs/participants.md: the saga and the participant of these pages, together, on a real database."""

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow

from relay.broker.properties import Delivery, Properties
from relay.messaging import Compensated, Done, Reply, dead
from relay.saga import history
from tests.support.database import Database
from tests.support.saga import Sent, connect, hear, logged, sent, status_of
from tests.support.snippets import fenced, python_of


class Agency:
    """The trips of docs/sagas.md, the hotels of docs/participants.md, and a courier between them."""

    def __init__(self, database: Database, conn: AsyncConnection[TupleRow]) -> None:
        self.database = database
        self.conn = conn
        self.page: Any = python_of("sagas.md")
        self.hotel: Any = python_of("participants.md")
        self._seen = 0

    async def book(self, **wishes: object) -> tuple[UUID, UUID | None]:
        trip_id = uuid4()
        return trip_id, await self.page.book(self.conn, self.page.Trip(trip_id=trip_id, nights=2, **wishes))

    def commands(self) -> dict[str, Sent]:
        """What was sent since the last look, by type and addressee."""
        new = sent(self.database, self._seen)
        self._seen = max([self._seen, *(command.seq for command in new)])
        return {f"{command.type} to {command.to}": command for command in new}

    async def answer(self, command: Sent, reply: Reply) -> None:
        await hear(self.page.trips, self.conn, reply, command)

    async def let_the_hotel_handle(self, command: Sent) -> None:
        """The hotel's handler runs, and its reply reaches the saga."""
        ((message_id, body),) = self.database.query(
            "SELECT id::text, payload::text FROM relay.outbox WHERE seq = %s", command.seq
        )
        headers = {"operation": command.operation, **command.headers}
        said = Properties(str(message_id), type=command.type, reply_to="trips", headers=headers)
        async with self.conn.transaction():
            await self.hotel.hotels.handle(
                Delivery(1, "relay.commands", "hotels", False, said, str(body).encode()), self.conn
            )
        ((reply_type, payload),) = self.database.query(
            "SELECT type, payload FROM relay.outbox WHERE kind = 'reply' AND causation_id = %s", message_id
        )
        types: SimpleNamespace = self.hotel
        reply: Reply = Compensated() if reply_type == "Compensated" else getattr(types, str(reply_type))(**payload)  # type: ignore[arg-type]
        await self.answer(command, reply)

    def trip(self, trip_id: UUID) -> tuple[object, ...]:
        (row,) = self.database.query("SELECT state, room, reason FROM trips WHERE id = %s", trip_id)
        return row

    def rooms_taken(self) -> object:
        return self.database.value("SELECT count(*) FROM rooms WHERE trip_id IS NOT NULL")


@pytest.fixture
async def agency(database: Database) -> AsyncIterator[Agency]:
    database.query("CREATE TABLE trips (id uuid PRIMARY KEY, state text NOT NULL, reason text, room text)")
    database.query("CREATE TABLE rooms (number text PRIMARY KEY, trip_id uuid)")
    database.query("GRANT ALL ON trips, rooms TO orders")
    conn = await connect(database)
    yield Agency(database, conn)
    await conn.close()


async def test_a_trip_is_booked(agency: Agency) -> None:
    agency.database.query("INSERT INTO rooms VALUES ('12')")
    trip_id, saga_id = await agency.book()
    commands = agency.commands()
    assert list(commands) == ["ReserveRoom to hotels"]
    await agency.let_the_hotel_handle(commands["ReserveRoom to hotels"])
    await agency.answer(agency.commands()["ChargeCard to payments"], Done())
    await agency.answer(agency.commands()["SendVoucher to mail"], Done())
    assert agency.trip(trip_id) == ("BOOKED", "12", None)
    assert agency.rooms_taken() == 1
    assert status_of(agency.database, saga_id) == "COMPLETED"
    assert "StepSkipped reserve_car" in logged(agency.database, saga_id)


async def test_an_alternative_is_tried_when_the_hotel_is_full(agency: Agency) -> None:
    trip_id, saga_id = await agency.book()
    await agency.let_the_hotel_handle(agency.commands()["ReserveRoom to hotels"])
    bed = agency.commands()["ReserveRoom to hostels"]
    assert bed.operation == f"{saga_id}/reserve_room/reserve_bed"
    await agency.answer(bed, agency.page.HotelFull())
    assert agency.trip(trip_id) == ("CANCELLED", None, "no room")
    assert status_of(agency.database, saga_id) == "COMPENSATED"


async def test_what_was_reserved_is_given_back_in_the_order_that_the_page_says(agency: Agency) -> None:
    agency.database.query("INSERT INTO rooms VALUES ('12')")
    trip_id, saga_id = await agency.book(wants_car=True)
    commands = agency.commands()
    await agency.answer(commands["ReserveCar to cars"], Done())
    await agency.let_the_hotel_handle(commands["ReserveRoom to hotels"])
    await agency.answer(agency.commands()["ChargeCard to payments"], agency.page.CardDeclined())
    undoing = agency.commands()
    assert list(undoing) == ["CancelCar to cars"]
    await agency.answer(undoing["CancelCar to cars"], Compensated())
    assert agency.rooms_taken() == 1
    await agency.let_the_hotel_handle(agency.commands()["CancelRoom to hotels"])
    assert agency.rooms_taken() == 0
    assert agency.trip(trip_id) == ("CANCELLED", None, "card declined")
    assert status_of(agency.database, saga_id) == "COMPENSATED"


async def test_a_trip_that_is_being_booked_is_locked_and_can_be_aborted(agency: Agency) -> None:
    trip_id, saga_id = await agency.book()
    again = await agency.page.book(agency.conn, agency.page.Trip(trip_id=trip_id, nights=1))
    assert again is None
    assert not await agency.page.may_change(agency.conn, trip_id)
    assert await agency.page.abort(agency.conn, saga_id)
    assert not await agency.page.abort(agency.conn, saga_id)
    # The hotel is still to answer: what it has done is undone, before the trip is given back.
    assert status_of(agency.database, saga_id) == "COMPENSATING"
    command = agency.commands()["ReserveRoom to hotels"]
    await agency.answer(command, agency.page.RoomReserved(room="7"))
    undo = agency.commands()["CancelRoom to hotels"]
    assert undo.payload["room"] == "7"
    await agency.answer(undo, Compensated())
    assert status_of(agency.database, saga_id) == "COMPENSATED"
    assert agency.trip(trip_id)[0] == "CANCELLED"
    assert await agency.page.may_change(agency.conn, trip_id)


async def test_the_query_of_the_page_counts_running_sagas_by_definition(agency: Agency) -> None:
    _, saga_id = await agency.book()
    (query,) = (block for block in fenced("sagas.md", "sql") if "count(*)" in block)
    ((definition, count, _),) = agency.database.query(query.strip().rstrip(";"))
    assert definition == agency.database.value("SELECT definition FROM relay.saga WHERE id = %s", saga_id)
    assert count == 1


async def test_an_operator_needs_no_other_rights_than_setup_says(agency: Agency) -> None:
    _, saga_id = await agency.book()
    assert saga_id
    database, role = agency.database, f"operator_{uuid4().hex}"
    for message_id in ("a", "b"):
        database.query(
            "INSERT INTO relay.deferred"
            " (consumer, message_id, aggregate_type, aggregate_id, type, properties, body, dead_at)"
            " VALUES ('hotels', %s, 'book_trip', %s, 'ReserveRoom', '{}', '', now())",
            message_id,
            message_id,
        )
    (rights,) = (block for block in fenced("setup.md", "sql") if "TO operator" in block)
    database.query(f"CREATE ROLE {role}")
    try:
        with psycopg.connect(database.superuser_dsn, autocommit=True) as connection:
            connection.execute(sql.SQL(rights.replace("TO operator", f"TO {role}")))
            connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
            assert len(dead.entries(connection, dead.Selection(), limit=10)) == 2
            assert len(dead.sheets(connection, "a")) == 1
            assert dead.replay(connection, dead.Selection(ids=("a",))) == 1
            assert dead.drop(connection, dead.Selection(ids=("b",))) == 1
            assert history.sheet(connection, saga_id) is not None
    finally:
        database.query(f"DROP OWNED BY {role}")
        database.query(f"DROP ROLE {role}")
