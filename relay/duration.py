"""Durations as people write them: 500ms, 90s, 30m, 12h, 7d."""

import re
from typing import Final

_DURATION: Final = re.compile(r"([0-9]+)(ms|s|m|h|d)")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}

DURATION_MAX_S: Final = 1e9 * 86_400
"""A billion days: more than any clock here can count."""


def seconds(text: str) -> float:
    """The seconds that a duration means. Raises ValueError with a sentence that says how one should look."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise ValueError("should be a time like 500ms, 90s, 30m, 12h or 7d")
    duration_s = float(found[1]) * _SECONDS[found[2]]
    if duration_s >= DURATION_MAX_S:
        raise ValueError("should be less than a billion days")
    return duration_s
