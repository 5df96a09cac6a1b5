"""The rows of relay.saga_timer: what is to happen in a saga at a certain time, unless it has gone on by then.

A timer that is due at infinity is held: its saga is suspended, because it could not be fired.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, LiteralString, Self, cast
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import scalar_row, tuple_row

from relay.saga.store import Stored
from relay.saga.tally import Tally

SWEEP_TIMERS: Final = 1_000
"""How many timers, the earliest due, are looked at at once for those whose saga has ended."""

PRUNE_TIMERS: Final = 1_000
"""How many fired timers are deleted in one transaction."""

SPREAD_CAP_S: Final = 60.0
"""Over how long at most the timers of a batch are spread that was lost with its connection."""

RETENTION_DAYS: Final = 7
"""How long fired timers are kept, for whoever wants to know what happened."""

# Timer and saga are claimed together, and what is not free at once is left for the next time: a busy saga is never
# waited for, so nothing can wait in a circle. `statement_timestamp` stays the same in a statement: the index helps.
_CLAIM: Final[LiteralString] = """
    SELECT timer.id, timer.saga_id, timer.purpose, timer.step, timer.attempt, timer.failures, timer.interruptions,
           saga.type, saga.definition, saga.events, saga.status, saga.state, saga.progress, saga.reason
    FROM relay.saga_timer AS timer JOIN relay.saga AS saga ON saga.id = timer.saga_id
    WHERE timer.service = %(service)s AND timer.fired_at IS NULL
      AND timer.due_at <= coalesce(%(at)s::timestamptz, statement_timestamp())
      AND timer.due_at > coalesce(statement_timestamp() - %(fresh_s)s::float8 * interval '1 second', '-infinity')
    ORDER BY timer.due_at LIMIT %(limit)s FOR UPDATE OF timer, saga SKIP LOCKED
"""

_SETTLE: Final[LiteralString] = "UPDATE relay.saga_timer SET fired_at = clock_timestamp() WHERE id = ANY(%s)"

_PUT_OFF: Final[LiteralString] = """
    UPDATE relay.saga_timer SET failures = %s, interruptions = %s,
        due_at = coalesce(clock_timestamp() + %s::float8 * interval '1 second', 'infinity')
    WHERE id = %s
"""

_RELEASE: Final[LiteralString] = """
    UPDATE relay.saga_timer SET interruptions = 0, due_at = clock_timestamp()
    WHERE service = %s AND saga_id = %s AND fired_at IS NULL AND due_at = 'infinity'
"""

_SPREAD: Final[LiteralString] = """
    WITH suspect AS (
        SELECT id FROM relay.saga_timer
        WHERE service = %s AND fired_at IS NULL AND due_at <= statement_timestamp()
        ORDER BY due_at LIMIT %s FOR UPDATE SKIP LOCKED
    )
    UPDATE relay.saga_timer AS timer SET interruptions = timer.interruptions + 1,
        due_at = clock_timestamp() + random() * least(2.0 ^ least(timer.interruptions, 10), %s) * interval '1 second'
    FROM suspect WHERE timer.id = suspect.id
"""

# Most timers are timeouts of what went well. Nothing is to be decided about a saga that has ended, so it needs no lock,
# and these timers were never fired, so nobody will ask about them.
_SWEEP: Final[LiteralString] = """
    WITH due AS MATERIALIZED (
        SELECT id, saga_id FROM relay.saga_timer
        WHERE service = %s AND fired_at IS NULL AND due_at <= statement_timestamp() ORDER BY due_at LIMIT %s
    ), stale AS MATERIALIZED (
        SELECT timer.id FROM due JOIN relay.saga AS saga ON saga.id = due.saga_id AND saga.ended_at IS NOT NULL
            JOIN relay.saga_timer AS timer ON timer.id = due.id AND timer.fired_at IS NULL
        FOR UPDATE OF timer SKIP LOCKED
    )
    DELETE FROM relay.saga_timer AS timer USING stale WHERE timer.id = stale.id
