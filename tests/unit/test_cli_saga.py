"""`relay saga` as a person meets it: help, mistakes, what it shows. No server is asked."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from datetime import UTC, datetime
from uuid import UUID

import click
import pytest

from relay.cli import sources
from relay.cli.saga import list as listing
from relay.cli.saga import saga
from relay.cli.saga import show as showing
from relay.config import SourceSettings
from relay.errors import ExitCode, SourceAway
from relay.saga.history import Entry, Event, Filter, Lock, Sheet, StepLine, Timer
from relay.saga.record import Status
from tests.support.terminal import Ended, Terminal

DSN = "postgresql://127.0.0.1/orders"
ID = "0197f2b0-6d1c-7cc1-a54e-0a1b2c3d4e5f"
NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)

ENTRY = Entry(ID, "create_order", "RUNNING", "reserve_credit", None, NOON, NOON, None, 59.6)
SHEET = Sheet(
    **{field.name: getattr(ENTRY, field.name) for field in fields(ENTRY)},
    definition="f00d",
    steps=[StepLine("create", "DONE", 1, 0)],
    timers=[Timer("timeout", "reserve_credit", 2, NOON, 29.96, 0, 0)],
    locks=[Lock("order/7", True, NOON, ID, 0), Lock("order/8", False, None, "another", 2)],
    state={"order_id": 7},
    timeline=[Event(1, NOON, 0.0, "SagaStarted", None, None, None, None, {})],
)


class Table:
    """Stands in for the databases of all sources."""

    def __init__(self) -> None:
        self.entries: dict[str, list[Entry]] = {"orders": [ENTRY]}
        self.sheets: dict[str, Sheet] = {"orders": SHEET}
        self.away: set[str] = set()
        self.wanted: list[tuple[Filter, int]] = []

    @contextmanager
    def connected(self, source: SourceSettings, verb: str) -> Iterator[str]:
        if source.name in self.away:
            raise SourceAway(f"{source.name} is away", "Look at the server.")
        yield source.name

    def find(self, connection: str, wanted: Filter, limit: int) -> list[Entry]:
        self.wanted.append((wanted, limit))
        return self.entries.get(connection, [])[:limit]

    def sheet(self, connection: str, saga_id: UUID) -> Sheet | None:
        found = self.sheets.get(connection)
        return found if found and found.id == str(saga_id) else None


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Table:
    table = Table()
    monkeypatch.setattr(sources, "connected", table.connected)
    monkeypatch.setattr("relay.cli.saga.list.entries", table.find)
    monkeypatch.setattr("relay.cli.saga.show.sheet", table.sheet)
    return table


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], table: Table) -> Terminal:
    return Terminal(monkeypatch, capsys, {"orders": DSN})


class TestHelp:
    @pytest.mark.parametrize("verb", ["list", "show"])
    def test_every_option_says_what_it_is_for_and_names_its_twin_in_the_environment(
        self, terminal: Terminal, verb: str
    ) -> None:
        ended = terminal("saga", verb, "-h")
        assert ended.code == ExitCode.OK
        options = re.split(r"^  (?=-)", ended.out.partition("Options:\n")[2], flags=re.MULTILINE)[1:]
        assert [one.split()[0] for one in options if "env var: RELAY_" not in " ".join(one.split())] == ["-h,"]
        assert [one.name for one in saga.commands[verb].params if isinstance(one, click.Option) and not one.help] == []

    def test_a_verb_takes_its_options_from_the_environment(
        self, terminal: Terminal, table: Table, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in {
            "RELAY_SAGA_TYPE": "create_order",
            "RELAY_SAGA_STATUS": "RUNNING SUSPENDED",
            "RELAY_SAGA_OLDER_THAN": "5m",
            "RELAY_SAGA_LIMIT": "7",
            "RELAY_FORMAT": "json",
        }.items():
            monkeypatch.setenv(name, value)
        assert terminal("saga", "list").out.startswith('[{"source": "orders"')
        assert table.wanted == [(Filter("create_order", (Status.RUNNING, Status.SUSPENDED), 300.0), 8)]


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            (["list", "--status", "BORED"], "'suspended'"),
            (["list", "--older-than", "5"], "should be an age like 90s, 5m, 12h or 7d"),
            (["list", "--older-than", "9999999999999999d"], "should be an age"),
            (["list", "--limit", "0"], "--limit"),
            (["list", "--source", "nobody"], "there is no source nobody Give one of these"),
            (["show"], "ID"),
            (["show", "7"], "not a valid UUID"),
            (["stop"], "No such command"),
        ],
    )
    def test_a_mistake_is_named(self, terminal: Terminal, table: Table, arguments: list[str], complaint: str) -> None:
        ended = terminal("saga", *arguments)
        assert ended.code == ExitCode.USAGE
        assert complaint in ended.words
        assert table.wanted == []


class TestList:
    def test_a_saga_is_one_line(self) -> None:
        ended = replace(ENTRY, status="COMPENSATED", step=None, reason="credit limit\nexceeded", age_seconds=8000.0)
        assert listing.render([("orders", ENTRY), ("billing", ended)]).splitlines() == [
            f"SOURCE   ID{' ' * 36}TYPE          STATUS       STEP            AGE   REASON",
            f"orders   {ID}  create_order  RUNNING      reserve_credit  60 s  -",
            f"billing  {ID}  create_order  COMPENSATED  -               2 h   credit limit exceeded",
        ]

    def test_a_source_that_is_away_does_not_hide_the_others(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], table: Table
    ) -> None:
        terminal = Terminal(monkeypatch, capsys, {"billing": DSN, "orders": DSN})
        table.away = {"billing"}
        ended = terminal("saga", "list")
        assert ended.code == ExitCode.SOURCE
        assert ID in ended.out
        assert ended.err == "relay: billing: billing is away\n  Look at the server.\n"

    def test_nothing_is_said_to_be_there_while_somebody_could_not_be_asked(
        self, terminal: Terminal, table: Table
    ) -> None:
        table.away = {"orders"}
        assert terminal("saga", "list").out == ""
        assert terminal("saga", "list", "--format", "json").out == "[]\n"


class TestShow:
    def test_a_page_has_a_section_for_each_kind_of_thing(self) -> None:
        assert showing.render("orders", SHEET).split("\n\n") == [
            "\n".join(
                [
                    f"saga        {ID}",
                    "source      orders",
                    "type        create_order",
                    "definition  f00d",
                    "status      RUNNING",
                    "reason      -",
                    "started     2026-06-01T12:00:00.000Z  60 s ago",
                    "updated     2026-06-01T12:00:00.000Z",
                    "ended       -",
                ]
            ),
            "STEP    PHASE  ATTEMPT  UNDO ATTEMPT\ncreate  DONE   1        -",
            "TIMER    STEP            ATTEMPT  DUE                       IN S  FAILURES  INTERRUPTIONS\n"
            "timeout  reserve_credit  2        2026-06-01T12:00:00.000Z  30.0  0         0",
            f"LOCK     SINCE                     HOLDER{' ' * 32}AHEAD\n"
            f"order/7  2026-06-01T12:00:00.000Z  {ID}  0\n"
            f"order/8  waits                     another{' ' * 31}2",
            'state\n{\n  "order_id": 7\n}',
            "TIME                      OFFSET S  EVENT        STEP  ATTEMPT  REASON\n"
            "2026-06-01T12:00:00.000Z  0.000     SagaStarted  -     -        -",
        ]

    def test_a_timer_that_could_not_be_fired_is_held(self) -> None:
        held = replace(SHEET, timers=[Timer("retry", "reserve_credit", 2, None, None, 20, 1)])
        (timers,) = (part for part in showing.render("orders", held).split("\n\n") if part.startswith("TIMER"))
        assert timers.splitlines()[1].split() == ["retry", "reserve_credit", "2", "held", "-", "20", "1"]

    def test_a_saga_without_any_is_told_without_them(self) -> None:
        bare = replace(SHEET, steps=[], timers=[], locks=[], timeline=[])
        assert [part.split()[0] for part in showing.render("orders", bare).split("\n\n")] == ["saga", "state", "TIME"]

    def test_it_is_looked_for_in_every_source(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], table: Table
    ) -> None:
        terminal = Terminal(monkeypatch, capsys, {"billing": DSN, "orders": DSN})
        assert f"saga        {ID}" in terminal("saga", "show", ID).out
        table.away = {"billing"}
        assert terminal("saga", "show", ID).err == ""
        table.sheets = {}
        missing = terminal("saga", "show", ID)
        assert missing == Ended(ExitCode.SOURCE, "", "relay: billing: billing is away\n  Look at the server.\n")
        table.away = set()
        assert terminal("saga", "show", ID).err.startswith(f"relay: there is no saga {ID}\n  ")
