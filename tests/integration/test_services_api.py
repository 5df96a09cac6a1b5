"""The services as their users meet them: over HTTP, and as processes."""

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from signal import SIGINT, SIGKILL, SIGTERM, Signals
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
from fastapi import APIRouter
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

import services.customers
import services.inventory
import services.orders
from relay.messaging import Pool, Reply, Transaction
from services.contracts import (
    CreditLimitExceeded,
    CreditReserved,
    CustomerUnknown,
    Line,
    OutOfStock,
    ReleaseCredit,
    ReserveCredit,
    ReserveStock,
    StockReserved,
)
from services.customers.api import CustomersApi
from services.customers.credit import release_credit, reserve_credit
from services.http import create_app
from services.inventory.api import InventoryApi
from services.inventory.reservations import reserve_stock
from services.orders.api import OrdersApi
from tests.conftest import VirtualHost
from tests.support.courier import Courier
from tests.support.database import Database
from tests.support.link import Link
from tests.support.waiting import eventually

WAIT_S = 30.0

WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"

RESERVE_LAMPS = """
    WITH reservation AS (INSERT INTO stock_reservations (order_id, sku, quantity) VALUES (%s, 'lamp', %s)
                         RETURNING quantity)
    UPDATE stock SET available = available - quantity FROM reservation WHERE sku = 'lamp'
"""

UNFINISHED = "SELECT count(*) FROM relay.saga WHERE status NOT IN ('COMPLETED', 'COMPENSATED')"

Api = Callable[[Pool], APIRouter]


