"""Dates, times and intervals of PostgreSQL as text -> JSON as Debezium writes it.

Every function raises ValueError for other text. What Debezium makes of infinite dates and timestamps is a number or a
day far away, and that is kept: its consumers may know it by that.
"""

import re
from collections.abc import Callable
from datetime import date
from math import floor
from typing import Final

from relay.capture.debezium.settings import DebeziumSettings, IntervalMode, TimeMode
from relay.capture.values import INFINITE, Moment, interval_parts, moment

_MICROS: Final = 1_000_000
_DAY_S: Final = 86_400
_MINUTE: Final = 60
_HOUR: Final = 3_600
_MILLIS_DIGITS: Final = 3
_MICROS_DIGITS: Final = 6

_INT64_MAX: Final = 2**63 - 1
_INT64_MIN: Final = -(2**63)

_EPOCH: Final = date(1970, 1, 1).toordinal()
_CYCLE_YEARS: Final = 400
_CYCLE_DAYS: Final = 146_097
"""The calendar repeats itself: so Python's, which ends at 9999, is enough."""
_LAST_FOUR_DIGIT_YEAR: Final = 9999

_INFINITE_DAYS: Final = {"infinity": "-2147472692", "-infinity": "-2147472691"}
_INFINITE_DATES: Final = {"infinity": '"-5877611-06-21Z"', "-infinity": '"-5877611-06-22Z"'}
_INFINITE_MICROS: Final = {"infinity": 9_223_372_036_825_200_000, "-infinity": -9_223_372_036_832_400_000}
"""PGStatement's DATE_POSITIVE_INFINITY and DATE_NEGATIVE_INFINITY of the JDBC driver, taken for microseconds."""
_INFINITE_LONG: Final = {"infinity": str(_INT64_MAX), "-infinity": str(_INT64_MIN)}
_INFINITE_TIMESTAMPS: Final = {
    "infinity": '"+294247-01-10T04:00:25.2Z"',
    "-infinity": '"-290308-12-21T19:59:27.6Z"',
}

_CLOCK = re.compile(r"(\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?", re.ASCII)
_ZONED_CLOCK = re.compile(rf"({_CLOCK.pattern})([+-])(\d\d)(?::(\d\d))?(?::(\d\d))?", re.ASCII)
_TIMESTAMPTZ = re.compile(r"(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d)(?:\.(\d{1,6}))?\+00", re.ASCII)
"""Within the years of four digits: most."""
_UTC: Final = "+00"

_MONTHS_A_YEAR: Final = 12
_DAYS_A_MONTH: Final = 365.25 / 12


def dates(settings: DebeziumSettings) -> Callable[[str], str]:
    """What writes a date: days since 1970, or a text."""
    return _date_string if settings.time is TimeMode.ISOSTRING else _days


def _days(text: str) -> str:
    if text in INFINITE:
        return _INFINITE_DAYS[text]
    return str(_day(_date(text)))


def _date_string(text: str) -> str:
    if text in INFINITE:
        return _INFINITE_DATES[text]
    return f'"{_iso_date(_date(text))}Z"'


def _date(text: str) -> Moment:
    at = moment(text)
    if at.time:
        raise ValueError("it is no date")
    return at


def _day(at: Moment) -> int:
    """Days since 1970."""
    cycles, year = divmod(at.year - 1, _CYCLE_YEARS)
    return date(year + 1, at.month, at.day).toordinal() + cycles * _CYCLE_DAYS - _EPOCH


def _iso_date(at: Moment) -> str:
    year = f"{at.year:04}" if at.year >= 0 else f"-{-at.year:04}"
    return f"{'+' if at.year > _LAST_FOUR_DIGIT_YEAR else ''}{year}-{at.month:02}-{at.day:02}"


