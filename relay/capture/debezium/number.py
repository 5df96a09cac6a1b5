"""Numbers of PostgreSQL as text -> JSON as Debezium writes it. Every function raises ValueError for other text."""

import re
from base64 import b64encode
from collections.abc import Callable
from decimal import ROUND_HALF_UP, Context, Decimal, InvalidOperation
from typing import Final

from relay.capture.debezium.settings import DebeziumSettings, DecimalMode

_NOT_FINITE: Final = frozenset({"NaN", "Infinity", "-Infinity"})

_PLAIN_FLOAT = re.compile(r"-?(?:0\.(?!000)\d+|[1-9]\d{0,6}\.\d+)", re.ASCII)
"""What Java and PostgreSQL write in the same way: from 0.001 to below 10,000,000, with a point."""
_FLOAT = re.compile(r"(-?)(\d+)(?:\.(\d+))?(?:e([+-]?\d+))?", re.ASCII | re.IGNORECASE)
_PLAIN_FROM: Final = -3
_PLAIN_BELOW: Final = 7
"""Java writes powers of ten from the first to below the second without an exponent. Source: Double.toString."""

_INTEGER = re.compile(r"-?\d+", re.ASCII)
_NUMERIC = re.compile(r"(-?\d+)(?:\.(\d+))?", re.ASCII)
_SPECIAL: Final = {"NaN": '"NAN"', "Infinity": '"POSITIVE_INFINITY"', "-Infinity": '"NEGATIVE_INFINITY"'}
"""What Debezium calls them with `string`."""

_PARENTHESIS_OR_MINUS = re.compile(r"[-(]")
_NO_DIGIT_OR_POINT = re.compile(r"[^\d.,]", re.ASCII)
_MONEY = re.compile(r"([\d.,]*?)(?:[.,](\d\d))?", re.ASCII)
_INT_DIGITS: Final = 640
"""As many as Python's int always takes: how many more it does is a setting. PostgreSQL has up to 147,455."""
_NUMERIC_HEADER: Final = 4
"""Of a type modifier. Source: PostgreSQL's numeric.c, make_numeric_typmod."""
_SCALE_MASK: Final = 0x7FF
_SCALE_SIGN: Final = 0x400


def boolean(text: str) -> str:
    """Of PostgreSQL's t and f."""
    if text not in ("t", "f"):
        raise ValueError("it is neither t nor f")
    return "true" if text == "t" else "false"


def integer(text: str) -> str:
    """Of all sizes."""
    if not _INTEGER.fullmatch(text):
        raise ValueError("it is no integer")
    return text


def floating(text: str) -> str:
    """A float4 or float8, from the shortest digits that tell it from others, in the form of Java's Double.toString.

    What is not finite is a string, as Debezium's converter writes it.
    """
    if text in _NOT_FINITE:
        return f'"{text}"'
    return java_float(text)


def java_float(text: str) -> str:
    """A finite float in Java's form: 1.0, 1.0E-4, 1.6777216E7."""
    if _PLAIN_FLOAT.fullmatch(text):
        return text
    match = _FLOAT.fullmatch(text)
    if match is None:
        raise ValueError("it is no number")
    sign, whole, fraction, exponent = match.groups("")
    digits = (whole + fraction).lstrip("0")
    if not digits:
        return f"{sign}0.0"
    power = int(exponent or 0) - len(fraction) + len(digits) - 1
    digits = digits.rstrip("0")
    if not _PLAIN_FROM <= power < _PLAIN_BELOW:
        return f"{sign}{digits[0]}.{digits[1:] or '0'}E{power}"
    if power < 0:
        return f"{sign}0.{'0' * (-power - 1)}{digits}"
    return f"{sign}{digits[: power + 1].ljust(power + 1, '0')}.{digits[power + 1 :] or '0'}"


def numeric(modifier: int, settings: DebeziumSettings) -> Callable[[str], str]:
    """What writes a numeric of a column with this type modifier."""
    match settings.decimal:
        case DecimalMode.STRING:
            return _numeric_string
        case DecimalMode.DOUBLE:
            return _numeric_double
        case DecimalMode.PRECISE if modifier < _NUMERIC_HEADER:
            return _numeric_of_any_scale
        case DecimalMode.PRECISE:
            return _numeric_of_scale(_scale(modifier))


