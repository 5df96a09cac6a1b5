"""A process of ours that is started again when it dies."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from relay.demo.servers.host import how_it_ended

STOP_S: Final = 20.0
"""How long a child may take to finish what it is doing after SIGTERM."""

RESTART_S: Final = 0.5
"""Between the death of a child and its next start."""

LOG_LINES: Final = 15

Say = Callable[[str], None]


class Child:
    """A Python module as a process, with its log in a file. Ctrl-C at the terminal does not reach it: we stop it."""

    def __init__(self, name: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        self._command = (sys.executable, "-m", *arguments)
        self._environment = {**_inherited(), **environment}
        self._process: asyncio.subprocess.Process | None = None
        self._held_back_s: float | None = None
        self.kills = 0
        """How often it was killed on purpose."""

    @property
    def pid(self) -> int:
        """Of the process that was started last."""
        if self._process is None:
            raise RuntimeError(f"{self.name} has not been started")
        return self._process.pid

    async def start(self) -> None:
        """Start it. Its log goes on where it was."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )

    async def keep(self, say: Say) -> None:
        """Start it again whenever it ends, and say so. Runs until cancelled."""
        while self._process is not None:
            status = await self._process.wait()
            held_back_s, self._held_back_s = self._held_back_s, None
            if held_back_s is None or status != -signal.SIGKILL:
                say(f"{self.name} {how_it_ended(status)}; starting it again. Its last words:\n{self.last_words()}")
                held_back_s = RESTART_S
            else:
                self.kills += 1
            await asyncio.sleep(held_back_s)
            await self.start()

    async def kill(self, held_back_s: float = RESTART_S) -> bool:
        """SIGKILL. `keep` starts it again that much later, and has nothing to say.

        False when it did not run: it is being started again, or has just ended by itself, which only its status tells.
        """
        process = self._process
        if process is None or process.returncode is not None:
            return False
        self._held_back_s = held_back_s
        with suppress(ProcessLookupError):
            process.kill()
        return await process.wait() == -signal.SIGKILL

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL when that takes too long."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    def last_words(self) -> str:
        """The end of its log."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(f"    {line}" for line in lines[-LOG_LINES:])


def _inherited() -> dict[str, str]:
    """Our environment without the settings of other relays."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
