"""relay.parked and relay.unparked: what is parked of a slot, and what an operator has replayed or dropped."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Final, LiteralString, NamedTuple

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from relay.capture.message import Kind, Lane, Message
from relay.capture.outbox import to_message
from relay.errors import SourceError
from relay.parking.index import Known, Reason, Refusal
from relay.parking.request import PROGRESS
from relay.wal.checkpoint import State
from relay.wal.connection import address, fetch_one
from relay.wal.lsn import NOWHERE, Position, format_lsn, parse_lsn

CHUNK_BYTES: Final = 8 * 1024 * 1024
"""Payloads and headers that one SELECT brings, unless a single message has more: memory stays flat."""


class Outcome(StrEnum):
    """What has become of a message that was parked."""

    REPLAYED = "replayed"
    DROPPED = "dropped"


class Parked(NamedTuple):
    """A message to be stored, and why."""

    message: Message
    position: Position
    refusal: Refusal

    @property
    def size_bytes(self) -> int:
        """What it takes up, roughly."""
        return len(self.message.payload) + len(self.message.headers)


class Memory(NamedTuple):
    """What the tables know about a slot when a session begins."""

    parked: list[Known]
    remembered: list[Position]
    again: Position | None
    """The last of all these that the slot sends again, None when it sends none of them."""


_RIGHTS: LiteralString = """
    SELECT coalesce(string_agg(privilege || ' on ' || name, ', '), '')
    FROM unnest(ARRAY['relay.parked', 'relay.unparked', 'relay.parked_request']) AS name,
         unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS privilege
    WHERE NOT has_table_privilege(name, privilege)
"""


async def verify_rights(connection: AsyncConnection[TupleRow], dsn: str) -> None:
    """Raise SourceError unless the role may do all that parking takes; psycopg's error when there are no tables."""
    (lacking,) = await fetch_one(connection, _RIGHTS) or ("",)
    if lacking:
        hint = "docs/setup.md lists the rights that the relay's role needs."
        raise SourceError(f"PostgreSQL at {address(dsn)}: the relay's role lacks {lacking}", hint)


_PARKED: LiteralString = """
    SELECT commit_lsn::text, ordinal, aggregate_type, aggregate_id, kind, destination, reason
    FROM relay.parked WHERE slot = %s ORDER BY commit_lsn, ordinal
"""

_SLOT: LiteralString = """
    SELECT (SELECT state FROM relay.checkpoint WHERE slot = %s),
           (SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = %s)
"""


_REBASE: LiteralString = """
    WITH moved AS (
        SELECT commit_lsn, ordinal,
               coalesce(seq, row_number() OVER (ORDER BY commit_lsn, ordinal) + (
                   SELECT coalesce(max(ordinal), -(1::bigint << 62)) FROM relay.parked AS before
                   WHERE before.slot = %(slot)s AND before.commit_lsn = '0/0' AND before.ordinal < 0)) AS place
        FROM relay.parked LEFT JOIN relay.outbox
            ON outbox.created_at = parked.created_at AND outbox.id::text = parked.id
        WHERE slot = %(slot)s AND commit_lsn <> '0/0'
    ), forgotten AS (
        DELETE FROM relay.unparked WHERE slot = %(slot)s AND commit_lsn <> '0/0'
    )
    UPDATE relay.parked SET commit_lsn = '0/0', ordinal = place FROM moved
    WHERE slot = %(slot)s AND parked.commit_lsn = moved.commit_lsn AND parked.ordinal = moved.ordinal
"""


async def load(connection: AsyncConnection[TupleRow], slot: str) -> Memory:
    """All that is known about a slot. Read it before the stream begins.

    Where a source is started anew, the places of an old stream mean nothing: another slot, perhaps another cluster.
    Then what is parked gets the place that it has among the rows which are older than the new slot, and which all come
    again; what is no longer among them comes before those.
    """
    state, confirmed = await fetch_one(connection, _SLOT, (slot, slot)) or (None, None)
    starts = state == State.COPYING or (state is None and confirmed is None)
    if starts:
        await connection.execute(_REBASE, {"slot": slot})
    rows = await (await connection.execute(_PARKED, (slot,))).fetchall()
    parked = [
        Known(Position(parse_lsn(lsn), ordinal), Lane(kind_of, aggregate, Kind(kind), destination), Reason(reason))
        for lsn, ordinal, kind_of, aggregate, kind, destination, reason in rows
    ]
    query: LiteralString = "SELECT commit_lsn::text, ordinal FROM relay.unparked WHERE slot = %s"
    rows = await (await connection.execute(query, (slot,))).fetchall()
    remembered = [Position(parse_lsn(lsn), ordinal) for lsn, ordinal in rows]
    known = [one.position for one in parked] + remembered
    if starts or confirmed is None:
        again = [position for position in known if position.commit_lsn == NOWHERE]
    else:
        begin = parse_lsn(confirmed)
        again = [position for position in known if position.commit_lsn != NOWHERE and position.commit_lsn >= begin]
    return Memory(parked, remembered, max(again, default=None))


