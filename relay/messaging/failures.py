"""What went wrong with a message, as it is kept and told."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Self, TypedDict

ERROR_MAX_CHARS: Final = 2_000
"""What is kept of an error's text."""

HISTORY_MAX: Final = 100
"""The failures of one message that are kept: the last ones."""


class Entry(TypedDict):
    """A failure in the column `history` of relay.deferred."""

    at: str
    attempt: int
    error: str


@dataclass(frozen=True, slots=True)
class Mishap:
    """One attempt at a message that failed. Attempts count from 1."""

    at: datetime
    attempt: int
    error: str

    @classmethod
    def of(cls, error: BaseException, attempt: int) -> Self:
        """What an exception says, now."""
        return cls(datetime.now(UTC), attempt, described(error))

    @classmethod
    def read(cls, entry: Entry) -> Self:
        """Read an entry of the history."""
        return cls(datetime.fromisoformat(entry["at"]), entry["attempt"], entry["error"])

    @property
    def entry(self) -> Entry:
        """It as an entry of the history."""
        return {"at": self.at.isoformat(), "attempt": self.attempt, "error": self.error}


History = tuple[Mishap, ...]
"""The failures of one message, the oldest first."""


def described(error: BaseException) -> str:
    """An exception in one line that every table and log can hold: its type, and what it says."""
    said = " ".join(_words(error).replace("\0", "").encode(errors="replace").decode().split())
    name = type(error).__name__
    return (f"{name}: {said}" if said else name)[:ERROR_MAX_CHARS]


def _words(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as mute:  # code of users too: it must not keep its failure from being told
        return f"(it cannot say what: {type(mute).__name__})"


def summed_up(history: Sequence[Mishap]) -> str:
    """A history in one line; the same error several times in a row is said once."""
    runs: list[tuple[int, int, str]] = []
    for mishap in history:
        if runs and runs[-1][2] == mishap.error:
            runs[-1] = (runs[-1][0], mishap.attempt, mishap.error)
        else:
            runs.append((mishap.attempt, mishap.attempt, mishap.error))
    return "; ".join(f"{_attempts(first, last)}: {error}" for first, last, error in runs)


def _attempts(first: int, last: int) -> str:
    return f"attempt {first}" if first == last else f"attempts {first} to {last}"
