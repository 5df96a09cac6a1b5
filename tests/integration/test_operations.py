"""An operation is done at most once and undone at most once, in whatever order and however often that is asked for."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from uuid import uuid4

import pytest
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from pydantic import BaseModel

from relay.broker.properties import COMMANDS, Delivery, HeaderValue, Properties
from relay.broker.topology import ServiceQueue
from relay.messaging import (
    Command,
    Compensated,
    Failure,
    Outcome,
    Reply,
    Service,
    Transaction,
    UndeclaredReply,
    Unprocessable,
)
from tests.conftest import VirtualHost
from tests.support.courier import Courier
from tests.support.database import Database
from tests.support.notebook import SERVICE, pool_of, written
from tests.support.waiting import eventually

Connect = Callable[[], AbstractAsyncContextManager[AsyncConnection[TupleRow]]]

OPERATION = "s1/book/action"
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
STATE = "SELECT outcome, attempt, reply_type, reply FROM relay.operation"
REPLIES = (
    "SELECT type, payload, headers->>'attempt', headers->>'compensation', operation FROM relay.outbox ORDER BY seq"
)


class Booked(Reply):
    room: int


class Full(Failure):
    """There is no room."""


class CannotCancel(Failure):
    """The guest is there."""


class Book(Command):
    replies = (Booked, Full)
    guest: str


class Cancel(Command):
    guest: str


class Clean(Command):
    """Nothing is said about its replies."""


class Hotel:
    """A participant that writes down what it does; a test says what it answers."""

    def __init__(self) -> None:
        self.service = Service(SERVICE)
        self.rooms = 0
        self.answer: Reply | None = None
        self.to_undo: Reply | None = None
        self.go_on: asyncio.Event | None = None
        self.broken: set[int] = set()
        self.service.command(Book)(self.book)
        self.service.compensation(Cancel)(self.cancel)
        self.service.command(Clean)(self.clean)

    async def book(self, command: Book, tx: Transaction) -> Reply:
        self.rooms += 1
        await tx.execute("INSERT INTO notes (text) VALUES (%s)", (f"{command.guest} in {self.rooms}",))
        if self.go_on is not None:
            await self.go_on.wait()
        if self.rooms in self.broken:
            raise ZeroDivisionError
        return self.answer or Booked(room=self.rooms)

    async def cancel(self, command: Cancel, tx: Transaction) -> Reply | None:
        await tx.execute("INSERT INTO notes (text) VALUES (%s)", (f"{command.guest} away",))
        if self.go_on is not None:
            await self.go_on.wait()
        return self.to_undo

    async def clean(self, command: Clean, tx: Transaction) -> Reply | None:
        await tx.execute("INSERT INTO notes (text) VALUES ('clean')")
        return self.answer


def asked(command: BaseModel, attempt: int = 1, **said: object) -> Delivery:
    """A delivery with a new id, of the one operation unless said otherwise."""
    operation = said.pop("operation", OPERATION)
    name = "compensation" if isinstance(command, Cancel) else "attempt"
    headers: dict[str, HeaderValue] = {"aggregate_type": "trip", "aggregate_id": "s1", name: str(attempt)}
    if operation is not None:
        headers["operation"] = str(operation)
    properties = Properties(str(uuid4()), type(command).__name__, reply_to="orders", headers=headers)
    return Delivery(1, COMMANDS, SERVICE, False, properties, command.model_dump_json().encode())


BOOK = Book(guest="ada")
CANCEL = Cancel(guest="ada")


@pytest.fixture
def hotel() -> Hotel:
    return Hotel()


@pytest.fixture
def connect(notes: Database) -> Connect:
    @asynccontextmanager
    async def connected() -> AsyncIterator[AsyncConnection[TupleRow]]:
        async with await AsyncConnection.connect(notes.role_dsn(SERVICE), autocommit=True) as connection:
            yield connection

    return connected


Tell = Callable[..., "asyncio.Task[Outcome]"]


@pytest.fixture
def tell(hotel: Hotel, connect: Connect) -> Tell:
    """Let the service handle a command on a connection of its own, and commit, as its worker does."""

    async def told(delivery: Delivery) -> Outcome:
        async with connect() as conn, conn.transaction():
            return await hotel.service.handle(delivery, conn)

    return lambda command, attempt=1, **said: asyncio.ensure_future(told(asked(command, attempt, **said)))


def replies(notes: Database) -> list[tuple[object, ...]]:
    """Type, body, attempt, compensation: an absent attempt is the first."""
    return [row[:4] for row in notes.query(REPLIES)]


async def test_an_action_runs_and_its_outcome_is_recorded_with_its_reply(notes: Database, tell: Tell) -> None:
    assert await tell(BOOK) is Outcome.HANDLED

    assert written(notes) == ["ada in 1"]
    assert notes.query(STATE) == [("done", 1, "Booked", {"room": 1})]
    assert notes.query(REPLIES) == [("Booked", {"room": 1}, None, None, OPERATION)]


async def test_a_repeated_action_does_nothing_and_sends_the_same_reply(notes: Database, tell: Tell) -> None:
    await tell(BOOK)
    await tell(BOOK)
    await tell(BOOK, 2)

    assert written(notes) == ["ada in 1"]
    assert replies(notes) == [
        ("Booked", {"room": 1}, None, None),
        ("Booked", {"room": 1}, None, None),
        ("Booked", {"room": 1}, "2", None),
    ]


async def test_another_operation_is_another_matter(notes: Database, tell: Tell) -> None:
    await tell(BOOK)
    await tell(Book(guest="bob"), operation="s2/book/action")

    assert written(notes) == ["ada in 1", "bob in 2"]


async def test_a_repeat_waits_for_the_first_which_has_not_committed(notes: Database, hotel: Hotel, tell: Tell) -> None:
    hotel.go_on = asyncio.Event()
    first, second = tell(BOOK), tell(BOOK)
    await eventually(lambda: notes.value(WAITING) == 1)
    assert hotel.rooms == 1

    hotel.go_on.set()
    await asyncio.gather(first, second)

    assert written(notes) == ["ada in 1"]
    assert [reply[:2] for reply in replies(notes)] == [("Booked", {"room": 1})] * 2


async def test_a_repeat_runs_when_the_first_is_rolled_back(notes: Database, hotel: Hotel, tell: Tell) -> None:
    hotel.go_on, hotel.broken = asyncio.Event(), {1}
    first, second = tell(BOOK), tell(BOOK)
    await eventually(lambda: notes.value(WAITING) == 1)
    hotel.go_on.set()
    await asyncio.gather(first, second, return_exceptions=True)

    assert written(notes) == ["ada in 2"]
    assert [reply[:2] for reply in replies(notes)] == [("Booked", {"room": 2})]


async def test_a_compensation_waits_for_its_action_which_has_not_committed(
    notes: Database, hotel: Hotel, tell: Tell
) -> None:
    hotel.go_on = asyncio.Event()
    action = tell(BOOK)
    await eventually(lambda: hotel.rooms == 1)
    compensation = tell(CANCEL)
    await eventually(lambda: notes.value(WAITING) == 1)
    hotel.go_on.set()
    await asyncio.gather(action, compensation)

    assert written(notes) == ["ada in 1", "ada away"]
    assert [reply[0] for reply in replies(notes)] == ["Booked", "Compensated"]


async def test_an_action_waits_for_a_compensation_that_came_first_and_has_not_committed(
    notes: Database, hotel: Hotel, tell: Tell, connect: Connect
) -> None:
    async with connect() as conn:
        async with conn.transaction():
            await hotel.service.handle(asked(CANCEL), conn)
            action = tell(BOOK)
            await eventually(lambda: notes.value(WAITING) == 1)
            assert hotel.rooms == 0
        await action

    assert written(notes) == []
    assert [reply[0] for reply in replies(notes)] == ["Compensated", "OperationCancelled"]


async def test_a_compensation_undoes_once_and_says_so_again(notes: Database, tell: Tell) -> None:
    await tell(BOOK)
    await tell(CANCEL)
    await tell(CANCEL, 2)

    assert written(notes) == ["ada in 1", "ada away"]
    assert replies(notes)[1:] == [("Compensated", {}, None, "1"), ("Compensated", {}, None, "2")]
    assert notes.query(STATE) == [("compensated", 1, "Compensated", {})]


@pytest.mark.parametrize(("failed", "asked_twice", "done"), [(False, CANCEL, "ada away"), (True, BOOK, "ada in 2")])
async def test_two_that_come_at_once_do_their_work_once(
    notes: Database, hotel: Hotel, tell: Tell, failed: bool, asked_twice: BaseModel, done: str
) -> None:
    """The operation is recorded already: its row is what they wait for."""
    hotel.answer = Full() if failed else None
    await tell(BOOK)
    hotel.answer, hotel.go_on = None, asyncio.Event()
    first, second = tell(asked_twice, 2), tell(asked_twice, 2)
    await eventually(lambda: notes.value(WAITING) == 1)
    hotel.go_on.set()
    await asyncio.gather(first, second)

    assert written(notes) == ([] if failed else ["ada in 1"]) + [done]
    assert replies(notes)[-1] == replies(notes)[-2]


async def test_an_action_that_comes_after_its_compensation_does_nothing_and_says_so(
    notes: Database, hotel: Hotel, tell: Tell
) -> None:
    await tell(CANCEL)
    await tell(BOOK)
    await tell(BOOK, 2)
    await tell(CANCEL, 2)

    assert hotel.rooms == 0
    assert written(notes) == []
    assert replies(notes) == [
        ("Compensated", {}, None, "1"),
        ("OperationCancelled", {}, None, None),
        ("OperationCancelled", {}, "2", None),
        ("Compensated", {}, None, "2"),
    ]
    assert notes.query(STATE)[0][0] == "cancelled"


async def test_an_action_that_comes_again_after_it_was_undone_does_nothing(notes: Database, tell: Tell) -> None:
    await tell(BOOK)
    await tell(CANCEL)
    await tell(BOOK)

    assert written(notes) == ["ada in 1", "ada away"]
    assert replies(notes)[-1][0] == "OperationCancelled"


async def test_a_failure_rolls_back_what_was_written_and_the_reply_commits(
    notes: Database, hotel: Hotel, tell: Tell
) -> None:
    hotel.answer = Full()
    await tell(BOOK)

    assert hotel.rooms == 1
    assert written(notes) == []
    assert replies(notes) == [("Full", {}, None, None)]
    assert notes.query(STATE) == [("failed", 1, "Full", {})]


async def test_so_it_does_without_an_operation(notes: Database, hotel: Hotel, tell: Tell) -> None:
    hotel.answer = Full()
    await tell(BOOK, operation=None)
    await tell(Clean(), operation=None)

    assert written(notes) == []
    assert [reply[0] for reply in replies(notes)] == ["Full", "Full"]
    assert notes.query(STATE) == []


async def test_a_failure_is_repeated_to_the_same_attempt_and_tried_anew_by_a_later_one(
    notes: Database, hotel: Hotel, tell: Tell
) -> None:
    hotel.answer = Full()
    await tell(BOOK, 2)
    hotel.answer = None
    await tell(BOOK, 2)
    await tell(BOOK, 1)
    assert hotel.rooms == 1

    await tell(BOOK, 3)

    assert written(notes) == ["ada in 2"]
    assert replies(notes) == [
        ("Full", {}, "2", None),
        ("Full", {}, "2", None),
        ("Full", {}, None, None),
        ("Booked", {"room": 2}, "3", None),
    ]
    assert notes.query(STATE) == [("done", 3, "Booked", {"room": 2})]


async def test_what_has_failed_is_not_undone_and_a_later_attempt_does_nothing(
    notes: Database, hotel: Hotel, tell: Tell
) -> None:
    hotel.answer = Full()
    await tell(BOOK)
    hotel.answer = None
    await tell(CANCEL)
    await tell(BOOK, 2)

    assert written(notes) == []
    assert [reply[0] for reply in replies(notes)] == ["Full", "Compensated", "OperationCancelled"]
    assert notes.query(STATE)[0][0] == "cancelled"


async def test_a_compensation_that_fails_leaves_everything_as_it_was_and_can_be_asked_for_again(
    notes: Database, hotel: Hotel, tell: Tell
) -> None:
    await tell(BOOK)
    hotel.to_undo = CannotCancel()
    await tell(CANCEL)
    assert written(notes) == ["ada in 1"]
    assert notes.query(STATE) == [("done", 1, "Booked", {"room": 1})]
    await tell(BOOK)
    hotel.to_undo = None
    await tell(CANCEL, 2)

    assert written(notes) == ["ada in 1", "ada away"]
    assert [reply[0] for reply in replies(notes)] == ["Booked", "CannotCancel", "Booked", "Compensated"]


async def test_a_handler_that_raises_leaves_nothing_behind(
    notes: Database, hotel: Hotel, tell: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Booked, "model_dump_json", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        await tell(BOOK)

    for table in ("notes", "relay.operation", "relay.inbox", "relay.outbox"):
        assert notes.query(f"SELECT FROM {table}") == []


async def test_a_handler_that_returns_nothing_is_done(notes: Database, tell: Tell) -> None:
    await tell(Clean())
    await tell(Clean())

    assert written(notes) == ["clean"]
    assert [reply[:2] for reply in replies(notes)] == [("Done", {}), ("Done", {})]


async def test_a_reply_that_the_command_does_not_declare_is_a_bug(notes: Database, hotel: Hotel, tell: Tell) -> None:
    hotel.answer = Compensated()
    with pytest.raises(
        UndeclaredReply, match="the handler of Book returned Compensated, and Book declares Booked, Full"
    ):
        await tell(BOOK)

    assert written(notes) == []


async def test_a_handler_that_is_registered_for_an_action_does_not_undo(
    notes: Database, hotel: Hotel, connect: Connect
) -> None:
    """It would be taken for the action that it is to undo, and answered with the reply to that."""
    headers = {"operation": OPERATION, "compensation": "1"}
    delivery = Delivery(1, COMMANDS, SERVICE, False, Properties("m", "Clean", headers=headers), b"{}")
    with pytest.raises(Unprocessable, match=f"Clean is to undo {OPERATION}, but customers handles it as an action"):
        async with connect() as conn, conn.transaction():
            await hotel.service.handle(delivery, conn)

    assert written(notes) == []


async def test_a_body_that_cannot_be_read_records_nothing(notes: Database, hotel: Hotel, connect: Connect) -> None:
    delivery = asked(BOOK)
    broken = Delivery(1, COMMANDS, SERVICE, False, delivery.properties, b"{}")
    with pytest.raises(Unprocessable, match="guest"):
        async with connect() as conn, conn.transaction():
            await hotel.service.handle(broken, conn)

    assert notes.query(STATE) == []


async def test_several_messages_may_share_a_transaction_with_a_savepoint_each(
    notes: Database, hotel: Hotel, connect: Connect
) -> None:
    """The road to batches: one of them fails, the others commit."""
    hotel.answer = Full()
    broken = Delivery(1, COMMANDS, SERVICE, False, asked(Clean(), operation="s3/x/action").properties, b"no JSON")
    async with connect() as conn, conn.transaction():
        await hotel.service.handle(asked(BOOK), conn)
        hotel.answer = None
        with pytest.raises(Unprocessable):
            async with conn.transaction():
                await hotel.service.handle(broken, conn)
        async with conn.transaction():
            await hotel.service.handle(asked(Book(guest="bob"), operation="s2/book/action"), conn)

    assert written(notes) == ["bob in 2"]
    assert notes.query("SELECT operation, outcome FROM relay.operation ORDER BY operation") == [
        ("s1/book/action", "failed"),
        ("s2/book/action", "done"),
    ]


async def test_an_operation_is_done_once_however_often_the_broker_brings_it(
    notes: Database, hotel: Hotel, vhost: VirtualHost
) -> None:
    said = asked(BOOK).properties
    async with Courier(vhost.url) as courier, pool_of(notes.role_dsn(SERVICE)) as pool:
        await courier.declare(hotel.service.queue)
        await courier.declare(ServiceQueue("orders", frozenset()))
        running = asyncio.create_task(hotel.service.run(pool, vhost.user_url(SERVICE)))
        for _ in range(2):
            await courier.send(SERVICE, BOOK, reply_to="orders", headers=said.headers)
        await courier.send(SERVICE, CANCEL, reply_to="orders", headers=dict(said.headers) | {"compensation": "1"})
        await eventually(lambda: len(replies(notes)) == 3)
        await courier.carry(notes)
        arrived = [(await courier.take("orders")).properties for _ in range(3)]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    assert [properties.type for properties in arrived] == ["Booked", "Booked", "Compensated"]
    assert {properties.header("operation") for properties in arrived} == {OPERATION}
    assert written(notes) == ["ada in 1", "ada away"]