async def last_number(connection: AsyncConnection[TupleRow], slot: str) -> int:
    """The highest number that a row older than a slot has, of those that are parked, or replayed or dropped; or 0."""
    query: LiteralString = """
        SELECT coalesce(max(ordinal), 0) FROM (
            SELECT ordinal FROM relay.parked WHERE slot = %s AND commit_lsn = '0/0'
            UNION ALL SELECT ordinal FROM relay.unparked WHERE slot = %s AND commit_lsn = '0/0') AS numbered
    """
    (number,) = await fetch_one(connection, query, (slot, slot)) or (0,)
    return int(number)


_INSERT: LiteralString = """
    INSERT INTO relay.parked (slot, commit_lsn, ordinal, id, kind, aggregate_type, aggregate_id, type, destination,
        correlation_id, reply_to, causation_id, operation, headers, payload, binary_payload, created_at, capture,
        reason, detail)
    SELECT %s, *
    FROM unnest(%s::pg_lsn[], %s::bigint[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[],
        %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::bytea[], %s::timestamptz[],
        %s::text[], %s::text[], %s::text[])
    ON CONFLICT (slot, commit_lsn, ordinal) DO NOTHING
"""


async def insert(connection: AsyncConnection[TupleRow], slot: str, rows: Sequence[Parked]) -> None:
    """Store messages, all or none; they are durable when this returns. What is there already stays as it is."""
    cells = [
        (
            *(format_lsn(position.commit_lsn), position.ordinal),
            *message[: Message._fields.index("headers")],
            message.headers.decode(),
            *_payload(message.payload),
            *(message.created_at or None, message.capture, refusal.reason, refusal.detail),
        )
        for message, position, refusal in rows
    ]
    await connection.execute(_INSERT, (slot, *map(list, zip(*cells, strict=True))))


def _payload(payload: bytes) -> tuple[str, bytes | None]:
    """As text where it is any, so that a person can read it; else as it is. PostgreSQL's text holds no zero byte."""
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        return "", payload
    return ("", payload) if "\0" in text else (text, None)


_CHUNK: LiteralString = """
    WITH chosen AS (
        SELECT number, commit_lsn, ordinal,
               sum(octet_length(payload) + octet_length(headers) + coalesce(octet_length(binary_payload), 0))
                    OVER (ORDER BY number) AS bytes
        FROM unnest(%(lsns)s::pg_lsn[], %(ordinals)s::bigint[]) WITH ORDINALITY AS wanted (commit_lsn, ordinal, number)
        JOIN relay.parked USING (commit_lsn, ordinal) WHERE slot = %(slot)s)
    SELECT number::int, id, kind, aggregate_type, aggregate_id, type, destination, correlation_id, reply_to,
           causation_id, operation, headers, payload, created_at::text, binary_payload, capture
    FROM chosen JOIN relay.parked USING (commit_lsn, ordinal)
    WHERE slot = %(slot)s AND (bytes <= %(most)s OR number = (SELECT min(number) FROM chosen)) ORDER BY number
"""


async def fetch(
    connection: AsyncConnection[TupleRow], slot: str, positions: Sequence[Position]
) -> dict[Position, Message | None]:
    """The first of these messages, in the order given, up to CHUNK_BYTES, but one at least. None for those of
    them that are not there any more, because somebody deleted them by hand."""
    parameters = {"slot": slot, "most": CHUNK_BYTES, **_columns(positions)}
    rows = await (await connection.execute(_CHUNK, parameters)).fetchall()
    found = {number - 1: _message(values, binary, capture) for number, *values, binary, capture in rows}
    last = max(found, default=len(positions) - 1)
    return {position: found.get(number) for number, position in enumerate(positions[: last + 1])}


