"""The names on the wire: exchanges, AMQP properties and headers, for those who publish and those who consume. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

HeaderValue: TypeAlias = "str | bytes | int | float | bool | list[HeaderValue] | dict[str, HeaderValue] | None"

EVENTS: Final = "relay.events"
COMMANDS: Final = "relay.commands"
REPLIES: Final = "relay.replies"
DEAD: Final = "relay.dead"

JSON: Final = "application/json"

# CloudEvents 1.0, binary content mode: attributes, then those of its extensions.
CE_ID: Final = "ce-id"
CE_SOURCE: Final = "ce-source"
CE_TYPE: Final = "ce-type"
CE_SPECVERSION: Final = "ce-specversion"
CE_TIME: Final = "ce-time"
CE_PARTITIONKEY: Final = "ce-partitionkey"
CE_SEQUENCE: Final = "ce-sequence"
CE_TRACEPARENT: Final = "ce-traceparent"
CE_TRACESTATE: Final = "ce-tracestate"

# W3C Trace Context: under these names OpenTelemetry looks for it.
TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"

# What CloudEvents has no name for.
AGGREGATE_TYPE: Final = "aggregate_type"
AGGREGATE_ID: Final = "aggregate_id"
CAUSATION_ID: Final = "causation_id"
OPERATION: Final = "operation"
ATTEMPT: Final = "attempt"
COMPENSATION: Final = "compensation"


@dataclass(frozen=True, slots=True)
class Properties:
    """AMQP basic properties, under AMQP's names. `timestamp` is in seconds since 1970, as AMQP has it."""

    message_id: str | None
    type: str | None = None
    content_type: str | None = JSON
    correlation_id: str | None = None
    reply_to: str | None = None
    timestamp: int | None = None
    app_id: str | None = None
    headers: Mapping[str, HeaderValue] = field(default_factory=dict)

    def header(self, name: str) -> str | None:
        """A header as text, None where it is absent or no text."""
        value = self.headers.get(name)
        return value if isinstance(value, str) else None


class Varying(NamedTuple):
    """What differs between messages that otherwise have all their Properties in common. Its headers come on top."""

    message_id: str
    correlation_id: str | None
    reply_to: str | None
    timestamp: int | None
    headers: Mapping[str, HeaderValue]
    names: tuple[str, ...] = ()
    """Of further headers, which are text. None of them is in `headers`. They are encoded once for all messages that
    bring the same tuple: not an equal one, the same."""
    texts: tuple[str, ...] = ()
    """The values of those, one for each name."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message as the broker handed it over. `tag` is good for the channel that brought it, and for one answer."""

    tag: int
    exchange: str
    routing_key: str
    redelivered: bool
    properties: Properties
    body: bytes
