"""Publishing on one channel with pipelined confirms: the only code that publishes."""

import asyncio
from collections.abc import Callable, Iterable
from enum import Enum
from itertools import chain
from typing import Any, Final, Generic, Self, TypeAlias, TypeVar

from pika.channel import Channel as PikaChannel
from pika.frame import Method
from pika.spec import Basic, BasicProperties

from relay.broker.connection import Channel, Connection
from relay.broker.encoding import Template, Unsendable
from relay.broker.properties import Varying
from relay.broker.window import Window
from relay.errors import BrokerAway

__all__ = ["Outcome", "Publisher", "Unsendable"]

WINDOW_BYTES: Final = 8_000_000
"""Bodies that may be unconfirmed at once. One message of any size always goes."""

WRITE_BYTES: Final = 256_000
"""Frames are collected for a turn of the loop and then written at once, or as soon as they are so many bytes."""

Token = TypeVar("Token")

_InFlight: TypeAlias = tuple[Token, Template, str, int]
"""A message that is published and not yet settled: its token, template, id, and the bytes of its body."""


class Outcome(Enum):
    """What became of a message."""

    CONFIRMED = "confirmed"
    """A queue has it."""
    RETURNED = "returned"
    """No queue is bound for it: the broker handed it back, and then confirmed that it was done with it."""
    NACKED = "nacked"
    """A queue refused it."""


class Publisher(Generic[Token]):
    """Publishes persistent, mandatory messages in the order of the calls, and says of each what became of it.

    `settled(token, outcome)` is called once for each message, in the order of the broker's confirms, which need not be
    the order of publishing. When the channel closes first, it is not called: what is in flight then may or may not have
    reached a queue, and has to be published again.

    `freed()` is called after the messages of a confirm have been handed to `settled`, and when a broker that was
    blocked takes messages again: there may be room. Neither callback is called out of `publish`.
    """

    def __init__(self, channel: Channel, settled: Callable[[Token, Outcome], None], freed: Callable[[], None]) -> None:
        self._channel = channel
        self._connection = channel.connection
        self._settled = settled
        self._freed = freed
        self._loop = asyncio.get_running_loop()
        self._window = Window(self._loop.time)
        self._newest = 0  # the delivery tag of the last message
        self._oldest = 1  # all before this tag are settled
        self._in_flight: dict[int, _InFlight[Token]] = {}
        self._bytes = 0
        self._returned: set[int] = set()  # tags of messages in flight that came back
        self._last_returned = 0
        self._frames: list[bytes] = []
        self._frames_bytes = 0
        self.has_room = True
        """Whether `publish` may be called: not while the window or its bytes are full, or the broker is blocked."""

    @classmethod
    async def open(
        cls, connection: Connection, settled: Callable[[Token, Outcome], None], freed: Callable[[], None]
    ) -> Self:
        """Open a channel in confirm mode. Raises BrokerAway when the connection is lost meanwhile."""
        channel = await connection.channel()
        publisher = cls(channel, settled, freed)
        channel.raw.add_on_return_callback(publisher._on_return)
        await channel.call(channel.raw.confirm_delivery, publisher._on_confirm)
        channel.publishing = True
        unwatch = connection.on_blocking(publisher._on_blocking)
        channel.closed.add_done_callback(lambda _: unwatch())
        return publisher

    @property
    def channel(self) -> Channel:
        """The channel; whoever waits for the publisher watches `channel.closed` too."""
        return self._channel

    @property
    def in_flight(self) -> int:
        """Messages that are published and not yet settled."""
        return len(self._in_flight)

    def unsettled(self) -> list[Token]:
        """What is in flight, in the order of publishing. After a loss it is what has to be published again."""
        return [token for token, *_ in self._in_flight.values()]

    def publish(self, template: Template, varying: Varying, body: bytes, token: Token) -> None:
        """Hand a message to the broker. The caller has seen to it that there is room.

        Raises Unsendable when it cannot be written as AMQP, and BrokerAway when the channel is gone; neither leaves a
        trace. What is published in one turn of the loop leaves at its end.
        """
        channel = self._channel
        if channel.closed.done():
            raise BrokerAway(f"RabbitMQ at {channel.where}: the channel is closed")
        frames = template.encode(varying, body, channel.number, channel.frame_max)
        self._newest = tag = self._newest + 1
        in_flight, size = self._in_flight, len(body)
        in_flight[tag] = token, template, varying.message_id, size
        self._bytes = unconfirmed = self._bytes + size
        if len(in_flight) >= self._window.limit or unconfirmed >= WINDOW_BYTES:
            self.has_room = False
        if not self._frames:
            self._loop.call_soon(self._write)
        self._frames.append(frames)
        self._frames_bytes += len(frames)
        if self._frames_bytes >= WRITE_BYTES:
            self._write()

    def _write(self) -> None:
        """Write what has been collected; often it has been written already when the turn of the loop is over."""
        if self._frames:
            frames, self._frames, self._frames_bytes = self._frames, [], 0
            self._connection.send(frames)
            self._window.sent(self._newest, len(self._in_flight))

    def _look(self) -> None:
        self.has_room = (
            len(self._in_flight) < self._window.limit
            and self._bytes < WINDOW_BYTES
            and self._connection.blocked is None
        )

    def _on_blocking(self) -> None:
        self._window.interrupted()
        self._look()
        if self._connection.blocked is None:
            self._freed()

    def _on_return(self, _: PikaChannel, returned: Basic.Return, properties: BasicProperties, __: bytes) -> None:
        """The broker returns a message before it confirms it, and returns them in the order of publishing.

        What it returns has no delivery tag. The next such message after the last one that came back is meant.
        """
        following = max(self._oldest, self._last_returned + 1)
        for tag in chain(range(following, self._newest + 1), range(self._oldest, following)):
            waiting = self._in_flight.get(tag)
            if waiting is None or tag in self._returned:
                continue
            template, message_id = waiting[1:3]
            if (
                message_id == properties.message_id
                and template.routing_key == returned.routing_key
                and template.exchange == returned.exchange
            ):
                self._returned.add(tag)
                self._last_returned = tag
                return

    def _on_confirm(self, frame: Method[Any]) -> None:
        """Confirms come out of order, and one may stand for all before it."""
        if self._channel.closed.done():
            return
        tag = frame.method.delivery_tag
        outcome = Outcome.NACKED if isinstance(frame.method, Basic.Nack) else Outcome.CONFIRMED
        oldest = self._oldest
        if frame.method.multiple:
            following = min(tag, self._newest) + 1
            self._settle(range(oldest, following), outcome)
            oldest = max(oldest, following)
        else:
            self._settle((tag,), outcome)
        in_flight, newest = self._in_flight, self._newest
        while oldest <= newest and oldest not in in_flight:
            oldest += 1
        self._oldest = oldest
        self._window.settled(oldest)
        self._look()
        self._freed()

    def _settle(self, tags: Iterable[int], outcome: Outcome) -> None:
        pop, settled, returned = self._in_flight.pop, self._settled, self._returned
        for tag in tags:
            waiting = pop(tag, None)
            if waiting is None:
                continue
            token, _, _, size = waiting
            self._bytes -= size
            if tag in returned:
                returned.remove(tag)
                settled(token, Outcome.RETURNED if outcome is Outcome.CONFIRMED else outcome)
            else:
                settled(token, outcome)
