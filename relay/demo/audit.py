"""What became of the orders, asked of the databases themselves, and the invariants that must hold."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final, LiteralString, TypeAlias
from uuid import UUID

import psycopg
from psycopg import Connection
from psycopg.rows import TupleRow

Database: TypeAlias = Connection[TupleRow]

RECENT: Final = timedelta(hours=1)
"""Messages are compared one by one if they were sent within this time: the outbox forgets earlier than the inbox, and a
stack that runs for days has millions of them. One that was lost before that has left a saga which has not ended."""


@dataclass(frozen=True, slots=True)
class Invariant:
    """Something that must hold, and whether it does."""

    name: str
    holds: bool
    found: str

    def __str__(self) -> str:
        return f"  ok      {self.name}" if self.holds else f"  BROKEN  {self.name} ({self.found})"


@dataclass(frozen=True, slots=True)
class Audit:
    """Orders by state and reason, milliseconds until an order is approved, messages by source, and the invariants."""

    outcomes: list[tuple[str, str | None, int]]
    latency_p50_ms: float | None
    latency_p99_ms: float | None
    published: dict[str, int]
    invariants: list[Invariant]

    @property
    def ok(self) -> bool:
        """Whether every invariant holds."""
        return all(invariant.holds for invariant in self.invariants)

    @property
    def outcome_lines(self) -> list[str]:
        """What became of the orders, a line for each state and reason."""
        return [f"{count:>7}  {state}{f': {reason}' if reason else ''}" for state, reason, count in self.outcomes]


_OUTCOMES: LiteralString = "SELECT state, reason, count(*) FROM orders GROUP BY 1, 2 ORDER BY 1, 3 DESC, 2"

# Until the order is approved. Those that had to wait for somebody who was away say nothing about the speed of the rest.
_LATENCY: LiteralString = """
    SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY ms), percentile_cont(0.99) WITHIN GROUP (ORDER BY ms)
    FROM (SELECT 1000 * extract(epoch FROM
                     max(at) FILTER (WHERE event = 'StepSucceeded' AND step = 'approve') - min(at)) AS ms
          FROM relay.saga_log GROUP BY saga_id
          HAVING count(*) FILTER (WHERE event = 'StepTimedOut') = 0) AS sagas
"""

_UNSETTLED: LiteralString = """
    SELECT (SELECT count(*) FROM relay.saga WHERE status NOT IN ('COMPLETED', 'COMPENSATED')),
           (SELECT count(*) FROM orders)
"""

_UNFINISHED: LiteralString = """
    SELECT status, count(*) FROM relay.saga WHERE status NOT IN ('COMPLETED', 'COMPENSATED') GROUP BY 1 ORDER BY 1
"""

_CONTRADICTIONS: LiteralString = """
    SELECT count(*)
    FROM (SELECT (state ->> 'order_id')::uuid AS id, count(*), min(status) AS status FROM relay.saga GROUP BY 1) AS saga
    FULL JOIN orders USING (id)
    WHERE (saga.count = 1 AND (status, state) IN (('COMPLETED', 'APPROVED'), ('COMPENSATED', 'CANCELLED'))) IS NOT TRUE
"""

_REPEATED_STEPS: LiteralString = """
    SELECT count(*) FROM (
        SELECT FROM relay.saga_log
        WHERE event IN ('StepSucceeded', 'StepCompensated', 'SagaCompleted', 'SagaCompensated')
        GROUP BY saga_id, event, step HAVING count(*) > 1) AS repeated
"""

_SOLD: LiteralString = """
    SELECT order_id::text || ' ' || sku || ' ' || quantity FROM stock_reservations WHERE confirmed_at IS NOT NULL
"""

_ORDERED: LiteralString = """
    SELECT order_id::text || ' ' || sku || ' ' || quantity FROM order_lines JOIN orders ON orders.id = order_id
    WHERE state = 'APPROVED'
"""

_STOCK: LiteralString = """
    SELECT count(*), count(*) FILTER (WHERE supplied <> available + coalesce(sold, 0))
    FROM stock LEFT JOIN (SELECT sku, sum(quantity) FILTER (WHERE confirmed_at IS NOT NULL) AS sold
                          FROM stock_reservations GROUP BY sku) AS reservations USING (sku)
"""

_ADDRESSED: LiteralString = "SELECT id::text, destination FROM relay.outbox WHERE kind <> 'event' AND created_at >= %s"

_HANDLED: LiteralString = """
    SELECT message_id FROM relay.inbox WHERE consumer = %s AND coalesce(sent_at, handled_at) >= %s
