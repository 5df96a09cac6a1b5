"""Exchanges, queues and bindings, declared with their final arguments: RabbitMQ never lets them change later."""

from dataclasses import dataclass
from typing import Final

from relay.broker.connection import Channel
from relay.broker.properties import COMMANDS, DEAD, EVENTS, REPLIES

EXCHANGES: Final = {EVENTS: "topic", COMMANDS: "direct", REPLIES: "direct", DEAD: "direct"}

DELIVERY_LIMIT: Final = 20
"""How often the broker hands a message out before it gives it up to the dead letters. RabbitMQ 4.0 has the same number
as its default, but without a dead-letter exchange it drops the message then."""


@dataclass(frozen=True, slots=True)
class ServiceQueue:
    """The one queue of a service: commands and replies addressed to its name, and the types of event it listens to."""

    name: str
    events: frozenset[str] = frozenset()

    @property
    def dead(self) -> str:
        """The queue that keeps what the service rejected."""
        return f"{self.name}.dead"


async def declare_exchanges(channel: Channel) -> None:
    """Declare what every relay and every service uses. Raises ChannelRefused when they exist with another type."""
    for name, kind in EXCHANGES.items():
        await channel.call(channel.raw.exchange_declare, name, exchange_type=kind, durable=True)


async def declare_service(channel: Channel, queue: ServiceQueue) -> None:
    """Declare the exchanges, the service's queue with its dead letters, and the bindings.

    RabbitMQ asks for write permission on the dead-letter exchange when the queue is created, but not when it is there
    already. A service whose user may write to no exchange therefore needs its queue created by somebody else first.
    Raises ChannelRefused when the user may not, or when something exists with other arguments.
    """
    raw = channel.raw
    await declare_exchanges(channel)
    await channel.call(raw.queue_declare, queue.dead, durable=True, arguments={"x-queue-type": "quorum"})
    await channel.call(raw.queue_bind, queue.dead, DEAD, routing_key=queue.name)
    arguments = {
        "x-queue-type": "quorum",
        "x-dead-letter-exchange": DEAD,
        "x-dead-letter-routing-key": queue.name,
        "x-delivery-limit": DELIVERY_LIMIT,
    }
    await channel.call(raw.queue_declare, queue.name, durable=True, arguments=arguments)
    await channel.call(raw.queue_bind, queue.name, COMMANDS, routing_key=queue.name)
    await channel.call(raw.queue_bind, queue.name, REPLIES, routing_key=queue.name)
    for event in sorted(queue.events):
        await channel.call(raw.queue_bind, queue.name, EVENTS, routing_key=f"#.{event}")
