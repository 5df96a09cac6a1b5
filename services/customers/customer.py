"""Customers, as the database has them."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, LiteralString, cast
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import class_row, scalar_row

_INSERT: Final[LiteralString] = "INSERT INTO customers (name, credit_limit) VALUES (%s, %s) RETURNING id"

_GET: Final[LiteralString] = "SELECT id, name, credit_limit, reserved FROM customers WHERE id = %s"

# One statement, because every order takes it. Whoever changes the customer at the same time is waited for, and the
# limit is looked at again after that. Should two transactions reserve for one order, the primary key stops the second.
_RESERVE: Final[LiteralString] = """
    WITH owner AS (
        UPDATE customers SET reserved = reserved + %(amount)s
        WHERE id = %(customer_id)s AND reserved + %(amount)s <= credit_limit
            AND NOT EXISTS (SELECT FROM credit_reservations WHERE order_id = %(order_id)s)
        RETURNING id
    )
    INSERT INTO credit_reservations (order_id, customer_id, amount) SELECT %(order_id)s, id, %(amount)s FROM owner
"""

_RESERVED: Final[LiteralString] = "SELECT FROM credit_reservations WHERE order_id = %s"

_RELEASE: Final[LiteralString] = """
    WITH reservation AS (
        DELETE FROM credit_reservations WHERE order_id = %s RETURNING customer_id, amount
    )
    UPDATE customers SET reserved = reserved - reservation.amount FROM reservation WHERE id = reservation.customer_id
"""


@dataclass(frozen=True, slots=True)
class Customer:
    """A customer. `reserved` is the sum of the reservations, and never above the limit."""

    id: UUID
    name: str
    credit_limit: Decimal
    reserved: Decimal


async def create(conn: AsyncConnection[Any], name: str, credit_limit: Decimal) -> UUID:
    """Insert a customer, and return the id."""
    cursor = await conn.cursor(row_factory=scalar_row).execute(_INSERT, (name, credit_limit))
    return cast(UUID, await cursor.fetchone())


async def get(conn: AsyncConnection[Any], customer_id: UUID) -> Customer | None:
    """Read a customer."""
    cursor = await conn.cursor(row_factory=class_row(Customer)).execute(_GET, (customer_id,))
    return await cursor.fetchone()


async def reserve(conn: AsyncConnection[Any], customer_id: UUID, order_id: UUID, amount: Decimal) -> bool:
    """Reserve credit for an order, within the limit. False, and nothing is changed, when that cannot be.

    Nobody else changes the customer's credit until the transaction ends.
    """
    parameters = {"customer_id": customer_id, "order_id": order_id, "amount": amount}
    return (await conn.execute(_RESERVE, parameters)).rowcount > 0


async def has_reservation(conn: AsyncConnection[Any], order_id: UUID) -> bool:
    """Whether credit is reserved for the order already."""
    return (await conn.execute(_RESERVED, (order_id,))).rowcount > 0


async def release(conn: AsyncConnection[Any], order_id: UUID) -> None:
    """Release what is reserved for an order; nothing if there is nothing."""
    await conn.execute(_RELEASE, (order_id,))
