"""Exchanges, queues and bindings as they should be, as they are, and the differences between the two. Pure."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, TypeAlias

Argument: TypeAlias = str | int | bool
Arguments: TypeAlias = tuple[tuple[str, Argument], ...]
"""Sorted by name, so that equal ones are equal."""

HASH_TYPE: Final = "x-consistent-hash"
HASH_PLUGIN: Final = "rabbitmq_consistent_hash_exchange"
HASH_HEADER: Final = "hash-header"
"""The argument of a hash exchange that says which header it looks at, instead of the routing key."""

WEIGHT: Final = "1"
"""The key of a binding to a hash exchange is a number: how many shares of the hashes the queue gets."""

QUEUE_TYPE: Final = "x-queue-type"
CLASSIC: Final = "classic"
"""What a queue is that does not say its type. Source: RabbitMQ's documentation, "Queues"."""


def arguments_of(given: Mapping[str, Argument]) -> Arguments:
    """Arguments in their order."""
    return tuple(sorted(given.items()))


@dataclass(frozen=True, slots=True)
class Exchange:
    """An exchange, and what RabbitMQ never lets change about it."""

    name: str
    type: str
    arguments: Arguments = ()
    durable: bool = True
    auto_delete: bool = False
    internal: bool = False


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue, and what RabbitMQ never lets change about it."""

    name: str
    arguments: Arguments = ()
    durable: bool = True
    auto_delete: bool = False
    exclusive: bool = False


@dataclass(frozen=True, slots=True)
class Binding:
    """What an exchange hands on to a queue, or to another exchange."""

    source: str
    destination: str
    routing_key: str = ""
    arguments: Arguments = ()
    to_exchange: bool = False

    def __str__(self) -> str:
        key = repr(self.routing_key) if not self.arguments else f"{self.routing_key!r} and {dict(self.arguments)}"
        return f"{self.source} -> {self.destination} with {key}"


@dataclass(frozen=True, slots=True)
class Partitioned:
    """A hash exchange and so many queues behind it, of which each gets its share of the aggregates."""

    name: str
    partitions: int

    @property
    def queues(self) -> tuple[str, ...]:
        """The queues in the order of their numbers."""
        return tuple(f"{self.name}.{number}" for number in range(self.partitions))

    @property
    def ring(self) -> tuple[Binding, ...]:
        """The bindings of the queues, in the order in which they have to be made.

        A queue's share depends on its place in that order.
        """
        return tuple(Binding(self.name, queue, WEIGHT) for queue in self.queues)

    @property
    def marker(self) -> str:
        """The exchange that says that the bindings were made in their order: see ring.py."""
        return f"{self.name}.ring"

    @property
    def lock(self) -> str:
        """The queue that whoever restores the order has for itself meanwhile."""
        return f"{self.name}.lock"

    def is_partition(self, queue: str) -> bool:
        """Whether a queue has the name of a partition, of this number of them or of another."""
        return re.fullmatch(rf"{re.escape(self.name)}\.(0|[1-9][0-9]*)", queue) is not None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What should be there. Everything is in the order in which it has to be made."""

    exchanges: tuple[Exchange, ...] = ()
    queues: tuple[Queue, ...] = ()
    bindings: tuple[Binding, ...] = ()
    """Without the rings."""
    partitioned: tuple[Partitioned, ...] = ()

    @property
    def all_bindings(self) -> tuple[Binding, ...]:
        """The rings come first: what a hash exchange without queues is given is lost."""
        return (*(binding for group in self.partitioned for binding in group.ring), *self.bindings)


@dataclass(frozen=True, slots=True)
class Found:
    """What is there, in one virtual host, and which types of exchange the broker knows."""

    exchanges: Mapping[str, Exchange] = field(default_factory=dict)
    queues: Mapping[str, Queue] = field(default_factory=dict)
    bindings: frozenset[Binding] = frozenset()
    exchange_types: frozenset[str] = frozenset()


class Change(StrEnum):
    """What there is to do about a difference."""

    CREATE = "create"
    """It is missing; applying makes it."""
    RESIZE = "resize"
    """The queues of a partitioned group are not as many as they should be; applying sees to it when they are empty."""
    WRONG = "wrong"
    """It is there, and otherwise than it should be. RabbitMQ changes nothing that exists: applying refuses."""
    EXTRA = "extra"
    """It is there, and nobody asked for it. Applying leaves it alone."""


