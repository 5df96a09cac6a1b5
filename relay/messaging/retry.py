"""Which failures mend themselves, how often to try again, and how long to wait for that."""

import random
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

import psycopg
from psycopg import errors

from relay.backoff import Backoff
from relay.duration import seconds

CONFLICT_TRIES: Final = 5
"""How often a transaction that lost against another one is tried again at once; then it counts as a fault."""

LOST_TRIES: Final = 3
"""How often the database may seem to be away in the middle of a message's transaction; then it is the message."""

FAULT_TRIES: Final = 3
"""How often a handler that raises gets a message at once, before the message is put off."""

FAULT_FIRST_S: Final = 0.1
FAULT_CAP_S: Final = 1.0
"""Waits between these tries. The later messages of the aggregate wait too, so they are short."""

DOUBLINGS_MAX: Final = 64
"""A millisecond that doubled this often is longer than the age of the universe: no cap is beyond it."""

AWAY_FIRST_S: Final = 0.1
AWAY_CAP_S: Final = 5.0
"""Waits while the database is away, which end only with its return."""

_AWAY_CLASSES: Final = frozenset({"08", "53", "58"})
"""SQLSTATE classes: connection exceptions, insufficient resources, system errors."""

_AWAY_STATES: Final = frozenset({"57P01", "57P02", "57P03", "25006"})
"""Shut down, crashed, not yet accepting connections; read-only: a standby that has not been promoted yet."""

_CONFLICT_STATES: Final = frozenset({"40001", "40P01", "55P03"})
"""Serialization failure, deadlock, lock not available."""


@dataclass(frozen=True, slots=True)
class Retry:
    """How often something is tried in all, and the waits between: from the first to the cap, each twice the one before.

    Raises ValueError for what is no such policy.
    """

    attempts: int = 12
    backoff: str = "1s..5m"
    first_s: float = field(init=False, repr=False, compare=False)
    cap_s: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts is {self.attempts}, and the first try is one already")
        first, _, cap = self.backoff.partition("..")
        try:
            first_s, cap_s = seconds(first), seconds(cap)
        except ValueError as error:
            raise ValueError(f"backoff is {self.backoff!r}, not two times like 1s..5m: each {error}") from None
        if not 0 < first_s <= cap_s:
            raise ValueError(
                f"backoff is {self.backoff!r}: the first wait has to be longer than nothing, the last no less"
            )
        object.__setattr__(self, "first_s", first_s)
        object.__setattr__(self, "cap_s", cap_s)

    def delay_s(self, attempt: int) -> float:
        """The nominal seconds between an attempt, counted from 1, and the next one. Jitter is the caller's part."""
        doublings = min(max(attempt - 1, 0), DOUBLINGS_MAX)
        return min(self.cap_s, self.first_s * 2.0**doublings)


class Trouble(Enum):
    """What to make of an exception."""

    AWAY = "away"
    """The database cannot be used just now. No message's fault, and it passes."""
    CONFLICT = "conflict"
    """Another transaction was in the way."""
    FAULT = "fault"
    """Anything else: perhaps transient, perhaps a bug."""


def trouble(error: BaseException) -> Trouble:
    """Classify an exception. Source: PostgreSQL documentation, "PostgreSQL Error Codes"."""
    if not isinstance(error, psycopg.Error):
        return Trouble.FAULT
    state = error.sqlstate
    if state is None:
        # No answer of the server: the connection broke, could not be made, or the pool had none in time.
        lost = isinstance(error, psycopg.OperationalError) and not isinstance(error, errors.PipelineAborted)
        return Trouble.AWAY if lost else Trouble.FAULT
    if state[:2] in _AWAY_CLASSES or state in _AWAY_STATES:
        return Trouble.AWAY
    return Trouble.CONFLICT if state in _CONFLICT_STATES else Trouble.FAULT


def jittered(delay_s: float) -> float:
    """Between half of a nominal delay and the whole, so that many who failed together do not come back together."""
    return delay_s * random.uniform(0.5, 1.0)


class Patience:
    """How long to bear with one message that cannot be handled, before it is put off. `faults` counts failed attempts.

    What is nobody's fault is no failed attempt: an absence of the database, and the first few conflicts. An absence
    that begins again and again after the transaction has is no absence: the handler breaks its connection, or asks
    another database.
    """

    def __init__(self, fault_tries: int = FAULT_TRIES) -> None:
        self.faults = 0
        self._fault_tries = fault_tries
        self._conflicts = 0
        self._lost = 0
        self._away = Backoff(AWAY_FIRST_S, AWAY_CAP_S)
        self._fault = Backoff(FAULT_FIRST_S, FAULT_CAP_S)

    def after(self, error: BaseException, *, begun: bool = False) -> float | None:
        """Seconds to wait before the next try, None when there is to be none. `begun`: the transaction had begun."""
        match trouble(error):
            case Trouble.AWAY if not begun or self._lost < LOST_TRIES:
                self._lost += begun
                return self._away.next()
            case Trouble.CONFLICT if self._conflicts < CONFLICT_TRIES:
                self._conflicts += 1
                return 0.0
            case _:
                self.faults += 1
                return self._fault.next() if self.faults < self._fault_tries else None
