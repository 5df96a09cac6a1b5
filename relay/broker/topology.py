"""Exchanges, queues and bindings, declared with their final arguments: RabbitMQ never lets them change later."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from relay.broker.connection import Channel
from relay.broker.layout import (
    HASH_HEADER,
    HASH_TYPE,
    QUEUE_TYPE,
    Argument,
    Binding,
    Exchange,
    Partitioned,
    Queue,
    Wanted,
    arguments_of,
)
from relay.broker.properties import AGGREGATE_ID, COMMANDS, DEAD, EVENTS, REPLIES

EXCHANGES: Final = {EVENTS: "topic", COMMANDS: "direct", REPLIES: "direct", DEAD: "direct"}

DELIVERY_LIMIT: Final = 20
"""How often the broker hands a message out before it gives it up to the dead letters. RabbitMQ 4.0 has the same number
as its default, but without a dead-letter exchange it drops the message then."""


class QueueType(StrEnum):
    """What a queue is made of."""

    QUORUM = "quorum"
    """Replicated, and on disk."""
    CLASSIC = "classic"
    """On one node."""


@dataclass(frozen=True, slots=True)
class Source:
    """What a queue hears: an exchange, and what of its messages."""

    exchange: str
    routing_key: str = ""
    arguments: Mapping[str, Argument] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WorkQueue:
    """A queue with its dead letters; or so many `partitions` of it, each with one active consumer."""

    name: str
    sources: tuple[Source, ...] = ()
    type: QueueType = QueueType.QUORUM
    delivery_limit: int | None = DELIVERY_LIMIT
    partitions: int | None = None

    @property
    def dead(self) -> Queue:
        """The queue that keeps what was rejected, or was handed out too often."""
        return Queue(f"{self.name}.dead", arguments_of({QUEUE_TYPE: str(self.type)}))

    @property
    def queues(self) -> tuple[Queue, ...]:
        """The queue, or its partitions."""
        arguments: dict[str, Argument] = {
            QUEUE_TYPE: str(self.type),
            "x-dead-letter-exchange": DEAD,
            "x-dead-letter-routing-key": self.name,
        }
        if self.delivery_limit is not None:
            arguments["x-delivery-limit"] = self.delivery_limit
        if self.group is None:
            return (Queue(self.name, arguments_of(arguments)),)
        arguments["x-single-active-consumer"] = True
        return tuple(Queue(name, arguments_of(arguments)) for name in self.group.queues)

    @property
    def group(self) -> Partitioned | None:
        """The partitions, if it has any."""
        return None if self.partitions is None else Partitioned(self.name, self.partitions)

    @property
    def exchange(self) -> Exchange | None:
        """What deals its messages out to the partitions: by the aggregate, so that each has its own."""
        if self.group is None:
            return None
        return Exchange(self.name, HASH_TYPE, arguments_of({HASH_HEADER: AGGREGATE_ID}))

    @property
    def bindings(self) -> tuple[Binding, ...]:
        """Of the dead letters, and of what it hears; those of the partitions are their group's."""
        heard = (
            Binding(each.exchange, self.name, each.routing_key, arguments_of(each.arguments), self.group is not None)
            for each in self.sources
        )
        return (Binding(DEAD, self.dead.name, self.name), *heard)


@dataclass(frozen=True, slots=True)
class ServiceQueue:
    """The one queue of a service: commands and replies addressed to its name, and the types of event it listens to."""

    name: str
    events: frozenset[str] = frozenset()

    @property
    def dead(self) -> str:
        """The queue that keeps what the service rejected."""
        return self.queue.dead.name

    @property
    def queue(self) -> WorkQueue:
        """As it is declared."""
        addressed = (Source(COMMANDS, self.name), Source(REPLIES, self.name))
        return WorkQueue(self.name, (*addressed, *(Source(EVENTS, f"#.{event}") for event in sorted(self.events))))


def wanted(exchanges: Mapping[str, str], queues: Iterable[WorkQueue]) -> Wanted:
    """Everything that there should be: the relay's own exchanges, others by name and type, and queues."""
    queues = tuple(queues)
    hashing = (queue.exchange for queue in queues)
    plain = [Exchange(name, kind) for names in (EXCHANGES, exchanges) for name, kind in names.items()]
    return Wanted(
        exchanges=(*plain, *(exchange for exchange in hashing if exchange is not None)),
        queues=tuple(each for queue in queues for each in (queue.dead, *queue.queues)),
        bindings=tuple(binding for queue in queues for binding in queue.bindings),
        partitioned=tuple(queue.group for queue in queues if queue.group is not None),
    )


async def declare_exchanges(channel: Channel) -> None:
    """Declare what every relay and every service uses. Raises ChannelRefused when they exist with another type."""
    for name, kind in EXCHANGES.items():
        await declare_exchange(channel, Exchange(name, kind))


async def declare_service(channel: Channel, queue: ServiceQueue) -> None:
    """Declare the exchanges, the service's queue with its dead letters, and the bindings.

    RabbitMQ asks for write permission on the dead-letter exchange when the queue is created, but not when it is there
    already. A service whose user may write to no exchange therefore needs its queue created by somebody else first.
    Raises ChannelRefused when the user may not, or when something exists with other arguments.
    """
    await declare_exchanges(channel)
    for each in (queue.queue.dead, *queue.queue.queues):
        await declare_queue(channel, each)
    for binding in queue.queue.bindings:
        await bind(channel, binding)


async def declare_exchange(channel: Channel, exchange: Exchange) -> None:
    """Declare an exchange. Raises ChannelRefused when it is there, and otherwise."""
    await channel.call(
        channel.raw.exchange_declare,
        exchange.name,
        exchange_type=exchange.type,
        durable=exchange.durable,
        auto_delete=exchange.auto_delete,
        internal=exchange.internal,
        arguments=dict(exchange.arguments),
    )


async def declare_queue(channel: Channel, queue: Queue) -> None:
    """Declare a queue. Raises ChannelRefused when it is there, and otherwise."""
    await channel.call(
        channel.raw.queue_declare,
        queue.name,
        durable=queue.durable,
        auto_delete=queue.auto_delete,
        exclusive=queue.exclusive,
        arguments=dict(queue.arguments),
    )


async def bind(channel: Channel, binding: Binding) -> None:
    """Make a binding; nothing when it is there."""
    method = channel.raw.exchange_bind if binding.to_exchange else channel.raw.queue_bind
    key, arguments = binding.routing_key, dict(binding.arguments)
    await channel.call(method, binding.destination, binding.source, routing_key=key, arguments=arguments)


async def unbind(channel: Channel, binding: Binding) -> None:
    """Remove a binding; nothing when it is not there."""
    method = channel.raw.exchange_unbind if binding.to_exchange else channel.raw.queue_unbind
    key, arguments = binding.routing_key, dict(binding.arguments)
    await channel.call(method, binding.destination, binding.source, routing_key=key, arguments=arguments)
