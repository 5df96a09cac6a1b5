"""Handlers: what a service does with the messages of one type."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Self, TypeAlias

from relay.errors import RelayError
from relay.messaging.attempt import uncancelled
from relay.messaging.deadline import Deadline
from relay.messaging.message import AnyMessage, Command, Event, Failure, Incoming, Message, Reply, decode, type_of
from relay.messaging.transaction import Transaction

Handler: TypeAlias = Callable[[AnyMessage, Transaction], Awaitable[Reply | None]]
"""Handles a message within a transaction. What it returns is sent to where the message asks for its reply."""

ReplyHandler: TypeAlias = Callable[[Incoming, Transaction], Awaitable[None]]
"""Handles replies of any type, whose bodies it reads itself."""

Handling: TypeAlias = Callable[[Transaction], Awaitable[Reply | None]]
"""A handler that has its message already."""


class Outcome(Enum):
    """What has become of a message. In each case the caller commits, and then acknowledges it."""

    HANDLED = "handled"
    SEEN_BEFORE = "seen before"
    """The inbox has it: nothing was done."""
    DEFERRED = "deferred"
    """It waits behind another one of its aggregate."""


class HandlerTaken(RelayError):
    """A service handles each type of message in one place."""

    hint = "One handler can call several functions; they share its transaction."


class UndeclaredReply(RelayError):
    """A handler returned a reply that its command does not declare, so that its sender may not understand it."""

    hint = "Add it to the command's `replies`, or let the handler return one of those."


@dataclass(frozen=True, slots=True)
class Route:
    """From a type of message to its handler. `prepare` reads the body, and raises Unprocessable when it cannot."""

    message_type: type[Message]
    prepare: Callable[[Incoming], Handling]
    undoes: bool = False
    """It is the compensation of what another command does."""
    any_order: bool = False
    """Its messages need not come in the order in which they were sent."""

    @classmethod
    def to(
        cls, handler: Handler[AnyMessage], message_type: type[AnyMessage], *, timeout_s: float, undoes: bool = False
    ) -> Self:
        """The route of a type to its handler, which raises TookTooLong when it is not done in time."""

        def prepare(incoming: Incoming) -> Handling:
            return _bounded(_handling(partial(handler, decode(message_type, incoming.body))), timeout_s)

        return cls(message_type, prepare, undoes)

    @property
    def command(self) -> type[Command] | None:
        """The type of command that it is for, None for events and replies."""
        return self.message_type if issubclass(self.message_type, Command) else None

    @property
    def may_fail(self) -> bool:
        """Whether the handler may return a Failure, as far as that is declared."""
        replies = self.command.replies if self.command else ()
        return not replies or any(issubclass(reply, Failure) for reply in replies)


def _handling(handler: Handling) -> Handling:
    return lambda tx: uncancelled(handler(tx))


def _bounded(handler: Handling, timeout_s: float) -> Handling:
    async def handle(tx: Transaction) -> Reply | None:
        async with Deadline(timeout_s):
            return await handler(tx)

    return handle


class Routes:
    """The handlers of a service."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._by_type: dict[str, Route] = {}
        self._replies: Route | None = None

    def add(self, route: Route) -> None:
        """Raises HandlerTaken when the type has a handler already."""
        name = type_of(route.message_type)
        if name in self._by_type:
            raise HandlerTaken(f"service {self._service} has a handler of {name} already")
        self._by_type[name] = route

    def add_replies(self, handler: ReplyHandler) -> None:
        """Sagas take replies in any order: none waits behind another one that could not be handled.

        Raises HandlerTaken when there is such a handler already.
        """
        if self._replies is not None:
            raise HandlerTaken(f"service {self._service} has a handler of all replies already")
        # A reply may set several local steps going, each with a deadline of its own, perhaps longer than a handler's.
        # Nothing else of a saga's turn awaits code of users. So there is none for the whole.
        self._replies = Route(Reply, lambda incoming: _handling(partial(handler, incoming)), any_order=True)

    @property
    def events(self) -> frozenset[str]:
        """The types of event that are handled."""
        return frozenset(name for name, route in self._by_type.items() if issubclass(route.message_type, Event))

    def find(self, incoming: Incoming) -> Route | None:
        """The handler of a message: that of its type, else, if it answers an operation, that of all replies."""
        return self._by_type.get(incoming.type) or (self._replies if incoming.operation is not None else None)
