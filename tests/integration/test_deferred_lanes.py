"""What sagas take in any order waits for nobody of its aggregate, and keeps nobody waiting, also once it is put off."""

from collections.abc import AsyncIterator
from typing import Final

import psycopg
import pytest
from psycopg import AsyncConnection
from pydantic import BaseModel

from relay.broker.properties import COMMANDS, REPLIES, Delivery, HeaderValue, Properties
from relay.messaging import Command, Done, Incoming, Message, Outcome, Retry, Transaction, dead, deferred
from relay.messaging.dead import Selection
from relay.messaging.deferred import Lane
from relay.messaging.failures import Mishap
from relay.messaging.message import type_of
from relay.messaging.retry import FAULT_TRIES
from relay.saga import Orchestrator, Saga
from tests.conftest import VirtualHost
from tests.support.courier import Courier, Outgoing
from tests.support.database import Database
from tests.support.notebook import SERVICE, Note, Notebook, running, then_written
from tests.support.saga import status_of
from tests.support.waiting import eventually

SOON: Final = Retry(attempts=100, backoff="50ms..100ms")
TRIED_ONCE_MORE: Final = Retry(attempts=FAULT_TRIES + 1, backoff="50ms..100ms")
DEFERRED: Final = "SELECT message_id, dead_at IS NOT NULL FROM relay.deferred ORDER BY seq"
OUTCOMES: Final = "SELECT operation, outcome FROM relay.operation ORDER BY operation"


class Erase(Command):
    text: str


class Eraser(Notebook):
    """It erases notes, too. What is in `broken` raises."""

    def __init__(self, retry: Retry = SOON) -> None:
        super().__init__(retry)
        self.broken: set[str] = set()
        self.stumble = lambda command, _: self._stumble(command.text)
        self.service.compensation(Erase)(self.erase)

    async def erase(self, command: Erase, tx: Transaction) -> None:
        self._stumble(f"undo {command.text}")
        await tx.execute("INSERT INTO notes (text) VALUES (%s)", (f"erased {command.text}",))

    def _stumble(self, what: str) -> None:
        if what in self.broken:
            raise ZeroDivisionError("a bug")


def note(text: str) -> Delivery:
    """Have a note written, as the operation of the same name. The message's id is the text."""
    return delivery(Note(text=text), text, operation=f"s/{text}/action")


def erase(text: str) -> Delivery:
    """Have the note erased. The message's id is `undo` and the text."""
    return delivery(Erase(text=text), f"undo {text}", operation=f"s/{text}/action", compensation="1")


def delivery(message: Message, message_id: str, exchange: str = COMMANDS, **headers: HeaderValue) -> Delivery:
    of_it: dict[str, HeaderValue] = {"aggregate_type": "book", "aggregate_id": "a", **headers}
    said = Properties(message_id, type=type_of(message), headers=of_it)
    return Delivery(1, exchange, SERVICE, False, said, message.model_dump_json().encode())


async def send(courier: Courier, *messages: Delivery) -> None:
    for one in messages:
        await courier.publish(Outgoing(one.exchange, SERVICE, one.properties, one.body))


async def test_what_undoes_is_tried_again_though_an_action_of_its_aggregate_is_dead(
    notes: Database, vhost: VirtualHost, courier: Courier
) -> None:
    """Its saga waits for it, and could not end."""
    service = Eraser(TRIED_ONCE_MORE)
    service.broken |= {"a2"}
    async with running(service, notes.role_dsn(SERVICE), vhost.user_url(SERVICE)):
        await send(courier, note("a1"), note("a2"))
        await eventually(lambda: notes.query(DEFERRED) == [("a2", True)])
        service.broken |= {"undo a1"}
        await send(courier, erase("a1"))
        await eventually(lambda: ("undo a1", False) in notes.query(DEFERRED))
        service.broken -= {"undo a1"}
        await then_written(notes, "a1", "erased a1")

    assert notes.query(DEFERRED) == [("a2", True)]
    assert notes.query(OUTCOMES) == [("s/a1/action", "compensated")]


class Visit(BaseModel):
    heard: int = 0