def times(modifier: int, settings: DebeziumSettings) -> Callable[[str], str]:
    """What writes a time of a column with this type modifier: since midnight, or a text."""
    match settings.time:
        case TimeMode.ISOSTRING:
            return _time_string
        case TimeMode.CONNECT:
            return lambda text: str(_clock(text) // 1_000)
        case TimeMode.ADAPTIVE if 0 <= modifier <= _MILLIS_DIGITS:
            return lambda text: str(_clock(text) // 1_000)
        case TimeMode.NANOSECONDS:
            return lambda text: str(_clock(text) * 1_000)
        case _:
            return lambda text: str(_clock(text))


def _clock(text: str) -> int:
    """Microseconds since midnight."""
    match = _CLOCK.fullmatch(text)
    if match is None:
        raise ValueError("it is no time")
    hours, minutes, seconds, fraction = match.groups("")
    return (int(hours) * _HOUR + int(minutes) * _MINUTE + int(seconds)) * _MICROS + int(fraction.ljust(6, "0"))


def _time_string(text: str) -> str:
    return f'"{_iso_clock(_clock(text))}Z"'


def _iso_clock(micros: int) -> str:
    """With as many decimals as it needs. The end of a day, 24:00, becomes its beginning, as with Debezium."""
    seconds, micros = divmod(micros % (_DAY_S * _MICROS), _MICROS)
    fraction = f".{micros:06}".rstrip("0") if micros else ""
    return f"{seconds // _HOUR:02}:{seconds // _MINUTE % _MINUTE:02}:{seconds % _MINUTE:02}{fraction}"


def timetz(text: str) -> str:
    """A time with a zone, as a text in UTC."""
    match = _ZONED_CLOCK.fullmatch(text)
    if match is None:
        raise ValueError("it is no time with a zone")
    hours, minutes, seconds = match.group(7, 8, 9)
    east_s = int(hours) * _HOUR + int(minutes or 0) * _MINUTE + int(seconds or 0)
    return f'"{_iso_clock(_clock(match[1]) - (-east_s if match[6] == "-" else east_s) * _MICROS)}Z"'


def timestamps(modifier: int, settings: DebeziumSettings) -> Callable[[str], str]:
    """What writes a timestamp without zone of a column with this type modifier: since 1970, or a text."""
    match settings.time:
        case TimeMode.ISOSTRING:
            return _timestamp_string
        case TimeMode.CONNECT:
            return _timestamp_millis
        case TimeMode.ADAPTIVE | TimeMode.ADAPTIVE_TIME_MICROSECONDS if 0 <= modifier <= _MILLIS_DIGITS:
            return _timestamp_millis
        case TimeMode.NANOSECONDS:
            return _timestamp_nanos
        case _:
            return _timestamp_micros


def _timestamp_millis(text: str) -> str:
    return str((_INFINITE_MICROS[text] if text in INFINITE else _micros(_timestamp(text))) // 1_000)


def _timestamp_micros(text: str) -> str:
    micros = _INFINITE_MICROS[text] if text in INFINITE else _micros(_timestamp(text))
    if _INT64_MIN <= micros <= _INT64_MAX:
        return str(micros)
    # Java's TimeUnit stops at the greatest number, and the rest is added to that. Only after the year 294246.
    return str((_INT64_MAX + micros % _MICROS) - 2**64)


def _timestamp_nanos(text: str) -> str:
    """Null beyond the years 1677 to 2262, where no 64 bits hold it: so does Debezium."""
    if text in INFINITE:
        return _INFINITE_LONG[text]
    nanos = _micros(_timestamp(text)) * 1_000
    return str(nanos) if _INT64_MIN <= nanos <= _INT64_MAX else "null"


def _timestamp_string(text: str) -> str:
    if text in INFINITE:
        return _INFINITE_TIMESTAMPS[text]
    at = _timestamp(text)
    return f'"{_iso_date(at)}T{_iso_clock(_clock(at.time))}Z"'


def _timestamp(text: str) -> Moment:
    at = moment(text)
    if not at.time or at.zone:
        raise ValueError("it is no timestamp without a zone")
    return at


def _micros(at: Moment) -> int:
    """Microseconds since 1970."""
    return _day(at) * _DAY_S * _MICROS + _clock(at.time)


def timestamptz(modifier: int) -> Callable[[str], str]:
    """What writes a timestamp with a zone of a column with this type modifier: a text in UTC, with all its decimals."""
    decimals = modifier if modifier >= 0 else _MICROS_DIGITS

    def write(text: str) -> str:
        match = _TIMESTAMPTZ.fullmatch(text)
        if match is not None:
            day, whole, fraction = match.groups("")
        elif text in INFINITE:
            return f'"{text}"'
        else:
            at = moment(text)
            if at.zone != _UTC:
                raise ValueError("it is no timestamp in UTC")
            day, (whole, _, fraction) = _iso_date(at), at.time.partition(".")
        fraction = fraction.ljust(decimals, "0")
        return f'"{day}T{whole}.{fraction}Z"' if fraction else f'"{day}T{whole}Z"'

    return write


def intervals(settings: DebeziumSettings) -> Callable[[str], str]:
    """What writes an interval."""
    return _interval_string if settings.interval is IntervalMode.STRING else _interval_micros


def _interval_micros(text: str) -> str:
    """Computed in floats, as Debezium does; what is longer than 64 bits hold, and what is infinite, ends there."""
    if text in INFINITE:
        return _INFINITE_LONG[text]
    months, days, micros = interval_parts(text)
    rounded = _rounded(((months * _DAYS_A_MONTH + days) * _DAY_S + micros / _MICROS) * _MICROS)
    return str(min(max(rounded, _INT64_MIN), _INT64_MAX))


def _rounded(number: float) -> int:
    """The nearest integer, halves upwards: Java's Math.round."""
    return int(number) if number.is_integer() else floor(number + 0.5)


def _interval_string(text: str) -> str:
    """All parts, each with its own sign. An infinite one, which ISO 8601 does not know, as PostgreSQL writes it."""
    if text in INFINITE:
        return f'"{text}"'
    months, days, micros = interval_parts(text)
    sign, years_sign = (-1 if micros < 0 else 1), (-1 if months < 0 else 1)
    years, months = divmod(abs(months), _MONTHS_A_YEAR)
    seconds, micros = divmod(abs(micros), _MICROS)
    minutes, seconds = divmod(seconds, _MINUTE)
    hours, minutes = divmod(minutes, _MINUTE)
    fraction = f".{micros:06}".rstrip("0") if micros else ""
    minus = "-" if sign < 0 and (seconds or micros) else ""
    return (
        f'"P{years_sign * years}Y{years_sign * months}M{days}D'
        f'T{sign * hours}H{sign * minutes}M{minus}{seconds}{fraction}S"'
    )
