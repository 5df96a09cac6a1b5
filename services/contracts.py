"""What the services say to each other, and how all of them write money."""

import re
from decimal import Decimal
from typing import Annotated, Final, TypeAlias
from uuid import UUID

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema

from relay.messaging import Command, Failure, Reply

MAX_AMOUNT: Final = Decimal("9999999999.99")
"""The largest amount: what numeric(12, 2) holds."""

_AMOUNT: Final = re.compile(r"[0-9]{1,10}(\.[0-9]{1,2})?", re.ASCII)


def _exact(value: object) -> Decimal:
    """Accept what says an amount exactly. JSON numbers do not: many readers make floats of them."""
    if isinstance(value, Decimal):
        value = format(value, "f")
    if not isinstance(value, str) or not _AMOUNT.fullmatch(value):
        raise ValueError('an amount is a string with at most two decimal places, like "25.00"')
    return Decimal(value)


def _two_places(amount: Decimal) -> str:
    return f"{amount:.2f}"


_SCHEMA: Final = {"type": "string", "pattern": rf"^{_AMOUNT.pattern}$", "examples": ["25.00"]}

Money: TypeAlias = Annotated[
    Decimal,
    BeforeValidator(_exact),
    PlainSerializer(_two_places, return_type=str, when_used="json"),
    WithJsonSchema(_SCHEMA),
]
"""An amount from 0 to MAX_AMOUNT, exact to two places. In JSON it is a string: "25", "25.5" and "25.00" are read,
"25.00" is written."""

PositiveMoney: TypeAlias = Annotated[Money, Field(gt=0)]
"""An amount above 0."""


class ReserveCredit(Command):
    """Reserve part of a customer's credit for an order. A second one for the same order reserves nothing more."""

    order_id: UUID
    customer_id: UUID
    amount: PositiveMoney


class CreditReserved(Reply):
    """The amount is reserved."""

    order_id: UUID


class CreditLimitExceeded(Failure):
    """The amount is more than the customer's credit allows."""

    order_id: UUID


class CustomerUnknown(Failure):
    """There is no such customer."""

    order_id: UUID
