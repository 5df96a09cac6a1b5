"""A service that writes down what it is told, in a table of its own; a test may make it stumble."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from relay.messaging import Command, Event, Pool, Reply, Retry, Service, Transaction
from relay.messaging.receiver import Receiver
from relay.messaging.retry import FAULT_TRIES
from relay.messaging.service import TIMEOUT
from tests.support.database import Database
from tests.support.waiting import eventually

SERVICE = "customers"
"""Its role and its broker user exist, with a service's rights and no more."""

GIVES_UP_SOON = Retry(attempts=FAULT_TRIES)
PATIENT = Retry(attempts=6, backoff="50ms..200ms")


class Note(Command):
    """Write a line down."""

    text: str


class Noted(Reply):
    text: str


class Happened(Event):
    text: str


class Notebook:
    """The service, and how often it was asked to write what. Several may share a database, as instances do."""

    def __init__(self, retry: Retry = GIVES_UP_SOON, timeout: str = TIMEOUT) -> None:
        self.service = Service(SERVICE, retry=retry, timeout=timeout)
        self.tries: list[str] = []
        self.stumble: Callable[[Note, Transaction], object] | None = None
        self.service.command(Note)(self.note)
        self.service.event(Happened)(self.overhear)
        self.changed = asyncio.Event()

    @property
    def receiver(self) -> Receiver:
        """What the service handles messages with, one attempt at a time."""
        return self.service._receiver

    async def note(self, command: Note, tx: Transaction) -> Noted:
        self.tries.append(command.text)
        self.changed.set()
        await tx.execute("INSERT INTO notes (text) VALUES (%s)", (command.text,))
        if self.stumble is not None:
            stumbling = self.stumble(command, tx)
            if asyncio.iscoroutine(stumbling):
                await stumbling
        return Noted(text=command.text)

    async def overhear(self, event: Happened, tx: Transaction) -> None:
        await tx.execute("INSERT INTO notes (text) VALUES (%s)", (f"overheard {event.text}",))
        await tx.add(Happened(text="noted"), aggregate=("notebook", "1"))


def with_notes(database: Database) -> Database:
    """Add the table. `txid` tells the transaction, whatever savepoint a row was written in."""
    database.query(
        "CREATE TABLE notes (id serial, text text NOT NULL, txid xid8 NOT NULL DEFAULT pg_current_xact_id())"
    )
    database.query("GRANT ALL ON notes, notes_id_seq TO customers")
    return database


def pool_of(dsn: str) -> Pool:
    """A pool that tells soon when the database is away."""
    return AsyncConnectionPool[AsyncConnection[TupleRow]](
        dsn, open=False, min_size=1, max_size=16, timeout=1, reconnect_timeout=1
    )


@asynccontextmanager
async def running(notebook: Notebook, dsn: str, url: str) -> AsyncIterator["asyncio.Task[None]"]:
    """The service runs; at the end it is cancelled, if it still does."""
    async with pool_of(dsn) as pool:
        task = asyncio.create_task(notebook.service.run(pool, url))
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def written(database: Database) -> list[object]:
    return [row[0] for row in database.query("SELECT text FROM notes ORDER BY id")]


async def then_written(database: Database, *texts: str) -> None:
    await eventually(lambda: len(written(database)) >= len(texts))
    assert written(database) == list(texts)
