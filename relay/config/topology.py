"""`[topology]`: exchanges, queues and bindings that `relay topology` sees to."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, Field, StrictBool, StrictInt, StrictStr, field_validator, model_validator

from relay.broker.layout import Wanted
from relay.broker.properties import DEAD
from relay.broker.topology import DELIVERY_LIMIT, EXCHANGES, QueueType, Source, WorkQueue, wanted
from relay.config.base import Frozen, in_order

NAME_BYTES: Final = 240
"""The longest name: AMQP has 255 bytes for one, and a partition or the dead letters add to it."""

PARTITIONS_MAX: Final = 256
"""Partitions of one group. Each is a queue with replicas of its own, which the broker has to bear."""

ENV_EXAMPLE: Final = "RELAY_TOPOLOGY__QUEUE__0__NAME"


def _is_name(name: str) -> str:
    if not 0 < len(name.encode()) <= NAME_BYTES:
        raise ValueError(f"should have 1 to {NAME_BYTES} bytes")
    if name.startswith("amq."):
        raise ValueError("should not begin with amq., which RabbitMQ keeps for itself")
    return name


Name = Annotated[str, AfterValidator(_is_name)]
"""The name of an exchange or a queue."""


class BindingSettings(Frozen):
    """One of the `bindings` of a queue or a partitioned group."""

    exchange: str = Field(min_length=1)
    """Where the messages come from."""
    routing_key: str = ""
    """What of them: a key, or a pattern when the exchange is one for topics."""
    arguments: Mapping[str, StrictStr | StrictBool | StrictInt] = Field(default_factory=dict)
    """What a headers exchange compares, `x-match` among it."""

    @field_validator("routing_key")
    @classmethod
    def _is_short(cls, key: str) -> str:
        if len(key.encode()) > 255:
            raise ValueError("should have 255 bytes at most")
        return key

    @property
    def source(self) -> Source:
        """As the broker's side has it."""
        return Source(self.exchange, self.routing_key, dict(self.arguments))


class ExchangeSettings(Frozen):
    """`[[topology.exchange]]`: an exchange beside those of the relay. It is durable."""

    name: Name
    type: Literal["direct", "topic", "fanout", "headers"]

    @field_validator("name")
    @classmethod
    def _is_not_ours(cls, name: str) -> str:
        if name in EXCHANGES:
            raise ValueError(f"should not be {name}, which is the relay's own: it is always declared")
        return name


class QueueSettings(Frozen):
    """`[[topology.queue]]`: a durable queue with its dead letters, in the queue of the same name and `.dead`."""

    name: Name
    bindings: tuple[BindingSettings, ...] = ()
    type: QueueType = QueueType.QUORUM
    delivery_limit: int | None = Field(default=None, ge=1)
    """How often a message is handed out before it goes to the dead letters; 20 for a quorum queue."""

    @model_validator(mode="after")
    def _has_a_limit_or_cannot(self) -> Self:
        if self.type is QueueType.CLASSIC and self.delivery_limit is not None:
            raise ValueError("has a delivery_limit, which only a quorum queue keeps")
        return self

    @property
    def queue(self) -> WorkQueue:
        """As the broker's side has it."""
        limit = (self.delivery_limit or DELIVERY_LIMIT) if self.type is QueueType.QUORUM else None
        return WorkQueue(self.name, tuple(binding.source for binding in self.bindings), self.type, limit)


class PartitionedSettings(Frozen):
    """`[[topology.partitioned]]`: a hash exchange and so many quorum queues, each with one active consumer."""

    name: Name
    partitions: int = Field(ge=1, le=PARTITIONS_MAX)
    bindings: tuple[BindingSettings, ...] = Field(min_length=1)
    delivery_limit: int = Field(default=DELIVERY_LIMIT, ge=1)

    @property
    def queue(self) -> WorkQueue:
        """As the broker's side has it."""
        sources = tuple(binding.source for binding in self.bindings)
        return WorkQueue(self.name, sources, delivery_limit=self.delivery_limit, partitions=self.partitions)


class TopologySettings(Frozen):
    """`[topology]`: what there should be beside the relay's own exchanges."""

    exchange: tuple[ExchangeSettings, ...] = ()
    queue: tuple[QueueSettings, ...] = ()
    partitioned: tuple[PartitionedSettings, ...] = ()

    @field_validator("exchange", "queue", "partitioned", mode="before")
    @classmethod
    def _in_order(cls, tables: Any) -> Any:
        return in_order(tables, "[[topology.…]]", ENV_EXAMPLE)

    @model_validator(mode="after")
    def _are_apart(self) -> Self:
        names = wanted(self._exchanges, self._queues)
        groups = names.partitioned
        _refuse_twins("exchanges", [*(each.name for each in names.exchanges), *(group.marker for group in groups)])
        _refuse_twins("queues", [*(each.name for each in names.queues), *(group.lock for group in groups)])
        for group in self.partitioned:
            if any(binding.exchange in {group.name, DEAD} for binding in group.bindings):
                raise ValueError(f"has a partitioned group {group.name} that is bound to itself or to {DEAD}")
        return self

    def layout(self) -> Wanted:
        """Everything that should be there, the relay's own exchanges among it."""
        return wanted(self._exchanges, self._queues)

    @property
    def _exchanges(self) -> dict[str, str]:
        return {exchange.name: exchange.type for exchange in self.exchange}

    @property
    def _queues(self) -> tuple[WorkQueue, ...]:
        return (*(each.queue for each in self.queue), *(each.queue for each in self.partitioned))


def _refuse_twins(things: str, names: Iterable[str]) -> None:
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise ValueError(
            f"has two {things} of the name {', '.join(twice)}; a queue also makes NAME.dead, and a partitioned group"
            " makes the exchanges NAME and NAME.ring and the queues NAME.lock, NAME.0, NAME.1 and so on"
        )
