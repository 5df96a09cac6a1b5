"""Values of PostgreSQL as text -> JSON that keeps their meaning. Pure. docs/values.md has the mapping.

The text is what a type's output function writes in a session of the relay (relay/wal/connection.py): DateStyle ISO,
TimeZone UTC, IntervalStyle postgres, bytea_output hex, extra_float_digits 1. The readers of compound text, such as
`array_items`, stand by themselves, and raise ValueError where the text is not of that form.
Sources: PostgreSQL documentation, "Arrays", "Composite Types", "Date/Time Types", "hstore"; RFC 8259; ISO 8601.
"""

import re
from base64 import b64encode
from collections.abc import Callable
from functools import lru_cache
from json import JSONEncoder
from typing import Final, NamedTuple, TypeAlias

from relay.capture.message import CaptureError
from relay.wal.pgtype import Category, PgType

Encoder: TypeAlias = "Callable[[bytes], bytes]"
"""The text of one value, as PostgreSQL writes it -> JSON. Raises CaptureError when the text is not of its type."""

Items: TypeAlias = "list[str | Items | None]"
"""What an array holds: text, None for a null, or what an array in it holds."""

_Text: TypeAlias = "Callable[[str], str]"

# -- readers ----------------------------------------------------------------------------------------------------------

_DIMENSIONS_MAX: Final = 6
"""PostgreSQL's MAXDIM."""

_BOUNDS = re.compile(r"(?:\[-?\d+:-?\d+\])+=")
"""Before an array whose indexes do not begin at 1."""

