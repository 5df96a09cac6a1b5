"""One source from connecting to hanging up: its start, its pump, its checkpoint."""

import asyncio
from contextlib import AsyncExitStack, suppress
from typing import Any, Final

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from relay.broker.connection import Connection
from relay.broker.topology import declare_exchanges
from relay.config import SourceSettings
from relay.daemon.keeper import CheckpointKeeper
from relay.daemon.outlet import Outlet
from relay.daemon.pump import Pump
from relay.daemon.start import Start
from relay.errors import BrokerAway, SourceAway
from relay.log import SourceLog
from relay.tasks import end
from relay.wal.connection import connect, fetch_one, refusal
from relay.wal.lsn import format_lsn
from relay.wal.slot import find_slot, verify_server
from relay.wal.stream import Stream

STATUS_EVERY_S: Final = 10.0
"""The longest silence towards PostgreSQL; a quarter of its wal_sender_timeout where that is shorter."""

DRAIN_S: Final = 10.0
"""How long a stop waits for the end of the transaction being read, and for confirms."""

LAST_WORDS_S: Final = 5.0
"""How long the last report and the last checkpoint may take."""


class Session:
    """One attempt to keep a source flowing. Made anew after every loss of a connection."""

    def __init__(self, source: SourceSettings, broker_url: str) -> None:
        self._source = source
        self._dsn = source.dsn.get_secret_value()
        self._log = SourceLog(source.name, source.slot)
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
        source, label = self._source, f"saga-relay {self._source.name}"
        control = await connect(self._dsn, name=label)
        stack.push_async_callback(control.close)
        await verify_server(control)
        start = Start(source, control, self._log)
        await start.turn()
        broker = await Connection.open(self._broker_url, name=label)
        stack.push_async_callback(broker.close)
        await declare_exchanges(await broker.channel())
        outlet = await Outlet.open(broker, source.name)
        stream = await Stream.open(self._dsn, name=label)
        stack.push_async_callback(stream.close)
        await start.prepare(stream, outlet)
        slot = await find_slot(control, source.slot)
        if slot is None:
            raise SourceAway(f"slot {source.slot} was dropped just now")
        await stream.start(source.slot, source.publication)
        self._log.info("streaming", f"streaming from {format_lsn(slot.confirmed_flush_lsn)}")
        self.streaming = True
        await self._flow(control, outlet, Pump(stream, outlet, slot.confirmed_flush_lsn))

    async def _flow(self, control: AsyncConnection[TupleRow], outlet: Outlet, pump: Pump) -> None:
        """Pump until stopped, or until something breaks. What is settled by then is reported in any case."""
        confirmed = pump.progress.safe
        keeper = CheckpointKeeper(control, self._source.slot, outlet, pump.progress)
        status_interval_s = await _status_interval(control)
        reading = asyncio.ensure_future(outlet.guard(pump.read()))
        beside: list[asyncio.Future[None]] = [
            asyncio.ensure_future(pump.report(status_interval_s)),
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
        self._log.info(
            "stopped", f"stopped at {where}, with {outlet.in_flight} in flight; {unheard} events were unheard"
        )

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


async def _status_interval(connection: AsyncConnection[TupleRow]) -> float:
    row = await fetch_one(connection, "SELECT setting::float / 1000 FROM pg_settings WHERE name = 'wal_sender_timeout'")
    timeout_s = row[0] if row else 0.0
    return min(STATUS_EVERY_S, timeout_s / 4) if timeout_s else STATUS_EVERY_S
