"""Customers and orders, placed over HTTP as any client would."""

import asyncio
import random
import uuid
from collections.abc import Mapping
from typing import Final

import httpx

from relay.errors import RelayError

ORDERS_PER_CUSTOMER: Final = 10
LIMIT: Final = "500.00"
LOWEST_CENTS: Final = 500
HIGHEST_CENTS: Final = 12_000
"""With these, about every fifth order goes over its customer's limit."""

STRANGERS_PER_ORDER: Final = 0.02
"""The share of orders from customers that do not exist."""

AT_ONCE: Final = 8
SEED: Final = 20260101
"""The same orders every time."""

ATTEMPTS: Final = 20
RETRY_S: Final = 0.5


class OrderNotPlaced(RelayError):
    """A service did not take a request."""


async def place_orders(services: Mapping[str, str], count: int) -> None:
    """Create customers and place so many orders, a few at once. Raises OrderNotPlaced."""
    dice = random.Random(SEED)
    async with httpx.AsyncClient(timeout=30) as client:
        customers = []
        for number in range(1, max(2, count // ORDERS_PER_CUSTOMER) + 1):
            created = await _post(
                client, f"{services['customers']}/customers", {"name": f"Customer {number}", "credit_limit": LIMIT}
            )
            customers.append(created["customer_id"])
        room = asyncio.Semaphore(AT_ONCE)

        async def place(customer: str, total: str) -> None:
            async with room:
                await _post(client, f"{services['orders']}/orders", {"customer_id": customer, "total": total})

        async with asyncio.TaskGroup() as orders:
            for _ in range(count):
                stranger = dice.random() < STRANGERS_PER_ORDER
                customer = str(uuid.UUID(int=dice.getrandbits(128))) if stranger else dice.choice(customers)
                cents = dice.randint(LOWEST_CENTS, HIGHEST_CENTS)
                orders.create_task(place(customer, f"{cents // 100}.{cents % 100:02}"))


async def _post(client: httpx.AsyncClient, url: str, body: dict[str, str]) -> dict[str, str]:
    """POST, and try again while the service is starting or its database is away."""
    trouble = ""
    for _ in range(ATTEMPTS):
        try:
            answer = await client.post(url, json=body)
        except httpx.TransportError as error:
            trouble = str(error) or type(error).__name__
        else:
            if answer.is_success:
                result: dict[str, str] = answer.json()
                return result
            trouble = f"{answer.status_code} {answer.text}"
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                break
        await asyncio.sleep(RETRY_S)
    raise OrderNotPlaced(f"POST {url}: {trouble}")
