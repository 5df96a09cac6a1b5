"""Work side by side, and one after the other where its order matters."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from types import TracebackType
from typing import Any, Self


class Lanes:
    """Does work of different keys side by side, at most `width` at once, and work of one key in the order of the calls.

    Leaving the context cancels what is under way and waits for it. The first error of any work ends the context with
    that error.
    """

    def __init__(self, width: int) -> None:
        self._room = asyncio.Semaphore(width)
        self._group = asyncio.TaskGroup()
        self._last: dict[Hashable, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._group.__aexit__(kind, error, trace)
        except BaseExceptionGroup as group:
            raise _first(group) from group

    def start(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do this as soon as there is room and everything of the same key before it is done."""
        before = self._last.get(key)
        task = self._group.create_task(self._do(before, work))
        self._last[key] = task
        task.add_done_callback(lambda done: self._forget(key, done))

    async def _do(self, before: "asyncio.Task[None] | None", work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if before is not None:
            await asyncio.wait({before})
        async with self._room:
            await work()

    def _forget(self, key: Hashable, done: "asyncio.Task[None]") -> None:
        if self._last.get(key) is done:
            del self._last[key]


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
