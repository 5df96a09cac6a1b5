"""The order of the queues behind a hash exchange, which decides which aggregates each of them gets.

With Khepri, RabbitMQ keeps that order on disk. With Mnesia it keeps it in memory: when the whole broker starts again,
it makes the order anew, as its workers come to the bindings, and aggregates move to other queues, while messages of
theirs wait in the old ones. So whoever publishes restores the order before it does. A transient exchange, which such a
start removes too, says that the order is as it should be.

Source: rabbit_exchange_type_consistent_hash and rabbit_binding (recover) of RabbitMQ 3.10; found by trying.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from relay.broker.connection import Channel, Connection
from relay.broker.layout import Binding, Exchange, Partitioned
from relay.broker.topology import bind, declare_exchange, unbind
from relay.errors import BrokerAway, BrokerError

LOCK_RETRY_S: Final = 0.2
LOCK_TRIES: Final = 150
"""Restoring an order takes a moment for each queue. Who waits for longer than half a minute connects anew."""


class PartitionsDiffer(BrokerError):
    """The partitions of a group are not those that are configured, and nobody has applied the change."""

    hint = "Stop every relay, let the consumers empty the partitions, and run `relay topology apply`: docs/topology.md."


async def ensure_rings(connection: Connection, groups: Iterable[Partitioned]) -> None:
    """Put the queues of each group into the order of their numbers, if that may have been lost.

    Nobody may publish to a group meanwhile; of several relays that come at once, one does it and the others wait. A
    group that is not there yet is left out. Raises PartitionsDiffer, or another BrokerError.
    """
    for group in groups:
        await _ensure(connection, group)


async def arrange(channel: Channel, group: Partitioned, unbound: Iterable[Binding]) -> None:
    """Bind the queues in their order, after these bindings are gone, and mark it as done.

    The first queue stays bound meanwhile, if it is not among them, so that no message finds nobody.
    """
    for binding in unbound:
        await unbind(channel, binding)
    for binding in group.ring:
        await bind(channel, binding)
    await declare_exchange(channel, Exchange(group.marker, "fanout", durable=False))


async def _ensure(connection: Connection, group: Partitioned) -> None:
    for _ in range(LOCK_TRIES):
        if not await _is_exchange(connection, group.name) or await _is_exchange(connection, group.marker):
            return
        channel = await connection.channel()
        if await _take(channel, connection, group.lock):
            break
        await asyncio.sleep(LOCK_RETRY_S)
    else:
        raise BrokerAway(f"RabbitMQ at {connection.where}: another relay keeps the queue {group.lock}")
    try:
        if not await _is_exchange(connection, group.marker):  # somebody may have been here just before
            await _refuse_others(connection, group)
            await arrange(channel, group, group.ring[1:])
    finally:
        if not channel.closed.done():
            await channel.call(channel.raw.queue_delete, group.lock)
            channel.raw.close()


async def _take(channel: Channel, connection: Connection, lock: str) -> bool:
    """Whether this connection is the one that has the queue for itself."""
    try:
        await channel.call(channel.raw.queue_declare, lock, exclusive=True)
    except BrokerAway:
        if connection.closed.done():
            raise
        return False
    return True


async def _refuse_others(connection: Connection, group: Partitioned) -> None:
    """Raise PartitionsDiffer unless there are the queues of this number of partitions, and not one more."""
    following = Partitioned(group.name, group.partitions + 1).queues
    there = [queue for queue in following if await _is_queue(connection, queue)]
    if tuple(there) != group.queues:
        raise PartitionsDiffer(
            f"{group.name} should have {group.partitions} partitions; of these and one more there are:"
            f" {', '.join(there) or 'none'}"
        )


async def _is_exchange(connection: Connection, name: str) -> bool:
    channel = await connection.channel()
    return await _exists(connection, channel, channel.raw.exchange_declare, name)


async def _is_queue(connection: Connection, name: str) -> bool:
    channel = await connection.channel()
    return await _exists(connection, channel, channel.raw.queue_declare, name)


async def _exists(connection: Connection, channel: Channel, declare: Callable[..., object], name: str) -> bool:
    """Whether a passive declaration finds something. When it does not, RabbitMQ closes the channel, and that alone."""
    try:
        await channel.call(declare, name, passive=True)
    except BrokerAway:
        if connection.closed.done():
            raise
        return False
    channel.raw.close()
    return True
