"""A message that cannot be handled yet is put off: in order, by itself, found by any instance, and dead in the end."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from psycopg import AsyncConnection

from relay.broker.properties import COMMANDS, Delivery, HeaderValue, Properties
from relay.messaging import Incoming, Outcome, Retry, Transaction, Unprocessable, deferred
from relay.messaging.deferred import Lane
from relay.messaging.failures import Mishap
from relay.messaging.retrier import LANES, LOST_MAX, Retrier
from relay.messaging.retry import FAULT_TRIES
from tests.conftest import VirtualHost
from tests.support.courier import Courier, Outgoing
from tests.support.database import Database
from tests.support.notebook import (
    PATIENT,
    SERVICE,
    Note,
    Notebook,
    pool_of,
    running,
    then_written,
    written,
)
from tests.support.waiting import eventually

DEFERRED = "SELECT message_id, attempts, dead_at IS NOT NULL FROM relay.deferred ORDER BY seq"
ERRORS = "SELECT e->>'error' FROM relay.deferred, json_array_elements(history) AS e WHERE message_id = %s"
INBOX = "SELECT message_id FROM relay.inbox ORDER BY message_id"
REPLAY = "UPDATE relay.deferred SET dead_at = NULL, attempts = 0, due_at = clock_timestamp() WHERE message_id = %s"
KEPT = """
    INSERT INTO relay.deferred (consumer, message_id, aggregate_type, aggregate_id, type, properties, body)
    SELECT 'customers', id, 'book', %s::text, 'Note',
           json_build_object('message_id', id, 'type', 'Note', 'headers', json_build_object()),
           convert_to(json_build_object('text', id)::text, 'UTF8')
    FROM (SELECT %s::text) AS given (id)
"""
CROWD = 20_000
BEHIND = """
    INSERT INTO relay.deferred (consumer, message_id, aggregate_type, aggregate_id, type, properties, body)
    SELECT 'customers', 'behind' || n, 'book', 'dead', 'Note', '{}', '' FROM generate_series(1, %s) AS n
