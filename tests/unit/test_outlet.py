"""The way out of a source: what leaves when, what is made of what the broker says, and what a lost connection costs."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from pika.exceptions import ChannelClosedByBroker

from relay.capture.message import Kind, Message
from relay.config import BrokerSettings, SourceSettings
from relay.daemon import outlet as outlet_module
from relay.daemon import uplink as uplink_module
from relay.daemon.outlet import HOLD, Outlet, Unheard
from relay.daemon.progress import Progress
from relay.daemon.status import SourceStatus
from relay.errors import ExitCode
from relay.log import SourceLog
from relay.parking.index import Index, Known, Reason, Refusal
from relay.wal.lsn import Lsn, Position
from tests.unit.fake_channel import FakeChannel, FakeConnection, Sent

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
COMMAND = EVENT._replace(kind=Kind.COMMAND, type="ReserveCredit", destination="customers")
REPLY = EVENT._replace(kind=Kind.REPLY, type="CreditReserved", destination="orders")

COMMIT_LSN = Lsn(190)

TURNS = 20
"""Turns of the loop in which everything that can happen without the broker has happened."""


@dataclass
class FakeParking:
    """Stores at once what it is told to store, when it is told to."""

    index: Index
    stored: list[tuple[str, Reason, str]] = field(default_factory=list)
    waiting: list[Callable[[], None]] = field(default_factory=list)
    has_room: bool = True

    @property
    def pending(self) -> int:
        return len(self.waiting)

    def park(
        self, message: Message, position: Position, reason: Reason, detail: str, settled: Callable[[], None]
    ) -> None:
        self.index.park(position, message.lane, reason)
        self.stored.append((message.id, reason, detail))
        self.waiting.append(settled)

    def commits(self) -> None:
        waiting, self.waiting = self.waiting, []
        for settled in waiting:
            settled()

    @property
    def reasons(self) -> list[tuple[str, str]]:
        return [(message_id, str(reason)) for message_id, reason, _ in self.stored]


@dataclass
class Stage:
    """An outlet, the brokers that it has had, and a transaction whose messages go out."""

    outlet: Outlet
    parking: FakeParking
    status: SourceStatus
    connections: list[FakeConnection]
    running: "asyncio.Task[None]"
    read: int = 0

    def __post_init__(self) -> None:
        self.transaction = Progress(Lsn(0)).begin(COMMIT_LSN, datetime.now(UTC))

    @property
    def connection(self) -> FakeConnection:
        return self.connections[-1]

    @property
    def broker(self) -> FakeChannel:
        return self.connection.raw

    @property
    def sent(self) -> list[str | None]:
        """The ids of what the broker at hand has got, in order."""
        return [sent.properties.message_id for sent in self.broker.sent]

    @property
    def settled(self) -> int:
        return self.read - self.transaction.unsettled

    async def publish(self, *messages: Message) -> None:
        for message in messages:
            assert self.outlet.has_room
            self.transaction.unsettled += 1
            self.read += 1
            self.outlet.publish(message, self.transaction, self.read - 1)
        await turns()

    async def acks(self, *tags: int) -> None:
        for tag in tags:
            self.broker.acks(tag)
        await turns()

    async def returns(self, *tags: int) -> None:
        for tag in tags:
            self.broker.returns(tag)
            self.broker.acks(tag)
        await turns()

    async def nacks(self, *tags: int) -> None:
        for tag in tags:
            self.broker.nacks(tag)
        await turns()

    async def proves(self, *messages: Message) -> None:
        """Their routes carry messages. They belong to another aggregate, and are off the broker's list again."""
        for message in messages:
            await self.publish(message._replace(id="proof", aggregate_id="another"))
            await self.acks(len(self.broker.sent))
        self.first = len(self.broker.sent)


async def turns() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)


def numbered(message: Message, count: int, begin: int = 1) -> list[Message]:
    return [message._replace(id=f"id-{number}") for number in range(begin, begin + count)]


