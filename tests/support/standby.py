"""A physical standby of a private PostgreSQL, which takes its logical slots over, and may be promoted."""

from pathlib import Path
from subprocess import TimeoutExpired
from typing import LiteralString

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from relay.demo.servers.host import LOOPBACK, ServerFailed, environment
from relay.demo.servers.postgres import SUPERUSER, PrivatePostgres

HAS_FAILOVER_SLOTS = 170000
"""The first version whose logical slots can be taken over by a standby."""

PHYSICAL_SLOT = "standby"
MAINTENANCE = "postgres"

PROMOTION_S = 60


class Standby(PrivatePostgres):
    """Follows a primary that runs already. Like it, it goes without fsync."""

    def __init__(self, primary: PrivatePostgres) -> None:
        conninfo = make_conninfo(
            host=LOOPBACK, port=primary.port, user=SUPERUSER, password=primary.password, dbname=MAINTENANCE
        )
        # All of these are needed to take slots over. Source: PostgreSQL documentation, "Logical Decoding Concepts",
        # "Replication Slot Synchronization".
        settings = {
            "primary_conninfo": conninfo,
            "primary_slot_name": PHYSICAL_SLOT,
            "hot_standby": "on",
            "hot_standby_feedback": "on",
        }
        super().__init__(durable=False, settings=settings)
        self._primary = primary
        self.password = primary.password

    def _create_cluster(self, password: Path) -> None:
        """A copy of the primary's data, instead of a new cluster."""
        source = ("--host", LOOPBACK, "--port", str(self._primary.port), "--username", SUPERUSER, "--no-password")
        copy = ("--pgdata", self.data, "--checkpoint", "fast", "--no-sync")
        slot = ("--wal-method", "stream", "--create-slot", "--slot", PHYSICAL_SLOT)
        login = environment(PGPASSWORD=self.password)
        try:
            done = self._account.run(self._programs / "pg_basebackup", *source, *copy, *slot, env=login)
        except (OSError, TimeoutExpired) as error:
            raise ServerFailed(f"pg_basebackup of {self._programs} cannot be run: {error}") from error
        if done.returncode != 0:
            raise ServerFailed(f"pg_basebackup failed:\n{done.stdout.strip()}")
        self._private.write("postgres/data/standby.signal", "")

    def has_replayed(self, lsn: str) -> bool:
        """Whether everything before this position can be seen here."""
        return bool(self._value("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", lsn))

    def takes_over(self, slot: str) -> bool:
        """Copy the positions of the primary's failover slots, once; whether that slot is here for good now.

        PostgreSQL keeps a new one only if it has everything that the primary's may need, which it cannot know before
        the primary's has moved on: ask again then.
        """
        try:
            self._value("SELECT pg_sync_replication_slots()")
        except psycopg.errors.ObjectNotInPrerequisiteState:  # the primary's is ahead of what has come here
            return False
        found = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = %s AND synced AND NOT temporary"
        return self._value(found, slot) == 1

    def promote(self) -> None:
        """Make a primary of it, on a timeline of its own."""
        if not self._value("SELECT pg_promote(true, %s)", PROMOTION_S):
            raise ServerFailed(f"the standby was not promoted within {PROMOTION_S} s")

    @property
    def timeline(self) -> int:
        """The timeline that it writes, once it is promoted."""
        name = str(self._value("SELECT pg_walfile_name(pg_current_wal_lsn())"))
        return int(name[:8], 16)

    def _value(self, query: LiteralString, *parameters: object) -> object:
        with psycopg.connect(self.dsn(MAINTENANCE), autocommit=True) as connection:
            row = connection.execute(query, parameters).fetchone()
        return None if row is None else row[0]


def let_standbys_take_over(dsn: str, slot: str) -> None:
    """Make a failover slot of a logical slot that nobody streams from. `dsn`: of its database."""
    with psycopg.connect(make_conninfo(dsn, replication="database"), autocommit=True) as connection:
        connection.execute(sql.SQL("ALTER_REPLICATION_SLOT {} (FAILOVER true)").format(sql.Identifier(slot)))
