"""The message, as it is on its way from the write-ahead log to the broker."""

from dataclasses import dataclass
from enum import StrEnum

from relay.errors import RelayError


class CaptureError(RelayError):
    """A change cannot be understood as a message. The source stops: nothing is skipped."""


class Kind(StrEnum):
    """What a message is for."""

    EVENT = "event"
    """Something happened. Whoever cares listens."""
    COMMAND = "command"
    """Please do: addressed to one service."""
    REPLY = "reply"
    """The outcome of a command: addressed to the service that sent it."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message. `payload` and `headers` are JSON as the service wrote it, byte for byte."""

    id: str
    kind: Kind
    aggregate_type: str
    aggregate_id: str
    type: str
    destination: str | None
    correlation_id: str | None
    reply_to: str | None
    causation_id: str | None
    operation: str | None
    headers: bytes
    payload: bytes
    created_at: str
    """As PostgreSQL prints it, in UTC."""

    def __str__(self) -> str:
        return f"{self.kind} {self.type} {self.id} of {self.aggregate_type} {self.aggregate_id}"