"""
NOBODY = "postgresql://relay@127.0.0.1:1/nobody"
SLOWLY = Retry(attempts=20, backoff="1h..1h")
"""Once put off, a message stays put off for as long as any test takes."""


@pytest.fixture(autouse=True)
def _log_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "relay")


class Patient:
    """A notebook that is running, and what a test does to it."""

    def __init__(self, retry: Retry = PATIENT) -> None:
        self.notebook = Notebook(retry)
        self.broken: set[str] = set()
        self.notebook.stumble = self._stumble

    def _stumble(self, command: Note, _: Transaction) -> None:
        if command.text in self.broken:
            raise ZeroDivisionError("a bug")


async def tell(courier: Courier, aggregate: str, text: str, **said: object) -> str:
    """A note about an aggregate. Its id is its text."""
    headers = {"aggregate_type": "book", "aggregate_id": aggregate}
    return await courier.send(SERVICE, Note(text=text), message_id=text, headers=headers, **said)


def actions(caplog: pytest.LogCaptureFixture) -> list[object]:
    return [vars(record).get("action") for record in caplog.records]


async def test_it_is_put_off_with_those_behind_it_and_others_go_on(
    notes: Database, vhost: VirtualHost, courier: Courier
) -> None:
    service = Patient(SLOWLY)
    service.broken.add("a1")
    async with running(service.notebook, notes.role_dsn(SERVICE), vhost.user_url(SERVICE)):
        for text in ("a1", "a2", "a3", "b1"):
            await tell(courier, text[0], text)
        await then_written(notes, "b1")
        await eventually(lambda: len(notes.query(DEFERRED)) == 3)

    assert notes.query(DEFERRED) == [("a1", FAULT_TRIES, False), ("a2", 0, False), ("a3", 0, False)]
    assert [text for text in service.notebook.tries if text != "b1"] == ["a1"] * FAULT_TRIES
    assert notes.query(INBOX) == [("b1",)]


async def test_nothing_of_it_is_left_in_the_queue(notes: Database, vhost: VirtualHost, courier: Courier) -> None:
    service = Patient(SLOWLY)
    service.broken.add("a1")
    async with running(service.notebook, notes.role_dsn(SERVICE), vhost.user_url(SERVICE)):
        for text in ("a1", "a2"):
            await tell(courier, "a", text)
        await eventually(lambda: len(notes.query(DEFERRED)) == 2)

    await tell(courier, "a", "probe")
    assert (await courier.take(SERVICE)).properties.message_id == "probe"


async def test_it_is_tried_again_until_it_succeeds_and_then_the_others_in_their_order(
    notes: Database, vhost: VirtualHost, courier: Courier, caplog: pytest.LogCaptureFixture
) -> None:
    service = Patient(Retry(attempts=100, backoff="50ms..100ms"))
    service.broken.add("a1")
    async with running(service.notebook, notes.role_dsn(SERVICE), vhost.user_url(SERVICE)):
        for text in ("a1", "a2", "a3"):
            await tell(courier, "a", text)
        await eventually(lambda: service.notebook.tries.count("a1") > FAULT_TRIES + 1)
        service.broken.clear()
        await tell(courier, "a", "a4")
        await then_written(notes, "a1", "a2", "a3", "a4")

    assert notes.query(DEFERRED) == []
    assert notes.query(INBOX) == [("a1",), ("a2",), ("a3",), ("a4",)]
    assert "message_dead" not in actions(caplog)
    assert {record.levelno for record in caplog.records if vars(record)["action"] == "handler_failed"} == {logging.INFO}


async def test_another_instance_finishes_what_one_has_put_off(
    notes: Database, vhost: VirtualHost, courier: Courier
) -> None:
    first, second = Patient(), Patient()
    first.broken.add("a1")
    async with running(first.notebook, notes.role_dsn(SERVICE), vhost.user_url(SERVICE)):
        await tell(courier, "a", "a1")
        await tell(courier, "a", "a2")
        await eventually(lambda: len(notes.query(DEFERRED)) == 2)
    async with running(second.notebook, notes.role_dsn(SERVICE), vhost.user_url(SERVICE)):
        await then_written(notes, "a1", "a2")

    assert second.notebook.tries == ["a1", "a2"]


async def test_instances_share_the_work_and_nothing_is_done_twice_nor_overtakes(
    notes: Database, vhost: VirtualHost, courier: Courier
) -> None:
    first = Patient(Retry(attempts=100, backoff="10ms..20ms"))
    aggregates = [f"{letter}{number}" for letter in "abcdefgh" for number in range(5)]
    first.broken.update(f"{letter}0" for letter in "abcdefgh")
    others = [Notebook(Retry(attempts=100, backoff="10ms..20ms")) for _ in range(2)]
    async with running(first.notebook, notes.role_dsn(SERVICE), vhost.user_url(SERVICE)):
        for text in aggregates:
            await tell(courier, text[0], text)
        await eventually(lambda: len(notes.query(DEFERRED)) == len(aggregates))
    first.broken.clear()
    dsn, url = notes.role_dsn(SERVICE), vhost.user_url(SERVICE)
    async with running(first.notebook, dsn, url), running(others[0], dsn, url), running(others[1], dsn, url):
        await eventually(lambda: len(written(notes)) == len(aggregates))

    for letter in "abcdefgh":
        of_one = [text for text in written(notes) if str(text).startswith(letter)]
        assert of_one == [f"{letter}{number}" for number in range(5)]


async def test_when_its_tries_are_used_up_it_is_dead_with_its_history_and_those_behind_it_wait(
    notes: Database, vhost: VirtualHost, courier: Courier, caplog: pytest.LogCaptureFixture
) -> None:
    service = Patient()
    service.broken.add("a1")
    async with running(service.notebook, notes.role_dsn(SERVICE), vhost.user_url(SERVICE)):
        await tell(courier, "a", "a1")
        await tell(courier, "a", "a2")
        await eventually(lambda: notes.query(DEFERRED) == [("a1", PATIENT.attempts, True), ("a2", 0, False)])
        await tell(courier, "b", "b1")
        await then_written(notes, "b1")

    assert notes.query(ERRORS, "a1") == [("ZeroDivisionError: a bug",)] * PATIENT.attempts
    attempts = notes.query("SELECT e->>'attempt' FROM relay.deferred, json_array_elements(history) AS e")
    assert attempts == [(str(number),) for number in range(1, PATIENT.attempts + 1)]
    (told,) = (record for record in caplog.records if record.levelno == logging.ERROR)
    assert vars(told)["action"] == "message_dead"
    assert f"attempts 1 to {PATIENT.attempts}: ZeroDivisionError: a bug" in told.getMessage()
    assert len(vars(told)["history"]) == PATIENT.attempts
    assert service.notebook.tries.count("a1") == PATIENT.attempts


async def test_a_dead_one_that_is_replayed_is_tried_anew_and_then_the_others(
    notes: Database, vhost: VirtualHost, courier: Courier
) -> None:
    service = Patient(Retry(attempts=FAULT_TRIES))
    service.broken.add("a1")
    async with running(service.notebook, notes.role_dsn(SERVICE), vhost.user_url(SERVICE)):
        await tell(courier, "a", "a1", reply_to="orders")
        await tell(courier, "a", "a2")
        await eventually(lambda: notes.query(DEFERRED) == [("a1", FAULT_TRIES, True), ("a2", 0, False)])
        service.broken.clear()
        notes.query(REPLAY, "a1")
        await then_written(notes, "a1", "a2")

    assert notes.query("SELECT causation_id FROM relay.outbox") == [("a1",)]
    assert notes.query(DEFERRED) == []


async def test_a_replayed_one_that_fails_again_has_a_longer_history(
    notes: Database, vhost: VirtualHost, courier: Courier
) -> None:
    service = Patient(Retry(attempts=FAULT_TRIES, backoff="10ms..20ms"))
    service.broken.add("a1")
    async with running(service.notebook, notes.role_dsn(SERVICE), vhost.user_url(SERVICE)):
        await tell(courier, "a", "a1")
        await eventually(lambda: notes.query(DEFERRED) == [("a1", FAULT_TRIES, True)])
        notes.query(REPLAY, "a1")
        await eventually(lambda: notes.query(DEFERRED) == [("a1", FAULT_TRIES, True)])

    assert len(notes.query(ERRORS, "a1")) == 2 * FAULT_TRIES


async def test_after_a_dead_one_is_dropped_the_others_go_on_and_a_copy_is_not_handled(
    notes: Database, vhost: VirtualHost, courier: Courier
) -> None:
    service = Patient(Retry(attempts=FAULT_TRIES))
    service.broken.add("a1")
    async with running(service.notebook, notes.role_dsn(SERVICE), vhost.user_url(SERVICE)):
        await tell(courier, "a", "a1")
        await tell(courier, "a", "a2")
        await eventually(lambda: notes.query(DEFERRED) == [("a1", FAULT_TRIES, True), ("a2", 0, False)])
        service.broken.clear()
        notes.query(
            "WITH gone AS (DELETE FROM relay.deferred WHERE message_id = 'a1' RETURNING consumer, message_id)"
            " INSERT INTO relay.inbox (consumer, message_id) SELECT consumer, message_id FROM gone"
        )
        await then_written(notes, "a2")
        await tell(courier, "a", "a1")
        await tell(courier, "a", "a3")
        await then_written(notes, "a2", "a3")


async def test_a_message_that_nobody_understands_is_dead_at_once_and_those_behind_it_wait(
    notes: Database, vhost: VirtualHost, courier: Courier
) -> None:
    service = Patient()
    headers: dict[str, HeaderValue] = {"aggregate_type": "book", "aggregate_id": "a"}
    async with running(service.notebook, notes.role_dsn(SERVICE), vhost.user_url(SERVICE)):
        await courier.publish(Outgoing(COMMANDS, SERVICE, Properties("m", type="Unheard", headers=headers), b"{}"))
        await tell(courier, "a", "a1")
        await eventually(lambda: notes.query(DEFERRED) == [("m", 1, True), ("a1", 0, False)])

    assert notes.query(ERRORS, "m") == [("Unprocessable: service customers has no handler of Unheard",)]
    assert service.notebook.tries == []


async def test_one_that_turns_out_to_be_hopeless_later_is_dead_at_once(
    notes: Database, vhost: VirtualHost, courier: Courier
) -> None:
    service = Patient(Retry(attempts=100, backoff="10ms..20ms"))

    def stumble(command: Note, _: Transaction) -> None:
        raise ZeroDivisionError if len(service.notebook.tries) <= FAULT_TRIES else Unprocessable("never mind")

    service.notebook.stumble = stumble
    async with running(service.notebook, notes.role_dsn(SERVICE), vhost.user_url(SERVICE)):
        await tell(courier, "a", "a1")
        await eventually(lambda: notes.query(DEFERRED) == [("a1", FAULT_TRIES + 1, True)])

    assert notes.query(ERRORS, "a1")[-1] == ("Unprocessable: never mind",)


async def test_a_copy_of_what_is_put_off_changes_nothing(notes: Database, vhost: VirtualHost, courier: Courier) -> None:
    service = Patient(SLOWLY)
    service.broken.add("a1")
    async with running(service.notebook, notes.role_dsn(SERVICE), vhost.user_url(SERVICE)):
        for text in ("a1", "a2", "a1", "a2", "a3"):
            await tell(courier, "a", text)
        await eventually(lambda: len(notes.query(DEFERRED)) == 3)

    assert notes.query(DEFERRED) == [("a1", FAULT_TRIES, False), ("a2", 0, False), ("a3", 0, False)]
    assert service.notebook.tries == ["a1"] * FAULT_TRIES


async def test_a_copy_of_what_was_handled_is_not_put_behind_what_waits(
    notes: Database, vhost: VirtualHost, courier: Courier
) -> None:
    service = Patient(SLOWLY)
    service.broken.add("a2")
    async with running(service.notebook, notes.role_dsn(SERVICE), vhost.user_url(SERVICE)):
        for text in ("a1", "a2", "a1", "a3"):
            await tell(courier, "a", text)
        await eventually(lambda: len(notes.query(DEFERRED)) == 2)

    assert [row[0] for row in notes.query(DEFERRED)] == ["a2", "a3"]


async def test_a_conflict_in_a_later_try_is_tried_again_at_once(
    notes: Database, vhost: VirtualHost, courier: Courier
) -> None:
    service = Patient(PATIENT)

    def stumble(_: Note, __: Transaction) -> None:
        if len(service.notebook.tries) <= FAULT_TRIES:
            raise ZeroDivisionError
        if len(service.notebook.tries) < FAULT_TRIES + 4:
            raise psycopg.errors.SerializationFailure

    service.notebook.stumble = stumble
    async with running(service.notebook, notes.role_dsn(SERVICE), vhost.user_url(SERVICE)):
        await tell(courier, "a", "a1")
        await then_written(notes, "a1")

    assert len(service.notebook.tries) == FAULT_TRIES + 4


async def test_a_slow_retry_holds_up_no_other_aggregate(notes: Database, vhost: VirtualHost, courier: Courier) -> None:
    service = Patient(Retry(attempts=100, backoff="10ms..20ms"))
    service.broken.add("a1")
    go_on = asyncio.Event()
    async with running(service.notebook, notes.role_dsn(SERVICE), vhost.user_url(SERVICE)):
        await tell(courier, "a", "a1")
        await eventually(lambda: notes.query(DEFERRED))
        service.notebook.stumble = lambda command, _: go_on.wait() if command.text == "a1" else None
        tries = len(service.notebook.tries)
        await eventually(lambda: len(service.notebook.tries) > tries)
        notes.query(KEPT, "b", "b1")
        await tell(courier, "c", "c1")
        await eventually(lambda: set(written(notes)) == {"b1", "c1"})
        go_on.set()
        await eventually(lambda: "a1" in written(notes))


async def test_a_dead_one_among_those_behind_is_not_tried_when_its_turn_comes(
    notes: Database, vhost: VirtualHost, courier: Courier
) -> None:
    service = Patient(Retry(attempts=100, backoff="10ms..20ms"))
    service.broken.add("a1")
    async with running(service.notebook, notes.role_dsn(SERVICE), vhost.user_url(SERVICE)):
        await tell(courier, "a", "a1")
        await eventually(lambda: notes.query(DEFERRED))
        notes.query(KEPT, "a", "a2")
        notes.query("UPDATE relay.deferred SET attempts = 12, dead_at = now() WHERE message_id = 'a2'")
        notes.query(KEPT, "a", "a3")
        service.broken.clear()
        await then_written(notes, "a1")
        await tell(courier, "b", "b1")
        await then_written(notes, "a1", "b1")

    assert notes.query(DEFERRED) == [("a2", 12, True), ("a3", 0, False)]


async def test_however_many_wait_behind_a_dead_one_others_have_their_turn(
    notes: Database, vhost: VirtualHost, courier: Courier
) -> None:
    notes.query(KEPT, "a", "a0")
    notes.query("UPDATE relay.deferred SET attempts = 12, dead_at = now()")
    for number in range(2 * LANES):
        notes.query(KEPT, "a", f"x{number}")
    notes.query(KEPT, "b", "b1")
    async with running(Notebook(), notes.role_dsn(SERVICE), vhost.user_url(SERVICE)):
        await then_written(notes, "b1")


async def test_a_long_line_is_worked_off_in_turns_without_looking_again(
    notes: Database, vhost: VirtualHost, courier: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.messaging.retrier.TURN", 3)
    monkeypatch.setattr("relay.messaging.retrier.POLL_S", 3600.0)
    names = [f"a{number:02}" for number in range(20)]
    for name in names:
        notes.query(KEPT, "a", name)
    async with running(Notebook(), notes.role_dsn(SERVICE), vhost.user_url(SERVICE)):
        await then_written(notes, *names)


async def test_a_retry_that_loses_its_connection_costs_the_others_nothing(
    notes: Database, vhost: VirtualHost, courier: Courier, caplog: pytest.LogCaptureFixture
) -> None:
    service = Patient(Retry(attempts=100, backoff="10ms..20ms"))
    service.broken.update(("a1", "b1"))

    async def stumble(command: Note, tx: Transaction) -> None:
        if command.text == "a1":
            await tx.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    async with running(service.notebook, notes.role_dsn(SERVICE), vhost.user_url(SERVICE)):
        await tell(courier, "a", "a1")
        await tell(courier, "b", "b1")
        await eventually(lambda: len(notes.query(DEFERRED)) == 2)
        service.notebook.stumble = stumble
        await then_written(notes, "b1")
        await eventually(lambda: "a message of book a has to wait" in caplog.text)
        service.notebook.stumble = None
        await then_written(notes, "b1", "a1")
    assert "job_waits" not in actions(caplog)


async def test_a_retry_whose_other_database_is_away_is_a_failed_attempt_and_dead_in_the_end_with_its_history(
    notes: Database, vhost: VirtualHost, courier: Courier, caplog: pytest.LogCaptureFixture
) -> None:
    service = Patient()

    async def ask_another_database(_: Note, __: Transaction) -> None:
        await AsyncConnection.connect(NOBODY, connect_timeout=2)

    service.notebook.stumble = ask_another_database
    async with running(service.notebook, notes.role_dsn(SERVICE), vhost.user_url(SERVICE)):
        await tell(courier, "a", "a1")
        await eventually(lambda: notes.query(DEFERRED) == [("a1", PATIENT.attempts, True)])

    assert [str(error).partition(":")[0] for (error,) in notes.query(ERRORS, "a1")] == (
        ["OperationalError"] * PATIENT.attempts
    )
    assert "has to wait" not in caplog.text  # as if the service's own database were away


class TestAtTheEdge:
    """What dies between two statements, without a broker: the service's own functions, and a connection each."""

    @pytest.fixture
    def deliver(self) -> Callable[..., Delivery]:
        def delivery(text: str, **said: object) -> Delivery:
            headers: dict[str, HeaderValue] = {"aggregate_type": "book", "aggregate_id": "a"}
            properties = Properties(text, "Note", headers=headers, **said)  # type: ignore[arg-type]
            return Delivery(1, COMMANDS, SERVICE, False, properties, Note(text=text).model_dump_json().encode())

        return delivery

    @pytest.fixture
    async def conn(self, notes: Database) -> AsyncIterator[AsyncConnection]:
        async with await AsyncConnection.connect(notes.role_dsn(SERVICE), autocommit=True) as connection:
            yield connection

    async def put_off(self, conn: AsyncConnection, delivery: Delivery, delay_s: float = 0.0) -> None:
        history = (Mishap.of(ZeroDivisionError(), 1),)
        await deferred.put_off(conn, SERVICE, Incoming.of(delivery), delivery.properties, history, delay_s)

    async def test_a_message_behind_another_is_put_off_in_the_caller_s_transaction(
        self, notes: Database, conn: AsyncConnection, deliver: Callable[..., Delivery]
    ) -> None:
        service = Notebook().service
        await self.put_off(conn, deliver("a1"), 3600)
        async with conn.transaction(force_rollback=True):
            assert await service.handle(deliver("a2"), conn) is Outcome.DEFERRED
        assert [row[0] for row in notes.query(DEFERRED)] == ["a1"]
        async with conn.transaction():
            assert await service.handle(deliver("a2"), conn) is Outcome.DEFERRED
        assert [row[0] for row in notes.query(DEFERRED)] == ["a1", "a2"]

    async def test_a_claimed_message_is_nobody_else_s_and_due_again_if_its_claimer_dies(
        self, notes: Database, conn: AsyncConnection, deliver: Callable[..., Delivery]
    ) -> None:
        await self.put_off(conn, deliver("a1"))
        retry = Retry(attempts=5, backoff="50ms..50ms")
        first = await deferred.claim(conn, SERVICE, Lane("book", "a"), retry)
        assert first is not None
        assert first.attempts == 2
        assert await deferred.claim(conn, SERVICE, Lane("book", "a"), retry) is None

        # The claimer says nothing any more.
        await eventually(lambda: notes.value("SELECT due_at <= clock_timestamp() FROM relay.deferred"))
        second = await deferred.claim(conn, SERVICE, Lane("book", "a"), retry)
        assert second is not None
        assert second.attempts == 3

        # And then it does after all: what it claimed is not its own any more.
        await deferred.fail(conn, SERVICE, first, (), None)
        notebook = Notebook()
        async with conn.transaction():
            assert await notebook.receiver.handle_again(first, conn) is Outcome.DEFERRED
        assert notebook.tries == []
        assert notes.query(DEFERRED) == [("a1", 3, False)]

    async def test_while_the_first_is_being_tried_the_second_is_not(
        self, notes: Database, conn: AsyncConnection, deliver: Callable[..., Delivery]
    ) -> None:
        """To skip the locked first row would be to take the second."""
        await self.put_off(conn, deliver("a1"))
        await self.put_off(conn, deliver("a2"))
        notebook = Notebook()
        retry = Retry(attempts=5, backoff="1ms..1ms")
        first = await deferred.claim(conn, SERVICE, Lane("book", "a"), retry)
        assert first is not None
        async with conn.transaction():
            await notebook.receiver.handle_again(first, conn)
            async with await AsyncConnection.connect(notes.role_dsn(SERVICE), autocommit=True) as other:
                await eventually(
                    lambda: notes.value("SELECT bool_and(due_at <= clock_timestamp()) FROM relay.deferred")
                )
                assert await deferred.claim(other, SERVICE, Lane("book", "a"), retry) is None
        second = await deferred.claim(conn, SERVICE, Lane("book", "a"), retry)
        assert second is not None
        assert second.message_id == "a2"

    async def test_work_and_the_row_go_together(
        self, notes: Database, conn: AsyncConnection, deliver: Callable[..., Delivery]
    ) -> None:
        await self.put_off(conn, deliver("a1"))
        kept = await deferred.claim(conn, SERVICE, Lane("book", "a"), PATIENT)
        assert kept is not None
        receiver = Notebook().receiver
        async with conn.transaction(force_rollback=True):  # the process dies before the commit
            assert await receiver.handle_again(kept, conn) is Outcome.HANDLED
        assert (written(notes), notes.query(INBOX), len(notes.query(DEFERRED))) == ([], [], 1)

        async with conn.transaction():
            assert await receiver.handle_again(kept, conn) is Outcome.HANDLED
        assert (written(notes), notes.query(INBOX), notes.query(DEFERRED)) == (["a1"], [("a1",)], [])

    async def test_a_message_that_was_handled_and_put_off_at_once_is_not_handled_again(
        self, notes: Database, conn: AsyncConnection, deliver: Callable[..., Delivery]
    ) -> None:
        """Two instances had a copy each: for one of them it failed."""
        await self.put_off(conn, deliver("a1"))
        notes.query("INSERT INTO relay.inbox (consumer, message_id) VALUES ('customers', 'a1')")
        kept = await deferred.claim(conn, SERVICE, Lane("book", "a"), PATIENT)
        assert kept is not None
        async with conn.transaction():
            assert await Notebook().receiver.handle_again(kept, conn) is Outcome.SEEN_BEFORE
        assert (written(notes), notes.query(DEFERRED)) == ([], [])

    async def test_what_was_handled_is_not_put_off(
        self, notes: Database, conn: AsyncConnection, deliver: Callable[..., Delivery]
    ) -> None:
        notes.query("INSERT INTO relay.inbox (consumer, message_id) VALUES ('customers', 'a1')")
        await self.put_off(conn, deliver("a1"))
        assert notes.query(DEFERRED) == []

    async def test_it_is_put_off_as_it_came(
        self, notes: Database, conn: AsyncConnection, deliver: Callable[..., Delivery]
    ) -> None:
        delivery = deliver("a1", correlation_id="s1", reply_to="orders", timestamp=1_700_000_000, app_id="shop")
        await self.put_off(conn, delivery)
        kept = await deferred.claim(conn, SERVICE, Lane("book", "a"), PATIENT)
        assert kept is not None
        assert (kept.properties, kept.body) == (delivery.properties, delivery.body)

    async def test_an_attempt_that_ends_the_process_again_and_again_is_not_made_for_ever(
        self, notes: Database, conn: AsyncConnection, deliver: Callable[..., Delivery]
    ) -> None:
        await self.put_off(conn, deliver("a1"))
        notes.query("UPDATE relay.deferred SET attempts = %s", PATIENT.attempts + LOST_MAX)
        notebook = Notebook(PATIENT)
        await self.retry_until_dead(notes, notebook)
        assert notebook.tries == []
        assert "ended without a word" in str(notes.query(ERRORS, "a1")[-1])

    async def test_what_was_tried_before_a_replay_is_not_counted_when_attempts_end_without_a_word(
        self, notes: Database, conn: AsyncConnection, deliver: Callable[..., Delivery]
    ) -> None:
        delivery = deliver("a1")
        history = tuple(Mishap.of(ZeroDivisionError(), number) for number in range(1, PATIENT.attempts + 1))
        await deferred.put_off(conn, SERVICE, Incoming.of(delivery), delivery.properties, history, None)
        notes.query(REPLAY, "a1")
        tried = PATIENT.attempts + LOST_MAX
        notes.query("UPDATE relay.deferred SET attempts = %s", tried)
        await self.retry_until_dead(notes, Notebook(PATIENT))
        assert f"tried {tried} times" in str(notes.query(ERRORS, "a1")[-1])

    async def retry_until_dead(self, notes: Database, notebook: Notebook) -> None:
        async with pool_of(notes.role_dsn(SERVICE)) as pool:
            job = asyncio.ensure_future(Retrier(notebook.receiver, PATIENT).run(pool))
            await eventually(lambda: notes.query(DEFERRED)[0][2])
            job.cancel()
            await asyncio.gather(job, return_exceptions=True)

    async def test_a_message_that_is_too_old_for_the_inbox_is_not_handled(
        self, notes: Database, conn: AsyncConnection, deliver: Callable[..., Delivery]
    ) -> None:
        notebook = Notebook()
        now = datetime.now(UTC)
        old = deliver("a1", timestamp=int((now - timedelta(days=30, hours=1)).timestamp()))
        with pytest.raises(Unprocessable, match="older than 30 days"):
            async with conn.transaction():
                await notebook.service.handle(old, conn)
        young = deliver("a2", timestamp=int((now - timedelta(days=29, hours=23)).timestamp()))
        async with conn.transaction():
            assert await notebook.service.handle(young, conn) is Outcome.HANDLED
        assert notebook.tries == ["a2"]

    async def test_unless_the_inbox_knows_it_or_somebody_wants_it_to_be(
        self, notes: Database, conn: AsyncConnection, deliver: Callable[..., Delivery]
    ) -> None:
        notebook = Notebook()
        old = deliver("a1", timestamp=1_700_000_000)
        await self.put_off(conn, old)
        kept = await deferred.claim(conn, SERVICE, Lane("book", "a"), PATIENT)
        assert kept is not None
        async with conn.transaction():
            assert await notebook.receiver.handle_again(kept, conn) is Outcome.HANDLED
        async with conn.transaction():
            assert await notebook.service.handle(old, conn) is Outcome.SEEN_BEFORE
        assert notebook.tries == ["a1"]


