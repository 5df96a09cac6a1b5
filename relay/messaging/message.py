"""Messages: what services say to each other, and what a delivery says about one."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, Self, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from relay.broker import properties as names
from relay.broker.properties import Delivery, HeaderValue
from relay.errors import RelayError

Kind: TypeAlias = Literal["event", "command", "reply"]


class Message(BaseModel):
    """What all messages share: they never change, and a reader overlooks fields that it does not know yet.

    The name of the class is the message's type on the wire: renaming it is a change of the contract.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")


class Event(Message):
    """Something happened. Addressed to nobody: whoever is interested listens."""


class Command(Message):
    """Please do: addressed to one service."""


class Reply(Message):
    """The outcome of a command, addressed to the service that sent it."""


class Failure(Reply):
    """The outcome of a command that was refused for a business reason: what was asked has not happened."""


AnyMessage = TypeVar("AnyMessage", bound=Message)


class Unprocessable(RelayError):
    """This message can never be handled, however often it is tried: it goes to the dead letters at once.

    A handler may raise it too.
    """

    hint = "The message is in the service's queue of dead letters, as it was sent."


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
    """What a delivery says about its message. `sent_at` is the sender's time, to the second, where it tells one."""

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

    @classmethod
    def of(cls, delivery: Delivery) -> Self:
        """Read a delivery. Raises Unprocessable when it has no message id or no type."""
        said = delivery.properties
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
            body=delivery.body,
        )


def _time(timestamp_s: int | None) -> datetime | None:
    """The time is only for information, so one that cannot be (some send milliseconds) is as good as none."""
    if timestamp_s is None:
        return None
    try:
        return datetime.fromtimestamp(timestamp_s, UTC)
    except (ValueError, OverflowError, OSError):
        return None
