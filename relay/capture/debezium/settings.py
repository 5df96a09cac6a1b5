"""Settings of the envelope, under Debezium's own names and with its defaults.

Source: Debezium documentation, "Debezium connector for PostgreSQL", connector properties.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from typing import Final, Self, TypeAlias, TypeVar

Given: TypeAlias = "str | bool | int"
"""A value as it stands in a TOML file: "true" and true are the same, as are "2" and 2."""


class DecimalMode(StrEnum):
    """How numeric and money are written."""

    PRECISE = "precise"
    """The digits as a binary integer; its scale is the column's, or beside it when the column has none."""
    DOUBLE = "double"
    STRING = "string"


class TimeMode(StrEnum):
    """The unit of date, time and timestamp; the other types of time do not depend on it."""

    ADAPTIVE = "adaptive"
    """Milliseconds for columns of up to three digits of a second, else microseconds."""
    ADAPTIVE_TIME_MICROSECONDS = "adaptive_time_microseconds"
    """The same, but for time, which is in microseconds."""
    CONNECT = "connect"
    """Milliseconds."""
    ISOSTRING = "isostring"
    MICROSECONDS = "microseconds"
    NANOSECONDS = "nanoseconds"


class IntervalMode(StrEnum):
    """How intervals are written."""

    NUMERIC = "numeric"
    """Microseconds; a month counts as a twelfth of 365.25 days."""
    STRING = "string"


class HstoreMode(StrEnum):
    """How hstore is written."""

    JSON = "json"
    """A string that holds JSON."""
    MAP = "map"


class BinaryMode(StrEnum):
    """How bytea is written. JSON makes bytes and base64 the same, but for values that are not there."""

    BYTES = "bytes"
    BASE64 = "base64"
    BASE64_URL_SAFE = "base64-url-safe"
    HEX = "hex"


class Operation(StrEnum):
    """What `op` says."""

    CREATE = "c"
    UPDATE = "u"
    DELETE = "d"
    TRUNCATE = "t"
    READ = "r"
    """A row of a snapshot."""


UNAVAILABLE: Final = "__debezium_unavailable_value"
"""Debezium's default for unavailable.value.placeholder."""
MONEY_DIGITS_MAX: Final = 18
"""More digits than money can have."""

_HEX: Final = "hex:"
_NONE: Final = "none"
_SKIPPABLE: Final = (Operation.CREATE, Operation.UPDATE, Operation.DELETE, Operation.TRUNCATE)

_Choice = TypeVar("_Choice", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class DebeziumSettings:
    """The settings of one capture, all with Debezium's defaults."""

    decimal: DecimalMode = DecimalMode.PRECISE
    time: TimeMode = TimeMode.ADAPTIVE
    interval: IntervalMode = IntervalMode.NUMERIC
    hstore: HstoreMode = HstoreMode.JSON
    binary: BinaryMode = BinaryMode.BYTES
    include_unknown: bool = False
    """Whether columns are sent whose types Debezium does not know: as bytes."""
    tombstones: bool = True
    """Whether an empty message follows each delete."""
    topic_prefix: str | None = None
    """`source.name`; None is the name of the source."""
    unavailable: str = UNAVAILABLE
    """What stands for a value that PostgreSQL did not send."""
    skipped: frozenset[Operation] = frozenset({Operation.TRUNCATE})
    money_digits: int = 2
    """Decimal places of money, with `precise`."""

    @classmethod
    def parse(cls, given: Mapping[str, Given]) -> Self:
        """Read settings under Debezium's names. Raises ValueError with a line for each mistake."""
        reader = _Reader(given)
        settings = cls(
            decimal=reader.choice("decimal.handling.mode", DecimalMode.PRECISE),
            time=reader.choice("time.precision.mode", TimeMode.ADAPTIVE),
            interval=reader.choice("interval.handling.mode", IntervalMode.NUMERIC),
            hstore=reader.choice("hstore.handling.mode", HstoreMode.JSON),
            binary=reader.choice("binary.handling.mode", BinaryMode.BYTES),
            include_unknown=reader.flag("include.unknown.datatypes", default=False),
            tombstones=reader.flag("tombstones.on.delete", default=True),
            topic_prefix=reader.text("topic.prefix"),
            unavailable=reader.placeholder("unavailable.value.placeholder"),
            skipped=reader.operations("skipped.operations"),
            money_digits=reader.digits("money.fraction.digits", default=2),
        )
        reader.finish()
        return settings


class _Reader:
    """Takes values by name, and remembers what is wrong with them and what was never asked for."""

    def __init__(self, given: Mapping[str, Given]) -> None:
        self._left = dict(given)
        self._known: list[str] = []
        self._mistakes: list[str] = []

    def choice(self, name: str, default: _Choice) -> _Choice:
        text, choices = self._take(name), type(default)
        if text is None:
            return default
        if text.lower() not in list(choices):
            return self._wrong(f"{name} should be {_one_of(choices)}", default)
        return choices(text.lower())

    def flag(self, name: str, *, default: bool) -> bool:
        text = self._take(name)
        if text is None:
            return default
        if text.lower() not in {"true", "false"}:
            return self._wrong(f"{name} should be true or false", default)
        return text.lower() == "true"

    def text(self, name: str) -> str | None:
        text = self._take(name)
        return self._wrong(f"{name} should not be empty", text) if text == "" else text

    def digits(self, name: str, *, default: int) -> int:
        text = self._take(name)
        if text is None:
            return default
        if text not in map(str, range(MONEY_DIGITS_MAX + 1)):
            return self._wrong(f"{name} should be a number from 0 to {MONEY_DIGITS_MAX}", default)
        return int(text)

    def placeholder(self, name: str) -> str:
        """A text; or its bytes in UTF-8, as hexadecimal digits after `hex:`."""
        text = self._take(name)
        if text is None:
            return UNAVAILABLE
        if not text.startswith(_HEX):
            return text
        try:
            return bytes.fromhex(text.removeprefix(_HEX)).decode()
        except ValueError:
            return self._wrong(f"{name} should have a text's bytes in UTF-8 as hexadecimal digits after {_HEX}", text)

    def operations(self, name: str) -> frozenset[Operation]:
        text = self._take(name)
        if text is None:
            return frozenset({Operation.TRUNCATE})
        parts = [part.strip() for part in text.lower().split(",")]
        if parts == [_NONE]:
            return frozenset()
        if not set(parts) <= set(_SKIPPABLE):
            wanted = ", ".join(_SKIPPABLE)
            return self._wrong(f"{name} should be some of {wanted} with commas between them, or none", frozenset())
        return frozenset(Operation(part) for part in parts)

    def finish(self) -> None:
        """Raises ValueError when anything was wrong, or is left over."""
        for name in self._left:
            close = get_close_matches(name, self._known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(self._known)}"
            self._mistakes.append(f"{name} is no setting of this envelope: {hint}")
        if self._mistakes:
            raise ValueError("\n".join(self._mistakes))

    def _take(self, name: str) -> str | None:
        self._known.append(name)
        value = self._left.pop(name, None)
        if value is None:
            return None
        return str(value).lower() if isinstance(value, bool) else str(value).strip()

    def _wrong(self, sentence: str, value: "_Value") -> "_Value":
        self._mistakes.append(sentence)
        return value


_Value = TypeVar("_Value")


def _one_of(choices: Iterable[str]) -> str:
    *others, last = choices
    return f"{', '.join(others)} or {last}"
