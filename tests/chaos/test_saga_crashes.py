"""Sagas while somebody dies: an instance of the agency at each point, a supplier, PostgreSQL, RabbitMQ, all of them."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from signal import SIGKILL
from typing import Any

import pytest
import pytest_asyncio

from relay.demo.access import RELAY, relay_user
from relay.demo.servers.postgres import PrivatePostgres
from relay.demo.servers.rabbitmq import PrivateRabbitMQ
from tests.acceptance.saga_world import halt
from tests.acceptance.saga_world.agency import Journey
from tests.acceptance.saga_world.books import Trip
from tests.acceptance.saga_world.contracts import BookRoom, CancelRoom, CancelSeat, IssueTicket, ReserveMoney
from tests.acceptance.saga_world.halt import Halt
from tests.acceptance.saga_world.plans import How, gate
from tests.acceptance.saga_world.stage import AGENCY, CALLER, Servers
from tests.acceptance.saga_world.verdict import assert_adds_up, assert_in_time, assert_never_begun, assert_told_once
from tests.acceptance.saga_world.world import World
from tests.support.mailbox import QUEUE_IS_DURABLE_S
from tests.support.servers import RabbitServer, management, with_roles
from tests.support.waiting import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

INSTANCES = ("agency1", "agency2", "agency3")
FLOW = 40
"""Sagas that are under way when a server goes."""
BEGUN = 5
"""So many of them have ended by then."""
ALWAYS = 1_000
"""Also when it is asked for again, because nobody answered in time."""
ABSENCE_S = 61.0
RECOVERY_S = 90.0


@dataclass
class Own:
    """A PostgreSQL and a RabbitMQ that a test may kill."""

    postgres: PrivatePostgres
    rabbit: PrivateRabbitMQ


@pytest.fixture(scope="module")
def own() -> Iterator[tuple[Own, Servers]]:
    user = relay_user()
    with (
        PrivatePostgres(durable=False) as postgres,
        PrivateRabbitMQ([user]) as rabbit,
        management(rabbit.management_url, rabbit.admin.name, rabbit.admin.password) as api,
    ):
        broker = RabbitServer(rabbit.amqp_url(), api, {RELAY: user})
        yield Own(postgres, rabbit), Servers.furnish(with_roles(postgres.dsn("postgres")), broker)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(own: tuple[Own, Servers], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """Three instances of the agency, the suppliers and the relay: the same for all stories."""
    async with World(own[1], tmp_path_factory.mktemp("world"), agencies=len(INSTANCES)) as world:
        halt.install(world, AGENCY, "relay.saga_log", "relay.saga_timer")
        halt.install(world, "hotel", "ledger")
        yield world


@pytest_asyncio.fixture(loop_scope="module")
async def world(stage: World) -> AsyncIterator[World]:
    """At the end of each story all its sagas have ended and everything adds up. Who was killed is started again."""
    stage.trips.clear()
    yield stage
    try:
        await stage.until_all_end(within_s=RECOVERY_S)
        await assert_adds_up(stage)
    finally:
        for name, runner in stage.runners.items():
            if runner.process is None:
                await stage.restart(name)


@dataclass(frozen=True)
class Point:
    """Where an instance of the agency is killed: in the transaction that tells this event."""

    event: str
    step: str | None = None
    attempt: int | None = None
    saga: str = "journey"
    plans: tuple[tuple[str, Any, How], ...] = ()
    end: str = "COMPLETED"
    hotel: str | None = "Ritz"

    def __str__(self) -> str:
        return " ".join(str(word) for word in (self.event, self.step, self.attempt) if word is not None)

    @property
    def row(self) -> dict[str, Any]:
        said = {"event": self.event, "step": self.step, "attempt": self.attempt}
        return {name: value for name, value in said.items() if value is not None}

    @property
    def timed(self) -> bool:
        """Whether it is planned that somebody does not answer in time."""
        return any(how is How.HOLD for _, _, how in self.plans)


REFUSED = (("bank", ReserveMoney, How.REFUSE),)
HELD = (("hotel", BookRoom, How.HOLD),)
UNSURE = (*REFUSED, ("hotel", CancelRoom, How.HOLD))
HOPELESS = (*REFUSED, *[("hotel", CancelRoom, How.BUSY)] * 3)
POINTS = (
    # a reply is handled
    Point("StepSucceeded", "book_seat"),
    Point("StepSkipped", "book_room", hotel=None),
    Point("StepSucceeded", "confirm"),
    Point("SagaCompleted"),
    Point("StepFailed", "reserve_money", plans=REFUSED, end="COMPENSATED"),
    Point("StepCompensated", "book_room", plans=REFUSED, end="COMPENSATED"),
    Point("SagaCompensated", plans=REFUSED, end="COMPENSATED"),
    Point("SagaSuspended", "book_room", saga="fragile", plans=HOPELESS, end="SUSPENDED"),
    # a timer is fired
    Point("StepTimedOut", "book_room", saga="hasty", plans=HELD),
    Point("StepStarted", "book_room", 2, plans=(("hotel", BookRoom, How.BUSY),)),
    Point("SagaTimedOut", saga="bounded", plans=HELD, end="COMPENSATED"),
    Point("CompensationFailed", "book_room", saga="hasty", plans=UNSURE, end="COMPENSATED"),
)


either_side_of_the_commit = pytest.mark.parametrize(
    "at_commit", [False, True], ids=["before-the-commit", "between-commit-and-acknowledgement"]
)


@either_side_of_the_commit
@pytest.mark.parametrize("point", POINTS, ids=str)
async def test_one_of_three_instances_is_killed_and_another_goes_on(
    world: World, point: Point, at_commit: bool
) -> None:
    """Once, and without the one that was killed."""
    journey = world.journey(hotel=point.hotel)
    for where, what, how in point.plans:
        world.plan(where, journey, what, how)
    async with world.gate_shut("hotel", journey):
        async with Halt(world, AGENCY, point.row, at_commit=at_commit) as here:
            trip = await world.start(point.saga, journey)
            await world.runners[await here.reached()].kill()
        await world.until_told(trip, point.event, point.step)
    await world.until(trip, "COMPLETED", "COMPENSATED", "SUSPENDED")
    assert world.status(trip) == point.end, world.story(trip)
    assert_told_once(world, trip)
    if not point.timed:
        assert_in_time(world, trip)
    if point.end == "SUSPENDED":
        world.trips.remove(trip)  # it stays so


def lost_ticket(world: World) -> Journey:
    """A journey that is suspended at its ticket, and goes on when the gate of the flights is opened."""
    journey = world.journey()
    world.plan("flights", journey, IssueTicket, How.BUSY, times=2)
    world.plan("flights", journey, IssueTicket, How.HOLD)
    return journey


@either_side_of_the_commit
async def test_who_suspends_a_saga_is_killed_and_another_suspends_it(world: World, at_commit: bool) -> None:
    """Once, for the same reason. It can go on after that."""
    journey = lost_ticket(world)
    async with world.gate_shut("flights", journey):
        async with Halt(world, AGENCY, {"event": "SagaSuspended"}, at_commit=at_commit) as here:
            trip = await world.start("hasty", journey)
            await world.runners[await here.reached()].kill()
        await world.until(trip, "SUSPENDED")
        assert world.reason(trip) == "issue_ticket: no reply within 1 s"
    await world.until(trip, "COMPLETED")
    assert_told_once(world, trip)


@either_side_of_the_commit
async def test_who_goes_on_with_a_suspended_saga_is_killed_and_another_goes_on(world: World, at_commit: bool) -> None:
    journey = lost_ticket(world)
    step = {"event": "StepSucceeded", "step": "issue_ticket"}
    async with Halt(world, AGENCY, step, at_commit=at_commit) as here:
        async with world.gate_shut("flights", journey):
            trip = await world.start("hasty", journey)
            await world.until(trip, "SUSPENDED")
        await world.runners[await here.reached()].kill()
    await world.until(trip, "COMPLETED")
    assert_told_once(world, trip)


LET_IN = {"purpose": "lock"}
"""A timer: the last thing that the end of a saga does for the one that waits for its lock."""
BEGINS = {"event": "SagaStarted", "ordinal": 2}
"""Of a saga that has waited: that was its first event."""


@either_side_of_the_commit
@pytest.mark.parametrize("moment", [LET_IN, BEGINS], ids=["lets-it-in", "begins-it"])
async def test_who_lets_in_a_saga_that_waits_is_killed_and_another_lets_it_in(
    world: World, moment: dict[str, Any], at_commit: bool
) -> None:
    """Once, and not before the saga that had the lock has ended."""
    first = world.journey()
    second = world.journey(traveller=first.traveller)
    world.plan("bank", first, ReserveMoney, How.HOLD)
    async with Halt(world, AGENCY, moment, at_commit=at_commit) as here:
        async with world.gate_shut("bank", first):
            trips = [await world.start("turn", journey) for journey in (first, second)]
            await world.until_held("bank", gate(first.trip_id))
            assert world.status(trips[1]) == "WAITING"
        await world.runners[await here.reached()].kill()
    for trip in trips:
        await world.until(trip, "COMPLETED")
        assert_told_once(world, trip)
        assert_in_time(world, trip)
    assert world.told_at(trips[0], "SagaCompleted") < world.told_at(trips[1], "SagaStarted")


async def call_and_die(world: World, here: Halt, verb: str, *about: str) -> None:
    """Somebody calls the agency, and whoever answers is killed where he halts."""
    async with world.calling(verb, *about) as caller:
        assert await here.reached() == CALLER
        await caller.end(SIGKILL)


either_side_of_the_answer = pytest.mark.parametrize(
    "at_commit", [False, True], ids=["before-the-commit", "between-commit-and-answer"]
)


@either_side_of_the_answer
@pytest.mark.parametrize("waits", [False, True], ids=["at-once", "behind-another"])
async def test_who_starts_a_saga_is_killed_and_it_has_begun_or_never_was(
    world: World, waits: bool, at_commit: bool
) -> None:
    """The others go on with one that has begun. One that has not left nothing, and can be started again."""
    first = world.journey()
    journey = world.journey(traveller=first.traveller)
    world.plan("bank", first, ReserveMoney, How.HOLD)
    async with world.gate_shut("bank", first):
        if waits:
            await world.start("turn", first)
        event = "SagaWaiting" if waits else "SagaStarted"
        async with Halt(world, AGENCY, {"event": event}, at_commit=at_commit) as here:
            await call_and_die(world, here, "start", "turn", journey.model_dump_json())
        await world.until_caller_is_gone()
        if at_commit:
            world.trips += world.about(journey)
        else:
            assert_never_begun(world, journey)
            await world.start("turn", journey)
    (trip,) = world.about(journey)
    await world.until(trip, "COMPLETED")
    assert_told_once(world, trip)
    assert_in_time(world, trip)


@either_side_of_the_answer
async def test_who_aborts_a_saga_is_killed_and_it_is_undone_or_goes_on(world: World, at_commit: bool) -> None:
    journey = world.journey()
    world.plan("hotel", journey, BookRoom, How.HOLD)
    async with world.gate_shut("hotel", journey):
        trip = await world.start("package", journey)
        await world.until_told(trip, "StepSucceeded", "book_seat")
        async with Halt(world, AGENCY, {"event": "SagaAborted"}, at_commit=at_commit) as here:
            await call_and_die(world, here, "abort", str(trip.saga_id))
        await world.until_caller_is_gone()
        assert world.status(trip) == ("COMPENSATING" if at_commit else "RUNNING")
        if at_commit:  # the others go on with what he has begun
            await world.until_told(trip, "StepCompensated", "book_seat")
    await world.until(trip, "COMPENSATED" if at_commit else "COMPLETED")
    assert_told_once(world, trip)
    assert_in_time(world, trip)
    assert (world.reason(trip) == "changed his mind") == at_commit


async def test_idle_instances_are_killed_and_the_last_one_goes_on(world: World) -> None:
    journey = world.journey()
    world.plan("bank", journey, ReserveMoney, How.HOLD)
    async with world.gate_shut("bank", journey):
        trip = await world.start("journey", journey)
        await world.until_held("bank", gate(journey.trip_id))
        for name in INSTANCES[:2]:
            await world.runners[name].kill()
    await world.until(trip, "COMPLETED")


async def test_all_instances_are_killed_and_go_on_when_they_are_back(world: World) -> None:
    journeys = [world.journey() for _ in range(3)]
    world.plan("bank", journeys[0], ReserveMoney, How.HOLD)
    for journey in journeys[1:]:
        world.plan("bank", journey, ReserveMoney, How.REFUSE, times=ALWAYS)
    async with world.gate_shut("bank", journeys[0]):
        trips = [await world.start("hasty", journey) for journey in journeys]
        await world.until_told(trips[1], "StepStarted", "book_room")
        for name in INSTANCES:
            await world.runners[name].kill()
    for name in INSTANCES:
        await world.restart(name)
    await world.until_all_end(trips)
    assert [world.status(trip) for trip in trips[1:]] == ["COMPENSATED"] * 2


@either_side_of_the_commit
@pytest.mark.parametrize("command", ["BookRoom", "CancelRoom"])
async def test_a_supplier_is_killed_and_does_its_part_once(world: World, command: str, at_commit: bool) -> None:
    journey = world.journey()
    if command == "CancelRoom":
        world.plan("bank", journey, ReserveMoney, How.REFUSE)
    async with Halt(world, "hotel", {"command": command}, at_commit=at_commit) as here:
        trip = await world.start("journey", journey)
        assert await here.reached() == "hotel"
        await world.runners["hotel"].kill()
    await world.restart("hotel")
    await world.until(trip, "COMPLETED" if command == "BookRoom" else "COMPENSATED")
    assert world.ledger(trip).count(command) == 1


async def test_the_relay_is_killed_and_started_again(world: World) -> None:
    trips = await under_way(world)
    await world.runners["relay"].kill()
    await world.restart("relay")
    await end_as_planned(world, trips)


@pytest.mark.parametrize("blow", [PrivatePostgres.stop, PrivatePostgres.kill], ids=["stopped", "killed"])
async def test_postgresql_goes_away_and_comes_back(
    world: World, own: tuple[Own, Servers], blow: Callable[[PrivatePostgres], None]
) -> None:
    trips = await under_way(world)
    await asyncio.to_thread(blow, own[0].postgres)
    await asyncio.to_thread(own[0].postgres.start)
    for database in world.databases.values():
        database.reconnect()
    await world.connect()
    await end_as_planned(world, trips)


async def test_rabbitmq_is_restarted(world: World, own: tuple[Own, Servers]) -> None:
    await asyncio.sleep(QUEUE_IS_DURABLE_S)
    trips = await under_way(world)
    await asyncio.to_thread(own[0].rabbit.restart)
    await end_as_planned(world, trips)


async def under_way(world: World) -> list[Trip]:
    """Sagas in every state, a few of them ended; every fourth will be undone."""
    journeys = [world.journey() for _ in range(FLOW)]
    for journey in journeys[::4]:
        world.plan("bank", journey, ReserveMoney, How.REFUSE, times=ALWAYS)
        world.plan("flights", journey, CancelSeat, How.BUSY)
    trips = [await world.start("package", journey) for journey in journeys]
    ended = "SELECT count(*) FROM relay.saga WHERE ended_at IS NOT NULL AND id = ANY(%s)"
    ids = [trip.saga_id for trip in trips]
    await eventually(lambda: int(world.databases[AGENCY].value(ended, ids)) >= BEGUN)  # type: ignore[call-overload]
    assert world.databases[AGENCY].value(ended, ids) != FLOW
    return trips


async def end_as_planned(world: World, trips: list[Trip]) -> None:
    """As if nothing had happened."""
    await world.until_all_end(trips, RECOVERY_S)
    ends = Counter(world.status(trip) for trip in trips)
    assert ends == {"COMPLETED": FLOW - FLOW // 4, "COMPENSATED": FLOW // 4}, ends


@pytest.mark.timeout(240)
async def test_a_supplier_is_away_for_a_minute(world: World) -> None:
    """Who is patient gets his room, who is not goes home; a compensation that was given up is done all the same."""
    await world.runners["hotel"].kill()
    without = await world.start("journey", world.journey(hotel=None))
    patient = [await world.start("patient") for _ in range(5)]
    hasty = [await world.start("hasty") for _ in range(5)]
    flimsy = await world.start("flimsy")
    await world.until(without, "COMPLETED")
    await world.until(flimsy, "SUSPENDED")
    await asyncio.sleep(ABSENCE_S)  # that is the fault
    await world.restart("hotel")
    await world.until_all_end([*patient, *hasty, flimsy], RECOVERY_S)
    assert {world.status(trip) for trip in patient} == {"COMPLETED"}
    assert {world.status(trip) for trip in (*hasty, flimsy)} == {"COMPENSATED"}
