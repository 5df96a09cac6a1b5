"""`relay saga` with databases in which sagas have left their rows."""

import json
from collections.abc import Callable
from dataclasses import fields
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from pydantic import BaseModel

from relay.errors import ExitCode
from relay.messaging import Command, Reply, Service
from relay.saga import Orchestrator, Saga, history
from relay.saga.history import Entry, Event, Lock, Sheet, StepLine, Timer
from tests.support.database import Database
from tests.support.saga import connect, hear, last_sent
from tests.support.terminal import Terminal

NOBODY = "postgresql://relay@127.0.0.1:1/nobody"

STARTED = (
    "INSERT INTO relay.saga (id, type, status, step, state, reason, definition, progress, started_at, ended_at)"
    " VALUES (%s, %s, %s, %s, %s::text::json, %s, 'f00d', %s::text::json, now() - %s::text::interval,"
    " CASE WHEN %s IN ('COMPLETED', 'COMPENSATED') THEN now() END)"
)


def given_a_saga(
    database: Database,
    status: str = "RUNNING",
    saga_type: str = "create_order",
    *,
    ago: str = "1 minute",
    step: str | None = None,
    reason: str | None = None,
    steps: dict[str, object] | None = None,
) -> str:
    """The id of a saga that has been started so long ago."""
    saga_id, state = str(uuid4()), json.dumps({"order_id": 7, "note": "ü☃"})
    progress = json.dumps({"steps": steps or {}})
    database.query(STARTED, saga_id, saga_type, status, step, state, reason, progress, ago, status)
    return saga_id


def given_an_event(database: Database, saga_id: str, ordinal: int, event: str, *, after: str, **more: object) -> None:
    """An event that happened so long after the saga had been started."""
    query = (
        "INSERT INTO relay.saga_log (saga_id, ordinal, event, step, attempt, reason, message_id, detail, at)"
        " SELECT id, %s, %s, %s, %s, %s, %s, %s::text::json, started_at + %s::text::interval"
        " FROM relay.saga WHERE id = %s"
    )
    detail = json.dumps(more.get("detail", {}))
    told = [more.get(name) for name in ("step", "attempt", "reason", "message_id")]
    database.query(query, ordinal, event, *told, detail, after, saga_id)


def given_a_lock(database: Database, resource: str, saga_id: str, *, taken: bool) -> None:
    query = "INSERT INTO relay.saga_lock (resource, saga_id, service, taken_at) VALUES (%s, %s, 'orders', %s)"
    taken_at = database.value("SELECT now()") if taken else None
    database.query(query, resource, saga_id, taken_at)


TerminalOf = Callable[..., Terminal]


@pytest.fixture
def terminal_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> TerminalOf:
    """`terminal_of(orders=dsn)`."""
    return lambda **sources: Terminal(monkeypatch, capsys, sources)


@pytest.fixture
def terminal(database: Database, terminal_of: TerminalOf) -> Terminal:
    return terminal_of(orders=database.dsn)


def listed(terminal: Terminal, *options: str) -> list[dict[str, Any]]:
    ended = terminal("saga", "list", "--format", "json", *options)
    assert ended.code == ExitCode.OK, ended.err
    sagas: list[dict[str, Any]] = json.loads(ended.out)
    return sagas