@asynccontextmanager
async def staged(
    monkeypatch: pytest.MonkeyPatch,
    *,
    ordering: str = "pipelined",
    on_unroutable: dict[str, str] | None = None,
    parked: Sequence[Known] = (),
    **broker: Any,
) -> AsyncIterator[Stage]:
    connections: list[FakeConnection] = []

    async def open_(url: str, *, name: str) -> FakeConnection:
        connections.append(FakeConnection())
        return connections[-1]

    monkeypatch.setattr(uplink_module.Connection, "open", open_)
    for module in (uplink_module, outlet_module):
        monkeypatch.setattr(module, "RETRY_FIRST_S", 0.0)
        monkeypatch.setattr(module, "RETRY_CAP_S", 0.0)
    source = SourceSettings.model_validate({"name": "shop", "dsn": "postgresql://relay@db/shop", "ordering": ordering})
    broker_settings = BrokerSettings.model_validate(
        {"url": "amqp://relay:secret@mq.example/", "on_unroutable": on_unroutable or {}} | broker
    )
    parking, status = FakeParking(Index(parked)), SourceStatus("shop")
    outlet = Outlet(source, broker_settings, parking, status, SourceLog("shop", "relay_shop"))  # type: ignore[arg-type]
    running = asyncio.create_task(outlet.run())
    try:
        await asyncio.wait_for(outlet.connected(), 1)
        yield Stage(outlet, parking, status, connections, running)
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await running


