"""Where a message goes: templates, what is wrong with them, and which of them counts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.capture.message import Kind, Message
from relay.capture.routing import FIELDS, Address, RouteTemplate, Routing

EVENT = Message(
    id="0197",
    kind=Kind.EVENT,
    aggregate_type="order",
    aggregate_id="7",
    type="OrderCreated",
    destination=None,
    correlation_id="saga-1",
    reply_to="orders",
    causation_id=None,
    operation="saga-1/reserve/0",
    headers=b"{}",
    payload=b"{}",
    created_at="",
    capture="outbox",
)
COMMAND = EVENT._replace(kind=Kind.COMMAND, type="ReserveCredit", destination="customers")
REPLY = EVENT._replace(kind=Kind.REPLY, type="CreditReserved", destination="orders")

texts = st.text(st.characters(exclude_characters="{}"), max_size=20)


def rendered(template: str, message: Message = EVENT) -> str:
    return RouteTemplate.parse(template).render(message, "shop")


# Templates.


def test_every_field_can_be_named() -> None:
    assert rendered("/".join(f"{{{name}}}" for name in FIELDS), COMMAND) == (
        "shop/command/order/7/ReserveCredit/customers/saga-1/orders/saga-1/reserve/0/outbox"
    )


def test_a_field_that_the_message_does_not_have_is_empty() -> None:
    assert rendered("to.{destination}.{type}") == "to..OrderCreated"


@given(texts)
def test_text_without_braces_stays_as_it_is(text: str) -> None:
    assert rendered(text) == text


@given(st.text(max_size=20))
def test_any_text_can_be_written_with_its_braces_doubled(text: str) -> None:
    assert rendered(text.replace("{", "{{").replace("}", "}}")) == text
    literal = RouteTemplate.literal(text)
    assert (literal.render(EVENT, "shop"), rendered(str(literal))) == (text, text)


@given(texts, st.sampled_from(FIELDS), texts)
def test_a_field_stands_between_text(before: str, name: str, after: str) -> None:
    assert rendered(f"{before}{{{name}}}{after}") == before + rendered(f"{{{name}}}") + after


def test_braces_may_stand_around_a_field() -> None:
    assert rendered("{{{type}}}") == "{OrderCreated}"


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{aggregate_id}.{aggregat_type}", "at character 16: no field aggregat_type; fields are source, kind, "),
        ("orders.{}", "at character 8: no field between the braces; fields are "),
        ("{ type }", "at character 1: no field  type ; fields are "),
        ("{type!r}", "at character 1: no field type!r; "),
        ("{payload}", "at character 1: no field payload; "),
        ("orders.{type", "at character 8: a { that is never closed"),
        ("orders.{type{kind}", "at character 8: a { that is never closed"),
        ("orders{", "at character 7: a { that is never closed"),
        ("orders}.{type}", "at character 7: a } without a { before it"),
        ("{type}}", "at character 7: a } without a { before it"),
        ("{{type}", "at character 7: a } without a { before it"),
    ],
)
def test_a_mistake_is_told_with_its_place(template: str, complaint: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the words are compared below
        RouteTemplate.parse(template)
    assert str(refused.value).startswith(complaint)


@given(st.text("{}ty.", max_size=12))
def test_a_template_is_read_or_refused_with_a_place_in_it(template: str) -> None:
    try:
        RouteTemplate.parse(template)
    except ValueError as refused:
        at = int(str(refused).removeprefix("at character ").split(":")[0])
        assert template[at - 1] in "{}"


@pytest.mark.parametrize(
    ("template", "shared"),
    [("events", True), ("{capture}.{kind}.{aggregate_type}.{type}.{destination}.{source}", True)]
    + [(f"{{type}}.{{{name}}}", False) for name in ("aggregate_id", "correlation_id", "reply_to", "operation")],
)
def test_a_template_knows_whether_messages_share_what_comes_of_it(template: str, shared: bool) -> None:
    assert RouteTemplate.parse(template).shared is shared


def test_a_template_shows_itself_as_it_was_written() -> None:
    assert str(RouteTemplate.parse("{{{type}}}")) == "{{{type}}}"


# Which template counts.


def test_an_event_goes_to_whoever_listens_to_its_aggregate_and_type() -> None:
    assert Routing().route(EVENT, "shop") == ("relay.events", "order.OrderCreated")


def test_an_event_is_not_addressed_even_if_it_names_a_service() -> None:
    assert Routing().route(EVENT._replace(destination="customers"), "shop") == ("relay.events", "order.OrderCreated")


@pytest.mark.parametrize(
    ("message", "address"),
    [(COMMAND, ("relay.commands", "customers")), (REPLY, ("relay.replies", "orders"))],
    ids=["command", "reply"],
)
def test_a_command_or_a_reply_goes_to_the_service_that_it_names(message: Message, address: tuple[str, str]) -> None:
    assert Routing().route(message, "shop") == address


ROUTING = Routing(
    by_type={"OrderCreated": Address.parse("by-type", "type")},
    by_capture={"outbox": Address.parse("by-capture", "capture")},
    by_kind={Kind.EVENT: Address.parse("by-kind", "kind")},
)


@pytest.mark.parametrize(
    ("message", "address"),
    [
        (EVENT, ("by-type", "type")),
        (EVENT._replace(type="OrderPaid"), ("by-capture", "capture")),
        (EVENT._replace(type="OrderPaid", capture="logical"), ("by-kind", "kind")),
        (COMMAND._replace(capture="logical"), ("relay.commands", "customers")),
    ],
    ids=["type", "capture", "kind", "default"],
)
def test_the_type_counts_before_the_capture_and_that_before_the_kind(
    message: Message, address: tuple[str, str]
) -> None:
    assert ROUTING.route(message, "shop") == address


def test_what_an_address_leaves_open_comes_from_the_next_level_that_says_it() -> None:
    routing = Routing(
        by_type={"OrderCreated": Address.parse(routing_key="views.{aggregate_id}")},
        by_capture={"outbox": Address.parse(exchange="cdc")},
        by_kind={Kind.EVENT: Address.parse("never", "never")},
    )
    assert routing.route(EVENT, "shop") == ("cdc", "views.7")
    assert routing.route(EVENT._replace(capture="logical"), "shop") == ("never", "views.7")
    assert routing.route(EVENT._replace(type="OrderPaid"), "shop") == ("cdc", "never")


def test_an_empty_exchange_is_an_answer_and_not_a_gap() -> None:
    """RabbitMQ's default exchange has no name: it brings a message to the queue that the routing key names."""
    routing = Routing(by_kind={Kind.COMMAND: Address.parse(exchange="")})
    assert routing.route(COMMAND, "shop") == ("", "customers")


def test_templates_on_two_levels_may_name_different_fields() -> None:
    per_message = Routing(by_type={"OrderCreated": Address.parse(routing_key="{aggregate_id}")})
    assert not per_message.resolve(EVENT).shared
    assert per_message.resolve(COMMAND).shared
