"""Which routes can lead to a queue, and which end nowhere. Pure.

A route is not one address but many: its exchange and its routing key have gaps, which each message fills. So the
question is whether any text that the gaps allow is one that a binding lets through.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple, TypeAlias

from relay.broker.layout import Binding, Exchange


@dataclass(frozen=True, slots=True)
class Gap:
    """What a field of the message fills, with any text."""

    field: str

    def __str__(self) -> str:
        return f"{{{self.field}}}"


Pattern: TypeAlias = tuple[str | Gap, ...]
"""Pieces of text and gaps, one after the other."""

DEFAULT_EXCHANGE: Final = ""
"""Every queue is bound to it under its own name. Source: AMQP 0-9-1, 3.1.3.1."""

ALTERNATE: Final = "alternate-exchange"
"""The argument of an exchange that names another one for what nobody is bound for."""


class Address(NamedTuple):
    """An exchange and a routing key."""

    exchange: Pattern
    routing_key: Pattern


@dataclass(frozen=True, slots=True)
class Route:
    """Where a setting sends its messages: one address, or several of which each message takes one.

    `name` says whose it is, like `kind event` or `type OrderViewed`.
    """

    name: str
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class DeadEnd:
    """A route that no queue can get a message of, its first address, and why that one leads nowhere."""

    route: str
    exchange: str
    routing_key: str
    why: str


def dead_ends(
    routes: Iterable[Route],
    exchanges: Mapping[str, Exchange],
    queues: Collection[str],
    bindings: Iterable[Binding],
) -> tuple[DeadEnd, ...]:
    """The routes of which no message can reach a queue, in their order. Exchanges bound to exchanges are followed."""
    by_source: dict[str, list[Binding]] = {}
    for binding in bindings:
        by_source.setdefault(binding.source, []).append(binding)
    ends = []
    for route in routes:
        reasons = [_why(address, exchanges, queues, by_source) for address in route.addresses]
        if all(reasons):
            exchange, routing_key = route.addresses[0]
            ends.append(DeadEnd(route.name, shown(exchange), shown(routing_key), reasons[0]))
    return tuple(ends)


def shown(pattern: Pattern) -> str:
    """A pattern for a person, as it was written but for what is known."""
    return "".join(map(str, pattern))


def _why(
    address: Address, exchanges: Mapping[str, Exchange], queues: Collection[str], bindings: Mapping[str, list[Binding]]
) -> str:
    """Why no message that is sent there reaches a queue; nothing when one can."""
    name, key = _text(address.exchange), _text(address.routing_key)
    if _meet(name, _text((DEFAULT_EXCHANGE,))) and any(_meet(key, _text((queue,))) for queue in queues):
        return ""
    candidates = [exchange for exchange in exchanges if exchange and _meet(name, _text((exchange,)))]
    if any(_reaches_queue(exchange, key, exchanges, bindings) for exchange in candidates):
        return ""
    if not candidates and _meet(name, _text((DEFAULT_EXCHANGE,))):
        return "no queue has that name"
    return "no queue is bound for it" if candidates else "there is no such exchange"


def _reaches_queue(
    start: str, key: "_Automaton", exchanges: Mapping[str, Exchange], bindings: Mapping[str, list[Binding]]
) -> bool:
    seen, ahead = {start}, [start]
    while ahead:
        exchange = exchanges.get(ahead.pop())
        if exchange is None:
            continue
        open_to = [binding for binding in bindings.get(exchange.name, ()) if _lets_through(exchange, binding, key)]
        if any(not binding.to_exchange for binding in open_to):
            return True
        alternate = dict(exchange.arguments).get(ALTERNATE)
        further = {binding.destination for binding in open_to} | ({alternate} if isinstance(alternate, str) else set())
        ahead += further - seen
        seen |= further
    return False


def _lets_through(exchange: Exchange, binding: Binding, key: "_Automaton") -> bool:
    """Whether any text of a routing key gets past a binding. Exchanges that do not look at the key let all through."""
    match exchange.type:
        case "direct":
            return _meet(key, _text((binding.routing_key,)))
        case "topic":
            return _meet(key, _topic(binding.routing_key))
    return True


class _Run(Enum):
    """What stands for any number of characters, or for none."""

    ANY = "any characters"
    WORD = "any characters but dots"
    NONE = "no character"


@dataclass(frozen=True, slots=True)
class _Automaton:
    """A set of texts: its steps in order, each a character or a run; from where `skips` has an entry it may jump."""

    steps: tuple[str | _Run, ...]
    skips: Mapping[int, int]


def _text(pattern: Pattern) -> _Automaton:
    steps: list[str | _Run] = []
    for piece in pattern:
        steps += [_Run.ANY] if isinstance(piece, Gap) else piece
    return _Automaton(tuple(steps), {})


def _topic(key: str) -> _Automaton:
    """What a binding to a topic exchange matches: `*` is one word, `#` is none or more, words have dots between them.

    Source: RabbitMQ's documentation, "Topic exchange".
    """
    words = [word for word, before in _pairs(key.split(".")) if not word == before == "#"]
    steps: list[str | _Run] = []
    skips: dict[int, int] = {}
    for number, word in enumerate(words):
        last, after_word = number == len(words) - 1, number > 0
        if word == "#" and last:
            if after_word:  # the dot goes with the words that may be missing
                skips[len(steps)] = len(steps) + 2
                steps.append(".")
            steps.append(_Run.ANY)
            continue
        if after_word and words[number - 1] != "#":
            steps.append(".")
        if word == "#":
            skips[len(steps)] = len(steps) + 3  # from a step of its own: within a run nothing may be skipped
            steps += [_Run.NONE, _Run.ANY, "."]
        else:
            steps += [_Run.WORD] if word == "*" else word
    return _Automaton(tuple(steps), skips)


def _pairs(words: list[str]) -> list[tuple[str, str | None]]:
    """Each word with the one before it."""
    return list(zip(words, [None, *words], strict=False))


def _meet(one: _Automaton, other: _Automaton) -> bool:
    """Whether two sets have a text in common: whether both ends can be reached together."""
    seen = {(0, 0)}
    ahead = [(0, 0)]
    while ahead:
        at = ahead.pop()
        if at == (len(one.steps), len(other.steps)):
            return True
        following = _following(one, other, *at) - seen
        seen |= following
        ahead += following
    return False


def _following(one: _Automaton, other: _Automaton, i: int, j: int) -> set[tuple[int, int]]:
    """The states after one move: past a run, over a skip, or with a character that both take."""
    a = one.steps[i] if i < len(one.steps) else None
    b = other.steps[j] if j < len(other.steps) else None
    moves = {(one.skips[i], j)} if i in one.skips else set()
    if j in other.skips:
        moves.add((i, other.skips[j]))
    if isinstance(a, _Run):
        moves.add((i + 1, j))
        if isinstance(b, str) and _takes(a, b):
            moves.add((i, j + 1))
    if isinstance(b, _Run):
        moves.add((i, j + 1))
        if isinstance(a, str) and _takes(b, a):
            moves.add((i + 1, j))
    if isinstance(a, str) and a == b:
        moves.add((i + 1, j + 1))
    return moves


def _takes(run: _Run, character: str) -> bool:
    return run is _Run.ANY or (run is _Run.WORD and character != ".")
