"""CreateOrder: an order is PENDING until the customer's credit is reserved, then APPROVED, or else CANCELLED."""

from uuid import UUID

from pydantic import BaseModel

from relay.messaging import Service, Transaction
from relay.saga import Orchestrator, Saga
from services.contracts import CreditLimitExceeded, CreditReserved, CustomerUnknown, PositiveMoney, ReserveCredit
from services.orders import order


class CreateOrderState(BaseModel):
    """What the saga knows of its order."""

    order_id: UUID
    customer_id: UUID
    total: PositiveMoney
    reason: str | None = None


create_order = Saga("create_order", state=CreateOrderState)


@create_order.local()
async def create(state: CreateOrderState, tx: Transaction) -> None:
    """The order exists from the moment it is placed."""
    await order.create(tx.connection, state.order_id, state.customer_id, state.total)


@create.compensate
async def reject(state: CreateOrderState, tx: Transaction) -> None:
    """An order is not deleted: who placed it wants to know what became of it."""
    await order.cancel(tx.connection, state.order_id, state.reason)


@create_order.step(to="customers")
def reserve_credit(state: CreateOrderState) -> ReserveCredit:
    """Ask for the credit."""
    return ReserveCredit(order_id=state.order_id, customer_id=state.customer_id, amount=state.total)


@reserve_credit.on(CreditReserved)
def reserved(state: CreateOrderState, reply: CreditReserved) -> None:
    """Nothing to note: the saga goes on."""


@reserve_credit.on(CreditLimitExceeded)
def refused(state: CreateOrderState, reply: CreditLimitExceeded) -> None:
    """The order will be cancelled for this reason."""
    state.reason = "credit limit exceeded"


@reserve_credit.on(CustomerUnknown)
def unknown(state: CreateOrderState, reply: CustomerUnknown) -> None:
    """The order will be cancelled for this reason."""
    state.reason = "unknown customer"


@create_order.local(pivot=True)
async def approve(state: CreateOrderState, tx: Transaction) -> None:
    """From here on the order stands."""
    await order.approve(tx.connection, state.order_id)


orders = Service("orders")
orchestrator = Orchestrator(orders, create_order)
