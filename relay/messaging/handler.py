"""Handlers: what a service does with the messages of one type."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Self, TypeAlias

from relay.messaging.message import AnyMessage, Incoming, Message, Reply, decode
from relay.messaging.transaction import Transaction

Handler: TypeAlias = Callable[[AnyMessage, Transaction], Awaitable[Reply | None]]
"""Handles a message within a transaction. What it returns is sent to where the message asks for its reply."""

Handling: TypeAlias = Callable[[Transaction], Awaitable[Reply | None]]
"""A handler that has its message already."""


@dataclass(frozen=True, slots=True)
class Route:
    """From a type of message to its handler. `prepare` reads the body, and raises Unprocessable when it cannot."""

    message_type: type[Message]
    prepare: Callable[[Incoming], Handling]

    @classmethod
    def to(cls, handler: Handler[AnyMessage], message_type: type[AnyMessage]) -> Self:
        """The route of a type to its handler."""

        def prepare(incoming: Incoming) -> Handling:
            return partial(handler, decode(message_type, incoming.body))

        return cls(message_type, prepare)
