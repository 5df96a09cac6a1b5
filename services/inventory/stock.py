"""Stock, as the database has it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, LiteralString
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import class_row

_GET: Final[LiteralString] = """
    SELECT stock.sku, stock.available,
           coalesce(sum(quantity) FILTER (WHERE confirmed_at IS NULL), 0)::integer AS reserved,
           coalesce(sum(quantity) FILTER (WHERE confirmed_at IS NOT NULL), 0) AS confirmed
    FROM stock LEFT JOIN stock_reservations USING (sku) WHERE sku = %s GROUP BY stock.sku
"""

_ADD: Final[LiteralString] = "INSERT INTO stock (sku, available, supplied) VALUES (%s, 0, 0) ON CONFLICT DO NOTHING"

_LOCK_ONE: Final[LiteralString] = "SELECT FROM stock WHERE sku = %s FOR NO KEY UPDATE"

_PUT: Final[LiteralString] = """
    UPDATE stock SET available = %(available)s, supplied = supplied + %(available)s - available WHERE sku = %(sku)s
"""

# In one order, whoever asks: so that two orders for the same things do not wait for each other for ever.
_LOCK: Final[LiteralString] = """
    SELECT sku, available FROM stock WHERE sku = ANY(%s) ORDER BY sku FOR NO KEY UPDATE
"""

_RESERVE: Final[LiteralString] = """
    WITH reservation AS (
        INSERT INTO stock_reservations (order_id, sku, quantity)
        SELECT %s, sku, quantity FROM unnest(%s::text[], %s::integer[]) AS line (sku, quantity)
        RETURNING sku, quantity
    )
    UPDATE stock SET available = available - reservation.quantity FROM reservation WHERE stock.sku = reservation.sku
"""

_RESERVED: Final[LiteralString] = """
    SELECT sku FROM stock_reservations WHERE order_id = %s AND confirmed_at IS NULL
"""

_RELEASE: Final[LiteralString] = """
    WITH reservation AS (
        DELETE FROM stock_reservations WHERE order_id = %s AND confirmed_at IS NULL RETURNING sku, quantity
    )
    UPDATE stock SET available = available + reservation.quantity FROM reservation WHERE stock.sku = reservation.sku
"""

_CONFIRM: Final[LiteralString] = """
    UPDATE stock_reservations SET confirmed_at = clock_timestamp() WHERE order_id = %s AND confirmed_at IS NULL
"""


@dataclass(frozen=True, slots=True)
class Stock:
    """How many of a thing may still be had, how many are reserved for orders, and how many are sold."""

    sku: str
    available: int
    reserved: int
    confirmed: int

    @property
    def quantity(self) -> int:
        """How many are there, on the shelf: those that are reserved have not left it yet."""
        return self.available + self.reserved


async def get(conn: AsyncConnection[Any], sku: str) -> Stock | None:
    """Read what there is of a thing."""
    cursor = await conn.cursor(row_factory=class_row(Stock)).execute(_GET, (sku,))
    return await cursor.fetchone()


async def put(conn: AsyncConnection[Any], sku: str, quantity: int) -> Stock | None:
    """Set how many are there. None, and nothing is changed, when more than that are reserved."""
    await conn.execute(_ADD, (sku,))
    await conn.execute(_LOCK_ONE, (sku,))
    before = await get(conn, sku)
    if before is None or before.reserved > quantity:
        return None
    available = quantity - before.reserved
    await conn.execute(_PUT, {"sku": sku, "available": available})
    return Stock(sku, available, before.reserved, before.confirmed)


async def lock(conn: AsyncConnection[Any], skus: list[str]) -> Mapping[str, int]:
    """How many of each may be had; nobody else changes that until the transaction ends. Unknown things are left out."""
    cursor = await conn.execute(_LOCK, (skus,))
    return dict(await cursor.fetchall())


async def reserve(conn: AsyncConnection[Any], order_id: UUID, quantities: Mapping[str, int]) -> None:
    """Reserve things that are locked, and of which there are enough."""
    await conn.execute(_RESERVE, (order_id, list(quantities), list(quantities.values())))


async def release(conn: AsyncConnection[Any], order_id: UUID) -> None:
    """Make available again what is reserved for an order, and not sold; nothing if there is none."""
    cursor = await conn.execute(_RESERVED, (order_id,))
    skus = [sku for (sku,) in await cursor.fetchall()]
    if skus:
        await conn.execute(_LOCK, (skus,))
        await conn.execute(_RELEASE, (order_id,))


async def confirm(conn: AsyncConnection[Any], order_id: UUID) -> bool:
    """What is reserved for an order is sold. False when nothing is."""
    return (await conn.execute(_CONFIRM, (order_id,))).rowcount > 0
