"""Which columns of a table a message is made of: what `columns` of a capture says. Pure."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from relay.capture import json_text, timestamp
from relay.capture.message import Kind
from relay.capture.outbox import COLUMNS

VERSION: Final = "version"
"""Of an event in its stream. No field of a message: it travels as a header of this name."""

FIELDS: Final = (*COLUMNS, VERSION)
"""What an expression may be given for."""

REQUIRED: Final = ("aggregate_type", "aggregate_id", "type", "payload")
"""What an expression must be given for. A message without an `id` gets one that is derived."""

_QUOTE: Final = "'"
_QUOTED: Final = re.compile(r'"((?:[^"]|"")+)"')
_UNQUOTED: Final = re.compile(r"""[^\s."']+""")
_LITERAL: Final = re.compile(r"'((?:[^']|'')*)'")


@dataclass(frozen=True, slots=True)
class Literal:
    """The same text for every row."""

    text: str


@dataclass(frozen=True, slots=True)
class Taken:
    """The value of a column, or what a path of keys leads to in a column of JSON."""

    column: str
    path: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ".".join((self.column, *self.path))


Expression: TypeAlias = "Literal | Taken"


@dataclass(frozen=True, slots=True)
class Columns:
    """An expression for each field of a message that the table gives."""

    expressions: Mapping[str, Expression]
    optional: frozenset[str] = frozenset()
    """Fields that are left out where the table lacks their column, instead of being missed."""

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that the expressions take, each once, in the order in which they are met."""
        taken = (each.column for each in self.expressions.values() if isinstance(each, Taken))
        return tuple(dict.fromkeys(taken))

    def within(self, existing: Iterable[str]) -> "Columns":
        """The same for a table with these columns: without the optional fields that it lacks."""
        there = set(existing)
        return Columns(
            {
                field: expression
                for field, expression in self.expressions.items()
                if field not in self.optional or isinstance(expression, Literal) or expression.column in there
            }
        )


def parse(given: Mapping[str, str]) -> Columns:
    """Read what a capture's `columns` say, an expression for a field.

    An expression is a column (`data`, `"odd name"`), a path into a column of JSON (`headers.event-type`,
    `data."a.b".c`) or a literal (`'order'`). Names are taken as they are written: upper and lower case differ.
    Raises ValueError that names every mistake: its field, and the character at which it is, from 1.
    """
    expressions: dict[str, Expression] = {}
    mistakes: list[str] = []
    for field, text in given.items():
        try:
            expressions[field] = _expression(field, text)
        except ValueError as mistake:
            mistakes.append(f"{field}: {mistake}")
    mistakes += [f"{field} is missing" for field in REQUIRED if field not in given]
    if mistakes:
        raise ValueError("; ".join(mistakes))
    return Columns(expressions)


def _expression(field: str, text: str) -> Expression:
    if field not in FIELDS:
        raise ValueError(f"no such field; there are {', '.join(FIELDS)}")
    if not text.startswith(_QUOTE):
        return Taken(*_path(text))
    literal = _LITERAL.match(text)
    if literal is None:
        raise ValueError(f"the literal that begins at character 1 does not end: it needs a {_QUOTE}")
    if literal.end() < len(text):
        raise ValueError(f"nothing may follow the literal, at character {literal.end() + 1}")
    return Literal(_checked(field, literal[1].replace("''", "'")))


def _checked(field: str, literal: str) -> str:
    """A literal that would spoil every row is a mistake here already."""
    if field == "kind" and literal not in list(Kind):
        raise ValueError(f"{literal!r} is no kind; kinds are {', '.join(Kind)}")
    if field == "id":
        raise ValueError("a literal would be the id of every message; leave it out, and ids are derived")
    if field == "headers" and not isinstance(json_text.parse(literal), dict):
        raise ValueError("the literal is no JSON object")
    if field == "created_at":
        timestamp.read(literal)
    return literal


def _path(text: str) -> tuple[str, tuple[str, ...]]:
    """A column, and the keys behind it."""
    names: list[str] = []
    at = 0
    while True:
        name, at = _name(text, at)
        names.append(name)
        if at == len(text):
            return names[0], tuple(names[1:])
        if text[at] != ".":
            raise ValueError(f"unexpected {text[at]!r} at character {at + 1}; write odd names in double quotes")
        at += 1


def _name(text: str, at: int) -> tuple[str, int]:
    if text[at : at + 1] == '"':
        quoted = _QUOTED.match(text, at)
        if quoted is None:
            raise ValueError(f'the name that begins at character {at + 1} is empty, or lacks its second "')
        return quoted[1].replace('""', '"'), quoted.end()
    name = _UNQUOTED.match(text, at)
    if name is None:
        raise ValueError(f"a name should begin at character {at + 1}")
    return name[0], name.end()


OUTBOX: Final = Columns(
    {field: Taken(field) for field in COLUMNS}, frozenset(field for field in COLUMNS if field not in REQUIRED)
)
"""Of a table that is made like relay.outbox: the same names, of which it may lack those that no message needs."""

EVENT_STORE: Final = parse(
    {
        "id": "id",
        "aggregate_type": "stream_type",
        "aggregate_id": "stream_id",
        "type": "type",
        "payload": "data",
        "headers": "headers",
        "created_at": "created_at",
        "version": "version",
    }
)
"""Of relay.event_store: a stream is an aggregate, and an event a message."""
