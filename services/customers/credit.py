"""The service's part in sagas: credit is reserved for orders."""

from relay.messaging import Service, Transaction
from services.contracts import CreditLimitExceeded, CreditReserved, CustomerUnknown, ReserveCredit
from services.customers import customer

customers = Service("customers")


@customers.command(ReserveCredit)
async def reserve_credit(
    command: ReserveCredit, tx: Transaction
) -> CreditReserved | CreditLimitExceeded | CustomerUnknown:
    """Reserve credit while the customer's row is locked, so that orders at the same time never exceed the limit."""
    owner = await customer.lock(tx.connection, command.customer_id)
    if owner is None:
        return CustomerUnknown(order_id=command.order_id)
    if await customer.has_reservation(tx.connection, command.order_id):
        return CreditReserved(order_id=command.order_id)
    if not owner.can_reserve(command.amount):
        return CreditLimitExceeded(order_id=command.order_id)
    await customer.reserve(tx.connection, owner.id, command.order_id, command.amount)
    return CreditReserved(order_id=command.order_id)
