"""The service's part in sagas: credit is reserved for orders, or released.

That each command takes effect once, and not after it was undone, is seen to by its operation.
"""

from relay.messaging import Service, Transaction
from services.contracts import CreditLimitExceeded, CreditReserved, CustomerUnknown, ReleaseCredit, ReserveCredit
from services.customers import customer

customers = Service("customers")


@customers.command(ReserveCredit)
async def reserve_credit(
    command: ReserveCredit, tx: Transaction
) -> CreditReserved | CreditLimitExceeded | CustomerUnknown:
    """Reserve credit so that orders at the same time never exceed the limit."""
    if await customer.reserve(tx.connection, command.customer_id, command.order_id, command.amount):
        return CreditReserved(order_id=command.order_id)
    if await customer.get(tx.connection, command.customer_id) is None:
        return CustomerUnknown(order_id=command.order_id)
    if await customer.has_reservation(tx.connection, command.order_id):
        return CreditReserved(order_id=command.order_id)
    return CreditLimitExceeded(order_id=command.order_id)


@customers.compensation(ReleaseCredit)
async def release_credit(command: ReleaseCredit, tx: Transaction) -> None:
    """Give back what was reserved."""
    await customer.release(tx.connection, command.order_id)
