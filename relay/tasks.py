"""Ending tasks for certain."""

import asyncio
from collections.abc import Awaitable
from typing import Any, Final, TypeVar

Result = TypeVar("Result")

AGAIN_S: Final = 1.0
"""How long a task may take to clean up after its cancellation, unless it is known to need more."""


async def undisturbed(work: Awaitable[Result]) -> Result:
    """Await work that must not be interrupted: a cancellation meanwhile takes effect when the work is done.

    If the work fails, its error is what is raised.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    result = task.result()
    if cancelled is not None:
        raise cancelled
    return result


async def end(*tasks: "asyncio.Future[Any]", again_s: float = AGAIN_S) -> None:
    """Cancel tasks and wait until they have ended, whatever they end with; cancel them once more every `again_s`.

    Python 3.11's asyncio.wait_for, which psycopg uses, swallows a cancellation when what it waits for is ready at that
    very moment: the task goes on as if nothing had been said. So it is said until it is heard.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=again_s)
