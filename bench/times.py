"""The number that a message carries in its payload, and what was seen of it when."""

from array import array
from pathlib import Path
from typing import Final

STAMP_AT: Final = len(b'{"n": "')
STAMP_DIGITS: Final = 10
"""A payload of the benchmark begins with its number, with leading zeros: read without a parser."""

NS_PER_MS: Final = 1_000_000


def stamp_of(body: bytes) -> int:
    """The number of a payload."""
    return int(body[STAMP_AT : STAMP_AT + STAMP_DIGITS])


def write_times(path: Path, times: "array[int]") -> None:
    """Keep pairs of a number and a time in ns."""
    with path.open("wb") as file:
        times.tofile(file)


def read_times(path: Path) -> dict[int, int]:
    """The first time of each number, in ns: what comes twice has arrived by its first time."""
    times = array("q")
    times.frombytes(path.read_bytes())
    seen: dict[int, int] = {}
    for number, at_ns in zip(times[::2], times[1::2], strict=True):
        seen.setdefault(number, at_ns)
    return seen


def delays_ms(start: dict[int, int], end: dict[int, int]) -> list[float]:
    """How long each took, in ms, for the numbers that both know. Raises KeyError when one never arrived."""
    return [(end[number] - at_ns) / NS_PER_MS for number, at_ns in start.items()]
