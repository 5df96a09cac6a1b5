"""Hundreds of sagas, and everything at once: refusals, exceptions, repeats, disorder, aborts and kills.

`CHAOS_SEED=7 CHAOS_SAGAS=500 pytest tests/chaos/test_saga_storm.py -s` plays a certain plan; without a seed it takes
any, and prints it. The seed decides who fails how, what is repeated and delayed, and who is killed in which order; the
moments are the machine's.
"""

import asyncio
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from random import Random
from typing import Final

import pytest
import pytest_asyncio

from relay.broker.properties import Delivery
from tests.acceptance.saga_world.agency import Journey
from tests.acceptance.saga_world.contracts import (
    BookBed,
    BookRoom,
    BookSeat,
    CancelBed,
    CancelRoom,
    CancelSeat,
    IssueTicket,
    ReserveMoney,
    ReturnMoney,
)
from tests.acceptance.saga_world.detour import Copy, Scatter
from tests.acceptance.saga_world.plans import How
from tests.acceptance.saga_world.stage import AGENCY, NAMES, Servers
from tests.acceptance.saga_world.verdict import assert_adds_up
from tests.acceptance.saga_world.world import World
from tests.support.servers import PostgresServer, RabbitServer

SAGAS: Final = int(os.environ.get("CHAOS_SAGAS") or 200)
SEED: Final = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(1_000_000))

BETWEEN_STARTS_S: Final = 0.08
BETWEEN_KILLS_S: Final = (0.5, 2.0)
AWAY_S: Final = (0.0, 1.5)
SETTLE_S: Final = 120.0
"""How long the last saga may take after the last fault."""

ATTEMPTS: Final = 50
"""Of a supplier, at a message. A kill counts as one."""

FAILS: Final = 0.12
ABORTED: Final = 0.05
REPEATED: Final = 0.3
LATE: Final = 0.2
MOST_LATE_S: Final = 1.5

Failing = tuple[tuple[str, type[object] | str], ...]
"""Whose handler of what fails."""

FLIGHTS: Final = {"LH1": SAGAS, "LH2": SAGAS // 5}
HOTELS: Final = {"Ritz": SAGAS // 4, "Savoy": SAGAS}
HOSTELS: Final = {"Y": SAGAS // 10}
TRAVELLERS: Final = {f"t{number}": 100 * SAGAS // 25 for number in range(10)}
"""What there is. Some of it is sold out in the end, and some travellers run out of money."""

ACTIONS: Final[Failing] = (
    ("flights", BookSeat),
    ("hotel", BookRoom),
    ("hotel", BookBed),
    ("bank", ReserveMoney),
    ("agency", "confirm"),
)
UNDOING: Final[Failing] = (
    ("flights", CancelSeat),
    ("hotel", CancelRoom),
    ("hotel", CancelBed),
    ("bank", ReturnMoney),
    ("agency", "close_file"),
    ("flights", IssueTicket),
)
"""These have to succeed in the end, so they fail more often."""

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120 + SAGAS)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(
    postgres: PostgresServer, rabbit: RabbitServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    servers = Servers.furnish(postgres, rabbit)
    async with World(servers, tmp_path_factory.mktemp("world"), agencies=3, attempts=ATTEMPTS) as world:
        yield world


def journey(world: World, dice: Random) -> Journey:
    """A journey, and what will go wrong with it."""
    made = world.journey(
        traveller=dice.choice([*TRAVELLERS]),
        flight=dice.choice([*FLIGHTS]),
        hotel=dice.choice([*HOTELS, None]),
        price=dice.randint(50, 150),
    )
    for where, what in ACTIONS:
        if dice.random() < FAILS:
            world.plan(where, made, what, dice.choice([How.REFUSE, How.BUSY, How.RAISE]), dice.randint(1, 3))
    for where, what in UNDOING:
        if dice.random() < 2 * FAILS:
            world.plan(where, made, what, dice.choice([How.REFUSE, How.BUSY, How.RAISE]), dice.randint(1, 4))
    return made


def copies(dice: Random, _: Delivery) -> Sequence[Copy]:
    """Most messages arrive once and at once."""

    def delay_s() -> float:
        return dice.uniform(0, MOST_LATE_S) if dice.random() < LATE else 0.0

    repeats = dice.choice([1, 1, 2]) if dice.random() < REPEATED else 0
    return [Copy(delay_s()), *(Copy(delay_s(), dice.random() < 0.5) for _ in range(repeats))]


async def kill(world: World, dice: Random, kills: "Counter[str]", enough: asyncio.Event) -> None:
    """Kill one after the other, and start it again."""
    while not enough.is_set():
        await asyncio.sleep(dice.uniform(*BETWEEN_KILLS_S))  # part of the plan
        name = dice.choice([*world.runners])
        await world.runners[name].kill()
        kills[name] += 1
        await asyncio.sleep(dice.uniform(*AWAY_S))  # part of the plan
        await world.restart(name)


async def test_a_storm_of_sagas_leaves_everything_done_or_undone(world: World) -> None:
    print(f"seed {SEED}, {SAGAS} sagas", flush=True)
    dice = Random(SEED)
    for supplier, offers in (("flights", FLIGHTS), ("hotel", HOTELS | HOSTELS), ("bank", TRAVELLERS)):
        for what, capacity in offers.items():
            world.offer(supplier, what, capacity)
    enough, kills = asyncio.Event(), Counter[str]()
    async with Scatter(world.servers, NAMES, copies, SEED) as scatter:
        killing = asyncio.create_task(kill(world, Random(f"{SEED} kills"), kills, enough))
        for _ in range(SAGAS):
            await world.start("stormy", journey(world, dice))
            if dice.random() < ABORTED:
                await world.abort(dice.choice(world.trips))
            await asyncio.sleep(BETWEEN_STARTS_S)  # the pace of the customers
        enough.set()
        await killing
    await world.until_all_end(within_s=SETTLE_S)
    ends = await assert_adds_up(world)
    timed_out = world.databases[AGENCY].value("SELECT count(*) FROM relay.saga_log WHERE event = 'StepTimedOut'")
    print(f"{dict(ends)}; {scatter.repeats} repeats, {timed_out} timeouts, killed: {dict(kills)}", flush=True)
    assert ends.keys() == {"COMPLETED", "COMPENSATED"}
    assert kills
