"""Waiting for what sends no event: a row in a database, a position of PostgreSQL."""

import asyncio
from collections.abc import Callable

POLL_S = 0.05


async def eventually(check: Callable[[], object], within_s: float = 30.0) -> None:
    """Ask until the answer is true; fail when it is not in time."""
    for _ in range(int(within_s / POLL_S)):
        if await asyncio.to_thread(check):
            return
        await asyncio.sleep(POLL_S)
    raise AssertionError(f"not so within {within_s:g} s")
