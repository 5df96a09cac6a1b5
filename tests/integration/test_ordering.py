"""Order and nothing lost, in both orderings, when everything goes well and when a queue refuses."""

import asyncio

import pytest

from tests.conftest import VirtualHost
from tests.support.database import Database
from tests.support.mailbox import Mailbox, mailbox
from tests.support.process import RelayProcess
from tests.support.verdict import assert_delivered, committed_messages
from tests.support.waiting import eventually
from tests.support.writer import Writers

TIGHT = {"x-max-length": 1, "x-overflow": "reject-publish"}
"""A queue that refuses what comes while a message waits in it. Its consumer takes them one by one."""

ENOUGH = 1500
"""Messages: several seconds of three writers."""


async def everything_arrives(database: Database, box: Mailbox, writers: Writers) -> None:
    committed = committed_messages(database)
    deliveries = await box.until_ids({message_id for message_id, _ in committed})
    assert_delivered(committed, deliveries, writers.rolled_back)


async def write(writers: Writers) -> None:
    async with writers:
        await eventually(lambda: writers.committed >= ENOUGH, within_s=60)


@pytest.mark.parametrize("ordering", ["pipelined", "strict"])
async def test_everything_arrives_once_and_each_aggregate_in_order(
    database: Database, vhost: VirtualHost, ordering: str
) -> None:
    writers = Writers(database.dsn, seed=1, pause_s=0)
    async with mailbox(vhost.url) as box, RelayProcess(database.dsn, vhost.url, SOURCE__0__ORDERING=ordering) as relay:
        await relay.until("streaming")
        await write(writers)
        await everything_arrives(database, box, writers)
        assert await relay.end() == 0
    assert len(box.deliveries) == writers.committed, "nothing arrives twice when nothing goes wrong"


async def test_strict_order_holds_when_a_queue_refuses_messages(database: Database, vhost: VirtualHost) -> None:
    """The queue is full again and again: what it refuses is tried again, and nothing of its aggregate overtakes it."""
    writers = Writers(database.dsn, seed=2, pause_s=0)
    async with (
        mailbox(vhost.url, "tight", prefetch=1, arguments=TIGHT) as box,
        RelayProcess(database.dsn, vhost.url, SOURCE__0__ORDERING="strict") as relay,
    ):
        await relay.until("streaming")
        await write(writers)
        await everything_arrives(database, box, writers)
        assert relay.said("refused"), "the queue never refused anything: this proves nothing"
        assert await relay.end() == 0


async def test_pipelined_loses_nothing_when_a_queue_refuses_messages(database: Database, vhost: VirtualHost) -> None:
    """Order is not promised here: what had already left may arrive before what was refused."""
    writers = Writers(database.dsn, seed=3, pause_s=0)
    async with (
        mailbox(vhost.url, "tight", prefetch=1, arguments=TIGHT) as box,
        RelayProcess(database.dsn, vhost.url) as relay,
    ):
        await relay.until("streaming")
        await write(writers)
        committed = {message_id for message_id, _ in committed_messages(database)}
        deliveries = await box.until_ids(committed)
        assert relay.said("refused"), "the queue never refused anything: this proves nothing"
        assert {str(delivery.properties.message_id) for delivery in deliveries} == committed
        await asyncio.gather(relay.end(), eventually(lambda: not database.query("SELECT FROM relay.parked")))
