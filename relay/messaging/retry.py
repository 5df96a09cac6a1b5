"""Which failures mend themselves, and how long to wait for that."""

from enum import Enum
from typing import Final

import psycopg
from psycopg import errors

from relay.backoff import Backoff

CONFLICT_TRIES: Final = 5
"""How often a transaction that lost against another one is tried again at once; then it counts as a fault."""

FAULT_TRIES: Final = 5
"""How often a handler that raises gets a message, before the message goes to the dead letters."""

FAULT_FIRST_S: Final = 0.1
FAULT_CAP_S: Final = 2.0
"""Waits between these tries. The messages behind wait too, so they are short."""

AWAY_FIRST_S: Final = 0.1
AWAY_CAP_S: Final = 5.0
"""Waits while the database is away, which end only with its return."""

_AWAY_CLASSES: Final = frozenset({"08", "53", "58"})
"""SQLSTATE classes: connection exceptions, insufficient resources, system errors."""

_AWAY_STATES: Final = frozenset({"57P01", "57P02", "57P03", "25006"})
"""Shut down, crashed, not yet accepting connections; read-only: a standby that has not been promoted yet."""

_CONFLICT_STATES: Final = frozenset({"40001", "40P01", "55P03"})
"""Serialization failure, deadlock, lock not available."""


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


class Patience:
    """How long to bear with one message that cannot be handled."""

    def __init__(self) -> None:
        self._conflicts = 0
        self._faults = 0
        self._away = Backoff(AWAY_FIRST_S, AWAY_CAP_S)
        self._fault = Backoff(FAULT_FIRST_S, FAULT_CAP_S)

    def after(self, error: BaseException) -> float | None:
        """Seconds to wait before the next try, None when there is to be none."""
        match trouble(error):
            case Trouble.AWAY:
                return self._away.next()
            case Trouble.CONFLICT if self._conflicts < CONFLICT_TRIES:
                self._conflicts += 1
                return 0.0
            case _:
                self._faults += 1
                return self._fault.next() if self._faults < FAULT_TRIES else None
