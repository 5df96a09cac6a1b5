"""Publishes the rows that are in tables when their capture begins."""

import asyncio
from collections.abc import Mapping
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
from relay.tasks import end
from relay.wal.captured import Captured, State, write_captured
from relay.wal.connection import connect
from relay.wal.lsn import NOWHERE, Lsn
from relay.wal.slot import open_transactions
from relay.wal.stream import Snapshot, Stream
from relay.wal.table import TableName

SLOT_PATIENCE_S: Final = 5.0
"""How long the creation of a slot may take before the log says whom it waits for."""

NUMBERS: Final = 1 << 40
"""So many rows are numbered for each table: more than a table may have that is copied in anybody's lifetime. Rows of
relay.outbox are numbered by their `seq`, below all others; and no transaction has so many messages, which makes the
place of a copied row unlike that of any row of the stream."""


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
        published = await self._copy(snapshot.name, tables, NOWHERE)
        await self._outlet.backlog_settled()
        self._log.info("backlog_published", f"published {published} messages that were older than the slot")

    async def late(self, tables: Mapping[TableName, Captured]) -> None:
        """Publish what was in tables before they were captured, beside a slot that has been there for longer.

        A temporary slot tells where that is: what of these tables committed before it is in its snapshot, and is passed
        over when the stream brings it.
        """
        names = ", ".join(map(str, tables))
        stream = await Stream.open(self._dsn, name=self._label)
        try:
            snapshot = await self.create_slot(stream, f"{self._slot[:40]}_copy_{uuid4().hex[:8]}", temporary=True)
            await self._write(tables, State.COPYING, snapshot.consistent)
            published = await self._copy(snapshot.name, tables, snapshot.consistent)
            await self._outlet.settled()
            await self._write(tables, State.STREAMING, snapshot.consistent)
        finally:
            await stream.close()
        self._log.info("tables_copied", f"published {published} messages of rows that were in {names} before")

    async def _write(self, tables: Mapping[TableName, Captured], state: State, since: Lsn) -> None:
        written = {table: one._replace(state=state, since=since) for table, one in tables.items()}
        await write_captured(self._control, self._slot, written)

    async def _copy(self, snapshot: str, tables: Mapping[TableName, Captured], place: Lsn) -> int:
        """Publish as if it were one transaction that committed at `place`: there is no LSN to advance."""
        rows = Progress(NOWHERE)
        rows.begin(place, datetime.now(UTC))
        before = self._outlet.published
        connection = await connect(self._dsn, name=self._label)
        try:
            copy = Copy(connection)
            await copy.begin(snapshot)
            ordered = sorted(tables, key=lambda table: not self._is_outbox(table))
            for index, table in enumerate(ordered, start=1):
                capture = self._capturing.capture_of(table)
                async for number, message in copy.messages(table, capture, index * NUMBERS, tables[table].copy_id):
                    await self._outlet.room()
                    if isinstance(message, Malformed):
                        self._outlet.set_aside(message, rows.publish(), number)
                    else:
                        self._outlet.publish(message, rows.publish(), number)
        finally:
            await connection.close()
        return self._outlet.published - before

    def _is_outbox(self, table: TableName) -> bool:
        return isinstance(self._capturing.capture_of(table), OutboxCapture)
