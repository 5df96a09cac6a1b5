"""Publishing with pipelined confirms: what becomes of each message, in whatever order the broker says it."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.exceptions import ChannelClosedByBroker, ConnectionClosedByBroker

from relay.broker.connection import ChannelRefused, Connection, Disrupted, ExchangeMissing
from relay.broker.encoding import Flaw, Template, Unsendable
from relay.broker.properties import Properties, Varying
from relay.broker.publisher import WINDOW_BYTES, WRITE_BYTES, Outcome, Publisher
from relay.broker.window import LEARNING_ROUNDS, WINDOW_LEARNING
from relay.errors import BrokerAway, ExitCode
from tests.unit.fake_channel import FakeChannel, FakeConnection

CONFIRMED, RETURNED, NACKED = Outcome.CONFIRMED, Outcome.RETURNED, Outcome.NACKED

TEMPLATE = Template("relay.events", "order.OrderCreated", Properties(None, type="OrderCreated"))
BODY = b'{"order_id": 7}'


@dataclass
class Stage:
    """A publisher, the broker that it publishes to, and what it has said so far."""

    connection: FakeConnection
    settled: list[tuple[str, Outcome]] = field(default_factory=list)
    freed: list[int] = field(default_factory=list)
    """How many had been settled, each time that it said that there may be room."""

    async def open(self) -> None:
        connection: Any = self.connection
        self.publisher: Publisher[str] = await Publisher.open(
            connection, lambda *news: self.settled.append(news), lambda: self.freed.append(len(self.settled))
        )

    @property
    def broker(self) -> FakeChannel:
        return self.connection.raw

    def hand_over(self, *tokens: str, body: bytes = BODY) -> None:
        for token in tokens:
            self.publisher.publish(TEMPLATE, varying(token), body, token)

    async def publish(self, *tokens: str, body: bytes = BODY) -> None:
        """Publish, and see it leave."""
        self.hand_over(*tokens, body=body)
        await asyncio.sleep(0)

    async def fill(self) -> list[str]:
        tokens: list[str] = []
        while self.publisher.has_room:
            tokens.append(f"m{len(tokens)}")
            self.hand_over(tokens[-1])
        await asyncio.sleep(0)
        return tokens


def varying(message_id: str) -> Varying:
    return Varying(message_id, None, None, None, {})


@pytest.fixture
async def stage() -> Stage:
    stage = Stage(FakeConnection())
    await stage.open()
    return stage


async def test_the_channel_is_in_confirm_mode(stage: Stage) -> None:
    assert stage.broker.in_confirm_mode


async def test_messages_are_persistent_and_mandatory_and_leave_as_they_were_given(stage: Stage) -> None:
    await stage.publish("a")
    (sent,) = stage.broker.sent
    assert (sent.exchange, sent.routing_key, sent.body) == ("relay.events", "order.OrderCreated", BODY)
    assert (sent.properties.message_id, sent.properties.type) == ("a", "OrderCreated")
    assert sent.mandatory
    assert sent.properties.delivery_mode == 2


async def test_what_is_published_in_one_turn_of_the_loop_leaves_in_one_write_and_in_order(stage: Stage) -> None:
    tokens = [f"m{number}" for number in range(60)]
    stage.hand_over(*tokens)
    assert stage.broker.sent == []
    await asyncio.sleep(0)
    assert [sent.properties.message_id for sent in stage.broker.sent] == tokens
    assert stage.broker.writes == 1
    await stage.publish("next")
    assert stage.broker.writes == 2


async def test_much_is_written_before_the_turn_of_the_loop_is_over(stage: Stage) -> None:
    stage.hand_over("a", body=b"x" * (WRITE_BYTES - 1000))
    assert stage.broker.writes == 0
    stage.hand_over("b", body=b"x" * 1000)
    assert [sent.properties.message_id for sent in stage.broker.sent] == ["a", "b"]
    await stage.publish("c")
    assert [sent.properties.message_id for sent in stage.broker.sent] == ["a", "b", "c"]
    assert stage.broker.writes == 2


async def test_nothing_is_settled_before_the_broker_says_so(stage: Stage) -> None:
    await stage.publish("a", "b")
    assert stage.settled == []
    assert stage.publisher.in_flight == 2


async def test_confirms_may_come_out_of_order(stage: Stage) -> None:
    await stage.publish("a", "b", "c")
    for tag in (2, 3, 1):
        stage.broker.acks(tag)
    assert stage.settled == [("b", CONFIRMED), ("c", CONFIRMED), ("a", CONFIRMED)]
    assert stage.publisher.in_flight == 0


async def test_one_confirm_may_stand_for_all_before_it(stage: Stage) -> None:
    await stage.publish("a", "b", "c", "d")
    stage.broker.acks(2)
    stage.broker.acks(3, multiple=True)
    assert stage.settled == [("b", CONFIRMED), ("a", CONFIRMED), ("c", CONFIRMED)]
    assert stage.publisher.in_flight == 1


async def test_one_refusal_may_stand_for_all_before_it(stage: Stage) -> None:
    await stage.publish("a", "b", "c")
    stage.broker.nacks(2, multiple=True)
    assert stage.settled == [("a", NACKED), ("b", NACKED)]


async def test_a_refused_message_is_no_trouble_for_the_others(stage: Stage) -> None:
    await stage.publish("a", "b")
    stage.broker.nacks(1)
    stage.broker.acks(2)
    assert stage.settled == [("a", NACKED), ("b", CONFIRMED)]


async def test_a_message_that_comes_back_is_settled_by_its_confirm_and_not_before(stage: Stage) -> None:
    await stage.publish("a", "b")
    stage.broker.returns(1)
    assert stage.settled == []
    stage.broker.acks(2, multiple=True)
    assert stage.settled == [("a", RETURNED), ("b", CONFIRMED)]


async def test_of_two_with_one_id_each_has_its_own_outcome_when_both_come_back(stage: Stage) -> None:
    await stage.publish("a", "a")
    stage.broker.returns(1)
    stage.broker.returns(2)
    stage.broker.acks(2, multiple=True)
    assert stage.settled == [("a", RETURNED), ("a", RETURNED)]


async def test_of_two_with_one_id_the_second_may_come_back_after_the_first_is_settled(stage: Stage) -> None:
    await stage.publish("a", "a")
    stage.broker.acks(1)
    stage.broker.returns(2)
    stage.broker.acks(2)
    assert stage.settled == [("a", CONFIRMED), ("a", RETURNED)]


async def test_of_two_with_one_id_each_has_its_own_outcome_in_whatever_order_they_come_back(stage: Stage) -> None:
    await stage.publish("a", "a", "b")
    for tag in (1, 3, 2):
        stage.broker.returns(tag)
    stage.broker.acks(3, multiple=True)
    assert stage.settled == [("a", RETURNED), ("a", RETURNED), ("b", RETURNED)]


async def test_of_two_with_one_id_the_one_that_comes_back_after_a_later_message_is_the_second(stage: Stage) -> None:
    await stage.publish("a", "b", "a")
    for tag in (2, 3):
        stage.broker.returns(tag)
    stage.broker.acks(3, multiple=True)
    assert stage.settled == [("a", CONFIRMED), ("b", RETURNED), ("a", RETURNED)]


async def test_what_comes_twice_or_was_never_sent_is_ignored(stage: Stage) -> None:
    await stage.publish("a")
    stage.broker.acks(1)
    stage.broker.acks(1)
    stage.broker.acks(9, multiple=True)
    stage.broker.returns(1)
    assert stage.settled == [("a", CONFIRMED)]


async def test_a_full_window_has_no_room_until_one_is_settled(stage: Stage) -> None:
    tokens = await stage.fill()
    assert len(tokens) == WINDOW_LEARNING
    stage.broker.acks(2)
    assert stage.publisher.has_room
    assert stage.freed == [1]


async def test_the_window_opens_when_the_broker_is_quick(stage: Stage) -> None:
    tokens = await stage.fill()
    for _ in range(LEARNING_ROUNDS):
        stage.broker.acks(len(stage.broker.sent), multiple=True)
        await stage.fill()
    assert stage.publisher.in_flight > len(tokens)


async def test_bodies_in_flight_are_bounded_in_bytes_too(stage: Stage) -> None:
    await stage.publish("a", body=b"x" * (WINDOW_BYTES - 1))
    assert stage.publisher.has_room
    await stage.publish("b", body=b"x")
    assert not stage.publisher.has_room
    stage.broker.acks(2)
    assert stage.publisher.has_room


async def test_one_message_of_any_size_goes(stage: Stage) -> None:
    assert stage.publisher.has_room
    await stage.publish("a", body=b"x" * (2 * WINDOW_BYTES))
    assert len(stage.broker.sent[0].body) == 2 * WINDOW_BYTES
    assert not stage.publisher.has_room


async def test_freed_is_said_once_after_all_that_a_confirm_settles(stage: Stage) -> None:
    await stage.publish("a", "b", "c")
    stage.broker.acks(2, multiple=True)
    stage.broker.nacks(3)
    assert stage.freed == [2, 3]


async def test_a_broker_that_is_blocked_has_no_room_and_says_when_it_has_again(stage: Stage) -> None:
    stage.connection.blocks("low on memory")
    assert not stage.publisher.has_room
    assert stage.freed == []
    stage.connection.blocks(None)
    assert stage.publisher.has_room
    assert stage.freed == [0]


async def test_the_time_that_a_broker_was_blocked_says_nothing_about_its_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
    stage = Stage(FakeConnection())
    await stage.open()
    for _ in range(LEARNING_ROUNDS + 2):
        await stage.fill()
        stage.broker.acks(len(stage.broker.sent), multiple=True)
    opened = len(await stage.fill())
    stage.connection.blocks("low on memory")
    now = 60.0
    stage.connection.blocks(None)
    stage.broker.acks(len(stage.broker.sent), multiple=True)
    assert len(await stage.fill()) == opened


async def test_what_is_unsettled_is_known_in_the_order_of_publishing(stage: Stage) -> None:
    await stage.publish("a", "b", "c", "d")
    stage.broker.acks(2)
    assert stage.publisher.unsettled() == ["a", "c", "d"]


async def test_what_is_in_flight_when_the_channel_closes_is_never_settled(stage: Stage) -> None:
    await stage.publish("a")
    stage.broker.closes(ChannelClosedByBroker(541, "INTERNAL_ERROR"))
    stage.broker.acks(1)
    stage.connection.blocks(None)
    await asyncio.sleep(0)
    stage.connection.blocks(None)
    assert (stage.settled, stage.freed) == ([], [0])
    assert stage.publisher.unsettled() == ["a"]


async def test_publishing_on_a_channel_that_is_gone_means_that_the_broker_is_away(stage: Stage) -> None:
    stage.broker.closes(ChannelClosedByBroker(541, "INTERNAL_ERROR"))
    with pytest.raises(BrokerAway, match=r"mq\.example"):
        stage.hand_over("a")
    assert stage.publisher.in_flight == 0


async def test_a_lost_connection_closes_the_channel_too(stage: Stage) -> None:
    stage.connection.is_lost()
    assert type(stage.publisher.channel.closed.result()) is BrokerAway
    with pytest.raises(BrokerAway):
        stage.hand_over("a")


async def test_what_a_right_forbids_is_not_tried_again(stage: Stage) -> None:
    stage.broker.closes(ChannelClosedByBroker(403, "access to exchange 'relay.events' refused"))
    reason = stage.publisher.channel.closed.result()
    assert isinstance(reason, ChannelRefused)
    assert "exchange 'relay.events'" in str(reason)


async def test_a_missing_exchange_is_named_and_not_tried_again(stage: Stage) -> None:
    stage.broker.closes(ChannelClosedByBroker(404, "NOT_FOUND - no exchange 'relay.events' in vhost '/'"))
    reason = stage.publisher.channel.closed.result()
    assert isinstance(reason, ExchangeMissing)
    assert not isinstance(reason, BrokerAway)
    assert "the exchange relay.events does not exist" in str(reason)
    assert "bind" in reason.hint


@pytest.mark.parametrize("code", [311, 406, 501, 502, 503, 505, 540, 541])
@pytest.mark.parametrize("closed", [ChannelClosedByBroker, ConnectionClosedByBroker])
async def test_a_close_that_a_message_may_have_caused_says_so(
    stage: Stage, closed: type[ChannelClosedByBroker] | type[ConnectionClosedByBroker], code: int
) -> None:
    stage.broker.closes(closed(code, "trouble"))
    reason = stage.publisher.channel.closed.result()
    assert isinstance(reason, Disrupted)
    assert (reason.code, reason.too_large) == (code, False)


async def test_a_close_over_the_size_of_a_message_says_so(stage: Stage) -> None:
    words = "PRECONDITION_FAILED - message size 200 is larger than configured max size 100"
    stage.broker.closes(ChannelClosedByBroker(406, words))
    reason = stage.publisher.channel.closed.result()
    assert isinstance(reason, Disrupted)
    assert reason.too_large


async def test_a_broker_that_shuts_down_is_away_and_no_message_is_to_blame(stage: Stage) -> None:
    stage.broker.closes(ConnectionClosedByBroker(320, "CONNECTION_FORCED - broker forced connection closure"))
    assert type(stage.publisher.channel.closed.result()) is BrokerAway


@pytest.mark.parametrize("code", [403, 406])
async def test_a_declaration_that_is_refused_is_not_tried_again(code: int) -> None:
    connection = FakeConnection()
    channel = await connection.channel()
    connection.raw.closes(ChannelClosedByBroker(code, "inequivalent arg 'type' for exchange 'relay.events'"))
    assert isinstance(channel.closed.result(), ChannelRefused)


async def test_a_message_that_does_not_fit_into_amqp_leaves_no_trace(stage: Stage) -> None:
    with pytest.raises(Unsendable, match="does not fit into AMQP") as refused:
        stage.publisher.publish(TEMPLATE, varying("a" * 256), BODY, "unsendable")
    assert refused.value.flaw is Flaw.UNENCODABLE
    assert refused.value.exit_code is ExitCode.FAILURE
    assert refused.value.hint
    assert stage.publisher.in_flight == 0
    await stage.publish("a")  # the broker counts what it received: this is its first
    assert len(stage.broker.sent) == 1
    stage.broker.acks(1)
    assert stage.settled == [("a", CONFIRMED)]


answers = st.tuples(st.integers(1, 12), st.booleans(), st.sampled_from(["ack", "nack"]))
"""Which tag, whether it stands for all before it, and how it is answered."""


@given(st.integers(1, 12), st.sets(st.integers(1, 12)), st.lists(answers, max_size=20))
async def test_each_message_has_one_outcome_whatever_the_broker_does(
    count: int, returned: set[int], answered: list[tuple[int, bool, str]]
) -> None:
    stage = Stage(FakeConnection())
    await stage.open()
    await stage.publish(*(str(tag) for tag in range(1, count + 1)))
    for tag in sorted(returned & set(range(1, count + 1))):
        stage.broker.returns(tag)
    expected: dict[str, Outcome] = {}
    for tag, multiple, answer in [(min(tag, count), *rest) for tag, *rest in answered] + [(count, True, "ack")]:
        for one in range(1, tag + 1) if multiple else [tag]:
            outcome = NACKED if answer == "nack" else RETURNED if one in returned else CONFIRMED
            expected.setdefault(str(one), outcome)
        (stage.broker.acks if answer == "ack" else stage.broker.nacks)(tag, multiple=multiple)
        assert stage.settled == list(expected.items())
        assert stage.publisher.unsettled() == [str(one) for one in range(1, count + 1) if str(one) not in expected]
    assert len(expected) == count


def test_pika_still_has_what_is_used_of_its_inside() -> None:
    """Connection.send knows how pika 1.4 writes: bytes are counted, for its heartbeats, and handed to the socket."""
    raw = AsyncioConnection.__new__(AsyncioConnection)
    emitted: list[bytes] = []
    raw.bytes_sent = raw.frames_sent = 0
    raw.connection_state = AsyncioConnection.CONNECTION_OPEN
    raw._adapter_emit_data = emitted.append  # type: ignore[method-assign,assignment]
    connection = Connection.__new__(Connection)
    connection._raw = raw
    connection.send([b"abc", b"de"])
    assert [bytes(data) for data in emitted] == [b"abcde"]
    assert raw.bytes_sent == 5
    assert callable(AsyncioConnection._adapter_disconnect_stream)
    assert callable(AsyncioConnection._on_connection_workflow_done)