def _scale(modifier: int) -> int:
    """The scale that a type modifier holds. A negative one, with which values are still written whole, is 0."""
    scale = ((modifier - _NUMERIC_HEADER) & _SCALE_MASK ^ _SCALE_SIGN) - _SCALE_SIGN
    return max(scale, 0)


def _numeric_string(text: str) -> str:
    return _SPECIAL[text] if text in _SPECIAL else f'"{_digits(text)[0]}"'


def _numeric_double(text: str) -> str:
    if text in _SPECIAL:
        return f'"{text}"'
    return _double(_digits(text)[0])


def _double(digits: str) -> str:
    number = float(digits)
    return (
        ('"-Infinity"' if number < 0 else '"Infinity"') if number in (_INFINITY, -_INFINITY) else floating(repr(number))
    )


def _numeric_of_any_scale(text: str) -> str:
    if text in _SPECIAL:
        return "null"
    _, whole, fraction = _digits(text)
    fraction = fraction.rstrip("0")
    return f'{{"scale":{len(fraction)},"value":{unscaled(whole + fraction)}}}'


def _numeric_of_scale(scale: int) -> Callable[[str], str]:
    def write(text: str) -> str:
        if text in _SPECIAL:
            return "null"
        _, whole, fraction = _digits(text)
        if len(fraction) > scale:
            raise ValueError(f"it has {len(fraction)} decimal places, and its column {scale}")
        return unscaled(whole + fraction.ljust(scale, "0"))

    return write


def _digits(text: str) -> tuple[str, str, str]:
    """A finite numeric: all of it, what stands before the point with the sign, what stands after it."""
    match = _NUMERIC.fullmatch(text)
    if match is None:
        raise ValueError("it is no numeric")
    return text, match[1], match[2] or ""


def unscaled(digits: str) -> str:
    """An integer of any size as base64 of its bytes: two's complement, the highest first, as few as hold it.

    Source: java.math.BigInteger.toByteArray.
    """
    number = int(digits) if len(digits) <= _INT_DIGITS else int(Decimal(digits))
    length = (number if number >= 0 else ~number).bit_length() // 8 + 1
    return f'"{b64encode(number.to_bytes(length, "big", signed=True)).decode()}"'


def money(settings: DebeziumSettings) -> Callable[[str], str]:
    """What writes money."""
    match settings.decimal:
        case DecimalMode.STRING:
            return lambda text: f'"{_amount(text)}"'
        case DecimalMode.DOUBLE:
            return lambda text: _double(_amount(text))
        case DecimalMode.PRECISE:
            return _money_of_scale(settings.money_digits)


def _money_of_scale(scale: int) -> Callable[[str], str]:
    def write(text: str) -> str:
        rounded = Decimal(_amount(text)).scaleb(scale, _ROUNDED).quantize(Decimal(1), context=_ROUNDED)
        return unscaled(f"{rounded:f}")

    return write


def _amount(text: str) -> str:
    """Of `$1,234.50`, `-12,34 €` or `(1)`: its digits, with a point before two decimal places.

    The session's lc_monetary decides the form. A sign for thousands has three digits behind it, the decimal point two.
    """
    sign = "-" if _PARENTHESIS_OR_MINUS.search(text) else ""
    match = _MONEY.fullmatch(_NO_DIGIT_OR_POINT.sub("", text).strip(".,"))
    whole = match[1].replace(",", "").replace(".", "") if match else ""
    if match is None or not whole:
        raise ValueError("it is no amount of money")
    return f"{sign}{whole}.{match[2]}" if match[2] else f"{sign}{whole}"


_ROUNDED: Final = Context(prec=60, rounding=ROUND_HALF_UP, traps=[InvalidOperation])
"""Enough for the digits of money, 19, and those of MONEY_DIGITS_MAX."""
_INFINITY: Final = float("inf")
