"""What `columns` of a capture may say, and how it is told that it may not."""

import pytest

from relay.capture.columns import EVENT_STORE, FIELDS, OUTBOX, Columns, Literal, Taken, parse
from relay.capture.outbox import COLUMNS

LEAST = {"aggregate_type": "a", "aggregate_id": "b", "type": "c", "payload": "d"}


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        ("data", Taken("data")),
        ("EventData", Taken("EventData")),
        ('"odd name"', Taken("odd name")),
        ('"with ""quotes"""', Taken('with "quotes"')),
        ("headers.event-type", Taken("headers", ("event-type",))),
        ("data.order.customer.id", Taken("data", ("order", "customer", "id"))),
        ('"Odd"."a.b".c', Taken("Odd", ("a.b", "c"))),
        ("größe", Taken("größe")),
        ("'order'", Literal("order")),
        ("''", Literal("")),
        ("'it''s'", Literal("it's")),
    ],
)
def test_an_expression_is_a_column_a_path_or_a_literal(text: str, expression: Taken | Literal) -> None:
    assert parse(LEAST | {"type": text}).expressions["type"] == expression


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "a name should begin at character 1"),
        (".a", "a name should begin at character 1"),
        ("headers.", "a name should begin at character 9"),
        ("headers..a", "a name should begin at character 9"),
        ("order id", "unexpected ' ' at character 6"),
        ("headers->>'type'", 'unexpected "\'" at character 11'),
        ('headers."event', "the name that begins at character 9 is empty, or lacks its second"),
        ('""', "the name that begins at character 1 is empty"),
        ('"a"b', "unexpected 'b' at character 4"),
        ("'order", "the literal that begins at character 1 does not end"),
        ("'order' || id", "nothing may follow the literal, at character 8"),
    ],
)
def test_a_mistake_is_told_with_its_field_and_its_place(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=r"^type: ") as refused:
        parse(LEAST | {"type": text})
    assert complaint in str(refused.value)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(
        ValueError, match=r"^kind: 'rumour'.*; idd: no such field.*; type is missing; payload is missing$"
    ):
        parse({"kind": "'rumour'", "idd": "id", "aggregate_type": "a", "aggregate_id": "b"})


@pytest.mark.parametrize(
    ("field", "literal", "complaint"),
    [
        ("kind", "'rumour'", "kinds are event, command, reply"),
        ("id", "'7'", "ids are derived"),
        ("headers", "'[]'", "no JSON object"),
        ("headers", "'{'", "expecting property name"),
        ("created_at", "'yesterday'", "neither ISO 8601"),
    ],
)
def test_a_literal_that_would_spoil_every_row_is_refused(field: str, literal: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}: .*{complaint}"):
        parse(LEAST | {field: literal})


def test_each_field_may_be_given() -> None:
    columns = parse({field: field for field in FIELDS})
    assert columns.names == (*COLUMNS, "version")


def test_the_names_are_the_columns_each_once() -> None:
    columns = parse({"id": "id", "aggregate_type": "h.a", "aggregate_id": "h.b", "type": "'t'", "payload": "data"})
    assert columns.names == ("id", "h", "data")


def test_what_is_configured_is_missed_and_what_is_a_default_is_not() -> None:
    existing = {"aggregate_type", "type"}
    assert parse(LEAST | {"headers": "h"}).within(existing).names == ("a", "b", "c", "d", "h")
    assert OUTBOX.within(existing).names == ("aggregate_type", "aggregate_id", "type", "payload")
    assert OUTBOX.within({*COLUMNS, "more"}).names == COLUMNS


def test_a_literal_needs_no_column() -> None:
    columns = Columns({"kind": Literal("event"), "id": Taken("id")}, frozenset({"kind", "id"}))
    assert columns.within(()).expressions == {"kind": Literal("event")}


def test_an_event_store_gives_what_a_message_needs() -> None:
    assert EVENT_STORE.names == (
        "id",
        "stream_type",
        "stream_id",
        "type",
        "data",
        "headers",
        "created_at",
        "version",
    )
