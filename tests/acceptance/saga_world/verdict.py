"""Whether everything adds up: checked from outside, in the tables of the agency and its suppliers."""

from collections import Counter
from collections.abc import Iterable

from relay.saga import log
from relay.saga.record import Record, rebuild
from tests.acceptance.saga_world.agency import Journey
from tests.acceptance.saga_world.books import Trip
from tests.acceptance.saga_world.stage import AGENCY, SUPPLIERS
from tests.acceptance.saga_world.world import World

TAKEN = {"book_seat": "BookSeat", "book_room": "BookRoom", "book_bed": "BookBed", "reserve_money": "ReserveMoney"}
UNDONE = {"BookSeat": "CancelSeat", "BookRoom": "CancelRoom", "BookBed": "CancelBed", "ReserveMoney": "ReturnMoney"}


async def assert_adds_up(world: World, trips: Iterable[Trip] | None = None) -> Counter[str]:
    """Each saga is as its log tells, and what it did and did not do is what its end says. Nothing is left over.

    Returns how many ended how.
    """
    trips = list(world.trips if trips is None else trips)
    ends = Counter(world.status(trip) for trip in trips)
    assert not ends.keys() - {"COMPLETED", "COMPENSATED"}, ends
    for trip in trips:
        await assert_as_told(world, trip)
        if world.status(trip) == "COMPLETED":
            assert_completed(world, trip)
        else:
            assert_compensated(world, trip)
    assert_nothing_left(world, trips)
    assert_stock_adds_up(world)
    return ends


async def assert_as_told(world: World, trip: Trip) -> None:
    """The row of the saga is what its log, read alone, makes of it."""
    text = "SELECT status, state, progress, reason, events FROM relay.saga WHERE id = %s"
    ((status, state, progress, reason, events),) = world.databases[AGENCY].query(text, trip.saga_id)
    told = await log.read(world.connection, trip.saga_id)
    assert len(told) == events
    assert rebuild(told) == Record.of(status, state, progress, reason), trip  # type: ignore[arg-type]


def assert_told_once(world: World, trip: Trip) -> None:
    """Nothing has happened twice: what was taken from one who was killed was done by another, and by nobody else."""
    told = Counter((told.event, told.step, told.attempt) for told in world.story(trip))
    assert max(told.values()) == 1, story(world, trip)


def assert_in_time(world: World, trip: Trip) -> None:
    """Nobody was waited for in vain. Where something was lost, another attempt would have made up for it."""
    assert not [told for told in world.story(trip) if "no reply" in (told.reason or "")], story(world, trip)


def assert_never_begun(world: World, journey: Journey) -> None:
    """No saga is about it, and there is nothing that one would leave: a lock, a timer, a command, what a step wrote."""
    agency = world.databases[AGENCY]
    assert world.about(journey) == []
    for table in ("saga_log", "saga_timer", "saga_lock"):
        orphans = (
            f"SELECT count(*) FROM relay.{table} AS t WHERE NOT EXISTS (SELECT FROM relay.saga WHERE id = t.saga_id)"
        )
        assert agency.value(orphans) == 0, table
    trip = str(journey.trip_id)
    assert agency.value("SELECT count(*) FROM relay.outbox WHERE payload ->> 'trip_id' = %s", trip) == 0
    assert agency.value("SELECT count(*) FROM trip WHERE id = %s", trip) == 0
    assert agency.value("SELECT count(*) FROM diary WHERE trip = %s", trip) == 0


def assert_completed(world: World, trip: Trip) -> None:
    """Everything has been done once, and nothing undone but what an alternative was found for."""
    done = Counter(world.ledger(trip))
    assert world.diary(trip) == ["open_file", "confirm"], story(world, trip)
    expected = {"BookSeat": 1, "ReserveMoney": 1, "IssueTicket": 1}
    nights = net(done, "BookRoom") + net(done, "BookBed")
    assert nights == (trip.journey.hotel is not None), story(world, trip)
    assert {name: done[name] for name in expected} == expected, story(world, trip)
    assert not done["CancelSeat"] + done["ReturnMoney"], story(world, trip)
    assert max(done.values()) == 1, story(world, trip)


def assert_compensated(world: World, trip: Trip) -> None:
    """What was done is undone, each once; no ticket was ever issued."""
    done = Counter(world.ledger(trip))
    assert world.diary(trip) == ["open_file", "close_file"], story(world, trip)
    assert not done["IssueTicket"], story(world, trip)
    assert all(net(done, command) == 0 for command in UNDONE), story(world, trip)
    assert not done or max(done.values()) == 1, story(world, trip)


def net(done: Counter[str], command: str) -> int:
    """How often it has been done and not undone."""
    return done[command] - done[UNDONE[command]]


def assert_stock_adds_up(world: World) -> None:
    """What is taken is what the ledger says, and there was never more taken than there is."""
    for supplier in SUPPLIERS:
        database = world.databases[supplier]
        wrong = database.query(
            "SELECT what, taken, capacity, most, booked FROM stock LEFT JOIN (SELECT what, sum(amount) AS booked FROM"
            " ledger GROUP BY 1) AS ledger USING (what)"
            " WHERE taken <> coalesce(booked, 0) OR most > capacity OR taken < 0"
        )
        assert not wrong, f"{supplier}: {wrong}"


def assert_nothing_left(world: World, trips: Iterable[Trip]) -> None:
    """No message of theirs is put off or dead, and nothing is locked."""
    ids = [trip.saga_id for trip in trips]
    for name, database in world.databases.items():
        text = (
            "SELECT type, attempts, dead_at, history FROM relay.deferred WHERE aggregate_id = ANY(%s::uuid[]::text[])"
        )
        left = database.query(text, ids)
        assert not left, f"{name}: {left}"
    assert not world.databases[AGENCY].value("SELECT count(*) FROM relay.saga_lock WHERE saga_id = ANY(%s)", ids)


def story(world: World, trip: Trip) -> str:
    """What happened, for whoever has to find out."""
    told = (f"  {event}" for event in world.story(trip))
    return "\n".join((f"{trip}", f"diary {world.diary(trip)}", f"ledger {world.ledger(trip)}", *told))
