"""How a source starts: it waits for its turn, and sees to its slot and to the rows that were there before it."""

import asyncio
from datetime import UTC, datetime
from typing import Final

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from relay.config import SourceSettings
from relay.daemon.backlog import backlog
from relay.daemon.outlet import Outlet
from relay.daemon.progress import Progress
from relay.daemon.status import SourceStatus
from relay.daemon.status import State as Standing
from relay.log import SourceLog
from relay.tasks import end
from relay.wal.checkpoint import State, read_checkpoint, write_state
from relay.wal.connection import address, database, fetch_one, listen
from relay.wal.lsn import NOWHERE, format_lsn
from relay.wal.slot import (
    PublicationMissing,
    SlotMissing,
    create_publication,
    drop_slot,
    find_slot,
    open_transactions,
    publication_exists,
    verify_publication,
)
from relay.wal.stream import Stream

STANDBY_POLL_S: Final = 1.0
"""How often a second instance looks whether the first is gone."""

SLOT_PATIENCE_S: Final = 5.0
"""How long the creation of a slot may take before the log says whom it waits for."""

LOCK_CLASS: Final = 0x72656C79
"""First half of the advisory lock that the active relay of a slot holds. (The letters "rely".)"""


class Start:
    """What has to be so before a source can stream. `control` is its SQL connection, in autocommit mode."""

    def __init__(
        self, source: SourceSettings, control: AsyncConnection[TupleRow], status: SourceStatus, log: SourceLog
    ) -> None:
        self._name = source.name
        self._slot = source.slot
        self._publication = source.publication
        self._dsn = source.dsn.get_secret_value()
        self._control = control
        self._status = status
        self._log = log

    async def turn(self) -> None:
        """Wait until no other relay works on this slot. The lock goes with the connection, however that ends."""
        query = "SELECT pg_try_advisory_lock(%s, hashtext(%s))"
        waiting = False
        while await fetch_one(self._control, query, (LOCK_CLASS, self._slot)) != (True,):
            if not waiting:
                self._status.became(Standing.STANDBY)
                self._log.info("standby", f"another relay works on slot {self._slot}: waiting for it to end")
            waiting = True
            await listen(self._control, STANDBY_POLL_S)
        self._status.became(Standing.STARTING, "it is about to stream")
        self._log.info("active", f"working on {address(self._dsn)}")

    async def prepare(self, stream: Stream, outlet: Outlet) -> None:
        """See to it that there is a slot to stream from, and that everything older than it is published."""
        checkpoint = await read_checkpoint(self._control, self._slot)
        slot = await find_slot(self._control, self._slot)
        if checkpoint is not None and checkpoint.state is State.STREAMING and slot is None:
            since = f" after {format_lsn(checkpoint.flush_lsn)}" if checkpoint.flush_lsn else ""
            raise SlotMissing(f"slot {self._slot} is gone: what was committed{since} may not have been published")
        if slot is not None and (checkpoint is None or checkpoint.state is State.STREAMING):
            slot.verify(database(self._dsn))
            if not await publication_exists(self._control, self._publication):
                raise PublicationMissing(f"publication {self._publication} of source {self._name} is gone")
            await verify_publication(self._control, self._publication)
            if checkpoint is None:
                await write_state(self._control, self._slot, State.STREAMING)
                words = f"slot {self._slot} was there already: rows older than it are not published"
                self._log.warning("slot_adopted", words)
            return
        if slot is not None:
            slot.verify_owner(database(self._dsn))
            await drop_slot(self._control, self._slot)
        await self._first_start(stream, outlet)

    async def _first_start(self, stream: Stream, outlet: Outlet) -> None:
        """Publication, slot, and the rows that were committed before the slot.

        A crash before the last line leaves the state at "copying": then the slot is dropped, and all this begins again.
        """
        if not await publication_exists(self._control, self._publication):
            await create_publication(self._control, self._publication)
            self._log.info("publication_created", f"created publication {self._publication}")
        await verify_publication(self._control, self._publication)
        await write_state(self._control, self._slot, State.COPYING)
        snapshot = await self._create_slot(stream)
        self._log.info("slot_created", f"created slot {self._slot}")
        await self._copy(snapshot, outlet)
        await write_state(self._control, self._slot, State.STREAMING)

    async def _create_slot(self, stream: Stream) -> str:
        creating = asyncio.ensure_future(stream.create_slot(self._slot))
        try:
            done, _ = await asyncio.wait({creating}, timeout=SLOT_PATIENCE_S)
            if not done:
                who = await open_transactions(self._control, SLOT_PATIENCE_S)
                words = f"PostgreSQL creates the slot once these open transactions have ended: {who}"
                self._log.warning("slot_waits", words)
            return await creating
        finally:
            await end(creating)

    async def _copy(self, snapshot: str, outlet: Outlet) -> None:
        """Publish what was there before the slot, as if it were one transaction: there is no LSN to advance."""
        rows = Progress(NOWHERE)
        rows.begin(NOWHERE, datetime.now(UTC))
        async for seq, message in backlog(self._control, snapshot):
            await outlet.room()
            outlet.publish(message, rows.publish(), seq)
        await outlet.backlog_settled()
        self._log.info("backlog_published", f"published {outlet.published} messages that were older than the slot")
