"""What a test wants to go wrong: rows that say which command of which trip, how, and how often."""

from enum import StrEnum
from typing import Final
from uuid import UUID

from relay.messaging import Pool, Transaction

SCHEMA: Final = """
    CREATE TABLE plan (
        id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY, trip uuid NOT NULL, what text NOT NULL, how text NOT NULL,
        times integer NOT NULL);
    CREATE INDEX ON plan (trip, what);
    CREATE TABLE tried (id bigint GENERATED ALWAYS AS IDENTITY, trip uuid NOT NULL, what text NOT NULL);
"""

_NEXT: Final = """
    WITH tried AS (INSERT INTO tried (trip, what) VALUES (%(trip)s, %(what)s))
    UPDATE plan SET times = times - 1 WHERE id = (
        SELECT id FROM plan WHERE trip = %(trip)s AND what = %(what)s AND times > 0 ORDER BY id LIMIT 1 FOR UPDATE)
    RETURNING how
"""


class How(StrEnum):
    """What a handler does instead of what it should do."""

    REFUSE = "refuse"
    """It fails for a business reason, after it has written."""
    BUSY = "busy"
    """It fails for a business reason that passes, after it has written."""
    RAISE = "raise"
    """It raises, after it has written."""
    HOLD = "hold"
    """It has written, and then waits until the test opens the gate. It succeeds."""


class Broken(Exception):
    """What a handler raises that has a bug."""


class Plans:
    """Consulted by each handler, beside its transaction: a plan that was followed stays so when the rest is undone."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def next(self, what: str, trip: UUID) -> How | None:
        """What to do this time, None for what should be done. Notes that somebody has tried."""
        async with self._pool.connection() as conn:
            cursor = await conn.execute(_NEXT, {"trip": trip, "what": what})
            row = await cursor.fetchone()
        return None if row is None else How(row[0])

    async def carry_out(self, how: How | None, trip: UUID, tx: Transaction) -> None:
        """Raise, or wait at the gate, where that is the plan."""
        if how is How.RAISE:
            raise Broken("this was planned")
        if how is How.HOLD:
            await tx.execute(PASS_THE_GATE, (gate(trip),))


PASS_THE_GATE: Final = "SELECT pg_advisory_xact_lock_shared(%s)"


def gate(trip: UUID) -> int:
    """The advisory lock that is the gate of a trip: who holds it alone keeps it shut."""
    return trip.int & 0x7FFF_FFFF_FFFF_FFFF
