"""`relay demo` as a process: what it says, what it runs, and what it leaves."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from signal import SIGINT
from typing import Any, Final

import psycopg
import pytest

from relay.demo.audit import audit, undelivered, unsettled
from tests.support.logs import last_words
from tests.support.waiting import eventually

READY_S: Final = 120.0
SETTLE_S: Final = 120.0


@asynccontextmanager
async def demo(*arguments: str, program: Sequence[str] = ("-m", "relay")) -> AsyncIterator[asyncio.subprocess.Process]:
    """`relay demo` as a process. A test that fails leaves nothing behind either."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *program,
        "demo",
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if not name.startswith("RELAY_")},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(SIGINT)
            await process.wait()


async def ready(process: asyncio.subprocess.Process) -> dict[str, Any]:
    """The line that says where everything is."""
    assert process.stdout is not None
    async with asyncio.timeout(READY_S):
        line: dict[str, Any] = json.loads(await process.stdout.readline())
    return line


async def said(process: asyncio.subprocess.Process, words: str) -> None:
    """Wait until the demo says so on standard error."""
    assert process.stderr is not None
    async with asyncio.timeout(READY_S):
        async for line in process.stderr:
            if words in line.decode():
                return
    raise AssertionError(f"the demo never said {words!r}")


async def then_all_is_settled(stack: dict[str, Any], orders: int) -> None:
    """Wait until every order has come to its end and every message has arrived; then every invariant holds."""

    def settled() -> bool:
        try:
            unfinished, total = unsettled(stack["dsn"]["orders"])
            return unfinished == 0 and total >= orders and undelivered(stack["dsn"]) == 0
        except psycopg.OperationalError:
            return False  # PostgreSQL was killed, and is not back yet

    try:
        await eventually(settled, SETTLE_S)
    except AssertionError:
        pytest.fail(last_words(stack["config"]))
    result = audit(stack["dsn"])
    assert result.ok, result.invariants


def gone(pids: Iterable[int]) -> bool:
    """Whether none of these processes is left."""
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def exists(path: str) -> bool:
    """Whether there is such a file."""
    return Path(path).exists()