"""


def unsettled(dsn: str) -> tuple[int, int]:
    """Sagas that have not ended, and all orders."""
    with psycopg.connect(dsn) as orders:
        open_sagas, total = _row(orders, _UNSETTLED)
        return open_sagas, total


def undelivered(dsns: Mapping[str, str]) -> int:
    """Commands and replies of late that have not been handled yet."""
    with ExitStack() as stack:
        mail = _Mail({name: stack.enter_context(psycopg.connect(dsn)) for name, dsn in dsns.items()})
        return sum(len(mail.sent[name] - mail.handled[name]) for name in dsns)


def audit(dsns: Mapping[str, str]) -> Audit:
    """Look at the databases of all services."""
    with ExitStack() as stack:
        databases = {name: stack.enter_context(psycopg.connect(dsn)) for name, dsn in dsns.items()}
        orders, customers, inventory = databases["orders"], databases["customers"], databases["inventory"]
        mail = _Mail(databases)
        p50, p99 = _row(orders, _LATENCY)
        return Audit(
            outcomes=[(state, reason, count) for state, reason, count in orders.execute(_OUTCOMES)],
            latency_p50_ms=p50,
            latency_p99_ms=p99,
            published=mail.published,
            invariants=[
                _no_order_is_pending(orders),
                _every_saga_has_ended(orders),
                _credit_adds_up(orders, customers),
                _stock_adds_up(orders, inventory),
                *(mail.all_arrived(name) for name in databases),
                _no_duplicate_effects(orders, customers),
            ],
        )


class _Mail:
    """What was sent to each service of late, and what each has handled of it, by message id.

    Events are addressed to nobody.
    """

    def __init__(self, databases: Mapping[str, Database]) -> None:
        since = datetime.now(UTC).replace(microsecond=0) - RECENT  # a whole second, as the times in messages are
        self.sent: dict[str, set[str]] = {name: set() for name in databases}
        self.handled = {name: _ids(database, _HANDLED, name, since) for name, database in databases.items()}
        everything = set().union(*self.handled.values())
        self.published: dict[str, int] = {}
        for source, database in databases.items():
            letters = database.execute(_ADDRESSED, (since,)).fetchall()
            for message_id, destination in letters:
                self.sent.setdefault(destination, set()).add(message_id)
            self.published[source] = sum(message_id in everything for message_id, _ in letters)

    def all_arrived(self, name: str) -> Invariant:
        """Whether a service has handled all that was sent to it, and nothing that nobody sent."""
        lost, ghosts = len(self.sent[name] - self.handled[name]), len(self.handled[name] - self.sent[name])
        found = f"{lost} were not, and {ghosts} arrived that nobody sent"
        return Invariant(f"every message to {name} was published and handled", lost == ghosts == 0, found)


def _no_order_is_pending(orders: Database) -> Invariant:
    (pending,) = _row(orders, "SELECT count(*) FROM orders WHERE state = 'PENDING'")
    return Invariant("no order is left PENDING", pending == 0, f"{pending} are")


def _every_saga_has_ended(orders: Database) -> Invariant:
    unfinished = ", ".join(f"{count} {status}" for status, count in orders.execute(_UNFINISHED))
    (wrong,) = _row(orders, _CONTRADICTIONS)
    name = "every order has one saga, COMPLETED if it is approved, COMPENSATED if it is cancelled"
    return Invariant(name, not unfinished and wrong == 0, f"not so for {wrong}; unfinished: {unfinished or 'none'}")


def _credit_adds_up(orders: Database, customers: Database) -> Invariant:
    totals: LiteralString = "SELECT customer_id, sum(total) FROM orders WHERE state = 'APPROVED' GROUP BY 1"
    approved: dict[UUID, Decimal] = dict(orders.execute(totals).fetchall())
    wrong = known = 0
    for customer, limit, reserved in customers.execute("SELECT id, credit_limit, reserved FROM customers"):
        known += 1
        wrong += not approved.pop(customer, Decimal(0)) == reserved <= limit
    wrong += len(approved)  # approved for somebody whom the Customer Service does not know
    name = "each customer's reserved credit is the sum of the approved orders, and within the limit"
    return Invariant(name, wrong == 0, f"not so for {wrong} of {known}")


def _stock_adds_up(orders: Database, inventory: Database) -> Invariant:
    things, wrong = _row(inventory, _STOCK)
    (reserved,) = _row(inventory, "SELECT count(*) FROM stock_reservations WHERE confirmed_at IS NULL")
    strays = len(_ids(orders, _ORDERED) ^ _ids(inventory, _SOLD))
    name = "the stock at the start is what is available and what the approved orders took; nothing stays reserved"
    found = f"not so for {wrong} of {things} things; {reserved} still reserved, {strays} lines approved or sold alone"
    return Invariant(name, wrong == reserved == strays == 0, found)


def _no_duplicate_effects(orders: Database, customers: Database) -> Invariant:
    (repeated,) = _row(orders, _REPEATED_STEPS)
    approved = _ids(orders, "SELECT id::text FROM orders WHERE state = 'APPROVED'")
    reserved = _ids(customers, "SELECT order_id::text FROM credit_reservations")
    strays = len(approved ^ reserved)
    found = f"{repeated} steps happened twice, {strays} reservations or approvals lack the other"
    name = "nothing took effect twice: no step of a saga, one reservation of credit an approved order"
    return Invariant(name, repeated == strays == 0, found)


def _row(connection: Database, query: LiteralString) -> TupleRow:
    row = connection.execute(query).fetchone()
    return row if row is not None else ()


def _ids(connection: Database, query: LiteralString, *parameters: str | datetime) -> set[str]:
    return {row[0] for row in connection.execute(query, parameters)}
