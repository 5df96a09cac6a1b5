"""What every part of the settings tree is made of."""

import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from relay.duration import seconds


def _duration(given: Any) -> Any:
    """Read `90s`, `30m`, `12h` or `7d`."""
    return timedelta(seconds=seconds(given if isinstance(given, str) else ""))


Duration = Annotated[timedelta, BeforeValidator(_duration)]
"""A time as people write it: a number and one of ms, s, m, h, d."""


class Frozen(BaseModel):
    """A part of the tree."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def in_order(tables: Any, name: str, example: str) -> Any:
    """An array of tables: kept by their index while flags, environment and file are laid over each other."""
    if not isinstance(tables, Mapping):
        return tables
    if not all(isinstance(index, str) and index.isdecimal() for index in tables):
        raise ValueError(f"should be {name} tables in a file, or numbered from 0, like {example}")
    return [tables[index] for index in sorted(tables, key=int)]


def by_index(tables: Any) -> Any:
    """An array of tables in a file, by its indexes."""
    return {str(index): table for index, table in enumerate(tables)} if isinstance(tables, list) else tables


def from_json(value: Any) -> Any:
    """What a variable says for a list or a table; anything else as it is."""
    if isinstance(value, str) and value.startswith(("[", "{")):
        try:
            return json.loads(value)
        except ValueError:
            raise ValueError("is not JSON") from None
    return value
