"""PostgreSQL's types, as far as a value's text cannot be read without knowing its type. Pure values."""

from dataclasses import dataclass
from enum import StrEnum


class Category(StrEnum):
    """How a type is made, from pg_type.typtype and typelem."""

    BASE = "base"
    ENUM = "enum"
    DOMAIN = "domain"
    """`element` is the type that it restricts."""
    ARRAY = "array"
    """`element` is the type of its elements."""
    COMPOSITE = "composite"
    """`fields` are its attributes."""
    RANGE = "range"
    """`element` is the type of its bounds."""
    MULTIRANGE = "multirange"
    """`element` is the type of its ranges."""


@dataclass(frozen=True, slots=True)
class PgType:
    """One type, and the types that it is made of."""

    oid: int
    namespace: str
    name: str
    """As pg_type.typname has it: int4, _int4, timestamptz, mood."""
    category: Category = Category.BASE
    element: "PgType | None" = None
    delimiter: str = ","
    """Between the elements of an array of this type: a semicolon for box, else a comma."""
    modifier: int = -1
    """A domain's own type modifier: the scale of a numeric(10,2), for instance."""
    fields: "tuple[Field, ...]" = ()


@dataclass(frozen=True, slots=True)
class Field:
    """An attribute of a composite type."""

    name: str
    type: PgType
    modifier: int = -1


def unknown(oid: int) -> PgType:
    """A type that the server does not have any more: its values are text."""
    return PgType(oid, "", f"type {oid}")
