"""The permanent record: everything that happened in a saga, as events that its state can be rebuilt from."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, LiteralString
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import tuple_row
from pydantic import JsonValue
from pydantic_core import to_json


class Happened(StrEnum):
    """What can happen in a saga. The values are what relay.saga_log holds."""

    SAGA_STARTED = "SagaStarted"
    STEP_STARTED = "StepStarted"
    STEP_SUCCEEDED = "StepSucceeded"
    STEP_FAILED = "StepFailed"
    STEP_COMPENSATING = "StepCompensating"
    STEP_COMPENSATED = "StepCompensated"
    SAGA_COMPLETED = "SagaCompleted"
    SAGA_COMPENSATED = "SagaCompensated"


@dataclass(frozen=True, slots=True)
class LogEvent:
    """One event. `detail` holds what it carried: under "state" the saga's data as the event left them, where it did."""

    what: Happened
    step: str | None = None
    detail: Mapping[str, JsonValue] = field(default_factory=dict)


# The ordinals continue from those that a new snapshot shows: the caller holds the lock on the saga's row.
_APPEND: Final[LiteralString] = """
    INSERT INTO relay.saga_log (saga_id, ordinal, event, step, message_id, detail)
    SELECT %(saga_id)s, last.ordinal + new.number, new.event, new.step, %(message_id)s, new.detail::json
    FROM unnest(%(events)s::text[], %(steps)s::text[], %(details)s::text[])
             WITH ORDINALITY AS new (event, step, detail, number),
         (SELECT coalesce(max(ordinal), 0) AS ordinal FROM relay.saga_log WHERE saga_id = %(saga_id)s) AS last
    ORDER BY new.number
"""

_READ: Final[LiteralString] = """
    SELECT event, step, detail FROM relay.saga_log WHERE saga_id = %s ORDER BY ordinal
"""


async def append(
    conn: AsyncConnection[Any], saga_id: UUID, events: Sequence[LogEvent], message_id: str | None = None
) -> None:
    """Append events, in their order, in the caller's transaction, which holds the lock on the saga's row.

    `message_id` names the message that brought them about.
    """
    parameters = {
        "saga_id": saga_id,
        "message_id": message_id,
        "events": [event.what.value for event in events],
        "steps": [event.step for event in events],
        "details": [to_json(event.detail).decode() for event in events],
    }
    await conn.execute(_APPEND, parameters)


async def read(conn: AsyncConnection[Any], saga_id: UUID) -> list[LogEvent]:
    """All events of a saga, in the order in which they happened."""
    cursor = await conn.cursor(row_factory=tuple_row).execute(_READ, (saga_id,))
    rows: Iterable[tuple[str, str | None, dict[str, JsonValue]]] = await cursor.fetchall()
    return [LogEvent(Happened(event), step, detail) for event, step, detail in rows]
