"""Publishing with pipelined confirms: what becomes of each message, in whatever order the broker says it."""

import asyncio
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika.exceptions import ChannelClosedByBroker

from relay.broker.connection import ChannelRefused
from relay.broker.properties import Outgoing, Properties
from relay.broker.publisher import Outcome, Publisher, Unsendable
from relay.errors import BrokerAway, ExitCode
from tests.unit.fake_channel import FakeChannel, FakeConnection

CONFIRMED, RETURNED, NACKED = Outcome.CONFIRMED, Outcome.RETURNED, Outcome.NACKED


@dataclass
class Stage:
    """A publisher, the broker that it publishes to, and what it has said so far."""

    publisher: Publisher[str]
    broker: FakeChannel
    connection: FakeConnection
    settled: list[tuple[str, Outcome]]

    def publish(self, *tokens: str) -> None:
        for token in tokens:
            self.publisher.publish(message(token), token)


async def staged(window: int = 100) -> Stage:
    settled: list[tuple[str, Outcome]] = []
    connection: Any = FakeConnection()
    publisher: Publisher[str] = await Publisher.open(connection, lambda *news: settled.append(news), window)
    return Stage(publisher, connection.raw, connection, settled)


@pytest.fixture
async def stage() -> Stage:
    return await staged()


def message(message_id: str, routing_key: str = "order.OrderCreated", **properties: Any) -> Outgoing:
    return Outgoing("relay.events", routing_key, Properties(message_id, **properties), b'{"order_id": 7}')


async def is_waiting(coroutine: Any) -> bool:
    """Whether it is still waiting after the loop has had its turns."""
    task = asyncio.ensure_future(coroutine)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting = not task.done()
    task.cancel()
    return waiting


async def test_the_channel_is_in_confirm_mode(stage: Stage) -> None:
    assert stage.broker.in_confirm_mode


async def test_messages_are_persistent_and_mandatory_and_carry_their_properties(stage: Stage) -> None:
    properties = Properties(
        "id-1",
        type="OrderCreated",
        correlation_id="saga-1",
        reply_to="orders",
        timestamp=1748779200,
        app_id="shop",
        headers={"ce-id": "id-1", "attempt": 2},
    )
    stage.publisher.publish(Outgoing("relay.events", "order.OrderCreated", properties, b"{}"), "a")
    (sent,) = stage.broker.sent
    assert (sent.exchange, sent.routing_key, sent.body) == ("relay.events", "order.OrderCreated", b"{}")
    assert sent.mandatory
    assert sent.properties.delivery_mode == 2
    assert sent.properties.content_type == "application/json"
    for name in ("message_id", "type", "correlation_id", "reply_to", "timestamp", "app_id", "headers"):
        assert getattr(sent.properties, name) == getattr(properties, name)


async def test_nothing_is_settled_before_the_broker_says_so(stage: Stage) -> None:
    stage.publish("a", "b")
    assert stage.settled == []
    assert stage.publisher.in_flight == 2


async def test_confirms_may_come_out_of_order(stage: Stage) -> None:
    stage.publish("a", "b", "c")
    for tag in (2, 3, 1):
        stage.broker.acks(tag)
    assert stage.settled == [("b", CONFIRMED), ("c", CONFIRMED), ("a", CONFIRMED)]
    assert stage.publisher.in_flight == 0


async def test_one_confirm_may_stand_for_all_before_it(stage: Stage) -> None:
    stage.publish("a", "b", "c", "d")
    stage.broker.acks(2)
    stage.broker.acks(3, multiple=True)
    assert stage.settled == [("b", CONFIRMED), ("a", CONFIRMED), ("c", CONFIRMED)]
    assert stage.publisher.in_flight == 1


async def test_one_refusal_may_stand_for_all_before_it(stage: Stage) -> None:
    stage.publish("a", "b", "c")
    stage.broker.nacks(2, multiple=True)
    assert stage.settled == [("a", NACKED), ("b", NACKED)]


