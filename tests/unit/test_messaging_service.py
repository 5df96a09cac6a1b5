"""What a service handles."""

import math

import pytest

from relay.broker.properties import Properties
from relay.broker.topology import ServiceQueue
from relay.duration import seconds
from relay.messaging import Command, Event, Failure, HandlerTaken, Incoming, Reply, Service, Transaction
from relay.messaging.handler import Route, Routes
from relay.messaging.retry import FAULT_TRIES
from relay.messaging.service import TIMEOUT
from relay.messaging.worker import CONCURRENCY, PREFETCH_MESSAGES


class Pay(Command): ...


class Paid(Reply): ...


class Shipped(Event): ...


def test_the_queue_listens_to_the_events_that_have_a_handler() -> None:
    billing = Service("billing")

    @billing.event(Shipped)
    async def shipped(event: Shipped, tx: Transaction) -> None: ...

    @billing.command(Pay)
    async def pay(command: Pay, tx: Transaction) -> Paid:
        return Paid()

    assert billing.queue == ServiceQueue("billing", frozenset({"Shipped"}))


def test_a_second_handler_for_a_type_is_refused() -> None:
    billing = Service("billing")

    @billing.command(Pay)
    async def pay(command: Pay, tx: Transaction) -> None: ...

    with pytest.raises(HandlerTaken, match="service billing has a handler of Pay already"):

        @billing.command(Pay)
        async def pay_again(command: Pay, tx: Transaction) -> None: ...


def test_a_type_of_the_same_name_counts_as_the_same_type() -> None:
    billing = Service("billing")
    billing.command(Pay)(lambda command, tx: _nothing())
    namesake = type("Pay", (Command,), {})

    with pytest.raises(HandlerTaken, match="Pay"):
        billing.command(namesake)(lambda command, tx: _nothing())


def test_a_handler_stays_a_function_that_can_be_called() -> None:
    async def pay(command: Pay, tx: Transaction) -> Paid:
        return Paid()

    assert Service("billing").command(Pay)(pay) is pay


def test_when_everything_hangs_that_the_broker_handed_out_it_is_acknowledged_in_time() -> None:
    """RabbitMQ closes the channel after half an hour."""
    rounds = math.ceil(PREFETCH_MESSAGES / CONCURRENCY)
    assert rounds * FAULT_TRIES * seconds(TIMEOUT) == 21 * 60


@pytest.mark.parametrize("timeout", ["soon", "0s", ""])
def test_a_timeout_that_is_no_time_is_refused(timeout: str) -> None:
    with pytest.raises(ValueError, match=f"service billing: timeout is '{timeout}'"):
        Service("billing", timeout=timeout)


async def _nothing() -> None: ...


def incoming(name: str, **headers: str) -> Incoming:
    return Incoming.read(Properties("m1", name, headers=headers), b"{}")


class TestRoutes:
    async def any_reply(self, incoming: Incoming, tx: Transaction) -> None: ...

    async def paid(self, reply: Paid, tx: Transaction) -> None: ...

    @pytest.fixture
    def routes(self) -> Routes:
        routes = Routes("billing")
        routes.add(Route.to(self.paid, Paid, timeout_s=60))
        routes.add_replies(self.any_reply)
        return routes

    def test_a_reply_to_an_operation_goes_to_the_handler_of_all_replies(self, routes: Routes) -> None:
        route = routes.find(incoming("Refused", operation="s/pay/action"))
        assert route is not None
        assert (route.message_type, route.command) == (Reply, None)

    def test_a_handler_of_its_type_comes_first(self, routes: Routes) -> None:
        route = routes.find(incoming("Paid", operation="s/pay/action"))
        assert route is not None
        assert route.message_type is Paid

    def test_what_answers_no_operation_has_no_handler(self, routes: Routes) -> None:
        assert routes.find(incoming("Refused")) is None

    def test_there_is_one_handler_of_all_replies(self) -> None:
        billing = Service("billing")
        billing.replies(self.any_reply)
        with pytest.raises(HandlerTaken, match="service billing has a handler of all replies already"):
            billing.replies(self.any_reply)

    def test_an_action_and_a_compensation_are_two_commands(self) -> None:
        billing = Service("billing")
        billing.command(Pay)(lambda command, tx: _nothing())
        with pytest.raises(HandlerTaken, match="Pay"):
            billing.compensation(Pay)(lambda command, tx: _nothing())


class Broke(Failure): ...


@pytest.mark.parametrize(
    ("replies", "may_fail"), [((), True), ((Paid,), False), ((Paid, Broke), True)], ids=["untold", "never", "may"]
)
def test_whether_a_command_may_fail_is_known_from_its_replies(replies: tuple[type[Reply], ...], may_fail: bool) -> None:
    command = type("Pay", (Command,), {"replies": replies, "__annotations__": {}})
    assert Route.to(lambda command, tx: _nothing(), command, timeout_s=60).may_fail is may_fail
