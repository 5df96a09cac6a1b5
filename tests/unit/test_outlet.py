"""The way out of a source: what leaves, and what is made of what the broker says about it."""

import asyncio
from dataclasses import dataclass, replace
from typing import Any

import pytest
from pika.exceptions import ChannelClosedByBroker

from relay.broker.publisher import WINDOW
from relay.capture.message import Kind, Message
from relay.daemon.outlet import Outlet, Refused, Unheard
from relay.errors import BrokerAway, ExitCode
from tests.unit.fake_channel import FakeChannel, FakeConnection

EVENT = Message(
    id="id-1",
    kind=Kind.EVENT,
    aggregate_type="order",
    aggregate_id="7",
    type="OrderCreated",
    destination=None,
    correlation_id=None,
    reply_to=None,
    causation_id=None,
    operation=None,
    headers=b"{}",
    payload=b'{"total":   "12.50"}',
    created_at="2025-06-01 12:00:00+00",
)
COMMAND = replace(EVENT, kind=Kind.COMMAND, type="ReserveCredit", destination="customers")
REPLY = replace(EVENT, kind=Kind.REPLY, type="CreditReserved", destination="orders")


@dataclass
class Stage:
    """An outlet, the broker behind it, and the ids of what it has settled."""

    outlet: Outlet
    broker: FakeChannel
    settled: list[str]

    async def publish(self, *messages: Message) -> None:
        for message in messages:
            await self.outlet.publish(message, lambda message=message: self.settled.append(message.id))


@pytest.fixture
async def stage() -> Stage:
    connection: Any = FakeConnection()
    return Stage(await Outlet.open(connection, "shop"), connection.raw, [])


def numbered(message: Message, count: int) -> list[Message]:
    return [replace(message, id=f"id-{number}") for number in range(1, count + 1)]


async def test_a_message_leaves_enveloped_routed_and_byte_for_byte(stage: Stage) -> None:
    await stage.publish(COMMAND)
    (sent,) = stage.broker.sent
    assert (sent.exchange, sent.routing_key) == ("relay.commands", "customers")
    assert sent.body == COMMAND.payload
    assert sent.properties.message_id == "id-1"
    assert sent.properties.app_id == "shop"
    assert sent.properties.headers["ce-source"] == "shop"


async def test_a_message_is_settled_when_it_is_confirmed(stage: Stage) -> None:
    await stage.publish(*numbered(EVENT, 2))
    assert (stage.settled, stage.outlet.in_flight, stage.outlet.published) == ([], 2, 2)
    stage.broker.acks(2)
    assert (stage.settled, stage.outlet.in_flight, stage.outlet.published) == (["id-2"], 1, 2)


async def test_messages_leave_in_the_order_of_the_calls(stage: Stage) -> None:
    await stage.publish(*numbered(EVENT, 50))
    assert [sent.properties.message_id for sent in stage.broker.sent] == [m.id for m in numbered(EVENT, 50)]


async def test_the_next_message_waits_while_the_window_is_full(stage: Stage) -> None:
    await stage.publish(*numbered(EVENT, WINDOW))
    waiting = asyncio.ensure_future(stage.publish(replace(EVENT, id="late")))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    assert len(stage.broker.sent) == WINDOW
    stage.broker.acks(1)
    await waiting
    assert stage.broker.sent[-1].properties.message_id == "late"


async def test_an_event_that_nobody_listens_to_is_settled_counted_and_logged_once_a_route(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    created, paid = numbered(EVENT, 3), replace(EVENT, id="id-4", type="OrderPaid")
    await stage.publish(*created, paid)
    for tag in range(1, 5):
        stage.broker.returns(tag)
        stage.broker.acks(tag)
    assert stage.settled == ["id-1", "id-2", "id-3", "id-4"]
    assert stage.outlet.unheard == {"order.OrderCreated": 3, "order.OrderPaid": 1}
    assert [(record.action, record.routing_key) for record in caplog.records] == [
        ("event_unheard", "order.OrderCreated"),
        ("event_unheard", "order.OrderPaid"),
    ]
    assert not stage.outlet.failed.done()


@pytest.mark.parametrize("message", [COMMAND, REPLY], ids=["command", "reply"])
async def test_a_command_or_reply_that_comes_back_fails_and_stays_unsettled(stage: Stage, message: Message) -> None:
    await stage.publish(message)
    stage.broker.returns(1)
    stage.broker.acks(1)
    reason = stage.outlet.failed.result()
    assert isinstance(reason, Unheard)
    assert reason.exit_code is ExitCode.FAILURE
    assert message.type in str(reason)
    assert repr(message.destination) in str(reason)
    assert stage.settled == []


@pytest.mark.parametrize("message", [EVENT, COMMAND, REPLY], ids=["event", "command", "reply"])
async def test_a_message_that_a_queue_refuses_fails_and_stays_unsettled(stage: Stage, message: Message) -> None:
    await stage.publish(message)
    stage.broker.nacks(1)
    assert isinstance(stage.outlet.failed.result(), Refused)
    assert stage.settled == []


async def test_the_first_failure_is_the_reason(stage: Stage) -> None:
    await stage.publish(*numbered(COMMAND, 2))
    stage.broker.nacks(2)
    stage.broker.nacks(1)
    assert "id-2" in str(stage.outlet.failed.result())


async def test_work_under_guard_ends_with_its_result(stage: Stage) -> None:
    async def work() -> str:
        await asyncio.sleep(0)
        return "done"

    assert await stage.outlet.guard(work()) == "done"


async def test_work_under_guard_raises_what_it_raises(stage: Stage) -> None:
    async def work() -> None:
        raise LookupError("nothing there")

    with pytest.raises(LookupError, match="nothing there"):
        await stage.outlet.guard(work())


async def test_work_under_guard_ends_when_the_channel_closes(stage: Stage) -> None:
    guarded = asyncio.ensure_future(stage.outlet.guard(asyncio.Event().wait()))
    await asyncio.sleep(0)
    stage.broker.closes(ChannelClosedByBroker(541, "INTERNAL_ERROR"))
    with pytest.raises(BrokerAway, match="INTERNAL_ERROR"):
        await guarded
    assert stage.outlet.closed.done()


async def test_work_under_guard_ends_when_a_message_fails_even_if_it_waits_for_room(stage: Stage) -> None:
    await stage.publish(*numbered(COMMAND, WINDOW))
    guarded = asyncio.ensure_future(stage.outlet.guard(stage.publish(COMMAND)))
    await asyncio.sleep(0)
    stage.broker.returns(1)
    stage.broker.acks(1)
    with pytest.raises(Unheard):
        await guarded


async def test_drained_waits_for_the_last_confirm(stage: Stage) -> None:
    await stage.publish(EVENT)
    drained = asyncio.ensure_future(stage.outlet.drained())
    await asyncio.sleep(0)
    assert not drained.done()
    stage.broker.acks(1)
    await asyncio.wait_for(drained, 1)
