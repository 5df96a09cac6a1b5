"""What a service handles."""

import pytest

from relay.broker.topology import ServiceQueue
from relay.messaging import Command, Event, HandlerTaken, Reply, Service, Transaction


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


async def _nothing() -> None: ...
