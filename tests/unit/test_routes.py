"""The routes of a source: made once, remembered, and told apart where their addresses or envelopes differ."""

import pytest

from relay.broker.encoding import Flaw, Unsendable
from relay.capture.envelope import CLOUDEVENTS, PLAIN
from relay.capture.message import NO_CAPTURE, Kind, Message
from relay.capture.routing import Address, Routing
from relay.config import OnUnroutable
from relay.daemon import sending
from relay.daemon.sending import Routes

EVENT = Message(
    id="id-1",
    kind=Kind.EVENT,
    aggregate_type="order",
    aggregate_id="7",
    type="OrderCreated",
    destination=None,
    correlation_id="saga-1",
    reply_to=None,
    causation_id=None,
    operation=None,
    headers=b"{}",
    payload=b"{}",
    created_at="",
    capture="outbox",
)
POLICIES = {"event": OnUnroutable.IGNORE, "command": OnUnroutable.PARK, "reply": OnUnroutable.PARK}
BY_AGGREGATE = Routing(by_type={"OrderCreated": Address.parse(routing_key="orders.{aggregate_id}")})
NO_MESSAGE = EVENT._replace(capture=NO_CAPTURE)


def routes(routing: Routing | None = None) -> Routes:
    return Routes("shop", routing or Routing(), {"outbox": CLOUDEVENTS, "tables": PLAIN}, POLICIES)


def addresses(routes: Routes, *messages: Message) -> list[tuple[str, str]]:
    templates = [routes.of(message).template for message in messages]
    return [(template.exchange, template.routing_key) for template in templates]


def test_messages_that_differ_in_what_is_their_own_share_a_route() -> None:
    known = routes()
    own = EVENT._replace(id="id-2", aggregate_id="8", correlation_id=None, payload=b"[]", headers=b'{"a": 1}')
    assert known.of(own) is known.of(EVENT)


@pytest.mark.parametrize(
    "other",
    [
        EVENT._replace(kind=Kind.COMMAND),
        EVENT._replace(aggregate_type="customer"),
        EVENT._replace(type="OrderPaid"),
        EVENT._replace(destination="customers"),
        EVENT._replace(capture="tables"),
    ],
    ids=["kind", "aggregate type", "type", "destination", "capture"],
)
def test_messages_that_differ_in_what_routes_are_made_of_have_their_own(other: Message) -> None:
    known = routes()
    assert known.of(other) is not known.of(EVENT)


def test_a_route_named_by_more_than_that_is_found_by_what_comes_of_it() -> None:
    known = routes(BY_AGGREGATE)
    seven, eight, again = EVENT, EVENT._replace(aggregate_id="8"), EVENT._replace(id="id-3")
    assert addresses(known, seven, eight, again) == [
        ("relay.events", "orders.7"),
        ("relay.events", "orders.8"),
        ("relay.events", "orders.7"),
    ]
    assert known.of(seven) is known.of(again)
    assert known.of(seven) is not known.of(eight)


def test_two_types_at_one_address_are_two_routes() -> None:
    """What is constant in their messages is not the same."""
    known = routes(Routing(by_kind={Kind.EVENT: Address.parse("events", "{aggregate_id}")}))
    assert known.of(EVENT) is not known.of(EVENT._replace(type="OrderPaid"))
    assert addresses(known, EVENT, EVENT._replace(type="OrderPaid")) == [("events", "7")] * 2


def test_the_envelope_is_that_of_the_capture() -> None:
    known = routes()
    assert known.of(EVENT).envelope is CLOUDEVENTS
    assert known.of(EVENT._replace(capture="tables")).envelope is PLAIN


def test_a_message_of_a_capture_that_is_gone_leaves_by_the_defaults() -> None:
    routing = Routing(by_capture={"tables": Address.parse("cdc", "{aggregate_type}")})
    gone = routes(routing).of(EVENT._replace(capture="gone"))
    assert gone.envelope is CLOUDEVENTS
    assert (gone.template.exchange, gone.template.routing_key) == ("relay.events", "order.OrderCreated")


def test_the_policy_of_a_type_counts_before_that_of_its_kind() -> None:
    known = Routes("shop", Routing(), {}, POLICIES | {"OrderPaid": OnUnroutable.STOP})
    assert known.of(EVENT).policy is OnUnroutable.IGNORE
    assert known.of(EVENT._replace(type="OrderPaid")).policy is OnUnroutable.STOP


@pytest.mark.parametrize("routing", [Routing(), BY_AGGREGATE], ids=["shared", "of their own"])
def test_no_route_is_proven_on_a_new_connection(routing: Routing) -> None:
    known = routes(routing)
    route = known.of(EVENT)
    assert not route.proven
    route.prove()
    known.doubt()
    assert known.of(EVENT) is route
    assert not route.proven


@pytest.mark.parametrize("routing", [Routing(), BY_AGGREGATE], ids=["shared", "of their own"])
def test_no_more_routes_are_remembered_than_that(routing: Routing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "ROUTES_MAX", 3)
    known = routes(routing)
    numbered = [EVENT._replace(aggregate_id=str(number), destination=str(number)) for number in range(4)]
    first = [known.of(message) for message in numbered[:3]]
    assert [known.of(message) for message in numbered[:3]] == first
    known.of(numbered[3])
    assert known.of(numbered[0]) is not first[0]


@pytest.mark.parametrize("routing", [Routing(), BY_AGGREGATE], ids=["shared", "of their own"])
def test_what_could_not_be_read_as_a_message_has_no_route(routing: Routing) -> None:
    known = routes(routing)
    for _ in range(2):
        with pytest.raises(Unsendable, match="it is no message: only its content is kept") as refused:
            known.of(NO_MESSAGE)
        assert refused.value.flaw is Flaw.UNENCODABLE


def test_a_key_that_does_not_fit_into_amqp_is_refused_each_time() -> None:
    known = routes(BY_AGGREGATE)
    for _ in range(2):
        with pytest.raises(Unsendable, match="does not fit into AMQP"):
            known.of(EVENT._replace(aggregate_id="x" * 256))
    assert addresses(known, EVENT) == [("relay.events", "orders.7")]
