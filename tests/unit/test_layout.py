"""What should be there against what is there: what differs, in which order it is made, and what is refused."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.broker.layout import (
    HASH_PLUGIN,
    HASH_TYPE,
    Binding,
    Change,
    Difference,
    Exchange,
    Found,
    Partitioned,
    Queue,
    Resize,
    Thing,
    Wanted,
    arguments_of,
    differences,
    strangers,
)
from relay.broker.topology import EXCHANGES, QueueType, ServiceQueue, Source, WorkQueue, wanted

AUDIT = WorkQueue("audit", (Source("relay.events", "order.*"),))
TYPES = frozenset({"direct", "topic", "fanout", "headers", HASH_TYPE})


def billing(partitions: int) -> WorkQueue:
    return WorkQueue("billing", (Source("relay.events", "order.#"),), partitions=partitions)


def made(layout: Wanted, *more: Binding) -> Found:
    """The broker in which all of it has been made, and some bindings besides."""
    return Found(
        {exchange.name: exchange for exchange in layout.exchanges},
        {queue.name: queue for queue in layout.queues},
        frozenset((*layout.all_bindings, *more)),
        TYPES,
    )


def only(found: tuple[Difference, ...]) -> Difference:
    (difference,) = found
    return difference


class TestWhatIsMissing:
    def test_nothing_differs_when_all_is_there(self) -> None:
        layout = wanted({"orders.events": "topic"}, [AUDIT, billing(4)])
        assert differences(layout, made(layout)) == ()

    def test_all_is_missing_in_an_empty_broker_in_the_order_in_which_it_is_made(self) -> None:
        layout = wanted({"orders.events": "topic"}, [AUDIT, billing(2)])
        found = differences(layout, Found(exchange_types=TYPES))
        assert {each.change for each in found} == {Change.CREATE}
        assert [each.subject for each in found] == [*layout.exchanges, *layout.queues, *layout.all_bindings]

    def test_the_relays_own_exchanges_are_part_of_it(self) -> None:
        found = differences(wanted({}, []), Found(exchange_types=TYPES))
        assert [(each.name, each.detail) for each in found] == list(EXCHANGES.items())

    def test_a_hash_exchange_has_its_queues_before_it_is_fed(self) -> None:
        bindings = wanted({}, [AUDIT, billing(2)]).all_bindings
        fed = next(at for at, binding in enumerate(bindings) if binding.destination == "billing")
        assert all(at < fed for at, binding in enumerate(bindings) if binding.source == "billing")

    def test_one_binding_may_be_missing(self) -> None:
        layout = wanted({}, [AUDIT])
        (heard,) = (binding for binding in layout.bindings if binding.source == "relay.events")
        present = replace(made(layout), bindings=made(layout).bindings - {heard})
        assert only(differences(layout, present)).subject == heard

    def test_a_binding_with_other_arguments_is_another_binding(self) -> None:
        layout = wanted({"h": "headers"}, [WorkQueue("q", (Source("h", "", {"x-match": "any", "vip": True}),))])
        (headers,) = (binding for binding in layout.bindings if binding.source == "h")
        other = replace(headers, arguments=arguments_of({"x-match": "all", "vip": True}))
        present = replace(made(layout), bindings=made(layout).bindings - {headers} | {other})
        assert [each.change for each in differences(layout, present)] == [Change.CREATE, Change.EXTRA]

    def test_the_queue_of_a_service_is_what_a_configured_one_is(self) -> None:
        configured = WorkQueue("audit", (Source("relay.commands", "audit"), Source("relay.replies", "audit")))
        assert ServiceQueue("audit").queue == configured


class TestWhatIsWrong:
    @pytest.mark.parametrize(
        ("present", "unlike"),
        [
            (Exchange("relay.events", "fanout"), "type is fanout, not topic"),
            (Exchange("relay.events", "topic", durable=False), "durable is false, not true"),
            (Exchange("relay.events", "topic", auto_delete=True), "auto-delete is true, not false"),
            (Exchange("relay.events", "topic", internal=True), "internal is true, not false"),
            (
                Exchange("relay.events", "topic", (("alternate-exchange", "rest"),)),
                "alternate-exchange is rest, not not set",
            ),
        ],
    )
    def test_an_exchange_is_there_otherwise(self, present: Exchange, unlike: str) -> None:
        layout = wanted({}, [])
        there = made(layout)
        there = replace(there, exchanges={**there.exchanges, present.name: present})
        difference = only(differences(layout, there))
        assert (difference.change, difference.thing, difference.name) == (Change.WRONG, Thing.EXCHANGE, "relay.events")
        assert difference.detail == unlike
        assert difference.hint

    @pytest.mark.parametrize(
        ("changed", "unlike"),
        [
            ({"x-delivery-limit": 10}, "x-delivery-limit is 10, not 20"),
            ({"x-max-length": 5}, "x-max-length is 5, not not set"),
            ({"x-queue-type": "classic"}, "x-queue-type is classic, not quorum"),
            ({"x-single-active-consumer": True}, "x-single-active-consumer is true, not not set"),
        ],
    )
    def test_a_queue_has_other_arguments(self, changed: dict[str, str | int | bool], unlike: str) -> None:
        layout = wanted({}, [AUDIT])
        there = made(layout)
        queue = there.queues["audit"]
        other = replace(queue, arguments=arguments_of(dict(queue.arguments) | changed))
        difference = only(differences(layout, replace(there, queues={**there.queues, "audit": other})))
        assert (difference.change, difference.detail) == (Change.WRONG, unlike)

    def test_true_is_not_one(self) -> None:
        layout = wanted({}, [billing(1)])
        there = made(layout)
        queue = there.queues["billing.0"]
        other = replace(queue, arguments=arguments_of(dict(queue.arguments) | {"x-single-active-consumer": 1}))
        difference = only(differences(layout, replace(there, queues={**there.queues, "billing.0": other})))
        assert difference.detail == "x-single-active-consumer is 1, not true"

    def test_a_queue_that_does_not_say_its_type_is_classic(self) -> None:
        queue = WorkQueue("old", type=QueueType.CLASSIC, delivery_limit=None)
        layout = wanted({}, [queue])
        there = made(layout)
        unsaid = {
            each.name: replace(each, arguments=tuple(pair for pair in each.arguments if pair[0] != "x-queue-type"))
            for each in there.queues.values()
        }
        assert differences(layout, replace(there, queues=unsaid)) == ()

    def test_a_binding_to_an_exchange_that_nobody_makes(self) -> None:
        layout = wanted({}, [WorkQueue("audit", (Source("relay.event", "order.*"),))])
        difference = differences(layout, made(layout))[0]
        assert (difference.change, difference.thing) == (Change.WRONG, Thing.BINDING)
        assert "the exchange relay.event is neither there nor configured" in difference.detail

    def test_a_binding_to_an_exchange_of_somebody_else_is_made(self) -> None:
        layout = wanted({}, [WorkQueue("audit", (Source("cdc", "order.*"),))])
        there = made(wanted({"cdc": "topic"}, []))
        assert {each.change for each in differences(layout, there)} == {Change.CREATE}

    def test_partitions_need_the_plugin(self) -> None:
        layout = wanted({}, [billing(2)])
        found = differences(layout, Found(exchange_types=TYPES - {HASH_TYPE}))
        assert (found[0].change, found[0].thing, found[0].name) == (Change.WRONG, Thing.PLUGIN, HASH_PLUGIN)
        assert f"rabbitmq-plugins enable {HASH_PLUGIN}" in found[0].hint

    def test_nobody_else_needs_the_plugin(self) -> None:
        layout = wanted({}, [AUDIT])
        assert differences(layout, replace(made(layout), exchange_types=TYPES - {HASH_TYPE})) == ()

    def test_a_stranger_behind_a_hash_exchange(self) -> None:
        layout = wanted({}, [billing(2)])
        difference = only(differences(layout, made(layout, Binding("billing", "audit", "1"))))
        assert (difference.change, difference.name) == (Change.WRONG, "billing -> audit with '1'")


class TestWhatIsMore:
    def test_a_binding_that_is_not_configured_is_listed(self) -> None:
        layout = wanted({}, [AUDIT])
        difference = only(differences(layout, made(layout, Binding("relay.events", "audit", "customer.*"))))
        assert (difference.change, difference.name) == (Change.EXTRA, "relay.events -> audit with 'customer.*'")
        assert difference.subject is None

    def test_so_is_one_that_feeds_a_hash_exchange(self) -> None:
        layout = wanted({}, [billing(2)])
        more = Binding("relay.events", "billing", "customer.*", to_exchange=True)
        assert only(differences(layout, made(layout, more))).change is Change.EXTRA

    def test_the_default_exchange_and_queues_of_others_are_nobodys_business(self) -> None:
        layout = wanted({}, [AUDIT])
        more = (Binding("", "audit", "audit"), Binding("relay.events", "orders", "#"), Binding("amq.topic", "x", "#"))
        assert differences(layout, made(layout, *more)) == ()

    def test_queues_of_others_that_hear_the_configured_exchanges_are_told(self) -> None:
        layout = wanted({}, [AUDIT, billing(2)])
        more = (Binding("relay.events", "orders", "#"), Binding("amq.topic", "x", "#"), Binding("", "y", "y"))
        assert strangers(layout, made(layout, *more)) == ("orders",)


class TestPartitions:
    @pytest.mark.parametrize(("queue", "is_one"), [("billing.0", True), ("billing.17", True), ("billing.07", False)])
    def test_a_partition_is_known_by_its_name(self, queue: str, is_one: bool) -> None:
        assert Partitioned("billing", 4).is_partition(queue) is is_one

    @pytest.mark.parametrize("queue", ["billing", "billing.", "billing.x", "billing.dead", "xbilling.0", "billingx0"])
    def test_and_nothing_else_is_one(self, queue: str) -> None:
        assert not Partitioned("billing", 4).is_partition(queue)

    def test_more_of_them(self) -> None:
        layout, there = wanted({}, [billing(4)]), made(wanted({}, [billing(2)]))
        *created, difference = differences(layout, there)
        assert [each.name for each in created] == ["billing.2", "billing.3"]
        assert (difference.change, difference.detail) == (Change.RESIZE, "from 2 to 4")
        resize = difference.subject
        assert isinstance(resize, Resize)
        assert ([binding.destination for binding in resize.unbind], resize.surplus) == (["billing.1"], ())
        assert resize.in_question == ("billing.0", "billing.1")

    def test_fewer_of_them(self) -> None:
        layout, there = wanted({}, [billing(2)]), made(wanted({}, [billing(4)]))
        difference = only(differences(layout, there))
        assert difference.detail == "from 4 to 2; the queues billing.2, billing.3 go"
        resize = difference.subject
        assert isinstance(resize, Resize)
        assert [binding.destination for binding in resize.unbind] == ["billing.1", "billing.2", "billing.3"]
        assert resize.surplus == ("billing.2", "billing.3")
        assert resize.in_question == ("billing.0", "billing.1", "billing.2", "billing.3")

    def test_a_queue_that_is_out_of_use_and_was_kept_goes_later(self) -> None:
        layout, there = wanted({}, [billing(2)]), made(wanted({}, [billing(2)]))
        there = replace(there, queues={**there.queues, "billing.2": Queue("billing.2")})
        resize = only(differences(layout, there)).subject
        assert isinstance(resize, Resize)
        assert (resize.is_remapped, resize.unbind) == (False, ())
        assert resize.in_question == resize.surplus == ("billing.2",)

    def test_what_was_interrupted_is_a_resize(self) -> None:
        """Messages may have come in between, so the queues have to be empty, unlike when all is new."""
        layout = wanted({}, [billing(3)])
        there = made(layout)
        for missing in (layout.partitioned[0].ring[2:], layout.partitioned[0].ring):
            present = replace(there, bindings=there.bindings - set(missing))
            difference = only(differences(layout, present))
            assert difference.change is Change.RESIZE
            assert isinstance(difference.subject, Resize)
            assert difference.subject.in_question == ("billing.0", "billing.1", "billing.2")

    def test_another_weight_is_put_right(self) -> None:
        layout = wanted({}, [billing(3)])
        first, *others = layout.partitioned[0].ring
        heavy = replace(first, routing_key="5")
        present = replace(made(layout), bindings=made(layout).bindings - {first} | {heavy})
        difference = only(differences(layout, present))
        assert difference.detail == "not bound as they should be"
        assert isinstance(difference.subject, Resize)
        assert set(difference.subject.unbind) == {heavy, *others}

    @given(before=st.integers(1, 30), after=st.integers(1, 30))
    def test_any_number_becomes_any_other_and_somebody_always_hears(self, before: int, after: int) -> None:
        layout, there = wanted({}, [billing(after)]), made(wanted({}, [billing(before)]))
        resizes = [each.subject for each in differences(layout, there) if isinstance(each.subject, Resize)]
        assert bool(resizes) == (before != after)
        bound = set(Partitioned("billing", before).ring)
        for resize in resizes:
            assert bound - set(resize.unbind) == {resize.group.ring[0]}
            bound = (bound - set(resize.unbind)) | set(resize.group.ring)
        assert bound == set(Partitioned("billing", after).ring)
