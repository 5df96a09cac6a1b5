"""Where the messages of a source leave: enveloped, routed, published, and their outcomes judged."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from relay.broker.connection import Connection
from relay.broker.properties import Outgoing
from relay.broker.publisher import Outcome, Publisher
from relay.capture.envelope import cloudevents
from relay.capture.message import Kind, Message
from relay.capture.routing import route
from relay.errors import BrokerError, RelayError
from relay.tasks import end

log = logging.getLogger(__name__)

Result = TypeVar("Result")


class Unheard(RelayError):
    """A command or a reply was returned: no queue is bound where it is addressed to."""

    hint = (
        "Start the service that it is addressed to, which declares its queue, and then the relay again: "
        "it begins with this message."
    )


class Refused(RelayError):
    """A queue refused a message (a negative confirm)."""

    hint = "Look for a queue with a length limit that rejects. The relay begins with this message when it starts again."


@dataclass(frozen=True, slots=True)
class _Sent:
    """What is kept of a message while it is in flight: not its body."""

    what: str
    kind: Kind
    exchange: str
    routing_key: str
    settled: Callable[[], None]


class Outlet:
    """The one way out of a source. Messages leave in the order of the calls.

    `failed` is resolved with the reason when a message cannot be delivered and the source has to stop; that message,
    and with it the LSN, stays unsettled. An event that nobody listens to is settled: counted, and logged once a route.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._publisher: Publisher[_Sent]
        self.failed: asyncio.Future[RelayError] = asyncio.get_running_loop().create_future()
        self.published = 0
        self.unheard: Counter[str] = Counter()

    @classmethod
    async def open(cls, connection: Connection, source: str) -> Self:
        """Open a channel for the source. Raises BrokerAway."""
        outlet = cls(source)
        outlet._publisher = await Publisher.open(connection, outlet._judge)
        return outlet

    @property
    def closed(self) -> "asyncio.Future[BrokerError]":
        """Resolved with the reason once nothing can leave here any more."""
        return self._publisher.channel.closed

    @property
    def in_flight(self) -> int:
        """Messages that are published and not yet settled."""
        return self._publisher.in_flight

    async def publish(self, message: Message, settled: Callable[[], None]) -> None:
        """Publish a message as soon as there is room; `settled` is called when nothing more needs to be done for it.

        Raises BrokerAway, or BrokerError when the message cannot be sent as it is.
        """
        exchange, routing_key = route(message)
        outgoing = Outgoing(exchange, routing_key, cloudevents(message, self._source), message.payload)
        if not self._publisher.has_room:
            await self._publisher.room()
        self._publisher.publish(outgoing, _Sent(str(message), message.kind, exchange, routing_key, settled))
        self.published += 1

    async def drained(self) -> None:
        """Wait until nothing is in flight."""
        await self._publisher.drained()

    async def guard(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Do some work while this is open; raise what closed it, or what failed, as soon as that happens."""
        task = asyncio.ensure_future(work)
        try:
            futures: set[asyncio.Future[Any]] = {task, self.failed, self.closed}
            await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
            for trouble in (self.failed, self.closed):
                if trouble.done():
                    raise trouble.result()
            return await task
        finally:
            await end(task)

    def _judge(self, sent: _Sent, outcome: Outcome) -> None:
        if outcome is Outcome.NACKED:
            self._fail(Refused(f"{sent.what} was refused by a queue behind exchange {sent.exchange}"))
        elif outcome is Outcome.RETURNED and sent.kind is not Kind.EVENT:
            where = f"exchange {sent.exchange} with routing key {sent.routing_key!r}"
            self._fail(Unheard(f"{sent.what} was returned: no queue is bound to {where}"))
        else:
            if outcome is Outcome.RETURNED:
                self._count_unheard(sent)
            sent.settled()

    def _count_unheard(self, sent: _Sent) -> None:
        self.unheard[sent.routing_key] += 1
        if self.unheard[sent.routing_key] == 1:
            log.warning(
                "nobody listens to %s on exchange %s: such events are counted and dropped",
                sent.routing_key,
                sent.exchange,
                extra={"action": "event_unheard", "source": self._source, "routing_key": sent.routing_key},
            )

    def _fail(self, reason: RelayError) -> None:
        if not self.failed.done():
            self.failed.set_result(reason)
