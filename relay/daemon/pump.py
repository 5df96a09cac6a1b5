"""One source's stream: read, capture, publish, confirm, report."""

import asyncio
from contextlib import suppress
from typing import Final

from relay.capture.outbox import OutboxCapture
from relay.daemon.outlet import Outlet
from relay.daemon.progress import Progress, Transaction
from relay.errors import SourceError
from relay.wal.lsn import Lsn
from relay.wal.pgoutput import Begin, Commit, Insert, Message, Relation, decode
from relay.wal.protocol import Keepalive, XLogData
from relay.wal.stream import Stream

REPORT_PAUSE_S: Final = 0.1
"""At most one status update in this time, unless PostgreSQL asks for one."""


class StreamGap(SourceError):
    """The stream does not follow the protocol's order."""


class Pump:
    """Moves messages from a stream to an outlet, and tells PostgreSQL what is settled.

    A crash at any line leaves the slot where the last report put it: what was published after that is published again,
    under the same ids.
    """

    def __init__(self, stream: Stream, outlet: Outlet, confirmed: Lsn) -> None:
        self._stream = stream
        self._outlet = outlet
        self._capture = OutboxCapture()
        self._reported = confirmed
        self._due = asyncio.Event()
        self._stopping = False
        self.progress = Progress(confirmed)

    def stop(self) -> None:
        """Let `read` return as soon as no transaction is half read."""
        self._stopping = True

    @property
    def at_rest(self) -> bool:
        """Whether it has been stopped and no transaction is half read."""
        return self._stopping and not self.progress.in_transaction

    async def read(self) -> None:
        """Read, capture and publish until stopped. Raises what ends the stream, or what cannot be understood."""
        while not self.at_rest:
            for frame in await self._stream.read():
                await self._take(frame)
                if self.at_rest:  # the rest of the batch is unread for PostgreSQL too, and comes again
                    return

    async def report(self, every_s: float) -> None:
        """Send status updates when there is something to say, and at least every `every_s`. Runs until cancelled.

        They go out while the broker blocks and in the middle of a transaction of any size, so that PostgreSQL does not
        take us for dead.
        """
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(every_s):
                    await self._due.wait()
            await self.report_now()
            await asyncio.sleep(REPORT_PAUSE_S)

    async def report_now(self) -> None:
        """Send one status update."""
        self._due.clear()
        self._reported = self.progress.safe
        await self._stream.report(self._reported)

    async def _take(self, frame: XLogData | Keepalive) -> None:
        if isinstance(frame, Keepalive):
            self.progress.keepalive(frame.wal_end)
            self._wake(asked=frame.reply_requested)
        else:
            await self._change(decode(frame.data))

    async def _change(self, change: Message) -> None:
        match change:
            case Insert():
                if message := self._capture.capture(change):
                    self._require_transaction("a row")
                    transaction = self.progress.publish()
                    await self._outlet.publish(message, lambda: self._settle(transaction))
            case Begin():
                if self.progress.in_transaction:
                    raise StreamGap(f"transaction {change.xid} begins before the one before it has ended")
                self.progress.begin(change.committed_at)
            case Commit():
                self._require_transaction("a commit")
                self.progress.commit(change.end_lsn)
                self._wake()
            case Relation():
                self._capture.describe(change)

    def _require_transaction(self, what: str) -> None:
        if not self.progress.in_transaction:
            raise StreamGap(f"{what} comes outside of a transaction")

    def _settle(self, transaction: Transaction) -> None:
        self.progress.settle(transaction)
        self._wake()

    def _wake(self, *, asked: bool = False) -> None:
        if asked or self.progress.safe > self._reported:
            self._due.set()
