"""A handler that hangs is cancelled when its time is over: a failed attempt, which holds nobody up for long."""

import asyncio
from typing import Final

import pytest
from psycopg import AsyncConnection
from pydantic import BaseModel

from relay.messaging import Done, Retry, Transaction
from relay.messaging.retrier import WIDTH
from relay.messaging.retry import FAULT_TRIES
from relay.messaging.worker import CONCURRENCY
from relay.saga import Orchestrator, Saga
from tests.conftest import VirtualHost
from tests.support.courier import Courier
from tests.support.database import Database
from tests.support.notebook import SERVICE, Note, Notebook, running, then_written
from tests.support.saga import delivery_of, last_sent, status_of
from tests.support.waiting import eventually

TIMEOUT: Final = "200ms"
RETRY: Final = Retry(attempts=FAULT_TRIES + 1, backoff="50ms..100ms")
HISTORY: Final = "SELECT e->>'error' FROM relay.deferred, json_array_elements(history) AS e WHERE message_id = %s"
DEAD: Final = "SELECT message_id FROM relay.deferred WHERE dead_at IS NOT NULL ORDER BY message_id"
TOO_LONG: Final = ("TookTooLong: not done within 0.2 s",)


async def tell(courier: Courier, text: str) -> None:
    """A note about an aggregate of its own. Its id is its text."""
    headers = {"aggregate_type": "book", "aggregate_id": text}
    await courier.send(SERVICE, Note(text=text), message_id=text, headers=headers)


async def test_more_that_hang_than_are_handled_at_once_stop_neither_the_queue_nor_the_retries(
    notes: Database, vhost: VirtualHost, courier: Courier
) -> None:
    notebook = Notebook(RETRY, timeout=TIMEOUT)
    notebook.stumble = lambda command, _: asyncio.Event().wait() if command.text.startswith("hung") else None
    hung = [f"hung{number}" for number in range(max(CONCURRENCY, WIDTH) + 1)]
    async with running(notebook, notes.role_dsn(SERVICE), vhost.user_url(SERVICE)):
        for text in (*hung, "good"):
            await tell(courier, text)
        await then_written(notes, "good")
        await eventually(lambda: [row[0] for row in notes.query(DEAD)] == hung)

    for text in hung:
        assert notes.query(HISTORY, text) == [TOO_LONG] * RETRY.attempts


@pytest.mark.parametrize(
    "statement",
    ["SELECT pg_sleep(3600)", "SET idle_in_transaction_session_timeout = '50ms'"],
    ids=["in PostgreSQL", "until PostgreSQL has had enough"],
)
async def test_wherever_it_hangs_its_transaction_is_rolled_back_and_the_next_try_may_succeed(
    notes: Database, vhost: VirtualHost, courier: Courier, statement: str
) -> None:
    notebook = Notebook(RETRY, timeout=TIMEOUT)

    async def hang_once(_: Note, tx: Transaction) -> None:
        if len(notebook.tries) == 1:
            await tx.connection.execute(statement.encode())
            await asyncio.Event().wait()

    notebook.stumble = hang_once
    async with running(notebook, notes.role_dsn(SERVICE), vhost.user_url(SERVICE)):
        await tell(courier, "a1")
        await then_written(notes, "a1")

    assert notebook.tries == ["a1", "a1"]


class Trip(BaseModel):
    name: str = "Rome"


async def test_a_turn_of_a_saga_takes_as_long_as_its_local_steps_may(notes: Database) -> None:
    """They have timeouts of their own, which may be longer."""
    notebook = Notebook(timeout="50ms")
    trip = Saga("trip", state=Trip)

    @trip.step(to="hotel", readonly=True)
    def book(state: Trip) -> Note:
        return Note(text=state.name)

    @trip.local(pivot=True, timeout="1m")
    async def close(state: Trip, tx: Transaction) -> None:
        await tx.execute("SELECT pg_sleep(0.3)")

    orchestrator = Orchestrator(notebook.service, trip)
    async with await AsyncConnection.connect(notes.role_dsn(SERVICE), autocommit=True) as conn:
        async with conn.transaction():
            await orchestrator.start(trip, Trip(), conn)
        async with conn.transaction():
            await notebook.service.handle(delivery_of(Done(), last_sent(notes)), conn)

    assert status_of(notes) == "COMPLETED"
