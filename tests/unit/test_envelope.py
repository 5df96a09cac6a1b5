"""What a message looks like on the wire: CloudEvents in binary mode, and headers that AMQP can carry."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika.frame import Header
from pika.spec import BasicProperties

from relay.broker.properties import HeaderValue
from relay.capture.envelope import cloudevents
from relay.capture.message import Kind, Message

COMMAND = Message(
    id="0197a0b0-0000-7000-8000-000000000001",
    kind=Kind.COMMAND,
    aggregate_type="order",
    aggregate_id="7",
    type="ReserveCredit",
    destination="customers",
    correlation_id="saga-1",
    reply_to="orders",
    causation_id="0197a0b0-0000-7000-8000-000000000000",
    operation="saga-1/reserve_credit/0",
    headers=b'{"traceparent": "00-ab-cd-01", "attempt": 2}',
    payload=b'{"amount":   "12.50"}',
    created_at="2025-06-01 12:00:00.5+00",
)


def test_every_field_has_its_property() -> None:
    properties = cloudevents(COMMAND, "shop")
    assert properties.message_id == COMMAND.id
    assert properties.type == "ReserveCredit"
    assert properties.content_type == "application/json"
    assert properties.correlation_id == "saga-1"
    assert properties.reply_to == "orders"
    assert properties.app_id == "shop"
    assert properties.timestamp == 1748779200


def test_the_headers_are_those_of_the_relay_and_those_of_the_row() -> None:
    assert cloudevents(COMMAND, "shop").headers == {
        "ce-id": COMMAND.id,
        "ce-source": "shop",
        "ce-type": "ReserveCredit",
        "ce-specversion": "1.0",
        "ce-partitionkey": "7",
        "aggregate_type": "order",
        "aggregate_id": "7",
        "causation_id": COMMAND.causation_id,
        "operation": "saga-1/reserve_credit/0",
        "traceparent": "00-ab-cd-01",
        "attempt": 2,
    }


def test_what_a_message_has_not_is_left_out() -> None:
    event = replace(
        COMMAND, kind=Kind.EVENT, correlation_id=None, reply_to=None, causation_id=None, operation=None, headers=b"{}"
    )
    properties = cloudevents(event, "shop")
    assert (properties.correlation_id, properties.reply_to) == (None, None)
    assert set(properties.headers) == {
        "ce-id", "ce-source", "ce-type", "ce-specversion", "ce-partitionkey", "aggregate_type", "aggregate_id",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["ce-id", "ce-source", "aggregate_id", "causation_id", "operation"])
def test_a_row_cannot_replace_the_headers_of_the_relay(name: str) -> None:
    forged = replace(COMMAND, headers=json.dumps({name: "forged"}).encode())
    assert cloudevents(forged, "shop").headers[name] != "forged"


@pytest.mark.parametrize(
    ("created_at", "timestamp"),
    [
        ("1970-01-01 00:00:00+00", 0),
        ("2025-06-01 12:00:00+00", 1748779200),
        ("2025-06-01 12:00:00.999999+00", 1748779200),
    ],
)
def test_the_timestamp_is_in_whole_seconds(created_at: str, timestamp: int) -> None:
    assert cloudevents(replace(COMMAND, created_at=created_at), "shop").timestamp == timestamp


@pytest.mark.parametrize(
    "created_at",
    [
        "infinity",
        "-infinity",
        "0044-03-15 12:00:00+00 BC",
        "294276-12-31 23:59:59.999999+00",
        "1969-12-31 23:59:59+00",  # AMQP's timestamp has no sign
        "",
    ],
)
def test_a_message_of_a_time_that_amqp_cannot_tell_leaves_without_one(created_at: str) -> None:
    assert cloudevents(replace(COMMAND, created_at=created_at), "shop").timestamp is None


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
integers = st.integers(-(1 << 63), (1 << 63) - 1)
header_values = st.recursive(
    st.none() | st.booleans() | texts | integers,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(texts, header_values, max_size=3))
def test_any_headers_of_a_row_arrive_as_they_were_written(headers: dict[str, HeaderValue]) -> None:
    the_relays = cloudevents(replace(COMMAND, headers=b"{}"), "shop").headers
    properties = cloudevents(replace(COMMAND, headers=json.dumps(headers).encode()), "shop")
    assert over_the_wire(dict(properties.headers)) == {**headers, **the_relays}


@pytest.mark.parametrize(
    ("written", "arrived"),
    [
        (b'{"weight": 1.50}', {"weight": "1.50"}),
        (b'{"rates": [0.10, -2.5e-3]}', {"rates": ["0.10", "-2.5e-3"]}),
        (b'{"nested": {"huge": 1e400}}', {"nested": {"huge": "1e400"}}),
        (b'{"big": 9223372036854775808}', {"big": "9223372036854775808"}),
        (b'{"endless": ' + b"9" * 5000 + b"}", {"endless": "9" * 5000}),
    ],
    ids=["fraction", "fractions in a list", "beyond a float", "beyond 64 bits", "beyond Python's patience"],
)
def test_a_number_for_which_amqp_has_no_exact_type_arrives_as_it_was_written(
    written: bytes, arrived: dict[str, HeaderValue]
) -> None:
    headers = over_the_wire(dict(cloudevents(replace(COMMAND, headers=written), "shop").headers))
    assert {name: headers[name] for name in arrived} == arrived


def over_the_wire(headers: dict[str, Any]) -> dict[str, Any]:
    """Written and read by pika."""
    frame = Header(1, 0, BasicProperties(headers=headers))
    arrived = BasicProperties()
    arrived.decode(frame.marshal()[7 + 12 :])
    return arrived.headers
