"""A message -> its exchange and routing key."""

from relay.broker.properties import COMMANDS, EVENTS, REPLIES
from relay.capture.message import Kind, Message


def route(message: Message) -> tuple[str, str]:
    """Events by aggregate type and type, for whoever listens; commands and replies to the service they name."""
    if message.kind is Kind.EVENT:
        return EVENTS, f"{message.aggregate_type}.{message.type}"
    return COMMANDS if message.kind is Kind.COMMAND else REPLIES, message.destination or ""
