"""A service: its name, what it handles, and the loop that handles it."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from relay.broker.topology import ServiceQueue
from relay.errors import RelayError
from relay.messaging.handler import Handler, Route
from relay.messaging.message import AnyMessage, Command, Event, Reply, type_of
from relay.messaging.transaction import Pool, Transaction
from relay.messaging.worker import CONCURRENCY, PREFETCH_MESSAGES, Worker

AnyCommand = TypeVar("AnyCommand", bound=Command)
AnyEvent = TypeVar("AnyEvent", bound=Event)
AnyReply = TypeVar("AnyReply", bound=Reply)
Outcome = TypeVar("Outcome", bound=Reply | None)


class HandlerTaken(RelayError):
    """A service handles each type of message in one place."""

    hint = "One handler can call several functions; they share its transaction."


class Service:
    """A participant: it handles messages, each in one transaction of its own database, and writes to nothing else.

    Handlers are registered with the decorators `command` and `event` (the saga orchestrator uses `reply`) before `run`.
    Raises HandlerTaken when a type of message has a handler already.
    """

    def __init__(self, name: str, *, prefetch: int = PREFETCH_MESSAGES, concurrency: int = CONCURRENCY) -> None:
        self.name = name
        self._prefetch = prefetch
        self._concurrency = concurrency
        self._routes: dict[str, Route] = {}

    @property
    def queue(self) -> ServiceQueue:
        """The queue that the service consumes, as the handlers registered so far need it."""
        events = (name for name, route in self._routes.items() if issubclass(route.message_type, Event))
        return ServiceQueue(self.name, frozenset(events))

    def command(
        self, command_type: type[AnyCommand]
    ) -> Callable[
        [Callable[[AnyCommand, Transaction], Awaitable[Outcome]]],
        Callable[[AnyCommand, Transaction], Awaitable[Outcome]],
    ]:
        """Register a handler of a command. The reply that it returns commits with its work."""

        def register(
            handler: Callable[[AnyCommand, Transaction], Awaitable[Outcome]],
        ) -> Callable[[AnyCommand, Transaction], Awaitable[Outcome]]:
            self._register(command_type, handler)
            return handler

        return register

    def event(
        self, event_type: type[AnyEvent]
    ) -> Callable[
        [Callable[[AnyEvent, Transaction], Awaitable[None]]], Callable[[AnyEvent, Transaction], Awaitable[None]]
    ]:
        """Register a handler of an event, and listen to events of that type, whatever they are about."""

        def register(
            handler: Callable[[AnyEvent, Transaction], Awaitable[None]],
        ) -> Callable[[AnyEvent, Transaction], Awaitable[None]]:
            self._register(event_type, handler)
            return handler

        return register

    def reply(self, reply_type: type[AnyReply], handler: Callable[[AnyReply, Transaction], Awaitable[None]]) -> None:
        """Register a handler of replies to this service's own commands."""
        self._register(reply_type, handler)

    async def run(self, pool: Pool, amqp_url: str) -> None:
        """Handle messages until cancelled: some at once, those of one aggregate in the order of the queue.

        A message is acknowledged after its transaction has committed; seen before, it is acknowledged and not handled
        again. While RabbitMQ or PostgreSQL is away, this waits. When it is cancelled, the transaction at hand is given
        time to finish. Raises BrokerError when RabbitMQ refuses what waiting does not mend.
        """
        worker = Worker(self.queue, dict(self._routes), pool, prefetch=self._prefetch, concurrency=self._concurrency)
        await worker.run(amqp_url)

    def _register(self, message_type: type[AnyMessage], handler: Handler[AnyMessage]) -> None:
        name = type_of(message_type)
        if name in self._routes:
            raise HandlerTaken(f"service {self.name} has a handler of {name} already")
        self._routes[name] = Route.to(handler, message_type)
