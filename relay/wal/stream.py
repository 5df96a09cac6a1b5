"""The COPY BOTH conversation of logical replication: the only code that touches a replication socket."""

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final, NamedTuple, Self

import psycopg
from psycopg import AsyncConnection, pq, sql
from psycopg.rows import TupleRow

from relay.errors import SourceAway
from relay.wal.connection import connect, refusal
from relay.wal.lsn import Lsn, parse_lsn
from relay.wal.protocol import Keepalive, XLogData, parse_frame, status_frame

BATCH: Final = 256
BATCH_BYTES: Final = 4_000_000
"""Frames handed over at once, and their bytes: other work of the event loop gets its turn in between."""

_END_OF_COPY: Final = -1


class Snapshot(NamedTuple):
    """What a new slot begins with."""

    name: str
    """Of the exported snapshot: it shows every transaction that committed before `consistent`, and no other."""
    consistent: Lsn


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
        self._watched: int | None = None
        self._arrival: asyncio.Future[None] | None = None
        self._broken: psycopg.Error | None = None

    @classmethod
    async def open(cls, dsn: str, *, name: str) -> Self:
        """Connect in replication mode. Raises SourceError or SourceAway."""
        return cls(await connect(dsn, name=name, replication=True), dsn)

    async def system_identifier(self) -> str:
        """What tells this cluster, and its standbys, from all others. Raises SourceError or SourceAway."""
        return str((await self._command(sql.SQL("IDENTIFY_SYSTEM")))[0])

    async def create_slot(self, slot: str, *, temporary: bool = False) -> Snapshot:
        """Create a slot for pgoutput; a temporary one goes with this connection.

        The snapshot is good until the next command on this connection. PostgreSQL first waits for every transaction of
        the cluster that is open now. Raises SourceError or SourceAway.
        """
        create = sql.SQL("CREATE_REPLICATION_SLOT {} {} LOGICAL pgoutput (SNAPSHOT 'export')").format(
            sql.Identifier(slot), sql.SQL("TEMPORARY" if temporary else "")
        )
        _, consistent, snapshot, _ = await self._command(create)
        return Snapshot(str(snapshot), parse_lsn(str(consistent)))

    async def _command(self, command: sql.SQL | sql.Composed) -> TupleRow:
        """The one row that a command of the replication protocol answers."""
        try:
            row: TupleRow | None = await (await self._connection.execute(command)).fetchone()
        except psycopg.Error as error:
            raise refusal(error, self._dsn) from None
        if row is None:
            raise SourceAway(f"PostgreSQL did not answer {command.as_string()}")
        return row

    async def start(self, slot: str, publications: Iterable[str]) -> None:
        """Begin to stream from where the slot was last confirmed.

        Always from 0/0: PostgreSQL knows the confirmed position, and would silently skip to any later one.
        Raises SlotBusy, SourceError or SourceAway.
        """
        command = sql.SQL(
            "START_REPLICATION SLOT {} LOGICAL 0/0 (proto_version '1', publication_names {}, messages 'true')"
        ).format(sql.Identifier(slot), sql.Literal(",".join(map(_quoted, publications))))
        try:
            await self._connection.execute(command)
        except psycopg.errors.ObjectInUse as error:
            raise SlotBusy(f"slot {slot}: {error.diag.message_primary}") from None
        except psycopg.Error as error:
            raise refusal(error, self._dsn) from None

    async def read(self) -> list[XLogData | Keepalive]:
        """The next frames, at least one. Raises SourceAway or SourceError when the stream has ended.

        Everything else in the event loop gets its turn first. A call that is cancelled has taken nothing.
        """
        await asyncio.sleep(0)
        try:
            while not (frames := self._take()):
                await self._arrived()
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
            self._unwatch()
            self._wake()  # whoever reads finds out why
            raise refusal(error, self._dsn) from None

    async def close(self) -> None:
        """Hang up. What was reported before is sent; PostgreSQL frees the slot."""
        self._unwatch()
        await self._connection.close()

    def _take(self) -> list[XLogData | Keepalive]:
        """The frames that are here, up to a batch: those that libpq holds, and those that wait in the socket.

        Whatever ends the stream is raised when the frames before it have been handed over.
        """
        if self._broken is not None:
            raise self._broken
        frames: list[XLogData | Keepalive] = []
        next_frame = self._pgconn.get_copy_data
        size_total = 0
        drained = False
        try:
            while len(frames) < BATCH and size_total < BATCH_BYTES:
                size, data = next_frame(1)
                if size > 0:
                    size_total += size
                    frames.append(parse_frame(data))
                    drained = False
                elif size == _END_OF_COPY:
                    raise self._ended()
                elif drained:
                    break
                else:
                    self._pgconn.consume_input()
                    drained = True
        except psycopg.Error as error:
            self._unwatch()
            if not frames:
                raise
            self._broken = error
        return frames

    def _ended(self) -> psycopg.Error:
        """PostgreSQL ended the stream; its last result says why."""
        result = self._pgconn.get_result()
        if result is not None and result.status == pq.ExecStatus.FATAL_ERROR:
            return psycopg.errors.error_from_result(result)
        return psycopg.OperationalError("the replication stream has ended")

    async def _arrived(self) -> None:
        """Wait until something has come in."""
        loop = asyncio.get_running_loop()
        self._arrival = loop.create_future()
        if self._watched is None:
            self._watched = self._pgconn.socket
            loop.add_reader(self._watched, self._arrive)
        await self._arrival

    def _arrive(self) -> None:
        """The socket can be read. While somebody waits for it, it stays registered from one wait to the next.

        It is emptied here, or the loop would call again before the one who waited has had a turn. When nobody waits, it
        is left alone: what is not read holds the server back, and costs the loop nothing.
        """
        if self._arrival is None or self._arrival.done():
            self._unwatch()
            return
        try:
            self._pgconn.consume_input()
        except psycopg.Error as error:
            self._unwatch()
            self._broken = error
        self._wake()

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    def _unwatch(self) -> None:
        """Forget the socket: at once after every error, for libpq may have closed it, and its number is free then."""
        if self._watched is not None:
            asyncio.get_running_loop().remove_reader(self._watched)
            self._watched = None

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
