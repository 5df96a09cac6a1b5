"""Ending tasks for certain."""

import asyncio
from collections.abc import Awaitable, Coroutine
from types import TracebackType
from typing import Any, Final, Self, TypeVar

Result = TypeVar("Result")

AGAIN_S: Final = 1.0
"""How long a task may take to clean up after its cancellation, unless it is known to need more."""

HANG_UP_S: Final = 15.0
"""How long tasks that run beside some work may take to hang up on a server."""


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


class Beside:
    """Tasks that run beside some work. When one of them fails, so does the work; all of them end with it."""

    def __init__(self, *work: Coroutine[Any, Any, None]) -> None:
        self._tasks = {asyncio.ensure_future(one) for one in work}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await end(*self._tasks, again_s=HANG_UP_S)

    def add(self, *work: Coroutine[Any, Any, None]) -> None:
        """Let more run beside."""
        self._tasks |= {asyncio.ensure_future(one) for one in work}

    def _raise(self) -> None:
        """What ended one of the tasks: also one that ended while nothing was being done."""
        for one in self._tasks:
            if one.done():
                one.result()

    async def do(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Do some work; raises at once what one of the tasks raises."""
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                self._raise()
                await asyncio.wait(
                    {task, *(one for one in self._tasks if not one.done())}, return_when=asyncio.FIRST_COMPLETED
                )
            self._raise()
            return task.result()
        finally:
            await end(task)