class Guide:
    """A saga with two steps under way at once. What is in `deaf` raises when it is answered."""

    def __init__(self) -> None:
        self.book = Eraser()
        self.saga = saga = Saga("visit", state=Visit)
        self.deaf = False
        with saga.parallel():
            saga.step(to="worker", readonly=True)(self.see).on(Done)(self.seen)
            saga.step(to="worker", readonly=True)(self.hear)
        self.orchestrator = Orchestrator(self.book.service, saga)

    def see(self, visit: Visit) -> Note:
        return Note(text="see")

    def hear(self, visit: Visit) -> Note:
        return Note(text="hear")

    def seen(self, visit: Visit, reply: Done) -> None:
        if self.deaf:
            raise ZeroDivisionError("a bug")


async def test_so_is_a_reply_to_a_saga(notes: Database, vhost: VirtualHost, courier: Courier) -> None:
    guide = Guide()
    guide.deaf = True
    guide.book.broken.add("a1")
    async with await AsyncConnection.connect(notes.role_dsn(SERVICE)) as conn:
        saga_id = await guide.orchestrator.start(guide.saga, Visit(), conn)

    def of_it(message: Message, message_id: str, step: str, exchange: str) -> Delivery:
        headers: dict[str, HeaderValue] = {"aggregate_type": "visit", "aggregate_id": str(saga_id)}
        return delivery(message, message_id, exchange, operation=f"{saga_id}/{step}/action", **headers)

    async with running(guide.book, notes.role_dsn(SERVICE), vhost.user_url(SERVICE)):
        await send(courier, of_it(Note(text="a1"), "a1", "other", COMMANDS))
        await eventually(lambda: notes.query(DEFERRED))
        notes.query("UPDATE relay.deferred SET dead_at = now()")
        await send(courier, of_it(Done(), "r1", "see", REPLIES), of_it(Done(), "r2", "hear", REPLIES))
        await eventually(lambda: notes.query(DEFERRED) == [("a1", True), ("r1", False)])
        guide.deaf = False
        await eventually(lambda: notes.query(DEFERRED) == [("a1", True)])

    assert status_of(notes, saga_id) == "COMPLETED"


async def test_what_undoes_and_is_put_off_keeps_no_action_of_its_aggregate_waiting_dead_or_not(
    notes: Database, vhost: VirtualHost, courier: Courier
) -> None:
    service = Eraser(TRIED_ONCE_MORE)
    service.broken |= {"undo a1"}
    async with running(service, notes.role_dsn(SERVICE), vhost.user_url(SERVICE)):
        await send(courier, note("a1"), erase("a1"))
        await eventually(lambda: notes.query(DEFERRED))
        await send(courier, note("a2"))
        await then_written(notes, "a1", "a2")
        await eventually(lambda: notes.query(DEFERRED) == [("undo a1", True)])
        await send(courier, note("a3"))
        await then_written(notes, "a1", "a2", "a3")


async def test_the_log_does_not_say_that_anything_waits_for_it(
    notes: Database, vhost: VirtualHost, courier: Courier, caplog: pytest.LogCaptureFixture
) -> None:
    service = Eraser(TRIED_ONCE_MORE)
    service.broken |= {"undo a1", "a2"}
    async with running(service, notes.role_dsn(SERVICE), vhost.user_url(SERVICE)):
        await send(courier, note("a1"), erase("a1"), note("a2"))
        await eventually(lambda: notes.query(DEFERRED) == [("undo a1", True), ("a2", True)])
        await eventually(lambda: "Note a2 is dead" in caplog.text)

    assert "Note a2 is dead, and what comes after it waits: attempts" in caplog.text
    assert "Erase undo a1 is dead: attempts" in caplog.text


