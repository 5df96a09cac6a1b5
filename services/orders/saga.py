"""CreateOrder: an order is PENDING until credit and stock are reserved for it, then APPROVED, or else CANCELLED."""

from uuid import UUID

from pydantic import BaseModel

from relay.messaging import Retry, Service, Transaction
from relay.saga import Orchestrator, Saga
from services.contracts import (
    ConfirmStock,
    CreditLimitExceeded,
    CreditReserved,
    CustomerUnknown,
    Lines,
    OutOfStock,
    PositiveMoney,
    ReleaseCredit,
    ReleaseStock,
    ReserveCredit,
    ReserveStock,
    StockReserved,
)
from services.orders import order


class CreateOrderState(BaseModel):
    """What the saga knows of its order."""

    order_id: UUID
    customer_id: UUID
    total: PositiveMoney
    lines: Lines = ()
    reason: str | None = None


def has_lines(state: CreateOrderState) -> bool:
    """Whether the order says what is ordered."""
    return bool(state.lines)


create_order = Saga("create_order", state=CreateOrderState)


@create_order.local()
async def create(state: CreateOrderState, tx: Transaction) -> None:
    """The order exists from the moment it is placed."""
    await order.create(tx.connection, state.order_id, state.customer_id, state.total, state.lines)


@create.compensate
async def reject(state: CreateOrderState, tx: Transaction) -> None:
    """An order is not deleted: who placed it wants to know what became of it."""
    await order.cancel(tx.connection, state.order_id, state.reason or "no answer in time")


with create_order.parallel():

    @create_order.step(to="customers", timeout="30s")
    def reserve_credit(state: CreateOrderState) -> ReserveCredit:
        """Ask for the credit."""
        return ReserveCredit(order_id=state.order_id, customer_id=state.customer_id, amount=state.total)

    @create_order.step(to="inventory", when=has_lines, timeout="2s", retry=Retry(attempts=2, backoff="500ms..1s"))
    def reserve_stock(state: CreateOrderState) -> ReserveStock:
        """Ask for the goods. Who orders does not wait long for those: without an answer the order is cancelled."""
        return ReserveStock(order_id=state.order_id, lines=state.lines)


@reserve_credit.on(CreditReserved)
def credit_reserved(state: CreateOrderState, reply: CreditReserved) -> None:
    """Nothing to note: the saga goes on."""


@reserve_credit.on(CreditLimitExceeded)
def credit_refused(state: CreateOrderState, reply: CreditLimitExceeded) -> None:
    """The order will be cancelled for this reason."""
    state.reason = "credit limit exceeded"


@reserve_credit.on(CustomerUnknown)
def customer_unknown(state: CreateOrderState, reply: CustomerUnknown) -> None:
    """The order will be cancelled for this reason."""
    state.reason = "unknown customer"


@reserve_credit.compensate
def release_credit(state: CreateOrderState) -> ReleaseCredit:
    """Others may have it."""
    return ReleaseCredit(order_id=state.order_id)


@reserve_stock.on(StockReserved)
def stock_reserved(state: CreateOrderState, reply: StockReserved) -> None:
    """Nothing to note: the saga goes on."""


@reserve_stock.on(OutOfStock)
def out_of_stock(state: CreateOrderState, reply: OutOfStock) -> None:
    """The order will be cancelled for this reason."""
    state.reason = "out of stock"


@reserve_stock.compensate
def release_stock(state: CreateOrderState) -> ReleaseStock:
    """Others may have it."""
    return ReleaseStock(order_id=state.order_id)


@create_order.local(pivot=True)
async def approve(state: CreateOrderState, tx: Transaction) -> None:
    """From here on the order stands."""
    await order.approve(tx.connection, state.order_id)


@create_order.step(to="inventory", when=has_lines)
def confirm_stock(state: CreateOrderState) -> ConfirmStock:
    """The goods are sold."""
    return ConfirmStock(order_id=state.order_id)


orders = Service("orders")
orchestrator = Orchestrator(orders, create_order)
