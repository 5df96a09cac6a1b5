"""The long way round: messages arrive when, as often and in the order that a test wants."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from types import TracebackType
from typing import Final, NamedTuple, Self
from uuid import uuid4

from relay.broker.connection import Channel
from relay.broker.properties import COMMANDS, REPLIES, Delivery, Properties
from tests.acceptance.saga_world.stage import Servers
from tests.support.courier import Courier, Outgoing
from tests.support.mailbox import Mailbox

WAIT_S: Final = 30.0
LONG_S: Final = 3600.0
CLASSIC: Final = {"x-queue-type": "classic"}


class Detour:
    """All commands and replies for `service` wait in `arrived` until the test sends them on, or until the end.

    A service that is started anew binds its queue again: then messages arrive both ways.
    """

    def __init__(self, servers: Servers, service: str) -> None:
        self.service = service
        self._url = servers.url()
        self._queue = f"{service}.detour"
        self._stack = AsyncExitStack()
        self._box = Mailbox(self._url, self._queue)
        self._gone_on: set[int] = set()

    async def __aenter__(self) -> Self:
        self._courier = await self._stack.enter_async_context(Courier(self._url))
        channel = await self._courier.channel()
        await channel.call(channel.raw.queue_declare, self._queue, durable=True, arguments=dict(CLASSIC))
        await self._bind(channel, self._queue, instead_of=self.service)
        self._collecting = asyncio.create_task(self._box.collect())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        channel = await self._courier.channel()
        await self._bind(channel, self.service, instead_of=self._queue)
        last = str(uuid4())
        await self._courier.publish(Outgoing("", self._queue, Properties(last, type="Last"), b""))
        await self._box.until(lambda there: any(one.properties.message_id == last for one in there), WAIT_S)
        self._collecting.cancel()
        await asyncio.wait({self._collecting})
        await self.send_on(*(one for one in self.arrived if id(one) not in self._gone_on))
        await channel.call(channel.raw.queue_delete, self._queue)
        await self._stack.aclose()

    async def _bind(self, channel: Channel, queue: str, instead_of: str) -> None:
        """First the one and then the other: a message may go both ways for a moment, and never none."""
        for exchange in (COMMANDS, REPLIES):
            await channel.call(channel.raw.queue_bind, queue, exchange, routing_key=self.service)
            await channel.call(channel.raw.queue_unbind, instead_of, exchange, routing_key=self.service)

    @property
    def arrived(self) -> list[Delivery]:
        """Everything that came, in its order."""
        return [one for one in self._box.deliveries if one.properties.type != "Last"]

    async def until(self, name: str, count: int = 1) -> list[Delivery]:
        """Wait until so many messages of this type are here, and return them in the order in which they came."""

        def of_that_type() -> list[Delivery]:
            return [one for one in self.arrived if one.properties.type == name]

        await self._box.until(lambda _: len(of_that_type()) >= count, WAIT_S)
        return of_that_type()

    async def coming(self) -> AsyncIterator[Delivery]:
        """Each message when it comes, those that are here first."""
        looked = 0
        while True:
            await self._box.until(lambda _, looked=looked: len(self.arrived) > looked, LONG_S)  # type: ignore[misc]
            news = self.arrived[looked:]
            looked += len(news)
            for one in news:
                yield one

    async def send_on(self, *deliveries: Delivery, renamed: bool = False) -> None:
        """Let these arrive, in this order. `renamed`: as new messages that say the same, as a sender's repeats do."""
        for one in deliveries:
            said = replace(one.properties, message_id=str(uuid4())) if renamed else one.properties
            self._gone_on.add(id(one))
            await self._courier.publish(Outgoing("", self.service, said, one.body))


class Copy(NamedTuple):
    """One of the times that a message arrives: how much later, and whether under an id of its own."""

    delay_s: float = 0.0
    renamed: bool = False


Copies = Callable[[random.Random, Delivery], Sequence[Copy]]
"""How often a message arrives, and when."""


def always(*copies: Copy) -> Copies:
    """Every message the same."""
    return lambda _, __: copies


class Scatter:
    """Lets the messages for these services arrive as often and as late as `copies` says. The seed decides its dice."""

    def __init__(self, servers: Servers, services: Sequence[str], copies: Copies, seed: int = 0) -> None:
        self._detours = [Detour(servers, service) for service in services]
        self._copies = copies
        self._seed = seed
        self._stack = AsyncExitStack()
        self._under_way: set[asyncio.Task[None]] = set()
        self.repeats = 0
        """How many messages arrived once more than they were sent."""

    async def __aenter__(self) -> Self:
        for detour in self._detours:
            await self._stack.enter_async_context(detour)
        self._scattering = [asyncio.create_task(self._scatter(detour)) for detour in self._detours]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._scattering:
            task.cancel()
        await asyncio.wait(self._scattering)
        if self._under_way:
            await asyncio.wait(self._under_way)
        await self._stack.aclose()
        for task in self._under_way:
            task.result()

    async def _scatter(self, detour: Detour) -> None:
        dice = random.Random(f"{self._seed} {detour.service}")
        async for delivery in detour.coming():
            copies = self._copies(dice, delivery)
            self.repeats += len(copies) - 1
            for copy in copies:
                task = asyncio.create_task(self._send(detour, delivery, copy))
                self._under_way.add(task)
                task.add_done_callback(self._settle)

    def _settle(self, task: "asyncio.Task[None]") -> None:
        """What failed is kept, to be told at the end."""
        if not task.cancelled() and task.exception() is None:
            self._under_way.discard(task)

    async def _send(self, detour: Detour, delivery: Delivery, copy: Copy) -> None:
        if copy.delay_s:
            await asyncio.sleep(copy.delay_s)  # that is what makes it late
        # A sender repeats its commands under a new id; the broker repeats anything, under the same.
        await detour.send_on(delivery, renamed=copy.renamed and delivery.exchange == COMMANDS)