async def test_a_refused_message_is_no_trouble_for_the_others(stage: Stage) -> None:
    stage.publish("a", "b")
    stage.broker.nacks(1)
    stage.broker.acks(2)
    assert stage.settled == [("a", NACKED), ("b", CONFIRMED)]


async def test_a_message_that_comes_back_is_settled_by_its_confirm_and_not_before(stage: Stage) -> None:
    stage.publish("a", "b")
    stage.broker.returns(1)
    assert stage.settled == []
    stage.broker.acks(2, multiple=True)
    assert stage.settled == [("a", RETURNED), ("b", CONFIRMED)]


async def test_of_two_with_one_id_each_has_its_own_outcome_when_both_come_back(stage: Stage) -> None:
    stage.publish("a", "a")
    stage.broker.returns(1)
    stage.broker.returns(2)
    stage.broker.acks(2, multiple=True)
    assert stage.settled == [("a", RETURNED), ("a", RETURNED)]


async def test_of_two_with_one_id_the_second_may_come_back_after_the_first_is_settled(stage: Stage) -> None:
    stage.publish("a", "a")
    stage.broker.acks(1)
    stage.broker.returns(2)
    stage.broker.acks(2)
    assert stage.settled == [("a", CONFIRMED), ("a", RETURNED)]


async def test_what_comes_twice_or_was_never_sent_is_ignored(stage: Stage) -> None:
    stage.publish("a")
    stage.broker.acks(1)
    stage.broker.acks(1)
    stage.broker.acks(9, multiple=True)
    stage.broker.returns(1)
    assert stage.settled == [("a", CONFIRMED)]


async def test_a_full_window_has_no_room_until_one_is_settled() -> None:
    stage = await staged(window=2)
    stage.publish("a")
    assert stage.publisher.has_room
    assert not await is_waiting(stage.publisher.room())
    stage.publish("b")
    assert not stage.publisher.has_room
    assert await is_waiting(stage.publisher.room())
    stage.broker.acks(2)
    assert stage.publisher.has_room
    assert not await is_waiting(stage.publisher.room())


async def test_room_opens_for_the_one_who_waits_for_it() -> None:
    stage = await staged(window=1)
    stage.publish("a")
    room = asyncio.ensure_future(stage.publisher.room())
    await asyncio.sleep(0)
    stage.broker.nacks(1)
    await asyncio.wait_for(room, 1)


async def test_drained_means_that_nothing_is_in_flight(stage: Stage) -> None:
    assert not await is_waiting(stage.publisher.drained())
    stage.publish("a", "b")
    stage.broker.acks(2)
    assert await is_waiting(stage.publisher.drained())
    stage.broker.acks(1)
    assert not await is_waiting(stage.publisher.drained())


async def test_what_is_in_flight_when_the_channel_closes_is_not_settled(stage: Stage) -> None:
    stage.publish("a")
    stage.broker.closes(ChannelClosedByBroker(541, "INTERNAL_ERROR"))
    assert stage.settled == []
    assert stage.publisher.in_flight == 1
    assert isinstance(stage.publisher.channel.closed.result(), BrokerAway)


async def test_publishing_on_a_channel_that_is_gone_means_that_the_broker_is_away(stage: Stage) -> None:
    stage.broker.closes(ChannelClosedByBroker(541, "INTERNAL_ERROR"))
    with pytest.raises(BrokerAway, match=r"mq\.example"):
        stage.publish("a")
    assert stage.publisher.in_flight == 0


async def test_a_lost_connection_closes_the_channel_too(stage: Stage) -> None:
    stage.connection.is_lost()
    assert isinstance(stage.publisher.channel.closed.result(), BrokerAway)
    with pytest.raises(BrokerAway):
        stage.publish("a")


@pytest.mark.parametrize("code", [403, 406])
async def test_a_channel_closed_for_a_right_is_not_tried_again(stage: Stage, code: int) -> None:
    stage.broker.closes(ChannelClosedByBroker(code, "no exchange 'relay.events' in vhost '/'"))
    reason = stage.publisher.channel.closed.result()
    assert isinstance(reason, ChannelRefused)
    assert "no exchange 'relay.events'" in str(reason)


