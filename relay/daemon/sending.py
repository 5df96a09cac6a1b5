"""A message on its way out, and the route that it takes."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Final, TypeAlias

from relay.broker.encoding import Flaw, Template, Unsendable
from relay.capture.envelope import CLOUDEVENTS, Envelope
from relay.capture.message import NO_CAPTURE, Kind, Message
from relay.capture.routing import Resolved, Routing
from relay.config import OnUnroutable
from relay.daemon.progress import Transaction
from relay.parking.index import Refusal
from relay.wal.lsn import Position

ROUTES_MAX: Final = 10_000
"""Routes that are remembered at once. Who puts ids into types, destinations or routing keys has new ones all the time:
then all are forgotten, and what they had in common is encoded and proven again."""

_Key: TypeAlias = "tuple[str, Kind, str, str, str | None]"
"""Capture, kind, aggregate type, type and destination of a message."""

_new: Final = tuple.__new__
"""Makes a named tuple in half the time of its own constructor, which is Python."""


@dataclass(slots=True, eq=False)
class Route:
    """What messages of one capture, kind, aggregate type, type and destination have in common, to the same address."""

    template: Template
    policy: OnUnroutable
    envelope: Envelope = CLOUDEVENTS
    proven: bool = False
    """A message was confirmed here without coming back, on this connection."""
    certain: bool = False
    """The next message of an aggregate need not wait to see whether this one comes back."""
    refusing_until: float = 0.0
    """Until then, in seconds of the monotonic clock, one refusal is enough: a message was parked for being refused, and
    none has been confirmed since."""
    proofs: int = 0
    """How often it has been proven."""
    refused_at: float | None = None
    """When the log last said that a queue refuses what comes here, in seconds of the monotonic clock."""

    def __str__(self) -> str:
        return f"exchange {self.template.exchange} with routing key {self.template.routing_key!r}"

    def prove(self) -> None:
        """A message was confirmed, and had not come back."""
        self.proven = self.certain = True
        self.refusing_until = 0.0
        self.proofs += 1

    def doubt(self) -> None:
        """A message came back or was refused, or the connection is a new one."""
        self.proven = False
        self.certain = self.policy is OnUnroutable.IGNORE


class Routes:
    """The routes of a source's messages, each made once."""

    def __init__(
        self,
        source: str,
        routing: Routing,
        envelopes: Mapping[str, Envelope],
        on_unroutable: Mapping[str, OnUnroutable],
        content_types: Mapping[str, str] | None = None,
    ) -> None:
        """`envelopes` and `content_types` are by the names of captures. A message of another one, which was parked
        before the configuration changed, leaves as CloudEvents, and as JSON.
        """
        self._content_types = content_types or {}
        self._source = source
        self._routing = routing
        self._envelopes = envelopes
        self._on_unroutable = on_unroutable
        self._known: dict[_Key, Route] = {}
        self._own_addresses: dict[_Key, Resolved] = {}
        """Templates that name fields which are not in the key: they are rendered for every message."""
        self._addressed: dict[tuple[_Key, str, str], Route] = {}
        """The routes of these, by what was rendered."""

    def of(self, message: Message) -> Route:
        """The route of a message. Raises Unsendable when a name does not fit into AMQP, or when it is no message."""
        # Capture, kind, both types, destination: once a message.
        key = message[13], message[1], message[2], message[4], message[5]
        found = self._known.get(key)
        return found if found is not None else self._find(key, message)

    def doubt(self) -> None:
        """None of them is proven any more."""
        for one in chain(self._known.values(), self._addressed.values()):
            one.doubt()

    def _find(self, key: _Key, message: Message) -> Route:
        """The route of a message whose key alone does not say it, or not yet."""
        resolved = self._own_addresses.get(key)
        if resolved is None:
            if message.capture == NO_CAPTURE:
                raise Unsendable("it is no message: only its content is kept", Flaw.UNENCODABLE)
            resolved = self._routing.resolve(message)
        exchange, routing_key = (template.render(message, self._source) for template in resolved)
        found = self._addressed.get((key, exchange, routing_key))
        if found is not None:
            return found
        self._make_room()
        made = self._made(message, exchange, routing_key)
        if resolved.shared:
            self._known[key] = made
        else:
            self._own_addresses[key] = resolved
            self._addressed[key, exchange, routing_key] = made
        return made

    def _made(self, message: Message, exchange: str, routing_key: str) -> Route:
        envelope = self._envelopes.get(message.capture, CLOUDEVENTS)
        common = envelope.common(message, self._source)
        common = replace(common, content_type=self._content_types.get(message.capture, common.content_type))
        template = Template(exchange, routing_key, common)
        policy = self._on_unroutable.get(message.type) or self._on_unroutable[message.kind]
        route = Route(template, policy, envelope)
        route.doubt()
        return route

    def _make_room(self) -> None:
        if len(self._known) + len(self._addressed) >= ROUTES_MAX:
            self._known.clear()
            self._own_addresses.clear()
            self._addressed.clear()


@dataclass(slots=True, eq=False)
class Replays:
    """The messages of one lane that are being replayed."""

    first: Position
    """The first of them: what is parked before it was parked meanwhile."""
    pending: int = 0
    refusal: Refusal | None = None
    """Why one of them stays parked, and with it those behind it."""


@dataclass(frozen=True, slots=True)
class Replay:
    """A parked message that is published after all."""

    position: Position
    lane: Replays
    answer: "asyncio.Future[Refusal | None]"
    """Resolved with None when a queue has the message, else with why it stays parked."""

    def settle(self, refusal: Refusal | None = None) -> None:
        """Answer, unless nobody waits for it any more."""
        if refusal is not None and self.lane.refusal is None:
            self.lane.refusal = refusal
        if not self.answer.done():
            self.answer.set_result(refusal)


@dataclass(slots=True, eq=False)
class Sending:
    """A message from when it is read, or is to be replayed, until it is settled."""

    message: Message
    route: Route
    origin: Transaction | Replay
    """What is settled with it."""
    ordinal: int
    refusals: int = 0
    """How often a queue has refused it since the last message was confirmed on its route."""
    refusals_in_all: int = 0
    proofs: int = 0
    """Those of its route when it was last refused."""
    retrying: bool = False
    """It was refused, and waits until it is tried again."""
    disruptions: int = 0
    """How often the broker has closed the connection while this message alone was in flight."""

    @property
    def position(self) -> Position:
        """Where it lies in the stream."""
        origin = self.origin
        return origin.position if isinstance(origin, Replay) else _new(Position, (origin.commit_lsn, self.ordinal))

    def refused_by(self, proofs: int) -> None:
        """A queue has refused it. A queue that takes others meanwhile is alive: that deserves more patience."""
        if proofs != self.proofs:
            self.refusals = 0
        self.proofs = proofs
        self.refusals += 1
        self.refusals_in_all += 1
