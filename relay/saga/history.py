"""What a person asks about sagas: which there are, and all that happened in one.

For tools: plain connections, no loop.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, LiteralString, NamedTuple, cast
from uuid import UUID

from psycopg import Connection
from psycopg.rows import class_row, dict_row
from pydantic import JsonValue

from relay.saga.record import Status


@dataclass(frozen=True, slots=True)
class Entry:
    """A saga. The names and their meaning are a contract: `relay saga list --format json` prints them."""

    id: str
    type: str
    status: str
    step: str | None
    """The steps that are under way."""
    reason: str | None
    """Why it is compensated, or suspended."""
    started_at: datetime
    updated_at: datetime
    ended_at: datetime | None
    age_seconds: float
    """Since it was started, whether it has ended or not."""


@dataclass(frozen=True, slots=True)
class StepLine:
    """Where a step stands. `undo_attempt` counts the attempts of its compensation, 0 when there was none."""

    step: str
    phase: str
    attempt: int
    undo_attempt: int


@dataclass(frozen=True, slots=True)
class Timer:
    """What is to happen at a certain time, unless the saga has gone on by then."""

    purpose: str
    step: str | None
    attempt: int | None
    due_at: datetime | None
    """None when it is held: the saga is suspended, because it could not be fired."""
    due_in_seconds: float | None
    """Less than 0 when it is overdue."""
    failures: int
    """How often code of the saga raised when it was fired."""
    interruptions: int
    """How often a conflict or a lost connection interrupted that."""


@dataclass(frozen=True, slots=True)
class Lock:
    """What the saga works on, or waits for."""

    resource: str
    held: bool
    taken_at: datetime | None
    holder: str | None
    """The saga that has it."""
    ahead: int
    """How many others come before it, among those that wait."""


@dataclass(frozen=True, slots=True)
class Event:
    """What happened, as relay.saga_log has it."""

    ordinal: int
    at: datetime
    offset_seconds: float
    """Since the saga was started."""
    event: str
    step: str | None
    attempt: int | None
    reason: str | None
    message_id: str | None
    """The message that brought it about."""
    detail: JsonValue


@dataclass(frozen=True, slots=True)
class Sheet(Entry):
    """A saga, whole."""

    definition: str | None
    """Hash of the definition that it started under."""
    steps: list[StepLine]
    timers: list[Timer]
    """Those that have not fired, the next one first."""
    locks: list[Lock]
    state: JsonValue
    timeline: list[Event]


class Filter(NamedTuple):
    """Which sagas are meant: those for which everything holds that is given."""

    type: str | None = None
    statuses: tuple[Status, ...] = ()
    older_than_s: float | None = None
    """Started longer ago than that."""


_ENTRY: Final[LiteralString] = """
    SELECT id::text, type, status, step, reason, started_at, updated_at, ended_at,
           extract(epoch FROM clock_timestamp() - started_at)::float8 AS age_seconds
"""

_ENTRIES: Final[LiteralString] = (
    _ENTRY
    + """
    FROM relay.saga
    WHERE (%(type)s::text IS NULL OR type = %(type)s)
      AND (%(statuses)s::text[] IS NULL OR status = ANY (%(statuses)s))
      AND (%(older_than_s)s::float8 IS NULL OR started_at < now() - make_interval(secs => %(older_than_s)s))
    ORDER BY started_at DESC, id DESC LIMIT %(limit)s
"""
)

_WHOLE: Final[LiteralString] = _ENTRY + ", definition, progress, state FROM relay.saga WHERE id = %s"

_TIMERS: Final[LiteralString] = """
    SELECT purpose, step, attempt, nullif(due_at, 'infinity') AS due_at,
           extract(epoch FROM nullif(due_at, 'infinity') - clock_timestamp())::float8 AS due_in_seconds,
           failures, interruptions
    FROM relay.saga_timer AS timer WHERE saga_id = %s AND fired_at IS NULL ORDER BY timer.due_at, id
"""

_LOCKS: Final[LiteralString] = """
    SELECT own.resource, own.taken_at IS NOT NULL AS held, own.taken_at, holder.saga_id::text AS holder,
           (SELECT count(*) FROM relay.saga_lock AS other
            WHERE other.resource = own.resource AND own.taken_at IS NULL AND other.taken_at IS NULL
              AND other.position < own.position) AS ahead
    FROM relay.saga_lock AS own
    LEFT JOIN relay.saga_lock AS holder ON holder.resource = own.resource AND holder.taken_at IS NOT NULL
    WHERE own.saga_id = %s ORDER BY own.resource
"""

# The saga's row and its first event are written by one statement, each with the time of its own moment.
_TIMELINE: Final[LiteralString] = """
    SELECT log.ordinal, log.at, greatest(extract(epoch FROM log.at - saga.started_at), 0)::float8 AS offset_seconds,
           log.event, log.step, log.attempt, log.reason, log.message_id, log.detail
    FROM relay.saga_log AS log JOIN relay.saga AS saga ON saga.id = log.saga_id
    WHERE log.saga_id = %s ORDER BY log.ordinal
"""


def entries(connection: Connection[Any], wanted: Filter, limit: int) -> list[Entry]:
    """The sagas that are meant, those that were started last first."""
    named = {
        "type": wanted.type,
        "statuses": [status.value for status in wanted.statuses] or None,
        "older_than_s": wanted.older_than_s,
        "limit": limit,
    }
    return connection.cursor(row_factory=class_row(Entry)).execute(_ENTRIES, named).fetchall()


def sheet(connection: Connection[Any], saga_id: UUID) -> Sheet | None:
    """Everything about a saga, as it was at one moment; None when there is none of that id.

    The connection must not be in a transaction.
    """
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        row = connection.cursor(row_factory=dict_row).execute(_WHOLE, (saga_id,)).fetchone()
        if row is None:
            return None
        progress = cast("Mapping[str, JsonValue]", row.pop("progress"))
        return Sheet(
            **row,
            steps=_steps(progress),
            timers=connection.cursor(row_factory=class_row(Timer)).execute(_TIMERS, (saga_id,)).fetchall(),
            locks=connection.cursor(row_factory=class_row(Lock)).execute(_LOCKS, (saga_id,)).fetchall(),
            timeline=connection.cursor(row_factory=class_row(Event)).execute(_TIMELINE, (saga_id,)).fetchall(),
        )


def _steps(progress: Mapping[str, JsonValue]) -> list[StepLine]:
    """Whatever the engine has written, also one that is newer than this tool: what it does not know is not shown."""
    steps = cast("Mapping[str, Mapping[str, Any]]", progress.get("steps", {}))
    return [
        StepLine(name, str(step.get("phase")), int(step.get("attempt", 1)), int(step.get("undo_attempt", 0)))
        for name, step in steps.items()
    ]
