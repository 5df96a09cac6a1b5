"""Sagas, whole: an agency and its suppliers as processes, the real relay between them, and all that can go wrong."""

from collections import Counter
from collections.abc import AsyncIterator
from signal import SIGCONT, SIGSTOP

import pytest
import pytest_asyncio

from relay.broker.properties import ATTEMPT, COMPENSATION
from relay.saga import Locked
from tests.acceptance.saga_world.books import Trip
from tests.acceptance.saga_world.contracts import (
    BookRoom,
    BookSeat,
    CancelRoom,
    CancelSeat,
    IssueTicket,
    ReserveMoney,
)
from tests.acceptance.saga_world.detour import Copy, Detour, Scatter, always
from tests.acceptance.saga_world.plans import How, gate
from tests.acceptance.saga_world.stage import NAMES, Servers
from tests.acceptance.saga_world.verdict import assert_adds_up
from tests.acceptance.saga_world.world import World
from tests.support.servers import PostgresServer, RabbitServer
from tests.support.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

ALL = ["BookRoom", "BookSeat", "IssueTicket", "ReserveMoney"]
"""What a journey with nothing amiss takes of the suppliers."""

TAKEN = ["BookRoom", "BookSeat", "ReserveMoney"]
UNDONE = ["CancelRoom", "CancelSeat", "ReturnMoney"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(
    postgres: PostgresServer, rabbit: RabbitServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    """The agency, its suppliers and the relay: the same for all stories."""
    async with World(Servers.furnish(postgres, rabbit), tmp_path_factory.mktemp("world")) as world:
        yield world


@pytest_asyncio.fixture(loop_scope="module")
async def world(stage: World) -> AsyncIterator[World]:
    """At the end of each story all its sagas have ended, and everything adds up."""
    stage.trips.clear()
    yield stage
    await stage.until_all_end()
    await assert_adds_up(stage)


async def ended(world: World, trip: Trip, status: str) -> None:
    """Wait for the end of a saga, which has to be this one."""
    await world.until(trip, "COMPLETED", "COMPENSATED", "SUSPENDED")
    assert world.status(trip) == status, world.story(trip)


# Business


@pytest.mark.parametrize("saga", ["journey", "package", "turn"])
async def test_everything_is_as_it_should_be(world: World, saga: str) -> None:
    trip = await world.start(saga)
    await ended(world, trip, "COMPLETED")
    assert world.ledger(trip) == ALL
    assert world.state(trip)["receipts"].keys() == {"book_seat", "book_room", "reserve_money", "issue_ticket"}
    assert world.steps(trip, "StepCompensating") == []


async def test_a_step_whose_condition_does_not_hold_is_skipped(world: World) -> None:
    trip = await world.start("journey", world.journey(hotel=None))
    await ended(world, trip, "COMPLETED")
    assert world.steps(trip, "StepSkipped") == ["book_room"]
    assert world.ledger(trip) == ["BookSeat", "IssueTicket", "ReserveMoney"]


async def test_the_first_step_is_refused_and_nobody_else_is_asked(world: World) -> None:
    journey = world.journey()
    world.plan("flights", journey, BookSeat, How.REFUSE)
    trip = await world.start("journey", journey)
    await ended(world, trip, "COMPENSATED")
    assert world.reason(trip) == "SoldOut"
    assert world.ledger(trip) == []
    assert world.steps(trip, "StepCompensating") == ["open_file"]


async def test_a_step_in_the_middle_is_refused_and_what_was_before_is_undone(world: World) -> None:
    journey = world.journey()
    world.plan("hotel", journey, BookRoom, How.REFUSE)
    trip = await world.start("journey", journey)
    await ended(world, trip, "COMPENSATED")
    assert world.ledger(trip) == ["BookSeat", "CancelSeat"]
    assert world.steps(trip, "StepCompensating") == ["book_seat", "open_file"]


async def test_the_last_step_that_can_be_undone_is_refused_and_all_are_undone_in_reverse_order(world: World) -> None:
    world.offer("bank", "poor", capacity=99)
    trip = await world.start("journey", world.journey(traveller="poor", price=100))
    await ended(world, trip, "COMPENSATED")
    assert world.ledger(trip) == ["BookRoom", "BookSeat", "CancelRoom", "CancelSeat"]
    assert world.steps(trip, "StepCompensated") == ["book_room", "book_seat", "open_file"]


async def test_the_pivot_fails_and_all_are_undone(world: World) -> None:
    journey = world.journey()
    world.plan("agency", journey, "confirm", How.REFUSE)
    trip = await world.start("journey", journey)
    await ended(world, trip, "COMPENSATED")
    assert world.steps(trip, "StepCompensated") == ["reserve_money", "book_room", "book_seat", "open_file"]


@pytest.mark.parametrize("how", [How.REFUSE, How.BUSY])
async def test_a_step_after_the_pivot_is_tried_until_it_succeeds(world: World, how: How) -> None:
    journey = world.journey()
    world.plan("flights", journey, IssueTicket, how, times=3)
    trip = await world.start("journey", journey)
    await ended(world, trip, "COMPLETED")
    assert world.steps(trip, "StepFailed") == ["issue_ticket"] * 3
    assert world.tried("flights", trip, IssueTicket) == 4


async def test_a_step_after_the_pivot_that_never_succeeds_suspends_the_saga_which_goes_on_with_a_late_reply(
    world: World,
) -> None:
    journey = world.journey()
    world.plan("flights", journey, IssueTicket, How.HOLD)
    async with world.gate_shut("flights", journey):
        trip = await world.start("hasty", journey)
        await ended(world, trip, "SUSPENDED")
        assert world.reason(trip) == "issue_ticket: no reply within 1 s"
    await world.until(trip, "COMPLETED")


async def test_a_failure_that_passes_is_tried_again_and_nothing_is_done_twice(world: World) -> None:
    journey = world.journey()
    world.plan("hotel", journey, BookRoom, How.BUSY, times=2)
    trip = await world.start("journey", journey)
    await ended(world, trip, "COMPLETED")
    assert world.tried("hotel", trip, BookRoom) == 3
    assert world.ledger(trip) == ALL


async def test_where_there_is_no_room_a_bed_will_do(world: World) -> None:
    journey = world.journey()
    world.plan("hotel", journey, BookRoom, How.REFUSE)
    trip = await world.start("backpack", journey)
    await ended(world, trip, "COMPLETED")
    assert world.ledger(trip) == ["BookBed", "BookSeat", "IssueTicket", "ReserveMoney"]


# Exceptions


async def test_the_second_service_raises_for_a_while_and_nobody_notices(world: World) -> None:
    journey = world.journey()
    world.plan("hotel", journey, BookRoom, How.RAISE, times=world.attempts - 1)
    trip = await world.start("journey", journey)
    await ended(world, trip, "COMPLETED")
    assert world.tried("hotel", trip, BookRoom) == world.attempts
    assert world.steps(trip, "StepFailed") == []


async def test_the_second_service_raises_whatever_is_tried_and_the_first_is_undone(world: World) -> None:
    journey = world.journey()
    world.plan("hotel", journey, BookRoom, How.RAISE, times=1_000)
    trip = await world.start("hasty", journey)
    await ended(world, trip, "COMPENSATED")
    assert world.ledger(trip) == ["BookSeat", "CancelSeat"]
    assert world.steps(trip, "StepCompensated") == ["book_room", "book_seat", "open_file"]
    # The message with the bug in its handler is kept for a person, who has it tried again when the bug is gone. By then
    # its work is not wanted any more.
    dead = "SELECT count(*) FROM relay.deferred WHERE dead_at IS NOT NULL"
    await eventually(lambda: world.databases["hotel"].value(dead) == 1)
    world.databases["hotel"].query("DELETE FROM plan")
    world.databases["hotel"].query("UPDATE relay.deferred SET dead_at = NULL, attempts = 0, due_at = now()")
    await eventually(lambda: world.databases["hotel"].value("SELECT count(*) FROM relay.deferred") == 0)
    assert world.ledger(trip) == ["BookSeat", "CancelSeat"]


async def test_the_agency_itself_raises_for_a_while(world: World) -> None:
    journey = world.journey()
    world.plan("agency", journey, "confirm", How.RAISE, times=2)
    trip = await world.start("journey", journey)
    await ended(world, trip, "COMPLETED")
    assert [event.reason for event in world.story(trip) if event.event == "StepFailed"] == [
        "Broken: this was planned",
        "Broken: this was planned",
    ]


# Time


async def test_a_step_times_out_and_what_it_does_afterwards_is_undone(world: World) -> None:
    journey = world.journey()
    world.plan("hotel", journey, BookRoom, How.HOLD)
    async with world.gate_shut("hotel", journey):
        trip = await world.start("hasty", journey)
        await world.until(trip, "COMPENSATING")
        assert world.steps(trip, "StepTimedOut") == ["book_room"] * 3
    await ended(world, trip, "COMPENSATED")
    assert world.ledger(trip) == ["BookRoom", "BookSeat", "CancelRoom", "CancelSeat"]


async def test_a_reply_that_comes_before_the_next_attempt_has_timed_out_is_good(world: World) -> None:
    journey = world.journey()
    world.plan("hotel", journey, BookRoom, How.HOLD)
    async with world.gate_shut("hotel", journey):
        trip = await world.start("hasty", journey)
        await eventually(lambda: [e.attempt for e in world.story(trip) if e.step == "book_room"][-1:] == [2])
    await ended(world, trip, "COMPLETED")
    assert world.tried("hotel", trip, BookRoom) == 1


async def test_a_saga_times_out_while_a_step_is_waited_for(world: World) -> None:
    journey = world.journey()
    world.plan("bank", journey, ReserveMoney, How.HOLD)
    async with world.gate_shut("bank", journey):
        trip = await world.start("bounded", journey)
        await world.until_told(trip, "SagaTimedOut")
    await ended(world, trip, "COMPENSATED")
    assert world.ledger(trip) == sorted([*TAKEN, *UNDONE])


async def test_a_saga_that_is_past_the_pivot_does_not_time_out(world: World) -> None:
    journey = world.journey()
    world.plan("flights", journey, IssueTicket, How.HOLD)
    fired = (
        "SELECT count(*) FROM relay.saga_timer WHERE saga_id = %s AND purpose = 'saga_timeout' AND fired_at IS NOT NULL"
    )
    async with world.gate_shut("flights", journey):
        trip = await world.start("bounded", journey)
        await eventually(lambda: world.databases["agency"].value(fired, trip.saga_id) == 1)
    await ended(world, trip, "COMPLETED")


# Undoing


async def test_a_compensation_fails_and_is_tried_again(world: World) -> None:
    journey = world.journey()
    world.plan("bank", journey, ReserveMoney, How.REFUSE)
    world.plan("hotel", journey, CancelRoom, How.BUSY, times=2)
    world.plan("flights", journey, CancelSeat, How.RAISE, times=2)
    trip = await world.start("journey", journey)
    await ended(world, trip, "COMPENSATED")
    assert world.steps(trip, "CompensationFailed") == ["book_room", "book_room"]
    assert world.ledger(trip) == ["BookRoom", "BookSeat", "CancelRoom", "CancelSeat"]


async def test_a_compensation_that_fails_too_often_suspends_the_saga_with_the_reason(world: World) -> None:
    journey = world.journey()
    world.plan("bank", journey, ReserveMoney, How.REFUSE)
    world.plan("hotel", journey, CancelRoom, How.BUSY, times=3)
    trip = await world.start("fragile", journey)
    await ended(world, trip, "SUSPENDED")
    assert world.reason(trip) == "book_room cannot be undone: Busy"
    assert world.steps(trip, "CompensationFailed") == ["book_room"] * 3
    assert world.ledger(trip) == ["BookRoom", "BookSeat"]  # in reverse order, and no further
    world.trips.remove(trip)  # it stays so


async def test_a_suspended_compensation_goes_on_with_the_reply_that_was_missing(world: World) -> None:
    journey = world.journey()
    world.plan("bank", journey, ReserveMoney, How.REFUSE)
    world.plan("hotel", journey, CancelRoom, How.HOLD)
    async with world.gate_shut("hotel", journey):
        trip = await world.start("flimsy", journey)
        await ended(world, trip, "SUSPENDED")
        assert world.reason(trip) == "book_room cannot be undone: no reply within 1 s"
    await world.until(trip, "COMPENSATED")
    assert world.ledger(trip) == ["BookRoom", "BookSeat", "CancelRoom", "CancelSeat"]


async def test_an_abort_arrives_while_a_reply_is_on_its_way(world: World) -> None:
    async with Detour(world.servers, "agency") as detour:
        trip = await world.start("journey")
        await detour.send_on(*await detour.until("Taken"))
        _, room = await detour.until("Taken", count=2)
        assert await world.abort(trip)
        assert world.status(trip) == "COMPENSATING"
        await detour.send_on(room)
        await world.until_told(trip, "StepSucceeded", "book_room")
    await ended(world, trip, "COMPENSATED")
    assert world.reason(trip) == "changed his mind"
    assert world.ledger(trip) == ["BookRoom", "BookSeat", "CancelRoom", "CancelSeat"]


async def test_nobody_changes_his_mind_after_the_pivot_or_the_end(world: World) -> None:
    journey = world.journey()
    world.plan("flights", journey, IssueTicket, How.HOLD)
    async with world.gate_shut("flights", journey):
        trip = await world.start("journey", journey)
        await world.until_told(trip, "StepStarted", "issue_ticket")
        assert not await world.abort(trip)
    await ended(world, trip, "COMPLETED")
    assert not await world.abort(trip)


async def test_an_action_that_comes_after_its_compensation_does_nothing_and_says_so(world: World) -> None:
    async with Detour(world.servers, "agency") as agency:
        async with Detour(world.servers, "hotel") as hotel:
            trip = await world.start("hasty")
            await agency.send_on(*await agency.until("Taken"))
            (undo, *_) = await hotel.until("CancelRoom")
            late = await hotel.until("BookRoom", count=3)
            await hotel.send_on(undo, *late)
        cancelled = await agency.until("OperationCancelled", count=3)
        assert [said.properties.headers.get(ATTEMPT) for said in cancelled] == [None, "2", "3"]
        assert (await agency.until("Compensated"))[0].properties.headers[COMPENSATION] == "1"
    await ended(world, trip, "COMPENSATED")
    assert world.ledger(trip) == ["BookSeat", "CancelSeat"]
    assert world.tried("hotel", trip, BookRoom) == world.tried("hotel", trip, CancelRoom) == 0


# Together


async def test_flight_and_hotel_are_asked_together_and_the_one_is_undone_when_the_other_refuses(world: World) -> None:
    journey = world.journey()
    world.plan("flights", journey, BookSeat, How.HOLD)
    world.plan("hotel", journey, BookRoom, How.REFUSE)
    async with world.gate_shut("flights", journey):
        trip = await world.start("package", journey)
        await world.until_told(trip, "StepFailed", "book_room")
    await ended(world, trip, "COMPENSATED")
    assert world.ledger(trip) == ["BookSeat", "CancelSeat"]


async def test_sagas_at_once_on_one_customer_never_exceed_the_limit(world: World) -> None:
    world.offer("bank", "Midas", capacity=1_000)
    trips = [await world.start("package", world.journey(traveller="Midas", price=100)) for _ in range(30)]
    await world.until_all_end(trips)
    assert Counter(world.status(trip) for trip in trips) == {"COMPLETED": 10, "COMPENSATED": 20}
    assert world.taken("bank", "Midas") == (1_000, 1_000)


async def test_sagas_on_one_traveller_queue_and_come_in_turn(world: World) -> None:
    journeys = [world.journey(traveller="Ada") for _ in range(6)]
    world.plan("bank", journeys[0], ReserveMoney, How.HOLD)
    world.plan("hotel", journeys[2], BookRoom, How.REFUSE)
    async with world.gate_shut("bank", journeys[0]):
        trips = [await world.start("turn", journey) for journey in journeys]
        await world.until_held("bank", gate(journeys[0].trip_id))
        assert [world.status(trip) for trip in trips] == ["RUNNING", *["WAITING"] * 5]
    await world.until_all_end(trips)
    statuses = ["COMPENSATED" if number == 2 else "COMPLETED" for number in range(6)]
    assert [world.status(trip) for trip in trips] == statuses
    text = "SELECT trip FROM diary WHERE entry = 'open_file' AND trip = ANY(%s) ORDER BY id"
    opened = world.databases["agency"].query(text, [trip.id for trip in trips])
    assert opened == [(trip.id,) for trip in trips]


async def test_a_second_saga_on_a_traveller_is_refused_or_waits_no_longer_than_it_may(world: World) -> None:
    first = world.journey(traveller="Bob")
    world.plan("bank", first, ReserveMoney, How.HOLD)
    async with world.gate_shut("bank", first):
        trip = await world.start("exclusive", first)
        with pytest.raises(Locked, match=str(trip.saga_id)):
            await world.start("exclusive", world.journey(traveller="Bob"))
        waiting = await world.start("impatient", world.journey(traveller="Bob"))
        await world.until(waiting, "COMPENSATED")
        assert world.steps(waiting, "StepStarted") == []
    await ended(world, trip, "COMPLETED")
    world.trips.remove(waiting)  # nothing of it ever happened
    again = await world.start("exclusive", world.journey(traveller="Bob"))
    await ended(world, again, "COMPLETED")


# Messages


async def test_every_message_is_delivered_twice(world: World) -> None:
    refused = world.journey()
    world.plan("bank", refused, ReserveMoney, How.REFUSE)
    async with Scatter(world.servers, NAMES, always(Copy(), Copy())) as scatter:
        trips = [await world.start("package"), await world.start("package", refused)]
        await world.until_all_end(trips)
    assert scatter.repeats >= 2 * len([*ALL, *TAKEN])
    assert [world.status(trip) for trip in trips] == ["COMPLETED", "COMPENSATED"]
    assert world.ledger(trips[0]) == ALL


async def test_every_command_is_repeated_as_a_new_message_and_answered_again(world: World) -> None:
    refused = world.journey()
    world.plan("bank", refused, ReserveMoney, How.REFUSE)
    async with Scatter(world.servers, NAMES, always(Copy(), Copy(renamed=True), Copy(renamed=True))):
        trips = [await world.start("package"), await world.start("package", refused)]
        await world.until_all_end(trips)
    assert [world.status(trip) for trip in trips] == ["COMPLETED", "COMPENSATED"]
    assert world.tried("flights", trips[0], BookSeat) == world.tried("flights", trips[1], CancelSeat) == 1
    assert world.tried("bank", trips[1], ReserveMoney) == 1


async def test_replies_come_in_another_order_than_they_were_sent_and_again(world: World) -> None:
    async with Detour(world.servers, "agency") as detour:
        trip = await world.start("package")
        first, second = await detour.until("Taken", count=2)
        await detour.send_on(second, first)
        _, _, money = await detour.until("Taken", count=3)
        await detour.send_on(first, money, second)
        _, _, _, ticket = await detour.until("Taken", count=4)
        await detour.send_on(ticket, money, second, first)
        await ended(world, trip, "COMPLETED")


async def test_the_reply_of_an_earlier_attempt_comes_after_that_of_a_later_one_and_changes_nothing(
    world: World,
) -> None:
    journey = world.journey(hotel=None)
    world.plan("flights", journey, BookSeat, How.BUSY)
    async with Detour(world.servers, "agency") as detour:
        trip = await world.start("hasty", journey)
        (failure,) = await detour.until("Busy")
        (success,) = await detour.until("Taken")
        await detour.send_on(success, failure)
    await ended(world, trip, "COMPLETED")
    assert [told.attempt for told in world.story(trip) if told.event == "StepTimedOut"] == [1]
    assert world.steps(trip, "StepFailed") == []


# Absence


async def test_a_service_that_hangs_holds_up_its_own_sagas_only(world: World) -> None:
    """It is frozen with its connections open. Others go on, and so does it when it is back."""
    world.runners["hotel"].signal(SIGSTOP)
    try:
        without = await world.start("journey", world.journey(hotel=None))
        stuck, given_up = await world.start("journey"), await world.start("hasty")
        await ended(world, without, "COMPLETED")
        await world.until(given_up, "COMPENSATING")
    finally:
        world.runners["hotel"].signal(SIGCONT)
    await ended(world, stuck, "COMPLETED")
    await ended(world, given_up, "COMPENSATED")
