"""The rows of relay.saga and relay.saga_log: where each saga stands, and all that happened in it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, LiteralString, Self
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import scalar_row, tuple_row
from pydantic_core import to_json

from relay.saga import locks
from relay.saga.log import LogEvent
from relay.saga.record import Record

_LOCK: Final[LiteralString] = """
    SELECT type, definition, events, status, state, progress, reason FROM relay.saga WHERE id = %s FOR UPDATE
"""

# One round trip for everything, for a new saga and for one that goes on: the hot path of the engine. Locks are given
# back whatever the definition says now: it may have said something else when the saga started.
_SAVE: Final[LiteralString] = """
    WITH log AS (
        INSERT INTO relay.saga_log (saga_id, ordinal, event, step, attempt, reason, message_id, detail)
        SELECT %(id)s, %(known)s + new.number, new.event, new.step, new.attempt, new.reason, %(message_id)s,
               new.detail::json
        FROM unnest(%(events)s::text[], %(steps)s::text[], %(attempts)s::int[], %(reasons)s::text[],
                    %(details)s::text[]) WITH ORDINALITY AS new (event, step, attempt, reason, detail, number)
        ORDER BY new.number
    ), timers AS (
        INSERT INTO relay.saga_timer (service, saga_id, purpose, step, attempt, due_at)
        SELECT %(service)s, %(id)s, new.purpose, new.step, new.attempt,
               clock_timestamp() + new.delay_s * interval '1 second'
        FROM unnest(%(timer_purposes)s::text[], %(timer_steps)s::text[], %(timer_attempts)s::int[],
                    %(timer_delays)s::float8[]) AS new (purpose, step, attempt, delay_s)
    ), freed AS (
        DELETE FROM relay.saga_lock WHERE saga_id = %(id)s AND %(ended)s RETURNING resource, taken_at
    ), saved AS (
        INSERT INTO relay.saga AS saga
            (id, type, definition, events, status, step, state, progress, reason, ended_at)
        VALUES (%(id)s, %(type)s, %(definition)s, %(last)s, %(status)s, %(under_way)s, %(state)s::text::json,
                %(progress)s::text::json, %(reason)s, CASE WHEN %(ended)s THEN clock_timestamp() END)
        ON CONFLICT (id) DO UPDATE
        SET events = excluded.events, status = excluded.status, step = excluded.step, state = excluded.state,
            progress = excluded.progress, reason = excluded.reason, updated_at = clock_timestamp(),
            ended_at = excluded.ended_at
    )
    SELECT resource FROM freed WHERE taken_at IS NOT NULL
"""


@dataclass(frozen=True, slots=True)
class Stored:
    """A saga's row, its columns in the order in which they are selected. `events` is how many events its log has."""

    type: str
    definition: str | None
    events: int
    record: Record

    @classmethod
    def of(cls, row: tuple[Any, ...]) -> Self:
        """Read a row."""
        saga_type, definition, events, status, state, progress, reason = row
        return cls(saga_type, definition, events, Record.of(status, state, progress, reason))


@dataclass(frozen=True, slots=True)
class Alarm:
    """A timer that is to be set: it will be due in so many seconds."""

    purpose: str
    step: str | None
    attempt: int | None
    delay_s: float


@dataclass(frozen=True, slots=True)
class Change:
    """What happened in a saga, and what it led to: all of it is stored at once.

    `message_id` is that of the message which brought it about.
    """

    record: Record
    events: Sequence[LogEvent]
    alarms: Sequence[Alarm]
    message_id: str | None = None


async def lock(conn: AsyncConnection[Any], saga_id: UUID) -> Stored | None:
    """Read a saga and lock it until the transaction ends; None when there is none of that id.

    Whoever else has it locked is waited for, so that the replies of one saga are handled one after the other.
    """
    cursor = await conn.cursor(row_factory=tuple_row).execute(_LOCK, (saga_id,))
    row = await cursor.fetchone()
    return None if row is None else Stored.of(row)


async def save(conn: AsyncConnection[Any], saga_id: UUID, service: str, before: Stored, change: Change) -> Stored:
    """Store where a saga stands now, with its log and its timers; what its row is now.

    `before` is what its row was, and its lock is held; for a new saga, one without events. One statement; and at the
    end of a saga with locks one more, which lets in those that wait for them.
    """
    after = replace(before, events=before.events + len(change.events), record=change.record)
    parameters = _parameters(saga_id, service, before, after, change)
    cursor = await conn.cursor(row_factory=scalar_row).execute(_SAVE, parameters)
    freed: list[str] = await cursor.fetchall()
    if freed:
        await locks.grant(conn, freed)
    return after


def _parameters(saga_id: UUID, service: str, before: Stored, after: Stored, change: Change) -> dict[str, object]:
    record, events, alarms = change.record, change.events, change.alarms
    return {
        "id": saga_id,
        "type": after.type,
        "definition": after.definition,
        "service": service,
        "known": before.events,
        "last": after.events,
        "status": record.status.value,
        "under_way": record.under_way,
        "state": to_json(record.state).decode(),
        "progress": to_json(record.progress()).decode(),
        "reason": record.reason,
        "ended": record.ended,
        "message_id": change.message_id,
        "events": [event.what.value for event in events],
        "steps": [event.step for event in events],
        "attempts": [event.attempt for event in events],
        "reasons": [event.reason for event in events],
        "details": [to_json(event.detail).decode() for event in events],
        "timer_purposes": [alarm.purpose for alarm in alarms],
        "timer_steps": [alarm.step for alarm in alarms],
        "timer_attempts": [alarm.attempt for alarm in alarms],
        "timer_delays": [alarm.delay_s for alarm in alarms],
    }
