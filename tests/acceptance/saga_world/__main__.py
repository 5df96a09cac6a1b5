"""`python -m tests.acceptance.saga_world NAME`: the agency, or a supplier, until SIGTERM."""

import asyncio
import os
import signal
import sys

from psycopg_pool import AsyncConnectionPool

from relay import log
from relay.messaging import Pool, Service
from relay.tasks import end
from tests.acceptance.saga_world.agency import Agency
from tests.acceptance.saga_world.plans import Plans
from tests.acceptance.saga_world.suppliers import Supplier

POOL_MAX = 14
"""Handlers, each with its transaction, and the jobs beside them."""

POOL_TIMEOUT_S = 5.0
POOL_RECONNECT_S = 3.0
"""Short, as in services/host.py: whoever asks for a connection next makes the pool begin again."""


def pool(dsn: str, size: int) -> Pool:
    """Connections to a database that may go away."""
    return AsyncConnectionPool(
        dsn,
        open=False,
        min_size=1,
        max_size=size,
        timeout=POOL_TIMEOUT_S,
        reconnect_timeout=POOL_RECONNECT_S,
        kwargs={"autocommit": False},
        check=AsyncConnectionPool.check_connection,
    )


def plans_pool(dsn: str) -> Pool:
    """For the plans, which are consulted beside the transactions."""
    return pool(dsn, 4)


def _service(name: str, plans: Plans) -> Service:
    if name == "agency":
        return Agency(plans).service
    return Supplier(name, plans, int(os.environ["WORLD_ATTEMPTS"])).service


async def main(name: str, dsn: str, amqp_url: str) -> None:
    """Run it until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with pool(dsn, POOL_MAX) as connections, plans_pool(dsn) as beside:
        running = asyncio.create_task(_service(name, Plans(beside)).run(connections, amqp_url))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            running.result()
        await end(running, stopping, again_s=20)


if __name__ == "__main__":
    log.configure("json", "INFO")
    asyncio.run(main(sys.argv[1], os.environ["WORLD_DSN"], os.environ["WORLD_AMQP_URL"]))
