"""One source from connecting to hanging up: its turn, its slot, its pump, its checkpoint."""

import asyncio
import logging
from contextlib import AsyncExitStack, suppress
from datetime import datetime
from typing import Any, Final

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from relay.broker.connection import Connection
from relay.broker.topology import declare_exchanges
from relay.config import SourceSettings
from relay.daemon.backlog import backlog
from relay.daemon.outlet import Outlet
from relay.daemon.pump import Pump
from relay.errors import BrokerAway, SourceAway
from relay.tasks import end
from relay.wal.checkpoint import State, read_checkpoint, write_progress, write_state
from relay.wal.connection import address, connect, database, fetch_one, refusal
from relay.wal.lsn import format_lsn
from relay.wal.slot import (
    PublicationMissing,
    SlotMissing,
    create_publication,
    drop_slot,
    find_slot,
    open_transactions,
    publication_exists,
    verify_publication,
    verify_server,
)
from relay.wal.stream import Stream

log = logging.getLogger(__name__)

STANDBY_POLL_S: Final = 1.0
"""How often a second instance looks whether the first is gone."""

CHECKPOINT_EVERY_S: Final = 1.0
"""How often relay.checkpoint is written while there is traffic."""

STATUS_EVERY_S: Final = 10.0
"""The longest silence towards PostgreSQL; a quarter of its wal_sender_timeout where that is shorter."""

DRAIN_S: Final = 10.0
"""How long a stop waits for the end of the transaction being read, and for confirms."""

LAST_WORDS_S: Final = 5.0
"""How long the last report and the last checkpoint may take."""

SLOT_PATIENCE_S: Final = 5.0
"""How long the creation of a slot may take before the log says whom it waits for."""

LOCK_CLASS: Final = 0x72656C79
"""First half of the advisory lock that the active relay of a slot holds. (The letters "rely".)"""


class Session:
    """One attempt to keep a source flowing. Made anew after every loss of a connection."""

    def __init__(self, source: SourceSettings, broker_url: str) -> None:
        self._name = source.name
        self._slot = source.slot
        self._publication = source.publication
        self._dsn = source.dsn.get_secret_value()
        self._broker_url = broker_url
        self._stopping = asyncio.Event()
        self.streaming = False
        """Whether it got as far as streaming: then it can be stopped in good order."""
        self.progressed = False
        """Whether anything was settled: if not, the same trouble may meet the next attempt, which need not hurry."""

    def stop(self) -> None:
        """Let `run` end in good order. Only of use once it streams; before that, cancel it."""
        self._stopping.set()

    async def run(self) -> None:
        """Publish until stopped. Raises SourceAway or BrokerAway when a new session may help, or another RelayError."""
        try:
            async with AsyncExitStack() as stack:
                await self._run(stack)
        except psycopg.Error as error:
            raise refusal(error, self._dsn) from None

    async def _run(self, stack: AsyncExitStack) -> None:
        label = f"saga-relay {self._name}"
        control = await connect(self._dsn, name=label)
        stack.push_async_callback(control.close)
        await verify_server(control)
        await self._turn(control)
        broker = await Connection.open(self._broker_url, name=label)
        stack.push_async_callback(broker.close)
        await declare_exchanges(await broker.channel())
        outlet = await Outlet.open(broker, self._name)
        stream = await Stream.open(self._dsn, name=label)
        stack.push_async_callback(stream.close)
        await self._prepare(control, stream, outlet)
        slot = await find_slot(control, self._slot)
        if slot is None:
            raise SourceAway(f"slot {self._slot} was dropped just now")
        await stream.start(self._slot, self._publication)
        self._say("streaming", f"streaming from {format_lsn(slot.confirmed_flush_lsn)}")
        self.streaming = True
        await self._flow(control, outlet, Pump(stream, outlet, slot.confirmed_flush_lsn))

    async def _turn(self, control: AsyncConnection[TupleRow]) -> None:
        """Wait until no other relay works on this slot. The lock goes with the connection, however that ends."""
        query = "SELECT pg_try_advisory_lock(%s, hashtext(%s))"
        waiting = False
        while await fetch_one(control, query, (LOCK_CLASS, self._slot)) != (True,):
            if not waiting:
                self._say("standby", f"another relay works on slot {self._slot}: waiting for it to end")
            waiting = True
            await _listen(control, STANDBY_POLL_S)
        self._say("active", f"working on {address(self._dsn)}")

    async def _prepare(self, control: AsyncConnection[TupleRow], stream: Stream, outlet: Outlet) -> None:
        """See to it that there is a slot to stream from, and that everything older than it is published."""
        checkpoint = await read_checkpoint(control, self._slot)
        slot = await find_slot(control, self._slot)
        if checkpoint is not None and checkpoint.state is State.STREAMING and slot is None:
            since = f" after {format_lsn(checkpoint.flush_lsn)}" if checkpoint.flush_lsn else ""
            raise SlotMissing(f"slot {self._slot} is gone: what was committed{since} may not have been published")
        if slot is not None and (checkpoint is None or checkpoint.state is State.STREAMING):
            slot.verify(database(self._dsn))
            if not await publication_exists(control, self._publication):
                raise PublicationMissing(f"publication {self._publication} of source {self._name} is gone")
            await verify_publication(control, self._publication)
            if checkpoint is None:
                await write_state(control, self._slot, State.STREAMING)
                words = f"slot {self._slot} was there already: rows older than it are not published"
                self._say("slot_adopted", words, logging.WARNING)
            return
        if slot is not None:
            slot.verify_owner(database(self._dsn))
            await drop_slot(control, self._slot)
        await self._first_start(control, stream, outlet)

    async def _first_start(self, control: AsyncConnection[TupleRow], stream: Stream, outlet: Outlet) -> None:
        """Publication, slot, and the rows that were committed before the slot.

        A crash before the last line leaves the state at "copying": then the slot is dropped, and all this begins again.
        """
        if not await publication_exists(control, self._publication):
            await create_publication(control, self._publication)
            self._say("publication_created", f"created publication {self._publication}")
        await verify_publication(control, self._publication)
        await write_state(control, self._slot, State.COPYING)
        snapshot = await self._create_slot(control, stream)
        self._say("slot_created", f"created slot {self._slot}")
        await outlet.guard(self._copy(control, snapshot, outlet))
        await write_state(control, self._slot, State.STREAMING)

    async def _create_slot(self, control: AsyncConnection[TupleRow], stream: Stream) -> str:
        creating = asyncio.ensure_future(stream.create_slot(self._slot))
        try:
            done, _ = await asyncio.wait({creating}, timeout=SLOT_PATIENCE_S)
            if not done:
                who = await open_transactions(control, SLOT_PATIENCE_S)
                words = f"PostgreSQL creates the slot once these open transactions have ended: {who}"
                self._say("slot_waits", words, logging.WARNING)
            return await creating
        finally:
            await end(creating)

    async def _copy(self, control: AsyncConnection[TupleRow], snapshot: str, outlet: Outlet) -> None:
        async for message in backlog(control, snapshot):
            await outlet.publish(message, _nothing)
        await outlet.drained()
        self._say("backlog_published", f"published {outlet.published} messages that were older than the slot")

    async def _flow(self, control: AsyncConnection[TupleRow], outlet: Outlet, pump: Pump) -> None:
        """Pump until stopped, or until something breaks. What is settled by then is reported in any case."""
        confirmed = pump.progress.safe
        keeper = _CheckpointKeeper(control, self._slot, outlet, pump)
        reading = asyncio.ensure_future(outlet.guard(pump.read()))
        beside: list[asyncio.Future[None]] = [
            asyncio.ensure_future(pump.report(await _status_interval(control))),
            asyncio.ensure_future(keeper.run()),
        ]
        stopped = asyncio.ensure_future(self._stopping.wait())
        tasks: list[asyncio.Future[Any]] = [reading, *beside, stopped]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in (reading, *beside):
                if task.done():
                    task.result()
            await self._drain(reading, outlet, pump)
        finally:
            self.progressed = pump.progress.safe > confirmed
            await end(*tasks)
            with suppress(SourceAway, psycopg.Error, TimeoutError):
                async with asyncio.timeout(LAST_WORDS_S):
                    await pump.report_now()
                    await keeper.write_news()
        unheard = sum(outlet.unheard.values())
        where = format_lsn(pump.progress.safe)
        self._say("stopped", f"stopped at {where}, with {outlet.in_flight} in flight; {unheard} events were unheard")

    async def _drain(self, reading: "asyncio.Future[None]", outlet: Outlet, pump: Pump) -> None:
        """Read to the end of the transaction and wait for the confirms, within a bound, and while the broker is there.

        What is unconfirmed then is not lost: PostgreSQL is not told of it, and the next start publishes it again.
        """
        pump.stop()
        if pump.at_rest:
            reading.cancel()
        with suppress(TimeoutError, BrokerAway):
            async with asyncio.timeout(DRAIN_S):
                await asyncio.wait({reading})
                if not reading.cancelled():
                    reading.result()
                await outlet.guard(outlet.drained())

    def _say(self, action: str, words: str, level: int = logging.INFO) -> None:
        log.log(level, "%s: %s", self._name, words, extra={"action": action, "source": self._name, "slot": self._slot})


