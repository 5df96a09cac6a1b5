"""How often firing a timer has failed, and whose fault that was: when it is tried again, and when no more. Pure."""

from dataclasses import dataclass, replace
from typing import Final

from relay.errors import RelayError
from relay.messaging import Retry
from relay.messaging.retry import CONFLICT_TRIES, Trouble, trouble

TIMER_RETRY: Final = Retry(attempts=20, backoff="1s..5m")
"""How often a timer is tried on which code of its saga raises: about an hour, as for a compensation. Then the saga is
suspended. Failures of a step are none of these: they have the budget of the step."""

INTERRUPTION_RETRY: Final = Retry(attempts=100, backoff="1s..1m")
"""How often it is tried when nobody is to blame: a conflict with another transaction, a lost connection. Neither
lasts for an hour and a half, so it is the code of the saga that asks for a lock it never gets, or breaks its
connection."""

UNKNOWN_MAX: Final = 7
"""So often it counts that an instance does not know the saga: then it waits as long as it ever will. Another instance
may know it, so this alone never spends the budget."""


class UnknownSaga(RelayError):
    """A timer belongs to a saga that this instance has no definition of."""

    hint = "Give the definition to the orchestrator, until the last saga of its name has ended."


@dataclass(frozen=True, slots=True)
class Tally:
    """How often firing a timer has failed so far.

    `failures`: code of the saga raised. `interruptions`: a conflict or a lost connection was in the way.
    """

    failures: int = 0
    interruptions: int = 0

    def after(self, error: Exception) -> "Tally":
        """The tally after one more that failed with this."""
        if isinstance(error, UnknownSaga):
            return replace(self, interruptions=max(self.interruptions, min(self.interruptions + 1, UNKNOWN_MAX)))
        if trouble(error) is Trouble.FAULT:
            return replace(self, failures=self.failures + 1)
        return replace(self, interruptions=self.interruptions + 1)

    def delay_s(self, error: Exception) -> float:
        """The nominal seconds until the next try, when this was what failed last."""
        if isinstance(error, UnknownSaga) or trouble(error) is not Trouble.FAULT:
            return INTERRUPTION_RETRY.delay_s(self.interruptions)
        return TIMER_RETRY.delay_s(self.failures)

    @property
    def spent(self) -> bool:
        """Whether a budget is spent: the last try has been made."""
        return self.failures >= TIMER_RETRY.attempts or self.always_interrupted

    @property
    def always_interrupted(self) -> bool:
        """Whether it is not even to be tried again: who breaks the connection takes the others of a batch with it."""
        return self.interruptions >= INTERRUPTION_RETRY.attempts

    def is_news(self, error: Exception) -> bool:
        """Whether a person should hear of a failure: of all but the first few conflicts."""
        return trouble(error) is not Trouble.CONFLICT or self.interruptions > CONFLICT_TRIES
