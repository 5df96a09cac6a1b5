"""Publishes the rows that are in tables when their capture begins."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Final
from uuid import uuid4

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from relay.capture.message import Malformed
from relay.capture.outbox import OutboxCapture
from relay.config import SourceSettings
from relay.daemon.capturing import Capturing
from relay.daemon.copy import Copy
from relay.daemon.outlet import Outlet
from relay.daemon.progress import Progress
from relay.log import SourceLog
from relay.parking.table import last_number
from relay.tasks import end
from relay.wal.captured import Captured, State, read_captured, write_captured
from relay.wal.connection import connect
from relay.wal.lsn import NOWHERE
from relay.wal.slot import open_transactions
from relay.wal.stream import Snapshot, Stream
from relay.wal.table import TableName

SLOT_PATIENCE_S: Final = 5.0
"""How long the creation of a slot may take before the log says whom it waits for."""

SLOT_LETTERS: Final = 40
"""Of the source's slot in the name of a temporary one, which may have 63."""

NUMBERS_FROM: Final = 1 << 40
"""Copied rows are numbered from here on, but those of relay.outbox, whose `seq` stays below in anybody's lifetime.
Their place, at LSN 0, is before everything that a stream brings, and after what is parked of earlier copies."""


class Copier:
    """Publishes what is older than a slot, before the stream begins."""

    def __init__(
        self,
        source: SourceSettings,
        control: AsyncConnection[TupleRow],
        capturing: Capturing,
        outlet: Outlet,
        log: SourceLog,
    ) -> None:
        self._dsn = source.dsn.get_secret_value()
        self._label = f"saga-relay {source.name}"
        self._slot = source.slot
        self._control = control
        self._capturing = capturing
        self._outlet = outlet
        self._log = log

    async def create_slot(self, stream: Stream, slot: str, *, temporary: bool = False) -> Snapshot:
        """Create a slot; the log says whom PostgreSQL waits for, if that takes long."""
        creating = asyncio.ensure_future(stream.create_slot(slot, temporary=temporary))
        try:
            done, _ = await asyncio.wait({creating}, timeout=SLOT_PATIENCE_S)
            if not done:
                who = await open_transactions(self._control, SLOT_PATIENCE_S)
                words = f"PostgreSQL creates the slot once these open transactions have ended: {who}"
                self._log.warning("slot_waits", words)
            return await creating
        finally:
            await end(creating)

    async def first(self, snapshot: Snapshot, tables: Mapping[TableName, Captured]) -> None:
        """Publish what was there before the source's slot."""
        published = await self._copy(snapshot.name, tables)
        await self._outlet.backlog_settled()
        self._log.info("backlog_published", f"published {published} messages that were older than the slot")

    async def again(self, tables: Mapping[TableName, Captured]) -> None:
        """Publish what is there now, as a crash interrupted the first time. The slot stays: what committed since it was
        created comes by the stream, and some of it by the copy as well.
        """
        async with self._snapshot() as snapshot:
            await self.first(snapshot, tables)

    async def late(self, tables: Mapping[TableName, Captured]) -> None:
        """Publish what was in tables before they were captured, beside a slot that has been there for longer.

        A temporary slot tells where that is: what of these tables committed before it is in its snapshot, and is passed
        over when the stream brings it. When a crash interrupts a copy, its place stays that of the first attempt: what
        was deleted since is in no later snapshot, and only the stream tells of it.
        """
        every = await read_captured(self._control, self._slot)
        async with self._snapshot() as snapshot:
            begun = {table: one._replace(since=one.since or snapshot.consistent) for table, one in tables.items()}
            await write_captured(self._control, self._slot, every | begun)
            published = await self._copy(snapshot.name, begun)
            await self._outlet.settled()
            done = {table: one._replace(state=State.STREAMING) for table, one in begun.items()}
            await write_captured(self._control, self._slot, every | done)
        names = ", ".join(map(str, tables))
        self._log.info("tables_copied", f"published {published} messages of rows that were in {names} before")

    @asynccontextmanager
    async def _snapshot(self) -> AsyncIterator[Snapshot]:
        """A snapshot whose place in the WAL is known: that of a slot which is there for no longer than this."""
        stream = await Stream.open(self._dsn, name=self._label)
        try:
            yield await self.create_slot(stream, f"{self._slot[:SLOT_LETTERS]}_copy_{uuid4().hex[:8]}", temporary=True)
        finally:
            await stream.close()

    async def _copy(self, snapshot: str, tables: Mapping[TableName, Captured]) -> int:
        """Publish as if it were one transaction: there is no LSN to advance."""
        rows = Progress(NOWHERE)
        rows.begin(NOWHERE, datetime.now(UTC))
        before = self._outlet.published
        number = max(NUMBERS_FROM, await last_number(self._control, self._slot) + 1)
        connection = await connect(self._dsn, name=self._label)
        try:
            copy = Copy(connection)
            await copy.begin(snapshot)
            ordered = sorted(tables, key=lambda table: not self._is_outbox(table))
            for table in ordered:
                capture = self._capturing.capture_of(table)
                async for seq, message in copy.messages(table, capture, tables[table].copy_id):
                    number += seq is None
                    ordinal = number if seq is None else seq
                    await self._outlet.room()
                    if isinstance(message, Malformed):
                        self._outlet.set_aside(message, rows.publish(), ordinal)
                    else:
                        self._outlet.publish(message, rows.publish(), ordinal)
        finally:
            await connection.close()
        return self._outlet.published - before

    def _is_outbox(self, table: TableName) -> bool:
        return isinstance(self._capturing.capture_of(table), OutboxCapture)
