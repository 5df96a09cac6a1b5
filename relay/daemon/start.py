"""How a source starts: it waits for its turn, and sees to what is captured, to its slot, and to what is older."""

from typing import Final, NamedTuple

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from relay.capture.captures import Captures
from relay.config import SourceSettings
from relay.daemon.capturing import Capturing
from relay.daemon.copier import Copier
from relay.daemon.outlet import Outlet
from relay.daemon.status import SourceStatus
from relay.daemon.status import State as Standing
from relay.log import SourceLog
from relay.wal.captured import Captured, begun, read_captured, write_captured
from relay.wal.captured import State as TableState
from relay.wal.checkpoint import State, forget_tables_since, read_checkpoint, write_state, write_tables_since
from relay.wal.connection import address, database, fetch_one, listen
from relay.wal.lsn import NOWHERE, Lsn, format_lsn
from relay.wal.publication import (
    PublicationMissing,
    ensure_publications,
    publication_names,
    read_publication,
    tables_publication,
)
from relay.wal.slot import Slot, SlotMissing, drop_slot, find_slot
from relay.wal.stream import Stream
from relay.wal.table import TableName

STANDBY_POLL_S: Final = 1.0
"""How often a second instance looks whether the first is gone."""

FORGIVES_YOUNG: Final = 180000
"""From this version of PostgreSQL on, a publication may be younger than what a slot has still to decode."""

LOCK_CLASS: Final = 0x72656C79
"""First half of the advisory lock that the active relay of a slot holds. (The letters "rely".)"""


class Prepared(NamedTuple):
    """What a stream is started with."""

    captures: Captures
    publications: tuple[str, ...]
    until: Lsn | None
    """There is a publication that can be streamed only from here on: then everything is to be prepared anew."""


