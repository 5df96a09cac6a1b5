"""The service's part in sagas: stock is reserved for orders, then sold or released.

That each command takes effect once, and not after it was undone, is seen to by its operation.
"""

from relay.messaging import Service, Transaction, Unprocessable
from services.contracts import ConfirmStock, OutOfStock, ReleaseStock, ReserveStock, StockReserved
from services.inventory import stock

inventory = Service("inventory")


@inventory.command(ReserveStock)
async def reserve_stock(command: ReserveStock, tx: Transaction) -> StockReserved | OutOfStock:
    """Reserve while the rows are locked, so that orders at the same time never have more than there is."""
    wanted = {line.sku: line.quantity for line in command.lines}
    available = await stock.lock(tx.connection, list(wanted))
    for sku, quantity in wanted.items():
        if available.get(sku, 0) < quantity:
            return OutOfStock(order_id=command.order_id, sku=sku)
    await stock.reserve(tx.connection, command.order_id, wanted)
    return StockReserved(order_id=command.order_id)


@inventory.compensation(ReleaseStock)
async def release_stock(command: ReleaseStock, tx: Transaction) -> None:
    """Give back what was reserved."""
    await stock.release(tx.connection, command.order_id)


@inventory.command(ConfirmStock)
async def confirm_stock(command: ConfirmStock, tx: Transaction) -> None:
    """Sell what was reserved."""
    if not await stock.confirm(tx.connection, command.order_id):
        raise Unprocessable(f"nothing is reserved for order {command.order_id}")
