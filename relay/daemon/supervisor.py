"""Keeps every source going: reconnects, stops on a signal, and says how it went."""

import asyncio
import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

from relay.backoff import Backoff
from relay.daemon.session import Session
from relay.daemon.status import SourceStatus, State
from relay.errors import ExitCode, RelayError, SourceAway
from relay.tasks import end

log = logging.getLogger(__name__)

RETRY_FIRST_S: Final = 0.2
RETRY_CAP_S: Final = 15.0
"""Attempts to reconnect are at least half of this apart when a server stays away."""


HANG_UP_S: Final = 20.0
"""How long a session may take to hang up on both servers."""


class Supervisor:
    """Runs one session after the other for each source, until told to stop or until waiting cannot mend it.

    Sources in one process share its fate: when one has to stop, the others let what is in flight arrive and stop too.
    Then the exit status says so to whoever started the process, and nobody believes it well while a source is dead.
    """

    def __init__(self, sources: Sequence[tuple[SourceStatus, Callable[[], Session]]]) -> None:
        """The status of each source, and what makes its sessions."""
        self._sources = sources
        self._stopping = asyncio.Event()
        self._halt = asyncio.Event()

    async def run(self) -> ExitCode:
        """Keep all sources going. The exit code is OK after a stop, or that of a source that had to give up."""
        with _signals(self._on_signal):
            codes = await asyncio.gather(*(self._keep(status, make) for status, make in self._sources))
        return next((code for code in codes if code is not ExitCode.OK), ExitCode.OK)

    def _on_signal(self) -> None:
        """The first signal lets what is in flight arrive; the second does not wait for that."""
        if self._stopping.is_set():
            log.warning("a second signal: not waiting for what is in flight", extra={"action": "halting"})
            self._halt.set()
        else:
            log.info("a signal: letting what is in flight arrive", extra={"action": "stopping"})
            self._stopping.set()

    async def _keep(self, status: SourceStatus, make: Callable[[], Session]) -> ExitCode:
        name = status.name
        backoff = Backoff(RETRY_FIRST_S, RETRY_CAP_S)
        while not self._stopping.is_set():
            session = make()
            try:
                await self._run(session)
            except SourceAway as away:
                if session.progressed:
                    backoff.reset()
                status.became(State.AWAY, str(away))
                await self._pause(name, away, backoff.next())
            except RelayError as error:
                extra = {"action": "source_stopped", "source": name, "hint": error.hint}
                log.error("%s has stopped: %s", name, error, extra=extra)
                status.became(State.STOPPED, str(error))
                self._stopping.set()
                return error.exit_code
            except Exception:
                log.exception("%s has stopped: this is a bug", name, extra={"action": "source_crashed", "source": name})
                status.became(State.STOPPED, "this is a bug: the log has more")
                self._stopping.set()
                return ExitCode.FAILURE
        status.became(State.STOPPED, "it was told to stop")
        return ExitCode.OK

    async def _run(self, session: Session) -> None:
        """Run a session to its end, or as far as a stop lets it."""
        running = asyncio.ensure_future(session.run())
        stopping = asyncio.ensure_future(self._stopping.wait())
        halt = asyncio.ensure_future(self._halt.wait())
        try:
            await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                session.stop()
                if session.streaming:
                    await asyncio.wait({running, halt}, return_when=asyncio.FIRST_COMPLETED)
                await end(running, again_s=HANG_UP_S)
            if not running.cancelled():
                running.result()
        finally:
            await end(running, stopping, halt, again_s=HANG_UP_S)

    async def _pause(self, name: str, away: RelayError, seconds: float) -> None:
        """Wait before the next attempt; a stop ends the wait."""
        log.warning(
            "%s: %s; trying again in %.1f s",
            name,
            away,
            seconds,
            extra={"action": "reconnecting", "source": name, "retry_in_s": round(seconds, 3), "hint": away.hint},
        )
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()


@contextmanager
def _signals(handler: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    numbers: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
