"""Chaos on purpose: the relay and the services are killed again and again, at moments of chance."""

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Final

LOWEST_S: Final = 6.0
HIGHEST_S: Final = 8.5
"""Between two kills of a process: long enough for it to have done something in between, and less than the ten seconds
that are promised, because one that has just died by itself can be killed only when it runs again, and a busy machine
is late."""

POLL_S: Final = 0.1
"""How often to look whether a process that did not run then runs again."""

Kill = Callable[[str], Awaitable[bool]]
"""Kills a process, and says whether that killed it: False when it did not run just then."""


async def chaos(names: Iterable[str], seed: int, kill: Kill) -> None:
    """Kill each of these, independently of the others, until cancelled. The seed decides when.

    A kill that finds nobody is made up for as soon as the process runs again.
    """
    async with asyncio.TaskGroup() as killers:
        for name in names:
            killers.create_task(_again_and_again(name, pauses(name, seed), kill))


def pauses(name: str, seed: int) -> Iterator[float]:
    """Seconds before each kill of a process. The same seed gives the same ones."""
    dice = random.Random(f"{seed} {name}")
    yield dice.uniform(0, HIGHEST_S)
    while True:
        yield dice.uniform(LOWEST_S, HIGHEST_S)


async def _again_and_again(name: str, waits_s: Iterator[float], kill: Kill) -> None:
    for wait_s in waits_s:
        await asyncio.sleep(wait_s)
        for _ in itertools.count():
            if await kill(name):
                break
            await asyncio.sleep(POLL_S)
