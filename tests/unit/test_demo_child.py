"""A process of the demo: what counts as killing it, and what is said when it ends by itself."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from relay.demo.child import Child
from relay.tasks import end
from tests.support.waiting import eventually

WAITS = "import signal; signal.pause()"
ENDS = "raise SystemExit(3)"


@asynccontextmanager
async def kept(directory: Path, code: str) -> AsyncIterator[tuple[Child, list[str]]]:
    """A process that is started again when it ends, and what is said meanwhile."""
    (directory / "kept_by_a_test.py").write_text(code)
    child = Child("it", ["kept_by_a_test"], {"PYTHONPATH": str(directory)}, directory / "log")
    said: list[str] = []
    await child.start()
    keeping = asyncio.create_task(child.keep(said.append))
    try:
        yield child, said
    finally:
        await end(keeping)
        await child.stop()


def let_it_end(pid: int) -> None:
    """Wait for the end of a process while the event loop stands still: it has ended, and nobody there has been told."""
    with suppress(ChildProcessError):  # asyncio's own thread was quicker to ask for its status
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


async def test_a_process_that_is_killed_is_started_again_without_a_word(tmp_path: Path) -> None:
    async with kept(tmp_path, WAITS) as (child, said):
        before = child.pid
        assert await child.kill(0.01)
        await eventually(lambda: child.pid != before)
        assert (child.kills, said) == (1, [])


async def test_what_is_being_started_again_cannot_be_killed(tmp_path: Path) -> None:
    async with kept(tmp_path, WAITS) as (child, _):
        assert await child.kill(60)
        await eventually(lambda: child.kills == 1)
        assert not await child.kill()
        assert child.kills == 1


async def test_a_kill_counts_although_nobody_waits_for_its_outcome(tmp_path: Path) -> None:
    async with kept(tmp_path, WAITS) as (child, said):
        killing = asyncio.create_task(child.kill(0.01))
        await asyncio.sleep(0)  # the signal is sent
        await end(killing)
        await eventually(lambda: child.kills == 1)
        assert said == []


async def test_who_has_ended_by_himself_was_not_killed(tmp_path: Path) -> None:
    async with kept(tmp_path, ENDS) as (child, said):
        let_it_end(child.pid)
        assert not await child.kill()
        await eventually(lambda: said)
        assert "starting it again" in said[0]
        assert child.kills == 0
