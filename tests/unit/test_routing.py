"""Where a message goes."""

import pytest

from relay.capture.message import Kind, Message
from relay.capture.routing import route


def message(kind: Kind, destination: str | None = None) -> Message:
    return Message(
        id="0197",
        kind=kind,
        aggregate_type="order",
        aggregate_id="7",
        type="OrderCreated",
        destination=destination,
        correlation_id=None,
        reply_to=None,
        causation_id=None,
        operation=None,
        headers=b"{}",
        payload=b"{}",
        created_at="",
    )


def test_an_event_goes_to_whoever_listens_to_its_aggregate_and_type() -> None:
    assert route(message(Kind.EVENT)) == ("relay.events", "order.OrderCreated")


def test_an_event_is_not_addressed_even_if_it_names_a_service() -> None:
    assert route(message(Kind.EVENT, "customers")) == ("relay.events", "order.OrderCreated")


@pytest.mark.parametrize(
    ("kind", "exchange"), [(Kind.COMMAND, "relay.commands"), (Kind.REPLY, "relay.replies")], ids=["command", "reply"]
)
def test_a_command_or_a_reply_goes_to_the_service_that_it_names(kind: Kind, exchange: str) -> None:
    assert route(message(kind, "customers")) == (exchange, "customers")
