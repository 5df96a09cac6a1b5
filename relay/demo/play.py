"""What happens in the demo while orders are placed."""

import asyncio
from dataclasses import dataclass
from typing import Final

from relay.demo.chaos import chaos
from relay.demo.child import Say
from relay.demo.load import Shoppers
from relay.demo.stack import Stack
from relay.tasks import end

CHAOS_S: Final = 40.0
"""So long orders are placed while processes are killed."""

DOWN: Final = "inventory"
DOWN_S: Final = 5.0
"""The service that is down for a while, when there is no chaos: longer than an order waits for it."""

DOWN_SHARE: Final = 0.15
"""The share of the orders that are placed meanwhile."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How many orders to place, and the seed of the chaos meanwhile, if there is to be any."""

    orders: int
    chaos_seed: int | None = None


async def play(stack: Stack, plan: Plan, say: Say) -> None:
    """Place the orders of the plan. Raises OrderNotPlaced."""
    async with Shoppers(stack.addresses.services) as shoppers:
        await shoppers.open(plan.orders)
        if plan.chaos_seed is None:
            await _with_one_service_down(stack, shoppers, plan.orders, say)
        else:
            await _in_chaos(stack, shoppers, plan.orders, plan.chaos_seed, say)


async def _with_one_service_down(stack: Stack, shoppers: Shoppers, orders: int, say: Say) -> None:
    meanwhile = round(orders * DOWN_SHARE)
    await shoppers.order(orders - meanwhile)
    if meanwhile:
        say(f"{DOWN} is killed, and stays down for {DOWN_S:.0f} s; {meanwhile} orders are placed meanwhile")
        await stack.kill(DOWN, DOWN_S)
        await shoppers.order(meanwhile)


async def _in_chaos(stack: Stack, shoppers: Shoppers, orders: int, seed: int, say: Say) -> None:
    say(f"killing {', '.join(stack.killable)} at moments of chance; seed {seed}")
    killing = asyncio.ensure_future(chaos(stack.killable, seed, stack.kill))
    try:
        await shoppers.order(orders, over_s=CHAOS_S)
    finally:
        await end(killing)
