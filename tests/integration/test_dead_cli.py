"""`relay dead` with rows of relay.deferred, and with a service that could not handle a message."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import fields
from typing import Any

import psycopg
import pytest

from relay.errors import ExitCode
from relay.messaging import dead
from relay.messaging.dead import Entry, Selection, Sheet
from tests.conftest import VirtualHost
from tests.support.courier import Courier
from tests.support.database import Database
from tests.support.notebook import SERVICE, Note, Notebook, running, then_written
from tests.support.terminal import Ended, Terminal
from tests.support.waiting import eventually

NOBODY = "postgresql://relay@127.0.0.1:1/nobody"
ROWS = "SELECT message_id, attempts, dead_at IS NOT NULL, due_at <= clock_timestamp() FROM relay.deferred ORDER BY seq"
INBOX = "SELECT consumer, message_id FROM relay.inbox ORDER BY message_id"

TerminalOf = Callable[..., Terminal]


def given_deferred(
    database: Database,
    message_id: str,
    aggregate: str = "order/7",
    *,
    died: bool = False,
    attempts: int = 0,
    message_type: str = "Ship",
    consumer: str = "stock",
    body: bytes = b'{"n": 1}',
) -> str:
    """A message that could not be handled yet, or that waits behind one; its id."""
    query = (
        "INSERT INTO relay.deferred (consumer, message_id, aggregate_type, aggregate_id, type, properties, body,"
        " attempts, history, due_at, dead_at) VALUES (%s, %s, %s, %s, %s, %s::text::json, %s, %s, %s::text::json,"
        " now() + interval '1 hour', CASE WHEN %s THEN now() - interval '5 min' END)"
    )
    history = [
        {"at": f"2026-11-23T21:00:0{number}+00:00", "attempt": number, "error": f"ValueError: no. {number}"}
        for number in range(1, attempts + 1)
    ]
    properties = {"message_id": message_id, "type": message_type, "headers": {"aggregate_type": "order"}}
    aggregate_type, _, aggregate_id = aggregate.partition("/")
    database.query(
        query,
        *(consumer, message_id, aggregate_type, aggregate_id, message_type, json.dumps(properties)),
        *(body, attempts, json.dumps(history), died),
    )
    return message_id


@pytest.fixture
def terminal_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> TerminalOf:
    """`terminal_of(orders=dsn)`."""
    return lambda **sources: Terminal(monkeypatch, capsys, sources)


@pytest.fixture
def terminal(database: Database, terminal_of: TerminalOf) -> Terminal:
    return terminal_of(orders=database.dsn)


@pytest.fixture
def lanes(database: Database) -> Database:
    """A dead message with two behind it, one that is tried again with one behind it, and two other dead ones."""
    given_deferred(database, "m1", died=True, attempts=3)
    given_deferred(database, "m2")
    given_deferred(database, "m3")
    given_deferred(database, "m4", "order/8/b", attempts=1)
    given_deferred(database, "m5", "order/8/b")
    given_deferred(database, "m6", "order/9", died=True, attempts=2, message_type="Unship")
    given_deferred(database, "m7", "order/7", died=True, attempts=1, consumer="billing")
    return database


def listed(terminal: Terminal, *options: str) -> list[dict[str, Any]]:
    ended = terminal("dead", "list", "--format", "json", *options)
    assert ended.code == ExitCode.OK, ended.err
    messages: list[dict[str, Any]] = json.loads(ended.out)
    return messages


def ids(messages: list[dict[str, Any]]) -> list[str]:
    return [message["id"] for message in messages]


class TestList:
    def test_a_dead_message_is_a_line_with_how_many_wait_behind_it(self, lanes: Database, terminal: Terminal) -> None:
        ended = terminal("dead", "list")

        assert (ended.code, ended.err) == (ExitCode.OK, "")
        heading = "SOURCE CONSUMER ID TYPE AGGREGATE STATE ATTEMPTS BEHIND DEAD FOR ERROR"
        assert " ".join(ended.out.splitlines()[0].split()) == heading
        assert [" ".join(row) for row in ended.rows] == [
            "orders stock m1 Ship order/7 dead 3 2 5 min ValueError: no. 3",
            "orders stock m6 Unship order/9 dead 2 0 5 min ValueError: no. 2",
            "orders billing m7 Ship order/7 dead 1 0 5 min ValueError: no. 1",
        ]

    def test_those_that_wait_are_shown_when_asked_for(self, lanes: Database, terminal: Terminal) -> None:
        states = [(one["id"], one["state"], one["behind"]) for one in listed(terminal, "--waiting")]
        assert states == [
            ("m1", "dead", 2),
            ("m2", "waiting", 1),
            ("m3", "waiting", 0),
            ("m4", "retrying", 1),
            ("m5", "waiting", 0),
            ("m6", "dead", 0),
            ("m7", "dead", 0),
        ]

    def test_aggregate_type_and_consumer_choose_and_all_of_them_have_to_hold(
        self, lanes: Database, terminal: Terminal
    ) -> None:
        chosen = {
            ("--aggregate", "order/7"): ["m1", "m7"],
            ("--type", "Ship"): ["m1", "m7"],
            ("--consumer", "stock"): ["m1", "m6"],
            ("--aggregate", "order/7", "--consumer", "billing"): ["m7"],
            ("--aggregate", "order/8/b"): [],
            ("--aggregate", "order/8/b", "--waiting"): ["m4", "m5"],
            ("--limit", "2"): ["m1", "m6"],
        }
        assert {options: ids(listed(terminal, *options)) for options in chosen} == chosen

    def test_it_says_when_there_are_more_and_when_there_are_none(self, database: Database, terminal: Terminal) -> None:
        assert terminal("dead", "list").out == "nothing is dead\n"
        assert terminal("dead", "list", "--waiting").out == "nothing waits\n"
        given_deferred(database, "m1", died=True)
        given_deferred(database, "m2", died=True)
        assert terminal("dead", "list", "--limit", "1").err == "relay: there are more: see --limit\n"
        assert terminal("dead", "list", "--limit", "2").err == ""
        assert terminal("dead", "list", "--type", "none").out == "nothing is dead that matches\n"

    def test_a_program_gets_exactly_the_keys_that_are_documented(self, lanes: Database, terminal: Terminal) -> None:
        messages = listed(terminal, "--waiting")

        assert {tuple(one) for one in messages} == {("source", *(field.name for field in fields(Entry)))}
        first, behind, *_ = messages
        assert (first["source"], first["error"], first["due_at"]) == ("orders", "ValueError: no. 3", None)
        assert 300 <= first["dead_seconds"] < 330
        assert (behind["error"], behind["due_at"], behind["dead_at"], behind["dead_seconds"]) == (None,) * 4
        assert messages[3]["due_at"] is not None

    def test_a_source_that_cannot_be_asked_does_not_hide_the_others(
        self, lanes: Database, terminal_of: TerminalOf
    ) -> None:
        terminal = terminal_of(nobody=NOBODY, orders=lanes.dsn)

        ended = terminal("dead", "list")

        assert ended.code == ExitCode.SOURCE
        assert "m1" in ended.out
        assert ended.err.startswith("relay: nobody: PostgreSQL at 127.0.0.1:1")
        assert terminal("dead", "list", "--source", "orders").code == ExitCode.OK

    def test_a_database_that_is_not_migrated_is_a_trouble_of_the_source(
        self, database: Database, terminal: Terminal
    ) -> None:
        database.query("DROP TABLE relay.deferred")
        for arguments in (("list",), ("show", "m1"), ("replay", "m1"), ("drop", "m1")):
            ended = terminal("dead", *arguments)
            assert ended.code == ExitCode.SOURCE
            assert "relay migrate" in ended.err


class TestShow:
    def test_a_message_is_shown_with_its_history_its_headers_and_its_body(
        self, database: Database, terminal: Terminal
    ) -> None:
        given_deferred(database, "m1", died=True, attempts=2, body='{ "n":1.50, "text": "ü☃"}'.encode())

        ended = terminal("dead", "show", "m1")

        assert ended.code == ExitCode.OK
        head, history, properties, body = ended.out.split("\n\n")
        assert ["aggregate", "order/7"] in [line.split() for line in head.splitlines()]
        assert [line.split(maxsplit=2)[1:] for line in history.splitlines()[1:]] == [
            ["1", "ValueError: no. 1"],
            ["2", "ValueError: no. 2"],
        ]
        assert '"aggregate_type": "order"' in properties
        assert body == 'body\n{ "n":1.50, "text": "ü☃"}\n'

    def test_a_program_gets_exactly_the_keys_that_are_documented(self, database: Database, terminal: Terminal) -> None:
        for consumer in ("stock", "billing"):
            given_deferred(database, "m1", consumer=consumer, attempts=1, body=b"\xff\x00")

        shown = json.loads(terminal("dead", "show", "m1", "--format", "json").out)

        assert {tuple(one) for one in shown} == {("source", *(field.name for field in fields(Sheet)))}
        assert [one["consumer"] for one in shown] == ["stock", "billing"]
        assert shown[0]["body"] == "\\xff00"
        assert shown[0]["history"] == [{"at": "2026-11-23T21:00:01+00:00", "attempt": 1, "error": "ValueError: no. 1"}]
        assert shown[0]["properties"]["headers"] == {"aggregate_type": "order"}

    def test_one_that_is_not_there_is_a_failure(self, terminal: Terminal) -> None:
        missing = terminal("dead", "show", "m9")

        assert (missing.code, missing.out) == (ExitCode.FAILURE, "")
        assert "no message m9 waits to be handled" in missing.err


class TestReplay:
    def test_it_is_due_at_once_with_all_its_attempts_and_its_history(self, lanes: Database, terminal: Terminal) -> None:
        assert terminal("dead", "replay", "m1") == Ended(0, "1 message replayed\n", "")

        assert lanes.query(ROWS)[0] == ("m1", 0, False, True)
        assert lanes.value("SELECT json_array_length(history) FROM relay.deferred WHERE message_id = 'm1'") == 3
        assert terminal("dead", "replay", "m1") == Ended(0, "nothing is dead that matches\n", "")

    @pytest.mark.parametrize(
        ("arguments", "chosen"),
        [
            (("--aggregate", "order/7"), {"m1", "m7"}),
            (("--type", "Unship"), {"m6"}),
            (("--consumer", "stock"), {"m1", "m6"}),
            (("m1", "m6", "--type", "Ship"), {"m1"}),
            (("m2", "m4"), set()),
        ],
    )
    @pytest.mark.parametrize(("verb", "done"), [("replay", "replayed"), ("drop", "dropped")])
    def test_only_dead_ones_that_are_selected_are_meant_as_a_dry_run_shows(
        self, lanes: Database, terminal: Terminal, verb: str, done: str, arguments: tuple[str, ...], chosen: set[str]
    ) -> None:
        before = lanes.query(ROWS)
        preview = terminal("dead", verb, *arguments, "--dry-run")
        assert lanes.query(ROWS) == before
        assert lanes.query(INBOX) == []

        ended = terminal("dead", verb, *arguments)

        assert preview.code == ended.code == ExitCode.OK
        assert {row[2] for row in preview.rows[:-1]} == chosen
        changed = {row[0] for row in set(before) - set(lanes.query(ROWS))}
        assert changed == chosen
        if chosen:
            messages = "1 message" if len(chosen) == 1 else f"{len(chosen)} messages"
            assert preview.out.splitlines()[-1] == f"{messages} would be {done}"
            assert ended.out == f"{messages} {done}\n"
        else:
            assert preview.out == ended.out == "nothing is dead that matches\n"

    def test_an_operator_needs_no_more_rights_than_the_documentation_says(
        self, lanes: Database, terminal_of: TerminalOf
    ) -> None:
        lanes.query("REVOKE ALL ON ALL TABLES IN SCHEMA relay FROM inventory")
        lanes.query("GRANT USAGE ON SCHEMA relay TO inventory")
        lanes.query("GRANT SELECT, UPDATE, DELETE ON relay.deferred TO inventory")
        lanes.query("GRANT SELECT, INSERT ON relay.inbox TO inventory")
        terminal = terminal_of(orders=lanes.role_dsn("inventory"))
        for arguments in (("list",), ("show", "m1"), ("replay", "m1"), ("drop", "m6")):
            assert terminal("dead", *arguments).code == ExitCode.OK


class TestDrop:
    def test_it_goes_and_a_copy_of_it_is_known(self, lanes: Database, terminal: Terminal) -> None:
        assert terminal("dead", "drop", "m1", "m7") == Ended(0, "2 messages dropped\n", "")

        assert lanes.query(INBOX) == [("stock", "m1"), ("billing", "m7")]
        assert [row[0] for row in lanes.query(ROWS)] == ["m2", "m3", "m4", "m5", "m6"]
        assert terminal("dead", "drop", "m1", "m7") == Ended(0, "nothing is dead that matches\n", "")

    def test_what_was_behind_it_is_the_first_now(self, lanes: Database, terminal: Terminal) -> None:
        terminal("dead", "drop", "m1")

        assert [one["state"] for one in listed(terminal, "--waiting", "--aggregate", "order/7")] == [
            "retrying",
            "waiting",
            "dead",
        ]

    async def test_one_that_is_replayed_meanwhile_is_not_dropped(self, lanes: Database) -> None:
        with psycopg.connect(lanes.dsn) as replaying:
            assert dead.replay(replaying, Selection(("m1",))) == 1
            dropping = asyncio.create_task(asyncio.to_thread(drop, lanes, "m1"))
            await eventually(lambda: lanes.value("SELECT count(*) FROM pg_locks WHERE NOT granted"))
            replaying.commit()

        assert await dropping == 0
        assert lanes.query(INBOX) == []
        assert lanes.query(ROWS)[0] == ("m1", 0, False, True)

    async def test_one_that_two_operators_drop_at_once_is_dropped_once(self, lanes: Database) -> None:
        async with asyncio.timeout(30):
            counts = await asyncio.gather(*(asyncio.to_thread(drop, lanes, "m1") for _ in range(4)))
        assert sorted(counts) == [0, 0, 0, 1]

    def test_the_row_goes_with_the_inbox_s_or_not_at_all(self, lanes: Database) -> None:
        lanes.query("REVOKE DELETE ON relay.deferred FROM customers")
        with (
            psycopg.connect(lanes.role_dsn("customers"), autocommit=True) as connection,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            dead.drop(connection, Selection(("m1",)))
        assert lanes.query(INBOX) == []


def drop(database: Database, message_id: str) -> int:
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        return dead.drop(connection, Selection((message_id,)))


class TestWithAService:
    """It stumbles over notes that it is told to, gives up soon, and puts what comes later behind them."""

    @pytest.fixture
    def notebook(self) -> Notebook:
        return Notebook()

    @pytest.fixture
    async def courier(self, notes: Database, vhost: VirtualHost, notebook: Notebook) -> AsyncIterator[Courier]:
        """The service runs, has given up on `a1`, and has `a2` waiting behind it."""
        broken = {"a1"}

        def stumble(command: Note, _: object) -> None:
            if command.text in broken:
                raise ZeroDivisionError("a bug")

        notebook.stumble = stumble
        self.mend = broken.clear
        async with Courier(vhost.url) as courier:
            await courier.declare(notebook.service.queue)
            async with running(notebook, notes.role_dsn(SERVICE), vhost.user_url(SERVICE)):
                for text in ("a1", "a2"):
                    await tell(courier, text)
                await eventually(lambda: len(notes.query(ROWS)) == 2)
                await eventually(lambda: notes.query(ROWS)[0][2])
                yield courier

    @pytest.mark.usefixtures("courier")
    async def test_what_is_replayed_once_the_bug_is_mended_is_handled_and_the_others_follow(
        self, notes: Database, terminal_of: TerminalOf
    ) -> None:
        terminal = terminal_of(customers=notes.dsn)
        (first,) = listed(terminal)
        assert (first["id"], first["behind"], first["error"]) == ("a1", 1, "ZeroDivisionError: a bug")

        self.mend()
        assert terminal("dead", "replay", "a1").out == "1 message replayed\n"

        await then_written(notes, "a1", "a2")
        assert notes.query(INBOX) == [(SERVICE, "a1"), (SERVICE, "a2")]
        assert notes.query(ROWS) == []

    @pytest.mark.usefixtures("courier")
    async def test_what_is_replayed_before_the_bug_is_mended_is_dead_again_with_more_of_a_history(
        self, notes: Database, terminal_of: TerminalOf
    ) -> None:
        terminal = terminal_of(customers=notes.dsn)
        failures = (
            "SELECT json_array_length(history) FROM relay.deferred WHERE message_id = 'a1' AND dead_at IS NOT NULL"
        )
        before = int(str(notes.value(failures)))

        terminal("dead", "replay", "--consumer", SERVICE)

        await eventually(lambda: (notes.query(failures) or [(0,)])[0] > (before,))
        assert ids(listed(terminal)) == ["a1"]

    async def test_what_is_dropped_is_never_handled_nor_is_a_copy_and_the_others_go_on(
        self, notes: Database, terminal_of: TerminalOf, courier: Courier, notebook: Notebook
    ) -> None:
        terminal = terminal_of(customers=notes.dsn)
        self.mend()

        assert terminal("dead", "drop", "a1").out == "1 message dropped\n"
        await then_written(notes, "a2")
        await tell(courier, "a1")
        await tell(courier, "a3")
        await then_written(notes, "a2", "a3")

        assert notes.query(INBOX) == [(SERVICE, "a1"), (SERVICE, "a2"), (SERVICE, "a3")]


async def tell(courier: Courier, text: str) -> None:
    """A note about one book. Its id is its text."""
    headers = {"aggregate_type": "book", "aggregate_id": "a"}
    await courier.send(SERVICE, Note(text=text), message_id=text, headers=headers)