"""

_NEXT: Final[LiteralString] = """
    SELECT extract(epoch FROM min(due_at) - clock_timestamp())::float8 FROM relay.saga_timer
    WHERE service = %s AND fired_at IS NULL AND due_at < 'infinity'
"""

_PRUNE: Final[LiteralString] = """
    DELETE FROM relay.saga_timer WHERE id IN (
        SELECT id FROM relay.saga_timer WHERE fired_at < statement_timestamp() - %s * interval '1 day'
        ORDER BY fired_at LIMIT %s FOR UPDATE SKIP LOCKED)
"""


@dataclass(frozen=True, slots=True)
class DueTimer:
    """A timer that is due, with its saga; both are locked until the transaction ends."""

    id: int
    saga_id: UUID
    purpose: str
    step: str | None
    attempt: int | None
    tally: Tally
    saga: Stored

    @classmethod
    def of(cls, row: tuple[Any, ...]) -> Self:
        """Read a row of the timer's columns and the saga's."""
        timer_id, saga_id, purpose, step, attempt, failures, interruptions, *saga = row
        tally = Tally(failures, interruptions)
        return cls(timer_id, saga_id, purpose, step, attempt, tally, Stored.of(tuple(saga)))


async def claim(
    conn: AsyncConnection[Any],
    service: str,
    *,
    limit: int,
    fresh_s: float | None = None,
    at: datetime | None = None,
) -> list[DueTimer]:
    """Timers that are due, the earliest first, each for this transaction alone, and their sagas with them.

    Those whose saga is busy, and those that somebody else has claimed, are left out; with `fresh_s`, so are those that
    became due longer ago than that. `at` is what counts as now for being due.
    """
    parameters = {"service": service, "limit": limit, "fresh_s": fresh_s, "at": at}
    cursor = await conn.cursor(row_factory=tuple_row).execute(_CLAIM, parameters)
    return [DueTimer.of(row) for row in await cursor.fetchall()]


async def settle(conn: AsyncConnection[Any], timer_ids: Collection[int]) -> None:
    """Note that these have been fired, or are stale."""
    if timer_ids:
        await conn.execute(_SETTLE, (list(timer_ids),))


async def put_off(conn: AsyncConnection[Any], timer_id: int, tally: Tally, delay_s: float | None) -> None:
    """Firing it has failed so often: let it be due again after a while; None holds it, until it is released."""
    await conn.execute(_PUT_OFF, (tally.failures, tally.interruptions, delay_s, timer_id))


async def release(conn: AsyncConnection[Any], service: str, saga_id: UUID) -> None:
    """Something has happened in the saga: let the timers that are held be due now. Each is tried once more."""
    await conn.execute(_RELEASE, (service, saga_id))


async def spread(conn: AsyncConnection[Any], service: str, limit: int) -> None:
    """Let the timers that are due for the longest time be due again one by one, over a second at first.

    A connection was lost when they were to be fired: if one of them is the cause, it must not take the others with it
    for ever.
    """
    await conn.execute(_SPREAD, (service, limit, SPREAD_CAP_S))


async def sweep(conn: AsyncConnection[Any], service: str) -> int:
    """Delete, among the SWEEP_TIMERS that are due for the longest time, those whose saga has ended; how many."""
    return (await conn.execute(_SWEEP, (service, SWEEP_TIMERS))).rowcount


async def next_due_s(conn: AsyncConnection[Any], service: str) -> float | None:
    """Seconds until the next timer is due, less than 0 for one that is due already; None when there is none."""
    cursor = await conn.cursor(row_factory=scalar_row).execute(_NEXT, (service,))
    return cast("float | None", await cursor.fetchone())


async def prune(conn: AsyncConnection[Any]) -> int:
    """Delete PRUNE_TIMERS of those that were fired longer ago than the retention; how many there were."""
    return (await conn.execute(_PRUNE, (RETENTION_DAYS, PRUNE_TIMERS))).rowcount
