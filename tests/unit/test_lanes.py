"""Lanes: side by side, and in order where it matters."""

import asyncio
from collections.abc import Coroutine
from functools import partial
from typing import Any

import pytest

from relay.messaging.lanes import Lanes


class Desk:
    """Work that ends when the test says so."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.running = self.most = 0
        self._may_end: dict[str, asyncio.Event] = {}

    def work(self, name: str) -> Coroutine[Any, Any, None]:
        self._may_end[name] = asyncio.Event()
        return self._work(name)

    async def _work(self, name: str) -> None:
        self.begun.append(name)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self._may_end[name].wait()
            self.ended.append(name)
        finally:
            self.running -= 1

    def finish(self, name: str) -> None:
        self._may_end[name].set()


async def turns() -> None:
    """Let everything happen that can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_different_keys_run_side_by_side() -> None:
    desk = Desk()
    async with Lanes(8) as lanes:
        for name in ("a", "b"):
            lanes.start(name, partial(desk.work, name))
        await turns()
        assert desk.begun == ["a", "b"]
        desk.finish("b")
        await turns()
        assert desk.ended == ["b"]
        desk.finish("a")


async def test_one_key_waits_for_what_came_before_it() -> None:
    desk = Desk()
    async with Lanes(8) as lanes:
        for name in ("first", "second", "third"):
            lanes.start("account", partial(desk.work, name))
        await turns()
        assert desk.begun == ["first"]
        desk.finish("first")
        await turns()
        assert desk.begun == ["first", "second"]
        desk.finish("second")
        await turns()
        desk.finish("third")
    assert desk.ended == ["first", "second", "third"]


async def test_no_more_run_at_once_than_there_is_room_for() -> None:
    desk = Desk()
    names = [str(number) for number in range(10)]
    async with Lanes(3) as lanes:
        for name in names:
            lanes.start(name, partial(desk.work, name))
        for name in names:
            await turns()
            desk.finish(name)
    assert desk.most == 3
    assert desk.ended == names


async def test_an_error_ends_the_rest_and_comes_out_as_itself() -> None:
    desk = Desk()

    async def fail() -> None:
        raise LookupError("broken")

    async def consume() -> None:
        async with Lanes(8) as lanes:
            lanes.start("a", partial(desk.work, "a"))
            await turns()
            lanes.start("b", fail)
            await asyncio.Event().wait()

    with pytest.raises(LookupError, match="broken"):
        await consume()
    assert desk.running == 0
    assert desk.ended == []


async def test_what_waits_behind_an_error_never_begins() -> None:
    desk = Desk()

    async def fail() -> None:
        raise LookupError("broken")

    async def consume() -> None:
        async with Lanes(8) as lanes:
            lanes.start("a", fail)
            lanes.start("a", partial(desk.work, "after"))
            await asyncio.Event().wait()

    with pytest.raises(LookupError):
        await consume()
    assert desk.begun == []


async def test_nothing_is_kept_of_keys_that_are_done() -> None:
    async def nothing() -> None: ...

    async with Lanes(2) as lanes:
        for number in range(100):
            lanes.start(number, nothing)
        await turns()
        await asyncio.sleep(0)
        assert not lanes._last
