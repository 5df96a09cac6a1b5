"""A service handles each message once and in order, whatever happens to its database, its broker or its handlers."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress

import psycopg
import pytest

from relay.broker.properties import COMMANDS, EVENTS, Delivery, Properties
from relay.errors import BrokerError
from relay.messaging import Pool, Transaction, Unprocessable
from relay.messaging.retry import FAULT_TRIES
from tests.conftest import VirtualHost
from tests.support.courier import Courier, Outgoing
from tests.support.database import Database
from tests.support.link import Link
from tests.support.notebook import SERVICE, Happened, Note, Notebook, running, then_written, written
from tests.support.waiting import eventually

WAIT_S = 30.0
DEAD = "SELECT message_id, attempts, body, history FROM relay.deferred WHERE dead_at IS NOT NULL"


@pytest.fixture(autouse=True)
def _log_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "relay")


@pytest.fixture
def notebook() -> Notebook:
    return Notebook()


@pytest.fixture
async def service(
    notebook: Notebook, notes: Database, vhost: VirtualHost, courier: Courier
) -> AsyncIterator["asyncio.Task[None]"]:
    async with running(notebook, notes.role_dsn(SERVICE), vhost.user_url(SERVICE)) as task:
        yield task


async def then_dead(notes: Database) -> tuple[object, ...]:
    """Id, attempts, body and history of the one dead message."""
    await eventually(lambda: notes.query(DEAD))
    (row,) = notes.query(DEAD)
    return row


async def then_rejected(courier: Courier) -> Delivery:
    return await courier.take(f"{SERVICE}.dead")


async def then_queue_is_empty(courier: Courier, service: "asyncio.Task[None]") -> None:
    """Nothing comes again to who consumes next: everything was acknowledged."""
    service.cancel()
    await asyncio.gather(service, return_exceptions=True)
    probe = await courier.send(SERVICE, Note(text="probe"))
    assert (await courier.take(SERVICE)).properties.message_id == probe


@pytest.mark.usefixtures("service")
async def test_the_work_the_reply_and_the_inbox_commit_together(notes: Database, courier: Courier) -> None:
    headers = {"aggregate_type": "saga", "aggregate_id": "s1", "operation": "s1/note/action"}
    message_id = await courier.send(SERVICE, Note(text="a"), correlation_id="s1", reply_to="orders", headers=headers)

    await then_written(notes, "a")

    columns = "kind, type, payload, destination, aggregate_type, aggregate_id, correlation_id, causation_id, operation"
    assert notes.query(f"SELECT {columns} FROM relay.outbox") == [
        ("reply", "Noted", {"text": "a"}, "orders", "saga", "s1", "s1", message_id, "s1/note/action")
    ]
    assert notes.query("SELECT consumer, message_id FROM relay.inbox") == [(SERVICE, message_id)]
    assert notes.value(
        "SELECT (SELECT txid FROM notes) = (SELECT txid FROM relay.outbox)"
        " AND (SELECT txid::xid FROM notes) = (SELECT xmin FROM relay.inbox)"
    )


@pytest.mark.usefixtures("service")
async def test_a_command_that_asks_for_no_reply_gets_none(notes: Database, courier: Courier) -> None:
    await courier.send(SERVICE, Note(text="a"))

    await then_written(notes, "a")
    assert notes.value("SELECT count(*) FROM relay.outbox") == 0


@pytest.mark.usefixtures("service")
async def test_an_event_is_heard_whatever_it_is_about_and_is_named_as_the_cause(
    notes: Database, courier: Courier
) -> None:
    body = Happened(text="rain").model_dump_json().encode()
    await courier.publish(Outgoing(EVENTS, "weather.Happened", Properties("e1", type="Happened"), body))

    await then_written(notes, "overheard rain")
    assert notes.query("SELECT kind, causation_id FROM relay.outbox") == [("event", "e1")]


@pytest.mark.usefixtures("service")
async def test_messages_are_handled_in_the_order_of_the_queue(notes: Database, courier: Courier) -> None:
    texts = [str(number) for number in range(200)]
    for text in texts:
        await courier.send(SERVICE, Note(text=text))

    await then_written(notes, *texts)


async def test_a_copy_of_a_message_is_acknowledged_and_not_handled(
    notes: Database, courier: Courier, notebook: Notebook, service: "asyncio.Task[None]"
) -> None:
    for _ in range(3):
        await courier.send(SERVICE, Note(text="a"), message_id="m1")
    await courier.send(SERVICE, Note(text="b"))

    await then_written(notes, "a", "b")
    assert notebook.tries == ["a", "b"]
    await then_queue_is_empty(courier, service)


@pytest.mark.usefixtures("service")
async def test_a_handler_that_always_fails_is_tried_and_then_its_message_is_dead_and_the_next_goes_on(
    notes: Database, courier: Courier, notebook: Notebook, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(command: Note, _: Transaction) -> None:
        if command.text == "bad":
            raise ZeroDivisionError("a bug")

    notebook.stumble = fail
    bad = await courier.send(SERVICE, Note(text="bad"))
    await courier.send(SERVICE, Note(text="good"))

    message_id, attempts, _, _ = await then_dead(notes)
    assert (message_id, attempts) == (bad, FAULT_TRIES)
    await then_written(notes, "good")
    assert sorted(notebook.tries) == ["bad"] * FAULT_TRIES + ["good"]
    (told,) = (record for record in caplog.records if record.levelno == logging.ERROR)
    assert vars(told)["action"] == "message_dead"
    assert told.exc_info is not None


@pytest.mark.usefixtures("service")
async def test_a_fault_that_passes_costs_nothing(notes: Database, courier: Courier, notebook: Notebook) -> None:
    def fail_once(_: Note, __: Transaction) -> None:
        if len(notebook.tries) == 1:
            raise ZeroDivisionError

    notebook.stumble = fail_once
    await courier.send(SERVICE, Note(text="a"), reply_to="orders")

    await then_written(notes, "a")
    assert notebook.tries == ["a", "a"]
    assert notes.value("SELECT count(*) FROM relay.outbox") == 1


@pytest.mark.usefixtures("service")
async def test_a_deadlock_is_tried_again_at_once(notes: Database, courier: Courier, notebook: Notebook) -> None:
    def lose(_: Note, __: Transaction) -> None:
        if len(notebook.tries) < 4:
            raise psycopg.errors.DeadlockDetected

    notebook.stumble = lose
    await courier.send(SERVICE, Note(text="a"))

    await then_written(notes, "a")
    assert notebook.tries == ["a"] * 4


@pytest.mark.usefixtures("service")
async def test_a_handler_may_give_a_message_up_at_once(notes: Database, courier: Courier, notebook: Notebook) -> None:
    def give_up(_: Note, __: Transaction) -> None:
        raise Unprocessable("nobody can do that")

    notebook.stumble = give_up
    await courier.send(SERVICE, Note(text="a"))

    await then_dead(notes)
    assert notebook.tries == ["a"]
    assert written(notes) == []


@pytest.mark.usefixtures("service")
async def test_a_swallowed_error_of_the_database_is_not_taken_for_success(
    notes: Database, courier: Courier, notebook: Notebook, caplog: pytest.LogCaptureFixture
) -> None:
    async def swallow(_: Note, tx: Transaction) -> None:
        with suppress(psycopg.errors.DivisionByZero):
            await tx.execute("SELECT 1 / 0")  # PostgreSQL would answer the commit with a rollback now

    notebook.stumble = swallow
    await courier.send(SERVICE, Note(text="a"))

    await then_dead(notes)
    assert written(notes) == []
    await eventually(lambda: "TransactionLost" in caplog.text)


@pytest.mark.parametrize(
    ("properties", "body", "reason"),
    [
        (Properties("m1", type="Unheard"), b"{}", "no handler of Unheard"),
        (Properties("m1", type="Note"), b'{"txt": "a"}', "text: Field required"),
        (Properties("m1", type="Note"), b"\xff\xfe", "the body is no Note"),
    ],
)
@pytest.mark.usefixtures("service")
async def test_a_message_that_nobody_can_handle_is_dead_at_once(
    notes: Database,
    courier: Courier,
    notebook: Notebook,
    caplog: pytest.LogCaptureFixture,
    properties: Properties,
    body: bytes,
    reason: str,
) -> None:
    await courier.publish(Outgoing(COMMANDS, SERVICE, properties, body))

    message_id, attempts, kept, _ = await then_dead(notes)
    assert (message_id, attempts, kept) == ("m1", 1, body)
    assert notebook.tries == []
    await eventually(lambda: reason in caplog.text)  # it is said after the commit


@pytest.mark.parametrize(
    ("properties", "reason"),
    [(Properties("m1"), "no type"), (Properties(None, type="Note"), "no id")],
)
@pytest.mark.usefixtures("service")
async def test_a_message_that_no_table_can_hold_goes_to_the_dead_letters_of_the_broker(
    notes: Database, courier: Courier, caplog: pytest.LogCaptureFixture, properties: Properties, reason: str
) -> None:
    await courier.publish(Outgoing(COMMANDS, SERVICE, properties, b'{"text": "a"}'))

    assert (await then_rejected(courier)).body == b'{"text": "a"}'
    assert reason in caplog.text
    assert notes.query("SELECT FROM relay.deferred") == []


@pytest.mark.usefixtures("service")
async def test_a_message_survives_the_death_of_its_database_connection(
    notes: Database, courier: Courier, notebook: Notebook
) -> None:
    async def kill(_: Note, tx: Transaction) -> None:
        if len(notebook.tries) == 1:
            await tx.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    notebook.stumble = kill
    await courier.send(SERVICE, Note(text="a"))
    await courier.send(SERVICE, Note(text="b"))

    await then_written(notes, "a", "b")
    assert notebook.tries == ["a", "a", "b"]


async def test_while_the_database_is_away_the_message_is_kept(
    notebook: Notebook,
    notes: Database,
    vhost: VirtualHost,
    courier: Courier,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with (
        Link(notes.role_dsn(SERVICE)) as database,
        running(notebook, database.url, vhost.user_url(SERVICE)) as service,
    ):
        await courier.send(SERVICE, Note(text="before"))
        await then_written(notes, "before")
        await database.cut()
        for text in ("a", "b", "c"):
            await courier.send(SERVICE, Note(text=text))
        await eventually(lambda: caplog.text.count("is tried again") > 2)
        await database.restore()

        await then_written(notes, "before", "a", "b", "c")
        assert "message_rejected" not in [vars(record).get("action") for record in caplog.records]
        await then_queue_is_empty(courier, service)


async def test_a_message_that_was_held_through_an_absence_has_not_been_delivered_again(
    notebook: Notebook, notes: Database, vhost: VirtualHost, courier: Courier
) -> None:
    """Each delivery counts against the queue's limit, and an absence may be long."""
    seen: list[object] = []

    def look(_: Note, tx: Transaction) -> None:
        assert tx.incoming is not None
        seen.append(tx.incoming.headers.get("x-delivery-count", 0))

    notebook.stumble = look
    async with Link(notes.role_dsn(SERVICE)) as database, running(notebook, database.url, vhost.user_url(SERVICE)):
        await courier.send(SERVICE, Note(text="before"))
        await then_written(notes, "before")
        await database.cut()
        await courier.send(SERVICE, Note(text="a"))
        await database.restore()
        await then_written(notes, "before", "a")

    assert set(seen) == {0}


