"""Commands to a queue that comes and goes are parked and replayed, faults all the while."""

import asyncio
from contextlib import suppress
from random import Random

import psycopg
import pytest

from tests.chaos.conftest import Servers
from tests.chaos.operator import Operator
from tests.chaos.pair import RECOVERY_S, Pair
from tests.chaos.plan import Kind, announce, plan
from tests.chaos.storm import FAULTS, SEED, Storm, assert_repeats_excused, timeout_s
from tests.support.database import Database
from tests.support.mailbox import QUEUE_IS_DURABLE_S, mailbox
from tests.support.verdict import assert_delivered
from tests.support.writer import Writers

PARKING_FAULTS = max(len(Kind), FAULTS // 4)
PAUSE_S = 0.1
"""Between the transactions of a writer."""
CALM_MESSAGES = 50
"""How many arrive after the last fault, none of them twice."""

STEADY, FLAKY = "steady", "flaky"
INSERT = (
    "INSERT INTO relay.outbox (kind, aggregate_type, aggregate_id, type, destination, payload)"
    " VALUES ('command', 'account', %s, 'Move', %s, '{}') RETURNING id"
)


class CommandWriters(Writers):
    """Write commands to two destinations, for one aggregate and another."""

    async def _insert(self, connection: psycopg.AsyncConnection, number: int, dice: Random) -> str:
        aggregate = f"{number}-{dice.randrange(self._aggregates)}"
        cursor = await connection.execute(INSERT, (aggregate, dice.choice((STEADY, FLAKY))))
        row = await cursor.fetchone()
        assert row is not None
        return str(row[0])


def committed_by_lane(database: Database) -> list[tuple[str, str]]:
    """Id and lane of every committed message, in insertion order."""
    rows = database.query(
        "SELECT id::text, concat_ws('/', aggregate_id, kind, destination) FROM relay.outbox ORDER BY seq"
    )
    return [(str(message_id), str(lane)) for message_id, lane in rows]


@pytest.mark.timeout(timeout_s(PARKING_FAULTS) + RECOVERY_S)
async def test_what_is_parked_and_replayed_in_a_storm_is_neither_lost_nor_overtaken(servers: Servers) -> None:
    """In one half of it with pipelining, in the other with strict ordering."""
    database, faults = servers.database, plan(SEED, PARKING_FAULTS)
    print(announce(SEED, faults), flush=True)
    url = servers.rabbit.amqp_url()
    async with mailbox(url) as box, Pair(database.dsn, servers.relay_url, "pipelined") as pair:
        steady = Operator(database.dsn, url, STEADY, Random(SEED))
        operator = Operator(database.dsn, url, FLAKY, Random(SEED))
        await steady.bind(there=True)
        storm = Storm(servers.postgres, servers.rabbit, database, box, pair)
        async with CommandWriters(database.dsn, seed=SEED, pause_s=PAUSE_S) as writers:
            await asyncio.sleep(QUEUE_IS_DURABLE_S)
            working = asyncio.create_task(operator.work())
            await storm.rage(faults[: PARKING_FAULTS // 2])
            await storm.switch("strict")
            await storm.rage(faults[PARKING_FAULTS // 2 :])
            working.cancel()
            with suppress(asyncio.CancelledError):
                await working
            await operator.bind(there=True)
            await box.until_count(len(box.deliveries) + CALM_MESSAGES)
        await operator.replay_all()
        committed = committed_by_lane(database)
        with suppress(AssertionError):  # the verdict tells more
            await box.until_ids({message_id for message_id, _ in committed})
    deliveries = box.deliveries
    assert len(committed) >= writers.committed > 0
    assert operator.most_parked > 0
    assert operator.replays > 0
    assert database.value("SELECT count(*) FROM relay.parked") == 0
    assert_delivered(committed, deliveries, writers.rolled_back)
    repeats = assert_repeats_excused(database, deliveries, storm.damages)
    print(
        f"{len(committed)} messages, {repeats} of them again; up to {operator.most_parked} parked,"
        f" {operator.replays} complete replays",
        flush=True,
    )
