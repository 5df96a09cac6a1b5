"""Rows of the outbox become messages, by the newest description of the table."""

from collections.abc import Mapping

import pytest

from relay.capture.message import CaptureError, Kind, Message
from relay.capture.outbox import COLUMNS, REQUIRED, OutboxCapture, to_message
from relay.wal.pgoutput import Binary, Column, Insert, Relation, Unchanged, Value

OUTBOX = 4001

ROW: dict[str, bytes | None] = {
    "id": b"0197a0b0-0000-7000-8000-000000000001",
    "seq": b"42",
    "kind": b"command",
    "aggregate_type": b"order",
    "aggregate_id": "naïve ✓".encode(),
    "type": b"ReserveCredit",
    "destination": b"customers",
    "correlation_id": b"saga-1",
    "reply_to": b"orders",
    "causation_id": b"0197a0b0-0000-7000-8000-000000000000",
    "operation": b"saga-1/reserve_credit/0",
    "headers": b'{"traceparent": "00-ab-cd-01"}',
    "payload": b'{"b": 1,   "a": 2.50}',
    "created_at": b"2025-06-01 12:00:00+00",
    "txid": b"7",
}
"""As relay.outbox has it, in the order of its columns."""

OPTIONAL = ("destination", "correlation_id", "reply_to", "causation_id", "operation")


def outbox(*columns: str, oid: int = OUTBOX, namespace: str = "relay", name: str = "outbox") -> Relation:
    return Relation(oid, namespace, name, "d", tuple(Column(column, False, 25, -1) for column in columns or ROW))


def insert(row: Mapping[str, Value], *columns: str, oid: int = OUTBOX) -> Insert:
    return Insert(oid, tuple(row[column] for column in columns or ROW))


@pytest.fixture
def capture() -> OutboxCapture:
    """A capture that has been told of the outbox."""
    capture = OutboxCapture()
    capture.describe(outbox())
    return capture


def test_a_row_is_a_complete_message(capture: OutboxCapture) -> None:
    assert capture.capture(insert(ROW)) == Message(
        id="0197a0b0-0000-7000-8000-000000000001",
        kind=Kind.COMMAND,
        aggregate_type="order",
        aggregate_id="naïve ✓",
        type="ReserveCredit",
        destination="customers",
        correlation_id="saga-1",
        reply_to="orders",
        causation_id="0197a0b0-0000-7000-8000-000000000000",
        operation="saga-1/reserve_credit/0",
        headers=b'{"traceparent": "00-ab-cd-01"}',
        payload=b'{"b": 1,   "a": 2.50}',
        created_at="2025-06-01 12:00:00+00",
    )


def test_the_payload_is_not_touched_whatever_it_is(capture: OutboxCapture) -> None:
    message = capture.capture(insert(ROW | {"payload": b"not \xff even text"}))
    assert message is not None
    assert message.payload == b"not \xff even text"


@pytest.mark.parametrize("column", OPTIONAL)
def test_a_null_stays_a_null(capture: OutboxCapture, column: str) -> None:
    message = capture.capture(insert(ROW | {column: None}))
    assert message is not None
    assert [name for name in OPTIONAL if getattr(message, name) is None] == [column]


@pytest.mark.parametrize("kind", list(Kind))
def test_the_kind_is_that_of_the_row(capture: OutboxCapture, kind: Kind) -> None:
    message = capture.capture(insert(ROW | {"kind": kind.encode()}))
    assert message is not None
    assert message.kind is kind


def test_other_tables_are_ignored(capture: OutboxCapture) -> None:
    capture.describe(outbox("id", "total", oid=5000, namespace="public", name="orders"))
    assert capture.capture(Insert(5000, (b"1", b"12.50"))) is None


def test_a_table_that_was_never_described_is_ignored(capture: OutboxCapture) -> None:
    assert capture.capture(insert(ROW, oid=6000)) is None


@pytest.mark.parametrize(("namespace", "name"), [("public", "outbox"), ("relay", "inbox"), ("outbox", "relay")])
def test_a_table_of_a_similar_name_is_another_table(namespace: str, name: str) -> None:
    capture = OutboxCapture()
    capture.describe(outbox(namespace=namespace, name=name))
    assert capture.capture(insert(ROW)) is None


