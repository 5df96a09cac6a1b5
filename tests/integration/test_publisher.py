"""Publishing to RabbitMQ itself: what it makes of messages, and what the publisher makes of what it says."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from relay.broker.connection import Channel, ChannelRefused, Connection, Disrupted, ExchangeMissing
from relay.broker.consumer import Consumer
from relay.broker.encoding import Flaw, Template, Unsendable
from relay.broker.properties import HeaderValue, Properties, Varying
from relay.broker.publisher import Outcome, Publisher
from relay.errors import BrokerAway, BrokerError
from tests.conftest import VirtualHost
from tests.support.picky import MESSAGE_BYTES_MAX, PickyBroker

CONFIRMED, RETURNED, NACKED = Outcome.CONFIRMED, Outcome.RETURNED, Outcome.NACKED
EXCHANGE = "relay.events"
WAIT_S = 30.0


class Desk:
    """A publisher, with a channel beside it to declare what the test needs, and what became of each message."""

    def __init__(self, connection: Connection, control: Channel) -> None:
        self.connection = connection
        self.control = control
        self.settled: list[tuple[str, Outcome]] = []
        self.changed = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def at(cls, url: str) -> AsyncIterator["Desk"]:
        connection = await Connection.open(url, name="desk")
        try:
            desk = cls(connection, await connection.channel())
            await desk.call("exchange_declare", EXCHANGE, exchange_type="topic")
            desk.publisher: Publisher[str] = await Publisher.open(
                connection, lambda *news: desk.settled.append(news), desk.changed.set
            )
            yield desk
        finally:
            await connection.close()

    async def call(self, method: str, *args: Any, **arguments: Any) -> None:
        await self.control.call(getattr(self.control.raw, method), *args, **arguments)

    async def queue(self, name: str, key: str = "#", **arguments: object) -> None:
        """Declare a queue of a kind of its own, and bind it."""
        said = {argument.replace("_", "-"): value for argument, value in arguments.items()}
        await self.call("queue_declare", name, durable=True, arguments=said)
        await self.call("queue_bind", name, EXCHANGE, routing_key=key)

    def publish(
        self, message_id: str, key: str = "order.Created", body: bytes = b"{}", exchange: str = EXCHANGE, **headers: Any
    ) -> None:
        template = Template(exchange, key, Properties(None, type="Created"))
        self.publisher.publish(template, Varying(message_id, None, None, 1, headers), body, message_id)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something holds, or raise what closed the channel."""
        async with asyncio.timeout(WAIT_S):
            while not condition():
                self.changed.clear()
                news = asyncio.ensure_future(self.changed.wait())
                await asyncio.wait({news, self.publisher.channel.closed}, return_when=asyncio.FIRST_COMPLETED)
                news.cancel()
                if self.publisher.channel.closed.done() and not condition():
                    raise self.publisher.channel.closed.result()

    async def outcomes(self) -> dict[str, Outcome]:
        """What became of each message, when the last is settled."""
        await self.until(lambda: not self.publisher.in_flight)
        return dict(self.settled)

    async def loss(self) -> BrokerError:
        """What closed the channel."""
        async with asyncio.timeout(WAIT_S):
            return await asyncio.shield(self.publisher.channel.closed)


@pytest.fixture
async def desk(vhost: VirtualHost) -> AsyncIterator[Desk]:
    async with Desk.at(vhost.url) as desk:
        yield desk


async def test_a_message_that_no_queue_is_bound_for_comes_back_and_the_others_arrive(desk: Desk) -> None:
    await desk.queue("orders", "order.*")
    desk.publish("a")
    desk.publish("b", "weather.Changed")
    desk.publish("c")
    desk.publish("d", "weather.Changed")
    assert await desk.outcomes() == {"a": CONFIRMED, "b": RETURNED, "c": CONFIRMED, "d": RETURNED}


async def test_a_queue_that_is_full_and_rejects_refuses_a_message(desk: Desk) -> None:
    await desk.queue("one", x_max_length=1, x_overflow="reject-publish")
    desk.publish("a")
    await desk.outcomes()
    desk.publish("b")
    assert await desk.outcomes() == {"a": CONFIRMED, "b": NACKED}


