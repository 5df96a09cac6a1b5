"""Rows of relay.outbox -> messages."""

from collections.abc import Sequence
from typing import Final

from relay.capture.message import CaptureError, Kind, Message
from relay.wal.pgoutput import Insert, Relation, Value

SCHEMA: Final = "relay"
TABLE: Final = "outbox"

COLUMNS: Final = (
    "id",
    "kind",
    "aggregate_type",
    "aggregate_id",
    "type",
    "destination",
    "correlation_id",
    "reply_to",
    "causation_id",
    "operation",
    "headers",
    "payload",
    "created_at",
)
"""What a message is made of, in the order of Message's fields."""


class OutboxCapture:
    """Turns rows of the outbox into messages, by the newest description of the table, and ignores every other table."""

    def __init__(self) -> None:
        self._plans: dict[int, tuple[int, ...]] = {}

    def describe(self, relation: Relation) -> None:
        """The table looks like this from here on. Raises CaptureError when a column is missing."""
        if (relation.namespace, relation.name) != (SCHEMA, TABLE):
            self._plans.pop(relation.oid, None)
            return
        positions = {column.name: position for position, column in enumerate(relation.columns)}
        missing = [column for column in COLUMNS if column not in positions]
        if missing:
            hint = "Restore the columns, or run `relay migrate` if the schema is older than this relay."
            raise CaptureError(f"{SCHEMA}.{TABLE} lacks the column {', '.join(missing)}", hint)
        self._plans[relation.oid] = tuple(positions[column] for column in COLUMNS)

    def capture(self, insert: Insert) -> Message | None:
        """The message of a new row, None when the row is not from the outbox. Raises CaptureError."""
        plan = self._plans.get(insert.relation_oid)
        return None if plan is None else to_message([insert.new[position] for position in plan])


def to_message(values: Sequence[Value]) -> Message:
    """The message of a row, given as text in the order of COLUMNS. Raises CaptureError."""
    *texts, headers, payload, created_at = (value if isinstance(value, bytes) else None for value in values)
    message_id, kind, aggregate_type, aggregate_id, message_type, *optional = (
        None if text is None else text.decode() for text in texts
    )
    destination, correlation_id, reply_to, causation_id, operation = optional
    if message_id is None or aggregate_type is None or aggregate_id is None or message_type is None or payload is None:
        raise CaptureError(f"the outbox row with id {message_id} has nulls where a message needs values")
    return Message(
        id=message_id,
        kind=_kind(message_id, kind),
        aggregate_type=aggregate_type,
        aggregate_id=aggregate_id,
        type=message_type,
        destination=destination,
        correlation_id=correlation_id,
        reply_to=reply_to,
        causation_id=causation_id,
        operation=operation,
        headers=headers or b"{}",
        payload=payload,
        created_at=(created_at or b"").decode(),
    )


def _kind(message_id: str, text: str | None) -> Kind:
    try:
        return Kind(text or Kind.EVENT)
    except ValueError:
        raise CaptureError(f"the outbox row with id {message_id} is of an unknown kind {text!r}") from None
