"""Messages: what services say to each other, and what a delivery says about one."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import ClassVar, Final, Literal, Self, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from relay.broker import properties as names
from relay.broker.properties import Delivery, HeaderValue, Properties
from relay.errors import RelayError

ATTEMPT_MAX: Final = 2**31 - 1
"""The last attempt that the tables can hold."""

Kind: TypeAlias = Literal["event", "command", "reply"]


class Message(BaseModel):
    """What all messages share: they never change, and a reader overlooks fields that it does not know yet.

    The name of the class is the message's type on the wire: renaming it is a change of the contract.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")


class Event(Message):
    """Something happened. Addressed to nobody: whoever is interested listens."""


class Reply(Message):
    """The outcome of a command, addressed to the service that sent it."""


class Failure(Reply):
    """The outcome of a command that was refused for a business reason: what was asked has not happened."""


class Done(Reply):
    """The command is carried out, and there is nothing more to say: what a handler that returns None has sent."""


class Compensated(Reply):
    """What was to be undone is undone, or was never done and never will be."""


class OperationCancelled(Failure):
    """The operation was undone before it ran: nothing has been done, and nothing will be."""


class Command(Message):
    """Please do: addressed to one service."""

    replies: ClassVar[tuple[type[Reply], ...]] = ()
    """What it may be answered with. Empty: that is not told, and nothing is checked."""


AnyMessage = TypeVar("AnyMessage", bound=Message)


class Unprocessable(RelayError):
    """This message cannot be handled, however often it is tried: it is dead at once.

    A handler may raise it too.
    """

    hint = "It is kept, as it was sent: `relay dead list` shows it, `relay dead replay` lets the service try it again."


def type_of(message: Message | type[Message]) -> str:
    """The type under which a message travels."""
    return (message if isinstance(message, type) else type(message)).__name__


def kind_of(message: Message) -> Kind:
    """Whether a message is an event, a command or a reply. Raises TypeError for what is none of them."""
    match message:
        case Event():
            return "event"
        case Command():
            return "command"
        case Reply():
            return "reply"
        case _:
            raise TypeError(f"{type_of(message)} is neither an Event, nor a Command, nor a Reply")


def decode(message_type: type[AnyMessage], body: bytes) -> AnyMessage:
    """Read a body. Raises Unprocessable, naming the fields that are wrong but never what they held."""
    try:
        return message_type.model_validate_json(body)
    except ValidationError as error:
        wrong = "; ".join(_complaint(detail["loc"], detail["msg"]) for detail in error.errors(include_input=False))
        raise Unprocessable(f"the body is no {type_of(message_type)}: {wrong}") from None


def _complaint(location: tuple[int | str, ...], message: str) -> str:
    path = ".".join(str(part) for part in location)
    return f"{path}: {message}" if path else message


@dataclass(frozen=True, slots=True)
class Incoming:
    """What a delivery says about its message. `sent_at` is the sender's time, to the second, where it tells one.

    `operation` is what must happen at most once; `attempt` counts, from 1, how often the sender has asked for it anew.
    `compensation` counts that of what undoes it, and is None in whatever does not undo or say that something is undone.
    """

    message_id: str
    type: str
    aggregate: tuple[str, str]
    correlation_id: str | None
    reply_to: str | None
    causation_id: str | None
    operation: str | None
    sent_at: datetime | None
    headers: Mapping[str, HeaderValue]
    body: bytes
    attempt: int = 1
    compensation: int | None = None

    @classmethod
    def of(cls, delivery: Delivery) -> Self:
        """Read a delivery. Raises Unprocessable when it has no message id or no type."""
        return cls.read(delivery.properties, delivery.body)

    @classmethod
    def read(cls, said: Properties, body: bytes) -> Self:
        """Read what a message says. Raises Unprocessable when it has no message id or no type."""
        message_id = said.message_id or said.header(names.CE_ID)
        if not message_id:
            raise Unprocessable("the message has no id: nobody could tell it from its own repetition")
        message_type = said.type or said.header(names.CE_TYPE)
        if not message_type:
            raise Unprocessable("the message has no type")
        return cls(
            message_id=message_id,
            type=message_type,
            # A stranger's message without an aggregate stands for itself.
            aggregate=(
                said.header(names.AGGREGATE_TYPE) or "message",
                said.header(names.AGGREGATE_ID) or said.header(names.CE_PARTITIONKEY) or message_id,
            ),
            correlation_id=said.correlation_id,
            reply_to=said.reply_to,
            causation_id=said.header(names.CAUSATION_ID),
            operation=said.header(names.OPERATION),
            sent_at=_time(said.timestamp),
            headers=said.headers,
            body=body,
            attempt=_attempt(said.headers.get(names.ATTEMPT)),
            compensation=_attempt(said.headers[names.COMPENSATION]) if names.COMPENSATION in said.headers else None,
        )


def _attempt(header: HeaderValue) -> int:
    """Which attempt it is. What is no such number counts as the first, which never makes anything happen twice."""
    text = str(header) if isinstance(header, str | int) else ""
    if not text.isdecimal() or len(text) > len(str(ATTEMPT_MAX)):
        return 1
    return int(text) if 0 < int(text) <= ATTEMPT_MAX else 1


def _time(timestamp_s: int | None) -> datetime | None:
    """A time that cannot be (some send milliseconds) is as good as none."""
    if timestamp_s is None:
        return None
    try:
        return datetime.fromtimestamp(timestamp_s, UTC)
    except (ValueError, OverflowError, OSError):
        return None