async def test_a_message_that_is_too_old_is_dead(notes: Database, vhost: VirtualHost, courier: Courier) -> None:
    service = Patient()
    async with running(service.notebook, notes.role_dsn(SERVICE), vhost.user_url(SERVICE)):
        properties = Properties("m", type="Note", timestamp=1_700_000_000)
        await courier.publish(Outgoing(COMMANDS, SERVICE, properties, b'{"text": "m"}'))
        await eventually(lambda: notes.query(DEFERRED) == [("m", 1, True)])

    assert service.notebook.tries == []
    assert "TooOld: it was sent at 2023-11-14" in str(notes.query(ERRORS, "m"))


async def test_very_many_behind_a_dead_one_do_not_keep_others_waiting(notes: Database) -> None:
    """Each of them is looked at once, and not compared with all the others."""
    notes.query(KEPT, "dead", "dead")
    notes.query("UPDATE relay.deferred SET dead_at = now()")
    notes.query(BEHIND, CROWD)
    notes.query("ANALYZE relay.deferred")
    notes.query(KEPT, "other", "other")
    async with await AsyncConnection.connect(notes.role_dsn(SERVICE)) as conn:
        await conn.execute("SET statement_timeout = '2s'")
        assert await deferred.due(conn, SERVICE, LANES) == [Lane("book", "other")]
