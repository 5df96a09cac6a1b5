"""What a delivery says about its message, and what is refused."""

from datetime import UTC, datetime

import pytest

from relay.broker.properties import Delivery, Properties
from relay.messaging import (
    Command,
    Compensated,
    Done,
    Event,
    Failure,
    Incoming,
    Message,
    OperationCancelled,
    Reply,
    Unprocessable,
)
from relay.messaging.message import decode, kind_of, type_of


class PayInvoice(Command):
    invoice: int
    card: str


def delivery(properties: Properties) -> Delivery:
    return Delivery(1, "relay.commands", "billing", False, properties, b"{}")


def test_the_name_of_the_class_is_the_type_on_the_wire() -> None:
    assert type_of(PayInvoice) == type_of(PayInvoice(invoice=1, card="x")) == "PayInvoice"


def test_a_message_is_an_event_a_command_or_a_reply() -> None:
    kinds = [kind_of(message()) for message in (Event, Command, Reply, Failure)]
    assert kinds == ["event", "command", "reply", "reply"]


def test_a_message_that_is_neither_is_refused() -> None:
    with pytest.raises(TypeError, match="neither"):
        kind_of(Message())


def test_fields_that_the_reader_does_not_know_yet_are_overlooked() -> None:
    body = b'{"invoice": 7, "card": "1234", "tip": "1.00"}'
    assert decode(PayInvoice, body) == PayInvoice(invoice=7, card="1234")


@pytest.mark.parametrize(
    "body", [b'{"invoice": 7, "card": 4111111111111111}', b"4111111111111111", b"\xff4111111111111111"]
)
def test_a_wrong_body_is_unprocessable_and_its_content_stays_out_of_the_error(body: bytes) -> None:
    with pytest.raises(Unprocessable) as refused:
        decode(PayInvoice, body)
    assert "4111111111111111" not in str(refused.value)
    assert refused.value.__suppress_context__


def test_a_wrong_body_names_the_field() -> None:
    with pytest.raises(Unprocessable, match="card: Field required"):
        decode(PayInvoice, b'{"invoice": 7}')


def test_a_delivery_tells_everything_about_its_message() -> None:
    headers = {"aggregate_type": "order", "aggregate_id": "7", "operation": "s/pay/action", "causation_id": "m0"}
    incoming = Incoming.of(
        delivery(
            Properties(
                message_id="m1",
                type="PayInvoice",
                correlation_id="s",
                reply_to="orders",
                timestamp=1_700_000_000,
                headers=headers,
            )
        )
    )
    assert incoming == Incoming(
        message_id="m1",
        type="PayInvoice",
        aggregate=("order", "7"),
        correlation_id="s",
        reply_to="orders",
        causation_id="m0",
        operation="s/pay/action",
        sent_at=datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC),
        headers=headers,
        body=b"{}",
    )


def test_a_message_that_only_speaks_cloudevents_is_understood() -> None:
    incoming = Incoming.of(
        delivery(Properties(None, headers={"ce-id": "m1", "ce-type": "Moved", "ce-partitionkey": "7"}))
    )
    assert (incoming.message_id, incoming.type, incoming.aggregate) == ("m1", "Moved", ("message", "7"))


def test_a_message_without_an_id_is_refused() -> None:
    with pytest.raises(Unprocessable, match="no id"):
        Incoming.of(delivery(Properties(None, type="PayInvoice")))


def test_a_message_without_a_type_is_refused() -> None:
    with pytest.raises(Unprocessable, match="no type"):
        Incoming.of(delivery(Properties("m1")))


def test_a_time_that_cannot_be_is_as_good_as_none() -> None:
    incoming = Incoming.of(delivery(Properties("m1", type="Moved", timestamp=1_700_000_000_000_000)))
    assert incoming.sent_at is None


@pytest.mark.parametrize(
    ("header", "attempt"),
    [("3", 3), (3, 3), (None, 1), ("0", 1), ("-1", 1), ("x", 1), (b"3", 1), (2**31, 1), (str(2**31 - 1), 2**31 - 1)],
)
def test_the_attempt_counts_from_one_and_what_is_no_number_is_the_first(
    header: str | int | bytes | None, attempt: int
) -> None:
    incoming = Incoming.of(delivery(Properties("m1", type="Moved", headers={"attempt": header})))
    assert (incoming.attempt, incoming.compensation) == (attempt, None)


def test_a_compensation_has_a_count_of_its_own() -> None:
    incoming = Incoming.of(delivery(Properties("m1", type="Moved", headers={"compensation": "2"})))
    assert (incoming.attempt, incoming.compensation) == (1, 2)


def test_every_command_is_known_to_say_what_it_may_be_answered_with() -> None:
    assert Command.replies == ()
    assert "replies" not in PayInvoice.model_fields
    assert [kind_of(reply()) for reply in (Done, Compensated, OperationCancelled)] == ["reply"] * 3
    assert isinstance(OperationCancelled(), Failure)
