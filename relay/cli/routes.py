"""The routes that the settings make, in the form in which they are compared with the bindings of the broker."""

from collections.abc import Iterator, Mapping
from itertools import cycle

from relay.broker.reach import Address, Gap, Pattern, Route
from relay.capture import routing
from relay.capture.message import Kind
from relay.capture.routing import DEFAULTS, RouteTemplate, Routing


def routes(by_source: Mapping[str, Routing]) -> tuple[Route, ...]:
    """A route for each kind of message, and each capture and each type that has an address of its own, of each source.

    The source, the kind, the capture and the type of a message are filled in where the route knows them; what else a
    template names may be any text. A capture or a type may have messages of every kind.
    """
    return tuple(
        route if len(by_source) == 1 else Route(f"source {source}, {route.name}", route.addresses)
        for source, configured in by_source.items()
        for route in _all(configured, {"source": source})
    )


def _all(configured: Routing, known: Mapping[str, str]) -> Iterator[Route]:
    for kind in Kind:
        given = configured.by_kind.get(kind)
        yield Route(f"kind {kind}", (_address(kind, [given], {**known, "kind": kind.value}),))
    for name, given in configured.by_capture.items():
        levels = [[given, configured.by_kind.get(kind)] for kind in Kind]
        yield Route(f"capture {name}", _addresses(levels, {**known, "capture": name}))
    for name, given in configured.by_type.items():
        captures = (None, *configured.by_capture.values())
        for_type = [[given, capture, configured.by_kind.get(kind)] for capture in captures for kind in Kind]
        yield Route(f"type {name}", _addresses(for_type, {**known, "type": name}))


def _addresses(levels: list[list[routing.Address | None]], known: Mapping[str, str]) -> tuple[Address, ...]:
    """Each address once. The levels are those of the kinds in their order, over and over."""
    kinds = cycle(Kind)
    each = (_address(kind, given, {**known, "kind": kind.value}) for kind, given in zip(kinds, levels, strict=False))
    return tuple(dict.fromkeys(each))


def _address(kind: Kind, levels: list[routing.Address | None], known: Mapping[str, str]) -> Address:
    """The templates of the first levels that have them, as patterns."""
    given = [level for level in levels if level is not None]
    default = DEFAULTS[kind]
    exchange = next((level.exchange for level in given if level.exchange is not None), default.exchange)
    routing_key = next((level.routing_key for level in given if level.routing_key is not None), default.routing_key)
    return Address(_pattern(exchange, known), _pattern(routing_key, known))


def _pattern(template: RouteTemplate, known: Mapping[str, str]) -> Pattern:
    return tuple((known.get(piece) or Gap(piece)) if is_field else piece for is_field, piece in template.pieces)
