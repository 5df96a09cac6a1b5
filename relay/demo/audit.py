"""What became of the orders, asked of the databases themselves, and the invariants that must hold."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import LiteralString
from uuid import UUID

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow


@dataclass(frozen=True, slots=True)
class Invariant:
    """Something that must hold, and whether it does."""

    name: str
    holds: bool
    found: str


@dataclass(frozen=True, slots=True)
class Audit:
    """Orders by state and reason, saga latency in milliseconds, messages published by source, and the invariants."""

    outcomes: list[tuple[str, str | None, int]]
    latency_p50_ms: float | None
    latency_p99_ms: float | None
    published: dict[str, int]
    invariants: list[Invariant]

    @property
    def ok(self) -> bool:
        """Whether every invariant holds."""
        return all(invariant.holds for invariant in self.invariants)


_OUTCOMES: LiteralString = "SELECT state, reason, count(*) FROM orders GROUP BY 1, 2 ORDER BY 1, 3 DESC, 2"

_LATENCY: LiteralString = """
    SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY ms), percentile_cont(0.99) WITHIN GROUP (ORDER BY ms)
    FROM (SELECT 1000 * extract(epoch FROM max(at) - min(at)) AS ms FROM relay.saga_log GROUP BY saga_id) AS sagas
"""

_REPEATED_STEPS: LiteralString = """
    SELECT count(*) FROM (
        SELECT FROM relay.saga_log GROUP BY saga_id, event, step HAVING count(*) > 1) AS repeated
"""

_OTHER: dict[str, str] = {"orders": "customers", "customers": "orders"}


def unsettled(dsn: str) -> tuple[int, int]:
    """Orders that are neither APPROVED nor CANCELLED, and all orders."""
    with psycopg.connect(dsn) as connection:
        pending, total = _row(connection, "SELECT count(*) FILTER (WHERE state = 'PENDING'), count(*) FROM orders")
        return pending, total


def audit(dsns: Mapping[str, str]) -> Audit:
    """Look at both databases."""
    with psycopg.connect(dsns["orders"]) as orders, psycopg.connect(dsns["customers"]) as customers:
        connections = {"orders": orders, "customers": customers}
        p50, p99 = _row(orders, _LATENCY)
        outbox = {name: _ids(source, "SELECT id::text FROM relay.outbox") for name, source in connections.items()}
        inbox = {name: _ids(source, "SELECT message_id FROM relay.inbox") for name, source in connections.items()}
        published = {name: len(outbox[name] & inbox[_OTHER[name]]) for name in connections}
        return Audit(
            outcomes=[(state, reason, count) for state, reason, count in orders.execute(_OUTCOMES)],
            latency_p50_ms=p50,
            latency_p99_ms=p99,
            published=published,
            invariants=[
                _no_order_is_pending(orders),
                _credit_adds_up(orders, customers),
                *(_all_published(name, outbox[name], inbox[_OTHER[name]]) for name in connections),
                _no_duplicate_effects(orders, customers),
            ],
        )


def _no_order_is_pending(orders: Connection[TupleRow]) -> Invariant:
    (pending,) = _row(orders, "SELECT count(*) FROM orders WHERE state = 'PENDING'")
    return Invariant("no order is left PENDING", pending == 0, f"{pending} are")


def _credit_adds_up(orders: Connection[TupleRow], customers: Connection[TupleRow]) -> Invariant:
    totals: LiteralString = "SELECT customer_id, sum(total) FROM orders WHERE state = 'APPROVED' GROUP BY 1"
    approved: dict[UUID, Decimal] = dict(orders.execute(totals).fetchall())
    wrong = known = 0
    for customer, limit, reserved in customers.execute("SELECT id, credit_limit, reserved FROM customers"):
        known += 1
        wrong += not approved.pop(customer, Decimal(0)) == reserved <= limit
    wrong += len(approved)  # approved for somebody whom the Customer Service does not know
    name = "each customer's reserved credit is the sum of the approved orders, and within the limit"
    return Invariant(name, wrong == 0, f"not so for {wrong} of {known}")


def _all_published(name: str, outbox: set[str], inbox: set[str]) -> Invariant:
    lost, ghosts = len(outbox - inbox), len(inbox - outbox)
    found = f"{lost} were not, and {ghosts} arrived that are not in it"
    return Invariant(f"every message in the outbox of {name} was published and handled", lost == ghosts == 0, found)


def _no_duplicate_effects(orders: Connection[TupleRow], customers: Connection[TupleRow]) -> Invariant:
    (repeated,) = _row(orders, _REPEATED_STEPS)
    approved = _ids(orders, "SELECT id::text FROM orders WHERE state = 'APPROVED'")
    reserved = _ids(customers, "SELECT order_id::text FROM credit_reservations")
    (sagas,), (placed,) = _row(orders, "SELECT count(*) FROM relay.saga"), _row(orders, "SELECT count(*) FROM orders")
    strays = len(approved ^ reserved)
    holds = repeated == strays == 0 and sagas == placed
    found = f"{repeated} saga steps happened twice, {strays} reservations or approvals lack the other, {sagas} sagas"
    return Invariant("nothing took effect twice: one saga an order, one reservation an approved order", holds, found)


def _row(connection: Connection[TupleRow], query: LiteralString) -> TupleRow:
    row = connection.execute(query).fetchone()
    return row if row is not None else ()


def _ids(connection: Connection[TupleRow], query: LiteralString) -> set[str]:
    return {row[0] for row in connection.execute(query)}
