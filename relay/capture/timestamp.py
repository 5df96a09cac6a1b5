"""The time of a message, in the form that PostgreSQL prints a timestamptz in UTC: 2025-06-01 12:00:00.5+00."""

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

TIMES: Final = 64
"""Times whose text is remembered. Changes of one transaction share theirs; one would do."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECONDS: Final = re.compile(r"-?[0-9]{1,15}")
"""More digits are no time within Python's years."""
_ISO: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?:[T ].+)?")
"""Python would read more: a long number, for instance, as a date without hyphens."""


@lru_cache(maxsize=TIMES)
def printed(moment: datetime) -> str:
    """A time that knows its zone, as PostgreSQL prints it in UTC."""
    text = moment.astimezone(UTC).replace(tzinfo=None).isoformat(" ")
    return f"{text.rstrip('0') if moment.microsecond else text}+00"


def read(text: str) -> str:
    """A time of a text: ISO 8601, in UTC where no zone is told, or whole milliseconds since 1970.

    Raises ValueError when it is neither, or not within Python's years.
    """
    try:
        if _MILLISECONDS.fullmatch(text):
            return printed(_EPOCH + timedelta(milliseconds=int(text)))
        if not _ISO.fullmatch(text):
            raise ValueError("neither ISO 8601 nor milliseconds since 1970")
        moment = datetime.fromisoformat(text)
        return printed(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    except OverflowError:
        raise ValueError("no time within the years 1 to 9999") from None


def of_timestamp(text: str) -> str:
    """What PostgreSQL prints for a timestamp without a zone, taken to be in UTC."""
    return _with(text, "+00")


def of_date(text: str) -> str:
    """What PostgreSQL prints for a date: the beginning of that day in UTC."""
    return _with(text, " 00:00:00+00")


def _with(text: str, rest: str) -> str:
    """The era comes last, and infinity has no zone."""
    if "infinity" in text:
        return text
    era = " BC" if text.endswith(" BC") else ""
    return f"{text.removesuffix(era)}{rest}{era}"
