"""The relay and the services as their users run them: as processes."""

import asyncio
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from signal import SIGTERM, Signals
from types import TracebackType
from typing import Any, Self

WAIT_S = 60.0

PYTHON_MODULE = (sys.executable, "-m")


class Process:
    """A Python module, or a program, with JSON logs, which tell the test what has happened.

    Killed at the end if it still runs.
    """

    def __init__(
        self,
        arguments: list[str],
        environment: dict[str, str],
        *,
        program: Sequence[str | Path] = PYTHON_MODULE,
        cwd: Path | None = None,
    ) -> None:
        self._arguments = arguments
        self._program = program
        self._cwd = cwd
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
        self._environment = inherited | environment
        self.lines: list[dict[str, Any]] = []
        self._news = asyncio.Condition()
        self._ended = False

    async def __aenter__(self) -> Self:
        self.process = await asyncio.create_subprocess_exec(
            *self._program,
            *self._arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=self._environment,
            cwd=self._cwd,
        )
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self._reader

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            try:
                entry = json.loads(line)
            except ValueError:
                entry = {"action": "not_json", "message": line.decode().rstrip()}
            async with self._news:
                self.lines.append(entry)
                self._news.notify_all()
        async with self._news:
            self._ended = True
            self._news.notify_all()

    async def until(
        self, action: str, *, times: int = 1, where: Callable[[dict[str, Any]], bool] = lambda _: True
    ) -> None:
        """Wait until the log has this action so many times; fail with the log if it never comes."""

        def seen() -> bool:
            matching = [line for line in self.lines if line.get("action") == action and where(line)]
            return len(matching) >= times

        async with asyncio.timeout(WAIT_S), self._news:
            await self._news.wait_for(lambda: seen() or self._ended)
        assert seen(), f"{self._arguments} never said {action!r}: {self.lines}"

    def said(self, action: str) -> list[dict[str, Any]]:
        """The lines with this action, so far."""
        return [line for line in self.lines if line.get("action") == action]

    async def end(self, signal: Signals = SIGTERM) -> int:
        """Send a signal and wait for the exit status."""
        self.process.send_signal(signal)
        return await self.status()

    async def status(self) -> int:
        """Wait for the exit status."""
        async with asyncio.timeout(WAIT_S):
            code = await self.process.wait()
            await self._reader
            return code


class RelayProcess(Process):
    """`relay run` for one source."""

    def __init__(self, dsn: str, amqp_url: str, *, name: str | None = None, **more: str) -> None:
        """`more` are further settings, like `SOURCE__0__ORDERING`."""
        settings = {"RELAY_SOURCE__0__DSN": dsn, "RELAY_BROKER__URL": amqp_url, "RELAY_LOG_FORMAT": "json"}
        settings["RELAY_HTTP__LISTEN"] = ""
        if name:
            settings["RELAY_SOURCE__0__NAME"] = name
        super().__init__(["relay", "run"], settings | {f"RELAY_{setting}": value for setting, value in more.items()})


def configured_relay(file: Path, amqp_url: str) -> Process:
    """`relay run` for the sources of a file."""
    settings = {"RELAY_BROKER__URL": amqp_url, "RELAY_LOG_FORMAT": "json", "RELAY_HTTP__LISTEN": ""}
    return Process(["relay", "run", "--config", str(file)], settings)


class ServiceProcess(Process):
    """`python -m services.NAME`, on any free port."""

    def __init__(self, name: str, dsn: str, amqp_url: str) -> None:
        settings = {"DSN": dsn, "AMQP_URL": amqp_url, "LISTEN": "127.0.0.1:0"}
        settings |= {"LOG_FORMAT": "json", "LOG_LEVEL": "DEBUG"}
        super().__init__([f"services.{name}"], {f"{name.upper()}_{key}": value for key, value in settings.items()})