async def test_the_broker_may_go_while_the_database_is_away(
    notebook: Notebook, notes: Database, vhost: VirtualHost, courier: Courier, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        Link(notes.role_dsn(SERVICE)) as database,
        Link(vhost.user_url(SERVICE)) as broker,
        running(notebook, database.url, broker.url),
    ):
        await courier.send(SERVICE, Note(text="before"))
        await then_written(notes, "before")
        await database.cut()
        await courier.send(SERVICE, Note(text="a"))
        await eventually(lambda: "is tried again" in caplog.text)
        await broker.cut()
        await eventually(lambda: "stopped consuming" in caplog.text)
        await broker.restore()
        await database.restore()

        await then_written(notes, "before", "a")


async def test_work_whose_acknowledgement_was_lost_is_not_done_twice(
    notebook: Notebook, notes: Database, vhost: VirtualHost, courier: Courier
) -> None:
    go_on = asyncio.Event()
    notebook.stumble = lambda command, tx: go_on.wait() if command.text == "a" else None
    async with Link(vhost.user_url(SERVICE)) as broker, running(notebook, notes.role_dsn(SERVICE), broker.url):
        await courier.send(SERVICE, Note(text="a"))
        await notebook.changed.wait()
        await broker.cut()
        go_on.set()
        await then_written(notes, "a")
        await broker.restore()
        await courier.send(SERVICE, Note(text="b"))

        await then_written(notes, "a", "b")
        assert notebook.tries == ["a", "b"]