@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_many_arrive_in_order_while_the_window_opens_and_closes(desk: Desk, kind: str) -> None:
    await desk.queue("orders", x_queue_type=kind)
    sent = [f"m{number}" for number in range(5000)]
    for message_id in sent:
        await desk.until(lambda: desk.publisher.has_room)
        desk.publish(message_id)
    assert set((await desk.outcomes()).values()) == {CONFIRMED}
    assert len(desk.settled) == len(sent)
    consumer = await Consumer.open(desk.connection, "orders", prefetch=1000)
    for message_id in sent:
        delivery = await consumer.next()
        consumer.ack(delivery)
        assert delivery.properties.message_id == message_id


async def test_a_body_of_many_frames_and_an_empty_one_arrive_as_they_were(desk: Desk) -> None:
    await desk.queue("orders")
    large = bytes(range(256)) * 4000
    desk.publish("large", body=large)
    desk.publish("empty", body=b"")
    assert await desk.outcomes() == {"large": CONFIRMED, "empty": CONFIRMED}
    consumer = await Consumer.open(desk.connection, "orders", prefetch=2)
    assert [(await consumer.next()).body for _ in range(2)] == [large, b""]


async def test_headers_that_just_fill_a_frame_arrive_and_longer_ones_are_never_sent(desk: Desk) -> None:
    await desk.queue("orders")
    desk.publish("a", h="")
    with pytest.raises(Unsendable) as refused:
        desk.publish("b", h="x" * desk.connection.frame_max)
    assert refused.value.flaw is Flaw.TOO_LARGE
    over = int(str(refused.value).split(" has ")[1].split(" ")[0].replace(",", ""))
    room = desk.connection.frame_max - (over - desk.connection.frame_max) - 8
    with pytest.raises(Unsendable):
        desk.publish("c", h="x" * (room + 1))
    desk.publish("d", h="x" * room)
    assert await desk.outcomes() == {"a": CONFIRMED, "d": CONFIRMED}


ODD: dict[str, HeaderValue] = {
    "": "an empty name",
    "zero": "\0",
    "\0": 0,
    "é😀": "😀",
    "bytes": b"\xff\xfe",
    "numbers": [(1 << 63) - 1, -(1 << 63), 1 << 31, -1, 0],
    "fractions": [1e308, 5e-324, -0.0],
    "nothing": None,
    "nested": {"a": [{"b": [[[]]]}, {}], "": {}},
    "BCC": [None, 1, "k" * 300],
    "x-death": [{"queue": 1, "count": "a"}, {}],
    "x-stream-filter-value": "é" * 2048,
    "x-delay": "soon",
    "x-delivery-count": "many",
    "x-first-death-queue": [1],
    "x-amqp-1.0-properties": 1,
}


async def test_whatever_is_sendable_arrives_and_closes_nothing(desk: Desk) -> None:
    await desk.call("exchange_declare", "dead", exchange_type="fanout")
    await desk.queue("stream", x_queue_type="stream")
    for kind in ("classic", "quorum"):
        await desk.queue(kind, x_queue_type=kind, x_dead_letter_exchange="dead")
        await desk.call("queue_declare", f"{kind}.dead", durable=True, arguments={"x-queue-type": kind})
        await desk.call("queue_bind", f"{kind}.dead", "dead")
    for number, (name, value) in enumerate(ODD.items()):
        desk.publish(f"m{number}", **{name: value})
    names = Varying("\0", "é" * 127, "", (1 << 64) - 1, {})
    odd = Properties(None, type="\0", content_type="", app_id="x" * 255)
    desk.publisher.publish(Template(EXCHANGE, "#.*." + "k" * 250, odd), names, b"\0", "names")
    assert set((await desk.outcomes()).values()) == {CONFIRMED}
    for queue, copies in (("classic", 1), ("quorum", 1), ("classic.dead", 2), ("quorum.dead", 2)):
        consumer = await Consumer.open(desk.connection, queue, prefetch=100)
        for _ in range(copies * (len(ODD) + 1)):
            async with asyncio.timeout(WAIT_S):
                consumer.reject(await consumer.next())


