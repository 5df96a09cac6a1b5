"""A database from before the saga engine: its sagas go on, and its services keep what they need."""

import shutil
from collections.abc import Callable
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel

from relay import schema
from relay.messaging import Command, Operation, Reply, Service, Transaction
from relay.saga import Orchestrator, Saga, log
from relay.saga.record import rebuild
from relay.schema import migrate, sql_folder
from tests.support.database import Database
from tests.support.saga import connect, hear, record_of, status_of

BEFORE = "0009"
"""The first migration of the engine."""


class Trip(BaseModel):
    name: str


class Book(Command): ...


class Booked(Reply): ...


class Cancel(Command): ...


travel = Service("travel")
trip = Saga("trip", state=Trip)


@trip.local()
async def note(state: Trip, tx: Transaction) -> None: ...


@note.compensate
async def strike(state: Trip, tx: Transaction) -> None: ...


@trip.step(to="hotel")
def book(state: Trip) -> Book:
    return Book()


@book.on(Booked)
def booked(state: Trip, reply: Booked) -> None:
    state.name += ", booked"


@book.compensate
def cancel(state: Trip) -> Cancel:
    return Cancel()


@trip.local(pivot=True)
async def close(state: Trip, tx: Transaction) -> None: ...


Orchestrator(travel, trip)

Events = list[tuple[str, str | None]]

BOOKING: Events = [
    ("SagaStarted", None),
    ("StepStarted", "note"),
    ("StepSucceeded", "note"),
    ("StepStarted", "book"),
]
DONE: Events = [
    *BOOKING,
    ("StepSucceeded", "book"),
    ("StepStarted", "close"),
    ("StepSucceeded", "close"),
    ("SagaCompleted", None),
]
UNDONE: Events = [
    *BOOKING,
    ("StepFailed", "book"),
    ("StepCompensating", "note"),
    ("StepCompensated", "note"),
    ("SagaCompensated", None),
]


MigratedBefore = Callable[[str], Database]


@pytest.fixture
def migrated_before(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MigratedBefore:
    """A database with a service, as it was before the migration of that number."""

    def migrated(number: str) -> Database:
        database.query("DROP SCHEMA relay CASCADE")
        for path in sql_folder().glob("*.sql"):
            if path.name < number:
                shutil.copy(path, tmp_path)
        with monkeypatch.context() as before:
            before.setattr(schema, "sql_folder", lambda: tmp_path)
            migrate(database.dsn, service_role="orders")
        return database

    return migrated


@pytest.fixture
def old(migrated_before: MigratedBefore) -> Database:
    """A database that was migrated before there was the engine, and has a service."""
    return migrated_before(BEFORE)


def given_a_saga(database: Database, status: str, step: str | None, events: Events) -> UUID:
    saga_id = uuid4()
    database.query(
        "INSERT INTO relay.saga (id, type, status, step, state) VALUES (%s, 'trip', %s, %s, '{\"name\": \"Rome\"}')",
        *(saga_id, status, step),
    )
    for ordinal, (event, of_step) in enumerate(events, start=1):
        detail = '{"state": {"name": "Rome"}}' if ordinal == 1 else "{}"
        database.query(
            "INSERT INTO relay.saga_log (saga_id, ordinal, event, step, detail) VALUES (%s, %s, %s, %s, %s)",
            *(saga_id, ordinal, event, of_step, detail),
        )
    return saga_id


async def test_a_saga_that_was_under_way_goes_on(old: Database) -> None:
    saga_id = given_a_saga(old, "RUNNING", "book", BOOKING)
    migrate(old.dsn)
    async with await connect(old) as conn:
        await hear(travel, conn, Booked(), str(Operation(saga_id, "book")))
    assert status_of(old) == "COMPLETED"
    assert old.value("SELECT state ->> 'name' FROM relay.saga") == "Rome, booked"


@pytest.mark.parametrize(
    ("status", "step", "events"),
    [("RUNNING", "book", BOOKING), ("COMPLETED", None, DONE), ("COMPENSATED", None, UNDONE)],
)
async def test_the_row_of_a_saga_is_what_its_log_tells(
    old: Database, status: str, step: str | None, events: Events
) -> None:
    saga_id = given_a_saga(old, status, step, events)
    migrate(old.dsn)
    async with await connect(old) as conn:
        assert rebuild(await log.read(conn, saga_id)) == record_of(old, saga_id)
    ended = old.value("SELECT ended_at IS NOT NULL FROM relay.saga")
    assert ended == (status != "RUNNING")


async def test_a_service_has_the_rights_that_it_needs_now(old: Database) -> None:
    granted = "SELECT has_table_privilege(%s, 'relay.operation', 'INSERT')"
    migrate(old.dsn)
    assert old.value(granted, "orders") is True
    assert old.value(granted, "customers") is False


def test_what_was_put_off_stays_in_the_lane_of_its_aggregate(migrated_before: MigratedBefore) -> None:
    database = migrated_before("0013")
    database.query(
        "INSERT INTO relay.deferred (consumer, message_id, aggregate_type, aggregate_id, type, properties, body)"
        " VALUES ('orders', 'm1', 'order', '7', 'Ship', '{}', '')"
    )

    migrate(database.dsn)

    assert database.query("SELECT message_id, lane FROM relay.deferred") == [("m1", "")]


def test_a_timer_that_could_not_be_fired_for_days_is_given_its_budget(migrated_before: MigratedBefore) -> None:
    """Until then there was no end to it, and conflicts counted like what raises."""
    database = migrated_before("0012")
    database.query(
        "INSERT INTO relay.saga_timer (service, saga_id, purpose, due_at, failures, fired_at) VALUES"
        " ('travel', gen_random_uuid(), 'retry', now(), 1500, NULL),"
        " ('travel', gen_random_uuid(), 'retry', now(), 2, now())"
    )

    migrate(database.dsn)

    assert database.query("SELECT failures, interruptions FROM relay.saga_timer ORDER BY id") == [(0, 0), (2, 0)]
