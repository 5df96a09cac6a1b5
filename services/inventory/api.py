"""The service's HTTP API."""

from typing import Annotated, Self

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, ConfigDict, Field

from relay.messaging import Pool
from services.contracts import MAX_QUANTITY, Sku
from services.inventory import stock
from services.inventory.stock import Stock


class Shelf(BaseModel):
    """How many of a thing are there: those that are available, and those that are reserved."""

    model_config = ConfigDict(extra="forbid")

    quantity: Annotated[int, Field(strict=True, ge=0, le=MAX_QUANTITY)]


class StockView(BaseModel):
    """`quantity` are there: `available` of them may be ordered, `reserved` are for orders. `confirmed` have left."""

    sku: str
    quantity: int
    available: int
    reserved: int
    confirmed: int

    @classmethod
    def of(cls, found: Stock) -> Self:
        """Show what there is of a thing."""
        return cls(
            sku=found.sku,
            quantity=found.quantity,
            available=found.available,
            reserved=found.reserved,
            confirmed=found.confirmed,
        )


class InventoryApi:
    """The routes. Each request is one transaction."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.router = APIRouter(tags=["stock"])
        self.router.add_api_route("/stock/{sku}", self.put, methods=["PUT"])
        self.router.add_api_route("/stock/{sku}", self.get, methods=["GET"])

    async def put(self, sku: Sku, shelf: Shelf) -> StockView:
        """Set how many of a thing are there. 409 when more than that are reserved for orders."""
        async with self._pool.connection() as conn:
            counted = await stock.put(conn, sku, shelf.quantity)
            if counted is None:
                raise HTTPException(409, f"more than {shelf.quantity} of {sku} are reserved for orders")
        return StockView.of(counted)

    async def get(self, sku: Sku) -> StockView:
        """Read what there is of a thing."""
        async with self._pool.connection() as conn:
            found = await stock.get(conn, sku)
        if found is None:
            raise HTTPException(404, f"there is no {sku}")
        return StockView.of(found)
