"""`relay dead` as a person meets it: help, mistakes, what it shows and says. No server is asked."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from datetime import UTC, datetime

import click
import pytest

from relay.cli.dead import dead
from relay.cli.dead.look import render_page
from relay.cli.dead.options import ERROR_CHARS, render
from relay.config import SourceSettings
from relay.errors import ExitCode, SourceAway
from relay.messaging.dead import Entry, Selection, Sheet
from tests.support.terminal import Ended, Terminal

DSN = "postgresql://127.0.0.1/orders"
VERBS = ("list", "show", "replay", "drop")
NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)

ENTRY = Entry(
    consumer="stock",
    id="m1",
    type="Ship",
    aggregate_type="order",
    aggregate_id="7",
    state="dead",
    behind=2,
    attempts=12,
    error="ValueError: no",
    deferred_at=NOON,
    due_at=None,
    dead_at=NOON,
    dead_seconds=150.0,
)
SHEET = Sheet(
    **{field.name: getattr(ENTRY, field.name) for field in fields(ENTRY)},
    history=[{"at": "2026-06-01T12:00:00+00:00", "attempt": 1, "error": "ValueError: no"}],
    properties={"message_id": "m1"},
    body='{"n": 1}',
)


class Table:
    """Stands in for relay.deferred of all sources."""

    def __init__(self) -> None:
        self.entries = {"orders": [ENTRY]}
        self.away: set[str] = set()
        self.asked: list[tuple[str, str, Selection]] = []

    @contextmanager
    def connected(self, source: SourceSettings, verb: str) -> Iterator[str]:
        if source.name in self.away:
            raise SourceAway(f"{source.name} is away", "Look at the server.")
        yield source.name

    def find(
        self, connection: str, selection: Selection, limit: int | None = None, *, waiting: bool = False
    ) -> list[Entry]:
        self.asked.append((connection, "all" if waiting else "dead", selection))
        return self.entries.get(connection, [])[:limit]

    def sheets(self, connection: str, message_id: str) -> list[Sheet]:
        return [SHEET] if connection == "orders" and message_id == SHEET.id else []

    def replay(self, connection: str, selection: Selection) -> int:
        self.asked.append((connection, "replay", selection))
        return len(self.entries.get(connection, []))

    def drop(self, connection: str, selection: Selection) -> int:
        self.asked.append((connection, "drop", selection))
        return len(self.entries.get(connection, []))


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Table:
    table = Table()
    for module in ("relay.cli.sources", "relay.cli.dead.act"):
        monkeypatch.setattr(f"{module}.connected", table.connected)
    for module in ("relay.cli.dead.look", "relay.cli.dead.act"):
        monkeypatch.setattr(f"{module}.entries", table.find)
    monkeypatch.setattr("relay.cli.dead.look.sheets", table.sheets)
    monkeypatch.setattr("relay.messaging.dead.replay", table.replay)
    monkeypatch.setattr("relay.messaging.dead.drop", table.drop)
    return table


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], table: Table) -> Terminal:
    return Terminal(monkeypatch, capsys, {"orders": DSN})


@pytest.fixture
def with_two(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], table: Table) -> Terminal:
    return Terminal(monkeypatch, capsys, {"billing": DSN, "orders": DSN})


class TestHelp:
    @pytest.mark.parametrize("verb", VERBS)
    def test_every_option_says_what_it_is_for_and_names_its_twin_in_the_environment(
        self, terminal: Terminal, verb: str
    ) -> None:
        ended = terminal("dead", verb, "-h")
        assert ended.code == ExitCode.OK
        options = re.split(r"^  (?=-)", ended.out.partition("Options:\n")[2], flags=re.MULTILINE)[1:]
        assert [one.split()[0] for one in options if "env var: RELAY_" not in " ".join(one.split())] == ["-h,"]
        assert [one.name for one in dead.commands[verb].params if isinstance(one, click.Option) and not one.help] == []

    def test_the_verbs_are_listed(self, terminal: Terminal) -> None:
        listed = terminal("dead", "-h").out
        assert [verb for verb in VERBS if re.search(rf"^  {verb} +[A-Z]", listed, re.MULTILINE)] == list(VERBS)

    def test_a_verb_takes_its_options_from_the_environment(
        self, terminal: Terminal, table: Table, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in {"AGGREGATE": "order/7/b", "TYPE": "Ship", "CONSUMER": "stock", "WAITING": "1"}.items():
            monkeypatch.setenv(f"RELAY_DEAD_{name}", value)
        selection = Selection((), ("order", "7/b"), "Ship", "stock")
        terminal("dead", "list")
        terminal("dead", "drop")
        monkeypatch.setenv("RELAY_DEAD_DRY_RUN", "1")
        terminal("dead", "replay")
        assert table.asked == [(("orders"), what, selection) for what in ("all", "drop", "dead")]


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            (["replay"], "say which messages: give their IDs, --aggregate, --type or --consumer"),
            (["drop"], "say which messages"),
            (["drop", "--dry-run"], "say which messages"),
            (["drop", "--aggregate", "order"], "should look like order/7"),
            (["list", "--aggregate", "/7"], "should look like order/7"),
            (["list", "--aggregate", "order/"], "should look like order/7"),
            (["list", "--limit", "0"], "--limit"),
            (["list", "--source", "nobody"], "there is no source nobody Give one of these"),
            (["show"], "ID"),
        ],
    )
    def test_a_mistake_is_named(self, terminal: Terminal, table: Table, arguments: list[str], complaint: str) -> None:
        ended = terminal("dead", *arguments)
        assert ended.code == ExitCode.USAGE
        assert complaint in ended.words
        assert table.asked == []

    @pytest.mark.parametrize("verb", ["replay", "drop"])
    def test_with_several_sources_one_has_to_be_named(self, with_two: Terminal, table: Table, verb: str) -> None:
        ended = with_two("dead", verb, "m1")
        assert ended.code == ExitCode.USAGE
        assert "--source: billing, orders" in ended.err
        assert with_two("dead", verb, "m1", "--source", "orders").code == ExitCode.OK
        assert table.asked == [("orders", verb, Selection(("m1",)))]


class TestLook:
    def test_a_message_is_one_line(self) -> None:
        waits = replace(ENTRY, id="m2", state="waiting", behind=0, attempts=0, error=None, dead_seconds=None)
        assert render([("orders", ENTRY), ("orders", waits)]).splitlines() == [
            "SOURCE  CONSUMER  ID  TYPE  AGGREGATE  STATE    ATTEMPTS  BEHIND  DEAD FOR  ERROR",
            "orders  stock     m1  Ship  order/7    dead     12        2       2 min     ValueError: no",
            "orders  stock     m2  Ship  order/7    waiting  0         0       -         -",
        ]

    def test_a_long_error_is_cut(self) -> None:
        line = render([("orders", replace(ENTRY, error="x" * 1000))]).splitlines()[1]
        assert line.endswith(f"  {'x' * (ERROR_CHARS - 1)}…")

    def test_a_source_that_is_away_does_not_hide_the_others(self, with_two: Terminal, table: Table) -> None:
        table.away = {"billing"}
        for arguments in (("list",), ("show", "m1")):
            ended = with_two("dead", *arguments)
            assert ended.code == ExitCode.SOURCE
            assert "m1" in ended.out
            assert ended.err == "relay: billing: billing is away\n  Look at the server.\n"

    def test_a_message_that_has_not_been_tried_says_so(self) -> None:
        page = render_page("orders", replace(SHEET, state="waiting", attempts=0, history=[]))
        assert page.split("\n\n")[1] == "it has not been tried"

    def test_a_message_that_is_not_there_is_a_failure(self, terminal: Terminal) -> None:
        missing = terminal("dead", "show", "m2")
        assert (missing.code, missing.out) == (ExitCode.FAILURE, "")
        assert "relay dead list --waiting" in missing.err


class TestAct:
    @pytest.mark.parametrize(("verb", "done"), [("replay", "replayed"), ("drop", "dropped")])
    def test_it_says_what_was_done(self, terminal: Terminal, table: Table, verb: str, done: str) -> None:
        assert terminal("dead", verb, "m1") == Ended(0, f"1 message {done}\n", "")
        table.entries["orders"] *= 2
        assert terminal("dead", verb, "--type", "Ship") == Ended(0, f"2 messages {done}\n", "")
        table.entries["orders"] = []
        assert terminal("dead", verb, "m1") == Ended(0, "nothing is dead that matches\n", "")

    def test_a_dry_run_only_looks(self, terminal: Terminal, table: Table) -> None:
        ended = terminal("dead", "drop", "m1", "--dry-run")
        assert ended.out.splitlines()[-1] == "1 message would be dropped"
        assert table.asked == [("orders", "dead", Selection(("m1",)))]

    def test_a_source_that_is_away_is_a_failure(self, terminal: Terminal, table: Table) -> None:
        table.away = {"orders"}
        ended = terminal("dead", "drop", "m1")
        assert (ended.code, ended.out) == (ExitCode.SOURCE, "")