def _message(values: Sequence[str | None], binary: bytes | None, capture: str) -> Message:
    message = to_message([None if value is None else value.encode() for value in values])
    return message._replace(payload=message.payload if binary is None else binary, capture=capture)


async def find(connection: AsyncConnection[TupleRow], slot: str, ids: Sequence[str]) -> set[Position]:
    """Where the messages with these ids are parked."""
    query: LiteralString = "SELECT commit_lsn::text, ordinal FROM relay.parked WHERE slot = %s AND id = ANY (%s)"
    rows = await (await connection.execute(query, (slot, list(ids)))).fetchall()
    return {Position(parse_lsn(lsn), ordinal) for lsn, ordinal in rows}


_SETTLE: LiteralString = """
    WITH gone AS (
        DELETE FROM relay.parked
        USING unnest(%(lsns)s::pg_lsn[], %(ordinals)s::bigint[]) AS settled (lsn, number)
        WHERE slot = %(slot)s AND commit_lsn = lsn AND ordinal = number
        RETURNING commit_lsn, ordinal, id
    ), remembered AS (
        INSERT INTO relay.unparked (slot, commit_lsn, ordinal, id, outcome)
        SELECT %(slot)s, commit_lsn, ordinal, id, %(outcome)s FROM gone
        ON CONFLICT (slot, commit_lsn, ordinal) DO NOTHING
    ), counted AS (
        UPDATE relay.parked_request
        SET published = published + CASE %(outcome)s WHEN 'replayed' THEN (SELECT count(*) FROM gone) ELSE 0 END,
            dropped = dropped + CASE %(outcome)s WHEN 'dropped' THEN (SELECT count(*) FROM gone) ELSE 0 END,
            progress_at = clock_timestamp()
        WHERE id = %(request)s
    )
    SELECT pg_notify(%(channel)s, %(slot)s)
"""


async def settle(
    connection: AsyncConnection[TupleRow], slot: str, request: int, positions: Sequence[Position], outcome: Outcome
) -> None:
    """Messages were replayed or dropped: take them out, remember them, and count them, in one transaction."""
    named = {"slot": slot, "request": request, "outcome": outcome, "channel": PROGRESS, **_columns(positions)}
    await connection.execute(_SETTLE, named)


_RESTATE: LiteralString = """
    UPDATE relay.parked
    SET reason = %(reason)s,
        detail = CASE WHEN commit_lsn = %(lsn)s AND ordinal = %(ordinal)s THEN %(detail)s ELSE detail END
    WHERE slot = %(slot)s AND aggregate_type = %(aggregate_type)s AND aggregate_id = %(aggregate_id)s
        AND kind = %(kind)s AND destination IS NOT DISTINCT FROM %(destination)s
        AND (reason <> %(reason)s OR commit_lsn = %(lsn)s AND ordinal = %(ordinal)s)
"""


async def restate(
    connection: AsyncConnection[TupleRow], slot: str, lane: Lane, first: Position, refusal: Refusal
) -> None:
    """The first message of a lane was refused once more: this is why. Those behind it carry the same reason."""
    lsn = format_lsn(first.commit_lsn)
    named = {"slot": slot, "lsn": lsn, "ordinal": first.ordinal, **lane._asdict(), **refusal._asdict()}
    await connection.execute(_RESTATE, named)


_FORGET: LiteralString = """
    DELETE FROM relay.unparked
    WHERE slot = %(slot)s AND CASE commit_lsn
        WHEN '0/0' THEN EXISTS (SELECT FROM relay.checkpoint WHERE slot = %(slot)s AND state = 'streaming')
        ELSE commit_lsn < (SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = %(slot)s)
    END
"""


async def forget(connection: AsyncConnection[TupleRow], slot: str) -> None:
    """Forget what the slot can never send again.

    That is what lies before its restart_lsn. Its confirmed position is not enough: PostgreSQL saves that at checkpoints
    only, and a crash takes it back.
    """
    await connection.execute(_FORGET, {"slot": slot})


def _columns(positions: Sequence[Position]) -> dict[str, list[str] | list[int]]:
    return {
        "lsns": [format_lsn(position.commit_lsn) for position in positions],
        "ordinals": [position.ordinal for position in positions],
    }