def test_the_newest_order_of_the_columns_counts(capture: OutboxCapture) -> None:
    before = capture.capture(insert(ROW))
    backwards = tuple(reversed(ROW))
    capture.describe(outbox(*backwards))
    assert capture.capture(insert(ROW, *backwards)) == before


def test_columns_that_come_later_are_no_trouble(capture: OutboxCapture) -> None:
    before = capture.capture(insert(ROW))
    capture.describe(outbox("priority", *ROW))
    assert capture.capture(insert(ROW | {"priority": b"9"}, "priority", *ROW)) == before


def test_an_outbox_that_is_renamed_is_no_outbox_any_more(capture: OutboxCapture) -> None:
    capture.describe(outbox(name="outbox_old"))
    assert capture.capture(insert(ROW)) is None


@pytest.mark.parametrize("missing", COLUMNS)
def test_an_outbox_without_a_column_is_refused_by_its_name(missing: str) -> None:
    with pytest.raises(CaptureError, match=f"lacks the column {missing}") as refused:
        OutboxCapture().describe(outbox(*(column for column in ROW if column != missing)))
    assert "relay migrate" in refused.value.hint


@pytest.mark.parametrize("column", REQUIRED)
def test_a_row_without_the_heart_of_a_message_is_refused(capture: OutboxCapture, column: str) -> None:
    with pytest.raises(CaptureError, match="nulls where a message needs values"):
        capture.capture(insert(ROW | {column: None}))


def test_a_row_of_an_unknown_kind_is_refused(capture: OutboxCapture) -> None:
    """The table's CHECK keeps them out; whoever dropped it gets a sentence and no traceback."""
    with pytest.raises(CaptureError, match="rumour"):
        capture.capture(insert(ROW | {"kind": b"rumour"}))


def test_a_row_whose_other_columns_are_null_is_a_message_all_the_same(capture: OutboxCapture) -> None:
    """The table does not allow it; whoever changed it gets the defaults of its columns."""
    message = capture.capture(insert(ROW | {"kind": None, "headers": None, "created_at": None}))
    assert message is not None
    assert (message.kind, message.headers, message.created_at) == (Kind.EVENT, b"{}", "")


@pytest.mark.parametrize("value", [b"not \xff text", Binary(b"7"), Unchanged.TOAST], ids=["latin", "binary", "absent"])
@pytest.mark.parametrize("column", [column for column in COLUMNS if column not in ("headers", "payload")])
def test_a_value_that_is_no_text_is_refused_and_never_guessed(
    capture: OutboxCapture, column: str, value: Value
) -> None:
    with pytest.raises(CaptureError, match=r"not text in UTF-8|of an unknown kind"):
        capture.capture(insert({**ROW, column: value}))


@pytest.mark.parametrize("value", [Binary(b"{}"), Unchanged.TOAST], ids=["binary", "absent"])
@pytest.mark.parametrize("column", ["headers", "payload"])
def test_headers_and_a_payload_that_are_no_text_are_refused(capture: OutboxCapture, column: str, value: Value) -> None:
    with pytest.raises(CaptureError, match="0197a0b0-0000-7000-8000-000000000001 holds values that are not text"):
        capture.capture(insert({**ROW, column: value}))


def test_values_in_the_order_of_columns_make_the_same_message(capture: OutboxCapture) -> None:
    """The rows older than the slot come by SELECT, and nobody sees a difference."""
    values = [ROW[column] for column in COLUMNS]
    assert to_message(values) == capture.capture(insert(ROW))


def test_the_columns_are_in_the_order_of_the_fields_of_a_message() -> None:
    assert Message._fields == (*COLUMNS, "capture")
    given = [ROW[column] for column in COLUMNS]
    *made, capture = to_message(given)
    assert [as_text(value) for value in made] == [as_text(value) for value in given]
    assert capture == "outbox"


def as_text(value: str | bytes | None) -> str | None:
    return value.decode() if isinstance(value, bytes) else value


def test_a_message_names_itself_without_its_payload(capture: OutboxCapture) -> None:
    words = str(capture.capture(insert(ROW)))
    assert words == "command ReserveCredit 0197a0b0-0000-7000-8000-000000000001 of order naïve ✓"
