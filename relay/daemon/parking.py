"""Sets aside what cannot be published, and publishes or drops it when an operator asks for that."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Final, NamedTuple, Self

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from relay.capture.message import Message
from relay.daemon.replayer import Replay, Replayer
from relay.errors import RelayError, SourceError
from relay.log import SourceLog
from relay.parking import request as requests
from relay.parking import table
from relay.parking.index import Index, Reason, Refusal
from relay.parking.table import Parked
from relay.tasks import end
from relay.wal.connection import address, connect, refusal
from relay.wal.lsn import Position

BATCH: Final = 500
BATCH_BYTES: Final = 4 * 1024 * 1024
"""Messages that are stored by one INSERT, and their payloads, unless one alone has more."""

PENDING: Final = 1000
PENDING_BYTES: Final = 8 * 1024 * 1024
"""Messages that wait to be stored, and their payloads; then reading stops."""

TIDY_EVERY_S: Final = 60.0
"""How often what the slot can never send again is forgotten."""

REPORT_EVERY_S: Final = 10.0
"""The log tells of parked messages at most so often."""

TURN_S: Final = 5.0
"""How long the session before this one may take to let go of the parked messages."""

LOCK_CLASS: Final = 0x7061726B
"""First half of the advisory lock of whoever works on the parked messages of a slot. (The letters "park".)"""

_DISK_FULL: Final = "53100"


class ParkingFull(RelayError):
    """More messages than `parked_limit` would be parked."""

    hint = (
        "Mend the cause, ask for `relay parked replay` or `relay parked drop`, and start the relay meanwhile, which "
        "sees to that. Or raise parked_limit. Nothing is lost: the stream stays before what could not be parked."
    )


class _Pending(NamedTuple):
    """A message that is not stored yet."""

    row: Parked
    settled: Callable[[], None]


class Parking:
    """The parked messages of one source, for one session. It has a connection of its own.

    What is parked is in `index` at once, and soon in relay.parked: `settled` is called when that is committed, in the
    order of the calls. Nothing is ever dropped to make room: the source stops.
    """

    def __init__(self, dsn: str, slot: str, limit: int, log: SourceLog) -> None:
        self._dsn = dsn
        self._slot = slot
        self._limit = limit
        self._log = log
        self._connection: AsyncConnection[TupleRow]
        self._replayer: Replayer | None = None
        self._pending: deque[_Pending] = deque()
        self._pending_bytes = 0
        self._asked = asyncio.Event()
        self._asked.set()  # somebody may have asked while no relay was there
        self._news = asyncio.Event()
        self._at_rest = asyncio.Event()
        self._reread = asyncio.Event()
        self._untold = 0
        self._first_untold: Parked | None = None
        self._news_to_tell = asyncio.Event()
        self._held = False
        self._on_change: Callable[[], None] = lambda: None
        self.index = Index()
        """What is to become of a message: see there."""

    @classmethod
    async def open(cls, dsn: str, name: str, slot: str, limit: int, log: SourceLog) -> Self:
        """Connect, and find out what is parked. To be called when it is our turn, before the stream begins.

        `name` is what pg_stat_activity shows, `limit` is how many messages may be parked. Raises SourceAway, or another
        SourceError when a table or a right is missing.
        """
        parking = cls(dsn, slot, limit, log)
        parking._connection = await connect(dsn, name=name)
        try:
            with parking._refusals():
                await parking._load()
        except BaseException:
            await parking.close()
            raise
        return parking

    async def close(self) -> None:
        """Hang up. What is pending stays unsettled."""
        await self._connection.close()

    @property
    def pending(self) -> int:
        """How many messages are not stored yet."""
        return len(self._pending)

    @property
    def has_room(self) -> bool:
        """Whether reading may go on."""
        full = len(self._pending) >= PENDING or self._pending_bytes >= PENDING_BYTES or self.index.count > self._limit
        return not full and not self._held

    def park(
        self, message: Message, position: Position, reason: Reason, detail: str, settled: Callable[[], None]
    ) -> None:
        """Set a message aside; `settled` is called when that is committed. What comes behind it waits from now on.

        Beyond the limit it is not stored, unless an operator's request makes room: `run` raises.
        """
        row = Parked(message, position, Refusal(reason, detail))
        self.index.park(position, message.lane, reason)
        self._pending.append(_Pending(row, settled))
        self._pending_bytes += row.size_bytes
        self._look_again()

    def wake(self) -> None:
        """An operator has asked for something: the channel ASKED says so."""
        self._asked.set()

    def backlog_done(self) -> None:
        """The rows that are older than the slot have all come: none of them comes again."""
        self.index.forget()

    async def run(self, replay: Replay, on_change: Callable[[], None]) -> None:
        """Store what is parked, and do what operators ask. Runs until cancelled; raises what stops the source.

        `on_change` is called when `pending` or `has_room` may have changed. Raises ParkingFull; SourceError when a
        table or a right is missing, or a disk is full; SourceAway when the connection is lost.
        """
        self._on_change = on_change
        self._replayer = Replayer(self._connection, self._slot, self, replay, self._log)
        work = (self._store(), self._replayer.run(self._asked), self._tidy(), self._report())
        tasks = [asyncio.ensure_future(one) for one in work]
        try:
            with self._refusals():
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:
                    if task.done():
                        task.result()
        finally:
            await end(*tasks)

    def unstored(self) -> set[Position]:
        """The positions that are not in the table yet."""
        return {one.row.position for one in self._pending}

    async def at_rest(self) -> None:
        """Wait until everything is stored that there is room for."""
        await self._at_rest.wait()

    async def reread(self) -> None:
        """Wait until the stream has come past everything that it sends again."""
        await self._reread.wait()

    def hold(self, held: bool) -> None:
        """Let nothing new come, or let it come again."""
        self._held = held
        self._on_change()

    def made_room(self) -> None:
        """Messages were taken out of the table and of the index, or a request has come to its end."""
        self._look_again()
        self._on_change()

    async def _load(self) -> None:
        # An off would let the LSN pass before the row is durable; whatever else the role is set to is durable enough.
        await self._connection.execute(
            "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
        )
        await self._take_turn()
        await table.verify_rights(self._connection, self._dsn)
        memory = await table.load(self._connection, self._slot)
        self.index = Index(*memory, self._reread.set)
        if self.index.reread:
            self._reread.set()

    async def _take_turn(self) -> None:
        """Nobody else works on these messages: a session that has lost its other connections may still be about to."""
        await self._connection.execute("SELECT set_config('lock_timeout', %s, false)", (f"{TURN_S:g}s",))
        await self._connection.execute("SELECT pg_advisory_lock(%s, hashtext(%s))", (LOCK_CLASS, self._slot))
        await self._connection.execute("RESET lock_timeout")

    def _look_again(self) -> None:
        self._news.set()
        self._at_rest.clear()

    async def _store(self) -> None:
        """Store what is pending, batch by batch."""
        while True:
            self._news.clear()
            batch = self._batch()
            if batch:
                await table.insert(self._connection, self._slot, [one.row for one in batch])
                self._settle(batch)
                continue
            self._at_rest.set()
            if self._pending:
                await self._expect_room()
            await self._news.wait()

    def _batch(self) -> list[_Pending]:
        """The first that are pending, as far as there is room for them in the table."""
        room = self._limit - (self.index.count - len(self._pending))
        batch: list[_Pending] = []
        size_bytes = 0
        for one in islice(self._pending, max(0, min(room, BATCH))):
            size_bytes += one.row.size_bytes
            if batch and size_bytes > BATCH_BYTES:
                break
            batch.append(one)
        return batch

    def _settle(self, batch: list[_Pending]) -> None:
        for one in batch:
            self._pending.popleft()
            self._pending_bytes -= one.row.size_bytes
            one.settled()
        self._first_untold = self._first_untold or batch[0].row
        self._untold += len(batch)
        self._news_to_tell.set()
        self._on_change()

    async def _expect_room(self) -> None:
        """The table is full. Raise ParkingFull, unless there are requests that may make room."""
        waits = self._replayer is not None and self._replayer.waits
        if waits or not await requests.is_open(self._connection, self._slot):
            raise ParkingFull(
                f"{self._limit} messages are parked, as many as parked_limit allows, and one more cannot be published: "
                f"{self._pending[0].row.message}: {self._pending[0].row.refusal.detail}"
            )
        self._asked.set()

    async def _tidy(self) -> None:
        while True:
            await table.forget(self._connection, self._slot)
            await requests.discard(self._connection, self._slot)
            await asyncio.sleep(TIDY_EVERY_S)

    async def _report(self) -> None:
        """Tell the log of what has been parked: at once, and then every REPORT_EVERY_S while there is more."""
        while True:
            await self._news_to_tell.wait()
            self._news_to_tell.clear()
            first, count = self._first_untold, self._untold
            self._first_untold, self._untold = None, 0
            if first is not None:
                refused = f"{first.message}: {first.refusal.detail}"
                messages = "1 message" if count == 1 else f"{count} messages"
                words = f"parked {messages}, {self.index.count} by now in all; the first is {refused}"
                self._log.warning("parked", words, reason=first.refusal.reason, count=count, parked=self.index.count)
            await asyncio.sleep(REPORT_EVERY_S)

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Raise what an error of PostgreSQL means. To psycopg a full disk is a server that is away; it is not."""
        try:
            yield
        except psycopg.Error as error:
            if error.sqlstate == _DISK_FULL:
                hint = "Free some space on the server's disk, and start the relay again. Nothing is lost."
                message = (
                    f"PostgreSQL at {address(self._dsn)} has no room for a parked message: {error.diag.message_primary}"
                )
                raise SourceError(message, hint) from None
            raise refusal(error, self._dsn) from None
