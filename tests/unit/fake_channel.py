"""A channel that plays the broker's part. pika decodes what is sent: what a broker could not read fails here."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pika.exceptions import StreamLostError
from pika.frame import Body, Header, Method, decode_frame
from pika.spec import Basic, BasicProperties, Exchange

from relay.broker.connection import Channel
from relay.errors import BrokerAway, BrokerError

FRAME_MAX = 131_072


@dataclass(frozen=True)
class Sent:
    """What was published."""

    exchange: str
    routing_key: str
    body: bytes
    properties: BasicProperties
    mandatory: bool


def frames_of(data: bytes) -> list[Any]:
    """pika's frames of some bytes, which have to end with one."""
    frames = []
    while data:
        size, frame = decode_frame(data)
        assert frame is not None, "the last frame is cut off"
        frames.append(frame)
        data = data[size:]
    return frames


def messages_of(data: bytes) -> list[Sent]:
    """The messages that some bytes publish."""
    found: list[Sent] = []
    frames = frames_of(data)
    while frames:
        method, header = frames.pop(0), frames.pop(0)
        assert isinstance(method, Method)
        assert isinstance(header, Header)
        body = b""
        while len(body) < header.body_size:
            part = frames.pop(0)
            assert isinstance(part, Body)
            body += part.fragment
        publish = method.method
        found.append(Sent(publish.exchange, publish.routing_key, body, header.properties, publish.mandatory))
    return found


class FakeChannel:
    """What our side uses of pika's channel, and the broker behind it."""

    def __init__(self, channel_number: int = 1) -> None:
        self.channel_number = channel_number
        self.sent: list[Sent] = []
        self.writes = 0
        self.in_confirm_mode = False

    def add_on_close_callback(self, callback: Callable[..., None]) -> None:
        self._on_close = callback

    def add_on_return_callback(self, callback: Callable[..., None]) -> None:
        self._on_return = callback

    def confirm_delivery(self, on_confirm: Callable[..., None], callback: Callable[..., None]) -> None:
        self._on_confirm = on_confirm
        self.in_confirm_mode = True
        callback(Method(1, Basic.Ack()))

    def exchange_declare(self, name: str, *, callback: Callable[..., None], **how: object) -> None:
        callback(Method(1, Exchange.DeclareOk()))

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
        self._on_close(self, reason)


class FakeConnection:
    """A connection to a fake broker. `raw` is the channel that was opened last."""

    where = "mq.example:5672, virtual host /"
    frame_max = FRAME_MAX

    def __init__(self) -> None:
        self.closed: asyncio.Future[BrokerError] = asyncio.get_running_loop().create_future()
        self.blocked: str | None = None
        self._on_blocking: list[Callable[[], None]] = []
        self._channels: list[FakeChannel] = []

    @property
    def raw(self) -> FakeChannel:
        return self._channels[-1]

    async def channel(self) -> Channel:
        self._channels.append(FakeChannel(len(self._channels) + 1))
        raw: Any = self.raw
        connection: Any = self
        return Channel(raw, connection)

    def on_blocking(self, changed: Callable[[], None]) -> Callable[[], None]:
        self._on_blocking.append(changed)
        return lambda: self._on_blocking.remove(changed)

    def send(self, frames: list[bytes]) -> None:
        data = b"".join(frames)
        raw = self._channels[frames_of(data)[0].channel_number - 1]
        raw.sent += messages_of(data)
        raw.writes += 1

    async def close(self) -> None:
        if not self.closed.done():
            self.closed.set_result(BrokerAway(f"RabbitMQ at {self.where}: closed by us"))

    # What the broker and the network do.

    def is_lost(self) -> None:
        self.raw.closes(StreamLostError("connection reset by peer"))
        self.closed.set_result(BrokerAway(f"RabbitMQ at {self.where}: connection reset by peer"))

    def blocks(self, reason: str | None) -> None:
        self.blocked = reason
        for changed in tuple(self._on_blocking):
            changed()
