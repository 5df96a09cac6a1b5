"""How far behind a source is, asked of its database alone."""

from dataclasses import dataclass
from typing import LiteralString

import psycopg
from psycopg.rows import class_row

from relay.wal.connection import address, prepared, refusal
from relay.wal.slot import SlotMissing


@dataclass(frozen=True, slots=True)
class Lag:
    """One source. The names and their meaning are a contract: `relay lag --format json` prints them."""

    source: str
    slot: str
    active: bool
    """Whether a relay is connected to the slot."""
    wal_status: str | None
    """reserved, extended, unreserved or lost, as PostgreSQL has it."""
    current_wal_lsn: str
    confirmed_flush_lsn: str | None
    lag_bytes: int | None
    """From the confirmed position to the current one; counts everything written, published or not."""
    lag_seconds: float | None
    """Age of the oldest unconfirmed commit, 0 when nothing is outstanding; None when no relay ever wrote about it."""
    retained_wal_bytes: int | None
    """WAL that PostgreSQL keeps for this slot."""
    safe_wal_bytes: int | None
    """What may still be written before the slot is lost; None when PostgreSQL keeps as much as it takes."""


_QUERY: LiteralString = """
    SELECT %(source)s AS source, slot_name::text AS slot, active, wal_status,
           current_lsn::text AS current_wal_lsn, confirmed_flush_lsn::text,
           greatest(pg_wal_lsn_diff(current_lsn, confirmed_flush_lsn), 0)::bigint AS lag_bytes,
           CASE
               WHEN current_lsn <= confirmed_flush_lsn THEN 0
               WHEN active AND oldest_unconfirmed_commit_at IS NULL THEN 0
               ELSE greatest(0, extract(epoch FROM
                    clock_timestamp() - CASE WHEN active THEN oldest_unconfirmed_commit_at ELSE written_at END))
           END::float AS lag_seconds,
           greatest(pg_wal_lsn_diff(current_lsn, restart_lsn), 0)::bigint AS retained_wal_bytes,
           CASE wal_status WHEN 'lost' THEN 0 ELSE safe_wal_size END AS safe_wal_bytes
    FROM pg_replication_slots
    CROSS JOIN pg_current_wal_lsn() AS current_lsn
    LEFT JOIN relay.checkpoint ON checkpoint.slot = slot_name
    WHERE slot_name = %(slot)s AND slot_type = 'logical'
"""


def measure(source: str, dsn: str, slot: str) -> Lag:
    """Ask the database. Raises SourceAway, SlotMissing or another SourceError."""
    try:
        with psycopg.connect(prepared(dsn, "saga-relay lag"), autocommit=True) as connection:
            cursor = connection.cursor(row_factory=class_row(Lag))
            lag = cursor.execute(_QUERY, {"source": source, "slot": slot}).fetchone()
    except psycopg.Error as error:
        raise refusal(error, dsn) from None
    if lag is None:
        hint = "`relay run` creates it at its first start. If it was there before, read docs/slot-loss.md."
        raise SlotMissing(f"PostgreSQL at {address(dsn)} has no slot {slot}", hint)
    return lag
