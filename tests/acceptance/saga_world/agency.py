"""The travel agency: the definitions of its sagas, and the service that runs them."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Final, Literal
from uuid import UUID

from pydantic import BaseModel

from relay.messaging import Failure, Reply, Retry, Service, Transaction
from relay.saga import Orchestrator, Saga
from relay.saga.step import RemoteStep
from tests.acceptance.saga_world.contracts import (
    BookBed,
    BookRoom,
    BookSeat,
    Busy,
    CancelBed,
    CancelRoom,
    CancelSeat,
    IssueTicket,
    ReserveMoney,
    ReturnMoney,
    SoldOut,
    Taken,
)
from tests.acceptance.saga_world.plans import How, Plans

SCHEMA: Final = """
    CREATE TABLE trip (id uuid PRIMARY KEY, traveller text NOT NULL, status text NOT NULL);
    CREATE TABLE diary (id bigint GENERATED ALWAYS AS IDENTITY, trip uuid NOT NULL, entry text NOT NULL);
    CREATE INDEX ON diary (trip);
"""
"""The diary has no unique key, so that nothing hides what is done twice."""

RETRY: Final = Retry(attempts=12, backoff="100ms..1s")
"""Of messages that the agency cannot handle."""

FEW: Final = Retry(attempts=3, backoff="100ms..200ms")
SOME: Final = Retry(attempts=4, backoff="100ms..500ms")
MANY: Final = Retry(attempts=20, backoff="100ms..1s")
ENDLESS: Final = Retry(attempts=10_000, backoff="100ms..1s")
"""As good as that: no person sees to what is suspended in a storm."""


class Journey(BaseModel):
    """What the agency knows of a trip. Without a hotel the traveller goes home in the evening."""

    trip_id: UUID
    traveller: str
    price: int = 100
    flight: str = "LH1"
    hotel: str | None = "Ritz"
    hostel: str = "Y"
    tickets: str = "paper"
    receipts: dict[str, int] = {}
    reason: str | None = None


class Refused(Failure):
    """The agency itself has changed its mind."""


@dataclass(frozen=True)
class Pace:
    """How patient a saga is. `timeout` and `retry` are those of its steps, `lasting` that of the whole."""

    timeout: str = "20s"
    room_timeout: str | None = None
    """That of the hotel alone, where it is another one."""
    retry: Retry = SOME
    compensation_retry: Retry = MANY
    last_retry: Retry = MANY
    """Of the step after the pivot."""
    lasting: str | None = None
    together: bool = False
    """Flight and hotel are asked at the same time."""
    hostel: bool = False
    """Where there is no room, a bed will do."""
    on_locked: Literal["fail", "wait", "queue"] | None = None
    """What a second journey of a traveller does, None for both at once."""


PACES: Final = {
    "journey": Pace(),
    "package": Pace(together=True),
    "backpack": Pace(hostel=True),
    "hasty": Pace(timeout="1s", retry=FEW, last_retry=FEW),
    "flimsy": Pace(room_timeout="1s", retry=FEW, compensation_retry=FEW),
    "fragile": Pace(compensation_retry=FEW),
    "bounded": Pace(timeout="1m", lasting="2s"),
    "turn": Pace(on_locked="queue"),
    "exclusive": Pace(on_locked="fail"),
    "impatient": Pace(on_locked="wait"),
    "stormy": Pace(
        timeout="3s",
        retry=Retry(attempts=6, backoff="100ms..1s"),
        compensation_retry=ENDLESS,
        last_retry=ENDLESS,
        together=True,
        hostel=True,
    ),
    "patient": Pace(timeout="10s", retry=Retry(attempts=12, backoff="1s..5s")),
}
"""The sagas, by their names."""


class Agency:
    """An instance of it. `start` with `orchestrator.start`; without `service.run` it handles nothing."""

    def __init__(self, plans: Plans) -> None:
        self._plans = plans
        self.service = Service("agency", retry=RETRY)
        self.sagas = {name: self._define(name, pace) for name, pace in PACES.items()}
        self.orchestrator = Orchestrator(self.service, *self.sagas.values())

    def _define(self, name: str, pace: Pace) -> Saga[Journey]:
        lock: Callable[[Journey], tuple[str, str]] | None = None
        if pace.on_locked is not None:
            lock = _traveller
        saga = Saga(
            name,
            state=Journey,
            timeout=pace.lasting,
            lock=lock,
            on_locked=pace.on_locked or "fail",
            lock_timeout="1s",
        )
        saga.local()(self.open_file).compensate(self.close_file)
        asked: dict[str, Any] = {
            "timeout": pace.timeout,
            "retry": pace.retry,
            "compensation_retry": pace.compensation_retry,
            "transient": (Busy,),
        }
        with saga.parallel() if pace.together else nullcontext():
            seat = saga.step(to="flights", **asked)(book_seat)
            of_room = asked | {"timeout": pace.room_timeout or pace.timeout}
            room = saga.step(to="hotel", when=stays, **of_room)(book_room)
        _answered(seat, cancel_seat)
        _answered(room, cancel_room)
        if pace.hostel:
            _answered(room.or_else(to="hotel", **asked)(book_bed), cancel_bed)
        _answered(saga.step(to="bank", **asked)(reserve_money), return_money)
        saga.local(pivot=True, retry=pace.retry)(self.confirm)
        last = asked | {"retry": pace.last_retry}
        _answered(saga.step(to="flights", **last)(issue_ticket), None)
        return saga

    async def open_file(self, trip: Journey, tx: Transaction) -> Failure | None:
        """The trip exists from the moment it is asked for."""
        await tx.execute("INSERT INTO trip VALUES (%s, %s, 'OPEN')", (trip.trip_id, trip.traveller))
        return await self._note("open_file", trip, tx)

    async def close_file(self, trip: Journey, tx: Transaction) -> Failure | None:
        """Nobody travels."""
        await tx.execute("UPDATE trip SET status = 'CANCELLED' WHERE id = %s", (trip.trip_id,))
        return await self._note("close_file", trip, tx)

    async def confirm(self, trip: Journey, tx: Transaction) -> Failure | None:
        """From here on there is no way back."""
        await tx.execute("UPDATE trip SET status = 'BOOKED' WHERE id = %s", (trip.trip_id,))
        return await self._note("confirm", trip, tx)

    async def _note(self, entry: str, trip: Journey, tx: Transaction) -> Failure | None:
        await tx.execute("INSERT INTO diary (trip, entry) VALUES (%s, %s)", (trip.trip_id, entry))
        how = await self._plans.next(entry, trip.trip_id)
        await self._plans.carry_out(how, trip.trip_id, tx)
        return Refused() if how in (How.REFUSE, How.BUSY) else None


def _traveller(trip: Journey) -> tuple[str, str]:
    return "traveller", trip.traveller


def _answered(step: RemoteStep[Journey], compensation: Callable[[Journey], Any] | None) -> None:
    """Each supplier answers in the same words."""

    def taken(trip: Journey, reply: Taken) -> None:
        trip.receipts = {**trip.receipts, step.name: reply.receipt}

    def refused(trip: Journey, reply: Reply) -> None:
        trip.reason = step.name

    step.on(Taken)(taken)
    step.on(SoldOut)(refused)
    step.on(Busy)(refused)
    if compensation is not None:
        step.compensate(compensation)


def stays(trip: Journey) -> bool:
    """Whether the traveller stays over night."""
    return trip.hotel is not None


def book_seat(trip: Journey) -> BookSeat:
    """Ask for a seat."""
    return BookSeat(trip_id=trip.trip_id, what=trip.flight)


def cancel_seat(trip: Journey) -> CancelSeat:
    """Somebody else may have it."""
    return CancelSeat(trip_id=trip.trip_id, what=trip.flight)


def book_room(trip: Journey) -> BookRoom:
    """Ask for a room."""
    return BookRoom(trip_id=trip.trip_id, what=trip.hotel or "")


def cancel_room(trip: Journey) -> CancelRoom:
    """Somebody else may have it."""
    return CancelRoom(trip_id=trip.trip_id, what=trip.hotel or "")


def book_bed(trip: Journey) -> BookBed:
    """Ask for a bed, where there was no room."""
    return BookBed(trip_id=trip.trip_id, what=trip.hostel)


def cancel_bed(trip: Journey) -> CancelBed:
    """Somebody else may have it."""
    return CancelBed(trip_id=trip.trip_id, what=trip.hostel)


def reserve_money(trip: Journey) -> ReserveMoney:
    """Ask for what it costs."""
    return ReserveMoney(trip_id=trip.trip_id, what=trip.traveller, amount=trip.price)


def return_money(trip: Journey) -> ReturnMoney:
    """It is the traveller's again."""
    return ReturnMoney(trip_id=trip.trip_id, what=trip.traveller, amount=trip.price)


def issue_ticket(trip: Journey) -> IssueTicket:
    """The trip is booked, whatever this takes."""
    return IssueTicket(trip_id=trip.trip_id, what=trip.tickets)
