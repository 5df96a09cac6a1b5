"""Publishing on one channel with pipelined confirms: the only code that publishes."""

import asyncio
import struct
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Generic, Self, TypeVar, cast

from pika import DeliveryMode
from pika.channel import Channel as PikaChannel
from pika.exceptions import AMQPError, ShortStringTooLong, UnsupportedAMQPFieldException
from pika.frame import Method
from pika.spec import Basic, BasicProperties

from relay.broker.connection import Channel, Connection
from relay.broker.properties import Outgoing
from relay.errors import BrokerAway, BrokerError, ExitCode

WINDOW: Final = 1000
"""Messages that may be unconfirmed at once. RabbitMQ's quorum queues get slower when they are flooded with more."""

WINDOW_BYTES: Final = 8_000_000
"""Bodies that may be unconfirmed at once. One message of any size always goes."""

Token = TypeVar("Token")

_DOES_NOT_FIT: Final = (ShortStringTooLong, UnsupportedAMQPFieldException, struct.error, OverflowError, UnicodeError)


class Unsendable(BrokerError):
    """A message cannot be written as AMQP: a name over 255 bytes, or a header that AMQP has no type for."""

    exit_code = ExitCode.FAILURE
    hint = "Routing keys, types, ids and header names have 255 bytes at most; header numbers have 64 bits."


class Outcome(Enum):
    """What became of a message."""

    CONFIRMED = "confirmed"
    """A queue has it."""
    RETURNED = "returned"
    """No queue is bound for it: the broker handed it back, and then confirmed that it was done with it."""
    NACKED = "nacked"
    """A queue refused it."""


@dataclass(slots=True)
class _InFlight(Generic[Token]):
    token: Token
    identity: tuple[str | None, str, str]
    """Message id, exchange and routing key: messages that have all of them in common share their fate."""
    size: int
    returned: bool = False


class Publisher(Generic[Token]):
    """Publishes persistent, mandatory messages in the order of the calls, and says of each what became of it.

    `settled(token, outcome)` is called once for each message, in the order of the broker's confirms, which need not be
    the order of publishing. When the channel closes first, it is not called: what is in flight then may or may not have
    reached a queue, and has to be published again.
    """

    def __init__(self, channel: Channel, settled: Callable[[Token, Outcome], None], window: int = WINDOW) -> None:
        self._channel = channel
        self._settled = settled
        self._window = window
        self._tag = 0
        self._bytes = 0
        self._in_flight: OrderedDict[int, _InFlight[Token]] = OrderedDict()
        self._room = asyncio.Event()
        self._room.set()
        self._drained = asyncio.Event()
        self._drained.set()

    @classmethod
    async def open(
        cls, connection: Connection, settled: Callable[[Token, Outcome], None], window: int = WINDOW
    ) -> Self:
        """Open a channel in confirm mode. Raises BrokerAway when the connection is lost meanwhile."""
        channel = await connection.channel()
        publisher = cls(channel, settled, window)
        channel.raw.add_on_return_callback(publisher._on_return)
        await channel.call(channel.raw.confirm_delivery, publisher._on_confirm)
        return publisher

    @property
    def channel(self) -> Channel:
        """The channel; whoever waits for the publisher watches `channel.closed` too."""
        return self._channel

    @property
    def in_flight(self) -> int:
        """Messages that are published and not yet settled."""
        return len(self._in_flight)

    @property
    def has_room(self) -> bool:
        """Whether `publish` may be called."""
        return len(self._in_flight) < self._window and self._bytes < WINDOW_BYTES

    async def room(self) -> None:
        """Wait until the window has room."""
        await self._room.wait()

    async def drained(self) -> None:
        """Wait until nothing is in flight."""
        await self._drained.wait()

    def publish(self, message: Outgoing, token: Token) -> None:
        """Hand a message to the broker. The caller has seen to it that there is room.

        Raises Unsendable when it does not fit into AMQP, BrokerAway when the channel is gone.
        """
        try:
            self._channel.raw.basic_publish(
                message.exchange, message.routing_key, message.body, _amqp(message), mandatory=True
            )
        except _DOES_NOT_FIT as error:  # pika encodes all of a message before it sends any of it
            raise Unsendable(f"message {message.properties.message_id} does not fit into AMQP: {error!r}") from None
        except AMQPError as error:
            raise BrokerAway(f"RabbitMQ at {self._channel.where}: {error}") from error
        self._tag += 1
        identity = (message.properties.message_id, message.exchange, message.routing_key)
        self._in_flight[self._tag] = _InFlight(token, identity, len(message.body))
        self._bytes += len(message.body)
        self._drained.clear()
        if not self.has_room:
            self._room.clear()

    def _on_return(self, _: PikaChannel, returned: Basic.Return, properties: BasicProperties, __: bytes) -> None:
        """The broker returns a message before it confirms it. The oldest such one that is not yet marked is meant."""
        identity = (properties.message_id, returned.exchange, returned.routing_key)
        for waiting in self._in_flight.values():
            if waiting.identity == identity and not waiting.returned:
                waiting.returned = True
                return

    def _on_confirm(self, frame: Method[Any]) -> None:
        """Confirms come out of order, and one may stand for all before it."""
        tag = frame.method.delivery_tag
        nacked = isinstance(frame.method, Basic.Nack)
        if frame.method.multiple:
            while self._in_flight and (oldest := next(iter(self._in_flight))) <= tag:
                self._settle(self._in_flight.pop(oldest), nacked)
        elif waiting := self._in_flight.pop(tag, None):
            self._settle(waiting, nacked)
        if self.has_room:
            self._room.set()
        if not self._in_flight:
            self._drained.set()

    def _settle(self, waiting: _InFlight[Token], nacked: bool) -> None:
        self._bytes -= waiting.size
        outcome = Outcome.NACKED if nacked else Outcome.RETURNED if waiting.returned else Outcome.CONFIRMED
        self._settled(waiting.token, outcome)


def _amqp(message: Outgoing) -> BasicProperties:
    properties = message.properties
    return BasicProperties(
        message_id=properties.message_id,
        type=properties.type,
        content_type=properties.content_type,
        correlation_id=properties.correlation_id,
        reply_to=properties.reply_to,
        timestamp=properties.timestamp,
        app_id=properties.app_id,
        headers=cast(dict[str, Any], properties.headers),
        delivery_mode=DeliveryMode.Persistent.value,
    )
