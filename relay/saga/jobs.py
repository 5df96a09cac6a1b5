"""What runs beside a service that runs sagas: its timers are fired when they are due, and forgotten after a while."""

import asyncio
import logging
import random
from collections.abc import Awaitable
from typing import Any, Final, LiteralString, Protocol

import psycopg
from psycopg import AsyncConnection

from relay.messaging import Pool
from relay.messaging.failures import described
from relay.messaging.retry import Trouble, trouble
from relay.saga import timers

TIMER_POLL_S: Final = 0.5
"""How often to look for timers at the least: those that other instances set are due within a second of that."""

TIMER_BUSY_S: Final = 0.1
"""How long to leave those alone whose saga is busy."""

TIMER_BATCH: Final = 10
"""How many timers are fired in one transaction. Their sagas are locked so long, and replies to them wait."""

BATCH_S: Final = 1.0
"""After so long no further timer is fired in it: local steps may take their time, and what they take adds up."""

LOCK_WAIT_S: Final = 2.0
"""How long a statement in it waits for a lock: of somebody who is about to queue behind one of its sagas, say, and does
not commit. Then that timer is put off, and the others are fired."""

FRESH_S: Final = 0.5
"""Timers that became due no longer ago than this come first: they can still be fired in time. Those of a crowd that is
due at once are soon late, and what becomes due after them is not. (The latest first, without a limit, is worse: what is
overtaken once, by the next attempts of that crowd, is overtaken again and again.)"""

LATE_EVERY: Final = 4
"""In every fourth transaction the timers that wait longest come first, so that they are never forgotten."""

PRUNE_EVERY_S: Final = 60.0
"""How often fired timers are looked through for old ones, by each instance."""

BATCH_PAUSE_S: Final = 0.1
"""Between two portions of them, so that they do not crowd out the work of the service."""

_BOUND_WAITS: Final[LiteralString] = "SELECT set_config('lock_timeout', %s, true)"
"""Until the end of the transaction."""

logger = logging.getLogger(__name__)


class FireDue(Protocol):
    """Orchestrator.fire_due."""

    def __call__(self, conn: AsyncConnection[Any], *, limit: int, fresh_s: float | None = None) -> Awaitable[int]: ...


class TimerJob:
    """Fires the timers of a service, in small transactions, on one connection: what else the service does goes on.

    However many are due, one that becomes due now does not wait behind all of them.
    """

    def __init__(self, service: str, fire_due: FireDue) -> None:
        self._service = service
        self._fire_due = fire_due
        self._rounds = 0
        self._lost = False

    async def run(self, pool: Pool) -> None:
        """Fire what is due, for ever. Raises what psycopg raises when the database is away."""
        while True:
            connected = False
            try:
                async with pool.connection() as conn:
                    connected = True
                    wait_s = await self._fire_on(conn)
            except psycopg.Error as error:
                # The code of a saga may break its connection. If the database is away, the next one cannot be had.
                if not connected or trouble(error) is Trouble.FAULT:
                    raise
                self._lost = trouble(error) is Trouble.AWAY
                wait_s = TIMER_POLL_S
                fields = {"action": "job_waits", "service": self._service, "job": "timers"}
                logger.warning("%s: timers are fired again: %s", self._service, described(error), extra=fields)
            await asyncio.sleep(wait_s)

    async def _fire_on(self, conn: AsyncConnection[Any]) -> float:
        if self._lost:
            async with conn.transaction():
                await timers.spread(conn, self._service, TIMER_BATCH)
            self._lost = False
        return await self.fire(conn)

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
            await conn.execute(_BOUND_WAITS, (f"{LOCK_WAIT_S:g}s",))
            return await self._fire_due(conn, limit=TIMER_BATCH, fresh_s=fresh_s)


async def prune(pool: Pool) -> None:
    """Delete fired timers after their retention, in small transactions, for ever."""
    while True:
        async with pool.connection() as conn, conn.transaction():
            deleted = await timers.prune(conn)
        full = deleted == timers.PRUNE_TIMERS
        await asyncio.sleep(BATCH_PAUSE_S if full else PRUNE_EVERY_S * random.uniform(0.5, 1.0))
