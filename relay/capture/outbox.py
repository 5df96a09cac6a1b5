"""Rows of relay.outbox -> messages."""

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Final, TypeAlias

from relay.capture.message import OUTBOX, CaptureError, Kind, Message
from relay.wal.pgoutput import Insert, Relation, Row, Value

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

REQUIRED: Final = ("id", "aggregate_type", "aggregate_id", "type", "payload")
"""Those that cannot be null: without them there is no message."""

_Plan: TypeAlias = "Callable[[Row], tuple[bytes | None, ...]]"
"""Picks COLUMNS out of a row. Whether they are text at all, `to_message` finds out."""

_KINDS: Final[dict[bytes | None, Kind]] = {None: Kind.EVENT, **{kind.encode(): kind for kind in Kind}}
_NO_HEADERS: Final = b"{}"

_new: Final = tuple.__new__
"""Makes a named tuple in half the time of its own constructor, which is Python."""


class OutboxCapture:
    """Turns rows of the outbox into messages, by the newest description of the table, and ignores every other table."""

    def __init__(self, name: str = OUTBOX) -> None:
        """`name` is the capture's."""
        self._name = name
        self._plans: dict[int, _Plan] = {}

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
        self._plans[relation.oid] = itemgetter(*(positions[column] for column in COLUMNS))

    def capture(self, insert: Insert) -> Message | None:
        """The message of a new row, None when the row is not from the outbox. Raises CaptureError."""
        plan = self._plans.get(insert.relation_oid)
        return None if plan is None else to_message(plan(insert.new), self._name)


def to_message(values: Sequence[bytes | None], capture: str = OUTBOX) -> Message:
    """The message of a row, given as text in the order of COLUMNS. Raises CaptureError."""
    (
        message_id,
        kind,
        aggregate_type,
        aggregate_id,
        message_type,
        destination,
        correlation_id,
        reply_to,
        causation_id,
        operation,
        headers,
        payload,
        created_at,
    ) = values
    if headers is None:
        headers = _NO_HEADERS
    if message_id is None or aggregate_type is None or aggregate_id is None or message_type is None:
        raise _refusal(values)
    if type(headers) is not bytes or type(payload) is not bytes:
        raise _refusal(values)
    try:
        fields = (
            message_id.decode(),
            _KINDS[kind],
            aggregate_type.decode(),
            aggregate_id.decode(),
            message_type.decode(),
            None if destination is None else destination.decode(),
            None if correlation_id is None else correlation_id.decode(),
            None if reply_to is None else reply_to.decode(),
            None if causation_id is None else causation_id.decode(),
            None if operation is None else operation.decode(),
            headers,
            payload,
            "" if created_at is None else created_at.decode(),
            capture,
        )
    except (AttributeError, KeyError, UnicodeDecodeError):  # Binary and Unchanged decode nothing
        raise _refusal(values) from None
    return _new(Message, fields)


def _refusal(values: Sequence[Value]) -> CaptureError:
    """What is wrong with a row that is no message."""
    row = dict(zip(COLUMNS, values, strict=True))
    subject = f"the outbox row with id {_shown(row['id'])}"
    if any(row[column] is None for column in REQUIRED):
        return CaptureError(f"{subject} has nulls where a message needs values")
    kind = row["kind"]
    if isinstance(kind, bytes) and kind not in _KINDS:
        return CaptureError(f"{subject} is of an unknown kind {_shown(kind)!r}")
    return CaptureError(f"{subject} holds values that are not text in UTF-8")


def _shown(value: Value) -> str | None:
    return value.decode(errors="replace") if isinstance(value, bytes) else None
