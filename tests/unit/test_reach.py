"""Which routes end nowhere: never said of one that does not, and said of those that plainly do."""

from functools import lru_cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.broker.layout import Binding, Exchange
from relay.broker.reach import Address, DeadEnd, Gap, Pattern, Route, dead_ends
from relay.capture.routing import Address as Given
from relay.capture.routing import Routing
from relay.cli.routes import routes

TYPE, AGGREGATE, DESTINATION = Gap("type"), Gap("aggregate_type"), Gap("destination")


def ends(key: Pattern, *bindings: Binding, exchange: Pattern = ("e",), kind: str = "topic") -> bool:
    """Whether a route ends nowhere, where `e` is of that type and `fan` is a fanout exchange."""
    exchanges = {"": Exchange("", "direct"), "e": Exchange("e", kind), "fan": Exchange("fan", "fanout")}
    route = Route("event", (Address(exchange, key),))
    return bool(dead_ends([route], exchanges, {"q"}, bindings))


def bound(key: str) -> Binding:
    return Binding("e", "q", key)


class TestTopics:
    @pytest.mark.parametrize(
        "key", ["#", "*.*", "order.#", "order.Created", "*.Created", "#.Created", "order.*", "#.#"]
    )
    def test_bindings_that_some_event_gets_through(self, key: str) -> None:
        assert not ends((AGGREGATE, ".", TYPE), bound(key))

    @pytest.mark.parametrize("key", ["order", "*", "order-Created", ""])
    def test_bindings_that_no_event_with_two_words_gets_through(self, key: str) -> None:
        assert ends((AGGREGATE, ".", TYPE), bound(key))

    @pytest.mark.parametrize("key", ["customer.#", "orders.*", "order", "*.*.*.*.#.x.y", "order.Cancelled"])
    def test_bindings_that_a_known_text_does_not_get_through(self, key: str) -> None:
        assert ends(("order.Created",), bound(key))

    def test_one_of_many_bindings_is_enough(self) -> None:
        assert not ends(("order.", TYPE), bound("customer.#"), bound("order.Created"))

    def test_no_binding_at_all(self) -> None:
        assert ends((TYPE,))

    @given(data=st.data())
    def test_a_key_that_a_binding_lets_through_is_never_said_to_end_nowhere(self, data: st.DataObject) -> None:
        words = st.sampled_from(["a", "b", "ab", ""])
        key = ".".join(data.draw(st.lists(words, min_size=1, max_size=5)))
        pattern = ".".join(data.draw(st.lists(st.one_of(words, st.sampled_from(["*", "#"])), min_size=1, max_size=5)))
        assert ends((key,), bound(pattern)) is not matches(tuple(pattern.split(".")), tuple(key.split(".")))

    @given(data=st.data())
    def test_nor_is_a_template_of_which_one_text_gets_through(self, data: st.DataObject) -> None:
        text = st.text("ab.", max_size=4)
        filled = data.draw(st.lists(st.tuples(st.booleans(), text), min_size=1, max_size=4))
        key = "".join(piece for _, piece in filled)
        template: Pattern = tuple(Gap("type") if is_gap else piece for is_gap, piece in filled)
        pattern = ".".join(data.draw(st.lists(st.sampled_from(["a", "b", "*", "#"]), min_size=1, max_size=5)))
        if matches(tuple(pattern.split(".")), tuple(key.split("."))):
            assert not ends(template, bound(pattern))


@lru_cache
def matches(pattern: tuple[str, ...], words: tuple[str, ...]) -> bool:
    """RabbitMQ's rule, word by word."""
    if not pattern:
        return not words
    if pattern[0] == "#":
        return matches(pattern[1:], words) or (bool(words) and matches(pattern, words[1:]))
    return bool(words) and pattern[0] in ("*", words[0]) and matches(pattern[1:], words[1:])