class TestList:
    def test_a_saga_is_a_line_and_the_last_one_comes_first(self, database: Database, terminal: Terminal) -> None:
        old = given_a_saga(database, "COMPENSATED", ago="3 hours", reason="credit limit\n exceeded")
        new = given_a_saga(database, step="reserve_credit, reserve_stock", ago="5 minutes")

        ended = terminal("saga", "list")

        assert (ended.code, ended.err) == (ExitCode.OK, "")
        heading, *lines = ended.out.splitlines()
        assert heading.split() == ["SOURCE", "ID", "TYPE", "STATUS", "STEP", "AGE", "REASON"]
        assert [" ".join(line.split()) for line in lines] == [
            f"orders {new} create_order RUNNING reserve_credit, reserve_stock 5 min -",
            f"orders {old} create_order COMPENSATED - 3 h credit limit exceeded",
        ]

    def test_type_status_and_age_choose_and_all_of_them_have_to_hold(
        self, database: Database, terminal: Terminal
    ) -> None:
        running = given_a_saga(database, ago="10 minutes")
        fresh = given_a_saga(database, ago="1 second")
        stuck = given_a_saga(database, "SUSPENDED", ago="2 days")
        other = given_a_saga(database, "SUSPENDED", "ship_order", ago="9 minutes")

        chosen = {
            ("--type", "ship_order"): [other],
            ("--status", "SUSPENDED"): [other, stuck],
            ("--status", "suspended", "--status", "RUNNING"): [fresh, other, running, stuck],
            ("--older-than", "5m"): [other, running, stuck],
            ("--older-than", "5m", "--type", "create_order", "--status", "RUNNING"): [running],
            ("--status", "COMPLETED"): [],
            ("--limit", "2"): [fresh, other],
        }
        assert {options: [saga["id"] for saga in listed(terminal, *options)] for options in chosen} == chosen

    def test_it_says_when_there_are_more_and_when_there_are_none(self, database: Database, terminal: Terminal) -> None:
        assert terminal("saga", "list").out == "there are no sagas\n"
        given_a_saga(database)
        given_a_saga(database)
        assert terminal("saga", "list", "--limit", "1").err == "relay: there are more: see --limit\n"
        assert terminal("saga", "list", "--limit", "2").err == ""
        assert terminal("saga", "list", "--type", "none").out == "there are no sagas that match\n"

    def test_a_program_gets_exactly_the_keys_that_are_documented(self, database: Database, terminal: Terminal) -> None:
        saga_id = given_a_saga(database, "COMPLETED")

        (saga,) = listed(terminal)

        assert list(saga) == ["source", *(field.name for field in fields(Entry))]
        assert (saga["source"], saga["id"], saga["status"], saga["step"]) == ("orders", saga_id, "COMPLETED", None)
        assert 60 <= saga["age_seconds"] < 90
        assert saga["ended_at"] is not None

    def test_a_source_that_cannot_be_asked_does_not_hide_the_others(
        self, database: Database, terminal_of: TerminalOf
    ) -> None:
        saga_id = given_a_saga(database)
        terminal = terminal_of(nobody=NOBODY, orders=database.dsn)

        ended = terminal("saga", "list")

        assert ended.code == ExitCode.SOURCE
        assert saga_id in ended.out
        assert ended.err.startswith("relay: nobody: PostgreSQL at 127.0.0.1:1")
        assert terminal("saga", "list", "--source", "orders").code == ExitCode.OK

    def test_sagas_of_all_sources_are_listed(
        self, make_database: Callable[..., Database], database: Database, terminal_of: TerminalOf
    ) -> None:
        other = make_database()
        ids = [given_a_saga(database), given_a_saga(other)]

        sagas = listed(terminal_of(orders=database.dsn, billing=other.dsn))

        assert [(saga["source"], saga["id"]) for saga in sagas] == list(zip(("orders", "billing"), ids, strict=True))

    def test_a_database_that_is_not_migrated_is_a_trouble_of_the_source(
        self, database: Database, terminal: Terminal
    ) -> None:
        database.query("DROP TABLE relay.saga")
        for arguments in (("list",), ("show", str(uuid4()))):
            ended = terminal("saga", *arguments)
            assert ended.code == ExitCode.SOURCE
            assert "relay migrate" in ended.err

    def test_what_is_not_finished_is_found_by_an_index(self, database: Database) -> None:
        """However many sagas have ended."""
        database.query(
            "INSERT INTO relay.saga (type, status, state) SELECT 'create_order', 'COMPLETED', '{}'"
            " FROM generate_series(1, 5000)"
        )
        given_a_saga(database, "SUSPENDED")
        database.query("ANALYZE relay.saga")
        named = {"type": None, "statuses": ["SUSPENDED"], "older_than_s": None, "limit": 101}
        plan = database.connection.execute("EXPLAIN " + history._ENTRIES, named).fetchall()
        assert "saga_unfinished" in str(plan)