class TestAtTheEdge:
    """Without a broker: the service's own functions, and a connection each."""

    @pytest.fixture
    async def conn(self, notes: Database) -> AsyncIterator[AsyncConnection]:
        async with await AsyncConnection.connect(notes.role_dsn(SERVICE), autocommit=True) as connection:
            yield connection

    async def put_off(self, conn: AsyncConnection, *messages: Delivery, dead: bool = False) -> None:
        for one in messages:
            history = (Mishap.of(ZeroDivisionError(), 1),)
            delay_s = None if dead else 0.0
            overtakes = "compensation" in one.properties.headers
            await deferred.put_off(
                conn, SERVICE, Incoming.of(one), one.properties, history, delay_s, overtakes=overtakes
            )

    async def test_each_is_due_by_itself_and_the_others_of_its_aggregate_one_after_the_other(
        self, notes: Database, conn: AsyncConnection
    ) -> None:
        await self.put_off(conn, note("a1"), erase("a1"), note("a2"), erase("a2"))

        lanes = await deferred.due(conn, SERVICE, 100)

        assert lanes == [Lane("book", "a"), Lane("book", "a", "undo a1"), Lane("book", "a", "undo a2")]
        claimed = [await deferred.claim(conn, SERVICE, lane, SOON) for lane in lanes]
        assert [kept and kept.message_id for kept in claimed] == ["a1", "undo a1", "undo a2"]
        assert [await deferred.claim(conn, SERVICE, lane, SOON) for lane in lanes] == [None, None, None]

    async def test_while_one_is_being_tried_the_others_are_tried_as_well(
        self, notes: Database, conn: AsyncConnection
    ) -> None:
        await self.put_off(conn, note("a1"), erase("a0"))
        first = await deferred.claim(conn, SERVICE, Lane("book", "a"), SOON)
        assert first is not None
        receiver = Eraser().receiver
        async with conn.transaction():
            await receiver.handle_again(first, conn)
            async with await AsyncConnection.connect(notes.role_dsn(SERVICE), autocommit=True) as other:
                kept = await deferred.claim(other, SERVICE, Lane("book", "a", "undo a0"), SOON)
                assert kept is not None
                async with other.transaction():
                    assert await receiver.handle_again(kept, other) is Outcome.HANDLED

        assert notes.query(DEFERRED) == []

    async def test_a_copy_of_it_changes_nothing(self, notes: Database, conn: AsyncConnection) -> None:
        await self.put_off(conn, erase("a1"), dead=True)
        async with conn.transaction():
            assert await Eraser().service.handle(erase("a1"), conn) is Outcome.DEFERRED
        assert notes.query(DEFERRED) == [("undo a1", True)]

    async def test_it_is_shown_to_wait_behind_nobody_and_nobody_behind_it(
        self, notes: Database, conn: AsyncConnection
    ) -> None:
        await self.put_off(conn, note("a1"), dead=True)
        await self.put_off(conn, erase("a1"), note("a2"))
        await self.put_off(conn, erase("a2"), dead=True)

        with psycopg.connect(notes.dsn) as operator:
            entries = dead.entries(operator, Selection(), waiting=True)

        assert [(one.id, one.state, one.behind) for one in entries] == [
            ("a1", "dead", 1),
            ("undo a1", "retrying", 0),
            ("a2", "waiting", 0),
            ("undo a2", "dead", 0),
        ]

    async def test_whoever_names_the_aggregate_means_it_too(self, notes: Database, conn: AsyncConnection) -> None:
        await self.put_off(conn, note("a1"), erase("a1"), dead=True)
        with psycopg.connect(notes.dsn) as operator:
            assert dead.replay(operator, Selection(aggregate=("book", "a"))) == 2
            operator.execute("UPDATE relay.deferred SET dead_at = now()")
            assert dead.drop(operator, Selection(aggregate=("book", "a"))) == 2

    async def test_what_a_service_of_a_former_version_put_off_is_in_the_lane_of_its_aggregate(
        self, notes: Database, conn: AsyncConnection
    ) -> None:
        """It wrote no lane. The order of the others stays what it was."""
        columns = "consumer, message_id, aggregate_type, aggregate_id, type, properties, body"
        for name in ("a1", "undo a1", "a2"):
            notes.query(
                f"INSERT INTO relay.deferred ({columns}) VALUES (%s, %s, 'book', 'a', 'Note', '{{}}', '')",
                *(SERVICE, name),
            )
        assert await deferred.due(conn, SERVICE, 100) == [Lane("book", "a")]


async def test_a_service_that_is_newer_than_its_database_waits_for_the_migration(
    notes: Database, vhost: VirtualHost, courier: Courier, caplog: pytest.LogCaptureFixture
) -> None:
    """It would fail with every message, and find no table that can keep them."""
    notes.query("ALTER TABLE relay.deferred RENAME lane TO not_yet")
    async with running(Eraser(), notes.role_dsn(SERVICE), vhost.user_url(SERVICE)):
        await send(courier, note("a1"))
        await eventually(lambda: "relay migrate" in caplog.text)
        notes.query("ALTER TABLE relay.deferred RENAME not_yet TO lane")
        await then_written(notes, "a1")
