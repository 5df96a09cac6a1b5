"""A channel that plays the broker's part. pika encodes, so that what does not fit into AMQP fails as it does there."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pika.exceptions import ChannelWrongStateError, StreamLostError
from pika.frame import Header, Method
from pika.spec import Basic, BasicProperties

from relay.broker.connection import Channel
from relay.errors import BrokerAway, BrokerError


@dataclass(frozen=True)
class Sent:
    """What was published."""

    exchange: str
    routing_key: str
    body: bytes
    properties: BasicProperties
    mandatory: bool


class FakeChannel:
    """What the publisher uses of pika's channel, and the broker behind it."""

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self.in_confirm_mode = False
        self._is_open = True

    def basic_publish(
        self, exchange: str, routing_key: str, body: bytes, properties: BasicProperties, mandatory: bool = False
    ) -> None:
        if not self._is_open:
            raise ChannelWrongStateError("Channel is closed.")
        Method(1, Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=mandatory)).marshal()
        Header(1, len(body), properties).marshal()
        self.sent.append(Sent(exchange, routing_key, body, properties, mandatory))

    def add_on_close_callback(self, callback: Callable[..., None]) -> None:
        self._on_close = callback

    def add_on_return_callback(self, callback: Callable[..., None]) -> None:
        self._on_return = callback

    def confirm_delivery(self, on_confirm: Callable[..., None], callback: Callable[..., None]) -> None:
        self._on_confirm = on_confirm
        self.in_confirm_mode = True
        callback(Method(1, Basic.Ack()))

    # What the broker does. Messages are numbered from 1, in the order in which they came.

    def acks(self, tag: int, *, multiple: bool = False) -> None:
        self._on_confirm(Method(1, Basic.Ack(tag, multiple)))

    def nacks(self, tag: int, *, multiple: bool = False) -> None:
        self._on_confirm(Method(1, Basic.Nack(tag, multiple)))

    def returns(self, tag: int) -> None:
        sent = self.sent[tag - 1]
        because = Basic.Return(312, "NO_ROUTE", sent.exchange, sent.routing_key)
        self._on_return(self, because, sent.properties, sent.body)

    def closes(self, reason: BaseException) -> None:
        self._is_open = False
        self._on_close(self, reason)


class FakeConnection:
    """A connection whose only channel is a fake one."""

    def __init__(self) -> None:
        self.raw = FakeChannel()
        self.where = "mq.example:5672, virtual host /"
        self.closed: asyncio.Future[BrokerError] = asyncio.get_running_loop().create_future()

    async def channel(self) -> Channel:
        raw: Any = self.raw
        connection: Any = self
        return Channel(raw, connection)

    def is_lost(self) -> None:
        self.raw.closes(StreamLostError("connection reset by peer"))
        self.closed.set_result(BrokerAway(f"RabbitMQ at {self.where}: connection reset by peer"))
