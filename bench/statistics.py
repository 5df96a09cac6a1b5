"""Percentiles, and the spread of repeats. Pure."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


def percentile(values: Sequence[float], per_mille: int) -> float:
    """The smallest value that so many thousandths of all are not above (the nearest rank). Raises ValueError for none.

    Thousandths are whole numbers: 99.9 % of a thousand values would be a bit more than 999 of them.
    """
    if not values:
        raise ValueError("there is no percentile of nothing")
    return sorted(values)[max(0, -(-per_mille * len(values) // 1000) - 1)]


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of delays in ms."""

    p50: float
    p99: float
    p999: float

    @classmethod
    def of(cls, delays_ms: Sequence[float]) -> "Percentiles":
        """Those of some delays."""
        return cls(percentile(delays_ms, 500), percentile(delays_ms, 990), percentile(delays_ms, 999))


@dataclass(frozen=True, slots=True)
class Spread:
    """What repeats of one measurement found."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """That of some values. Raises ValueError for none."""
        if not values:
            raise ValueError("there is no spread of nothing")
        return cls(statistics.median(values), min(values), max(values))
