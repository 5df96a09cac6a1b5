"""The audit of the demo sees what is wrong, and nothing where all is well."""

from collections.abc import Callable
from uuid import uuid4

import pytest

from relay.demo.audit import audit, undelivered, unsettled
from tests.support.database import Database

Shop = dict[str, Database]

ORDER, CUSTOMER, SAGA, COMMAND = (str(uuid4()) for _ in range(4))


@pytest.fixture
def shop(make_database: Callable[..., Database]) -> Shop:
    """One order that is approved, with all that belongs to it, and two clocks left of five."""
    databases = {name: make_database(name) for name in ("orders", "customers", "inventory")}
    orders, customers, inventory = databases.values()
    orders.query("INSERT INTO orders (id, customer_id, total, state) VALUES (%s, %s, 60, 'APPROVED')", ORDER, CUSTOMER)
    orders.query("INSERT INTO order_lines VALUES (%s, 'clock', 3)", ORDER)
    state = f'{{"order_id": "{ORDER}"}}'
    saga = "INSERT INTO relay.saga (id, type, status, state) VALUES (%s, 'create_order', 'COMPLETED', %s)"
    orders.query(saga, SAGA, state)
    step(orders, 1, "SagaStarted", None)
    step(orders, 2, "StepSucceeded", "approve")
    command = (
        "INSERT INTO relay.outbox (id, kind, aggregate_type, aggregate_id, type, destination, payload)"
        " VALUES (%s, 'command', 'create_order', %s, 'ReserveStock', 'inventory', '{}')"
    )
    orders.query(command, COMMAND, SAGA)
    inventory.query("INSERT INTO relay.inbox (consumer, message_id) VALUES ('inventory', %s)", COMMAND)
    customers.query("INSERT INTO customers VALUES (%s, 'Ada', 100, 60)", CUSTOMER)
    customers.query("INSERT INTO credit_reservations VALUES (%s, %s, 60)", ORDER, CUSTOMER)
    inventory.query("INSERT INTO stock (sku, available, supplied) VALUES ('clock', 2, 5)")
    inventory.query("INSERT INTO stock_reservations VALUES (%s, 'clock', 3, now())", ORDER)
    return databases


def step(orders: Database, ordinal: int, event: str, name: str | None) -> None:
    orders.query(
        "INSERT INTO relay.saga_log (saga_id, ordinal, event, step) VALUES (%s, %s, %s, %s)", SAGA, ordinal, event, name
    )


def dsns(shop: Shop) -> dict[str, str]:
    return {name: database.superuser_dsn for name, database in shop.items()}


def test_nothing_is_wrong_where_all_is_well(shop: Shop) -> None:
    found = audit(dsns(shop))
    assert found.ok, found.invariants
    assert found.outcomes == [("APPROVED", None, 1)]
    assert found.published == {"orders": 1, "customers": 0, "inventory": 0}
    assert found.latency_p50_ms is not None
    assert unsettled(shop["orders"].superuser_dsn) == (0, 1)
    assert undelivered(dsns(shop)) == 0


PENDING = "no order is left PENDING"
SAGAS = "every order has one saga"
CREDIT = "each customer's reserved credit"
STOCK = "the stock at the start"
ARRIVED = "every message to inventory"
ONCE = "nothing took effect twice"

INVARIANTS = (PENDING, SAGAS, CREDIT, STOCK, ARRIVED, ONCE)

LETTER = "(kind, aggregate_type, aggregate_id, type, destination, payload) VALUES ('command', 'a', 'b', 'C'"


def found_broken(shop: Shop) -> list[str]:
    """The invariants that do not hold, by the beginnings of their names as they stand above."""
    names = [invariant.name for invariant in audit(dsns(shop)).invariants if not invariant.holds]
    return sorted(next((known for known in INVARIANTS if name.startswith(known)), name) for name in names)


@pytest.mark.parametrize(
    ("where", "change", "broken"),
    [
        ("orders", "UPDATE orders SET state = 'PENDING'", {PENDING, SAGAS, CREDIT, STOCK, ONCE}),
        ("orders", "UPDATE relay.saga SET status = 'RUNNING'", {SAGAS}),
        ("orders", "UPDATE relay.saga SET status = 'SUSPENDED'", {SAGAS}),
        ("orders", "UPDATE relay.saga SET status = 'COMPENSATED'", {SAGAS}),
        (
            "orders",
            "INSERT INTO relay.saga SELECT gen_random_uuid(), type, status, step, state FROM relay.saga",
            {SAGAS},
        ),
        ("orders", "DELETE FROM relay.saga", {SAGAS}),
        ("customers", "UPDATE customers SET reserved = 59", {CREDIT}),
        ("customers", "INSERT INTO customers VALUES (gen_random_uuid(), 'Bob', 9, 1)", {CREDIT}),
        ("customers", "DELETE FROM credit_reservations", {ONCE}),
        ("inventory", "UPDATE stock SET available = 1", {STOCK}),
        ("inventory", "UPDATE stock_reservations SET confirmed_at = NULL", {STOCK}),
        ("inventory", "UPDATE stock_reservations SET quantity = 2; UPDATE stock SET available = 3", {STOCK}),
        ("inventory", "DELETE FROM relay.inbox", {ARRIVED}),
        ("inventory", "INSERT INTO relay.inbox (consumer, message_id) VALUES ('inventory', 'ghost')", {ARRIVED}),
        ("customers", f"INSERT INTO relay.outbox {LETTER}, 'inventory', '{{}}')", {ARRIVED}),
    ],
)
def test_what_is_wrong_is_named(shop: Shop, where: str, change: str, broken: set[str]) -> None:
    for statement in change.split("; "):
        shop[where].query(statement)
    assert found_broken(shop) == sorted(broken)


def test_a_step_that_succeeds_twice_is_named(shop: Shop) -> None:
    step(shop["orders"], 4, "StepSucceeded", "approve")

    assert found_broken(shop) == [ONCE]


def test_what_the_outbox_has_forgotten_is_no_ghost(shop: Shop) -> None:
    old = (
        "INSERT INTO relay.inbox VALUES ('inventory', 'long ago', now() - interval '8 days', now() - interval '8 days')"
    )
    shop["inventory"].query(old)

    assert found_broken(shop) == []


def test_what_is_on_its_way_is_counted(shop: Shop) -> None:
    shop["orders"].query("UPDATE relay.saga SET status = 'RUNNING'")
    shop["customers"].query(f"INSERT INTO relay.outbox {LETTER}, 'inventory', '{{}}')")
    assert unsettled(shop["orders"].superuser_dsn) == (1, 1)
    assert undelivered(dsns(shop)) == 1
