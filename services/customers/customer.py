"""Customers, as the database has them."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, LiteralString, cast
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import class_row, scalar_row

_INSERT: Final[LiteralString] = "INSERT INTO customers (name, credit_limit) VALUES (%s, %s) RETURNING id"

_GET: Final[LiteralString] = "SELECT id, name, credit_limit, reserved FROM customers WHERE id = %s"

_LOCK: Final[LiteralString] = f"{_GET} FOR NO KEY UPDATE"

_RESERVED: Final[LiteralString] = "SELECT FROM credit_reservations WHERE order_id = %s"

_RESERVE: Final[LiteralString] = """
    WITH reservation AS (
        INSERT INTO credit_reservations (order_id, customer_id, amount) VALUES (%s, %s, %s)
        ON CONFLICT DO NOTHING
        RETURNING customer_id, amount
    )
    UPDATE customers SET reserved = reserved + reservation.amount FROM reservation WHERE id = reservation.customer_id
"""


@dataclass(frozen=True, slots=True)
class Customer:
    """A customer. `reserved` is the sum of the reservations, and never above the limit."""

    id: UUID
    name: str
    credit_limit: Decimal
    reserved: Decimal

    def can_reserve(self, amount: Decimal) -> bool:
        """Whether the credit that is left allows the amount."""
        return self.reserved + amount <= self.credit_limit


async def create(conn: AsyncConnection[Any], name: str, credit_limit: Decimal) -> UUID:
    """Insert a customer, and return the id."""
    cursor = await conn.cursor(row_factory=scalar_row).execute(_INSERT, (name, credit_limit))
    return cast(UUID, await cursor.fetchone())


async def get(conn: AsyncConnection[Any], customer_id: UUID) -> Customer | None:
    """Read a customer."""
    cursor = await conn.cursor(row_factory=class_row(Customer)).execute(_GET, (customer_id,))
    return await cursor.fetchone()


async def lock(conn: AsyncConnection[Any], customer_id: UUID) -> Customer | None:
    """Read a customer whose credit nobody else changes until the transaction ends."""
    cursor = await conn.cursor(row_factory=class_row(Customer)).execute(_LOCK, (customer_id,))
    return await cursor.fetchone()


async def has_reservation(conn: AsyncConnection[Any], order_id: UUID) -> bool:
    """Whether credit is reserved for the order already."""
    return (await conn.execute(_RESERVED, (order_id,))).rowcount > 0


async def reserve(conn: AsyncConnection[Any], customer_id: UUID, order_id: UUID, amount: Decimal) -> None:
    """Reserve credit of a locked customer; for an order that has a reservation this does nothing."""
    await conn.execute(_RESERVE, (order_id, customer_id, amount))
