"""An attempt: one transaction on a connection of the pool, which a stop of the service lets finish."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeAlias, TypeVar

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from relay.errors import RelayError
from relay.messaging.transaction import Pool
from relay.tasks import end

STOP_GRACE_S: Final = 10.0
"""How long the transaction at hand may still take when the service is stopped; then it is rolled back."""

Result = TypeVar("Result")

Work: TypeAlias = Callable[[AsyncConnection[TupleRow]], Awaitable[Result]]
"""What is done in the transaction."""


class WorkCancelled(RelayError):
    """Code of the service let a cancellation out that nobody asked for: something that it awaited was cancelled."""


def _nothing() -> None: ...


async def uncancelled(work: Awaitable[Result]) -> Result:
    """Await code of the service. Raises WorkCancelled for a cancellation that is its own, and not this task's.

    Let through, that would end the task without a word, and leave what it was about neither done nor failed.
    """
    try:
        return await work
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise WorkCancelled("it awaited something that was cancelled") from error


async def attempt(pool: Pool, work: Work[Result], then: Callable[[], None] = _nothing) -> Result:
    """Do some work in a transaction. What it returns has been committed, what it raises has been rolled back.

    `then` is called once it has committed, also when that happens while the service stops.
    """
    async with pool.connection() as conn:
        return await _finish(_transact(conn, work, then))


async def _transact(conn: AsyncConnection[TupleRow], work: Work[Result], then: Callable[[], None]) -> Result:
    async with conn.transaction():
        result = await work(conn)
    then()
    return result


async def _finish(work: Coroutine[Any, Any, Result]) -> Result:
    """Await work that gets STOP_GRACE_S to end when its awaiter is cancelled, and is cancelled only then."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task}, timeout=STOP_GRACE_S)
        await end(task)  # whatever failed, the message comes again
        raise
