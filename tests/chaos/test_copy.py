"""The copy of a table that is captured later, killed at any moment while others write to the table."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from signal import SIGKILL
from threading import Event

import psycopg

from tests.conftest import VirtualHost
from tests.integration.test_captures import CUSTOMERS, OUTBOX, Source, replayed, table
from tests.support.database import Database
from tests.support.mailbox import mailbox

KILLS = 9
ROWS = 4000
LIFE_S = 0.02, 1.2
"""How long a relay lives: from before its copy begins until after it has ended."""
WRITE_EVERY_S = 0.002
"""As fast as it can, a writer makes tens of thousands of changes on a slow machine, and all of them have to arrive."""

CHANGES = (
    "UPDATE public.customers SET name = name || 'x' WHERE id = %s",
    "DELETE FROM public.customers WHERE id = %s",
    "INSERT INTO public.customers VALUES (%s, 'new') ON CONFLICT DO NOTHING",
)


@asynccontextmanager
async def writing(dsn: str) -> AsyncIterator[None]:
    """Somebody changes rows of the table, one transaction after the other."""
    stopped = Event()

    def write() -> None:
        dice = random.Random(5)
        with psycopg.connect(dsn, autocommit=True) as connection:
            while not stopped.wait(WRITE_EVERY_S):
                connection.execute(dice.choice(CHANGES).encode(), (dice.randint(1, ROWS + 200),))

    writer = asyncio.create_task(asyncio.to_thread(write))
    try:
        yield
    finally:
        stopped.set()
        await writer


async def test_a_copy_that_is_killed_again_and_again_comes_to_what_the_table_is(
    database: Database, vhost: VirtualHost, tmp_path: Path
) -> None:
    dice = random.Random(11)
    source = Source(database, vhost, tmp_path)
    source.run(
        "CREATE TABLE public.customers (id integer PRIMARY KEY, name text)",
        f"INSERT INTO public.customers SELECT n, 'old' FROM generate_series(1, {ROWS}) AS n",
    )
    async with mailbox(vhost.url) as box:
        async with source.relay(OUTBOX) as relay:
            await relay.until("streaming")
            assert await relay.end() == 0
        async with writing(database.dsn):
            for _ in range(KILLS):
                async with source.relay(OUTBOX, CUSTOMERS) as relay:
                    await relay.until("active")
                    await asyncio.sleep(dice.uniform(*LIFE_S))  # the moment is what matters
                    assert await relay.end(SIGKILL) == -SIGKILL
        async with source.relay(OUTBOX, CUSTOMERS) as relay:
            await relay.until("streaming")
            source.run("INSERT INTO public.customers VALUES (-1, 'last')")
            # The last one alone is looked at: there are tens of thousands, and it is asked with each.
            deliveries = await box.until(
                lambda found: any(one.properties.headers["aggregate_id"] == "-1" for one in found[-1:])
            )
            assert await relay.end() == 0
    bodies: dict[str | None, bytes] = {}
    assert all(bodies.setdefault(one.properties.message_id, one.body) == one.body for one in deliveries)
    assert replayed(deliveries) == table(database)