class Thing(StrEnum):
    """What differs."""

    EXCHANGE = "exchange"
    QUEUE = "queue"
    BINDING = "binding"
    PARTITIONS = "partitions"
    PLUGIN = "plugin"


@dataclass(frozen=True, slots=True)
class Resize:
    """How one number of partitions becomes another."""

    group: Partitioned
    is_remapped: bool
    """Whether aggregates move from one queue to another; or else only queues that are out of use are to go."""
    present: tuple[str, ...]
    """The queues of the group that there are."""
    unbind: tuple[Binding, ...]
    """These go first. Then the ring is bound, in its order."""
    surplus: tuple[str, ...]
    """Queues of the group that are no longer wanted."""

    @property
    def in_question(self) -> tuple[str, ...]:
        """The queues that have to be empty: all, or when only what is out of use is to go, that."""
        return self.present if self.is_remapped else self.surplus


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference: `detail` says what it is, `hint` what to do about it when applying does not help."""

    change: Change
    thing: Thing
    name: str
    detail: str
    hint: str = ""
    subject: Exchange | Queue | Binding | Resize | None = None
    """What is to be made."""


def differences(wanted: Wanted, found: Found) -> tuple[Difference, ...]:
    """What differs: first what is wrong, then what applying does, in its order, then what is more than wanted."""
    found_by_change: dict[Change, list[Difference]] = {change: [] for change in Change}
    for difference in _all(wanted, found):
        found_by_change[difference.change].append(difference)
    order = (Change.WRONG, Change.CREATE, Change.RESIZE, Change.EXTRA)
    return tuple(difference for change in order for difference in found_by_change[change])


def _all(wanted: Wanted, found: Found) -> Iterator[Difference]:
    if wanted.partitioned and HASH_TYPE not in found.exchange_types:
        yield Difference(
            Change.WRONG,
            Thing.PLUGIN,
            HASH_PLUGIN,
            f"partitioned queues need exchanges of type {HASH_TYPE}, which this broker does not know",
            f"Enable the plugin on every node: rabbitmq-plugins enable {HASH_PLUGIN}",
        )
    yield from _exchanges(wanted, found)
    yield from _queues(wanted, found)
    for group in wanted.partitioned:
        yield from _ring(group, found)
    yield from _bindings(wanted, found)
    yield from _extra(wanted, found)


def _exchanges(wanted: Wanted, found: Found) -> Iterator[Difference]:
    for exchange in wanted.exchanges:
        present = found.exchanges.get(exchange.name)
        if present is None:
            yield Difference(Change.CREATE, Thing.EXCHANGE, exchange.name, exchange.type, subject=exchange)
        elif unlike := _unlike_exchange(exchange, present):
            yield Difference(Change.WRONG, Thing.EXCHANGE, exchange.name, unlike, _hint(Thing.EXCHANGE))


def _queues(wanted: Wanted, found: Found) -> Iterator[Difference]:
    for queue in wanted.queues:
        present = found.queues.get(queue.name)
        if present is None:
            detail = str(dict(queue.arguments).get(QUEUE_TYPE, CLASSIC))
            yield Difference(Change.CREATE, Thing.QUEUE, queue.name, detail, subject=queue)
        elif unlike := _unlike_queue(queue, present):
            yield Difference(Change.WRONG, Thing.QUEUE, queue.name, unlike, _hint(Thing.QUEUE))


def _hint(thing: Thing) -> str:
    return (
        f"RabbitMQ never changes {'an exchange' if thing is Thing.EXCHANGE else 'a queue'} that exists. Configure it as"
        " it is, or under another name and move over, or delete it when it is empty and apply again."
    )


_Compared: TypeAlias = tuple[str, Argument | None, Argument | None]
"""A name, what it is, and what it should be."""


def _unlike_exchange(wanted: Exchange, present: Exchange) -> str:
    flags: list[_Compared] = [
        ("type", present.type, wanted.type),
        ("durable", present.durable, wanted.durable),
        ("auto-delete", present.auto_delete, wanted.auto_delete),
        ("internal", present.internal, wanted.internal),
    ]
    return _unlike([*flags, *_arguments(dict(wanted.arguments), dict(present.arguments))])


def _unlike_queue(wanted: Queue, present: Queue) -> str:
    flags: list[_Compared] = [
        ("durable", present.durable, wanted.durable),
        ("auto-delete", present.auto_delete, wanted.auto_delete),
        ("exclusive", present.exclusive, wanted.exclusive),
    ]
    default = {QUEUE_TYPE: CLASSIC}
    return _unlike([*flags, *_arguments(default | dict(wanted.arguments), default | dict(present.arguments))])


def _arguments(wanted: Mapping[str, Argument], present: Mapping[str, Argument]) -> list[_Compared]:
    return [(name, present.get(name), wanted.get(name)) for name in sorted({*wanted, *present})]


def _unlike(compared: list[_Compared]) -> str:
    """What is not as it should be; nothing when all is. True and 1 are equal to Python, and not to RabbitMQ."""
    return "; ".join(
        f"{name} is {_value(present)}, not {_value(wanted)}"
        for name, present, wanted in compared
        if (type(present), present) != (type(wanted), wanted)
    )


def _value(value: Argument | None) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "not set" if value is None else str(value)


def _ring(group: Partitioned, found: Found) -> Iterator[Difference]:
    """The bindings of a hash exchange: made at first, resized later."""
    bound = {binding for binding in found.bindings if binding.source == group.name}
    foreign = [binding for binding in bound if binding.to_exchange or not group.is_partition(binding.destination)]
    for binding in foreign:
        yield Difference(
            Change.WRONG,
            Thing.BINDING,
            str(binding),
            f"it takes a share of the aggregates of {group.name}",
            "Stop the relay, unbind it by hand, and apply: its aggregates move to the partitions.",
        )
    present = tuple(sorted((queue for queue in found.queues if group.is_partition(queue)), key=_number))
    surplus = tuple(queue for queue in present if queue not in group.queues)
    if foreign or (bound == set(group.ring) and not surplus):
        return
    if not bound and not present:
        for binding in group.ring:
            yield Difference(Change.CREATE, Thing.BINDING, str(binding), "", subject=binding)
        return
    is_remapped = bound != set(group.ring)
    unbind = sorted(bound - {group.ring[0]}, key=str) if is_remapped else ()
    yield Difference(
        Change.RESIZE,
        Thing.PARTITIONS,
        group.name,
        _resizing(len(bound), group.partitions, surplus),
        "Stop the relay, let the consumers empty the partitions, and apply.",
        Resize(group, is_remapped, present, tuple(unbind), surplus),
    )


def _resizing(bound: int, wanted: int, surplus: tuple[str, ...]) -> str:
    going = f"; the queues {', '.join(surplus)} go" if surplus else ""
    if bound == wanted:
        return going.removeprefix("; ") or "not bound as they should be"
    return f"from {bound} to {wanted}{going}"


def _number(partition: str) -> int:
    return int(partition.rpartition(".")[2])


def _bindings(wanted: Wanted, found: Found) -> Iterator[Difference]:
    known = {exchange.name for exchange in wanted.exchanges} | found.exchanges.keys()
    for binding in wanted.bindings:
        if binding.source not in known:
            yield Difference(
                Change.WRONG,
                Thing.BINDING,
                str(binding),
                f"the exchange {binding.source} is neither there nor configured",
                "Correct its name, or add it as [[topology.exchange]].",
            )
        elif binding not in found.bindings:
            yield Difference(Change.CREATE, Thing.BINDING, str(binding), "", subject=binding)


def _extra(wanted: Wanted, found: Found) -> Iterator[Difference]:
    """Bindings of what is configured that are not: those of queues, and those that feed a hash exchange."""
    queues = {queue.name for queue in wanted.queues}
    groups = {group.name for group in wanted.partitioned}
    configured = set(wanted.all_bindings)
    for binding in sorted(found.bindings - configured, key=str):
        ours = binding.destination in (groups if binding.to_exchange else queues)
        if ours and binding.source not in groups and binding.source:  # each queue is bound to the default exchange
            yield Difference(
                Change.EXTRA,
                Thing.BINDING,
                str(binding),
                "not configured",
                "Add it to the configuration, or unbind it by hand.",
            )


def strangers(wanted: Wanted, found: Found) -> tuple[str, ...]:
    """Queues that hear what the configured exchanges say and are not configured: mostly those of services."""
    groups = {group.name for group in wanted.partitioned}
    exchanges = {exchange.name for exchange in wanted.exchanges} - groups
    queues = {queue.name for queue in wanted.queues}
    return tuple(
        sorted(
            {
                binding.destination
                for binding in found.bindings
                if binding.source in exchanges and not binding.to_exchange and binding.destination not in queues
            }
        )
    )