async def test_a_service_may_start_before_its_database_and_its_broker(
    notebook: Notebook, notes: Database, vhost: VirtualHost, courier: Courier, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        Link(notes.role_dsn(SERVICE), up=False) as database,
        Link(vhost.user_url(SERVICE), up=False) as broker,
        running(notebook, database.url, broker.url),
    ):
        await courier.send(SERVICE, Note(text="a"))
        await eventually(lambda: "database is not ready" in caplog.text)
        await database.restore()
        await eventually(lambda: "trying again" in caplog.text)
        await broker.restore()

        await then_written(notes, "a")


async def test_a_service_may_start_before_its_database_is_migrated(
    notebook: Notebook, notes: Database, vhost: VirtualHost, courier: Courier, caplog: pytest.LogCaptureFixture
) -> None:
    notes.query("ALTER SCHEMA relay RENAME TO not_yet")
    async with running(notebook, notes.role_dsn(SERVICE), vhost.user_url(SERVICE)):
        await courier.send(SERVICE, Note(text="a"))
        await eventually(lambda: "relay migrate" in caplog.text)
        notes.query("ALTER SCHEMA not_yet RENAME TO relay")

        await then_written(notes, "a")


async def test_a_stop_lets_the_message_at_hand_finish(
    notebook: Notebook, notes: Database, courier: Courier, service: "asyncio.Task[None]"
) -> None:
    go_on = asyncio.Event()
    notebook.stumble = lambda command, tx: go_on.wait()
    await courier.send(SERVICE, Note(text="a"))
    await notebook.changed.wait()

    service.cancel()
    await asyncio.sleep(0)  # lets the service learn of it; whether it has does not matter
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await service

    assert written(notes) == ["a"]
    await then_queue_is_empty(courier, service)


