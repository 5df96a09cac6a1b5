"""docs/participants.md: whoever follows its SQL does what the library does, whatever is asked in whatever order."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import uuid4

import psycopg
import pytest
from psycopg import AsyncConnection, Connection, sql
from psycopg.rows import TupleRow

from relay.broker.properties import ATTEMPT, COMPENSATION, Delivery, HeaderValue, Properties
from relay.messaging import Command, Failure, Reply, Service, Transaction
from tests.support.database import Database
from tests.support.saga import connect
from tests.support.snippets import statements_of
from tests.support.waiting import eventually

BEGIN, LOOK, WORK, ANSWER, BEGIN_TO_UNDO = statements_of("participants.md")

ASKED: Final = ("act 1", "act 2", "undo 1", "undo 2")
"""What a saga may ask: to act or to undo, by attempt."""

MOODS: Final = ("can do all", "refuses the first time", "refuses to act", "refuses at first to undo")

WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


class Worked(Reply):
    times: int


class Refused(Failure):
    pass


class NotNow(Failure):
    pass


class Work(Command):
    replies = (Worked, Refused)


class Unwork(Command):
    replies = (NotNow,)


class Mood:
    """Whether a participant can do what it is asked."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._refused = 0

    def refuses(self, undo: bool) -> bool:
        if self._name == "refuses to act":
            return not undo
        once = self._name == ("refuses at first to undo" if undo else "refuses the first time")
        if once and not self._refused:
            self._refused += 1
            return True
        return False


class Library:
    """A participant in Python."""

    consumer = "library"

    def __init__(self, conn: AsyncConnection[TupleRow], mood: Mood) -> None:
        self._conn = conn
        self._mood = mood
        self.service = Service(self.consumer)
        self.service.command(Work)(self.work)
        self.service.compensation(Unwork)(self.unwork)

    async def work(self, command: Work, tx: Transaction) -> Worked | Refused:
        assert tx.incoming
        await tx.execute("INSERT INTO work VALUES ('library', %s)", (tx.incoming.operation,))
        if self._mood.refuses(False):
            return Refused()
        done = await tx.execute("SELECT count(*) FROM work WHERE operation = %s", (tx.incoming.operation,))
        row = await done.fetchone()
        return Worked(times=row[0] if row else 0)

    async def unwork(self, command: Unwork, tx: Transaction) -> NotNow | None:
        assert tx.incoming
        await tx.execute("DELETE FROM work WHERE operation = %s", (tx.incoming.operation,))
        return NotNow() if self._mood.refuses(True) else None

    async def handle(self, command: Delivery) -> None:
        async with self._conn.transaction():
            await self.service.handle(command, self._conn)


class Stranger:
    """A participant that knows nothing but the page."""

    consumer = "stranger"

    def __init__(self, conn: Connection[TupleRow], mood: Mood) -> None:
        self._conn = conn
        self._mood = mood

    async def handle(self, command: Delivery) -> None:
        self.carry_out(command)

    def carry_out(self, command: Delivery) -> None:
        said, parameters = command.properties, self._parameters(command)
        undo = COMPENSATION in said.headers
        begin, remember, record = BEGIN_TO_UNDO if undo else BEGIN
        self._execute(begin, {})
        if not self._execute(remember, parameters).rowcount:
            self._conn.execute("ROLLBACK")
            return
        new = self._execute(record, parameters).rowcount == 1
        found = None if new else self._execute(LOOK[0], parameters).fetchone()
        reply = self._undo(found, parameters) if undo else self._act(found, parameters)
        for statement in ANSWER:
            self._execute(statement, parameters | reply)

    def _act(self, found: Any, parameters: Mapping[str, object]) -> dict[str, object]:
        match found:
            case ("cancelled" | "compensated", *_):
                return {"type": "OperationCancelled", "payload": "{}"}
            case ("failed", attempt, *_) if attempt < int(str(parameters["attempt"])):
                return self._work(parameters)
            case (_, _, reply_type, reply):
                return {"type": reply_type, "payload": json.dumps(reply)}
        return self._work(parameters)

    def _undo(self, found: Any, parameters: Mapping[str, object]) -> dict[str, object]:
        match found:
            case ("done", *_):
                return self._unwork(parameters)
            case ("failed", *_):
                return self._record("cancelled", "Compensated", "{}", parameters)
            case ("cancelled" | "compensated", _, str(reply_type), reply):
                return {"type": reply_type, "payload": json.dumps(reply)}
        return {"type": "Compensated", "payload": "{}"}

    def _work(self, parameters: Mapping[str, object]) -> dict[str, object]:
        savepoint, _ = WORK
        self._execute(savepoint, {})
        self._execute("INSERT INTO work VALUES ('stranger', %(operation)s)", parameters)
        if self._mood.refuses(False):
            self._execute("ROLLBACK TO SAVEPOINT work", {})
            return self._record("failed", "Refused", "{}", parameters)
        done = self._execute("SELECT count(*) FROM work WHERE operation = %(operation)s", parameters).fetchone()
        assert done
        return self._record("done", "Worked", json.dumps({"times": done[0]}), parameters)

    def _unwork(self, parameters: Mapping[str, object]) -> dict[str, object]:
        savepoint, _ = WORK
        self._execute(savepoint, {})
        self._execute("DELETE FROM work WHERE operation = %(operation)s", parameters)
        if self._mood.refuses(True):
            self._execute("ROLLBACK TO SAVEPOINT work", {})
            return {"type": "NotNow", "payload": "{}"}
        return self._record("compensated", "Compensated", "{}", parameters)

    def _record(
        self, outcome: str, reply_type: str, payload: str, parameters: Mapping[str, object]
    ) -> dict[str, object]:
        reply: dict[str, object] = {"type": reply_type, "payload": payload}
        self._execute(WORK[1], {**parameters, **reply, "outcome": outcome})
        return reply

    def _parameters(self, command: Delivery) -> dict[str, object]:
        said = command.properties
        repeated = {name: said.headers[name] for name in (ATTEMPT, COMPENSATION) if name in said.headers}
        return {
            "consumer": self.consumer,
            "message_id": said.message_id,
            "sent_at": datetime.now(UTC),
            "operation": said.headers["operation"],
            "attempt": said.headers.get(ATTEMPT, "1"),
            "aggregate_type": said.headers["aggregate_type"],
            "aggregate_id": said.headers["aggregate_id"],
            "reply_to": said.reply_to,
            "correlation_id": said.correlation_id,
            "headers": json.dumps(repeated),
        }

    def _execute(self, statement: str, parameters: Mapping[str, object]) -> Any:
        return self._conn.execute(sql.SQL(statement), parameters)


