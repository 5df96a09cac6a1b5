"""A message -> its exchange and routing key, by templates over its fields. Pure."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final, NamedTuple, Self

from relay.broker.properties import COMMANDS, EVENTS, REPLIES
from relay.capture.message import Kind, Message

OWN_FIELDS: Final = (
    "kind",
    "aggregate_type",
    "aggregate_id",
    "type",
    "destination",
    "correlation_id",
    "reply_to",
    "operation",
    "capture",
)
"""Those that a message brings along."""

FIELDS: Final = ("source", *OWN_FIELDS)
"""What a template may name: those, and the name of the source."""

SHARED_FIELDS: Final = frozenset({"source", "kind", "aggregate_type", "type", "destination", "capture"})
"""Fields that are the same for many messages. A template over these alone is rendered once for all of them."""

_PIECE: Final = re.compile(
    r"(?P<text>[^{}]+)|(?P<escaped>\{\{|\}\})|\{(?P<field>[^{}]*)\}|(?P<open>\{)|(?P<close>\})", re.DOTALL
)

_OWN: Final[Mapping[str, Callable[[Message], str | None]]] = {name: attrgetter(name) for name in OWN_FIELDS}


@dataclass(frozen=True, slots=True)
class RouteTemplate:
    """The name of an exchange, or a routing key: text with `{field}` in it. `{{` and `}}` stand for braces."""

    text: str
    """As it was written."""
    pieces: tuple[tuple[bool, str], ...]
    """Each is a field's name, with True before it, or text as it is."""
    fields: frozenset[str]
    """The fields that it names."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a template. Raises ValueError with the character, counted from 1, at which the first mistake is."""
        pieces: list[tuple[bool, str]] = []
        for found in _PIECE.finditer(text):
            at = f"at character {found.start() + 1}"
            match found.lastgroup:
                case "text":
                    pieces.append((False, found[0]))
                case "escaped":
                    pieces.append((False, found[0][0]))
                case "field" if found["field"] in FIELDS:
                    pieces.append((True, found["field"]))
                case "field":
                    known = ", ".join(FIELDS)
                    raise ValueError(f"{at}: no field {found['field'] or 'between the braces'}; fields are {known}")
                case "open":
                    raise ValueError(f"{at}: a {{ that is never closed; write {{{{ for a brace")
                case _:
                    raise ValueError(f"{at}: a }} without a {{ before it; write }}}} for a brace")
        return cls(text, tuple(pieces), frozenset(piece for is_field, piece in pieces if is_field))

    @classmethod
    def literal(cls, text: str) -> Self:
        """A template that is just this text, whatever braces are in it."""
        return cls(text.replace("{", "{{").replace("}", "}}"), ((False, text),), frozenset())

    @property
    def shared(self) -> bool:
        """Whether messages with the same SHARED_FIELDS all get the same text."""
        return self.fields <= SHARED_FIELDS

    def render(self, message: Message, source: str) -> str:
        """The text for a message. A field that the message does not have is empty."""
        return "".join(
            piece if not is_field else source if piece == "source" else _OWN[piece](message) or ""
            for is_field, piece in self.pieces
        )

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Address:
    """Where messages go. What is None here is taken from the next level: see Routing."""

    exchange: RouteTemplate | None = None
    routing_key: RouteTemplate | None = None

    @classmethod
    def parse(cls, exchange: str | None = None, routing_key: str | None = None) -> Self:
        """Read both, as far as they are given. Raises ValueError as RouteTemplate does."""
        return cls(
            None if exchange is None else RouteTemplate.parse(exchange),
            None if routing_key is None else RouteTemplate.parse(routing_key),
        )


class Resolved(NamedTuple):
    """The templates that count for a message."""

    exchange: RouteTemplate
    routing_key: RouteTemplate

    @property
    def shared(self) -> bool:
        """Whether messages with the same SHARED_FIELDS all go to the same place."""
        return self.exchange.shared and self.routing_key.shared


DEFAULTS: Final[Mapping[Kind, Resolved]] = {
    Kind.EVENT: Resolved(RouteTemplate.parse(EVENTS), RouteTemplate.parse("{aggregate_type}.{type}")),
    Kind.COMMAND: Resolved(RouteTemplate.parse(COMMANDS), RouteTemplate.parse("{destination}")),
    Kind.REPLY: Resolved(RouteTemplate.parse(REPLIES), RouteTemplate.parse("{destination}")),
}
"""Events go to whoever listens, commands and replies to the service that they name."""


@dataclass(frozen=True, slots=True)
class Routing:
    """Which address counts: that of the message's type, then that of its capture, then that of its kind, then DEFAULTS.

    Exchange and routing key are looked for one by one.
    """

    by_type: Mapping[str, Address] = field(default_factory=dict)
    by_capture: Mapping[str, Address] = field(default_factory=dict)
    by_kind: Mapping[Kind, Address] = field(default_factory=dict)

    def resolve(self, message: Message) -> Resolved:
        """The templates for a message: the same for all of its kind, type and capture."""
        default = DEFAULTS[message.kind]
        found = (
            self.by_type.get(message.type),
            self.by_capture.get(message.capture),
            self.by_kind.get(message.kind),
        )
        levels = [level for level in found if level is not None]
        exchange = next((level.exchange for level in levels if level.exchange is not None), default.exchange)
        routing_key = next(
            (level.routing_key for level in levels if level.routing_key is not None), default.routing_key
        )
        return Resolved(exchange, routing_key)

    def route(self, message: Message, source: str) -> tuple[str, str]:
        """The exchange and the routing key of a message."""
        exchange, routing_key = self.resolve(message)
        return exchange.render(message, source), routing_key.render(message, source)