@asynccontextmanager
async def client(dsn: str, api: Api) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an API that runs in the test."""
    pool: Pool = AsyncConnectionPool[AsyncConnection[TupleRow]](
        dsn, open=False, min_size=1, timeout=1, reconnect_timeout=1
    )
    async with pool:
        transport = httpx.ASGITransport(create_app("test", pool, api(pool)))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            yield http


@pytest.fixture
def customers_database(make_database: Callable[..., Database]) -> Database:
    return make_database("customers")


@pytest.fixture
def orders_database(make_database: Callable[..., Database]) -> Database:
    return make_database("orders")


@pytest.fixture
def inventory_database(make_database: Callable[..., Database]) -> Database:
    return make_database("inventory")


@pytest.fixture
async def customers(customers_database: Database) -> AsyncIterator[httpx.AsyncClient]:
    async with client(customers_database.role_dsn("customers"), lambda pool: CustomersApi(pool).router) as http:
        yield http


@pytest.fixture
async def orders(orders_database: Database) -> AsyncIterator[httpx.AsyncClient]:
    async with client(orders_database.role_dsn("orders"), lambda pool: OrdersApi(pool).router) as http:
        yield http


@pytest.fixture
async def inventory(inventory_database: Database) -> AsyncIterator[httpx.AsyncClient]:
    async with client(inventory_database.role_dsn("inventory"), lambda pool: InventoryApi(pool).router) as http:
        yield http


def then_refused(answer: httpx.Response, field: str) -> None:
    assert answer.status_code == 422, answer.text
    assert field in [detail["loc"][-1] for detail in answer.json()["detail"]]


async def test_a_customer_is_created_and_read(customers: httpx.AsyncClient) -> None:
    created = await customers.post("/customers", json={"name": " Ada ", "credit_limit": "100"})
    assert created.status_code == 201
    customer_id = created.json()["customer_id"]

    found = await customers.get(f"/customers/{customer_id}")

    assert found.status_code == 200
    assert found.json() == {
        "customer_id": str(UUID(customer_id)),
        "name": "Ada",
        "credit_limit": "100.00",
        "reserved": "0.00",
    }


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("name", {"credit_limit": "1.00"}),
        ("name", {"name": "", "credit_limit": "1.00"}),
        ("name", {"name": " \t ", "credit_limit": "1.00"}),
        ("name", {"name": "A\x00da", "credit_limit": "1.00"}),
        ("name", {"name": "\ud800", "credit_limit": "1.00"}),
        ("name", {"name": "A" * 201, "credit_limit": "1.00"}),
        ("name", {"name": 7, "credit_limit": "1.00"}),
        ("credit_limit", {"name": "Ada"}),
        ("credit_limit", {"name": "Ada", "credit_limit": "-1.00"}),
        ("credit_limit", {"name": "Ada", "credit_limit": "1.001"}),
        ("credit_limit", {"name": "Ada", "credit_limit": "10000000000.00"}),
        ("credit_limit", {"name": "Ada", "credit_limit": 100}),
        ("credit_limit", {"name": "Ada", "credit_limit": 100.5}),
        ("credit_limit", {"name": "Ada", "credit_limit": float("nan")}),
        ("credit_limit", {"name": "Ada", "credit_limit": float("inf")}),
        ("limit", {"name": "Ada", "credit_limit": "1.00", "limit": "2.00"}),
        ("body", None),
    ],
    ids=lambda value: ascii(value)[:50],
)
async def test_a_wrong_customer_is_refused_with_the_field_named(
    customers: httpx.AsyncClient, field: str, body: dict[str, Any] | None
) -> None:
    # httpx would refuse to send NaN, which a careless client does send.
    content = None if body is None else json.dumps(body).encode()
    answer = await customers.post("/customers", content=content, headers={"content-type": "application/json"})
    then_refused(answer, field)


@pytest.mark.parametrize("body", [b"{", b"\xff", b"[" * 100_000, b'{"name": ' + b"9" * 5000 + b"}"])
async def test_a_body_that_is_no_json_is_the_client_s_mistake(customers: httpx.AsyncClient, body: bytes) -> None:
    answer = await customers.post("/customers", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)


@pytest.mark.parametrize("limit", ["0.00", "9999999999.99"])
async def test_every_limit_that_can_be_is_exact(customers: httpx.AsyncClient, limit: str) -> None:
    created = await customers.post("/customers", json={"name": "Ada", "credit_limit": limit})
    found = await customers.get(f"/customers/{created.json()['customer_id']}")
    assert found.json()["credit_limit"] == limit


async def test_an_unknown_customer_is_not_found(customers: httpx.AsyncClient) -> None:
    assert (await customers.get(f"/customers/{uuid4()}")).status_code == 404


async def test_an_id_that_is_no_uuid_is_refused(customers: httpx.AsyncClient, orders: httpx.AsyncClient) -> None:
    then_refused(await customers.get("/customers/7"), "customer_id")
    then_refused(await orders.get("/orders/7"), "order_id")
    then_refused(await orders.get("/orders?customer_id=7"), "customer_id")


async def test_an_order_is_placed_with_the_first_command_of_its_saga(
    orders: httpx.AsyncClient, orders_database: Database
) -> None:
    customer_id = str(uuid4())

    placed = await orders.post("/orders", json={"customer_id": customer_id, "total": "25.5"})

    order_id = placed.json()["order_id"]
    assert placed.status_code == 202
    assert placed.json() == {"order_id": str(UUID(order_id)), "state": "PENDING"}
    assert placed.headers["location"] == f"/orders/{order_id}"
    found = await orders.get(placed.headers["location"])
    assert found.json() == {
        "order_id": order_id,
        "state": "PENDING",
        "reason": None,
        "total": "25.50",
        "customer_id": customer_id,
        "lines": [],
    }
    ((payload, destination, reply_to),) = orders_database.query(
        "SELECT payload, destination, reply_to FROM relay.outbox"
    )
    assert payload == {"order_id": order_id, "customer_id": customer_id, "amount": "25.50"}
    assert (destination, reply_to) == ("customers", "orders")
    assert orders_database.value("SELECT state ->> 'order_id' FROM relay.saga") == order_id


@pytest.mark.parametrize("table", ["relay.outbox", "relay.saga", "relay.saga_log", "order_lines"])
async def test_an_order_is_placed_as_a_whole_or_not_at_all(
    orders: httpx.AsyncClient, orders_database: Database, table: str
) -> None:
    orders_database.query(f"REVOKE INSERT ON {table} FROM orders")
    order = {"customer_id": str(uuid4()), "total": "25.50", "lines": [{"sku": "lamp", "quantity": 1}]}

    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        await orders.post("/orders", json=order)

    for name in ("orders", "relay.outbox", "relay.saga"):
        assert orders_database.value(f"SELECT count(*) FROM {name}") == 0


async def test_an_order_may_say_what_is_ordered(orders: httpx.AsyncClient, orders_database: Database) -> None:
    lines = [{"sku": "lamp", "quantity": 2}, {"sku": "chair", "quantity": 1}]

    placed = await orders.post("/orders", json={"customer_id": str(uuid4()), "total": "25.50", "lines": lines})

    assert placed.status_code == 202
    found = await orders.get(placed.headers["location"])
    assert found.json()["lines"] == sorted(lines, key=lambda line: str(line["sku"]))
    assert (await orders.get("/orders")).json() == [found.json()]
    commands = "SELECT type, destination FROM relay.outbox ORDER BY type"
    assert orders_database.query(commands) == [("ReserveCredit", "customers"), ("ReserveStock", "inventory")]
    ((payload,),) = orders_database.query("SELECT payload FROM relay.outbox WHERE type = 'ReserveStock'")
    assert payload == {"order_id": placed.json()["order_id"], "lines": lines}


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("total", {"total": "0.00"}),
        ("total", {"total": "-1.00"}),
        ("total", {"total": "1e2"}),
        ("total", {"total": 25}),
        ("total", {"total": None}),
        ("customer_id", {"customer_id": "Ada"}),
        ("customer_id", {"customer_id": None}),
        ("lines", {"lines": None}),
        ("lines", {"lines": [{"sku": "lamp", "quantity": 1}, {"sku": "lamp", "quantity": 2}]}),
        ("lines", {"lines": [{"sku": f"lamp {number}", "quantity": 1} for number in range(101)]}),
        ("sku", {"lines": [{"quantity": 1}]}),
        ("sku", {"lines": [{"sku": " ", "quantity": 1}]}),
        ("sku", {"lines": [{"sku": "la\x00mp", "quantity": 1}]}),
        ("quantity", {"lines": [{"sku": "lamp"}]}),
        ("quantity", {"lines": [{"sku": "lamp", "quantity": 0}]}),
        ("quantity", {"lines": [{"sku": "lamp", "quantity": "2"}]}),
        ("quantity", {"lines": [{"sku": "lamp", "quantity": 1.5}]}),
        ("price", {"lines": [{"sku": "lamp", "quantity": 1, "price": "1.00"}]}),
    ],
    ids=lambda value: ascii(value)[:50],
)
async def test_a_wrong_order_is_refused_with_the_field_named(
    orders: httpx.AsyncClient, orders_database: Database, field: str, change: dict[str, Any]
) -> None:
    answer = await orders.post("/orders", json={"customer_id": str(uuid4()), "total": "1.00", **change})

    then_refused(answer, field)
    assert orders_database.value("SELECT count(*) FROM orders") == 0


async def test_the_orders_of_a_customer_are_listed_the_newest_first(orders: httpx.AsyncClient) -> None:
    ada, bob = str(uuid4()), str(uuid4())
    placed = [
        (await orders.post("/orders", json={"customer_id": customer, "total": "1.00"})).json()["order_id"]
        for customer in (ada, bob, ada)
    ]

    async def listed(**query: str | int) -> list[str]:
        return [order["order_id"] for order in (await orders.get("/orders", params=query)).json()]

    assert await listed(customer_id=ada) == [placed[2], placed[0]]
    assert await listed(customer_id=str(uuid4())) == []
    assert await listed() == placed[::-1]
    assert await listed(limit=1) == placed[-1:]


async def test_an_unknown_order_is_not_found(orders: httpx.AsyncClient) -> None:
    assert (await orders.get(f"/orders/{uuid4()}")).status_code == 404


async def test_the_api_documents_itself(orders: httpx.AsyncClient) -> None:
    assert (await orders.get("/docs")).status_code == 200
    paths = (await orders.get("/openapi.json")).json()["paths"]
    assert paths.keys() >= {"/orders", "/orders/{order_id}", "/healthz"}


async def test_while_the_database_is_away_the_api_says_so_and_recovers(
    orders_database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    order = {"customer_id": str(uuid4()), "total": "1.00"}
    async with (
        Link(orders_database.role_dsn("orders")) as database,
        client(database.url, lambda pool: OrdersApi(pool).router) as http,
    ):
        assert (await http.get("/healthz")).json() == {"status": "ok"}
        await database.cut()
        for answer in [await http.get("/healthz"), await http.post("/orders", json=order), await http.get("/orders")]:
            assert answer.status_code == 503
            assert answer.json() == {"detail": "the database is not available just now"}
            assert int(answer.headers["retry-after"]) > 0
        await database.restore()

        async with asyncio.timeout(WAIT_S):
            while (await http.get("/healthz")).status_code != 200:
                pass  # each request waits for a connection by itself
        assert (await http.post("/orders", json=order)).status_code == 202
    assert "Traceback" not in caplog.text


async def test_a_bug_is_not_taken_for_an_absence(orders: httpx.AsyncClient, orders_database: Database) -> None:
    orders_database.query("DROP TABLE orders CASCADE")
    with pytest.raises(psycopg.errors.UndefinedTable):  # the server makes a 500 of it, and logs the traceback
        await orders.get("/orders")


async def test_stock_is_put_and_read(inventory: httpx.AsyncClient) -> None:
    put = await inventory.put("/stock/lamp", json={"quantity": 5})

    assert put.status_code == 200
    assert put.json() == {"sku": "lamp", "quantity": 5, "available": 5, "reserved": 0, "confirmed": 0}
    assert (await inventory.get("/stock/lamp")).json() == put.json()
    assert (await inventory.get("/stock/chair")).status_code == 404


async def test_a_name_with_a_space_is_a_name(inventory: httpx.AsyncClient) -> None:
    await inventory.put("/stock/desk%20lamp", json={"quantity": 1})
    assert (await inventory.get("/stock/desk%20lamp")).json()["sku"] == "desk lamp"


@pytest.mark.parametrize("quantity", [-1, 1_000_001, "5", 1.5, None, True])
async def test_a_quantity_that_cannot_be_is_refused(inventory: httpx.AsyncClient, quantity: object) -> None:
    then_refused(await inventory.put("/stock/lamp", json={"quantity": quantity}), "quantity")
    assert (await inventory.get("/stock/lamp")).status_code == 404


@pytest.mark.parametrize("sku", ["%20", "a%00b", "a" * 65])
async def test_what_is_no_name_of_a_thing_is_refused(inventory: httpx.AsyncClient, sku: str) -> None:
    then_refused(await inventory.put(f"/stock/{sku}", json={"quantity": 1}), "sku")


async def test_what_is_counted_again_leaves_reservations_alone(
    inventory: httpx.AsyncClient, inventory_database: Database
) -> None:
    await inventory.put("/stock/lamp", json={"quantity": 5})
    inventory_database.query(RESERVE_LAMPS, uuid4(), 3)

    assert (await inventory.put("/stock/lamp", json={"quantity": 2})).status_code == 409
    counted = await inventory.put("/stock/lamp", json={"quantity": 4})

    assert counted.json() == {"sku": "lamp", "quantity": 4, "available": 1, "reserved": 3, "confirmed": 0}
    assert inventory_database.value("SELECT supplied FROM stock") == 4


async def test_two_instances_that_reserve_credit_at_once_keep_to_the_limit(
    customers: httpx.AsyncClient, customers_database: Database
) -> None:
    created = await customers.post("/customers", json={"name": "Ada", "credit_limit": "100.00"})
    customer_id = UUID(created.json()["customer_id"])

    async def reserve(conn: AsyncConnection[TupleRow]) -> Reply:
        command = ReserveCredit(order_id=uuid4(), customer_id=customer_id, amount=Decimal("60.00"))
        return await reserve_credit(command, Transaction(conn))

    dsn = customers_database.role_dsn("customers")
    async with await AsyncConnection.connect(dsn) as first, await AsyncConnection.connect(dsn) as second:
        assert isinstance(await reserve(first), CreditReserved)
        waiting = asyncio.create_task(reserve(second))
        await eventually(lambda: customers_database.value(WAITING) == 1)
        await first.commit()

        assert isinstance(await waiting, CreditLimitExceeded)


async def test_credit_that_is_released_can_be_reserved_again(
    customers: httpx.AsyncClient, customers_database: Database
) -> None:
    created = await customers.post("/customers", json={"name": "Ada", "credit_limit": "100.00"})
    customer_id, first, second = UUID(created.json()["customer_id"]), uuid4(), uuid4()

    async with await AsyncConnection.connect(customers_database.role_dsn("customers")) as conn:
        tx = Transaction(conn)

        async def reserve(order_id: UUID, customer: UUID = customer_id) -> Reply:
            command = ReserveCredit(order_id=order_id, customer_id=customer, amount=Decimal("60.00"))
            return await reserve_credit(command, tx)

        assert isinstance(await reserve(first), CreditReserved)
        assert isinstance(await reserve(second), CreditLimitExceeded)
        assert isinstance(await reserve(second, uuid4()), CustomerUnknown)
        for _ in range(2):
            await release_credit(ReleaseCredit(order_id=first), tx)
        assert isinstance(await reserve(second), CreditReserved)
        await conn.commit()
    assert (await customers.get(f"/customers/{customer_id}")).json()["reserved"] == "60.00"


async def test_two_instances_that_reserve_stock_at_once_never_have_more_than_there_is(
    inventory: httpx.AsyncClient, inventory_database: Database
) -> None:
    for sku in ("chair", "lamp"):
        await inventory.put(f"/stock/{sku}", json={"quantity": 5})

    async def reserve(conn: AsyncConnection[TupleRow], *skus: str) -> Reply:
        lines = tuple(Line(sku=sku, quantity=3) for sku in skus)
        return await reserve_stock(ReserveStock(order_id=uuid4(), lines=lines), Transaction(conn))

    dsn = inventory_database.role_dsn("inventory")
    async with await AsyncConnection.connect(dsn) as first, await AsyncConnection.connect(dsn) as second:
        assert isinstance(await reserve(first, "lamp", "chair"), StockReserved)
        waiting = asyncio.create_task(reserve(second, "chair", "lamp"))
        await eventually(lambda: inventory_database.value(WAITING) == 1)
        await first.commit()

        refused = await waiting
        assert isinstance(refused, OutOfStock)
        assert refused.sku == "chair"
        assert isinstance(await reserve(second, "no such thing"), OutOfStock)
    assert (await inventory.get("/stock/lamp")).json()["available"] == 2


# The services as processes. A courier carries their messages, in place of the relay.


@dataclass
class Shop:
    """All services, each under its own role and its own broker user."""

    orders: "ServiceProcess"
    customers: "ServiceProcess"
    inventory: "ServiceProcess"
    courier: Courier

    async def customer(self, limit: str) -> str:
        answer = await self.customers.http.post("/customers", json={"name": "Ada", "credit_limit": limit})
        return str(answer.json()["customer_id"])

    async def stock(self, sku: str, quantity: int) -> None:
        answer = await self.inventory.http.put(f"/stock/{sku}", json={"quantity": quantity})
        assert answer.status_code == 200, answer.text

    async def place(self, customer_id: str, total: str, **lines: int) -> str:
        order = {"customer_id": customer_id, "total": total}
        wanted = [{"sku": sku, "quantity": quantity} for sku, quantity in lines.items()]
        answer = await self.orders.http.post("/orders", json={**order, "lines": wanted})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["order_id"])

    async def decided(self, order_id: str) -> dict[str, Any]:
        """The order, once it is no longer pending."""
        async with asyncio.timeout(WAIT_S):
            while True:
                await self.carry()
                order: dict[str, Any] = (await self.orders.http.get(f"/orders/{order_id}")).json()
                if order["state"] != "PENDING":
                    return order
                await asyncio.sleep(0.05)  # HTTP has no event for this

    async def carry(self) -> None:
        """What each of them has to say to the others, once."""
        for service in (self.orders, self.customers, self.inventory):
            await self.courier.carry(service.database)

    async def ended(self) -> None:
        """Wait until every saga has ended."""
        async with asyncio.timeout(WAIT_S):
            while self.orders.database.value(UNFINISHED):
                await self.carry()
                await asyncio.sleep(0.05)  # nothing tells when a service has handled what was carried

    async def view(self, service: str, path: str) -> dict[str, Any]:
        process: ServiceProcess = getattr(self, service)
        found: dict[str, Any] = (await process.http.get(path)).json()
        return found


class ServiceProcess:
    """`python -m services.NAME` with settings of the test, killed at the end if it still runs."""

    def __init__(self, name: str, database: Database, amqp_url: str, **environment: str) -> None:
        self.database = database
        self._name = name
        with socket.create_server(("127.0.0.1", 0)) as probe:
            listen = f"127.0.0.1:{probe.getsockname()[1]}"
        prefix = name.upper()
        self._environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(prefix)},
            f"{prefix}_DSN": database.role_dsn(name),
            f"{prefix}_AMQP_URL": amqp_url,
            f"{prefix}_LISTEN": listen,
            **environment,
        }
        self.http = httpx.AsyncClient(base_url=f"http://{listen}", timeout=WAIT_S)

    async def __aenter__(self) -> "ServiceProcess":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()
        if self.process.returncode is None:
            await self.end(SIGKILL)

    async def start(self) -> None:
        """Start, and read the log to its end."""
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", f"services.{self._name}", stderr=asyncio.subprocess.PIPE, env=self._environment
        )
        self._log = asyncio.create_task(self._read())

    async def ready(self) -> "ServiceProcess":
        """Wait until it answers."""
        async with asyncio.timeout(WAIT_S):
            while True:
                try:
                    await self.http.get("/healthz")
                except httpx.TransportError:
                    assert self.process.returncode is None, await self.log()
                    await asyncio.sleep(0.05)  # a process says nothing when its socket is there
                else:
                    return self

    async def end(self, signal: Signals = SIGTERM) -> int:
        self.process.send_signal(signal)
        return await self.status()

    async def status(self) -> int:
        async with asyncio.timeout(WAIT_S):
            return await self.process.wait()

    async def log(self) -> str:
        """All that it wrote. It has ended, or this waits."""
        return await self._log

    async def _read(self) -> str:
        assert self.process.stderr is not None
        return (await self.process.stderr.read()).decode()


@pytest.fixture
async def courier(vhost: VirtualHost) -> AsyncIterator[Courier]:
    async with Courier(vhost.url) as courier:
        for service in (services.orders.service, services.customers.service, services.inventory.service):
            await courier.declare(service.queue)
        yield courier


@pytest.fixture
async def shop(
    orders_database: Database,
    customers_database: Database,
    inventory_database: Database,
    vhost: VirtualHost,
    courier: Courier,
) -> AsyncIterator[Shop]:
    async with AsyncExitStack() as stack:
        orders = ServiceProcess("orders", orders_database, vhost.user_url("orders"))
        customers = ServiceProcess("customers", customers_database, vhost.user_url("customers"))
        inventory = ServiceProcess("inventory", inventory_database, vhost.user_url("inventory"))
        for process in (orders, customers, inventory):
            await stack.enter_async_context(process)
        yield Shop(await orders.ready(), await customers.ready(), await inventory.ready(), courier)


async def test_an_order_within_the_limit_is_approved(shop: Shop) -> None:
    customer_id = await shop.customer("100.00")
    order_id = await shop.place(customer_id, "100.00")

    order = await shop.decided(order_id)

    assert (order["state"], order["reason"]) == ("APPROVED", None)
    customer = (await shop.customers.http.get(f"/customers/{customer_id}")).json()
    assert customer["reserved"] == "100.00"


async def test_an_order_over_the_limit_is_cancelled(shop: Shop) -> None:
    customer_id = await shop.customer("100.00")
    await shop.decided(await shop.place(customer_id, "60.00"))

    order = await shop.decided(await shop.place(customer_id, "40.01"))

    assert (order["state"], order["reason"]) == ("CANCELLED", "credit limit exceeded")
    customer = (await shop.customers.http.get(f"/customers/{customer_id}")).json()
    assert customer["reserved"] == "60.00"


async def test_an_order_of_an_unknown_customer_is_cancelled(shop: Shop) -> None:
    order = await shop.decided(await shop.place(str(uuid4()), "1.00"))
    assert (order["state"], order["reason"]) == ("CANCELLED", "unknown customer")


async def test_what_an_approved_order_asks_for_is_sold(shop: Shop) -> None:
    customer_id = await shop.customer("100.00")
    await shop.stock("lamp", 5)

    order = await shop.decided(await shop.place(customer_id, "10.00", lamp=2))
    await shop.ended()

    assert (order["state"], order["lines"]) == ("APPROVED", [{"sku": "lamp", "quantity": 2}])
    stock = await shop.view("inventory", "/stock/lamp")
    assert (stock["available"], stock["reserved"], stock["confirmed"]) == (3, 0, 2)


async def test_an_order_of_what_is_out_of_stock_is_cancelled_and_its_credit_released(shop: Shop) -> None:
    customer_id = await shop.customer("100.00")
    await shop.stock("lamp", 5)
    await shop.stock("chair", 1)

    order = await shop.decided(await shop.place(customer_id, "10.00", lamp=5, chair=2))

    assert (order["state"], order["reason"]) == ("CANCELLED", "out of stock")
    await shop.ended()
    assert (await shop.view("customers", f"/customers/{customer_id}"))["reserved"] == "0.00"
    assert (await shop.view("inventory", "/stock/lamp"))["available"] == 5


async def test_the_stock_of_an_order_over_the_limit_is_released(shop: Shop) -> None:
    customer_id = await shop.customer("100.00")
    await shop.stock("lamp", 5)

    order = await shop.decided(await shop.place(customer_id, "100.01", lamp=5))

    assert (order["state"], order["reason"]) == ("CANCELLED", "credit limit exceeded")
    await shop.ended()
    stock = await shop.view("inventory", "/stock/lamp")
    assert (stock["available"], stock["reserved"], stock["confirmed"]) == (5, 0, 0)


async def test_an_order_does_not_wait_long_for_a_service_that_is_down(shop: Shop) -> None:
    customer_id = await shop.customer("100.00")
    await shop.stock("lamp", 5)
    await shop.inventory.end(SIGKILL)
    order_id = await shop.place(customer_id, "10.00", lamp=5)
    without_goods = await shop.decided(await shop.place(customer_id, "90.00"))
    given_up = "SELECT count(*) FROM relay.saga WHERE status = 'COMPENSATING'"
    await eventually(lambda: shop.orders.database.value(given_up) == 1)
    await shop.inventory.start()

    order = await shop.decided(order_id)

    assert without_goods["state"] == "APPROVED"
    assert (order["state"], order["reason"]) == ("CANCELLED", "no answer in time")
    await shop.ended()
    assert (await shop.view("customers", f"/customers/{customer_id}"))["reserved"] == "90.00"
    stock = await shop.view("inventory", "/stock/lamp")
    assert (stock["available"], stock["reserved"], stock["confirmed"]) == (5, 0, 0)


async def test_all_messages_delivered_twice_have_single_effects(shop: Shop) -> None:
    customer_id = await shop.customer("100.00")
    order_ids = [await shop.place(customer_id, "30.00") for _ in range(5)]
    await shop.courier.carry(shop.orders.database, again=True)
    states = [(await shop.decided(order_id))["state"] for order_id in order_ids]
    await shop.courier.carry(shop.orders.database, again=True)
    await shop.courier.carry(shop.customers.database, again=True)
    last = await shop.decided(await shop.place(customer_id, "0.01"))  # whatever came before it has been handled

    assert sorted(states) == ["APPROVED"] * 3 + ["CANCELLED"] * 2
    assert last["state"] == "APPROVED"
    assert shop.customers.database.value("SELECT reserved FROM customers") == Decimal("90.01")
    assert shop.customers.database.value("SELECT sum(amount) FROM credit_reservations") == Decimal("90.01")
    assert shop.orders.database.value("SELECT count(*) FROM relay.saga WHERE status = 'RUNNING'") == 0
    again = "SELECT count(*) FROM relay.saga_log WHERE event IN ('SagaCompleted', 'SagaCompensated')"
    assert shop.orders.database.value(again) == 6


async def test_a_second_command_for_the_same_order_reserves_nothing_more(shop: Shop) -> None:
    customer_id, order_id = await shop.customer("100.00"), uuid4()
    command = ReserveCredit(order_id=order_id, customer_id=UUID(customer_id), amount=Decimal("60.00"))
    for _ in range(2):
        await shop.courier.send("customers", command, reply_to="orders")

    replies = "SELECT type FROM relay.outbox"
    await eventually(lambda: shop.customers.database.query(replies) == [("CreditReserved",)] * 2)
    assert shop.customers.database.value("SELECT reserved FROM customers") == Decimal("60.00")


async def test_a_service_that_was_killed_goes_on_where_it_was(shop: Shop) -> None:
    customer_id = await shop.customer("100.00")
    order_ids = [await shop.place(customer_id, "10.00") for _ in range(12)]
    await shop.courier.carry(shop.orders.database)
    await eventually(lambda: shop.customers.database.value("SELECT count(*) FROM relay.inbox"))
    await shop.customers.end(SIGKILL)
    await shop.customers.start()

    states = [(await shop.decided(order_id))["state"] for order_id in order_ids]

    assert sorted(states) == ["APPROVED"] * 10 + ["CANCELLED"] * 2
    assert shop.customers.database.value("SELECT reserved FROM customers") == Decimal("100.00")


@pytest.mark.parametrize("signal", [SIGTERM, SIGINT])
async def test_a_service_stops_cleanly(shop: Shop, signal: Signals) -> None:
    assert await shop.orders.end(signal) == 0
    log = await shop.orders.log()
    assert "orders has stopped" in log
    assert "Traceback" not in log


async def test_wrong_settings_are_said_without_a_traceback(orders_database: Database, vhost: VirtualHost) -> None:
    async with ServiceProcess("orders", orders_database, "http://x", ORDERS_DSN="") as process:
        assert await process.status() == 2
        log = await process.log()
    assert "ORDERS_DSN: Field required" in log
    assert "ORDERS_AMQP_URL" in log
    assert "Traceback" not in log


async def test_a_port_that_is_taken_is_said_without_a_traceback(orders_database: Database, vhost: VirtualHost) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        async with ServiceProcess("orders", orders_database, vhost.url, ORDERS_LISTEN=listen) as process:
            assert await process.status() == 1
            log = await process.log()
    assert f"cannot listen on {listen}" in log
    assert "Traceback" not in log


async def test_a_broker_that_refuses_the_login_ends_the_service(orders_database: Database, vhost: VirtualHost) -> None:
    url = vhost.user_url("orders").replace("//orders:", "//orders:wrong")
    async with ServiceProcess("orders", orders_database, url) as process:
        assert await process.status() == 4
        log = await process.log()
    assert "Traceback" not in log
    assert vhost.server.users["orders"].password not in log


async def test_a_service_waits_for_servers_that_are_not_there_yet(
    orders_database: Database, vhost: VirtualHost
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        nowhere = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = {"ORDERS_DSN": f"postgresql://orders:x@{nowhere}/orders"}
    async with ServiceProcess("orders", orders_database, f"amqp://x:x@{nowhere}/", **environment) as process:
        await process.ready()
        assert (await process.http.get("/healthz")).status_code == 503
        assert await process.end() == 0