def command(asked: str, saga_id: str, operation: str) -> Delivery:
    """A command of the saga, as the broker hands it over."""
    what, number = asked.split()
    headers: dict[str, HeaderValue] = {"operation": operation, "aggregate_type": "saga", "aggregate_id": saga_id}
    if what == "undo":
        headers[COMPENSATION] = number
    elif number != "1":
        headers[ATTEMPT] = number
    said = Properties(
        str(uuid4()),
        type="Unwork" if what == "undo" else "Work",
        correlation_id=saga_id,
        reply_to="sagas",
        headers=headers,
    )
    return Delivery(1, "relay.commands", "participant", False, said, b"{}")


def left_by(database: Database, consumer: str, operation: str) -> list[object]:
    """What a participant has answered and stored."""
    answered = database.query(
        "SELECT kind, aggregate_type, aggregate_id, type, destination, correlation_id, headers, payload"
        " FROM relay.outbox WHERE operation = %s ORDER BY seq",
        operation,
    )
    stored = database.query(
        "SELECT outcome, CASE outcome WHEN 'failed' THEN attempt END FROM relay.operation"
        " WHERE consumer = %s AND operation = %s",
        consumer,
        operation,
    )
    effect = database.query("SELECT count(*) FROM work WHERE operation = %s", operation)
    return [answered, stored, effect]


@dataclass(frozen=True)
class Shop:
    """A database, with a connection for each of the two."""

    database: Database
    library: AsyncConnection[TupleRow]
    stranger: Connection[TupleRow]


@pytest.fixture
async def shop(database: Database) -> AsyncIterator[Shop]:
    database.query("CREATE TABLE work (consumer text, operation text)")
    database.query("GRANT ALL ON work TO orders")
    with psycopg.connect(database.role_dsn("orders"), autocommit=True) as stranger:
        async with await connect(database) as library:
            yield Shop(database, library, stranger)


@pytest.mark.parametrize("mood", MOODS)
async def test_the_sql_of_the_page_answers_and_stores_what_the_library_does(shop: Shop, mood: str) -> None:
    for story in itertools.product(ASKED, repeat=3):
        saga_id = str(uuid4())
        left = []
        for participant in (Library(shop.library, Mood(mood)), Stranger(shop.stranger, Mood(mood))):
            operation = f"{saga_id}/{participant.consumer}/action"
            for asked in story:
                await participant.handle(command(asked, saga_id, operation))
            left.append(left_by(shop.database, participant.consumer, operation))
        assert left[0] == left[1], story


async def test_a_message_that_comes_twice_is_answered_once(shop: Shop) -> None:
    stranger, delivery = Stranger(shop.stranger, Mood("can do all")), command("act 1", "s", "s/step/action")
    await stranger.handle(delivery)
    await stranger.handle(delivery)
    assert shop.database.value("SELECT count(*) FROM relay.outbox") == 1


async def test_what_undoes_waits_for_the_action_that_has_not_committed(shop: Shop) -> None:
    library = Library(shop.library, Mood("can do all"))
    stranger = Stranger(shop.stranger, Mood("can do all"))
    stranger.consumer = library.consumer  # two instances of one service, in two languages
    async with shop.library.transaction():
        await library.service.handle(command("act 1", "s", "s/step/action"), shop.library)
        undoing = asyncio.create_task(asyncio.to_thread(stranger.carry_out, command("undo 1", "s", "s/step/action")))
        await eventually(lambda: shop.database.value(WAITING) == 1)
    await undoing
    assert shop.database.query("SELECT outcome FROM relay.operation") == [("compensated",)]
    assert shop.database.value("SELECT count(*) FROM work") == 0
