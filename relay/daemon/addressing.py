"""Where messages go and how they are wrapped: the settings, as capture understands them."""

from collections.abc import Mapping

from relay.capture.envelope import ENVELOPES, Envelope
from relay.capture.message import Kind
from relay.capture.routing import Address, Routing
from relay.config import BrokerSettings, RouteSettings, SourceSettings
from relay.config.capture import EventStoreCapture, OutboxCapture


def routing(broker: BrokerSettings, source: SourceSettings) -> Routing:
    """By type and kind for all sources, by capture for this one."""
    kinds = set(Kind)
    given = {name: _address(route) for name, route in broker.routing.items()}
    return Routing(
        by_type={name: address for name, address in given.items() if name not in kinds},
        by_capture={one.name: _address(one.routing) for one in source.capture if one.routing is not None},
        by_kind={kind: given[kind] for kind in Kind if kind in given},
    )


def envelopes(source: SourceSettings) -> Mapping[str, Envelope]:
    """The envelope of each capture, by its name."""
    return {one.name: ENVELOPES[one.envelope] for one in source.capture}


def content_types(source: SourceSettings) -> Mapping[str, str]:
    """The content type of each capture whose bodies are the application's own rows, by its name."""
    return {one.name: one.content_type for one in source.capture if isinstance(one, OutboxCapture | EventStoreCapture)}


def _address(route: RouteSettings) -> Address:
    return Address.parse(route.exchange, route.routing_key)
