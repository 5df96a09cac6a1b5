"""Makes what is missing in the broker. It changes nothing that is there, except for the number of partitions."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from relay.broker.connection import Channel, Connection
from relay.broker.layout import Binding, Change, Difference, Exchange, Queue, Resize, Wanted
from relay.broker.management import Management
from relay.broker.ring import arrange
from relay.broker.topology import bind, declare_exchange, declare_queue
from relay.errors import RelayError

COUNTERS_LAG_S: Final = 12.0
"""After so long the broker's counters know of every message that was there at the beginning: it counts a quorum queue
every five seconds, and the management API collects that every five seconds."""

RELAY_CONNECTIONS: Final = "saga-relay "
"""What the name of a relay's connection begins with; that of its source follows."""


class CannotApply(RelayError):
    """Something is there, and otherwise than it should be. Nothing was changed."""


class PartitionsInUse(RelayError):
    """The number of partitions cannot change now. Nothing was changed."""

    hint = (
        "Stop the relay, which leaves new messages in PostgreSQL; wait until the consumers have emptied the partitions;"
        " apply again. docs/topology.md tells why."
    )


class Builder:
    """Applies differences over one connection. `say` is told what is being done that takes time or is left undone."""

    def __init__(
        self,
        connection: Connection,
        management: Management,
        say: Callable[[str], None],
        *,
        counters_lag_s: float = COUNTERS_LAG_S,
    ) -> None:
        self._connection = connection
        self._management = management
        self._say = say
        self._counters_lag_s = counters_lag_s

    async def apply(self, wanted: Wanted, differences: Sequence[Difference]) -> None:
        """Make what is missing, and resize what is to be resized; what is more than wanted stays.

        It may be repeated, also after it was interrupted. Raises CannotApply or PartitionsInUse before anything is
        changed, another BrokerError when RabbitMQ refuses or goes away in between.
        """
        refuse_what_is_wrong(differences)
        channel = await self._connection.channel()
        resizes = [each.subject for each in differences if isinstance(each.subject, Resize)]
        if resizes:
            await self._expect_quiet(channel, resizes)
        bindings = [each.subject for each in differences if isinstance(each.subject, Binding)]
        created = [group for group in wanted.partitioned if group.ring[0] in bindings]
        for difference in differences:
            match difference.subject:
                case Exchange() as exchange:
                    await declare_exchange(channel, exchange)
                case Queue() as queue:
                    await declare_queue(channel, queue)
        for resize in resizes:
            await self._resize(channel, resize)
        for group in created:
            await arrange(channel, group, ())
        for binding in bindings:
            await bind(channel, binding)

    async def _resize(self, channel: Channel, resize: Resize) -> None:
        """Change the ring, and delete the queues that are out of it."""
        if resize.is_remapped:
            await arrange(channel, resize.group, resize.unbind)
        for queue in resize.surplus:
            ready, consumers = await _ask(channel, queue)
            if ready or consumers:
                self._say(
                    f"the queue {queue} is out of use and stays, with {ready} messages and {consumers} consumers:"
                    " end those and apply again"
                )
            else:  # a quorum queue does not know if-unused and if-empty, so this is looked at before
                await channel.call(channel.raw.queue_delete, queue)

    async def _expect_quiet(self, channel: Channel, resizes: Iterable[Resize]) -> None:
        """Raise PartitionsInUse while a relay publishes, or a partition holds a message, answered or not.

        What is ready RabbitMQ tells at once, what a consumer holds with a delay. Nothing new comes in while the relay
        is stopped, so a partition that was empty when it was counted remains so.
        """
        queues = [queue for resize in resizes for queue in resize.in_question]
        self._refuse_relays(await asyncio.to_thread(self._management.connections))
        await _refuse_messages(channel, queues)
        if queues:
            self._say(f"looking for {self._counters_lag_s:g} s whether a consumer still holds messages")
            await asyncio.sleep(self._counters_lag_s)
        totals = await asyncio.to_thread(self._management.totals, queues)
        unknown = [queue for queue, total in totals.items() if total is None]
        if unknown:
            raise PartitionsInUse(
                f"RabbitMQ does not say how many messages {', '.join(unknown)} hold",
                "Is the collection of metrics switched off on the broker? It is needed while partitions are resized.",
            )
        _refuse(totals)
        await _refuse_messages(channel, queues)
        self._refuse_relays(await asyncio.to_thread(self._management.connections))

    def _refuse_relays(self, connections: Iterable[str]) -> None:
        relays = [name for name in connections if name.startswith(RELAY_CONNECTIONS)]
        if relays:
            raise PartitionsInUse(f"the relay publishes just now: {', '.join(relays)}")


def refuse_what_is_wrong(differences: Iterable[Difference]) -> None:
    """Raise CannotApply when something is there, and otherwise than it should be."""
    wrong = [difference for difference in differences if difference.change is Change.WRONG]
    if wrong:
        lines = (f"\n  {each.thing} {each.name}: {each.detail}" for each in wrong)
        hints = dict.fromkeys(each.hint for each in wrong)
        raise CannotApply(f"nothing was changed, because of what is there:{''.join(lines)}", "\n  ".join(hints))


async def _refuse_messages(channel: Channel, queues: Iterable[str]) -> None:
    _refuse({queue: (await _ask(channel, queue))[0] for queue in queues})


def _refuse(counts: dict[str, int] | dict[str, int | None]) -> None:
    holding = [f"{queue} ({count})" for queue, count in counts.items() if count]
    if holding:
        raise PartitionsInUse(f"partitions hold messages: {', '.join(holding)}")


async def _ask(channel: Channel, queue: str) -> tuple[int, int]:
    """How many messages are ready in a queue, and how many consumers it has, as of now."""
    answer = (await channel.call(channel.raw.queue_declare, queue, passive=True)).method
    return int(answer.message_count), int(answer.consumer_count)
