"""What the services say to each other, and how all of them write money and goods."""

import re
from decimal import Decimal
from typing import Annotated, Final, TypeAlias
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    WithJsonSchema,
)

from relay.messaging import Command, Failure, Reply

MAX_AMOUNT: Final = Decimal("9999999999.99")
"""The largest amount: what numeric(12, 2) holds."""

MAX_SKU: Final = 64
"""Characters of a stock keeping unit."""

MAX_QUANTITY: Final = 1_000_000
"""How many of a thing there may be, in a line or in stock."""

MAX_LINES: Final = 100
"""Lines of an order."""

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


def _sku(value: str) -> str:
    """It is a part of a URL's path, and PostgreSQL takes no NUL in a text."""
    if not value.isprintable() or "/" in value:
        raise ValueError("a SKU consists of printable characters, without a slash")
    return value


Sku: TypeAlias = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_SKU), AfterValidator(_sku)
]
"""What a thing is called in stock."""


class Line(BaseModel):
    """So many of a thing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sku: Sku
    quantity: Annotated[int, Field(strict=True, ge=1, le=MAX_QUANTITY)]


def _each_once(lines: tuple[Line, ...]) -> tuple[Line, ...]:
    if len({line.sku for line in lines}) < len(lines):
        raise ValueError("each SKU has one line: add up the quantities")
    return lines


Lines: TypeAlias = Annotated[tuple[Line, ...], Field(max_length=MAX_LINES), AfterValidator(_each_once)]
"""What is ordered."""


# Customer Service


class CreditReserved(Reply):
    """The amount is reserved."""

    order_id: UUID


class CreditLimitExceeded(Failure):
    """The amount is more than the customer's credit allows."""

    order_id: UUID


class CustomerUnknown(Failure):
    """There is no such customer."""

    order_id: UUID


class ReserveCredit(Command):
    """Reserve part of a customer's credit for an order. A second one for the same order reserves nothing more."""

    replies = (CreditReserved, CreditLimitExceeded, CustomerUnknown)

    order_id: UUID
    customer_id: UUID
    amount: PositiveMoney


class ReleaseCredit(Command):
    """Undo ReserveCredit: the order's credit may be reserved for others."""

    order_id: UUID


# Inventory Service


class StockReserved(Reply):
    """All of it is reserved."""

    order_id: UUID


class OutOfStock(Failure):
    """There is not enough of a thing, or no such thing: nothing is reserved."""

    order_id: UUID
    sku: str


class ReserveStock(Command):
    """Reserve what is ordered: all of it, or nothing."""

    replies = (StockReserved, OutOfStock)

    order_id: UUID
    lines: Lines


class ReleaseStock(Command):
    """Undo ReserveStock: what is reserved for the order may be had by others."""

    order_id: UUID


class ConfirmStock(Command):
    """What is reserved for the order is sold, and will not come back."""

    order_id: UUID
