"""Deliveries of one queue, one after the other."""

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Any, Self, cast

from pika.channel import Channel as PikaChannel
from pika.exceptions import AMQPError
from pika.spec import Basic, BasicProperties

from relay.broker.connection import CLOSE_TIMEOUT_S, Channel, Connection
from relay.broker.properties import Delivery, HeaderValue, Properties
from relay.errors import BrokerAway


class Consumer:
    """Takes messages from a queue in its order, and answers each once: `ack` after the commit, or `reject`.

    The broker keeps at most `prefetch` of them unanswered here; what is unanswered when the channel closes comes again.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._waiting: deque[Delivery] = deque()
        self._arrived = asyncio.Event()
        channel.closed.add_done_callback(lambda _: self._arrived.set())

    @classmethod
    async def open(cls, connection: Connection, queue: str, prefetch: int) -> Self:
        """Start to consume. Raises ChannelRefused when the queue is missing or may not be read."""
        channel = await connection.channel()
        consumer = cls(channel)
        await channel.call(channel.raw.basic_qos, prefetch_count=prefetch)
        channel.raw.add_on_cancel_callback(consumer._on_cancel)
        await channel.call(channel.raw.basic_consume, queue, consumer._on_message)
        return consumer

    async def next(self) -> Delivery:
        """The next message.

        Raises BrokerAway or ChannelRefused when the channel is gone: what waits here unanswered comes again.
        """
        while not self._waiting or self._channel.closed.done():
            if self._channel.closed.done():
                raise self._channel.closed.result()
            self._arrived.clear()
            await self._arrived.wait()
        return self._waiting.popleft()

    def ack(self, delivery: Delivery) -> None:
        """The message is handled and committed."""
        self._answer(self._channel.raw.basic_ack, delivery.tag)

    def reject(self, delivery: Delivery) -> None:
        """The message cannot be handled: to the dead letters with it."""
        self._answer(self._channel.raw.basic_reject, delivery.tag, requeue=False)

    async def close(self) -> None:
        """Stop consuming; whatever is unanswered goes back to the queue."""
        if self._channel.raw.is_open:
            self._channel.raw.close()
        await asyncio.wait({self._channel.closed}, timeout=CLOSE_TIMEOUT_S)

    def _answer(self, method: Any, *args: Any, **arguments: Any) -> None:
        """An answer that cannot be sent is no error here: the message comes again, and the inbox knows it."""
        try:
            method(*args, **arguments)
        except AMQPError as error:
            self._channel.lose(BrokerAway(f"RabbitMQ at {self._channel.where}: {error}"))

    def _on_cancel(self, _: object) -> None:
        self._channel.lose(
            BrokerAway(f"RabbitMQ at {self._channel.where} cancelled the consumer: was the queue deleted?")
        )

    def _on_message(self, _: PikaChannel, deliver: Basic.Deliver, properties: BasicProperties, body: bytes) -> None:
        self._waiting.append(
            Delivery(
                tag=deliver.delivery_tag or 0,
                exchange=deliver.exchange or "",
                routing_key=deliver.routing_key or "",
                redelivered=bool(deliver.redelivered),
                properties=_properties(properties),
                body=body,
            )
        )
        self._arrived.set()


def _properties(raw: BasicProperties) -> Properties:
    return Properties(
        message_id=raw.message_id,
        type=raw.type,
        content_type=raw.content_type,
        correlation_id=raw.correlation_id,
        reply_to=raw.reply_to,
        timestamp=raw.timestamp,
        app_id=raw.app_id,
        headers=cast(Mapping[str, HeaderValue], raw.headers or {}),
    )
