"""Orders, as the database has them."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, LiteralString
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import class_row

from services.contracts import Line

_INSERT: Final[LiteralString] = "INSERT INTO orders (id, customer_id, total) VALUES (%s, %s, %s)"

_INSERT_LINES: Final[LiteralString] = """
    INSERT INTO order_lines (order_id, sku, quantity) SELECT %s, * FROM unnest(%s::text[], %s::integer[])
"""

_APPROVE: Final[LiteralString] = "UPDATE orders SET state = 'APPROVED' WHERE id = %s AND state = 'PENDING'"

_CANCEL: Final[LiteralString] = """
    UPDATE orders SET state = 'CANCELLED', reason = %s WHERE id = %s AND state = 'PENDING'
"""

_SELECT: Final[LiteralString] = """
    SELECT id, customer_id, total, state, reason,
           ARRAY(SELECT json_build_object('sku', sku, 'quantity', quantity)
                 FROM order_lines WHERE order_id = orders.id ORDER BY sku) AS lines
    FROM orders
"""

_GET: Final[LiteralString] = f"{_SELECT} WHERE id = %s"

_NEWEST: Final[LiteralString] = f"""
    {_SELECT}
    WHERE %(customer_id)s::uuid IS NULL OR customer_id = %(customer_id)s
    ORDER BY created_at DESC, id LIMIT %(limit)s
"""


@dataclass(frozen=True, slots=True)
class Order:
    """An order. `reason` says why it was cancelled."""

    id: UUID
    customer_id: UUID
    total: Decimal
    state: str
    reason: str | None
    lines: list[dict[str, object]]


async def create(
    conn: AsyncConnection[Any], order_id: UUID, customer_id: UUID, total: Decimal, lines: Sequence[Line]
) -> None:
    """Insert an order that is PENDING."""
    await conn.execute(_INSERT, (order_id, customer_id, total))
    if lines:
        skus, quantities = [line.sku for line in lines], [line.quantity for line in lines]
        await conn.execute(_INSERT_LINES, (order_id, skus, quantities))


async def approve(conn: AsyncConnection[Any], order_id: UUID) -> None:
    """PENDING becomes APPROVED; anything else stays."""
    await conn.execute(_APPROVE, (order_id,))


async def cancel(conn: AsyncConnection[Any], order_id: UUID, reason: str | None) -> None:
    """PENDING becomes CANCELLED; anything else stays."""
    await conn.execute(_CANCEL, (reason, order_id))


async def get(conn: AsyncConnection[Any], order_id: UUID) -> Order | None:
    """Read an order."""
    cursor = await conn.cursor(row_factory=class_row(Order)).execute(_GET, (order_id,))
    return await cursor.fetchone()


async def newest(conn: AsyncConnection[Any], customer_id: UUID | None, limit: int) -> list[Order]:
    """The latest orders, of one customer or of all, the newest first."""
    cursor = conn.cursor(row_factory=class_row(Order))
    await cursor.execute(_NEWEST, {"customer_id": customer_id, "limit": limit})
    return await cursor.fetchall()
