"""What leaves is a CloudEvent to the official SDK: by its binding for RabbitMQ, and by the one for HTTP."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from cloudevents.core.bindings.rabbitmq import (
    RabbitMQMessage,
    from_rabbitmq_event,
    from_structured_event,
    to_binary_event,
    to_structured_event,
)
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given
from hypothesis import strategies as st

from relay.broker.encoding import Template
from relay.capture.envelope import CLOUDEVENTS
from relay.capture.message import Kind, Message
from relay.wal.lsn import Lsn, Position
from tests.unit.fake_channel import FRAME_MAX, messages_of

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
EVENT = Message(
    id="01a2057a-f347-7c3f-82ba-70ab9fdefeaa",
    kind=Kind.EVENT,
    aggregate_type="order",
    aggregate_id="7",
    type="OrderCreated",
    destination=None,
    correlation_id=None,
    reply_to=None,
    causation_id=None,
    operation=None,
    headers=json.dumps(
        {"traceparent": TRACEPARENT, "tracestate": "vendor=1", "ce-subject": "order 7", "n": 1}
    ).encode(),
    payload=b'{"total": "12.50"}',
    created_at="2025-06-01 12:00:00.5+00",
)
POSITION = Position(Lsn(0x16_B374D848), 3)


def sent(message: Message, position: Position = POSITION) -> RabbitMQMessage:
    """A message as a consumer with pika gets it."""
    template = Template("relay.events", "key", CLOUDEVENTS.common(message, "shop"))
    (one,) = messages_of(template.encode(CLOUDEVENTS.varying(message, position), message.payload, 1, FRAME_MAX))
    return RabbitMQMessage(one.properties.headers or {}, one.properties.content_type, one.body)


def received(message: Message, position: Position = POSITION) -> CloudEvent:
    return from_rabbitmq_event(sent(message, position))


EXPECTED = {
    "id": EVENT.id,
    "source": "shop",
    "type": "OrderCreated",
    "specversion": "1.0",
    "datacontenttype": "application/json",
    "time": datetime(2025, 6, 1, 12, 0, 0, 500_000, tzinfo=UTC),
    "sequence": "00000016B374D848-0000000000000003",
    "partitionkey": "7",
    "traceparent": TRACEPARENT,
    "tracestate": "vendor=1",
    "subject": "order 7",
}


def test_an_event_has_its_attributes_those_of_its_extensions_and_its_data() -> None:
    event = received(EVENT)
    assert event.get_attributes() == EXPECTED
    assert event.get_data() == {"total": "12.50"}


def test_the_headers_mean_the_same_over_http() -> None:
    """A bridge to HTTP needs no more than to pass them on, as text."""
    message = sent(EVENT)
    headers = {name: value for name, value in message.headers.items() if name.startswith("ce-")}
    event = from_http_event(HTTPMessage(headers | {"content-type": str(message.content_type)}, message.body))
    assert event.get_attributes() == EXPECTED


def test_the_sdk_sends_it_on_as_it_came() -> None:
    message = sent(EVENT)
    again = to_binary_event(from_rabbitmq_event(message))
    ours = {name: value for name, value in message.headers.items() if name.startswith("ce-")}
    assert again.headers == ours | {"ce-time": "2025-06-01T12:00:00.500000Z"}
    assert again.content_type == message.content_type
    assert json.loads(again.body) == json.loads(message.body)


@pytest.mark.parametrize(
    "payload",
    [b"[1, 2]", b'"text"', b"12.5", b"true", b"null", b"", '{"note":   "ünïcode"}'.encode()],
    ids=["list", "text", "number", "truth", "null", "nothing", "spaces"],
)
def test_the_data_may_be_anything_that_json_can_say(payload: bytes) -> None:
    message = EVENT._replace(payload=payload)
    assert sent(message).body == payload
    assert received(message).get_data() == (json.loads(payload) if payload else None)


def test_what_a_message_has_not_is_no_attribute() -> None:
    event = received(EVENT._replace(aggregate_id="", created_at="infinity", headers=b"{}", payload=b"{}"))
    given = event.get_attributes().keys() - {"time"}  # which the SDK then makes up
    assert given == {"id", "source", "type", "specversion", "datacontenttype", "sequence"}


printable = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), min_size=1, max_size=20)
"""What CloudEvents allows in text, and no empty ones."""


@given(
    message=st.builds(
        EVENT._replace,
        id=printable,
        kind=st.sampled_from(Kind),
        aggregate_type=printable,
        aggregate_id=printable | st.just(""),
        type=printable,
        causation_id=st.none() | printable,
        operation=st.none() | printable,
        headers=st.dictionaries(printable.map("own {}".format), printable, max_size=3).map(json.dumps).map(str.encode),
        created_at=st.datetimes().map(lambda time: f"{time.isoformat(' ')}+00"),
    ),
    commit_lsn=st.integers(0, (1 << 64) - 1),
    ordinal=st.integers(0, (1 << 63) - 1),
)
def test_every_message_is_an_event(message: Message, commit_lsn: int, ordinal: int) -> None:
    event = received(message, Position(Lsn(commit_lsn), ordinal))
    attributes: dict[str, Any] = {
        "id": message.id,
        "source": "shop",
        "type": message.type,
        "specversion": "1.0",
        "datacontenttype": "application/json",
        "time": datetime.fromisoformat(message.created_at),
        "sequence": f"{commit_lsn:016X}-{ordinal:016X}",
        "partitionkey": message.aggregate_id,
    }
    assert event.get_attributes() == {name: value for name, value in attributes.items() if value != ""}
    structured = from_structured_event(to_structured_event(event))
    assert structured.get_attributes() == event.get_attributes()
