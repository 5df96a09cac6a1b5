"""`relay parked` as a person meets it: help, mistakes, what it says. No server is asked."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import click
import pytest

from relay.cli import main
from relay.cli.parked import parked
from relay.cli.parked.look import render
from relay.errors import ExitCode, SourceAway
from relay.parking.desk import Desk, Entry, Progress, Selection
from relay.parking.index import Reason
from relay.parking.request import Action

DSN = "postgresql://127.0.0.1/orders"

VERBS = ("list", "show", "replay", "drop")

ENTRY = Entry(
    source="orders",
    slot="relay_orders",
    commit_lsn="0/16B3748",
    ordinal=2,
    id="m1",
    kind="command",
    aggregate_type="order",
    aggregate_id="7",
    type="Ship",
    destination="stock",
    reason="unroutable",
    first=True,
    detail="no queue is bound",
    created_at=datetime(2025, 6, 1, 12, tzinfo=UTC),
    parked_at=datetime(2025, 6, 1, 12, tzinfo=UTC),
    parked_seconds=59.6,
)


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def words(self) -> str:
        return " ".join((self.out + self.err).split())


Relay = Callable[..., Ended]


@pytest.fixture
def relay(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Relay:
    """`relay("list", "--dsn", DSN)`, in an environment without settings."""
    for name in [name for name in os.environ if name.upper().startswith("RELAY_")]:
        monkeypatch.delenv(name)

    def call(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["relay", "parked", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return Ended(ended.value.code, *capsys.readouterr())

    return call


@dataclass
class Table:
    """Stands in for the desks of all sources, and for the relay that sees to requests."""

    entries: list[Entry] = field(default_factory=list)
    away: set[str] = field(default_factory=set)
    seen: list[Progress] = field(default_factory=list)
    """What each look at the request finds."""
    withdrawn: list[bool] = field(default_factory=list)
    """What each attempt to withdraw the request comes to."""
    interrupts: bool = False
    asked: list[tuple[str, Action, Selection, bool]] = field(default_factory=list)
    number = 12

    @contextmanager
    def open(self, source: str, dsn: str, slot: str) -> Iterator["Booth"]:
        if source in self.away:
            raise SourceAway(f"{source} is away", "Look at the server.")
        yield Booth(self, source)

    def wait(self) -> Progress:
        if self.interrupts:
            raise KeyboardInterrupt
        return self.seen.pop(0)

    def withdraw(self) -> bool:
        return self.withdrawn.pop(0)


class Booth:
    """The desk of one source."""

    def __init__(self, table: Table, source: str) -> None:
        self._table = table
        self._source = source

    def entries(self, selection: Selection, limit: int | None = None) -> list[Entry]:
        found = [entry for entry in self._table.entries if entry.source == self._source]
        return found[:limit]

    lanes = entries

    def count(self, selection: Selection) -> int:
        return len(self.entries(selection))

    def ask(self, action: Action, selection: Selection, timeout_s: float, *, first_only: bool = False) -> Table:
        self._table.asked.append((self._source, action, selection, first_only))
        return self._table


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Table:
    table = Table([ENTRY])
    monkeypatch.setattr(Desk, "open", table.open)
    return table


def done(**counts: Any) -> Progress:
    return Progress(**({"state": "done", "published": 0, "dropped": 0, "still_parked": 0, "detail": None} | counts))


class TestHelp:
    @pytest.mark.parametrize("verb", VERBS)
    def test_every_option_says_what_it_is_for_and_names_its_twin_in_the_environment(
        self, relay: Relay, verb: str
    ) -> None:
        ended = relay(verb, "-h")
        assert ended.code == 0
        options = re.split(r"^  (?=-)", ended.out.partition("Options:\n")[2], flags=re.MULTILINE)[1:]
        without = [option.split()[0] for option in options if "env var: RELAY_" not in " ".join(option.split())]
        assert without == ["-h,"]
        parameters = parked.commands[verb].params
        assert [one.name for one in parameters if isinstance(one, click.Option) and not one.help] == []

    def test_the_verbs_are_listed(self, relay: Relay) -> None:
        listed = relay("-h").out
        assert [verb for verb in VERBS if re.search(rf"^  {verb} +[A-Z]", listed, re.MULTILINE)] == list(VERBS)

    def test_a_verb_takes_its_options_from_the_environment(
        self, relay: Relay, table: Table, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        table.seen = [done(dropped=1)]
        monkeypatch.setenv("RELAY_SOURCE__0__DSN", DSN)
        monkeypatch.setenv("RELAY_PARKED_REASON", "nacked")
        monkeypatch.setenv("RELAY_PARKED_AGGREGATE", "order/7")
        assert relay("drop") == Ended(0, "1 message dropped\n", "")
        assert table.asked == [("orders", Action.DROP, Selection((), ("order", "7"), Reason.NACKED), False)]


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            (["replay", "--dsn", DSN], "say which messages"),
            (["drop", "--dsn", DSN], "say which messages"),
            (["drop", "--dsn", DSN, "--first", "--reason", "nacked"], "--first needs the IDs"),
            (["drop", "--dsn", DSN, "--aggregate", "order"], "should look like order/7"),
            (["list", "--dsn", DSN, "--aggregate", "/7"], "should look like order/7"),
            (["list", "--dsn", DSN, "--aggregate", "order/"], "should look like order/7"),
            (["list", "--dsn", DSN, "--reason", "bored"], "unroutable"),
            (["list", "--dsn", DSN, "--limit", "0"], "--limit"),
            (["list", "--dsn", DSN, "--source", "nobody"], "there is no source nobody Give one of these"),
            (["replay", "m1", "--dsn", DSN, "--timeout", "0"], "--timeout"),
            (["show", "--dsn", DSN], "ID"),
            (["replay", "m1"], "source is missing"),
        ],
    )
    def test_a_mistake_is_named(self, relay: Relay, table: Table, arguments: list[str], complaint: str) -> None:
        ended = relay(*arguments)
        assert ended.code == ExitCode.USAGE
        assert complaint in ended.words
        assert table.asked == []

    @pytest.mark.parametrize("verb", ["replay", "drop"])
    def test_with_several_sources_one_has_to_be_named(
        self, relay: Relay, table: Table, monkeypatch: pytest.MonkeyPatch, verb: str
    ) -> None:
        monkeypatch.setenv("RELAY_SOURCE__0__DSN", DSN)
        monkeypatch.setenv("RELAY_SOURCE__1__DSN", "postgresql://127.0.0.1/customers")
        ended = relay(verb, "m1")
        assert ended.code == ExitCode.USAGE
        assert "--source: orders, customers" in ended.err
        table.seen = [done()]
        assert relay(verb, "m1", "--source", "orders").code == ExitCode.OK
        assert [source for source, *_ in table.asked] == ["orders"]


class TestList:
    def test_a_source_that_is_away_does_not_hide_the_others(
        self, relay: Relay, table: Table, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RELAY_SOURCE__0__DSN", DSN)
        monkeypatch.setenv("RELAY_SOURCE__1__DSN", "postgresql://127.0.0.1/customers")
        table.away = {"customers"}
        ended = relay("list")
        assert ended.code == ExitCode.SOURCE
        assert "m1" in ended.out
        assert ended.err == "relay: customers: customers is away\n  Look at the server.\n"
        assert relay("list", "--source", "orders").code == ExitCode.OK

    def test_it_says_when_there_is_more(self, relay: Relay, table: Table) -> None:
        table.entries = [replace(ENTRY, id=f"m{number}") for number in range(5)]
        ended = relay("list", "--dsn", DSN, "--limit", "3")
        assert ended.out.count("\n") == 4
        assert ended.err == "relay: 2 more are parked: see --limit\n"
        assert relay("list", "--dsn", DSN, "--limit", "5").err == ""

    def test_it_says_when_there_is_nothing(self, relay: Relay, table: Table) -> None:
        table.entries = []
        assert relay("list", "--dsn", DSN) == Ended(0, "nothing is parked\n", "")
        assert relay("list", "--dsn", DSN, "--reason", "nacked").out == "nothing is parked that matches\n"
        assert relay("list", "--dsn", DSN, "--format", "json").out == "[]\n"

    def test_a_message_is_one_line(self) -> None:
        waits = replace(ENTRY, id="m2", kind="event", destination=None, first=False, parked_seconds=86400 * 3.0)
        assert render([ENTRY, waits]).splitlines() == [
            "SOURCE  POSITION     ID  TYPE          AGGREGATE  DESTINATION  REASON      FIRST  PARKED",
            "orders  0/16B3748+2  m1  command Ship  order/7    stock        unroutable  yes    60 s",
            "orders  0/16B3748+2  m2  event Ship    order/7    -            unroutable  no     3 d",
        ]

    @pytest.mark.parametrize(
        ("seconds", "age"),
        [
            (-1, "0 s"),
            (119, "119 s"),
            (120, "2 min"),
            (7199, "119 min"),
            (7200, "2 h"),
            (172799, "47 h"),
            (172800, "2 d"),
        ],
    )
    def test_an_age_is_in_the_unit_that_a_person_would_take(self, seconds: float, age: str) -> None:
        assert render([replace(ENTRY, parked_seconds=seconds)]).endswith(f"  {age}")


class TestOutcome:
    @pytest.mark.parametrize(
        ("verb", "progress", "words"),
        [
            ("replay", done(published=1), "1 message published"),
            ("replay", done(published=2), "2 messages published"),
            ("replay", done(), "nothing is parked that matches"),
            ("drop", done(dropped=2), "2 messages dropped"),
            ("drop", done(dropped=2, published=1), "2 messages dropped; 1 message published, which came meanwhile"),
        ],
    )
    def test_it_says_what_was_done(self, relay: Relay, table: Table, verb: str, progress: Progress, words: str) -> None:
        table.seen = [progress]
        assert relay(verb, "m1", "--dsn", DSN) == Ended(0, f"{words}\n", "")

    def test_what_is_still_parked_is_a_failure(self, relay: Relay, table: Table) -> None:
        table.seen = [done(published=1, still_parked=3, detail="a queue refused it")]
        ended = relay("replay", "m1", "--dsn", DSN)
        assert (ended.code, ended.out) == (1, "1 message published\n")
        assert "3 messages still parked: a queue refused it" in ended.err

    def test_what_waits_behind_one_that_was_dropped_alone_is_no_failure(self, relay: Relay, table: Table) -> None:
        table.seen = [done(dropped=1, still_parked=3)]
        ended = relay("drop", "m1", "--first", "--dsn", DSN)
        assert ended == Ended(0, "1 message dropped; 3 messages behind still parked\n", "")
        assert table.asked == [("orders", Action.DROP, Selection(("m1",)), True)]

    def test_nothing_is_asked_when_nothing_is_selected(self, relay: Relay, table: Table) -> None:
        table.entries = []
        for arguments in (["replay", "m1"], ["drop", "m1"], ["drop", "m1", "--first"], ["replay", "m1", "--dry-run"]):
            assert relay(*arguments, "--dsn", DSN) == Ended(0, "nothing is parked that matches\n", "")
        assert table.asked == []

    def test_a_relay_that_takes_the_request_at_the_last_moment_is_waited_for(self, relay: Relay, table: Table) -> None:
        table.seen = [done(state="asked"), done(published=1)]
        table.withdrawn = [False]
        assert relay("replay", "m1", "--dsn", DSN) == Ended(0, "1 message published\n", "")

    def test_without_a_relay_nothing_happens(self, relay: Relay, table: Table) -> None:
        table.seen = [done(state="asked")]
        table.withdrawn = [True]
        ended = relay("replay", "m1", "--dsn", DSN)
        assert (ended.code, ended.out) == (1, "")
        assert "no relay has taken the request within 30 s, and it is withdrawn" in ended.err
        assert "relay run" in ended.err

    def test_a_relay_that_hangs_is_told_of(self, relay: Relay, table: Table) -> None:
        table.seen = [done(state="taken", published=4)]
        ended = relay("replay", "m1", "--dsn", DSN, "--timeout", "5")
        assert ended.code == 1
        assert "taken request 12, and nothing has moved for 5 s: published 4 and dropped 0 so far" in ended.err

    @pytest.mark.parametrize(
        ("withdrawn", "words"),
        [(True, "the request is withdrawn"), (False, "the relay goes on with what it has begun")],
    )
    def test_ctrl_c_takes_the_request_back_if_it_can(
        self, relay: Relay, table: Table, withdrawn: bool, words: str
    ) -> None:
        table.interrupts, table.withdrawn = True, [withdrawn]
        ended = relay("replay", "m1", "--dsn", DSN)
        assert ended.code == 1
        assert words in ended.err
