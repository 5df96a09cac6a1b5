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
import services.orders
from relay.messaging import Pool, Reply, Transaction
from services.contracts import CreditLimitExceeded, CreditReserved, ReserveCredit
from services.customers.api import CustomersApi
from services.customers.credit import reserve_credit
from services.http import create_app
from services.orders.api import OrdersApi
from tests.conftest import VirtualHost
from tests.support.courier import Courier
from tests.support.database import Database
from tests.support.link import Link
from tests.support.waiting import eventually

WAIT_S = 30.0

WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"

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
async def customers(customers_database: Database) -> AsyncIterator[httpx.AsyncClient]:
    async with client(customers_database.role_dsn("customers"), lambda pool: CustomersApi(pool).router) as http:
        yield http


@pytest.fixture
async def orders(orders_database: Database) -> AsyncIterator[httpx.AsyncClient]:
    async with client(orders_database.role_dsn("orders"), lambda pool: OrdersApi(pool).router) as http:
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


async def test_an_order_is_placed_with_its_saga_in_one_transaction(
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
    }
    ((payload, destination, reply_to, same_transaction),) = orders_database.query(
        "SELECT payload, destination, reply_to, outbox.xmin = orders.xmin AND saga.xmin = orders.xmin"
        " FROM relay.outbox, relay.saga, orders"
    )
    assert payload == {"order_id": order_id, "customer_id": customer_id, "amount": "25.50"}
    assert (destination, reply_to, same_transaction) == ("customers", "orders", True)


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
    ],
    ids=ascii,
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
    orders_database.query("DROP TABLE orders")
    with pytest.raises(psycopg.errors.UndefinedTable):  # the server makes a 500 of it, and logs the traceback
        await orders.get("/orders")


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


# The services as processes. A courier carries their messages, in place of the relay.


@dataclass
class Shop:
    """Both services, each under its own role and its own broker user."""

    orders: "ServiceProcess"
    customers: "ServiceProcess"
    courier: Courier

    async def customer(self, limit: str) -> str:
        answer = await self.customers.http.post("/customers", json={"name": "Ada", "credit_limit": limit})
        return str(answer.json()["customer_id"])

    async def place(self, customer_id: str, total: str) -> str:
        answer = await self.orders.http.post("/orders", json={"customer_id": customer_id, "total": total})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["order_id"])

    async def decided(self, order_id: str) -> dict[str, Any]:
        """The order, once it is no longer pending."""
        async with asyncio.timeout(WAIT_S):
            while True:
                await self.courier.carry(self.orders.database)
                await self.courier.carry(self.customers.database)
                order: dict[str, Any] = (await self.orders.http.get(f"/orders/{order_id}")).json()
                if order["state"] != "PENDING":
                    return order
                await asyncio.sleep(0.05)  # HTTP has no event for this


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
        for service in (services.orders.service, services.customers.service):
            await courier.declare(service.queue)
        yield courier


@pytest.fixture
async def shop(
    orders_database: Database, customers_database: Database, vhost: VirtualHost, courier: Courier
) -> AsyncIterator[Shop]:
    async with AsyncExitStack() as stack:
        orders = ServiceProcess("orders", orders_database, vhost.user_url("orders"))
        customers = ServiceProcess("customers", customers_database, vhost.user_url("customers"))
        for process in (orders, customers):
            await stack.enter_async_context(process)
        yield Shop(await orders.ready(), await customers.ready(), courier)


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
