"""The permanent record: everything that happened in a saga, as events that its state can be rebuilt from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, LiteralString
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import tuple_row
from pydantic import JsonValue


class Happened(StrEnum):
    """What can happen in a saga. The values are what relay.saga_log holds."""

    SAGA_WAITING = "SagaWaiting"
    SAGA_STARTED = "SagaStarted"
    STEP_STARTED = "StepStarted"
    STEP_SKIPPED = "StepSkipped"
    STEP_SUCCEEDED = "StepSucceeded"
    STEP_FAILED = "StepFailed"
    STEP_TIMED_OUT = "StepTimedOut"
    STEP_COMPENSATING = "StepCompensating"
    STEP_COMPENSATED = "StepCompensated"
    COMPENSATION_FAILED = "CompensationFailed"
    SAGA_TIMED_OUT = "SagaTimedOut"
    SAGA_ABORTED = "SagaAborted"
    SAGA_COMPLETED = "SagaCompleted"
    SAGA_COMPENSATED = "SagaCompensated"
    SAGA_SUSPENDED = "SagaSuspended"
    OPERATOR_ACTION = "OperatorAction"


@dataclass(frozen=True, slots=True)
class LogEvent:
    """One event.

    `attempt` counts those of the step, or of its compensation, from 1. `reason` says why, where something went wrong.
    `detail` holds what else it carried: under "state" the saga's data, where the event has changed them; under "reply"
    the answer of a participant, and "late" if that came after the step was given up; under "then" what a failure led
    to, and under "retry_in_s" after how many seconds; "settled" if a failure shows that the attempts before it have not
    happened either; "pending" if the saga's time is over, but it cannot turn back while its pivot may have happened.
    """

    what: Happened
    step: str | None = None
    attempt: int | None = None
    reason: str | None = None
    detail: Mapping[str, JsonValue] = field(default_factory=dict)


_READ: Final[LiteralString] = """
    SELECT event, step, attempt, reason, detail FROM relay.saga_log WHERE saga_id = %s ORDER BY ordinal
"""


async def read(conn: AsyncConnection[Any], saga_id: UUID) -> list[LogEvent]:
    """All events of a saga, in the order in which they happened."""
    cursor = await conn.cursor(row_factory=tuple_row).execute(_READ, (saga_id,))
    return [LogEvent(Happened(event), *rest) for event, *rest in await cursor.fetchall()]
