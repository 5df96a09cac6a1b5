"""What a compensation is told, of a step and an alternative that leave what they produced in the same place."""

import pytest
from pydantic import BaseModel

from relay.messaging import Command, Done, Failure, Reply, Retry, Transaction
from relay.saga import Saga
from relay.saga.record import Record, rebuild
from relay.saga.testing import given
from relay.saga.testing.rehearsal import Sent
from relay.saga.testing.scenario import Scenario

ONCE = Retry(attempts=1)


class Reserved(Reply):
    room: str


class Full(Failure): ...


class Reserve(Command):
    replies = (Reserved, Full)


class Cancel(Command):
    room: str | None


class Charge(Command):
    replies = (Done, Full)


class Trip(BaseModel):
    room: str | None = None
    note: str | None = None


def reserved(trip: Trip, reply: Reserved) -> None:
    trip.room = reply.room


def full(trip: Trip, reply: Full) -> None:
    trip.note = "full"


def cancel(trip: Trip) -> Cancel:
    return Cancel(room=trip.room)


def a_trip() -> Saga[Trip]:
    saga = Saga("trip", state=Trip)

    @saga.local()
    async def open_trip(trip: Trip, tx: Transaction) -> None: ...

    @open_trip.compensate
    async def close_trip(trip: Trip, tx: Transaction) -> None: ...

    @saga.step(to="hotels", timeout="20s", retry=ONCE, compensation_retry=Retry(attempts=3, backoff="1s..1s"))
    def reserve_room(trip: Trip) -> Reserve:
        return Reserve()

    @reserve_room.or_else(to="hostels", timeout="1h", retry=ONCE)
    def reserve_bed(trip: Trip) -> Reserve:
        return Reserve()

    for step in (reserve_room, reserve_bed):
        step.on(Reserved)(reserved)
        step.on(Full)(full)
        step.compensate(cancel)

    @saga.step(to="payments", timeout="1h", pivot=True)
    def charge(trip: Trip) -> Charge:
        return Charge()

    charge.on(Full)(full)
    return saga


def given_nobody_knows_of_the_room() -> tuple[Scenario[Trip], Sent]:
    """And the command that the hotel may answer yet."""
    trip = given(a_trip(), Trip()).expect_command(Reserve, to="hotels")
    asked = trip.sent
    trip.after("20s").expect_command(Cancel, to="hotels", room=None).expect_command(Reserve, to="hostels")
    return trip, asked


def test_a_compensation_is_never_told_what_the_alternative_has_produced() -> None:
    trip, _ = given_nobody_knows_of_the_room()
    trip.reply(Reserved(room="bed 12")).after("21s")
    trip.expect_command(Cancel, to="hotels", room=None).after("21s").expect_command(Cancel, to="hotels", room=None)
    assert trip.state.room == "bed 12"


def test_what_arrives_late_is_told_to_the_next_attempt_of_its_own_compensation() -> None:
    trip, asked = given_nobody_knows_of_the_room()
    trip.reply(Reserved(room="bed 12")).reply(Reserved(room="room 7"), answers=asked).after("21s")
    trip.expect_command(Cancel, to="hotels", room="room 7")
    assert trip.state.room == "bed 12"


def test_the_alternative_is_undone_with_what_it_has_produced_itself() -> None:
    trip, _ = given_nobody_knows_of_the_room()
    trip.reply(Reserved(room="bed 12")).expect_command(Charge).reply(Full())
    trip.expect_command(Cancel, to="hostels", room="bed 12").reply()
    trip.after("21s").expect_command(Cancel, to="hotels", room=None).reply().expect_compensated()


def test_the_attempts_of_a_compensation_say_the_same_whatever_the_saga_is_told_meanwhile() -> None:
    saga: Saga[Trip] = Saga("trip", state=Trip, compensation="parallel")

    @saga.step(to="hotels", timeout="20s")
    def reserve_room(trip: Trip) -> Reserve:
        return Reserve()

    reserve_room.on(Reserved)(reserved)
    reserve_room.on(Full)(full)
    reserve_room.compensate(cancel)

    @saga.local(compensation_retry=Retry(attempts=2, backoff="1s..1s"))
    async def note_it(trip: Trip, tx: Transaction) -> None: ...

    @note_it.compensate
    async def forget_it(trip: Trip, tx: Transaction) -> None: ...

    @saga.step(to="payments", readonly=True)
    def charge(trip: Trip) -> Charge:
        return Charge()

    charge.on(Full)(full)

    def forgets(trip: Trip) -> None:
        trip.room = None

    trip = given(saga, Trip(), local={"forget_it": forgets}).fails("forget_it", ValueError("no"), times=1)
    trip.expect_command(Reserve).reply(Reserved(room="room 7")).expect_command(Charge).reply(Full())
    trip.expect_command(Cancel, room="room 7").after("1s")
    assert trip.state.room is None
    trip.after("30s").expect_command(Cancel, room="room 7")


@pytest.mark.parametrize("late", [False, True])
def test_the_log_and_the_row_both_know_what_the_compensation_is_told(late: bool) -> None:
    trip, asked = given_nobody_knows_of_the_room()
    trip.reply(Reserved(room="bed 12"))
    if late:
        trip.reply(Reserved(room="room 7"), answers=asked)
    record = trip.record
    assert record.steps["reserve_room"].undone_from == {"room": None, "note": None}
    assert rebuild(moment.event for moment in trip._rehearsal.story) == record
    assert Record.of(record.status.value, record.state, record.progress(), record.reason) == record


def test_what_a_compensation_is_told_is_kept_no_longer_than_it_is_needed() -> None:
    """A row has it only where it differs from the state, and only until the step is undone."""
    trip, _ = given_nobody_knows_of_the_room()
    assert trip.record.steps["reserve_room"].undone_from is None
    trip.reply(Reserved(room="bed 12")).after("21s").expect_command(Cancel, to="hotels").reply()
    assert trip.record.steps["reserve_room"].undone_from is None


def test_a_row_from_before_reads_as_one_whose_state_has_not_changed() -> None:
    row = {"steps": {"reserve_room": {"phase": "UNDOING", "attempt": 1, "undo_attempt": 1, "uncertain": True}}}
    record = Record.of("RUNNING", {"room": None, "note": None}, row, None)
    assert record.steps["reserve_room"].undone_from is None
    assert record.progress() == row
