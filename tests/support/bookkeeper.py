"""A service whose handler has an effect that shows how often it ran."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from psycopg_pool import AsyncConnectionPool

from relay.messaging import Event, Service, Transaction
from tests.support.database import Database


class Moved(Event):
    """What the writers write."""

    n: float


def make_service() -> Service:
    """A service that inserts a row into `effect` for each event."""
    service = Service("bookkeeper")

    @service.event(Moved)
    async def book(event: Moved, tx: Transaction) -> None:
        assert tx.incoming is not None
        await tx.execute("INSERT INTO effect (message_id) VALUES (%s)", (tx.incoming.message_id,))

    return service


@asynccontextmanager
async def bookkeeper(database: Database, amqp_url: str) -> AsyncIterator[None]:
    """The service, running. Its table is made here: `effect`, without a unique key, so that nothing hides a repeat."""
    database.query("CREATE TABLE effect (message_id text NOT NULL)")
    async with AsyncConnectionPool(database.superuser_dsn, min_size=1, max_size=4, open=False) as pool:
        running = asyncio.create_task(make_service().run(pool, amqp_url))
        try:
            yield
        finally:
            running.cancel()
            await asyncio.wait({running})
