"""How verbs show rows, ages and times to a person, and everything to a program."""

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

_UNITS: Final = ((86400, "d"), (3600, "h"), (60, "min"))


def columns(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A line for the headings and one for each row, each column as wide as it has to be."""
    lines = [headings, *rows]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def fields(pairs: Iterable[tuple[str, str]]) -> str:
    """A line for each name and its value."""
    pairs = list(pairs)
    width = max(len(name) for name, _ in pairs)
    return "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in pairs)


def age(seconds: float) -> str:
    """How long ago, as a person says it."""
    for unit_s, unit in _UNITS:
        if seconds >= 2 * unit_s:
            return f"{seconds // unit_s:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def moment(at: datetime | None) -> str:
    """A time, to the millisecond."""
    return "-" if at is None else at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def cell(value: object) -> str:
    """A value in one line, or a dash where there is none."""
    return "-" if value is None else " ".join(str(value).split())


def messages(count: int) -> str:
    """So many messages."""
    return "1 message" if count == 1 else f"{count} messages"


def as_json(value: object) -> str:
    """One line; times in ISO 8601."""
    return json.dumps(value, default=_moment, ensure_ascii=False)


def _moment(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{value!r} has no form in JSON")