class Start:
    """What has to be so before a source can stream. `control` is its SQL connection, in autocommit mode."""

    def __init__(
        self, source: SourceSettings, control: AsyncConnection[TupleRow], status: SourceStatus, log: SourceLog
    ) -> None:
        self._source = source
        self._slot = source.slot
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

    async def prepare(self, stream: Stream, outlet: Outlet) -> Prepared:
        """See to it that there are publications and a slot to stream from, and that everything older is published."""
        capturing = await Capturing.resolve(self._control, self._source)
        system_identifier = await stream.system_identifier()
        checkpoint = await read_checkpoint(self._control, self._slot)
        slot = await find_slot(self._control, self._slot)
        if checkpoint is not None and checkpoint.state is State.STREAMING and slot is None:
            since = f" after {format_lsn(checkpoint.flush_lsn)}" if checkpoint.flush_lsn else ""
            raise SlotMissing(f"slot {self._slot} is gone: what was committed{since} may not have been published")
        copier = Copier(self._source, self._control, capturing, outlet, self._log)
        until = None
        if slot is not None and (checkpoint is None or checkpoint.state is State.STREAMING):
            slot.verify(database(self._dsn))
            until = await self._go_on(copier, capturing, slot, adopts=checkpoint is None)
        else:
            await self._first_start(stream, copier, capturing, slot)
        captured = await read_captured(self._control, self._slot)
        # What the slot is past already needs no second look.
        passed = NOWHERE if slot is None else slot.confirmed_flush_lsn
        copied = {table: one.since for table, one in captured.items() if one.since is not None and one.since > passed}
        names = publication_names(self._source.publication, capturing.wanted)
        return Prepared(
            capturing.captures(system_identifier, copied, self._status.change_ignored),
            names if until is None else names[:1],
            until,
        )

    async def _go_on(self, copier: Copier, capturing: Capturing, slot: Slot, *, adopts: bool) -> Lsn | None:
        """There is a slot. What is captured may have changed since the last start. Returns what Prepared.until is.

        A table enters the publication before it enters relay.captured, and leaves it before it leaves that: a crash in
        between makes it look new, or unwanted, once more.
        """
        if adopts and await read_publication(self._control, self._source.publication) is None:
            raise PublicationMissing(f"publication {self._source.publication} of source {self._source.name} is gone")
        before = {one.oid: one for one in (await read_captured(self._control, self._slot)).values()}
        known = {table: before[oid] for table, oid in capturing.oids.items() if oid in before}
        await self._publish(capturing, frozenset(known))
        if adopts:
            await write_state(self._control, self._slot, State.STREAMING)
            words = f"slot {self._slot} was there already: rows older than it are not published"
            self._log.warning("slot_adopted", words)
        until = await self._until(capturing, slot)
        if until is not None:
            self._log.warning("publication_young", f"plain tables are captured once {format_lsn(until)} is passed")
            return until
        captured = {
            table: known.get(table) or begun(oid, copied=capturing.copied(table) and not adopts)
            for table, oid in capturing.oids.items()
        }
        await write_captured(self._control, self._slot, captured)
        late = {table: one for table, one in captured.items() if one.state is TableState.COPYING}
        if late:
            await copier.late(late)
        return None

    async def _until(self, capturing: Capturing, slot: Slot) -> Lsn | None:
        """Where the slot has to be before the publication of plain tables can be streamed, None when it can.

        Up to PostgreSQL 17 a slot cannot decode what was written before a publication was created that it is asked for:
        "publication does not exist". Newer ones only warn.
        """
        second = tables_publication(self._source.publication)
        if self._control.info.server_version >= FORGIVES_YOUNG or await read_publication(self._control, second) is None:
            return None
        checkpoint = await read_checkpoint(self._control, self._slot)
        since = None if checkpoint is None else checkpoint.tables_since
        if since is None:
            since = await write_tables_since(self._control, self._slot, before_slot=False)
        return since if capturing.wanted.changing and slot.confirmed_flush_lsn < since else None

    async def _first_start(self, stream: Stream, copier: Copier, capturing: Capturing, slot: Slot | None) -> None:
        """Publications, slot, and the rows that were committed before the slot.

        A crash before the last line leaves the state at "copying": then all this begins again, but for the slot. What
        committed since it was created may be nowhere else: a logical message, a row that was deleted.
        """
        await self._publish(capturing, None)
        tables = await self._begin_copies(capturing)
        await write_state(self._control, self._slot, State.COPYING)
        copied = {table: one for table, one in tables.items() if capturing.copied(table)}
        if slot is not None:
            slot.verify_owner(database(self._dsn))
        if slot is not None and not slot.lost:
            await copier.again(copied)
        else:
            if slot is not None:
                await drop_slot(self._control, self._slot)
            if await read_publication(self._control, tables_publication(self._source.publication)) is not None:
                await write_tables_since(self._control, self._slot, before_slot=True)
            snapshot = await copier.create_slot(stream, self._slot)
            self._log.info("slot_created", f"created slot {self._slot}")
            await copier.first(snapshot, copied)
        done = {table: one._replace(state=TableState.STREAMING) for table, one in tables.items()}
        await write_captured(self._control, self._slot, done)
        await write_state(self._control, self._slot, State.STREAMING)

    async def _begin_copies(self, capturing: Capturing) -> dict[TableName, Captured]:
        """Note what is captured. Copies that a crash has interrupted go on under their ids; others have new ones."""
        checkpoint = await read_checkpoint(self._control, self._slot)
        known = {} if checkpoint is None else await read_captured(self._control, self._slot)
        before = {one.oid: one for one in known.values()}
        tables = {
            table: before.get(oid) or begun(oid, copied=capturing.copied(table))
            for table, oid in capturing.oids.items()
        }
        await write_captured(self._control, self._slot, tables)
        return tables

    async def _publish(self, capturing: Capturing, known: frozenset[TableName] | None) -> None:
        """Let the publications contain exactly what is captured."""
        name = self._source.publication
        async with self._control.transaction():
            changes = await ensure_publications(self._control, name, capturing.wanted, known)
            if tables_publication(name) in changes.created:
                await forget_tables_since(self._control, self._slot)
        for change in changes:
            self._log.info("publication_changed", change)
