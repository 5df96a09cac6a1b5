"""The COPY BOTH conversation of logical replication: the only code that touches a replication socket."""

import asyncio
from datetime import UTC, datetime
from typing import Final, Self

import psycopg
from psycopg import AsyncConnection, pq, sql
from psycopg.rows import TupleRow

from relay.errors import SourceAway
from relay.wal.connection import connect, refusal
from relay.wal.lsn import Lsn
from relay.wal.protocol import Keepalive, XLogData, parse_frame, status_frame

BATCH: Final = 256
BATCH_BYTES: Final = 4_000_000
"""Frames handed over at once, and their bytes: other work of the event loop gets its turn in between."""

_END_OF_COPY: Final = -1
_WOULD_BLOCK: Final = 0


class SlotBusy(SourceAway):
    """Another session streams from the slot."""

    hint = (
        "Another relay, or a connection that PostgreSQL still believes in, uses it. This one takes over when it ends."
    )


class Stream:
    """What one slot sends, frame after frame, and what we tell it in return.

    Frames may be left unread for as long as one likes: PostgreSQL keeps the connection while `report` is called more
    often than its wal_sender_timeout.
    """

    def __init__(self, connection: AsyncConnection[TupleRow], dsn: str) -> None:
        self._connection = connection
        self._pgconn = connection.pgconn
        self._dsn = dsn

    @classmethod
    async def open(cls, dsn: str, *, name: str) -> Self:
        """Connect in replication mode. Raises SourceError or SourceAway."""
        return cls(await connect(dsn, name=name, replication=True), dsn)

    async def create_slot(self, slot: str) -> str:
        """Create a permanent slot for pgoutput; return the name of the snapshot that shows all that was before it.

        The snapshot is good until the next command on this connection. PostgreSQL first waits for every transaction of
        the cluster that is open now. Raises SourceError or SourceAway.
        """
        create = sql.SQL("CREATE_REPLICATION_SLOT {} LOGICAL pgoutput (SNAPSHOT 'export')")
        try:
            row = await (await self._connection.execute(create.format(sql.Identifier(slot)))).fetchone()
        except psycopg.Error as error:
            raise refusal(error, self._dsn) from None
        if row is None:
            raise SourceAway(f"PostgreSQL did not answer the creation of slot {slot}")
        return str(row[2])

    async def start(self, slot: str, publication: str) -> None:
        """Begin to stream from where the slot was last confirmed.

        Always from 0/0: PostgreSQL knows the confirmed position, and would silently skip to any later one.
        Raises SlotBusy, SourceError or SourceAway.
        """
        command = sql.SQL(
            "START_REPLICATION SLOT {} LOGICAL 0/0 (proto_version '1', publication_names {}, messages 'true')"
        ).format(sql.Identifier(slot), sql.Literal(_quoted(publication)))
        try:
            await self._connection.execute(command)
        except psycopg.errors.ObjectInUse as error:
            raise SlotBusy(f"slot {slot}: {error.diag.message_primary}") from None
        except psycopg.Error as error:
            raise refusal(error, self._dsn) from None

    async def read(self) -> list[XLogData | Keepalive]:
        """The next frames, at least one. Raises SourceAway or SourceError when the stream has ended."""
        await asyncio.sleep(0)
        while not (frames := self._buffered()):
            await self._readable()
            try:
                self._pgconn.consume_input()
            except psycopg.Error as error:
                raise refusal(error, self._dsn) from None
        return frames

    async def report(self, flush: Lsn) -> None:
        """Tell PostgreSQL that everything before `flush` is settled. Raises SourceAway."""
        try:
            self._pgconn.put_copy_data(status_frame(flush, datetime.now(UTC)))
            while self._pgconn.flush():
                await self._writable()
        except psycopg.Error as error:
            raise refusal(error, self._dsn) from None

    async def close(self) -> None:
        """Hang up. What was reported before is sent; PostgreSQL frees the slot."""
        await self._connection.close()

    def _buffered(self) -> list[XLogData | Keepalive]:
        frames: list[XLogData | Keepalive] = []
        size_total = 0
        try:
            while len(frames) < BATCH and size_total < BATCH_BYTES:
                size, data = self._pgconn.get_copy_data(1)
                if size == _END_OF_COPY:
                    raise self._ended()
                if size == _WOULD_BLOCK:
                    break
                size_total += size
                frames.append(parse_frame(bytes(data)))
        except psycopg.Error as error:
            raise refusal(error, self._dsn) from None
        return frames

    def _ended(self) -> psycopg.Error:
        """PostgreSQL ended the stream; its last result says why."""
        result = self._pgconn.get_result()
        if result is not None and result.status == pq.ExecStatus.FATAL_ERROR:
            return psycopg.errors.error_from_result(result)
        return psycopg.OperationalError("the replication stream has ended")

    async def _readable(self) -> None:
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._pgconn.socket, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(self._pgconn.socket)

    async def _writable(self) -> None:
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        loop.add_writer(self._pgconn.socket, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_writer(self._pgconn.socket)


def _quoted(publication: str) -> str:
    """A publication's name as publication_names takes it: a list of identifiers inside a string."""
    return '"' + publication.replace('"', '""') + '"'
