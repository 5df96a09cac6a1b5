"""A service: its name, what it handles, and the loop that handles it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from relay.broker.properties import Delivery
from relay.broker.topology import ServiceQueue
from relay.duration import seconds
from relay.messaging import jobs
from relay.messaging.handler import Handler, Outcome, ReplyHandler, Route, Routes
from relay.messaging.jobs import Job
from relay.messaging.message import AnyMessage, Command, Event, Reply
from relay.messaging.pruning import Pruning
from relay.messaging.receiver import Receiver
from relay.messaging.retrier import Retrier
from relay.messaging.retry import Retry
from relay.messaging.settling import Settling
from relay.messaging.transaction import Pool, Transaction
from relay.messaging.worker import CONCURRENCY, PREFETCH_MESSAGES, STOP_GRACE_S, Worker
from relay.tasks import end

AnyCommand = TypeVar("AnyCommand", bound=Command)
AnyEvent = TypeVar("AnyEvent", bound=Event)
AnyReply = TypeVar("AnyReply", bound=Reply)
Answer = TypeVar("Answer", bound=Reply | None)

RETRY: Final = Retry(attempts=12, backoff="1s..5m")
"""How often a message is tried in all, and how long it is put off in between: a quarter of an hour in all."""

TIMEOUT: Final = "1m"
"""How long a handler may take. So long its transaction holds its locks, and its aggregate waits. And should all of the
prefetched messages hang, CONCURRENCY of them at once and FAULT_TRIES times each, the last is acknowledged before the 30
minutes are over after which RabbitMQ closes the channel."""


class Service:
    """A participant: it handles messages, each in one transaction of its own database, and writes to nothing else.

    Handlers are registered with the decorators `command`, `compensation` and `event` (the saga orchestrator uses
    `replies`) before `run`. Raises HandlerTaken when a type of message has a handler already.

    `timeout` is how long a handler may take, like 90s. Then it is cancelled and rolled back: an attempt that failed.
    Raises ValueError for what is no such time.
    """

    def __init__(
        self,
        name: str,
        *,
        prefetch: int = PREFETCH_MESSAGES,
        concurrency: int = CONCURRENCY,
        retry: Retry = RETRY,
        timeout: str = TIMEOUT,
    ) -> None:
        self.name = name
        self._timeout_s = _timeout_s(name, timeout)
        self._prefetch = prefetch
        self._concurrency = concurrency
        self._retry = retry
        self._routes = Routes(name)
        self._receiver = Receiver(name, self._routes)
        self._jobs: dict[str, Job] = {
            "retries": Retrier(self._receiver, retry).run,
            "pruning": Pruning(name).run,
        }

    @property
    def queue(self) -> ServiceQueue:
        """The queue that the service consumes, as the handlers registered so far need it."""
        return ServiceQueue(self.name, self._routes.events)

    def command(
        self, command_type: type[AnyCommand]
    ) -> Callable[
        [Callable[[AnyCommand, Transaction], Awaitable[Answer]]],
        Callable[[AnyCommand, Transaction], Awaitable[Answer]],
    ]:
        """Register a handler of a command. The reply that it returns commits with its work.

        If it returns a Failure, its own writes are rolled back, and the reply commits all the same. Of a command with
        an operation, the handler runs at most once: whoever asks again gets the same reply. It runs again for a later
        attempt after a Failure, and never after the compensation, even if that came first.
        """
        return self._commands(command_type, undoes=False)

    def compensation(
        self, command_type: type[AnyCommand]
    ) -> Callable[
        [Callable[[AnyCommand, Transaction], Awaitable[Answer]]],
        Callable[[AnyCommand, Transaction], Awaitable[Answer]],
    ]:
        """Register a handler of the command that undoes what another has done.

        It runs only if the action of the same operation has, and once. Otherwise the operation is cancelled, so that
        an action which comes late does nothing. If it returns a Failure, nothing is undone, and it can be asked for
        again.
        """
        return self._commands(command_type, undoes=True)

    def _commands(
        self, command_type: type[AnyCommand], *, undoes: bool
    ) -> Callable[
        [Callable[[AnyCommand, Transaction], Awaitable[Answer]]],
        Callable[[AnyCommand, Transaction], Awaitable[Answer]],
    ]:
        def register(
            handler: Callable[[AnyCommand, Transaction], Awaitable[Answer]],
        ) -> Callable[[AnyCommand, Transaction], Awaitable[Answer]]:
            self._register(command_type, handler, undoes=undoes)
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

    def replies(self, handler: ReplyHandler) -> None:
        """Register the handler of every reply that names an operation and has no handler of its type.

        The service's timeout does not bound it.
        """
        self._routes.add_replies(handler)

    def job(self, name: str, job: Job) -> None:
        """Let a job run beside the handlers, for as long as the service runs.

        While the database is away it is begun anew until that is back; so it is, with an error in the log, when it
        raises anything else. When the service stops, it is cancelled. Raises JobTaken for a second job of a name.
        """
        if name in self._jobs:
            raise jobs.JobTaken(f"service {self.name} has a job {name} already")
        self._jobs[name] = job

    async def handle(self, delivery: Delivery, conn: AsyncConnection[TupleRow]) -> Outcome:
        """Do everything that one message does, in the caller's transaction, who commits and then acknowledges it.

        Raises what the handler raises, Unprocessable, and what psycopg raises: then the caller rolls back, at least to
        a savepoint, and nothing of it has happened. Raises NotInTransaction.
        """
        return await self._receiver.handle(delivery, conn)

    async def run(self, pool: Pool, amqp_url: str) -> None:
        """Handle messages until cancelled: some at once, those of one aggregate in the order of the queue.

        A message is acknowledged after its transaction has committed; seen before, it is acknowledged and not handled
        again. One that cannot be handled yet is put off, and those of its aggregate that come later wait behind it.
        While RabbitMQ or PostgreSQL is away, this waits. When it is cancelled, the transactions at hand are given time
        to finish. Raises BrokerError when RabbitMQ refuses what waiting does not mend.
        """
        settling = Settling(self._receiver, pool, self._retry)
        worker = Worker(self.queue, settling, pool, prefetch=self._prefetch, concurrency=self._concurrency)
        await worker.database_is_ready()
        working = asyncio.create_task(worker.run(amqp_url))
        beside = [asyncio.create_task(jobs.keep(self.name, name, job, pool)) for name, job in self._jobs.items()]
        try:
            await asyncio.wait({working})
        finally:
            await end(working, *beside, again_s=2 * STOP_GRACE_S)
        await working

    def _register(self, message_type: type[AnyMessage], handler: Handler[AnyMessage], *, undoes: bool = False) -> None:
        self._routes.add(Route.to(handler, message_type, timeout_s=self._timeout_s, undoes=undoes))


def _timeout_s(service: str, text: str) -> float:
    try:
        timeout_s = seconds(text)
    except ValueError as error:
        raise ValueError(f"service {service}: timeout is {text!r}, and {error}") from None
    if not timeout_s:
        raise ValueError(f"service {service}: timeout is {text!r}: nothing can be that quick")
    return timeout_s
