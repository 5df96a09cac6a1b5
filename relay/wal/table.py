"""A table's name. Pure."""

from typing import NamedTuple


class TableName(NamedTuple):
    """A table, as pg_class knows it: no quotes, no search path."""

    schema: str
    name: str

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"