class TestOtherExchanges:
    def test_direct_takes_the_very_key(self) -> None:
        assert not ends((DESTINATION,), bound("stock"), kind="direct")
        assert not ends(("stock",), bound("stock"), kind="direct")
        assert ends(("stock",), bound("stocks"), kind="direct")
        assert ends(("order.", TYPE), bound("stock"), kind="direct")

    @pytest.mark.parametrize("kind", ["fanout", "headers", "x-consistent-hash", "x-random"])
    def test_others_do_not_look_at_the_key(self, kind: str) -> None:
        assert not ends(("stock",), bound("1"), kind=kind)

    def test_exchanges_behind_exchanges_are_followed(self) -> None:
        into_fan = Binding("e", "fan", "order.*", to_exchange=True)
        assert not ends(("order.", TYPE), into_fan, Binding("fan", "q"))
        assert ends(("customer.", TYPE), into_fan, Binding("fan", "q"))
        assert ends(("order.", TYPE), into_fan)

    def test_a_circle_of_exchanges_has_an_end(self) -> None:
        circle = (Binding("e", "fan", "#", to_exchange=True), Binding("fan", "e", "", to_exchange=True))
        assert ends((TYPE,), *circle)

    def test_an_alternate_exchange_takes_the_rest(self) -> None:
        exchanges = {"e": Exchange("e", "topic", (("alternate-exchange", "fan"),)), "fan": Exchange("fan", "fanout")}
        route = Route("event", (Address(("e",), (TYPE,)),))
        assert dead_ends([route], exchanges, {"q"}, [Binding("fan", "q")]) == ()

    def test_the_default_exchange_knows_every_queue_by_its_name(self) -> None:
        assert not ends((DESTINATION,), exchange=("",))
        assert not ends(("q",), exchange=("",))
        assert ends(("r",), exchange=("",))

    def test_an_exchange_that_is_not_there(self) -> None:
        route = Route("event", (Address(("cdc",), ("order.", TYPE)),))
        assert dead_ends([route], {}, {"q"}, []) == (
            DeadEnd("event", "cdc", "order.{type}", "there is no such exchange"),
        )

    def test_an_exchange_that_each_message_names_may_be_any(self) -> None:
        assert not ends((TYPE,), bound("#"), exchange=(AGGREGATE,))
        assert ends((TYPE,), bound("#"), exchange=("events.", AGGREGATE))


class TestRoutes:
    def test_the_kinds_have_routes_without_any_setting(self) -> None:
        found = {route.name: route.addresses for route in routes({"shop": Routing()})}
        assert found == {
            "kind event": (Address(("relay.events",), (AGGREGATE, ".", TYPE)),),
            "kind command": (Address(("relay.commands",), (DESTINATION,)),),
            "kind reply": (Address(("relay.replies",), (DESTINATION,)),),
        }

    def test_what_the_route_knows_of_its_messages_is_filled_in(self) -> None:
        configured = Routing(
            by_type={"Viewed": Given.parse("{source}.{kind}", "{type}.{aggregate_id}")},
            by_capture={"cdc": Given.parse("x", "{capture}")},
        )
        found = {route.name: route.addresses for route in routes({"shop": configured})}
        viewed = ("Viewed", ".", Gap("aggregate_id"))
        assert found["type Viewed"] == tuple(
            Address(("shop", ".", kind), viewed) for kind in ("event", "command", "reply")
        )
        assert found["capture cdc"] == (Address(("x",), ("cdc",)),)

    def test_half_an_address_is_completed_from_every_level_below(self) -> None:
        configured = Routing(by_type={"Viewed": Given.parse(None, "views")}, by_capture={"cdc": Given.parse("cdc")})
        found = {route.name: route.addresses for route in routes({"shop": configured})}
        exchanges = {address.exchange for address in found["type Viewed"]}
        assert exchanges == {("relay.events",), ("relay.commands",), ("relay.replies",), ("cdc",)}

    def test_one_address_that_leads_somewhere_is_enough(self) -> None:
        route = Route("type Viewed", (Address(("nowhere",), ("x",)), Address(("e",), ("x",))))
        assert dead_ends([route], {"e": Exchange("e", "fanout")}, {"q"}, [Binding("e", "q")]) == ()

    def test_several_sources_are_told_apart(self) -> None:
        names = [route.name for route in routes({"orders": Routing(), "customers": Routing()})]
        assert names[0] == "source orders, kind event"
        assert names[3] == "source customers, kind event"
