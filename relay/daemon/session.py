"""One source from connecting to hanging up: its start, its pump, and what runs beside it."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from typing import Final

import psycopg
from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow

from relay.broker.layout import Partitioned
from relay.config import BrokerSettings, SourceSettings
from relay.daemon.keeper import Keeper
from relay.daemon.outlet import Outlet
from relay.daemon.parking import Parking
from relay.daemon.partitions import Partitions
from relay.daemon.pump import Pump
from relay.daemon.start import Prepared, Start
from relay.daemon.status import SourceStatus, State
from relay.errors import SourceAway
from relay.log import SourceLog
from relay.parking.request import ASKED
from relay.tasks import Beside, end
from relay.wal.connection import connect, fetch_one, listen, refusal
from relay.wal.description import Descriptions
from relay.wal.lsn import format_lsn
from relay.wal.slot import find_slot, verify_asynchronous, verify_server
from relay.wal.stream import Stream

STATUS_EVERY_S: Final = 10.0
"""The longest silence towards PostgreSQL; a quarter of its wal_sender_timeout where that is shorter."""

NEVER_S: Final = 365 * 24 * 3600.0
"""Longer than anything waits."""

DRAIN_S: Final = 10.0
"""How long a stop waits for the end of the transaction being read, and for confirms."""

LAST_WORDS_S: Final = 5.0
"""How long the last report and the last checkpoint may take."""


class Session:
    """One attempt to keep a source flowing. Made anew after every loss of a connection to PostgreSQL.

    The broker may come and go meanwhile: see Uplink.
    """

    def __init__(
        self,
        source: SourceSettings,
        broker: BrokerSettings,
        status: SourceStatus,
        groups: Sequence[Partitioned] = (),
    ) -> None:
        self._source = source
        self._dsn = source.dsn.get_secret_value()
        self._label = f"saga-relay {source.name}"
        self._log = SourceLog(source.name, source.slot)
        self._broker = broker
        self._groups = groups
        self._status = status
        self._stopping = asyncio.Event()
        self.streaming = False
        """Whether it got as far as streaming: then it can be stopped in good order."""
        self.progressed = False
        """Whether anything was settled: if not, the same trouble may meet the next attempt, which need not hurry."""

    def stop(self) -> None:
        """Let `run` end in good order. Only of use once it streams; before that, cancel it."""
        self._stopping.set()

    async def run(self) -> None:
        """Publish until stopped. Raises SourceAway when a new session may help, or another RelayError."""
        try:
            async with AsyncExitStack() as stack:
                await self._run(stack)
        except psycopg.Error as error:
            raise refusal(error, self._dsn) from None

    async def _run(self, stack: AsyncExitStack) -> None:
        control = await connect(self._dsn, name=self._label)
        stack.push_async_callback(control.close)
        # What it writes need not wait for a standby. If the relay were that standby, it would wait for itself.
        await control.execute("SET synchronous_commit = local")
        await control.execute(sql.SQL("LISTEN {}").format(sql.Identifier(ASKED)))
        await verify_server(control)
        start = Start(self._source, control, self._status, self._log)
        await start.turn()
        # Before anything else: a COMMIT that waits for us holds up the creation of a slot.
        await verify_asynchronous(control, self._label)
        parking = await Parking.open(self._dsn, self._label, self._source.slot, self._source.parked_limit, self._log)
        stack.push_async_callback(parking.close)
        outlet = Outlet(self._source, self._broker, parking, self._status, self._log, self._groups)
        async with Beside(outlet.run(), parking.run(outlet.replay, outlet.changed)) as beside:
            stream, prepared = await beside.do(self._open(control, outlet, start, parking))
            stack.push_async_callback(stream.close)
            descriptions = await stack.enter_async_context(Descriptions(self._dsn, self._label))
            slot = await find_slot(control, self._source.slot)
            if slot is None:
                raise SourceAway(f"slot {self._source.slot} was dropped just now")
            await stream.start(self._source.slot, prepared.publications)
            pump = Pump(stream, outlet, slot.confirmed_flush_lsn, prepared.captures, descriptions, self._log)
            keeper = Keeper(control, self._label, self._source.slot, outlet, pump.progress, parking, prepared.until)
            beside.add(pump.report(await _status_interval(control)), keeper.run(), self._partitions(pump).run())
            await self._flow(beside, outlet, pump, keeper)

    async def _open(
        self, control: AsyncConnection[TupleRow], outlet: Outlet, start: Start, parking: Parking
    ) -> tuple[Stream, Prepared]:
        """All that comes before the stream. The broker is first: a new slot's snapshot is not to be held for it."""
        listening = asyncio.ensure_future(_listen(control, parking))
        connected = asyncio.ensure_future(outlet.connected())
        try:
            await asyncio.wait({listening, connected}, return_when=asyncio.FIRST_COMPLETED)
            if not connected.done():
                listening.result()
        finally:
            await end(listening, connected)
        stream = await Stream.open(self._dsn, name=self._label)
        try:
            return stream, await start.prepare(stream, outlet)
        except BaseException:
            await stream.close()
            raise

    def _partitions(self, pump: Pump) -> Partitions:
        return Partitions(self._dsn, self._label, self._source.outbox_retention, lambda: pump.progress.safe, self._log)

    async def _flow(self, beside: Beside, outlet: Outlet, pump: Pump, keeper: Keeper) -> None:
        """Pump until stopped, or until something breaks. What is settled by then is reported in any case."""
        confirmed = pump.progress.safe
        reading = asyncio.ensure_future(pump.read())
        stopped = asyncio.ensure_future(self._stopping.wait())
        self._log.info("streaming", f"streaming from {format_lsn(confirmed)}")
        self._status.became(State.ACTIVE)
        self.streaming = True
        try:
            await beside.do(asyncio.wait({reading, stopped}, return_when=asyncio.FIRST_COMPLETED))
            if reading.done():
                reading.result()
            await beside.do(self._drain(reading, outlet, pump))
        finally:
            self.progressed = pump.progress.safe > confirmed
            await end(reading, stopped)
            with suppress(SourceAway, psycopg.Error, TimeoutError):
                async with asyncio.timeout(LAST_WORDS_S):
                    await pump.report_now()
                    await keeper.write_news()
        where = format_lsn(pump.progress.safe)
        self._log.info("stopped", f"stopped at {where}, with {outlet.in_flight} in flight")

    async def _drain(self, reading: "asyncio.Future[None]", outlet: Outlet, pump: Pump) -> None:
        """Read to the end of the transaction and wait for the confirms, within a bound, and while the broker is there.

        What is unconfirmed then is not lost: PostgreSQL is not told of it, and the next start publishes it again.
        """
        pump.stop()
        if pump.at_rest:
            reading.cancel()
        finishing = asyncio.ensure_future(_finish(reading, outlet))
        away = asyncio.ensure_future(outlet.disconnected())
        try:
            await asyncio.wait({finishing, away}, timeout=DRAIN_S, return_when=asyncio.FIRST_COMPLETED)
            if finishing.done():
                finishing.result()
        finally:
            await end(finishing, away)


async def _listen(control: AsyncConnection[TupleRow], parking: Parking) -> None:
    """Hear of what operators ask. Runs until cancelled, or raises when the server hangs up."""
    while True:
        if await listen(control, NEVER_S):
            parking.wake()


async def _finish(reading: "asyncio.Future[None]", outlet: Outlet) -> None:
    await asyncio.wait({reading})
    if not reading.cancelled():
        reading.result()
    await outlet.settled()


async def _status_interval(connection: AsyncConnection[TupleRow]) -> float:
    row = await fetch_one(connection, "SELECT setting::float / 1000 FROM pg_settings WHERE name = 'wal_sender_timeout'")
    timeout_s = row[0] if row else 0.0
    return min(STATUS_EVERY_S, timeout_s / 4) if timeout_s else STATUS_EVERY_S
