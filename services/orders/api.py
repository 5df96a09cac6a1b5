"""The service's HTTP API."""

from typing import Annotated, Self
from uuid import UUID, uuid4

from fastapi import APIRouter, HTTPException, Query, Response
from pydantic import BaseModel, ConfigDict

from relay.messaging import Pool
from services.contracts import Line, Lines, Money, PositiveMoney
from services.orders import order
from services.orders.order import Order
from services.orders.saga import CreateOrderState, create_order, orchestrator

MAX_ORDERS = 10_000
"""Orders in one answer."""

Limit = Annotated[int, Query(ge=1, le=MAX_ORDERS, description="How many orders at most, the newest first.")]


class NewOrder(BaseModel):
    """What is ordered, by whom."""

    model_config = ConfigDict(extra="forbid")

    customer_id: UUID
    total: PositiveMoney
    lines: Lines = ()


class OrderPlaced(BaseModel):
    """The order is taken down; what becomes of it shows at the Location."""

    order_id: UUID
    state: str


class OrderView(BaseModel):
    """An order. Its state is PENDING, APPROVED or CANCELLED, and then the reason says why."""

    order_id: UUID
    state: str
    reason: str | None
    total: Money
    customer_id: UUID
    lines: list[Line]

    @classmethod
    def of(cls, found: Order) -> Self:
        """Show an order."""
        return cls(
            order_id=found.id,
            state=found.state,
            reason=found.reason,
            total=found.total,
            customer_id=found.customer_id,
            lines=[Line.model_validate(line) for line in found.lines],
        )


class OrdersApi:
    """The routes. Each request is one transaction."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.router = APIRouter(tags=["orders"])
        self.router.add_api_route("/orders", self.place, methods=["POST"], status_code=202)
        self.router.add_api_route("/orders", self.newest, methods=["GET"])
        self.router.add_api_route("/orders/{order_id}", self.get, methods=["GET"])

    async def place(self, new: NewOrder, response: Response) -> OrderPlaced:
        """Place an order: the order and the saga that decides about it begin in one transaction."""
        order_id = uuid4()
        state = CreateOrderState(order_id=order_id, customer_id=new.customer_id, total=new.total, lines=new.lines)
        async with self._pool.connection() as conn, conn.transaction():
            await orchestrator.start(create_order, state, conn)
        response.headers["Location"] = f"/orders/{order_id}"
        return OrderPlaced(order_id=order_id, state="PENDING")

    async def get(self, order_id: UUID) -> OrderView:
        """Read an order."""
        async with self._pool.connection() as conn:
            found = await order.get(conn, order_id)
        if found is None:
            raise HTTPException(404, f"there is no order {order_id}")
        return OrderView.of(found)

    async def newest(self, customer_id: UUID | None = None, limit: Limit = 1000) -> list[OrderView]:
        """List orders, of one customer or of all, the newest first."""
        async with self._pool.connection() as conn:
            return [OrderView.of(found) for found in await order.newest(conn, customer_id, limit)]
