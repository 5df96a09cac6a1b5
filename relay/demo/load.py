"""Customers, stock and orders: a shop's day, over HTTP as any client would."""

import asyncio
import random
import uuid
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self

import httpx

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
ATTEMPTS: Final = 40
RETRY_S: Final = 0.5


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
        """Create customers, and put into stock what so many orders need. Raises OrderNotPlaced."""
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
