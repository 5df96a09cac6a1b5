"""How settings name tables and columns: SQL identifiers with dots between them. Pure."""

import re
from typing import Final, NamedTuple, Self

from relay.wal.table import TableName

ANY: Final = "*"
"""In place of a table's name: every table of the schema."""

_PART: Final = re.compile(r'"(?P<quoted>(?:[^"]|"")+)"|(?P<plain>[^\W\d][\w$]*)|(?P<any>\*)')
"""Source: PostgreSQL documentation, "Identifiers and Key Words"."""

_LOWER: Final = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}
"""PostgreSQL folds the letters A to Z of a name that is not quoted, and in UTF-8 no others."""

_QUOTES: Final = 'a name with upper case, dots or other signs is written in double quotes, like public."Odd.Name"'


class TablePattern(NamedTuple):
    """One table, or all of a schema."""

    schema: str
    name: str | None
    """None for every table of the schema."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `public.customers`, `sales.*` or `"Odd"."na.me"`. Raises ValueError, which says where the mistake is."""
        parts = _parts(text)
        if len(parts) != 2 or parts[0] is None:
            raise ValueError(f"{text!r} is no table: write schema.table, or schema.* for every table of a schema")
        return cls(parts[0], parts[1])

    def covers(self, table: TableName) -> bool:
        """Whether the table is meant."""
        return self.schema == table.schema and self.name in (None, table.name)


class ColumnPattern(NamedTuple):
    """A column of one table, or the columns of that name in every table."""

    table: TableName | None
    """None for every table."""
    column: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `password` or `public.customers.ssn`. Raises ValueError, which says where the mistake is."""
        parts = [part for part in _parts(text) if part is not None]
        if text.endswith(ANY) or len(parts) not in (1, 3):
            raise ValueError(f"{text!r} is no column: write column, or schema.table.column")
        return cls(TableName(parts[0], parts[1]) if len(parts) == 3 else None, parts[-1])

    def covers(self, table: TableName, column: str) -> bool:
        """Whether this column of this table is meant."""
        return self.column == column and self.table in (None, table)


def _parts(text: str) -> list[str | None]:
    """The identifiers of a dotted name, None for an asterisk, which has to be the last."""
    parts: list[str | None] = []
    at = 0
    while True:
        found = _PART.match(text, at)
        if found is None:
            raise ValueError(f"{text!r} has no name at character {at + 1}; {_QUOTES}")
        at = found.end()
        parts.append(_name(found))
        if at == len(text):
            return parts
        if text[at] != "." or parts[-1] is None:
            raise ValueError(f"{text!r} goes wrong at character {at + 1}; {_QUOTES}")
        at += 1


def _name(found: "re.Match[str]") -> str | None:
    if found["any"]:
        return None
    if found["quoted"]:
        return found["quoted"].replace('""', '"')
    return found["plain"].translate(_LOWER)