UNSENDABLE = {
    "routing key of 256 bytes": message("a", "k" * 256),
    "routing key of 128 characters and 256 bytes": message("a", "é" * 128),
    "type of 256 bytes": message("a", type="t" * 256),
    "message id of 256 bytes": message("a" * 256),
    "correlation id of 256 bytes": message("a", correlation_id="c" * 256),
    "header name of 256 bytes": message("a", headers={"h" * 256: "x"}),
    "header number beyond 64 bits": message("a", headers={"big": 1 << 63}),
    "header number below 64 bits": message("a", headers={"small": -(1 << 63) - 1}),
    "nested header number beyond 64 bits": message("a", headers={"outer": {"inner": [1, 10**30]}}),
    "header that is no text": message("a", headers={"text": "\ud800"}),
    "header of a type that AMQP does not know": message("a", headers={"strange": object()}),
    "timestamp before 1970": message("a", timestamp=-1),
}


@pytest.mark.parametrize("unsendable", UNSENDABLE.values(), ids=UNSENDABLE)
async def test_a_message_that_does_not_fit_into_amqp_says_so_and_leaves_no_trace(
    stage: Stage, unsendable: Outgoing
) -> None:
    with pytest.raises(Unsendable, match="does not fit into AMQP") as refused:
        stage.publisher.publish(unsendable, "unsendable")
    assert refused.value.exit_code is ExitCode.FAILURE
    assert refused.value.hint
    assert stage.broker.sent == []
    assert stage.publisher.in_flight == 0
    assert not await is_waiting(stage.publisher.drained())
    stage.publish("a")  # the broker counts what it received: this is its first
    stage.broker.acks(1)
    assert stage.settled == [("a", CONFIRMED)]


@pytest.mark.parametrize(
    "sendable",
    [
        message("a", "k" * 255, type="t" * 255, correlation_id="c" * 255, reply_to="r" * 255),
        message("a", headers={"h" * 255: "x" * 10_000}),
        message("a", headers={"numbers": [(1 << 63) - 1, -(1 << 63), 0, True, None], "table": {"nested": {}}}),
        replace(message("a"), body=b"x" * 1_000_000),
        replace(message("a"), body=b""),
    ],
    ids=["names of 255 bytes", "long header", "largest numbers", "large body", "empty body"],
)
async def test_a_message_that_only_just_fits_is_sent(stage: Stage, sendable: Outgoing) -> None:
    stage.publisher.publish(sendable, "a")
    (sent,) = stage.broker.sent
    assert sent.body == sendable.body


answers = st.tuples(st.integers(1, 12), st.booleans(), st.sampled_from(["ack", "nack"]))
"""Which tag, whether it stands for all before it, and how it is answered."""


@given(st.integers(1, 12), st.sets(st.integers(1, 12)), st.lists(answers, max_size=20))
async def test_each_message_has_one_outcome_whatever_the_broker_does(
    count: int, returned: set[int], answered: list[tuple[int, bool, str]]
) -> None:
    stage = await staged()
    stage.publish(*(str(tag) for tag in range(1, count + 1)))
    for tag in returned & set(range(1, count + 1)):
        stage.broker.returns(tag)
    expected: dict[str, Outcome] = {}
    for tag, multiple, answer in [(min(tag, count), *rest) for tag, *rest in answered] + [(count, True, "ack")]:
        for one in range(1, tag + 1) if multiple else [tag]:
            outcome = NACKED if answer == "nack" else RETURNED if one in returned else CONFIRMED
            expected.setdefault(str(one), outcome)
        (stage.broker.acks if answer == "ack" else stage.broker.nacks)(tag, multiple=multiple)
        assert stage.settled == list(expected.items())
        assert stage.publisher.in_flight == count - len(expected)
    assert len(expected) == count
