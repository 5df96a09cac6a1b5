"""What runs beside a service that runs sagas: its timers are fired when they are due, and forgotten after a while."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final

from psycopg import AsyncConnection

from relay.messaging import Pool
from relay.saga import timers

TIMER_POLL_S: Final = 0.5
"""How often to look for timers at the least: those that other instances set are due within a second of that."""

TIMER_BUSY_S: Final = 0.1
"""How long to leave those alone whose saga is busy."""

TIMER_BATCH: Final = 10
"""How many timers are fired in one transaction. Their sagas are locked so long, and replies to them wait."""

FRESH_S: Final = 0.5
"""Timers that became due no longer ago than this come first: they can still be fired in time. Those of a crowd that is
due at once are soon late, and what becomes due after them is not."""

LATE_EVERY: Final = 4
"""In every fourth transaction the timers that wait longest come first, so that they are never forgotten."""

PRUNE_EVERY_S: Final = 60.0
"""How often fired timers are looked through for old ones, by each instance."""

FireDue = Callable[..., Awaitable[int]]
"""Orchestrator.fire_due."""


class TimerJob:
    """Fires the timers of a service, in small transactions, on one connection: what else the service does goes on.

    However many are due, one that becomes due now does not wait behind all of them.
    """

    def __init__(self, service: str, fire_due: FireDue) -> None:
        self._service = service
        self._fire_due = fire_due
        self._rounds = 0

    async def run(self, pool: Pool) -> None:
        """Fire what is due, for ever. Raises what psycopg raises when the database is away."""
        while True:
            async with pool.connection() as conn:
                wait_s = await self.fire(conn)
            await asyncio.sleep(wait_s)

    async def fire(self, conn: AsyncConnection[Any]) -> float:
        """Fire a batch, if anything is due; how many seconds to wait before the next one."""
        next_s = await timers.next_due_s(conn, self._service)
        if next_s is None or next_s > 0:
            return TIMER_POLL_S if next_s is None else min(TIMER_POLL_S, next_s)
        self._rounds += 1
        fired = 0 if self._rounds % LATE_EVERY == 0 else await self._fire(conn, FRESH_S)
        stale = 0
        if fired == 0:
            stale = await timers.sweep(conn, self._service)
            fired = await self._fire(conn, None)
        return 0 if fired or stale else TIMER_BUSY_S

    async def _fire(self, conn: AsyncConnection[Any], fresh_s: float | None) -> int:
        async with conn.transaction():
            return await self._fire_due(conn, limit=TIMER_BATCH, fresh_s=fresh_s)


async def prune(pool: Pool) -> None:
    """Delete fired timers after their retention, in small transactions, for ever."""
    while True:
        async with pool.connection() as conn, conn.transaction():
            deleted = await timers.prune(conn)
        if deleted < timers.PRUNE_TIMERS:
            await asyncio.sleep(PRUNE_EVERY_S * random.uniform(0.5, 1.0))