class TestShow:
    @pytest.fixture
    def saga_id(self, database: Database) -> str:
        """A saga that is being compensated, and waits for what another one works on."""
        steps: dict[str, object] = {
            "create": {"phase": "DONE", "attempt": 1},
            "reserve_credit": {"phase": "UNDO_RETRYING", "attempt": 2, "undo_attempt": 3, "uncertain": True},
        }
        saga_id = given_a_saga(database, "COMPENSATING", step="reserve_credit", reason="out of stock", steps=steps)
        given_an_event(database, saga_id, 1, "SagaStarted", after="-0.001 s", detail={"state": {"order_id": 7}})
        given_an_event(database, saga_id, 2, "StepStarted", after="12 ms", step="reserve_credit", attempt=1)
        given_an_event(
            *(database, saga_id, 3, "StepTimedOut"), after="30.5 s", step="reserve_credit", attempt=1, reason="no reply"
        )
        given_an_event(
            *(database, saga_id, 4, "StepSucceeded"), after="31 s", step="reserve_credit", attempt=2, message_id="m1"
        )
        other = given_a_saga(database)
        given_a_lock(database, "order/7", other, taken=True)
        given_a_lock(database, "order/7", given_a_saga(database), taken=False)
        given_a_lock(database, "order/7", saga_id, taken=False)
        given_a_lock(database, "customer/1", saga_id, taken=True)
        timer = "INSERT INTO relay.saga_timer (service, saga_id, purpose, step, attempt, due_at, fired_at) VALUES"
        database.query(
            f"{timer} ('orders', %s, 'undo_retry', 'reserve_credit', 3, now() + interval '20 s', NULL),"
            " ('orders', %s, 'timeout', 'reserve_credit', 1, now(), now()),"
            " ('orders', %s, 'saga_timeout', NULL, NULL, now() - interval '5 s', NULL)",
            *(saga_id, saga_id, saga_id),
        )
        return saga_id

    def test_the_timeline_has_every_event_with_time_offset_attempt_and_reason(
        self, terminal: Terminal, saga_id: str
    ) -> None:
        ended = terminal("saga", "show", saga_id)

        assert (ended.code, ended.err) == (ExitCode.OK, "")
        heading, *events = ended.out.split("\n\n")[-1].splitlines()
        assert heading.split() == ["TIME", "OFFSET", "S", "EVENT", "STEP", "ATTEMPT", "REASON"]
        assert [" ".join(event.split()[1:]) for event in events] == [
            "0.000 SagaStarted - - -",
            "0.012 StepStarted reserve_credit 1 -",
            "30.500 StepTimedOut reserve_credit 1 no reply",
            "31.000 StepSucceeded reserve_credit 2 -",
        ]

    def test_the_page_says_where_it_stands_what_it_waits_for_and_its_state(
        self, terminal: Terminal, saga_id: str
    ) -> None:
        head, steps, timers, locks, state, _ = terminal("saga", "show", saga_id).out.split("\n\n")

        assert [line.split(maxsplit=1) for line in head.splitlines()][:6] == [
            ["saga", saga_id],
            ["source", "orders"],
            ["type", "create_order"],
            ["definition", "f00d"],
            ["status", "COMPENSATING"],
            ["reason", "out of stock"],
        ]
        assert [line.split() for line in steps.splitlines()[1:]] == [
            ["create", "DONE", "1", "-"],
            ["reserve_credit", "UNDO_RETRYING", "2", "3"],
        ]
        assert [line.split()[:2] for line in timers.splitlines()[1:]] == [
            ["saga_timeout", "-"],
            ["undo_retry", "reserve_credit"],
        ]
        assert [line.split()[0] for line in locks.splitlines()[1:]] == ["customer/1", "order/7"]
        assert state == 'state\n{\n  "order_id": 7,\n  "note": "ü☃"\n}'

    def test_a_program_gets_exactly_the_keys_that_are_documented(self, terminal: Terminal, saga_id: str) -> None:
        shown = json.loads(terminal("saga", "show", saga_id, "--format", "json").out)

        assert list(shown) == ["source", *(field.name for field in fields(Sheet))]
        for key, line in (("steps", StepLine), ("timers", Timer), ("locks", Lock), ("timeline", Event)):
            assert {tuple(entry) for entry in shown[key]} == {tuple(field.name for field in fields(line))}, key
        held, waits = shown["locks"]
        assert (held["held"], held["holder"], held["ahead"]) == (True, saga_id, 0)
        assert (waits["held"], waits["holder"] in (None, saga_id), waits["ahead"]) == (False, False, 1)
        assert shown["timers"][0]["due_in_seconds"] < 0 < shown["timers"][1]["due_in_seconds"]
        assert shown["timeline"][0]["detail"] == {"state": {"order_id": 7}}
        assert shown["timeline"][3]["message_id"] == "m1"
        assert shown["state"] == {"order_id": 7, "note": "ü☃"}

    def test_it_is_found_in_whichever_source_it_is(
        self, make_database: Callable[..., Database], database: Database, saga_id: str, terminal_of: TerminalOf
    ) -> None:
        terminal = terminal_of(nobody=NOBODY, billing=make_database().dsn, orders=database.dsn)

        ended = terminal("saga", "show", saga_id)
        assert (ended.code, ended.err) == (ExitCode.OK, "")
        assert "source      orders" in ended.out

        missing = terminal("saga", "show", str(UUID(int=0)))
        assert (missing.code, missing.out) == (ExitCode.SOURCE, "")
        assert "nobody" in missing.err

    def test_one_that_does_not_exist_is_a_failure(self, terminal: Terminal) -> None:
        missing = terminal("saga", "show", str(UUID(int=0)))

        assert (missing.code, missing.out) == (ExitCode.FAILURE, "")
        assert "there is no saga 00000000-0000-0000-0000-000000000000" in missing.err
        assert "relay saga list" in missing.err

    def test_one_from_before_the_engine_is_shown(self, database: Database, terminal: Terminal) -> None:
        saga_id = given_a_saga(database, "COMPLETED")
        database.query("UPDATE relay.saga SET progress = '{}', definition = NULL")

        ended = terminal("saga", "show", saga_id)

        assert ended.code == ExitCode.OK
        assert "COMPLETED" in ended.out