async def test_a_stop_does_not_wait_for_ever(
    notebook: Notebook,
    notes: Database,
    courier: Courier,
    service: "asyncio.Task[None]",
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("relay.messaging.attempt.STOP_GRACE_S", 0.2)
    notebook.stumble = lambda command, tx: asyncio.Event().wait()
    message_id = await courier.send(SERVICE, Note(text="a"))
    await notebook.changed.wait()

    service.cancel()
    async with asyncio.timeout(WAIT_S):
        await asyncio.gather(service, return_exceptions=True)

    assert written(notes) == []
    assert (await courier.take(SERVICE)).properties.message_id == message_id


async def test_a_login_that_the_broker_refuses_ends_the_service(
    notebook: Notebook, notes: Database, vhost: VirtualHost
) -> None:
    wrong = vhost.url.replace("amqp://", "amqp://nobody:").replace(vhost.url.split("@")[0] + "@", "amqp://no:pe@")
    async with running(notebook, notes.role_dsn(SERVICE), wrong) as service:
        async with asyncio.timeout(WAIT_S):
            with pytest.raises(BrokerError, match="RabbitMQ"):
                await service


async def test_a_job_runs_beside_the_handlers_and_ends_with_the_service(
    notebook: Notebook, notes: Database, vhost: VirtualHost, courier: Courier
) -> None:
    ended = asyncio.Event()

    async def tick(pool: Pool) -> None:
        async with pool.connection() as conn:
            await conn.execute("INSERT INTO notes (text) VALUES ('tick')")
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    notebook.service.job("ticks", tick)
    async with running(notebook, notes.role_dsn(SERVICE), vhost.user_url(SERVICE)):
        await then_written(notes, "tick")
        assert not ended.is_set()
    assert ended.is_set()


async def test_a_job_waits_for_the_database_like_everything_else(
    notebook: Notebook, notes: Database, vhost: VirtualHost, courier: Courier, caplog: pytest.LogCaptureFixture
) -> None:
    more = asyncio.Event()

    async def tick(pool: Pool) -> None:
        while True:
            async with pool.connection() as conn:
                await conn.execute("INSERT INTO notes (text) VALUES ('tick')")
            await more.wait()

    notebook.service.job("ticks", tick)
    async with (
        Link(notes.role_dsn(SERVICE)) as database,
        running(notebook, database.url, vhost.user_url(SERVICE)) as service,
    ):
        await then_written(notes, "tick")
        await database.cut()
        more.set()
        await eventually(lambda: "the job ticks waits for the database" in caplog.text)
        more.clear()
        await database.restore()
        await then_written(notes, "tick", "tick")
        assert not service.done()