async def test_an_exchange_that_does_not_exist_is_named(desk: Desk) -> None:
    desk.publish("a", exchange="nowhere")
    loss = await desk.loss()
    assert isinstance(loss, ExchangeMissing)
    assert "the exchange nowhere does not exist" in str(loss)
    assert desk.publisher.unsettled() == ["a"]


async def test_an_exchange_that_is_deleted_in_between_is_named(desk: Desk) -> None:
    await desk.queue("orders")
    desk.publish("a")
    await desk.outcomes()
    await desk.call("exchange_delete", EXCHANGE)
    desk.publish("b")
    assert isinstance(await desk.loss(), ExchangeMissing)
    assert desk.publisher.unsettled() == ["b"]


async def test_an_exchange_that_may_not_be_written_to_is_no_reason_to_try_again(desk: Desk) -> None:
    await desk.call("exchange_declare", "internal", exchange_type="fanout", internal=True)
    desk.publish("a", exchange="internal")
    assert isinstance(await desk.loss(), ChannelRefused)


async def test_heartbeats_go_on_while_messages_are_published_and_in_silence(vhost: VirtualHost) -> None:
    """With a heartbeat of 1 s, RabbitMQ hangs up on a client that is silent for 2 s."""
    async with Desk.at(f"{vhost.url}?heartbeat=1") as desk:
        await desk.queue("orders", x_max_length=1000)
        loop = asyncio.get_running_loop()
        end = loop.time() + 4
        count = 0
        while loop.time() < end:
            await desk.until(lambda: desk.publisher.has_room)
            count += 1
            desk.publish(f"m{count}")
        assert set((await desk.outcomes()).values()) == {CONFIRMED}
        closed, _ = await asyncio.wait({desk.connection.closed}, timeout=5)
        assert not closed
        desk.publish("last")
        assert (await desk.outcomes())["last"] is CONFIRMED


@pytest.fixture(scope="module")
def own_broker() -> Iterator[PickyBroker]:
    with PickyBroker() as broker:
        yield broker


async def test_a_body_larger_than_the_broker_takes_closes_the_channel_and_is_known_as_the_cause(
    own_broker: PickyBroker,
) -> None:
    async with Desk.at(own_broker.amqp_url()) as desk:
        await desk.queue("orders")
        desk.publish("fits", body=b"x" * MESSAGE_BYTES_MAX)
        assert await desk.outcomes() == {"fits": CONFIRMED}
        desk.publish("a", body=b"x" * (MESSAGE_BYTES_MAX + 1))
        loss = await desk.loss()
        assert isinstance(loss, Disrupted)
        assert (loss.code, loss.too_large) == (406, True)
        assert desk.publisher.unsettled() == ["a"]


async def test_a_broker_short_of_memory_is_back_pressure_until_it_has_some_again(own_broker: PickyBroker) -> None:
    async with Desk.at(own_broker.amqp_url()) as desk:
        await desk.queue("orders")
        async with own_broker.short_of_memory():
            desk.publish("a")  # a broker tells those who publish
            async with asyncio.timeout(WAIT_S):
                blocked = asyncio.Event()
                unwatch = desk.connection.on_blocking(blocked.set)
                await blocked.wait()
                unwatch()
            assert "memory" in str(desk.connection.blocked)
            assert not desk.publisher.has_room
            assert desk.settled == []
        await desk.until(lambda: desk.publisher.has_room)
        assert desk.connection.blocked is None
        assert await desk.outcomes() == {"a": CONFIRMED}


async def test_a_broker_that_hangs_up_is_away_and_no_message_is_to_blame(own_broker: PickyBroker) -> None:
    async with Desk.at(own_broker.amqp_url()) as desk:
        await desk.queue("orders")
        await own_broker.control("close_all_connections", "maintenance")
        loss = await desk.loss()
        assert type(loss) is BrokerAway
        with pytest.raises(BrokerAway):
            desk.publish("a")
        assert desk.publisher.unsettled() == []