_QUOTED: Final = r'"((?:[^"\\]++|\\.)*+)"'
_HSTORE_PAIR = re.compile(rf"{_QUOTED}=>(?:{_QUOTED}|NULL)(?:, (?=\")|\Z)", re.DOTALL)
_FIELD = re.compile(r'(?:"((?:[^"\\]++|""|\\.)*+)"|([^"\\,()]*+))([,)])', re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_ESCAPED_IN_COMPOSITE = re.compile(r'["\\](.)', re.DOTALL)

_DELIMITERS_MAX: Final = 8
"""Delimiters that are remembered: PostgreSQL's own types have two, and hardly any extension has a third."""


def array_items(text: str, delimiter: str = ",") -> Items:
    """The items of an array, in order; bounds other than 1 are dropped. Raises ValueError.

    `delimiter` is that of the array's element type.
    """
    bounds = _BOUNDS.match(text)
    at = bounds.end() if bounds else 0
    if not text.startswith("{", at):
        raise ValueError(f"no array begins at character {at}")
    items, end = _array_from(text, at + 1, delimiter, _array_item(delimiter), 1)
    if end != len(text):
        raise ValueError(f"an array ends at character {end} of {len(text)}")
    return items


@lru_cache(maxsize=_DELIMITERS_MAX)
def _array_item(delimiter: str) -> "re.Pattern[str]":
    """One item that is no array, with what ends it."""
    mark = re.escape(delimiter)
    return re.compile(rf'(?:{_QUOTED}|([^"\\{{}}{mark}]++))([{mark}}}])', re.DOTALL)


def _array_from(text: str, at: int, delimiter: str, item: "re.Pattern[str]", depth: int) -> tuple[Items, int]:
    """What follows an opening brace, and where the closing one ends."""
    items: Items = []
    if text.startswith("}", at):
        return items, at + 1
    while True:
        if text.startswith("{", at) and depth < _DIMENSIONS_MAX:
            inner, at = _array_from(text, at + 1, delimiter, item, depth + 1)
            items.append(inner)
            end, at = text[at : at + 1], at + 1
            if end not in ("}", delimiter):
                raise ValueError(f"an array goes on without a delimiter at character {at - 1}")
        else:
            match = item.match(text, at)
            if match is None:
                raise ValueError(f"no item of an array begins at character {at}")
            quoted, plain, end = match.groups()
            items.append(_unescaped(quoted) if plain is None else None if plain == "NULL" else plain)
            at = match.end()
        if end == "}":
            return items, at


def composite_items(text: str) -> list[str | None]:
    """The attributes of a composite value, in order; None for a null. Raises ValueError.

    A type without attributes and one with a single null look the same, and give one None.
    """
    if not text.startswith("("):
        raise ValueError("no composite value begins")
    items: list[str | None] = []
    at, end = 1, ","
    while end == ",":
        match = _FIELD.match(text, at)
        if match is None:
            raise ValueError(f"no attribute of a composite value begins at character {at}")
        quoted, plain, end = match.groups()
        items.append((plain or None) if quoted is None else _ESCAPED_IN_COMPOSITE.sub(r"\1", quoted))
        at = match.end()
    if at != len(text):
        raise ValueError(f"a composite value ends at character {at} of {len(text)}")
    return items


def hstore_items(text: str) -> dict[str, str | None]:
    """The pairs of an hstore, in its order. Raises ValueError."""
    items: dict[str, str | None] = {}
    at = 0
    while at < len(text):
        match = _HSTORE_PAIR.match(text, at)
        if match is None:
            raise ValueError(f"no pair of an hstore begins at character {at}")
        key, value = match.groups()
        items[_unescaped(key)] = None if value is None else _unescaped(value)
        at = match.end()
    return items


def _unescaped(quoted: str) -> str:
    return _ESCAPED.sub(r"\1", quoted) if "\\" in quoted else quoted


INFINITE: Final = frozenset({"infinity", "-infinity"})
"""Dates, timestamps and intervals that are no place in time."""

_INTERVAL = re.compile(
    r"(?: ([+-]?\d+) years?)?(?: ([+-]?\d+) mons?)?(?: ([+-]?\d+) days?)?"
    r"(?: ([+-]?)(\d+):(\d\d):(\d\d)(?:\.(\d{1,6}))?)?",
    re.ASCII,
)
"""With a blank before each part."""
_MONTHS_A_YEAR: Final = 12
_MICROS: Final = 1_000_000


def interval_parts(text: str) -> tuple[int, int, int]:
    """Months, days and microseconds, each with its own sign, as PostgreSQL keeps them.

    Raises ValueError, for an infinite one too.
    """
    at = _interval(text)
    micros = ((at.hours * 60 + at.minutes) * 60 + at.seconds) * _MICROS + int(at.fraction.ljust(6, "0"))
    return at.years * _MONTHS_A_YEAR + at.months, at.days, -micros if at.minus else micros


class _Interval(NamedTuple):
    years: int
    months: int
    days: int
    minus: bool
    """Whether the time is taken away."""
    hours: int
    minutes: int
    seconds: int
    fraction: str
    """Digits behind the point."""


def _interval(text: str) -> _Interval:
    match = _INTERVAL.fullmatch(f" {text}")
    if match is None:
        raise ValueError("it is no interval of the style postgres")
    years, months, days, sign, hours, minutes, seconds, fraction = match.groups("")
    return _Interval(
        int(years or 0),
        int(months or 0),
        int(days or 0),
        sign == "-",
        int(hours or 0),
        int(minutes or 0),
        int(seconds or 0),
        fraction,
    )


class Moment(NamedTuple):
    """A date, with a time of the day and its zone where the type has them."""

    year: int
    """Astronomical: 0 is 1 BC, -43 is 44 BC."""
    month: int
    day: int
    time: str
    """`12:34:56.789012`, with as many digits as PostgreSQL writes; empty for a date."""
    zone: str
    """`+00`, `-03:30`; empty for types without one."""


_MOMENT = re.compile(
    r"(\d{4,})-(\d\d)-(\d\d)(?: (\d\d:\d\d:\d\d(?:\.\d{1,6})?)([+-]\d\d(?::\d\d){0,2})?)?( BC)?", re.ASCII
)


def moment(text: str) -> Moment:
    """Take a date, a timestamp or a timestamptz apart. Raises ValueError, for an infinite one too."""
    match = _MOMENT.fullmatch(text)
    if match is None:
        raise ValueError("it is no date or timestamp of the style ISO")
    year, month, day, time, zone, before_christ = match.groups("")
    return Moment(1 - int(year) if before_christ else int(year), int(month), int(day), time, zone)


# -- JSON -------------------------------------------------------------------------------------------------------------

_to_json: Final = JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_INTEGER = re.compile(r"-?\d+", re.ASCII)
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?", re.ASCII)
_NOT_FINITE: Final = frozenset({"NaN", "Infinity", "-Infinity"})
_BOOLEANS: Final = {"t": "true", "f": "false"}
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_TIME = re.compile(r"\d\d:\d\d:\d\d(?:\.\d{1,6})?", re.ASCII)
_ZONED_TIME = re.compile(rf"({_TIME.pattern})([+-]\d\d)((?::\d\d){{0,2}})", re.ASCII)
_TIMESTAMP = re.compile(rf"({_DATE.pattern}) ({_TIME.pattern})", re.ASCII)
_TIMESTAMPTZ = re.compile(rf"({_DATE.pattern}) ({_TIME.pattern})\+00", re.ASCII)
_UTC: Final = "+00"
"""What timestamptz ends with in the relay's sessions."""
_LAST_FOUR_DIGIT_YEAR: Final = 9999

_HINT: Final = (
    "Nothing is published past it. If its type was altered, restart the relay, which then reads the type anew;"
    " else leave the column out (exclude_columns), and report the type."
)


class Unreadable(CaptureError):
    """A value's text is not of the form that its type writes."""

    hint = _HINT


def json_string(text: str) -> str:
    """Text as JSON."""
    return _to_json(text)


def encoder(kind: PgType) -> Encoder:
    """What turns the text of a value of this type into JSON. To be made once a column: it is what takes time."""
    encode = _encode(kind)

    def to_json(text: bytes) -> bytes:
        try:
            return encode(text.decode()).encode()
        except UnicodeDecodeError:
            raise Unreadable(f"a value of type {named(kind)} is not UTF-8") from None
        except ValueError as error:
            raise Unreadable(f"a value of type {named(kind)} cannot be read: {error}") from None

    return to_json


def named(kind: PgType) -> str:
    """The type for people."""
    return f"{kind.namespace}.{kind.name}" if kind.namespace else kind.name


def _encode(kind: PgType) -> _Text:
    match kind.category, kind.element:
        case Category.DOMAIN, PgType() as base:
            return _encode(base)
        case Category.ARRAY, PgType() as element:
            return _array(element)
        case Category.COMPOSITE, _:
            return _composite(kind)
        case Category.BASE, _ if kind.name == "hstore":
            return _hstore
        case _:
            return _BY_OID.get(kind.oid, json_string)


def _array(element: PgType) -> _Text:
    delimiter, encode = element.delimiter, _encode(element)

    def items(values: Items) -> str:
        return f"[{','.join([item(value) for value in values])}]"

    def item(value: "str | Items | None") -> str:
        if value is None:
            return "null"
        return items(value) if isinstance(value, list) else encode(value)

    return lambda text: items(array_items(text, delimiter))


def _composite(kind: PgType) -> _Text:
    fields = [(f"{json_string(field.name)}:", _encode(field.type)) for field in kind.fields]

    def write(text: str) -> str:
        values = composite_items(text) if fields or text != "()" else []
        if len(values) > len(fields):
            raise ValueError(f"it has {len(values)} attributes, and its type {len(fields)}")
        # A value from before an ALTER TYPE … ADD ATTRIBUTE has fewer: the new ones come last, and it had none of them.
        pairs = zip(fields, values, strict=False)
        return f"{{{','.join([name + ('null' if text is None else encode(text)) for (name, encode), text in pairs])}}}"

    return write


def _hstore(text: str) -> str:
    return _to_json(hstore_items(text))


def _boolean(text: str) -> str:
    if text not in _BOOLEANS:
        raise ValueError("it is neither t nor f")
    return _BOOLEANS[text]


def _integer(text: str) -> str:
    if not _INTEGER.fullmatch(text):
        raise ValueError("it is no integer")
    return text


def _float(text: str) -> str:
    if text in _NOT_FINITE:
        return f'"{text}"'
    if text == "-0":  # many would read an integer, which has no sign at zero
        return "-0.0"
    if not _NUMBER.fullmatch(text):
        raise ValueError("it is no number")
    return text


def _bytea(text: str) -> str:
    if not text.startswith("\\x"):
        raise ValueError("it is not in hexadecimal")
    return f'"{b64encode(bytes.fromhex(text[2:])).decode()}"'


def _json(text: str) -> str:
    return text


def _date(text: str) -> str:
    if _DATE.fullmatch(text) or text in INFINITE:
        return f'"{text}"'
    at = moment(text)
    if at.time:
        raise ValueError("it is no date")
    return f'"{_iso_day(at)}"'


def _timestamp(text: str) -> str:
    match = _TIMESTAMP.fullmatch(text)
    return f'"{match[1]}T{match[2]}"' if match else _far_off(text, zone="", mark="")


def _timestamptz(text: str) -> str:
    match = _TIMESTAMPTZ.fullmatch(text)
    return f'"{match[1]}T{match[2]}Z"' if match else _far_off(text, zone=_UTC, mark="Z")


def _far_off(text: str, zone: str, mark: str) -> str:
    """A timestamp before the year 1, after 9999, or infinite."""
    if text in INFINITE:
        return f'"{text}"'
    at = moment(text)
    if not at.time or at.zone != zone:
        raise ValueError(f"it is no timestamp {f'at the zone {zone}' if zone else 'without a zone'}")
    return f'"{_iso_day(at)}T{at.time}{mark}"'


def _iso_day(at: Moment) -> str:
    year = f"{at.year:04}" if at.year >= 0 else f"-{-at.year:04}"
    return f"{'+' if at.year > _LAST_FOUR_DIGIT_YEAR else ''}{year}-{at.month:02}-{at.day:02}"


def _time(text: str) -> str:
    if not _TIME.fullmatch(text):
        raise ValueError("it is no time of the style ISO")
    return f'"{text}"'


def _timetz(text: str) -> str:
    match = _ZONED_TIME.fullmatch(text)
    if match is None:
        raise ValueError("it is no time of the style ISO with a zone")
    time, hours, rest = match.groups()
    return f'"{time}{hours}{rest or ":00"}"'


def _interval_to_iso(text: str) -> str:
    if text in INFINITE:
        return f'"{text}"'
    at = _interval(text)
    minus = "-" if at.minus else ""
    date = "".join(f"{number}{unit}" for number, unit in ((at.years, "Y"), (at.months, "M"), (at.days, "D")) if number)
    time = "".join(f"{minus}{number}{unit}" for number, unit in ((at.hours, "H"), (at.minutes, "M")) if number)
    if at.seconds or at.fraction:
        time += f"{minus}{at.seconds}{'.' if at.fraction else ''}{at.fraction}S"
    return f'"P{date}{"T" if time else ""}{time}"' if date or time else '"PT0S"'


_BY_OID: Final[dict[int, _Text]] = {
    16: _boolean,
    17: _bytea,
    21: _integer,  # int2
    23: _integer,  # int4
    26: _integer,  # oid
    28: _integer,  # xid
    29: _integer,  # cid
    114: _json,
    700: _float,  # float4
    701: _float,  # float8
    1082: _date,
    1083: _time,
    1114: _timestamp,
    1184: _timestamptz,
    1186: _interval_to_iso,
    1266: _timetz,
    3802: _json,  # jsonb
}
"""Types that are not a string as PostgreSQL writes it. The numbers of built-in types never change."""
