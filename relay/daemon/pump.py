"""One source's stream: read, capture, publish, report."""

import asyncio
import time
from contextlib import suppress
from typing import Final

from relay.capture.captures import Captures
from relay.capture.message import Malformed
from relay.capture.message import Message as Captured
from relay.daemon.outlet import Outlet
from relay.daemon.progress import Progress, Transaction
from relay.log import SourceLog
from relay.wal.description import Descriptions
from relay.wal.lsn import Lsn, format_lsn
from relay.wal.pgoutput import (
    Begin,
    Commit,
    Delete,
    Insert,
    LogicalMessage,
    Message,
    Relation,
    Truncate,
    Update,
    decode,
)
from relay.wal.protocol import Keepalive, XLogData
from relay.wal.stream import Stream

REPORT_PAUSE_S: Final = 0.1
"""At most one status update in this time, unless PostgreSQL asks for one."""

LONG_S: Final = 5.0
"""A transaction that takes longer than this to be read is logged with its counts: then, at each doubling, and at its
end."""


class Pump:
    """Moves messages from a stream to an outlet, and tells PostgreSQL what is settled.

    A crash at any line leaves the slot where the last report put it: what was published after that is published again,
    under the same ids.
    """

    def __init__(
        self,
        stream: Stream,
        outlet: Outlet,
        confirmed: Lsn,
        captures: Captures,
        descriptions: Descriptions,
        log: SourceLog,
    ) -> None:
        self._stream = stream
        self._outlet = outlet
        self._captures = captures
        self._descriptions = descriptions
        self._due = asyncio.Event()
        self._stopping = False
        self._long = LongTransaction(log)
        self.progress = Progress(confirmed, self._due.set)

    def stop(self) -> None:
        """Let `read` return as soon as no transaction is half read."""
        self._stopping = True

    @property
    def at_rest(self) -> bool:
        """Whether it has been stopped and no transaction is half read."""
        return self._stopping and self.progress.transaction is None

    async def read(self) -> None:
        """Read, capture and publish until stopped. Raises what ends the stream, or what cannot be understood."""
        of_outbox, outlet = self._captures.of_outbox, self._outlet
        while not self.at_rest:
            for frame in await self._stream.read():
                if isinstance(frame, XLogData):
                    change = decode(frame.data)
                    if isinstance(change, Insert):  # the hot path: nearly all of a stream is rows of the outbox
                        message = of_outbox(change)
                        if message is not None:
                            transaction = self.progress.publish()
                            if not outlet.has_room:
                                await outlet.room()
                            outlet.publish(message, transaction, transaction.messages - 1)
                            continue
                    await self._take(change, frame.wal_start)
                else:
                    self._keepalive(frame)
                if self.at_rest:  # the rest of the batch is unread for PostgreSQL too, and comes again
                    return
            self._long.look(self.progress.transaction)

    async def report(self, every_s: float) -> None:
        """Send status updates when there is something to say, and at least every `every_s`. Runs until cancelled.

        They go out while the broker is away and in the middle of a transaction of any size, so that PostgreSQL does not
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
        await self._stream.report(self.progress.safe)

    async def _take(self, change: Message, lsn: Lsn) -> None:
        """Everything but rows of the outbox."""
        match change:
            case Begin():
                self._long.look(self.progress.begin(change.final_lsn, change.committed_at))
                self._captures.begin(change)
            case Commit():
                self._long.look(None)
                self._captures.end(change)
                self.progress.commit(change.end_lsn)
            case Relation():
                if self._captures.describe(change):
                    self._captures.learn(change, *await self._descriptions.types_and_key(change))
            case Insert() | Update() | Delete() | Truncate() | LogicalMessage():
                try:
                    for message in self._captures.messages(change, lsn):
                        await self._publish(message)
                except Malformed as malformed:
                    await self._publish(malformed.message, malformed)

    async def _publish(self, message: Captured, malformed: Malformed | None = None) -> None:
        """Hand a message over; one that is malformed, to be set aside."""
        transaction = self.progress.publish()
        if not self._outlet.has_room:
            await self._outlet.room()
        if malformed is None:
            self._outlet.publish(message, transaction, transaction.messages - 1)
        else:
            self._outlet.set_aside(malformed, transaction, transaction.messages - 1)

    def _keepalive(self, keepalive: Keepalive) -> None:
        self.progress.keepalive(keepalive.wal_end)
        if self.progress.transaction is None:
            self._outlet.passed(keepalive.wal_end)
        if keepalive.reply_requested:
            self._due.set()


class LongTransaction:
    """Says of a transaction that takes long to be read how far it has come."""

    def __init__(self, log: SourceLog) -> None:
        self._log = log
        self._of: Transaction | None = None
        self._since = 0.0
        self._said_at_s = 0.0

    def look(self, transaction: Transaction | None) -> None:
        """This transaction is being read now; None: it has just ended."""
        now = time.monotonic()
        lasts_s = now - self._since
        if transaction is not self._of:
            if self._of is not None and (self._said_at_s or lasts_s > LONG_S):
                self._say(self._of, "was", lasts_s)
            self._of, self._since, self._said_at_s = transaction, now, 0.0
        elif transaction is not None and lasts_s > max(LONG_S, 2 * self._said_at_s):
            self._said_at_s = lasts_s
            self._say(transaction, "has been", lasts_s)

    def _say(self, transaction: Transaction, verb: str, lasts_s: float) -> None:
        done = transaction.messages - transaction.unsettled
        words = (
            f"the transaction committed at {format_lsn(transaction.commit_lsn)} {verb} read for {lasts_s:.0f} s: "
            f"{transaction.messages} messages, {done} of them settled; the LSN is held until all are"
        )
        self._log.info("transaction_long", words, messages=transaction.messages, settled=done)
