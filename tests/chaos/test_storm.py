"""Faults of every kind, in an order that a seed decides: nothing is lost, nothing made up, and order is kept.

`make chaos FAULTS=200 SEED=…` plays a long plan; without these a short one is played, with every kind in it.
"""

import asyncio
from contextlib import suppress

import pytest

from tests.chaos.conftest import Servers
from tests.chaos.pair import Pair
from tests.chaos.plan import announce, plan
from tests.chaos.storm import FAULTS, SEED, Storm, assert_repeats_excused, timeout_s
from tests.support.mailbox import QUEUE_IS_DURABLE_S, mailbox
from tests.support.verdict import assert_delivered, committed_messages
from tests.support.writer import Writers

PAUSE_S = 0.05
"""Between the transactions of a writer."""
CALM_MESSAGES = 200
"""How many arrive after the last fault, none of them twice."""


@pytest.mark.timeout(timeout_s(FAULTS))
async def test_a_storm_of_faults_loses_nothing_and_keeps_the_order(servers: Servers) -> None:
    """In one half of it with pipelining, in the other with strict ordering."""
    database, faults = servers.database, plan(SEED, FAULTS)
    print(announce(SEED, faults), flush=True)
    async with mailbox(servers.rabbit.amqp_url()) as box, Pair(database.dsn, servers.relay_url, "pipelined") as pair:
        storm = Storm(servers.postgres, servers.rabbit, database, box, pair)
        async with Writers(database.dsn, seed=SEED, pause_s=PAUSE_S) as writers:
            await asyncio.sleep(QUEUE_IS_DURABLE_S)
            await storm.rage(faults[: FAULTS // 2])
            await storm.switch("strict")
            await storm.rage(faults[FAULTS // 2 :])
            await box.until_count(len(box.deliveries) + CALM_MESSAGES)
        committed = committed_messages(database)
        with suppress(AssertionError):  # the verdict tells more
            await box.until_ids({message_id for message_id, _ in committed})
    deliveries = box.deliveries
    assert len(committed) >= writers.committed > 0
    assert_delivered(committed, deliveries, writers.rolled_back)
    repeats = assert_repeats_excused(database, deliveries, storm.damages)
    print(f"{len(committed)} messages, {repeats} of them again; {storm.cuts_inside} cuts inside frames", flush=True)
