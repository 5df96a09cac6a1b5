"""Customers, stock and orders: a shop's day, over HTTP as any client would.

`python -m relay.demo.load` places orders for ever, or so many.
"""

import asyncio
import random
import signal
import uuid
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self

import click
import httpx

from relay.demo.access import SERVICES
from relay.demo.program import run
from relay.errors import RelayError

ORDERS_PER_CUSTOMER: Final = 10
LIMIT: Final = "500.00"
LOWEST_CENTS: Final = 500
HIGHEST_CENTS: Final = 12_000
"""With these, about every fifth order goes over its customer's limit."""

STRANGERS_PER_ORDER: Final = 0.02
"""The share of orders from customers that do not exist."""

LINES_PER_ORDER: Final = (0, 0, 1, 2)
"""Half of the orders say nothing of goods, which the service allows."""

HIGHEST_QUANTITY: Final = 3

PLENTY: Final = ("chair", "lamp", "table")
RARE: Final = "clock"
RARE_PER_ORDER: Final = 0.1
"""Stock for so many of the rare thing: not enough for all that ask for it."""

AT_ONCE: Final = 8
SEED: Final = 20260130
"""The same orders every time."""

REQUEST_S: Final = 30.0
ATTEMPTS: Final = 120
RETRY_S: Final = 0.5
"""A minute: on a busy machine a service that `--chaos` kills every few seconds may not be up before that ends."""

ROUND: Final = 100
"""After so many orders, whoever places them for ever wants new customers and full shelves: the old ones are used up."""

PER_S: Final = 5.0
"""How many orders come in a second, unless it is told otherwise."""


class OrderNotPlaced(RelayError):
    """A service did not take a request."""


class Shoppers:
    """Those who place the orders. Use it as an async context manager, and `open` before the first order."""

    def __init__(self, services: Mapping[str, str]) -> None:
        self._services = services
        self._client = httpx.AsyncClient(timeout=REQUEST_S)
        self._dice = random.Random(SEED)
        self._room = asyncio.Semaphore(AT_ONCE)
        self._customers: list[str] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def open(self, orders: int) -> None:
        """Create customers, who take the place of those before, and put into stock what so many orders need.

        Raises OrderNotPlaced.
        """
        self._customers.clear()
        stock = f"{self._services['inventory']}/stock"
        enough = max(1, orders * HIGHEST_QUANTITY)
        for sku, quantity in {**dict.fromkeys(PLENTY, enough), RARE: max(1, round(orders * RARE_PER_ORDER))}.items():
            await self._request("PUT", f"{stock}/{sku}", {"quantity": quantity})
        for number in range(1, max(2, orders // ORDERS_PER_CUSTOMER) + 1):
            new = {"name": f"Customer {number}", "credit_limit": LIMIT}
            created = await self._request("POST", f"{self._services['customers']}/customers", new)
            self._customers.append(created["customer_id"])

    async def order(self, count: int, over_s: float = 0.0) -> None:
        """Place so many orders, a few at once, spread evenly over so many seconds. Raises OrderNotPlaced."""
        try:
            async with asyncio.TaskGroup() as placing:
                for number in range(count):
                    placing.create_task(self._place(self._new_order(), number * over_s / count))
        except* OrderNotPlaced as refused:
            raise refused.exceptions[0] from None

    async def _place(self, order: dict[str, object], after_s: float) -> None:
        await asyncio.sleep(after_s)
        async with self._room:
            await self._request("POST", f"{self._services['orders']}/orders", order)

    def _new_order(self) -> dict[str, object]:
        dice = self._dice
        stranger = dice.random() < STRANGERS_PER_ORDER
        customer = str(uuid.UUID(int=dice.getrandbits(128))) if stranger else dice.choice(self._customers)
        cents = dice.randint(LOWEST_CENTS, HIGHEST_CENTS)
        skus = dice.sample((*PLENTY, RARE), dice.choice(LINES_PER_ORDER))
        lines = [{"sku": sku, "quantity": dice.randint(1, HIGHEST_QUANTITY)} for sku in skus]
        return {"customer_id": customer, "total": f"{cents // 100}.{cents % 100:02}", "lines": lines}

    async def _request(self, method: str, url: str, body: Mapping[str, object]) -> dict[str, Any]:
        """Send it, and again while the service is starting or its database is away."""
        trouble = ""
        for _ in range(ATTEMPTS):
            try:
                answer = await self._client.request(method, url, json=body)
            except httpx.TransportError as error:
                trouble = str(error) or type(error).__name__
            else:
                if answer.is_success:
                    result: dict[str, Any] = answer.json()
                    return result
                trouble = f"{answer.status_code} {answer.text}"
                if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                    break
            await asyncio.sleep(RETRY_S)
        raise OrderNotPlaced(f"{method} {url}: {trouble}")


async def place_orders(services: Mapping[str, str], count: int, over_s: float = 0.0) -> None:
    """Open the shop, and place so many orders, spread evenly over so many seconds. Raises OrderNotPlaced."""
    async with Shoppers(services) as shoppers:
        await shoppers.open(count)
        await shoppers.order(count, over_s)


async def trade(services: Mapping[str, str], per_s: float, count: int | None) -> int:
    """Place orders at this rate, for ever or so many, until SIGTERM. Returns how many. Raises OrderNotPlaced."""
    placed = 0
    async with Shoppers(services) as shoppers:
        while count is None or placed < count:
            await shoppers.open(ROUND)
            orders = ROUND if count is None else min(ROUND, count - placed)
            await shoppers.order(orders, over_s=orders / per_s)
            placed += orders
            click.echo(f"{placed} orders are placed")
    return placed


async def _until_sigterm(services: Mapping[str, str], per_s: float, count: int | None) -> None:
    """Being told to stop is how trading for ever ends, not a failure."""
    trading = asyncio.ensure_future(trade(services, per_s, count))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, trading.cancel)
    try:
        await trading
    except asyncio.CancelledError:
        click.echo("stopped")


@click.command()
@click.option(
    "--per-second",
    type=click.FloatRange(min=0, min_open=True),
    default=PER_S,
    show_default=True,
    envvar="LOAD_PER_SECOND",
    show_envvar=True,
    help="How many orders to place in a second.",
)
@click.option(
    "--orders",
    type=click.IntRange(min=1),
    envvar="LOAD_ORDERS",
    show_envvar=True,
    help="How many orders to place; without it, for ever.",
)
@click.option(
    "--url",
    metavar="URL",
    default="http://{service}:8000",
    show_default=True,
    envvar="LOAD_URL",
    show_envvar=True,
    help="Where the services are, with {service} for their names.",
)
def load(per_second: float, orders: int | None, url: str) -> None:
    """Create customers, fill the shelves and place orders, until SIGTERM."""
    services = {name: url.replace("{service}", name) for name in SERVICES}
    asyncio.run(_until_sigterm(services, per_second, orders))


if __name__ == "__main__":
    run(load)
