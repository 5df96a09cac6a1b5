"""The service's HTTP API."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, HTTPException
from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints

from relay.messaging import Pool
from services.contracts import Money
from services.customers import customer

MAX_NAME = 200
"""Characters of a name."""


def _printable(name: str) -> str:
    """PostgreSQL takes no NUL in a text, and nobody's name has a control character."""
    if not name.isprintable():
        raise ValueError("a name consists of printable characters")
    return name


Name = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_NAME), AfterValidator(_printable)
]


class NewCustomer(BaseModel):
    """What a customer begins with."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    credit_limit: Money


class CustomerCreated(BaseModel):
    """The customer's id."""

    customer_id: UUID


class CustomerView(BaseModel):
    """A customer, and how much of the credit is reserved for orders."""

    customer_id: UUID
    name: str
    credit_limit: Money
    reserved: Money


class CustomersApi:
    """The routes. Each request is one transaction."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.router = APIRouter(tags=["customers"])
        self.router.add_api_route("/customers", self.create, methods=["POST"], status_code=201)
        self.router.add_api_route("/customers/{customer_id}", self.get, methods=["GET"])

    async def create(self, new: NewCustomer) -> CustomerCreated:
        """Create a customer."""
        async with self._pool.connection() as conn:
            return CustomerCreated(customer_id=await customer.create(conn, new.name, new.credit_limit))

    async def get(self, customer_id: UUID) -> CustomerView:
        """Read a customer."""
        async with self._pool.connection() as conn:
            found = await customer.get(conn, customer_id)
        if found is None:
            raise HTTPException(404, f"there is no customer {customer_id}")
        return CustomerView(
            customer_id=found.id, name=found.name, credit_limit=found.credit_limit, reserved=found.reserved
        )