@pytest.fixture
async def stage(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    async with staged(monkeypatch) as stage:
        yield stage


# Publishing.


async def test_a_message_leaves_enveloped_routed_and_byte_for_byte(stage: Stage) -> None:
    await stage.publish(COMMAND)
    (sent,) = stage.broker.sent
    assert isinstance(sent, Sent)
    assert (sent.exchange, sent.routing_key, sent.mandatory) == ("relay.commands", "customers", True)
    assert sent.body == COMMAND.payload
    assert sent.properties.message_id == "id-1"
    assert sent.properties.app_id == "shop"
    assert sent.properties.headers["ce-source"] == "shop"


async def test_a_message_is_settled_when_it_is_confirmed(stage: Stage) -> None:
    await stage.publish(*numbered(EVENT, 2))
    assert (stage.settled, stage.outlet.in_flight, stage.outlet.published) == (0, 2, 2)
    await stage.acks(2)
    assert (stage.settled, stage.outlet.in_flight, stage.outlet.published) == (1, 1, 2)


async def test_messages_leave_in_the_order_of_the_calls(stage: Stage) -> None:
    await stage.publish(*numbered(EVENT, 50))
    assert stage.sent == [message.id for message in numbered(EVENT, 50)]


async def test_there_is_no_room_while_the_broker_takes_no_messages(stage: Stage) -> None:
    stage.connection.blocks("low on memory")
    assert not stage.outlet.has_room
    room = asyncio.ensure_future(stage.outlet.room())
    await turns()
    assert not room.done()
    stage.connection.blocks(None)
    await asyncio.wait_for(room, 1)


# Routes that nobody has bound a queue to.


async def test_an_event_that_nobody_listens_to_is_settled_counted_and_logged_once_a_route(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    created, paid = numbered(EVENT, 3), EVENT._replace(id="id-4", type="OrderPaid")
    await stage.publish(*created, paid)
    await stage.returns(1, 2, 3, 4)
    assert stage.settled == 4
    assert stage.status.unheard == {"order.OrderCreated": 3, "order.OrderPaid": 1}
    assert [(record.action, record.routing_key) for record in caplog.records] == [
        ("event_unheard", "order.OrderCreated"),
        ("event_unheard", "order.OrderPaid"),
    ]
    assert stage.parking.stored == []


@pytest.mark.parametrize("message", [COMMAND, REPLY], ids=["command", "reply"])
async def test_a_command_or_reply_that_comes_back_is_parked_and_settled_when_that_is_committed(
    stage: Stage, message: Message
) -> None:
    await stage.publish(message)
    await stage.returns(1)
    ((_, reason, detail),) = stage.parking.stored
    assert reason is Reason.UNROUTABLE
    assert repr(message.destination) in detail
    assert stage.settled == 0
    stage.parking.commits()
    assert stage.settled == 1


async def test_what_follows_a_parked_message_in_its_lane_is_parked_behind_it_and_the_rest_flows(stage: Stage) -> None:
    first, second, event, other, elsewhere = (
        COMMAND._replace(id="first"),
        COMMAND._replace(id="second"),
        EVENT._replace(id="event"),
        COMMAND._replace(id="other", aggregate_id="8", destination="orders"),
        COMMAND._replace(id="elsewhere", destination="orders"),
    )
    await stage.publish(first, second, event, other, elsewhere)
    assert stage.sent == ["first", "other"]  # the aggregate waits until it is known whether its first comes back
    await stage.returns(1)
    assert stage.sent == ["first", "other", "event", "elsewhere"]
    await stage.acks(2, 3, 4)
    await stage.publish(COMMAND._replace(id="third"))
    assert stage.parking.reasons == [("first", "unroutable"), ("second", "unroutable"), ("third", "unroutable")]
    assert len(stage.broker.sent) == 4


async def test_on_a_proven_route_messages_of_an_aggregate_follow_each_other_at_once(stage: Stage) -> None:
    await stage.proves(COMMAND)
    await stage.publish(*numbered(COMMAND, 3))
    assert stage.sent[1:] == ["id-1", "id-2", "id-3"]


async def test_a_route_has_to_be_proven_again_on_a_new_connection(stage: Stage) -> None:
    await stage.proves(COMMAND)
    stage.connection.is_lost()
    await reconnected(stage, 2)
    await stage.publish(*numbered(COMMAND, 2))
    assert stage.sent == ["id-1"]
    await stage.acks(1)
    assert stage.sent == ["id-1", "id-2"]


async def test_what_was_already_behind_a_message_that_comes_back_is_parked_in_order_too(stage: Stage) -> None:
    """The binding was removed while they were in flight: they come back one by one."""
    await stage.proves(COMMAND)
    await stage.publish(*numbered(COMMAND, 3))
    await stage.returns(2, 3, 4)
    assert stage.parking.reasons == [("id-1", "unroutable"), ("id-2", "unroutable"), ("id-3", "unroutable")]


async def test_a_policy_may_be_set_for_a_kind_and_for_a_type_which_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    policies = {"event": "park", "OrderViewed": "ignore", "command": "ignore"}
    async with staged(monkeypatch, on_unroutable=policies) as stage:
        await stage.publish(
            EVENT, COMMAND._replace(aggregate_id="8"), EVENT._replace(aggregate_id="9", type="OrderViewed")
        )
        await stage.returns(1, 2, 3)
        assert stage.parking.reasons == [("id-1", "unroutable")]
        assert stage.status.unheard == {"customers": 1, "order.OrderViewed": 1}


async def test_a_source_that_is_set_to_stop_does_so_and_the_message_stays_unsettled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with staged(monkeypatch, on_unroutable={"command": "stop"}) as stage:
        await stage.publish(*numbered(COMMAND, 2))
        assert stage.sent == ["id-1"]
        await stage.returns(1)
        with pytest.raises(Unheard, match="'customers'") as stopped:
            await stage.running
        assert stopped.value.exit_code is ExitCode.FAILURE
        assert stage.settled == 0
        assert stage.sent == ["id-1"]


# Queues that refuse.


async def test_a_refused_message_is_tried_again_until_a_queue_takes_it_and_its_aggregate_waits(stage: Stage) -> None:
    await stage.proves(COMMAND)
    await stage.publish(COMMAND)
    await stage.nacks(2)
    await asyncio.sleep(0.01)
    await stage.publish(COMMAND._replace(id="id-2"), COMMAND._replace(id="other", aggregate_id="8"))
    assert stage.sent[1:] == ["id-1", "id-1", "other"]
    await stage.acks(3)
    assert stage.sent[4:] == ["id-2"]
    await stage.acks(4, 5)
    assert stage.settled == 4
    assert stage.parking.stored == []


async def test_a_message_that_is_refused_again_and_again_is_parked_with_its_followers(stage: Stage) -> None:
    await stage.proves(COMMAND)
    await stage.publish(*numbered(COMMAND, 1))
    for attempt in range(outlet_module.REFUSALS):
        await until(lambda attempt=attempt: len(stage.broker.sent) == attempt + 2)
        await stage.nacks(attempt + 2)
        if not attempt:
            await stage.publish(*numbered(COMMAND, 1, begin=2))
    assert stage.parking.reasons == [("id-1", "nacked"), ("id-2", "nacked")]
    assert f"{outlet_module.REFUSALS} times" in stage.parking.stored[0][2]


async def refused_while_others_are_taken(stage: Stage, times: int) -> None:
    """The first message is refused each time it comes; one of another aggregate is taken in between."""
    await stage.proves(COMMAND)
    await stage.publish(COMMAND)
    for attempt in range(times):
        await stage.nacks(len(stage.sent) - stage.sent[::-1].index("id-1"))
        await stage.publish(COMMAND._replace(id=f"other-{attempt}", aggregate_id=str(attempt + 10)))
        await stage.acks(stage.sent.index(f"other-{attempt}") + 1)
        await until(lambda attempt=attempt: stage.sent.count("id-1") == attempt + 2 or stage.parking.stored)


async def test_a_queue_that_takes_others_meanwhile_deserves_more_patience(stage: Stage) -> None:
    await refused_while_others_are_taken(stage, 3 * outlet_module.REFUSALS)
    assert stage.parking.stored == []


async def test_a_message_that_a_queue_never_takes_is_parked_though_the_queue_takes_others(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outlet_module, "REFUSALS_MOST", 20)
    await refused_while_others_are_taken(stage, 20)
    assert stage.parking.reasons == [("id-1", "nacked")]
    assert "20 times" in stage.parking.stored[0][2]


async def test_once_a_message_was_parked_for_it_others_of_the_route_are_not_tried_so_often(stage: Stage) -> None:
    """A queue that is full for good must not cost five seconds for each aggregate."""
    await stage.proves(COMMAND)
    await stage.publish(COMMAND)
    for attempt in range(outlet_module.REFUSALS):
        await until(lambda attempt=attempt: len(stage.broker.sent) == attempt + 2)
        await stage.nacks(attempt + 2)
    await stage.publish(COMMAND._replace(id="other", aggregate_id="8"))
    await stage.nacks(len(stage.broker.sent))
    assert stage.parking.reasons[1:] == [("other", "nacked")]
    await stage.publish(COMMAND._replace(id="luckier", aggregate_id="9"))
    await stage.acks(len(stage.broker.sent))
    await stage.publish(COMMAND._replace(id="again", aggregate_id="10"))
    sent = len(stage.broker.sent)
    await stage.nacks(sent)
    await until(lambda: len(stage.broker.sent) == sent + 1)
    assert len(stage.parking.stored) == 2


async def test_strict_order_has_one_message_of_an_aggregate_unconfirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with staged(monkeypatch, ordering="strict") as stage:
        await stage.publish(*numbered(EVENT, 3), EVENT._replace(id="other", aggregate_id="8"))
        assert stage.sent == ["id-1", "other"]
        await stage.nacks(1)
        await until(lambda: len(stage.broker.sent) == 3)
        assert stage.sent == ["id-1", "other", "id-1"]
        await stage.acks(3)
        await stage.acks(4)
        assert stage.sent == ["id-1", "other", "id-1", "id-2", "id-3"]


async def test_reading_stops_when_too_many_wait_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async with staged(monkeypatch, ordering="strict") as stage:
        await stage.publish(*numbered(EVENT, HOLD))
        assert stage.outlet.has_room
        await stage.publish(EVENT)
        assert not stage.outlet.has_room
        await stage.acks(1)
        assert stage.outlet.has_room


async def test_what_was_let_go_and_has_not_left_yet_waits_again_for_one_that_is_refused(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window full of them leaves when the route is proven; the rest must not pass the one that is tried again."""
    monkeypatch.setattr(outlet_module, "RETRY_FIRST_S", 60.0)
    monkeypatch.setattr(outlet_module, "RETRY_CAP_S", 60.0)
    await stage.publish(*numbered(COMMAND, 200))
    await stage.acks(1)
    left = len(stage.sent)
    assert 2 < left < 200
    await stage.nacks(2)
    await stage.acks(*range(3, left + 1))
    assert len(stage.sent) == left


async def test_long_after_a_message_was_parked_for_it_one_refusal_is_not_enough(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outlet_module, "REFUSING_S", 0.0)
    await stage.proves(COMMAND)
    await stage.publish(COMMAND)
    for attempt in range(outlet_module.REFUSALS):
        await until(lambda attempt=attempt: len(stage.broker.sent) == attempt + 2)
        await stage.nacks(attempt + 2)
    await stage.publish(COMMAND._replace(id="next-day", aggregate_id="8"))
    sent = len(stage.broker.sent)
    await stage.nacks(sent)
    await until(lambda: len(stage.broker.sent) == sent + 1)
    assert stage.parking.reasons == [("id-1", "nacked")]


async def test_the_status_shows_what_is_in_flight(stage: Stage) -> None:
    await stage.publish(*numbered(EVENT, 30))
    stage.outlet.show()
    assert stage.status.details()["in_flight"] == 30


# What cannot be sent at all.


async def test_a_body_over_the_limit_is_parked_and_never_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    async with staged(monkeypatch, max_message_bytes=10) as stage:
        await stage.publish(
            EVENT, EVENT._replace(id="behind", payload=b"{}"), EVENT._replace(aggregate_id="8", payload=b"{}")
        )
        assert stage.parking.reasons == [("id-1", "too_large"), ("behind", "too_large")]
        assert "20 bytes, and max_message_bytes is 10" in stage.parking.stored[0][2]
        assert len(stage.sent) == 1


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        pytest.param(COMMAND._replace(destination="c" * 256), "unencodable", id="routing key"),
        pytest.param(EVENT._replace(type="T" * 256), "unencodable", id="type"),
        pytest.param(EVENT._replace(id="i" * 256), "unencodable", id="id"),
        pytest.param(EVENT._replace(headers=b'{"note": "\\ud800"}'), "unencodable", id="lone surrogate"),
        pytest.param(EVENT._replace(headers=b'{"CC": "everybody"}'), "unencodable", id="CC"),
        pytest.param(EVENT._replace(headers=b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}"), "unencodable", id="nesting"),
        pytest.param(EVENT._replace(headers=b'{"a": "%s"}' % (b"x" * 140_000)), "too_large", id="headers"),
    ],
)
async def test_what_amqp_cannot_carry_is_parked_with_the_reason_and_the_rest_flows(
    stage: Stage, message: Message, reason: str
) -> None:
    await stage.publish(message, EVENT._replace(id="other", aggregate_id="8"))
    assert [found for _, found in stage.parking.reasons] == [reason]
    assert stage.sent == ["other"]
    assert not stage.running.done()


# Lost connections.


async def until(check: Callable[[], object]) -> None:
    """Let the loop turn until it is so: some of that takes timers of no length, which need a turn each."""
    async with asyncio.timeout(2):
        while not check():
            await turns()


async def reconnected(stage: Stage, times: int) -> None:
    await until(lambda: len(stage.connections) == times and stage.outlet._uplink.connected)
    await turns()


async def test_what_was_unsettled_goes_out_again_in_order_on_the_next_connection(stage: Stage) -> None:
    await stage.publish(*numbered(EVENT, 4))
    await stage.acks(2)
    stage.connection.is_lost()
    await reconnected(stage, 2)
    assert stage.sent == ["id-1", "id-3", "id-4"]
    await stage.acks(1, 2, 3)
    assert stage.settled == 4
    assert stage.outlet.in_flight == 0


async def test_while_the_broker_is_away_there_is_no_room_and_nothing_fails(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(url: str, *, name: str) -> FakeConnection:
        raise await asyncio.Event().wait()

    monkeypatch.setattr(uplink_module.Connection, "open", never)
    away = asyncio.ensure_future(stage.outlet.disconnected())
    await turns()
    assert not away.done()
    stage.connection.is_lost()
    await asyncio.wait_for(away, 1)
    assert not stage.outlet.has_room
    assert not stage.running.done()


async def test_what_waited_for_another_keeps_its_place_over_a_lost_connection(stage: Stage) -> None:
    await stage.publish(*numbered(COMMAND, 3))
    assert stage.sent == ["id-1"]
    stage.connection.is_lost()
    await reconnected(stage, 2)
    assert stage.sent == ["id-1"]
    await stage.acks(1)
    assert stage.sent == ["id-1", "id-2", "id-3"]


async def test_a_message_that_waits_to_be_tried_again_keeps_its_place_over_a_lost_connection(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outlet_module, "RETRY_FIRST_S", 60.0)
    monkeypatch.setattr(outlet_module, "RETRY_CAP_S", 60.0)
    await stage.proves(COMMAND)
    await stage.publish(COMMAND)
    await stage.nacks(2)
    await stage.publish(COMMAND._replace(id="id-2"))
    assert stage.outlet.in_flight == 2
    stage.connection.is_lost()
    await reconnected(stage, 2)
    assert stage.sent == ["id-1"]
    await stage.acks(1)
    assert stage.sent == ["id-1", "id-2"]


async def test_after_a_close_that_a_message_may_have_caused_they_go_one_at_a_time_until_it_is_found(
    stage: Stage,
) -> None:
    messages = [EVENT._replace(id=f"id-{number}", aggregate_id=str(number)) for number in range(1, 5)]
    await stage.publish(*messages)
    stage.broker.closes(ChannelClosedByBroker(501, "FRAME_ERROR"))
    await reconnected(stage, 2)
    assert stage.sent == ["id-1"]
    assert not stage.outlet.has_room
    await stage.acks(1)
    assert stage.sent == ["id-1", "id-2"]
    for times in (3, 4):
        stage.broker.closes(ChannelClosedByBroker(501, "FRAME_ERROR"))
        await reconnected(stage, times)
    assert stage.parking.reasons == [("id-2", "unencodable")]
    assert "FRAME_ERROR" in stage.parking.stored[0][2]
    assert stage.sent == ["id-3"]
    await stage.acks(1)
    await stage.acks(2)
    assert stage.outlet.has_room
    assert stage.settled == 3


async def test_a_broker_with_internal_errors_does_not_make_a_culprit_so_soon(stage: Stage) -> None:
    """It may be ill, and then the message that happens to be alone in flight is innocent."""
    await stage.publish(EVENT)
    for times in range(2, 2 + uplink_module.DISRUPTIONS_INTERNAL_MAX):
        assert stage.parking.stored == []
        stage.broker.closes(ChannelClosedByBroker(541, "INTERNAL_ERROR"))
        await reconnected(stage, times)
    assert stage.parking.reasons == [("id-1", "unencodable")]


async def test_a_body_that_the_broker_finds_too_large_is_parked_for_that(stage: Stage) -> None:
    await stage.publish(EVENT, EVENT._replace(id="behind"), EVENT._replace(id="other", aggregate_id="8"))
    for times in (2, 3, 4):
        words = "PRECONDITION_FAILED - message size 20 is larger than configured max size 10"
        stage.broker.closes(ChannelClosedByBroker(406, words))
        await reconnected(stage, times)
        if stage.parking.stored:
            break
    assert stage.parking.reasons[0] == ("id-1", "too_large")
    assert "behind" not in stage.sent
    assert stage.sent == ["other"]


async def test_a_socket_that_breaks_again_and_again_parks_nobody(stage: Stage) -> None:
    await stage.publish(EVENT)
    for times in range(2, 8):
        stage.connection.is_lost()
        await reconnected(stage, times)
    assert stage.parking.stored == []
    assert stage.sent == ["id-1"]


# What is known from before.


def known(ordinal: int, message: Message = COMMAND) -> Known:
    return Known(Position(COMMIT_LSN, ordinal), message.lane, Reason.NACKED)


async def test_what_is_parked_already_is_settled_and_neither_published_nor_parked_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a crash the stream begins again before it: the one before it goes out once more, the ones after it wait."""
    async with staged(monkeypatch, parked=[known(1)]) as stage:
        await stage.publish(*numbered(COMMAND, 3))
        assert stage.sent == ["id-1"]
        assert stage.parking.reasons == [("id-3", "nacked")]
        assert stage.settled == 1


# Replaying.


async def test_a_replayed_message_that_a_queue_takes_is_no_longer_refused(stage: Stage) -> None:
    replaying = asyncio.ensure_future(stage.outlet.replay(COMMAND, Position(COMMIT_LSN, 0)))
    await turns()
    assert stage.sent == ["id-1"]
    await stage.acks(1)
    assert await replaying is None


async def test_a_replayed_message_that_comes_back_stays_parked_with_those_behind_it(stage: Stage) -> None:
    replays = [
        asyncio.ensure_future(stage.outlet.replay(message, Position(COMMIT_LSN, ordinal)))
        for ordinal, message in enumerate(numbered(COMMAND, 3))
    ]
    await turns()
    await stage.returns(1)
    refusals = await asyncio.gather(*replays)
    assert stage.sent == ["id-1"]
    assert all(isinstance(refusal, Refusal) and refusal.reason is Reason.UNROUTABLE for refusal in refusals)
    assert stage.parking.stored == []


async def test_a_lane_whose_replay_was_refused_may_be_tried_again(stage: Stage) -> None:
    for tag in (1, 2):
        replaying = asyncio.ensure_future(stage.outlet.replay(COMMAND, Position(COMMIT_LSN, 0)))
        await turns()
        await stage.returns(tag)
        assert isinstance(await replaying, Refusal)


async def test_a_replay_outlives_the_connection(stage: Stage) -> None:
    replaying = asyncio.ensure_future(stage.outlet.replay(COMMAND, Position(COMMIT_LSN, 0)))
    await turns()
    stage.connection.is_lost()
    await reconnected(stage, 2)
    assert stage.sent == ["id-1"]
    await stage.acks(1)
    assert await replaying is None


async def test_what_cannot_be_sent_cannot_be_replayed_either(stage: Stage) -> None:
    poison = COMMAND._replace(destination="c" * 256)
    refusal = await stage.outlet.replay(poison, Position(COMMIT_LSN, 0))
    assert refusal is not None
    assert refusal.reason is Reason.UNENCODABLE
    headers = COMMAND._replace(headers=b'{"CC": "everybody"}')
    refusal = await stage.outlet.replay(headers, Position(COMMIT_LSN, 1))
    assert refusal is not None
    assert refusal.reason is Reason.UNENCODABLE


async def test_a_replay_does_not_pass_one_of_its_lane_that_is_parked_while_it_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with staged(monkeypatch, on_unroutable={"event": "park"}) as stage:
        first, second = EVENT._replace(id="first", type="A"), EVENT._replace(id="second", type="B")
        await stage.proves(first, second)
        await stage.publish(first, second)
        await stage.nacks(3)
        await stage.returns(4)
        stage.parking.commits()
        assert stage.parking.reasons == [("second", "unroutable")]
        replay = asyncio.ensure_future(stage.outlet.replay(second, Position(COMMIT_LSN, 3)))
        await turns()
        while len(stage.parking.stored) == 1:
            await until(lambda: stage.sent[-1] == "first")
            await stage.nacks(len(stage.sent))
        assert stage.parking.reasons[1] == ("first", "nacked")
        assert isinstance(await asyncio.wait_for(replay, 1), Refusal)
        assert stage.sent.count("second") == 1


@pytest.mark.parametrize("policy", ["stop", "ignore"])
async def test_a_replay_that_comes_back_stays_parked_whatever_the_policy_is_by_now(
    monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    """Nobody who asked for it to be published is told that it was; and nothing stops over it."""
    async with staged(monkeypatch, on_unroutable={"command": policy}) as stage:
        replay = asyncio.ensure_future(stage.outlet.replay(COMMAND, Position(COMMIT_LSN, 0)))
        await turns()
        await stage.returns(1)
        refusal = await asyncio.wait_for(replay, 1)
        assert refusal is not None
        assert refusal.reason is Reason.UNROUTABLE
        assert not stage.running.done()


async def test_everything_is_settled_also_when_a_replay_that_is_tried_again_is_refused_for_another(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outlet_module, "RETRY_FIRST_S", 0.02)
    monkeypatch.setattr(outlet_module, "RETRY_CAP_S", 0.02)
    await stage.proves(COMMAND)
    replays = [
        asyncio.ensure_future(stage.outlet.replay(message, Position(COMMIT_LSN, ordinal)))
        for ordinal, message in enumerate(numbered(COMMAND, 2))
    ]
    await turns()
    await stage.nacks(3)
    await stage.returns(2)
    settled = asyncio.ensure_future(stage.outlet.settled())
    await asyncio.gather(*replays)
    await asyncio.wait_for(settled, 1)