class _CheckpointKeeper:
    """Writes relay.checkpoint while there is traffic, and only then: an idle relay writes no WAL of its own."""

    def __init__(self, control: AsyncConnection[TupleRow], slot: str, outlet: Outlet, pump: Pump) -> None:
        self._control = control
        self._slot = slot
        self._outlet = outlet
        self._progress = pump.progress
        self._written: tuple[int, datetime | None] | None = None  # what the session before this one wrote is stale

    async def run(self) -> None:
        """Write every CHECKPOINT_EVERY_S, until cancelled or until the connection ends.

        The connection is listened to all the while: it is the one that PostgreSQL closes when it is told to shut down,
        whereas it would wait for the replication connection as long as that answers.
        """
        while True:
            await _listen(self._control, CHECKPOINT_EVERY_S)
            await self.write_news()

    async def write_news(self) -> None:
        """Write what has changed since the last time: also that time has passed while something is outstanding."""
        oldest = self._progress.oldest_unsettled_commit_at
        news = (self._outlet.published, oldest)
        if news != self._written or oldest is not None:
            await write_progress(self._control, self._slot, self._progress.safe, oldest)
            self._written = news


def _nothing() -> None:
    """A row of the backlog is settled: its snapshot is not a position in the log, so there is nothing to advance."""


async def _listen(connection: AsyncConnection[TupleRow], seconds: float) -> None:
    """Wait, and notice at once when the server ends the connection."""
    async for _ in connection.notifies(timeout=seconds):
        pass


async def _status_interval(connection: AsyncConnection[TupleRow]) -> float:
    row = await fetch_one(connection, "SELECT setting::float / 1000 FROM pg_settings WHERE name = 'wal_sender_timeout'")
    timeout_s = row[0] if row else 0.0
    return min(STATUS_EVERY_S, timeout_s / 4) if timeout_s else STATUS_EVERY_S
