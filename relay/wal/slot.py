"""The replication slot of a source, and the server that it is on: inspected, verified."""

import re
from dataclasses import dataclass
from typing import Final, LiteralString

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from relay.errors import SourceAway, SourceError
from relay.wal.connection import fetch_one
from relay.wal.lsn import NOWHERE, Lsn, format_lsn, parse_lsn

PLUGIN: Final = "pgoutput"


class SlotMissing(SourceError):
    """The checkpoint knows the slot, and the server does not have it any more."""

    hint = (
        "Messages committed since then were not published, and a new slot would not see them. "
        "Read docs/slot-loss.md before you remove the slot's row from relay.checkpoint."
    )


class SlotUnusable(SourceError):
    """There is a slot of that name, and the relay cannot stream from it."""


_STANDBY_TOKEN: Final = re.compile(r'"(?:[^"]|"")*"|[()]|[^\s,()"]+')
"""Of synchronous_standby_names: a quoted name, a bracket, or a plain name, keyword or number."""


class SynchronousStandby(SourceError):
    """PostgreSQL counts the relay among its synchronous standbys: every COMMIT would wait for RabbitMQ."""

    hint = (
        "Name the real standbys in synchronous_standby_names, and neither * nor the relay (its application_name begins "
        "with saga-relay), and reload."
    )


@dataclass(frozen=True, slots=True)
class Slot:
    """A logical replication slot, as pg_replication_slots shows it."""

    name: str
    plugin: str
    database: str
    wal_status: str | None
    confirmed_flush_lsn: Lsn

    @property
    def lost(self) -> bool:
        """Whether PostgreSQL has removed WAL that the slot needs."""
        return self.wal_status == "lost"

    def verify(self, database: str) -> None:
        """Raise SlotUnusable unless the relay can stream `database` from here."""
        self.verify_owner(database)
        if self.lost:
            position = format_lsn(self.confirmed_flush_lsn)
            hint = "PostgreSQL removed WAL that the slot needed (max_slot_wal_keep_size). Read docs/slot-loss.md."
            raise SlotUnusable(f"slot {self.name} has lost the WAL after {position}", hint)

    def verify_owner(self, database: str) -> None:
        """Raise SlotUnusable when the slot is somebody else's."""
        if self.plugin != PLUGIN:
            hint = "Give the source another slot name, or drop that slot if nobody uses it."
            raise SlotUnusable(f"slot {self.name} is for the plugin {self.plugin}, not {PLUGIN}", hint)
        if self.database != database:
            hint = "Slots are shared by all databases of a server: give the source another slot name."
            raise SlotUnusable(f"slot {self.name} belongs to database {self.database}, not {database}", hint)


async def find_slot(connection: AsyncConnection[TupleRow], name: str) -> Slot | None:
    """The slot of that name, None when the server has none."""
    query: LiteralString = """
        SELECT plugin, database, wal_status, confirmed_flush_lsn::text
        FROM pg_replication_slots WHERE slot_name = %s AND slot_type = 'logical'
    """
    row = await fetch_one(connection, query, (name,))
    if row is None:
        return None
    plugin, database, wal_status, confirmed = row
    return Slot(name, plugin, database, wal_status, parse_lsn(confirmed) if confirmed else NOWHERE)


async def verify_asynchronous(connection: AsyncConnection[TupleRow], application_name: str) -> None:
    """Raise SynchronousStandby when COMMITs wait, or may come to wait, for a stream of that name.

    By the setting, as pg_stat_replication hides sync_state from whoever is not in pg_read_all_stats.
    """
    row = await fetch_one(connection, "SELECT current_setting('synchronous_standby_names')")
    if row is not None and names_standby(row[0], application_name):
        raise SynchronousStandby(f"{application_name} is a synchronous standby by synchronous_standby_names = {row[0]}")


def names_standby(setting: str, application_name: str) -> bool:
    """Whether synchronous_standby_names makes a standby of that name synchronous, at once or after the loss of others.

    FIRST 2 (a, "b c"), ANY 1 (*), 2 (a, b), or just a list; a name is compared without regard to case, and * is every
    name. Source: PostgreSQL's syncrep_scanner.l, syncrep_gram.y and SyncRepGetStandbyPriority.
    """
    tokens = _STANDBY_TOKEN.findall(setting)
    names = tokens[tokens.index("(") + 1 :] if "(" in tokens else tokens
    plain = (name[1:-1].replace('""', '"') if name.startswith('"') else name for name in names)
    return any(name == "*" or name.lower() == application_name.lower() for name in plain)


async def drop_slot(connection: AsyncConnection[TupleRow], name: str) -> None:
    """Drop a slot that nobody streams from."""
    await connection.execute("SELECT pg_drop_replication_slot(%s)", (name,))


async def open_transactions(connection: AsyncConnection[TupleRow], older_than_s: float) -> str:
    """Who holds up the creation of a slot: processes with an old transaction, and prepared transactions."""
    query: LiteralString = """
        SELECT coalesce(string_agg(who, ', '), 'unknown') FROM (
            SELECT 'process ' || pid FROM pg_stat_activity
            WHERE backend_xid IS NOT NULL AND xact_start < clock_timestamp() - make_interval(secs => %s)
            UNION ALL SELECT 'prepared transaction ' || gid FROM pg_prepared_xacts) AS open (who)
    """
    row = await fetch_one(connection, query, (older_than_s,))
    return str(row[0]) if row else "unknown"


async def verify_server(connection: AsyncConnection[TupleRow]) -> None:
    """Raise SourceError unless the server can do logical replication and the relay's schema is there.

    Raises SourceAway while the server is a standby: it may be promoted.
    """
    query: LiteralString = (
        "SELECT pg_is_in_recovery(), current_setting('wal_level'), to_regclass('relay.outbox') IS NULL"
    )
    standby, wal_level, no_schema = await fetch_one(connection, query) or (False, None, True)
    if standby:
        raise SourceAway("the server is a standby", "A source has to be a primary: point the DSN there, or promote it.")
    if wal_level != "logical":
        hint = "Set `wal_level = logical` in postgresql.conf and restart the server."
        raise SourceError(f"the server runs with wal_level = {wal_level}, which logical replication cannot read", hint)
    if no_schema:
        raise SourceError("the database has no table relay.outbox", "Run `relay migrate` on this database first.")