class Trip(BaseModel):
    name: str
    room: int | None = None


class RoomBooked(Reply):
    number: int


class BookRoom(Command):
    replies = (RoomBooked,)
    name: str


class Agency:
    """A travel agency that works on one trip of a name at a time, and waits half an hour for the hotel."""

    def __init__(self) -> None:
        self.service = Service("travel")
        self.saga = Saga("trip", state=Trip, lock=lambda trip: ("trip", trip.name), on_locked="queue")
        book = self.saga.step(to="hotel", timeout="30m", pivot=True)(self.book)
        book.on(RoomBooked)(self.booked)
        self.orchestrator = Orchestrator(self.service, self.saga)

    def book(self, trip: Trip) -> BookRoom:
        return BookRoom(name=trip.name)

    def booked(self, trip: Trip, reply: RoomBooked) -> None:
        trip.room = reply.number

    async def start(self, conn: AsyncConnection[TupleRow]) -> str:
        async with conn.transaction():
            return str(await self.orchestrator.start(self.saga, Trip(name="Rome"), conn))


def shown(terminal: Terminal, saga_id: str) -> dict[str, Any]:
    ended = terminal("saga", "show", saga_id, "--format", "json")
    assert ended.code == ExitCode.OK, ended.err
    saga: dict[str, Any] = json.loads(ended.out)
    return saga


class TestWithTheEngine:
    """What the engine writes is what is shown."""

    async def test_one_that_is_under_way_and_one_that_waits_for_it(
        self, database: Database, terminal: Terminal
    ) -> None:
        agency = Agency()
        async with await connect(database) as conn:
            first, second = [await agency.start(conn) for _ in range(2)]

            assert [(saga["id"], saga["status"], saga["step"]) for saga in listed(terminal)] == [
                (second, "WAITING", None),
                (first, "RUNNING", "book"),
            ]
            (lock,) = shown(terminal, second)["locks"]
            assert (lock["resource"], lock["held"], lock["holder"]) == ("trip/Rome", False, first)
            under_way = shown(terminal, first)
            assert under_way["steps"] == [{"step": "book", "phase": "STARTED", "attempt": 1, "undo_attempt": 0}]
            (timer,) = under_way["timers"]
            assert (timer["purpose"], timer["step"]) == ("timeout", "book")
            assert 1700 < timer["due_in_seconds"] <= 1800

            await hear(agency.service, conn, RoomBooked(number=7), last_sent(database), "r1")

        done = shown(terminal, first)
        assert (done["status"], done["state"], done["locks"]) == ("COMPLETED", {"name": "Rome", "room": 7}, [])
        columns = ("event", "step", "attempt", "message_id")
        assert [tuple(event[column] for column in columns) for event in done["timeline"]] == [
            ("SagaStarted", None, None, None),
            ("StepStarted", "book", 1, None),
            ("StepSucceeded", "book", 1, "r1"),
            ("SagaCompleted", None, None, "r1"),
        ]
        assert [lock["held"] for lock in shown(terminal, second)["locks"]] == [True]
