"""How long code of a service may take: it runs in a transaction, which holds its locks so long."""

import asyncio
from types import TracebackType
from typing import Final, Self

from relay.errors import RelayError

AGAIN_S: Final = 5.0
"""How long what was cancelled may take to end before it is cancelled once more: it may be a query, which PostgreSQL is
asked to cancel. To interrupt that costs the connection."""


class TookTooLong(RelayError):
    """A handler, or a local step of a saga, took longer than its timeout."""

    hint = "See what it waits for; or give it a longer timeout, and mind that its transaction holds its locks as long."

    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"not done within {timeout_s:g} s")


class Deadline:
    """Cancels what its task does within it when the time is over, and raises TookTooLong whatever came of that.

    Python's own timeout cancels once. That may get lost: in code that swallows it, and in Python 3.11's
    asyncio.wait_for, which psycopg uses, when what it waits for is ready at that very moment. So here it is said until
    it is heard. Code that never awaits hears nothing, and is done when it is found out; it is left as it is.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._cancelled = 0

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a deadline needs a task that it can cancel")
        self._task = task
        self._before = task.cancelling()
        self._timer = asyncio.get_running_loop().call_later(self._timeout_s, self._cancel)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if not self._cancelled:
            return
        for _ in range(self._cancelled):
            self._task.uncancel()
        if isinstance(error, asyncio.CancelledError) and self._task.cancelling() > self._before:
            return  # somebody else has cancelled the task too
        raise TookTooLong(self._timeout_s) from error

    def _cancel(self) -> None:
        self._cancelled += 1
        self._task.cancel()
        self._timer = asyncio.get_running_loop().call_later(AGAIN_S, self._cancel)
