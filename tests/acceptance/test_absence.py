"""Services of the demo are away for a minute: what becomes of the orders that come meanwhile, by the real relay."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from decimal import Decimal
from typing import LiteralString
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest

from relay.demo.access import SERVICES
from relay.demo.audit import audit, undelivered, unsettled
from relay.demo.stack import Stack
from tests.support.logs import last_words
from tests.support.waiting import eventually

AWAY_S = 60.0
BACK_S = 60.0
"""How long everything may take that is waited for: a service that starts, an order that is settled."""

LAMPS = 100

ORDER = "SELECT state FROM orders WHERE id = %s"
CREDIT = "SELECT reserved FROM customers WHERE id = %s"
TOLD = """
    SELECT count(DISTINCT saga.id) FROM relay.saga AS saga JOIN relay.saga_log AS log ON log.saga_id = saga.id
    WHERE log.event = %s AND log.step = %s AND saga.state ->> 'order_id' = ANY(%s) AND (log.detail::jsonb ? 'late') = %s
"""

pytestmark = pytest.mark.timeout(300)


class Shop:
    """The services, for customers who call, and for those who look into the books."""

    def __init__(self, stack: Stack, http: httpx.AsyncClient) -> None:
        self.stack = stack
        self.dsns = stack.addresses.dsns
        self._http = http
        self._urls = stack.addresses.services
        self._left: dict[str, tuple[int, float]] = {}

    async def customer(self, limit: str) -> UUID:
        customer = {"name": "Ada", "credit_limit": limit}
        answer = await self._http.post(f"{self._urls['customers']}/customers", json=customer)
        return UUID(answer.raise_for_status().json()["customer_id"])

    async def stock(self, sku: str, quantity: int) -> None:
        answer = await self._http.put(f"{self._urls['inventory']}/stock/{sku}", json={"quantity": quantity})
        answer.raise_for_status()

    async def order(self, customer: UUID, total: str, lamps: int = 0) -> UUID:
        lines = [{"sku": "lamp", "quantity": lamps}] if lamps else []
        order = {"customer_id": str(customer), "total": total, "lines": lines}
        answer = await self._http.post(f"{self._urls['orders']}/orders", json=order)
        return UUID(answer.raise_for_status().json()["order_id"])

    async def leaves(self, service: str) -> None:
        """It is killed, and stays away for a minute."""
        self._left[service] = self.stack.pids[service], asyncio.get_running_loop().time()
        assert await self.stack.kill(service, AWAY_S)

    async def is_back(self, service: str) -> None:
        """Wait until it has been away for a minute. It has only just been started then."""
        pid, left_at = self._left[service]
        await self.until(lambda: self.stack.pids[service] != pid, AWAY_S + BACK_S)
        assert asyncio.get_running_loop().time() - left_at >= AWAY_S

    async def until(self, check: Callable[[], object], within_s: float = BACK_S) -> None:
        try:
            await eventually(check, within_s)
        except AssertionError as error:
            pytest.fail(f"{error}\n{last_words(self.stack.addresses.config)}")

    def value(self, service: str, query: LiteralString, *parameters: object) -> object:
        """The one value of a query in the database of a service."""
        with psycopg.connect(self.dsns[service]) as connection:
            row = connection.execute(query, parameters).fetchone()
        assert row is not None
        return row[0]

    def states(self, *orders: UUID) -> set[object]:
        """Where these orders stand."""
        return {self.value("orders", ORDER, order) for order in orders}

    def told(self, event: str, step: str, orders: Sequence[UUID], *, late: bool = False) -> bool:
        """Whether the saga of each of these orders has this to tell."""
        ids = [str(order) for order in orders]
        return self.value("orders", TOLD, event, step, ids, late) == len(orders)


@pytest.fixture
async def shop() -> AsyncIterator[Shop]:
    async with Stack(print) as stack, httpx.AsyncClient(timeout=30) as http:
        yield Shop(stack, http)


async def test_inventory_and_customers_are_away_for_a_minute_and_every_order_ends_as_its_saga_says(shop: Shop) -> None:
    """No order waits long for Inventory: it is cancelled. Each is patient with Customers."""
    ada, stranger = await shop.customer("1000.00"), uuid4()
    await shop.stock("lamp", LAMPS)
    first = await shop.order(ada, "10.00", lamps=1)
    await shop.until(lambda: shop.states(first) == {"APPROVED"})

    await shop.leaves("inventory")
    given_up = [await shop.order(ada, "10.00", lamps=2) for _ in range(5)]
    refused = [await shop.order(stranger, "10.00", lamps=2), await shop.order(ada, "1000.00", lamps=2)]
    without_goods = await shop.order(ada, "10.00")
    await shop.until(lambda: shop.states(without_goods) == {"APPROVED"})
    await shop.until(lambda: shop.told("StepCompensated", "reserve_credit", given_up))
    assert shop.value("customers", CREDIT, ada) == Decimal("20.00"), "Inventory is away, and the credit released"
    assert shop.states(*given_up, *refused) == {"PENDING"}, "Inventory may have done its part, and not undone it"

    await shop.leaves("customers")
    patient = [await shop.order(ada, "10.00") for _ in range(3)]
    refused_later = [await shop.order(stranger, "10.00"), await shop.order(ada, "1000.00")]
    without_anybody = [await shop.order(ada, "10.00", lamps=2) for _ in range(4)]

    await shop.is_back("inventory")
    assert shop.states(*patient, *refused_later, *without_anybody) == {"PENDING"}, "Customers are still away"
    await shop.until(lambda: shop.states(*given_up, *refused) == {"CANCELLED"})
    with_goods = [await shop.order(ada, "10.00", lamps=3) for _ in range(2)]

    await shop.is_back("customers")
    await shop.until(lambda: unsettled(shop.dsns["orders"])[0] == undelivered(shop.dsns) == 0)
    assert shop.states(*patient, *with_goods) == {"APPROVED"}
    assert shop.told("StepTimedOut", "reserve_credit", patient), "an attempt had no answer within 30 s"
    cancelled = [*given_up, *without_anybody]
    assert shop.told("StepSucceeded", "reserve_stock", cancelled, late=True), "Inventory did its part after all"
    assert shop.told("StepSucceeded", "reserve_credit", without_anybody, late=True), "and so did Customers"
    sold = 1 + 3 * len(with_goods)
    assert shop.value("inventory", "SELECT available FROM stock WHERE sku = 'lamp'") == LAMPS - sold
    then_it_adds_up(shop, approved=2 + len(patient) + len(with_goods), cancelled=len(cancelled))


def then_it_adds_up(shop: Shop, approved: int, cancelled: int) -> None:
    """By the audit of the demo; and nothing lies about."""
    found = audit(shop.dsns)
    assert found.ok, found.invariants
    assert {(state, reason): count for state, reason, count in found.outcomes} == {
        ("APPROVED", None): approved,
        ("CANCELLED", "no answer in time"): cancelled,
        ("CANCELLED", "unknown customer"): 2,
        ("CANCELLED", "credit limit exceeded"): 2,
    }
    assert shop.stack.kills == {"customers": 1, "inventory": 1}
    put_off = {service: shop.value(service, "SELECT count(*) FROM relay.deferred") for service in SERVICES}
    assert put_off == dict.fromkeys(SERVICES, 0)
