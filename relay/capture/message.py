"""The message, as it is on its way from the write-ahead log to the broker."""

from enum import StrEnum
from typing import Final, NamedTuple

from relay.errors import RelayError


class CaptureError(RelayError):
    """A change cannot be understood as a message. The source stops: nothing is skipped."""


class HeadersError(CaptureError):
    """The headers of one row cannot be understood; the message is whole but for them."""


class Malformed(CaptureError):
    """One row or logical message is no message. `message` has what could be read of it, to be set aside."""

    def __init__(self, what: str, message: "Message") -> None:
        super().__init__(what)
        self.message = message


OUTBOX: Final = "outbox"
"""The name of the capture of relay.outbox, unless it is given another."""


NO_CAPTURE: Final = ""
"""In place of a capture's name: it is no message, and only its content is kept."""


class Kind(StrEnum):
    """What a message is for."""

    EVENT = "event"
    """Something happened. Whoever cares listens."""
    COMMAND = "command"
    """Please do: addressed to one service."""
    REPLY = "reply"
    """The outcome of a command: addressed to the service that sent it."""


class Lane(NamedTuple):
    """What stays in order when a message of it is parked: those behind it wait, every other lane flows on."""

    aggregate_type: str
    aggregate_id: str
    kind: Kind
    destination: str | None

    def __str__(self) -> str:
        towards = f" for {self.destination}" if self.destination else ""
        return f"{self.kind} lane of {self.aggregate_type} {self.aggregate_id}{towards}"


class Message(NamedTuple):
    """One message. `payload` and `headers` are as the service wrote them, byte for byte; `headers` are JSON.

    A named tuple: there is one a row, and a frozen dataclass takes four times as long to make.
    """

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
    capture: str = OUTBOX
    """The name of the capture that it came by: its envelope and its route are set there."""

    @property
    def lane(self) -> Lane:
        """The messages that wait when this one is parked."""
        return Lane(self.aggregate_type, self.aggregate_id, self.kind, self.destination)

    def __str__(self) -> str:
        return f"{self.kind} {self.type} {self.id} of {self.aggregate_type} {self.aggregate_id}"
