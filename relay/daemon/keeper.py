"""What a source sees to on its SQL connection while it streams: the checkpoint, its standing, and who calls."""

import time
from datetime import datetime
from typing import Final

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from relay.daemon.outlet import Outlet
from relay.daemon.parking import Parking
from relay.daemon.progress import Progress
from relay.errors import SourceAway
from relay.wal.checkpoint import write_progress
from relay.wal.connection import listen
from relay.wal.lsn import Lsn, format_lsn
from relay.wal.slot import verify_asynchronous

CHECKPOINT_EVERY_S: Final = 1.0
"""How often relay.checkpoint is written while there is traffic."""

VERIFY_EVERY_S: Final = 5.0
"""How often it is looked whether PostgreSQL has made the relay a synchronous standby."""


class Keeper:
    """Writes relay.checkpoint while there is traffic, and only then: an idle relay writes no WAL of its own.

    Beside that it looks whether PostgreSQL has made the relay a synchronous standby, wakes the parking when an operator
    asks for something, and refreshes the status.
    """

    def __init__(
        self,
        control: AsyncConnection[TupleRow],
        name: str,
        slot: str,
        outlet: Outlet,
        progress: Progress,
        parking: Parking,
        until: Lsn | None = None,
    ) -> None:
        """`until`: the source is to be prepared anew once everything before this position is settled."""
        self._until = until
        self._control = control
        self._name = name
        self._slot = slot
        self._outlet = outlet
        self._progress = progress
        self._parking = parking
        self._written: tuple[int, datetime | None] | None = None  # what the session before this one wrote is stale
        self._verified_at = 0.0

    async def run(self) -> None:
        """Write every CHECKPOINT_EVERY_S, until cancelled or until the connection ends.

        The connection is listened to all the while: it is the one that PostgreSQL closes when it is told to shut down,
        whereas it would wait for the replication connection as long as that answers. Raises SynchronousStandby, or
        SourceAway when `until` is passed.
        """
        while True:
            if await listen(self._control, CHECKPOINT_EVERY_S):
                self._parking.wake()
            if time.monotonic() - self._verified_at > VERIFY_EVERY_S:
                await self._verify()
            self._outlet.show()
            await self.write_news()
            if self._until is not None and self._progress.safe >= self._until:
                raise SourceAway(f"{format_lsn(self._until)} is passed", "Plain tables are captured from now on.")

    async def _verify(self) -> None:
        """Raise SynchronousStandby when PostgreSQL lets every COMMIT wait for the relay."""
        await verify_asynchronous(self._control, self._name)
        self._verified_at = time.monotonic()

    async def write_news(self) -> None:
        """Write what has changed since the last time: also that time has passed while something is outstanding."""
        oldest = self._progress.oldest_unsettled_commit_at
        news = (self._outlet.published, oldest)
        if news != self._written or oldest is not None:
            await write_progress(self._control, self._slot, self._progress.safe, oldest)
            self._written = news
